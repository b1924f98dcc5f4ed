//! Reading a frozen epoch, for the sender.

use std::collections::BTreeMap;

use farside_region::{EpochId, GranuleIndex, GranuleMask, GranuleRun, GranuleSet, RegionIndex};

use crate::Volume;
use crate::epoch_map::{bits_between, first_run};
use crate::mutation::mutated;
use crate::sync::{Arc, Ordering};
use crate::volume::{CUT, frozen_word};

/// What the sender does next.
#[derive(Debug)]
pub enum Next {
    /// Read this run (asking for holes only now, T9), then [`FrozenReader::read_done`]. Several may be outstanding.
    Read(GranuleRun),
    /// Content that was saved before it was overwritten.
    Held(HeldRun),
    /// Marked again since a pass froze it: not this epoch's any more, a later one sends it. Nothing is read.
    Left(GranuleRun),
    /// Nothing now; wait for [`crate::Wakes::sender`], or for an outstanding read to come back.
    Wait,
    /// Nothing left (below the limit).
    End,
}

/// A run out of the side buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRun {
    /// Which granules.
    pub run: GranuleRun,
    /// Their content; `None` = could not be read when it was to be saved: an `unreadable` run.
    pub data: Option<Vec<u8>>,
}

/// What to do with a run that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// It is the epoch's content: use it.
    Accept,
    /// The cut was demoted meanwhile: throw it away; `next` will ask for it again.
    Reread,
}

/// Hands out a frozen epoch's granules of one volume, each exactly once: mostly ascending, those in somebody's way later. A pass
/// leaves out what was marked again since: that is the next epoch's.
///
/// | state | sender |
/// |---|---|
/// | an older-epoch write in flight on it | comes back (this is the draining; for a cut and for a pass) |
/// | `Unread` | claims a run, reads |
/// | `Claimed` by a saver | comes back |
/// | `Held` | takes it from the side buffer |
#[derive(Debug)]
pub struct FrozenReader {
    volume: Arc<Volume>,
    epoch: EpochId,
    is_cut: bool,
    /// Not handed out: still to be looked at, the region under way, looked at and in somebody's way.
    fresh: GranuleSet,
    region: Option<(RegionIndex, GranuleMask)>,
    later: GranuleSet,
    /// Handed out by `Read`, and whether under a claim.
    outstanding: BTreeMap<GranuleIndex, (u64, bool)>,
}

/// What became of a look at one run.
enum Look {
    /// The first so many granules are handed out.
    Out(Next, u64),
    /// The first so many are in somebody's way.
    Blocked(u64),
    /// The cut is over: look again as a pass.
    Demoted,
}

impl FrozenReader {
    /// A reader of `todo`, which belongs to the epoch: under claims while the volume's cut of that epoch lasts, otherwise as a
    /// pass (also to read again after a reset, T1). For a cut `todo` is the frozen set or a part of it that no reader was given yet.
    pub fn new(volume: Arc<Volume>, epoch: EpochId, todo: GranuleSet) -> Self {
        let is_cut = volume.frozen.load(Ordering::Acquire) == frozen_word(epoch, CUT);
        let (later, outstanding) = (GranuleSet::new(), BTreeMap::new());
        Self { volume, epoch, is_cut, fresh: todo, region: None, later, outstanding }
    }

    /// The next run below region `until`. A run never crosses a region.
    pub fn next(&mut self, until: RegionIndex) -> Next {
        if let Some(next) = self.sweep(until) {
            return next;
        }
        if self.is_blocked(until) {
            // Something is in the way. Whoever removes it looks at the bell after that; so arm it and look once more.
            self.volume.sender_bell.arm();
            if let Some(next) = self.sweep(until) {
                return next;
            }
        }
        let limit = self.limit(until);
        if self.is_blocked(until) || self.outstanding.range(..limit).next().is_some() { Next::Wait } else { Next::End }
    }

