//! Writing a point to a target: parallel, sparse, every granule checked, and going on where an earlier attempt ended.
//!
//! Owns the order of things: everything that can be refused is refused before the first write; the volume's first region comes
//! last, after all others are durable, and reads as zeroes until then. A resumed restore believes nothing but the target's
//! content: what has the digest that the point's footers hold stays, everything else is written; there is no side file. Not
//! here: targets (`target`), progress bars, who may restore where.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use farside_layer::{granule_digest, is_zero};
use farside_region::{ByteExtent, ByteOffset, Geometry, GranuleIndex, GranuleRun, RegionIndex, mutation};

use crate::error::{Result, StoreError};
use crate::group::DigestRun;
use crate::index::Content;
use crate::reader::{PointReader, RegionContent};
use crate::verify::unreadable_runs;

/// What a point is restored to. Called by several threads, never twice for the same bytes.
pub trait RestoreTarget: Sync {
    /// Its name, for messages.
    fn path(&self) -> &Path;

    /// Before anything else is written: the volume's first region, which comes last, must not read as a volume's until then.
    ///
    /// # Errors
    /// The target's.
    fn begin(&self, _first: ByteExtent) -> io::Result<()> {
        Ok(())
    }

    /// Writes content.
    ///
    /// # Errors
    /// The target's.
    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()>;

    /// Makes an extent read as zeroes; nothing to do where it does already.
    ///
    /// # Errors
    /// The target's.
    fn zero(&self, extent: ByteExtent) -> io::Result<()>;

    /// Reads what is there, for a restore that resumes.
    ///
    /// # Errors
    /// The target's.
    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()>;

    /// Whether an extent is known to read as zeroes without reading it.
    ///
    /// # Errors
    /// The target's.
    fn is_hole(&self, _extent: ByteExtent) -> io::Result<bool> {
        Ok(false)
    }

    /// A region is done: its writing to the disk may begin. A hint.
    fn done(&self, _region: ByteExtent) {}

    /// Makes everything durable.
    ///
    /// # Errors
    /// The target's.
    fn sync(&self) -> io::Result<()>;

    /// What is read from now on comes from the disk, as far as that can be; what was written and could not be is lost then.
    ///
    /// # Errors
    /// The target's.
    fn read_anew(&self) -> io::Result<()>;
}

/// From a bucket. What they have in memory stays below 256 MiB.
const FAR_THREADS: usize = 12;

/// How to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Threads that read, check and write; more where the store answers late.
    pub threads: usize,
    /// Zeroes where the source could not read, instead of refusing.
    pub allow_degraded: bool,
    /// Zeroes where the store is damaged, instead of stopping there.
    pub allow_damaged: bool,
    /// Compare first, and write only what differs.
    pub resume: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        // Two for each processor, since each waits for the disk at times.
        let threads = (2 * thread::available_parallelism().map_or(2, |n| n.get())).clamp(4, 12);
        Self { threads, allow_degraded: false, allow_damaged: false, resume: false }
    }
}

impl RestoreOptions {
    /// How many threads, each of which has a region and at most 4 MiB of what the store holds of it in memory: from a bucket so many that
    /// nobody waits for one answer with nothing else under way.
    pub(crate) fn threads_for(&self, reader: &PointReader) -> usize {
        self.threads.max(reader.requests_at_once().map_or(0, |requests| requests.min(FAR_THREADS)))
    }
}

/// What was restored, in bytes of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Content, checked.
    pub data_bytes: u64,
    /// Zeroes.
    pub zero_bytes: u64,
    /// Not known, restored as zeroes: [`unreadable_runs`] says which.
    pub unreadable_bytes: u64,
    /// Of all these, what a resumed restore found right and left alone.
    pub kept_bytes: u64,
    /// What the store has lost, restored as zeroes (and counted as what it should have been); ascending.
    pub damaged: Vec<ByteExtent>,
}

impl RestoreReport {
    fn add(&mut self, other: &Self) {
        self.damaged.extend_from_slice(&other.damaged);
        self.damaged.sort_by_key(|run| run.offset.0);
        self.data_bytes += other.data_bytes;
        self.zero_bytes += other.zero_bytes;
        self.unreadable_bytes += other.unreadable_bytes;
        self.kept_bytes += other.kept_bytes;
    }

