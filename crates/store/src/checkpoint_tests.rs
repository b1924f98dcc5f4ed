use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use farside_ledger::{LayerKind, Policy, State};
use farside_region::mutation::tell;
use proptest::prelude::*;

use super::*;
use crate::backend::DirBackend;
use crate::backend::faulty::{Faulty, Op, When};
use crate::check::{CheckReport, Problem, Severity, check};
use crate::error::Remedy;
use crate::group::GroupStore;
use crate::replay::{Replayed, index_all, replay, replay_all_slots};
use crate::segments::Segments;
use crate::testkit::{Fill, TempStore, TestVolume, name, two_volumes};

const FOLDER: &str = "groups/host/default";

pub(crate) fn names() -> GroupNames {
    GroupNames::new(name("host"), name("default"))
}

pub(crate) fn object_path(store: &TempStore, object: &ObjectName) -> std::path::PathBuf {
    store.path().join(object.as_str())
}

/// A claim and so many points, each of which writes one granule over the base.
fn history(store: &TempStore, points: u64) -> TestVolume {
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    go_on(&mut group, &mut volume, points);
    volume
}

fn go_on(group: &mut GroupStore, volume: &mut TestVolume, points: u64) {
    for i in 0..points {
        let at = if volume.image[0].is_none() { (0, 16) } else { (i % 16, 1) };
        volume.publish(group, LayerKind::Point, &[vec![(at.0, at.1, Fill::Byte(i as u8))]]);
    }
}

/// The records that checkpoints cover are gone.
fn trim(store: &TempStore, below: u64) {
    (0..below).for_each(|slot| fs::remove_file(object_path(store, &names().record(Slot(slot)))).expect("it was there"));
}

fn backend(store: &TempStore) -> Arc<dyn Backend> {
    Arc::new(DirBackend::open(&store.path()).expect("open"))
}

fn both_ways(store: &TempStore) -> (Replayed, Replayed) {
    let (backend, group) = (backend(store), store.group().state().group());
    let newest = replay(&*backend, &names(), group, |_| {}).expect("replay");
    let whole = replay_all_slots(&*backend, &names(), GroupImage::new(group), |_| {}).expect("replay");
    (newest, whole)
}

/// Everything that an image says.
fn assert_same(store: &TempStore, mut one: GroupImage, mut other: GroupImage) {
    assert_eq!(one.state(), other.state());
    let segments = Segments::new(backend(store), names());
    for image in [&mut one, &mut other] {
        index_all(image, &segments).expect("footers");
    }
    assert_eq!(one.parts().iter().collect::<Vec<_>>(), other.parts().iter().collect::<Vec<_>>());
    assert_eq!((one.parts().bytes(), one.parts().to_checkpoint()), (other.parts().bytes(), other.parts().to_checkpoint()));
    for (id, _) in one.state().volumes() {
        assert_eq!(one.head(id), other.head(id));
    }
}

