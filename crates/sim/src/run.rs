//! One run: an optional quiet beginning, a phase in which anything may happen, then healing and the demand to converge.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use farside_ledger::Memory;
use farside_replication::failback::At;

use crate::cascade::Cascades;
use crate::failback::Failback;
use crate::failback::held::Folder;
use crate::faults::{HostSnapshot, StoreSnapshot};
use crate::follower::Followed;
use crate::history::Refusal;
use crate::host::{HostOp, Workload};
use crate::judge::Judge;
use crate::net::To;
use crate::plan::{Fault, OfCohort, Plan, Trial};
use crate::receiver::Receiver;
use crate::rng::Rng;
use crate::site::Site;
use crate::source::{self, Source};
use crate::torn::TornLedger;
use crate::trace::Trace;
use crate::world::{REGION_SECTORS, SECTOR, World};
use crate::{cohort, exec, quiet};

/// Steps that the quiet beginning and the healing may take.
const QUIET_STEPS_MAX: u64 = 6_000;
const HEAL_STEPS_MAX: u64 = 40_000;
/// Replay forgets soon: the ledgers of the simulator are short.
pub(crate) const SHORT_MEMORY: Memory = Memory { every: 16, layers: 4, slots: 64 };

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Which seed.
    pub seed: u64,
    /// The law that was broken, or that the run panicked.
    pub bad: Option<String>,
    /// Points published and compared with the truth.
    pub points: u64,
    /// All records accepted.
    pub records: u64,
    /// Steps.
    pub steps: u64,
    /// Rare things that happened, and how often.
    pub met: BTreeMap<&'static str, u64>,
    /// The last lines of the story.
    pub tail: Vec<String>,
}

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Print the story as it happens.
    pub trace: bool,
    /// Mistakes to make, by name.
    pub mutations: &'a [&'a str],
    /// A directed plan instead of the drawn one.
    pub directed: Option<fn(&mut Plan)>,
}

/// Runs a seed. A panic of the product is a broken law.
pub fn run(seed: u64, options: Options<'_>) -> Outcome {
    farside_region::mutation::set(options.mutations);
    Memory::set(Some(SHORT_MEMORY));
    let go = || match options.directed.and_then(cohort::wanted) {
        Some(of) => cohort::Several::new(seed, options, of).go(seed),
        None => Run::new(seed, options).go(seed),
    };
    let outcome = catch_unwind(AssertUnwindSafe(go)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome { seed, bad: Some(format!("PANIC {}", text.unwrap_or_default())), ..Outcome::default() }
    });
    farside_region::mutation::set(&[]);
    Memory::set(None);
    outcome
}

pub(crate) struct Run {
    pub(crate) world: Rc<World>,
    pub(crate) judge: Judge,
    pub(crate) host: Workload,
    /// By site.
    pub(crate) sources: Vec<Option<Rc<Source>>>,
    /// Sites whose machine is switched on, or comes back.
    pub(crate) exists: Vec<bool>,
    /// What each site was last refused for, by volume.
    refused: BTreeMap<(usize, usize), Refusal>,
    pub(crate) receiver: Option<Rc<Receiver>>,
    /// Relative speeds of disks, network, store and tasks.
    speeds: [f64; 4],
    slow_share: f64,
    pub(crate) partition_until: u64,
    /// Until when disks, network, store and threads are slow.
    pub(crate) slow_until: [u64; 4],
    /// A ledger write stalls whose writer is dead.
    pub(crate) stalled_since: Option<u64>,
    wrote: bool,
    /// What is to happen to which backing as soon as nobody serves it.
    pub(crate) pending_away: Option<(Fault, usize)>,
    /// The ledger does not verify: no receiver opens it.
    pub(crate) torn: Option<TornLedger>,
    /// In a trial: how likely a step is a host operation.
    pub(crate) trial_rate: Option<f64>,
    pub(crate) host_snapshots: Vec<HostSnapshot>,
    pub(crate) store_snapshots: Vec<StoreSnapshot>,
    /// The original's disks are brought to what was published since it was failed over.
    pub(crate) failback: Option<Failback>,
    /// What failbacks kept of the original's disks.
    pub(crate) branches: Vec<Folder>,
    /// The point that they were when the last failback from that promotion was given up.
    pub(crate) was: Option<(u64, At)>,
    /// Disks that follow the volumes.
    pub(crate) followers: Vec<Followed>,
    /// Machines that follow with nothing but the store.
    pub(crate) cascades: Cascades,
}

