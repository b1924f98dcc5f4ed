//! One attempt to append a record: what to write, and how to read what one finds in the slot afterwards. Pure.
//!
//! The rule (DESIGN §5): every answer but "created" leaves open whose record is in the slot. Get it: with our nonce it is
//! ours, and we succeeded; with another it is somebody else's, and we replay it and build anew, never the same record at a
//! later slot. An empty slot after an error means that our write may still land; nothing is known until the next look.

use farside_ledger::{Body, DecodeError, Encoded, Record, Stamp, State, TooLarge};
use farside_region::RecordDigest;

/// A record on its way into the slot after the head.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The record.
    pub record: Record,
    /// Its file and digest.
    pub encoded: Encoded,
}

/// Whose record was found in the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Ours: it was written, whatever the answer had been.
    Ours,
    /// Somebody else's: replay it, then build anew.
    Theirs(Box<Record>, RecordDigest),
}

impl Attempt {
    /// The record that says `body` in the slot after the head. `nonce`: random, new for every attempt.
    ///
    /// # Errors
    /// When it is too large to be a record.
    pub fn new(state: &State, body: Body, nonce: [u8; 16], stamp: Stamp) -> Result<Self, TooLarge> {
        let record = Record { group: state.group(), slot: state.next_slot(), prev: state.prev(), nonce, stamp, body };
        let encoded = record.encode()?;
        Ok(Self { record, encoded })
    }

    /// Reads what is in the slot.
    ///
    /// # Errors
    /// When it is not a record: the slot is torn.
    pub fn find(&self, bytes: &[u8]) -> Result<Found, DecodeError> {
        let (record, digest) = Record::decode(bytes)?;
        let ours = record.nonce == self.record.nonce && digest == self.encoded.digest;
        Ok(if ours { Found::Ours } else { Found::Theirs(Box::new(record), digest) })
    }
}
