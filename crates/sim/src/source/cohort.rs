//! The group's part in cuts together with groups of other hosts: what the product's `CohortMember` decides is carried out here, as the
//! daemon's control thread does.
//!
//! Holds end with the passing of time (`Source::end_holds`), as the daemon's timer ends them: whatever else its threads are at.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use farside_region::EpochId;
use farside_replication::cohort::{CohortMember, MemberAction, MemberEvent, MemberLimits};
use farside_replication::source::{Around, Event, SECOND, Wish};
use farside_shim::{Group, HoldId};
use farside_wire::{CohortAsk, Features};

use super::control::short;
use super::{Item, Source};

const MS: u64 = SECOND / 1000;
/// The pause before another connection, in microseconds.
const AGAIN_US: u64 = 3_000;

pub(super) struct Cohort {
    shim: Arc<Group>,
    member: RefCell<CohortMember<HoldId>>,
    /// The connection that stands.
    line: Cell<Option<u64>>,
    next_try_us: Cell<u64>,
    next_look_us: Cell<u64>,
    last_wish: Cell<u64>,
    held_since_us: Cell<u64>,
    /// Holds that somebody may wait for, and when they end.
    timer: RefCell<Vec<(HoldId, u64)>>,
}

/// What the control loop hears of it.
pub(super) enum Note {
    Asks(u64, CohortAsk),
    Ended(u64),
    Late,
}

impl Cohort {
    pub(super) fn new(shim: Arc<Group>) -> Self {
        Self {
            shim,
            member: RefCell::new(CohortMember::new(MemberLimits { patience: 250 * MS, over: 300 * MS })),
            line: Cell::new(None),
            next_try_us: Cell::new(0),
            next_look_us: Cell::new(0),
            last_wish: Cell::new(0),
            held_since_us: Cell::new(0),
            timer: RefCell::default(),
        }
    }
}

impl Source {
    /// Whether no write may begin now.
    pub fn is_held(&self) -> bool {
        self.cohort.shim.is_held()
    }

    /// The timer of holds: all whose time is over.
    pub fn end_holds(&self) {
        let now = self.world.now_us.get();
        let over: Vec<HoldId> = self.cohort.timer.borrow_mut().extract_if(.., |(_, until)| now >= *until).map(|h| h.0).collect();
        for hold in over {
            if self.cohort.shim.let_go(hold) {
                self.say(|| "a hold runs out".into());
                self.world.met("a hold runs out");
            }
        }
    }