fn checked(store: &TempStore) -> CheckReport {
    check(&crate::StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check")
}

fn found(store: &TempStore) -> Vec<(Severity, Problem)> {
    checked(store).findings.iter().map(|f| (f.severity, f.problem)).collect()
}

#[test]
fn every_so_many_slots_a_checkpoint_appears_and_two_keep_their_states() {
    let store = TempStore::new();
    history(&store, 3 * span());
    let mut group = store.group();
    while group.trim_ledger().expect("nobody reads") > 0 {}
    drop(group);
    assert_eq!(
        store.files(&format!("{FOLDER}/checkpoint")),
        ["0", "0.digests", "1", "1.digests", "1.state", "2", "2.digests", "2.state"]
            .map(|file| format!("{FOLDER}/checkpoint/{file}"))
    );
    assert_eq!(found(&store), []);
    let (newest, whole) = both_ways(&store);
    assert_same(&store, newest.image, whole.image);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Layers of two volumes, claims in between, prunes that delete segments, restarts: what a checkpoint and the records after
    /// it give is what all records give.
    #[test]
    fn an_image_from_a_checkpoint_is_the_image_from_all_records(steps in prop::collection::vec((0u8..12, 0u64..16, 1u64..4), 1..40)) {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volumes = two_volumes(&mut group);
        for (what, at, count) in steps {
            let volume = &mut volumes[usize::from(what % 2)];
            let runs = |fill| vec![vec![(at.min(16 - count), count, fill)]];
            match what {
                0 | 1 => volume.claim(&mut group),
                2 | 3 => drop(group.prune(&Policy::without_grid(2, 0)).expect("prune")),
                4 | 5 => { drop(group); group = store.group(); }
                6 | 7 => drop(volume.publish(&mut group, LayerKind::Fuzzy, &runs(Fill::Zero))),
                8 => drop(volume.publish(&mut group, LayerKind::Point, &runs(Fill::Unreadable))),
                _ => drop(volume.publish(&mut group, LayerKind::Point, &runs(Fill::Byte(what)))),
            }
        }
        let (here, records) = (group.state().clone(), group.state().next_slot().0);
        drop(group);
        let (newest, whole) = both_ways(&store);
        prop_assert_eq!(newest.image.state(), &here);
        assert_same(&store, newest.image, whole.image.clone());
        // Also without the records that it covers.
        let covered = records / span() * span();
        trim(&store, covered);
        let newest = replay(&*backend(&store), &names(), here.group(), |_| {}).expect("replay");
        prop_assert!(newest.torn.is_none());
        assert_same(&store, newest.image, whole.image);
    }
}

#[test]
fn a_group_whose_covered_records_are_gone_opens_and_goes_on() {
    let store = TempStore::new();
    let mut volume = history(&store, 2 * span());
    let before = store.group().state().clone();
    trim(&store, 2 * span());
    let mut group = store.group();
    assert_eq!(group.state(), &before);
    go_on(&mut group, &mut volume, span());
    drop(group);
    assert_eq!(found(&store), [(Severity::Warning, Problem::LedgerTorn)], "nobody of ours deletes records");
    assert_eq!(store.group().state().next_slot(), Slot(1 + 3 * span()));
    assert!(block_on(backend(&store).size(&names().checkpoint(2))).expect("size").is_some());
}

/// L8: opening takes one checkpoint and at most as many records as one covers, whatever the history.
#[test]
fn l8_opening_reads_a_bounded_number_of_objects() {
    let store = TempStore::new();
    for rounds in [1, 6] {
        let mut volume = TestVolume::new(&format!("v{rounds}"), 16);
        let mut group = store.group();
        volume.claim(&mut group);
        go_on(&mut group, &mut volume, rounds * span() - 2);
        let (id, slots) = (group.state().group(), group.state().next_slot().0);
        drop(group);
        let counted = Faulty::new(backend(&store));
        replay(&*counted, &names(), id, |_| {}).expect("replay");
        let read = counted.gets.load(Ordering::Relaxed) as u64;
        // The newest root, its state, the root before it and the newest record that it covers; the records since; the root to come.
        let newest = if slots < span() { 0 } else { 3 + u64::from(slots >= 2 * span()) };
        assert_eq!(read, newest + slots % span() + 1, "of {slots}");
    }
}

/// What a crash between any two steps of writing a checkpoint leaves, and a store from before there were checkpoints.
#[test]
fn the_next_start_writes_the_checkpoints_that_are_missing_with_the_same_bytes() {
    let store = TempStore::new();
    history(&store, 2 * span());
    let all = store.files(&format!("{FOLDER}/checkpoint"));
    let content = |store: &TempStore| all.iter().map(|file| fs::read(store.path().join(file)).ok()).collect::<Vec<_>>();
    let before = content(&store);
    // The newest root; both of the newest; all.
    for lost in [&["1"][..], &["1", "1.state"], &["0", "0.state", "1", "1.state"]] {
        for file in lost {
            fs::remove_file(store.path().join(FOLDER).join("checkpoint").join(file)).expect("remove");
        }
        drop(store.group());
        assert_eq!(content(&store), before, "{lost:?}");
        assert_eq!(found(&store), []);
    }
    // Replay begins behind it, so nobody writes it again; nobody needs it either.
    fs::remove_file(object_path(&store, &names().checkpoint(0))).expect("remove");
    drop(store.group());
    assert_eq!(found(&store), [(Severity::Warning, Problem::Checkpoint)]);
}

#[test]
fn a_checkpoint_comes_only_after_the_one_before_it() {
    let store = TempStore::new();
    let mut volume = history(&store, span());
    let mut group = store.group();
    flip(&object_path(&store, &names().checkpoint(0)));
    go_on(&mut group, &mut volume, span());
    drop(group);
    assert_eq!(list(&*backend(&store), &names()).expect("list").into_iter().collect::<Vec<_>>(), [0]);
    fs::remove_file(object_path(&store, &names().checkpoint(0))).expect("as `store check` says");
    drop(store.group());
    assert_eq!(found(&store), []);
    assert_eq!(list(&*backend(&store), &names()).expect("list").into_iter().collect::<Vec<_>>(), [0, 1]);
}

/// A service that did not answer at that one moment. Before, a receiver that ran on wrote no checkpoint any more, for months.
#[test]
fn a_checkpoint_that_could_not_be_written_is_written_later_and_in_order() {
    // Failures, and which checkpoints there are after so many spans of records: nothing waits for the next start unless too many wait.
    for (failures, there) in
        [(1, [&[][..], &[0, 1], &[0, 1, 2]]), (span() + 1, [&[], &[], &[0, 1, 2]]), (3 * span(), [&[], &[], &[]])]
    {
        let store = TempStore::new();
        let mut wrapped = None;
        let opened = crate::Store::open_over(&store.path(), |dir| {
            let faulty = Faulty::new(dir);
            wrapped = Some(Arc::clone(&faulty));
            faulty
        });
        let (opened, faults) = (opened.expect("open"), wrapped.expect("wrapped"));
        let mut group = opened.group(&name("host"), &name("default")).expect("group");
        (0..failures).for_each(|_| faults.fail(Op::Create, "checkpoint/0.state", When::Before, libc::EIO));
        let mut volume = TestVolume::new("v", 16);
        volume.claim(&mut group);
        let roots = || list(&*backend(&store), &names()).expect("list").into_iter().collect::<Vec<_>>();
        for (spans, there) in there.into_iter().enumerate() {
            let records = (spans as u64 + 1) * span() - group.state().next_slot().0;
            go_on(&mut group, &mut volume, records);
            assert_eq!(roots(), there, "{failures} failures, after {} slots", group.state().next_slot());
        }
        drop(group);
        drop(opened);
        drop(store.group());
        assert_eq!((roots(), found(&store)), (vec![0, 1, 2], vec![]), "the next start makes up for all");
        let (newest, whole) = both_ways(&store);
        assert_same(&store, newest.image, whole.image);
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    // Of an object that repeats others the middle is not its own.
    let middle = if farside_ledger::may_repeat_others(&bytes) { 100 } else { bytes.len() / 2 };
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).expect("write");
}

fn cut(path: &Path) {
    let bytes = fs::read(path).expect("read");
    let left = if farside_ledger::may_repeat_others(&bytes) { 100 } else { bytes.len() - 1 };
    fs::write(path, &bytes[..left]).expect("write");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("remove");
}

/// While the records are whole, a damaged checkpoint costs time. Without them nobody knows what was there: the group is torn by
/// name, above all it is not empty, and nothing is given up.
#[test]
fn a_damaged_checkpoint_is_named_and_never_the_end_of_the_ledger() {
    for (damage, is_root) in [(flip as fn(&Path), true), (flip, false), (cut, true), (cut, false), (remove, false)] {
        for tail in [0, 3] {
            let store = TempStore::new();
            history(&store, span() - 1 + tail);
            let before = store.group().state().clone();
            let object = if is_root { names().checkpoint(0) } else { names().checkpoint_state(0) };
            let good = fs::read(object_path(&store, &object)).expect("read");
            damage(&object_path(&store, &object));

            if object_path(&store, &object).exists() {
                assert_eq!(store.group().state(), &before, "the records say it all");
            }
            assert_eq!(
                found(&store).iter().map(|f| f.1).collect::<Vec<_>>(),
                if is_there(&store, &object, &good) { vec![] } else { vec![Problem::Checkpoint] }
            );

            if !object_path(&store, &object).exists() {
                fs::write(object_path(&store, &object), "").expect("empty is as bad as missing, and nobody writes it again");
            }
            trim(&store, span());
            let mut group = store.group();
            let torn = group.torn().expect("torn").clone();
            assert_eq!(torn.slot, Slot(0));
            assert_eq!(torn.checkpoint.as_deref(), Some(object.as_str()));
            let error = group.append(TestVolume::new("x", 8).claim_body(None)).expect_err("nothing goes on");
            assert!(error.to_string().contains("put the checkpoint back"), "{error}");
            assert!(matches!(group.repair_plan(), Err(StoreError::LedgerTorn { .. })), "nothing is given up for it");
            assert!(group.repair_torn().is_err());
            drop(group);
            assert!(found(&store).contains(&(Severity::Error, Problem::Checkpoint)), "{:?}", found(&store));

            fs::write(object_path(&store, &object), good).expect("it comes back from a copy");
            assert_eq!(store.group().state(), &before);
        }
    }
}

fn is_there(store: &TempStore, object: &ObjectName, good: &[u8]) -> bool {
    fs::read(object_path(store, object)).is_ok_and(|bytes| bytes == good)
}

/// A record that rots below a checkpoint costs no point; it is said all the same.
#[test]
fn a_record_that_rots_below_a_checkpoint_is_said_and_costs_nothing() {
    let store = TempStore::new();
    history(&store, 2 * span());
    let before = store.group().state().clone();
    cut(&object_path(&store, &names().record(Slot(3))));
    let group = store.group();
    assert!(group.torn().is_none() && group.state() == &before);
    drop(group);
    assert_eq!(found(&store), [(Severity::Warning, Problem::LedgerTorn)]);
}

/// What stands for a record that is lost is not to be deleted, whatever else is damaged.
#[test]
fn nobody_is_told_to_delete_checkpoints_that_stand_for_lost_records() {
    let store = TempStore::new();
    history(&store, 3 * span());
    flip(&object_path(&store, &names().checkpoint(0)));
    let told = |store: &TempStore| checked(store).findings.iter().any(|finding| finding.text.contains("delete this checkpoint"));
    assert!(told(&store), "all records are whole");
    remove(&object_path(&store, &names().record(Slot(span() + 3))));
    assert!(!told(&store), "{:?}", checked(&store).findings);
}

/// Two writers, one of whom sleeps at slot 6 while the other fills the first checkpoint, goes on, and gives up what it covers.
fn asleep() -> (TempStore, GroupStore, TestVolume, State) {
    let store = TempStore::new();
    let volume = history(&store, span() - 2);
    let sleeper = store.group();
    let copy = TempStore::new();
    fs::remove_dir_all(copy.path()).expect("remove");
    copy_dir(&store.path(), &copy.path());
    let mut group = copy.group();
    go_on(&mut group, &mut volume.clone(), span());
    let other = group.state().clone();
    drop(group);
    copy_dir(&copy.path().join(FOLDER), &store.path().join(FOLDER));
    trim(&store, span());
    (store, sleeper, volume, other)
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("read") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() { copy_dir(&entry.path(), &target) } else { assert!(fs::copy(entry.path(), target).is_ok()) }
    }
}

