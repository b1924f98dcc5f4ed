//! A merge, and then something else is lost: a record before its map, a part that it wrote, the ledger's end. No retained point may go
//! with that.

use std::fs;
use std::path::PathBuf;

use farside_ledger::{Body, LayerKind, Pin};
use farside_region::mutation::tell;
use farside_region::{RegionIndex, mutation};

use super::tests::{KEEP_1, all_of, bucket_of, churn, file_of, in_bucket, names, reader, seen, store_of};
use super::*;
use crate::backend::Backend;
use crate::backend::faulty::When;
use crate::backend::memory::{Memory, Met};
use crate::checkpoint::SPAN;
use crate::checkpoint::tests::copy_dir;
use crate::repeats::REPEATING;
use crate::testkit::{Fill, PASSED_MS, TempStore, TestVolume};
use crate::{GroupStore, Repair, StoreReader};

pub(super) type Seen = Vec<(Slot, Vec<u8>, String)>;

fn record(store: &TempStore, slot: Slot) -> PathBuf {
    store.path().join(names().record(slot).as_str())
}

/// Nothing is left of it that could be mended.
fn tear(store: &TempStore, slot: Slot) {
    fs::write(record(store, slot), b"torn").expect("write");
}

pub(super) fn fuzzy(group: &mut GroupStore, volume: &mut TestVolume, records: u64) -> Slot {
    let mut last = Slot(0);
    for _ in 0..records {
        last = volume.publish(group, LayerKind::Fuzzy, &[vec![(60, 1, Fill::Byte(9))]]).position.slot;
    }
    last
}

/// What points hold that lie before a slot.
fn before(seen: &Seen, slot: Slot) -> Seen {
    seen.iter().filter(|(point, ..)| *point < slot).cloned().collect()
}

/// The points before a slot by now, or why one of them cannot be read.
pub(super) fn seen_before(store: &TempStore, volume: &TestVolume, slot: Slot) -> Result<Seen> {
    let group = StoreReader::open(&store.path())?.group(&names())?;
    for point in group.points().into_iter().filter(|point| point.slot < slot) {
        group.point_reader(point.slot, volume.id())?;
    }
    Ok(before(&seen(&group, volume), slot))
}

/// History with retained points, and after them a record that says nothing of them, in the slot that is given; then a merge.
pub(super) struct Merged {
    pub(super) store: TempStore,
    pub(super) group: GroupStore,
    pub(super) volume: TestVolume,
    /// What the points hold.
    pub(super) truth: Seen,
    /// A record after the points and before the map.
    pub(super) between: Slot,
    /// Files of parts that were merged.
    pub(super) old: Vec<PathBuf>,
    /// And of those that took their place.
    pub(super) new: Vec<PathBuf>,
}

pub(super) fn merged(span: u64) -> Merged {
    SPAN.set(span);
    let (store, mut group, mut volume) = store_of(4);
    group.prune(&KEEP_1).expect("prune");
    let between = fuzzy(&mut group, &mut volume, 2);
    let truth = seen(&reader(&store), &volume);
    assert!(truth.len() >= 2 && truth.iter().all(|(point, ..)| *point < between));
    let names = |group: &GroupStore| group.image().parts().iter().map(|(_, part)| part.name).collect::<BTreeSet<_>>();
    let parts = names(&group);
    let replaces = |group: &GroupStore| -> (Vec<PartName>, Vec<PartName>) {
        let now = names(group);
        (parts.difference(&now).copied().collect(), now.difference(&parts).copied().collect())
    };
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    let (old, new) = replaces(&group);
    let files = |parts: Vec<PartName>| parts.iter().map(|part| file_of(&store, &volume, part)).collect::<Vec<_>>();
    let (old, new) = (files(old), files(new));
    assert!(old.len() > 2 && !new.is_empty());
    Merged { store, group, volume, truth, between, old, new }
}

pub(super) fn there(files: &[PathBuf]) -> usize {
    files.iter().filter(|file| file.exists()).count()
}

