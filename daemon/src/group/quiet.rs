//! Points that are asked for, by people or by the clock, and the hooks that quiesce applications around their cut.
//!
//! Invariant: whoever holds applications has one end of a channel, and this thread the other. It says once what was cut; when it is
//! dropped, because the thread or the process ends, nothing was.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_control::Consistency;
use farside_control::source::{ConsistentStatus, HooksFailure, LastPoint, PointTaken};
use farside_hooks::{Outcome, Plan, Ran, Run, Stage};
use farside_ledger::Label;
use farside_region::{EpochId, Name};
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
/// A cut waits for its post-cuts no longer: the points after it wait for it.
const LABEL_WAIT: Duration = Duration::from_secs(10);
/// How soon it is tried again to end what could not be ended; each time later.
const LEFT_AGAIN: Duration = Duration::from_secs(5);
const LEFT_AGAIN_MAX: Duration = Duration::from_secs(300);

/// What becomes of a point that was asked for.
pub(crate) type Taken = anyhow::Result<PointTaken>;

#[derive(Debug, Default)]
pub(super) struct Quiet {
    last_wish: u64,
    last_attempt: u64,
    /// When the next one is due by the clock.
    next: Option<Instant>,
    by_the_clock: Option<u64>,
    asked: HashMap<u64, oneshot::Sender<Taken>>,
    /// Whoever quiesces applications, or holds them.
    holds: Option<Holds>,
    /// Cuts of which it is not known yet whether applications were quiet, and since when.
    resuming: Option<(EpochId, Instant)>,
    left: LeftOver,
    /// Volumes of the group that the state machine was told are not here.
    lacking: Vec<Name>,
    /// And CLOCK_MONOTONIC before its cut, in nanoseconds.
    newest: Option<(LastPoint, u64)>,
    failed: Option<HooksFailure>,
    failures: u64,
}

#[derive(Debug)]
struct Holds {
    /// † A wish that is tried again has another one: what comes late of the one before is not taken for it.
    attempt: u64,
    wish: u64,
    /// It is lost then: nothing that hooks do takes so long.
    until: Instant,
    /// Told the epoch that was cut, if one was.
    what_was_cut: Sender<Option<EpochId>>,
}

/// What a guard could not end.
#[derive(Debug)]
struct LeftOver {
    /// When it is looked for.
    next: Instant,
    pause: Duration,
    is_tried: bool,
    /// Why it may still be quiesced.
    why: Option<String>,
}

impl LeftOver {
    /// Something may have been left now.
    fn is_looked_for(&mut self) {
        (self.next, self.pause) = (Instant::now(), LEFT_AGAIN);
    }

    /// It is looked now; says when it is the next time, should something be left.
    fn looks(&mut self, now: Instant) {
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LEFT_AGAIN_MAX);
    }

    /// Nothing is left. † Also the next look is soon: by what was left before it might be minutes away, and so long would
    /// applications be held whose post-cut fails next.
    fn is_ended(&mut self, now: Instant) {
        *self = Self { next: now + LEFT_AGAIN, is_tried: self.is_tried, ..Self::default() };
    }
}

