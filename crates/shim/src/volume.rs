//! One protected volume: everything that queue threads, owner, sender and control thread share.

use farside_region::{
    EpochId, Geometry, GranuleIndex, GranuleRun, GranuleSet, RegionIndex, RegionRange, RegionSet, intent::IntentLayout,
};

use crate::bell::Bell;
use crate::claims::Claims;
use crate::epoch_map::EpochMap;
use crate::in_flight::InFlight;
use crate::limits::ANNOUNCE_GRANULES_MAX;
use crate::mutation::mutated;
use crate::pool::Pool;
use crate::sync::{Arc, AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering, fence};
use crate::{Connection, Group, Limits, RegionState, Wake};

/// What a volume is opened with.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// Its shape.
    pub geometry: Geometry,
    /// The layout of its intent map.
    pub layout: IntentLayout,
    /// Its bounds.
    pub limits: Limits,
    /// Number of queues.
    pub queues: usize,
    /// Its size in bytes at the last attach, from the header: smaller than now → it grew (T12).
    pub volume_bytes_before: u64,
    /// A header of this very boot says that a flush failed: no region inherited hot may cool (T14).
    pub flush_failed_this_boot: bool,
    /// One that failed before this attach was told to nobody: every connection's next FLUSH or FUA fails with it (T14).
    pub flush_failure_untold: bool,
    /// Bugs switched on by tests: by default those of this thread.
    #[cfg(any(test, feature = "mutations"))]
    pub mutations: crate::Mutations,
}

impl VolumeConfig {
    /// One queue, default limits, full pages, nothing unusual before.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            layout: IntentLayout::new(&geometry),
            limits: Limits::DEFAULT,
            queues: 1,
            volume_bytes_before: geometry.volume_bytes(),
            flush_failed_this_boot: false,
            flush_failure_untold: false,
            #[cfg(any(test, feature = "mutations"))]
            mutations: crate::Mutations::of_this_thread(),
        }
    }
}

/// Whom to wake when there is something to do.
#[derive(Clone)]
pub struct Wakes {
    /// Per queue: a parked request may go on.
    pub queues: Vec<Arc<dyn Wake>>,
    /// The sender: a [`crate::Next::Wait`] may be over.
    pub sender: Arc<dyn Wake>,
    /// The intent owner: [`crate::IntentOwner::next_commit`] has something.
    pub owner: Arc<dyn Wake>,
    /// The control thread: [`Volume::take_events`] has something.
    pub control: Arc<dyn Wake>,
}

impl Wakes {
    /// Nobody: for drivers that poll.
    pub fn none(queues: usize) -> Self {
        let nobody: Arc<dyn Wake> = Arc::new(crate::NoWake);
        Self { queues: vec![nobody.clone(); queues], sender: nobody.clone(), owner: nobody.clone(), control: nobody }
    }
}

impl std::fmt::Debug for Wakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wakes({} queues)", self.queues.len())
    }
}

/// Whether the intent map can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// It can.
    Sound,
    /// A page could not be written or synced: cold writes wait until [`Volume::resolve_tracking_lost`] says what to do.
    Lost,
    /// Lost, and writes go on (the loss was made durable elsewhere, or `on_tracking_lost = pass`).
    LostPassing,
    /// Lost, and writes to cold regions fail (`on_tracking_lost = fail`).
    LostFailing,
}

/// What to do with cold writes after the intent map was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackingVerdict {
    /// Let them go on: every region counts as hot for the rest of this attach.
    Pass,
    /// Fail them.
    Fail,
}

/// What the control thread should look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeEvents {
    /// This epoch's cut overflowed on this volume: call [`crate::Switcher::demote`] and tell replication.
    pub overflowed: Option<EpochId>,
    /// A flush of the backing failed: record it in the header with the kernel's boot id (T14).
    pub flush_failed: bool,
    /// The intent map failed: make it durable elsewhere, then [`Volume::resolve_tracking_lost`].
    pub tracking_lost: bool,
    /// Bits became durable since [`Volume::watch_heat`]: ask [`Volume::is_hot`] again.
    pub heated: bool,
}

