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
    may_repeat_others, repeats_from, room_in_run,
};
use farside_region::{RecordDigest, Slot, mutation};

use super::GroupStore;
use crate::attempt::Attempt;
use crate::backend::{Created, ObjectName, block_on};
use crate::error::{Result, StoreError};
use crate::replay::{Slots, Torn, get};
use crate::store::random;

/// The most slots that a repair voids at once.
const VOID_SLOTS_MAX: u64 = 100_000;
/// Records up to this size are searched for a bit that flipped: the work grows with its square.
const SEARCHED_BYTES_MAX: usize = 16 << 10;
/// The most later objects that are asked for what they repeat of a torn one. Where each holds one record it takes 28 to ask all that would.
const REPEATING_MAX: usize = 64;

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
    /// It is whole again: somebody put it back since the group was opened.
    PutBack,
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

    /// Does what [`GroupStore::repair_plan`] says now.
    ///
    /// # Errors
    /// Those of [`GroupStore::repair_as`].
    pub fn repair_torn(&mut self) -> Result<()> {
        self.repair_plan()?.map_or(Ok(()), |plan| self.repair_as(&plan))
    }

    /// Mends the torn record, or puts a void record beside it and beside all that follow it, and opens the group again: as the plan says, and no more.
    /// Where another one is torn after that, the next plan says what is to be done of it. Not to be done while the file might be brought back. Where a ledger has lost its newest records, all slots up to the newest
    /// claim that left a trace are voided, so that no new claim takes its term.
    ///
    /// # Errors
    /// Those of [`GroupStore::repair_plan`]; [`StoreError::LedgerTorn`] if it is torn still, or if what is there is not what was planned for any
    /// more: then nothing was changed.
    pub fn repair_as(&mut self, plan: &Repair) -> Result<()> {
        let Some(torn) = self.torn.clone() else { return Ok(()) };
        // † A disk that fails gives a record at one time and not at the next: nobody agreed to give up what he was told is mended.
        match (self.look_at_torn()?, plan) {
            (Found::Mended(bytes, now), Repair::Mend { slot, by, .. }) if *slot == torn.slot && now == *by => {
                self.put_right(&self.names().record(torn.slot), bytes)?;
            }
            (Found::Lost(now), Repair::Void { first, last, .. }) if *first == torn.slot && now == *last => {
                self.void_all(torn.slot, now)?;
            }
            _ => {
                let why = "what is there is not what it was a moment ago (does its disk fail?); nothing was changed".to_owned();
                return Err(Torn { why, ..torn }.error(self.names()));
            }
        }
        let group = {
            let mut known = self.known.clone();
            known.spoiled.extend(self.spoiled());
            Self::open(std::sync::Arc::clone(&self.shared), self.names().clone(), self.state().group(), known, self.sweeps)?
        };
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
        if torn.newer || torn.checkpoint.is_some() {
            return Err(torn.error(self.names()));
        }
        let backend = &*self.segments.backend;
        let slots = Slots::list(backend, self.names())?;
        // † Who voided it decided that, and replay goes by the void: whatever lies beside it helps nobody.
        if !slots.voids.contains(&torn.slot.0) {
            let found = block_on(backend.get(&self.names().record(torn.slot), u64::from(u32::MAX)));
            if let Ok(Some(found)) = &found
                && decode_object(found).is_ok_and(|own| self.state().follows(&own[0].0).is_ok())
            {
                return Ok(Found::Mended(found.to_vec(), Known::PutBack));
            }
            let next = slots.records.range(torn.slot.0 + 1..).next().filter(|next| !slots.voids.contains(next));
            let next = next.map(|next| get(backend, &self.names().record(Slot(*next)), RECORD_BYTES_MAX as u64)).transpose()?;
            let wanted = next.flatten().and_then(Result::ok).and_then(|next| Some(decode_object(&next).ok()?.swap_remove(0).0));
            if let Ok(Some(found)) = &found
                && let Some(bytes) = self.with_one_bit_right(found, wanted.as_ref())
            {
                return Ok(Found::Mended(bytes, Known::OneBit));
            }
            // † A record of this slot that follows something else is another history's: which of the two is right a person says.
            let is_of_slot = |own: &Record| own.slot == torn.slot && own.group == self.state().group();
            let is_another = matches!(&found, Ok(Some(found)) if decode_object(found).is_ok_and(|own| is_of_slot(&own[0].0)));
            if !is_another && let Some((bytes, by)) = self.as_repeated(&slots, torn.slot, wanted.as_ref())? {
                return Ok(Found::Mended(bytes, Known::Repeated(by)));
            }
            found?; // what its disk does not give may come back
        }
        let end = self.end_of(&slots)?.max(torn.slot.0 + 1);
        let last = torn.lost_claim.map_or(Slot(end - 1), |term| Slot(term.0.max(end - 1)));
        if last.0 - torn.slot.0 >= VOID_SLOTS_MAX {
            return Err(torn.error(self.names()));
        }
        Ok(Found::Lost(last))
    }

    /// The object of a slot, made anew from what a later one repeats of it, and whose slot that is in: the records up to where the next object
    /// begins, which `successor` must follow if its slot is the next.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] and the like where an object that may repeat it cannot be read now, and no other does.
    fn as_repeated(&self, slots: &Slots, torn: Slot, successor: Option<&Record>) -> Result<Option<(Vec<u8>, Slot)>> {
        let (names, backend) = (self.names(), &*self.segments.backend);
        let later: Vec<u64> = slots.records.range(torn.0 + 1..).copied().collect();
        let ends = later.iter().chain(slots.voids.range(torn.0 + 1..).next()).min();
        let end = ends.map_or(u64::MAX, |next| (torn.0 + room_in_run(torn)).min(*next));
        // Of the last one nobody knows how many it holds.
        let records = |nth: usize| {
            let room = room_in_run(Slot(later[nth]));
            later.get(nth + 1).map_or(room, |next| (next - later[nth]).min(room))
        };
        let may = |&(nth, slot): &(usize, u64)| repeats_from(Slot(slot), records(nth)) <= torn && !slots.voids.contains(&slot);
        let mut unread = None;
        for (_, slot) in later.iter().copied().enumerate().filter(may).take(REPEATING_MAX) {
            let object = match block_on(backend.get(&names.record(Slot(slot)), RECORD_BYTES_MAX as u64)) {
                Ok(Some(object)) => object,
                Ok(None) | Err(StoreError::Damaged { .. }) => continue,
                Err(error @ StoreError::Unreadable { .. }) => {
                    unread.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let is_there = decode_object(&object).is_ok_and(|own| own[0].0.slot.0 == slot);
            let Some(repeated) = decode_repeats(&object).ok().filter(|_| is_there) else { continue };
            let (before, from_torn): (Vec<_>, Vec<_>) = repeated.into_iter().partition(|one| one.record.slot < torn);
            let own: Vec<_> = from_torn.into_iter().take_while(|one| one.record.slot.0 < end).collect();
            // † What took the place of a record that was given up is no record, and lies beside it.
            let is_voided = own.iter().any(|one| matches!(one.record.body, Body::TornVoid(_)))
                && !mutation::on("a repair puts a void in the place of what was given up");
            let Some((first, last)) = own.first().zip(own.last()).filter(|_| !is_voided) else { continue };
            // † A file of another copy of the store may have come to lie here. It leads to what was there, not to what is.
            let is_left_behind = |next: &Record| next.slot == last.record.slot.next() && next.prev != last.digest;
            let is_another = successor.is_some_and(is_left_behind) && !mutation::on("a repair joins two histories");
            if first.record.slot != torn || self.state().follows(&first.record).is_err() || is_another {
                continue;
            }
            let own: Vec<_> = own.into_iter().map(|one| Encoded { bytes: one.bytes.to_vec(), digest: one.digest }).collect();
            let before: Vec<_> = before.into_iter().map(|one| one.bytes).collect();
            return Ok(encode_repeating(torn, &own, &before).ok().map(|bytes| (bytes, Slot(slot))));
        }
        unread.map_or(Ok(None), Err)
    }

    /// Puts a void beside all of them, once all can be read: of one that cannot, nobody knows what would be given up.
    fn void_all(&mut self, first: Slot, last: Slot) -> Result<()> {
        for slot in first.0..=last.0 {
            block_on(self.segments.backend.get(&self.names().record(Slot(slot)), u64::from(u32::MAX)))?;
        }
        while self.state().next_slot() <= last {
            self.void_next_slot()?;
        }
        Ok(())
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
        if found.len() > SEARCHED_BYTES_MAX && !may_repeat_others(found) {
            return None;
        }
        let (own, rest) = found.split_at(found.len().min(SEARCHED_BYTES_MAX + LENGTHS_BYTES_MAX));
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
