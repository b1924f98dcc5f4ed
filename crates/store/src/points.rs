//! Points as people see them. Pure.

use farside_ledger::{EpochInfo, Point, State};
use farside_region::{LayerKey, Name, RecordDigest, Slot, VolumeId};

use crate::image::GroupImage;

/// A retained recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointInfo {
    /// The slot of its record: its id within the group.
    pub slot: Slot,
    /// The digest of its record.
    pub digest: RecordDigest,
    /// When it was cut: an interval of the source's CLOCK_MONOTONIC, and its wall clock.
    pub epoch: EpochInfo,
    /// Ledger time of its record, in milliseconds.
    pub ledger_time_ms: u64,
    /// The receiver's wall clock when it was published, in milliseconds since 1970.
    pub published_wall_ms: i64,
    /// It holds runs that the source could not read.
    pub degraded: bool,
    /// Why it is kept: slot of the pin, reason.
    pub pins: Vec<(Slot, String)>,
    /// Its volumes.
    pub members: Vec<MemberInfo>,
}

/// A volume in a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// The layer that made it a member.
    pub layer: LayerKey,
    /// Its size in the point.
    pub volume_bytes: u64,
    /// Stored bytes of that layer.
    pub layer_bytes: u64,
    /// It holds runs that the source could not read.
    pub degraded: bool,
}

impl PointInfo {
    /// Stored bytes that came with this point.
    pub fn layer_bytes(&self) -> u64 {
        self.members.iter().map(|m| m.layer_bytes).sum()
    }

    /// A volume of it.
    pub fn member(&self, volume: VolumeId) -> Option<&MemberInfo> {
        self.members.iter().find(|m| m.volume == volume)
    }
}

/// The retained points of a group, oldest first.
pub(crate) fn list(image: &GroupImage) -> impl Iterator<Item = PointInfo> + '_ {
    image.state().points().values().map(|point| info(image.state(), point))
}

/// Those below a slot (`None`: all), newest first.
pub(crate) fn below(image: &GroupImage, below: Option<Slot>) -> impl Iterator<Item = PointInfo> + '_ {
    let points = image.state().points().range(..below.unwrap_or(Slot(u64::MAX)));
    points.rev().map(|(_, point)| info(image.state(), point))
}

/// One of them.
pub(crate) fn one(image: &GroupImage, slot: Slot) -> Option<PointInfo> {
    image.state().points().get(&slot).map(|point| info(image.state(), point))
}

fn info(state: &State, point: &Point) -> PointInfo {
    PointInfo {
        slot: point.slot,
        digest: state.digest_at(point.slot).expect("a point's record was replayed"),
        epoch: point.epoch,
        ledger_time_ms: point.time_ms,
        published_wall_ms: point.published_wall_ms,
        degraded: point.degraded,
        pins: point.pins.iter().map(|(&slot, reason)| (slot, reason.clone())).collect(),
        members: point
            .members
            .iter()
            .map(|member| MemberInfo {
                volume: member.key.volume,
                name: state.volume(member.key.volume).expect("a member was claimed").meta().name.clone(),
                layer: member.key,
                volume_bytes: member.volume_bytes,
                layer_bytes: member.layer_bytes,
                degraded: member.degraded,
            })
            .collect(),
    }
}