/// Its slot is free again, so its PUT succeeds; the record lies there and everybody else went past that slot long ago.
fn a_late_writer_hears_from_the_checkpoint() {
    let (store, mut sleeper, mut volume, other) = asleep();
    let entry = volume.land(&sleeper, &[vec![(0, 1, Fill::Byte(99))]]);
    let appended = sleeper.append(crate::testkit::layers(LayerKind::Point, vec![entry]));
    let error = appended.expect_err("L6: a record below a checkpoint was called published");
    assert!(matches!(&error, StoreError::BehindCheckpoint { slot, .. } if slot.0 == span() - 1), "{error}");
    assert_eq!(error.remedy(), Remedy::Reopen);
    drop(sleeper);
    assert_eq!(store.group().state(), &other, "what it put is nothing");
}

/// A slot that is not there is no head if a checkpoint covers it; one that is there may be of a writer who came too late.
fn a_sleeper_looks_for_the_checkpoint() {
    for late in [false, true] {
        let (store, mut sleeper, volume, other) = asleep();
        if late {
            let slot = sleeper.state().next_slot();
            let attempt = crate::Attempt::new(sleeper.state(), volume.claim_body(sleeper.state().head()), [9; 16], stamp());
            fs::write(object_path(&store, &names().record(slot)), attempt.expect("small").bytes).expect("write");
        }
        let end = sleeper.catch_up();
        let error = end.expect_err("L6: a reader believed in a head below a checkpoint");
        assert!(matches!(error, StoreError::BehindCheckpoint { .. }), "{error}");
        drop(sleeper);
        assert_eq!(store.group().state(), &other);
    }
}