/// A cache line of its own, so that queues do not slow each other down.
#[repr(align(64))]
struct Padded<T>(T);

/// The kinds in the word that says what is frozen: `epoch << 2 | kind`.
pub(crate) const CUT: u64 = 1;
/// Given up (or over): nobody claims any more, its memory is about to be freed.
pub(crate) const PASS: u64 = 2;
/// Read completely and concluded: it can no longer overflow.
pub(crate) const SEALED: u64 = 3;

pub(crate) fn frozen_word(epoch: EpochId, kind: u64) -> u64 {
    epoch.0 << 2 | kind
}

const MARKING: u64 = 1 << 63;
const COUNT_SHIFT: u32 = 55;
const EXTENT_MASK: u64 = (1 << COUNT_SHIFT) - 1;

const EVENT_FLUSH_FAILED: u64 = 1;
const EVENT_TRACKING_LOST: u64 = 2;
const EVENT_OVERFLOW: u64 = 4;
const EVENT_HEATED: u64 = 8;

/// One protected volume: all that its queues, its owner, its sender and the control thread share.
///
/// Slot words, one per queue and one for the sender, are `{MARKING 1, count 8, granule 40, length 15}`: whoever is about to
/// mark, or to touch what a cut may free, announces it there, fences, and only then looks at the epoch or the cut. Whoever
/// changed one of those fences and waits for every slot that was MARKING to be seen idle or with another count (the *grace*).
pub struct Volume {
    pub(crate) geometry: Geometry,
    pub(crate) limits: Limits,
    pub(crate) layout: IntentLayout,
    pub(crate) group: Arc<Group>,
    pub(crate) ordinal: u32,
    #[cfg(any(test, feature = "mutations"))]
    pub(crate) mutations: crate::Mutations,

    states: Box<[AtomicU8]>,
    /// Per region: a writer wants its bit set / the cooler wants it cleared / and its content is zero.
    pub(crate) want: Box<[AtomicU64]>,
    pub(crate) ready: Box<[AtomicU64]>,
    pub(crate) ready_zero: Box<[AtomicU64]>,
    /// Per page: something in `want` or `ready`.
    pub(crate) asked_pages: Box<[AtomicU64]>,
    /// T14: hot when a flush failed: may not cool before the next boot.
    no_cool: Box<[AtomicU64]>,

    /// `first epoch of the current map << 1 | which of the two maps`.
    current: AtomicU64,
    pub(crate) maps: [EpochMap; 2],
    pub(crate) masks: Pool,
    /// 0, or `epoch << 2 | kind`: the cut that this volume has frozen.
    pub(crate) frozen: AtomicU64,
    /// The newest epoch of this volume whose grace is over, plus 1.
    pub(crate) settled: AtomicU64,
    pub(crate) claims: Claims,

    slots: Box<[Padded<AtomicU64>]>,
    pub(crate) in_flight: Box<[InFlight]>,
    /// Flushes issued by others than the queues. Never locked on a queue's thread.
    other_flushes: Mutex<Vec<u64>>,
    flushes_begun: AtomicU64,
    flush_ok_newest: AtomicU64,
    flush_failures: AtomicU64,
    pub(crate) flush_failures_reported: AtomicU64,

    /// Somebody waits for [`EVENT_HEATED`].
    heat_watched: AtomicBool,
    /// Somebody else may have written where zeroes are known to be.
    zeroes_doubted: AtomicBool,
    tracking: AtomicU8,
    events: AtomicU64,
    overflowed: AtomicU64,
    pub(crate) queue_bells: Box<[Bell]>,
    pub(crate) sender_bell: Bell,
    pub(crate) owner_bell: Bell,
    control_bell: Bell,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({} bytes, {} queues)", self.geometry.volume_bytes(), self.in_flight.len())
    }
}

