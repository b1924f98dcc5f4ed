use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use async_trait::async_trait;
use farside_ledger::{LayerKind, Stamp};

use super::*;
use crate::backend::counting::{Counting, Request};
use crate::backend::{Created, DirBackend, Page};
use crate::checkpoint::SPAN;
use crate::checkpoint::tests::{names, object_path};
use crate::group::GroupStore;
use crate::names::GroupObject;
use crate::reader::{GroupReader, StoreReader};
use crate::testkit::{Fill, TempStore, TestVolume};

fn dir(store: &TempStore) -> Arc<dyn Backend> {
    Arc::new(DirBackend::open(&store.path()).expect("open"))
}

/// A claim and so many points.
fn history(store: &TempStore, points: u64) -> (GroupStore, TestVolume) {
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    volume.base(&mut group, 0);
    go_on(&mut group, &mut volume, points - 1);
    (group, volume)
}

fn go_on(group: &mut GroupStore, volume: &mut TestVolume, points: u64) {
    for i in 0..points {
        volume.publish(group, LayerKind::Point, &[vec![(i % 16, 1, Fill::Byte(i as u8))]]);
    }
}

fn remove(store: &TempStore, slot: u64) {
    fs::remove_file(object_path(store, &names().record(Slot(slot)))).expect("it was there");
}

fn read(backend: Arc<dyn Backend>) -> GroupReader {
    StoreReader::open_bucket(backend).expect("open").group(&names()).expect("group")
}

/// The group as a reader of a bucket has it, held against one of the directory, which lists; whether he listed, too.
fn both_ways(store: &TempStore) -> (GroupReader, bool) {
    let counting = Counting::bucket(dir(store));
    let (found, counts) = counting.during(|| read(Arc::clone(&counting) as _));
    let listed = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
    assert_eq!(found.state(), listed.state());
    assert_eq!(found.torn(), listed.torn());
    (found, counts.of(Request::List) > 0)
}

#[test]
fn a_ledger_of_any_length_is_found_without_a_listing() {
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 1);
    while group.state().next_slot().0 < 5 * span() {
        let (found, listed) = both_ways(&store);
        assert!(!listed, "{} slots", group.state().next_slot());
        assert_eq!(found.state(), group.state());
        go_on(&mut group, &mut volume, 1);
    }
}

/// Whatever is lost of a ledger's end, a hole that as many records follow as it swallowed is torn, and never its head.
#[test]
fn a_hole_is_no_head() {
    SPAN.set(4096);
    let store = TempStore::new();
    drop(history(&store, 100));
    let folder = object_path(&store, &names().record(Slot(0))).parent().expect("a folder").to_owned();
    let copy = store.dir.path().join("records");
    for (first, lost) in
        [(0, 1), (1, 50), (5, 1), (31, 1), (31, 2), (32, 1), (33, 34), (36, 32), (63, 18), (70, 15), (97, 2), (99, 1)]
    {
        fs::create_dir(&copy).expect("mkdir");
        let moved = |slot: u64| (folder.join(slot.to_string()), copy.join(slot.to_string()));
        (first..first + lost).map(moved).for_each(|(here, there)| fs::rename(here, there).expect("rename"));
        let (found, listed) = both_ways(&store);
        assert_eq!(found.torn().expect("torn").slot, Slot(first), "{first}+{lost}");
        assert!(listed);
        (first..first + lost).map(moved).for_each(|(here, there)| fs::rename(there, here).expect("rename"));
        fs::remove_dir(&copy).expect("rmdir");
    }
    assert!(!both_ways(&store).1, "all is there again");
}

/// What the search cannot see, whoever looks for damage does: he lists.
#[test]
fn a_check_of_a_bucket_finds_the_hole_that_swallowed_more_than_follow_it() {
    SPAN.set(4096);
    let store = TempStore::new();
    drop(history(&store, 100));
    (33..100).for_each(|slot| remove(&store, slot));
    let reader = StoreReader::open_bucket(Counting::bucket(dir(&store))).expect("open");
    assert_eq!(reader.group(&names()).expect("group").state().next_slot(), Slot(33), "as the head's table says");
    let report = crate::check(&reader, &|_| true).expect("check");
    assert!(report.findings.iter().any(|f| f.problem == crate::Problem::LedgerTorn), "{:?}", report.findings);
}

