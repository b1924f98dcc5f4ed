//! The disks that a failback holds, the files of its branch, and the power of the process that is at work on them.
//!
//! Each operation of it, on whatever disk, may be its last: by a kill, after which what was begun lands, or with the machine's power, after
//! which each sector that was written and not synced is what it was at any moment since. What tells of strangers' writes is what a device
//! counts since a boot, what a file's times say, or nothing.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use farside_region::{ByteExtent, GranuleIndex, GranuleRun, LedgerPosition, Name, mutation};
use farside_store::Seen;
use farside_view::{Medium, Overlay};
use nix::errno::Errno;

use crate::disk::{Disk, Done};
use crate::oracle::Published;
use crate::rng::Rng;
use crate::site::Site;
use crate::world::{GRANULE_SECTORS, SECTOR, World};

/// Of a branch's map: what a disk writes whole or not at all.
const MAP_SECTOR: usize = 512;

/// Why the process does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is dead.
    Dead,
    /// A disk, or the gateway, says no; it is tried again.
    Failed,
}

/// Operations that are left until the process dies.
#[derive(Clone, Debug)]
pub(super) struct Power(Arc<AtomicUsize>);

impl Power {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }

    /// It dies so soon.
    pub(super) fn ends_after(&self, operations: usize) {
        self.0.store(operations, Ordering::Relaxed);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whoever looks from outside needs none of it.
    fn aside<T>(&self, look: impl FnOnce() -> T) -> T {
        let left = self.0.swap(usize::MAX, Ordering::Relaxed);
        let seen = look();
        self.0.store(left, Ordering::Relaxed);
        seen
    }

    /// One operation, or a part of the last one.
    fn operation(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        if left != usize::MAX {
            self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        }
        left > 1
    }

    /// Something that becomes durable whole or not at all. The one during which it dies may be there.
    pub(super) fn durable(&self, world: &World, change: impl FnOnce()) -> Result<(), Ended> {
        if self.is_dead() {
            return Err(Ended::Dead);
        }
        let lives = self.operation();
        if lives || world.chance(0.5) {
            change();
        }
        if lives { Ok(()) } else { Err(Ended::Dead) }
    }
}

/// Writes one operation through, or a part of it where that is the last.
fn carry_out(disk: &mut Disk, rng: &mut Rng, op: crate::disk::OpId, lives: bool) -> Result<(), Ended> {
    if lives || rng.chance(0.6) {
        disk.advance(op, lives, rng);
    }
    match disk.take(op) {
        _ if !lives => Err(Ended::Dead),
        Some(Done::Ok) => Ok(()),
        _ => Err(Ended::Failed),
    }
}

/// A dead process' operations end all the same, or the power takes what it may.
fn after_death(disk: &mut Disk, rng: &mut Rng, power: bool) {
    if power {
        return disk.power_cut(rng);
    }
    for op in disk.in_flight() {
        disk.advance(op, true, rng);
    }
    disk.orphan();
}

/// A file of a branch.
#[derive(Clone, Debug)]
pub(super) struct Sheet {
    power: Power,
    inner: Arc<Mutex<(Disk, Rng)>>,
}

impl Sheet {
    fn new(world: &World, power: &Power, bytes: usize, sector: usize) -> Self {
        let rng = Rng::new(world.rng.borrow_mut().bits());
        Self { power: power.clone(), inner: Arc::new(Mutex::new((Disk::new(bytes, sector, sector), rng))) }
    }

    fn lock(&self) -> MutexGuard<'_, (Disk, Rng)> {
        self.inner.lock().expect("nothing panics while it holds this lock")
    }

    /// The process is dead.
    pub(super) fn survives(&self, power: bool) {
        let (disk, rng) = &mut *self.lock();
        after_death(disk, rng, power);
    }
}

