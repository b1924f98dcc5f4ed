//! Random writers, some of them stale or wrong, and what must hold whatever they do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farside_region::MergeId;
use proptest::prelude::*;

use super::*;
use crate::codec::from_postcard;

/// What a random writer tries. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Try {
    Claim {
        volume: u8,
        behind: u64,
    },
    Layers {
        point: bool,
        members: Vec<(u8, i8, u8, bool)>,
    },
    Heartbeat {
        volume: u8,
        behind: u64,
    },
    Pin {
        nth: usize,
    },
    Unpin {
        nth: usize,
    },
    Verified {
        nth: usize,
        with_source: bool,
    },
    Prune {
        keep: u32,
        span_ms: u64,
        grid: Vec<(u64, u64)>,
        aged: bool,
        behind: u64,
        extra: usize,
        parts: usize,
    },
    /// Parts from the nth that is left on, so many, up to the nth point; mostly those of its interval.
    Map {
        volume: u8,
        point: usize,
        first: usize,
        count: usize,
        into: usize,
        anywhere: bool,
        id: u64,
    },
    Decree {
        volume: u8,
        ids: Vec<u64>,
    },
    Torn,
    Restart,
    Wait {
        ms: u64,
    },
}

/// Seconds of a few rules, each coarser than the one before it by so many.
fn grids() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((1u64..8, 1u64..30), 0..3)
}

fn grid_of(steps: &[(u64, u64)]) -> Grid {
    let mut every = 0;
    Grid::of(steps.iter().map(|(coarser, keep)| {
        every += coarser;
        (Duration::from_secs(every), Duration::from_secs(*keep))
    }))
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let behind = prop_oneof![4 => Just(0u64), 1 => 1u64..6];
    let member = (0u8..3, prop_oneof![8 => Just(0i8), 1 => -3i8..3], 0u8..3, prop::bool::weighted(0.1));
    prop::collection::vec(
        prop_oneof![
            2 => (0u8..3, behind.clone()).prop_map(|(volume, behind)| Try::Claim { volume, behind }),
            12 => (any::<bool>(), prop::collection::vec(member, 0..4)).prop_map(|(point, members)| Try::Layers { point, members }),
            2 => (0u8..3, behind.clone()).prop_map(|(volume, behind)| Try::Heartbeat { volume, behind }),
            1 => (0usize..20).prop_map(|nth| Try::Pin { nth }),
            1 => (0usize..20).prop_map(|nth| Try::Unpin { nth }),
            1 => (0usize..20, any::<bool>()).prop_map(|(nth, with_source)| Try::Verified { nth, with_source }),
            3 => (0u32..4, prop_oneof![Just(0u64), 0u64..9000], grids(), any::<bool>(), behind, 0usize..3, 0usize..4)
                .prop_map(|(keep, span_ms, grid, aged, behind, extra, parts)| Try::Prune { keep, span_ms, grid, aged, behind, extra, parts }),
            5 => (0u8..3, 0usize..4, 0usize..3, 1usize..4, 0usize..3, prop::bool::weighted(0.2), 0u64..40)
                .prop_map(|(volume, point, first, count, into, anywhere, id)| Try::Map { volume, point, first, count, into, anywhere, id }),
            1 => (0u8..3, prop::collection::vec(0u64..40, 0..4)).prop_map(|(volume, ids)| Try::Decree { volume, ids }),
            1 => Just(Try::Torn),
            1 => Just(Try::Restart),
            3 => (0u64..5000).prop_map(|ms| Try::Wait { ms }),
        ],
        0..80,
    )
}

