//! What one seed sets out to do: sizes, limits, speeds and faults, all drawn from the seed before the run begins.

use std::collections::BTreeSet;

use crate::rng::Rng;

/// Something that goes wrong, or that an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The source's process is killed; its I/O in flight goes on.
    Crash,
    /// The source's power goes.
    Power,
    /// A planned stop, sometimes with a power cut while it is off.
    Stop,
    /// The connection ends.
    Reset,
    /// Nothing gets through for a while.
    Partition,
    /// The receiver's process is killed.
    ReceiverCrash,
    /// The receiver's power goes: what was landed and not synced is lost.
    ReceiverPower,
    /// A backing sector cannot be read until it is written.
    ReadError,
    /// A backing sector can neither be read nor written any more.
    DeadSector,
    /// Nothing of one backing moves for a while.
    Hang,
    /// A write to the intent map fails; or all do until the next start; sometimes the state directory is full, too.
    MapError,
    /// The receiver's store takes nothing for a while.
    StoreFull,
    /// Disks, network, store or threads are very slow for a while.
    Slow,
    /// The wall clock of the receiver or of the sources jumps, by up to ten years either way.
    ClockJump,
    /// A ledger write stalls, its writer dies, and it wakes when the successor is at work.
    StalledWriter,
    /// A write to the backing fails after a part of it landed.
    WriteError,
    /// A flush of the backing fails.
    FlushError,
    /// The group's epoch is given up from outside (a timeout, an overflow).
    Demote,
    /// A volume is paused, or resumed.
    Pause,
    /// A point is pinned, or a pin withdrawn.
    Pin,
    /// A person asks for everything to be compared.
    Resync,
    /// A person asks to compare the volume with what is published.
    Verify,
    /// The host's disks, maps and state directory go back to an earlier moment (first a snapshot is taken).
    Rollback,
    /// The host is installed anew: its disks stay, maps and headers are fresh.
    Reinstall,
    /// A copy of the machine, of now or of an earlier moment, starts beside it and speaks to the same receiver; or it ends.
    Clone,
    /// The receiver's store and landing go back to an earlier moment (first a snapshot is taken).
    StoreRollback,
    /// While nobody serves it a backing becomes larger; sometimes somebody has written to it, too.
    Grow,
    /// After a planned stop somebody writes to a backing without us.
    Offline,
    /// While nobody serves it another disk takes the place of a backing.
    Swap,
    /// While it is served somebody writes to a backing past its tap, which is noticed; sometimes the state directory is full, too.
    Past,
    /// A slot of the ledger rots, or its newest slots are lost; a person puts them back from a copy, or gives them up.
    TornLedger,
    /// The group is failed over at the gateway, once more if it was; see `failover.rs`.
    Promote,
    /// The original takes its history back from whoever stands in for it, with its own disks or with what was published since.
    Rejoin,
    /// A guard of hooks is killed, a post-cut fails for a while, or an application that is held goes on by itself.
    Hooks,
}

pub(crate) const NASTY: [Fault; 5] = [Fault::Rollback, Fault::Reinstall, Fault::StoreRollback, Fault::Clone, Fault::TornLedger];

/// What happens to backings while nobody serves them.
pub(crate) const AWAY: [Fault; 3] = [Fault::Grow, Fault::Offline, Fault::Swap];

const TRIALS: [Trial; 13] = [
    Trial::None,
    Trial::None,
    Trial::None,
    Trial::None,
    Trial::None,
    Trial::None,
    Trial::Overload,
    Trial::Paused,
    Trial::Hung,
    Trial::Reboots,
    Trial::Joins,
    Trial::Leaves,
    Trial::Tampered,
];

const ALL: [Fault; 22] = [
    Fault::Crash,
    Fault::Power,
    Fault::Stop,
    Fault::Reset,
    Fault::Partition,
    Fault::ReceiverCrash,
    Fault::ReceiverPower,
    Fault::ReadError,
    Fault::WriteError,
    Fault::FlushError,
    Fault::Demote,
    Fault::Pause,
    Fault::Pin,
    Fault::Resync,
    Fault::Verify,
    Fault::DeadSector,
    Fault::Hang,
    Fault::MapError,
    Fault::StoreFull,
    Fault::Slow,
    Fault::ClockJump,
    Fault::StalledWriter,
];

