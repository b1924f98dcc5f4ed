//! Landing under everything that a crash can leave.

use std::fs;
use std::time::Duration;

use farside_ledger::{EpochInfo, KeptEnd, LayerKind};
use farside_region::{BootId, RegionSet};

use crate::StoreError;
use crate::testkit::{Fill, TempStore, TestVolume, layers};

fn landing_file(store: &TempStore, volume: &TestVolume, seq: u64, part: u32) -> std::path::PathBuf {
    let folder = format!("landing/host/default/{}/{}", volume.meta.name, volume.term);
    store.path().join(folder).join(format!("{seq}.{part}"))
}

#[test]
fn a_landed_part_becomes_the_segment_and_is_not_copied() {
    use std::os::unix::fs::MetadataExt;
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let entry = volume.land(&group, &[vec![(0, 64, Fill::Byte(1))]]);
    let landed = landing_file(&store, &volume, 1, 0);
    let inode = fs::metadata(&landed).expect("landed").ino();
    assert!(store.files("groups/host/default/segments").is_empty(), "nothing is a segment before it is published");
    group.append(layers(LayerKind::Point, vec![entry])).expect("append");
    assert!(!landed.exists(), "the name in landing goes");
    let segment = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    assert_eq!(fs::metadata(segment).expect("segment").ino(), inode);
}

#[test]
fn a_part_torn_at_any_length_is_dropped_at_the_next_start() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let entry = volume.land(&group, &[vec![(0, 9, Fill::Byte(1)), (9, 3, Fill::Zero)], vec![(16, 2, Fill::Byte(2))]]);
    let whole = fs::read(landing_file(&store, &volume, 1, 0)).expect("landed");
    for length in 0..whole.len() {
        fs::write(landing_file(&store, &volume, 1, 0), &whole[..length]).expect("tear");
        let landed = group.landing_after_restart().landed();
        assert_eq!(landed.len(), 1, "length {length}");
        assert_eq!(landed[0].parts, [(1, entry.parts[1])], "length {length}: only the other part is there");
        assert!(!landing_file(&store, &volume, 1, 0).exists(), "length {length}");
    }
    fs::write(landing_file(&store, &volume, 1, 0), &whole).expect("whole");
    let landed = group.landing_after_restart().landed();
    assert_eq!(landed[0].parts, [(0, entry.parts[0]), (1, entry.parts[1])]);
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(landing_file(&store, &volume, 1, 0), &bad).expect("flip");
        assert_eq!(group.landing_after_restart().landed()[0].parts.len(), 1, "a bit flipped at {at} was not noticed");
    }
}

#[test]
fn what_had_landed_is_published_after_a_restart() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let entry = volume.land(&group, &[vec![(0, 64, Fill::Byte(1))]]);
    drop(group);
    let mut group = store.group();
    assert!(group.append(layers(LayerKind::Point, vec![entry])).expect("append").verdict.is_done());
    assert_eq!(group.points().len(), 1);
}

/// R19: jobs that could not be aborted, and what they left, stood in the way for ever.
#[test]
fn a_part_under_way_leaves_nothing_when_its_writer_or_process_dies() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let (bytes, _) = volume.part(volume.key(1), 0, &[(0, 4, Fill::Byte(1))]);
    let mut lander = group.landing().begin_part(&volume.meta, volume.key(1), 0).expect("begin");
    lander.write(&bytes[..80]).expect("write");
    assert_eq!(store.files("landing").len(), 1);
    drop(lander);
    assert_eq!(store.files("landing").len(), 0);

    let mut lander = group.landing().begin_part(&volume.meta, volume.key(1), 0).expect("begin");
    lander.write(&bytes[..80]).expect("write");
    std::mem::forget(lander); // kill -9
    drop(group);
    assert!(store.group().landing().landed().is_empty());
    assert_eq!(store.files("landing").len(), 0);
}

#[test]
fn a_writer_that_began_before_a_drop_does_not_finish_after_it() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let (bytes, _) = volume.part(volume.key(1), 0, &[(0, 4, Fill::Byte(1))]);
    let mut late = group.landing().begin_part(&volume.meta, volume.key(1), 0).expect("begin");
    late.write(&bytes).expect("write");
    group.drop_parts(volume.key(1), 0).expect("drop");
    let mut anew = group.landing().begin_part(&volume.meta, volume.key(1), 0).expect("begin");
    anew.write(&bytes).expect("write");
    assert!(matches!(late.finish(), Err(StoreError::BadPart { .. })), "it is of a connection that is over");
    anew.finish().expect("the new one lands");
    assert_eq!(group.landing().landed()[0].parts.len(), 1);
    group.drop_parts(volume.key(1), 0).expect("drop");
    assert!(group.landing().landed().is_empty() && store.files("landing").is_empty());
}

