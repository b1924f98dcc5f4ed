//! What each operation asks of a service, exactly: a request more is a decision.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use farside_ledger::{LayerKind, Policy};
use farside_region::Slot;

use crate::backend::DirBackend;
use crate::backend::counting::{Counting, Counts, Request, Sort};
use crate::backend::faulty::{Faulty, Op, When};
use crate::checkpoint::span;
use crate::group::{Dated, GroupStore};
use crate::liveness::PartName;
use crate::names::GroupNames;
use crate::repeats::tests::go_on;
use crate::testkit::{Fill, GRANULE, Runs, TempStore, TestVolume, layers, name};
use crate::{Existing, FileTarget, RestoreOptions, Store, StoreReader, restore_to};

/// A store that passes for one in a bucket.
struct Bucket {
    counting: Arc<Counting>,
    store: TempStore,
}

impl Bucket {
    fn new() -> Self {
        let store = TempStore::new();
        let counting = Counting::bucket(Arc::new(DirBackend::open(&store.path()).expect("open")));
        Self { counting, store }
    }

    fn open(&self) -> Store {
        let staging = self.store.dir.path().join("staging");
        Store::open_bucket(Arc::clone(&self.counting) as _, &staging).expect("open")
    }

    fn group(&self) -> GroupStore {
        self.open().group(&name("host"), &name("default")).expect("group")
    }

    fn reader(&self) -> StoreReader {
        StoreReader::open_bucket(Arc::clone(&self.counting) as _).expect("open")
    }
}

fn names() -> GroupNames {
    GroupNames::new(name("host"), name("default"))
}

/// A claim and so many points.
fn history(group: &mut GroupStore, points: u64) -> TestVolume {
    let mut volume = TestVolume::new("v", 16);
    volume.claim(group);
    volume.base(group, 1);
    for i in 1..points {
        volume.publish(group, LayerKind::Point, &[one(i)]);
    }
    volume
}

fn one(i: u64) -> Runs {
    vec![(i % 16, 1, Fill::Byte(i as u8))]
}

/// Without the look at the store's description that a writer takes each half minute.
fn asked(mut counts: Counts) -> BTreeMap<(Request, Sort), u32> {
    counts.requests.remove(&(Request::Get, Sort::Description));
    counts.requests
}

/// However many points, layers and parts: as many objects as their bytes fill, and one of the ledger.
#[test]
fn a_publication_is_one_put_for_its_parts_one_for_its_records_and_a_look_at_the_checkpoint() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    let mut volume = history(&mut group, 1);
    let sort = |parts: usize| if parts == 1 { Sort::Segment } else { Sort::Pack };
    for (points, parts) in [(1, 1), (1, 3), (4, 1), (2, 3)] {
        // The last slot before a checkpoint has no room for where parts lie.
        while group.room() < points + 1 {
            volume.publish(&mut group, LayerKind::Fuzzy, &[one(1)]);
        }
        let said: Vec<Dated> = (0..points)
            .map(|i| {
                let runs: Vec<Runs> = (0..parts as u64).map(|part| one(3 * i + part)).collect();
                let entry = volume.land(&group, &runs);
                Dated { body: layers(LayerKind::Point, vec![entry]), ago: Duration::ZERO }
            })
            .collect();
        let whole = group.room() == points + u64::from(points as usize * parts > 1);
        let (appended, counts) = bucket.counting.during(|| group.append_all(said).expect("appended"));
        assert!(appended.iter().all(|appended| appended.verdict.is_done()) && appended.len() as u64 == points);
        if whole {
            continue; // and a checkpoint
        }
        assert_eq!(counts.chain, 3);
        assert_eq!(
            asked(counts),
            [
                ((Request::Put, sort(points as usize * parts)), 1),
                ((Request::Put, Sort::Ledger), 1),
                ((Request::Get, Sort::Checkpoint), 1)
            ]
            .into()
        );
    }
    assert!(bucket.store.files("groups/host/default/packs").len() >= 3);
}

