use std::fs;
use std::sync::Arc;

use farside_ledger::{LayerKind, Policy, State};
use farside_region::mutation::tell;
use farside_region::{LedgerPosition, RecordDigest};
use proptest::prelude::*;

use super::*;
use crate::backend::memory::Memory;
use crate::backend::{Backend, DirBackend};
use crate::check::{Problem, Severity, check};
use crate::checkpoint::tests::{names, object_path};
use crate::image::GroupImage;
use crate::replay::{Slots, replay};
use crate::testkit::{Fill, PASSED_MS, TempStore, TestVolume, name, two_volumes};
use crate::{Store, StoreReader};

/// What was given up lately is remembered.
const HOUR_MS: u64 = 3_600_000;

/// So many points, one an hour, of which few are kept.
fn go_on(group: &mut GroupStore, volume: &mut TestVolume, points: u64) {
    for i in 0..points {
        PASSED_MS.set(PASSED_MS.get() + HOUR_MS);
        let at = if volume.image[0].is_none() { (0, 16) } else { (i % 16, 1) };
        volume.publish(group, LayerKind::Point, &[vec![(at.0, at.1, Fill::Byte(i as u8))]]);
        if i % 16 == 15 {
            group.prune(&Policy::without_grid(2, 0)).expect("prune");
        }
    }
}

/// A ledger of which replay has forgotten most.
fn long() -> (TempStore, TestVolume) {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    go_on(&mut group, &mut volume, 300);
    (store, volume)
}

fn trim(group: &mut GroupStore) -> usize {
    let mut gone = 0;
    loop {
        gone += group.trim_ledger().expect("trimmed");
        let checkpoints = Some(group.state().next_slot().0 / span());
        if group.trimming.pass.is_none() && (group.trimming.passed, group.trimming.states) == (checkpoints, checkpoints) {
            return gone;
        }
    }
}

fn backend(store: &TempStore) -> Arc<dyn Backend> {
    Arc::new(DirBackend::open(&store.path()).expect("open"))
}

fn slots(store: &TempStore) -> BTreeSet<u64> {
    Slots::list(&*backend(store), &names()).expect("listed").records
}

fn found(store: &TempStore) -> Vec<(Severity, Problem)> {
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
    report.findings.iter().map(|f| (f.severity, f.problem)).collect()
}

/// What of a ledger must be there: what replay remembers, and all from the last run before an anchor's end on.
fn wanted(state: &State) -> BTreeSet<u64> {
    let floor = anchor(state).map_or(0, |anchor| (anchor + 1) * span()).saturating_sub(BATCH_SLOTS);
    (0..state.next_slot().0).filter(|slot| *slot >= floor || state.remembers(Slot(*slot))).collect()
}

#[test]
fn records_that_nobody_asks_for_go_and_the_group_is_what_it_was() {
    tell(&[("a record goes that replay remembers", "what replay remembers stays")], || {
        let (store, mut volume) = long();
        let mut group = store.group();
        let before = group.state().clone();
        let all = slots(&store).len();
        let gone = trim(&mut group);
        assert!(gone > 100, "{gone} of {all}");
        assert!(slots(&store) == wanted(&before) && group.state() == &before, "what replay remembers stays");
        drop(group);
        assert_eq!(found(&store), []);
        let mut group = store.group();
        assert_eq!(group.state(), &before);
        // It goes on, and more of it goes; what of a step before stayed for a layer goes when that is forgotten.
        go_on(&mut group, &mut volume, 300);
        assert!(trim(&mut group) > 100);
        assert_eq!(slots(&store), wanted(group.state()));
        assert_eq!(trim(&mut group), 0);
        drop(group);
        assert_eq!(found(&store), []);
        let whole = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
        let newest = whole.points().last().expect("a point").slot;
        let bytes = whole.point_reader(newest, volume.id()).expect("reader");
        let mut content = bytes.content();
        bytes.read_region(farside_region::RegionIndex(0), &mut content).expect("read");
        assert_eq!(content.bytes[..], TestVolume::bytes(&volume.image)[..content.bytes.len()]);
    });
}

/// The checkpoints that have a state.
fn states(store: &TempStore) -> Vec<u64> {
    let all = block_on(backend(store).names(&names().checkpoints())).expect("listed");
    let states = all.iter().filter_map(|name| match names().parse(name) {
        Some(GroupObject::CheckpointState(number)) => Some(number),
        _ => None,
    });
    states.collect::<BTreeSet<u64>>().into_iter().collect()
}

