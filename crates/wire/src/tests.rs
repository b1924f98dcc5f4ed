//! Golden bytes, hostile input, versions.

use farside_ledger::{
    Claim, CohortCut, Consistency, CutTime, EpochInfo, Grid, Heartbeat, Label, LayerKind, PointFilter, Policy, Rule, VoidReason,
    VolumeMeta,
};
use farside_region::{
    BootId, DigestKey, Generation, Geometry, GranuleDigest, GranuleIndex, GranuleRun, KeyId, LayerKey, LedgerPosition, Name,
    RecordDigest, RegionIndex, RegionRange, RegionSet, Seal, SealMode, Seq, Slot, Term, VolumeId,
};
use proptest::prelude::*;

use super::*;

fn key() -> LayerKey {
    LayerKey { volume: VolumeId([0xaa; 16]), term: Term(3), seq: Seq(300) }
}

fn position() -> LedgerPosition {
    LedgerPosition { slot: Slot(5), digest: RecordDigest([0xbb; 32]) }
}

fn name(s: &str) -> Name {
    s.parse().expect("a name")
}

fn regions() -> RegionSet {
    let mut set = RegionSet::new();
    set.insert_range(RegionRange { start: RegionIndex(2), count: 3 });
    set.insert(RegionIndex(9));
    set
}

fn meta() -> VolumeMeta {
    VolumeMeta {
        id: VolumeId([0xaa; 16]),
        name: name("data"),
        geometry: Geometry::new(1 << 30).expect("valid"),
        digest_key: [0xcc; 32].into(),
        generation: Generation(1),
    }
}

fn sealed_claim(mode: SealMode) -> Claim {
    let seal = Seal { mode, key: KeyId([0x4b; 16]), commitment: [0xc0; 32] };
    Claim { volume: VolumeMeta { digest_key: DigestKey::Sealed(seal), ..meta() }, looked: None, source: name("host") }
}

fn epoch() -> EpochInfo {
    EpochInfo { boot: BootId([0xdd; 16]), mono_before_ns: 1000, mono_after_ns: 1001, wall_ms: -1 }
}

/// So many rules, each a minute coarser and longer.
fn grid(rules: u64) -> Grid {
    let rules: Vec<Rule> = (1..=rules).map(|n| Rule { every_ms: n * 60_000, keep_ms: n * 3_600_000 }).collect();
    rules.try_into().expect("they become coarser")
}

