//! Reading segments: footers, with a bounded cache, and what they say about runs.
//!
//! Invariant: a footer leaves here only if it is the one that the ledger's record names: its digest, its size, its layer and
//! number. Content is checked by whoever decodes frames with it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use farside_layer::{Footer, FrameDecoder, FrameRef, PartError, RunKind, TRAILER_BYTES};
use farside_ledger::{Body, CheckpointPlace, Record, State, VolumeMeta};
use farside_region::{GranuleRun, LedgerPosition, Name, RecordDigest, RegionSet, Slot, VolumeId, mutation};

use crate::backend::{Backend, ObjectName, block_on};
use crate::checkpoint;
use crate::error::{Result, StoreError};
use crate::image::PartRuns;
use crate::index::Content;
use crate::liveness::{Part, PartName};
use crate::names::{GroupNames, GroupObject};
use crate::replay::{Unusable, find_record, read_slot};
use crate::spoiled::SpoiledParts;

/// Bytes of footers kept in memory, per group that is open.
const CACHE_BYTES_MAX: usize = 32 << 20;
/// What is read of a segment's end at first: enough for the footer of a small one, and, as a share of it, of a large one whose content
/// hardly compresses. What else a footer has is read by what the end says of it.
const TAIL_GUESS_BYTES: u64 = 16 << 10;
const TAIL_GUESS_SHARE: u64 = 128;

/// The segments of one group.
#[derive(Debug)]
pub(crate) struct Segments {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) names: GroupNames,
    cache: Mutex<Cache>,
    /// Parts that merges wrote and whoever reads through this met damaged.
    spoiled: SpoiledParts,
}

#[derive(Debug, Default)]
struct Cache {
    footers: HashMap<PartName, (Arc<Footer>, u64)>,
    bytes: usize,
    clock: u64,
}

/// Where a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    /// Its own object, or the pack that it lies in.
    pub(crate) object: ObjectName,
    /// Its first byte there.
    offset: u64,
}

impl Located {
    /// Where a byte of the part is in the object. (A place may say anything; there is nothing beyond an object's end.)
    pub(crate) fn byte(&self, of_part: u64) -> u64 {
        self.offset.saturating_add(of_part)
    }

    /// Whether the object holds other parts, too.
    pub(crate) fn is_pack(&self, names: &GroupNames) -> bool {
        matches!(names.parse(&self.object), Some(GroupObject::Pack(_)))
    }
}

/// Where to look, for people.
impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            0 => write!(f, "{}", self.object),
            offset => write!(f, "{} from byte {offset} on", self.object),
        }
    }
}

/// Why a footer could not be had.
#[derive(Debug)]
pub(crate) enum FooterFault {
    /// The segment is missing, cannot be read or is not what was published; in words.
    Damaged(String),
    /// The store could not be read.
    Store(StoreError),
}

impl Segments {
    pub(crate) fn new(backend: Arc<dyn Backend>, names: GroupNames) -> Self {
        Self::telling(backend, names, SpoiledParts::default())
    }

    /// The same, for readers that tell there what they meet damaged.
    pub(crate) fn telling(backend: Arc<dyn Backend>, names: GroupNames, spoiled: SpoiledParts) -> Self {
        Self { backend, names, cache: Mutex::default(), spoiled }
    }

    /// The object that a part has if it has one of its own.
    pub(crate) fn name(&self, volume: &Name, part: &PartName) -> ObjectName {
        self.names.segment(volume, part)
    }

    /// Where a published part is.
    pub(crate) fn locate(&self, volume: &Name, part: &Part) -> Located {
        match part.place {
            None => Located { object: self.name(volume, &part.name), offset: 0 },
            Some(place) => Located { object: self.names.pack(place.pack), offset: place.offset },
        }
    }

