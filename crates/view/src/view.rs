//! A view: reads and writes of any length at any place, from any thread.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam::channel::{Receiver, Sender, bounded};
use farside_blockio::{Extent, ExtentKind};
use farside_region::{ByteExtent, ByteOffset, Geometry, GranuleIndex, GranuleRun, RegionIndex};
use farside_store::{AlignedBytes, Content, LazyPointReader, PointReader, RegionContent, StoreError};
use nix::errno::Errno;

use crate::Overlay;
use crate::ahead::Ahead;
use crate::cache::Cache;
use crate::fetches::{Fetch, Fetches};

/// Locks by region, so that whoever works at different places seldom meets.
const SHARDS: usize = 64;
/// Of what clients have read so much is remembered.
const ASKED_MAX: usize = 64;
/// Whoever reads in sequence is believed to go on beyond so many regions of zeroes, not more.
const ZEROES_MAX: usize = 64;
/// Of so many regions it is said that they are damaged, and of so many that they are away; not of more.
const TOLD_MAX: usize = 1000;

/// The content of a region.
#[derive(Debug)]
pub struct Region {
    /// All of its bytes.
    pub bytes: AlignedBytes,
    /// Granules that the source could not read, ascending.
    pub unreadable: Vec<GranuleRun>,
    /// What cannot be read now.
    pub lost: Option<Lost>,
}

impl Region {
    fn has_lost(&self, run: GranuleRun) -> bool {
        self.lost.as_ref().is_some_and(|lost| meets(&lost.runs, run))
    }

    /// Whether something of a run cannot be read.
    pub(crate) fn is_missing(&self, run: GranuleRun) -> bool {
        self.has_lost(run) || meets(&self.unreadable, run)
    }
}

/// Damage of a region.
#[derive(Debug)]
pub struct Lost {
    /// Which granules, ascending.
    pub runs: Vec<GranuleRun>,
    /// What is wrong.
    pub why: StoreError,
}

/// What lies below the writes of a view, and never changes.
pub trait Base: Send + Sync {
    /// Its shape and size.
    fn geometry(&self) -> &Geometry;

    /// Whether a region is zeroes throughout, as far as that is known without reading it.
    fn is_zero(&self, region: RegionIndex) -> bool;

    /// Reads a region, or what is left of it.
    ///
    /// # Errors
    /// What is wrong, if nothing of it can be read.
    fn read(&self, region: RegionIndex) -> Result<Region, StoreError>;
}

impl Base for PointReader {
    fn geometry(&self) -> &Geometry {
        self.geometry()
    }

    fn is_zero(&self, region: RegionIndex) -> bool {
        self.is_zero(region)
    }

    fn read(&self, region: RegionIndex) -> Result<Region, StoreError> {
        let mut content = self.content();
        let result = self.read_region(region, &mut content);
        Region::of(content, result, |content| self.salvage_region(region, content))
    }
}

/// Nothing is known of a region of which nothing was read, unless everything was indexed.
impl Base for Arc<LazyPointReader> {
    fn geometry(&self) -> &Geometry {
        (**self).geometry()
    }

    fn is_zero(&self, region: RegionIndex) -> bool {
        (**self).is_zero(region)
    }

    fn read(&self, region: RegionIndex) -> Result<Region, StoreError> {
        let mut content = self.content();
        let result = self.read_region(region, &mut content);
        Region::of(content, result, |content| self.salvage_region(region, content))
    }
}

impl Region {
    /// What was read of it, or is left of it.
    fn of(
        mut content: RegionContent,
        result: Result<(), StoreError>,
        salvage: impl FnOnce(&mut RegionContent) -> Result<Vec<GranuleRun>, StoreError>,
    ) -> Result<Self, StoreError> {
        let lost = match result {
            Ok(()) => None,
            Err(why @ (StoreError::Corrupt { .. } | StoreError::Incomplete { .. })) => {
                Some(Lost { runs: salvage(&mut content)?, why })
            }
            Err(error) => return Err(error),
        };
        let unreadable = content.runs.iter().filter(|(_, content)| *content == Content::Unreadable).map(|(run, _)| *run);
        let unreadable = unreadable.collect();
        Ok(Region { bytes: content.bytes, unreadable, lost })
    }
}

