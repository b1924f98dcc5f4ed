//! The source's process, as small as it can be: what `daemon/` does with threads, channels, rings and files is done here by a
//! few tasks per volume and a control loop, around the product's `shim` and `replication::Source`.
//!
//! | here | in the daemon |
//! |---|---|
//! | `queue`: a task per host request | the queue thread's loop over its ring |
//! | `control`: events one by one into `Source::step`, actions carried out | the group's control thread |
//! | `control`: a task each for switch, cooler, header, ticks, connection | timers and channels of the same thread |
//! | `owner` task: page writes and one sync | the intent thread |
//! | `sender`: a task per volume | the sender thread with its own ring |
//! | `quiet`: a task for each thread that quiesces applications | `group/quiet.rs`, and its threads |
//! | `cohort`: a hold's end with the passing of time; a task for its connection | the timer of holds; a connection's task |
//! | `World::state_dir` | files of the state directory |
//!
//! Rules of the product do not belong here. What does: the door (L11), the order of a start (map synced and read, header
//! `attached`, then served) and of a planned stop (T2).

pub(crate) use control::short;
pub use intent::{bit_surely_durable, format, is_clean, map_bytes};

mod cohort;
mod control;
mod intent;
mod queue;
mod quiet;
mod sender;
mod verify;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farside_ledger::VolumeMeta;
use farside_region::intent::{
    HeaderState, INTENT_BLOCK_BYTES, IntentBlock, IntentLayout, Owed, SlotIndex, UncheckedOwed, recover_header,
};
use farside_region::{EpochId, Generation, LedgerPosition, RegionIndex, RegionSet, mutation};
use farside_replication::source::{Config, Ended, Event, PartRead, ReadPart, Source as Core, Start, VerifyChunk, VolumeSetup};
use farside_shim::{
    Connection, Cooler, Group, IntentOwner, Queue, RegionState, Switcher, Tracking, Volume, VolumeConfig, Wake, Wakes,
};
use farside_wire::InstanceId;

use crate::disk::Done;
use crate::exec::Owner;
use crate::history::{ClaimFacts, Refusal};
use crate::host::HostOp;
use crate::net::{ConnId, Load};
use crate::oracle::value;
use crate::plan::Fault;
use crate::site::{Site, Start as Found};
use crate::world::{REGION_SECTORS, SECTOR, World};
use intent::{IntentFile, layout};

/// A bell that tasks wait for: it was rung if the number moved. A wake-up that the product forgets is a hang that the
/// simulator sees.
#[derive(Debug, Default)]
pub(crate) struct Bell(AtomicU64);

