//! Writing a point to a file or device: parallel, sparse, verified, and never over something that is in use.
//!
//! Owns the checks on the target and the order of things: everything that can be refused is refused before the first write; a
//! new file gets its name only when it is complete and synced. Not here: progress bars, who may restore where (a device that
//! is a configured backing goes through `farsided`, T13).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use farside_region::{ByteExtent, ByteOffset, RegionIndex};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg};
use nix::unistd::{Whence, lseek};

use crate::error::{Result, StoreError};
use crate::index::Content;
use crate::reader::PointReader;

/// What a point is restored to. Called by several threads, never twice for the same bytes.
pub trait RestoreTarget: Sync {
    /// Its name, for messages.
    fn path(&self) -> &Path;

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

    /// Makes everything durable.
    ///
    /// # Errors
    /// The target's.
    fn sync(&self) -> io::Result<()>;
}

/// How to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Threads that read, check and write.
    pub threads: usize,
    /// Zeroes where the source could not read, instead of refusing.
    pub allow_degraded: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { threads: thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8), allow_degraded: false }
    }
}

/// What was restored, in bytes of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Content, checked and written.
    pub data_bytes: u64,
    /// Zeroes.
    pub zero_bytes: u64,
    /// Not known, restored as zeroes.
    pub unreadable_bytes: u64,
}

/// Restores a point. `progress` hears, from any thread, how many bytes of the volume are done; `false` stops the restore.
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
    refuse_holes(reader, options)?;
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let outcome: Mutex<Result<RestoreReport>> = Mutex::new(Ok(RestoreReport::default()));
    thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                let mut worker = Worker { reader, target, report: RestoreReport::default(), content: reader.content() };
                let mut result = Ok(());
                while result.is_ok() && !stop.load(Ordering::Relaxed) {
                    let region = RegionIndex(next.fetch_add(1, Ordering::Relaxed));
                    if region.0 >= reader.geometry().region_count() {
                        break;
                    }
                    result = worker.restore_region(region);
                    let bytes = reader.geometry().bytes_of(reader.geometry().region_run(region)).len;
                    let so_far = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    if result.is_ok() && !progress(so_far) {
                        result = Err(StoreError::Stopped);
                    }
                }
                let mut outcome = outcome.lock().expect("nothing panics while it holds this lock");
                match (result, &mut *outcome) {
                    (Ok(()), Ok(sum)) => {
                        sum.data_bytes += worker.report.data_bytes;
                        sum.zero_bytes += worker.report.zero_bytes;
                        sum.unreadable_bytes += worker.report.unreadable_bytes;
                    }
                    (Err(error), Ok(_)) => {
                        stop.store(true, Ordering::Relaxed);
                        *outcome = Err(error);
                    }
                    (_, Err(_)) => {} // the first error counts
                }
            });
        }
    });
    let report = outcome.into_inner().expect("nothing panics while it holds this lock")?;
    target.sync().map_err(|e| StoreError::from_io("syncing", target.path(), 0, e))?;
    Ok(report)
}

/// Reads everything that a restore would read, and writes nothing.
///
/// # Errors
/// As [`restore_to`].
pub fn verify_point(
    reader: &PointReader,
    options: &RestoreOptions,
    progress: &(dyn Fn(u64) -> bool + Sync),
) -> Result<RestoreReport> {
    struct Nowhere;
    impl RestoreTarget for Nowhere {
        fn path(&self) -> &Path {
            Path::new("nowhere")
        }
        fn write_at(&self, _: ByteOffset, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, _: ByteExtent) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }
    restore_to(reader, &Nowhere, options, progress)
}

fn refuse_holes(reader: &PointReader, options: &RestoreOptions) -> Result<()> {
    let (geometry, volume, point) = (reader.geometry(), reader.volume().name.to_string(), reader.point());
    if let Some(granule) = reader.first_absent() {
        return Err(StoreError::Incomplete { volume, point, region: geometry.region_of(granule) });
    }
    let unreadable = reader.extents(geometry.whole()).find(|e| e.content == Content::Unreadable);
    match unreadable {
        Some(extent) if !options.allow_degraded => {
            Err(StoreError::Degraded { volume, point, region: geometry.region_of(extent.run.start) })
        }
        _ => Ok(()),
    }
}