/// A queue of a view.
pub(crate) trait Hears: Send + Sync {
    /// Somebody may have waited for it.
    fn fetch_is_over(&self);
}

/// What a request does where something has to be fetched: nothing, at first.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    pub(crate) may_wait: bool,
    /// For what it would have waited.
    fetch: Option<Fetch>,
}

impl Turn {
    /// Of who waits whenever he has to.
    pub(crate) fn waiting() -> Self {
        Self { may_wait: true, fetch: None }
    }

    /// Whether it need not wait any more for what it would have waited for.
    pub(crate) fn has_come(&self) -> bool {
        self.fetch.as_ref().is_some_and(Fetch::is_over)
    }
}

/// A point, opened.
pub struct View<B> {
    base: B,
    overlay: Option<Overlay>,
    cache: Mutex<Cache>,
    /// For clients, or ahead of them.
    fetches: Fetches,
    /// They hear of these.
    hearing: Mutex<Vec<Weak<dyn Hears>>>,
    /// Held by who writes into a region: two that write parts of one granule must not both begin with what the point holds.
    writes: [Mutex<()>; SHARDS],
    /// Regions that clients have read from the base lately, for who fills the overlay.
    asked: (Sender<RegionIndex>, Receiver<RegionIndex>),
    ahead: Ahead,
    /// That serve it.
    queues: AtomicUsize,
    /// Reads of the base that are under way for clients, or ahead of them.
    fetching: AtomicUsize,
    is_read_only: bool,
    told: Mutex<Told>,
    is_deleted: AtomicBool,
    is_merged: AtomicBool,
    tell: Box<dyn Fn(&StoreError) + Send + Sync>,
}

impl<B: fmt::Debug> fmt::Debug for View<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("base", &self.base).field("overlay", &self.overlay).finish_non_exhaustive()
    }
}

impl<B: Base> View<B> {
    /// A view of `base`, to be written if there is an overlay. `cache_bytes`: for decoded regions; at least one is kept. `tell` hears,
    /// from any thread, what cannot be read: once for each region, and each outage of it.
    pub fn new(base: B, overlay: Option<Overlay>, cache_bytes: u64, tell: Box<dyn Fn(&StoreError) + Send + Sync>) -> Self {
        let regions = usize::try_from(cache_bytes / base.geometry().region_bytes()).unwrap_or(usize::MAX);
        Self {
            base,
            overlay,
            cache: Mutex::new(Cache::new(regions)),
            fetches: Fetches::default(),
            hearing: Mutex::default(),
            writes: [const { Mutex::new(()) }; SHARDS],
            asked: bounded(ASKED_MAX),
            ahead: Ahead::new(regions),
            queues: AtomicUsize::new(0),
            fetching: AtomicUsize::new(0),
            is_read_only: false,
            told: Mutex::default(),
            is_deleted: AtomicBool::new(false),
            is_merged: AtomicBool::new(false),
            tell,
        }
    }

    /// The same view, which takes no writes: its overlay is only filled.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// Whether it takes writes.
    pub fn is_writable(&self) -> bool {
        self.overlay.is_some() && !self.is_read_only
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        self.base.geometry()
    }

    pub(crate) fn is_zero(&self, region: RegionIndex) -> bool {
        self.base.is_zero(region)
    }

    /// A region that a client has read from the base, and may read again.
    pub(crate) fn asked_for(&self) -> Option<RegionIndex> {
        self.asked.1.try_recv().ok()
    }

    /// A region for whom nobody waits: it takes nobody's place in the cache.
    ///
    /// # Errors
    /// What was said of it: whether it may be there later tells [`is_outage`].
    pub(crate) fn region_to_fill(&self, region: RegionIndex) -> Result<Arc<Region>, StoreError> {
        if let Some(content) = lock(&self.cache).get(region).filter(|content| content.lost.is_none()) {
            return Ok(content);
        }
        let content = self.read_base(region).inspect_err(|error| match error {
            StoreError::PointDeleted { .. } => self.is_deleted.store(true, Ordering::Relaxed),
            StoreError::PartMerged { .. } => self.is_merged.store(true, Ordering::Relaxed),
            _ => {}
        })?;
        Ok(Arc::new(content))
    }

