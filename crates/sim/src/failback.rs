//! Failback: the original is there again, and its disks are brought to what was published in its place.
//!
//! ```text
//! begun ──► Held: its disks are served by nobody ──► what only they hold is kept over a point ──► each newer point is put on them
//!             ▲               │ given up: put back, or as that point                                     │ who stands in has stopped
//!             └── there is a newer point ── served with a new header, and taken back ◄── Returning ◄─────┘──► over
//! ```
//!
//! The product's own: what is decided, from what is durable and what is known of the disks (`farside_replication::failback`), which regions a
//! point may differ in (`touched`), how a branch is written, found again and put back ([`farside_view::Overlay`]), and that a history is taken
//! back from the point that the disks hold and from no other. Modelled, in the order that `daemon/src/failback.rs`, `keep.rs` and `pull.rs` have: a
//! round, which runs in one step of the world. It may die in the middle of any operation, by a kill or with its power; syncs fail; persons give it
//! up, finish it, discard the branch or accept the disks between any two rounds; strangers write to the disks, and their syncs fail, too; whoever
//! stands in dies, and the group is failed over once more. The judge knows what the disks held, what points hold, and what strangers wrote:
//!
//! - what is served without force is the newest point: of who stood in there is none to come;
//! - what is said to be a point is that point, durably, in every sector;
//! - what is served is the point that is said, or what the disks held when they were taken; but for what strangers wrote since;
//! - a branch over its point, which is kept, is what the disks held when it was begun; but for what strangers wrote while it was written.
//!
//! Not modelled: disks that are sick while they are held (what cannot be read), that grow, or that are replaced; volumes that leave; no room for a
//! branch; encryption; messages of a pull, whose regions come from the store here.

pub(crate) mod held;

use std::collections::{BTreeMap, BTreeSet};

use farside_region::{ByteExtent, GranuleIndex, LedgerPosition, Name, RegionSet, Slot};
use farside_replication::failback::{At, Branch, Course, Ending, Finish, Kept, Known, Stage, lacks, touched};
use farside_store::Seen;

use crate::oracle::Published;
use crate::parts;
use crate::plan::Fault;
use crate::run::Run;
use crate::site::VolumeState;
use crate::source;
use crate::world::{SECTOR, World};
use held::{Disks, Ended, Folder, Truth, bytes_of, runs_of};

/// Operations that a round has at most before it dies, where it does.
const LIFE_OPERATIONS: usize = 80;
/// So often it is tried in vain before a person gives it up.
const PATIENCE: u32 = 40;

/// A failback, and what the judge knows of its disks.
pub(crate) struct Failback {
    /// Durable; with it the promotion that a person was shown, and what told of strangers' writes when the disks were said to be a point.
    course: Course,
    generation: u64,
    noted: BTreeMap<Name, Option<Seen>>,
    folder: Option<Folder>,
    /// This process'.
    known: Option<Known<RegionSet, Seen>>,
    disks: Disks,
    taken: bool,
    in_vain: u32,
    /// Who stood in is gone for ever.
    alone: bool,
    /// The judge's.
    /// Up to where a person passed over what was left aside.
    passes: Option<Slot>,
    holds: Holds,
    truth: Truth,
    strange: Vec<BTreeSet<usize>>,
    /// Sectors to which strangers wrote when the disks were a point, and which are in no branch yet.
    unkept: Vec<BTreeSet<usize>>,
}

/// What the disks are, as the judge knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// What they were when they were taken, or when their branch was begun.
    Taken,
    Point(Slot),
    /// In part something else.
    Part,
}

/// What came of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Stays,
    /// The disks are served again, and nothing follows.
    Over,
}

impl Failback {
    fn new(world: &World, generation: u64, base: Option<At>) -> Self {
        Self {
            course: Course::new(Branch::Wanted { base }),
            generation,
            noted: BTreeMap::new(),
            folder: None,
            known: None,
            disks: Disks::new(world, world.home()),
            taken: false,
            in_vain: 0,
            alone: false,
            passes: None,
            holds: Holds::Taken,
            truth: Truth::default(),
            strange: vec![BTreeSet::new(); world.volumes()],
            unkept: vec![BTreeSet::new(); world.volumes()],
        }
    }

    /// The point from which the history is being taken back.
    pub(crate) fn takes_back(&self) -> Option<LedgerPosition> {
        match &self.course.stage {
            Stage::Returning { at, served: true } => Some(at.position),
            _ => None,
        }
    }

    /// Up to where a person passed over what is newer.
    pub(crate) fn passes(&self) -> Option<Slot> {
        self.passes
    }

