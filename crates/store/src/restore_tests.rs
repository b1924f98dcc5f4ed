use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use farside_ledger::LayerKind;
use farside_region::{Slot, mutation::tell};

use super::*;
use crate::testkit::{Fill, GRANULE, TempStore, TestVolume};
use crate::{Existing, FileTarget, StoreReader};

const ALL: &(dyn Fn(u64) -> bool + Sync) = &|_| true;

/// A volume with data, a hole and a short end; overwritten in places.
fn store() -> (TempStore, TestVolume, Slot) {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 100);
    volume.claim(&mut group);
    let base = vec![(0, 30, Fill::Byte(1)), (30, 50, Fill::Zero), (80, 20, Fill::Byte(2))];
    volume.publish(&mut group, LayerKind::Point, &[base]);
    let runs = (0..15).map(|i| (i * 6, 2, if i % 3 == 0 { Fill::Zero } else { Fill::Byte(10 + i as u8) })).collect();
    let point = volume.publish(&mut group, LayerKind::Point, &[runs]).position.slot;
    (store, volume, point)
}

fn reader(store: &TempStore, point: Slot) -> PointReader {
    let reader = StoreReader::open(&store.path()).expect("open");
    let group = reader.group(&reader.groups().expect("groups").groups[0]).expect("group");
    group.point_reader(point, group.volume(&crate::testkit::name("v")).expect("found")).expect("reader")
}

fn target(store: &TempStore, file: &str) -> PathBuf {
    store.dir.path().join(file)
}

/// R16: a failover needed the dead site. A restore needs nothing but the store: there is no source in here at all.
#[test]
fn a_point_is_restored_sparse_and_equal_with_any_number_of_threads() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let needs = reader.geometry().volume_bytes();
    for threads in [1, 2, 7] {
        let path = target(&store, &format!("out-{threads}"));
        let file = FileTarget::open(&path, "v", needs, Existing::Keep).expect("target");
        let most = AtomicU64::new(0);
        let options = RestoreOptions { threads, ..RestoreOptions::default() };
        let heard = |bytes| {
            most.fetch_max(bytes, Ordering::Relaxed);
            true
        };
        let report = restore_to(&reader, &file, &options, &heard).expect("restore");
        assert!(!path.exists(), "it has no name before it is complete");
        file.finish().expect("finish");
        assert!(fs::read(&path).expect("read") == TestVolume::bytes(&volume.image), "{threads} threads");
        assert_eq!(most.into_inner(), needs);
        assert_eq!(report.data_bytes + report.zero_bytes, needs);
        // Not by counting blocks: how many a file system sets aside beyond the content is its own affair.
        let file = File::open(&path).expect("open");
        let data = nix::unistd::lseek(&file, 32 * GRANULE as i64, nix::unistd::Whence::SeekData).expect("there is data after it");
        assert!(data >= 40 * GRANULE as i64, "holes stay holes: {data}");
    }
    assert!(!target(&store, "out-1.farside-partial").exists());
}

#[test]
fn a_target_in_use_or_with_content_or_too_small_is_refused_before_the_first_write() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let needs = reader.geometry().volume_bytes();
    let open = |path: &Path, existing| FileTarget::open(path, "v", needs, existing);
    let full = target(&store, "full");
    fs::write(&full, vec![7; needs as usize + 4096]).expect("write");
    assert!(matches!(open(&full, Existing::Keep), Err(StoreError::TargetNotEmpty { .. })));
    let held = open(&full, Existing::Replace).expect("forced");
    assert!(matches!(open(&full, Existing::Replace), Err(StoreError::TargetBusy { .. })), "somebody restores there");
    restore_to(&reader, &held, &RestoreOptions::default(), ALL).expect("restore");
    held.finish().expect("finish");
    let restored = fs::read(&full).expect("read");
    assert!(restored[..needs as usize] == TestVolume::bytes(&volume.image)[..], "the old content shows through");
    assert!(restored[needs as usize..].iter().all(|b| *b == 0));

    let small = target(&store, "small");
    File::create(&small).and_then(|f| f.set_len(needs - 1)).expect("create");
    let error = open(&small, Existing::Keep).expect_err("too small");
    assert!(matches!(&error, StoreError::TargetTooSmall { has, needs: n, .. } if has + 1 == *n), "{error}");
    assert!(matches!(open(store.dir.path(), Existing::Replace), Err(StoreError::TargetUnsuitable { .. })), "a directory");
    let nowhere = open(&store.dir.path().join("nowhere/x"), Existing::Keep).expect_err("no such folder").to_string();
    assert!(nowhere.contains("there is no directory") && nowhere.contains("nowhere"), "{nowhere}");
}

