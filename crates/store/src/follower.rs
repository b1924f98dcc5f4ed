//! Keeping a file or a device equal to a point: from one point to the next by writing again what differs.
//!
//! ```text
//! Unknown ──► Applying(nothing known, Q) ──flush──► At(Q) ──► Applying(P…Q, Q) ──flush──► At(Q)
//!    ▲                                               │                │
//!    └── a person says so ── Diverged ◄── somebody else wrote to it ──┘
//! ```
//!
//! Invariants:
//! - `At(Q)` is durable only after all of Q was written and flushed, and says so until `Applying` is durable; not a byte is written in between;
//! - `Applying` names the oldest and the newest point that any byte of the target may be of. What is written there is found again, so a death at
//!   any instruction costs that apply and nothing else, also if by then another point is wanted;
//! - a target that somebody else wrote to is written to no more: its sentinels are read before each apply, and all of it where its file or
//!   device says that it was written to. Who wrote beside an apply that a death cut short nobody can tell: what is reached then is *in doubt* until
//!   all of it was compared;
//! - nor is one written to that is another file or device than the one that was begun.
//!
//! Which granules differ between two points needs neither of their images: those of the regions that layers between them touched, and of these,
//! on the way to the newest of all points concerned, the ones that were published since the oldest.
//!
//! Not here: which point is wanted (`wanted`) and when, and that it stays retained meanwhile (`receiver`), or what becomes of a point that is not
//! (`farside store follow`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use farside_blockio::{Identity, Known};
use farside_layer::granule_digest;
use farside_ledger::State;
use farside_region::{
    ByteExtent, Geometry, GranuleIndex, GranuleRun, LedgerPosition, RegionIndex, RegionRange, RegionSet, Slot, mutation,
};
use serde::{Deserialize, Serialize};

use crate::cascade::is_held;
use crate::error::{Result, StoreError};
use crate::image::VolumeImage;
use crate::index::Content;
use crate::keys::Unlocking;
use crate::lazy::LazyPointReader;
use crate::reader::RegionContent;
use crate::restore::{RestoreTarget, differing};

/// What disks begin and end with is where a stray writer is met first: boot sector, partition tables, superblocks.
const SENTINEL_ENDS_BYTES: (u64, u64) = (72 << 10, 40 << 10);
/// And so many granules between.
const SENTINELS_BETWEEN: u64 = 32;
/// Diverged regions that are named.
const DIVERGED_NAMED_MAX: usize = 64;
/// Regions from which on the whole point is indexed first, instead of region by region.
const INDEXED_FROM: u64 = 256;

/// What is kept equal to points.
pub trait FollowTarget: RestoreTarget {
    /// How large it is.
    ///
    /// # Errors
    /// The target's.
    fn bytes(&self) -> io::Result<u64>;

    /// Whether its size is what it is: a device's.
    ///
    /// # Errors
    /// The target's.
    fn is_fixed(&self) -> io::Result<bool>;

    /// Gives it that size, unless that is fixed.
    ///
    /// # Errors
    /// The target's.
    fn resize(&self, bytes: u64) -> io::Result<()>;

    /// Which file or device it is.
    ///
    /// # Errors
    /// The target's.
    fn identity(&self) -> io::Result<Identity>;

    /// What tells whether somebody writes to it from now on, after a sync; `None`: nothing does.
    ///
    /// # Errors
    /// The target's.
    fn seen(&self) -> io::Result<Option<Seen>>;
}

/// What is different after a target was written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Marks count within the same only: since a boot, for a device.
    pub since: String,
    /// They; empty where the kernel does not count.
    pub marks: String,
}

impl Seen {
    /// Whether somebody's writes would make another of it.
    pub fn tells_of_writes(&self) -> bool {
        !self.marks.is_empty()
    }
}

/// Keeps what is known of a target.
pub trait FollowKeeper {
    /// Makes it durable, as a whole or not at all.
    ///
    /// # Errors
    /// What the file system says; the one before may be there or not.
    fn keep(&self, following: &Following) -> io::Result<()>;
}

/// What a target holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowStage {
    /// Anything.
    #[default]
    Unknown,
    /// It is on its way to a point.
    Applying {
        /// The oldest and the newest point that any of it may be of; `None`: it may hold anything.
        between: Option<(LedgerPosition, LedgerPosition)>,
        /// The point.
        to: LedgerPosition,
    },
    /// That point.
    At(LedgerPosition),
    /// Somebody else wrote to it, or may have, and nobody can tell.
    Diverged {
        /// What it held before.
        at: LedgerPosition,
        /// The first regions in which it does not, as far as is known.
        regions: Vec<RegionIndex>,
        /// In words.
        why: String,
    },
}

