//! Merging parts that history no longer tells apart (`docs/formats/store.md`, *Merging*): reading what they hold, and writing the parts that
//! take their place.
//!
//! Invariants:
//! - What is written holds exactly the granules of the old parts that are visible at the interval's end, each with the digest that it had
//!   where the source read it: whatever cannot be read, or is not what was published, ends the merge.
//! - It is durable before the record that names it is put, and was read back from the store as it was written, where each of its frames has
//!   its digests; it goes only after the ledger said that no record will name it.
//!
//! Pure of the group's thread: a look and the merges that it found go on beside publication, and what came of them is judged by replay. In
//! memory are one part, a piece of it that was read back, and the extents of an interval.

mod choice;
mod spoiled;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use farside_keys::{ContentKeys, Sealer, Secret};
use farside_layer::{Compression, Encoder, Footer, FrameDecoder, PartId, PartWriter, PushError};
use farside_ledger::{Map, PackId, PartEntry, Policy, PrunedParts, State, VolumeMeta};
use farside_region::{
    Geometry, GranuleDigest, GranuleIndex, GranuleRun, LayerKey, LedgerPosition, MergeId, RecordDigest, RegionSet, Slot,
    VolumeId, mutation,
};

use crate::backend::{Created, ObjectName, block_on};
use crate::error::{Result, StoreError};
use crate::group::digests_of;
use crate::image::GroupImage;
use crate::index::{Content, Extent, PartNo, VolumeIndex};
use crate::keys::Unlocking;
use crate::liveness::{Part, PartName};
use crate::locks::{ReaderLock, Readers};
use crate::replay::parallel;
use crate::segments::{FooterFault, Segments, runs_of};
use crate::store::random;

pub use choice::{MergePiece, choose_merges, freed_by};
pub use spoiled::{SoundParts, SpoiledLook};

/// Footers read at once.
const FOOTERS: usize = 32;
/// Merges that one look finds, at most: what they need is in memory meanwhile.
const FOUND_MAX: usize = 64;
/// Parts up to so large are read at once,
const WHOLE_BYTES_MAX: u64 = 4 << 20;
/// as long as all of them together have no more than this; of others frame by frame what is needed.
const HELD_BYTES_MAX: u64 = 32 << 20;
/// What was written is read back in pieces of so many bytes.
const READ_BACK_BYTES: usize = 4 << 20;
/// How parts are compressed that nobody waits for.
const COMPRESSION: Compression = Compression::Zstd(3);
/// An interval is looked at again when it has so many parts more.
const PARTS_GROWN: usize = 8;
/// Intervals that are found in one walk over all parts.
const QUEUE_MAX: usize = 256;
/// Or more bytes by this share.
const BYTES_GROWN: u64 = 16;
/// A frame without data: its head, and its line in the footer.
const FRAME_BYTES: u64 = 64;

/// Merges whose parts are being written: nobody decrees them away, as far as this process goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writing(Arc<Mutex<BTreeSet<LayerKey>>>);

impl Writing {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<LayerKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is(&self, key: &LayerKey) -> bool {
        self.lock().contains(key)
    }

    pub(crate) fn end(&self, key: &LayerKey) {
        self.lock().remove(key);
    }
}

/// An interval of a volume whose parts are to be looked at.
#[derive(Clone, Debug)]
pub(crate) struct Interval {
    volume: VolumeId,
    /// Its end.
    point: Slot,
    /// The parts born in it, in the order of publication.
    parts: Vec<Part>,
    settled: bool,
}

/// What is in an interval, or was when it was looked at last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    parts: usize,
    bytes: u64,
    settled: bool,
}

/// What a group knows of the intervals that it looked at.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    seen: BTreeMap<(VolumeId, Slot), Seen>,
    /// Those to look at, found in one walk over all parts.
    queue: VecDeque<Queued>,
}

/// An interval to look at.
#[derive(Debug)]
struct Queued {
    volume: VolumeId,
    point: Slot,
    settled: bool,
    /// Its first part and its last one.
    parts: (PartNo, PartNo),
}