impl Run {
    fn new(seed: u64, options: Options<'_>) -> Self {
        Self::of_cohort(seed, options, None)
    }

    /// One, or one of several.
    pub(crate) fn of_cohort(seed: u64, options: Options<'_>, of: Option<OfCohort>) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng);
        // Of a number of its own: it comes after all else, which is not to change by it.
        plan.full = Rng::new(seed ^ 0xf011).chance(0.1);
        if Rng::new(seed ^ 0x9a57).chance(0.1) {
            plan.faults.push((Fault::Past, 2.0));
        }
        if let Some(direct) = options.directed {
            direct(&mut plan);
        }
        plan.cohort = of;
        let mut sectors: Vec<usize> = (0..plan.regions.len()).map(|v| World::first_bytes(&plan, v) as usize / SECTOR).collect();
        sectors[0] -= of.map_or(0, |of| of.kept);
        quiet::keep(&plan, &mut sectors);
        let host = Workload::new(sectors, REGION_SECTORS, plan.spread, &mut rng);
        let map_bytes = source::map_bytes(&plan);
        let world = World::new(rng, plan, Trace::new(options.trace, of.map(|of| of.host)), map_bytes);
        world.say(|| format!("plan {:?}", world.plan));
        let judge = Judge::new(&world);
        source::format(&world, &world.home());
        let mut run = Self {
            judge,
            host,
            sources: vec![None],
            exists: vec![true],
            refused: BTreeMap::new(),
            receiver: None,
            speeds: [3.0, 3.0, 3.0, 8.0],
            slow_share: 0.0,
            partition_until: 0,
            slow_until: [0; 4],
            stalled_since: None,
            wrote: false,
            pending_away: None,
            torn: None,
            trial_rate: None,
            host_snapshots: Vec::new(),
            store_snapshots: Vec::new(),
            failback: None,
            branches: Vec::new(),
            was: None,
            followers: Vec::new(),
            cascades: Cascades::default(),
            world,
        };
        run.followers_begin();
        run.cascades_begin();
        if run.world.plan.steady || !run.world.plan.alone {
            run.receiver = Some(Receiver::start(&run.world));
        }
        run
    }

    fn go(mut self, seed: u64) -> Outcome {
        self.phases();
        let outcome = Outcome {
            seed,
            bad: self.world.bad(),
            points: self.judge.points(),
            records: self.judge.records(),
            steps: self.world.step.get(),
            met: self.world.all_met(),
            tail: self.world.trace.borrow().tail(),
        };
        self.ends();
        outcome
    }

    /// All that it is made of points at each other.
    pub(crate) fn ends(&mut self) {
        self.sources.iter_mut().filter_map(Option::take).for_each(|source| source.die());
        if let Some(receiver) = self.receiver.take() {
            receiver.die();
        }
        quiet::guards_end(&self.world);
    }

    fn phases(&mut self) {
        let world = self.world.clone();
        if world.plan.trial == Trial::Joins && world.volumes() > 1 {
            world.home().absent.set(Some(world.volumes() - 1));
        }
        if world.plan.trial == Trial::Reboots {
            self.nightly_reboots();
            if world.bad().is_some() {
                return;
            }
        }
        if world.plan.steady && !self.begins_quietly() {
            return;
        }
        self.anything_may_happen();
        for _ in 0..world.plan.steps {
            self.step();
            if world.bad().is_some() {
                return;
            }
        }
        self.heal();
        if world.plan.trial != Trial::None && world.plan.trial != Trial::Reboots {
            self.trial();
            self.heal();
        }
        if world.plan.full && world.bad().is_none() {
            self.full_store();
            self.heal();
        }
    }

