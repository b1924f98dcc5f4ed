//! Reading points: with no daemon running, or beside a running receiver.
//!
//! A reader of a directory shares `reader.lock` as long as it lives, so that nothing it found is deleted under it; in a bucket a point that is
//! open has a lease ([`crate::leases`]). It believes only what
//! follows from slot 0 of the ledger or from a checkpoint, and every granule that leaves [`PointReader::read_region`] was checked against the
//! digest that was computed where the source read it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_keys::{ContentKeys, Keeper};
use farside_layer::{Footer, FrameDecoder, FrameRef};
use farside_ledger::{Rows, State, VolumeMeta, group_id};
use farside_region::{
    ByteExtent, Geometry, GranuleIndex, GranuleRun, GroupId, LedgerPosition, Name, RecordDigest, RegionIndex, SealMode, Slot,
    Term, VolumeId, mutation,
};

use crate::aligned::AlignedBytes;
use crate::backend::{Backend, DirBackend, ObjectName, block_on, block_on_all};
use crate::cascade::OF_ANY_HISTORY;
use crate::error::{Result, StoreError, known};
use crate::follower::{FollowLook, FollowStage};
use crate::group::{DigestRun, digests_of};
use crate::head;
use crate::image::{GroupImage, VolumeImage};
use crate::index::{Content, Extent, PartNo};
use crate::keys::{self, Unlocking};
use crate::landing::Landing;
use crate::lazy::LazyImage;
use crate::leases::{self, Lease};
use crate::liveness::{Part, PartName};
use crate::locks::{ReaderLock, Readers};
use crate::names::GroupNames;
use crate::points::{self, PointInfo};
use crate::replay::{Replayed, Torn, replay, replay_to_open};
use crate::resting::RestingGroup;
use crate::segments::{FooterFault, Located, Segments};
use crate::store::{Listing, folders_in_landing, list_groups, read_group_description, read_store_description};

/// Payload bytes read from a segment at once.
const READ_BYTES_MAX: u64 = 4 << 20;

/// Of a region so many ranges are read at once, where that helps.
const PIECES_AT_ONCE: usize = 8;
/// What lies between two frames of a file is read with them if it is no more than this; where a request takes its time, than this.
const GAP_BYTES_MAX: (u64, u64) = (4 << 10, 64 << 10);

/// A range of a part, and what a region takes from it.
struct Piece {
    no: PartNo,
    footer: Arc<Footer>,
    frames: Vec<FrameRef>,
    /// Granules; the last run may end behind these frames.
    wanted: Vec<GranuleRun>,
    start: u64,
    len: u64,
}

/// A store, opened for reading.
#[derive(Debug)]
pub struct StoreReader {
    backend: Arc<dyn Backend>,
    readers: Readers,
    id: [u8; 16],
    given: Vec<Keeper>,
    _lock: ReaderLock,
}

/// One group of it, replayed.
#[derive(Debug)]
pub struct GroupReader {
    store: [u8; 16],
    readers: Readers,
    segments: Arc<Segments>,
    image: GroupImage,
    torn: Option<Torn>,
    unlocking: Unlocking,
    _lock: ReaderLock,
}

/// One volume of one point. `I`: what is known of where its granules lie; all of it, or what was needed ([`LazyImage`]).
#[derive(Debug)]
pub struct PointReader<I = VolumeImage> {
    pub(crate) segments: Arc<Segments>,
    pub(crate) volume: VolumeMeta,
    pub(crate) keys: ContentKeys,
    point: Slot,
    /// Of its record; `None`: replay has forgotten so old a one.
    digest: Option<RecordDigest>,
    geometry: Geometry,
    pub(crate) image: I,
    /// Those that the image uses, and perhaps others.
    parts: Rows<PartNo, Part>,
    _lock: ReaderLock,
    /// In a bucket.
    lease: Option<Lease>,
    deleted: Mutex<Deleted>,
}

/// What is known of why something that is needed is not there.
#[derive(Debug, Default)]
struct Deleted {
    /// Who took it.
    by: Option<Gone>,
    /// When that was asked last. The answer may change.
    asked_at: Option<Instant>,
}

/// Why something is not there that was.
#[derive(Clone, Copy, Debug)]
enum Gone {
    /// The point had been given up by that slot.
    Point(Slot),
    /// A merge took the part's place.
    Part,
}

/// The mistake of taking a lease last.
const LOOKED_BEFORE_LEASE: &str = "a cascade looks before it takes its lease";
/// The mistake of taking what is missing for damaged.
const LOOK_TRUSTED: &str = "a cascade trusts its look after its lease ran out";

/// The memory of so many slots is given back at once: that takes a millisecond.
const AT_ONCE_MAX: u64 = 4096;

/// And not again before this: it costs a replay.
const ASKED_AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(60) };

/// The content of one region, and the buffers to read another one into.
#[derive(Debug)]
pub struct RegionContent {
    /// All of the region's bytes; zeroes where nothing else is known.
    pub bytes: AlignedBytes,
    /// What they are, in order and without gaps between the first and the last.
    pub runs: Vec<(GranuleRun, Content)>,
    decoder: FrameDecoder,
    frame: Vec<u8>,
}