    /// Looks what the disks are.
    fn look(&mut self, world: &World) -> Result<Option<LedgerPosition>, Ended> {
        self.disks.open();
        let seen = self.disks.sync_and_see(world)?;
        let noted = self.course.says().map(|at| at.position);
        self.known = match self.known.take() {
            Some(known) => {
                let still = known.still(&seen);
                if still.is_none() {
                    world.met("a stranger's write to a disk that is held is noticed");
                }
                still
            }
            None => noted.and_then(|at| Known::noted(at, |name| self.noted.get(name).cloned().flatten(), seen)),
        };
        Ok(self.known.as_ref().map(|known| known.at))
    }

    fn lacks_something(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.lacks.values().any(|lacks| !lacks.is_empty()))
    }

    /// Makes a change of what is kept durable, or dies.
    fn change<T>(&mut self, world: &World, change: impl FnOnce(&mut Course) -> T) -> Result<T, Ended> {
        let (course, mut done) = (&mut self.course, None);
        self.disks.power.durable(world, || done = Some(change(course)))?;
        Ok(done.expect("it lives"))
    }

    /// The process, or the machine, is dead; the next one knows what is durable.
    fn dies(&mut self, world: &World, power: bool, branches: &[Folder]) {
        world.met("a failback dies on its way");
        world.say(|| format!("the failback is killed{}", if power { ", with the power" } else { "" }));
        self.known = None;
        self.disks.survive(world, power);
        self.folder.iter().chain(branches).for_each(|folder| folder.survives(power));
    }

    /// What the disks hold is what the judge says that they do.
    fn judge_disks(&self, run: &Run, what: &str) {
        let world = &run.world;
        for volume in 0..world.volumes() {
            let (want, but) = match self.holds {
                Holds::Part => return world.fail(format!("{what}, and the disks are in part something else")),
                Holds::Taken if !self.taken => return,
                Holds::Taken => (self.truth.images[volume].clone(), &self.truth.strange[volume]),
                Holds::Point(slot) => match run.judge.image_of(volume, slot) {
                    Some(image) => (bytes_of(image), &self.strange[volume]),
                    None => return world.fail(format!("{what}: point {slot} does not hold v{volume}")),
                },
            };
            if let Some(sector) = self.disks.unlike(volume, &want, but) {
                return world.fail(format!("{what}: sector {sector} of v{volume} is not surely that of {:?}", self.holds));
            }
        }
    }

    /// Brings what differs in a region to its point; what is overwritten is kept before.
    fn bring_region(
        &mut self,
        world: &World,
        (volume, granules): (usize, std::ops::Range<u64>),
        want: &[u8],
        overlay: Option<&farside_view::Overlay>,
    ) -> Result<(), Ended> {
        let geometry = world.names.geometry[volume];
        let of = |extent: ByteExtent| extent.offset.0 as usize..(extent.offset.0 + extent.len) as usize;
        let extent = |granule| geometry.bytes_of(farside_region::GranuleRun { start: granule, count: 1 });
        let is_other = |granule: &GranuleIndex| self.disks.granule(volume, *granule) != want[of(extent(*granule))];
        let other: Vec<GranuleIndex> = granules.map(GranuleIndex).filter(is_other).collect();
        if other.is_empty() {
            return Ok(());
        }
        let runs = runs_of(&other);
        if let Some(overlay) = overlay {
            // † Durable before anything of it is overwritten.
            let disks = &self.disks;
            let kept = overlay.keep(&runs, |extent, out| {
                out.copy_from_slice(&disks.granule(volume, GranuleIndex(extent.offset.0 / geometry.granule_bytes())));
                Ok(true)
            });
            kept.map_err(|_| if self.disks.power.is_dead() { Ended::Dead } else { Ended::Failed })?;
        }
        for run in runs {
            let extent = geometry.bytes_of(run);
            let sectors = of(extent).start / SECTOR..of(extent).end / SECTOR;
            if overlay.is_none() && self.unkept[volume].range(sectors).next().is_some() {
                world.fail(format!("what a stranger wrote to v{volume}, which was a point, is overwritten, and kept nowhere"));
            }
            self.holds = Holds::Part;
            self.disks.put(world, volume, extent.offset.0, &want[of(extent)])?;
        }
        Ok(())
    }

    /// Brings all that they lack to a point.
    fn bring(&mut self, world: &World, wanted: &[Vec<u8>], is_kept: bool) -> Result<(), Ended> {
        let stops = if world.chance(0.15) { world.dice(6) } else { usize::MAX };
        let mut done = 0;
        for (volume, wanted) in wanted.iter().enumerate() {
            let (geometry, name) = (world.names.geometry[volume], world.names.volumes[volume].clone());
            let overlay = match &self.folder {
                Some(folder) if is_kept => Some(folder.open(world, volume)?),
                _ => None,
            };
            let regions = self.known.as_ref().map(|known| known.lacks[&name].clone()).expect("it was just said");
            for region in regions.iter() {
                if done == stops {
                    world.met("a round of a failback is interrupted");
                    return Err(Ended::Failed);
                }
                done += 1;
                let run = geometry.region_run(region);
                self.bring_region(world, (volume, run.start.0..run.end().0), wanted, overlay.as_ref())?;
                let known = self.known.as_mut().expect("it was just said");
                known.lacks.get_mut(&name).expect("as before").remove(region);
            }
        }
        Ok(())
    }
}

