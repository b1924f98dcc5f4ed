//! The world of one run: everything that source and receiver share with chance. No rule of the product lives here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use farside_region::{BootId, Geometry, GroupId, Name, Slot, VolumeId};

use crate::disk::{Disk, Done, OpId};
use crate::exec::{Executor, Owner, Steps};
use crate::net::Network;
use crate::oracle::{Oracle, Value};
use crate::parts::Unpacked;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::store::MemoryStore;
use crate::trace::Trace;

/// Bytes in a sector of a backing disk: the smallest host write.
pub const SECTOR: usize = 16;
/// Granules are 2^6 bytes, regions 2^2 granules.
pub const GRANULE_SHIFT: u8 = 6;
/// See [`GRANULE_SHIFT`].
pub const REGION_GRANULES_SHIFT: u8 = 2;
/// Sectors in a granule.
pub const GRANULE_SECTORS: usize = (1 << GRANULE_SHIFT) / SECTOR;
/// Sectors in a region.
pub const REGION_SECTORS: usize = GRANULE_SECTORS << REGION_GRANULES_SHIFT;

/// What a disk write of the host belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Which volume.
    pub volume: usize,
    /// The epoch it was marked in.
    pub epoch: u64,
    /// The request's tag.
    pub request: u64,
}

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
    /// The volumes' shapes.
    pub geometry: Vec<Geometry>,
}

