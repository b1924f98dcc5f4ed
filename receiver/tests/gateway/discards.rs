//! A host that was failed over goes on with its own disks: what another one published in its place is pinned before that.

use farside_control::PinRequest;
use farside_control::failover::FailoverRequest;
use farside_control::routes::{PointsQuery, UnpinQuery};
use farside_ledger::LayerKind;
use farside_region::{Generation, LedgerPosition, RegionIndex, Slot, VolumeId};
use farside_wire::{PullVolumes, ReceiverMessage, RequestId, RollBackAnswer, RollBackAsk, SourceMessage};

use crate::site::{Gateway, Session, Source, Volume, granules, wait_until};

async fn roll_back(pull: &mut Session, pin: bool) -> RollBackAnswer {
    pull.send(SourceMessage::RollBack(RollBackAsk { id: RequestId(1), pin })).await;
    pull.expect("an answer", |m| match m {
        ReceiverMessage::RollBack(answer) => Some(answer),
        _ => None,
    })
    .await
}

async fn refused(pull: &mut Session) -> String {
    pull.send(SourceMessage::RollBack(RollBackAsk { id: RequestId(1), pin: true })).await;
    pull.refusal().await.text
}

fn at(answer: &RollBackAnswer) -> Option<(LedgerPosition, bool)> {
    answer.point.map(|point| (point.position, point.is_pinned))
}

/// Points that are pinned for a rollback, oldest first.
async fn pinned(gateway: &Gateway) -> Vec<u64> {
    let mut slots = Vec::new();
    for point in gateway.points(None).await {
        let reasons = point.pins.iter().filter(|pin| pin.reason.starts_with("rollback, ")).collect::<Vec<_>>();
        slots.extend(reasons.iter().map(|_| point.id.slot));
        let words = "rollback, generation 2: what host2 wrote after the failover, from before host1 was rolled back";
        assert!(reasons.iter().all(|pin| pin.reason == words), "{reasons:?}");
    }
    slots.sort_unstable();
    slots
}

async fn failed_over(gateway: &Gateway) -> Source {
    let other = gateway.pair("host2").await;
    let request = FailoverRequest {
        group: "host1/default".into(),
        force: true,
        stand_in: Some("host2".into()),
        ..FailoverRequest::default()
    };
    gateway.client().failover(&request).await.expect("begun");
    other
}

/// A host with a volume that was failed over, and who stands in for it and has the claim.
struct StoodIn {
    gateway: Gateway,
    host: Source,
    volume: Volume,
    stands_in: Session,
    theirs: Volume,
}

async fn stood_in() -> StoodIn {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let other = failed_over(&gateway).await;
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    StoodIn { gateway, host, volume, stands_in, theirs }
}

async fn is_over(gateway: &Gateway) {
    wait_until("the failover to be over", async || gateway.client().failovers().await.is_ok_and(|all| all.is_empty())).await;
}