/// Two restores into one file, or one into a disk that a daemon serves: the result is neither.
#[test]
fn t13_a_restore_has_its_target_alone() {
    let story = a_target_in_use_or_with_content_or_too_small_is_refused_before_the_first_write;
    tell(&[("T13 a restore shares its target", "somebody restores there")], story);
}

#[test]
fn a_failed_restore_leaves_no_file_that_looks_complete() {
    let (store, _, point) = store();
    let reader = reader(&store, point);
    let path = target(&store, "out");
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Keep).expect("target");
    let calls = AtomicUsize::new(0);
    let stop = |_| calls.fetch_add(1, Ordering::Relaxed) < 2;
    assert!(matches!(restore_to(&reader, &file, &RestoreOptions::default(), &stop), Err(StoreError::Stopped)));
    drop(file);
    assert!(!path.exists() && !target(&store, "out.farside-partial").exists());

    // Nor does it cost a file that was to be replaced.
    fs::write(&path, "old").expect("write");
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Replace).expect("target");
    assert!(matches!(restore_to(&reader, &file, &RestoreOptions::default(), &|_| false), Err(StoreError::Stopped)));
    drop(file);
    assert_eq!(fs::read(&path).expect("read"), b"old");
    assert!(!target(&store, "out.farside-partial").exists());
}

#[test]
fn the_first_region_is_written_after_all_others() {
    struct Log(Mutex<Vec<u64>>);
    impl RestoreTarget for Log {
        fn path(&self) -> &Path {
            Path::new("log")
        }
        fn begin(&self, first: ByteExtent) -> io::Result<()> {
            assert_eq!((first.offset.0, first.len), (0, 8 * GRANULE));
            assert!(self.0.lock().expect("lock").is_empty());
            Ok(())
        }
        fn write_at(&self, offset: ByteOffset, _: &[u8]) -> io::Result<()> {
            self.0.lock().expect("lock").push(offset.0);
            Ok(())
        }
        fn zero(&self, extent: ByteExtent) -> io::Result<()> {
            self.write_at(extent.offset, &[])
        }
        fn read_at(&self, _: ByteOffset, _: &mut [u8]) -> io::Result<()> {
            unreachable!("nothing is resumed")
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn read_anew(&self) -> io::Result<()> {
            unreachable!("nothing is resumed")
        }
    }
    let (store, _, point) = store();
    let log = Log(Mutex::default());
    restore_to(&reader(&store, point), &log, &RestoreOptions::default(), ALL).expect("restore");
    let offsets = log.0.into_inner().expect("lock");
    let firsts = offsets.iter().rev().take_while(|o| **o < 8 * GRANULE).count();
    assert!(firsts > 0 && offsets[..offsets.len() - firsts].iter().all(|o| *o >= 8 * GRANULE), "{offsets:?}");
}

#[test]
fn what_came_up_meanwhile_is_kept_and_so_is_the_restored_file() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let path = target(&store, "out");
    std::os::unix::fs::symlink(target(&store, "nothing"), &path).expect("link");
    let open = || FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Keep);
    assert!(matches!(open(), Err(StoreError::TargetUnsuitable { .. })), "a link to nothing");
    fs::remove_file(&path).expect("remove");
    let file = open().expect("target");
    restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect("restore");
    fs::write(&path, "another").expect("write");
    let Err(StoreError::NotNamed { partial, .. }) = file.finish() else { panic!("it took a name that was taken") };
    assert_eq!(fs::read(&path).expect("read"), b"another");
    assert!(fs::read(partial).expect("read") == TestVolume::bytes(&volume.image));

    // Nor what came in the place of the one that is replaced, moved there or written anew.
    let (old, other) = (target(&store, "old"), target(&store, "other"));
    for existing in [Existing::Keep, Existing::Replace, Existing::Resume] {
        fs::write(&path, if existing == Existing::Keep { "" } else { "old" }).expect("write");
        File::create(target(&store, "out.farside-partial")).expect("what an earlier one left");
        let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), existing).expect("target");
        restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect("restore");
        fs::rename(&path, &old).expect("moved away");
        fs::write(&other, "another").expect("write");
        fs::rename(&other, &path).expect("moved there");
        let Err(StoreError::NotNamed { partial, .. }) = file.finish() else { panic!("{existing:?}: it replaced another file") };
        assert_eq!(fs::read(&path).expect("read"), b"another");
        fs::remove_file(partial).expect("removed");
    }
    // One that was only moved away is not missed.
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Replace).expect("target");
    restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect("restore");
    fs::rename(&path, &old).expect("moved away");
    file.finish().expect("its name is free");
    assert!(fs::read(&path).expect("read") == TestVolume::bytes(&volume.image) && fs::read(&old).expect("read") == b"another");
}