fn body(w: &World, attempt: &Try) -> Option<Body> {
    let state = &w.state;
    let back = |behind: u64| state.head().and_then(|h| h.0.checked_sub(behind)).map(Slot);
    let known = |n: u8| state.volume(vol(n));
    Some(match attempt {
        Try::Claim { volume, behind } => {
            Body::Claim(Claim { volume: meta(*volume), looked: back(*behind), source: name("host") })
        }
        Try::Layers { point, members } => {
            let mut seen = BTreeSet::new();
            let members = members.iter().filter(|m| seen.insert(m.0)).map(|(n, shift, content, old_term)| {
                let (term, seq) = known(*n).map_or((Term(0), 0), |v| (v.term(), v.last_seq().0));
                let term = if *old_term { Term(term.0.saturating_sub(1)) } else { term };
                let mut e = entry(*n, term, (seq + 1).saturating_add_signed(i64::from(*shift)), *content);
                e.regions = regions(&[u64::from(*content), 4]);
                e.unreadable_regions = if *content == 2 { regions(&[2]) } else { RegionSet::new() };
                e
            });
            let kind = if *point { LayerKind::Point } else { LayerKind::Fuzzy };
            Body::Layers(Layers { kind, epoch: epoch(), label: None, members: members.collect() })
        }
        Try::Heartbeat { volume, behind } => {
            let slot = back(*behind)?;
            let position = LedgerPosition { slot, digest: state.digest_at(slot)? };
            w.beat(&[(*volume, known(*volume).map_or(Term(0), |v| v.term()))], position)
        }
        Try::Pin { nth } => {
            let point = state.points().keys().nth(*nth).copied().unwrap_or(Slot(1));
            Body::Pin(Pin { point, reason: "why".to_owned() })
        }
        Try::Unpin { nth } => {
            let pin = state.points().values().flat_map(|p| p.pins.keys()).nth(*nth).copied().unwrap_or(Slot(0));
            Body::Unpin(Unpin { pin })
        }
        Try::Verified { nth, with_source } => {
            let point = state.points().keys().nth(*nth).copied().unwrap_or(Slot(1));
            let how = if *with_source { VerifiedHow::WithSource } else { VerifiedHow::ReadBack };
            Body::Verified(Verified { point, how })
        }
        Try::Prune { keep, span_ms, grid, aged, behind, extra, parts } => {
            let policy = Policy { grid: grid_of(grid), ..Policy::without_grid(*keep, *span_ms) };
            let mut points = state.prunable(&policy);
            points.extend(state.points().keys().rev().take(*extra / 2).copied());
            let layers = state.volumes().flat_map(|(_, v)| v.layers_above(None)).take(*parts);
            let parts = layers.map(|l| PrunedParts { layer: l.key, parts: vec![0] }).collect();
            let by_time = PrunePolicy::LedgerTime { keep: *keep, span_ms: *span_ms };
            let policy = if *aged { PrunePolicy::Aged(policy) } else { by_time };
            Body::Prune(Prune { looked: back(*behind)?, policy, points, parts })
        }
        Try::Map { volume, point, first, count, into, anywhere, id } => {
            let its = known(*volume)?;
            let points = state.points_of(vol(*volume));
            let point = points.get(*point).or(points.last()).copied().unwrap_or(Slot(1));
            let interval = state.interval(vol(*volume), point).flatten();
            let left = left_of(its);
            let born = left.iter().filter(|(key, _)| {
                let born = state.published(key).expect("it is there").born;
                *anywhere || (born <= point && interval.is_none_or(|after| born > after))
            });
            let mut parts: BTreeMap<LayerKey, Vec<u32>> = BTreeMap::new();
            born.skip(*first).take(*count).for_each(|(key, part)| parts.entry(*key).or_default().push(*part));
            Body::Map(Map {
                volume: vol(*volume),
                id: MergeId(*id),
                point,
                parts: parts.into_iter().map(|(layer, parts)| PrunedParts { layer, parts }).collect(),
                new: vec![PartEntry { bytes: 50, footer_digest: [*id as u8; 32] }; *into],
                regions: regions(&[1]),
            })
        }
        Try::Decree { volume, ids } => {
            Body::Decree(Decree { merges: ids.iter().map(|id| (vol(*volume), MergeId(*id))).collect() })
        }
        Try::Torn => Body::TornVoid(TornVoid { torn_digest: [1; 32], torn_bytes: 1 }),
        Try::Restart | Try::Wait { .. } => return None,
    })
}

