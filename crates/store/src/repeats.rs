//! What a writer's next object repeats of the records before it, and what who opens a point takes from that (`docs/formats/ledger.md`).
//!
//! Invariants:
//! - what is repeated leads, digest by digest, to the head; what cannot be had is not repeated, and no publication fails, or waits for
//!   anything but a read, because of it;
//! - what is gathered leads, digest by digest, to the newest object's own record, and no object that was read says otherwise. Who uses it holds
//!   its first record against the state, and reads every object by itself if that does not fit;
//! - whoever writes, repairs or looks for damage reads every object by itself; a repair takes from others only what a torn slot held.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use farside_ledger::{
    BATCH_SLOTS, Newest, RECORD_BYTES_MAX, REPEATED_BYTES_MAX, Repeated, State, decode_object, decode_with_repeats, repeats_from,
    run_of,
};
use farside_region::{RecordDigest, Slot};

use crate::backend::Backend;
use crate::checkpoint::span;
use crate::error::Result;
use crate::names::GroupNames;
use crate::replay::{Records, Slots, find_object, get, parallel};

/// How often a writer goes back for what it is to repeat: by an object, or by two.
const STEPS_MAX: usize = 4;
/// Objects that are read for what they repeat, at most: where they repeat what they should, there are four.
const OBJECTS_MAX: usize = 12;
/// Bytes of objects that are taken together so, at most.
const GATHERED_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
thread_local! {
    /// Off for tests of what nobody repeats.
    pub(crate) static REPEATING: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
    /// Bytes that are repeated at most in the first slot of a run, and in others: what is so long in earnest takes thousands of parts.
    pub(crate) static BYTES_MAX: std::cell::Cell<(usize, usize)> = const { std::cell::Cell::new((usize::MAX, usize::MAX)) };
}

/// What the next object of a group repeats.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Newest);

impl Repeats {
    /// An object that is in its slot, and in the state.
    pub(crate) fn took(&mut self, object: &[u8]) {
        self.0.take_in(object);
    }

    /// The records right before the next slot that an object of so many own records may repeat, as they are stored, the oldest first. Where this
    /// process knows none of them, they are read; and in the first slot of a run those before the run are.
    pub(crate) fn before(&mut self, backend: &dyn Backend, names: &GroupNames, state: &State, records: u64) -> Vec<Vec<u8>> {
        #[cfg(test)]
        if !REPEATING.get() {
            return Vec::new();
        }
        let next = state.next_slot();
        let from = repeats_from(next, records).max(Slot(next.0 - next.0 % span()));
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
                // What could not be had is not asked for again: the next record waits for it.
                if self.0.oldest().is_some_and(|(still, _)| still == slot) {
                    break;
                }
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
        #[cfg(test)]
        {
            let most = if run_of(next) == next { BYTES_MAX.get().0 } else { BYTES_MAX.get().1 };
            while before.iter().map(Vec::len).sum::<usize>() > most {
                before.pop_front();
            }
        }
        before.into()
    }
}

/// The object that takes a slot, if it can be had.
pub(crate) fn read(backend: &dyn Backend, names: &GroupNames, slot: Slot) -> Option<bytes::Bytes> {
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

/// The records of slots from one on up to the newest, which follow one another, as far down as a few objects have them; none, if none can
/// be had so. `slots`: those that exist, or some of them, without a `.void` among them; `objects`: what was read of
/// them, or that it cannot be.
///
/// # Errors
/// What the medium says of what is not one object's damage.
pub(crate) fn gather(
    backend: &dyn Backend,
    names: &GroupNames,
    slots: &Slots,
    from: u64,
    mut objects: BTreeMap<u64, Option<Bytes>>,
) -> Result<Records> {
    let read = |slot: &u64| -> Result<Option<Bytes>> {
        Ok(get(backend, &names.record(Slot(*slot)), RECORD_BYTES_MAX as u64)?.and_then(Result::ok))
    };
    let mut expected = expected(slots, from);
    expected.retain(|slot| !objects.contains_key(slot));
    for (slot, object) in expected.iter().zip(parallel(backend, &expected, read)) {
        objects.insert(*slot, object?);
    }
    let mut gathered: VecDeque<_> = VecDeque::new();
    let (mut bytes, mut last_read) = (0, u64::MAX);
    for _ in 0..OBJECTS_MAX {
        let lowest = gathered.front().map(|(record, _): &(farside_ledger::Record, RecordDigest)| record.slot.0);
        if lowest.is_some_and(|lowest| lowest <= from) || bytes > GATHERED_BYTES_MAX {
            break;
        }
        // The one that the oldest is an own record of, for what it repeats; or the one before, if that was read.
        let up_to = lowest.map_or(u64::MAX, |lowest| if lowest == last_read { lowest - 1 } else { lowest });
        let Some(&slot) = slots.records.range(from..=up_to).next_back() else { break };
        if let Entry::Vacant(unread) = objects.entry(slot) {
            unread.insert(read(&slot)?);
        }
        let Some(object) = &objects[&slot] else { break };
        let Some(mut records) = records_of(object, slot) else { break };
        (bytes, last_read) = (bytes + object.len(), slot);
        records.retain(|(record, _)| record.slot.0 >= from && lowest.is_none_or(|lowest| record.slot.0 < lowest));
        let Some((last, digest)) = records.last() else { break };
        if gathered.front().is_some_and(|(next, _)| next.prev != *digest || next.slot != last.slot.next()) {
            break;
        }
        records.into_iter().rev().for_each(|record| gathered.push_front(record));
    }
    // † An object of a copy of the store, which went on by itself, may lie above the newest one and lead to what both have.
    let is_contradicted = objects.iter().any(|(slot, object)| {
        let own = object.as_ref().and_then(|object| decode_object(object).ok()).filter(|own| own[0].0.slot.0 == *slot);
        own.into_iter().flatten().any(|own| gathered.iter().any(|(record, digest)| record.slot == own.0.slot && *digest != own.1))
    });
    Ok(if is_contradicted { Vec::new() } else { gathered.into() })
}

/// The objects that it takes where each repeats what it should, the newest first.
fn expected(slots: &Slots, from: u64) -> Vec<u64> {
    let mut expected = Vec::new();
    let mut next = slots.records.range(from..).next_back().copied();
    while let Some(slot) = next.filter(|_| expected.len() < OBJECTS_MAX) {
        expected.push(slot);
        // A batch reaches to the next; how far the newest does nobody knows yet.
        let end =
            slots.records.range(slot.saturating_add(1)..).next().copied().unwrap_or(slot).min(slot.saturating_add(BATCH_SLOTS));
        let before = repeats_from(Slot(slot), end.saturating_sub(slot).max(1)).0;
        next = if before > from {
            slots.records.range(from..=before).next_back().copied().filter(|next| *next < slot)
        } else {
            None
        };
    }
    expected
}

/// What an object holds, if its first own record is in its slot.
fn records_of(object: &[u8], slot: u64) -> Option<Records> {
    decode_object(object).ok().filter(|own| own[0].0.slot.0 == slot)?;
    Some(decode_with_repeats(object).ok()?.into_iter().map(|one| (one.record, one.digest)).collect())
}

#[cfg(test)]
#[path = "repeats_tests.rs"]
pub(crate) mod tests;
