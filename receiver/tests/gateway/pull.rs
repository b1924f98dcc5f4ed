//! A host that was failed over asks what its disks lack, and another one publishes in its place.

use farside_control::client::Client;
use farside_control::failover::{FailoverRequest, FailoverStatus};
use farside_layer::{Footer, granule_digest};
use farside_ledger::{LayerKind, VoidReason};
use farside_region::{Generation, GranuleIndex, LedgerPosition, RegionIndex, Slot, VolumeId};
use farside_wire::{
    ClaimOutcome, DigestRun, ForkPin, PULL_OPEN_MAX, PullBegin, PullFork, PullPoint, PullQuery, PullVolumes, ReceiverMessage,
    RefusalCode, RequestId, SourceMessage,
};

use crate::site::{Gateway, Session, Source, Volume, granules, noise, wait_until};

async fn begin(pull: &mut Session, have: Option<LedgerPosition>) -> PullPoint {
    pull.send(SourceMessage::PullBegin(PullBegin { id: RequestId(1), have })).await;
    pull.expect("a point", |m| match m {
        ReceiverMessage::PullPoint(point) => Some(point),
        _ => None,
    })
    .await
}

async fn ask(pull: &mut Session, id: u64, volume: VolumeId, region: u64, have: Vec<DigestRun>) {
    pull.send(SourceMessage::Pull(PullQuery { id: RequestId(id), volume, region: RegionIndex(region), have })).await;
}

async fn answer(pull: &mut Session, id: u64) -> Vec<u8> {
    let mut part = Vec::new();
    loop {
        let chunk = pull.expect("an answer", |m| match m {
            ReceiverMessage::Pulled(chunk) => Some(chunk),
            _ => None,
        });
        let chunk = chunk.await;
        assert_eq!(chunk.id, RequestId(id));
        part.extend_from_slice(&chunk.bytes);
        if part.len() == chunk.part_bytes as usize {
            return part;
        }
    }
}

const ZEROES: DigestRun = DigestRun::Zero { granules: 1024 };

fn request(stand_in: Option<&str>) -> FailoverRequest {
    let stand_in = stand_in.map(str::to_owned);
    FailoverRequest { group: "host1/default".into(), force: true, stand_in, ..FailoverRequest::default() }
}

async fn slots(gateway: &Gateway) -> Vec<u64> {
    gateway.points(None).await.iter().map(|point| point.id.slot).collect()
}

