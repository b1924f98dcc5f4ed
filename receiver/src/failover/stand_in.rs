//! Who publishes in place of a source that was failed over.
//!
//! Invariant: † a host that takes the place of another one that has published goes on with its own disks, and what that one wrote is in points alone:
//! the newest of them that is whole is pinned before the other may publish. It is a pin as people make them: they let go of it. What is staged then, and
//! not yet in a bucket, comes above it.

use farside_control::failover::FailoverRequest;
use farside_control::{ApiError, ErrorCode, PointId};
use farside_region::Name;
use farside_store::GroupNames;

use super::{ANSWER, Failover, Failovers, Stage};
use crate::group::{DiscardAsk, GroupHandle, Mail, PointChange};
use crate::process::Receiver;
use crate::rollback;

/// The host that is to stand in, if one was named: another than the source, and paired.
pub(super) fn wanted(receiver: &Receiver, names: &GroupNames, request: &FailoverRequest) -> Result<Option<Name>, ApiError> {
    let Some(wanted) = &request.stand_in else { return Ok(None) };
    let known = receiver.book.sources().into_iter().map(|source| source.name).find(|name| name.as_str() == wanted);
    let what = "pair it first: `farside-receiver token`, then `farside pair` on it; `farside status` here shows those that are";
    let known = known.ok_or_else(|| ApiError::not_found("source", wanted, what))?;
    if known == names.source {
        let message = format!("{known} is the source itself");
        return Err(ApiError::new(ErrorCode::BadRequest, message, "name the host that has the copy now"));
    }
    Ok(Some(known))
}

impl Failovers {
    /// That host may publish in place of the source from here on, and no other.
    ///
    /// # Errors
    /// When what the one before it published cannot be pinned, unless it is `forced`; when it cannot be noted.
    pub(super) fn let_stand_in(
        &self,
        receiver: &Receiver,
        group: &GroupHandle,
        (known, stand_in): (&Failover, Name),
        forced: bool,
    ) -> Result<(), ApiError> {
        let names = group.names();
        let pin = || match pin_what_was_written(receiver, group, known, &stand_in) {
            Err(error) if forced => {
                tracing::warn!(group = %names, %error, "what a stand-in published that is replaced is not pinned, as it was said");
                Ok(None)
            }
            pinned => pinned,
        };
        let before = pin().map_err(|error| {
            let message = format!("what was published of {names} before {stand_in} cannot be pinned: {}", error.message);
            ApiError::new(error.code, message, "mend that, and say the same again; or --force, to go on without")
        })?;
        self.change(receiver, names, |known| known.stand_in = Some(stand_in.clone()))?;
        // If the group is gone, so are its sessions.
        let _ = receiver.runtime.block_on(group.tell(Mail::StandIn));
        // What came until it was let go of is newer. † First the one, and then not the other.
        let after = pin().map_err(|error| {
            let message = format!(
                "{stand_in} stands in for {names} now, and what came last before that may not be pinned: {}",
                error.message
            );
            ApiError::new(error.code, message, "`farside point list` shows it; farside point pin keeps it")
        })?;
        if let (Some((point, reason)), Some((newest, _))) = (before, after)
            && newest != point
        {
            receiver.runtime.block_on(group.change(point, PointChange::Unpin { only: reason }))?;
        }
        Ok(())
    }
}

/// What a rollback would discard that came now is pinned, and why.
fn pin_what_was_written(
    receiver: &Receiver,
    group: &GroupHandle,
    known: &Failover,
    next: &Name,
) -> Result<Option<(PointId, String)>, ApiError> {
    let (Some(former), Stage::Promoted { .. }) = (&known.stand_in, known.stage) else { return Ok(None) };
    let unknown = |why: String| ApiError::new(ErrorCode::Unavailable, why, "try again");
    let late = |_| Err("its store does not answer yet".to_owned());
    let ask = DiscardAsk { asker: group.names().source.clone(), volumes: Vec::new() };
    let look = async { tokio::time::timeout(ANSWER, rollback::look(group, ask)).await.unwrap_or_else(late) };
    let discards = receiver.runtime.block_on(look).map_err(unknown)?;
    let Some(point) = discards.point_id() else {
        return match discards.points {
            0 => Ok(None),
            points => Err(unknown(format!("none of the {points} points that {former} published is whole"))),
        };
    };
    let reason = format!("stand-in, generation {}: what was written before {next} took the place of {former}", known.generation);
    receiver.runtime.block_on(group.change(point, PointChange::Pin { reason: reason.clone() }))?;
    tracing::warn!(group = %group.names(), %point, "what a stand-in published that is replaced is pinned");
    Ok(Some((point, reason)))
}
