//! Applications of the host that are quiesced around cuts, and whoever does that.
//!
//! | here | in the product |
//! |---|---|
//! | `source::quiet`, around the product's `Quieting` | `daemon/src/group/quiet.rs` |
//! | `guard`: a process of its own, which may die at any moment | `crates/hooks`: guards, and what ends what others left |
//! | [`Applications`]: the note and its lock | files in a tmpfs, gone with the power |
//! | `app`: writes one number in two places, on two volumes where there are two | a database, or a file system that is frozen |
//!
//! What must hold, by what is true of the applications and never by what the product believes:
//! - (a) A point is called application-consistent only if all of them were held, without a break, from before the switch until it was over; and
//!   what it holds is what they hold then: the same number in both places.
//! - (b) What is held, and nobody is at work with, is tried to be ended within the pauses that [`LIMITS`] allows for, as long as a daemon lives
//!   that is not busy with hooks. When all is healed nothing is held.
//! - (c) A wish ends, and its asker hears what the ledger says; when nothing goes wrong any more, it is an application-consistent point.
//! - (d) What comes of an attempt is never taken for another one's (`source::quiet` looks at that).

mod app;
pub(crate) mod guard;

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::{Consistency, Label, Layers};
use farside_region::{EpochId, Slot};
use farside_replication::quiet::QuietLimits;
use farside_replication::source::SECOND;

use self::app::App;
use crate::exec::Owner;
use crate::oracle::Published;
use crate::plan::Plan;
use crate::run::Run;
use crate::world::{SECTOR, World};

/// Applications, and sectors that each of them keeps at the end of a volume.
pub(crate) const APPS: usize = 2;
const MS: u64 = SECOND / 1000;
/// The product's, in the time of the simulator.
pub(crate) const LIMITS: QuietLimits = QuietLimits { label_wait: 40 * MS, left_again: 10 * MS, left_again_max: 80 * MS };
/// What the tasks between a pause and a try may take, in microseconds, some of which may be slow.
const SLACK_US: u64 = 120_000;

/// See the head of the file.
#[derive(Debug, Default)]
pub(crate) struct Applications {
    apps: Vec<App>,
    /// What is begun, in that order; `None`: there is no note.
    note: Option<Vec<usize>>,
    /// Who has the note's lock.
    locked_by: Option<Owner>,
    /// Guards that live.
    guards: Vec<Owner>,
    /// Holds that there were.
    holds: u64,
    /// The hold of each application at the newest switch, which is of that epoch and moment.
    switch: Option<(EpochId, u64, Vec<Option<u64>>)>,
    /// Switches until after which all were held, by their moments.
    through: BTreeSet<u64>,
    /// What the ledger says of points.
    labels: BTreeMap<Slot, Label>,
}

impl Applications {
    /// All that the plan has: none, where it is not about this.
    pub(crate) fn new(plan: &Plan) -> Self {
        let count = if plan.hooks { APPS } else { 0 };
        Self { apps: (0..count).map(App::new).collect(), ..Self::default() }
    }

    /// Whether something is begun and not ended.
    pub(crate) fn is_noted(&self) -> bool {
        self.note.is_some()
    }

    /// What the ledger says of a point.
    pub(crate) fn label(&self, slot: Slot) -> Option<&Label> {
        self.labels.get(&slot)
    }

    /// Why it is not over.
    ///
    /// # Errors
    /// Something is held.
    pub(crate) fn go_on(&self) -> Result<(), String> {
        match self.apps.iter().position(|app| app.is_asked) {
            Some(app) => Err(format!("application {app} is held still")),
            None if self.is_noted() => Err("what guards began is noted still".into()),
            None => Ok(()),
        }
    }

    fn held(&self) -> Vec<Option<u64>> {
        self.apps.iter().map(|app| app.held).collect()
    }

    /// The counter moves.
    pub(crate) fn is_cut(&mut self, epoch: EpochId, at_ns: u64) {
        self.switch = Some((epoch, at_ns, self.held()));
    }

    /// The switch is over, and whoever is held is told so.
    pub(crate) fn has_cut(&mut self, epoch: EpochId) {
        let Some((_, at_ns, before)) = self.switch.take().filter(|(of, ..)| *of == epoch) else { return };
        if before.iter().all(Option::is_some) && before == self.held() {
            self.through.insert(at_ns);
        }
    }

    /// A daemon begins: it knows nothing of what was tried.
    pub(crate) fn daemon_begins(&mut self) {
        self.switch = None;
        self.apps.iter_mut().for_each(|app| app.left = None);
    }

    /// (b). `is_looked_after`: a daemon lives that could look now.
    fn time_passes(&mut self, us: u64, is_looked_after: bool) -> Result<(), String> {
        let is_at_work = self.locked_by.is_some();
        for app in &mut self.apps {
            if !app.is_asked {
                app.left = None;
            }
            if is_at_work || !app.is_asked {
                continue;
            }
            let left = app.left.get_or_insert_default();
            left.idle_us += if is_looked_after { us } else { 0 };
            let doubled = LIMITS.left_again.saturating_mul(1 << left.tries.min(10));
            let most_us = doubled.min(LIMITS.left_again_max) / 1_000 + SLACK_US;
            if left.idle_us > most_us {
                return Err(format!(
                    "L1: application {} is held, its guard is gone, and nobody has tried to end that for {} us, after {} tries",
                    app.no, left.idle_us, left.tries
                ));
            }
        }
        Ok(())
    }

