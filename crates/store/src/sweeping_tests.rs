use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use farside_ledger::Policy;
use tracing::span;

use super::*;
use crate::backend::faulty::{Faulty, Op, When};
use crate::testkit::{Fill, TempStore, TestVolume, name};
use crate::{ReaderLock, Store};

const SECOND: Duration = Duration::from_secs(1);

/// A group in which so many files may go that nobody has tried to delete.
fn with_dead(store: &TempStore, count: usize) -> (GroupStore, TestVolume, Arc<Faulty>) {
    let mut wrapped = None;
    let opened = Store::open_over(&store.path(), |dir| {
        let faulty = Faulty::new(dir);
        wrapped = Some(Arc::clone(&faulty));
        faulty
    });
    let mut group = opened.expect("open").group(&name("host"), &name("default")).expect("group");
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    let reader = ReaderLock::share(&store.path()).expect("shared");
    for fill in 0..=count {
        volume.base(&mut group, fill as u8);
    }
    group.prune(&Policy::without_grid(1, 0)).expect("prune");
    assert_eq!(group.deferred(), count);
    drop(reader);
    (group, volume, wrapped.expect("wrapped"))
}

/// Counts what is said as a warning on this thread.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let is_warning = *event.metadata().level() <= tracing::Level::WARN;
        self.0.fetch_add(usize::from(is_warning), Ordering::Relaxed);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Asks once a second, for so long: when something changed, in seconds since it began, and the warnings.
fn changed<T: PartialEq>(
    group: &mut GroupStore,
    began: Instant,
    seconds: std::ops::Range<u32>,
    of: impl Fn(&GroupStore) -> T,
) -> (Vec<u32>, usize) {
    let warnings = Arc::new(AtomicUsize::new(0));
    let changed = tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
        let has_changed = |at: &u32| {
            let before = of(group);
            group.sweep_or_say_as_of(began + SECOND * *at);
            of(group) != before
        };
        seconds.filter(has_changed).collect()
    });
    (changed, warnings.load(Ordering::Relaxed))
}

#[test]
fn a_sweep_that_fails_comes_again_later_and_later_and_is_said_once() {
    let store = TempStore::new();
    let (mut group, ..) = with_dead(&store, 2);
    let lock = store.path().join("reader.lock");
    fs::remove_file(&lock).expect("it is there");
    fs::create_dir(&lock).expect("it cannot be opened");
    let began = Instant::now();
    let until = |group: &GroupStore| group.failing.pause.map(|pause| pause.until);
    // After 5 seconds, 10, 20 and so on, up to ten minutes.
    let failed = vec![0, 5, 15, 35, 75, 155, 315, 635, 1235, 1835];
    assert_eq!(changed(&mut group, began, 0..2400, until), (failed, 1));
    fs::remove_dir(&lock).expect("it is empty");
    assert_eq!(changed(&mut group, began, 2400..2500, GroupStore::deferred), (vec![2435], 0));
    assert_eq!(group.deferred(), 0);
    assert!(!group.failing.is_said, "what fails now is news");
}

#[test]
fn where_no_file_goes_not_all_are_tried() {
    let store = TempStore::new();
    let (mut group, mut volume, faults) = with_dead(&store, 2 * FAILURES_MAX + 4);
    (0..2 * FAILURES_MAX + 2).for_each(|_| faults.fail(Op::Delete, "/segments/", When::Before, libc::EROFS));
    let began = Instant::now();
    let refused = |group: &GroupStore| group.dead.values().filter(|dead| dead.refused.is_some()).count();
    for (at, tried) in [(0, 1), (1, 1), (4, 1), (5, 2), (14, 2)] {
        group.sweep_or_say_as_of(began + SECOND * at);
        assert_eq!(refused(&group), tried * FAILURES_MAX, "after {at} seconds");
    }
    volume.publish(&mut group, farside_ledger::LayerKind::Point, &[vec![(0, 1, Fill::Byte(1))]]);
    assert_eq!(refused(&group), 2 * FAILURES_MAX, "nor does a record that comes");
    // Two more fail, and two go.
    group.sweep_as_of(began + SECOND * 15).expect_err("some are refused");
    assert_eq!((group.deferred(), group.failing.pause.is_none()), (2 * FAILURES_MAX + 2, true));
    while group.deferred() > 0 {
        group.sweep_as_of(began + SECOND * 100).expect("all are let go");
    }
}

#[test]
fn a_file_that_stays_is_tried_later_and_later_and_is_in_no_other_ones_way() {
    let store = TempStore::new();
    let (mut group, mut volume, faults) = with_dead(&store, 3);
    (0..4).for_each(|_| faults.fail(Op::Delete, "/1.0", When::Before, libc::EPERM));
    let began = Instant::now();
    let until = |group: &GroupStore| group.dead.values().map(|dead| dead.refused.map(|pause| pause.until)).collect::<Vec<_>>();
    assert_eq!(changed(&mut group, began, 0..1, GroupStore::deferred), (vec![0], 1));
    assert_eq!(group.deferred(), 1, "the others went");
    assert_eq!(changed(&mut group, began, 1..2000, until), (vec![60, 180, 420, 900], 0));
    assert_eq!(group.deferred(), 0);
    volume.base(&mut group, 9);
    assert_eq!(group.prune(&Policy::without_grid(1, 0)).expect("prune"), 1);
    assert_eq!(group.deferred(), 0);
}