    /// Regions that somebody may be about to read, for [`View::fetch_ahead`].
    pub(crate) fn wanted(&self) -> &Receiver<RegionIndex> {
        self.ahead.wanted()
    }

    /// Whether something is being fetched for clients now: whoever works at the same store, and is waited for by nobody, lets that go first.
    pub fn is_fetching(&self) -> bool {
        self.fetching.load(Ordering::Relaxed) > 0
    }

    /// Reads a region for clients, and keeps it.
    fn fetch(&self, region: RegionIndex) -> Option<Arc<Region>> {
        let _under_way = UnderWay::begin(&self.fetching);
        let content = self.read_base(region).inspect_err(|_| self.ahead.give_up());
        let content = Arc::new(content.ok()?);
        lock(&self.cache).put(region, content.clone());
        let _ = self.asked.0.try_send(region); // who fills finds it in the cache; enough are known, or nobody fills
        Some(content)
    }

    fn cached(&self, region: RegionIndex, run: GranuleRun) -> Option<Arc<Region>> {
        lock(&self.cache).get(region).filter(|content| !content.has_lost(run))
    }

    /// One more queue serves it. Whether it is the first.
    pub(crate) fn begin_queue(&self) -> bool {
        self.queues.fetch_add(1, Ordering::SeqCst) == 0
    }