impl Bell {
    fn rung(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// One volume of the process.
pub(crate) struct Vol {
    index: usize,
    shim: Arc<Volume>,
    queues: Vec<RefCell<Queue>>,
    connections: Vec<Arc<Connection>>,
    /// Per connection: failures of the backing's flush that it was told about.
    told: Vec<Cell<u64>>,
    queue_bells: Vec<Arc<Bell>>,
    sender_bell: Arc<Bell>,
    owner_bell: Arc<Bell>,
    cooler: RefCell<Cooler>,
    /// What may cool, as replication said.
    cool: RefCell<Vec<(RegionIndex, bool)>>,
    intent: RefCell<IntentFile>,
    /// Where a loss of tracking is kept.
    loss: Cell<intent::Loss>,
    /// What the sender is to read, and what it was told about it.
    job: RefCell<Option<ReadPart>>,
    /// Counts jobs given and taken away: a sender whose number is old gives up.
    job_no: Cell<u64>,
    finish: Cell<bool>,
    waits_for_disk: Cell<bool>,
    digests: RefCell<Option<(u64, Vec<farside_wire::DigestRun>)>>,
    /// Regions whose bits are being set; `None` = all of them.
    heats: RefCell<Vec<Option<RegionSet>>>,
    /// Until then somebody may write past its tap: a comparison would miss that.
    passed_until_us: Cell<u64>,
    verify: RefCell<Option<VerifyChunk>>,
    /// The cooler's flush has no answer yet.
    flushing: Cell<bool>,
    requests: Cell<usize>,
    /// Per queue, FLUSH and FUA requests without an answer.
    flushes: Vec<Cell<usize>>,
    /// The step at which the last question was sent that follows a good position.
    checked: Cell<u64>,
    /// Its header says `attached`, and its tap is open.
    served: Cell<bool>,
    /// It is not configured, or not any more.
    away: Cell<bool>,
    /// How it is to be served when it joins.
    joins_with: RefCell<Option<(IntentOwner, VolumeSetup)>>,
    paused: Cell<bool>,
}

impl Vol {
    /// Gives the sender something to read, or takes it away. Returns what it had.
    fn set_job(&self, job: Option<ReadPart>) -> Option<ReadPart> {
        self.job_no.set(self.job_no.get() + 1);
        self.finish.set(false);
        self.digests.replace(None);
        self.job.replace(job)
    }
}

/// One process of the source.
pub struct Source {
    world: Rc<World>,
    /// The machine that it runs on.
    site: Rc<Site>,
    owner: Owner,
    core: RefCell<Core>,
    switcher: RefCell<Switcher>,
    volumes: Vec<Vol>,
    control_bell: Arc<Bell>,
    inbox: RefCell<VecDeque<Item>>,
    /// What was asked for while actions were carried out.
    fed: RefCell<Vec<farside_replication::source::Action>>,
    /// The live connection and its number for the core.
    conn: Cell<Option<ConnId>>,
    /// Who of a frozen epoch is not read to its end, by volume.
    unread: RefCell<BTreeMap<EpochId, Vec<usize>>>,
    switch: RefCell<Option<control::PendingSwitch>>,
    cohort: cohort::Cohort,
    quiet: quiet::Quiet,
    stopping: Cell<bool>,
    halted: Cell<bool>,
    ended: Cell<bool>,
    served: Cell<bool>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({:?})", self.owner)
    }
}

/// The kernel booted again.
pub fn rebooted(world: &World, site: &Site) {
    let id = world.rng.borrow_mut().bytes16();
    site.boot.set(farside_region::BootId(id));
}

impl Source {
    /// Begins a life of the source, if the door is open.
    pub fn boot(world: &Rc<World>, site: &Rc<Site>) -> Option<Rc<Self>> {
        // L11: a successor reads or writes nothing before a dead daemon's I/O has landed.
        let ghost_map = mutation::on("ghost write on the map");
        let quiet = |disks: &[RefCell<crate::disk::Disk>]| disks.iter().all(|d| d.borrow().quiet());
        if !quiet(&site.disks) || !(quiet(&site.maps) || ghost_map) {
            return None;
        }
        // A process that is not serving yet has nothing to lose but its place: its start is one task.
        let owner = world.owner();
        let limits = control::shim_limits(&world.plan);
        let group = Group::new(&limits, world.names.geometry[0].granule_bytes());
        let control_bell = Arc::new(Bell::default());
        let mut setups = Vec::new();
        let volumes = (0..site.disks.len())
            .map(|v| {
                let (vol, owner, setup) = open_volume(world, site, &group, &limits, v, &control_bell)?;
                setups.push((owner, setup));
                Some(vol)
            })
            .collect::<Option<Vec<_>>>()?;
        let config = Config {
            source: world.names.source.clone(),
            group: world.names.group.clone(),
            stands_in: site.stands_in,
            asks_for_key: false,
            instance: InstanceId(world.rng.borrow_mut().bytes16()),
            boot: site.boot.get(),
            layer_digest: farside_layer::layer_digest,
            policy: world.policy(),
            policy_is_said: true,
            limits: control::core_limits(&world.plan),
        };
        let images: Vec<_> = (0..volumes.len()).map(|v| site.image(v)).collect();
        site.flush_failures.borrow_mut().fill(0);
        site.acked_n.borrow_mut().iter_mut().for_each(|n| n.fill(0));
        site.accepted.borrow_mut().fill(None);
        site.takes_back.borrow_mut().fill(None);
        site.attached_at.set(world.step.get());
        let attach = site.oracle.borrow_mut().attached(&images, world.now_us.get());
        let me = Rc::new(Self {
            owner,
            core: RefCell::new(Core::new(config)),
            cohort: cohort::Cohort::new(group.clone()),
            quiet: quiet::Quiet::new(world),
            switcher: RefCell::new(Switcher::new(group)),
            volumes,
            control_bell,
            inbox: RefCell::default(),
            fed: RefCell::default(),
            conn: Cell::new(None),
            unread: RefCell::default(),
            switch: RefCell::new(None),
            stopping: Cell::new(false),
            halted: Cell::new(false),
            ended: Cell::new(false),
            served: Cell::new(false),
            world: world.clone(),
            site: site.clone(),
        });
        me.say(|| format!("source attach {}", attach.0));
        site.source_alive.set(true);
        world.spawn(owner, "start", me.clone().start(setups));
        Some(me)
    }