    /// False: it did not come to its end.
    pub(crate) fn begins_quietly(&mut self) -> bool {
        let world = self.world.clone();
        world.say(|| "---- quiet beginning".into());
        world.healing.set(true);
        if let Err(why) = self.until_converged(QUIET_STEPS_MAX) {
            world.fail(format!("NO CONVERGENCE in the quiet beginning: {why}"));
            return false;
        }
        world.healing.set(false);
        true
    }

    pub(crate) fn anything_may_happen(&mut self) {
        self.world.say(|| "---- anything may happen".into());
        self.churn();
    }

    pub(crate) fn heal(&mut self) {
        let world = self.world.clone();
        world.say(|| "---- heal".into());
        world.healing.set(true);
        world.net.borrow_mut().up = true;
        let stand_in = world.failover.borrow().as_ref().and_then(|failover| failover.stand_in);
        (1..self.sources.len()).filter(|no| Some(*no) != stand_in).for_each(|no| self.clone_is_destroyed(no));
        for site in world.sites() {
            site.all_disks().for_each(|disk| disk.borrow_mut().mend());
            site.hung_until_us.borrow_mut().fill(0);
            site.state_dir_full.set(false);
        }
        quiet::heal(&world);
        world.store_full_until_us.set(0);
        world.store_left.set(None);
        self.slow_until = [0; 4];
        self.churn();
        world.sites().iter().for_each(|site| site.state_dir.borrow_mut().iter_mut().for_each(|v| v.paused = false));
        self.succession_settles();
        let main = world.main.get().unwrap_or(0);
        self.judge.heal_begins(&world);
        // A write each now and then: convergence is not only of what was left over, and what could not be read is tried again
        // only with a layer (it makes no epoch by itself).
        let mut result = self.until_converged(HEAL_STEPS_MAX / 20);
        for _ in 0..20 {
            if result.is_ok() && self.wrote {
                break;
            }
            if let Some(source) = self.sources[main].clone() {
                for volume in 0..world.volumes() {
                    source.host(volume, HostOp::Write { first: 3, count: 1, fua: false });
                }
                self.wrote = true;
            }
            self.judge.heal_begins(&world);
            result = self.until_converged(HEAL_STEPS_MAX / 20);
            if world.bad().is_some() {
                return;
            }
        }
        if let Err(why) = result {
            world.fail(format!("NO CONVERGENCE: {why}"));
        }
        if world.bad().is_none() {
            self.followers_settle();
        }
        if world.bad().is_none() {
            self.cascades_settle();
        }
        if world.bad().is_none() {
            self.judge_branches();
        }
        self.judge.final_checks(&world, self.receiver.as_deref());
    }

    fn until_converged(&mut self, steps: u64) -> Result<(), String> {
        let mut why = String::new();
        for i in 0..steps {
            self.step();
            if self.world.bad().is_some() {
                return Ok(());
            }
            if i % 20 == 19 {
                match self.converged() {
                    Ok(()) => return Ok(()),
                    Err(w) => why = w,
                }
            }
        }
        Err(why)
    }

    fn converged(&self) -> Result<(), String> {
        let main = self.world.main.get().unwrap_or(0);
        let source = self.sources[main].as_ref().ok_or("the source is down")?;
        let receiver = self.receiver.as_ref().ok_or("the receiver is down")?;
        source.converged()?;
        receiver.converged()?;
        self.judge.converged(&self.world)
    }

