//! What source and receiver say to each other, and the header in front of a part.

use farside_ledger::{Claim, CutTime, Grid, Heartbeat, LayerKind, PointFilter, Policy, VoidReason};
use farside_region::{
    BootId, Generation, GranuleDigest, GranuleIndex, GranuleRun, LayerKey, LedgerPosition, RecordDigest, RegionSet, Seq, Slot,
    Term,
};
use farside_wire::*;

use super::ledger::{epoch, label, meta, name, regions, volume};
use super::{no_seal, reads_back, small};
use crate::engine::{Memory, Outcome, Target};

/// A list that claims to be long is given at most a megabyte before its first element.
const MESSAGE: Memory = Memory { fixed_bytes: 2 << 20, bytes_per_byte: 64 };

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "source-message",
        what: "a message from a source, at the receiver",
        seeds: || from_source().iter().map(|m| encode_payload(m).expect("it fits").to_vec()).collect(),
        seal: no_seal,
        words: &[],
        bytes_max: 4 << 10,
        memory: MESSAGE,
        decode: message::<SourceMessage>,
    },
    Target {
        name: "receiver-message",
        what: "a message from a receiver, at the source",
        seeds: || from_receiver(1).iter().map(|m| encode_payload(m).expect("it fits").to_vec()).collect(),
        seal: no_seal,
        words: &[],
        bytes_max: 4 << 10,
        memory: MESSAGE,
        decode: message::<ReceiverMessage>,
    },
    Target {
        name: "part-header",
        what: "the header of a part's stream, at the receiver",
        seeds: || vec![PartHeader { key: key(1, 3, 300), part: 7 }.encode().to_vec()],
        seal: |bytes| seal_header(bytes),
        words: &[b"FSPT"],
        bytes_max: PART_HEADER_BYTES,
        memory: small(1),
        decode: header,
    },
];

fn key(n: u8, term: u64, seq: u64) -> LayerKey {
    LayerKey { volume: volume(n), term: Term(term), seq: Seq(seq) }
}

fn position(slot: u64) -> LedgerPosition {
    LedgerPosition { slot: Slot(slot), digest: RecordDigest([0xbb; 32]) }
}

