//! The guard: holds applications for one cut, and ends what it began whatever happens.
//!
//! One thread decides and waits ([`Waiting`]); only freezes have threads of their own. From the first pre-cut on there is one way out,
//! through [`Work::post_cuts`]: no error returns around it.
//!
//! While a file system is frozen, nothing is written but to farsided and, before a further hook begins, to the note, which lies on
//! another file system. Not to stderr either: who reads that may wait for the frozen one.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_region::Name;

use crate::command::{self, Asked, Done};
use crate::forgotten::{end_forgotten, resume_forgotten};
use crate::freeze::{FileSystems, Freeze, Mounted, Thaw};
use crate::kernel;
use crate::note::{Locked, Note};
use crate::plan::{Cut, First, Hook, Plan, PlanError, Ran, Said, Stage, Verdict, What};
use crate::wait::{Heard, Limit, Waiting};

/// How long farsided may take to say its plan. Until then nothing is begun.
const PLAN_WAIT: Duration = Duration::from_secs(30);
/// How long whoever is still at work with the note is waited for, and how often that is looked at.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// How long the guard waits at its end for farsided to read.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// Is a guard: reads a plan from the standard input, follows it, and answers on the standard output. It must be called before
/// anything else was done with them, in a process that has no other purpose: signals are ignored from here on.
pub fn guard_main() -> ExitCode {
    kernel::ignore_signals();
    // No file system stays busy for a guard.
    let _ = std::env::set_current_dir("/"); // it is there
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
    let (Ok(input), Ok(output)) = (own(std::io::stdin().as_fd()), own(std::io::stdout().as_fd())) else {
        return ExitCode::FAILURE;
    };
    guard(input, output, |plan| Arc::new(Mounted::of(plan)))
}

/// A guard over these file systems.
pub(crate) fn guard(input: OwnedFd, output: OwnedFd, systems: impl FnOnce(&Plan) -> Arc<dyn FileSystems>) -> ExitCode {
    let mut waiting = Waiting::with_peer(input, output);
    let begun = read_first(&mut waiting).and_then(|first| match first {
        First::Plan(plan) => begin(*plan, &mut waiting, systems).map(Some),
        First::Resume(directory) => {
            for forgotten in resume_forgotten(&directory) {
                waiting.say(&Said::Forgotten(forgotten));
            }
            waiting.say(&Said::Ended { held: true, why: None });
            waiting.flush(Instant::now() + FLUSH_WAIT);
            Ok(None)
        }
    });
    match begun {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some((plan, systems, locked))) => {
            Work::new(plan, systems, locked, waiting).run();
            ExitCode::SUCCESS
        }
        Err(why) => {
            waiting.say(&Said::Ended { held: false, why: Some(why) });
            waiting.flush(Instant::now() + FLUSH_WAIT);
            ExitCode::FAILURE
        }
    }
}

type Begun = (Plan, Arc<dyn FileSystems>, Locked);

/// Everything that comes before the first hook.
fn begin(plan: Plan, waiting: &mut Waiting, systems: impl FnOnce(&Plan) -> Arc<dyn FileSystems>) -> Result<Begun, String> {
    let note = plan.note.display();
    let until = Instant::now() + LOCK_WAIT;
    let locked = loop {
        let locked = Locked::take(&plan.note).map_err(|error| format!("the note {note} cannot be written: {error}"))?;
        match locked {
            Some(locked) => break locked,
            None if Instant::now() >= until || waiting.has_heard() => {
                return Err(format!("the guard of an earlier cut is still at work (its note is {note})"));
            }
            None => waiting.wait(&[], true, Instant::now() + LOCK_LOOK),
        }
    };
    let systems = systems(&plan);
    let forgotten = end_forgotten(&locked, &plan.note, Some(&plan), &systems, waiting);
    if let Some(why) = forgotten.and_then(|forgotten| forgotten.failed) {
        return Err(format!("what an earlier guard began is not ended: {why}; see to it, and remove {note}"));
    }
    Ok((plan, systems, locked))
}

fn read_first(waiting: &mut Waiting) -> Result<First, String> {
    let until = Instant::now() + PLAN_WAIT;
    let invalid = |error: PlanError| format!("the plan is not valid: {error}");
    loop {
        match waiting.heard() {
            Some(Heard::Line(line)) => return First::read(&line).map_err(invalid),
            Some(Heard::TooLong) => return Err(invalid(PlanError::TooLong)),
            Some(Heard::Gone) => return Err("farsided said no plan".to_owned()),
            None if Instant::now() >= until => return Err(format!("farsided said no plan for {PLAN_WAIT:?}")),
            None => waiting.wait(&[], true, until),
        }
    }
}

/// One cut.
struct Work {
    plan: Plan,
    systems: Arc<dyn FileSystems>,
    locked: Locked,
    waiting: Waiting,
    /// What must be ended, in the order in which it began.
    begun: Vec<(Hook, Option<Freeze>)>,
    /// What is to be frozen, by hook; `None`: the first freeze has not come yet.
    synced: Option<Vec<(Name, Freeze)>>,
    hold_until: Option<Instant>,
    /// The first thing that went wrong.
    why: Option<String>,
}

