//! Several records in one object: written at once or not at all, found by whoever reads, and never taken for a ledger that lacks some.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use farside_ledger::{Grid, LayerEntry, LayerKind, Policy};
use farside_region::Slot;

use crate::backend::DirBackend;
use crate::backend::counting::{Counting, Request, Sort};
use crate::backend::faulty::{Faulty, Op, When};
use crate::check::{Problem, check};
use crate::checkpoint::tests::{names, object_path};
use crate::checkpoint::{SPAN, span};
use crate::group::{Dated, GroupStore, Repair};
use crate::reader::StoreReader;
use crate::repeats::REPEATING;
use crate::testkit::{Fill, Runs, TempStore, TestVolume, layers};
use crate::{Attempt, Draft, StoreError};

fn one(i: u64) -> Runs {
    vec![(i % 16, 1, Fill::Byte(i as u8))]
}

fn dated(entry: LayerEntry) -> Dated {
    Dated { body: layers(LayerKind::Point, vec![entry]), ago: Duration::ZERO }
}

/// A claim and a first point: two slots.
fn begun(group: &mut GroupStore) -> TestVolume {
    let mut volume = TestVolume::new("v", 16);
    volume.claim(group);
    volume.base(group, 1);
    volume
}

/// So many points in one object.
fn together(group: &mut GroupStore, volume: &mut TestVolume, points: u64) -> Vec<Slot> {
    let said: Vec<Dated> = (0..points).map(|i| dated(volume.land(group, &[one(i + group.state().next_slot().0)]))).collect();
    let appended = group.append_all(said).expect("appended");
    assert!(appended.iter().all(|appended| appended.verdict.is_done()));
    appended.into_iter().map(|appended| appended.position.slot).collect()
}

fn records_of(store: &TempStore) -> Vec<u64> {
    let mut slots: Vec<u64> = store
        .files("groups/host/default/ledger")
        .iter()
        .map(|f| f.rsplit('/').next().expect("a name").parse().expect("a slot"))
        .collect();
    slots.sort_unstable();
    slots
}

/// Everybody who reads has the same: one who lists, one of a bucket, and the receiver's next start.
fn all_alike(store: &TempStore, group: &GroupStore) {
    let state = group.state();
    let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let reader = StoreReader::open_bucket(Arc::clone(&counting) as _).expect("open");
    let (found, counts) = counting.during(|| reader.group(&names()).expect("group"));
    assert_eq!((found.state(), found.torn()), (state, None), "a reader of a bucket");
    assert_eq!(counts.of(Request::List), 0, "found without a listing");
    let listed = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
    assert_eq!((listed.state(), listed.torn()), (state, None), "a reader who lists");
}

#[test]
fn records_that_are_appended_together_are_one_object_and_each_has_its_slot() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = begun(&mut group);
    assert_eq!(together(&mut group, &mut volume, 5), (2..7).map(Slot).collect::<Vec<_>>());
    volume.publish(&mut group, LayerKind::Point, &[one(9)]);
    assert_eq!(records_of(&store), [0, 1, 2, 7]);
    all_alike(&store, &group);
    let state = group.state().clone();
    // Each point is read as what it was.
    for point in state.points().keys() {
        assert!(group.point_reader(*point, volume.id()).is_ok());
    }
    drop(group);
    let mut group = store.group();
    assert_eq!(group.state(), &state);
    assert_eq!(group.prune(&Policy::without_grid(2, 0)).expect("pruned"), 5);
    drop(group);
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("checked");
    assert!(report.worst().is_none(), "{:?}", report.findings);
    assert_eq!(report.records, 9);
}

/// A batch lies within a run of slots, and never leaves what a checkpoint covers.
#[test]
fn ledgers_of_batches_of_any_size_are_found_by_everybody() {
    for size in [2, 3, 5, 8] {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volume = begun(&mut group);
        while group.state().next_slot().0 < 10 * span() {
            let points = size.min(group.room());
            together(&mut group, &mut volume, points);
            all_alike(&store, &group);
        }
        let state = group.state().clone();
        drop(group);
        assert_eq!(store.group().state(), &state);
        let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("checked");
        assert!(report.worst().is_none(), "{:?}", report.findings);
    }
}

#[test]
fn what_does_not_fit_one_object_is_refused_before_anything_is_written() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = begun(&mut group);
    let said: Vec<Dated> = (0..=group.room()).map(|i| dated(volume.land(&group, &[one(i)]))).collect();
    let refused = group.append_all(said).expect_err("too many");
    assert!(matches!(refused, StoreError::Record(_)), "{refused}");
    assert_eq!(records_of(&store), [0, 1]);
}

