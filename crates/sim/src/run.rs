//! One run: an optional quiet beginning, a phase in which anything may happen, then healing and the demand to converge.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use farside_region::Slot;

use crate::disk::Disk;
use crate::exec;
use crate::host::{HostOp, Workload};
use crate::judge::Judge;
use crate::net::To;
use crate::plan::{Fault, Plan};
use crate::receiver::{self, Receiver};
use crate::rng::Rng;
use crate::source::{self, Source};
use crate::store::MemoryStore;
use crate::trace::Trace;
use crate::world::{REGION_SECTORS, SECTOR, SegmentKey, VolumeState, World};

/// Steps that the quiet beginning and the healing may take.
const QUIET_STEPS_MAX: u64 = 6_000;
const HEAL_STEPS_MAX: u64 = 40_000;

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
    let outcome = catch_unwind(AssertUnwindSafe(|| Run::new(seed, options).go(seed))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome { seed, bad: Some(format!("PANIC {}", text.unwrap_or_default())), ..Outcome::default() }
    });
    farside_region::mutation::set(&[]);
    outcome
}

struct Run {
    world: Rc<World>,
    judge: Judge,
    host: Workload,
    source: Option<Rc<Source>>,
    receiver: Option<Rc<Receiver>>,
    /// Relative speeds of disks, network, store and tasks.
    speeds: [f64; 4],
    slow_share: f64,
    partition_until: u64,
    wrote: bool,
    host_snapshots: Vec<HostSnapshot>,
    store_snapshots: Vec<StoreSnapshot>,
}

/// Everything that a rollback of the host brings back.
struct HostSnapshot {
    disks: Vec<Vec<u8>>,
    maps: Vec<Vec<u8>>,
    state: Vec<VolumeState>,
}

/// Everything that a rollback of the store brings back, what the judge knew included.
struct StoreSnapshot {
    store: MemoryStore<SegmentKey>,
    landing: BTreeMap<SegmentKey, Vec<u8>>,
    pinned: BTreeMap<Slot, Slot>,
    judge: Judge,
}

