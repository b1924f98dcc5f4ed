use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use farside_keys::{Argon2Cost, GroupKey, Keeper, Secret, Wrapping};
use farside_ledger::{Body, Decree, LayerKind, Verdict, VoidReason};
use farside_region::mutation::tell;
use farside_region::{RegionIndex, Term};

use super::*;
use crate::backend::Backend;
use crate::backend::counting::{Counting, Request, Sort};
use crate::backend::memory::Memory;
use crate::locks::DeletionGuard;
use crate::testkit::{Fill, PASSED_MS, TempStore, TestVolume, name};
use crate::{GroupNames, GroupReader, GroupStore, PointReader, Store, StoreReader, Unlocking, check};

pub(super) const KEEP_1: Policy = Policy::without_grid(1, 0);

pub(super) fn names() -> GroupNames {
    GroupNames::new(name("host"), name("default"))
}

pub(super) fn all_of(reader: &PointReader) -> Vec<u8> {
    let (mut content, mut all) = (reader.content(), Vec::new());
    for region in 0..reader.geometry().region_count() {
        reader.read_region(RegionIndex(region), &mut content).expect("read");
        all.extend_from_slice(&content.bytes);
    }
    all
}

/// What points hold by now, digests included.
pub(super) fn seen(group: &GroupReader, volume: &TestVolume) -> Vec<(Slot, Vec<u8>, String)> {
    let of = |point: crate::PointInfo| {
        let reader = group.point_reader(point.slot, volume.id()).expect("open");
        // Joined anew, as it may lie in other parts by now.
        let mut digests = Vec::new();
        for region in 0..reader.geometry().region_count() {
            for run in reader.region_digests(RegionIndex(region)).expect("digests") {
                match run {
                    crate::DigestRun::Data(data) => digests.extend(data.iter().map(ToString::to_string)),
                    crate::DigestRun::Zero { granules } => digests.extend((0..granules).map(|_| "zero".to_owned())),
                    crate::DigestRun::Unreadable { granules } => digests.extend((0..granules).map(|_| "unreadable".to_owned())),
                    crate::DigestRun::Absent { granules } => digests.extend((0..granules).map(|_| "absent".to_owned())),
                }
            }
        }
        (point.slot, all_of(&reader), digests.join(" "))
    };
    group.points().into_iter().map(of).collect()
}

pub(super) fn reader(store: &TempStore) -> GroupReader {
    StoreReader::open(&store.path()).expect("open").group(&names()).expect("group")
}

/// A base, then layers that lie over each other: four to a point, the last three of which are fuzzy.
pub(super) fn churn(group: &mut GroupStore, volume: &mut TestVolume, rounds: u64) {
    for round in 0..rounds {
        let byte = round as u8 + 2;
        volume.publish(group, LayerKind::Fuzzy, &[vec![(round % 40, 9, Fill::Byte(byte))]]);
        volume.publish(group, LayerKind::Fuzzy, &[vec![(round % 40, 3, Fill::Zero), (50, 2, Fill::Unreadable)]]);
        volume.publish(
            group,
            LayerKind::Fuzzy,
            &[vec![(round % 40 + 2, 4, Fill::Byte(byte ^ 0x80))], vec![(55, 3, Fill::Byte(byte))]],
        );
        volume.publish(group, LayerKind::Point, &[vec![(50, 1, Fill::Byte(byte)), (60, 1, Fill::Byte(byte))]]);
    }
}

pub(super) fn store_of(rounds: u64) -> (TempStore, GroupStore, TestVolume) {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    churn(&mut group, &mut volume, rounds);
    (store, group, volume)
}

/// A group in a bucket, as its receiver opens it.
pub(super) fn in_bucket(bucket: &Arc<Memory>, dir: &tempfile::TempDir) -> GroupStore {
    let backend = Arc::clone(bucket) as Arc<dyn Backend>;
    let store = Store::open_bucket(backend, &dir.path().join("staging")).expect("open");
    store.group(&name("host"), &name("default")).expect("group")
}

