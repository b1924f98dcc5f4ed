//! A copy takes the place of its source: whoever was the source publishes nothing any more.

use std::path::Path;

use farside_control::PinRequest;
use farside_control::failover::{FailoverRequest, FailoverStage, FailoverStatus};
use farside_control::follower::{FollowerAdd, FollowerState, Follows};
use farside_control::routes::{self, PointsQuery, UnpinQuery};
use farside_ledger::{Body, Claim, LayerKind, VoidReason};
use farside_region::{Generation, Slot};
use farside_wire::{ClaimOutcome, ReceiverMessage};

use crate::site::{Gateway, Session, Volume, granules, name, wait_until};

fn add(volume: &str, target: &Path) -> FollowerAdd {
    let name = Some(volume.to_owned());
    let volume = format!("host1/default/{volume}");
    FollowerAdd { name, volume, target: target.to_owned(), follows: Follows::Newest, overwrite: false, lock: None }
}

fn request() -> FailoverRequest {
    FailoverRequest { group: "host1/default".into(), ..FailoverRequest::default() }
}

async fn promoted(gateway: &Gateway) -> FailoverStatus {
    let client = gateway.client();
    let mut found = FailoverStatus::default();
    wait_until("the followers to be promoted", async || {
        let all = client.failovers().await.unwrap_or_default();
        let done = |one: &FailoverStatus| {
            let up = |state| state == Some(FollowerState::Promoted);
            one.stage == FailoverStage::Promoted && one.members.iter().all(|m| m.follower.is_none() || up(m.state))
        };
        let Some(one) = all.into_iter().find(done) else { return false };
        found = one;
        true
    })
    .await;
    found
}

async fn claim_outcome(source: &mut Session, volume: &Volume, generation: u64) -> ClaimOutcome {
    let head = source.head(volume).await;
    let change = |claim: &mut Claim| (claim.looked, claim.volume.generation) = (head, Generation(generation));
    source.claim_raw("data", change).await;
    source
        .expect("a verdict", |m| match m {
            ReceiverMessage::ClaimVerdict(verdict) => Some(verdict.outcome),
            _ => None,
        })
        .await
}

/// What a file of zeroes is with these granules in it.
fn image(content: &[(farside_region::GranuleIndex, Vec<u8>)]) -> Vec<u8> {
    let mut image = vec![0; 64 << 20];
    for (at, bytes) in content {
        image[at.0 as usize * 4096..][..4096].copy_from_slice(bytes);
    }
    image
}

/// A connection of a process that was killed is there until it falls silent: what the next one says as its last word holds.
#[tokio::test]
async fn the_last_word_of_a_host_holds_beside_an_older_connection() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    let planned = async || {
        let plan = FailoverRequest { plan: true, ..request() };
        gateway.client().failover(&plan).await.expect("a plan")
    };
    let last_words = || gateway.log().matches("it owes nothing").count();
    let newer = host.connect_of_run("default", 1).await;
    newer.settle();
    wait_until("its word", async || last_words() == 1).await;
    assert!(planned().await.connected_from.is_some(), "the older one is there");
    drop(source);
    wait_until("both to be gone", async || planned().await.connected_from.is_none()).await;
    assert!(planned().await.all_published);
    // Not that of one whose successor is there, and may owe something.
    let older = host.connect_of_run("default", 2).await;
    let newer = host.connect_of_run("default", 3).await;
    older.settle();
    wait_until("its word", async || last_words() == 2).await;
    drop(newer);
    wait_until("both to be gone", async || planned().await.connected_from.is_none()).await;
    assert!(!planned().await.all_published);
    gateway.check_store();
}

