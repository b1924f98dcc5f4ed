//! What `farsided` says and takes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{PointId, Reason};

/// The whole of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct SourceStatus {
    /// The daemon's version.
    pub version: String,
    /// The source's name.
    pub source: String,
    /// How long the daemon has been running.
    pub uptime_ms: u64,
    /// The way to the receiver.
    pub connection: Connection,
    /// What it keeps to.
    pub limits: Limits,
    /// Every group, by name.
    pub groups: Vec<GroupStatus>,
    /// Groups that did not answer in time: how they are is not known, so they are not among these. A reason says so, too.
    pub unanswered: Vec<String>,
    /// What concerns no single group: privileges, state directory…
    pub reasons: Vec<Reason>,
}

/// The way to the receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Connection {
    /// `farside pair` was not run yet.
    #[default]
    NotPaired,
    /// No connection now; tried again with back-off.
    Disconnected {
        /// The receiver's name.
        receiver: String,
        /// Why the last attempt failed.
        error: String,
    },
    /// Talking.
    Connected {
        /// The receiver's name.
        receiver: String,
    },
    /// Neither talking, nor known to fail yet.
    Connecting {
        /// The receiver's name.
        receiver: String,
    },
}

impl GroupStatus {
    /// Whether points thin out by a grid as they grow old.
    pub fn has_grid(&self) -> bool {
        // Of a daemon that knows no grids there is nothing.
        !matches!(self.grid.as_str(), "" | "none")
    }
}

/// One consistency group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// The least time between two cuts.
    pub epoch_interval_ms: u64,
    /// At least so many points are kept.
    pub keep: u32,
    /// Every point is kept so long at least, in the ledger's time; 0: by number only.
    pub span_ms: u64,
    /// Of what is older so much is kept: `every 1m keep 1d, every 1h keep 30d`, or `none`.
    pub grid: String,
    /// How its volumes are encrypted: `end-to-end` or `at-rest`, and the key's id, if the key is here. `None`: they are not.
    pub encryption: Option<EncryptionStatus>,
    /// The worst state of its volumes.
    pub state: VolumeState,
    /// The age of what a restore would bring back: now − the cut of the newest published point (or the T of a newer
    /// heartbeat), on this machine's monotonic clock. `None`: no point yet, or it cannot be known.
    pub lag_ms: Option<u64>,
    /// The age of what the gateway holds safely, published or not: now − the newest cut that is staged. Where the gateway
    /// collects points before it publishes them, as for a bucket, it is less than `lag_ms`; it outlives this host, but not the
    /// gateway's disk.
    pub staged_lag_ms: Option<u64>,
    /// Bytes that differ, or may differ, from what is published.
    pub backlog_bytes: u64,
    /// Payload sent of late, before compression.
    pub rate_bytes_per_s: u64,
    /// The group's own limit of what is sent, after compression; `None`: only the host's holds.
    pub limit_bytes_per_s: Option<u64>,
    /// What became dirty of late and is to be sent for it: each granule once, however often it was written.
    pub dirtied_bytes_per_s: u64,
    /// When the backlog will be gone, sending at that rate while the host goes on like that. `None`: nothing to do, not
    /// known yet, or as much becomes dirty as is sent.
    pub eta_ms: Option<u64>,
    /// The newest published point.
    pub last_point: Option<LastPoint>,
    /// Its points that are asked for, and for which its hooks quiesce applications; `None`: it has no hooks, and none is asked for.
    pub consistent: Option<ConsistentStatus>,
    /// Its cuts together with groups of other hosts; `None`: its configuration does not allow them.
    pub cohort: Option<CohortStatus>,
    /// Points published since the daemon started.
    pub points_published: u64,
    /// Layers on their way: frozen, sent or staged, and not published.
    pub layers_unpublished: u64,
    /// Its volumes, by name.
    pub volumes: Vec<VolumeStatus>,
    /// What is wrong with the group as a whole.
    pub reasons: Vec<Reason>,
    /// Its switches and cuts since the daemon started.
    pub switches: Switches,
    /// Its connection to the receiver.
    pub link: Link,
    /// Memory for old content that the host overwrites while a cut holds it.
    pub side_buffer: SideBuffer,
    /// What a cut may presently hold; shrinks after an overflow and grows back.
    pub cut_budget_bytes: u64,
}