/// One of a volume of which something may be merged, in a new bucket, and its newest point.
pub(super) fn bucket_of(bucket: &Arc<Memory>) -> (tempfile::TempDir, GroupStore, TestVolume, Slot) {
    Store::init_bucket(&(Arc::clone(bucket) as Arc<dyn Backend>)).expect("init");
    let dir = tempfile::tempdir().expect("temp dir");
    let mut group = in_bucket(bucket, &dir);
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    churn(&mut group, &mut volume, 4);
    group.prune(&KEEP_1).expect("prune");
    let point = *group.state().points().keys().next_back().expect("one");
    (dir, group, volume, point)
}

pub(super) fn sound(store: &TempStore) -> usize {
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
    // What a merge replaced waits for a checkpoint.
    let fine = [crate::Problem::PointDegraded, crate::Problem::AwaitsDeletion];
    let bad: Vec<_> = report.findings.iter().filter(|f| !fine.contains(&f.problem)).collect();
    assert!(bad.is_empty(), "{bad:?}");
    report.segments as usize
}

#[test]
fn every_point_reads_the_same_from_fewer_parts() {
    let (store, mut group, volume) = store_of(6);
    let before = seen(&reader(&store), &volume);
    let parts = sound(&store);
    // Every point is young: only what gives much back, or is many.
    assert_eq!(before.len(), 7);
    group.prune(&KEEP_1).expect("prune");
    let before: Vec<_> = before.into_iter().filter(|(slot, ..)| group.state().points().contains_key(slot)).collect();
    assert_eq!(before.len(), 2, "the base, since nothing later is without unreadable runs, and the newest");
    let merges = group.merge(&KEEP_1).expect("merge");
    assert!(merges >= 1);
    assert_eq!(seen(&reader(&store), &volume), before, "beside the receiver");
    assert!(sound(&store) <= parts / 3, "{parts} parts");
    assert_eq!(group.merged(volume.id()).0 as usize, merges);
    let head = group.digests(volume.id(), volume.meta.geometry.whole()).expect("digests");
    drop(group);
    let mut group = store.group();
    assert_eq!(group.digests(volume.id(), volume.meta.geometry.whole()).expect("digests"), head, "also when it is opened again");
    assert_eq!(group.merge(&KEEP_1).expect("merge"), 0, "once is enough");
    assert_eq!(seen(&reader(&store), &volume), before);
}

/// With the key encrypted parts are merged as others are, and stay encrypted; without it they are left.
#[test]
fn encrypted_parts_are_merged_by_who_has_the_key() {
    let store = TempStore::new();
    let key = GroupKey::new(Secret::new(&[1; 32]));
    let path = store.dir.path().join("key");
    fs::write(&path, [9; 32]).expect("written");
    let keeper = Keeper::File(path);
    let mut group = store.group();
    let cheap = Argon2Cost { memory_kib: 8, passes: 1, lanes: 1 };
    group.keep_key(&Wrapping::new(&key, &keeper, cheap).expect("wrapped").encode()).expect("kept");
    let mut volume = TestVolume::new("v", 64).sealed(&key);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    churn(&mut group, &mut volume, 6);
    group.prune(&KEEP_1).expect("prune");
    let with_key = || {
        let reader = StoreReader::open(&store.path()).expect("open").with_keepers(Some(keeper.clone()));
        seen(&reader.group(&names()).expect("group"), &volume)
    };
    let (before, parts) = (with_key(), sound(&store));
    assert_eq!((group.merge(&KEEP_1).expect("merge"), sound(&store)), (0, parts), "nothing without it");
    let other = Unlocking::new(vec![Keeper::File(store.dir.path().join("nothing"))]);
    let refused = group.merge_with(&KEEP_1, Some(&other)).expect_err("it is not to be had");
    assert!(matches!(refused, StoreError::KeyNeeded { .. }), "{refused}");
    drop(group);
    let mut group = store.group();
    let merges = group.merge_with(&KEEP_1, Some(&Unlocking::new(vec![keeper.clone()]))).expect("merge");
    assert!(merges >= 1);
    assert_eq!(with_key(), before);
    assert!(sound(&store) <= parts / 3, "of {parts} parts");
    let segments = Segments::new(Arc::new(crate::backend::DirBackend::open(&store.path()).expect("open")), names());
    let new = group.image().parts().iter().filter(|(_, part)| part.name.layer.merge().is_some());
    for (_, part) in new {
        let footer = segments.footer(&volume.meta.name, part).expect("sound");
        assert!(footer.is_sealed(), "it was written in clear");
    }
}

