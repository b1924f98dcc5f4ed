//! Where each granule of an image lies: a map of extents over parts. Pure.
//!
//! Owns the rule "newest wins": [`VolumeIndex::apply`] in the order of publication gives the head image, and the same over
//! the parts that live at a point gives that point. Memory follows the number of extents, never the size of the volume.
//! It does not know where parts are kept, which record named them, or what is inside (digests and frames are in footers).

use std::collections::BTreeMap;

use farside_region::{GranuleIndex, GranuleRun};

/// A part, as one replay numbers it: in the order of publication. Means nothing outside of that replay.
/// Less than 2^62: a group that publishes a thousand million of them a second takes a hundred years for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartNo(pub u64);

impl PartNo {
    /// No part has it: two bits of an extent say what it holds.
    pub(crate) const END: Self = Self(u64::MAX >> 2);
}

/// What a run holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Bytes, in the part's frames.
    Data,
    /// Zeroes, without bytes anywhere.
    Zero,
    /// The source could not read it.
    Unreadable,
}

/// A run of an image and the part that says what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which granules.
    pub run: GranuleRun,
    /// Which part.
    pub part: PartNo,
    /// What.
    pub content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    end: u64,
    /// The part, and in the lowest two bits what it holds: there are many of these.
    of: u64,
}

impl Entry {
    fn new(end: u64, part: PartNo, content: Content) -> Self {
        assert!(part <= PartNo::END, "parts are numbered one by one");
        Self { end, of: part.0 << 2 | content as u64 }
    }

    fn part(&self) -> PartNo {
        PartNo(self.of >> 2)
    }

    fn content(&self) -> Content {
        match self.of & 3 {
            0 => Content::Data,
            1 => Content::Zero,
            _ => Content::Unreadable,
        }
    }
}

/// The image of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeIndex {
    entries: BTreeMap<u64, Entry>, // start → rest; never overlapping, equal neighbours joined
}

impl VolumeIndex {
    /// An image of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays a run over what was there. `displaced` hears which parts lost how many granules.
    pub fn apply(&mut self, extent: Extent, displaced: impl FnMut(PartNo, u64)) {
        let (mut start, mut end) = (extent.run.start.0, extent.run.end().0);
        if start >= end {
            return;
        }
        self.remove(extent.run, displaced);
        let new = Entry::new(end, extent.part, extent.content);
        let same = |e: &Entry| e.of == new.of;
        if let Some((&s, e)) = self.entries.range(..start).next_back()
            && e.end == start
            && same(e)
        {
            start = s;
        }
        if let Some(e) = self.entries.get(&end).copied()
            && same(&e)
        {
            self.entries.remove(&end);
            end = e.end;
        }
        self.entries.insert(start, Entry { end, ..new });
    }

    /// Takes out all that lies in some parts and reaches into some runs, which ascend, and says what that was, ascending.
    pub(crate) fn take_in(&mut self, runs: impl Iterator<Item = GranuleRun>, is_of: impl Fn(PartNo) -> bool) -> Vec<Extent> {
        let mut taken: Vec<Extent> = Vec::new();
        for run in runs {
            // What is cut here is taken in whole, once.
            let starts = self.entries.range(..run.start.0).next_back().filter(|(_, e)| e.end > run.start.0).into_iter();
            let found = starts.chain(self.entries.range(run.start.0..run.end().0.max(run.start.0)));
            let found = found.filter(|(_, e)| is_of(e.part())).map(|(&start, e)| Extent {
                run: GranuleRun { start: GranuleIndex(start), count: e.end - start },
                part: e.part(),
                content: e.content(),
            });
            let found: Vec<Extent> = found.collect();
            for extent in &found {
                self.entries.remove(&extent.run.start.0);
            }
            taken.extend(found);
        }
        taken
    }

    /// Takes out all that lies in some parts, and says what that was, ascending. Walks all extents.
    pub(crate) fn take(&mut self, is_of: impl Fn(PartNo) -> bool) -> Vec<Extent> {
        let of = |(&start, e): (&u64, &Entry)| Extent {
            run: GranuleRun { start: GranuleIndex(start), count: e.end - start },
            part: e.part(),
            content: e.content(),
        };
        let taken: Vec<Extent> = self.entries.iter().filter(|(_, e)| is_of(e.part())).map(of).collect();
        self.entries.retain(|_, e| !is_of(e.part()));
        taken
    }