#[tokio::test]
async fn what_differs_is_pulled_and_its_point_is_kept_meanwhile() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.set_keep(1).await;
    let content = granules(5, 30);
    let first = source.publish(&volume, 1, &content, LayerKind::Point).await;
    let mut pull = host.pulling("host1", "default").await;
    let point = begin(&mut pull, None).await;
    assert_eq!((point.position, point.is_since, point.other.clone()), (first, true, None), "its own session is nobody else");
    let [member] = &point.members[..] else { panic!("{point:?}") };
    assert_eq!((member.meta.id, member.volume_bytes, member.touched.clone()), (volume.id, 64 << 20, None));

    // Of all that differs, and only that; nothing where nothing does.
    ask(&mut pull, 1, volume.id, 0, vec![ZEROES]).await;
    let part = answer(&mut pull, 1).await;
    let footer = Footer::from_tail(&part, part.len() as u64).expect("a part");
    assert_eq!(footer.frames().iter().map(|frame| (frame.run.start.0, frame.run.count)).collect::<Vec<_>>(), [(5, 30)]);
    let digests = content.iter().map(|(at, bytes)| granule_digest(&[5; 32], *at, bytes)).collect();
    let all = vec![DigestRun::Zero { granules: 5 }, DigestRun::Data(digests), DigestRun::Zero { granules: 989 }];
    ask(&mut pull, 2, volume.id, 0, all.clone()).await;
    assert!(answer(&mut pull, 2).await.is_empty());
    ask(&mut pull, 3, volume.id, 15, vec![ZEROES]).await;
    assert!(answer(&mut pull, 3).await.is_empty());
    let mut other = all;
    other[2] = DigestRun::Data((35..1024).map(|at| granule_digest(&[5; 32], GranuleIndex(at), &[7; 4096])).collect());
    ask(&mut pull, 4, volume.id, 0, other).await;
    let part = answer(&mut pull, 4).await;
    let footer = Footer::from_tail(&part, part.len() as u64).expect("a part");
    assert_eq!(footer.frames().iter().map(|frame| (frame.run.start.0, frame.run.end().0)).collect::<Vec<_>>(), [(35, 1024)]);

    // It is in no point's way: newer ones come, it stays, and where it differs from them is told.
    let second = source.publish(&volume, 2, &granules(2048, 3), LayerKind::Point).await;
    let third = source.publish(&volume, 3, &granules(5000, 3), LayerKind::Point).await;
    wait_until("the second to be pruned", async || slots(&gateway).await == [third.slot.0, first.slot.0]).await;
    ask(&mut pull, 5, volume.id, 2, vec![ZEROES]).await;
    assert!(answer(&mut pull, 5).await.is_empty(), "the point that was told first is still the one that is pulled");
    let next = begin(&mut pull, Some(first)).await;
    assert_eq!(next.position, third);
    let touched: Vec<u64> = next.members[0].touched.as_ref().expect("both are known").iter().map(|region| region.0).collect();
    assert_eq!(touched, [2, 4]);
    // What was pruned may differ anywhere. † Disks of another history, or newer than a store that was put back, may be the only copy: they are let be.
    for strange in [LedgerPosition { digest: third.digest, ..first }, LedgerPosition { slot: Slot(third.slot.0 + 9), ..third }] {
        let mut newer = host.pulling("host1", "default").await;
        newer.send(SourceMessage::PullBegin(PullBegin { id: RequestId(1), have: Some(strange) })).await;
        let words = newer.refusal().await.text;
        assert!(words.contains("never went through") && words.contains("--accept-disks"), "{words}");
    }
    assert_eq!(begin(&mut pull, Some(second)).await.members[0].touched, None);
    // A line that breaks takes nothing away, nor does its end, which is noticed after the host is back; the last word does.
    begin(&mut pull, Some(first)).await;
    let mut again = host.pulling("host1", "default").await;
    begin(&mut again, Some(first)).await;
    pull.settle();
    pull.closed().await;
    drop(again);
    let fourth = source.publish(&volume, 4, &granules(5000, 4), LayerKind::Point).await;
    let fifth = source.publish(&volume, 5, &granules(5000, 5), LayerKind::Point).await;
    wait_until("the fourth to be pruned", async || slots(&gateway).await == [fifth.slot.0, third.slot.0, first.slot.0]).await;
    assert!(slots(&gateway).await.iter().all(|slot| *slot != fourth.slot.0));
    let mut pull = host.pulling("host1", "default").await;
    let next = begin(&mut pull, Some(third)).await;
    assert_eq!(next.members[0].touched.as_ref().expect("it was kept").iter().map(|region| region.0).collect::<Vec<_>>(), [4]);
    pull.settle();
    pull.closed().await;
    let sixth = source.publish(&volume, 6, &granules(5000, 4), LayerKind::Point).await;
    wait_until("all to be let go", async || slots(&gateway).await == [sixth.slot.0]).await;
    gateway.check_store();
}

#[tokio::test]
async fn who_pulls_gets_nothing_but_what_it_may() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    let content: Vec<_> = granules(0, 1024).into_iter().map(|(at, bytes)| (at, noise(1, at, bytes))).collect();
    source.publish(&volume, 1, &content, LayerKind::Point).await;
    let stranger = gateway.pair("host2").await;
    let mut theirs = stranger.pull_hello("host1", "default").await;
    let refusal = theirs.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Unknown, "{}", refusal.text);

    let mut before = host.pulling("host1", "default").await;
    ask(&mut before, 1, volume.id, 0, vec![ZEROES]).await;
    assert_eq!(before.refusal().await.code, RefusalCode::Protocol, "no point was asked for");
    let mut publishes = host.pulling("host1", "default").await;
    publishes.set_keep(1).await;
    assert_eq!(publishes.refusal().await.code, RefusalCode::Protocol, "it is not there to publish");
    for (region, have) in [(16, ZEROES), (u64::MAX, ZEROES), (0, DigestRun::Zero { granules: 1023 })] {
        let mut pull = host.pulling("host1", "default").await;
        begin(&mut pull, None).await;
        ask(&mut pull, 1, volume.id, region, vec![have]).await;
        let refusal = pull.refusal().await;
        assert!(refusal.text.contains("is not in the point"), "{}", refusal.text);
    }
    let mut pull = host.pulling("host1", "default").await;
    begin(&mut pull, None).await;
    ask(&mut pull, 1, VolumeId([9; 16]), 0, vec![ZEROES]).await;
    assert_eq!(pull.refusal().await.code, RefusalCode::Protocol);
    // Who does not read what it asks for is not given more: what is under way is bounded, and nobody else waits for it.
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let mut one = host.pulling("host1", "default").await;
        begin(&mut one, None).await;
        for id in 0..8 * PULL_OPEN_MAX as u64 {
            ask(&mut one, id, volume.id, 0, vec![ZEROES]).await;
        }
        greedy.push(one);
    }
    let before = gateway.resident_bytes_max();
    assert!(before < 400 << 20, "{before} bytes");
    let mut theirs = stranger.connect("default").await;
    let data = theirs.claim("data").await;
    theirs.publish(&data, 1, &content, LayerKind::Point).await;
    let mut pull = stranger.pulling("host2", "default").await;
    begin(&mut pull, None).await;
    ask(&mut pull, 1, data.id, 0, vec![ZEROES]).await;
    assert!(answer(&mut pull, 1).await.len() > 4 << 20);
    source.publish(&volume, 2, &granules(0, 1), LayerKind::Point).await;
}

