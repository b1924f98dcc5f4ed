//! What a merge wrote rots after it was put on record: the parts that it replaced may be all that is left, and stay. And what was written for
//! a ledger that the store does not hold any more is put on no record.

use std::fs;
use std::path::Path;

use farside_region::mutation::{self, tell};

use super::loss_tests::{Merged, fuzzy, merged, seen_before, there};
use super::tests::{KEEP_1, churn, names, reader, store_of};
use super::*;
use crate::checkpoint::tests::copy_dir;
use crate::testkit::{TempStore, TestVolume};
use crate::{GroupStore, KnownDamage, PointReader, Store};

/// Turns a bit of a part's content over, or back; its footer is whole.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).expect("read");
    let footer = Footer::from_tail(&bytes, bytes.len() as u64).expect("a footer");
    let frame = footer.frames().iter().find(|frame| frame.stored_bytes > 0).expect("data");
    bytes[frame.offset as usize + frame.stored_bytes as usize / 2] ^= 1;
    fs::write(file, bytes).expect("write");
}

/// Reads a point until something is damaged; says whether anything is.
fn is_damaged(reader: &PointReader) -> bool {
    let mut content = reader.content();
    let mut regions = (0..reader.geometry().region_count()).map(farside_region::RegionIndex);
    regions.any(|region| matches!(reader.read_region(region, &mut content), Err(StoreError::Corrupt { .. })))
}

/// How somebody meets it.
type Meet = fn(&TempStore, &mut GroupStore, &TestVolume, Slot);

/// With the group's own reader: a follower, say.
fn by_reading(_: &TempStore, group: &mut GroupStore, volume: &TestVolume, point: Slot) {
    assert!(is_damaged(&group.point_reader(point, volume.id()).expect("open")));
}

/// With one beside it, which tells: a verification.
fn by_verifying(store: &TempStore, group: &mut GroupStore, volume: &TestVolume, point: Slot) {
    let reader = reader(store).point_reader(point, volume.id()).expect("open");
    assert!(is_damaged(&reader));
    group.spoil(reader.take_spoiled());
}

/// When a source compares what it has with what is published.
fn by_comparing(_: &TempStore, group: &mut GroupStore, volume: &TestVolume, _: Slot) {
    let whole = volume.meta.geometry.whole();
    let runs = group.digests(volume.id(), whole).expect("digests");
    assert!(runs.iter().any(|run| matches!(run, crate::DigestRun::Unreadable { .. })));
}

#[test]
fn l4_what_rotted_after_a_merge_keeps_what_it_replaced() {
    tell(&[("L4 rot in a merged part keeps nothing", "the good parts went")], || {
        for meet in [by_reading as Meet, by_verifying, by_comparing] {
            let Merged { store, mut group, mut volume, truth, between, old, new } = merged(8);
            assert_eq!(there(&old), old.len());
            let point = truth.last().expect("one").0;
            new.iter().for_each(|file| flip(file));
            meet(&store, &mut group, &volume, point);
            // A checkpoint covers the map.
            fuzzy(&mut group, &mut volume, 9);
            group.sweep().expect("sweep");
            assert_eq!(there(&old), old.len(), "the good parts went");
            let spoiled = group.spoiled();
            assert!(!spoiled.is_empty() && group.why_not_merged().is_some());

            // Who opens it next is told, and goes by that before anything is swept.
            drop(group);
            let open = |spoiled: &BTreeSet<PartName>| {
                let known = KnownDamage { spoiled: spoiled.clone(), ..KnownDamage::default() };
                Store::open(&store.path()).expect("open").group_with(&names().source, &names().group, known).expect("group")
            };
            let mut group = open(&spoiled);
            group.sweep().expect("sweep");
            assert_eq!((there(&old), group.spoiled()), (old.len(), spoiled.clone()), "the good parts went");

            // It is looked at again: as long as it is damaged nothing changes.
            let look = group.spoiled_look().expect("something to look at");
            assert!(look.sound(&|_| true).is_empty());
            new.iter().for_each(|file| flip(file));
            assert!(look.sound(&|_| false).is_empty(), "it was not read to its end");
            let sound = look.sound(&|_| true);
            // Met again since: that counts.
            let again = group.spoiled().into_iter().next().expect("one");
            group.segments().spoil(&again);
            assert_eq!(group.sound(&sound).len(), spoiled.len() - 1);
            assert_eq!(group.spoiled(), BTreeSet::from([again]));
            let sound = group.spoiled_look().expect("one is left").sound(&|_| true);
            assert_eq!(group.sound(&sound), BTreeSet::from([again]), "somebody put it back");
            assert!(group.spoiled_look().is_none());
            group.sweep().expect("sweep");
            assert_eq!(there(&old), 0);
            assert_eq!(seen_before(&store, &volume, between).expect("read"), truth);
        }
    });
}