impl Intervals {
    /// The interval to look at next: one with more in it than there was, of those the one with the most parts. Walks all parts where there is
    /// no queue.
    ///
    /// `has_key`: also of volumes that are encrypted.
    pub(crate) fn next(&mut self, image: &GroupImage, policy: &Policy, has_key: bool) -> Option<Interval> {
        if let Some(next) = self.next_queued(image, has_key) {
            return Some(next);
        }
        self.find(image, policy, has_key);
        self.next_queued(image, has_key)
    }

    /// Whether there is one without a walk.
    pub(crate) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next of those that were found, as it is now.
    fn next_queued(&mut self, image: &GroupImage, has_key: bool) -> Option<Interval> {
        while let Some(Queued { volume, point, settled, parts: (first, last) }) = self.queue.pop_front() {
            let state = image.state();
            let Some(after) = state.interval(volume, point) else { continue };
            if !has_key && state.volume(volume).is_some_and(|volume| volume.meta().digest_key.seal().is_some()) {
                continue; // the key was taken away since
            }
            let is_pinned = state.newest_pinned(volume).is_some_and(|pinned| pinned >= point);
            let of_it = |part: &&Part| {
                part.name.layer.volume == volume && part.born <= point && after.is_none_or(|after| part.born > after)
            };
            let parts: Vec<Part> = image.parts().between(first, last).filter(of_it).cloned().collect();
            if parts.len() > 1 && !is_pinned {
                return Some(Interval { volume, point, parts, settled });
            }
        }
        None
    }

    fn find(&mut self, image: &GroupImage, policy: &Policy, has_key: bool) {
        let state = image.state();
        // Whoever has no key cannot write anew.
        let open = state.volumes().filter(|(_, volume)| has_key || volume.meta().digest_key.seal().is_none());
        let points = open.map(|(id, _)| (id, (state.points_of(id), state.newest_pinned(id))));
        let points: BTreeMap<VolumeId, (Vec<Slot>, Option<Slot>)> = points.collect();
        let end_of = |part: &Part| {
            let (points, pinned) = points.get(&part.name.layer.volume)?;
            let end = points.get(points.partition_point(|point| *point < part.born)).copied();
            // What a pinned point may need stays as it is.
            end.filter(|end| pinned.is_none_or(|pinned| *end > pinned))
        };
        let mut now: BTreeMap<(VolumeId, Slot), (Seen, PartNo, PartNo)> = BTreeMap::new();
        for (no, part) in image.parts().iter() {
            if let Some(end) = end_of(part) {
                let (interval, _, last) = now.entry((part.name.layer.volume, end)).or_insert((Seen::default(), no, no));
                (interval.parts, interval.bytes, *last) = (interval.parts + 1, interval.bytes + part.bytes, no);
            }
        }
        self.seen.retain(|known, seen| {
            let Some((now, ..)) = now.get(known) else { return false };
            // What was merged may grow again.
            (seen.parts, seen.bytes) = (seen.parts.min(now.parts), seen.bytes.min(now.bytes));
            true
        });
        let mut found = Vec::new();
        for ((volume, point), (mut now, first, last)) in now.into_iter().filter(|(_, (now, ..))| now.parts > 1) {
            let seen = self.seen.get(&(volume, point));
            if seen.is_some_and(|seen| seen.settled && !now.has_grown(seen)) {
                continue;
            }
            now.settled = is_settled(state, policy, volume, point);
            if seen.is_none_or(|seen| now.settled || now.has_grown(seen)) {
                found.push((now.parts, Queued { volume, point, settled: now.settled, parts: (first, last) }));
            }
        }
        found.sort_by_key(|(parts, _)| std::cmp::Reverse(*parts));
        found.truncate(QUEUE_MAX);
        self.queue = found.into_iter().map(|(_, queued)| queued).collect();
    }

