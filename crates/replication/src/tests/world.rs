//! A toy world around one source and one target: disks of numbers, a sender that reads them, a network of two queues, a
//! ledger in memory. One seed, no time but a counter. The real write path, disks and stores are attacked in the simulator;
//! this one is small enough to find a broken rule in a second.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use farside_ledger::{Body, CutTime, EpochInfo, LayerKind, PartEntry, Policy, Record, Stamp, State, Verdict, VolumeMeta};
use farside_region::{
    BootId, EpochId, Generation, Geometry, GranuleDigest, GranuleIndex, GranuleRun, GranuleSet, GroupId, LayerKey,
    LedgerPosition, Name, RecordDigest, RegionIndex, RegionRange, RegionSet, Term, VolumeId, mutation,
};
use farside_wire::{DigestRun, InstanceId, ReceiverMessage, RefusalCode, SourceMessage, decode_payload, encode_payload};

use super::quiet::Applications;
use crate::source::{self, PartRead, ReadPart, Sample, SentPart, Source, Start, SwitchDone, Tick, VolumeSetup};
use crate::target::{self, AppendOutcome, LandedLayer, SessionId, Target, Ticket};

pub(super) const REGIONS: u64 = 8;
pub(super) const GRANULES: u64 = REGIONS * 4;
const UNREADABLE: u64 = u64::MAX;

pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

pub(super) fn geometry() -> Geometry {
    Geometry::with_shape(GRANULES * 16, 4, 2).expect("valid")
}

