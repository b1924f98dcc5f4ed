//! Flushes of a backing that failed, and whether those who rely on flushes were told (T14): what a daemon knew of that and took with
//! it when it died.
//!
//! A note in the runtime directory, which outlives the process and not the boot: `failed` and `told`, two numbers. Invariant: it
//! counts a failure before anybody is shown anything that ended after it, and calls it told only when the answer that tells it is
//! with the kernel. So `failed > told` is all that a successor's clients have yet to hear; told once too often is legal. † And
//! `failed > 0` is all that a successor knows for certain of the boot: the header of the intent map says it as well, but later, from
//! another thread, and maybe to the very disk that is sick.
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
    /// What the volume's own count is less than this one: a volume that is opened begins at the one failure that nobody was told of,
    /// or at none.
    before: u64,
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
        let before = counts.failed - u64::from(counts.failed > counts.told);
        Ok(Self { path, file, counts: Mutex::new(counts), before })
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

    /// Whether any failed in this boot, told or not.
    pub(crate) fn any(&self) -> bool {
        locked(&self.counts).failed > 0
    }

    /// Somebody has been answered with an error that tells of `failures`, by the volume's count, and the answer is with the kernel.
    ///
    /// † What others were about to be told by then is not counted: their answers may never come. And no failure is told before it is
    /// counted here, whatever the volume says.
    pub(crate) fn told(&self, failures: u64) {
        self.change(|counts| counts.told = counts.told.max((self.before + failures).min(counts.failed)));
    }

    /// Its volume leaves, and with it all who could be told. † That one failed is kept: a volume of the same name that comes in this boot may be over the
    /// same disk (T14).
    pub(crate) fn leave(&self) {
        if self.any() {
            return self.change(|counts| counts.told = counts.failed);
        }
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
        assert!(!note().any());
        note().failed();
        let successor = note();
        assert!(successor.is_untold());
        successor.failed();
        successor.told(1); // it began with the one that was untold
        assert!(note().is_untold(), "the second one is not told by an answer to the first");
        successor.told(2);
        assert!(!note().is_untold());
        assert!(note().any(), "what the drive lost it has lost, whoever was told");
        let third = note();
        third.failed();
        assert!(note().is_untold());
        third.told(9);
        assert!(!note().is_untold());
        third.failed();
        assert!(note().is_untold(), "nobody is told of what comes after");
        note().leave();
        assert!(!note().is_untold());
    }
}
