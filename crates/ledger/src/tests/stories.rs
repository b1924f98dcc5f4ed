//! How a ledger would lose data if its replay took what it must void. Each story is told honestly and ends well; told with the
//! mistake that it is about, it must end in a broken law (`mutation::tell`).

use farside_region::mutation::tell;

use super::*;

/// Two instances of one volume look at slot 1; the first claims and publishes a layer; the second's claim, judged without what
/// it had looked at, comes in on top and never compares what that layer changed.
#[test]
fn l6_a_claim_names_the_slot_up_to_which_it_looked() {
    tell(&[("a claim without the slot up to which it looked", "L6: claimed over a layer it never saw")], || {
        let mut w = claimed();
        let looked = w.state.head();
        w.fuzzy(1);
        let verdict = w.put(Body::Claim(Claim { volume: meta(1), looked, source: name("host") }));
        assert!(matches!(verdict, Verdict::Void(_)), "L6: claimed over a layer it never saw");
    });
}

/// The other site was promoted; the old host comes back and knows nothing of it.
#[test]
fn l6_a_lower_generation_is_fenced() {
    tell(&[("L6 a lower generation claims", "L6: two sites write")], || {
        let mut w = claimed();
        let promoted = VolumeMeta { generation: Generation(2), ..meta(1) };
        let looked = w.state.head();
        assert_eq!(w.put(Body::Claim(Claim { volume: promoted, looked, source: name("host") })), Verdict::Accepted);
        assert!(matches!(w.claim(1), Verdict::Void(_)), "L6: two sites write");
    });
}

/// A host is set up again with encryption and under the same names: the old parts are clear, the new ones are not, and whoever has the key
/// reads neither as a whole; or the other way round, and what should never have left the host in clear does.
#[test]
fn l4_a_volume_keeps_its_digest_key_or_its_seal() {
    tell(&[("a claim gives a volume another key or seal", "L4: parts of two keys under one volume")], || {
        let mut w = claimed();
        w.fuzzy(1);
        let looked = w.state.head();
        let mut claim = |n, key| {
            let volume = VolumeMeta { digest_key: key, ..meta(n) };
            w.put(Body::Claim(Claim { volume, looked, source: name("host") }))
        };
        let other = DigestKey::Sealed(Seal { commitment: [8; 32], ..seal() });
        assert_eq!(claim(7, DigestKey::Sealed(seal())), Verdict::Accepted);
        assert_eq!(claim(7, DigestKey::Sealed(seal())), Verdict::Accepted);
        for (n, key) in [(1, DigestKey::Sealed(seal())), (7, [7; 32].into()), (7, other)] {
            assert_eq!(claim(n, key), Verdict::Void(VoidReason::ClaimDigestKey), "L4: parts of two keys under one volume");
        }
    });
}

/// A stalled writer wakes after its successor. What it brings under a name that was published already is another content, and
/// "already there" would acknowledge it as published.
#[test]
fn t11_the_same_name_with_another_content_is_no_duplicate() {
    tell(&[("T11 a duplicate is not compared", "L4: acknowledged, and nowhere")], || {
        let mut w = claimed();
        let first = w.next(1, 1);
        assert_eq!(w.layers(LayerKind::Fuzzy, vec![first.clone()]), Verdict::Accepted);
        let other = LayerEntry { digest: [9; 32], ..first };
        assert!(!w.layers(LayerKind::Fuzzy, vec![other]).is_done(), "L4: acknowledged, and nowhere");
    });
}

/// Chains of names: a layer again at a later slot, one of a claim that is over, and a record that is void in effect.
#[test]
fn l6_nothing_outside_the_chain_takes_effect() {
    let mistakes = [
        ("a layer retried at a later slot", "L6: outside the chain"),
        ("staged data carried across a term", "L6: outside the chain"),
        ("accept a void record", "L6: outside the chain"),
    ];
    tell(&mistakes, || {
        let mut w = claimed();
        w.fuzzy(1);
        w.fuzzy(1);
        let old = w.term(2);
        assert_eq!(w.claim(2), Verdict::Accepted);
        let (gap, stale) = (entry(1, w.term(1), 9, 9), entry(2, old, 1, 9));
        for member in [gap, stale] {
            w.layers(LayerKind::Fuzzy, vec![member.clone()]);
            assert!(w.state.layer(&member.key).is_none(), "L6: outside the chain");
        }
    });
}

/// A source that was replaced says on an old connection that nothing has changed; and one that is current says so of a time
/// before its newest layer. Believed, lag is green while nobody looks after the disk.
#[test]
fn t15_a_heartbeat_speaks_for_the_current_term_and_its_newest_layer() {
    let mistakes = [
        ("T15 heartbeats of an old term count", "L10: a ghost says that all is well"),
        ("T15 a heartbeat below a layer counts", "L10: nothing changed, it says, before what did"),
    ];
    tell(&mistakes, || {
        let mut w = claimed();
        let old = w.term(1);
        assert_eq!(w.claim(1), Verdict::Accepted);
        let beat = w.beat(&[(1, old)], w.position());
        assert!(matches!(w.put(beat), Verdict::Void(_)), "L10: a ghost says that all is well");
        let before = w.position();
        w.fuzzy(1);
        let beat = w.beat(&[(1, w.term(1))], before);
        assert!(matches!(w.put(beat), Verdict::Void(_)), "L10: nothing changed, it says, before what did");
    });
}

/// A prune was planned, and before its record comes in somebody pins the point that it gives up.
#[test]
fn t16_a_prune_is_judged_at_its_own_slot() {
    tell(&[("T16 prune unchecked at its slot", "L5: a pinned point is given up")], || {
        let mut w = claimed();
        let points: Vec<Slot> = (0..4).map(|_| w.point(&[1])).collect();
        let policy = Policy::without_grid(2, 0);
        let plan =
            Prune { looked: w.position().slot, policy: PrunePolicy::Aged(policy), points: points[..1].to_vec(), parts: vec![] };
        assert_eq!(w.put(Body::Pin(Pin { point: points[0], reason: "audit".to_owned() })), Verdict::Accepted);
        w.put(Body::Prune(plan));
        assert!(w.state.points().contains_key(&points[0]), "L5: a pinned point is given up");
    });
}

/// Volume 2 is paused, and volume 1 makes points all day: those count for volume 1 only. And a disk with a bad sector makes
/// degraded points all day: the last ones without a hole stay.
#[test]
fn l5_newer_points_count_only_if_they_hold_the_member_and_are_whole() {
    let mistakes = [
        ("L5 K counts per group", "L5: the last point of volume 2"),
        ("L5 degraded points count for K", "L5: the last whole point"),
    ];
    tell(&mistakes, || {
        let policy = Policy::without_grid(2, 0);
        let mut w = claimed();
        let both = w.point(&[1, 2]);
        (0..3).for_each(|_| _ = w.point(&[1]));
        assert!(!w.state.prunable(&policy).contains(&both), "L5: the last point of volume 2 may go");
        let mut w = claimed();
        let whole = w.point(&[1]);
        for content in 0..3 {
            let bad = LayerEntry { unreadable_regions: regions(&[1]), ..w.next(1, 50 + content) };
            assert_eq!(w.layers(LayerKind::Point, vec![bad]), Verdict::Accepted);
        }
        assert!(!w.state.prunable(&policy).contains(&whole), "L5: the last whole point may go");
    });
}
