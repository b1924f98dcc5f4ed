//! Tracking that was lost where nothing at the host could keep that (§4.5): who is told, and who heeds it.

use std::collections::BTreeMap;

use farside_ledger::{Body, Claim, LayerKind, Record, State, Verdict};
use farside_region::mutation::tell;
use farside_region::{GranuleIndex, GranuleSet, RegionIndex, RegionSet, Slot, Term, VolumeId};
use farside_wire::{LossRecorded, LossReport, Published, ReceiverMessage, RequestId, SourceMessage};

use super::directed::{Host, at, current, granules, layer, refused, regions};
use super::stories::{V1, streaming};
use super::world::{GRANULES, Turn, World, geometry, meta, name, source_limits, target_config, volume};
use crate::source::{self, Action, Event, RefusedWhy, Start, State as Standing};
use crate::target::{self, SessionId, Target};

fn report(host: &mut Host) -> LossReport {
    host.take(|m| match m {
        SourceMessage::TrackingLost(report) => Some(*report),
        _ => None,
    })
}

#[test]
fn a_loss_that_the_host_cannot_keep_is_said_until_the_receiver_has_recorded_it() {
    let mut host = Host::streaming();
    host.event(Event::TrackingLost { volume: volume(1) });
    assert!(host.said.iter().all(|m| !matches!(m, SourceMessage::TrackingLost(_))), "the host's own mark is enough");
    host.event(Event::KeepLoss { volume: volume(1) });
    let first = report(&mut host);
    assert_eq!((first.volume, first.term), (volume(1), Term(0)));
    // The answer is lost with its connection: it is said again, once the term is known to be current.
    host.reconnect();
    assert!(host.said.iter().all(|m| !matches!(m, SourceMessage::TrackingLost(_))), "T7: nothing before the position is checked");
    host.answer_ledger(1, Vec::new(), current(1, 0, false), Some(1));
    host.answer_resume(1, 0, Vec::new());
    let second = report(&mut host);
    host.hear(ReceiverMessage::LossRecorded(LossRecorded { id: first.id, volume: volume(1) }));
    assert!(host.did(|a| matches!(a, Action::LossKept { .. }).then_some(())).is_none(), "an answer to another question");
    host.hear(ReceiverMessage::LossRecorded(LossRecorded { id: second.id, volume: volume(1) }));
    assert!(host.did(|a| matches!(a, Action::LossKept { .. }).then_some(())).is_some());
    host.tick(&[]);
    assert!(host.said.iter().all(|m| !matches!(m, SourceMessage::TrackingLost(_))), "once is enough");
}

#[test]
fn t3_an_attach_heeds_a_loss_above_its_position_before_it_claims() {
    tell(&[("a recorded loss of tracking is not heeded", "T3: claimed beside a loss")], || {
        // Where the record lies, against a header at 5: heeded?
        for (lost, heeded) in [(None, false), (Some(4), false), (Some(6), true)] {
            let mut host = Host::new();
            host.add(1, Some(5), Some(5), regions(2, 2), Start::Clean);
            host.connect();
            let mut theirs = current(1, 5, true).expect("some");
            theirs.tracking_lost = lost.map(Slot);
            host.answer_ledger(1, vec![layer(7, 5, regions(2, 1))], Some(theirs.clone()), Some(7));
            let claims = |host: &Host| host.said.iter().any(|m| matches!(m, SourceMessage::Claim(_)));
            assert_eq!(claims(&host), !heeded, "T3: claimed beside a loss in slot {lost:?}");
            assert_eq!(host.did(|a| matches!(a, Action::HeatAll { .. }).then_some(())).is_some(), heeded, "{lost:?}");
            if !heeded {
                continue;
            }
            host.tick(&[]);
            assert!(!claims(&host), "the header would move above the record before every bit is set");
            host.event(Event::AllHot { volume: volume(1) });
            host.answer_ledger(1, vec![layer(7, 5, regions(2, 1))], Some(theirs), Some(7));
            host.answer_claim(1, 8);
            assert_eq!(host.source.owed(volume(1)).granule_count(&geometry()), GRANULES, "everything is compared");
        }
    });
}