    /// An interval was looked at.
    pub(crate) fn seen(&mut self, interval: &Interval) {
        let bytes = interval.parts.iter().map(|part| part.bytes).sum();
        let seen = Seen { parts: interval.parts.len(), bytes, settled: interval.settled };
        self.seen.insert((interval.volume, interval.point), seen);
    }

    /// Not all of it.
    pub(crate) fn forget(&mut self, volume: VolumeId, point: Slot) {
        self.seen.remove(&(volume, point));
    }
}

impl Seen {
    /// Whether there may be something to merge that there was not.
    fn has_grown(&self, before: &Self) -> bool {
        (before.settled && self.parts > before.parts)
            || self.parts >= before.parts + PARTS_GROWN
            || self.bytes > before.bytes + before.bytes / BYTES_GROWN
    }
}

/// Whether the point that ends an interval stays for at least half as long as it is old: then the interval stays as it is for long.
fn is_settled(state: &State, policy: &Policy, volume: VolumeId, point: Slot) -> bool {
    let now_ms = state.age_clock_ms();
    let age_ms = state.points().get(&point).map_or(0, |point| now_ms.saturating_sub(point.age_clock_ms));
    let left_ms = state.kept_until_ms(policy, volume, point).saturating_sub(now_ms);
    // What is young may be thinned out by the finest rule yet.
    age_ms >= policy.span_ms && left_ms > 0 && left_ms >= age_ms / 2
}

/// A look at the parts of one interval, for a thread that has time.
#[derive(Debug)]
pub struct MergeLook {
    segments: Arc<Segments>,
    readers: Readers,
    writing: Writing,
    volume: VolumeMeta,
    keys: ContentKeys,
    /// The volume's shape and size at the interval's end.
    geometry: Geometry,
    /// Its newest layer.
    newest: Option<LayerKey>,
    /// Bytes of what is needed of the packs in which its parts lie.
    packs: BTreeMap<PackId, u64>,
    /// The ledger's next slot: a merge is in a later one than it was looked at.
    next: Slot,
    history: History,
    interval: Interval,
}

/// The ledger that an interval was looked at in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// How far it went.
    position: Option<LedgerPosition>,
    /// The point that ends the interval.
    point: Slot,
    digest: Option<RecordDigest>,
}

impl History {
    fn of(state: &State, point: Slot) -> Self {
        Self { position: state.position(), point, digest: state.digest_at(point) }
    }

    /// † Whether a ledger went on from there. A directory may be put back to an earlier moment meanwhile, and then other points are in the slots
    /// that were looked at.
    pub(crate) fn goes_on_in(&self, state: &State) -> bool {
        let is_there = || self.position.is_none_or(|position| state.holds(&position));
        mutation::on("L6 a merge is of any history") || is_there() && state.digest_at(self.point) == self.digest
    }
}

/// Neighbouring parts that are worth merging, and what of them is needed.
#[derive(Debug)]
pub struct MergeFound {
    parts: Vec<Part>,
    /// Ascending; a part's number is its place among `parts`.
    needed: Vec<Extent>,
    /// Bytes of the objects that go with the parts.
    freed_bytes: u64,
}

/// A merge whose parts are in the store.
#[derive(Clone, Debug)]
pub struct MergeWritten {
    /// What to append.
    pub map: Map,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Bytes of the objects that go with the parts that it gives up: not of packs in which others are needed.
    pub freed_bytes: u64,
}

/// What a look found.
#[derive(Debug, Default)]
pub struct MergesFound {
    /// Merges apart from each other.
    pub merges: Vec<MergeFound>,
    /// There are more: see [`GroupStore::look_again`](crate::GroupStore::look_again).
    pub more: bool,
}

/// What became of writing a merge.
#[derive(Debug)]
pub struct MergeTried {
    /// Under which key something may have been put. If it is not to be appended, it is to be given up by name.
    pub key: LayerKey,
    /// In which ledger its parts were looked at.
    pub history: History,
    /// What.
    pub written: Result<MergeWritten>,
}

