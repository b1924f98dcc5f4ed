//! What a wrong or hostile peer, or a store that is not as it was left, must not be able to do to a gateway.

use farside_ledger::{
    Body, Claim, EpochInfo, LayerEntry, LayerKind, Layers, Memory, PartEntry, Record, Stamp, Unpin, Verdict, VoidReason,
};
use farside_region::{
    BootId, Geometry, GroupId, LayerKey, LedgerPosition, RecordDigest, RegionIndex, RegionSet, Seq, Slot, Term, mutation::tell,
};
use farside_wire::{
    ClaimOutcome, ClaimRequest, HeldLayer, LayerFate, LossReport, Lost, Notice, ReadLedger, ReceiverMessage, Refusal,
    RefusalCode, RequestId, ResumeQuery, Settings, SourceMessage,
};

use super::directed::{Gateway, claimed, ending, key, landing};
use super::world::{GRANULES, meta, name, volume};
use crate::target::{Action, AppendOutcome, DropWhy, Event, Report, SessionId, Ticket};

fn take_append(gateway: &mut Gateway) -> Option<(Ticket, Body)> {
    let at = gateway.did.iter().position(|a| matches!(a, Action::Append { .. }))?;
    let Action::Append { ticket, mut records } = gateway.did.remove(at) else { unreachable!("just seen") };
    Some((ticket, records.remove(0).body))
}

fn lost(said: &[ReceiverMessage]) -> Vec<LayerKey> {
    let lost = said.iter().filter_map(|m| match m {
        ReceiverMessage::Lost(Lost { layers }) => Some(layers.clone()),
        _ => None,
    });
    lost.flatten().collect()
}

/// A point of both volumes, staged; its append is under way.
fn point() -> (Gateway, Ticket) {
    let mut gateway = claimed();
    let (one, two) = (key(1, 0, 1), key(2, 1, 1));
    gateway.part(one, 0, 1);
    gateway.part(two, 0, 2);
    gateway.end(LayerKind::Point, &[(one, &[1]), (two, &[2])]);
    let (ticket, _) = take_append(&mut gateway).expect("a point");
    gateway.said();
    (gateway, ticket)
}

#[test]
fn a_record_that_can_never_be_made_loses_the_layer_to_blame_and_holds_up_nothing() {
    let (mut gateway, ticket) = point();
    let outcome = AppendOutcome::Unusable { layers: vec![key(1, 0, 1)], text: "part 0 is gone".into() };
    gateway.event(Event::Appended { ticket, outcome });
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1)], "T5");
    let dropped = |a: &Action| matches!(a, Action::Report { what: Report::Dropped { why: DropWhy::Unusable, .. }, .. });
    assert!(gateway.did.iter().any(|a| matches!(a, Action::DropLayer { key: k } if *k == key(1, 0, 1))));
    assert_eq!(gateway.did.iter().filter(|a| dropped(a)).count(), 1);
    assert!(gateway.target.trouble().is_none(), "the store is well");
    assert!(take_append(&mut gateway).is_none(), "a point without a member");
    // The source claims the volume anew and says the other member again, alone.
    gateway.end(LayerKind::Fuzzy, &[(key(2, 1, 1), &[2])]);
    assert_eq!(gateway.append().expect("at once").1, Verdict::Accepted);
    gateway.claim(1, 1);
    gateway.part(key(1, 3, 1), 0, 7);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 3, 1), &[7])]);
    assert_eq!(gateway.append().expect("goes on").1, Verdict::Accepted);
}

#[test]
fn a_record_that_can_never_be_made_loses_all_its_layers_if_none_is_to_blame() {
    let (mut gateway, ticket) = point();
    let outcome = AppendOutcome::Unusable { layers: Vec::new(), text: "too large".into() };
    gateway.event(Event::Appended { ticket, outcome });
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1), key(2, 1, 1)]);
    assert!(take_append(&mut gateway).is_none());
}

/// A prune that waited, and what it gives up is kept since.
#[test]
fn what_is_withdrawn_is_told_as_that_and_nothing_is_lost() {
    let mut gateway = claimed();
    let body = Body::Unpin(Unpin { pin: Slot(7) });
    gateway.event(Event::Submit { submission: 3, body: Box::new(body.clone()) });
    let (ticket, said) = take_append(&mut gateway).expect("at once");
    assert_eq!(said, body);
    gateway.did.clear();
    let outcome = AppendOutcome::Withdrawn { text: "it is kept since".into() };
    gateway.event(Event::Appended { ticket, outcome: outcome.clone() });
    let reports = gateway.did.iter().filter_map(|action| match action {
        Action::Report { what, .. } => Some(what),
        _ => None,
    });
    let reports: Vec<&Report> = reports.collect();
    assert!(matches!(&reports[..], [Report::Withdrawn { text }] if text == "it is kept since"), "{reports:?}");
    assert!(gateway.did.iter().any(|a| matches!(a, Action::Submitted { submission: 3, outcome: told } if *told == outcome)));
    assert_eq!(lost(&gateway.said()), []);
}

