//! Between staged and published: how long layers wait for others, what ends that, and that nothing else changes.

use std::collections::BTreeMap;

use farside_ledger::{Body, KeptEnd, LayerKind, PartEntry, Record, Stamp, Verdict};
use farside_region::mutation::tell;
use farside_region::{GranuleSet, GroupId, LayerKey, LedgerPosition, Seq, Slot, Term};
use farside_wire::{Features, Published, ReceiverMessage, SaidEnd, SourceMessage, Staged};

use super::directed::{Gateway, Host, gateway_config, granules, key};
use crate::source::{self, SECOND};
use crate::target::{Action, AppendOutcome, Dated, Event, LandedLayer, Limits, Target, Ticket};

const CADENCE: u64 = 60 * SECOND;

fn limits() -> Limits {
    Limits { publish_every: CADENCE, ..gateway_config().limits }
}

/// Both volumes are claimed: slots 0 and 1.
fn claimed(limits: Limits) -> Gateway {
    let mut gateway = Gateway::with(limits);
    gateway.claim(1, 1);
    gateway.claim(1, 2);
    gateway.did.clear();
    gateway
}

fn layer(seq: u64) -> LayerKey {
    LayerKey { seq: Seq(seq), ..key(1, 0, 1) }
}

/// A point of the first volume is staged.
fn stage(gateway: &mut Gateway, seq: u64) {
    let footer = seq as u8;
    gateway.part(layer(seq), 0, footer);
    gateway.end(LayerKind::Point, &[(layer(seq), &[footer])]);
}

fn take(gateway: &mut Gateway) -> Option<(Ticket, Vec<Dated>)> {
    let at = gateway.did.iter().position(|did| matches!(did, Action::Append { .. }))?;
    let Action::Append { ticket, records } = gateway.did.remove(at) else { unreachable!("just seen") };
    Some((ticket, records))
}

/// The store takes all of it: the sequence numbers of the first volume's layers.
fn carry_out(gateway: &mut Gateway, ticket: Ticket, records: Vec<Dated>) -> Vec<u64> {
    let mut judged = Vec::new();
    let mut seqs = Vec::new();
    for Dated { body, .. } in records {
        if let Body::Layers(layers) = &body {
            seqs.extend(layers.members.iter().map(|member| member.key.seq.0));
        }
        let slot = gateway.state.next_slot();
        let stamp = Stamp { writer: [1; 16], mono_ms: slot.0, wall_ms: 0 };
        let record = Record { group: GroupId([9; 16]), slot, prev: gateway.state.prev(), nonce: [0; 16], stamp, body };
        let digest = record.encode().expect("small").digest;
        let verdict = gateway.state.apply(&record, digest);
        judged.push((LedgerPosition { slot, digest }, verdict));
    }
    assert!(judged.iter().all(|(_, verdict)| *verdict == Verdict::Accepted), "{judged:?}");
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Judged { records: judged } });
    seqs
}

/// What is published with the next append; nothing, if there is none.
fn published(gateway: &mut Gateway) -> Vec<u64> {
    take(gateway).map(|(ticket, records)| carry_out(gateway, ticket, records)).unwrap_or_default()
}

fn said_published(said: &[ReceiverMessage]) -> Vec<(Slot, u64)> {
    let of = |message: &ReceiverMessage| match message {
        ReceiverMessage::Published(published) => Some((published.position.slot, published.layers[0].seq.0)),
        _ => None,
    };
    said.iter().filter_map(of).collect()
}

#[test]
fn points_wait_for_others_and_are_published_together_each_in_its_slot() {
    let mut gateway = claimed(limits());
    for seq in 1..=3 {
        stage(&mut gateway, seq);
        gateway.wait(5 * SECOND);
        let said = gateway.said();
        assert!(said.iter().any(|m| matches!(m, ReceiverMessage::Staged(staged) if staged.layers == [layer(seq)])), "at once");
        assert_eq!(said_published(&said), [], "L7: nothing is published yet");
    }
    assert!(take(&mut gateway).is_none());
    gateway.wait(CADENCE - 15 * SECOND);
    let (ticket, records) = take(&mut gateway).expect("the first has waited long enough");
    let seconds: Vec<u64> = records.iter().map(|said| said.ago / SECOND).collect();
    assert_eq!(seconds, [60, 55, 50], "each is as old as it was staged");
    assert_eq!(gateway.target.staged_since().map(|since| since / SECOND), Some(0));
    assert_eq!(carry_out(&mut gateway, ticket, records), [1, 2, 3]);
    assert_eq!(said_published(&gateway.said()), [(Slot(2), 1), (Slot(3), 2), (Slot(4), 3)]);
    assert_eq!(gateway.target.staged_since(), None);
    gateway.wait(2 * CADENCE);
    assert!(take(&mut gateway).is_none(), "nothing waits");
}

