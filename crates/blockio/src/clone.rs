//! A file that shares another one's blocks.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Makes `to`, which is empty, a copy of `from` that shares its blocks (`FICLONE`): at once, whatever the size, and what is written to
/// either of them afterwards the other does not have.
///
/// # Errors
/// `EOPNOTSUPP` and others where the file system cannot (XFS and Btrfs can), `EXDEV` between two file systems.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: an ioctl on two files that are open; it takes the second's number and touches no memory of ours.
    unsafe { ioctl::clone(to.as_raw_fd(), from.as_raw_fd() as u64) }?;
    Ok(())
}

mod ioctl {
    nix::ioctl_write_int!(clone, 0x94, 9); // FICLONE
}
