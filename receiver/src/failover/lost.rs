//! Failovers that the ledger tells of, and no note here: the state directory was lost, or is older than its store.
//!
//! Invariant: what such a one left aside is brought up by nobody who does not name it.
//!
//! † Their pins say which point was brought up, and not all that was left aside: one that was for good for a while was pinned anew.

use farside_ledger::State;
use farside_region::{Generation, Slot};
use farside_store::GroupNames;

use super::{Failovers, PIN_REASONS, TakenBack, lock};

/// The last one of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lost {
    pub(super) generation: u64,
    /// Nothing that is newer is of the generation before.
    pin: Slot,
    /// What was brought up.
    pub(super) point: Slot,
}

impl Lost {
    /// That one, where nothing was published under a later one.
    fn of(state: &State) -> Option<Self> {
        let highest = Some(state.highest_generation()).filter(|highest| *highest > Generation(1))?;
        let of_pin = |point, (pin, reason): (&Slot, &String)| Some(Self { generation: generation(reason)?, pin: *pin, point });
        let pins = state.points().values().flat_map(|point| point.pins.iter().filter_map(move |pin| of_pin(point.slot, pin)));
        let newest = state.points().values().next_back()?.slot;
        pins.max().filter(|last| last.generation >= highest.0 || newest < last.pin)
    }

    /// Whether it may have left that point aside.
    pub(crate) fn may_have_left(&self, point: Slot) -> bool {
        point > self.point && point < self.pin
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        format!(
            "it was failed over (generation {}, to point {}), and this gateway has no note of that: its state directory was lost, or is older than its store",
            self.generation, self.point
        )
    }
}

/// Of which failover a pin is.
pub(super) fn generation(reason: &str) -> Option<u64> {
    reason.strip_prefix(PIN_REASONS)?.parse().ok()
}

impl Failovers {
    /// The last failover of a group, if nobody has noted it here.
    pub(crate) fn lost(&self, names: &GroupNames, state: &State) -> Option<Lost> {
        let lost = Lost::of(state)?;
        let noted = lock(&self.all).get(names).map(|one| one.generation);
        let over = self.taken_back(names).as_ref().and_then(TakenBack::brought_up).map(|former| former.generation);
        (noted.max(over) < Some(lost.generation)).then_some(lost)
    }
}
