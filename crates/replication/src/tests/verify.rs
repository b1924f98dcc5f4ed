//! `verify`, step by step (T6): what may cool, what is asked again, and that a bit is durable before a difference is sent.

use farside_ledger::{Body, LayerKind, Verdict, Verified, VerifiedHow};
use farside_region::{GranuleSet, RegionIndex, RegionSet, Slot, Term, VolumeId};
use farside_wire::{Compared, Credit, DigestAnswer, DigestRun, Features, Notice, ReceiverMessage, RequestId, SourceMessage};

use super::directed::{Gateway, Host, claimed, current, key, regions};
use super::world::{GRANULES, volume};
use crate::source::{Action, Event, VerifyChunk, VerifyOutcome, VerifyRead, VerifyReport};

const V: u8 = 1;

fn id() -> VolumeId {
    volume(V)
}

fn report(host: &Host) -> VerifyReport {
    host.source.status(host.now).volumes[0].verify.clone().expect("it was asked for")
}

/// Answers the question that is out: everything is zero.
fn answer(host: &mut Host) -> u64 {
    let (request, run) = host.take(|m| match m {
        SourceMessage::Digests(q) if q.volume == id() => Some((q.id, q.run)),
        _ => None,
    });
    let runs = vec![DigestRun::Zero { granules: run.count }];
    host.hear(ReceiverMessage::DigestAnswer(DigestAnswer { id: request, volume: id(), start: run.start, runs }));
    run.start.0
}

fn chunk(host: &mut Host) -> Option<VerifyChunk> {
    host.did(|a| match a {
        Action::Verify(chunk) => Some((**chunk).clone()),
        _ => None,
    })
}

fn read(host: &mut Host, request: RequestId, hot: RegionSet, differing: RegionSet) {
    let read = VerifyRead { id: request, hot, differing, unreadable: RegionSet::new() };
    host.event(Event::VerifyRead { volume: id(), read: Box::new(read) });
}

/// Every chunk that is left, all cold and equal.
fn walk(host: &mut Host) {
    while host.said.iter().any(|m| matches!(m, SourceMessage::Digests(_))) {
        answer(host);
        let request = chunk(host).expect("a chunk to read").id;
        read(host, request, RegionSet::new(), RegionSet::new());
    }
}

fn asks_to_heat(host: &mut Host) -> Option<RegionSet> {
    host.did(|a| match a {
        Action::Heat { regions, .. } => Some(regions.clone()),
        _ => None,
    })
}

/// A verify that found region 2 to differ, and asks for its bit.
fn differs() -> (Host, RegionSet) {
    let mut host = Host::streaming();
    host.event(Event::Verify { volume: id() });
    answer(&mut host);
    let request = chunk(&mut host).expect("a chunk").id;
    read(&mut host, request, RegionSet::new(), regions(2, 1));
    let heat = asks_to_heat(&mut host).expect("the bit first");
    (host, heat)
}

#[test]
fn t6_a_cold_volume_is_compared_in_place_without_a_switch_or_a_record() {
    let mut host = Host::streaming();
    host.said.clear();
    host.event(Event::Verify { volume: id() });
    assert_eq!(report(&host).outcome, VerifyOutcome::Running);
    walk(&mut host);
    let report = report(&host);
    assert_eq!((report.outcome, report.cold_bytes), (VerifyOutcome::Done, GRANULES * 16));
    assert!(report.differing.is_empty() && host.said.is_empty(), "{:?}", host.said);
    assert!(host.did(|a| matches!(a, Action::Switch { .. }).then_some(())).is_none());
}

#[test]
fn t6_what_is_looked_at_may_not_cool_from_before_the_question_until_the_answer() {
    let mut host = Host::streaming();
    host.event(Event::Verify { volume: id() });
    let (first, last) = (RegionIndex(0), RegionIndex(7));
    assert!(host.source.mentions(id(), first), "its digests are asked for");
    assert!(!host.source.mentions(id(), last), "nobody looked at it yet");
    answer(&mut host);
    assert!(host.source.mentions(id(), first), "it is being read");
    let request = chunk(&mut host).expect("a chunk").id;
    // An answer to another question says nothing.
    read(&mut host, RequestId(request.0 + 1), RegionSet::new(), RegionSet::new());
    assert!(host.source.mentions(id(), first));
    read(&mut host, request, regions(1, 1), RegionSet::new());
    assert!(!host.source.mentions(id(), first), "cold and equal");
    assert!(host.source.mentions(id(), RegionIndex(1)), "hot: to be compared at the end");
}

