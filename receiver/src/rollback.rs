//! Rollbacks: a host that was failed over goes on with its own disks, and what another one published in its place is pinned before that.
//!
//! Invariant: of each failover one point is pinned for it, the newest that is whole of what is discarded; said again, or when the failover ends, the pin goes
//! with that point, and is nowhere for no moment in between. It is a pin as people make them: they let go of it.
//!
//! Which point that is, the group's thread knows. Not here: how a history is taken back, which is the host's claim alone.

use farside_control::{ApiError, ErrorCode};
use farside_region::{Generation, Name, VolumeId};
use farside_wire::{RollBackAnswer, RollBackAsk, RollBackPoint};
use tokio::sync::oneshot;

use crate::group::{DiscardAsk, Discards, GroupHandle, Mail, PointChange, gone_for_good};
use crate::process::Receiver;

/// What the reasons of the pins for one failover begin with.
pub(crate) fn pin_reasons(generation: Generation) -> String {
    format!("rollback, generation {generation}: ")
}

fn pin_reason(discards: &Discards, source: &Name) -> String {
    let by = discards.other.as_ref().and_then(|other| other.name.as_ref());
    let by = by.map_or_else(|| "another host".to_owned(), Name::to_string);
    let reasons = pin_reasons(discards.generation);
    format!("{reasons}what {by} wrote after the failover, from before {source} was rolled back")
}

/// Answers that host.
///
/// # Errors
/// For that host, in words.
pub(crate) async fn answer(
    receiver: &Receiver,
    group: &GroupHandle,
    (asker, volumes): (&Name, &[VolumeId]),
    asked: &RollBackAsk,
) -> Result<RollBackAnswer, String> {
    if let Some(winner) = receiver.failovers.committed(group.names()).filter(|_| *asker == group.names().source) {
        return Err(gone_for_good(group.names(), &winner));
    }
    let discards = look(group, DiscardAsk { asker: asker.clone(), volumes: volumes.to_vec() }).await?;
    // † What such a host discards is of another claim, its own perhaps: as if the failover were forgotten already.
    if discards.is_over {
        return Err(format!(
            "no failover of {} is known here but one whose history was taken back: nobody can tell what was published since",
            group.names()
        ));
    }
    let point = discards.point_id();
    let mut is_pinned = discards.pinned.iter().any(|(pinned, _)| Some(*pinned) == point);
    if asked.pin && point.is_some() {
        pin(group, &discards, asker, |reason| PointChange::Pin { reason }).await.map_err(|error| error.message)?;
        is_pinned = true;
    }
    Ok(RollBackAnswer {
        id: asked.id,
        generation: discards.generation,
        point: discards.point.map(|(position, epoch)| RollBackPoint { position, epoch, is_pinned }),
        points: discards.points,
        newest: discards.newest,
        other: discards.other,
    })
}

/// All of it was taken back: what whoever stood in published after the point that was pinned, and before it was fenced, is discarded, too.
///
/// # Errors
/// When the pin cannot go with it yet.
pub(crate) async fn settle(group: &GroupHandle) -> Result<(), ApiError> {
    let discards = discards_of_source(group).await?;
    if discards.pinned.is_empty() { Ok(()) } else { goes_along(group, &discards).await }
}

/// The source was told that its rollback has a pin, and has claimed nothing yet. † Once it has, what is discarded is known by whose claims published what is
/// pinned: a host that stands in and is started again meanwhile claims anew.
///
/// # Errors
/// When the pin cannot go along yet.
pub(crate) async fn goes_with_new_claims(group: &GroupHandle) -> Result<(), ApiError> {
    let discards = discards_of_source(group).await?;
    if discards.is_of_other_claims { goes_along(group, &discards).await } else { Ok(()) }
}

async fn discards_of_source(group: &GroupHandle) -> Result<Discards, ApiError> {
    let ask = DiscardAsk { asker: group.names().source.clone(), volumes: Vec::new() };
    let unknown = |why: String| ApiError::new(ErrorCode::Unavailable, why, "it goes on by itself");
    look(group, ask).await.map_err(unknown)
}

async fn goes_along(group: &GroupHandle, discards: &Discards) -> Result<(), ApiError> {
    pin(group, discards, &group.names().source, |reason| PointChange::OwnPin { reason }).await
}

/// Has the newest pinned, and then no other one. † In this order: a kill in between leaves two.
async fn pin(
    group: &GroupHandle,
    discards: &Discards,
    source: &Name,
    change: impl Fn(String) -> PointChange,
) -> Result<(), ApiError> {
    let Some(point) = discards.point_id() else { return Ok(()) };
    if !discards.pinned.iter().any(|(pinned, _)| *pinned == point) {
        group.change(point, change(pin_reason(discards, source))).await?;
        tracing::warn!(group = %group.names(), %point, "what is discarded by a rollback is pinned");
    }
    for (former, reason) in discards.pinned.iter().filter(|(pinned, _)| *pinned != point) {
        group.change(*former, PointChange::Unpin { only: reason.clone() }).await?;
    }
    Ok(())
}

pub(crate) async fn look(group: &GroupHandle, ask: DiscardAsk) -> Result<Discards, String> {
    let gone = |()| "the receiver is stopping".to_owned();
    let (reply, answer) = oneshot::channel();
    group.tell(Mail::Discards { ask: Box::new(ask), reply }).await.map_err(|_| gone(()))?;
    answer.await.map_err(|_| gone(()))?
}