    /// The footer of a published part.
    pub(crate) fn footer(&self, volume: &Name, part: &Part) -> Result<Arc<Footer>, FooterFault> {
        self.footer_as_it_is(volume, part).inspect_err(|fault| {
            if matches!(fault, FooterFault::Damaged(_)) {
                self.spoil(&part.name);
            }
        })
    }

    /// The same, for who tells nobody.
    pub(crate) fn footer_as_it_is(&self, volume: &Name, part: &Part) -> Result<Arc<Footer>, FooterFault> {
        // A part that was sent again has the name of what it replaces, and is another.
        if let Some(footer) = self.cached(&part.name).filter(|f| check_identity(f, part).is_ok()) {
            return Ok(footer);
        }
        let footer = Arc::new(self.read(&self.locate(volume, part), part.bytes)?);
        check_identity(&footer, part).map_err(FooterFault::Damaged)?;
        self.keep(part.name, &footer);
        Ok(footer)
    }

    /// What a published part holds; damage is an answer, not an error. `record`: the one that alone knows
    /// which regions its layer or merge touched, where replay does not: [`Parts::told_by`](crate::liveness::Parts::told_by).
    pub(crate) fn runs(&self, volume: &Name, part: &Part, record: Option<(Slot, RecordDigest)>) -> Result<PartRuns> {
        match self.footer(volume, part) {
            Ok(footer) => Ok(PartRuns::Known(runs_of(&footer))),
            Err(FooterFault::Damaged(why)) => {
                tracing::error!(segment = %self.locate(volume, part), why, "a segment's footer is damaged");
                self.damaged(part, record)
            }
            Err(FooterFault::Store(error)) => Err(error),
        }
    }

    /// What is known of a part whose footer is damaged: which regions its layer touched. Replay keeps that of newer layers only,
    /// its record as long as replay remembers it: one bad file must not make a whole volume unknown.
    pub(crate) fn damaged(&self, part: &Part, record: Option<(Slot, RecordDigest)>) -> Result<PartRuns> {
        let record = record.filter(|_| !mutation::on("L4 all between an old layer's regions is unknown"));
        let touched = |(slot, record)| self.touched(slot, record, part.name.layer.volume);
        Ok(PartRuns::Damaged { regions: record.map(touched).transpose()?.flatten() })
    }

    /// Whether a ledger went through a position. Replay [forgets](State::remembers) that of old ones; then the record after it tells, which names
    /// its digest, or where that is lost the record itself.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]: neither can be read any more, so nobody knows; or what the file system says.
    pub(crate) fn went_through(&self, state: &State, position: &LedgerPosition) -> Result<bool> {
        if let Some(held) = state.held(position) {
            return Ok(held);
        }
        if mutation::on("what is forgotten of a ledger is believed") {
            return Ok(true);
        }
        // Before the records: † in the slot of one that is gone somebody may have put another, too late.
        let number = CheckpointPlace::covering(position.slot, checkpoint::span()).number;
        match checkpoint::digests(&*self.backend, &self.names, state.group(), number)? {
            Some(Ok(digests)) => return Ok(digests.at(position.slot) == Some(position.digest)),
            Some(Err(bad)) => {
                tracing::error!(group = %self.names, file = %bad.file, why = %bad.why, "digests of old records cannot be used")
            }
            None => {}
        }
        if let Ok((next, _)) = self.standing(position.slot.next())? {
            return Ok(next.prev == position.digest);
        }
        match self.standing(position.slot)? {
            Ok((_, digest)) => Ok(digest == position.digest),
            Err(unusable) => {
                let why = format!(
                    "neither the record in slot {} nor the one after it can be read ({unusable}), and only these tell of a position so old",
                    position.slot
                );
                Err(StoreError::Inconsistent { group: self.names.to_string(), why })
            }
        }
    }

