//! Several hosts whose groups are cut as one: a whole simulated world for each, with a clock of its own, and between them the product's
//! `Conductor`, connections that break, and applications that write at one host after the other.
//!
//! | here | in the product |
//! |---|---|
//! | a `Run` for each host: source, its receiver, ledger and store | `daemon/`, and a group's thread in `receiver/` |
//! | `Conductor` and `CohortMember` | the same |
//! | `line` | connections on which nothing waits behind data |
//! | `Several::conduct`, `Several::look` | `receiver/src/cohort.rs` |
//!
//! Hosts take their steps in an order that chance decides, some of them far more than others: no two clocks agree, and none is compared.
//! The judge (`judge`) reads the ledgers: what they say to be one cut holds no write without what was complete before it was issued.

mod app;
mod judge;
pub mod line;

use farside_region::{Name, Slot};
use farside_replication::cohort::{
    CohortAction, CohortConfig, CohortEvent, CohortLimits, CohortOutcome, CohortsKept, Conductor, whole,
};
use farside_replication::source::SECOND;
use farside_wire::CohortAsk;

use self::app::Chain;
use self::judge::{Judge, Seen};
use self::line::Heard;
use crate::plan::{OfCohort, Plan, Trouble};
use crate::rng::Rng;
use crate::run::{Options, Outcome, Run};

const MS: u64 = SECOND / 1000;
/// Applications that are spread over all hosts.
const CHAINS: usize = 3;
/// Steps, of all hosts together and for each of them, in which anything may happen.
const STEPS: u64 = 5_000;
/// And in which cuts must be whole when nothing goes wrong any more.
const CUTS_STEPS: u64 = 20_000;
/// Holds that no slow task makes run out.
const LONG_HOLD_US: u32 = 60_000;
/// So many whole cuts are kept: fewer than the product does, or no run would have more.
const KEPT: usize = 2;
const DAY_MS: i64 = 86_400_000;
const COHORT: &str = "erp";

/// Whether a directed plan is about this.
pub(crate) fn wanted(directed: fn(&mut Plan)) -> Option<OfCohort> {
    let mut plan = Plan::draw(&mut Rng::new(0));
    directed(&mut plan);
    plan.cohort
}

/// See the head of the file.
pub(crate) struct Several {
    rng: Rng,
    step: u64,
    hosts: Vec<Run>,
    /// How often each of them takes a step.
    speeds: Vec<f64>,
    /// Hosts that stand still until that step: a machine that is suspended, whose clocks jump.
    still_until: Vec<u64>,
    /// The gateway's clock.
    now: u64,
    conductor: Option<Conductor<usize>>,
    /// The groups of the cohort, as the configuration is now.
    groups: Vec<usize>,
    /// For so long writes are to be held, as whoever configures the gateway thinks.
    hold_us: u32,
    /// What the gateway knows of whole cuts; nothing when it has just begun.
    kept: CohortsKept<usize, Slot>,
    /// It asked all groups of the cohort since it began.
    remembers: bool,
    /// How wrong the gateway's wall clock is.
    wall_off_ms: i64,
    connections: u64,
    chains: Vec<Chain>,
    judge: Judge,
    healing: bool,
    trouble: Trouble,
    fault_rate: f64,
}

impl Several {
    pub(crate) fn new(seed: u64, options: Options<'_>, is_of: OfCohort) -> Self {
        let mut rng = Rng::new(seed ^ 0xc0_4027);
        // Of two none can leave.
        let count = if is_of.trouble == Trouble::Gateway { 3 } else { rng.pick(&[2, 2, 3]) };
        let hold_us =
            if is_of.trouble == Trouble::Gateway { rng.pick(&[10_000, 20_000]) } else { rng.pick(&[20_000, 40_000, 70_000]) };
        let hosts: Vec<Run> = (0..count)
            .map(|host| {
                let hold_us_max = rng.pick(&[hold_us / 2, hold_us, hold_us, hold_us * 2]);
                let of = OfCohort { host, hold_us_max, kept: CHAINS, ..is_of };
                Run::of_cohort(seed.wrapping_mul(8) + host as u64, options, Some(of))
            })
            .collect();
        Self {
            step: 0,
            speeds: vec![1.0; count],
            still_until: vec![0; count],
            now: 1,
            conductor: None,
            groups: (0..count).collect(),
            hold_us,
            kept: CohortsKept::default(),
            remembers: false,
            wall_off_ms: 0,
            connections: 0,
            chains: (0..CHAINS).map(Chain::new).collect(),
            judge: Judge::new(count),
            healing: false,
            trouble: is_of.trouble,
            fault_rate: match is_of.trouble {
                Trouble::Everywhere => 0.0008,
                Trouble::Seldom => 0.0002,
                Trouble::Gateway => 0.001,
            },
            hosts,
            rng,
        }
    }