    /// Its connection: had, read, and lost.
    pub(super) async fn cohort_goes_on(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            steps.pause().await;
            steps.until(|| self.cohort_has_news()).await;
            let now = self.world.now_us.get();
            match self.cohort.line.get() {
                Some(line) if !self.cohort_is_wanted() || self.world.lines.borrow().is_lost(line) => {
                    self.world.lines.borrow_mut().hang_up(line);
                    self.cohort.line.set(None);
                    self.cohort.next_try_us.set(now + AGAIN_US);
                    self.inbox.borrow_mut().push_back(Item::Cohort(Note::Ended(line)));
                }
                Some(line) => {
                    let ask = self.world.lines.borrow_mut().take_ask(line);
                    let note = ask.map(|ask| Note::Asks(line, ask));
                    self.inbox.borrow_mut().extend(note.map(Item::Cohort));
                }
                None if self.cohort_may_connect() => {
                    let line = self.world.lines.borrow_mut().connect(self.site.no);
                    self.say(|| format!("connection {line} of its cohort"));
                    self.cohort.line.set(Some(line));
                }
                None => {}
            }
            if self.cohort_is_late() {
                self.cohort.next_look_us.set(now + 2_000);
                self.inbox.borrow_mut().push_back(Item::Cohort(Note::Late));
            }
        }
    }

    fn cohort_is_wanted(&self) -> bool {
        let is_understood = self.conn.get().is_some() && self.core.borrow().features().has(Features::COHORTS);
        is_understood && !self.stopping.get()
    }

    fn cohort_may_connect(&self) -> bool {
        let may = self.world.net.borrow().up && self.world.lines.borrow().is_open;
        self.cohort_is_wanted() && may && self.world.now_us.get() >= self.cohort.next_try_us.get()
    }

    fn cohort_is_late(&self) -> bool {
        let is_due = self.cohort.member.borrow().due().is_some_and(|due| self.world.now_us.get() * 1_000 >= due);
        is_due && self.world.now_us.get() >= self.cohort.next_look_us.get()
    }

    fn cohort_has_news(&self) -> bool {
        if self.cohort_is_late() {
            return true;
        }
        match self.cohort.line.get() {
            Some(line) => {
                let lines = self.world.lines.borrow();
                !self.cohort_is_wanted() || lines.is_lost(line) || (self.world.net.borrow().up && lines.has_ask(line))
            }
            None => self.cohort_may_connect(),
        }
    }

    pub(super) fn hear_of_the_cohort(&self, note: Note) {
        match note {
            Note::Asks(line, ask) => {
                if self.cohort.line.get() != Some(line) {
                    return;
                }
                self.cohort.last_wish.set(self.cohort.last_wish.get() + 1);
                let wish = self.cohort.last_wish.get();
                let hold_us_max = Some(self.world.of_cohort.get().hold_us_max);
                self.cohort_step(MemberEvent::Asked { connection: line, ask, wish, hold_us_max });
            }
            Note::Ended(line) => self.cohort_step(MemberEvent::Ended { connection: line }),
            Note::Late => self.cohort_step(MemberEvent::Tick),
        }
        self.carry_out_fed();
    }

    pub(super) fn can_cut(&self, wish: u64) {
        self.cohort_step(MemberEvent::CanCut { wish });
    }

    /// After a switch, or none: nobody is held any longer.
    pub(super) fn switched_for_cohort(&self, epoch: Option<EpochId>) {
        let hold = self.cohort.member.borrow().cutting();
        // Given up meanwhile: the member says so of what was cut.
        let lasted = hold.is_some_and(|hold| self.cohort.shim.let_go(hold));
        let held_us = self.world.now_us.get().saturating_sub(self.cohort.held_since_us.get());
        let held_us = u32::try_from(held_us).unwrap_or(u32::MAX);
        self.cohort_step(MemberEvent::Switched { epoch, lasted, held_us });
    }

    pub(super) fn cohort_wish_dropped(&self, wish: u64, why: &str) {
        self.cohort_step(MemberEvent::Dropped { wish, why: why.to_owned() });
    }

    fn cohort_step(&self, event: MemberEvent<HoldId>) {
        let is_tick = matches!(event, MemberEvent::Tick);
        if !is_tick {
            self.say(|| format!("member ← {}", short(&event)));
        }
        let mut actions = Vec::new();
        self.cohort.member.borrow_mut().step(self.world.mono_ns(), event, &mut actions);
        if is_tick && actions.iter().any(|action| matches!(action, MemberAction::Wish { .. })) {
            self.world.met("a host rests before its next hold");
        }
        actions.into_iter().for_each(|action| self.cohort_act(action));
    }

    fn cohort_act(&self, action: MemberAction<HoldId>) {
        self.say(|| format!("member → {}", short(&action)));
        match action {
            MemberAction::Say { connection, say } => {
                if self.cohort.line.get() == Some(connection) {
                    self.world.lines.borrow_mut().say(connection, say);
                }
            }
            MemberAction::Wish { wish, cut, cohort } => {
                self.feed(Event::Wish(Wish { id: wish, title: String::new(), around: Around::Cohort(cut, cohort) }));
            }
            MemberAction::Forget { wish } => self.feed(Event::ForgetWish { wish }),
            MemberAction::Hold { for_us } => {
                let hold = self.hold(for_us);
                self.cohort_step(MemberEvent::Holds { hold });
            }
            MemberAction::Quiesced { wish, result } => self.feed(Event::Quiesced { wish, result }),
            MemberAction::LetGo { hold } => _ = self.cohort.shim.let_go(hold),
            MemberAction::Tell { epoch, result } => {
                self.world.met(if result.is_ok() {
                    "a host's cut is one with others"
                } else {
                    "a host's cut is its own after all"
                });
                self.feed(Event::Resumed { epoch, result: result.map(|()| String::new()) });
            }
        }
    }

    fn hold(&self, for_us: u32) -> Option<HoldId> {
        let now = self.world.now_us.get();
        self.cohort.held_since_us.set(now);
        let hold = self.cohort.shim.hold()?;
        self.cohort.timer.borrow_mut().push((hold, now + u64::from(for_us)));
        Some(hold)
    }
}