/// What was staged a while ago is as old as that, and not as its publication.
#[test]
fn points_that_are_published_together_are_as_far_apart_as_they_were_staged() {
    let store = TempStore::new();
    let mut group = store.group();
    crate::testkit::PASSED_MS.set(100_000);
    let mut volume = begun(&mut group);
    crate::testkit::PASSED_MS.set(160_000);
    let ago = |seconds: u64, said: Dated| Dated { ago: Duration::from_secs(seconds), ..said };
    let said: Vec<Dated> = [15, 10, 5, 0].into_iter().map(|s| ago(s, dated(volume.land(&group, &[one(s)])))).collect();
    group.append_all(said).expect("appended");
    crate::testkit::PASSED_MS.set(0);
    let times: Vec<u64> = group.state().points().values().map(|point| point.time_ms / 1000).collect();
    assert_eq!(times.len(), 5);
    assert!(times.windows(2).skip(1).all(|w| (4..=6).contains(&(w[1] - w[0]))), "{times:?}");
}

/// The bucket was out of reach while they were staged, and the process that publishes them is younger than they are: its clock does not
/// reach back so far. A grid would keep one of them all.
#[test]
fn points_that_a_process_before_staged_are_as_far_apart_as_that_was_and_no_older() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = begun(&mut group);
    drop(group);
    const MINUTE: u64 = 60;
    crate::testkit::WALL_PASSED_MS.set(100 * MINUTE * 1000);
    let mut group = store.group();
    let (before_ms, age_ms) = (group.state().time_ms(), group.state().age_clock_ms());
    let ago = |minutes: u64, said: Dated| Dated { ago: Duration::from_secs(minutes * MINUTE), ..said };
    // Of one of them the clock said nonsense, and one comes after what was staged later.
    let staged = [9 * 366 * 1440, 80, 70, 60, 65, 50];
    let said: Vec<Dated> = staged.into_iter().map(|m| ago(m, dated(volume.land(&group, &[one(m)])))).collect();
    group.append_all(said).expect("appended");
    let after = |ms: u64| (ms - before_ms) / 1000 / MINUTE / 5 * 5;
    let times: Vec<u64> = group.state().points().values().skip(1).map(|point| after(point.time_ms)).collect();
    assert_eq!(times, [0, 20, 30, 40, 40, 50]);
    assert_eq!(group.state().age_clock_ms(), age_ms, "a wall clock ages nothing");
    let now = dated(volume.land(&group, &[one(3)]));
    group.append_all(vec![now]).expect("appended");
    crate::testkit::WALL_PASSED_MS.set(0);
    assert_eq!(after(group.state().time_ms()), 100, "no time is counted twice");
    let times = |minutes: u64| Duration::from_secs(minutes * MINUTE);
    let grid = Policy { grid: Grid::of([(times(5), times(600))]), ..Policy::without_grid(1, 0) };
    group.prune(&grid).expect("pruned");
    assert_eq!(group.state().points().len(), 6, "one of each five minutes");
    let state = group.state().clone();
    drop(group);
    assert_eq!(store.group().state(), &state);
}

/// All of it, or nothing: whoever finds the slot taken replays what is there and builds anew.
#[test]
fn two_who_append_batches_do_not_mix_and_a_lost_answer_is_success() {
    let store = TempStore::new();
    let mut first = store.group();
    let mut volume = begun(&mut first);
    let mine: Vec<LayerEntry> = (0..3).map(|i| volume.land(&first, &[one(i)])).collect();
    let theirs = Attempt::of_all(
        first.state(),
        (0..2)
            .map(|n| Draft {
                body: volume.claim_body(first.state().head()),
                nonce: [n; 16],
                stamp: farside_ledger::Stamp { writer: [3; 16], mono_ms: 0, wall_ms: 0 },
            })
            .collect(),
    )
    .expect("small");
    fs::write(object_path(&store, &names().record(Slot(2))), &theirs.bytes).expect("write");
    let refused = first.append_all(mine.into_iter().map(dated).collect()).expect_err("the slot is taken");
    assert!(matches!(refused, StoreError::Overtaken { slot: Slot(2) }), "{refused}");
    assert_eq!(first.state().next_slot(), Slot(4), "both of theirs are in the state");
    assert_eq!(records_of(&store), [0, 1, 2]);
    all_alike(&store, &first);
}