/// Faults that meet too rarely by chance and have found holes together.
const THEMES: [&[Fault]; 45] = [
    &[Fault::Stop, Fault::Power],
    &[Fault::Reset, Fault::Demote],
    &[Fault::Reset],
    &[Fault::Reset, Fault::ReceiverCrash],
    &[Fault::ReceiverPower, Fault::Reset, Fault::ReceiverCrash],
    &[Fault::Crash, Fault::Power],
    &[Fault::Crash, Fault::Power, Fault::FlushError],
    &[Fault::Resync, Fault::Reset],
    &[Fault::ReadError, Fault::Pin],
    &[Fault::ReadError, Fault::Demote, Fault::Crash],
    &[Fault::Crash, Fault::ReceiverCrash],
    &[Fault::Stop, Fault::Reset],
    &[Fault::Power, Fault::Partition],
    &[Fault::WriteError, Fault::Crash],
    &[Fault::Pause, Fault::Reset],
    &[Fault::Rollback, Fault::Stop],
    &[Fault::StoreRollback, Fault::Reset],
    &[Fault::StoreRollback, Fault::Resync],
    &[Fault::Reinstall],
    &[Fault::Clone],
    &[Fault::DeadSector, Fault::Pin],
    &[Fault::Verify],
    &[Fault::Verify, Fault::Reset, Fault::Resync, Fault::ReadError],
    &[Fault::DeadSector, Fault::ReadError, Fault::Reset, Fault::Stop],
    &[Fault::MapError],
    &[Fault::MapError, Fault::Crash, Fault::Power],
    &[Fault::MapError, Fault::Stop, Fault::Reset],
    &[Fault::Hang, Fault::Demote],
    &[Fault::StoreFull, Fault::Slow, Fault::ReceiverCrash],
    &[Fault::ClockJump, Fault::ReceiverCrash, Fault::Pin],
    &[Fault::StalledWriter, Fault::Reset],
    &[Fault::StalledWriter, Fault::Crash],
    &[Fault::Stop, Fault::Partition, Fault::ReceiverCrash, Fault::Power],
    &[Fault::Clone, Fault::Reset, Fault::Stop],
    &[Fault::Clone, Fault::Rollback],
    &[Fault::TornLedger],
    &[Fault::TornLedger, Fault::Reset, Fault::Crash],
    &[Fault::TornLedger, Fault::Pin, Fault::Resync],
    &[Fault::Grow],
    &[Fault::Grow, Fault::Offline, Fault::Power],
    &[Fault::Grow, Fault::Reset, Fault::Crash],
    &[Fault::Offline, Fault::Stop, Fault::Power],
    &[Fault::Offline, Fault::Swap],
    &[Fault::Swap, Fault::Crash, Fault::ReceiverCrash],
    &[],
];

/// What must make progress, beside everything else; see `progress.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Nothing more.
    None,
    /// The host never rests.
    Overload,
    /// One member is paused.
    Paused,
    /// One member's disk hangs.
    Hung,
    /// The run begins with a first sync under reboots.
    Reboots,
    /// One member joins the others late, and its first sync does not get on.
    Joins,
    /// One member leaves.
    Leaves,
    /// Something changes a cold region behind the tap, and a person asks for a verify.
    Tampered,
}

/// See the head of the file.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Regions of each volume.
    pub regions: Vec<u64>,
    /// The last volume ends inside a granule.
    pub ragged: bool,
    /// Granules by which each volume is smaller at first, if it is; what it lacks comes when it grows.
    pub smaller: Vec<u64>,
    /// Backings are files, whose times and sizes tell that somebody wrote to them.
    pub files: bool,
    /// NBD queues of each volume.
    pub queues: usize,
    /// What may go wrong, with weights.
    pub faults: Vec<(Fault, f64)>,
    /// How likely a step is a fault.
    pub fault_rate: f64,
    /// How likely a dead source comes back at a step.
    pub boot_rate: f64,
    /// How likely a dead receiver comes back at a step.
    pub receiver_rate: f64,
    /// The receiver is away when the source begins.
    pub alone: bool,
    /// Begin in the steady state instead of at the first sync.
    pub steady: bool,
    /// Steps with faults.
    pub steps: u64,
    /// Tiny pools, so that they overflow.
    pub tight: bool,
    /// How fast the store's PUTs are, where it is not left to chance.
    pub store_speed: Option<f64>,
    /// Writes go anywhere, not mostly to one hot place.
    pub spread: bool,
    /// What must make progress.
    pub trial: Trial,
    /// Regions per intent page.
    pub page_regions: u32,
    /// It ends with a store that somebody else has filled to what is kept back.
    pub full: bool,
    /// Points that every member keeps.
    pub keep: u32,
    /// How long points are kept at least, in milliseconds of ledger time.
    pub span_ms: u64,
    /// How long the receiver lets staged layers wait for others, in nanoseconds; 0 = not at all.
    pub publish_every: u64,
    /// An attach after anything but a clean stop writes its intent map anew before it trusts it. Always so where the map may
    /// fail; otherwise the last owner's syncs are what they say, and either is right.
    pub map_anew: bool,
    /// The source is killed between the write of an intent page and its sync.
    pub killed_unsynced: bool,
    /// What becomes of cold writes when the loss of tracking can be recorded nowhere: they fail. (Those that pass are not
    /// judged: "a crash now would go unnoticed".)
    pub state_dir_fills: bool,
    /// How many merge parts at the same time. None by chance: seeds are what they were before there were any.
    pub compactors: usize,
    /// A disk beside the receiver follows each volume. Not by chance either.
    pub follows: bool,
    /// So many machines with nothing but the store keep a disk equal to a volume's points. Not by chance either.
    pub cascades: usize,
    /// Whoever was failed over is brought to what was published since, again and again, and much happens meanwhile. Not by chance either.
    pub fails_back: bool,
    /// Applications are quiesced around cuts, and hooks fail. Not by chance either.
    pub hooks: bool,
    /// It is one host of several that are cut as one. Not by chance either.
    pub cohort: Option<OfCohort>,
}