impl Medium for Sheet {
    fn get(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        if self.power.is_dead() {
            return Err(Errno::EIO);
        }
        let (disk, _) = &*self.lock();
        let sector_bytes = disk.sector_bytes();
        let first = offset as usize / sector_bytes;
        for (i, part) in out.chunks_mut(sector_bytes).enumerate() {
            part.copy_from_slice(&disk.current(first + i)[..part.len()]);
        }
        Ok(())
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        if self.power.is_dead() {
            return Err(Errno::EIO);
        }
        let lives = self.power.operation();
        let (disk, rng) = &mut *self.lock();
        let op = disk.write(offset, bytes.to_vec(), 0);
        carry_out(disk, rng, op, lives).map_err(|_| Errno::EIO)
    }

    fn zero(&self, extent: ByteExtent, _: bool) -> Result<(), Errno> {
        self.put(extent.offset.0, &vec![0; extent.len as usize])
    }

    fn sync(&self) -> Result<(), Errno> {
        if self.power.is_dead() || !self.power.operation() {
            return Err(Errno::EIO);
        }
        let (disk, rng) = &mut *self.lock();
        let op = disk.flush();
        carry_out(disk, rng, op, true).map_err(|_| Errno::EIO)
    }

    fn forget(&self) -> Result<(), Errno> {
        self.lock().0.read_anew();
        Ok(())
    }

    fn next_data(&self, at: u64) -> Result<Option<u64>, Errno> {
        let (disk, _) = &*self.lock();
        let sector_bytes = disk.sector_bytes();
        let has_data = |sector: &usize| disk.current(*sector).iter().any(|byte| *byte != 0);
        let found = (at as usize / sector_bytes..disk.sectors()).find(has_data);
        Ok(found.map(|sector| at.max((sector * sector_bytes) as u64)))
    }
}

/// What disks held, and which sectors of it strangers wrote to since.
#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    pub(super) images: Vec<Vec<u8>>,
    pub(super) strange: Vec<std::collections::BTreeSet<usize>>,
}

/// A branch: a folder with an overlay for each volume, and what it is to give.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(super) id: Name,
    pub(super) over: LedgerPosition,
    sheets: Vec<[Sheet; 2]>,
    pub(super) truth: Truth,
}

impl Folder {
    /// Begins one.
    pub(super) fn new(world: &World, power: &Power, id: Name, over: LedgerPosition, truth: Truth) -> Self {
        let sheets = world.names.geometry.iter().map(|geometry| {
            let data = Sheet::new(world, power, geometry.volume_bytes() as usize, SECTOR);
            [data, Sheet::new(world, power, Overlay::map_bytes(geometry) as usize, MAP_SECTOR)]
        });
        Self { id, over, sheets: sheets.collect(), truth }
    }

    pub(super) fn pin_reason(&self) -> String {
        format!("{PIN}{}", self.id)
    }

    /// The overlay of a volume, as it is found.
    pub(super) fn open(&self, world: &World, volume: usize) -> Result<Overlay, Ended> {
        let [data, map] = self.sheets[volume].clone();
        Overlay::of(Box::new(data), Box::new(map), &world.names.geometry[volume]).map_err(|error| match error {
            farside_view::MapError::Io(_) => Ended::Failed,
            damaged => {
                world.fail(format!("the map of branch {} of v{volume} is damaged: {damaged}", self.id));
                Ended::Failed
            }
        })
    }

    pub(super) fn survives(&self, power: bool) {
        self.sheets.iter().flatten().for_each(|sheet| sheet.survives(power));
    }

    /// Whoever opens it over its point has what the disks held when it was begun.
    pub(super) fn judge(&self, world: &World, below: &dyn Fn(usize) -> Option<Vec<Published>>) {
        self.sheets[0][0].power.clone().aside(|| self.compare(world, below));
    }