    pub(crate) fn count(&mut self, content: Content, bytes: u64) {
        match content {
            Content::Data => self.data_bytes += bytes,
            Content::Zero => self.zero_bytes += bytes,
            Content::Unreadable => self.unreadable_bytes += bytes,
        }
    }
}

/// Restores a point; its first region last, so that what was interrupted does not look whole. `progress` hears, from any
/// thread, how many bytes of the volume are done; `false` stops the restore.
///
/// # Errors
/// [`StoreError::Corrupt`], [`StoreError::Incomplete`] and [`StoreError::Degraded`] name volume, point and region;
/// [`StoreError::Stopped`]; what the target says. The target is incomplete then.
pub fn restore_to(
    reader: &PointReader,
    target: &dyn RestoreTarget,
    options: &RestoreOptions,
    progress: &(dyn Fn(u64) -> bool + Sync),
) -> Result<RestoreReport> {
    check_restorable(reader, options)?;
    let regions = reader.geometry().region_count();
    let first = reader.geometry().bytes_of(reader.geometry().region_run(RegionIndex(0)));
    let mut restore = Restore { reader, target, options, first, taken_away: vec![first], begun: Mutex::new(false), progress };
    let mut head = None;
    if options.resume {
        // † What a sync before could not write is in the page cache as if it were on the disk, and would be found right.
        if !mutation::on("a resumed restore believes the cache") {
            restore.read_anew()?;
        }
        let (found, taken_away) = restore.head()?;
        (head, restore.taken_away) = (Some(found), taken_away);
    } else {
        restore.begin()?;
    }
    let mut report = restore.regions(1..regions, options.threads_for(reader), 0)?;
    restore.sync()?;
    let rest = match head {
        Some(head) => restore.put_head(head)?,
        None => restore.regions(0..regions.min(1), 1, reader.geometry().volume_bytes() - first.len)?,
    };
    report.add(&rest);
    restore.sync()?;
    Ok(report)
}

/// What the first region of a resumed restore becomes. It is taken away before anything else is written, so what the target has of it is here.
struct Head {
    bytes: Vec<u8>,
    runs: Vec<(GranuleRun, Content)>,
    /// Whether the target holds all of it.
    is_right: bool,
    kept_bytes: u64,
    report: RestoreReport,
}

/// A restore under way.
struct Restore<'r> {
    reader: &'r PointReader,
    target: &'r dyn RestoreTarget,
    options: &'r RestoreOptions,
    first: ByteExtent,
    /// What of the first region is taken away before anything is written. † Nothing that the target has and the store has lost: a restore may end
    /// anywhere.
    taken_away: Vec<ByteExtent>,
    /// Whether that was done.
    begun: Mutex<bool>,
    progress: &'r (dyn Fn(u64) -> bool + Sync),
}

