use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use farside_ledger::{LayerKind, Policy};
use farside_region::Slot;
use farside_region::mutation::tell;

use super::*;
use crate::backend::counting::{Counting, Request};
use crate::backend::memory::Memory;
use crate::backend::{Backend, Created, DirBackend, ObjectName, Page};
use crate::checkpoint::SPAN;
use crate::checkpoint::tests::{names, object_path};
use crate::group::GroupStore;
use crate::testkit::{Fill, TempStore, TestVolume, name};
use crate::{FileTarget, FollowKeeper, FollowStage, Follower, Following, LazyPointReader, Store, StoreReader, Wanted};

const KEEP_1: Policy = Policy::without_grid(1, 0);

fn open(store: &TempStore) -> GroupReader {
    StoreReader::open(&store.path()).expect("open").group(&names()).expect("group")
}

/// A claim and a point.
fn begun(mut group: GroupStore) -> (GroupStore, TestVolume) {
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    (group, volume)
}

fn go_on(group: &mut GroupStore, volume: &mut TestVolume, points: u64) {
    for i in 0..points {
        volume.publish(group, LayerKind::Point, &[vec![(i % 16, 1, Fill::Byte(i as u8))]]);
    }
}

#[test]
fn what_rests_holds_off_nothing_and_wakes_to_what_came() {
    let store = TempStore::new();
    let (mut group, mut volume) = begun(store.group());
    let awake = open(&store);
    volume.base(&mut group, 2);
    group.prune(&KEEP_1).expect("prune");
    group.sweep().expect("sweep");
    assert!(group.deferred() > 0, "somebody reads");
    let mut resting = awake.rest();
    group.sweep().expect("sweep");
    assert_eq!(group.deferred(), 0);
    // By one, by some, and beyond checkpoints.
    for points in [0, 1, 1, 3, 40, 0, 100] {
        go_on(&mut group, &mut volume, points);
        let awake = resting.wake(false).expect("awake");
        assert!(awake.state() == group.state(), "after {points} more");
        group.prune(&KEEP_1).expect("prune");
        group.sweep().expect("sweep");
        resting = awake.rest();
    }
    let awake = resting.wake(true).expect("awake");
    assert!(awake.state() == group.state());
}

#[test]
fn a_look_at_a_bucket_is_one_request_and_never_a_listing() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (mut group, mut volume) = begun(store.group());
    let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let mut resting = StoreReader::open_bucket(Arc::clone(&counting) as _).expect("open").group(&names()).expect("group").rest();
    for (points, requests_max) in [(0, 1), (0, 1), (1, 5), (200, 300)] {
        go_on(&mut group, &mut volume, points);
        let (awake, counts) = counting.during(|| resting.wake(false).expect("awake"));
        assert!(counts.total() <= requests_max && counts.of(Request::List) == 0, "{points}: {counts:?}");
        assert!(awake.state() == group.state());
        resting = awake.rest();
    }
}

/// Records that are lost at the end, and given up for good: a quick look cannot know, and a thorough one does.
#[test]
fn a_thorough_look_finds_what_is_wrong_at_the_end() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (mut group, mut volume) = begun(store.group());
    let resting = open(&store).rest();
    go_on(&mut group, &mut volume, 3);
    let lost = Slot(group.state().next_slot().0 - 2);
    drop(group);
    let file = object_path(&store, &names().record(lost));
    let kept = fs::read(&file).expect("read");
    fs::remove_file(&file).expect("removed");
    let awake = resting.wake(false).expect("awake");
    assert_eq!((awake.state().next_slot(), awake.torn().is_some()), (lost, true), "others lie beyond it");
    fs::write(&file, kept).expect("put back");
    let awake = awake.rest().wake(false).expect("awake");
    assert!(awake.torn().is_none() && awake.state().next_slot() > lost);

    // And a record that was replaced before it was seen to be gone.
    let resting = awake.rest();
    let newest = object_path(&store, &names().record(Slot(lost.0 + 1)));
    let mut bytes = fs::read(&newest).expect("read");
    bytes.truncate(20);
    fs::write(&newest, bytes).expect("torn");
    store.group().repair_torn().expect("voided");
    let quick = resting.wake(false).expect("awake");
    let before = quick.state().prev();
    let thorough = quick.rest().wake(true).expect("awake");
    assert_ne!(thorough.state().prev(), before);
    assert!(thorough.state() == open(&store).state());
}

