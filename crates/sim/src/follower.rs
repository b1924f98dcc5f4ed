//! Followers: a disk beside the receiver is kept equal to a volume's points, by the product's [`Follower`] over the world's segments.
//!
//! Each round of it runs in one step of the world; it may die in the middle of any of its operations, by a kill or with its disk's power,
//! its syncs may fail, somebody may write to the disk behind its back, and another disk may lie in its place. The judge knows what every
//! point holds, and what strangers wrote:
//!
//! - what is said to be at a point is that point, durably, in every sector; but for those that a stranger wrote since, or, where the product
//!   says that it is in doubt, beside an apply that was cut short;
//! - `Diverged` is said only where a stranger wrote; or of a device whose power went, and whose point is not retained any more: nobody can tell
//!   who wrote meanwhile.
//!
//! Modelled: which point is wanted and when, and that it is there meanwhile (`receiver/src/follow.rs`).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use farside_blockio::Identity;
use farside_region::{ByteExtent, ByteOffset, Slot};
use farside_store::{
    FollowKeeper, FollowLook, FollowStage, FollowTarget, Follower, Following, LazyPointReader, RestoreTarget, Seen, StoreError,
};

use crate::disk::{Disk, Done};
use crate::oracle::{Published, value};
use crate::rng::Rng;
use crate::run::Run;
use crate::shelf::{Shelf, group_names};
use crate::world::{SECTOR, World};

/// Operations that a round has at most before it dies, where it does.
const LIFE_OPERATIONS: usize = 60;
/// Rounds in which it must be at the newest point when nothing goes wrong any more.
const ROUNDS_MAX: usize = 20;

/// A disk that is kept equal to a volume's points.
#[derive(Debug)]
pub struct Followed {
    volume: usize,
    machine: Machine,
    /// Sectors that strangers wrote and nobody has set right since.
    strange: BTreeSet<usize>,
    /// Strangers wrote, or put another disk there, and nobody has said so yet.
    meddled: bool,
    /// Its power went since it was last known to be at a point: a device's writes are counted anew, and only its point tells of strangers.
    was_off: bool,
    /// It may be another disk than the one that was being filled: a person is asked.
    in_question: bool,
}

/// The disk, what is kept of it, and the power that is left.
#[derive(Debug)]
pub(crate) struct Machine(Mutex<Inner>);

/// What it is made of.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) disk: Disk,
    rng: Rng,
    pub(crate) note: Following,
    /// Operations until it dies.
    pub(crate) left: usize,
    /// What a device counts, since a boot, or a file's times say.
    writes: u64,
    boot: u64,
    is_device: bool,
    /// Which disk it is.
    serial: u64,
}