#[test]
fn one_part_landed_twice_with_other_content_is_lost() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.part(key(1, 0, 1), 0, 1);
    assert!(lost(&gateway.said()).is_empty(), "the same again");
    gateway.part(key(1, 0, 1), 0, 2);
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1)]);
    // Staged, and not yet published.
    let (mut gateway, _) = point();
    gateway.part(key(2, 1, 1), 0, 3);
    assert_eq!(lost(&gateway.said()), [key(2, 1, 1)]);
}

// ---- what to keep

fn keep(gateway: &mut Gateway, session: u64, keep: u32) {
    gateway.hear(session, SourceMessage::Settings(Settings { keep, span_ms: 0 }));
}

/// What was told to the store since the last time.
fn kept(gateway: &mut Gateway) -> Vec<u32> {
    let mut kept = Vec::new();
    gateway.did.retain(|a| match a {
        Action::Policy { policy, .. } => {
            kept.push(policy.keep);
            false
        }
        _ => true,
    });
    kept
}

fn resume(gateway: &mut Gateway, session: u64, term: u64, layers: &[(u64, u32)]) -> Vec<LayerFate> {
    let layers = layers.iter().map(|&(seq, parts)| HeldLayer { seq: Seq(seq), parts }).collect();
    let query = ResumeQuery { id: RequestId(3), volume: volume(1), term: Term(term), layers };
    gateway.hear(session, SourceMessage::Resume(query));
    let answer = gateway.said().into_iter().find_map(|m| match m {
        ReceiverMessage::ResumeAnswer(a) => Some(a),
        _ => None,
    });
    answer.expect("an answer").layers.into_iter().map(|l| l.fate).collect()
}

#[test]
fn what_to_keep_is_said_by_the_holder_of_a_claim_only() {
    let mut gateway = Gateway::new();
    keep(&mut gateway, 1, 5);
    keep(&mut gateway, 1, 6);
    assert!(kept(&mut gateway).is_empty(), "the position rule first");
    gateway.claim(1, 1);
    assert_eq!(kept(&mut gateway), [6], "the newest");
    keep(&mut gateway, 1, 7);
    assert_eq!(kept(&mut gateway), [7]);
    // Another run of the source greets, and looked at nothing.
    gateway.hello(2, 2, 1);
    keep(&mut gateway, 2, 1);
    resume(&mut gateway, 2, 9, &[]);
    resume(&mut gateway, 2, 0, &[]);
    assert!(kept(&mut gateway).is_empty(), "neither a wrong term nor a claim of another run");
    gateway.claim(2, 1);
    assert_eq!(kept(&mut gateway), [1]);
    keep(&mut gateway, 1, 8);
    assert!(kept(&mut gateway).is_empty(), "its claim is over");
}

#[test]
fn a_void_claim_says_nothing_about_what_to_keep_and_a_reconnect_says_it_again() {
    let mut gateway = published();
    gateway.hello(2, 2, 1);
    keep(&mut gateway, 2, 1);
    claim_having_looked_at(&mut gateway, 2, None);
    assert!(kept(&mut gateway).is_empty());
    // The holder comes back.
    gateway.hello(3, 1, 2);
    keep(&mut gateway, 3, 4);
    assert!(kept(&mut gateway).is_empty());
    resume(&mut gateway, 3, 0, &[]);
    assert_eq!(kept(&mut gateway), [4]);
}

// ---- claims

fn claim_having_looked_at(gateway: &mut Gateway, session: u64, looked: Option<Slot>) {
    let claim = Claim { volume: meta(1), looked, source: name("host") };
    gateway.hear(session, SourceMessage::Claim(ClaimRequest { id: RequestId(8), claim }));
}

/// Layer 1 of volume 1 is published in slot 2.
fn published() -> Gateway {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    assert_eq!(gateway.append().expect("a record").1, Verdict::Accepted);
    gateway.did.clear();
    gateway
}

fn verdicts(gateway: &mut Gateway) -> Vec<ClaimOutcome> {
    let verdict = |m: ReceiverMessage| match m {
        ReceiverMessage::ClaimVerdict(v) => Some(v.outcome),
        _ => None,
    };
    gateway.said().into_iter().filter_map(verdict).collect()
}

/// Somebody else claims between a source's reconnect, at which nothing of its layer was there, and the first part of that. Nobody said
/// that its term was over: it waited for credit that was given to the other, for as long as the connection stood.
#[test]
fn whose_term_ended_before_its_first_part_is_told_by_that() {
    let mut gateway = claimed();
    gateway.hear(1, SourceMessage::LayerBegin(farside_wire::LayerBegin { key: key(1, 0, 1) }));
    gateway.hello(1001, 1, 2);
    assert_eq!(resume(&mut gateway, 1001, 0, &[(1, 0)]), [landing(0, None, false)]);
    gateway.hello(2, 2, 1);
    gateway.claim(2, 1);
    gateway.said();
    let entry = farside_ledger::PartEntry { bytes: 16, footer_digest: [1; 32] };
    gateway.event(Event::PartLanded { session: SessionId(1001), key: key(1, 0, 1), part: 0, entry });
    let said = gateway.said();
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Void(void) if void.layers == [key(1, 0, 1)])), "{said:?}");
}

