//! Failovers that are over, and left points aside that are there still.
//!
//! ```text
//! taken back ──► the source has published nothing that is whole: what was brought up is pinned, and a person says which ──► followed ──► none is left
//! ```
//!
//! Invariant: what a failover left aside is not brought up by a later one unless a person forces it, as long as there is any of it. † After a failback the
//! disks of the source are the point that was brought up, and none of those: the newest of the group may be what ransomware wrote, and so may the newest
//! whole cut of its cohort be for long after its source has published. (After a rollback they are what they had been: which of the two, nobody here knows.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use farside_control::failover::FailoverRequest;
use farside_control::{ApiError, Code, ErrorCode, Reason, Severity};
use farside_ledger::PointFilter;
use farside_region::{Name, Slot};
use farside_replication::lineage::Lineage;
use farside_store::{GroupNames, PointInfo};
use serde::{Deserialize, Serialize};

use super::lost::{Lost, generation};
use super::{Failover, Failovers, Former, PIN_REASONS, VERSION, handle, lock, look, look_for, turn, unnoted};
use crate::group::{GroupHandle, PointChange, Promotable, PromotionLook, Wanted};
use crate::points::PointsAsk;
use crate::process::Receiver;
use crate::rollback;
use crate::state_dir::{StateDir, StateError};

/// Points that failovers before one may have pinned.
const FORMERS_MAX: usize = 64;
/// The folder of their notes.
pub(crate) const TAKEN_BACK: &str = "taken-back";

/// One of them, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakenBack {
    version: u32,
    source: Name,
    group: Name,
    /// What was brought up, and under which generation; as long as nothing follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    brought_up: Option<Former>,
    lineage: Lineage,
}

impl TakenBack {
    /// `None`: nothing was left aside, or there is nothing of it any more.
    fn of(failover: &Failover, has_aside: bool) -> Option<Self> {
        let brought_up = failover.point().map(|point| Former { generation: failover.generation, point });
        let (source, group, lineage) = (failover.source.clone(), failover.group.clone(), failover.lineage());
        (has_aside && !lineage.is_empty()).then_some(Self { version: VERSION, source, group, brought_up, lineage })
    }

    pub(crate) fn names(&self) -> GroupNames {
        GroupNames { source: self.source.clone(), group: self.group.clone() }
    }

    pub(super) fn lineage(&self) -> Lineage {
        self.lineage.clone()
    }

    pub(super) fn brought_up(&self) -> Option<Former> {
        self.brought_up
    }

    /// Nobody knows which of two the disks of the source are.
    fn which(&self) -> Option<String> {
        let Former { point, .. } = self.brought_up?;
        let aside = self.lineage.newest_aside()?;
        Some(format!(
            "{} was failed over to point {point}, and points up to {aside} were left aside; its source has taken its history back, and published nothing \
             whole since: its disks are point {point} if that was by `farside failback`, and what they had been before if it was by `farside rollback`",
            self.names()
        ))
    }

    /// The same where a failover is refused for it, which would bring up that point.
    pub(super) fn says_which(&self, point: u64, newest: u64) -> Option<ApiError> {
        let what = format!("--force brings up point {point}, and --point {newest} --force what was left aside");
        Some(ApiError::new(ErrorCode::Refused, self.which()?, &what))
    }

    /// Whether the history goes on with a point of its own, that is whole.
    fn is_followed(&self, look: &PromotionLook) -> bool {
        let is_since = |point: &Promotable| !point.degraded && self.lineage.is_followed_by(point.slot);
        look.point.as_ref().is_some_and(is_since)
    }
}

impl Failovers {
    /// A failover is over: nothing of it is kept but what it left aside. Called again for as long as it fails.
    pub(super) fn end_taken_back(&self, receiver: &Receiver, failover: &Failover, look: &PromotionLook) -> Result<(), ApiError> {
        let (names, pin) = (failover.names(), failover.pin_reason());
        // † Before it is forgotten since when somebody else published.
        receiver.runtime.block_on(rollback::settle(&handle(receiver, &names)?))?;
        // Before its point may go.
        receiver.followers.end_promotions(receiver, &names, failover.generation).map_err(unnoted)?;
        let taken_back = TakenBack::of(failover, look.has_aside);
        // (Where that one is gone, the newest was looked at.)
        if let Some(point) = look.point.as_ref().filter(|point| failover.point() == Some(point.slot)) {
            let group = handle(receiver, &names)?;
            // † One that was for good for a while is not pinned any more.
            let change = match &taken_back {
                Some(_) => PointChange::OwnPin { reason: pin },
                None => PointChange::Unpin { only: pin },
            };
            receiver.runtime.block_on(group.change(point.shown.id, change))?;
        }
        // † Or a follower that was on its way by then would be taken for what somebody else promoted.
        self.knows(&receiver.state_dir, failover, look).map_err(unnoted)?;
        // † Or the note of one before it, which this one outranked, would stand again.
        match taken_back {
            Some(taken_back) => self.keep_taken_back(&receiver.state_dir, taken_back).map_err(unnoted)?,
            None => self.forget_taken_back(&receiver.state_dir, &names).map_err(unnoted)?,
        }
        self.forget(&receiver.state_dir, &names).map_err(unnoted)?;
        tracing::info!(group = %names, generation = failover.generation, "a failover is over: its history was taken back");
        Ok(())
    }