    /// Map synced, header `attached` durable, and only then anything is served.
    async fn start(self: Rc<Self>, setups: Vec<(IntentOwner, VolumeSetup)>) {
        for (vol, (owner, setup)) in self.volumes.iter().zip(setups) {
            if vol.away.get() {
                vol.joins_with.replace(Some((owner, setup)));
            } else {
                self.clone().serve(vol.index, owner, setup).await;
            }
        }
        self.spawn_control();
        for vol in &self.volumes {
            self.world.spawn(self.owner, format!("sender{}", vol.index), self.clone().sender(vol.index));
        }
        self.say(|| "serving".into());
        self.served.set(true);
    }

    async fn serve(self: Rc<Self>, v: usize, owner: IntentOwner, setup: VolumeSetup) {
        let vol = &self.volumes[v];
        // What the last life wrote and never synced must not be trusted before it is durable.
        let mut ok = true;
        if !mutation::on("hole: successor does not sync the map first") {
            let op = self.site.maps[v].borrow_mut().flush();
            ok = self.site.map(&self.world, v, op).await == Done::Ok;
        }
        let boot = self.site.boot.get();
        if ok && !mutation::on("T2 start without attached") {
            ok = self
                .write_header(vol, |h| {
                    h.state = HeaderState::Attached;
                    h.backing = None;
                    h.flush_failed = h.flush_failed.filter(|b| *b == boot);
                })
                .await;
        }
        if !ok {
            self.say(|| format!("v{v} cannot be served: its intent map cannot be written"));
            return;
        }
        self.world.spawn(self.owner, format!("intent{v}"), self.clone().intents(v, owner));
        self.push(Event::AddVolume(Box::new(setup)));
        vol.served.set(true);
    }

    /// A volume that was not configured is.
    pub fn join(self: &Rc<Self>, volume: usize) {
        let vol = &self.volumes[volume];
        vol.away.set(false);
        if let Some((owner, setup)) = vol.joins_with.take() {
            self.say(|| format!("v{volume} joins"));
            self.world.spawn(self.owner, format!("join{volume}"), self.clone().serve(volume, owner, setup));
        }
    }

    /// A volume is not configured any more.
    pub fn leave_group(&self, volume: usize) {
        let vol = &self.volumes[volume];
        self.say(|| format!("v{volume} leaves"));
        vol.away.set(true);
        vol.served.set(false);
        self.push(Event::RemoveVolume { volume: self.world.names.ids[volume] });
    }

    /// Whether a region is clean, and not known to be zero.
    pub fn is_cold(&self, volume: usize, region: RegionIndex) -> bool {
        self.volumes[volume].shim.region_state(region) == RegionState::Cold
    }

    /// Replication knows a volume.
    pub fn knows(&self, volume: usize) -> bool {
        let status = self.core.borrow().status(self.world.mono_ns());
        status.volumes.iter().any(|s| s.volume == self.world.names.ids[volume])
    }

    /// What its disks say while it claims.
    fn claim_facts(&self, volume: usize) -> ClaimFacts {
        let start = self.site.start.borrow()[volume].clone();
        let accepted = self.site.accepted.borrow()[volume];
        ClaimFacts { position: start.position, confirmed: start.confirmed, inherited: start.inherited, accepted }
    }

    /// Adds a line to the story.
    fn say(&self, text: impl FnOnce() -> String) {
        let clone = self.site.no;
        self.world.say(|| if clone == 0 { text() } else { format!("[clone {clone}] {}", text()) });
    }

    /// Its process is gone, this very moment. What it had submitted goes on.
    pub fn die(&self) {
        self.site.source_alive.set(false);
        let bodies = self.world.tasks.borrow_mut().kill(self.owner);
        drop(bodies);
        self.inbox.borrow_mut().clear();
        self.world.lines.borrow_mut().machine_ends(self.site.no);
    }

    /// The machine that it runs on.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// A planned stop came to its end.
    pub fn wants_to_end(&self) -> bool {
        self.ended.get()
    }

    /// Requests that the host has open on a volume.
    pub fn open_requests(&self, volume: usize) -> usize {
        self.volumes[volume].requests.get()
    }