    pub(crate) fn go(mut self, seed: u64) -> Outcome {
        self.phases();
        let mut outcome = Outcome { seed, points: self.judge.whole(), ..Outcome::default() };
        for host in &mut self.hosts {
            let world = host.world.clone();
            outcome.bad = outcome.bad.or_else(|| world.bad());
            outcome.records += host.judge.records();
            outcome.steps += world.step.get();
            world.all_met().into_iter().for_each(|(what, n)| *outcome.met.entry(what).or_default() += n);
            outcome.tail.extend(world.trace.borrow().tail());
            host.ends();
        }
        outcome
    }

    fn is_bad(&self) -> bool {
        self.hosts.iter().any(|host| host.world.bad().is_some())
    }

    fn phases(&mut self) {
        for host in &mut self.hosts {
            if host.world.plan.steady && !host.begins_quietly() {
                return;
            }
            host.anything_may_happen();
        }
        for _ in 0..STEPS * self.hosts.len() as u64 {
            self.step();
            if self.is_bad() {
                return;
            }
        }
        // † Nobody conducts any more, whatever was under way: all go on, each by itself.
        self.gateway_ends();
        self.healing = true;
        // The gateway is there all the same, and knows what it keeps.
        self.look_for_whole_cuts();
        for host in 0..self.hosts.len() {
            self.hosts[host].heal();
            self.look(host);
            if self.is_bad() {
                return;
            }
        }
        // And with somebody who conducts there are cuts again.
        self.groups = (0..self.hosts.len()).collect();
        self.hold_us = LONG_HOLD_US;
        for host in &self.hosts {
            let mut of = host.world.of_cohort.get();
            of.hold_us_max = LONG_HOLD_US;
            host.world.of_cohort.set(of);
        }
        let before = self.judge.whole();
        for _ in 0..CUTS_STEPS * self.hosts.len() as u64 {
            if self.judge.whole() > before || self.hosts.iter().any(|host| host.judge.is_degraded()) {
                break;
            }
            self.step();
            if self.is_bad() {
                return;
            }
        }
        // † A region that is called unreadable and is not rewritten in full stays that, and no cut with it is whole.
        let is_degraded = self.hosts.iter().any(|host| host.judge.is_degraded());
        if self.judge.whole() <= before && is_degraded {
            self.hosts[0].world.met("no cut of a cohort is whole: a region is called unreadable");
        } else if self.judge.whole() <= before {
            self.hosts[0].world.fail("NO CONVERGENCE: no cut of the cohort is whole, and nothing is wrong any more".into());
        }
        self.hosts.iter().for_each(|host| host.judge.final_checks(&host.world, None));
    }

    fn step(&mut self) {
        self.step += 1;
        if self.step.is_multiple_of(150) {
            self.churn();
        }
        self.now += self.rng.range(1, 400) * 1_000 / self.hosts.len() as u64;
        if !self.healing && self.rng.chance(self.fault_rate) {
            self.fault();
        }
        self.gateway();
        for at in 0..self.chains.len() {
            if self.rng.chance(0.25) {
                let chain = &mut self.chains[at];
                chain.go_on(&self.hosts, &mut self.rng, self.step);
            }
        }
        let (step, still) = (self.step, &self.still_until);
        let weights: Vec<f64> =
            self.speeds.iter().zip(still).map(|(speed, until)| if step < *until { 0.0 } else { *speed }).collect();
        if let Some(host) = self.rng.weighted(&weights) {
            self.hosts[host].step();
            self.look(host);
        }
    }

    fn churn(&mut self) {
        for speed in &mut self.speeds {
            let is_even = self.healing || self.trouble == Trouble::Gateway;
            *speed = if is_even { 1.0 } else { self.rng.pick(&[0.2, 1.0, 1.0, 1.0, 3.0]) };
        }
    }