/// † An older copy of the store that is put in its place has not what the host published before it said so, and nobody is told that nothing is lost.
#[tokio::test]
async fn a_last_word_does_not_hold_over_an_older_store() {
    let (gateway, _host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    let older = gateway.copy_of_store();
    source.publish(&volume, 2, &granules(0, 20), LayerKind::Point).await;
    let planned = async || {
        let plan = FailoverRequest { plan: true, ..request() };
        gateway.client().failover(&plan).await.expect("a plan")
    };
    source.settle();
    wait_until("its word", async || planned().await.all_published).await;
    gateway.put_in_its_place(&older).await;
    assert!(!planned().await.all_published);
    // Nor is it forgotten: it holds again once the store is back that it was said of.
    let newer = gateway.path("newer");
    std::fs::rename(gateway.path("away"), &newer).expect("moved");
    gateway.put_in_its_place(&newer).await;
    assert!(planned().await.all_published);
    gateway.check_store();
}

/// Nobody could be promoted above the last number there is, so nobody is let come near it.
#[tokio::test]
async fn a_generation_that_nobody_was_given_is_not_claimed() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    for generation in [u64::MAX, 2 << 20] {
        source.claim_raw("data", |claim| claim.volume.generation = Generation(generation)).await;
        let words = source.refusal().await.text;
        assert!(words.contains("so far ahead no promotion was given out") && words.contains("meta.json"), "{words}");
        source = host.connect("default").await;
    }
    // A store that was put back may be some behind.
    let theirs = source.claim_back("data", &volume, Generation(9)).await;
    source.publish(&theirs, 1, &granules(0, 20), LayerKind::Point).await;
    gateway.check_store();
}