impl Run {
    /// The original's volumes are taken out of service.
    pub(crate) fn failback_begins(&mut self) {
        let world = self.world.clone();
        world.met("a failback");
        world.say(|| "a FAILBACK begins: the original's disks are held".into());
        let generation = world.failover.borrow().as_ref().map_or(0, |failover| failover.generation);
        let base = self.was.take().filter(|(of, _)| *of == generation).map(|(_, at)| at);
        self.hold_disks(Failback::new(&world, generation, base));
    }

    fn hold_disks(&mut self, failback: Failback) {
        self.exists[0] = false;
        match self.sources[0].clone() {
            Some(source) if self.world.chance(0.5) => _ = source.meddle(Fault::Stop, 0),
            _ => self.source_ends(0, "is stopped: its disks are held"),
        }
        self.failback = Some(failback);
    }

    /// One round, or what persons and strangers do between two.
    pub(crate) fn failback_goes_on(&mut self) {
        let world = self.world.clone();
        let rate = if world.plan.fails_back { 0.15 } else { 0.03 };
        if self.failback.is_none() || !world.chance(if world.healing.get() { 0.3 } else { rate }) {
            return;
        }
        let mut failback = self.failback.take().expect("just seen");
        if let Some(at) = failback.takes_back() {
            // Who died in between goes on with it.
            match self.exists[0] {
                true => self.is_it_the_newest((at, failback.passes), failback.alone),
                false => self.serve_what_returns(&mut failback, at),
            }
            if self.failback.is_none() {
                self.failback = Some(failback);
            }
            return;
        }
        if self.sources[0].is_some() {
            // A stop that nothing comes of.
            if world.chance(0.2) {
                self.source_ends(0, "is killed: its disks are held");
            }
            self.failback = Some(failback);
            return;
        }
        let turn = match failback.disks.is_quiet() {
            true => self.turn(&mut failback),
            false => Turn::Stays,
        };
        if turn == Turn::Stays {
            self.failback = Some(failback);
        }
    }

    fn turn(&mut self, failback: &mut Failback) -> Turn {
        let world = self.world.clone();
        failback.disks.are_sound();
        // The moment between the decision that they are served and the end of it is a short one.
        let is_short = matches!(failback.course.stage, Stage::Returning { .. });
        if failback.taken && (!world.healing.get() || is_short) {
            self.something_befalls(failback, if is_short { 15 } else { 60 });
        }
        if world.healing.get() && failback.in_vain > PATIENCE {
            world.met("a failback that does not get on is given up");
            (failback.course.abort, failback.course.finish, failback.in_vain) = (true, None, 0);
        }
        if !world.healing.get() && world.chance(0.25) {
            let most = world.rng.borrow_mut().pick(&[5, 20, LIFE_OPERATIONS]);
            failback.disks.power.ends_after(1 + world.dice(most));
        }
        let before = failback.course.clone();
        let ended = self.round(failback);
        world.say(|| format!("a round of the failback: {before:?} -> {:?}: {ended:?}", failback.course));
        if failback.disks.power.is_dead() {
            let power = world.chance(0.5);
            failback.dies(&world, power, &self.branches);
            return Turn::Stays;
        }
        failback.disks.power.ends_after(usize::MAX);
        failback.in_vain = if ended.is_err() { failback.in_vain + 1 } else { failback.in_vain / 2 };
        ended.unwrap_or(Turn::Stays)
    }

