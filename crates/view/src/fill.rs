//! Filling an overlay with what its point holds, until its `data` is the whole volume and needs no point any more.
//!
//! Invariants:
//! - a granule is filled only while it has no bit, looked at under the lock under which a write of its region sets one: a fill never lies
//!   over a write, and a bit means that the granule is in `data`, whoever put it there. So reads, writes and flushes know nothing of fills;
//! - † where no bit is, `data` may hold anything, such as what a process wrote that was killed before its flush: zeroes are filled, too;
//! - what cannot be read is not filled, and an overlay that lacks it is not whole.
//!
//! It does not give the file its name: that is the overlay's ([`crate::Overlay::become_file`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use farside_region::{GranuleIndex, GranuleRun, RegionIndex, mutation};
use nix::errno::Errno;

use crate::view::{Base, View, is_outage};
use crate::{Overlay, Region};

/// What was filled is made durable after so many regions: so much at most is fetched again after a kill.
const FLUSH_REGIONS: u64 = 64;
/// A store that does not answer is asked again after so long, and whoever wants an end is heard so often.
const AGAIN: Duration = if cfg!(test) { Duration::from_millis(2) } else { Duration::from_secs(10) };
const HEARD: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_millis(100) };

/// What became of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// All of it was there, or cannot be read.
    Nothing,
    Some,
    /// The store does not answer.
    Away,
}

/// Once through the volume: what was seen of regions.
#[derive(Debug, Default)]
struct Pass {
    is_away: AtomicBool,
    has_filled: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is in `data` already.
    There,
    /// It cannot be read.
    Missing,
    Zero,
    Data,
}

impl<B: Base> View<B> {
    /// Fills the overlay, first what was asked for since, then in sequence; what cannot be read is tried again as long as something else
    /// can, and a store that does not answer until it does. `go_on` hears, from any thread, how many bytes are there; with `false` it ends early.
    ///
    /// Gives the bytes that are not there, durably all others are.
    ///
    /// # Errors
    /// The overlay's.
    ///
    /// # Panics
    /// Without an overlay.
    pub fn fill(&self, threads: usize, go_on: &(dyn Fn(u64) -> bool + Sync)) -> Result<u64, Errno> {
        let overlay = self.overlay().expect("it is an overlay that is filled");
        loop {
            let pass = Pass::default();
            let is_over = self.fill_once(threads, go_on, &pass)?;
            self.flush()?;
            let missing = overlay.missing_bytes();
            let (is_away, has_filled) = (pass.is_away.into_inner(), pass.has_filled.into_inner());
            if is_over || missing == 0 || self.is_deleted() || self.is_merged() || !(is_away || has_filled) {
                return Ok(missing);
            }
            // Whatever clients write meanwhile.
            let until = Instant::now() + AGAIN;
            while is_away && Instant::now() < until {
                if !go_on(overlay.written_bytes().min(self.bytes())) {
                    return Ok(missing);
                }
                thread::sleep(HEARD);
            }
        }
    }

    /// Says whether it ended early.
    fn fill_once(&self, threads: usize, go_on: &(dyn Fn(u64) -> bool + Sync), pass: &Pass) -> Result<bool, Errno> {
        let (next, tried, end) = (AtomicU64::new(0), AtomicU64::new(0), self.geometry().region_count());
        let outcome = Mutex::new(Ok(false));
        let is_going_on = || *outcome.lock().unwrap_or_else(PoisonError::into_inner) == Ok(false);
        let one = || -> Result<bool, Errno> {
            while is_going_on() {
                if !go_on(self.overlay().map_or(0, Overlay::written_bytes).min(self.bytes())) {
                    return Ok(true);
                }
                let region = self.asked_for().or_else(|| {
                    let region = next.fetch_add(1, Ordering::Relaxed);
                    (region < end).then_some(RegionIndex(region))
                });
                let Some(region) = region else { break };
                match self.fill_region(region)? {
                    Filled::Nothing => {}
                    Filled::Some => pass.has_filled.store(true, Ordering::Relaxed),
                    Filled::Away => pass.is_away.store(true, Ordering::Relaxed),
                }
                if (tried.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(FLUSH_REGIONS) {
                    self.flush()?;
                }
            }
            Ok(false)
        };
        thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    let ended = one();
                    if ended != Ok(false) {
                        *outcome.lock().unwrap_or_else(PoisonError::into_inner) = ended;
                    }
                });
            }
        });
        outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills what of a region is not there and can be read.
    pub(crate) fn fill_region(&self, region: RegionIndex) -> Result<Filled, Errno> {
        let overlay = self.overlay().expect("it is an overlay that is filled");
        let geometry = *self.geometry();
        let whole = geometry.region_run(region);
        let is_there = |granule: GranuleIndex| overlay.has(granule) && !mutation::on("a fill lies over what was written");
        if (whole.start.0..whole.end().0).all(|granule| is_there(GranuleIndex(granule))) {
            return Ok(Filled::Nothing);
        }
        // Before the lock: a client's write does not wait for the store.
        let content = match self.is_zero(region) {
            true => None,
            false => match self.region_to_fill(region) {
                Ok(content) => Some(content),
                Err(error) if is_outage(&error) => return Ok(Filled::Away),
                Err(_) => return Ok(Filled::Nothing), // it is said, and missing
            },
        };
        let start = geometry.bytes_of(whole).offset.0;
        let bytes_of = |content: &Region, run| {
            let extent = geometry.bytes_of(run);
            let from = (extent.offset.0 - start) as usize;
            from..(from + extent.len as usize).min(content.bytes.len())
        };
        let zeroes = vec![0; geometry.granule_bytes() as usize];
        let kind_of = |granule: GranuleIndex| match &content {
            _ if is_there(granule) => Kind::There,
            None => Kind::Zero,
            Some(content) => {
                let one = GranuleRun { start: granule, count: 1 };
                let bytes = &content.bytes[bytes_of(content, one)];
                match () {
                    () if content.is_missing(one) => Kind::Missing,
                    () if *bytes == zeroes[..bytes.len()] => Kind::Zero,
                    () => Kind::Data,
                }
            }
        };
        let _only = self.hold_writes(region);
        let (mut at, mut filled) = (whole.start.0, Filled::Nothing);
        while at < whole.end().0 {
            let kind = kind_of(GranuleIndex(at));
            let same = (at + 1..whole.end().0).take_while(|granule| kind_of(GranuleIndex(*granule)) == kind).count() as u64;
            let run = GranuleRun { start: GranuleIndex(at), count: 1 + same };
            let extent = geometry.bytes_of(run);
            match (kind, &content) {
                (Kind::There | Kind::Missing, _) => {}
                (Kind::Data, Some(content)) => {
                    overlay.write_at(extent.offset.0, &content.bytes[bytes_of(content, run)])?;
                    overlay.set(run);
                    filled = Filled::Some;
                }
                (Kind::Zero | Kind::Data, _) => {
                    if !mutation::on("a fill takes it for zeroes where no bit is") {
                        overlay.zero_at(extent, false)?;
                    }
                    overlay.set(run);
                    filled = Filled::Some;
                }
            }
            at = run.end().0;
        }
        Ok(filled)
    }
}
