use std::fs;
use std::path::PathBuf;

use farside_ledger::{Body, LayerKind, Pin, Policy, Unpin, group_id};
use farside_region::mutation::tell;
use proptest::prelude::*;

use super::*;
use crate::testkit::{Fill, Runs, TempStore, TestVolume, name};
use crate::{GroupReader, GroupStore, StoreError, StoreReader};

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

/// What somebody does with a group of two volumes.
fn live(group: &mut GroupStore, volumes: &mut [TestVolume; 2], (what, at, count): (u8, u64, u64)) {
    let volume = &mut volumes[usize::from(what % 2)];
    let fill = [Fill::Byte(what), Fill::Byte(at as u8), Fill::Zero, Fill::Unreadable][(at % 4) as usize];
    let parts = [vec![(at, count, fill)], vec![((at + 20) % (GRANULES - 8), count, Fill::Byte(what))]];
    let point = group.state().points().keys().nth(at as usize % 3).copied();
    match what {
        0 | 1 => volume.claim(group),
        2 => drop(group.prune(&Policy::without_grid(2, 0)).expect("prune")),
        3 => drop(group.prune(&Policy::without_grid(3, 0)).expect("prune")),
        4 => {
            if let Some(point) = point {
                group.append(Body::Pin(Pin { point, reason: "a reason".into() })).expect("pin");
            }
        }
        5 => {
            let pin = group.state().points().values().flat_map(|point| point.pins.keys()).next().copied();
            if let Some(pin) = pin {
                group.append(Body::Unpin(Unpin { pin })).expect("unpin");
            }
        }
        6 | 7 => drop(group.merge(&Policy::without_grid(2, 0)).expect("merge")),
        8 => {
            // A volume that was grown.
            let granules = volume.image.len() as u64 + count;
            volume.meta.geometry = volume.meta.geometry.resized(granules * crate::testkit::GRANULE).expect("larger");
            volume.image.resize(granules as usize, None);
            let new = vec![(granules - count, count, Fill::Byte(what))];
            volume.publish(group, LayerKind::Point, &[new]);
        }
        9 => drop(volume.publish(group, LayerKind::Fuzzy, &parts)),
        _ => drop(volume.publish(group, LayerKind::Point, &parts)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the history, and whatever of a checkpoint was looked at before: each member of each retained point holds what all records give,
    /// opened by the checkpoint and what objects repeat, and taken out of its group or not; also when the state is damaged, or its root.
    #[test]
    fn a_point_is_the_same_by_the_checkpoint_and_by_all_records(
        steps in prop::collection::vec((0u8..16, 0u64..56, 1u64..8), 1..60),
        damage in prop::option::of((any::<bool>(), any::<prop::sample::Index>(), 0u32..8)),
    ) {
        let store = TempStore::new();
        let mut volumes = [TestVolume::new("v", GRANULES), TestVolume::new("w", GRANULES)];
        let names = {
            let mut group = store.group();
            for volume in &mut volumes {
                volume.claim(&mut group);
                volume.base(&mut group, 1);
            }
            steps.into_iter().for_each(|step| live(&mut group, &mut volumes, step));
            group.names().clone()
        };
        let folder = store.path().join("groups/host/default/checkpoint");
        let newest = |end: &str| {
            let files = fs::read_dir(&folder).into_iter().flatten().map(|file| file.expect("a file").path());
            let of_it = files.filter_map(|path| Some((path.file_name()?.to_str()?.strip_suffix(end)?.parse::<u64>().ok()?, path)));
            of_it.max().map(|(_, path)| path)
        };
        let is_damaged = match damage.and_then(|(root, at, bit)| Some((newest(if root { "" } else { ".state" })?, at, bit))) {
            Some((path, at, bit)) => {
                let mut bytes = fs::read(&path).expect("read");
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                fs::write(&path, bytes).expect("write");
                true
            }
            None => false,
        };
        let open = || StoreReader::open(&store.path()).expect("open").group_to_open(&names).expect("group");
        let backend = std::sync::Arc::clone(StoreReader::open(&store.path()).expect("open").backend());
        let all = crate::replay::replay_all_slots(&*backend, &names, crate::GroupImage::new(group_id(&names.source, &names.group)), |_| {}).expect("replay");
        prop_assert!(all.torn.is_none());
        let opened = open();
        prop_assert!(opened.torn().is_none(), "the records are whole, whatever is of the checkpoint: {}", is_damaged);
        prop_assert_eq!(opened.state(), all.image.state());
        let places = all.image.state().points().values();
        for (point, volume) in places.flat_map(|point| point.members.iter().map(|member| (point.slot, member.key.volume))) {
            let whole = PointReader::over(&all.image, &backend, &names, point, volume).expect("reader");
            let beside = open().point_reader_lazily(point, volume).expect("reader");
            let taken = open().into_point_reader_lazily(point, volume).expect("reader");
            for one in [&beside, &taken] {
                prop_assert_eq!((one.geometry(), one.part_count()), (whole.geometry(), whole.part_count()));
                for region in (0..whole.geometry().region_count()).map(RegionIndex) {
                    let digests = one.region_digests(region).map_err(|e| e.to_string());
                    prop_assert_eq!(digests, whole.region_digests(region).map_err(|e| e.to_string()), "{} of {}", region, point);
                    let (mut read, mut expected) = (one.content(), whole.content());
                    let results = [one.read_region(region, &mut read), whole.read_region(region, &mut expected)];
                    prop_assert_eq!(format!("{:?}", results[0]), format!("{:?}", results[1]));
                    prop_assert_eq!((&read.bytes[..], &read.runs), (&expected.bytes[..], &expected.runs));
                }
            }
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
