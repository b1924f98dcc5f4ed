//! Appends, replay, sweeping and pruning of a group on a real directory.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use farside_ledger::{Body, LayerEntry, LayerKind, Pin, Policy, Verdict, VoidReason};
use farside_region::{GranuleIndex, GranuleRun, RegionIndex, RegionSet, Seq, Slot, mutation::tell};

use crate::backend::faulty::{Faulty, Op, When};
use crate::group::{DigestRun, GroupStore, Repair};
use crate::repeats::REPEATING;
use crate::testkit::{Fill, TempStore, TestVolume, layers, name};
use crate::{ReaderLock, Remedy, Store, StoreError};

const KEEP_1: Policy = Policy::without_grid(1, 0);

fn read_all(group: &GroupStore, point: Slot, volume: &TestVolume) -> Vec<u8> {
    let reader = group.point_reader(point, volume.id()).expect("reader");
    let mut content = reader.content();
    let regions = 0..reader.geometry().region_count();
    regions
        .flat_map(|r| {
            reader.read_region(RegionIndex(r), &mut content).expect("read");
            content.bytes.to_vec()
        })
        .collect()
}

/// A group with one volume, a base and two more points. Images by point.
fn three_points(store: &TempStore) -> (GroupStore, TestVolume, Vec<(Slot, Vec<u8>)>) {
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 61);
    volume.claim(&mut group);
    let mut points = vec![(volume.base(&mut group, 1), TestVolume::bytes(&volume.image))];
    for (byte, run) in [(2, (3, 20)), (3, (10, 4))] {
        let slot = volume.publish(&mut group, LayerKind::Point, &[vec![(run.0, run.1, Fill::Byte(byte))]]).position.slot;
        points.push((slot, TestVolume::bytes(&volume.image)));
    }
    (group, volume, points)
}

#[test]
fn every_point_reads_as_it_was_also_after_reopening() {
    let store = TempStore::new();
    let (group, volume, points) = three_points(&store);
    for (slot, bytes) in &points {
        assert!(read_all(&group, *slot, &volume) == *bytes, "point {slot}");
    }
    let head = group.image().head(volume.id()).cloned();
    drop(group);
    let group = store.group();
    assert_eq!(group.image().head(volume.id()).cloned(), head, "the head image does not depend on how it came to be");
    for (slot, bytes) in &points {
        assert!(read_all(&group, *slot, &volume) == *bytes, "point {slot} after reopening");
    }
}

#[test]
fn a_store_is_held_by_one_process_and_its_version_is_respected() {
    let store = TempStore::new();
    let held = store.open();
    assert!(matches!(Store::open(&store.path()), Err(StoreError::Locked { .. })));
    assert_eq!(Store::init(&store.path()).expect("an existing store is left as it is"), held.id());
    drop(held);
    let description = store.path().join("farside-store.json");
    let text = fs::read_to_string(&description).expect("read");
    fs::write(&description, text.replace("\"version\": 1", "\"version\": 2")).expect("write");
    assert!(matches!(Store::open(&store.path()), Err(StoreError::Version { found: 2, known: 1, .. })));
    fs::write(&description, "{").expect("write");
    assert!(matches!(Store::open(&store.path()), Err(StoreError::Damaged { .. })));
    fs::remove_file(&description).expect("remove");
    assert!(matches!(Store::open(&store.path()), Err(StoreError::NotAStore { .. })));
    assert!(matches!(Store::open(&store.path().join("nowhere")), Err(StoreError::Vanished { .. })));
    fs::write(store.dir.path().join("precious"), "x").expect("write");
    assert!(matches!(Store::init(store.dir.path()), Err(StoreError::NotAStore { .. })), "a directory in other use");
}

#[test]
fn the_folder_of_another_group_is_refused() {
    let store = TempStore::new();
    drop(three_points(&store));
    let groups = store.path().join("groups");
    fs::create_dir_all(groups.join("evil")).expect("mkdir");
    fs::rename(groups.join("host/default"), groups.join("evil/default")).expect("rename");
    let error = store.open().group(&name("evil"), &name("default")).expect_err("foreign");
    assert!(matches!(error, StoreError::ForeignGroup { .. }), "{error}");
}

#[test]
fn a_ledger_of_another_group_is_torn_at_its_first_slot() {
    let store = TempStore::new();
    drop(three_points(&store));
    let groups = store.path().join("groups");
    drop(store.open().group(&name("evil"), &name("default")).expect("group"));
    fs::rename(groups.join("host/default/ledger"), groups.join("evil/default/ledger")).expect("rename");
    let group = store.open().group(&name("evil"), &name("default")).expect("opens");
    assert_eq!(group.torn().expect("torn").slot, Slot(0));
}

#[test]
fn the_segment_of_another_volume_is_named_when_it_is_read() {
    let store = TempStore::new();
    let mut group = store.group();
    let (mut a, mut b) = (TestVolume::new("a", 16), TestVolume::new("b", 16));
    a.claim(&mut group);
    b.claim(&mut group);
    let point = a.base(&mut group, 1);
    b.base(&mut group, 1);
    drop(group);
    let segments = store.path().join("groups/host/default/segments");
    let (of_a, of_b) = (segments.join(format!("a/{}/1.0", a.term)), segments.join(format!("b/{}/1.0", b.term)));
    fs::remove_file(&of_a).expect("remove");
    fs::copy(&of_b, &of_a).expect("copy");
    let error = store.group().point_reader(point, a.id()).expect_err("not what was published").to_string();
    assert!(error.contains("volume a") && error.contains(&format!("point {point}")) && error.contains("region 0"), "{error}");
}

