//! What an end message said of a layer that is staged, as a receiver keeps it beside the layer's parts until a record says it.
//!
//! Not part of a store: each receiver reads what it, or a build before it, wrote on its own disk. What is damaged, cut off or of another
//! version is nothing, and the source says it again.

use farside_region::{LayerKey, RegionSet};
use serde::{Deserialize, Serialize};

use crate::codec::{from_postcard, to_postcard};
use crate::label::Label;
use crate::record::{EpochInfo, LayerKind};

const MAGIC: [u8; 8] = *b"FSKEPEND";
const VERSION: u16 = 3;
const DIGEST_BYTES: usize = 32;

/// What is known of a staged layer beside its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEnd {
    /// Which.
    pub key: LayerKey,
    /// As a member of a point, or fuzzy.
    pub kind: LayerKind,
    /// Of its epoch.
    pub epoch: EpochInfo,
    /// Of its point.
    pub label: Option<Box<Label>>,
    /// All layers of the epoch, ascending.
    pub members: Vec<LayerKey>,
    /// How many parts it has.
    pub parts: u32,
    /// Over their footers.
    pub digest: [u8; 32],
    /// The volume's size when the epoch was frozen.
    pub volume_bytes: u64,
    /// What it touches.
    pub regions: RegionSet,
    /// Those of them that it rewrites in full.
    pub whole_regions: RegionSet,
    /// Those of them with unreadable runs.
    pub unreadable_regions: RegionSet,
    /// The digest of the layer before it in its term, published or staged; zeroes for the first. What was said holds on top of that
    /// content only.
    pub under: [u8; 32],
}

impl KeptEnd {
    /// What tells when it was staged.
    pub const HEAD_BYTES: usize = MAGIC.len() + 2 + 8;
    /// The longest that is kept, in bytes.
    pub const BYTES_MAX: usize = 4 << 20;

    /// Its file; `None` when that would be longer than [`KeptEnd::BYTES_MAX`]. `staged_wall_ms`: when it was staged, by the wall clock of
    /// whoever keeps it, in milliseconds since 1970.
    pub fn encode(&self, staged_wall_ms: i64) -> Option<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&staged_wall_ms.to_le_bytes());
        bytes.extend_from_slice(&to_postcard(self));
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        (bytes.len() <= Self::BYTES_MAX).then_some(bytes)
    }

    /// When its layer was staged, by the first bytes of a file, of [`KeptEnd::HEAD_BYTES`]; `None` if it is none of this version. Whether it is
    /// whole is not known by that.
    pub fn staged_wall_ms(head: &[u8]) -> Option<i64> {
        let (staged_wall_ms, _) = head.strip_prefix(&MAGIC)?.strip_prefix(&VERSION.to_le_bytes())?.split_first_chunk()?;
        Some(i64::from_le_bytes(*staged_wall_ms))
    }

    /// Reads a file, and when its layer was staged; `None` if it is none that this build wrote whole.
    pub fn decode(bytes: &[u8]) -> Option<(Self, i64)> {
        let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
        if bytes.len() > Self::BYTES_MAX || blake3::hash(content).as_bytes() != digest {
            return None;
        }
        let body = content.strip_prefix(&MAGIC)?.strip_prefix(&VERSION.to_le_bytes())?;
        let (staged_wall_ms, body) = body.split_first_chunk()?;
        Some((from_postcard(body).ok()?, i64::from_le_bytes(*staged_wall_ms)))
    }
}