/// A record before the map is torn, and no checkpoint covers the map: replay stops before it, and goes by the old parts. They are there, for
/// readers, after a repair, and after whatever is deleted then.
#[test]
fn a_torn_record_before_a_merge_costs_no_point_before_it() {
    REPEATING.set(false);
    let lost = |mistake: &[&'static str]| {
        mutation::set(mistake);
        let Merged { store, mut group, mut volume, truth, between, new, .. } = merged(4096);
        group.sweep().expect("sweep");
        drop(group);
        tear(&store, between);
        let of_points = |slot| seen_before(&store, &volume, slot);
        let kept = of_points(between);
        let mut group = store.group();
        let torn = group.torn().map(|torn| torn.slot);
        group.sweep().expect("sweep");
        assert!(matches!(group.repair_plan(), Ok(Some(Repair::Void { first, .. })) if first == between));
        group.repair_torn().expect("repaired");
        mutation::set(&[]);
        assert_eq!(torn, Some(between));
        if kept.as_ref().ok() != Some(&truth) {
            return true;
        }
        assert_eq!(of_points(between).expect("read"), truth, "after the repair");
        assert_eq!(group.unnamed_merges(), new.len(), "what the record named that was given up");
        // Whatever comes then: merges of the same parts again, checkpoints, a collector, a restart.
        SPAN.set(8);
        volume.claim(&mut group);
        assert!(group.merge(&KEEP_1).expect("merge") > 0);
        fuzzy(&mut group, &mut volume, 20);
        group.sweep().expect("sweep");
        assert_eq!(seen_before(&store, &volume, between).expect("read"), truth);
        drop(group);
        let mut group = store.group();
        group.merge(&KEEP_1).expect("merge");
        group.sweep().expect("sweep");
        assert_eq!(seen_before(&store, &volume, between).expect("read"), truth, "opened again");
        assert_eq!(there(&new), new.len(), "what was published by records that were given up is nobody's to delete");
        // What comes to nothing after the repair is another matter.
        churn(&mut group, &mut volume, 3);
        group.prune(&KEEP_1).expect("prune");
        let look = group.merge_look(&KEEP_1, false).expect("something to look at");
        let found = look.find(&|_| true).expect("find").merges.into_iter().next().expect("something to merge");
        let key = look.write(&found, &|_| true).expect("an id").key;
        drop(group);
        let mut group = store.group();
        let decree = group.decree_plan().expect("it came to nothing");
        let only = farside_ledger::Decree { merges: vec![(volume.id(), key.merge().expect("a merge"))] };
        assert_eq!(decree, Body::Decree(only));
        false
    };
    assert!(!lost(&[]));
    assert!(lost(&["what a merge replaced goes before a checkpoint covers it"]), "the mistake loses a point");
}

/// A checkpoint covers the map: the old parts have gone, and replay begins above whatever record is torn.
#[test]
fn a_torn_record_below_a_checkpoint_that_covers_a_merge_costs_nothing() {
    let Merged { store, mut group, mut volume, truth, between, old, new } = merged(8);
    assert_eq!(there(&old), old.len(), "no checkpoint covers the map yet");
    let after = fuzzy(&mut group, &mut volume, 9);
    assert_eq!(there(&old), 0, "now one does");
    drop(group);
    tear(&store, between);
    assert_eq!(before(&seen(&reader(&store), &volume), after), truth);
    let mut group = store.group();
    assert!(group.torn().is_none());
    // And one above it, which is given up with what follows.
    let mut torn = fuzzy(&mut group, &mut volume, 1);
    while torn.0 % 8 != 4 {
        torn = fuzzy(&mut group, &mut volume, 1);
    }
    fuzzy(&mut group, &mut volume, 2);
    drop(group);
    tear(&store, torn);
    let mut group = store.group();
    assert_eq!(group.torn().map(|torn| torn.slot), Some(torn));
    group.repair_torn().expect("repaired");
    group.merge(&KEEP_1).expect("merge");
    group.sweep().expect("sweep");
    assert_eq!(before(&seen(&reader(&store), &volume), after), truth);
    assert_eq!(there(&new), new.len());
}