    /// What persons say between two rounds, and what happens to the disks.
    fn something_befalls(&mut self, failback: &mut Failback, one_of: usize) {
        let world = self.world.clone();
        let course = &mut failback.course;
        let dice = world.dice(one_of);
        // Where a round was cut short, or else now and then.
        let is_usual = dice == 7 || matches!(course.stage, Stage::Held { applying: Some(_), .. }) && !course.branch.is_due();
        match dice {
            0 | 1 => {
                let is_locked = !world.chance(0.5);
                if !is_locked {
                    failback.dies(&world, false, &self.branches);
                }
                let volume = world.dice(world.volumes());
                if let Some(sector) = failback.disks.meddle(&world, volume, is_locked) {
                    world.met("a stranger writes to a disk that is held");
                    world.say(|| format!("a stranger writes to sector {sector} of v{volume}, which is held"));
                    failback.strange[volume].insert(sector);
                    if failback.course.says().is_some() && failback.course.branch.may_begin_anew() {
                        failback.unkept[volume].insert(sector);
                    }
                    failback.truth.strange[volume].insert(sector);
                    failback.folder.iter_mut().for_each(|folder| _ = folder.truth.strange[volume].insert(sector));
                }
            }
            // Seldom by who said that it is to be finished, and waits for that.
            2 if course.finish.is_none() || world.chance(0.2) => {
                world.met("a failback is given up");
                (course.abort, course.finish) = (true, None);
            }
            4..=6 if course.abort => {
                world.met("a failback that was given up is finished after all");
                (course.abort, course.finish) = (false, Some(Finish { force: false }));
            }
            7 | 12..=20 if !is_usual => {}
            7 | 12..=20 => {
                world.met("disks that are held are accepted");
                failback.known = None;
                failback.noted.clear();
                course.accepts(true);
                if matches!(course.branch, Branch::Wanted { .. }) {
                    failback.folder = None;
                }
            }
            8 if world.chance(0.3) => {
                world.met("a branch is discarded");
                course.branch = Branch::Discarded;
                failback.folder = None;
                failback.unkept.iter_mut().for_each(BTreeSet::clear);
            }
            9 | 10 => failback.dies(&world, world.chance(0.5), &self.branches),
            11 => {
                let volume = world.dice(world.volumes());
                world.home().disks[volume].borrow_mut().fail_flush();
            }
            _ => {}
        }
    }

    /// As [`Course`] and what is known of the disks say.
    fn round(&mut self, failback: &mut Failback) -> Result<Turn, Ended> {
        let world = self.world.clone();
        if matches!(failback.course.stage, Stage::Aborting) {
            return Ok(self.served_as_they_are(failback));
        }
        if let Stage::Returning { at, served: false } = failback.course.stage.clone() {
            return self.may_be_served(failback, &at).map(|()| Turn::Stays);
        }
        if let Some(ending) = failback.course.ending() {
            return self.end_held(failback, ending);
        }
        let have = failback.look(&world)?;
        if !failback.taken {
            self.forget_history();
            failback.taken = true;
            failback.truth = Truth { images: failback.disks.images(), strange: vec![BTreeSet::new(); world.volumes()] };
        }
        if let Some(branch) = failback.course.begins_anew(have) {
            world.met("a branch is to be begun anew");
            failback.change(&world, |course| course.branch = branch)?;
            return Ok(Turn::Stays);
        }
        if failback.course.branch.is_due() {
            return self.keep_branch(failback, have).map(|()| Turn::Stays);
        }
        let newest = self.newest_pulled().ok_or(Ended::Failed)?;
        let is_there = matches!(failback.course.stage, Stage::Held { applying: None, .. })
            && have == Some(newest.position)
            && !failback.lacks_something();
        if !is_there {
            self.apply(failback, &newest, false)?;
            return Ok(Turn::Stays);
        }
        if failback.course.finish.is_none() {
            if world.chance(if world.healing.get() { 0.3 } else { 0.06 }) {
                failback.course.finish = Some(Finish { force: false });
            }
            return Ok(Turn::Stays);
        }
        if self.nobody_publishes_more(failback)?
            && let Some(at) = failback.course.goes_back(have, failback.lacks_something())
        {
            failback.change(&world, |course| course.returns(at.clone()))?;
            if failback.course.finish.is_some_and(|finish| finish.force) {
                self.may_be_served(failback, &at)?;
            }
        }
        Ok(Turn::Stays)
    }

    /// The newest point that can be pulled: it is whole, and holds all volumes.
    fn newest_pulled(&self) -> Option<At> {
        let receiver = self.receiver.as_ref()?;
        receiver.with_group(|group| {
            let lineage = self.world.lineage();
            let mut newest_first = group.state().points().keys().rev().filter(|slot| lineage.has(**slot));
            newest_first.find_map(|slot| self.pulled(*slot))
        })
    }