#[test]
fn a_part_that_has_landed_or_is_under_way_is_not_taken_again() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let key = volume.key(1);
    let (first, _) = volume.part(key, 0, &[(0, 4, Fill::Byte(1))]);
    let (other, _) = volume.part(key, 0, &[(0, 4, Fill::Byte(2))]);
    let again = |group: &crate::GroupStore| {
        let refused = group.landing().begin_part(&volume.meta, key, 0).map(drop).expect_err("refused");
        assert!(matches!(&refused, StoreError::BadPart { layer, part: 0, .. } if *layer == key), "{refused}");
    };
    let mut open = group.landing().begin_part(&volume.meta, key, 0).expect("begin");
    again(&group);
    open.write(&first).expect("write");
    let entry = open.finish().expect("finish");
    again(&group);
    assert_eq!(fs::read(landing_file(&store, &volume, 1, 0)).expect("read"), first, "what was staged is what it was");
    assert_eq!(group.landing().landed()[0].parts, [(0, entry)]);
    // The next number is another part; one that came to nothing may come again, and so may one that was dropped.
    drop(group.landing().begin_part(&volume.meta, key, 1).expect("begin"));
    drop(group.landing().begin_part(&volume.meta, key, 1).expect("it was given up"));
    group.drop_parts(key, 0).expect("drop");
    let mut anew = group.landing().begin_part(&volume.meta, key, 0).expect("begin");
    anew.write(&other).expect("write");
    anew.finish().expect("finish");
    assert_eq!(fs::read(landing_file(&store, &volume, 1, 0)).expect("read"), other);
}

#[test]
fn a_landed_part_with_a_bad_sector_is_dropped_and_the_others_are_taken_up() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let entry = volume.land(&group, &[vec![(0, 9, Fill::Byte(1))], vec![(16, 2, Fill::Byte(2))]]);
    drop(group);
    // Our own memory at address 0, read as a file, is an EIO.
    fs::remove_file(landing_file(&store, &volume, 1, 0)).expect("remove");
    std::os::unix::fs::symlink("/proc/self/mem", landing_file(&store, &volume, 1, 0)).expect("link");
    let group = store.group();
    assert_eq!(group.landing().landed()[0].parts, [(1, entry.parts[1])]);
    assert_eq!(store.files("landing").len(), 1);
}

#[test]
fn a_claim_ends_what_landed_under_the_terms_before_it() {
    let store = TempStore::new();
    let mut group = store.group();
    let (mut volume, mut other) = (TestVolume::new("v", 64), TestVolume::new("w", 64));
    volume.claim(&mut group);
    other.claim(&mut group);
    volume.land(&group, &[vec![(0, 9, Fill::Byte(1))], vec![(16, 2, Fill::Byte(2))]]);
    other.land(&group, &[vec![(0, 1, Fill::Byte(3))]]);
    let (bytes, _) = volume.part(volume.key(2), 0, &[(0, 4, Fill::Byte(1))]);
    let mut open = group.landing().begin_part(&volume.meta, volume.key(2), 0).expect("begin");
    open.write(&bytes).expect("write");
    volume.claim(&mut group);
    let left: Vec<_> = group.landing().landed().iter().map(|l| l.key).collect();
    assert_eq!(left, [other.key(1)], "the other volume's stay");
    open.finish().expect("whoever writes it hears that its term is over from the state machine");
    volume.claim(&mut group);
    assert_eq!(store.files("landing").len(), 1);
}

#[test]
fn wrong_bytes_are_refused_as_they_come() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let (mut bytes, _) = volume.part(volume.key(1), 0, &[(0, 4, Fill::Byte(1))]);
    let mut other_part = group.landing().begin_part(&volume.meta, volume.key(1), 1).expect("begin");
    let error = other_part.write(&bytes).expect_err("it says part 0").to_string();
    assert!(error.contains("part 1") && error.contains("part 0"), "{error}");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut lander = group.landing().begin_part(&volume.meta, volume.key(1), 0).expect("begin");
    let outcome = lander.write(&bytes).and_then(|()| lander.finish().map(|_| ()));
    assert!(matches!(outcome, Err(StoreError::BadPart { .. })), "{outcome:?}");
    drop(other_part);
    assert!(store.files("landing").is_empty());
}

