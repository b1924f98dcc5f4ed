//! Large maps of a replayed state, read in one go: what comes in order is laid out in order, and nothing is searched for a place.
//!
//! The bytes are those of any map. One whose keys do not ascend is none of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// Entries for which room is made on the word of the bytes alone.
const ROOM_MAX: usize = 4096;

pub(crate) fn map<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(Ascending(PhantomData))
}

struct Ascending<K, V>(PhantomData<(K, V)>);

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Ascending<K, V> {
    type Value = BTreeMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map whose keys ascend")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(K, V)> = Vec::with_capacity(map.size_hint().unwrap_or(0).min(ROOM_MAX));
        while let Some(entry) = map.next_entry()? {
            if entries.last().is_some_and(|(before, _): &(K, V)| *before >= entry.0) {
                return Err(A::Error::custom("keys of a map that do not ascend"));
            }
            entries.push(entry);
        }
        Ok(entries.into_iter().collect())
    }
}
