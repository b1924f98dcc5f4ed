//! Which points are the history of what a failover brought up. One to an older point leaves newer ones aside: they stay points, and no later failover,
//! nor a host that comes back, takes them for what was published since.

use farside_region::{Slot, mutation};
use serde::{Deserialize, Serialize};

/// What one failover left aside: what is above the point that it brought up, and was there when it fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// What was brought up.
    pub point: Slot,
    /// The newest that there was.
    pub parted: Slot,
}

/// The failovers of a group that left something aside, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(Vec<Aside>);

impl Lineage {
    /// Whether none did.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest point that was ever left aside.
    pub fn newest_aside(&self) -> Option<Slot> {
        self.0.iter().map(|aside| aside.parted).max()
    }

    /// Whether the history goes on with a point: nothing that was left aside is as new.
    pub fn is_followed_by(&self, slot: Slot) -> bool {
        Some(slot) > self.newest_aside()
    }

    /// With one more, if that left anything aside.
    #[must_use]
    pub fn and(mut self, aside: Option<Aside>) -> Self {
        // One that brought up what was aside before puts it right: it is the history again.
        let says = |aside: &Aside| aside.point < aside.parted || !self.has(aside.point);
        let aside = aside.filter(says);
        self.0.extend(aside);
        self
    }

    /// Whether a point is part of the history now. † One that was brought up may itself be of what an earlier failover had left aside: what was published
    /// before it counts then, and what it was left aside for does not.
    pub fn has(&self, slot: Slot) -> bool {
        if mutation::on("L6 what a failover left aside is brought up by the next one") {
            return true;
        }
        let mut top = Slot(u64::MAX);
        for aside in self.0.iter().rev() {
            // (What is at the top was published before that one.)
            if top > aside.parted {
                if slot > aside.parted {
                    break;
                }
                top = aside.point;
            }
        }
        slot <= top
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(failovers: &[(u64, u64)]) -> Vec<u64> {
        let aside = |&(point, parted): &(u64, u64)| Some(Aside { point: Slot(point), parted: Slot(parted) });
        let lineage = failovers.iter().map(aside).fold(Lineage::default(), Lineage::and);
        (1..=50).filter(|slot| lineage.has(Slot(*slot))).collect()
    }

    fn spans(spans: &[(u64, u64)]) -> Vec<u64> {
        spans.iter().flat_map(|(first, last)| *first..=*last).collect()
    }

    #[test]
    fn what_a_failover_left_aside_stays_aside_after_the_next_ones() {
        assert_eq!(of(&[]), spans(&[(1, 50)]));
        assert_eq!(of(&[(20, 20)]), spans(&[(1, 50)]), "to the newest");
        assert_eq!(of(&[(10, 20)]), spans(&[(1, 10), (21, 50)]));
        assert_eq!(of(&[(10, 20), (30, 30)]), spans(&[(1, 10), (21, 50)]), "then to what was published since");
        assert_eq!(of(&[(10, 20), (25, 30)]), spans(&[(1, 10), (21, 25), (31, 50)]), "to an older point of that");
        assert_eq!(of(&[(10, 20), (10, 20)]), spans(&[(1, 10), (21, 50)]), "once more to the same");
        assert_eq!(of(&[(10, 20), (20, 20)]), spans(&[(1, 50)]), "to the newest of what was left aside, after all");
        assert_eq!(of(&[(10, 20), (20, 20), (15, 20)]), spans(&[(1, 15), (21, 50)]), "and back");
        assert_eq!(of(&[(10, 20), (5, 30)]), spans(&[(1, 5), (31, 50)]), "to one from before both");
        assert_eq!(of(&[(10, 20), (15, 30)]), spans(&[(1, 15), (31, 50)]), "to one that was left aside");
        assert_eq!(
            of(&[(10, 20), (15, 30), (25, 40)]),
            spans(&[(1, 10), (21, 25), (41, 50)]),
            "and from there to the first line"
        );
    }
}