#[test]
fn a_claim_that_would_be_void_takes_no_slot() {
    let mut gateway = published();
    let head = gateway.state.head();
    for looked in [None, Some(Slot(0)), Some(Slot(1)), Some(Slot(700))] {
        claim_having_looked_at(&mut gateway, 1, looked);
        assert!(matches!(verdicts(&mut gateway)[..], [ClaimOutcome::Void { .. }]), "{looked:?}");
        assert!(take_append(&mut gateway).is_none(), "{looked:?}");
    }
    claim_having_looked_at(&mut gateway, 1, head);
    assert_eq!(gateway.append().expect("a record").1, Verdict::Accepted);
    assert!(matches!(verdicts(&mut gateway)[..], [ClaimOutcome::Accepted { .. }]));
}

#[test]
fn void_claims_in_the_queue_are_answered_when_their_turn_comes() {
    let mut gateway = published();
    gateway.hello(2, 2, 1);
    let head = gateway.state.head();
    claim_having_looked_at(&mut gateway, 1, head);
    claim_having_looked_at(&mut gateway, 2, None);
    claim_having_looked_at(&mut gateway, 2, head);
    assert!(verdicts(&mut gateway).is_empty(), "one after the other");
    gateway.append().expect("the first");
    let said = verdicts(&mut gateway);
    assert!(matches!(said[..], [ClaimOutcome::Accepted { .. }, ClaimOutcome::Void { .. }]), "{said:?}");
    assert_eq!(gateway.append().expect("the third").1, Verdict::Accepted);
}

#[test]
fn a_claim_whose_slot_was_taken_is_judged_anew() {
    let mut gateway = claimed();
    let head = gateway.state.head();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    let (layers, body) = take_append(&mut gateway).expect("the layer");
    let outcome = AppendOutcome::Failed { text: "nobody knows".into() };
    gateway.event(Event::Appended { ticket: layers, outcome });
    gateway.hello(2, 2, 1);
    claim_having_looked_at(&mut gateway, 2, head);
    gateway.later();
    let (ticket, claim) = take_append(&mut gateway).expect("a claim");
    assert!(matches!(claim, Body::Claim(_)), "claims go first");
    // The layer's record had come in after all.
    let (slot, prev) = (gateway.state.next_slot(), gateway.state.prev());
    let stamp = Stamp { writer: [1; 16], mono_ms: 9, wall_ms: 0 };
    let record = Record { group: GroupId([9; 16]), slot, prev, nonce: [1; 16], stamp, body };
    assert_eq!(gateway.state.apply(&record, RecordDigest([77; 32])), Verdict::Accepted);
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Collided });
    let said = verdicts(&mut gateway);
    assert_eq!(said, [ClaimOutcome::Void { reason: VoidReason::ClaimOvertaken { last_layer: slot } }]);
    assert!(take_append(&mut gateway).is_none());
}

// ---- end messages

#[test]
fn what_a_reset_reads_again_takes_the_point_from_all_later_layers() {
    let mut gateway = claimed();
    let (one, two, three) = (key(1, 0, 1), key(1, 0, 2), key(1, 0, 3));
    gateway.part(one, 0, 1);
    gateway.part(two, 0, 2);
    gateway.part(three, 0, 3);
    gateway.end(LayerKind::Fuzzy, &[(one, &[1, 9])]);
    gateway.end(LayerKind::Point, &[(two, &[2])]);
    gateway.end(LayerKind::Point, &[(three, &[3])]);
    gateway.hello(1001, 1, 2);
    let fates = resume(&mut gateway, 1001, 0, &[(1, 2), (2, 1)]);
    assert_eq!(fates, [landing(1, None, false), landing(1, None, false)], "T1");
    assert!(!gateway.did.iter().any(|a| matches!(a, Action::DropParts { key: k, .. } if *k == three)), "T7");
    // Layer 1 is read again from a disk that has moved on, and said.
    let entry = farside_ledger::PartEntry { bytes: 16, footer_digest: [5; 32] };
    gateway.event(Event::PartLanded { session: SessionId(1001), key: one, part: 1, entry });
    gateway.hear(1001, SourceMessage::EpochEnd(ending(LayerKind::Fuzzy, &[(one, &[1, 5])])));
    assert!(matches!(gateway.append(), Some((Body::Layers(l), Verdict::Accepted)) if l.members[0].key == one));
    assert!(take_append(&mut gateway).is_none(), "no point over it");
    for (layer, footer) in [(two, &[2]), (three, &[3])] {
        gateway.hear(1001, SourceMessage::EpochEnd(ending(LayerKind::Fuzzy, &[(layer, footer)])));
        assert!(matches!(gateway.append(), Some((Body::Layers(l), _)) if l.kind == LayerKind::Fuzzy));
    }
}

