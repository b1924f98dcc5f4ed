//! What keys a volume's granule digests, and what anybody may know of how it is encrypted. The keys themselves are in `crates/keys`.
//!
//! Invariant: a [`DigestKey`] that was read is never zeroes: these stand for a [`Seal`].

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::KeyId;

/// Who holds the key of an encrypted volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum SealMode {
    /// Its source, and nobody on the way: not the gateway, not the store.
    EndToEnd,
    /// The gateway, which drew it and gives it to the source on every connection: what lies in the store is encrypted, and the gateway reads it.
    AtRest,
}

impl SealMode {
    /// As formats have it; 0 is nobody's.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::EndToEnd => 1,
            Self::AtRest => 2,
        }
    }

    /// The mode of that byte, if this build knows it.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::EndToEnd, Self::AtRest].into_iter().find(|mode| mode.to_byte() == byte)
    }

    /// As people write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::EndToEnd => "end-to-end",
            Self::AtRest => "at-rest",
        }
    }
}

impl From<SealMode> for u8 {
    fn from(mode: SealMode) -> Self {
        mode.to_byte()
    }
}

impl TryFrom<u8> for SealMode {
    type Error = &'static str;

    fn try_from(byte: u8) -> Result<Self, Self::Error> {
        Self::from_byte(byte).ok_or("a mode of encryption that this build does not know")
    }
}

/// What anybody may know of how a volume is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Who holds the key.
    pub mode: SealMode,
    /// Which key: that of the group.
    pub key: KeyId,
    /// To the volume's keys, which follow from it.
    pub commitment: [u8; 32],
}

/// What keys a volume's granule digests.
///
/// As bytes: 32 of the key. Zeroes are none: they say that the volume is encrypted, and its [`Seal`] follows. As JSON: the list of the
/// 32 bytes, or the seal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DigestKey {
    /// This key, which whoever reads the ledger knows. The volume is not encrypted.
    Clear([u8; 32]),
    /// One that follows from the group's key. The volume is encrypted.
    Sealed(Seal),
}

impl DigestKey {
    /// How the volume is encrypted; `None`: it is not.
    pub fn seal(&self) -> Option<&Seal> {
        match self {
            Self::Clear(_) => None,
            Self::Sealed(seal) => Some(seal),
        }
    }

    /// The key of a volume that is not encrypted.
    pub fn clear(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Clear(key) => Some(key),
            Self::Sealed(_) => None,
        }
    }
}

impl From<[u8; 32]> for DigestKey {
    fn from(key: [u8; 32]) -> Self {
        Self::Clear(key)
    }
}

/// Without the key: it belongs in no log.
impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear(_) => f.write_str("Clear"),
            Self::Sealed(seal) => seal.fmt(f),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Readable {
    Clear([u8; 32]),
    Sealed(Seal),
}

impl Serialize for DigestKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (*self, serializer.is_human_readable()) {
            (Self::Clear(key), true) => Readable::Clear(key).serialize(serializer),
            (Self::Sealed(seal), true) => Readable::Sealed(seal).serialize(serializer),
            (Self::Clear(key), false) => key.serialize(serializer),
            (Self::Sealed(seal), false) => {
                let mut both = serializer.serialize_tuple(2)?;
                both.serialize_element(&[0_u8; 32])?;
                both.serialize_element(&seal)?;
                both.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for DigestKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return match Readable::deserialize(deserializer)? {
                Readable::Clear(key) if key == [0; 32] => Err(D::Error::custom("a digest key of zeroes is none")),
                Readable::Clear(key) => Ok(Self::Clear(key)),
                Readable::Sealed(seal) => Ok(Self::Sealed(seal)),
            };
        }
        deserializer.deserialize_tuple(2, Bytes)
    }
}

/// The key, and only where it is none a seal.
struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = DigestKey;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest key, or zeroes and a seal")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<DigestKey, A::Error> {
        let key: [u8; 32] = from.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        if key != [0; 32] {
            return Ok(DigestKey::Clear(key));
        }
        let seal = from.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
        Ok(DigestKey::Sealed(seal))
    }
}
