//! What a writer's next object repeats of the records before it (`docs/formats/ledger.md`).
//!
//! Invariants: what is repeated leads, digest by digest, to the head; what cannot be had is not repeated, and no publication fails, or
//! waits for anything but a read, because of it. It deliberately says nothing of who reads.

use std::collections::VecDeque;

use farside_ledger::{Newest, REPEATED_BYTES_MAX, Repeated, State, decode_with_repeats, repeats_from, run_of};
use farside_region::{RecordDigest, Slot};

use crate::backend::Backend;
use crate::checkpoint::span;
use crate::names::GroupNames;
use crate::replay::find_object;

/// How often a writer goes back for what it is to repeat: by an object, or by two.
const STEPS_MAX: usize = 4;
/// What the next object of a group repeats.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Newest);

impl Repeats {
    /// An object that is in its slot, and in the state.
    pub(crate) fn took(&mut self, object: &[u8]) {
        self.0.take_in(object);
    }

    /// The records right before the next slot that its object may repeat, as they are stored, the oldest first. Where this process knows
    /// none of them, they are read; and in the first slot of a run those before the run are.
    pub(crate) fn before(&mut self, backend: &dyn Backend, names: &GroupNames, state: &State) -> Vec<Vec<u8>> {
        let next = state.next_slot();
        let from = repeats_from(next).max(Slot(next.0 - next.0 % span()));
        let Some(head) = state.head().filter(|_| from < next) else { return Vec::new() };
        if !self.0.are_of(state) {
            let Some(object) = read(backend, names, head) else { return Vec::new() };
            self.0.take_in(&object);
            if !self.0.are_of(state) {
                return Vec::new();
            }
            // Once, and not for each of those that repeat the whole run.
            let run = run_of(head).max(Slot(next.0 - next.0 % span()));
            for _ in 0..STEPS_MAX {
                let Some((slot, prev)) = self.0.oldest().filter(|(slot, _)| *slot > run) else { break };
                older(backend, names, slot, prev, |before| self.0.take_in_before(before));
            }
        }
        let mut before: VecDeque<Vec<u8>> = self.0.from(from).map(<[u8]>::to_vec).collect();
        let mut bytes: usize = before.iter().map(Vec::len).sum();
        let mut oldest = self.0.oldest().filter(|_| run_of(next) == next);
        for _ in 0..STEPS_MAX {
            let is_wanted = |slot: Slot| slot > from && bytes <= REPEATED_BYTES_MAX;
            let Some((slot, prev)) = oldest.take().filter(|(slot, _)| is_wanted(*slot)) else { break };
            older(backend, names, slot, prev, |older| {
                oldest = older.first().map(|first| (first.record.slot, first.record.prev));
                for one in older.iter().rev().filter(|one| one.record.slot >= from) {
                    bytes += one.bytes.len();
                    before.push_front(one.bytes.to_vec());
                }
            });
        }
        before.into()
    }
}

/// The object that takes a slot, if it can be had.
fn read(backend: &dyn Backend, names: &GroupNames, slot: Slot) -> Option<bytes::Bytes> {
    let found = find_object(backend, names, slot);
    let why = match found {
        Ok(Some(Ok(object))) => return Some(object),
        Ok(None) => "it is not there".to_owned(),
        Ok(Some(Err(why))) => why,
        Err(error) => error.to_string(),
    };
    tracing::debug!(group = %names, %slot, why, "what is before the next record is not all repeated");
    None
}

/// Records right before the one in a slot, which names the digest of the last of them, ascending: from the object that takes the slot, or
/// from the one before it.
fn older(backend: &dyn Backend, names: &GroupNames, slot: Slot, prev: RecordDigest, take: impl FnOnce(&[Repeated<'_>])) {
    for slot_of in [Some(slot), slot.0.checked_sub(1).map(Slot)].into_iter().flatten() {
        let Some(object) = read(backend, names, slot_of) else { return };
        let Ok(mut all) = decode_with_repeats(&object) else { return };
        all.retain(|one| one.record.slot < slot);
        if let Some(last) = all.last() {
            if last.record.slot.next() == slot && last.digest == prev {
                take(&all);
            }
            return;
        }
    }
}

#[cfg(test)]
#[path = "repeats_tests.rs"]
mod tests;
