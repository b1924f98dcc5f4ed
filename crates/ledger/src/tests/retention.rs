//! Points, pins, prunes: what may go.

use super::*;

const KEEP_2: Policy = Policy::without_grid(2, 0);

fn prune(w: &World, policy: Policy, points: &[Slot], parts: Vec<PrunedParts>) -> Body {
    let looked = w.state.head().expect("not empty");
    Body::Prune(Prune { looked, policy: PrunePolicy::Aged(policy), points: points.to_vec(), parts })
}

fn key_at(w: &World, n: u8, slot: Slot) -> LayerKey {
    w.state.volume(vol(n)).expect("claimed").layers_above(None).find(|l| l.slot == slot).expect("there").key
}

fn parts_of(layer: LayerKey) -> Vec<PrunedParts> {
    vec![PrunedParts { layer, parts: vec![0] }]
}

fn degraded_point(w: &mut World, n: u8) -> Slot {
    let slot = w.state.next_slot();
    let bad = LayerEntry { unreadable_regions: regions(&[1]), ..w.next(n, slot.0 as u8) };
    assert_eq!(w.layers(LayerKind::Point, vec![bad]), Verdict::Accepted);
    slot
}

#[test]
fn a_point_goes_only_if_every_member_keeps_enough_newer_ones() {
    let mut w = claimed();
    let both = w.point(&[1, 2]);
    for _ in 0..4 {
        w.point(&[1]);
    }
    let prunable = w.state.prunable(&KEEP_2);
    assert_eq!(prunable.len(), 2, "of the four newer ones, two");
    assert!(!prunable.contains(&both), "volume 2 is in no newer point, and does not age");
    w.point(&[2]);
    assert!(!w.state.prunable(&KEEP_2).contains(&both));
    w.point(&[2]);
    assert!(w.state.prunable(&KEEP_2).contains(&both));
    let kept = w.state.points().len() - w.state.prunable(&KEEP_2).len();
    assert_eq!(kept, 4, "two for each");
    assert_eq!(w.state.prunable(&Policy::without_grid(0, 0)).len(), 5, "0 keeps one of each: a last good point");
}

#[test]
fn the_span_counts_in_ledger_time() {
    let mut w = claimed();
    for _ in 0..6 {
        w.point(&[1]);
        w.pass_ms(1000);
    }
    assert_eq!(w.state.time_ms(), 5000);
    let ages = |span_ms| w.state.prunable(&Policy::without_grid(1, span_ms)).len();
    assert_eq!([ages(0), ages(1000), ages(1001), ages(5000), ages(5001)], [5, 5, 4, 1, 0]);
}

/// A record of an earlier version, from before there was a grid, goes by ledger time for ever; one of today by the age clock, and
/// whoever reads it knows its rules.
#[test]
fn a_record_is_judged_by_the_clock_and_the_rules_it_was_written_by() {
    const HOUR_MS: u64 = 3_600_000;
    let mut w = claimed();
    let points: Vec<Slot> = (0..3).map(|_| w.point(&[1])).collect();
    w.pass_ms(3 * HOUR_MS);
    w.point(&[1]);
    assert_eq!((w.state.time_ms(), w.state.age_clock_ms()), (3 * HOUR_MS, 2 * HOUR_MS), "silence ages by two hours");
    let put = |w: &mut World, policy, point| {
        let looked = w.state.head().expect("not empty");
        w.put(Body::Prune(Prune { looked, policy, points: vec![point], parts: Vec::new() }))
    };
    let aged = |keep, span_ms, grid| PrunePolicy::Aged(Policy { grid, ..Policy::without_grid(keep, span_ms) });
    let none = Grid::default;
    let hourly = || Grid::of([(std::time::Duration::from_secs(3600), std::time::Duration::from_secs(86_400))]);
    for (policy, point) in [
        (aged(1, 3 * HOUR_MS, none()), points[0]),
        (aged(1, 0, hourly()), points[0]), // the first of its hour
        (PrunePolicy::LedgerTime { keep: 1, span_ms: 3 * HOUR_MS + 1 }, points[0]),
    ] {
        assert_eq!(void(put(&mut w, policy, point)), VoidReason::NotPrunable(point));
    }
    for (policy, point) in [
        (aged(1, 0, hourly()), points[1]),
        (aged(1, 2 * HOUR_MS, none()), points[2]),
        (PrunePolicy::LedgerTime { keep: 1, span_ms: 3 * HOUR_MS }, points[0]),
    ] {
        assert_eq!(put(&mut w, policy, point), Verdict::Accepted);
    }
}