#[test]
fn a_flipped_bit_is_named_by_volume_point_and_region() {
    let store = TempStore::new();
    let (group, volume, points) = three_points(&store);
    drop(group);
    let file = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let good = fs::read(&file).expect("read");
    let last = points[2].0;
    let (mut named, places) = (0, (0..good.len()).step_by(good.len() / 97));
    for at in places.clone() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&file, &bad).expect("write");
        let group = store.group();
        let error = group.point_reader(last, volume.id()).and_then(|reader| {
            let mut content = reader.content();
            (0..reader.geometry().region_count()).try_for_each(|r| reader.read_region(RegionIndex(r), &mut content))
        });
        match error {
            Ok(()) => {
                // Header and frame heads are repeated in the footer, and some content is not used by this point any more.
                assert!(read_all(&group, last, &volume) == points[2].1, "byte {at}: wrong content without an error");
            }
            Err(StoreError::Corrupt { volume, point, segment, .. }) => {
                assert_eq!((volume.as_str(), point), ("v", last.to_string()), "byte {at}");
                assert!(segment.ends_with("/1.0"), "byte {at}: {segment}");
                named += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    let all = places.count();
    assert!(named > all / 2, "only {named} of {all} flips were noticed");
}

#[test]
fn a_damaged_footer_spoils_only_what_nothing_newer_covers_and_a_compare_heals_it() {
    let store = TempStore::new();
    let (group, mut volume, points) = three_points(&store);
    drop(group);
    // The second point's layer touched regions 0, 1 and 2.
    let file = store.path().join(format!("groups/host/default/segments/v/{}/2.0", volume.term));
    fs::write(&file, "gone").expect("write");
    let mut group = store.group();
    assert!(read_all(&group, points[0].0, &volume) == points[0].1, "points before it are untouched");
    assert!(matches!(group.point_reader(points[2].0, volume.id()), Err(StoreError::Corrupt { .. })));
    let whole = GranuleRun { start: GranuleIndex(0), count: 61 };
    let runs = group.digests(volume.id(), whole).expect("digests");
    let DigestRun::Unreadable { granules } = runs[0] else { panic!("{runs:?}") };
    assert!(granules >= 10, "what it may have held is never equal: {runs:?}");
    let healed = volume.publish(&mut group, LayerKind::Point, &[vec![(0, 24, Fill::Byte(8))]]).position.slot;
    assert!(read_all(&group, healed, &volume) == TestVolume::bytes(&volume.image), "after it was sent again");
    group.prune(&KEEP_1).expect("prune");
    assert!(!file.exists(), "and then the damaged part is dead");
    assert!(read_all(&group, healed, &volume) == TestVolume::bytes(&volume.image));
}

#[test]
fn two_damaged_parts_of_one_layer_do_not_kill_each_other() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 61);
    volume.claim(&mut group);
    let third = |first, count, byte| vec![(first, count, Fill::Byte(byte))];
    volume.publish(&mut group, LayerKind::Point, &[third(0, 20, 1), third(20, 20, 2), third(40, 21, 3)]);
    let point = volume.publish(&mut group, LayerKind::Point, &[third(3, 2, 4)]).position.slot;
    drop(group);
    let files = ["1.0", "1.2"].map(|n| store.path().join(format!("groups/host/default/segments/v/{}/{n}", volume.term)));
    let kept = files.clone().map(|file| fs::read(file).expect("read"));
    files.iter().for_each(|file| fs::remove_file(file).expect("remove"));
    let mut group = store.group();
    group.prune(&KEEP_1).expect("prune");
    let newest = group.state().head();
    assert!(group.prune(&KEEP_1).expect("prune") == 0 && group.state().head() == newest);
    let whole = store.path().join(format!("groups/host/default/segments/v/{}/1.1", volume.term));
    assert!(whole.exists() && group.point(point).is_some(), "no part of it is given up while some are unknown");
    drop(group);
    files.iter().zip(kept).for_each(|(file, bytes)| fs::write(file, bytes).expect("put back"));
    let mut group = store.group();
    assert!(read_all(&group, point, &volume) == TestVolume::bytes(&volume.image));
    group.prune(&KEEP_1).expect("prune");
    assert!(read_all(&group, point, &volume) == TestVolume::bytes(&volume.image));

    drop(group);
    files.iter().for_each(|file| fs::write(file, "gone").expect("write"));
    let mut group = store.group();
    let healed = volume.publish(&mut group, LayerKind::Point, &[third(0, 61, 5)]).position.slot;
    group.prune(&KEEP_1).expect("prune");
    assert!(files.iter().all(|file| !file.exists()), "sent again, they are dead");
    assert!(read_all(&group, healed, &volume) == TestVolume::bytes(&volume.image));
}

#[test]
fn a_torn_record_stops_appending_pruning_and_sweeping_and_is_named() {
    let store = TempStore::new();
    let (group, mut volume, points) = three_points(&store);
    let head = group.state().head().expect("head");
    drop(group);
    let file = store.path().join(format!("groups/host/default/ledger/0/{head}"));
    let good = fs::read(&file).expect("read");
    fs::write(&file, &good[..200]).expect("tear");
    let segments = store.files("groups/host/default/segments");
    let mut group = store.group();
    let torn = group.torn().expect("torn").clone();
    assert_eq!(torn.slot, head);
    let error = group.append(volume.claim_body(None)).expect_err("stopped");
    assert!(matches!(&error, StoreError::LedgerTorn { slot, file, .. } if *slot == head && file.ends_with("/3")), "{error}");
    assert_eq!(group.prune(&KEEP_1).expect("nothing"), 0);
    assert_eq!(store.files("groups/host/default/segments"), segments, "something was swept");
    assert!(read_all(&group, points[1].0, &volume) == points[1].1, "points before it can be restored");

    group.repair_torn().expect("repair");
    assert!(group.torn().is_none());
    assert_eq!(group.state().head(), Some(head), "the slot counts as void");
    assert_eq!(group.points().len(), 2);
    volume.claim(&mut group);
    drop(group);
    let group = store.group();
    assert!(group.torn().is_none() && group.state().head() == Some(Slot(head.0 + 1)));
    drop(group);
    fs::write(&file, &good).expect("the record comes back");
    assert!(store.group().torn().expect("torn").why.contains("other bytes"), "two truths are none");
}

/// A bit that flipped in an old record must not cost the points after it.
#[test]
fn a_flipped_bit_in_any_record_is_mended_and_nothing_is_lost() {
    let store = TempStore::new();
    let (group, volume, points) = three_points(&store);
    let head = group.state().position();
    drop(group);
    for slot in 0..4 {
        let file = store.path().join(format!("groups/host/default/ledger/0/{slot}"));
        let good = fs::read(&file).expect("read");
        // Those before the records that it repeats.
        let repeated = farside_ledger::decode_repeats(&good).expect("whole");
        let own = match repeated.iter().map(|repeated| repeated.bytes.len()).sum::<usize>() {
            0 => good.len(),
            repeated => good.len() - 32 - repeated,
        };
        for at in [9, 30, 100, own - 40, own - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            fs::write(&file, &bad).expect("write");
            let mut group = store.group();
            assert_eq!(group.torn().map(|t| t.slot), Some(Slot(slot)), "byte {at}");
            let plan = group.repair_plan().expect("looked");
            assert!(matches!(plan, Some(Repair::Mend { slot: s, .. }) if s.0 == slot), "byte {at}: {plan:?}");
            group.repair_torn().expect("mended");
            assert_eq!((group.state().position(), fs::read(&file).expect("read") == good), (head, true));
        }
    }
    let group = store.group();
    for (slot, bytes) in &points {
        assert!(read_all(&group, *slot, &volume) == *bytes, "point {slot}");
    }
}