    /// Nobody will read on. † A cut ends with it if anything is handed out under a claim: nothing would ever call that read, and the
    /// host's next write on it would wait (L1). The control thread does the rest, as where there is no room.
    pub fn abandon(self) {
        if self.is_cut && self.outstanding.values().any(|(_, is_claimed)| *is_claimed) {
            self.volume.overflow(self.epoch);
        }
    }

    fn is_blocked(&self, until: RegionIndex) -> bool {
        self.later.next_region(RegionIndex(0)).is_some_and(|r| r < until)
    }

    fn limit(&self, until: RegionIndex) -> GranuleIndex {
        GranuleIndex(until.0.saturating_mul(self.volume.geometry.region_granules()))
    }

    /// Looks once at everything below `until` that is not handed out, blocked runs included.
    fn sweep(&mut self, until: RegionIndex) -> Option<Next> {
        let blocked = std::mem::take(&mut self.later);
        self.fresh.union_with(&blocked);
        if let Some((region, mask)) = self.region.take_if(|(region, _)| *region >= until) {
            self.fresh.insert_mask(region, &mask);
        }
        loop {
            let (region, mask) = match self.region.take() {
                Some(under_way) => under_way,
                None => {
                    let region = self.fresh.next_region(RegionIndex(0)).filter(|&r| r < until)?;
                    let mask = self.fresh.mask(&self.volume.geometry, region);
                    self.fresh.remove_region(region);
                    (region, mask)
                }
            };
            if let Some(next) = self.sweep_region(region, mask) {
                return Some(next);
            }
        }
    }

    fn sweep_region(&mut self, region: RegionIndex, mut mask: GranuleMask) -> Option<Next> {
        let mut later = GranuleMask::EMPTY;
        let mut next = None;
        while let (Some((start, count)), None) = (mask.next_run(0), &next) {
            let done = match self.look(region, start, count) {
                Look::Out(out, count) => {
                    next = Some(out);
                    count
                }
                Look::Blocked(count) => {
                    later.set_range(start, count as usize);
                    count
                }
                Look::Demoted => {
                    self.is_cut = false;
                    0
                }
            };
            mask.clear_range(start, done as usize);
        }
        self.later.insert_mask(region, &later);
        if !mask.is_empty() {
            self.region = Some((region, mask));
        }
        next
    }

    fn look(&mut self, region: RegionIndex, start: usize, count: usize) -> Look {
        if !self.is_cut {
            let max = (self.volume.limits.pass_run_bytes / self.volume.geometry.granule_bytes()).max(1);
            let (marked, count) = self.marked_again(region, start, count.min(max as usize));
            let run = self.volume.run_in(region, 0, start, count);
            if marked {
                return Look::Out(Next::Left(run), run.count);
            }
            // A pass drains too †: an older write's mark is in this frozen set and nowhere else; read before it lands, its
            // content would never be sent.
            return if self.volume.is_older_in_flight(run, self.epoch) && !mutated!(self.volume, PassWithoutDraining) {
                Look::Blocked(run.count)
            } else {
                self.hand_out(run, false)
            };
        }
        // Pinned: claims and masks are not freed while our slot is busy and the word says that the cut lasts.
        self.volume.announce(self.volume.sender_slot(), None);
        let look = if self.volume.frozen.load(Ordering::Acquire) == frozen_word(self.epoch, CUT) {
            self.look_at_claims(region, start, count)
        } else {
            Look::Demoted
        };
        self.volume.idle(self.volume.sender_slot());
        look
    }

    /// Whether what begins at `start` is marked in the open map, in a stretch that is worth leaving out; and how many of `count`
    /// granules this is said of. A pass makes no point by itself: what was written again would be sent twice.
    ///
    /// Nothing is forgotten by that: the open map is what the next switch freezes. The slot is busy meanwhile, because a map
    /// that was open when we found it may be frozen and emptied, but only after the grace; a stale block of masks would show
    /// marks of another region, and those granules would be sent by nobody †.
    fn marked_again(&self, region: RegionIndex, start: usize, count: usize) -> (bool, usize) {
        let volume = &*self.volume;
        if !mutated!(volume, LeaveOutUnannounced) {
            volume.announce(volume.sender_slot(), None);
        }
        let min = (volume.limits.left_run_bytes / volume.geometry.granule_bytes()).max(1) as usize;
        let found = volume.open_map().stretch(&volume.masks, &volume.geometry, region, (start, count), min);
        volume.idle(volume.sender_slot());
        match found {
            Some((0, count)) => (true, count),
            Some((at, _)) => (false, at),
            None => (false, count),
        }
    }

