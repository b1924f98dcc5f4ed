//! Conducts the cuts of a *cohort*: groups of several hosts that are cut as one.
//!
//! Sans-I/O as the rest: [`Conductor::step`] takes what happened and says what is to be told to whom.
//!
//! ```text
//! Idle ─due─► Preparing ─all ready─► Holding ─all held─► Cutting ─all have cut─► Idle
//!                 │                     │                   │
//!                 └── one says no, is gone, is late: over(none) to all that were asked, it is named, a pause that doubles
//! ```
//!
//! Invariants:
//! - Nobody is told to cut before all have said, of this cut, that they are held.
//! - A cut is called one only if every group has said that it was cut while its hold stood. What is said of another cut, by a group that is not
//!   of this one, over another connection than the one that was asked, or twice, counts for nothing.
//! - Whoever was asked to prepare is told how it ended, unless he is gone; a source whose connection ends takes it for none.
//! - Nothing of it is kept: who conducts may die at any moment, and holds end by themselves.

use std::collections::BTreeMap;

use farside_ledger::CohortCut;
use farside_region::{Name, mutation};
use farside_wire::{CohortAsk, CohortSay};

use crate::source::{Nanos, SECOND};

/// Which cut, as it is drawn.
pub type CutId = [u8; 16];

/// How a cohort is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CohortConfig<G> {
    /// What people call it.
    pub name: Name,
    /// The groups, each once; at least two.
    pub groups: Vec<G>,
    /// So long from the beginning of a cut to that of the next.
    pub every: Nanos,
    /// Writes are held so long at most, in microseconds.
    pub hold_us: u32,
}

/// All time limits of a conductor but the hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CohortLimits {
    /// From the first question until all are ready: they begin no other cut meanwhile.
    pub prepare: Nanos,
    /// For an answer when all are there to give it at once.
    pub answer: Nanos,
    /// The pause after a cut that failed doubles up to so many times `every`.
    pub pause_max: u32,
}

