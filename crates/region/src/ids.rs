//! Identities and counters. Each is its own type, so that no two integers can be swapped by accident.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl $name {
            /// The one after this.
            ///
            /// # Panics
            /// When the counter is exhausted, which 2^64 steps rule out.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a 64-bit counter is never exhausted"))
            }
        }
    };
}

counter! {
    /// The slot number of a ledger record, from 0.
    Slot
}
counter! {
    /// The slot of the accepted claim record under which a volume's layers are sent.
    Term
}
counter! {
    /// The number of a layer within a term, from 1.
    Seq
}
counter! {
    /// A value of a group's epoch counter. Lives only as long as the process that counts.
    EpochId
}
counter! {
    /// The fencing token of a volume: +1 at every promotion, 1 until there are promotions.
    Generation
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                hex(&self.0[..4], f)?;
                f.write_str(")")
            }
        }
    };
}

id16! {
    /// A protected volume, for ever: derived from the source's, the group's and the volume's names, so that a reinstalled
    /// host finds its old ledger (and is refused by it until a person says `--accept`, T17).
    VolumeId
}
id16! {
    /// A consistency group: derived from the source's and the group's names.
    GroupId
}
id16! {
    /// One intent map, drawn at random when it is created. Ties pages, header and masks together.
    MapId
}
id16! {
    /// The kernel's boot id.
    BootId
}
id16! {
    /// A group's key, as it may be told to anybody: derived from it, and nothing about it follows from this.
    KeyId
}
id16! {
    /// Keyed BLAKE3, cut to 16 bytes, over (granule number ‖ content).
    GranuleDigest
}

/// BLAKE3 over a whole ledger record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordDigest(pub [u8; 32]);

impl fmt::Display for RecordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for RecordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordDigest(")?;
        hex(&self.0[..4], f)?;
        f.write_str(")")
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

/// How far a ledger was seen: the slot and the digest of the record in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LedgerPosition {
    /// The slot.
    pub slot: Slot,
    /// The digest of the record in it.
    pub digest: RecordDigest,
}

/// A layer: what a frozen epoch of one volume becomes. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerKey {
    /// Whose.
    pub volume: VolumeId,
    /// Under which claim.
    pub term: Term,
    /// Which of that term, from 1.
    pub seq: Seq,
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.volume, self.term, self.seq)
    }
}

/// A merge of parts: what its parts are named by. Never used again in its volume. It says how far the ledger went when it was begun: its record
/// comes to lie in a later slot, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MergeId(pub u64);

impl MergeId {
    /// They are below this: no slot, and so no term, ever comes there.
    pub const END: u64 = 1 << 63;
    const RANDOM_BITS: u32 = 28;

    /// An id of a merge that begins when that slot is the ledger's next. `random`: tells those of one slot apart.
    pub fn new(next: Slot, random: u64) -> Self {
        let slots = (1 << (63 - Self::RANDOM_BITS)) - 1;
        Self((next.0.min(slots) << Self::RANDOM_BITS) | (random & ((1 << Self::RANDOM_BITS) - 1)))
    }

    /// No record in a slot before this one names it.
    pub fn since(self) -> Slot {
        Slot(self.0 >> Self::RANDOM_BITS)
    }
}

impl fmt::Display for MergeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MergeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MergeId({self})")
    }
}

impl Term {
    /// Whether it is no claim's slot, but stands for a merge.
    pub fn is_merge(self) -> bool {
        self.0 >= MergeId::END
    }

    /// The merge that it stands for, if it is one's.
    pub fn merge(self) -> Option<MergeId> {
        self.is_merge().then_some(MergeId(self.0 & !MergeId::END))
    }
}

impl LayerKey {
    /// The key that the parts of a merge have in the place of a layer's: a term that no claim ever has, with the merge's id in it.
    pub fn of_merge(volume: VolumeId, merge: MergeId) -> Self {
        Self { volume, term: Term(MergeId::END | merge.0), seq: Seq(1) }
    }

    /// The merge, if it is such a key.
    pub fn merge(&self) -> Option<MergeId> {
        self.term.merge().filter(|_| self.seq == Seq(1))
    }
}

/// A name a person gave to a source, a group or a volume: 1 to 64 of `a-z A-Z 0-9 . _ -`, not beginning with a dot or a
/// dash, so that it can be a file name and a command-line word.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A string that cannot be a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a valid name: use 1 to 64 of a-z A-Z 0-9 . _ - and begin with a letter, a digit or _")]
pub struct NameError(pub String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let fits = (1..=64).contains(&s.len())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !s.starts_with(['.', '-']);
        if fits { Ok(Self(s.to_owned())) } else { Err(NameError(s.chars().take(80).collect())) }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_files_are_refused() {
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", &"x".repeat(65), "a\0"] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "db-1.example", "_x", &"x".repeat(64)] {
            assert_eq!(good.parse::<Name>().expect("valid").as_str(), good);
        }
    }
}
