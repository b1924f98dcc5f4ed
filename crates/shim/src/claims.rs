//! Who may read a frozen granule of a cut: sender or saver, exactly one †. Anything less publishes granules that are half old
//! and half new, under perfectly valid digests.
//!
//! Two bits per granule: `claimed` (set once, by CAS) and `done` (its content is read, or lies in the side buffer).
//! `Unread` = 00, `Claimed` = 10, `Held`/`Sent` = 11. Blocks are made at the first claim of a region, from a bounded pool, and
//! go back together when the cut is over.

use farside_region::{Geometry, RegionIndex};

use crate::epoch_map::EpochMap;
use crate::pool::Pool;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

pub(crate) struct Claims {
    entries: Box<[AtomicU32]>,
    pool: Pool,
    words: usize,
}

impl Claims {
    pub(crate) fn new(geometry: &Geometry, pool_bytes: usize) -> Self {
        let words = EpochMap::words(geometry);
        let regions = geometry.region_count();
        let blocks = (pool_bytes / (words * 16)).min(regions as usize);
        Self { entries: (0..regions).map(|_| AtomicU32::new(0)).collect(), pool: Pool::new(blocks, 2 * words), words }
    }

    /// The claim block of a region, made if need be; `None` when the pool is exhausted. Only while pinned.
    pub(crate) fn block(&self, region: RegionIndex) -> Option<u32> {
        let entry = &self.entries[region.0 as usize];
        match entry.load(Ordering::Acquire) {
            0 => {
                let block = self.pool.take()?;
                match entry.compare_exchange(0, block, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => Some(block),
                    Err(theirs) => {
                        self.pool.give(block);
                        Some(theirs)
                    }
                }
            }
            block => Some(block),
        }
    }

    /// Which of 64 granules are done. Only while pinned.
    pub(crate) fn done(&self, region: RegionIndex, word: usize) -> u64 {
        match self.entries[region.0 as usize].load(Ordering::Acquire) {
            0 => 0,
            block => self.done_word(block, word).load(Ordering::Acquire),
        }
    }

    /// Which of 64 granules are claimed.
    pub(crate) fn claimed_word(&self, block: u32, word: usize) -> &AtomicU64 {
        self.pool.word(block, word)
    }

    /// Which of 64 granules are done.
    pub(crate) fn done_word(&self, block: u32, word: usize) -> &AtomicU64 {
        self.pool.word(block, self.words + word)
    }

    /// Says that claimed granules are done. Only while pinned, by who claimed them.
    pub(crate) fn set_done(&self, region: RegionIndex, word: usize, bits: u64) {
        let block = self.entries[region.0 as usize].load(Ordering::Acquire);
        assert!(block != 0, "claimed granules have a block while the cut lasts");
        self.done_word(block, word).fetch_or(bits, Ordering::AcqRel);
    }

    /// Forgets a region's claims. Nobody may be pinned who saw the cut.
    pub(crate) fn clear(&self, region: RegionIndex) {
        let block = self.entries[region.0 as usize].swap(0, Ordering::AcqRel);
        if block != 0 {
            self.pool.give(block);
        }
    }
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claims({:?})", self.pool)
    }
}