/// What a merge reads is not deleted under it. † It is while the merge waits for its rate, or for whoever else has a turn: all groups delete under
/// one lock, and a merge of much takes its time. What goes then was given up, and the merge comes to nothing.
struct Reading<'l> {
    readers: &'l Readers,
    lock: RefCell<Option<ReaderLock>>,
    goes_on: &'l dyn Fn(u64) -> bool,
}

impl<'l> Reading<'l> {
    fn begin(readers: &'l Readers, goes_on: &'l dyn Fn(u64) -> bool) -> Result<Self> {
        Ok(Self { readers, lock: RefCell::new(Some(readers.share()?)), goes_on })
    }

    /// So many bytes were read or written.
    fn goes_on(&self, bytes: u64) -> Result<()> {
        if !mutation::on("a merge holds deletions up while it waits") {
            self.lock.take();
        }
        if !(self.goes_on)(bytes) {
            return Err(StoreError::Stopped);
        }
        *self.lock.borrow_mut() = Some(self.readers.share()?);
        Ok(())
    }
}

impl MergeLook {
    pub(crate) fn new(
        segments: Arc<Segments>,
        readers: Readers,
        writing: Writing,
        state: &State,
        interval: Interval,
    ) -> Option<Self> {
        let volume = state.volume(interval.volume)?;
        let point = state.points().get(&interval.point)?;
        let member = point.members.iter().find(|member| member.key.volume == interval.volume)?;
        let geometry = volume.meta().geometry.resized(member.volume_bytes).ok()?;
        let newest = volume.last_layer().map(|layer| layer.key);
        let (next, history) = (state.next_slot(), History::of(state, interval.point));
        let packs = interval.parts.iter().filter_map(|part| {
            let pack = part.place?.pack;
            Some((pack, state.packs().get(&pack)?.living_bytes))
        });
        let packs = packs.collect();
        let (volume, keys) = (volume.meta().clone(), (&volume.meta().digest_key).into());
        Some(Self { segments, readers, writing, volume, keys, geometry, newest, packs, next, history, interval })
    }

    /// The same, with the keys of an encrypted volume: see [`LazyPointReader::unlocked`](crate::PointReader::unlocked).
    ///
    /// # Errors
    /// Those of that.
    pub fn unlocked(self, unlocking: &Unlocking) -> Result<Self> {
        let keys = unlocking.open(self.keys, &*self.segments.backend, &self.segments.names, &self.volume)?;
        Ok(Self { keys, ..self })
    }

