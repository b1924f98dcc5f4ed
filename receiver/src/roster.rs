//! Which groups there are, each with its thread; made when the store shows them or a source comes with one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use farside_region::Name;
use farside_store::GroupNames;

use crate::group::{self, GroupHandle};
use crate::process::Receiver;

/// All groups, by source and name.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    groups: Mutex<BTreeMap<GroupNames, Entry>>,
    /// What the store held when it was listed first, served or not.
    listed: OnceLock<BTreeSet<GroupNames>>,
    /// What of it could not be listed the last time, and why.
    not_listed: Mutex<Vec<String>>,
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

    /// The store has these; all of them were started that can be.
    pub(crate) fn listed(&self, groups: BTreeSet<GroupNames>) {
        let _ = self.listed.set(groups); // a store that was away has what it had
    }

    /// This could not be listed; there may be groups in it that nobody serves.
    pub(crate) fn not_listed(&self, words: Vec<String>) {
        let mut known = self.not_listed.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().filter(|words| !known.contains(words)).for_each(|words| tracing::error!("{words}"));
        *known = words;
    }

    /// What could not be listed, and why.
    pub(crate) fn hidden(&self) -> Vec<String> {
        self.not_listed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the store has and nobody serves.
    pub(crate) fn unserved(&self) -> Vec<GroupNames> {
        let served = self.lock();
        self.listed.get().into_iter().flatten().filter(|names| !served.contains_key(names)).cloned().collect()
    }

    /// Whether every group of the store is known.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed.get().is_some()
    }

    /// Whether the store has nothing of a group, as far as is known since the process began.
    pub(crate) fn is_new(&self, names: &GroupNames) -> bool {
        self.listed.get().is_some_and(|listed| !listed.contains(names)) && !self.lock().contains_key(names)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_has_is_not_new_whether_it_can_be_served_or_not() {
        let names = |source: &str| GroupNames::new(source.parse().expect("a name"), "db".parse().expect("a name"));
        let roster = Roster::default();
        assert!(!roster.is_new(&names("web1")) && !roster.is_listed(), "nobody has looked yet");
        roster.listed(BTreeSet::from([names("web1")]));
        assert!(roster.is_listed() && roster.is_new(&names("web2")));
        assert!(!roster.is_new(&names("web1")));
        assert_eq!(roster.unserved(), [names("web1")]);
    }
}