/// The rest waits for its own time, which has not come: it is one publication for each object.
#[test]
fn what_leaves_the_run_of_slots_comes_with_the_next_publication() {
    let mut gateway = claimed(Limits { publish_every: SECOND, publish_layers: 1000, ..limits() });
    (1..=59).for_each(|seq| stage(&mut gateway, seq));
    gateway.wait(SECOND);
    assert_eq!(published(&mut gateway), (1..=59).collect::<Vec<_>>());
    assert_eq!(gateway.state.next_slot(), Slot(61));
    for seq in 60..=65 {
        stage(&mut gateway, seq);
        gateway.wait(SECOND / 10);
    }
    gateway.wait(SECOND / 2);
    assert_eq!(published(&mut gateway), [60, 61], "up to slot 62: one stays for where parts lie");
    assert!(take(&mut gateway).is_none());
    gateway.wait(SECOND / 5);
    assert_eq!(published(&mut gateway), [62], "slot 63 is what is left of the run");
    gateway.wait(SECOND / 2);
    assert_eq!(published(&mut gateway), [63, 64, 65]);
}

#[test]
fn a_wait_ends_when_much_waits_when_there_is_little_room_and_when_somebody_says_that_he_waits() {
    let grantable =
        |free_bytes| Event::Grantable { free_bytes, disk_bytes: free_bytes, spare_bytes: free_bytes, reserve_bytes: 0 };
    type Happens<'a> = &'a dyn Fn(&mut Gateway);
    let ends: [(&str, Limits, Happens<'_>); 5] = [
        ("bytes", Limits { publish_bytes: 3 * 16, ..limits() }, &|_| {}),
        ("layers", Limits { publish_layers: 3, ..limits() }, &|_| {}),
        ("space", limits(), &|gateway| gateway.event(grantable(999))),
        ("a source", limits(), &|gateway| gateway.hear(1, SourceMessage::Publish)),
        ("another run of it", limits(), &|gateway| gateway.hello(2, 9, 1)),
    ];
    for (what, limits, happens) in ends {
        let mut gateway = claimed(limits);
        gateway.event(grantable(1 << 30));
        stage(&mut gateway, 1);
        stage(&mut gateway, 2);
        assert!(take(&mut gateway).is_none(), "{what}");
        stage(&mut gateway, 3);
        happens(&mut gateway);
        assert_eq!(published(&mut gateway), [1, 2, 3], "{what}");
        // And it is not forgotten that the others wait.
        gateway.event(grantable(1 << 30));
        stage(&mut gateway, 4);
        assert!(take(&mut gateway).is_none(), "{what}: the next ones wait again");
    }
}

/// The claim of another run ends the term under which complete points wait.
#[test]
fn what_waits_is_published_before_another_run_of_the_source_claims() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    stage(&mut gateway, 2);
    let looked = gateway.state.head();
    gateway.hello(2, 9, 1);
    let claim = farside_ledger::Claim { volume: super::world::meta(1), looked, source: super::world::name("host") };
    let request = |looked| farside_wire::ClaimRequest {
        id: farside_wire::RequestId(3),
        claim: farside_ledger::Claim { looked, ..claim.clone() },
    };
    gateway.hear(2, SourceMessage::Claim(request(looked)));
    assert_eq!(published(&mut gateway), [1, 2]);
    let void = |m: &ReceiverMessage| matches!(m, ReceiverMessage::ClaimVerdict(v) if !matches!(v.outcome, farside_wire::ClaimOutcome::Accepted { .. }));
    assert!(gateway.said().iter().any(void), "it must look again: layers came in");
    gateway.hear(2, SourceMessage::Claim(request(gateway.state.head())));
    let (ticket, records) = take(&mut gateway).expect("the claim");
    assert!(matches!(records[..], [Dated { body: Body::Claim(_), .. }]));
    carry_out(&mut gateway, ticket, records);
    assert_eq!(gateway.state.volume(key(1, 0, 1).volume).map(|volume| volume.term()), Some(Term(4)));
    assert_eq!(gateway.state.points().len(), 2, "both stay");
}

