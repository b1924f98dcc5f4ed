//! Several records in one object: what a publication puts at once (`docs/formats/ledger.md`).
//!
//! A batch lies in the slot of its first record and takes those of all of them, so whoever creates that object decides for all, and
//! nobody can have a head between them. Its records are what they would be alone: each names the one before it.
//!
//! Slots come in *runs* of [`BATCH_SLOTS`], and a batch lies within one. So the first slot of a run always has an object of its own
//! once the ledger has come there: where a record may lie is known from its slot, checkpoints end where runs do, and who looks for
//! the head can ask beyond a gap.

use farside_region::{RecordDigest, Slot};
use thiserror::Error;

use crate::codec::{DecodeError, Encoded, Head, RECORD_BYTES_MAX, RECORD_BYTES_MIN, TooLarge};
use crate::record::Record;
use crate::repeats::REPEATED_MAX;

/// Slots of a run, and the most records that a batch can have.
pub const BATCH_SLOTS: u64 = 64;

pub(crate) const MAGIC: [u8; 8] = *b"FSLBATCH";
const VERSION: u16 = 1;
/// Of an object that repeats records: who does not know of those calls it newer, never torn.
pub(crate) const VERSION_REPEATING: u16 = 2;
pub(crate) const HEAD_BYTES: usize = 16;
pub(crate) const LENGTH_BYTES: usize = 4;
pub(crate) const DIGEST_BYTES: usize = 32;

/// Why records cannot lie in one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// They take more than [`RECORD_BYTES_MAX`].
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// They do not lie within one run.
    #[error("{count} records from slot {first} on do not lie in one run of {BATCH_SLOTS} slots")]
    Run {
        /// The first of their slots.
        first: Slot,
        /// How many they are.
        count: usize,
    },
}

/// The first slot of a run.
pub fn run_of(slot: Slot) -> Slot {
    Slot(slot.0 - slot.0 % BATCH_SLOTS)
}

/// The slots from this one on that one object may take.
pub fn room_in_run(slot: Slot) -> u64 {
    BATCH_SLOTS - slot.0 % BATCH_SLOTS
}

/// Bytes of an object that holds so many records of so many bytes together.
pub fn object_bytes(records: usize, records_bytes: usize) -> usize {
    match records {
        0 | 1 => records_bytes,
        _ => HEAD_BYTES + LENGTH_BYTES * records + records_bytes + DIGEST_BYTES,
    }
}

/// The object that holds these records, of which the first is in that slot: one alone as it is.
///
/// # Errors
/// See [`BatchError`].
///
/// # Panics
/// When there are none.
pub fn encode_object(first: Slot, records: &[Encoded]) -> Result<Vec<u8>, BatchError> {
    let count = records.len();
    if let [alone] = records {
        return Ok(alone.bytes.clone());
    }
    assert!(count > 0, "nothing is no object");
    if count as u64 > room_in_run(first) {
        return Err(BatchError::Run { first, count });
    }
    let total = object_bytes(count, records.iter().map(|record| record.bytes.len()).sum());
    if total > RECORD_BYTES_MAX {
        return Err(TooLarge { bytes: total }.into());
    }
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(count as u16).to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    records.iter().for_each(|record| bytes.extend_from_slice(&(record.bytes.len() as u32).to_le_bytes()));
    records.iter().for_each(|record| bytes.extend_from_slice(&record.bytes));
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    Ok(bytes)
}

/// The records of an object, at least one, in the order of their slots: its own, and not those that it repeats ([`decode_repeats`](crate::decode_repeats)),
/// whose damage is not theirs. Those of a batch follow one another; whether the first follows what is before it is for the caller to ask.
///
/// # Errors
/// See [`DecodeError`]. As with records, what is newer is never taken for torn.
pub fn decode_object(bytes: &[u8]) -> Result<Vec<(Record, RecordDigest)>, DecodeError> {
    let own = take_apart(bytes)?.own;
    if let [alone] = own[..]
        && !bytes.starts_with(&MAGIC)
    {
        return Record::decode(alone).map(|one| vec![one]);
    }
    let mut records: Vec<(Record, RecordDigest)> = Vec::with_capacity(own.len());
    for bytes in own {
        let (record, digest) = Record::decode(bytes)?;
        if !records.last().is_none_or(|(before, its)| follows(before, its, &record)) {
            return Err(DecodeError::Batch);
        }
        records.push((record, digest));
    }
    if records.len() as u64 > room_in_run(records[0].0.slot) {
        return Err(DecodeError::Batch);
    }
    Ok(records)
}

