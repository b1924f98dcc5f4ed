//! The bytes of a record: a fixed head, a postcard body, a BLAKE3 digest over both (`docs/formats/ledger.md`).
//!
//! Decoding is bounded: at most [`RECORD_BYTES_MAX`] bytes are looked at, and memory follows the bytes that are really there,
//! never a length that they claim. The digest is checked before anything else is believed.

use farside_region::{GroupId, RecordDigest, SealMode, Slot};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::label::Label;
use crate::record::{Body, Claim, Layers, Prune, PrunePolicy, Record, Stamp};

/// The largest record. A point whose regions do not fit must be published as slices.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
/// The smallest file that can be a record.
pub const RECORD_BYTES_MIN: usize = HEAD_BYTES + DIGEST_BYTES;

pub(crate) const MAGIC: [u8; 8] = *b"FSLEDGER";
pub(crate) const VERSION: u16 = 1;
const HEAD_BYTES: usize = 128;
const DIGEST_BYTES: usize = 32;

const KIND_CLAIM: u16 = 1;
const KIND_LAYERS: u16 = 2;
const KIND_HEARTBEAT: u16 = 3;
const KIND_PIN: u16 = 4;
const KIND_UNPIN: u16 = 5;
const KIND_PRUNE: u16 = 6;
const KIND_TORN_VOID: u16 = 7;
const KIND_TRACKING_LOST: u16 = 8;
const KIND_PRUNE_BY_AGE: u16 = 9;
const KIND_PACK_PLACES: u16 = 10;
const KIND_VERIFIED: u16 = 11;
/// A claim of a volume that is encrypted end to end: who does not know how to read one refuses the kind.
const KIND_CLAIM_SEALED: u16 = 12;
const KIND_MAP: u16 = 13;
const KIND_DECREE: u16 = 14;
/// Layers of a point of which something is said.
const KIND_LABELLED: u16 = 15;
/// A claim of a volume that is encrypted at rest.
const KIND_CLAIM_AT_REST: u16 = 16;
/// The same, of a cut of several groups: who does not know of those refuses the kind.
const KIND_COHORT: u16 = 17;

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// Its digest: what the next record names as `prev`.
    pub digest: RecordDigest,
}

/// The record has more bytes than [`RECORD_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the record would have {bytes} bytes; at most {RECORD_BYTES_MAX} are allowed")]
pub struct TooLarge {
    /// What it would take.
    pub bytes: usize,
}

/// Why bytes are not a record. All but the version and kind ones mean that the slot is torn or rotten.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Too short, too long, or not as long as its head says.
    #[error("a record of {0} bytes is cut off or has bytes behind its end")]
    Length(usize),
    /// Something else altogether.
    #[error("these bytes do not begin like a ledger record")]
    Magic,
    /// The bytes are not those that were written.
    #[error("the record's digest does not match its bytes")]
    Digest,
    /// Written by a newer Farside: update this one.
    #[error("the record has format version {0}; this program knows version {VERSION}")]
    Version(u16),
    /// Written by a newer Farside: update this one.
    #[error("the record is of kind {0}, which this program does not know")]
    Kind(u16),
    /// Written by a newer Farside: update this one.
    #[error("the record carries flags {0:#x}, which this program does not know")]
    Flags(u64),
    /// The digest is right and the body makes no sense: a bug of its writer.
    #[error("the record's body cannot be read")]
    Body,
    /// The digest is right, and these records do not belong in one object: a bug of its writer.
    #[error("the records of the batch do not follow one another within one run of slots")]
    Batch,
    /// The object's own records are whole; those that it repeats are not, or are not those before it.
    #[error("the records that the object repeats are damaged, or do not lead up to its own")]
    Repeats,
}