#[test]
fn a_part_sent_again_with_other_content_replaces_what_a_failed_append_had_linked() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let first = volume.land(&group, &[vec![(0, 64, Fill::Byte(1))]]);
    // Linked, and then the append failed before the record was written.
    let segment = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
    fs::create_dir_all(segment.parent().expect("has one")).expect("mkdir");
    fs::hard_link(landing_file(&store, &volume, 1, 0), &segment).expect("link");
    group.landing().drop_parts(volume.key(1), 0).expect("drop"); // the segment could not be deleted, say
    volume.seq = 0;
    let second = volume.land(&group, &[vec![(0, 64, Fill::Byte(9))]]);
    assert_ne!(first.digest, second.digest);
    group.append(layers(LayerKind::Point, vec![second])).expect("append");
    let point = group.points()[0].slot;
    let reader = group.point_reader(point, volume.id()).expect("reader");
    let mut content = reader.content();
    reader.read_region(farside_region::RegionIndex(0), &mut content).expect("the new content");
    assert_eq!(content.bytes[..512], crate::testkit::granule(0, 9));
}

/// A writer of a store that was given up and opened again may still be there: its end must not take the new one's file.
#[test]
fn a_late_writer_of_an_earlier_opening_does_not_remove_the_file_of_a_new_one() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    let key = volume.key(1);
    let (bytes, _) = volume.part(key, 0, &[(0, 16, Fill::Byte(1))]);
    let mut old = group.landing().begin_part(&volume.meta, key, 0).expect("begin");
    old.write(&bytes[..10]).expect("write");
    let again = group.landing_after_restart();
    let mut new = again.begin_part(&volume.meta, key, 0).expect("begin");
    new.write(&bytes).expect("write");
    drop(old);
    new.finish().expect("it has a name of its own");
}

#[test]
fn folders_of_terms_go_with_their_last_file() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    let folder = |term: farside_region::Term| store.path().join(format!("landing/host/default/v/{term}"));
    let first = volume.term;
    volume.base(&mut group, 1);
    assert!(!folder(first).exists(), "everything was published");
    volume.land(&group, &[vec![(0, 4, Fill::Byte(2))]]);
    assert!(folder(first).exists());
    volume.claim(&mut group);
    assert!(!folder(first).exists(), "nothing of an old term is left");
    drop(group);
    std::fs::create_dir_all(folder(first)).expect("mkdir");
    let group = store.group();
    assert!(!folder(first).exists(), "nor of an earlier process");
    volume.land(&group, &[vec![(0, 4, Fill::Byte(3))]]);
}

/// A hundred parts wait for a service that is out of reach: not each of them asks it.
#[test]
fn what_is_done_side_by_side_ends_with_the_first_that_ends_it() {
    let items: Vec<u32> = (0..100).collect();
    let asked = std::sync::Mutex::new(Vec::new());
    let work = |item: &u32| {
        asked.lock().expect("lock").push(*item);
        *item
    };
    let all = crate::replay::at_once_until(&items, |_| false, work);
    assert_eq!(all, items);
    asked.lock().expect("lock").clear();
    let some = crate::replay::at_once_until(&items, |item| *item == 40, work);
    let begun = asked.lock().expect("lock").len();
    assert_eq!(some.len(), begun);
    assert!(some.contains(&40) && some.iter().all(|item| *item < 48), "{some:?}: those that were begun with it, at most");
}

