//! A block device or regular file, opened for direct I/O through its one door.
//!
//! Invariant: whoever holds a [`FileDevice`] holds the device's lock, and clones share the very same open file description, so
//! that an I/O error is reported to, and a lock is kept for, all of them. Never page-cached: a device without direct I/O is
//! refused. It does not decide what is written.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use farside_region::intent::BackingIdentity;
use farside_region::{ByteExtent, ByteOffset};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, lseek64};
use thiserror::Error;

use crate::queue::push_extent;
use crate::written::Given;
use crate::{BUFFER_ALIGN, Buffer, Extent, ExtentKind, SharedFd, door, topology};

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// How long to wait for another owner to let go.
    pub wait: Duration,
    /// Whether to open for reading only; then the lock of a file is shared with other readers.
    pub readonly: bool,
}

impl OpenOptions {
    /// For a daemon: writable, waiting up to 30 s, so that a dead predecessor's I/O has ended.
    pub fn daemon() -> Self {
        Self { wait: Duration::from_secs(30), readonly: false }
    }

    /// For a tool: writable, without waiting.
    pub fn at_once() -> Self {
        Self { wait: Duration::ZERO, readonly: false }
    }
}

/// What kind of thing is behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block special file.
    Block,
    /// A regular file.
    File,
}