impl Restore<'_> {
    /// From now on the target does not look whole. To be called before anything is written; does something once.
    fn begin(&self) -> Result<()> {
        let mut begun = self.begun.lock().expect("nothing panics while it holds this lock");
        if !*begun {
            self.taken_away.iter().try_for_each(|extent| self.target.begin(*extent)).map_err(|e| self.failed("zeroing", e))?;
            *begun = true;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.target.sync().map_err(|e| self.failed("syncing", e))
    }

    fn read_anew(&self) -> Result<()> {
        self.target.read_anew().map_err(|e| self.failed("reading", e))
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> StoreError {
        StoreError::of_target(doing, self.target.path(), error)
    }

    fn worker(&self) -> Worker<'_> {
        Worker { restore: self, report: RestoreReport::default(), content: self.reader.content(), found: Vec::new() }
    }

    /// The first region, and what of it may be taken away.
    ///
    /// # Errors
    /// As [`restore_to`], before anything is written: that the store does not have what the target lacks, too.
    fn head(&self) -> Result<(Head, Vec<ByteExtent>)> {
        let (reader, geometry) = (self.reader, self.reader.geometry());
        let mut worker = self.worker();
        let Mending { wrong, runs, kept_bytes } = worker.mending(RegionIndex(0), self.first)?;
        let Worker { report, content, found: mut bytes, .. } = worker;
        bytes.resize(self.first.len as usize, 0);
        for (run, kind) in &wrong {
            let extent = geometry.bytes_of(*run);
            let at = extent.offset.0 as usize..(extent.offset.0 + extent.len) as usize;
            match kind {
                Content::Data => bytes[at.clone()].copy_from_slice(&content.bytes[at]),
                Content::Zero | Content::Unreadable => bytes[at].fill(0),
            }
        }
        let mut read = reader.content();
        let lost = match reader.read_region(RegionIndex(0), &mut read) {
            Err(StoreError::Corrupt { .. } | StoreError::Incomplete { .. }) => {
                reader.salvage_region(RegionIndex(0), &mut read)?
            }
            other => other.map(|()| Vec::new())?,
        };
        let is_kept = |granule: GranuleIndex| {
            let within = |run: &GranuleRun| (run.start..run.end()).contains(&granule);
            lost.iter().any(within) && !wrong.iter().any(|(run, _)| within(run))
        };
        let mut taken_away: Vec<GranuleRun> = Vec::new();
        let all = geometry.region_run(RegionIndex(0));
        for granule in (all.start.0..all.end().0).map(GranuleIndex).filter(|granule| !is_kept(*granule)) {
            match taken_away.last_mut() {
                Some(last) if last.end() == granule => last.count += 1,
                _ => taken_away.push(GranuleRun { start: granule, count: 1 }),
            }
        }
        let taken_away = taken_away.into_iter().map(|run| geometry.bytes_of(run)).collect();
        Ok((Head { bytes, runs, is_right: wrong.is_empty(), kept_bytes, report }, taken_away))
    }

    /// Puts the first region where it belongs, after all others; in full, if anything was written.
    fn put_head(&self, head: Head) -> Result<RestoreReport> {
        let Head { bytes, runs, is_right, kept_bytes, mut report } = head;
        if is_right && !*self.begun.lock().expect("nothing panics while it holds this lock") {
            report.kept_bytes += kept_bytes;
        } else {
            self.begin()?;
            runs.iter().try_for_each(|(run, kind)| self.write_run(self.first, *run, *kind, &bytes))?;
        }
        self.target.done(self.first);
        if (self.progress)(self.reader.geometry().volume_bytes()) { Ok(report) } else { Err(StoreError::Stopped) }
    }

    /// Writes a run of a region; if it is data, from the region's bytes.
    fn write_run(&self, whole: ByteExtent, run: GranuleRun, content: Content, bytes: &[u8]) -> Result<()> {
        let extent = self.reader.geometry().bytes_of(run);
        match content {
            Content::Data => {
                let from = (extent.offset.0 - whole.offset.0) as usize;
                let bytes = &bytes[from..from + extent.len as usize];
                self.target.write_at(extent.offset, bytes).map_err(|e| self.failed("writing", e))
            }
            Content::Zero | Content::Unreadable => self.target.zero(extent).map_err(|e| self.failed("zeroing", e)),
        }
    }

    /// Restores some regions. `before`: bytes that are done already.
    fn regions(&self, regions: Range<u64>, threads: usize, before: u64) -> Result<RestoreReport> {
        let geometry = self.reader.geometry();
        let next = AtomicU64::new(regions.start);
        let done = AtomicU64::new(before);
        let stop = AtomicBool::new(false);
        let outcome: Mutex<Result<RestoreReport>> = Mutex::new(Ok(RestoreReport::default()));
        thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    let mut worker = self.worker();
                    let mut result = Ok(());
                    while result.is_ok() && !stop.load(Ordering::Relaxed) {
                        let region = RegionIndex(next.fetch_add(1, Ordering::Relaxed));
                        if region.0 >= regions.end {
                            break;
                        }
                        result = if self.options.resume { worker.mend_region(region) } else { worker.write_region(region) };
                        let extent = geometry.bytes_of(geometry.region_run(region));
                        self.target.done(extent);
                        let bytes = extent.len;
                        let so_far = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                        if result.is_ok() && !(self.progress)(so_far) {
                            result = Err(StoreError::Stopped);
                        }
                    }
                    let mut outcome = outcome.lock().expect("nothing panics while it holds this lock");
                    match (result, &mut *outcome) {
                        (Ok(()), Ok(sum)) => sum.add(&worker.report),
                        (Err(error), Ok(_)) => {
                            stop.store(true, Ordering::Relaxed);
                            *outcome = Err(error);
                        }
                        (_, Err(_)) => {} // the first error counts
                    }
                });
            }
        });
        outcome.into_inner().expect("nothing panics while it holds this lock")
    }
}