    fn churn(&mut self) {
        let mut rng = self.world.rng.borrow_mut();
        self.host.churn(&mut rng);
        let healing = self.world.healing.get();
        for speed in &mut self.speeds[..3] {
            *speed = if healing { 3.0 } else { rng.pick(&[0.3, 1.0, 3.0, 8.0]) };
        }
        if let Some(speed) = self.world.plan.store_speed.filter(|_| !healing) {
            self.speeds[2] = speed;
        }
        self.slow_share = if healing { 0.0 } else { rng.pick(&[0.0, 0.0, 0.15]) };
        self.world.tasks.borrow_mut().churn(&mut rng, self.slow_share);
    }

    pub(crate) fn step(&mut self) {
        let world = self.world.clone();
        world.step.set(world.step.get() + 1);
        let tick = world.rng.borrow_mut().range(1, 400);
        self.time_passes(tick);
        if world.step.get().is_multiple_of(120) {
            self.churn();
        }
        let x = world.rng.borrow_mut().unit();
        let healing = world.healing.get();
        if !healing && x < world.plan.fault_rate {
            self.fault();
        } else if self.trial_rate.map_or(!healing && x < world.plan.fault_rate + self.host.rate, |rate| x < rate) {
            self.host_op();
        } else {
            self.something_goes_on();
        }
        self.kill_unsynced();
        self.revive();
        self.followers_go_on();
        self.cascades_go_on();
        self.applications_go_on();
        self.judge.look(&world, self.sources.iter().flatten(), self.receiver.as_deref());
    }

    /// Whoever is held is so no longer than it may be: nothing keeps a timer of holds from its work.
    pub(crate) fn time_passes(&self, us: u64) {
        self.world.now_us.set(self.world.now_us.get() + us);
        self.sources.iter().flatten().for_each(|source| source.end_holds());
        self.applications_are_judged(us);
    }

    /// Kills the source when an intent page is written and its sync is not yet asked for.
    fn kill_unsynced(&mut self) {
        let world = self.world.clone();
        let may = world.plan.killed_unsynced && !world.healing.get() && self.sources[0].is_some();
        // Behind the two headers.
        if may && world.home().maps.iter().any(|m| m.borrow().waits_for_a_flush(2)) && world.chance(0.3) {
            world.met("killed between a page's write and its sync");
            self.source_ends(0, "is killed between a page's write and its sync");
        }
    }

    fn something_goes_on(&mut self) {
        let world = &self.world;
        let busy = |b: bool, speed: f64| if b { speed } else { 0.0 };
        let disks = world.sites().iter().any(|s| s.has_work(world.now_us.get()));
        let now = world.now_us.get();
        let speed = |i: usize| if now < self.slow_until[i] { 0.03 } else { self.speeds[i] };
        let weights = [
            busy(disks, speed(0)),
            busy(world.net.borrow().pending() > 0, speed(1)),
            busy(!world.store.borrow().in_flight().is_empty(), speed(2)),
            speed(3),
        ];
        let choice = world.rng.borrow_mut().weighted(&weights);
        match choice {
            Some(0) => {
                self.advance_disk();
            }
            Some(1) => self.deliver(),
            Some(2) => self.land_put(),
            _ => {
                let name = exec::step(&world.tasks, &world.rng);
                if name.is_none() {
                    // Everything waits: for a timer, or for the world.
                    if !self.advance_disk() {
                        self.time_passes(3_000);
                    }
                }
            }
        }
    }

    /// Lets an operation of some machine's disk go on; false when all are idle.
    fn advance_disk(&self) -> bool {
        let world = &self.world;
        let busy = |s: &Rc<Site>| s.has_work(world.now_us.get());
        let sites: Vec<_> = world.sites().into_iter().filter(busy).collect();
        if sites.is_empty() {
            return false;
        }
        let mut rng = world.rng.borrow_mut();
        let site = if sites.len() > 1 { &sites[rng.below(sites.len())] } else { &sites[0] };
        site.advance_disk(&mut rng, world.now_us.get())
    }

