//! Points as people see and name them. Pure.

use std::fmt;
use std::str::FromStr;

use farside_ledger::EpochInfo;
use farside_region::{LayerKey, Name, RecordDigest, Slot, VolumeId};
use jiff::Timestamp;

use crate::error::{Result, StoreError};
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
pub(crate) fn list(image: &GroupImage) -> Vec<PointInfo> {
    let state = image.state();
    let points = state.points().values();
    points
        .map(|point| PointInfo {
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
        })
        .collect()
}

/// How a person names a point: `latest`, its id, an RFC 3339 time, or how long ago (`-5m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointSpec {
    /// The newest.
    Latest,
    /// This one.
    Id(Slot),
    /// The newest that was cut by then, in milliseconds since 1970 on the source's wall clock.
    At {
        /// The time.
        wall_ms: i64,
    },
    /// The newest that was cut so long ago or earlier.
    Ago {
        /// How long.
        ms: i64,
    },
}

/// A string that names no point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` does not name a point: say `latest`, an id from `point list`, a time like 2026-03-01T12:00:00Z, or -5m (s, m, h, d, w)"
)]
pub struct PointSpecError(pub String);

impl FromStr for PointSpec {
    type Err = PointSpecError;

    fn from_str(text: &str) -> Result<Self, PointSpecError> {
        let error = || PointSpecError(text.chars().take(80).collect());
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(|slot| Self::Id(Slot(slot))).map_err(|_| error());
        }
        if let Some(ago) = text.strip_prefix('-') {
            let unit = ago.chars().next_back().ok_or_else(error)?;
            let unit_ms = match unit {
                's' => 1000,
                'm' => 60_000,
                'h' => 3_600_000,
                'd' => 86_400_000,
                'w' => 7 * 86_400_000,
                _ => return Err(error()),
            };
            let digits = &ago[..ago.len() - 1];
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let count: i64 = if plain { digits.parse().map_err(|_| error())? } else { return Err(error()) };
            return Ok(Self::Ago { ms: count.checked_mul(unit_ms).ok_or_else(error)? });
        }
        let time: Timestamp = text.parse().map_err(|_| error())?;
        Ok(Self::At { wall_ms: time.as_millisecond() })
    }
}

impl fmt::Display for PointSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Id(slot) => slot.fmt(f),
            Self::At { wall_ms } => match Timestamp::from_millisecond(*wall_ms) {
                Ok(time) => time.fmt(f),
                Err(_) => write!(f, "{wall_ms} ms after 1970"),
            },
            Self::Ago { ms } => write!(f, "-{}s", ms / 1000),
        }
    }
}

/// Finds a point among those that hold a volume (`None`: any). `now_wall_ms`: milliseconds since 1970, for "how long ago".
///
/// # Errors
/// [`StoreError::NoSuchPoint`], with what there is instead.
pub fn resolve<'p>(
    points: &'p [PointInfo],
    spec: PointSpec,
    volume: Option<VolumeId>,
    now_wall_ms: i64,
) -> Result<&'p PointInfo> {
    let holds = |p: &&PointInfo| volume.is_none_or(|v| p.member(v).is_some());
    let none = |why: String| StoreError::NoSuchPoint { point: spec.to_string(), why };
    let mut with_it = points.iter().filter(holds);
    let (Some(first), last) = (with_it.next(), with_it.next_back()) else {
        return Err(none("no point was published yet".into()));
    };
    let last = last.unwrap_or(first);
    let by = |wall_ms: i64| {
        let cut_by_then = points.iter().filter(holds).filter(|p| p.epoch.wall_ms <= wall_ms);
        cut_by_then.max_by_key(|p| p.slot).ok_or_else(|| {
            let oldest = PointSpec::At { wall_ms: first.epoch.wall_ms };
            none(format!("the oldest point that is kept was cut at {oldest} (id {})", first.slot))
        })
    };
    match spec {
        PointSpec::Latest => Ok(last),
        PointSpec::Id(slot) => points.iter().filter(holds).find(|p| p.slot == slot).ok_or_else(|| {
            none(format!("kept are the ids {} to {}, not all numbers between; see `point list`", first.slot, last.slot))
        }),
        PointSpec::At { wall_ms } => by(wall_ms),
        PointSpec::Ago { ms } => by(now_wall_ms.saturating_sub(ms)),
    }
}

#[cfg(test)]
mod tests {
    use farside_region::{BootId, Seq, Term};

    use super::*;

    fn point(slot: u64, wall_ms: i64, volumes: &[u8]) -> PointInfo {
        let member = |&v: &u8| MemberInfo {
            volume: VolumeId([v; 16]),
            name: "v".parse().expect("name"),
            layer: LayerKey { volume: VolumeId([v; 16]), term: Term(0), seq: Seq(1) },
            volume_bytes: 1,
            layer_bytes: 1,
            degraded: false,
        };
        PointInfo {
            slot: Slot(slot),
            digest: RecordDigest([0; 32]),
            epoch: EpochInfo { boot: BootId([0; 16]), mono_before_ns: 0, mono_after_ns: 0, wall_ms },
            ledger_time_ms: 0,
            published_wall_ms: wall_ms,
            degraded: false,
            pins: Vec::new(),
            members: volumes.iter().map(member).collect(),
        }
    }

    #[test]
    fn every_way_to_name_a_point_finds_it() {
        let points = [point(3, 100_000, &[1, 2]), point(5, 200_000, &[1]), point(9, 300_000, &[1, 2])];
        let find = |text: &str, volume: Option<u8>| {
            let spec: PointSpec = text.parse().expect("a point");
            resolve(&points, spec, volume.map(|v| VolumeId([v; 16])), 310_000).map(|p| p.slot.0)
        };
        assert_eq!(find("latest", None).expect("found"), 9);
        assert_eq!(find("5", Some(1)).expect("found"), 5);
        assert!(find("5", Some(2)).is_err(), "not a member");
        assert_eq!(find("-1m", None).expect("found"), 5);
        assert_eq!(find("-1m", Some(2)).expect("found"), 3);
        assert_eq!(find("1970-01-01T00:03:20Z", None).expect("found"), 5, "200 s after the start of 1970");
        let error = find("-1h", None).expect_err("too old").to_string();
        assert!(error.contains("id 3") && error.contains("1970-01-01T00:01:40Z"), "{error}");
        let error = resolve(&[], PointSpec::Latest, None, 0).expect_err("none").to_string();
        assert!(error.contains("no point was published"), "{error}");
    }

    #[test]
    fn what_names_no_point_is_refused() {
        for bad in [
            "",
            "-",
            "-5",
            "-m",
            "-5y",
            "-+5m",
            "yesterday",
            "99999999999999999999",
            "-99999999999999999w",
            "-5µ",
            "2026-13-01T00:00:00Z",
        ] {
            assert!(bad.parse::<PointSpec>().is_err(), "{bad:?}");
        }
    }
}
