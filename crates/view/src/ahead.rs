//! Which regions are fetched before anybody asks for them.
//!
//! Who reads a region and then the next one that is not zeroes is believed to go on, and the more so the further he comes: one region ahead,
//! then two, then four. Reads here and there cost nothing. It is a guess: nothing depends on it, and what it gets wrong goes from the cache.
//!
//! It does not fetch ([`crate::View`]) and has no threads ([`crate::ViewQueue`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender, bounded};
use farside_region::RegionIndex;

/// So many read in sequence at once.
const STREAMS: usize = 8;
/// At most so far ahead, and all together at most this part of the cache: what was fetched must not go before it was read.
const DEPTH_MAX: usize = 16;
const CACHE_PART: usize = 2;
/// What is wanted and not begun; the rest is asked for when the reader has come nearer.
const WANTED_MAX: usize = 64;

/// Somebody who may be reading in sequence.
#[derive(Debug)]
struct Stream {
    /// Where he is.
    at: RegionIndex,
    /// Where he would go on.
    next: Option<RegionIndex>,
    depth: usize,
    /// Everything below was asked for.
    until: u64,
}

#[derive(Debug)]
pub(crate) struct Ahead {
    /// Who read last comes first.
    streams: Mutex<VecDeque<Stream>>,
    /// Regions that may be fetched and not read.
    room: usize,
    wanted: (Sender<RegionIndex>, Receiver<RegionIndex>),
    /// Nobody fetches any more.
    is_over: AtomicBool,
}

impl Ahead {
    /// For a cache of so many regions.
    pub(crate) fn new(cache_regions: usize) -> Self {
        Self {
            streams: Mutex::default(),
            room: cache_regions / CACHE_PART,
            wanted: bounded(WANTED_MAX),
            is_over: AtomicBool::new(false),
        }
    }

    /// Nothing more is begun.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.give_up();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// What is to be fetched.
    pub(crate) fn wanted(&self) -> &Receiver<RegionIndex> {
        &self.wanted.1
    }

    /// Somebody reads this region. `next`: the region after one that has to be fetched, if there is one near.
    pub(crate) fn heard(&self, region: RegionIndex, next: impl Fn(RegionIndex) -> Option<RegionIndex>) {
        if self.room < 2 || self.is_over() {
            return;
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.iter().any(|stream| stream.at == region) {
            return;
        }
        let known = streams.iter().position(|stream| stream.next == Some(region)).and_then(|at| streams.remove(at));
        let others = streams.iter().filter(|stream| stream.depth > 0).count();
        let depth_max = (self.room / (others + 1)).min(DEPTH_MAX);
        let first = next(region);
        let mut stream = match known {
            Some(stream) => Stream { at: region, next: first, depth: (2 * stream.depth).max(1).min(depth_max), ..stream },
            None => Stream { at: region, next: first, depth: 0, until: region.0 + 1 },
        };
        let (mut ahead, mut left) = (first, stream.depth);
        while let Some(region) = ahead.filter(|_| left > 0) {
            if region.0 >= stream.until {
                if self.wanted.0.try_send(region).is_err() {
                    break;
                }
                stream.until = region.0 + 1;
            }
            (ahead, left) = (next(region), left - 1);
        }
        streams.truncate(STREAMS - 1);
        streams.push_front(stream);
    }

    /// The store does not answer: who reads on shall not wait for what was only guessed, too.
    pub(crate) fn give_up(&self) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clear();
        while self.wanted.1.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every third region is zeroes.
    fn next(region: RegionIndex) -> Option<RegionIndex> {
        (region.0 + 1..40).find(|region| region % 3 != 2).map(RegionIndex)
    }

    fn read(ahead: &Ahead, regions: &[u64]) -> Vec<u64> {
        regions.iter().for_each(|region| ahead.heard(RegionIndex(*region), next));
        ahead.wanted().try_iter().map(|region| region.0).collect()
    }

    #[test]
    fn who_reads_in_sequence_finds_more_and_more_there() {
        let ahead = Ahead::new(8);
        assert_eq!(read(&ahead, &[0]), [0; 0]);
        assert_eq!(read(&ahead, &[0, 1]), [3]);
        assert_eq!(read(&ahead, &[1, 3, 3]), [4, 6]);
        assert_eq!(read(&ahead, &[4]), [7, 9, 10], "half of the cache is the limit");
        assert_eq!(read(&ahead, &[6]), [12]);
    }

    #[test]
    fn reads_here_and_there_fetch_nothing() {
        let ahead = Ahead::new(16);
        assert_eq!(read(&ahead, &[9, 3, 30, 12, 21, 0, 6, 15]), [0; 0]);
        assert_eq!(read(&Ahead::new(3), &[0, 1, 3, 4]), [0; 0], "nor does who has no room");
    }

    #[test]
    fn several_read_at_once_and_ends_are_no_matter() {
        let ahead = Ahead::new(16);
        assert_eq!(read(&ahead, &[0, 18, 1, 19]), [3, 21]);
        assert_eq!(read(&ahead, &[36, 37]), [39]);
        assert_eq!(read(&ahead, &[39]), [0; 0]);
        assert_eq!(read(&ahead, &[3, 4, 6]), [4, 6, 7, 9], "of three each has a third of the room: two");
    }

    #[test]
    fn what_is_not_fetched_in_time_is_asked_for_again_and_after_a_failure_nothing_is() {
        let all = |region: RegionIndex| Some(RegionIndex(region.0 + 1));
        let ahead = Ahead::new(400);
        (0..70).for_each(|region| ahead.heard(RegionIndex(region), all));
        let wanted: Vec<u64> = ahead.wanted().try_iter().map(|region| region.0).collect();
        assert_eq!(wanted, (2..66).collect::<Vec<_>>(), "not more than has room");
        ahead.heard(RegionIndex(70), all);
        assert_eq!(ahead.wanted().try_iter().map(|region| region.0).collect::<Vec<_>>(), (71..87).collect::<Vec<_>>());
        ahead.heard(RegionIndex(71), all);
        ahead.give_up();
        ahead.heard(RegionIndex(72), all);
        assert!(ahead.wanted().is_empty());
        ahead.heard(RegionIndex(73), all);
        assert_eq!(ahead.wanted().len(), 1);
        ahead.end();
        ahead.heard(RegionIndex(74), all);
        assert!(ahead.wanted().is_empty());
    }
}