    /// Whether it is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.keys.is_sealed()
    }

    /// Whose interval.
    pub fn volume(&self) -> VolumeId {
        self.interval.volume
    }

    /// The point that ends it.
    pub fn point(&self) -> Slot {
        self.interval.point
    }

    /// Reads what its parts hold, and finds those that are worth merging. Nothing if a part is damaged, or encrypted and the keys are not here:
    /// then it cannot be known, or not be written again.
    ///
    /// # Errors
    /// [`StoreError::Stopped`] when `goes_on` says no; what the store says.
    pub fn find(&self, goes_on: &dyn Fn(u64) -> bool) -> Result<MergesFound> {
        let reading = Reading::begin(&self.readers, goes_on)?;
        let parts = &self.interval.parts;
        let is_opaque = matches!(self.keys, ContentKeys::Opaque);
        let mut laid = LaidParts::default();
        // A pack goes as a whole: what lies beside parts of others is left.
        let mut in_packs: BTreeMap<PackId, u64> = BTreeMap::new();
        for part in parts {
            if let Some(place) = part.place {
                *in_packs.entry(place.pack).or_default() += part.bytes;
            }
        }
        let is_shared = |part: &Part| {
            part.place.is_some_and(|place| self.packs.get(&place.pack).is_none_or(|living| *living > in_packs[&place.pack]))
        };
        for batch in parts.chunks(FOOTERS) {
            let footers = parallel(&*self.segments.backend, batch, |part| self.footer(part));
            for (part, footer) in batch.iter().zip(footers) {
                let footer = match footer {
                    Ok(footer) if footer.is_sealed() == self.keys.is_sealed() && !is_opaque => footer,
                    Ok(_) => return Ok(MergesFound::default()),
                    Err(FooterFault::Store(error)) => return Err(error),
                    Err(FooterFault::Damaged(why)) => {
                        tracing::warn!(segment = %self.segments.locate(&self.volume.name, part), why, "not merged: it is damaged");
                        return Ok(MergesFound::default());
                    }
                };
                laid.lay(part, &runs_of(&footer), Some(part.name.layer) == self.newest || is_shared(part));
            }
            reading.goes_on(0)?;
        }
        let pieces = laid.pieces();
        let runs = choose_merges(&pieces, self.interval.settled);
        let more = runs.len() > FOUND_MAX;
        let found = |run: Range<usize>| MergeFound {
            needed: laid.needed(&run),
            freed_bytes: freed_by(&pieces, &run),
            parts: self.interval.parts[run].to_vec(),
        };
        Ok(MergesFound { merges: runs.into_iter().take(FOUND_MAX).map(found).collect(), more })
    }

    fn footer(&self, part: &Part) -> Result<Arc<Footer>, FooterFault> {
        self.segments.footer(&self.volume.name, part)
    }

    /// Writes what is needed of these parts as one part, and puts that into the store. `goes_on` hears how many bytes were read or written
    /// since it was asked last, and may take its time.
    ///
    /// # Errors
    /// When no id can be drawn; then nothing was written.
    pub fn write(&self, found: &MergeFound, goes_on: &dyn Fn(u64) -> bool) -> Result<MergeTried> {
        let id = MergeId::new(self.next, u64::from_le_bytes(*random()?.first_chunk::<8>().expect("sixteen bytes")));
        let key = LayerKey::of_merge(self.volume.id, id);
        self.writing.lock().insert(key);
        Ok(MergeTried { key, history: self.history, written: self.write_as(id, found, goes_on) })
    }

    fn write_as(&self, id: MergeId, found: &MergeFound, goes_on: &dyn Fn(u64) -> bool) -> Result<MergeWritten> {
        let reading = Reading::begin(&self.readers, goes_on)?;
        let mut parts: BTreeMap<LayerKey, Vec<u32>> = BTreeMap::new();
        found.parts.iter().for_each(|part| parts.entry(part.name.layer).or_default().push(part.name.number));
        parts.values_mut().for_each(|numbers| numbers.sort_unstable());
        let parts: Vec<PrunedParts> = parts.into_iter().map(|(layer, parts)| PrunedParts { layer, parts }).collect();
        let mut map =
            Map { volume: self.volume.id, id, point: self.interval.point, parts, new: Vec::new(), regions: RegionSet::new() };
        let mut written_bytes = 0;
        if !found.needed.is_empty() {
            let name = PartName { layer: map.key(), number: 0 };
            let (bytes, entry) = self.assemble(found, &name, &reading)?;
            written_bytes = entry.bytes;
            map.new.push(entry);
            found.needed.iter().for_each(|extent| map.regions.insert_range(self.geometry.regions_of(extent.run)));
            let object = self.segments.name(&self.volume.name, &name);
            let bytes = Bytes::from(bytes);
            match block_on(self.segments.backend.create(&object, bytes.clone()))? {
                Created::New => {}
                // Not drawn twice by chance: whoever it is of may have a record that names it.
                Created::AlreadyExists => {
                    let (volume, segment) = (self.volume.name.to_string(), object.to_string());
                    let why = "another merge has its name".to_owned();
                    return Err(self.unusable(volume, segment, why));
                }
            }
            reading.goes_on(written_bytes)?;
            self.read_back(&object, &bytes, &reading)?;
        }
        Ok(MergeWritten { map, written_bytes, freed_bytes: found.freed_bytes })
    }

    /// What lies in the store is what was written, to the last byte: it is to be all that is left of what it holds. In a directory what
    /// the disk has is read, not what memory has of it.
    fn read_back(&self, object: &ObjectName, written: &Bytes, reading: &Reading<'_>) -> Result<()> {
        let strange = |why: String| self.unusable(self.volume.name.to_string(), object.to_string(), why);
        match block_on(self.segments.backend.drop_cached(object)) {
            Err(StoreError::Unreadable { source, .. }) => return Err(strange(format!("it cannot be opened again: {source}"))),
            other => other?,
        }
        for start in (0..written.len()).step_by(READ_BACK_BYTES) {
            let end = written.len().min(start + READ_BACK_BYTES);
            // It may be longer.
            let more = u64::from(end == written.len());
            match block_on(self.segments.backend.get_range(object, start as u64, (end - start) as u64 + more)) {
                Ok(found) if found == written[start..end] => {}
                Ok(_) => return Err(strange("what was read back is not what was written".to_owned())),
                Err(StoreError::NotFound { .. }) => return Err(strange("it was written and is missing".to_owned())),
                Err(StoreError::Unreadable { source, .. }) => return Err(strange(format!("it cannot be read back: {source}"))),
                Err(error) => return Err(error),
            }
            reading.goes_on((end - start) as u64)?;
        }
        Ok(())
    }

    /// The bytes of the new part, held against the digests of the old ones.
    fn assemble(&self, found: &MergeFound, name: &PartName, reading: &Reading<'_>) -> Result<(Vec<u8>, PartEntry)> {
        let footers: Vec<Arc<Footer>> = found.parts.iter().map(|part| self.footer_of(part)).collect::<Result<_>>()?;
        let id = PartId { key: name.layer, part: name.number, geometry: self.geometry };
        let mut encoder = Encoder::new(COMPRESSION);
        if self.keys.is_sealed() {
            let failed = |_| self.unusable(self.volume.name.to_string(), name.to_string(), "there is no randomness".to_owned());
            encoder = encoder.sealing(Sealer::new(Secret::random().map_err(failed)?));
        }
        let mut writer = PartWriter::new(id, &self.keys, encoder);
        let mut reader = Frames {
            look: self,
            decoder: FrameDecoder::new(&self.keys),
            held: BTreeMap::new(),
            held_bytes: 0,
            at: None,
            content: Vec::new(),
        };
        let full = |error: PushError| self.unusable(self.volume.name.to_string(), name.to_string(), error.to_string());
        for extent in &found.needed {
            let no = extent.part.0 as usize;
            match extent.content {
                Content::Zero => writer.push_zero(extent.run).map_err(full)?,
                Content::Unreadable => writer.push_unreadable(extent.run).map_err(full)?,
                Content::Data => {
                    let mut at = extent.run.start;
                    while at < extent.run.end() {
                        let (run, bytes, read) = reader.run_of(&found.parts[no], &footers[no], at, extent.run.end())?;
                        writer.push_data(run.start, bytes).map_err(full)?;
                        at = run.end();
                        if read > 0 {
                            reading.goes_on(read)?;
                        }
                    }
                }
            }
        }
        let mut bytes = writer.take_chunk();
        let (tail, summary, _) = writer.finish();
        bytes.extend_from_slice(&tail);
        let made = Footer::from_tail(&bytes, summary.bytes);
        let made = made.map_err(|error| self.unusable(self.volume.name.to_string(), name.to_string(), error.to_string()))?;
        let mut of_runs = VolumeIndex::new();
        runs_of(&made).into_iter().for_each(|(run, content)| of_runs.apply(Extent { run, part: PartNo(0), content }, |_, _| {}));
        let whole = GranuleRun { start: GranuleIndex(0), count: u64::MAX };
        let mut wanted = VolumeIndex::new();
        found.needed.iter().for_each(|extent| wanted.apply(Extent { part: PartNo(0), ..*extent }, |_, _| {}));
        let same_runs = of_runs.extents(whole).eq(wanted.extents(whole));
        let same_digests = found.needed.iter().filter(|extent| extent.content == Content::Data).all(|extent| {
            let before = digests_of(&footers[extent.part.0 as usize], extent.run);
            before.is_some() && before == digests_of(&made, extent.run)
        });
        let mut content = Vec::new();
        let is_sound = made.frames().iter().filter(|frame| frame.stored_bytes > 0).all(|frame| {
            let start = frame.offset as usize;
            let stored = bytes.get(start..start + frame.stored_bytes as usize);
            stored.is_some_and(|stored| reader.decoder.decode(&made, frame, stored, &mut content).is_ok())
        });
        if !same_runs || !same_digests || !is_sound {
            let why = "what was written is not what was read".to_owned();
            return Err(self.unusable(self.volume.name.to_string(), name.to_string(), why));
        }
        let entry = PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest };
        Ok((bytes, entry))
    }

    fn footer_of(&self, part: &Part) -> Result<Arc<Footer>> {
        self.footer(part).map_err(|fault| match fault {
            FooterFault::Store(error) => error,
            FooterFault::Damaged(why) => self.damaged(part, why),
        })
    }

    fn damaged(&self, part: &Part, why: String) -> StoreError {
        self.segments.spoil(&part.name);
        let segment = self.segments.locate(&self.volume.name, part).object.to_string();
        self.unusable(self.volume.name.to_string(), segment, why)
    }

    fn unusable(&self, volume: String, segment: String, why: String) -> StoreError {
        StoreError::NotMerged { volume, segment, why }
    }
}