#[test]
fn what_lies_between_points_stays_apart_for_them() {
    let (store, mut group, mut volume) = store_of(3);
    // A point in the middle is kept by its pin, so there are two intervals to merge.
    let pinned = *group.state().points().keys().nth(2).expect("points");
    group.append(Body::Pin(farside_ledger::Pin { point: pinned, reason: "before the upgrade".into() })).expect("pin");
    churn(&mut group, &mut volume, 3);
    group.prune(&KEEP_1).expect("prune");
    let before = seen(&reader(&store), &volume);
    assert_eq!((before.len(), before[1].0), (3, pinned), "and the base, since nothing later is without unreadable runs");
    assert!(group.merge(&KEEP_1).expect("merge") >= 1);
    assert_eq!(seen(&reader(&store), &volume), before);
    sound(&store);
    let born = group.image().parts().iter().filter(|(_, p)| p.name.layer.merge().is_some()).map(|(_, p)| p.born);
    let (early, late): (Vec<Slot>, Vec<Slot>) = born.partition(|born| *born <= pinned);
    assert!(early.is_empty() && !late.is_empty(), "what the pin's readers may go by stays as it is");

    // It goes on from there: more layers, fewer points, merges of what was merged.
    churn(&mut group, &mut volume, 4);
    let pin = *group.state().points()[&pinned].pins.keys().next().expect("a pin");
    group.append(Body::Unpin(farside_ledger::Unpin { pin })).expect("unpin");
    group.prune(&KEEP_1).expect("prune");
    let before = seen(&reader(&store), &volume);
    group.merge(&KEEP_1).expect("merge");
    assert_eq!(seen(&reader(&store), &volume), before);
    drop(group);
    let mut group = store.group();
    assert!(group.prune_plan(&KEEP_1).is_none(), "what died is found as it happened");
    assert_eq!(seen(&reader(&store), &volume), before);
    sound(&store);
    churn(&mut group, &mut volume, 1);
    assert_eq!(
        all_of(&group.point_reader(*group.state().points().keys().last().expect("one"), volume.id()).expect("open")),
        TestVolume::bytes(&volume.image)
    );
}

#[test]
fn who_reads_while_parts_are_merged_reads_on() {
    let (store, mut group, mut volume) = store_of(4);
    group.prune(&KEEP_1).expect("prune");
    let point = *group.state().points().keys().next_back().expect("one");
    let open = reader(&store).point_reader(point, volume.id()).expect("open");
    let image = TestVolume::bytes(&volume.image);
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    while group.image().replaced().0 > 0 {
        volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(60, 1, Fill::Byte(9))]]);
    }
    assert!(group.deferred() > 0, "its files are still there");
    assert_eq!(all_of(&open), image);
    drop(open);
    group.sweep().expect("sweep");
    assert_eq!(group.deferred(), 0);
    sound(&store);
}

pub(super) fn file_of(store: &TempStore, volume: &TestVolume, part: &PartName) -> PathBuf {
    store.path().join(names().segment(&volume.meta.name, part).as_str())
}

/// All groups of a directory delete under one lock: whoever merges has it while he reads, and not while he waits for his rate.
#[test]
fn a_merge_that_waits_holds_up_no_deletion() {
    tell(&[("a merge holds deletions up while it waits", "nobody may delete while it waits")], || {
        let (store, mut group, _) = store_of(4);
        group.prune(&KEEP_1).expect("prune");
        let waits = Cell::new(0);
        let may_delete = |_| {
            waits.set(waits.get() + 1);
            assert!(DeletionGuard::try_take(&store.path()).expect("lock").is_some(), "nobody may delete while it waits");
            true
        };
        let look = group.merge_look(&KEEP_1, false).expect("something to look at");
        let found = look.find(&may_delete).expect("find").merges.into_iter().next().expect("something to merge");
        let looked = waits.get();
        let tried = look.write(&found, &may_delete).expect("an id");
        assert!(looked > 0 && waits.get() > looked + 2, "it reads, writes and reads back");
        let body = group.merge_written(tried).expect("it may be merged");
        assert_eq!(group.append(body).expect("append").verdict, Verdict::Accepted);
    });
}

