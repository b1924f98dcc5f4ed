//! The digests of all records that a checkpoint covers: what is left of most of them in the end (`docs/formats/ledger.md`).
//!
//! Replay forgets digests that nothing names ([`Memory`](crate::Memory)), and records go once it has. Somebody may come back after years all
//! the same, with a position so old: whether the ledger went through it is known from here.
//!
//! Invariant: as with the checkpoint itself, whoever makes them makes the same bytes.

use farside_region::{GroupId, RecordDigest, Slot};

use crate::checkpoint::{CheckpointError, CheckpointPlace, Opened, PLACED_HEAD_BYTES, begun, ended, opened};
use crate::state::State;

const DIGEST_BYTES: usize = size_of::<RecordDigest>();
const MAGIC: [u8; 8] = *b"FSSLOTDG";
const VERSION: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotDigests {
    place: CheckpointPlace,
    digests: Vec<RecordDigest>,
}

impl SlotDigests {
    /// Of the checkpoint that a state completes. `None`: it completes none, or has forgotten some of them.
    pub fn completed_by(state: &State, slots: u64) -> Option<Self> {
        let place = CheckpointPlace::completed_by(state, slots)?;
        let digests = (place.number * slots..place.end()?.0).map(|slot| state.digest_at(Slot(slot))).collect::<Option<_>>()?;
        Some(Self { place, digests })
    }

    /// The bytes of those of a checkpoint that covers so many slots.
    pub fn bytes(slots: u64) -> u64 {
        slots.saturating_mul(DIGEST_BYTES as u64).saturating_add((PLACED_HEAD_BYTES + 32) as u64)
    }

    /// As they are stored.
    pub fn encode(&self, group: GroupId) -> Vec<u8> {
        let room = PLACED_HEAD_BYTES + self.digests.len() * DIGEST_BYTES + 32;
        let mut bytes = begun(MAGIC, VERSION, group, self.place, room);
        self.digests.iter().for_each(|digest| bytes.extend_from_slice(&digest.0));
        ended(bytes)
    }

    /// Reads those that should be in a place of a group's ledger. `last`: what the checkpoint's root says of the last of them.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn decode(bytes: &[u8], group: GroupId, place: CheckpointPlace, last: RecordDigest) -> Result<Self, CheckpointError> {
        let Opened { is_here, rest, .. } = opened(bytes, (MAGIC, PLACED_HEAD_BYTES), &[VERSION], group, place)?;
        let (digests, rest) = rest.as_chunks::<DIGEST_BYTES>();
        let digests: Vec<RecordDigest> = digests.iter().map(|digest| RecordDigest(*digest)).collect();
        let fits = rest.is_empty() && digests.len() as u64 == place.slots && digests.last() == Some(&last);
        if is_here && fits { Ok(Self { place, digests }) } else { Err(CheckpointError::Place) }
    }

    /// The digest of the record in a slot, if it is one of these.
    pub fn at(&self, slot: Slot) -> Option<RecordDigest> {
        let nth = slot.0.checked_sub(self.place.number.checked_mul(self.place.slots)?)?;
        self.digests.get(usize::try_from(nth).ok()?).copied()
    }
}
