//! How much a file system still has for us, and how much of it may be promised to sources.
//!
//! Invariant: what writers of parts may write without looking again, all together, was grantable when it was allowed; so they
//! take nothing of what is kept back, however many they are and however small their parts. It deliberately does not know what
//! sources were granted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Result, StoreError};

/// Never promised: the ledger and pruning need it when everything else is full (DESIGN §4.4).
pub const RESERVE_BYTES_MIN: u64 = 64 << 20;

/// Files that are kept back: these, or a twentieth of all, whatever is less.
const RESERVE_FILES_MAX: u64 = 16 << 10;

/// What a writer may write before it must ask again, once it has written as much.
const AHEAD_BYTES_MAX: u64 = 4 << 20;
/// The same, at first.
const AHEAD_BYTES_MIN: u64 = 128 << 10;

/// The state of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub total: u64,
    /// What we may still write.
    pub available: u64,
    /// How many files it can hold at most; `None` where that has no limit.
    pub files: Option<u64>,
    /// How many more we may make; `u64::MAX` where that has no limit.
    pub files_available: u64,
}

impl Space {
    /// Asks the file system of a path.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(path: &Path) -> Result<Self> {
        let stat = nix::sys::statvfs::statvfs(path).map_err(|e| StoreError::from_io("looking at", path, 0, e.into()))?;
        #[allow(clippy::useless_conversion)] // its width differs between architectures
        let (unit, blocks, free) =
            (u64::from(stat.fragment_size()), u64::from(stat.blocks()), u64::from(stat.blocks_available()));
        #[allow(clippy::useless_conversion)]
        let (files, files_free) = (u64::from(stat.files()), u64::from(stat.files_available()));
        let files = Some(files).filter(|files| *files > 0);
        Ok(Self {
            total: blocks.saturating_mul(unit),
            available: free.saturating_mul(unit),
            files,
            files_available: if files.is_some() { files_free } else { u64::MAX },
        })
    }

    /// What is kept back: 64 MiB or 1 %, whatever is more.
    pub fn reserve(&self) -> u64 {
        RESERVE_BYTES_MIN.max(self.total / 100)
    }

    /// Files that are kept back; `None` where their number has no limit.
    fn reserve_files(&self) -> Option<u64> {
        self.files.map(|files| RESERVE_FILES_MAX.min(files / 20))
    }

    /// Whether so few files can be made that only the ledger may.
    pub fn is_short_of_files(&self) -> bool {
        self.reserve_files().is_some_and(|reserve| self.files_available <= reserve)
    }

    /// What records that cannot wait for room may take: all but half of what is kept back, which is for pruning alone.
    pub fn spare(&self) -> u64 {
        let short = self.reserve_files().is_some_and(|reserve| self.files_available <= reserve / 2);
        if short { 0 } else { self.available.saturating_sub(self.reserve() / 2) }
    }

    /// What may be promised to sources, all together. Nothing while files are short, whatever the bytes: a part is a file.
    pub fn grantable(&self) -> u64 {
        if self.is_short_of_files() { 0 } else { self.available.saturating_sub(self.reserve()) }
    }
}

/// What the writers of a store were allowed and have not written: free space that is spoken for.
#[derive(Debug, Default)]
pub(crate) struct Allowed(AtomicU64);

/// What one writer may still write. Dropping it gives that back.
#[derive(Debug)]
pub(crate) struct Allowance {
    all: Arc<Allowed>,
    bytes: u64,
    used_bytes: u64,
}

impl Allowance {
    /// Nothing yet.
    pub(crate) fn new(all: Arc<Allowed>) -> Self {
        Self { all, bytes: 0, used_bytes: 0 }
    }