#[test]
fn an_end_message_must_fit_the_claim() {
    let good = ending(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    let change: [fn(&mut farside_wire::EndMember); 4] = [
        |m| m.volume_bytes *= 2,
        |m| m.volume_bytes = 0,
        |m| m.regions.insert(RegionIndex(8)),
        |m| m.whole_regions.insert(RegionIndex(1 << 60)),
    ];
    for (i, change) in change.into_iter().enumerate() {
        let mut gateway = claimed();
        gateway.part(key(1, 0, 1), 0, 1);
        let mut end = good.clone();
        change(&mut end.members[0]);
        gateway.hear(1, SourceMessage::EpochEnd(end));
        let said = gateway.said();
        let refused = |m: &ReceiverMessage| matches!(m, ReceiverMessage::Refusal(Refusal { code: RefusalCode::Protocol, .. }));
        assert!(said.iter().any(refused), "{i}: {said:?}");
        assert!(gateway.did.iter().any(|a| matches!(a, Action::CloseSession { session: SessionId(1), .. })), "{i}");
        assert!(take_append(&mut gateway).is_none(), "{i}");
    }
}

#[test]
fn a_volume_that_grew_ends_its_layers_with_its_new_size() {
    let mut gateway = claimed();
    let mut grown = meta(1);
    grown.geometry = Geometry::with_shape(2 * GRANULES * 16, 4, 2).expect("valid");
    let claim = Claim { volume: grown, looked: gateway.state.head(), source: name("host") };
    gateway.hear(1, SourceMessage::Claim(ClaimRequest { id: RequestId(8), claim }));
    assert_eq!(gateway.append().expect("a claim").1, Verdict::Accepted);
    // Said under the old claim, with the old size: void, and no reason to hang up.
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Void(_))));
    assert!(!gateway.did.iter().any(|a| matches!(a, Action::CloseSession { .. })));
    gateway.part(key(1, 2, 1), 0, 1);
    let mut end = ending(LayerKind::Fuzzy, &[(key(1, 2, 1), &[1])]);
    end.members[0].volume_bytes *= 2;
    end.members[0].regions.insert(RegionIndex(8));
    gateway.hear(1, SourceMessage::EpochEnd(end));
    assert_eq!(gateway.append().expect("a layer").1, Verdict::Accepted);
}

// ---- what costs a source nothing

/// All that may be granted, and half of what is kept back for pruning.
fn room(gateway: &mut Gateway, free_bytes: u64) {
    room_and_spare(gateway, free_bytes, free_bytes + (32 << 20));
}

fn room_and_spare(gateway: &mut Gateway, free_bytes: u64, spare_bytes: u64) {
    gateway.event(Event::Grantable { free_bytes, disk_bytes: free_bytes, spare_bytes, reserve_bytes: 64 << 20 });
}

/// Says layers of volume 1 that have no part, from this number on, until nothing is appended any more; says how many were.
fn empty_layers(gateway: &mut Gateway, from: u64, most: u64) -> u64 {
    for n in 0..most {
        gateway.end(LayerKind::Fuzzy, &[(key(1, 0, from + n), &[])]);
        match gateway.append() {
            Some((_, verdict)) => assert_eq!(verdict, Verdict::Accepted),
            None => return n,
        }
    }
    most
}

#[test]
fn records_that_bring_nothing_take_little_of_the_reserve() {
    let mut gateway = claimed();
    room(&mut gateway, 10 * 4096);
    let slices = crate::target::Limits::default().layers_max as u64;
    assert_eq!(
        empty_layers(&mut gateway, 1, 1000),
        10 + slices,
        "each takes a file; then as many as a compare may have on its way"
    );
    room(&mut gateway, 0);
    assert!(take_append(&mut gateway).is_none());
    // What landed has had its credit: its record goes, for only a new point lets an old one go.
    gateway.part(key(2, 1, 1), 0, 1);
    gateway.end(LayerKind::Point, &[(key(2, 1, 1), &[1])]);
    assert!(matches!(gateway.append(), Some((Body::Layers(l), Verdict::Accepted)) if l.kind == LayerKind::Point));
    // And a point that brings nothing would let nothing more go.
    gateway.end(LayerKind::Point, &[(key(2, 1, 2), &[])]);
    assert!(take_append(&mut gateway).is_none());
    room(&mut gateway, 1 << 20);
    assert!(matches!(gateway.append(), Some((Body::Layers(_), Verdict::Accepted))), "it was waiting");
}