/// The parts of an interval, laid over each other: the first of it to its last, all of them.
#[derive(Debug, Default)]
pub struct LaidParts {
    index: VolumeIndex,
    pieces: Vec<MergePiece>,
    /// Granules of data of each.
    data: Vec<u64>,
}

impl LaidParts {
    /// Lays the next part over those before it.
    pub fn lay(&mut self, part: &Part, runs: &[(GranuleRun, Content)], stays: bool) {
        let no = PartNo(self.pieces.len() as u64);
        runs.iter().for_each(|&(run, content)| self.index.apply(Extent { run, part: no, content }, |_, _| {}));
        let data: u64 = runs.iter().filter(|(_, content)| *content == Content::Data).map(|(run, _)| run.count).sum();
        self.data.push(data);
        // A digest for each granule; and frames, of up to 64 of them, with a digest of what is stored.
        let footer_bytes = data * size_of::<GranuleDigest>() as u64 + 96 * (runs.len() as u64 + data / 64);
        let pack = part.place.map(|place| place.pack);
        self.pieces.push(MergePiece { bytes: part.bytes, footer_bytes, pack, stays, ..MergePiece::default() });
    }

    fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.index.extents(GranuleRun { start: GranuleIndex(0), count: u64::MAX })
    }

    /// What of each is needed, about.
    pub fn pieces(&self) -> Vec<MergePiece> {
        let mut pieces = self.pieces.clone();
        for extent in self.extents() {
            let piece = &mut pieces[extent.part.0 as usize];
            // Data in frames of up to 64 granules, of which the first and the last may be cut.
            piece.frames += if extent.content == Content::Data { 2 + extent.run.count / 32 } else { 1 };
            piece.granules += if extent.content == Content::Data { extent.run.count } else { 0 };
        }
        for (piece, data) in pieces.iter_mut().zip(&self.data) {
            let share = (u128::from(piece.bytes) * u128::from(piece.granules)).checked_div(u128::from(*data)).unwrap_or(0) as u64;
            piece.needed_bytes = if *data > 0 { share } else { FRAME_BYTES * piece.frames }.min(piece.bytes);
        }
        pieces
    }

    /// What is visible of a run of parts, which are numbered from its first.
    pub fn needed(&self, run: &Range<usize>) -> Vec<Extent> {
        let first = run.start as u64;
        let of_run = self.extents().filter(|extent| run.contains(&(extent.part.0 as usize)));
        let forgets = |extent: &Extent| extent.content == Content::Zero && mutation::on("a merge forgets zeroes");
        of_run.filter(|extent| !forgets(extent)).map(|extent| Extent { part: PartNo(extent.part.0 - first), ..extent }).collect()
    }
}

