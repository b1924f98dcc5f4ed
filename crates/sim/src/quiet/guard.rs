//! The guard, step by step as `crates/hooks/src/guard.rs` has it: a process that notes what it begins before it begins it, holds applications
//! until it is told what was cut or its time is over, and ends what it began. And whoever ends what others left (`forgotten.rs`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::APPS;
use crate::exec::Owner;
use crate::world::World;

/// What a hook may take for one of its stages, in microseconds.
const TIMEOUT_US: u64 = 25_000;
/// For so long applications are held at most.
const HOLD_US: u64 = 60_000;
/// How long whoever is still at work with the note is waited for.
const LOCK_US: u64 = 15_000;
/// What a guard may take for itself.
const ANSWER_US: u64 = 10_000;
/// One of the stages of all hooks.
const STAGE_US: u64 = TIMEOUT_US * APPS as u64;
/// Pre-cuts, post-cuts where one fails, and before that what an earlier guard left.
const READY_US_MAX: u64 = STAGE_US * 3 + ANSWER_US;
const END_US_MAX: u64 = STAGE_US + ANSWER_US;
/// Longer than hooks take, whatever they do.
pub(crate) const PATIENCE_US: u64 = READY_US_MAX + 20_000;

#[derive(Debug)]
enum Said {
    Ready,
    /// Whether all were held when the cut was taken; why not.
    Ended(Result<(), String>),
    /// Of who only ends what others left: why some of it is left.
    Left(Option<String>),
}

#[derive(Debug, Default)]
struct Both {
    /// The cut was taken, or was not.
    verdict: Option<bool>,
    farsided_is_gone: bool,
    said: VecDeque<Said>,
    guard_is_gone: bool,
}

/// The daemon's end of the line to a guard. Dropped, or with its process killed, it says that nothing was cut.
pub(crate) struct Line(Rc<RefCell<Both>>);

impl Drop for Line {
    fn drop(&mut self) {
        self.0.borrow_mut().farsided_is_gone = true;
    }
}

impl Line {
    /// Waits until everything is held.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn ready(&self, world: &World) -> Result<(), String> {
        match self.next(world, READY_US_MAX).await {
            Ok(Said::Ready) => Ok(()),
            Ok(Said::Ended(Err(why))) | Err(why) => Err(why),
            Ok(said) => Err(format!("the guard says {said:?}, which was not asked")),
        }
    }

    /// Says whether the cut was taken, and waits for how it ends.
    ///
    /// # Errors
    /// Why applications were not held all along, or that nobody knows.
    pub(crate) async fn end(&self, world: &World, taken: bool) -> Result<(), String> {
        self.0.borrow_mut().verdict = Some(taken);
        loop {
            match self.next(world, END_US_MAX).await {
                Ok(Said::Ended(result)) => return result,
                Ok(_) => {}
                Err(why) => return Err(why),
            }
        }
    }

    /// Waits for who ends what others left: why some of it is left.
    ///
    /// # Errors
    /// He was lost; what he did until then is done.
    pub(crate) async fn left(&self, world: &World) -> Result<Option<String>, String> {
        match self.next(world, u64::MAX / 2).await? {
            Said::Left(why) => Ok(why),
            said => Err(format!("the guard says {said:?}, which was not asked")),
        }
    }

    async fn next(&self, world: &World, patience_us: u64) -> Result<Said, String> {
        let steps = world.steps();
        steps.pause().await;
        let until = world.now_us.get() + patience_us;
        steps
            .get(|| {
                let mut both = self.0.borrow_mut();
                match both.said.pop_front() {
                    Some(said) => Some(Ok(said)),
                    None if both.guard_is_gone => Some(Err("the guard is lost: it ended before its last word".to_owned())),
                    None if world.now_us.get() >= until => Some(Err("the guard does not answer".to_owned())),
                    None => None,
                }
            })
            .await
    }
}

/// What goes with a guard's process, however it ends.
struct Process {
    world: Rc<World>,
    owner: Owner,
    both: Rc<RefCell<Both>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.both.borrow_mut().guard_is_gone = true;
        self.world.applications.borrow_mut().guards.retain(|guard| *guard != self.owner);
    }
}

/// The lock of the note: gone with who has it.
struct Lock {
    world: Rc<World>,
}

