//! What a damaged file costs: what it held, and nothing beside that.

use std::fs;
use std::path::PathBuf;

use farside_ledger::{Body, LayerEntry, LayerKind, PackId, Policy, TOUCHED_BYTES_MAX};
use farside_region::{GranuleIndex, GranuleRun, RegionIndex, RegionSet, Slot, mutation::tell};

use super::{DigestRun, GroupStore};
use crate::backend::faulty::{Faulty, Op, When};
use crate::checkpoint::tests::{copy_dir, names, object_path};
use crate::error::StoreError;
use crate::repeats::BYTES_MAX;
use crate::testkit::{Fill, TempStore, TestVolume, layers, name};

/// Regions of a volume in which what old layers touched does not fit into memory.
const REGIONS: u64 = 80_000;

/// Layers without content that name every second region, until nobody remembers exactly what came before them.
fn until_it_is_coarse(group: &mut GroupStore, volume: &mut TestVolume) {
    let regions: RegionSet = (0..REGIONS / 2).map(|i| RegionIndex(i * 2)).collect();
    let from = group.state().head().expect("not empty");
    // Layers without content are over at once, and are to be known all the same.
    farside_ledger::Memory::set(None);
    for _ in 0..TOUCHED_BYTES_MAX / 1000 {
        volume.seq += 1;
        let key = volume.key(volume.seq);
        let entry = LayerEntry {
            digest: farside_layer::layer_digest(&key, &[]),
            unreadable_regions: RegionSet::new(),
            key,
            parts: Vec::new(),
            regions: regions.clone(),
            volume_bytes: volume.meta.geometry.volume_bytes(),
        };
        let body: Body = layers(LayerKind::Fuzzy, vec![entry]);
        assert!(group.append(body).expect("append").verdict.is_done());
        if !group.state().is_exact(from) {
            return;
        }
    }
    panic!("everything is remembered");
}

/// An old layer touched the first region and the last, and a bit of its footer flips. What lies between the two is as good as it
/// was: it is restored, compared, and nothing of it is sent again.
#[test]
fn a_damaged_footer_of_an_old_layer_spoils_its_own_regions_only() {
    tell(&[("L4 all between an old layer's regions is unknown", "what lies between is known")], || {
        let store = TempStore::new();
        let mut group = store.group();
        let mut volume = TestVolume::new("v", REGIONS * 8);
        volume.claim(&mut group);
        let granules = REGIONS * 8;
        let ends = |byte| vec![(0, 8, Fill::Byte(byte)), (granules - 8, 8, Fill::Byte(byte))];
        volume.publish(&mut group, LayerKind::Point, &[vec![(0, granules, Fill::Zero)]]);
        volume.publish(&mut group, LayerKind::Point, &[ends(2)]);
        until_it_is_coarse(&mut group, &mut volume);
        drop(group);

        let file = store.path().join(format!("groups/host/default/segments/v/{}/2.0", volume.term));
        let mut bytes = fs::read(&file).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&file, bytes).expect("write");
        let mut group = store.group();
        let whole = GranuleRun { start: GranuleIndex(0), count: granules };
        let unknown: Vec<GranuleRun> =
            group.image().head(volume.id()).expect("a head").unknown.extents(whole).map(|e| e.run).collect();
        let ends_of = [0, granules - 8].map(|start| GranuleRun { start: GranuleIndex(start), count: 8 });
        assert_eq!(unknown, ends_of, "what lies between is known");
        let asked = GranuleRun { start: GranuleIndex(0), count: 64 };
        let runs = group.digests(volume.id(), asked).expect("digests");
        assert_eq!(runs, [DigestRun::Unreadable { granules: 8 }, DigestRun::Zero { granules: 56 }], "two regions are sent again");

        let policy = Policy::without_grid(1, 0);
        assert_eq!(group.prune_plan(&policy), None, "it may come back");
        let healed = volume.publish(&mut group, LayerKind::Point, &[ends(3)]).position.slot;
        assert!(group.prune_plan(&policy).is_some(), "and goes on once newer ones lie over the two");
        group.prune(&policy).expect("prune");
        assert!(!file.exists() && group.point(healed).is_some());
    });
}