    /// A queue serves it no longer. After the last one nothing is fetched ahead any more.
    pub(crate) fn end_queue(&self) {
        if self.queues.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.ahead.end();
        }
    }

    #[cfg(test)]
    pub(crate) fn waiting_for(&self, region: RegionIndex) -> usize {
        self.fetches.waiting_for(region)
    }

    #[cfg(test)]
    pub(crate) fn fetches_ahead(&self) -> bool {
        !self.ahead.is_over()
    }

    /// Fetches a region that nobody waits for yet. What goes wrong is said to who has come to wait for it.
    pub(crate) fn fetch_ahead(&self, region: RegionIndex) {
        let run = self.geometry().region_run(region);
        let is_written = |overlay: &Overlay| (run.start.0..run.end().0).all(|granule| overlay.has(GranuleIndex(granule)));
        if self.ahead.is_over() || self.overlay.as_ref().is_some_and(is_written) {
            return;
        }
        if lock(&self.cache).get(region).is_some() {
            return;
        }
        let fetch = self.fetches.of(region);
        self.join(&fetch, run);
    }

    /// The region after this one that has to be fetched, unless it is far.
    fn next_to_fetch(&self, region: RegionIndex) -> Option<RegionIndex> {
        let end = self.geometry().region_count();
        (region.0 + 1..end).map(RegionIndex).take(ZEROES_MAX).find(|region| !self.base.is_zero(*region))
    }

    /// Whether the store has given up the point: what was not fetched by now is nowhere.
    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Relaxed)
    }

    /// Whether parts that the point was opened with have been merged into others: they are found when it is opened anew.
    pub fn is_merged(&self) -> bool {
        self.is_merged.load(Ordering::Relaxed)
    }

    /// Nobody else writes into the region meanwhile.
    pub(crate) fn hold_writes(&self, region: RegionIndex) -> MutexGuard<'_, ()> {
        lock(&self.writes[region.0 as usize % SHARDS])
    }

    /// What a fill takes at most, in bytes: what is not there and not known to be zeroes.
    pub fn fill_bytes_max(&self) -> u64 {
        let geometry = self.geometry();
        let written = |granule| self.overlay.as_ref().is_some_and(|overlay| overlay.has(GranuleIndex(granule)));
        let missing = |region| {
            let run = geometry.region_run(region);
            (run.start.0..run.end().0).filter(|granule| !written(*granule)).count() as u64
        };
        let regions = (0..geometry.region_count()).map(RegionIndex).filter(|region| !self.base.is_zero(*region));
        regions.map(missing).sum::<u64>() * geometry.granule_bytes()
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.base.geometry().volume_bytes()
    }

    /// Of what is fetched, filled and discarded as a whole.
    pub fn granule_bytes(&self) -> u64 {
        self.base.geometry().granule_bytes()
    }

    /// What was written, if it can be.
    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }

    /// Reads.
    ///
    /// # Errors
    /// `EIO` where the source or the store could not be read; `EINVAL` beyond the end.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        self.read_in(&mut Turn::waiting(), offset, out)
    }

    /// [`View::read`].
    ///
    /// # Errors
    /// `EAGAIN` also, where it would wait out of turn.
    pub(crate) fn read_in(&self, turn: &mut Turn, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        let mut rest = out;
        self.in_regions(ByteExtent { offset: ByteOffset(offset), len: rest.len() as u64 }, &mut |region, piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len as usize);
            rest = later;
            self.read_piece(turn, region, piece, now)
        })
    }

    fn read_piece(&self, turn: &mut Turn, region: RegionIndex, piece: ByteExtent, out: &mut [u8]) -> Result<(), Errno> {
        let geometry = self.base.geometry();
        let mut content: Option<Arc<Region>> = None;
        let mut at = piece.offset.0;
        let end = at + piece.len;
        while at < end {
            let (run, written) = self.run_at(at, end);
            let until = run_end(geometry, run).min(end);
            let out = &mut out[(at - piece.offset.0) as usize..(until - piece.offset.0) as usize];
            match &self.overlay {
                Some(overlay) if written => overlay.read_at(at, out)?,
                _ if self.base.is_zero(region) => out.fill(0),
                _ => {
                    let known = content.take().filter(|content| !content.has_lost(run));
                    let content = content.insert(known.map_or_else(|| self.region(turn, region, run), Ok)?);
                    if content.is_missing(run) {
                        return Err(Errno::EIO);
                    }
                    let from = (at - self.start_of(region)) as usize;
                    out.copy_from_slice(&content.bytes[from..from + out.len()]);
                }
            }
            at = until;
        }
        Ok(())
    }

    /// The granules from an offset on that are all written, or all not, up to the one at `end`; and which.
    fn run_at(&self, at: u64, end: u64) -> (GranuleRun, bool) {
        let geometry = self.base.geometry();
        let touched = ByteExtent { offset: ByteOffset(at), len: end - at };
        let all = geometry.granules_of(touched).expect("it is inside the volume, and not empty");
        let Some(overlay) = &self.overlay else { return (all, false) };
        let written = overlay.has(all.start);
        let same = (all.start.0..all.end().0).take_while(|granule| overlay.has(GranuleIndex(*granule)) == written).count();
        (GranuleRun { start: all.start, count: same as u64 }, written)
    }

    /// Writes.
    ///
    /// # Errors
    /// `EROFS` without an overlay; what that says; `EIO` where a granule that is written in part cannot be read.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.write_in(&mut Turn::waiting(), offset, bytes)
    }

    /// [`View::write`].
    ///
    /// # Errors
    /// `EAGAIN` also, where it would wait out of turn. Nothing was written then.
    pub(crate) fn write_in(&self, turn: &mut Turn, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut rest = bytes;
        let extent = ByteExtent { offset: ByteOffset(offset), len: bytes.len() as u64 };
        self.change(turn, extent, false, &mut |overlay, piece| {
            let (now, later) = rest.split_at(piece.len as usize);
            rest = later;
            overlay.write_at(piece.offset.0, now)
        })
    }

    /// Makes an extent zeroes; with `no_hole` its space stays allocated.
    ///
    /// # Errors
    /// As [`View::write`].
    pub fn zero(&self, extent: ByteExtent, no_hole: bool) -> Result<(), Errno> {
        self.zero_in(&mut Turn::waiting(), extent, no_hole)
    }

    /// [`View::zero`].
    ///
    /// # Errors
    /// As [`View::write_in`].
    pub(crate) fn zero_in(&self, turn: &mut Turn, extent: ByteExtent, no_hole: bool) -> Result<(), Errno> {
        self.change(turn, extent, !no_hole, &mut |overlay, piece| overlay.zero_at(piece, no_hole))
    }

    /// The content of an extent is not needed any more: its whole granules become zeroes. Parts of granules are left as they are, since
    /// the rest of each would have to be fetched.
    ///
    /// # Errors
    /// As [`View::write`].
    pub fn trim(&self, extent: ByteExtent) -> Result<(), Errno> {
        let (granule, volume) = (self.base.geometry().granule_bytes(), self.bytes());
        let end = extent.offset.0.checked_add(extent.len).filter(|end| *end <= volume).ok_or(Errno::EINVAL)?;
        let from = extent.offset.0.next_multiple_of(granule);
        let until = if end == volume { end } else { end - end % granule };
        self.zero(ByteExtent { offset: ByteOffset(from), len: until.saturating_sub(from) }, false)
    }

    /// `zeroes`: what is zeroes already may be left alone.
    fn change(
        &self,
        turn: &mut Turn,
        extent: ByteExtent,
        zeroes: bool,
        put: &mut dyn FnMut(&Overlay, ByteExtent) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let overlay = self.overlay.as_ref().filter(|_| !self.is_read_only).ok_or(Errno::EROFS)?;
        let geometry = *self.base.geometry();
        // Before the lock: whole granules are written meanwhile. And before anything is: a request that has to be tried anew has changed nothing.
        let below = self.below_parts(turn, overlay, extent)?;
        self.in_regions(extent, &mut |region, piece| {
            let _only = self.hold_writes(region);
            let run = geometry.granules_of(piece).expect("it is inside the volume, and not empty");
            let untouched = || (run.start.0..run.end().0).all(|granule| !overlay.has(GranuleIndex(granule)));
            if zeroes && self.base.is_zero(region) && untouched() {
                return Ok(());
            }
            for (granule, below) in below.iter().filter(|(granule, _)| (run.start..run.end()).contains(granule)) {
                if !overlay.has(*granule) {
                    let whole = geometry.bytes_of(GranuleRun { start: *granule, count: 1 });
                    overlay.write_at(whole.offset.0, below)?;
                }
            }
            put(overlay, piece)?;
            overlay.set(run);
            Ok(())
        })
    }

    /// What the point holds in the granules of which only a part lies in an extent, unless they were written.
    fn below_parts(&self, turn: &mut Turn, overlay: &Overlay, extent: ByteExtent) -> Result<Vec<(GranuleIndex, Vec<u8>)>, Errno> {
        let geometry = self.base.geometry();
        let Some(run) = geometry.granules_of(extent).filter(|run| run.count > 0) else { return Ok(Vec::new()) };
        let last = GranuleIndex(run.end().0 - 1);
        let mut below = Vec::new();
        for granule in [Some(run.start), Some(last).filter(|last| *last != run.start)].into_iter().flatten() {
            let whole = geometry.bytes_of(GranuleRun { start: granule, count: 1 });
            let covered = extent.offset <= whole.offset && extent.offset.0 + extent.len >= whole.offset.0 + whole.len;
            if !covered && !overlay.has(granule) {
                let mut bytes = vec![0; whole.len as usize];
                self.read_piece(turn, geometry.region_of(granule), whole, &mut bytes)?;
                below.push((granule, bytes));
            }
        }
        Ok(below)
    }

    /// What was written is durable.
    ///
    /// # Errors
    /// [`Overlay::flush`].
    pub fn flush(&self) -> Result<(), Errno> {
        self.overlay.as_ref().map_or(Ok(()), Overlay::flush)
    }

    /// What is where, for block status: as [`farside_blockio::BlockQueue::extents`].
    pub fn extents(&self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        let (from, geometry) = (out.len(), *self.base.geometry());
        let mut full = false;
        let mut push = |len, kind| {
            let runs = out.len() - from;
            match out[from..].last_mut() {
                // What comes after one that found no room is not next to the last.
                _ if full => {}
                Some(last) if last.kind == kind => last.len += len,
                _ if runs == max => full = true,
                _ => out.push(Extent { len, kind }),
            }
            full
        };
        self.in_regions(extent, &mut |region, piece| {
            // Once for a region: this is asked on the thread that serves everybody.
            if !self.base.is_zero(region) {
                push(piece.len, ExtentKind::Data);
                return Ok(());
            }
            let (mut at, end) = (piece.offset.0, piece.offset.0 + piece.len);
            while at < end {
                let (run, written) = self.run_at(at, end);
                let until = run_end(&geometry, run).min(end);
                if push(until - at, if written { ExtentKind::Data } else { ExtentKind::Hole }) {
                    break;
                }
                at = until;
            }
            Ok(())
        })
    }

    fn in_regions(
        &self,
        extent: ByteExtent,
        each: &mut dyn FnMut(RegionIndex, ByteExtent) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if extent.len == 0 {
            return Ok(());
        }
        let geometry = self.base.geometry();
        let regions = geometry.regions_of(geometry.granules_of(extent).ok_or(Errno::EINVAL)?);
        let end = extent.offset.0 + extent.len;
        for region in regions.start.0..regions.start.0 + regions.count {
            let region = RegionIndex(region);
            let whole = geometry.bytes_of(geometry.region_run(region));
            let at = whole.offset.0.max(extent.offset.0);
            let until = (whole.offset.0 + whole.len).min(end);
            each(region, ByteExtent { offset: ByteOffset(at), len: until - at })?;
        }
        Ok(())
    }

    fn start_of(&self, region: RegionIndex) -> u64 {
        let geometry = self.base.geometry();
        geometry.bytes_of(geometry.region_run(region)).offset.0
    }

    /// A region, to read `run` of it. What was lost when it was read last is looked for again: it may have been put back.
    fn region(&self, turn: &mut Turn, region: RegionIndex, run: GranuleRun) -> Result<Arc<Region>, Errno> {
        self.ahead.heard(region, |region| self.next_to_fetch(region));
        if let Some(content) = self.cached(region, run) {
            return Ok(content);
        }
        let fetch = turn.fetch.take().filter(|fetch| fetch.region() == region).unwrap_or_else(|| self.fetches.of(region));
        if !turn.may_wait && !fetch.is_over() {
            turn.fetch = Some(fetch);
            return Err(Errno::EAGAIN);
        }
        // Whoever waited for it, and in vain, does not wait once more by himself.
        self.join(&fetch, run).ok_or(Errno::EIO)
    }

    fn join(&self, fetch: &Fetch, run: GranuleRun) -> Option<Arc<Region>> {
        let (region, mut is_ours) = (fetch.region(), false);
        let fetched = self.fetches.join(fetch, || {
            is_ours = true;
            self.cached(region, run).or_else(|| self.fetch(region))
        });
        if is_ours {
            // Whoever was not let wait for it may be in any queue.
            let queues: Vec<Arc<dyn Hears>> = lock(&self.hearing).iter().filter_map(Weak::upgrade).collect();
            queues.iter().for_each(|queue| queue.fetch_is_over());
        }
        fetched
    }

    /// Tells a queue of every fetch that is over.
    pub(crate) fn tell(&self, queue: Weak<dyn Hears>) {
        let mut queues = lock(&self.hearing);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(queue);
    }

    /// What goes wrong is said here.
    fn read_base(&self, region: RegionIndex) -> Result<Region, StoreError> {
        let content = self.base.read(region);
        let (wrong, mut told) =
            (content.as_ref().map_or_else(Some, |content| content.lost.as_ref().map(|lost| &lost.why)), lock(&self.told));
        let is_news = match wrong {
            Some(error) if is_outage(error) => told.away.len() < TOLD_MAX && told.away.insert(region),
            Some(_) => told.damaged.len() < TOLD_MAX && told.damaged.insert(region),
            None => false,
        };
        if content.is_ok() {
            told.away.remove(&region);
        }
        drop(told);
        wrong.filter(|_| is_news).into_iter().for_each(|error| (self.tell)(error));
        content
    }
}

/// What was said, of which regions.
#[derive(Debug, Default)]
struct Told {
    /// Until they were read after all: the next outage is another one.
    away: HashSet<RegionIndex>,
    damaged: HashSet<RegionIndex>,
}

/// Whether nothing is wrong with what was read, as far as is known: the store, or the way to it, is away.
pub(crate) fn is_outage(error: &StoreError) -> bool {
    matches!(error, StoreError::Remote { .. } | StoreError::Vanished { .. } | StoreError::Io { .. })
}

/// One more of something, as long as this lives.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn meets(runs: &[GranuleRun], run: GranuleRun) -> bool {
    runs.iter().any(|other| other.start < run.end() && run.start < other.end())
}

fn run_end(geometry: &Geometry, run: GranuleRun) -> u64 {
    let bytes = geometry.bytes_of(run);
    bytes.offset.0 + bytes.len
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