    /// The record in a slot as replay takes it: † what a repair put in its place, though its bytes are still there.
    fn standing(&self, slot: Slot) -> Result<Result<(Record, RecordDigest), Unusable>> {
        let is_replaced = block_on(self.backend.size(&self.names.record_void(slot)))?.is_some();
        if is_replaced && !mutation::on("L6 what a repair gave up tells of old positions") {
            return Ok(read_slot(&*self.backend, &self.names, slot, true)?.map(|mut records| records.swap_remove(0)));
        }
        find_record(&*self.backend, &self.names, slot)
    }

    /// The regions of a volume that the layer or merge in a slot touched, from that record; `None` if it cannot be read.
    pub(crate) fn touched(&self, slot: Slot, wanted: RecordDigest, volume: VolumeId) -> Result<Option<RegionSet>> {
        let record = match find_record(&*self.backend, &self.names, slot)? {
            Ok((record, digest)) if digest == wanted => record,
            // Below a checkpoint nobody replayed it.
            Ok(_) => {
                tracing::error!(group = %self.names, %slot, "a ledger record is not the one of this ledger");
                return Ok(None);
            }
            Err(unusable) => {
                tracing::error!(group = %self.names, %slot, ?unusable, "a ledger record does not verify");
                return Ok(None);
            }
        };
        Ok(match record.body {
            Body::Layers(layers) => layers.members.into_iter().find(|m| m.key.volume == volume).map(|member| member.regions),
            Body::Map(map) => Some(map.regions).filter(|_| map.volume == volume),
            _ => None,
        })
    }

    /// Reads the frame at that offset of a part and holds it against its digests: its granules, and what is wrong with it.
    pub(crate) fn check_frame(&self, volume: &VolumeMeta, part: &Part, offset: u32) -> Result<Option<(GranuleRun, String)>> {
        let footer = match self.footer(&volume.name, part) {
            Ok(footer) => footer,
            Err(FooterFault::Store(error)) => return Err(error),
            Err(FooterFault::Damaged(_)) => return Ok(None), // all of it is
        };
        let Some(frame) = footer.frames().iter().find(|f| f.offset == offset && f.kind == RunKind::Data) else { return Ok(None) };
        Ok(self.fault_of(volume, part, &footer, frame)?.map(|why| (frame.run, why)))
    }

    /// Reads a frame of a part and holds it against its digests: what is wrong with it.
    pub(crate) fn fault_of(&self, volume: &VolumeMeta, part: &Part, footer: &Footer, frame: &FrameRef) -> Result<Option<String>> {
        let at = self.locate(&volume.name, part);
        let stored = match block_on(self.backend.get_range(&at.object, at.byte(frame.offset.into()), frame.stored_bytes.into())) {
            Ok(stored) => stored,
            Err(StoreError::NotFound { .. }) => return Ok(Some("it is missing".into())),
            Err(StoreError::Unreadable { source, .. }) => return Ok(Some(format!("it cannot be read: {source}"))),
            Err(error) => return Err(error),
        };
        let checked = FrameDecoder::new(&volume.digest_key).check(footer, frame, &stored, &mut Vec::new());
        Ok(checked.err().map(|error| error.to_string()))
    }

    /// A part was met damaged. Of one that a merge wrote it matters: what it replaced may lie in the store still.
    pub(crate) fn spoil(&self, part: &PartName) {
        self.spoiled.add([*part]);
    }

    /// Takes out the parts of merges that were met damaged since.
    pub(crate) fn take_spoiled(&self) -> BTreeSet<PartName> {
        self.spoiled.take()
    }

    /// Takes a footer that was read where the part came from, so that nobody fetches it.
    pub(crate) fn learn(&self, part: &Part, footer: Footer) {
        if check_identity(&footer, part).is_ok() {
            self.keep(part.name, &Arc::new(footer));
        }
    }

    /// Forgets a part's footer.
    pub(crate) fn forget(&self, part: &PartName) {
        let mut cache = self.cache.lock().expect("nothing panics while it holds this lock");
        if let Some((footer, _)) = cache.footers.remove(part) {
            cache.bytes -= memory_bytes(&footer);
        }
    }