/// Whether a point is whole enough to be restored like this; to be asked before a target is touched.
///
/// # Errors
/// [`StoreError::Incomplete`]; [`StoreError::Degraded`] unless that is allowed.
pub fn check_restorable(reader: &PointReader, options: &RestoreOptions) -> Result<()> {
    reader.refuse_opaque()?;
    let (geometry, volume, point) = (reader.geometry(), reader.volume().name.to_string(), reader.point());
    if let Some(granule) = reader.first_absent().filter(|_| !options.allow_damaged) {
        return Err(StoreError::Incomplete { volume, point, region: geometry.region_of(granule) });
    }
    let unreadable = unreadable_runs(reader);
    match unreadable.first() {
        Some(first) if !options.allow_degraded => {
            let region = geometry.region_of(GranuleIndex(first.offset.0 / geometry.granule_bytes()));
            let bytes = unreadable.iter().map(|run| run.len).sum();
            Err(StoreError::Degraded { volume, point, region, runs: unreadable.len() as u64, bytes })
        }
        _ => Ok(()),
    }
}

/// Reads a region; where the store is damaged what is left of it, if that is allowed, and says what is not.
pub(crate) fn read_or_salvage(
    reader: &PointReader,
    region: RegionIndex,
    content: &mut RegionContent,
    allow_damaged: bool,
) -> Result<Vec<ByteExtent>> {
    match reader.read_region(region, content) {
        Err(StoreError::Corrupt { .. } | StoreError::Incomplete { .. }) if allow_damaged => {
            let lost = reader.salvage_region(region, content)?;
            Ok(lost.into_iter().map(|run| reader.geometry().bytes_of(run)).collect())
        }
        other => other.map(|()| Vec::new()),
    }
}

/// What a resumed restore does with a region.
struct Mending {
    /// What differs.
    wrong: Vec<(GranuleRun, Content)>,
    /// All that the region is.
    runs: Vec<(GranuleRun, Content)>,
    /// What of it the target has.
    kept_bytes: u64,
}

/// What is in both; both ascend.
fn shared(wrong: &[(GranuleRun, Content)], lost: &[GranuleRun]) -> Vec<GranuleRun> {
    let pairs = wrong.iter().flat_map(|(run, _)| lost.iter().map(move |lost| (run, lost)));
    let shared = pairs.map(|(run, lost)| (run.start.max(lost.start), run.end().min(lost.end())));
    shared.filter(|(start, end)| start < end).map(|(start, end)| GranuleRun { start, count: end.0 - start.0 }).collect()
}

/// One thread of a restore, with its buffers.
struct Worker<'r> {
    restore: &'r Restore<'r>,
    report: RestoreReport,
    content: RegionContent,
    /// What the target holds of a region.
    found: Vec<u8>,
}