/// Why a device cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a socket…
    #[error("{path} is neither a block device nor a regular file")]
    Kind {
        /// The device.
        path: PathBuf,
    },
    /// Its locks hold on one host only, or not at all.
    #[error("{path} lies on {filesystem}, whose locks and caches are shared with other hosts: use a local disk")]
    Remote {
        /// The device.
        path: PathBuf,
        /// Name of the file system.
        filesystem: String,
    },
    /// Direct I/O is impossible there.
    #[error("{path} lies on {filesystem}, which has no direct I/O (O_DIRECT): put it on ext4, XFS or a block device")]
    NoDirectIo {
        /// The device.
        path: PathBuf,
        /// Name of the file system.
        filesystem: String,
    },
    /// Somebody else has it.
    #[error("{path} is in use by {holder}; waited {} s. Stop that, then try again", waited.as_secs())]
    Busy {
        /// The device.
        path: PathBuf,
        /// Who, as far as the kernel says.
        holder: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The end of it could not be read or written with direct I/O.
    #[error(
        "{path} has {size} bytes, which is not a multiple of its direct-I/O alignment of {block_min}: extend it (truncate -s)"
    )]
    Size {
        /// The device.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Its alignment in bytes.
        block_min: u32,
    },
    /// An alignment that we do not serve.
    #[error("{path} wants direct I/O aligned to {align} bytes; powers of two up to {BUFFER_ALIGN} are supported")]
    Alignment {
        /// The device.
        path: PathBuf,
        /// What it wants.
        align: u32,
    },
    /// A question about it failed.
    #[error("cannot {what} {path}")]
    Query {
        /// The device.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// An open device. Clones share one open file description and its lock.
#[derive(Clone, Debug)]
pub struct FileDevice {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fd: SharedFd,
    path: PathBuf,
    kind: DeviceKind,
    size: u64,
    block_min: u32,
    readonly: bool,
    /// † Not before somebody asks: to try it moves a file's times, and whoever opened it and then failed would have left them as a stranger does.
    punches: OnceLock<bool>,
    found: Option<BackingIdentity>,
    given: Arc<Given>,
}

impl FileDevice {
    /// Opens a device that exists and takes its lock (a block device exclusively too).
    ///
    /// # Errors
    /// [`DeviceError`]; each says what to do.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, DeviceError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|source| DeviceError::Open { path: path.to_owned(), source })?;
        let kind = if metadata.file_type().is_block_device() {
            DeviceKind::Block
        } else if metadata.is_file() {
            DeviceKind::File
        } else {
            return Err(DeviceError::Kind { path: path.to_owned() });
        };
        let query = |what| move |source: io::Error| DeviceError::Query { path: path.to_owned(), what, source };
        if kind == DeviceKind::File {
            door::refuse_remote(path)?;
        }
        let fd = door::open(path, kind, options)?;
        let found = backing_identity(&metadata_of(fd.as_fd()).map_err(query("look at"))?);
        let size = size_of_device(fd.as_fd(), kind).map_err(query("find the size of"))?;
        let block_min = alignment(fd.as_fd(), path, kind)?;
        if size % u64::from(block_min) != 0 {
            return Err(DeviceError::Size { path: path.to_owned(), size, block_min });
        }
        if size > 0 {
            probe_direct(fd.as_fd(), path, block_min)?;
        }
        let punches = OnceLock::new();
        let given = Arc::new(Given::new((kind == DeviceKind::Block).then(|| metadata.rdev())));
        let (path, readonly) = (path.to_owned(), options.readonly);
        Ok(Self { inner: Arc::new(Inner { fd: Arc::new(fd), path, kind, size, block_min, readonly, punches, found, given }) })
    }

    /// The descriptor, for operations of a [`crate::Ring`].
    pub fn fd(&self) -> &SharedFd {
        &self.inner.fd
    }

    /// What was given to the kernel to be written there.
    pub(crate) fn given(&self) -> &Arc<Given> {
        &self.inner.given
    }

    /// As it was opened.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// What it is.
    pub fn kind(&self) -> DeviceKind {
        self.inner.kind
    }

    /// Bytes, as found at opening; a multiple of [`FileDevice::block_min`].
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Bytes, as the kernel says now.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn size_now(&self) -> io::Result<u64> {
        size_of_device(self.inner.fd.as_fd(), self.inner.kind)
    }

    /// Whether whoever opens `path` now opens this device.
    ///
    /// # Errors
    /// What the kernel says of either.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let own = nix::sys::stat::fstat(self.inner.fd.as_fd()).map_err(io::Error::from)?;
        let there = std::fs::metadata(path)?;
        Ok(match self.inner.kind {
            DeviceKind::Block => there.file_type().is_block_device() && there.rdev() == own.st_rdev,
            DeviceKind::File => (there.dev(), there.ino()) == (own.st_dev, own.st_ino),
        })
    }

    /// Direct-I/O alignment of offsets and lengths in bytes: a power of two from 512 to 4096. Memory is aligned by
    /// [`Buffer`].
    pub fn block_min(&self) -> u32 {
        self.inner.block_min
    }

    /// Whether it was opened for reading only.
    pub fn readonly(&self) -> bool {
        self.inner.readonly
    }

    /// Whether zeroing is done by the file system or the device, without writing zeroes. The first to ask has it tried, which moves a file's times.
    pub fn punches(&self) -> bool {
        let Inner { fd, kind, size, block_min, readonly, .. } = &*self.inner;
        *self.inner.punches.get_or_init(|| !readonly && punches(fd.as_fd(), *kind, *size, *block_min))
    }

    /// What the file looked like when its lock had been taken and before anything was tried on it; `None` for a block device.
    pub fn identity_found(&self) -> Option<BackingIdentity> {
        self.inner.found
    }

    /// What the file looks like now; `None` for a block device.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn identity_now(&self) -> io::Result<Option<BackingIdentity>> {
        Ok(backing_identity(&self.metadata()?))
    }

    /// What the kernel says of the open file: of it, not of what its path may name by now.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        metadata_of(self.inner.fd.as_fd())
    }

    /// Reads, blocking. The slice must be aligned (a [`Buffer`] is), as must offset and length.
    ///
    /// # Errors
    /// The device's; `UnexpectedEof` beyond its end.
    pub fn read_exact_at(&self, offset: ByteOffset, mut into: &mut [u8]) -> io::Result<()> {
        let mut at = offset.0;
        while !into.is_empty() {
            match pread(self.inner.fd.as_fd(), into, to_off(at)?) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    at += n as u64;
                    into = &mut into[n..];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Writes, blocking; alignment as for reads. Durable only after [`FileDevice::sync_data`].
    ///
    /// # Errors
    /// The device's.
    pub fn write_all_at(&self, offset: ByteOffset, mut from: &[u8]) -> io::Result<()> {
        let mut at = offset.0;
        self.inner.given.begin_write(from.len() as u64);
        let _end = End(&self.inner.given);
        while !from.is_empty() {
            match pwrite(self.inner.fd.as_fd(), from, to_off(at)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    from = &from[n..];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Makes completed writes durable, blocking (`fdatasync`).
    ///
    /// # Errors
    /// The device's. An error is reported once; the caller must remember it.
    pub fn sync_data(&self) -> io::Result<()> {
        Ok(nix::unistd::fdatasync(&*self.inner.fd)?)
    }

    /// Makes an extent read as zeroes, blocking: by a hole, else by the kernel, else by writing. `keep_space` leaves out the
    /// hole.
    ///
    /// # Errors
    /// The device's.
    pub fn zero(&self, extent: ByteExtent, keep_space: bool) -> io::Result<()> {
        use nix::fcntl::FallocateFlags;
        let ways = [FallocateFlags::FALLOC_FL_PUNCH_HOLE, FallocateFlags::FALLOC_FL_ZERO_RANGE];
        for way in ways.into_iter().skip(usize::from(keep_space || !self.punches())) {
            self.inner.given.begin_zero(extent.len, way == FallocateFlags::FALLOC_FL_PUNCH_HOLE);
            let _end = End(&self.inner.given);
            let flags = way | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            loop {
                match nix::fcntl::fallocate(self.inner.fd.as_fd(), flags, to_off(extent.offset.0)?, to_off(extent.len)?) {
                    Ok(()) => return Ok(()),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        let zeroes = Buffer::alone(extent.len.min(1 << 20) as usize)?;
        let mut done = 0;
        while done < extent.len {
            let len = (extent.len - done).min(zeroes.len() as u64);
            self.write_all_at(ByteOffset(extent.offset.0 + done), &zeroes[..len as usize])?;
            done += len;
        }
        Ok(())
    }

    /// Where the holes are: at most `max` runs appended to `out`, which together start at `extent.offset`, end at its end or
    /// before, and whose bounds are multiples of [`FileDevice::block_min`]. A block device, or a file system that cannot
    /// tell, is all data. True only of content that nobody is writing.
    ///
    /// # Errors
    /// The device's.
    pub fn extents(&self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        let (from, end) = (out.len(), extent.offset.0 + extent.len);
        let block = u64::from(self.inner.block_min);
        let mut at = extent.offset.0;
        while at < end && out.len() - from < max {
            let data = self.seek(at, Whence::SeekData)?.map_or(end, |data| data - data % block).clamp(at, end);
            if data > at {
                push_extent(out, from, Extent { len: data - at, kind: ExtentKind::Hole });
                at = data;
                continue;
            }
            let hole = self.seek(at.max(data), Whence::SeekHole)?.map_or(end, |hole| hole.next_multiple_of(block));
            // A data run shorter than one block must still make progress.
            let hole = hole.clamp((at + block).min(end), end);
            push_extent(out, from, Extent { len: hole - at, kind: ExtentKind::Data });
            at = hole;
        }
        Ok(())
    }

    /// `None`: nothing of that kind up to the end.
    fn seek(&self, at: u64, whence: Whence) -> Result<Option<u64>, Errno> {
        match self.inner.kind {
            DeviceKind::Block => Ok(matches!(whence, Whence::SeekData).then_some(at)),
            DeviceKind::File => seek_extent(&*self.inner.fd, at, whence),
        }
    }
}

/// Where data (`SeekData`) or a hole (`SeekHole`) begins in a file, at an offset or after it; `None`: nothing of that kind up to the
/// end. A file system that cannot tell has data everywhere.
///
/// # Errors
/// The file's.
pub fn seek_extent(file: impl AsFd, at: u64, whence: Whence) -> Result<Option<u64>, Errno> {
    match lseek64(file, i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?, whence) {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(matches!(whence, Whence::SeekData).then_some(at)),
        Err(errno) => Err(errno),
    }
}

/// What was given has ended.
struct End<'a>(&'a Given);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn metadata_of(fd: BorrowedFd<'_>) -> io::Result<std::fs::Metadata> {
    // A duplicate shares the description, so closing it lets go of no lock.
    std::fs::File::from(fd.try_clone_to_owned()?).metadata()
}

fn backing_identity(m: &std::fs::Metadata) -> Option<BackingIdentity> {
    m.is_file().then(|| BackingIdentity {
        inode: m.ino(),
        size: m.size(),
        mtime: (m.mtime(), m.mtime_nsec() as u32),
        ctime: (m.ctime(), m.ctime_nsec() as u32),
    })
}

fn to_off(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| Errno::EOVERFLOW.into())
}

mod ioctl {
    nix::ioctl_read!(block_size_bytes, 0x12, 114, u64); // BLKGETSIZE64
    nix::ioctl_read_bad!(block_sector_size, 0x1268, libc::c_int); // BLKSSZGET
}

fn size_of_device(fd: BorrowedFd<'_>, kind: DeviceKind) -> io::Result<u64> {
    match kind {
        DeviceKind::File => Ok(nix::sys::stat::fstat(fd)?.st_size as u64),
        DeviceKind::Block => {
            let mut size = 0u64;
            // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which is to a live local.
            unsafe { ioctl::block_size_bytes(fd.as_raw_fd(), &raw mut size) }?;
            Ok(size)
        }
    }
}

/// The direct-I/O alignment of offsets and lengths.
fn alignment(fd: BorrowedFd<'_>, path: &Path, kind: DeviceKind) -> Result<u32, DeviceError> {
    let query =
        |source: io::Error| DeviceError::Query { path: path.to_owned(), what: "find the direct-I/O alignment of", source };
    let (offset, memory) = match statx_direct(fd).map_err(query)? {
        Some((0, _) | (_, 0)) => {
            return Err(DeviceError::NoDirectIo { path: path.to_owned(), filesystem: door::filesystem_name(fd) });
        }
        Some(aligns) => aligns,
        None if kind == DeviceKind::Block => {
            let mut sector: libc::c_int = 0;
            // SAFETY: BLKSSZGET writes one int through the pointer, which is to a live local.
            unsafe { ioctl::block_sector_size(fd.as_raw_fd(), &raw mut sector) }.map_err(|e| query(e.into()))?;
            (sector as u32, 512)
        }
        None => (probe_alignment(fd), 512),
    };
    let align = offset.max(512);
    for value in [align, memory] {
        if !value.is_power_of_two() || value as usize > BUFFER_ALIGN {
            return Err(DeviceError::Alignment { path: path.to_owned(), align: value });
        }
    }
    Ok(align)
}

/// `(offset, memory)` alignment where the kernel tells (Linux 6.1); zeroes where it says "no direct I/O".
fn statx_direct(fd: BorrowedFd<'_>) -> io::Result<Option<(u32, u32)>> {
    // SAFETY: statx is integers only, for which all zeroes is a valid value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a NUL-terminated literal (empty: the descriptor itself), the output a live local of the right type.
    let rc = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(told.then_some((stat.stx_dio_offset_align, stat.stx_dio_mem_align)))
}

/// The smallest power of two at which a read works; 4096 if none below does.
fn probe_alignment(fd: BorrowedFd<'_>) -> u32 {
    let Ok(mut buffer) = Buffer::alone(BUFFER_ALIGN) else { return BUFFER_ALIGN as u32 };
    let works = |align: &u32| pread(fd, &mut buffer[..*align as usize], libc::off_t::from(*align)).is_ok();
    [512, 1024, 2048].into_iter().find(works).unwrap_or(BUFFER_ALIGN as u32)
}

/// A direct read must work now, so that it is not the first host write that finds out.
fn probe_direct(fd: BorrowedFd<'_>, path: &Path, block_min: u32) -> Result<(), DeviceError> {
    let query = |source: io::Error| DeviceError::Query { path: path.to_owned(), what: "read the first block of", source };
    let mut buffer = Buffer::alone(block_min as usize).map_err(query)?;
    match pread(fd, &mut buffer, 0) {
        Ok(_) | Err(Errno::EIO) => Ok(()), // an unreadable block is the data's problem, not the door's
        Err(Errno::EINVAL) => Err(DeviceError::NoDirectIo { path: path.to_owned(), filesystem: door::filesystem_name(fd) }),
        Err(errno) => Err(query(errno.into())),
    }
}

fn punches(fd: BorrowedFd<'_>, kind: DeviceKind, size: u64, block_min: u32) -> bool {
    match kind {
        // A hole beyond the end changes nothing, and fails in the same way.
        DeviceKind::File => {
            let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let Ok(at) = to_off(size) else { return false };
            nix::fcntl::fallocate(fd, flags, at, libc::off_t::from(block_min)).is_ok()
        }
        DeviceKind::Block => {
            let Ok(stat) = nix::sys::stat::fstat(fd) else { return false };
            let queue = topology::queue_of(stat.st_rdev);
            queue
                .and_then(|queue| door::sysfs_u64(&queue.join("write_zeroes_max_bytes").to_string_lossy()))
                .is_some_and(|max| max > 0)
        }
    }
}

/// Identity of a file for `/proc/locks` and comparisons.
pub(crate) fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A bad sector, or what the file system says when its checksum or structure does not fit.
pub fn is_of_medium(error: &std::io::Error) -> bool {
    use nix::libc::{EBADMSG, EILSEQ, EIO, ENODATA, EREMOTEIO, EUCLEAN};
    matches!(error.raw_os_error(), Some(EIO | ENODATA | EILSEQ | EBADMSG | EUCLEAN | EREMOTEIO))
}

#[cfg(test)]
mod tests;
