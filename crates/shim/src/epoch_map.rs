//! The dirty map of one epoch: per region clean, some granules, or all.
//!
//! Marked by any number of threads at once, without a lock; read as a whole only when it is final (its epoch's grace is over),
//! and cleared only then: no mark is ever cleared in place †. Two of them per volume take turns.

use farside_region::{Geometry, GranuleIndex, GranuleMask, GranuleRun, GranuleSet, RegionIndex, RegionRange};

use crate::pool::Pool;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Every granule of the region.
const ALL: u32 = 1 << 31;

/// Entry: 0 clean, [`ALL`], or the number of a mask block; with both, ALL counts.
pub(crate) struct EpochMap {
    entries: Box<[AtomicU32]>,
    /// One bit per 64 regions: some entry among them is not clean. A switch looks only there.
    touched: Box<[AtomicU64]>,
}

impl EpochMap {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let regions = geometry.region_count();
        Self {
            entries: (0..regions).map(|_| AtomicU32::new(0)).collect(),
            touched: (0..regions.div_ceil(64 * 64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Words of a mask block.
    pub(crate) fn words(geometry: &Geometry) -> usize {
        (geometry.region_granules() as usize).div_ceil(64)
    }

    #[inline]
    pub(crate) fn is_dirty(&self, region: RegionIndex) -> bool {
        self.entries[region.0 as usize].load(Ordering::Acquire) != 0
    }

    /// Marks a run of granules; whole regions without a mask. Says whether it marked more than that, since there was no mask left.
    #[inline]
    pub(crate) fn mark(&self, masks: &Pool, geometry: &Geometry, run: GranuleRun) -> bool {
        let first = geometry.region_of(run.start);
        if geometry.region_of(GranuleIndex(run.end().0 - 1)) == first {
            return self.mark_in_region(masks, geometry, first, run);
        }
        let mut has_widened = false;
        for region in geometry.regions_of(run).iter() {
            let all = geometry.region_run(region);
            let (start, end) = (run.start.max(all.start), run.end().min(all.end()));
            has_widened |= self.mark_in_region(masks, geometry, region, GranuleRun { start, count: end.0 - start.0 });
        }
        has_widened
    }

    #[inline]
    fn mark_in_region(&self, masks: &Pool, geometry: &Geometry, region: RegionIndex, run: GranuleRun) -> bool {
        let entry = self.entries[region.0 as usize].load(Ordering::Acquire);
        if entry & ALL != 0 {
            return false;
        }
        let is_whole = run.count >= geometry.region_granules() || run.count == geometry.region_run(region).count;
        let block = if is_whole {
            None
        } else if entry != 0 {
            Some(entry)
        } else {
            self.mask_block(masks, region)
        };
        let Some(block) = block else {
            // Also when the mask pool is exhausted: false-dirty is legal, but in a map that is being frozen as a cut (`Volume::mark`).
            let before = self.entries[region.0 as usize].fetch_or(ALL, Ordering::AcqRel);
            if before == 0 {
                self.touch(region);
            }
            return !is_whole && before & ALL == 0;
        };
        let start = geometry.granule_in_region(run.start);
        for (word, bits) in words_of(start, run.count as usize) {
            let word = masks.word(block, word);
            // A bit that is set already needs no write: it was set in this same map, and the switcher, who comes after our
            // slot's release, sees at least what we saw.
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Relaxed);
            }
        }
        false
    }

    /// The region's mask block, made if need be; `None` when the pool is exhausted or somebody set ALL.
    #[cold]
    fn mask_block(&self, masks: &Pool, region: RegionIndex) -> Option<u32> {
        let block = masks.take()?;
        match self.entries[region.0 as usize].compare_exchange(0, block, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                self.touch(region);
                Some(block)
            }
            Err(theirs) => {
                masks.give(block);
                Some(theirs).filter(|e| e & ALL == 0)
            }
        }
    }

    fn touch(&self, region: RegionIndex) {
        let group = region.0 as usize / 64;
        self.touched[group / 64].fetch_or(1 << (group % 64), Ordering::Release);
    }

