//! Who may do what with a store at the same time, on one host.
//!
//! `writer.lock` is held exclusively by the one receiver. `reader.lock` is shared by everybody who reads segments, and
//! taken exclusively, without waiting, by who deletes them: a reader that holds it sees every segment that the ledger
//! named when it looked. Both are `flock`s of an open file description, so that they end with the process, however it
//! ends. The files stay; only the locks mean something. In a bucket there are leases instead (`leases`).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Result, StoreError};

/// The receiver's, for as long as it has the store open.
#[derive(Debug)]
pub struct WriterLock(#[expect(dead_code, reason = "held")] Flock<File>);

/// How whoever reads a store holds off deletions.
#[derive(Clone, Debug)]
pub(crate) enum Readers {
    /// By the lock in the store's directory.
    Locked(PathBuf),
    /// By a lease for each point that is read.
    Leased,
    /// By keeping the point that is read: for who owns the group. Or there is nobody who deletes: for who reads what was.
    None,
}

impl Readers {
    /// Holds off deletions, where that is possible.
    pub(crate) fn share(&self) -> Result<ReaderLock> {
        match self {
            Self::Locked(root) => ReaderLock::share(root),
            Self::Leased | Self::None => Ok(ReaderLock::none()),
        }
    }
}

/// A reader's, for as long as it reads. `None` on a read-only file system, where nothing can be deleted, and in a bucket.
#[derive(Debug)]
pub struct ReaderLock(#[expect(dead_code, reason = "held")] Option<Flock<File>>);

/// Proof that nobody reads, for the time of a deletion.
#[derive(Debug)]
pub struct DeletionGuard(#[expect(dead_code, reason = "held")] Flock<File>);

impl WriterLock {
    /// Takes it, or says who has it.
    ///
    /// # Errors
    /// [`StoreError::Locked`], or what the file system says.
    pub fn take(root: &Path) -> Result<Self> {
        let path = root.join("writer.lock");
        let file = open(&path, true)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                // For people only; a failure (full disk) changes nothing.
                let _ = held.set_len(0).and_then(|()| held.write_all(format!("{}\n", std::process::id()).as_bytes()));
                Ok(Self(held))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut text);
                let holder = text.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (process {pid})"));
                Err(StoreError::Locked { path, holder })
            }
            Err((_, e)) => Err(StoreError::from_io("locking", &path, 0, e.into())),
        }
    }
}

impl ReaderLock {
    /// Nothing is held off.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Makes the lock's file, so that readers who may not create one find it.
    pub(crate) fn prepare(root: &Path) -> Result<()> {
        open(&root.join("reader.lock"), true).map(drop)
    }

    /// Shares it; waits while somebody deletes, which is never long.
    ///
    /// # Errors
    /// What the file system says.
    pub fn share(root: &Path) -> Result<Self> {
        let path = root.join("reader.lock");
        let file = match open(&path, false) {
            Ok(file) => file,
            Err(StoreError::ReadOnly { .. }) => return Ok(Self(None)),
            Err(e) => return Err(e),
        };
        match Flock::lock(file, FlockArg::LockShared) {
            Ok(held) => Ok(Self(Some(held))),
            Err((_, e)) => Err(StoreError::from_io("locking", &path, 0, e.into())),
        }
    }
}

impl DeletionGuard {
    /// Takes `reader.lock` exclusively; `None` while somebody reads.
    ///
    /// # Errors
    /// What the file system says.
    pub fn try_take(root: &Path) -> Result<Option<Self>> {
        let path = root.join("reader.lock");
        match Flock::lock(open(&path, true)?, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Some(Self(held))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(StoreError::from_io("locking", &path, 0, e.into())),
        }
    }
}

fn open(path: &Path, write: bool) -> Result<File> {
    let read_only = || File::open(path);
    let opened = match OpenOptions::new().read(true).write(write).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        }
        Err(e) if e.raw_os_error() == Some(libc::EROFS) && !write => read_only(),
        other => other,
    };
    opened.map_err(|e| StoreError::from_io("opening", path, 0, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_many_readers_and_no_deletion_beside_a_reader() {
        let dir = tempfile::tempdir().expect("temp dir");
        let writer = WriterLock::take(dir.path()).expect("free");
        let refused = WriterLock::take(dir.path()).expect_err("held").to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(writer);
        WriterLock::take(dir.path()).expect("free again");

        let one = ReaderLock::share(dir.path()).expect("shared");
        let two = ReaderLock::share(dir.path()).expect("shared twice");
        assert!(DeletionGuard::try_take(dir.path()).expect("no error").is_none());
        drop(one);
        assert!(DeletionGuard::try_take(dir.path()).expect("no error").is_none());
        drop(two);
        assert!(DeletionGuard::try_take(dir.path()).expect("no error").is_some());
    }
}