/// What a full gateway waits for to get free, and what nobody else could remember, comes out of what is kept back: half of it,
/// whoever asks for more.
#[test]
fn records_that_nothing_goes_on_without_take_half_of_the_reserve_at_most() {
    let mut gateway = claimed();
    room_and_spare(&mut gateway, 0, 5 * 4096);
    for n in 0..5 {
        let head = gateway.state.head();
        claim_having_looked_at(&mut gateway, 1, head);
        assert!(matches!(gateway.append(), Some((Body::Claim(_), Verdict::Accepted))), "{n}");
    }
    let head = gateway.state.head();
    claim_having_looked_at(&mut gateway, 1, head);
    assert!(take_append(&mut gateway).is_none(), "the other half is for pruning");
    lose_track(&mut gateway, 2, 1);
    assert!(take_append(&mut gateway).is_none());
    room_and_spare(&mut gateway, 0, 1 << 20);
    assert!(matches!(gateway.append(), Some((Body::TrackingLost(_), Verdict::Accepted))), "both were waiting");
    assert!(matches!(gateway.append(), Some((Body::Claim(_), Verdict::Accepted))));
}

fn lose_track(gateway: &mut Gateway, n: u8, term: u64) {
    let report = LossReport { id: RequestId(9), volume: volume(n), term: Term(term) };
    gateway.hear(1, SourceMessage::TrackingLost(report));
}

/// Neither the host's own intent map nor its mark can be written, and the gateway is full: 4 KiB are what a loss of writes hangs
/// on.
#[test]
fn a_full_gateway_remembers_that_tracking_was_lost() {
    let mut gateway = claimed();
    room(&mut gateway, 0);
    lose_track(&mut gateway, 1, 0);
    assert!(matches!(gateway.append(), Some((Body::TrackingLost(_), Verdict::Accepted))));
    let said = gateway.said();
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::LossRecorded(r) if r.volume == volume(1))), "{said:?}");
}

/// The last pass of a host that has fallen idle took the disk to its reserve: only the point that follows lets old ones go.
#[test]
fn a_full_gateway_takes_the_point_that_a_last_pass_waits_for() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted));
    room(&mut gateway, 0);
    gateway.end(LayerKind::Point, &[(key(1, 0, 2), &[])]);
    assert!(matches!(gateway.append(), Some((Body::Layers(l), Verdict::Accepted)) if l.kind == LayerKind::Point));
}

/// A host was rebooted, and its comparing found all equal: a pass without a part, before the point for which old ones can go.
#[test]
fn a_full_gateway_takes_the_empty_pass_that_a_point_waits_for() {
    let mut gateway = claimed();
    room(&mut gateway, 0);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[])]);
    assert!(matches!(gateway.append(), Some((Body::Layers(l), Verdict::Accepted)) if l.kind == LayerKind::Fuzzy));
    // In several slices, if it was slow before it heard of that: the point waits for all of them.
    let slices = crate::target::Limits::default().layers_max as u64;
    assert_eq!(empty_layers(&mut gateway, 2, 1000), slices - 1, "more are none that it needs");
    let next = slices + 1;
    assert!(gateway.state.volume(volume(1)).is_some_and(|v| v.last_seq().0 + 1 == next));
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Point, &[(key(1, 0, 1), &[1])]);
    assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted));
    room(&mut gateway, 0);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 2), &[])]);
    gateway.end(LayerKind::Point, &[(key(1, 0, 3), &[])]);
    assert!(matches!(gateway.append(), Some((Body::Layers(l), Verdict::Accepted)) if l.kind == LayerKind::Fuzzy));
    assert!(matches!(gateway.append(), Some((Body::Layers(l), Verdict::Accepted)) if l.kind == LayerKind::Point));
}

#[test]
fn records_come_no_faster_than_they_may() {
    let mut gateway = claimed();
    let burst = crate::target::Limits::default().record_burst;
    let first = empty_layers(&mut gateway, 1, 10_000);
    assert!((burst - 2..=burst + 2).contains(&first), "{first}: a burst, of which the claims were the first");
    // Three seconds later there is room for as many as that makes, and no more.
    gateway.later();
    assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted), "it was waiting");
    let more = 1 + empty_layers(&mut gateway, first + 2, 10_000);
    assert!((148..=152).contains(&more), "{more}");
}

#[test]
fn a_layer_that_would_be_void_takes_no_slot() {
    let mut gateway = claimed();
    let head = gateway.state.head();
    let mut end = ending(LayerKind::Fuzzy, &[(key(1, 0, 1), &[])]);
    end.epoch.mono_before_ns = end.epoch.mono_after_ns + 1;
    gateway.hear(1, SourceMessage::EpochEnd(end));
    assert!(take_append(&mut gateway).is_none());
    assert_eq!(gateway.state.head(), head);
    assert_eq!(lost(&gateway.said()), [key(1, 0, 1)]);
}

/// A claimed volume of a million regions, and an end message that names every second of some of them.
fn scattered(gateway: &mut Gateway, seq: u64, ranges: u64) -> farside_wire::EpochEnd {
    if gateway.state.volume(volume(3)).is_none() {
        let mut huge = meta(3);
        huge.geometry = Geometry::with_shape(16 * 4 * 1_000_000, 4, 2).expect("valid");
        let claim = Claim { volume: huge, looked: gateway.state.head(), source: name("host") };
        gateway.hear(1, SourceMessage::Claim(ClaimRequest { id: RequestId(8), claim }));
        gateway.append().expect("a claim");
    }
    let term = gateway.state.volume(volume(3)).expect("claimed").term().0;
    let mut end = ending(LayerKind::Fuzzy, &[(key(3, term, seq), &[])]);
    end.members[0].volume_bytes = 16 * 4 * 1_000_000;
    end.members[0].regions = (0..ranges).map(|i| RegionIndex(i * 6)).collect();
    end
}