impl FollowStage {
    /// Points of which something may be needed.
    pub fn points(&self) -> impl Iterator<Item = Slot> {
        let found = match self {
            Self::Unknown => [None, None],
            Self::Applying { between, to } => [Some(to.slot), between.map(|(low, _)| low.slot)],
            Self::At(at) | Self::Diverged { at, .. } => [Some(at.slot), None],
        };
        found.into_iter().flatten()
    }

    /// The newest point that any of the target may be of, or is to be.
    pub fn newest(&self) -> Option<Slot> {
        self.between().map(|(_, high)| high.slot).into_iter().chain(self.points()).max()
    }

    /// The oldest and the newest point that any of the target may be of.
    fn between(&self) -> Option<(LedgerPosition, LedgerPosition)> {
        match self {
            Self::Applying { to, .. } if mutation::on("a follower takes what it began for done") => Some((*to, *to)),
            Self::Applying { between, .. } => *between,
            Self::At(at) => Some((*at, *at)),
            Self::Unknown | Self::Diverged { .. } => None,
        }
    }
}

/// What is kept of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// What it holds.
    pub stage: FollowStage,
    /// The size of its volume then, in bytes.
    pub volume_bytes: u64,
    /// Digests of some of its granules, as hexadecimal digits, by their number.
    #[serde(default)]
    sentinels: BTreeMap<u64, String>,
    #[serde(default)]
    seen: Option<Seen>,
    /// Which file or device that was.
    #[serde(default)]
    identity: Option<Identity>,
    /// An apply was cut short since all of it was compared, and somebody else may have written beside it.
    #[serde(default)]
    in_doubt: bool,
}

impl Following {
    /// Whether all of the target is to be compared as soon as that can be.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }
}

/// The way from what a target holds to a point.
#[derive(Debug)]
pub struct FollowLook {
    reader: LazyPointReader,
    to: LedgerPosition,
    between: Option<(LedgerPosition, LedgerPosition)>,
    /// The regions in which the target may not be the point; `None`: any.
    touched: Option<RegionSet>,
    /// What was published up to there the target holds, even in those.
    known: Option<Slot>,
}

impl FollowLook {
    /// To the point that `reader` reads, which belongs to the group of `state`.
    ///
    /// # Errors
    /// [`StoreError::TargetOfAnotherHistory`]; [`StoreError::NoSuchPoint`]; where replay has forgotten so old a point, what the file system says of its record.
    pub fn new(state: &State, reader: LazyPointReader, stage: &FollowStage) -> Result<Self> {
        let point = reader.point();
        let gone = || StoreError::NoSuchPoint { point: point.to_string(), why: "its ledger does not go so far".to_owned() };
        let to = LedgerPosition { slot: point, digest: state.digest_at(point).ok_or_else(gone)? };
        let Some((low, high)) = stage.between() else {
            return Ok(Self { reader, to, between: None, touched: None, known: None });
        };
        for at in [low, high] {
            if !is_held(state, &at) && !reader.went_through(state, &at)? {
                let path = std::path::PathBuf::from("the target of a follower");
                return Err(StoreError::TargetOfAnotherHistory { path, slot: at.slot });
            }
        }
        let (low, high) = (low.min(to), high.max(to));
        let touched = state.touched(reader.volume().id, low.slot, high.slot);
        // † On the way back what lies at the place of a newer granule is older than all.
        let is_newest = to == high || mutation::on("a follower goes back as it goes on");
        Ok(Self { reader, to, between: Some((low, high)), touched: Some(touched), known: is_newest.then_some(low.slot) })
    }

    /// The same, with the keys of an encrypted volume: see [`LazyPointReader::unlocked`](crate::PointReader::unlocked).
    ///
    /// # Errors
    /// Those of that.
    pub fn unlocked(self, unlocking: &Unlocking) -> Result<Self> {
        Ok(Self { reader: self.reader.unlocked(unlocking)?, ..self })
    }

    /// The point.
    pub fn point(&self) -> LedgerPosition {
        self.to
    }

    /// What it is read from.
    pub fn reader(&self) -> &LazyPointReader {
        &self.reader
    }

    /// How many regions are to be looked at.
    pub fn regions(&self) -> u64 {
        self.touched.as_ref().map_or(self.reader.geometry().region_count(), RegionSet::len)
    }
}

