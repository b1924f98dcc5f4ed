//! What is said about points, pins and that they were verified: records in the ledger, and an answer when they are judged.

use std::time::Instant;

use farside_control::{ApiError, ErrorCode, HOLD_REASONS, PointId};
use farside_ledger::{Body, Pin, Unpin, Verdict, Verified, VoidReason};
use farside_region::Slot;
use farside_replication::target::AppendOutcome;
use farside_store::PointInfo;
use tokio::sync::oneshot;

use super::{Group, Place, PointChange};
use crate::{failover, pull, schedule};

/// Pins of one point; more are no use to anybody.
const PINS_MAX: usize = 64;

/// Something about a point, on its way into the ledger.
pub(super) struct Changing {
    point: PointId,
    /// Its records: the first of them.
    first: u64,
    /// Pins are withdrawn by it.
    withdraws: bool,
    trouble: Option<ApiError>,
    reply: oneshot::Sender<Result<PointInfo, ApiError>>,
}

/// Whether a reason is the gateway's own. † What lies over such a point, or stands on it, is worth nothing without it.
fn is_own(reason: &str) -> bool {
    reason == schedule::PIN_REASON || [failover::PIN_REASONS, pull::PIN_REASONS].iter().any(|own| reason.starts_with(own))
}

/// Whether a reason is that of a legal hold. † Nothing ends one but its release: neither what withdraws all pins, nor what withdraws one by its name.
fn is_hold(reason: &str) -> bool {
    reason.starts_with(HOLD_REASONS)
}

fn unpin(pins: Vec<(Slot, String)>, is_meant: impl Fn(&String) -> bool) -> Vec<Body> {
    pins.into_iter().filter(|(_, reason)| is_meant(reason)).map(|(pin, _)| Body::Unpin(Unpin { pin })).collect()
}

fn no_such_hold(point: PointId, case: &str, pins: &[(Slot, String)]) -> ApiError {
    let held: Vec<&str> = pins.iter().filter_map(|(_, reason)| reason.strip_prefix(HOLD_REASONS)).collect();
    let hint = match held[..] {
        [] => "it is under no legal hold; `farside point show` shows what keeps it".to_owned(),
        _ => format!("it is held for {}", held.join(", ")),
    };
    ApiError::not_found("legal hold", &format!("{case}` of point `{point}"), hint)
}

/// What makes it so. `is_withdrawn`: what withdraws a pin may be on its way. † A pin that it withdraws is there still, and keeps nothing.
fn bodies_for(point: PointId, change: PointChange, pins: Vec<(Slot, String)>, is_withdrawn: bool) -> Result<Vec<Body>, ApiError> {
    let is_there = |reason: &String| !is_withdrawn && pins.iter().any(|(_, known)| known == reason);
    Ok(match change {
        PointChange::Unpin { only } => unpin(pins, |reason| *reason == only),
        PointChange::UnpinFor { all } => unpin(pins, |reason| !is_hold(reason) && (all || !is_own(reason))),
        PointChange::Release { case } => {
            let released = unpin(pins.clone(), |reason| reason.strip_prefix(HOLD_REASONS) == Some(&case));
            if released.is_empty() {
                return Err(no_such_hold(point, &case, &pins));
            }
            released
        }
        PointChange::Verified { how } => vec![Body::Verified(Verified { point: Slot(point.slot), how })],
        PointChange::Pin { reason } | PointChange::OwnPin { reason } if is_there(&reason) => Vec::new(),
        PointChange::Pin { .. } if pins.len() >= PINS_MAX => {
            let message = format!("point {point} has {PINS_MAX} pins, which is enough to keep it");
            let what = "farside point unpin withdraws those that people asked for";
            return Err(ApiError::new(ErrorCode::Conflict, message, what));
        }
        PointChange::Pin { reason } | PointChange::OwnPin { reason } => vec![Body::Pin(Pin { point: Slot(point.slot), reason })],
    })
}

