//! Runs, and sets of regions and granules. Sets are sorted, their ranges never touch, and memory follows the number of
//! ranges: ten TiB of "everything" is one range.

use std::collections::BTreeMap;
use std::fmt;

use bitvec::prelude::{BitSlice, Lsb0};
use bitvec::view::BitView as _;
use serde::{Deserialize, Serialize};

use crate::Geometry;

macro_rules! index {
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
    };
}

index! {
    /// A region of a volume, from 0.
    RegionIndex
}
index! {
    /// A granule of a volume, from 0.
    GranuleIndex
}
index! {
    /// A byte of a volume, from 0.
    ByteOffset
}

/// Contiguous bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ByteExtent {
    /// First byte.
    pub offset: ByteOffset,
    /// Number of bytes.
    pub len: u64,
}

/// Contiguous granules of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GranuleRun {
    /// First granule.
    pub start: GranuleIndex,
    /// Number of granules.
    pub count: u64,
}

impl GranuleRun {
    /// The granule after the last.
    ///
    /// # Panics
    /// When the run overflows; a decoder must check before it builds one.
    pub fn end(&self) -> GranuleIndex {
        GranuleIndex(self.start.0.checked_add(self.count).expect("a run ends inside 64 bits"))
    }

    /// Whether the two share a granule.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Contiguous regions of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegionRange {
    /// First region.
    pub start: RegionIndex,
    /// Number of regions.
    pub count: u64,
}

impl RegionRange {
    /// The regions, one by one.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = RegionIndex> {
        (self.start.0..self.start.0 + self.count).map(RegionIndex)
    }
}

/// A set of regions, as sorted ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct RegionSet {
    ranges: BTreeMap<u64, u64>, // start → end (exclusive)
}

impl RegionSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of regions in it.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// Number of ranges, to which memory and encoded size are proportional.
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Whether it holds that region.
    pub fn contains(&self, region: RegionIndex) -> bool {
        self.ranges.range(..=region.0).next_back().is_some_and(|(_, &end)| region.0 < end)
    }

    /// Adds one region.
    pub fn insert(&mut self, region: RegionIndex) {
        self.insert_range(RegionRange { start: region, count: 1 });
    }

    /// Adds a range.
    pub fn insert_range(&mut self, range: RegionRange) {
        if range.count == 0 {
            return;
        }
        let (mut start, mut end) = (range.start.0, range.start.0 + range.count);
        if let Some((&s, &e)) = self.ranges.range(..=start).next_back()
            && e >= start
        {
            (start, end) = (s, end.max(e));
        }
        while let Some((&s, &e)) = self.ranges.range(start..=end).next() {
            self.ranges.remove(&s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    /// Takes one region out.
    pub fn remove(&mut self, region: RegionIndex) {
        self.remove_range(RegionRange { start: region, count: 1 });
    }

    /// Takes a range out.
    pub fn remove_range(&mut self, range: RegionRange) {
        if range.count == 0 {
            return;
        }
        let (start, end) = (range.start.0, range.start.0 + range.count);
        if let Some((&s, &e)) = self.ranges.range(..start).next_back()
            && e > start
        {
            self.ranges.insert(s, start);
            if e > end {
                self.ranges.insert(end, e);
                return;
            }
        }
        while let Some((&s, &e)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&s);
            if e > end {
                self.ranges.insert(end, e);
            }
        }
    }

    /// Adds all of another set.
    pub fn union_with(&mut self, other: &Self) {
        other.ranges().for_each(|r| self.insert_range(r));
    }

    /// Takes all of another set out.
    pub fn subtract(&mut self, other: &Self) {
        other.ranges().for_each(|r| self.remove_range(r));
    }

    /// What both have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut elsewhere, mut both) = (self.clone(), self.clone());
        elsewhere.subtract(other);
        both.subtract(&elsewhere);
        both
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = RegionRange> + '_ {
        self.ranges.iter().map(|(&s, &e)| RegionRange { start: RegionIndex(s), count: e - s })
    }

    /// The regions, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = RegionIndex> + '_ {
        self.ranges().flat_map(RegionRange::iter)
    }

    /// The first region.
    pub fn first(&self) -> Option<RegionIndex> {
        self.ranges.keys().next().map(|&s| RegionIndex(s))
    }

    /// The last region.
    pub fn last(&self) -> Option<RegionIndex> {
        self.ranges.values().next_back().map(|&e| RegionIndex(e - 1))
    }
}

impl FromIterator<RegionIndex> for RegionSet {
    fn from_iter<I: IntoIterator<Item = RegionIndex>>(regions: I) -> Self {
        let mut set = Self::new();
        regions.into_iter().for_each(|r| set.insert(r));
        set
    }
}