/// How far an apply or a comparison is, in regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowProgress {
    /// Done.
    pub done: u64,
    /// Of so many.
    pub of: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
}

/// What an apply did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowReport {
    /// Regions that were looked at.
    pub regions: u64,
    /// Bytes that were written, zeroes among them.
    pub written_bytes: u64,
}

/// Where a target is not what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differing {
    /// How many regions.
    pub count: u64,
    /// The first of them, ascending.
    pub regions: Vec<RegionIndex>,
}

/// A target and what is known of it.
pub struct Follower<'t> {
    target: &'t dyn FollowTarget,
    keeper: &'t dyn FollowKeeper,
    following: Following,
    threads: usize,
}

impl std::fmt::Debug for Follower<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("target", &self.target.path())
            .field("following", &self.following)
            .finish_non_exhaustive()
    }
}

/// What a look at a target says before anything is written.
enum Looked {
    AsItWas,
    /// It was written to, who knows where.
    Written,
    /// In these regions.
    Changed(Vec<RegionIndex>),
}

impl<'t> Follower<'t> {
    /// A target of which `following` was kept last.
    pub fn new(target: &'t dyn FollowTarget, keeper: &'t dyn FollowKeeper, following: Following, threads: usize) -> Self {
        Self { target, keeper, following, threads: threads.max(1) }
    }