/// What a writer's look at the intent of its regions found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Hot,
    Waiting,
    Failed,
}

impl Volume {
    pub(crate) fn new(
        group: Arc<Group>,
        ordinal: u32,
        config: &VolumeConfig,
        wakes: Wakes,
        hot: &dyn Fn(RegionIndex) -> bool,
    ) -> Self {
        let (geometry, mut limits) = (config.geometry, config.limits);
        // A piece, with a granule cut at either end, must fit a slot word, whatever the size of a granule.
        let piece_max = (ANNOUNCE_GRANULES_MAX - 1) * geometry.granule_bytes();
        limits.piece_bytes = limits.piece_bytes.clamp(geometry.granule_bytes(), piece_max);
        assert_eq!(wakes.queues.len(), config.queues, "one wake per queue");
        let regions = geometry.region_count() as usize;
        let bitmap = |bits: usize| -> Box<[AtomicU64]> { (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() };
        let words = EpochMap::words(&geometry);
        let volume = Self {
            geometry,
            limits,
            layout: config.layout,
            ordinal,
            #[cfg(any(test, feature = "mutations"))]
            mutations: config.mutations,
            states: (0..regions as u64)
                .map(|r| AtomicU8::new(if hot(RegionIndex(r)) { RegionState::Hot } else { RegionState::Cold } as u8))
                .collect(),
            want: bitmap(regions),
            ready: bitmap(regions),
            ready_zero: bitmap(regions),
            asked_pages: bitmap(config.layout.page_count() as usize),
            no_cool: bitmap(regions),
            current: AtomicU64::new(0),
            maps: [EpochMap::new(&geometry), EpochMap::new(&geometry)],
            masks: Pool::new((limits.mask_pool_bytes / (words * 8)).min(2 * regions), words),
            frozen: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            claims: Claims::new(&geometry, limits.claim_pool_bytes),
            slots: (0..=config.queues).map(|_| Padded(AtomicU64::new(0))).collect(),
            in_flight: (0..config.queues).map(|_| InFlight::new(limits.in_flight_per_queue)).collect(),
            other_flushes: Mutex::new(Vec::new()),
            flushes_begun: AtomicU64::new(0),
            flush_ok_newest: AtomicU64::new(0),
            flush_failures: AtomicU64::new(u64::from(config.flush_failure_untold)),
            flush_failures_reported: AtomicU64::new(0),
            heat_watched: AtomicBool::new(false),
            zeroes_doubted: AtomicBool::new(false),
            tracking: AtomicU8::new(Tracking::Sound as u8),
            events: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            queue_bells: wakes.queues.into_iter().map(Bell::new).collect(),
            sender_bell: Bell::new(wakes.sender),
            owner_bell: Bell::new(wakes.owner),
            control_bell: Bell::new(wakes.control),
            group,
        };
        if config.flush_failed_this_boot && !mutated!(volume, FailedFlushEndsWithAttach) {
            volume.keep_hot_regions_hot();
        }
        if mutated!(volume, UntoldFlushForgotten) {
            volume.flush_failures.store(0, Ordering::Relaxed);
        }
        volume
    }

    /// Its shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A new client connection, for its FLUSH and FUA requests. It is told of a flush that failed before it came only if nobody
    /// has been told yet (T14).
    pub fn connect(&self) -> Arc<Connection> {
        Arc::new(Connection::new(self.flush_failures_reported.load(Ordering::Acquire)))
    }

    // ---- regions

    pub(crate) fn state(&self, region: RegionIndex) -> &AtomicU8 {
        &self.states[region.0 as usize]
    }

    pub(crate) fn change(&self, region: RegionIndex, from: RegionState, to: RegionState) -> bool {
        self.state(region).compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The state of a region.
    pub fn region_state(&self, region: RegionIndex) -> RegionState {
        RegionState::from_u8(self.state(region).load(Ordering::Acquire))
    }

    /// Whether a region's bit is durable, as the caller's to keep: taken back if it was cooling.
    fn take_hot(&self, region: RegionIndex) -> bool {
        match self.region_state(region) {
            RegionState::Hot => true,
            RegionState::Cooling => self.change(region, RegionState::Cooling, RegionState::Hot),
            _ => false,
        }
    }

    /// The look at a region between announce and mark: hot, or taken back from cooling.
    #[inline]
    pub(crate) fn is_markable(&self, region: RegionIndex) -> bool {
        let state = self.state(region).load(Ordering::Acquire);
        if state == RegionState::Hot as u8 || mutated!(self, MarkBeforeIntent) {
            return true;
        }
        if mutated!(self, ClearInCoolingWindow) && state == RegionState::Cooling as u8 {
            return true;
        }
        self.take_hot(region)
    }

    /// All regions whose bit is durable, as the caller's to keep: those that were cooling are taken back, so that "no layer
    /// touches a region that is not hot" (T3) holds for whatever is made of the answer.
    pub fn hot_regions(&self) -> RegionSet {
        let mut set = RegionSet::new();
        let mut range = RegionRange { start: RegionIndex(0), count: 0 };
        for region in self.geometry.all_regions().iter().filter(|&r| self.take_hot(r)) {
            if range.start.0 + range.count == region.0 {
                range.count += 1;
            } else {
                set.insert_range(range);
                range = RegionRange { start: region, count: 1 };
            }
        }
        set.insert_range(range);
        set
    }

    /// Asks the owner to make these regions hot (`Compare(all)`, T3; a cold difference found by `verify`, T6).
    /// [`Volume::is_hot`] says when they are.
    pub fn heat(&self, regions: &RegionSet) {
        if regions.iter().filter(|&r| self.ask(r)).count() > 0 {
            self.owner_bell.ring();
        }
    }

    /// [`Volume::heat`] of every region.
    pub fn heat_all(&self) {
        if self.geometry.all_regions().iter().filter(|&r| self.ask(r)).count() > 0 {
            self.owner_bell.ring();
        }
    }

    /// From now on the next commit that makes bits durable is told once, by [`VolumeEvents::heated`]. Call it *before* the look
    /// by [`Volume::is_hot`] that decides to wait, so that no commit falls between the two.
    pub fn watch_heat(&self) {
        self.heat_watched.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Regions became hot by the owner's hand, or tracking ended or came back.
    pub(crate) fn tell_heated(&self) {
        fence(Ordering::SeqCst);
        if self.heat_watched.swap(false, Ordering::AcqRel) {
            self.raise(EVENT_HEATED);
        }
    }

    /// Whether all of these are hot; takes back those that are cooling.
    pub fn is_hot(&self, regions: &RegionSet) -> bool {
        // All are visited: one that is not hot must not keep those behind it from being taken back.
        regions.iter().filter(|r| !self.take_hot(*r)).count() == 0
    }

    /// Puts a cold region before its page's owner; true if it was cold. The caller rings the owner's bell.
    fn ask(&self, region: RegionIndex) -> bool {
        let cold = self.change(region, RegionState::Cold, RegionState::Setting)
            || self.change(region, RegionState::ColdZero, RegionState::Setting);
        if cold {
            self.post(&self.want, region);
        }
        cold
    }

    pub(crate) fn post(&self, bitmap: &[AtomicU64], region: RegionIndex) {
        bitmap[region.0 as usize / 64].fetch_or(1 << (region.0 % 64), Ordering::Release);
        let page = self.layout.place(region).0.0 as usize;
        self.asked_pages[page / 64].fetch_or(1 << (page % 64), Ordering::Release);
    }

    /// Step 1 of a write: every region of the run, from the start, after each durable set again †: one that was hot may have
    /// cooled meanwhile, and waiting for one that is neither hot nor queued would be for ever. Regions in COLD_ZERO are left
    /// alone when the request is to zero them (T8).
    pub(crate) fn look_at_intent(&self, run: GranuleRun, zeroing: bool) -> Intent {
        let (mut answer, mut asked) = (Intent::Hot, false);
        for region in self.geometry.regions_of(run).iter().filter(|&r| self.is_looked_at(r, run)) {
            match self.region_state(region) {
                RegionState::Hot | RegionState::Cooling => continue,
                RegionState::ColdZero if zeroing => continue,
                RegionState::Cold | RegionState::ColdZero if self.tracking() == Tracking::Sound => asked |= self.ask(region),
                _ => {}
            }
            answer = Intent::Waiting;
        }
        if asked {
            self.owner_bell.ring();
        }
        if answer == Intent::Waiting && self.tracking() == Tracking::LostFailing {
            return Intent::Failed;
        }
        answer
    }

    /// All are, but for a mutation.
    #[inline]
    pub(crate) fn is_looked_at(&self, region: RegionIndex, run: GranuleRun) -> bool {
        !mutated!(self, LookAtLastRegion) || self.geometry.region_of(GranuleIndex(run.end().0 - 1)) == region
    }

    // ---- epochs and maps

    /// The map that a mark of this epoch goes to. There are only two candidates: a switch begins only after the grace of the
    /// one before, so nobody is more than one epoch behind.
    #[inline]
    pub(crate) fn map_of(&self, epoch: EpochId) -> &EpochMap {
        let current = self.current.load(Ordering::Acquire);
        &self.maps[(current as usize & 1) ^ usize::from(epoch.0 < current >> 1)]
    }

    /// Marks what a write of an epoch is about to change.
    ///
    /// † Where no mask is left, all of the region counts as of that epoch. If it is being frozen as a cut, a newer write of other granules in
    /// it may have passed already, without saving what was there: nobody had marked or announced that. So the cut ends as a pass.
    #[inline]
    pub(crate) fn mark(&self, epoch: EpochId, run: GranuleRun) {
        if self.map_of(epoch).mark(&self.masks, &self.geometry, run) && !mutated!(self, WidenedCut) {
            // Whoever did not see our mark after its own fence (`before_overwrite`) had seen the cut, and so do we.
            fence(Ordering::SeqCst);
            self.overflow(epoch);
        }
    }

    /// The map that `epoch` froze, and was current until then: makes the other one current from `epoch + 1` on.
    pub(crate) fn turn_maps(&self, epoch: EpochId) {
        let current = self.current.load(Ordering::Relaxed);
        self.current.store((epoch.0 + 1) << 1 | (current & 1 ^ 1), Ordering::Release);
    }

    /// The map that is not current. Only for the switcher, after the grace.
    pub(crate) fn frozen_map(&self) -> &EpochMap {
        &self.maps[(self.current.load(Ordering::Acquire) as usize & 1) ^ 1]
    }

    pub(crate) fn open_map(&self) -> &EpochMap {
        &self.maps[self.current.load(Ordering::Acquire) as usize & 1]
    }

    /// Marks granules in the open map: masks of a clean stop, or the bits of layers that will never be published (new claim).
    /// Only from the control thread, which also drives the [`crate::Switcher`].
    pub fn mark_open(&self, set: &GranuleSet) {
        let (whole, masks) = set.parts();
        let map = self.open_map();
        for region in whole.iter() {
            map.mark(&self.masks, &self.geometry, self.geometry.region_run(region));
        }
        for (region, mask) in masks {
            let (mut at, first) = (0, self.geometry.region_run(region).start.0);
            while let Some((start, count)) = mask.next_run(at) {
                let run = GranuleRun { start: GranuleIndex(first + start as u64), count: count as u64 };
                map.mark(&self.masks, &self.geometry, run);
                at = start + count;
            }
        }
    }

    /// A copy of the open map (for the masks of a clean stop, with taps drained; otherwise a snapshot of something moving).
    pub fn open_set(&self) -> GranuleSet {
        self.open_map().snapshot(&self.masks, &self.geometry)
    }

    /// Number of granules in the open map, roughly; costs what the number of dirty regions costs. Control thread only.
    pub fn open_granules(&self) -> u64 {
        self.open_map().granule_count(&self.masks, &self.geometry)
    }

    /// Whether the open map is empty. With T read *before* the call: nothing acknowledged up to T is in it.
    pub fn open_is_empty(&self) -> bool {
        fence(Ordering::SeqCst);
        self.open_map().is_empty()
    }

    /// Whether the volume itself mentions a region in one of its maps.
    pub(crate) fn is_mapped(&self, region: RegionIndex) -> bool {
        self.maps.iter().any(|map| map.is_dirty(region))
    }

    // ---- slots

    /// Says what this slot is about to touch (`run`), or only that it is busy (`None`), and fences. Announce-then-read is
    /// essential: read-then-announce loses marks even on x86 †.
    #[inline]
    pub(crate) fn announce(&self, slot: usize, run: Option<GranuleRun>) {
        let word = &self.slots[slot].0;
        let count = ((word.load(Ordering::Relaxed) >> COUNT_SHIFT) + 1) & 0xff;
        let extent = run.map_or(0, |r| r.start.0 << 15 | r.count);
        debug_assert!(extent <= EXTENT_MASK);
        // Release: a reader that sees this announcement also sees what was registered under the one before.
        word.store(MARKING | count << COUNT_SHIFT | extent, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The slot is idle again.
    #[inline]
    pub(crate) fn idle(&self, slot: usize) {
        let word = &self.slots[slot].0;
        word.store(word.load(Ordering::Relaxed) & !MARKING & !EXTENT_MASK, Ordering::Release);
    }

    pub(crate) fn sender_slot(&self) -> usize {
        self.slots.len() - 1
    }

    pub(crate) fn slot_words(&self) -> impl Iterator<Item = u64> + '_ {
        self.slots.iter().map(|slot| slot.0.load(Ordering::Acquire))
    }

    /// Whether any slot but this one announces a mark that overlaps the run.
    pub(crate) fn is_announced(&self, run: GranuleRun, but: usize) -> bool {
        self.slot_words().enumerate().any(|(slot, word)| {
            let (start, count) = (word >> 15 & ((1 << 40) - 1), word & ((1 << 15) - 1));
            slot != but && word & MARKING != 0 && start < run.end().0 && run.start.0 < start + count
        })
    }

    /// Whether a write of this epoch or an older one is in flight on the run.
    pub(crate) fn is_older_in_flight(&self, run: GranuleRun, epoch: EpochId) -> bool {
        self.in_flight.iter().flat_map(InFlight::writes).any(|(r, e)| e <= epoch && r.start < run.end() && run.start < r.end())
    }

    /// Writes, trims and flushes between mark and completion.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().map(InFlight::count).sum()
    }

    // ---- cuts

    /// Gives this volume's part of the cut up, because there is no room: the write goes on (L1), the control thread does the
    /// rest.
    pub(crate) fn overflow(&self, epoch: EpochId) {
        if self.end_cut(epoch) {
            self.overflowed.store(epoch.0, Ordering::Relaxed);
            self.raise(EVENT_OVERFLOW);
            self.ring_all();
        }
    }

    /// Turns the cut of this epoch into a pass; whether it was one, sealed or not.
    pub(crate) fn end_cut(&self, epoch: EpochId) -> bool {
        [CUT, SEALED].into_iter().any(|kind| {
            let (from, to) = (frozen_word(epoch, kind), frozen_word(epoch, PASS));
            self.frozen.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
        })
    }

    /// Something that parked requests or the sender may wait for has happened.
    pub(crate) fn ring_all(&self) {
        fence(Ordering::SeqCst);
        self.queue_bells.iter().for_each(Bell::ring_fenced);
        self.sender_bell.ring_fenced();
    }

    // ---- flushes

    /// Announces a flush of the backing that the control thread is about to issue; end it with [`Volume::flush_end`].
    /// (The cooler's own flushes go through [`crate::Cooler`].)
    pub fn flush_begin(&self) -> u64 {
        let mut others = self.other_flushes.lock().expect("nobody panics under this lock");
        let flush = self.next_flush();
        others.push(flush);
        flush
    }

    /// The flush is over.
    pub fn flush_end(&self, flush: u64, ok: bool) {
        self.flush_result(flush, ok);
        self.flush_over(flush);
    }

    /// It is over, and what came of it has been counted.
    pub(crate) fn flush_over(&self, flush: u64) {
        self.other_flushes.lock().expect("nobody panics under this lock").retain(|&f| f != flush);
    }

    pub(crate) fn next_flush(&self) -> u64 {
        self.flushes_begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(crate) fn flushes_begun(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.flushes_begun.load(Ordering::Acquire)
    }

    pub(crate) fn flush_ok_newest(&self) -> u64 {
        self.flush_ok_newest.load(Ordering::Acquire)
    }

    /// Whether a flush that began as this one or before is still under way.
    pub(crate) fn is_flush_under_way(&self, upto: u64) -> bool {
        fence(Ordering::SeqCst);
        self.in_flight.iter().flat_map(InFlight::flushes).any(|f| f <= upto)
            || self.other_flushes.lock().expect("nobody panics under this lock").iter().any(|&f| f <= upto)
    }

    /// A flush of the backing ended, whoever issued it. T14: a failure is reported once per file description, so it is
    /// remembered here for all: no region hot at this moment cools in this boot (what it lost may be any write before), and
    /// every connection's next FLUSH or FUA fails.
    pub(crate) fn flush_result(&self, flush: u64, ok: bool) {
        if ok {
            self.flush_ok_newest.fetch_max(flush, Ordering::AcqRel);
            return;
        }
        if mutated!(self, FailedFlushForgotten) {
            return;
        }
        self.flush_failures.fetch_add(1, Ordering::AcqRel);
        self.keep_hot_regions_hot();
        self.raise(EVENT_FLUSH_FAILED);
    }

    /// Every region with its bit set is taken back from cooling and never cools in this attach †. Goes over all regions, on
    /// whatever thread: a failed flush is rare, and nothing may be cleared behind it.
    fn keep_hot_regions_hot(&self) {
        for region in self.geometry.all_regions().iter() {
            if mutated!(self, FailedFlushSparesCooling) && self.region_state(region) == RegionState::Cooling {
                continue;
            }
            if self.take_hot(region) || self.region_state(region) == RegionState::Setting {
                self.no_cool[region.0 as usize / 64].fetch_or(1 << (region.0 % 64), Ordering::AcqRel);
            }
        }
    }

    pub(crate) fn may_cool(&self, region: RegionIndex) -> bool {
        self.no_cool[region.0 as usize / 64].load(Ordering::Acquire) >> (region.0 % 64) & 1 == 0
    }

    /// Somebody may have written past this volume: what it knows to be zero is zeroed again where that is asked for, as long as it is open (T8).
    pub fn doubt_zeroes(&self) {
        self.zeroes_doubted.store(true, Ordering::Release);
    }

    pub(crate) fn doubts_zeroes(&self) -> bool {
        self.zeroes_doubted.load(Ordering::Acquire) && !mutated!(self, DoubtedZeroes)
    }

    /// An answer that told of a failed flush did not get to its client: every connection's next FLUSH or FUA fails once more, also of
    /// those that come later. Told once too often is legal (T14).
    pub fn tell_failed_flush_again(&self) {
        if !mutated!(self, UnsentErrorIsTold) {
            self.flush_failures.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How many backing flushes failed in this attach, those counted that are to be told again; one more if nobody had been told of one before it.
    pub fn flush_failures(&self) -> u64 {
        self.flush_failures.load(Ordering::Acquire)
    }

    // ---- tracking and events

    /// Whether the intent map can be relied on.
    pub fn tracking(&self) -> Tracking {
        match self.tracking.load(Ordering::Acquire) {
            t if t == Tracking::Sound as u8 => Tracking::Sound,
            t if t == Tracking::Lost as u8 => Tracking::Lost,
            t if t == Tracking::LostPassing as u8 => Tracking::LostPassing,
            _ => Tracking::LostFailing,
        }
    }

    pub(crate) fn lose_tracking(&self) {
        self.tracking.store(Tracking::Lost as u8, Ordering::Release);
        self.raise(EVENT_TRACKING_LOST);
    }

    /// Says what becomes of cold writes after the intent map failed. A no-op while tracking is sound. Control thread only, which
    /// also drives the [`crate::Cooler`].
    pub fn resolve_tracking_lost(&self, verdict: TrackingVerdict) {
        let to = match verdict {
            TrackingVerdict::Pass => Tracking::LostPassing,
            TrackingVerdict::Fail => Tracking::LostFailing,
        };
        // From this loss alone: a map that was made anew meanwhile is sound, and stays so.
        let from = self.tracking();
        let swap = || self.tracking.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire);
        if from == Tracking::Sound || swap().is_err() {
            return;
        }
        if verdict == TrackingVerdict::Pass {
            // The owner builds no pages until the map is made anew, so no state changes but by writers' CAS; "everything is hot" is what the loss,
            // recorded elsewhere, means to the next attach: Compare(all).
            self.states.iter().for_each(|s| s.store(RegionState::Hot as u8, Ordering::Release));
        }
        self.ring_all();
    }

    /// Every bit of the map is durable (again). Only from the owner's thread, which alone clears bits and ends SETTING.
    pub(crate) fn regain_tracking(&self) {
        self.states.iter().for_each(|s| s.store(RegionState::Hot as u8, Ordering::Release));
        // An entry of before must not meet a region that cools later without its flush (ABA †); a cooler that posts one behind
        // this finds its region hot, and makes no other before the owner has seen it.
        for words in [&self.ready, &self.ready_zero, &self.want, &self.asked_pages] {
            words.iter().for_each(|word| word.store(0, Ordering::Release));
        }
        self.tracking.store(Tracking::Sound as u8, Ordering::Release);
        self.ring_all();
        self.tell_heated();
    }

    fn raise(&self, event: u64) {
        self.events.fetch_or(event, Ordering::AcqRel);
        self.control_bell.ring();
    }

    /// What happened since the last call. Arms the control wake, so call it once more before sleeping.
    pub fn take_events(&self) -> VolumeEvents {
        self.control_bell.arm();
        let events = self.events.swap(0, Ordering::AcqRel);
        VolumeEvents {
            overflowed: (events & EVENT_OVERFLOW != 0).then(|| EpochId(self.overflowed.load(Ordering::Acquire))),
            flush_failed: events & EVENT_FLUSH_FAILED != 0,
            tracking_lost: events & EVENT_TRACKING_LOST != 0,
            heated: events & EVENT_HEATED != 0,
        }
    }
}

/// Waits until whoever was inside an announcement when it began has left it. The caller fences between its change and this.
/// A sleeping queue does not hold it up: its slot is idle.
#[derive(Debug)]
pub(crate) struct Grace {
    waiting: Vec<(usize, u64)>,
}

impl Grace {
    pub(crate) fn begin(volume: &Volume) -> Self {
        Self { waiting: volume.slot_words().enumerate().filter(|(_, word)| word & MARKING != 0).collect() }
    }

    pub(crate) fn is_over(&mut self, volume: &Volume) -> bool {
        self.waiting.retain(|&(slot, before)| {
            let now = volume.slots[slot].0.load(Ordering::Acquire);
            now & MARKING != 0 && (now ^ before) & (0xff << COUNT_SHIFT) == 0
        });
        self.waiting.is_empty()
    }
}
