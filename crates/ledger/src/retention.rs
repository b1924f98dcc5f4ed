//! Which points a policy no longer needs. Time is ledger time, and counts are per member volume: a volume that is not a
//! member of the newer points does not age.

use std::collections::VecDeque;

use farside_region::{Slot, mutation};
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
    ///
    /// Costs a few comparisons per member of each point beyond the span, whatever the policy.
    pub fn prunable(&self, policy: &Policy) -> Vec<Slot> {
        // Ledger time never runs back, so the old enough points come first.
        let old = self.points().values().take_while(|p| self.is_aged(p, policy));
        old.filter(|p| self.may_go(p, policy)).map(|p| p.slot).collect()
    }

    /// Whether `policy` lets this one point go.
    pub(crate) fn is_prunable(&self, point: Slot, policy: &Policy) -> bool {
        self.points().get(&point).is_some_and(|p| self.is_aged(p, policy) && self.may_go(p, policy))
    }

    fn is_aged(&self, point: &Point, policy: &Policy) -> bool {
        self.time_ms().saturating_sub(point.time_ms) >= policy.span_ms
    }

    fn may_go(&self, point: &Point, policy: &Policy) -> bool {
        let keep = policy.keep.max(1) as usize;
        let aged = |slot: &Slot| self.points().get(slot).is_some_and(|p| self.is_aged(p, policy));
        point.pins.is_empty()
            && point.members.iter().all(|member| {
                let Some(held) = self.held_by(member.key.volume) else { return false };
                let mut good = held.good_above(point.slot);
                if mutation::on("L5 degraded points count for K") {
                    good += held.degraded_above(point.slot).count();
                }
                if mutation::on("L5 K counts per group") {
                    good = self.points().range(point.slot.next()..).filter(|(_, newer)| !newer.degraded).count();
                }
                good >= keep || (point.degraded && held.degraded_above(point.slot).take_while(aged).nth(keep - 1).is_some())
            })
    }
}

/// The retained points that hold a volume, ascending. Derived from the points; kept beside them, so that a policy need not walk
/// them all for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldBy {
    good: VecDeque<Slot>,
    degraded: VecDeque<Slot>,
}

impl HeldBy {
    /// The newest point of them.
    pub(crate) fn newest(&self) -> Option<Slot> {
        self.good.back().max(self.degraded.back()).copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.good.is_empty() && self.degraded.is_empty()
    }

    /// A point came in: the newest.
    pub(crate) fn add(&mut self, slot: Slot, degraded: bool) {
        if degraded { self.degraded.push_back(slot) } else { self.good.push_back(slot) }
    }

    /// A point went.
    pub(crate) fn remove(&mut self, slot: Slot) {
        for slots in [&mut self.good, &mut self.degraded] {
            if let Ok(at) = slots.binary_search(&slot) {
                slots.remove(at);
            }
        }
    }

    fn good_above(&self, slot: Slot) -> usize {
        self.good.len() - self.good.partition_point(|s| *s <= slot)
    }

    fn degraded_above(&self, slot: Slot) -> impl Iterator<Item = Slot> + '_ {
        self.degraded.range(self.degraded.partition_point(|s| *s <= slot)..).copied()
    }
}
