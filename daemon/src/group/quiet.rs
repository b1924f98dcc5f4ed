//! Points that are asked for, by people or by the clock, and the hooks that quiesce applications around their cut.
//!
//! Invariant: whoever holds applications has one end of a channel, and this thread the other. It says once what was cut; when it is
//! dropped, because the thread or the process ends, nothing was. For how long he is waited for, and when what he left is looked for, is
//! [`Quieting`]'s.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_control::Consistency;
use farside_control::source::{ConsistentStatus, HooksFailure, LastPoint, PointTaken};
use farside_hooks::{Outcome, Plan, Ran, Run, Stage};
use farside_ledger::Label;
use farside_region::{EpochId, Name};
use farside_replication::quiet::{QuietLimits, Quieting};
use farside_replication::source::{Around, Event, PointStatus, Wish, WishState};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Control, Note};
use crate::channel::{Sender, channel};
use crate::hooks;
use crate::locked;
use crate::status::{last_point, said_of};

/// The first point by the clock comes so soon after a start, at the latest.
const FIRST: Duration = Duration::from_secs(60);

/// What becomes of a point that was asked for.
pub(crate) type Taken = anyhow::Result<PointTaken>;

#[derive(Debug)]
pub(super) struct Quiet {
    last_wish: u64,
    /// When the next one is due by the clock.
    next: Option<Instant>,
    by_the_clock: Option<u64>,
    asked: HashMap<u64, oneshot::Sender<Taken>>,
    /// Whoever quiesces applications is told the epoch that was cut, if one was.
    guards: Quieting<Sender<Option<EpochId>>>,
    /// Volumes of the group that the state machine was told are not here.
    lacking: Vec<Name>,
    /// And CLOCK_MONOTONIC before its cut, in nanoseconds.
    newest: Option<(LastPoint, u64)>,
    failed: Option<HooksFailure>,
    failures: u64,
}

impl Default for Quiet {
    fn default() -> Self {
        Self {
            last_wish: 0,
            next: None,
            by_the_clock: None,
            asked: HashMap::new(),
            guards: Quieting::new(monotonic_ns(), QuietLimits::default()),
            lacking: Vec::new(),
            newest: None,
            failed: None,
            failures: 0,
        }
    }
}

impl Quiet {
    pub(super) fn next_wish(&mut self) -> u64 {
        self.last_wish += 1;
        self.last_wish
    }
}

impl Control {
    /// Wishes by the clock; and those whose askers are gone.
    pub(super) fn look_after_wishes(&mut self, now: Instant) {
        self.look_after_guards();
        let gone: Vec<u64> = self.quiet.asked.iter().filter(|(_, reply)| reply.is_closed()).map(|(id, _)| *id).collect();
        for wish in gone {
            self.quiet.asked.remove(&wish);
            self.step(Event::ForgetWish { wish });
        }
        if self.source.has_wishes() {
            self.say_what_is_lacking();
        }
        let is_wanted = !self.stopping && !self.config.hooks.is_empty();
        let Some(every) = self.config.consistent_every.filter(|_| is_wanted) else {
            self.quiet.next = None;
            if let Some(wish) = self.quiet.by_the_clock.take() {
                self.step(Event::ForgetWish { wish });
            }
            return;
        };
        // One that became more frequent does not wait for what was due before.
        let next = *self.quiet.next.get_or_insert(now + every.min(FIRST));
        let next = next.min(now + every);
        self.quiet.next = Some(next);
        if now >= next && self.quiet.by_the_clock.is_none() {
            let id = self.quiet.next_wish();
            (self.quiet.by_the_clock, self.quiet.next) = (Some(id), Some(now + every));
            self.say_what_is_lacking();
            self.step(Event::Wish(Wish { id, title: String::new(), around: Around::Hooks }));
        }
    }

    /// Somebody asks for a point.
    pub(super) fn take(&mut self, title: String, hooks: Option<bool>, reply: oneshot::Sender<Taken>) {
        let has_hooks = !self.config.hooks.is_empty();
        if hooks == Some(true) && !has_hooks {
            let _ =
                reply.send(Err(anyhow::anyhow!("group {} has no hooks: none is named for it in the configuration", self.name)));
            return;
        }
        let id = self.quiet.next_wish();
        self.quiet.asked.insert(id, reply);
        self.say_what_is_lacking();
        let around = if hooks.unwrap_or(has_hooks) { Around::Hooks } else { Around::Nothing };
        self.step(Event::Wish(Wish { id, title, around }));
    }