    /// Of a group of which none stands: whether something was published since the last one, and then that one's point is kept no more; and whether
    /// anything of what it left aside is there. Waits for nobody who is at the group.
    pub(super) fn look_for_newer(&self, receiver: &Receiver, names: &GroupNames) -> Result<(), ApiError> {
        let Some(mut taken_back) = self.taken_back(names) else { return Ok(()) };
        let group = handle(receiver, names)?;
        let is_over = !look(receiver, &group, None)?.has_aside;
        let followed = match taken_back.brought_up {
            Some(former) => self.is_followed(receiver, &group, &taken_back, former.point)?.then_some(former),
            None => None,
        };
        if !is_over && followed.is_none() {
            return Ok(());
        }
        let working = self.working.of(names);
        let Ok(_one) = turn(&working, names, Duration::ZERO) else { return Ok(()) };
        if self.stands(names) || self.taken_back(names).as_ref() != Some(&taken_back) {
            return Ok(());
        }
        if let Some(former) = taken_back.brought_up.filter(|_| is_over).or(followed) {
            match look(receiver, &group, Some(former.point)) {
                Err(error) if error.code != ErrorCode::NotFound => return Err(error),
                found => {
                    if let Some(point) = found.ok().and_then(|look| look.point) {
                        let change = PointChange::Unpin { only: former.pin_reason() };
                        receiver.runtime.block_on(group.change(point.shown.id, change))?;
                    }
                }
            }
        }
        if is_over {
            return self.forget_taken_back(&receiver.state_dir, names).map_err(unnoted);
        }
        taken_back.brought_up = None;
        self.keep_taken_back(&receiver.state_dir, taken_back).map_err(unnoted)
    }

    /// Whether a point with all volumes of that one, or any if that one is gone, was published since.
    fn is_followed(&self, receiver: &Receiver, group: &GroupHandle, of: &TakenBack, brought_up: Slot) -> Result<bool, ApiError> {
        let found = match look(receiver, group, Some(brought_up)) {
            Err(error) if error.code != ErrorCode::NotFound => return Err(error),
            found => found.ok().and_then(|look| look.point),
        };
        let members = found.into_iter().flat_map(|point| point.members).map(|(volume, _)| volume).collect();
        Ok(of.is_followed(&look_for(receiver, group, Wanted::NewestWith { members, takes_degraded: false })?))
    }

    fn keep_taken_back(&self, state_dir: &StateDir, taken_back: TakenBack) -> Result<(), StateError> {
        let names = taken_back.names();
        state_dir.remember_taken_back(&taken_back, self.taken_back(&names).as_ref())?;
        lock(&self.unread).remove(&state_dir.taken_back_path(&names));
        lock(&self.taken_back).insert(names, taken_back);
        Ok(())
    }

    /// What it left aside is known otherwise, or is nothing any more. Also if it could not be read.
    pub(super) fn forget_taken_back(&self, state_dir: &StateDir, names: &GroupNames) -> Result<(), StateError> {
        state_dir.forget_taken_back(names)?;
        lock(&self.taken_back).remove(names);
        lock(&self.unread).remove(&state_dir.taken_back_path(names));
        Ok(())
    }

    /// The one that is over, if what it left aside is there still.
    pub(super) fn taken_back(&self, names: &GroupNames) -> Option<TakenBack> {
        lock(&self.taken_back).get(names).cloned()
    }

