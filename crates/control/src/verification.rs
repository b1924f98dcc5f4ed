//! What reading a whole point and checking every granule of it comes to.

use serde::{Deserialize, Serialize};

use crate::{Point, PointVerified};

/// At most so many damaged places are listed per volume; the rest is counted.
pub const DAMAGE_LISTED_MAX: usize = 1000;

/// A point being verified, or that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verification {
    /// Its number since the receiver started, from 1; 0 where no receiver was asked.
    pub id: u64,
    /// The point.
    pub point: Point,
    /// How far it is.
    pub state: VerificationState,
    /// Bytes of the volumes that are done.
    pub done_bytes: u64,
    /// Bytes of the volumes that are verified.
    pub total_bytes: u64,
    /// The volumes that were looked at, in order; the last one may be under way and is listed once it is done.
    pub volumes: Vec<VerifiedVolume>,
    /// What was put on record about the point: that all of it is sound.
    #[serde(default)]
    pub recorded: Option<PointVerified>,
    /// Why nothing was, though what was looked at is sound.
    #[serde(default)]
    pub not_recorded: Option<String>,
}

/// How far a [`Verification`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "is")]
#[non_exhaustive]
pub enum VerificationState {
    /// It reads.
    Running,
    /// Everything was read.
    Done,
    /// It was stopped before it was done, or nobody asked about it for a while.
    Stopped,
    /// The store could not be read.
    Failed {
        /// What happened.
        message: String,
    },
}

/// A volume of a point, read in full.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct VerifiedVolume {
    /// Its name.
    pub volume: String,
    /// Its size in the point.
    pub bytes: u64,
    /// Content that was read and has the digest that was computed at the source.
    pub data_bytes: u64,
    /// What cannot be restored, by region; at most [`DAMAGE_LISTED_MAX`].
    pub damage: Vec<Damage>,
    /// Damaged regions in all.
    pub damaged_regions: u64,
    /// What the source could not read: a restore wants `--allow-degraded`. At most [`DAMAGE_LISTED_MAX`] runs.
    pub unreadable: Vec<Run>,
    /// Bytes of such runs in all.
    pub unreadable_bytes: u64,
}

/// A region of a volume that cannot be restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Damage {
    /// Which 4 MiB region of the volume.
    pub region: u64,
    /// Where it begins.
    pub offset_bytes: u64,
    /// The file of the store that is damaged or missing; empty if no file is to blame.
    pub segment: String,
    /// What is wrong.
    pub message: String,
}

/// A run of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Run {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub bytes: u64,
}

impl Verification {
    /// Whether all of it was read and nothing was found damaged.
    pub fn is_sound(&self) -> bool {
        self.state == VerificationState::Done && self.volumes.iter().all(|v| v.damaged_regions == 0)
    }
}