/// An older point of a volume that has grown, after a restore of a newer one was killed.
#[test]
fn nothing_of_another_point_is_left_behind_the_end() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let needs = reader.geometry().volume_bytes();
    let path = target(&store, "out");
    fs::write(&path, vec![7; needs as usize + 8192]).expect("write");
    fs::write(target(&store, "out.farside-partial"), vec![0x55; needs as usize + 8192]).expect("write");
    let file = FileTarget::open(&path, "v", needs, Existing::Resume).expect("target");
    restore_to(&reader, &file, &RESUME, ALL).expect("resumed");
    file.finish().expect("named");
    let restored = fs::read(&path).expect("read");
    assert!(restored[..needs as usize] == TestVolume::bytes(&volume.image));
    assert!(restored.len() == needs as usize + 8192 && restored[needs as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_degraded_point_wants_to_be_asked_for() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 32);
    volume.claim(&mut group);
    let runs = vec![(0, 17, Fill::Byte(1)), (17, 2, Fill::Unreadable), (19, 13, Fill::Byte(1))];
    let point = volume.publish(&mut group, LayerKind::Point, &[runs]).position.slot;
    drop(group);
    let reader = reader(&store, point);
    let error = check_restorable(&reader, &RestoreOptions::default()).expect_err("degraded");
    assert!(matches!(&error, StoreError::Degraded { region, runs: 1, bytes: 1024, .. } if region.0 == 2), "{error}");
    let allowed = RestoreOptions { threads: 2, allow_degraded: true, ..RestoreOptions::default() };
    let runs = unreadable_runs(&reader);
    assert_eq!(runs, [ByteExtent { offset: ByteOffset(17 * GRANULE), len: 2 * GRANULE }]);
    let path = target(&store, "out");
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Keep).expect("target");
    let report = restore_to(&reader, &file, &allowed, ALL).expect("restore");
    assert_eq!(report.unreadable_bytes, 2 * GRANULE);
    file.finish().expect("finish");
    assert!(fs::read(&path).expect("read") == TestVolume::bytes(&volume.image));
}

#[test]
fn a_point_that_does_not_cover_its_volume_is_not_restored_with_zeroes_instead() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 32);
    volume.claim(&mut group);
    let point = volume.publish(&mut group, LayerKind::Point, &[vec![(0, 20, Fill::Byte(1))]]).position.slot;
    drop(group);
    let error = check_restorable(&reader(&store, point), &RestoreOptions::default()).expect_err("incomplete");
    assert!(matches!(&error, StoreError::Incomplete { region, .. } if region.0 == 2), "{error}");
}

#[test]
fn a_corrupt_region_stops_the_restore_and_is_named() {
    let (store, volume, point) = store();
    let path = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let mut bytes = fs::read(&path).expect("read");
    bytes[100] ^= 1; // in the first frame
    fs::write(&path, bytes).expect("write");
    let path = target(&store, "out");
    let reader = reader(&store, point);
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Keep).expect("target");
    let error = restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect_err("corrupt").to_string();
    assert!(error.contains("volume v") && error.contains(&format!("point {point}")) && error.contains("region 0"), "{error}");
}

#[test]
fn growing_keeps_old_points_at_their_size() {
    let (store, mut volume, point) = store();
    let mut group = store.group();
    let old = volume.image.clone();
    volume.meta.geometry = farside_region::Geometry::with_shape(140 * GRANULE, 9, 3).expect("geometry");
    volume.image.resize(140, None);
    volume.claim(&mut group);
    let grown = volume.publish(&mut group, LayerKind::Point, &[vec![(96, 44, Fill::Byte(3))]]).position.slot;
    drop(group);
    for (slot, image) in [(point, &old), (grown, &volume.image)] {
        let reader = reader(&store, slot);
        let path = target(&store, &format!("out-{slot}"));
        let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), Existing::Keep).expect("target");
        restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect("restore");
        file.finish().expect("finish");
        assert!(fs::read(&path).expect("read") == TestVolume::bytes(image), "point {slot}");
    }
}

