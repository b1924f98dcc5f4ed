//! Which points a policy no longer needs. Time is ledger time, and counts are per member volume: a volume that is not a
//! member of the newer points does not age.

use std::collections::{BTreeMap, BTreeSet};

use farside_region::{Slot, VolumeId};
use serde::{Deserialize, Serialize};

use crate::state::{Point, State};

/// How many points a volume keeps, and for how long at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The newest so many non-degraded points of every volume stay, whatever their age. 0 counts as 1: there is always a last
    /// good point.
    pub keep: u32,
    /// Points younger than this stay, in milliseconds of ledger time. 0 keeps by number only.
    pub span_ms: u64,
}

impl State {
    /// The points that `policy` lets go at the head, oldest first.
    ///
    /// A point goes only if it has no pin, is as old as the span, and every member has `keep` newer non-degraded points that
    /// hold it. A degraded point may also go when `keep` newer degraded ones beyond the span hold the member: while a sector
    /// stays bad, bad points do not pile up, and the newest good ones stay. The answer only grows until a pin comes in.
    pub fn prunable(&self, policy: &Policy) -> Vec<Slot> {
        let keep = policy.keep.max(1);
        let mut newer: BTreeMap<VolumeId, Newer> = BTreeMap::new();
        let mut slots = Vec::new();
        for (&slot, point) in self.points().iter().rev() {
            let aged = self.time_ms().saturating_sub(point.time_ms) >= policy.span_ms;
            let enough = |n: &Newer| n.good >= keep || (point.degraded && n.degraded_aged >= keep);
            if aged && point.pins.is_empty() && point.members.iter().all(|m| newer.get(&m.key.volume).is_some_and(enough)) {
                slots.push(slot);
            }
            for member in &point.members {
                newer.entry(member.key.volume).or_default().count(point, aged);
            }
        }
        slots.reverse();
        slots
    }

    /// The named points that `policy` does not let go, or that are not there.
    pub(crate) fn not_prunable(&self, policy: &Policy, points: &[Slot]) -> Option<Slot> {
        if points.is_empty() {
            return None;
        }
        let prunable: BTreeSet<Slot> = self.prunable(policy).into_iter().collect();
        points.iter().copied().find(|p| !prunable.contains(p))
    }
}

/// Newer points that hold a volume.
#[derive(Default)]
struct Newer {
    good: u32,
    degraded_aged: u32,
}

impl Newer {
    fn count(&mut self, point: &Point, aged: bool) {
        if !point.degraded {
            self.good = self.good.saturating_add(1);
        } else if aged {
            self.degraded_aged = self.degraded_aged.saturating_add(1);
        }
    }
}
