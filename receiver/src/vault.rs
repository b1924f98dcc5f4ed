//! The open store of the process, and its way back after it failed.
//!
//! ```text
//! Open(generation) ──somebody met an error that only reopening heals──► Failed(words) ──every few seconds, once nobody
//!        ▲                                                                            holds the old one──┐
//!        └────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariant: a store that this receiver has not seen before is made only if it never had one. (An empty mount point is not
//! a fresh store: the disk is missing.)

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use farside_objects::{Credentials, Location, LocationError};
use farside_store::{DirBackend, Remedy, Space, Store, StoreError, StoreReader};

use crate::config::Config;
use crate::state_dir::{StateDir, StateError};

/// How long whoever asks before a start waits for the store's file system.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Counts how often the store was opened.
pub(crate) type Generation = u64;

#[derive(Debug)]
pub(crate) struct Vault {
    place: StorePlace,
    /// Its location, as the API shows it.
    path: PathBuf,
    state_dir: Arc<StateDir>,
    inner: Mutex<Inner>,
}

/// Where the store is, and what opening it takes.
#[derive(Clone, Debug)]
pub(crate) struct StorePlace {
    location: Location,
    staging: PathBuf,
    credentials: Option<PathBuf>,
}

impl StorePlace {
    pub(crate) fn of(config: &Config) -> Self {
        Self { location: config.store.clone(), staging: config.staging.clone(), credentials: config.store_credentials.clone() }
    }

    /// Where parts land.
    fn local(&self) -> &Path {
        match &self.location {
            Location::Dir(path) => path,
            Location::Bucket(_) => &self.staging,
        }
    }

    /// Read anew with every opening: they may have been replaced because they did not let us in.
    fn credentials(&self) -> Result<Credentials, LocationError> {
        match &self.location {
            Location::Dir(_) => Ok(Credentials::default()),
            Location::Bucket(_) => Credentials::find(self.credentials.as_deref()),
        }
    }
}

#[derive(Debug)]
struct Inner {
    generation: Generation,
    store: Result<Arc<Store>, String>,
    id: Option<[u8; 16]>,
    adopted: bool,
}

/// Whether this version writes a store where the configuration has it: what a start would be refused for, for good. What is not there, or cannot be
/// looked at, a start waits for. False: that place does not answer within 5 s, and nothing is known.
///
/// # Errors
/// [`StoreError::NetworkFs`], of the store's directory, or of the staging directory of a bucket.
pub fn check_place(config: &Config) -> Result<bool, StoreError> {
    let place = StorePlace::of(config);
    // What opening it asks.
    let questions = ["-L", "-f"].map(|what| {
        let mut question = Command::new("stat");
        question.args([what, "--"]).arg(place.local());
        question
    });
    if !all_end_within(ANSWERS_WITHIN, questions) {
        return Ok(false);
    }
    refused_for_good(DirBackend::open_to_write(place.local())).map(|()| true)
}