/// Who agreed that a bit is put right did not agree that anything is given up.
#[test]
fn a_repair_does_what_was_planned_and_no_more() {
    tell(&[("a repair goes on with what nobody agreed to", "nobody agreed")], || {
        let store = TempStore::new();
        let (group, _, points) = three_points(&store);
        drop(group);
        let ledger = store.path().join("groups/host/default/ledger/0");
        let (flipped, lost) = (ledger.join("1"), ledger.join("3"));
        let mut bytes = fs::read(&flipped).expect("read");
        bytes[30] ^= 0x20;
        fs::write(&flipped, bytes).expect("write");
        let whole = fs::read(&lost).expect("read");
        fs::write(&lost, vec![0; whole.len()]).expect("a lost sector");
        let mut group = store.group();
        assert!(matches!(group.repair_plan().expect("looked"), Some(Repair::Mend { slot: Slot(1), .. })));
        group.repair_torn().expect("mended");
        assert_eq!(group.torn().map(|torn| torn.slot), Some(Slot(3)), "nobody agreed to give that up");
        assert!(matches!(group.repair_plan().expect("looked"), Some(Repair::Void { first: Slot(3), last: Slot(3), .. })));
        drop(group);
        fs::write(&lost, whole).expect("it is put back instead");
        let group = store.group();
        assert!(group.torn().is_none() && group.points().len() == points.len());
    });
}

/// What layers after a lost one held is not known without it: they go with it, by name, and the chain goes on.
#[test]
fn a_record_that_is_beyond_mending_is_voided_with_all_that_follow() {
    REPEATING.set(false);
    let store = TempStore::new();
    let (group, mut volume, points) = three_points(&store);
    drop(group);
    let ledger = store.path().join("groups/host/default/ledger/0");
    let bytes = fs::read(ledger.join("2")).expect("read");
    fs::write(ledger.join("2"), vec![0; bytes.len()]).expect("a lost sector");
    let mut group = store.group();
    let Some(Repair::Void { first, last, says }) = group.repair_plan().expect("looked") else { panic!("not mended") };
    assert_eq!((first, last), (Slot(2), Slot(3)));
    assert!(!says[0].is_point && says[0].text.contains("cannot be read"), "{says:?}");
    assert!(says[1].is_point && says[1].text == "a recovery point of v" && says[1].file.ends_with("ledger/0/3"), "{says:?}");
    group.repair_torn().expect("voided");
    assert_eq!((group.state().head(), group.points().len()), (Some(Slot(3)), 1));
    assert!(group.repair_plan().expect("looked").is_none());
    volume.claim(&mut group);
    let next = volume.base(&mut group, 9);
    drop(group);
    // An older one goes, too: what was voided before is voided anew, behind it.
    fs::write(ledger.join("1"), "").expect("lost");
    let mut group = store.group();
    assert_eq!(group.torn().map(|t| t.slot), Some(Slot(1)));
    group.repair_torn().expect("voided");
    assert_eq!((group.state().head(), group.points().len()), (Some(next), 0));
    volume.claim(&mut group);
    let again = volume.base(&mut group, 7);
    assert!(read_all(&group, again, &volume) == TestVolume::bytes(&volume.image));
    drop(group);
    assert!(store.group().torn().is_none());
    assert!(points.len() == 3);
}

#[test]
fn a_newer_record_is_not_a_damaged_one_and_is_never_repaired_away() {
    let store = TempStore::new();
    drop(three_points(&store));
    let file = store.path().join("groups/host/default/ledger/0/3");
    let mut bytes = fs::read(&file).expect("read");
    bytes[8] = 3;
    let content = bytes.len() - 32;
    let digest = blake3::hash(&bytes[..content]);
    bytes[content..].copy_from_slice(digest.as_bytes());
    fs::write(&file, bytes).expect("write");
    let mut group = store.group();
    assert!(group.torn().expect("stopped").newer);
    let error = group.repair_torn().expect_err("refused").to_string();
    assert!(error.contains("version 3") && error.contains("use a newer Farside"), "{error}");
    assert!(!file.with_extension("void").exists());
}

#[test]
fn a_missing_record_is_torn_not_the_end() {
    let store = TempStore::new();
    drop(three_points(&store));
    fs::remove_file(store.path().join("groups/host/default/ledger/0/1")).expect("remove");
    let group = store.group();
    assert_eq!((group.torn().expect("torn").slot, group.state().head()), (Slot(1), Some(Slot(0))));
}

fn faulty(store: &TempStore) -> (GroupStore, Arc<Faulty>) {
    let mut wrapped = None;
    let opened = Store::open_over(&store.path(), |dir| {
        let faulty = Faulty::new(dir);
        wrapped = Some(Arc::clone(&faulty));
        faulty
    });
    (opened.expect("open").group(&name("host"), &name("default")).expect("group"), wrapped.expect("wrapped"))
}

#[test]
fn an_ambiguous_answer_is_settled_by_looking_into_the_slot() {
    let store = TempStore::new();
    let (mut group, faults) = faulty(&store);
    let mut volume = TestVolume::new("v", 16);
    // The record was written, and the answer lost: success.
    faults.fail(Op::Create, "ledger/0/0", When::After, libc::EIO);
    volume.claim(&mut group);
    // Nothing was written: an error, and the same slot is used next time.
    let entry = volume.land(&group, &[vec![(0, 16, Fill::Byte(1))]]);
    let body = layers(LayerKind::Point, vec![entry]);
    for errno in [libc::EIO, libc::EACCES, libc::EROFS] {
        faults.fail(Op::Create, "ledger/0/1", When::Before, errno);
        let error = group.append(body.clone()).expect_err("failed");
        let wanted = if errno == libc::EIO { Remedy::Reopen } else { Remedy::Retry };
        assert_eq!(error.remedy(), wanted, "{error}");
        assert_eq!(group.state().head(), Some(Slot(0)));
    }
    faults.fail(Op::Adopt, "segments", When::Before, libc::ENOSPC);
    assert!(matches!(group.append(body.clone()), Err(StoreError::Full { .. })));
    assert_eq!(store.files("groups/host/default/ledger").len(), 1, "no record before its segments");
    assert_eq!(group.append(body).expect("append").verdict, Verdict::Accepted);
}

#[test]
fn a_layer_sent_again_after_a_failed_append_is_indexed_as_what_it_is_now() {
    let store = TempStore::new();
    let (mut group, faults) = faulty(&store);
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    let first = volume.land(&group, &[vec![(0, 8, Fill::Byte(2))]]);
    faults.fail(Op::Create, "ledger/0/2", When::Before, libc::EROFS);
    group.append(layers(LayerKind::Point, vec![first])).expect_err("read-only");
    // The connection was reset, the layer is read again from a disk that has changed.
    volume.image[..8].fill(Some(Fill::Byte(1)));
    group.drop_parts(volume.key(2), 0).expect("the state machine says so first");
    volume.seq = 1;
    let second = volume.land(&group, &[vec![(40, 3, Fill::Byte(3))]]);
    let point = group.append(layers(LayerKind::Point, vec![second])).expect("append").position.slot;
    assert!(read_all(&group, point, &volume) == TestVolume::bytes(&volume.image), "the first sending shows through");
}