/// What was created is known; only the record is put again.
#[test]
fn an_append_that_failed_at_its_record_sends_no_part_again() {
    let store = TempStore::new();
    let faulty = Faulty::new(Arc::new(DirBackend::open(&store.path()).expect("open")));
    let counting = Counting::bucket(Arc::clone(&faulty) as _);
    let staging = store.dir.path().join("staging");
    let opened = Store::open_bucket(Arc::clone(&counting) as _, &staging).expect("open");
    let mut group = opened.group(&name("host"), &name("default")).expect("group");
    let mut volume = history(&mut group, 1);
    let entry = volume.land(&group, &[one(1), one(2)]);
    faulty.fail(Op::Create, "/ledger/", When::Before, libc::EIO);
    let body = layers(LayerKind::Point, vec![entry]);
    group.append(body.clone()).expect_err("the service does not answer");
    let (appended, counts) = counting.during(|| group.append(body));
    assert!(appended.expect("appended").verdict.is_done());
    let parts = counts.requests.get(&(Request::Put, Sort::Segment)).or(counts.requests.get(&(Request::Put, Sort::Pack)));
    assert_eq!(parts, None, "{counts:?}");
}

#[test]
fn a_checkpoint_costs_its_publication_six_requests_more_and_others_later() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    // All but the last slot of the fifth.
    let mut volume = history(&mut group, 5 * span() - 2);
    let entry = volume.land(&group, &[one(0)]);
    let (_, counts) = bucket.counting.during(|| group.append(layers(LayerKind::Point, vec![entry])).expect("appended"));
    assert_eq!(
        asked(counts),
        [
            ((Request::Put, Sort::Segment), 1),
            ((Request::Put, Sort::Ledger), 1),
            ((Request::Put, Sort::Checkpoint), 3),
            ((Request::Get, Sort::Checkpoint), 3)
        ]
        .into()
    );
    // When records wait for nothing: the states that are left of 0 and 2 go.
    let (gone, counts) = bucket.counting.during(|| group.trim_ledger().expect("trimmed"));
    assert_eq!(gone, 2);
    assert_eq!(
        asked(counts),
        [
            ((Request::List, Sort::Checkpoint), 1),
            ((Request::Get, Sort::Checkpoint), 2),
            ((Request::Head, Sort::Checkpoint), 2),
            ((Request::Delete, Sort::Checkpoint), 2)
        ]
        .into()
    );
}

#[test]
fn to_hear_that_nothing_is_new_is_two_requests() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    history(&mut group, 3);
    let (_, counts) = bucket.counting.during(|| group.catch_up().expect("caught up"));
    assert_eq!(asked(counts), [((Request::Get, Sort::Ledger), 1), ((Request::Get, Sort::Checkpoint), 1)].into());
}

#[test]
fn giving_up_points_is_one_record() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    history(&mut group, 3);
    let (_, counts) = bucket.counting.during(|| group.prune(&Policy::without_grid(1, 0)).expect("pruned"));
    assert_eq!(asked(counts), [((Request::Put, Sort::Ledger), 1), ((Request::Get, Sort::Checkpoint), 1)].into());
}

/// As many checkpoints as a hundred thousand records have, and a few records more.
#[test]
fn a_reader_of_a_long_history_lists_nothing() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    let volume = history(&mut group, 24 * span() + 3);
    let state = group.state().clone();
    drop(group);
    let (reader, counts) = bucket.counting.during(|| bucket.reader());
    assert_eq!((counts.total(), counts.of(Request::List)), (1, 0));
    let (group, counts) = bucket.counting.during(|| reader.group(&names()).expect("group"));
    assert_eq!((group.state(), group.torn()), (&state, None));
    // Who the group is; roots 0, 1, 3 … 63; those between 15 and 31; state and what is ahead; what may be beyond the head.
    assert_eq!(counts.chain, 5);
    let roots = 7 + 15;
    let ahead = 32;
    let beyond = 13 - 5 + 8; // those less than 28 from it were ahead; and the first of the run after each
    let last_one_covered = 1;
    let voids = 2;
    assert_eq!(
        counts.requests,
        [
            ((Request::Get, Sort::Description), 1),
            ((Request::Get, Sort::Checkpoint), roots + 1 + 1), // the state, and the next root
            ((Request::Get, Sort::Ledger), last_one_covered + ahead + beyond + voids)
        ]
        .into()
    );

    // Who does not know what lies in the parts reads all footers up to the point.
    let point = *group.state().points().keys().next_back().expect("there are some");
    let parts = u32::try_from(group.state().points().len()).expect("few");
    let (reader, counts) = bucket.counting.during(|| group.point_reader(point, volume.id()).expect("reader"));
    assert_eq!(
        counts.requests,
        [
            ((Request::Range, Sort::Segment), parts),
            ((Request::Put, Sort::Other), 1), // its lease
            // And whether anything was given up before that: the slot after the head, its void, and the checkpoint that would cover it.
            ((Request::Get, Sort::Ledger), 1),
            ((Request::Head, Sort::Ledger), 2),
            ((Request::Get, Sort::Checkpoint), 1),
        ]
        .into()
    );
    assert_eq!(counts.chain, 6);
    // Each granule was written last by another point.
    let target = FileTarget::open(&bucket.store.dir.path().join("restored"), "v", 16 * GRANULE, Existing::Keep);
    let target = target.expect("target");
    let restored = || restore_to(&reader, &target, &RestoreOptions::default(), &|_| true);
    let (report, counts) = bucket.counting.during(restored);
    assert_eq!(report.expect("restored").data_bytes, 16 * GRANULE);
    assert_eq!(counts.requests, [((Request::Range, Sort::Segment), 16)].into(), "one for each run of each part");
}