impl Machine {
    /// With an empty disk for a volume.
    pub(crate) fn new(world: &World, volume: usize) -> Self {
        let mut rng = Rng::new(world.rng.borrow_mut().bits());
        let sectors = world.names.geometry[volume].volume_bytes() as usize / SECTOR;
        Self(Mutex::new(Inner {
            disk: Disk::new(sectors * SECTOR, SECTOR, SECTOR / 2),
            note: Following::default(),
            left: usize::MAX,
            writes: 0,
            boot: 0,
            is_device: rng.chance(0.5),
            serial: 1,
            rng,
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn following(&self) -> Following {
        self.lock().note.clone()
    }

    /// What it says of a point is so, durably, but for some sectors. `image`: what the point holds.
    ///
    /// # Errors
    /// The first sector in which it is not.
    pub(crate) fn holds(&self, image: &[Published], but_for: &BTreeSet<usize>) -> Result<(), String> {
        let inner = self.lock();
        for (sector, published) in image.iter().enumerate().filter(|(sector, _)| !but_for.contains(sector)) {
            let want = match published {
                Published::Value(value) => *value,
                Published::Absent => [0; SECTOR],
                Published::Unreadable => continue,
            };
            if inner.disk.certain(sector) != Some(&want[..]) {
                let (may, _) = inner.disk.candidates(sector);
                let may: Vec<String> = may.iter().map(|v| crate::oracle::show((*v).try_into().expect("a sector"))).collect();
                let want = crate::oracle::show(&want);
                return Err(format!("sector {sector} may hold {may:?}, and the point has {want}"));
            }
        }
        Ok(())
    }
}

impl Inner {
    pub(crate) fn is_dead(&self) -> bool {
        self.left == 0
    }

    pub(crate) fn dead() -> io::Error {
        io::Error::other("the power is gone")
    }

    /// One operation, or a part of the last one.
    fn operation(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }

    /// A dead process' operation ends all the same, or the power takes what it may.
    pub(crate) fn begins_anew(&mut self, power: bool) {
        if power {
            let mut rng = self.rng.clone();
            self.disk.power_cut(&mut rng);
            self.rng = rng;
            self.boot += 1;
        } else {
            self.land_all();
            self.disk.orphan();
        }
        self.left = usize::MAX;
    }

    fn land_all(&mut self) {
        for op in self.disk.in_flight() {
            let mut rng = self.rng.clone();
            self.disk.advance(op, true, &mut rng);
            self.rng = rng;
        }
    }
}

impl RestoreTarget for Machine {
    fn path(&self) -> &Path {
        Path::new("/dev/target")
    }

    fn begin(&self, first: ByteExtent) -> io::Result<()> {
        self.zero(first)?;
        self.sync()
    }

    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()> {
        let inner = &mut *self.lock();
        if inner.is_dead() {
            return Err(Inner::dead());
        }
        let lives = inner.operation();
        inner.writes += 1;
        let op = inner.disk.write(offset.0, bytes.to_vec(), 0);
        if lives || inner.rng.chance(0.6) {
            inner.disk.advance(op, lives, &mut inner.rng);
        }
        match inner.disk.take(op) {
            _ if !lives => Err(Inner::dead()),
            Some(Done::Ok) => Ok(()),
            other => Err(io::Error::other(format!("a write ended as {other:?}"))),
        }
    }

    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        self.write_at(extent.offset, &vec![0; extent.len as usize])
    }

    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.lock();
        for (i, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            sector.copy_from_slice(inner.disk.current(offset.0 as usize / SECTOR + i));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let inner = &mut *self.lock();
        if inner.is_dead() || !inner.operation() {
            return Err(Inner::dead());
        }
        let op = inner.disk.flush();
        inner.disk.advance(op, true, &mut inner.rng);
        match inner.disk.take(op) {
            Some(Done::Ok) => Ok(()),
            _ => Err(io::Error::other("the disk took nothing")),
        }
    }

    fn read_anew(&self) -> io::Result<()> {
        self.lock().disk.read_anew();
        Ok(())
    }
}

impl FollowTarget for Machine {
    fn bytes(&self) -> io::Result<u64> {
        let inner = self.lock();
        Ok((inner.disk.sectors() * SECTOR) as u64)
    }

    fn is_fixed(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn resize(&self, _: u64) -> io::Result<()> {
        unreachable!("its size is fixed")
    }

    fn identity(&self) -> io::Result<Identity> {
        let serial = self.lock().serial;
        Ok(serde_json::from_str(&format!(r#"{{"serial":"{serial}"}}"#)).expect("facts"))
    }

    fn seen(&self) -> io::Result<Option<Seen>> {
        let inner = self.lock();
        let since = if inner.is_device { inner.boot.to_string() } else { String::new() };
        Ok(Some(Seen { since, marks: inner.writes.to_string() }))
    }
}

impl FollowKeeper for Machine {
    fn keep(&self, following: &Following) -> io::Result<()> {
        let inner = &mut *self.lock();
        if inner.is_dead() {
            return Err(Inner::dead());
        }
        let lives = inner.operation();
        // Without power it may be there, or not.
        if lives || inner.rng.chance(0.5) {
            inner.note = following.clone();
        }
        if lives { Ok(()) } else { Err(Inner::dead()) }
    }
}

impl Followed {
    /// An empty disk for a volume.
    pub fn new(world: &World, volume: usize) -> Self {
        let machine = Machine::new(world, volume);
        Self { volume, machine, strange: BTreeSet::new(), meddled: false, was_off: false, in_question: false }
    }

    /// The point that it says it is at.
    fn at(&self) -> Option<Slot> {
        match self.machine.following().stage {
            FollowStage::At(at) => Some(at.slot),
            _ => None,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.machine.lock().disk.image()
    }

    /// Somebody else writes to it, or puts another disk there.
    fn meddle(&mut self, world: &World) {
        let inner = &mut *self.machine.lock();
        inner.land_all();
        self.meddled = true;
        if world.chance(0.1) {
            inner.serial += 1;
            let sectors = inner.disk.sectors();
            let foreign: Vec<u8> = (0..sectors).flat_map(|sector| value(world.tag(), self.volume, sector)).collect();
            inner.disk.restore(&foreign);
            self.strange = (0..sectors).collect();
            return;
        }
        for _ in 0..1 + world.dice(3) {
            let sector = world.dice(inner.disk.sectors());
            inner.disk.set((sector * SECTOR) as u64, &value(world.tag(), self.volume, sector));
            inner.writes += 1;
            self.strange.insert(sector);
        }
    }
}

impl Run {
    /// Each volume gets a disk that follows it, where the plan has any.
    pub(crate) fn followers_begin(&mut self) {
        if self.world.plan.follows {
            self.followers = (0..self.world.volumes()).map(|volume| Followed::new(&self.world, volume)).collect();
        }
    }

    /// A round of one follower, or something that befalls its disk.
    pub(crate) fn followers_go_on(&mut self) {
        let world = self.world.clone();
        if self.followers.is_empty() || world.healing.get() || !world.chance(0.02) {
            return;
        }
        let no = world.dice(self.followers.len());
        match world.dice(12) {
            0 => {
                world.met("a stranger writes to a follower's disk");
                self.followers[no].meddle(&world);
            }
            1 => {
                world.met("a sync of a follower's disk fails");
                self.followers[no].machine.lock().disk.fail_flush();
            }
            2 => self.follower_verifies(no),
            3 | 4 => self.follower_is_healed(no),
            _ => {
                let points = self.whole_points(self.followers[no].volume);
                let newest = points.last().copied();
                let wanted = if world.chance(0.7) { newest } else { newest.map(|_| world.rng.borrow_mut().pick(&points)) };
                if let Some(wanted) = wanted {
                    let dies = world.chance(0.5);
                    self.follower_advances(no, wanted, dies);
                }
            }
        }
    }

    /// Retained points of which all of a volume could be read, and which every process knows.
    fn whole_points(&self, volume: usize) -> Vec<Slot> {
        let id = self.world.names.ids[volume];
        let Some(receiver) = &self.receiver else { return Vec::new() };
        receiver.whole_points(id)
    }

    fn reader(&self, point: Slot, volume: usize) -> Result<LazyPointReader, StoreError> {
        let receiver = self
            .receiver
            .as_ref()
            .ok_or_else(|| StoreError::NoSuchPoint { point: point.to_string(), why: "the receiver is away".to_owned() })?;
        let (world, backend) = (&self.world, Shelf::of(&self.world));
        receiver.with_group(|group| LazyPointReader::over(group, &backend, &group_names(world), point, world.names.ids[volume]))
    }

    /// Brings a follower's disk to a point, or dies on the way.
    fn follower_advances(&mut self, no: usize, wanted: Slot, dies: bool) {
        let world = self.world.clone();
        let followed = &self.followers[no];
        let volume = followed.volume;
        let Some(receiver) = self.receiver.clone() else { return };
        let before = followed.machine.following();
        let reader = match self.reader(wanted, volume) {
            Ok(reader) => reader,
            Err(error) => return world.fail(format!("L5: point {wanted} of v{volume} cannot be opened: {error}")),
        };
        let look = match receiver.with_group(|group| FollowLook::new(group.state(), reader, &before.stage)) {
            Ok(look) => look,
            Err(error) => return world.fail(format!("a follower of v{volume} has no way to point {wanted}: {error}")),
        };
        if dies {
            followed.machine.lock().left = 1 + world.dice(LIFE_OPERATIONS);
        }
        let stops = if world.chance(0.1) { world.dice(4) as u64 } else { u64::MAX };
        let mut follower = Follower::new(&followed.machine, &followed.machine, before.clone(), 1);
        let ended = follower.advance(&look, &|base| self.reader(base, volume), &|progress| progress.done < stops);
        let after = followed.machine.following();
        let is_dead = followed.machine.lock().is_dead();
        world.say(|| {
            format!("the follower of v{volume} goes from {:?} to {wanted}: {:?}", before.stage, ended.as_ref().map(|r| r.regions))
        });
        let followed = &mut self.followers[no];
        if is_dead {
            world.met("a follower dies on its way");
            let power = world.chance(0.5);
            followed.machine.lock().begins_anew(power);
            followed.was_off |= power;
        }
        followed.machine.lock().left = usize::MAX;
        match ended {
            Ok(_) => {
                world.met("a follower arrives");
                followed.was_off = false;
                if !after.is_in_doubt() {
                    followed.strange.clear();
                    followed.meddled = false;
                }
            }
            Err(StoreError::TargetDiverged { why, .. }) => self.follower_diverged(no, &why),
            Err(StoreError::TargetUnsuitable { why, .. }) => {
                followed.in_question = true;
                self.follower_diverged(no, &why);
            }
            Err(StoreError::Stopped) => {}
            Err(_) if is_dead => {}
            Err(StoreError::Degraded { .. }) => world.met("a follower meets what could not be read"),
            Err(StoreError::Target { .. }) => world.met("a follower's disk fails"),
            Err(error) => world.fail(format!("the follower of v{volume}: {error}")),
        }
        self.judge_follower(no);
    }

    fn follower_diverged(&mut self, no: usize, why: &str) {
        let world = self.world.clone();
        let followed = &self.followers[no];
        if !followed.meddled && self.is_beyond_telling(no) {
            return world.met("what a follower that was off held is gone");
        }
        if !followed.meddled {
            return world.fail(format!("a follower of v{} says Diverged without a reason: {why}", followed.volume));
        }
        world.met("a follower diverged");
    }

    /// Whether nothing is left that says who wrote to it. Here nobody keeps the point that it holds.
    fn is_beyond_telling(&self, no: usize) -> bool {
        let followed = &self.followers[no];
        let FollowStage::Diverged { at, .. } = followed.machine.following().stage else { return false };
        let is_gone = matches!(self.reader(at.slot, followed.volume), Err(StoreError::NoSuchPoint { .. }));
        followed.was_off && followed.machine.lock().is_device && is_gone
    }

    /// All of a disk is compared with the point that it holds.
    fn follower_verifies(&mut self, no: usize) {
        let world = self.world.clone();
        let (Some(at), volume) = (self.followers[no].at(), self.followers[no].volume) else { return };
        let Ok(base) = self.reader(at, volume) else { return };
        let followed = &self.followers[no];
        let mut follower = Follower::new(&followed.machine, &followed.machine, followed.machine.following(), 1);
        match follower.verify(&base, &|slot| self.reader(slot, volume), &|_| true) {
            Ok(()) => {
                world.met("a follower is compared");
                let followed = &mut self.followers[no];
                followed.strange.clear();
                (followed.meddled, followed.was_off) = (false, false);
            }
            Err(StoreError::TargetDiverged { why, .. }) => self.follower_diverged(no, &why),
            Err(StoreError::Target { .. }) => world.met("a follower's disk fails"),
            Err(error) => world.fail(format!("comparing the follower of v{volume}: {error}")),
        }
        self.judge_follower(no);
    }

    /// A person says that its disk is to be written again, whatever is on it.
    fn follower_is_healed(&mut self, no: usize) {
        let followed = &mut self.followers[no];
        let mut inner = followed.machine.lock();
        if std::mem::take(&mut followed.in_question) || matches!(inner.note.stage, FollowStage::Diverged { .. }) {
            inner.note = Following::default();
            self.world.met("a follower is healed");
        }
    }

    /// What it says is so.
    fn judge_follower(&self, no: usize) {
        let (world, followed) = (&self.world, &self.followers[no]);
        let (Some(at), volume) = (followed.at(), followed.volume) else { return };
        let Some(image) = self.judge.image_of(volume, at) else {
            return world.fail(format!("the follower of v{volume} is at {at}, which is no point of it"));
        };
        if let Err(why) = followed.machine.holds(image, &followed.strange) {
            world.fail(format!("L4: the follower of v{volume} says that it is at point {at}; {why}"));
        }
    }

    /// What is handed over of a volume when a point is promoted: the disk that follows it, brought to that point, if that can be.
    pub(crate) fn handed_over(&mut self, volume: usize, point: Slot) -> Option<Vec<u8>> {
        let no = self.followers.iter().position(|followed| followed.volume == volume)?;
        if !self.whole_points(volume).contains(&point) {
            return None;
        }
        self.follower_advances(no, point, false);
        let followed = &self.followers[no];
        if followed.at() != Some(point) || !followed.strange.is_empty() {
            return None;
        }
        self.world.met("a follower's disk is handed over");
        let bytes = followed.bytes();
        self.followers[no] = Followed::new(&self.world, volume);
        Some(bytes)
    }

    /// Nothing goes wrong any more: each is at the newest point soon.
    pub(crate) fn followers_settle(&mut self) {
        let world = self.world.clone();
        for no in 0..self.followers.len() {
            let points = self.whole_points(self.followers[no].volume);
            let Some(newest) = points.last().copied() else { continue };
            self.followers[no].machine.lock().disk.mend();
            for _ in 0..ROUNDS_MAX {
                self.follower_is_healed(no);
                self.follower_advances(no, newest, false);
                self.follower_verifies(no);
                if world.bad().is_some() || self.followers[no].at() == Some(newest) {
                    break;
                }
            }
            let followed = &self.followers[no];
            if world.bad().is_none() && (followed.at() != Some(newest) || followed.machine.following().is_in_doubt()) {
                let (volume, stage) = (followed.volume, followed.machine.following().stage);
                return world.fail(format!("NO CONVERGENCE: the follower of v{volume} is {stage:?}, and wants point {newest}"));
            }
        }
    }
}
