//! Which groups there are, each with its thread; made when the store shows them or a source comes with one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farside_region::Name;
use farside_store::GroupNames;

use crate::group::{self, GroupHandle};
use crate::process::Receiver;

/// All groups, by source and name.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    groups: Mutex<BTreeMap<GroupNames, Entry>>,
    /// All that the store held was started once.
    is_listed: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    handle: GroupHandle,
    thread: std::thread::JoinHandle<()>,
}

impl Entry {
    /// Stops the group's thread and waits for its end.
    fn end(self, names: &GroupNames) {
        self.handle.stop();
        drop(self.handle);
        if self.thread.join().is_err() {
            tracing::error!(group = %names, "the group's thread panicked");
        }
    }
}

/// Why a group is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RosterError {
    #[error("source {0} has {1} groups here, which is this receiver's limit (`limits.groups_per_source`)")]
    TooMany(Name, usize),
    #[error("no thread for the group: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the receiver is stopping")]
    Stopping,
}

impl Roster {
    /// The group, with its thread started if it was not; when its source has too many, in the place of an empty one. Blocking.
    pub(crate) fn group(&self, receiver: &Arc<Receiver>, names: &GroupNames) -> Result<GroupHandle, RosterError> {
        let mut groups = self.lock();
        if let Some(entry) = groups.get(names) {
            return Ok(entry.handle.clone());
        }
        if receiver.is_stopping() {
            return Err(RosterError::Stopping);
        }
        let limit = receiver.config().limits.groups_per_source;
        if groups.keys().filter(|known| known.source == names.source).count() >= limit {
            let vacant = |(known, entry): (&GroupNames, &Entry)| {
                (known.source == names.source && entry.handle.view().is_vacant()).then(|| known.clone())
            };
            let Some(vacant) = groups.iter().find_map(vacant) else {
                return Err(RosterError::TooMany(names.source.clone(), limit));
            };
            let entry = groups.remove(&vacant).expect("it was just found");
            entry.end(&vacant);
        }
        let (handle, thread) = group::start(Arc::clone(receiver), names.clone())?;
        groups.insert(names.clone(), Entry { handle: handle.clone(), thread });
        Ok(handle)
    }

    /// Every group of the store was started.
    pub(crate) fn listed(&self) {
        self.is_listed.store(true, Ordering::Release);
    }

    /// Whether every group of the store is known.
    pub(crate) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Acquire)
    }

    /// Whether the store has nothing of a group, as far as is known since the process began.
    pub(crate) fn is_new(&self, names: &GroupNames) -> bool {
        self.is_listed() && !self.lock().contains_key(names)
    }

    /// All groups that run.
    pub(crate) fn all(&self) -> Vec<GroupHandle> {
        self.lock().values().map(|entry| entry.handle.clone()).collect()
    }

    /// Stops every group and waits for their threads. Blocking.
    pub(crate) fn stop(&self) {
        let groups = std::mem::take(&mut *self.lock());
        for entry in groups.values() {
            entry.handle.stop();
        }
        groups.into_iter().for_each(|(names, entry)| entry.end(&names));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupNames, Entry>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
