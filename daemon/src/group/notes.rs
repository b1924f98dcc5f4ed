//! What the control thread of a group hears.

use std::sync::Arc;
use std::time::Duration;

use farside_control::source::{Accept, VerifyStatus};
use farside_region::{EpochId, Generation, LedgerPosition, Slot, Term, VolumeId};
use farside_replication::source::Ended;
use farside_wire::{CohortAsk, PointAnswer, PointQueryKind, ReceiverMessage};
use tokio::sync::oneshot;

use super::{Ending, Farewell, Opening, Served, Taken};
use crate::channel::Sender;
use crate::config::{GroupConfig, VolumeConfig};
use crate::growth::Growth;
use crate::link::Link;
use crate::sender::Report as SenderReport;

/// What the control thread hears.
pub(crate) enum Note {
    /// A shim has events.
    Shim(VolumeId),
    HeaderDurable {
        volume: VolumeId,
        confirmed: Option<Term>,
        position: Option<LedgerPosition>,
    },
    Sender(VolumeId, SenderReport),
    /// A flush that was ordered has ended.
    Flushed(VolumeId, bool),
    /// The intent file failed.
    MapFailed(VolumeId),
    /// A map with every bit set has taken its place.
    MapMended(VolumeId),
    /// It still cannot be written, and why.
    MapStillFails(VolumeId, String),
    /// The tap's thread has ended.
    TapStopped(VolumeId),
    /// Its device is not served any more, and nobody here did that.
    TapLost(VolumeId, String),
    /// The sender ended, which answers no order any more.
    SenderEnded(VolumeId, String),
    /// The map of a volume that is being opened is about to say `attached`; answered.
    Attaches(Opening, Sender<()>),
    Connected(Link),
    Disconnected(u64, Ended),
    Message(u64, Box<ReceiverMessage>),
    /// Applications are quiet, by the attempt of that number; or why not.
    Quiesced(u64, Result<(), String>),
    /// They go on after a cut: whether they were quiet until then.
    Resumed(EpochId, Result<String, String>),
    /// What a guard could not end was tried again: why it may still be quiesced.
    LeftOver(Option<String>),
    /// The connection of that number stands on which the group is cut with groups of other hosts.
    CohortUp(u64),
    /// What is asked for there.
    CohortAsks(u64, CohortAsk),
    /// It ended, or could not be had, and why.
    CohortEnded(u64, String),
    /// A volume is open and its tap is served.
    Opened(Box<(Served, Box<farside_replication::source::VolumeSetup>)>, oneshot::Sender<anyhow::Result<()>>),
    Ask(Ask),
}

/// What becomes of a history that is to be taken back.
#[derive(Debug)]
pub(crate) enum TakenBack {
    /// It is, when every bit is durable, which is said there.
    Begun(oneshot::Receiver<anyhow::Result<()>>),
    /// It is another promotion that fences the volume.
    From(Generation),
    /// Points were published after that one.
    Newer,
}

/// What the API asks for.
pub(crate) enum Ask {
    Status(oneshot::Sender<farside_control::source::GroupStatus>),
    Add(VolumeConfig, oneshot::Sender<anyhow::Result<()>>),
    /// An error: it stays as it was.
    Leave(VolumeId, Farewell, oneshot::Sender<anyhow::Result<Left>>),
    Leaving(VolumeId, oneshot::Sender<anyhow::Result<Leaving>>),
    /// What could be opened larger now.
    Growth(VolumeId, oneshot::Sender<anyhow::Result<Growth>>),
    /// Why it was not opened larger yet.
    GrowthWaits(VolumeId, String, oneshot::Sender<anyhow::Result<()>>),
    /// Whether its tap was lost: otherwise an error.
    TapLost(VolumeId, oneshot::Sender<anyhow::Result<()>>),
    /// Why a tap is not put under its device yet.
    TapWaits(VolumeId, String, oneshot::Sender<anyhow::Result<()>>),
    /// Its tap is being taken out of the host's device: nothing is published of it meanwhile, which no start remembers. `false`: it
    /// stays after all.
    StandAside(VolumeId, bool, oneshot::Sender<anyhow::Result<()>>),
    Pause(VolumeId, bool, oneshot::Sender<anyhow::Result<()>>),
    /// Whatever its state is or what a person accepts of it; of what is fenced, by no promotion after that one, if one is named.
    Resync(VolumeId, Option<Accept>, Option<Generation>, oneshot::Sender<anyhow::Result<()>>),
    /// From that promotion, and from no other; and only if the newest point is that one, or one that a person passed over for it, up to that slot.
    TakeBack(VolumeId, Generation, (LedgerPosition, Option<Slot>), oneshot::Sender<anyhow::Result<TakenBack>>),
    /// What was said of a refusal holds no more. `false`: the history was taken back from that promotion by it, or may have been.
    Withdraw(VolumeId, (Generation, bool), oneshot::Sender<anyhow::Result<bool>>),
    Verify(VolumeId, oneshot::Sender<anyhow::Result<VerifyStatus>>),
    Settings(GroupConfig),
    /// A point of all volumes, with that title; and whether hooks run for it.
    Take(String, Option<bool>, oneshot::Sender<Taken>),
    Points(PointQueryKind, oneshot::Sender<anyhow::Result<PointAnswer>>),
    Stop {
        /// How many volumes of the group are configured.
        configured: usize,
        /// How long to wait until all is published, also without a connection; `None`: as long as a stop of the daemon may.
        patience: Option<Duration>,
        answer: Sender<Ending>,
    },
    /// A stop that is under way waits no more for what is not published.
    Hurry,
}

/// That a volume has left, and whether in order.
pub(crate) type Left = anyhow::Result<()>;

/// What must be asked and done before a volume may leave.
pub(crate) struct Leaving {
    pub(crate) tap: crate::tap::Handle,
    pub(crate) insertion: Option<Arc<farside_insert::Insertion>>,
    pub(crate) dir: std::path::PathBuf,
}
