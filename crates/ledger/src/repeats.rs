//! Records that an object repeats, so that who reads what came after a checkpoint reads a few objects (`docs/formats/ledger.md`).
//!
//! Think of a slot in octal. Its object repeats the records from the slot on that has its last digit but zeroes set to zero: that of 0o1234
//! those of 0o1230 to 0o1233, that of 0o1200 those of 0o1000 to 0o1177. So the newest object, and those of the slots where what it repeats
//! begins, hold all since the checkpoint: four objects at most where records are small, of 14 records each on average. An object of several
//! own records repeats what any of their slots asks for.
//!
//! Invariants:
//! - an object's own records are judged alone, by a digest over them: whatever became of what it repeats costs time, never a record;
//! - a repeated record counts only if the chain of the object's own first record leads to it. So one of another history, or that lost
//!   its slot to another, never does.
//!
//! Deliberately not here: reading older objects to repeat more (the store's).

use std::collections::VecDeque;

use farside_region::{RecordDigest, Slot, mutation};

use crate::batch::{
    BATCH_SLOTS, BatchError, DIGEST_BYTES, HEAD_BYTES, LENGTH_BYTES, MAGIC, VERSION_REPEATING, decode_object, encode_object,
    follows, is_right_after, run_of, take_apart,
};
use crate::codec::{DecodeError, Encoded, RECORD_BYTES_MAX};
use crate::record::Record;
use crate::state::State;

/// The most records that an object repeats: all since a checkpoint.
pub(crate) const REPEATED_MAX: usize = 4095;
/// The most bytes of records that the object in the first slot of a run repeats.
pub const REPEATED_BYTES_MAX: usize = 2 << 20;
/// The same of all others.
pub const REPEATED_IN_RUN_BYTES_MAX: usize = 128 << 10;
/// The most bytes of records that [`Newest`] keeps.
const KEPT_BYTES_MAX: usize = 512 << 10;

/// The most bytes before the own records of an object that repeats others.
pub const LENGTHS_BYTES_MAX: usize = HEAD_BYTES + LENGTH_BYTES * (1 + BATCH_SLOTS as usize + REPEATED_MAX);

/// The digits of a slot that say what its object repeats.
const DIGITS: u32 = 4;
const DIGIT_BITS: u32 = 3;

/// The first slot whose record the object of so many own records repeats, if bytes allow: what any of their slots asks for. The slot of its
/// first one, if it repeats nothing.
pub fn repeats_from(first: Slot, records: u64) -> Slot {
    let asked = (0..records).map(|nth| asks_for(Slot(first.0.saturating_add(nth))));
    asked.min().map_or(first, |from| from.min(first))
}

/// The slot with its last digit but zeroes set to zero.
fn asks_for(slot: Slot) -> Slot {
    let digit = slot.0.trailing_zeros() / DIGIT_BITS;
    if digit >= DIGITS {
        return slot;
    }
    Slot(slot.0 >> ((digit + 1) * DIGIT_BITS) << ((digit + 1) * DIGIT_BITS))
}

/// The most bytes of records that the object in this slot repeats.
fn bytes_max(slot: Slot) -> usize {
    if run_of(slot) == slot { REPEATED_BYTES_MAX } else { REPEATED_IN_RUN_BYTES_MAX }
}

/// The object that holds these records, of which the first is in that slot, and repeats as many of those right before it as it may:
/// `before`, as they are stored, one after the other, the oldest first. It is never longer than an object may be for what it repeats.
///
/// # Errors
/// See [`BatchError`].
///
/// # Panics
/// When there are no records.
pub fn encode_repeating(first: Slot, records: &[Encoded], before: &[impl AsRef<[u8]>]) -> Result<Vec<u8>, BatchError> {
    let alone = encode_object(first, records)?;
    let own: usize = records.iter().map(|record| record.bytes.len()).sum();
    let fixed = HEAD_BYTES + LENGTH_BYTES * (records.len() + 1) + own + 2 * DIGEST_BYTES;
    let wanted = usize::try_from(first.0 - repeats_from(first, records.len() as u64).0).unwrap_or(REPEATED_MAX).min(REPEATED_MAX);
    let (mut repeated, mut bytes, mut total) = (0, 0, fixed);
    for record in before.iter().rev().take(wanted) {
        let its = record.as_ref().len();
        (bytes, total) = (bytes + its, total + LENGTH_BYTES + its);
        if bytes > bytes_max(first) || total > RECORD_BYTES_MAX {
            break;
        }
        repeated += 1;
    }
    if repeated == 0 {
        return Ok(alone);
    }
    let before = &before[before.len() - repeated..];
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION_REPEATING.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&(repeated as u32).to_le_bytes());
    records.iter().for_each(|record| bytes.extend_from_slice(&(record.bytes.len() as u32).to_le_bytes()));
    before.iter().for_each(|record| bytes.extend_from_slice(&(record.as_ref().len() as u32).to_le_bytes()));
    records.iter().for_each(|record| bytes.extend_from_slice(&record.bytes));
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    before.iter().for_each(|record| bytes.extend_from_slice(record.as_ref()));
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    Ok(bytes)
}

/// Whether an object says, but perhaps for one bit of it, that it repeats others: then its own records come first, and are read without what is
/// behind them.
pub fn may_repeat_others(object: &[u8]) -> bool {
    let version = VERSION_REPEATING.to_le_bytes();
    let wrong: u32 = object.iter().zip(MAGIC.iter().chain(&version)).map(|(is, said)| (is ^ said).count_ones()).sum();
    object.len() > HEAD_BYTES && wrong <= 1
}