fn from_source() -> Vec<SourceMessage> {
    let id = RequestId(7);
    let volume = VolumeId([0xaa; 16]);
    let member = EndMember {
        key: key(),
        parts: 2,
        digest: [0xee; 32],
        regions: regions(),
        whole_regions: RegionSet::new(),
        unreadable_regions: RegionSet::new(),
        volume_bytes: 1 << 30,
    };
    let t = CutTime { boot: BootId([0xdd; 16]), mono_ns: 9, wall_ms: 10 };
    let end = EpochEnd { kind: LayerKind::Point, epoch: epoch(), members: vec![member] };
    vec![
        SourceMessage::Hello(SourceHello {
            versions: VersionRange { min: 1, max: 1 },
            features: Features(0),
            instance: InstanceId([0x11; 16]),
            connection: 1,
            source: name("host"),
            group: name("default"),
        }),
        SourceMessage::ReadLedger(ReadLedger { id, volume, position: Some(position()), after: None }),
        SourceMessage::Claim(ClaimRequest { id, claim: Claim { volume: meta(), looked: Some(Slot(4)), source: name("host") } }),
        SourceMessage::LayerBegin(LayerBegin { key: key() }),
        SourceMessage::EpochEnd(end.clone()),
        SourceMessage::Heartbeat(Heartbeat { members: vec![(volume, Term(3))], position: position(), t }),
        SourceMessage::Resume(ResumeQuery { id, volume, term: Term(3), layers: vec![HeldLayer { seq: Seq(1), parts: 2 }] }),
        SourceMessage::Digests(DigestQuery {
            id,
            volume,
            term: Term(3),
            run: GranuleRun { start: GranuleIndex(1024), count: 1024 },
        }),
        SourceMessage::Points(PointQuery { id, kind: PointQueryKind::Show { point: Slot(5) } }),
        SourceMessage::Points(PointQuery {
            id,
            kind: PointQueryKind::List { filter: filter(), below: Some(Slot(9)), limit: 300 },
        }),
        SourceMessage::Settings(Settings { keep: 10, span_ms: 86_400_000 }),
        SourceMessage::TrackingLost(LossReport { id, volume, term: Term(3) }),
        SourceMessage::Retention(Policy { grid: grid(2), ..Policy::without_grid(10, 60_000) }),
        SourceMessage::Compared(Compared { volume, term: Term(3), position: position() }),
        SourceMessage::Publish,
        SourceMessage::WrappedKey(vec![0x5a; 3]),
        SourceMessage::Claim(ClaimRequest { id, claim: sealed_claim(SealMode::EndToEnd) }),
        SourceMessage::PullBegin(PullBegin { id, have: Some(position()) }),
        SourceMessage::Pull(PullQuery {
            id,
            volume,
            region: RegionIndex(3),
            have: vec![DigestRun::Zero { granules: 1023 }, DigestRun::Data(vec![GranuleDigest([1; 16])])],
        }),
        SourceMessage::LabelledEnd(LabelledEnd { label: label(), end }),
        SourceMessage::PullFork(PullFork { id, over: Some(position()), pin: ForkPin::Pin("b".parse().expect("a name")) }),
        SourceMessage::PullFork(PullFork { id, over: None, pin: ForkPin::Leave }),
        SourceMessage::KeyWanted,
        SourceMessage::Claim(ClaimRequest { id, claim: sealed_claim(SealMode::AtRest) }),
        SourceMessage::Cohort(CohortSay::Ready { cut: [0x5c; 16] }),
        SourceMessage::Cohort(CohortSay::Held { cut: [0x5c; 16] }),
        SourceMessage::Cohort(CohortSay::HasCut { cut: [0x5c; 16], was_held: true, held_us: 300 }),
        SourceMessage::Cohort(CohortSay::Not { cut: [0x5c; 16], why: "busy".to_owned() }),
        SourceMessage::DefaultRetention(Policy::without_grid(10, 86_400_000)),
        SourceMessage::PullVolumes(PullVolumes { volumes: vec![volume] }),
        SourceMessage::RollBack(RollBackAsk { id, pin: true }),
    ]
}

fn label() -> Label {
    Label { consistency: Consistency::Application, title: "upgrade".to_owned(), hooks: "srv".to_owned() }
}

fn filter() -> PointFilter {
    PointFilter {
        volume: Some(VolumeId([0xaa; 16])),
        since_wall_ms: Some(-1),
        until_wall_ms: Some(500),
        pinned: true,
        reason: Some("data".into()),
        verified: true,
        consistent: true,
        label: Some("up".into()),
    }
}

