//! What replay forgets, and that nobody is told anything wrong for it.

use farside_region::{MergeId, mutation::tell};

use super::*;

/// Puts a prune of all parts of these layers, and of points, that `policy` lets go.
fn prune(w: &mut World, points: &[Slot], layers: &[LayerKey]) -> Verdict {
    let looked = w.state.head().expect("a head");
    let parts = layers.iter().map(|layer| PrunedParts { layer: *layer, parts: vec![0] }).collect();
    let policy = PrunePolicy::Aged(Policy::without_grid(1, 0));
    w.put(Body::Prune(Prune { looked, policy, points: points.to_vec(), parts }))
}

fn keys(w: &World, n: u8) -> Vec<LayerKey> {
    w.state.layers_above(vol(n), None).map(|layer| layer.key).collect()
}

/// Goes on, with heartbeats, to the next slot at which it is forgotten.
fn go_on(w: &mut World) {
    let every = Memory::get().every;
    loop {
        w.pass_ms(1000);
        let position = w.position();
        let (beat, members) = (w.beat(&[(1, w.term(1))], position), w.state.volume(vol(1)).expect("claimed").last_layer());
        assert!(members.is_some());
        assert_eq!(w.put(beat), Verdict::Accepted);
        if w.state.next_slot().0.is_multiple_of(every) {
            return;
        }
    }
}

/// A day passes by the age clock: two hours at a time.
fn a_day_passes(w: &mut World) {
    for _ in 0..13 {
        w.pass_ms(2 * 3600 * 1000);
        let beat = w.beat(&[(1, w.term(1))], w.position());
        assert_eq!(w.put(beat), Verdict::Accepted);
    }
}

const SHORT: Memory = Memory { every: 16, layers: 4, slots: 64 };

fn short(story: impl FnOnce()) {
    Memory::set(Some(SHORT));
    story();
    Memory::set(None);
}

#[test]
fn a_layer_is_forgotten_when_nothing_of_it_is_needed_and_a_day_has_passed() {
    short(|| {
        let mut w = claimed();
        let point = w.point(&[1]);
        let first: Vec<Slot> = (0..3).map(|_| w.fuzzy(1)).collect();
        let (layers, slots) = (keys(&w, 1), first.clone());
        let (position, old) =
            (LedgerPosition { slot: slots[2], digest: w.state.digest_at(slots[2]).expect("known") }, layers.clone());
        let newest: Vec<Slot> = (0..6).map(|_| w.fuzzy(1)).collect();
        w.point(&[1]);
        assert_eq!(prune(&mut w, &[], &layers[1..]), Verdict::Accepted);
        go_on(&mut w);
        assert_eq!(keys(&w, 1).len(), 11, "they were given up lately");
        a_day_passes(&mut w);
        go_on(&mut w);
        // The point's own layer has all its parts; those that are newer are among the newest or have parts.
        assert_eq!(w.state.layers_above(vol(1), None).map(|l| l.slot).take(2).collect::<Vec<_>>(), [point, newest[0]]);
        let volume = w.state.volume(vol(1)).expect("claimed");
        let forgotten = *volume.forgotten().expect("three layers");
        assert_eq!((forgotten.slot, forgotten.term), (slots[2], old[3].term));
        assert_eq!(forgotten.regions(), regions(&[1, 2]));
        assert_eq!(volume.forgotten_above(Some(slots[1])), Some(&forgotten));
        assert_eq!(volume.forgotten_above(Some(slots[2])), None, "a position at it has missed none");
        assert!(old[1..].iter().all(|key| w.state.layer(key).is_none() && w.state.may_be_forgotten(key)));
        assert!(!w.state.may_be_forgotten(&old[0]) && w.state.published(&old[1]).is_none());
        assert_eq!(w.state.touched(vol(1), slots[0], slots[1]), regions(&[1, 2]), "they may all lie anywhere");
        assert!(w.state.holds(&position), "its digest is not far behind");
        // Said again, it is neither taken nor taken for published.
        let again = entry(1, old[1].term, old[1].seq.0, slots[0].0 as u8);
        let last = volume.last_seq();
        for kind in [LayerKind::Point, LayerKind::Fuzzy] {
            assert_eq!(void(w.layers(kind, vec![again.clone()])), VoidReason::Seq { volume: vol(1), last });
        }
    });
}

#[test]
fn digests_are_forgotten_but_for_those_that_positions_name() {
    short(|| {
        let mut w = claimed();
        let claim = w.term(2);
        let point = w.point(&[1]);
        let (fuzzy, kept) = (w.fuzzy(1), w.fuzzy(2));
        let at = |w: &World, slot: Slot| LedgerPosition { slot, digest: w.state.digest_at(slot).expect("known") };
        let positions: Vec<LedgerPosition> = [Slot(claim.0), point, fuzzy, kept].map(|slot| at(&w, slot)).to_vec();
        let beat = w.beat(&[(2, claim)], w.position());
        assert_eq!(w.put(beat), Verdict::Accepted);
        let beats: Vec<LedgerPosition> = vec![at(&w, w.state.head().expect("a head"))];
        w.fuzzy(1);
        let gone = w.state.next_slot();
        for _ in 0..5 {
            go_on(&mut w);
        }
        assert!(positions.iter().chain(&beats).all(|position| w.state.held(position) == Some(true)));
        assert_eq!((w.state.digest_at(gone), w.state.remembers(gone)), (None, false), "a heartbeat that is over");
        let never = LedgerPosition { slot: gone, digest: farside_region::RecordDigest([1; 32]) };
        assert_eq!((w.state.held(&never), w.state.holds(&never)), (None, false), "nobody knows");
        assert_eq!(w.state.held(&LedgerPosition { slot: w.state.next_slot(), ..never }), Some(false));
        assert_eq!(w.state.held(&LedgerPosition { slot: point, ..never }), Some(false), "that is another history");
        // Nor is a source taken for one of another ledger that is only as far as its claim.
        assert!(w.state.digests.len() as u64 <= SHORT.slots + SHORT.every);
    });
}

