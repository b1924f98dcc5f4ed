//! The header in front of a part's bytes on its own unidirectional stream.
//!
//! 48 bytes: `"FSPT" | u16 version | u16 zero | volume 16 | u64 term | u64 seq | u32 part | u32 crc32c of the 44 before`,
//! integers little endian. After it come the bytes of the part, to the end of the stream.

use farside_region::{LayerKey, Seq, Term, VolumeId};
use thiserror::Error;

/// Length of a [`PartHeader`].
pub const PART_HEADER_BYTES: usize = 48;
const MAGIC: &[u8; 4] = b"FSPT";
const VERSION: u16 = 1;

/// Says which part follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartHeader {
    /// Of which layer.
    pub key: LayerKey,
    /// Its number, from 0.
    pub part: u32,
}

/// Why bytes are not a part's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PartHeaderError {
    /// Something else.
    #[error("a stream that does not begin with a part header")]
    Magic,
    /// Damaged.
    #[error("a part header with a wrong checksum")]
    Checksum,
    /// Newer than this build.
    #[error("a part header of version {0}; this build knows version 1")]
    Version(u16),
    /// Bits that must be zero are not.
    #[error("a part header with unknown flags")]
    Flags,
}

impl PartHeader {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PART_HEADER_BYTES] {
        let mut bytes = [0; PART_HEADER_BYTES];
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.key.volume.0);
        bytes[24..32].copy_from_slice(&self.key.term.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.key.seq.0.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.part.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// From its bytes.
    ///
    /// # Errors
    /// When they are not a header that this build knows.
    pub fn decode(bytes: &[u8; PART_HEADER_BYTES]) -> Result<Self, PartHeaderError> {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[0..4] != MAGIC {
            return Err(PartHeaderError::Magic);
        }
        if crc32c::crc32c(&bytes[..44]) != u32_at(44) {
            return Err(PartHeaderError::Checksum);
        }
        match (u16_at(4), u16_at(6)) {
            (VERSION, 0) => {}
            (VERSION, _) => return Err(PartHeaderError::Flags),
            (version, _) => return Err(PartHeaderError::Version(version)),
        }
        let volume = VolumeId(bytes[8..24].try_into().expect("sixteen bytes"));
        Ok(Self { key: LayerKey { volume, term: Term(u64_at(24)), seq: Seq(u64_at(32)) }, part: u32_at(40) })
    }
}