    /// What is known.
    pub fn following(&self) -> &Following {
        &self.following
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> StoreError {
        StoreError::of_target(doing, self.target.path(), error)
    }

    fn keep(&mut self, following: Following) -> Result<()> {
        self.keeper.keep(&following).map_err(|e| self.failed("keeping what is known of", e))?;
        self.following = following;
        Ok(())
    }

    /// Brings the target to a point. `base` opens the point that it holds, where that is still retained, and the wanted one again where its parts
    /// were merged meanwhile; `progress` hears, from any thread, how far that is, and may stop it.
    ///
    /// # Errors
    /// [`StoreError::TargetDiverged`], [`StoreError::TargetTooSmall`], [`StoreError::Degraded`], [`StoreError::Corrupt`],
    /// [`StoreError::KeyNeeded`], [`StoreError::Stopped`]; what target and store say. Unless it had not begun, the target is on its way then, and the next apply
    /// goes on.
    pub fn advance(
        &mut self,
        look: &FollowLook,
        base: &dyn Fn(Slot) -> Result<LazyPointReader>,
        progress: &(dyn Fn(FollowProgress) -> bool + Sync),
    ) -> Result<FollowReport> {
        look.reader.refuse_opaque()?;
        self.recognise()?;
        let in_doubt = self.refuse_strangers((&look.reader, look.touched.as_ref()), base, progress)? || self.following.in_doubt;
        if self.following.stage == FollowStage::At(look.to) {
            return Ok(FollowReport::default());
        }
        let needs = look.reader.geometry().volume_bytes();
        let has = self.target.bytes().map_err(|e| self.failed("measuring", e))?;
        let is_fixed = self.target.is_fixed().map_err(|e| self.failed("looking at", e))?;
        if has < needs && is_fixed {
            let volume = look.reader.volume().name.to_string();
            return Err(StoreError::TargetTooSmall { path: self.target.path().to_owned(), has, volume, needs });
        }
        let stage = FollowStage::Applying { between: look.between, to: look.to };
        let identity = self.target.identity().map_err(|e| self.failed("looking at", e))?;
        // All of it is compared on the way where nothing is known of it.
        let in_doubt = in_doubt && look.touched.is_some();
        if !mutation::on("a follower writes before it says so") {
            self.keep(Following { stage, identity: Some(identity.clone()), in_doubt, ..self.following.clone() })?;
        }
        if has != needs && !is_fixed {
            self.target.resize(needs).map_err(|e| self.failed("resizing", e))?;
        }
        let report = self.apply(look, base, progress).inspect_err(|_| self.leave())?;
        let at = FollowStage::At(look.to);
        if mutation::on("a follower arrives before the flush") {
            self.keep(Following { stage: at.clone(), ..self.following.clone() })?;
        }
        self.target.sync().map_err(|e| self.failed("syncing", e))?;
        let sentinels = self.sentinels(look.reader.geometry(), self.key(&look.reader))?;
        let seen = self.target.seen().map_err(|e| self.failed("looking at", e))?;
        self.keep(Following { stage: at, volume_bytes: needs, sentinels, seen, identity: Some(identity), in_doubt })?;
        Ok(report)
    }

    /// An apply ends before its end: whoever writes from here on is somebody else.
    fn leave(&mut self) {
        let seen = self.target.sync().and_then(|()| self.target.seen());
        if let Ok(seen @ Some(_)) = seen {
            // What cannot be kept is in doubt later.
            let _ = self.keep(Following { seen, ..self.following.clone() });
        }
    }

    /// Looks whether this is the file or device that was begun, as far as that can be told.
    ///
    /// # Errors
    /// [`StoreError::TargetDiverged`], [`StoreError::TargetUnsuitable`].
    pub fn recognise(&mut self) -> Result<()> {
        self.refuse_diverged()?;
        let Some(kept) = &self.following.identity else { return Ok(()) };
        let found = self.target.identity().map_err(|e| self.failed("looking at", e))?;
        if mutation::on("a follower writes to whatever has its target's name") {
            return Ok(());
        }
        match (kept.compare(&found), self.following.stage.between(), &self.following.stage) {
            (Known::Same, ..) | (.., FollowStage::Unknown) => Ok(()),
            (Known::Another, Some((at, _)), _) => {
                self.diverge(at, Vec::new(), "another file or device has its name now than the one that was followed".to_owned())
            }
            // Its sentinels tell.
            (Known::Unknown, Some(_), _) => Ok(()),
            (_, None, _) => {
                let why =
                    "it was being filled for the first time, and this may be another file or device of that name; to heal it \
                           (`farside follower heal`, `farside store follow --heal`) overwrites what is there"
                        .to_owned();
                Err(StoreError::TargetUnsuitable { path: self.target.path().to_owned(), why })
            }
        }
    }

    fn refuse_diverged(&self) -> Result<()> {
        match &self.following.stage {
            FollowStage::Diverged { why, .. } => {
                Err(StoreError::TargetDiverged { path: self.target.path().to_owned(), why: why.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Nothing is known of the target any more: the next apply compares all of it with its point, and overwrites what differs.
    ///
    /// # Errors
    /// What the file system says.
    pub fn heal(&mut self) -> Result<()> {
        self.keep(Following { stage: FollowStage::Unknown, identity: None, in_doubt: false, ..self.following.clone() })
    }

    /// Looks whether somebody else wrote to the target since it was left at the point that it holds; compares all of it where something says so.
    /// `again`: see [`Follower::differs`].
    ///
    /// # Errors
    /// [`StoreError::TargetDiverged`], [`StoreError::KeyNeeded`], [`StoreError::Stopped`]; what target and store say.
    pub fn inspect(
        &mut self,
        base: &LazyPointReader,
        again: &dyn Fn(Slot) -> Result<LazyPointReader>,
        progress: &(dyn Fn(FollowProgress) -> bool + Sync),
    ) -> Result<()> {
        base.refuse_opaque()?;
        self.recognise()?;
        let FollowStage::At(at) = self.following.stage else { return Ok(()) };
        assert_eq!(at.slot, base.point(), "a target is compared with what it holds");
        match self.look(base, None)? {
            Looked::AsItWas => Ok(()),
            Looked::Written => self.verify(base, again, progress),
            Looked::Changed(regions) => self.diverge_at(at, regions),
        }
    }

    /// Compares all of the target with the point that it holds; what differs makes it diverged. `again`: see [`Follower::differs`].
    ///
    /// # Errors
    /// [`StoreError::TargetDiverged`], [`StoreError::KeyNeeded`], [`StoreError::Stopped`]; what target and store say.
    pub fn verify(
        &mut self,
        base: &LazyPointReader,
        again: &dyn Fn(Slot) -> Result<LazyPointReader>,
        progress: &(dyn Fn(FollowProgress) -> bool + Sync),
    ) -> Result<()> {
        base.refuse_opaque()?;
        self.recognise()?;
        let FollowStage::At(at) = self.following.stage else { return Ok(()) };
        assert_eq!(at.slot, base.point(), "a target is compared with what it holds");
        // Before it is compared: what is written meanwhile may be behind the comparison.
        self.target.sync().map_err(|e| self.failed("syncing", e))?;
        let seen = self.target.seen().map_err(|e| self.failed("looking at", e))?;
        let found = self.differs(base, again, progress)?;
        if found.count > 0 {
            let first = found.regions[0];
            let why = format!(
                "of its {} regions {} do not hold point {}, the first is region {first}",
                base.geometry().region_count(),
                found.count,
                at.slot
            );
            return self.diverge(at, found.regions, why);
        }
        self.keep(Following { seen, in_doubt: false, ..self.following.clone() })
    }

    fn diverge(&mut self, at: LedgerPosition, regions: Vec<RegionIndex>, why: String) -> Result<()> {
        let stage = FollowStage::Diverged { at, regions, why: why.clone() };
        self.keep(Following { stage, ..self.following.clone() })?;
        Err(StoreError::TargetDiverged { path: self.target.path().to_owned(), why })
    }

    /// Looks whether somebody else wrote to the target since it was left. `true`: nobody can tell.
    fn refuse_strangers(
        &mut self,
        (reader, touched): (&LazyPointReader, Option<&RegionSet>),
        base: &dyn Fn(Slot) -> Result<LazyPointReader>,
        progress: &(dyn Fn(FollowProgress) -> bool + Sync),
    ) -> Result<bool> {
        let Some((low, _)) = self.following.stage.between() else { return Ok(false) };
        if mutation::on("a follower does not look for strangers") {
            return Ok(false);
        }
        match (self.look(reader, touched)?, &self.following.stage) {
            (Looked::AsItWas, _) => Ok(false),
            (Looked::Changed(regions), stage) => {
                let at = if let FollowStage::At(at) = stage { *at } else { low };
                self.diverge_at(at, regions).map(|()| true)
            }
            (Looked::Written, &FollowStage::At(at)) => match base(at.slot) {
                Ok(reader) => match self.verify(&reader, base, progress) {
                    // It may be mended: until then what is there is left alone.
                    Err(error) if error.is_unread() => Err(StoreError::TargetUntold {
                        path: self.target.path().to_owned(),
                        point: at.slot,
                        source: Box::new(error),
                    }),
                    other => other.map(|()| false),
                },
                // What it may hold nobody can tell any more.
                Err(StoreError::NoSuchPoint { .. }) => {
                    let why = format!(
                        "nobody can tell whether somebody else wrote to it: more was written there than was noted, or its writes are counted anew, as \
                         after a boot; and point {}, which it held, is not retained any more",
                        at.slot
                    );
                    self.diverge(at, Vec::new(), why).map(|()| true)
                }
                Err(error) => Err(error),
            },
            // On its way it was written to by ourselves, and perhaps not only by us.
            (Looked::Written, _) => Ok(!mutation::on("a follower doubts nothing that it was writing")),
        }
    }

    /// Sentinels are not what they were in these regions.
    fn diverge_at(&mut self, at: LedgerPosition, regions: Vec<RegionIndex>) -> Result<()> {
        let first = regions.first().map_or_else(String::new, |region| format!(", the first is region {region}"));
        let why = format!(
            "somebody else wrote to it: of the regions that were looked at {} are not what they were{first}",
            regions.len()
        );
        self.diverge(at, regions, why)
    }

    /// `touched`: where a way that is under way writes; `None`: anywhere.
    fn look(&self, reader: &LazyPointReader, touched: Option<&RegionSet>) -> Result<Looked> {
        let geometry = reader.geometry();
        let key = self.key(reader);
        let is_at = matches!(self.following.stage, FollowStage::At(_));
        let known = geometry.resized(self.following.volume_bytes).ok();
        let mut changed = Vec::new();
        for (&number, digest) in &self.following.sentinels {
            let Some(known) = known.filter(|known| number < known.granule_count()) else { continue };
            let granule = GranuleIndex(number);
            let region = known.region_of(granule);
            // What is being written may be either.
            let moves = !is_at && touched.is_none_or(|touched| touched.contains(region));
            if !moves && self.sentinel(&known, key, granule)? != *digest && changed.last() != Some(&region) {
                changed.push(region);
            }
        }
        if !changed.is_empty() {
            changed.truncate(DIVERGED_NAMED_MAX);
            return Ok(Looked::Changed(changed));
        }
        // What somebody wrote and did not sync is not counted yet, and must not be counted as ours.
        self.target.sync().map_err(|e| self.failed("syncing", e))?;
        let seen = self.target.seen().map_err(|e| self.failed("looking at", e))?;
        Ok(match (&self.following.seen, seen) {
            // Where the kernel counts nothing it is the same whoever wrote, which is no worse than nothing to look at.
            (Some(before), Some(now)) if *before == now && (now.tells_of_writes() || is_at) => Looked::AsItWas,
            // Also when they cannot be compared, as after a boot: nobody knows who had it meanwhile.
            (Some(_), Some(_)) => Looked::Written,
            _ if is_at => Looked::AsItWas,
            _ => Looked::Written,
        })
    }

    fn key<'r>(&self, reader: &'r LazyPointReader) -> &'r [u8; 32] {
        reader.digest_key().expect("what is followed was opened with its keys")
    }

    fn sentinels(&self, geometry: &Geometry, key: &[u8; 32]) -> Result<BTreeMap<u64, String>> {
        let count = geometry.granule_count();
        let of = |bytes: u64| bytes.div_ceil(geometry.granule_bytes());
        let ends = (0..of(SENTINEL_ENDS_BYTES.0)).chain(count.saturating_sub(of(SENTINEL_ENDS_BYTES.1))..count);
        let between = (1..=SENTINELS_BETWEEN).map(|i| count / (SENTINELS_BETWEEN + 1) * i);
        let numbers = ends.chain(between).filter(|number| *number < count);
        numbers.map(|number| Ok((number, self.sentinel(geometry, key, GranuleIndex(number))?))).collect()
    }

    fn sentinel(&self, geometry: &Geometry, key: &[u8; 32], granule: GranuleIndex) -> Result<String> {
        let extent = geometry.bytes_of(GranuleRun { start: granule, count: 1 });
        let mut bytes = vec![0; extent.len as usize];
        self.target.read_at(extent.offset, &mut bytes).map_err(|e| self.failed("reading", e))?;
        Ok(data_encoding::HEXLOWER.encode(&granule_digest(key, granule, &bytes).0))
    }

    fn apply(
        &self,
        look: &FollowLook,
        again: &dyn Fn(Slot) -> Result<LazyPointReader>,
        progress: &(dyn Fn(FollowProgress) -> bool + Sync),
    ) -> Result<FollowReport> {
        let geometry = look.reader.geometry();
        let regions = look.regions();
        let go_on = || progress(FollowProgress { of: regions, ..FollowProgress::default() });
        if look.known.is_none() && !mutation::on("a follower believes the cache after a failed sync") {
            // † What could not be written before is in the cache as if it were on the disk, and would be found right.
            self.target.read_anew().map_err(|e| self.failed("reading", e))?;
        }
        let needs = match look.known {
            Some(known) => Needs::Newer(known),
            None if regions >= INDEXED_FROM => Needs::All,
            None => Needs::Regions,
        };
        let mut source = Source::new(&look.reader, again, needs, &go_on)?;
        let first = geometry.bytes_of(geometry.region_run(RegionIndex(0)));
        let work = Work { target: self.target, look, first, begun: Mutex::new(look.touched.is_some()), wrote: AtomicU64::new(0) };
        let all = geometry.all_regions();
        let written = |done| FollowProgress { done, of: regions, written_bytes: work.wrote.load(Ordering::Relaxed) };
        let each = |from: &Reading<'_>, region, buffers: &mut Buffers| work.region(from, region, buffers);
        match &look.touched {
            Some(touched) => self.each_region(&mut source, touched.ranges(), &each, &|done| progress(written(done)))?,
            // † What is filled for the first time does not look whole before it is: its beginning comes last.
            None => {
                let rest = RegionRange { start: RegionIndex(1), count: all.count.saturating_sub(1) };
                self.each_region(&mut source, [rest].into_iter(), &each, &|done| progress(written(done)))?;
                self.target.sync().map_err(|e| self.failed("syncing", e))?;
                let first = RegionRange { start: RegionIndex(0), count: all.count.min(1) };
                self.each_region(&mut source, [first].into_iter(), &each, &|done| progress(written(rest.count + done)))?;
            }
        }
        Ok(FollowReport { regions, written_bytes: work.wrote.into_inner() })
    }

    /// Where the target is not what a point is. `again` opens that point once more where merges laid its parts elsewhere meanwhile: it is gone on
    /// with from there.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`], [`StoreError::Stopped`]; [`StoreError::PartMerged`], where what `again` opened is of no more use than what was
    /// there before; what target and store say.
    pub fn differs(
        &self,
        reader: &LazyPointReader,
        again: &dyn Fn(Slot) -> Result<LazyPointReader>,
        progress: &(dyn Fn(FollowProgress) -> bool + Sync),
    ) -> Result<Differing> {
        reader.refuse_opaque()?;
        let all = reader.geometry().all_regions();
        let of = all.count;
        // † What was written a moment ago would be compared with itself.
        self.target.read_anew().map_err(|e| self.failed("reading", e))?;
        let go_on = || progress(FollowProgress { of, ..FollowProgress::default() });
        let mut source = Source::new(reader, again, Needs::All, &go_on)?;
        let found = Mutex::new(Differing::default());
        let each = |from: &Reading<'_>, region, buffers: &mut Buffers| {
            if !wrong_in(self.target, from.reader(), region, buffers)?.is_empty() {
                let mut found = found.lock().expect("nothing panics while it holds this lock");
                found.count += 1;
                found.regions.push(region);
                found.regions.sort_unstable();
                found.regions.truncate(DIVERGED_NAMED_MAX);
            }
            Ok(())
        };
        let heard = |done| progress(FollowProgress { done, of, written_bytes: 0 });
        self.each_region(&mut source, [all].into_iter(), &each, &heard)?;
        Ok(found.into_inner().expect("nothing panics while it holds this lock"))
    }

    fn each_region(
        &self,
        source: &mut Source<'_>,
        ranges: impl Iterator<Item = RegionRange> + Send,
        each: &(dyn Fn(&Reading<'_>, RegionIndex, &mut Buffers) -> Result<()> + Sync),
        progress: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<()> {
        // A point of a smaller volume has nothing beyond its end.
        let end = source.from.reader().geometry().region_count();
        // Those first that a merge took from under their thread.
        let left = Mutex::new((Vec::new(), ranges.flat_map(RegionRange::iter).filter(|region| region.0 < end)));
        let next = || {
            let (again, rest) = &mut *left.lock().expect("nothing panics while it holds this lock");
            again.pop().or_else(|| rest.next())
        };
        let (done, mut done_before) = (AtomicU64::new(0), 0);
        loop {
            let (from, stop, failed) = (&source.from, AtomicBool::new(false), Mutex::new(None));
            let worker = || {
                let mut buffers = Buffers { content: from.reader().content(), found: Vec::new() };
                while !stop.load(Ordering::Relaxed) {
                    let Some(region) = next() else { return };
                    let mut ended = each(from, region, &mut buffers);
                    if ended.is_ok() && !progress(done.fetch_add(1, Ordering::Relaxed) + 1) {
                        ended = Err(StoreError::Stopped);
                    }
                    let Err(error) = ended else { continue };
                    stop.store(true, Ordering::Relaxed);
                    let mut failed = failed.lock().expect("nothing panics while it holds this lock");
                    match error {
                        StoreError::PartMerged { .. } => {
                            left.lock().expect("nothing panics while it holds this lock").0.push(region);
                            failed.get_or_insert(error);
                        }
                        // What opening it again does not mend.
                        error => *failed = Some(error),
                    }
                }
            };
            match self.threads {
                1 => worker(),
                threads => thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker)))),
            }
            let done = done.load(Ordering::Relaxed);
            match failed.into_inner().expect("nothing panics while it holds this lock") {
                None => return Ok(()),
                // † Only where it helped: what is opened again may know no more than before.
                Some(error @ StoreError::PartMerged { .. }) if done > done_before => {
                    done_before = done;
                    source.reopen(error, &|| progress(done))?;
                }
                Some(error) => return Err(error),
            }
        }
    }
}

/// What must be known of a point before any region of it is read.
#[derive(Clone, Copy)]
enum Needs {
    /// Nothing: it is found out region by region.
    Regions,
    /// Where everything lies.
    All,
    /// Where what was published since lies, and nothing else is read.
    Newer(Slot),
}

/// What a point is read from now.
struct Reading<'r> {
    given: &'r LazyPointReader,
    /// Instead of it, once it is of no more use.
    later: Option<LazyPointReader>,
    newer: Option<VolumeImage>,
}

impl Reading<'_> {
    fn reader(&self) -> &LazyPointReader {
        self.later.as_ref().unwrap_or(self.given)
    }
}

