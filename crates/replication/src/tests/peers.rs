//! Bugs that other replication products had, each a story of ours that would be the same loss: by the numbers in
//! `ARCHITECTURE.md`.

use farside_ledger::LayerKind;
use farside_region::mutation::tell;
use farside_region::{RegionIndex, RegionSet, Seq};

use super::directed::{Gateway, Host, claimed, granules, key};
use super::stories::{V1, V2, rolled_back, streaming};
use super::world::{GRANULES, Turn, World, source_limits, volume};
use crate::source::{self, Action, RefusedWhy};
use crate::target::{self, LandedLayer, Target};

impl World {
    pub(super) fn publishes(&self, n: u8, granule: u64, value: u64) -> bool {
        self.image[&volume(n)].get(&granule) == Some(&value)
    }

    fn store_is_replaced(&mut self) {
        self.disconnect();
        let fresh = World::new(2, 2);
        (self.state, self.target, self.records) = (fresh.state, fresh.target, Vec::new());
        self.image.clear();
        self.landed.clear();
    }
}

/// R2: a tracker whose newest set of changes was not yet committed to its log skipped that set after a crash. Ours keeps the
/// granules of an open epoch in memory only; what a crash leaves are the regions' bits, and every one of them is compared.
#[test]
fn r2_what_an_interrupted_epoch_had_marked_is_compared() {
    tell(&[("an attach after a crash compares nothing", "L2:")], || {
        let mut world = streaming();
        world.write(V1, 0, 101);
        world.interval();
        world.go(&[Turn::Switch]);
        world.write(V1, 8, 102);
        world.crash_source();
        world.boot();
        world.connect();
        world.quiet();
        assert!(world.publishes(1, 0, 101) && world.publishes(1, 8, 102));
    });
}

/// R3: a volume whose tracking was switched off and on around a restart came back with a window that no log held. Pausing stops
/// nothing but the sending: a crash at any step of it forgets nothing.
#[test]
fn r3_a_pause_forgets_nothing_whenever_the_crash_comes() {
    for step in 0..5 {
        let mut world = streaming();
        let crash = |world: &mut World, at| {
            if at == step {
                world.crash_source();
                world.boot();
                world.connect();
            }
        };
        crash(&mut world, 0);
        world.to(source::Event::Pause { volume: V1 });
        crash(&mut world, 1);
        world.write(V1, 0, 101);
        crash(&mut world, 2);
        world.interval();
        world.go_without(&[]);
        world.write(V1, 8, 102);
        crash(&mut world, 3);
        world.to(source::Event::Resume { volume: V1 });
        world.interval();
        world.go(&[Turn::Switch]);
        crash(&mut world, 4);
        world.quiet();
        assert!(world.publishes(1, 0, 101) && world.publishes(1, 8, 102), "crash at step {step}");
    }
}

/// R4: after a crash only the peers that were configured then were marked; one that was added later inherited "in sync". A new,
/// empty store holds nothing of what is cold here: the position is not in it, a person is asked, and it gets everything.
#[test]
fn r4_a_store_that_is_new_after_a_crash_gets_everything() {
    let mut world = streaming();
    world.crash_source();
    world.tampered = true;
    world.store_is_replaced();
    world.boot();
    world.connect();
    world.interval();
    world.go_without(&[]);
    assert!(world.is_refused(1, RefusedWhy::TargetRewound) && world.is_refused(2, RefusedWhy::TargetRewound));
    for volume in [V1, V2] {
        world.to(source::Event::Accept { volume });
    }
    world.tampered = false;
    world.go(&[Turn::Hot]);
    world.quiet();
    assert!([1, 2].iter().all(|n| world.image[&volume(*n)].len() as u64 == GRANULES), "all of both");
}

/// R5: a rule of the handshake decided "nothing to send" and cleared a bitmap that was not empty. No greeting, question or
/// answer of ours clears anything: only a published layer does (L7).
#[test]
fn r5_no_handshake_clears_anything() {
    let mut world = streaming();
    world.write(V1, 0, 101);
    world.interval();
    world.go_without(&[Turn::Append]);
    for _ in 0..5 {
        world.disconnect();
        world.connect();
        world.interval();
        world.go_without(&[Turn::Append, Turn::Read]);
        world.cool_wanted(V1);
        assert!(world.disks[&V1].hot.contains(RegionIndex(0)), "cleared by a handshake");
        assert!(world.source.as_ref().expect("it runs").mentions(V1, RegionIndex(0)));
    }
    world.quiet();
}