#[test]
fn degraded_points_do_not_count_and_do_not_pile_up() {
    let mut w = claimed();
    let good: Vec<Slot> = (0..3).map(|_| w.point(&[1])).collect();
    let bad: Vec<Slot> = (0..5).map(|_| degraded_point(&mut w, 1)).collect();
    assert!(bad.iter().all(|p| w.state.points()[p].degraded));
    assert_eq!(w.state.prunable(&KEEP_2), [&good[..1], &bad[..3]].concat(), "two good and two bad ones stay");
    // Inside the span all stay.
    assert!(w.state.prunable(&Policy::without_grid(2, 1)).is_empty());
    // A layer that touches the region and does not say that it is still bad heals it.
    let healed = w.point(&[1]);
    assert!(!w.state.points()[&healed].degraded);
    w.point(&[1]);
    assert_eq!(w.state.prunable(&KEEP_2).len(), 8, "now the two newest suffice");
}

#[test]
fn degraded_points_inside_the_span_do_not_push_older_ones_out() {
    let mut w = claimed();
    let first = degraded_point(&mut w, 1);
    w.pass_ms(10_000);
    let later: Vec<Slot> = (0..4).map(|_| degraded_point(&mut w, 1)).collect();
    let policy = Policy::without_grid(2, 5_000);
    assert!(w.state.prunable(&policy).is_empty(), "it is the only one beyond the span");
    w.pass_ms(5_000);
    let newest = degraded_point(&mut w, 1);
    assert_eq!(w.state.prunable(&policy), [&[first], &later[..2]].concat());
    assert!(w.state.points().contains_key(&newest));
}

#[test]
fn a_region_stays_bad_until_a_layer_that_touches_it_says_otherwise() {
    let mut w = claimed();
    let bad = LayerEntry { unreadable_regions: regions(&[1]), ..w.next(1, 1) };
    assert_eq!(w.layers(LayerKind::Fuzzy, vec![bad]), Verdict::Accepted);
    let elsewhere = LayerEntry { regions: regions(&[3]), ..w.next(1, 2) };
    assert_eq!(w.layers(LayerKind::Point, vec![elsewhere]), Verdict::Accepted);
    assert!(w.state.points().values().all(|p| p.degraded), "a point holds what earlier fuzzy layers left");
    let v = w.state.volume(vol(1)).expect("claimed");
    let none = RegionSet::new();
    assert_eq!(v.unreadable_after(&regions(&[1, 2]), &none, &none), regions(&[1]), "touched, not rewritten");
    assert_eq!(v.unreadable_after(&regions(&[1, 2]), &regions(&[1]), &none), none, "rewritten");
    assert_eq!(v.unreadable_after(&regions(&[2]), &none, &regions(&[2])), regions(&[2]), "new, and 1 is not touched");
}

#[test]
fn pins_hold_until_the_last_is_withdrawn() {
    let mut w = claimed();
    let points: Vec<Slot> = (0..4).map(|_| w.point(&[1])).collect();
    let pin = |w: &mut World, point| {
        let slot = w.state.next_slot();
        (slot, w.put(Body::Pin(Pin { point, reason: "audit".to_owned() })))
    };
    let (a, verdict) = pin(&mut w, points[0]);
    assert_eq!(verdict, Verdict::Accepted);
    let (b, _) = pin(&mut w, points[0]);
    assert_eq!(w.state.prunable(&KEEP_2), [points[1]]);
    let held = prune(&w, KEEP_2, &[points[0]], vec![]);
    assert_eq!(void(w.put(held)), VoidReason::NotPrunable(points[0]));
    assert_eq!(w.put(Body::Unpin(Unpin { pin: a })), Verdict::Accepted);
    assert_eq!(void(w.put(Body::Unpin(Unpin { pin: a }))), VoidReason::NoSuchPin(a));
    assert_eq!(w.state.prunable(&KEEP_2), [points[1]]);
    assert_eq!(w.put(Body::Unpin(Unpin { pin: b })), Verdict::Accepted);
    assert_eq!(w.state.prunable(&KEEP_2), points[..2]);
    assert_eq!(void(pin(&mut w, Slot(0)).1), VoidReason::NoSuchPoint(Slot(0)));
}