#[tokio::test]
async fn a_failover_fences_its_source_and_brings_the_newest_point_up() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    let client = gateway.client();
    let none = client.failover(&request()).await.expect_err("no point").to_string();
    assert!(none.contains("has no point"), "{none}");
    let content = granules(5, 30);
    for seq in [1, 2] {
        let members = vec![source.send_layer(&data, seq, &content).await, source.send_layer(&log, seq, &granules(0, 3)).await];
        source.end(members, LayerKind::Point).await;
        source.published(&log, seq).await;
    }
    let points = gateway.points(None).await;
    let (newest, older) = (&points[0], &points[1]);
    client.follower_add(&add("data", &gateway.path("data.img"))).await.expect("added");
    let delayed = FollowerAdd {
        name: Some("late".into()),
        follows: Follows::Behind { delay_ms: 3_600_000 },
        ..add("data", &gateway.path("late.img"))
    };
    client.follower_add(&delayed).await.expect("added");

    // It is alive, and would be fenced; a plan may be had.
    let plan = client.failover(&FailoverRequest { plan: true, ..request() }).await.expect("a plan");
    assert_eq!((plan.stage, plan.generation, plan.point.as_ref().map(|p| p.id)), (FailoverStage::Planned, 2, Some(newest.id)));
    assert!(plan.connected_from.is_some() && plan.left_out.is_empty(), "{plan:?}");
    let refused = client.failover(&request()).await.expect_err("it is connected").to_string();
    assert!(refused.contains("it is alive, or was"), "{refused}");
    assert!(client.failovers().await.expect("listed").is_empty());
    drop(source);
    wait_until("it to be gone", async || {
        client.failover(&FailoverRequest { plan: true, ..request() }).await.is_ok_and(|plan| plan.connected_from.is_none())
    })
    .await;
    let older = FailoverRequest { point: Some(older.id.slot), ..request() };
    let refused = client.failover(&older).await.expect_err("not the newest").to_string();
    assert!(refused.contains("is not the newest"), "{refused}");

    let begun = client.failover(&request()).await.expect("begun");
    assert_eq!((begun.stage, begun.generation), (FailoverStage::Promoted, 2));
    let done = promoted(&gateway).await;
    let member = |volume: &str| done.members.iter().find(|m| m.volume == volume).expect("a member").clone();
    assert_eq!(member("data").follower.as_deref(), Some("data"), "the one that is to hold the newest point");
    assert_eq!((member("log").follower, member("log").state), (None, None));
    assert!(std::fs::read(gateway.path("data.img")).expect("read") == image(&content), "the newest point is there");
    let pinned = gateway.points(None).await;
    assert_eq!(pinned[0].pins.iter().map(|pin| pin.reason.as_str()).collect::<Vec<_>>(), ["failover, generation 2"]);
    // Who withdraws what he pinned withdraws nothing that the gateway needs, unless he says so.
    let (point, query) = (pinned[0].id.to_string(), PointsQuery::default());
    client.point_pin(&point, &query, &PinRequest { reason: "before the upgrade".into() }).await.expect("pinned");
    let unpinned = client.point_unpin(&point, &UnpinQuery::default()).await.expect("unpinned");
    assert_eq!(unpinned.pins.iter().map(|pin| pin.reason.as_str()).collect::<Vec<_>>(), ["failover, generation 2"]);
    let unpinned = client.point_unpin(&point, &UnpinQuery { all: true, ..UnpinQuery::default() }).await.expect("unpinned");
    assert!(unpinned.pins.is_empty(), "{unpinned:?}");
    let status = gateway.status().await;
    assert!(status.reasons.iter().any(|reason| reason.code == "failed_over"), "{:?}", status.reasons);
    assert!(status.sources[0].groups[0].volumes.iter().all(|volume| volume.generation == 2));
    // Another point of it is no failover any more.
    let another = client.failover(&older).await.expect_err("it is over there already").to_string();
    assert!(another.contains("to another point"), "{another}");

    // The target is nobody's but ours: what is written to it stays, also after a restart.
    let target = gateway.path("data.img");
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&target).expect("open"), b"ours", 0)
        .expect("written");
    assert!(client.follower_tell(routes::FOLLOWER_HEAL, "data").await.is_err());

    // The source wakes up. What it sends under its old term nobody takes, and it is told why.
    let mut woken = host.connect_when_ready("default").await;
    let member = woken.send_layer(&data, 3, &granules(0, 9)).await;
    woken.end(vec![member], LayerKind::Point).await;
    let void = woken
        .expect("the layer to be void", |m| match m {
            ReceiverMessage::Void(void) => Some(void.layers),
            _ => None,
        })
        .await;
    assert_eq!(void, [data.key(3)]);
    let outcome = claim_outcome(&mut woken, &data, 1).await;
    let ClaimOutcome::Void { reason: VoidReason::Fenced { current } } = outcome else { panic!("{outcome:?}") };
    assert_eq!(current, Generation(2));
    assert_eq!(gateway.points(None).await.len(), 2, "nothing was published");
    gateway.stop();
    gateway.start().await;
    let again = promoted(&gateway).await;
    assert_eq!((again.stage, again.generation), (FailoverStage::Promoted, 2));
    assert_eq!(&std::fs::read(&target).expect("read")[..4], b"ours");
}

/// Killed anywhere in it, it comes to its end, and not twice.
#[tokio::test]
async fn a_failover_that_is_killed_is_gone_on_with() {
    for round in 0..6 {
        let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
        let content = granules(0, 200);
        source.publish(&volume, 1, &content, LayerKind::Point).await;
        let client = gateway.client();
        let target = gateway.path("data.img");
        client.follower_add(&add("data", &target)).await.expect("added");
        drop(source);
        let begun = gateway.path("state/failovers/host1/default.json");
        let task = tokio::spawn(async move { client.failover(&FailoverRequest { force: true, ..request() }).await.is_ok() });
        let has = |words: &str| std::fs::read_to_string(&begun).is_ok_and(|text| text.contains(words));
        wait_until("it to be begun", async || if round % 2 == 0 { has("fencing") || has("point") } else { has("point") }).await;
        gateway.kill();
        let _ = task.await;
        gateway.start().await;
        let done = promoted(&gateway).await;
        assert_eq!((done.generation, done.members[0].state), (2, Some(FollowerState::Promoted)));
        assert!(std::fs::read(&target).expect("read") == image(&content), "round {round}");
        let mut woken = host.connect_when_ready("default").await;
        assert!(matches!(claim_outcome(&mut woken, &volume, 1).await, ClaimOutcome::Void { reason: VoidReason::Fenced { .. } }));
        drop(woken);
        gateway.check_store();
    }
}

