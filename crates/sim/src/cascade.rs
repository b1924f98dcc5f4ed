//! Cascades: machines that have nothing but the store keep a disk equal to a volume's points, by the product's [`RestingGroup`], [`Wanted`] and
//! [`Follower`], as `farside store follow` does, while the gateway publishes, prunes, merges, writes checkpoints, and deletes what no lease keeps.
//!
//! [`RestingGroup`]: farside_store::RestingGroup
//! [`Follower`]: farside_store::Follower
//!
//! Each is a process that goes on by one request to the store, or one write to its disk, at a time (`cascade/process.rs`). Between two of them it may be
//! killed, with its disk's power or without, or stall for longer than a lease lives; the service may be away, or not let it write; and the gateway's
//! collector, the product's as well, looks and deletes in between. What the judge knows:
//!
//! - what a cascade says that its disk holds, it holds, durably, in every sector: the point of that slot and digest, whatever history is there now;
//! - of what a point needs nothing is missing as long as leases keep it that were acknowledged and have not run out; and nothing is ever
//!   damaged, so nobody may say so: who lost his point is told that it was taken away, and goes on;
//! - whoever waits has no lease;
//! - when nothing goes wrong any more, each holds the point that it should, soon.
//!
//! Not modelled: stores in directories, whose lock has directed schedules (`resting_tests`), leases that are renewed (`lease_tests`), requests that
//! land after they were given up, strangers (`follower`), and targets that are opened anew while a process lives.

mod bucket;
mod process;

use std::sync::Arc;

use farside_region::{LedgerPosition, Slot};
use farside_store::{FollowStage, GroupObject, ObjectName, PartName, StoreError, Wanted};

use crate::exec::Owner;
use crate::follower::Machine;
use crate::run::Run;
use crate::shelf::group_names;
use crate::world::{SegmentKey, World};
use process::{Answer, Ask, Order, Process, Turned};

/// How long a lease lives, by the service's clock.
const HOLD_MS: i64 = 6 * 3600 * 1000;
/// For so long at most one stalls, in microseconds: some leases' lives.
const STALL_US: u64 = 500_000;
/// Operations within which each must hold what it should when nothing goes wrong any more, and turns.
const SETTLED_WITHIN: (usize, usize) = (20_000, 24);
/// Operations that follow each other at once, at most.
const AT_ONCE: usize = 40;

/// All of them, and the gateway's collector.
#[derive(Debug, Default)]
pub struct Cascades {
    all: Vec<Cascade>,
    collector: Option<Collector>,
    /// The service answers nobody before that time, in microseconds.
    away_until: u64,
    /// A store went back to an earlier moment.
    went_back: bool,
}

#[derive(Debug)]
struct Collector {
    of: Owner,
    process: Process,
    /// What was given up when it began to look.
    due: Vec<(SegmentKey, PartName, Slot)>,
}

#[derive(Debug)]
struct Cascade {
    volume: usize,
    wanted: Wanted,
    machine: Arc<Machine>,
    process: Option<Process>,
    stalled_until: u64,
    /// How fast it is.
    speed: f64,
    /// It may not write to the store.
    is_denied: bool,
    /// Leases that were acknowledged and not removed, and when that was.
    leases: Vec<(ObjectName, i64)>,
    /// It goes on without a lease that it wanted.
    is_unkept: bool,
    /// The service failed since its turn began.
    has_failed: bool,
    /// The store went back to an earlier moment since it looked at all of it.
    is_behind: bool,
    /// Its power went: who wrote to a device meanwhile nobody can tell, but by the point that it held.
    was_off: bool,
    /// A person is to give up what is on its disk.
    heal: bool,
    turns: usize,
}

impl Cascades {
    /// The store is what it was at an earlier moment.
    pub(crate) fn store_went_back(&mut self) {
        self.went_back = true;
        for cascade in &mut self.all {
            (cascade.is_behind, cascade.is_unkept) = (true, true);
        }
    }
}

impl Cascade {
    fn new(world: &World, no: usize) -> Self {
        let volume = no % world.volumes();
        let delay_ms = 10 + world.dice(60) as u64;
        Self {
            volume,
            wanted: if world.chance(0.25) { Wanted::Behind(delay_ms) } else { Wanted::Newest },
            machine: Arc::new(Machine::new(world, volume)),
            process: None,
            stalled_until: 0,
            speed: world.rng.borrow_mut().pick(&[0.02, 0.06, 0.2]),
            is_denied: false,
            leases: Vec::new(),
            is_unkept: false,
            has_failed: false,
            is_behind: false,
            was_off: false,
            heal: false,
            turns: 0,
        }
    }