/// Which point was verified last is told by its name, long after it is gone.
#[test]
fn the_digest_of_the_newest_verified_point_outlives_it() {
    short(|| {
        let mut w = claimed();
        let point = w.point(&[1]);
        let digest = w.state.digest_at(point);
        assert_eq!(w.put(Body::Verified(Verified { point, how: VerifiedHow::ReadBack })), Verdict::Accepted);
        (0..6).for_each(|_| _ = w.fuzzy(1));
        let newest = w.point(&[1]);
        for _ in 0..6 {
            go_on(&mut w);
        }
        let first = keys(&w, 1)[0];
        assert_eq!(prune(&mut w, &[point], &[first]), Verdict::Accepted);
        a_day_passes(&mut w);
        go_on(&mut w);
        assert!(w.state.layer(&first).is_none() && !w.state.points().contains_key(&point) && newest > point);
        assert_eq!((w.state.digest_at(point), w.state.digest_at(point).is_some()), (digest, true));
    });
}

#[test]
fn a_merge_is_named_soon_after_it_began_or_never() {
    short(|| {
        tell(&[("a merge is believed however long ago it began", "nobody knows")], || {
            let mut w = claimed();
            let first = w.fuzzy(1);
            let second = w.fuzzy(1);
            let point = w.point(&[1]);
            w.fuzzy(1);
            let layers = keys(&w, 1);
            let id = MergeId::new(w.state.next_slot(), 7);
            let map = Map {
                volume: vol(1),
                id,
                point,
                parts: layers[..2].iter().map(|layer| PrunedParts { layer: *layer, parts: vec![0] }).collect(),
                new: vec![PartEntry { bytes: 70, footer_digest: [7; 32] }],
                regions: regions(&[1, 2]),
            };
            assert!(w.state.would_be_merged(&map), "{first} {second}");
            // Decreed away, which is forgotten by and by.
            assert_eq!(w.put(Body::Decree(Decree { merges: vec![(vol(1), id)] })), Verdict::Accepted);
            for _ in 0..6 {
                go_on(&mut w);
            }
            assert!(w.state.volume(vol(1)).expect("claimed").decreed().is_empty());
            assert!(!w.state.may_be_merged(&map.key()) && w.state.may_be_forgotten(&map.key()));
            assert_eq!(w.put(Body::Map(map)), Verdict::Void(VoidReason::MergeAgain(id)), "nobody knows whether it was decreed");
        });
    });
}

#[test]
fn a_merge_that_is_over_is_forgotten() {
    short(|| {
        let mut w = claimed();
        w.fuzzy(1);
        w.fuzzy(1);
        let point = w.point(&[1]);
        w.fuzzy(1);
        let layers = keys(&w, 1);
        let id = MergeId::new(w.state.next_slot(), 7);
        let parts = layers[..3].iter().map(|layer| PrunedParts { layer: *layer, parts: vec![0] }).collect();
        let new = vec![PartEntry { bytes: 70, footer_digest: [7; 32] }];
        let map = Map { volume: vol(1), id, point, parts, new, regions: regions(&[1, 2]) };
        assert_eq!(w.put(Body::Map(map.clone())), Verdict::Accepted);
        for _ in 0..6 {
            go_on(&mut w);
        }
        a_day_passes(&mut w);
        go_on(&mut w);
        assert!(w.state.published(&map.key()).is_some_and(|merge| merge.has(0)), "it is needed");
        w.point(&[1]);
        assert_eq!(prune(&mut w, &[point], &[map.key()]), Verdict::Accepted);
        go_on(&mut w);
        assert!(w.state.published(&map.key()).is_some(), "it was given up lately");
        a_day_passes(&mut w);
        go_on(&mut w);
        assert!(w.state.published(&map.key()).is_none() && w.state.may_be_forgotten(&map.key()));
        assert!(!w.state.may_be_merged(&map.key()), "its segments may go");
    });
}

/// Ten times as long, the state is no larger: of what is retained it is.
#[test]
fn the_state_of_a_long_ledger_is_as_large_as_what_is_retained() {
    short(|| {
        let mut w = claimed();
        let mut sizes = Vec::new();
        for _ in 0..40 {
            for _ in 0..10 {
                w.fuzzy(1);
                w.point(&[1, 2]);
            }
            let (newest, all) = (*w.state.points().keys().next_back().expect("points"), w.state.points().clone());
            let points: Vec<Slot> = all.keys().copied().filter(|slot| *slot < newest).collect();
            let is_over = |layer: &&LayerFact| layer.slot < newest && layer.pruned().is_empty();
            let layers: Vec<LayerKey> =
                [1, 2].into_iter().flat_map(|n| w.state.layers_above(vol(n), None)).filter(is_over).map(|l| l.key).collect();
            assert_eq!(prune(&mut w, &points, &layers), Verdict::Accepted);
            a_day_passes(&mut w);
            sizes.push(w.state.to_cache().len());
        }
        let (early, late) = (sizes[4..8].iter().max().expect("some"), sizes.last().expect("some"));
        assert!(late < &(2 * early), "{sizes:?}");
        assert!(w.state.next_slot().0 > 1000);
        let cached = State::from_cache(&w.state.to_cache()).expect("whole");
        assert_eq!(cached, w.state);
    });
}