impl StoreReader {
    /// Opens the store in a directory.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::Version`]; what the file system says.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = DirBackend::open(path)?;
        let readers = Readers::Locked(dir.root().to_owned());
        Self::over(Arc::new(dir), readers)
    }

    /// Opens the store in a bucket. Each of its points that is opened is kept by a lease, unless nothing is deleted any more where it is
    /// ([`Backend::is_past`]); see [`PointReader::unkept`].
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::Version`]; what the service says.
    pub fn open_bucket(backend: Arc<dyn Backend>) -> Result<Self> {
        let readers = if backend.is_past() { Readers::None } else { Readers::Leased };
        Self::over(backend, readers)
    }

    fn over(backend: Arc<dyn Backend>, readers: Readers) -> Result<Self> {
        let id = read_store_description(&*backend)?;
        let lock = readers.share()?;
        Ok(Self { backend, readers, id, given: Vec::new(), _lock: lock })
    }

    /// With what unwraps the keys of encrypted volumes: of each whichever does.
    #[must_use]
    pub fn with_keepers(self, given: impl IntoIterator<Item = Keeper>) -> Self {
        Self { given: given.into_iter().collect(), ..self }
    }

    /// The store's id.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Its directory, without symbolic links; `None` where it is in a bucket.
    pub fn root(&self) -> Option<&Path> {
        match &self.readers {
            Readers::Locked(root) => Some(root),
            Readers::Leased | Readers::None => None,
        }
    }

    /// The medium.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The groups in it, as far as its folders can be looked into.
    ///
    /// # Errors
    /// Where none can be; [`StoreError::Vanished`].
    pub fn groups(&self) -> Result<Listing> {
        list_groups(&*self.backend)
    }

    /// The terms of which parts lie in a group's landing, where that is in the store.
    pub(crate) fn terms_in_landing(&self, names: &GroupNames) -> Result<BTreeSet<Term>> {
        let Some(root) = self.root() else { return Ok(BTreeSet::new()) };
        Landing::new(Arc::new(DirBackend::open(root)?), true, names).terms()
    }

    /// The groups that have a landing, where that is in the store.
    pub(crate) fn groups_in_landing(&self) -> Result<BTreeSet<GroupNames>> {
        self.root().map_or(Ok(BTreeSet::new()), |root| folders_in_landing(&root.join("landing")))
    }

    /// Replays a group's ledger. That of a bucket is searched and not listed.
    ///
    /// # Errors
    /// [`StoreError::NoSuchGroup`], [`StoreError::ForeignGroup`]; what the file system says.
    pub fn group(&self, names: &GroupNames) -> Result<GroupReader> {
        // Names of a directory cost nothing, and its files are lost one by one.
        let is_listed = matches!(self.readers, Readers::Locked(_));
        GroupReader::open(self, names, if is_listed { replay_each } else { head::replay })
    }

    /// The same for who opens a point: from as few objects as have all records since the newest checkpoint. What is damaged of others goes
    /// unseen, and keeps nobody from a point. In a bucket these are looked for, and not listed: whoever restores may have no leave for that.
    ///
    /// # Errors
    /// Those of [`StoreReader::group`].
    pub fn group_to_open(&self, names: &GroupNames) -> Result<GroupReader> {
        let is_listed = matches!(self.readers, Readers::Locked(_));
        GroupReader::open(self, names, if is_listed { replay_to_open } else { head::replay_to_open })
    }

    /// The same, from the names of all records, also in a bucket: no hole in the ledger goes unseen, however long.
    ///
    /// # Errors
    /// Those of [`StoreReader::group`].
    pub fn group_as_listed(&self, names: &GroupNames) -> Result<GroupReader> {
        GroupReader::open(self, names, replay_each)
    }
}

/// Whether a group has one, though nothing else may say that there is such a group.
fn has_ledger(backend: &dyn Backend, names: &GroupNames) -> Result<bool> {
    let has = |prefix: ObjectName| match has_any(backend, &prefix) {
        // Who may read only, and not list, has named a group that is not there, as far as he can know.
        Err(StoreError::RemoteDenied { .. }) => Ok(false),
        other => other,
    };
    Ok(has(names.ledger())? || has(names.checkpoints())?)
}

fn has_any(backend: &dyn Backend, prefix: &ObjectName) -> Result<bool> {
    Ok(!block_on(backend.list(Some(prefix), None, 1))?.objects.is_empty())
}

/// Every object by itself, by all names.
fn replay_each(backend: &dyn Backend, names: &GroupNames, group: GroupId) -> Result<Replayed> {
    replay(backend, names, group, |_| {})
}

impl GroupReader {
    fn open(
        store: &StoreReader,
        names: &GroupNames,
        replay: fn(&dyn Backend, &GroupNames, GroupId) -> Result<Replayed>,
    ) -> Result<Self> {
        let (backend, readers) = (&store.backend, &store.readers);
        let lock = readers.share()?;
        let id = match read_group_description(&**backend, names) {
            // It says nothing that the names do not, and no record of another group verifies under what follows from them.
            Err(StoreError::NoSuchGroup { .. }) if has_ledger(&**backend, names)? => group_id(&names.source, &names.group),
            Err(StoreError::NoSuchGroup { source_name, group, .. }) => {
                let there = list_groups(&**backend).unwrap_or_default();
                return Err(StoreError::NoSuchGroup { source_name, group, known: known(there.groups) });
            }
            other => other?,
        };
        let replayed = replay(&**backend, names, id)?;
        let segments = Arc::new(Segments::new(Arc::clone(backend), names.clone()));
        let unlocking = Unlocking::new(store.given.clone());
        let (readers, Replayed { image, torn, .. }) = (readers.clone(), replayed);
        Ok(Self::awake(RestingGroup { store: store.id, readers, segments, image, torn, unlocking }, lock))
    }

    /// One that was looked at under that lock.
    pub(crate) fn awake(group: RestingGroup, lock: ReaderLock) -> Self {
        let RestingGroup { store, readers, segments, image, torn, unlocking } = group;
        Self { store, readers, segments, image, torn, unlocking, _lock: lock }
    }

    /// Keeps nothing from being deleted any more, but for points that are open: for who waits for the next one.
    pub fn rest(self) -> RestingGroup {
        let Self { store, readers, segments, image, torn, unlocking, _lock } = self;
        RestingGroup { store, readers, segments, image, torn, unlocking }
    }

    /// The way of a target to a member of a point, which is opened as by [`GroupReader::point_reader_lazily`].
    ///
    /// # Errors
    /// Those of that, and of [`FollowLook::new`].
    pub fn follow_look(&self, point: Slot, volume: VolumeId, stage: &FollowStage) -> Result<FollowLook> {
        FollowLook::new(self.state(), self.point_reader_lazily(point, volume)?, stage)
    }

    /// Source and group.
    pub fn names(&self) -> &GroupNames {
        &self.segments.names
    }

    /// The replayed ledger.
    pub fn state(&self) -> &State {
        self.image.state()
    }

    /// The slot that does not verify, if there is one; the points before it are listed all the same.
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// Whether content lies there of which the ledger says nothing at all. † Then it is lost, and the group looks like one that is new.
    ///
    /// # Errors
    /// What the file system or the service says.
    pub fn lacks_ledger(&self) -> Result<bool> {
        if self.torn.is_some() || self.state().next_slot() != Slot(0) {
            return Ok(false);
        }
        let (backend, names) = (&*self.segments.backend, &self.segments.names);
        Ok(has_any(backend, &names.segments())? || has_any(backend, &names.packs())?)
    }

    /// Image, segments and the torn slot, for a check. The caller holds a reader's lock of its own.
    pub(crate) fn into_parts(self) -> (GroupImage, Arc<Segments>, Option<Torn>, Unlocking) {
        (self.image, self.segments, self.torn, self.unlocking)
    }

    /// The id of a volume.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVolume`].
    pub fn volume(&self, name: &Name) -> Result<VolumeId> {
        let found = self.state().volumes().find(|(_, v)| v.meta().name == *name);
        found.map(|(id, _)| id).ok_or_else(|| StoreError::NoSuchVolume {
            volume: name.to_string(),
            known: known(self.state().volumes().map(|(_, v)| &v.meta().name)),
        })
    }

    /// The retained points, oldest first.
    pub fn points(&self) -> Vec<PointInfo> {
        points::list(&self.image).collect()
    }

    /// Whether a volume's content can be read with what was given to unwrap its key.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`]; what the file system says.
    pub fn unlock(&self, volume: VolumeId) -> Result<()> {
        self.keys(volume).map(drop)
    }

    fn keys(&self, volume: VolumeId) -> Result<ContentKeys> {
        let meta = self.state().volume(volume).ok_or(StoreError::UnknownVolume(volume))?.meta();
        self.unlocking.keys(&*self.segments.backend, &self.segments.names, meta)
    }

    /// Opens a member of a point.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`], [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`], [`StoreError::Corrupt`]; what the file system
    /// says.
    pub fn point_reader(&self, point: Slot, volume: VolumeId) -> Result<PointReader> {
        let keys = self.keys(volume)?;
        Ok(PointReader { keys, ..PointReader::open(&self.readers, &self.image, &self.segments, point, volume)? })
    }

    /// The same, at once however many layers the point lies in: of each region is looked up when it is read where its content lies, and
    /// only then is damage of a footer met.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`], [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`]; what the file system says.
    pub fn point_reader_lazily(&self, point: Slot, volume: VolumeId) -> Result<PointReader<LazyImage>> {
        let keys = self.keys(volume)?;
        Ok(PointReader { keys, ..PointReader::open_lazily(&self.readers, &self.image, &self.segments, point, volume)? })
    }

    /// The same for whoever needs nothing else of the group: what was replayed of a long history is not copied, and given back meanwhile.
    ///
    /// # Errors
    /// Those of [`GroupReader::point_reader_lazily`].
    pub fn into_point_reader_lazily(mut self, point: Slot, volume: VolumeId) -> Result<PointReader<LazyImage>> {
        let keys = self.keys(volume)?;
        let mut begun = Begun::of(&self.readers, &self.image, &self.segments, point, volume)?;
        if let Some(newer) = begun.newer.take() {
            self.image = newer;
        }
        let at_hand = self.image.is_head(volume, point).then(|| self.image.head(volume).cloned().unwrap_or_default());
        let living = self.image.parts().passing_that_live_at(volume, point);
        let lazy = LazyImage::new(begun.meta.geometry, self.image.state(), living, self.image.parts().len(), at_hand);
        let parts = self.image.take_parts();
        let segments = Arc::clone(&self.segments);
        if self.state().next_slot().0 > AT_ONCE_MAX {
            // Where there can be no thread it is given back here.
            let _ = std::thread::Builder::new().name("give back".into()).spawn(move || drop(self));
        }
        Ok(PointReader { keys, ..begun.opened(lazy, parts, segments) })
    }

    /// As [`GroupReader::point_reader`], also when some footer of it is damaged, or no key of it was given: for [`verify_point`](crate::verify_point).
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`]; [`StoreError::KeyNeeded`] where a key was given that does not fit; what the file
    /// system says.
    pub fn point_reader_as_it_is(&self, point: Slot, volume: VolumeId) -> Result<PointReader> {
        let meta = self.state().volume(volume).ok_or(StoreError::UnknownVolume(volume))?.meta();
        let keys = self.unlocking.keys_if_given(&*self.segments.backend, &self.segments.names, meta)?;
        PointReader { keys, ..PointReader::open_lazily(&self.readers, &self.image, &self.segments, point, volume)? }.indexed()
    }

    /// The objects in which the parts of a point's volumes lie, and how many bytes of each they need.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`].
    pub(crate) fn objects_of(&self, point: Slot) -> Result<BTreeMap<ObjectName, u64>> {
        let found = self.state().points().get(&point).ok_or_else(|| no_such_point(point))?;
        let mut objects = BTreeMap::new();
        for (name, volume) in found.members.iter().filter_map(|member| {
            let volume = member.key.volume;
            Some((&self.state().volume(volume)?.meta().name, volume))
        }) {
            for (_, part) in self.image.parts().passing_that_live_at(volume, point) {
                let located = self.segments.locate(name, &part);
                let (end, needed) = (located.byte(part.bytes), objects.entry(located.object).or_default());
                *needed = end.max(*needed);
            }
        }
        Ok(objects)
    }
}

