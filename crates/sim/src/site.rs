//! One protected machine: its disks, its intent maps, its state directory, and what is true of them. The first site of a
//! world is the original; others are clones of it, which live beside it with disks of their own and speak to the same receiver.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use farside_region::intent::BackingIdentity;
use farside_region::{BootId, Geometry, LedgerPosition, RegionSet, Slot, Term};

use crate::disk::{Disk, Done, OpId};
use crate::history::ClaimFacts;
use crate::oracle::{Oracle, Value};
use crate::rng::Rng;
use crate::succession::Asker;
use crate::world::{GRANULE_SHIFT, REGION_GRANULES_SHIFT, SECTOR, World};

/// What a disk write of the host belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Which volume.
    pub volume: usize,
    /// The epoch it was marked in.
    pub epoch: u64,
    /// The request's tag.
    pub request: u64,
}

/// What the state directory holds of one volume. Written whole and durably, or not at all.
#[derive(Clone, Debug, Default)]
pub struct VolumeState {
    /// The masks of a clean stop.
    pub owed: Option<Vec<u8>>,
    /// Tracking was lost.
    pub tracking_lost: bool,
    /// A person paused it.
    pub paused: bool,
    /// Which backing the volume had.
    pub backing: u64,
    /// The generation under which it was claimed last; 0: never.
    pub generation: u64,
}

/// A backing as the operating system shows it, and as the daemon does.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Which disk, or file, it is.
    pub identity: u64,
    /// When it was written by somebody else.
    pub changed: i64,
    /// Its size.
    bytes: u64,
    /// Its shape as it was served last: growth is seen by the next attach.
    served: Geometry,
    /// Somebody wrote to it, or put another one there, and no attach has looked at it since.
    pub meddled: bool,
    /// Somebody wrote to it past its tap. That was noticed, and nothing keeps it yet.
    pub passed: bool,
}

/// What the present process of a source found on the disks, and what its header says since.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The header's confirmed term.
    pub confirmed: Option<Term>,
    /// The header's ledger position; kept as the header is written.
    pub position: Option<LedgerPosition>,
    /// Regions whose bit was set.
    pub inherited: RegionSet,
}

/// Everything that a snapshot of the machine holds.
#[derive(Clone, Debug)]
pub struct Snapshot {
    disks: Vec<Vec<u8>>,
    maps: Vec<Vec<u8>>,
    state: Vec<VolumeState>,
    backings: Vec<Backing>,
}

/// See the head of the file.
#[derive(Debug)]
pub struct Site {
    /// Its number; 0 is the original.
    pub no: usize,
    /// The backing of each volume.
    pub disks: Vec<RefCell<Disk>>,
    /// The intent map of each volume, header included.
    pub maps: Vec<RefCell<Disk>>,
    /// What the backings look like from outside.
    pub backings: RefCell<Vec<Backing>>,
    /// What is true.
    pub oracle: RefCell<Oracle>,
    pieces: RefCell<BTreeMap<u64, Piece>>,
    /// Per request and sector, the number of the version that it landed.
    pub landed_n: RefCell<BTreeMap<u64, BTreeMap<usize, u64>>>,
    /// Per volume and sector, the newest version that was acknowledged and may be relied on after a flush.
    pub acked_n: RefCell<Vec<Vec<u64>>>,
    /// Per volume, flushes of the backing that failed in this life of the source.
    pub flush_failures: RefCell<Vec<u64>>,
    /// What the source keeps beside its intent maps.
    pub state_dir: RefCell<Vec<VolumeState>>,
    /// A volume that is not configured yet.
    pub absent: Cell<Option<usize>>,
    /// The state directory's file system takes no writes.
    pub state_dir_full: Cell<bool>,
    /// Backings of which nothing moves before that time.
    pub hung_until_us: RefCell<Vec<u64>>,
    /// The kernel's boot.
    pub boot: Cell<BootId>,
    /// The process of the newest attach lives.
    pub source_alive: Cell<bool>,
    /// Volumes of which somebody else's layers, or another ledger, may stand between published and disk, and whose position was
    /// not checked since: L2 does not speak of them. With the step at which that came about.
    pub tainted: RefCell<Vec<Option<u64>>>,
    /// The step in which a person accepted a volume, until a layer follows that was claimed by that.
    pub accepted: RefCell<Vec<Option<u64>>>,
    /// It publishes in place of the original.
    pub stands_in: bool,
    /// Per volume, the newest promotion that a person knew of who let this machine go on.
    pub permitted: RefCell<Vec<u64>>,
    /// Per volume, the point that its disk was brought to, from which a person takes the history back.
    pub takes_back: RefCell<Vec<Option<Slot>>>,
    /// Which history of the machine this is: a rollback or a reinstallation begins another.
    pub life: Cell<u64>,
    /// What the present process found.
    pub start: RefCell<Vec<Start>>,
    /// The claim that was asked for last, per volume.
    pub claiming: RefCell<Vec<ClaimFacts>>,
    /// The step at which the present process began.
    pub attached_at: Cell<u64>,
    /// And its present connection.
    pub connected_at: Cell<u64>,
}