fn from_receiver() -> Vec<ReceiverMessage> {
    let id = RequestId(7);
    let volume = VolumeId([0xaa; 16]);
    let current = CurrentVolume {
        meta: meta(),
        term: Term(3),
        last_seq: Seq(2),
        has_layers: true,
        point_due: false,
        claimant: Some(InstanceId([0x11; 16])),
        newest_point: Some(NewestPoint { position: position(), epoch: epoch() }),
        tracking_lost: Some(Slot(4)),
    };
    let point = PointInfo {
        slot: Slot(5),
        digest: RecordDigest([0xbb; 32]),
        epoch: epoch(),
        label: Some(Box::new(label())),
        ledger_time_ms: 77,
        pinned: true,
        members: vec![PointMemberInfo { name: name("data"), layer: key(), volume_bytes: 1 << 30, unreadable_regions: 0 }],
    };
    let runs =
        vec![DigestRun::Absent { granules: 1 }, DigestRun::Zero { granules: 2 }, DigestRun::Data(vec![GranuleDigest([1; 16])])];
    vec![
        ReceiverMessage::Hello(ReceiverHello { version: 1, features: Features(0), store: [0x22; 16] }),
        ReceiverMessage::LedgerSlice(LedgerSlice {
            id,
            volume,
            ancestor: true,
            layers: vec![LedgerLayer { slot: Slot(4), term: Term(3), regions: regions() }],
            more: false,
            head: Some(position()),
            current: Some(current),
        }),
        ReceiverMessage::ClaimVerdict(ClaimVerdict {
            id,
            volume,
            outcome: ClaimOutcome::Void { reason: VoidReason::ClaimOvertaken { last_layer: Slot(5) } },
        }),
        ReceiverMessage::Credit(Credit { granted_bytes: 1 << 28 }),
        ReceiverMessage::Staged(Staged { layers: vec![key()] }),
        ReceiverMessage::Published(Published { position: position(), kind: LayerKind::Fuzzy, layers: vec![key()] }),
        ReceiverMessage::Void(Void { layers: vec![key()] }),
        ReceiverMessage::Lost(Lost { layers: vec![key()] }),
        ReceiverMessage::ResumeAnswer(ResumeAnswer {
            id,
            volume,
            term: Some(Term(3)),
            last_seq: Seq(2),
            layers: vec![ResumedLayer {
                seq: Seq(3),
                fate: LayerFate::Landing {
                    parts: 1,
                    end: Some(SaidEnd { kind: LayerKind::Point, members: vec![key()] }),
                    staged: false,
                },
            }],
        }),
        ReceiverMessage::DigestAnswer(DigestAnswer { id, volume, start: GranuleIndex(0), runs }),
        ReceiverMessage::Points(PointAnswer { id, page: PointPage { points: vec![point], more: true, total: Some(300) } }),
        ReceiverMessage::Refusal(Refusal { code: RefusalCode::Store, volume: Some(volume), text: "full".into() }),
        ReceiverMessage::Notice(Notice::GatewayFull { free_bytes: 1, reserve_bytes: 2 }),
        ReceiverMessage::LossRecorded(LossRecorded { id, volume }),
        ReceiverMessage::Damage(Damage { volumes: vec![DamagedVolume { volume, segments: 300 }] }),
        ReceiverMessage::PullPoint(pull_point(regions())),
        ReceiverMessage::Pulled(PullChunk { id, part_bytes: 1 << 20, bytes: vec![0x5a; 3] }),
        ReceiverMessage::GroupKey(GroupKeyAnswer(None)),
        ReceiverMessage::GroupKey(GroupKeyAnswer(Some([0x6b; 32]))),
        ReceiverMessage::Cohort(CohortAsk::Prepare { cut: cohort_cut(), cohort: name("erp") }),
        ReceiverMessage::Cohort(CohortAsk::Hold { cut: [0x5c; 16], for_us: 20_000 }),
        ReceiverMessage::Cohort(CohortAsk::Cut { cut: [0x5c; 16] }),
        ReceiverMessage::Cohort(CohortAsk::Over { cut: [0x5c; 16], is_one: true }),
        ReceiverMessage::RollBack(RollBackAnswer {
            id,
            generation: Generation(2),
            point: Some(RollBackPoint { position: position(), epoch: epoch(), is_pinned: true }),
            points: 3,
            newest: Some(Slot(300)),
            other: Some(PullOther { name: Some(name("standby")), connected: true }),
        }),
        ReceiverMessage::RollBack(RollBackAnswer {
            id,
            generation: Generation(2),
            point: None,
            points: 0,
            newest: None,
            other: None,
        }),
    ]
}

fn cohort_cut() -> CohortCut {
    CohortCut { cohort: [0x5a; 16], cut: [0x5c; 16], groups: 3, wall_ms: 1_700_000_000_000 }
}