    fn start(&mut self, world: &World) {
        let order = Order {
            names: group_names(world),
            volume: world.names.volumes[self.volume].clone(),
            wanted: self.wanted,
            heal: std::mem::take(&mut self.heal),
        };
        self.is_denied = !world.healing.get() && world.chance(0.1);
        self.is_behind = false;
        self.process = Some(Process::cascade(order, &self.machine));
    }

    /// It is gone, in the middle of what it was at.
    fn ends(&mut self, world: &World, power: bool) {
        let Some(mut process) = self.process.take() else { return };
        let at_disk = matches!(process.waits, Some(Ask::Disk));
        if let Some(ask @ Ask::Create(..)) = &process.waits
            && world.chance(0.5)
        {
            let _ = bucket::answer(world, ask); // it lands, and nobody hears of it
        }
        if !at_disk {
            self.machine.lock().left = 0;
        }
        if !process.die() {
            world.fail("PANIC of a cascade".into());
        }
        self.machine.lock().begins_anew(power);
        self.stalled_until = 0;
        self.was_off |= power;
        self.leases.clear();
        (self.is_unkept, self.has_failed) = (false, false);
    }

    /// Whether all that it reads is kept.
    fn is_kept(&self, world: &World) -> bool {
        let now_ms = world.service_ms();
        !self.is_unkept && !self.leases.is_empty() && self.leases.iter().all(|(_, since_ms)| now_ms - since_ms <= HOLD_MS)
    }

    /// What the service answers it, and what the judge makes of that.
    fn answer(&mut self, world: &World, ask: &Ask, fails: bool) -> Answer {
        let is_lease = |name: &ObjectName| matches!(group_names(world).parse(name), Some(GroupObject::Lease(_)));
        if self.is_denied && matches!(ask, Ask::Create(..)) {
            self.is_unkept = true;
            world.met("a cascade may not write to the store");
            return Answer::Denied;
        }
        if fails {
            self.has_failed = true;
            if let Ask::Create(..) = ask {
                self.is_unkept = true;
                if world.chance(0.5) {
                    let _ = bucket::answer(world, ask);
                }
            }
            if let Ask::Delete(name) = ask {
                self.leases.retain(|(lease, _)| lease != name); // it is left to expire
            }
            return Answer::Failed;
        }
        let answer = bucket::answer(world, ask);
        match ask {
            Ask::Create(name, _) if is_lease(name) => self.leases.push((name.clone(), world.service_ms())),
            Ask::Delete(name) => self.leases.retain(|(lease, _)| lease != name),
            Ask::Range(name, ..) if matches!(answer, Answer::Bytes(None)) => {
                world.met("what a cascade reads is gone");
                if self.is_kept(world) && bucket::segment_of(world, name).is_some() {
                    world.fail(format!("L4: {name} was deleted, and a cascade reads it with a lease that holds"));
                }
            }
            _ => {}
        }
        answer
    }
}

impl Run {
    /// The machines, where the plan has any.
    pub(crate) fn cascades_begin(&mut self) {
        let world = self.world.clone();
        self.cascades.all = (0..world.plan.cascades).map(|no| Cascade::new(&world, no)).collect();
    }

    /// Each goes on by some operations, or something befalls it.
    pub(crate) fn cascades_go_on(&mut self) {
        let world = self.world.clone();
        if self.cascades.all.is_empty() || world.bad().is_some() {
            return;
        }
        let (now, healing) = (world.now_us.get(), world.healing.get());
        if !healing && world.chance(0.0005) {
            world.met("the store is away from cascades");
            self.cascades.away_until = now + world.rng.borrow_mut().range(1_000, 60_000);
        }
        self.collector_goes_on();
        for no in 0..self.cascades.all.len() {
            let cascade = &mut self.cascades.all[no];
            if cascade.process.is_none() {
                if world.chance(if healing { 0.3 } else { 0.02 }) {
                    cascade.start(&world);
                }
                continue;
            }
            if !healing && world.chance(0.0001) {
                self.cascade_is_killed(no);
                continue;
            }
            if !healing && world.chance(0.0005) {
                world.met("a sync of a cascade's disk fails");
                cascade.machine.lock().disk.fail_flush();
            }
            if now >= cascade.stalled_until && world.chance(cascade.speed) {
                self.cascade_steps(no, 0.3);
            }
        }
    }

    fn cascade_is_killed(&mut self, no: usize) {
        let world = self.world.clone();
        world.met("a cascade is killed");
        let power = world.chance(0.5);
        world.say(|| format!("cascade {no} is killed; its power goes: {power}"));
        self.cascades.all[no].ends(&world, power);
        self.judge_cascade(no);
    }