fn stamp() -> farside_ledger::Stamp {
    farside_ledger::Stamp { writer: [3; 16], mono_ms: 0, wall_ms: 0 }
}

#[test]
fn l6_a_record_put_below_a_checkpoint_is_nothing() {
    let words = "L6: a record below a checkpoint was called published";
    tell(&[("a record put below a checkpoint counts", words)], a_late_writer_hears_from_the_checkpoint);
}

#[test]
fn l6_a_slot_below_a_checkpoint_is_decided_by_it() {
    let words = "L6: a reader believed in a head below a checkpoint";
    tell(&[("what lies in a slot counts, whatever checkpoint covers it", words)], a_sleeper_looks_for_the_checkpoint);
}

/// The record is in its slot, and nobody can say whether a checkpoint had decided that slot before.
#[test]
fn an_append_that_could_not_look_for_the_checkpoint_keeps_its_segments_until_the_group_is_opened_again() {
    for errno in [libc::EIO, libc::EMFILE] {
        let store = TempStore::new();
        let mut volume = history(&store, 2);
        let mut faulty = None;
        let opened = crate::Store::open_over(&store.path(), |dir| Arc::clone(faulty.insert(Faulty::new(dir))) as _);
        let mut group = opened.expect("open").group(&name("host"), &name("default")).expect("group");
        let entry = volume.land(&group, &[vec![(3, 1, Fill::Byte(77))]]);
        let key = entry.key;
        faulty.expect("wrapped").fail(Op::Get, "/checkpoint/", When::After, errno);
        let body = crate::testkit::layers(LayerKind::Point, vec![entry]);
        let error = group.append(body.clone()).expect_err("it could not look");
        assert!(matches!(error, StoreError::Uncertain { .. }), "{error}");
        assert_eq!(error.remedy(), Remedy::Reopen);
        let refused = [
            group.drop_parts(key, 0).expect_err("the record names them"),
            group.append(body).expect_err("the state is behind"),
            group.catch_up().expect_err("the state is behind"),
            group.sweep().expect_err("the state is behind"),
            group.prune(&Policy::without_grid(1, 0)).expect_err("the state is behind"),
        ];
        assert!(refused.iter().all(|error| error.remedy() == Remedy::Reopen), "{refused:?}");
        drop(group);
        let group = store.group();
        assert!(group.state().layer(&key).is_some(), "the record was there");
        drop(group);
        assert_eq!(found(&store), []);
    }
}

