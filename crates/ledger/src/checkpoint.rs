//! The bytes of a checkpoint: what replay has come to at its last slot (`docs/formats/ledger.md`).
//!
//! Invariant: a checkpoint is a function of the records that it covers, and of all before them, alone. Whoever makes it makes
//! the same bytes, and replay from it and the records after it gives the state that replay from slot 0 gives.

use std::panic::resume_unwind;
use std::thread;

use bytes::Bytes;
use farside_region::{GroupId, LayerKey, RecordDigest, Slot};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::{Head, to_postcard};
use crate::in_turn::InTurn;
use crate::rows::Rows;
use crate::state::State;
use crate::stored::{LayerName, Stored};

/// The bytes of every root.
pub const CHECKPOINT_ROOT_BYTES: usize = ROOT_HEAD_BYTES + 32;
/// The largest state that a checkpoint may have.
pub const CHECKPOINT_STATE_BYTES_MAX: u64 = 1 << 30;

const ROOT_HEAD_BYTES: usize = 152;
const ROOT_MAGIC: [u8; 8] = *b"FSCHKPNT";
const STATE_MAGIC: [u8; 8] = *b"FSCHKST7";
const VERSION: u32 = 2;
/// Its root is as ours; its state is not. † No version after this is to be dropped like that: records that a checkpoint covers are deleted
/// since, so what is in the state of one cannot be had from anywhere else.
const VERSION_BEFORE: u32 = 1;
const VERSIONS: [u32; 2] = [VERSION_BEFORE, VERSION];
/// Bytes of what every small object of a checkpoint begins with.
pub(crate) const PLACED_HEAD_BYTES: usize = 48;

/// Which checkpoint of a ledger, and how many slots each of them covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPlace {
    /// Its number, from 0.
    pub number: u64,
    /// How many slots one covers.
    pub slots: u64,
}

impl CheckpointPlace {
    /// The one that covers a slot.
    ///
    /// # Panics
    /// When checkpoints cover nothing.
    pub fn covering(slot: Slot, slots: u64) -> Self {
        Self { number: slot.0 / slots, slots }
    }

    /// The slot after the last one that it covers; `None`: there can be none of that number.
    pub fn end(&self) -> Option<Slot> {
        self.number.checked_add(1)?.checked_mul(self.slots).map(Slot)
    }

    /// The one that a state completes: its head is the last slot of it.
    pub fn completed_by(state: &State, slots: u64) -> Option<Self> {
        let next = state.next_slot().0;
        (next > 0 && next.is_multiple_of(slots)).then(|| Self { number: next / slots - 1, slots })
    }
}

/// A published part that no accepted record has given up: what is needed beside the state to lay out the head image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPart {
    /// Its layer.
    pub layer: LayerKey,
    /// Its number in the layer.
    pub number: u32,
    /// Bytes of its file.
    pub bytes: u64,
    /// The digest of its footer.
    pub footer_digest: [u8; 32],
    /// The slot of the record that published it.
    pub born: Slot,
}

/// All of these by their ordinals, which say which one of all that the group ever published each was, in the order of their publication; and the
/// ordinal of the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointParts {
    /// The ordinal of the part that is published next.
    pub next: u32,
    /// Those that are left.
    pub parts: Rows<u32, CheckpointPart>,
}

impl CheckpointParts {
    /// Whether each of them is of a layer, or of a merge, that was accepted.
    fn are_published(&self, state: &State) -> bool {
        let mut layers: InTurn<'_, LayerName> = InTurn::new(state);
        self.parts.passing().all(|(_, part)| match part.layer.merge() {
            Some(_) => state.published(&part.layer).is_some(),
            None => layers.find(&part.layer, part.born).is_some(),
        })
    }
}

/// The small object that makes a checkpoint exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointRoot {
    /// The version of root and state.
    pub version: u32,
    /// Whose ledger.
    pub group: GroupId,
    /// Which checkpoint.
    pub place: CheckpointPlace,
    /// The digest of the last record that it covers.
    pub last: RecordDigest,
    /// The digest of the root before it; zeroes in the first.
    pub previous: [u8; 32],
    /// Bytes of its state.
    pub state_bytes: u64,
    /// BLAKE3 over them.
    pub state_digest: [u8; 32],
}