/// Base, point, fuzzy layer, point, prune; `Err` when the process died on the way. Images by slot are what was *asked* for.
fn a_life(group: &mut GroupStore, volume: &mut TestVolume, images: &mut BTreeMap<Slot, Vec<u8>>) -> Result<(), StoreError> {
    let looked = group.state().head();
    let claim = group.append(volume.claim_body(looked))?;
    volume.term = farside_region::Term(claim.position.slot.0);
    volume.seq = 0;
    for old in group.landing().landed() {
        group.drop_parts(old.key, 0)?; // as the state machine asks for, when a term is over
    }
    let steps = [(LayerKind::Point, 0, 61), (LayerKind::Point, 3, 20), (LayerKind::Fuzzy, 30, 2), (LayerKind::Point, 1, 3)];
    for (byte, (kind, start, count)) in (images.len() as u8 + 1..).zip(steps) {
        let entry = volume.land(group, &[vec![(start, count, Fill::Byte(byte))]]);
        let slot = group.state().next_slot();
        if kind == LayerKind::Point {
            images.insert(slot, TestVolume::bytes(&volume.image));
        }
        group.append(layers(kind, vec![entry]))?;
    }
    group.prune(&KEEP_1)?;
    Ok(())
}

#[test]
fn after_a_death_at_any_step_every_listed_point_is_whole_and_life_goes_on() {
    let mut deaths = 0;
    for when in [When::Before, When::After] {
        for calls in 0.. {
            let store = TempStore::new();
            let (mut group, faults) = faulty(&store);
            let mut volume = TestVolume::new("v", 61);
            let mut images = BTreeMap::new();
            faults.die_after(calls, when);
            let ended = a_life(&mut group, &mut volume, &mut images);
            drop(group);
            let mut group = store.group();
            let whole = |group: &GroupStore, images: &BTreeMap<Slot, Vec<u8>>| {
                for point in group.points() {
                    assert!(read_all(group, point.slot, &volume) == images[&point.slot], "{when:?} {calls}: {}", point.slot);
                }
            };
            assert!(group.torn().is_none());
            whole(&group, &images);
            // A new attach: everything is sent again.
            let mut again = volume.clone();
            a_life(&mut group, &mut again, &mut images).expect("life goes on");
            whole(&group, &images);
            assert_eq!((group.points().len(), group.deferred()), (1, 0));
            drop(group);
            let report = crate::check(&crate::StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
            assert_eq!(report.findings, [], "{when:?} {calls}");
            if ended.is_ok() && !faults.is_dead() {
                break;
            }
            deaths += 1;
        }
    }
    // A claim, four layers of two steps each, a prune record and a deletion.
    assert!(deaths >= 2 * 10, "only {deaths} deaths: the steps were not reached");
}

#[test]
fn a_slot_taken_by_another_writer_is_replayed_and_the_record_built_anew() {
    let store = TempStore::new();
    let (group, volume, points) = three_points(&store);
    let head = group.state().head().expect("head");
    drop(group);
    // Two writers of one ledger: what a broken lock would give.
    let other = tempfile::tempdir().expect("temp dir");
    copy(&store.path(), &other.path().join("store"));
    let mut theirs =
        Store::open(&other.path().join("store")).expect("open").group(&name("host"), &name("default")).expect("group");
    let mut ours = store.group();
    theirs.append(Body::Pin(Pin { point: points[0].0, reason: "theirs".into() })).expect("pin");
    let record = format!("groups/host/default/ledger/0/{}", head.0 + 1);
    fs::copy(other.path().join("store").join(&record), store.path().join(&record)).expect("copy");
    let pin = Body::Pin(Pin { point: points[1].0, reason: "ours".into() });
    let error = ours.append(pin.clone()).expect_err("taken");
    assert!(matches!(error, StoreError::Overtaken { .. }) && error.remedy() == Remedy::Rebuild, "{error}");
    assert_eq!(ours.state().head(), Some(Slot(head.0 + 1)), "theirs was replayed");
    assert_eq!(ours.append(pin).expect("append").position.slot, Slot(head.0 + 2));
    assert_eq!(ours.points().iter().filter(|p| !p.pins.is_empty()).count(), 2);
    assert!(read_all(&ours, points[2].0, &volume) == points[2].1);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[test]
fn a_duplicate_is_done_without_its_parts_and_a_missing_part_is_named() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    let entry = volume.land(&group, &[vec![(0, 16, Fill::Byte(1))]]);
    let body = layers(LayerKind::Point, vec![entry]);
    group.append(body.clone()).expect("append");
    assert_eq!(group.append(body).expect("again").verdict, Verdict::Void(VoidReason::Duplicate));
    let mut entry = volume.land(&group, &[vec![(0, 1, Fill::Byte(2))]]);
    let digest = std::mem::take(&mut entry.digest);
    let error = group.append(layers(LayerKind::Point, vec![entry.clone()])).expect_err("not the digest of its parts");
    assert!(matches!(error, StoreError::BadPart { .. }), "{error}");
    assert_eq!((error.remedy(), error.layer()), (Remedy::Lose, Some(entry.key)));
    entry.digest = digest;
    group.drop_parts(entry.key, 0).expect("drop");
    let key = entry.key;
    let error = group.append(layers(LayerKind::Point, vec![entry])).expect_err("its part is gone");
    assert_eq!((error.remedy(), error.layer()), (Remedy::Lose, Some(key)));
    assert!(matches!(error, StoreError::PartMissing { part: 0, .. }), "{error}");
}

#[test]
fn sweeping_follows_t4() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    let old_term = volume.term;
    volume.base(&mut group, 1);
    let _staged = volume.land(&group, &[vec![(0, 1, Fill::Byte(2))]]);
    let folder = format!("groups/host/default/segments/v/{old_term}");
    let published = store.path().join(&folder).join("1.0");
    // As if an append had linked them and died: the next layer, one of long ago, a part that the record does not name.
    for stray in ["2.0", "0.0", "1.7"] {
        fs::copy(&published, store.path().join(&folder).join(stray)).expect("copy");
    }
    drop(group);
    let group = store.group();
    let kept = [format!("{folder}/1.0"), format!("{folder}/2.0")];
    assert_eq!(store.files("groups/host/default/segments"), kept, "T4: a record that names it may still come");
    assert_eq!(group.landing().landed().len(), 1, "what may still be published stays");
    drop(group);

    let mut group = store.group();
    volume.claim(&mut group);
    drop(group);
    let group = store.group();
    assert_eq!(store.files("groups/host/default/segments"), [format!("{folder}/1.0")], "the term is over");
    assert!(group.landing().landed().is_empty() && store.files("landing").is_empty());
    assert_eq!(group.state().volume(volume.id()).expect("volume").last_seq(), Seq(0));
}

