//! A source's part in the cuts of a cohort. It stands beside [`Source`](crate::source::Source), which has a wish for each.
//!
//! ```text
//! Idle ─prepare─► Resting ─may hold again─► Waiting ─all could be cut─► Ready ─hold─► Held ─cut─► Cutting ─switched─► Cut ─over─► Idle
//!                    └──────────────┴──────────┴───────────────┴────────────┴────────────┴── given up: no answer in time, connection gone, over(none)
//! ```
//!
//! Invariants:
//! - It says that it was held only if the hold that it began *for this cut* stood until after the switch.
//! - A point is called one of a cohort only if whoever conducts said so over the connection on which the cut was asked for.
//! - Whatever ends it, the hold is ended, the wish is given up, and a cut that was taken is told what it is.
//! - Writes are held no longer than the host allows, and for a fifth of the time at most, whatever whoever conducts asks for.
//! - † It is not ready before it could hold at once. Were that found out when it is to hold, then the others would have begun to, and could not
//!   when this one can: two hosts that may hold a little apart would refuse each other's cuts in turn, for ever.

use farside_ledger::CohortCut;
use farside_region::{EpochId, Name, mutation};
use farside_wire::{CohortAsk, CohortSay};

use super::conductor::CutId;
use crate::source::{Nanos, SECOND};

/// From the beginning of a hold to that of the next, in times of what it may last. By then the timer is done with it.
const HOLDS_APART: Nanos = 5;
/// A cut that would have to wait longer for that is refused: whoever conducts would give it up with no better word.
const REST_MAX: Nanos = 4 * SECOND;

/// How long a member waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberLimits {
    /// To be ready, and to hear what follows; longer than whoever conducts waits.
    pub patience: Nanos,
    /// From the switch to its being over. No later cut ends meanwhile.
    pub over: Nanos,
}

impl Default for MemberLimits {
    fn default() -> Self {
        Self { patience: 8 * SECOND, over: 10 * SECOND }
    }
}