/// Somebody else's object was replayed in part when the store went away: the next slot is inside of it, and looks free.
#[test]
fn l4_nothing_is_put_between_the_records_of_an_object() {
    let store = TempStore::new();
    let (mut volume, copy) = {
        let mut group = store.group();
        (begun(&mut group), tempfile::tempdir().expect("temp dir"))
    };
    let copy = copy.path().join("store");
    let copied = std::process::Command::new("cp").arg("-a").arg(store.path()).arg(&copy).status();
    assert!(copied.expect("cp").success());
    let mut faulty = None;
    let opened = crate::Store::open_over(&copy, |dir| Arc::clone(faulty.insert(Faulty::new(dir))) as _).expect("open");
    let (mut group, faulty) = (opened.group(&names().source, &names().group).expect("group"), faulty.expect("opened"));
    // The other one publishes two points, in the same ledger.
    let mut other = store.group();
    assert_eq!(together(&mut other, &mut volume, 2), [Slot(2), Slot(3)]);
    let part = |seq: u64| format!("groups/host/default/segments/v/0/{seq}.0");
    for name in [names().record(Slot(2)).to_string(), part(2), part(3)] {
        fs::copy(store.path().join(&name), copy.join(&name)).expect("copied");
    }
    for op in [Op::Get, Op::Range, Op::Size] {
        faulty.fail(op, &part(3), When::Before, libc::EMFILE); // not the file's fault
    }
    let refused = group.catch_up().expect_err("the second one's footer cannot be read");
    assert!(matches!(refused, StoreError::Uncertain { slot: Slot(2), .. }), "{refused}");
    let refused = group.append(volume.claim_body(None)).expect_err("nobody knows what the next slot is");
    assert!(matches!(refused, StoreError::Uncertain { slot: Slot(2), .. }), "{refused}");
    assert!(!object_path_in(&copy, 3).exists());
    drop((group, opened));
    let opened = crate::Store::open(&copy).expect("open");
    let group = opened.group(&names().source, &names().group).expect("group");
    assert_eq!((group.state(), group.torn()), (other.state(), None));
}

fn object_path_in(store: &std::path::Path, slot: u64) -> std::path::PathBuf {
    store.join(names().record(Slot(slot)).to_string())
}

#[test]
fn a_publication_of_many_points_is_one_record_object_and_a_look_at_the_checkpoint() {
    SPAN.set(64);
    let store = TempStore::new();
    let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let staging = store.dir.path().join("staging");
    let opened = crate::Store::open_bucket(Arc::clone(&counting) as _, &staging).expect("open");
    let mut group = opened.group(&crate::testkit::name("host"), &crate::testkit::name("default")).expect("group");
    let mut volume = begun(&mut group);
    let said: Vec<Dated> = (0..12).map(|i| dated(volume.land(&group, &[one(i)]))).collect();
    let (appended, counts) = counting.during(|| group.append_all(said).expect("appended"));
    assert_eq!(appended.len(), 12);
    let mut asked = counts.requests;
    asked.remove(&(Request::Get, Sort::Description));
    assert_eq!(
        asked,
        [((Request::Put, Sort::Pack), 1), ((Request::Put, Sort::Ledger), 1), ((Request::Get, Sort::Checkpoint), 1)].into()
    );
    assert_eq!(counts.chain, 3, "their parts, the object, the checkpoint");
}

/// An object is mended or given up as a whole, and what comes after a torn one with it.
#[test]
fn a_torn_batch_is_mended_or_voided_as_a_whole() {
    REPEATING.set(false);
    for lost in [false, true] {
        let store = TempStore::new();
        SPAN.set(64);
        let mut group = store.group();
        let mut volume = begun(&mut group);
        together(&mut group, &mut volume, 3);
        together(&mut group, &mut volume, 4);
        let state = group.state().clone();
        drop(group);
        let file = object_path(&store, &names().record(Slot(2)));
        let mut bytes = fs::read(&file).expect("it is there");
        bytes[700] ^= 4;
        if lost {
            bytes[701] ^= 8;
        }
        fs::write(&file, bytes).expect("write");
        let mut group = store.group();
        let torn = group.torn().expect("torn").clone();
        assert_eq!(torn.slot, Slot(2));
        let plan = group.repair_plan().expect("a plan").expect("something to do");
        match &plan {
            Repair::Mend { slot, .. } => assert_eq!((*slot, lost), (Slot(2), false)),
            Repair::Void { first, last, says } => {
                assert_eq!((*first, *last, lost), (Slot(2), Slot(8), true));
                let points: Vec<u64> = says.iter().filter(|says| says.is_point).map(|says| says.slot.0).collect();
                assert_eq!(points, [5, 6, 7, 8], "{says:?}");
            }
        }
        group.repair_torn().expect("repaired");
        assert_eq!(group.torn(), None);
        if lost {
            assert_eq!(group.state().next_slot(), Slot(9));
            assert_eq!(group.state().points().len(), 1);
            volume.claim(&mut group);
            volume.base(&mut group, 3);
        } else {
            assert_eq!(group.state(), &state);
        }
        let listed = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
        assert_eq!((listed.state(), listed.torn()), (group.state(), None));
    }
}