/// A loss explains no layer of what is cold here: from then on nothing was switched before every bit was set. It is a machine that was
/// put back, or a copy, and a person decides, whatever else is on record; everything is compared then.
#[test]
fn l6_a_loss_on_record_is_no_excuse_for_another_history() {
    let mut host = Host::new();
    host.add(1, Some(5), Some(5), regions(2, 2), Start::Clean);
    host.connect();
    let mut theirs = current(1, 5, true).expect("some");
    theirs.tracking_lost = Some(Slot(6));
    host.answer_ledger(1, vec![layer(7, 5, regions(6, 1))], Some(theirs.clone()), Some(7));
    assert_eq!(refused(&host, 1), Some(RefusedWhy::Forked));
    host.event(Event::Accept { volume: volume(1) });
    assert!(host.did(|a| matches!(a, Action::HeatAll { .. }).then_some(())).is_some());
    host.event(Event::AllHot { volume: volume(1) });
    host.answer_ledger(1, vec![layer(7, 5, regions(6, 1))], Some(theirs), Some(7));
    host.answer_claim(1, 8);
    assert_eq!(host.source.owed(volume(1)).granule_count(&geometry()), GRANULES, "everything is compared");
}

#[test]
fn the_receiver_records_a_loss_once_and_refuses_another_terms() {
    let mut world = World::new(1, 1);
    world.by_hand = true;
    world.boot();
    world.connect();
    settle(&mut world);
    let term = world.state.volume(volume(1)).expect("claimed").term();
    let session = SessionId(world.connection.expect("connected"));
    let say = |world: &mut World, id, term| {
        let message = Box::new(SourceMessage::TrackingLost(LossReport { id: RequestId(id), volume: volume(1), term }));
        world.at(target::Event::Message { session, message });
        settle(world);
    };
    let records = |world: &World| world.records.iter().filter(|r| matches!(r.body, Body::TrackingLost(_))).count();
    say(&mut world, 102, term);
    say(&mut world, 103, term);
    assert_eq!(records(&world), 1, "the second is as good as recorded");
    world.write(volume(1), 0, 77);
    world.tick();
    settle(&mut world);
    say(&mut world, 104, term);
    assert_eq!(records(&world), 2, "a layer came between: a header may have moved above the first");
    // Last, since the source hears of it and claims anew.
    say(&mut world, 101, Term(term.0 + 1));
    assert_eq!(records(&world), 2, "of another term");
}

/// Where the host could not set the mark, a header that was moved above the receiver's record would have that forgotten.
#[test]
fn a_stop_moves_no_header_of_a_volume_that_lost_track() {
    let mut world = streaming();
    let header = world.disks[&V1].header;
    world.publish_without_header(0);
    world.to(Event::TrackingLost { volume: V1 });
    world.stop_source();
    assert_eq!(world.disks[&V1].header, header);
}

/// A volume of [`streaming`] lost track, and nothing at its host can keep that: granule 9 was written without a bit. The ledger has it,
/// and not one bit is set yet.
fn loses_track(world: &mut World) {
    world.disks.get_mut(&V1).expect("a disk").content[9] = 4242;
    world.to(Event::TrackingLost { volume: V1 });
    world.to(Event::KeepLoss { volume: V1 });
    world.go(&[Turn::ToTarget, Turn::Append, Turn::ToSource]);
    assert!(matches!(world.records.last().expect("some").body, Body::TrackingLost(_)), "it is not on record");
}

/// The host loses power and comes back: whatever was written before is published in the end.
fn comes_back(world: &mut World) {
    world.crash_source();
    world.boot();
    world.connect();
    for _ in 0..60 {
        world.interval();
        world.go_without(&[]);
    }
}

fn claim_of_another(world: &mut World) {
    let claim = Claim { volume: meta(1), looked: world.state.head(), source: name("host") };
    assert_eq!(world.record_of_another(Body::Claim(claim)), Verdict::Accepted);
}