/// What a point is read from. Merges lay its parts elsewhere, and what it holds is the same: so it can be opened again in the middle.
struct Source<'r> {
    from: Reading<'r>,
    again: &'r dyn Fn(Slot) -> Result<LazyPointReader>,
    needs: Needs,
}

impl<'r> Source<'r> {
    fn new(
        given: &'r LazyPointReader,
        again: &'r dyn Fn(Slot) -> Result<LazyPointReader>,
        needs: Needs,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let mut source = Self { from: Reading { given, later: None, newer: None }, again, needs };
        source.prepare(go_on).map(|()| source)
    }

    fn prepare(&mut self, go_on: &dyn Fn() -> bool) -> Result<()> {
        let reader = self.from.reader();
        match self.needs {
            Needs::Regions => {}
            Needs::All => reader.index_all(go_on)?,
            Needs::Newer(since) => self.from.newer = Some(reader.image_since(since, go_on)?.ok_or(StoreError::Stopped)?),
        }
        Ok(())
    }

    /// † What was read before counts only if it is of the very same point.
    fn reopen(&mut self, why: StoreError, go_on: &dyn Fn() -> bool) -> Result<()> {
        let later = (self.again)(self.from.given.point())?;
        later.refuse_opaque()?;
        if !later.is_same_point(self.from.given) {
            return Err(why);
        }
        self.from.later = Some(later);
        self.prepare(go_on)
    }
}