impl Record {
    /// The record's file and digest.
    ///
    /// # Errors
    /// When it would be larger than [`RECORD_BYTES_MAX`].
    pub fn encode(&self) -> Result<Encoded, TooLarge> {
        let (kind, body) = match &self.body {
            Body::Claim(b) => (claim_kind(b), to_postcard(b)),
            Body::Layers(b) => layers_body(b),
            Body::Heartbeat(b) => (KIND_HEARTBEAT, to_postcard(b)),
            Body::Pin(b) => (KIND_PIN, to_postcard(b)),
            Body::Unpin(b) => (KIND_UNPIN, to_postcard(b)),
            Body::Prune(b) => prune_body(b),
            Body::TornVoid(b) => (KIND_TORN_VOID, to_postcard(b)),
            Body::TrackingLost(b) => (KIND_TRACKING_LOST, to_postcard(b)),
            Body::Verified(b) => (KIND_VERIFIED, to_postcard(b)),
            Body::Map(b) => (KIND_MAP, to_postcard(b)),
            Body::Decree(b) => (KIND_DECREE, to_postcard(b)),
            Body::PackPlaces(b) => (KIND_PACK_PLACES, to_postcard(b)),
        };
        let total = HEAD_BYTES + body.len() + DIGEST_BYTES;
        if total > RECORD_BYTES_MAX {
            return Err(TooLarge { bytes: total });
        }
        let mut bytes = Vec::with_capacity(total);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.slot.0.to_le_bytes());
        bytes.extend_from_slice(&self.group.0);
        bytes.extend_from_slice(&self.prev.0);
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&self.stamp.writer);
        bytes.extend_from_slice(&self.stamp.mono_ms.to_le_bytes());
        bytes.extend_from_slice(&self.stamp.wall_ms.to_le_bytes());
        bytes.extend_from_slice(&0u64.to_le_bytes());
        debug_assert_eq!(bytes.len(), HEAD_BYTES);
        bytes.extend_from_slice(&body);
        let digest = RecordDigest(*blake3::hash(&bytes).as_bytes());
        bytes.extend_from_slice(&digest.0);
        Ok(Encoded { bytes, digest })
    }

    /// Reads a record from its whole file, and checks its digest.
    ///
    /// # Errors
    /// See [`DecodeError`]. A digest that does not match is told from an unknown version, so that a newer record is never
    /// taken for a torn one.
    pub fn decode(bytes: &[u8]) -> Result<(Self, RecordDigest), DecodeError> {
        if bytes.len() < RECORD_BYTES_MIN || bytes.len() > RECORD_BYTES_MAX {
            return Err(DecodeError::Length(bytes.len()));
        }
        let (content, tail) = bytes.split_at(bytes.len() - DIGEST_BYTES);
        let mut head = Head(content);
        if head.take::<8>() != MAGIC {
            return Err(DecodeError::Magic);
        }
        let digest = RecordDigest(*blake3::hash(content).as_bytes());
        if digest.0 != tail {
            return Err(DecodeError::Digest);
        }
        let version = u16::from_le_bytes(head.take());
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let kind = u16::from_le_bytes(head.take());
        let body_bytes = u32::from_le_bytes(head.take()) as usize;
        let slot = Slot(u64::from_le_bytes(head.take()));
        let group = GroupId(head.take());
        let prev = RecordDigest(head.take());
        let nonce = head.take();
        let writer = head.take();
        let mono_ms = u64::from_le_bytes(head.take());
        let wall_ms = i64::from_le_bytes(head.take());
        let flags = u64::from_le_bytes(head.take());
        if flags != 0 {
            return Err(DecodeError::Flags(flags));
        }
        let body = head.0;
        if body.len() != body_bytes {
            return Err(DecodeError::Length(bytes.len()));
        }
        let body = match kind {
            KIND_CLAIM | KIND_CLAIM_SEALED | KIND_CLAIM_AT_REST => Body::Claim(claim_of(body, kind)?),
            KIND_LAYERS => {
                let (kind, epoch, members) = from_postcard(body)?;
                Body::Layers(Layers { kind, epoch, label: None, members })
            }
            KIND_LABELLED | KIND_COHORT => {
                let is_of_cohort = kind == KIND_COHORT;
                let (kind, epoch, members, label): (_, _, _, Box<Label>) = from_postcard(body)?;
                if label.consistency.cohort_cut().is_some() != is_of_cohort {
                    return Err(DecodeError::Body);
                }
                Body::Layers(Layers { kind, epoch, label: Some(label), members })
            }
            KIND_HEARTBEAT => Body::Heartbeat(from_postcard(body)?),
            KIND_PIN => Body::Pin(from_postcard(body)?),
            KIND_UNPIN => Body::Unpin(from_postcard(body)?),
            KIND_PRUNE => Body::Prune(prune_of(body, |(keep, span_ms)| PrunePolicy::LedgerTime { keep, span_ms })?),
            KIND_PRUNE_BY_AGE => Body::Prune(prune_of(body, PrunePolicy::Aged)?),
            KIND_TORN_VOID => Body::TornVoid(from_postcard(body)?),
            KIND_TRACKING_LOST => Body::TrackingLost(from_postcard(body)?),
            KIND_VERIFIED => Body::Verified(from_postcard(body)?),
            KIND_MAP => Body::Map(from_postcard(body)?),
            KIND_DECREE => Body::Decree(from_postcard(body)?),
            KIND_PACK_PLACES => Body::PackPlaces(from_postcard(body)?),
            unknown => return Err(DecodeError::Kind(unknown)),
        };
        Ok((Self { group, slot, prev, nonce, stamp: Stamp { writer, mono_ms, wall_ms }, body }, digest))
    }
}

