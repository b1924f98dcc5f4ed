//! Progress, not only safety (DESIGN §4.4): trials that a run ends, or begins, with. Nothing is broken in a trial but what it is
//! about; what must happen then must happen within so many steps.
//!
//! - Overload: a host that never rests. A cut is tried all the same, or status says that it does not converge.
//! - One member is paused, or its disk hangs: the points of the others go on.
//! - One member joins and does not get on with its first sync, or leaves: the same, and whoever leaves is gone soon.
//! - A cold region is changed behind the tap: a verify finds it, and sends it (T6).
//! - A store that somebody else has filled to its reserve: a source that was killed gets its claims all the same, which let go
//!   what the old ones had left (L5). That its points go on afterwards is for the healing to show.
//! - A first sync under nightly reboots: no life of the source is long enough for all of it, and it ends all the same.

use farside_region::{RegionIndex, Slot};

use crate::oracle::{Published, value};
use crate::plan::{Fault, Trial};
use crate::receiver::RESERVE_BYTES;
use crate::run::Run;
use crate::world::{GRANULE_SECTORS, REGION_SECTORS, SECTOR};

/// Steps in which an overloaded group must try a cut.
const OVERLOAD_STEPS: u64 = 6_000;
/// Steps in which the others' points must come: more than it takes to give a hung member up.
const OTHERS_STEPS: u64 = 20_000;
/// Steps in which a verify must have found and sent what differs.
const VERIFY_STEPS: u64 = 20_000;
/// Steps in which a full store must have taken the claims of a source that came back.
const CLAIM_STEPS: u64 = 10_000;
/// Steps of one life between two reboots, for each volume and once more, and how many lives a first sync may take.
const LIFE_STEPS: u64 = 200;
const LIVES_MAX: u64 = 120;

impl Run {
    /// The trial of this seed, in a world that has just converged.
    pub(crate) fn trial(&mut self) {
        let world = self.world.clone();
        if world.plan.trial == Trial::None || world.bad().is_some() {
            return;
        }
        world.say(|| format!("---- trial: {:?}", world.plan.trial));
        match world.plan.trial {
            Trial::Overload => self.overload(),
            Trial::Paused if world.volumes() > 1 => self.one_member_stands_still(Fault::Pause),
            Trial::Hung if world.volumes() > 1 => self.one_member_stands_still(Fault::Hang),
            Trial::Joins if world.volumes() > 1 => self.one_member_joins(),
            Trial::Leaves if world.volumes() > 1 => self.one_member_leaves(),
            Trial::Tampered => self.cold_region_is_changed(),
            _ => {}
        }
        self.trial_rate = None;
        world.home().hung_until_us.borrow_mut().fill(0);
    }

    fn overload(&mut self) {
        let world = self.world.clone();
        let cuts = || world.home().oracle.borrow().cuts_tried();
        let before = cuts();
        self.trial_rate = Some(0.15);
        for _ in 0..OVERLOAD_STEPS {
            self.step();
            let said = self.sources[0].as_ref().is_some_and(|s| s.says_not_converging());
            if cuts() > before || said || world.bad().is_some() {
                world.met(if said { "overload: not converging" } else { "overload: a cut is tried" });
                return;
            }
        }
        world.fail(format!("PROGRESS: under steady load no cut was tried in {OVERLOAD_STEPS} steps, and nobody is told"));
    }

    fn one_member_stands_still(&mut self, how: Fault) {
        let world = self.world.clone();
        let still = world.dice(world.volumes());
        let Some(source) = self.sources[0].clone() else { return };
        self.trial_rate = Some(if how == Fault::Pause { 0.04 } else { 0.08 });
        if how == Fault::Pause {
            source.meddle(Fault::Pause, still);
        } else {
            world.home().hung_until_us.borrow_mut()[still] = u64::MAX;
        }
        if self.others_have_points(still, &format!("{how:?}")) {
            world.met(if how == Fault::Pause { "points beside a paused member" } else { "points beside a hung member" });
        }
    }

    /// The volume that was not configured is, under load. Its disk hangs, so that its first sync takes as long as it takes.
    fn one_member_joins(&mut self) {
        let world = self.world.clone();
        let (Some(source), Some(joins)) = (self.sources[0].clone(), world.home().absent.take()) else { return };
        self.trial_rate = Some(0.08);
        world.home().hung_until_us.borrow_mut()[joins] = u64::MAX;
        source.join(joins);
        if self.others_have_points(joins, "it joins") {
            world.met("points beside a joining member");
        }
    }

    fn one_member_leaves(&mut self) {
        let world = self.world.clone();
        let leaves = world.dice(world.volumes());
        let Some(source) = self.sources[0].clone() else { return };
        self.trial_rate = Some(0.08);
        for _ in 0..300 {
            self.step();
        }
        source.leave_group(leaves);
        if !self.others_have_points(leaves, "it leaves") {
            return;
        }
        // Those points may all have been on their way when it was asked to leave.
        let mut steps = 0;
        while source.knows(leaves) && world.bad().is_none() {
            self.step();
            steps += 1;
            if steps > OTHERS_STEPS {
                world.fail(format!(
                    "PROGRESS: v{leaves} was to leave, and is still there {steps} steps after all others had points"
                ));
            }
        }
        if world.bad().is_some() {
            return;
        }
        world.met("points beside a leaving member");
        self.trial_rate = None;
        self.source_ends(0, "is restarted with the volume that left");
    }

