//! What a group is told, and where to reach it.
//!
//! Invariant: what waits for a group is bounded by number and by size; those who tell it wait in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use farside_control::{ApiError, ErrorCode, PointId};
use farside_ledger::{PartEntry, VerifiedHow};
use farside_region::{Name, Slot, VolumeId};
use farside_replication::cohort::CutsOfGroup;
use farside_replication::target::SessionId;
use farside_store::{
    GroupNames, LazyPointReader, MergeTried, PartLander, PartName, PointInfo, PointsFound, SoundParts, StoreError,
};
use farside_wire::{PartHeader, SourceMessage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::SHOW;
use super::at_rest::{KeyAnswer, Obtained};
use super::fence::{Fence, Fenced, PromotionLook, Wanted};
use super::follow::{FollowAsk, FollowError, FollowNext};
use super::merges::MergeNext;
use super::pull::{PullAsk, PullLook};
use super::rollback::{DiscardAsk, Discards};
use crate::door::Session;
use crate::points::PointsAsk;
use crate::status::GroupView;

/// What may wait for a group, by number, and frames by size.
pub(super) const MAIL_MAX: usize = 256;
pub(super) const FRAME_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(FRAME_BYTES_MAX >= farside_wire::PAYLOAD_BYTES_MAX, "any frame fits");

/// What is to be in the ledger about a point.
#[derive(Clone, Debug)]
pub(crate) enum PointChange {
    /// One more pin, if there are not too many.
    Pin { reason: String },
    /// One more, of this process's own, which has few: nothing that people did may keep it from that.
    OwnPin { reason: String },
    /// None for this reason.
    Unpin { only: String },
    /// None that people asked for; with `all`: none. Legal holds stay.
    UnpinFor { all: bool },
    /// No legal hold of this case.
    Release { case: String },
    /// All of it was verified.
    Verified { how: VerifiedHow },
}

/// Points of a group that are of cuts of a cohort, by cut.
pub(crate) type CohortCuts = CutsOfGroup<PointId>;

/// What a group says of them.
#[derive(Debug)]
pub(crate) struct CohortAnswer {
    pub(crate) cuts: CohortCuts,
    /// Those of them to which nobody is failed over unless that is forced.
    pub(crate) doubts: BTreeMap<PointId, Doubt>,
}

/// Why a point is not what somebody wants who asks for the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// A failover before was to an older one instead.
    pub(crate) is_aside: bool,
    /// What was found damaged that it may have.
    pub(crate) damaged: Option<String>,
}

/// What a group is told.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A connection stands; its greeting follows.
    Connected { session: Arc<Session> },
    /// A source said something, which nobody has looked at. With the room that it takes.
    Frame { session: SessionId, frame: Bytes, arrived: Instant, room: OwnedSemaphorePermit },
    /// A source greets.
    Message { session: SessionId, message: Box<SourceMessage>, arrived: Instant },
    /// A connection ended; nothing of it can land any more.
    /// `settled`: its last word was that it owes nothing; `sent_away`: this side ended it.
    Closed { session: SessionId, settled: bool, sent_away: bool },
    /// A part's header came.
    BeginPart { session: SessionId, header: PartHeader, reply: oneshot::Sender<BeginPart> },
    /// A part's end.
    Part { session: SessionId, header: PartHeader, outcome: PartOutcome },
    /// The API wants some of the points, newest first.
    Points { ask: PointsAsk, reply: oneshot::Sender<Result<PointsFound, String>> },
    /// Those that are of cuts of that cohort.
    CohortCuts { cohort: String, reply: oneshot::Sender<Result<CohortAnswer, String>> },
    /// The oldest and the newest of them.
    PointEnds { ask: PointsAsk, reply: oneshot::Sender<Result<Option<(PointInfo, PointInfo)>, String>> },
    /// The API wants to see how the group is now.
    Show { reply: oneshot::Sender<()> },
    /// Something is to be in the ledger about a point.
    Change { point: PointId, change: PointChange, reply: oneshot::Sender<Result<PointInfo, ApiError>> },
    /// Somebody has time to merge.
    MergeNext { reply: oneshot::Sender<MergeNext> },
    /// Parts that merges wrote were met damaged by who read a point.
    Spoiled { parts: BTreeSet<PartName> },
    /// These are as they were published after all.
    Sound { parts: SoundParts, reply: oneshot::Sender<()> },
    /// A look found more than it gave.
    MergeAgain { volume: VolumeId, point: Slot, reply: oneshot::Sender<()> },
    /// What came of writing a merge. The answer: whether its record was accepted.
    Merged { tried: Box<MergeTried>, reply: oneshot::Sender<bool> },
    /// A follower asks for the way to the point that it should hold.
    Follow { ask: Box<FollowAsk>, reply: oneshot::Sender<Result<FollowNext, FollowError>> },
    /// It wants to compare its target with the point that it holds.
    FollowBase { volume: Name, point: Slot, reply: oneshot::Sender<Result<LazyPointReader, FollowError>> },
    /// A host pulls the newest point that is whole.
    Pull { ask: Box<PullAsk>, reply: oneshot::Sender<Result<PullLook, String>> },
    /// What a host discards that goes on with its own disks.
    Discards { ask: Box<DiscardAsk>, reply: oneshot::Sender<Result<Discards, String>> },
    /// What a promotion would bring up: that point, or the newest.
    PromotionLook { wanted: Wanted, reply: oneshot::Sender<Result<PromotionLook, ApiError>> },
    /// Nothing of a lower generation is to be published any more.
    Fence { fence: Fence, reply: oneshot::Sender<Result<Fenced, ApiError>> },
    /// Whether its source is fenced is to be known: no claim that was put may come to pass after this.
    Settle { reply: oneshot::Sender<Result<(), ApiError>> },
    /// Who may stand in has changed.
    StandIn,
    /// A host that pulls has not the key that the group is kept encrypted with.
    GiveKey { reply: oneshot::Sender<KeyAnswer> },
    /// What came of asking for that key.
    KeyObtained { obtained: Box<Obtained> },
    /// Something that was to be put into the bucket is there, or cannot be put.
    Uploaded,
    /// The process stops.
    Stop,
}

