use std::collections::BTreeSet;
use std::path::Path;

use farside_ledger::{LayerKind, Policy};
use farside_region::ByteOffset;
use farside_region::mutation::tell;
use proptest::prelude::*;

use super::*;
use crate::group::GroupStore;
use crate::testkit::{Fill, GRANULE, Runs, TempStore, TestVolume};

const GRANULES: u64 = 64;
const ALL: &(dyn Fn(FollowProgress) -> bool + Sync) = &|_| true;

/// Nothing is merged meanwhile.
const NEVER: &dyn Fn(Slot) -> Result<LazyPointReader> = &|_| panic!("nothing was merged");

/// A disk that forgets what was not synced, and a note beside it. There is power for so many operations.
#[derive(Debug)]
struct Machine {
    disk: Mutex<Disk>,
    note: Mutex<Following>,
    power: Mutex<u64>,
    /// Drawn on at a power cut.
    random: AtomicU64,
    /// Which disk it is.
    facts: Mutex<&'static str>,
    /// How often it was booted, and whether it counts what is written.
    counts: Mutex<(u32, bool)>,
}

#[derive(Debug)]
struct Disk {
    durable: Vec<u8>,
    cached: Vec<u8>,
    /// Sectors that were written since the last sync.
    unsynced: BTreeSet<usize>,
    writes: u64,
    /// Syncs until one fails: what was to be written stays in the cache, and is clean.
    sound_syncs: u64,
}

impl Machine {
    fn new(bytes: u64) -> Self {
        let durable = vec![0; bytes as usize];
        let disk = Disk { cached: durable.clone(), durable, unsynced: BTreeSet::new(), writes: 0, sound_syncs: u64::MAX };
        Self {
            disk: Mutex::new(disk),
            note: Mutex::default(),
            power: Mutex::new(u64::MAX),
            random: AtomicU64::new(7),
            facts: Mutex::new(r#"{"serial":"A"}"#),
            counts: Mutex::new((0, true)),
        }
    }

    fn draw(&self) -> u64 {
        let next =
            self.random.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random.store(next, Ordering::Relaxed);
        next >> 33
    }

    fn operation(&self) -> io::Result<()> {
        let mut power = self.power.lock().expect("sound");
        *power = power.checked_sub(1).ok_or_else(|| io::Error::other("the power is gone"))?;
        Ok(())
    }

    /// What is there when the power is back: of what was not synced this and that.
    fn power_goes(&self) {
        let mut disk = self.disk.lock().expect("sound");
        for sector in std::mem::take(&mut disk.unsynced) {
            if self.draw().is_multiple_of(2) {
                let bytes = sector * 512..(sector + 1) * 512;
                let Disk { durable, cached, .. } = &mut *disk;
                durable[bytes.clone()].copy_from_slice(&cached[bytes]);
            }
        }
        disk.cached = disk.durable.clone();
        *self.power.lock().expect("sound") = u64::MAX;
    }

    /// Somebody else writes.
    fn stranger(&self, offset: u64, byte: u8) {
        let mut disk = self.disk.lock().expect("sound");
        disk.writes += 1;
        disk.cached[offset as usize] = byte;
        disk.durable[offset as usize] = byte;
    }

    fn holds(&self) -> Vec<u8> {
        self.disk.lock().expect("sound").durable.clone()
    }

    fn noted(&self) -> Following {
        self.note.lock().expect("sound").clone()
    }

    fn follower(&self) -> Follower<'_> {
        // One thread: mistakes are a thread's, and so is the order of operations.
        Follower::new(self, self, self.noted(), 1)
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
        self.operation()?;
        let mut disk = self.disk.lock().expect("sound");
        disk.writes += 1;
        let from = offset.0 as usize;
        disk.cached[from..from + bytes.len()].copy_from_slice(bytes);
        disk.unsynced.extend(from / 512..(from + bytes.len()).div_ceil(512));
        Ok(())
    }

    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        self.write_at(extent.offset, &vec![0; extent.len as usize])
    }

    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.lock().expect("sound");
        bytes.copy_from_slice(&disk.cached[offset.0 as usize..][..bytes.len()]);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.operation()?;
        let mut disk = self.disk.lock().expect("sound");
        let sectors = std::mem::take(&mut disk.unsynced);
        match disk.sound_syncs.checked_sub(1) {
            Some(left) => disk.sound_syncs = left,
            None => {
                disk.sound_syncs = u64::MAX;
                return Err(io::Error::other("the disk is full"));
            }
        }
        let Disk { durable, cached, .. } = &mut *disk;
        for sector in sectors {
            let bytes = sector * 512..((sector + 1) * 512).min(cached.len());
            durable[bytes.clone()].copy_from_slice(&cached[bytes]);
        }
        Ok(())
    }

    fn read_anew(&self) -> io::Result<()> {
        let mut disk = self.disk.lock().expect("sound");
        let Disk { durable, cached, unsynced, .. } = &mut *disk;
        for (sector, kept) in durable.chunks(512).enumerate().filter(|(sector, _)| !unsynced.contains(sector)) {
            cached[sector * 512..][..kept.len()].copy_from_slice(kept);
        }
        Ok(())
    }
}

impl FollowTarget for Machine {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.disk.lock().expect("sound").cached.len() as u64)
    }

    fn is_fixed(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn resize(&self, _bytes: u64) -> io::Result<()> {
        panic!("its size is fixed");
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(serde_json::from_str(*self.facts.lock().expect("sound")).expect("facts"))
    }

    fn seen(&self) -> io::Result<Option<Seen>> {
        let (boot, counted) = *self.counts.lock().expect("sound");
        let writes = self.disk.lock().expect("sound").writes;
        Ok(Some(Seen { since: boot.to_string(), marks: if counted { writes.to_string() } else { String::new() } }))
    }
}

