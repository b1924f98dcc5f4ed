use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicUsize;

use farside_ledger::LayerKind;
use farside_region::Slot;

use super::*;
use crate::testkit::{Fill, GRANULE, TempStore, TestVolume};
use crate::{StoreReader, VolumeIndex};

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
    let group = reader.group(&reader.groups().expect("groups")[0]).expect("group");
    group.point_reader(point, group.volume(&crate::testkit::name("v")).expect("found")).expect("reader")
}

fn target(store: &TempStore, file: &str) -> PathBuf {
    store.dir.path().join(file)
}

#[test]
fn a_point_is_restored_sparse_and_equal_with_any_number_of_threads() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let needs = reader.geometry().volume_bytes();
    for threads in [1, 2, 7] {
        let path = target(&store, &format!("out-{threads}"));
        let file = FileTarget::open(&path, "v", needs, false).expect("target");
        let most = AtomicU64::new(0);
        let options = RestoreOptions { threads, allow_degraded: false };
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
        assert!(fs::metadata(&path).expect("meta").blocks() * 512 < needs, "holes stay holes");
    }
    assert!(!target(&store, "out-1.farside-partial").exists());
}

#[test]
fn a_target_in_use_or_with_content_or_too_small_is_refused_before_the_first_write() {
    let (store, volume, point) = store();
    let reader = reader(&store, point);
    let needs = reader.geometry().volume_bytes();
    let open = |path: &Path, force| FileTarget::open(path, "v", needs, force);
    let full = target(&store, "full");
    fs::write(&full, vec![7; needs as usize + 4096]).expect("write");
    assert!(matches!(open(&full, false), Err(StoreError::TargetNotEmpty { .. })));
    let held = open(&full, true).expect("forced");
    assert!(matches!(open(&full, true), Err(StoreError::TargetBusy { .. })), "somebody restores there");
    restore_to(&reader, &held, &RestoreOptions::default(), ALL).expect("restore");
    held.finish().expect("finish");
    let restored = fs::read(&full).expect("read");
    assert!(restored[..needs as usize] == TestVolume::bytes(&volume.image)[..], "the old content shows through");
    assert!(restored[needs as usize..].iter().all(|b| *b == 0));

    let small = target(&store, "small");
    File::create(&small).and_then(|f| f.set_len(needs - 1)).expect("create");
    let error = open(&small, false).expect_err("too small");
    assert!(matches!(&error, StoreError::TargetTooSmall { has, needs: n, .. } if has + 1 == *n), "{error}");
    assert!(matches!(open(store.dir.path(), true), Err(StoreError::TargetBusy { .. })), "a directory");
    assert!(matches!(open(&store.dir.path().join("no/where"), false), Err(StoreError::Io { .. })));
}

#[test]
fn a_failed_restore_leaves_no_file_that_looks_complete() {
    let (store, _, point) = store();
    let reader = reader(&store, point);
    let path = target(&store, "out");
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), false).expect("target");
    let calls = AtomicUsize::new(0);
    let stop = |_| calls.fetch_add(1, Ordering::Relaxed) < 2;
    assert!(matches!(restore_to(&reader, &file, &RestoreOptions::default(), &stop), Err(StoreError::Stopped)));
    drop(file);
    assert!(!path.exists() && !target(&store, "out.farside-partial").exists());

    // Nor does it cost a file that was to be replaced.
    fs::write(&path, "old").expect("write");
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), true).expect("target");
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
        fn sync(&self) -> io::Result<()> {
            Ok(())
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
    let open = || FileTarget::open(&path, "v", reader.geometry().volume_bytes(), false);
    assert!(matches!(open(), Err(StoreError::TargetBusy { .. })), "a link to nothing");
    fs::remove_file(&path).expect("remove");
    let file = open().expect("target");
    restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect("restore");
    fs::write(&path, "another").expect("write");
    let Err(StoreError::NotNamed { partial, .. }) = file.finish() else { panic!("it took a name that was taken") };
    assert_eq!(fs::read(&path).expect("read"), b"another");
    assert!(fs::read(partial).expect("read") == TestVolume::bytes(&volume.image));
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
    let error = verify_point(&reader, &RestoreOptions::default(), ALL).expect_err("degraded");
    assert!(matches!(&error, StoreError::Degraded { region, .. } if region.0 == 2), "{error}");
    let allowed = RestoreOptions { threads: 2, allow_degraded: true };
    let report = verify_point(&reader, &allowed, ALL).expect("allowed");
    assert_eq!(report.unreadable_bytes, 2 * GRANULE);
    let path = target(&store, "out");
    let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), false).expect("target");
    restore_to(&reader, &file, &allowed, ALL).expect("restore");
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
    let error = verify_point(&reader(&store, point), &RestoreOptions::default(), ALL).expect_err("incomplete");
    assert!(matches!(&error, StoreError::Incomplete { region, .. } if region.0 == 2), "{error}");
    assert_eq!(VolumeIndex::new().extent_count(), 0);
}

#[test]
fn a_corrupt_region_stops_the_restore_and_is_named() {
    let (store, volume, point) = store();
    let path = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let mut bytes = fs::read(&path).expect("read");
    bytes[100] ^= 1; // in the first frame
    fs::write(&path, bytes).expect("write");
    let error = verify_point(&reader(&store, point), &RestoreOptions::default(), ALL).expect_err("corrupt").to_string();
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
        let file = FileTarget::open(&path, "v", reader.geometry().volume_bytes(), false).expect("target");
        restore_to(&reader, &file, &RestoreOptions::default(), ALL).expect("restore");
        file.finish().expect("finish");
        assert!(fs::read(&path).expect("read") == TestVolume::bytes(image), "point {slot}");
    }
}
