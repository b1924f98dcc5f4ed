//! Records that objects repeat: put by whoever appends, and no more than a reader's way to what lies in the ledger.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use farside_ledger::{Body, Pin, Record, Unpin, decode_object, decode_repeats, encode_object, encode_repeating};
use farside_region::mutation;

use super::*;
use crate::backend::DirBackend;
use crate::backend::counting::{Counting, Counts, Request, Sort};
use crate::backend::faulty::{Faulty, Op, When};
use crate::check::{Problem, check};
use crate::checkpoint::SPAN;
use crate::checkpoint::tests::{names, object_path};
use crate::group::{Dated, GroupStore, Known, Repair};
use crate::reader::{GroupReader, StoreReader};
use crate::replay::{Slots, replay_to_open};
use crate::store::Store;
use crate::testkit::{TempStore, TestVolume, name};
use crate::{Attempt, Severity, StoreError};

/// A claim and a point: two slots of a ledger without a checkpoint.
pub(crate) fn begun(group: &mut GroupStore) -> TestVolume {
    SPAN.set(4096);
    let mut volume = TestVolume::new("v", 16);
    volume.claim(group);
    volume.base(group, 1);
    volume
}

/// A pin of that point, or the end of the one before.
fn said(slot: Slot) -> Body {
    match slot.0 % 2 {
        0 => Body::Pin(Pin { point: Slot(1), reason: "kept".into() }),
        _ => Body::Unpin(Unpin { pin: Slot(slot.0 - 1) }),
    }
}

/// Goes on up to a slot, with so many records in each object as fit.
pub(crate) fn go_on(group: &mut GroupStore, to: u64, together: u64) {
    while group.state().next_slot().0 < to {
        let next = group.state().next_slot().0;
        let count = together.min(group.room()).min(to - next);
        let said = (next..next + count).map(|slot| Dated { body: said(Slot(slot)), ago: Duration::ZERO });
        group.append_all(said.collect()).expect("appended");
    }
}

/// Bytes of an object that were searched for a flipped bit wherever they lie.
const SEARCHED: usize = 16 << 10;

fn as_a_bucket(store: &TempStore) -> Arc<DirBackend> {
    Arc::new(DirBackend::open(&store.path()).expect("open"))
}

/// The group, opened by one more process.
fn group_in<B: Backend + 'static>(store: &TempStore, bucket: &Arc<B>) -> GroupStore {
    let opened = Store::open_bucket(Arc::clone(bucket) as _, &store.dir.path().join("staging")).expect("open");
    opened.group(&name("host"), &name("default")).expect("group")
}

/// What each object of a ledger repeats, by its first slot.
fn repeated(store: &TempStore) -> Vec<(u64, Option<(u64, u64)>)> {
    let backend = DirBackend::open(&store.path()).expect("open");
    let slots = Slots::list(&backend, &names()).expect("listed");
    let of = |slot: &u64| {
        let object = fs::read(path_of(store, *slot)).expect("read");
        let repeated = decode_repeats(&object).expect("whole");
        let ends = repeated.first().zip(repeated.last());
        (*slot, ends.map(|(first, last)| (first.record.slot.0, last.record.slot.0 + 1)))
    };
    slots.records.iter().map(of).collect()
}

fn assert_all_repeat(store: &TempStore) {
    for (slot, repeated) in repeated(store) {
        let own = decode_object(&object(store, slot)).expect("whole").len() as u64;
        let from = repeats_from(Slot(slot), own).0;
        assert_eq!(repeated, (from < slot).then_some((from, slot)), "slot {slot}");
    }
}

#[test]
fn every_object_repeats_what_its_slot_says_whoever_puts_it() {
    for together in [1, 3, 64] {
        let store = TempStore::new();
        let mut group = store.group();
        begun(&mut group);
        go_on(&mut group, 61, together);
        // Another process: what its first object repeats it reads.
        drop(group);
        let mut group = store.group();
        go_on(&mut group, 600, together);
        drop(group);
        let mut group = store.group();
        go_on(&mut group, 640, together);
        drop(group);
        go_on(&mut store.group(), 1030, together);
        assert_all_repeat(&store);
        let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("checked");
        assert_eq!((report.worst(), report.records), (None, 1030), "{:?}", report.findings);
    }
}

