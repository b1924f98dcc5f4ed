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

/// Slots of a run, and the most records that a batch can have.
pub const BATCH_SLOTS: u64 = 64;

pub(crate) const MAGIC: [u8; 8] = *b"FSLBATCH";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 16;
const LENGTH_BYTES: usize = 4;
const DIGEST_BYTES: usize = 32;

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

/// The records of an object, at least one, in the order of their slots. Those of a batch follow one another; whether the first
/// follows what is before it is for the caller to ask.
///
/// # Errors
/// See [`DecodeError`]. As with records, what is newer is never taken for torn.
pub fn decode_object(bytes: &[u8]) -> Result<Vec<(Record, RecordDigest)>, DecodeError> {
    if !bytes.starts_with(&MAGIC) {
        return Record::decode(bytes).map(|one| vec![one]);
    }
    let length = DecodeError::Length(bytes.len());
    if bytes.len() < HEAD_BYTES + DIGEST_BYTES || bytes.len() > RECORD_BYTES_MAX {
        return Err(length);
    }
    let (content, tail) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    if blake3::hash(content).as_bytes() != tail {
        return Err(DecodeError::Digest);
    }
    let mut head = Head(&content[MAGIC.len()..HEAD_BYTES]);
    let version = u16::from_le_bytes(head.take());
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let count = usize::from(u16::from_le_bytes(head.take()));
    let flags = u32::from_le_bytes(head.take());
    if flags != 0 {
        return Err(DecodeError::Flags(flags.into()));
    }
    if !(2..=BATCH_SLOTS as usize).contains(&count) {
        return Err(DecodeError::Batch);
    }
    let rest = &content[HEAD_BYTES..];
    let (lengths, mut rest) = rest.split_at_checked(LENGTH_BYTES * count).ok_or(length.clone())?;
    let mut records: Vec<(Record, RecordDigest)> = Vec::with_capacity(count);
    for bytes in lengths.chunks_exact(LENGTH_BYTES) {
        let its = u32::from_le_bytes(bytes.try_into().expect("as long as a length")) as usize;
        let (record, after) = rest.split_at_checked(its).filter(|_| its >= RECORD_BYTES_MIN).ok_or(length.clone())?;
        rest = after;
        let (record, digest) = Record::decode(record)?;
        let follows = |(before, its): &(Record, RecordDigest)| {
            record.group == before.group && record.slot.0.checked_sub(1) == Some(before.slot.0) && record.prev == *its
        };
        if !records.last().is_none_or(follows) {
            return Err(DecodeError::Batch);
        }
        records.push((record, digest));
    }
    if !rest.is_empty() {
        return Err(length);
    }
    if count as u64 > room_in_run(records[0].0.slot) {
        return Err(DecodeError::Batch);
    }
    Ok(records)
}
