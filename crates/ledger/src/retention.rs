//! Which points a policy no longer needs. Ages are those of the group's age clock ([`State::age_clock_ms`]), and counts and grids
//! are per member volume: a volume that is not a member of the newer points does not age.
//!
//! What a policy promises, at any time, for every volume:
//! - its newest `keep` points that are not degraded are there, every point younger than `span_ms`, and every pinned one;
//! - for each rule of the grid, ledger time since its beginning is divided into cells of `every_ms`. If a point that holds the
//!   volume was ever published in a cell under this policy, one of that cell is there until the cell's end is `keep_ms` old: its
//!   first one that is not degraded or, while there is none, its first one.
//!
//! A point is let go when none of this needs it. Why the answer does not depend on when it is asked:
//! - Cells are fixed by ledger time, whose zero never moves, and what stands for a cell is the first of its points: no later
//!   point takes its place, but for a sound one that of a degraded one. So it is among those that are left, however often
//!   points were given up in between, and what a rule needs never comes to need another that is gone.
//! - The age clock never runs faster than ledger time. So of a cell the first point is needed the longest, and when it goes, no
//!   other of the cell is needed in its place.
//! - So a point that may go may go for ever, until a pin comes in, and what is asked after a prune is empty.
//!
//! Under another policy the promise begins anew with the points that are there: a shorter one gives up the rest at the next
//! prune, a longer one brings nothing back.

use std::collections::VecDeque;
use std::time::Duration;

use farside_region::{Slot, VolumeId, mutation};
use serde::{Deserialize, Serialize};

use crate::record::PrunePolicy;
use crate::state::{Point, State};
use crate::stored::Stored;

/// How many points a volume keeps, and for how long at least.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The newest so many non-degraded points of every volume stay, whatever their age. 0 counts as 1: there is always a last
    /// good point.
    pub keep: u32,
    /// Points younger than this stay, in milliseconds. 0 keeps by number and grid only.
    pub span_ms: u64,
    /// And of older ones so many.
    pub grid: Grid,
}

impl Policy {
    /// The policy of what somebody said: so many, all that are younger, and of older ones by [`Grid::of`] these rules.
    ///
    /// # Panics
    /// When they are not the rules of a grid.
    pub fn of(keep: u32, span: Duration, rules: impl IntoIterator<Item = (Duration, Duration)>) -> Self {
        Self { keep, span_ms: ms(span), grid: Grid::of(rules) }
    }

    /// By number and age alone.
    pub const fn without_grid(keep: u32, span_ms: u64) -> Self {
        Self { keep, span_ms, grid: Grid(Vec::new()) }
    }

    /// What keeps all that either of the two keeps.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self { keep: self.keep.max(other.keep), span_ms: self.span_ms.max(other.span_ms), grid: self.grid.union(&other.grid) }
    }

    /// The same with what somebody says after this, again and again. † Rules of theirs with which there would be no room for what a gateway keeps beside are
    /// left out, all of them: [`Policy::union`] would leave out the coarsest then, and with these go the oldest points.
    #[must_use]
    pub fn with_what_fits_of(&self, other: &Self) -> Self {
        let both = self.union(other);
        let fits = both.grid.0.len() <= Grid::RULES_UNITED_MAX.max(self.grid.0.len());
        if fits { both } else { Self { grid: self.grid.clone(), ..both } }
    }
}

/// A rule of a grid: of every `every_ms` of ledger time one point, until they are `keep_ms` old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Milliseconds of ledger time in a cell; not 0.
    pub every_ms: u64,
    /// For how long, counted from a cell's end.
    pub keep_ms: u64,
}

impl Rule {
    pub(crate) fn cell(&self, time_ms: u64) -> u64 {
        time_ms / self.every_ms
    }

    /// At what time of the age clock the cell of a point that was cut at `time_ms` is out of the window, as far as that point is concerned.
    pub(crate) fn lapses_at_ms(&self, point: &Point, time_ms: u64) -> u64 {
        let to_the_end_ms = self.every_ms - time_ms % self.every_ms;
        point.age_clock_ms.saturating_add(to_the_end_ms).saturating_add(self.keep_ms)
    }
}

/// The rules of a policy, from the finest to the coarsest; none: no grid.
///
/// Invariant: at most [`Grid::RULES_MAX`], each with a larger `every_ms` than the one before, and none with 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Rule>", into = "Vec<Rule>")]
pub struct Grid(Vec<Rule>);

/// These are not the rules of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rules of a grid become coarser, and there are at most {}", Grid::RULES_MAX)]
pub struct GridError;

// The gateway's, the one before that it holds on to, and the host's together.
const _: () = assert!(3 * Grid::RULES_SAID_MAX <= Grid::RULES_MAX);

impl Grid {
    /// As many as a record may carry: those of two people ([`Grid::RULES_SAID_MAX`]) and some.
    pub const RULES_MAX: usize = 32;
    /// As many as anybody may ask for.
    pub const RULES_SAID_MAX: usize = 8;
    /// As many of a host's as leave room for the gateway's, and for the one before that it holds on to.
    const RULES_UNITED_MAX: usize = Self::RULES_MAX - 2 * Self::RULES_SAID_MAX;

