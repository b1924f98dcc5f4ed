//! The way back: a host asks for what its disks lack of a point. On connections of their own, which publish nothing.

use farside_ledger::{EpochInfo, VolumeMeta};
use farside_region::{Generation, LedgerPosition, Name, RegionIndex, RegionSet, Slot, VolumeId};
use serde::{Deserialize, Serialize};

use crate::{DecodeError, DigestRun, RequestId};

/// The most volumes of a point that can be pulled.
pub const PULL_MEMBERS_MAX: usize = 1024;
/// The most ranges in all sets of one [`PullPoint`].
pub const PULL_RANGES_MAX: usize = 40_000;
/// The most granules in one [`PullQuery`]: a real region.
pub const PULL_GRANULES_MAX: u64 = 1024;
/// The most bytes in one [`PullChunk`].
pub const PULL_CHUNK_BYTES_MAX: usize = 512 << 10;
/// The most bytes that answer one [`PullQuery`], all chunks together.
pub const PULL_ANSWER_BYTES_MAX: u32 = 6 << 20;
/// Queries of one connection that may be open.
pub const PULL_OPEN_MAX: usize = 8;

/// How the text of a refusal begins whose reason is that the receiver cannot read an encrypted volume: nothing is wrong with what was asked.
pub const NO_KEY: &str = "the gateway cannot read volume ";

/// Asks for the newest point that can be pulled. It is kept from then on, until that host asks for another one, or has been gone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullBegin {
    /// Comes back in the answer.
    pub id: RequestId,
    /// The point that the asker's disks are; `None`: anything.
    pub have: Option<LedgerPosition>,
}

/// Asks for a point over which the asker keeps what only his disks hold, before he overwrites it: his branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullFork {
    /// Comes back in the answer.
    pub id: RequestId,
    /// This point, and no other; `None`: the newest from before the failover, which is what the disks and the history have in common.
    pub over: Option<LedgerPosition>,
    /// What becomes of it; said before the answer.
    pub pin: ForkPin,
}

/// Which volumes a point must hold to be of use to the asker: the answers to his [`PullBegin`] and [`PullFork`] from then on are the newest that hold
/// all of them, where there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullVolumes {
    /// At most [`PULL_MEMBERS_MAX`].
    pub volumes: Vec<VolumeId>,
}

impl PullVolumes {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        if self.volumes.len() > PULL_MEMBERS_MAX { Err(DecodeError::Limit("volumes to be pulled")) } else { Ok(()) }
    }
}

/// Whether a point is kept for a branch. A branch is worth nothing without its point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForkPin {
    /// As it is.
    Leave,
    /// For a branch of that name, from now on.
    Pin(Name),
    /// For that branch no more.
    Unpin(Name),
}

/// Asks what is discarded when the asker goes on with his own disks, though another host published in his place: the newest point of that. Nothing is
/// pulled of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollBackAsk {
    /// Comes back in the answer.
    pub id: RequestId,
    /// The point is pinned before it is answered, and whatever was pinned for this failover before is so no more.
    pub pin: bool,
}

/// What is discarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollBackAnswer {
    /// Of the question.
    pub id: RequestId,
    /// The failover that stands.
    pub generation: Generation,
    /// The newest point that was published since the asker was fenced, of which its source could read all, and which has the volumes that the asker named,
    /// if there is one that has; `None`: there is none.
    pub point: Option<RollBackPoint>,
    /// How many points were published since then, all together.
    pub points: u64,
    /// The newest of them, if it is another one.
    pub newest: Option<Slot>,
    /// Who publishes in the asker's place.
    pub other: Option<PullOther>,
}

/// See [`RollBackAnswer::point`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollBackPoint {
    /// Its record.
    pub position: LedgerPosition,
    /// When it was cut.
    pub epoch: EpochInfo,
    /// It is pinned for that, durably.
    pub is_pinned: bool,
}

/// A host that may publish what is pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullOther {
    /// As it was paired; `None`: this receiver does not know who that is.
    pub name: Option<Name>,
    /// Whether it is connected. If not, it did not say, since the receiver started, that it owes nothing.
    pub connected: bool,
}

/// A point that can be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullPoint {
    /// Of the question.
    pub id: RequestId,
    /// Its record.
    pub position: LedgerPosition,
    /// When it was cut.
    pub epoch: EpochInfo,
    /// The highest of the group's volumes.
    pub generation: Generation,
    /// The failover that stands, as far as this receiver knows.
    pub promotion: Option<Generation>,
    /// Whether it was published since that failover; otherwise it is from before.
    pub is_since: bool,
    /// The newest point of all, if it is another one: the source could not read all of it, or it lacks a volume that the asker named.
    pub passed_over: Option<Slot>,
    /// Another host that may have more to publish.
    pub other: Option<PullOther>,
    /// The volumes, each once; at most [`PULL_MEMBERS_MAX`].
    pub members: Vec<PullMember>,
}

/// A volume of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullMember {
    /// As the ledger has it.
    pub meta: VolumeMeta,
    /// Its size at the point.
    pub volume_bytes: u64,
    /// The regions in which the point may differ from what the asker has; `None`: any.
    pub touched: Option<RegionSet>,
}

/// What the asker's disk holds of one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullQuery {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// Which region.
    pub region: RegionIndex,
    /// Zeroes and digests, one after the other from its first granule on; together as many granules as the region has at the point.
    pub have: Vec<DigestRun>,
}

/// A piece of one part (`docs/formats/layer.md`) with what differs. Pieces come in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullChunk {
    /// Of the question.
    pub id: RequestId,
    /// How long the part is; 0: nothing differs.
    pub part_bytes: u32,
    /// The next of its bytes; at most [`PULL_CHUNK_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

impl PullQuery {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        let total = self.have.iter().try_fold(0u64, |sum, run| sum.checked_add(run.granules()));
        let is_known = |run: &DigestRun| matches!(run, DigestRun::Zero { .. } | DigestRun::Data(_));
        match total {
            Some(1..=PULL_GRANULES_MAX) if self.have.iter().all(is_known) => Ok(()),
            _ => Err(DecodeError::Limit("granules in a pull query")),
        }
    }
}

impl PullPoint {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        if self.members.len() > PULL_MEMBERS_MAX {
            return Err(DecodeError::Limit("volumes of a point to be pulled"));
        }
        let ranges = self.members.iter().filter_map(|member| member.touched.as_ref()).map(RegionSet::range_count).sum::<usize>();
        if ranges > PULL_RANGES_MAX { Err(DecodeError::Limit("ranges of a point to be pulled")) } else { Ok(()) }
    }
}

impl PullChunk {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        if self.bytes.len() > PULL_CHUNK_BYTES_MAX || self.part_bytes > PULL_ANSWER_BYTES_MAX {
            return Err(DecodeError::Limit("bytes of what is pulled"));
        }
        Ok(())
    }
}