impl Work {
    fn new(plan: Plan, systems: Arc<dyn FileSystems>, locked: Locked, waiting: Waiting) -> Self {
        Self { plan, systems, locked, waiting, begun: Vec::new(), synced: None, hold_until: None, why: None }
    }

    fn run(mut self) {
        let cut = match self.pre_cuts().and_then(|()| self.hold()) {
            Ok(()) => Cut::Taken,
            Err(why) => {
                self.why = Some(why);
                Cut::NotTaken
            }
        };
        let begun = std::mem::take(&mut self.begun);
        let (mut kept, mut late) = self.post_cuts(begun, cut);
        for (name, mut freeze) in self.synced.take().unwrap_or_default() {
            match freeze.give_up() {
                true => drop(freeze.join()), // at once: it was never frozen
                false => late.push((name, freeze)),
            }
        }
        let Self { plan, locked, mut waiting, why, .. } = self;
        let ended = Said::Ended { held: why.is_none(), why };
        if late.is_empty() {
            // Before the last word: whoever hears it may begin the next cut.
            settle(&locked, plan, kept);
            drop(locked);
            waiting.say(&ended);
            waiting.flush(Instant::now() + FLUSH_WAIT);
            return;
        }
        waiting.say(&ended);
        waiting.flush(Instant::now() + FLUSH_WAIT);
        // Nobody waits for this any more but the file systems.
        kept.extend(late.into_iter().filter_map(|(name, freeze)| matches!(freeze.join(), Thaw::Failed(_)).then_some(name)));
        settle(&locked, plan, kept);
    }

    fn pre_cuts(&mut self) -> Result<(), String> {
        let hooks = self.plan.hooks.clone();
        for (no, hook) in hooks.iter().enumerate() {
            if matches!(hook.what, What::Freeze(_)) && self.synced.is_none() {
                self.sync(&hooks[no..])?;
            }
            if let Some(heard) = self.waiting.heard() {
                return Err(early(&heard));
            }
            if self.hold_until.is_some_and(|until| Instant::now() >= until) {
                return Err(format!("the hold of {:?} ran out before the pre-cut of hook {}", self.plan.hold(), hook.name));
            }
            let begun = self.begun.iter().map(|(hook, _)| hook).chain([hook]).map(|hook| hook.name.clone()).collect();
            let noted = self.locked.write(&Note { plan: self.plan.clone(), begun });
            noted.map_err(|error| format!("the note {} cannot be written: {error}", self.plan.note.display()))?;
            let began = Instant::now();
            let done = self.pre_cut(hook, began);
            let ran = ran(hook, Stage::PreCut, began, done);
            self.waiting.say(&Said::Ran(ran.clone()));
            if let Some(why) = ran.complaint() {
                return Err(why);
            }
            if matches!(hook.what, What::Freeze(_)) {
                self.hold_until.get_or_insert(Instant::now() + self.plan.hold());
            }
        }
        self.hold_until.get_or_insert(Instant::now() + self.plan.hold());
        self.waiting.say(&Said::Ready {});
        Ok(())
    }

    /// Has what is in memory written of all file systems that are to be frozen, at once, while whoever uses them goes on.
    fn sync(&mut self, hooks: &[Hook]) -> Result<(), String> {
        let _ = self.systems.prepare(); // it costs nothing but in need
        let began = Instant::now();
        let mut failed = None;
        let mut begun = Vec::new();
        for hook in hooks {
            let What::Freeze(path) = &hook.what else { continue };
            match Freeze::begin(self.systems.clone(), path) {
                Ok(freeze) => begun.push((hook, freeze)),
                Err(why) => failed = failed.or(Some((hook, why))),
            }
        }
        for (hook, freeze) in &mut begun {
            let limit = Limit { began, timeout: hook.timeout, hold_until: None, listen: true };
            if failed.is_none() {
                failed = freeze.synced(&limit, &mut self.waiting).err().map(|why| (*hook, why));
            }
        }
        self.synced = Some(begun.into_iter().map(|(hook, freeze)| (hook.name.clone(), freeze)).collect());
        let Some((hook, why)) = failed else { return Ok(()) };
        let ran = ran(hook, Stage::PreCut, began, Done { said: None, failed: Some(why), begun: false });
        self.waiting.say(&Said::Ran(ran.clone()));
        ran.complaint().map_or(Ok(()), Err)
    }