    /// Whether something befalls it in the middle of a turn, before its next operation.
    fn cascade_is_hit(&mut self, no: usize) -> bool {
        let world = self.world.clone();
        let cascade = &mut self.cascades.all[no];
        let waits = cascade.process.as_ref().and_then(|process| process.waits.as_ref());
        if world.healing.get() || matches!(waits, Some(Ask::Rest(_) | Ask::Get(_))) {
            return false;
        }
        if world.chance(0.01) {
            self.cascade_is_killed(no);
            return true;
        }
        if !world.chance(0.04) {
            return false;
        }
        let long = world.chance(0.3);
        world.met(if long { "a cascade stalls for long" } else { "a cascade stalls" });
        let us = if long { STALL_US } else { STALL_US / 10 };
        cascade.stalled_until = world.now_us.get() + world.rng.borrow_mut().range(1_000, us);
        true
    }

    /// Some operations of one. `on`: how likely each is followed by another at once.
    fn cascade_steps(&mut self, no: usize, on: f64) {
        let world = self.world.clone();
        for _ in 0..AT_ONCE {
            if self.cascade_is_hit(no) {
                return;
            }
            let away = world.now_us.get() < self.cascades.away_until;
            let cascade = &mut self.cascades.all[no];
            let Some(process) = &mut cascade.process else { return };
            let Some(ask) = process.waits.take() else {
                cascade.ends(&world, false);
                return world.fail(format!("PANIC: cascade {no} has ended by itself"));
            };
            let answer = match &ask {
                Ask::Rest(_) if on < 1.0 && !world.chance(if world.healing.get() { 0.05 } else { 0.3 }) => {
                    process.waits = Some(ask);
                    return;
                }
                Ask::Rest(turned) => {
                    let turned = turned.as_ref();
                    if !self.cascade_turned(no, turned) {
                        return;
                    }
                    let thorough = on == 1.0 || world.chance(0.05);
                    let cascade = &mut self.cascades.all[no];
                    cascade.is_behind &= !thorough;
                    Answer::Go { thorough }
                }
                Ask::Disk => Answer::Go { thorough: false },
                asked => {
                    let fails = away || (!world.healing.get() && world.chance(0.002));
                    cascade.answer(&world, asked, fails)
                }
            };
            let is_disk = matches!(ask, Ask::Disk);
            // A ledger is read faster than the world goes on.
            let at_once = matches!(&ask, Ask::Get(_) | Ask::Size(_)) && world.chance(0.9);
            let cascade = &mut self.cascades.all[no];
            let Some(process) = &mut cascade.process else { return };
            process.answer(answer);
            if is_disk || matches!(process.waits, Some(Ask::Rest(_))) {
                self.judge_cascade(no);
            }
            if world.bad().is_some() || !(at_once || world.chance(on)) {
                return;
            }
        }
    }

    /// A turn has ended, and another is to begin. False: it does not, because a person is asked first.
    fn cascade_turned(&mut self, no: usize, turned: Option<&Turned>) -> bool {
        let world = self.world.clone();
        let went_back = self.cascades.went_back;
        let cascade = &mut self.cascades.all[no];
        let Some(turned) = turned else { return true };
        cascade.turns += 1;
        world.say(|| format!("cascade {no} of v{}: {turned:?}", cascade.volume));
        if !cascade.leases.is_empty() {
            world.fail(format!("L4: cascade {no} waits, and keeps {} leases", cascade.leases.len()));
        }
        let (has_failed, is_behind) = (std::mem::take(&mut cascade.has_failed), cascade.is_behind);
        cascade.is_unkept = is_behind;
        match turned {
            Turned::Nothing => {}
            Turned::Arrived(at) if cascade.machine.following().stage == FollowStage::At(*at) => world.met("a cascade arrives"),
            Turned::Arrived(at) => world.fail(format!("cascade {no} says that it arrived at {at:?}, and keeps something else")),
            Turned::There(at, there) if *there == Some(at.digest) => world.met("a cascade is where it should be"),
            Turned::There(at, there) => {
                world.fail(format!("L6: cascade {no} says that point {at:?} is there; the ledger has {there:?} in that slot"));
            }
            Turned::Failed(error) if error.is_taken() => world.met("a point is taken away from a cascade"),
            Turned::Failed(StoreError::TargetOfAnotherHistory { .. }) if went_back => {
                world.met("a cascade holds a point of another history");
                return self.cascade_is_healed(no);
            }
            // Nobody keeps that point for it.
            Turned::Failed(StoreError::TargetDiverged { why, .. }) if cascade.was_off && why.contains("not retained") => {
                world.met("what a cascade that was off held is gone");
                return self.cascade_is_healed(no);
            }
            Turned::Failed(StoreError::Remote { .. } | StoreError::RemoteDenied { .. }) if has_failed => {
                world.met("the store does not answer a cascade");
            }
            Turned::Failed(StoreError::Target { .. }) => world.met("a cascade's disk fails"),
            // Before there is any claim of it.
            Turned::Failed(StoreError::NoSuchVolume { .. }) => {}
            Turned::Failed(error) if is_behind && (error.is_unread() || matches!(error, StoreError::TargetUntold { .. })) => {
                world.met("a cascade meets what went back")
            }
            Turned::Failed(error) => world.fail(format!("cascade {no} of v{}: {error}", cascade.volume)),
        }
        true
    }