/// A volume was removed from its host, and its last part is damaged: nobody will ever send it again. Retention of the whole group stood still for that.
#[test]
fn damage_of_a_volume_that_is_gone_keeps_its_own_points_and_parts_and_nothing_else() {
    let store = TempStore::new();
    let mut group = store.group();
    let (mut gone, mut other) = (TestVolume::new("gone", 64), TestVolume::new("other", 64));
    gone.claim(&mut group);
    other.claim(&mut group);
    let first = gone.base(&mut group, 1);
    other.base(&mut group, 1);
    // A point of both, of which the newer part of the one that goes is damaged later.
    let both = vec![gone.land(&group, &[vec![(0, 8, Fill::Byte(2))]]), other.land(&group, &[vec![(0, 8, Fill::Byte(2))]])];
    let of_both = group.append(layers(LayerKind::Point, both)).expect("append").position.slot;
    let old: Vec<_> = (3..6)
        .map(|byte| other.publish(&mut group, LayerKind::Point, &[vec![(0, 64, Fill::Byte(byte))]]).position.slot)
        .collect();
    let file = store.path().join(format!("groups/host/default/segments/gone/{}/2.0", gone.term));
    let sound = fs::read(&file).expect("read");
    drop(group);
    let mut bytes = sound.clone();
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes).expect("write");

    let mut group = store.group();
    assert!(group.image().has_unknown());
    // Of a store in a bucket: a pack that was put after its last layer has nothing of it.
    let may_go = |slot: u64| group.image().pack_may_go(&PackId::new(Slot(slot), [7; 8]));
    assert_eq!([of_both.0 - 1, of_both.0, of_both.0 + 1].map(may_go), [false, false, true]);
    let policy = Policy::without_grid(1, 0);
    let Some(Body::Prune(plan)) = group.prune_plan(&policy) else { panic!("nothing is given up") };
    assert!(plan.points.contains(&old[0]) && plan.points.contains(&old[1]) && !plan.points.contains(&of_both), "{plan:?}");
    let members = |slot: &Slot| group.state().points()[slot].members.clone();
    assert!(plan.points.iter().flat_map(members).all(|member| member.key.volume == other.id()), "{plan:?}");
    assert!(!plan.parts.is_empty() && plan.parts.iter().all(|part| part.layer.volume == other.id()), "{plan:?}");
    group.prune(&policy).expect("prune");
    let files = |volume: &str| store.files(&format!("groups/host/default/segments/{volume}")).len();
    assert_eq!(files("gone"), 2, "it may come back");
    assert!(files("other") < 5, "{} are left", files("other"));
    assert!([first, of_both].iter().all(|point| group.point(*point).is_some()) && group.point(old[0]).is_none());

    // It came back.
    drop(group);
    fs::write(&file, sound).expect("write");
    let mut group = store.group();
    assert!(!group.image().has_unknown());
    group.prune(&policy).expect("prune");
    assert!(group.point(first).is_none(), "its points age as others do");
}

/// Production wrote on for as long as a lost part was not sent again, nothing was given up, and the full disk had no room for what was to be sent.
#[test]
fn points_that_are_newer_than_the_damage_go_by_the_policy_and_older_ones_stay() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    let first = volume.base(&mut group, 1);
    let mut publish = |group: &mut GroupStore, run, byte| {
        volume.publish(group, LayerKind::Point, &[vec![(run, 8, Fill::Byte(byte))]]).position.slot
    };
    let damaged = publish(&mut group, 0, 2);
    let newer: Vec<Slot> = (3..7).map(|byte| publish(&mut group, 32, byte)).collect();
    drop(group);
    let file = store.path().join(format!("groups/host/default/segments/v/{}/2.0", volume.term));
    let sound = fs::read(&file).expect("read");
    fs::remove_file(&file).expect("remove");

    let mut group = store.group();
    assert!(group.image().has_unknown());
    let policy = Policy::without_grid(1, 0);
    let before = store.files("groups/host/default/segments/v").len();
    group.prune(&policy).expect("prune");
    let left: Vec<Slot> = group.state().points().keys().copied().collect();
    assert_eq!(left, [first, newer[3]], "the older one may be the last that is whole");
    assert_eq!(before - store.files("groups/host/default/segments/v").len(), 3, "and there is room again");
    assert!(group.point(damaged).is_none());

    assert!(!group.is_damage_over());
    fs::write(&file, sound).expect("write");
    assert!(group.is_damage_over());
    drop(group);
    let mut group = store.group();
    assert!(!group.image().has_unknown());
    for point in [first, newer[3]] {
        let reader = crate::StoreReader::open(&store.path()).expect("open").group(&names()).expect("the group");
        assert!(reader.point_reader(point, volume.id()).is_ok(), "all that it needs is there");
    }
    group.prune(&policy).expect("prune");
    assert!(group.point(first).is_none());
}