impl Names {
    fn new(plan: &Plan) -> Self {
        let name = |n: &str| -> Name { n.parse().expect("a valid name") };
        let (source, group) = (name("host"), name("group"));
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

/// What the state directory holds of one volume. Written whole and durably, or not at all.
#[derive(Clone, Debug, Default)]
pub struct VolumeState {
    /// The masks of a clean stop.
    pub owed: Option<Vec<u8>>,
    /// Tracking was lost.
    pub tracking_lost: bool,
    /// A person paused it.
    pub paused: bool,
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
    /// The backing of each volume.
    pub disks: Vec<RefCell<Disk>>,
    /// The intent map of each volume, header included.
    pub maps: Vec<RefCell<Disk>>,
    /// Between source and receiver.
    pub net: RefCell<Network>,
    /// The receiver's.
    pub store: RefCell<MemoryStore<SegmentKey>>,
    /// What is true.
    pub oracle: RefCell<Oracle>,
    /// The story.
    pub trace: RefCell<Trace>,
    pieces: RefCell<BTreeMap<u64, Piece>>,
    /// Per request and sector, the number of the version that it landed.
    pub landed_n: RefCell<BTreeMap<u64, BTreeMap<usize, u64>>>,
    last_ns: Cell<u64>,
    next_tag: Cell<u64>,
    next_owner: Cell<u64>,
    bad: RefCell<Option<String>>,
    /// The safety phase is over.
    pub healing: Cell<bool>,
    /// The process of the newest attach lives.
    pub source_alive: Cell<bool>,
    /// Per volume and sector, the newest version that was acknowledged and may be relied on after a flush.
    pub acked_n: RefCell<Vec<Vec<u64>>>,
    /// Per volume, flushes of the backing that failed in this life of the source.
    pub flush_failures: RefCell<Vec<u64>>,
    /// Parts that are durable at the receiver and not published.
    pub landing: RefCell<BTreeMap<SegmentKey, Vec<u8>>>,
    /// Connections that a receiver has heard of.
    pub seen_connections: RefCell<BTreeSet<u64>>,
    /// A receiver's process lives.
    pub receiver_up: Cell<bool>,
    /// Segments that were unpacked before.
    pub unpacked: RefCell<BTreeMap<SegmentKey, Unpacked>>,
    /// What the source keeps beside its intent maps.
    pub state_dir: RefCell<Vec<VolumeState>>,
    /// The kernel's boot.
    pub boot: Cell<BootId>,
    /// Volumes whose disk or ledger was put back, and whose position was not checked since: L2 does not speak of them.
    pub tainted: RefCell<Vec<bool>>,
    /// The newest connection at that moment.
    pub taint_conn: Cell<u64>,
    /// Volumes that must be refused before they may be claimed.
    pub must_refuse: RefCell<Vec<bool>>,
    /// Accepted pins that were not withdrawn, and the points they hold.
    pub pinned: RefCell<BTreeMap<Slot, Slot>>,
}

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(mut rng: Rng, plan: Plan, trace: Trace, map_bytes: usize) -> Rc<Self> {
        let sectors: Vec<usize> = (0..plan.regions.len()).map(|v| Self::volume_bytes(&plan, v) as usize / SECTOR).collect();
        let boot = BootId(rng.bytes16());
        Rc::new(Self {
            boot: Cell::new(boot),
            disks: sectors.iter().map(|n| RefCell::new(Disk::new(n * SECTOR, SECTOR, SECTOR))).collect(),
            maps: sectors.iter().map(|_| RefCell::new(Disk::new(map_bytes, 4096, 16))).collect(),
            oracle: RefCell::new(Oracle::new(&sectors)),
            net: RefCell::new(Network::new()),
            store: RefCell::new(MemoryStore::default()),
            tasks: RefCell::new(Executor::default()),
            trace: RefCell::new(trace),
            rng: RefCell::new(rng),
            now_us: Cell::new(1_000_000),
            step: Cell::new(0),
            pieces: RefCell::default(),
            landed_n: RefCell::default(),
            last_ns: Cell::new(0),
            next_tag: Cell::new(0),
            next_owner: Cell::new(0),
            bad: RefCell::new(None),
            healing: Cell::new(false),
            source_alive: Cell::new(false),
            pinned: RefCell::default(),
            tainted: RefCell::new(vec![false; sectors.len()]),
            taint_conn: Cell::new(0),
            must_refuse: RefCell::new(vec![false; sectors.len()]),
            landing: RefCell::default(),
            seen_connections: RefCell::default(),
            receiver_up: Cell::new(false),
            unpacked: RefCell::default(),
            acked_n: RefCell::new(sectors.iter().map(|n| vec![0; *n]).collect()),
            flush_failures: RefCell::new(vec![0; sectors.len()]),
            state_dir: RefCell::new(vec![VolumeState::default(); sectors.len()]),
            names: Names::new(&plan),
            plan,
        })
    }

    /// Size of a volume in bytes; a ragged one ends inside a granule.
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

    /// Nanoseconds of the monotonic clocks; never the same twice, so that switches can be told apart.
    pub fn mono_ns(&self) -> u64 {
        let next = (self.now_us.get() * 1000).max(self.last_ns.get() + 1);
        self.last_ns.set(next);
        next
    }

    /// Milliseconds since 1970, as a host would show them.
    pub fn wall_ms(&self) -> i64 {
        1_700_000_000_000 + (self.now_us.get() / 1000) as i64
    }

    /// A host write's piece goes to the backing.
    pub fn write_piece(&self, piece: Piece, offset: u64, data: Vec<u8>) -> OpId {
        let tag = self.tag();
        let volume = piece.volume;
        self.pieces.borrow_mut().insert(tag, piece);
        self.disks[volume].borrow_mut().write(offset, data, tag)
    }

    /// Lets one disk operation go on, and tells the truth about what landed.
    pub fn advance_disk(&self) -> bool {
        let mut rng = self.rng.borrow_mut();
        let busy: Vec<usize> = (0..self.disks.len() * 2).filter(|&i| !self.disk(i).borrow().quiet()).collect();
        if busy.is_empty() {
            return false;
        }
        let i = rng.pick(&busy);
        let mut disk = self.disk(i).borrow_mut();
        let op = rng.pick(&disk.in_flight());
        let whole = rng.chance(0.7);
        let landed = disk.advance(op, whole, &mut rng);
        drop(disk);
        if i < self.disks.len() {
            let pieces = self.pieces.borrow();
            let mut oracle = self.oracle.borrow_mut();
            for sector in landed {
                let piece = pieces[&sector.tag];
                let value: Value = sector.value.try_into().expect("a sector");
                self.landed_n.borrow_mut().entry(piece.request).or_default().insert(sector.sector, sector.n);
                oracle.landed(piece.volume, sector.sector, value, piece.epoch, self.now_us.get());
            }
        }
        true
    }

    fn disk(&self, i: usize) -> &RefCell<Disk> {
        if i < self.disks.len() { &self.disks[i] } else { &self.maps[i - self.disks.len()] }
    }

    /// Something was put back: until the position rule has spoken, no bit can be judged.
    pub fn taint(&self) {
        self.taint_conn.set(self.net.borrow().newest());
        self.tainted.borrow_mut().fill(true);
    }

    /// Which of our volumes that is.
    pub fn volume_of(&self, id: VolumeId) -> Option<usize> {
        self.names.ids.iter().position(|v| *v == id)
    }

    /// Waits for an operation of a volume's backing.
    pub async fn backing(self: &Rc<Self>, volume: usize, op: OpId) -> Done {
        let me = self.clone();
        self.steps().get(move || me.disks[volume].borrow_mut().take(op)).await
    }

    /// Waits for an operation of a volume's intent map.
    pub async fn map(self: &Rc<Self>, volume: usize, op: OpId) -> Done {
        let me = self.clone();
        self.steps().get(move || me.maps[volume].borrow_mut().take(op)).await
    }

    /// What each disk holds, sector by sector.
    pub fn image(&self, volume: usize) -> Vec<Value> {
        let disk = self.disks[volume].borrow();
        (0..disk.sectors()).map(|s| disk.current(s).try_into().expect("a sector")).collect()
    }
}
