//! Claims, layers, heartbeats: which are accepted, which are void and why.

use farside_region::{RecordDigest, mutation};

use super::*;

#[test]
fn a_claim_is_void_if_a_layer_of_the_volume_came_in_after_the_look() {
    let mut w = claimed();
    let looked = w.state.head();
    let layer = w.fuzzy(1);
    let claim = |n, looked| Body::Claim(Claim { volume: meta(n), looked, source: name("host") });
    assert_eq!(void(w.put(claim(1, looked))), VoidReason::ClaimOvertaken { last_layer: layer });
    assert_eq!(void(w.put(claim(1, None))), VoidReason::ClaimOvertaken { last_layer: layer });
    assert_eq!(w.put(claim(2, looked)), Verdict::Accepted, "the layer was another volume's");
    assert_eq!(w.put(claim(1, Some(layer))), Verdict::Accepted);
    assert_eq!(w.term(1), Term(w.state.head().expect("not empty").0));
    let ahead = w.state.next_slot();
    assert_eq!(void(w.put(claim(1, Some(ahead)))), VoidReason::Malformed(Malformed::LookedAhead));
}

#[test]
fn a_claim_must_fit_the_volume_that_the_ledger_knows() {
    let mut w = claimed();
    let looked = w.state.head();
    let mut claim = |change: &dyn Fn(&mut VolumeMeta)| {
        let mut volume = meta(1);
        change(&mut volume);
        w.put(Body::Claim(Claim { volume, looked, source: name("host") }))
    };
    let sized = |bytes, granule, region| Geometry::with_shape(bytes, granule, region).expect("valid");
    assert_eq!(void(claim(&|v| v.digest_key = [9; 32].into())), VoidReason::ClaimDigestKey);
    assert_eq!(void(claim(&|v| v.geometry = sized(512, 4, 3))), VoidReason::ClaimShape(vol(1)));
    let shrinks = VoidReason::ClaimShrinks { ledger_bytes: 512, claim_bytes: 511 };
    assert_eq!(void(claim(&|v| v.geometry = sized(511, 4, 2))), shrinks);
    assert_eq!(claim(&|v| v.generation = Generation(3)), Verdict::Accepted);
    assert_eq!(void(claim(&|_| ())), VoidReason::Fenced { current: Generation(3) }, "L6: an older generation");
    assert_eq!(claim(&|v| (v.generation, v.geometry) = (Generation(3), sized(600, 4, 2))), Verdict::Accepted, "it grew");
    assert_eq!(w.state.volume(vol(1)).expect("claimed").meta().geometry.volume_bytes(), 600);
}

#[test]
fn a_volume_never_claimed_has_no_layers_and_no_heartbeat() {
    let mut w = claimed();
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![entry(3, Term(0), 1, 1)])), VoidReason::UnknownVolume(vol(3)));
    let body = w.beat(&[(3, Term(0))], w.position());
    assert_eq!(void(w.put(body)), VoidReason::UnknownVolume(vol(3)));
}

#[test]
fn l6_layers_form_one_chain_of_terms_and_sequence_numbers() {
    let mut w = claimed();
    let term = w.term(1);
    let gap = entry(1, term, 2, 1);
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![gap.clone()])), VoidReason::Seq { volume: vol(1), last: Seq(0) });
    assert_eq!(void(w.layers(LayerKind::Point, vec![gap])), VoidReason::PointOverGap { volume: vol(1), last: Seq(0) });
    w.fuzzy(1);
    w.fuzzy(1);
    assert_eq!(w.state.volume(vol(1)).expect("claimed").last_seq(), Seq(2));
    assert_eq!(w.claim(1), Verdict::Accepted);
    assert_eq!(w.state.volume(vol(1)).expect("claimed").last_seq(), Seq(0), "T11: 1 is the first of each term");
    let current = w.term(1);
    let stale = VoidReason::Term { volume: vol(1), current };
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![entry(1, term, 3, 1)])), stale);
    let member = w.next(2, 1);
    assert_eq!(void(w.layers(LayerKind::Point, vec![entry(1, term, 3, 1), member])), stale, "none for the other member either");
    assert_eq!(w.state.volume(vol(2)).expect("claimed").last_seq(), Seq(0));
    let future = entry(1, Term(99), 1, 1);
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![future])), stale);
}

#[test]
fn t11_duplicates_are_judged_per_member_by_digest() {
    let mut w = claimed();
    let (a, b) = (w.next(1, 1), w.next(2, 2));
    assert_eq!(w.layers(LayerKind::Point, vec![a.clone(), b.clone()]), Verdict::Accepted);
    let again = w.layers(LayerKind::Point, vec![a.clone(), b.clone()]);
    assert_eq!(again, Verdict::Void(VoidReason::Duplicate));
    assert!(again.is_done(), "a duplicate is success for its writer");
    assert_eq!(w.layers(LayerKind::Fuzzy, vec![a.clone()]), again, "each member alone is done, too");
    let other = LayerEntry { digest: [9; 32], ..a.clone() };
    let differs = VoidReason::DuplicateDiffers(a.key);
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![other.clone()])), differs);
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![w.next(2, 5), other])), differs, "nothing of it takes effect");
    assert!(!Verdict::Void(differs).is_done());
    assert_eq!(w.state.points().len(), 1);
}

