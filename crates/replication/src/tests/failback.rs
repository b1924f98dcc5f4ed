//! Every course of a failback of some words: rounds that are cut short, kills, strangers, and what persons say, in any order, on a disk of
//! three regions. What is served is what the disk held or a point, and what no point has is not overwritten before it is kept.

use std::collections::BTreeMap;

use farside_ledger::EpochInfo;
use farside_region::{BootId, Generation, LedgerPosition, Name, RecordDigest, RegionIndex, RegionSet, Slot, mutation};
use farside_wire::{PullPoint, RequestId};

use super::world::name;
use crate::failback::{At, Branch, Course, Ending, Finish, Kept, Known, Stage, lacks};

const WORDS: usize = 6;

/// What a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Own,
    Fork(usize),
    Newer(usize),
    Strange,
}

use Content::{Fork, Newer, Own, Strange};

const REGIONS: usize = 3;
const FORK: [Content; REGIONS] = [Fork(0), Fork(1), Fork(2)];
/// It differs from the other one in the first two regions only.
const NEWEST: [Content; REGIONS] = [Newer(0), Newer(1), Fork(2)];

#[derive(Clone, Copy, Debug)]
enum Word {
    /// Ends after so many regions.
    Round(usize),
    Kill,
    Stranger,
    Abort,
    Finish,
    Accept,
    Discard,
}

const ALL: [Word; 9] = [
    Word::Round(9),
    Word::Round(0),
    Word::Round(1),
    Word::Kill,
    Word::Stranger,
    Word::Abort,
    Word::Finish,
    Word::Accept,
    Word::Discard,
];

fn at(slot: u64) -> At {
    At { position: LedgerPosition { slot: Slot(slot), digest: RecordDigest([slot as u8; 32]) }, wall_ms: 0 }
}

#[derive(Clone, Debug)]
struct World {
    course: Course,
    known: Option<Known<RegionSet, u64>>,
    noted: Option<u64>,
    marks: u64,
    disk: [Content; REGIONS],
    kept: [Option<Content>; REGIONS],
    /// What the disk was when it was taken, or when its branch was begun.
    before: [Content; REGIONS],
    /// It was overwritten in part since it was that, or a point.
    is_part: bool,
    /// Somebody wrote where a point was, and nothing is begun that keeps it.
    unkept: bool,
    /// Somebody wrote since: the first region is not judged.
    is_strange: bool,
    is_served: bool,
}

impl World {
    fn new() -> Self {
        Self {
            course: Course::new(Branch::Wanted { base: None }),
            known: None,
            noted: None,
            marks: 0,
            disk: [Own; REGIONS],
            kept: [None; REGIONS],
            before: [Own; REGIONS],
            is_part: false,
            unkept: false,
            is_strange: false,
            is_served: false,
        }
    }

    fn volume() -> Name {
        name("data")
    }

    fn look(&mut self) -> Option<LedgerPosition> {
        let seen: BTreeMap<Name, Option<u64>> = [(Self::volume(), Some(self.marks))].into();
        self.known = match self.known.take() {
            Some(known) => known.still(&seen),
            None => self.course.says().and_then(|at| Known::noted(at.position, |_| self.noted, seen)),
        };
        self.known.as_ref().map(|known| known.at)
    }

