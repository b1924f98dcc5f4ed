//! The world of one run: everything that source and receiver share with chance. No rule of the product lives here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use farside_ledger::{KeptEnd, Policy};
use farside_region::{BootId, Geometry, GroupId, LayerKey, Name, RecordDigest, Slot, Term, VolumeId};

use crate::cohort::line::Lines;
use crate::exec::{Executor, Owner, Steps};
use farside_replication::lineage::Lineage;

use crate::failover::Failover;
use crate::history::Author;
use crate::net::Network;
use crate::parts::Unpacked;
use crate::plan::{OfCohort, Plan};
use crate::quiet::Applications;
use crate::rng::Rng;
use crate::site::{Site, Snapshot};
use crate::store::MemoryStore;
use crate::succession::Claimants;
use crate::trace::Trace;

/// Bytes in a sector of a backing disk: the smallest host write.
pub const SECTOR: usize = 16;
/// How fast the clock of the store's service goes: a lease of six hours lives a fifth of a second.
const SERVICE_MS_PER_US: u64 = 100;
/// Granules are 2^6 bytes, regions 2^2 granules.
pub const GRANULE_SHIFT: u8 = 6;
/// See [`GRANULE_SHIFT`].
pub const REGION_GRANULES_SHIFT: u8 = 2;
/// Sectors in a granule.
pub const GRANULE_SECTORS: usize = (1 << GRANULE_SHIFT) / SECTOR;
/// Sectors in a region.
pub const REGION_SECTORS: usize = GRANULE_SECTORS << REGION_GRANULES_SHIFT;

/// What things are called in this run.
#[derive(Clone, Debug)]
pub struct Names {
    /// The source.
    pub source: Name,
    /// Its one group.
    pub group: Name,
    /// The group's identity.
    pub group_id: GroupId,
    /// The volumes' names.
    pub volumes: Vec<Name>,
    /// The volumes' identities.
    pub ids: Vec<VolumeId>,
    /// The volumes' shapes when they have grown to the last; see [`Site::geometry`] for what they are now.
    pub geometry: Vec<Geometry>,
}

impl Names {
    fn new(plan: &Plan) -> Self {
        let name = |n: &str| -> Name { n.parse().expect("a valid name") };
        let host = plan.cohort.map_or_else(|| "host".to_owned(), |of| format!("host{}", of.host));
        let (source, group) = (name(&host), name("group"));
        let volumes: Vec<Name> = (0..plan.regions.len()).map(|v| name(&format!("v{v}"))).collect();
        Self {
            group_id: farside_ledger::group_id(&source, &group),
            ids: volumes.iter().map(|v| farside_ledger::volume_id(&source, &group, v)).collect(),
            geometry: (0..volumes.len())
                .map(|v| {
                    Geometry::with_shape(World::volume_bytes(plan, v), GRANULE_SHIFT, REGION_GRANULES_SHIFT)
                        .expect("a valid shape")
                })
                .collect(),
            source,
            group,
            volumes,
        }
    }

    /// The key of a volume's granule digests. Fixed by the first claim; every attach of this world offers the same.
    pub fn digest_key(&self, volume: VolumeId) -> [u8; 32] {
        let mut key = [7; 32];
        key[..16].copy_from_slice(&volume.0);
        key
    }
}

/// The name of a segment: volume, term, sequence, part.
pub type SegmentKey = (usize, u64, u64, u32);