impl Group {
    /// Submits what makes it so.
    pub(super) fn change(&mut self, point: PointId, change: PointChange, reply: oneshot::Sender<Result<PointInfo, ApiError>>) {
        let pins = match self.pinned(point) {
            Ok(info) if info.degraded && matches!(change, PointChange::Verified { .. }) => {
                let message = format!(
                    "point {point} is degraded: its source could not read all of it, so it is not put on record as verified"
                );
                return drop(reply.send(Err(ApiError::new(ErrorCode::Conflict, message, "verify one that is not degraded"))));
            }
            Ok(info) => info.pins,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let in_doubt = self.is_bucket() && self.unpin_in_doubt;
        let is_withdrawn = in_doubt || self.changing.values().any(|changing| changing.point == point && changing.withdraws);
        let bodies = match bodies_for(point, change, pins, is_withdrawn) {
            Ok(bodies) => bodies,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if bodies.is_empty() {
            return drop(reply.send(self.pinned(point)));
        }
        let first = self.submitted + 1;
        let withdraws = bodies.iter().any(|body| matches!(body, Body::Unpin(_)));
        bodies.into_iter().for_each(|body| self.submit(body));
        self.changing.insert(self.submitted, Changing { point, first, withdraws, trouble: None, reply });
    }

    /// Nobody hears any more what comes of what was submitted.
    pub(super) fn forget_changes(&mut self) {
        self.unpin_in_doubt |= self.changing.values().any(|changing| changing.withdraws);
        self.changing.clear();
    }

    /// A point of this group.
    fn pinned(&self, point: PointId) -> Result<PointInfo, ApiError> {
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => {
                return Err(ApiError::new(ErrorCode::Unavailable, words, "try again when the store answers again"));
            }
        };
        let info = here.store.point(Slot(point.slot)).filter(|info| PointId::new(info.slot.0, &info.digest.0) == point);
        let info = info.map(|mut info| {
            self.found().strip(&mut info);
            info
        });
        info.ok_or_else(|| ApiError::not_found("point", &point.to_string(), "`farside point list` shows those that are kept"))
    }

    /// What was submitted has its verdict.
    pub(super) fn submitted(&mut self, submission: u64, outcome: AppendOutcome) {
        if self.merge_submitted(submission, &outcome) {
            return;
        }
        self.prune.under_way.take_if(|under_way| *under_way == submission);
        let trouble = match outcome {
            AppendOutcome::Judged { records } => match records.first() {
                Some((_, Verdict::Void(reason))) if !matches!(reason, VoidReason::NoSuchPin(_)) => {
                    Some((ErrorCode::Conflict, reason.to_string()))
                }
                _ => None,
            },
            AppendOutcome::Failed { text } | AppendOutcome::Unusable { text, .. } => Some((ErrorCode::Unavailable, text)),
            // It is planned anew.
            AppendOutcome::Withdrawn { .. } => None,
            AppendOutcome::Collided => unreachable!("a collision is retried"),
        };
        let Some((&last, changing)) = self.changing.range_mut(submission..).next().filter(|(_, c)| c.first <= submission) else {
            if let Some((ErrorCode::Unavailable, text)) = trouble {
                tracing::warn!(group = %self.names, %text, "nothing was pruned");
                (self.prune.due, self.prune.last) = (true, Some(Instant::now()));
            }
            return;
        };
        if let Some((code, text)) = trouble {
            // A service that did not answer may carry it out all the same, until the next record is there.
            self.unpin_in_doubt |= changing.withdraws && code == ErrorCode::Unavailable;
            changing.trouble = Some(ApiError::new(code, text, "see `farside status` on this gateway"));
        }
        if submission < last {
            return;
        }
        let done = self.changing.remove(&last).expect("it was just found");
        let answer = done.trouble.map_or_else(|| self.pinned(done.point), Err);
        let _ = done.reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody withdrew a legal hold, saw that he was wrong, and was told that it stands: the release landed after that.
    #[test]
    fn a_pin_that_is_being_withdrawn_does_not_stand_for_the_same_one_asked_for_again() {
        let point = PointId::new(5, &[1; 32]);
        for reason in ["", "legal hold: 7"] {
            let bodies = |is_withdrawn| {
                let change = PointChange::Pin { reason: reason.to_owned() };
                bodies_for(point, change, vec![(Slot(6), reason.to_owned())], is_withdrawn).expect("there is room")
            };
            assert!(bodies(false).is_empty(), "it is there");
            assert!(matches!(&bodies(true)[..], [Body::Pin(pin)] if pin.point == Slot(5) && pin.reason == reason));
        }
    }
}
