//! A store on a small file system of its own: full, read-only, gone. Needs root for a private tmpfs; without it these say so
//! and pass, and the same errors are injected in `group_tests`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use farside_ledger::{LayerKind, Policy};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::testkit::{Fill, TestVolume, name};
use crate::{GroupStore, RESERVE_BYTES_MIN, Remedy, Store, StoreError, StoreReader, verify_point};

const NONE: Option<&str> = None;

/// Runs with a tmpfs that only this thread sees and that goes with it.
fn on_small_disk(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let dir = tempfile::tempdir().expect("temp dir");
        let private = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE))
            .and_then(|()| mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=80m")));
        match private {
            Ok(()) => test(dir.path()),
            Err(e) => eprintln!("skipped: a private tmpfs cannot be mounted here ({e}); run as root"),
        }
    });
    thread.join().expect("the test passes");
}

fn open(disk: &Path) -> GroupStore {
    let path = disk.join("store");
    Store::init(&path).expect("init");
    Store::open(&path).expect("open").group(&name("host"), &name("default")).expect("group")
}

/// Writes until nothing is left, or until so much is.
fn fill(disk: &Path, leave: u64) -> PathBuf {
    let path = disk.join("junk");
    let mut junk = File::create(&path).expect("create");
    let chunk = vec![1; 4096];
    while crate::Space::of(disk).expect("statvfs").available > leave && junk.write_all(&chunk).is_ok() {}
    path
}

fn land(group: &GroupStore, volume: &TestVolume, seq: u64) -> Result<(), StoreError> {
    let (bytes, _) = volume.part(volume.key(seq), 0, &[(0, 64, Fill::Byte(9))]);
    let mut lander = group.landing().begin_part(&volume.meta, volume.key(seq), 0)?;
    lander.write(&bytes)?;
    lander.finish().map(|_| ())
}

#[test]
fn a_full_store_takes_nothing_still_prunes_and_resumes_by_itself() {
    on_small_disk(|disk| {
        let mut group = open(disk);
        let mut volume = TestVolume::new("v", 2048);
        volume.claim(&mut group);
        for byte in 1..4 {
            volume.base(&mut group, byte);
        }
        assert!(group.space().expect("space").grantable() > 0);

        // What only the reserve is left of takes no part, but records and so publication of what had landed.
        let entry = volume.land(&group, &[vec![(0, 3, Fill::Byte(7))]]);
        let junk = fill(disk, RESERVE_BYTES_MIN - 4096);
        assert_eq!(group.space().expect("space").grantable(), 0);
        let error = land(&group, &volume, volume.seq + 1).expect_err("full");
        assert!(matches!(error, StoreError::Full { .. }) && error.remedy() == Remedy::Retry, "{error}");
        group.append(crate::testkit::layers(LayerKind::Point, vec![entry])).expect("publish from the reserve");

        // Somebody else ate the reserve, too.
        let junk_too = disk.join("junk-too");
        fs::rename(&junk, &junk_too).expect("rename");
        let junk = fill(disk, 0);
        assert_eq!(group.space().expect("space").available, 0);
        let looked = group.state().head();
        let error = group.append(volume.claim_body(looked)).expect_err("full");
        assert!(matches!(&error, StoreError::Full { path, .. } if path.starts_with(disk)), "{error}");
        assert!(error.to_string().contains("free space"), "{error}");
        assert_eq!(group.state().head(), looked, "nothing was appended");
        drop(group);
        let mut group = open(disk); // a receiver that is restarted, to see whether that helps
        assert_eq!(group.points().len(), 4);
        assert_eq!(group.prune(&Policy::without_grid(1, 0)).expect("a full store can prune"), 3);
        let point = group.points()[0].slot;
        let reader = group.point_reader(point, volume.id()).expect("reader");
        let found = verify_point(&reader, 2, 9, &|_| true).expect("read");
        assert_eq!(found.damage, [], "the point is intact");
        drop(reader);

        fs::remove_file(junk).and_then(|()| fs::remove_file(junk_too)).expect("space comes back");
        land(&group, &volume, volume.seq + 1).expect("resumes");
        let looked = group.state().head();
        assert!(group.append(volume.claim_body(looked)).expect("resumes").verdict.is_done());
        group.sweep().expect("sweep");
        assert_eq!(fs::read_dir(disk.join("store/tmp")).expect("list").count(), 0);
        drop(group);
        drop(open(disk));
        assert!(disk.join("store/ballast").exists(), "kept again for the next time");
    });
}