/// The checkpoint that covers the map is there, and its state is not: it covers nothing.
#[test]
fn a_checkpoint_without_its_state_covers_no_merge() {
    let Merged { store, group, mut volume, truth, between, old, .. } = merged(4096);
    // It comes to be while the receiver is away from its store's checkpoint folder: as a file in its place.
    let folder = store.path().join(names().checkpoints().as_str());
    drop(group);
    SPAN.set(8);
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("remove");
    }
    fs::write(&folder, b"").expect("write");
    let mut group = store.group();
    fuzzy(&mut group, &mut volume, 9);
    group.sweep().expect("sweep");
    assert_eq!(there(&old), old.len(), "none could be written");
    assert_eq!(seen_before(&store, &volume, between).expect("read"), truth);
    drop(group);
    fs::remove_file(&folder).expect("remove");
    let group = store.group();
    assert_eq!(there(&old), 0, "the next start wrote them");
    drop(group);
    assert_eq!(seen_before(&store, &volume, between).expect("read"), truth);
}

/// The ledger loses its newest records, the map among them, and nothing tells: it goes on from an older slot.
#[test]
fn a_ledger_that_loses_a_merge_without_a_trace_goes_by_the_old_parts() {
    let Merged { store, group, mut volume, truth, between, .. } = merged(4096);
    let end = group.state().next_slot();
    drop(group);
    ((between.0 + 1)..end.0).for_each(|slot| fs::remove_file(record(&store, Slot(slot))).expect("remove"));
    let mut group = store.group();
    assert!(group.torn().is_none());
    group.merge(&KEEP_1).expect("merge");
    SPAN.set(8);
    fuzzy(&mut group, &mut volume, 20);
    group.sweep().expect("sweep");
    assert_eq!(seen_before(&store, &volume, between).expect("read"), truth);
}

/// A store was copied while it was merged: the record is in the copy, the part that it names is not, and the old ones are.
#[test]
fn a_copy_without_a_merged_part_keeps_the_old_ones() {
    let Merged { store, mut group, mut volume, truth, between, old, new } = merged(8);
    let open = reader(&store).point_reader(truth[0].0, volume.id()).expect("open");
    fuzzy(&mut group, &mut volume, 9);
    assert_eq!(there(&old), old.len(), "somebody reads");
    let copy = TempStore::new();
    fs::remove_dir_all(copy.path()).expect("remove");
    copy_dir(&store.path(), &copy.path());
    drop((open, group));
    let in_copy = |files: &[PathBuf]| -> Vec<PathBuf> {
        files.iter().map(|file| copy.path().join(file.strip_prefix(store.path()).expect("in the store"))).collect()
    };
    let (old_there, new_there) = (in_copy(&old), in_copy(&new));
    new_there.iter().for_each(|file| fs::remove_file(file).expect("remove"));

    let mut group = copy.group();
    assert!(group.image().has_unknown());
    group.sweep().expect("sweep");
    assert_eq!((there(&old_there), group.deferred()), (old.len(), old.len()), "nothing else holds what they hold");
    assert!(group.decree_plan().is_none() && group.merge_look(&KEEP_1, false).is_none());
    // What lies over it now lets merges and prunes go on, but is not what older points hold.
    volume.base(&mut group, 77);
    assert!(!group.image().has_unknown());
    group.sweep().expect("sweep");
    assert_eq!(there(&old_there), old.len());
    assert!(group.merge_look(&KEEP_1, false).is_none());
    drop(group);
    let mut group = copy.group();
    group.sweep().expect("sweep");
    assert_eq!(there(&old_there), old.len());
    drop(group);
    // It comes back.
    for (from, to) in new.iter().zip(&new_there) {
        fs::copy(from, to).expect("copy");
    }
    drop(copy.group());
    assert_eq!(there(&old_there), 0);
    assert_eq!(seen_before(&copy, &volume, between).expect("read"), truth);
}

/// What becomes of the bytes of an object.
type Fault = fn(&[u8]) -> Option<Vec<u8>>;