#[test]
fn t16_a_prune_must_hold_at_its_own_slot() {
    let mut w = claimed();
    let points: Vec<Slot> = (0..4).map(|_| w.point(&[1])).collect();
    let stale = prune(&w, KEEP_2, &points[..1], vec![]);
    assert_eq!(w.put(Body::Pin(Pin { point: points[3], reason: String::new() })), Verdict::Accepted);
    let pinned = w.state.head().expect("not empty");
    assert_eq!(void(w.put(stale)), VoidReason::PruneOvertaken(pinned));
    let too_many = prune(&w, KEEP_2, &points[..3], vec![]);
    assert_eq!(void(w.put(too_many)), VoidReason::NotPrunable(points[2]));
    let none = prune(&w, KEEP_2, &[Slot(1)], vec![]);
    assert_eq!(void(w.put(none)), VoidReason::NoSuchPoint(Slot(1)));
    let twice = prune(&w, KEEP_2, &[points[0], points[0]], vec![]);
    assert_eq!(void(w.put(twice)), VoidReason::Malformed(Malformed::Twice));
    let empty = prune(&w, KEEP_2, &[], vec![]);
    assert_eq!(void(w.put(empty)), VoidReason::Malformed(Malformed::NoMembers));
    let mut ahead = prune(&w, KEEP_2, &points[..1], vec![]);
    if let Body::Prune(p) = &mut ahead {
        p.looked = w.state.next_slot();
    }
    assert_eq!(void(w.put(ahead)), VoidReason::Malformed(Malformed::LookedAhead));
    let good = prune(&w, KEEP_2, &points[..2], vec![]);
    // A layer after the look does not matter: it makes no dead part live.
    w.fuzzy(1);
    assert_eq!(w.put(good), Verdict::Accepted);
    assert_eq!(w.state.points().keys().copied().collect::<Vec<_>>(), points[2..]);
}

#[test]
fn t16_a_prune_may_not_name_parts_in_use() {
    let mut w = claimed();
    let points: Vec<Slot> = (0..4).map(|_| w.point(&[1])).collect();
    let keys: Vec<LayerKey> = points.iter().map(|p| key_at(&w, 1, *p)).collect();
    let refused = |w: &mut World, points: &[Slot], parts: Vec<PrunedParts>| {
        let body = prune(w, KEEP_2, points, parts);
        void(w.put(body))
    };
    assert_eq!(refused(&mut w, &points[..1], parts_of(keys[1])), VoidReason::PruneLive(keys[1]), "of a retained point");
    assert_eq!(refused(&mut w, &points[..1], parts_of(keys[3])), VoidReason::PruneLive(keys[3]), "the head");
    let unknown = LayerKey { seq: Seq(50), ..keys[0] };
    assert_eq!(refused(&mut w, &points[..1], parts_of(unknown)), VoidReason::PruneLive(unknown));
    let beyond = vec![PrunedParts { layer: keys[0], parts: vec![1] }];
    assert_eq!(refused(&mut w, &points[..1], beyond), VoidReason::PruneLive(keys[0]), "it has one part");
    // Layers of no point: what came after the look, and the newest one.
    let mut body = prune(&w, KEEP_2, &[], vec![]);
    let (f1, f2) = (w.fuzzy(1), w.fuzzy(1));
    let (f1, f2) = (key_at(&w, 1, f1), key_at(&w, 1, f2));
    if let Body::Prune(p) = &mut body {
        p.parts = parts_of(f1);
    }
    assert_eq!(void(w.put(body)), VoidReason::PruneLive(f1), "the writer could not have judged it");
    assert_eq!(refused(&mut w, &[], parts_of(f2)), VoidReason::PruneLive(f2), "the head image");
    let body = prune(&w, KEEP_2, &[], parts_of(f1));
    assert_eq!(w.put(body), Verdict::Accepted, "what else is dead only the index knows");
    let body = prune(&w, KEEP_2, &points[..1], parts_of(keys[0]));
    assert_eq!(w.put(body), Verdict::Accepted);
    assert!(w.state.layer(&keys[0]).expect("still known").pruned().contains(&0));
    assert_eq!(refused(&mut w, &points[1..2], parts_of(keys[0])), VoidReason::PruneLive(keys[0]), "given up already");
}