/// A checkpoint as it is stored: two objects, of which the state is created first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedCheckpoint {
    /// The root.
    pub root: Vec<u8>,
    /// The state.
    pub state: Vec<u8>,
}

/// Why bytes are not the checkpoint that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Cut off, or something else altogether.
    #[error("these bytes are not a checkpoint's")]
    Magic,
    /// The bytes are not those that were written.
    #[error("the checkpoint's digest does not match its bytes")]
    Digest,
    /// Written by a newer Farside: update this one.
    #[error("the checkpoint has format version {0}; this program knows version {VERSION}")]
    Version(u32),
    /// Written by a newer Farside: update this one.
    #[error("the checkpoint carries flags {0:#x}, which this program does not know")]
    Flags(u32),
    /// Written by an earlier Farside, in another form. What it covers is replayed.
    #[error("the checkpoint is of an earlier version")]
    Earlier,
    /// The digest is right and the content makes no sense, or is of another place than the object's.
    #[error("the checkpoint is not of this ledger and place")]
    Place,
}

impl CheckpointError {
    /// Whether a newer Farside may be able to read it.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Version(_) | Self::Flags(_))
    }
}

impl EncodedCheckpoint {
    /// The checkpoint of a state that is at its end. `previous`: the digest of the root before it.
    ///
    /// # Panics
    /// When the head is not the last slot of the place.
    pub fn new(place: CheckpointPlace, previous: [u8; 32], state: &State, parts: &CheckpointParts) -> Self {
        assert_eq!(place.end(), Some(state.next_slot()), "a checkpoint covers exactly its slots");
        let mut bytes = STATE_MAGIC.to_vec();
        bytes.extend_from_slice(&to_postcard(&(state, parts)));
        let root = CheckpointRoot {
            version: VERSION,
            group: state.group(),
            place,
            last: state.prev(),
            previous,
            state_bytes: bytes.len() as u64,
            state_digest: *blake3::hash(&bytes).as_bytes(),
        };
        Self { root: root.encode(), state: bytes }
    }
}

impl CheckpointRoot {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = begun(ROOT_MAGIC, self.version, self.group, self.place, CHECKPOINT_ROOT_BYTES);
        bytes.extend_from_slice(&self.last.0);
        bytes.extend_from_slice(&self.previous);
        bytes.extend_from_slice(&self.state_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.state_digest);
        debug_assert_eq!(bytes.len(), ROOT_HEAD_BYTES);
        ended(bytes)
    }

    /// Reads the root that should be in a place of a group's ledger; with its digest, which the next root names.
    ///
    /// # Errors
    /// See [`CheckpointError`]. The digest is checked before anything else is believed, the version next.
    pub fn decode(bytes: &[u8], group: GroupId, place: CheckpointPlace) -> Result<(Self, [u8; 32]), CheckpointError> {
        let Opened { version, is_here, rest, digest } = opened(bytes, (ROOT_MAGIC, ROOT_HEAD_BYTES), &VERSIONS, group, place)?;
        let mut head = Head(rest);
        let root = Self {
            version,
            group,
            place,
            last: RecordDigest(head.take()),
            previous: head.take(),
            state_bytes: u64::from_le_bytes(head.take()),
            state_digest: head.take(),
        };
        let fits = head.0.is_empty() && is_here;
        if fits && root.state_bytes <= CHECKPOINT_STATE_BYTES_MAX { Ok((root, digest)) } else { Err(CheckpointError::Place) }
    }

    /// Whether its state is of a version that is not read any more.
    pub fn is_of_an_earlier_version(&self) -> bool {
        self.version < VERSION
    }

    /// Reads the state that this root names. All of it is looked at, and its tables stay the bytes that they are until somebody looks into them.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn state(&self, bytes: &Bytes) -> Result<(State, CheckpointParts), CheckpointError> {
        if self.is_of_an_earlier_version() {
            return Err(CheckpointError::Earlier);
        }
        if bytes.len() as u64 != self.state_bytes {
            return Err(CheckpointError::Digest);
        }
        // What is made of bytes that are not those that were written is nothing, or is thrown away.
        let is_right = || *blake3::hash(bytes).as_bytes() == self.state_digest;
        match side_by_side(bytes.len(), is_right, || self.read_state(bytes)) {
            (true, state) => state,
            (false, _) => Err(CheckpointError::Digest),
        }
    }

    fn read_state(&self, bytes: &Bytes) -> Result<(State, CheckpointParts), CheckpointError> {
        let mut body = bytes.strip_prefix(&STATE_MAGIC).ok_or(CheckpointError::Magic)?;
        let (state, parts) = read(&mut body, bytes).filter(|_| body.is_empty()).ok_or(CheckpointError::Place)?;
        let here = state.group() == self.group && self.place.end() == Some(state.next_slot()) && state.prev() == self.last;
        let ordered = parts.parts.last_key().is_none_or(|last| last < parts.next);
        let (is_linked, are_published) = side_by_side(bytes.len(), || state.is_linked(), || parts.are_published(&state));
        if here && ordered && is_linked && are_published { Ok((state, parts)) } else { Err(CheckpointError::Place) }
    }
}

