//! The way out of a torn ledger: mend the record if its digest lets us, else void it and all that cannot follow it.
//!
//! An object with several records is torn, mended or given up as a whole.
//!
//! Invariants: a record is mended only to bytes that carry their own digest and fit between their neighbours, found by one bit or repeated by a
//! later object whose own record names them by the chain, so that it says what it said when it was acknowledged; what is voided keeps its bytes, beside which a void record is put, create-only; a
//! record of a newer Farside is never touched, nor a slot for which a checkpoint stands. What layers after a lost one held is not known without it, so nothing after it
//! is kept.

use farside_ledger::{
    Body, Encoded, LENGTHS_BYTES_MAX, RECORD_BYTES_MAX, Record, TornVoid, decode_object, decode_repeats, encode_repeating,
    may_repeat_others, room_in_run,
};
use farside_region::{RecordDigest, Slot, mutation};

use super::GroupStore;
use crate::attempt::Attempt;
use crate::backend::{Created, ObjectName, block_on};
use crate::error::{Result, StoreError};
use crate::replay::{Slots, get};
use crate::store::random;

/// The most slots that a repair voids at once.
const VOID_SLOTS_MAX: u64 = 100_000;
/// Records up to this size are searched for a bit that flipped: the work grows with its square.
const SEARCHED_BYTES_MAX: usize = 16 << 10;
/// So many later objects are asked for what they repeat of a torn one: the next does, unless it is large, or at the end of a checkpoint's slots.
const REPEATING_MAX: usize = 8;

/// What a repair would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// What the record said is known: it is put right, and nothing is lost.
    Mend {
        /// The slot.
        slot: Slot,
        /// Its object.
        file: String,
        /// How it is known.
        by: Known,
    },
    /// Nothing can bring the record back: it is given up, with all that follow it.
    Void {
        /// The first slot that is voided.
        first: Slot,
        /// The last one.
        last: Slot,
        /// What the slots say, as far as they can be read, ascending.
        says: Vec<VoidedRecord>,
    },
}

/// How it is known what a torn record said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// One bit of it is wrong.
    OneBit,
    /// The object in this slot repeats it.
    Repeated(Slot),
}

/// A record that would be given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidedRecord {
    /// Its slot.
    pub slot: Slot,
    /// Its object.
    pub file: String,
    /// For people: what it said, or why that is not known.
    pub text: String,
    /// It was a recovery point.
    pub is_point: bool,
}

/// A torn slot, read anew.
enum Found {
    Mended(Vec<u8>, Known),
    Lost(Slot),
}

impl GroupStore {
    /// What [`GroupStore::repair_torn`] would do now; `None`: the ledger is whole.
    ///
    /// # Errors
    /// [`StoreError::LedgerTorn`] where nothing may be done: the record is of a newer Farside, a checkpoint that cannot be
    /// used stands for it, or too many slots were lost;
    /// [`StoreError::Unreadable`]: its disk fails there, and what it says may come back; what the file system says.
    pub fn repair_plan(&self) -> Result<Option<Repair>> {
        let Some(torn) = &self.torn else { return Ok(None) };
        let last = match self.look_at_torn()? {
            Found::Mended(_, by) => return Ok(Some(Repair::Mend { slot: torn.slot, file: torn.file.clone(), by })),
            Found::Lost(last) => last,
        };
        let mut says = Vec::new();
        let mut slot = torn.slot;
        while slot <= last {
            let bytes = block_on(self.segments.backend.get(&self.names().record(slot), u64::from(u32::MAX)))?;
            let file = self.names().record(slot).to_string();
            let said = |text: String| VoidedRecord { slot, file: file.clone(), text, is_point: false };
            match bytes.as_deref().map(decode_object) {
                None => says.push(said("is not there".to_owned())),
                Some(Err(error)) => says.push(said(format!("cannot be read: {error}"))),
                Some(Ok(records)) => {
                    let of = |(slot, (record, _)): (u64, &(Record, RecordDigest))| VoidedRecord {
                        slot: Slot(slot),
                        is_point: is_point(record),
                        ..said(self.in_words(record))
                    };
                    says.extend((slot.0..).zip(&records).map(of));
                    slot = Slot(slot.0 + records.len() as u64 - 1);
                }
            }
            slot = slot.next();
        }
        Ok(Some(Repair::Void { first: torn.slot, last, says }))
    }