/// A device in memory whose host may die at any write: what was synced stays, of the rest each write stays or not.
struct Device {
    inner: Mutex<Inner>,
    dies_at: Option<usize>,
}

struct Inner {
    bytes: Vec<u8>,
    writes: usize,
    written: Vec<(u64, u64)>,
}

impl Device {
    fn new(bytes: Vec<u8>, dies_at: Option<usize>) -> Self {
        Self { inner: Mutex::new(Inner { bytes, writes: 0, written: Vec::new() }), dies_at }
    }

    fn put(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().expect("lock");
        inner.writes += 1;
        let dies = self.dies_at.is_some_and(|n| inner.writes >= n);
        // The last write is torn: its first half is there.
        let len = if dies { if self.dies_at == Some(inner.writes) { bytes.len() / 2 } else { 0 } } else { bytes.len() };
        inner.bytes[at as usize..at as usize + len].copy_from_slice(&bytes[..len]);
        inner.written.push((at, len as u64));
        if dies { Err(io::Error::other("killed")) } else { Ok(()) }
    }
}

impl RestoreTarget for Device {
    fn path(&self) -> &Path {
        Path::new("device")
    }
    fn begin(&self, first: ByteExtent) -> io::Result<()> {
        self.zero(first)
    }
    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()> {
        self.put(offset.0, bytes)
    }
    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        self.put(extent.offset.0, &vec![0; extent.len as usize])
    }
    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.inner.lock().expect("lock");
        bytes.copy_from_slice(&inner.bytes[offset.0 as usize..][..bytes.len()]);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn read_anew(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk behind a page cache: what could not be written back is clean from then on, and is read as if it had been.
struct Cached {
    cache: Mutex<Vec<u8>>,
    disk: Mutex<Vec<u8>>,
    dirty: Mutex<Vec<(usize, usize)>>,
    fails: Mutex<bool>,
}

impl RestoreTarget for Cached {
    fn path(&self) -> &Path {
        Path::new("cached")
    }
    fn write_at(&self, offset: ByteOffset, bytes: &[u8]) -> io::Result<()> {
        self.cache.lock().expect("lock")[offset.0 as usize..][..bytes.len()].copy_from_slice(bytes);
        self.dirty.lock().expect("lock").push((offset.0 as usize, bytes.len()));
        Ok(())
    }
    fn zero(&self, extent: ByteExtent) -> io::Result<()> {
        self.write_at(extent.offset, &vec![0; extent.len as usize])
    }
    fn read_at(&self, offset: ByteOffset, bytes: &mut [u8]) -> io::Result<()> {
        bytes.copy_from_slice(&self.cache.lock().expect("lock")[offset.0 as usize..][..bytes.len()]);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let dirty = std::mem::take(&mut *self.dirty.lock().expect("lock"));
        if std::mem::take(&mut *self.fails.lock().expect("lock")) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let (cache, mut disk) = (self.cache.lock().expect("lock"), self.disk.lock().expect("lock"));
        dirty.into_iter().for_each(|(at, len)| disk[at..at + len].copy_from_slice(&cache[at..at + len]));
        Ok(())
    }
    fn read_anew(&self) -> io::Result<()> {
        assert!(self.dirty.lock().expect("lock").is_empty(), "only what is clean leaves the cache");
        self.cache.lock().expect("lock").clone_from(&self.disk.lock().expect("lock"));
        Ok(())
    }
}

#[test]
fn what_a_failed_sync_lost_is_restored_again() {
    tell(&[("a resumed restore believes the cache", "the disk is not the point")], || {
        let (store, volume, point) = store();
        let reader = reader(&store, point);
        let wanted = TestVolume::bytes(&volume.image);
        let empty = vec![0x55; wanted.len()];
        let device = Cached {
            cache: Mutex::new(empty.clone()),
            disk: Mutex::new(empty),
            dirty: Mutex::default(),
            fails: Mutex::new(true),
        };
        restore_to(&reader, &device, &RESUME, ALL).expect_err("its sync failed");
        restore_to(&reader, &device, &RESUME, ALL).expect("resumed");
        assert!(*device.disk.lock().expect("lock") == wanted, "the disk is not the point");
    });
}

const RESUME: RestoreOptions = RestoreOptions { threads: 1, allow_degraded: false, allow_damaged: false, resume: true };

/// Killed at every write there is, on a device that held something else, or an older state of the volume: it never looks
/// whole before it is, and the next attempt ends with the point.
#[test]
fn a_restore_killed_anywhere_resumes_to_the_point() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let wanted = TestVolume::bytes(&volume.image);
    let first = 8 * GRANULE as usize;
    let mut older = wanted.clone();
    older[first + 100] ^= 1;
    older[40 * GRANULE as usize..60 * GRANULE as usize].fill(9);
    for before in [vec![0x55; wanted.len()], older, vec![0; wanted.len()]] {
        for dies_at in 1.. {
            let device = Device::new(before.clone(), Some(dies_at));
            let ended = restore_to(&reader, &device, &RESUME, ALL);
            let left = device.inner.into_inner().expect("lock").bytes;
            if ended.is_ok() {
                assert!(left == wanted);
                break;
            }
            let looks_whole = left[..first] == wanted[..first];
            assert!(!looks_whole || left == before || left == wanted, "killed at write {dies_at}");
            let again = Device::new(left, None);
            restore_to(&reader, &again, &RESUME, ALL).expect("resumed");
            assert!(again.inner.into_inner().expect("lock").bytes == wanted, "killed at write {dies_at}");
        }
    }
}