/// The kind of a record of layers and its body.
fn layers_body(layers: &Layers) -> (u16, Vec<u8>) {
    let Layers { kind, epoch, label, members } = layers;
    match label {
        None => (KIND_LAYERS, to_postcard(&(kind, epoch, members))),
        Some(label) => {
            let record = if label.consistency.cohort_cut().is_some() { KIND_COHORT } else { KIND_LABELLED };
            (record, to_postcard(&(kind, epoch, members, label)))
        }
    }
}

/// The kind of a prune and its body: looked, the policy of that kind, points, parts.
fn prune_body(prune: &Prune) -> (u16, Vec<u8>) {
    let Prune { looked, policy, points, parts } = prune;
    match policy {
        PrunePolicy::LedgerTime { keep, span_ms } => (KIND_PRUNE, to_postcard(&(looked, (keep, span_ms), points, parts))),
        PrunePolicy::Aged(policy) => (KIND_PRUNE_BY_AGE, to_postcard(&(looked, policy, points, parts))),
    }
}

fn prune_of<P: DeserializeOwned>(body: &[u8], policy: impl FnOnce(P) -> PrunePolicy) -> Result<Prune, DecodeError> {
    let (looked, said, points, parts) = from_postcard(body)?;
    Ok(Prune { looked, policy: policy(said), points, parts })
}

/// A claim says by its kind how the volume is encrypted, if it is.
fn claim_kind(claim: &Claim) -> u16 {
    match claim.volume.digest_key.seal().map(|seal| seal.mode) {
        None => KIND_CLAIM,
        Some(SealMode::EndToEnd) => KIND_CLAIM_SEALED,
        Some(SealMode::AtRest) => KIND_CLAIM_AT_REST,
    }
}

fn claim_of(body: &[u8], kind: u16) -> Result<Claim, DecodeError> {
    let claim: Claim = from_postcard(body)?;
    if claim_kind(&claim) == kind { Ok(claim) } else { Err(DecodeError::Body) }
}

/// What is left of a head whose length was checked.
pub(crate) struct Head<'a>(pub(crate) &'a [u8]);

impl Head<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the length was checked against the whole head");
        self.0 = rest;
        *field
    }
}

pub(crate) fn to_postcard<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data always serialises into memory")
}

pub(crate) fn from_postcard<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError::Body),
    }
}