/// What others put is repeated as what one put oneself.
#[test]
fn what_was_caught_up_with_is_repeated() {
    let store = TempStore::new();
    let counting = Counting::bucket(as_a_bucket(&store));
    let mut group = store.group();
    begun(&mut group);
    let mut other = group_in(&store, &counting);
    go_on(&mut group, 20, 1);
    other.catch_up().expect("caught up");
    let (_, counts) = counting.during(|| go_on(&mut other, 21, 1));
    assert_eq!(counts.requests.get(&(Request::Get, Sort::Ledger)), None, "{counts:?}");
    assert_all_repeat(&store);
}

/// A read for each run, one more for each eighth of them, and one for who knows nothing of the run yet.
#[test]
fn what_is_repeated_costs_a_read_in_the_first_slot_of_a_run_and_no_request_that_writes() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 500, 1);
    drop(group);
    let counting = Counting::bucket(as_a_bucket(&store));
    let mut group = group_in(&store, &counting);
    for (to, reads) in [(501, 2), (502, 0), (512, 0), (513, 1), (576, 0), (577, 0), (641, 1), (704, 0), (1024, 5), (1025, 2)] {
        let puts = u32::try_from(to - group.state().next_slot().0).expect("few");
        let (_, counts) = counting.during(|| go_on(&mut group, to, 1));
        let of = |request| counts.requests.get(&(request, Sort::Ledger)).copied().unwrap_or_default();
        assert_eq!((of(Request::Get), of(Request::Put), of(Request::List)), (reads, puts, 0), "up to {to}");
    }
    assert_all_repeat(&store);
}

#[test]
fn what_cannot_be_read_is_not_repeated_and_no_publication_fails_for_it() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 70, 1);
    drop(group);
    let faulty = Faulty::new(as_a_bucket(&store));
    let mut group = group_in(&store, &faulty);
    faulty.fail(Op::Get, "/ledger/0/69", When::Before, libc::EIO);
    go_on(&mut group, 71, 1);
    assert_eq!(repeated(&store)[70], (70, None));
    go_on(&mut group, 72, 1);
    assert_eq!(repeated(&store)[71], (71, Some((70, 71))));
    // What one object does not repeat rightly, others do.
    go_on(&mut group, 128, 1);
    let path = path_of(&store, 64);
    let mut bytes = fs::read(&path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&path, bytes).expect("write");
    go_on(&mut group, 129, 1);
    assert_eq!(repeated_of(&store, 128), Some((0, 128)));
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("checked");
    let found: Vec<_> = report.findings.iter().map(|f| (f.severity, f.problem)).collect();
    assert_eq!(found, [(Severity::Warning, Problem::Repeats)], "{:?}", report.findings);
    assert!(report.findings[0].text.contains("ledger/0/64"));
}

fn repeated_of(store: &TempStore, slot: u64) -> Option<(u64, u64)> {
    let object = fs::read(path_of(store, slot)).expect("read");
    let repeated = decode_repeats(&object).expect("whole");
    Some((repeated.first()?.record.slot.0, repeated.last()?.record.slot.0 + 1))
}

/// The answer was lost, and what is repeated rotted since: the record is ours, and is not said again.
#[test]
fn an_object_is_known_by_its_own_records() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 5, 1);
    let draft = |nonce| crate::Draft {
        body: said(Slot(5)),
        nonce,
        stamp: farside_ledger::Stamp { writer: [1; 16], mono_ms: 0, wall_ms: 0 },
    };
    let before = Repeats::default().before(&*group.backend(), &names(), group.state(), 1);
    assert_eq!(before.len(), 5);
    let attempt = Attempt::repeating(group.state(), vec![draft([7; 16])], &before).expect("small");
    let mut found = attempt.bytes.clone();
    *found.last_mut().expect("not empty") ^= 1;
    assert_eq!(attempt.find(&found), Ok(crate::Found::Ours));
    let alone = Attempt::of_all(group.state(), vec![draft([7; 16])]).expect("small");
    assert_eq!(attempt.find(&alone.bytes), Ok(crate::Found::Ours), "with less behind it");
    let other = Attempt::repeating(group.state(), vec![draft([8; 16])], &before).expect("small");
    assert_eq!(attempt.find(&other.bytes), decode_object(&other.bytes).map(crate::Found::Theirs));
}

