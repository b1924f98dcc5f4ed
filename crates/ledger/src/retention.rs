//! Which points a policy no longer needs. Time is ledger time, and counts are per member volume: a volume that is not a
//! member of the newer points does not age.

use farside_region::{Slot, VolumeId, mutation};
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
        // Ledger time never runs back, so the old enough points come first.
        let old = self.points().values().take_while(|p| self.is_aged(p, policy));
        old.filter(|p| self.may_go(p, policy)).map(|p| p.slot).collect()
    }

    /// Whether `policy` lets this one point go. Costs about as much as there are newer points to find.
    pub(crate) fn is_prunable(&self, point: Slot, policy: &Policy) -> bool {
        self.points().get(&point).is_some_and(|p| self.is_aged(p, policy) && self.may_go(p, policy))
    }

    fn is_aged(&self, point: &Point, policy: &Policy) -> bool {
        self.time_ms().saturating_sub(point.time_ms) >= policy.span_ms
    }

    fn may_go(&self, point: &Point, policy: &Policy) -> bool {
        if !point.pins.is_empty() {
            return false;
        }
        let keep = policy.keep.max(1);
        let mut waiting: Vec<Newer> =
            point.members.iter().map(|m| Newer { volume: m.key.volume, good: 0, degraded: 0 }).collect();
        for newer in self.points().range(point.slot.next()..).map(|(_, p)| p) {
            let aged = self.is_aged(newer, policy);
            for member in &mut waiting {
                if newer.members.iter().any(|m| m.key.volume == member.volume) || mutation::on("L5 K counts per group") {
                    member.good += u32::from(!newer.degraded || mutation::on("L5 degraded points count for K"));
                    member.degraded += u32::from(newer.degraded && aged);
                }
            }
            waiting.retain(|m| m.good < keep && !(point.degraded && m.degraded >= keep));
            if waiting.is_empty() {
                return true;
            }
        }
        false
    }
}

/// How many newer points hold a member of the one in question.
struct Newer {
    volume: VolumeId,
    good: u32,
    degraded: u32,
}