/// See the head of the file.
#[derive(Debug)]
pub struct World {
    /// What this seed set out to do.
    pub plan: Plan,
    /// What things are called.
    pub names: Names,
    /// Chance.
    pub rng: RefCell<Rng>,
    /// Virtual time in microseconds.
    pub now_us: Cell<u64>,
    /// Steps so far.
    pub step: Cell<u64>,
    /// Everything that runs.
    pub tasks: RefCell<Executor>,
    /// The protected machine, and clones of it.
    sites: RefCell<Vec<Rc<Site>>>,
    /// Between sources and receiver.
    pub net: RefCell<Network>,
    /// The receiver's.
    pub store: RefCell<MemoryStore<SegmentKey>>,
    /// The story.
    pub trace: RefCell<Trace>,
    last_ns: Cell<u64>,
    next_tag: Cell<u64>,
    next_owner: Cell<u64>,
    next_life: Cell<u64>,
    bad: RefCell<Option<String>>,
    met: RefCell<BTreeMap<&'static str, u64>>,
    /// The safety phase is over.
    pub healing: Cell<bool>,
    /// Parts that are durable at the receiver and not published.
    pub landing: RefCell<BTreeMap<SegmentKey, Vec<u8>>>,
    /// What end messages said of layers that are staged there.
    pub ends: RefCell<BTreeMap<LayerKey, KeptEnd>>,
    /// Connections that a receiver has heard of.
    pub seen_connections: RefCell<BTreeSet<u64>>,
    /// A receiver's process lives.
    pub receiver_up: Cell<bool>,
    /// Layers whose records were given up: volume, term, number.
    pub given_up: RefCell<BTreeSet<(usize, u64, u64)>>,
    /// Segments that were unpacked before.
    pub unpacked: RefCell<BTreeMap<SegmentKey, Unpacked>>,
    /// The shape that a volume had in an attach, by volume and term.
    shapes: RefCell<BTreeMap<(usize, u64), Geometry>>,
    /// Who sent each layer that was said to be complete.
    pub authors: RefCell<BTreeMap<LayerKey, Author>>,
    /// The step at which the store was put back last.
    pub rewound_at: Cell<u64>,
    /// The store takes nothing before that time.
    pub store_full_until_us: Cell<u64>,
    /// Somebody else's files leave the store so many bytes, with what it held then.
    pub store_left: Cell<Option<(u64, u64)>>,
    /// How far the receiver's wall clock is off, in milliseconds.
    pub receiver_wall_off_ms: Cell<i64>,
    /// The same of the sources'.
    pub source_wall_off_ms: Cell<i64>,
    /// What the gateway keeps of a failover of the group.
    pub failover: RefCell<Option<Failover>>,
    /// What failovers that are over left aside, as long as any of it is there.
    pub left_aside: RefCell<Lineage>,
    /// The machine that is to have the group; `None`: that is being decided.
    pub main: Cell<Option<usize>>,
    /// Who asked for a claim: volume, generation, up to where they had looked.
    pub claimants: RefCell<Claimants>,
    /// The step at which the receiver entered the group last, and what it signs with: of what came before, or was put by another process,
    /// it does not know who asked.
    pub entered: Cell<(u64, [u8; 16])>,
    /// The newest slot of which its core was told that it is its own, and the step of that.
    pub told: Cell<(u64, u64)>,
    /// The records by which the gateway fences, by their digests.
    pub fences: RefCell<BTreeSet<RecordDigest>>,
    /// Accepted pins that were not withdrawn, and the points they hold.
    pub pinned: RefCell<BTreeMap<Slot, Slot>>,
    /// Between its machines and whoever conducts the cuts of their cohort.
    pub lines: RefCell<Lines>,
    /// Points that the gateway keeps for cuts of the cohort that are whole. `None`: that is not known yet.
    pub kept: RefCell<Option<BTreeSet<Slot>>>,
    /// Those that it must keep for them, as the judge of cohorts says.
    pub must_keep: RefCell<BTreeSet<Slot>>,
    /// Applications of the host, and whoever holds them.
    pub(crate) applications: RefCell<Applications>,
    /// What the host allows in cuts of its cohort.
    pub of_cohort: Cell<OfCohort>,
    /// For so long whoever conducts them wants writes to be held, in microseconds.
    pub hold_us: Cell<u64>,
}

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(mut rng: Rng, plan: Plan, trace: Trace, map_bytes: usize) -> Rc<Self> {
        let boot = BootId(rng.bytes16());
        let names = Names::new(&plan);
        let home = Site::new(0, false, 1, &names.geometry, map_bytes, boot);
        for volume in 0..names.geometry.len() {
            home.has_size(volume, Self::first_bytes(&plan, volume));
            home.is_served_whole(volume);
        }
        Rc::new(Self {
            shapes: RefCell::default(),
            sites: RefCell::new(vec![Rc::new(home)]),
            next_life: Cell::new(1),
            net: RefCell::new(Network::new()),
            store: RefCell::new(MemoryStore::default()),
            tasks: RefCell::new(Executor::default()),
            trace: RefCell::new(trace),
            rng: RefCell::new(rng),
            now_us: Cell::new(1_000_000),
            step: Cell::new(0),
            last_ns: Cell::new(0),
            next_tag: Cell::new(0),
            next_owner: Cell::new(0),
            bad: RefCell::new(None),
            met: RefCell::default(),
            healing: Cell::new(false),
            pinned: RefCell::default(),
            lines: RefCell::default(),
            kept: RefCell::new(plan.cohort.is_none().then(BTreeSet::new)),
            must_keep: RefCell::default(),
            applications: RefCell::new(Applications::new(&plan)),
            of_cohort: Cell::new(plan.cohort.unwrap_or_default()),
            hold_us: Cell::new(0),
            failover: RefCell::default(),
            left_aside: RefCell::default(),
            main: Cell::new(Some(0)),
            claimants: RefCell::default(),
            fences: RefCell::default(),
            entered: Cell::default(),
            told: Cell::default(),
            store_full_until_us: Cell::new(0),
            store_left: Cell::new(None),
            receiver_wall_off_ms: Cell::new(0),
            source_wall_off_ms: Cell::new(0),
            authors: RefCell::default(),
            rewound_at: Cell::new(0),
            landing: RefCell::default(),
            ends: RefCell::default(),
            seen_connections: RefCell::default(),
            receiver_up: Cell::new(false),
            given_up: RefCell::default(),
            unpacked: RefCell::default(),
            names,
            plan,
        })
    }

    /// Size of a volume in bytes at the beginning.
    pub fn first_bytes(plan: &Plan, volume: usize) -> u64 {
        let whole = plan.regions[volume] << (GRANULE_SHIFT + REGION_GRANULES_SHIFT);
        let lacks = plan.smaller.get(volume).copied().unwrap_or(0);
        Self::volume_bytes(plan, volume).min(whole - (lacks << GRANULE_SHIFT))
    }

    /// Size of a volume in bytes when it has grown to the last; a ragged one ends inside a granule.
    pub fn volume_bytes(plan: &Plan, volume: usize) -> u64 {
        let whole = plan.regions[volume] * (REGION_SECTORS * SECTOR) as u64;
        if plan.ragged && volume + 1 == plan.regions.len() { whole - (SECTOR * 5) as u64 } else { whole }
    }

    /// What tasks wait on.
    pub fn steps(&self) -> Steps {
        self.tasks.borrow().steps()
    }

    /// A number that no host write, process or piece had before.
    pub fn tag(&self) -> u64 {
        self.next_tag.set(self.next_tag.get() + 1);
        self.next_tag.get()
    }

    /// A new process.
    pub fn owner(&self) -> Owner {
        self.next_owner.set(self.next_owner.get() + 1);
        Owner(self.next_owner.get())
    }

    /// Starts a task.
    pub fn spawn(&self, owner: Owner, name: impl Into<String>, body: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().spawn(owner, name, body);
    }

    /// Adds a line to the story.
    pub fn say(&self, text: impl FnOnce() -> String) {
        let mut trace = self.trace.borrow_mut();
        if trace.wants() {
            trace.line(self.step.get(), self.now_us.get(), text);
        }
    }

    /// Counts that something rare happened: the gate demands that its seeds meet everything.
    pub fn met(&self, what: &'static str) {
        *self.met.borrow_mut().entry(what).or_default() += 1;
    }

    /// What was met, and how often.
    pub fn all_met(&self) -> BTreeMap<&'static str, u64> {
        self.met.borrow().clone()
    }

    /// A law is broken. The first one counts.
    pub fn fail(&self, why: String) {
        self.say(|| format!("BAD {why}"));
        self.bad.borrow_mut().get_or_insert(why);
    }

    /// Fails when it is an error.
    pub fn check(&self, result: Result<(), String>) {
        if let Err(why) = result {
            self.fail(why);
        }
    }

    /// The law that was broken.
    pub fn bad(&self) -> Option<String> {
        self.bad.borrow().clone()
    }

    /// True with probability `p`.
    pub fn chance(&self, p: f64) -> bool {
        self.rng.borrow_mut().chance(p)
    }

    /// A number in `0..n`.
    pub fn dice(&self, n: usize) -> usize {
        self.rng.borrow_mut().below(n)
    }

    /// Nanoseconds of the monotonic clocks; never the same twice, so that switches can be told apart.
    pub fn mono_ns(&self) -> u64 {
        let next = (self.now_us.get() * 1000).max(self.last_ns.get() + 1);
        self.last_ns.set(next);
        next
    }

    /// Milliseconds since 1970, as a clock without faults would show them.
    pub fn wall_ms(&self) -> i64 {
        1_700_000_000_000 + (self.now_us.get() / 1000) as i64
    }

    /// What the clock of the store's service says, in milliseconds since 1970. It goes fast, so that leases run out.
    pub fn service_ms(&self) -> i64 {
        1_700_000_000_000 + (self.now_us.get() * SERVICE_MS_PER_US) as i64
    }

    /// The original.
    pub fn home(&self) -> Rc<Site> {
        self.site(0)
    }

    /// The machine that has the group, or had it last.
    pub fn main(&self) -> Rc<Site> {
        self.site(self.main.get().unwrap_or(0))
    }

    /// One of the machines.
    pub fn site(&self, no: usize) -> Rc<Site> {
        self.sites.borrow()[no].clone()
    }

    /// All machines that there ever were.
    pub fn sites(&self) -> Vec<Rc<Site>> {
        self.sites.borrow().clone()
    }

    /// A clone joins the world, as the original was at some moment.
    pub fn add_clone(&self, snapshot: &Snapshot) -> Rc<Site> {
        let home = self.home();
        let map_bytes = home.maps[0].borrow().image().len();
        let boot = BootId(self.rng.borrow_mut().bytes16());
        let no = self.sites.borrow().len();
        let site = Rc::new(Site::new(no, false, self.new_life(), &self.names.geometry, map_bytes, boot));
        site.restore(snapshot);
        site.absent.set(home.absent.get());
        self.sites.borrow_mut().push(site.clone());
        site
    }

    /// Another machine is to stand in for the original, with disks that hold this.
    pub fn add_stand_in(&self, images: &[Vec<u8>]) -> Rc<Site> {
        let map_bytes = self.home().maps[0].borrow().image().len();
        let boot = BootId(self.rng.borrow_mut().bytes16());
        let no = self.sites.borrow().len();
        let site = Rc::new(Site::new(no, true, self.new_life(), &self.names.geometry, map_bytes, boot));
        site.disks.iter().zip(images).for_each(|(disk, image)| disk.borrow_mut().restore(image));
        self.sites.borrow_mut().push(site.clone());
        site
    }

    /// A number that no history of a machine had before.
    pub fn new_life(&self) -> u64 {
        self.next_life.set(self.next_life.get() + 1);
        self.next_life.get()
    }

    /// The ledger of all machines was put back.
    pub fn taint_all(&self) {
        for site in self.sites() {
            (0..site.disks.len()).for_each(|v| site.taint(v, self.step.get()));
        }
        self.rewound_at.set(self.step.get());
    }

    /// What the sources ask to be kept.
    pub fn policy(&self) -> Policy {
        Policy::without_grid(self.plan.keep, self.plan.span_ms)
    }

    /// Whether the store takes nothing now.
    pub fn store_is_full(&self) -> bool {
        self.now_us.get() < self.store_full_until_us.get() || self.store_free() == Some(0)
    }

    /// What the store and its landing take.
    pub fn store_bytes(&self) -> u64 {
        self.store.borrow().bytes() + self.landing.borrow().values().map(|part| part.len() as u64).sum::<u64>()
    }

    /// What its disk has left; `None`: as much as it likes.
    pub fn store_free(&self) -> Option<u64> {
        let (left, held) = self.store_left.get()?;
        Some((left + held).saturating_sub(self.store_bytes()))
    }

    /// The shape of a volume's parts of a term.
    pub fn shape(&self, volume: usize, term: Term) -> Geometry {
        self.shapes.borrow().get(&(volume, term.0)).copied().unwrap_or(self.names.geometry[volume])
    }

    /// A volume has that shape in this attach.
    pub fn note_shape(&self, volume: usize, term: Term, shape: Geometry) {
        self.shapes.borrow_mut().insert((volume, term.0), shape);
    }

    /// Which points are the history, by the failover that stands, or those that are over.
    pub fn lineage(&self) -> Lineage {
        self.failover.borrow().as_ref().map_or_else(|| self.left_aside.borrow().clone(), Failover::lineage)
    }

    /// Number of volumes.
    pub fn volumes(&self) -> usize {
        self.plan.regions.len()
    }

    /// Which of our volumes that is.
    pub fn volume_of(&self, id: VolumeId) -> Option<usize> {
        self.names.ids.iter().position(|v| *v == id)
    }
}
