//! One protected volume: everything that queue threads, owner, sender and control thread share.

use farside_region::{BootId, EpochId, Geometry, GranuleSet, RegionIndex, RegionSet, intent::IntentLayout};

use crate::{Connection, Limits, RegionState, Wake, sync::Arc};

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
    /// Bugs switched on by tests.
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
            #[cfg(any(test, feature = "mutations"))]
            mutations: crate::Mutations::default(),
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
}

/// One protected volume.
#[derive(Debug)]
pub struct Volume {
    geometry: Geometry,
    #[cfg(any(test, feature = "mutations"))]
    pub(crate) mutations: crate::Mutations,
}

impl Volume {
    /// Its shape.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A new client connection, for its FLUSH and FUA requests (T14).
    pub fn connect(&self) -> Arc<Connection> {
        todo!()
    }

    /// The state of a region.
    pub fn region_state(&self, _region: RegionIndex) -> RegionState {
        todo!()
    }

    /// All regions whose bit is durable, as the caller's to keep: those that were cooling are taken back, so that "no layer
    /// touches a region that is not hot" (T3) holds for whatever is made of the answer.
    pub fn hot_regions(&self) -> RegionSet {
        todo!()
    }

    /// Asks the owner to make these regions hot (`Compare(all)`, T3; a cold difference found by `verify`, T6).
    /// [`Volume::is_hot`] says when they are.
    pub fn heat(&self, _regions: &RegionSet) {
        todo!()
    }

    /// [`Volume::heat`] of every region.
    pub fn heat_all(&self) {
        todo!()
    }

    /// Whether all of these are hot; takes back those that are cooling.
    pub fn is_hot(&self, _regions: &RegionSet) -> bool {
        todo!()
    }

    /// Marks granules in the open map: masks of a clean stop, or the bits of layers that will never be published (new claim).
    /// Only from the control thread, which also drives the [`crate::Switcher`].
    pub fn mark_open(&self, _set: &GranuleSet) {
        todo!()
    }

    /// A copy of the open map (for the masks of a clean stop, with taps drained; otherwise a snapshot of something moving).
    pub fn open_set(&self) -> GranuleSet {
        todo!()
    }

    /// Whether the open map is empty. With T read *before* the call: nothing acknowledged up to T is in it.
    pub fn open_is_empty(&self) -> bool {
        todo!()
    }

    /// Writes, trims and flushes between mark and completion.
    pub fn in_flight(&self) -> usize {
        todo!()
    }

    /// Announces a flush of the backing that the control thread is about to issue; end it with [`Volume::flush_end`].
    /// (The cooler's own flushes go through [`crate::Cooler`].)
    pub fn flush_begin(&self) -> u64 {
        todo!()
    }

    /// The flush is over.
    pub fn flush_end(&self, _flush: u64, _ok: bool) {
        todo!()
    }

    /// How many backing flushes failed in this attach.
    pub fn flush_failures(&self) -> u64 {
        todo!()
    }

    /// Whether the intent map can be relied on.
    pub fn tracking(&self) -> Tracking {
        todo!()
    }

    /// Says what becomes of cold writes after the intent map failed.
    pub fn resolve_tracking_lost(&self, _verdict: TrackingVerdict) {
        todo!()
    }

    /// What happened since the last call.
    pub fn take_events(&self) -> VolumeEvents {
        todo!()
    }
}

#[allow(dead_code)]
type Unused = BootId;