#[tokio::test]
async fn what_a_rollback_discards_is_pinned_until_a_person_lets_go_of_it() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.set_keep(1).await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    assert!(refused(&mut host.pulling("host1", "default").await).await.contains("no failover of host1/default is known"));
    drop(source);
    let other = failed_over(&gateway).await;
    let mut pull = host.pulling("host1", "default").await;
    let nothing = roll_back(&mut pull, true).await;
    assert_eq!((at(&nothing), nothing.points, nothing.newest), (None, 0, None));
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    let first = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;

    // Who only looks pins nothing; said twice it is pinned once; and the pin goes with what is newer, if that is whole.
    let planned = roll_back(&mut pull, false).await;
    assert_eq!((at(&planned), planned.points, planned.newest), (Some((first, false)), 1, None));
    let by = planned.other.expect("it is connected");
    assert_eq!((by.name.as_ref().map(|name| name.as_str()), by.connected), (Some("host2"), true));
    assert!(pinned(&gateway).await.is_empty());
    for _ in 0..2 {
        assert_eq!(at(&roll_back(&mut pull, true).await), Some((first, true)));
        assert_eq!(pinned(&gateway).await, [first.slot.0]);
    }
    let mut content = granules(3, 9);
    content[2].1.clear();
    let degraded = stands_in.publish(&theirs, 2, &content, LayerKind::Point).await;
    let now = roll_back(&mut pull, true).await;
    assert_eq!((at(&now), now.points, now.newest), (Some((first, true)), 2, Some(degraded.slot)));
    let mut member = stands_in.send_layer(&theirs, 3, &granules(0, 1024)).await;
    member.whole_regions.insert(RegionIndex(0));
    stands_in.end(vec![member], LayerKind::Point).await;
    let second = stands_in.published(&theirs, 3).await;
    gateway.stop();
    gateway.start().await;
    let mut pull = host.pulling("host1", "default").await;
    assert_eq!(at(&roll_back(&mut pull, false).await), Some((second, false)), "the older one is the one that is pinned");
    assert_eq!(at(&roll_back(&mut pull, true).await), Some((second, true)));
    assert_eq!(pinned(&gateway).await, [second.slot.0]);

    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    // Whoever has lost his state since discards what he published himself, which is pinned by nobody: whether the end is noted already or not.
    assert!(refused(&mut pull).await.contains("no failover of host1/default is known"));
    is_over(&gateway).await;
    assert!(refused(&mut host.pulling("host1", "default").await).await.contains("no failover of host1/default is known"));
    assert_eq!(pinned(&gateway).await, [second.slot.0]);

    // It stays when all else goes, until a person lets go of it, as of any pin.
    back.set_keep(1).await;
    let newest = back.publish(&volume, 1, &granules(0, 1), LayerKind::Point).await;
    let slots = async || gateway.points(None).await.iter().map(|point| point.id.slot).collect::<Vec<_>>();
    wait_until("all else to be pruned", async || slots().await == [newest.slot.0, second.slot.0]).await;
    let query = UnpinQuery { of: Some("host1/default".into()), all: false };
    let point = gateway.client().point_unpin(&second.slot.0.to_string(), &query).await.expect("unpinned");
    assert!(point.pins.is_empty(), "{point:?}");
    let newest = back.publish(&volume, 2, &granules(0, 1), LayerKind::Point).await;
    wait_until("it to be pruned", async || slots().await == [newest.slot.0]).await;
    gateway.check_store();
}

/// What the stand-in published under the claim that is pinned already moves the pin with the end of the failover.
#[tokio::test]
async fn the_pin_goes_with_what_is_published_before_the_stand_in_is_fenced() {
    let StoodIn { gateway, host, volume, mut stands_in, theirs } = stood_in().await;
    let first = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let mut pull = host.pulling("host1", "default").await;
    assert_eq!(at(&roll_back(&mut pull, true).await), Some((first, true)));
    let second = stands_in.publish(&theirs, 2, &granules(5, 9), LayerKind::Point).await;
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    back.publish(&volume, 1, &granules(0, 1), LayerKind::Point).await;
    is_over(&gateway).await;
    assert_eq!(pinned(&gateway).await, [second.slot.0], "not what its source published, nor what is older");
    gateway.check_store();
}

/// Between the pin and the claim there may be hours, and an upgrade of the host that stands in.
#[tokio::test]
async fn the_pin_goes_with_what_a_stand_in_publishes_that_was_started_again() {
    let StoodIn { gateway, host, volume, mut stands_in, theirs } = stood_in().await;
    let first = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let mut pull = host.pulling("host1", "default").await;
    assert_eq!(at(&roll_back(&mut pull, true).await), Some((first, true)));
    let theirs = stands_in.claim_back("data", &theirs, Generation(2)).await;
    let second = stands_in.publish(&theirs, 1, &granules(5, 9), LayerKind::Point).await;
    wait_until("the pin to go with it", async || pinned(&gateway).await == [second.slot.0]).await;
    let third = stands_in.publish(&theirs, 2, &granules(5, 9), LayerKind::Point).await;
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &volume, Generation(3)).await;
    is_over(&gateway).await;
    assert_eq!(pinned(&gateway).await, [third.slot.0]);
    gateway.check_store();
}

/// A group of two volumes, and a point of both by who stands in.
struct OfTwo {
    gateway: Gateway,
    host: Source,
    data: Volume,
    log: Volume,
    stands_in: Session,
    their_data: Volume,
    both: LedgerPosition,
}

async fn of_two() -> OfTwo {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    let point = async |session: &mut Session, (data, log): (&Volume, &Volume)| {
        let members = vec![session.send_layer(data, 1, &granules(5, 3)).await, session.send_layer(log, 1, &granules(0, 3)).await];
        session.end(members, LayerKind::Point).await;
        session.published(log, 1).await
    };
    point(&mut source, (&data, &log)).await;
    drop(source);
    let other = failed_over(&gateway).await;
    let mut stands_in = other.connect_as("host1", "default").await;
    let their_data = stands_in.claim_back("data", &data, Generation(2)).await;
    let their_log = stands_in.claim_back("log", &log, Generation(2)).await;
    let both = point(&mut stands_in, (&their_data, &their_log)).await;
    OfTwo { gateway, host, data, log, stands_in, their_data, both }
}