    /// † What failovers left aside is not known where that cannot be read: it may be the newest, and only a point that is named may be forced.
    pub(super) fn refuse_unread(
        &self,
        state_dir: &StateDir,
        names: &GroupNames,
        request: &FailoverRequest,
        look: &PromotionLook,
    ) -> Result<(), ApiError> {
        if request.force && request.point.is_some() {
            return Ok(());
        }
        let unread =
            self.why_unread(state_dir, names).map(|words| (words, ", or put the file back and restart farside-receiver"));
        // What was published since that one was not left aside by it, nor was what it brought up.
        let may_have_left = |lost: &Lost| look.point.as_ref().is_none_or(|point| lost.may_have_left(point.slot));
        let lost = look.lost.filter(may_have_left);
        let Some((words, or)) = unread.or_else(|| lost.map(|lost| (lost.words(), ""))) else { return Ok(()) };
        let message =
            format!("what an earlier failover of {names} left aside is not known, and the newest point may be of it: {words}");
        let what = match request.cut {
            // Its point is named by that.
            Some(_) => format!("say --force if this cut is the one that is wanted{or}"),
            None => format!("name the point that is wanted (--point, with --force; `farside point list`){or}"),
        };
        Err(ApiError::new(ErrorCode::Refused, message, what))
    }

    /// Why what an earlier failover of a group left aside, or the one that stands, cannot be read, if there is such a note.
    fn why_unread(&self, state_dir: &StateDir, names: &GroupNames) -> Option<String> {
        why_not_read(&self.unread, &state_dir.taken_back_path(names)).or_else(|| self.why_broken(state_dir, names))
    }

    /// Why the failover of a group that stands cannot be read, if there is one.
    pub(crate) fn why_broken(&self, state_dir: &StateDir, names: &GroupNames) -> Option<String> {
        why_not_read(&self.broken, &state_dir.failover_path(names))
    }

    /// Those that nothing follows yet, and what cannot be read.
    pub(super) fn reasons_of_taken_back(&self) -> Vec<Reason> {
        let whichs: Vec<String> = lock(&self.taken_back).values().filter_map(TakenBack::which).collect();
        let which = |message: String| {
            let what = "nothing has to be done: it is over with the next whole point of all its volumes; a failover before that asks which of the two";
            Reason::new(Severity::Info, Code::FailedOver, message, what)
        };
        let unread: Vec<String> = lock(&self.unread).values().cloned().collect();
        let unread = unread.into_iter().map(|words| {
            let message = format!("what an earlier failover left aside is not known: {words}");
            let what = "put the file back (or the version that wrote it) and restart farside-receiver; until then a failover of that group must be forced, to a point that is named";
            Reason::new(Severity::Error, Code::FailedOver, message, what)
        });
        whichs.into_iter().map(which).chain(unread).collect()
    }
}

/// What earlier failovers brought up, as their pins say. † A note that cannot be read goes with the next failover, and one that is lost is nowhere: nobody would
/// withdraw the pin any more.
pub(super) fn formers_by_pins(receiver: &Receiver, group: &GroupHandle) -> Result<Vec<Former>, ApiError> {
    let filter = PointFilter { pinned: true, reason: Some(PIN_REASONS.to_owned()), ..PointFilter::default() };
    let ask = PointsAsk { volume: None, filter, below: None, limit: FORMERS_MAX };
    let found = receiver.runtime.block_on(group.points(ask));
    let found = found.map_err(|why| ApiError::new(ErrorCode::Unavailable, why, "try again"))?;
    let of_point = |point: &PointInfo| {
        let generations = point.pins.iter().filter_map(|(_, reason)| generation(reason));
        generations.map(|generation| Former { generation, point: point.slot }).collect::<Vec<_>>()
    };
    Ok(found.points.iter().flat_map(of_point).collect())
}

/// What is said of a file that cannot be read, or of a folder that it is in.
fn why_not_read(unread: &Mutex<BTreeMap<PathBuf, String>>, path: &Path) -> Option<String> {
    lock(unread).iter().find(|(unread, _)| path.starts_with(unread)).map(|(_, words)| words.clone())
}

impl StateDir {
    /// Those that were begun, and what is wrong with files of others.
    pub(super) fn failovers(&self) -> (Vec<Failover>, Vec<(PathBuf, String)>) {
        self.current("failovers", |failover: &Failover| failover.version)
    }

    /// The same of those that are over.
    pub(super) fn taken_back(&self) -> (Vec<TakenBack>, Vec<(PathBuf, String)>) {
        self.current(TAKEN_BACK, |one: &TakenBack| one.version)
    }

    fn current<T>(&self, folder: &str, version: impl Fn(&T) -> u32) -> (Vec<T>, Vec<(PathBuf, String)>)
    where
        T: serde::de::DeserializeOwned,
    {
        let (mut found, mut broken) = (Vec::new(), Vec::new());
        for (path, read) in self.read_two_deep::<T>(folder, VERSION) {
            match read {
                Ok(one) if version(&one) == VERSION => found.push(one),
                Ok(one) => {
                    let words = format!("{} is of version {}, and this build reads {VERSION}", path.display(), version(&one));
                    broken.push((path, words));
                }
                Err(error) => broken.push((path, error.to_string())),
            }
        }
        (found, broken)
    }
}
