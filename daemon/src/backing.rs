//! Which disk or file a volume is: what is kept about its backing in the volume's folder, so that another one behind the same
//! name is noticed, whatever became of paths and device numbers.
//!
//! Invariant: a backing that is not surely the one of the last attach is compared in full; the durable mark that says so
//! comes before the new identity is kept. One that is surely another is served to nobody who used the one before
//! ([`crate::volume`]). It cannot tell a disk that was rolled back in place from one that was not: that is
//! the position rule's matter (`Forked`) where the map went back with it, and a person's where it did not.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use farside_blockio::{DeviceKind, FileDevice, Identity, Known};
use serde::de::DeserializeOwned;

use crate::config::{ConfigError, sync_dir, write_atomically};

fn path(dir: &Path) -> PathBuf {
    dir.join("backing.json")
}

/// A file of ours that tells whether somebody else used a backing is there, and cannot be read: of another version, or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unread;

/// What was kept in a file; `None`: nothing.
///
/// # Errors
/// [`Unread`]. † That is no sign that nobody used the backing: who believed so would miss what was written there.
pub(crate) fn read_kept<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Unread> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).map(Some).ok_or(Unread),
    }
}

/// Which backing the volume in that folder had at its last attach; `None`: nothing is known of it.
pub(crate) fn kept(dir: &Path) -> Option<Identity> {
    read_kept(&path(dir)).ok().flatten()
}

/// Whether this is the backing that the volume in that folder had at its last attach.
pub(crate) fn known(identity: &Identity, dir: &Path) -> Known {
    kept(dir).map_or(Known::Unknown, |kept| kept.compare(identity))
}

/// Keeps it, durably. Also what is [`Known::Same`] has another boot and another number now and then.
///
/// # Errors
/// When that is not durable.
pub(crate) fn keep(identity: &Identity, dir: &Path) -> Result<(), ConfigError> {
    let text = serde_json::to_string(identity).expect("a map of strings is JSON");
    if std::fs::read(path(dir)).is_ok_and(|kept| kept == text.as_bytes()) {
        return sync_dir(dir);
    }
    write_atomically(&path(dir), &text)
}

/// Whether seeking costs something there; a file's disk is not asked.
pub(crate) fn is_rotational(device: &FileDevice) -> bool {
    let Ok(metadata) = device.metadata() else { return false };
    let at = sysfs(&metadata).filter(|_| device.kind() == DeviceKind::Block);
    // A partition's folder lies in its disk's.
    let shown = at.and_then(|at| {
        let of = |at: &Path| std::fs::read_to_string(at.join("queue/rotational"));
        of(&at).or_else(|_| of(&at.join(".."))).ok()
    });
    shown.is_some_and(|text| text.trim() == "1")
}

/// The folder of a block device in `/sys`, with all links followed.
fn sysfs(metadata: &std::fs::Metadata) -> Option<PathBuf> {
    let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_known_and_a_torn_file_says_nothing() {
        let dir = tempfile::tempdir().expect("temp dir");
        let of = |text: &str| serde_json::from_str::<Identity>(text).expect("facts");
        let (disk, other) = (of(r#"{"wwid":"naa.1"}"#), of(r#"{"wwid":"naa.2"}"#));
        assert_eq!(known(&disk, dir.path()), Known::Unknown, "never seen");
        keep(&disk, dir.path()).expect("kept");
        assert_eq!(known(&disk, dir.path()), Known::Same);
        assert_eq!(known(&other, dir.path()), Known::Another);
        for torn in ["{\"wwid\":", "", "{\"wwid\":7}"] {
            std::fs::write(dir.path().join("backing.json"), torn).expect("written");
            assert_eq!(known(&other, dir.path()), Known::Unknown, "{torn}");
        }
    }
}
