//! Which cuts of a cohort are whole, and which of them are kept: nothing says so but the ledgers of the groups.
//!
//! Invariants:
//! - A cut is whole if as many groups as its records say have a point of it, whatever cohort they are in now.
//! - Of two cuts that have a group in common the newer one is that with the later slot there, whatever a clock said.
//! - What was whole when all groups of it answered is kept while some of them do not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::{CohortCut, State};
use farside_region::{Slot, mutation};

use super::conductor::CutId;

/// So many of the newest whole cuts of a cohort are kept beside what retention keeps. † By its own ledger alone a group would keep halves,
/// and give up halves of whole cuts for them.
pub const WHOLE_KEPT: usize = 10;

/// Points of one group that are of cuts of its cohort, by cut. `P`: a point, in the order of the group's ledger.
pub type CutsOfGroup<P> = BTreeMap<CutId, (CohortCut, P)>;

/// Those of one ledger. What the source could not read all of is none.
pub fn cuts_of<P>(state: &State, cohort: &str, point: impl Fn(Slot) -> Option<P>) -> CutsOfGroup<P> {
    let id = CohortCut::cohort_id(cohort);
    let mut cuts = CutsOfGroup::new();
    for found in state.points().values() {
        let may = !found.degraded || mutation::on("what could not be read in full is part of a cut");
        let cut = found.consistency().cohort_cut().filter(|cut| cut.cohort == id && may);
        if let (Some(cut), Some(point)) = (cut, point(found.slot)) {
            // † The first one: a host that says later that another point is of that cut, too, changes nothing of what was whole.
            cuts.entry(cut.cut).or_insert((cut, point));
        }
    }
    cuts
}

/// A cut of which every group has its point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeCut<G, P> {
    /// Which.
    pub cut: CohortCut,
    /// The points, by group.
    pub points: Vec<(G, P)>,
}

impl<G: PartialEq, P: Copy> WholeCut<G, P> {
    /// The point of a group.
    pub fn point_of(&self, group: &G) -> Option<P> {
        self.points.iter().find(|(of, _)| of == group).map(|(_, point)| *point)
    }
}

/// The cuts that are whole, newest first. `groups`: all that have points of any, by name. † Not the groups of the configuration: those of a
/// cut stay what they were when it was cut, and a record says how many they are.
pub fn whole<G: Clone + Ord, P: Copy + Ord>(groups: &[(G, CutsOfGroup<P>)]) -> Vec<WholeCut<G, P>> {
    // One group is none: a host could make such cuts by itself.
    let is_whole = |WholeCut { cut, points }: &WholeCut<G, P>| {
        let has_all = points.len() == usize::from(cut.groups) || mutation::on("a cut that lacks a group is whole");
        cut.groups > 1 && has_all
    };
    newest_first(all_of(groups).filter(is_whole).collect())
}

/// The cuts that lack points, and no more than `silent` groups can have.
pub(super) fn perhaps_whole<G: Clone + Ord, P: Copy + Ord>(groups: &[(G, CutsOfGroup<P>)], silent: usize) -> Vec<WholeCut<G, P>> {
    let is_perhaps = |WholeCut { cut, points }: &WholeCut<G, P>| {
        points.len() < usize::from(cut.groups) && points.len() + silent >= usize::from(cut.groups)
    };
    all_of(groups).filter(is_perhaps).collect()
}

/// All cuts, and who has a point of them.
fn all_of<G: Clone + Ord, P: Copy + Ord>(groups: &[(G, CutsOfGroup<P>)]) -> impl Iterator<Item = WholeCut<G, P>> {
    let mut all = BTreeMap::<CohortCut, Vec<(G, P)>>::new();
    for (group, cuts) in groups {
        for (cut, point) in cuts.values() {
            all.entry(*cut).or_default().push((group.clone(), *point));
        }
    }
    all.into_iter().map(|(cut, points)| WholeCut { cut, points })
}

/// The newest whole cuts, of which retention keeps the points: `most` of them. `before`: what this said when it was asked last. † What was
/// whole when all groups of it answered is so still while some of them do not: the others would give it up.
pub fn whole_to_keep<G: Clone + Ord, P: Copy + Ord>(
    groups: &[(G, CutsOfGroup<P>)],
    is_silent: impl Fn(&G) -> bool,
    before: Vec<WholeCut<G, P>>,
    most: usize,
) -> Vec<WholeCut<G, P>> {
    let mut cuts = whole(groups);
    let is_there = |(group, point): &(G, P)| {
        let has = |(of, cuts): &(G, CutsOfGroup<P>)| of == group && cuts.values().any(|(_, there)| there == point);
        is_silent(group) || groups.iter().any(has)
    };
    let known: BTreeSet<CutId> = cuts.iter().map(|whole| whole.cut.cut).collect();
    let is_still = |whole: &WholeCut<G, P>| !known.contains(&whole.cut.cut) && whole.points.iter().all(is_there);
    if !mutation::on("a cut of a group that does not answer is given up") {
        cuts.extend(before.into_iter().filter(is_still));
    }
    let mut cuts = newest_first(cuts);
    cuts.truncate(most);
    cuts
}

/// By time, and then in the order of the ledgers. † The clock that gave them their times may have been wrong for a while, and set right; those
/// that have no group in common stay by time.
fn newest_first<G: Clone + Ord, P: Copy + Ord>(mut cuts: Vec<WholeCut<G, P>>) -> Vec<WholeCut<G, P>> {
    cuts.sort_by_key(|whole| (Reverse(whole.cut.wall_ms), whole.cut.cut));
    let groups: BTreeSet<G> = cuts.iter().flat_map(|whole| &whole.points).map(|(group, _)| group.clone()).collect();
    // Each group puts its own cuts into its order, at the places that they have; a group can undo what another one did only where not all of
    // them have all of the cuts, so a few rounds are enough, and no order is wrong for more than that.
    let rounds = if mutation::on("the newest cut is the one that the clock says") { 0 } else { groups.len() };
    for _ in 0..rounds {
        let before: Vec<CutId> = cuts.iter().map(|whole| whole.cut.cut).collect();
        for group in &groups {
            let at: Vec<usize> = (0..cuts.len()).filter(|at| cuts[*at].point_of(group).is_some()).collect();
            let mut sorted: Vec<_> = at.iter().map(|at| cuts[*at].clone()).collect();
            sorted.sort_by_key(|whole| Reverse(whole.point_of(group)));
            at.into_iter().zip(sorted).for_each(|(at, whole)| cuts[at] = whole);
        }
        if cuts.iter().map(|whole| &whole.cut.cut).eq(&before) {
            break;
        }
    }
    cuts
}