/// Who opens a point in a bucket, and what it asks for.
pub(crate) fn opened(store: &TempStore) -> (GroupReader, Counts) {
    let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let reader = StoreReader::open_bucket(Arc::clone(&counting) as _).expect("open");
    counting.during(|| reader.group_to_open(&names()).expect("group"))
}

/// And in the directory.
fn opened_in_place(store: &TempStore) -> GroupReader {
    StoreReader::open(&store.path()).expect("open").group_to_open(&names()).expect("group")
}

pub(crate) fn read_each(store: &TempStore) -> GroupReader {
    StoreReader::open(&store.path()).expect("open").group(&names()).expect("group")
}

#[test]
fn who_opens_a_point_reads_four_objects_at_most() {
    for together in [1, 5, 64] {
        let store = TempStore::new();
        let mut group = store.group();
        begun(&mut group);
        for to in [2, 3, 8, 9, 63, 64, 65, 71, 500, 512, 585, 1170, 1171] {
            go_on(&mut group, to, together);
            let counting = Counting::bucket(as_a_bucket(&store));
            let replay = || replay_to_open(&*counting, &names(), group.state().group()).expect("replayed");
            let (found, counts) = counting.during(replay);
            assert_eq!((found.image.state(), &found.torn), (group.state(), &None), "{to} by {together}");
            let objects = counts.requests[&(Request::Get, Sort::Ledger)];
            assert!(objects <= 4, "{to} by {together}: {counts:?}");
            // Who lists nothing asks for more, and for no more of a long ledger.
            let (found, counts) = opened(&store);
            assert_eq!((found.state(), found.torn()), (group.state(), None), "{to} by {together}");
            assert!(
                counts.of(Request::List) == 0 && counts.total() <= 130 && counts.chain <= 9,
                "{to} by {together}: {counts:?}"
            );
        }
    }
}

/// Whatever is wrong with any object: who opens a point has the records that there are, or hears of what is torn as everybody does.
#[test]
fn whatever_is_damaged_who_opens_a_point_has_what_is_in_the_ledger() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 67, 1);
    go_on(&mut group, 75, 4);
    let whole = group.state().clone();
    drop(group);
    let slots: Vec<u64> = repeated(&store).into_iter().map(|(slot, _)| slot).collect();
    let other = Record { nonce: [77; 16], ..decode_object(&object(&store, 65)).expect("whole")[0].0.clone() };
    let other = other.encode().expect("small").bytes;
    let (mut whole_all_the_same, mut torn) = (0, 0);
    for &slot in &slots {
        let path = path_of(&store, slot);
        let good = fs::read(&path).expect("read");
        let own = decode_object(&good).expect("whole");
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            Some(bad)
        };
        let alone: Vec<_> = own.iter().map(|(record, _)| record.encode().expect("small")).collect();
        let alone = encode_object(Slot(slot), &alone).expect("small");
        // Its own bytes, what it repeats, all of it; as an earlier Farside wrote it; of somebody who lost the slot.
        for bad in [flipped(60), flipped(good.len() - 40), None, Some(alone), (slot == 65).then(|| other.clone())] {
            match &bad {
                Some(bad) => fs::write(&path, bad).expect("write"),
                None => fs::remove_file(&path).expect("remove"),
            }
            let each = read_each(&store);
            for found in [opened(&store).0, opened_in_place(&store)] {
                match found.torn() {
                    None if found.state() == &whole => whole_all_the_same += u64::from(each.torn().is_some()),
                    // The newest is lost: nobody can tell.
                    None if slot == slots[slots.len() - 1] && bad.is_none() => assert_eq!(found.state(), each.state()),
                    None => panic!("slot {slot}: a state that nobody had"),
                    Some(_) => {
                        torn += 1;
                        assert_eq!((found.torn(), found.state()), (each.torn(), each.state()), "slot {slot}");
                    }
                }
            }
            fs::write(&path, &good).expect("write");
        }
    }
    assert!(whole_all_the_same > 200 && torn > 0, "{whole_all_the_same} {torn}");
}