    /// 64 granules of a region: which are dirty.
    pub(crate) fn dirty_word(&self, masks: &Pool, geometry: &Geometry, region: RegionIndex, word: usize) -> u64 {
        match self.entries[region.0 as usize].load(Ordering::Acquire) {
            0 => 0,
            entry if entry & ALL != 0 => {
                let count = geometry.region_run(region).count as usize;
                match count.saturating_sub(word * 64).min(64) {
                    0 => 0,
                    n => bits_between(0, n),
                }
            }
            block => masks.word(block, word).load(Ordering::Acquire),
        }
    }

    /// The first stretch of at least `min` dirty granules among `count` of a region from `start` on: where it begins, counted
    /// from `start`, and how long it is. One that goes on beyond them is cut there.
    pub(crate) fn stretch(
        &self,
        masks: &Pool,
        geometry: &Geometry,
        region: RegionIndex,
        (start, count): (usize, usize),
        min: usize,
    ) -> Option<(usize, usize)> {
        if !self.is_dirty(region) {
            return None;
        }
        let mut begun = None;
        let long_enough = |begun: usize, end: usize| (end - begun >= min).then_some((begun - start, end - begun));
        for (word, wanted) in words_of(start, count) {
            // Each word is looked at once: it may gain marks meanwhile.
            let bits = self.dirty_word(masks, geometry, region, word) & wanted;
            let (mut at, to) = (wanted.trailing_zeros(), 64 - wanted.leading_zeros());
            while at < to {
                let dirty = (bits >> at).trailing_ones().min(to - at);
                if dirty > 0 {
                    begun.get_or_insert(word * 64 + at as usize);
                    at += dirty;
                    continue;
                }
                if let Some(found) = begun.take().and_then(|begun| long_enough(begun, word * 64 + at as usize)) {
                    return Some(found);
                }
                at += (bits >> at).trailing_zeros().min(to - at);
            }
        }
        begun.and_then(|begun| long_enough(begun, start + count))
    }

    /// The regions that are not clean, ascending.
    pub(crate) fn dirty_regions(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        let count = self.entries.len();
        self.touched
            .iter()
            .enumerate()
            .flat_map(|(w, word)| bits(word.load(Ordering::Acquire)).map(move |b| w * 64 + b))
            .flat_map(move |group| {
                (group * 64..(group * 64 + 64).min(count)).map(|r| RegionIndex(r as u64)).filter(|&r| self.is_dirty(r))
            })
    }

    /// What is in it.
    pub(crate) fn snapshot(&self, masks: &Pool, geometry: &Geometry) -> GranuleSet {
        let mut set = GranuleSet::new();
        let mut whole: Option<RegionRange> = None;
        for region in self.dirty_regions() {
            let entry = self.entries[region.0 as usize].load(Ordering::Acquire);
            if entry & ALL == 0 {
                let mut mask = GranuleMask::EMPTY;
                for i in 0..Self::words(geometry) {
                    mask.0[i] = masks.word(entry, i).load(Ordering::Acquire);
                }
                set.insert_mask(region, &mask);
                continue;
            }
            match &mut whole {
                Some(range) if range.start.0 + range.count == region.0 => range.count += 1,
                other => {
                    if let Some(done) = other.replace(RegionRange { start: region, count: 1 }) {
                        set.insert_whole(done);
                    }
                }
            }
        }
        whole.into_iter().for_each(|range| set.insert_whole(range));
        set
    }

    /// Number of granules in it; while it is being marked, roughly.
    pub(crate) fn granule_count(&self, masks: &Pool, geometry: &Geometry) -> u64 {
        let count = |region| match self.entries[region as usize].load(Ordering::Acquire) {
            entry if entry & ALL != 0 => geometry.region_run(RegionIndex(region)).count,
            0 => 0,
            block => {
                (0..Self::words(geometry)).map(|w| u64::from(masks.word(block, w).load(Ordering::Relaxed).count_ones())).sum()
            }
        };
        self.dirty_regions().map(|region| count(region.0)).sum()
    }

    /// Empties it. Nobody may be marking in it, or reading its masks.
    pub(crate) fn clear(&self, masks: &Pool) {
        for region in self.dirty_regions() {
            let entry = self.entries[region.0 as usize].swap(0, Ordering::AcqRel);
            if entry & !ALL != 0 {
                masks.give(entry & !ALL);
            }
        }
        self.touched.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.touched.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }
}

impl std::fmt::Debug for EpochMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EpochMap({} regions)", self.entries.len())
    }
}