fn pull_point(touched: RegionSet) -> PullPoint {
    PullPoint {
        id: RequestId(7),
        position: position(),
        epoch: epoch(),
        generation: Generation(2),
        promotion: Some(Generation(2)),
        is_since: true,
        passed_over: Some(Slot(300)),
        other: Some(PullOther { name: Some(name("standby")), connected: true }),
        members: vec![PullMember { meta: meta(), volume_bytes: 1 << 30, touched: Some(touched) }],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Runs of one byte, as `xx*n`, so that ids stay readable.
fn short(bytes: &[u8]) -> String {
    bytes
        .chunk_by(|a, b| a == b)
        .map(|run| if run.len() > 3 { format!("[{:02x}*{}]", run[0], run.len()) } else { hex(run) })
        .collect()
}

#[test]
fn golden_source_messages() {
    let bytes: Vec<String> = from_source().iter().map(|m| short(&encode_payload(m).expect("fits"))).collect();
    assert_eq!(bytes, GOLDEN_SOURCE);
}

#[test]
fn golden_receiver_messages() {
    let bytes: Vec<String> = from_receiver().iter().map(|m| short(&encode_payload(m).expect("fits"))).collect();
    assert_eq!(bytes, GOLDEN_RECEIVER);
}

#[test]
fn golden_part_header() {
    let header = PartHeader { key: key(), part: 7 }.encode();
    assert_eq!(short(&header), GOLDEN_PART);
    assert_eq!(PartHeader::decode(&header), Ok(PartHeader { key: key(), part: 7 }));
}

#[test]
fn every_message_comes_back_as_it_went() {
    for message in from_source() {
        assert_eq!(decode_payload::<SourceMessage>(&encode_payload(&message).expect("fits")), Ok(message));
    }
    for message in from_receiver() {
        assert_eq!(decode_payload::<ReceiverMessage>(&encode_payload(&message).expect("fits")), Ok(message));
    }
}

#[test]
fn a_truncated_or_lengthened_message_is_refused() {
    for message in from_source() {
        let bytes = encode_payload(&message).expect("fits");
        for end in 0..bytes.len() {
            assert!(decode_payload::<SourceMessage>(&bytes[..end]).is_err(), "{message:?} cut to {end}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(decode_payload::<SourceMessage>(&longer), Err(DecodeError::TrailingBytes(1)));
    }
}

#[test]
fn an_unknown_message_is_refused_by_name() {
    let error = decode_payload::<SourceMessage>(&[200, 1]).expect_err("unknown");
    assert_eq!(error.to_string(), "a message from a source that this build does not understand");
}

#[test]
fn limits_of_messages_are_checked_when_they_are_read() {
    let too_many = GranuleRun { start: GranuleIndex(0), count: DIGEST_GRANULES_MAX + 1 };
    let beyond = GranuleRun { start: GranuleIndex(u64::MAX), count: 1 };
    for run in [too_many, beyond] {
        let query = DigestQuery { id: RequestId(1), volume: VolumeId([0; 16]), term: Term(1), run };
        let bytes = encode_payload(&SourceMessage::Digests(query)).expect("fits");
        assert!(matches!(decode_payload::<SourceMessage>(&bytes), Err(DecodeError::Limit(_))), "{run:?}");
    }
    for (rules, good) in [(8, true), (9, false)] {
        let policy = Policy { grid: grid(rules), ..Policy::without_grid(1, 0) };
        let bytes = encode_payload(&SourceMessage::Retention(policy)).expect("fits");
        assert_eq!(decode_payload::<SourceMessage>(&bytes).is_ok(), good, "{rules}");
    }
    // Cells of no time, and rules in the wrong order: nothing to divide by, nothing to guess.
    for rules in ["0100e807", "02e80701e80701", "02e80701d00f01"] {
        let bytes: Vec<u8> =
            (0..rules.len()).step_by(2).map(|at| u8::from_str_radix(&rules[at..at + 2], 16).expect("hex")).collect();
        let message = decode_payload::<SourceMessage>(&[&[11, 1, 0], bytes.as_slice()].concat());
        assert_eq!(message.is_ok(), rules.starts_with("02e80701d0"), "{rules}");
    }
    for (layers, good) in [(RESUME_LAYERS_MAX, true), (RESUME_LAYERS_MAX + 1, false)] {
        let layers = (0..layers as u64).map(|seq| HeldLayer { seq: Seq(seq), parts: 1 }).collect();
        let query = ResumeQuery { id: RequestId(1), volume: VolumeId([0; 16]), term: Term(1), layers };
        let bytes = encode_payload(&SourceMessage::Resume(query)).expect("fits");
        assert_eq!(decode_payload::<SourceMessage>(&bytes).is_ok(), good);
    }
    let text = "x".repeat(TEXT_BYTES_MAX + 1);
    let refusal = ReceiverMessage::Refusal(Refusal { code: RefusalCode::Store, volume: None, text });
    let bytes = encode_payload(&refusal).expect("fits");
    assert!(matches!(decode_payload::<ReceiverMessage>(&bytes), Err(DecodeError::Limit(_))));
    let runs = vec![DigestRun::Zero { granules: u64::MAX }, DigestRun::Zero { granules: 2 }];
    let (id, volume, start) = (RequestId(1), VolumeId([0; 16]), GranuleIndex(0));
    let answer = ReceiverMessage::DigestAnswer(DigestAnswer { id, volume, start, runs });
    let bytes = encode_payload(&answer).expect("fits");
    assert!(matches!(decode_payload::<ReceiverMessage>(&bytes), Err(DecodeError::Limit(_))));
}

#[test]
fn a_hold_is_bounded_by_whoever_reads_of_it() {
    let hold = |for_us| ReceiverMessage::Cohort(CohortAsk::Hold { cut: [1; 16], for_us });
    let back = |message: &ReceiverMessage| decode_payload::<ReceiverMessage>(&encode_payload(message).expect("fits"));
    assert_eq!(back(&hold(COHORT_HOLD_US_MAX)), Ok(hold(COHORT_HOLD_US_MAX)));
    assert_eq!(back(&hold(COHORT_HOLD_US_MAX + 1)), Err(DecodeError::Limit("the time of a hold")));
    let not = SourceMessage::Cohort(CohortSay::Not { cut: [1; 16], why: "x".repeat(TEXT_BYTES_MAX + 1) });
    let read = decode_payload::<SourceMessage>(&encode_payload(&not).expect("fits"));
    assert_eq!(read, Err(DecodeError::Limit("the reason why nothing is cut")));
}

#[test]
fn what_is_asked_and_answered_on_the_way_back_is_bounded() {
    let ask = |have: Vec<DigestRun>| {
        let query = PullQuery { id: RequestId(1), volume: VolumeId([0; 16]), region: RegionIndex(0), have };
        decode_payload::<SourceMessage>(&encode_payload(&SourceMessage::Pull(query)).expect("fits"))
    };
    assert!(ask(vec![DigestRun::Zero { granules: PULL_GRANULES_MAX }]).is_ok());
    let too_many = vec![DigestRun::Zero { granules: PULL_GRANULES_MAX }, DigestRun::Data(vec![GranuleDigest([1; 16])])];
    let beyond = vec![DigestRun::Zero { granules: u64::MAX }, DigestRun::Zero { granules: 2 }];
    for wrong in [vec![], too_many, beyond, vec![DigestRun::Absent { granules: 1 }], vec![DigestRun::Unreadable { granules: 1 }]]
    {
        assert!(matches!(ask(wrong.clone()), Err(DecodeError::Limit(_))), "{wrong:?}");
    }
    let told = |message| decode_payload::<ReceiverMessage>(&encode_payload(&message).expect("fits"));
    let chunk = |part_bytes, bytes| ReceiverMessage::Pulled(PullChunk { id: RequestId(1), part_bytes, bytes: vec![1; bytes] });
    assert!(told(chunk(PULL_ANSWER_BYTES_MAX, PULL_CHUNK_BYTES_MAX)).is_ok());
    assert!(matches!(told(chunk(PULL_ANSWER_BYTES_MAX + 1, 0)), Err(DecodeError::Limit(_))));
    assert!(matches!(told(chunk(1, PULL_CHUNK_BYTES_MAX + 1)), Err(DecodeError::Limit(_))));
    for (ranges, good) in [(PULL_RANGES_MAX, true), (PULL_RANGES_MAX + 1, false)] {
        let mut set = RegionSet::new();
        (0..ranges as u64).for_each(|i| set.insert(RegionIndex(i * 2)));
        assert_eq!(told(ReceiverMessage::PullPoint(pull_point(set))).is_ok(), good, "{ranges}");
    }
}

fn ending(members: Vec<EndMember>) -> Result<SourceMessage, DecodeError> {
    let end = EpochEnd { kind: LayerKind::Point, epoch: epoch(), members };
    decode_payload(&encode_payload(&SourceMessage::EpochEnd(end)).expect("fits"))
}

fn member(volume: u8) -> EndMember {
    EndMember {
        key: LayerKey { volume: VolumeId([volume; 16]), ..key() },
        parts: 1,
        digest: [0; 32],
        regions: regions(),
        whole_regions: RegionSet::new(),
        unreadable_regions: RegionSet::new(),
        volume_bytes: 1 << 30,
    }
}

#[test]
fn an_epoch_has_a_bounded_number_of_members_each_volume_once() {
    let members = |count: usize| (0..count).map(|n| member(n as u8)).collect::<Vec<_>>();
    assert!(ending(members(END_MEMBERS_MAX)).is_ok());
    for wrong in [members(0), members(END_MEMBERS_MAX + 1), vec![member(1), member(2), member(1)]] {
        let count = wrong.len();
        assert!(matches!(ending(wrong), Err(DecodeError::Limit(_))), "{count}");
    }
    // Another layer of the same volume is no other member.
    let mut next = member(1);
    next.key.seq = Seq(301);
    assert!(matches!(ending(vec![member(1), next]), Err(DecodeError::Limit(_))));
}

#[test]
fn an_epoch_has_a_bounded_number_of_ranges_in_all_its_sets() {
    let ranges = |count: usize| {
        let mut set = RegionSet::new();
        (0..count as u64).for_each(|i| set.insert(RegionIndex(i * 2)));
        set
    };
    let third = END_RANGES_MAX / 3;
    let rest = END_RANGES_MAX - 2 * third - 1;
    let (mut one, two) = (member(1), EndMember { regions: ranges(1), ..member(2) });
    (one.regions, one.whole_regions, one.unreadable_regions) = (ranges(third), ranges(third), ranges(rest));
    assert!(ending(vec![one.clone(), two.clone()]).is_ok());
    one.unreadable_regions = ranges(rest + 1);
    assert!(matches!(ending(vec![one, two]), Err(DecodeError::Limit(_))));
}

#[test]
fn a_message_that_no_frame_holds_is_not_encoded() {
    let layers = vec![key(); 60_000];
    let message = ReceiverMessage::Staged(Staged { layers });
    assert!(matches!(encode_payload(&message), Err(EncodeError::TooLong(_))));
}

/// Five hundred points of as many volumes as a point may hold, with the longest names and numbers.
#[test]
fn any_points_are_listed_page_by_page_in_frames_that_hold_them() {
    let member = PointMemberInfo {
        name: name(&"n".repeat(64)),
        layer: LayerKey { volume: VolumeId([255; 16]), term: Term(u64::MAX), seq: Seq(u64::MAX) },
        volume_bytes: u64::MAX,
        unreadable_regions: u64::MAX,
    };
    let info = |slot: u64| PointInfo {
        slot: Slot(u64::MAX - slot),
        digest: RecordDigest([255; 32]),
        epoch: EpochInfo { boot: BootId([255; 16]), mono_before_ns: u64::MAX, mono_after_ns: u64::MAX, wall_ms: i64::MIN },
        label: Some(Box::new(Label::new(Consistency::Crash, &"t".repeat(256), &"h".repeat(256)))),
        ledger_time_ms: u64::MAX,
        pinned: true,
        members: vec![member.clone(); END_MEMBERS_MAX],
    };
    let all: Vec<PointInfo> = (0..500).map(info).collect();
    let mut listed = Vec::new();
    loop {
        let page = PointPage::of(all[listed.len()..].iter().cloned(), 500);
        let more = page.more;
        assert!(!page.points.is_empty());
        listed.extend(page.points.clone());
        let answer = encode_payload(&ReceiverMessage::Points(PointAnswer { id: RequestId(u64::MAX), page })).expect("fits");
        assert!(answer.len() <= PointPage::BYTES_MAX + 100, "{}", answer.len());
        if !more {
            break;
        }
    }
    assert_eq!(listed, all);
    let long = PointFilter { reason: Some("x".repeat(TEXT_BYTES_MAX + 1)), ..PointFilter::default() };
    let kind = PointQueryKind::List { filter: long, below: None, limit: 1 };
    let bytes = encode_payload(&SourceMessage::Points(PointQuery { id: RequestId(1), kind })).expect("fits");
    assert!(matches!(decode_payload::<SourceMessage>(&bytes), Err(DecodeError::Limit(_))));
    let few = PointPage::of(all.iter().cloned(), 2);
    assert_eq!((few.points.len(), few.more), (2, true));
    assert_eq!(PointPage::of(Vec::new(), 2), PointPage::default());
}

#[test]
fn the_largest_answers_fit_a_frame() {
    let digests = vec![GranuleDigest([0xff; 16]); DIGEST_GRANULES_MAX as usize];
    let answer = DigestAnswer {
        id: RequestId(u64::MAX),
        volume: VolumeId([0; 16]),
        start: GranuleIndex(u64::MAX >> 1),
        runs: vec![DigestRun::Data(digests)],
    };
    assert!(encode_payload(&ReceiverMessage::DigestAnswer(answer)).is_ok());
}

#[test]
fn a_part_header_that_is_not_ours_is_refused_by_name() {
    let good = PartHeader { key: key(), part: 7 }.encode();
    let reseal = |mut bytes: [u8; PART_HEADER_BYTES]| {
        let checksum = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    };
    let mut bad = good;
    bad[0] = b'X';
    assert_eq!(PartHeader::decode(&bad), Err(PartHeaderError::Magic));
    let mut bad = good;
    bad[20] ^= 1;
    assert_eq!(PartHeader::decode(&bad), Err(PartHeaderError::Checksum));
    let mut bad = good;
    bad[4] = 2;
    assert_eq!(PartHeader::decode(&reseal(bad)), Err(PartHeaderError::Version(2)));
    let mut bad = good;
    bad[6] = 1;
    assert_eq!(PartHeader::decode(&reseal(bad)), Err(PartHeaderError::Flags));
}

#[test]
fn versions_meet_at_the_newest_common_one_or_are_refused() {
    let range = |min, max| VersionRange { min, max };
    assert_eq!(range(1, 4).negotiate(range(2, 3)), Ok(3));
    assert_eq!(range(1, 1).negotiate(range(1, 9)), Ok(1));
    for peer in [range(5, 9), range(0, 0), range(3, 2)] {
        assert!(matches!(range(1, 4).negotiate(peer), Err(DecodeError::Version { .. })), "{peer:?}");
    }
}

/// The greeting of a later version says which that is, whatever else it has.
#[test]
fn a_greeting_of_a_later_version_is_refused_by_its_version() {
    let hello = |max| {
        SourceMessage::Hello(SourceHello {
            versions: VersionRange { min: 1, max },
            features: Features(0),
            instance: InstanceId([0x11; 16]),
            connection: 1,
            source: name("host"),
            group: name("default"),
        })
    };
    let decode = |bytes: &[u8]| decode_payload::<SourceMessage>(bytes);
    let later = encode_payload(&hello(2)).expect("encoded");
    assert_eq!(later[..3], [0, 1, 2], "the variant and the versions");
    assert_eq!(decode(&later).expect("it is as ours"), hello(2));
    let refused = |bytes: &[u8]| matches!(decode(bytes), Err(DecodeError::Version { theirs, .. }) if theirs.max == 2);
    let more = [&later[..], &[5, 6, 7]].concat();
    assert!(refused(&more) && refused(&later[..9]), "it has more, or other fields");
    // What is no greeting, or is one of a version that is known, is what it was.
    let ours = encode_payload(&hello(1)).expect("encoded");
    assert_eq!(decode(&[&ours[..], &[5]].concat()), Err(DecodeError::TrailingBytes(1)));
    assert!(matches!(decode(&ours[..9]), Err(DecodeError::Unknown(_))) && matches!(decode(&[]), Err(DecodeError::Unknown(_))));
    assert!(matches!(decode(&[1, 1, 2]), Err(DecodeError::Unknown(_))), "another message");
}

/// A message that is in a log is in a backup of that.
#[test]
fn a_key_is_in_no_text() {
    let text = format!("{:?}", ReceiverMessage::GroupKey(GroupKeyAnswer(Some([0x6b; 32]))));
    assert!(!text.contains("107") && !text.to_lowercase().contains("6b6b") && text.contains("a key"), "{text}");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode_payload::<SourceMessage>(&bytes);
        let _ = decode_payload::<ReceiverMessage>(&bytes);
    }

    #[test]
    fn flipped_bytes_never_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (sources, receivers) = (from_source(), from_receiver());
        let which = which.index(sources.len() + receivers.len());
        if which < sources.len() {
            let mut bytes = encode_payload(&sources[which]).expect("fits").to_vec();
            let i = at.index(bytes.len());
            bytes[i] = value;
            let _ = decode_payload::<SourceMessage>(&bytes);
        } else {
            let mut bytes = encode_payload(&receivers[which - sources.len()]).expect("fits").to_vec();
            let i = at.index(bytes.len());
            bytes[i] = value;
            let _ = decode_payload::<ReceiverMessage>(&bytes);
        }
    }

    #[test]
    fn random_part_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), PART_HEADER_BYTES)) {
        let bytes: [u8; PART_HEADER_BYTES] = bytes.try_into().expect("that many");
        prop_assert!(PartHeader::decode(&bytes).is_err());
    }
}