pub(crate) fn path_of(store: &TempStore, slot: u64) -> std::path::PathBuf {
    object_path(store, &names().record(Slot(slot)))
}

fn object(store: &TempStore, slot: u64) -> Vec<u8> {
    fs::read(path_of(store, slot)).expect("read")
}

/// Two histories of one store: what an object of the one repeats of the other, however whole it is, nobody takes for what is in the ledger.
#[test]
fn l6_what_is_repeated_of_another_history_is_not_believed() {
    mutation::tell(&[("a repeated record counts without the chain", "L6: of another history")], || {
        let store = TempStore::new();
        let mut group = store.group();
        begun(&mut group);
        go_on(&mut group, 6, 1);
        let whole = group.state().clone();
        drop(group);
        let records: Vec<_> = (0..6).map(|slot| decode_object(&object(&store, slot)).expect("whole").remove(0).0).collect();
        // A copy that went on by itself from slot 4.
        let other = Record { body: Body::Pin(Pin { point: Slot(1), reason: "of the copy".into() }), ..records[4].clone() };
        let mut before: Vec<Vec<u8>> = records[..4].iter().map(|record| record.encode().expect("small").bytes).collect();
        before.push(other.encode().expect("small").bytes);
        let forged = encode_repeating(Slot(5), &[records[5].encode().expect("small")], &before).expect("small");
        fs::write(path_of(&store, 5), forged).expect("write");
        for found in [opened(&store).0, opened_in_place(&store)] {
            assert!(found.state() == &whole && found.torn().is_none(), "L6: of another history");
        }
    });
}

/// A store that was copied and went on as two: an object of the one that comes to lie in the other leads to what both have, and yet to a history
/// that the other's own objects contradict. Who lists does not read these, and who looks for damage does.
#[test]
fn l6_an_object_of_another_history_hides_no_record() {
    let store = TempStore::new();
    begun(&mut store.group());
    go_on(&mut store.group(), 9, 1);
    go_on(&mut store.group(), 16, 1);
    let of_the_copy = object(&store, 15);
    (9..16).for_each(|slot| fs::remove_file(path_of(&store, slot)).expect("it was there"));
    // Alone, and within the slots of a batch.
    for (to, together) in [(11, 1), (16, 7)] {
        go_on(&mut store.group(), to, together);
        let head = store.group().state().next_slot();
        fs::write(path_of(&store, 15), &of_the_copy).expect("write");
        let each = read_each(&store);
        assert_eq!((each.torn().map(|torn| torn.slot), each.state().next_slot()), ((to == 11).then_some(head), head));
        let found = opened(&store).0;
        assert_eq!((found.state(), found.torn()), (each.state(), each.torn()), "L6: of another history");
        (9..16).for_each(|slot| drop(fs::remove_file(path_of(&store, slot))));
    }
}

/// Where records were replaced, what lies beside them counts, and not what others say of them.
#[test]
fn who_opens_a_point_reads_each_object_where_some_were_replaced() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 20, 1);
    drop(group);
    (17..20).for_each(|slot| fs::write(path_of(&store, slot), "torn").expect("write"));
    let mut group = store.group();
    group.repair_torn().expect("voided");
    go_on(&mut group, 30, 1);
    let state = group.state().clone();
    drop(group);
    for found in [opened(&store).0, opened_in_place(&store)] {
        assert_eq!((found.state(), found.torn()), (&state, None));
    }
    // What was given up came back, and those that follow say nothing of it.
    fs::write(path_of(&store, 18), "torn!").expect("write");
    let each = read_each(&store);
    assert_eq!(each.torn().map(|torn| torn.slot), Some(Slot(18)));
    for found in [opened(&store).0, opened_in_place(&store)] {
        assert_eq!((found.state(), found.torn()), (each.state(), each.torn()));
    }
}

