//! What goes wrong, and what operators do: each fault of the plan, carried out.

use std::collections::BTreeMap;

use farside_ledger::KeptEnd;
use farside_region::{LayerKey, Slot};

use crate::coverage;
use crate::history::Tips;
use crate::judge::Judge;
use crate::net::ConnId;
use crate::oracle::value;
use crate::plan::Fault;
use crate::quiet;
use crate::receiver;
use crate::run::Run;
use crate::site::{Site, Snapshot, VolumeState};
use crate::source;
use crate::store::MemoryStore;
use crate::world::{GRANULE_SHIFT, SECTOR, SegmentKey};

/// Everything that a rollback of the host brings back, or a clone is made of.
pub(crate) struct HostSnapshot {
    site: Snapshot,
    tips: Tips,
}

/// Everything that a rollback of the store brings back, what the judge knew included.
pub(crate) struct StoreSnapshot {
    store: MemoryStore<SegmentKey>,
    landing: BTreeMap<SegmentKey, Vec<u8>>,
    ends: BTreeMap<LayerKey, KeptEnd>,
    pinned: BTreeMap<Slot, Slot>,
    judge: Judge,
}

impl Run {
    /// A site's process ends, whatever it was at.
    pub(crate) fn source_ends(&mut self, no: usize, how: &str) {
        let world = self.world.clone();
        world.say(|| format!("source {}{how}", if no == 0 { String::new() } else { format!("of clone {no} ") }));
        if let Some(source) = self.sources[no].take() {
            source.die();
        }
        let alive = world.net.borrow().alive(no);
        if let Some(conn) = alive {
            self.reset(conn, how);
        }
        world.site(no).all_disks().for_each(|disk| disk.borrow_mut().orphan());
    }

    /// A site, without a process, loses its power.
    pub(crate) fn power_cut(&mut self, no: usize) {
        let world = &self.world;
        world.say(|| "power cut".into());
        let site = world.site(no);
        site.all_disks().for_each(|disk| disk.borrow_mut().power_cut(&mut world.rng.borrow_mut()));
        source::rebooted(world, &site);
        if no == 0 {
            quiet::power_goes(world);
        }
    }

    fn reset(&mut self, conn: ConnId, why: &str) {
        let world = &self.world;
        world.say(|| format!("reset of connection {} ({why})", conn.0));
        world.net.borrow_mut().reset(conn, &mut world.rng.borrow_mut());
        self.sources.iter().flatten().for_each(|source| source.on_reset(conn));
    }

    /// The receiver's process ends.
    pub(crate) fn receiver_ends(&mut self, power: bool) {
        let world = self.world.clone();
        world.say(|| format!("receiver {}", if power { "loses power" } else { "is killed" }));
        if let Some(receiver) = self.receiver.take() {
            receiver.die();
        }
        receiver::crashed(&world, power);
        let alive = world.net.borrow().all_alive();
        alive.into_iter().for_each(|conn| self.reset(conn, "the receiver is gone"));
        world.net.borrow_mut().forget_receiver();
    }

    /// Something goes wrong, or an operator does something: what the plan's weights say.
    pub(crate) fn fault(&mut self) {
        let world = self.world.clone();
        let weights: Vec<f64> = world.plan.faults.iter().map(|f| f.1).collect();
        let Some(i) = world.rng.borrow_mut().weighted(&weights) else { return };
        let fault = world.plan.faults[i].0;
        let mut no = 0;
        if self.sources.len() > 1 {
            no = world.rng.borrow_mut().below(self.sources.len());
        }
        let volume = world.rng.borrow_mut().below(world.volumes());
        if self.strikes(fault, no, volume) {
            world.met(coverage::name_of(fault));
        }
    }

