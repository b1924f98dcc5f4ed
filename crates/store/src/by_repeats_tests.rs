//! Histories in which digits lead astray: whoever opens a point has what each object by itself says.

use std::fs;

use farside_region::Slot;

use crate::backend::counting::Request;
use crate::checkpoint::SPAN;
use crate::reader::GroupReader;
use crate::repeats::REPEATING;
use crate::repeats::tests::{begun, go_on, opened, path_of, read_each};
use crate::testkit::TempStore;

/// The group as who opens a point has it, held against one who reads every object by all names; whether he listed, too.
fn both_ways(store: &TempStore) -> (GroupReader, bool) {
    let ((found, counts), each) = (opened(store), read_each(store));
    assert_eq!((found.state(), found.torn()), (each.state(), each.torn()));
    (found, counts.of(Request::List) > 0)
}

/// Checkpoints that fall within runs, as only tests have them, or that are as far apart as they are.
#[test]
fn a_ledger_of_any_length_is_opened_without_a_listing() {
    for (span, to, step) in [(8, 150, 1), (256, 1100, 37)] {
        for together in [1, 7] {
            let store = TempStore::new();
            let mut group = store.group();
            begun(&mut group);
            SPAN.set(span);
            for to in (2..to).step_by(step) {
                go_on(&mut group, to, together);
                let (found, listed) = both_ways(&store);
                assert!(!listed && found.state() == group.state(), "{to} by {together} of {span}");
            }
        }
    }
}

/// Checkpoints could not be written: the ledger goes on beyond the slots of one.
#[test]
fn a_ledger_without_checkpoints_is_opened_beyond_the_slots_of_one() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    SPAN.set(1 << 20);
    for to in [4095, 4096, 4097, 8192, 8259] {
        go_on(&mut group, to, 64);
        assert!(!both_ways(&store).1, "{to}");
    }
}

/// An earlier Farside wrote it: nothing is repeated, and all is read one by one.
#[test]
fn who_finds_nothing_repeated_reads_each_object() {
    REPEATING.set(false);
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 131, 1);
    assert!(!both_ways(&store).1);
    REPEATING.set(true);
    go_on(&mut group, 150, 1);
    assert!(!both_ways(&store).1);
}

/// Whatever is lost of a ledger's end: a hole is its head only where fewer records follow than it swallowed, and else what follows says what
/// was in it.
#[test]
fn a_hole_is_no_head() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 200, 1);
    let whole = group.state().clone();
    drop(group);
    let path = |slot: u64| path_of(&store, slot);
    let copy = store.dir.path().join("records");
    fs::create_dir(&copy).expect("mkdir");
    for (first, lost) in [
        (0, 1),
        (1, 50),
        (5, 1),
        (62, 4),
        (63, 1),
        (64, 1),
        (63, 66),
        (100, 50),
        (126, 4),
        (127, 34),
        (190, 5),
        (191, 2),
        (198, 1),
    ] {
        let all = || first..first + lost;
        all().for_each(|slot| fs::rename(path(slot), copy.join(slot.to_string())).expect("rename"));
        let (found, each) = (opened(&store).0, read_each(&store));
        assert_eq!(each.torn().map(|torn| torn.slot), Some(Slot(first)), "{first}+{lost}");
        match found.torn() {
            None => assert!(found.state() == &whole, "{first}+{lost}: a state that is old"),
            Some(torn) => assert_eq!((Some(torn), found.state()), (each.torn(), each.state()), "{first}+{lost}"),
        }
        all().for_each(|slot| fs::rename(copy.join(slot.to_string()), path(slot)).expect("rename"));
    }
    // The newest of all, and no one can tell.
    fs::remove_file(path(199)).expect("it was there");
    assert!(!both_ways(&store).1);
}

/// What lies where nothing of the ledger can.
#[test]
fn a_stray_object_far_beyond_the_head_leads_nobody_there() {
    let store = TempStore::new();
    let mut group = store.group();
    begun(&mut group);
    go_on(&mut group, 200, 1);
    let state = group.state().clone();
    drop(group);
    for slot in [512, 1024, 1027, 4096] {
        let path = path_of(&store, slot);
        fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
        fs::write(&path, "what is this?").expect("write");
        let found = opened(&store).0;
        assert_eq!(found.state(), &state, "{slot}");
        fs::remove_file(&path).expect("remove");
    }
}