impl Run {
    fn new(seed: u64, options: Options<'_>) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng);
        if let Some(direct) = options.directed {
            direct(&mut plan);
        }
        let sectors: Vec<usize> = (0..plan.regions.len()).map(|v| World::volume_bytes(&plan, v) as usize / SECTOR).collect();
        let host = Workload::new(sectors, REGION_SECTORS, plan.spread, &mut rng);
        let map_bytes = source::map_bytes(&plan);
        let world = World::new(rng, plan, Trace::new(options.trace), map_bytes);
        world.say(|| format!("plan {:?}", world.plan));
        let judge = Judge::new(&world);
        source::format(&world);
        let mut run = Self {
            judge,
            host,
            source: None,
            receiver: None,
            speeds: [3.0, 3.0, 3.0, 8.0],
            slow_share: 0.0,
            partition_until: 0,
            wrote: false,
            host_snapshots: Vec::new(),
            store_snapshots: Vec::new(),
            world,
        };
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
            tail: self.world.trace.borrow().tail(),
        };
        if let Some(source) = self.source.take() {
            source.die();
        }
        if let Some(receiver) = self.receiver.take() {
            receiver.die();
        }
        outcome
    }

    fn phases(&mut self) {
        let world = self.world.clone();
        if world.plan.steady {
            world.say(|| "---- quiet beginning".into());
            world.healing.set(true);
            if let Err(why) = self.until_converged(QUIET_STEPS_MAX) {
                world.fail(format!("NO CONVERGENCE in the quiet beginning: {why}"));
                return;
            }
            world.healing.set(false);
        }
        world.say(|| "---- anything may happen".into());
        self.churn();
        for _ in 0..world.plan.steps {
            self.step();
            if world.bad().is_some() {
                return;
            }
        }
        self.heal();
    }

    fn heal(&mut self) {
        let world = self.world.clone();
        world.say(|| "---- heal".into());
        world.healing.set(true);
        world.net.borrow_mut().up = true;
        for disk in &world.disks {
            disk.borrow_mut().mend();
        }
        self.churn();
        world.state_dir.borrow_mut().iter_mut().for_each(|v| v.paused = false);
        self.judge.heal_begins(&world);
        // A write each now and then: convergence is not only of what was left over, and what could not be read is tried again
        // only with a layer (it makes no epoch by itself).
        let mut result = self.until_converged(HEAL_STEPS_MAX / 20);
        for _ in 0..20 {
            if result.is_ok() && self.wrote {
                break;
            }
            if let Some(source) = self.source.clone() {
                for volume in 0..world.disks.len() {
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
        let source = self.source.as_ref().ok_or("the source is down")?;
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

    fn step(&mut self) {
        let world = self.world.clone();
        world.step.set(world.step.get() + 1);
        let tick = world.rng.borrow_mut().range(1, 400);
        world.now_us.set(world.now_us.get() + tick);
        if world.step.get().is_multiple_of(120) {
            self.churn();
        }
        let x = world.rng.borrow_mut().unit();
        let healing = world.healing.get();
        if !healing && x < world.plan.fault_rate {
            self.fault();
        } else if !healing && x < world.plan.fault_rate + self.host.rate {
            self.host_op();
        } else {
            self.something_goes_on();
        }
        self.revive();
        self.judge.look(&world, self.source.as_deref(), self.receiver.as_deref());
    }

    fn something_goes_on(&mut self) {
        let world = &self.world;
        let busy = |b: bool, speed: f64| if b { speed } else { 0.0 };
        let disks = world.disks.iter().chain(&world.maps).any(|d| !d.borrow().quiet());
        let weights = [
            busy(disks, self.speeds[0]),
            busy(world.net.borrow().pending() > 0, self.speeds[1]),
            busy(!world.store.borrow().in_flight().is_empty(), self.speeds[2]),
            self.speeds[3],
        ];
        let choice = world.rng.borrow_mut().weighted(&weights);
        match choice {
            Some(0) => {
                world.advance_disk();
            }
            Some(1) => self.deliver(),
            Some(2) => self.land_put(),
            _ => {
                let name = exec::step(&world.tasks, &world.rng);
                if name.is_none() {
                    // Everything waits: for a timer, or for the world.
                    if !world.advance_disk() {
                        world.now_us.set(world.now_us.get() + 3_000);
                    }
                }
            }
        }
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
                if let Some(source) = &self.source {
                    source.on_message(message.conn, message.load);
                }
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
        if let Some(slot) = created {
            self.judge.on_record(&world, slot);
        }
    }

    fn host_op(&mut self) {
        let Some(source) = self.source.clone() else { return };
        let (volume, op) = self.host.next(&mut self.world.rng.borrow_mut());
        if source.open_requests(volume) < self.host.depth {
            source.host(volume, op);
        }
    }

    fn revive(&mut self) {
        let world = self.world.clone();
        let healing = world.healing.get();
        if self.source.as_ref().is_some_and(|s| s.wants_to_end()) {
            self.source_ends("planned stop");
            if world.plan.has(Fault::Power) && world.chance(0.5) && !healing {
                self.power_cut();
            }
        }
        if self.source.is_none() && world.chance(if healing { 0.3 } else { world.plan.boot_rate }) {
            self.source = Source::boot(&world);
        }
        if self.receiver.is_none() && world.chance(if healing { 0.5 } else { world.plan.receiver_rate }) {
            world.say(|| "receiver up".into());
            self.receiver = Some(Receiver::start(&world));
        }
        if let Some(source) = &self.source {
            if healing {
                source.resume_all();
            }
            for volume in source.refused() {
                if !world.plan.is_nasty() {
                    world.fail(format!("L6: v{volume} is refused in a run without rollback, reinstallation or store rollback"));
                }
                world.must_refuse.borrow_mut()[volume] = false;
                if world.chance(0.02) {
                    source.accept(volume);
                }
            }
        }
        if !world.net.borrow().up && (healing || world.now_us.get() > self.partition_until) {
            world.say(|| "network up".into());
            world.net.borrow_mut().up = true;
        }
    }

    fn source_ends(&mut self, how: &str) {
        let world = self.world.clone();
        world.say(|| format!("source {how}"));
        if let Some(source) = self.source.take() {
            source.die();
        }
        let alive = world.net.borrow().alive();
        if let Some(conn) = alive {
            self.reset(conn, how);
        }
        world.net.borrow_mut().forget(To::Source);
        for disk in world.disks.iter().chain(&world.maps) {
            disk.borrow_mut().orphan();
        }
    }

    fn power_cut(&mut self) {
        let world = &self.world;
        world.say(|| "power cut".into());
        for disk in world.disks.iter().chain(&world.maps) {
            disk.borrow_mut().power_cut(&mut world.rng.borrow_mut());
        }
        source::rebooted(world);
    }

    fn reset(&mut self, conn: crate::net::ConnId, why: &str) {
        let world = &self.world;
        world.say(|| format!("reset of connection {} ({why})", conn.0));
        world.net.borrow_mut().reset(conn, &mut world.rng.borrow_mut());
        if let Some(source) = &self.source {
            source.on_reset(conn);
        }
    }

    fn receiver_ends(&mut self, power: bool) {
        let world = self.world.clone();
        world.say(|| format!("receiver {}", if power { "loses power" } else { "is killed" }));
        if let Some(receiver) = self.receiver.take() {
            receiver.die();
        }
        receiver::crashed(&world, power);
        let alive = world.net.borrow().alive();
        if let Some(conn) = alive {
            self.reset(conn, "the receiver is gone");
        }
        world.net.borrow_mut().forget(To::Receiver);
    }

    fn fault(&mut self) {
        let world = self.world.clone();
        let weights: Vec<f64> = world.plan.faults.iter().map(|f| f.1).collect();
        let Some(i) = world.rng.borrow_mut().weighted(&weights) else { return };
        let fault = world.plan.faults[i].0;
        let volume = world.rng.borrow_mut().below(world.disks.len());
        match fault {
            Fault::Crash if self.source.is_some() => self.source_ends("is killed"),
            Fault::Power => {
                self.source_ends("loses power");
                self.power_cut();
            }
            Fault::Stop => {
                if let Some(source) = &self.source {
                    source.stop();
                }
            }
            Fault::Reset => {
                let alive = world.net.borrow().alive();
                if let Some(conn) = alive {
                    self.reset(conn, "network");
                }
            }
            Fault::Partition => {
                let alive = world.net.borrow().alive();
                if let Some(conn) = alive {
                    self.reset(conn, "partition");
                }
                world.net.borrow_mut().up = false;
                self.partition_until = world.now_us.get() + world.rng.borrow_mut().range(1_000, 200_000);
            }
            Fault::ReceiverCrash | Fault::ReceiverPower if self.receiver.is_some() => {
                self.receiver_ends(fault == Fault::ReceiverPower);
            }
            Fault::ReadError => {
                let mut disk = world.disks[volume].borrow_mut();
                let sector = world.rng.borrow_mut().below(disk.sectors());
                disk.spoil(sector);
                drop(disk);
                world.say(|| format!("v{volume} sector {sector} cannot be read"));
            }
            Fault::WriteError => {
                let failed = world.disks[volume].borrow_mut().fail_a_write(&mut world.rng.borrow_mut());
                if failed {
                    world.say(|| format!("v{volume} a write in flight will fail"));
                }
            }
            Fault::FlushError => {
                world.disks[volume].borrow_mut().fail_flush();
                world.say(|| format!("v{volume} the next flush will fail"));
            }
            Fault::Demote | Fault::Pause | Fault::Resync => {
                if let Some(source) = &self.source {
                    source.meddle(fault, volume);
                }
            }
            Fault::Rollback => self.rollback(),
            Fault::Reinstall if world.chance(0.3) => self.reinstall(),
            Fault::StoreRollback if self.receiver.is_some() => self.store_rollback(),
            Fault::Pin => {
                if let Some(receiver) = &self.receiver {
                    receiver.pin_something();
                }
            }
            _ => {}
        }
    }

    fn rollback(&mut self) {
        let world = self.world.clone();
        if self.host_snapshots.is_empty() || world.chance(0.5) {
            if self.host_snapshots.len() < 3 {
                world.say(|| "snapshot of the host".into());
                let images = |disks: &[RefCell<Disk>]| disks.iter().map(|d| d.borrow().image()).collect();
                let state = world.state_dir.borrow().clone();
                self.host_snapshots.push(HostSnapshot { disks: images(&world.disks), maps: images(&world.maps), state });
            }
            return;
        }
        self.source_ends("is ROLLED BACK");
        let at = world.rng.borrow_mut().below(self.host_snapshots.len());
        let snapshot = &self.host_snapshots[at];
        for (disk, image) in world.disks.iter().zip(&snapshot.disks).chain(world.maps.iter().zip(&snapshot.maps)) {
            disk.borrow_mut().restore(image);
        }
        world.state_dir.borrow_mut().clone_from(&snapshot.state);
        world.taint();
        source::rebooted(&world);
    }

    fn reinstall(&mut self) {
        let world = self.world.clone();
        self.source_ends("is REINSTALLED: no map, no header");
        for volume in 0..world.disks.len() {
            let image = world.disks[volume].borrow().image();
            world.disks[volume].borrow_mut().restore(&image);
            let bytes = world.maps[volume].borrow().image().len();
            world.maps[volume].borrow_mut().restore(&vec![0; bytes]);
            world.state_dir.borrow_mut()[volume] = VolumeState::default();
            world.must_refuse.borrow_mut()[volume] = self.judge.has_layers(&world, volume);
        }
        source::format(&world);
        world.taint();
        source::rebooted(&world);
    }

    fn store_rollback(&mut self) {
        let world = self.world.clone();
        if self.store_snapshots.is_empty() || world.chance(0.5) {
            if self.store_snapshots.len() < 3 {
                world.say(|| "snapshot of the store".into());
                self.store_snapshots.push(StoreSnapshot {
                    store: world.store.borrow().snapshot(),
                    landing: world.landing.borrow().clone(),
                    pinned: world.pinned.borrow().clone(),
                    judge: self.judge.clone(),
                });
            }
            return;
        }
        self.receiver_ends(true);
        let at = world.rng.borrow_mut().below(self.store_snapshots.len());
        self.store_snapshots.truncate(at + 1);
        let snapshot = &self.store_snapshots[at];
        world.say(|| format!("the STORE IS ROLLED BACK to {} records", snapshot.store.ledger().len()));
        world.store.replace(snapshot.store.snapshot());
        world.landing.replace(snapshot.landing.clone());
        world.pinned.replace(snapshot.pinned.clone());
        world.unpacked.borrow_mut().clear();
        self.judge.go_back(&snapshot.judge);
        world.taint();
    }
}