/// Only the ledger knows that track was lost. Before all bits are set somebody else claims the volume for a moment (or the gateway loses
/// what it had staged), so it is claimed anew, above that record. With the claim's slot in its header the host loses power: the next
/// attach looks at what lies above, finds nothing, and calls equal what was never sent.
#[test]
fn a_claim_moves_no_header_above_a_loss_on_record_before_every_bit_is_set() {
    tell(&[("a header moves above a loss on record", "L2: granule 9 was forgotten")], || {
        let claims_anew = || {
            let mut world = streaming();
            loses_track(&mut world);
            claim_of_another(&mut world);
            let theirs = world.term(1);
            world.disconnect();
            world.connect();
            while world.term(1) == theirs {
                let goes_on = [Turn::ToTarget, Turn::Append, Turn::ToSource].into_iter().any(|turn| world.turn(turn));
                assert!(goes_on, "it is not claimed anew");
            }
            world.go(&[Turn::ToSource, Turn::Header]);
            world
        };
        let mut world = claims_anew();
        comes_back(&mut world);
        assert_eq!(world.image[&V1][&9], 4242, "L2: granule 9 was forgotten");
        // Without a power cut, the header follows as soon as every bit is set, and the volume goes on.
        let mut world = claims_anew();
        world.go(&[Turn::Hot, Turn::Header]);
        assert_eq!(world.disks[&V1].header.0, Some(world.term(1)), "the term stays out of the header for ever");
        world.quiet();
        assert_eq!(world.image[&V1][&9], 4242);
    });
}

/// The record, and a layer of the volume above it; then the store is put back to before both. That it is refused must outlive a crash
/// (L6), whatever lies in the store by then, and so must the loss: the newer store may be back, too.
#[test]
fn a_store_that_is_rewound_beside_a_loss_makes_nobody_forget_either() {
    let mistakes = [
        ("a header moves above a loss on record", "L3: point"),
        ("L6 a rewound store is forgotten by a crash", "L6: forgotten by a crash"),
    ];
    tell(&mistakes, || {
        for is_back in [false, true] {
            let mut world = streaming();
            let put = |world: &mut World, store: &(State, BTreeMap<VolumeId, BTreeMap<u64, u64>>, Vec<Record>)| {
                world.disconnect();
                (world.state, world.image, world.records) = store.clone();
                world.target = Target::new(target_config(), &world.state, Vec::new(), &mut Vec::new());
            };
            let older = (world.state.clone(), world.image.clone(), world.records.clone());
            world.write(V1, 0, 101);
            world.interval();
            world.go_without(&[Turn::Land, Turn::Append]);
            loses_track(&mut world);
            world.go_without(&[Turn::Header, Turn::Hot]);
            assert!(world.state.volume(V1).and_then(|v| v.last_layer()).is_some_and(|l| Some(l.slot) == world.state.head()));
            let newer = (world.state.clone(), world.image.clone(), world.records.clone());
            world.tampered = true;
            put(&mut world, &older);
            world.connect();
            world.go_without(&[Turn::Hot]);
            assert!(world.is_refused(1, RefusedWhy::TargetRewound));
            world.crash_source();
            if is_back {
                put(&mut world, &newer);
            }
            world.boot();
            world.connect();
            world.go_without(&[]);
            let is_refused = matches!(world.standing(1), Standing::Refused(_));
            assert!(is_back || is_refused, "L6: forgotten by a crash");
            world.to(Event::Accept { volume: V1 });
            for _ in 0..60 {
                world.interval();
                world.go_without(&[]);
            }
            assert_eq!(world.image[&V1][&9], 4242, "L2: granule 9 was forgotten");
        }
    });
}

