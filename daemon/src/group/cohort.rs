//! The group's part in cuts together with groups of other hosts: what [`CohortMember`] decides is carried out here.
//!
//! Invariant: a hold is begun only with its end in the hands of the timer, and is ended here in the same step as the switch.

use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_control::source::CohortStatus;
use farside_region::EpochId;
use farside_replication::cohort::{CohortMember, MemberAction, MemberEvent};
use farside_replication::source::{Around, Event, Wish};
use farside_shim::HoldId;
use farside_transport::Backoff;
use farside_wire::{CohortAsk, Features};
use tracing::{debug, info, warn};

use super::Control;
use crate::cohort::{CohortLink, HoldTimer};

/// Pauses between attempts to have the connection.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[derive(Debug)]
pub(super) struct Cohort {
    member: CohortMember<HoldId>,
    link: Option<CohortLink>,
    is_up: bool,
    next_try: Instant,
    backoff: Backoff,
    /// Why there is no connection.
    why: Option<String>,
    timer: Option<HoldTimer>,
    /// When the hold began that stands.
    held_ns: u64,
    name: Option<String>,
    cuts: u64,
    missed: u64,
    held_us_max: u32,
}

impl Default for Cohort {
    fn default() -> Self {
        Self {
            member: CohortMember::default(),
            link: None,
            is_up: false,
            next_try: Instant::now(),
            backoff: Backoff::new(AGAIN.0, AGAIN.1),
            why: None,
            timer: None,
            held_ns: 0,
            name: None,
            cuts: 0,
            missed: 0,
            held_us_max: 0,
        }
    }
}

impl Control {
    /// Whether there is to be a connection, and what is late.
    pub(super) fn look_after_cohort(&mut self, now: Instant) {
        let is_understood = self.link.is_some() && self.source.features().has(Features::COHORTS);
        // † Who stands in for this host has its place, and so has the host that this one is a copy of: they would take it from each other, in turns.
        // Nothing is missed by it: a group with a volume that is refused cannot be cut as a whole.
        let is_refused = self.source.is_refused();
        let is_wanted = self.config.cohort_hold.is_some() && !self.stopping && is_understood && !is_refused;
        match (&self.cohort.link, is_wanted) {
            (Some(link), false) => {
                let number = link.number;
                let why = if is_refused { "the receiver does not take a volume of this group" } else { "it is not wanted now" };
                self.cohort_ended(number, why.to_owned());
            }
            (None, true) if now >= self.cohort.next_try => self.join(),
            _ => {}
        }
        if self.cohort.member.due().is_some_and(|due| monotonic_ns() >= due) {
            self.cohort_step(MemberEvent::Tick);
            self.carry_out();
        }
    }

    fn join(&mut self) {
        if self.cohort.timer.is_none() {
            match HoldTimer::start(self.shim.clone()) {
                Ok(timer) => self.cohort.timer = Some(timer),
                Err(error) => {
                    self.cohort.why = Some(format!("no thread can be started that would end a hold: {error}"));
                    self.cohort.next_try = Instant::now() + AGAIN.1;
                    return;
                }
            }
        }
        let names = (self.around.source.clone(), self.name.clone(), self.instance);
        self.cohort.link = Some(CohortLink::start(&self.around.links, self.dial.clone(), names, self.inbox.clone()));
    }

    pub(super) fn cohort_is_up(&mut self, number: u64) {
        if self.cohort.link.as_ref().is_some_and(|link| link.number == number) {
            self.cohort.backoff.reset();
            (self.cohort.is_up, self.cohort.why) = (true, None);
        }
    }

    pub(super) fn cohort_ended(&mut self, number: u64, why: String) {
        if self.cohort.link.take_if(|link| link.number == number).is_none() {
            return;
        }
        debug!(group = %self.name, %why, "the connection of its cohort ended");
        (self.cohort.is_up, self.cohort.why) = (false, Some(why));
        self.cohort.next_try = Instant::now() + self.cohort.backoff.next(monotonic_ns());
        self.cohort_step(MemberEvent::Ended { connection: number });
        self.carry_out();
    }