#[test]
fn t6_the_bit_of_a_difference_is_durable_before_it_is_compared_and_sent() {
    let (mut host, heat) = differs();
    assert_eq!(heat, regions(2, 1));
    host.tick(&[]);
    assert!(host.did(|a| matches!(a, Action::Switch { .. }).then_some(())).is_none(), "T3: no layer of a cold region");
    assert!(host.source.is_heating(id()) && !host.source.settled(), "a difference is owed");
    host.event(Event::Heated { volume: id(), regions: heat });
    let extra = host.did(|a| match a {
        Action::Switch { members, .. } => members.iter().find(|m| m.volume == id()).map(|m| m.extra.clone()),
        _ => None,
    });
    let mut whole = GranuleSet::new();
    regions(2, 1).ranges().for_each(|r| whole.insert_whole(r));
    assert_eq!(extra, Some(whole), "then an ordinary Compare");
    walk(&mut host);
    let report = report(&host);
    assert_eq!(report.differing, regions(2, 1));
    assert_eq!(report.outcome, VerifyOutcome::Running, "not over before the difference is published");
}

#[test]
fn t6_a_reset_asks_the_chunk_anew_and_ignores_what_was_read_for_the_old_one() {
    let mut host = Host::streaming();
    host.event(Event::Verify { volume: id() });
    let mut starts = vec![answer(&mut host)];
    let request = chunk(&mut host).expect("a chunk").id;
    read(&mut host, request, RegionSet::new(), RegionSet::new());
    starts.push(answer(&mut host));
    let late = chunk(&mut host).expect("a chunk").id;
    host.reconnect();
    for n in [1, 2] {
        host.answer_ledger(n, Vec::new(), current(n, u64::from(n) - 1, false), Some(1));
        host.answer_resume(n, u64::from(n) - 1, Vec::new());
    }
    read(&mut host, late, RegionSet::new(), regions(5, 1));
    assert!(report(&host).differing.is_empty(), "an answer of before the reset");
    assert_eq!(answer(&mut host), starts[1], "from the chunk that was under way, not from the beginning");
}

#[test]
fn t6_a_stop_ends_it_and_a_compare_of_everything_makes_it_needless() {
    let mut host = Host::streaming();
    host.event(Event::Verify { volume: id() });
    host.event(Event::Resync { volume: id() });
    assert_eq!(report(&host).outcome, VerifyOutcome::Superseded);
    let mut host = Host::streaming();
    host.event(Event::Verify { volume: id() });
    host.event(Event::Drain);
    assert_eq!(report(&host).outcome, VerifyOutcome::Stopped);
    assert!(report(&host).ended.is_some());
}

/// A stop waits for the bit of a difference, but not for ever. When the bit comes after the verify was ended, the region differs
/// all the same: forgotten, it would be left out of what a clean stop owes, and cool.
#[test]
fn t6_a_difference_whose_bit_comes_after_the_stop_is_owed() {
    let (mut host, heat) = differs();
    host.event(Event::Drain);
    assert_eq!(report(&host).outcome, VerifyOutcome::Stopped);
    host.event(Event::Heated { volume: id(), regions: heat });
    assert!(host.source.mentions(id(), RegionIndex(2)), "it differs from what is published");
}

/// Each slice of a compare that found all equal is a record, for which a full gateway has no room: who hears of that makes one of
/// what is left, however long that takes.
#[test]
fn a_compare_of_what_is_equal_is_one_slice_while_the_gateway_is_full() {
    let finishes = |host: &mut Host| host.did(|a| matches!(a, Action::FinishPart { .. }).then_some(())).is_some();
    let mut host = Host::streaming();
    host.event(Event::Resync { volume: id() });
    host.event(Event::AllHot { volume: id() });
    host.tick(&[]);
    let mut all = GranuleSet::new();
    regions(0, 8).ranges().for_each(|r| all.insert_whole(r));
    host.switch(vec![(1, all)]);
    host.hear(ReceiverMessage::Credit(Credit { granted_bytes: 1 << 30 }));
    host.did(|a| matches!(a, Action::ReadPart(_)).then_some(())).expect("it compares");
    host.hear(ReceiverMessage::Notice(Notice::GatewayFull { free_bytes: 0, reserve_bytes: 64 << 20 }));
    host.now += 2 * crate::source::Limits::default().slice_time;
    host.tick(&[]);
    assert!(!finishes(&mut host), "it would be a record of its own");
    host.hear(ReceiverMessage::Notice(Notice::Ready));
    host.tick(&[]);
    assert!(finishes(&mut host), "its regions may cool");
}

