//! `/var/lib/farside-receiver/state`: lock, identity, pairings, the store's id, and what is remembered per group.
//!
//! Invariant: one process holds the lock as long as it lives, so everything else in here has one writer.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use farside_control::{ApiError, ErrorCode};
use farside_ledger::{Grid, Policy};
use farside_region::Name;
use farside_store::GroupNames;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::failover::{Failover, KNOWN, Known, TAKEN_BACK, TakenBack};
use crate::floor::KeptFloor;
use crate::follow::{Definition, Holds};
use crate::found::Found;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another process uses it.
    #[error("{} is in use by another farside-receiver ({holder}): stop it first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What its lock file says of the holder.
        holder: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file was written, and could neither be made durable nor taken back.
    #[error("{}: {source}; it may be there all the same, and hold from the next start of farside-receiver on", path.display())]
    Unsure {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A later version wrote it. † It is whole, and says what this one would not know.
    #[error(
        "{} was written by a later version of farside-receiver (version {found}, and this one reads {reads}): it is whole. Install that version again; nothing is to \
         be removed",
        path.display()
    )]
    Later {
        /// Which.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// Up to which this build reads.
        reads: u32,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// For who asked for what cannot be kept.
pub(crate) fn unsaved(error: StateError) -> ApiError {
    let what = match &error {
        StateError::Unsure { .. } => {
            "mend the disk of the receiver's state directory, and say the same again, or put that file right before the receiver is started again"
        }
        _ => "see the receiver's state directory; nothing was changed",
    };
    ApiError::new(ErrorCode::Unavailable, error.to_string(), what)
}

/// The directory, locked.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// `store.json`: the store that this receiver has.
#[derive(Serialize, Deserialize)]
struct KnownStore {
    id: String,
    /// Somebody else made it.
    #[serde(default)]
    adopted: bool,
}

/// `groups/<source>/<group>.json`.
#[derive(Serialize, Deserialize)]
struct KnownGroup {
    keep: u32,
    span_ms: u64,
    #[serde(default)]
    grid: Grid,
}

/// `found/<source>/<group>.json`.
#[derive(Serialize, Deserialize)]
struct KnownFound {
    version: u32,
    found: Option<Found>,
}

/// Between a follower's name and the ending of the file that says what its target holds; in no name.
const HOLDS: &str = "~holds";

/// A follower, and what it is or what is wrong with its file.
type FoundFollower = (Name, Result<Definition, StateError>);

/// What says of which version it is.
pub(crate) trait Versioned: serde::de::DeserializeOwned {
    /// That which this build understands.
    const READS: u32;

    fn version(&self) -> u32;
}

impl Versioned for KnownFound {
    const READS: u32 = FOUND_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl Versioned for KnownFloor {
    const READS: u32 = FLOOR_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

impl Versioned for ForgottenCohorts {
    const READS: u32 = FORGOTTEN_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

/// What was written by a build that this one understands.
fn read_current<T: Versioned>(path: &Path) -> Result<Option<T>, StateError> {
    match read_up_to::<T>(path, T::READS)? {
        Some(read) if read.version() != T::READS => {
            let reason = format!("it is of version {}, and this build reads {}", read.version(), T::READS);
            Err(StateError::Damaged { path: path.to_owned(), reason })
        }
        read => Ok(read),
    }
}

/// `cohorts-forgotten.json`.
#[derive(Serialize, Deserialize)]
struct ForgottenCohorts {
    version: u32,
    cohorts: BTreeSet<Name>,
}

/// Of it.
const FORGOTTEN_VERSION: u32 = 1;

/// `retention-floor.json`.
#[derive(Serialize, Deserialize)]
struct KnownFloor {
    version: u32,
    floor: KeptFloor,
}

/// Of it.
const FLOOR_VERSION: u32 = 1;

/// Of `found/`.
const FOUND_VERSION: u32 = 1;

impl StateDir {
    /// Makes the directory (mode 0700) if it is not there, and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let io = |source| StateError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path.join("lock")).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // For people only: a full disk is no reason not to run.
                let holder = format!("pid {:<10}", std::process::id());
                if let Err(error) = std::os::unix::fs::FileExt::write_all_at(&*lock, holder.as_bytes(), 0) {
                    tracing::warn!(path = %path.display(), %error, "the state directory cannot be written");
                }
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder); // said as well as it can be
                Err(StateError::Locked { path: path.to_owned(), holder: holder.trim().to_owned() })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn pairings(&self) -> PathBuf {
        self.path.join("pairings.json")
    }

    /// The id of the store that this receiver had, and whether somebody else made that; `None` before the first.
    pub(crate) fn known_store(&self) -> Result<Option<(String, bool)>, StateError> {
        Ok(read(&self.path.join("store.json"))?.map(|known: KnownStore| (known.id, known.adopted)))
    }

    pub(crate) fn remember_store(&self, id: &str, adopted: bool) -> Result<(), StateError> {
        write(&self.path.join("store.json"), &KnownStore { id: id.to_owned(), adopted })
    }

    /// What a source asked to be kept of a group, if it ever said.
    pub(crate) fn policy(&self, source: &Name, group: &Name) -> Result<Option<Policy>, StateError> {
        let known: Option<KnownGroup> = read(&self.group(source, group))?;
        Ok(known.map(|KnownGroup { keep, span_ms, grid }| Policy { keep, span_ms, grid }))
    }

    pub(crate) fn remember_policy(&self, source: &Name, group: &Name, policy: &Policy) -> Result<(), StateError> {
        let path = self.group(source, group);
        make_folder_of(&path)?;
        write(&path, &KnownGroup { keep: policy.keep, span_ms: policy.span_ms, grid: policy.grid.clone() })
    }

    /// What readings found in a group beside what is on record.
    pub(crate) fn found(&self, source: &Name, group: &Name) -> Result<Option<Found>, StateError> {
        let path = self.found_path(source, group);
        match read_current::<KnownFound>(&path)? {
            Some(KnownFound { found: None, .. }) => Err(StateError::Damaged { path, reason: "it says nothing".to_owned() }),
            known => Ok(known.and_then(|known| known.found)),
        }
    }

    pub(crate) fn remember_found(&self, source: &Name, group: &Name, found: &Found) -> Result<(), StateError> {
        let path = self.found_path(source, group);
        make_folder_of(&path)?;
        write(&path, &KnownFound { version: FOUND_VERSION, found: Some(found.clone()) })
    }

    /// The followers, by name; of each what is wrong with its file, if something is.
    pub(crate) fn followers(&self) -> Result<Vec<FoundFollower>, StateError> {
        let folder = self.path.join("followers");
        let io = |source| StateError::Io { path: folder.clone(), source };
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let file = entry.map_err(io)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json")).filter(|name| !name.ends_with(HOLDS));
            let Some(name) = name.and_then(|name| name.parse::<Name>().ok()) else { continue };
            if let Some(definition) = read_current(&self.follower(&name)).transpose() {
                found.push((name, definition));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    /// What a follower's target holds; `None`: nothing of ours yet.
    pub(crate) fn follower_holds(&self, name: &Name) -> Result<Option<Holds>, StateError> {
        read_current(&self.follower_holds_path(name))
    }

    /// Begins a follower, or changes what it is: from what it was before. Where it fails that is what it is.
    pub(crate) fn remember_follower(
        &self,
        name: &Name,
        definition: &Definition,
        before: Option<&Definition>,
    ) -> Result<(), StateError> {
        let path = self.follower(name);
        make_folder_of(&path)?;
        change(&path, definition, before)
    }

    pub(crate) fn remember_follower_holds(&self, name: &Name, holds: &Holds) -> Result<(), StateError> {
        write(&self.follower_holds_path(name), holds)
    }

    /// † What its target holds goes last: one of which that alone is gone would be taken for new, and be overwritten without a look. (What is left of
    /// it is not taken for what the next one's of that name holds: whoever begins one removes it.)
    pub(crate) fn forget_follower(&self, name: &Name) -> Result<(), StateError> {
        let path = self.follower(name);
        remove(&path).map_err(|source| StateError::Io { path, source })?;
        self.forget_follower_holds(name)
    }

    /// What its target holds.
    pub(crate) fn forget_follower_holds(&self, name: &Name) -> Result<(), StateError> {
        let path = self.follower_holds_path(name);
        remove(&path).map_err(|source| StateError::Io { path, source })
    }

    /// Cohorts that a person has had forgotten.
    pub(crate) fn cohorts_forgotten(&self) -> Result<BTreeSet<Name>, StateError> {
        let known = read_current::<ForgottenCohorts>(&self.cohorts_forgotten_path())?;
        Ok(known.map(|known| known.cohorts).unwrap_or_default())
    }

    pub(crate) fn remember_cohorts_forgotten(&self, cohorts: &BTreeSet<Name>) -> Result<(), StateError> {
        write(&self.cohorts_forgotten_path(), &ForgottenCohorts { version: FORGOTTEN_VERSION, cohorts: cohorts.clone() })
    }

    /// The floor of retention that was in force; `None` before the first.
    pub(crate) fn floor(&self) -> Result<Option<KeptFloor>, StateError> {
        Ok(read_current::<KnownFloor>(&self.floor_path())?.map(|known| known.floor))
    }

    pub(crate) fn remember_floor(&self, floor: &KeptFloor) -> Result<(), StateError> {
        write(&self.floor_path(), &KnownFloor { version: FLOOR_VERSION, floor: floor.clone() })
    }

    fn floor_path(&self) -> PathBuf {
        self.path.join("retention-floor.json")
    }

    fn cohorts_forgotten_path(&self) -> PathBuf {
        self.path.join("cohorts-forgotten.json")
    }

    /// The same of a failover.
    pub(crate) fn remember_failover(&self, failover: &Failover, before: Option<&Failover>) -> Result<(), StateError> {
        let names = failover.names();
        let path = self.failover_path(&names);
        make_folder_of(&path)?;
        change(&path, failover, before)
    }

    pub(crate) fn forget_failover(&self, names: &GroupNames) -> Result<(), StateError> {
        let path = self.failover_path(names);
        remove(&path).map_err(|source| StateError::Io { path, source })
    }

    pub(crate) fn remember_taken_back(&self, one: &TakenBack, before: Option<&TakenBack>) -> Result<(), StateError> {
        let path = self.taken_back_path(&one.names());
        make_folder_of(&path)?;
        change(&path, one, before)
    }

    pub(crate) fn remember_known(&self, one: &Known, before: Option<&Known>) -> Result<(), StateError> {
        let names = one.names();
        let path = self.path.join(KNOWN).join(names.source.as_str()).join(format!("{}.json", names.group));
        make_folder_of(&path)?;
        change(&path, one, before)
    }

    pub(crate) fn forget_taken_back(&self, names: &GroupNames) -> Result<(), StateError> {
        let path = self.taken_back_path(names);
        remove(&path).map_err(|source| StateError::Io { path, source })
    }

    pub(crate) fn taken_back_path(&self, names: &GroupNames) -> PathBuf {
        self.path.join(TAKEN_BACK).join(names.source.as_str()).join(format!("{}.json", names.group))
    }

    pub(crate) fn failover_path(&self, names: &GroupNames) -> PathBuf {
        self.path.join("failovers").join(names.source.as_str()).join(format!("{}.json", names.group))
    }

    /// All `FOLDER/*/*.json` up to that version, and what is wrong with them, or with a folder.
    pub(crate) fn read_two_deep<T: serde::de::DeserializeOwned>(
        &self,
        folder: &str,
        reads: u32,
    ) -> Vec<(PathBuf, Result<T, StateError>)> {
        let mut found = Vec::new();
        let folders = list(&self.path.join(folder)).unwrap_or_else(|error| {
            found.push((self.path.join(folder), Err(error)));
            Vec::new()
        });
        for folder in folders {
            match list(&folder) {
                Ok(files) => {
                    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
                    found.extend(files.filter_map(|path| read_up_to(&path, reads).transpose().map(|read| (path, read))));
                }
                Err(error) => found.push((folder, Err(error))),
            }
        }
        found
    }

    fn follower(&self, name: &Name) -> PathBuf {
        self.path.join("followers").join(format!("{name}.json"))
    }

    fn follower_holds_path(&self, name: &Name) -> PathBuf {
        self.path.join("followers").join(format!("{name}{HOLDS}.json"))
    }

    fn found_path(&self, source: &Name, group: &Name) -> PathBuf {
        self.path.join("found").join(source.as_str()).join(format!("{group}.json"))
    }

    fn group(&self, source: &Name, group: &Name) -> PathBuf {
        self.path.join("groups").join(source.as_str()).join(format!("{group}.json"))
    }
}

fn make_folder_of(path: &Path) -> Result<(), StateError> {
    let folder = path.parent().expect("a group's file has a folder");
    let make = || -> io::Result<()> {
        // † A folder whose name is not durable loses what is durable in it.
        let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        missing.into_iter().filter_map(Path::parent).try_for_each(sync_folder)
    };
    make().map_err(|source| StateError::Io { path: folder.to_owned(), source })
}

/// Removes a file, if it is there, durably.
fn remove(path: &Path) -> io::Result<()> {
    let folder = path.parent().expect("a file of the state directory has a folder");
    match std::fs::remove_file(path) {
        // † It may have been removed by a try that failed after that.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !folder.exists() => Ok(()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => sync_folder(folder),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::fail_as_told()?;
    File::open(folder)?.sync_all()
}

/// What is in a folder, by name; nothing if there is none.
fn list(folder: &Path) -> Result<Vec<PathBuf>, StateError> {
    let failed = |source: std::io::Error| StateError::Io { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(failed)?,
    };
    let mut found = entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect::<Result<Vec<_>, _>>()?;
    found.sort();
    Ok(found)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    bytes_of(path)?.map(|bytes| parse(path, &bytes)).transpose()
}

/// The same of a file that says its version: later ones are not looked into.
fn read_up_to<T: serde::de::DeserializeOwned>(path: &Path, reads: u32) -> Result<Option<T>, StateError> {
    #[derive(Deserialize)]
    struct Which {
        version: u32,
    }
    let Some(bytes) = bytes_of(path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Which { version: found }) if found > reads => Err(StateError::Later { path: path.to_owned(), found, reads }),
        _ => parse(path, &bytes).map(Some),
    }
}

fn bytes_of(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Io { path: path.to_owned(), source }),
        Ok(bytes) => Ok(Some(bytes)),
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, StateError> {
    serde_json::from_slice(bytes).map_err(|e| StateError::Damaged { path: path.to_owned(), reason: e.to_string() })
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    replace(path, value).map_err(|failed| StateError::Io { path: path.to_owned(), source: failed.source })
}

/// As [`write`], of what acts at the next start: if it fails, what was there before is there again, or nothing.
///
/// † A name that could not be made durable may be so all the same, and whoever was told that nothing was changed would be surprised.
fn change<T: Serialize>(path: &Path, value: &T, before: Option<&T>) -> Result<(), StateError> {
    let Err(failed) = replace(path, value) else { return Ok(()) };
    let path = path.to_owned();
    let is_as_before = !failed.in_place
        || match before {
            Some(before) => replace(&path, before).is_ok(),
            None => remove(&path).is_ok(),
        };
    let source = failed.source;
    Err(if is_as_before { StateError::Io { path, source } } else { StateError::Unsure { path, source } })
}

/// A file was not replaced.
struct NotReplaced {
    /// It was, but nobody knows for how long.
    in_place: bool,
    source: io::Error,
}

fn replace<T: Serialize>(path: &Path, value: &T) -> Result<(), NotReplaced> {
    let bytes = serde_json::to_vec_pretty(value).expect("plain data");
    let folder = path.parent().expect("a file of the state directory has a folder");
    let make = || -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    make().map_err(|source| NotReplaced { in_place: false, source })?;
    sync_folder(folder).map_err(|source| NotReplaced { in_place: true, source })
}

#[cfg(test)]
mod tests {
    use farside_ledger::Rule;
    use farside_region::Slot;

    use super::*;
    use crate::found::Finding;

    thread_local! {
        /// So many syncs of a folder fail.
        static SYNCS_FAIL: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }

    pub(super) fn fail_as_told() -> io::Result<()> {
        match SYNCS_FAIL.get() {
            0 => Ok(()),
            left => {
                SYNCS_FAIL.set(left - 1);
                Err(io::Error::other("told to"))
            }
        }
    }

    /// The name is there when its folder cannot be synced: the next start would act on what a person was told is not so.
    #[test]
    fn what_cannot_be_made_durable_is_as_it_was_or_it_is_said_that_nobody_knows() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("a.json");
        let read = || read::<u32>(&path).expect("read");
        SYNCS_FAIL.set(1);
        assert!(matches!(change(&path, &1, None), Err(StateError::Io { .. })));
        assert_eq!(read(), None, "it was not begun");
        SYNCS_FAIL.set(2);
        let unsure = change(&path, &1, None).expect_err("it fails");
        assert!(matches!(unsure, StateError::Unsure { .. }));
        assert!(!unsaved(unsure).what_to_do.contains("nothing was changed"));
        // Whether it is gone is known when it could be synced only.
        SYNCS_FAIL.set(1);
        assert!(remove(&path).is_err() && remove(&path).is_ok());

        change(&path, &1, None).expect("written");
        SYNCS_FAIL.set(1);
        assert!(matches!(change(&path, &2, Some(&1)), Err(StateError::Io { .. })));
        assert_eq!(read(), Some(1), "it is what it was");
        SYNCS_FAIL.set(2);
        assert!(matches!(change(&path, &2, Some(&1)), Err(StateError::Unsure { .. })));
        // Before anything was replaced there is nothing to take back.
        SYNCS_FAIL.set(1);
        let nowhere = directory.path().join("none/a.json");
        assert!(matches!(change(&nowhere, &1, None), Err(StateError::Io { .. })) && SYNCS_FAIL.take() == 1);
    }

    #[test]
    fn one_process_at_a_time() {
        let directory = tempfile::tempdir().expect("tempdir");
        let first = StateDir::open(directory.path()).expect("free");
        let error = StateDir::open(directory.path()).expect_err("taken").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        StateDir::open(directory.path()).expect("free again");
    }

    #[test]
    fn what_is_remembered_comes_back() {
        let directory = tempfile::tempdir().expect("tempdir");
        let state = StateDir::open(directory.path()).expect("free");
        let (source, group): (Name, Name) = ("db1".parse().expect("a name"), "default".parse().expect("a name"));
        assert_eq!(state.policy(&source, &group).expect("read"), None);
        let grid = vec![Rule { every_ms: 60_000, keep_ms: 86_400_000 }].try_into().expect("a grid");
        let policy = Policy { keep: 7, span_ms: 1000, grid };
        state.remember_policy(&source, &group, &policy).expect("written");
        assert_eq!(state.policy(&source, &group).expect("read"), Some(policy));
        // What was remembered before there were grids.
        std::fs::write(directory.path().join("groups/db1/default.json"), r#"{"keep": 3, "span_ms": 9}"#).expect("written");
        assert_eq!(state.policy(&source, &group).expect("read"), Some(Policy::without_grid(3, 9)));
        assert_eq!(state.known_store().expect("read"), None);
        state.remember_store("abc", true).expect("written");
        assert_eq!(state.known_store().expect("read"), Some(("abc".to_owned(), true)));
        std::fs::write(directory.path().join("store.json"), "{").expect("written");
        assert!(matches!(state.known_store(), Err(StateError::Damaged { .. })));

        // What another build wrote is not misread.
        let found = directory.path().join("found/db1/default.json");
        assert!(state.found(&source, &group).expect("read").is_none());
        let at = Slot(4);
        let finding = Finding {
            point: Some(at),
            since: at,
            head: at,
            is_said: true,
            until: None,
            volumes: ["data".to_owned()].into(),
            members: ["log".to_owned()].into(),
            first: Some(at),
            message: "m".into(),
            what_to_do: "w".into(),
        };
        let mut known = Found::default();
        known.damaged(finding);
        state.remember_found(&source, &group, &known).expect("written");
        assert!(state.found(&source, &group).expect("read").is_some_and(|read| read.is_kept_as(&known)));
        std::fs::write(&found, r#"{"version": 2, "found": [7]}"#).expect("written");
        let words = state.found(&source, &group).expect_err("not known").to_string();
        assert!(words.contains("later version") && words.contains("default.json") && !words.contains("damaged"), "{words}");
        for text in [r#"{"version": 0}"#, r#"{"version": 1}"#, "{"] {
            std::fs::write(&found, text).expect("written");
            assert!(matches!(state.found(&source, &group), Err(StateError::Damaged { .. })), "{text}");
        }
    }
}
