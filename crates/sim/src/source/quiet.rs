//! Points that are asked for, and who quiesces applications for them, as the daemon's control thread has it (`daemon/src/group/quiet.rs`):
//! what the product's `Quieting` decides is carried out here. Threads that block are tasks.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use farside_ledger::{Consistency, Label};
use farside_region::EpochId;
use farside_replication::quiet::Quieting;
use farside_replication::source::{Around, Event, PointStatus, Wish};

use super::{Item, Source};
use crate::quiet::{LIMITS, guard};
use crate::world::World;

/// Wishes that wait at once.
const OPEN_MAX: usize = 3;

pub(super) struct Quiet {
    guards: RefCell<Quieting<Told>>,
    /// What is true: the newest attempt.
    attempt: Cell<u64>,
    last_wish: Cell<u64>,
    next_wish_us: Cell<u64>,
    every_us: u64,
    asked: RefCell<BTreeMap<u64, Wish>>,
    /// Nobody waits for these any more.
    forgotten: RefCell<BTreeSet<u64>>,
    /// Attempts whose threads are to begin.
    begun: RefCell<Vec<(u64, Rc<Cell<Cut>>)>>,
    /// A wish came to an application-consistent point since nothing goes wrong any more.
    is_satisfied: Cell<bool>,
    next_look_us: Cell<u64>,
    /// Threads that are at work with guards.
    threads: Rc<Cell<usize>>,
}

/// What the control loop hears of it.
pub(super) enum Note {
    Quiesced(u64, Result<(), String>),
    Resumed(EpochId, Result<String, String>),
    LeftOver(Option<String>),
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    NotKnown,
    Of(EpochId),
    Not,
}

/// The control loop's end of a channel to a thread. Dropped, it says that nothing was cut.
#[derive(Debug)]
struct Told(Rc<Cell<Cut>>);

impl Drop for Told {
    fn drop(&mut self) {
        if self.0.get() == Cut::NotKnown {
            self.0.set(Cut::Not);
        }
    }
}

/// A thread that is at work.
struct Busy(Rc<Cell<usize>>);