/// A group's cuts together with groups of other hosts, since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CohortStatus {
    /// The cohort that it was last asked to be cut with.
    pub name: Option<String>,
    /// How long writes may be held for that, at most.
    pub hold_max_us: u64,
    /// Whether the gateway can ask for such a cut now.
    pub connected: bool,
    /// If not: why.
    pub why_not: Option<String>,
    /// Cuts that were one with those of the other groups.
    pub cuts: u64,
    /// Those that were taken here, and are none of the cohort.
    pub missed: u64,
    /// The longest time for which writes were held.
    pub held_us_max: u64,
}

/// Switches and cuts of a group since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Switches {
    /// How many there were, cuts and passes.
    pub count: u64,
    /// How long host writes that overlapped one may have had to wait for it.
    pub grace: Histogram,
    /// Cuts that were given up and went on as passes, by cause: `side_buffer`, `claim_pool`, `hung`, `member`, `reset`,
    /// `claim`, `scattered`.
    pub demotions: BTreeMap<String, u64>,
}

/// How full the side buffer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct SideBuffer {
    /// Now.
    pub used_bytes: u64,
    /// At most; beyond it a cut is given up.
    pub limit_bytes: u64,
}

/// Durations, counted by size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Histogram {
    /// Upper bounds in microseconds, ascending.
    pub bounds_us: Vec<u64>,
    /// How many fell below each bound and above the one before; one more than bounds, for the rest.
    pub counts: Vec<u64>,
    /// All together.
    pub sum_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// What the packets of a connection travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// UDP.
    Udp,
    /// TLS over TCP.
    Tcp,
}

/// A group's connection to the receiver, over all connections since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Link {
    /// It stands, and both sides have greeted.
    pub connected: bool,
    /// What its packets travel in while it stands: `udp`, or `tcp` where that does not get through.
    pub carrier: Option<Carrier>,
    /// Why that is `tcp`.
    pub carrier_reason: Option<String>,
    /// How often it was made; more than one is a reconnect.
    pub connections: u64,
    /// Connections that carry it now, side by side (`connections` in `[limits]`); 0 while there is none.
    pub parallel: u32,
    /// Bytes sent, with all overhead of the transport.
    pub sent_bytes: u64,
    /// Bytes received, with all overhead.
    pub received_bytes: u64,
    /// Packets that were lost and sent again.
    pub lost_packets: u64,
    /// Round-trip time of the present connection.
    pub rtt_us: Option<u64>,
    /// Layers of which something was read and sent again, after a reset or a loss at the receiver.
    pub read_again: u64,
    /// Requests that the receiver refused.
    pub refusals: u64,
}

/// The newest published point, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastPoint {
    /// Its id.
    pub id: PointId,
    /// The wall clock at its cut; for people, not for arithmetic.
    pub cut_wall: Timestamp,
}

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// The group it belongs to.
    pub group: String,
    /// Its id: 32 hex digits.
    pub id: String,
    /// Its size.
    pub bytes: u64,
    /// Where the host reaches it.
    pub tap: TapStatus,
    /// What lies below.
    pub backing: BackingStatus,
    /// What becomes of its disk at a boot at which it is not served.
    pub if_absent: IfAbsent,
    /// What it is doing.
    pub state: VolumeState,
    /// The newest point of its group holds it.
    pub in_last_point: bool,
    /// Bytes whose intent bit is set: what would be compared after a crash.
    pub hot_bytes: u64,
    /// Bytes marked in the open epoch.
    pub dirty_bytes: u64,
    /// Bytes that differ, or may differ, from what is published.
    pub backlog_bytes: u64,
    /// As in [`GroupStatus::lag_ms`], of this volume alone.
    pub lag_ms: Option<u64>,
    /// As in [`GroupStatus::staged_lag_ms`], of this volume alone.
    pub staged_lag_ms: Option<u64>,
    /// Bytes of the backing that could not be read.
    pub unreadable_bytes: u64,
    /// What passed.
    pub counters: VolumeCounters,
    /// The verify under way, or the newest result; `None`: never verified.
    pub verify: Option<VerifyStatus>,
    /// What is wrong with it.
    pub reasons: Vec<Reason>,
}