    /// A point, if it is kept and can be pulled.
    fn pulled(&self, slot: Slot) -> Option<At> {
        let receiver = self.receiver.as_ref()?;
        receiver.with_group(|group| {
            let state = group.state();
            let point = state.points().get(&slot).filter(|point| !point.degraded)?;
            let holds_all = self.world.names.ids.iter().all(|id| point.members.iter().any(|member| member.key.volume == *id));
            let position = LedgerPosition { slot, digest: state.digest_at(slot)? };
            holds_all.then_some(At { position, wall_ms: point.epoch.wall_ms })
        })
    }

    /// A point from before the failover, or else any other: the branch is right over whichever it lies.
    fn fork(&self, bases: [Option<LedgerPosition>; 2]) -> Option<At> {
        let known = bases.into_iter().flatten().find_map(|base| self.pulled(base.slot).filter(|at| at.position == base));
        let promoted = self.world.failover.borrow().as_ref().and_then(crate::failover::Failover::point);
        known.or_else(|| promoted.and_then(|slot| self.pulled(slot))).or_else(|| {
            let points = self.receiver.as_ref()?.points();
            points.into_iter().rev().find_map(|slot| self.pulled(slot))
        })
    }

    /// What the disks hold and a point does not is kept, and they are brought to it.
    fn keep_branch(&mut self, failback: &mut Failback, have: Option<LedgerPosition>) -> Result<(), Ended> {
        let world = self.world.clone();
        if let Branch::Wanted { base } = &failback.course.branch {
            let whole = have.filter(|_| !failback.lacks_something());
            let over = self.fork([whole, base.as_ref().map(|base| base.position)]).ok_or(Ended::Failed)?;
            let Some(is) = failback.course.keeps(whole, over.position) else {
                world.met("disks that are a point have nothing to be kept");
                return failback.change(&world, |course| course.branch = Branch::None);
            };
            let truth = Truth { images: failback.disks.images(), strange: vec![BTreeSet::new(); world.volumes()] };
            let id: Name = format!("b{}", world.tag()).parse().expect("a name");
            let folder = Folder::new(&world, &failback.disks.power, id.clone(), over.position, truth.clone());
            let (course, kept) = (&mut failback.course, &mut failback.folder);
            let (holds, taken) = (&mut failback.holds, &mut failback.truth);
            let unkept = &mut failback.unkept;
            return failback.disks.power.durable(&world, || {
                *kept = Some(folder);
                unkept.iter_mut().for_each(BTreeSet::clear);
                if *holds != Holds::Part {
                    (*holds, *taken) = (Holds::Taken, truth);
                } else {
                    world.met("a branch is begun of disks that are in part a point");
                }
                course.branch = Branch::Kept { id, over, is };
            });
        }
        let folder = failback.folder.as_ref().expect("the branch has one");
        let (over, reason) = (folder.over, folder.pin_reason());
        let over = self.pulled(over.slot).ok_or(Ended::Failed)?;
        // † Before anything is overwritten: without it what is kept is worth nothing.
        if !self.receiver.as_ref().is_some_and(|receiver| receiver.is_pinned(over.position.slot, &reason)) {
            self.receiver.as_ref().ok_or(Ended::Failed)?.pin(over.position.slot, reason);
            return Ok(());
        }
        self.apply(failback, &over, true)
    }