    /// The host asks for something, under that number; ignored while stopping, or before anything is served.
    pub fn host(self: &Rc<Self>, volume: usize, op: HostOp) -> Option<u64> {
        if self.stopping.get() || !self.is_serving() || !self.volumes[volume].served.get() {
            return None;
        }
        let queue = self.world.rng.borrow_mut().below(self.volumes[volume].queues.len());
        let tag = self.world.tag();
        let me = self.clone();
        let vol = &self.volumes[volume];
        vol.requests.set(vol.requests.get() + 1);
        self.world.spawn(self.owner, format!("w{tag}"), async move { me.request(volume, queue, tag, op).await });
        Some(tag)
    }

    fn is_serving(&self) -> bool {
        self.served.get()
    }

    /// Whether somebody is told that passes do not get there, or that comparing or the first sync is not over.
    pub fn says_not_converging(&self) -> bool {
        let status = self.core.borrow().status(self.world.mono_ns());
        self.is_serving() && status.volumes.iter().any(|v| v.not_converging.is_some())
    }

    /// Something that only another start can set right: tracking is lost, or a volume could not be served at all.
    pub fn needs_restart(&self) -> bool {
        let broken = |v: &Vol| !v.served.get() || v.shim.tracking() != Tracking::Sound;
        self.is_serving() && self.volumes.iter().filter(|v| !v.away.get()).any(broken)
    }

    /// Pauses nothing any more.
    pub fn resume_all(&self) {
        if !self.is_serving() {
            return;
        }
        for vol in &self.volumes {
            if vol.paused.replace(false) {
                self.site.state_dir.borrow_mut()[vol.index].paused = false;
                self.push(Event::Resume { volume: self.world.names.ids[vol.index] });
            }
        }
    }

    /// An operator, or an overflow from nowhere. Says whether there was something to meddle with.
    pub fn meddle(self: &Rc<Self>, fault: Fault, volume: usize) -> bool {
        if !self.is_serving() {
            return false;
        }
        let vol = &self.volumes[volume];
        if !vol.served.get() && fault != Fault::Stop {
            return false;
        }
        let id = self.world.names.ids[volume];
        match fault {
            Fault::Pause => {
                let on = !vol.paused.get();
                vol.paused.set(on);
                self.site.state_dir.borrow_mut()[volume].paused = on;
                self.say(|| format!("v{volume} {}", if on { "paused" } else { "resumed" }));
                self.push(if on { Event::Pause { volume: id } } else { Event::Resume { volume: id } });
            }
            Fault::Resync => {
                self.say(|| format!("v{volume} resync asked for"));
                self.push(Event::Resync { volume: id });
            }
            Fault::Demote => return self.demote_current(),
            Fault::Stop => self.stop(),
            Fault::Verify => {
                self.say(|| format!("v{volume} verify asked for"));
                self.push(Event::Verify { volume: id });
            }
            Fault::Past => return self.write_past_the_tap(vol),
            _ => return false,
        }
        true
    }

    /// Somebody writes to the backing itself, and it is noticed at once: no cut that is being read is one any more, and no bit is
    /// called hot for it while that may go on. Says whether there was a place where nobody else was at work.
    fn write_past_the_tap(&self, vol: &Vol) -> bool {
        let (world, site, v) = (&self.world, &self.site, vol.index);
        let is_cooling = !vol.cooler.borrow().is_idle() || !vol.cool.borrow().is_empty();
        let is_busy = self.stopping.get() || !self.inbox.borrow().is_empty() || self.core.borrow().switching();
        if is_busy || is_cooling || !self.knows(v) {
            return false;
        }
        let may = |sector: &usize| {
            // (What a host trims where all is zero, or about to be called so, reaches no disk.)
            let state = vol.shim.region_state(RegionIndex((sector / REGION_SECTORS) as u64));
            let disk = site.disks[v].borrow();
            matches!(state, RegionState::Hot | RegionState::Cold)
                && disk.certain(*sector).is_some()
                && !disk.is_bad(*sector)
                && !site.oracle.borrow().busy(v, *sector, 0)
        };
        let sectors = site.geometry(v).volume_bytes() as usize / SECTOR;
        let written: Vec<usize> = (0..sectors).filter(may).filter(|_| world.chance(0.1)).collect();
        if written.is_empty() {
            return false;
        }
        self.say(|| format!("v{v} sectors {written:?} are written PAST ITS TAP"));
        self.demote_cuts();
        let epoch = self.switcher.borrow().epoch();
        for &sector in &written {
            let value = value(world.tag(), v, sector);
            site.disks[v].borrow_mut().set((sector * SECTOR) as u64, &value);
            site.oracle.borrow_mut().landed(v, sector, value, epoch.0, world.now_us.get());
        }
        site.backings.borrow_mut()[v].passed = true;
        vol.passed_until_us.set(world.now_us.get() + world.rng.borrow_mut().range(1, 300_000));
        if world.plan.state_dir_fills && world.chance(0.7) {
            site.state_dir_full.set(true);
        }
        self.tracking_lost(vol);
        true
    }