#[tokio::test]
async fn a_host_that_stands_in_publishes_until_its_source_is_back() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let other = gateway.pair("host2").await;
    let third = gateway.pair("host3").await;
    let client = gateway.client();
    // Each is told what helps now.
    let refused = async |host: &crate::site::Source, words: &[&str]| {
        let refusal = host.hello_as("host1", "default").await.refusal().await;
        assert_eq!(refusal.code, RefusalCode::Unknown, "{}", refusal.text);
        assert!(words.iter().any(|words| refusal.text.contains(words)), "{}", refusal.text);
    };
    let (none, over) = (["is not failed over"], ["its source has its history back"]);
    let stands = ["farside failover host1/default --stand-in", "has fenced nobody yet"];
    refused(&other, &none).await;
    for wrong in ["host1", "nobody"] {
        client.failover(&request(Some(wrong))).await.expect_err("it cannot stand in");
    }
    assert!(client.failovers().await.expect("listed").is_empty(), "nothing was begun");
    client.failover(&request(None)).await.expect("begun");
    refused(&other, &stands).await;
    let begun: FailoverStatus = client.failover(&request(Some("host2"))).await.expect("it may");
    assert_eq!(begun.stand_in.as_deref(), Some("host2"));
    refused(&third, &stands).await;
    let elsewhere = other.hello_as("host1", "another").await.refusal().await;
    assert_eq!(elsewhere.code, RefusalCode::Unknown, "{}", elsewhere.text);

    // It goes on with the history, under the promotion.
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    let mut pull = host.pulling("host1", "default").await;
    assert!(!begin(&mut pull, None).await.is_since, "of what is there now it published nothing");
    let newest = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let point = begin(&mut pull, None).await;
    assert_eq!((point.position, point.is_since, point.generation), (newest, true, Generation(2)));
    let other_host = point.other.expect("it may publish more");
    assert_eq!((other_host.name.as_ref().map(|name| name.as_str()), other_host.connected), (Some("host2"), true));
    assert_eq!(client.failovers().await.expect("listed").len(), 1, "who stands in ends no failover");

    // That it was only started again takes nothing from what it published.
    stands_in.claim_back("data", &theirs, Generation(2)).await;
    assert!(begin(&mut pull, None).await.is_since, "it was published since the failover, whatever was claimed after that");

    // Only its own word says that it owes nothing, and only the last one.
    let other_of = async |pull: &mut Session| begin(pull, None).await.other.map(|other| other.connected);
    drop(stands_in);
    wait_until("its connection to be gone", async || other_of(&mut pull).await == Some(false)).await;
    let stands_in = other.connect_as("host1", "default").await;
    stands_in.settle();
    wait_until("its last word", async || other_of(&mut pull).await.is_none()).await;
    let again = other.connect_as("host1", "default").await;
    wait_until("it to be back", async || other_of(&mut pull).await == Some(true)).await;
    drop(again);
    wait_until("it to be gone again", async || other_of(&mut pull).await == Some(false)).await;
    // Another one takes its place: it is told so, and nobody else may.
    let mut former = other.connect_as("host1", "default").await;
    client.failover(&request(Some("host3"))).await.expect("it may");
    let refusal = former.refusal().await;
    assert!(refusal.text.contains("does not stand in"), "{}", refusal.text);
    refused(&other, &stands).await;

    // The source is back, and it is over.
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    wait_until("the failover to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    back.publish(&volume, 1, &granules(3, 9), LayerKind::Point).await;
    refused(&other, &over).await;
    gateway.check_store();
}

