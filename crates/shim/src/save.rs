//! What a write does about a cut that froze the granules it is about to overwrite (DESIGN 4.1, step 3).
//!
//! | state | newer host write |
//! |---|---|
//! | an older-epoch write in flight on it | waits |
//! | `Unread` | claims, reads the old content into the side buffer, goes on |
//! | `Claimed` | waits for that claim |
//! | `Held` / `Sent` | goes on |
//!
//! Nobody waits while holding a claim but for its own read, so there is no cycle of waiting.

use farside_region::{EpochId, GranuleIndex, GranuleRun, RegionIndex};

use crate::epoch_map::{bits_between, first_run, words_of};
use crate::mutation::mutated;
use crate::sync::{Ordering, fence};
use crate::volume::{CUT, frozen_word};
use crate::{ParkKey, Volume};

/// What comes before the write may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    Park(ParkKey),
    /// This run was claimed for the caller: read it, then [`Volume::saved`].
    Save(GranuleRun, EpochId),
}

/// What one word of a region's granules asks for.
enum Word {
    Clear,
    Before(Before),
    Overflow,
}

impl Volume {
    /// What a write of `epoch`, marked and registered as in flight, has to do before it may touch the run.
    #[inline]
    pub(crate) fn before_write(&self, slot: usize, run: GranuleRun, epoch: EpochId) -> Before {
        let frozen = self.frozen.load(Ordering::Acquire);
        if frozen & 3 != CUT || frozen >> 2 >= epoch.0 {
            return Before::Nothing;
        }
        self.before_overwrite(slot, run, EpochId(frozen >> 2))
    }

    #[cold]
    fn before_overwrite(&self, slot: usize, run: GranuleRun, cut: EpochId) -> Before {
        if self.settled.load(Ordering::Acquire) <= cut.0 {
            // Grace: an older write may have read the counter and not registered yet. The fence orders our read of the counter
            // before this scan: whoever read the old epoch announced before it, so we see the announcement or what followed it.
            // We scan after our own mark is done: two that scanned while announcing would wait for each other for ever †.
            fence(Ordering::SeqCst);
            if self.is_announced(run, slot) && !mutated!(self, NoParking) {
                return Before::Park(ParkKey::Grace);
            }
        }
        // Pinned: as long as our slot is busy and we saw the cut, its claims and masks are not freed.
        self.announce(slot, None);
        let before = self.first_word_in_the_way(run, cut);
        self.idle(slot);
        match before {
            Some(Word::Before(before)) => before,
            Some(Word::Overflow) => {
                self.overflow(cut);
                Before::Nothing
            }
            Some(Word::Clear) | None => Before::Nothing,
        }
    }

    fn first_word_in_the_way(&self, run: GranuleRun, cut: EpochId) -> Option<Word> {
        if self.frozen.load(Ordering::Acquire) != frozen_word(cut, CUT) {
            return None;
        }
        self.geometry.regions_of(run).iter().find_map(|region| {
            if !self.frozen_map().is_dirty(region) {
                return None;
            }
            let all = self.geometry.region_run(region);
            let (start, end) = (run.start.max(all.start), run.end().min(all.end()));
            words_of(self.geometry.granule_in_region(start), (end.0 - start.0) as usize).find_map(|(word, bits)| {
                match self.word_in_the_way(region, word, bits, cut) {
                    Word::Clear => None,
                    other => Some(other),
                }
            })
        })
    }

    fn word_in_the_way(&self, region: RegionIndex, word: usize, bits: u64, cut: EpochId) -> Word {
        let frozen = self.frozen_map().dirty_word(&self.masks, &self.geometry, region, word) & bits;
        if frozen & !self.claims.done(region, word) == 0 {
            return Word::Clear;
        }
        let Some(block) = self.claims.block(region) else {
            return Word::Overflow;
        };
        let claimed = self.claims.claimed_word(block, word);
        let mut seen = claimed.load(Ordering::Acquire);
        loop {
            let pending = frozen & !self.claims.done_word(block, word).load(Ordering::Acquire);
            if pending == 0 {
                return Word::Clear;
            }
            let Some((start, count)) = first_run(pending & !seen, 0) else {
                return Word::Before(Before::Park(ParkKey::Claim));
            };
            let count = count.min(self.claim_granules_max());
            let run = self.run_in(region, word, start, count);
            if self.is_older_in_flight(run, cut) && !mutated!(self, PassWithoutDraining) {
                return Word::Before(Before::Park(ParkKey::Drain));
            }
            if !self.group.side().reserve(count) {
                if mutated!(self, FullBufferHolds) {
                    return Word::Before(Before::Park(ParkKey::Claim));
                }
                return Word::Overflow;
            }
            let ours = bits_between(start, start + count);
            if mutated!(self, SaveWithoutClaim) {
                return Word::Before(Before::Save(run, cut));
            }
            match claimed.compare_exchange(seen, seen | ours, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Word::Before(Before::Save(run, cut)),
                Err(now) => seen = now,
            }
            self.group.side().unreserve(count);
        }
    }

    /// Whether this cut is still held. Once it is not, it never is again.
    pub(crate) fn holds_cut(&self, cut: EpochId) -> bool {
        self.frozen.load(Ordering::Acquire) == frozen_word(cut, CUT)
    }

    /// The read of a claimed run came back: its content (`None`: unreadable) goes to the side buffer, and the claim is done.
    pub(crate) fn saved(&self, slot: usize, run: GranuleRun, cut: EpochId, data: Option<&[u8]>) {
        self.announce(slot, None);
        if self.frozen.load(Ordering::Acquire) == frozen_word(cut, CUT) {
            let region = self.geometry.region_of(run.start);
            let at = self.geometry.granule_in_region(run.start);
            if mutated!(self, SaveWithoutClaim) && self.claims.done(region, at / 64) >> (at % 64) & 1 == 1 {
                self.group.side().unreserve(run.count as usize);
            } else {
                self.group.side().keep(self.ordinal, run, data);
            }
            self.claims.set_done(region, at / 64, bits_between(at % 64, at % 64 + run.count as usize));
        } else {
            // The cut was given up meanwhile: what we saved is worthless, the room is ours to give back.
            self.group.side().unreserve(run.count as usize);
        }
        self.idle(slot);
        self.ring_all();
    }

    /// Granules that one claim may cover; never more than a word.
    pub(crate) fn claim_granules_max(&self) -> usize {
        ((self.limits.claim_run_bytes / self.geometry.granule_bytes()).max(1) as usize).min(64)
    }

    pub(crate) fn run_in(&self, region: RegionIndex, word: usize, start: usize, count: usize) -> GranuleRun {
        let first = self.geometry.region_run(region).start.0 + (word * 64 + start) as u64;
        GranuleRun { start: GranuleIndex(first), count: count as u64 }
    }
}