    /// Takes a run out, so that it is absent. `displaced` hears which parts lost how many granules.
    pub fn remove(&mut self, run: GranuleRun, mut displaced: impl FnMut(PartNo, u64)) {
        let (start, end) = (run.start.0, run.end().0);
        if start >= end {
            return;
        }
        if let Some((&s, &e)) = self.entries.range(..start).next_back()
            && e.end > start
        {
            displaced(e.part(), e.end.min(end) - start);
            self.entries.insert(s, Entry { end: start, ..e });
            if e.end > end {
                self.entries.insert(end, e);
            }
        }
        while let Some((&s, &e)) = self.entries.range(start..end).next() {
            displaced(e.part(), e.end.min(end) - s);
            self.entries.remove(&s);
            if e.end > end {
                self.entries.insert(end, e);
            }
        }
    }

    /// The extents that overlap a run, cut to it, ascending. What no extent covers is absent.
    pub fn extents(&self, run: GranuleRun) -> impl Iterator<Item = Extent> + '_ {
        let (from, to) = (run.start.0, run.end().0);
        let first = self.entries.range(..from).next_back().filter(|(_, e)| e.end > from);
        first
            .into_iter()
            .chain(self.entries.range(from..to.max(from)))
            .map(move |(&s, e)| {
                let start = s.max(from);
                Extent {
                    run: GranuleRun { start: GranuleIndex(start), count: e.end.min(to) - start },
                    part: e.part(),
                    content: e.content(),
                }
            })
            .filter(|e| e.run.count > 0)
    }

    /// The first granule of a run that no extent covers.
    pub fn first_absent(&self, run: GranuleRun) -> Option<GranuleIndex> {
        let mut at = run.start.0;
        for extent in self.extents(run) {
            if extent.run.start.0 > at {
                break;
            }
            at = extent.run.end().0;
        }
        (at < run.end().0).then_some(GranuleIndex(at))
    }

    /// Number of extents, to which memory is proportional.
    pub fn extent_count(&self) -> usize {
        self.entries.len()
    }

    /// Granules per part.
    pub fn granules_by_part(&self) -> BTreeMap<PartNo, u64> {
        let mut sums = BTreeMap::new();
        for (s, e) in &self.entries {
            *sums.entry(e.part()).or_insert(0) += e.end - s;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(start: u64, count: u64) -> GranuleRun {
        GranuleRun { start: GranuleIndex(start), count }
    }

    fn content(n: u8) -> Content {
        [Content::Data, Content::Zero, Content::Unreadable][usize::from(n % 3)]
    }

    proptest! {
        #[test]
        fn an_index_equals_an_array_of_granules(ops in prop::collection::vec((0u64..60, 0u64..20, 0u64..6, 0u8..3), 0..50), ask in (0u64..80, 0u64..80)) {
            let mut index = VolumeIndex::new();
            let mut model: Vec<Option<(PartNo, Content)>> = vec![None; 100];
            for (start, count, part, kind) in ops {
                let mut lost: BTreeMap<PartNo, u64> = BTreeMap::new();
                let mut expected: BTreeMap<PartNo, u64> = BTreeMap::new();
                index.apply(Extent { run: run(start, count), part: PartNo(part), content: content(kind) }, |p, n| *lost.entry(p).or_insert(0) += n);
                for granule in &mut model[start as usize..(start + count) as usize] {
                    if let Some((p, _)) = granule { *expected.entry(*p).or_insert(0) += 1; }
                    *granule = Some((PartNo(part), content(kind)));
                }
                prop_assert_eq!(lost, expected);
            }
            let all: Vec<_> = index.extents(run(0, 100)).collect();
            prop_assert!(all.windows(2).all(|w| w[0].run.end() <= w[1].run.start));
            prop_assert!(all.windows(2).all(|w| w[0].run.end() < w[1].run.start || (w[0].part, w[0].content) != (w[1].part, w[1].content)), "equal neighbours are joined");
            for (name, asked) in [("all", run(0, 100)), ("some", run(ask.0, ask.1.min(100 - ask.0)))] {
                let mut seen = vec![None; 100];
                for e in index.extents(asked) {
                    prop_assert!(e.run.start >= asked.start && e.run.end() <= asked.end() && e.run.count > 0, "{} {:?}", name, e);
                    for g in e.run.start.0..e.run.end().0 { seen[g as usize] = Some((e.part, e.content)); }
                }
                let inside = asked.start.0 as usize..asked.end().0 as usize;
                prop_assert_eq!(&seen[inside.clone()], &model[inside.clone()]);
                prop_assert_eq!(index.first_absent(asked).map(|g| g.0 as usize), inside.into_iter().find(|&g| model[g].is_none()));
            }
            let total: u64 = index.granules_by_part().values().sum();
            prop_assert_eq!(total, model.iter().flatten().count() as u64);
        }
    }
}