/// What one part under way may write is not there for the next, of whatever group.
#[test]
fn parts_under_way_share_what_is_left() {
    on_small_disk(|disk| {
        let mut group = open(disk);
        let mut volume = TestVolume::new("v", 64);
        volume.claim(&mut group);
        fill(disk, RESERVE_BYTES_MIN + 3 * 4096);
        let begin = |part| group.landing().begin_part(&volume.meta, volume.key(1), part);
        let parts: Vec<_> = (0..32).filter_map(|part| begin(part).ok()).collect();
        assert_eq!(parts.len(), 3, "a file each");
        drop(parts);
        assert!(begin(0).is_ok(), "what came to nothing gives it back");
    });
}

#[test]
fn a_read_only_store_says_so_can_be_read_and_resumes_by_itself() {
    on_small_disk(|disk| {
        let mut group = open(disk);
        let mut volume = TestVolume::new("v", 64);
        volume.claim(&mut group);
        let point = volume.base(&mut group, 1);
        let entry = volume.land(&group, &[vec![(0, 3, Fill::Byte(7))]]);
        // A read-only view of it on top: the locks are open for writing, so that the kernel would refuse a plain remount.
        let store = disk.join("store");
        mount(Some(&store), &store, NONE, MsFlags::MS_BIND, NONE).expect("bind");
        mount(NONE, &store, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, NONE).expect("remount");
        let error = land(&group, &volume, 7).expect_err("read-only");
        assert!(matches!(error, StoreError::ReadOnly { .. }) && error.remedy() == Remedy::Retry, "{error}");
        let body = crate::testkit::layers(LayerKind::Point, vec![entry]);
        let error = group.append(body.clone()).expect_err("read-only");
        assert!(matches!(&error, StoreError::ReadOnly { .. }) && error.to_string().contains("remount"), "{error}");
        let store = StoreReader::open(&disk.join("store")).expect("a read-only store can be read");
        let group_reader = store.group(group.names()).expect("group");
        let reader = group_reader.point_reader(point, volume.id()).expect("reader");
        assert_eq!(verify_point(&reader, 2, 9, &|_| true).expect("read").damage, [], "intact");
        assert_eq!(
            crate::check(&crate::StoreReader::open(&disk.join("store")).expect("open"), &|_| true).expect("check").worst(),
            None
        );
        nix::mount::umount2(&disk.join("store"), nix::mount::MntFlags::MNT_DETACH).expect("umount");
        assert!(group.append(body).expect("resumes").verdict.is_done());
    });
}

#[test]
fn a_store_that_was_unmounted_under_us_has_vanished() {
    on_small_disk(|disk| {
        let mut group = open(disk);
        let mut volume = TestVolume::new("v", 64);
        volume.claim(&mut group);
        volume.base(&mut group, 1);
        nix::mount::umount2(disk, nix::mount::MntFlags::MNT_DETACH).expect("umount");
        let error = land(&group, &volume, 2).expect_err("vanished");
        assert!(matches!(&error, StoreError::Vanished { path } if path == &disk.join("store")), "{error}");
        assert_eq!(error.remedy(), Remedy::Reopen);
        let looked = group.state().head();
        assert!(matches!(group.append(volume.claim_body(looked)), Err(StoreError::Vanished { .. })));
        assert_eq!(fs::read_dir(disk).expect("list").count(), 0, "something was written below the mount point");
    });
}