impl Site {
    /// A machine of zeroes.
    pub fn new(no: usize, stands_in: bool, life: u64, largest: &[Geometry], map_bytes: usize, boot: BootId) -> Self {
        let sectors: Vec<usize> = largest.iter().map(|g| g.volume_bytes() as usize / SECTOR).collect();
        let sectors = &sectors[..];
        let backing = |g: &Geometry| Backing {
            identity: 0,
            changed: 0,
            bytes: g.volume_bytes(),
            served: *g,
            meddled: false,
            passed: false,
        };
        Self {
            no,
            backings: RefCell::new(largest.iter().map(backing).collect()),
            disks: sectors.iter().map(|n| RefCell::new(Disk::new(n * SECTOR, SECTOR, SECTOR))).collect(),
            maps: sectors.iter().map(|_| RefCell::new(Disk::new(map_bytes, 4096, 16))).collect(),
            oracle: RefCell::new(Oracle::new(sectors)),
            pieces: RefCell::default(),
            landed_n: RefCell::default(),
            acked_n: RefCell::new(sectors.iter().map(|n| vec![0; *n]).collect()),
            flush_failures: RefCell::new(vec![0; sectors.len()]),
            state_dir: RefCell::new(vec![VolumeState::default(); sectors.len()]),
            absent: Cell::new(None),
            state_dir_full: Cell::new(false),
            hung_until_us: RefCell::new(vec![0; sectors.len()]),
            boot: Cell::new(boot),
            source_alive: Cell::new(false),
            tainted: RefCell::new(vec![None; sectors.len()]),
            accepted: RefCell::new(vec![None; sectors.len()]),
            stands_in,
            takes_back: RefCell::new(vec![None; sectors.len()]),
            permitted: RefCell::new(vec![1; sectors.len()]),
            life: Cell::new(life),
            start: RefCell::new(vec![Start::default(); sectors.len()]),
            claiming: RefCell::new(vec![ClaimFacts::default(); sectors.len()]),
            attached_at: Cell::new(0),
            connected_at: Cell::new(0),
        }
    }

    /// Its present process, as claims tell it.
    pub fn asker(&self) -> Asker {
        Asker { site: self.no, attached_at: self.attached_at.get() }
    }

    /// A person accepts a volume. Said again before anything was claimed by it, it is the same yes.
    pub fn says_yes(&self, volume: usize, step: u64) {
        let claimed = self.claiming.borrow()[volume].accepted;
        let accepted = &mut self.accepted.borrow_mut()[volume];
        if accepted.is_none() || *accepted == claimed {
            *accepted = Some(step);
        }
    }

    /// The first layer of a claim is published: the yes that it was made by is over. That may be the claim of a process, or of a
    /// machine, that is no more, whose layer the receiver had staged: what was said to this one since was about another refusal.
    pub fn yes_is_over(&self, volume: usize, claim: &ClaimFacts) {
        let accepted = &mut self.accepted.borrow_mut()[volume];
        if *accepted == claim.accepted {
            *accepted = None;
        }
    }

    /// All its disks: backings, then intent maps.
    pub fn all_disks(&self) -> impl Iterator<Item = &RefCell<Disk>> {
        self.disks.iter().chain(&self.maps)
    }

