//! What the groups say of themselves.
//!
//! Invariant: a group whose control thread does not answer, perhaps since a disk hangs, keeps what the others say from nobody. Whoever decides
//! something about one group asks that one alone, and waits for it: what is not known then is not taken for what is not there.

use std::collections::BTreeSet;
use std::time::Duration;

use farside_control::source::{BackingStatus, GroupStatus, TapStatus, VolumeState, VolumeStatus};
use farside_control::{Code, Reason, Severity};
use farside_region::Name;
use tokio::sync::oneshot;

use super::Daemon;
use super::volumes::{Unserved, not_served};
use crate::config::VolumeConfig;
use crate::group::Ask;
use crate::locked;

/// How long whoever wants to see all groups waits for them. The receiver waits less (`SHOW`): it has a picture to show instead.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What they said.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) groups: Vec<GroupStatus>,
    /// Of those without a volume that is served only whether they are connected, and why not, is of interest.
    pub(super) without_volumes: Vec<GroupStatus>,
    /// Those that did not answer in time.
    pub(super) silent: Vec<Name>,
}

impl Daemon {
    /// What all groups say, asked at once, within that time.
    pub(super) async fn told_within(&self, within: Duration) -> Told {
        let until = tokio::time::Instant::now() + within;
        let asked: Vec<_> =
            self.group_names().into_iter().filter_map(|name| self.ask_for_status(&name).map(|answer| (name, answer))).collect();
        let mut told = Told::default();
        for (name, answer) in asked {
            // An answer that is there counts, whatever the time is.
            match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(status)) if has_volumes(&status) => told.groups.push(status),
                Ok(status) => told.without_volumes.extend(status.ok()),
                Err(_) => told.silent.push(name),
            }
        }
        told
    }

    /// What one group says, however long that takes it.
    pub(crate) async fn status_of(&self, group: &Name) -> Option<GroupStatus> {
        self.ask_for_status(group)?.await.ok().filter(has_volumes)
    }

    /// A volume that is served or configured. Other groups are not asked.
    pub(crate) async fn volume_named(&self, name: &str) -> Option<VolumeStatus> {
        if let Ok((name, group, _)) = self.find(name)
            && let Some(volume) = self.served_volume(&group, &name).await
        {
            return Some(volume);
        }
        self.untold(&[], &[]).into_iter().find(|volume| volume.name == name)
    }

    /// Volumes that are configured and of which these groups, which were asked before, do not tell: each with its reason. What is
    /// opened or closed meanwhile is here, or there, and never missing; so is what is served, and whose group is among those that are `silent`.
    pub(crate) fn untold(&self, groups: &[GroupStatus], silent: &[String]) -> Vec<VolumeStatus> {
        let configured = locked(&self.config).volumes.clone();
        let told: BTreeSet<&str> = groups.iter().flat_map(|group| &group.volumes).map(|volume| volume.name.as_str()).collect();
        let volumes = configured.into_values().filter(|v| !told.contains(v.name.as_str()));
        let why = |name: &Name| match self.is_stopping() && self.volumes.is_served(name) {
            true => Some(Unserved::Closing),
            false => self.around.unkept.why(name).map(Unserved::Unkept).or_else(|| self.volumes.why_untold(name)),
        };
        let is_unknown =
            |v: &VolumeConfig| self.volumes.is_served(&v.name) && silent.iter().any(|group| *group == v.group.as_str());
        let reason = |v: &VolumeConfig| match is_unknown(v) {
            true => is_silent(v.group.as_str()),
            false => not_served(&v.name, why(&v.name).as_ref(), self.state.path()),
        };
        volumes
            .map(|v| VolumeStatus {
                state: VolumeState::NotServed,
                reasons: vec![reason(&v)],
                tap: TapStatus { address: v.address(), ..TapStatus::default() },
                if_absent: v.if_absent,
                id: self.id_of(&v).to_string(),
                group: v.group.to_string(),
                name: v.name.to_string(),
                backing: BackingStatus { path: v.backing, ..BackingStatus::default() },
                ..VolumeStatus::default()
            })
            .collect()
    }

    fn ask_for_status(&self, group: &Name) -> Option<oneshot::Receiver<GroupStatus>> {
        let (reply, answer) = oneshot::channel();
        self.tell(group, Ask::Status(reply)).ok()?;
        Some(answer)
    }
}

/// A group whose last volume was removed has nothing to say.
fn has_volumes(status: &GroupStatus) -> bool {
    !status.volumes.is_empty()
}

/// Said of a group that did not answer in time.
pub(super) fn is_silent(group: &str) -> Reason {
    let what = format!("group {group} did not answer within {} s: how its volumes are is not known", ANSWER_WITHIN.as_secs());
    let todo = "see whether the disk of the state directory hangs: journalctl -k | tail. After a minute and a half systemd starts farsided again";
    Reason::new(Severity::Warning, Code::GroupSilent, what, todo)
}
