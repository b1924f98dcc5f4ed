//! The judge of lines: which points are the history of what is the newest.
//!
//! A point follows the one that was the tip when it was published, whoever published it; a failover makes the point that it brings up the tip. From the tip
//! back to that one, the first point that may be taken is the one that is brought up by whoever asks for no other, and that is taken back: no other point
//! of the store, however new, if a failover to an older one left it aside. Computed here from what happened, by no rule of the product.

use std::collections::BTreeMap;

use farside_region::Slot;

/// See the head of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    tip: Option<Slot>,
    /// What each point follows.
    follows: BTreeMap<Slot, Option<Slot>>,
    /// What the last failover brought up.
    brought_up: Option<Slot>,
    /// The store went back to an older moment: what was left aside then is told by slots, which other points have now.
    is_unclear: bool,
}

impl Line {
    /// A point was published.
    pub(crate) fn on_point(&mut self, slot: Slot) {
        self.follows.insert(slot, self.tip);
        self.tip = Some(slot);
    }

    /// A failover is done.
    pub(crate) fn on_promoted(&mut self, point: Option<Slot>) {
        (self.tip, self.brought_up) = (point, point);
    }

    /// The store went back.
    pub(crate) fn on_rewound(&mut self) {
        self.is_unclear = true;
    }

    /// The point that is brought up, or taken back, if none is named, of those that may be; `None`: that cannot be told.
    pub(crate) fn newest(&self, may_be: impl Fn(Slot) -> bool) -> Option<Slot> {
        let mut at = self.tip.filter(|_| !self.is_unclear);
        while let Some(slot) = at.filter(|slot| !may_be(*slot)) {
            at = self.follows.get(&slot).copied().flatten().filter(|_| self.brought_up != Some(slot));
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failover_left_aside_is_of_no_line() {
        let mut line = Line::default();
        (1..=20).for_each(|slot| line.on_point(Slot(slot)));
        let newest = |line: &Line, not: &[u64]| line.newest(|slot| !not.contains(&slot.0)).map(|slot| slot.0);
        assert_eq!((newest(&line, &[]), newest(&line, &[20, 19])), (Some(20), Some(18)));
        line.on_promoted(Some(Slot(10)));
        assert_eq!((newest(&line, &[]), newest(&line, &[10])), (Some(10), None));
        line.on_point(Slot(21));
        assert_eq!((newest(&line, &[]), newest(&line, &[21])), (Some(21), Some(10)));
        line.on_promoted(Some(Slot(21)));
        line.on_point(Slot(22));
        assert_eq!((newest(&line, &[22]), newest(&line, &[22, 21])), (Some(21), None));
        line.on_rewound();
        assert_eq!(newest(&line, &[]), None);
    }
}