/// The parts of a volume that were not given up, in the order of publication.
fn left_of(volume: &VolumeState) -> Vec<(LayerKey, u32)> {
    let layers = volume.layers_above(None).map(|layer| (layer.slot, layer.key, layer.part_count));
    let merge = |(id, merge): (&MergeId, &MergeFact)| (merge.born, LayerKey::of_merge(volume.meta().id, *id), merge.part_count);
    let mut all: Vec<(Slot, LayerKey, u32)> = layers.chain(volume.merges().iter().map(merge)).collect();
    all.sort_by_key(|(born, ..)| *born);
    let parts = all.into_iter().flat_map(|(_, key, count)| (0..count).map(move |part| (key, part)));
    let is_left = |(key, part): &(LayerKey, u32)| match key.merge() {
        Some(id) => !volume.merges()[&id].pruned.contains(part),
        None => !volume.layer(key.term, key.seq).expect("there").pruned().contains(part),
    };
    parts.filter(is_left).collect()
}

/// What a merge must be, by the letter: of one interval, all of it that lies between, none of it gone, none of it the newest.
fn may_merge(before: &State, map: &Map) -> bool {
    let Some(volume) = before.volume(map.volume) else { return false };
    let points: Vec<Slot> =
        before.points().values().filter(|p| p.members.iter().any(|m| m.key.volume == map.volume)).map(|p| p.slot).collect();
    let left = left_of(volume);
    let named: Vec<(LayerKey, u32)> = map.parts.iter().flat_map(|p| p.parts.iter().map(|part| (p.layer, *part))).collect();
    let born = |(key, _): &(LayerKey, u32)| before.published(key).expect("there").born;
    if named.is_empty() || !points.contains(&map.point) || !named.iter().all(|part| left.contains(part)) {
        return false;
    }
    // Every retained point needs all of them or none: it was there before the first, or not before the last.
    let (first, last) = (named.iter().map(born).min().expect("some"), named.iter().map(born).max().expect("some"));
    let apart = points.iter().any(|point| first <= *point && *point < map.point);
    let skipped = left.iter().any(|part| born(part) > first && born(part) < last && !named.contains(part));
    let newest = volume.last_layer().is_some_and(|layer| named.iter().any(|(key, _)| *key == layer.key));
    let known = volume.merges().contains_key(&map.id) || volume.decreed().contains(&map.id);
    // Who goes by a pin may read any of what was born by then.
    let pinned = before.points().values().any(|p| first <= p.slot && !p.pins.is_empty() && points.contains(&p.slot));
    last <= map.point && !apart && !skipped && !newest && !known && !pinned && map.new.len() <= named.len()
}

/// Retention as its sentence says it, without any help: every member has K newer good points that hold it; of a degraded
/// point also K newer degraded ones beyond the span. And it is not the first sound point, nor the first where none is sound, of
/// a cell of a rule's window.
fn by_the_letter(state: &State, policy: &Policy) -> Vec<Slot> {
    let aged = |p: &Point| state.age_clock_ms() - p.age_clock_ms >= policy.span_ms;
    let is_member = |p: &Point, volume| p.members.iter().any(|m| m.key.volume == volume);
    let stands = |p: &Point, volume, rule: &Rule| {
        let cell = |p: &Point| p.time_ms / rule.every_ms;
        let all: Vec<&Point> = state.points().values().filter(|o| cell(o) == cell(p) && is_member(o, volume)).collect();
        let first = all.iter().find(|o| !o.degraded).or(all.first());
        let end_ms = p.age_clock_ms + (cell(p) + 1) * rule.every_ms - p.time_ms;
        first.is_some_and(|first| first.slot == p.slot) && state.age_clock_ms() < end_ms + rule.keep_ms
    };
    let goes = |p: &&Point| {
        let enough = |volume: farside_region::VolumeId| {
            let newer = || state.points().values().filter(|n| n.slot > p.slot && is_member(n, volume));
            newer().filter(|n| !n.degraded).count() >= policy.keep as usize
                || (p.degraded && newer().filter(|n| n.degraded && aged(n)).count() >= policy.keep as usize)
        };
        let needed = |volume| policy.grid.rules().iter().any(|rule| stands(p, volume, rule));
        aged(p) && p.pins.is_empty() && p.members.iter().all(|m| enough(m.key.volume) && !needed(m.key.volume))
    };
    state.points().values().filter(goes).map(|p| p.slot).collect()
}