/// A store that is full: what is repeated may be more than the room that is kept for prunes, or that is left.
#[test]
fn a_record_that_finds_no_room_repeats_nothing() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = begun(&mut group);
    volume.base(&mut group, 2);
    drop(group);
    let faulty = Faulty::new(as_a_bucket(&store));
    let mut group = group_in(&store, &faulty);
    faulty.fail(Op::Create, "/ledger/0/3", When::Before, libc::ENOSPC);
    assert_eq!(group.prune(&farside_ledger::Policy::without_grid(1, 0)).expect("pruned"), 1);
    assert_eq!((repeated_of(&store, 3), store.group().state()), (None, group.state()));
    // It is what the next one repeats.
    volume.claim(&mut group);
    assert_eq!(repeated_of(&store, 4), Some((0, 4)));
    faulty.fail(Op::Create, "/ledger/0/5", When::Before, libc::ENOSPC);
    volume.claim(&mut group);
    assert_eq!(
        (repeated_of(&store, 5), store.group().state()),
        (None, group.state()),
        "a claim needs no more room than it takes"
    );
}

/// What a torn record said is known as long as a later object repeats it: nothing is given up. Of the newest nobody repeats anything.
#[test]
fn a_record_that_a_later_one_repeats_is_mended_and_nothing_is_lost() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 12, 1);
    go_on(&mut group, 20, 4);
    go_on(&mut group, 66, 1);
    let whole = group.state().clone();
    drop(group);
    let slots: Vec<u64> = repeated(&store).into_iter().map(|(slot, _)| slot).collect();
    let before = repeated(&store);
    for &slot in &slots {
        let path = path_of(&store, slot);
        let good = fs::read(&path).expect("read");
        for bad in [Some(vec![0; good.len()]), Some(good[..60].to_vec()), None] {
            match &bad {
                Some(bad) => fs::write(&path, bad).expect("write"),
                None => fs::remove_file(&path).expect("remove"),
            }
            let mut group = store.group();
            let plan = group.repair_plan().expect("looked");
            if slot == slots[slots.len() - 1] {
                match bad {
                    // A ledger that ends there says nothing of it.
                    None => assert!(plan.is_none(), "{plan:?}"),
                    Some(_) => assert!(matches!(plan, Some(Repair::Void { .. })), "{plan:?}"),
                }
            } else {
                let Some(Repair::Mend { slot: mended, by: Known::Repeated(by), .. }) = plan else {
                    panic!("{slot}, {bad:?}: {plan:?}")
                };
                assert!(mended == Slot(slot) && by > mended);
                group.repair_torn().expect("mended");
                assert_eq!(group.state(), &whole, "slot {slot}");
            }
            drop(group);
            assert!(slot == slots[slots.len() - 1] || store.group().torn().is_none(), "slot {slot}");
            fs::write(&path, &good).expect("write");
        }
    }
    // As one object, which repeats what it did.
    let first = path_of(&store, 12);
    fs::write(&first, "torn").expect("write");
    store.group().repair_torn().expect("mended");
    assert_eq!(repeated(&store), before);
}

