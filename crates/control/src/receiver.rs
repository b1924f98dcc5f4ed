//! What `farside-receiver` says and takes.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cohort::CohortTally;
use crate::follower::FollowerStatus;
use crate::source::{Carrier, LastPoint};
use crate::{Reason, VerifiedPoint};

/// The whole of a receiver.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ReceiverStatus {
    /// The daemon's version.
    pub version: String,
    /// Host and port it listens on.
    pub listen: String,
    /// The same over TCP, for hosts whose UDP does not get through; `None`: it does not.
    pub listen_tcp: Option<String>,
    /// SHA-256 of its certificate, hex.
    pub fingerprint: String,
    /// How long the daemon has been running.
    pub uptime_ms: u64,
    /// Where the points live.
    pub store: StoreStatus,
    /// Every source that ever paired or left something in the store, by name.
    pub sources: Vec<ReceiverSource>,
    /// Files and devices that are kept equal to points, by name.
    pub followers: Vec<FollowerStatus>,
    /// Groups of several hosts that are cut as one, by name.
    pub cohorts: Vec<CohortTally>,
    /// Bytes of parts in flight, and the limit of all sources together.
    pub receive_budget: Budget,
    /// Strangers and others that were refused at the door since the receiver started.
    pub refused_peers: u64,
    /// What is wrong.
    pub reasons: Vec<Reason>,
}

/// Something used of something limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Budget {
    /// Now.
    pub used_bytes: u64,
    /// The highest since the start.
    pub used_bytes_max: u64,
    /// The limit.
    pub limit_bytes: u64,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct StoreStatus {
    /// Its directory.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Its id, hex.
    pub id: String,
    /// What its file system still has for us.
    pub free_bytes: u64,
    /// What segments take.
    pub used_bytes: u64,
    /// What landed and is not published yet.
    pub landing_bytes: u64,
    /// What is kept free for ledgers and pruning: never granted to sources, not part of `free_bytes`.
    pub reserve_bytes: u64,
    /// It takes new layers now; if not, a reason says why.
    pub writable: bool,
}

/// One source, as the receiver sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ReceiverSource {
    /// Its name.
    pub name: String,
    /// SHA-256 of the certificate that is pinned for it, hex; `None`: only found in the store.
    pub fingerprint: Option<String>,
    /// Its address while it is connected, for any group, its own or one that it stands in for.
    pub connected_from: Option<String>,
    /// What the packets of that connection travel in.
    pub carrier: Option<Carrier>,
    /// How long nothing was heard of it.
    pub silent_ms: Option<u64>,
    /// Its groups, by name.
    pub groups: Vec<ReceiverGroup>,
    /// What is wrong with it.
    pub reasons: Vec<Reason>,
}

/// One group in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ReceiverGroup {
    /// Its name.
    pub name: String,
    /// Its id, hex.
    pub id: String,
    /// The host that is connected for it: its source, or whoever stands in for that; absent while none is.
    pub host: Option<String>,
    /// The address of that host.
    pub connected_from: Option<String>,
    /// What the packets of that connection travel in.
    pub carrier: Option<Carrier>,
    /// How long nothing was heard of whoever is to publish it; absent if nothing was since the receiver started.
    pub silent_ms: Option<u64>,
    /// The highest slot of its ledger.
    pub head_slot: Option<u64>,
    /// Listed points.
    pub points: u64,
    /// The newest.
    pub last_point: Option<LastPoint>,
    /// The newest that was verified.
    pub last_verified: Option<VerifiedPoint>,
    /// The age of that point, or of a newer heartbeat: what the source said, aged by our own clock since.
    pub lag_ms: Option<u64>,
    /// After a restart of the receiver that age is counted from the point's publication, since when it was cut is not known any
    /// more: the lag is at least `lag_ms`.
    pub lag_is_at_least: bool,
    /// How long ago the newest point was staged whole, published or not; absent while nothing waits to be published: then it is
    /// what `lag_ms` says.
    pub staged_lag_ms: Option<u64>,
    /// For how long the oldest of what is staged has waited to be published; absent while nothing does.
    pub unpublished_ms: Option<u64>,
    /// What its published segments take.
    pub used_bytes: u64,
    /// Of these, what nothing needs any more and a later prune or sweep frees.
    pub dead_bytes: u64,
    /// What landed and is not published yet.
    pub landing_bytes: u64,
    /// Segments given up that wait until nobody reads, or another record has come.
    pub deferred_segments: u64,
    /// How long ago parts of it were merged last; absent if none were since the receiver started.
    pub merged_ms: Option<u64>,
    /// Why no parts are merged, where that is not because nothing would be gained.
    pub not_merged: Option<String>,
    /// What came of it since the receiver started.
    pub counters: ReceiverCounters,
    /// Its volumes, by name.
    pub volumes: Vec<ReceiverVolume>,
    /// What is wrong with it.
    pub reasons: Vec<Reason>,
}

impl ReceiverGroup {
    /// Nothing was ever claimed in it, as far as is known, and nothing is wrong: its source greeted with its name. There is nothing that could be behind.
    pub fn is_unused(&self) -> bool {
        self.head_slot.is_none() && self.volumes.is_empty() && self.points == 0 && self.reasons.is_empty()
    }
}

/// What came of a group since the receiver started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ReceiverCounters {
    /// Parts that landed.
    pub parts: u64,
    /// Their bytes.
    pub part_bytes: u64,
    /// Parts that did not land.
    pub parts_failed: u64,
    /// Records that made a point.
    pub points_published: u64,
    /// Records that brought volumes forward without making a point.
    pub passes_published: u64,
    /// Objects that these records lie in: one publication each.
    pub publications: u64,
    /// Prune records.
    pub prunes: u64,
    /// Merges of parts that points no longer tell apart.
    pub merges: u64,
    /// Bytes that were written for merges.
    pub merge_written_bytes: u64,
    /// By how many bytes fewer the new parts of merges have than the old ones.
    pub merge_freed_bytes: u64,
    /// Connections of its source.
    pub connections: u64,
}

/// One volume in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ReceiverVolume {
    /// Its name.
    pub name: String,
    /// Its id, hex.
    pub id: String,
    /// Its size.
    pub bytes: u64,
    /// One more than the copies of it that were promoted: whoever has a lower one is fenced.
    pub generation: u64,
    /// The term of its newest accepted claim.
    pub term: u64,
    /// The last accepted layer of that term; 0: none.
    pub seq: u64,
    /// Layers staged and not published.
    pub staged: u64,
    /// The newest point that holds it.
    pub last_point: Option<LastPoint>,
    /// How it lies in the store: `end-to-end`, or `at-rest`, of which this gateway has the key. `None`: in clear.
    pub encryption: Option<String>,
}

/// Body of [`TOKENS`](crate::routes::TOKENS).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it may be used; one hour if left out.
    pub valid_for_ms: Option<u64>,
    /// Host and port the source is to connect to, where the receiver cannot know (NAT).
    pub address: Option<String>,
    /// Only a source of this name may use it; any if left out.
    pub source: Option<String>,
    /// It may take over a name that is paired already.
    pub replace: bool,
}

/// Answer of [`TOKENS`](crate::routes::TOKENS).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Token {
    /// The one line for `farside pair`. Secret: shown to the person who asked, never logged.
    pub token: String,
    /// Host and port in it.
    pub address: String,
    /// Fingerprint in it.
    pub fingerprint: String,
    /// Useless after this.
    pub expires: Timestamp,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("address", &self.address).field("expires", &self.expires).finish_non_exhaustive()
    }
}