#[test]
fn a_resumed_restore_writes_what_differs_and_the_first_region() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let wanted = TestVolume::bytes(&volume.image);
    let equal = Device::new(wanted.clone(), None);
    let report = restore_to(&reader, &equal, &RESUME, ALL).expect("nothing to do");
    assert_eq!((report.kept_bytes, report.data_bytes + report.zero_bytes), (wanted.len() as u64, wanted.len() as u64));
    assert_eq!(equal.inner.into_inner().expect("lock").writes, 0);

    // One data granule, one that is to be zero, and the last.
    let granule = GRANULE as usize;
    let (data, zero) = (25, 37);
    assert!(wanted[data * granule] != 0 && wanted[zero * granule..][..granule].iter().all(|b| *b == 0));
    let mut bytes = wanted.clone();
    bytes[data * granule + 7] ^= 1;
    bytes[(zero + 1) * granule - 1] = 1;
    bytes[wanted.len() - 1] ^= 1;
    let device = Device::new(bytes, None);
    let report = restore_to(&reader, &device, &RESUME, ALL).expect("resumed");
    let inner = device.inner.into_inner().expect("lock");
    assert!(inner.bytes == wanted);
    let beyond: Vec<_> = inner.written.iter().filter(|(at, _)| *at >= 8 * GRANULE).copied().collect();
    let last = wanted.len() as u64 / GRANULE - 1;
    assert_eq!(beyond, [(25 * GRANULE, GRANULE), (37 * GRANULE, GRANULE), (last * GRANULE, GRANULE)]);
    assert_eq!(report.kept_bytes, wanted.len() as u64 - 3 * GRANULE - 8 * GRANULE);
}

