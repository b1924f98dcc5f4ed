use std::fs;

use farside_ledger::LayerKind;
use farside_region::Slot;

use super::*;
use crate::StoreReader;
use crate::testkit::{Fill, GRANULE, TempStore, TestVolume, name};

const ALL: &(dyn Fn(Looked) -> bool + Sync) = &|_| true;

fn reader(store: &TempStore, point: Slot) -> PointReader {
    let reader = StoreReader::open(&store.path()).expect("open");
    let group = reader.group(&reader.groups().expect("groups").groups[0]).expect("group");
    group.point_reader_as_it_is(point, group.volume(&name("v")).expect("found")).expect("reader")
}

/// A base over 8 regions of 8 granules, and a point that writes regions 2 and 3 anew and zeroes region 5.
fn store() -> (TempStore, TestVolume, [Slot; 2]) {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let base = volume.base(&mut group, 1);
    let runs = vec![(16, 16, Fill::Byte(2)), (40, 8, Fill::Zero), (50, 2, Fill::Unreadable)];
    let point = volume.publish(&mut group, LayerKind::Point, &[runs]).position.slot;
    (store, volume, [base, point])
}

#[test]
fn a_sound_point_is_read_in_full() {
    let (store, _, [base, point]) = store();
    for threads in [1, 3] {
        let found = verify_point(&reader(&store, base), threads, 10, ALL).expect("read");
        assert_eq!(found, Verified { data_bytes: 64 * GRANULE, ..Verified::default() });
        let found = verify_point(&reader(&store, point), threads, 10, ALL).expect("read");
        assert_eq!((found.data_bytes, found.zero_bytes, found.damaged_regions), (54 * GRANULE, 8 * GRANULE, 0));
    }
    let last = std::sync::Mutex::new(Looked::default());
    let heard = |looked: Looked| {
        let mut last = last.lock().expect("lock");
        assert!(looked.done_bytes > last.done_bytes && looked.read_bytes >= last.read_bytes, "{looked:?} {last:?}");
        *last = looked;
        true
    };
    verify_point(&reader(&store, point), 1, 10, &heard).expect("read");
    assert_eq!(*last.lock().expect("lock"), Looked { done_bytes: 64 * GRANULE, read_bytes: 54 * GRANULE, ..Looked::default() });
    let runs = unreadable_runs(&reader(&store, point));
    assert_eq!(runs.iter().map(|r| (r.offset.0, r.len)).collect::<Vec<_>>(), [(50 * GRANULE, 2 * GRANULE)]);
    assert!(matches!(verify_point(&reader(&store, point), 2, 10, &|_| false), Err(StoreError::Stopped)));
}

/// Every region is named, not only the first; what a point does not need does not count.
#[test]
fn all_damage_is_found_and_named() {
    let (store, volume, [base, point]) = store();
    let file = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    let good = fs::read(&file).expect("read");
    let footer = farside_layer::Footer::from_tail(&good, good.len() as u64).expect("a footer");
    let mut bad = good.clone();
    // A byte of the content of regions 1, 2 and 7.
    for region in [1, 2, 7] {
        let frame = footer.frame_of(farside_region::GranuleIndex(region * 8)).expect("a frame");
        bad[frame.offset as usize + 3] ^= 0x10;
    }
    fs::write(&file, &bad).expect("write");
    let named = |point, listed| {
        let found = verify_point(&reader(&store, point), 3, listed, ALL).expect("read");
        (found.damaged_regions, found.damage.iter().map(|d| d.region.0).collect::<Vec<_>>())
    };
    assert_eq!(named(base, 10), (3, vec![1, 2, 7]));
    assert_eq!(named(base, 2), (3, vec![1, 2]), "the list is bounded, the count is not");
    assert_eq!(named(point, 10), (2, vec![1, 7]), "region 2 was written anew");
    let found = verify_point(&reader(&store, base), 1, 1, ALL).expect("read");
    assert!(found.damage[0].segment.ends_with(&format!("segments/v/{}/1.0", volume.term)), "{found:?}");

    // A file that is not there leaves all its regions unknown, but for what newer layers wrote in full.
    fs::remove_file(&file).expect("remove");
    assert_eq!(named(base, 0).0, 8);
    assert_eq!(named(point, 10), (5, vec![0, 1, 4, 6, 7]));
}