/// Segments are in the store before the record that names them; a receiver that dies between and sweeps "what no record names"
/// when it starts takes them from under a record that is still on its way.
#[test]
fn t4_what_a_record_may_still_name_is_not_swept() {
    tell(&[("T4 sweep everything that no record names", "T4: a record that names it may still come")], sweeping_follows_t4);
}

/// A bit rots. Every granule is held against the digest that was computed where the source read it.
#[test]
fn l4_rot_is_never_read_as_content() {
    let story = a_flipped_bit_is_named_by_volume_point_and_region;
    tell(&[("L4 content is not checked where it is read", "wrong content without an error")], story);
}

/// Layers linked into the segments by an append that failed, of which nothing is in landing any more.
fn adopted_and_not_published(store: &TempStore) -> (GroupStore, TestVolume, Arc<Faulty>) {
    let (mut group, faults) = faulty(store);
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    let entry = volume.land(&group, &[vec![(0, 8, Fill::Byte(2))], vec![(8, 8, Fill::Byte(3))]]);
    faults.fail(Op::Create, "ledger/0/2", When::Before, libc::EROFS);
    group.append(layers(LayerKind::Point, vec![entry])).expect_err("full");
    (group, volume, faults)
}

#[test]
fn a_claim_sweeps_what_was_adopted_under_the_terms_before_it_without_waiting_for_a_restart() {
    for restarted in [false, true] {
        let store = TempStore::new();
        let (mut group, mut volume, faults) = adopted_and_not_published(&store);
        if restarted {
            drop(group);
            fs::remove_dir_all(store.path().join("landing")).expect("the landing disk was put back");
            group = store.group();
        }
        let adopted = format!("groups/host/default/segments/v/{}/2.0", volume.term);
        assert!(store.path().join(&adopted).exists(), "the record that names it may still come");
        let mut other = TestVolume::new("w", 8);
        other.claim(&mut group);
        assert!(store.path().join(&adopted).exists(), "another volume's claim says nothing about it");
        volume.claim(&mut group);
        assert_eq!(store.files("groups/host/default/segments").len(), 1, "only the base is left");
        assert_eq!(group.deferred(), 0);
        assert!(read_all(&group, Slot(1), &volume) == TestVolume::bytes(&[Some(Fill::Byte(1)); 64]));
        drop(faults);
    }
}

#[test]
fn what_was_adopted_waits_for_readers_and_is_kept_by_a_void_claim() {
    let store = TempStore::new();
    let (mut group, mut volume, _faults) = adopted_and_not_published(&store);
    let overtaken = group.append(volume.claim_body(None)).expect("append");
    assert!(!overtaken.verdict.is_done(), "{:?}", overtaken.verdict);
    assert_eq!(store.files("groups/host/default/segments").len(), 3);
    let reader = ReaderLock::share(&store.path()).expect("lock");
    volume.claim(&mut group);
    assert_eq!((store.files("groups/host/default/segments").len(), group.deferred()), (3, 2));
    drop(reader);
    assert_eq!(group.sweep().expect("sweep").deleted, 2);
}

/// A sector that went bad below a folder, or a file that somebody made immutable: the store must neither fill up nor stay shut for it.
#[test]
fn a_file_that_cannot_be_deleted_keeps_no_other_one_nor_its_group_from_opening() {
    let store = TempStore::new();
    let (mut group, mut volume, _faults) = adopted_and_not_published(&store);
    assert!(!group.append(volume.claim_body(None)).expect("append").verdict.is_done());
    let reader = ReaderLock::share(&store.path()).expect("lock");
    volume.claim(&mut group);
    assert_eq!(group.deferred(), 2);
    drop((group, reader));
    let (opened, faults) = faulty_store(&store);
    let fail = || faults.fail(Op::Delete, "/2.0", When::Before, libc::EPERM);
    fail();
    let mut group = opened.group(&name("host"), &name("default")).expect("it opens all the same");
    assert_eq!((store.files("groups/host/default/segments").len(), group.deferred()), (2, 1), "the other one went");
    fail();
    let minute = std::time::Duration::from_secs(60);
    let opened = std::time::Instant::now();
    let error = group.sweep_as_of(opened + minute).expect_err("it is still not let go");
    assert!(error.to_string().contains("2.0"), "{error}");
    assert_eq!(group.deferred(), 1);
    assert_eq!(group.sweep_as_of(opened + 2 * minute).expect("it waits").deleted, 0);
    assert_eq!(group.sweep_as_of(opened + 3 * minute).expect("it is tried again").deleted, 1);
}

/// Files and what was in them.
type LostFiles = Vec<(std::path::PathBuf, Vec<u8>)>;

/// Two volumes with a point each, one landed layer of the second, and a ledger that lost all from the second's claim on.
fn lost_records(store: &TempStore) -> (TestVolume, TestVolume, Vec<Slot>, LostFiles) {
    let mut group = store.group();
    let (mut a, mut b) = (TestVolume::new("a", 16), TestVolume::new("b", 24));
    a.claim(&mut group);
    let first = a.base(&mut group, 1);
    b.claim(&mut group);
    let second = b.base(&mut group, 2);
    a.base(&mut group, 3);
    b.land(&group, &[vec![(0, 1, Fill::Byte(4))]]);
    drop(group);
    let mut lost = Vec::new();
    for slot in b.term.0..5 {
        let file = store.path().join(format!("groups/host/default/ledger/0/{slot}"));
        lost.push((file.clone(), fs::read(&file).expect("read")));
        fs::remove_file(file).expect("remove");
    }
    (a, b, vec![first, second], lost)
}