    /// The grid of rules that were checked where somebody said them: of every so long a point, for so long.
    ///
    /// # Panics
    /// When they are not the rules of a grid.
    pub fn of(rules: impl IntoIterator<Item = (Duration, Duration)>) -> Self {
        let rules: Vec<Rule> = rules.into_iter().map(|(every, keep)| Rule { every_ms: ms(every), keep_ms: ms(keep) }).collect();
        rules.try_into().expect("the rules were checked")
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// All rules of both. Rules of `other` that are too many are left out, the coarsest first.
    fn union(&self, other: &Self) -> Self {
        let mut rules = self.0.clone();
        for rule in &other.0 {
            match rules.binary_search_by_key(&rule.every_ms, |r| r.every_ms) {
                Ok(at) => rules[at].keep_ms = rules[at].keep_ms.max(rule.keep_ms),
                Err(at) if rules.len() < Self::RULES_MAX => rules.insert(at, *rule),
                Err(_) => {}
            }
        }
        Self(rules)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl TryFrom<Vec<Rule>> for Grid {
    type Error = GridError;

    fn try_from(rules: Vec<Rule>) -> Result<Self, GridError> {
        let coarser = rules.windows(2).all(|w| w[0].every_ms < w[1].every_ms) && rules.first().is_none_or(|r| r.every_ms > 0);
        if coarser && rules.len() <= Self::RULES_MAX { Ok(Self(rules)) } else { Err(GridError) }
    }
}

impl From<Grid> for Vec<Rule> {
    fn from(grid: Grid) -> Self {
        grid.0
    }
}

impl State {
    /// The points that `policy` lets go at the head, oldest first.
    ///
    /// A point goes only if it has no pin, is as old as the span, no rule of the grid needs it (see the head of this file), and
    /// every member has `keep` newer non-degraded points that hold it. A degraded point may also go when `keep` newer degraded
    /// ones beyond the span hold the member: while a sector stays bad, bad points do not pile up, and the newest good ones stay.
    /// The answer only grows until a pin comes in.
    ///
    /// Costs a few comparisons per member and rule of each point beyond the span, whatever the policy.
    pub fn prunable(&self, policy: &Policy) -> Vec<Slot> {
        let measure = Measure::aged(self, policy);
        // The clocks never run back, so the old enough points come first.
        let old = self.points().values().take_while(|p| measure.is_aged(p));
        old.filter(|p| measure.may_go(p)).map(|p| p.slot).collect()
    }

    /// What the age clock says when a policy lets a retained point of a volume go, as far as it can be told by now: `u64::MAX` while it has a
    /// pin. Of those that are kept only because there are not enough newer ones nobody knows.
    pub fn kept_until_ms(&self, policy: &Policy, volume: VolumeId, point: Slot) -> u64 {
        let (Some(point), Some(held)) = (self.points().get(&point), self.held_by(volume)) else { return 0 };
        match point.pins.is_empty() {
            true => {
                let stands = Measure::aged(self, policy).stands_until_ms(point, held);
                let among_applications = self.stands_among_kin_until_ms(policy, volume, point);
                point.age_clock_ms.saturating_add(policy.span_ms).max(stands).max(among_applications)
            }
            false => u64::MAX,
        }
    }

    /// What a prune's policy says of this state's points.
    pub(crate) fn measure<'a>(&'a self, policy: &'a PrunePolicy) -> Measure<'a> {
        match policy {
            PrunePolicy::LedgerTime { keep, span_ms } => {
                Measure { state: self, by_age_clock: false, keep: *keep, span_ms: *span_ms, rules: &[] }
            }
            PrunePolicy::Aged(policy) => Measure::aged(self, policy),
        }
    }
}

/// A policy, held against a state.
pub(crate) struct Measure<'a> {
    state: &'a State,
    by_age_clock: bool,
    keep: u32,
    span_ms: u64,
    rules: &'a [Rule],
}

impl<'a> Measure<'a> {
    fn aged(state: &'a State, policy: &'a Policy) -> Self {
        Self { state, by_age_clock: true, keep: policy.keep, span_ms: policy.span_ms, rules: policy.grid.rules() }
    }

    /// Whether the policy lets this one point go.
    pub(crate) fn lets_go_of(&self, point: Slot) -> bool {
        self.state.points().get(&point).is_some_and(|p| self.is_aged(p) && self.may_go(p))
    }

    fn is_aged(&self, point: &Point) -> bool {
        let (now_ms, then_ms) = match self.by_age_clock {
            true => (self.state.age_clock_ms(), point.age_clock_ms),
            false => (self.state.time_ms(), point.time_ms),
        };
        now_ms.saturating_sub(then_ms) >= self.span_ms
    }

    fn may_go(&self, point: &Point) -> bool {
        point.pins.is_empty()
            && point.members.iter().all(|member| {
                let Some(held) = self.state.held_by(member.key.volume) else { return false };
                self.has_enough_without(point, held) && !self.stands_for_a_cell(point, held)
            })
    }

    /// Whether newer points hold a member often enough.
    fn has_enough_without(&self, point: &Point, held: &HeldBy) -> bool {
        let keep = self.keep.max(1) as usize;
        let aged = |slot: &Slot| self.state.points().get(slot).is_some_and(|p| self.is_aged(p));
        let mut good = held.good_above(point.slot);
        if mutation::on("L5 degraded points count for K") {
            good += held.degraded_above(point.slot).count();
        }
        if mutation::on("L5 K counts per group") {
            good = self.state.points().range(point.slot.next()..).filter(|(_, newer)| !newer.degraded).count();
        }
        good >= keep || (point.degraded && held.degraded_above(point.slot).take_while(aged).nth(keep - 1).is_some())
    }

    /// Whether some rule needs this point for a member: it is the first sound one of a cell or, where there is none, the first.
    /// Points come in the order of their time, so its neighbours tell.
    fn stands_for_a_cell(&self, point: &Point, held: &HeldBy) -> bool {
        let now_ms = self.state.age_clock_ms();
        let mut rules = self.rules.iter().filter(|rule| now_ms < rule.lapses_at_ms(point, point.time_ms)).peekable();
        if rules.peek().is_none() {
            return false;
        }
        let better = self.better_of_cells(point, held);
        rules.any(|rule| better.iter().flatten().all(|time_ms| rule.cell(*time_ms) != rule.cell(point.time_ms)))
    }

    /// Up to when, by the age clock, some rule needs it for a member.
    fn stands_until_ms(&self, point: &Point, held: &HeldBy) -> u64 {
        let better = self.better_of_cells(point, held);
        let stands = |rule: &&Rule| better.iter().flatten().all(|time_ms| rule.cell(*time_ms) != rule.cell(point.time_ms));
        self.rules.iter().filter(stands).map(|rule| rule.lapses_at_ms(point, point.time_ms)).max().unwrap_or(0)
    }

    /// The times of those that would stand for a cell before this point, if it were theirs, too.
    fn better_of_cells(&self, point: &Point, held: &HeldBy) -> [Option<u64>; 3] {
        let bad = point.degraded || mutation::on("L5 a degraded point stands for a cell with sound ones");
        let before = held.good_below(point.slot);
        let (after, bad_before) = match bad {
            true => (held.good_after(point.slot), held.degraded_below(point.slot)),
            false => (None, None),
        };
        [before, after, bad_before].map(|slot| slot.and_then(|slot| Some(self.state.points().get(&slot)?.time_ms)))
    }
}

/// The retained points that hold a volume, ascending. Derived from the points; kept beside them, so that a policy need not walk
/// them all for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldBy {
    good: VecDeque<Slot>,
    degraded: VecDeque<Slot>,
}

impl Stored for HeldBy {
    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(Self { good: VecDeque::read(from)?, degraded: VecDeque::read(from)? })
    }
}

