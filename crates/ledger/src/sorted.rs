//! Maps that were written in the order of their keys, read by serde in one go: one entry at a time, each looks for its place and leaves nodes
//! half empty. (Of a checkpoint these are where parts lie in packs; its other tables are [rows](crate::rows::Rows).)
//!
//! The result is what serde's own reading gives, whatever the order, and for a key that comes twice, too.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Room that is made for what bytes claim to hold, before they are seen to. A few bytes that claim much must not take memory (L8).
const CLAIMED_BYTES_MAX: usize = 256 << 10;

/// For `#[serde(deserialize_with)]`.
pub(crate) fn map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    deserializer.deserialize_map(Sorted(PhantomData))
}

struct Sorted<K, V>(PhantomData<(K, V)>);

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Sorted<K, V> {
    type Value = BTreeMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let claimed = CLAIMED_BYTES_MAX / size_of::<(K, V)>().max(1);
        let mut entries: Vec<(K, V)> = Vec::with_capacity(map.size_hint().unwrap_or(0).min(claimed));
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::codec::{from_postcard, to_postcard};

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Read(#[serde(deserialize_with = "map")] BTreeMap<u16, String>);

    proptest! {
        /// Also what no program of ours wrote: out of order, and keys twice.
        #[test]
        fn it_is_read_as_serde_reads_it(entries: Vec<(u16, String)>, cut: prop::sample::Index) {
            let bytes = to_postcard(&entries);
            let theirs: Result<BTreeMap<u16, String>, _> = from_postcard(&bytes);
            prop_assert_eq!(from_postcard::<Read>(&bytes).map(|read| read.0), theirs);
            let cut = &bytes[..cut.index(bytes.len())];
            prop_assert!(from_postcard::<Read>(cut).is_err());
        }
    }

    /// A length that no bytes are behind makes no room.
    #[test]
    fn a_length_alone_takes_no_memory() {
        let bytes = to_postcard(&u64::from(u32::MAX));
        assert!(from_postcard::<Read>(&bytes).is_err());
    }
}