    /// Sees to it that so many bytes may be written; false when there is no room for them beside what others were allowed.
    /// `space` looks at the file system. Not every chunk does: a writer that gets on is allowed as much again, up to 4 MiB.
    pub(crate) fn cover(&mut self, bytes: u64, space: impl Fn() -> Result<Space>) -> Result<bool> {
        if self.bytes >= bytes {
            return Ok(true);
        }
        let ahead = self.used_bytes.clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        for wanted in [bytes.max(ahead), bytes] {
            // Said before it is looked at: of two who do so at once, one counts the other. What is being written meanwhile
            // counts twice at most, never not at all.
            let more = wanted - self.bytes;
            let all = self.all.0.fetch_add(more, Ordering::SeqCst).saturating_add(more);
            self.bytes += more;
            if space()?.grantable() >= all {
                return Ok(true);
            }
            self.give_back(more);
        }
        Ok(false)
    }

    /// So many bytes of what was covered are written: the file system counts them now.
    pub(crate) fn used(&mut self, bytes: u64) {
        self.used_bytes += bytes;
        self.give_back(bytes.min(self.bytes));
    }

    fn give_back(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.all.0.fetch_sub(bytes, Ordering::SeqCst);
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_reserve_is_never_granted() {
        let space = |total, available| Space { total, available, files: None, files_available: u64::MAX };
        assert_eq!(space(1 << 30, 100 << 20).grantable(), 36 << 20);
        assert_eq!(space(1 << 30, 64 << 20).grantable(), 0);
        assert_eq!(space(1 << 30, 0).grantable(), 0);
        // Half of it is for records that cannot wait, the rest for pruning.
        assert_eq!(space(1 << 30, 64 << 20).spare(), 32 << 20);
        assert_eq!(space(1 << 30, 32 << 20).spare(), 0);
        assert_eq!(space(1 << 40, 1 << 40).reserve(), (1 << 40) / 100);
        assert!(Space::of(Path::new("/")).expect("statvfs").total > 0);
    }

    /// Inodes run out long before bytes where parts are small; the ledger must go on all the same.
    #[test]
    fn nothing_is_granted_when_files_are_short() {
        let space = |files, files_available| Space { total: 1 << 40, available: 1 << 40, files: Some(files), files_available };
        assert!(space(1_000_000, 20_000).grantable() > 0);
        assert_eq!(space(1_000_000, 16_384).grantable(), 0);
        assert!(space(1_000_000, 16_384).spare() > 0 && space(1_000_000, 8193).spare() > 0);
        assert_eq!(space(1_000_000, 8192).spare(), 0);
        assert!(space(1000, 51).grantable() > 0);
        assert_eq!(space(1000, 50).grantable(), 0);
        assert!(Space { files: None, files_available: u64::MAX, ..space(0, 0) }.grantable() > 0, "btrfs has no such limit");
    }

    /// Parts of less than any interval of looking would each see the same free space: a source that opens many at once takes
    /// what is kept back, and with it the gateway's way out of being full.
    #[test]
    fn many_small_parts_at_once_leave_the_reserve_alone() {
        const CHUNK: u64 = 256 << 10;
        let available = Cell::new(RESERVE_BYTES_MIN + (5 << 20));
        let space = || Ok(Space { total: 1 << 30, available: available.get(), files: None, files_available: u64::MAX });
        let all = Arc::new(Allowed::default());
        let begin = |_| {
            let mut part = Allowance::new(Arc::clone(&all));
            part.cover(4096, space).expect("statvfs").then_some(part)
        };
        let mut parts: Vec<Option<Allowance>> = (0..32).map(begin).collect();
        for _ in 0..12 {
            for part in &mut parts {
                let Some(mut open) = part.take() else { continue };
                if open.cover(CHUNK, space).expect("statvfs") {
                    available.set(available.get() - CHUNK);
                    open.used(CHUNK);
                    *part = Some(open);
                }
            }
            assert!(available.get() >= RESERVE_BYTES_MIN, "the reserve is written to");
        }
        drop(parts);
        assert_eq!(all.0.load(Ordering::SeqCst), 0, "what nobody writes any more is given back");
        // One alone may have all there is, to the last byte.
        available.set(RESERVE_BYTES_MIN + CHUNK);
        let mut last = Allowance::new(all);
        assert!(last.cover(CHUNK, space).expect("statvfs"));
        assert!(!last.cover(CHUNK + 1, space).expect("statvfs"));
    }
}
