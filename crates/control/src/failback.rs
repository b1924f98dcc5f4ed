//! Cutover: a group leaves its host in order. Failback: the disks of a host that was failed over are brought to what its stand-in published, and
//! take the history back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::source::LastPoint;

/// What to do about a group's failback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailbackRequest {
    /// The group, of this host.
    pub group: String,
    /// Which step.
    pub step: FailbackStep,
    /// Also where nothing was published since the failover, and also while another host may publish more; never over points that were
    /// published after the one that the disks are.
    pub force: bool,
    /// What the disks hold and no point does is not kept before it is overwritten.
    pub discard_branch: bool,
    /// Say what would happen, and change nothing.
    pub plan: bool,
}

/// A step of a failback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailbackStep {
    /// Take the volumes out of service, and bring their disks to the newest point, and to every newer one.
    #[default]
    Begin,
    /// Bring them to the newest point once more, serve them again, and take the history back.
    Finish,
    /// Serve them as their disks are, fenced as before.
    Abort,
    /// The disks that are at their places now are meant, whichever were taken: all of them are compared, and overwritten.
    AcceptDisks,
}

/// What to do about a group's cutover.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CutoverRequest {
    /// The group, of this host.
    pub group: String,
    /// Which step.
    pub step: CutoverStep,
    /// How long it may take until all is published, in seconds; then the volumes are served again. `None`: 300.
    pub wait_seconds: Option<u32>,
    /// Serve what was handed over again also if it was failed over since, or if the gateway cannot be asked whether it was.
    #[serde(default)]
    pub force: bool,
    /// Say what would happen, and change nothing.
    pub plan: bool,
}

/// A step of a cutover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CutoverStep {
    /// Take the volumes out of service, and publish all that was written to them.
    #[default]
    Begin,
    /// Serve them again.
    Abort,
}

/// How far a cutover, or a failback, is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailbackStage {
    /// Nothing was changed.
    #[default]
    Planned,
    /// A cutover: the volumes are served no more, and what was written to them is being published.
    HandingOver,
    /// A cutover: all is published, and the disks are kept from everybody until a failback, or until that is aborted.
    HandedOver,
    /// The volumes are being taken out of service.
    Taking,
    /// What the disks hold and no point does is being kept, and they are brought to the point that they went their own way from.
    Keeping,
    /// The disks are being brought to a point.
    Pulling,
    /// The disks are a point; newer ones are followed.
    Following,
    /// The volumes are served again, and the history is being taken back.
    Returning,
    /// It was aborted: the volumes are served again.
    Aborting,
}

/// The cutover or failback of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FailbackStatus {
    /// The group.
    pub group: String,
    /// The source of its history: another host where this one stands in for it.
    pub source: Option<String>,
    /// How far it is.
    pub stage: FailbackStage,
    /// It was told to finish.
    pub finishing: bool,
    /// The promotion that it takes the history back from.
    pub generation: u64,
    /// The point that all its disks are; `None`: no one point.
    pub holds: Option<LastPoint>,
    /// The point that they are brought to, or would be.
    pub point: Option<LastPoint>,
    /// Whether that was published since the failover.
    pub is_since: bool,
    /// Another host that is connected for the group, and may publish more.
    pub other: Option<String>,
    /// Its volumes.
    pub members: Vec<FailbackMember>,
    /// Regions (4 MiB) that were looked at in this round.
    pub done_regions: u64,
    /// And those that are to be.
    pub total_regions: u64,
    /// What came over the network since this process began, in bytes.
    pub received_bytes: u64,
    /// What was sent for it, in bytes: digests.
    pub sent_bytes: u64,
    /// What was written to the disks since then, in bytes.
    pub written_bytes: u64,
    /// What is kept of what the disks held and no point does, in bytes.
    pub kept_bytes: u64,
    /// What becomes of that.
    pub keeps: BranchKeeps,
    /// The branch in which it is kept.
    pub branch: Option<String>,
    /// The point that it lies over, or would.
    pub over: Option<LastPoint>,
    /// Why it does not go on; of a plan, why it would be refused without `force`.
    pub why: Option<String>,
    /// That is because the gateway is not there: it goes on by itself when it is.
    pub without_gateway: bool,
}

/// What becomes of what the disks hold and no point does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BranchKeeps {
    /// An older farsided does not say: it is overwritten.
    #[default]
    Unknown,
    /// There is nothing.
    Nothing,
    /// A person gave it up: it is overwritten.
    Discarded,
    /// It is kept before anything is overwritten.
    Wanted,
    /// It is being kept.
    Keeping,
    /// It is kept.
    Kept,
}

/// What the disks of a host that was failed over held, and no point does; kept when they were overwritten. Each volume is an overlay over its part of
/// the point (`docs/formats/overlay.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct BranchStatus {
    /// Its name: GROUP/TIME.
    pub id: String,
    /// The group.
    pub group: String,
    /// The source whose history it left.
    pub source: String,
    /// Its folder, on this host.
    pub path: String,
    /// The point that it lies over, which is pinned on the gateway.
    pub over: Option<LastPoint>,
    /// When it was begun.
    pub began: Option<Timestamp>,
    /// Its volumes, each a folder in its folder.
    pub volumes: Vec<String>,
    /// Those of them of which not all is there: they were removed meanwhile.
    pub partial: Vec<String>,
    /// All of it is there, but for those.
    pub whole: bool,
    /// What differs from the point, in bytes; before it is whole what its files take.
    pub bytes: u64,
    /// What could not be read of the disks, in bytes: it is nowhere.
    pub unreadable_bytes: u64,
    /// What is wrong with it.
    pub trouble: Option<String>,
}

/// A volume that is failed back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FailbackMember {
    /// Its name.
    pub volume: String,
    /// Its size at the point, in bytes; 0: not known yet.
    pub bytes: u64,
    /// The disk or file that is written.
    pub backing: String,
}