    /// Says whether it struck: there may be nothing to strike now, and what happens to a backing does so later.
    fn strikes(&mut self, fault: Fault, no: usize, volume: usize) -> bool {
        let world = self.world.clone();
        match fault {
            Fault::Crash if self.sources[no].is_some() => self.source_ends(no, "is killed"),
            Fault::Power => {
                self.source_ends(no, "loses power");
                self.power_cut(no);
            }
            Fault::Stop | Fault::Demote | Fault::Pause | Fault::Resync | Fault::Verify | Fault::Past => {
                return self.sources[no].as_ref().is_some_and(|source| source.meddle(fault, volume));
            }
            Fault::Reset => return self.reset_alive("network"),
            Fault::Partition => {
                self.reset_alive("partition");
                world.net.borrow_mut().up = false;
                self.partition_until = world.now_us.get() + world.rng.borrow_mut().range(1_000, 200_000);
            }
            Fault::ReceiverCrash | Fault::ReceiverPower if self.receiver.is_some() => {
                self.receiver_ends(fault == Fault::ReceiverPower);
            }
            Fault::ReadError | Fault::WriteError | Fault::FlushError | Fault::DeadSector | Fault::Hang | Fault::MapError => {
                return self.disk_fault(&world.site(no), fault, volume);
            }
            Fault::StoreFull => {
                world.say(|| "the store is full".into());
                world.met("full store");
                world.store_full_until_us.set(world.now_us.get() + world.rng.borrow_mut().range(3_000, 100_000));
            }
            Fault::Slow => self.something_is_slow(),
            Fault::ClockJump => self.clock_jumps(),
            Fault::StalledWriter => {
                world.say(|| "the next ledger write stalls".into());
                world.store.borrow_mut().stall_next();
            }
            Fault::Rollback => return self.rollback(no),
            Fault::Clone => return self.clone_comes_or_goes(),
            Fault::Reinstall if world.chance(0.3) => self.reinstall(no),
            Fault::StoreRollback if self.receiver.is_some() => return self.store_rollback(),
            Fault::TornLedger if self.receiver.is_some() && world.chance(0.4) => return self.ledger_tears(),
            Fault::Grow | Fault::Offline | Fault::Swap => {
                self.away(fault, volume);
                return false;
            }
            Fault::Promote => return self.promote(),
            Fault::Rejoin => return self.rejoin(),
            Fault::Hooks => return self.hooks_fail(),
            Fault::Pin => return self.receiver.as_ref().is_some_and(|receiver| receiver.pin_something()),
            _ => return false,
        }
        true
    }

    /// Something is going to happen to a backing of the original while nobody serves it: after a planned stop, or a sudden end.
    fn away(&mut self, fault: Fault, volume: usize) {
        let world = self.world.clone();
        self.pending_away.get_or_insert((fault, volume));
        let Some(source) = self.sources[0].clone() else { return };
        match world.dice(if fault == Fault::Offline { 2 } else { 4 }) {
            0 | 1 => _ = source.meddle(Fault::Stop, volume),
            2 => self.source_ends(0, "is killed"),
            _ => {
                self.source_ends(0, "loses power");
                self.power_cut(0);
            }
        }
    }

    /// Nobody serves the original now: what was to happen to a backing does, unless it must not be told from what we do.
    pub(crate) fn while_away(&mut self) {
        let world = self.world.clone();
        let home = world.home();
        if self.sources[0].is_some() || self.pending_away.is_none() || !home.disks.iter().all(|d| d.borrow().quiet()) {
            return;
        }
        let (fault, volume) = self.pending_away.take().expect("just seen");
        let told_by_times = world.plan.files && source::is_clean(&home, volume);
        match fault {
            Fault::Grow => {
                let (now, most) = (home.geometry_found(volume).volume_bytes(), world.names.geometry[volume].volume_bytes());
                let granules = (most - now) >> GRANULE_SHIFT;
                let all = granules == 0 || world.chance(0.5);
                let bytes = if all { most } else { now + ((1 + world.dice(granules as usize) as u64) << GRANULE_SHIFT) };
                if bytes > now {
                    self.write_around_us(volume, now as usize / SECTOR, bytes as usize / SECTOR, 0.5);
                    home.has_size(volume, bytes);
                    home.backings.borrow_mut()[volume].changed += 1;
                    self.host.sectors[volume] = bytes as usize / SECTOR;
                    world.met(coverage::name_of(fault));
                    world.say(|| format!("the backing of v{volume} GROWS from {now} to {bytes} bytes"));
                }
                if bytes > now && told_by_times && world.chance(0.5) {
                    self.write_around_us(volume, 0, now as usize / SECTOR, 0.2);
                    home.backings.borrow_mut()[volume].meddled = true;
                }
            }
            Fault::Offline if told_by_times => {
                world.met(coverage::name_of(fault));
                world.say(|| format!("somebody writes to the backing of v{volume} without us"));
                self.write_around_us(volume, 0, self.host.sectors[volume], 0.2);
                let backing = &mut home.backings.borrow_mut()[volume];
                (backing.changed, backing.meddled) = (backing.changed + 1, true);
            }
            Fault::Swap => {
                world.met(coverage::name_of(fault));
                world.say(|| format!("ANOTHER DISK takes the place of the backing of v{volume}"));
                self.write_around_us(volume, 0, self.host.sectors[volume], 0.6);
                let backing = &mut home.backings.borrow_mut()[volume];
                (backing.identity, backing.meddled) = (backing.identity + 1, true);
            }
            _ => {}
        }
    }