/// What waits is tried before a claim that would drop it, as long as nothing succeeds: also by the first try after an outage; and also
/// before a claim of the same run.
#[test]
fn no_claim_drops_what_waited_for_the_end_of_an_outage() {
    for is_another_run in [true, false] {
        let mut gateway = claimed(limits());
        stage(&mut gateway, 1);
        stage(&mut gateway, 2);
        // Nor is it because the disk is nearly full: publication makes room on it as well.
        gateway.event(Event::Grantable { free_bytes: 999, disk_bytes: 999, spare_bytes: 999, reserve_bytes: 0 });
        let session = if is_another_run {
            gateway.hello(2, 9, 1);
            2
        } else {
            1
        };
        let claim = farside_ledger::Claim {
            volume: super::world::meta(1),
            looked: gateway.state.head(),
            source: super::world::name("host"),
        };
        let request = farside_wire::ClaimRequest { id: farside_wire::RequestId(3), claim };
        gateway.hear(session, SourceMessage::Claim(request));
        for _ in 0..20 {
            let (ticket, records) = take(&mut gateway).expect("tried again");
            assert!(matches!(records[0], Dated { body: Body::Layers(_), .. }), "what waits comes first");
            gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Failed { text: "away".into() } });
            gateway.later();
        }
        let all = [published(&mut gateway), published(&mut gateway)].concat();
        assert_eq!(all, [1, 2], "another run: {is_another_run}");
        assert_eq!(gateway.state.points().len(), 2);
    }
}

/// Idle groups paid for their heartbeats with what others then owed.
#[test]
fn a_heartbeat_waits_for_requests_as_points_do() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [1]);
    let position =
        farside_region::LedgerPosition { slot: Slot(2), digest: gateway.state.digest_at(Slot(2)).expect("the point's") };
    let heartbeat = farside_ledger::Heartbeat {
        members: vec![(layer(1).volume, layer(1).term)],
        position,
        t: farside_ledger::CutTime { boot: farside_region::BootId([1; 16]), mono_ns: 99, wall_ms: 0 },
    };
    gateway.event(Event::Budget { spent: true });
    gateway.hear(1, SourceMessage::Heartbeat(heartbeat));
    gateway.wait(2 * gateway_config().limits.heartbeat_record);
    assert!(take(&mut gateway).is_none(), "nothing is earned");
    gateway.event(Event::Budget { spent: false });
    let (_, records) = take(&mut gateway).expect("it is due");
    assert!(matches!(records[..], [Dated { body: Body::Heartbeat(_), .. }]), "{records:?}");
}

#[test]
fn an_append_that_fails_is_tried_in_pieces_and_one_that_collides_is_built_anew() {
    let mut gateway = claimed(limits());
    (1..=8).for_each(|seq| stage(&mut gateway, seq));
    gateway.wait(CADENCE);
    let (ticket, records) = take(&mut gateway).expect("due");
    assert_eq!(records.len(), 8);
    stage(&mut gateway, 9);
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Failed { text: "slow down".into() } });
    assert!(take(&mut gateway).is_none(), "not at once");
    gateway.later();
    let (ticket, records) = take(&mut gateway).expect("again");
    assert_eq!(records.len(), 4, "half as many");
    // A dead predecessor's write wakes up: the first two are published by it.
    foreign(&mut gateway, records.into_iter().take(2));
    gateway.said();
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Collided });
    assert_eq!(said_published(&gateway.said()), [(Slot(2), 1), (Slot(3), 2)]);
    assert_eq!(published(&mut gateway), [3, 4, 5, 6]);
    assert_eq!(published(&mut gateway), [7, 8, 9], "more at once after one that went well");
}

/// A service that takes requests and answers none holds the group's thread up as long as an attempt takes; tried again after two seconds each time, the
/// group heard nothing but for those.
#[test]
fn who_waited_long_for_a_failure_is_left_alone_for_as_long() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    gateway.wait(CADENCE);
    let (ticket, _) = take(&mut gateway).expect("due");
    let took = 1000 * crate::source::SECOND;
    gateway.wait(took);
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Failed { text: "no answer".into() } });
    // But not as long as it takes if everything that was asked for was waited for.
    gateway.wait(299 * crate::source::SECOND);
    assert!(take(&mut gateway).is_none(), "its sources are heard meanwhile");
    gateway.wait(crate::source::SECOND);
    assert_eq!(published(&mut gateway), [1]);
}

