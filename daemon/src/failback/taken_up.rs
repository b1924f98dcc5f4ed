//! What an earlier process began: it is taken up before any volume is opened.
//!
//! Invariant: † a note that cannot be read is that of the group whose name its file has, and holds every disk of that group, as far as those are
//! configured, until it can be read or is gone; no other group waits for that. It is looked at again whenever somebody would open such a disk, or asks
//! something of its group.

use std::path::Path;
use std::sync::Arc;

use farside_control::ApiError;
use farside_region::Name;
use farside_replication::failback::Stage;
use tracing::{error, warn};

use super::note::{self, Asked, Note, Unread, disks_of, notes};
use super::{Failback, conflict};
use crate::locked;
use crate::supervisor::Daemon;

impl Daemon {
    /// Takes up what was begun. Before any volume is opened.
    ///
    /// # Errors
    /// When nobody can tell which groups have notes: nothing may be served that is only in part what it should be.
    pub(crate) fn take_up_failbacks(&self) -> anyhow::Result<()> {
        super::branch::sweep(&self.state_path());
        for note in notes(&self.state_path())? {
            match note {
                Ok(note) => drop(self.take_up(note)),
                Err(unread) => {
                    error!(group = %unread.group, "none of its volumes is served: {unread}");
                    locked(&self.failbacks.unread).insert(unread.group);
                }
            }
        }
        Ok(())
    }

    /// `None`: it ended with the process that began it.
    fn take_up(&self, note: Note) -> Option<Arc<Failback>> {
        let group = note.group.clone();
        if note.course.stage == Stage::HandingOver {
            // It holds nothing, whoever reads it.
            note.forget(&self.state_path()).unwrap_or_else(|error| warn!(%group, "a note of what is over stays: {error:#}"));
            return None;
        }
        let failback = Arc::new(Failback::new(self.source_of(&group), note));
        locked(&self.failbacks.all).insert(group, failback.clone());
        Some(failback)
    }

    /// Goes on with what was taken up.
    pub(crate) fn go_on_with_failbacks(self: &Arc<Self>) {
        let all: Vec<Arc<Failback>> = locked(&self.failbacks.all).values().cloned().collect();
        all.into_iter().for_each(|one| self.go_on_with(one));
    }

    fn go_on_with(self: &Arc<Self>, one: Arc<Failback>) {
        let (group, leaving): (Name, Vec<Name>) = {
            let note = locked(&one.note);
            (note.group.clone(), note.volumes.iter().filter(|held| held.leaving).map(|held| held.name.clone()).collect())
        };
        for name in leaving {
            // Its removal was interrupted: it is what the configuration says.
            let is_removed = !self.volumes_of(&group).iter().any(|volume| volume.name == name);
            if let Err(error) = self.left_failback(&group, &name, is_removed) {
                warn!(%group, volume = %name, "it stays held: {error:#}");
            }
        }
        tokio::spawn(self.clone().fail_back(one));
    }

    /// Whether a failback holds the disk of a volume, which nobody else opens then.
    ///
    /// # Errors
    /// When it does, or when that cannot be told.
    pub(crate) fn refuse_held(self: &Arc<Self>, (group, volume): (&Name, &Name), backing: &Path) -> anyhow::Result<()> {
        let unread = locked(&self.failbacks.unread).clone();
        if !unread.is_empty() {
            let all = self.with_config(disks_of);
            let disk = Asked { group, volume, backing, all: &all };
            unread.iter().filter(|of| disk.may_be_of(of)).try_for_each(|of| self.read_again(of))?;
        }
        Ok(self.failbacks.refuse_held(group, volume, backing)?)
    }

    /// Nothing is done with a group while nobody knows what was begun of it.
    ///
    /// # Errors
    /// So it is.
    pub(crate) fn refuse_unread(self: &Arc<Self>, group: &str) -> Result<(), ApiError> {
        let unread = locked(&self.failbacks.unread).iter().find(|unread| unread.as_str() == group).cloned();
        let read = unread.map_or(Ok(()), |group| self.read_again(&group));
        read.map_err(|unread| conflict(unread.to_string(), "then say the same again"))
    }

    /// A note that could not be read may have been put back, or removed.
    fn read_again(self: &Arc<Self>, group: &Name) -> Result<(), Unread> {
        let found = note::of(&self.state_path(), group)?;
        let (was_there, taken_up) = {
            let mut unread = locked(&self.failbacks.unread);
            if !unread.contains(group) {
                return Ok(()); // somebody else was sooner
            }
            // † In this order: who does not find it here any more finds it there.
            let taken_up = (found.is_some(), found.and_then(|note| self.take_up(note)));
            unread.remove(group);
            taken_up
        };
        if !was_there {
            warn!(%group, "its note, which could not be read, is gone: its volumes are served as their disks are");
        }
        if let Some(one) = taken_up {
            warn!(%group, "its note can be read again: the failback, or the cutover, goes on");
            self.go_on_with(one);
        }
        Ok(())
    }
}