impl PointReader<LazyImage> {
    /// Opens a member of a point that the caller keeps retained, by a group's image and from any medium: for whoever has no group of a store
    /// open, as the simulator.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`]; what the medium says.
    pub fn over(
        image: &GroupImage,
        backend: &Arc<dyn Backend>,
        names: &GroupNames,
        point: Slot,
        volume: VolumeId,
    ) -> Result<Self> {
        let segments = Arc::new(Segments::new(Arc::clone(backend), names.clone()));
        Self::open_lazily(&Readers::None, image, &segments, point, volume)
    }

    pub(crate) fn open_lazily(
        readers: &Readers,
        image: &GroupImage,
        segments: &Arc<Segments>,
        point: Slot,
        volume: VolumeId,
    ) -> Result<Self> {
        let begun = Begun::of(readers, image, segments, point, volume)?;
        let image = begun.newer.as_ref().unwrap_or(image);
        let parts: Rows<PartNo, Part> =
            image.parts().passing_that_live_at(volume, point).map(|(no, part)| (no, part.clone())).collect();
        // Whoever owns the group looks at what is new, and has no time to copy all of it.
        let at_hand = (!matches!(readers, Readers::None) && image.is_head(volume, point))
            .then(|| image.head(volume).cloned().unwrap_or_default());
        let lazy = LazyImage::new(begun.meta.geometry, image.state(), parts.passing(), parts.len(), at_hand);
        Ok(begun.opened(lazy, parts, Arc::clone(segments)))
    }
}