/// More was kept than a start takes up: what was staged first counts, whatever the files are called, and nothing is lost for a later start.
#[test]
fn what_is_kept_beyond_what_a_start_takes_up_stays_and_comes_later() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let regions: RegionSet = (0..700_000).map(|i| farside_region::RegionIndex(i * 3)).collect();
    let end = |seq: u64| KeptEnd {
        key: volume.key(seq),
        kind: LayerKind::Fuzzy,
        epoch: EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: 3 },
        label: None,
        members: vec![volume.key(seq)],
        parts: 0,
        digest: [7; 32],
        volume_bytes: volume.meta.geometry.volume_bytes(),
        regions: regions.clone(),
        whole_regions: RegionSet::new(),
        unreadable_regions: RegionSet::new(),
        under: [0; 32],
    };
    let bytes = end(1).encode(0).expect("short").len() as u64;
    let fitting = super::ENDS_BYTES_MAX / bytes;
    assert!((2..9).contains(&fitting), "{bytes} bytes");
    // Of them the tenth comes before the second by name.
    for seq in 1..=12 {
        group.keep_end(&end(seq), Duration::from_secs(1000 - seq)).expect("kept");
    }
    let taken = |group: &crate::GroupStore| -> Vec<u64> {
        let landed = group.landing_after_restart().landed();
        landed.into_iter().filter(|l| l.end.is_some()).map(|l| l.key.seq.0).collect()
    };
    let files = || store.files("landing").len() as u64;
    assert_eq!(taken(&group), (1..=fitting).collect::<Vec<_>>());
    assert_eq!(files(), 12, "the others are left");
    drop(group);
    let mut group = store.group();
    for seq in 1..=fitting {
        group.drop_parts(volume.key(seq), 0).expect("dropped");
    }
    assert_eq!(files(), 12 - fitting);
    assert_eq!(taken(&group).first(), Some(&(fitting + 1)), "a later one takes them up");
    volume.claim(&mut group);
    assert!(store.files("landing").is_empty(), "T4: what was not taken up goes with its layer as well");
}

/// What was said of a staged layer lies beside its parts, and is worth something only whole, for that layer and while it is awaited.
#[test]
fn what_is_kept_of_a_layer_is_found_by_the_next_process_and_goes_with_it() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let entry = volume.land(&group, &[vec![(0, 9, Fill::Byte(1))]]);
    let end = KeptEnd {
        key: entry.key,
        kind: LayerKind::Point,
        epoch: EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: 3 },
        label: None,
        members: vec![entry.key],
        parts: 1,
        digest: entry.digest,
        volume_bytes: entry.volume_bytes,
        regions: entry.regions.clone(),
        whole_regions: RegionSet::new(),
        unreadable_regions: RegionSet::new(),
        under: [0; 32],
    };
    let found = |group: &crate::GroupStore| group.landing_after_restart().landed()[0].end.clone().map(|(end, _)| end);
    assert_eq!(found(&group), None);
    group.keep_end(&end, Duration::ZERO).expect("kept");
    let file = store.path().join(format!("landing/host/default/v/{}/1.end", volume.term));
    assert_eq!(found(&group), Some(end.clone()));
    let fuzzy = KeptEnd { kind: LayerKind::Fuzzy, ..end.clone() };
    group.keep_end(&fuzzy, Duration::ZERO).expect("kept");
    assert_eq!(found(&group), Some(fuzzy), "the newest counts");
    let whole = fs::read(&file).expect("kept");
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).expect("tear");
        assert_eq!(found(&group), None, "length {length}");
        assert!(!file.exists(), "length {length}");
    }
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(&file, &bad).expect("flip");
        assert_eq!(found(&group), None, "a bit flipped at {at} was not noticed");
    }
    fs::write(&file, [&whole[..], b"more"].concat()).expect("write");
    assert_eq!(found(&group), None);
    let stray = KeptEnd { key: volume.key(2), ..end.clone() };
    fs::write(&file, stray.encode(1).expect("short")).expect("write");
    assert_eq!(found(&group), None, "of another layer");

    group.keep_end(&end, Duration::ZERO).expect("kept");
    group.drop_parts(entry.key, 0).expect("dropped");
    assert!(store.files("landing").is_empty(), "it goes with its layer");
    volume.seq = 0;
    let entry = volume.land(&group, &[vec![(0, 9, Fill::Byte(1))]]);
    group.keep_end(&end, Duration::ZERO).expect("kept");
    group.append(layers(LayerKind::Point, vec![entry])).expect("append");
    assert!(store.files("landing").is_empty(), "it goes when a record says it");
    // A layer without content has nothing else; a claim ends its term.
    group.keep_end(&KeptEnd { key: volume.key(2), parts: 0, ..end.clone() }, Duration::ZERO).expect("kept");
    assert_eq!(group.landing_after_restart().landed().len(), 1);
    volume.claim(&mut group);
    assert!(store.files("landing").is_empty(), "T4");
    drop(group);
    fs::create_dir_all(file.parent().expect("a folder")).expect("folder");
    fs::write(&file, &whole).expect("it comes back");
    assert!(store.group().landing().landed().is_empty() && !file.exists(), "T4");
}
