use super::super::block_on;
use super::super::conformance::{Fixture, run};
use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("valid name")
}

#[test]
fn the_directory_backend_conforms() {
    let dir = tempfile::tempdir().expect("temp dir");
    fs::create_dir(dir.path().join("landing")).expect("mkdir");
    run(&Fixture {
        open: &|| {
            let backend = DirBackend::open(dir.path()).expect("open");
            backend.prepare().expect("prepare");
            Arc::new(backend)
        },
        local: &dir.path().join("landing"),
    });
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("list").count(), 0, "a temp file was left behind");
}

#[test]
fn debris_of_a_killed_writer_is_swept_and_never_listed() {
    let dir = tempfile::tempdir().expect("temp dir");
    fs::create_dir(dir.path().join("tmp")).expect("mkdir");
    fs::write(dir.path().join("tmp/4711-0"), b"half a rec").expect("write");
    let backend = DirBackend::open(dir.path()).expect("open");
    assert!(block_on(backend.list(None, None, 10)).expect("list").objects.is_empty());
    backend.prepare().expect("prepare");
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("list").count(), 0);
}

/// What is put in the place of a bad file is read, also by who had that open; what is removed can be read on.
#[test]
fn a_file_that_was_replaced_is_read_anew() {
    let dir = tempfile::tempdir().expect("temp dir");
    let backend = DirBackend::open(dir.path()).expect("open");
    fs::write(dir.path().join("object"), b"bad").expect("write");
    let read = || block_on(backend.get_range(&name("object"), 0, 9)).expect("read");
    assert_eq!(read()[..], *b"bad");
    fs::write(dir.path().join("copy"), b"good").expect("write");
    fs::rename(dir.path().join("copy"), dir.path().join("object")).expect("rename");
    assert_eq!(read()[..], *b"good");
    fs::remove_file(dir.path().join("object")).expect("remove");
    assert_eq!(read()[..], *b"good");
}

#[test]
fn our_own_files_cannot_be_objects() {
    let dir = tempfile::tempdir().expect("temp dir");
    let backend = DirBackend::open(dir.path()).expect("open");
    for bad in ["tmp/x", "landing/x", "writer.lock", "reader.lock", "ballast"] {
        assert!(matches!(block_on(backend.create(&name(bad), Bytes::new())), Err(StoreError::BadName(_))), "{bad}");
    }
}

#[test]
fn a_directory_that_was_moved_away_or_replaced_has_vanished() {
    let dir = tempfile::tempdir().expect("temp dir");
    let root = dir.path().join("store");
    fs::create_dir(&root).expect("mkdir");
    let backend = DirBackend::open(&root).expect("open");
    block_on(backend.create(&name("a/b"), Bytes::from_static(b"1"))).expect("create");
    let away = dir.path().join("away");
    fs::rename(&root, &away).expect("rename");
    let all_vanished = || {
        for error in [
            block_on(backend.create(&name("a/c"), Bytes::new())).map(|_| ()).expect_err("gone"),
            block_on(backend.get(&name("a/b"), 10)).map(|_| ()).expect_err("gone"),
            block_on(backend.size(&name("a/b"))).map(|_| ()).expect_err("gone"),
            block_on(backend.list(None, None, 1)).map(|_| ()).expect_err("gone"),
            block_on(backend.delete(&name("a/b"))).expect_err("gone"),
            block_on(backend.sync(&name("a"))).expect_err("gone"),
        ] {
            assert!(matches!(&error, StoreError::Vanished { path } if path == &root), "{error}");
        }
    };
    all_vanished();
    fs::create_dir(&root).expect("an empty mount point, say");
    all_vanished();
    assert_eq!(fs::read_dir(&root).expect("list").count(), 0, "something was written into the wrong directory");
    // † An older copy of the store: what is given up in the one that was opened, that one may need.
    fs::create_dir(root.join("a")).expect("mkdir");
    fs::write(root.join("a/b"), b"1").expect("write");
    let error = block_on(backend.delete(&name("a/b"))).expect_err("it is not in the store that was opened");
    assert!(matches!(&error, StoreError::Vanished { path } if path == &root) && root.join("a/b").exists(), "{error}");
    fs::remove_dir_all(&root).expect("rmdir");
    fs::rename(&away, &root).expect("and back");
    assert_eq!(block_on(backend.create(&name("a/c"), Bytes::new())).expect("resumes"), Created::New);
}

#[test]
fn a_failed_sync_of_a_directory_ends_every_acknowledgement() {
    let dir = tempfile::tempdir().expect("temp dir");
    let backend = DirBackend::open(dir.path()).expect("open");
    backend.lock().failed = Some((dir.path().join("a"), "Input/output error".into()));
    let refused = block_on(backend.create(&name("a/c"), Bytes::new())).expect_err("latched");
    assert!(matches!(refused, StoreError::Latched { .. }), "{refused}");
    assert_eq!(refused.remedy(), crate::error::Remedy::Reopen);
    let waited = backend.sync_dir(dir.path()).expect_err("a sync that comes after it proves nothing");
    assert!(matches!(waited, StoreError::Latched { .. }), "{waited}");
    assert!(DirBackend::open(dir.path()).expect("reopened").present().is_ok());
}

/// Threads share a sync, but never one that failed or began before their entry was there.
#[test]
fn everybody_who_waits_for_a_shared_sync_hears_of_its_failure() {
    let dir = tempfile::tempdir().expect("temp dir");
    let backend = DirBackend::open(dir.path()).expect("open");
    let (there, gone) = (dir.path().join("there"), dir.path().join("gone"));
    fs::create_dir(&there).expect("mkdir");
    let barrier = std::sync::Barrier::new(16);
    let sync = |path: &Path| (0..50).map(|_| (barrier.wait(), backend.sync_dir(path)).1.is_ok()).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| (sync(&there), sync(&gone)))).collect();
        for thread in threads {
            let (good, bad) = thread.join().expect("ends");
            assert!(good.iter().all(|ok| *ok) && bad.iter().all(|ok| !*ok));
        }
    });
    assert!(backend.syncs.lock().expect("lock").is_empty(), "nothing is remembered of what nobody waits for");
}

/// Several openings of one store are in one process: none may write over, or link, what another one is just writing.
#[test]
fn two_openings_in_one_process_make_no_name_twice() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (one, two) = (DirBackend::open(dir.path()).expect("open"), DirBackend::open(dir.path()).expect("open"));
    let names: HashSet<_> = (0..10).flat_map(|_| [one.temp_path(), two.temp_path()]).collect();
    assert_eq!(names.len(), 20);
}

/// † After the link nobody may hear "no space", which is taken for "nothing was done".
#[test]
fn a_sync_of_a_directory_that_fails_is_never_said_to_have_done_nothing() {
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EROFS, libc::EACCES, libc::EIO] {
        let dir = tempfile::tempdir().expect("temp dir");
        let backend = DirBackend::open(dir.path()).expect("open");
        backend.fail_sync(&backend.root().join("a"), errno);
        let refused = block_on(backend.create(&name("a/b"), Bytes::from_static(b"1"))).expect_err("not synced");
        assert!(matches!(refused, StoreError::Latched { .. }), "{errno}: {refused}");
        assert!(dir.path().join("a/b").exists(), "it was linked");
    }
}
