//! Reads a chunk of cold regions in place for a verify, and holds it against the published digests.
//!
//! Invariant: a region is judged by its state *after* its last byte was read and compared. One that is cold then had no write
//! since before the digests were asked for (`replication::source::verify` says why); one that is not is left to an ordinary
//! Compare. It claims nothing and holds nobody up; few reads are in flight, so that a host hardly notices.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use farside_keys::ContentKeys;
use farside_layer::{granule_digest, is_zero};
use farside_region::{Geometry, GranuleDigest, GranuleIndex, GranuleRun, RegionIndex, RegionSet};
use farside_replication::source::{VerifyChunk, VerifyRead};
use farside_shim::{RegionState, Volume};
use farside_wire::DigestRun;

/// What is published of one granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Absent,
    Zero,
    Unreadable,
    Digest(GranuleDigest),
}

impl Published {
    /// One for each granule of a run.
    pub(crate) fn expand(run: &DigestRun) -> impl Iterator<Item = Self> + '_ {
        (0..run.granules()).map(move |i| match run {
            DigestRun::Absent { .. } => Self::Absent,
            DigestRun::Zero { .. } => Self::Zero,
            DigestRun::Unreadable { .. } => Self::Unreadable,
            DigestRun::Data(digests) => Self::Digest(digests[i as usize]),
        })
    }

    /// Whether content is what is published; `None` is a hole. An unreadable run is never equal (T6), and what no layer
    /// mentions is unsynced, not zero.
    pub(crate) fn equals(self, digest_key: &[u8; 32], granule: GranuleIndex, content: Option<&[u8]>) -> bool {
        match (self, content) {
            (Self::Digest(published), Some(data)) => granule_digest(digest_key, granule, data) == published,
            (Self::Zero, Some(data)) => is_zero(data),
            (Self::Zero, None) => true,
            _ => false,
        }
    }
}

/// A chunk under way.
#[derive(Debug)]
pub(crate) struct Verifying {
    chunk: Box<VerifyChunk>,
    keys: ContentKeys,
    published: Vec<Published>,
    first: GranuleIndex,
    /// The first granule that is not asked for yet.
    cursor: GranuleIndex,
    end: GranuleIndex,
    flights: HashMap<u32, GranuleRun>,
    /// Granules of runs that could not be read in one go.
    singly: VecDeque<GranuleRun>,
    /// Regions that need no reading any more.
    differing: RegionSet,
    unreadable: RegionSet,
    hot: RegionSet,
}

impl Verifying {
    pub(crate) fn new(chunk: Box<VerifyChunk>, keys: ContentKeys, geometry: &Geometry) -> Self {
        let first = geometry.region_run(chunk.chunk.start).start;
        let end = geometry.region_run(RegionIndex(chunk.chunk.start.0 + chunk.chunk.count - 1)).end();
        let published = chunk.runs.iter().flat_map(Published::expand).collect();
        Self {
            chunk,
            keys,
            published,
            first,
            cursor: first,
            end,
            flights: HashMap::new(),
            singly: VecDeque::new(),
            differing: RegionSet::new(),
            unreadable: RegionSet::new(),
            hot: RegionSet::new(),
        }
    }

    /// The next run to be read, within one region that was cold a moment ago.
    pub(crate) fn next(&mut self, volume: &Volume, run_bytes_max: u64) -> Option<GranuleRun> {
        let geometry = volume.geometry();
        if let Some(granule) = self.singly.pop_front() {
            return Some(granule);
        }
        while self.cursor < self.end {
            let region = geometry.region_of(self.cursor);
            let whole = geometry.region_run(region);
            let known = self.hot.contains(region) || self.differing.contains(region) || self.unreadable.contains(region);
            if known || !is_cold(volume, region) {
                if !known {
                    self.hot.insert(region);
                }
                self.cursor = whole.end();
                continue;
            }
            let count = (run_bytes_max / geometry.granule_bytes()).min(whole.end().0 - self.cursor.0);
            let run = GranuleRun { start: self.cursor, count };
            self.cursor = run.end();
            return Some(run);
        }
        None
    }

    pub(crate) fn begin(&mut self, flight: u32, run: GranuleRun) {
        self.flights.insert(flight, run);
    }

    pub(crate) fn landed(&mut self, flight: u32) -> Option<GranuleRun> {
        self.flights.remove(&flight)
    }

    /// Takes in what was read of a run; `None` is a hole.
    pub(crate) fn compare(&mut self, geometry: &Geometry, run: GranuleRun, data: Option<&[u8]>) {
        let size = geometry.granule_bytes() as usize;
        let digest_key = self.keys.digest_key().expect("who compares a volume has its keys");
        let equal = (0..run.count).all(|i| {
            let granule = GranuleIndex(run.start.0 + i);
            let content = data.map(|d| &d[i as usize * size..d.len().min((i as usize + 1) * size)]);
            let published = self.published[(granule.0 - self.first.0) as usize];
            published.equals(digest_key, granule, content)
        });
        if !equal {
            self.differing.insert(geometry.region_of(run.start));
        }
    }

    /// A run could not be read in one go: granule by granule, so that one bad sector does not hide what else differs.
    pub(crate) fn failed(&mut self, geometry: &Geometry, run: GranuleRun) {
        if run.count == 1 {
            self.unreadable.insert(geometry.region_of(run.start));
        } else {
            self.singly.extend((run.start.0..run.end().0).map(|g| GranuleRun { start: GranuleIndex(g), count: 1 }));
        }
    }

    /// The verdict, once nothing is left to read.
    pub(crate) fn verdict(&mut self, volume: &Arc<Volume>) -> Option<VerifyRead> {
        if self.cursor < self.end || !self.singly.is_empty() || !self.flights.is_empty() {
            return None;
        }
        // The content came before the look at the state: a write that we saw made its region hot before it was issued.
        fence(Ordering::SeqCst);
        let mut read = VerifyRead { id: self.chunk.id, hot: self.hot.clone(), ..VerifyRead::default() };
        for region in self.chunk.chunk.iter() {
            if !is_cold(volume, region) {
                read.hot.insert(region);
            }
        }
        read.differing = self.differing.iter().filter(|r| !read.hot.contains(*r)).collect();
        read.unreadable = self.unreadable.iter().filter(|r| !read.hot.contains(*r)).collect();
        Some(read)
    }
}

fn is_cold(volume: &Volume, region: RegionIndex) -> bool {
    matches!(volume.region_state(region), RegionState::Cold | RegionState::ColdZero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_published_and_can_be_read_is_equal() {
        let (key, granule) = ([7; 32], GranuleIndex(3));
        let (data, zeroes) = ([5u8; 4096], [0u8; 4096]);
        let digest = Published::Digest(granule_digest(&key, granule, &data));
        let equal = |published: Published, content: Option<&[u8]>| published.equals(&key, granule, content);
        assert!(equal(digest, Some(&data)) && !equal(digest, Some(&zeroes)) && !equal(digest, None));
        assert!(equal(Published::Zero, Some(&zeroes)) && equal(Published::Zero, None) && !equal(Published::Zero, Some(&data)));
        for content in [Some(&data[..]), Some(&zeroes[..]), None] {
            assert!(!equal(Published::Absent, content), "unsynced");
            assert!(!equal(Published::Unreadable, content), "never equal");
        }
        // The digest is of the granule at its place.
        assert!(!digest.equals(&key, GranuleIndex(4), Some(&data)));
    }
}
