//! A sorted map of many rows, most of which nobody asks for.
//!
//! Rows lie in *leaves* of some dozens. Those of a checkpoint are its bytes at first: whoever opens one passes them once, so that nothing
//! can be wrong with them later, and a leaf becomes values when somebody looks at a row of it. So opening a point of a hundred thousand makes
//! a few dozen points and not all.
//!
//! Invariants: what is in it, in which order, is what a [`BTreeMap`](std::collections::BTreeMap) would have; no leaf is empty, and leaves
//! follow one another by their first keys. Whether a leaf is bytes or values can be told by nobody but by a clock.

use std::fmt;
use std::ops::{Bound, Deref, Index, RangeBounds};
use std::sync::OnceLock;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::sorted;
use crate::stored::{Stored, count};

/// Rows of a leaf as it is read; a leaf that comes to have twice as many becomes two. In tests few, so that short histories have many leaves.
pub(crate) const LEAF_ROWS: usize = if cfg!(any(test, feature = "mutations")) { 4 } else { 64 };

/// See the module.
#[derive(Clone)]
pub struct Rows<K, V> {
    leaves: Vec<Leaf<K, V>>,
    len: usize,
}

#[derive(Clone)]
struct Leaf<K, V> {
    first: K,
    last: K,
    /// What the values are made of, and how many there are.
    stored: (Bytes, usize),
    rows: OnceLock<Vec<(K, V)>>,
}

/// A place between two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    leaf: usize,
    row: usize,
}

impl<K: Stored + Ord + Copy, V: Stored> Leaf<K, V> {
    fn of(rows: Vec<(K, V)>) -> Self {
        let (first, last) = (rows[0].0, rows[rows.len() - 1].0);
        Self { first, last, stored: (Bytes::new(), 0), rows: rows.into() }
    }

    fn len(&self) -> usize {
        self.rows.get().map_or(self.stored.1, Vec::len)
    }

    fn rows(&self) -> &[(K, V)] {
        self.rows.get_or_init(|| Self::made(&self.stored))
    }

    fn made((bytes, count): &(Bytes, usize)) -> Vec<(K, V)> {
        let mut from = &bytes[..];
        let row = |_| <(K, V)>::read(&mut from).expect("all rows were passed when the table was read");
        (0..*count).map(row).collect()
    }

    fn rows_mut(&mut self) -> &mut Vec<(K, V)> {
        self.rows();
        self.stored = (Bytes::new(), 0);
        self.rows.get_mut().expect("they were just made")
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        // Of a leaf that ends before it nothing is made.
        if *key > self.last { Err(self.len()) } else { self.rows().binary_search_by(|(at, _)| at.cmp(key)) }
    }
}

impl<K: Stored + Ord + Copy, V: Stored> Rows<K, V> {
    /// None.
    pub const fn new() -> Self {
        Self { leaves: Vec::new(), len: 0 }
    }

    /// Reads a map as postcard has it, up to its end; `all`: what `from` is a part of. `None`: these bytes are none, or their keys do not ascend.
    pub(crate) fn read(from: &mut &[u8], all: &Bytes) -> Option<Self> {
        let len = count(from)?;
        let (mut leaves, mut left, mut last) = (Vec::new(), len, None);
        while left > 0 {
            let (begin, rows, mut first) = (*from, left.min(LEAF_ROWS), None);
            for _ in 0..rows {
                let key = K::read(from)?;
                V::pass(from)?;
                if last.is_some_and(|last| key <= last) {
                    return None;
                }
                (first, last) = (first.or(Some(key)), Some(key));
            }
            let stored = (all.slice_ref(&begin[..begin.len() - from.len()]), rows);
            leaves.push(Leaf { first: first?, last: last?, stored, rows: OnceLock::new() });
            left -= rows;
        }
        Some(Self { leaves, len })
    }

    /// The same rows, which are made of the same bytes, as others: of what is bytes still nothing is made.
    pub fn recast<L, W>(self, key: fn(K) -> L, value: fn(V) -> W) -> Rows<L, W>
    where
        L: Stored + Ord + Copy,
        W: Stored,
    {
        let leaf = |Leaf { first, last, stored, rows }: Leaf<K, V>| {
            let rows = rows.into_inner().map(|rows| rows.into_iter().map(|(k, v)| (key(k), value(v))).collect::<Vec<_>>());
            Leaf { first: key(first), last: key(last), stored, rows: rows.map_or_else(OnceLock::new, Into::into) }
        };
        Rows { leaves: self.leaves.into_iter().map(leaf).collect(), len: self.len }
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The leaf that a key lies in, or would.
    fn leaf_of(&self, key: &K) -> Option<usize> {
        let after = self.leaves.partition_point(|leaf| leaf.first <= *key);
        if self.leaves.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let leaf = &self.leaves[self.leaf_of(key)?];
        leaf.find(key).ok().map(|at| &leaf.rows()[at].1)
    }

    /// Whether a key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.leaf_of(key).is_some_and(|leaf| self.leaves[leaf].find(key).is_ok())
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let leaf = self.leaf_of(key)?;
        let leaf = &mut self.leaves[leaf];
        let at = leaf.find(key).ok()?;
        Some(&mut leaf.rows_mut()[at].1)
    }

