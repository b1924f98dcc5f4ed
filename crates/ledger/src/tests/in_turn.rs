//! Layers that are asked for in turn are those that are there, in whatever order somebody asks.

use super::*;

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
    let published: Vec<LayerKey> =
        state.volumes().flat_map(|(id, _)| state.layers_above(id, None).map(|layer| layer.key)).collect();
    assert!(published.len() >= 9);
    let stranger = |key: &LayerKey| LayerKey { seq: Seq(key.seq.0 + 100), ..*key };
    let strangers: Vec<LayerKey> = published.iter().map(stranger).collect();
    let mixed: Vec<LayerKey> = published.iter().chain(&strangers).copied().collect();
    let unknown = LayerKey { volume: vol(9), term: Term(0), seq: Seq(1) };
    for step in [1, 2, 3, 5, 7] {
        let mut in_turn = state.layers_in_turn();
        let there_and_back = (0..mixed.len()).map(|i| mixed[i * step % mixed.len()]).chain(published.iter().rev().copied());
        for key in there_and_back.chain([unknown]) {
            assert_eq!(in_turn.layer(&key), state.layer(&key), "{key} in steps of {step}");
        }
    }
}