/// R6: both sides agreed on their generation, and bits that were left over were dropped. The same term and the same position on
/// both sides, and something written while the link was down: it is sent.
#[test]
fn r6_agreeing_on_the_position_sends_what_is_dirty() {
    let mut world = streaming();
    let term = world.term(1);
    world.disconnect();
    world.write(V1, 8, 102);
    world.connect();
    world.quiet();
    assert!(world.publishes(1, 8, 102) && world.term(1) == term);
}

/// R9: handshakes that failed in a loop starved a demotion for ever. A cut whose connection ends is given up there and then, and
/// the host's writes stop being saved, however often the link comes and goes.
#[test]
fn r9_a_flapping_link_holds_no_cut() {
    let mut host = Host::streaming();
    host.tick(&[1]);
    let epoch = host.switch(vec![(1, granules(0, 2)), (2, granules(0, 2))]);
    host.reconnect();
    let given_up = host.did(|a| matches!(a, Action::Demote { epoch: e, .. } if *e == epoch).then_some(()));
    assert!(given_up.is_some(), "before any handshake is over");
    host.did.clear();
    for _ in 0..50 {
        host.reconnect();
        assert!(host.did(|a| matches!(a, Action::Switch { .. } | Action::ReadPart(_)).then_some(())).is_none());
    }
}

/// R10: while the backlog grew, the estimated end of a resync was a date that meant nothing. Passes that find as much dirt as the
/// one before are told as what they are, with what is changed, what gets through, and what a cut would have to hold; and no
/// longer once a cut got there.
#[test]
fn r10_a_growing_backlog_is_told_with_the_number_that_would_help() {
    let limits = source::Limits { cut_bytes_max: 6 * 16, cut_bytes_min: 6 * 16, slice_bytes: 1 << 20, ..source_limits() };
    let mut host = Host::with(limits);
    host.add(1, None, None, RegionSet::new(), source::Start::Clean);
    host.connect();
    host.answer_ledger(1, Vec::new(), None, None);
    host.answer_claim(1, 0);
    let told = |host: &Host| host.source.status(host.now).volumes[0].not_converging;
    // What a pass finds, and what is changed while it is read.
    let pass = |host: &mut Host, slot: u64, found: u64, changed: u64| {
        host.switch(vec![(1, granules(0, found))]);
        let begun = host.now;
        host.now += 30;
        host.dirt(changed * 16);
        let key = host.read(1, slot as u8);
        host.end();
        host.publish_as(slot, &[key], LayerKind::Fuzzy);
        begun
    };
    host.dirt(8 * 16);
    pass(&mut host, 1, 8, 10);
    let second = pass(&mut host, 2, 10, 12);
    assert_eq!(told(&host), None, "one alone is how a burst looks");
    let third = pass(&mut host, 3, 12, 1);
    let per_second = |count: u64| count * 16 * source::SECOND / (third - second);
    let expected =
        source::NotConverging { dirty_bytes_per_s: per_second(12), sent_bytes_per_s: per_second(10), needed_cut_bytes: 12 * 16 };
    assert_eq!(told(&host), Some(expected));
    host.switch(vec![(1, granules(0, 1))]);
    let key = host.read(1, 4);
    host.end();
    host.publish(4, &[key]);
    assert_eq!(told(&host), None, "a cut got there");
}