    /// Brings the disks to a point, as the order of `daemon/src/failback.rs` is.
    fn apply(&mut self, failback: &mut Failback, point: &At, is_kept: bool) -> Result<(), Ended> {
        let world = self.world.clone();
        let id = failback.folder.as_ref().filter(|_| is_kept).map(|folder| folder.id.clone());
        if !failback.course.may_apply(id.as_ref()) {
            return Ok(());
        }
        let looked = failback.course.branch.clone();
        let slot = point.position.slot;
        let mut wanted = Vec::new();
        let mut lacking = BTreeMap::new();
        let mut is_known = failback.known.is_some();
        let goes_on = failback.known.as_ref().is_some_and(|known| known.at == point.position);
        let have = failback.known.as_ref().map(|known| known.at).filter(|_| !is_kept);
        let receiver = self.receiver.clone().ok_or(Ended::Failed)?;
        for volume in 0..world.volumes() {
            let (id, name) = (world.names.ids[volume], &world.names.volumes[volume]);
            let image = receiver.with_group(|group| parts::read_image(&world, group, volume, Some(slot)));
            match image {
                Ok(image) if !image.contains(&Published::Unreadable) => wanted.push(bytes_of(&image)),
                Ok(_) => return Err(Ended::Failed),
                Err(why) => {
                    world.fail(format!("L5: point {slot} of v{volume} cannot be pulled: {why}"));
                    return Err(Ended::Failed);
                }
            }
            let touched = receiver.with_group(|group| {
                let point = group.state().points().get(&slot)?;
                have.and_then(|have| touched(group.state(), id, &have, point))
            });
            let (mut all, nothing) = (RegionSet::new(), RegionSet::new());
            all.insert_range(world.names.geometry[volume].all_regions());
            let before = failback.known.as_ref().and_then(|known| known.lacks.get(name));
            let (regions, was_known) = lacks(&all, touched.as_ref().or(goes_on.then_some(&nothing)), before);
            is_known &= was_known;
            lacking.insert(name.clone(), regions);
        }
        failback.change(&world, |course| course.applies(point.clone(), is_known))?;
        failback.known = Some(Known { at: point.position, lacks: lacking, seen: BTreeMap::new() });
        let brought = failback.bring(&world, &wanted, is_kept);
        if failback.disks.power.is_dead() {
            return Err(Ended::Dead);
        }
        let seen = match failback.disks.sync_and_see(&world) {
            Ok(seen) => seen,
            Err(ended) => {
                failback.known = None;
                return Err(ended);
            }
        };
        failback.known.as_mut().expect("just said").seen.clone_from(&seen);
        brought?;
        let branch = match &failback.folder {
            Some(folder) if is_kept => {
                let mut bytes = 0;
                for volume in 0..world.volumes() {
                    let overlay = folder.open(&world, volume)?;
                    overlay.flush().map_err(|_| Ended::Failed)?;
                    bytes += overlay.written_bytes();
                }
                match bytes > 0 {
                    true => Branch::Kept { id: folder.id.clone(), over: point.clone(), is: Kept::Whole },
                    false => Branch::None,
                }
            }
            _ => looked.clone(),
        };
        failback.holds = Holds::Point(slot);
        failback.strange.iter_mut().for_each(BTreeSet::clear);
        failback.unkept.iter_mut().for_each(BTreeSet::clear);
        failback.judge_disks(self, &format!("the failback says that the disks are point {slot}"));
        let noted = &mut failback.noted;
        let course = &mut failback.course;
        failback.disks.power.durable(&world, || {
            course.applied(point.clone(), true, (&looked, branch));
            *noted = seen;
        })?;
        world.met("a failback brings the disks to a point");
        if is_kept {
            self.branch_is_whole(failback);
        }
        Ok(())
    }

    /// All that was to be kept is, or nothing was.
    fn branch_is_whole(&mut self, failback: &mut Failback) {
        let Some(folder) = failback.folder.take() else { return };
        self.world.met(if failback.course.branch == Branch::None { "a branch comes to nothing" } else { "a branch is whole" });
        self.judge_branch(&folder);
        if failback.course.branch != Branch::None {
            self.branches.push(folder);
        }
    }

    fn judge_branch(&self, folder: &Folder) {
        let world = &self.world;
        if !self.judge.state().points().contains_key(&folder.over.slot) {
            return world.fail(format!("the point {} below branch {} is gone", folder.over.slot, folder.id));
        }
        folder.judge(world, &|volume| self.judge.image_of(volume, folder.over.slot).cloned());
    }