    /// Volumes that are refused by name. Notes on the way which ones have passed the position rule.
    pub fn refused(&self) -> Vec<(usize, Refusal)> {
        use farside_replication::source::{RefusedWhy, State};
        let status = self.core.borrow().status(self.world.mono_ns());
        let mut refused = Vec::new();
        for s in &status.volumes {
            let Some(volume) = self.world.volume_of(s.volume) else { continue };
            match s.state {
                State::Refused(RefusedWhy::Forked) => refused.push((volume, Refusal::Forked)),
                State::Refused(RefusedWhy::TargetRewound) => refused.push((volume, Refusal::TargetRewound)),
                State::Refused(RefusedWhy::Fenced) => refused.push((volume, Refusal::Fenced)),
                State::Refused(why) => self.world.fail(format!("L6: v{volume} says {why:?}; nothing of that kind happens here")),
                State::Behind(_) | State::Streaming => {
                    let passed = |step| self.volumes[volume].checked.get() > step;
                    let mut tainted = self.site.tainted.borrow_mut();
                    tainted[volume] = tainted[volume].filter(|step| !passed(*step));
                }
                _ => {}
            }
        }
        refused
    }

    /// A person says `--accept`.
    pub fn accept(&self, volume: usize) {
        self.say(|| format!("v{volume}: a person accepts"));
        self.site.says_yes(volume, self.world.step.get());
        self.site.takes_back.borrow_mut()[volume] = None;
        self.push(Event::Accept { volume: self.world.names.ids[volume] });
    }

    /// The promotion that fences a volume, while it is.
    pub fn fenced_by(&self, volume: usize) -> Option<u64> {
        let status = self.core.borrow().status(self.world.mono_ns());
        let known = status.volumes.iter().find(|s| s.volume == self.world.names.ids[volume])?;
        known.fenced_by.map(|generation| generation.0)
    }

    /// The newest point of the volume when it was refused.
    pub fn refused_at(&self, volume: usize) -> Option<LedgerPosition> {
        let status = self.core.borrow().status(self.world.mono_ns());
        status.volumes.iter().find(|s| s.volume == self.world.names.ids[volume])?.refused_at
    }

    /// A person says that the history goes on from that point, which the disk was brought to.
    pub fn take_back(&self, volume: usize, at: LedgerPosition) {
        self.say(|| format!("v{volume}: a person takes the history back from point {}", at.slot));
        self.site.says_yes(volume, self.world.step.get());
        self.site.takes_back.borrow_mut()[volume] = Some(at.slot);
        self.push(Event::TakeBack { volume: self.world.names.ids[volume], at });
    }

    /// Everything published, cool, and nothing under way.
    ///
    /// # Errors
    /// Says what is not.
    pub fn converged(&self) -> Result<(), String> {
        if !self.is_serving() || self.stopping.get() {
            return Err("the source does not serve".into());
        }
        let status = self.core.borrow().status(self.world.mono_ns());
        for vol in self.volumes.iter().filter(|v| !v.away.get()) {
            let v = vol.index;
            if vol.requests.get() > 0 {
                return Err(format!("v{v} has {} requests open", vol.requests.get()));
            }
            if !vol.shim.open_is_empty() {
                return Err(format!("v{v} has dirt"));
            }
            let known = status.volumes.iter().find(|s| s.volume == self.world.names.ids[v]);
            let Some(s) = known else { return Err(format!("v{v} has no status")) };
            if s.state != farside_replication::source::State::Streaming {
                return Err(format!("v{v} is {:?}: {s:?}", s.state));
            }
            let backlog_bytes = self.core.borrow().backlog_bytes(s.volume, &vol.shim.open_set());
            if s.unpublished_layers > 0 || backlog_bytes > 0 {
                return Err(format!("v{v} owes {backlog_bytes} bytes in {} layers", s.unpublished_layers));
            }
            let stuck = vol.intent.borrow().header.flush_failed == Some(self.site.boot.get()) || vol.shim.flush_failures() > 0;
            for region in self.site.geometry(v).all_regions().iter() {
                let state = vol.shim.region_state(region);
                let first = region.0 as usize * REGION_SECTORS;
                let dead = (first..first + REGION_SECTORS).any(|s| self.site.disks[v].borrow().is_dead(s));
                if !matches!(state, RegionState::Cold | RegionState::ColdZero) && !stuck && !dead {
                    return Err(format!("v{v} region {region} is {state:?}"));
                }
            }
        }
        self.quiet_converged()
    }