    fn deliver(&mut self) {
        let world = &self.world;
        let message = world.net.borrow_mut().arrive(&mut world.rng.borrow_mut());
        let Some(message) = message else { return };
        match message.to {
            To::Receiver => {
                if let Some(receiver) = &self.receiver {
                    receiver.on_message(message.conn, message.load);
                }
            }
            To::Source => {
                // Each takes what is for its own connection.
                let sources: Vec<_> = self.sources.iter().flatten().cloned().collect();
                sources.iter().for_each(|s| s.on_message(message.conn, message.load.clone()));
            }
        }
    }

    fn land_put(&mut self) {
        let world = self.world.clone();
        let put = {
            let store = world.store.borrow();
            world.rng.borrow_mut().pick(&store.in_flight())
        };
        let created = world.store.borrow_mut().land(put);
        created.for_each(|slot| self.judge.on_record(&world, slot));
    }

    fn host_op(&mut self) {
        let no = if self.sources.len() > 1 { self.world.rng.borrow_mut().below(self.sources.len()) } else { 0 };
        let Some(source) = self.sources[no].clone() else { return };
        let (volume, op) = self.host.next(&mut self.world.rng.borrow_mut());
        if source.open_requests(volume) < self.host.depth {
            source.host(volume, op);
        }
    }

    fn revive(&mut self) {
        let world = self.world.clone();
        let healing = world.healing.get();
        self.stalled_writers();
        self.succession();
        for no in 0..self.sources.len() {
            self.revive_source(no);
        }
        self.person_mends_ledger();
        if self.receiver.is_none() && self.torn.is_none() && world.chance(if healing { 0.5 } else { world.plan.receiver_rate }) {
            world.say(|| "receiver up".into());
            self.receiver = Some(Receiver::start(&world));
        }
        if !world.net.borrow().up && (healing || world.now_us.get() > self.partition_until) {
            world.say(|| "network up".into());
            world.net.borrow_mut().up = true;
        }
    }

    fn revive_source(&mut self, no: usize) {
        let world = self.world.clone();
        let healing = world.healing.get();
        if self.sources[no].as_ref().is_some_and(|s| s.wants_to_end()) {
            self.source_ends(no, "planned stop");
            if world.plan.has(Fault::Power) && world.chance(0.5) && !healing {
                self.power_cut(no);
            }
        }
        if no == 0 {
            self.while_away();
        }
        if self.sources[no].is_none()
            && self.exists[no]
            && world.chance(if healing { 0.3 } else { world.plan.boot_rate.max(0.1 * no.min(1) as f64) })
        {
            self.sources[no] = Source::boot(&world, &world.site(no));
            self.refused.retain(|(site, _), _| *site != no);
        }
        if world.site(no).state_dir_full.get() && world.chance(0.002) {
            world.say(|| "the state directory has room again".into());
            world.site(no).state_dir_full.set(false);
        }
        let Some(source) = self.sources[no].clone() else { return };
        if healing && self.trial_rate.is_none() {
            source.resume_all();
        }
        if source.needs_restart() && (healing || world.chance(0.003)) {
            // An operator repairs the state directory and restarts.
            let site = world.site(no);
            site.state_dir_full.set(false);
            site.maps.iter().for_each(|map| map.borrow_mut().mend());
            if world.chance(0.5) || healing {
                self.source_ends(no, "is restarted with a sound state directory");
            } else {
                source.meddle(Fault::Stop, 0);
            }
            return;
        }
        let refused = source.refused();
        self.refused.retain(|(site, volume), why| *site != no || refused.contains(&(*volume, *why)));
        for (volume, why) in refused {
            if self.refused.insert((no, volume), why).is_none() {
                world.met(match why {
                    Refusal::Forked if no > 0 => "a clone is Forked",
                    Refusal::Forked => "Forked",
                    Refusal::TargetRewound => "TargetRewound",
                    Refusal::Fenced => "Fenced",
                });
                self.judge.on_refusal(&world, source.site(), volume, why);
            }
            self.person_answers(no, volume, why);
        }
    }
}