/// Another writer of this source's layers was there first.
fn foreign(gateway: &mut Gateway, records: impl Iterator<Item = Dated>) {
    for Dated { body, .. } in records {
        let (slot, prev) = (gateway.state.next_slot(), gateway.state.prev());
        let stamp = Stamp { writer: [2; 16], mono_ms: 0, wall_ms: 0 };
        let record = Record { group: GroupId([9; 16]), slot, prev, nonce: [7; 16], stamp, body };
        let digest = record.encode().expect("small").digest;
        assert_eq!(gateway.state.apply(&record, digest), Verdict::Accepted);
    }
}

/// Whoever looked for what became of his record, and found somebody else's, may fail after that.
#[test]
fn what_others_wrote_is_told_after_a_failed_append_too() {
    let mut gateway = claimed(limits());
    (1..=3).for_each(|seq| stage(&mut gateway, seq));
    gateway.wait(CADENCE);
    let (ticket, records) = take(&mut gateway).expect("due");
    foreign(&mut gateway, records.into_iter().take(2));
    gateway.said();
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Failed { text: "no answer".into() } });
    assert_eq!(said_published(&gateway.said()), [(Slot(2), 1), (Slot(3), 2)]);
    assert_eq!(gateway.target.unpublished().0, 1);
}

/// What one append uploads is bounded by bytes, too, unless one layer alone has more.
#[test]
fn an_append_names_no_more_bytes_than_it_may() {
    let mut gateway = claimed(Limits { publish_bytes: 40, ..limits() });
    (1..=5).for_each(|seq| stage(&mut gateway, seq));
    assert_eq!(published(&mut gateway), [1, 2], "32 of 40 bytes");
    assert_eq!(published(&mut gateway), [3, 4]);
    assert!(take(&mut gateway).is_none(), "the rest waits for its time");
    let mut gateway = claimed(Limits { publish_bytes: 10, ..limits() });
    (1..=2).for_each(|seq| stage(&mut gateway, seq));
    assert_eq!(published(&mut gateway), [1], "alone");
    assert_eq!(published(&mut gateway), [2]);
}

/// A layer of the second volume.
fn other(seq: u64) -> LayerKey {
    LayerKey { seq: Seq(seq), ..key(2, 1, seq) }
}

/// Many hosts on a disk that is far from full: each epoch was published at once, and paid for.
#[test]
fn a_small_share_of_much_room_ends_no_wait() {
    let (window, credit_step) = (256 << 20, 32 << 20);
    let mut gateway = claimed(Limits { credit_window: window, credit_step, ..limits() });
    gateway.event(Event::Grantable { free_bytes: window - 1, disk_bytes: 80 * window, spare_bytes: 0, reserve_bytes: 0 });
    stage(&mut gateway, 1);
    assert!(take(&mut gateway).is_none());
    gateway.event(Event::Grantable { free_bytes: 1, disk_bytes: 80 * window, spare_bytes: 0, reserve_bytes: 0 });
    assert_eq!(published(&mut gateway), [1], "others have it all");
}

/// Two volumes that are cut by turns: ledger time runs as their points were staged, so that no grid takes two for one.
#[test]
fn points_of_several_volumes_are_published_in_the_order_in_which_they_were_staged() {
    let mut gateway = claimed(limits());
    for round in 1..=2 {
        let footer = round as u8;
        gateway.part(other(round), 0, footer);
        gateway.end(LayerKind::Point, &[(other(round), &[footer])]);
        gateway.wait(5 * SECOND);
        stage(&mut gateway, round);
        gateway.wait(5 * SECOND);
    }
    gateway.wait(CADENCE - 20 * SECOND);
    let (_, records) = take(&mut gateway).expect("due");
    let ago: Vec<u64> = records.iter().map(|said| said.ago / SECOND).collect();
    assert_eq!(ago, [60, 55, 50, 45]);
}

/// What the target has its driver keep, carried out: of a layer the newest.
fn kept(gateway: &mut Gateway) -> BTreeMap<LayerKey, KeptEnd> {
    let mut kept = BTreeMap::new();
    gateway.did.retain(|did| match did {
        Action::KeepEnd { end, .. } => {
            kept.insert(end.key, KeptEnd::decode(&end.encode(1).expect("short")).expect("what was written").0);
            false
        }
        _ => true,
    });
    kept
}

/// Another process, which finds these parts (one of each layer, with that footer) and what was kept of them.
fn restarted(gateway: &mut Gateway, parts: &[(LayerKey, u8)], kept: &BTreeMap<LayerKey, KeptEnd>) {
    restarted_after(gateway, parts, kept, &BTreeMap::new());
}