#[test]
fn states_of_old_checkpoints_go_while_nobody_reads_and_again_after_a_crash() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    go_on(&mut group, &mut volume, 2 * span());
    // Somebody copies what he noted, and takes his time.
    let reader = crate::locks::ReaderLock::share(&store.path()).expect("shared");
    go_on(&mut group, &mut volume, 3 * span());
    let all: Vec<u64> = (0..group.state().next_slot().0 / span()).collect();
    assert!(all.len() >= 5, "{all:?}");
    assert_eq!((group.trim_ledger().expect("waits"), states(&store)), (0, all.clone()), "nothing is deleted beside a reader");
    drop(reader);
    let kept: Vec<u64> = all.iter().copied().filter(|number| may_be_anchor(*number) || number + 2 >= all.len() as u64).collect();
    let oldest = object_path(&store, &names().checkpoint_state(0));
    let bytes = fs::read(&oldest).expect("it is there");
    trim(&mut group);
    assert_eq!(states(&store), kept);
    drop(group);
    // As a crash right before its deletion leaves it.
    fs::write(&oldest, bytes).expect("put back");
    let mut group = store.group();
    trim(&mut group);
    assert_eq!(states(&store), kept);
    drop(group);
    assert_eq!(found(&store), []);
}

#[test]
fn states_of_old_checkpoints_stay_where_not_both_of_the_newest_are_there() {
    let (root, state) = (|number| names().checkpoint(number), |number| names().checkpoint_state(number));
    for lost in [state(4), state(3), root(4), root(3)] {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volume = TestVolume::new("v", 16);
        volume.claim(&mut group);
        go_on(&mut group, &mut volume, 5 * span());
        assert_eq!(states(&store), [0, 1, 2, 3, 4]);
        let file = object_path(&store, &lost);
        let mut bytes = fs::read(&file).expect("it is there");
        bytes.pop();
        fs::write(&file, bytes).expect("cut off");
        trim(&mut group);
        assert_eq!(states(&store), [0, 1, 2, 3, 4], "{lost}");
    }
}

#[test]
fn where_the_newest_states_rot_replay_begins_at_the_anchor() {
    let (store, _) = long();
    let mut group = store.group();
    trim(&mut group);
    let before = group.state().clone();
    drop(group);
    let newest = before.next_slot().0 / span();
    for number in newest - checkpoint::STATES..newest {
        fs::remove_file(object_path(&store, &names().checkpoint_state(number))).expect("it was there");
    }
    let anchored = anchor(&before).expect("an anchor");
    assert!(newest > anchored + 4, "it is far back");
    let group = store.group();
    assert!(group.torn().is_none() && group.state() == &before);
}

#[test]
fn l6_a_position_so_old_is_told_from_one_of_another_history() {
    let (store, _) = long();
    let mut group = store.group();
    let all = slots(&store);
    let digest_of = |slot: u64| {
        let records = crate::replay::read_slot(&*backend(&store), &names(), Slot(slot), false).expect("read").expect("whole");
        records[0].1
    };
    let old: Vec<(u64, RecordDigest)> = all.iter().take(40).map(|slot| (*slot, digest_of(*slot))).collect();
    trim(&mut group);
    let left = slots(&store);
    let gone: Vec<_> = old.into_iter().filter(|(slot, _)| !left.contains(slot) && !left.contains(&(slot + 1))).collect();
    assert!(gone.len() > 10, "{gone:?}");
    for (slot, digest) in gone {
        assert!(group.went_through(&LedgerPosition { slot: Slot(slot), digest }).expect("known"));
        assert!(!group.went_through(&LedgerPosition { slot: Slot(slot), digest: RecordDigest([7; 32]) }).expect("known"));
        // Whoever comes too late, and has gone another way, says nothing of it.
        let late = names().record(Slot(slot + 1));
        fs::write(object_path(&store, &late), fs::read(object_path(&store, &names().record(Slot(200)))).expect("read"))
            .expect("put");
        assert!(group.went_through(&LedgerPosition { slot: Slot(slot), digest }).expect("known"));
        fs::remove_file(object_path(&store, &late)).expect("removed");
    }
}

#[test]
fn what_comes_too_late_is_nothing_and_goes_with_the_next_pass() {
    let (store, mut volume) = long();
    let mut group = store.group();
    trim(&mut group);
    let left = slots(&store);
    let free = (0..).find(|slot| !left.contains(slot)).expect("a gap");
    let stray = object_path(&store, &names().record(Slot(free)));
    fs::create_dir_all(stray.parent().expect("a folder")).expect("mkdir");
    fs::write(&stray, b"of somebody who slept").expect("put");
    drop(group);
    let mut group = store.group();
    assert!(group.torn().is_none());
    go_on(&mut group, &mut volume, span());
    trim(&mut group);
    assert!(!stray.exists());
    drop(group);
    assert_eq!(found(&store), []);
}