/// While a person put hundreds of thousands of files back, the group was opened anew after each few of them.
#[test]
fn damage_is_over_when_all_is_back_or_no_more_of_it_comes() {
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 64);
    volume.claim(&mut group);
    volume.base(&mut group, 1);
    for run in 1..4 {
        volume.publish(&mut group, LayerKind::Point, &[vec![(8 * run, 8, Fill::Byte(2))]]);
    }
    drop(group);
    let file = |seq: u64| store.path().join(format!("groups/host/default/segments/v/{}/{seq}.0", volume.term));
    let sound: Vec<(PathBuf, Vec<u8>)> = (2..5).map(|seq| (file(seq), fs::read(file(seq)).expect("read"))).collect();
    sound.iter().for_each(|(file, _)| fs::remove_file(file).expect("remove"));
    let put_back = |at: usize| fs::write(&sound[at].0, &sound[at].1).expect("write");

    let mut group = store.group();
    assert_eq!(group.damaged().len(), 3);
    assert!(!group.is_damage_over() && !group.is_damage_over());
    put_back(2);
    assert!(!group.is_damage_over(), "more may come");
    put_back(1);
    assert!(!group.is_damage_over(), "more did");
    assert!(group.is_damage_over(), "no more came");
    put_back(0);
    assert!(group.is_damage_over(), "all of it");
}

/// Below a checkpoint nobody replays records: one of another branch, whole as it is, says nothing of what an old layer touched.
#[test]
fn l6_what_an_old_layer_touched_is_not_asked_of_another_branchs_record() {
    let (store, copy) = (TempStore::new(), TempStore::new());
    let mut volume = TestVolume::new("v", REGIONS * 8);
    let mut group = store.group();
    volume.claim(&mut group);
    volume.publish(&mut group, LayerKind::Point, &[vec![(0, REGIONS * 8, Fill::Zero)]]);
    drop(group);
    fs::remove_dir_all(copy.path()).expect("remove");
    copy_dir(&store.path(), &copy.path());
    let publish = |store: &TempStore, granule: u64, volume: &mut TestVolume| {
        volume.publish(&mut store.group(), LayerKind::Point, &[vec![(granule, 8, Fill::Byte(2))]]).position.slot
    };
    publish(&copy, 8, &mut volume.clone());
    let slot = publish(&store, 0, &mut volume);
    until_it_is_coarse(&mut store.group(), &mut volume);

    let touched = |store: &TempStore| store.group().touched(slot, volume.id());
    assert_eq!(touched(&store).expect("its record says so"), [RegionIndex(0)].into_iter().collect());
    let record = names().record(slot);
    fs::copy(object_path(&copy, &record), object_path(&store, &record)).expect("copy");
    assert!(matches!(touched(&store), Err(StoreError::Inconsistent { .. })));
}

/// A store in which what is repeated has so many bytes, in the first slots of runs and in others, and checkpoints are far apart.
fn repeating(first: usize, others: usize) -> (TempStore, GroupStore, TestVolume) {
    super::sweeping::WAITS.set(true);
    crate::checkpoint::SPAN.set(512);
    BYTES_MAX.set((first, others));
    let store = TempStore::new();
    let mut group = store.group();
    let mut volume = TestVolume::new("v", 16);
    volume.claim(&mut group);
    (store, group, volume)
}

/// The segment of a layer.
fn segment(store: &TempStore, volume: &TestVolume, seq: u64) -> std::path::PathBuf {
    store.path().join(format!("groups/host/default/segments/v/{}/{seq}.0", volume.term))
}

/// Points up to the first slot of the next run.
fn to_the_next_run(group: &mut GroupStore, volume: &mut TestVolume, meanwhile: impl Fn()) {
    loop {
        meanwhile();
        volume.base(group, 6);
        let head = group.state().head().expect("a head");
        if farside_ledger::run_of(head) == head {
            return;
        }
    }
}

/// Short ones that come after a long one repeat it no more than it is repeated.
#[test]
fn what_a_long_record_gave_up_waits_for_the_next_run_whatever_comes_between() {
    let (store, mut group, mut volume) = repeating(usize::MAX, 0);
    for fill in 1..=3 {
        volume.base(&mut group, fill);
    }
    let policy = Policy::without_grid(1, 0);
    let file = segment(&store, &volume, 1);
    assert_eq!(group.prune(&policy).expect("prune"), 2);
    volume.base(&mut group, 4);
    assert_eq!(group.prune(&policy).expect("prune"), 1);
    drop(group);
    group = store.group();
    to_the_next_run(&mut group, &mut volume, || assert!(file.exists(), "nothing repeats it"));
    assert!(!file.exists() && group.deferred() == 0, "the first one of a run does");
}