    fn lacks_something(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.lacks.values().any(|lacks| !lacks.is_empty()))
    }

    fn hears(&mut self, word: Word) {
        match word {
            Word::Round(regions) => self.round(regions),
            Word::Kill => self.known = None,
            Word::Stranger => {
                self.unkept |= self.course.says().is_some() && self.course.branch.may_begin_anew();
                (self.disk[0], self.is_strange) = (Strange, true);
                self.marks += 1;
            }
            Word::Abort => (self.course.abort, self.course.finish) = (true, None),
            Word::Finish => (self.course.abort, self.course.finish) = (false, Some(Finish { force: false })),
            Word::Accept => {
                (self.known, self.noted) = (None, None);
                self.course.accepts(true);
            }
            Word::Discard => (self.course.branch, self.unkept) = (Branch::Discarded, false),
        }
    }

    fn round(&mut self, regions: usize) {
        if let Stage::Returning { at, .. } = self.course.stage.clone() {
            let have = self.look();
            if self.course.is_still(have) {
                let want = if at.position.slot == Slot(2) { NEWEST } else { FORK };
                assert_eq!(self.disk, want, "served: it is no point");
                self.is_served = true;
            }
            return;
        }
        match self.course.ending() {
            Some(Ending::PutBack { id, .. }) => {
                self.known = None;
                for (region, kept) in self.kept.iter().enumerate() {
                    self.disk[region] = kept.unwrap_or(self.disk[region]);
                }
                assert!(self.course.is_put_back(&id));
                return self.ends();
            }
            Some(Ending::AsTheyAre { .. }) => return self.ends(),
            None => {}
        }
        let have = self.look();
        if let Some(branch) = self.course.begins_anew(have) {
            self.course.branch = branch;
        } else if self.course.branch.is_due() {
            self.keep(have, regions);
        } else if have != Some(at(2).position)
            || self.lacks_something()
            || matches!(self.course.stage, Stage::Held { applying: Some(_), .. })
        {
            self.apply(2, None, regions);
        } else if self.course.finish.is_some()
            && let Some(at) = self.course.goes_back(have, self.lacks_something())
        {
            self.course.returns(at);
        }
    }

    fn ends(&mut self) {
        let is_all = |want: [Content; REGIONS]| (0..REGIONS).all(|i| self.disk[i] == want[i] || i == 0 && self.is_strange);
        assert!(is_all(self.before) || is_all(FORK) || is_all(NEWEST), "served: it is in part a point: {self:?}");
        self.is_served = true;
    }

    fn keep(&mut self, have: Option<LedgerPosition>, regions: usize) {
        if matches!(self.course.branch, Branch::Wanted { .. }) {
            let whole = have.filter(|_| !self.lacks_something());
            let over = whole.filter(|whole| *whole == at(2).position).map_or(at(1), |_| at(2));
            match self.course.keeps(whole, over.position) {
                None => self.course.branch = Branch::None,
                Some(is) => {
                    self.course.branch = Branch::Kept { id: name("b"), over, is };
                    (self.kept, self.unkept) = ([None; REGIONS], false);
                    if !self.is_part {
                        (self.before, self.is_strange) = (self.disk, false);
                    }
                }
            }
            return;
        }
        // Somebody else may say another thing meanwhile.
        if regions == 1 && mutation::on("a failback overwrites what is still to be kept") {
            return self.apply(2, None, 9);
        }
        self.apply(1, Some(name("b")), regions);
    }

    fn apply(&mut self, slot: u64, keeping: Option<Name>, most: usize) {
        if !self.course.may_apply(keeping.as_ref()) {
            return;
        }
        let (point, want) = (at(slot), if slot == 2 { NEWEST } else { FORK });
        let looked = self.course.branch.clone();
        let (mut all, mut first) = (RegionSet::new(), RegionSet::new());
        (0..REGIONS as u64).for_each(|region| all.insert(RegionIndex(region)));
        (0..2).for_each(|region| first.insert(RegionIndex(region)));
        let known = self.known.as_ref();
        let goes_on = known.is_some_and(|known| known.at == point.position);
        let touched = known.filter(|known| known.at == at(1).position && slot == 2 && keeping.is_none()).map(|_| &first);
        let nothing = RegionSet::new();
        let before = known.map(|known| known.lacks[&Self::volume()].clone());
        let (mut regions, is_known) = lacks(&all, touched.or(goes_on.then_some(&nothing)), before.as_ref());
        self.course.applies(point.clone(), is_known);
        for region in regions.clone().iter().take(most) {
            let i = region.0 as usize;
            if self.disk[i] != want[i] {
                let is_lost = self.disk[i] == Own || self.disk[i] == Strange && self.unkept;
                match &keeping {
                    Some(_) => _ = self.kept[i].get_or_insert(self.disk[i]),
                    None => assert!(!is_lost || looked == Branch::Discarded, "kept nowhere: {self:?}"),
                }
                (self.disk[i], self.is_part) = (want[i], true);
                self.marks += 1;
            }
            regions.remove(region);
        }
        let is_there = regions.is_empty();
        let seen = [(Self::volume(), Some(self.marks))].into();
        self.known = Some(Known { at: point.position, lacks: [(Self::volume(), regions)].into(), seen });
        if is_there {
            assert_eq!(self.disk, want, "said to be a point");
            let branch = match keeping {
                Some(id) => Branch::Kept { id, over: point.clone(), is: Kept::Whole },
                None => looked.clone(),
            };
            self.course.applied(point, true, (&looked, branch));
            (self.noted, self.is_strange, self.unkept) = (Some(self.marks), false, false);
            self.is_part = false;
        }
    }
}

