//! Where parts lie that have no object of their own: for whom it counts, and for how long it is known.

use super::*;

const DAY_MS: u64 = GIVEN_UP_LATELY_MS;

fn pack(world: &World, n: u8) -> PackId {
    PackId::new(world.state.next_slot(), [n; 8])
}

fn say(world: &mut World, pack: PackId, layers: &[LayerKey]) -> Verdict {
    let part = |(i, layer): (usize, &LayerKey)| PackedPart { layer: *layer, number: 0, offset: 100 * i as u64 };
    let parts = layers.iter().enumerate().map(part).collect();
    world.put(Body::PackPlaces(PackPlaces { packs: vec![PackedParts { pack, parts }] }))
}

#[test]
fn a_place_is_known_from_its_layers_record_until_a_day_after_the_part_was_given_up() {
    let mut w = claimed();
    let id = pack(&w, 1);
    let keys = [w.next(1, 0).key, w.next(2, 0).key];
    assert_eq!(say(&mut w, id, &keys), Verdict::Accepted);
    assert_eq!((w.state.place(&keys[0], 0), w.state.packs().len()), (None, 0), "nothing is published by it");
    assert_eq!(w.state.place_in(w.state.next_slot(), &keys[1], 0), Some(Place { pack: id, offset: 100 }));
    assert_eq!(w.state.place_in(Slot(64), &keys[1], 0), None, "in another run");
    let first = w.point(&[1, 2]);
    assert_eq!(w.state.place(&keys[1], 0), Some(Place { pack: id, offset: 100 }));
    assert_eq!(w.state.packs()[&id], PackUse { parts: 2, bytes: 200, living_bytes: 200 });
    // Both are written again, and given up one after the other.
    w.point(&[1, 2]);
    let give_up = |w: &mut World, points: Vec<Slot>, layer: LayerKey| {
        let looked = w.state.head().expect("not empty");
        let (policy, parts) = (PrunePolicy::Aged(Policy::without_grid(1, 0)), vec![PrunedParts { layer, parts: vec![0] }]);
        assert_eq!(w.put(Body::Prune(Prune { looked, policy, points, parts })), Verdict::Accepted);
    };
    give_up(&mut w, vec![first], keys[0]);
    assert_eq!(w.state.packs()[&id], PackUse { parts: 2, bytes: 200, living_bytes: 100 });
    let pass = |w: &mut World| {
        for _ in 0..DAY_MS / (3600 * 1000) {
            w.pass_ms(3600 * 1000);
            w.point(&[1]);
        }
    };
    pass(&mut w);
    assert_eq!(w.state.place(&keys[0], 0), None, "given up a day ago");
    assert_eq!(w.state.packs()[&id], PackUse { parts: 1, bytes: 200, living_bytes: 100 });
    give_up(&mut w, vec![], keys[1]);
    assert!(w.state.place(&keys[1], 0).is_some() && w.state.packs().contains_key(&id), "who read it may read on");
    pass(&mut w);
    assert!(w.state.packs().is_empty());
    // Whoever begins at a checkpoint has the same.
    let mut anew = State::new(group());
    w.log.iter().for_each(|(record, digest, verdict)| assert_eq!(anew.apply(record, *digest), *verdict));
    assert_eq!(anew, w.state);
}

/// What was said of a layer that did not come in then is not believed of one that comes in later, from elsewhere.
#[test]
fn a_place_counts_within_its_run_of_slots_and_until_another_record_says_something() {
    let mut w = claimed();
    let id = pack(&w, 1);
    let keys = [w.next(1, 0).key, w.next(2, 0).key];
    assert_eq!(say(&mut w, id, &keys), Verdict::Accepted);
    let second = pack(&w, 2);
    assert_eq!(say(&mut w, second, &keys[..1]), Verdict::Accepted);
    w.fuzzy(1);
    w.fuzzy(2);
    assert_eq!(w.state.place(&keys[0], 0).map(|place| place.pack), Some(second));
    assert_eq!(w.state.place(&keys[1], 0), None);

    let mut w = claimed();
    let (id, key) = (pack(&w, 1), w.next(1, 0).key);
    assert_eq!(say(&mut w, id, &[key]), Verdict::Accepted);
    while w.state.next_slot() < Slot(64) {
        w.fuzzy(2);
    }
    w.fuzzy(1);
    assert_eq!((w.state.place(&key, 0), w.state.packs().len()), (None, 0));
}

#[test]
fn what_no_correct_writer_says_of_packs_is_void() {
    let mut w = claimed();
    let key = w.next(1, 0).key;
    let part = PackedPart { layer: key, number: 0, offset: 0 };
    let other = PackedPart { number: 1, ..part };
    let here = PackId::new(w.state.next_slot(), [1; 8]);
    let later = PackId::new(w.state.next_slot().next(), [1; 8]);
    let of = |packs: Vec<(PackId, Vec<PackedPart>)>| {
        Body::PackPlaces(PackPlaces { packs: packs.into_iter().map(|(pack, parts)| PackedParts { pack, parts }).collect() })
    };
    for (said, why) in [
        (of(vec![]), Malformed::NoMembers),
        (of(vec![(here, vec![])]), Malformed::NoMembers),
        (of(vec![(here, vec![part, part])]), Malformed::Twice),
        (of(vec![(here, vec![part]), (here, vec![other])]), Malformed::Twice),
        (of(vec![(here, vec![part]), (PackId::new(here.slot(), [2; 8]), vec![part])]), Malformed::Twice),
        (of(vec![(later, vec![part])]), Malformed::Pack),
    ] {
        let record = w.record(said);
        assert_eq!(w.state.judge(&record), Verdict::Void(VoidReason::Malformed(why)), "{:?}", record.body);
    }
    while w.state.next_slot().0 < here.slot().0 + PackId::SLOTS {
        w.fuzzy(2);
    }
    assert_eq!(say(&mut w, here, &[key]), Verdict::Void(VoidReason::Malformed(Malformed::Pack)), "too long ago");
}