/// What the state knows is not asked of a record.
#[test]
fn what_a_layer_touched_is_known_without_its_record() {
    let store = TempStore::new();
    let volume = history(&store, span());
    let slot = Slot(3);
    let before = store.group().touched(slot, volume.id()).expect("whole");
    assert!(!before.is_empty());
    cut(&object_path(&store, &names().record(slot)));
    assert_eq!(store.group().touched(slot, volume.id()).expect("the state knows"), before);
}

/// Two stores that were one until shortly before their first checkpoint, of as many points after it.
fn forked(after: u64) -> (TempStore, TempStore) {
    let store = TempStore::new();
    let volume = history(&store, span() - 3);
    let copy = TempStore::new();
    fs::remove_dir_all(copy.path()).expect("remove");
    copy_dir(&store.path(), &copy.path());
    for (i, one) in [&store, &copy].into_iter().enumerate() {
        let (mut group, mut volume) = (one.group(), volume.clone());
        volume.publish(&mut group, LayerKind::Point, &[vec![(i as u64, 1, Fill::Byte(200))]]);
        go_on(&mut group, &mut volume, 1 + after);
    }
    (store, copy)
}

fn bring(from: &TempStore, to: &TempStore, number: u64) {
    for object in [names().checkpoint(number), names().checkpoint_state(number)] {
        fs::copy(object_path(from, &object), object_path(to, &object)).expect("copy");
    }
}