/// One of each, about volumes 1 and 2 as the machines' driver knows them.
pub(super) fn from_source() -> Vec<SourceMessage> {
    let (id, of) = (RequestId(1), volume(1));
    let member = |n, seq| EndMember {
        key: key(n, u64::from(n) - 1, seq),
        parts: 1,
        digest: [0xee; 32],
        regions: regions(&[0, 1, 5]),
        whole_regions: regions(&[0]),
        unreadable_regions: regions(&[5]),
        volume_bytes: meta(n).geometry.volume_bytes(),
    };
    let t = CutTime { boot: BootId([5; 16]), mono_ns: 9, wall_ms: 10 };
    let minute = std::time::Duration::from_secs(60);
    let filter = PointFilter {
        volume: Some(of),
        since_wall_ms: Some(-5),
        until_wall_ms: Some(1 << 40),
        pinned: true,
        reason: Some("upgrade".into()),
        verified: false,
        consistent: true,
        label: Some("up".into()),
    };
    let list = PointQueryKind::List { filter, below: Some(Slot(9)), limit: 3 };
    vec![
        SourceMessage::Hello(SourceHello {
            versions: VersionRange::OURS,
            features: Features(0),
            instance: InstanceId([0x11; 16]),
            connection: 1,
            source: name("host"),
            group: name("db"),
        }),
        SourceMessage::ReadLedger(ReadLedger { id, volume: of, position: Some(position(1)), after: None }),
        SourceMessage::Claim(ClaimRequest { id, claim: Claim { volume: meta(1), looked: None, source: name("host") } }),
        SourceMessage::Claim(ClaimRequest { id, claim: Claim { volume: meta(2), looked: Some(Slot(0)), source: name("host") } }),
        SourceMessage::LayerBegin(LayerBegin { key: key(1, 0, 1) }),
        SourceMessage::EpochEnd(EpochEnd { kind: LayerKind::Point, epoch: epoch(), members: vec![member(1, 1), member(2, 1)] }),
        SourceMessage::LabelledEnd(LabelledEnd {
            label: label(),
            end: EpochEnd { kind: LayerKind::Point, epoch: epoch(), members: vec![member(1, 1)] },
        }),
        SourceMessage::EpochEnd(EpochEnd { kind: LayerKind::Fuzzy, epoch: epoch(), members: vec![member(1, 1)] }),
        SourceMessage::Heartbeat(Heartbeat { members: vec![(of, Term(0))], position: position(1), t }),
        SourceMessage::Resume(ResumeQuery { id, volume: of, term: Term(0), layers: vec![HeldLayer { seq: Seq(1), parts: 2 }] }),
        SourceMessage::Digests(DigestQuery {
            id,
            volume: of,
            term: Term(0),
            run: GranuleRun { start: GranuleIndex(4), count: 8 },
        }),
        SourceMessage::Points(PointQuery { id, kind: PointQueryKind::Show { point: Slot(5) } }),
        SourceMessage::Points(PointQuery { id, kind: list }),
        SourceMessage::Settings(Settings { keep: 10, span_ms: 86_400_000 }),
        SourceMessage::Retention(Policy { grid: Grid::of([(minute, 60 * minute)]), ..Policy::without_grid(10, 86_400_000) }),
        SourceMessage::TrackingLost(LossReport { id, volume: of, term: Term(0) }),
        SourceMessage::Compared(Compared { volume: of, term: Term(0), position: position(5) }),
        SourceMessage::Publish,
        SourceMessage::KeyWanted,
        SourceMessage::Cohort(CohortSay::Ready { cut: [2; 16] }),
        SourceMessage::Cohort(CohortSay::HasCut { cut: [2; 16], was_held: true, held_us: 300 }),
        SourceMessage::Cohort(CohortSay::Not { cut: [2; 16], why: "busy".to_owned() }),
        SourceMessage::DefaultRetention(Policy::without_grid(10, 86_400_000)),
        SourceMessage::PullVolumes(PullVolumes { volumes: vec![of] }),
        SourceMessage::RollBack(RollBackAsk { id, pin: true }),
    ]
}

