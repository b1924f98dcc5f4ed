//! Region sets that are kept for long and seldom looked into: two or three bytes for a range instead of forty.
//!
//! Owns the packing, which never leaves the process but in caches that it wrote itself. It deliberately cannot be changed:
//! make a [`RegionSet`] of it, change that, and pack it again.

use serde::{Deserialize, Serialize};

use crate::sets::{RegionIndex, RegionRange, RegionSet};

/// A region set as gaps and lengths in a variable number of bytes, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackedRegions {
    count: u32,
    bytes: Box<[u8]>,
}

impl PackedRegions {
    /// How many ranges, none of which touch.
    pub fn range_count(&self) -> usize {
        self.count as usize
    }

    /// Memory it holds beside itself, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes in which it is packed.
    pub fn packed(&self) -> &[u8] {
        &self.bytes
    }

    /// As it was packed: how many ranges, and the bytes. Whatever these are, looking into them ends.
    pub fn from_packed(count: u32, bytes: &[u8]) -> Self {
        Self { count, bytes: bytes.into() }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        Self::ranges_in(&self.bytes)
    }

    /// The ranges of one that is packed in these bytes, ascending.
    pub fn ranges_in(bytes: &[u8]) -> impl Iterator<Item = RegionRange> + '_ {
        let (mut rest, mut at) = (bytes, 0_u64);
        std::iter::from_fn(move || {
            let start = at.checked_add(take(&mut rest)?)?;
            let count = take(&mut rest)?;
            at = start.checked_add(count)?;
            Some(RegionRange { start: RegionIndex(start), count })
        })
    }

    /// The set itself.
    pub fn regions(&self) -> RegionSet {
        let mut set = RegionSet::new();
        self.ranges().for_each(|range| set.insert_range(range));
        set
    }

    /// Whether a region is in it. Takes time with the number of ranges.
    pub fn contains(&self, region: RegionIndex) -> bool {
        self.ranges().take_while(|r| r.start <= region).any(|r| region.0 - r.start.0 < r.count)
    }

    /// Everything from its first region to its last: one range, or none.
    #[must_use]
    pub fn hull(&self) -> Self {
        let mut ranges = self.ranges();
        let mut hull = RegionSet::new();
        if let Some(first) = ranges.next() {
            let last = ranges.last().unwrap_or(first);
            let count = last.start.0 + last.count - first.start.0;
            hull.insert_range(RegionRange { start: first.start, count });
        }
        Self::from(&hull)
    }
}

impl From<&RegionSet> for PackedRegions {
    fn from(set: &RegionSet) -> Self {
        let (mut bytes, mut at) = (Vec::with_capacity(set.range_count() * 3), 0);
        for RegionRange { start, count } in set.ranges() {
            put(&mut bytes, start.0 - at);
            put(&mut bytes, count);
            at = start.0 + count;
        }
        Self { count: u32::try_from(set.range_count()).expect("fewer ranges than memory has bytes"), bytes: bytes.into() }
    }
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u64, u64)]) -> RegionSet {
        let mut set = RegionSet::new();
        ranges.iter().for_each(|&(start, count)| set.insert_range(RegionRange { start: RegionIndex(start), count }));
        set
    }

    #[test]
    fn scattered_regions_take_few_bytes() {
        let scattered = set(&(0..160_000).map(|i| (i * 6_000, 1)).collect::<Vec<_>>());
        let packed = PackedRegions::from(&scattered);
        assert_eq!((packed.range_count(), packed.regions()), (160_000, scattered));
        assert!(packed.held_bytes() <= 3 * 160_000, "{}", packed.held_bytes());
        assert_eq!(packed.hull().regions(), set(&[(0, 159_999 * 6_000 + 1)]));
    }

    proptest! {
        #[test]
        fn packing_changes_nothing(ranges in prop::collection::vec((0..u64::MAX / 2, 1..u64::MAX / 4), 0..40), probe: u64) {
            let set = set(&ranges);
            let packed = PackedRegions::from(&set);
            prop_assert_eq!(packed.regions(), set.clone());
            prop_assert_eq!(packed.range_count(), set.range_count());
            for region in ranges.iter().flat_map(|&(s, n)| [s.saturating_sub(1), s, s + n - 1, s + n]).chain([probe]) {
                prop_assert_eq!(packed.contains(RegionIndex(region)), set.contains(RegionIndex(region)));
            }
            let hull = packed.hull();
            prop_assert!(hull.range_count() <= 1);
            prop_assert!(set.ranges().all(|r| hull.contains(r.start) && hull.contains(RegionIndex(r.start.0 + r.count - 1))));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let packed = PackedRegions { count: 0, bytes: bytes.into() };
            let _ = (packed.ranges().count(), packed.contains(RegionIndex(u64::MAX)));
        }
    }
}