    /// Volumes of the group that are configured and not open, or about to go: a point of all is none without them.
    pub(super) fn say_what_is_lacking(&mut self) {
        let is_here = |name: &Name| self.members.values().any(|m| m.served.config.name == *name && !m.is_leaving());
        let lacking: Vec<Name> = {
            let config = locked(&self.around.config);
            let of_the_group = config.volumes.values().filter(|volume| volume.group == self.name).map(|volume| &volume.name);
            of_the_group.filter(|name| !is_here(name)).cloned().collect()
        };
        if lacking != self.quiet.lacking {
            self.quiet.lacking.clone_from(&lacking);
            self.step(Event::Lacks { volumes: lacking });
        }
    }

    /// On a thread of its own: hooks take their time, and the group must go on.
    pub(super) fn quiesce(&mut self, wish: u64) {
        let volumes: Vec<Name> = self.members.values().map(|m| m.served.config.name.clone()).collect();
        let plan = hooks::plan(&self.around, self.state.path(), &self.name, volumes, &self.config);
        let guard = hooks::guard(&self.around.runtime_dir);
        let inbox = self.inbox.clone();
        let (holds, what_was_cut) = channel();
        let patience = u64::try_from(hooks::patience(&self.config.hooks).as_nanos()).unwrap_or(u64::MAX);
        let attempt = self.quiet.guards.begin(wish, monotonic_ns().saturating_add(patience), holds);
        let begun = std::thread::Builder::new().name("hooks".to_owned()).spawn(move || {
            let held = hold(&guard, &plan);
            let answer = held.as_ref().map(|_| ()).map_err(Clone::clone);
            inbox.send(Note::Quiesced(attempt, answer));
            let Ok(run) = held else { return };
            let epoch = what_was_cut.recv().ok().flatten();
            let outcome = run.end(epoch.is_some());
            if let Some(epoch) = epoch {
                inbox.send(Note::Resumed(epoch, words(&outcome)));
            }
        });
        if let Err(error) = begun {
            self.inbox.send(Note::Quiesced(attempt, Err(format!("no thread can be started: {error}"))));
        }
    }

    pub(super) fn quiesced(&mut self, attempt: u64, result: Result<(), String>) {
        if let Some(event) = self.quiet.guards.quiesced(monotonic_ns(), attempt, result) {
            self.step(event);
        }
    }

    /// Whoever is held goes on.
    pub(super) fn resume(&mut self, epoch: Option<EpochId>) {
        if self.switched_for_cohort(epoch) {
            return;
        }
        if let Some(what_was_cut) = self.quiet.guards.resume(monotonic_ns(), epoch) {
            let _ = what_was_cut.send(epoch); // it waits for that
        }
    }

    pub(super) fn resumed(&mut self, epoch: EpochId, result: Result<String, String>) {
        if let Some(event) = self.quiet.guards.resumed(monotonic_ns(), epoch, result) {
            self.step(event);
        }
    }

    /// Nothing waits for a guard for ever; and what one could not end is tried again.
    fn look_after_guards(&mut self) {
        let now = monotonic_ns();
        self.quiet.guards.overdue(now).into_iter().for_each(|event| self.step(event));
        let runtime_dir = self.around.runtime_dir.clone();
        if !self.quiet.guards.looks(now, || hooks::note(&runtime_dir, &self.name).exists()) {
            return;
        }
        let inbox = self.inbox.clone();
        let group = self.name.clone();
        let try_again = move || {
            let note = hooks::note(&runtime_dir, &group);
            let ours = hooks::resume_forgotten(&runtime_dir).into_iter().find(|(of, _)| *of == note);
            inbox.send(Note::LeftOver(ours.map(|(_, why)| why)));
        };
        if std::thread::Builder::new().name("hooks".to_owned()).spawn(try_again).is_err() {
            self.quiet.guards.cannot_look();
        }
    }

    pub(super) fn left_over(&mut self, why: Option<String>) {
        if let Some(why) = why.as_deref().filter(|why| self.why_still_quiesced() != Some(why)) {
            warn!(group = %self.name, %why, "what hooks quiesced may still be; it is tried again by itself");
        }
        let note = hooks::note(&self.around.runtime_dir, &self.name);
        self.quiet.guards.looked(monotonic_ns(), why, || note.exists());
    }