#[test]
fn what_layers_touched_takes_bounded_memory_for_ever() {
    let mut gateway = claimed();
    for seq in 1..=60 {
        let end = scattered(&mut gateway, seq, 160_000);
        gateway.hear(1, SourceMessage::EpochEnd(end));
        assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted));
    }
    let held: usize = gateway.state.layers_above(volume(3), None).map(|l| l.touched().held_bytes()).sum();
    assert!(held <= farside_ledger::TOUCHED_BYTES_MAX + 60 * 20, "{held}");
    let layers: Vec<_> = gateway.state.layers_above(volume(3), None).collect();
    assert_eq!(layers[59].touched().range_count(), 160_000, "the newest exactly");
    assert_eq!(layers[0].touched().range_count(), 1, "the oldest from first to last");
    assert!(layers[0].touched().contains(RegionIndex(159_999 * 6)) && layers[0].touched().contains(RegionIndex(0)));
}

/// An honest host whose header lies below more than is remembered exactly: were an old layer told as all between its first region
/// and its last, the host would find regions in it that it never wrote, and call itself forked.
#[test]
fn the_position_rule_is_asked_with_what_old_layers_really_touched() {
    tell(&[("L6 all between an old layer's regions is touched", "is looked up")], || {
        let mut gateway = claimed();
        for seq in 1..=30 {
            let end = scattered(&mut gateway, seq, 160_000);
            gateway.hear(1, SourceMessage::EpochEnd(end));
            assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted));
        }
        gateway.did.clear();
        let slots: Vec<Slot> = gateway.state.layers_above(volume(3), None).map(|l| l.slot).collect();
        let (mut after, mut looked_up, mut said) = (None, Vec::new(), Vec::new());
        while after != slots.last().copied() {
            let question = ReadLedger { id: RequestId(5), volume: volume(3), position: None, after };
            gateway.hear(1, SourceMessage::ReadLedger(question));
            let slice = match gateway.did.pop() {
                Some(Action::AnswerLedger { session: SessionId(1), slice, position: None }) => {
                    assert_eq!(slice.layers.len(), 1, "nobody knows how long it is");
                    looked_up.push(slice.layers[0].slot);
                    *slice
                }
                Some(Action::Send { message, .. }) => {
                    let ReceiverMessage::LedgerSlice(slice) = *message else { panic!("{message:?}") };
                    assert!(slice.layers.iter().all(|l| l.regions.range_count() == 160_000), "what is not exact is looked up");
                    said.extend(slice.layers.iter().map(|l| l.slot));
                    slice
                }
                other => panic!("{other:?}"),
            };
            after = slice.layers.last().map(|l| l.slot);
            assert_eq!(slice.more, after != slots.last().copied());
        }
        assert!(!looked_up.is_empty() && !said.is_empty());
        assert_eq!([looked_up, said].concat(), slots, "each once, the old ones first");
    });
}

#[test]
fn end_messages_far_ahead_take_bounded_memory() {
    let mut gateway = claimed();
    let most = crate::target::Limits::default().ends_bytes_max as u64 / (2 * 160_000);
    // The first never comes, so that none is published.
    for seq in 2..most + 10 {
        let end = scattered(&mut gateway, seq, 160_000);
        gateway.hear(1, SourceMessage::EpochEnd(end));
        let closed = gateway.did.iter().any(|a| matches!(a, Action::CloseSession { session: SessionId(1), .. }));
        if closed {
            assert!(seq >= most, "{seq}");
            // A new connection says the first: what came before is not lost, and all goes on.
            gateway.hello(2, 2, 1);
            let first = scattered(&mut gateway, 1, 160_000);
            gateway.hear(2, SourceMessage::EpochEnd(first));
            assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted));
            assert_eq!(gateway.append().map(|a| a.1), Some(Verdict::Accepted), "the second follows");
            return;
        }
    }
    panic!("any number of them");
}

#[test]
fn a_volume_with_endless_unreadable_places_is_refused_by_name() {
    let mut gateway = claimed();
    let most = crate::target::Limits::default().unreadable_ranges_max as u64;
    let mut end = scattered(&mut gateway, 1, most + 1);
    end.members[0].unreadable_regions = end.members[0].regions.clone();
    let key = end.members[0].key;
    gateway.hear(1, SourceMessage::EpochEnd(end));
    assert!(take_append(&mut gateway).is_none());
    let said = gateway.said();
    assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Refusal(r) if r.text.contains("unreadable"))), "{said:?}");
    assert_eq!(lost(&said), [key]);
}

