use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::backend::DirBackend;
use crate::backend::faulty::{Faulty, Op, When};
use crate::testkit::{TempStore, name};

/// A ledger of objects that are no records, each with so many bytes: nobody judges them here.
struct Ledger {
    _store: TempStore,
    backend: Arc<Faulty>,
    names: GroupNames,
}

impl Ledger {
    fn of(objects: impl IntoIterator<Item = usize>) -> Self {
        let store = TempStore::new();
        let names = GroupNames::new(name("host"), name("default"));
        for (slot, bytes) in (0..).zip(objects) {
            let file = store.path().join(names.record(Slot(slot)).as_str());
            fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
            fs::write(file, vec![0; bytes]).expect("write");
        }
        let backend = Faulty::new(Arc::new(DirBackend::open(&store.path()).expect("open")));
        Self { _store: store, backend, names }
    }

    fn slots(&self, is_sized: bool) -> Slots {
        let slots = match is_sized {
            true => Slots::list(&*self.backend, &self.names),
            false => Slots::list_from(&*self.backend, &self.names, 0),
        };
        let slots = slots.expect("listed");
        assert_eq!(slots.bytes_of(0).is_some(), is_sized);
        slots
    }

    fn read(&self) -> usize {
        self.backend.gets.load(Ordering::Relaxed)
    }
}

#[test]
fn slots_come_in_their_order_and_what_is_ahead_of_them_is_bounded() {
    const BYTES: usize = 200 << 10;
    let objects: Vec<usize> = (0..100).map(|slot| if slot == 40 { 2 << 20 } else { BYTES }).collect();
    for is_sized in [true, false] {
        let ledger = Ledger::of(objects.clone());
        let slots = ledger.slots(is_sized);
        let ahead = Ahead::new(&*ledger.backend, &ledger.names, &slots, 0);
        assert!(ahead.threads > 1);
        ahead.during(|ahead| {
            for slot in 0..100 {
                // The one that is to be taken is read at any rate, whatever others have.
                assert!(ledger.read() <= slot + BYTES_MAX as usize / BYTES + 1, "{} are read before slot {slot}", ledger.read());
                let (at, read) = ahead.take().expect("it is there");
                assert_eq!(at, Slot(slot as u64));
                assert!(read.expect("read").is_err(), "no record");
            }
            assert!(ahead.take().is_none());
        });
    }
}

/// Whoever meets a torn slot takes no more.
#[test]
fn nobody_reads_on_for_whoever_left() {
    let ledger = Ledger::of([300 << 10; 100]);
    let slots = ledger.slots(false);
    let taken = Ahead::new(&*ledger.backend, &ledger.names, &slots, 10).during(|ahead| ahead.take().map(|(slot, _)| slot));
    assert_eq!(taken, Some(Slot(10)));
    assert!(ledger.read() < 90);
}

/// In the order of the slots, whichever thread met it.
#[test]
fn a_read_that_fails_is_its_slots_own() {
    let ledger = Ledger::of([100; 64]);
    let slots = ledger.slots(false);
    ledger.backend.fail(Op::Get, "/ledger/0/33", When::Before, libc::EMFILE);
    Ahead::new(&*ledger.backend, &ledger.names, &slots, 0).during(|ahead| {
        for slot in 0..64 {
            let (at, read) = ahead.take().expect("it is there");
            assert_eq!((at, read.is_err()), (Slot(slot), slot == 33));
        }
    });
}

#[test]
fn a_few_are_read_by_whoever_takes_them() {
    let ledger = Ledger::of([100; 8]);
    let slots = ledger.slots(false);
    Ahead::new(&*ledger.backend, &ledger.names, &slots, 3).during(|ahead| {
        assert_eq!(ledger.read(), 0);
        let taken: Vec<u64> = std::iter::from_fn(|| ahead.take()).map(|(slot, _)| slot.0).collect();
        assert_eq!((taken, ledger.read()), ((3..8).collect(), 5));
    });
}
