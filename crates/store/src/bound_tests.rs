//! What readers come to by bound runs is what the ledger says, whatever lies in the place of one.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use farside_ledger::{LayerKind, State};
use farside_region::mutation::tell;

use super::*;
use crate::backend::DirBackend;
use crate::backend::counting::{Counting, Request, Sort};
use crate::backend::faulty::{Faulty, Op, When};
use crate::check::{Problem, Severity, check};
use crate::checkpoint::SPAN;
use crate::checkpoint::tests::{names, object_path};
use crate::group::{Dated, GroupStore, Repair};
use crate::head;
use crate::replay::{replay, replay_for_reading};
use crate::testkit::{Fill, Runs, TempStore, TestVolume, layers};
use crate::{Store, StoreReader};

fn one(i: u64) -> Runs {
    vec![(i % 16, 1, Fill::Byte(i as u8))]
}

fn go_on(group: &mut GroupStore, volume: &mut TestVolume, records: u64) {
    for i in 0..records {
        volume.publish(group, LayerKind::Point, &[one(i)]);
    }
}

/// So many records: a claim, a base and points.
fn history(store: &TempStore, records: u64) -> (GroupStore, TestVolume) {
    let (mut group, mut volume) = (store.group(), TestVolume::new("v", 16));
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    go_on(&mut group, &mut volume, records - 2);
    (group, volume)
}

fn run_path(store: &TempStore, first: u64) -> PathBuf {
    object_path(store, &names().bound_run(Slot(first)))
}

fn bound_of(store: &TempStore) -> Vec<u64> {
    let files = store.files("groups/host/default/ledger");
    let mut firsts: Vec<u64> = files
        .iter()
        .filter_map(|file| file.rsplit('/').next()?.strip_suffix(".run"))
        .map(|first| first.parse().expect("a slot"))
        .collect();
    firsts.sort_unstable();
    firsts
}

/// What readers of a directory and of a bucket have, held against what the records say one by one. How many objects of the ledger each
/// of the two has read.
fn all_alike(store: &TempStore) -> (State, u32, u32) {
    let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let group = farside_ledger::group_id(&names().source, &names().group);
    let records = replay(&*counting, &names(), group, |_| {}).expect("replay");
    let (listed, by_list) = counting.during(|| replay_for_reading(&*counting, &names(), group).expect("replay"));
    let (found, by_search) = counting.during(|| head::replay(&*counting, &names(), group).expect("replay"));
    for (read, how) in [(&listed, "listed"), (&found, "searched")] {
        assert_eq!(read.image.state(), records.image.state(), "L6: who {how} believes what the ledger does not say");
        assert_eq!(read.image.parts().to_checkpoint(), records.image.parts().to_checkpoint(), "{how}");
        assert_eq!(read.torn, records.torn, "{how}");
    }
    let read =
        |counts: crate::backend::counting::Counts| counts.requests.get(&(Request::Get, Sort::Ledger)).copied().unwrap_or(0);
    (records.image.state().clone(), read(by_list), read(by_search))
}

fn warnings(store: &TempStore) -> Vec<String> {
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
    let is_ours = |f: &crate::Finding| (f.severity, f.problem) == (Severity::Warning, Problem::Checkpoint);
    assert!(report.findings.iter().all(is_ours), "{:?}", report.findings);
    report.findings.into_iter().filter_map(|f| f.object).collect()
}

#[test]
fn a_full_run_is_bound_and_read_as_one() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 63);
    assert_eq!(bound_of(&store), [] as [u64; 0]);
    go_on(&mut group, &mut volume, 1);
    assert_eq!(bound_of(&store), [0]);
    // Nothing follows it: the last record confirms it.
    let (state, by_list, _) = all_alike(&store);
    assert_eq!((&state, by_list), (group.state(), 2));
    go_on(&mut group, &mut volume, 130);
    assert_eq!(bound_of(&store), [0, 64, 128]);
    let (state, by_list, _) = all_alike(&store);
    assert_eq!((&state, by_list), (group.state(), 3 + 2));
    assert_eq!(warnings(&store), [] as [String; 0]);
    // A restart within a run knows what was before it.
    drop(group);
    let mut group = store.group();
    go_on(&mut group, &mut volume, 64);
    assert_eq!(bound_of(&store), [0, 64, 128, 192]);
    all_alike(&store);
}