/// One of each, and of each variant within, about one volume.
pub(super) fn from_receiver(n: u8) -> Vec<ReceiverMessage> {
    let (id, of) = (RequestId(1), volume(n));
    let current = CurrentVolume {
        meta: meta(n),
        term: Term(0),
        last_seq: Seq(2),
        has_layers: true,
        point_due: false,
        claimant: Some(InstanceId([0x11; 16])),
        newest_point: Some(NewestPoint { position: position(5), epoch: epoch() }),
        tracking_lost: Some(Slot(4)),
    };
    let slice = |layers, more, current| {
        let head = Some(position(5));
        ReceiverMessage::LedgerSlice(LedgerSlice { id, volume: of, ancestor: true, layers, more, head, current })
    };
    let layer = LedgerLayer { slot: Slot(4), term: Term(0), regions: regions(&[1, 2]) };
    let member = PointMemberInfo { name: name("v1"), layer: key(n, 0, 1), volume_bytes: 512, unreadable_regions: 0 };
    let point = PointInfo {
        label: Some(Box::new(label())),
        slot: Slot(5),
        digest: RecordDigest([0xbb; 32]),
        epoch: epoch(),
        ledger_time_ms: 77,
        pinned: true,
        members: vec![member],
    };
    let verdict = |outcome| ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume: of, outcome });
    let resumed = |fate| {
        let layers = vec![ResumedLayer { seq: Seq(1), fate }];
        ReceiverMessage::ResumeAnswer(ResumeAnswer { id, volume: of, term: Some(Term(5)), last_seq: Seq(0), layers })
    };
    let end = Some(SaidEnd { kind: LayerKind::Point, members: vec![key(n, 5, 1)] });
    let runs = vec![
        DigestRun::Absent { granules: 1 },
        DigestRun::Zero { granules: 2 },
        DigestRun::Unreadable { granules: 1 },
        DigestRun::Data(vec![GranuleDigest([1; 16]); 4]),
    ];
    vec![
        ReceiverMessage::Hello(ReceiverHello { version: 1, features: Features(0), store: [0x22; 16] }),
        slice(Vec::new(), false, None),
        slice(vec![layer.clone()], false, Some(current.clone())),
        slice(vec![LedgerLayer { regions: RegionSet::new(), ..layer }], true, Some(current)),
        verdict(ClaimOutcome::Accepted { position: position(5) }),
        verdict(ClaimOutcome::Void { reason: VoidReason::ClaimOvertaken { last_layer: Slot(5) } }),
        ReceiverMessage::Credit(Credit { granted_bytes: 1 << 28 }),
        ReceiverMessage::Staged(Staged { layers: vec![key(n, 5, 1)] }),
        ReceiverMessage::Published(Published { position: position(6), kind: LayerKind::Fuzzy, layers: vec![key(n, 5, 1)] }),
        ReceiverMessage::Published(Published { position: position(7), kind: LayerKind::Point, layers: vec![key(n, 5, 2)] }),
        ReceiverMessage::Void(Void { layers: vec![key(n, 5, 1)] }),
        ReceiverMessage::Lost(Lost { layers: vec![key(n, 5, 1)] }),
        resumed(LayerFate::Landing { parts: 1, end, staged: false }),
        resumed(LayerFate::Published { position: position(6), kind: LayerKind::Fuzzy }),
        ReceiverMessage::DigestAnswer(DigestAnswer { id, volume: of, start: GranuleIndex(0), runs }),
        ReceiverMessage::Points(PointAnswer { id, page: PointPage { points: vec![point], more: true, total: Some(9) } }),
        ReceiverMessage::Refusal(Refusal { code: RefusalCode::Store, volume: Some(of), text: "full".into() }),
        ReceiverMessage::Refusal(Refusal { code: RefusalCode::Protocol, volume: None, text: "no".into() }),
        ReceiverMessage::Notice(Notice::GatewayFull { free_bytes: 1, reserve_bytes: 2 }),
        ReceiverMessage::Notice(Notice::Ready),
        ReceiverMessage::LossRecorded(LossRecorded { id, volume: of }),
        ReceiverMessage::Damage(Damage { volumes: vec![DamagedVolume { volume: of, segments: 2 }] }),
        ReceiverMessage::Damage(Damage::default()),
        ReceiverMessage::Pulled(PullChunk { id: RequestId(1), part_bytes: 9, bytes: vec![7; 3] }),
        ReceiverMessage::GroupKey(GroupKeyAnswer(Some([n; 32]))),
        ReceiverMessage::RollBack(RollBackAnswer {
            id,
            generation: Generation(2),
            point: Some(RollBackPoint { position: position(5), epoch: epoch(), is_pinned: true }),
            points: 2,
            newest: Some(Slot(6)),
            other: Some(PullOther { name: Some(name("standby")), connected: true }),
        }),
    ]
}

fn message<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Outcome {
    match decode_payload::<M>(bytes) {
        Err(error) => Outcome::refused(error),
        Ok(message) => {
            reads_back(&message, || decode_payload(&encode_payload(&message).ok()?).ok());
            Outcome::accepted((std::mem::discriminant(&message), bytes.len().ilog2()))
        }
    }
}

fn seal_header(bytes: &mut [u8]) {
    if bytes.len() == PART_HEADER_BYTES {
        let sum = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_le_bytes());
    }
}

fn header(bytes: &[u8]) -> Outcome {
    let Ok(whole) = <&[u8; PART_HEADER_BYTES]>::try_from(bytes) else { return Outcome::refused("not as long as a header") };
    match PartHeader::decode(whole) {
        Err(error) => Outcome::refused(error),
        Ok(header) => {
            assert_eq!(header.encode(), *whole, "one header, two ways to write it");
            Outcome::accepted(())
        }
    }
}