/// Nor does the end of the failover leave it at less than what was pinned.
#[tokio::test]
async fn the_pin_does_not_go_with_a_point_that_lacks_a_volume() {
    let OfTwo { gateway, host, data, log, mut stands_in, their_data, both } = of_two().await;
    let mut pull = host.pulling("host1", "default").await;
    pull.send(SourceMessage::PullVolumes(PullVolumes { volumes: vec![data.id, log.id] })).await;
    assert_eq!(at(&roll_back(&mut pull, true).await), Some((both, true)));
    let less = stands_in.publish(&their_data, 2, &granules(7, 3), LayerKind::Point).await;
    let now = roll_back(&mut pull, true).await;
    assert_eq!((at(&now), now.newest), (Some((both, true)), Some(less.slot)));
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &data, Generation(3)).await;
    back.claim_back("log", &log, Generation(3)).await;
    is_over(&gateway).await;
    assert_eq!(pinned(&gateway).await, [both.slot.0]);
    gateway.check_store();
}

/// After a kill between two volumes: one is the source's again, and what is discarded is what was published before that.
#[tokio::test]
async fn asked_again_with_one_volume_back_it_is_the_point_of_both() {
    let OfTwo { gateway, host, data, log, stands_in: _stands_in, their_data: _, both } = of_two().await;
    let mut pull = host.pulling("host1", "default").await;
    pull.send(SourceMessage::PullVolumes(PullVolumes { volumes: vec![data.id, log.id] })).await;
    let mut back = host.connect_when_ready("default").await;
    let ours = back.claim_back("data", &data, Generation(3)).await;
    let own = back.publish(&ours, 1, &granules(7, 3), LayerKind::Point).await;
    assert!(own.slot > both.slot);
    for _ in 0..2 {
        assert_eq!(at(&roll_back(&mut pull, true).await), Some((both, true)));
        assert_eq!(pinned(&gateway).await, [both.slot.0]);
    }
    back.claim_back("log", &log, Generation(3)).await;
    is_over(&gateway).await;
    assert_eq!(pinned(&gateway).await, [both.slot.0]);
    gateway.check_store();
}

/// A host that takes the place of the one that stands in goes on with its own disks.
#[tokio::test]
async fn what_a_stand_in_published_is_pinned_before_another_takes_its_place() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop((source, host));
    let other = failed_over(&gateway).await;
    gateway.pair("host3").await;
    let pins = async || {
        let pins = |point: &farside_control::Point| {
            let slot = point.id.slot;
            point.pins.iter().map(move |pin| (slot, pin.reason.clone())).collect::<Vec<_>>()
        };
        let all = gateway.points(None).await.iter().flat_map(pins).collect::<Vec<_>>();
        all.into_iter().filter(|(_, reason)| reason.starts_with("stand-in")).collect::<Vec<_>>()
    };
    let let_in = async |host: &str| {
        let request =
            FailoverRequest { group: "host1/default".into(), stand_in: Some(host.into()), ..FailoverRequest::default() };
        gateway.client().failover(&request).await.expect("let in");
    };
    // Of one that has published nothing, there is nothing.
    let_in("host3").await;
    let_in("host2").await;
    assert_eq!(pins().await, []);
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let newest = stands_in.publish(&theirs, 2, &granules(3, 9), LayerKind::Point).await;
    let mut content = granules(3, 9);
    content[2].1.clear();
    stands_in.publish(&theirs, 3, &content, LayerKind::Point).await;
    let_in("host2").await;
    assert_eq!(pins().await, [], "it is the same one");
    for _ in 0..2 {
        let_in("host3").await;
        let reason = "stand-in, generation 2: what was written before host3 took the place of host2";
        assert_eq!(pins().await, [(newest.slot.0, reason.to_owned())], "the newest that is whole, once");
    }
}

