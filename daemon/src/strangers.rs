//! Folders of volumes that are not configured. Such a volume may be written without us, so its map must not be trusted when it
//! comes back: each is marked at every start. That is also what a `volume remove` leaves that was interrupted.
//!
//! Invariant: a volume that was not configured when the daemon started is opened only over a map that is new, or marked. One
//! folder that cannot be marked keeps its own name out, and nobody else.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use tracing::{error, warn};

use crate::config::ConfigError;
use crate::state_dir::Mark;

/// Why what is in a folder cannot be dealt with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum StrangerError {
    /// Which folders there are is not known.
    #[error("the folders of volumes in {} cannot be listed: {source}; until they can, no volume's map is to be trusted", path.display())]
    List {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A volume that is being added has a folder that could not be marked, and cannot be now.
    #[error(
        "{} is left from a volume that was not configured for a while, and cannot be marked as such ({source}): mend that disk, or \
         remove the folder, which loses nothing",
        path.display()
    )]
    Unmarked {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: ConfigError,
    },
}

/// What was found at the start.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    known: Vec<PathBuf>,
    /// Folders of volumes, or of whole groups, that could not be marked.
    unmarked: Mutex<Vec<PathBuf>>,
}

impl Strangers {
    /// Marks every folder of a volume in `volumes` (GROUP/NAME) that is not `known`; one that cannot be marked is noted
    /// elsewhere by `note`, as well as that goes: the next start may know it.
    ///
    /// # Errors
    /// When the groups cannot be listed.
    pub(crate) fn mark(volumes: &Path, known: Vec<PathBuf>, note: &dyn Fn(&Path)) -> Result<Self, StrangerError> {
        let mut unmarked = Vec::new();
        for group in folders(volumes).map_err(|source| StrangerError::List { path: volumes.to_owned(), source })? {
            let inside = match folders(&group) {
                Ok(inside) => inside,
                Err(error) => {
                    error!(folder = %group.display(), %error, "volumes left in there cannot be marked; none is served again before they are");
                    unmarked.push(group);
                    continue;
                }
            };
            for dir in inside.into_iter().filter(|dir| !known.contains(dir)) {
                if let Err(error) = put_mark(&dir) {
                    warn!(folder = %dir.display(), %error, "a volume that is not configured cannot be marked; it is not served again before it is");
                    note(&dir);
                    unmarked.push(dir);
                }
            }
        }
        Ok(Self { known, unmarked: Mutex::new(unmarked) })
    }

    /// Before the volume of that folder is opened.
    ///
    /// # Errors
    /// When its map may be out of date, and that cannot be marked.
    pub(crate) fn admit(&self, dir: &Path) -> Result<(), StrangerError> {
        let unmarked = self.unmarked.lock().unwrap_or_else(PoisonError::into_inner);
        if self.known.iter().any(|known| known == dir) || !unmarked.iter().any(|left| dir.starts_with(left)) {
            return Ok(());
        }
        let failed = |source| StrangerError::Unmarked { path: dir.to_owned(), source };
        match dir.try_exists() {
            Ok(false) => Ok(()), // a new map trusts nothing
            Ok(true) => put_mark(dir).map_err(failed),
            Err(source) => Err(failed(ConfigError::Io { verb: "look at", path: dir.to_owned(), source })),
        }
    }
}

fn put_mark(dir: &Path) -> Result<(), ConfigError> {
    if Mark::TrackingLost.is_set(dir)? { Ok(()) } else { Mark::TrackingLost.put(dir, true) }
}

/// None where there is no such folder.
fn folders(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A mark that is neither there nor not there, nor can be put: a link that leads to itself.
    fn make_unreadable(dir: &Path) {
        symlink("tracking-lost", dir.join("tracking-lost")).expect("linked");
    }

    fn volume(root: &Path, name: &str) -> PathBuf {
        let dir = root.join("default").join(name);
        std::fs::create_dir_all(&dir).expect("made");
        dir
    }

    #[test]
    fn l2_one_folder_that_cannot_be_marked_keeps_its_own_name_out_and_nobody_else() {
        let root = tempfile::tempdir().expect("temp dir");
        let [known, left, sick] = ["known", "left", "sick"].map(|name| volume(root.path(), name));
        make_unreadable(&sick);
        let noted = std::cell::RefCell::new(Vec::new());
        let note = |dir: &Path| noted.borrow_mut().push(dir.to_owned());
        let strangers = Strangers::mark(root.path(), vec![known.clone()], &note).expect("the others go on");
        assert_eq!(*noted.borrow(), std::slice::from_ref(&sick));
        assert!(!known.join("tracking-lost").exists() && left.join("tracking-lost").exists());
        for served in [&known, &left, &root.path().join("default/new")] {
            strangers.admit(served).expect("it has nothing to do with the sick one");
        }
        let error = strangers.admit(&sick).expect_err("its map may be out of date").to_string();
        assert!(error.contains("default/sick") && error.contains("remove the folder"), "{error}");
        // Mended: marked before it is opened. Removed: new.
        std::fs::remove_file(sick.join("tracking-lost")).expect("removed");
        strangers.admit(&sick).expect("it can be marked now");
        assert!(Mark::TrackingLost.is_set(&sick).expect("asked"));
        std::fs::remove_dir_all(&sick).expect("removed");
        strangers.admit(&sick).expect("a new one");
        assert!(!sick.exists());
    }

    #[test]
    fn l2_folders_that_cannot_be_listed_are_not_called_none() {
        let root = tempfile::tempdir().expect("temp dir");
        assert!(folders(&root.path().join("volumes")).expect("before the first volume").is_empty());
        std::fs::write(root.path().join("volumes"), "not a folder").expect("written");
        let error = Strangers::mark(&root.path().join("volumes"), Vec::new(), &|_| {}).expect_err("nobody knows").to_string();
        assert!(error.contains("cannot be listed"), "{error}");
    }

    #[test]
    fn l2_a_group_that_cannot_be_listed_keeps_its_unknown_volumes_out() {
        let root = tempfile::tempdir().expect("temp dir");
        let [known, stranger] = ["known", "stranger"].map(|name| volume(root.path(), name));
        let strangers = Strangers { known: vec![known.clone()], unmarked: Mutex::new(vec![root.path().join("default")]) };
        strangers.admit(&known).expect("configured all the time");
        strangers.admit(&stranger).expect("marked");
        assert!(!known.join("tracking-lost").exists() && stranger.join("tracking-lost").exists());
        assert!(strangers.admit(&root.path().join("default/new")).is_ok());
    }
}