/// What every small object of a checkpoint begins with. `room`: bytes of all of it.
pub(crate) fn begun(magic: [u8; 8], version: u32, group: GroupId, place: CheckpointPlace, room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(room);
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&0u32.to_le_bytes());
    bytes.extend_from_slice(&group.0);
    bytes.extend_from_slice(&place.number.to_le_bytes());
    bytes.extend_from_slice(&place.slots.to_le_bytes());
    debug_assert_eq!(bytes.len(), PLACED_HEAD_BYTES);
    bytes
}

/// With the digest that each of them ends with.
pub(crate) fn ended(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

/// One of them that is whole and of a version that is read.
pub(crate) struct Opened<'b> {
    pub(crate) version: u32,
    /// Whether it is of the group and place that it should be of.
    pub(crate) is_here: bool,
    /// What comes after that.
    pub(crate) rest: &'b [u8],
    pub(crate) digest: [u8; 32],
}

/// The digest is checked before anything else is believed, the version next. `least`: bytes that it has before its digest, at least.
pub(crate) fn opened<'b>(
    bytes: &'b [u8],
    (magic, least): ([u8; 8], usize),
    versions: &[u32],
    group: GroupId,
    place: CheckpointPlace,
) -> Result<Opened<'b>, CheckpointError> {
    let content = bytes.len().checked_sub(32).ok_or(CheckpointError::Magic)?;
    let (content, tail) = bytes.split_at(content);
    if content.len() < least || content[..8] != magic {
        return Err(CheckpointError::Magic);
    }
    let digest = *blake3::hash(content).as_bytes();
    if digest != tail {
        return Err(CheckpointError::Digest);
    }
    let (head, rest) = content.split_at(PLACED_HEAD_BYTES);
    let mut head = Head(&head[8..]);
    let version = u32::from_le_bytes(head.take());
    if !versions.contains(&version) {
        return Err(CheckpointError::Version(version));
    }
    let flags = u32::from_le_bytes(head.take());
    if flags != 0 {
        return Err(CheckpointError::Flags(flags));
    }
    let of_group = GroupId(head.take()) == group;
    let here = CheckpointPlace { number: u64::from_le_bytes(head.take()), slots: u64::from_le_bytes(head.take()) };
    Ok(Opened { version, is_here: of_group && here == place, rest, digest })
}

/// States from this size on, in bytes, are looked at by two threads: a short one would wait longer for its thread.
const BY_TWO_BYTES: usize = if cfg!(test) { 1 } else { 1 << 20 };

/// Both of two things that are done with so many bytes; at once, if they are many and there is a thread for it.
fn side_by_side<A: Send, B>(bytes: usize, one: impl Fn() -> A + Sync, other: impl FnOnce() -> B) -> (A, B) {
    if bytes < BY_TWO_BYTES {
        return (one(), other());
    }
    thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, &one) {
        Ok(aside) => {
            let other = other();
            (aside.join().unwrap_or_else(|panic| resume_unwind(panic)), other)
        }
        Err(_) => (one(), other()),
    })
}

fn read(from: &mut &[u8], all: &Bytes) -> Option<(State, CheckpointParts)> {
    Some((State::read(from, all)?, CheckpointParts { next: u32::read(from)?, parts: Rows::read(from, all)? }))
}
