//! How a failover is shown.

use farside_control::Code;
use farside_control::failover::{FailoverMember, FailoverStage, FailoverStatus, LeftOut};
use farside_region::Name;

use super::{Failover, Stage};
use crate::group::{GroupHandle, PromotionLook};
use crate::process::Receiver;

/// With what its group says.
pub(super) fn show(receiver: &Receiver, group: &GroupHandle, failover: &Failover, look: &PromotionLook) -> FailoverStatus {
    let view = group.view();
    // † Of a source that is fenced already it says nothing that it is there: another host is alive, or not.
    let is_fenced = failover.before.as_ref().is_some_and(|before| look.generation.0 <= before.generation);
    let (host, silent, connected_from) = match view.heard_beside(Some(&failover.source).filter(|_| is_fenced)) {
        Some((host, silent, from)) => (Some(host), Some(silent), from),
        None => (None, None, None),
    };
    let stood_in = || failover.before.as_ref().and_then(|before| before.stand_in.clone());
    let fences = host.filter(|_| connected_from.is_some()).or_else(stood_in).filter(|_| failover.stage == Stage::Fencing);
    let fences = fences.unwrap_or_else(|| failover.source.clone());
    let is_over = failover.is_taken_back(look);
    let point = look.point.as_ref();
    let member = |(volume, bytes): &(String, u64)| {
        let follower = receiver.followers.of_volume(group.names(), volume, failover.generation);
        FailoverMember {
            volume: volume.clone(),
            bytes: *bytes,
            target: follower.as_ref().map(|one| one.target.clone()),
            state: follower.as_ref().map(|one| one.state),
            in_doubt: follower
                .as_ref()
                .is_some_and(|one| one.reasons.iter().any(|reason| reason.code == Code::FollowerInDoubt.word())),
            follower: follower.map(|one| one.name),
        }
    };
    let alone = shown_alone(failover);
    FailoverStatus {
        stage: if is_over { FailoverStage::Over } else { alone.stage },
        point: point.map(|point| point.shown.clone()),
        degraded: point.is_some_and(|point| point.degraded),
        damaged: point.and_then(|point| point.damaged.clone()),
        aside: point.is_some_and(|point| point.is_aside),
        newest: look.newest.clone(),
        published_since: failover
            .newest_before()
            .is_some_and(|before| look.newest.as_ref().is_some_and(|newest| newest.id.slot > before.0)),
        lag_ms: view.lag_ms(),
        fences: Some(fences.to_string()),
        silent_ms: silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        waits_ms: look
            .waits
            .filter(|_| failover.stage == Stage::Fencing && !failover.claimed && !failover.forced && failover.came_back.is_none())
            .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        // † After a failover it is another host whose word would count.
        all_published: look.all_published
            && connected_from.is_none()
            && failover.stage == Stage::Fencing
            && failover.before.is_none()
            && look.newest == point.map(|point| point.shown.clone()),
        connected_from,
        members: point.iter().flat_map(|point| &point.members).map(member).collect(),
        left_out: look
            .left_out
            .iter()
            .map(|(volume, newest)| LeftOut { volume: volume.clone(), newest: newest.clone() })
            .collect(),
        ..alone
    }
}

/// As far as its note says.
pub(super) fn shown_alone(failover: &Failover) -> FailoverStatus {
    FailoverStatus {
        source: failover.source.to_string(),
        group: failover.group.to_string(),
        stage: match failover.stage {
            Stage::Fencing => FailoverStage::Fencing,
            Stage::Fenced { .. } => FailoverStage::Fenced,
            Stage::Promoted { .. } => FailoverStage::Promoted,
        },
        generation: failover.generation,
        forced: failover.forced,
        committed: failover.settled,
        stand_in: failover.stand_in.as_ref().map(Name::to_string),
        ..FailoverStatus::default()
    }
}