/// What a killed restore leaves under the other name is gone on with; a whole file is mended where it lies.
#[test]
fn files_are_resumed_and_keep_what_is_right() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let (path, partial) = (target(&store, "out"), target(&store, "out.farside-partial"));
    let wanted = TestVolume::bytes(&volume.image);
    let needs = wanted.len() as u64;
    let resume = |path: &Path| {
        let file = FileTarget::open(path, "v", needs, Existing::Resume).expect("target");
        let options = RestoreOptions { resume: file.is_resumed(), ..RestoreOptions::default() };
        let report = restore_to(&reader, &file, &options, ALL).expect("restore");
        file.finish().expect("finish");
        report.kept_bytes
    };
    let mut half = wanted.clone();
    half[..50 * GRANULE as usize].fill(0);
    fs::write(&partial, [&half[..], b"and more"].concat()).expect("write");
    assert!(resume(&path) >= needs / 4);
    assert!(fs::read(&path).expect("read") == wanted && !partial.exists());

    for there in [vec![0x77; wanted.len() + 5000], vec![0x77; 100], wanted.clone()] {
        fs::write(&path, &there).expect("write");
        let inode = fs::metadata(&path).expect("meta").ino();
        resume(&path);
        let restored = fs::read(&path).expect("read");
        assert!(restored[..wanted.len()] == wanted && restored[wanted.len()..].iter().all(|b| *b == 0));
        assert_eq!(fs::metadata(&path).expect("meta").ino(), inode, "where it lies");
    }
    fs::remove_file(&path).expect("remove");
    assert_eq!(resume(&path), 0, "there was nothing");
    assert!(fs::read(&path).expect("read") == wanted);

    // One that fails stays for the next attempt.
    fs::remove_file(&path).expect("remove");
    let file = FileTarget::open(&path, "v", needs, Existing::Resume).expect("target");
    assert!(matches!(restore_to(&reader, &file, &RESUME, &|_| false), Err(StoreError::Stopped)));
    drop(file);
    assert!(partial.exists() && !path.exists());
    let held = FileTarget::open(&path, "v", needs, Existing::Resume).expect("target");
    let busy = FileTarget::open(&path, "v", needs, Existing::Resume);
    assert!(matches!(busy, Err(StoreError::TargetBusy { .. })), "somebody restores there (T13)");
    drop(held);
}

/// On the worst day all but a few granules is what is wanted: everything sound, zeroes elsewhere, and a list.
#[test]
fn what_is_sound_of_a_damaged_point_is_restored_when_that_is_allowed() {
    let (store, volume, point) = store();
    let segment = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let good = fs::read(&segment).expect("read");
    let footer = farside_layer::Footer::from_tail(&good, good.len() as u64).expect("a footer");
    let frame = *footer.frame_of(GranuleIndex(85)).expect("a frame");
    let mut bad = good.clone();
    bad[frame.offset as usize + 2] ^= 8;
    let wanted = TestVolume::bytes(&volume.image);
    let allowed = RestoreOptions { allow_damaged: true, ..RestoreOptions::default() };
    let as_it_is = || {
        let reader = StoreReader::open(&store.path()).expect("open");
        let group = reader.group(&reader.groups().expect("groups").groups[0]).expect("group");
        group.point_reader_as_it_is(point, volume.id()).expect("reader")
    };
    let check = |damage: &str, resume: bool| {
        let reader = as_it_is();
        let device = Device::new(vec![0x55; wanted.len()], None);
        assert!(restore_to(&reader, &device, &RestoreOptions::default(), ALL).is_err(), "{damage}: not by itself");
        let report = restore_to(&reader, &device, &RestoreOptions { resume, ..allowed }, ALL).expect("what is left");
        let mut lost = wanted.clone();
        for run in &report.damaged {
            lost[run.offset.0 as usize..][..run.len as usize].fill(0);
        }
        assert!(!report.damaged.is_empty() && device.inner.into_inner().expect("lock").bytes == lost, "{damage}: {report:?}");
        report.damaged
    };
    for resume in [false, true] {
        fs::write(&segment, &bad).expect("rot");
        let lost = check("a flipped bit", resume);
        let bytes: u64 = lost.iter().map(|run| run.len).sum();
        assert!(bytes <= frame.run.count * GRANULE, "only what lies in that frame: {lost:?}");
        fs::write(&segment, &good[..good.len() - 3]).expect("cut off");
        check("no footer", resume);
        fs::write(&segment, &good).expect("well again");
    }
}