/// † What a stand-in published before it said that it owes nothing, and an older copy of the store has not, would be given up unasked.
#[tokio::test]
async fn a_stand_in_owes_what_an_older_store_has_not() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let other = gateway.pair("host2").await;
    gateway.client().failover(&request(Some("host2"))).await.expect("begun");
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let older = gateway.copy_of_store();
    stands_in.publish(&theirs, 2, &granules(3, 9), LayerKind::Point).await;
    let mut pull = host.pulling("host1", "default").await;
    stands_in.settle();
    wait_until("its last word", async || begin(&mut pull, None).await.other.is_none()).await;
    gateway.put_in_its_place(&older).await;
    let mut pull = host.pulling("host1", "default").await;
    let owes = begin(&mut pull, None).await.other.expect("it may have more");
    assert_eq!((owes.name.as_ref().map(|name| name.as_str()), owes.connected), (Some("host2"), false));
}

/// A source that has published three points, and is gone.
async fn with_three_points() -> (Gateway, Source, Volume, Vec<LedgerPosition>) {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    let mut points = Vec::new();
    for seq in 1..=3 {
        points.push(source.publish(&volume, seq, &granules(0, 20), LayerKind::Point).await);
    }
    (gateway, host, volume, points)
}

/// What a source had published after an older point that was brought up is nothing that was published since.
#[tokio::test]
async fn what_is_above_an_older_point_is_from_before_the_failover() {
    let (gateway, host, volume, points) = with_three_points().await;
    let client = gateway.client();
    let older = FailoverRequest { point: Some(points[0].slot.0), ..request(Some("host2")) };
    let other = gateway.pair("host2").await;
    let begun = client.failover(&older).await.expect("begun");
    assert_eq!(begun.point.map(|point| point.id.slot), Some(points[0].slot.0));
    let mut pull = host.pulling("host1", "default").await;
    let now = begin(&mut pull, None).await;
    assert_eq!((now.position, now.is_since), (points[0], false), "nobody has published anything since");
    assert_eq!(now.passed_over, Some(points[2].slot), "what is above it is what it was brought up instead of");
    let commit = FailoverRequest { commit: Some(true), force: false, ..request(None) };
    let refused = client.failover(&commit).await.expect_err("its stand-in has nothing").to_string();
    assert!(refused.contains("has published nothing"), "{refused}");

    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    assert!(!begin(&mut pull, None).await.is_since);
    client.failover(&commit).await.expect_err("it has still nothing");
    let newest = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let now = begin(&mut pull, None).await;
    assert_eq!((now.position, now.is_since), (newest, true));
    client.failover(&commit).await.expect("it has published");
    gateway.check_store();
}

/// Only the source takes its history back: whoever stands in for it, and claims above the failover, ends no failover.
#[tokio::test]
async fn a_stand_in_that_claims_above_the_failover_takes_nothing_back() {
    let (gateway, _, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let other = gateway.pair("host2").await;
    let client = gateway.client();
    client.failover(&request(Some("host2"))).await.expect("begun");
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    stands_in.claim_raw("data", |claim| claim.volume.generation = Generation(3)).await;
    let refusal = stands_in.refusal().await;
    assert!(refusal.text.contains("only the source itself"), "{}", refusal.text);
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &theirs, Generation(2)).await;
    stands_in.publish(&theirs, 1, &granules(3, 8), LayerKind::Point).await;
    let failovers = client.failovers().await.expect("listed");
    assert_eq!(failovers.iter().map(|one| one.generation).collect::<Vec<_>>(), [2], "it stands");
    gateway.check_store();
}

