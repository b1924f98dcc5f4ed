//! What every backend must do, as one suite. A new backend calls [`run`] from its tests and nothing else. Not in the product: behind the
//! feature `conformance`.
//!
//! Each check names the promise it holds the backend to; a failing one is a reason not to keep recovery points there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

use bytes::Bytes;

use super::{Backend, Created, ObjectName, block_on, list_all};
use crate::error::StoreError;

/// Where a suite runs: how to open the medium (again), and a place for local files that it can adopt.
#[allow(missing_debug_implementations)] // a test's
pub struct Fixture<'a> {
    /// Opens the medium, again with every call.
    pub open: &'a dyn Fn() -> Arc<dyn Backend>,
    /// For local files.
    pub local: &'a Path,
}

/// The whole suite, on an empty medium.
pub fn run(fixture: &Fixture<'_>) {
    let backend = (fixture.open)();
    an_object_is_what_was_created(&*backend);
    the_first_create_wins_for_ever(&*backend);
    in_a_race_exactly_one_create_wins_and_losers_see_it(&backend);
    what_is_missing_is_said_to_be(&*backend);
    a_large_object_is_refused_not_cut(&*backend);
    a_listing_names_each_object_once(&*backend);
    a_listing_says_when_objects_came_to_be(&*backend);
    folders_are_those_with_objects_below(&*backend);
    a_deleted_name_is_free(&*backend);
    what_is_damaged_may_be_put_right(&*backend);
    a_local_file_becomes_an_object_and_stays(&*backend, fixture.local);
    what_was_acknowledged_is_there_after_reopening(fixture);
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("valid name")
}

fn create(backend: &dyn Backend, at: &str, content: &[u8]) -> Created {
    block_on(backend.create(&name(at), Bytes::copy_from_slice(content))).expect("create")
}

fn get(backend: &dyn Backend, at: &str) -> Option<Bytes> {
    block_on(backend.get(&name(at), 1 << 20)).expect("get")
}

fn an_object_is_what_was_created(backend: &dyn Backend) {
    let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(create(backend, "one/a/b", &content), Created::New);
    assert_eq!(create(backend, "one/empty", b""), Created::New);
    assert_eq!(get(backend, "one/a/b").expect("there"), content);
    assert_eq!(get(backend, "one/empty").expect("there"), b"".as_slice());
    assert_eq!(block_on(backend.size(&name("one/a/b"))).expect("size"), Some(100_000));
    for (offset, len, want) in [(0, 10, 0..10), (99_990, 100, 99_990..100_000), (100_000, 1, 0..0), (500_000, 9, 0..0)] {
        let range = block_on(backend.get_range(&name("one/a/b"), offset, len)).expect("range");
        assert_eq!(range, content[want], "range {offset}+{len}");
    }
}

fn the_first_create_wins_for_ever(backend: &dyn Backend) {
    assert_eq!(create(backend, "first", b"mine"), Created::New);
    assert_eq!(create(backend, "first", b"theirs, longer"), Created::AlreadyExists);
    assert_eq!(create(backend, "first", b"mine"), Created::AlreadyExists, "equal content is no exception");
    assert_eq!(get(backend, "first").expect("there"), b"mine".as_slice());
}

fn in_a_race_exactly_one_create_wins_and_losers_see_it(backend: &Arc<dyn Backend>) {
    for round in 0..40 {
        let at = format!("race/{round}");
        let start = Barrier::new(4);
        let answers: Vec<_> = thread::scope(|scope| {
            let racers: Vec<_> = (0..4u8)
                .map(|racer| {
                    let (at, start) = (&at, &start);
                    scope.spawn(move || {
                        start.wait();
                        let answer = create(&**backend, at, &[racer; 5000]);
                        (answer, get(&**backend, at).expect("there for losers too"))
                    })
                })
                .collect();
            racers.into_iter().map(|r| r.join().expect("no panic")).collect()
        });
        let winners: Vec<_> = answers.iter().enumerate().filter(|(_, (a, _))| *a == Created::New).map(|(i, _)| i as u8).collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?} all won");
        for (_, seen) in &answers {
            assert_eq!(seen, &vec![winners[0]; 5000], "round {round}: not the winner's content");
        }
    }
}

fn what_is_missing_is_said_to_be(backend: &dyn Backend) {
    assert_eq!(get(backend, "no/such"), None);
    assert_eq!(get(backend, "first/below-an-object"), None);
    assert_eq!(block_on(backend.size(&name("no/such"))).expect("no error"), None);
    assert!(matches!(block_on(backend.get_range(&name("no/such"), 0, 1)), Err(StoreError::NotFound { .. })));
    block_on(backend.delete(&name("no/such"))).expect("nothing to do");
    let page = block_on(backend.list(Some(&name("no/such")), None, 10)).expect("no error");
    assert!(page.objects.is_empty() && !page.more);
}

fn a_large_object_is_refused_not_cut(backend: &dyn Backend) {
    assert!(block_on(backend.get(&name("one/a/b"), 99_999)).is_err());
    assert!(block_on(backend.get(&name("one/a/b"), 100_000)).expect("fits").is_some());
}