    /// (a), of a point that was cut at that moment.
    fn judge(&mut self, world: &World, (slot, at_ns): (Slot, u64), layers: &Layers, images: &Images) -> Result<(), String> {
        let Some(label) = &layers.label else { return Ok(()) };
        self.labels.insert(slot, Label::clone(label));
        if label.consistency != Consistency::Application {
            world.met(if label.hooks.is_empty() {
                "a point without hooks"
            } else {
                "a point says why it is not application-consistent"
            });
            return Ok(());
        }
        world.met("a point is application-consistent");
        let name = || format!("L3: point {slot} is called application-consistent ({label:?})");
        if images.len() != world.volumes() {
            return Err(format!("{}, and lacks a volume", name()));
        }
        if !self.through.contains(&at_ns) {
            return Err(format!("{}, and applications were not held from before its cut until after it", name()));
        }
        for app in &self.apps {
            let numbers: Vec<Option<u64>> = (0..2)
                .map(|half| {
                    let (volume, sector) = app.place(world, half);
                    match images[&volume][sector] {
                        Published::Value(value) => app.number_of(&value),
                        Published::Absent | Published::Unreadable => None,
                    }
                })
                .collect();
            if numbers[0].is_none() || numbers[0] != numbers[1] {
                return Err(format!("{}, and application {} has {numbers:?} in it", name(), app.no));
            }
            if numbers[0] != Some(0) {
                world.met("an application-consistent point holds what an application wrote");
            }
        }
        Ok(())
    }
}

type Images = BTreeMap<usize, Vec<Published>>;

/// A point is published, which was cut at that moment.
pub(crate) fn on_point(world: &World, slot: Slot, at_ns: u64, layers: &Layers, images: &Images) {
    if world.plan.hooks {
        let judged = world.applications.borrow_mut().judge(world, (slot, at_ns), layers, images);
        world.check(judged);
    }
}

/// The places that applications have for themselves.
pub(crate) fn keep(plan: &Plan, sectors: &mut [usize]) {
    if plan.hooks {
        let last = sectors.len() - 1;
        sectors[0] -= APPS;
        sectors[last] -= APPS;
    }
}

impl Run {
    /// They write, unless they are held.
    pub(crate) fn applications_go_on(&self) {
        if !self.world.plan.hooks {
            return;
        }
        for no in 0..APPS {
            if self.world.chance(0.25) {
                app::go_on(&self.world, self.sources[0].as_ref(), no);
            }
        }
    }

    pub(crate) fn applications_are_judged(&self, us: u64) {
        if self.world.plan.hooks {
            let is_looked_after = self.sources[0].as_ref().is_some_and(|source| source.may_look());
            let judged = self.world.applications.borrow_mut().time_passes(us, is_looked_after);
            self.world.check(judged);
        }
    }

    /// Something goes wrong with hooks. Says whether there was something.
    pub(crate) fn hooks_fail(&self) -> bool {
        let world = &self.world;
        let app = world.dice(APPS);
        match world.dice(6) {
            0..3 => {
                let guards = world.applications.borrow().guards.clone();
                if guards.is_empty() {
                    return false;
                }
                let guard = world.rng.borrow_mut().pick(&guards);
                world.say(|| format!("guard {} is KILLED", guard.0));
                world.met("a guard is killed");
                guard::die(world, guard);
            }
            3 => {
                if world.applications.borrow().apps[app].held.is_none() {
                    return false;
                }
                world.say(|| format!("application {app} goes on BY ITSELF"));
                world.met("an application goes on by itself");
                world.applications.borrow_mut().apps[app].let_go();
            }
            _ => {
                let until = world.now_us.get() + world.rng.borrow_mut().range(20_000, 400_000);
                world.say(|| format!("post-cuts of application {app} fail until {} ms", until / 1000));
                world.applications.borrow_mut().apps[app].stuck_until_us = until;
            }
        }
        true
    }
}

/// The machine's power is gone: nothing of this is left, and applications begin anew.
pub(crate) fn power_goes(world: &World) {
    guards_end(world);
    let mut all = world.applications.borrow_mut();
    all.note = None;
    all.apps.iter_mut().for_each(App::let_go);
}

/// Nothing goes wrong any more.
pub(crate) fn heal(world: &World) {
    world.applications.borrow_mut().apps.iter_mut().for_each(|app| app.stuck_until_us = 0);
}

/// All guards end.
pub(crate) fn guards_end(world: &World) {
    let guards = world.applications.borrow().guards.clone();
    guards.into_iter().for_each(|guard| guard::die(world, guard));
}

/// Why applications were not quiesced, for what must be met.
pub(crate) fn kind_of(why: &str) -> &'static str {
    match why {
        _ if why.contains("does not answer") => "hooks fail: no answer",
        _ if why.contains("guard is lost") => "hooks fail: the guard is lost",
        _ if why.contains("hold ran out") => "hooks fail: the hold ran out",
        _ if why.contains("pre-cut") => "hooks fail: a pre-cut",
        _ if why.contains("earlier") => "hooks fail: an earlier guard",
        _ if why.contains("not over") => "hooks fail: a post-cut is late",
        _ if why.contains("post-cut") => "hooks fail: a post-cut",
        _ if why.contains("not held any more") => "hooks fail: an application went on",
        _ if why.contains("in vain") => "hooks fail: a wish is tried in vain",
        _ => "hooks fail: otherwise",
    }
}

/// Where a volume ends, in sectors.
fn end_of(world: &World, volume: usize) -> usize {
    World::first_bytes(&world.plan, volume) as usize / SECTOR
}