struct Worker<'r> {
    reader: &'r PointReader,
    target: &'r dyn RestoreTarget,
    report: RestoreReport,
    content: crate::reader::RegionContent,
}

impl Worker<'_> {
    fn restore_region(&mut self, region: RegionIndex) -> Result<()> {
        let geometry = self.reader.geometry();
        let whole = geometry.bytes_of(geometry.region_run(region));
        let failed = |doing, e| StoreError::from_io(doing, self.target.path(), whole.len, e);
        if self.reader.is_zero(region) {
            self.report.zero_bytes += whole.len;
            return self.target.zero(whole).map_err(|e| failed("zeroing", e));
        }
        self.reader.read_region(region, &mut self.content)?;
        for &(run, content) in &self.content.runs {
            let extent = geometry.bytes_of(run);
            let from = (extent.offset.0 - whole.offset.0) as usize;
            match content {
                Content::Data => {
                    let bytes = &self.content.bytes[from..from + extent.len as usize];
                    self.target.write_at(extent.offset, bytes).map_err(|e| failed("writing", e))?;
                    self.report.data_bytes += extent.len;
                }
                Content::Zero => {
                    self.target.zero(extent).map_err(|e| failed("zeroing", e))?;
                    self.report.zero_bytes += extent.len;
                }
                Content::Unreadable => {
                    self.target.zero(extent).map_err(|e| failed("zeroing", e))?;
                    self.report.unreadable_bytes += extent.len;
                }
            }
        }
        Ok(())
    }
}

/// A file or block device as a target, locked.
#[derive(Debug)]
pub struct FileTarget {
    path: PathBuf,
    file: Flock<File>,
    /// It reads as zeroes where nothing was written.
    zeroed: bool,
    /// The name under which a new file grows.
    partial: Option<PathBuf>,
}