#[test]
fn a_resume_about_more_layers_than_there_may_be_ends_the_connection() {
    let mut gateway = claimed();
    let layers = (1..=257).map(|seq| HeldLayer { seq: Seq(seq), parts: 0 }).collect();
    let query = ResumeQuery { id: RequestId(3), volume: volume(1), term: Term(0), layers };
    gateway.hear(1, SourceMessage::Resume(query));
    assert!(gateway.did.iter().any(|a| matches!(a, Action::CloseSession { .. })));
    assert!(!gateway.did.iter().any(|a| matches!(a, Action::DropLayer { .. })), "nothing was done for it");
}

/// A daemon is killed, and its successor connects at once. Nobody has found out that the old connection is dead, which has taken
/// all that the disk has left; what was granted to it can bring nothing any more.
#[test]
fn what_a_killed_daemon_was_granted_is_free_as_soon_as_its_successor_has_claimed() {
    tell(&[("L8 what a dead run was granted is kept", "is free at once")], || {
        let mut gateway = claimed();
        let credit_of = |gateway: &mut Gateway, to: u64| {
            let credit = |a: &Action| match a {
                Action::Send { session, message } if *session == SessionId(to) => match &**message {
                    ReceiverMessage::Credit(credit) => Some(credit.granted_bytes),
                    _ => None,
                },
                _ => None,
            };
            gateway.did.iter().rev().find_map(credit)
        };
        room(&mut gateway, 100);
        assert_eq!(credit_of(&mut gateway, 1), Some(100), "all there is");
        gateway.hello(2, 2, 1);
        gateway.claim(2, 1);
        room(&mut gateway, 100);
        assert_eq!(credit_of(&mut gateway, 2), None, "the first holds a volume still");
        gateway.claim(2, 2);
        room(&mut gateway, 100);
        assert_eq!(credit_of(&mut gateway, 2), Some(100), "what nothing can come of is free at once");
        // Should the first be alive after all, it claims anew, and has its share.
        gateway.claim(1, 1);
        room(&mut gateway, 300);
        assert_eq!(credit_of(&mut gateway, 1), Some(100), "as before");
        assert_eq!(gateway.target.granted_bytes(), 200);
    });
}

#[test]
fn many_claims_are_granted_no_more_than_one() {
    let mut gateway = Gateway::new();
    let room = || Event::Grantable { free_bytes: 1 << 30, disk_bytes: 1 << 30, spare_bytes: 1 << 30, reserve_bytes: 64 };
    gateway.event(room());
    let granted = |gateway: &mut Gateway| {
        let credit = |m| if let ReceiverMessage::Credit(c) = m { Some(c.granted_bytes) } else { None };
        gateway.said().into_iter().filter_map(credit).max()
    };
    assert_eq!(granted(&mut gateway), Some(100), "a step at first");
    for volume in [1, 2, 1] {
        gateway.claim(1, volume);
    }
    assert_eq!(granted(&mut gateway), None, "a claim brings no room");
    assert_eq!(gateway.target.granted_bytes(), 100);
    // The window grows as it is used; who uses nothing for a while keeps no more than a step of the disk from others.
    for part in 0..40 {
        gateway.event(room());
        gateway.part(key(2, 1, 1), part, 1);
    }
    gateway.event(room());
    assert!(gateway.target.granted_bytes() > 300, "{}", gateway.target.granted_bytes());
    for _ in 0..5 {
        gateway.later();
    }
    assert_eq!(gateway.target.granted_bytes(), 100);
}

// ---- what replay has forgotten

/// Volume 1 in a ledger that remembers little: a layer that nothing is left of in each of many slots, and among the oldest one of which all is left.
fn long_ago() -> Gateway {
    Memory::set(Some(Memory { every: 4, layers: 2, slots: 8 }));
    let mut gateway = claimed();
    for seq in 1..=20 {
        let member = LayerEntry {
            key: key(1, 0, seq),
            digest: [seq as u8; 32],
            parts: if seq == 3 { vec![PartEntry { bytes: 9, footer_digest: [3; 32] }] } else { Vec::new() },
            regions: [RegionIndex(if seq > 5 { 1 } else { seq % 4 })].into_iter().collect(),
            unreadable_regions: RegionSet::new(),
            volume_bytes: meta(1).geometry.volume_bytes(),
        };
        let epoch = EpochInfo { boot: BootId([1; 16]), mono_before_ns: 0, mono_after_ns: 0, wall_ms: 0 };
        let body = Body::Layers(Layers { kind: LayerKind::Fuzzy, epoch, label: None, members: vec![member] });
        let (group, slot, prev) = (gateway.state.group(), gateway.state.next_slot(), gateway.state.prev());
        let stamp = Stamp { writer: [1; 16], mono_ms: seq, wall_ms: 0 };
        let record = Record { group, slot, prev, nonce: [0; 16], stamp, body };
        let digest = record.encode().expect("small").digest;
        assert_eq!(gateway.state.apply(&record, digest), Verdict::Accepted);
    }
    Memory::set(None);
    gateway.did.clear();
    gateway
}