/// Of its volumes, too, one may be in older points only; and where none is whole, a person says that it may go.
#[tokio::test]
async fn what_is_pinned_of_a_stand_in_is_what_a_rollback_would_pin() {
    let OfTwo { gateway, host: _host, data: _, log: _, mut stands_in, their_data, both } = of_two().await;
    stands_in.publish(&their_data, 2, &granules(7, 3), LayerKind::Point).await;
    gateway.pair("host3").await;
    let request = FailoverRequest { group: "host1/default".into(), stand_in: Some("host3".into()), ..FailoverRequest::default() };
    gateway.client().failover(&request).await.expect("let in");
    let points = gateway.points(None).await;
    let pinned = |point: &&farside_control::Point| point.pins.iter().any(|pin| pin.reason.starts_with("stand-in"));
    assert_eq!(points.iter().filter(pinned).map(|point| point.id.slot).collect::<Vec<_>>(), [both.slot.0]);

    let StoodIn { gateway, mut stands_in, theirs, .. } = stood_in().await;
    let mut content = granules(3, 9);
    content[2].1.clear();
    stands_in.publish(&theirs, 1, &content, LayerKind::Point).await;
    gateway.pair("host3").await;
    let words = gateway.client().failover(&request).await.expect_err("none is whole").to_string();
    assert!(words.contains("none of the 1 points"), "{words}");
    assert_eq!(gateway.client().failovers().await.expect("listed")[0].stand_in.as_deref(), Some("host2"));
    let forced = FailoverRequest { force: true, ..request };
    assert_eq!(gateway.client().failover(&forced).await.expect("let in").stand_in.as_deref(), Some("host3"));
}

/// Nor does a volume that nobody has published have the others pinned without one of them.
#[tokio::test]
async fn a_volume_that_is_in_no_point_changes_nothing_of_what_is_pinned() {
    let OfTwo { gateway, host, data, log, mut stands_in, their_data, both } = of_two().await;
    let mut pull = host.pulling("host1", "default").await;
    let volumes = vec![data.id, log.id, VolumeId([9; 16])];
    pull.send(SourceMessage::PullVolumes(PullVolumes { volumes })).await;
    let less = stands_in.publish(&their_data, 2, &granules(7, 3), LayerKind::Point).await;
    let now = roll_back(&mut pull, true).await;
    assert_eq!((at(&now), now.newest), (Some((both, true)), Some(less.slot)));
    assert_eq!(pinned(&gateway).await, [both.slot.0]);
}

/// A record that cannot be read hides what was published: nobody is told that there is nothing, and takes his history back over it.
#[tokio::test]
async fn nothing_is_discarded_of_a_ledger_that_is_torn() {
    let StoodIn { mut gateway, host, mut stands_in, theirs, .. } = stood_in().await;
    let first = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let newest = stands_in.publish(&theirs, 2, &granules(4, 9), LayerKind::Point).await;
    gateway.stop();
    let (record, good) = gateway.start_torn(first.slot).await;
    let words = refused(&mut host.pulling("host1", "default").await).await;
    assert!(words.contains("torn"), "{words}");
    std::fs::write(&record, &good).expect("brought back");
    wait_until("the ledger to be whole", async || !gateway.says_torn().await).await;
    let now = roll_back(&mut host.pulling("host1", "default").await, true).await;
    assert_eq!((at(&now), now.points), (Some((newest, true)), 2));
    gateway.stop();
    gateway.check_store();
}

#[tokio::test]
async fn what_cannot_be_pinned_and_what_is_for_good_is_refused_by_name() {
    let StoodIn { gateway, host, mut stands_in, theirs, .. } = stood_in().await;
    let newest = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    let (client, of) = (gateway.client(), PointsQuery { of: Some("host1/default".into()), limit: None });
    let Slot(slot) = newest.slot;
    for pin in 0..64 {
        let reason = format!("for somebody else {pin}");
        client.point_pin(&slot.to_string(), &of, &PinRequest { reason }).await.expect("pinned");
    }
    let words = refused(&mut host.pulling("host1", "default").await).await;
    assert!(words.contains("has 64 pins"), "{words}");
    assert!(pinned(&gateway).await.is_empty());
    let commit = FailoverRequest { group: "host1/default".into(), commit: Some(true), ..FailoverRequest::default() };
    let mut before = host.pulling("host1", "default").await;
    client.failover(&commit).await.expect("it is for good");
    for words in [refused(&mut before).await, host.pull_hello("host1", "default").await.refusal().await.text] {
        assert!(words.contains("for good (farside commit)"), "{words}");
    }
    gateway.check_store();
}
