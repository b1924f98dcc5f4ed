//! Rollback: a host that was failed over takes its history back, and goes on with its own disks as they are. What another host published in its place is
//! discarded by that, and is pinned first.

use serde::{Deserialize, Serialize};

use crate::source::LastPoint;

/// Which group is to be rolled back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RollbackRequest {
    /// The group, of this host.
    pub group: String,
    /// Also where the gateway cannot be asked what is discarded, or cannot pin it.
    pub force: bool,
    /// Say what would happen, and change nothing.
    pub plan: bool,
}

/// What a rollback did, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct RollbackStatus {
    /// The group.
    pub group: String,
    /// The source of its history.
    pub source: String,
    /// Volumes that take the history back.
    pub volumes: Vec<String>,
    /// Nothing was changed.
    pub planned: bool,
    /// What becomes of what was published since the failover.
    pub keeps: RollbackKeeps,
    /// The newest whole point of that.
    pub point: Option<LastPoint>,
    /// How many points it is, all together.
    pub points: u64,
    /// The newest of them, if that is another one: its source could not read all of it, it lacks a volume, or a failover left it aside. It goes as
    /// policy says.
    pub newest: Option<u64>,
    /// Who published it, as far as the gateway knows. What that host has not published is on its disks only.
    pub other: Option<String>,
    /// That host is connected to the gateway, and may publish more.
    pub other_connected: bool,
    /// Why nobody knows what is discarded, or why it is not pinned.
    pub why: Option<String>,
}

/// What becomes of what was published since a failover whose source goes on with its own disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollbackKeeps {
    /// The gateway cannot be asked, or cannot pin it: it goes as policy says.
    #[default]
    Unknown,
    /// There is nothing that is whole.
    Nothing,
    /// Its newest point is pinned before any volume takes its history back.
    Wanted,
    /// It is pinned.
    Pinned,
}
