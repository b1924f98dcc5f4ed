//! What people are told. Computed from what was published, on one clock (L10).

use farside_ledger::EpochInfo;
use farside_region::{LedgerPosition, Name, Term, VolumeId};

use super::api::{DemoteCause, Nanos};

/// How a volume is, in one word; details are in [`VolumeStatus`].
///
/// ```text
/// Idle ──connected, checked──► Behind ⇄ Streaming          any ──► Paused, Refused(..), TrackingLost
///   ▲────────── disconnected, or not yet claimed
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Tracked, not replicated: no connection, or the claim is not made yet.
    Idle,
    /// Layers are passes.
    Behind(Behind),
    /// Cuts succeed.
    Streaming,
    /// A person paused it.
    Paused,
    /// Something could bypass the tap, or the intent map cannot be written; a compare of everything will follow.
    TrackingLost,
    /// Refused by name; a person decides.
    Refused(RefusedWhy),
}

/// What a volume that is behind is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behind {
    /// The first copy.
    FirstSync,
    /// Comparing, after a crash or because a person asked.
    Comparing,
    /// More changed than a cut may hold.
    CatchingUp,
    /// The receiver's disk is full; existing points are intact.
    GatewayFull,
    /// The receiver cannot publish.
    StoreFailed,
}

/// Why a volume refuses to go on (L6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusedWhy {
    /// The published history is not this disk's: a rollback, a clone, or a reinstalled host (T17).
    Forked,
    /// The ledger is older than what this source saw published.
    TargetRewound,
    /// A newer generation exists.
    Fenced,
    /// The backing became smaller, or has another geometry than the ledger.
    Shape,
}

/// All about a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// A connection stands and greeted.
    pub connected: bool,
    /// What the receiver last said about itself, if not well.
    pub receiver_trouble: Option<String>,
    /// One per volume.
    pub volumes: Vec<VolumeStatus>,
    /// The last cut that was given up, and why.
    pub last_demotion: Option<(Nanos, DemoteCause)>,
    /// What a cut may presently hold, in bytes.
    pub cut_budget_bytes: u64,
}

/// All about a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeStatus {
    /// Which.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// In a word.
    pub state: State,
    /// The term under which layers are sent.
    pub term: Option<Term>,
    /// Age of what the newest published point (or a newer heartbeat) shows, in ns; `None` = there is none of this boot.
    pub lag: Option<Nanos>,
    /// The newest point that holds this volume.
    pub newest_point: Option<PointStatus>,
    /// The pass or cut being read.
    pub reading: Option<Progress>,
    /// Bytes not known published: open map, frozen and unpublished layers, still to be compared or sent again.
    pub backlog_bytes: u64,
    /// Of these, in the open map.
    pub open_bytes: u64,
    /// Still to be compared.
    pub compare_bytes: u64,
    /// Layers sent or being sent and not known published.
    pub unpublished_layers: usize,
    /// Bytes of granules that could not be read from the backing.
    pub unreadable_bytes: u64,
    /// A flush of the backing failed in this attach (T14).
    pub flush_failed: bool,
    /// Set when passes end with as much dirt as they began with.
    pub not_converging: Option<NotConverging>,
}

/// A published point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointStatus {
    /// Its record.
    pub position: LedgerPosition,
    /// When it was cut.
    pub epoch: EpochInfo,
}

/// How far the frozen set is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Read so far.
    pub done_bytes: u64,
    /// The whole set.
    pub total_bytes: u64,
    /// When it was frozen, on the clock of `now`.
    pub since: Nanos,
    /// Bytes of parts that it became so far.
    pub sent_bytes: u64,
}

/// The numbers behind "not converging".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotConverging {
    /// Bytes that the host dirtied per second over the last pass.
    pub dirty_bytes_per_s: u64,
    /// Bytes that could be read and sent per second.
    pub sent_bytes_per_s: u64,
    /// What a cut would have to hold.
    pub needed_cut_bytes: u64,
}