fn no_such_point(point: Slot) -> StoreError {
    StoreError::NoSuchPoint { point: point.to_string(), why: "it is not in the ledger, or was pruned".into() }
}

/// A point that somebody opens, before it is known where its granules lie.
struct Begun {
    lock: ReaderLock,
    point: Slot,
    digest: Option<RecordDigest>,
    meta: VolumeMeta,
    geometry: Geometry,
    lease: Option<Lease>,
    /// What the group came to meanwhile, if that matters.
    newer: Option<GroupImage>,
}

impl Begun {
    fn of(readers: &Readers, image: &GroupImage, segments: &Arc<Segments>, point: Slot, volume: VolumeId) -> Result<Self> {
        let lock = readers.share()?;
        let state = image.state();
        let found = state.points().get(&point).ok_or_else(|| no_such_point(point))?;
        let meta = state.volume(volume).ok_or(StoreError::UnknownVolume(volume))?.meta().clone();
        let member = found.members.iter().find(|m| m.key.volume == volume);
        let member = member.ok_or_else(|| StoreError::NotAMember { volume: meta.name.to_string(), point })?;
        let geometry = meta.geometry.resized(member.volume_bytes);
        let geometry =
            geometry.map_err(|e| StoreError::Inconsistent { group: segments.names.to_string(), why: e.to_string() })?;
        let look = || leases::given_up_since(&*segments.backend, &segments.names, state);
        let looked_first = matches!(readers, Readers::Leased) && mutation::on(LOOKED_BEFORE_LEASE);
        let too_soon = if looked_first { look()? } else { None };
        let lease = match readers {
            Readers::Locked(_) | Readers::None => None,
            Readers::Leased => Some(Lease::take(&segments.backend, &segments.names, &meta.name, point)?),
        };
        let newer = match &lease {
            Some(_) if looked_first => too_soon,
            Some(lease) if lease.unkept().is_none() && !mutation::on("L4 a lease without a look at the ledger") => look()?,
            _ => None,
        };
        let known = state.digest_at(point);
        let state = newer.as_ref().unwrap_or(image).state();
        if let Some(lease) = &lease {
            lease.goes_by(state.next_slot());
        }
        // † Where the store went back to an earlier moment, another history may have come to another point in that slot.
        let is_there = state.points().contains_key(&point) && (state.digest_at(point) == known || mutation::on(OF_ANY_HISTORY));
        if let (false, Some(slot)) = (is_there, state.head()) {
            return Err(StoreError::PointDeleted { volume: meta.name.to_string(), point, slot });
        }
        Ok(Self { lock, point, digest: known, meta, geometry, lease, newer })
    }

    fn opened<I>(self, image: I, parts: Rows<PartNo, Part>, segments: Arc<Segments>) -> PointReader<I> {
        let Self { lock, point, digest, meta, geometry, lease, newer: _ } = self;
        let (keys, deleted) = ((&meta.digest_key).into(), Mutex::default());
        PointReader { segments, volume: meta, keys, point, digest, geometry, image, parts, _lock: lock, lease, deleted }
    }
}

impl PointReader {
    pub(crate) fn open(
        readers: &Readers,
        image: &GroupImage,
        segments: &Arc<Segments>,
        point: Slot,
        volume: VolumeId,
    ) -> Result<Self> {
        let reader = PointReader::open_lazily(readers, image, segments, point, volume)?.indexed()?;
        reader.refuse_unknown()?;
        Ok(reader)
    }

    /// A point of which a footer is damaged, and nothing newer lies over all that it may have held.
    fn refuse_unknown(&self) -> Result<()> {
        let Some(extent) = self.image.unknown.extents(self.geometry.whole()).next() else { return Ok(()) };
        Err(self.unknown(&extent, self.geometry.region_of(extent.run.start)))
    }