/// Nothing that would make up for what goes is there, or somebody reads: then nothing goes.
#[test]
fn nothing_goes_without_what_stands_for_it() {
    tell(&[("records go for a checkpoint that nobody read back", "nothing stands for them")], || {
        let (store, _) = long();
        let before = slots(&store);
        let anchor = anchor(store.group().state()).expect("an anchor");
        let harmless = |object: &ObjectName, harm: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>| {
            let path = object_path(&store, object);
            let good = fs::read(&path).expect("it is there");
            match harm(good.clone()) {
                Some(bad) => fs::write(&path, bad).expect("put"),
                None => fs::remove_file(&path).expect("removed"),
            }
            let mut group = store.group();
            trim(&mut group);
            drop(group);
            assert!(slots(&store) == before, "{object}: nothing stands for them");
            fs::write(&path, good).expect("put back");
        };
        let gone = |_| None;
        let flipped = |mut bytes: Vec<u8>| {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            Some(bytes)
        };
        for harm in [&gone as &dyn Fn(Vec<u8>) -> Option<Vec<u8>>, &flipped] {
            harmless(&names().checkpoint_state(anchor), harm);
            harmless(&names().checkpoint(anchor + 1), harm);
        }
        let reading = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
        let slot = reading.points().last().expect("a point").slot;
        let volume = reading.state().volumes().next().expect("a volume").0;
        let held = reading.point_reader(slot, volume).expect("reader");
        let mut group = store.group();
        assert_eq!((0..20).map(|_| group.trim_ledger().expect("deferred")).sum::<usize>(), 0);
        assert_eq!(slots(&store), before, "somebody reads");
        drop((held, reading, group));
        for harm in [&gone as &dyn Fn(Vec<u8>) -> Option<Vec<u8>>, &flipped] {
            let (store, _) = long();
            let (path, before) = (object_path(&store, &names().checkpoint_digests(2)), slots(&store));
            match harm(fs::read(&path).expect("it is there")) {
                Some(bad) => fs::write(&path, bad).expect("put"),
                None => fs::remove_file(&path).expect("removed"),
            }
            assert!(trim(&mut store.group()) > 100);
            let left = slots(&store);
            assert!(before.difference(&left).all(|slot| slot / span() != 2), "those that it covers stay");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// Whatever is published, pruned and claimed, and whenever it is trimmed: what opens afterwards is what was there.
    #[test]
    fn what_is_trimmed_is_what_it_was(steps in prop::collection::vec((0u8..12, 0u64..16, 1u64..36), 20..50)) {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volumes = two_volumes(&mut group);
        for (what, at, count) in steps {
            let volume = &mut volumes[usize::from(what % 2)];
            match what {
                0 | 1 => volume.claim(&mut group),
                2 | 3 => drop(group.prune(&Policy::without_grid(2, 0)).expect("prune")),
                4 => { drop(group); group = store.group(); }
                5 | 6 => _ = trim(&mut group),
                _ => for _ in 0..count {
                    PASSED_MS.set(PASSED_MS.get() + HOUR_MS);
                    let at = if volume.image[0].is_none() { (0, 16) } else { (at, 1) };
                    volume.publish(&mut group, LayerKind::Point, &[vec![(at.0, at.1, Fill::Byte(what))]]);
                },
            }
        }
        trim(&mut group);
        let before = group.state().clone();
        prop_assert!(wanted(&before).is_subset(&slots(&store)));
        drop(group);
        prop_assert_eq!(found(&store), []);
        let opened: GroupImage = replay(&*backend(&store), &names(), before.group(), |_| {}).expect("replay").image;
        prop_assert_eq!(opened.state(), &before);
    }
}

#[test]
fn a_bucket_is_trimmed_as_well() {
    crate::testkit::forget_soon();
    let dir = tempfile::tempdir().expect("temp dir");
    let bucket = Arc::new(Memory::default());
    Store::init_bucket(&(Arc::clone(&bucket) as Arc<dyn Backend>)).expect("init");
    let open = || {
        let store = Store::open_bucket(Arc::clone(&bucket) as Arc<dyn Backend>, &dir.path().join("staging")).expect("open");
        store.group(&name("host"), &name("default")).expect("group")
    };
    let mut group = open();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    go_on(&mut group, &mut volume, 300);
    let before = group.state().clone();
    assert!(trim(&mut group) > 100);
    drop(group);
    assert_eq!(open().state(), &before);
}

/// What a ledger's writer deleted while the store was looked at was called lost.
#[test]
fn what_goes_while_a_bucket_is_checked_is_no_finding() {
    crate::testkit::forget_soon();
    let dir = tempfile::tempdir().expect("temp dir");
    let bucket = Arc::new(Memory::default());
    let backend = || Arc::clone(&bucket) as Arc<dyn Backend>;
    Store::init_bucket(&backend()).expect("init");
    let store = Store::open_bucket(backend(), &dir.path().join("staging")).expect("open");
    let mut group = store.group(&name("host"), &name("default")).expect("group");
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    go_on(&mut group, &mut volume, 40);
    let reader = StoreReader::open_bucket(backend()).expect("open");
    let goes_on = std::sync::Mutex::new(Some((&mut group, &mut volume)));
    let findings = check(&reader, &|_| {
        // The ledger was read.
        if let Some((group, volume)) = goes_on.lock().expect("whole").take() {
            go_on(group, volume, 300);
            assert!(trim(group) > 100);
        }
        true
    })
    .expect("checked")
    .findings;
    assert!(goes_on.lock().expect("whole").is_none());
    let of_ledger: Vec<_> = findings
        .iter()
        .filter(|f| matches!(f.problem, Problem::LedgerTorn | Problem::Checkpoint) || f.severity == Severity::Error)
        .collect();
    assert!(of_ledger.is_empty(), "{of_ledger:?}");
}