/// L6: per volume one chain, whose terms are slots of accepted claims and whose numbers count from 1 without a gap.
fn check_chains(w: &World) {
    let accepted = |slot: Slot| &w.log[slot.0 as usize];
    for (id, volume) in w.state.volumes() {
        let mut last: Option<(Term, Seq)> = None;
        for layer in volume.layers_above(None) {
            let (term, seq) = (layer.key.term, layer.key.seq);
            let expected = match last {
                Some((t, s)) if t == term => s.next(),
                Some((t, _)) => {
                    assert!(t < term, "terms only grow");
                    Seq(1)
                }
                None => Seq(1),
            };
            assert_eq!(seq, expected);
            let (claim, _, verdict) = accepted(Slot(term.0));
            assert!(matches!(&claim.body, Body::Claim(c) if c.volume.id == id) && *verdict == Verdict::Accepted);
            let (record, _, verdict) = accepted(layer.slot);
            assert!(matches!(record.body, Body::Layers(_)) && *verdict == Verdict::Accepted);
            assert_eq!(w.state.layer(&layer.key).map(|l| l.slot), Some(layer.slot));
            last = Some((term, seq));
        }
        if let Some((term, seq)) = last.filter(|(t, _)| *t == volume.term()) {
            assert_eq!((term, seq), (volume.term(), volume.last_seq()));
        } else {
            assert_eq!(volume.last_seq(), Seq(0));
        }
    }
}