impl FollowKeeper for Machine {
    fn keep(&self, following: &Following) -> io::Result<()> {
        let kept = self.operation();
        // Without power it may be there, or not.
        if kept.is_ok() || self.draw().is_multiple_of(2) {
            *self.note.lock().expect("sound") = following.clone();
        }
        kept
    }
}

/// A group whose points are known.
struct World {
    store: TempStore,
    group: GroupStore,
    volume: TestVolume,
    points: BTreeMap<Slot, Vec<u8>>,
}

impl World {
    fn new() -> Self {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volume = TestVolume::new("v", GRANULES);
        volume.claim(&mut group);
        let mut world = Self { store, group, volume, points: BTreeMap::new() };
        world.point(&[(0, GRANULES, Fill::Byte(1))]);
        world
    }

    /// As after a restart: nothing of what was read is remembered.
    fn reopened(self) -> Self {
        let Self { store, group, volume, points } = self;
        drop(group);
        Self { group: store.group(), store, volume, points }
    }

    fn publish(&mut self, kind: LayerKind, runs: &[(u64, u64, Fill)]) -> Slot {
        let runs: Runs = runs.to_vec();
        self.volume.publish(&mut self.group, kind, &[runs]).position.slot
    }

    fn point(&mut self, runs: &[(u64, u64, Fill)]) -> Slot {
        let slot = self.publish(LayerKind::Point, runs);
        self.points.insert(slot, TestVolume::bytes(&self.volume.image));
        slot
    }

    fn advance(&self, machine: &Machine, point: Slot) -> Result<FollowReport> {
        let mut follower = machine.follower();
        let look = self.group.follow_look(point, self.volume.id(), &follower.following().stage)?;
        follower.advance(&look, &|base| self.group.reader_of_kept(base, self.volume.id()), ALL)
    }

    /// What the note says is what the disk holds.
    fn check(&self, machine: &Machine) {
        if let FollowStage::At(at) = machine.noted().stage {
            assert!(machine.holds() == self.points[&at.slot], "it says that it holds point {}, and does not", at.slot);
        }
    }

    fn arrives(&self, machine: &Machine, point: Slot) -> FollowReport {
        let report = self.advance(machine, point).expect("applied");
        let stage = machine.noted().stage;
        assert!(matches!(stage, FollowStage::At(at) if at.slot == point), "{stage:?}");
        assert!(machine.holds() == self.points[&point], "point {point} arrived and is not there");
        report
    }
}

/// Four points, which overwrite each other's granules in the same regions and in others.
fn overlapping() -> (World, [Slot; 4]) {
    let mut world = World::new();
    let first = *world.points.keys().next().expect("a base");
    let second = world.point(&[(2, 3, Fill::Byte(2)), (40, 8, Fill::Zero)]);
    world.publish(LayerKind::Fuzzy, &[(20, 4, Fill::Byte(3))]);
    let third = world.point(&[(3, 1, Fill::Byte(4)), (21, 1, Fill::Byte(5)), (42, 2, Fill::Byte(6))]);
    let fourth = world.point(&[(2, 1, Fill::Byte(7)), (60, 4, Fill::Byte(8))]);
    (world, [first, second, third, fourth])
}

/// At any operation the power may go, whatever was on the way and whatever is wanted next: the note says what the disk holds, or that it is
/// on its way; and then it arrives.
#[test]
fn whenever_the_power_goes_a_follower_says_what_it_holds_and_arrives() {
    tell(
        &[
            ("a follower writes before it says so", "and does not"),
            ("a follower arrives before the flush", "and does not"),
            ("a follower takes what it began for done", "arrived and is not there"),
            ("a follower goes back as it goes on", "arrived and is not there"),
        ],
        || {
            let (world, points) = overlapping();
            for from in points {
                for to in points.into_iter().filter(|to| *to != from) {
                    for then in points {
                        cut_at_every_operation(&world, from, to, then);
                    }
                }
            }
        },
    );
}

fn cut_at_every_operation(world: &World, from: Slot, to: Slot, then: Slot) {
    for operations in 0.. {
        let machine = Machine::new(GRANULES * GRANULE);
        machine.random.store(operations * 31 + to.0 * 7 + then.0, Ordering::Relaxed);
        world.arrives(&machine, from);
        *machine.power.lock().expect("sound") = operations;
        let ended = world.advance(&machine, to);
        machine.power_goes();
        world.check(&machine);
        world.arrives(&machine, then);
        if ended.is_ok() {
            return assert!(operations > 2, "it writes, flushes and keeps");
        }
    }
}

/// The first time, too, and then nothing of it looks whole before it is.
#[test]
fn a_first_fill_that_is_cut_short_has_no_beginning_and_goes_on() {
    let (world, [_, second, ..]) = overlapping();
    let mut went_on = 0;
    for operations in 0.. {
        let machine = Machine::new(GRANULES * GRANULE);
        *machine.power.lock().expect("sound") = operations;
        let ended = world.advance(&machine, second);
        machine.power_goes();
        world.check(&machine);
        let region = 8 * GRANULE as usize;
        let (first, rest) = (machine.holds()[..region].to_vec(), machine.holds()[region..].to_vec());
        if rest != world.points[&second][region..] {
            assert!(first.iter().all(|byte| *byte == 0), "the beginning is there before the rest");
        }
        let report = world.arrives(&machine, second);
        went_on += u64::from(report.written_bytes > 0 && report.written_bytes < GRANULES * GRANULE);
        if ended.is_ok() {
            break;
        }
    }
    assert!(went_on > 3, "what was written stays: {went_on}");
}