/// As soon as one volume is taken back, whoever stood in publishes nothing of the others: what their source has is the newest then, and stays so.
#[tokio::test]
async fn who_takes_back_one_volume_is_not_overtaken_in_the_others() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let other = gateway.pair("host2").await;
    let client = gateway.client();
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    let point = async |session: &mut Session, data: &Volume, log: &Volume| {
        let members = vec![session.send_layer(data, 1, &granules(5, 3)).await, session.send_layer(log, 1, &granules(0, 3)).await];
        session.end(members, LayerKind::Point).await;
        session.published(log, 1).await
    };
    point(&mut source, &data, &log).await;
    drop(source);
    client.failover(&request(Some("host2"))).await.expect("begun");
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs =
        (stands_in.claim_back("data", &data, Generation(2)).await, stands_in.claim_back("log", &log, Generation(2)).await);
    let newest = point(&mut stands_in, &theirs.0, &theirs.1).await;

    let mut back = host.connect_when_ready("default").await;
    let data = back.claim_back("data", &data, Generation(3)).await;
    let refusal = stands_in.refusal().await;
    assert!(refusal.text.contains("does not stand in"), "{}", refusal.text);
    let again = other.hello_as("host1", "default").await.refusal().await;
    assert!(again.text.contains("does not stand in"), "{}", again.text);
    assert_eq!(client.failovers().await.expect("listed").len(), 1, "it is needed for the other one");
    let mut pull = host.pulling("host1", "default").await;
    let now = begin(&mut pull, None).await;
    assert_eq!((now.position, now.is_since, now.promotion), (newest, true, Some(Generation(2))));

    // What the source did not have before waits, and its session goes on.
    let outcome = |m| match m {
        ReceiverMessage::ClaimVerdict(verdict) => Some(verdict.outcome),
        _ => None,
    };
    back.claim_raw("more", |_| {}).await;
    let more = back.expect("a verdict", outcome).await;
    assert!(matches!(more, ClaimOutcome::Void { reason: VoidReason::UnknownVolume(_) }), "{more:?}");
    let log = back.claim_back("log", &log, Generation(3)).await;
    wait_until("the failover to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    back.claim("more").await;
    point(&mut back, &data, &log).await;
    // A receiver that knows of no failover says so, and not that nobody owes anything.
    let now = begin(&mut pull, None).await;
    assert_eq!(now.promotion, None);
    gateway.check_store();
}

/// A receiver whose notes were lost does not know who stood in, and does not say that nobody did.
#[tokio::test]
async fn a_gateway_that_forgot_who_stood_in_says_so() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    gateway.client().failover(&request(None)).await.expect("begun");
    gateway.stop();
    std::fs::remove_dir_all(gateway.path("state/failovers")).expect("lost");
    gateway.start().await;
    wait_until("its group to be open", async || !gateway.points(None).await.is_empty()).await;
    let mut pull = host.pulling("host1", "default").await;
    let now = begin(&mut pull, None).await;
    assert_eq!(now.promotion, None);
    let other = now.other.expect("somebody may have more");
    assert_eq!((other.name, other.connected), (None, false));
}

/// Where the newest point lacks a volume that the asker has a disk for, an older one has it; where none has all, the newest is told.
#[tokio::test]
async fn a_point_that_lacks_a_volume_is_passed_over() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    let members = vec![source.send_layer(&data, 1, &granules(5, 3)).await, source.send_layer(&log, 1, &granules(0, 3)).await];
    source.end(members, LayerKind::Point).await;
    let both = source.published(&log, 1).await;
    let newest = source.publish(&data, 2, &granules(5, 3), LayerKind::Point).await;
    let mut pull = host.pulling("host1", "default").await;
    let now = begin(&mut pull, None).await;
    assert_eq!((now.position, now.passed_over), (newest, None), "nobody said what for");
    for (volumes, position, passed_over) in [
        (vec![data.id, log.id], both, Some(newest.slot)),
        (vec![data.id], newest, None),
        (vec![data.id, log.id, VolumeId([9; 16])], newest, None),
    ] {
        pull.send(SourceMessage::PullVolumes(PullVolumes { volumes })).await;
        let now = begin(&mut pull, None).await;
        assert_eq!((now.position, now.passed_over), (position, passed_over));
    }
    // And of what the disks went their own way from.
    drop(source);
    gateway.client().failover(&request(None)).await.expect("begun");
    pull.send(SourceMessage::PullVolumes(PullVolumes { volumes: vec![data.id, log.id] })).await;
    pull.send(SourceMessage::PullFork(PullFork { id: RequestId(2), over: None, pin: ForkPin::Leave })).await;
    let fork = pull.expect("a point", |m| match m {
        ReceiverMessage::PullPoint(point) => Some(point.position),
        _ => None,
    });
    assert_eq!(fork.await, both);
    gateway.check_store();
}