/// What a thread reads into.
struct Buffers {
    content: RegionContent,
    /// What the target holds of a region.
    found: Vec<u8>,
}

/// The runs of a region in which a target is not what a point is.
fn wrong_in(
    target: &dyn FollowTarget,
    reader: &LazyPointReader,
    region: RegionIndex,
    buffers: &mut Buffers,
) -> Result<Vec<(GranuleRun, Content)>> {
    let geometry = reader.geometry();
    let whole = geometry.bytes_of(geometry.region_run(region));
    let failed = |doing, error| StoreError::of_target(doing, target.path(), error);
    let digests = reader.digests_in(&*reader.region_image(region)?, region)?;
    buffers.found.resize(whole.len as usize, 0);
    if target.is_hole(whole).map_err(|e| failed("looking at", e))? {
        buffers.found.fill(0);
    } else {
        target.read_at(whole.offset, &mut buffers.found).map_err(|e| failed("reading", e))?;
    }
    let key = reader.digest_key().expect("what is followed was opened with its keys");
    Ok(differing(geometry, region, key, &digests, &buffers.found).0)
}

/// An apply under way.
struct Work<'w> {
    target: &'w dyn FollowTarget,
    look: &'w FollowLook,
    first: ByteExtent,
    /// Whether the beginning was taken away, where it must be. Nothing is written before.
    begun: Mutex<bool>,
    wrote: AtomicU64,
}