#[test]
fn batches_are_bound_by_their_records() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 10);
    for points in [5, 40, 9, 3, 20, 44, 6] {
        let points = points.min(group.room());
        let entries: Vec<Dated> = (0..points)
            .map(|i| Dated { body: layers(LayerKind::Point, vec![volume.land(&group, &[one(i)])]), ago: Duration::ZERO })
            .collect();
        group.append_all(entries).expect("appended");
        // The last slot of a run may lie in a batch, and nothing may follow.
        assert_eq!(&all_alike(&store).0, group.state());
    }
    assert_eq!(bound_of(&store), [0, 64]);
    assert!(!object_path(&store, &names().record(Slot(127))).exists(), "it lies in a batch");
}

/// Every part of a run: what is wrong there is met before anything of it counts.
#[test]
fn a_run_that_is_not_what_the_ledger_says_is_read_record_by_record() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (group, _) = history(&store, 150);
    let other_store = TempStore::new();
    let (mut other, _) = history(&other_store, 64);
    let mut foreign = TestVolume::new("w", 16);
    foreign.claim(&mut other);
    let state = group.state().clone();
    drop(group);
    let (path, whole) = (run_path(&store, 64), fs::read(run_path(&store, 64)).expect("bound"));
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole[..whole.len() - 32].to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        let digest = blake3::hash(&changed);
        [&changed[..], digest.as_bytes()].concat()
    };
    let flipped = |at: usize| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    };
    let first_record = 16 + 4 * 64;
    let of_a_batch = {
        let records: Vec<Encoded> = decode(&Ok(whole.clone().into())).expect("whole")[..63]
            .iter()
            .map(|(record, _)| record.encode().expect("as it was"))
            .collect();
        encode_object(Slot(64), &records).expect("a batch")
    };
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), Vec::new()),
        ("cut off".into(), whole[..whole.len() - 1].to_vec()),
        ("half".into(), whole[..whole.len() / 2].to_vec()),
        ("longer".into(), [&whole[..], &[0]].concat()),
        ("a newer batch".into(), with(8, &2_u16.to_le_bytes())),
        ("flags".into(), with(12, &1_u32.to_le_bytes())),
        ("a newer record".into(), with(first_record + 8, &9_u16.to_le_bytes())),
        ("the wrong count".into(), with(10, &63_u16.to_le_bytes())),
        ("another length".into(), with(16, &7_u32.to_le_bytes())),
        ("the run before it".into(), fs::read(run_path(&store, 0)).expect("bound")),
        ("another store's".into(), fs::read(run_path(&other_store, 0)).expect("bound")),
        ("all but one".into(), of_a_batch),
        ("one record".into(), fs::read(object_path(&store, &names().record(Slot(64)))).expect("a record")),
    ];
    // Magic, version, count, flags, lengths, a record's head and its body, the last digest.
    for at in
        [0, 8, 10, 12, 16, 16 + 4 * 63, first_record, first_record + 50, first_record + 140, whole.len() - 33, whole.len() - 1]
    {
        cases.push((format!("flipped at {at}"), flipped(at)));
    }
    for (what, bytes) in cases {
        fs::write(&path, bytes).expect("write");
        let (found, by_list, by_search) = all_alike(&store);
        assert_eq!(found, state, "{what}");
        assert!(by_list > 64 && by_search > 64, "{what}: it was believed");
        assert_eq!(warnings(&store), [names().bound_run(Slot(64)).to_string()], "{what}");
    }
    fs::remove_file(&path).expect("it was there");
    let (found, by_list, _) = all_alike(&store);
    // The other one is read as before.
    assert_eq!((found, by_list), (state, 1 + 64 + 22));
    assert_eq!(warnings(&store), [] as [String; 0]);
    // And is bound again by the next start.
    drop(store.group());
    assert_eq!(fs::read(&path).expect("bound"), whole);
}

/// The ledger lost its newest records, and goes on from before them: what was bound of the lost ones is whole, follows by digest, and
/// counts for nothing, neither before nor after the slots are filled anew.
#[test]
fn l6_what_is_bound_of_lost_records_does_not_bring_them_back() {
    let words = "believes what the ledger does not say";
    tell(
        &[("L6 a bound run counts without a record that confirms it", words)],
        what_is_bound_of_lost_records_does_not_bring_them_back,
    );
}

fn what_is_bound_of_lost_records_does_not_bring_them_back() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (group, mut volume) = history(&store, 200);
    drop(group);
    (100..200).for_each(|slot| fs::remove_file(object_path(&store, &names().record(Slot(slot)))).expect("it was there"));
    assert_eq!(bound_of(&store), [0, 64, 128]);
    let (state, ..) = all_alike(&store);
    assert_eq!(state.next_slot(), Slot(100));
    let mut group = store.group();
    volume.claim(&mut group);
    volume.base(&mut group, 9);
    for _ in 0..5 {
        go_on(&mut group, &mut volume, 21);
        assert_eq!(&all_alike(&store).0, group.state());
    }
    assert!(group.state().next_slot() > Slot(200));
    let warnings = warnings(&store);
    assert!(warnings.contains(&names().bound_run(Slot(64)).to_string()), "{warnings:?}");
}

