//! Points as people see them. Pure.

use farside_ledger::{EpochInfo, Label, Point, PointFilter, Proof, Proofs, State};
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
    /// What its source says of it.
    pub label: Option<Box<Label>>,
    /// Ledger time of its record, in milliseconds.
    pub ledger_time_ms: u64,
    /// The receiver's wall clock when it was published, in milliseconds since 1970.
    pub published_wall_ms: i64,
    /// It holds runs that the source could not read.
    pub degraded: bool,
    /// Why it is kept: slot of the pin, reason.
    pub pins: Vec<(Slot, String)>,
    /// When it was verified last.
    pub proofs: Proofs<Proof>,
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

/// Some of the points that somebody looks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PointsFound {
    /// Newest first.
    pub points: Vec<PointInfo>,
    /// Whether there are older ones.
    pub more: bool,
    /// How many there are in all; only where no slot was named to begin below.
    pub total: Option<u64>,
}

/// The retained points of a group, oldest first.
pub(crate) fn list(image: &GroupImage) -> impl Iterator<Item = PointInfo> + '_ {
    image.state().points().values().map(|point| info(image.state(), point))
}

/// The newest `limit` points below a slot (`None`: of all) that a filter wants. Who wants only the newest until some moment means the state of that
/// moment: † not what was cut after it by a clock that was set back.
pub fn find_points(state: &State, filter: &PointFilter, below: Option<Slot>, limit: usize) -> PointsFound {
    let after = filter.until_wall_ms.filter(|_| limit == 1).and_then(|until| state.first_cut_after(until));
    let end = [below, after].into_iter().flatten().min();
    let (points, more) = first_of(state, state.points_below(end), filter, limit);
    PointsFound { points, more, total: below.is_none().then(|| state.count_points(filter)) }
}

/// The first `limit` of `points` that a filter wants, and whether there are more. Looks no further than to know that.
fn first_of<'p>(
    state: &State,
    points: impl Iterator<Item = &'p Point>,
    filter: &PointFilter,
    limit: usize,
) -> (Vec<PointInfo>, bool) {
    let mut wanted = points.filter(|point| filter.fits(point));
    let found = wanted.by_ref().take(limit).map(|point| info(state, point)).collect();
    (found, wanted.next().is_some())
}

/// The oldest point and the newest one that a filter wants.
pub fn point_ends(state: &State, filter: &PointFilter) -> Option<(PointInfo, PointInfo)> {
    let fits = |point: &&Point| filter.fits(point);
    let (newest, oldest) = (state.points_below(None).find(fits)?, state.points_below(None).rev().find(fits)?);
    Some((info(state, oldest), info(state, newest)))
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
        label: point.label.clone(),
        ledger_time_ms: point.time_ms,
        published_wall_ms: point.published_wall_ms,
        degraded: point.degraded,
        proofs: point.proofs,
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::testkit::{TestVolume, state_of_cuts, state_of_points};

    /// As many as ten seconds apart for eleven days: a page looks at its own points and at one more.
    #[test]
    fn a_page_of_a_hundred_thousand_points_looks_at_its_own() {
        const POINTS: u64 = 100_000;
        const PAGE: usize = 1000;
        let volume = TestVolume::new("v", 16);
        let state = state_of_points(&volume, POINTS);
        let looked_at = Cell::new(0);
        let filter = PointFilter::default();
        let (mut below, mut slots) = (None, Vec::new());
        loop {
            let points = state.points_below(below).inspect(|_| looked_at.set(looked_at.get() + 1));
            let (page, more) = first_of(&state, points, &filter, PAGE);
            below = page.last().map(|point| point.slot);
            slots.extend(page.iter().map(|point| point.slot));
            assert!(looked_at.take() <= PAGE + 1, "after {} points", slots.len());
            if !more {
                break;
            }
        }
        assert!(slots.iter().eq(state.points().keys().rev()), "every point once, newest first");
        assert_eq!(find_points(&state, &filter, None, 1).total, Some(POINTS));

        // Point i is cut in second i.
        let within = |since: Option<i64>, until: Option<i64>| PointFilter {
            volume: Some(volume.id()),
            since_wall_ms: since.map(|s| s * 1000),
            until_wall_ms: until.map(|s| s * 1000),
            ..PointFilter::default()
        };
        let found = find_points(&state, &within(Some(500), Some(60_000)), None, 3);
        assert_eq!((found.more, found.total), (true, Some(59_501)));
        assert_eq!(found.points.iter().map(|p| p.epoch.wall_ms / 1000).collect::<Vec<_>>(), [60_000, 59_999, 59_998]);
        let (oldest, newest) = point_ends(&state, &within(Some(500), None)).expect("points");
        assert_eq!((oldest.epoch.wall_ms, newest.slot), (500_000, slots[0]));
        let of_another = PointFilter { volume: Some(TestVolume::new("w", 16).id()), ..PointFilter::default() };
        assert_eq!(find_points(&state, &of_another, None, 3), PointsFound { total: Some(0), ..PointsFound::default() });
        assert!(point_ends(&state, &of_another).is_none());
    }

    /// A host is encrypted by somebody at 14:00, and rebooted with a clock that says 2020.
    #[test]
    fn a_moment_is_looked_for_below_what_was_cut_after_it() {
        let volume = TestVolume::new("v", 16);
        let (minute, year) = (60_i64, 365 * 86_400_i64);
        let day = 50 * year;
        let at = |minutes: i64| day + minutes * minute;
        // By the host's clock, and by the gateway's.
        let cuts = [
            (at(10), at(10)),
            // One that once ran a year ahead says nothing of what came after.
            (at(11) + year, at(11)),
            // Nor does one that the gateway's ran ahead with, on one machine.
            (at(11) + 2 * year, at(11) + 2 * year),
            (at(12), at(13)),
            (at(20), at(20)),
            (day - 44 * year, at(31)),
            (at(-120), at(32)),
            (at(40), at(40)),
        ];
        let state = state_of_cuts(&volume, &cuts);
        let found = |until: i64, limit: usize| {
            let filter = PointFilter { until_wall_ms: Some(until * 1000), ..PointFilter::default() };
            find_points(&state, &filter, None, limit).points.iter().map(|point| point.epoch.wall_ms / 1000).collect::<Vec<_>>()
        };
        assert_eq!(found(at(15), 1), [at(12)]);
        assert_eq!(found(at(30), 1), [at(-120)], "all that is known of it is that it came after 20");
        assert_eq!(found(at(41), 1), [at(40)]);
        assert_eq!(found(at(15), 3), [at(-120), day - 44 * year, at(12)], "a list says what the clocks said");
    }
}
