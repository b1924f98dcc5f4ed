//! Layers that are asked for in turn are those that are there, in whatever order somebody asks.

use super::*;
use crate::codec::to_postcard;

#[test]
fn in_whatever_order_layers_are_asked_for_the_answer_is_that_of_the_state() {
    let mut world = claimed();
    for round in 0..3 {
        world.point(&[1, 2]);
        world.fuzzy(1);
        world.point(&[1]);
        // Another term, whose sequence numbers begin anew.
        assert_eq!(world.claim(1 + round % 2), Verdict::Accepted);
    }
    let state = &world.state;
    let of = |layer: &LayerFact| (layer.key, layer.slot);
    let published: Vec<(LayerKey, Slot)> = state.volumes().flat_map(|(id, _)| state.layers_above(id, None).map(of)).collect();
    assert!(published.len() >= 9);
    let strangers = published.iter().map(|(key, slot)| (LayerKey { seq: Seq(key.seq.0 + 100), ..*key }, *slot));
    let in_another_slot = published.iter().map(|(key, slot)| (*key, Slot(slot.0 ^ 1)));
    let mixed: Vec<(LayerKey, Slot)> = published.iter().copied().chain(strangers).chain(in_another_slot).collect();
    let unknown = LayerKey { volume: vol(9), term: Term(0), seq: Seq(1) };
    // As they are here, and as bytes.
    let bytes = ::bytes::Bytes::from(to_postcard(state));
    let stored = State::read(&mut &bytes[..], &bytes).expect("our own");
    for (step, state) in [1, 2, 3, 5, 7].into_iter().flat_map(|step| [(step, state), (step, &stored)]) {
        let mut in_turn = state.layers_in_turn();
        let there_and_back = (0..mixed.len()).map(|i| mixed[i * step % mixed.len()]).chain(published.iter().rev().copied());
        for (key, slot) in there_and_back.chain([(unknown, Slot(1))]) {
            let known = world.state.layer(&key).map(LayerTouch::from);
            assert_eq!(in_turn.touched(&key, slot), known.as_ref(), "{key} in steps of {step}");
        }
    }
}