    /// Whoever stands in is told to stop, and has, and said that it owes nothing, as `why_not` of the daemon asks. A person says what follows if the
    /// group was failed over meanwhile.
    fn nobody_publishes_more(&mut self, failback: &mut Failback) -> Result<bool, Ended> {
        let world = self.world.clone();
        let Some(failover) = world.failover.borrow().clone() else { return Err(Ended::Failed) };
        let no = failover.stand_in.ok_or(Ended::Failed)?;
        if failover.generation != failback.generation {
            world.met("the group was failed over again beside a failback");
            match world.chance(0.5) {
                true => failback.generation = failover.generation,
                false => (failback.course.abort, failback.course.finish) = (true, None),
            }
            return Ok(false);
        }
        if self.exists[no] {
            let rate = if world.plan.fails_back { 0.2 } else { 0.02 };
            let Some(source) = self.sources[no].clone() else {
                return Ok(world.chance(0.03) && self.is_forced(failback, no));
            };
            // Most often persons wait until it has got on.
            let is_ready = source.owes_nothing() || world.chance(if world.healing.get() { 0.002 } else { 0.02 });
            if is_ready && world.chance(rate) {
                return Ok(self.is_forced(failback, no));
            }
            if is_ready {
                self.exists[no] = false;
                source.meddle(Fault::Stop, 0);
            }
            return Ok(false);
        }
        if self.sources[no].is_some() {
            // A stop that nothing comes of.
            if world.chance(if world.healing.get() { 0.002 } else { 0.02 }) {
                self.source_ends(no, "is killed: it was to stop");
            }
            return Ok(false);
        }
        // † Its process may have been killed. The gateway publishes what that sent when it comes to it: a moment after it was asked for the newest.
        if !self.owes_nothing(no) {
            world.met("a failback waits for the last word of who stood in");
            match world.dice(20) {
                _ if failback.alone => failback.course.finish = Some(Finish { force: true }),
                0 => return Ok(self.is_forced(failback, no)),
                // Who lost sectors owes them for ever: starting it again and again ends in nothing.
                9..=14 if world.healing.get() => return Ok(self.is_forced(failback, no)),
                1..=8 => {
                    // A person starts it, and stops it in order.
                    self.exists[no] = true;
                    return Ok(false);
                }
                _ => return Ok(false),
            }
        }
        let newest = self.receiver.as_ref().and_then(|receiver| receiver.points().last().copied());
        let is_passed_over = newest > self.newest_pulled().map(|newest| newest.position.slot);
        if is_passed_over && newest.is_some_and(|newest| !world.lineage().has(newest)) {
            world.met("what was left aside is passed over");
            failback.passes = newest;
        } else if is_passed_over {
            world.met("points that are not whole stand against the end of a failback");
            if failback.alone {
                return Err(Ended::Failed);
            }
            self.exists[no] = true;
            failback.course.finish = None;
            return Err(Ended::Failed);
        }
        Ok(true)
    }