/// The same, of layers that were staged so long ago; what is not named, just now.
fn restarted_after(
    gateway: &mut Gateway,
    parts: &[(LayerKey, u8)],
    kept: &BTreeMap<LayerKey, KeptEnd>,
    ago: &BTreeMap<LayerKey, u64>,
) {
    let landed = parts.iter().map(|&(key, footer)| {
        let entry = PartEntry { bytes: 16, footer_digest: [footer; 32] };
        LandedLayer {
            key,
            parts: vec![(0, entry)],
            end: kept.get(&key).cloned(),
            staged_ago: ago.get(&key).copied().unwrap_or(0),
        }
    });
    gateway.did.clear();
    let config = crate::target::Config { limits: limits(), ..gateway_config() };
    gateway.target = Target::new(config, &gateway.state, landed.collect(), &mut gateway.did);
    gateway.wait(0);
}

/// The host is gone as well: nobody says anything.
#[test]
fn what_is_staged_is_published_by_a_process_that_comes_after_without_its_source() {
    let mut gateway = claimed(limits());
    let both = |footers: u8| [(layer(u64::from(footers)), footers), (other(u64::from(footers)), footers)];
    for (footer, kind) in [(1, LayerKind::Point), (2, LayerKind::Fuzzy), (3, LayerKind::Point)] {
        let [(one, _), (two, _)] = both(footer);
        gateway.part(one, 0, footer);
        gateway.part(two, 0, footer);
        gateway.end(kind, &[(one, &[footer]), (two, &[footer])]);
    }
    let ends = kept(&mut gateway);
    assert_eq!(ends.len(), 6);
    let parts: Vec<(LayerKey, u8)> = (1..=3).flat_map(both).collect();
    restarted(&mut gateway, &parts, &ends);
    assert!(take(&mut gateway).is_none(), "they wait as before");
    gateway.wait(CADENCE);
    let seqs = published(&mut gateway);
    assert_eq!(seqs.iter().max(), Some(&3));
    assert_eq!(gateway.state.points().len(), 2, "both points, with both members");
    assert!(gateway.state.points().values().all(|point| point.members.len() == 2));
    assert_eq!(gateway.target.unpublished(), (0, 0));

    // One of a point's members was not kept, or its file is torn: the point waits for its source, and is not one of half of them.
    let mut gateway = claimed(limits());
    let mut ends = ends;
    ends.remove(&other(1));
    restarted(&mut gateway, &parts, &ends);
    gateway.wait(2 * CADENCE);
    assert_eq!(published(&mut gateway), []);
    // A claim has come in between: its volume's term is another.
    let mut gateway = claimed(limits());
    gateway.claim(1, 2);
    ends.insert(other(1), ends[&layer(1)].clone());
    restarted(&mut gateway, &parts, &ends);
    gateway.wait(2 * CADENCE);
    assert_eq!(published(&mut gateway), [], "T11");
}

/// The disk had no room for what was to be kept: it is asked for again, as it is by then, until it is of no use.
#[test]
fn what_could_not_be_kept_is_to_be_had_again_while_its_layer_waits() {
    let mut gateway = claimed(limits());
    let ask = |gateway: &Gateway, seq| gateway.target.end_to_keep(&gateway.state, &layer(seq));
    gateway.part(layer(1), 0, 1);
    assert_eq!(ask(&gateway, 1), None, "it is not staged: T1");
    stage(&mut gateway, 1);
    let first = kept(&mut gateway);
    gateway.wait(5 * SECOND);
    let (end, ago) = ask(&gateway, 1).expect("it waits");
    assert_eq!((&end, ago / SECOND), (&first[&layer(1)], 5));
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    assert_eq!(ask(&gateway, 1).expect("it waits").0.kind, LayerKind::Fuzzy, "what was taken back is not kept as a point");
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [1]);
    assert_eq!(ask(&gateway, 1), None);
}

