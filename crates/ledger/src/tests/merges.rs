//! Merges and decrees, rule by rule. What must hold whatever writers do is in `properties`.

use farside_region::MergeId;

use super::*;

/// A map record over whole layers of volume 1, into one part.
fn map(w: &World, id: u64, point: Slot, slots: &[Slot]) -> Map {
    let key_of = |slot: &Slot| {
        let layers = w.state.layers_above(vol(1), None).map(|layer| (layer.slot, layer.key));
        let merges = w.state.volume(vol(1)).expect("claimed").merges();
        let merges = merges.iter().map(|(id, merge)| (merge.slot, LayerKey::of_merge(vol(1), *id)));
        layers.chain(merges).find(|(at, _)| at == slot).expect("there").1
    };
    let parts = slots.iter().map(|slot| PrunedParts { layer: key_of(slot), parts: vec![0] }).collect();
    let new = vec![PartEntry { bytes: 70, footer_digest: [id as u8; 32] }];
    Map { volume: vol(1), id: MergeId(id), point, parts, new, regions: regions(&[1, 2]) }
}

fn decree(ids: &[u64]) -> Body {
    Body::Decree(Decree { merges: ids.iter().map(|id| (vol(1), MergeId(*id))).collect() })
}

fn refused(w: &mut World, map: Map) -> VoidReason {
    let before = w.state.clone();
    let reason = void(w.put(Body::Map(map)));
    assert_eq!((before.points(), before.volume(vol(1))), (w.state.points(), w.state.volume(vol(1))));
    reason
}

/// Two points with two fuzzy layers before each, and a newest layer.
fn history() -> (World, [Slot; 3], [Slot; 3], Slot) {
    let mut w = claimed();
    let one = [w.fuzzy(1), w.fuzzy(1), w.point(&[1, 2])];
    w.point(&[2]);
    let two = [w.fuzzy(1), w.fuzzy(1), w.point(&[1])];
    let newest = w.fuzzy(1);
    (w, one, two, newest)
}

#[test]
fn the_parts_of_an_interval_become_others_and_are_given_up() {
    let (mut w, one, two, _) = history();
    let before = w.state.clone();
    let merge = map(&w, 5, two[2], &two);
    assert_eq!(w.state.interval(vol(1), two[2]), Some(Some(one[2])), "points of others are none of its");
    assert_eq!((w.state.interval(vol(1), one[2]), w.state.interval(vol(1), one[1])), (Some(None), None));
    assert!(w.state.may_be_merged(&merge.key()) && w.state.would_be_merged(&merge));
    assert_eq!(w.put(Body::Map(merge.clone())), Verdict::Accepted);
    let slot = w.state.head().expect("a head");
    let published = w.state.published(&merge.key()).expect("it was accepted");
    assert_eq!((published.born, published.record, published.part_count), (two[2], slot, 1));
    assert!(published.has(0) && !published.has(1));
    for layer in merge.parts.iter().map(|part| part.layer) {
        assert!(w.state.is_given_up(&layer, 0) && w.state.given_up_lately().any(|part| part == (layer, 0)));
        assert!(w.state.layer(&layer).is_some(), "what it touched is known for long");
    }
    assert_eq!((w.state.points(), w.state.time_ms()), (before.points(), before.time_ms()));
    assert_eq!(refused(&mut w, merge), VoidReason::MergeAgain(MergeId(5)));

    // What it wrote is merged again, with what came before it once the point between has gone.
    let first = map(&w, 6, one[2], &one);
    assert_eq!(w.put(Body::Map(first)), Verdict::Accepted);
    let slots = [w.state.head().expect("a head"), slot];
    let both = map(&w, 7, two[2], &slots);
    let across = VoidReason::MergeAcross { layer: both.parts[0].layer, point: two[2] };
    assert_eq!(refused(&mut w, both.clone()), across);
    let looked = w.state.head().expect("a head");
    let policy = PrunePolicy::Aged(Policy::without_grid(1, 0));
    let parts = vec![PrunedParts { layer: both.parts[0].layer, parts: vec![0] }];
    let taken = Prune { looked, policy: policy.clone(), points: vec![], parts: parts.clone() };
    assert_eq!(void(w.put(Body::Prune(taken))), VoidReason::PruneLive(both.parts[0].layer), "its point is retained");
    assert_eq!(
        w.put(Body::Prune(Prune { looked: w.state.head().expect("a head"), policy, points: vec![one[2]], parts: vec![] })),
        Verdict::Accepted
    );
    assert_eq!(w.put(Body::Map(both.clone())), Verdict::Accepted);
    assert_eq!(w.state.published(&both.key()).map(|merge| merge.born), Some(two[2]));
    assert!(w.state.is_given_up(&both.parts[0].layer, 0));
    assert_eq!(State::from_cache(&w.state.to_cache()), Ok(w.state.clone()));
}