impl Busy {
    fn new(threads: &Rc<Cell<usize>>) -> Self {
        threads.set(threads.get() + 1);
        Self(threads.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Quiet {
    pub(super) fn new(world: &World) -> Self {
        let now_us = world.now_us.get();
        let every_us = if world.plan.hooks { world.rng.borrow_mut().pick(&[6_000, 6_000, 25_000, 400_000]) } else { 0 };
        Self {
            guards: RefCell::new(Quieting::new(now_us * 1_000, LIMITS)),
            attempt: Cell::new(0),
            last_wish: Cell::new(0),
            next_wish_us: Cell::new(now_us),
            every_us,
            asked: RefCell::default(),
            forgotten: RefCell::default(),
            begun: RefCell::default(),
            is_satisfied: Cell::new(false),
            next_look_us: Cell::new(0),
            threads: Rc::default(),
        }
    }
}

impl Source {
    pub(super) fn spawn_quiet(self: &Rc<Self>) {
        self.world.applications.borrow_mut().daemon_begins();
        self.world.spawn(self.owner, "wishes", self.clone().wishes());
        self.world.spawn(self.owner, "guards", self.clone().looks_after_guards());
        self.world.spawn(self.owner, "threads", self.clone().begins_threads());
        // What the start of a daemon does by itself.
        self.world.spawn(self.owner, "hooks at the start", self.clone().ends_left(false));
    }

    /// Whether it could look now for what guards left: it serves, and is at work with none.
    pub fn may_look(&self) -> bool {
        let is_at_work = self.quiet.threads.get() > 0 || !self.quiet.begun.borrow().is_empty();
        self.is_serving() && !self.stopping.get() && !self.halted.get() && !is_at_work
    }

    /// Why what was wished for is not over.
    ///
    /// # Errors
    /// Something waits, or is held, or nothing is application-consistent yet.
    pub(super) fn quiet_converged(&self) -> Result<(), String> {
        if !self.world.plan.hooks {
            return Ok(());
        }
        if let Some(wish) = self.quiet.asked.borrow().values().next() {
            return Err(format!("{wish:?} has no end: {:?}", self.core.borrow().wishes()));
        }
        if !self.quiet.is_satisfied.get() {
            return Err("no wish came to an application-consistent point".into());
        }
        self.world.applications.borrow().go_on()
    }

    /// People, and the clock.
    async fn wishes(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            steps.pause().await;
            steps.until(|| self.wants_another()).await;
            let (world, quiet) = (&self.world, &self.quiet);
            let healing = world.healing.get();
            if !healing {
                quiet.is_satisfied.set(false);
                let forgotten = if world.chance(0.05) { quiet.asked.borrow_mut().pop_first() } else { None };
                if let Some((wish, _)) = forgotten {
                    world.met("nobody waits for a wish any more");
                    quiet.forgotten.borrow_mut().insert(wish);
                    self.push(Event::ForgetWish { wish });
                }
            }
            quiet.next_wish_us.set(world.now_us.get() + world.rng.borrow_mut().range(quiet.every_us / 2, quiet.every_us * 2));
            quiet.last_wish.set(quiet.last_wish.get() + 1);
            let id = quiet.last_wish.get();
            let around = if healing || world.chance(0.9) { Around::Hooks } else { Around::Nothing };
            let wish = Wish { id, title: format!("wish {id} of {}", self.owner.0), around };
            quiet.asked.borrow_mut().insert(id, wish.clone());
            self.push(Event::Wish(wish));
        }
    }

    fn wants_another(&self) -> bool {
        let quiet = &self.quiet;
        let open = quiet.asked.borrow().len();
        if self.stopping.get() || self.inbox.borrow().len() > 4 {
            false
        } else if self.world.healing.get() {
            open == 0 && !quiet.is_satisfied.get()
        } else {
            open < OPEN_MAX && self.world.now_us.get() >= quiet.next_wish_us.get()
        }
    }

    /// The routine of the control thread, as far as it is about guards.
    async fn looks_after_guards(self: Rc<Self>) {
        let steps = self.world.steps();
        let now = || self.world.now_us.get();
        loop {
            steps.pause().await;
            steps.until(|| now() >= self.quiet.next_look_us.get() && self.is_due()).await;
            self.quiet.next_look_us.set(now() + 2_000);
            self.inbox.borrow_mut().push_back(Item::Quiet(Note::Late));
        }
    }

    fn is_due(&self) -> bool {
        let is_due = self.world.now_us.get() * 1_000 >= self.quiet.guards.borrow().due();
        is_due && self.inbox.borrow().len() < 4
    }

    pub(super) fn hear_of_quiet(self: &Rc<Self>, note: Note) {
        let now = self.world.now_us.get() * 1_000;
        let is_noted = || self.world.applications.borrow().is_noted();
        let guards = &self.quiet.guards;
        match note {
            Note::Quiesced(attempt, result) => {
                let event = guards.borrow_mut().quiesced(now, attempt, result);
                let newest = self.quiet.attempt.get();
                match event {
                    Some(_) if attempt != newest => {
                        self.world.fail(format!("what comes late of attempt {attempt} is taken for attempt {newest}"));
                    }
                    Some(event) => self.step(event),
                    None => self.world.met("an answer of a guard comes too late"),
                }
            }
            Note::Resumed(epoch, result) => {
                let event = guards.borrow_mut().resumed(now, epoch, result);
                event.into_iter().for_each(|event| self.step(event));
            }
            Note::LeftOver(why) => guards.borrow_mut().looked(now, why, is_noted),
            Note::Late => {
                let overdue = guards.borrow_mut().overdue(now);
                for event in overdue {
                    self.world.met(match event {
                        Event::Quiesced { .. } => "a guard is not waited for any longer",
                        _ => "a post-cut is not waited for any longer",
                    });
                    self.step(event);
                }
                let looks = guards.borrow_mut().looks(now, is_noted);
                if looks {
                    self.world.met("what a guard left is looked for");
                    self.world.spawn(self.owner, "hooks again", self.clone().ends_left(true));
                }
            }
        }
    }

    /// On a thread of its own: has a guard end what others left.
    async fn ends_left(self: Rc<Self>, is_told: bool) {
        let busy = Busy::new(&self.quiet.threads);
        self.world.steps().pause().await;
        let line = guard::resume(&self.world);
        let why = match line.left(&self.world).await {
            Ok(why) => why,
            // As this process, then.
            Err(_) => guard::end_left(&self.world, self.owner).await,
        };
        drop(busy);
        if is_told {
            self.inbox.borrow_mut().push_back(Item::Quiet(Note::LeftOver(why)));
        }
    }

    pub(super) fn quiesce(&self, wish: u64) {
        let what_was_cut = Rc::new(Cell::new(Cut::NotKnown));
        let until = (self.world.now_us.get() + guard::PATIENCE_US) * 1_000;
        let attempt = self.quiet.guards.borrow_mut().begin(wish, until, Told(what_was_cut.clone()));
        self.quiet.attempt.set(attempt);
        self.say(|| format!("attempt {attempt} to quiesce applications, for wish {wish}"));
        self.quiet.begun.borrow_mut().push((attempt, what_was_cut));
    }

    async fn begins_threads(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            let (attempt, what_was_cut) = steps.get(|| self.quiet.begun.borrow_mut().pop()).await;
            let busy = Busy::new(&self.quiet.threads);
            let thread = self.clone().holds(attempt, what_was_cut, busy);
            self.world.spawn(self.owner, format!("hooks{attempt}"), thread);
            steps.pause().await;
        }
    }

    /// The thread of an attempt.
    async fn holds(self: Rc<Self>, attempt: u64, what_was_cut: Rc<Cell<Cut>>, _busy: Busy) {
        let world = &self.world;
        let steps = world.steps();
        let hear = |note: Note| self.inbox.borrow_mut().push_back(Item::Quiet(note));
        steps.pause().await;
        let line = guard::start(world);
        let answer = line.ready(world).await;
        self.stands_still(2 * guard::PATIENCE_US).await;
        if !world.healing.get() && world.chance(0.01) {
            world.met("a thread that quiesces never answers");
            steps.until(|| false).await;
        }
        let is_ready = answer.is_ok();
        hear(Note::Quiesced(attempt, answer));
        if !is_ready {
            return;
        }
        steps.until(|| what_was_cut.get() != Cut::NotKnown).await;
        let cut = what_was_cut.get();
        self.stands_still(100_000).await;
        let outcome = line.end(world, cut != Cut::Not).await;
        if let Cut::Of(epoch) = cut {
            hear(Note::Resumed(epoch, outcome.map(|()| "all".to_owned())));
        }
    }

    /// A thread gets no processor for a while.
    async fn stands_still(&self, most_us: u64) {
        let world = &self.world;
        if !world.healing.get() && world.chance(0.05) {
            let until = world.now_us.get() + world.rng.borrow_mut().range(20_000, most_us);
            world.met("a thread that quiesces stands still");
            world.steps().until(|| world.now_us.get() >= until || world.healing.get()).await;
        }
    }

    /// Whoever is held goes on.
    pub(super) fn resume(&self, epoch: Option<EpochId>) {
        if !self.world.plan.hooks {
            return self.switched_for_cohort(epoch);
        }
        if let Some(epoch) = epoch {
            self.world.applications.borrow_mut().has_cut(epoch);
        } else {
            self.world.met("nothing could be cut when applications were quiet");
        }
        if let Some(told) = self.quiet.guards.borrow_mut().resume(self.world.now_us.get() * 1_000, epoch) {
            told.0.set(epoch.map_or(Cut::Not, Cut::Of));
        }
    }

    pub(super) fn wish_done(&self, wish: u64, point: &PointStatus, label: Option<&Label>) {
        let asked = self.quiet.asked.borrow_mut().remove(&wish);
        let said = self.world.applications.borrow().label(point.position.slot).cloned();
        if self.quiet.forgotten.borrow().contains(&wish) {
            return;
        }
        let Some(wish) = asked else {
            return self.world.fail(format!("wish {wish} is done, and nobody has it"));
        };
        let Some(label) = label.filter(|label| said.as_ref() == Some(*label)) else {
            return self.world.fail(format!("of {wish:?} its asker hears {label:?}, and the ledger says {said:?}"));
        };
        let is_explained = wish.around == Around::Nothing || !label.hooks.is_empty();
        if label.title != wish.title || !is_explained {
            self.world.fail(format!("{wish:?} came to {label:?}"));
        }
        if label.consistency == Consistency::Application {
            self.quiet.is_satisfied.set(self.world.healing.get());
            self.world.met("a wish ends with an application-consistent point");
        }
    }

    pub(super) fn wish_dropped(&self, wish: u64, why: &str) {
        if !self.world.plan.hooks {
            return self.cohort_wish_dropped(wish, why);
        }
        let asked = self.quiet.asked.borrow_mut().remove(&wish);
        if asked.is_some() && !self.stopping.get() {
            self.world.fail(format!("wish {wish} is dropped, and somebody waits for it: {why}"));
        }
    }
}