/// Of several long ones in a run the first one of the next has not enough room for the oldest, and what a newer one gave up rests on that.
#[test]
fn what_no_object_repeats_waits_for_a_checkpoint_and_so_does_what_came_after_it() {
    let (store, mut group, mut volume) = repeating(usize::MAX, 0);
    let policy = Policy::without_grid(1, 0);
    let mut files = Vec::new();
    for prunes in 0..2 {
        for fill in 1..=3 {
            volume.base(&mut group, fill);
        }
        files.push(segment(&store, &volume, 3 * prunes + 1));
        assert!(group.prune(&policy).expect("prune") >= 2);
    }
    let newest = group.state().head().expect("a head");
    let are_there = || files.iter().all(|file| file.exists());
    // Up to the newer one, and not to the older one.
    let record = |slot: u64| fs::metadata(object_path(&store, &names().record(Slot(slot)))).expect("it is there").len() as usize;
    while group.state().next_slot().0 < 64 {
        assert!(are_there());
        volume.base(&mut group, 6);
    }
    BYTES_MAX.set(((newest.0..64).map(record).sum(), 0));
    to_the_next_run(&mut group, &mut volume, || ());
    assert!(are_there(), "the older one is said by one object alone");
    for reopened in [false, true] {
        if reopened {
            drop(group);
            group = store.group();
        }
        volume.base(&mut group, 7);
        assert!(are_there(), "{reopened}");
    }
    while group.state().next_slot().0 < 512 {
        assert!(are_there());
        volume.base(&mut group, 8);
    }
    assert!(!files.iter().any(|file| file.exists()) && group.deferred() == 0, "the checkpoint says it as well");
}

/// What others repeated is seen by the next start.
#[test]
fn what_is_said_twice_goes_at_the_next_start() {
    for (first, others, goes) in [(usize::MAX, usize::MAX, true), (usize::MAX, 0, true), (0, 0, false), (0, usize::MAX, true)] {
        let (store, mut group, mut volume) = repeating(first, others);
        for fill in 1..=3 {
            volume.base(&mut group, fill);
        }
        let file = segment(&store, &volume, 1);
        let reader = crate::ReaderLock::share(&store.path()).expect("shared");
        assert_eq!(group.prune(&Policy::without_grid(1, 0)).expect("prune"), 2);
        to_the_next_run(&mut group, &mut volume, || ());
        drop(group);
        drop(reader);
        let group = store.group();
        assert_eq!(file.exists(), !goes, "{first} and {others} bytes");
        assert_eq!(group.is_swept(), goes);
    }
}

/// A disk that is full takes a record without what it repeats.
#[test]
fn what_an_object_should_repeat_and_does_not_is_not_said_twice() {
    let (store, group, mut volume) = repeating(usize::MAX, usize::MAX);
    drop(group);
    let mut wrapped = None;
    let opened = crate::Store::open_over(&store.path(), |dir| {
        let faulty = Faulty::new(dir);
        wrapped = Some(std::sync::Arc::clone(&faulty));
        faulty
    });
    let (opened, faults) = (opened.expect("open"), wrapped.expect("wrapped"));
    let mut group = opened.group(&name("host"), &name("default")).expect("group");
    volume.base(&mut group, 1);
    volume.base(&mut group, 2);
    let file = segment(&store, &volume, 1);
    assert_eq!(group.prune(&Policy::without_grid(1, 0)).expect("prune"), 1);
    faults.fail(Op::Create, "/ledger/", When::Before, libc::ENOSPC);
    volume.base(&mut group, 3);
    assert!(file.exists(), "the next record was put alone");
    volume.base(&mut group, 4);
    assert!(!file.exists(), "the one after it repeats both");
}

/// A record that nothing repeats yet costs no point, whatever it gave up.
#[test]
fn nothing_goes_for_the_word_of_the_newest_record_alone() {
    tell(&[("what is deleted hangs on one record", "nor does the next start")], || {
        super::sweeping::WAITS.set(true);
        let store = TempStore::new();
        let mut group = store.group();
        let mut volume = TestVolume::new("v", 16);
        volume.claim(&mut group);
        volume.base(&mut group, 1);
        let newest = volume.base(&mut group, 2);
        let file = store.path().join(format!("groups/host/default/segments/v/{}/1.0", volume.term));
        assert_eq!(group.prune(&Policy::without_grid(1, 0)).expect("prune"), 1);
        let record = store.path().join(format!("groups/host/default/ledger/0/{}", group.state().head().expect("a head")));
        drop(group);
        let group = store.group();
        assert_eq!((group.deferred(), file.exists()), (1, true), "nor does the next start");
        drop(group);
        let bytes = fs::read(&record).expect("it is there");
        fs::remove_file(&record).expect("lost");
        let mut group = store.group();
        assert!(group.torn().is_none() && !group.image().has_unknown() && group.point(newest).is_some());
        drop(group);
        fs::write(&record, bytes).expect("put back");
        group = store.group();
        volume.publish(&mut group, LayerKind::Point, &[vec![(1, 1, Fill::Byte(3))]]);
        assert!(!file.exists() && group.is_swept(), "another record repeats it");
    });
}
