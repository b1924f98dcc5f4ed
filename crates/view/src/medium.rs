//! What an overlay asks of its two files, so that a test can take the power from them.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use farside_blockio::seek_extent;
use farside_region::ByteExtent;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::Whence;

/// Zeroes that are written at once where the file system cannot make holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes that can be read where they were written at once, and are durable when they were synced. Before that each sector (512 bytes) may
/// be durable as it was at the last sync, or as at any time since.
pub trait Medium: fmt::Debug + Send + Sync {
    /// Reads all of `out`.
    ///
    /// # Errors
    /// What the system says.
    fn get(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno>;

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the system says.
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Makes an extent zeroes; with `no_hole` its space stays allocated.
    ///
    /// # Errors
    /// What the system says.
    fn zero(&self, extent: ByteExtent, no_hole: bool) -> Result<(), Errno>;

    /// What was put or zeroed before this call is durable after it.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> Result<(), Errno>;

    /// What is read from now on is what the disk holds; what was not synced may be lost.
    ///
    /// # Errors
    /// What the system says.
    fn forget(&self) -> Result<(), Errno>;

    /// Where something may have been put, at an offset or after it.
    ///
    /// # Errors
    /// What the system says.
    fn next_data(&self, at: u64) -> Result<Option<u64>, Errno>;
}

impl Medium for File {
    fn get(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        self.read_exact_at(out, offset).map_err(errno_of)
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.write_all_at(bytes, offset).map_err(errno_of)
    }

    fn zero(&self, extent: ByteExtent, no_hole: bool) -> Result<(), Errno> {
        let how = match no_hole {
            true => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            false => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        };
        let (offset, len) = (extent.offset.0 as i64, extent.len as i64);
        match fallocate(self, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            done => return done,
        }
        let mut at = extent.offset.0;
        let end = at + extent.len;
        while at < end {
            let len = (end - at).min(ZEROES.len() as u64);
            self.put(at, &ZEROES[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Errno> {
        self.sync_data().map_err(errno_of)
    }

    fn forget(&self) -> Result<(), Errno> {
        posix_fadvise(self, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
    }

    fn next_data(&self, at: u64) -> Result<Option<u64>, Errno> {
        seek_extent(self, at, Whence::SeekData)
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