    /// The gateway has its word that it has no more to publish.
    fn owes_nothing(&self, no: usize) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.owes_nothing(no))
    }

    /// Who stands in is waited for by nobody, and gone for ever; what it sent before may be published still.
    fn is_forced(&mut self, failback: &mut Failback, no: usize) -> bool {
        self.world.met("a failback does not wait for who stands in");
        self.clone_is_destroyed(no);
        failback.course.finish = Some(Finish { force: true });
        failback.alone = true;
        true
    }

    /// † Much may have happened since it was decided that they are served.
    fn may_be_served(&mut self, failback: &mut Failback, at: &At) -> Result<(), Ended> {
        let world = self.world.clone();
        if failback.course.abort {
            self.was = Some((failback.generation, at.clone()));
            return failback.change(&world, |course| course.stage = Stage::Aborting);
        }
        let have = failback.look(&world)?;
        if !failback.change(&world, |course| course.is_still(have))? {
            world.met("disks that were about to be served are not what they were");
            return Ok(());
        }
        let newest = self.newest_pulled().ok_or(Ended::Failed)?;
        let stand_in = world.failover.borrow().as_ref().and_then(|failover| failover.stand_in);
        let is_same = world.failover.borrow().as_ref().is_some_and(|failover| failover.generation == failback.generation);
        let is_forced = failback.course.finish.is_some_and(|finish| finish.force);
        let is_over = |no: usize| !self.exists[no] && (is_forced || self.owes_nothing(no));
        let is_right = newest.position == at.position && is_same && stand_in.is_some_and(is_over);
        // Who forces that waits for no word of the gateway.
        let goes_on = is_right || is_forced && world.chance(0.5);
        if !goes_on {
            let stage = Stage::Held { at: Some(at.clone()), applying: None };
            return failback.change(&world, |course| course.stage = stage);
        }
        // † Of what is forced nobody says that it is the newest: there it is told when the history is claimed, and refused.
        if is_right && !is_forced {
            self.judge.on_taken_back(&world, at.position.slot);
        }
        failback.change(&world, |course| course.stage = Stage::Returning { at: at.clone(), served: true })?;
        self.serve_what_returns(failback, at.position);
        Ok(())
    }

    fn serve_what_returns(&mut self, failback: &mut Failback, at: LedgerPosition) {
        let world = self.world.clone();
        failback.holds = Holds::Point(at.slot);
        failback.strange.iter_mut().for_each(BTreeSet::clear);
        failback.judge_disks(self, "the original is served again");
        world.say(|| format!("the original is SERVED AGAIN, at {}", at.slot));
        self.serve_original();
        world.main.set(Some(0));
    }

    /// It is given up.
    fn end_held(&mut self, failback: &mut Failback, ending: Ending) -> Result<Turn, Ended> {
        let world = self.world.clone();
        let Ending::PutBack { id, .. } = ending else {
            if let Ending::AsTheyAre { at: Some(at) } = ending {
                self.was = Some((failback.generation, at));
            }
            failback.change(&world, |course| course.stage = Stage::Aborting)?;
            return Ok(Turn::Stays);
        };
        failback.look(&world)?;
        // From here on until all of it is back they are no point.
        failback.known = None;
        let folder = failback.folder.take().expect("the branch has one");
        let put = self.put_back(failback, &folder);
        failback.folder = Some(folder);
        put?;
        failback.holds = Holds::Taken;
        failback.judge_disks(self, "what was overwritten is put back");
        if failback.change(&world, |course| course.is_put_back(&id))? {
            world.met("what a failback overwrote is put back");
            failback.folder = None;
        }
        Ok(Turn::Stays)
    }

    fn put_back(&mut self, failback: &mut Failback, folder: &Folder) -> Result<(), Ended> {
        let world = self.world.clone();
        for volume in 0..world.volumes() {
            let overlay = folder.open(&world, volume)?;
            let mut ended = Ok(());
            let disks = &mut failback.disks;
            let given = overlay.give(|extent, content| {
                ended = disks.put(&world, volume, extent.offset.0, content);
                ended.map_err(|_| nix::errno::Errno::EIO)
            });
            ended?;
            given.map_err(|_| Ended::Failed)?;
        }
        failback.disks.sync_and_see(&world).map(drop)
    }

    fn served_as_they_are(&mut self, failback: &mut Failback) -> Turn {
        let world = self.world.clone();
        world.met("the disks of a failback are served as they are");
        world.say(|| format!("the failback is given up, and the disks are served: {:?}", failback.holds));
        failback.judge_disks(self, "a failback is given up, and the disks are served");
        self.serve_original();
        let stand_in = world.failover.borrow().as_ref().and_then(|failover| failover.stand_in);
        match stand_in {
            Some(no) if !failback.alone => self.exists[no] = true,
            Some(_) => {
                world.met("the original goes on with its own disks");
                world.main.set(Some(0));
            }
            None => {}
        }
        Turn::Over
    }

    /// The original's volumes are opened again.
    fn serve_original(&mut self) {
        self.forget_history();
        self.exists[0] = true;
    }

    /// No header from before: nothing of the old history is trusted.
    fn forget_history(&mut self) {
        let (world, home) = (self.world.clone(), self.world.home());
        for volume in 0..world.volumes() {
            let (bytes, was) = (home.maps[volume].borrow().image().len(), home.state_dir.borrow()[volume].clone());
            home.maps[volume].borrow_mut().restore(&vec![0; bytes]);
            let kept = VolumeState { backing: was.backing, generation: was.generation, ..VolumeState::default() };
            home.state_dir.borrow_mut()[volume] = kept;
        }
        source::format(&world, &home);
        self.judge_new_life(0, vec![None; world.volumes()]);
    }

    /// The original is served; if there is more by now than what its disks were brought to, a person gives that up, and begins anew.
    fn is_it_the_newest(&mut self, (at, passes): (LedgerPosition, Option<Slot>), alone: bool) {
        let world = self.world.clone();
        let generation = world.failover.borrow().as_ref().map_or(0, |failover| failover.generation);
        let is_newer = |volume: &usize| {
            let newest = self.judge.newest_position(*volume);
            newest > Some(at) && newest.map(|newest| newest.slot) > passes
        };
        let waits = |volume: &usize| self.judge.generation(*volume) <= generation;
        if !(0..world.volumes()).filter(waits).any(|volume| is_newer(&volume)) {
            return;
        }
        world.met("a point is newer than what a failback brought");
        world.say(|| "there is a NEWER POINT: the original's disks are held again".into());
        let base = self.pulled(at.slot);
        let mut failback = Failback::new(&world, generation, base);
        (failback.course.finish, failback.alone) = (Some(Finish { force: false }), alone);
        self.hold_disks(failback);
    }

    /// Branches that a person removes, and pins of those that are gone.
    pub(crate) fn branches_go_on(&mut self) {
        let world = self.world.clone();
        if !self.branches.is_empty() && world.chance(0.002) {
            let one = world.dice(self.branches.len());
            self.branches.swap_remove(one);
        }
        if !world.chance(0.01) {
            return;
        }
        let of_failback = self.failback.iter().filter_map(|failback| failback.folder.as_ref());
        let kept: BTreeSet<String> = self.branches.iter().chain(of_failback).map(Folder::pin_reason).collect();
        if let Some(receiver) = &self.receiver {
            receiver.unpin_branches(&kept);
        }
    }

    /// What was kept is there.
    pub(crate) fn judge_branches(&self) {
        self.branches.iter().for_each(|folder| self.judge_branch(folder));
    }
}