/// A record of a bound run is torn and given up with all after it: what the run says of them does not count any more.
#[test]
fn records_that_a_repair_gave_up_are_not_read_in_a_bound_run() {
    SPAN.set(4096);
    for (torn, records) in [(70, 128), (70, 150), (127, 128), (63, 64)] {
        let store = TempStore::new();
        let (group, mut volume) = history(&store, records);
        drop(group);
        let record = object_path(&store, &names().record(Slot(torn)));
        fs::write(&record, b"not a record any more").expect("write");
        let mut group = store.group();
        assert_eq!(group.torn().expect("it is torn").slot, Slot(torn));
        assert!(matches!(group.repair_plan().expect("a plan"), Some(Repair::Void { first, .. }) if first == Slot(torn)));
        group.repair_torn().expect("repaired");
        assert_eq!(&all_alike(&store).0, group.state(), "{torn} of {records}");
        assert!(bound_of(&store).iter().all(|first| first + 64 <= torn), "nobody is to read it any more");
        let reader = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
        assert!(!reader.state().points().contains_key(&Slot(torn)));
        volume.claim(&mut group);
        volume.base(&mut group, 3);
        go_on(&mut group, &mut volume, 70);
        assert_eq!(&all_alike(&store).0, group.state(), "{torn} of {records}, and on");
    }
}

/// The record is published, and its writer fails or dies before the run is bound, or the answer is lost.
#[test]
fn a_run_that_could_not_be_bound_costs_no_publication() {
    SPAN.set(4096);
    for when in [When::Before, When::After] {
        let store = TempStore::new();
        let faulty = Faulty::new(Arc::new(DirBackend::open(&store.path()).expect("open")));
        let open = || {
            let opened = Store::open_bucket(Arc::clone(&faulty) as _, &store.dir.path().join("staging")).expect("open");
            opened.group(&names().source, &names().group).expect("group")
        };
        let (mut group, mut volume) = (open(), TestVolume::new("v", 16));
        volume.claim(&mut group);
        volume.base(&mut group, 1);
        go_on(&mut group, &mut volume, 61);
        faulty.fail(Op::Create, "0.run", when, libc::EIO);
        go_on(&mut group, &mut volume, 1);
        assert_eq!(bound_of(&store).is_empty(), when == When::Before);
        assert_eq!(&all_alike(&store).0, group.state());
        go_on(&mut group, &mut volume, 66);
        // Runs after one that is missing are read as such all the same.
        let (state, by_list, _) = all_alike(&store);
        assert_eq!(&state, group.state());
        assert_eq!(by_list, if when == When::Before { 64 + 1 + 2 } else { 2 + 2 });
        drop(group);
        assert_eq!(open().state(), &state);
        assert_eq!(bound_of(&store), [0, 64]);
    }
}

#[test]
fn runs_go_when_two_checkpoints_cover_them() {
    SPAN.set(128);
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 128);
    assert_eq!(bound_of(&store), [0, 64]);
    go_on(&mut group, &mut volume, 100);
    // Who begins at slot 0, since the newest state is damaged, reads them.
    assert_eq!(bound_of(&store), [0, 64, 128]);
    go_on(&mut group, &mut volume, 30);
    assert_eq!(bound_of(&store), [128, 192]);
    let (state, by_list, _) = all_alike(&store);
    assert_eq!((&state, by_list), (group.state(), 1 + 2));
    assert_eq!(warnings(&store), [] as [String; 0]);
}

/// A receiver of another store's copy, or one that slept: runs that it finds bound are not its own, and it writes over none.
#[test]
fn a_writer_leaves_what_is_there_and_goes_on() {
    SPAN.set(4096);
    let store = TempStore::new();
    let (mut group, mut volume) = history(&store, 60);
    fs::write(run_path(&store, 0), b"somebody else's").expect("write");
    go_on(&mut group, &mut volume, 10);
    assert_eq!(fs::read(run_path(&store, 0)).expect("it is there"), b"somebody else's");
    assert_eq!(&all_alike(&store).0, group.state());
    assert_eq!(warnings(&store), [names().bound_run(Slot(0)).to_string()]);
}
