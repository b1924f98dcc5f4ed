//! Runs of slots that are *bound*: their records once more, in one object (`docs/formats/store.md`).
//!
//! A reader reads what came since the newest checkpoint, up to 4095 records, and most of these are objects of their own. Once a run of
//! [`BATCH_SLOTS`] is full its writer binds it, so a reader reads one object for each full run, and single ones of the last run only.
//!
//! Invariants:
//! - A bound run is a copy, and decides nothing. Records lie where they lie; who writes, repairs or checks reads only those.
//! - † What a bound run says counts only if a record *in the ledger* confirms it: the one that follows it by digest, or the last that it
//!   holds. A ledger that lost its newest records and went on from before them has bound runs of what is lost.
//! - Where anything is amiss – it is damaged, of another history, newer, has a record that was voided – the records are read
//!   instead. So a lost or strange one costs time.
//!
//! It has the bytes of a batch of all slots of the run, so there is no other format.

use farside_ledger::{BATCH_SLOTS, Body, CheckpointPlace, Encoded, Record, State, encode_object, run_of};
use farside_region::{RecordDigest, Slot};

use crate::backend::{Backend, ObjectName, block_on};
use crate::error::Result;
use crate::names::GroupNames;
use crate::replay::{Records, Slots, Unusable, decode, get, parallel};

/// The most bytes that a bound run has: as many as an object of the ledger may have.
const BYTES_MAX: u64 = farside_ledger::RECORD_BYTES_MAX as u64;

/// The mistake of going by a copy alone.
pub(crate) const UNCONFIRMED: &str = "L6 a bound run counts without a record that confirms it";

/// The records of the run that the ledger is in, as they come.
#[derive(Debug, Default)]
pub(crate) struct Binder {
    records: Vec<Encoded>,
    bytes: usize,
}

impl Binder {
    /// Takes up the next record of the ledger. Binds its run if it is the last of it, all the others came before, and nobody has done it.
    ///
    /// What cannot be written is left out: whoever reads these slots reads the records.
    pub(crate) fn add(
        &mut self,
        backend: &dyn Backend,
        names: &GroupNames,
        record: &Record,
        digest: RecordDigest,
        is_bound: bool,
    ) {
        let Some(object) = self.take_up(record, digest).filter(|_| !is_bound) else { return };
        let name = names.bound_run(run_of(record.slot));
        // What is there is the same, or of a history that was given up: `store check` tells.
        if let Err(error) = block_on(backend.create(&name, object.into())) {
            tracing::warn!(group = %names, object = %name, %error, "a run of the ledger was not bound; readers read its records one by one");
        }
    }

    /// The object, if this completes one.
    fn take_up(&mut self, record: &Record, digest: RecordDigest) -> Option<Vec<u8>> {
        let first = run_of(record.slot);
        if record.slot == first {
            *self = Self::default();
        }
        // A void stands in another object than its slot's; who meets one reads what lies there.
        let encoded = match record.body {
            Body::TornVoid(_) => None,
            _ => record.encode().ok().filter(|encoded| encoded.digest == digest),
        };
        let is_next = first.0 + self.records.len() as u64 == record.slot.0;
        let encoded = encoded.filter(|encoded| is_next && (self.bytes + encoded.bytes.len()) as u64 <= BYTES_MAX);
        let Some(encoded) = encoded else {
            // None comes after it before the next run begins.
            *self = Self::default();
            return None;
        };
        self.bytes += encoded.bytes.len();
        self.records.push(encoded);
        if (self.records.len() as u64) < BATCH_SLOTS {
            return None;
        }
        let records = std::mem::take(self).records;
        encode_object(first, &records).ok()
    }
}

/// The records of a bound run, or what is wrong with it.
pub(crate) fn read(backend: &dyn Backend, names: &GroupNames, first: Slot) -> Result<Result<Records, Unusable>> {
    let found = get(backend, &names.bound_run(first), BYTES_MAX)?;
    Ok(found.map_or_else(|| Err(Unusable::damaged("it is missing".to_owned())), |found| whole(&found, first)))
}

/// The records of what lies in its place: all of the run's.
pub(crate) fn whole(found: &Result<bytes::Bytes, String>, first: Slot) -> Result<Records, Unusable> {
    let records = decode(found)?;
    let is_whole = records[0].0.slot == first && records.len() as u64 == BATCH_SLOTS;
    if is_whole { Ok(records) } else { Err(Unusable::damaged("it does not hold all slots of its run".to_owned())) }
}

/// Deletes the bound runs of what a checkpoint covers. One that comes back in a bucket, or is deleted late, is only a copy.
pub(crate) fn remove(backend: &dyn Backend, names: &GroupNames, place: CheckpointPlace) {
    let Some(end) = place.end() else { return };
    let first = (end.0 - place.slots).next_multiple_of(BATCH_SLOTS);
    let runs: Vec<Slot> = (first..end.0 / BATCH_SLOTS * BATCH_SLOTS).step_by(BATCH_SLOTS as usize).map(Slot).collect();
    let deleted = parallel(backend, &runs, |&first| block_on(backend.delete(&names.bound_run(first))));
    if let Some(error) = deleted.into_iter().find_map(Result::err) {
        tracing::warn!(group = %names, checkpoint = place.number, %error, "bound runs that a checkpoint covers could not be deleted");
    }
}

/// The bound runs that say something else than the ledger, with what is wrong. `state`: replayed from the records from slot 0 on.
pub(crate) fn strange(
    backend: &dyn Backend,
    names: &GroupNames,
    slots: &Slots,
    state: &State,
) -> Result<Vec<(ObjectName, String)>> {
    let mut strange = Vec::new();
    for first in slots.bound_runs() {
        let why = match read(backend, names, first)? {
            Err(unusable) => Some(unusable.to_string()),
            Ok(records) => {
                let is_said = |(record, digest): &(Record, RecordDigest)| state.digest_at(record.slot) == Some(*digest);
                (!records.iter().all(is_said)).then(|| "it holds other records than the ledger".to_owned())
            }
        };
        strange.extend(why.map(|why| (names.bound_run(first), why)));
    }
    Ok(strange)
}

#[cfg(test)]
#[path = "bound_tests.rs"]
mod tests;
