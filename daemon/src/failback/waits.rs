//! For what a failback waits that only the gateway has. It goes on by itself when that is there; whoever watches need not.

use farside_control::source::Connection;
use farside_region::{Generation, Name, Slot};
use farside_replication::failback::{Branch, Kept};

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
pub(super) fn lacks_the_rest(group: &Name, branch: &Branch) -> String {
    // † What was overwritten once the branch was whole is put back by nobody.
    let abort = match branch {
        Branch::Kept { is: Kept::Revertible, .. } => "puts back what was kept of them (farside branch list)",
        Branch::Wanted { .. } => "gives it up",
        _ => "waits for that, too",
    };
    format!(
        "the disks are in the middle of a point, or not all at it, and cannot be served before the gateway has given the rest: it goes on by itself when \
         that is there; `farside failback {group} --abort` {abort}"
    )
}

/// What a person is told whose disks are newer than the store.
pub(super) fn store_is_older(group: &Name, at: Slot, newest: Slot) -> String {
    format!(
        "the disks are point {at}, and the newest point to be had is {newest}, or another one of that number: the store of the gateway was put back to an \
         older one, or points were removed. The disks may be the only copy of what came after it, and nothing of them is overwritten. Have the newer store \
         back; or `farside failback {group} --finish --force` serves the disks as they are; or `farside failback {group} --accept-disks` goes on with what the \
         store has, and keeps what only the disks hold as a branch (unless --discard-branch was said)"
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
    use farside_replication::failback::At;

    use super::*;

    /// Nobody takes a paused volume's history back, and whoever waited was told that it was done.
    #[test]
    fn a_paused_volume_is_back_once_it_was_claimed_above_the_promotion() {
        for (claimed, back) in [(None, false), (Some(1), false), (Some(2), false), (Some(3), true)] {
            assert_eq!(is_back_though_paused(claimed.map(Generation), 2), back, "{claimed:?}");
        }
    }

    #[test]
    fn only_what_can_be_put_back_is_said_to_be() {
        let (group, id): (Name, Name) = ("db".parse().expect("a name"), "b".parse().expect("a name"));
        let over = At { position: LedgerPosition { slot: Slot(7), digest: RecordDigest([7; 32]) }, wall_ms: 0 };
        let says = |branch: &Branch| lacks_the_rest(&group, branch).contains("puts back");
        let kept = |is| Branch::Kept { id: id.clone(), over: over.clone(), is };
        assert!(says(&kept(Kept::Revertible)));
        assert!(!says(&kept(Kept::Whole)) && !says(&kept(Kept::Mixed)) && !says(&Branch::Discarded) && !says(&Branch::None));
    }
}
