//! Failover: a gateway's copy takes the place of a source that is gone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::follower::FollowerState;
use crate::source::LastPoint;

/// A failover to begin, or to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailoverRequest {
    /// An [`Address`](crate::Address): the group.
    pub group: String,
    /// The slot of the point; unless said: the newest.
    pub point: Option<u64>,
    /// The id of a cut of several groups that the point is of: that it is not the newest is no objection then.
    pub cut: Option<String>,
    /// Also to a point that is not the newest, that its source could not read in full, or that may be damaged; and also while the source is connected.
    pub force: bool,
    /// The name of the paired host that has the copy from then on, and may publish in place of the source.
    pub stand_in: Option<String>,
    /// Of a group that was failed over already, and of which something was published since: fail it over once more, to that.
    pub again: bool,
    /// Also if points that are here and not published yet cannot be published: they are lost then.
    pub lose_staged: bool,
    /// Give up one that has fenced nobody yet.
    pub abort: bool,
    /// `true`: it is for good, and its source may not come back; `false`: it may again.
    pub commit: Option<bool>,
    /// Begin none: go on with the one of this generation, or of a later one.
    pub goes_on: Option<u64>,
    /// Say what would happen, and change nothing.
    pub plan: bool,
}

/// How far a failover is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverStage {
    /// Nothing was changed.
    #[default]
    Planned,
    /// The source is being fenced.
    Fencing,
    /// It is; followers are told.
    Fenced,
    /// Followers bring up the point, or have.
    Promoted,
    /// The history was taken back by its source, or by another failover.
    Over,
}

/// One failover.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FailoverStatus {
    /// Of which source.
    pub source: String,
    /// Of which group.
    pub group: String,
    /// How far it is.
    pub stage: FailoverStage,
    /// Whoever has a lower one publishes nothing any more.
    pub generation: u64,
    /// The point that is brought up; `None`: the group has none.
    pub point: Option<LastPoint>,
    /// The source could not read all of that point: what is missing reads as an error.
    pub degraded: bool,
    /// What was found damaged that it may have: in which point, and where. `None`: nothing that is known.
    #[serde(default)]
    pub damaged: Option<String>,
    /// A failover before left that point aside, and was to an older one: it is brought up only if that is forced.
    pub aside: bool,
    /// The newest point that there is.
    pub newest: Option<LastPoint>,
    /// It is from after the failover: another host publishes in place of the source, or did.
    pub published_since: bool,
    /// How old what the newest point holds is, which is what may be lost with it; `None`: not known.
    pub lag_ms: Option<u64>,
    /// Who is fenced by it: the host that is connected, or published last; once nobody is, the source.
    pub fences: Option<String>,
    /// How long nothing was heard of that host; `None`: not since the receiver started.
    pub silent_ms: Option<u64>,
    /// From where it is connected, while it is.
    pub connected_from: Option<String>,
    /// How long it is still waited for the source before it is fenced: the gateway was started a moment ago, or ended its connections, and whoever is
    /// alive comes back by then. `None`: not at all.
    pub waits_ms: Option<u64>,
    /// It has stopped in order: its last word was that all is published, and it was not connected since. Not known once the receiver was restarted,
    /// nor where the store is an older copy of what it was then.
    pub all_published: bool,
    /// It was forced.
    pub forced: bool,
    /// It is for good: its source may not come back.
    pub committed: bool,
    /// Why more of it cannot be told now; `None`: all is told.
    pub why: Option<String>,
    /// The host that may publish in place of the source.
    pub stand_in: Option<String>,
    /// The volumes of the point.
    pub members: Vec<FailoverMember>,
    /// Volumes of the group that the point has nothing of.
    pub left_out: Vec<LeftOut>,
}

/// A volume that is brought up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct FailoverMember {
    /// Its name.
    pub volume: String,
    /// Its size.
    pub bytes: u64,
    /// The follower whose target takes its place, if there is one.
    pub follower: Option<String>,
    /// That target.
    #[schema(value_type = Option<String>)]
    pub target: Option<PathBuf>,
    /// What the follower does.
    pub state: Option<FollowerState>,
    /// Somebody else may have written to that target: an apply was cut short, and all of it was not compared since.
    pub in_doubt: bool,
}

/// A volume that is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeftOut {
    /// Its name.
    pub volume: String,
    /// Its own newest point.
    pub newest: Option<LastPoint>,
}