/// Where lost records were voided, slots are taken that hold nothing.
#[test]
fn records_that_were_replaced_are_listed() {
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 2);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    let kept = fs::read(object_path(&store, &names().record(Slot(3)))).expect("read");
    drop(group);
    (3..5).for_each(|slot| remove(&store, slot));
    store.group().repair_torn().expect("voided, as segments of the claim are there");
    let (found, listed) = both_ways(&store);
    assert!(listed && found.torn().is_none());
    assert!(found.state().next_slot() > Slot(3), "they are not free");
    // What comes back stays given up.
    fs::write(object_path(&store, &names().record(Slot(3))), kept).expect("write");
    let (found, listed) = both_ways(&store);
    assert!(listed);
    assert_eq!(found.torn().expect("torn").slot, Slot(3));
}

#[test]
fn whatever_is_damaged_is_what_a_listing_says() {
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).expect("read");
        // Of an object that repeats others the middle is not its own.
        let middle = if farside_ledger::may_repeat_others(&bytes) { 100 } else { bytes.len() / 2 };
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("write");
    };
    let remove = |path: &Path| fs::remove_file(path).expect("remove");
    let newest = 4 * span();
    for damage in [&flip as &dyn Fn(&Path), &remove] {
        for object in [
            names().record(Slot(newest - 1)),
            names().record(Slot(newest)),
            names().record(Slot(newest + 2)),
            names().checkpoint(3),
            names().checkpoint(2),
            names().checkpoint_state(3),
        ] {
            let store = TempStore::new();
            drop(history(&store, newest + 3));
            let path = object_path(&store, &object);
            damage(&path);
            // Without its root, a checkpoint was never completed.
            let never_was = !path.exists() && object == names().checkpoint(3);
            // What it covers last may lie in a batch, and the record that follows says of which history it is.
            let is_elsewhere = !path.exists() && object == names().record(Slot(newest - 1));
            assert_eq!(both_ways(&store).1, !never_was && !is_elsewhere, "{object}");
        }
    }
    // Below the newest two, nobody looks.
    let store = TempStore::new();
    drop(history(&store, newest + 3));
    remove(&object_path(&store, &names().checkpoint(1)));
    assert!(!both_ways(&store).1);
    // One that is nobody's, where a search comes by.
    fs::write(object_path(&store, &names().checkpoint(7)), "what is this?").expect("write");
    assert!(both_ways(&store).1);
}

/// A backend in which something happens right after the first look at an object, before anybody hears of it; who looks at other records
/// of its run from `held` on waits for that.
struct Meanwhile {
    inner: Arc<dyn Backend>,
    looked_at: ObjectName,
    held: Slot,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    happened: Condvar,
}

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meanwhile").finish_non_exhaustive()
    }
}

impl Meanwhile {
    fn bucket(store: &TempStore, looked_at: ObjectName, held: Slot, happens: impl FnOnce() + Send + 'static) -> Arc<Counting> {
        let happens = Mutex::new(Some(Box::new(happens) as _));
        Counting::bucket(Arc::new(Self { inner: dir(store), looked_at, held, happens, happened: Condvar::new() }))
    }
}

impl Meanwhile {
    /// A look at an object; before it, who looks at a later one waits, and right after it something happens.
    async fn look<T>(&self, name: &ObjectName, looking: impl Future<Output = T>) -> T {
        let held = self.held..Slot(run_of(self.held).0 + BATCH_SLOTS);
        let is_held = matches!(names().parse(name), Some(GroupObject::Record(slot)) if held.contains(&slot));
        if is_held && *name != self.looked_at {
            let happens = self.happens.lock().expect("lock");
            drop(self.happened.wait_while(happens, |happens| happens.is_some()).expect("lock"));
        }
        let found = looking.await;
        if *name == self.looked_at
            && let Some(happens) = self.happens.lock().expect("lock").take()
        {
            happens();
            self.happened.notify_all();
        }
        found
    }
}

