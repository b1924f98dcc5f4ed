use std::fs;
use std::path::PathBuf;

use farside_ledger::LayerKind;
use farside_region::mutation::tell;
use proptest::prelude::*;

use super::*;
use crate::testkit::{Fill, Runs, TempStore, TestVolume, name};
use crate::{GroupReader, StoreError, StoreReader};

const GRANULES: u64 = 64;

fn reader(store: &TempStore) -> GroupReader {
    let reader = StoreReader::open(&store.path()).expect("open");
    reader.group(&reader.groups().expect("groups").groups[0]).expect("group")
}

fn lazily(group: &GroupReader, point: Slot) -> PointReader<LazyImage> {
    group.point_reader_lazily(point, group.volume(&name("v")).expect("found")).expect("reader")
}

fn file(store: &TempStore, volume: &TestVolume, layer: usize) -> PathBuf {
    store.path().join(format!("groups/host/default/segments/v/{}/{layer}.0", volume.term))
}

/// What an image says of a region.
fn said(image: &VolumeImage, within: GranuleRun) -> [Vec<Extent>; 2] {
    [&image.index, &image.unknown].map(|index| index.extents(within).collect())
}

/// A layer as one part: what is at random places, ascending.
fn runs(pieces: &[(u64, u64, u8)]) -> Runs {
    let mut runs = Runs::new();
    let mut at = 0;
    for (gap, count, fill) in pieces {
        let start = at + gap;
        let count = (*count).min(GRANULES.saturating_sub(start));
        if count > 0 {
            let fill = [Fill::Byte(*fill), Fill::Byte(*fill), Fill::Zero, Fill::Unreadable][usize::from(*fill) % 4];
            runs.push((start, count, fill));
            at = start + count;
        }
    }
    if runs.is_empty() { vec![(0, 1, Fill::Byte(1))] } else { runs }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_region_alone_is_what_it_is_in_the_whole(
        layers in prop::collection::vec(prop::collection::vec((0u64..20, 1u64..20, 0u8..9), 1..4), 1..14),
        damaged in prop::collection::vec(0usize..14, 0..3),
        order in prop::collection::vec(0u64..8, 8),
    ) {
        let store = TempStore::new();
        let mut volume = TestVolume::new("v", GRANULES);
        let mut points = Vec::new();
        {
            let mut group = store.group();
            volume.claim(&mut group);
            points.push(volume.base(&mut group, 1));
            for layer in &layers {
                points.push(volume.publish(&mut group, LayerKind::Point, &[runs(layer)]).position.slot);
            }
        }
        for layer in damaged.into_iter().filter(|layer| *layer < points.len()) {
            let _ = fs::remove_file(file(&store, &volume, layer + 1)); // of two that are one, the second
        }
        let group = reader(&store);
        for point in points {
            let lazy = lazily(&group, point);
            let whole = lazily(&group, point).indexed().expect("indexed");
            let geometry = *lazy.geometry();
            for region in order.iter().copied().chain(0..8).map(RegionIndex) {
                let run = geometry.region_run(region);
                prop_assert_eq!(said(&lazy.region_image(region).expect("read"), run), said(&whole.image, run), "region {} of {}", region, point);
                prop_assert_eq!(lazy.is_zero(region), whole.is_zero(region));
                let (mut one, mut other) = (lazy.content(), whole.content());
                let read = [lazy.read_region(region, &mut one), whole.read_region(region, &mut other)];
                prop_assert_eq!(format!("{:?}", read[0]), format!("{:?}", read[1]));
                if read[0].is_err() {
                    let lost = [lazy.salvage_region(region, &mut one).expect("read"), whole.salvage_region(region, &mut other).expect("read")];
                    prop_assert_eq!(&lost[0], &lost[1]);
                }
                prop_assert_eq!(&one.bytes[..], &other.bytes[..]);
                prop_assert_eq!(&one.runs, &other.runs);
            }
            lazy.index_all(&|| true).expect("indexed");
            prop_assert_eq!(&**lazy.image.whole.get().expect("there"), &whole.image);
            prop_assert_eq!(lazy.unreadable_bytes().expect("read"), whole.granule_counts().1 * crate::testkit::GRANULE);
        }
    }
}