#[test]
fn files_of_a_claim_above_the_head_stop_everything_and_are_swept_by_nobody() {
    let store = TempStore::new();
    let (a, b, points, lost) = lost_records(&store);
    let (segments, landing) = (store.files("groups/host/default/segments"), store.files("landing"));
    assert_eq!((segments.len(), landing.len()), (3, 1));
    let mut group = store.group();
    let torn = group.torn().expect("stopped").clone();
    assert_eq!((torn.slot, torn.lost_claim), (Slot(2), Some(b.term)));
    let error = group.append(a.claim_body(Some(Slot(1)))).expect_err("stopped");
    assert!(matches!(error, StoreError::LedgerTorn { .. }) && error.to_string().contains("lost its newest records"), "{error}");
    assert!(matches!(group.drop_parts(b.key(2), 0), Err(StoreError::LedgerTorn { .. })));
    assert!(group.landing().landed().is_empty(), "nothing is promised of what cannot be judged");
    assert_eq!(group.prune(&KEEP_1).expect("nothing"), 0);
    group.sweep().expect("nothing");
    assert_eq!((store.files("groups/host/default/segments"), store.files("landing")), (segments.clone(), landing.clone()));
    assert!(read_all(&group, points[0], &a) == TestVolume::bytes(&[Some(Fill::Byte(1)); 16]), "what is left can be read");
    drop(group);
    let report = crate::check(&crate::StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
    assert!(report.findings.iter().any(|f| f.problem == crate::Problem::LedgerTorn && f.text.contains("lost")), "{report:?}");

    for (file, bytes) in lost {
        fs::write(file, bytes).expect("put back");
    }
    let group = store.group();
    assert!(group.torn().is_none());
    assert!(read_all(&group, points[1], &b) == TestVolume::bytes(&[Some(Fill::Byte(2)); 24]));
    assert_eq!((store.files("groups/host/default/segments"), store.files("landing")), (segments, landing));
}

#[test]
fn a_ledger_that_is_gone_altogether_does_not_take_the_segments_along() {
    let store = TempStore::new();
    drop(three_points(&store));
    fs::remove_dir_all(store.path().join("groups/host/default/ledger")).expect("remove");
    let segments = store.files("groups/host/default/segments");
    for _ in 0..2 {
        let group = store.group();
        assert_eq!(group.torn().map(|t| (t.slot, t.lost_claim)), Some((Slot(0), Some(farside_region::Term(0)))));
        assert_eq!(store.files("groups/host/default/segments"), segments);
    }
}

#[test]
fn a_repair_after_lost_records_gives_no_term_twice_and_keeps_what_it_cannot_judge() {
    let store = TempStore::new();
    let (mut a, mut b, points, _) = lost_records(&store);
    let old = b.term;
    let mut group = store.group();
    group.repair_torn().expect("repair");
    assert!(group.torn().is_none());
    assert_eq!(group.state().head(), Some(Slot(old.0)));
    b.claim(&mut group);
    assert!(b.term > old, "its names would be used twice");
    let newest = b.base(&mut group, 7);
    a.claim(&mut group);
    drop(group);
    let group = store.group();
    assert!(group.torn().is_none());
    assert!(read_all(&group, newest, &b) == TestVolume::bytes(&b.image));
    assert!(read_all(&group, points[0], &a) == TestVolume::bytes(&[Some(Fill::Byte(1)); 16]));
}

#[test]
fn strange_segments_below_the_head_are_kept_and_told() {
    let store = TempStore::new();
    let (group, volume, _) = three_points(&store);
    drop(group);
    let folder = store.path().join("groups/host/default/segments");
    let (published, strange) = (folder.join(format!("v/{}/1.0", volume.term)), folder.join("unknown/3"));
    fs::create_dir_all(&strange).expect("mkdir");
    fs::copy(&published, strange.join("1.0")).expect("copy");
    let group = store.group();
    assert!(group.torn().is_none() && strange.join("1.0").exists());
    drop(group);
    let report = crate::check(&crate::StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check");
    assert_eq!(report.findings.iter().map(|f| f.problem).collect::<Vec<_>>(), [crate::Problem::Strange]);
}

/// A store whose backend fails on command, before any group is opened.
fn faulty_store(store: &TempStore) -> (Store, Arc<Faulty>) {
    let mut wrapped = None;
    let opened = Store::open_over(&store.path(), |dir| {
        let faulty = Faulty::new(dir);
        wrapped = Some(Arc::clone(&faulty));
        faulty
    });
    (opened.expect("open"), wrapped.expect("wrapped"))
}

#[test]
fn a_segment_with_a_bad_sector_costs_its_own_content_and_no_more() {
    let store = TempStore::new();
    let (group, volume, points) = three_points(&store);
    drop(group);
    let (opened, faults) = faulty_store(&store);
    let second = format!("segments/v/{}/2.0", volume.term);
    faults.fail(Op::Range, &second, When::Before, libc::EIO);
    let group = opened.group(&name("host"), &name("default")).expect("the group opens");
    assert!(group.torn().is_none());
    assert!(read_all(&group, points[0].0, &volume) == points[0].1, "points that do not need it");
    let runs = group.digests(volume.id(), GranuleRun { start: GranuleIndex(0), count: 61 }).expect("digests");
    assert!(matches!(runs[0], DigestRun::Unreadable { .. }), "a Compare sends it again: {runs:?}");
    let error = group.point_reader(points[2].0, volume.id()).map(drop).expect_err("needs it");
    assert!(matches!(error, StoreError::Corrupt { .. }) && error.remedy() == Remedy::Person, "{error}");
    drop((group, opened));

    // In the payload, when it is read.
    let (opened, faults) = faulty_store(&store);
    let group = opened.group(&name("host"), &name("default")).expect("opens");
    let reader = group.point_reader(points[2].0, volume.id()).expect("reader");
    faults.fail(Op::Range, &second, When::Before, libc::EIO);
    let error = reader.read_region(RegionIndex(1), &mut reader.content()).expect_err("a bad sector");
    assert!(matches!(&error, StoreError::Corrupt { segment, .. } if segment.contains(&second)), "{error}");
    reader.read_region(RegionIndex(1), &mut reader.content()).expect("the sector answers again");
}

#[test]
fn a_record_with_a_bad_sector_stops_its_own_group_only() {
    REPEATING.set(false);
    let store = TempStore::new();
    drop(three_points(&store));
    let opened = store.open();
    drop(opened.group(&name("host"), &name("db")).expect("group"));
    drop(opened);
    // Our own memory at address 0, read as a file, is an EIO.
    let record = store.path().join("groups/host/default/ledger/0/2");
    fs::remove_file(&record).expect("remove");
    std::os::unix::fs::symlink("/proc/self/mem", &record).expect("link");
    let opened = store.open();
    let mut group = opened.group(&name("host"), &name("default")).expect("opens");
    assert_eq!(group.torn().expect("stopped").slot, Slot(2));
    assert!(group.torn().expect("stopped").why.contains("cannot be read"));
    assert_eq!(group.points().len(), 1);
    let error = group.repair_torn().expect_err("nobody knows what it says");
    assert!(matches!(error, StoreError::Unreadable { .. }) && error.remedy() == Remedy::Person, "{error}");
    assert!(!record.with_extension("void").exists());
    let mut other = opened.group(&name("host"), &name("db")).expect("opens");
    let id = farside_ledger::volume_id(&name("host"), &name("db"), &name("v"));
    let mut body = TestVolume::new("v", 8).claim_body(None);
    if let Body::Claim(claim) = &mut body {
        claim.volume.id = id;
    }
    assert_eq!(other.append(body).expect("the other group goes on").verdict, Verdict::Accepted);
}

#[test]
fn a_slot_that_is_taken_and_cannot_be_read_tears_the_group_and_not_the_store() {
    let store = TempStore::new();
    let (mut group, faults) = faulty(&store);
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    fs::write(store.path().join("groups/host/default/ledger/0/1"), "somebody's").expect("write");
    faults.fail(Op::Get, "ledger/0/1", When::Before, libc::EIO);
    let error = group.append(volume.claim_body(Some(Slot(0)))).expect_err("cannot be read");
    assert!(matches!(error, StoreError::LedgerTorn { .. }) && error.remedy() == Remedy::Person, "{error}");
    assert_eq!(group.torn().expect("stopped").slot, Slot(1));
}

#[test]
fn a_write_and_a_look_that_both_fail_are_the_stores_failure() {
    let store = TempStore::new();
    let (mut group, faults) = faulty(&store);
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    faults.fail(Op::Create, "ledger/0/1", When::Before, libc::EIO);
    faults.fail(Op::Get, "ledger/0/1", When::Before, libc::EIO);
    let error = group.append(volume.claim_body(Some(Slot(0)))).expect_err("the disk fails");
    assert_eq!(error.remedy(), Remedy::Reopen, "{error}");
    assert!(group.torn().is_none(), "nobody knows what is in the slot");
}

#[test]
fn pruning_keeps_what_head_points_and_pins_need() {
    let store = TempStore::new();
    let (mut group, mut volume, points) = three_points(&store);
    // Fuzzy layers lie above the last point: only the head image needs them, and the newest is not the only one.
    volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(30, 10, Fill::Byte(4))]]);
    volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(0, 2, Fill::Byte(5))]]);
    let pin = group.append(Body::Pin(Pin { point: points[0].0, reason: "audit".into() })).expect("pin").position.slot;
    assert_eq!(group.prune(&KEEP_1).expect("prune"), 1, "the middle one");
    for kept in [0, 2] {
        assert!(read_all(&group, points[kept].0, &volume) == points[kept].1, "point {}", points[kept].0);
    }
    group.append(Body::Unpin(farside_ledger::Unpin { pin })).expect("unpin");
    assert_eq!(group.prune(&KEEP_1).expect("prune"), 1);
    assert!(read_all(&group, points[2].0, &volume) == points[2].1);
    let next = volume.publish(&mut group, LayerKind::Point, &[vec![(60, 1, Fill::Byte(6))]]).position.slot;
    assert!(read_all(&group, next, &volume) == TestVolume::bytes(&volume.image), "the fuzzy layers are part of it");
    drop(group);
    let group = store.group();
    assert!(read_all(&group, next, &volume) == TestVolume::bytes(&volume.image), "after reopening");
}

