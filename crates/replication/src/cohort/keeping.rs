//! Which points a gateway keeps for whole cuts, beside what retention keeps of each group by itself.
//!
//! Invariant: as long as it is not known what is kept for a cohort, nothing of its groups is given up. It is in no ledger, so a process that
//! has just begun knows nothing.

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::CohortCut;
use farside_region::{Name, mutation};

use super::whole::{CutsOfGroup, WholeCut, perhaps_whole, whole_to_keep};

/// For all cohorts of a gateway: the newest whole cuts, and of which cohorts they are known. `G`: a group; `P`: a point, in the order of the
/// group's ledger.
#[derive(Debug)]
pub struct CohortsKept<G, P> {
    kept: BTreeMap<Name, Vec<WholeCut<G, P>>>,
    /// Cuts that are whole if groups have points of them that do not answer, and are in the cohort no more.
    perhaps: BTreeMap<Name, Vec<WholeCut<G, P>>>,
    /// All groups that they have now were asked.
    looked: BTreeSet<Name>,
}

impl<G, P> Default for CohortsKept<G, P> {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), perhaps: BTreeMap::new(), looked: BTreeSet::new() }
    }
}

impl<G: Clone + Ord, P: Copy + Ord> CohortsKept<G, P> {
    /// Points of a group that are kept. † By its own ledger alone a group would give them up for cuts that others do not have.
    pub fn of_group(&self, group: &G) -> BTreeSet<P> {
        if mutation::on("a group gives up points by its own ledger alone") {
            return BTreeSet::new();
        }
        self.kept.values().chain(self.perhaps.values()).flatten().filter_map(|whole| whole.point_of(group)).collect()
    }

    /// The newest of them that is kept for a cut of that cohort.
    pub fn newest_of(&self, cohort: &Name, group: &G) -> Option<P> {
        self.of_cohort(cohort.as_str()).filter_map(|whole| whole.point_of(group)).max()
    }

    /// The cuts that are kept of a cohort, newest first.
    pub fn of_cohort(&self, cohort: &str) -> impl Iterator<Item = &WholeCut<G, P>> {
        self.kept.iter().filter(move |(name, _)| name.as_str() == cohort).flat_map(|(_, cuts)| cuts)
    }

    /// Whether it is known what is kept of these cohorts. † A process that has just begun knows of nothing, and its first prune would give it
    /// up: until this says yes of all cohorts that a group is in, or has points of, nothing of the group is given up.
    pub fn knows<'a>(&self, cohorts: impl IntoIterator<Item = &'a Name>) -> bool {
        let is_known = |cohort: &&Name| self.looked.contains(*cohort);
        cohorts.into_iter().all(|cohort| is_known(&cohort)) || mutation::on("what is kept for cuts is nothing before it is known")
    }

    /// The ledgers were asked for the cuts of a cohort: `groups` answered, all of those that it has now if `is_all`; of the others
    /// `is_silent` is said.
    pub fn found(
        &mut self,
        cohort: &Name,
        groups: &[(G, CutsOfGroup<P>)],
        is_silent: impl Fn(&G) -> bool,
        is_all: bool,
        most: usize,
    ) {
        let before = self.kept.remove(cohort).unwrap_or_default();
        self.kept.insert(cohort.clone(), whole_to_keep(groups, is_silent, before, most));
        if is_all {
            self.looked.insert(cohort.clone());
        }
    }

    /// Before [`Self::found`], with the same `groups`: `silent` others of the store do not answer. † One of them may have left the cohort, and have what
    /// cuts of before lack: all groups that the cohort has now are asked without it, and would give up their parts of them. Beside what is kept anyway,
    /// since most of them may be halves. Of what comes later no such group is a part.
    ///
    /// † All of them, and not the newest few: halves that are newer would push out the one that is whole. They are no more than there were when all
    /// groups that the cohort has were asked.
    pub fn not_told(&mut self, cohort: &Name, groups: &[(G, CutsOfGroup<P>)], silent: usize) {
        let before = self.perhaps.remove(cohort).unwrap_or_default();
        let is_looked = self.looked.contains(cohort);
        if silent == 0 || (is_looked && before.is_empty()) {
            return;
        }
        let mut perhaps = perhaps_whole(groups, silent);
        if is_looked {
            let known: BTreeSet<CohortCut> = before.iter().map(|known| known.cut).collect();
            perhaps.retain(|perhaps| known.contains(&perhaps.cut));
        }
        if !perhaps.is_empty() {
            self.perhaps.insert(cohort.clone(), perhaps);
        }
    }

    /// They must all be asked again. What is kept is kept on. False: it was not known anyway.
    pub fn ask_again(&mut self, cohort: &Name) -> bool {
        self.looked.remove(cohort)
    }

    /// Those alone are conducted as they were.
    pub fn are_as_before(&mut self, is_it: impl Fn(&Name) -> bool) {
        self.looked.retain(is_it);
    }

    /// Nothing of a cohort is kept any more.
    pub fn forget(&mut self, cohort: &Name) {
        self.kept.remove(cohort);
        self.perhaps.remove(cohort);
        self.looked.remove(cohort);
    }
}