/// A record of an object: one that it repeats, or one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated<'b> {
    /// As it is stored.
    pub bytes: &'b [u8],
    /// What it says.
    pub record: Record,
    /// Its digest.
    pub digest: RecordDigest,
}

/// The records that an object repeats, the oldest first, up to the one before its own first record, which follows them. None: it repeats
/// nothing.
///
/// # Errors
/// [`DecodeError::Repeats`]: they are not what is before it, or the digest at the end, which is for programs that do not know of them, is
/// wrong; of the object's own records all that [`decode_object`](crate::decode_object) says.
pub fn decode_repeats(bytes: &[u8]) -> Result<Vec<Repeated<'_>>, DecodeError> {
    let pieces = take_apart(bytes)?;
    let slices = pieces.repeated.ok_or(DecodeError::Repeats)?;
    if slices.is_empty() {
        return Ok(Vec::new());
    }
    let (own, _) = Record::decode(pieces.own[0])?;
    let (content, tail) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    if blake3::hash(content).as_bytes() != tail {
        return Err(DecodeError::Repeats);
    }
    let mut repeated: Vec<Repeated<'_>> = Vec::with_capacity(slices.len());
    for bytes in slices {
        let (record, digest) = Record::decode(bytes).map_err(|_| DecodeError::Repeats)?;
        let is_next = |before: &Repeated<'_>| follows(&before.record, &before.digest, &record);
        if !repeated.last().is_none_or(is_next) || record.group != own.group {
            return Err(DecodeError::Repeats);
        }
        repeated.push(Repeated { bytes, record, digest });
    }
    let leads_up = repeated.last().is_some_and(|last| follows(&last.record, &last.digest, &own));
    if !leads_up && !mutation::on("a repeated record counts without the chain") {
        return Err(DecodeError::Repeats);
    }
    Ok(repeated)
}

/// All records of an object, ascending: those that it repeats, unless they are damaged, and its own.
///
/// # Errors
/// Those of [`decode_object`](crate::decode_object).
pub fn decode_with_repeats(bytes: &[u8]) -> Result<Vec<Repeated<'_>>, DecodeError> {
    let own = decode_object(bytes)?;
    let mut all = decode_repeats(bytes).unwrap_or_default();
    let own = own.into_iter().zip(take_apart(bytes)?.own);
    all.extend(own.map(|((record, digest), bytes)| Repeated { bytes, record, digest }));
    Ok(all)
}

/// A record in memory, as it is stored.
#[derive(Clone, Debug)]
struct Kept {
    bytes: Vec<u8>,
    slot: Slot,
    prev: RecordDigest,
}

/// The newest records of a ledger as they are stored: those of the run of the newest, half a mebibyte at most. What a writer's next object
/// repeats.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// Of the last of them.
    digest: Option<RecordDigest>,
}

impl Newest {
    /// Takes in the object that lies in the slots after those that are kept; another one takes their place, with what it repeats. What
    /// cannot be read is not kept.
    pub fn take_in(&mut self, object: &[u8]) {
        let Ok(own) = decode_object(object) else { return *self = Self::default() };
        let follows = |last: &Kept| is_right_after(own[0].0.slot, last.slot) && self.digest == Some(own[0].0.prev);
        if self.kept.back().is_some_and(follows) {
            let pieces = take_apart(object).map_or_else(|_| Vec::new(), |pieces| pieces.own);
            pieces.into_iter().zip(own).for_each(|(bytes, (record, digest))| self.push(bytes, &record, digest));
        } else {
            *self = Self::default();
            let all = decode_with_repeats(object).unwrap_or_default();
            all.iter().for_each(|one| self.push(one.bytes, &one.record, one.digest));
        }
    }

    fn push(&mut self, bytes: &[u8], record: &Record, digest: RecordDigest) {
        self.kept.push_back(Kept { bytes: bytes.to_vec(), slot: record.slot, prev: record.prev });
        self.bytes += bytes.len();
        self.digest = Some(digest);
        let run = run_of(record.slot);
        while let Some(oldest) = self.kept.front().filter(|oldest| oldest.slot < run || self.bytes > KEPT_BYTES_MAX) {
            self.bytes -= oldest.bytes.len();
            self.kept.pop_front();
        }
    }

    /// Keeps those before the oldest as well, ascending, if they lead up to it and are of its run.
    pub fn take_in_before(&mut self, before: &[Repeated<'_>]) {
        let Some(run) = self.kept.back().map(|newest| run_of(newest.slot)) else { return };
        for one in before.iter().rev().filter(|one| one.record.slot >= run) {
            let leads_up = self.oldest().is_some_and(|(slot, prev)| is_right_after(slot, one.record.slot) && one.digest == prev);
            if !leads_up || self.bytes + one.bytes.len() > KEPT_BYTES_MAX {
                return;
            }
            self.bytes += one.bytes.len();
            self.kept.push_front(Kept { bytes: one.bytes.to_vec(), slot: one.record.slot, prev: one.record.prev });
        }
    }

    /// Whether these are the newest of that ledger.
    pub fn are_of(&self, state: &State) -> bool {
        self.digest == Some(state.prev()) && self.kept.back().is_some_and(|last| is_right_after(state.next_slot(), last.slot))
    }

    /// The slot of the oldest, and the digest of the record before it.
    pub fn oldest(&self) -> Option<(Slot, RecordDigest)> {
        self.kept.front().map(|oldest| (oldest.slot, oldest.prev))
    }

    /// Those from a slot on, the oldest first.
    pub fn from(&self, slot: Slot) -> impl Iterator<Item = &[u8]> {
        self.kept.iter().filter(move |kept| kept.slot >= slot).map(|kept| &kept.bytes[..])
    }
}