/// Frames of old parts, one at a time.
struct Frames<'l> {
    look: &'l MergeLook,
    decoder: FrameDecoder,
    /// Small parts, in whole.
    held: BTreeMap<PartName, Bytes>,
    held_bytes: u64,
    /// Which one is in `content`: of which part, and its granules.
    at: Option<(PartName, GranuleRun)>,
    content: Vec<u8>,
}

impl Frames<'_> {
    /// The content of a part from a granule on, to the end of its frame or of what is wanted; and how many bytes were read for it.
    fn run_of(
        &mut self,
        part: &Part,
        footer: &Footer,
        start: GranuleIndex,
        end: GranuleIndex,
    ) -> Result<(GranuleRun, &[u8], u64)> {
        let Some(frame) = footer.frame_of(start).filter(|frame| frame.stored_bytes > 0) else {
            return Err(self.look.damaged(part, format!("no frame holds granule {start}")));
        };
        let mut read = 0;
        if self.at != Some((part.name, frame.run)) {
            let (stored, bytes) = self.stored(part, u64::from(frame.offset), u64::from(frame.stored_bytes))?;
            (read, self.at) = (bytes, None);
            let decoded = self.decoder.decode(footer, frame, &stored, &mut self.content);
            decoded.map_err(|error| self.look.damaged(part, error.to_string()))?;
            self.at = Some((part.name, frame.run));
        }
        let run = GranuleRun { start, count: frame.run.end().min(end).0 - start.0 };
        let (of_frame, wanted) = (footer.id().geometry.bytes_of(frame.run), footer.id().geometry.bytes_of(run));
        if wanted.len != self.look.geometry.bytes_of(run).len {
            return Err(self.look.damaged(part, format!("granule {} is shorter than the volume needs", run.end().0 - 1)));
        }
        let from = (wanted.offset.0 - of_frame.offset.0) as usize;
        Ok((run, &self.content[from..from + wanted.len as usize], read))
    }
}

