//! Reading a whole point and checking every granule that it needs: what a restore would meet, without a target.
//!
//! Invariant: damage is an answer, not an error, and does not end the look: every damaged region is counted, and named up to
//! a limit. Memory is bounded by a region per thread, the cache of footers and that limit.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use farside_region::{ByteExtent, GranuleRun, RegionIndex, Slot};

use crate::error::{Result, StoreError};
use crate::index::Content;
use crate::reader::PointReader;

/// What was found in a volume of a point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Content that was read and has its digest, in bytes.
    pub data_bytes: u64,
    /// Zeroes, in bytes; nothing to read.
    pub zero_bytes: u64,
    /// What cannot be restored, ascending; at most as many as were asked for.
    pub damage: Vec<DamagedRegion>,
    /// Damaged regions in all.
    pub damaged_regions: u64,
    /// Points before this slot have nothing of what is damaged; `None` if nothing is.
    pub damaged_since: Option<Slot>,
}

/// A region that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRegion {
    /// Which.
    pub region: RegionIndex,
    /// The object that is damaged or missing; empty if none is to blame.
    pub segment: String,
    /// What is wrong.
    pub why: String,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Bytes of the volume that are done.
    pub done_bytes: u64,
    /// Bytes of content that were read for that.
    pub read_bytes: u64,
    /// Regions among them that are damaged.
    pub damaged_regions: u64,
    /// Points before this slot have nothing of what is damaged so far; `None` if nothing is.
    pub damaged_since: Option<Slot>,
}

/// Reads every granule that the point's volume needs. `progress` hears, from any thread, how far it is, and may take its
/// time; `false` stops. `listed_max`: how many damaged regions are named.
///
/// # Errors
/// [`StoreError::Stopped`]; what the file system says, other than about one file.
pub fn verify_point(
    reader: &PointReader,
    threads: usize,
    listed_max: usize,
    progress: &(dyn Fn(Looked) -> bool + Sync),
) -> Result<Verified> {
    let [next, done, read, damaged] = [const { AtomicU64::new(0) }; 4];
    let since = AtomicU64::new(u64::MAX);
    let stop = AtomicBool::new(false);
    let sum: Mutex<Result<Verified>> = Mutex::new(Ok(Verified::default()));
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut worker = Worker { reader, content: reader.content(), found: Verified::default(), listed_max };
                let mut result = Ok(());
                while result.is_ok() && !stop.load(Ordering::Relaxed) {
                    let region = RegionIndex(next.fetch_add(1, Ordering::Relaxed));
                    if region.0 >= reader.geometry().region_count() {
                        break;
                    }
                    let before = (worker.found.data_bytes, worker.found.damaged_regions);
                    result = worker.verify_region(region);
                    let bytes = reader.geometry().bytes_of(reader.geometry().region_run(region)).len;
                    let done_bytes = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    let content = worker.found.data_bytes - before.0;
                    let read_bytes = read.fetch_add(content, Ordering::Relaxed) + content;
                    let more = worker.found.damaged_regions - before.1;
                    let damaged_regions = damaged.fetch_add(more, Ordering::Relaxed) + more;
                    if more > 0
                        && let Some(slot) = worker.found.damaged_since
                    {
                        since.fetch_min(slot.0, Ordering::Relaxed);
                    }
                    let damaged_since = Some(Slot(since.load(Ordering::Relaxed))).filter(|slot| slot.0 < u64::MAX);
                    if result.is_ok() && !progress(Looked { done_bytes, read_bytes, damaged_regions, damaged_since }) {
                        result = Err(StoreError::Stopped);
                    }
                }
                let mut sum = sum.lock().expect("nothing panics while it holds this lock");
                match (result, &mut *sum) {
                    (Ok(()), Ok(sum)) => sum.add(worker.found, listed_max),
                    (Err(error), Ok(_)) => {
                        stop.store(true, Ordering::Relaxed);
                        *sum = Err(error);
                    }
                    (_, Err(_)) => {} // the first error counts
                }
            });
        }
    });
    sum.into_inner().expect("nothing panics while it holds this lock")
}

impl Verified {
    fn add(&mut self, other: Self, listed_max: usize) {
        self.data_bytes += other.data_bytes;
        self.zero_bytes += other.zero_bytes;
        self.damaged_regions += other.damaged_regions;
        self.damaged_since = self.damaged_since.into_iter().chain(other.damaged_since).min();
        self.damage.extend(other.damage);
        self.damage.sort_by_key(|d| d.region);
        self.damage.truncate(listed_max);
    }
}

struct Worker<'r> {
    reader: &'r PointReader,
    content: crate::reader::RegionContent,
    found: Verified,
    listed_max: usize,
}

impl Worker<'_> {
    fn verify_region(&mut self, region: RegionIndex) -> Result<()> {
        let geometry = self.reader.geometry();
        if self.reader.is_zero(region) {
            self.found.zero_bytes += geometry.bytes_of(geometry.region_run(region)).len;
            return Ok(());
        }
        let (segment, why) = match self.reader.verify_region(region, &mut self.content) {
            Ok(()) => {
                for &(run, content) in &self.content.runs {
                    match content {
                        Content::Data => self.found.data_bytes += geometry.bytes_of(run).len,
                        Content::Zero => self.found.zero_bytes += geometry.bytes_of(run).len,
                        Content::Unreadable => {}
                    }
                }
                return Ok(());
            }
            Err(StoreError::Corrupt { segment, why, .. }) => (segment, why),
            Err(StoreError::Incomplete { .. }) => (String::new(), "no layer says what is there".to_owned()),
            Err(error) => return Err(error),
        };
        self.found.damaged_regions += 1;
        let since = self.reader.born(region);
        self.found.damaged_since = Some(self.found.damaged_since.map_or(since, |known| known.min(since)));
        if self.found.damage.len() < self.listed_max {
            self.found.damage.push(DamagedRegion { region, segment, why });
        }
        Ok(())
    }
}

/// The runs of a point's volume that the source could not read, ascending, neighbours joined. Nothing is read for this.
pub fn unreadable_runs(reader: &PointReader) -> Vec<ByteExtent> {
    let geometry = reader.geometry();
    let mut runs: Vec<GranuleRun> = Vec::new();
    for extent in reader.extents(geometry.whole()).filter(|e| e.content == Content::Unreadable) {
        match runs.last_mut() {
            Some(last) if last.end() == extent.run.start => last.count += extent.run.count,
            _ => runs.push(extent.run),
        }
    }
    runs.into_iter().map(|run| geometry.bytes_of(run)).collect()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
