//! One attempt to append: what to write, and how to read what one finds in the slot afterwards. Pure.
//!
//! The rule (DESIGN §5): every answer but "created" leaves open whose object is in the slot. Get it: with our bytes it is
//! ours, and we succeeded with all that we appended; otherwise it is somebody else's, and we replay it and build anew, never the
//! same records at later slots. An empty slot after an error means that our write may still land; nothing is known until the next look.

use std::time::Duration;

use farside_ledger::{BatchError, Body, DecodeError, Record, Stamp, State, decode_object, encode_object, encode_repeating};
use farside_region::{RecordDigest, Slot};

/// What one record is to say.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What.
    pub body: Body,
    /// Random, new for every attempt.
    pub nonce: [u8; 16],
    /// When.
    pub stamp: Stamp,
}

/// Records on their way into the slots after the head, in one object.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The records and their digests, in order; at least one.
    pub records: Vec<(Record, RecordDigest)>,
    /// The object.
    pub bytes: Vec<u8>,
}

/// Whose object was found in the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Ours: it was written, whatever the answer had been.
    Ours,
    /// Somebody else's: replay its records, then build anew.
    Theirs(Vec<(Record, RecordDigest)>),
}

/// The stamp of what came to be known so long ago, by the stamp of now.
///
/// What another process found out before the clock of this one began, wall clocks date, as between any two writers: ledger time goes on by
/// that, and nothing ages by it. So each such stamp is of a writer of its own, `other`. It is not before the wall clock of the record before
/// it, `before_ms`: time never runs back, else the record after it would count some of it twice. If that is ahead of our clock, which went
/// back since, there is nothing to count twice, and what comes now keeps its distances.
pub(crate) fn dated(now: Stamp, ago: Duration, before_ms: i64, other: [u8; 16]) -> Stamp {
    let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    let wall_ms = now.wall_ms.saturating_sub_unsigned(ago_ms);
    match now.mono_ms.checked_sub(ago_ms) {
        Some(mono_ms) => Stamp { mono_ms, wall_ms, ..now },
        None => {
            Stamp { writer: other, mono_ms: 0, wall_ms: if before_ms > now.wall_ms { wall_ms } else { wall_ms.max(before_ms) } }
        }
    }
}

impl Attempt {
    /// The record that says `body` in the slot after the head. `nonce`: random, new for every attempt.
    ///
    /// # Errors
    /// When it is too large to be a record.
    pub fn new(state: &State, body: Body, nonce: [u8; 16], stamp: Stamp) -> Result<Self, BatchError> {
        Self::of_all(state, vec![Draft { body, nonce, stamp }])
    }

    /// The records that say this in the slots after the head, in one object.
    ///
    /// # Errors
    /// When they are too large, or more than the run of slots has room for.
    ///
    /// # Panics
    /// When there are none.
    pub fn of_all(state: &State, drafts: Vec<Draft>) -> Result<Self, BatchError> {
        Self::repeating(state, drafts, &[])
    }

    /// The same, with as many of the records right before them as may be repeated. `before`: as they are stored, the oldest first.
    ///
    /// # Errors
    /// Those of [`Attempt::of_all`].
    ///
    /// # Panics
    /// When there are no drafts.
    pub fn repeating(state: &State, drafts: Vec<Draft>, before: &[Vec<u8>]) -> Result<Self, BatchError> {
        let (group, first) = (state.group(), state.next_slot());
        let (mut slot, mut prev) = (first, state.prev());
        let (mut records, mut encoded) = (Vec::new(), Vec::new());
        for Draft { body, nonce, stamp } in drafts {
            let record = Record { group, slot, prev, nonce, stamp, body };
            let its = record.encode()?;
            (slot, prev) = (slot.next(), its.digest);
            records.push((record, its.digest));
            encoded.push(its);
        }
        Ok(Self { records, bytes: encode_repeating(first, &encoded, before)? })
    }

    /// The object without what it repeats: what it says is the same.
    pub fn alone(&self) -> Vec<u8> {
        let encoded = self.records.iter().map(|(record, _)| record.encode()).collect::<Result<Vec<_>, _>>();
        let alone = encoded.map_err(BatchError::from).and_then(|encoded| encode_object(self.slot(), &encoded));
        alone.expect("they fitted an object with others")
    }

    /// The slot that decides.
    pub fn slot(&self) -> Slot {
        self.records[0].0.slot
    }

    /// Reads what is in the slot. An object is known by its own records, each of which has a nonce: what it repeats may have rotted.
    ///
    /// # Errors
    /// When it is not an object of records: the slot is torn.
    pub fn find(&self, bytes: &[u8]) -> Result<Found, DecodeError> {
        if bytes == self.bytes {
            return Ok(Found::Ours);
        }
        let records = decode_object(bytes)?;
        Ok(if records == self.records { Found::Ours } else { Found::Theirs(records) })
    }
}