impl HeldBy {
    /// The newest point of them.
    pub(crate) fn newest(&self) -> Option<Slot> {
        self.good.back().max(self.degraded.back()).copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.good.is_empty() && self.degraded.is_empty()
    }

    /// Whether that point is one of them.
    pub(crate) fn holds(&self, slot: Slot) -> bool {
        self.good.binary_search(&slot).is_ok() || self.degraded.binary_search(&slot).is_ok()
    }

    /// The newest of them before that slot.
    pub(crate) fn before(&self, slot: Slot) -> Option<Slot> {
        self.good_below(slot).max(self.degraded_below(slot))
    }

    /// All of them, ascending.
    pub(crate) fn all(&self) -> Vec<Slot> {
        let mut all: Vec<Slot> = self.good.iter().chain(&self.degraded).copied().collect();
        all.sort_unstable();
        all
    }

    /// A point came in: the newest.
    pub(crate) fn add(&mut self, slot: Slot, degraded: bool) {
        if degraded { self.degraded.push_back(slot) } else { self.good.push_back(slot) }
    }

    /// A point went.
    pub(crate) fn remove(&mut self, slot: Slot) {
        for slots in [&mut self.good, &mut self.degraded] {
            if let Ok(at) = slots.binary_search(&slot) {
                slots.remove(at);
            }
        }
    }

    fn good_above(&self, slot: Slot) -> usize {
        self.good.len() - self.good.partition_point(|s| *s <= slot)
    }

    /// The newest good one before this.
    fn good_below(&self, slot: Slot) -> Option<Slot> {
        self.good.partition_point(|s| *s < slot).checked_sub(1).map(|at| self.good[at])
    }

    /// The first good one after this.
    fn good_after(&self, slot: Slot) -> Option<Slot> {
        self.good.get(self.good.partition_point(|s| *s <= slot)).copied()
    }

    /// The newest degraded one before this.
    fn degraded_below(&self, slot: Slot) -> Option<Slot> {
        self.degraded.partition_point(|s| *s < slot).checked_sub(1).map(|at| self.degraded[at])
    }

    fn degraded_above(&self, slot: Slot) -> impl Iterator<Item = Slot> + '_ {
        self.degraded.range(self.degraded.partition_point(|s| *s <= slot)..).copied()
    }
}
