//! Flushes of a backing that failed, and whether those who rely on flushes were told (T14): what a daemon knew of that and took with
//! it when it died.
//!
//! A note in the runtime directory, which outlives the process and not the boot: `failed` and `told`, two numbers. Invariant: it
//! counts a failure before anybody is shown anything that ended after it, and calls it told only when the answer that tells it is
//! with the kernel. So `failed > told` is all that a successor's clients have yet to hear; told once too often is legal.
//!
//! Deliberately not here: a flush that was under way when its daemon died, whose end nobody saw. It is asked for again, as every
//! other layer of the kernel does with a flush whose path went away under it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use farside_region::VolumeId;
use tracing::warn;

use crate::locked;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    failed: u64,
    told: u64,
}

/// Of one volume.
#[derive(Debug)]
pub(crate) struct FlushNote {
    path: PathBuf,
    file: File,
    counts: Mutex<Counts>,
}

impl FlushNote {
    /// As a predecessor of this boot left it.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn open(runtime_dir: &Path, volume: VolumeId) -> std::io::Result<Self> {
        let path = runtime_dir.join(format!("flushes-{volume}"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut bytes = [0; 16];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            file.write_all_at(&bytes, 0)?; // new; the room is there from now on
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let counts = Counts { failed: word(0), told: word(8) };
        Ok(Self { path, file, counts: Mutex::new(counts) })
    }

    /// Whether one failed of which nobody has heard.
    pub(crate) fn is_untold(&self) -> bool {
        let Counts { failed, told } = *locked(&self.counts);
        failed > told
    }

    /// One failed. Before anything is shown that ended after it.
    pub(crate) fn failed(&self) {
        self.change(|counts| counts.failed += 1);
    }

    /// How many have failed; for [`FlushNote::told`].
    pub(crate) fn count(&self) -> u64 {
        locked(&self.counts).failed
    }

    /// Somebody has been answered with an error that began after so many had failed, and the answer is with the kernel.
    pub(crate) fn told(&self, failed: u64) {
        self.change(|counts| counts.told = counts.told.max(failed));
    }

    /// Its volume leaves.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path); // one that stays is of a volume that is not there
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = locked(&self.counts);
        change(&mut counts);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&counts.failed.to_le_bytes());
        bytes[8..].copy_from_slice(&counts.told.to_le_bytes());
        // A place in memory, written before: on the queue's own thread, and only where a flush has failed.
        if let Err(error) = self.file.write_all_at(&bytes, 0) {
            warn!(note = %self.path.display(), %error, "a failed flush cannot be noted: a successor may not tell it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t14_a_failure_is_untold_until_somebody_was_answered_whoever_runs_by_then() {
        let dir = tempfile::tempdir().expect("temp dir");
        let note = || FlushNote::open(dir.path(), VolumeId([7; 16])).expect("a note");
        assert!(!note().is_untold());
        note().failed();
        let successor = note();
        assert!(successor.is_untold());
        let answered = successor.count();
        successor.failed();
        successor.told(answered);
        assert!(note().is_untold(), "the second one is not told by an answer to the first");
        successor.told(successor.count());
        assert!(!note().is_untold());
        note().failed();
        assert!(note().is_untold());
        note().remove();
        assert!(!note().is_untold());
    }
}
