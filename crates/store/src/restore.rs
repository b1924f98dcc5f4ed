//! Writing a point to a file or device: parallel, sparse, verified, and never over something that is in use.
//!
//! Owns the checks on the target and the order of things: everything that can be refused is refused before the first write; a
//! file gets its name, also that of one it replaces, only when it is complete and synced; a device its first region last. Not here: progress bars, who may restore where (a device that
//! is a configured backing goes through `farsided`, T13).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, fchown};
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

/// Restores a point; its first region last, so that what was interrupted does not look whole. `progress` hears, from any thread, how many bytes of the volume are done; `false` stops the restore.
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
    target.begin(first).map_err(|e| StoreError::from_io("zeroing", target.path(), first.len, e))?;
    let rest = restore_regions(1..regions, reader, target, options.threads, 0, progress)?;
    let synced = || target.sync().map_err(|e| StoreError::from_io("syncing", target.path(), 0, e));
    synced()?;
    let before = reader.geometry().volume_bytes() - first.len;
    let report = restore_regions(0..regions.min(1), reader, target, 1, before, progress)?;
    synced()?;
    Ok(RestoreReport {
        data_bytes: rest.data_bytes + report.data_bytes,
        zero_bytes: rest.zero_bytes + report.zero_bytes,
        unreadable_bytes: rest.unreadable_bytes + report.unreadable_bytes,
    })
}

/// Restores some regions. `before`: bytes that are done already.
fn restore_regions(
    regions: Range<u64>,
    reader: &PointReader,
    target: &dyn RestoreTarget,
    threads: usize,
    before: u64,
    progress: &(dyn Fn(u64) -> bool + Sync),
) -> Result<RestoreReport> {
    let next = AtomicU64::new(regions.start);
    let done = AtomicU64::new(before);
    let stop = AtomicBool::new(false);
    let outcome: Mutex<Result<RestoreReport>> = Mutex::new(Ok(RestoreReport::default()));
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut worker = Worker { reader, target, report: RestoreReport::default(), content: reader.content() };
                let mut result = Ok(());
                while result.is_ok() && !stop.load(Ordering::Relaxed) {
                    let region = RegionIndex(next.fetch_add(1, Ordering::Relaxed));
                    if region.0 >= regions.end {
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
    outcome.into_inner().expect("nothing panics while it holds this lock")
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

/// Whether a point is whole enough to be restored like this; to be asked before a target is touched.
///
/// # Errors
/// [`StoreError::Incomplete`]; [`StoreError::Degraded`] unless that is allowed.
pub fn check_restorable(reader: &PointReader, options: &RestoreOptions) -> Result<()> {
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
    /// The name under which a file grows until it is complete.
    partial: Option<PathBuf>,
    /// The file that it then replaces, locked, and whether its content may be lost.
    replaces: Option<(Flock<File>, bool)>,
}

impl FileTarget {
    /// Opens a target for a volume of that name and size: a new file, an empty one, or a device that looks empty. `force`:
    /// also one with content, which is lost; a file that is too small grows, a device cannot. A file is replaced only by
    /// [`FileTarget::finish`]: there must be space for both.
    ///
    /// # Errors
    /// [`StoreError::TargetTooSmall`], [`StoreError::TargetNotEmpty`], [`StoreError::TargetBusy`]; what the file system says.
    pub fn open(path: &Path, volume: &str, needs: u64, force: bool) -> Result<Self> {
        let io = |doing, e| StoreError::from_io(doing, path, needs, e);
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::create(path, needs),
            other => other.map_err(|e| io("opening", e))?,
        };
        let meta = fs::metadata(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                StoreError::TargetBusy { path: path.to_owned(), why: "it is a symbolic link to nothing".to_owned() }
            }
            _ => io("opening", e),
        })?;
        let kind = meta.file_type();
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
            return Ok(Self { path: path.to_owned(), file, zeroed: false, partial: None, replaces: None });
        }
        if !force && has > 0 {
            if !file_is_hole(&file).map_err(|e| io("reading", e))? {
                return Err(StoreError::TargetNotEmpty { path: path.to_owned() });
            }
            if has < needs {
                return Err(small());
            }
        }
        let real = fs::canonicalize(path).map_err(|e| io("opening", e))?;
        let mut new = Self::create(&real, has.max(needs))?;
        let _ = fchown(&*new.file, Some(meta.uid()), Some(meta.gid())); // as far as the caller may
        new.file.set_permissions(meta.permissions()).map_err(|e| io("creating", e))?;
        new.replaces = Some((file, force));
        Ok(new)
    }

    fn create(path: &Path, needs: u64) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| StoreError::TargetBusy { path: path.to_owned(), why: "it has no file name".into() })?;
        let mut partial_name = name.to_owned();
        partial_name.push(".farside-partial");
        let partial = path.with_file_name(partial_name);
        let io = |doing, e| StoreError::from_io(doing, &partial, needs, e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let opened = options.open(&partial);
        let file = lock(&partial, opened.map_err(|e| io("creating", e))?)?;
        file.set_len(0).and_then(|()| file.set_len(needs)).map_err(|e| io("resizing", e))?;
        Ok(Self { path: path.to_owned(), file, zeroed: true, partial: Some(partial), replaces: None })
    }

    /// After a complete restore: gives a file its name.
    ///
    /// # Errors
    /// [`StoreError::NotNamed`] when it cannot get it, or another file came up under it meanwhile; what was restored is kept
    /// then. What the file system says.
    pub fn finish(mut self) -> Result<()> {
        let Some(partial) = self.partial.take() else { return Ok(()) };
        let named = match &self.replaces {
            Some((old, force)) => match *force || file_is_hole(old).unwrap_or(false) {
                true => fs::rename(&partial, &self.path),
                false => Err(io::Error::new(ErrorKind::AlreadyExists, "something was written to it meanwhile")),
            },
            None => rename_new(&partial, &self.path),
        };
        named.map_err(|e| StoreError::NotNamed { path: self.path.clone(), partial: partial.clone(), why: e.to_string() })?;
        let parent = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| StoreError::from_io("syncing", parent, 0, e))
    }
}

/// Renames to a name that nothing has yet.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    // A file system that cannot do it in one step.
    match fs::symlink_metadata(to) {
        Err(e) if e.kind() == ErrorKind::NotFound => fs::rename(from, to),
        Err(e) => Err(e),
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
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

    fn begin(&self, first: ByteExtent) -> io::Result<()> {
        if self.zeroed || first.len == 0 {
            return Ok(()); // it has no name yet
        }
        self.zero(first)?;
        self.sync()
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