#[test]
fn an_apply_writes_what_changed_and_no_more() {
    let (world, [first, second, third, fourth]) = overlapping();
    let machine = Machine::new(GRANULES * GRANULE);
    assert_eq!(world.arrives(&machine, first).written_bytes, GRANULES * GRANULE);
    assert_eq!(world.arrives(&machine, first), FollowReport::default());
    let report = world.arrives(&machine, second);
    assert_eq!((report.regions, report.written_bytes), (2, 11 * GRANULE));
    // With what came in no point.
    assert_eq!(world.arrives(&machine, third).written_bytes, (4 + 1 + 2) * GRANULE);
    assert_eq!(world.arrives(&machine, fourth).written_bytes, 5 * GRANULE);
    // On the way back what differs is found by looking.
    assert_eq!(world.arrives(&machine, first).written_bytes, (3 + 8 + 4 + 4) * GRANULE);
    assert_eq!(world.arrives(&machine, fourth).written_bytes, (3 + 8 + 4 + 4) * GRANULE);
}

/// A target that somebody else wrote to is written to no more, until a person says so.
#[test]
fn a_follower_notices_who_else_wrote_to_its_target() {
    tell(&[("a follower does not look for strangers", "somebody wrote to it")], || {
        let (world, [first, second, third, _]) = overlapping();
        // In every granule: in a sentinel, or anywhere, where its writes are counted.
        for granule in 0..GRANULES {
            let machine = Machine::new(GRANULES * GRANULE);
            world.arrives(&machine, first);
            machine.stranger(granule * GRANULE + 5, 0xEE);
            let error = world.advance(&machine, second).expect_err("somebody wrote to it");
            assert!(matches!(error, StoreError::TargetDiverged { .. }), "{error}");
            let stage = machine.noted().stage;
            let FollowStage::Diverged { at, regions, .. } = &stage else { panic!("{stage:?}") };
            assert_eq!((at.slot, &regions[..]), (first, &[RegionIndex(granule / 8)][..]));
            // It stays so, whatever is wanted.
            assert!(matches!(world.advance(&machine, first), Err(StoreError::TargetDiverged { .. })));
            assert_eq!(machine.holds()[(granule * GRANULE + 5) as usize], 0xEE, "nothing was overwritten");
            machine.follower().heal().expect("kept");
            let report = world.arrives(&machine, first);
            assert!(report.written_bytes <= 9 * GRANULE, "what differs, and the beginning: {}", report.written_bytes);
        }
        // Something was written that was there already: all of it was looked at, and it goes on.
        let machine = Machine::new(GRANULES * GRANULE);
        world.arrives(&machine, first);
        machine.stranger(9 * GRANULE, world.points[&first][9 * GRANULE as usize]);
        world.arrives(&machine, third);
    });
}

/// Where nothing is counted, before or after, a boot or who was told to count is reason enough to look at all of it.
#[test]
fn a_follower_compares_what_nobody_counted() {
    let (world, [first, second, ..]) = overlapping();
    for (before, after) in [((0, false), (1, false)), ((0, true), (0, false)), ((0, false), (0, true))] {
        for granule in 0..GRANULES {
            let machine = Machine::new(GRANULES * GRANULE);
            *machine.counts.lock().expect("sound") = before;
            world.arrives(&machine, first);
            machine.stranger(granule * GRANULE + 5, 0xEE);
            *machine.counts.lock().expect("sound") = after;
            let error = world.advance(&machine, second).expect_err("somebody wrote to it");
            assert!(matches!(error, StoreError::TargetDiverged { .. }), "{before:?} {after:?} {granule}: {error}");
        }
    }
}

/// What was cut short is not written over either where it has nothing to do with what was being written.
#[test]
fn a_follower_looks_for_strangers_beside_what_it_was_writing() {
    let (world, [first, second, ..]) = overlapping();
    let machine = Machine::new(GRANULES * GRANULE);
    world.arrives(&machine, first);
    *machine.power.lock().expect("sound") = 2;
    world.advance(&machine, second).expect_err("cut short");
    machine.power_goes();
    assert!(matches!(machine.noted().stage, FollowStage::Applying { .. }));
    machine.stranger(63 * GRANULE, 0xEE);
    assert!(matches!(world.advance(&machine, second), Err(StoreError::TargetDiverged { .. })));
}