/// What happened. `H`: a hold, as the driver knows it.
#[derive(Clone, Debug)]
pub enum MemberEvent<H> {
    /// The receiver asks for something. `wish`: a fresh number, if it takes a wish.
    Asked {
        /// Over which connection.
        connection: u64,
        /// What.
        ask: CohortAsk,
        /// A number that no wish had.
        wish: u64,
        /// For so long at most the host lets its writes be held, in microseconds; `None`: not at all.
        hold_us_max: Option<u32>,
    },
    /// A connection is over.
    Ended {
        /// Which.
        connection: u64,
    },
    /// [`Action::CanCut`](crate::source::Action::CanCut): all volumes can be cut now.
    CanCut {
        /// Of which wish.
        wish: u64,
    },
    /// What came of [`MemberAction::Hold`]; `None`: it is held already, or cannot be.
    Holds {
        /// The hold.
        hold: Option<H>,
    },
    /// [`Action::Resume`](crate::source::Action::Resume), after the hold was ended.
    Switched {
        /// What was cut, if anything was.
        epoch: Option<EpochId>,
        /// The hold stood until it was ended.
        lasted: bool,
        /// For so long, in microseconds.
        held_us: u32,
    },
    /// The wish is over before anything was cut, or what was cut is no point.
    Dropped {
        /// Its wish.
        wish: u64,
        /// Why.
        why: String,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberAction<H> {
    /// Answer.
    Say {
        /// Over which connection.
        connection: u64,
        /// What.
        say: CohortSay,
    },
    /// [`Event::Wish`](crate::source::Event::Wish) around [`Around::Cohort`](crate::source::Around::Cohort).
    Wish {
        /// Its number.
        wish: u64,
        /// Which cut.
        cut: CohortCut,
        /// Of which cohort.
        cohort: Name,
    },
    /// [`Event::ForgetWish`](crate::source::Event::ForgetWish).
    Forget {
        /// Its number.
        wish: u64,
    },
    /// Hold the group, and end that by yourself after so long; then [`MemberEvent::Holds`].
    Hold {
        /// In microseconds.
        for_us: u32,
    },
    /// [`Event::Quiesced`](crate::source::Event::Quiesced): cut now, or give up.
    Quiesced {
        /// Its wish.
        wish: u64,
        /// Why not.
        result: Result<(), String>,
    },
    /// End the hold.
    LetGo {
        /// Which.
        hold: H,
    },
    /// [`Event::Resumed`](crate::source::Event::Resumed): what the cut is.
    Tell {
        /// Which epoch.
        epoch: EpochId,
        /// `Ok`: one with those of the other groups.
        result: Result<(), String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step<H> {
    /// Nothing was asked of the source yet.
    Resting,
    Waiting,
    Ready,
    Holding,
    Held(H),
    Cutting(H),
    Cut(EpochId),
}

#[derive(Clone, Debug)]
struct Part<H> {
    connection: u64,
    cut: CohortCut,
    cohort: Name,
    wish: u64,
    step: Step<H>,
    until: Nanos,
}

/// One group's part in the cuts of its cohort.
#[derive(Debug)]
pub struct CohortMember<H> {
    limits: MemberLimits,
    part: Option<Part<H>>,
    /// No hold begins before.
    next_hold: Nanos,
}

impl<H> Default for CohortMember<H> {
    fn default() -> Self {
        Self::new(MemberLimits::default())
    }
}

impl<H> CohortMember<H> {
    /// One that was asked for nothing yet.
    pub fn new(limits: MemberLimits) -> Self {
        Self { limits, part: None, next_hold: 0 }
    }
}

impl<H: Copy> CohortMember<H> {
    /// Takes one event; appends what is to be done, in order.
    pub fn step(&mut self, now: Nanos, event: MemberEvent<H>, out: &mut Vec<MemberAction<H>>) {
        match event {
            MemberEvent::Asked { connection, ask: CohortAsk::Prepare { cut, cohort }, wish, .. } => {
                self.prepare(now, connection, (cut, cohort), wish, out);
            }
            MemberEvent::Asked { connection, ask, hold_us_max, .. } => self.asked(now, connection, ask, hold_us_max, out),
            MemberEvent::Ended { connection } if self.is_over(connection) => {
                self.give_up("the connection to the receiver ended", false, out);
            }
            MemberEvent::CanCut { wish } if self.is_at(wish, |step| matches!(step, Step::Waiting)) => {
                self.reach(now, Step::Ready, self.limits.patience, |cut| CohortSay::Ready { cut }, out);
            }
            // † It was given up meanwhile. Whoever is not answered begins no cut any more.
            MemberEvent::CanCut { wish } if !self.has_wish(wish) => {
                out.push(MemberAction::Quiesced { wish, result: Err("it was given up".to_owned()) });
            }
            MemberEvent::Holds { hold } if self.part.as_ref().is_some_and(|part| matches!(part.step, Step::Holding)) => {
                match hold {
                    Some(hold) => self.reach(now, Step::Held(hold), self.limits.patience, |cut| CohortSay::Held { cut }, out),
                    None => self.cannot_hold(out),
                }
            }
            // Nobody waits for it any more.
            MemberEvent::Holds { hold: Some(hold) } => out.push(MemberAction::LetGo { hold }),
            MemberEvent::Switched { epoch, lasted, held_us } => self.switched(now, epoch, lasted, held_us, out),
            MemberEvent::Dropped { wish, why } if self.is_at(wish, |_| true) => self.dropped(&why, out),
            MemberEvent::Tick if self.part.as_ref().is_some_and(|part| now >= part.until) => {
                self.give_up("it was not over in time", true, out);
            }
            MemberEvent::Tick if self.rests(now) == 0 => self.wish(out),
            MemberEvent::Ended { .. }
            | MemberEvent::CanCut { .. }
            | MemberEvent::Holds { .. }
            | MemberEvent::Dropped { .. }
            | MemberEvent::Tick => {}
        }
    }

    /// Whether a wish is this one's.
    pub fn has_wish(&self, wish: u64) -> bool {
        self.is_at(wish, |_| true)
    }

    /// The hold that is to be ended as soon as the switch that was asked for is over.
    pub fn cutting(&self) -> Option<H> {
        match self.part.as_ref()?.step {
            Step::Cutting(hold) => Some(hold),
            Step::Resting | Step::Waiting | Step::Ready | Step::Holding | Step::Held(_) | Step::Cut(_) => None,
        }
    }

    /// When it goes on, or gives up, by itself.
    pub fn due(&self) -> Option<Nanos> {
        self.part
            .as_ref()
            .map(|part| if matches!(part.step, Step::Resting) { self.next_hold.min(part.until) } else { part.until })
    }

    fn is_over(&self, connection: u64) -> bool {
        self.part.as_ref().is_some_and(|part| part.connection == connection)
    }

    fn is_at(&self, wish: u64, step: impl FnOnce(&Step<H>) -> bool) -> bool {
        self.part.as_ref().is_some_and(|part| part.wish == wish && step(&part.step))
    }

    fn prepare(
        &mut self,
        now: Nanos,
        connection: u64,
        (cut, cohort): (CohortCut, Name),
        wish: u64,
        out: &mut Vec<MemberAction<H>>,
    ) {
        // Who conducts has another one in mind: perhaps it died meanwhile.
        self.give_up("another cut was begun", false, out);
        let until = now.saturating_add(self.limits.patience);
        self.part = Some(Part { connection, cut, cohort, wish, step: Step::Resting, until });
        let rest = self.rests(now);
        if rest == 0 || mutation::on("a host says that it is ready before it may hold again") {
            self.wish(out);
        } else if rest > REST_MAX {
            let why = format!("its writes were held a moment ago: it can be cut again in {:.1} s", rest as f64 / 1e9);
            self.give_up(&why, true, out);
        }
    }

    /// How long it is until a hold may begin.
    fn rests(&self, now: Nanos) -> Nanos {
        if mutation::on("holds follow each other at once") { 0 } else { self.next_hold.saturating_sub(now) }
    }

    /// Asks the source, if nothing was asked of it yet.
    fn wish(&mut self, out: &mut Vec<MemberAction<H>>) {
        let Some(part) = self.part.as_mut().filter(|part| matches!(part.step, Step::Resting)) else { return };
        part.step = Step::Waiting;
        out.push(MemberAction::Wish { wish: part.wish, cut: part.cut, cohort: part.cohort.clone() });
    }

    fn asked(&mut self, now: Nanos, connection: u64, ask: CohortAsk, hold_us_max: Option<u32>, out: &mut Vec<MemberAction<H>>) {
        let Some(part) = self.part.as_mut().filter(|part| part.connection == connection) else { return };
        match (ask, part.step) {
            (CohortAsk::Hold { cut, for_us }, Step::Ready) if part.cut.cut == cut => self.hold(now, for_us, hold_us_max, out),
            (CohortAsk::Cut { cut }, Step::Held(hold)) if part.cut.cut == cut => {
                part.step = Step::Cutting(hold);
                out.push(MemberAction::Quiesced { wish: part.wish, result: Ok(()) });
            }
            (CohortAsk::Over { cut, is_one: true }, Step::Cut(epoch)) if part.cut.cut == cut => {
                self.part = None;
                out.push(MemberAction::Tell { epoch, result: Ok(()) });
            }
            (CohortAsk::Over { cut, .. }, _) if part.cut.cut == cut => self.give_up("another group missed it", false, out),
            _ => {}
        }
    }

    /// † Whoever conducts is not trusted to leave time for writes between holds, nor to know for how long they may wait.
    fn hold(&mut self, now: Nanos, asked_us: u32, max_us: Option<u32>, out: &mut Vec<MemberAction<H>>) {
        let Some(max_us) = max_us.filter(|_| self.rests(now) == 0) else { return self.cannot_hold(out) };
        let for_us = if mutation::on("a hold lasts as long as is asked for") { asked_us } else { asked_us.min(max_us) };
        self.next_hold = now.saturating_add(Nanos::from(for_us) * 1_000 * HOLDS_APART);
        if let Some(part) = &mut self.part {
            part.step = Step::Holding;
            out.push(MemberAction::Hold { for_us });
        }
    }

    fn cannot_hold(&mut self, out: &mut Vec<MemberAction<H>>) {
        self.give_up("its writes cannot be held, or not so soon after the last time", true, out);
    }

    fn reach(
        &mut self,
        now: Nanos,
        step: Step<H>,
        patience: Nanos,
        say: impl FnOnce(CutId) -> CohortSay,
        out: &mut Vec<MemberAction<H>>,
    ) {
        let Some(part) = &mut self.part else { return };
        (part.step, part.until) = (step, now.saturating_add(patience));
        out.push(MemberAction::Say { connection: part.connection, say: say(part.cut.cut) });
    }

    fn switched(&mut self, now: Nanos, epoch: Option<EpochId>, lasted: bool, held_us: u32, out: &mut Vec<MemberAction<H>>) {
        match (self.part.as_ref().map(|part| part.step), epoch) {
            (Some(Step::Cutting(_)), Some(epoch)) => {
                let was_held = lasted || mutation::on("a hold that ran out is said to have stood");
                self.reach(now, Step::Cut(epoch), self.limits.over, |cut| CohortSay::HasCut { cut, was_held, held_us }, out);
            }
            (Some(Step::Cutting(_)), None) => self.give_up("it could not be cut when all were held", true, out),
            // It was given up before.
            (_, Some(epoch)) => out.push(MemberAction::Tell { epoch, result: Err("it was given up".to_owned()) }),
            (_, None) => {}
        }
    }

    /// By its owner.
    fn dropped(&mut self, why: &str, out: &mut Vec<MemberAction<H>>) {
        let Some(part) = self.part.take() else { return };
        if let Step::Held(hold) | Step::Cutting(hold) = part.step {
            out.push(MemberAction::LetGo { hold });
        }
        out.push(MemberAction::Say {
            connection: part.connection,
            say: CohortSay::Not { cut: part.cut.cut, why: why.to_owned() },
        });
    }

    fn give_up(&mut self, why: &str, says: bool, out: &mut Vec<MemberAction<H>>) {
        let Some(Part { connection, cut: CohortCut { cut, .. }, wish, step, .. }) = self.part.take() else { return };
        let given_up = || MemberAction::Quiesced { wish, result: Err(why.to_owned()) };
        match step {
            Step::Resting => {}
            Step::Waiting => out.push(MemberAction::Forget { wish }),
            Step::Ready | Step::Holding => out.push(given_up()),
            Step::Held(hold) => out.extend([MemberAction::LetGo { hold }, given_up()]),
            // † It may be switching at this very moment: what comes of that is told when it comes.
            Step::Cutting(hold) => out.push(MemberAction::LetGo { hold }),
            Step::Cut(epoch) => {
                let is_one = mutation::on("a cut of which nothing more is heard is one");
                out.push(MemberAction::Tell { epoch, result: if is_one { Ok(()) } else { Err(why.to_owned()) } });
            }
        }
        if says {
            out.push(MemberAction::Say { connection, say: CohortSay::Not { cut, why: why.to_owned() } });
        }
    }
}
