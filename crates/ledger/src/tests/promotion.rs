//! L6: what a promotion outranks and whom it fences.

use farside_region::Generation;
use farside_region::mutation::tell;

use super::*;

/// Puts the claims of a promotion.
fn fence(w: &mut World, generation: Generation) {
    let claims: Vec<Claim> = w.state.claims_below(generation).collect();
    for claim in claims {
        assert_eq!(w.put(Body::Claim(claim)), Verdict::Accepted);
    }
}

/// The source takes one volume back.
fn take_back(w: &mut World, n: u8, generation: u64) {
    let (volume, looked) = (VolumeMeta { generation: Generation(generation), ..meta(n) }, w.state.head());
    assert_eq!(w.put(Body::Claim(Claim { volume, looked, source: name("host") })), Verdict::Accepted);
}

fn generations(w: &World) -> Vec<u64> {
    w.state.volumes().map(|(_, volume)| volume.meta().generation.0).collect()
}

/// A volume that is syncing, and so in no point yet, would go on under its old generation, and its next point be the newest of the group.
#[test]
fn l6_a_promotion_fences_volumes_that_no_point_holds_too() {
    tell(&[("L6 a promotion fences the volumes of its point only", "L6: its source goes on")], || {
        let mut w = claimed();
        w.point(&[1]);
        assert_eq!(w.state.fencing_generation(Generation(2)), Generation(2));
        fence(&mut w, Generation(2));
        assert_eq!(generations(&w), [2, 2], "L6: its source goes on");
        assert_eq!(w.state.claims_below(Generation(2)).count(), 0);
        // Gone on with after a kill, it is still that one.
        assert_eq!(w.state.fencing_generation(Generation(2)), Generation(2));
        w.claim(1);
        assert_eq!(generations(&w), [2, 2]);
    });
}

/// Half of the group was taken back when it is failed over again.
#[test]
fn l6_a_promotion_outranks_every_volume() {
    tell(&[("L6 a promotion outranks one volume of the group", "L6: the other half goes on")], || {
        let mut w = claimed();
        fence(&mut w, Generation(2));
        take_back(&mut w, 1, 3);
        let next = Generation(w.state.highest_generation().0 + 1);
        fence(&mut w, next);
        assert_eq!(generations(&w), [4, 4], "L6: the other half goes on");
    });
}

/// † It was taken back under the very generation that a failover was to fence under, which was asked for before.
#[test]
fn l6_a_history_that_was_taken_back_is_not_fenced_by_its_own_claim() {
    tell(&[("L6 a history that was taken back is called fenced", "L6: who took it back goes on")], || {
        let mut w = claimed();
        fence(&mut w, Generation(2));
        let asked = Generation(w.state.highest_generation().0 + 1);
        take_back(&mut w, 2, asked.0);
        let generation = w.state.fencing_generation(asked);
        fence(&mut w, generation);
        let back = Claim { volume: VolumeMeta { generation: asked, ..meta(2) }, looked: w.state.head(), source: name("host") };
        assert!(matches!(w.put(Body::Claim(back)), Verdict::Void(_)), "L6: who took it back goes on");
    });
}