    /// Mends the torn record, or puts a void record beside it and beside all that follow it, and opens the group again: as the plan says, and no more.
    /// Where another one is torn after that, the next plan says what is to be done of it. Not to be done while the file might be brought back. Where a ledger has lost its newest records, all slots up to the newest
    /// claim that left a trace are voided, so that no new claim takes its term.
    ///
    /// # Errors
    /// Those of [`GroupStore::repair_plan`]; [`StoreError::LedgerTorn`] if it is torn still.
    pub fn repair_torn(&mut self) -> Result<()> {
        let Some(torn) = self.torn.clone() else { return Ok(()) };
        match self.look_at_torn()? {
            Found::Mended(bytes, _) => self.put_right(&self.names().record(torn.slot), bytes)?,
            Found::Lost(last) => {
                while self.state().next_slot() <= last {
                    self.void_next_slot()?;
                }
            }
        }
        let group = Self::open(std::sync::Arc::clone(&self.shared), self.names().clone(), self.state().group())?;
        *self = group;
        match &self.torn {
            // † One at a time: what is to be given up of those that follow nobody agreed to yet.
            Some(next) if next.slot > torn.slot && mutation::on("a repair goes on with what nobody agreed to") => {
                self.repair_torn()
            }
            Some(next) if next.slot <= torn.slot => Err(next.error(self.names())),
            _ => Ok(()),
        }
    }

    /// Reads the torn slot again: its record as it was, or the last slot that is lost with it.
    fn look_at_torn(&self) -> Result<Found> {
        let torn = self.torn.as_ref().expect("only asked when it is torn");
        let backend = &*self.segments.backend;
        let slots = Slots::list(backend, self.names())?;
        let end = self.end_of(&slots)?.max(torn.slot.0 + 1);
        let last = torn.lost_claim.map_or(Slot(end - 1), |term| Slot(term.0.max(end - 1)));
        if torn.newer || torn.checkpoint.is_some() || last.0 - torn.slot.0 >= VOID_SLOTS_MAX {
            return Err(torn.error(self.names()));
        }
        let found = block_on(backend.get(&self.names().record(torn.slot), u64::from(u32::MAX)))?.unwrap_or_default();
        let next = slots.records.range(torn.slot.0 + 1..).next().map(|next| Slot(*next));
        let next = next.map(|next| block_on(backend.get(&self.names().record(next), u64::from(u32::MAX))));
        let wanted = next.and_then(Result::ok).flatten().and_then(|next| Some(decode_object(&next).ok()?.swap_remove(0).0));
        if let Some(bytes) = self.with_one_bit_right(&found, wanted.as_ref()) {
            return Ok(Found::Mended(bytes, Known::OneBit));
        }
        Ok(self
            .as_repeated(&slots, torn.slot)?
            .map_or(Found::Lost(last), |(bytes, by)| Found::Mended(bytes, Known::Repeated(by))))
    }

    /// The object of a slot, made anew from what a later one repeats of it, and whose slot that is in: the records up to where the next object begins.
    fn as_repeated(&self, slots: &Slots, torn: Slot) -> Result<Option<(Vec<u8>, Slot)>> {
        let later = slots.records.range(torn.0 + 1..);
        let end = later.clone().next().map_or(u64::MAX, |next| (torn.0 + room_in_run(torn)).min(*next));
        for &slot in later.filter(|slot| !slots.voids.contains(slot)).take(REPEATING_MAX) {
            let Some(Ok(object)) = get(&*self.segments.backend, &self.names().record(Slot(slot)), RECORD_BYTES_MAX as u64)?
            else {
                continue;
            };
            let is_there = decode_object(&object).is_ok_and(|own| own[0].0.slot.0 == slot);
            let Some(repeated) = decode_repeats(&object).ok().filter(|_| is_there) else { continue };
            let (before, from_torn): (Vec<_>, Vec<_>) = repeated.into_iter().partition(|one| one.record.slot < torn);
            let own: Vec<_> = from_torn.into_iter().take_while(|one| one.record.slot.0 < end).collect();
            // † What took the place of a record that was given up is no record, and lies beside it.
            let is_voided = own.iter().any(|one| matches!(one.record.body, Body::TornVoid(_)))
                && !mutation::on("a repair puts a void in the place of what was given up");
            if is_voided
                || own.first().is_none_or(|first| first.record.slot != torn || self.state().follows(&first.record).is_err())
            {
                continue;
            }
            let own: Vec<_> = own.into_iter().map(|one| Encoded { bytes: one.bytes.to_vec(), digest: one.digest }).collect();
            let before: Vec<_> = before.into_iter().map(|one| one.bytes).collect();
            return Ok(encode_repeating(torn, &own, &before).ok().map(|bytes| (bytes, Slot(slot))));
        }
        Ok(None)
    }