/// The store does not hold what it said it took: nothing is replaced by that, and what lies there is decreed away.
#[test]
fn a_merged_part_that_is_not_what_was_written_takes_nobodys_place() {
    let flip = |good: &[u8]| {
        let footer = Footer::from_tail(good, good.len() as u64).expect("a footer");
        let frame = footer.frames().iter().find(|frame| frame.stored_bytes > 0).expect("data");
        let mut bad = good.to_vec();
        bad[frame.offset as usize + frame.stored_bytes as usize / 2] ^= 1;
        Some(bad)
    };
    let longer = |good: &[u8]| Some([good, b"more"].concat());
    let faults: [Fault; 3] = [flip, longer, |_| None];
    for fault in faults {
        let bucket = Arc::new(Memory::default());
        let (_dir, mut group, volume, _) = bucket_of(&bucket);
        let now = || {
            let backend = Arc::clone(&bucket) as Arc<dyn Backend>;
            seen(&StoreReader::open_bucket(backend).expect("open").group(&names()).expect("group"), &volume)
        };
        let truth = now();
        let look = group.merge_look(&KEEP_1, false).expect("something to look at");
        let found = look.find(&|_| true).expect("find").merges.into_iter().next().expect("something to merge");
        // Their terms begin at 2^63.
        let of_merges = "/segments/v/9223372";
        let there = Arc::clone(&bucket);
        bucket.meet(Met::Create, When::After, of_merges, move || {
            let name = crate::ObjectName::new(there.names(of_merges).pop().expect("it was just put")).expect("a name");
            let good = block_on(there.get(&name, u64::MAX)).expect("get").expect("it is there");
            match fault(&good) {
                Some(bad) => block_on(there.put_right(&name, bad.into())).expect("put"),
                None => block_on(there.delete(&name)).expect("delete"),
            }
        });
        let tried = look.write(&found, &|_| true).expect("an id");
        assert!(bucket.all_met());
        assert!(matches!(tried.written, Err(StoreError::NotMerged { .. })), "{:?}", tried.written);
        assert_eq!(group.merge_written(tried), None);
        assert_eq!(now(), truth);
        let decree = group.decree_plan().expect("it came to nothing");
        assert_eq!(group.append(decree).expect("append").verdict, farside_ledger::Verdict::Accepted);
        let look = group.look_at(look.interval).expect("it is there");
        let found = look.find(&|_| true).expect("find").merges.into_iter().next().expect("something to merge");
        let tried = look.write(&found, &|_| true).expect("an id");
        let (key, body) = (tried.key, group.merge_written(tried).expect("it may be merged"));
        assert_eq!(group.append(body).expect("append").verdict, farside_ledger::Verdict::Accepted);
        group.merge_ended(key);
        assert_eq!(now(), truth);
    }
}

/// So many hours in a bucket, in which its receiver sweeps, and publishes something small.
fn hours(bucket: &Memory, group: &mut GroupStore, volume: &mut TestVolume, hours: u64) {
    for _ in 0..hours {
        PASSED_MS.set(PASSED_MS.get() + 3600 * 1000);
        bucket.pass_ms(3600 * 1000);
        fuzzy(group, volume, 1);
        group.sweep().expect("sweep");
    }
}

/// What a damaged part of a merge may have replaced stays in a bucket, and nothing else does: other volumes, and what came later.
#[test]
fn a_damaged_part_of_a_merge_keeps_nothing_else_from_going() {
    tell(&[("L4 what is forgotten is an orphan", "what it may have replaced went")], a_damaged_merge);
}