/// † The source took its history back after a second failover was asked for, and before that had fenced anybody: it has the very generation
/// under which it was to be fenced. Whatever it published from there on would be published beside the copy that was promoted.
#[tokio::test]
async fn l6_a_history_that_was_taken_back_before_the_fence_is_fenced_as_well() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    let content = granules(0, 20);
    source.publish(&volume, 1, &content, LayerKind::Point).await;
    drop(source);
    let client = gateway.client();
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    assert_eq!(promoted(&gateway).await.generation, 2);
    let note = gateway.path("state/failovers/host1/default.json");
    let asked = std::fs::read_to_string(&note).expect("kept");
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    wait_until("the failover to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    drop(back);
    gateway.kill();
    // What is durable then of the one that was asked for when nobody had taken anything back.
    let mut asked: serde_json::Value = serde_json::from_str(&asked).expect("JSON");
    (asked["generation"], asked["stage"], asked["claimed"]) = (3.into(), "fencing".into(), false.into());
    std::fs::write(&note, asked.to_string()).expect("written");
    gateway.start().await;
    assert_eq!(promoted(&gateway).await.generation, 4);
    let mut woken = host.connect_when_ready("default").await;
    assert!(matches!(claim_outcome(&mut woken, &volume, 3).await, ClaimOutcome::Void { reason: VoidReason::Fenced { .. } }));
}

/// † Each time that it is tried anew it fences above what it put before, and whoever starts after that must know those claims for its own. Taken for
/// somebody else's they would have it given up, and its stand-in told that its source has its history back.
#[tokio::test]
async fn l6_claims_that_a_failover_put_and_could_not_note_are_its_own() {
    let (mut gateway, _host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    gateway.client().failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    assert_eq!(promoted(&gateway).await.generation, 2);
    gateway.stop();
    // One more was begun, and its claims were put by a process that was killed before it could note them.
    let note = gateway.path("state/failovers/host1/default.json");
    let first: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&note).expect("kept")).expect("JSON");
    let mut again = first.clone();
    (again["generation"], again["stage"], again["claimed"]) = (3.into(), "fencing".into(), false.into());
    again["before"] = first;
    std::fs::write(&note, again.to_string()).expect("written");
    let path = gateway.path("store");
    let claims = |generation| {
        let store = farside_store::Store::open(&path).expect("opened");
        let mut group = store.group(&name("host1"), &name("default")).expect("opened");
        let claims: Vec<Claim> = group.state().claims_below(Generation(generation)).collect();
        for claim in claims {
            group.append(Body::Claim(claim)).expect("put");
        }
        group.state().highest_generation().0
    };
    assert_eq!(claims(3), 3);
    // Nor can the next one note anything.
    let stands_in_the_way = note.with_extension("tmp");
    std::fs::create_dir(&stands_in_the_way).expect("made");
    for _ in 0..2 {
        gateway.start().await;
        let said = async || {
            let all = gateway.client().failovers().await.unwrap_or_default();
            let why = all.into_iter().next().and_then(|one| one.why).unwrap_or_default();
            assert!(!why.contains("has gone on since"), "{why}");
            why.contains("default.json")
        };
        wait_until("it to be said that nothing can be noted", said).await;
        let abort = FailoverRequest { abort: true, ..request() };
        let refused = gateway.client().failover(&abort).await.expect_err("everybody is fenced").to_string();
        assert!(refused.contains("is fenced, or may be"), "{refused}");
        gateway.kill();
    }
    assert_eq!(claims(0), 3, "nothing is claimed above what is noted");
    std::fs::remove_dir(&stands_in_the_way).expect("removed");
    gateway.start().await;
    let done = promoted(&gateway).await;
    assert_eq!(done.generation, 4);
    gateway.check_store();
}