    /// The slot after the last that an object takes.
    fn end_of(&self, slots: &Slots) -> Result<u64> {
        let Some(&last) = slots.records.last() else { return Ok(slots.end()) };
        let bytes = block_on(self.segments.backend.get(&self.names().record(Slot(last)), u64::from(u32::MAX)));
        let records = bytes.ok().flatten().and_then(|bytes| decode_object(&bytes).ok());
        Ok(slots.end().max(last.saturating_add(records.map_or(1, |records| records.len() as u64))))
    }

    /// The bytes with the one bit flipped back that makes them the next records, and those that their successor follows. What an object
    /// repeats is as it was found: its own records come before it, and the lengths of all before those.
    fn with_one_bit_right(&self, found: &[u8], successor: Option<&Record>) -> Option<Vec<u8>> {
        let own_max = if may_repeat_others(found) { SEARCHED_BYTES_MAX + LENGTHS_BYTES_MAX } else { found.len() };
        if found.len() > SEARCHED_BYTES_MAX && own_max == found.len() {
            return None;
        }
        let (own, rest) = found.split_at(found.len().min(own_max));
        let mut bytes = own.to_vec();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let follows = |next: &Record, last: &(Record, RecordDigest)| next.slot != last.0.slot.next() || next.prev == last.1;
            if let Ok(records) = decode_object(&bytes)
                && self.state().follows(&records[0].0).is_ok()
                && successor.is_none_or(|next| records.last().is_some_and(|last| follows(next, last)))
            {
                bytes.extend_from_slice(rest);
                return Some(bytes);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        None
    }

    fn put_right(&self, name: &ObjectName, bytes: Vec<u8>) -> Result<()> {
        block_on(self.segments.backend.put_right(name, bytes.into()))
    }

    fn void_next_slot(&mut self) -> Result<()> {
        let slot = self.state().next_slot();
        let found = block_on(self.segments.backend.get(&self.names().record(slot), u64::from(u32::MAX)))?.unwrap_or_default();
        let body = Body::TornVoid(TornVoid { torn_digest: *blake3::hash(&found).as_bytes(), torn_bytes: found.len() as u64 });
        let attempt = Attempt::new(self.state(), body, random()?, self.shared.stamp());
        let Attempt { records, bytes } = attempt.map_err(|e| StoreError::Record(e.to_string()))?;
        let name = self.names().record_void(slot);
        if block_on(self.segments.backend.create(&name, bytes.clone().into()))? == Created::AlreadyExists {
            // An earlier repair's, which follows what is void now.
            self.put_right(&name, bytes)?;
        }
        records.iter().for_each(|(record, digest)| drop(self.image.replay(record, *digest)));
        Ok(())
    }

    /// What a record said, for a person who is to give it up.
    fn in_words(&self, record: &Record) -> String {
        let name = |id| self.state().volume(id).map_or_else(|| "a volume".to_owned(), |v| v.meta().name.to_string());
        match &record.body {
            Body::Layers(layers) => {
                let volumes: Vec<String> = layers.members.iter().map(|m| name(m.key.volume)).collect();
                let what = if is_point(record) { "a recovery point" } else { "changes" };
                format!("{what} of {}", volumes.join(", "))
            }
            Body::Claim(claim) => format!("the claim of volume {}", claim.volume.name),
            Body::Heartbeat(_) => "a heartbeat".to_owned(),
            Body::Pin(pin) => format!("a pin of point {}", pin.point),
            Body::Unpin(_) => "the end of a pin".to_owned(),
            Body::Prune(prune) => format!("{} points given up", prune.points.len()),
            Body::Verified(verified) => format!("that point {} was verified", verified.point),
            Body::Map(map) => format!("a merge of {} layers' parts", map.parts.len()),
            Body::Decree(_) => "that merges were given up".to_owned(),
            Body::PackPlaces(said) => format!("where parts of the records after it lie, in {} packs", said.packs.len()),
            _ => "nothing".to_owned(),
        }
    }
}

fn is_point(record: &Record) -> bool {
    matches!(&record.body, Body::Layers(layers) if layers.kind == farside_ledger::LayerKind::Point)
}