fn asked(gateway: &mut Gateway, position: LedgerPosition, after: Option<Slot>) -> Action {
    let question = ReadLedger { id: RequestId(5), volume: volume(1), position: Some(position), after };
    gateway.hear(1, SourceMessage::ReadLedger(question));
    gateway.did.pop().expect("an answer")
}

/// A host that was away for long is told of all that came in since, also of what replay has forgotten: it would take regions for its own
/// that others wrote.
#[test]
fn l6_what_was_forgotten_may_have_touched_anything_between() {
    tell(&[("L6 what was forgotten touched nothing", "L6: nobody says")], || {
        let mut gateway = long_ago();
        let claim = LedgerPosition { slot: Slot(0), digest: gateway.state.digest_at(Slot(0)).expect("a claim's is kept") };
        let forgotten = *gateway.state.volume(volume(1)).and_then(|volume| volume.forgotten()).expect("many");
        let (mut told, mut slots, mut after, mut more) = (RegionSet::new(), Vec::new(), None, true);
        while more {
            let Action::Send { message, .. } = asked(&mut gateway, claim, after) else { panic!("it is all known here") };
            let ReceiverMessage::LedgerSlice(slice) = *message else { panic!("{message:?}") };
            assert!(slice.ancestor);
            slice.layers.iter().for_each(|layer| told.union_with(&layer.regions));
            slots.extend(slice.layers.iter().map(|layer| layer.slot));
            (after, more) = (slice.layers.last().map(|layer| layer.slot), slice.more);
        }
        assert_eq!(after, gateway.state.head());
        let known: Vec<Slot> = gateway.state.layers_above(volume(1), None).map(|layer| layer.slot).collect();
        assert!(
            known[0] < forgotten.slot && forgotten.slot < known[1] && forgotten.term == Term(0),
            "one of which all is left, and the newest"
        );
        assert!([1, 2].iter().all(|region| told.contains(RegionIndex(*region))), "L6: nobody says what was touched: {told:?}");
        assert!(told.contains(RegionIndex(3)), "what is known of what lies below is told as well");
        assert!(slots.is_sorted() && slots.windows(2).all(|w| w[0] < w[1]), "{slots:?}");
    });
}

/// Whether it is this ledger's, only its record tells: it is neither believed nor taken for another's.
#[test]
fn l6_a_position_that_is_forgotten_is_held_against_its_record() {
    tell(&[("L6 a position that is forgotten is believed", "L6: nobody looks")], || {
        let mut gateway = long_ago();
        let slot = Slot(3);
        assert!(!gateway.state.remembers(slot));
        let position = LedgerPosition { slot, digest: RecordDigest([9; 32]) };
        match asked(&mut gateway, position, None) {
            Action::AnswerLedger { session: SessionId(1), slice, position: Some(of) } => {
                assert!(of == position && slice.ancestor && !slice.layers.is_empty());
                let rewound = slice.rewound();
                assert!(!rewound.ancestor && rewound.layers.is_empty() && !rewound.more);
            }
            other => panic!("L6: nobody looks: {other:?}"),
        }
    });
}

/// The newest of what it was told of the gateway.
fn notice(gateway: &mut Gateway) -> Option<Notice> {
    let of = |m| if let ReceiverMessage::Notice(notice) = m { Some(notice) } else { None };
    gateway.said().into_iter().rev().find_map(of)
}

fn fail(gateway: &mut Gateway) {
    let (ticket, _) = take_append(gateway).expect("an append");
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Failed { text: "away".into() } });
}

/// A source keeps the newest notice alone: it must be true of both the disk and the store.
#[test]
fn that_there_is_room_again_says_nothing_of_the_store_nor_the_reverse() {
    let mut gateway = claimed();
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    fail(&mut gateway);
    let failed = Some(Notice::StoreFailed { text: "away".into() });
    assert_eq!(notice(&mut gateway), failed);
    room(&mut gateway, 0);
    assert!(matches!(notice(&mut gateway), Some(Notice::GatewayFull { free_bytes: 0, .. })));
    room(&mut gateway, 1 << 20);
    assert_eq!(notice(&mut gateway), failed, "nothing is published yet");
    gateway.later();
    assert_eq!(gateway.append().map(|(_, verdict)| verdict), Some(Verdict::Accepted));
    assert_eq!(notice(&mut gateway), Some(Notice::Ready));

    let mut gateway = claimed();
    room(&mut gateway, 0);
    gateway.part(key(1, 0, 1), 0, 1);
    gateway.end(LayerKind::Fuzzy, &[(key(1, 0, 1), &[1])]);
    assert!(matches!(notice(&mut gateway), Some(Notice::GatewayFull { free_bytes: 0, .. })));
    fail(&mut gateway);
    assert_eq!(notice(&mut gateway), failed);
    gateway.later();
    assert_eq!(gateway.append().map(|(_, verdict)| verdict), Some(Verdict::Accepted));
    assert!(matches!(notice(&mut gateway), Some(Notice::GatewayFull { free_bytes: 0, .. })), "it has no room for all that");
}