/// Two that lie side by side, where a digit of the slots is carried: the first that repeats the one before comes eight objects later.
#[test]
fn two_records_side_by_side_are_mended_one_after_the_other() {
    // At the end, the newest is a batch, and only its last slot asks for so much.
    for (first, last) in [(7, None), (63, None), (7, Some((13, 4)))] {
        let store = TempStore::new();
        let mut group = store.group();
        begun(&mut group);
        let (singles, together) = last.unwrap_or((140, 1));
        go_on(&mut group, singles, 1);
        go_on(&mut group, singles + together, together);
        let whole = group.state().clone();
        drop(group);
        let lost = if last.is_some() { first..13 } else { first..first + 2 };
        for slot in lost.clone() {
            fs::write(path_of(&store, slot), "torn").expect("write");
        }
        let mut group = store.group();
        for slot in lost {
            let plan = group.repair_plan().expect("looked").expect("something to do");
            assert!(matches!(&plan, Repair::Mend { slot: s, by: Known::Repeated(_), .. } if s.0 == slot), "{plan:?}");
            group.repair_as(&plan).expect("mended");
        }
        assert_eq!((group.state(), group.torn()), (&whole, None));
    }
}

/// A disk that fails gives a record now, and not in a moment. Who was told that one is mended did not agree that it is given up, and whoever gives up
/// what cannot be read gives up what may come back.
#[test]
fn what_cannot_be_read_is_given_up_by_nobody() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 6, 1);
    let whole = group.state().clone();
    drop(group);
    let (torn, repeating) = (path_of(&store, 4), path_of(&store, 5));
    let good = fs::read(&repeating).expect("read");
    let fails = |at: &std::path::Path| {
        fs::remove_file(at).expect("remove");
        // Our own memory at address 0, read as a file, is an EIO.
        std::os::unix::fs::symlink("/proc/self/mem", at).expect("link");
    };
    fs::write(&torn, "torn").expect("write");
    let faulty = Faulty::new(as_a_bucket(&store));
    let mut group = group_in(&store, &faulty);
    let plan = group.repair_plan().expect("looked").expect("something to do");
    assert!(matches!(plan, Repair::Mend { slot: Slot(4), .. }));
    let fails_now = || (0..2).for_each(|_| faulty.fail(Op::Get, "/ledger/0/5", When::Before, libc::EIO));
    fails_now();
    assert!(matches!(group.repair_as(&plan), Err(StoreError::Unreadable { .. })));
    fails_now();
    assert!(matches!(group.repair_plan(), Err(StoreError::Unreadable { .. })));
    // It is another one by now: what was agreed to is not what would be done.
    fs::remove_file(&repeating).expect("remove");
    assert!(matches!(group.repair_plan().expect("looked"), Some(Repair::Void { .. })));
    assert!(matches!(group.repair_as(&plan), Err(StoreError::LedgerTorn { .. })));
    assert!(!torn.with_extension("void").exists());
    fs::write(&repeating, &good).expect("write");
    // Of one with a bad sector that another repeats it is known what it said.
    fails(&torn);
    group.repair_torn().expect("mended");
    assert_eq!((group.state(), group.torn()), (&whole, None));
    // It comes back by itself, between the question and the answer.
    let good = fs::read(&torn).expect("read");
    fs::write(&torn, "torn").expect("write");
    drop(group);
    let mut group = store.group();
    fs::write(&torn, &good).expect("write");
    assert!(matches!(group.repair_plan().expect("looked"), Some(Repair::Mend { by: Known::PutBack, .. })));
    group.repair_torn().expect("opened again");
    assert_eq!((group.state(), fs::read(&torn).expect("read") == good), (&whole, true));
}