    /// Some sectors of a range get content that never passed a tap.
    fn write_around_us(&self, volume: usize, from: usize, to: usize, share: f64) {
        let (world, home) = (&self.world, self.world.home());
        let mut disk = home.disks[volume].borrow_mut();
        let mut image = disk.image();
        for sector in (from..to).filter(|_| world.chance(share)) {
            image[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(&value(world.tag(), volume, sector));
        }
        disk.restore(&image);
    }

    fn reset_alive(&mut self, why: &str) -> bool {
        let alive = self.world.net.borrow().all_alive();
        let some = !alive.is_empty();
        alive.into_iter().for_each(|conn| self.reset(conn, why));
        some
    }

    fn disk_fault(&self, site: &Site, fault: Fault, volume: usize) -> bool {
        let world = &self.world;
        let mut disk = site.disks[volume].borrow_mut();
        match fault {
            Fault::ReadError => {
                let sector = world.rng.borrow_mut().below(disk.sectors());
                disk.spoil(sector);
                world.say(|| format!("v{volume} sector {sector} cannot be read"));
            }
            Fault::WriteError => {
                if !disk.fail_a_write(&mut world.rng.borrow_mut()) {
                    return false;
                }
                world.say(|| format!("v{volume} a write in flight will fail"));
            }
            Fault::DeadSector => {
                let sector = world.dice(disk.sectors());
                disk.kill_sector(sector);
                world.met("dead sector");
                world.say(|| format!("v{volume} sector {sector} is DEAD"));
            }
            Fault::Hang => {
                let until = world.now_us.get() + world.rng.borrow_mut().range(2_000, 150_000);
                site.hung_until_us.borrow_mut()[volume] = until;
                world.met("hung disk");
                world.say(|| format!("v{volume} hangs until {} ms", until / 1000));
            }
            Fault::MapError => self.map_fault(site, volume),
            _ => {
                disk.fail_flush();
                world.say(|| format!("v{volume} the next flush will fail"));
            }
        }
        true
    }

    fn map_fault(&self, site: &Site, volume: usize) {
        let world = &self.world;
        let mut map = site.maps[volume].borrow_mut();
        match world.dice(4) {
            0 => drop(map.fail_a_write(&mut world.rng.borrow_mut())),
            1 => map.fail_flush(),
            _ => map.break_writes(),
        }
        if world.plan.state_dir_fills && world.chance(0.3) {
            site.state_dir_full.set(true);
        }
        world.met("intent map fails");
        world.say(|| format!("v{volume} its intent map fails; state directory full: {}", site.state_dir_full.get()));
    }

    fn something_is_slow(&mut self) {
        let world = self.world.clone();
        let what = world.dice(self.slow_until.len());
        self.slow_until[what] = world.now_us.get() + world.rng.borrow_mut().range(5_000, 100_000);
        world.met("something is slow");
        world.say(|| format!("{} slow", ["disks are", "the network is", "the store is", "all threads are"][what]));
    }

    /// Years, days or seconds, either way.
    fn clock_jumps(&self) {
        let world = &self.world;
        let unit = world.rng.borrow_mut().pick(&[1_000, 86_400_000, 31_557_600_000_i64]);
        let by = unit * (world.dice(20) as i64 - 10);
        let clock = if world.chance(0.8) { &world.receiver_wall_off_ms } else { &world.source_wall_off_ms };
        clock.set(clock.get() + by);
        world.met("clock jump");
        world.say(|| format!("a clock jumps by {by} ms"));
    }

    /// A stalled ledger write costs its writer its life, and wakes some time after that.
    pub(crate) fn stalled_writers(&mut self) {
        let world = self.world.clone();
        if !world.store.borrow().has_stalled() {
            return;
        }
        if self.receiver.is_some() && self.stalled_since.is_none() {
            if world.healing.get() || world.chance(0.05) {
                world.met("stalled writer");
                self.receiver_ends(false);
                self.stalled_since = Some(world.step.get());
            }
        } else if world.healing.get() || world.chance(0.01) {
            world.say(|| "the stalled ledger write wakes".into());
            world.store.borrow_mut().wake();
            self.stalled_since = None;
        }
    }

    fn take_host_snapshot(&mut self) {
        let world = self.world.clone();
        if self.host_snapshots.len() < 3 {
            world.say(|| "snapshot of the host".into());
            let home = world.home();
            self.host_snapshots.push(HostSnapshot { site: home.snapshot(), tips: self.judge.tips(&world, &home) });
        }
    }

    fn rollback(&mut self, no: usize) -> bool {
        let world = self.world.clone();
        if self.host_snapshots.is_empty() || world.chance(0.5) {
            self.take_host_snapshot();
            return false;
        }
        world.met("rollback of a machine");
        self.source_ends(no, "is ROLLED BACK");
        let at = world.rng.borrow_mut().below(self.host_snapshots.len());
        let snapshot = &self.host_snapshots[at];
        let site = world.site(no);
        site.restore(&snapshot.site);
        self.judge_new_life(no, self.host_snapshots[at].tips.clone());
        source::rebooted(&world, &site);
        true
    }

    pub(crate) fn judge_new_life(&mut self, no: usize, tips: Tips) {
        let (world, site) = (self.world.clone(), self.world.site(no));
        site.life.set(world.new_life());
        self.judge.begin_life(&site, tips);
        (0..world.volumes()).for_each(|v| site.taint(v, world.step.get()));
    }

    /// A copy of the machine starts beside it, or is switched off, or put away for good. Says whether one starts.
    fn clone_comes_or_goes(&mut self) -> bool {
        let world = self.world.clone();
        let alive: Vec<usize> = (1..self.exists.len()).filter(|no| self.exists[*no]).collect();
        if let Some(&no) = alive.first() {
            // It takes a while until two get into each other's way.
            match world.dice(30) {
                0 => {}
                1 => {
                    self.source_ends(no, "is switched off");
                    self.power_cut(no);
                    return false;
                }
                _ => return false,
            }
            self.clone_is_destroyed(no);
            return false;
        }
        if self.host_snapshots.is_empty() || world.chance(0.6) {
            self.take_host_snapshot();
        }
        let at = world.rng.borrow_mut().below(self.host_snapshots.len());
        let site = world.add_clone(&self.host_snapshots[at].site);
        world.met("clone");
        world.say(|| format!("clone {} STARTS, of snapshot {at}", site.no));
        self.sources.push(None);
        self.exists.push(true);
        self.judge_new_life(site.no, self.host_snapshots[at].tips.clone());
        true
    }

    /// A clone is gone for ever.
    pub(crate) fn clone_is_destroyed(&mut self, no: usize) {
        if std::mem::replace(&mut self.exists[no], false) {
            self.source_ends(no, "is put away");
            self.power_cut(no);
        }
    }

    fn reinstall(&mut self, no: usize) {
        let world = self.world.clone();
        world.met("reinstallation");
        self.source_ends(no, "is REINSTALLED: no map, no header");
        let site = world.site(no);
        for volume in 0..world.volumes() {
            let image = site.disks[volume].borrow().image();
            site.disks[volume].borrow_mut().restore(&image);
            let bytes = site.maps[volume].borrow().image().len();
            site.maps[volume].borrow_mut().restore(&vec![0; bytes]);
            let backing = site.backings.borrow()[volume].identity;
            site.state_dir.borrow_mut()[volume] = VolumeState { backing, ..VolumeState::default() };
        }
        source::format(&world, &site);
        self.judge_new_life(no, vec![None; world.volumes()]);
        source::rebooted(&world, &site);
    }

    fn store_rollback(&mut self) -> bool {
        let world = self.world.clone();
        if self.store_snapshots.is_empty() || world.chance(0.5) {
            if self.store_snapshots.len() < 3 {
                world.say(|| "snapshot of the store".into());
                self.store_snapshots.push(StoreSnapshot {
                    store: world.store.borrow().snapshot(),
                    landing: world.landing.borrow().clone(),
                    ends: world.ends.borrow().clone(),
                    pinned: world.pinned.borrow().clone(),
                    judge: self.judge.clone(),
                });
            }
            return false;
        }
        world.met("rollback of the store");
        self.receiver_ends(true);
        let at = world.rng.borrow_mut().below(self.store_snapshots.len());
        self.store_snapshots.truncate(at + 1);
        let snapshot = &self.store_snapshots[at];
        world.say(|| format!("the STORE IS ROLLED BACK to {} records", snapshot.store.ledger().len()));
        world.store.replace(snapshot.store.snapshot());
        world.landing.replace(snapshot.landing.clone());
        world.ends.replace(snapshot.ends.clone());
        world.pinned.replace(snapshot.pinned.clone());
        world.unpacked.borrow_mut().clear();
        self.judge.go_back(&snapshot.judge);
        world.taint_all();
        self.cascades.store_went_back();
        true
    }
}