    /// What `farside status` would say now: volume, lag in microseconds.
    pub fn reported_lag(&self) -> Vec<(usize, u64)> {
        let status = self.core.borrow().status(self.world.mono_ns());
        let of = |s: &farside_replication::source::VolumeStatus| Some((self.world.volume_of(s.volume)?, s.lag? / 1000));
        status.volumes.iter().filter_map(of).collect()
    }

    /// L8, as far as it can be seen from outside.
    ///
    /// # Errors
    /// Names the limit.
    pub fn within_limits(&self) -> Result<(), String> {
        let limits = control::core_limits(&self.world.plan);
        let status = self.core.borrow().status(self.world.mono_ns());
        for s in &status.volumes {
            // Slices of the pass being read come on top of what was unpublished when it began.
            let most = limits.unpublished_layers_max + 1 + self.world.names.geometry[0].region_count() as usize + 8;
            if s.unpublished_layers > most {
                return Err(format!("L8: {} has {} unpublished layers", s.name, s.unpublished_layers));
            }
        }
        let inbox = self.inbox.borrow().len();
        if inbox > 400 {
            return Err(format!("L8: {inbox} events wait for the control loop"));
        }
        Ok(())
    }

    /// Something arrived.
    pub fn on_message(&self, conn: ConnId, load: Load) {
        if self.conn.get() != Some(conn) {
            return;
        }
        match load {
            Load::Control(bytes) => match farside_wire::decode_payload(&bytes) {
                Ok(message) => self.push(Event::Message { connection: conn.0, message: Box::new(message) }),
                Err(e) => self.world.fail(format!("the receiver sent what the source cannot read: {e}")),
            },
            Load::Closed => self.lose(conn),
            Load::Part(_) | Load::Settled => self.world.fail("the receiver sent what only a source does".into()),
        }
    }

    /// The connection is gone.
    pub fn on_reset(&self, conn: ConnId) {
        if self.conn.get() == Some(conn) {
            self.lose(conn);
        }
    }

    fn lose(&self, conn: ConnId) {
        self.conn.set(None);
        for vol in &self.volumes {
            vol.set_job(None);
            vol.digests.replace(None);
        }
        self.push(Event::Disconnected { connection: conn.0, how: Ended::Broken });
    }