    /// Puts a row in; gives back the value that was in its place.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some(at) = self.leaf_of(&key) else {
            self.leaves.push(Leaf::of(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let is_last = at + 1 == self.leaves.len();
        let leaf = &mut self.leaves[at];
        // Most come in the order of their keys.
        if is_last && key > leaf.last && leaf.len() >= LEAF_ROWS {
            self.leaves.push(Leaf::of(vec![(key, value)]));
            self.len += 1;
            return None;
        }
        let found = leaf.find(&key);
        let rows = leaf.rows_mut();
        match found {
            Ok(row) => return Some(std::mem::replace(&mut rows[row].1, value)),
            Err(row) => rows.insert(row, (key, value)),
        }
        let split = (rows.len() > 2 * LEAF_ROWS).then(|| rows.split_off(LEAF_ROWS));
        (leaf.first, leaf.last) = (rows[0].0, rows[rows.len() - 1].0);
        self.leaves.splice(at + 1..at + 1, split.map(Leaf::of));
        self.len += 1;
        None
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.leaf_of(key)?;
        let leaf = &mut self.leaves[at];
        let row = leaf.find(key).ok()?;
        let rows = leaf.rows_mut();
        let (_, value) = rows.remove(row);
        match (rows.first(), rows.last()) {
            (Some((first, _)), Some((last, _))) => (leaf.first, leaf.last) = (*first, *last),
            _ => drop(self.leaves.remove(at)),
        }
        self.len -= 1;
        self.tidy(at);
        Some(value)
    }

    /// Leaves that have lost most of their rows become one, or give their room back: where one row of a minute stays, none of them is ever empty.
    fn tidy(&mut self, at: usize) {
        let is_small = |leaf: &Leaf<K, V>| leaf.len() <= LEAF_ROWS / 4;
        if !self.leaves.get(at).is_some_and(is_small) {
            return;
        }
        let fits = |one: usize| self.leaves.get(one..one + 2).is_some_and(|two| two[0].len() + two[1].len() <= LEAF_ROWS / 2);
        let one = [Some(at), at.checked_sub(1)].into_iter().flatten().find(|one| fits(*one));
        if let Some(one) = one {
            let behind = self.leaves.remove(one + 1);
            let behind = behind.rows.into_inner().unwrap_or_else(|| Leaf::made(&behind.stored));
            let leaf = &mut self.leaves[one];
            let rows = leaf.rows_mut();
            rows.extend(behind);
            leaf.last = rows[rows.len() - 1].0;
        } else if let Some(rows) = self.leaves[at].rows.get_mut()
            && rows.capacity() > 4 * rows.len()
        {
            rows.shrink_to(2 * rows.len());
        }
    }

    /// The first row.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// The last row.
    pub fn last_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next_back()
    }

    /// The last row's key.
    pub fn last_key(&self) -> Option<K> {
        self.leaves.last().map(|leaf| leaf.last)
    }

    /// How many leaves of a checkpoint somebody looked into.
    #[cfg(test)]
    pub(crate) fn made(&self) -> usize {
        self.leaves.iter().filter(|leaf| leaf.stored.1 > 0 && leaf.rows.get().is_some()).count()
    }

    /// How many leaves there are, and for how many rows they have room.
    #[cfg(test)]
    pub(crate) fn room(&self) -> (usize, usize) {
        (self.leaves.len(), self.leaves.iter().map(|leaf| leaf.rows.get().map_or(leaf.stored.1, Vec::capacity)).sum())
    }

    fn begin(&self) -> Place {
        Place { leaf: 0, row: 0 }
    }

    fn end(&self) -> Place {
        Place { leaf: self.leaves.len(), row: 0 }
    }

    /// Before a key, or behind it.
    fn place(&self, key: &K, is_behind: bool) -> Place {
        let Some(leaf) = self.leaf_of(key) else { return self.begin() };
        let row = match self.leaves[leaf].find(key) {
            Ok(row) => row + usize::from(is_behind),
            Err(row) => row,
        };
        if row < self.leaves[leaf].len() { Place { leaf, row } } else { Place { leaf: leaf + 1, row: 0 } }
    }