/// The service is out of reach while points are staged, and the receiver is restarted: a grid that keeps one of each five seconds would
/// keep one of them all if they were dated by the restart.
#[test]
fn points_that_a_process_before_staged_are_dated_by_when_that_was() {
    let mut gateway = claimed(limits());
    gateway.wait(1000 * SECOND);
    for seq in 1..=3 {
        stage(&mut gateway, seq);
        gateway.wait(5 * SECOND);
    }
    let said = |gateway: &Gateway| -> Vec<u64> {
        gateway.did.iter().filter_map(|did| if let Action::KeepEnd { ago, .. } = did { Some(*ago) } else { None }).collect()
    };
    assert_eq!(said(&gateway), [0, 0, 0], "kept when it is staged");
    // What is said of it again was staged no later for that.
    gateway.end(LayerKind::Fuzzy, &[(layer(2), &[2])]);
    assert_eq!(said(&gateway).last().map(|ago| ago / SECOND), Some(10));
    let ends = kept(&mut gateway);
    let parts: Vec<(LayerKey, u8)> = (1..=3).map(|seq| (layer(seq), seq as u8)).collect();
    let ago = (1..=3).map(|seq| (layer(seq), (100 - 5 * seq) * SECOND)).collect();
    restarted_after(&mut gateway, &parts, &ends, &ago);
    let (_, records) = take(&mut gateway).expect("they have waited longer than they are to");
    let ago: Vec<u64> = records.iter().map(|said| said.ago / SECOND).collect();
    assert_eq!(ago, [95, 90, 85]);
    // A clock that went back between the first and the second dates the first too late, and no other with it.
    let ago = [(layer(1), 0), (layer(2), 90 * SECOND), (layer(3), 85 * SECOND)].into_iter().collect();
    restarted_after(&mut gateway, &parts, &ends, &ago);
    let (_, records) = take(&mut gateway).expect("due");
    let ago: Vec<u64> = records.iter().map(|said| said.ago / SECOND).collect();
    assert_eq!(ago, [90, 90, 85]);
}

/// A part of the first layer was lost and is sent again, newer than the cut above it; what was kept of that one is older than that.
#[test]
fn t1_what_was_kept_of_a_layer_counts_on_the_content_below_it_only() {
    let believed = ("what was kept of a layer is believed whatever lies below it", "nobody said that of this content");
    tell(&[believed], || {
        let mut gateway = claimed(limits());
        stage(&mut gateway, 1);
        stage(&mut gateway, 2);
        let old = kept(&mut gateway);
        // The disk was put back, or lost the first part. Sent again, as no cut any more.
        restarted(&mut gateway, &[(layer(2), 2)], &old);
        assert_eq!(published(&mut gateway), [], "T1: the first is not here");
        gateway.hello(1, 1, 1);
        gateway.part(layer(1), 0, 9);
        gateway.end(LayerKind::Fuzzy, &[(layer(1), &[9])]);
        let mut ends = old.clone();
        ends.extend(kept(&mut gateway));
        restarted(&mut gateway, &[(layer(1), 9), (layer(2), 2)], &ends);
        gateway.wait(CADENCE);
        assert_eq!(published(&mut gateway), [1], "nobody said that of this content");
        // Now it is said.
        gateway.hello(1, 1, 1);
        gateway.end(LayerKind::Fuzzy, &[(layer(2), &[2])]);
        gateway.wait(CADENCE);
        assert_eq!(published(&mut gateway), [2]);
        assert_eq!(gateway.state.points().len(), 0);
    });
}

/// Nor on top of other parts than were said.
#[test]
fn t5_what_was_kept_of_a_layer_counts_for_its_own_parts_only() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    let ends = kept(&mut gateway);
    restarted(&mut gateway, &[(layer(1), 7)], &ends);
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), []);
}

/// What a source takes back is kept as well.
#[test]
fn a_point_that_was_taken_back_stays_none_over_a_restart() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    let ends = kept(&mut gateway);
    restarted(&mut gateway, &[(layer(1), 1)], &ends);
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [1]);
    assert_eq!(gateway.state.points().len(), 0);
}

#[test]
fn a_receiver_that_stops_publishes_what_is_complete() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    gateway.part(layer(2), 0, 2);
    gateway.event(Event::Publish);
    assert_eq!(published(&mut gateway), [1]);
}

/// A budget of requests holds up publication, whatever else would end the wait; but no claim costs a point that is complete.
#[test]
fn requests_that_are_used_up_hold_publication_up_and_nothing_else() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    gateway.event(Event::Budget { spent: true });
    gateway.wait(2 * CADENCE);
    gateway.hear(1, SourceMessage::Publish);
    gateway.event(Event::Publish);
    assert!(take(&mut gateway).is_none());
    stage(&mut gateway, 2);
    assert!(gateway.said().iter().any(|m| matches!(m, ReceiverMessage::Staged(staged) if staged.layers == [layer(2)])));
    gateway.event(Event::Budget { spent: false });
    assert_eq!(published(&mut gateway), [1, 2], "at once");
    stage(&mut gateway, 3);
    gateway.event(Event::Budget { spent: true });
    gateway.hello(2, 9, 1);
    assert!(take(&mut gateway).is_none(), "a connection alone ends nothing");
    let claim =
        farside_ledger::Claim { volume: super::world::meta(1), looked: gateway.state.head(), source: super::world::name("host") };
    gateway.hear(2, SourceMessage::Claim(farside_wire::ClaimRequest { id: farside_wire::RequestId(3), claim }));
    assert_eq!(published(&mut gateway), [3]);
}