    fn push(&self, event: Event) {
        self.inbox.borrow_mut().push_back(Item::Event(event));
    }
}

/// What waits for the control loop.
enum Item {
    /// For the group's part in cuts together with others.
    Cohort(cohort::Note),
    /// For whoever quiesces applications.
    Quiet(quiet::Note),
    /// For replication.
    Event(Event),
    /// A part was read; whether its epoch is still a cut is settled when the control loop sees it.
    Part {
        read: PartRead,
        epoch: EpochId,
        /// The volume's part of the epoch is read to its end.
        ended: bool,
    },
}

type Opened = (Vol, IntentOwner, VolumeSetup);

/// Reads what the last life left and opens the volume in the shim.
fn open_volume(
    world: &World,
    site: &Site,
    group: &Arc<Group>,
    limits: &farside_shim::Limits,
    v: usize,
    control: &Arc<Bell>,
) -> Option<Opened> {
    if !intent::take_over(world, site, v) {
        world.say(|| format!("v{v} cannot be served: nothing can be written beside it"));
        return None;
    }
    let geometry = site.geometry(v);
    let layout = layout(world, site, v);
    let block = |offset: u64| {
        let mut block = IntentBlock::zeroed();
        block.0.copy_from_slice(site.maps[v].borrow().current(offset as usize / INTENT_BLOCK_BYTES));
        block
    };
    let heads = [SlotIndex::A, SlotIndex::B].map(|s| block(IntentLayout::header_offset(s).0));
    let (header, slot) = match recover_header([&heads[0].0, &heads[1].0]) {
        Ok(Some(found)) => found,
        other => {
            world.fail(format!("the header of v{v} is gone: {other:?}"));
            return None;
        }
    };
    if header.flush_failed != Some(site.boot.get()) {
        site.disks[v].borrow_mut().forgive();
    }
    let inherited = intent::inherited(world, site, v, header.map);
    let mut page_slots =
        |page: farside_region::intent::PageIndex| [SlotIndex::A, SlotIndex::B].map(|s| block(layout.page_offset(page, s).0));
    let mut config = VolumeConfig::new(geometry);
    config.layout = layout;
    config.limits = *limits;
    config.queues = world.plan.queues;
    config.volume_bytes_before = header.volume_bytes;
    config.flush_failed_this_boot = header.flush_failed == Some(site.boot.get());
    let queue_bells: Vec<Arc<Bell>> = (0..world.plan.queues).map(|_| Arc::default()).collect();
    let (sender_bell, owner_bell) = (Arc::<Bell>::default(), Arc::<Bell>::default());
    let wakes = Wakes {
        queues: queue_bells.iter().map(|b| b.clone() as Arc<dyn Wake>).collect(),
        sender: sender_bell.clone(),
        owner: owner_bell.clone(),
        control: control.clone(),
    };
    let (shim, queues, owner) = group.open_volume(config, wakes, header.map, &mut page_slots);
    let state = site.state_dir.borrow()[v].clone();
    // A flush that failed may have lost what the drive's cache still showed: no clean stop vouches for that (T14).
    let owed = (header.state == HeaderState::Clean && header.flush_failed.is_none())
        .then(|| state.owed.as_deref().and_then(|bytes| UncheckedOwed(bytes).check(&header, &geometry).ok()))
        .flatten();
    let start = match owed {
        Some(Owed { set, .. }) => {
            world.say(|| format!("v{v} clean start, {} granules owed", set.granule_count(&geometry)));
            shim.mark_open(&set);
            Start::Clean
        }
        None => Start::Unclean,
    };
    world.say(|| {
        format!(
            "v{v} header {:?} term {:?}, hot {:?}",
            header.state,
            header.term,
            inherited.iter().map(|r| r.0).collect::<Vec<_>>()
        )
    });
    site.start.borrow_mut()[v] = Found { confirmed: header.term, position: header.position, inherited: inherited.clone() };
    let setup = VolumeSetup {
        meta: VolumeMeta {
            id: world.names.ids[v],
            name: world.names.volumes[v].clone(),
            geometry,
            digest_key: world.names.digest_key(world.names.ids[v]).into(),
            generation: Generation(state.generation.max(1)),
        },
        confirmed: header.term,
        position: header.position,
        inherited,
        start,
        tracking_lost: state.tracking_lost,
        paused: state.paused,
    };
    let vol = Vol {
        index: v,
        connections: queues.iter().map(|_| shim.connect()).collect(),
        told: queues.iter().map(|_| Cell::new(0)).collect(),
        queue_bells,
        sender_bell,
        owner_bell,
        cooler: RefCell::new(Cooler::new(shim.clone())),
        cool: RefCell::default(),
        intent: RefCell::new(IntentFile::new(header, slot)),
        loss: Cell::new(intent::Loss::Kept),
        job: RefCell::new(None),
        job_no: Cell::new(0),
        finish: Cell::new(false),
        waits_for_disk: Cell::new(false),
        digests: RefCell::new(None),
        heats: RefCell::default(),
        passed_until_us: Cell::new(0),
        verify: RefCell::new(None),
        flushing: Cell::new(false),
        requests: Cell::new(0),
        flushes: queues.iter().map(|_| Cell::new(0)).collect(),
        checked: Cell::new(0),
        served: Cell::new(false),
        away: Cell::new(site.absent.get() == Some(v)),
        joins_with: RefCell::new(None),
        paused: Cell::new(state.paused),
        queues: queues.into_iter().map(RefCell::new).collect(),
        shim,
    };
    Some((vol, owner, setup))
}