impl Lock {
    fn take(world: &Rc<World>, owner: Owner) -> Option<Self> {
        let mut all = world.applications.borrow_mut();
        if all.locked_by.is_some() {
            return None;
        }
        all.locked_by = Some(owner);
        Some(Self { world: world.clone() })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.world.applications.borrow_mut().locked_by = None;
    }
}

/// Starts a guard for a cut.
pub(crate) fn start(world: &Rc<World>) -> Line {
    begin(world, |process| async move {
        let (world, both) = (process.world.clone(), process.both.clone());
        let result = follow(&process).await;
        world.say(|| format!("guard {} ends: {result:?}", process.owner.0));
        both.borrow_mut().said.push_back(Said::Ended(result));
    })
}

/// Starts one that ends what others left.
pub(crate) fn resume(world: &Rc<World>) -> Line {
    begin(world, |process| async move {
        let why = end_left(&process.world, process.owner).await;
        process.both.borrow_mut().said.push_back(Said::Left(why));
    })
}

fn begin<F: Future<Output = ()> + 'static>(world: &Rc<World>, life: impl FnOnce(Process) -> F) -> Line {
    let both = Rc::<RefCell<Both>>::default();
    let owner = world.owner();
    world.applications.borrow_mut().guards.push(owner);
    let process = Process { world: world.clone(), owner, both: both.clone() };
    world.spawn(owner, format!("guard{}", owner.0), life(process));
    Line(both)
}

/// A guard is killed, this very moment.
pub(crate) fn die(world: &World, guard: Owner) {
    let bodies = world.tasks.borrow_mut().kill(guard);
    drop(bodies);
}

/// Ends what the note says was begun, unless its guard lives; why some of it is left.
pub(crate) async fn end_left(world: &Rc<World>, who: Owner) -> Option<String> {
    world.steps().pause().await;
    let _lock = Lock::take(world, who)?;
    end_noted(world).await
}

async fn end_noted(world: &Rc<World>) -> Option<String> {
    let begun = world.applications.borrow().note.clone()?;
    world.say(|| format!("what was begun is being ended: {begun:?}"));
    let (left, failures) = post_cuts(world, begun).await;
    let why = failures.into_iter().find_map(|failed| match failed {
        Failed::Stays(why) => Some(why),
        Failed::Went(_) => None,
    });
    world.met(if left.is_empty() { "what a guard left is ended" } else { "what a guard left cannot be ended" });
    world.applications.borrow_mut().note = Some(left).filter(|left| !left.is_empty());
    why
}

/// All of its work; why applications were not held all along.
async fn follow(process: &Process) -> Result<(), String> {
    let world = &process.world;
    let steps = world.steps();
    steps.pause().await;
    let until = world.now_us.get() + LOCK_US;
    let is_over = || world.now_us.get() >= until || process.has_heard();
    let lock = steps.get(|| Lock::take(world, process.owner).map(Some).or_else(|| is_over().then_some(None))).await;
    let _lock = lock.ok_or("the guard of an earlier cut is still at work")?;
    if let Some(why) = end_noted(world).await {
        return Err(format!("what an earlier guard began is not ended: {why}"));
    }
    let mut begun = Vec::new();
    let held = match process.pre_cuts(&mut begun).await {
        Ok(hold_until) => process.holds(hold_until).await,
        Err(why) => Err(why),
    };
    let (kept, failures) = post_cuts(world, begun).await;
    steps.pause().await;
    world.applications.borrow_mut().note = Some(kept).filter(|kept| !kept.is_empty());
    held?;
    match failures.into_iter().next() {
        Some(Failed::Stays(why) | Failed::Went(why)) => Err(why),
        None => Ok(()),
    }
}

/// Ends what was begun, the last first: what stays held, and what failed.
async fn post_cuts(world: &Rc<World>, begun: Vec<usize>) -> (Vec<usize>, Vec<Failed>) {
    let (mut kept, mut failures) = (Vec::new(), Vec::new());
    for app in begun.into_iter().rev() {
        if let Err(failed) = post_cut(world, app).await {
            if matches!(failed, Failed::Stays(_)) {
                kept.insert(0, app);
            }
            failures.push(failed);
        }
    }
    (kept, failures)
}

impl Process {
    fn has_heard(&self) -> bool {
        let both = self.both.borrow();
        both.verdict.is_some() || both.farsided_is_gone
    }