/// Whoever does not know what was met damaged deletes nothing unasked; and where that is known no more, all may be, until it was read.
#[test]
fn l4_who_does_not_know_of_damage_sweeps_nothing() {
    let Merged { store, mut group, mut volume, truth, between, old, new } = merged(8);
    let reading = reader(&store);
    fuzzy(&mut group, &mut volume, 9);
    drop(group);
    drop(reading);
    let opened = |known| Store::open(&store.path()).expect("open").group_with(&names().source, &names().group, known);
    assert_eq!(there(&old), old.len(), "somebody read until now");
    // As `farside store repair` does.
    drop(Store::open(&store.path()).expect("open").group_unswept(&names().source, &names().group).expect("group"));
    assert_eq!(there(&old), old.len());
    let mut group = opened(KnownDamage { may_be_any: true, ..KnownDamage::default() }).expect("group");
    group.sweep().expect("sweep");
    assert_eq!((there(&old), group.spoiled().len()), (old.len(), new.len()));
    let sound = group.spoiled_look().expect("any").sound(&|_| true);
    assert_eq!(group.sound(&sound).len(), new.len());
    group.sweep().expect("sweep");
    assert_eq!(there(&old), 0);
    assert_eq!(seen_before(&store, &volume, between).expect("read"), truth);
}

/// A footer that rots while the group is open is met like any other content.
#[test]
fn l4_a_footer_that_rots_is_met_by_who_reads_it() {
    let Merged { store, mut group, mut volume, truth, old, new, .. } = merged(8);
    new.iter().for_each(|file| fs::write(file, b"rot").expect("write"));
    let parts: Vec<PartName> = group.image().parts().iter().map(|(_, part)| part.name).collect();
    parts.iter().for_each(|part| group.segments().forget(part));
    assert!(group.point_reader(truth.last().expect("one").0, volume.id()).is_err());
    fuzzy(&mut group, &mut volume, 9);
    group.sweep().expect("sweep");
    assert_eq!(there(&old), old.len());
    drop(store);
}

/// What is damaged and given up, or was no merge's, keeps nothing.
#[test]
fn rot_keeps_only_what_it_may_be_needed_for() {
    let Merged { store, mut group, mut volume, truth, old, new, .. } = merged(8);
    let plain = group.image().parts().iter().map(|(_, part)| part.name).find(|name| name.layer.merge().is_none());
    group.spoil(plain);
    assert!(group.spoiled().is_empty(), "nothing else is of what it holds");
    new.iter().for_each(|file| flip(file));
    by_reading(&store, &mut group, &volume, truth.last().expect("one").0);
    fuzzy(&mut group, &mut volume, 9);
    assert_eq!(there(&old), old.len());
    // All of it is written anew by its source, and its points go.
    volume.base(&mut group, 7);
    group.prune(&KEEP_1).expect("prune");
    assert!(group.spoiled().is_empty(), "{:?}", group.spoiled());
    group.sweep().expect("sweep");
    assert_eq!(there(&old), 0);
}

/// The directory is put back to an earlier moment while a merge is written, and goes on from there: other layers have the same names then, and
/// another point is in that slot.
#[test]
fn l6_a_merge_of_another_history_is_put_on_no_record() {
    let (store, group, volume) = store_of(1);
    drop(group);
    let copy = || {
        let copy = TempStore::new();
        fs::remove_dir_all(copy.path()).expect("remove");
        copy_dir(&store.path(), &copy.path());
        copy
    };
    let goes_on = |store: &TempStore, byte: u64| {
        let (mut group, mut volume) = (store.group(), volume.clone());
        for round in 0..4 {
            let fill = crate::testkit::Fill::Byte((round + 100 + byte) as u8);
            volume.publish(&mut group, farside_ledger::LayerKind::Fuzzy, &[vec![(round % 40, 9, fill)]]);
        }
        churn(&mut group, &mut volume, 1);
        group.prune(&KEEP_1).expect("prune");
        group
    };
    let accepts = |mistake: &[&'static str]| {
        mutation::set(mistake);
        let (store, earlier) = (copy(), copy());
        let mut here = goes_on(&store, 0);
        let look = here.merge_look(&KEEP_1, false).expect("something to look at");
        let found = look.find(&|_| true).expect("find").merges.into_iter().next().expect("something to merge");
        let tried = || look.write(&found, &|_| true).expect("an id");
        assert!(here.merge_written(tried()).is_some(), "in its own history it is");
        let mut there = goes_on(&earlier, 7);
        assert_eq!(here.state().next_slot(), there.state().next_slot());
        let accepted = there.merge_written(tried()).is_some();
        mutation::set(&[]);
        accepted
    };
    assert!(!accepts(&[]));
    assert!(accepts(&["L6 a merge is of any history"]), "the mistake puts it on record");
}