    /// What the point holds in a run, ascending. Gaps are absent, which a sound store does not have.
    pub fn extents(&self, run: GranuleRun) -> impl Iterator<Item = Extent> + '_ {
        self.image.index.extents(run)
    }

    /// The first slot at which anything is there of what a region holds, or may hold.
    pub(crate) fn born(&self, region: RegionIndex) -> Slot {
        let run = self.geometry.region_run(region);
        let parts = self.image.unknown.extents(run).chain(self.image.index.extents(run)).map(|extent| extent.part);
        let born = parts.map(|no| self.parts.get(&no).map_or(Slot(0), |part| part.born));
        born.min().filter(|_| self.image.index.first_absent(run).is_none()).unwrap_or(Slot(0))
    }

    /// Takes out the parts that merges wrote and that were met damaged since, by this reader and those of the same group: to be told to
    /// whoever deletes, see [`GroupStore::spoil`](crate::GroupStore::spoil).
    pub fn take_spoiled(&self) -> BTreeSet<PartName> {
        self.segments.take_spoiled()
    }

    /// The first granule of which no layer says anything; `None` in a sound store.
    pub fn first_absent(&self) -> Option<GranuleIndex> {
        self.image.index.first_absent(self.geometry.whole())
    }

    /// Granules that have content, and that the source could not read.
    pub fn granule_counts(&self) -> (u64, u64) {
        let of = |content| self.extents(self.geometry.whole()).filter(|e| e.content == content).map(|e| e.run.count).sum();
        (of(Content::Data), of(Content::Unreadable))
    }

    /// Whether a region is zeroes throughout, without reading anything.
    pub fn is_zero(&self, region: RegionIndex) -> bool {
        self.image.is_zero(self.geometry.region_run(region))
    }

    /// Reads a region; every data granule is checked against its digest.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names volume, point, region and segment; [`StoreError::Incomplete`] a region of which no layer
    /// says anything.
    ///
    /// # Panics
    /// When the region is beyond the volume.
    pub fn read_region(&self, region: RegionIndex, content: &mut RegionContent) -> Result<()> {
        self.refuse_opaque()?;
        self.verify_region(region, content)
    }

    /// Checks a region as [`PointReader::read_region`] does, as far as that can be done with the keys that are here: of what cannot be
    /// decrypted, that it is what was published. `content.bytes` is of no use afterwards.
    ///
    /// # Errors
    /// See [`PointReader::read_region`].
    ///
    /// # Panics
    /// When the region is beyond the volume.
    pub(crate) fn verify_region(&self, region: RegionIndex, content: &mut RegionContent) -> Result<()> {
        self.verify_in(&self.image, region, content)
    }

    /// Reads what is left of a damaged region, frame by frame; says what is lost, ascending: zeroes are in its place.
    ///
    /// # Errors
    /// What the file system says, other than about one file.
    ///
    /// # Panics
    /// When the region is beyond the volume.
    pub fn salvage_region(&self, region: RegionIndex, content: &mut RegionContent) -> Result<Vec<GranuleRun>> {
        self.refuse_opaque()?;
        self.salvage_in(&self.image, region, content)
    }

    /// What a region holds, with the digests of its data, in order and without gaps.
    ///
    /// # Errors
    /// As [`PointReader::read_region`], as far as can be told without reading content.
    ///
    /// # Panics
    /// When the region is beyond the volume.
    pub fn region_digests(&self, region: RegionIndex) -> Result<Vec<DigestRun>> {
        self.digests_in(&self.image, region)
    }
}

impl<I> PointReader<I> {
    /// The same for somebody who knows that a pin keeps the point since before this was opened: deletions are not held off any more. Its
    /// image names what the point holds and nothing else, so all of that is kept; what it was made from need not be.
    #[must_use]
    pub fn kept_by_a_pin(self) -> Self {
        Self { _lock: ReaderLock::none(), lease: None, ..self }
    }

    /// A part of the image.
    pub(crate) fn part(&self, no: PartNo) -> &Part {
        self.parts.get(&no).expect("the image uses only parts that live at its point")
    }

    pub(crate) fn with_image<J>(self, image: J) -> PointReader<J> {
        let Self { segments, volume, keys, point, digest, geometry, image: _, parts, _lock, lease, deleted } = self;
        PointReader { segments, volume, keys, point, digest, geometry, image, parts, _lock, lease, deleted }
    }

    fn unknown(&self, extent: &Extent, region: RegionIndex) -> StoreError {
        self.corrupt(extent.part, region, "its footer is damaged, or the file is missing".into())
    }

    /// The volume.
    pub fn volume(&self) -> &VolumeMeta {
        &self.volume
    }

    /// What keys the granule digests, if that is known here: see [`PointReader::is_opaque`].
    pub fn digest_key(&self) -> Option<&[u8; 32]> {
        self.keys.digest_key()
    }

    /// The keys of the volume's content, or that they are not here.
    pub fn keys(&self) -> &ContentKeys {
        &self.keys
    }

    /// Whether the volume is encrypted and its keys are not here. It can be verified then, and not read.
    pub fn is_opaque(&self) -> bool {
        matches!(self.keys, ContentKeys::Opaque)
    }