/// How a group's volumes are encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct EncryptionStatus {
    /// `end-to-end`: only this host has the key. `at-rest`: its gateway, which gave it to this host.
    pub mode: String,
    /// The key's id, 32 hex digits, which says nothing about the key; `None`: the key is not here.
    pub key: Option<String>,
}

/// The host's side of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct TapStatus {
    /// `nbd:unix:PATH` or the path of a device: where the host finds it.
    pub address: String,
    /// How many clients are connected.
    pub clients: u32,
    /// Requests in flight now.
    pub in_flight: u32,
    /// How many queues it has, each served by a thread of its own, where the tap is a device of ublk's.
    pub queues: Option<u16>,
    /// How the data of its requests comes and goes, where the tap is a device of ublk's.
    pub data_path: Option<DataPathStatus>,
}

/// How the data of requests comes and goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct DataPathStatus {
    /// `zero copy` or `copy`.
    pub name: String,
    /// As the rest of a sentence.
    pub why: String,
    /// Requests that were copied all the same, since their pages could not be used.
    pub copied: u64,
}

/// What lies below a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct BackingStatus {
    /// The file or block device.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// `file` or `block device`.
    pub kind: String,
    /// The smallest request, the device's direct-I/O alignment.
    pub block_bytes: u32,
}

/// What passed through a volume since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct VolumeCounters {
    /// Host reads.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Host writes.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Host flushes.
    pub flushes: u64,
    /// Host TRIMs and WRITE_ZEROES.
    pub trims: u64,
    /// Their bytes.
    pub trimmed_bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Payload sent, before compression.
    pub sent_bytes: u64,
    /// What it became on the wire.
    pub wire_bytes: u64,
    /// Compared and found equal, so not sent.
    pub equal_bytes: u64,
    /// Host writes that waited: for the grace of a switch, or for a granule that was just being read.
    pub parks: u64,
    /// Granules whose old content was saved before a newer write.
    pub saves: u64,
}

/// What a volume is doing.
///
/// ```text
/// Idle ──► Behind ◄──► Streaming        any of them ──► Paused | Fenced | Forked | TargetRewound | TrackingLost
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VolumeState {
    /// Served and tracked; no receiver has answered its claim yet.
    #[default]
    Idle,
    /// Passes: no point can be made yet, or none lately.
    Behind {
        /// Which.
        what: BehindWhat,
        /// How far.
        progress: Progress,
    },
    /// Cuts succeed.
    Streaming,
    /// By a person; still served and tracked.
    Paused,
    /// A newer generation exists: this source was replaced.
    Fenced,
    /// The ledger holds layers this source does not know of: one of the two was rolled back or cloned.
    Forked,
    /// The ledger is older than what this source saw published.
    TargetRewound,
    /// Writes may have gone untracked; everything must be compared.
    TrackingLost,
    /// Configured, and its tap is not there: it is being opened, or cannot be; or its group does not answer. A reason says which.
    NotServed,
}

impl VolumeState {
    /// One word, as in the glossary.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Behind { .. } => "Behind",
            Self::Streaming => "Streaming",
            Self::Paused => "Paused",
            Self::Fenced => "Fenced",
            Self::Forked => "Forked",
            Self::TargetRewound => "TargetRewound",
            Self::TrackingLost => "TrackingLost",
            Self::NotServed => "NotServed",
        }
    }

    /// How much it should worry: a group shows the worst of its volumes.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Streaming => 0,
            Self::Behind { .. } => 1,
            Self::Paused => 2,
            Self::Idle => 3,
            Self::TrackingLost => 4,
            Self::TargetRewound => 5,
            Self::Forked => 6,
            Self::Fenced => 7,
            Self::NotServed => 8,
        }
    }
}