#[test]
fn a_directory_that_is_not_mounted_any_more_is_no_ledger_without_news() {
    let store = TempStore::new();
    let (group, _) = begun(store.group());
    drop(group);
    let (resting, aside) = (open(&store).rest(), store.dir.path().join("aside"));
    fs::rename(store.path(), &aside).expect("unmounted");
    fs::create_dir(store.path()).expect("what it was mounted on");
    let gone = resting.wake(false).expect_err("it is not there");
    assert!(matches!(gone, StoreError::NotAStore { .. } | StoreError::Vanished { .. }), "{gone}");
    assert_eq!(fs::read_dir(store.path()).expect("listed").count(), 0, "and nothing is written there");
    fs::remove_dir(store.path()).expect("removed");
    fs::rename(&aside, store.path()).expect("mounted");
    let resting = open(&store).rest();
    fs::rename(store.path(), &aside).expect("unmounted");
    Store::init(&store.path()).expect("another one");
    let another = resting.wake(false).expect_err("another one");
    assert!(matches!(another, StoreError::NotAStore { .. } | StoreError::Vanished { .. }), "{another}");
}

/// A directory, where somebody does something as soon as a record was asked for that is not there.
struct Met {
    inner: DirBackend,
    somebody: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Met").finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Met {
    async fn create(&self, name: &ObjectName, content: Bytes) -> Result<Created> {
        self.inner.create(name, content).await
    }

    async fn adopt(&self, name: &ObjectName, file: &Path) -> Result<Created> {
        self.inner.adopt(name, file).await
    }

    async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>> {
        let found = self.inner.get(name, bytes_max).await;
        if name.as_str().contains("/ledger/")
            && matches!(found, Ok(None))
            && let Some(somebody) = self.somebody.lock().expect("sound").take()
        {
            somebody();
        }
        found
    }