    /// Whether the volume is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.keys.is_sealed()
    }

    /// How it is, if it is.
    pub fn seal_mode(&self) -> Option<SealMode> {
        self.volume.digest_key.seal().map(|seal| seal.mode)
    }

    /// Whether its group's ledger, of which `state` is what replay came to, went through a position.
    pub(crate) fn went_through(&self, state: &State, position: &LedgerPosition) -> Result<bool> {
        self.segments.went_through(state, position)
    }

    /// The point.
    pub fn point(&self) -> Slot {
        self.point
    }

    /// Whether another one reads the same volume at the same point for sure, and so the same bytes: of the same history.
    pub(crate) fn is_same_point(&self, other: &Self) -> bool {
        let is_known = self.digest.is_some() && self.digest == other.digest;
        is_known && (self.point, self.volume.id) == (other.point, other.volume.id)
    }

    /// Why nothing keeps what the point needs from being deleted, if that is so: in a bucket, where we may not write. If retention
    /// gives the point up meanwhile, there is a day left to read it, as the age clock of its ledger goes.
    pub fn unkept(&self) -> Option<String> {
        self.lease.as_ref()?.unkept()
    }

    /// How many requests are worth having under way at once, where each takes its time: in a bucket.
    pub fn requests_at_once(&self) -> Option<usize> {
        self.segments.backend.requests_at_once()
    }

    /// Shape and size of the volume in this point.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Buffers for [`PointReader::read_region`]; one per thread.
    pub fn content(&self) -> RegionContent {
        let decoder = FrameDecoder::new(&self.keys);
        RegionContent { bytes: AlignedBytes::default(), runs: Vec::new(), decoder, frame: Vec::new() }
    }

    /// Refuses what cannot be decrypted here: zeroes in its place would be a lie.
    ///
    /// # Errors
    /// [`StoreError::KeyNeeded`]; what the file system says.
    pub fn refuse_opaque(&self) -> Result<()> {
        let Some(seal) = self.volume.digest_key.seal().filter(|_| self.is_opaque()) else { return Ok(()) };
        let wrappings = keys::wrappings(&*self.segments.backend, &self.segments.names)?;
        Err(keys::needed(&self.volume, seal, &wrappings, "no key was given".to_owned()))
    }

    /// Checks a region that lies as its image says.
    pub(crate) fn verify_in(&self, image: &VolumeImage, region: RegionIndex, content: &mut RegionContent) -> Result<()> {
        self.refuse_gaps(image, region)?;
        self.read_in(image, region, content, &|_| true)
    }

    /// Reads some extents of a region as an image has them, which need not say anything of the rest: `content.runs` names no other.
    pub(crate) fn read_in(
        &self,
        image: &VolumeImage,
        region: RegionIndex,
        content: &mut RegionContent,
        wants: &dyn Fn(&Extent) -> bool,
    ) -> Result<()> {
        let run = self.geometry.region_run(region);
        if let Some(extent) = image.unknown.extents(run).next() {
            return Err(self.unknown(&extent, region));
        }
        content.runs.clear();
        content.bytes.resize(self.geometry.bytes_of(run).len as usize);
        let read = self.read_extents(image, region, content, wants);
        if read.is_err() {
            content.bytes.fill(0); // it may hold another region's content
        }
        read
    }

    /// The same into bytes that hold anything.
    fn read_extents(
        &self,
        image: &VolumeImage,
        region: RegionIndex,
        content: &mut RegionContent,
        wants: &dyn Fn(&Extent) -> bool,
    ) -> Result<()> {
        let run = self.geometry.region_run(region);
        let first_byte = self.geometry.bytes_of(run).offset.0;
        // What no data comes to is zeroes; the rest is written below, all of it.
        let mut clear = |from: GranuleIndex, to: GranuleIndex| {
            if from >= to {
                return;
            }
            let extent = self.geometry.bytes_of(GranuleRun { start: from, count: to.0 - from.0 });
            let at = (extent.offset.0 - first_byte) as usize;
            content.bytes[at..at + extent.len as usize].fill(0);
        };
        let mut zero_from = run.start;
        let mut by_part: BTreeMap<PartNo, Vec<GranuleRun>> = BTreeMap::new();
        for extent in image.index.extents(run).filter(wants) {
            match content.runs.last_mut() {
                Some((last, kind)) if *kind == extent.content && last.end() == extent.run.start => last.count += extent.run.count,
                _ => content.runs.push((extent.run, extent.content)),
            }
            if extent.content == Content::Data {
                by_part.entry(extent.part).or_default().push(extent.run);
                clear(zero_from, extent.run.start);
                zero_from = extent.run.end();
            }
        }
        clear(zero_from, run.end());
        let mut pieces = Vec::new();
        for (no, wanted) in by_part {
            self.plan_part(region, no, &wanted, &mut pieces)?;
            // No more footers in memory than that.
            if pieces.len() >= PIECES_AT_ONCE {
                self.read_pieces(region, &std::mem::take(&mut pieces), content)?;
            }
        }
        self.read_pieces(region, &pieces, content)
    }

    /// A region of which something is not known.
    fn refuse_gaps(&self, image: &VolumeImage, region: RegionIndex) -> Result<()> {
        let run = self.geometry.region_run(region);
        if let Some(extent) = image.unknown.extents(run).next() {
            return Err(self.unknown(&extent, region));
        }
        if image.index.first_absent(run).is_some() {
            return Err(StoreError::Incomplete { volume: self.volume.name.to_string(), point: self.point, region });
        }
        Ok(())
    }

    /// What a region holds that lies as its image says; see [`PointReader::region_digests`].
    pub(crate) fn digests_in(&self, image: &VolumeImage, region: RegionIndex) -> Result<Vec<DigestRun>> {
        self.refuse_gaps(image, region)?;
        let mut runs = Vec::new();
        for extent in image.index.extents(self.geometry.region_run(region)) {
            let granules = extent.run.count;
            runs.push(match extent.content {
                Content::Zero => DigestRun::Zero { granules },
                Content::Unreadable => DigestRun::Unreadable { granules },
                Content::Data => {
                    let part = self.part(extent.part);
                    let footer = self.segments.footer(&self.volume.name, part).map_err(|fault| match fault {
                        FooterFault::Damaged(why) => self.corrupt(extent.part, region, why),
                        FooterFault::Store(error) => error,
                    })?;
                    let digests = digests_of(&footer, extent.run);
                    let missing = || self.corrupt(extent.part, region, format!("no frame holds granule {}", extent.run.start));
                    DigestRun::Data(digests.ok_or_else(missing)?)
                }
            });
        }
        Ok(runs)
    }

    /// Reads what is left of it.
    pub(crate) fn salvage_in(
        &self,
        image: &VolumeImage,
        region: RegionIndex,
        content: &mut RegionContent,
    ) -> Result<Vec<GranuleRun>> {
        let whole = self.geometry.region_run(region);
        let region_bytes = self.geometry.bytes_of(whole);
        content.runs.clear();
        content.bytes.reset(region_bytes.len as usize);
        let mut lost: Vec<GranuleRun> = Vec::new();
        let mut at = whole.start;
        for extent in image.index.extents(whole) {
            if at < extent.run.start {
                let gap = GranuleRun { start: at, count: extent.run.start.0 - at.0 };
                content.runs.push((gap, Content::Zero));
                lost.push(gap);
            }
            at = extent.run.end();
            content.runs.push((extent.run, extent.content));
            if extent.content == Content::Data {
                self.salvage_extent(region, &extent, content, &mut lost)?;
            }
        }
        if at < whole.end() {
            let gap = GranuleRun { start: at, count: whole.end().0 - at.0 };
            content.runs.push((gap, Content::Zero));
            lost.push(gap);
        }
        // What a damaged part may have written over what was read.
        for extent in image.unknown.extents(whole) {
            let bytes = self.geometry.bytes_of(extent.run);
            let from = (bytes.offset.0 - region_bytes.offset.0) as usize;
            content.bytes[from..from + bytes.len as usize].fill(0);
            lost.push(extent.run);
        }
        lost.sort_by_key(|run| run.start);
        let mut merged: Vec<GranuleRun> = Vec::new();
        for run in lost {
            match merged.last_mut() {
                Some(last) if last.end() >= run.start => last.count = last.end().max(run.end()).0 - last.start.0,
                _ => merged.push(run),
            }
        }
        Ok(merged)
    }

    fn salvage_extent(
        &self,
        region: RegionIndex,
        extent: &Extent,
        content: &mut RegionContent,
        lost: &mut Vec<GranuleRun>,
    ) -> Result<()> {
        let part = self.part(extent.part);
        let footer = match self.segments.footer(&self.volume.name, part) {
            Ok(footer) => footer,
            Err(FooterFault::Damaged(why)) => match self.corrupt(extent.part, region, why) {
                StoreError::Corrupt { .. } => {
                    lost.push(extent.run);
                    return Ok(());
                }
                gone => return Err(gone),
            },
            Err(FooterFault::Store(error)) => return Err(error),
        };
        let mut at = extent.run.start;
        while at < extent.run.end() {
            let end = footer.frame_of(at).map_or(extent.run.end(), |frame| frame.run.end().min(extent.run.end()));
            let piece = GranuleRun { start: at, count: end.0 - at.0 };
            match self.read_part(region, extent.part, &[piece], content) {
                Ok(()) => {}
                Err(StoreError::Corrupt { .. }) => lost.push(piece),
                Err(error) => return Err(error),
            }
            at = end;
        }
        Ok(())
    }

    /// Copies what the region takes from one part.
    fn read_part(&self, region: RegionIndex, no: PartNo, wanted: &[GranuleRun], content: &mut RegionContent) -> Result<()> {
        let mut pieces = Vec::new();
        self.plan_part(region, no, wanted, &mut pieces)?;
        self.read_pieces(region, &pieces, content)
    }

    /// What is to be read of one part for a region: neighbours in the file at once.
    fn plan_part(&self, region: RegionIndex, no: PartNo, wanted: &[GranuleRun], pieces: &mut Vec<Piece>) -> Result<()> {
        let part = self.part(no);
        let footer = self.segments.footer(&self.volume.name, part).map_err(|fault| match fault {
            FooterFault::Damaged(why) => self.corrupt(no, region, why),
            FooterFault::Store(error) => error,
        })?;
        let mut frames: Vec<FrameRef> = Vec::new();
        for run in wanted {
            let mut at = run.start;
            while at < run.end() {
                let frame = footer.frame_of(at).filter(|f| f.stored_bytes > 0);
                let frame = frame.ok_or_else(|| self.corrupt(no, region, format!("no frame holds granule {at}")))?;
                at = frame.run.end();
                if frames.last() != Some(frame) {
                    frames.push(*frame);
                }
            }
        }
        let gap_max = if self.requests_at_once().is_some() { GAP_BYTES_MAX.1 } else { GAP_BYTES_MAX.0 };
        let mut frames = &frames[..];
        while let Some(first) = frames.first() {
            let start = u64::from(first.offset);
            let end_of = |f: &FrameRef| u64::from(f.offset) + u64::from(f.stored_bytes);
            let mut count = 1;
            while count < frames.len()
                && u64::from(frames[count].offset) <= end_of(&frames[count - 1]) + gap_max
                && end_of(&frames[count]) - start <= READ_BYTES_MAX
            {
                count += 1;
            }
            let (now, later) = frames.split_at(count);
            let first_wanted = wanted.partition_point(|run| run.end() <= first.run.start);
            let wanted_end = wanted.partition_point(|run| run.start < now[count - 1].run.end());
            pieces.push(Piece {
                no,
                footer: Arc::clone(&footer),
                frames: now.to_vec(),
                wanted: wanted[first_wanted..wanted_end].to_vec(),
                start,
                len: end_of(&now[count - 1]) - start,
            });
            frames = later;
        }
        Ok(())
    }

    /// Reads pieces, several at once as far as [`READ_BYTES_MAX`] lets them, and copies what the region takes from them.
    fn read_pieces(&self, region: RegionIndex, pieces: &[Piece], content: &mut RegionContent) -> Result<()> {
        let mut left = pieces;
        while let Some(first) = left.first() {
            let (mut count, mut bytes) = (1, first.len);
            while count < left.len().min(PIECES_AT_ONCE) && bytes + left[count].len <= READ_BYTES_MAX {
                bytes += left[count].len;
                count += 1;
            }
            let (now, later) = left.split_at(count);
            let named: Vec<(Located, &Piece)> = now.iter().map(|piece| (self.located(piece.no), piece)).collect();
            let get = |(at, piece): &(Located, &Piece)| (at.object.clone(), at.byte(piece.start), piece.len);
            let named: Vec<(ObjectName, u64, u64)> = named.iter().map(get).collect();
            let asked = named.iter().map(|(name, start, len)| self.segments.backend.get_range(name, *start, *len)).collect();
            for (piece, stored) in now.iter().zip(block_on_all(asked)) {
                self.copy_piece(region, piece, stored, content)?;
            }
            left = later;
        }
        Ok(())
    }

    fn located(&self, no: PartNo) -> Located {
        let part = self.part(no);
        self.segments.locate(&self.volume.name, part)
    }

    fn copy_piece(&self, region: RegionIndex, piece: &Piece, stored: Result<Bytes>, content: &mut RegionContent) -> Result<()> {
        let no = piece.no;
        let stored = match stored {
            Ok(stored) if stored.len() as u64 == piece.len => stored,
            Ok(_) => return Err(self.corrupt(no, region, "it is cut off".into())),
            Err(StoreError::NotFound { .. }) => return Err(self.corrupt(no, region, "it is missing".into())),
            Err(StoreError::Unreadable { source, .. }) => {
                return Err(self.corrupt(no, region, format!("it cannot be read: {source}")));
            }
            Err(error) => return Err(error),
        };
        let mut wanted = &piece.wanted[..];
        for frame in &piece.frames {
            let from = (u64::from(frame.offset) - piece.start) as usize;
            let payload = &stored[from..from + frame.stored_bytes as usize];
            if self.is_opaque() {
                let checked = content.decoder.check(&piece.footer, frame, payload, &mut content.frame);
                checked.map_err(|e| self.corrupt(no, region, e.to_string()))?;
                continue;
            }
            if let Some(place) = self.place_of(region, &piece.footer, frame, wanted) {
                let decoded = content.decoder.decode_to(&piece.footer, frame, payload, &mut content.bytes[place]);
                decoded.map_err(|e| self.corrupt(no, region, e.to_string()))?;
                if wanted[0].end() == frame.run.end() {
                    wanted = &wanted[1..];
                }
                continue;
            }
            let decoded = content.decoder.decode(&piece.footer, frame, payload, &mut content.frame);
            decoded.map_err(|e| self.corrupt(no, region, e.to_string()))?;
            wanted = self
                .copy_frame(region, &piece.footer, frame, wanted, &content.frame, &mut content.bytes)
                .map_err(|g| self.corrupt(no, region, format!("granule {g} is shorter than the volume needs")))?;
        }
        Ok(())
    }

    /// Where a frame lies in the region, if all of it is wanted as it is.
    fn place_of(&self, region: RegionIndex, footer: &Footer, frame: &FrameRef, wanted: &[GranuleRun]) -> Option<Range<usize>> {
        wanted.first().filter(|run| run.start <= frame.run.start && frame.run.end() <= run.end())?;
        let region_start = self.geometry.bytes_of(self.geometry.region_run(region)).offset.0;
        let to = self.geometry.bytes_of(frame.run);
        let at = (to.offset.0 - region_start) as usize;
        (to.len == footer.id().geometry.bytes_of(frame.run).len).then_some(at..at + to.len as usize)
    }

    /// Copies the wanted granules of a decoded frame to their place in the region; gives back the runs that are not done.
    fn copy_frame<'w>(
        &self,
        region: RegionIndex,
        footer: &Footer,
        frame: &FrameRef,
        mut wanted: &'w [GranuleRun],
        decoded: &[u8],
        out: &mut [u8],
    ) -> Result<&'w [GranuleRun], GranuleIndex> {
        let at = |geometry: &Geometry, start: GranuleIndex, end: GranuleIndex| -> ByteExtent {
            geometry.bytes_of(GranuleRun { start, count: end.0 - start.0 })
        };
        let region_start = self.geometry.bytes_of(self.geometry.region_run(region)).offset.0;
        let frame_start = footer.id().geometry.bytes_of(frame.run).offset.0;
        while let Some(run) = wanted.first() {
            let (start, end) = (run.start.max(frame.run.start), run.end().min(frame.run.end()));
            if start < end {
                let to = at(&self.geometry, start, end);
                let from = at(&footer.id().geometry, start, end);
                if from.len != to.len {
                    return Err(GranuleIndex(end.0 - 1));
                }
                let (from_at, to_at) = ((from.offset.0 - frame_start) as usize, (to.offset.0 - region_start) as usize);
                let len = from.len as usize;
                out[to_at..to_at + len].copy_from_slice(&decoded[from_at..from_at + len]);
            }
            if run.end() > frame.run.end() {
                break; // goes on in the next frame
            }
            wanted = &wanted[1..];
        }
        Ok(wanted)
    }

    fn corrupt(&self, no: PartNo, region: RegionIndex, why: String) -> StoreError {
        let segment = self.parts.get(&no).map(|part| self.segments.locate(&self.volume.name, part).object);
        // Also where no lease was taken: who keeps the point retained keeps nobody from laying its parts together.
        let asked = match segment.as_ref().filter(|_| !mutation::on(LOOK_TRUSTED)) {
            None => Ok(None),
            Some(name) => match block_on(self.segments.backend.size(name)) {
                Ok(None) => self.why_deleted(no),
                // A service that does not answer says nothing of what is there.
                Err(error @ StoreError::Remote { .. }) => Err(error),
                _ => Ok(None),
            },
        };
        let (volume, point) = (self.volume.name.to_string(), self.point);
        match asked {
            Ok(None) => {}
            Ok(Some(Gone::Point(slot))) => return StoreError::PointDeleted { volume, point, slot },
            Ok(Some(Gone::Part)) => return StoreError::PartMerged { volume, point },
            Err(error) => return error,
        }
        self.parts.get(&no).into_iter().for_each(|part| self.segments.spoil(&part.name));
        StoreError::Corrupt {
            volume,
            point: point.to_string(),
            region,
            segment: segment.map_or_else(String::new, |name| name.to_string()),
            why,
        }
    }

    fn why_deleted(&self, no: PartNo) -> Result<Option<Gone>> {
        let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        if deleted.by.is_none() && deleted.asked_at.is_none_or(|at| at.elapsed() >= ASKED_AGAIN) {
            // † Where that cannot be told now, nobody may hear of damage.
            deleted.by = self.given_up_by(no)?;
            deleted.asked_at = Some(Instant::now());
        }
        Ok(deleted.by)
    }

    /// Who took a part, as far as one can see.
    fn given_up_by(&self, no: PartNo) -> Result<Option<Gone>> {
        let Segments { backend, names, .. } = &*self.segments;
        let replayed = replay(&**backend, names, group_id(&names.source, &names.group), |_| {})?;
        let state = replayed.image.state();
        if !state.points().contains_key(&self.point) {
            return Ok(state.head().filter(|head| *head > self.point).map(Gone::Point));
        }
        let is_given_up = |part: &Part| {
            let PartName { layer, number } = &part.name;
            state.is_given_up(layer, *number) || state.may_be_forgotten(layer)
        };
        Ok(self.parts.get(&no).filter(|part| is_given_up(part)).map(|_| Gone::Part))
    }
}