/// Whoever wrote beside an apply that a death cut short is found when all of it is compared, which is soon. An end in order leaves no doubt.
#[test]
fn what_a_death_leaves_in_doubt_is_compared() {
    tell(&[("a follower doubts nothing that it was writing", "nobody would look")], || {
        let (world, [first, second, ..]) = overlapping();
        // Where sentinels may change, and nothing is written.
        let (granule, region) = (6, RegionIndex(0));
        let killed = |stranger: bool| {
            let machine = Machine::new(GRANULES * GRANULE);
            world.arrives(&machine, first);
            *machine.power.lock().expect("sound") = 3;
            world.advance(&machine, second).expect_err("cut short");
            machine.power_goes();
            if stranger {
                machine.stranger(granule * GRANULE, 0xEE);
            }
            world.advance(&machine, second).expect("applied");
            assert!(machine.noted().is_in_doubt(), "nobody would look");
            let reader = world.group.reader_of_kept(second, world.volume.id()).expect("opened");
            let ended = machine.follower().verify(&reader, NEVER, ALL);
            (machine, ended)
        };
        let (machine, ended) = killed(true);
        let stage = machine.noted().stage;
        assert!(matches!(ended, Err(StoreError::TargetDiverged { .. })), "{ended:?}");
        assert!(matches!(&stage, FollowStage::Diverged { regions, .. } if regions[..] == [region]), "{stage:?}");
        let (machine, ended) = killed(false);
        ended.expect("equal");
        assert!(!machine.noted().is_in_doubt());

        let stopped = |stranger: bool| {
            let machine = Machine::new(GRANULES * GRANULE);
            world.arrives(&machine, first);
            let mut follower = machine.follower();
            let look = world.group.follow_look(second, world.volume.id(), &follower.following().stage).expect("a look");
            let base = |base| world.group.reader_of_kept(base, world.volume.id());
            let ended = follower.advance(&look, &base, &|progress| progress.done < 1);
            assert!(matches!(ended, Err(StoreError::Stopped)), "{ended:?}");
            if stranger {
                machine.stranger(granule * GRANULE, 0xEE);
            }
            world.advance(&machine, second).expect("applied");
            machine.noted().is_in_doubt()
        };
        assert!(stopped(true), "nobody would look");
        assert!(!stopped(false), "there is nothing to doubt");
    });
}

/// What could not be written is in the cache as if it were on the disk.
#[test]
fn what_a_failed_sync_lost_is_written_again() {
    tell(&[("a follower believes the cache after a failed sync", "arrived and is not there")], || {
        let (world, [first, second, ..]) = overlapping();
        for sound in 0.. {
            let (filled, back) = (Machine::new(GRANULES * GRANULE), Machine::new(GRANULES * GRANULE));
            world.arrives(&back, second);
            let mut failed = 0;
            for machine in [filled, back] {
                machine.disk.lock().expect("sound").sound_syncs = sound;
                failed += u64::from(world.advance(&machine, first).is_err());
                machine.disk.lock().expect("sound").sound_syncs = u64::MAX;
                world.arrives(&machine, first);
            }
            if failed == 0 {
                return assert!(sound > 2, "it syncs");
            }
        }
    });
}

/// Whatever came in its place is nobody's to be overwritten.
#[test]
fn another_disk_of_that_name_is_not_written_to() {
    tell(&[("a follower writes to whatever has its target's name", "another one was written to")], || {
        let (world, [first, second, ..]) = overlapping();
        for (facts, is_surely) in [(r#"{"serial":"B"}"#, true), (r#"{"name":"vdb"}"#, false)] {
            // Filled in part.
            let machine = Machine::new(GRANULES * GRANULE);
            *machine.power.lock().expect("sound") = 6;
            world.advance(&machine, first).expect_err("cut short");
            machine.power_goes();
            *machine.facts.lock().expect("sound") = facts;
            let before = machine.holds();
            let ended = world.advance(&machine, first);
            assert!(machine.holds() == before, "another one was written to");
            assert!(matches!(ended, Err(StoreError::TargetUnsuitable { .. })), "{ended:?}");
            machine.follower().heal().expect("kept");
            world.arrives(&machine, first);

            // At a point.
            *machine.facts.lock().expect("sound") = if is_surely { r#"{"serial":"C"}"# } else { facts };
            let ended = world.advance(&machine, second);
            match is_surely {
                true => assert!(matches!(ended, Err(StoreError::TargetDiverged { .. })), "another one was written to: {ended:?}"),
                false => drop(ended.expect("its sentinels are what they were")),
            }
        }
    });
}

#[test]
fn a_target_of_another_history_is_left_alone() {
    let (world, [first, second, ..]) = overlapping();
    let machine = Machine::new(GRANULES * GRANULE);
    world.arrives(&machine, second);
    let before = machine.holds();
    let mut other = World::new();
    other.point(&[(0, 1, Fill::Byte(9))]);
    other.point(&[(0, 1, Fill::Byte(10))]);
    let error = other.advance(&machine, first).expect_err("not that ledger");
    assert!(matches!(error, StoreError::TargetOfAnotherHistory { slot, .. } if slot == second), "{error}");
    // A ledger that ends before it.
    let error = World::new().advance(&machine, first).expect_err("not that ledger");
    assert!(matches!(error, StoreError::TargetOfAnotherHistory { .. }), "{error}");
    assert!(machine.holds() == before);
}

#[test]
fn a_target_that_is_too_small_is_refused_before_anything_is_written() {
    let (world, [first, ..]) = overlapping();
    let machine = Machine::new(GRANULES * GRANULE - 512);
    let error = world.advance(&machine, first).expect_err("too small");
    assert!(matches!(error, StoreError::TargetTooSmall { .. }), "{error}");
    assert_eq!(machine.noted(), Following::default());
    // A larger one keeps what lies beyond.
    let machine = Machine::new((GRANULES + 1) * GRANULE);
    machine.stranger(GRANULES * GRANULE, 0xEE);
    world.advance(&machine, first).expect("applied");
    let end = (GRANULES * GRANULE) as usize;
    assert!(machine.holds()[..end] == world.points[&first] && machine.holds()[end] == 0xEE);
}

/// Files have the size of their point.
#[test]
fn a_file_grows_and_shrinks_with_the_points_that_it_holds() {
    let mut world = World::new();
    let small = *world.points.keys().next().expect("a base");
    world.volume.meta.geometry = world.volume.meta.geometry.resized((GRANULES + 20) * GRANULE).expect("larger");
    world.volume.image.resize(GRANULES as usize + 20, None);
    let large = world.point(&[(GRANULES - 2, 22, Fill::Byte(5))]);
    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("target");
    let machine = Machine::new(0);
    let target = crate::FileTarget::open_to_follow(&path, "v", 0, true, false).expect("made");
    let volume = world.volume.id();
    for point in [small, large, small, large, small] {
        let mut follower = Follower::new(&target, &machine, machine.noted(), 2);
        let look = world.group.follow_look(point, volume, &follower.following().stage).expect("a look");
        follower.advance(&look, &|base| world.group.reader_of_kept(base, volume), ALL).expect("applied");
        assert!(std::fs::read(&path).expect("read") == world.points[&point], "point {point}");
    }
    // Nobody else may have it open to be written; and whoever wrote to it meanwhile is noticed.
    let again = crate::FileTarget::open_to_follow(&path, "v", 0, false, false).expect_err("locked");
    assert!(matches!(again, StoreError::TargetBusy { .. }), "{again}");
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&path).expect("open"), b"x", 20_000)
        .expect("written");
    let mut follower = Follower::new(&target, &machine, machine.noted(), 2);
    let look = world.group.follow_look(large, volume, &follower.following().stage).expect("a look");
    let error = follower.advance(&look, &|base| world.group.reader_of_kept(base, volume), ALL).expect_err("written to");
    assert!(matches!(error, StoreError::TargetDiverged { .. }), "{error}");
    let refused = crate::FileTarget::open_to_follow(&folder.path().join("none"), "v", 0, false, false).expect_err("gone");
    assert!(refused.to_string().contains("it is gone"), "{refused}");
}