    fn pre_cut(&mut self, hook: &Hook, began: Instant) -> Done {
        let limit = Limit { began, timeout: hook.timeout, hold_until: self.hold_until, listen: true };
        match &hook.what {
            What::Command(words) => {
                let asked = Asked { plan: &self.plan, hook, stage: Stage::PreCut, cut: None };
                let done = command::run(asked, words, &limit, &mut self.waiting);
                if done.begun {
                    self.begun.push((hook.clone(), None));
                }
                done
            }
            What::Freeze(path) => {
                let synced = self.synced.as_mut().expect("all are synced before the first");
                let no = synced.iter().position(|(name, _)| *name == hook.name).expect("a name is one hook's");
                let (_, mut freeze) = synced.remove(no);
                // Its time is for both.
                let limit = Limit { began: began.checked_sub(freeze.synced_in()).unwrap_or(began), ..limit };
                let frozen = freeze.frozen(&limit, &mut self.waiting);
                self.begun.push((hook.clone(), Some(freeze)));
                let said = frozen.is_ok().then(|| format!("{} is frozen", path.display()));
                Done { said, failed: frozen.err(), begun: true }
            }
        }
    }

    /// Holds everything until farsided says what became of the cut.
    fn hold(&mut self) -> Result<(), String> {
        let until = self.hold_until.expect("set before Ready");
        loop {
            // What comes now may have been said in time, but who knows for how long it was not true.
            if Instant::now() >= until {
                return Err(format!("the hold of {:?} ran out before the cut was taken", self.plan.hold()));
            }
            match self.waiting.heard() {
                Some(heard) => return verdict(&heard),
                None => self.waiting.wait(&[], true, until),
            }
        }
    }

    /// Ends everything, the last one first. Returns what is not ended for sure, and the freezes that are late.
    fn post_cuts(&mut self, begun: Vec<(Hook, Option<Freeze>)>, cut: Cut) -> (Vec<Name>, Vec<(Name, Freeze)>) {
        let (mut kept, mut late) = (Vec::new(), Vec::new());
        for (hook, freeze) in begun.into_iter().rev() {
            let limit = Limit::only(hook.timeout);
            let done = match (&hook.what, freeze) {
                (What::Freeze(path), Some(mut freeze)) => {
                    let thaw = freeze.thaw(&limit, &mut self.waiting);
                    match thaw {
                        Thaw::Late(_) => late.push((hook.name.clone(), freeze)),
                        Thaw::Failed(_) => kept.push(hook.name.clone()),
                        Thaw::Thawed | Thaw::NotOurs | Thaw::WasNot => {}
                    }
                    thawed(thaw, &path.display().to_string())
                }
                (What::Command(words), _) => {
                    let asked = Asked { plan: &self.plan, hook: &hook, stage: Stage::PostCut, cut: Some(cut) };
                    let done = command::run(asked, words, &limit, &mut self.waiting);
                    if done.failed.is_some() {
                        kept.push(hook.name.clone());
                    }
                    done
                }
                (What::Freeze(_), None) => continue, // there is none without its thread
            };
            let ran = ran(&hook, Stage::PostCut, limit.began, done);
            self.why = self.why.take().or_else(|| ran.complaint());
            self.waiting.say(&Said::Ran(ran));
        }
        kept.reverse();
        (kept, late)
    }
}

/// Leaves a note of what is not ended, if there is any: whoever comes next tries again.
fn settle(locked: &Locked, plan: Plan, kept: Vec<Name>) {
    // A note that stays although nothing is to be done has post-cuts run once more, which they must bear.
    let _ = if kept.is_empty() { locked.remove() } else { locked.write(&Note { plan, begun: kept }) };
}

pub(crate) fn ran(hook: &Hook, stage: Stage, began: Instant, done: Done) -> Ran {
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ran { hook: hook.name.clone(), stage, ms, said: done.said, failed: done.failed }
}

/// A thaw, as the end of a post-cut that follows a freeze of ours.
fn thawed(thaw: Thaw, path: &str) -> Done {
    let (said, failed) = match thaw {
        Thaw::Thawed => (Some(format!("{path} is thawed")), None),
        Thaw::NotOurs => (Some(format!("{path} was not frozen by this hook, and not thawed")), None),
        Thaw::WasNot => (None, Some(format!("somebody else thawed {path} meanwhile"))),
        Thaw::Failed(why) | Thaw::Late(why) => (None, Some(why)),
    };
    Done { said, failed, begun: true }
}

fn verdict(heard: &Heard) -> Result<(), String> {
    let Heard::Line(line) = heard else {
        return Err(match heard {
            Heard::Gone => "farsided was gone before it said that the cut was taken".to_owned(),
            Heard::TooLong | Heard::Line(_) => "farsided said something that is not known".to_owned(),
        });
    };
    match serde_json::from_slice(line) {
        Ok(Verdict { cut: Cut::Taken }) => Ok(()),
        Ok(Verdict { cut: Cut::NotTaken }) => Err("the cut was not taken".to_owned()),
        Err(error) => Err(format!("farsided said something that is not known: {error}")),
    }
}

/// Why a word that comes before Ready ends it.
fn early(heard: &Heard) -> String {
    verdict(heard).err().unwrap_or_else(|| "farsided took the cut before everything was held".to_owned())
}
