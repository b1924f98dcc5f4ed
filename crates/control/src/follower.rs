//! Followers: files and devices of a gateway that are kept equal to points.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::source::LastPoint;
use crate::{PointId, Reason};

/// Which point a follower is to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// The newest.
    #[default]
    Newest,
    /// The newest that is older than this, by the age clock of its group, which only goes on while points are published.
    Behind {
        /// How much, in milliseconds.
        delay_ms: u64,
    },
    /// One, and no other.
    Point {
        /// Its slot.
        slot: u64,
    },
}

/// The lock step: what a follower's target holds is kept under another name before it goes on, round by round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LockRule {
    /// Who does it: `reflink`, for files on XFS or Btrfs, or the name of a `[[lock]]` of the receiver's configuration.
    pub by: String,
    /// So many rounds are kept, 1 to 1,000; then the oldest goes.
    pub keep: u32,
    /// A round at most so often, in milliseconds; 0: each point that the target comes to.
    #[serde(default)]
    pub every_ms: u64,
    /// While it fails the follower stays where it is. Otherwise it goes on, and says that it fails.
    #[serde(default)]
    pub strict: bool,
}

/// A point that is locked: what a target held is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LockedPoint {
    /// Which.
    pub id: PointId,
    /// When, by the gateway's clock.
    pub locked: Timestamp,
    /// What it is called by who did it: a path, for files.
    pub name: String,
}

/// A follower to begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FollowerAdd {
    /// What to call it; unless said: `SOURCE-VOLUME`.
    #[serde(default)]
    pub name: Option<String>,
    /// An [`Address`](crate::Address): the volume.
    pub volume: String,
    /// A file or a block device of the gateway, by its whole path.
    #[schema(value_type = String)]
    pub target: PathBuf,
    /// Which point.
    #[serde(default)]
    pub follows: Follows,
    /// What the target holds may be lost.
    #[serde(default)]
    pub overwrite: bool,
    /// What it holds is locked before it goes on.
    #[serde(default)]
    pub lock: Option<LockRule>,
}

/// What a follower does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FollowerState {
    /// There is no point yet that it could hold.
    #[default]
    Waiting,
    /// It is on its way to a point, for the first time, or because a person said so: all of it is looked at.
    Filling,
    /// It is on its way from one point to another.
    Applying,
    /// It holds the point that it should.
    Following,
    /// It is being compared with the point that it holds.
    Verifying,
    /// Somebody else wrote to it.
    Diverged,
    /// It cannot go on; a reason says why.
    Failed,
    /// It was paused; its target is closed.
    Paused,
    /// Its target took the place of a source that is gone, and is the receiver's no more.
    Promoted,
}

impl FollowerState {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Filling => "filling",
            Self::Applying => "applying",
            Self::Following => "following",
            Self::Verifying => "verifying",
            Self::Diverged => "DIVERGED",
            Self::Failed => "FAILED",
            Self::Paused => "paused",
            Self::Promoted => "promoted",
        }
    }
}

/// One follower.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FollowerStatus {
    /// What it is called.
    pub name: String,
    /// The source, group and volume.
    pub source: String,
    /// See `source`.
    pub group: String,
    /// See `source`.
    pub volume: String,
    /// The file or device.
    #[schema(value_type = String)]
    pub target: PathBuf,
    /// Which point it is to hold.
    pub follows: Follows,
    /// What it does.
    pub state: FollowerState,
    /// The point that it holds, whole; `None` on its way.
    pub holds: Option<LastPoint>,
    /// The point that it is on its way to.
    pub applying: Option<LastPoint>,
    /// Regions that were looked at on the way, or compared.
    pub done_regions: u64,
    /// Of so many.
    pub total_regions: u64,
    /// Since the receiver started: how often it came to another point.
    pub applied: u64,
    /// And bytes that were written for that.
    pub written_bytes: u64,
    /// How long the last way took.
    pub last_apply_ms: Option<u64>,
    /// When all of it was compared with the point that it held, and was equal.
    pub verified: Option<Timestamp>,
    /// The first regions in which it diverged.
    pub diverged_regions: Vec<u64>,
    /// How what it holds is locked before it goes on, if it is.
    pub lock: Option<LockRule>,
    /// The points that are locked, oldest first.
    pub locked: Vec<LockedPoint>,
    /// What is wrong.
    pub reasons: Vec<Reason>,
}