impl Frames<'_> {
    /// Bytes of a part, and how many were read for that.
    fn stored(&mut self, part: &Part, offset: u64, len: u64) -> Result<(Bytes, u64)> {
        let cut = |whole: &Bytes| {
            let range = usize::try_from(offset).ok().zip(usize::try_from(offset + len).ok());
            let range = range.filter(|(_, end)| *end <= whole.len());
            range.map(|(start, end)| whole.slice(start..end)).ok_or_else(|| self.look.damaged(part, "it is cut off".into()))
        };
        if let Some(whole) = self.held.get(&part.name) {
            return Ok((cut(whole)?, 0));
        }
        let is_small = part.bytes <= WHOLE_BYTES_MAX && self.held_bytes + part.bytes <= HELD_BYTES_MAX;
        let (first, count) = if is_small { (0, part.bytes) } else { (offset, len) };
        let at = self.look.segments.locate(&self.look.volume.name, part);
        let stored = match block_on(self.look.segments.backend.get_range(&at.object, at.byte(first), count)) {
            Ok(stored) => stored,
            Err(StoreError::NotFound { .. }) => {
                return Err(self.look.damaged(part, "it is missing, or was given up meanwhile".into()));
            }
            Err(StoreError::Unreadable { source, .. }) => {
                return Err(self.look.damaged(part, format!("it cannot be read: {source}")));
            }
            Err(error) => return Err(error),
        };
        let read = stored.len() as u64;
        if !is_small {
            return Ok((stored, read));
        }
        let wanted = cut(&stored)?;
        self.held_bytes += read;
        self.held.insert(part.name, stored);
        Ok((wanted, read))
    }
}

#[cfg(test)]
mod churn_tests;

#[cfg(test)]
mod loss_tests;

#[cfg(test)]
mod rot_tests;

#[cfg(test)]
mod days_tests;

#[cfg(test)]
#[path = "../merge_tests.rs"]
mod tests;
