//! Who publishes in place of a source that was failed over.
//!
//! Invariant: † a host that takes the place of another one that has published goes on with its own disks, and what that one wrote is in points alone:
//! the newest of them that is whole is pinned before the other may publish. It is a pin as people make them: they let go of it.

use farside_control::failover::FailoverRequest;
use farside_control::{ApiError, ErrorCode, PointId};
use farside_region::{Name, Slot};
use farside_store::GroupNames;

use super::{Failover, Failovers, Stage, look_for};
use crate::group::{GroupHandle, Mail, PointChange, Wanted};
use crate::process::Receiver;

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
        let pin = || match pin_what_was_written(receiver, group, known, &stand_in) {
            Err(error) if forced => {
                tracing::warn!(group = %group.names(), %error, "what a stand-in published that is replaced is not pinned, as it was said");
                Ok(None)
            }
            pinned => pinned,
        };
        let before = pin()?;
        self.change(receiver, group.names(), |known| known.stand_in = Some(stand_in.clone()))?;
        // If the group is gone, so are its sessions.
        let _ = receiver.runtime.block_on(group.tell(Mail::StandIn));
        // What came until it was let go of is newer. † First the one, and then not the other.
        let after = pin()?;
        if let (Some((point, reason)), Some((newest, _))) = (before, after)
            && newest != point
        {
            receiver.runtime.block_on(group.change(point, PointChange::Unpin { only: reason }))?;
        }
        Ok(())
    }
}

/// The newest whole point that whoever stood in until now has published, and why it is pinned.
fn pin_what_was_written(
    receiver: &Receiver,
    group: &GroupHandle,
    known: &Failover,
    next: &Name,
) -> Result<Option<(PointId, String)>, ApiError> {
    let (Some(former), Stage::Promoted { .. }) = (&known.stand_in, known.stage) else { return Ok(None) };
    let look = match look_for(receiver, group, Wanted::NewestWith { members: Vec::new(), takes_degraded: false }) {
        Err(error) if error.code == ErrorCode::NotFound => return Ok(None),
        look => look?,
    };
    let since = |point: Slot| Some(point) > known.newest_before();
    let Some(point) = look.point.filter(|point| !point.degraded && since(point.slot)) else { return Ok(None) };
    let (id, generation) = (point.shown.id, known.generation);
    let reason = format!("stand-in, generation {generation}: what {former} wrote before {next} took its place");
    receiver.runtime.block_on(group.change(id, PointChange::Pin { reason: reason.clone() }))?;
    tracing::warn!(group = %group.names(), point = %id, "what a stand-in published that is replaced is pinned");
    Ok(Some((id, reason)))
}