    fn compare(&self, world: &World, below: &dyn Fn(usize) -> Option<Vec<Published>>) {
        for volume in 0..self.sheets.len() {
            let Some(mut image) = below(volume).map(|image| bytes_of(&image)) else {
                return world.fail(format!("the point {} below branch {} does not hold v{volume}", self.over.slot, self.id));
            };
            let Ok(overlay) = self.open(world, volume) else {
                return world.fail(format!("branch {} of v{volume} cannot be opened", self.id));
            };
            let given = overlay.give(|extent, content| {
                image[extent.offset.0 as usize..][..content.len()].copy_from_slice(content);
                Ok(())
            });
            if given.is_err() {
                return world.fail(format!("branch {} of v{volume} cannot be read", self.id));
            }
            if let Some(sector) = differs(&image, &self.truth.images[volume], &self.truth.strange[volume]) {
                return world.fail(format!(
                    "branch {}: sector {sector} of v{volume} is not what the disk held before it was overwritten",
                    self.id
                ));
            }
        }
    }
}

/// What reasons of pins of branches begin with.
pub(crate) const PIN: &str = "branch ";

/// The first sector that is not the same, but for these.
pub(super) fn differs(one: &[u8], other: &[u8], but: &std::collections::BTreeSet<usize>) -> Option<usize> {
    let mut sectors = one.chunks(SECTOR).zip(other.chunks(SECTOR)).enumerate();
    sectors.find(|(sector, (one, other))| one != other && !but.contains(sector)).map(|(sector, _)| sector)
}

/// What a point holds, as it is on a disk.
pub(super) fn bytes_of(image: &[Published]) -> Vec<u8> {
    let bytes = |published: &Published| if let Published::Value(value) = published { *value } else { [0; SECTOR] };
    image.iter().flat_map(bytes).collect()
}

/// The disks, as whoever holds them has them.
#[derive(Debug)]
pub(super) struct Disks {
    site: Rc<Site>,
    pub(super) power: Power,
    /// What a device counts, since a boot, or a file's times say; of some nothing tells.
    marks: Vec<u64>,
    boot: u64,
    tells: Vec<Tells>,
    /// By the process that is there now.
    are_open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tells {
    Always,
    UntilABoot,
    Nothing,
}

impl Disks {
    pub(super) fn new(world: &World, site: Rc<Site>) -> Self {
        let volumes = world.volumes();
        let tells = (0..volumes)
            .map(|_| world.rng.borrow_mut().pick(&[Tells::Always, Tells::UntilABoot, Tells::UntilABoot, Tells::Nothing]));
        Self { site, power: Power::new(), marks: vec![0; volumes], boot: 0, tells: tells.collect(), are_open: false }
    }

    /// Sick disks are another matter: those that are held are sound.
    pub(super) fn are_sound(&self) {
        self.site.disks.iter().for_each(|disk| disk.borrow_mut().replace());
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.site.all_disks().all(|disk| disk.borrow().quiet())
    }

    /// Opens those that are not, as each process does before it looks at them.
    pub(super) fn open(&mut self) {
        if !std::mem::replace(&mut self.are_open, true) && !mutation::on("a failback believes the cache of who was there before")
        {
            // † What is in the cache after a sync that failed is not on the disk, and whoever opens it now does not hear of that.
            self.site.disks.iter().for_each(|disk| disk.borrow_mut().read_anew());
        }
    }

    /// What a read sees.
    pub(super) fn images(&self) -> Vec<Vec<u8>> {
        self.site.disks.iter().map(|disk| disk.borrow().image()).collect()
    }

    pub(super) fn granule(&self, volume: usize, granule: GranuleIndex) -> Vec<u8> {
        let disk = self.site.disks[volume].borrow();
        let first = granule.0 as usize * GRANULE_SECTORS;
        (first..(first + GRANULE_SECTORS).min(disk.sectors())).flat_map(|sector| disk.current(sector).to_vec()).collect()
    }

