//! A gateway that has no more room: what was begun comes to an end all the same, and its room back.

use farside_ledger::LayerKind;
use farside_region::{GranuleSet, LayerKey, RegionIndex, RegionSet};
use farside_wire::{Notice, ReceiverMessage};

use super::directed::{Host, granules, regions};
use super::world::{GRANULES, Turn, World, source_limits, volume};
use crate::source::{self, Action, Event, PartRead, SECOND, Sample, SentPart, Start};
use crate::target;

const GRANTED: u64 = 30;

/// Of two volumes, granted so much in sum.
fn host() -> Host {
    let mut host = Host::new();
    for n in [1, 2] {
        host.add(n, None, None, RegionSet::new(), Start::Clean);
    }
    host.connect_with(GRANTED);
    for n in [1, 2] {
        host.answer_ledger(n, Vec::new(), None, None);
        host.answer_claim(n, u64::from(n) - 1);
    }
    host
}

/// A switch of that, and one part of the first volume's, of one region. What is granted is of no use for another.
fn reads_a_part(host: &mut Host, dirty_bytes: u64, sets: Vec<(u8, GranuleSet)>) -> LayerKey {
    host.sampled([(volume(1), Sample { dirty_bytes, ..Sample::default() })]);
    host.switch(sets);
    let order = host.did(|action| match action {
        Action::ReadPart(part) => Some((part.key, part.part)),
        _ => None,
    });
    let (key, part) = order.expect("a part to read");
    let read = PartRead {
        connection: host.connection(),
        key,
        part,
        sent: Some(SentPart { bytes: 16, footer_digest: [1; 32] }),
        next: RegionIndex(1),
        done: false,
        cut_held: true,
        granules: 4,
        left: GranuleSet::new(),
        unreadable: GranuleSet::new(),
        zero_regions: RegionSet::new(),
    };
    host.event(Event::PartRead(Box::new(read)));
    host.hear(ReceiverMessage::Notice(Notice::GatewayFull { free_bytes: GRANTED - 16, reserve_bytes: 64 }));
    waits(host, 20);
    assert!(host.says_no_end(), "there may be more in time");
    key
}

/// No part is read for so long.
fn waits(host: &mut Host, nanos: u64) {
    host.now += nanos;
    host.sampled([1, 2].map(|n| (volume(n), Sample::default())));
    assert!(host.did(|action| matches!(action, Action::ReadPart(_)).then_some(())).is_none(), "nothing is granted");
}

/// † What is unfinished takes room until it is published, and is published when it is finished: many volumes, each with a slice that has neither
/// enough in it nor credit for more, filled a gateway for ever.
#[test]
fn a_slice_that_waits_for_credit_ends_when_its_time_has_come() {
    let mut host = host();
    let key = reads_a_part(&mut host, 1 << 30, vec![(1, granules(0, 8 * 4))]);
    waits(&mut host, source_limits().slice_time);
    let end = host.end();
    assert_eq!((end.kind, end.members[0].key, end.members[0].parts), (LayerKind::Fuzzy, key, 1));
    assert_eq!(end.members[0].regions, regions(0, 1), "what was read, and the next slice goes on from there");
}

/// † So did cuts, of which all is published at once; one alone could not land where there was less room than it needs.
#[test]
fn a_cut_that_is_granted_no_room_goes_on_as_a_pass() {
    let mut host = host();
    let key = reads_a_part(&mut host, 16, vec![(1, granules(0, 8 * 4)), (2, granules(0, 4))]);
    waits(&mut host, source_limits().slice_time);
    assert!(host.says_no_end(), "there may be more soon");
    waits(&mut host, 10 * SECOND);
    let end = host.end();
    assert_eq!((end.kind, end.members.len()), (LayerKind::Fuzzy, 1));
    assert_eq!((end.members[0].key, &end.members[0].regions), (key, &regions(0, 1)));
    assert!(host.says_no_end(), "of the other there is nothing yet");
}

/// One group at a gateway that has less room for what lands than a cut takes.
#[test]
fn a_cut_larger_than_a_gateways_room_comes_to_a_point_all_the_same() {
    const ROOM: u64 = 12 * 16;
    let limits = source::Limits { slice_time: 60 * SECOND, cut_hold: 60 * SECOND, epoch_interval: SECOND, ..source_limits() };
    let mut world = World::with(7, 2, limits);
    world.by_hand = true;
    world.grants_in_steps_of(2 * 16, 6 * 16);
    world.boot();
    world.connect();
    let until_a_point = |world: &mut World| {
        for _ in 0..1000 {
            let turns =
                [Turn::Tick, Turn::Switch, Turn::Header, Turn::Hot, Turn::Digests, Turn::Append, Turn::ToTarget, Turn::ToSource];
            world.now += SECOND;
            let unpublished: usize =
                world.landed.iter().filter(|((key, _), _)| world.state.layer(key).is_none()).map(|(_, part)| part.len()).sum();
            world.disk_room = ROOM.saturating_sub(16 * unpublished as u64);
            for turn in turns {
                while world.turn(turn) && !matches!(turn, Turn::Tick) {}
                // Records have theirs.
                let (free_bytes, spare_bytes) = (world.disk_room, 1 << 20);
                world.at(target::Event::Grantable { free_bytes, disk_bytes: free_bytes, spare_bytes, reserve_bytes: 0 });
            }
            world.turn(Turn::Read);
            while world.turn(Turn::Land) {}
            if world.points > 0 && world.source.as_ref().is_some_and(source::Source::settled) {
                return;
            }
        }
        panic!("it waits for room for ever");
    };
    until_a_point(&mut world);
    let cut = GRANULES * 16;
    assert!(cut > ROOM && cut <= source_limits().cut_bytes_max);
    (0..GRANULES).for_each(|granule| world.write(volume(1), granule, 100 + granule));
    until_a_point(&mut world);
}
