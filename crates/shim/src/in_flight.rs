//! The requests of one queue between mark and completion, readable by other threads.

use farside_region::{EpochId, GranuleIndex, GranuleRun};

use crate::sync::{AtomicU32, AtomicU64, Ordering};

const USED: u64 = 1 << 63;
const FLUSH: u64 = 1 << 62;

struct Entry {
    /// 0 = free; `USED | start 40 | count 15`; or `USED | FLUSH`.
    extent: AtomicU64,
    /// The epoch of a write; the number of a flush.
    number: AtomicU64,
}

/// Written by the queue's own thread only. A reader may pair an entry's extent with the *number* of a later request in the same
/// place; that only happens after the first one completed, and the number is then a newer one: nobody waits for too little.
pub(crate) struct InFlight {
    entries: Box<[Entry]>,
    /// Entries ever used, so that a scan stays short.
    high: AtomicU32,
}

impl InFlight {
    pub(crate) fn new(entries: usize) -> Self {
        let entry = |_| Entry { extent: AtomicU64::new(0), number: AtomicU64::new(0) };
        Self { entries: (0..entries).map(entry).collect(), high: AtomicU32::new(0) }
    }

    #[inline]
    pub(crate) fn set_write(&self, at: u16, run: GranuleRun, epoch: EpochId) {
        self.set(at, USED | run.start.0 << 15 | run.count, epoch.0);
    }

    pub(crate) fn set_flush(&self, at: u16, flush: u64) {
        self.set(at, USED | FLUSH, flush);
    }

    #[inline]
    fn set(&self, at: u16, extent: u64, number: u64) {
        if self.high.load(Ordering::Relaxed) <= u32::from(at) {
            self.high.store(u32::from(at) + 1, Ordering::Relaxed);
        }
        let entry = &self.entries[at as usize];
        entry.number.store(number, Ordering::Relaxed);
        entry.extent.store(extent, Ordering::Release);
    }

    /// The request is complete: its I/O has landed.
    #[inline]
    pub(crate) fn clear(&self, at: u16) {
        self.entries[at as usize].extent.store(0, Ordering::Release);
    }

    /// Writes in flight: where, and of which epoch (or a later one, see above).
    pub(crate) fn writes(&self) -> impl Iterator<Item = (GranuleRun, EpochId)> + '_ {
        self.used().filter(|(extent, _)| extent & FLUSH == 0).map(|(extent, number)| (run_of(extent), EpochId(number)))
    }

    /// The numbers of flushes in flight.
    pub(crate) fn flushes(&self) -> impl Iterator<Item = u64> + '_ {
        self.used().filter(|(extent, _)| extent & FLUSH != 0).map(|(_, number)| number)
    }

    /// Requests in flight.
    pub(crate) fn count(&self) -> usize {
        self.used().count()
    }

    fn used(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let high = self.high.load(Ordering::Acquire) as usize;
        self.entries[..high].iter().filter_map(|entry| {
            let extent = entry.extent.load(Ordering::Acquire);
            (extent != 0).then(|| (extent, entry.number.load(Ordering::Relaxed)))
        })
    }
}

fn run_of(extent: u64) -> GranuleRun {
    GranuleRun { start: GranuleIndex(extent >> 15 & ((1 << 40) - 1)), count: extent & ((1 << 15) - 1) }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InFlight({} of {})", self.count(), self.entries.len())
    }
}
