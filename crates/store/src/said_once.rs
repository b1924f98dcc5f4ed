//! Which records that change what is kept are said by one object alone.
//!
//! † Without such a record, what it gave up would be alive and missing, and what lies over that not be told from what it held: points that should
//! be whole would be refused. Invariants:
//! - a record counts as said twice for what was seen in another object of this history that is durable in its slot, or for a durable checkpoint that
//!   covers it; not for what an object should repeat, as bytes, or a full disk, may keep it from that;
//! - what a record gave up rests on all such records before it as well: without one of them replay may judge it void.

use std::collections::BTreeSet;

use farside_ledger::{State, decode_object, decode_repeats};
use farside_region::Slot;

use crate::backend::Backend;
use crate::names::GroupNames;
use crate::repeats;

/// Objects that are read once, at most, for what they repeat of the time before this process. Where they repeat what they should, they are a dozen.
const OBJECTS_MAX: usize = 256;

/// The slots of those records.
#[derive(Debug, Default)]
pub(crate) struct SaidOnce {
    slots: BTreeSet<Slot>,
    /// What others repeated before this process was looked for.
    is_looked_for: bool,
}

impl SaidOnce {
    /// A record came into a state, as its newest.
    pub(crate) fn heard(&mut self, state: &State) {
        let changed = state.roots_changed().filter(|changed| state.head() == Some(*changed));
        self.slots.extend(changed);
    }

    /// A durable checkpoint covers all below that slot.
    pub(crate) fn covered(&mut self, end: Slot) {
        self.slots = self.slots.split_off(&end);
    }

    /// That object of this history is in its slot, durably. Says from where on it repeats others.
    pub(crate) fn repeated(&mut self, object: &[u8]) -> Option<Slot> {
        let repeated = if self.slots.is_empty() { None } else { decode_repeats(object).ok() }?;
        let (first, last) = (repeated.first()?.record.slot, repeated.last()?.record.slot);
        self.slots.retain(|slot| !(first..=last).contains(slot));
        Some(first)
    }

    /// The oldest of them: what it, or one after it, gave up is to stay.
    pub(crate) fn first(&self) -> Option<Slot> {
        self.slots.first().copied()
    }

    /// Looks, once, which of them objects repeat that are there already.
    pub(crate) fn look(&mut self, backend: &dyn Backend, names: &GroupNames, state: &State) {
        let mut at = state.head().filter(|_| !self.is_looked_for);
        self.is_looked_for = true;
        for _ in 0..OBJECTS_MAX {
            // The object that the oldest lies in does not repeat it.
            let Some(slot) = at.filter(|at| self.first().is_some_and(|first| first < *at)) else { return };
            let object = repeats::read(backend, names, slot);
            let own = object.as_ref().and_then(|object| decode_object(object).ok()).and_then(|own| own.into_iter().next());
            let begins = own.as_ref().map_or(slot, |(record, _)| record.slot.min(slot));
            let is_ours = own.is_some_and(|(record, digest)| state.digest_at(record.slot) == Some(digest));
            let from = object.filter(|_| is_ours).and_then(|object| self.repeated(&object));
            at = from.or(begins.0.checked_sub(1).map(Slot));
        }
    }
}