    /// The machine as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let images = |disks: &[RefCell<Disk>]| disks.iter().map(|d| d.borrow().image()).collect();
        let state = self.state_dir.borrow().clone();
        Snapshot { disks: images(&self.disks), maps: images(&self.maps), state, backings: self.backings.borrow().clone() }
    }

    /// Becomes what it was then.
    pub fn restore(&self, snapshot: &Snapshot) {
        let images = snapshot.disks.iter().chain(&snapshot.maps);
        for (disk, image) in self.all_disks().zip(images) {
            disk.borrow_mut().restore(image);
        }
        self.state_dir.borrow_mut().clone_from(&snapshot.state);
        self.backings.borrow_mut().clone_from(&snapshot.backings);
    }

    /// A volume's shape as it is served, or was last.
    pub fn geometry(&self, volume: usize) -> Geometry {
        self.backings.borrow()[volume].served
    }

    /// The shape that its backing has now.
    pub fn geometry_found(&self, volume: usize) -> Geometry {
        let backing = &self.backings.borrow()[volume];
        Geometry::with_shape(backing.bytes, GRANULE_SHIFT, REGION_GRANULES_SHIFT).expect("a valid shape")
    }

    /// From now on its backing has that size.
    pub fn has_size(&self, volume: usize, bytes: u64) {
        self.backings.borrow_mut()[volume].bytes = bytes;
    }

    /// From now on all of it is served.
    pub fn is_served_whole(&self, volume: usize) {
        let found = self.geometry_found(volume);
        self.backings.borrow_mut()[volume].served = found;
    }

    /// What a file shows of itself; a block device shows nothing.
    pub fn backing_identity(&self, world: &World, volume: usize) -> Option<BackingIdentity> {
        let backing = &self.backings.borrow()[volume];
        let (inode, size, at) = (backing.identity, backing.bytes, (backing.changed, 0));
        world.plan.files.then_some(BackingIdentity { inode, size, mtime: at, ctime: at })
    }

    /// A host write's piece goes to the backing.
    pub fn write_piece(&self, world: &World, piece: Piece, offset: u64, data: Vec<u8>) -> OpId {
        let tag = world.tag();
        let volume = piece.volume;
        self.pieces.borrow_mut().insert(tag, piece);
        self.disks[volume].borrow_mut().write(offset, data, tag)
    }

    /// Writes a volume's files in the state directory; false: it takes no writes.
    pub fn write_state(&self, volume: usize, change: impl FnOnce(&mut VolumeState)) -> bool {
        if !self.state_dir_full.get() {
            change(&mut self.state_dir.borrow_mut()[volume]);
        }
        !self.state_dir_full.get()
    }

    /// Whether some disk has an operation that may go on now.
    pub fn has_work(&self, now_us: u64) -> bool {
        (0..2 * self.disks.len()).any(|i| self.is_busy(i, now_us))
    }

    fn is_busy(&self, i: usize, now_us: u64) -> bool {
        match self.disks.get(i) {
            Some(disk) => now_us >= self.hung_until_us.borrow()[i] && !disk.borrow().quiet(),
            None => !self.maps[i - self.disks.len()].borrow().quiet(),
        }
    }

    /// Lets an operation of one of its disks go on, and tells the truth about what landed. False when all are idle.
    pub fn advance_disk(&self, rng: &mut Rng, now_us: u64) -> bool {
        let busy: Vec<usize> = (0..2 * self.disks.len()).filter(|&i| self.is_busy(i, now_us)).collect();
        if busy.is_empty() {
            return false;
        }
        let i = rng.pick(&busy);
        let mut disk = if i < self.disks.len() { &self.disks[i] } else { &self.maps[i - self.disks.len()] }.borrow_mut();
        let op = rng.pick(&disk.in_flight());
        let whole = rng.chance(0.7);
        let landed = disk.advance(op, whole, rng);
        drop(disk);
        if i < self.disks.len() {
            let pieces = self.pieces.borrow();
            let mut oracle = self.oracle.borrow_mut();
            for sector in landed {
                let piece = pieces[&sector.tag];
                let value: Value = sector.value.try_into().expect("a sector");
                self.landed_n.borrow_mut().entry(piece.request).or_default().insert(sector.sector, sector.n);
                oracle.landed(piece.volume, sector.sector, value, piece.epoch, now_us);
            }
        }
        true
    }

    /// Something was put back, or somebody else published: until the position rule has spoken, no bit can be judged.
    pub fn taint(&self, volume: usize, step: u64) {
        self.tainted.borrow_mut()[volume] = Some(step);
    }

    /// What a disk holds, sector by sector, as far as it is served.
    pub fn image(&self, volume: usize) -> Vec<Value> {
        let disk = self.disks[volume].borrow();
        (0..self.geometry(volume).volume_bytes() as usize / SECTOR)
            .map(|s| disk.current(s).try_into().expect("a sector"))
            .collect()
    }

    /// Waits for an operation of a volume's backing.
    pub async fn backing(&self, world: &World, volume: usize, op: OpId) -> Done {
        world.steps().get(|| self.disks[volume].borrow_mut().take(op)).await
    }

    /// Waits for an operation of a volume's intent map.
    pub async fn map(&self, world: &World, volume: usize, op: OpId) -> Done {
        world.steps().get(|| self.maps[volume].borrow_mut().take(op)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t17_a_layer_of_the_machine_before_uses_up_no_yes_of_the_one_after() {
        let geometry = Geometry::with_shape(4096, GRANULE_SHIFT, REGION_GRANULES_SHIFT).expect("a valid shape");
        let site = Site::new(0, false, 1, &[geometry], 8192, BootId([1; 16]));
        let says = |step| {
            site.says_yes(0, step);
            site.accepted.borrow()[0]
        };
        let claims = || {
            let claim = ClaimFacts { accepted: site.accepted.borrow()[0], ..ClaimFacts::default() };
            site.claiming.borrow_mut()[0] = claim.clone();
            claim
        };
        let publishes = |claim: &ClaimFacts| {
            site.yes_is_over(0, claim);
            site.accepted.borrow()[0]
        };
        assert_eq!((says(5), says(6)), (Some(5), Some(5)), "nothing was claimed by the first one yet");
        let before = claims();
        site.accepted.borrow_mut().fill(None); // installed anew
        assert_eq!(says(8), Some(8));
        assert_eq!(publishes(&before), Some(8), "T17: it was staged before");
        assert_eq!(publishes(&ClaimFacts::default()), Some(8), "T17: nobody had to be asked about it");
        let after = claims();
        assert_eq!(says(9), Some(9), "refused once more");
        assert_eq!(publishes(&after), Some(9), "T17: it was about the refusal before");
        assert_eq!(publishes(&claims()), None, "it was about that one");
    }
}
