//! For what a failback waits that only the gateway has. It goes on by itself when that is there; whoever watches need not.

use farside_control::source::Connection;
use farside_region::{Generation, Name, Slot};
use farside_replication::failback::{Course, Ending};

use super::{Daemon, Failback};
use crate::locked;

impl Daemon {
    /// The volumes are served, and their history is not taken back yet.
    pub(super) async fn say_that_it_waits(&self, failback: &Failback, group: &Name) {
        let error = match self.status().await.connection {
            Connection::Connected { .. } | Connection::Connecting { .. } => None,
            Connection::Disconnected { error, .. } => Some(error),
            Connection::NotPaired => Some("this host is not paired".to_owned()),
        };
        let mut view = locked(&failback.view);
        view.is_without_gateway = error.is_some();
        view.why = error.map(|error| {
            format!(
                "the volumes are served here, and taking their history back needs the gateway ({error}): it goes on by itself when that is there; \
                 `farside failback {group} --abort` gives it up, and serves them on, fenced"
            )
        });
    }
}

/// What a person is told whose disks are at no point, while the gateway is away.
pub(super) fn lacks_the_rest(group: &Name, course: &Course) -> String {
    // † What was overwritten once the branch was whole is put back by nobody.
    let abort = match course.ending_if_aborted() {
        Some(Ending::PutBack { .. }) => "puts back what was kept of them (farside branch list)",
        Some(Ending::AsTheyAre { .. }) => "serves them as they are",
        None => "waits for that, too",
    };
    format!(
        "the disks are in the middle of a point, or not all at it, and the failback is not finished before the gateway has given the rest: it goes on by itself when \
         that is there; `farside failback {group} --abort` {abort}"
    )
}

/// What ends the keeping of what only the disks hold, where that does not go on.
pub(super) fn ends_keeping(group: &Name, course: &Course) -> String {
    let discard = format!("to keep no more of what only these disks hold: farside failback {group} --discard-branch");
    let as_they = match course.ending_if_aborted().filter(|_| !course.abort) {
        Some(Ending::PutBack { .. }) => "to have the disks as they were",
        // † Not a byte was written: they may be the only copy, and need not be given up.
        Some(Ending::AsTheyAre { .. }) => "to have the disks served as they are",
        None => return discard,
    };
    format!("{as_they}: farside failback {group} --abort; {discard}")
}

/// What a person is told whose disks are newer than the store.
pub(super) fn store_is_older(group: &Name, at: Slot, newest: Slot) -> String {
    format!(
        "the disks are point {at}, and the newest point to be had is {newest}, or another one of that number: the store of the gateway was put back to an \
         older one, or points were removed. The disks may be the only copy of what came after it, and nothing of them is overwritten. Have the newer store \
         back; or `farside failback {group} --finish --force` serves the disks as they are; or `farside failback {group} --accept-disks` goes on with what the \
         store has, if the gateway can say what to keep the rest over, and keeps what only the disks hold as a branch (unless --discard-branch was said); \
         after that only --abort serves them as they are"
    )
}

/// What a person is told whose disks are served already, and whose gateway does not have the point that they are, as `why` says.
pub(super) fn served_are_refused(group: &Name, why: &str) -> String {
    format!(
        "the history of group {group} is not taken back ({why}). If the store was put back: its disks are served already, so --finish --force and \
         --accept-disks change nothing; to take back what the store has by now, with the disks as they are: farside failback {group} --abort, then farside \
         rollback {group}"
    )
}

/// Whether a paused volume has its history back from the promotion that was shown. `claimed`: under which generation it was claimed last, as its folder says.
/// † That it is paused says nothing: its ledger may not have been asked since it is served again.
pub(super) fn is_back_though_paused(claimed: Option<Generation>, shown: u64) -> bool {
    claimed > Some(Generation(shown))
}

/// What a person is told who paused a volume before it had its history back.
pub(super) fn is_paused(group: &Name, volume: &Name) -> String {
    format!(
        "volume {volume} is paused, and its history is not known to be taken back: farside volume resume {volume}, or farside failback {group} --abort"
    )
}

#[cfg(test)]
mod tests {
    use farside_region::{LedgerPosition, RecordDigest};
    use farside_replication::failback::{At, Branch, Kept, Stage};

    use super::*;

    /// Where the gateway has forgotten the failover, too, it cannot say over what to keep a branch.
    #[test]
    fn disks_that_are_untouched_need_not_be_given_up() {
        let group: Name = "db".parse().expect("a name");
        let at = At { position: LedgerPosition { slot: Slot(11), digest: RecordDigest([7; 32]) }, wall_ms: 0 };
        let mut course = Course::new(Branch::Wanted { base: Some(at.clone()) });
        let says = ends_keeping(&group, &course);
        assert!(says.starts_with("to have the disks served as they are: farside failback db --abort; "), "{says}");
        course.stage = Stage::Held { at: None, applying: Some(at) };
        assert!(!ends_keeping(&group, &course).contains("--abort"));
    }

    /// Nobody takes a paused volume's history back, and whoever waited was told that it was done.
    #[test]
    fn a_paused_volume_is_back_once_it_was_claimed_above_the_promotion() {
        for (claimed, back) in [(None, false), (Some(1), false), (Some(2), false), (Some(3), true)] {
            assert_eq!(is_back_though_paused(claimed.map(Generation), 2), back, "{claimed:?}");
        }
    }

    #[test]
    fn what_is_served_is_told_what_ends_it() {
        let group: Name = "db".parse().expect("a name");
        let says = served_are_refused(&group, &store_is_older(&group, Slot(11), Slot(10)));
        let (_, way_out) = says.rsplit_once("change nothing").expect("what does not help");
        assert!(way_out.contains("farside failback db --abort, then farside rollback db"), "{says}");
    }

    #[test]
    fn only_what_can_be_put_back_is_said_to_be() {
        let (group, id): (Name, Name) = ("db".parse().expect("a name"), "b".parse().expect("a name"));
        let over = At { position: LedgerPosition { slot: Slot(7), digest: RecordDigest([7; 32]) }, wall_ms: 0 };
        let is_said = |branch: Branch, applying: bool, words: &str| {
            let stage = Stage::Held { at: None, applying: applying.then(|| over.clone()) };
            let says = lacks_the_rest(&group, &Course { stage, ..Course::new(branch) });
            assert!(says.contains(&format!("--abort` {words}")), "{says}");
        };
        let kept = |is| Branch::Kept { id: id.clone(), over: over.clone(), is };
        let wanted = || Branch::Wanted { base: None };
        is_said(kept(Kept::Revertible), true, "puts back");
        for branch in [kept(Kept::Whole), kept(Kept::Mixed), Branch::Discarded, Branch::None, wanted()] {
            is_said(branch, true, "waits for that, too");
        }
        // Not a byte was written yet.
        for branch in [Branch::Discarded, Branch::None, wanted()] {
            is_said(branch, false, "serves them as they are");
        }
    }
}
