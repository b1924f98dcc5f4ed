//! Folders of volumes that are not configured. Such a volume may be written without us, so its map must not be trusted when it
//! comes back: each is marked at every start, and when it leaves the configuration. That is also what a `volume remove` leaves
//! that was interrupted.
//!
//! Invariant: a volume that was not configured when the daemon started, or at any time since it was served last, is opened only over a map that is
//! new, or marked. One folder that cannot be marked keeps its own name out, and nobody else.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tracing::{error, warn};

use crate::config::ConfigError;
use crate::intent_file::MAP_FILE;
use crate::state_dir::Mark;

/// Why what is in a folder cannot be dealt with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum StrangerError {
    /// A volume that is being added has a folder that could not be marked, and cannot be now.
    #[error(
        "{} is left from a volume that was not configured for a while, and cannot be marked as such ({source}): mend that disk, or \
         remove the files intent and tracking-lost in there, and no others: all of it is compared then",
        path.display()
    )]
    Unmarked {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: ConfigError,
    },
}

/// Which folders are to be trusted, from the start on.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<Folders>);

#[derive(Debug, Default)]
struct Folders {
    /// Of volumes that were configured all the time.
    known: Vec<PathBuf>,
    /// Of volumes, of whole groups, or all, that are marked before they are opened.
    unmarked: Vec<PathBuf>,
}

impl Strangers {
    /// Marks every folder of a volume in `volumes` (GROUP/NAME) that is not `known`; one that cannot be marked is noted
    /// elsewhere by `note`, as well as that goes: the next start may know it.
    pub(crate) fn mark(volumes: &Path, known: Vec<PathBuf>, note: &dyn Fn(&Path)) -> Self {
        let mut unmarked = Vec::new();
        let mut list = |folder: &Path| {
            folders(folder).unwrap_or_else(|error| {
                error!(folder = %folder.display(), %error, "volumes left in there cannot be marked; none is served again before it is");
                unmarked.push(folder.to_owned());
                Vec::new()
            })
        };
        let groups = list(volumes);
        let left: Vec<_> = groups.iter().flat_map(|group| list(group)).filter(|dir| !known.contains(dir)).collect();
        unmarked.extend(left.into_iter().filter(|dir| !mark_or_note(dir, note)));
        Self(Mutex::new(Folders { known, unmarked }))
    }

    /// The volume of that folder is not configured any more: whatever interrupts its end, and whatever is left of the folder, its
    /// map is not trusted again.
    pub(crate) fn forget(&self, dir: &Path, note: &dyn Fn(&Path)) {
        let mut folders = self.folders();
        folders.known.retain(|known| known != dir);
        // Also where it can be marked now: what removes the folder may remove the mark, and fail then.
        if !folders.unmarked.iter().any(|left| left == dir) {
            folders.unmarked.push(dir.to_owned());
        }
        drop(folders);
        mark_or_note(dir, note);
    }

    /// Before the volume of that folder is opened.
    ///
    /// # Errors
    /// When its map may be out of date, and that cannot be marked.
    pub(crate) fn admit(&self, dir: &Path) -> Result<(), StrangerError> {
        let folders = self.folders();
        if folders.known.iter().any(|known| known == dir) || !folders.unmarked.iter().any(|left| dir.starts_with(left)) {
            return Ok(());
        }
        drop(folders);
        mark_if_there(dir).map_err(|source| StrangerError::Unmarked { path: dir.to_owned(), source })
    }

    /// The volume of that folder is open: what it is opened over from now on, while it is configured, is what we left.
    pub(crate) fn serves(&self, dir: &Path) {
        let mut folders = self.folders();
        folders.unmarked.retain(|left| left != dir);
        if !folders.known.iter().any(|known| known == dir) {
            folders.known.push(dir.to_owned());
        }
    }

