//! Pins of points, as the API wants them: records in the ledger, and an answer when they are judged.

use farside_control::{ApiError, ErrorCode, PointId};
use farside_ledger::{Body, Pin, Unpin, Verdict, VoidReason};
use farside_region::Slot;
use farside_replication::target::AppendOutcome;
use farside_store::PointInfo;
use tokio::sync::oneshot;

use super::{Group, PinChange, Place};

/// Pins of one point; more are no use to anybody.
const PINS_MAX: usize = 64;

/// A change of a point's pins, on its way into the ledger.
pub(super) struct Pinning {
    point: PointId,
    /// Its records: the first of them.
    first: u64,
    trouble: Option<ApiError>,
    reply: oneshot::Sender<Result<PointInfo, ApiError>>,
}

impl Group {
    /// Submits what makes the pins of a point so.
    pub(super) fn pin(&mut self, point: PointId, change: PinChange, reply: oneshot::Sender<Result<PointInfo, ApiError>>) {
        let pins = match self.pinned(point) {
            Ok(info) => info.pins,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let bodies: Vec<Body> = match change {
            PinChange::Unpin => pins.into_iter().map(|(pin, _)| Body::Unpin(Unpin { pin })).collect(),
            PinChange::Pin { reason } if pins.iter().any(|(_, known)| *known == reason) => Vec::new(),
            PinChange::Pin { .. } if pins.len() >= PINS_MAX => {
                let message = format!("point {point} has {PINS_MAX} pins, which is enough to keep it");
                return drop(reply.send(Err(ApiError::new(
                    ErrorCode::Conflict,
                    message,
                    "farside point unpin withdraws them all",
                ))));
            }
            PinChange::Pin { reason } => vec![Body::Pin(Pin { point: Slot(point.slot), reason })],
        };
        if bodies.is_empty() {
            return drop(reply.send(self.pinned(point)));
        }
        let first = self.submitted + 1;
        bodies.into_iter().for_each(|body| self.submit(body));
        self.pinning.insert(self.submitted, Pinning { point, first, trouble: None, reply });
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
        info.ok_or_else(|| ApiError::not_found("point", &point.to_string(), "`farside point list` shows those that are kept"))
    }

    /// What was submitted has its verdict.
    pub(super) fn submitted(&mut self, submission: u64, outcome: AppendOutcome) {
        let trouble = match outcome {
            AppendOutcome::Judged { verdict: Verdict::Accepted | Verdict::Void(VoidReason::NoSuchPin(_)), .. } => None,
            AppendOutcome::Judged { verdict: Verdict::Void(reason), .. } => Some((ErrorCode::Conflict, reason.to_string())),
            AppendOutcome::Failed { text } | AppendOutcome::Unusable { text, .. } => Some((ErrorCode::Unavailable, text)),
            AppendOutcome::Collided => unreachable!("a collision is retried"),
        };
        let Some((&last, pinning)) = self.pinning.range_mut(submission..).next().filter(|(_, p)| p.first <= submission) else {
            if let Some((ErrorCode::Unavailable, text)) = trouble {
                tracing::warn!(group = %self.names, %text, "nothing was pruned");
                self.prune.due = true;
            }
            return;
        };
        if let Some((code, text)) = trouble {
            pinning.trouble = Some(ApiError::new(code, text, "see `farside status` on this gateway"));
        }
        if submission < last {
            return;
        }
        let done = self.pinning.remove(&last).expect("it was just found");
        let answer = done.trouble.map_or_else(|| self.pinned(done.point), Err);
        let _ = done.reply.send(answer);
    }
}