fn a_listing_names_each_object_once(backend: &dyn Backend) {
    let names = ["l/a", "l/a-b/x", "l/a.b", "l/ab/x", "l/b/1", "l/b/10", "l/b/2", "l/b/c/d/e", "l/b-", "l/z"];
    for at in names {
        create(backend, at, at.as_bytes());
    }
    for limit in [1, 2, 3, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = block_on(backend.list(Some(&name("l")), after.as_ref(), limit)).expect("list");
            assert!(page.objects.len() <= limit && (page.more || page.objects.len() <= names.len()));
            assert!(page.objects.iter().all(|l| l.bytes == l.name.as_str().len() as u64), "sizes");
            seen.extend(page.objects.iter().map(|l| l.name.to_string()));
            after = page.objects.last().map(|l| l.name.clone());
            if !page.more {
                break;
            }
        }
        assert_eq!(seen.len(), names.len(), "limit {limit}: {seen:?}");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names.iter().map(|n| (*n).to_string()).collect());
    }
    let mut below = BTreeSet::new();
    list_all(backend, Some(&name("l/b")), |l| assert!(below.insert(l.name.to_string()))).expect("list");
    assert_eq!(below.len(), 4, "a prefix is whole components: {below:?}");
}

/// Leases are held against each other by this, and an object that was just made must be in a listing that begins afterwards.
fn a_listing_says_when_objects_came_to_be(backend: &dyn Backend) {
    let mut before = i64::MIN;
    for number in 0..20 {
        create(backend, &format!("times/{number}"), b"x");
        let mut listed = Vec::new();
        list_all(backend, Some(&name("times")), |object| listed.push(object)).expect("list");
        let last = listed.iter().find(|object| object.name.as_str() == format!("times/{number}"));
        let created_ms = last.expect("in the next listing").created_ms;
        assert!(created_ms >= before, "{number}: {created_ms} after {before}");
        before = created_ms;
        assert_eq!(listed.len(), number + 1);
    }
}

fn folders_are_those_with_objects_below(backend: &dyn Backend) {
    for at in ["f/host-1/db/x", "f/host-1/web/y/z", "f/host-2/db/x", "f/file", "f-2/other/x"] {
        create(backend, at, b"1");
    }
    let folders = |of: &str| block_on(backend.folders(&name(of))).expect("folders").into_iter().collect::<Vec<_>>();
    assert_eq!(folders("f"), ["host-1", "host-2"]);
    assert_eq!(folders("f/host-1"), ["db", "web"]);
    assert!(folders("f/host-1/db").is_empty());
    assert!(folders("f/nobody").is_empty());
    let names = |of: &str| {
        let mut names = block_on(backend.names(&name(of))).expect("names");
        names.sort_unstable();
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    create(backend, "f/a-file", b"2");
    assert_eq!(names("f"), ["f/a-file", "f/file"]);
    assert_eq!(names("f/host-1/web/y"), ["f/host-1/web/y/z"]);
    assert!(names("f/host-1").is_empty() && names("f/nobody").is_empty());
}

fn what_is_damaged_may_be_put_right(backend: &dyn Backend) {
    create(backend, "right/x", b"damaged");
    block_on(backend.put_right(&name("right/x"), Bytes::from_static(b"as it was"))).expect("put right");
    assert_eq!(get(backend, "right/x").expect("there"), b"as it was".as_slice());
    assert_eq!(create(backend, "right/x", b"again"), Created::AlreadyExists);
}

fn a_deleted_name_is_free(backend: &dyn Backend) {
    create(backend, "gone/deep/x", b"1");
    assert_eq!(block_on(backend.get_range(&name("gone/deep/x"), 0, 9)).expect("there"), b"1".as_slice());
    block_on(backend.delete(&name("gone/deep/x"))).expect("delete");
    block_on(backend.sync(&name("gone"))).expect("sync");
    assert_eq!(get(backend, "gone/deep/x"), None);
    assert!(block_on(backend.get_range(&name("gone/deep/x"), 0, 9)).is_err(), "a deleted object is not read");
    assert_eq!(create(backend, "gone/deep/x", b"22"), Created::New);
    assert_eq!(block_on(backend.get_range(&name("gone/deep/x"), 0, 9)).expect("there"), b"22".as_slice());
}

fn a_local_file_becomes_an_object_and_stays(backend: &dyn Backend, local: &Path) {
    let file = local.join("part");
    fs::write(&file, b"landed").expect("write");
    assert_eq!(block_on(backend.adopt(&name("seg/v/1/1.0"), &file)).expect("adopt"), Created::New);
    assert_eq!(block_on(backend.adopt(&name("seg/v/1/1.0"), &file)).expect("adopt"), Created::AlreadyExists);
    assert_eq!(fs::read(&file).expect("stays"), b"landed");
    fs::remove_file(&file).expect("remove");
    assert_eq!(get(backend, "seg/v/1/1.0").expect("there"), b"landed".as_slice());
}

fn what_was_acknowledged_is_there_after_reopening(fixture: &Fixture<'_>) {
    let backend = (fixture.open)();
    block_on(backend.sync(&name("first"))).expect("sync");
    assert_eq!(get(&*backend, "first").expect("there"), b"mine".as_slice());
    assert_eq!(create(&*backend, "first", b"later"), Created::AlreadyExists);
}