#[test]
fn t11_a_fuzzy_record_may_advance_some_members_a_point_all_or_none() {
    let mut w = claimed();
    let done = w.next(1, 1);
    assert_eq!(w.layers(LayerKind::Fuzzy, vec![done.clone()]), Verdict::Accepted);
    let new = w.next(2, 2);
    let mixed = vec![done.clone(), new.clone()];
    assert_eq!(void(w.layers(LayerKind::Point, mixed.clone())), VoidReason::PointPartlyDuplicate);
    assert_eq!(w.state.volume(vol(2)).expect("claimed").last_seq(), Seq(0));
    assert_eq!(w.layers(LayerKind::Fuzzy, mixed), Verdict::Accepted);
    assert_eq!(w.state.volume(vol(2)).expect("claimed").last_seq(), Seq(1));
    assert_eq!(w.state.volume(vol(1)).expect("claimed").last_seq(), Seq(1));
    assert_eq!(w.state.layer(&done.key).expect("accepted").slot, Slot(2), "the first acceptance stands");
    assert!(w.state.points().is_empty(), "L4: no fuzzy layer is ever a point");
}

#[test]
fn records_that_no_correct_writer_makes_are_void() {
    let mut w = claimed();
    let good = w.next(1, 1);
    let mut with = |change: &dyn Fn(&mut LayerEntry)| {
        let mut entry = good.clone();
        change(&mut entry);
        void(w.layers(LayerKind::Fuzzy, vec![entry]))
    };
    assert_eq!(with(&|e| e.key.seq = Seq(0)), VoidReason::Malformed(Malformed::SeqZero));
    assert_eq!(with(&|e| e.regions = regions(&[8])), VoidReason::Malformed(Malformed::Region));
    assert_eq!(with(&|e| e.unreadable_regions = regions(&[3])), VoidReason::Malformed(Malformed::Region));
    assert_eq!(with(&|e| e.volume_bytes = 0), VoidReason::Malformed(Malformed::VolumeBytes));
    assert_eq!(with(&|e| e.volume_bytes = 511), VoidReason::Malformed(Malformed::VolumeBytes));
    assert_eq!(with(&|e| e.volume_bytes = u64::MAX), VoidReason::Malformed(Malformed::VolumeBytes));
    assert_eq!(void(w.layers(LayerKind::Fuzzy, vec![])), VoidReason::Malformed(Malformed::NoMembers));
    let twice = vec![good.clone(), LayerEntry { key: LayerKey { seq: Seq(2), ..good.key }, ..good }];
    assert_eq!(void(w.layers(LayerKind::Fuzzy, twice)), VoidReason::Malformed(Malformed::Twice));
    let backwards = Layers {
        kind: LayerKind::Fuzzy,
        epoch: EpochInfo { mono_after_ns: 9, ..epoch() },
        label: None,
        members: vec![w.next(1, 1)],
    };
    assert_eq!(void(w.put(Body::Layers(backwards))), VoidReason::Malformed(Malformed::Times));
    assert_eq!(
        w.put(Body::Pin(Pin { point: Slot(0), reason: "x".repeat(1025) })),
        Verdict::Void(VoidReason::Malformed(Malformed::Reason))
    );
}

#[test]
fn t15_a_heartbeat_needs_the_current_term_and_a_position_above_all_layers() {
    let mut w = claimed();
    let before = w.position();
    w.fuzzy(1);
    let (t1, t2) = (w.term(1), w.term(2));
    let beat = w.beat(&[(1, t1), (2, t2)], before);
    assert_eq!(void(w.put(beat)), VoidReason::HeartbeatPosition(vol(1)), "a layer lies above it");
    let beat = w.beat(&[(2, t2)], before);
    assert_eq!(w.put(beat), Verdict::Accepted, "the layer was another volume's");
    let here = w.position();
    let beat = w.beat(&[(1, t2)], here);
    assert_eq!(void(w.put(beat)), VoidReason::HeartbeatTerm(vol(1)));
    let elsewhere = LedgerPosition { digest: RecordDigest([1; 32]), ..here };
    let beat = w.beat(&[(1, t1)], elsewhere);
    assert_eq!(void(w.put(beat)), VoidReason::HeartbeatPosition(vol(1)), "another history");
    let beat = w.beat(&[(1, t1)], LedgerPosition { slot: Slot(99), ..here });
    assert_eq!(void(w.put(beat)), VoidReason::HeartbeatPosition(vol(1)), "a future one");
    let beat = w.beat(&[(1, t1), (1, t1)], here);
    assert_eq!(void(w.put(beat)), VoidReason::Malformed(Malformed::Twice));
    let beat = w.beat(&[(1, t1)], here);
    assert_eq!(w.put(beat), Verdict::Accepted);
    assert_eq!(w.state.volume(vol(1)).expect("claimed").quiet().expect("heard").1.mono_ns, 99);
    w.fuzzy(1);
    assert_eq!(w.state.volume(vol(1)).expect("claimed").quiet(), None, "a newer layer ends the quiet");
    let beat = w.beat(&[(1, t1)], w.position());
    assert_eq!((w.put(beat), w.claim(1)), (Verdict::Accepted, Verdict::Accepted));
    assert_eq!(w.state.volume(vol(1)).expect("claimed").quiet(), None, "so does a newer claim");
}