/// Of two copies of a store that went on by themselves, an object of the one lies in the other, and repeats what was in that.
#[test]
fn l6_a_repair_joins_no_two_histories() {
    mutation::tell(&[("a repair joins two histories", "L6: it is another's")], || {
        let store = TempStore::new();
        let mut group = store.group();
        begun(&mut group);
        go_on(&mut group, 9, 1);
        drop(group);
        let record = |slot| decode_object(&object(&store, slot)).expect("whole").remove(0).0;
        let encode = |record: &Record| record.encode().expect("small");
        // The other went on from slot 4. Ours is without what it repeats from slot 5 on.
        let mut others = vec![encode(&record(3))];
        for slot in 4..8 {
            let prev = others.last().expect("one").digest;
            others.push(encode(&Record { prev, nonce: [99; 16], ..record(slot) }));
        }
        for slot in 5..9 {
            fs::write(path_of(&store, slot), encode(&record(slot)).bytes).expect("write");
        }
        let before: Vec<&[u8]> = others.iter().map(|other| &other.bytes[..]).collect();
        let foreign = encode_repeating(Slot(7), &others[4..5], &before[..4]).expect("small");
        assert_eq!(decode_repeats(&foreign).expect("it leads up").len(), 4);
        fs::write(path_of(&store, 7), foreign).expect("write");
        fs::write(path_of(&store, 4), "torn").expect("write");
        let mut group = store.group();
        let plan = group.repair_plan().expect("looked");
        assert!(matches!(plan, Some(Repair::Void { first: Slot(4), .. })), "L6: it is another's: {plan:?}");
        group.repair_torn().expect("given up");
        assert_eq!(group.state().next_slot(), Slot(9));
    });
}

/// What was given up stays given up, though later records name it by what took its place.
#[test]
fn what_was_voided_is_not_mended_by_what_repeats_its_void() {
    mutation::tell(&[("a repair puts a void in the place of what was given up", "beside its void")], || {
        let store = TempStore::new();
        let mut group = store.group();
        begun(&mut group);
        go_on(&mut group, 5, 1);
        drop(group);
        let file = path_of(&store, 4);
        let good = fs::read(&file).expect("read");
        fs::write(&file, "torn").expect("write");
        store.group().repair_torn().expect("voided");
        go_on(&mut store.group(), 9, 1);
        // Ours repeats no void; another's may.
        let own = decode_object(&object(&store, 5)).expect("whole").remove(0).0.encode().expect("small");
        let void = fs::read(object_path(&store, &names().record_void(Slot(4)))).expect("read");
        let object = encode_repeating(Slot(5), &[own], &[void]).expect("small");
        assert_eq!(decode_repeats(&object).expect("it leads up").len(), 1);
        fs::write(path_of(&store, 5), object).expect("write");
        fs::write(&file, "torn!").expect("write");
        fs::remove_file(object_path(&store, &names().record_void(Slot(4)))).expect("remove");
        let mut group = store.group();
        assert!(matches!(group.repair_plan().expect("looked"), Some(Repair::Void { first: Slot(4), .. })), "beside its void");
        group.repair_torn().expect("voided");
        assert_eq!((fs::read(&file).expect("read"), group.torn()), (b"torn!".to_vec(), None), "beside its void");
        // Nor by a whole one that is put back.
        fs::write(&file, &good).expect("write");
        drop(group);
        let mut group = store.group();
        assert!(matches!(group.repair_plan().expect("looked"), Some(Repair::Void { first: Slot(4), .. })), "beside its void");
        group.repair_torn().expect("voided");
        assert_eq!((fs::read(&file).expect("read") == good, group.torn()), (true, None), "beside its void");
    });
}

/// A bit of what an object says of itself, of the lengths of what it repeats, and of its own records, which come after thousands of those.
#[test]
fn a_flipped_bit_of_a_large_object_is_mended() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 0o7000, 64);
    go_on(&mut group, 0o7100, 64);
    let (whole, last) = (group.state().clone(), 0o7000);
    drop(group);
    let path = path_of(&store, last);
    let good = fs::read(&path).expect("read");
    let own = decode_object(&good).expect("whole").len();
    let repeated = decode_repeats(&good).expect("whole").len();
    let table = 20 + 4 * (own + repeated);
    assert!(own == 64 && repeated == 0o7000 && table + 4000 > SEARCHED, "{own} own, {repeated} repeated");
    for at in [0, 8, 21, table + 4000] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, bad).expect("write");
        let mut group = store.group();
        let plan = group.repair_plan().expect("looked");
        assert!(matches!(plan, Some(Repair::Mend { by: Known::OneBit, .. })), "byte {at}: {plan:?}");
        group.repair_torn().expect("mended");
        assert_eq!((group.state(), fs::read(&path).expect("read") == good), (&whole, true), "byte {at}");
    }
}