/// R15: retention deleted what a restore that was running still needed.
#[test]
fn nothing_is_deleted_while_somebody_reads_and_a_crash_before_it_is_made_up_for() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    volume.base(&mut group, 2);
    let file = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let reader = ReaderLock::share(&store.path()).expect("lock");
    assert_eq!(group.prune(&KEEP_1).expect("prune"), 1);
    assert_eq!((group.deferred(), file.exists()), (1, true));
    drop(group); // killed
    let mut group = store.group();
    assert_eq!((group.deferred(), file.exists()), (1, true), "still being read");
    drop(reader);
    assert_eq!(group.sweep().expect("sweep").deleted, 1);
    assert!(!file.exists() && group.deferred() == 0);
}

#[test]
fn digests_say_what_the_head_image_holds() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 40);
    volume.claim(&mut group);
    let whole = GranuleRun { start: GranuleIndex(0), count: 40 };
    assert_eq!(group.digests(volume.id(), whole).expect("digests"), [DigestRun::Absent { granules: 40 }]);
    volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(0, 4, Fill::Byte(1)), (4, 6, Fill::Zero), (12, 2, Fill::Unreadable)]]);
    volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(2, 3, Fill::Byte(2))]]);
    let digest = |g: u64, byte| {
        farside_layer::granule_digest(
            volume.meta.digest_key.clear().expect("not encrypted"),
            GranuleIndex(g),
            &crate::testkit::granule(g, byte),
        )
    };
    let data = DigestRun::Data(vec![digest(0, 1), digest(1, 1), digest(2, 2), digest(3, 2), digest(4, 2)]);
    let rest = [
        DigestRun::Zero { granules: 5 },
        DigestRun::Absent { granules: 2 },
        DigestRun::Unreadable { granules: 2 },
        DigestRun::Absent { granules: 26 },
    ];
    let mut all = vec![data];
    all.extend(rest);
    assert_eq!(group.digests(volume.id(), whole).expect("digests"), all);
    let some = GranuleRun { start: GranuleIndex(1), count: 2 };
    assert_eq!(group.digests(volume.id(), some).expect("digests"), [DigestRun::Data(vec![digest(1, 1), digest(2, 2)])]);
}

#[test]
fn unreadable_regions_are_those_of_the_image_after_the_layer() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 32);
    volume.claim(&mut group);
    let regions = |appended: crate::Appended, group: &GroupStore| {
        let degraded = group.state().points()[&appended.position.slot].degraded;
        let unreadable: Vec<u64> = group.state().volumes().next().expect("volume").1.unreadable().iter().map(|r| r.0).collect();
        (unreadable, degraded)
    };
    let base = vec![(0, 4, Fill::Byte(1)), (4, 2, Fill::Unreadable), (6, 26, Fill::Byte(1))];
    let point = volume.publish(&mut group, LayerKind::Point, &[base]);
    assert_eq!(regions(point, &group), (vec![0], true));
    let half = volume.publish(&mut group, LayerKind::Point, &[vec![(4, 1, Fill::Byte(2)), (9, 1, Fill::Unreadable)]]);
    assert_eq!(regions(half, &group), (vec![0, 1], true), "one granule of it was read at last");
    let rest = volume.publish(&mut group, LayerKind::Point, &[vec![(5, 1, Fill::Byte(2)), (9, 1, Fill::Zero)]]);
    assert_eq!(regions(rest, &group), (vec![], false));
}

/// A source that says too little: its points would be listed as good and fail on the worst day.
#[test]
fn a_layer_that_is_not_what_its_source_said_is_lost_and_no_record_names_it() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 32);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    let head = group.state().head();
    let good = volume.land(&group, &[vec![(4, 1, Fill::Unreadable), (9, 1, Fill::Byte(2))]]);
    let hides_a_run = LayerEntry { unreadable_regions: RegionSet::new(), ..good.clone() };
    let hides_a_region = LayerEntry { regions: [RegionIndex(0)].into_iter().collect(), ..good.clone() };
    for (entry, word) in [(hides_a_run, "region 0 holds an unreadable run"), (hides_a_region, "region 1")] {
        let error = group.append(layers(LayerKind::Point, vec![entry])).expect_err("refused");
        assert!(matches!(error, StoreError::BadPart { .. }) && error.remedy() == Remedy::Lose, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(group.state().head(), head);
    }
    // To say too much does no harm.
    let careful = LayerEntry { unreadable_regions: good.regions.clone(), ..good };
    assert!(group.append(layers(LayerKind::Point, vec![careful])).expect("append").verdict.is_done());
    // A region that was unreadable before, and is said to be whole without having been rewritten.
    let part = volume.land(&group, &[vec![(5, 1, Fill::Byte(3))]]);
    let forgets = LayerEntry { unreadable_regions: RegionSet::new(), ..part };
    assert!(group.append(layers(LayerKind::Point, vec![forgets])).is_err());
}