/// Footers are read of what touched a region, and of that no further down than anything shows; but so far.
#[test]
fn l4_a_region_asks_for_the_footers_that_it_needs_and_no_other() {
    tell(
        &[("L4 what lies below the newest layer of a region is left out", "all of it is there")],
        a_region_asks_for_what_it_needs,
    );
}

fn a_region_asks_for_what_it_needs() {
    let store = TempStore::new();
    let mut volume = TestVolume::new("v", GRANULES);
    let mut group = store.group();
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    let mut point = Slot(0);
    // Each of 40 layers writes one region in part, but for the 20th, which writes region 3 anew.
    for layer in 0..40 {
        let runs = if layer == 20 { vec![(24, 8, Fill::Byte(9))] } else { vec![(layer % 8 * 8, 2, Fill::Byte(layer as u8))] };
        point = volume.publish(&mut group, LayerKind::Point, &[runs]).position.slot;
    }
    drop(group);
    let group = reader(&store);
    let lazy = lazily(&group, point);
    assert_eq!(lazy.part_count(), 41);
    let moved = store.dir.path().join("moved");
    fs::rename(store.path().join("groups/host/default/segments/v"), &moved).expect("moved");
    let back = |layer: u64| {
        let to = file(&store, &volume, layer as usize);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        let from = moved.join(volume.term.to_string()).join(to.file_name().expect("a name"));
        fs::rename(from, to).expect("moved back");
    };
    // Layers 20, 27 and 35 of those; a layer's number is one more than how many came before it, the base among them.
    [20, 27, 35].iter().for_each(|layer| back(layer + 2));
    let mut content = lazy.content();
    lazy.read_region(RegionIndex(3), &mut content).expect("all of it is there");
    assert_eq!(content.bytes[..], TestVolume::bytes(&volume.image)[24 * 512..32 * 512]);
    // Of another one they are not.
    let mut other = lazy.content();
    assert!(matches!(lazy.read_region(RegionIndex(4), &mut other), Err(StoreError::Corrupt { .. })));
    // What is put back is read, also by who has indexed all of it meanwhile.
    let indexed = lazily(&group, point);
    indexed.index_all(&|| true).expect("what is damaged is no error");
    assert!(matches!(indexed.read_region(RegionIndex(4), &mut other), Err(StoreError::Corrupt { .. })));
    for layer in (0..41).map(|layer| layer + 1).filter(|layer| ![22, 29, 37].contains(layer)) {
        back(layer);
    }
    for reader in [lazy, indexed] {
        reader.read_region(RegionIndex(4), &mut other).expect("all of it is there");
        assert_eq!(other.bytes[..], TestVolume::bytes(&volume.image)[32 * 512..40 * 512]);
    }
}

/// It can be given up, and nothing is lost by that.
#[test]
fn indexing_ends_when_nobody_wants_it() {
    let store = TempStore::new();
    let mut volume = TestVolume::new("v", GRANULES);
    let mut group = store.group();
    volume.claim(&mut group);
    let point = volume.base(&mut group, 1);
    drop(group);
    let lazy = lazily(&reader(&store), point);
    lazy.index_all(&|| false).expect("nothing is wrong");
    assert!(lazy.image.whole.get().is_none());
    lazy.index_all(&|| true).expect("indexed");
    assert!(lazy.image.whole.get().is_some());
}

/// Of most of a history, and of little of it.
#[test]
fn a_point_that_is_taken_out_of_its_group_is_the_same() {
    let store = TempStore::new();
    let mut volume = TestVolume::new("v", GRANULES);
    let mut points = Vec::new();
    {
        let mut group = store.group();
        volume.claim(&mut group);
        points.push(volume.base(&mut group, 1));
        for i in 0..12 {
            let (start, fill) = (5 * i % GRANULES, Fill::Byte(i as u8));
            let parts = [vec![(start, 3.min(GRANULES - start), fill)], vec![((start + 20) % GRANULES, 1, Fill::Zero)]];
            points.push(volume.publish(&mut group, LayerKind::Point, &parts).position.slot);
        }
    }
    for &point in &points {
        let group = reader(&store);
        let beside = lazily(&group, point);
        let parts = beside.part_count();
        let taken = group.into_point_reader_lazily(point, volume.id()).expect("reader");
        assert_eq!(taken.part_count(), parts);
        for region in (0..beside.geometry().region_count()).map(RegionIndex) {
            assert_eq!(taken.region_digests(region).expect("read"), beside.region_digests(region).expect("read"), "{region}");
        }
    }
}