/// The store is put back to before the record, and to nothing that anybody saw published after it: no position is above what it holds,
/// and nothing is refused. Whoever believed that it had the loss on record would lose it with the next power cut.
#[test]
fn a_loss_that_the_store_has_forgotten_is_said_again() {
    tell(&[("a loss on record is said once", "L2: granule 9 was forgotten")], || {
        let mut world = streaming();
        let (state, records) = (world.state.clone(), world.records.clone());
        loses_track(&mut world);
        world.disconnect();
        (world.state, world.records) = (state, records);
        world.target = Target::new(target_config(), &world.state, Vec::new(), &mut Vec::new());
        world.connect();
        world.go_without(&[Turn::Hot]);
        comes_back(&mut world);
        assert_eq!(world.image[&V1][&9], 4242, "L2: granule 9 was forgotten");
    });
}

/// A loss is said, and its record waits for the gateway's disk when the host dies. The next attach looks at the ledger and finds nothing;
/// then the record comes in, and its claim behind that.
#[test]
fn a_claim_that_has_not_seen_a_loss_is_void() {
    tell(&[("a claim overtakes a loss", "L2: granule 9 was forgotten")], || {
        let mut world = streaming();
        world.disks.get_mut(&V1).expect("a disk").content[9] = 4242;
        world.to(Event::TrackingLost { volume: V1 });
        world.to(Event::KeepLoss { volume: V1 });
        world.go(&[Turn::ToTarget]);
        world.crash_source();
        world.boot();
        world.connect();
        world.go_without(&[Turn::Append]);
        for _ in 0..60 {
            world.go_without(&[]);
            world.interval();
        }
        assert_eq!(world.image[&V1][&9], 4242, "L2: granule 9 was forgotten");
    });
}

/// The whole story in the small world: bits are lost, the receiver alone knows, and the next attach finds what was written.
#[test]
fn a_write_whose_bit_was_lost_is_found_by_the_next_attach() {
    let mut world = World::new(2, 1);
    world.by_hand = true;
    world.boot();
    world.connect();
    for _ in 0..60 {
        world.tick();
        settle(&mut world);
        world.now += 20;
        world.cool_wanted(volume(1));
    }
    assert!(world.disks[&volume(1)].hot.is_empty(), "everything is published and cold");
    world.to(Event::TrackingLost { volume: volume(1) });
    world.to(Event::KeepLoss { volume: volume(1) });
    world.disks.get_mut(&volume(1)).expect("a disk").content[9] = 4242;
    while [Turn::ToTarget, Turn::Append, Turn::ToSource].into_iter().any(|turn| world.turn(turn)) {}
    assert!(matches!(world.records.last().expect("some").body, Body::TrackingLost(_)));
    world.crash_source();
    world.boot();
    world.connect();
    for _ in 0..60 {
        world.tick();
        settle(&mut world);
        world.now += 20;
    }
    assert_eq!(world.image[&volume(1)][&9], 4242);
}

/// Everything that can happen by itself, until nothing does.
fn settle(world: &mut World) {
    let turns = [
        Turn::Switch,
        Turn::Header,
        Turn::Hot,
        Turn::Read,
        Turn::ToTarget,
        Turn::ToSource,
        Turn::Land,
        Turn::Append,
        Turn::Digests,
    ];
    while turns.into_iter().any(|turn| world.turn(turn)) {}
}

/// Whether a switch was asked for, and of which volumes.
fn asked(host: &mut Host) -> Option<Vec<farside_region::VolumeId>> {
    host.did(|a| match a {
        Action::Switch { members, .. } => Some(members.iter().map(|m| m.volume).collect()),
        _ => None,
    })
}

#[test]
fn a_volume_whose_reader_is_gone_is_left_out_and_the_others_are_cut() {
    let mut host = Host::streaming();
    host.tick(&[1, 2]);
    host.switch(vec![(1, granules(0, 1)), (2, granules(0, 1))]);
    host.event(Event::ReaderLost { volume: volume(2) });
    // What was under way is the other's alone now, and no point; it is not waited for.
    host.read(1, 7);
    let end = host.end();
    assert_eq!(end.members.iter().map(|m| m.key.volume).collect::<Vec<_>>(), [volume(1)]);
    let layers = vec![end.members[0].key];
    let published = farside_wire::Published { position: at(2), kind: farside_ledger::LayerKind::Fuzzy, layers };
    host.hear(ReceiverMessage::Published(published));
    host.tick(&[1, 2]);
    assert_eq!(asked(&mut host), Some(vec![volume(1)]));
    assert!(host.source.owed(volume(2)).contains(&geometry(), GranuleIndex(0)), "what it had frozen is owed still");
}