#[test]
fn what_a_merge_wrote_is_pruned_when_its_point_has_gone() {
    let (mut w, one, ..) = history();
    let merge = map(&w, 5, one[2], &one);
    let key = merge.key();
    assert_eq!(w.put(Body::Map(merge)), Verdict::Accepted);
    let policy = PrunePolicy::Aged(Policy::without_grid(1, 0));
    let parts = vec![PrunedParts { layer: key, parts: vec![0] }];
    let looked = one[2]; // it could not have been seen
    w.point(&[2]);
    assert_eq!(
        void(w.put(Body::Prune(Prune { looked, policy: policy.clone(), points: vec![one[2]], parts: parts.clone() }))),
        VoidReason::PruneLive(key)
    );
    let looked = w.state.head().expect("a head");
    let prune = Body::Prune(Prune { looked, policy, points: vec![one[2]], parts });
    assert_eq!(w.put(prune), Verdict::Accepted);
    assert!(w.state.is_given_up(&key, 0));
}

#[test]
fn a_merge_is_void_unless_all_that_it_rests_on_is_there() {
    let (mut w, one, two, newest) = history();
    let good = map(&w, 1, two[2], &two);
    let with = |change: &dyn Fn(&mut Map)| {
        let mut map = good.clone();
        change(&mut map);
        map
    };
    let malformed = VoidReason::Malformed;
    assert_eq!(refused(&mut w, with(&|m| m.volume = vol(9))), VoidReason::UnknownVolume(vol(9)));
    assert_eq!(refused(&mut w, with(&|m| m.parts.clear())), malformed(Malformed::NoMembers));
    assert_eq!(refused(&mut w, with(&|m| m.parts[0].parts.clear())), malformed(Malformed::NoMembers));
    assert_eq!(refused(&mut w, with(&|m| m.parts[0].parts = vec![0, 0])), malformed(Malformed::Twice));
    assert_eq!(refused(&mut w, with(&|m| m.parts[1] = m.parts[0].clone())), malformed(Malformed::Twice));
    assert_eq!(refused(&mut w, with(&|m| m.id = MergeId(MergeId::END))), malformed(Malformed::Merge));
    assert_eq!(refused(&mut w, with(&|m| m.new = vec![m.new[0]; 4])), malformed(Malformed::Merge));
    assert_eq!(refused(&mut w, with(&|m| m.parts[0].layer.volume = vol(2))), malformed(Malformed::Merge));
    assert_eq!(refused(&mut w, with(&|m| m.regions = regions(&[8]))), malformed(Malformed::Region));
    assert_eq!(refused(&mut w, with(&|m| m.point = two[1])), VoidReason::NoSuchPoint(two[1]));
    let key = |m: &Map, at: usize| m.parts[at].layer;
    assert_eq!(refused(&mut w, with(&|m| m.parts[0].parts = vec![1])), VoidReason::MergeGone(key(&good, 0)));
    let unknown = LayerKey { seq: Seq(50), ..key(&good, 0) };
    assert_eq!(refused(&mut w, with(&|m| m.parts[0].layer = unknown)), VoidReason::MergeGone(unknown));
    assert_eq!(refused(&mut w, with(&|m| drop(m.parts.remove(1)))), VoidReason::MergeSkips(key(&good, 1)));
    let all = map(&w, 1, two[2], &[one[2], two[0]]);
    assert_eq!(refused(&mut w, all.clone()), VoidReason::MergeAcross { layer: key(&all, 0), point: two[2] });
    let early = map(&w, 1, one[2], &two);
    assert_eq!(
        refused(&mut w, early.clone()),
        VoidReason::MergeAcross { layer: key(&early, 0), point: one[2] },
        "after its point"
    );
    let open = map(&w, 1, two[2], &[newest]);
    assert_eq!(refused(&mut w, open.clone()), VoidReason::MergeAcross { layer: key(&open, 0), point: two[2] });
    let mut head = w.clone();
    let point = head.point(&[1]);
    let newest = map(&head, 1, point, &[newest, point]);
    assert_eq!(refused(&mut head, newest.clone()), VoidReason::MergeNewest(key(&newest, 1)));
    // What came meanwhile and changes nothing of this does not matter.
    w.point(&[1]);
    assert_eq!(w.put(Body::Pin(Pin { point: one[2], reason: String::new() })), Verdict::Accepted);
    // Who goes by a pin may read all that was born up to its point.
    for pinned in [two[2], *w.state.points().keys().last().expect("points")] {
        let mut pinned_too = w.clone();
        assert_eq!(pinned_too.put(Body::Pin(Pin { point: pinned, reason: String::new() })), Verdict::Accepted);
        let pin = pinned_too.state.head().expect("a head");
        assert_eq!(refused(&mut pinned_too, good.clone()), VoidReason::MergePinned(pinned));
        assert_eq!(pinned_too.put(Body::Unpin(Unpin { pin })), Verdict::Accepted);
        assert_eq!(pinned_too.put(Body::Map(good.clone())), Verdict::Accepted);
    }
    assert_eq!(w.put(decree(&[77])), Verdict::Accepted);
    let nothing = Map { new: vec![], id: MergeId(2), ..good.clone() };
    assert_eq!(w.clone().put(Body::Map(nothing)), Verdict::Accepted, "of some nothing is needed");
    assert_eq!(w.put(Body::Map(good.clone())), Verdict::Accepted);
    let again = Map { id: MergeId(3), ..good.clone() };
    assert_eq!(refused(&mut w, again), VoidReason::MergeGone(key(&good, 0)), "somebody else was first");
}