    /// Why applications may still be quiesced.
    pub(crate) fn why_still_quiesced(&self) -> Option<&str> {
        self.quiet.guards.why_still_quiesced()
    }

    pub(super) fn wish_done(&mut self, wish: u64, point: &PointStatus, label: Option<&Label>) {
        let (point, cut_ns) = (last_point(&point.position, point.epoch.wall_ms), point.epoch.mono_before_ns);
        let (consistency, title, hooks) = said_of(label);
        if consistency == Consistency::Application {
            (self.quiet.newest, self.quiet.failed) = (Some((point.clone(), cut_ns)), None);
        }
        info!(group = %self.name, point = %point.id, ?consistency, %title, %hooks, "a point that was asked for is published");
        self.end_wish(wish, Ok(PointTaken { point, consistency, title, hooks }));
    }

    pub(super) fn end_wish(&mut self, wish: u64, end: Taken) {
        if self.quiet.by_the_clock == Some(wish) {
            self.quiet.by_the_clock = None;
        }
        if let Some(reply) = self.quiet.asked.remove(&wish) {
            let _ = reply.send(end); // who asked may have gone
        }
    }

    pub(super) fn hooks_failed(&mut self, why: String) {
        warn!(group = %self.name, %why, "applications were not quiesced");
        self.quiet.failures += 1;
        self.quiet.failed = Some(HooksFailure { at: Timestamp::now(), why });
    }

    /// Why the last point for which applications were to be quiesced is not consistent.
    pub(crate) fn hooks_failure(&self) -> Option<&HooksFailure> {
        self.quiet.failed.as_ref().filter(|_| !self.config.hooks.is_empty() || self.source.has_wishes())
    }

    pub(crate) fn consistent_status(&self) -> Option<ConsistentStatus> {
        let mut wishes = self.source.wishes();
        wishes.retain(|wish| !wish.is_of_cohort);
        if self.config.hooks.is_empty() && wishes.is_empty() {
            return None;
        }
        let now = wishes.first().map(|wish| {
            let again = if wish.tries == 0 { String::new() } else { format!(" (try {})", wish.tries + 1) };
            let what = match &wish.state {
                WishState::Waiting(volumes) if volumes.is_empty() => "waits for its turn".to_owned(),
                WishState::Waiting(volumes) => {
                    let names: Vec<&str> = volumes.iter().map(Name::as_str).collect();
                    format!("waits for {}: all volumes of the group are cut together", names.join(", "))
                }
                WishState::Quiescing => "waits for its hooks, which quiesce applications".to_owned(),
                WishState::Cut => "is cut, and on its way".to_owned(),
            };
            what + &again
        });
        Some(ConsistentStatus {
            every_ms: self.config.consistent_every.map(|every| every.as_millis() as u64),
            hooks: self.config.hooks.iter().map(|hook| hook.name.to_string()).collect(),
            newest: self.quiet.newest.as_ref().map(|(point, _)| point.clone()),
            newest_age_ms: self.quiet.newest.as_ref().map(|(_, cut_ns)| monotonic_ns().saturating_sub(*cut_ns) / 1_000_000),
            now,
            failed: self.quiet.failed.clone(),
            failures: self.quiet.failures,
        })
    }
}

fn hold(guard: &farside_hooks::Guard, plan: &Plan) -> Result<Run, String> {
    let mut run = Run::start(guard, plan).map_err(|error| format!("hooks cannot be run: {error}"))?;
    run.ready().map(|()| run)
}

/// What hooks say, if applications were quiet all along; otherwise why not.
fn words(outcome: &Outcome) -> Result<String, String> {
    if !outcome.held {
        return Err(outcome
            .why
            .clone()
            .unwrap_or_else(|| "it is not known whether applications were quiet all along".to_owned()));
    }
    let said = |ran: &Ran| match &ran.said {
        Some(said) => format!("{}: {said}", ran.hook),
        None => ran.hook.to_string(),
    };
    Ok(outcome.ran.iter().filter(|ran| ran.stage == Stage::PreCut).map(said).collect::<Vec<_>>().join("; "))
}