/// What it says when it refuses for that.
async fn refused_for(client: &Client, request: &FailoverRequest, why: &str) -> String {
    let mut words = String::new();
    wait_until(why, async || {
        words = client.failover(request).await.expect_err("it is to be refused").to_string();
        words.contains(why)
    })
    .await;
    words
}

/// A failover to an older point is over, and its source is lost before it has published anything: what was left aside is not brought up unless a person
/// says so, and what had been brought up is kept, also over a restart of the gateway.
#[tokio::test]
async fn what_was_left_aside_stays_so_until_the_source_has_published() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    let mut points = Vec::new();
    for seq in 1..=3 {
        points.push(source.publish(&volume, seq, &granules(0, 20), LayerKind::Point).await.slot.0);
    }
    drop(source);
    let client = gateway.client();
    let pinned = async |gateway: &Gateway| {
        gateway.points(None).await.iter().filter(|p| !p.pins.is_empty()).map(|p| p.id.slot).collect::<Vec<_>>()
    };
    let unforced = FailoverRequest { force: false, ..request(None) };
    client.failover(&FailoverRequest { point: Some(points[0]), ..request(None) }).await.expect("begun");
    let is_over = async || {
        wait_until("it to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    };
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    is_over().await;
    drop(back);
    for _ in 0..2 {
        let refused = refused_for(&client, &unforced, "left aside").await;
        assert!(refused.contains("failback") && refused.contains("rollback"), "{refused}");
        let named = FailoverRequest { point: Some(points[2]), ..unforced.clone() };
        refused_for(&client, &named, "was left aside").await;
        assert!(client.failover(&FailoverRequest { plan: true, ..named }).await.expect("planned").aside);
        assert_eq!(pinned(&gateway).await, [points[0]]);
        gateway.stop();
        gateway.start().await;
    }
    // A note that cannot be read is no leave.
    let (note, aside) = (gateway.path("state/taken-back/host1/default.json"), gateway.path("aside.json"));
    std::fs::rename(&note, &aside).expect("it is there");
    std::fs::write(&note, b"{").expect("written");
    gateway.stop();
    gateway.start().await;
    refused_for(&client, &unforced, "is not known").await;
    gateway.stop();
    std::fs::rename(&aside, &note).expect("put back");
    gateway.start().await;
    refused_for(&client, &unforced, "left aside").await;
    // Nothing changes that if one more is begun, which brings the same up, and is taken back, too.
    let done = client.failover(&request(None)).await.expect("forced");
    assert_eq!(done.point.map(|point| point.id.slot), Some(points[0]));
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(5)).await;
    is_over().await;
    refused_for(&client, &unforced, "is connected").await;

    // What it could not read all of is nothing that stands for all.
    let mut content = granules(3, 9);
    content[2].1.clear();
    let degraded = back.publish(&volume, 1, &content, LayerKind::Point).await;
    let plan = FailoverRequest { plan: true, ..unforced.clone() };
    let planned = client.failover(&plan).await.expect("planned");
    assert_eq!(planned.point.map(|point| point.id.slot), Some(degraded.slot.0));
    assert_eq!(pinned(&gateway).await, [points[0]]);
    let mut member = back.send_layer(&volume, 2, &granules(0, 1024)).await;
    member.whole_regions.insert(RegionIndex(0));
    back.end(vec![member], LayerKind::Point).await;
    let newest = back.published(&volume, 2).await;
    wait_until("it to be kept no more", async || pinned(&gateway).await.is_empty()).await;
    drop(back);
    wait_until("it to be gone", async || client.failover(&unforced).await.is_ok()).await;
    let all = client.failovers().await.expect("listed");
    assert_eq!(all[0].point.as_ref().map(|point| point.id.slot), Some(newest.slot.0));
}