fn a_damaged_merge() {
    SPAN.set(8);
    crate::testkit::forget_soon();
    let bucket = Arc::new(Memory::default());
    let backend = || Arc::clone(&bucket) as Arc<dyn Backend>;
    let (dir, mut group, mut volume, point) = bucket_of(&bucket);
    let truth = seen(&StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group"), &volume);
    let objects = |group: &GroupStore| {
        let of =
            |part: &Part| part.place.map_or_else(|| names().segment(&volume.meta.name, &part.name), |at| names().pack(at.pack));
        group.image().parts().iter().map(|(_, part)| of(part)).collect::<BTreeSet<_>>()
    };
    let before = objects(&group);
    assert!(group.merge(&KEEP_1).expect("merge") > 0);
    let now = objects(&group);
    let old: BTreeSet<_> = before.difference(&now).cloned().collect();
    let there = |of: &BTreeSet<crate::ObjectName>| of.iter().filter(|name| !bucket.names(name.as_str()).is_empty()).count();
    let packs = |of: &BTreeSet<crate::ObjectName>| of.iter().filter(|name| name.as_str().contains("/packs/")).count();
    assert!(packs(&old) > 0 && packs(&old) < old.len());
    let new: Vec<_> = now.difference(&before).map(|name| (name.clone(), block_on(bucket.get(name, u64::MAX)))).collect();
    group.append(Body::Pin(Pin { point, reason: String::new() })).expect("pin");
    while group.image().replaced().0 > 0 {
        fuzzy(&mut group, &mut volume, 1);
    }
    drop(group);
    new.iter().for_each(|(name, _)| block_on(bucket.delete(name)).expect("lost"));
    let mut group = in_bucket(&bucket, &dir);
    assert!(group.image().has_unknown());
    volume.base(&mut group, 77);
    assert!(!group.image().has_unknown() && group.image().is_spoiled(None, Slot(0)));
    hours(&bucket, &mut group, &mut volume, 30);
    assert_eq!(there(&old), old.len(), "what it may have replaced went");

    let mut other = TestVolume::new("w", 64);
    other.claim(&mut group);
    other.base(&mut group, 1);
    other.publish(&mut group, LayerKind::Point, &[vec![(3, 4, Fill::Byte(2))], vec![(9, 4, Fill::Byte(3))]]);
    let of_other =
        |part: &Part| part.place.map_or_else(|| names().segment(&other.meta.name, &part.name), |at| names().pack(at.pack));
    let parts = group.image().parts().iter().filter(|(_, part)| part.name.layer.volume == other.id());
    let others: BTreeSet<_> = parts.map(|(_, part)| of_other(part)).collect();
    assert_eq!((packs(&others), others.len()), (1, 2));
    other.base(&mut group, 4);
    group.prune(&KEEP_1).expect("prune");
    hours(&bucket, &mut group, &mut volume, 20);
    assert_eq!(there(&others), 2, "given up just now");
    // No record can name that pack any more.
    fuzzy(&mut group, &mut volume, 130);
    hours(&bucket, &mut group, &mut volume, 20);
    assert_eq!((there(&others), there(&old)), (0, old.len()), "another volume's are not needed for anything that is damaged");

    // It comes back.
    drop(group);
    for (name, content) in new {
        block_on(bucket.put_right(&name, content.expect("got").expect("there"))).expect("put");
    }
    let mut group = in_bucket(&bucket, &dir);
    assert!(!group.image().is_spoiled(None, Slot(0)));
    // A few names at a time.
    (0..300).for_each(|_| assert!(group.sweep().is_ok()));
    hours(&bucket, &mut group, &mut volume, 30);
    assert_eq!(there(&old), 0);
    let anew = StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group");
    let pinned = all_of(&anew.point_reader(point, volume.id()).expect("open"));
    assert!(truth.last().is_some_and(|(slot, content, _)| *slot == point && *content == pinned));
}

/// Who reads a directory holds all deletions up: merging does not go on meanwhile for ever.
#[test]
fn merging_waits_for_what_it_replaced() {
    SPAN.set(8);
    let (store, mut group, mut volume) = store_of(4);
    let open = reader(&store);
    crate::group::set_waiting_bytes_least(3000);
    for _ in 0..40 {
        churn(&mut group, &mut volume, 2);
        group.prune(&KEEP_1).expect("prune");
        group.merge(&KEEP_1).expect("merge");
    }
    assert!(group.merges_wait() && group.merge_look(&KEEP_1, false).is_none());
    drop(group);
    let mut group = store.group();
    assert!(group.merges_wait(), "it is not forgotten");
    drop(open);
    churn(&mut group, &mut volume, 4);
    group.sweep().expect("sweep");
    assert!(!group.merges_wait() && group.merge_look(&KEEP_1, false).is_some());
}

/// Who may not write into a bucket has no lease. He pins the point that he reads, for as long as it takes.
#[test]
fn l4_a_pin_keeps_the_parts_of_a_reader_without_a_lease() {
    let reads = |mistake: &[&'static str]| {
        SPAN.set(8);
        let bucket = Arc::new(Memory::default());
        let backend = || Arc::clone(&bucket) as Arc<dyn Backend>;
        let (_dir, mut group, mut volume, point) = bucket_of(&bucket);
        group.append(Body::Pin(Pin { point, reason: "I read it".into() })).expect("pin");
        bucket.hang(Some("leases/"));
        let replayed = StoreReader::open_bucket(backend()).expect("open").group(&names()).expect("group");
        let open = replayed.point_reader(point, volume.id()).expect("open");
        assert!(open.unkept().is_some());
        bucket.hang(None);
        let old: Vec<PartName> = group.image().parts().iter().map(|(_, part)| part.name).collect();
        mutation::set(mistake);
        // Merges of what comes after the pin go on; so they do of this if the mistake is made.
        if !mistake.is_empty() {
            merge_all(&mut group, volume.id(), point);
        }
        for _ in 0..60 {
            PASSED_MS.set(PASSED_MS.get() + 3600 * 1000);
            churn(&mut group, &mut volume, 1);
            group.merge(&KEEP_1).expect("merge");
            group.sweep().expect("sweep");
        }
        mutation::set(&[]);
        let later = group.state().volume(volume.id()).expect("claimed").merges().values().filter(|merge| merge.born > point);
        assert!(later.count() > 0, "what comes after the point is merged");
        assert_eq!(old.iter().any(|part| group.image().parts().id(part).is_none()), !mistake.is_empty());
        let mut content = open.content();
        (0..open.geometry().region_count()).all(|region| open.read_region(RegionIndex(region), &mut content).is_ok())
    };
    assert!(reads(&[]));
    assert!(!reads(&["a merge of what a pinned point needs"]), "the mistake takes it from under its reader");
}

/// It would be written anew as it is, again and again.
#[test]
fn a_part_without_data_is_not_merged_alone() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    for (count, fill) in [(1, Fill::Zero), (5, Fill::Zero), (3, Fill::Unreadable)] {
        let runs = (0..count).map(|nth| (nth * 4, 1, fill)).collect();
        let point = volume.publish(&mut group, LayerKind::Point, &[runs]).position.slot;
        let parts: Vec<Part> =
            group.image().parts().iter().map(|(_, part)| part.clone()).filter(|part| part.born == point).collect();
        let look = group.look_at(Interval { volume: volume.id(), point, parts, settled: true }).expect("it is there");
        let pieces = laid(&look).pieces();
        for settled in [true, false] {
            assert_eq!(choose_merges(&pieces, settled), [], "{count} {fill:?}: {pieces:?}");
        }
        assert_eq!(choose_merges(&[pieces[0]; 2], true), vec![0..2; 1], "two of them are one that is smaller");
    }
}