impl Default for CohortLimits {
    fn default() -> Self {
        Self { prepare: 5 * SECOND, answer: 2 * SECOND, pause_max: 16 }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum CohortEvent<G> {
    /// A group's connection stands; connections are numbered upwards.
    Joined {
        /// Whose.
        group: G,
        /// Which.
        connection: u64,
    },
    /// It ended.
    Left {
        /// Whose.
        group: G,
        /// Which.
        connection: u64,
    },
    /// A source says something.
    Said {
        /// Of which group.
        group: G,
        /// Over which connection.
        connection: u64,
        /// What.
        say: CohortSay,
    },
    /// Time has passed. `cut`: a fresh random id, and the wall clock, for a cut that may be begun now.
    Tick {
        /// Its id.
        cut: CutId,
        /// Milliseconds since 1970.
        wall_ms: i64,
    },
    /// One is wanted now.
    Wanted,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CohortAction<G> {
    /// Tell a group's source.
    Ask {
        /// Which group.
        group: G,
        /// Over which connection.
        connection: u64,
        /// What.
        ask: CohortAsk,
    },
    /// A cut is over.
    Done(CohortOutcome<G>),
}

/// What became of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CohortOutcome<G> {
    /// Which.
    pub cut: CohortCut,
    /// How long writes were held at most, in microseconds, if it is one; otherwise who missed it, if anybody did, and why it is none.
    pub result: Result<u32, (Option<G>, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Running { cut: CohortCut, step: Step, until: Nanos },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Preparing,
    Holding,
    Cutting,
}

impl Step {
    fn awaited(self) -> &'static str {
        match self {
            Self::Preparing => "was not ready in time: all its volumes must be streaming, and small enough for a cut",
            Self::Holding => "did not hold its writes in time",
            Self::Cutting => "did not say in time that it was cut",
        }
    }
}

/// A group that is asked.
#[derive(Clone, Debug)]
struct Asked {
    connection: u64,
    has_answered: bool,
}

/// Conducts the cuts of one cohort.
#[derive(Debug)]
pub struct Conductor<G> {
    config: CohortConfig<G>,
    limits: CohortLimits,
    /// The newest connection of each group.
    here: BTreeMap<G, u64>,
    stage: Stage,
    asked: BTreeMap<G, Asked>,
    held_us: u32,
    next: Nanos,
    failures: u32,
}

impl<G: Clone + Ord> Conductor<G> {
    /// Of a cohort of which nobody is here yet; its first cut is due at `now`.
    ///
    /// # Panics
    /// With fewer than two groups, or more than 65,535.
    pub fn new(config: CohortConfig<G>, limits: CohortLimits, now: Nanos) -> Self {
        assert!((2..=usize::from(u16::MAX)).contains(&config.groups.len()), "a cohort has at least two groups");
        let (here, asked) = (BTreeMap::new(), BTreeMap::new());
        Self { config, limits, here, stage: Stage::Idle, asked, held_us: 0, next: now, failures: 0 }
    }

    /// Takes one event; appends what is to be done.
    pub fn step(&mut self, now: Nanos, event: CohortEvent<G>, out: &mut Vec<CohortAction<G>>) {
        match event {
            CohortEvent::Joined { group, connection } => self.joined(now, group, connection, out),
            CohortEvent::Left { group, connection } => self.left(now, &group, connection, out),
            CohortEvent::Said { group, connection, say } => self.said(now, &group, connection, say, out),
            CohortEvent::Tick { cut, wall_ms } => self.tick(now, cut, wall_ms, out),
            CohortEvent::Wanted => self.next = self.next.min(now),
        }
    }

    /// It conducts no more: nobody waits for what was under way.
    pub fn end(&mut self, now: Nanos, out: &mut Vec<CohortAction<G>>) {
        self.fail(now, None, "the configuration of the cohort was changed".to_owned(), out);
    }

    /// Groups whose source is not here.
    pub fn absent(&self) -> Vec<G> {
        self.config.groups.iter().filter(|group| !self.here.contains_key(group)).cloned().collect()
    }

    /// Whether a cut is under way.
    pub fn is_busy(&self) -> bool {
        self.stage != Stage::Idle
    }

    /// When something is due if nothing happens.
    pub fn due(&self) -> Nanos {
        match &self.stage {
            Stage::Idle => self.next,
            Stage::Running { until, .. } => *until,
        }
    }

    fn joined(&mut self, now: Nanos, group: G, connection: u64, out: &mut Vec<CohortAction<G>>) {
        if !self.config.groups.contains(&group) || self.here.get(&group).is_some_and(|known| *known >= connection) {
            return;
        }
        // † What the one before was asked, this one was not.
        if let Some(known) = self.here.get(&group).copied() {
            self.left(now, &group, known, out);
        }
        self.here.insert(group, connection);
    }

    fn left(&mut self, now: Nanos, group: &G, connection: u64, out: &mut Vec<CohortAction<G>>) {
        if self.here.get(group) != Some(&connection) {
            return;
        }
        self.here.remove(group);
        if self.asked.remove(group).is_some() {
            self.fail(now, Some(group.clone()), "its connection ended".to_owned(), out);
        }
    }

    fn said(&mut self, now: Nanos, group: &G, connection: u64, say: CohortSay, out: &mut Vec<CohortAction<G>>) {
        let Stage::Running { cut, step, .. } = self.stage else { return };
        let Some(asked) = self.asked.get_mut(group) else { return };
        if say.cut() != cut.cut || asked.connection != connection {
            return;
        }
        match (step, &say) {
            (_, CohortSay::Not { why, .. }) => return self.fail(now, Some(group.clone()), why.clone(), out),
            (Step::Preparing, CohortSay::Ready { .. }) | (Step::Holding, CohortSay::Held { .. }) => {}
            (Step::Cutting, CohortSay::HasCut { was_held: true, held_us, .. }) => self.held_us = self.held_us.max(*held_us),
            (Step::Cutting, CohortSay::HasCut { was_held: false, .. })
                if mutation::on("a cohort forgives a hold that ran out") => {}
            (Step::Cutting, CohortSay::HasCut { was_held: false, .. }) => {
                let why = format!("its hold of {} ms was over before it was cut", f64::from(self.config.hold_us) / 1000.0);
                return self.fail(now, Some(group.clone()), why, out);
            }
            _ => return,
        }
        asked.has_answered = true;
        let is_hasty = step == Step::Holding && mutation::on("a cohort is cut before all of it is held");
        if is_hasty || self.asked.values().all(|asked| asked.has_answered) {
            self.go_on(now, cut, step, out);
        }
    }

    fn go_on(&mut self, now: Nanos, cut: CohortCut, step: Step, out: &mut Vec<CohortAction<G>>) {
        let id = cut.cut;
        let (step, ask) = match step {
            Step::Preparing => (Step::Holding, CohortAsk::Hold { cut: id, for_us: self.config.hold_us }),
            Step::Holding => (Step::Cutting, CohortAsk::Cut { cut: id }),
            Step::Cutting => {
                self.tell_all(&CohortAsk::Over { cut: id, is_one: true }, out);
                self.asked.clear();
                self.stage = Stage::Idle;
                self.failures = 0;
                return out.push(CohortAction::Done(CohortOutcome { cut, result: Ok(self.held_us) }));
            }
        };
        self.stage = Stage::Running { cut, step, until: now.saturating_add(self.limits.answer) };
        self.asked.values_mut().for_each(|asked| asked.has_answered = false);
        self.tell_all(&ask, out);
    }

    fn tick(&mut self, now: Nanos, cut: CutId, wall_ms: i64, out: &mut Vec<CohortAction<G>>) {
        match &self.stage {
            Stage::Running { until, step, .. } if now >= *until => {
                let late = self.asked.iter().find(|(_, asked)| !asked.has_answered).map(|(group, _)| group.clone());
                let why = step.awaited().to_owned();
                self.fail(now, late, why, out);
            }
            Stage::Idle if now >= self.next => self.begin(now, cut, wall_ms, out),
            _ => {}
        }
    }

    fn begin(&mut self, now: Nanos, id: CutId, wall_ms: i64, out: &mut Vec<CohortAction<G>>) {
        let groups = u16::try_from(self.config.groups.len()).expect("checked when it was made");
        let cut = CohortCut { cohort: CohortCut::cohort_id(self.config.name.as_str()), cut: id, groups, wall_ms };
        self.next = now.saturating_add(self.config.every);
        self.held_us = 0;
        if let Some(absent) = self.absent().into_iter().next() {
            // Nobody is disturbed for it.
            return self.missed(
                now,
                cut,
                Some(absent),
                "its host is not connected, or does not let itself be cut with others".to_owned(),
                out,
            );
        }
        self.asked = self
            .here
            .iter()
            .map(|(group, connection)| (group.clone(), Asked { connection: *connection, has_answered: false }))
            .collect();
        self.stage = Stage::Running { cut, step: Step::Preparing, until: now.saturating_add(self.limits.prepare) };
        self.tell_all(&CohortAsk::Prepare { cut, cohort: self.config.name.clone() }, out);
    }

    fn fail(&mut self, now: Nanos, who: Option<G>, why: String, out: &mut Vec<CohortAction<G>>) {
        let Stage::Running { cut, .. } = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        self.tell_all(&CohortAsk::Over { cut: cut.cut, is_one: false }, out);
        self.asked.clear();
        self.missed(now, cut, who, why, out);
    }

    /// A member that keeps missing cuts keeps the others from their own ones for ever less of the time.
    fn missed(&mut self, now: Nanos, cut: CohortCut, who: Option<G>, why: String, out: &mut Vec<CohortAction<G>>) {
        let times = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX).min(self.limits.pause_max.max(1));
        self.failures = self.failures.saturating_add(1);
        self.next = now.saturating_add(self.config.every.saturating_mul(u64::from(times)));
        out.push(CohortAction::Done(CohortOutcome { cut, result: Err((who, why)) }));
    }

    fn tell_all(&self, ask: &CohortAsk, out: &mut Vec<CohortAction<G>>) {
        for (group, asked) in &self.asked {
            out.push(CohortAction::Ask { group: group.clone(), connection: asked.connection, ask: ask.clone() });
        }
    }
}
