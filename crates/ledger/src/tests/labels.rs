//! What is said of points, and what is kept for it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

fn labelled(w: &mut World, volumes: &[u8], label: Label) -> Slot {
    let slot = w.state.next_slot();
    let members = volumes.iter().map(|n| w.next(*n, slot.0 as u8)).collect();
    let layers = Layers { kind: LayerKind::Point, epoch: epoch(), label: Some(Box::new(label)), members };
    assert_eq!(w.put(Body::Layers(layers)), Verdict::Accepted);
    slot
}

fn said(consistency: Consistency, title: &str) -> Label {
    Label::new(consistency, title, "srv")
}

#[test]
fn a_label_stays_with_its_point_and_finds_it() {
    let mut w = claimed();
    w.point(&[1, 2]);
    let upgrade = labelled(&mut w, &[1, 2], said(Consistency::Application, "Before the upgrade"));
    let failed = labelled(&mut w, &[1], said(Consistency::Crash, ""));
    let found = |filter: PointFilter| w.state.points().values().filter(|p| filter.fits(p)).map(|p| p.slot).collect::<Vec<_>>();
    assert_eq!(found(PointFilter { consistent: true, ..PointFilter::default() }), [upgrade]);
    let text = |text: &str| found(PointFilter { label: Some(text.to_owned()), ..PointFilter::default() });
    assert_eq!([text("UPGRADE"), text("Srv"), text("nothing")], [vec![upgrade], vec![upgrade, failed], vec![]]);
    let cached = State::from_cache(&w.state.to_cache()).expect("our own");
    assert_eq!(cached, w.state);
}

#[test]
fn a_label_that_cannot_be_is_void() {
    let mut w = claimed();
    let long = "x".repeat(Label::TEXT_BYTES_MAX + 1);
    let too_long = Label { consistency: Consistency::Crash, title: long.clone(), hooks: String::new() };
    let steering = Label { consistency: Consistency::Crash, title: String::new(), hooks: "\u{1b}[2J".to_owned() };
    for (kind, label) in [(LayerKind::Point, too_long), (LayerKind::Point, steering), (LayerKind::Fuzzy, label())] {
        let members = vec![w.next(1, 1)];
        let verdict = w.put(Body::Layers(Layers { kind, epoch: epoch(), label: Some(Box::new(label)), members }));
        assert_eq!(void(verdict), VoidReason::Malformed(Malformed::Label));
    }
    let made = Label::new(Consistency::Crash, &"ä".repeat(200), "two\nli\u{202e}nes");
    assert!(made.fits() && made.title.len() == Label::TEXT_BYTES_MAX && made.hooks == "two li nes", "{made:?}");
}

/// One quiesced point a quarter of an hour, among crash-consistent ones every minute.
#[test]
fn what_is_consistent_has_its_own_places_in_the_policy() {
    let mut w = claimed();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let policy = Policy { grid: Grid::of([(minutes(60), minutes(24 * 60))]), ..Policy::without_grid(2, 0) };
    let mut quiesced = Vec::new();
    for minute in 0..300 {
        if minute % 15 == 7 {
            quiesced.push(labelled(&mut w, &[1], said(Consistency::Application, "")));
        } else {
            w.point(&[1]);
        }
        w.pass_ms(60_000);
    }
    let by_the_policy = w.state.prunable(&policy);
    assert!(by_the_policy.len() > quiesced.len() && quiesced[..18].iter().all(|slot| by_the_policy.contains(slot)));
    let gone = w.state.prunable_beside_kin(&policy, &BTreeSet::new());
    let kept: Vec<Slot> = quiesced.iter().copied().filter(|slot| !gone.contains(slot)).collect();
    let first_of_each_hour: Vec<Slot> = quiesced.iter().copied().step_by(4).collect();
    let expected: BTreeSet<Slot> = first_of_each_hour.into_iter().chain(quiesced[18..].iter().copied()).collect();
    assert_eq!(kept, expected.into_iter().collect::<Vec<_>>(), "the first of each hour, and the newest two");
    assert!(gone.iter().all(|slot| by_the_policy.contains(slot)), "nothing goes that the policy keeps");

    let stays = |slot: Slot| w.state.kept_until_ms(&policy, vol(1), slot) > w.state.age_clock_ms();
    assert!(stays(quiesced[0]) && !stays(quiesced[1]), "who merges what is settled knows of it");

    // Given up in between, the answer is the same in the end.
    let looked = w.state.head().expect("not empty");
    let body = Body::Prune(Prune { looked, policy: PrunePolicy::Aged(policy.clone()), points: gone, parts: Vec::new() });
    assert_eq!(w.put(body), Verdict::Accepted);
    assert!(w.state.prunable_beside_kin(&policy, &BTreeSet::new()).is_empty());
    // Out of the window they go, but for the newest two.
    for _ in 0..30 {
        w.pass_ms(3_600_000);
        w.point(&[1]);
    }
    let gone = w.state.prunable_beside_kin(&policy, &BTreeSet::new());
    assert_eq!(quiesced.iter().filter(|slot| w.state.points().contains_key(slot) && !gone.contains(slot)).count(), 2);
}