const GOLDEN_SOURCE: [&str; 31] = [
    "00010100[11*16]0104686f73740764656661756c74",
    "0107[aa*16]0105[bb*32]00",
    "0207[aa*16]0464617461[80*4]040c16[cc*32]01010404686f7374",
    "03[aa*16]03ac02",
    "0400[dd*16]e807e9070101[aa*16]03ac0202[ee*32]02020304010000[80*4]04",
    "0501[aa*16]0305[bb*32][dd*16]0914",
    "0607[aa*16]03010102",
    "0707[aa*16]0380088008",
    "08070105",
    "08070001[aa*16]010101e807010104646174610101010275700109ac02",
    "090a80b89929",
    "0a07[aa*16]03",
    "0b0ae0d40302e0d40380dddb01c0a90780bab703",
    "0c[aa*16]0305[bb*32]",
    "0d",
    "0e035a5a5a",
    "0207[aa*16]0464617461[80*4]040c16[00*32]01[4b*16][c0*32]010004686f7374",
    "0f070105[bb*32]",
    "1007[aa*16]030201ff0703[01*17]",
    "110107757067726164650373727600[dd*16]e807e9070101[aa*16]03ac0202[ee*32]02020304010000[80*4]04",
    "12070105[bb*32]010162",
    "12070000",
    "13",
    "0207[aa*16]0464617461[80*4]040c16[00*32]02[4b*16][c0*32]010004686f7374",
    "1400[5c*16]",
    "1401[5c*16]",
    "1402[5c*16]01ac02",
    "1403[5c*16]0462757379",
    "150a80b8992900",
    "1601[aa*16]",
    "170701",
];
const GOLDEN_RECEIVER: [&str; 25] = [
    "000100[22*16]",
    "0107[aa*16]010104030202030401000105[bb*32]01[aa*16]0464617461[80*4]040c16[cc*32]010302010001[11*16]0105[bb*32][dd*16]e807e907010104",
    "0207[aa*16]010005",
    "03[80*4]01",
    "0401[aa*16]03ac02",
    "0505[bb*32]0101[aa*16]03ac02",
    "0601[aa*16]03ac02",
    "0701[aa*16]03ac02",
    "0807[aa*16]01030201030101010001[aa*16]03ac0200",
    "0907[aa*16]00030001010203[01*17]",
    "0a070105[bb*32][dd*16]e807e9070101010775706772616465037372764d01010464617461[aa*16]03ac02[80*4]04000101ac02",
    "0b0401[aa*16]0466756c6c",
    "0c010102",
    "0d07[aa*16]",
    "0e01[aa*16]ac02",
    "0f0705[bb*32][dd*16]e807e907010201020101ac020101077374616e6462790101[aa*16]0464617461[80*4]040c16[cc*32]01[80*4]04010202030401",
    "1007808040035a5a5a",
    "1100",
    "1101[6b*32]",
    "1200[5a*16][5c*16]0380a0abfef96203657270",
    "1201[5c*16]a09c01",
    "1202[5c*16]",
    "1203[5c*16]01",
    "1307020105[bb*32][dd*16]e807e90701010301ac020101077374616e64627901",
    "130702[00*4]",
];
const GOLDEN_PART: &str = "4653505401000000[aa*16]03[00*7]2c01[00*6]07000000999074c6";