/// A few objects have all records since the checkpoint, and the digits of its slot tell which is the newest, however many came since.
#[test]
fn who_opens_a_point_of_a_long_history_asks_for_little() {
    crate::checkpoint::SPAN.set(4096);
    let bucket = Bucket::new();
    let mut group = bucket.group();
    history(&mut group, 1);
    // The newest is in the first run, in the first block, or far from both; after a checkpoint as without one.
    let (run, voids, last_one_covered) = (64, 2, 1);
    for (to, together, chain, heads, gets, checkpoint) in [
        (0o5, 1, 6, 15 + 14, run + voids + 14, 8),
        (0o321, 5, 7, 15 + 11, run + 1 + voids + 14, 8),
        (0o7657, 1, 8, 15 + 7 + 1, run + 3 + voids + 15, 8),
        (0o10000 + 0o321, 64, 7, 15 + 11, run + 1 + voids + 14 + last_one_covered, 9),
        (0o10000 + 0o7657, 64, 8, 15 + 7 + 1, run + 2 + voids + 15 + last_one_covered, 9),
    ] {
        go_on(&mut group, to, together);
        let reader = bucket.reader();
        let (found, counts) = bucket.counting.during(|| reader.group_to_open(&names()).expect("group"));
        assert_eq!((found.state(), found.torn()), (group.state(), None));
        assert_eq!(counts.chain, chain, "{to:o}: {counts:?}");
        assert_eq!(
            counts.requests,
            [
                ((Request::Get, Sort::Description), 1),
                ((Request::Get, Sort::Checkpoint), checkpoint),
                ((Request::Head, Sort::Ledger), heads), // what is not there is asked for twice
                ((Request::Get, Sort::Ledger), gets)
            ]
            .into(),
            "{to:o}"
        );
    }
}

/// No range is answered before so many are under way: whoever asks for one after the other waits for ever.
#[test]
fn a_restore_from_a_bucket_has_many_requests_under_way() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    // Regions of eight granules; of the second one each granule was written last by another point.
    let mut volume = TestVolume::new("v", 24 * 8);
    volume.claim(&mut group);
    let whole = volume.base(&mut group, 1);
    for i in 0..8 {
        volume.publish(&mut group, LayerKind::Point, &[vec![(8 + i, 1, Fill::Byte(7))]]);
    }
    let scattered = *group.state().points().keys().next_back().expect("there are some");
    drop(group);
    for (point, image, regions) in [(whole, vec![Some(Fill::Byte(1)); 24 * 8], 12), (scattered, volume.image.clone(), 11 + 8)] {
        let reader = bucket.reader().group(&names()).expect("group").point_reader(point, volume.id()).expect("reader");
        bucket.counting.meet(regions);
        let to = bucket.store.dir.path().join(format!("restored-{point}"));
        let (ended, heard) = std::sync::mpsc::channel();
        std::thread::spawn({
            let to = to.clone();
            move || {
                let target = FileTarget::open(&to, "v", 24 * 8 * GRANULE, Existing::Keep).expect("target");
                let restored = restore_to(&reader, &target, &RestoreOptions::default(), &|_| true);
                restored.expect("restored");
                target.finish().expect("named");
                ended.send(()).expect("somebody waits");
            }
        });
        heard.recv_timeout(std::time::Duration::from_secs(120)).expect("so many are never under way");
        assert!(fs::read(&to).expect("read") == TestVolume::bytes(&image));
    }
}