#[test]
fn a_point_with_unreadable_runs_does_not_arrive_and_the_next_does() {
    let (mut world, [.., fourth]) = overlapping();
    let machine = Machine::new(GRANULES * GRANULE);
    world.arrives(&machine, fourth);
    let degraded = world.publish(LayerKind::Point, &[(10, 2, Fill::Unreadable), (50, 1, Fill::Byte(3))]);
    let error = world.advance(&machine, degraded).expect_err("nobody knows what is there");
    assert!(matches!(error, StoreError::Degraded { .. }), "{error}");
    let whole = world.point(&[(10, 2, Fill::Byte(3))]);
    world.arrives(&machine, whole);
    // Back to before it.
    world.arrives(&machine, fourth);
}

#[test]
fn a_point_that_a_follower_holds_is_not_given_up() {
    let (mut world, [first, _, _, fourth]) = overlapping();
    let (policy, volume) = (Policy::without_grid(1, 0), world.volume.id());
    let machine = Machine::new(GRANULES * GRANULE);
    world.arrives(&machine, first);
    let kept: BTreeSet<Slot> = machine.noted().stage.points().collect();
    while let Some(body) = world.group.prune_plan_keeping(&policy, &kept, &BTreeSet::new()) {
        world.group.append(body).expect("pruned");
    }
    let left: Vec<Slot> = world.group.state().points().keys().copied().collect();
    assert_eq!(left, [first, fourth]);
    machine.stranger(9 * GRANULE, world.points[&first][9 * GRANULE as usize]);
    world.arrives(&machine, fourth);
    // One that is gone cannot be compared with, which is no reason to go on; nor, after a boot, to say that somebody wrote there.
    let booted = Machine::new(GRANULES * GRANULE);
    world.arrives(&booted, fourth);
    *booted.counts.lock().expect("sound") = (1, true);
    machine.stranger(9 * GRANULE, world.points[&fourth][9 * GRANULE as usize]);
    let fifth = world.point(&[(0, 1, Fill::Byte(3))]);
    world.group.prune(&policy).expect("pruned");
    assert!(world.group.reader_of_kept(fourth, volume).is_err());
    for machine in [machine, booted] {
        let before = machine.holds();
        let error = world.advance(&machine, fifth).expect_err("it may hold anything");
        let StoreError::TargetDiverged { why, .. } = error else { panic!("{error}") };
        assert!(why.contains("not retained any more") && why.contains("nobody can tell"), "{why}");
        assert!(machine.holds() == before, "nothing was written over");
    }
}

/// After a boot all of a target is compared with its point: what cannot be read of that says nothing of what is there.
#[test]
fn a_point_that_cannot_be_read_leaves_its_follower_alone_and_says_how_it_goes_on() {
    let (mut world, [.., fourth]) = overlapping();
    let machines = [Machine::new(GRANULES * GRANULE), Machine::new(GRANULES * GRANULE)];
    for machine in &machines {
        world.arrives(machine, fourth);
        *machine.counts.lock().expect("sound") = (1, true);
        machine.stranger(9 * GRANULE, world.points[&fourth][9 * GRANULE as usize]);
    }
    let mut files = Vec::new();
    crate::landing::collect(world.store.dir.path(), &mut files).expect("listed");
    files.retain(|path| path.components().any(|part| part.as_os_str() == "segments"));
    let sound: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).expect("read")).collect();
    assert!(!files.is_empty());
    files.iter().for_each(|path| std::fs::write(path, b"rotten").expect("written"));
    let fifth = world.point(&[(0, GRANULES, Fill::Byte(3))]);
    let world = world.reopened();
    for machine in &machines {
        let before = machine.holds();
        let error = world.advance(machine, fifth).expect_err("it may hold anything");
        assert!(matches!(&error, StoreError::TargetUntold { point, .. } if *point == fourth), "{error}");
        assert!(error.to_string().contains("follower heal"), "{error}");
        assert!(machine.holds() == before, "nothing was written over");
    }
    // Mended, or given up.
    let [mended, healed] = machines;
    files.iter().zip(&sound).for_each(|(path, bytes)| std::fs::write(path, bytes).expect("written"));
    world.arrives(&mended, fifth);
    files.iter().for_each(|path| std::fs::write(path, b"rotten").expect("written"));
    let world = world.reopened();
    healed.follower().heal().expect("kept");
    world.arrives(&healed, fifth);
}