#[test]
fn l10_an_unreadable_granule_neither_ages_an_idle_volume_nor_holds_up_a_stop() {
    let mut world = World::new(3, 1);
    world.by_hand = true;
    world.boot();
    world.connect();
    world.disks.get_mut(&volume(1)).expect("a disk").bad.insert(5);
    let idle = |world: &mut World| {
        for _ in 0..40 {
            world.tick();
            settle(world);
            world.now += 20;
        }
    };
    idle(&mut world);
    let status = |world: &World| world.source.as_ref().expect("it runs").status(world.now).volumes.remove(0);
    assert!(status(&world).unreadable_bytes > 0 && world.points > 0);
    assert!(status(&world).lag.is_some_and(|lag| lag < 200), "{:?}", status(&world).lag);
    assert!(world.source.as_ref().expect("it runs").settled());
    // Mended, and everything compared: what was read again is unreadable no more, without a write by the host.
    world.disks.get_mut(&volume(1)).expect("a disk").bad.clear();
    world.to(Event::Resync { volume: volume(1) });
    idle(&mut world);
    assert_eq!(status(&world).unreadable_bytes, 0);
    assert_eq!(world.image[&volume(1)][&5], world.disks[&volume(1)].content[5]);
}

/// A host goes on writing to a sector that is dead, and each layer fails to read it anew. What could not be read beside it and can
/// be by now is read again when its time comes all the same.
#[test]
fn a_dead_sector_that_is_written_puts_off_nobody_elses_retry() {
    tell(&[("unreadable anew puts off every retry", "granule 5 is called unreadable")], || {
        let mut world = streaming();
        let write = |world: &mut World, granule: u64, value: u64| {
            world.write(V1, granule, value);
            world.disks.get_mut(&V1).expect("a disk").bad.insert(granule);
        };
        for round in 0..6 {
            write(&mut world, 5, 100 + round);
            write(&mut world, 9, 200 + round);
            world.interval();
            world.go_without(&[]);
        }
        world.disks.get_mut(&V1).expect("a disk").bad.remove(&5);
        // Many times as long as the longest back-off.
        for round in 0..300 {
            write(&mut world, 9, 300 + round);
            world.interval();
            world.go_without(&[]);
        }
        assert_eq!(world.image[&V1][&5], 105, "granule 5 is called unreadable, and could be read for long");
    });
}

/// A granule cannot be read, and the host writes just it: the disk has another sector for it now. All can be read from then on, and no point is
/// degraded for long.
#[test]
fn what_was_written_where_nothing_could_be_read_does_not_stay_degraded() {
    tell(&[("a region that is read again in part is not retried", "the ledger calls it unreadable for ever")], || {
        let mut world = streaming();
        for round in 0..6 {
            world.write(V1, 5, 100 + round);
            world.disks.get_mut(&V1).expect("a disk").bad.insert(5);
            world.interval();
            world.go_without(&[]);
        }
        let is_degraded = |world: &World| !world.state.volume(V1).expect("it was claimed").unreadable().is_empty();
        assert!(is_degraded(&world), "the point lacks what could not be read");
        world.disks.get_mut(&V1).expect("a disk").bad.remove(&5);
        // Many times as long as the longest back-off.
        for round in 0..300 {
            world.write(V1, if round == 0 { 5 } else { 9 }, 200 + round);
            world.interval();
            world.go_without(&[]);
        }
        assert_eq!(world.image[&V1][&5], 200);
        assert!(!is_degraded(&world), "the ledger calls it unreadable for ever");
    });
}