/// One host of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfCohort {
    /// Its number among them.
    pub host: usize,
    /// For so long at most it lets its writes be held, in microseconds.
    pub hold_us_max: u32,
    /// Sectors at the end of its first volume to which nobody writes but an application that is spread over all hosts.
    pub kept: usize,
    /// What goes wrong between the hosts and whoever conducts.
    pub trouble: Trouble,
}

/// Where things go wrong that several hosts have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// At hosts, on their connections, and at the gateway.
    #[default]
    Everywhere,
    /// Next to nowhere.
    Seldom,
    /// At the gateway, which keeps what is whole: it dies, its clock is set, groups do not answer, come and go.
    Gateway,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(rng: &mut Rng) -> Self {
        let volumes = rng.pick(&[1, 1, 2, 2, 2, 3]);
        let mut faults: BTreeSet<Fault> = (0..rng.pick(&[0, 1, 2, 3, 3, 4, 5])).map(|_| rng.pick(&ALL)).collect();
        if rng.chance(0.15) {
            faults.insert(rng.pick(&NASTY));
        }
        if rng.chance(0.6) {
            faults = rng.pick(&THEMES).iter().copied().collect();
        }
        let map_fails = faults.contains(&Fault::MapError);
        if rng.chance(0.08) {
            faults.insert(rng.pick(&AWAY));
        }
        if faults.contains(&Fault::Rollback) || faults.contains(&Fault::Clone) {
            // What is smaller than the ledger says is refused for its shape, and no word of a person helps.
            faults.remove(&Fault::Grow);
        }
        let clones = faults.contains(&Fault::Clone);
        let grows = faults.contains(&Fault::Grow);
        let trial = rng.pick(&TRIALS);
        // With tiny pools a group under load lives on passes, as it should.
        let roomy = matches!(trial, Trial::Paused | Trial::Hung | Trial::Joins | Trial::Leaves);
        let regions: Vec<u64> = (0..volumes).map(|_| rng.pick(&[2, 3, 4, 4, 5, 8])).collect();
        let mut smaller = |regions: u64| if grows { 1 + rng.below((regions as usize - 1) * 4) as u64 } else { 0 };
        Self {
            smaller: regions.iter().map(|r| smaller(*r)).collect(),
            files: rng.chance(0.7),
            regions,
            ragged: rng.chance(0.4),
            queues: rng.pick(&[1, 2, 2, 3]),
            faults: faults.into_iter().map(|f| (f, rng.pick(&[1.0, 1.0, 2.0, 4.0]))).collect(),
            fault_rate: rng.pick(&[0.003, 0.008, 0.02]),
            boot_rate: rng.pick(&[0.02, 0.1, 0.5]),
            receiver_rate: rng.pick(&[0.03, 0.03, 0.004]),
            alone: rng.chance(0.2),
            steady: rng.chance(0.8),
            steps: if clones { 5000 } else { 2500 },
            tight: rng.chance(0.4) && !roomy,
            store_speed: rng.pick(&[None, None, None, Some(0.1)]),
            spread: rng.chance(0.3),
            trial,
            page_regions: rng.pick(&[2, 2, 4, 8]),
            full: false,
            keep: rng.pick(&[1, 2, 2, 3]),
            map_anew: map_fails || rng.chance(0.5),
            span_ms: rng.pick(&[0, 0, 0, 40, 150, 100_000]),
            killed_unsynced: rng.chance(0.05),
            state_dir_fills: rng.chance(0.3),
            // (Drawn aside: seeds without a cadence are what they were before there was one.)
            publish_every: rng.clone().pick(&[0, 0, 20_000_000, 150_000_000]),
            compactors: 0,
            follows: false,
            cascades: 0,
            fails_back: false,
            hooks: false,
            cohort: None,
        }
    }

    /// Whether that may happen in this run.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.iter().any(|f| f.0 == fault)
    }
}