    fn look_at_claims(&mut self, region: RegionIndex, start: usize, count: usize) -> Look {
        let volume = self.volume.clone();
        let (word, at) = (start / 64, start % 64);
        let count = count.min(volume.claim_granules_max()).min(64 - at);
        let bits = bits_between(at, at + count);
        let Some(block) = volume.claims.block(region) else {
            volume.overflow(self.epoch);
            return Look::Demoted;
        };
        let claimed = volume.claims.claimed_word(block, word);
        let mut seen = claimed.load(Ordering::Acquire);
        loop {
            let done = volume.claims.done_word(block, word).load(Ordering::Acquire) & bits;
            let same = |of: u64| first_run(of, at).filter(|(s, _)| *s == at).map_or(0, |(_, n)| n.min(count));
            if done >> at & 1 == 1 {
                // Not done by us: what we have read, we do not ask for again. So it was saved.
                let run = volume.run_in(region, word, at, same(done));
                let (count, data) = volume.group.side().take(volume.ordinal, run);
                return Look::Out(Next::Held(HeldRun { run: GranuleRun { count, ..run }, data }), count);
            }
            if seen >> at & 1 == 1 {
                return Look::Blocked(same(seen & bits & !done) as u64);
            }
            let free = same(bits & !seen);
            let run = volume.run_in(region, word, at, free);
            if volume.is_older_in_flight(run, self.epoch) && !mutated!(volume, PassWithoutDraining) {
                return Look::Blocked(run.count);
            }
            let ours = bits_between(at, at + free);
            if mutated!(volume, SaveWithoutClaim) {
                return self.hand_out(run, true);
            }
            match claimed.compare_exchange(seen, seen | ours, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return self.hand_out(run, true),
                Err(now) => seen = now,
            }
        }
    }

    fn hand_out(&mut self, run: GranuleRun, claimed: bool) -> Look {
        self.outstanding.insert(run.start, (run.count, claimed));
        Look::Out(Next::Read(run), run.count)
    }

    /// A run came back from the device, with content or unreadable.
    ///
    /// # Panics
    /// When it is not outstanding.
    pub fn read_done(&mut self, run: GranuleRun) -> ReadVerdict {
        let (count, claimed) = self.outstanding.remove(&run.start).expect("only what was handed out comes back");
        assert_eq!(count, run.count, "a run comes back as it was handed out");
        if !claimed {
            return ReadVerdict::Accept;
        }
        let volume = &*self.volume;
        let (region, at) = (volume.geometry.region_of(run.start), volume.geometry.granule_in_region(run.start));
        volume.announce(volume.sender_slot(), None);
        // A writer that found no room gave the cut up *before* it overwrote anything: if our read saw its data, we see that the
        // cut is over. What was accepted until now is the cut's content, whatever happens later.
        let kept = volume.frozen.load(Ordering::Acquire) == frozen_word(self.epoch, CUT);
        if kept {
            volume.claims.set_done(region, at / 64, bits_between(at % 64, at % 64 + count as usize));
        }
        volume.idle(volume.sender_slot());
        if kept {
            volume.ring_all();
            return ReadVerdict::Accept;
        }
        self.is_cut = false;
        self.fresh.insert_run(&self.volume.geometry, run);
        ReadVerdict::Reread
    }

    /// What was not accepted yet, outstanding reads included.
    pub fn remaining(&self) -> GranuleSet {
        let mut set = self.fresh.clone();
        set.union_with(&self.later);
        self.region.iter().for_each(|(region, mask)| set.insert_mask(*region, mask));
        for (&start, &(count, _)) in &self.outstanding {
            set.insert_run(&self.volume.geometry, GranuleRun { start, count });
        }
        set
    }
}