#[test]
fn a_group_of_two_volumes_has_points_with_and_without_a_member() {
    let store = TempStore::new();
    let mut group = store.group();
    let (mut a, mut b) = (TestVolume::new("a", 16), TestVolume::new("b", 24));
    a.claim(&mut group);
    b.claim(&mut group);
    let both = |group: &mut GroupStore, a: &mut TestVolume, b: &mut TestVolume, byte| {
        let members = vec![a.land(group, &[vec![(0, 16, Fill::Byte(byte))]]), b.land(group, &[vec![(0, 24, Fill::Byte(byte))]])];
        group.append(layers(LayerKind::Point, members)).expect("append").position.slot
    };
    let first = both(&mut group, &mut a, &mut b, 1);
    let alone: BTreeMap<u8, Slot> = (2..6).map(|byte| (byte, a.base(&mut group, byte))).collect();
    group.prune(&KEEP_1).expect("prune");
    let left: Vec<Slot> = group.points().iter().map(|p| p.slot).collect();
    assert_eq!(left, [first, alone[&5]], "b has nothing newer than the first, so it does not age");
    assert!(matches!(group.point_reader(alone[&5], b.id()), Err(StoreError::NotAMember { .. })));
    let newest = both(&mut group, &mut a, &mut b, 9);
    group.prune(&KEEP_1).expect("prune");
    assert_eq!(group.points().iter().map(|p| p.slot).collect::<Vec<_>>(), [newest]);
    assert_eq!(store.files("groups/host/default/segments").len(), 2, "one part of each is left");
}

/// A Compare must not believe an index over bytes that have rotten: what it calls equal would never be sent again.
#[test]
fn a_compare_reads_the_bytes_and_what_is_rotten_is_sent_again() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let (base, whole) = (volume.base(&mut group, 1), GranuleRun { start: GranuleIndex(0), count: 64 });
    let file = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let mut bytes = fs::read(&file).expect("read");
    let footer = farside_layer::Footer::from_tail(&bytes, bytes.len() as u64).expect("a footer");
    let frame = *footer.frame_of(GranuleIndex(20)).expect("a frame");
    let sound = group.digests(volume.id(), whole).expect("digests");
    assert!(matches!(&sound[..], [DigestRun::Data(all)] if all.len() == 64), "{sound:?}");
    bytes[frame.offset as usize + 5] ^= 2;
    fs::write(&file, &bytes).expect("rot");
    let found = group.digests(volume.id(), whole).expect("digests");
    let granules = frame.run.count;
    assert_eq!(found.get(1), Some(&DigestRun::Unreadable { granules }), "{found:?}");
    assert!(matches!(&found[0], DigestRun::Data(before) if before.len() as u64 == frame.run.start.0), "{found:?}");
    // What the source sends again lies over it.
    let again = (frame.run.start.0, granules, Fill::Byte(1));
    let healed = volume.publish(&mut group, LayerKind::Point, &[vec![again]]).position.slot;
    assert!(read_all(&group, healed, &volume) == TestVolume::bytes(&volume.image));
    let found = group.digests(volume.id(), whole).expect("digests");
    assert!(matches!(&found[..], [DigestRun::Data(all)] if all.len() == 64), "what is covered counts no more: {found:?}");
    assert!(group.point_reader(base, volume.id()).is_ok());
}

/// A name is not a promise: nothing is allocated, and nothing overflows, by the number in it.
#[test]
fn a_stray_file_in_the_ledger_is_a_torn_record_and_not_the_end_of_the_process() {
    for stray in ["4503599627370495/18446744073709551615", "244140625/1000000000000"] {
        let store = TempStore::new();
        let (group, _, points) = three_points(&store);
        let next = group.state().next_slot();
        drop(group);
        let file = store.path().join("groups/host/default/ledger").join(stray);
        fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
        fs::write(&file, "x").expect("write");
        let mut group = store.group();
        assert_eq!((group.torn().map(|t| t.slot), group.points().len()), (Some(next), points.len()), "{stray}");
        assert!(matches!(group.repair_plan(), Err(StoreError::LedgerTorn { .. })), "too many slots to void");
        assert!(group.repair_torn().is_err());
        assert_eq!(
            crate::check(&crate::StoreReader::open(&store.path()).expect("open"), &|_| true).expect("check").worst(),
            Some(crate::Severity::Error)
        );
    }
}

#[test]
fn the_bytes_of_segments_are_counted_as_they_come_and_go() {
    let store = TempStore::new();
    let (mut group, mut volume, _) = three_points(&store);
    let on_disk = || -> u64 {
        let files = store.files("groups/host/default/segments");
        files.iter().map(|f| fs::metadata(store.path().join(f)).expect("meta").len()).sum()
    };
    assert_eq!(group.segment_bytes(), on_disk());
    volume.base(&mut group, 9);
    assert_eq!(group.segment_bytes(), on_disk());
    assert_eq!(group.prune(&KEEP_1).expect("prune"), 3);
    assert_eq!((group.segment_bytes(), group.deferred()), (on_disk(), 0));
}

/// † A record was linked, and the sync of its folder finds no space: whoever took that for "nothing was appended" would drop the parts of a layer that
/// lies in the ledger.
#[test]
fn a_record_whose_folder_finds_no_space_only_when_it_is_synced_is_not_taken_for_none() {
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EROFS] {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volume = TestVolume::new("v", 16);
        volume.claim(&mut group);
        let entry = volume.land(&group, &[vec![(0, 16, Fill::Byte(1))]]);
        let key = entry.key;
        let dir = Arc::clone(&group.shared.staging);
        dir.fail_sync(&dir.root().join("groups/host/default/ledger/0"), errno);
        let error = group.append(layers(LayerKind::Point, vec![entry])).expect_err("the folder was not synced");
        assert!(matches!(error, StoreError::Uncertain { .. }), "{errno}: {error}");
        let kept = group.drop_parts(key, 0).expect_err("nobody knows whether it is in the ledger");
        assert!(matches!(kept, StoreError::Uncertain { .. }), "{kept}");
        drop((group, dir));
        let group = store.group();
        let point = *group.state().points().keys().next_back().expect("it is in the ledger");
        assert!(read_all(&group, point, &volume) == TestVolume::bytes(&volume.image), "with all of its parts");
    }
}
