//! The digests of the records of a ledger, one after the other: those of a checkpoint as the bytes that they are there, since nearly all of them
//! are asked for by nobody.

use bytes::Bytes;
use farside_region::RecordDigest;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::stored::count;

const BYTES: usize = size_of::<RecordDigest>();

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digests {
    /// The first ones.
    stored: Bytes,
    /// Those after them.
    more: Vec<RecordDigest>,
}

impl Digests {
    /// Reads a list as postcard has it; `all`: what `from` is a part of.
    pub(crate) fn read(from: &mut &[u8], all: &Bytes) -> Option<Self> {
        let count = count(from)?;
        let (stored, rest) = from.split_at_checked(count.checked_mul(BYTES)?)?;
        *from = rest;
        Some(Self { stored: all.slice_ref(stored), more: Vec::new() })
    }

    fn stored_len(&self) -> usize {
        self.stored.len() / BYTES
    }

    pub(crate) fn len(&self) -> usize {
        self.stored_len() + self.more.len()
    }

    pub(crate) fn get(&self, at: usize) -> Option<RecordDigest> {
        match at.checked_sub(self.stored_len()) {
            Some(at) => self.more.get(at).copied(),
            None => self.stored[at * BYTES..].first_chunk().map(|digest| RecordDigest(*digest)),
        }
    }

    pub(crate) fn last(&self) -> Option<RecordDigest> {
        self.get(self.len().checked_sub(1)?)
    }

    pub(crate) fn push(&mut self, digest: RecordDigest) {
        self.more.push(digest);
    }

    /// Takes the first so many out; all, if there are no more.
    pub(crate) fn forget_first(&mut self, count: usize) {
        let stored = count.min(self.stored_len());
        self.stored = self.stored.slice(stored * BYTES..);
        self.more.drain(..(count - stored).min(self.more.len()));
    }

    fn iter(&self) -> impl Iterator<Item = RecordDigest> + '_ {
        (0..self.len()).filter_map(|at| self.get(at))
    }
}

impl FromIterator<RecordDigest> for Digests {
    fn from_iter<I: IntoIterator<Item = RecordDigest>>(digests: I) -> Self {
        Self { stored: Bytes::new(), more: digests.into_iter().collect() }
    }
}

impl PartialEq for Digests {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Digests {}

/// As a list.
impl Serialize for Digests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq as _;
        let mut list = serializer.serialize_seq(Some(self.len()))?;
        self.iter().try_for_each(|digest| list.serialize_element(&digest))?;
        list.end()
    }
}

impl<'de> Deserialize<'de> for Digests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(|digests| digests.into_iter().collect())
    }
}