/// R11: the receiver was killed after the last piece of a snapshot and before its end, the sender dropped the snapshot, and what
/// had landed was called complete. Parts without an end message are nobody's layer: never staged, never appended, and dropped
/// with their term.
#[test]
fn r11_what_landed_without_its_end_is_never_published() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    assert!(gateway.append().is_none(), "no end message");
    let entry = farside_ledger::PartEntry { bytes: 16, footer_digest: [1; 32] };
    let landed = vec![LandedLayer { key: key(1, 0, 1), parts: vec![(0, entry)], end: None, staged_ago: 0 }];
    restart(&mut gateway, landed);
    gateway.hello(9, 1, 9);
    gateway.later();
    assert!(gateway.append().is_none(), "after a restart neither");
    gateway.claim(9, 1);
    assert!(gateway.did.iter().any(|a| matches!(a, target::Action::DropLayer { key: k } if k.seq == Seq(1))));
    assert!(gateway.append().is_none());
}

fn restart(gateway: &mut Gateway, landed: Vec<LandedLayer>) {
    gateway.did.clear();
    gateway.target = Target::new(super::world::target_config(), &gateway.state, landed, &mut gateway.did);
}

/// R12: a split brain that would have passed was resolved by an automatic resync, over the good side. A refusal stays until a
/// person decides, over any number of reconnects, and nothing is claimed or sent meanwhile.
#[test]
fn r12_a_refusal_waits_for_a_person() {
    let mut world = rolled_back();
    world.interval();
    world.go_without(&[]);
    assert!(world.is_refused(1, RefusedWhy::Forked));
    // The disk is put forward again, so that all would fit by now.
    let published = world.image[&V1].clone();
    let disk = world.disks.get_mut(&V1).expect("a disk");
    published.iter().for_each(|(granule, value)| disk.content[*granule as usize] = *value);
    let term = world.term(1);
    for _ in 0..5 {
        world.disconnect();
        world.connect();
        world.interval();
        world.go_without(&[]);
        assert!(world.is_refused(1, RefusedWhy::Forked), "nobody decided that");
    }
    assert_eq!(world.term(1), term, "nothing is claimed");
}

/// R20: while a product only tracked and made no consistent points, its recovery point looked fresh. Passes bring the volume
/// forward and are no points: lag goes on counting from the last point.
#[test]
fn r20_passes_do_not_make_lag_look_good() {
    let mut host = Host::streaming();
    let layers = host.cut_of_both();
    host.publish(2, &layers);
    host.tick(&[1]);
    let before = host.source.status(host.now).volumes[0].lag.expect("a point is there");
    let epoch = host.switch(vec![(1, granules(8, 2)), (2, granules(8, 2))]);
    host.event(source::Event::Demoted { epoch, why: source::DemoteCause::SideBuffer });
    let layers = [host.read(1, 3), host.read(2, 4)];
    host.end();
    host.publish_as(3, &layers, LayerKind::Fuzzy);
    host.tick(&[1]);
    let after = host.source.status(host.now).volumes[0].lag.expect("a point is there");
    assert!(after > before, "lag {before} → {after}");
}

/// R10: a backlog that does not shrink, and a status that promises an end. Each cut takes longer than a cut may, so that none
/// becomes a point: as much is dirty again when it has been read, and that is said, with both rates.
#[test]
fn r10_cuts_that_are_given_up_for_ever_are_called_not_converging() {
    let mut host = Host::streaming();
    let not_converging = |host: &Host| host.source.status(host.now).volumes[0].not_converging;
    for round in 0..4u64 {
        assert_eq!(not_converging(&host).is_some(), round > 2, "round {round}");
        let idle = host.source.status(host.now).volumes[1].not_converging;
        assert!(idle.is_none(), "round {round}: the other has nothing to send");
        host.tick(&[1]);
        let set = granules(0, 4);
        host.switch(vec![(1, set), (2, farside_region::GranuleSet::new())]);
        host.now += 500;
        host.tick(&[1]);
        let layers = [host.read(1, 1)];
        let end = host.end();
        assert_eq!(end.kind, LayerKind::Fuzzy, "over its time");
        let all: Vec<_> = end.members.iter().map(|m| m.key).collect();
        assert!(all.contains(&layers[0]));
        host.publish_as(10 + round, &all, LayerKind::Fuzzy);
    }
    let said = not_converging(&host).expect("it is said");
    assert_eq!(said.needed_cut_bytes, 4 * 16);
    assert!(said.dirty_bytes_per_s > 0 && said.dirty_bytes_per_s == said.sent_bytes_per_s);
}