    fn read(&self, at: &Located, part_bytes: u64) -> Result<Footer, FooterFault> {
        let tail = |bytes: u64| -> Result<Bytes, FooterFault> {
            let bytes = bytes.min(part_bytes);
            match block_on(self.backend.get_range(&at.object, at.byte(part_bytes - bytes), bytes)) {
                Ok(tail) if tail.len() as u64 == bytes => Ok(tail),
                Ok(_) => Err(FooterFault::Damaged(format!("it is shorter than the {part_bytes} bytes that were published"))),
                Err(StoreError::NotFound { .. }) => Err(FooterFault::Damaged("it is missing".into())),
                Err(StoreError::Unreadable { source, .. }) => Err(FooterFault::Damaged(format!("it cannot be read: {source}"))),
                Err(error) => Err(FooterFault::Store(error)),
            }
        };
        let damaged = |error: PartError| FooterFault::Damaged(error.to_string());
        let end = tail((part_bytes / TAIL_GUESS_SHARE).max(TAIL_GUESS_BYTES))?;
        let needed = Footer::tail_bytes(&end, part_bytes).map_err(damaged)?;
        let end = if needed > end.len() as u64 { tail(needed)? } else { end };
        Footer::from_tail(&end, part_bytes).map_err(damaged)
    }

    fn cached(&self, part: &PartName) -> Option<Arc<Footer>> {
        let cache = &mut *self.cache.lock().expect("nothing panics while it holds this lock");
        cache.clock += 1;
        let (footer, used) = cache.footers.get_mut(part)?;
        *used = cache.clock;
        Some(Arc::clone(footer))
    }

    fn keep(&self, part: PartName, footer: &Arc<Footer>) {
        let cache = &mut *self.cache.lock().expect("nothing panics while it holds this lock");
        cache.bytes += memory_bytes(footer);
        cache.clock += 1;
        if let Some((old, _)) = cache.footers.insert(part, (Arc::clone(footer), cache.clock)) {
            cache.bytes -= memory_bytes(&old);
        }
        if cache.bytes > CACHE_BYTES_MAX {
            let mut used: Vec<u64> = cache.footers.values().map(|(_, used)| *used).collect();
            let (_, median, _) = used.select_nth_unstable(cache.footers.len() / 2);
            let median = *median;
            cache.footers.retain(|_, (_, used)| *used >= median);
            cache.bytes = cache.footers.values().map(|(f, _)| memory_bytes(f)).sum();
        }
    }
}

/// The runs of a footer, in order.
pub fn runs_of(footer: &Footer) -> Vec<(GranuleRun, Content)> {
    let mut runs: Vec<(GranuleRun, Content)> = Vec::new();
    for frame in footer.frames() {
        let content = match frame.kind {
            RunKind::Data => Content::Data,
            RunKind::Zero => Content::Zero,
            RunKind::Unreadable => Content::Unreadable,
        };
        match runs.last_mut() {
            Some((run, last)) if *last == content && run.end() == frame.run.start => run.count += frame.run.count,
            _ => runs.push((frame.run, content)),
        }
    }
    runs
}

/// Whether a footer is the one that was published.
pub(crate) fn check_identity(footer: &Footer, part: &Part) -> Result<(), String> {
    let (id, summary) = (footer.id(), footer.summary());
    if id.key != part.name.layer || id.part != part.name.number {
        return Err(format!("it holds part {} of layer {}", id.part, id.key));
    }
    if summary.footer_digest != part.footer_digest || summary.bytes != part.bytes {
        return Err("it is a well-formed part, but not the one that was published".into());
    }
    Ok(())
}

fn memory_bytes(footer: &Footer) -> usize {
    256 + TRAILER_BYTES + footer.frames().len() * 48 + footer.digests().len() * 16
}
