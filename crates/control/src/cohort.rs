//! Cohorts: groups of several hosts that a gateway has cut as one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::PointId;

/// How a cohort is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CohortStatus {
    /// Its name.
    pub name: String,
    /// How often it is cut.
    pub every_ms: u64,
    /// How long writes are held for that at its hosts, at most.
    pub hold_us: u64,
    /// Its groups.
    pub groups: Vec<CohortGroup>,
    /// Cuts that were one, since the gateway started.
    pub cuts: u64,
    /// Those that were begun and came to nothing.
    pub missed: u64,
    /// The longest hold of the last cut, in microseconds.
    pub held_us: Option<u64>,
    /// Why the last attempt came to nothing, if it did.
    pub trouble: Option<CohortTrouble>,
    /// The newest cut of which every group has its point, none of which was left aside by a failover, or may have what was found damaged.
    pub newest: Option<CohortCut>,
    /// How many cuts there are of which every group has its point.
    pub points: u64,
    /// Why some groups cannot be asked for their points.
    pub unknown: Option<String>,
}

/// What came of the cuts of a cohort, in few words: part of the gateway's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CohortTally {
    /// Its name.
    pub name: String,
    /// Cuts that were one, since the gateway started.
    pub cuts: u64,
    /// Those that were begun and came to nothing.
    pub missed: u64,
    /// The longest hold of the last cut, in microseconds.
    pub held_us: Option<u64>,
    /// When the newest cut was begun of which every group had its point when the gateway looked, which it does after each attempt: by then the
    /// one before is published, or given up. Of those of which no point was left aside by a failover, or may have what was found damaged. `None`:
    /// there is none, or it is not known.
    pub newest_at: Option<Timestamp>,
}

/// One of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CohortGroup {
    /// `HOST/GROUP`.
    pub group: String,
    /// Whether its host is there to be cut with the others.
    pub connected: bool,
}

/// Why a cut came to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CohortTrouble {
    /// When.
    pub at: Timestamp,
    /// The group that missed it, if one did.
    pub group: Option<String>,
    /// Why.
    pub why: String,
}

/// A cut of which every group has its point: together these are one moment. The groups are those that were cut then, whatever the
/// configuration says now: a point's record says of how many groups its cut is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct CohortCut {
    /// Its id.
    pub id: String,
    /// When it was begun, by the gateway's clock.
    pub at: Timestamp,
    /// The point of each group.
    pub points: Vec<CohortPoint>,
}

/// A group's part of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CohortPoint {
    /// `HOST/GROUP`.
    pub group: String,
    /// Its point.
    pub point: PointId,
    /// A failover of its group before was to an older one instead.
    #[serde(default)]
    pub aside: bool,
    /// What was found damaged that it may have.
    #[serde(default)]
    pub damaged: Option<String>,
}

impl CohortPoint {
    /// Why nobody is failed over to it unless that is forced.
    pub fn doubt(&self) -> Option<String> {
        let of = || format!("point {} of {}", self.point, self.group);
        if self.aside {
            return Some(format!("{} was left aside by a failover to an older one", of()));
        }
        self.damaged.as_ref().map(|why| format!("{} may have what was found damaged: {why}", of()))
    }
}

impl CohortCut {
    /// Why it is not the one that is meant by the newest: that of the first of its points to which nobody is failed over unless that is forced.
    pub fn doubt(&self) -> Option<String> {
        self.points.iter().find_map(CohortPoint::doubt)
    }
}