    pub(super) fn cohort_asks(&mut self, number: u64, ask: CohortAsk) {
        if self.cohort.link.as_ref().is_none_or(|link| link.number != number) {
            return;
        }
        let wish = self.quiet.next_wish();
        let hold_us_max = self.config.cohort_hold.map(|hold| u32::try_from(hold.as_micros()).unwrap_or(u32::MAX));
        self.cohort_step(MemberEvent::Asked { connection: number, ask, wish, hold_us_max });
        self.carry_out();
    }

    /// All volumes can be cut for a wish of a cohort.
    pub(super) fn can_cut(&mut self, wish: u64) {
        self.cohort_step(MemberEvent::CanCut { wish });
    }

    /// After a switch, or none: nobody is held any longer. False: it was not for a cohort.
    pub(super) fn switched_for_cohort(&mut self, epoch: Option<EpochId>) -> bool {
        let Some(hold) = self.cohort.member.cutting() else { return false };
        let lasted = self.shim.let_go(hold);
        let held_us = u32::try_from(monotonic_ns().saturating_sub(self.cohort.held_ns) / 1000).unwrap_or(u32::MAX);
        self.cohort.held_us_max = self.cohort.held_us_max.max(held_us);
        self.cohort_step(MemberEvent::Switched { epoch, lasted, held_us });
        true
    }

    /// A wish is over. False: it was nobody's of a cohort.
    pub(super) fn cohort_wish_dropped(&mut self, wish: u64, why: &str) -> bool {
        let is_ours = self.cohort.member.has_wish(wish);
        if is_ours {
            self.cohort_step(MemberEvent::Dropped { wish, why: why.to_owned() });
        }
        is_ours
    }

    fn cohort_step(&mut self, event: MemberEvent<HoldId>) {
        let mut actions = Vec::new();
        self.cohort.member.step(monotonic_ns(), event, &mut actions);
        actions.into_iter().for_each(|action| self.cohort_act(action));
    }

    fn cohort_act(&mut self, action: MemberAction<HoldId>) {
        match action {
            MemberAction::Say { connection, say } => {
                if let Some(link) = self.cohort.link.as_ref().filter(|link| link.number == connection) {
                    link.say(say);
                }
            }
            MemberAction::Wish { wish, cut, cohort } => {
                self.cohort.name = Some(cohort.to_string());
                self.say_what_is_lacking();
                self.feed(Event::Wish(Wish { id: wish, title: String::new(), around: Around::Cohort(cut, cohort) }));
            }
            MemberAction::Forget { wish } => self.feed(Event::ForgetWish { wish }),
            MemberAction::Hold { for_us } => {
                let hold = self.hold(Duration::from_micros(u64::from(for_us)));
                self.cohort_step(MemberEvent::Holds { hold });
            }
            MemberAction::Quiesced { wish, result } => self.feed(Event::Quiesced { wish, result }),
            MemberAction::LetGo { hold } => _ = self.shim.let_go(hold),
            MemberAction::Tell { epoch, result } => {
                match &result {
                    Ok(()) => self.cohort.cuts += 1,
                    Err(why) => {
                        self.cohort.missed += 1;
                        info!(group = %self.name, %epoch, %why, "a cut is no one of its cohort: its point is an ordinary one");
                    }
                }
                self.feed(Event::Resumed { epoch, result: result.map(|()| String::new()) });
            }
        }
    }

    fn hold(&mut self, length: Duration) -> Option<HoldId> {
        let timer = self.cohort.timer.as_ref()?;
        let until = Instant::now() + length;
        // Counted from before it begins.
        self.cohort.held_ns = monotonic_ns();
        let hold = self.shim.hold()?;
        // † Nobody would end it: it is none.
        if !timer.ends(hold, until) {
            warn!(group = %self.name, "the timer of holds has ended: the group takes no part in cuts of its cohort");
            self.cohort.timer = None;
            self.shim.let_go(hold);
            return None;
        }
        Some(hold)
    }

    pub(crate) fn cohort_status(&self) -> Option<CohortStatus> {
        let hold = self.config.cohort_hold?;
        Some(CohortStatus {
            name: self.cohort.name.clone(),
            hold_max_us: u64::try_from(hold.as_micros()).unwrap_or(u64::MAX),
            connected: self.cohort.is_up,
            why_not: self.cohort.why.clone().filter(|_| !self.cohort.is_up),
            cuts: self.cohort.cuts,
            missed: self.cohort.missed,
            held_us_max: u64::from(self.cohort.held_us_max),
        })
    }
}