    fn cold_region_is_changed(&mut self) {
        let (world, home) = (self.world.clone(), self.world.home());
        let Some(source) = self.sources[0].clone() else { return };
        let volume = world.dice(world.volumes());
        let may = |sector: &usize| {
            let disk = home.disks[volume].borrow();
            let region = RegionIndex((sector / REGION_SECTORS) as u64);
            // A granule with one bad sector is unreadable as a whole, and rightly stays so.
            let granule = sector / GRANULE_SECTORS * GRANULE_SECTORS;
            let is_readable = !(granule..granule + GRANULE_SECTORS).any(|s| disk.is_bad(s));
            disk.certain(*sector).is_some() && is_readable && source.is_cold(volume, region)
        };
        let sectors: Vec<usize> = (0..self.host.sectors[volume]).filter(may).collect();
        if sectors.is_empty() {
            return;
        }
        let sector = world.rng.borrow_mut().pick(&sectors);
        let changed = value(world.tag(), volume, sector);
        world.say(|| format!("v{volume} sector {sector} is changed behind the tap"));
        home.disks[volume].borrow_mut().set((sector * SECTOR) as u64, &changed);
        home.oracle.borrow_mut().tampered(volume, sector, changed);
        home.backings.borrow_mut()[volume].meddled = true;
        self.trial_rate = Some(0.0);
        source.meddle(Fault::Verify, volume);
        for _ in 0..VERIFY_STEPS {
            self.step();
            if world.bad().is_some() {
                return;
            }
            if self.judge.published(volume, sector) == Published::Value(changed) {
                home.backings.borrow_mut()[volume].meddled = false;
                world.met("verify mends what was changed behind the tap");
                return;
            }
        }
        world.fail(format!("T6: sector {sector} of v{volume} was changed behind the tap, and no verify sent it"));
    }

    /// Nothing may be granted any more, and of what is kept back half is there still.
    pub(crate) fn full_store(&mut self) {
        let world = self.world.clone();
        world.say(|| "---- trial: a full store".into());
        world.store_left.set(Some((RESERVE_BYTES - 1, world.store_bytes())));
        // What was granted before is used up by then, or the connection that had it is gone.
        self.trial_rate = Some(0.05);
        for _ in 0..500 {
            self.step();
        }
        self.trial_rate = Some(0.0);
        self.source_ends(0, "is killed while the store is full");
        let absent = world.home().absent.get();
        let volumes: Vec<usize> = (0..world.volumes()).filter(|v| absent != Some(*v)).collect();
        let before: Vec<_> = volumes.iter().map(|v| self.judge.term(&world, *v)).collect();
        for _ in 0..CLAIM_STEPS {
            self.step();
            if world.bad().is_some() {
                return;
            }
            if volumes.iter().zip(&before).all(|(v, term)| self.judge.term(&world, *v) > *term) {
                world.met("claims out of the reserve");
                self.trial_rate = None;
                return;
            }
        }
        world.fail(format!("PROGRESS: L5: a full store took no claim in {CLAIM_STEPS} steps, and nothing else lets it get free"));
    }

    /// Two points for each of the others: the first may be one that was on its way. False when a law was broken.
    fn others_have_points(&mut self, still: usize, why: &str) -> bool {
        let world = self.world.clone();
        for round in 0..2 {
            let before: Vec<Option<Slot>> = (0..world.volumes()).map(|v| self.judge.newest_point(v)).collect();
            let mut waiting: Vec<usize> = (0..world.volumes()).filter(|v| *v != still).collect();
            let mut steps = 0;
            while !waiting.is_empty() && world.bad().is_none() {
                self.step();
                waiting.retain(|v| self.judge.newest_point(*v) == before[*v]);
                steps += 1;
                if steps > OTHERS_STEPS {
                    world.fail(format!(
                        "PROGRESS: v{still} stands still ({why}); {waiting:?} had no point for {steps} steps, round {round}"
                    ));
                }
            }
        }
        world.bad().is_none()
    }

    /// Begins the run: the first sync under reboots, one after the other.
    pub(crate) fn nightly_reboots(&mut self) {
        let world = self.world.clone();
        world.say(|| "---- a first sync under nightly reboots".into());
        world.healing.set(true);
        self.trial_rate = Some(0.002);
        // Long enough to claim and to publish a slice of each volume.
        let life_steps = LIFE_STEPS * (1 + world.volumes() as u64);
        for life in 0..LIVES_MAX {
            for _ in 0..life_steps {
                self.step();
                if world.bad().is_some() {
                    return;
                }
            }
            if self.judge.is_synced(&world) {
                world.met(if life > 0 { "a first sync over several lives" } else { "a first sync in one life" });
                self.trial_rate = None;
                world.healing.set(false);
                return;
            }
            match world.dice(3) {
                0 => self.source_ends(0, "is killed"),
                1 => {
                    self.source_ends(0, "loses power");
                    self.power_cut(0);
                }
                _ => {
                    if let Some(source) = &self.sources[0] {
                        source.meddle(Fault::Stop, 0);
                    }
                }
            }
        }
        world.fail(format!("PROGRESS: the first sync did not end in {LIVES_MAX} lives of {life_steps} steps"));
    }
}