/// The source takes the history back: the failover is over, and its follower follows again once a person says so.
#[tokio::test]
async fn who_takes_the_history_back_ends_the_failover() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let client = gateway.client();
    let target = gateway.path("data.img");
    client.follower_add(&add("data", &target)).await.expect("added");
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    promoted(&gateway).await;
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&target).expect("open"), b"ours", 4096)
        .expect("written");

    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    wait_until("the failover to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    assert!(gateway.points(None).await.iter().all(|point| point.pins.is_empty()));
    assert!(gateway.status().await.reasons.iter().all(|reason| reason.code != "failed_over"));
    back.publish(&volume, 1, &granules(3, 20), LayerKind::Point).await;
    // Its target is still ours, also at another failover.
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("begun again");
    let again = promoted(&gateway).await;
    assert_eq!((again.generation, &again.members[0].follower), (4, &None));
    drop(back);
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(5)).await;
    wait_until("that to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    let newest = back.publish(&volume, 1, &granules(3, 20), LayerKind::Point).await;
    assert_eq!(client.follower("data").await.expect("there").state, FollowerState::Promoted);
    client.follower_tell(routes::FOLLOWER_RESUME, "data").await.expect("goes on");
    wait_until("what was written to be noticed", async || {
        client.follower("data").await.is_ok_and(|one| one.state == FollowerState::Diverged)
    })
    .await;
    client.follower_tell(routes::FOLLOWER_HEAL, "data").await.expect("healed");
    wait_until("it to follow", async || {
        let one = client.follower("data").await.expect("there");
        one.state == FollowerState::Following && one.holds.is_some_and(|point| point.id.slot == newest.slot.0)
    })
    .await;
    assert!(std::fs::read(&target).expect("read") == image(&granules(3, 20)));
}

/// A target that somebody else wrote to is not handed over as if it were the point; healed, it is.
#[tokio::test]
async fn a_target_that_diverged_is_promoted_once_it_is_healed() {
    let (gateway, _host, mut source, volume) = Gateway::with_claim().await;
    let content = granules(0, 20);
    let newest = source.publish(&volume, 1, &content, LayerKind::Point).await;
    drop(source);
    let client = gateway.client();
    let target = gateway.path("data.img");
    client.follower_add(&add("data", &target)).await.expect("added");
    wait_until("it to be filled", async || {
        client.follower("data").await.is_ok_and(|one| one.holds.is_some_and(|point| point.id.slot == newest.slot.0))
    })
    .await;
    let stranger = std::fs::File::options().write(true).open(&target).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&stranger, b"a stranger", 33 << 20).expect("written");
    drop(stranger); // what somebody has open is not written over
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    wait_until("it to be noticed", async || client.follower("data").await.is_ok_and(|one| one.state == FollowerState::Diverged))
        .await;
    // Whoever looks at it first has it paused meanwhile.
    client.follower_tell(routes::FOLLOWER_PAUSE, "data").await.expect("paused");
    client.follower_tell(routes::FOLLOWER_RESUME, "data").await.expect("goes on");
    client.follower_tell(routes::FOLLOWER_HEAL, "data").await.expect("healed");
    let done = promoted(&gateway).await;
    assert_eq!(done.members[0].state, Some(FollowerState::Promoted));
    assert!(std::fs::read(&target).expect("read") == image(&content));
}

