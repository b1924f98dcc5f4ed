//! The note of what a guard began, for whoever comes after a guard that was killed.
//!
//! Invariants: what was begun is in the note before it begins; a note is replaced whole, by a rename; whoever reads a note to act on
//! it, or writes one, holds its lock. The lock is a file of its own beside the note (`NAME.json.lock`), for a file that is renamed
//! over another one leaves the lock behind. A note names commands that are run, so one that somebody else could have written is
//! not read.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use farside_region::Name;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::{Hook, LINE_BYTES_MAX, Plan, PlanError};

/// Larger than any note that a guard writes: the plan, and each name once more.
const NOTE_BYTES_MAX: u64 = 2 * LINE_BYTES_MAX as u64;

/// What was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    pub(crate) plan: Plan,
    /// In the order in which they began.
    pub(crate) begun: Vec<Name>,
}

impl Note {
    /// The hooks that were begun, the last one first.
    pub(crate) fn to_end(&self) -> impl Iterator<Item = &Hook> {
        self.begun.iter().rev().filter_map(|name| self.plan.hooks.iter().find(|hook| hook.name == *name))
    }
}

/// Why a note is not followed.
#[derive(Debug, Error)]
pub(crate) enum NoteError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is not a file that only this user can write")]
    Foreign,
    #[error("it is damaged: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it is damaged: {0}")]
    Plan(#[from] PlanError),
    #[error("it is damaged: it names hook {0}, which is not in its plan")]
    Unknown(Name),
}

/// A note that nobody else acts on meanwhile.
#[derive(Debug)]
pub(crate) struct Locked {
    note: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl Locked {
    /// Locks a note, whether it is there or not; `None` if somebody else has it. Its directory is made if it is missing.
    pub(crate) fn take(note: &Path) -> io::Result<Option<Self>> {
        let directory = note.parent().ok_or(ErrorKind::InvalidInput)?;
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let lock = beside(note, ".lock");
        loop {
            let file = open_own(&lock, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever had it before removed it, maybe after we opened it: then another one is, or will be, in its place.
            let ours = file.metadata()?;
            if fs::symlink_metadata(&lock).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Some(Self { note: note.to_owned(), lock, _held: file }));
            }
        }
    }

    /// What is noted; `None` if nothing is.
    pub(crate) fn read(&self) -> Result<Option<Note>, NoteError> {
        let file = match open_own(&self.note, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        let is_own = metadata.is_file() && metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        if !is_own {
            return Err(NoteError::Foreign);
        }
        let mut text = Vec::new();
        file.take(NOTE_BYTES_MAX).read_to_end(&mut text)?;
        let note: Note = serde_json::from_slice(&text)?;
        note.plan.check()?;
        let unknown = note.begun.iter().find(|name| note.plan.hooks.iter().all(|hook| hook.name != **name));
        unknown.map_or(Ok(Some(note.clone())), |name| Err(NoteError::Unknown(name.clone())))
    }

    /// Replaces it. It lies on a tmpfs, where there is nothing to sync; a crash of the host ends what was held as well.
    pub(crate) fn write(&self, note: &Note) -> io::Result<()> {
        let text = serde_json::to_vec(note)?;
        let new = beside(&self.note, ".new");
        open_own(&new, OpenOptions::new().write(true).create(true).truncate(true))?.write_all(&text)?;
        fs::rename(&new, &self.note)
    }

    /// Removes it: everything is ended.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.note) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.lock); // one that stays locks nobody out
    }
}

/// The notes in a directory, by name.
pub(crate) fn notes(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut notes = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            notes.push(path);
        }
    }
    notes.sort();
    Ok(notes)
}

/// Opens a file without following a link, or waiting for whoever is at the other end of a pipe.
fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn beside(note: &Path, ending: &str) -> PathBuf {
    let mut name = note.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