/// The same of a region that is read again in full, but for what the host has written since: a pass leaves that out.
#[test]
fn what_a_pass_left_out_of_a_retry_does_not_stay_degraded() {
    tell(&[("what a pass left out of a retry is not retried", "the ledger calls it unreadable for ever")], || {
        let mut world = streaming();
        world.write(V1, 6, 99);
        for round in 0..6 {
            world.write(V1, 5, 100 + round);
            world.disks.get_mut(&V1).expect("a disk").bad.insert(5);
            world.interval();
            world.go_without(&[]);
        }
        let disk = world.disks.get_mut(&V1).expect("a disk");
        disk.bad.remove(&5);
        disk.leaves.insert(6);
        for round in 0..300 {
            world.write(V1, 9, 200 + round);
            world.interval();
            world.go_without(&[]);
        }
        assert!(world.disks[&V1].leaves.is_empty(), "it was read again");
        assert_eq!([world.image[&V1][&5], world.image[&V1][&6]], [105, 99]);
        let unreadable = world.state.volume(V1).expect("it was claimed").unreadable().clone();
        assert!(unreadable.is_empty(), "the ledger calls it unreadable for ever");
    });
}

/// The end of a layer has no room for all that is to be said of its regions. What the ledger calls unreadable goes before what nobody asks for, and
/// what it goes on to call so although it was read is read again.
#[test]
fn what_an_end_has_no_room_for_is_said_by_a_later_one() {
    let one = |granule: u64| granules(granule, 1);
    let whole = |region: u64| granules(region * 4, 4);
    let all = |parts: &[GranuleSet]| {
        let mut set = GranuleSet::new();
        parts.iter().for_each(|part| set.union_with(part));
        set
    };
    let of = |regions: &[u64]| {
        let mut set = RegionSet::new();
        regions.iter().for_each(|region| set.insert(RegionIndex(*region)));
        set
    };
    tell(&[("what an end has no room for is not retried", "the ledger calls it unreadable for ever")], || {
        // Room for two ranges of each volume.
        let mut host = Host::with(source::Limits { end_ranges_max: 4, end_share_min: 2, ..source_limits() }).with_two_volumes();
        let mut slot = 1;
        // What the switch takes for V1 beside what is dirty, and its end.
        let mut round = |host: &mut Host, dirty: GranuleSet, unreadable: GranuleSet| {
            host.now += 64 * source_limits().unreadable_retry;
            host.tick(&[1, 2]);
            let asked = host.did.iter().find_map(|action| match action {
                Action::Switch { members, .. } => {
                    members.iter().find(|member| member.volume == V1).map(|member| member.extra.clone())
                }
                _ => None,
            });
            let extra = asked.expect("a switch");
            host.switch(vec![(1, all(&[dirty, extra.clone()])), (2, one(0))]);
            let keys = vec![host.read_without(1, 1, unreadable), host.read(2, 2)];
            let end = host.end();
            slot += 1;
            host.hear(ReceiverMessage::Published(Published { position: at(slot), kind: LayerKind::Point, layers: keys }));
            let end = end.members.into_iter().find(|member| member.key.volume == V1).expect("of V1");
            (extra.regions(), end)
        };

        // The last of three is what could not be read.
        round(&mut host, all(&[one(16)]), one(16));
        let (retried, end) = round(&mut host, all(&[whole(0), whole(2)]), GranuleSet::new());
        assert_eq!(retried, of(&[4]));
        assert_eq!(end.whole_regions, of(&[0, 4]), "what was unreadable first");

        // Three of them, and room for two.
        round(&mut host, all(&[one(0), one(8), one(16)]), all(&[one(0), one(8), one(16)]));
        let (retried, end) = round(&mut host, one(0), GranuleSet::new());
        assert_eq!(retried, of(&[0, 2, 4]));
        assert_eq!(end.whole_regions, of(&[0, 2]));
        let (retried, end) = round(&mut host, one(0), GranuleSet::new());
        assert_eq!((&retried, &end.whole_regions), (&of(&[4]), &of(&[4])), "the ledger calls it unreadable for ever");
    });
}