#[test]
fn a_decree_holds_for_ever_and_takes_nothing_back() {
    let (mut w, one, two, _) = history();
    assert_eq!(void(w.put(decree(&[]))), VoidReason::Malformed(Malformed::NoMembers));
    assert_eq!(void(w.put(decree(&[4, 4]))), VoidReason::Malformed(Malformed::Twice));
    assert_eq!(void(w.put(decree(&[MergeId::END]))), VoidReason::Malformed(Malformed::Merge));
    let unknown = Body::Decree(Decree { merges: vec![(vol(9), MergeId(1))] });
    assert_eq!(void(w.put(unknown)), VoidReason::UnknownVolume(vol(9)));
    assert_eq!(w.put(decree(&[1, 4])), Verdict::Accepted);
    assert_eq!(w.put(decree(&[4])), Verdict::Accepted, "whoever decrees it");
    let merge = map(&w, 4, two[2], &two);
    assert!(!w.state.may_be_merged(&merge.key()));
    assert_eq!(refused(&mut w, merge.clone()), VoidReason::MergeAgain(MergeId(4)));
    // Of another volume the same number is another merge.
    assert!(w.state.may_be_merged(&LayerKey::of_merge(vol(2), MergeId(4))));
    assert_eq!(w.put(Body::Map(Map { id: MergeId(5), ..merge })), Verdict::Accepted);
    assert_eq!(void(w.put(decree(&[5]))), VoidReason::MergeAccepted(MergeId(5)));
    assert_eq!(void(w.put(decree(&[6, 5]))), VoidReason::MergeAccepted(MergeId(5)), "all of it or nothing");
    assert_eq!(w.put(Body::Map(map(&w, 6, one[2], &one))), Verdict::Accepted);
    assert_eq!(State::from_cache(&w.state.to_cache()), Ok(w.state.clone()));
}

#[test]
fn how_long_a_policy_keeps_a_point_is_told_before() {
    let mut w = claimed();
    let minute = 60_000;
    let points: Vec<Slot> = (0..30)
        .map(|_| {
            w.pass_ms(minute / 4);
            w.point(&[1])
        })
        .collect();
    let every = |s: u64| std::time::Duration::from_secs(s);
    let policy = Policy {
        grid: Grid::of([(every(60), every(3600)), (every(3600), every(86_400))]),
        ..Policy::without_grid(1, 2 * minute)
    };
    let gone = w.state.prunable(&policy);
    for point in &points {
        let until_ms = w.state.kept_until_ms(&policy, vol(1), *point);
        let is_kept_by_age = until_ms > w.state.age_clock_ms();
        assert_eq!(!is_kept_by_age, gone.contains(point), "{point}");
    }
    assert!(w.state.kept_until_ms(&policy, vol(1), points[0]) > 24 * 60 * minute, "the first of its hour");
    assert_eq!(w.state.kept_until_ms(&policy, vol(2), points[0]), 0, "it does not hold that");
    w.put(Body::Pin(Pin { point: points[1], reason: String::new() }));
    assert_eq!(w.state.kept_until_ms(&policy, vol(1), points[1]), u64::MAX);
}