    fn folders(&self) -> MutexGuard<'_, Folders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// False: neither marked nor absent.
fn mark_or_note(dir: &Path, note: &dyn Fn(&Path)) -> bool {
    let marked = mark_if_there(dir);
    if let Err(error) = &marked {
        warn!(folder = %dir.display(), %error, "a volume that is not configured cannot be marked; it is not served again before it is");
        note(dir);
    }
    marked.is_ok()
}

fn mark_if_there(dir: &Path) -> Result<(), ConfigError> {
    match dir.try_exists() {
        Ok(false) => Ok(()), // a new map trusts nothing
        // What else is in there tells which device and which disk are the volume's, and trusts nothing.
        Ok(true) => put_mark(dir).or_else(|error| if has_no_map(dir) { Ok(()) } else { Err(error) }),
        Err(source) => Err(ConfigError::Io { verb: "look at", path: dir.to_owned(), source }),
    }
}

fn has_no_map(dir: &Path) -> bool {
    matches!(dir.join(MAP_FILE).try_exists(), Ok(false))
}

fn put_mark(dir: &Path) -> Result<(), ConfigError> {
    if Mark::TrackingLost.is_set(dir)? { Ok(()) } else { Mark::TrackingLost.put(dir, true) }
}

/// The folders of volumes in `volumes` (GROUP/NAME) that are not `known`, as far as they can be listed.
pub(crate) fn left_in(volumes: &Path, known: &[PathBuf]) -> Vec<PathBuf> {
    let list = |folder: &Path| folders(folder).unwrap_or_default();
    list(volumes).iter().flat_map(|group| list(group)).filter(|dir| !known.contains(dir)).collect()
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

    /// A map, and a mark that is neither there nor not there, nor can be put: a link that leads to itself.
    fn make_unreadable(dir: &Path) {
        std::fs::write(dir.join(MAP_FILE), "a map").expect("written");
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
        let strangers = Strangers::mark(root.path(), vec![known.clone()], &note);
        assert_eq!(*noted.borrow(), std::slice::from_ref(&sick));
        assert!(!known.join("tracking-lost").exists() && left.join("tracking-lost").exists());
        for served in [&known, &left, &root.path().join("default/new")] {
            strangers.admit(served).expect("it has nothing to do with the sick one");
        }
        let error = strangers.admit(&sick).expect_err("its map may be out of date").to_string();
        assert!(error.contains("default/sick") && error.contains("intent and tracking-lost"), "{error}");
        // Its map is gone: whatever else is in there trusts nothing.
        std::fs::write(sick.join("ublk"), "0000000000000001\n").expect("written");
        std::fs::rename(sick.join(MAP_FILE), root.path().join("kept")).expect("renamed");
        strangers.admit(&sick).expect("a new map is made");
        std::fs::rename(root.path().join("kept"), sick.join(MAP_FILE)).expect("renamed");
        strangers.admit(&sick).expect_err("its map may be out of date");
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
        let volumes = root.path().join("volumes");
        assert!(folders(&volumes).expect("before the first volume").is_empty());
        std::fs::write(&volumes, "not a folder").expect("written");
        let known = volumes.join("default/known");
        let strangers = Strangers::mark(&volumes, vec![known.clone()], &|_| {});
        std::fs::remove_file(&volumes).expect("removed");
        let left = volume(&volumes, "left");
        strangers.admit(&known).expect("no list is needed to know it");
        strangers.admit(&left).expect("marked");
        assert!(left.join("tracking-lost").exists());
    }

    #[test]
    fn l2_what_leaves_the_configuration_is_not_trusted_when_it_comes_back() {
        let root = tempfile::tempdir().expect("temp dir");
        let [gone, stays] = ["gone", "stays"].map(|name| volume(root.path(), name));
        let strangers = Strangers::mark(root.path(), vec![gone.clone(), stays.clone()], &|_| {});
        strangers.forget(&gone, &|_| {});
        assert!(gone.join("tracking-lost").exists(), "a crash now must not make the next start trust it");
        // Its removal got as far as the mark.
        std::fs::remove_file(gone.join("tracking-lost")).expect("removed");
        strangers.admit(&stays).expect("configured all the time");
        strangers.admit(&gone).expect("it can be marked");
        assert!(gone.join("tracking-lost").exists() && !stays.join("tracking-lost").exists());
        // It is served, and opened anew because its disk has grown.
        std::fs::remove_file(gone.join("tracking-lost")).expect("withdrawn");
        strangers.serves(&gone);
        strangers.admit(&gone).expect("configured since");
        assert!(!gone.join("tracking-lost").exists(), "nobody else had it meanwhile");
        strangers.forget(&gone, &|_| {});
        std::fs::remove_file(gone.join("tracking-lost")).expect("removed");
        strangers.admit(&gone).expect("it can be marked");
        assert!(gone.join("tracking-lost").exists());
        make_unreadable(&stays);
        let noted = std::cell::RefCell::new(Vec::new());
        strangers.forget(&stays, &|dir| noted.borrow_mut().push(dir.to_owned()));
        assert_eq!(*noted.borrow(), std::slice::from_ref(&stays));
        strangers.admit(&stays).expect_err("its map may be out of date");
        strangers.forget(&root.path().join("default/new"), &|_| unreachable!("it has no folder"));
        strangers.admit(&root.path().join("default/new")).expect("a new one");
    }

    #[test]
    fn l2_a_group_that_cannot_be_listed_keeps_its_unknown_volumes_out() {
        let root = tempfile::tempdir().expect("temp dir");
        let [known, stranger] = ["known", "stranger"].map(|name| volume(root.path(), name));
        let strangers =
            Strangers(Mutex::new(Folders { known: vec![known.clone()], unmarked: vec![root.path().join("default")] }));
        strangers.admit(&known).expect("configured all the time");
        strangers.admit(&stranger).expect("marked");
        assert!(!known.join("tracking-lost").exists() && stranger.join("tracking-lost").exists());
        assert!(strangers.admit(&root.path().join("default/new")).is_ok());
    }
}