impl Worker<'_> {
    /// Writes a region, whatever was there.
    fn write_region(&mut self, region: RegionIndex) -> Result<()> {
        let (reader, restore) = (self.restore.reader, self.restore);
        let whole = reader.geometry().bytes_of(reader.geometry().region_run(region));
        if reader.is_zero(region) {
            self.report.zero_bytes += whole.len;
            return restore.target.zero(whole).map_err(|e| restore.failed("zeroing", e));
        }
        self.report.damaged.extend(read_or_salvage(reader, region, &mut self.content, restore.options.allow_damaged)?);
        for i in 0..self.content.runs.len() {
            let (run, content) = self.content.runs[i];
            restore.write_run(whole, run, content, &self.content.bytes)?;
            self.report.count(content, reader.geometry().bytes_of(run).len);
        }
        Ok(())
    }

    /// Writes what of a region differs.
    fn mend_region(&mut self, region: RegionIndex) -> Result<()> {
        let restore = self.restore;
        let whole = restore.reader.geometry().bytes_of(restore.reader.geometry().region_run(region));
        let Mending { wrong, kept_bytes, .. } = self.mending(region, whole)?;
        if !wrong.is_empty() {
            restore.begin()?;
            wrong.iter().try_for_each(|(run, kind)| restore.write_run(whole, *run, *kind, &self.content.bytes))?;
        }
        self.report.kept_bytes += kept_bytes;
        Ok(())
    }

    /// What of a region is to be written, from this worker's content; it is counted here. † Nothing that the target has right: where the store
    /// has lost it, that is the last copy.
    fn mending(&mut self, region: RegionIndex, whole: ByteExtent) -> Result<Mending> {
        let (reader, allow_damaged) = (self.restore.reader, self.restore.options.allow_damaged);
        let geometry = reader.geometry();
        let (wrong, kept_bytes) = match self.differing(region, whole) {
            // Nobody can tell what is right.
            Err(StoreError::Corrupt { .. } | StoreError::Incomplete { .. }) if allow_damaged => {
                self.report.damaged.extend(read_or_salvage(reader, region, &mut self.content, true)?);
                let runs = self.content.runs.clone();
                self.count(&runs);
                return Ok(Mending { wrong: runs.clone(), runs, kept_bytes: 0 });
            }
            other => other?,
        };
        if wrong.iter().any(|(_, content)| *content == Content::Data) {
            let lost = match reader.read_region(region, &mut self.content) {
                Err(error @ StoreError::Corrupt { .. }) => {
                    let lost = shared(&wrong, &reader.salvage_region(region, &mut self.content)?);
                    if !lost.is_empty() && !allow_damaged {
                        return Err(error);
                    }
                    lost
                }
                other => other.map(|()| Vec::new())?,
            };
            self.report.damaged.extend(lost.into_iter().map(|run| geometry.bytes_of(run)));
        }
        let runs: Vec<_> = reader.extents(geometry.region_run(region)).map(|extent| (extent.run, extent.content)).collect();
        self.count(&runs);
        Ok(Mending { wrong, runs, kept_bytes })
    }

    fn count(&mut self, runs: &[(GranuleRun, Content)]) {
        let geometry = self.restore.reader.geometry();
        runs.iter().for_each(|(run, content)| self.report.count(*content, geometry.bytes_of(*run).len));
    }

    /// The runs of a region in which the target is not what the point is, and the bytes in which it is.
    fn differing(&mut self, region: RegionIndex, whole: ByteExtent) -> Result<(Vec<(GranuleRun, Content)>, u64)> {
        let (reader, restore) = (self.restore.reader, self.restore);
        let geometry = reader.geometry();
        let hole = restore.target.is_hole(whole).map_err(|e| restore.failed("looking at", e))?;
        self.found.resize(whole.len as usize, 0);
        if hole {
            self.found.fill(0);
        } else {
            let read = restore.target.read_at(whole.offset, &mut self.found);
            read.map_err(|e| restore.failed("reading", e))?;
        }
        let key = reader.digest_key().expect("what is restored was opened with its keys");
        Ok(differing(geometry, region, key, &reader.region_digests(region)?, &self.found))
    }
}

/// The runs of a region in which what was `found` there is not what its digests say, and the bytes in which it is. What could not be read is
/// to be zeroes.
pub(crate) fn differing(
    geometry: &Geometry,
    region: RegionIndex,
    key: &[u8; 32],
    digests: &[DigestRun],
    found: &[u8],
) -> (Vec<(GranuleRun, Content)>, u64) {
    let (mut wrong, mut kept): (Vec<(GranuleRun, Content)>, u64) = (Vec::new(), 0);
    let whole = geometry.bytes_of(geometry.region_run(region));
    let mut at = geometry.region_run(region).start;
    for run in digests {
        let (granules, content) = match run {
            DigestRun::Data(digests) => (digests.len() as u64, Content::Data),
            DigestRun::Unreadable { granules } => (*granules, Content::Unreadable),
            DigestRun::Zero { granules } | DigestRun::Absent { granules } => (*granules, Content::Zero),
        };
        for i in 0..granules {
            let one = GranuleRun { start: GranuleIndex(at.0 + i), count: 1 };
            let extent = geometry.bytes_of(one);
            let from = (extent.offset.0 - whole.offset.0) as usize;
            let found = &found[from..from + extent.len as usize];
            let right = match run {
                DigestRun::Data(digests) => granule_digest(key, one.start, found) == digests[i as usize],
                _ => is_zero(found),
            };
            match wrong.last_mut() {
                _ if right => kept += extent.len,
                Some((last, kind)) if *kind == content && last.end() == one.start => last.count += 1,
                _ => wrong.push((one, content)),
            }
        }
        at = GranuleIndex(at.0 + granules);
    }
    (wrong, kept)
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