impl FileTarget {
    /// Opens a target for a volume of that name and size: a new file, an empty one, or a device that looks empty. `force`:
    /// also one with content, which is lost; a file that is too small grows, a device cannot.
    ///
    /// # Errors
    /// [`StoreError::TargetTooSmall`], [`StoreError::TargetNotEmpty`], [`StoreError::TargetBusy`]; what the file system says.
    pub fn open(path: &Path, volume: &str, needs: u64, force: bool) -> Result<Self> {
        let io = |doing, e| StoreError::from_io(doing, path, needs, e);
        let kind = match fs::metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::create(path, needs),
            other => other.map_err(|e| io("opening", e))?.file_type(),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if kind.is_block_device() {
            options.custom_flags(libc::O_EXCL);
        } else if !kind.is_file() {
            let why = "it is neither a file nor a block device".to_owned();
            return Err(StoreError::TargetBusy { path: path.to_owned(), why });
        }
        let file = options.open(path).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => {
                let why = "it is mounted, or part of another device (see `lsblk` and /sys/block/*/holders)".to_owned();
                StoreError::TargetBusy { path: path.to_owned(), why }
            }
            _ => io("opening", e),
        })?;
        let mut file = lock(path, file)?;
        let has = file.seek(SeekFrom::End(0)).map_err(|e| io("measuring", e))?;
        let small = || StoreError::TargetTooSmall { path: path.to_owned(), has, volume: volume.to_owned(), needs };
        if kind.is_block_device() {
            if has < needs {
                return Err(small());
            }
            if !force && !device_looks_empty(&file, has).map_err(|e| io("reading", e))? {
                return Err(StoreError::TargetNotEmpty { path: path.to_owned() });
            }
            return Ok(Self { path: path.to_owned(), file, zeroed: false, partial: None });
        }
        if !force && has > 0 {
            if !file_is_hole(&file).map_err(|e| io("reading", e))? {
                return Err(StoreError::TargetNotEmpty { path: path.to_owned() });
            }
            if has < needs {
                return Err(small());
            }
        }
        file.set_len(0).and_then(|()| file.set_len(has.max(needs))).map_err(|e| io("resizing", e))?;
        Ok(Self { path: path.to_owned(), file, zeroed: true, partial: None })
    }

    fn create(path: &Path, needs: u64) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| StoreError::TargetBusy { path: path.to_owned(), why: "it has no file name".into() })?;
        let mut partial_name = name.to_owned();
        partial_name.push(".farside-partial");
        let partial = path.with_file_name(partial_name);
        let io = |doing, e| StoreError::from_io(doing, &partial, needs, e);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&partial);
        let file = lock(&partial, opened.map_err(|e| io("creating", e))?)?;
        file.set_len(0).and_then(|()| file.set_len(needs)).map_err(|e| io("resizing", e))?;
        Ok(Self { path: path.to_owned(), file, zeroed: true, partial: Some(partial) })
    }

    /// After a complete restore: gives a new file its name.
    ///
    /// # Errors
    /// [`StoreError::TargetNotEmpty`] when a file of that name came up meanwhile; what the file system says.
    pub fn finish(mut self) -> Result<()> {
        let Some(partial) = self.partial.clone() else { return Ok(()) };
        fs::hard_link(&partial, &self.path).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => StoreError::TargetNotEmpty { path: self.path.clone() },
            _ => StoreError::from_io("naming", &self.path, 0, e),
        })?;
        self.partial = None;
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let done = fs::remove_file(&partial).and_then(|()| File::open(parent)?.sync_all());
        done.map_err(|e| StoreError::from_io("syncing", parent, 0, e))
    }
}

/// What is not finished is not left behind.
impl Drop for FileTarget {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_file(partial);
        }
    }
}

impl RestoreTarget for FileTarget {
    fn path(&self) -> &Path {
        &self.path
    }

    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset.0)
    }

    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        if self.zeroed || extent.len == 0 {
            return Ok(());
        }
        let (offset, len) = (extent.offset.0 as libc::off_t, extent.len as libc::off_t);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(&*self.file, flags, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => self.write_zeroes(extent),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl FileTarget {
    fn write_zeroes(&self, extent: ByteExtent) -> io::Result<()> {
        let zeroes = vec![0; extent.len.min(1 << 20) as usize];
        let (mut at, end) = (extent.offset.0, extent.offset.0 + extent.len);
        while at < end {
            let now = (end - at).min(zeroes.len() as u64);
            self.file.write_all_at(&zeroes[..now as usize], at)?;
            at += now;
        }
        Ok(())
    }
}

fn lock(path: &Path, file: File) -> Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        Errno::EWOULDBLOCK => {
            StoreError::TargetBusy { path: path.to_owned(), why: "another process has it locked (a daemon, or a restore)".into() }
        }
        e => StoreError::from_io("locking", path, 0, e.into()),
    })
}

/// Whether a file has no data anywhere.
fn file_is_hole(file: &File) -> io::Result<bool> {
    match lseek(file, 0, Whence::SeekData) {
        Err(Errno::ENXIO) => Ok(true),
        Ok(_) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether a device holds zeroes where things usually begin: both ends, and 64 places between.
fn device_looks_empty(file: &File, bytes: u64) -> io::Result<bool> {
    const ENDS: u64 = 4 << 20;
    let mut places = vec![(0, ENDS.min(bytes)), (bytes.saturating_sub(ENDS), ENDS.min(bytes))];
    places.extend((1..64).map(|i| (bytes / 64 * i / 4096 * 4096, 4096)).filter(|(at, len)| at + len <= bytes));
    for (at, len) in places {
        let mut content = vec![0; len as usize];
        file.read_exact_at(&mut content, at)?;
        if content.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