/// All parts of what is looked at.
fn laid(look: &MergeLook) -> LaidParts {
    let mut laid = LaidParts::default();
    for part in &look.interval.parts {
        laid.lay(part, &runs_of(&look.footer(part).expect("a footer")), false);
    }
    laid
}

/// Merges the interval before a point, whatever is pinned.
fn merge_all(group: &mut GroupStore, volume: VolumeId, point: Slot) {
    let parts: Vec<Part> = group.image().parts().iter().map(|(_, part)| part.clone()).collect();
    let after = group.state().interval(volume, point).expect("it is retained");
    let newest = group.state().volume(volume).expect("claimed").last_layer().expect("some").key;
    let of = |part: &Part| part.born <= point && after.is_none_or(|after| part.born > after) && part.name.layer != newest;
    let interval = Interval { volume, point, parts: parts.into_iter().filter(of).collect(), settled: true };
    let look = group.look_at(interval).expect("it is there");
    let laid = laid(&look);
    let whole = 0..look.interval.parts.len();
    let found = MergeFound { needed: laid.needed(&whole), freed_bytes: 0, parts: look.interval.parts.clone() };
    let tried = look.write(&found, &|_| true).expect("an id");
    let key = tried.key;
    let body = group.merge_written(tried).expect("it may be merged");
    assert_eq!(group.append(body).expect("append").verdict, farside_ledger::Verdict::Accepted);
    group.merge_ended(key);
}