/// What a target holds that was handed over is its host's: its point stayed for as long as the follower was there.
#[tokio::test]
async fn a_target_that_was_handed_over_keeps_no_point() {
    let mut gateway = Gateway::new("[retention]\ninterval = \"0s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.set_keep(1).await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let target = gateway.path("data.img");
    gateway.client().follower_add(&add("data", &target)).await.expect("added");
    gateway.client().failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    promoted(&gateway).await;
    let mut source = host.connect("default").await;
    let mut volume = source.claim_back("data", &volume, Generation(3)).await;
    wait_until("the failover to be over", async || gateway.client().failovers().await.is_ok_and(|all| all.is_empty())).await;
    let mut newest = source.publish(&volume, 1, &granules(0, 30), LayerKind::Point).await;
    for is_anew in [false, true] {
        if is_anew {
            drop(source);
            gateway.kill();
            gateway.start().await;
            source = host.connect("default").await;
            volume = source.claim_back("data", &volume, Generation(3)).await;
            newest = source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
        }
        wait_until("its point to go", async || gateway.points(None).await.len() == 1).await;
    }
    gateway.client().follower_tell(routes::FOLLOWER_RESUME, "data").await.expect("goes on");
    wait_until("it to follow again", async || {
        let one = gateway.client().follower("data").await;
        one.is_ok_and(|one| one.holds.is_some_and(|point| point.id.slot == newest.slot.0))
    })
    .await;
    assert!(std::fs::read(&target).expect("read") == image(&granules(0, 40)));
}

/// One that never came to the point of a failover follows as before when the source has its history back, and is a copy of the next failover.
#[tokio::test]
async fn a_target_that_was_never_handed_over_follows_again_when_the_failover_is_over() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    let newest = source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let client = gateway.client();
    let target = gateway.path("data.img");
    client.follower_add(&add("data", &target)).await.expect("added");
    let holds = async |slot: Slot| {
        wait_until("it to hold the point", async || {
            client.follower("data").await.is_ok_and(|one| one.holds.is_some_and(|point| point.id.slot == slot.0))
        })
        .await;
    };
    holds(newest.slot).await;
    let stranger = std::fs::File::options().write(true).open(&target).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&stranger, b"a stranger", 33 << 20).expect("written");
    drop(stranger);
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    wait_until("it to be noticed", async || client.follower("data").await.is_ok_and(|one| one.state == FollowerState::Diverged))
        .await;

    let mut source = host.connect("default").await;
    let volume = source.claim_back("data", &volume, Generation(3)).await;
    wait_until("the failover to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    let content = granules(0, 30);
    let later = source.publish(&volume, 1, &content, LayerKind::Point).await;
    client.follower_tell(routes::FOLLOWER_HEAL, "data").await.expect("healed");
    holds(later.slot).await;
    assert_eq!(client.follower("data").await.expect("there").state, FollowerState::Following);
    assert!(std::fs::read(&target).expect("read") == image(&content));

    drop(source);
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    let done = promoted(&gateway).await;
    assert_eq!((done.generation, done.members[0].state), (4, Some(FollowerState::Promoted)));
}

