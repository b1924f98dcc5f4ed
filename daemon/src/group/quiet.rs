//! Points that are asked for, by people or by the clock, and the hooks that quiesce applications around their cut.
//!
//! Invariant: whoever holds applications has one end of a channel, and this thread the other. It says once what was cut; when it is
//! dropped, because the thread or the process ends, nothing was.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};
use farside_blockio::process::monotonic_ns;
use farside_control::Consistency;
use farside_control::source::{ConsistentStatus, HooksFailure, LastPoint, PointTaken};
use farside_hooks::{Outcome, Plan, Ran, Run, Stage};
use farside_ledger::Label;
use farside_region::{EpochId, Name};
use farside_replication::source::{Event, PointStatus, Wish, WishState};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Control, Note};
use crate::hooks;
use crate::status::last_point;

/// The first point by the clock comes so soon after a start, at the latest.
const FIRST: Duration = Duration::from_secs(60);

/// What becomes of a point that was asked for.
pub(crate) type Taken = anyhow::Result<PointTaken>;

#[derive(Debug, Default)]
pub(super) struct Quiet {
    last_wish: u64,
    /// When the next one is due by the clock.
    next: Option<Instant>,
    by_the_clock: Option<u64>,
    asked: HashMap<u64, oneshot::Sender<Taken>>,
    /// To whoever holds applications: the epoch that was cut meanwhile, if one was.
    holds: Option<Sender<Option<EpochId>>>,
    /// And CLOCK_MONOTONIC before its cut, in nanoseconds.
    newest: Option<(LastPoint, u64)>,
    failed: Option<HooksFailure>,
    failures: u64,
}

impl Quiet {
    fn next_wish(&mut self) -> u64 {
        self.last_wish += 1;
        self.last_wish
    }
}

impl Control {
    /// Wishes by the clock; and those whose askers are gone.
    pub(super) fn look_after_wishes(&mut self, now: Instant) {
        let gone: Vec<u64> = self.quiet.asked.iter().filter(|(_, reply)| reply.is_closed()).map(|(id, _)| *id).collect();
        for wish in gone {
            self.quiet.asked.remove(&wish);
            self.step(Event::ForgetWish { wish });
        }
        let Some(every) = self.config.consistent_every.filter(|_| !self.stopping) else {
            self.quiet.next = None;
            return;
        };
        // One that became more frequent does not wait for what was due before.
        let next = *self.quiet.next.get_or_insert(now + every.min(FIRST));
        let next = next.min(now + every);
        self.quiet.next = Some(next);
        if now >= next && self.quiet.by_the_clock.is_none() {
            let id = self.quiet.next_wish();
            (self.quiet.by_the_clock, self.quiet.next) = (Some(id), Some(now + every));
            self.step(Event::Wish(Wish { id, title: String::new(), hooks: true }));
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
        self.step(Event::Wish(Wish { id, title, hooks: hooks.unwrap_or(has_hooks) }));
    }

    /// On a thread of its own: hooks take their time, and the group must go on.
    pub(super) fn quiesce(&mut self, wish: u64) {
        let volumes: Vec<Name> = self.members.values().map(|m| m.served.config.name.clone()).collect();
        let runtime_dir = self.around.runtime_dir.clone();
        let plan = hooks::plan(&runtime_dir, &self.name, volumes, &self.config.hooks, self.config.hook_hold);
        let guard = hooks::guard(&runtime_dir);
        let state_dir = self.state.path().to_owned();
        let inbox = self.inbox.clone();
        let (holds, what_was_cut) = bounded(1);
        self.quiet.holds = Some(holds);
        let begun = std::thread::Builder::new().name("hooks".to_owned()).spawn(move || {
            let begin = || match hooks::objection(&plan.hooks, &[&state_dir, &runtime_dir]) {
                Some(why) => Err(why),
                None => hold(&guard, &plan),
            };
            let held = begin();
            let answer = held.as_ref().map(|_| ()).map_err(Clone::clone);
            inbox.send(Note::Quiesced(wish, answer));
            let is_over = match held {
                Err(_) => false,
                Ok(run) => {
                    let epoch = what_was_cut.recv().ok().flatten();
                    let outcome = run.end(epoch.is_some());
                    if let Some(epoch) = epoch {
                        inbox.send(Note::Resumed(epoch, words(&outcome)));
                    }
                    outcome.held
                }
            };
            // A guard that was lost ends nothing any more.
            if !is_over {
                hooks::resume_forgotten(&runtime_dir);
            }
        });
        if let Err(error) = begun {
            self.quiet.holds = None;
            self.inbox.send(Note::Quiesced(wish, Err(format!("no thread can be started: {error}"))));
        }
    }

    /// Whoever is held goes on.
    pub(super) fn resume(&mut self, epoch: Option<EpochId>) {
        if let Some(holds) = self.quiet.holds.take() {
            let _ = holds.send(epoch); // it waits for that
        }
    }

    pub(super) fn wish_done(&mut self, wish: u64, point: &PointStatus, label: Option<&Label>) {
        let (point, cut_ns) = (last_point(&point.position, point.epoch.wall_ms), point.epoch.mono_before_ns);
        let consistency = match label.map(|label| label.consistency) {
            Some(farside_ledger::Consistency::Application) => Consistency::Application,
            Some(farside_ledger::Consistency::Crash) | None => Consistency::Crash,
        };
        if consistency == Consistency::Application {
            (self.quiet.newest, self.quiet.failed) = (Some((point.clone(), cut_ns)), None);
        }
        let said = |text: fn(&Label) -> &String| label.map(|label| text(label).clone()).unwrap_or_default();
        let (title, hooks) = (said(|label| &label.title), said(|label| &label.hooks));
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

    pub(crate) fn consistent_status(&self) -> Option<ConsistentStatus> {
        let wishes = self.source.wishes();
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
                WishState::Quiescing => "its hooks quiesce applications".to_owned(),
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