    fn fault(&mut self) {
        let host = self.rng.below(self.hosts.len());
        let world = self.hosts[host].world.clone();
        let of_gateway = [2, 5, 5, 6, 8, 8, 9, 9].map(Some);
        let which = if self.trouble == Trouble::Gateway { self.rng.pick(&of_gateway) } else { None };
        match which.unwrap_or_else(|| self.rng.below(12)) {
            0 | 1 if world.lines.borrow_mut().one_breaks(&mut self.rng) => {
                world.say(|| "a connection of the cohort breaks".into());
                world.met("a connection of a cohort breaks");
            }
            2 => {
                self.gateway_ends();
                world.met("who conducts dies");
                // The groups' part of the same process.
                if self.rng.chance(0.5) {
                    self.hosts.iter_mut().filter(|host| host.receiver.is_some()).for_each(|host| host.receiver_ends(false));
                }
            }
            3 | 4 => {
                self.still_until[host] = self.step + self.rng.range(20, 600);
                // Its clock jumps when it goes on; what it had in hand is as it was.
                world.met("a host stands still");
                world.say(|| "the host is suspended".into());
                self.hosts[host].time_passes(self.rng.range(0, 400_000));
            }
            5 => self.cohort_changes(),
            6 => {
                if let Some(conductor) = &mut self.conductor {
                    let mut out = Vec::new();
                    conductor.step(self.now, CohortEvent::Wanted, &mut out);
                    self.conduct(out);
                }
            }
            8 => {
                world.met("the gateway's clock is set");
                self.wall_off_ms = self.rng.pick(&[0, 0, DAY_MS, -DAY_MS]);
            }
            9 if self.hosts[host].receiver.is_some() => {
                world.met("a group of a cohort does not answer");
                self.hosts[host].receiver_ends(false);
            }
            7 if self.hosts[host].sources[0].is_some() => {
                world.met("a host dies by itself");
                self.hosts[host].source_ends(0, "is killed");
            }
            _ => {}
        }
    }

    /// A group leaves the configuration, or comes into it.
    fn cohort_changes(&mut self) {
        if self.hosts.len() < 3 || self.conductor.is_none() {
            return;
        }
        let mut out = Vec::new();
        if let Some(conductor) = &mut self.conductor {
            conductor.end(self.now, &mut out);
        }
        self.conduct(out);
        self.groups = if self.groups.len() == self.hosts.len() {
            let leaves = self.rng.below(self.hosts.len());
            (0..self.hosts.len()).filter(|host| *host != leaves).collect()
        } else {
            (0..self.hosts.len()).collect()
        };
        self.hosts[0].world.met("a group joins or leaves a cohort");
        self.kept.ask_again(&name());
        self.conducts_anew();
    }

    fn conducts_anew(&mut self) {
        let config = CohortConfig {
            name: name(),
            groups: self.groups.clone(),
            every: u64::from(self.hold_us) * 1_000 * if self.healing { 6 } else { self.rng.pick(&[2, 5, 6]) },
            hold_us: self.hold_us,
        };
        let limits = CohortLimits { prepare: 180 * MS, answer: 150 * MS, pause_max: 1 };
        let mut conductor = Conductor::new(config, limits, self.now + self.rng.range(5, 40) * MS);
        let mut out = Vec::new();
        for group in self.groups.clone() {
            if let Some(connection) = self.hosts[group].world.lines.borrow().newest() {
                conductor.step(self.now, CohortEvent::Joined { group, connection }, &mut out);
            }
        }
        self.conductor = Some(conductor);
        self.hosts.iter().for_each(|host| host.world.hold_us.set(u64::from(self.hold_us)));
        self.look_for_whole_cuts();
        self.conduct(out);
    }

    /// Nothing of what it knew is kept.
    fn gateway_ends(&mut self) {
        self.conductor = None;
        self.kept = CohortsKept::default();
        self.remembers = false;
        self.tell_groups();
        self.hosts.iter().for_each(|host| host.world.lines.borrow_mut().gateway_ends());
    }