#[test]
fn where_nothing_waits_nothing_is_kept() {
    let mut gateway = claimed(gateway_config().limits);
    stage(&mut gateway, 1);
    assert!(kept(&mut gateway).is_empty());
}

/// If nobody knows which record is at fault, they are tried one by one; only what is to blame is lost.
#[test]
fn one_bad_layer_costs_the_others_of_its_append_nothing() {
    for blamed in [vec![layer(2)], Vec::new()] {
        let mut gateway = claimed(limits());
        (1..=3).for_each(|seq| stage(&mut gateway, seq));
        gateway.wait(CADENCE);
        let (ticket, _) = take(&mut gateway).expect("due");
        let told = !blamed.is_empty();
        gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Unusable { layers: blamed, text: "rotten".into() } });
        assert_eq!(published(&mut gateway), [1], "what comes before it");
        let lost =
            |said: &[ReceiverMessage]| said.iter().any(|m| matches!(m, ReceiverMessage::Lost(lost) if lost.layers == [layer(2)]));
        if told {
            assert!(lost(&gateway.said()), "T5");
        } else {
            assert!(!lost(&gateway.said()), "nobody is to blame yet");
            assert_eq!(published(&mut gateway), [2, 3], "they come together again after one that went well");
        }
    }
}

/// A cut that is given up while it waits is published as what it is then.
#[test]
fn a_point_that_is_taken_back_while_it_waits_is_none() {
    let mut gateway = claimed(limits());
    stage(&mut gateway, 1);
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    stage(&mut gateway, 2);
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [1, 2]);
    let points: Vec<u64> = gateway.state.points().keys().map(|slot| slot.0).collect();
    assert_eq!(points, [3]);
}

/// A point of both volumes is staged.
fn stage_both(gateway: &mut Gateway) {
    gateway.part(layer(1), 0, 1);
    gateway.part(other(1), 0, 2);
    gateway.end(LayerKind::Point, &[(layer(1), &[1]), (other(1), &[2])]);
}

fn dropped(gateway: &mut Gateway) -> Vec<LayerKey> {
    let of = |did: &Action| if let Action::DropLayer { key } = did { Some(*key) } else { None };
    let dropped = gateway.did.iter().filter_map(of).collect();
    gateway.did.retain(|did| of(did).is_none());
    dropped
}

/// Its layer could never be published, and counted as overdue: nothing waited for anything any more, and no heartbeat was recorded again.
#[test]
fn what_a_removed_volume_left_staged_is_given_up() {
    let mut gateway = claimed(limits());
    stage_both(&mut gateway);
    gateway.said();
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    assert_eq!(dropped(&mut gateway), [other(1)]);
    let lost = |said: &ReceiverMessage| matches!(said, ReceiverMessage::Lost(lost) if lost.layers == [other(1)]);
    assert!(gateway.said().iter().any(lost), "who has it all the same sends it again");
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [1]);
    assert_eq!(gateway.target.staged_since(), None);
    stage(&mut gateway, 2);
    assert!(take(&mut gateway).is_none(), "it waits for others");
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [2]);
}

/// A record that is on its way, or of which nobody knows whether it came, may name it.
#[test]
fn what_a_removed_volume_left_stays_while_a_record_may_name_it() {
    let mut gateway = claimed(limits());
    stage_both(&mut gateway);
    gateway.wait(CADENCE);
    let (ticket, records) = take(&mut gateway).expect("due");
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    assert_eq!(dropped(&mut gateway), []);
    carry_out(&mut gateway, ticket, records);
    assert_eq!((dropped(&mut gateway), gateway.state.points().len()), (vec![], 1), "it was published");

    let mut gateway = claimed(limits());
    stage_both(&mut gateway);
    gateway.wait(CADENCE);
    let (ticket, _) = take(&mut gateway).expect("due");
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    gateway.event(Event::Appended { ticket, outcome: AppendOutcome::Failed { text: "no answer".into() } });
    assert_eq!(dropped(&mut gateway), []);
    gateway.wait(CADENCE);
    let (ticket, records) = take(&mut gateway).expect("tried again");
    assert_eq!(dropped(&mut gateway), []);
    carry_out(&mut gateway, ticket, records);
    assert_eq!(dropped(&mut gateway), [other(1)], "no record is in doubt any more");
}

