//! Questions about recovery points, asked by a source's API for its users and answered by the receiver from its store.

use farside_ledger::{EpochInfo, Label, PointFilter};
use farside_region::{LayerKey, Name, RecordDigest, Slot};
use serde::{Deserialize, Serialize};

use crate::RequestId;

/// Asks about points of the group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointQuery {
    /// Comes back in the answer.
    pub id: RequestId,
    /// What.
    pub kind: PointQueryKind,
}

impl PointQuery {
    pub(crate) fn text_bytes(&self) -> usize {
        match &self.kind {
            PointQueryKind::List { filter, .. } => {
                [&filter.reason, &filter.label].into_iter().flatten().map(String::len).max().unwrap_or(0)
            }
            PointQueryKind::Show { .. } => 0,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PointQueryKind {
    /// Newest first.
    List {
        /// Only these points.
        filter: PointFilter,
        /// Only points below this slot: the next page.
        below: Option<Slot>,
        /// At most so many; the receiver may answer fewer.
        limit: u32,
    },
    /// One point, and what became of it.
    Show {
        /// The slot of its record.
        point: Slot,
    },
}

/// The answer to a [`PointQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointAnswer {
    /// Of the question.
    pub id: RequestId,
    /// One page; for `Show` at most one point.
    pub page: PointPage,
}

/// One page of points, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointPage {
    /// The points.
    pub points: Vec<PointInfo>,
    /// Whether there are older ones.
    pub more: bool,
    /// How many points the question is about, all pages together; only on the first one.
    pub total: Option<u64>,
}

impl PointPage {
    /// Bytes of points in one page, encoded: well below what a frame holds.
    pub const BYTES_MAX: usize = 512 << 10;

    /// The first of `points` (newest first), as many as fit; at least one, if there is one and `limit` is not 0.
    pub fn of(points: impl IntoIterator<Item = PointInfo>, limit: usize) -> Self {
        let mut page = Self::default();
        let mut bytes = 0;
        for point in points {
            bytes += point.bytes_max();
            if page.points.len() >= limit || (bytes > Self::BYTES_MAX && !page.points.is_empty()) {
                page.more = true;
                break;
            }
            page.points.push(point);
        }
        page
    }
}

impl PointInfo {
    /// Its encoding is not longer than this: no number takes more than ten bytes.
    fn bytes_max(&self) -> usize {
        let member = |m: &PointMemberInfo| m.name.as_str().len() + 2 + 16 + 5 * 10;
        let label = self.label.as_ref().map_or(0, |label| label.title.len() + label.hooks.len() + 8);
        160 + label + self.members.iter().map(member).sum::<usize>()
    }
}

/// A recovery point as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// The slot of its record.
    pub slot: Slot,
    /// The digest of its record.
    pub digest: RecordDigest,
    /// When it was cut, as an interval of the source's CLOCK_MONOTONIC.
    pub epoch: EpochInfo,
    /// What its source says of it.
    pub label: Option<Box<Label>>,
    /// When it was published, in the ledger's time.
    pub ledger_time_ms: u64,
    /// Held by a pin.
    pub pinned: bool,
    /// The volumes it holds.
    pub members: Vec<PointMemberInfo>,
}

/// One volume of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointMemberInfo {
    /// The volume's name.
    pub name: Name,
    /// The layer that made it a member.
    pub layer: LayerKey,
    /// Size of the volume in the point.
    pub volume_bytes: u64,
    /// Number of regions that hold an unreadable run; 0 = not degraded.
    pub unreadable_regions: u64,
}