/// Who deletes waits a day, and must not wait anew because it was restarted: replay knows what was given up within a day, from a
/// checkpoint as from slot 0. The day is the age clock's, so no wall clock makes it shorter.
#[test]
fn what_was_given_up_is_known_as_such_for_a_day_whoever_replays() {
    let mut w = claimed();
    let fuzzy = w.fuzzy(1);
    let key = key_at(&w, 1, fuzzy);
    w.point(&[1]);
    let body = prune(&w, KEEP_2, &[], parts_of(key));
    assert_eq!(w.put(body), Verdict::Accepted);
    let lately = |w: &World| w.state.given_up_lately().collect::<Vec<_>>();
    assert_eq!(lately(&w), [(key, 0)]);
    // Restarted with the wall clock two hours ahead, fifty times: nobody lived through them.
    for _ in 0..50 {
        (w.writer, w.mono_ms) = (w.writer + 1, 0);
        w.wall_ms += 2 * 3600 * 1000;
        w.point(&[1]);
    }
    assert!(w.state.time_ms() > GIVEN_UP_LATELY_MS, "ledger time believes it");
    assert_eq!(lately(&w), [(key, 0)]);
    // Restarted every hour, one minute of which is spent between processes: 24 hours of life are a day.
    let lived = |hours: u64| hours * 59 * 60 * 1000 / GIVEN_UP_LATELY_MS;
    let mut hours = 0;
    while !lately(&w).is_empty() {
        assert_eq!(lived(hours), 0, "a day of its life is over");
        hours += 1;
        (w.writer, w.mono_ms) = (w.writer + 1, 0);
        w.point(&[1]);
        w.pass_ms(59 * 60 * 1000);
        w.point(&[1]);
        let cached = State::from_cache(&w.state.to_cache()).expect("its own");
        assert_eq!(cached.given_up_lately().collect::<Vec<_>>(), lately(&w), "whoever replays");
        w.wall_ms += 60 * 1000;
    }
    assert_eq!(lived(hours), 1);
    assert!(w.state.layer(&key).expect("known").pruned().contains(&0), "for ever");
}

#[test]
fn what_was_verified_is_known_by_way_and_outlives_the_point() {
    let mut w = claimed();
    let (old, new) = (w.point(&[1, 2]), w.point(&[1, 2]));
    let verified = |point, how| Body::Verified(Verified { point, how });
    assert_eq!(void(w.put(verified(Slot(0), VerifiedHow::ReadBack))), VoidReason::NoSuchPoint(Slot(0)));
    assert_eq!(w.state.last_proofs(), &Proofs::default());
    let at = |w: &World| Proof { slot: w.state.head().expect("not empty"), wall_ms: w.wall_ms };
    w.pass_ms(5);
    assert_eq!(w.put(verified(old, VerifiedHow::WithSource)), Verdict::Accepted);
    let compared = at(&w);
    w.pass_ms(5);
    assert_eq!(w.put(verified(old, VerifiedHow::ReadBack)), Verdict::Accepted);
    w.pass_ms(5);
    assert_eq!(w.put(verified(old, VerifiedHow::ReadBack)), Verdict::Accepted);
    let read = at(&w);
    assert_eq!(w.state.points()[&old].proofs, Proofs { read_back: Some(read), with_source: Some(compared) });
    assert_eq!(w.state.points()[&new].proofs.iter().count(), 0);
    // It holds nothing: neither the point, nor a prune that had looked before.
    let looked = Slot(read.slot.0 - 1);
    let policy = PrunePolicy::Aged(Policy::without_grid(1, 0));
    assert_eq!(w.put(Body::Prune(Prune { looked, policy, points: vec![old], parts: vec![] })), Verdict::Accepted);
    let last = w.state.last_proofs().read_back.expect("known");
    assert_eq!((last.point, last.cut_wall_ms, last.proof), (old, epoch().wall_ms, read));
    assert_eq!(void(w.put(verified(old, VerifiedHow::ReadBack))), VoidReason::NoSuchPoint(old));
}
