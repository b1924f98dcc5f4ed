//! What a gateway keeps for whole cuts: groups leave their cohort and come into it, do not answer, have points late or never, give up all that
//! they may; the gateway begins anew, and its clock is set. Of the newest cuts that are whole no group gives up its point.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use farside_ledger::CohortCut;
use farside_region::{Name, mutation};

use super::world::{Rng, name};
use crate::cohort::{CohortsKept, CutId, CutsOfGroup, whole};

const GROUPS: usize = 3;
const KEPT: usize = 3;
const DAY_MS: i64 = 86_400_000;

/// The points of a cut that must be there.
type Points = BTreeMap<usize, u64>;

struct World {
    rng: Rng,
    /// Points by slot.
    ledgers: Vec<BTreeMap<u64, CohortCut>>,
    /// Taken, and not published yet.
    late: Vec<VecDeque<CohortCut>>,
    slots: u64,
    /// The groups of the cohort.
    members: BTreeSet<usize>,
    silent: BTreeSet<usize>,
    /// All that were begun, in order.
    cuts: Vec<(CutId, BTreeSet<usize>)>,
    wall_off_ms: i64,
    kept: CohortsKept<usize, u64>,
    /// The gateway asked all members since it began.
    remembers: bool,
    must_keep: Vec<(usize, Points)>,
    given_up: u64,
}

fn cohort() -> Name {
    name("erp")
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed * 2 + 1),
            ledgers: vec![BTreeMap::new(); GROUPS],
            late: vec![VecDeque::new(); GROUPS],
            slots: 0,
            members: (0..GROUPS).collect(),
            silent: BTreeSet::new(),
            cuts: Vec::new(),
            wall_off_ms: 0,
            kept: CohortsKept::default(),
            remembers: false,
            must_keep: Vec::new(),
            given_up: 0,
        }
    }

    fn group(&mut self) -> usize {
        self.rng.below(GROUPS as u64) as usize
    }

    fn step(&mut self) {
        match self.rng.below(40) {
            0..=9 => self.cut(),
            10..=23 => self.publish(),
            24..=28 => self.look(),
            29..=34 => self.prune(),
            35 => {
                let group = self.group();
                if !self.silent.remove(&group) {
                    self.silent.insert(group);
                }
            }
            36 => self.joins_or_leaves(),
            37 => self.wall_off_ms = [0, DAY_MS, -DAY_MS][self.rng.below(3) as usize],
            38 => {
                self.kept = CohortsKept::default();
                self.remembers = false;
            }
            _ => self.silent.clear(),
        }
    }

    fn cut(&mut self) {
        let nth = self.cuts.len();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        id[8..].copy_from_slice(&(nth as u64).to_le_bytes());
        let wall_ms = 1_700_000_000_000 + nth as i64 * 1_000 + self.wall_off_ms;
        let groups = u16::try_from(self.members.len()).expect("few");
        let cut = CohortCut { cohort: CohortCut::cohort_id(cohort().as_str()), cut: id, groups, wall_ms };
        self.cuts.push((id, self.members.clone()));
        for group in self.members.clone() {
            // Given up before it was sent.
            if self.rng.below(12) > 0 {
                self.late[group].push_back(cut);
            }
        }
    }

    fn publish(&mut self) {
        let group = self.group();
        if let Some(cut) = self.late[group].pop_front() {
            self.slots += 1;
            self.ledgers[group].insert(self.slots, cut);
        }
    }

    fn look(&mut self) {
        let cuts_of = |ledger: &BTreeMap<u64, CohortCut>| ledger.iter().map(|(slot, cut)| (cut.cut, (*cut, *slot))).collect();
        let answers = (0..GROUPS).filter(|group| !self.silent.contains(group));
        let groups: Vec<(usize, CutsOfGroup<u64>)> = answers.map(|group| (group, cuts_of(&self.ledgers[group]))).collect();
        let is_all = self.members.is_disjoint(&self.silent);
        for called in whole(&groups) {
            let (_, of) = self.cuts.iter().find(|(id, _)| *id == called.cut.cut).expect("it was begun");
            let has: BTreeSet<usize> = called.points.iter().map(|(group, _)| *group).collect();
            assert_eq!(has, *of, "a cut is called whole, and lacks a group");
        }
        if is_all || self.remembers {
            self.expect();
        }
        if !is_all {
            self.kept.ask_again(&cohort());
        }
        let silent = self.silent.clone();
        self.kept.found(&cohort(), &groups, |group| silent.contains(group), is_all, KEPT);
        self.remembers |= is_all;
    }

    /// What must be there from now on. † What a gateway that has just begun is told by nobody it does not know.
    fn expect(&mut self) {
        let before = std::mem::take(&mut self.must_keep);
        let before: BTreeMap<usize, Points> = before.into_iter().filter(|_| self.remembers).collect();
        let point = |group: usize, id: CutId| {
            let mut points = self.ledgers[group].iter();
            points.find(|(_, cut)| cut.cut == id).map(|(slot, _)| *slot)
        };
        let mut newest = Vec::new();
        for (nth, (id, of)) in self.cuts.iter().enumerate().rev() {
            let answered: Option<Points> = of.iter().map(|group| Some((*group, point(*group, *id)?))).collect();
            let is_told = of.is_disjoint(&self.silent);
            newest.extend(answered.filter(|_| is_told || before.contains_key(&nth)).map(|points| (nth, points)));
        }
        newest.truncate(KEPT);
        self.must_keep = newest;
    }

    /// A group gives up all but its newest point, and what is kept.
    fn prune(&mut self) {
        let group = self.group();
        let cohort = cohort();
        let has_points = !self.ledgers[group].is_empty();
        if !self.kept.knows((self.members.contains(&group) || has_points).then_some(&cohort)) {
            return;
        }
        let kept = self.kept.of_group(&group);
        let newest = self.ledgers[group].last_key_value().map(|(slot, _)| *slot);
        let before = self.ledgers[group].len();
        self.ledgers[group].retain(|slot, _| Some(*slot) == newest || kept.contains(slot));
        self.given_up += (before - self.ledgers[group].len()) as u64;
        for (nth, points) in &self.must_keep {
            let is_gone = points.get(&group).is_some_and(|slot| !self.ledgers[group].contains_key(slot));
            assert!(!is_gone, "group {group} gave up its point of cut {nth}, which is one of the newest that are whole");
        }
    }

    fn joins_or_leaves(&mut self) {
        let group = self.group();
        if !self.members.insert(group) && self.members.len() > 2 {
            self.members.remove(&group);
        }
        self.kept.ask_again(&cohort());
    }
}

/// Points that were given up.
fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    (0..600).for_each(|_| world.step());
    world.given_up
}

#[test]
fn no_group_gives_up_a_point_of_the_newest_whole_cuts() {
    let given_up: u64 = (0..500).map(run).sum();
    assert!(given_up > 10_000, "{given_up}");
}

#[test]
fn mistakes_of_what_is_kept_are_noticed() {
    let gave_up = "which is one of the newest that are whole";
    for (mistake, words) in [
        ("a cut that lacks a group is whole", "a cut is called whole, and lacks a group"),
        ("a group gives up points by its own ledger alone", gave_up),
        ("what is kept for cuts is nothing before it is known", gave_up),
        ("the newest cut is the one that the clock says", gave_up),
        ("a cut of a group that does not answer is given up", gave_up),
    ] {
        mutation::tell(&[(mistake, words)], || (0..300).for_each(|seed| _ = run(seed)));
    }
}
