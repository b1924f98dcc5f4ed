//! The digests of all records that a checkpoint covers: what is left of most of them in the end (`docs/formats/ledger.md`).
//!
//! Replay forgets digests that nothing names ([`Memory`](crate::Memory)), and records go once it has. Somebody may come back after years all
//! the same, with a position so old: whether the ledger went through it is known from here.
//!
//! Invariant: as with the checkpoint itself, whoever makes them makes the same bytes.

use farside_region::{GroupId, RecordDigest, Slot};

use crate::checkpoint::{CheckpointError, CheckpointPlace};
use crate::codec::Head;
use crate::state::State;

const HEAD_BYTES: usize = 48;
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
        slots.saturating_mul(DIGEST_BYTES as u64).saturating_add((HEAD_BYTES + 32) as u64)
    }

    /// As they are stored.
    pub fn encode(&self, group: GroupId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.digests.len() * DIGEST_BYTES + 32);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&group.0);
        bytes.extend_from_slice(&self.place.number.to_le_bytes());
        bytes.extend_from_slice(&self.place.slots.to_le_bytes());
        debug_assert_eq!(bytes.len(), HEAD_BYTES);
        self.digests.iter().for_each(|digest| bytes.extend_from_slice(&digest.0));
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    /// Reads those that should be in a place of a group's ledger. `last`: what the checkpoint's root says of the last of them.
    ///
    /// # Errors
    /// See [`CheckpointError`]. The digest is checked before anything else is believed, the version next.
    pub fn decode(bytes: &[u8], group: GroupId, place: CheckpointPlace, last: RecordDigest) -> Result<Self, CheckpointError> {
        let content = bytes.len().checked_sub(32).ok_or(CheckpointError::Magic)?;
        let (content, tail) = bytes.split_at(content);
        if content.len() < HEAD_BYTES || content[..8] != MAGIC {
            return Err(CheckpointError::Magic);
        }
        if *blake3::hash(content).as_bytes() != tail {
            return Err(CheckpointError::Digest);
        }
        let (head, digests) = content.split_at(HEAD_BYTES);
        let mut head = Head(&head[8..]);
        let version = u32::from_le_bytes(head.take());
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        let flags = u32::from_le_bytes(head.take());
        if flags != 0 {
            return Err(CheckpointError::Flags(flags));
        }
        let is_group = GroupId(head.take()) == group;
        let is_place =
            place == CheckpointPlace { number: u64::from_le_bytes(head.take()), slots: u64::from_le_bytes(head.take()) };
        let (digests, rest) = digests.as_chunks::<DIGEST_BYTES>();
        let digests: Vec<RecordDigest> = digests.iter().map(|digest| RecordDigest(*digest)).collect();
        let fits = rest.is_empty() && digests.len() as u64 == place.slots && digests.last() == Some(&last);
        if is_group && is_place && fits { Ok(Self { place, digests }) } else { Err(CheckpointError::Place) }
    }

    /// The digest of the record in a slot, if it is one of these.
    pub fn at(&self, slot: Slot) -> Option<RecordDigest> {
        let nth = slot.0.checked_sub(self.place.number.checked_mul(self.place.slots)?)?;
        self.digests.get(usize::try_from(nth).ok()?).copied()
    }
}