pub(super) fn volume(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

pub(super) fn meta(n: u8) -> VolumeMeta {
    let name = format!("v{n}").parse().expect("a name");
    VolumeMeta { id: volume(n), name, geometry: geometry(), digest_key: [n.max(1); 32].into(), generation: Generation(1) }
}

pub(super) fn digest_of(words: impl IntoIterator<Item = u64>) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for word in words {
        state = (state ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    for (i, chunk) in bytes.chunks_mut(8).enumerate() {
        state = (state ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

pub(super) fn layer_digest(key: &LayerKey, footers: &[[u8; 32]]) -> [u8; 32] {
    let words = footers.iter().flat_map(|f| f.chunks(8).map(|c| u64::from_le_bytes(c.try_into().expect("eight bytes"))));
    digest_of([u64::from(key.volume.0[0]), key.term.0, key.seq.0].into_iter().chain(words))
}

fn granule_digest(granule: u64, value: u64) -> GranuleDigest {
    GranuleDigest(digest_of([granule, value])[..16].try_into().expect("sixteen bytes"))
}

pub(super) fn name(s: &str) -> Name {
    s.parse().expect("a name")
}

pub(super) fn source_limits() -> source::Limits {
    source::Limits {
        epoch_interval: 10,
        heartbeat_interval: 40,
        header_refresh: 300,
        slice_bytes: 10 * 16,
        slice_time: 400,
        layer_parts_max: 5,
        part_bytes: 6 * 16,
        part_bytes_min: 2 * 16,
        unpublished_layers_max: 6,
        verify_bytes: 3 * 4 * 16,
        cut_bytes_max: GRANULES * 16 * 3 / 2,
        cut_bytes_min: 8 * 16,
        cut_hold: 400,
        hung_member: 3000,
        unreadable_retry: 50,
        claim_turns_max: 4,
        end_ranges_max: 100,
        end_share_min: 64,
        recheck: 30,
    }
}

/// The protected machine: what survives the daemon, and the daemon.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) content: Vec<u64>,
    pub(super) bad: BTreeSet<u64>,
    /// What the next read of a whole region leaves out, as a pass does with what the host has written since.
    pub(super) leaves: BTreeSet<u64>,
    pub(super) hot: RegionSet,
    pub(super) header: (Option<Term>, Option<LedgerPosition>),
    pub(super) owed: Option<GranuleSet>,
    pub(super) loss: Loss,
}

/// Where it is kept that tracking was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Loss {
    #[default]
    None,
    /// By a mark.
    Marked,
    /// Nowhere yet. Status says so, and after a crash a person has everything compared.
    Unkept,
    OnRecord,
}

/// A part: granules and what they hold.
pub(super) type Content = Vec<(u64, u64)>;

struct FrozenCut {
    content: BTreeMap<VolumeId, Vec<u64>>,
    held: bool,
}

struct Job {
    order: ReadPart,
    at: RegionIndex,
    digests: BTreeMap<u64, Option<GranuleDigest>>,
    asked: bool,
    finish: bool,
    content: Vec<(u64, u64)>,
    granules: u64,
    unreadable: GranuleSet,
    left: GranuleSet,
    zero: RegionSet,
    held: bool,
}

/// What can happen by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Tick,
    Switch,
    Header,
    Hot,
    /// A chunk of a verify is read.
    Verify,
    /// One region of one part is read, or a part ends.
    Read,
    ToTarget,
    ToSource,
    Land,
    Append,
    Digests,
    Cool,
    /// A hook answers.
    Hooks,
}

impl Job {
    /// Jobs of a connection that is gone may linger; they are not meant.
    fn is(&self, connection: Option<u64>, key: LayerKey, part: u32) -> bool {
        (Some(self.order.connection), self.order.key, self.order.part) == (connection, key, part)
    }
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: u64,
    pub(super) disks: BTreeMap<VolumeId, Disk>,
    pub(super) source: Option<Source>,
    instance: u8,
    open: BTreeMap<VolumeId, GranuleSet>,
    epoch: u64,
    cuts: BTreeMap<(u8, EpochId), FrozenCut>,
    pub(super) switch: Option<source::Action>,
    pub(super) headers: VecDeque<(VolumeId, Option<Term>, Option<LedgerPosition>)>,
    hot_questions: Vec<source::Action>,
    /// No bit is set before.
    pub(super) hot_from: u64,
    verifies: Vec<source::VerifyChunk>,
    /// Worlds that healed and were then found equal; and cold regions found to differ.
    pub(super) verified: u64,
    pub(super) cold_differs: u64,
    jobs: Vec<Job>,
    pub(super) connection: Option<u64>,
    connections: u64,
    to_target: VecDeque<Vec<u8>>,
    to_source: VecDeque<Vec<u8>>,
    pub(super) parts: Vec<(SessionId, LayerKey, u32, Content)>,
    pub(super) target: Target,
    pub(super) state: State,
    pub(super) records: Vec<Record>,
    pub(super) appends: VecDeque<(Ticket, Body)>,
    digest_questions: VecDeque<target::Action>,
    pub(super) landed: BTreeMap<(LayerKey, u32), Vec<(u64, u64)>>,
    pub(super) image: BTreeMap<VolumeId, BTreeMap<u64, u64>>,
    pub(super) points: u64,
    pub(super) fuzzy: u64,
    pub(super) refused: BTreeSet<VolumeId>,
    pub(super) disk_room: u64,
    pub(super) trace: bool,
    pub(super) tampered: bool,
    pub(super) applications: Applications,
    /// A schedule that is written out: nothing happens by chance.
    pub(super) by_hand: bool,
    pub(super) limits: source::Limits,
    target_limits: target::Limits,
    /// What went over the line, of parts that were given up, too.
    pub(super) carried_bytes: u64,
    /// Parts that landed.
    pub(super) parts_landed: u64,
}

impl World {
    pub(super) fn new(seed: u64, volumes: u8) -> Self {
        let state = State::new(GroupId([9; 16]));
        let mut world = Self {
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 1,
            disks: BTreeMap::new(),
            source: None,
            instance: 0,
            open: BTreeMap::new(),
            epoch: 1,
            cuts: BTreeMap::new(),
            switch: None,
            headers: VecDeque::new(),
            hot_questions: Vec::new(),
            hot_from: 0,
            verifies: Vec::new(),
            verified: 0,
            cold_differs: 0,
            jobs: Vec::new(),
            connection: None,
            connections: 0,
            to_target: VecDeque::new(),
            to_source: VecDeque::new(),
            parts: Vec::new(),
            target: Target::new(target_config(), &state, Vec::new(), &mut Vec::new()),
            state,
            records: Vec::new(),
            appends: VecDeque::new(),
            digest_questions: VecDeque::new(),
            landed: BTreeMap::new(),
            image: BTreeMap::new(),
            points: 0,
            fuzzy: 0,
            refused: BTreeSet::new(),
            disk_room: 1 << 40,
            trace: false,
            tampered: false,
            applications: Applications::default(),
            by_hand: false,
            limits: source_limits(),
            target_limits: target_config().limits,
            carried_bytes: 0,
            parts_landed: 0,
        };
        for n in 1..=volumes {
            let mut disk = Disk { content: vec![0; GRANULES as usize], ..Disk::default() };
            disk.hot.insert_range(RegionRange { start: RegionIndex(0), count: REGIONS });
            (0..GRANULES).for_each(|g| disk.content[g as usize] = world.rng.below(3));
            world.disks.insert(volume(n), disk);
        }
        world
    }

    /// A world whose source has these limits, and whose receiver grants all that is asked for.
    pub(super) fn with(seed: u64, volumes: u8, limits: source::Limits) -> Self {
        let mut world = Self { limits, ..Self::new(seed, volumes) };
        (world.target_limits.credit_step, world.target_limits.credit_window) = (1 << 20, 1 << 20);
        world.target = Target::new(world.target_config(), &world.state, Vec::new(), &mut Vec::new());
        world
    }

    /// The receiver grants little at once, and any part is worth its record, as real ones are.
    pub(super) fn grants_in_steps_of(&mut self, bytes: u64, window: u64) {
        (self.target_limits.credit_step, self.target_limits.credit_window) = (bytes, window);
        self.target_limits.file_bytes = 200;
        self.target = Target::new(self.target_config(), &self.state, Vec::new(), &mut Vec::new());
    }

    fn target_config(&self) -> target::Config {
        target::Config { limits: self.target_limits, ..target_config() }
    }

    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:5} {}", self.now, what());
        }
    }

    // ---- the protected machine

    pub(super) fn boot(&mut self) {
        self.instance += 1;
        let config = source::Config {
            source: name("host"),
            group: name("default"),
            stands_in: false,
            asks_for_key: false,
            instance: InstanceId([self.instance; 16]),
            boot: BootId([1; 16]),
            policy: Policy::without_grid(3, 0),
            policy_is_said: true,
            layer_digest,
            limits: self.limits,
        };
        self.source = Some(Source::new(config));
        self.epoch = 1;
        self.open.clear();
        let ids: Vec<_> = self.disks.keys().copied().collect();
        for id in ids {
            let disk = self.disks.get_mut(&id).expect("a disk");
            let owed = disk.owed.take();
            let lost = disk.loss == Loss::Marked;
            let setup = VolumeSetup {
                meta: meta(id.0[0]),
                confirmed: disk.header.0,
                position: disk.header.1,
                inherited: disk.hot.clone(),
                start: if owed.is_some() { Start::Clean } else { Start::Unclean },
                tracking_lost: lost,
                paused: false,
            };
            self.open.insert(id, owed.unwrap_or_default());
            self.to(source::Event::AddVolume(Box::new(setup)));
        }
    }

    pub(super) fn crash_source(&mut self) {
        self.say(|| "source crashes".into());
        self.source = None;
        self.disconnect();
        (self.switch, self.headers, self.hot_questions, self.jobs) = (None, VecDeque::new(), Vec::new(), Vec::new());
        self.applications.left_alone();
        self.verifies.clear();
        self.open.clear();
        for disk in self.disks.values_mut() {
            disk.loss = match disk.loss {
                Loss::Unkept if !self.by_hand => Loss::Marked,
                Loss::OnRecord => Loss::None, // the ledger has it
                loss => loss,
            };
        }
    }

    /// Something writes a granule past the tap, and that is noticed; where the host can keep that by no mark, the receiver is asked
    /// to. Not while a switch is under way: what is noticed then gives that up.
    pub(super) fn lose_track(&mut self, id: VolumeId, granule: u64, value: u64, marked: bool) {
        if self.source.is_none() || self.switch.is_some() {
            return;
        }
        self.say(|| format!("{id:?} g{granule} = {value} past the tap, marked: {marked}"));
        let disk = self.disks.get_mut(&id).expect("a disk");
        disk.content[granule as usize] = value;
        disk.bad.remove(&granule);
        disk.loss = match (marked, disk.loss) {
            (true, _) | (_, Loss::Marked) => Loss::Marked,
            (false, Loss::None) => Loss::Unkept,
            (false, loss) => loss,
        };
        let unmarked = disk.loss != Loss::Marked;
        self.to(source::Event::TrackingLost { volume: id });
        if unmarked {
            self.to(source::Event::KeepLoss { volume: id });
        }
    }

    pub(super) fn stop_source(&mut self) {
        self.say(|| "source stops".into());
        self.to(source::Event::Halt);
        if let Some(source::Action::Switch { kind, members }) = self.switch.take() {
            self.do_switch(kind, members);
        }
        // The header of the stop itself is what was asked for last.
        for (volume, confirmed, position) in std::mem::take(&mut self.headers) {
            self.disks.get_mut(&volume).expect("a disk").header = (confirmed, position);
        }
        let source = self.source.take().expect("it runs");
        for (id, open) in std::mem::take(&mut self.open) {
            let mut owed = source.owed(id);
            owed.union_with(&open);
            let disk = self.disks.get_mut(&id).expect("a disk");
            disk.owed = Some(owed).filter(|_| disk.loss == Loss::None);
        }
        self.crash_source();
    }

    pub(super) fn write(&mut self, id: VolumeId, granule: u64, value: u64) {
        let g = geometry();
        let disk = self.disks.get_mut(&id).expect("a disk");
        disk.content[granule as usize] = value;
        disk.bad.remove(&granule);
        disk.hot.insert(g.region_of(GranuleIndex(granule)));
        self.open.entry(id).or_default().insert_run(&g, GranuleRun { start: GranuleIndex(granule), count: 1 });
        self.say(|| format!("write {id:?} g{granule} = {value}"));
    }

    pub(super) fn to(&mut self, event: source::Event) {
        let mut actions = Vec::new();
        if let Some(source) = &mut self.source {
            source.step(self.now, event, &mut actions);
        }
        actions.into_iter().for_each(|a| self.do_source(a));
    }

    pub(super) fn tick(&mut self) {
        let g = geometry();
        // Its reads take no time; a part that is not read stands for a disk that does not answer.
        let waits_for_disk = |id| self.jobs.iter().any(|job| job.order.key.volume == id);
        let sample = |id, open: &GranuleSet| Sample {
            dirty_bytes: open.granule_count(&g) * 16,
            waits_for_disk: waits_for_disk(id),
            ..Sample::default()
        };
        let volumes = self.open.iter().map(|(id, open)| (*id, sample(*id, open))).collect();
        let time = CutTime { boot: BootId([1; 16]), mono_ns: self.now, wall_ms: 0 };
        self.to(source::Event::Tick(Tick { time, volumes }));
        self.at(target::Event::Grantable {
            free_bytes: self.disk_room,
            disk_bytes: self.disk_room,
            spare_bytes: self.disk_room,
            reserve_bytes: 0,
        });
    }

    fn do_source(&mut self, action: source::Action) {
        use source::Action as A;
        match action {
            A::Send { connection, message } => {
                if self.connection == Some(connection) {
                    self.say(|| format!("→ {message:?}"));
                    self.to_target.push_back(encode_payload(&*message).expect("fits").to_vec());
                }
            }
            A::Disconnect { why, .. } => {
                self.say(|| format!("source disconnects: {why:?}"));
                self.disconnect_as(source::Ended::Closed);
            }
            A::WriteHeader { volume, confirmed, position } => self.headers.push_back((volume, confirmed, position)),
            A::Switch { .. } => self.switch = Some(action),
            A::Demote { epoch, .. } | A::Release { epoch } => self.let_go(epoch),
            A::ReadPart(order) => {
                let (at, held) = (order.from, true);
                self.jobs.push(Job {
                    order: *order,
                    at,
                    digests: BTreeMap::new(),
                    asked: false,
                    finish: false,
                    content: Vec::new(),
                    granules: 0,
                    unreadable: GranuleSet::new(),
                    left: GranuleSet::new(),
                    zero: RegionSet::new(),
                    held,
                });
            }
            A::FinishPart { key, part } => {
                if let Some(job) = self.job_mut(key, part) {
                    job.finish = true;
                }
            }
            A::AbortPart { key, part } => {
                if let Some(i) = self.jobs.iter().position(|j| j.is(self.connection, key, part)) {
                    let connection = self.jobs.remove(i).order.connection;
                    self.to(source::Event::PartAborted { connection, key, part });
                }
            }
            A::Digests { key, part, start, runs } => self.take_digests(key, part, start, runs),
            A::Cool { volume, regions, .. } => self.cool(volume, &regions),
            A::HeatAll { .. } | A::KeepHot { .. } | A::Heat { .. } => self.hot_questions.push(action),
            A::Verify(chunk) => self.verifies.push(*chunk),
            A::Report { what: source::Report::ColdDiffers { regions }, volume } => {
                self.cold_differs += regions.len();
                assert!(self.tampered, "{volume:?}: {regions:?} are cold and differ, though nobody tampered");
            }
            A::Report { what: source::Report::State(source::State::Refused(why)), volume } => {
                self.say(|| format!("{volume:?} refused: {why:?}"));
                assert!(self.tampered, "{volume:?} was refused as {why:?} though nobody tampered");
                self.refused.extend(volume);
            }
            A::Report { what: source::Report::WishDone { .. }, .. } => self.applications.done += 1,
            A::Report { volume, what } => self.say(|| format!("{volume:?} {what:?}")),
            A::LossKept { volume } => {
                let loss = &mut self.disks.get_mut(&volume).expect("a disk").loss;
                if *loss == Loss::Unkept {
                    *loss = Loss::OnRecord;
                }
            }
            A::WithdrawTrackingLost { volume } => self.disks.get_mut(&volume).expect("a disk").loss = Loss::None,
            A::Quiesce { wish } | A::CanCut { wish } => self.applications.asked(wish),
            A::Resume { epoch } => self.applications.let_go(epoch),
            A::AdoptMeta { .. } | A::Removed { .. } => {}
        }
    }

    fn cool(&mut self, id: VolumeId, regions: &RegionSet) {
        let source = self.source.as_ref().expect("it acts");
        for region in regions.iter().filter(|r| !source.mentions(id, *r)) {
            if !self.open.get(&id).is_some_and(|o| o.touches(region)) {
                self.disks.get_mut(&id).expect("a disk").hot.remove(region);
            }
        }
    }

    fn let_go(&mut self, epoch: EpochId) {
        if let Some(cut) = self.cuts.get_mut(&(self.instance, epoch)) {
            cut.held = false;
        }
    }

    fn do_switch(&mut self, kind: LayerKind, members: Vec<source::SwitchMember>) {
        let epoch = EpochId(self.epoch);
        self.epoch += 1;
        let mut content = BTreeMap::new();
        let mut frozen = Vec::new();
        for member in members {
            let mut set = std::mem::take(self.open.entry(member.volume).or_default());
            set.union_with(&member.extra);
            content.insert(member.volume, self.disks[&member.volume].content.clone());
            frozen.push((member.volume, set));
        }
        self.applications.switched((self.instance, epoch));
        let held = kind == LayerKind::Point;
        if held {
            self.cuts.insert((self.instance, epoch), FrozenCut { content, held });
        }
        self.say(|| format!("switch {epoch} {kind:?} {:?}", frozen.iter().map(|f| f.0).collect::<Vec<_>>()));
        let t = (u64::from(self.instance) << 32) | epoch.0;
        let info = EpochInfo { boot: BootId([1; 16]), mono_before_ns: t, mono_after_ns: t, wall_ms: 0 };
        self.to(source::Event::SwitchDone(SwitchDone { epoch, info, members: frozen }));
    }

    /// One region of one part.
    fn read_some(&mut self, i: usize) -> bool {
        let g = geometry();
        let job = &mut self.jobs[i];
        let ReadPart { key, part, connection, until, .. } = job.order;
        if !job.asked && !job.order.compare.is_empty() {
            job.asked = true;
            let run = GranuleRun { start: GranuleIndex(0), count: GRANULES };
            self.to(source::Event::DigestsWanted { connection, key, part, run });
            return true;
        }
        if job.asked && job.digests.is_empty() {
            return false;
        }
        let next = job.order.set.next_region(job.at).filter(|r| until.is_none_or(|u| *r < u));
        let full = job.content.len() as u64 * 16 >= job.order.bytes_max || job.finish;
        let began = job.granules > 0;
        let Some(region) = next.filter(|_| !full || !began) else {
            let done = next.is_none();
            self.end_part(i, done);
            return true;
        };
        let cut = self.cuts.get(&(self.instance, job.order.epoch)).filter(|c| c.held);
        job.held &= cut.is_some();
        let disk = &self.disks[&key.volume];
        let content = cut.map_or(&disk.content, |c| &c.content[&key.volume]);
        let mut zero = true;
        for granule in g.region_run(region).start.0..g.region_run(region).end().0 {
            if !job.order.set.contains(&g, GranuleIndex(granule)) {
                zero = false;
                continue;
            }
            if job.order.set.parts().0.contains(region) && disk.leaves.contains(&granule) {
                zero = false;
                job.left.insert_run(&g, GranuleRun { start: GranuleIndex(granule), count: 1 });
                continue;
            }
            job.granules += 1;
            let mut value = content[granule as usize];
            if disk.bad.contains(&granule) {
                value = UNREADABLE;
                job.unreadable.insert_run(&g, GranuleRun { start: GranuleIndex(granule), count: 1 });
            }
            zero &= value == 0;
            let equal = job.order.compare.contains(region)
                && value != UNREADABLE
                && job.digests.get(&granule) == Some(&Some(granule_digest(granule, value)));
            if !equal {
                job.content.push((granule, value));
                self.carried_bytes += 16;
            }
        }
        if zero {
            job.zero.insert(region);
        }
        job.at = RegionIndex(region.0 + 1);
        true
    }

    fn end_part(&mut self, i: usize, done: bool) {
        let job = self.jobs.remove(i);
        let ReadPart { key, part, connection, .. } = job.order;
        let left = job.left.regions();
        let disk = self.disks.get_mut(&key.volume).expect("it is read");
        disk.leaves.retain(|granule| !left.contains(geometry().region_of(GranuleIndex(*granule))));
        let footer_digest = footer(&job.content);
        let sent = (!job.content.is_empty()).then_some(SentPart { bytes: job.content.len() as u64 * 16, footer_digest });
        if sent.is_some() && self.connection == Some(connection) {
            self.parts.push((SessionId(connection), key, part, job.content));
        }
        let read = PartRead {
            connection,
            key,
            part,
            sent,
            next: job.at,
            done,
            cut_held: job.held,
            granules: job.granules,
            left: job.left,
            unreadable: job.unreadable,
            zero_regions: job.zero,
        };
        self.say(|| format!("read {key} part {part} up to {} done {done}", read.next));
        self.to(source::Event::PartRead(Box::new(read)));
    }

    fn job_mut(&mut self, key: LayerKey, part: u32) -> Option<&mut Job> {
        let connection = self.connection;
        self.jobs.iter_mut().find(|j| j.is(connection, key, part))
    }

    fn take_digests(&mut self, key: LayerKey, part: u32, start: GranuleIndex, runs: Vec<DigestRun>) {
        let Some(job) = self.job_mut(key, part) else { return };
        let mut at = start.0;
        for run in runs {
            let count = run.granules();
            for i in 0..count {
                let digest = match &run {
                    DigestRun::Zero { .. } => Some(granule_digest(at + i, 0)),
                    DigestRun::Data(digests) => Some(digests[i as usize]),
                    _ => None,
                };
                job.digests.insert(at + i, digest);
            }
            at += count;
        }
    }

    // ---- the network

    pub(super) fn connect(&mut self) {
        self.connections += 1;
        self.connection = Some(self.connections);
        self.say(|| format!("connection {}", self.connections));
        self.to(source::Event::Connected { connection: self.connections });
    }

    pub(super) fn disconnect(&mut self) {
        self.disconnect_as(source::Ended::Broken);
    }

    fn disconnect_as(&mut self, how: source::Ended) {
        let Some(connection) = self.connection.take() else { return };
        self.say(|| format!("connection {connection} is gone"));
        self.to_target.clear();
        self.to_source.clear();
        self.parts.clear();
        if self.by_hand || self.rng.one_in(2) {
            self.jobs.clear();
        }
        self.at(target::Event::Closed { session: SessionId(connection) });
        self.to(source::Event::Disconnected { connection, how });
    }

    // ---- the receiver

    pub(super) fn at(&mut self, event: target::Event) {
        let mut actions = Vec::new();
        self.target.step(self.now, &self.state, event, &mut actions);
        actions.into_iter().for_each(|a| self.do_target(a));
    }

    fn do_target(&mut self, action: target::Action) {
        use target::Action as A;
        match action {
            A::Send { session, message } => {
                if self.connection == Some(session.0) {
                    self.say(|| format!("← {message:?}"));
                    self.to_source.push_back(encode_payload(&*message).expect("fits").to_vec());
                }
            }
            A::CloseSession { session, .. } => {
                if self.connection == Some(session.0) {
                    self.disconnect_as(source::Ended::Closed);
                }
            }
            A::Append { ticket, mut records } => {
                assert_eq!(records.len(), 1, "each record comes alone where there is no cadence");
                self.appends.push_back((ticket, records.remove(0).body));
            }
            A::DropLayer { key } => {
                assert!(self.state.layer(&key).is_none(), "{key} is published and was dropped");
                self.landed.retain(|(k, _), _| *k != key);
            }
            A::DropParts { key, from } => {
                assert!(self.state.layer(&key).is_none(), "{key} is published and was truncated");
                self.landed.retain(|(k, p), _| *k != key || *p < from);
            }
            A::ReadDigests { .. } => self.digest_questions.push_back(action),
            A::Report { volume, what } => self.say(|| format!("target {volume:?} {what:?}")),
            A::AnswerLedger { .. } => unreachable!("ledgers of this world are short"),
            A::KeepEnd { .. } => unreachable!("nothing waits in this world"),
            A::KeepKey { .. } | A::GiveKey { .. } => unreachable!("nothing of this world is encrypted"),
            A::Submitted { .. } | A::AnswerPoints { .. } | A::Prune | A::Policy { .. } => {}
        }
    }

    pub(super) fn crash_target(&mut self, lose_landing: bool) {
        self.say(|| format!("receiver crashes, landing lost: {lose_landing}"));
        self.disconnect_as(source::Ended::Closed);
        self.appends.clear();
        self.digest_questions.clear();
        if lose_landing {
            let state = &self.state;
            let rng = &mut self.rng;
            self.landed.retain(|(k, _), _| state.layer(k).is_some() || rng.one_in(2));
        }
        let mut layers: BTreeMap<LayerKey, Vec<(u32, PartEntry)>> = BTreeMap::new();
        for ((key, part), content) in &self.landed {
            layers.entry(*key).or_default().push((*part, entry(content)));
        }
        let landed = layers.into_iter().map(|(key, parts)| LandedLayer { key, parts, end: None, staged_ago: 0 }).collect();
        let mut actions = Vec::new();
        self.target = Target::new(self.target_config(), &self.state, landed, &mut actions);
        actions.into_iter().for_each(|a| self.do_target(a));
    }

    pub(super) fn append(&mut self) {
        let (ticket, body) = self.appends.pop_front().expect("the caller looked");
        let slot = self.state.next_slot();
        let record = Record {
            group: GroupId([9; 16]),
            slot,
            prev: self.state.prev(),
            nonce: [0; 16],
            stamp: Stamp { writer: [1; 16], mono_ms: self.now, wall_ms: 0 },
            body,
        };
        let digest = RecordDigest(digest_of([slot.0, self.rng.next()]));
        let verdict = self.state.apply(&record, digest);
        self.say(|| format!("slot {slot}: {verdict:?}"));
        if (verdict == Verdict::Accepted || mutation::on("accept a void record"))
            && let Body::Layers(layers) = &record.body
        {
            self.accept(layers);
        }
        self.records.push(record);
        let outcome = AppendOutcome::Judged { records: vec![(LedgerPosition { slot, digest }, verdict)] };
        if !self.by_hand && self.rng.one_in(40) {
            return self.crash_target(false);
        }
        self.at(target::Event::Appended { ticket, outcome });
    }

    /// A record took effect: what it published must be what was cut.
    pub(super) fn accept(&mut self, layers: &farside_ledger::Layers) {
        for member in &layers.members {
            let image = self.image.entry(member.key.volume).or_default();
            for part in 0..member.parts.len() as u32 {
                let content = self.landed.get(&(member.key, part)).expect("a part that the record names is in the store");
                assert_eq!(footer(content), member.parts[part as usize].footer_digest, "another part than the record's");
                image.extend(content.iter().copied());
            }
        }
        let t = layers.epoch.mono_before_ns;
        let epoch = ((t >> 32) as u8, EpochId(t & 0xffff_ffff));
        self.applications.published(epoch, layers, self.disks.len());
        if layers.kind == LayerKind::Fuzzy {
            self.fuzzy += 1;
            return;
        }
        self.points += 1;
        let cut = self.cuts.get(&epoch).expect("a point comes from a cut");
        let members: Vec<VolumeId> = layers.members.iter().map(|m| m.key.volume).collect();
        let mut sorted = members.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, cut.content.keys().copied().collect::<Vec<_>>(), "L3: the members of the point are not the cut's");
        for id in members {
            for g in 0..GRANULES {
                let got = self.image[&id].get(&g).copied();
                if got != Some(UNREADABLE) {
                    assert_eq!(got, Some(cut.content[&id][g as usize]), "L3: point of epoch {t:x}, volume {id:?}, granule {g}");
                }
            }
        }
    }

    fn answer_digests(&mut self) -> bool {
        let question = self.digest_questions.pop_front();
        let Some(target::Action::ReadDigests { session, id, volume, run }) = question else { return false };
        let image = self.image.get(&volume);
        let digest = |g: u64| match image.and_then(|i| i.get(&g)) {
            None => DigestRun::Absent { granules: 1 },
            Some(&UNREADABLE) => DigestRun::Unreadable { granules: 1 },
            Some(0) => DigestRun::Zero { granules: 1 },
            Some(&value) => DigestRun::Data(vec![granule_digest(g, value)]),
        };
        let runs = (run.start.0..run.end().0).map(digest).collect();
        self.at(target::Event::Digests { session, id, volume, start: run.start, runs: Ok(runs) });
        true
    }

    // ---- the schedule

    /// One thing that can happen by itself, whichever it is.
    pub(super) fn step(&mut self) {
        self.now += 1;
        let turns: &[Turn] = match self.rng.below(14) {
            0 | 1 => &[Turn::Tick],
            2 => &[Turn::Switch],
            3 => &[Turn::Header],
            4 => &[Turn::Hot, Turn::Verify],
            5 | 6 => &[Turn::Read],
            7 | 8 => &[Turn::ToTarget],
            9 | 10 => &[Turn::ToSource],
            11 => &[Turn::Land],
            12 => &[Turn::Append],
            _ => &[Turn::Digests, Turn::Cool, Turn::Hooks],
        };
        turns.iter().for_each(|turn| _ = self.turn(*turn));
        let waits = self.applications.are_quiet() && self.switch.is_none();
        assert!(!waits, "applications are kept quiet and nothing is about to be cut");
    }

    /// Which of so many: by chance, or the oldest in a schedule that is written out.
    fn pick(&mut self, count: usize) -> usize {
        if self.by_hand { 0 } else { self.rng.below(count as u64) as usize }
    }

    /// Lets this happen once; false if there was nothing to happen.
    pub(super) fn turn(&mut self, turn: Turn) -> bool {
        match turn {
            Turn::Tick => self.tick(),
            Turn::Switch => {
                let Some(source::Action::Switch { kind, members }) = self.switch.take() else { return false };
                self.do_switch(kind, members);
            }
            Turn::Header => {
                let Some((volume, confirmed, position)) = self.headers.pop_front() else { return false };
                self.disks.get_mut(&volume).expect("a disk").header = (confirmed, position);
                self.to(source::Event::HeaderDurable { volume, confirmed, position });
            }
            Turn::Hot => return self.answer_hot(),
            Turn::Verify => return self.verify_chunk(),
            Turn::Read => {
                if self.jobs.is_empty() {
                    return false;
                }
                let i = self.pick(self.jobs.len());
                return self.read_some(i);
            }
            Turn::ToTarget => {
                let Some(bytes) = self.to_target.pop_front() else { return false };
                let message: SourceMessage = decode_payload(&bytes).expect("our own message");
                let session = SessionId(self.connection.expect("messages belong to a connection"));
                self.at(target::Event::Message { session, message: Box::new(message) });
            }
            Turn::ToSource => {
                let Some(bytes) = self.to_source.pop_front() else { return false };
                let message: ReceiverMessage = decode_payload(&bytes).expect("our own message");
                let connection = self.connection.expect("messages belong to a connection");
                self.to(source::Event::Message { connection, message: Box::new(message) });
            }
            Turn::Land => {
                if self.parts.is_empty() {
                    return false;
                }
                let i = self.pick(self.parts.len());
                let (session, key, part, content) = self.parts.swap_remove(i);
                self.land(session, key, part, content);
            }
            Turn::Append => {
                if self.appends.is_empty() {
                    return false;
                }
                self.append();
            }
            Turn::Digests => return self.answer_digests(),
            Turn::Hooks => return self.answer_hooks(),
            Turn::Cool => {
                let ids: Vec<_> = self.disks.keys().copied().collect();
                let volume = ids[self.rng.below(ids.len() as u64) as usize];
                self.cool_wanted(volume);
            }
        }
        true
    }

    pub(super) fn cool_wanted(&mut self, volume: VolumeId) {
        let regions = self.disks[&volume].hot.clone();
        self.to(source::Event::CoolWanted { volume, regions });
    }

    pub(super) fn land(&mut self, session: SessionId, key: LayerKey, part: u32, content: Vec<(u64, u64)>) {
        let entry = entry(&content);
        match self.target.accepts_part(&self.state, session, key, part) {
            Ok(()) => {}
            // Read to its end and forgotten: it counts as arrived.
            Err(RefusalCode::Term | RefusalCode::Unknown) if !mutation::on("staged data carried across a term") => {
                let entry = PartEntry { footer_digest: [0; 32], ..entry };
                return self.at(target::Event::PartLanded { session, key, part, entry });
            }
            Err(_) => return,
        }
        self.landed.insert((key, part), content);
        self.parts_landed += 1;
        self.at(target::Event::PartLanded { session, key, part, entry });
    }

    fn answer_hot(&mut self) -> bool {
        if self.now < self.hot_from {
            return false;
        }
        let Some(question) = self.hot_questions.pop() else { return false };
        match question {
            source::Action::HeatAll { volume } => {
                let hot = &mut self.disks.get_mut(&volume).expect("a disk").hot;
                hot.insert_range(RegionRange { start: RegionIndex(0), count: REGIONS });
                self.to(source::Event::AllHot { volume });
            }
            source::Action::Heat { volume, regions } => {
                self.disks.get_mut(&volume).expect("a disk").hot.union_with(&regions);
                self.to(source::Event::Heated { volume, regions });
            }
            source::Action::KeepHot { volume } => {
                let regions = self.disks[&volume].hot.clone();
                self.to(source::Event::HotRegions { volume, regions });
            }
            _ => unreachable!("only these two are kept"),
        }
        true
    }

    /// Reads a chunk in place. A region is judged by its state afterwards.
    fn verify_chunk(&mut self) -> bool {
        if self.verifies.is_empty() {
            return false;
        }
        let chunk = self.verifies.remove(0);
        let (g, disk) = (geometry(), &self.disks[&chunk.volume]);
        let mut read = source::VerifyRead { id: chunk.id, ..Default::default() };
        let mut published = chunk.runs.iter().flat_map(|run| (0..run.granules()).map(move |i| (run, i)));
        for region in chunk.chunk.iter() {
            let granules = g.region_run(region);
            let (mut equal, mut readable) = (true, true);
            for granule in granules.start.0..granules.end().0 {
                let (run, i) = published.next().expect("a digest for each granule");
                let value = disk.content[granule as usize];
                readable &= !disk.bad.contains(&granule);
                equal &= match run {
                    DigestRun::Zero { .. } => value == 0,
                    DigestRun::Data(digests) => digests[i as usize] == granule_digest(granule, value),
                    _ => false,
                };
            }
            match (disk.hot.contains(region), readable, equal) {
                (true, ..) => read.hot.insert(region),
                (false, false, _) => read.unreadable.insert(region),
                (false, true, false) => read.differing.insert(region),
                (false, true, true) => {}
            }
        }
        let volume = chunk.volume;
        self.say(|| format!("verified {read:?} of {volume:?}"));
        self.to(source::Event::VerifyRead { volume, read: Box::new(read) });
        true
    }

    /// L2: what differs from the published image is in a hot region.
    pub(super) fn check_no_false_clean(&self) {
        if self.tampered {
            return;
        }
        let g = geometry();
        for (id, disk) in &self.disks {
            let image = self.image.get(id);
            // Whoever attaches next knows, or is told, that everything must be compared.
            let on_record = self.state.volume(*id).and_then(|v| v.tracking_lost());
            if matches!(disk.loss, Loss::Marked | Loss::Unkept) || on_record > disk.header.1.map(|p| p.slot) {
                continue;
            }
            for granule in 0..GRANULES {
                let same = image.and_then(|i| i.get(&granule)) == Some(&disk.content[granule as usize]);
                let hot = disk.hot.contains(g.region_of(GranuleIndex(granule)));
                assert!(same || hot, "L2: granule {granule} of {id:?} is clean and differs from what is published");
            }
        }
    }

    pub(super) fn converged(&self) -> bool {
        let equal = self.disks.iter().all(|(id, disk)| {
            let image = self.image.get(id);
            (0..GRANULES).all(|g| image.and_then(|i| i.get(&g)) == Some(&disk.content[g as usize]))
        });
        equal && self.source.as_ref().is_some_and(Source::settled) && self.disks.values().all(|d| d.hot.is_empty())
    }

    fn verified_all(&self) -> bool {
        let status = self.source.as_ref().expect("it runs").status(self.now);
        let done = |v: &source::VolumeStatus| v.verify.as_ref().is_some_and(|v| v.outcome == source::VerifyOutcome::Done);
        status.volumes.iter().all(done)
    }

    /// No more faults: everything must get published, cooled, end in a point, and be found equal.
    pub(super) fn heal(&mut self, steps: u64) {
        self.say(|| "---- heal".into());
        self.disks.values_mut().for_each(|d| d.bad.clear());
        self.disk_room = 1 << 40;
        let ids: Vec<VolumeId> = self.disks.keys().copied().collect();
        let mut verifying = false;
        for i in 0..steps {
            if self.source.is_none() {
                self.boot();
            }
            if self.connection.is_none() {
                self.connect();
            }
            // An unreadable run is tried again with the next layer, and makes none by itself.
            for &volume in ids.iter().filter(|_| i % 2000 == 0) {
                self.to(source::Event::Resume { volume });
                self.write(volume, i / 2000 % GRANULES, i + 10_000);
            }
            let refused = std::mem::take(&mut self.refused);
            refused.into_iter().for_each(|volume| self.to(source::Event::Accept { volume }));
            self.step();
            self.check_no_false_clean();
            if self.converged() && !verifying {
                verifying = true;
                ids.iter().for_each(|&volume| self.to(source::Event::Verify { volume }));
            } else if self.converged() && self.verified_all() {
                self.verified += 1;
                return;
            }
        }
        let status = self.source.as_ref().map(|s| s.status(self.now));
        panic!("no convergence: {status:#?}\n{:#?}", self.source);
    }
}

pub(super) fn footer(content: &[(u64, u64)]) -> [u8; 32] {
    digest_of(content.iter().flat_map(|(g, v)| [*g, *v]))
}

pub(super) fn entry(content: &[(u64, u64)]) -> PartEntry {
    PartEntry { bytes: content.len() as u64 * 16, footer_digest: footer(content) }
}

pub(super) fn target_config() -> target::Config {
    target::Config {
        group: GroupId([9; 16]),
        source: name("host"),
        group_name: name("default"),
        store: [7; 16],
        layer_digest,
        began: 0,
        limits: target::Limits {
            sessions_max: 3,
            credit_window: 24 * 16,
            credit_idle: 200,
            credit_step: 4 * 16,
            layers_max: 64,
            parts_max: 64,
            heartbeat_record: 500,
            append_retry: 20,
            slice_ranges_max: 9,
            file_bytes: 1,
            record_interval: 0,
            ..target::Limits::default()
        },
    }
}