/// Two groups of a cohort, whose ledgers' times differ, under one policy: they keep the points of the same cuts, at any moment.
#[test]
fn groups_of_a_cohort_keep_the_same_cuts() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let policy = Policy { grid: Grid::of([(minutes(60), minutes(3 * 60))]), ..Policy::without_grid(2, 0) };
    let kept = |late_ms: u64| {
        let mut w = claimed();
        w.point(&[1]); // a ledger's time begins with its first point
        w.pass_ms(late_ms);
        let (mut cuts, mut at_each) = (Vec::new(), Vec::new());
        for minute in 0..480u16 {
            if minute % 15 == 7 {
                let wall_ms = 1_700_000_000_000 + 60_000 * i64::from(minute);
                let cut =
                    CohortCut { cut: minute.to_be_bytes().repeat(8).try_into().expect("16 bytes"), wall_ms, ..cohort_cut(0) };
                cuts.push((labelled(&mut w, &[1], said(Consistency::Cohort(cut), "")), minute));
            } else {
                w.point(&[1]);
            }
            w.pass_ms(60_000);
            let gone = w.state.prunable_beside_kin(&policy, &BTreeSet::new());
            cuts.retain(|(slot, _)| !gone.contains(slot));
            at_each.push(cuts.iter().map(|(_, minute)| *minute).collect::<Vec<_>>());
        }
        at_each
    };
    let of_one = kept(0);
    let most = of_one.iter().map(Vec::len).max();
    assert!(most.is_some_and(|most| (4..8).contains(&most)), "the first of each hour, and the newest two: {most:?}");
    for late in [1, 7, 29, 46] {
        let of_other = kept(late * 60_000);
        let differs = (0..of_one.len()).find(|&minute| of_one[minute] != of_other[minute]);
        assert_eq!(
            differs.map(|minute| (minute, &of_one[minute], &of_other[minute])),
            None,
            "the other ledger is {late} min behind"
        );
    }
}

/// Points of a cohort that is no more are the newest of it for ever, until a person has it forgotten; another's stay.
#[test]
fn points_of_a_cohort_that_was_forgotten_are_as_all_others() {
    let mut w = claimed();
    let policy = Policy::without_grid(2, 0);
    let of = |name: &str, n: u8| Consistency::Cohort(CohortCut { cohort: CohortCut::cohort_id(name), ..cohort_cut(n) });
    let gone = labelled(&mut w, &[1], said(of("erp", 1), ""));
    let other = labelled(&mut w, &[1], said(of("crm", 2), ""));
    let newer: Vec<Slot> = (0..4).map(|_| w.point(&[1])).collect();
    let prunable = |forgotten: &[&str]| {
        let forgotten = forgotten.iter().map(|name| CohortCut::cohort_id(name)).collect();
        w.state.prunable_beside_kin(&policy, &forgotten)
    };
    assert_eq!(prunable(&[]), newer[..2], "whatever is published after them");
    assert_eq!(prunable(&["erp"]), [gone, newer[0], newer[1]]);
    assert_eq!(prunable(&["erp", "crm"]), [gone, other, newer[0], newer[1]]);
}

#[test]
fn a_cut_of_a_cohort_says_so_by_the_kind_of_its_record() {
    let mut w = claimed();
    let cut = cohort_cut(7);
    let slot = labelled(&mut w, &[1], said(Consistency::Cohort(cut), ""));
    assert_eq!(w.state.points()[&slot].consistency().cohort_cut(), Some(cut));
    let cached = State::from_cache(&w.state.to_cache()).expect("our own");
    assert_eq!(cached, w.state);
    let text = |filter: PointFilter| w.state.points().values().filter(|p| filter.fits(p)).count();
    assert_eq!(text(PointFilter { consistent: true, ..PointFilter::default() }), 0, "no application was quiesced for it");
    let by_label = |label: &str| text(PointFilter { label: Some(label.to_owned()), ..PointFilter::default() });
    assert_eq!(by_label(&"07".repeat(16)), 1, "its cut names it");
    assert_eq!(by_label(&"08".repeat(16)), 0);
}