#[test]
fn what_is_damaged_is_not_laundered() {
    let (store, mut group, volume) = store_of(4);
    group.prune(&KEEP_1).expect("prune");
    let parts: Vec<Part> = group.image().parts().iter().map(|(_, part)| part.clone()).collect();
    let mut refused = 0;
    for part in &parts {
        let file = file_of(&store, &volume, &part.name);
        let good = fs::read(&file).expect("read");
        let footer = Footer::from_tail(&good, good.len() as u64).expect("a footer");
        let Some(frame) = footer.frames().iter().find(|frame| frame.stored_bytes > 0) else { continue };
        let mut bad = good.clone();
        bad[frame.offset as usize + 3] ^= 1;
        fs::write(&file, &bad).expect("write");
        let look = group.merge_look(&KEEP_1, false);
        if let Some(look) = look {
            for found in look.find(&|_| true).expect("footers are well").merges {
                let tried = look.write(&found, &|_| true).expect("an id");
                let has_it = found.parts.iter().any(|of| of.name == part.name);
                let needs_it = found
                    .needed
                    .iter()
                    .any(|extent| found.parts[extent.part.0 as usize].name == part.name && extent.run.overlaps(&frame.run));
                if has_it && needs_it {
                    refused += 1;
                    assert!(matches!(tried.written, Err(StoreError::NotMerged { .. })), "{:?} of {}", tried.written, part.name);
                }
                group.merge_ended(tried.key);
            }
            group.look_again(look.volume(), look.point());
        }
        fs::write(&file, good).expect("write");
    }
    assert!(refused > 0);
    // What was written in vain goes after its decree.
    let unnamed = group.unnamed_merges();
    assert!(unnamed > 0);
    let before = seen(&reader(&store), &volume);
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    assert_eq!(group.unnamed_merges(), 0);
    assert_eq!(seen(&reader(&store), &volume), before);
    sound(&store);
}