/// Whether commands end in time, however they do; one that cannot be started has.
///
/// † They are processes, not threads: what waits for a server of FUSE cannot be killed, and a process with such a thread has not ended
/// for whoever waits for it, as apt does.
fn all_end_within(limit: Duration, commands: impl IntoIterator<Item = Command>) -> bool {
    let until = Instant::now() + limit;
    commands.into_iter().all(|mut command| {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = started else { return true };
        while let Ok(None) = child.try_wait() {
            if Instant::now() >= until {
                let _ = child.kill(); // it ends when the kernel lets it
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    })
}

fn refused_for_good(opened: Result<DirBackend, StoreError>) -> Result<(), StoreError> {
    match opened {
        Err(error @ StoreError::NetworkFs { .. }) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(
        "{path} holds the store {found}, but this receiver's is {known}: mount the right one, or give this receiver a new `state_dir` to adopt it"
    )]
    Other { path: PathBuf, found: String, known: String },
}

impl From<farside_objects::OpenError> for OpenError {
    fn from(error: farside_objects::OpenError) -> Self {
        match error {
            farside_objects::OpenError::Store(error) => Self::Store(error),
            farside_objects::OpenError::Location(error) => Self::Location(error),
        }
    }
}

impl Vault {
    /// Opens the store, or says why it is not open yet.
    pub(crate) fn open(place: StorePlace, state_dir: Arc<StateDir>) -> Self {
        let path = place.location.to_string().into();
        let inner = Inner { generation: 0, store: Err("not opened yet".to_owned()), id: None, adopted: false };
        let vault = Self { place, path, state_dir, inner: Mutex::new(inner) };
        vault.retry();
        vault
    }

    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Where parts land, and whether what lands there is on its way to a bucket.
    pub(crate) fn landing(&self) -> (&Path, bool) {
        (self.place.local(), matches!(self.place.location, Location::Bucket(_)))
    }

    /// The store and its generation, or why there is none.
    pub(crate) fn current(&self) -> Result<(Arc<Store>, Generation), String> {
        let inner = self.lock();
        inner.store.as_ref().map(|store| (Arc::clone(store), inner.generation)).map_err(Clone::clone)
    }

    /// The generation whose groups may go on; `None` when there is none.
    pub(crate) fn generation(&self) -> Option<Generation> {
        let inner = self.lock();
        inner.store.is_ok().then_some(inner.generation)
    }

    /// Somebody met this error with the store of `generation`. Says whether that store is given up.
    pub(crate) fn failed(&self, generation: Generation, error: &StoreError) -> bool {
        let give_up = error.remedy() == Remedy::Reopen;
        let mut inner = self.lock();
        if give_up && inner.generation == generation && inner.store.is_ok() {
            tracing::error!(%error, "the store failed; it is opened again when it answers");
            inner.store = Err(error.to_string());
        }
        give_up
    }

    /// Tries to open the store if it is not. Blocking. Says whether it is open.
    pub(crate) fn retry(&self) -> bool {
        if self.lock().store.is_ok() {
            return true;
        }
        let opened = self.try_open();
        let mut inner = self.lock();
        match opened {
            Ok((store, adopted)) => {
                inner.adopted = adopted;
                inner.generation += 1;
                inner.id = Some(store.id());
                inner.store = Ok(Arc::new(store));
                tracing::info!(path = %self.path.display(), id = %HEXLOWER.encode(&inner.id.unwrap_or_default()), "the store is open");
                true
            }
            // The last holder is about to let go; the reason that counts is the one before.
            Err(OpenError::Store(StoreError::Locked { .. })) if inner.generation > 0 => false,
            Err(error) => {
                let text = error.to_string();
                if inner.store.as_ref().err() != Some(&text) {
                    tracing::error!(%error, "the store cannot be opened");
                    inner.store = Err(text);
                }
                false
            }
        }
    }

    /// With whether somebody else made it.
    fn try_open(&self) -> Result<(Store, bool), OpenError> {
        let (known, mut adopted) = self.state_dir.known_store()?.unzip();
        let credentials = self.place.credentials()?;
        if known.is_none() {
            let parent = self.place.local().parent().filter(|p| !p.as_os_str().is_empty());
            if let Some(parent) = parent.filter(|p| !p.exists()) {
                std::fs::create_dir_all(parent).map_err(|source| StateError::Io { path: parent.to_owned(), source })?;
            }
            // What cannot be looked at may be there.
            let is_none = |error| {
                matches!(error, farside_objects::OpenError::Store(StoreError::NotAStore { .. } | StoreError::Vanished { .. }))
            };
            adopted = Some(!self.place.location.reader(&credentials).is_err_and(is_none));
            self.place.location.init(&credentials)?;
        }
        // Before anything is written where parts land.
        if let (Some(known), Location::Bucket(_)) = (&known, &self.place.location) {
            let found = match self.place.location.reader(&credentials) {
                Err(farside_objects::OpenError::Store(StoreError::NotAStore { .. })) => {
                    return Err(StoreError::Replaced { place: self.place.location.to_string() }.into());
                }
                other => HEXLOWER.encode(&other?.id()),
            };
            if found != *known {
                return Err(OpenError::Other { path: self.path.clone(), found, known: known.clone() });
            }
        }
        let store = match self.place.location.open(&credentials, &self.place.staging) {
            // Known, and there is nothing: its disk is not mounted.
            Err(farside_objects::OpenError::Store(StoreError::NotAStore { path }))
                if known.is_some() && matches!(self.place.location, Location::Dir(_)) =>
            {
                return Err(StoreError::Vanished { path }.into());
            }
            other => other?,
        };
        let found = HEXLOWER.encode(&store.id());
        match known {
            Some(known) if known != found => return Err(OpenError::Other { path: self.path.clone(), found, known }),
            Some(_) => {}
            None => self.state_dir.remember_store(&found, adopted == Some(true))?,
        }
        Ok((store, adopted == Some(true)))
    }

    /// Whether somebody else made the store, as far as it was open: what readings found in it this receiver was not told by its state directory.
    pub(crate) fn is_adopted(&self) -> bool {
        self.lock().adopted
    }

    /// The store's id, once it was open.
    pub(crate) fn id(&self) -> Option<[u8; 16]> {
        self.lock().id
    }

    /// The space of the store's file system, if that can be asked.
    pub(crate) fn space(&self) -> Option<Space> {
        match self.current() {
            Ok((store, _)) => store.space().ok(),
            Err(_) => Space::of(self.place.local()).ok(),
        }
    }

    /// Opens the store for reading, whatever its state.
    pub(crate) fn reader(&self) -> Result<StoreReader, StoreError> {
        let reader = self.place.credentials().map_err(Into::into).and_then(|c| self.place.location.reader(&c));
        reader.map_err(|error| match error {
            farside_objects::OpenError::Store(error) => error,
            farside_objects::OpenError::Location(error) => {
                StoreError::Remote { doing: "opening", what: self.path.display().to_string(), why: error.to_string() }
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(at: &std::path::Path) -> Vault {
        let state = Arc::new(StateDir::open(&at.join("state")).expect("free"));
        let (location, staging) = (Location::Dir(at.join("store")), at.join("staging"));
        Vault::open(StorePlace { location, staging, credentials: None }, state)
    }

    #[test]
    fn a_place_that_no_start_takes_is_refused_before_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |store: Location, staging: &str| Config { store, staging: staging.into(), ..Config::default() };
        for path in [directory.path().into(), directory.path().join("none")] {
            assert!(check_place(&at(Location::Dir(path), "/none")).expect("it is taken, or waited for"));
        }
        let bucket: Location = "s3://points/prefix".parse().expect("a bucket");
        assert!(check_place(&at(bucket, "/none")).expect("it is made"));
        let path: PathBuf = "/srv/store".into();
        let refused = refused_for_good(Err(StoreError::NetworkFs { path: path.clone(), kind: "NFS" })).expect_err("refused");
        assert!(refused.to_string().starts_with("/srv/store is on NFS"), "{refused}");
        refused_for_good(Err(StoreError::Vanished { path })).expect("it is waited for");
    }

    /// † An upgrade waited for a store that does not answer, with dpkg's lock held.
    #[test]
    fn a_place_that_does_not_answer_is_waited_for_only_so_long() {
        let command = |program: &str, argument: &str| {
            let mut command = Command::new(program);
            command.arg(argument);
            command
        };
        let begun = Instant::now();
        let silent = || [command("true", ""), command("sleep", "600")];
        assert!(!all_end_within(Duration::from_millis(50), silent()));
        assert!(begun.elapsed() < Duration::from_secs(60));
        let ended = [command("true", ""), command("false", ""), command("/none/stat", "")];
        assert!(all_end_within(Duration::from_secs(60), ended), "what they say is asked again");
    }

    #[test]
    fn a_known_store_is_never_made_anew() {
        let directory = tempfile::tempdir().expect("tempdir");
        let first = vault(directory.path());
        let (store, generation) = first.current().expect("made");
        assert_eq!(generation, 1);
        drop(store);
        drop(first);
        // The disk is gone; its mount point is there.
        std::fs::rename(directory.path().join("store"), directory.path().join("away")).expect("moved");
        std::fs::create_dir(directory.path().join("store")).expect("made");
        let again = vault(directory.path());
        let words = again.current().expect_err("not there");
        assert!(words.contains("vanished"), "{words}");
        // Another store in its place.
        std::fs::remove_dir(directory.path().join("store")).expect("removed");
        Store::init(&directory.path().join("store")).expect("made");
        assert!(!again.retry());
        assert!(again.current().expect_err("another").contains("mount the right one"));
        std::fs::remove_dir_all(directory.path().join("store")).expect("removed");
        std::fs::rename(directory.path().join("away"), directory.path().join("store")).expect("moved back");
        assert!(again.retry(), "{:?}", again.current().err());
    }

    /// The gateway's system disk was lost with its state directory, or a second receiver was started on the bucket.
    #[test]
    fn a_store_that_another_receiver_made_is_adopted_also_by_the_next_process() {
        let directory = tempfile::tempdir().expect("tempdir");
        for _ in 0..2 {
            assert!(!vault(directory.path()).is_adopted());
        }
        std::fs::remove_dir_all(directory.path().join("state")).expect("removed");
        for _ in 0..2 {
            assert!(vault(directory.path()).is_adopted());
        }
    }

    #[test]
    fn a_failed_store_is_opened_again_when_nobody_holds_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let vault = vault(directory.path());
        let (held, generation) = vault.current().expect("open");
        let path = directory.path().to_owned();
        assert!(!vault.failed(generation, &StoreError::Full { path: path.clone(), needed: 1 }));
        assert!(!vault.failed(generation, &StoreError::ReadOnly { path: path.clone() }));
        assert!(vault.current().is_ok(), "those heal by themselves");
        vault.failed(generation + 1, &StoreError::Vanished { path: path.clone() });
        assert!(vault.current().is_ok(), "an error of another opening");
        assert!(vault.failed(generation, &StoreError::Vanished { path }));
        assert_eq!(vault.generation(), None);
        assert!(!vault.retry(), "the old one is still held");
        assert!(vault.current().expect_err("failed").contains("vanished"));
        drop(held);
        assert!(vault.retry());
        assert_eq!(vault.generation(), Some(generation + 1));
    }
}