/// Which passes a volume is behind with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BehindWhat {
    /// Nothing of it was ever published in full.
    FirstSync,
    /// More changed than fits a cut.
    CatchingUp,
    /// Finding out by digests what differs.
    Comparing,
    /// The receiver's disk takes no more.
    GatewayFull,
    /// The receiver cannot write its store.
    StoreFailed,
}

impl BehindWhat {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::FirstSync => "first sync",
            Self::CatchingUp => "catching up",
            Self::Comparing => "comparing",
            Self::GatewayFull => "gateway full",
            Self::StoreFailed => "the receiver's store failed",
        }
    }
}

/// How far a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Progress {
    /// Bytes done, of those below.
    pub done_bytes: u64,
    /// Bytes to do in all; may grow.
    pub total_bytes: u64,
}

/// Body of [`PAIR`](crate::routes::PAIR).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PairRequest {
    /// The line that `farside-receiver token` printed. Secret: never logged.
    pub token: String,
}

impl std::fmt::Debug for PairRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairRequest(…)")
    }
}

/// Answer of [`PAIR`](crate::routes::PAIR).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Paired {
    /// Host and port of the receiver.
    pub receiver: String,
    /// SHA-256 of its certificate, hex: pinned from now on.
    pub receiver_fingerprint: String,
    /// SHA-256 of ours, hex: what the receiver pinned.
    pub source_fingerprint: String,
}

/// Body of [`GROUP`](crate::routes::GROUP): what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GroupSettings {
    /// The least time between two cuts.
    pub epoch_interval_ms: Option<u64>,
    /// At least so many points are kept.
    pub keep: Option<u32>,
    /// Every point is kept so long at least, in the ledger's time; 0: by number only.
    pub span_ms: Option<u64>,
    /// Of what is older so much is kept: `every 1m keep 1d, every 1h keep 30d`, or `none`.
    pub grid: Option<String>,
    /// All that its volumes send, in one [`RateLimit`](crate::RateLimit): `20Mbit`, or `none`.
    pub rate: Option<String>,
    /// How often an application-consistent point is made by itself: `15m`, or `none`. Hooks are named in the configuration alone.
    pub consistent_every: Option<String>,
}

/// A point that is to be made now: body of [`GROUP_TAKE`](crate::routes::GROUP_TAKE).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PointWanted {
    /// What it is to be called; at most [`TITLE_BYTES_MAX`] bytes.
    pub title: String,
    /// Whether the group's hooks quiesce applications for it. `None`: if it has any.
    pub hooks: Option<bool>,
    /// How long to wait until it is published; `None`: [`TAKE_WAIT_MS`]. At most [`TAKE_WAIT_MS_MAX`].
    pub wait_ms: Option<u64>,
}

/// The longest title of a point, in bytes.
pub const TITLE_BYTES_MAX: usize = 256;
/// How long a point that was asked for is waited for, in milliseconds, unless it was said.
pub const TAKE_WAIT_MS: u64 = 60_000;
/// And at most.
pub const TAKE_WAIT_MS_MAX: u64 = 3_600_000;

/// A point that was asked for is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PointTaken {
    /// It.
    pub point: LastPoint,
    /// In which state applications find their data in it.
    pub consistency: crate::Consistency,
    /// What it is called.
    #[serde(default)]
    pub title: String,
    /// What hooks said, or which of them failed, and how.
    #[serde(default)]
    pub hooks: String,
}

/// How a group's points that are asked for, by people or by the clock, get on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ConsistentStatus {
    /// How often an application-consistent point is made by itself; `None`: when one is asked for.
    pub every_ms: Option<u64>,
    /// The group's hooks, in the order of their pre-cuts.
    pub hooks: Vec<String>,
    /// The newest application-consistent point since the daemon started.
    pub newest: Option<LastPoint>,
    /// How old its cut is.
    pub newest_age_ms: Option<u64>,
    /// What a point that is wanted waits for; `None`: none is.
    pub now: Option<String>,
    /// Why the last one that was tried is not application-consistent; `None`: it is.
    pub failed: Option<HooksFailure>,
    /// How often hooks failed since the daemon started.
    pub failures: u64,
}