/// Source and stand-in are the same group to the gateway: each would take the other's place in the cohort, and no cut would be whole.
#[tokio::test]
async fn a_source_that_is_fenced_takes_nobodys_place_in_its_cohort() {
    let mut gateway = Gateway::new("[[cohort]]\nname = \"erp\"\ngroups = [\"host1/default\", \"host3/default\"]\n");
    gateway.start().await;
    let (host, other) = (gateway.pair("host1").await, gateway.pair("host2").await);
    let greeted = |m: ReceiverMessage| matches!(m, ReceiverMessage::Hello(_)).then_some(());
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    host.cohort_hello("host1", "default").await.expect("a greeting", greeted).await;
    drop(source);
    let client = gateway.client();
    client.failover(&FailoverRequest { stand_in: Some("host2".into()), force: true, ..request() }).await.expect("begun");
    promoted(&gateway).await;
    let mut stands_in = other.cohort_hello("host1", "default").await;
    stands_in.expect("a greeting", greeted).await;
    for _ in 0..3 {
        let refused = host.cohort_hello("host1", "default").await.refusal().await;
        assert!(refused.text.contains("host1/default was failed over"), "{}", refused.text);
    }
    // It still has its place: whoever comes after it takes that.
    let mut again = other.cohort_hello("host1", "default").await;
    again.expect("a greeting", greeted).await;
    stands_in.closed().await;
    // Until the source has the history back.
    let mut source = host.connect("default").await;
    source.claim_back("data", &volume, Generation(3)).await;
    wait_until("the failover to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    host.cohort_hello("host1", "default").await.expect("a greeting", greeted).await;
    again.closed().await;
}

/// The note of a failover stands for a volume that the source has removed since, and that nobody takes back: its host is in the cuts of its cohort all the
/// same once it publishes again.
#[tokio::test]
async fn a_source_that_removed_a_volume_is_in_its_cohort_again_with_the_others() {
    let mut gateway = Gateway::new("[[cohort]]\nname = \"erp\"\ngroups = [\"host1/default\", \"host3/default\"]\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let greeted = |m: ReceiverMessage| matches!(m, ReceiverMessage::Hello(_)).then_some(());
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    let ((data_part, data_member), (log_part, log_member)) = (data.part(1, &granules(0, 20)), log.part(1, &granules(0, 20)));
    source.send_part(&data, 1, 0, &data_part).await;
    source.send_part(&log, 1, 0, &log_part).await;
    source.end(vec![data_member, log_member], LayerKind::Point).await;
    source.published(&data, 1).await;
    drop(source);
    gateway.client().failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    assert_eq!(promoted(&gateway).await.members.len(), 2);
    host.cohort_hello("host1", "default").await.refusal().await;
    let mut source = host.connect("default").await;
    source.claim_back("data", &data, Generation(3)).await;
    let taken_back = async || gateway.status().await.sources[0].groups[0].volumes.iter().any(|volume| volume.generation == 3);
    wait_until("its claim to be seen", taken_back).await;
    host.cohort_hello("host1", "default").await.expect("a greeting", greeted).await;
    let stands = gateway.client().failovers().await.expect("an answer");
    assert_eq!(stands.len(), 1, "nobody took the other volume back");
}

/// Whoever stood in is lost as well: what it published is brought up, once somebody asks for that.
#[tokio::test]
async fn a_stand_in_that_is_lost_is_failed_over_again() {
    let (gateway, _host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let other = gateway.pair("host2").await;
    let client = gateway.client();
    let first = FailoverRequest { stand_in: Some("host2".into()), force: true, ..request() };
    client.failover(&first).await.expect("begun");
    promoted(&gateway).await;
    assert_eq!(client.failover(&request()).await.expect("the same one").generation, 2);
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    let content = granules(3, 9);
    let newest = stands_in.publish(&theirs, 1, &content, LayerKind::Point).await;
    let target = gateway.path("second.img");
    client.follower_add(&add("data", &target)).await.expect("added");

    // Nobody is told that what is weeks old is up.
    let refused = client.failover(&request()).await.expect_err("there is something newer").to_string();
    assert!(refused.contains("were published since"), "{refused}");
    let again = FailoverRequest { again: true, ..request() };
    assert!(client.failover(&again).await.expect_err("it is connected").to_string().contains("it is alive, or was"));
    drop(stands_in);
    let plan = async || client.failover(&FailoverRequest { plan: true, ..again.clone() }).await.expect("a plan");
    wait_until("it to be gone", async || plan().await.connected_from.is_none()).await;
    let planned = plan().await;
    assert_eq!((planned.stage, planned.generation), (FailoverStage::Planned, 3));
    assert_eq!(planned.point.expect("a point").id.slot, newest.slot.0);
    client.failover(&again).await.expect("begun");
    let done = promoted(&gateway).await;
    assert_eq!((done.generation, done.members[0].follower.as_deref(), done.stand_in), (3, Some("data"), None));
    assert!(std::fs::read(&target).expect("read") == image(&content));
    wait_until("the point of the one before to be let go", async || {
        let pins = |point: farside_control::Point| point.pins.into_iter().map(|pin| pin.reason).collect::<Vec<_>>();
        let pinned: Vec<_> = gateway.points(None).await.into_iter().map(pins).collect();
        pinned == [vec!["failover, generation 3".to_owned()], Vec::new()]
    })
    .await;
    assert_eq!(client.failovers().await.expect("listed").len(), 1);
    let refusal = other.hello_as("host1", "default").await.refusal().await;
    assert!(refusal.text.contains("no failover lets it stand in"), "{}", refusal.text);
    let given_up = client.failover(&FailoverRequest { abort: true, ..request() }).await.expect_err("it has fenced").to_string();
    assert!(given_up.contains("its source is fenced"), "{given_up}");
}

/// The source that was fenced is there again, and the host that stands in is gone: it is that one which is asked about, and nobody is called alive for it.
#[tokio::test]
async fn a_source_that_is_fenced_does_not_pass_for_its_stand_in() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(source);
    let other = gateway.pair("host2").await;
    let client = gateway.client();
    let first = FailoverRequest { stand_in: Some("host2".into()), force: true, ..request() };
    assert!(!client.failover(&first).await.expect("begun").published_since);
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    assert!(client.failovers().await.expect("listed")[0].published_since);
    let _woken = host.connect_when_ready("default").await;
    let again = FailoverRequest { again: true, ..request() };
    let refused = client.failover(&again).await.expect_err("it is connected").to_string();
    assert!(refused.contains("host2 is connected"), "{refused}");
    drop(stands_in);
    let plan = async || client.failover(&FailoverRequest { plan: true, ..again.clone() }).await.expect("a plan");
    wait_until("it to be gone", async || plan().await.connected_from.is_none()).await;
    let planned = plan().await;
    assert_eq!((planned.fences.as_deref(), planned.silent_ms.is_some()), (Some("host2"), true), "{planned:?}");
    client.failover(&again).await.expect("begun");
    assert_eq!(promoted(&gateway).await.generation, 3);
    gateway.check_store();
}

/// While a failover waits, its source is back and publishes a point that lacks a volume: nobody was shown that one.
#[tokio::test]
async fn a_failover_brings_up_no_fewer_volumes_than_were_shown() {
    let mut gateway = Gateway::new("fence_after = \"1h\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    source.set_keep(1).await;
    let members = vec![source.send_layer(&data, 1, &granules(5, 30)).await, source.send_layer(&log, 1, &granules(0, 3)).await];
    source.end(members, LayerKind::Point).await;
    let shown = source.published(&log, 1).await;
    drop(source);
    gateway.stop();
    gateway.start().await;
    let client = gateway.client();
    wait_until("its group to be open", async || !gateway.points(None).await.is_empty()).await;
    let waits = client.failover(&request()).await.expect("it waits for who may be alive");
    assert_eq!((waits.stage, waits.members.len()), (FailoverStage::Fencing, 2), "{waits:?}");

    let mut source = host.connect_when_ready("default").await;
    let data = source.claim_above("data", &data).await;
    let newer = source.publish(&data, 1, &granules(5, 30), LayerKind::Point).await;
    let now = client.failovers().await.expect("listed").remove(0);
    assert_eq!((now.stage, now.members.len(), now.left_out.len()), (FailoverStage::Fencing, 2, 0), "{now:?}");
    assert_eq!(now.newest.map(|newest| newest.id.slot), Some(newer.slot.0));
    client.failover(&FailoverRequest { force: true, ..request() }).await.expect("forced");
    let done = promoted(&gateway).await;
    assert_eq!(done.point.as_ref().map(|point| point.id.slot), Some(shown.slot.0), "{done:?}");
    assert_eq!((done.members.len(), done.left_out.len()), (2, 0), "{done:?}");
    gateway.check_store();
}