#[test]
fn ledger_time_comes_from_one_writer_or_is_clamped() {
    let mut w = claimed();
    w.pass_ms(500);
    w.fuzzy(1);
    assert_eq!(w.state.time_ms(), 0, "the first layer begins it");
    w.pass_ms(5 * 3600 * 1000);
    w.wall_ms = 0; // a clock jump, which the monotonic clock does not see
    w.fuzzy(1);
    let mut expected = 5 * 3600 * 1000;
    assert_eq!(w.state.time_ms(), expected);
    // Another writer, a minute later by the wall clock.
    (w.writer, w.mono_ms, w.wall_ms) = (2, 7, 60_000);
    w.fuzzy(1);
    expected += 60_000;
    assert_eq!(w.state.time_ms(), expected);
    // Another, whose clock is years ahead: at most two hours.
    (w.writer, w.wall_ms) = (3, i64::MAX);
    w.fuzzy(1);
    expected += 2 * 3600 * 1000;
    assert_eq!(w.state.time_ms(), expected);
    // And one that is behind: nothing.
    (w.writer, w.wall_ms) = (4, i64::MIN);
    w.fuzzy(1);
    assert_eq!(w.state.time_ms(), expected);
    // Of one writer, a monotonic clock that seems to run back adds nothing, and nothing twice.
    w.mono_ms = 3;
    w.fuzzy(1);
    w.mono_ms = 9;
    w.fuzzy(1);
    assert_eq!(w.state.time_ms(), expected + 2);
}

#[test]
fn t15_only_accepted_layers_and_heartbeats_advance_time() {
    let mut w = claimed();
    w.fuzzy(1);
    let point = w.point(&[1]);
    w.pass_ms(1000);
    let void_layers = entry(1, w.term(1), 77, 1);
    assert!(matches!(w.layers(LayerKind::Fuzzy, vec![void_layers]), Verdict::Void(_)));
    assert_eq!(w.claim(2), Verdict::Accepted);
    assert_eq!(w.put(Body::Pin(Pin { point, reason: String::new() })), Verdict::Accepted);
    let old = w.beat(&[(2, Term(1))], w.position());
    assert_eq!(void(w.put(old)), VoidReason::HeartbeatTerm(vol(2)));
    assert_eq!(w.state.time_ms(), 0);
    let beat = w.beat(&[(1, w.term(1))], w.position());
    assert_eq!(w.put(beat), Verdict::Accepted);
    assert_eq!(w.state.time_ms(), 1000, "and then all the time since the last that counted");
}

#[test]
fn a_loss_of_tracking_is_recorded_once_per_stretch_that_a_header_may_have_moved_in() {
    let mut w = claimed();
    let lost = |w: &World, n: u8, term: Term| (w.state.next_slot(), Body::TrackingLost(TrackingLost { volume: vol(n), term }));
    let (_, foreign) = lost(&w, 1, Term(7));
    assert_eq!(w.put(foreign), Verdict::Void(VoidReason::Term { volume: vol(1), current: w.term(1) }));
    let (_, unknown) = lost(&w, 9, Term(0));
    assert_eq!(w.put(unknown), Verdict::Void(VoidReason::UnknownVolume(vol(9))));
    let (first, body) = lost(&w, 1, w.term(1));
    assert_eq!(w.put(body.clone()), Verdict::Accepted);
    assert_eq!(w.put(body.clone()), Verdict::Void(VoidReason::Duplicate));
    w.fuzzy(2);
    assert_eq!(
        w.put(body.clone()),
        Verdict::Void(VoidReason::Duplicate),
        "a layer of another volume moves no header of this one"
    );
    assert_eq!(w.state.volume(vol(1)).and_then(|v| v.tracking_lost()), Some(first));
    w.fuzzy(1);
    let second = w.state.next_slot();
    assert_eq!(w.put(body), Verdict::Accepted);
    assert_eq!(w.state.volume(vol(1)).and_then(|v| v.tracking_lost()), Some(second));
    w.claim(1);
    assert_eq!(w.state.volume(vol(1)).and_then(|v| v.tracking_lost()), Some(second), "whoever claims has heeded it by then");
    let (third, body) = lost(&w, 1, w.term(1));
    assert_eq!(w.put(body), Verdict::Accepted);
    assert_eq!(w.state.volume(vol(1)).and_then(|v| v.tracking_lost()), Some(third));
}