    async fn get_range(&self, name: &ObjectName, offset: u64, len: u64) -> Result<Bytes> {
        self.inner.get_range(name, offset, len).await
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.size(name).await
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

    async fn folders(&self, prefix: &ObjectName) -> Result<BTreeSet<String>> {
        self.inner.folders(prefix).await
    }

    async fn put_right(&self, name: &ObjectName, content: Bytes) -> Result<()> {
        self.inner.put_right(name, content).await
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}

/// † The receiver gives a point up, and deletes what it held, between the look at the ledger and whatever is read by it.
#[test]
fn what_is_given_up_after_the_look_stays_until_it_was_read() {
    tell(&[("L4 who waits for a point looks at the ledger before he keeps what it names", "it is still there")], || {
        let store = TempStore::new();
        let (group, volume) = begun(store.group());
        let mut resting = open(&store).rest();
        let (image, shared) = (TestVolume::bytes(&volume.image), Arc::new(Mutex::new((group, volume.clone()))));
        let somebody = Box::new({
            let shared = Arc::clone(&shared);
            move || {
                let (group, volume) = &mut *shared.lock().expect("sound");
                volume.base(group, 2);
                group.prune(&KEEP_1).expect("prune");
                group.sweep().expect("sweep");
            }
        });
        let met = Met { inner: DirBackend::open(&store.path()).expect("open"), somebody: Mutex::new(Some(somebody)) };
        resting.segments = Arc::new(Segments::new(Arc::new(met), names()));
        let awake = resting.wake(false).expect("awake");
        let point = *awake.state().points().keys().next_back().expect("one");
        let reader = awake.point_reader_lazily(point, volume.id()).expect("open");
        let (mut content, mut all) = (reader.content(), Vec::new());
        for region in reader.geometry().all_regions().iter() {
            reader.read_region(region, &mut content).expect("it is still there");
            all.extend_from_slice(&content.bytes);
        }
        assert!(all == image);
        drop((reader, awake));
        let (group, _) = &mut *shared.lock().expect("sound");
        assert!(group.deferred() > 0, "it waited");
        group.sweep().expect("sweep");
        assert_eq!(group.deferred(), 0);
    });
}

/// What is known of a target.
#[derive(Debug, Default)]
struct Note(Mutex<Following>);

impl FollowKeeper for Note {
    fn keep(&self, following: &Following) -> std::io::Result<()> {
        *self.0.lock().expect("sound") = following.clone();
        Ok(())
    }
}

/// Nobody keeps the points of who follows a store: what his target holds is given up, and merged, and swept under him.
#[test]
fn who_follows_a_store_arrives_whatever_is_given_up_under_him() {
    let bucket = Arc::new(Memory::default());
    let store = TempStore::new();
    Store::init_bucket(&(Arc::clone(&bucket) as Arc<dyn Backend>)).expect("init");
    let dir = tempfile::tempdir().expect("temp dir");
    let in_bucket = Store::open_bucket(Arc::clone(&bucket) as _, &dir.path().join("staging")).expect("open");
    let in_bucket = in_bucket.group(&name("host"), &name("default")).expect("group");
    for (of_directory, group) in [(true, store.group()), (false, in_bucket)] {
        let (mut group, mut volume) = begun(group);
        let mut resting = match of_directory {
            true => open(&store),
            false => StoreReader::open_bucket(Arc::clone(&bucket) as _).expect("open").group(&names()).expect("group"),
        }
        .rest();
        let (path, note) = (dir.path().join(format!("target-{of_directory}")), Note::default());
        let (mut given_up, mut merges) = (0, 0);
        for round in 0..30_u64 {
            for step in 0..4 {
                let kind = if step == 3 { LayerKind::Point } else { LayerKind::Fuzzy };
                let (at, byte) = ((round * 7 + step * 13) % 60, (round * 4 + step) as u8);
                let fill = if step == 1 { Fill::Zero } else { Fill::Byte(byte) };
                volume.publish(&mut group, kind, &[vec![(at, 3, fill)]]);
            }
            if round % 3 > 0 {
                group.prune(&KEEP_1).expect("prune");
                merges += group.merge(&KEEP_1).expect("merge");
                group.sweep().expect("sweep");
            }
            if round % 5 == 4 {
                continue; // he sleeps
            }
            let awake = resting.wake(round % 7 == 6).expect("awake");
            let id = awake.volume(&name("v")).expect("there");
            let following = note.0.lock().expect("sound").clone();
            let held = if let FollowStage::At(at) = following.stage { Some(at.slot) } else { None };
            given_up += u64::from(held.is_some_and(|held| !awake.state().points().contains_key(&held)));
            let point = Wanted::Newest.find(awake.state(), id, &BTreeSet::new()).expect("a point").slot;
            let look = awake.follow_look(point, id, &following.stage).expect("a way");
            let target = FileTarget::open_to_follow(&path, "v", 0, following == Following::default(), false).expect("a target");
            let base = |slot: Slot| -> Result<LazyPointReader> { awake.point_reader_lazily(slot, id) };
            let mut follower = Follower::new(&target, &note, following, 1);
            follower.advance(&look, &base, &|_| true).expect("arrives");
            assert!(fs::read(&path).expect("read") == TestVolume::bytes(&volume.image), "round {round}");
            drop(look);
            resting = awake.rest();
        }
        assert!(given_up > 5 && merges > 0, "{given_up} of them were given up, {merges} merges");
        assert!(bucket.names("leases").is_empty(), "whoever waits holds nothing");
    }
}