    /// A person gives up what its disk holds.
    fn cascade_is_healed(&mut self, no: usize) -> bool {
        let cascade = &mut self.cascades.all[no];
        cascade.ends(&self.world, false);
        (cascade.heal, cascade.was_off) = (true, false);
        false
    }

    /// What it says is so.
    fn judge_cascade(&self, no: usize) {
        let (world, cascade) = (&self.world, &self.cascades.all[no]);
        let (FollowStage::At(at), volume) = (cascade.machine.following().stage, cascade.volume) else { return };
        let Some(image) = self.judge.image_ever(volume, &at) else {
            return world.fail(format!("cascade {no} of v{volume} is at {at:?}, which never was a point of it"));
        };
        if let Err(why) = cascade.machine.holds(image, &Default::default()) {
            world.fail(format!("L4: cascade {no} of v{volume} says that it is at point {}; {why}", at.slot));
        }
    }

    /// The gateway's collector looks who reads, and lets go what nobody does.
    fn collector_goes_on(&mut self) {
        let world = self.world.clone();
        let of = self.receiver.as_ref().map(|receiver| receiver.owner());
        if self.cascades.collector.as_ref().is_some_and(|collector| Some(collector.of) != of) {
            self.cascades.collector = None; // its process is gone
        }
        let (Some(receiver), Some(of)) = (self.receiver.clone(), of) else { return };
        let away = world.now_us.get() < self.cascades.away_until;
        let new = || Collector { of, process: Process::collector(group_names(&world)), due: Vec::new() };
        let collector = self.cascades.collector.get_or_insert_with(new);
        while world.chance(0.4) {
            let Some(ask) = collector.process.waits.take() else {
                return world.fail("PANIC: the collector has ended by itself".into());
            };
            let answer = match &ask {
                Ask::Rest(_) => {
                    let due = if world.chance(0.1) { receiver.given_up() } else { Vec::new() };
                    if due.is_empty() {
                        collector.process.waits = Some(ask);
                        return;
                    }
                    collector.due = due;
                    Answer::Go { thorough: false }
                }
                Ask::Looked(held) => {
                    receiver.delete_freed(std::mem::take(&mut collector.due), held);
                    Answer::Go { thorough: false }
                }
                _ if away => Answer::Failed,
                asked => bucket::answer(&world, asked),
            };
            collector.process.answer(answer);
        }
    }

    /// Nothing goes wrong any more: each holds what it should soon.
    pub(crate) fn cascades_settle(&mut self) {
        let world = self.world.clone();
        self.cascades.away_until = 0;
        for no in 0..self.cascades.all.len() {
            let (volume, wanted) = (self.cascades.all[no].volume, self.cascades.all[no].wanted);
            let id = world.names.ids[volume];
            let find = |run: &Self| {
                let state = run.judge.state();
                let slot = wanted.find(state, id, &Default::default()).ok()?.slot;
                Some(LedgerPosition { slot, digest: state.digest_at(slot)? })
            };
            let Some(want) = find(self) else { continue };
            self.cascades.all[no].machine.lock().disk.mend();
            self.cascades.all[no].stalled_until = 0;
            self.cascades.all[no].turns = 0;
            let is_there = |cascade: &Cascade| {
                let following = cascade.machine.following();
                following.stage == FollowStage::At(want) && !following.is_in_doubt()
            };
            for _ in 0..SETTLED_WITHIN.0 {
                let cascade = &mut self.cascades.all[no];
                if world.bad().is_some() || cascade.turns > SETTLED_WITHIN.1 || (cascade.turns > 1 && is_there(cascade)) {
                    break;
                }
                if cascade.process.is_none() {
                    cascade.start(&world);
                }
                self.cascade_steps(no, 1.0);
            }
            let cascade = &self.cascades.all[no];
            if world.bad().is_none() && !is_there(cascade) {
                let following = cascade.machine.following();
                let stage = following.stage;
                return world.fail(format!("NO CONVERGENCE: cascade {no} of v{volume} is {stage:?}, and wants {want:?}"));
            }
        }
    }
}
