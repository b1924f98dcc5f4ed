//! Failovers that are over, whose source has published nothing since.
//!
//! Invariant: what a failover left aside is not brought up by the next one unless a person forces it, and the point that it brought up is kept, until a
//! point was published that is not of before it. † The source's disks are that point after a failback, and nothing above it, though the newest point of
//! the group is one of those left aside: what ransomware wrote, say. (After a rollback they are what they had been; which of the two, nobody here knows,
//! and a person is asked.)

use farside_control::{ApiError, ErrorCode};
use farside_region::Name;
use farside_store::GroupNames;
use serde::{Deserialize, Serialize};

use super::{Failover, Failovers, Former, Lineage, VERSION, handle, lock, look_for, unnoted};
use crate::group::{PointChange, Promotable, PromotionLook, Wanted};
use crate::process::Receiver;
use crate::state_dir::{StateDir, StateError};

/// The folder of their notes.
pub(crate) const TAKEN_BACK: &str = "taken-back";

/// One of them, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakenBack {
    version: u32,
    source: Name,
    group: Name,
    /// What was brought up, and under which generation.
    brought_up: Former,
    lineage: Lineage,
}

impl TakenBack {
    /// `None`: nothing was left aside, or there is nothing of it any more.
    pub(super) fn of(failover: &Failover, has_aside: bool) -> Option<Self> {
        let (lineage, point) = (failover.lineage(), failover.point()?);
        let brought_up = Former { generation: failover.generation, point };
        let (source, group) = (failover.source.clone(), failover.group.clone());
        (has_aside && !lineage.is_empty()).then_some(Self { version: VERSION, source, group, brought_up, lineage })
    }

    pub(crate) fn names(&self) -> GroupNames {
        GroupNames { source: self.source.clone(), group: self.group.clone() }
    }

    pub(super) fn lineage(&self) -> Lineage {
        self.lineage.clone()
    }

    pub(super) fn brought_up(&self) -> Former {
        self.brought_up
    }

    /// Nobody knows which of two the disks of the source are.
    pub(super) fn says_which(&self, names: &GroupNames, newest: u64) -> ApiError {
        let point = self.brought_up.point;
        let message = format!(
            "{names} was failed over to point {point}, and points up to {newest} were left aside; its source has taken its history back, and published \
             nothing since: its disks are point {point} if that was by `farside failback`, and what they had been before if it was by `farside rollback`"
        );
        let what = format!("--force brings up point {point}, and --point {newest} --force what was left aside");
        ApiError::new(ErrorCode::Refused, message, &what)
    }

    /// What has all that was brought up.
    fn wanted(members: Vec<String>) -> Wanted {
        Wanted::NewestWith { members, takes_degraded: false }
    }

    /// Whether the history goes on: with a point of its own, that is whole; or nothing is left that it could be mistaken for.
    fn is_over(&self, look: &PromotionLook) -> bool {
        let is_since = |point: &Promotable| !point.degraded && Some(point.slot) > self.lineage.newest_aside();
        !look.has_aside || look.point.as_ref().is_some_and(is_since)
    }
}

impl Failovers {
    /// A failover is over: nothing of it is kept but what it left aside, until there is something newer. Called for as long as it fails.
    pub(super) fn end_taken_back(&self, receiver: &Receiver, failover: &Failover, look: &PromotionLook) -> Result<(), ApiError> {
        let names = failover.names();
        if let Some(taken_back) = TakenBack::of(failover, look.has_aside) {
            receiver.state_dir.remember_taken_back(&taken_back, self.taken_back(&names).as_ref()).map_err(unnoted)?;
            lock(&self.taken_back).insert(names.clone(), taken_back);
        } else if let Some(point) = look.point.as_ref().filter(|_| failover.point().is_some()) {
            let group = handle(receiver, &names)?;
            let change = PointChange::Unpin { only: failover.pin_reason() };
            receiver.runtime.block_on(group.change(point.shown.id, change))?;
        }
        self.forget(&receiver.state_dir, &names).map_err(unnoted)?;
        tracing::info!(group = %names, generation = failover.generation, "a failover is over: its history was taken back");
        Ok(())
    }

    /// Of a group of which none stands: whether something was published since the last one, and then that one's point is kept no more.
    pub(super) fn look_for_newer(&self, receiver: &Receiver, names: &GroupNames) -> Result<(), ApiError> {
        let Some(taken_back) = lock(&self.taken_back).get(names).cloned() else { return Ok(()) };
        let (group, former) = (handle(receiver, names)?, taken_back.brought_up);
        let brought_up = match look_for(receiver, &group, Wanted::Point(former.point)) {
            Err(error) if error.code != ErrorCode::NotFound => return Err(error),
            look => look.ok().and_then(|look| look.point),
        };
        let members = brought_up.iter().flat_map(|point| &point.members).map(|(volume, _)| volume.clone()).collect();
        if !taken_back.is_over(&look_for(receiver, &group, TakenBack::wanted(members))?) {
            return Ok(());
        }
        if let Some(point) = brought_up {
            let change = PointChange::Unpin { only: former.pin_reason() };
            receiver.runtime.block_on(group.change(point.shown.id, change))?;
        }
        self.forget_taken_back(&receiver.state_dir, names).map_err(unnoted)
    }

    /// What it left aside is known otherwise, or is nothing any more.
    pub(super) fn forget_taken_back(&self, state_dir: &StateDir, names: &GroupNames) -> Result<(), StateError> {
        if lock(&self.taken_back).contains_key(names) {
            state_dir.forget_taken_back(names)?;
            lock(&self.taken_back).remove(names);
        }
        Ok(())
    }

    /// The one that is over, if nothing was published since.
    pub(super) fn taken_back(&self, names: &GroupNames) -> Option<TakenBack> {
        lock(&self.taken_back).get(names).cloned()
    }
}

impl StateDir {
    /// Those that were begun, and what is wrong with files of others.
    pub(super) fn failovers(&self) -> (Vec<Failover>, Vec<String>) {
        let mut broken = Vec::new();
        (self.current("failovers", &mut broken, |failover: &Failover| failover.version), broken)
    }

    /// The same of those that are over.
    pub(super) fn taken_back(&self, broken: &mut Vec<String>) -> Vec<TakenBack> {
        self.current(TAKEN_BACK, broken, |one: &TakenBack| one.version)
    }

    fn current<T: serde::de::DeserializeOwned>(
        &self,
        folder: &str,
        broken: &mut Vec<String>,
        version: impl Fn(&T) -> u32,
    ) -> Vec<T> {
        let mut found = Vec::new();
        for (path, read) in self.read_two_deep::<T>(folder) {
            match read {
                Ok(one) if version(&one) == VERSION => found.push(one),
                Ok(one) => {
                    broken.push(format!("{} is of version {}, and this build reads {VERSION}", path.display(), version(&one)))
                }
                Err(error) => broken.push(error.to_string()),
            }
        }
        found
    }
}