#[async_trait]
impl Backend for Meanwhile {
    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        self.look(name, self.inner.get(name, bytes_max)).await
    }
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        self.inner.create(name, content).await
    }
    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        self.inner.adopt(name, file).await
    }
    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        self.inner.get_range(name, offset, len).await
    }
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.look(name, self.inner.size(name)).await
    }
    async fn list(&self, prefix: Option<&ObjectName>, after: Option<&ObjectName>, limit: usize) -> Result<Page> {
        self.inner.list(prefix, after, limit).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name).await
    }
    async fn sync(&self, prefix: &ObjectName) -> Result<()> {
        self.inner.sync(prefix).await
    }
    async fn folders(&self, prefix: &ObjectName) -> Result<std::collections::BTreeSet<String>> {
        self.inner.folders(prefix).await
    }
    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        self.inner.put_right(name, content).await
    }
    fn place(&self) -> String {
        self.inner.place()
    }
}

type Way = fn(&dyn Backend, &GroupNames, GroupId) -> Result<Replayed>;

/// Every record by itself, and as few objects as have all of them.
const WAYS: [Way; 2] = [replay, replay_to_open];

/// A slot that was asked for before its record was put, while the ones behind it were asked for after theirs: no hole.
#[test]
fn records_that_come_while_somebody_looks_make_no_hole() {
    let cases = [(5, 2), (5, 40), (span() - 1, 3)].into_iter();
    for ((points, more), replay) in cases.flat_map(|case| WAYS.map(|way| (case, way))) {
        let store = TempStore::new();
        let (group, volume) = history(&store, points);
        let head = group.state().next_slot();
        let writer = Arc::new(Mutex::new((group, volume)));
        let writes = Arc::clone(&writer);
        let counting = Meanwhile::bucket(&store, names().record(head), head, move || {
            let (group, volume) = &mut *writes.lock().expect("lock");
            go_on(group, volume, more);
        });
        let id = writer.lock().expect("lock").0.state().group();
        let (found, counts) = counting.during(|| replay(&*counting, &names(), id).expect("no error"));
        assert_eq!(counts.of(Request::List), 0, "{points} and {more}");
        assert_eq!(found.image.state(), writer.lock().expect("lock").0.state());
    }
}

/// A reader that sleeps while a checkpoint or two come and the records that they cover go, or are put anew by somebody who came late.
#[test]
fn l6_a_reader_that_slept_across_checkpoints_believes_in_no_head_below_them() {
    // Whether the newest record that is covered stays, as what a checkpoint is held against.
    let cases = [(1, false, true), (2, false, true), (1, true, true), (2, true, true), (1, false, false)].into_iter();
    for ((checkpoints, late, stays), replay) in cases.flat_map(|case| WAYS.map(|way| (case, way))) {
        let store = TempStore::new();
        let (group, volume) = history(&store, 2 * span() - 1);
        let head = group.state().next_slot();
        assert_eq!(head.0, 2 * span());
        let id = group.state().group();
        let body = volume.claim_body(group.state().head());
        let stamp = Stamp { writer: [3; 16], mono_ms: 0, wall_ms: 0 };
        let attempt = crate::Attempt::new(group.state(), body, [9; 16], stamp).expect("small");
        let writer = Arc::new(Mutex::new((group, volume)));
        let (writes, path) = (Arc::clone(&writer), store.path());
        let happens = move || {
            let (group, volume) = &mut *writes.lock().expect("lock");
            go_on(group, volume, checkpoints * span());
            let record = |slot| path.join(names().record(Slot(slot)).as_str());
            let gone = head.0..head.0 + checkpoints * span() - u64::from(stays);
            gone.for_each(|slot| fs::remove_file(record(slot)).expect("it was there"));
            if late {
                fs::write(record(head.0), &attempt.bytes).expect("write");
            }
        };
        let counting = Meanwhile::bucket(&store, names().checkpoint_state(1), head, happens);
        let (found, counts) = counting.during(|| replay(&*counting, &names(), id).expect("no error"));
        assert_eq!(found.torn, None);
        assert_eq!(found.image.state(), writer.lock().expect("lock").0.state(), "L6: {checkpoints} {late} {stays}");
        assert_eq!(counts.of(Request::List) == 0, stays);
    }
}

/// A record that is too large to be read with others.
#[test]
fn a_long_record_is_read_alone() {
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 3);
    let point = *group.state().points().keys().next().expect("one");
    let reason = "r".repeat(farside_ledger::Pin::REASON_BYTES_MAX);
    group.append(farside_ledger::Body::Pin(farside_ledger::Pin { point, reason })).expect("pin");
    go_on(&mut group, &mut volume, 1);
    assert!(!both_ways(&store).1);
}
