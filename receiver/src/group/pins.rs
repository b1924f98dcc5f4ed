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
        let bodies: Vec<Body> = match change {
            PointChange::Unpin { only } => unpin(pins, |reason| *reason == only),
            PointChange::UnpinFor { all } => unpin(pins, |reason| !is_hold(reason) && (all || !is_own(reason))),
            PointChange::Release { case } => {
                let released = unpin(pins.clone(), |reason| reason.strip_prefix(HOLD_REASONS) == Some(&case));
                if released.is_empty() {
                    return drop(reply.send(Err(no_such_hold(point, &case, &pins))));
                }
                released
            }
            PointChange::Verified { how } => vec![Body::Verified(Verified { point: Slot(point.slot), how })],
            PointChange::Pin { reason } | PointChange::OwnPin { reason } if pins.iter().any(|(_, known)| *known == reason) => {
                Vec::new()
            }
            PointChange::Pin { .. } if pins.len() >= PINS_MAX => {
                let message = format!("point {point} has {PINS_MAX} pins, which is enough to keep it");
                return drop(reply.send(Err(ApiError::new(
                    ErrorCode::Conflict,
                    message,
                    "farside point unpin withdraws those that people asked for",
                ))));
            }
            PointChange::Pin { reason } | PointChange::OwnPin { reason } => {
                vec![Body::Pin(Pin { point: Slot(point.slot), reason })]
            }
        };
        if bodies.is_empty() {
            return drop(reply.send(self.pinned(point)));
        }
        let first = self.submitted + 1;
        bodies.into_iter().for_each(|body| self.submit(body));
        self.changing.insert(self.submitted, Changing { point, first, trouble: None, reply });
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
        let trouble = match outcome {
            AppendOutcome::Judged { records } => match records.first() {
                Some((_, Verdict::Void(reason))) if !matches!(reason, VoidReason::NoSuchPin(_)) => {
                    Some((ErrorCode::Conflict, reason.to_string()))
                }
                _ => None,
            },
            AppendOutcome::Failed { text } | AppendOutcome::Unusable { text, .. } => Some((ErrorCode::Unavailable, text)),
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