impl Default for LeftOver {
    fn default() -> Self {
        Self { next: Instant::now() + LEFT_AGAIN, pause: LEFT_AGAIN, is_tried: false, why: None }
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
        self.look_after_guards(now);
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
        let until = Instant::now() + hooks::patience(&self.config.hooks);
        self.quiet.last_attempt += 1;
        let attempt = self.quiet.last_attempt;
        self.quiet.holds = Some(Holds { attempt, wish, until, what_was_cut: holds });
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

    /// What comes too late is of nobody any more: its end of the channel is closed, so that it lets go.
    pub(super) fn quiesced(&mut self, attempt: u64, result: Result<(), String>) {
        let Some(holds) = self.quiet.holds.as_ref().filter(|holds| holds.attempt == attempt) else { return };
        let wish = holds.wish;
        match &result {
            // A guard begins when what was left is ended.
            Ok(()) => self.quiet.left.is_ended(Instant::now()),
            Err(_) => {
                self.quiet.holds = None;
                self.quiet.left.is_looked_for();
            }
        }
        self.step(Event::Quiesced { wish, result });
    }

    /// Whoever is held goes on.
    pub(super) fn resume(&mut self, epoch: Option<EpochId>) {
        if self.switched_for_cohort(epoch) {
            return;
        }
        self.quiet.resuming = epoch.map(|epoch| (epoch, Instant::now()));
        if let Some(holds) = self.quiet.holds.take() {
            let _ = holds.what_was_cut.send(epoch); // it waits for that
        }
    }

    pub(super) fn resumed(&mut self, epoch: EpochId, result: Result<String, String>) {
        if self.quiet.resuming.take_if(|(resuming, _)| *resuming == epoch).is_some() {
            if result.is_err() {
                self.quiet.left.is_looked_for();
            }
            self.step(Event::Resumed { epoch, result });
        }
    }

    /// Nothing waits for a guard for ever; and what one could not end is tried again.
    fn look_after_guards(&mut self, now: Instant) {
        if let Some(Holds { wish, .. }) = self.quiet.holds.take_if(|holds| now >= holds.until) {
            self.quiet.left.is_looked_for();
            self.step(Event::Quiesced { wish, result: Err("its guard does not answer".to_owned()) });
        }
        if let Some((epoch, _)) = self.quiet.resuming.take_if(|(_, since)| now.duration_since(*since) >= LABEL_WAIT) {
            self.quiet.left.is_looked_for();
            let why = format!("a post-cut was not over {} s after the cut", LABEL_WAIT.as_secs());
            self.step(Event::Resumed { epoch, result: Err(why) });
        }
        let is_busy = self.quiet.holds.is_some() || self.quiet.resuming.is_some() || self.quiet.left.is_tried;
        if now < self.quiet.left.next || is_busy {
            return;
        }
        let runtime_dir = self.around.runtime_dir.clone();
        if !hooks::note(&runtime_dir, &self.name).exists() {
            return self.quiet.left.is_ended(now);
        }
        self.quiet.left.looks(now);
        let inbox = self.inbox.clone();
        self.quiet.left.is_tried = true;
        let group = self.name.clone();
        let try_again = move || {
            let note = hooks::note(&runtime_dir, &group);
            let ours = hooks::resume_forgotten(&runtime_dir).into_iter().find(|(of, _)| *of == note);
            inbox.send(Note::LeftOver(ours.map(|(_, why)| why)));
        };
        if std::thread::Builder::new().name("hooks".to_owned()).spawn(try_again).is_err() {
            self.quiet.left.is_tried = false; // later, then
        }
    }

    pub(super) fn left_over(&mut self, why: Option<String>) {
        self.quiet.left.is_tried = false;
        if let Some(why) = why.as_ref().filter(|why| self.quiet.left.why.as_ref() != Some(why)) {
            warn!(group = %self.name, %why, "what hooks quiesced may still be; it is tried again by itself");
        }
        // Where nothing is said of it and it is there, somebody is at work with it.
        if why.is_some() {
            self.quiet.left.why = why;
        } else if !hooks::note(&self.around.runtime_dir, &self.name).exists() {
            self.quiet.left.is_ended(Instant::now());
        }
    }

    /// Why applications may still be quiesced.
    pub(crate) fn why_still_quiesced(&self) -> Option<&str> {
        self.quiet.left.why.as_deref()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_next_is_looked_for_soon_however_long_the_last_one_took() {
        let mut left = LeftOver::default();
        let mut now = left.next;
        for _ in 0..10 {
            left.looks(now);
            now = left.next;
        }
        left.looks(now);
        assert_eq!(left.next, now + LEFT_AGAIN_MAX, "it is tried ever less often");
        left.why = Some("a post-cut failed".to_owned());
        left.is_ended(now);
        assert_eq!((left.why.as_deref(), left.next), (None, now + LEFT_AGAIN));
    }
}
