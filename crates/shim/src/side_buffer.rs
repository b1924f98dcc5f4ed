//! Content saved before it was overwritten, until the sender takes it. One per group, bounded, allocated once.
//!
//! Lives behind a mutex: a saver holds it for the time of copying one run (≤ 64 KiB), the sender likewise; there is no I/O and
//! no allocation under it. Only writes that hit an unread granule of a cut ever come here.

use std::collections::HashMap;

use farside_region::{GranuleIndex, GranuleRun};

type Key = (u32, GranuleIndex);

pub(crate) struct SideBuffer {
    granule_bytes: usize,
    data: Vec<u8>,
    free: Vec<u32>,
    reserved: usize,
    places: HashMap<Key, u32>,
    /// Per place: whose, how many bytes (the last granule of a volume may be short); 0 = unreadable.
    used: Vec<Option<(Key, u32)>>,
}

impl SideBuffer {
    pub(crate) fn new(bytes: usize, granule_bytes: u64) -> Self {
        let places = bytes / granule_bytes as usize;
        Self {
            granule_bytes: granule_bytes as usize,
            data: vec![0; places * granule_bytes as usize],
            free: (0..places as u32).rev().collect(),
            reserved: 0,
            places: HashMap::with_capacity(places),
            used: vec![None; places],
        }
    }

    /// Keeps room for so many granules; false when there is not enough.
    pub(crate) fn reserve(&mut self, granules: usize) -> bool {
        let fits = self.free.len() - self.reserved >= granules;
        self.reserved += if fits { granules } else { 0 };
        fits
    }

    /// Gives a reservation up.
    pub(crate) fn unreserve(&mut self, granules: usize) {
        self.reserved -= granules;
    }

    /// Keeps a run, out of a reservation. `None` = it could not be read.
    pub(crate) fn keep(&mut self, volume: u32, run: GranuleRun, data: Option<&[u8]>) {
        self.reserved -= run.count as usize;
        for i in 0..run.count as usize {
            let key = (volume, GranuleIndex(run.start.0 + i as u64));
            let place = self.free.pop().expect("reserved room is there");
            let bytes = data.map_or(&[][..], |d| &d[i * self.granule_bytes..d.len().min((i + 1) * self.granule_bytes)]);
            let at = place as usize * self.granule_bytes;
            self.data[at..at + bytes.len()].copy_from_slice(bytes);
            self.used[place as usize] = Some((key, bytes.len() as u32));
            let before = self.places.insert(key, place);
            assert!(before.is_none(), "granule {key:?} was saved twice");
        }
    }

    /// Takes the longest part of a run that is equally (un)readable out: its length, and its content.
    pub(crate) fn take(&mut self, volume: u32, run: GranuleRun) -> (u64, Option<Vec<u8>>) {
        let mut out: Option<Vec<u8>> = None;
        for i in 0..run.count {
            let key = (volume, GranuleIndex(run.start.0 + i));
            let place = *self.places.get(&key).expect("what is done and was not read by the sender was saved");
            let (_, len) = self.used[place as usize].expect("a place in the index is used");
            if i > 0 && (len > 0) != out.is_some() {
                return (i, out);
            }
            if len > 0 {
                let at = place as usize * self.granule_bytes;
                out.get_or_insert_default().extend_from_slice(&self.data[at..at + len as usize]);
            }
            self.drop_place(place);
        }
        (run.count, out)
    }

    /// Drops what it holds of a volume, looking at a few places from `from` on; the next `from`, or `None` at the end.
    /// In steps, so that a saver of another volume never waits long for the lock.
    pub(crate) fn drop_some(&mut self, volume: u32, from: usize) -> Option<usize> {
        let end = (from + 256).min(self.used.len());
        for place in from..end {
            if self.used[place].is_some_and(|((v, _), _)| v == volume) {
                self.drop_place(place as u32);
            }
        }
        (end < self.used.len()).then_some(end)
    }

    fn drop_place(&mut self, place: u32) {
        let (key, _) = self.used[place as usize].take().expect("only used places are dropped");
        self.places.remove(&key);
        self.free.push(place);
    }

    /// (granules in use or reserved, granules in all).
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.used.len() - self.free.len() + self.reserved, self.used.len())
    }
}

impl std::fmt::Debug for SideBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (used, all) = self.usage();
        write!(f, "SideBuffer({used} of {all} granules)")
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    fn run(start: u64, count: u64) -> GranuleRun {
        GranuleRun { start: GranuleIndex(start), count }
    }

    #[test]
    fn content_comes_back_once_and_room_is_counted() {
        let mut side = SideBuffer::new(4 * 8, 8);
        assert!(side.reserve(3) && !side.reserve(2));
        side.keep(0, run(5, 2), Some(b"0123456789abc"));
        side.keep(0, run(7, 1), None);
        assert!(side.reserve(1) && !side.reserve(1));
        side.unreserve(1);
        assert_eq!(side.take(0, run(5, 3)), (2, Some(b"0123456789abc".to_vec())));
        assert_eq!(side.take(0, run(7, 1)), (1, None));
        assert_eq!(side.usage(), (0, 4));
        assert!(side.reserve(2));
        side.keep(1, run(0, 2), Some(&[1; 16]));
        assert_eq!(side.drop_some(0, 0), None);
        assert_eq!(side.usage(), (2, 4));
        side.drop_some(1, 0);
        assert_eq!(side.usage(), (0, 4));
    }
}