#[test]
fn a_damaged_part_of_a_merge_spoils_what_needs_it_and_nothing_else() {
    let (store, mut group, mut volume) = store_of(4);
    let before: Vec<Slot> = group.state().points().keys().copied().collect();
    let pinned = *before.last().expect("points");
    group.prune(&KEEP_1).expect("prune");
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    group.append(Body::Pin(farside_ledger::Pin { point: pinned, reason: String::new() })).expect("pin");
    churn(&mut group, &mut volume, 1);
    group.prune(&KEEP_1).expect("prune");
    let merged = group.image().parts().iter().find(|(_, part)| part.name.layer.merge().is_some()).expect("one").1.clone();
    let file = file_of(&store, &volume, &merged.name);
    let good = fs::read(&file).expect("read");
    fs::write(&file, &good[..good.len() - 1]).expect("write");
    drop(group);
    let damaged = reader(&store);
    assert!(matches!(damaged.point_reader(pinned, volume.id()), Err(StoreError::Corrupt { .. })));
    let report = check(&StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
    assert!(report.findings.iter().any(|f| f.points.contains(&pinned) && f.severity == crate::Severity::Error));
    let mut group = store.group();
    assert!(group.image().has_unknown() && group.merge_look(&KEEP_1, false).is_none() && group.prune_plan(&KEEP_1).is_none());
    let digests = group.digests(volume.id(), volume.meta.geometry.whole()).expect("digests");
    assert!(digests.iter().any(|run| matches!(run, crate::DigestRun::Unreadable { .. })), "{digests:?}");
    // Sent again, nothing is unknown any more.
    volume.base(&mut group, 77);
    assert!(!group.image().has_unknown());
    fs::write(&file, good).expect("write");
    drop(group);
    assert!(reader(&store).point_reader(pinned, volume.id()).is_ok(), "it came back");
}

/// A compactor that dies between its part and its record leaves something that nobody may delete before a decree.
#[test]
fn what_a_dead_compactor_left_goes_after_a_decree_and_its_record_is_void_for_ever() {
    let bucket = Arc::new(Memory::default());
    let backend = || Arc::clone(&bucket) as Arc<dyn Backend>;
    let (dir, mut group, mut volume, _) = bucket_of(&bucket);
    let open = || in_bucket(&bucket, &dir);
    let look = group.merge_look(&KEEP_1, false).expect("something to look at");
    let found = look.find(&|_| true).expect("find").merges.into_iter().next().expect("something to merge");
    let tried = look.write(&found, &|_| true).expect("written");
    let (key, map) = (tried.key, tried.written.expect("written").map);
    let left = names().segment(&name("v"), &PartName { layer: key, number: 0 }).to_string();
    assert!(group.decree_plan().is_none(), "it is under way");
    assert_eq!(bucket.names(&left).len(), 1);
    drop(group);

    let mut group = open();
    let hour = |group: &mut GroupStore, volume: &mut TestVolume| {
        PASSED_MS.set(PASSED_MS.get() + 3600 * 1000);
        bucket.pass_ms(3600 * 1000);
        volume.publish(group, LayerKind::Fuzzy, &[vec![(60, 1, Fill::Byte(9))]]);
        group.sweep().expect("sweep");
    };
    let found = (0..1000).find_map(|_| {
        group.sweep().expect("sweep");
        group.decree_plan()
    });
    let decree = found.expect("it is found, a few names at a time");
    assert_eq!(decree, Body::Decree(Decree { merges: vec![(volume.id(), key.merge().expect("a merge"))] }));
    assert_eq!(group.append(decree).expect("append").verdict, Verdict::Accepted);
    for _ in 0..20 {
        hour(&mut group, &mut volume);
    }
    assert_eq!(bucket.names(&left).len(), 1, "and a day of grace");
    for _ in 0..6 {
        hour(&mut group, &mut volume);
    }
    assert_eq!(bucket.names(&left).len(), 0);
    assert_eq!(group.unnamed_merges(), 0);
    // The record that was on its way all the time.
    let late = farside_ledger::State::would_be_merged(group.state(), &map);
    assert!(!late);
    let mut state = group.state().clone();
    let attempt =
        crate::Attempt::new(&state, Body::Map(map), [9; 16], farside_ledger::Stamp { writer: [3; 16], mono_ms: 0, wall_ms: 0 });
    let (record, digest) = &attempt.expect("small").records[0];
    assert_eq!(state.apply(record, *digest), Verdict::Void(VoidReason::MergeAgain(key.merge().expect("a merge"))));
    // Merging goes on.
    let before = seen(&StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group"), &volume);
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    assert_eq!(seen(&StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group"), &volume), before);
}

/// In a bucket what was given up stays for a day; who has a lease keeps it for longer, and who opens meanwhile goes by the new parts.
#[test]
fn in_a_bucket_what_was_merged_stays_for_a_day_and_for_leases() {
    let bucket = Arc::new(Memory::default());
    let backend = || Arc::clone(&bucket) as Arc<dyn Backend>;
    let (_dir, mut group, mut volume, point) = bucket_of(&bucket);
    let image = TestVolume::bytes(&volume.image);
    let replayed = StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group");
    let early = replayed.point_reader(point, volume.id()).expect("open");
    // (What lies in a pack goes with it.)
    let alone = group.image().parts().iter().filter(|(_, part)| part.place.is_none());
    let old = alone.map(|(_, part)| part.name).collect::<Vec<_>>();
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    let gone: Vec<PartName> = old.into_iter().filter(|part| group.image().parts().id(part).is_none()).collect();
    let there = || gone.iter().filter(|part| !bucket.names(names().segment(&name("v"), part).as_str()).is_empty()).count();
    // Somebody who had replayed the ledger before the merge opens the point only now.
    let late = replayed.point_reader(point, volume.id()).expect("open");
    let id = volume.id();
    let mut days = |group: &mut GroupStore, hours: u64| {
        for _ in 0..hours {
            PASSED_MS.set(PASSED_MS.get() + 3600 * 1000);
            volume.publish(group, LayerKind::Fuzzy, &[vec![(60, 1, Fill::Byte(9))]]);
            group.sweep().expect("sweep");
        }
    };
    days(&mut group, 22);
    assert_eq!(there(), gone.len(), "somebody may read without a lease");
    days(&mut group, 30);
    assert_eq!(there(), gone.len(), "somebody has one");
    assert_eq!(all_of(&early), image);
    drop((early, late));
    let late = replayed.point_reader(point, id).expect("open");
    days(&mut group, 2);
    assert_eq!(all_of(&late), image, "it goes by what took their place");
    drop(late);
    days(&mut group, 2);
    assert_eq!(there(), 0);
    let anew = StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group");
    assert_eq!(all_of(&anew.point_reader(point, id).expect("open")), image);
}

#[test]
fn terms_of_merges_are_no_lost_claims() {
    let (store, mut group, volume) = store_of(4);
    group.prune(&KEEP_1).expect("prune");
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    drop(group);
    let folders = store.files("groups/host/default/segments");
    assert!(
        folders.iter().any(|file| file
            .split('/')
            .nth(5)
            .and_then(|term| term.parse().ok())
            .is_some_and(|t: u64| Term(t).is_merge()))
    );
    let group = store.group();
    assert_eq!(group.torn(), None);
    assert_eq!(group.unnamed_merges(), 0, "all of them are named");
    assert!(group.image().parts().of_layer(volume.key(1)).count() <= 1);
}

/// What a merge took the place of is deleted when a checkpoint covers it: a ledger that lost its end must not be believed beside it.
#[test]
fn a_merge_says_how_far_the_ledger_went() {
    crate::checkpoint::SPAN.set(4096);
    let (store, mut group, _) = store_of(4);
    group.prune(&KEEP_1).expect("prune");
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    let head = group.state().head().expect("records").0;
    drop(group);
    let files = store.files("groups/host/default/segments");
    let since = |file: &String| Term(file.split('/').nth(5)?.parse().ok()?).merge().map(|merge| merge.since().0);
    let since = files.iter().filter_map(since).max().expect("a merged part");
    let record = |slot: u64| store.path().join(names().record(Slot(slot)).as_str());
    // Its own record and all after it: it came to nothing.
    let mut lost: Vec<_> = (since..=head).map(|slot| (record(slot), std::fs::read(record(slot)).expect("there"))).collect();
    lost.iter().for_each(|(file, _)| std::fs::remove_file(file).expect("removed"));
    let group = store.group();
    assert_eq!((group.torn(), group.unnamed_merges() > 0), (None, true));
    drop(group);
    // And the one before.
    lost.push((record(since - 1), std::fs::read(record(since - 1)).expect("there")));
    std::fs::remove_file(record(since - 1)).expect("removed");
    let group = store.group();
    let torn = group.torn().expect("stopped").clone();
    assert_eq!((torn.slot.0, torn.lost_claim), (since - 1, Some(Term(since - 1))));
    assert!(torn.why.contains("files of a merge") && torn.why.contains("lost its newest records"), "{torn:?}");
    drop(group);
    lost.iter().for_each(|(file, bytes)| std::fs::write(file, bytes).expect("put back"));
    assert_eq!(store.group().torn(), None);
}

/// To open a group asks no more of a bucket for every merge there was.
#[test]
fn folders_of_merges_are_not_looked_into() {
    let bucket = Arc::new(Memory::default());
    let (dir, mut group, ..) = bucket_of(&bucket);
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    assert!(!bucket.names("/segments/v/9223372").is_empty(), "their terms begin at 2^63");
    drop(group);
    let counting = Counting::bucket(Arc::clone(&bucket) as Arc<dyn Backend>);
    let store = Store::open_bucket(Arc::clone(&counting) as Arc<dyn Backend>, &dir.path().join("staging")).expect("open");
    let (group, counts) = counting.during(|| store.group(&name("host"), &name("default")));
    assert_eq!(group.expect("group").torn(), None);
    let lists = counts.requests.iter().filter(|((request, sort), _)| *request == Request::List && *sort == Sort::Segment);
    assert_eq!(lists.map(|(_, count)| count).sum::<u32>(), 2, "which volumes there are, and which terms of the one");
}

/// Who replayed before a merge and puts his lease after it must look: what he would go by may be deleted already.
#[test]
fn l4_who_opens_a_point_after_a_merge_goes_by_the_new_parts() {
    use farside_region::mutation;
    // None comes meanwhile: whoever sees one replays anew in any case. So the collector's own rule, which waits for one, is broken in each case.
    crate::checkpoint::SPAN.set(4096);
    let look = |mistake: &[&'static str]| {
        let bucket = Arc::new(Memory::default());
        let backend = || Arc::clone(&bucket) as Arc<dyn Backend>;
        let (_dir, mut group, mut volume, point) = bucket_of(&bucket);
        let replayed = StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group");
        let old: BTreeSet<PartName> = group.image().parts().iter().map(|(_, part)| part.name).collect();
        mutation::set(&["what a merge replaced goes before a checkpoint covers it"]);
        assert!(group.merge(&KEEP_1).expect("merge") > 0);
        let gone = |part: &&PartName| bucket.names(names().segment(&name("v"), part).as_str()).is_empty();
        for _ in 0..26 {
            PASSED_MS.set(PASSED_MS.get() + 3600 * 1000);
            volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(60, 1, Fill::Byte(9))]]);
            group.sweep().expect("sweep");
        }
        assert!(old.iter().filter(gone).count() > 4, "what was merged is deleted by now");
        mutation::set(mistake);
        let opened = replayed.point_reader(point, volume.id());
        mutation::set(&[]);
        opened.is_ok_and(|reader| {
            let mut content = reader.content();
            (0..reader.geometry().region_count()).all(|region| reader.read_region(RegionIndex(region), &mut content).is_ok())
        })
    };
    assert!(look(&[]));
    assert!(!look(&["L4 a reader does not look for merges"]), "the mistake finds nothing where the old parts were");
}

/// Who reads beside the receiver's own threads, a follower or a host that pulls, takes no lease. What a merge replaced under him was laid elsewhere: it is
/// not damaged, and whoever opens the point again reads it.
#[test]
fn a_part_that_was_merged_under_a_reader_without_a_lease_is_no_damage() {
    let (store, mut group, volume) = store_of(6);
    group.prune(&KEEP_1).expect("prune");
    let point = *group.state().points().keys().next_back().expect("one");
    let old = group.reader_of_kept(point, volume.id()).expect("opened");
    assert!(group.merge(&KEEP_1).expect("merge") >= 1);
    let mut gone = 0;
    for file in store.files("groups/host/default/segments/v") {
        let numbers: Vec<u64> = file.rsplit(['/', '.']).take(3).map(|n| n.parse().expect("a number")).collect();
        let layer = LayerKey { volume: volume.id(), term: Term(numbers[2]), seq: farside_region::Seq(numbers[1]) };
        if group.state().is_given_up(&layer, numbers[0] as u32) {
            let object = crate::backend::ObjectName::new(file).expect("a name");
            crate::backend::block_on(group.backend().delete(&object)).expect("as a sweep does");
            gone += 1;
        }
    }
    assert!(gone > 0);
    let new = group.reader_of_kept(point, volume.id()).expect("opened");
    let (mut content, mut merged) = (old.content(), 0);
    for region in (0..new.geometry().region_count()).map(RegionIndex) {
        new.read_region(region, &mut content).expect("it is all there");
        for read in [old.read_region(region, &mut content), old.salvage_region(region, &mut content).map(drop)] {
            match read {
                Ok(()) => {}
                Err(StoreError::PartMerged { .. }) => merged += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(merged > 0, "the old one needed none of them");
}