/// What a version before this one, or a kill, left of it.
#[test]
fn what_a_removed_volume_left_is_given_up_after_a_restart() {
    let mut gateway = claimed(limits());
    stage_both(&mut gateway);
    let ends = kept(&mut gateway);
    gateway.end(LayerKind::Fuzzy, &[(layer(1), &[1])]);
    gateway.wait(CADENCE);
    assert_eq!(published(&mut gateway), [1]);
    restarted(&mut gateway, &[(other(1), 2)], &ends);
    assert_eq!(dropped(&mut gateway), [other(1)]);
    assert_eq!(gateway.target.staged_since(), None);
}

#[test]
fn without_a_cadence_each_layer_is_published_alone_and_at_once() {
    let mut gateway = claimed(gateway_config().limits);
    (1..=3).for_each(|seq| stage(&mut gateway, seq));
    for seq in 1..=3 {
        assert_eq!(published(&mut gateway), [seq]);
    }
}

/// A cut of the first volume alone, staged: its layer.
fn staged_cut(host: &mut Host, footer: u8) -> LayerKey {
    host.now += SECOND;
    host.tick(&[1]);
    host.switch(vec![(1, granules(0, 1)), (2, GranuleSet::new())]);
    let one = host.read(1, footer);
    let layers: Vec<LayerKey> = host.end().members.iter().map(|member| member.key).collect();
    host.hear(ReceiverMessage::Staged(Staged { layers }));
    one
}

fn asks(host: &mut Host) -> usize {
    let all = host.said.len();
    host.said.retain(|said| !matches!(said, SourceMessage::Publish));
    all - host.said.len()
}

/// Whoever goes on only when it is published says so, once for what is staged; nobody else does.
#[test]
fn a_source_says_that_it_waits_for_publication_and_shows_both_lags() {
    let mut host = Host::streaming_to(Features::PUBLISH);
    let first = staged_cut(&mut host, 1);
    assert_eq!(asks(&mut host), 1, "its first point");
    host.tick(&[]);
    assert_eq!(asks(&mut host), 0, "said once");
    let keys = vec![first, LayerKey { volume: super::world::volume(2), term: Term(1), ..first }];
    let published = Published { position: super::directed::at(2), kind: LayerKind::Point, layers: keys };
    host.hear(ReceiverMessage::Published(published));

    staged_cut(&mut host, 2);
    assert_eq!(asks(&mut host), 0, "nothing waits");
    host.now += SECOND;
    let status = host.source.status(host.now);
    let (lag, staged) = (status.volumes[0].lag.expect("a point"), status.volumes[0].staged_lag.expect("a point"));
    assert!(staged < lag, "{staged} {lag}");
    assert_eq!(status.volumes[0].newest_point.map(|point| point.position.slot), Some(Slot(2)), "L7, L10");

    host.event(source::Event::Drain);
    assert_eq!(asks(&mut host), 1, "a planned stop");

    // A receiver that does not know the word is not told.
    let mut host = Host::streaming();
    staged_cut(&mut host, 1);
    assert_eq!(asks(&mut host), 0);
}

/// Another process of the receiver has never heard it.
#[test]
fn a_source_says_again_that_it_waits_after_a_reconnect() {
    let mut host = Host::streaming_to(Features::PUBLISH);
    let one = staged_cut(&mut host, 1);
    assert_eq!(asks(&mut host), 1, "its first point");
    host.reconnect();
    for n in [1, 2] {
        host.answer_ledger(n, Vec::new(), super::directed::current(n, u64::from(n) - 1, false), Some(1));
    }
    assert_eq!(asks(&mut host), 0, "nobody knows yet what is there");
    let members = vec![one, LayerKey { volume: super::world::volume(2), term: Term(1), ..one }];
    for (n, parts) in [(1, 1), (2, 0)] {
        let end = SaidEnd { kind: LayerKind::Point, members: members.clone() };
        host.answer_resume(n, u64::from(n) - 1, vec![(1, super::directed::landing(parts, Some(end), true))]);
        let (confirmed, position) = (Some(Term(u64::from(n) - 1)), Some(super::directed::at(1)));
        host.event(source::Event::HeaderDurable { volume: super::world::volume(n), confirmed, position });
    }
    assert_eq!(asks(&mut host), 1);
    host.tick(&[]);
    assert_eq!(asks(&mut host), 0, "said once");
}