#[test]
fn a_checkpoint_of_another_branch_is_not_believed() {
    // The first; the newest of two; all.
    for (brought, after) in [(&[0][..], 0), (&[0], 3), (&[1], span()), (&[0, 1], span() + 3)] {
        let (store, copy) = forked(after);
        let before = store.group().state().clone();
        brought.iter().for_each(|&number| bring(&copy, &store, number));
        let group = store.group();
        assert_eq!(group.torn(), None, "{brought:?} {after}");
        assert_eq!(group.state(), &before);
        assert_eq!(group.repair_plan().expect("plan"), None, "nothing is to be given up");
        drop(group);
        let wrong = found(&store);
        assert!(wrong.contains(&(Severity::Error, Problem::Checkpoint)), "{wrong:?}");
        assert!(wrong.iter().all(|(_, problem)| *problem == Problem::Checkpoint), "{wrong:?}");
    }
}

/// Its own records say too little to tell; the ones after it do.
#[test]
fn nothing_is_voided_for_a_checkpoint_of_another_branch_beside_a_lost_record() {
    let (store, copy) = forked(3);
    bring(&copy, &store, 0);
    for damage in [cut as fn(&Path), remove] {
        damage(&object_path(&store, &names().record(Slot(span() - 1))));
        let mut group = store.group();
        let torn = group.torn().expect("a record is lost").clone();
        assert_eq!((torn.slot, torn.checkpoint.as_deref()), (Slot(span() - 1), Some(names().checkpoint(0).as_str())));
        assert!(matches!(group.repair_torn(), Err(StoreError::LedgerTorn { .. })), "nothing is given up");
        assert_eq!(store.files(&format!("{FOLDER}/ledger")).iter().filter(|file| file.ends_with(".void")).count(), 0);
    }
}

/// What a crash before the root left, or what rotted there since.
#[test]
fn a_state_without_its_root_is_nobodys() {
    for (lost, content) in [(1, b"something".to_vec()), (0, vec![0; 100_000])] {
        let store = TempStore::new();
        history(&store, 2 * span());
        for number in lost..2 {
            remove(&object_path(&store, &names().checkpoint(number)));
            fs::write(object_path(&store, &names().checkpoint_state(number)), &content).expect("write");
        }
        drop(store.group());
        assert_eq!(list(&*backend(&store), &names()).expect("list").len(), 2);
        assert_eq!(found(&store), []);
    }
}

/// A root whose state the writer deleted is passed over where a newer one serves; if none does, the records are there.
#[test]
fn old_roots_without_their_states_cost_nothing() {
    let store = TempStore::new();
    history(&store, 3 * span());
    let before = store.group().state().clone();
    assert_eq!(both_ways(&store).0.torn, None);
    for number in [1, 2] {
        flip(&object_path(&store, &names().checkpoint_state(number)));
    }
    let group = store.group();
    assert_eq!((group.torn(), group.state()), (None, &before));
    drop(group);
    let wrong = found(&store);
    assert_eq!(wrong, [(Severity::Warning, Problem::Checkpoint); 2]);
    for number in [1, 2] {
        remove(&object_path(&store, &names().checkpoint(number)));
        remove(&object_path(&store, &names().checkpoint_state(number)));
    }
    drop(store.group());
    assert_eq!(found(&store), [], "as `store check` says");
}

#[test]
fn a_stray_file_that_looks_like_a_checkpoint_closes_nothing() {
    for stray in [2, 1000, u64::MAX] {
        for points in [2, span()] {
            let store = TempStore::new();
            let mut volume = history(&store, points);
            let object = object_path(&store, &names().checkpoint(stray + u64::from(stray < u64::MAX)));
            fs::create_dir_all(object.parent().expect("a folder")).expect("mkdir");
            fs::write(&object, "what is this?").expect("write");
            let mut group = store.group();
            assert_eq!(group.torn(), None);
            go_on(&mut group, &mut volume, 1);
            drop(group);
            assert_eq!(found(&store), [(Severity::Warning, Problem::Foreign)]);
        }
    }
}