/// On the wire and in records: a list of (gap since the end of the previous range, length), so that varints stay short.
impl From<RegionSet> for Vec<(u64, u64)> {
    fn from(set: RegionSet) -> Self {
        let mut at = 0;
        set.ranges
            .into_iter()
            .map(|(s, e)| {
                let gap = s - at;
                at = e;
                (gap, e - s)
            })
            .collect()
    }
}

impl TryFrom<Vec<(u64, u64)>> for RegionSet {
    type Error = &'static str;

    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, Self::Error> {
        let mut ranges = BTreeMap::new();
        let mut at = 0u64;
        for (i, (gap, len)) in pairs.into_iter().enumerate() {
            if len == 0 || (gap == 0 && i > 0) {
                return Err("a region set with an empty range, or ranges that touch");
            }
            let start = at.checked_add(gap).ok_or("a region set that overflows")?;
            at = start.checked_add(len).ok_or("a region set that overflows")?;
            ranges.insert(start, at);
        }
        Ok(Self { ranges })
    }
}

/// Which granules of one region: bit i is granule i of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GranuleMask(pub [u64; 16]);

impl GranuleMask {
    /// None.
    pub const EMPTY: Self = Self([0; 16]);

    /// The first `count` granules.
    pub fn first(count: usize) -> Self {
        let mut mask = Self::EMPTY;
        mask.set_range(0, count);
        mask
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|w| *w == 0)
    }

    /// Number of granules set.
    pub fn count(&self) -> u64 {
        self.bits().count_ones() as u64
    }

    /// Whether granule `i` is set.
    pub fn contains(&self, i: usize) -> bool {
        self.bits()[i]
    }

    /// Sets `count` granules from `start`.
    pub fn set_range(&mut self, start: usize, count: usize) {
        self.0.view_bits_mut::<Lsb0>()[start..start + count].fill(true);
    }

    /// Clears `count` granules from `start`.
    pub fn clear_range(&mut self, start: usize, count: usize) {
        self.0.view_bits_mut::<Lsb0>()[start..start + count].fill(false);
    }

    /// Adds another mask.
    pub fn union_with(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a |= b);
    }

    /// The first run of set granules at or after `from`: (start, count).
    pub fn next_run(&self, from: usize) -> Option<(usize, usize)> {
        let rest = self.bits().get(from..)?;
        let start = rest.first_one()?;
        let count = rest[start..].first_zero().unwrap_or(rest.len() - start);
        Some((from + start, count))
    }

    fn bits(&self) -> &BitSlice<u64, Lsb0> {
        self.0.view_bits()
    }
}

/// A set of granules: whole regions as ranges, others by mask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GranuleSet {
    whole: RegionSet,
    masks: BTreeMap<RegionIndex, Box<GranuleMask>>,
}