    fn gateway(&mut self) {
        if self.conductor.is_none() {
            if self.rng.chance(if self.healing { 0.1 } else { 0.02 }) {
                self.conducts_anew();
                self.hosts.iter().for_each(|host| host.world.lines.borrow_mut().is_open = true);
            }
            return;
        }
        if !self.kept.knows([&name()]) && self.rng.chance(0.05) {
            self.look_for_whole_cuts();
        }
        let host = self.rng.below(self.hosts.len());
        let heard = if self.hosts[host].world.net.borrow().up {
            self.hosts[host].world.lines.borrow_mut().hear(&mut self.connections, &mut self.rng)
        } else {
            None
        };
        let Some(conductor) = &mut self.conductor else { return };
        let mut out = Vec::new();
        if let Some(heard) = heard {
            let group = host;
            let event = match heard {
                Heard::Joined(connection) => CohortEvent::Joined { group, connection },
                Heard::Said(connection, say) => CohortEvent::Said { group, connection, say },
                Heard::Left(connection) => CohortEvent::Left { group, connection },
            };
            // Of a group that is of no cohort nobody hears.
            if self.groups.contains(&group) {
                conductor.step(self.now, event, &mut out);
            }
        }
        if self.now >= conductor.due() {
            let (cut, wall_ms) = (self.rng.bytes16(), 1_700_000_000_000 + (self.now / MS) as i64 + self.wall_off_ms);
            conductor.step(self.now, CohortEvent::Tick { cut, wall_ms }, &mut out);
        }
        self.conduct(out);
    }

    /// Carries out what the conductor wants. What cannot be asked has gone, which is an event, too.
    fn conduct(&mut self, mut out: Vec<CohortAction<usize>>) {
        while !out.is_empty() {
            for action in std::mem::take(&mut out) {
                match action {
                    CohortAction::Ask { group, connection, ask } => {
                        if let CohortAsk::Prepare { cut, .. } = &ask {
                            self.judge.begun(*cut, &self.groups, self.step);
                        }
                        let world = self.hosts[group].world.clone();
                        world.say(|| format!("is asked over {connection}: {ask:?}"));
                        let is_asked = world.lines.borrow_mut().ask(connection, ask);
                        if let Some(conductor) = self.conductor.as_mut().filter(|_| !is_asked) {
                            conductor.step(self.now, CohortEvent::Left { group, connection }, &mut out);
                        }
                    }
                    CohortAction::Done(outcome) => self.done(&outcome),
                }
            }
        }
    }

    fn done(&mut self, outcome: &CohortOutcome<usize>) {
        let world = self.hosts[0].world.clone();
        world.say(|| format!("cut of the cohort: {outcome:?}"));
        match &outcome.result {
            Ok(_) => {
                world.met("a cut of a cohort is one");
                self.judge.is_one(outcome.cut);
                self.look_for_whole_cuts();
            }
            Err((_, why)) => world.met(judge::kind_of(why)),
        }
    }

    /// What the gateway keeps of cuts that are whole: it asks all groups of the store, of which some may not answer.
    fn look_for_whole_cuts(&mut self) {
        let answers = |host: &Run| host.receiver.as_ref().map(|receiver| (receiver.cuts_of(COHORT), receiver.cohort_points()));
        let (mut groups, mut seen) = (Vec::new(), Vec::<Seen>::new());
        for (group, answer) in self.hosts.iter().map(answers).enumerate() {
            let (cuts, points) = answer.unzip();
            groups.extend(cuts.map(|cuts| (group, cuts)));
            seen.push(points);
        }
        let is_all = self.groups.iter().all(|group| seen[*group].is_some());
        let called: Vec<_> = whole(&groups).iter().map(|whole| whole.cut.cut).collect();
        self.judge.calls_whole(&self.hosts, &seen, &called);
        if is_all || self.remembers {
            self.judge.looked(&self.hosts, &seen, self.remembers, KEPT);
        }
        self.remembers |= is_all;
        if !is_all {
            self.hosts[0].world.met("not every group of a cohort says what it has");
            self.kept.ask_again(&name());
        }
        self.kept.found(&name(), &groups, |group| seen[*group].is_none(), is_all, KEPT);
        self.tell_groups();
    }

    /// What each group may not give up, as far as that is known.
    fn tell_groups(&self) {
        let cohort = name();
        for (group, host) in self.hosts.iter().enumerate() {
            let has_points = host.judge.cohort_points().next().is_some();
            let of = (has_points || self.groups.contains(&group)).then_some(&cohort);
            *host.world.kept.borrow_mut() = self.kept.knows(of).then(|| self.kept.of_group(&group));
        }
    }

    fn look(&mut self, host: usize) {
        self.judge.look(host, &self.hosts, &self.chains);
    }
}

fn name() -> Name {
    COHORT.parse().expect("a valid name")
}