    /// Writes.
    pub(super) fn put(&mut self, world: &World, volume: usize, offset: u64, bytes: &[u8]) -> Result<(), Ended> {
        if self.power.is_dead() {
            return Err(Ended::Dead);
        }
        let lives = self.power.operation();
        self.marks[volume] += 1;
        let disk = &mut *self.site.disks[volume].borrow_mut();
        let op = disk.write(offset, bytes.to_vec(), 0);
        carry_out(disk, &mut world.rng.borrow_mut(), op, lives)
    }

    /// Syncs all, and says what tells of strangers' writes from now on.
    pub(super) fn sync_and_see(&self, world: &World) -> Result<BTreeMap<Name, Option<Seen>>, Ended> {
        let mut seen = BTreeMap::new();
        for (volume, disk) in self.site.disks.iter().enumerate() {
            if self.power.is_dead() || !self.power.operation() {
                return Err(Ended::Dead);
            }
            let disk = &mut *disk.borrow_mut();
            let op = disk.flush();
            if let Err(ended) = carry_out(disk, &mut world.rng.borrow_mut(), op, true) {
                world.met("a sync of a disk that is held fails");
                if !mutation::on("a failback believes the cache after a failed sync") {
                    disk.read_anew();
                }
                return Err(ended);
            }
            let is = |since: String| Seen { since, marks: self.marks[volume].to_string() };
            let tells = match self.tells[volume] {
                Tells::Always => Some(is(String::new())),
                Tells::UntilABoot => Some(is(self.boot.to_string())),
                Tells::Nothing => None,
            };
            seen.insert(world.names.volumes[volume].clone(), tells);
        }
        Ok(seen)
    }

    /// The process is dead. With `power` all of the machine is.
    pub(super) fn survive(&mut self, world: &World, power: bool) {
        let rng = &mut *world.rng.borrow_mut();
        self.site.disks.iter().for_each(|disk| after_death(&mut disk.borrow_mut(), rng, power));
        self.boot += u64::from(power);
        self.are_open = false;
        self.power.ends_after(usize::MAX);
    }

    /// Somebody else writes to one. `is_locked`: nobody can to one of which nothing would tell.
    pub(super) fn meddle(&mut self, world: &World, volume: usize, is_locked: bool) -> Option<usize> {
        if is_locked && self.tells[volume] == Tells::Nothing {
            return None;
        }
        let disk = &mut *self.site.disks[volume].borrow_mut();
        let sector = world.dice(disk.sectors());
        let content = crate::oracle::value(world.tag(), volume, sector).to_vec();
        let rng = &mut *world.rng.borrow_mut();
        let op = disk.write((sector * SECTOR) as u64, content, 0);
        disk.advance(op, true, rng);
        disk.take(op);
        let op = disk.flush();
        disk.advance(op, true, rng);
        if disk.take(op) == Some(Done::Failed) {
            // What the stranger wrote is lost with the cache; only whoever has the disk open hears of it, too, with the next sync.
            world.met("a stranger's write to a disk that is held is lost");
            if self.are_open {
                disk.fail_flush();
            }
        }
        self.marks[volume] += 1;
        Some(sector)
    }

    /// What does not surely hold what it should, also after a power cut; but for what strangers wrote.
    pub(super) fn unlike(&self, volume: usize, want: &[u8], but: &std::collections::BTreeSet<usize>) -> Option<usize> {
        let disk = self.site.disks[volume].borrow();
        let mut sectors = want.chunks(SECTOR).enumerate().filter(|(sector, _)| !but.contains(sector));
        sectors.find(|(sector, want)| disk.certain(*sector) != Some(want)).map(|(sector, _)| sector)
    }
}

/// Granules that follow each other, as runs.
pub(super) fn runs_of(granules: &[GranuleIndex]) -> Vec<GranuleRun> {
    let mut runs: Vec<GranuleRun> = Vec::new();
    for granule in granules {
        match runs.last_mut() {
            Some(run) if run.end() == *granule => run.count += 1,
            _ => runs.push(GranuleRun { start: *granule, count: 1 }),
        }
    }
    runs
}
