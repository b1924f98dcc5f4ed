//! How much a file system still has for us, and how much of it may be promised to sources.

use std::path::Path;

use crate::error::{Result, StoreError};

/// Never promised: the ledger and pruning need it when everything else is full (DESIGN §4.4).
pub const RESERVE_BYTES_MIN: u64 = 64 << 20;

/// The state of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub total: u64,
    /// What we may still write.
    pub available: u64,
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
        Ok(Self { total: blocks.saturating_mul(unit), available: free.saturating_mul(unit) })
    }

    /// What is kept back: 64 MiB or 1 %, whatever is more.
    pub fn reserve(&self) -> u64 {
        RESERVE_BYTES_MIN.max(self.total / 100)
    }

    /// What may be promised to sources, all together.
    pub fn grantable(&self) -> u64 {
        self.available.saturating_sub(self.reserve())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_never_granted() {
        let space = |total, available| Space { total, available };
        assert_eq!(space(1 << 30, 100 << 20).grantable(), 36 << 20);
        assert_eq!(space(1 << 30, 64 << 20).grantable(), 0);
        assert_eq!(space(1 << 30, 0).grantable(), 0);
        assert_eq!(space(1 << 40, 1 << 40).reserve(), (1 << 40) / 100);
        assert!(Space::of(Path::new("/")).expect("statvfs").total > 0);
    }
}