    /// The rows within bounds, ascending.
    pub fn range(&self, bounds: impl RangeBounds<K>) -> RowsIn<'_, K, V> {
        let front = match bounds.start_bound() {
            Bound::Included(key) => self.place(key, false),
            Bound::Excluded(key) => self.place(key, true),
            Bound::Unbounded => self.begin(),
        };
        let back = match bounds.end_bound() {
            Bound::Included(key) => self.place(key, true),
            Bound::Excluded(key) => self.place(key, false),
            Bound::Unbounded => self.end(),
        };
        RowsIn { leaves: &self.leaves, front, back }
    }

    /// All rows, ascending.
    pub fn iter(&self) -> RowsIn<'_, K, V> {
        self.range(..)
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values, by ascending keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// All rows, ascending, for whoever needs each for a moment only: what is bytes stays bytes.
    pub fn passing(&self) -> impl Iterator<Item = (K, Passing<'_, V>)> {
        self.each(Passing::Here, Passing::Made)
    }

    /// The same of what somebody needs of a value: it is made of the value, or read from the same bytes instead.
    pub(crate) fn passing_as<'r, W: Stored + 'r>(&'r self, of: fn(&V) -> W) -> impl Iterator<Item = (K, W)> + 'r {
        self.each(of, |made: W| made)
    }

    fn each<'r, R: Stored, W>(
        &'r self,
        here: impl Fn(&'r V) -> W + Copy + 'r,
        made: impl Fn(R) -> W + Copy + 'r,
    ) -> impl Iterator<Item = (K, W)> + 'r {
        self.leaves.iter().flat_map(move |leaf| {
            let (rows, mut from) = (leaf.rows.get(), &leaf.stored.0[..]);
            (0..leaf.len()).map(move |at| match rows {
                Some(rows) => (rows[at].0, here(&rows[at].1)),
                None => {
                    let (key, value) = <(K, R)>::read(&mut from).expect("all rows were passed when the table was read");
                    (key, made(value))
                }
            })
        })
    }
}

/// A value that somebody looks at in passing.
#[derive(Debug)]
pub enum Passing<'r, V> {
    /// It is kept.
    Here(&'r V),
    /// It was made for this.
    Made(V),
}

impl<V> Deref for Passing<'_, V> {
    type Target = V;

    fn deref(&self) -> &V {
        match self {
            Self::Here(value) => value,
            Self::Made(value) => value,
        }
    }
}

/// Some rows that follow one another; see [`Rows::range`].
pub struct RowsIn<'r, K, V> {
    leaves: &'r [Leaf<K, V>],
    /// Before a row, or the end.
    front: Place,
    back: Place,
}

impl<K, V> Clone for RowsIn<'_, K, V> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'r, K: Stored + Ord + Copy, V: Stored> Iterator for RowsIn<'r, K, V> {
    type Item = (&'r K, &'r V);

    fn next(&mut self) -> Option<Self::Item> {
        if self.front >= self.back {
            return None;
        }
        let rows = self.leaves[self.front.leaf].rows();
        let (key, value) = &rows[self.front.row];
        self.front.row += 1;
        if self.front.row == rows.len() {
            self.front = Place { leaf: self.front.leaf + 1, row: 0 };
        }
        Some((key, value))
    }
}

impl<K: Stored + Ord + Copy, V: Stored> DoubleEndedIterator for RowsIn<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.front >= self.back {
            return None;
        }
        if self.back.row == 0 {
            let leaf = self.back.leaf - 1;
            self.back = Place { leaf, row: self.leaves[leaf].len() };
        }
        self.back.row -= 1;
        let (key, value) = &self.leaves[self.back.leaf].rows()[self.back.row];
        Some((key, value))
    }
}

/// The value of a key that is there.
impl<K: Stored + Ord + Copy, V: Stored> Index<&K> for Rows<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key is there")
    }
}

impl<'r, K: Stored + Ord + Copy, V: Stored> IntoIterator for &'r Rows<K, V> {
    type Item = (&'r K, &'r V);
    type IntoIter = RowsIn<'r, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Stored + Ord + Copy, V: Stored> FromIterator<(K, V)> for Rows<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        let mut all = Self::new();
        all.extend(rows);
        all
    }
}

impl<K: Stored + Ord + Copy, V: Stored> Extend<(K, V)> for Rows<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, rows: I) {
        rows.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
    }
}

impl<K: Stored + Ord + Copy, V: Stored> Default for Rows<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Stored + Ord + Copy, V: Stored + PartialEq> PartialEq for Rows<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Stored + Ord + Copy, V: Stored + Eq> Eq for Rows<K, V> {}

impl<K: Stored + Ord + Copy + fmt::Debug, V: Stored + fmt::Debug> fmt::Debug for Rows<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: fmt::Debug, V> fmt::Debug for RowsIn<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowsIn").field("front", &self.front).field("back", &self.back).finish_non_exhaustive()
    }
}

/// As a map.
impl<K: Stored + Ord + Copy + Serialize, V: Stored + Serialize> Serialize for Rows<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len))?;
        self.passing().try_for_each(|(key, value)| map.serialize_entry(&key, &*value))?;
        map.end()
    }
}

/// As a map, whatever the order of its keys.
impl<'de, K: Stored + Ord + Copy + Deserialize<'de>, V: Stored + Deserialize<'de>> Deserialize<'de> for Rows<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        sorted::map(deserializer).map(|rows| rows.into_iter().collect())
    }
}