/// That hooks failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HooksFailure {
    /// When.
    pub at: Timestamp,
    /// Which of them, and how.
    pub why: String,
}

/// What a source keeps to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Limits {
    /// All that it sends, in bytes per second, where no window says otherwise; `None`: as fast as it goes. See
    /// [`Rate`](crate::Rate).
    pub rate_bytes_per_s: Option<u64>,
    /// What holds at times; the first one that is open.
    pub windows: Vec<LimitWindow>,
    /// What holds now; an answer only, it is not set.
    pub now_bytes_per_s: Option<u64>,
}

/// A limit for some hours of the week, in the host's own time zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LimitWindow {
    /// `Mon-Fri 09:00-18:00`, see [`Window`](crate::Window).
    pub at: String,
    /// In bytes per second.
    pub rate_bytes_per_s: u64,
}

/// A source has so many of them at most.
pub const LIMIT_WINDOWS_MAX: usize = 32;

/// Body of `POST` [`VOLUMES`](crate::routes::VOLUMES).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeAdd {
    /// Its name: 1 to 64 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// Its group; `default` if left out. Made if it does not exist.
    #[serde(default)]
    pub group: Option<String>,
    /// A block device or a regular file; absolute.
    #[schema(value_type = String)]
    pub backing: PathBuf,
    /// Whether the backing is a device of the device mapper that stays in use: the tap is put under it.
    #[serde(default)]
    pub insert: bool,
    /// `ublk` or `nbd-device` (the block device `/dev/farside/NAME`), `nbd` (a socket named after the volume beside the daemon's
    /// own) or `nbd:unix:PATH`; left out: for a block device the first of these that the kernel has, otherwise `nbd`.
    #[serde(default)]
    pub tap: Option<String>,
    /// What becomes of its disk at a boot at which it is not served.
    #[serde(default)]
    pub if_absent: IfAbsent,
}

/// What becomes of a volume's disk at a boot at which no daemon serves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IfAbsent {
    /// The host uses it as if there were no Farside; everything is compared when it is served again.
    #[default]
    Bare,
    /// It stays hidden, and what is to be mounted from it is not.
    Refuse,
}

/// Body of [`VOLUME_RESYNC`](crate::routes::VOLUME_RESYNC).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ResyncRequest {
    /// What the person has understood and accepts; needed in the state of that name.
    pub accept: Option<Accept>,
}

/// What a person accepts with a resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// The ledger's history and this volume's have parted; this volume wins.
    Forked,
    /// The target lost what was published; it is sent again.
    TargetRewound,
    /// Another copy was promoted; this volume takes the history back, and what was written there since is not taken over.
    Fenced,
    /// Writes may have gone untracked; everything is compared, as soon as the intent map can be written again.
    TrackingLost,
}

/// How far a verify is, or how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct VerifyStatus {
    /// How it stands.
    pub outcome: VerifyOutcome,
    /// When it was asked for, on the wall clock.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Bytes of the volume that were looked at.
    pub done_bytes: u64,
    /// The volume's size.
    pub total_bytes: u64,
    /// Compared in place: what was called clean.
    pub cold_bytes: u64,
    /// Changed lately, so left to ordinary comparing, where a difference is no error.
    pub hot_bytes: u64,
    /// Called clean, and yet different from what was published: an error of Farside's. It has been sent.
    pub differing_bytes: u64,
    /// Where, in whole regions; at most the first 64 ranges.
    pub differing: Vec<ByteRange>,
    /// Regions in which the backing could not be read.
    pub unreadable_bytes: u64,
}

/// How a verify stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VerifyOutcome {
    /// Under way, or waiting for the receiver or the end of a pause.
    #[default]
    Running,
    /// Everything was compared, and what differed is published.
    Done,
    /// Everything is compared anyway, by a resync or after tracking was lost.
    Superseded,
    /// The volume refuses to go on.
    Refused,
    /// The daemon was stopped.
    Stopped,
}

/// A stretch of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ByteRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// The answer where there is nothing else to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Done {
    /// One sentence for a person.
    pub message: String,
}