/// L5: what a prune may never take. `kept` is the largest K that any accepted prune recorded... so the smallest counts.
fn check_points(
    w: &World,
    smallest_keep: Option<u32>,
    ever: &BTreeMap<Slot, Point>,
    pinned: &BTreeMap<Slot, BTreeSet<Slot>>,
    merged: &BTreeSet<(LayerKey, u32)>,
) {
    for (slot, point) in w.state.points() {
        for member in &point.members {
            let layer = w.state.layer(&member.key).expect("a point's layers are known");
            assert_eq!((layer.slot, layer.kind, layer.digest), (*slot, LayerKind::Point, member.digest));
            let mut pruned = layer.pruned().iter();
            assert!(pruned.all(|part| merged.contains(&(member.key, *part))), "a retained point lost a part");
        }
    }
    for (point, pins) in pinned {
        assert!(pins.is_empty() || w.state.points().contains_key(point), "a pinned point went");
    }
    let Some(keep) = smallest_keep else {
        assert_eq!(w.state.points().len(), ever.len(), "points went without a prune");
        return;
    };
    for n in 0..3 {
        let good = ever.values().rev().filter(|p| !p.degraded && p.members.iter().any(|m| m.key.volume == vol(n)));
        for point in good.take(keep.max(1) as usize) {
            assert!(w.state.points().contains_key(&point.slot), "policy must keep point {}", point.slot);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn whatever_writers_do_the_ledger_stays_sound(attempts in tries()) {
        let mut w = World::new();
        let (mut ever, mut pinned, mut smallest_keep) = (BTreeMap::new(), BTreeMap::<Slot, BTreeSet<Slot>>::new(), None::<u32>);
        let mut merged = BTreeSet::new();
        for attempt in &attempts {
            match attempt {
                Try::Restart => { w.writer = w.writer.wrapping_add(1); w.mono_ms = 0; }
                Try::Wait { ms } => w.pass_ms(*ms),
                _ => {}
            }
            let Some(body) = body(&w, attempt) else { continue };
            let before = w.state.clone();
            let record = w.record(body.clone());
            prop_assert_eq!(before.judge(&record), w.put(body.clone()));
            let (slot, verdict) = (record.slot, w.log.last().expect("just put").2);
            if let Body::Map(map) = &body {
                prop_assert_eq!(verdict == Verdict::Accepted, may_merge(&before, map), "{:?}: {:?}", verdict, map);
            }

            if verdict == Verdict::Accepted {
                prop_assert!(w.state.time_ms() >= before.time_ms() && w.state.age_clock_ms() >= before.age_clock_ms());
                let (time_ms, age_ms) = (w.state.time_ms() - before.time_ms(), w.state.age_clock_ms() - before.age_clock_ms());
                prop_assert!(age_ms <= time_ms, "the age clock runs faster than ledger time");
                if !matches!(body, Body::Layers(_) | Body::Heartbeat(_)) { prop_assert_eq!(w.state.time_ms(), before.time_ms()); }
                match &body {
                    Body::Pin(p) => { pinned.entry(p.point).or_default().insert(slot); }
                    Body::Map(m) => {
                        merged.extend(m.parts.iter().flat_map(|p| p.parts.iter().map(|part| (p.layer, *part))));
                        prop_assert_eq!(w.state.points(), before.points());
                        prop_assert_eq!(w.state.published(&m.key()).expect("accepted").part_count as usize, m.new.len());
                    }
                    Body::Unpin(u) => pinned.values_mut().for_each(|p| { p.remove(&u.pin); }),
                    // It changes what is known of points, and not which there are.
                    Body::Verified(v) => {
                        let proof = Proof { slot, wall_ms: record.stamp.wall_ms };
                        prop_assert_eq!(w.state.points()[&v.point].proofs.by(v.how), Some(&proof));
                        let newer = before.last_proofs().by(v.how).filter(|last| last.point > v.point);
                        let newest = newer.map_or((v.point, proof), |last| (last.point, last.proof));
                        prop_assert_eq!(w.state.last_proofs().by(v.how).map(|p| (p.point, p.proof)), Some(newest));
                        prop_assert!(w.state.points().keys().eq(before.points().keys()));
                        prop_assert_eq!((w.state.time_ms(), w.state.age_clock_ms()), (before.time_ms(), before.age_clock_ms()));
                    }
                    Body::Prune(p) => {
                        let (PrunePolicy::LedgerTime { keep, .. } | PrunePolicy::Aged(Policy { keep, .. })) = &p.policy;
                        smallest_keep = Some(smallest_keep.map_or(*keep, |k| k.min(*keep)));
                    }
                    _ => {}
                }
            } else {
                // A void record changes nothing but the head.
                let mut replayed = before.clone();
                replayed.apply(&Record { body: Body::TornVoid(TornVoid { torn_digest: [0; 32], torn_bytes: 0 }), ..record }, w.log.last().expect("just put").1);
                prop_assert_eq!(&replayed, &w.state);
            }
            if let Some(point) = w.state.points().get(&slot) { ever.insert(slot, point.clone()); }
            check_chains(&w);
            for (keep, span_ms) in [(1, 0), (2, 0), (3, 0), (1, 2000), (2, 500)] {
                for grid in [&[][..], &[(1, 3)], &[(2, 10), (3, 20)]] {
                    let policy = Policy { grid: grid_of(grid), ..Policy::without_grid(keep, span_ms) };
                    prop_assert_eq!(w.state.prunable(&policy), by_the_letter(&w.state, &policy));
                }
            }
            check_points(&w, smallest_keep, &ever, &pinned, &merged);
        }

        // Everybody who replays reaches the same state, from any cached one on.
        let mut replay = State::new(group());
        let cut = w.log.len() / 2;
        for (i, (record, digest, verdict)) in w.log.iter().enumerate() {
            if i == cut { replay = State::from_cache(&replay.to_cache()).expect("good"); }
            prop_assert_eq!(replay.apply(record, *digest), *verdict);
        }
        prop_assert_eq!(replay.to_cache(), w.state.to_cache());
    }

    /// Replay from any checkpoint is replay from slot 0: the same state and the same verdict at every slot.
    #[test]
    fn replay_from_a_checkpoint_is_replay_from_the_first_slot(attempts in tries(), slots in 1u64..9) {
        let mut w = World::new();
        for attempt in &attempts {
            match attempt {
                Try::Restart => { w.writer = w.writer.wrapping_add(1); w.mono_ms = 0; }
                Try::Wait { ms } => w.pass_ms(*ms),
                _ => {}
            }
            if let Some(body) = body(&w, attempt) { w.put(body); }
        }
        let mut whole = State::new(group());
        // One that begins anew at every checkpoint, and one from each checkpoint on to the end.
        let (mut anew, mut from_each) = (State::new(group()), Vec::<State>::new());
        let mut previous = [0; 32];
        for (record, digest, verdict) in &w.log {
            prop_assert_eq!(whole.apply(record, *digest), *verdict);
            prop_assert_eq!(anew.apply(record, *digest), *verdict);
            for state in &mut from_each {
                prop_assert_eq!(state.apply(record, *digest), *verdict);
                prop_assert_eq!(&*state, &whole);
            }
            prop_assert_eq!(&anew, &whole);
            let Some(place) = CheckpointPlace::completed_by(&whole, slots) else { continue };
            prop_assert_eq!(place, CheckpointPlace::covering(record.slot, slots));
            let encoded = EncodedCheckpoint::new(place, previous, &anew, &CheckpointParts::default());
            prop_assert_eq!(&encoded, &EncodedCheckpoint::new(place, previous, &whole, &CheckpointParts::default()));
            let (root, root_digest) = CheckpointRoot::decode(&encoded.root, group(), place).expect("our own");
            prop_assert_eq!((root.last, root.previous), (*digest, previous));
            let (by_serde, _): (State, CheckpointParts) = from_postcard(&encoded.state[8..]).expect("our own");
            anew = root.state(&encoded.state.into()).expect("our own").0;
            prop_assert_eq!(&anew, &by_serde);
            from_each.push(anew.clone());
            previous = root_digest;
        }
    }

    /// A prune that was right when its writer looked is right at its slot, unless the rules say why not.
    #[test]
    fn what_is_prunable_stays_prunable_until_a_pin(points in prop::collection::vec((0u8..4, any::<bool>(), 0u64..4000), 1..30), keep in 1u32..4, span_ms in 0u64..6000, grid in grids()) {
        let mut w = claimed();
        let policy = Policy { grid: grid_of(&grid), ..Policy::without_grid(keep, span_ms) };
        let mut before = BTreeSet::new();
        for (which, bad, ms) in points {
            w.pass_ms(ms);
            let volumes: &[u8] = match which { 0 => &[1], 1 => &[2], _ => &[1, 2] };
            let members = volumes.iter().map(|n| {
                let unreadable_regions = if bad { regions(&[1]) } else { RegionSet::new() };
                LayerEntry { unreadable_regions, ..w.next(*n, 1) }
            }).collect();
            prop_assert_eq!(w.layers(LayerKind::Point, members), Verdict::Accepted);
            let now: BTreeSet<Slot> = w.state.prunable(&policy).into_iter().collect();
            prop_assert!(before.is_subset(&now));
            before = now;
        }
        // Pruning all of it at once, or one by one in any order, leaves the same points.
        let all: Vec<Slot> = before.iter().copied().collect();
        let mut one_by_one = w.clone();
        if !all.is_empty() {
            let looked = w.state.head().expect("not empty");
            let verdict = w.put(Body::Prune(Prune { looked, policy: PrunePolicy::Aged(policy.clone()), points: all.clone(), parts: vec![] }));
            prop_assert_eq!(verdict, Verdict::Accepted);
        }
        for point in all {
            let looked = one_by_one.state.head().expect("not empty");
            let verdict = one_by_one.put(Body::Prune(Prune { looked, policy: PrunePolicy::Aged(policy.clone()), points: vec![point], parts: vec![] }));
            prop_assert_eq!(verdict, Verdict::Accepted);
        }
        prop_assert_eq!(w.state.points(), one_by_one.state.points());
        prop_assert!(w.state.prunable(&policy).is_empty());
    }
}
