//! A bounded pool of equal blocks of atomic words: taken and given back without a lock, allocated once.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Blocks are numbered from 1, so that 0 can say "none". Invariant: a free block is all zero.
pub(crate) struct Pool {
    words: usize,
    data: Box<[AtomicU64]>,
    next: Box<[AtomicU32]>,
    /// `{tag 32, first free block 32}`: the tag moves with every change, so that a stalled taker's CAS fails (ABA).
    head: AtomicU64,
}

impl Pool {
    pub(crate) fn new(blocks: usize, words: usize) -> Self {
        assert!(blocks < 1 << 31, "block numbers have 31 bits");
        Self {
            words,
            data: (0..blocks * words).map(|_| AtomicU64::new(0)).collect(),
            next: (1..=blocks as u32).map(|i| AtomicU32::new(if i as usize == blocks { 0 } else { i + 1 })).collect(),
            head: AtomicU64::new((blocks > 0) as u64),
        }
    }

    /// A zeroed block, or `None` when all are in use.
    pub(crate) fn take(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let block = head as u32;
            if block == 0 {
                return None;
            }
            let next = self.next[block as usize - 1].load(Ordering::Relaxed);
            match self.head.compare_exchange(head, retag(head, next), Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(block),
                Err(now) => head = now,
            }
        }
    }

    /// Gives a block back. Nobody may use it any more.
    pub(crate) fn give(&self, block: u32) {
        for i in 0..self.words {
            self.word(block, i).store(0, Ordering::Relaxed);
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.next[block as usize - 1].store(head as u32, Ordering::Relaxed);
            match self.head.compare_exchange(head, retag(head, block), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    #[inline]
    pub(crate) fn word(&self, block: u32, i: usize) -> &AtomicU64 {
        debug_assert!(i < self.words);
        &self.data[(block as usize - 1) * self.words + i]
    }
}

fn retag(head: u64, block: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(block)
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} × {} words)", self.next.len(), self.words)
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_bounded_distinct_and_zeroed() {
        let pool = Pool::new(3, 2);
        let mut taken: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
        pool.word(2, 1).store(7, Ordering::Relaxed);
        pool.give(2);
        assert_eq!(pool.take(), Some(2));
        assert_eq!(pool.word(2, 1).load(Ordering::Relaxed), 0);
        assert_eq!(pool.take(), None);
        assert_eq!(Pool::new(0, 4).take(), None);
    }
}