/// The words, and the bits in each, of `count` granules from `start` within a region.
#[inline]
pub(crate) fn words_of(start: usize, count: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = start + count;
    (start / 64..end.div_ceil(64)).map(move |word| {
        let (from, to) = (start.max(word * 64) - word * 64, end.min(word * 64 + 64) - word * 64);
        (word, bits_between(from, to))
    })
}

/// Bits `from..to` of a word; not empty.
#[inline]
pub(crate) fn bits_between(from: usize, to: usize) -> u64 {
    debug_assert!(from < to && to <= 64);
    (u64::MAX << from) & (u64::MAX >> (64 - to))
}

/// The places of the bits of a word, ascending.
pub(crate) fn bits(word: u64) -> impl Iterator<Item = usize> {
    std::iter::successors((word != 0).then_some(word), |w| Some(w & (w - 1)).filter(|w| *w != 0))
        .map(|w| w.trailing_zeros() as usize)
}

/// The first run of set bits at or after `from`: (start, count).
pub(crate) fn first_run(word: u64, from: usize) -> Option<(usize, usize)> {
    let rest = word & u64::MAX.checked_shl(from as u32).unwrap_or(0);
    (rest != 0).then(|| {
        let start = rest.trailing_zeros() as usize;
        (start, (word >> start).trailing_ones() as usize)
    })
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_map_holds_what_was_marked_and_more_only_when_the_pool_is_dry(
            runs in prop::collection::vec((0u64..1000, 1u64..200), 0..20), blocks in 0usize..6, min in 1usize..5,
        ) {
            let g = Geometry::with_shape(1000 * 16, 4, 7).expect("valid");
            let (map, masks) = (EpochMap::new(&g), Pool::new(blocks, EpochMap::words(&g)));
            let mut model = BTreeSet::new();
            for (start, count) in runs {
                let count = count.min(1000 - start);
                map.mark(&masks, &g, GranuleRun { start: GranuleIndex(start), count });
                model.extend(start..start + count);
            }
            let set = map.snapshot(&masks, &g);
            for i in 0..1000 {
                let (granule, region) = (GranuleIndex(i), g.region_of(GranuleIndex(i)));
                prop_assert!(set.contains(&g, granule) || !model.contains(&i));
                if blocks >= 8 { prop_assert_eq!(set.contains(&g, granule), model.contains(&i)); }
                prop_assert_eq!(set.touches(region), model.iter().any(|&m| g.region_of(GranuleIndex(m)) == region));
                let at = g.granule_in_region(granule);
                prop_assert_eq!(map.dirty_word(&masks, &g, region, at / 64) >> (at % 64) & 1 == 1, set.contains(&g, granule));
            }
            for region in (0..g.region_count()).map(RegionIndex) {
                let whole = g.region_run(region);
                for start in 0..whole.count as usize {
                    let left = whole.count as usize - start;
                    let is = |at: usize| at < left && set.contains(&g, GranuleIndex(whole.start.0 + (start + at) as u64));
                    let long = |at: usize| (at..).take_while(|&at| is(at)).count();
                    let begins = |at: &usize| is(*at) && (*at == 0 || !is(at - 1)) && long(*at) >= min;
                    let expected = (0..left).find(begins).map(|at| (at, long(at)));
                    prop_assert_eq!(map.stretch(&masks, &g, region, (start, left), min), expected);
                }
            }
            prop_assert_eq!(map.is_empty(), model.is_empty());
            map.clear(&masks);
            prop_assert!(map.is_empty() && map.snapshot(&masks, &g).is_empty());
            prop_assert_eq!(std::iter::from_fn(|| masks.take()).count(), blocks, "blocks leak");
        }
    }

    #[test]
    fn runs_of_bits_are_found() {
        assert_eq!(first_run(0b1110, 0), Some((1, 3)));
        assert_eq!(first_run(0b1110, 2), Some((2, 2)));
        assert_eq!(first_run(u64::MAX, 0), Some((0, 64)));
        assert_eq!(first_run(1, 1), None);
        assert_eq!(first_run(1 << 63, 63), Some((63, 1)));
        assert_eq!(words_of(60, 8).collect::<Vec<_>>(), [(0, 0xf << 60), (1, 0xf)]);
    }
}