/// A lost object is a hole, however many slots it took; so is one that lies in the middle of nothing.
#[test]
fn a_lost_batch_is_torn_and_no_head() {
    SPAN.set(4096);
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = begun(&mut group);
    while group.state().next_slot().0 < 200 {
        let points = 12.min(group.room());
        together(&mut group, &mut volume, points);
    }
    drop(group);
    let slots = records_of(&store);
    for &slot in &slots[1..slots.len() - 1] {
        let file = object_path(&store, &names().record(Slot(slot)));
        let bytes = fs::read(&file).expect("it is there");
        fs::remove_file(&file).expect("removed");
        let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
        let found = StoreReader::open_bucket(counting as _).expect("open").group(&names()).expect("group");
        let torn = found.torn().map(|torn| torn.slot);
        let swallowed = slots.iter().find(|next| **next > slot).expect("one follows") - slot;
        let followed = 200 - slot - swallowed;
        assert!(torn == Some(Slot(slot)) || followed < swallowed, "slot {slot} was taken for the head");
        let listed = StoreReader::open(&store.path()).expect("open").group(&names()).expect("group");
        assert_eq!(listed.torn().map(|torn| torn.slot), Some(Slot(slot)));
        fs::write(&file, bytes).expect("put back");
    }
    all_alike(&store, &store.group());
}

/// What lies in a slot that a batch takes is of somebody who had no right to it: nobody follows it, and it is named.
#[test]
fn a_stray_within_a_batch_is_nobodys() {
    let store = TempStore::new();
    SPAN.set(64);
    let mut group = store.group();
    let mut volume = begun(&mut group);
    together(&mut group, &mut volume, 4);
    let state = group.state().clone();
    fs::copy(object_path(&store, &names().record(Slot(1))), object_path(&store, &names().record(Slot(4)))).expect("copied");
    all_alike(&store, &group);
    drop(group);
    let mut group = store.group();
    assert_eq!(group.state(), &state);
    volume.publish(&mut group, LayerKind::Point, &[one(3)]);
    drop(group);
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("checked");
    let found: Vec<_> = report.findings.iter().map(|finding| (finding.problem, finding.object.as_deref())).collect();
    assert_eq!(found, [(Problem::Foreign, Some("groups/host/default/ledger/0/4"))]);
}

/// A layer that an earlier record of the same object brings counts for the next one, as if it had been published before.
#[test]
fn what_is_unreadable_by_an_earlier_record_of_the_object_must_be_said_by_the_next() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = begun(&mut group);
    let bad = volume.land(&group, &[vec![(0, 1, Fill::Unreadable)]]);
    assert!(!bad.unreadable_regions.is_empty());
    // Of the same region, and nothing is said: alone it would be right.
    let silent = volume.land(&group, &[one(1)]);
    assert!(silent.unreadable_regions.is_empty());
    let refused = group.append_all(vec![dated(bad.clone()), dated(silent.clone())]).expect_err("a degraded point is called good");
    assert!(matches!(refused, StoreError::BadPart { .. }), "{refused}");
    let honest = LayerEntry { unreadable_regions: bad.unreadable_regions.clone(), ..silent };
    let appended = group.append_all(vec![dated(bad), dated(honest)]).expect("appended");
    let points = group.state().points();
    assert!(appended.iter().all(|appended| points[&appended.position.slot].degraded));
    // And what heals it need not be said any more.
    let healed = volume.land(&group, &[one(0)]);
    group.append_all(vec![dated(healed)]).expect("appended");
    assert!(group.state().volume(volume.id()).expect("claimed").unreadable().is_empty());
}

/// A clock that went back since the last record: what comes keeps its distances, and none of it is of the future.
#[test]
fn what_an_earlier_process_staged_keeps_its_distances_whatever_the_last_record_was_dated_by() {
    let now = farside_ledger::Stamp { writer: [1; 16], mono_ms: 1_000, wall_ms: 5_000_000 };
    let walls = |mut before_ms: i64| {
        [30, 20, 10].map(|s| {
            let stamp = crate::attempt::dated(now, Duration::from_secs(s), before_ms, [2; 16]);
            before_ms = stamp.wall_ms;
            assert_eq!((stamp.writer, stamp.mono_ms), ([2; 16], 0));
            stamp.wall_ms
        })
    };
    assert_eq!(walls(1_000_000), [4_970_000, 4_980_000, 4_990_000]);
    assert_eq!(walls(4_985_000), [4_985_000, 4_985_000, 4_990_000], "time does not run back");
    assert_eq!(walls(9_000_000), [4_970_000, 4_980_000, 4_990_000], "the last record is of a clock that was ahead");
}