/// What becomes of a part's stream.
#[derive(Debug)]
pub(crate) enum BeginPart {
    /// Write it there.
    Land(Box<PartLander>),
    /// Read it and forget it: its term is over.
    Swallow,
    /// Nothing: its session is gone.
    Drop,
    /// It cannot be begun.
    Failed(StoreError),
}

/// What became of a part.
#[derive(Debug)]
pub(crate) enum PartOutcome {
    /// Whole, verified, durable.
    Landed(PartEntry),
    /// Read and forgotten.
    Unwanted { bytes: u64 },
    /// Not landed.
    Failed(StoreError),
}

/// Where to reach a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupHandle {
    pub(super) names: GroupNames,
    pub(super) mail: mpsc::Sender<Mail>,
    /// Bytes of frames that may be on their way to it.
    pub(super) room: Arc<Semaphore>,
    pub(super) view: Arc<ArcSwap<GroupView>>,
}

impl GroupHandle {
    /// One that nobody reads.
    #[cfg(test)]
    pub(crate) fn unanswered(names: &GroupNames) -> (Self, mpsc::Receiver<Mail>) {
        let (mail, mailbox) = mpsc::channel(MAIL_MAX);
        let (room, view) = (Arc::new(Semaphore::new(FRAME_BYTES_MAX)), Arc::new(ArcSwap::from_pointee(GroupView::new(names))));
        (Self { names: names.clone(), mail, room, view }, mailbox)
    }

    pub(crate) fn names(&self) -> &GroupNames {
        &self.names
    }

    /// Waits while the group's mailbox is full. An error: the group has stopped.
    pub(crate) async fn tell(&self, mail: Mail) -> Result<(), Mail> {
        self.mail.send(mail).await.map_err(|e| e.0)
    }

    /// Tells it what a source said; waits while too much waits for it. False: the group has stopped.
    pub(crate) async fn frame(&self, session: SessionId, frame: Bytes, arrived: Instant) -> bool {
        let bytes = u32::try_from(frame.len().min(FRAME_BYTES_MAX)).expect("less than 4 GiB");
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(bytes).await else { return false };
        self.tell(Mail::Frame { session, frame, arrived, room }).await.is_ok()
    }

    /// How it was a moment ago.
    pub(crate) fn view(&self) -> Arc<GroupView> {
        self.view.load_full()
    }

    /// Makes [`GroupHandle::view`] new, unless the group is busy for longer than a person likes to wait.
    pub(crate) async fn refresh(self) {
        let (reply, shown) = oneshot::channel();
        let ask = async {
            if self.tell(Mail::Show { reply }).await.is_ok() {
                let _ = shown.await;
            }
        };
        let _ = tokio::time::timeout(SHOW, ask).await;
    }

    /// The points that somebody wants, newest first.
    pub(crate) async fn points(&self, ask: PointsAsk) -> Result<PointsFound, String> {
        let (reply, answer) = oneshot::channel();
        self.answer(Mail::Points { ask, reply }, answer).await
    }

    /// Its points that are of cuts of that cohort.
    pub(crate) async fn cohort_cuts(&self, cohort: &str) -> Result<CohortAnswer, String> {
        let (reply, answer) = oneshot::channel();
        self.answer(Mail::CohortCuts { cohort: cohort.to_owned(), reply }, answer).await
    }

    /// The oldest of all that the filter wants, and the newest.
    pub(crate) async fn point_ends(&self, ask: PointsAsk) -> Result<Option<(PointInfo, PointInfo)>, String> {
        let (reply, answer) = oneshot::channel();
        self.answer(Mail::PointEnds { ask, reply }, answer).await
    }

    async fn answer<T>(&self, mail: Mail, answer: oneshot::Receiver<Result<T, String>>) -> Result<T, String> {
        let stopped = || "the receiver is stopping".to_owned();
        self.tell(mail).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Puts something about a point into the ledger; the point as it is then.
    pub(crate) async fn change(&self, point: PointId, change: PointChange) -> Result<PointInfo, ApiError> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || ApiError::new(ErrorCode::Unavailable, "the group was closed meanwhile", "see `farside status`; then try again");
        self.tell(Mail::Change { point, change, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// The key that the group is kept encrypted with at rest, for a host of it; `None`: it is not. An error is for that host.
    pub(crate) async fn key(&self) -> KeyAnswer {
        let (reply, answer) = oneshot::channel();
        self.answer(Mail::GiveKey { reply }, answer).await
    }

    /// Asks it to stop. Blocking.
    pub(crate) fn stop(&self) {
        let _ = self.mail.blocking_send(Mail::Stop);
    }
}