impl GranuleSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.masks.is_empty()
    }

    /// Adds all granules of these regions.
    pub fn insert_whole(&mut self, regions: RegionRange) {
        self.whole.insert_range(regions);
        let end = RegionIndex(regions.start.0 + regions.count);
        while let Some((&r, _)) = self.masks.range(regions.start..end).next() {
            self.masks.remove(&r);
        }
    }

    /// Adds some granules of a region.
    pub fn insert_mask(&mut self, region: RegionIndex, mask: &GranuleMask) {
        if mask.is_empty() || self.whole.contains(region) {
            return;
        }
        self.masks.entry(region).or_insert_with(|| Box::new(GranuleMask::EMPTY)).union_with(mask);
    }

    /// Adds a run of granules.
    pub fn insert_run(&mut self, geometry: &Geometry, run: GranuleRun) {
        for region in geometry.regions_of(run).iter() {
            let all = geometry.region_run(region);
            let start = run.start.max(all.start);
            let end = run.end().min(all.end());
            if start == all.start && end == all.end() {
                self.insert_whole(RegionRange { start: region, count: 1 });
            } else {
                let mut mask = GranuleMask::EMPTY;
                mask.set_range(geometry.granule_in_region(start), (end.0 - start.0) as usize);
                self.insert_mask(region, &mask);
            }
        }
    }

    /// Adds all of another set.
    pub fn union_with(&mut self, other: &Self) {
        other.whole.ranges().for_each(|r| self.insert_whole(r));
        other.masks.iter().for_each(|(&r, m)| self.insert_mask(r, m));
    }

    /// Takes a whole region out, whatever part of it was in.
    pub fn remove_region(&mut self, region: RegionIndex) {
        self.whole.remove(region);
        self.masks.remove(&region);
    }

    /// Whether any granule of the region is in it.
    pub fn touches(&self, region: RegionIndex) -> bool {
        self.whole.contains(region) || self.masks.contains_key(&region)
    }

    /// The granules of a region that are in it, cut to those that exist.
    pub fn mask(&self, geometry: &Geometry, region: RegionIndex) -> GranuleMask {
        if self.whole.contains(region) {
            GranuleMask::first(geometry.region_run(region).count as usize)
        } else {
            self.masks.get(&region).map_or(GranuleMask::EMPTY, |m| **m)
        }
    }

    /// Whether that granule is in it.
    pub fn contains(&self, geometry: &Geometry, granule: GranuleIndex) -> bool {
        let region = geometry.region_of(granule);
        self.whole.contains(region) || self.masks.get(&region).is_some_and(|m| m.contains(geometry.granule_in_region(granule)))
    }

    /// The regions it touches.
    pub fn regions(&self) -> RegionSet {
        let mut set = self.whole.clone();
        self.masks.keys().for_each(|&r| set.insert(r));
        set
    }

    /// The first region it touches at or after one.
    pub fn next_region(&self, from: RegionIndex) -> Option<RegionIndex> {
        let masked = self.masks.range(from..).next().map(|(&r, _)| r);
        let whole = if self.whole.contains(from) {
            Some(from)
        } else {
            self.whole.ranges.range(from.0..).next().map(|(&s, _)| RegionIndex(s))
        };
        masked.into_iter().chain(whole).min()
    }

    /// Number of granules in it.
    pub fn granule_count(&self, geometry: &Geometry) -> u64 {
        let whole: u64 = self
            .whole
            .ranges()
            .map(|r| {
                let last = geometry.region_run(RegionIndex(r.start.0 + r.count - 1));
                last.end().0 - geometry.region_run(r.start).start.0
            })
            .sum();
        whole + self.masks.values().map(|m| m.count()).sum::<u64>()
    }

    /// The regions that are in it entirely, and the masks of the others, for encoders.
    pub fn parts(&self) -> (&RegionSet, impl Iterator<Item = (RegionIndex, &GranuleMask)>) {
        (&self.whole, self.masks.iter().map(|(&r, m)| (r, &**m)))
    }

    /// Bytes of memory held, roughly; for limits.
    pub fn memory_bytes(&self) -> usize {
        self.whole.range_count() * 32 + self.masks.len() * (128 + 48)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn region_set_equals_a_set_of_numbers(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60)) {
            let (mut set, mut model) = (RegionSet::new(), BTreeSet::new());
            for (add, start, count) in ops {
                let range = RegionRange { start: RegionIndex(start), count };
                if add { set.insert_range(range); model.extend(start..start + count); }
                else { set.remove_range(range); model.retain(|x| !(start..start + count).contains(x)); }
                prop_assert_eq!(set.iter().map(|r| r.0).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.len(), model.len() as u64);
                let ranges: Vec<_> = set.ranges().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].start.0 + w[0].count < w[1].start.0), "ranges touch: {:?}", ranges);
                prop_assert_eq!(&RegionSet::try_from(Vec::<(u64, u64)>::from(set.clone())).expect("round trip"), &set);
            }
            for r in 0..80 { prop_assert_eq!(set.contains(RegionIndex(r)), model.contains(&r)); }
        }

        #[test]
        fn granule_set_equals_a_set_of_numbers(runs in prop::collection::vec((0u64..90, 1u64..30), 0..12), gone in 0u64..7) {
            let g = Geometry::with_shape(97 * 64, 6, 4).expect("valid");
            let (mut set, mut model) = (GranuleSet::new(), BTreeSet::new());
            for (start, count) in runs {
                let count = count.min(97 - start);
                set.insert_run(&g, GranuleRun { start: GranuleIndex(start), count });
                model.extend(start..start + count);
            }
            set.remove_region(RegionIndex(gone));
            model.retain(|x| x / 16 != gone);
            for i in 0..97 { prop_assert_eq!(set.contains(&g, GranuleIndex(i)), model.contains(&i)); }
            prop_assert_eq!(set.granule_count(&g), model.len() as u64);
            let mut walked = BTreeSet::new();
            let mut at = RegionIndex(0);
            while let Some(r) = set.next_region(at) {
                let mask = set.mask(&g, r);
                let mut i = 0;
                while let Some((s, n)) = mask.next_run(i) { walked.extend((s..s + n).map(|x| r.0 * 16 + x as u64)); i = s + n; if i >= 1024 { break } }
                at = RegionIndex(r.0 + 1);
            }
            prop_assert_eq!(walked, model);
        }
    }

    #[test]
    fn a_hostile_region_set_is_refused() {
        for bad in [vec![(0, 0)], vec![(1, 1), (0, 1)], vec![(u64::MAX, 1)], vec![(5, u64::MAX)]] {
            assert!(RegionSet::try_from(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