/// Parts that were laid together count as born with the last of them.
#[test]
fn what_was_merged_meanwhile_is_written_again() {
    let (mut world, [_, _, third, fourth]) = overlapping();
    let machine = Machine::new(GRANULES * GRANULE);
    world.arrives(&machine, third);
    world.group.prune(&Policy::without_grid(1, 0)).expect("pruned");
    while let Some(look) = world.group.merge_look(&Policy::without_grid(1, 0), false) {
        let found = look.find(&|_| true).expect("read");
        for merge in &found.merges {
            let tried = look.write(merge, &|_| true).expect("written");
            let key = tried.key;
            if let Some(body) = world.group.merge_written(tried) {
                world.group.append(body).expect("merged");
            }
            world.group.merge_ended(key);
        }
    }
    let merges = world.group.state().volume(world.volume.id()).expect("claimed").merges().len();
    assert!(merges > 0, "nothing was merged");
    world.arrives(&machine, fourth);
    let fifth = world.point(&[(30, 1, Fill::Byte(3))]);
    assert_eq!(world.arrives(&machine, fifth).written_bytes, GRANULE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn any_way_between_any_points_arrives(
        layers in prop::collection::vec((any::<bool>(), prop::collection::vec((0u64..60, 1u64..5, 0u8..9), 1..5)), 1..10),
        way in prop::collection::vec((any::<prop::sample::Index>(), 0u64..40), 1..10),
    ) {
        let mut world = World::new();
        for (is_point, pieces) in &layers {
            let mut runs: BTreeMap<u64, (u64, Fill)> = BTreeMap::new();
            let mut at = 0;
            for (start, count, fill) in pieces {
                let start = at.max(*start);
                let count = (*count).min(GRANULES.saturating_sub(start));
                if count > 0 {
                    runs.insert(start, (count, if *fill == 0 { Fill::Zero } else { Fill::Byte(*fill) }));
                    at = start + count;
                }
            }
            let runs: Vec<_> = runs.into_iter().map(|(start, (count, fill))| (start, count, fill)).collect();
            match (runs.is_empty(), is_point) {
                (true, _) => {}
                (false, true) => drop(world.point(&runs)),
                (false, false) => drop(world.publish(LayerKind::Fuzzy, &runs)),
            }
        }
        let points: Vec<Slot> = world.points.keys().copied().collect();
        let machine = Machine::new(GRANULES * GRANULE);
        for (wanted, operations) in way {
            machine.random.store(operations, Ordering::Relaxed);
            *machine.power.lock().expect("sound") = operations;
            let _ = world.advance(&machine, *wanted.get(&points));
            machine.power_goes();
            world.check(&machine);
        }
        for point in points {
            world.arrives(&machine, point);
        }
    }
}

/// A point that is so old that replay does not know it is held against its record: a target that is of this history goes on, another's is left alone.
#[test]
fn who_holds_a_forgotten_point_of_another_history_is_told() {
    tell(&[("what is forgotten of a ledger is believed", "it is written to")], || {
        const KEEP_2: Policy = Policy::without_grid(2, 0);
        let mut world = World::new();
        let machine = Machine::new(GRANULES * GRANULE);
        let first = world.point(&[(0, 5, Fill::Byte(1))]);
        world.arrives(&machine, first);
        for turn in 0..130 {
            world.point(&[(turn % 50, 3, Fill::Byte(turn as u8))]);
            world.group.prune(&KEEP_2).expect("prune");
            // What was given up lately is known.
            crate::testkit::PASSED_MS.set(crate::testkit::PASSED_MS.get() + 3_600_000);
        }
        let state = world.group.state();
        let at = match machine.noted().stage {
            FollowStage::At(at) => at,
            other => panic!("{other:?}"),
        };
        assert_eq!(state.held(&at), None, "it is forgotten");
        let newest = *state.points().keys().next_back().expect("there is one");
        let strange = LedgerPosition { digest: farside_region::RecordDigest([7; 32]), ..at };
        let look = world.group.follow_look(newest, world.volume.id(), &FollowStage::At(strange));
        assert!(
            matches!(look, Err(StoreError::TargetOfAnotherHistory { slot, .. }) if slot == at.slot),
            "it is written to: {look:?}"
        );
        // A bit of its record flips, which nobody reads any more.
        let record = world.store.path().join(format!("groups/host/default/ledger/0/{}", at.slot));
        let mut bytes = std::fs::read(&record).expect("read");
        bytes[40] ^= 1;
        std::fs::write(&record, bytes).expect("write");
        world.arrives(&machine, newest);
    });
}

/// What a repair gave up is no history of ours, though its bytes are still there.
#[test]
fn a_forgotten_point_that_a_repair_gave_up_is_of_another_history() {
    tell(&[("L6 what a repair gave up tells of old positions", "it is written to")], || {
        const KEEP_2: Policy = Policy::without_grid(2, 0);
        crate::repeats::REPEATING.set(false);
        let mut world = World::new();
        let machine = Machine::new(GRANULES * GRANULE);
        world.point(&[(0, 5, Fill::Byte(1))]);
        world.point(&[(9, 5, Fill::Byte(2))]);
        let lost = world.point(&[(3, 5, Fill::Byte(3))]);
        let held = world.point(&[(1, 5, Fill::Byte(4))]);
        world.point(&[(7, 5, Fill::Byte(5))]);
        world.arrives(&machine, held);
        let World { store, group, volume, points } = world;
        drop(group);
        let record = store.path().join(format!("groups/host/default/ledger/0/{lost}"));
        let bytes = std::fs::read(&record).expect("read");
        std::fs::write(&record, vec![0; bytes.len()]).expect("lost");
        let mut group = store.group();
        group.repair_torn().expect("given up, and what follows with it");
        let mut world = World { store, group, volume, points };
        world.volume.claim(&mut world.group);
        for turn in 0..130 {
            world.point(&[(turn % 50, 3, Fill::Byte(turn as u8))]);
            world.group.prune(&KEEP_2).expect("prune");
        }
        let stage = machine.noted().stage;
        let FollowStage::At(at) = &stage else { panic!("{stage:?}") };
        assert_eq!(world.group.state().held(at), None, "it is forgotten");
        let newest = *world.group.state().points().keys().next_back().expect("there is one");
        let look = world.group.follow_look(newest, world.volume.id(), &stage);
        assert!(matches!(look, Err(StoreError::TargetOfAnotherHistory { .. })), "it is written to: {look:?}");
        // An earlier Farside left no digests of what its checkpoints cover: then records tell.
        for file in world.store.files("groups/host/default/checkpoint").iter().filter(|file| file.ends_with(".digests")) {
            std::fs::remove_file(world.store.path().join(file)).expect("it was there");
        }
        let look = world.group.follow_look(newest, world.volume.id(), &stage);
        assert!(matches!(look, Err(StoreError::TargetOfAnotherHistory { .. })), "it is written to: {look:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Who follows a store has no word in what is kept: points are given up, merged and swept under his target, and the power goes.
    #[test]
    fn a_cascade_arrives_whatever_is_given_up_under_it(
        rounds in prop::collection::vec(
            (prop::collection::vec((0u64..60, 1u64..5, 0u8..9), 1..4), any::<bool>(), any::<bool>(), any::<bool>(), 0u64..60),
            1..14,
        ),
    ) {
        const KEEP_2: Policy = Policy::without_grid(2, 0);
        let mut world = World::new();
        let id = world.volume.id();
        let opened = crate::StoreReader::open(&world.store.path()).expect("open");
        let mut resting = opened.group(world.group.names()).expect("group").rest();
        drop(opened);
        let machine = Machine::new(GRANULES * GRANULE);
        for (pieces, is_point, gives_up, thorough, operations) in rounds {
            for (start, count, fill) in pieces {
                let runs = [(start, count, if fill == 0 { Fill::Zero } else { Fill::Byte(fill) })];
                let _ = if is_point { world.point(&runs) } else { world.publish(LayerKind::Fuzzy, &runs) };
            }
            if gives_up {
                world.group.prune(&KEEP_2).expect("prune");
                world.group.merge(&KEEP_2).expect("merge");
                world.group.sweep().expect("sweep");
            }
            machine.random.store(operations, Ordering::Relaxed);
            // Now and then it is not short of power.
            *machine.power.lock().expect("sound") = if operations > 45 { u64::MAX } else { operations };
            let awake = resting.wake(thorough).expect("awake");
            let ended = cascade(&awake, id, &machine);
            machine.power_goes();
            world.check(&machine);
            prop_assert!(operations <= 45 || ended.is_ok(), "{ended:?}");
            resting = awake.rest();
        }
        let awake = resting.wake(false).expect("awake");
        let point = cascade(&awake, id, &machine).expect("arrives");
        prop_assert!(machine.holds() == world.points[&point]);
        let base = awake.point_reader_lazily(point, id).expect("it is the newest");
        machine.follower().verify(&base, NEVER, ALL).expect("all of it is that point");
    }
}

/// Brings a disk to the newest point of a group that somebody else keeps.
fn cascade(group: &crate::GroupReader, volume: farside_region::VolumeId, machine: &Machine) -> Result<Slot> {
    let mut follower = machine.follower();
    let newest = crate::Wanted::Newest.find(group.state(), volume, &BTreeSet::new()).expect("there is always one").slot;
    let look = group.follow_look(newest, volume, &follower.following().stage)?;
    follower.advance(&look, &|base| group.point_reader_lazily(base, volume), ALL)?;
    Ok(newest)
}

const KEEP_1: Policy = Policy::without_grid(1, 0);

/// A group whose receiver merges in the middle of what a follower does, once, and deletes what it replaced.
struct Merging {
    world: Mutex<World>,
    volume: farside_region::VolumeId,
    point: Slot,
    /// After so many regions.
    merges_at: AtomicU64,
    /// Regions that were done, in the order in which that was heard.
    heard: Mutex<Vec<u64>>,
    opened_again: AtomicU64,
}

impl Merging {
    /// Every region of the newest point lies in several parts. A disk holds the point that was there before these.
    fn new(merges_at: u64, before: &Machine) -> Self {
        let mut world = World::new();
        world.arrives(before, *world.points.keys().next().expect("a base"));
        for round in 0..6_u8 {
            for region in (0..GRANULES).step_by(16) {
                world.publish(LayerKind::Fuzzy, &[(region + u64::from(round), 3, Fill::Byte(round + 2))]);
            }
            world.point(&[(u64::from(round) * 9, 2, Fill::Byte(round + 40))]);
        }
        world.group.prune(&KEEP_1).expect("prune");
        let (volume, point) = (world.volume.id(), *world.points.keys().next_back().expect("one"));
        let (merges_at, heard, opened_again) = (AtomicU64::new(merges_at), Mutex::default(), AtomicU64::new(0));
        Self { world: Mutex::new(world), volume, point, merges_at, heard, opened_again }
    }

    fn open(&self, slot: Slot) -> Result<LazyPointReader> {
        self.world.lock().expect("sound").group.reader_of_kept(slot, self.volume)
    }

    fn open_again(&self, slot: Slot) -> Result<LazyPointReader> {
        self.opened_again.fetch_add(1, Ordering::Relaxed);
        self.open(slot)
    }

    fn merge(&self) {
        let World { store, group, .. } = &mut *self.world.lock().expect("sound");
        assert!(group.merge(&KEEP_1).expect("merge") >= 1);
        let segments = group.reader_of_kept(self.point, self.volume).expect("opened").segments;
        let mut gone = 0;
        for file in store.files("groups/host/default/segments/v") {
            let numbers: Vec<u64> = file.rsplit(['/', '.']).take(3).map(|n| n.parse().expect("a number")).collect();
            let (term, seq) = (farside_region::Term(numbers[2]), farside_region::Seq(numbers[1]));
            let layer = farside_region::LayerKey { volume: self.volume, term, seq };
            let number = numbers[0] as u32;
            if group.state().is_given_up(&layer, number) {
                // As of a volume whose footers are more than are kept in memory.
                segments.forget(&crate::liveness::PartName { layer, number });
                let object = crate::backend::ObjectName::new(file).expect("a name");
                crate::backend::block_on(group.backend().delete(&object)).expect("as a sweep does");
                gone += 1;
            }
        }
        assert!(gone > 0);
    }

    fn hear(&self, progress: FollowProgress) -> bool {
        let mut heard = self.heard.lock().expect("sound");
        if progress.done == self.merges_at.load(Ordering::Relaxed) && heard.last() != Some(&progress.done) {
            self.merge();
        }
        heard.push(progress.done);
        true
    }

    fn fill(&self, machine: &Machine) -> Result<FollowReport> {
        let look = self.world.lock().expect("sound").group.follow_look(self.point, self.volume, &machine.noted().stage)?;
        machine.follower().advance(&look, &|slot| self.open_again(slot), &|progress| self.hear(progress))
    }

    /// That it was opened again, and that no region was done twice.
    fn went_on(&self, regions: u64) {
        let mut heard = self.heard.lock().expect("sound").clone();
        assert!(heard.is_sorted(), "it began anew: {heard:?}");
        heard.dedup();
        assert_eq!((heard.last(), self.opened_again.load(Ordering::Relaxed)), (Some(&regions), 1), "{heard:?}");
    }
}

/// Where parts are merged more often than all of a target can be read, nothing would ever come to its end.
#[test]
fn a_merge_in_the_middle_costs_a_follower_nothing_that_was_done() {
    let disk = || Machine::new(GRANULES * GRANULE);
    // Filled for the first time; and brought to a point.
    for is_filled in [false, true] {
        let (before, empty) = (disk(), disk());
        let merging = Merging::new(1, &before);
        let machine = if is_filled { &before } else { &empty };
        let report = merging.fill(machine).expect("it arrives");
        merging.went_on(report.regions);
        assert!(matches!(machine.noted().stage, FollowStage::At(at) if at.slot == merging.point));
        merging.world.lock().expect("sound").check(machine);
    }
    // Compared: what differs is found on either side of the merge.
    for strangers in [vec![], vec![0], vec![GRANULES - 1], vec![0, GRANULES - 1]] {
        let (machine, base) = (disk(), disk());
        let comparing = Merging::new(u64::MAX, &base);
        comparing.fill(&machine).expect("filled");
        strangers.iter().for_each(|granule| machine.stranger(granule * GRANULE, 0xEE));
        comparing.heard.lock().expect("sound").clear();
        comparing.merges_at.store(2, Ordering::Relaxed);
        let reader = comparing.open(comparing.point).expect("opened");
        let found = machine.follower().differs(&reader, &|slot| comparing.open_again(slot), &|done| comparing.hear(done));
        assert_eq!(found.expect("compared").count, strangers.len() as u64);
        comparing.went_on(reader.geometry().region_count());
    }
}

/// Where the store went back to an earlier moment another point may be in that slot.
#[test]
fn what_is_opened_again_is_gone_on_with_only_if_it_is_the_same_point() {
    let machine = Machine::new(GRANULES * GRANULE);
    let world = || Merging::new(2, &Machine::new(GRANULES * GRANULE));
    let ended = |comparing: &Merging, again: &dyn Fn(Slot) -> Result<LazyPointReader>| {
        let reader = comparing.open(comparing.point).expect("opened");
        machine.follower().differs(&reader, again, &|done| comparing.hear(done))
    };
    // Every group of a test has a history of its own.
    let other = world();
    let found = ended(&world(), &|slot| other.open_again(slot));
    assert!(matches!(found, Err(StoreError::PartMerged { .. })), "{found:?}");
    assert_eq!(other.opened_again.load(Ordering::Relaxed), 1);
    // Nor again and again, if it is of no more use than before.
    let comparing = world();
    let before = std::cell::Cell::new(comparing.open(comparing.point).ok());
    let found = ended(&comparing, &|_| Ok(before.take().expect("once")));
    assert!(matches!(found, Err(StoreError::PartMerged { .. })), "{found:?}");
}