    fn verdict(&self) -> Option<Result<(), String>> {
        let both = self.both.borrow();
        match both.verdict {
            Some(true) => Some(Ok(())),
            Some(false) => Some(Err("the cut was not taken".to_owned())),
            None if both.farsided_is_gone => Some(Err("farsided was gone before it said that the cut was taken".to_owned())),
            None => None,
        }
    }

    /// Until when all are held that it asked for.
    async fn pre_cuts(&self, begun: &mut Vec<usize>) -> Result<u64, String> {
        for app in 0..APPS {
            if let Some(heard) = self.verdict() {
                return Err(heard.err().unwrap_or_else(|| "farsided took the cut before everything was held".to_owned()));
            }
            let noted = begun.iter().copied().chain([app]).collect();
            self.world.applications.borrow_mut().note = Some(noted);
            self.world.steps().pause().await;
            begun.push(app);
            self.pre_cut(app).await?;
        }
        let hold_until = self.world.now_us.get() + HOLD_US;
        self.world.say(|| format!("guard {} holds all", self.owner.0));
        self.both.borrow_mut().said.push_back(Said::Ready);
        Ok(hold_until)
    }

    async fn pre_cut(&self, app: usize) -> Result<(), String> {
        let world = &self.world;
        let steps = world.steps();
        let until = world.now_us.get() + TIMEOUT_US;
        let fails = !world.healing.get() && world.chance(0.04);
        // Whatever it has done by then.
        if fails && world.chance(0.5) {
            world.met("a pre-cut fails");
            return Err(format!("the pre-cut of application {app} failed"));
        }
        {
            let all = &mut *world.applications.borrow_mut();
            all.apps[app].is_asked = true;
            all.apps[app].settles(&mut all.holds);
        }
        let slow_us = if !world.healing.get() && world.chance(0.05) { world.rng.borrow_mut().range(1_000, 40_000) } else { 0 };
        let not_before = world.now_us.get() + slow_us;
        let is_held = || world.now_us.get() >= not_before && world.applications.borrow().apps[app].held.is_some();
        steps.until(|| is_held() || world.now_us.get() >= until || self.has_heard()).await;
        if fails {
            world.met("a pre-cut fails");
            return Err(format!("the pre-cut of application {app} failed"));
        }
        if is_held() {
            return Ok(());
        }
        if world.now_us.get() >= until {
            world.met("a pre-cut is not done in time");
            return Err(format!("the pre-cut of application {app} was not done in time"));
        }
        Err(format!("the pre-cut of application {app} was not done when farsided gave up"))
    }

    /// Holds everything until farsided says what became of the cut.
    async fn holds(&self, until: u64) -> Result<(), String> {
        let world = &self.world;
        world
            .steps()
            .get(|| {
                if world.now_us.get() >= until {
                    world.met("the hold of a guard runs out");
                    return Some(Err("the hold ran out before the cut was taken".to_owned()));
                }
                self.verdict()
            })
            .await
    }
}

enum Failed {
    /// It is held still.
    Stays(String),
    /// It went on before.
    Went(String),
}

async fn post_cut(world: &Rc<World>, app: usize) -> Result<(), Failed> {
    let steps = world.steps();
    steps.pause().await;
    if let Some(left) = &mut world.applications.borrow_mut().apps[app].left {
        (left.idle_us, left.tries) = (0, left.tries + 1);
    }
    let healing = world.healing.get();
    let now = world.now_us.get();
    let slow_us = if !healing && world.chance(0.08) { world.rng.borrow_mut().range(1_000, 60_000) } else { 0 };
    steps.until(|| world.now_us.get() >= now + slow_us.min(TIMEOUT_US)).await;
    let is_stuck = world.now_us.get() < world.applications.borrow().apps[app].stuck_until_us;
    if slow_us > TIMEOUT_US || is_stuck || !healing && world.chance(0.04) {
        world.met("a post-cut fails");
        world.say(|| format!("the post-cut of application {app} FAILS"));
        return Err(Failed::Stays(format!("the post-cut of application {app} failed")));
    }
    let mut all = world.applications.borrow_mut();
    let was_asked = all.apps[app].is_asked;
    all.apps[app].let_go();
    if was_asked { Ok(()) } else { Err(Failed::Went(format!("application {app} was not held any more"))) }
}