impl Work<'_> {
    fn region(&self, from: &Reading<'_>, region: RegionIndex, buffers: &mut Buffers) -> Result<()> {
        let reader = from.reader();
        let geometry = reader.geometry();
        // What is to be written, where that is known.
        match &from.newer {
            Some(newer) => reader.read_in(newer, region, &mut buffers.content, &|_| true)?,
            None => {
                let wrong = wrong_in(self.target, reader, region, buffers)?;
                if wrong.is_empty() {
                    return Ok(());
                }
                self.begin()?;
                let (image, content) = (reader.region_image(region)?, &mut buffers.content);
                if region == RegionIndex(0) && self.look.touched.is_none() {
                    reader.read_in(&image, region, content, &|_| true)?; // it was taken away
                } else {
                    let is_wrong = |run: &GranuleRun| wrong.iter().any(|(wrong, _)| wrong.overlaps(run));
                    reader.read_in(&image, region, content, &|extent| is_wrong(&extent.run))?;
                    content.runs = wrong;
                }
            }
        }
        let content = &buffers.content;
        let whole = geometry.bytes_of(geometry.region_run(region));
        for (run, kind) in &content.runs {
            let extent = geometry.bytes_of(*run);
            let failed = |doing, error| StoreError::of_target(doing, self.target.path(), error);
            match kind {
                Content::Data => {
                    let from = (extent.offset.0 - whole.offset.0) as usize;
                    let bytes = &content.bytes[from..from + extent.len as usize];
                    self.target.write_at(extent.offset, bytes).map_err(|e| failed("writing", e))?;
                }
                Content::Zero => self.target.zero(extent).map_err(|e| failed("zeroing", e))?,
                Content::Unreadable => {
                    let (volume, point) = (reader.volume().name.to_string(), reader.point());
                    return Err(StoreError::Degraded { volume, point, region, runs: 1, bytes: extent.len });
                }
            }
            self.wrote.fetch_add(extent.len, Ordering::Relaxed);
        }
        self.target.done(whole);
        Ok(())
    }

    fn begin(&self) -> Result<()> {
        let mut begun = self.begun.lock().expect("nothing panics while it holds this lock");
        if !*begun {
            self.target.begin(self.first).map_err(|e| StoreError::of_target("zeroing", self.target.path(), e))?;
            *begun = true;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;