/// It lists what came since the newest checkpoint, and neither the history nor the segments.
#[test]
fn a_writer_of_a_long_history_lists_the_end_of_its_ledger() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    history(&mut group, 24 * span() + 3);
    let state = group.state().clone();
    drop(group);
    let store = bucket.open();
    let (group, counts) = bucket.counting.during(|| store.group(&name("host"), &name("default")).expect("group"));
    assert_eq!((group.state(), group.torn()), (&state, None));
    let since = u32::try_from(state.next_slot().0 % span()).expect("few");
    assert_eq!(
        counts.requests,
        [
            ((Request::Get, Sort::Description), 1),
            ((Request::List, Sort::Checkpoint), 1),
            ((Request::List, Sort::Ledger), 2),    // its folders, and the newest of them
            ((Request::List, Sort::Segment), 2),   // the volumes, and the terms of the one there is
            ((Request::List, Sort::Pack), 1),      // whether there is one of a slot beyond the head
            ((Request::Get, Sort::Checkpoint), 4), // root and state, the root before it, the next one
            ((Request::Get, Sort::Ledger), since + 1),
            ((Request::Range, Sort::Segment), u32::try_from(state.points().len()).expect("few")), // all footers
        ]
        .into()
    );
}

/// What an earlier process left in a bucket is found while the group is in use, and waits for its day.
#[test]
fn debris_in_a_bucket_is_found_after_the_group_was_opened() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    let mut volume = history(&mut group, 3);
    let put = |key, number| {
        let segment = bucket.store.path().join(names().segment(&name("v"), &PartName { layer: key, number }).as_str());
        fs::create_dir_all(segment.parent().expect("a folder")).expect("mkdir");
        fs::write(segment, "of an attempt that failed").expect("write");
    };
    put(volume.key(2), 1); // a number that its record does not have
    put(volume.key(9), 0); // it could still be published
    drop(group);
    let mut group = bucket.group();
    assert_eq!((group.is_swept(), group.deferred()), (false, 0));
    let (swept, counts) = bucket.counting.during(|| group.sweep().expect("swept"));
    assert_eq!((swept.deleted, swept.deferred), (0, 1));
    // Who reads, and what time it is.
    let leases = [((Request::Put, Sort::Other), 1), ((Request::List, Sort::Other), 1), ((Request::Delete, Sort::Other), 1)];
    let names = [((Request::List, Sort::Segment), 1), ((Request::List, Sort::Pack), 1)];
    let (leases, names) = (BTreeMap::from(leases), BTreeMap::from(names));
    assert_eq!(asked(counts), leases.iter().chain(&names).map(|(asked, count)| (*asked, *count)).collect());
    let (_, counts) = bucket.counting.during(|| group.sweep().expect("swept"));
    assert_eq!((asked(counts), group.is_swept()), (leases, false), "all was seen, and one waits");
    volume.claim(&mut group);
    assert_eq!(group.deferred(), 2, "nothing can publish the other one any more");
}

/// A ledger that lost its newest records goes on nowhere, though nobody lists its segments.
#[test]
fn a_claim_that_is_gone_is_known_by_the_folder_of_its_term() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    let mut volume = history(&mut group, 2);
    volume.claim(&mut group);
    volume.base(&mut group, 7);
    let claim = Slot(volume.term.0);
    drop(group);
    for slot in [claim, claim.next()] {
        std::fs::remove_file(bucket.store.path().join(names().record(slot).as_str())).expect("it was there");
    }
    let group = bucket.group();
    assert_eq!(group.torn().expect("torn").lost_claim, Some(volume.term));
    assert!(group.is_swept(), "nothing of it is judged");
}

/// What is read at first of a part's end is a guess. A footer that it does not reach is read by what the end says of it, and with nothing
/// beside: as much as the largest footer has, of every part, was a twentieth of a restore.
#[test]
fn a_large_footer_is_one_request_more_and_no_bytes_beside_it() {
    let bucket = Bucket::new();
    let mut group = bucket.group();
    let mut volume = TestVolume::new("v", 4000);
    volume.claim(&mut group);
    let point = volume.base(&mut group, 1);
    drop(group);
    let group = bucket.reader().group(&names()).expect("group");
    let asked_before = bucket.counting.range_bytes();
    let (opened, counts) = bucket.counting.during(|| group.point_reader(point, volume.id()));
    opened.expect("a point");
    assert_eq!(counts.requests.get(&(Request::Range, Sort::Segment)), Some(&2), "{counts:?}");
    let segment = fs::read(bucket.store.path().join(&bucket.store.files("groups/host/default/segments")[0])).expect("read");
    let footer = farside_layer::Footer::tail_bytes(&segment, segment.len() as u64).expect("a footer");
    assert!(footer > 16 << 10, "{footer}");
    assert_eq!(bucket.counting.range_bytes() - asked_before, (16 << 10) + footer);
}