/// Whether a record is the next one after another with this digest.
pub(crate) fn follows(before: &Record, its: &RecordDigest, record: &Record) -> bool {
    record.group == before.group && is_right_after(record.slot, before.slot) && record.prev == *its
}

/// † A peer's bytes may say the last slot that there is, after which none comes.
pub(crate) fn is_right_after(slot: Slot, before: Slot) -> bool {
    slot.0.checked_sub(1) == Some(before.0)
}

/// The pieces of an object.
pub(crate) struct Pieces<'b> {
    /// Its own records, at least one. Of a batch the digest over them was checked.
    pub(crate) own: Vec<&'b [u8]>,
    /// What it repeats, oldest first, as it lies there; `None`: not as long as is said of it.
    pub(crate) repeated: Option<Vec<&'b [u8]>>,
}

/// Takes an object apart. Nothing is decoded, and of what is repeated nothing checked.
///
/// # Errors
/// See [`DecodeError`].
pub(crate) fn take_apart(bytes: &[u8]) -> Result<Pieces<'_>, DecodeError> {
    if !bytes.starts_with(&MAGIC) {
        return Ok(Pieces { own: vec![bytes], repeated: Some(Vec::new()) });
    }
    let length = || DecodeError::Length(bytes.len());
    if bytes.len() < HEAD_BYTES + DIGEST_BYTES || bytes.len() > RECORD_BYTES_MAX {
        return Err(length());
    }
    let mut head = Head(&bytes[MAGIC.len()..HEAD_BYTES]);
    let version = u16::from_le_bytes(head.take());
    if version != VERSION_REPEATING {
        let (content, tail) = bytes.split_at(bytes.len() - DIGEST_BYTES);
        if blake3::hash(content).as_bytes() != tail {
            return Err(DecodeError::Digest);
        }
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
    }
    let count = usize::from(u16::from_le_bytes(head.take()));
    let flags = u32::from_le_bytes(head.take());
    let (least, repeated, head_bytes) = match version {
        VERSION => (2, 0, HEAD_BYTES),
        _ => {
            let repeated = bytes.get(HEAD_BYTES..HEAD_BYTES + LENGTH_BYTES).ok_or_else(length)?;
            (1, le_u32(repeated) as usize, HEAD_BYTES + LENGTH_BYTES)
        }
    };
    let is_odd = !(least..=BATCH_SLOTS as usize).contains(&count)
        || (version == VERSION_REPEATING && !(1..=REPEATED_MAX).contains(&repeated));
    if version == VERSION {
        judge(flags, is_odd)?;
    }
    // Else it is the digest behind the own records that says whether these numbers are what was written.
    let lengths = bytes.get(head_bytes..head_bytes.saturating_add(LENGTH_BYTES * (count + repeated.min(RECORD_BYTES_MAX))));
    let lengths: Vec<usize> =
        lengths.ok_or_else(length)?.chunks_exact(LENGTH_BYTES).map(|bytes| le_u32(bytes) as usize).collect();
    let mut at = head_bytes + LENGTH_BYTES * lengths.len();
    let own = pieces(bytes, &mut at, &lengths[..count]);
    if version == VERSION_REPEATING {
        let digest = own.as_ref().and_then(|_| bytes.get(at..at + DIGEST_BYTES)).ok_or(DecodeError::Digest)?;
        if blake3::hash(&bytes[..at]).as_bytes() != digest {
            return Err(DecodeError::Digest);
        }
        at += DIGEST_BYTES;
    }
    judge(flags, is_odd)?;
    let own = own.filter(|own| own.iter().all(|record| record.len() >= RECORD_BYTES_MIN)).ok_or_else(length)?;
    let repeated = pieces(bytes, &mut at, &lengths[count..]);
    let is_whole = bytes.len() == at.saturating_add(DIGEST_BYTES);
    if version == VERSION && !is_whole {
        return Err(length());
    }
    Ok(Pieces { own, repeated: repeated.filter(|_| is_whole) })
}

/// What a head says of itself.
fn judge(flags: u32, is_odd: bool) -> Result<(), DecodeError> {
    match flags {
        0 if is_odd => Err(DecodeError::Batch),
        0 => Ok(()),
        _ => Err(DecodeError::Flags(flags.into())),
    }
}

/// Bytes one after the other from `at` on, which moves behind them; `None`: there are not so many.
fn pieces<'b>(bytes: &'b [u8], at: &mut usize, lengths: &[usize]) -> Option<Vec<&'b [u8]>> {
    let mut found = Vec::with_capacity(lengths.len());
    for length in lengths {
        let end = at.checked_add(*length)?;
        found.push(bytes.get(*at..end)?);
        *at = end;
    }
    Some(found)
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("as long as a length"))
}