#[test]
fn a_torn_slot_is_a_void_record_and_the_chain_goes_on_from_it() {
    let mut w = claimed();
    let torn = TornVoid { torn_digest: [3; 32], torn_bytes: 17 };
    assert_eq!(w.put(Body::TornVoid(torn)), Verdict::Void(VoidReason::Torn));
    w.fuzzy(1);
    assert_eq!(w.state.head(), Some(Slot(3)));
}

#[test]
fn a_record_of_another_chain_is_named_and_changes_nothing() {
    let mut w = claimed();
    let good = w.record(Body::Unpin(Unpin { pin: Slot(0) }));
    let digest = good.encode().expect("small").digest;
    let before = w.state.clone();
    for bad in [
        Record { group: group_id(&name("host"), &name("other")), ..good.clone() },
        Record { slot: Slot(7), ..good.clone() },
        Record { slot: Slot(1), ..good.clone() },
        Record { prev: RecordDigest([0; 32]), ..good.clone() },
    ] {
        assert!(w.state.follows(&bad).is_err());
        assert_eq!(w.state.apply(&bad, digest), Verdict::Void(VoidReason::BrokenChain));
        assert_eq!(w.state, before);
    }
    assert_eq!(w.state.follows(&good), Ok(()));
}

#[test]
fn layers_above_a_slot_answer_the_position_rule() {
    let mut w = claimed();
    let slots = [w.fuzzy(1), w.point(&[1, 2]), w.fuzzy(1)];
    let above = |slot| w.state.layers_above(vol(1), slot).map(|l| l.slot).collect::<Vec<_>>();
    assert_eq!(above(None), slots);
    assert_eq!(above(Some(slots[0])), slots[1..]);
    assert_eq!(above(Some(slots[2])), []);
    assert_eq!(w.state.layers_above(vol(9), None).count(), 0);
    let layer = w.state.layers_above(vol(1), None).next().expect("there");
    assert_eq!((layer.key.seq, layer.touched().regions()), (Seq(1), regions(&[1, 2])));
    assert_eq!([0, 1, 2, 3].map(|r| layer.touched().contains(RegionIndex(r))), [false, true, true, false]);
    assert!(w.state.volume(vol(1)).expect("claimed").ends_fuzzy());
    assert!(!w.state.volume(vol(2)).expect("claimed").ends_fuzzy());
    let position = w.position();
    assert!(w.state.holds(&position) && !w.state.holds(&LedgerPosition { slot: Slot(1), ..position }));
}

#[test]
fn a_layer_record_carries_growth() {
    let mut w = claimed();
    let grown = LayerEntry { volume_bytes: 700, regions: regions(&[10]), ..w.next(1, 1) };
    assert_eq!(w.layers(LayerKind::Point, vec![grown]), Verdict::Accepted);
    assert_eq!(w.state.volume(vol(1)).expect("claimed").meta().geometry.volume_bytes(), 700);
    assert_eq!(w.state.points().values().next().expect("a point").members[0].volume_bytes, 700);
}

#[test]
fn each_mutation_breaks_its_rule() {
    let mut w = claimed();
    w.fuzzy(1);
    let (old, again) = (w.term(1), LayerEntry { digest: [9; 32], ..entry(1, w.term(1), 5, 9) });
    assert_eq!(w.claim(2), Verdict::Accepted);
    let stale = entry(2, Term(1), 1, 1);
    assert_ne!(stale.key.term, w.term(2));
    assert_eq!(old, w.term(1));
    let mutated = |mistakes: &[&str], member: &LayerEntry| {
        let mut w = w.clone();
        mutation::set(mistakes);
        let verdict = w.layers(LayerKind::Fuzzy, vec![member.clone()]);
        mutation::set(&[]);
        (verdict == Verdict::Accepted, w.state.layer(&member.key).is_some())
    };
    assert_eq!(mutated(&[], &again), (false, false));
    assert_eq!(mutated(&["a layer retried at a later slot"], &again), (true, true));
    assert_eq!(mutated(&[], &stale), (false, false));
    assert_eq!(mutated(&["staged data carried across a term"], &stale), (true, true));
    assert_eq!(mutated(&["accept a void record"], &stale), (false, true), "void, and yet in effect");
}