/// Its note cannot be read when the next one is forced, and goes with that: so does what it had pinned.
#[tokio::test]
async fn a_failover_over_a_note_that_cannot_be_read_withdraws_the_pin_of_it() {
    let (mut gateway, host, volume, points) = with_three_points().await;
    let client = gateway.client();
    let older = FailoverRequest { point: Some(points[0].slot.0), ..request(None) };
    client.failover(&older).await.expect("begun");
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &volume, Generation(3)).await;
    wait_until("it to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    drop(back);
    let pins = async |gateway: &Gateway| {
        let of =
            |point: farside_control::Point| (point.id.slot, point.pins.into_iter().map(|pin| pin.reason).collect::<Vec<_>>());
        gateway.points(None).await.into_iter().map(of).filter(|(_, pins)| !pins.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(pins(&gateway).await, [(points[0].slot.0, vec!["failover, generation 2".to_owned()])]);
    let note = gateway.path("state/taken-back/host1/default.json");
    gateway.stop();
    std::fs::write(&note, b"{").expect("written");
    gateway.start().await;
    refused_for(&client, &request(None), "is not known").await;
    let named = FailoverRequest { point: Some(points[1].slot.0), ..request(None) };
    wait_until("the next one", async || client.failover(&named).await.is_ok()).await;
    wait_until("the note to be gone", async || !note.exists()).await;
    let only = [(points[1].slot.0, vec!["failover, generation 4".to_owned()])];
    wait_until("the pin of it to be gone", async || pins(&gateway).await == only).await;
    gateway.check_store();
}

/// The note of the one that stands cannot be read: what it was brought up instead of is neither brought up nor brought home, unless a person names it.
#[tokio::test]
async fn what_stands_by_a_note_that_cannot_be_read_is_not_guessed() {
    let (mut gateway, host, _, points) = with_three_points().await;
    let client = gateway.client();
    let older = FailoverRequest { point: Some(points[0].slot.0), ..request(None) };
    client.failover(&older).await.expect("begun");
    let note = gateway.path("state/failovers/host1/default.json");
    gateway.stop();
    let good = std::fs::read(&note).expect("it stands");
    std::fs::write(&note, b"{").expect("written");
    gateway.start().await;
    for unforced in [request(None), FailoverRequest { force: false, ..request(None) }] {
        refused_for(&client, &unforced, "is not known").await;
    }
    assert_eq!(std::fs::read(&note).expect("there"), b"{", "nothing took its place");
    let mut pull = host.pulling("host1", "default").await;
    pull.send(SourceMessage::PullBegin(PullBegin { id: RequestId(1), have: None })).await;
    let words = pull.refusal().await.text;
    assert!(words.contains("is not known"), "{words}");
    gateway.stop();
    std::fs::write(&note, &good).expect("put back");
    gateway.start().await;
    let mut pull = host.pulling("host1", "default").await;
    assert_eq!(begin(&mut pull, None).await.position, points[0], "it is what was brought up");
    gateway.stop();
    std::fs::write(&note, b"{").expect("written");
    gateway.start().await;
    let named = FailoverRequest { point: Some(points[1].slot.0), ..request(None) };
    wait_until("the next one", async || client.failover(&named).await.is_ok()).await;
    let pins = async || {
        let pins = |point: &farside_control::Point| point.pins.iter().map(|pin| pin.reason.clone()).collect::<Vec<_>>();
        gateway.points(None).await.iter().flat_map(pins).collect::<Vec<_>>()
    };
    wait_until("the pin of the former to be gone", async || pins().await == ["failover, generation 3"]).await;
    assert!(!gateway.status().await.reasons.iter().any(|reason| reason.message.contains("default.json")));
}

/// One that was begun in that time, and has fenced nobody, is given up like any other; what was left aside before it stays so.
#[tokio::test]
async fn a_failover_after_one_that_was_taken_back_can_be_given_up() {
    let mut gateway = Gateway::new("fence_after = \"1h\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    let older = source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await.slot.0;
    source.publish(&volume, 2, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let client = gateway.client();
    client.failover(&FailoverRequest { point: Some(older), ..request(None) }).await.expect("begun");
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &volume, Generation(3)).await;
    wait_until("it to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    drop(back);
    gateway.stop();
    // As `--cut` begins one that nobody forces.
    let note = gateway.path("state/failovers/host1/default.json");
    let former = serde_json::json!([{"generation": 2, "point": older}]);
    let begun = serde_json::json!({
        "version": 1, "source": "host1", "group": "default", "generation": 4, "wanted": older, "forced": false, "stage": "fencing", "former": former,
        "former_is_over": true,
    });
    std::fs::write(&note, begun.to_string()).expect("written");
    gateway.start().await;
    wait_until("it to be known", async || client.failovers().await.is_ok_and(|all| all.len() == 1)).await;
    let abort = FailoverRequest { abort: true, force: false, ..request(None) };
    let mut refused = String::new();
    wait_until("it to be given up", async || match client.failover(&abort).await {
        Ok(_) => true,
        Err(error) => {
            refused = error.to_string();
            assert!(!refused.contains("may be (generation"), "{refused}");
            false
        }
    })
    .await;
    refused_for(&client, &FailoverRequest { force: false, ..request(None) }, "left aside").await;
    gateway.check_store();
}

/// What was left aside is brought up after all, by name: it is the history again, for whoever comes back and for the next failover.
#[tokio::test]
async fn what_was_left_aside_and_is_brought_up_after_all_is_the_history() {
    let (gateway, host, volume, points) = with_three_points().await;
    let client = gateway.client();
    client.failover(&FailoverRequest { point: Some(points[0].slot.0), ..request(None) }).await.expect("begun");
    let after_all = FailoverRequest { point: Some(points[2].slot.0), again: true, ..request(None) };
    client.failover(&after_all).await.expect("begun");
    let mut pull = host.pulling("host1", "default").await;
    let now = begin(&mut pull, None).await;
    assert_eq!((now.position, now.passed_over), (points[2], None));
    let again = client.failover(&FailoverRequest { again: true, ..request(None) }).await.expect("begun");
    assert_eq!(again.point.map(|point| point.id.slot), Some(points[2].slot.0));
    // † The note of one before it, which could not be removed when this one fenced, is nothing when it is over.
    let note = gateway.path("state/taken-back/host1/default.json");
    std::fs::create_dir_all(note.parent().expect("a folder")).expect("made");
    std::fs::write(&note, b"{}").expect("written");
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &volume, Generation(5)).await;
    wait_until("it to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    assert!(!note.exists());
    drop(back);
    wait_until("it to be gone", async || client.failover(&FailoverRequest { force: false, ..request(None) }).await.is_ok()).await;
    gateway.check_store();
}

/// † Whether the one that stands is for good only its note says.
#[tokio::test]
async fn what_was_committed_is_not_taken_back_while_the_note_of_it_cannot_be_read() {
    let (mut gateway, host, volume, _) = with_three_points().await;
    let note = gateway.path("state/failovers/host1/default.json");
    let client = gateway.client();
    client.failover(&request(None)).await.expect("begun");
    let is_promoted = || std::fs::read_to_string(&note).is_ok_and(|text| text.contains("promoted"));
    wait_until("it to be through", async || is_promoted()).await;
    client.failover(&FailoverRequest { commit: Some(true), ..request(None) }).await.expect("for good");
    gateway.stop();
    let good = std::fs::read_to_string(&note).expect("it stands");
    let verdict = |m| match m {
        ReceiverMessage::ClaimVerdict(verdict) => Some(verdict.outcome),
        _ => None,
    };
    let later = good.replace("\"version\": 1", "\"version\": 2");
    assert_ne!(good, later);
    for unread in ["{", &later] {
        std::fs::write(&note, unread).expect("written");
        gateway.start().await;
        let mut back = host.connect_when_ready("default").await;
        let head = back.head(&volume).await;
        back.claim_raw("data", |claim| (claim.looked, claim.volume.generation) = (head, Generation(3))).await;
        let words = back.refusal().await.text;
        assert!(words.contains("default.json") && words.contains("put that file back"), "{words}");
        assert!(!words.contains("for good (farside commit)"), "that host would be told to have it undone: {words}");
        // Nor is a volume begun that nothing fences.
        let mut back = host.connect_when_ready("default").await;
        back.claim_raw("new", |_| ()).await;
        let outcome = back.expect("a verdict", verdict).await;
        assert!(matches!(outcome, ClaimOutcome::Void { .. }), "{outcome:?}");
        // From what it is fenced it is told as ever.
        back.claim_raw("data", |claim| claim.looked = head).await;
        let outcome = back.expect("a verdict", verdict).await;
        assert!(matches!(outcome, ClaimOutcome::Void { reason: VoidReason::Fenced { .. } }), "{outcome:?}");
        drop(back);
        gateway.stop();
    }
    // Moved aside by a person who knows that it was not for good.
    std::fs::remove_file(&note).expect("moved");
    gateway.start().await;
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &volume, Generation(3)).await;
    gateway.check_store();
}