#[test]
fn mistakes_are_seen() {
    let seen = std::panic::catch_unwind(|| {
        farside_region::mutation::set(&["T6 verify sends before the bit is durable"]);
        t6_the_bit_of_a_difference_is_durable_before_it_is_compared_and_sent();
    });
    farside_region::mutation::set(&[]);
    assert!(seen.is_err());
}

/// Who understands it hears that all was equal, and only then.
#[test]
fn a_verify_that_found_everything_equal_is_said() {
    for (features, differs) in [(Features::COMPARED, false), (Features::COMPARED, true), (Features(0), false)] {
        let mut host = Host::streaming_to(features);
        host.said.clear();
        host.event(Event::Verify { volume: id() });
        if differs {
            answer(&mut host);
            let request = chunk(&mut host).expect("a chunk").id;
            read(&mut host, request, RegionSet::new(), regions(2, 1));
        }
        walk(&mut host);
        let said: Vec<_> = host.said.iter().filter(|m| matches!(m, SourceMessage::Compared(_))).collect();
        match said[..] {
            [] => assert!(differs || features == Features(0)),
            [SourceMessage::Compared(compared)] => {
                assert_eq!((compared.volume, compared.term), (id(), Term(0)));
                assert!(!differs && features == Features::COMPARED);
            }
            _ => panic!("{said:?}"),
        }
    }
}

/// The line breaks before it can have been heard, or is down when all has been compared.
#[test]
fn that_all_was_equal_is_said_again_where_it_may_not_have_been_heard() {
    let mut host = Host::streaming_to(Features::COMPARED);
    host.event(Event::Verify { volume: id() });
    walk(&mut host);
    let said = |host: &Host| host.said.iter().filter(|m| matches!(m, SourceMessage::Compared(_))).count();
    assert_eq!(said(&host), 1);
    host.reconnect();
    assert_eq!(said(&host), 0, "not before it is known what is there");
    let resumed = |host: &mut Host| {
        host.answer_ledger(1, Vec::new(), current(1, 0, false), Some(1));
        host.answer_resume(1, 0, Vec::new());
    };
    resumed(&mut host);
    assert_eq!(said(&host), 1);
    host.now += 61_000_000_000;
    host.reconnect();
    resumed(&mut host);
    assert_eq!(said(&host), 0, "it was heard");
}

fn compared(gateway: &mut Gateway, n: u8, term: u64) {
    let position = gateway.state.position().expect("not empty");
    gateway.hear(1, SourceMessage::Compared(Compared { volume: volume(n), term: Term(term), position }));
}

#[test]
fn what_was_compared_is_on_record_of_the_newest_point_that_has_all_of_it() {
    let mut gateway = claimed();
    let publish = |gateway: &mut Gateway, kind, layers: &[(u8, u64, u64)]| {
        let members: Vec<_> = layers.iter().map(|&(n, term, seq)| key(n, term, seq)).collect();
        members.iter().for_each(|key| gateway.part(*key, 0, key.seq.0 as u8));
        let digests: Vec<[u8; 1]> = members.iter().map(|key| [key.seq.0 as u8]).collect();
        let end: Vec<_> = members.iter().zip(&digests).map(|(key, parts)| (*key, &parts[..])).collect();
        gateway.end(kind, &end);
        assert_eq!(gateway.append().expect("a record").1, Verdict::Accepted);
        gateway.state.head().expect("not empty")
    };
    let first = publish(&mut gateway, LayerKind::Point, &[(1, 0, 1), (2, 1, 1)]);
    let recorded = |gateway: &mut Gateway| match gateway.append() {
        Some((Body::Verified(Verified { point, how: VerifiedHow::WithSource }), Verdict::Accepted)) => Some(point),
        None => None,
        other => panic!("{other:?}"),
    };
    compared(&mut gateway, 1, 7);
    compared(&mut gateway, 2, 1);
    assert_eq!(recorded(&mut gateway), None, "one of another claim, and one of two");
    compared(&mut gateway, 1, 0);
    assert_eq!(recorded(&mut gateway), Some(first));
    assert_eq!(recorded(&mut gateway), None, "once");
    // What came after a point is not in it.
    publish(&mut gateway, LayerKind::Fuzzy, &[(1, 0, 2)]);
    compared(&mut gateway, 1, 0);
    compared(&mut gateway, 2, 1);
    assert_eq!(recorded(&mut gateway), None);
    let second = publish(&mut gateway, LayerKind::Point, &[(1, 0, 3), (2, 1, 2)]);
    assert_eq!(recorded(&mut gateway), Some(second), "the next one has it");
    assert!(gateway.state.points()[&Slot(second.0)].proofs.with_source.is_some());
}