fn go(world: &World, words: usize, heard: &mut u64) {
    for word in ALL {
        let mut world = world.clone();
        world.hears(word);
        *heard += 1;
        if words > 1 && !world.is_served {
            go(&world, words - 1, heard);
        }
    }
}

/// From some states that need many words to come to.
fn all_courses() {
    let mut heard = 0;
    let told = |words: &[Word]| {
        let mut world = World::new();
        words.iter().for_each(|word| world.hears(*word));
        world
    };
    let whole = [Word::Round(9), Word::Round(9)];
    let cut_short = [Word::Round(9), Word::Round(9), Word::Round(0), Word::Kill];
    let half_kept = [Word::Round(9), Word::Round(1), Word::Kill];
    let discarded = [Word::Discard, Word::Round(1)];
    let mixed = [Word::Round(9), Word::Round(9), Word::Round(1), Word::Accept];
    for begins in [&[][..], &whole, &cut_short, &half_kept, &discarded, &mixed] {
        go(&told(begins), WORDS, &mut heard);
    }
    assert!(heard > 100_000, "{heard} words");
}

#[test]
fn whatever_is_said_in_whatever_order_nothing_is_lost_and_no_part_of_a_point_is_served() {
    let mut heard = 0;
    go(&World::new(), WORDS, &mut heard);
    all_courses();
}

#[test]
fn mistakes_of_a_course_are_noticed() {
    let served = "served: it is in part a point";
    let mistakes = [
        ("what a failback overwrote is not put back", served),
        ("a part of a point is served", served),
        ("what was begun with a part of a point is put back", served),
        ("what a stranger wrote is not kept", "kept nowhere"),
        ("a failback overwrites what is still to be kept", "kept nowhere"),
        ("what is about to be served is not looked at again", "served: it is no point"),
        ("a point that was begun is taken for done", "said to be a point"),
        ("a failback does not look for strangers", "said to be a point"),
        ("what a disk lacked of one point is forgotten at the next", "said to be a point"),
    ];
    mutation::tell(&mistakes, all_courses);
}

/// A store that was put back has an older point as its newest one: disks that follow may be the only copy of theirs.
#[test]
fn disks_are_not_brought_to_what_lies_below_them_unasked() {
    let told = |slot: u64, passed_over: Option<u64>| PullPoint {
        id: RequestId(1),
        position: at(slot).position,
        epoch: EpochInfo { boot: BootId([0; 16]), mono_before_ns: 0, mono_after_ns: 0, wall_ms: 0 },
        generation: Generation(2),
        promotion: None,
        is_since: true,
        passed_over: passed_over.map(Slot),
        other: None,
        members: Vec::new(),
    };
    let another = PullPoint { position: LedgerPosition { digest: RecordDigest([9; 32]), ..at(11).position }, ..told(11, None) };
    let of = |stage: Stage, branch: Branch| Course { stage, ..Course::new(branch) };
    let kept = || Branch::Kept { id: name("b"), over: at(7), is: Kept::Whole };
    let held = |applying| Stage::Held { at: Some(at(11)), applying };
    for stage in [held(None), held(Some(at(12))), Stage::Returning { at: at(11), served: false }] {
        for branch in [Branch::None, Branch::Discarded, kept()] {
            let course = of(stage.clone(), branch);
            for older in [told(10, None), told(9, Some(10)), another.clone()] {
                assert_eq!(course.is_newer_than(&older), Some(&at(11)), "{course:?} {older:?}");
            }
            for right in [told(11, None), told(12, None), told(10, Some(11))] {
                assert_eq!(course.is_newer_than(&right), None, "{course:?} {right:?}");
            }
        }
    }
    // It is kept first then; and a person may say that they are meant.
    assert_eq!(of(held(None), Branch::Wanted { base: Some(at(11)) }).is_newer_than(&told(10, None)), None);
    let mut accepted = of(held(None), kept());
    accepted.accepts(true);
    assert_eq!(accepted.branch, Branch::Wanted { base: Some(at(11)) });
    assert_eq!(accepted.is_newer_than(&told(10, None)), None);
    assert_eq!(of(Stage::Held { at: None, applying: None }, Branch::Discarded).is_newer_than(&told(10, None)), None);
    // Nothing of what is served is compared.
    for stage in [Stage::Returning { at: at(11), served: true }, Stage::Aborting] {
        let mut served = of(stage, kept());
        served.accepts(true);
        assert_eq!(served.branch, kept());
    }
}