/// A disk that is mended from a damaged store: what is right on it may be the last copy.
#[test]
fn what_the_target_has_and_the_store_has_lost_stays() {
    let (store, volume, point) = store();
    let wanted = TestVolume::bytes(&volume.image);
    let segment = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let good = fs::read(&segment).expect("read");
    let footer = farside_layer::Footer::from_tail(&good, good.len() as u64).expect("a footer");
    let allowed = RestoreOptions { allow_damaged: true, ..RESUME };
    // Of its region the first layer has all but two granules, of which `sound` is one; another region differs in 37.
    for (lost, sound) in [(3, 7), (82, 84)] {
        let frame = *footer.frame_of(GranuleIndex(lost)).expect("a frame");
        let mut bad = good.clone();
        bad[frame.offset as usize + 2] ^= 8;
        fs::write(&segment, &bad).expect("rot");
        let reader = reader(&store, point);
        let changed = |granules: &[u64]| {
            let mut bytes = wanted.clone();
            granules.iter().for_each(|granule| bytes[(granule * GRANULE) as usize + 5] ^= 1);
            Device::new(bytes, None)
        };
        let bytes_of = |device: Device| device.inner.into_inner().expect("lock").bytes;
        for differs in [vec![sound], vec![37], vec![sound, 37]] {
            for options in [RESUME, allowed] {
                let device = changed(&differs);
                let report = restore_to(&reader, &device, &options, ALL).expect("the store has what it takes");
                assert!(report.damaged.is_empty() && bytes_of(device) == wanted, "{differs:?} with {lost} lost: {report:?}");
            }
        }

        // What neither has costs nothing of the rest. The first region is looked at before anything is written.
        let device = changed(&[lost, 37]);
        let refused = restore_to(&reader, &device, &RESUME, ALL).expect_err("nobody has it");
        assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
        assert!(lost > 8 || device.inner.lock().expect("lock").writes == 0, "the target has no first region any more");
        let device = changed(&[lost, sound]);
        let report = restore_to(&reader, &device, &allowed, ALL).expect("what is left");
        let run = ByteExtent { offset: ByteOffset(lost * GRANULE), len: GRANULE };
        assert_eq!(report.damaged, [run]);
        let mut left = wanted.clone();
        left[run.offset.0 as usize..][..GRANULE as usize].fill(0);
        assert!(bytes_of(device) == left);
    }

    // A restore that ends half way, here since the store has lost something else as well, has taken nothing of it either.
    let mut bad = good;
    for lost in [3, 82] {
        bad[footer.frame_of(GranuleIndex(lost)).expect("a frame").offset as usize + 2] ^= 8;
    }
    fs::write(&segment, &bad).expect("rot");
    let reader = reader(&store, point);
    let mut bytes = wanted.clone();
    [37, 82].iter().for_each(|granule| bytes[granule * GRANULE as usize + 5] ^= 1);
    let device = Device::new(bytes, None);
    let refused = restore_to(&reader, &device, &RESUME, ALL).expect_err("nobody has all");
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
    let three = 3 * GRANULE as usize..4 * GRANULE as usize;
    {
        let inner = device.inner.lock().expect("lock");
        let seven = &inner.bytes[7 * GRANULE as usize..8 * GRANULE as usize];
        assert!(inner.bytes[three.clone()] == wanted[three] && seven.iter().all(|byte| *byte == 0), "nor does it look whole");
    }
    let report = restore_to(&reader, &device, &allowed, ALL).expect("what is left");
    assert_eq!(report.damaged, [ByteExtent { offset: ByteOffset(82 * GRANULE), len: GRANULE }]);
    let mut left = wanted.clone();
    left[82 * GRANULE as usize..][..GRANULE as usize].fill(0);
    assert!(device.inner.into_inner().expect("lock").bytes == left);
}

/// Buffers are used again. What another region left in them must not be what a later one seems to hold: not where that is zeroes, nor
/// where reading it failed.
#[test]
fn what_a_buffer_held_is_nowhere_in_the_next_region() {
    let (store, volume, point) = store();
    let wanted = TestVolume::bytes(&volume.image);
    let reader = reader(&store, point);
    let mut content = reader.content();
    let regions = || (0..reader.geometry().region_count()).map(RegionIndex);
    let bytes_of = |region| reader.geometry().bytes_of(reader.geometry().region_run(region));
    for region in regions().chain(regions()) {
        reader.read_region(region, &mut content).expect("read");
        let extent = bytes_of(region);
        assert!(content.bytes[..] == wanted[extent.offset.0 as usize..][..extent.len as usize], "{region}");
        content.bytes.fill(0x55);
    }
    let segment = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let mut bad = fs::read(&segment).expect("read");
    let footer = farside_layer::Footer::from_tail(&bad, bad.len() as u64).expect("a footer");
    footer.frames().iter().filter(|f| f.stored_bytes > 0).for_each(|f| bad[f.offset as usize] ^= 8);
    fs::write(&segment, &bad).expect("rot");
    let failed = regions().filter(|region| {
        content.bytes.fill(0x55);
        let failed = reader.read_region(*region, &mut content).is_err();
        assert!(!failed || content.bytes.iter().all(|byte| *byte == 0), "{region}");
        failed
    });
    assert!(failed.count() > 0);
}
