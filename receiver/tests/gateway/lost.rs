//! A gateway whose state directory was lost, or is older than its store.

use std::path::{Path, PathBuf};

use farside_control::failover::FailoverRequest;
use farside_control::follower::{FollowerAdd, FollowerState, Follows};
use farside_control::routes::{self, PointsQuery};
use farside_ledger::LayerKind;
use farside_region::{Generation, LedgerPosition};
use farside_wire::{PullBegin, ReceiverMessage, RequestId, SourceMessage};

use crate::cohorts::{COHORT, publish_cut};
use crate::site::{Gateway, Source, Volume, granules, wait_until};

fn request() -> FailoverRequest {
    FailoverRequest { group: "host1/default".into(), ..FailoverRequest::default() }
}

fn to(point: LedgerPosition) -> FailoverRequest {
    FailoverRequest { point: Some(point.slot.0), force: true, ..request() }
}

/// Three points of a source that is gone.
async fn with_three_points() -> (Gateway, Source, Volume, Vec<LedgerPosition>) {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    let mut points = Vec::new();
    for seq in 1..=3 {
        points.push(source.publish(&volume, seq, &granules(0, 20), LayerKind::Point).await);
    }
    drop(source);
    (gateway, host, volume, points)
}

/// With a follower that holds the newest point; its target.
async fn with_follower(gateway: &Gateway) -> PathBuf {
    let target = gateway.path("data.img");
    let add = FollowerAdd {
        name: Some("data".into()),
        volume: "host1/default/data".into(),
        target: target.clone(),
        follows: Follows::Newest,
        overwrite: false,
        lock: None,
    };
    gateway.client().follower_add(&add).await.expect("added");
    follower_is("it to hold a point", gateway, FollowerState::Following).await;
    target
}

async fn follower_is(what: &str, gateway: &Gateway, wanted: FollowerState) {
    wait_until(what, async || gateway.client().follower("data").await.is_ok_and(|one| one.state == wanted)).await;
}

/// As who uses what was promoted; and lets go of it, since what somebody has open is not written over.
fn writes_to(target: &Path) {
    let file = std::fs::File::options().write(true).open(target).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&file, b"ours", 8192).expect("written");
}

/// It starts without what failovers had noted.
async fn loses_its_notes(gateway: &mut Gateway) {
    gateway.stop();
    for folder in ["state/failovers", "state/taken-back"] {
        let _ = std::fs::remove_dir_all(gateway.path(folder));
    }
    gateway.start().await;
    wait_until("its group to be open", async || !gateway.points(None).await.is_empty()).await;
}

async fn refused(gateway: &Gateway, request: &FailoverRequest) -> String {
    gateway.client().failover(request).await.expect_err("it is to be refused").to_string()
}

async fn pins(gateway: &Gateway) -> Vec<(u64, String)> {
    let of = |point: farside_control::Point| point.pins.into_iter().map(move |pin| (point.id.slot, pin.reason));
    gateway.points(None).await.into_iter().flat_map(of).collect()
}

/// † What a failover left aside is the newest of the group, and may be what ransomware wrote; only a pin tells of it.
#[tokio::test]
async fn what_a_failover_left_aside_that_nobody_noted_is_not_brought_up() {
    let (mut gateway, host, _, points) = with_three_points().await;
    gateway.client().failover(&to(points[0])).await.expect("begun");
    loses_its_notes(&mut gateway).await;
    for (force, plan) in [(false, false), (true, false), (false, true)] {
        let words = refused(&gateway, &FailoverRequest { force, plan, ..request() }).await;
        assert!(words.contains("no note of that"), "{words}");
    }
    gateway.client().failover(&FailoverRequest { plan: true, ..to(points[0]) }).await.expect("shown to whoever forces it");
    // Nor is it brought home.
    let mut pull = host.pulling("host1", "default").await;
    pull.send(SourceMessage::PullBegin(PullBegin { id: RequestId(1), have: None })).await;
    let words = pull.refusal().await.text;
    assert!(words.contains("may have been left aside"), "{words}");
    drop(pull);
    gateway.client().failover(&to(points[0])).await.expect("it was named");
    let only = [(points[0].slot.0, "failover, generation 3".to_owned())];
    wait_until("the pin of the former to be gone", async || pins(&gateway).await == only).await;
    let mut pull = host.pulling("host1", "default").await;
    pull.send(SourceMessage::PullBegin(PullBegin { id: RequestId(1), have: None })).await;
    let brought_home = pull.expect("a point", |m| match m {
        ReceiverMessage::PullPoint(point) => Some(point.position),
        _ => None,
    });
    assert_eq!(brought_home.await, points[0]);
    gateway.check_store();
}

/// Its source has taken its history back, and published nothing since.
#[tokio::test]
async fn what_one_that_is_over_left_aside_is_not_brought_up_either() {
    let (mut gateway, host, volume, points) = with_three_points().await;
    gateway.client().failover(&to(points[0])).await.expect("begun");
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    wait_until("it to be over", async || gateway.client().failovers().await.is_ok_and(|all| all.is_empty())).await;
    drop(back);
    assert!(gateway.path("state/taken-back/host1/default.json").exists());
    loses_its_notes(&mut gateway).await;
    let words = refused(&gateway, &FailoverRequest { force: true, ..request() }).await;
    assert!(words.contains("no note of that"), "{words}");
    // What it publishes from there on is the history, whatever is pinned.
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    let newest = back.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    drop(back);
    let done = gateway.client().failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    assert_eq!(done.point.map(|point| point.id.slot), Some(newest.slot.0));
    let only = [(newest.slot.0, "failover, generation 4".to_owned())];
    wait_until("the pin of the former to be gone", async || pins(&gateway).await == only).await;
}

/// † What it has may be all that is left of what was written since.
#[tokio::test]
async fn a_stand_in_that_nobody_noted_is_not_told_to_let_go_of_its_copy() {
    let (mut gateway, _, volume, points) = with_three_points().await;
    let other = gateway.pair("host2").await;
    let stand_in = Some("host2".to_owned());
    gateway.client().failover(&FailoverRequest { stand_in, ..to(points[0]) }).await.expect("begun");
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    loses_its_notes(&mut gateway).await;
    let told = async || other.hello_as("host1", "default").await.refusal().await.text;
    let (before, way_out) = (told().await, "farside failover host1/default --point 1 --force --stand-in host2");
    assert!(before.contains(way_out) && !before.contains("remove"), "{before}");
    let stand_in = Some("host2".to_owned());
    gateway.client().failover(&FailoverRequest { stand_in, ..to(points[0]) }).await.expect("as it was told");
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &theirs, Generation(3)).await;
    let newest = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    drop(stands_in);
    loses_its_notes(&mut gateway).await;
    let since = told().await;
    assert!(since.contains(&format!("--point {} --force", newest.slot)) && !since.contains("remove"), "{since}");
}

/// What was published since is surely not aside: nobody has to force it, and do without the other checks.
#[tokio::test]
async fn what_was_published_since_a_failover_that_nobody_noted_is_brought_up_unforced() {
    let (mut gateway, _, volume, points) = with_three_points().await;
    let other = gateway.pair("host2").await;
    let stand_in = Some("host2".to_owned());
    gateway.client().failover(&FailoverRequest { stand_in, ..to(points[0]) }).await.expect("begun");
    let mut stands_in = other.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    let newest = stands_in.publish(&theirs, 1, &granules(3, 9), LayerKind::Point).await;
    drop(stands_in);
    loses_its_notes(&mut gateway).await;
    let planned = gateway.client().failover(&FailoverRequest { plan: true, ..request() }).await.expect("not refused");
    assert_eq!(planned.point.map(|point| point.id.slot), Some(newest.slot.0));
    // What may have been left aside is asked about as before.
    let aside = FailoverRequest { point: Some(points[2].slot.0), ..request() };
    assert!(refused(&gateway, &aside).await.contains("no note of that"));
    assert_eq!(gateway.client().failover(&request()).await.expect("begun").generation, 3);
    let only = [(newest.slot.0, "failover, generation 3".to_owned())];
    wait_until("it to be brought up", async || pins(&gateway).await == only).await;
}

/// † What they left aside is no history of a later one either; of those before the last one no pin tells.
#[tokio::test]
async fn what_failovers_left_aside_that_nobody_noted_is_in_doubt_of_its_cohort_and_stays_aside() {
    let mut gateway = Gateway::new(COHORT);
    gateway.start().await;
    let (host, other, third) = (gateway.pair("host1").await, gateway.pair("host2").await, gateway.pair("host3").await);
    let (mut source, mut other) = (host.connect("default").await, other.connect("default").await);
    let (volume, other_volume) = (source.claim("data").await, other.claim("data").await);
    let mut cuts = Vec::new();
    for seq in 1..=3_u8 {
        cuts.push(publish_cut(&mut source, &volume, seq.into(), seq).await);
        publish_cut(&mut other, &other_volume, seq.into(), seq).await;
    }
    drop(source);
    let stand_in = Some("host3".to_owned());
    let first = FailoverRequest { point: Some(cuts[0]), force: true, stand_in, ..request() };
    gateway.client().failover(&first).await.expect("begun");
    let mut stands_in = third.connect_as("host1", "default").await;
    let theirs = stands_in.claim_back("data", &volume, Generation(2)).await;
    let since = publish_cut(&mut stands_in, &theirs, 1, 4).await;
    publish_cut(&mut other, &other_volume, 4, 4).await;
    drop((stands_in, other));

    loses_its_notes(&mut gateway).await;
    let of_cuts =
        async |gateway: &Gateway| gateway.client().cohort_cuts("erp", &PointsQuery::default()).await.unwrap_or_default();
    let aside = async |gateway: &Gateway| -> Vec<u64> {
        let points = of_cuts(gateway).await.into_iter().filter_map(|cut| cut.points.into_iter().find(|one| one.aside));
        points.map(|one| one.point.slot).collect()
    };
    wait_until("both groups to be open", async || of_cuts(&gateway).await.len() == 4).await;
    assert_eq!(aside(&gateway).await, [cuts[2], cuts[1]]);
    let brought_up = async |gateway: &Gateway, generation: u64| {
        let only = [(since, format!("failover, generation {generation}"))];
        wait_until("it to be brought up", async || pins(gateway).await == only).await;
    };
    gateway.client().failover(&request()).await.expect("what was published since is not forced");
    brought_up(&gateway, 3).await;
    assert_eq!(aside(&gateway).await, [cuts[2], cuts[1]]);

    loses_its_notes(&mut gateway).await;
    wait_until("both groups to be open", async || of_cuts(&gateway).await.len() == 4).await;
    assert_eq!(aside(&gateway).await, [cuts[2], cuts[1], cuts[0]], "which of them is history is not known");
    let cut = Some(of_cuts(&gateway).await.swap_remove(2).id);
    let words = refused(&gateway, &FailoverRequest { point: Some(cuts[1]), cut, ..request() }).await;
    assert!(words.contains("no note of that"), "{words}");
    gateway.client().failover(&FailoverRequest { point: Some(since), force: true, ..request() }).await.expect("it was named");
    brought_up(&gateway, 4).await;
    assert_eq!(aside(&gateway).await, [cuts[2], cuts[1], cuts[0]]);
    gateway.stop();
    gateway.check_store();
}

/// † Whoever publishes by now is nobody whom a person wanted to be fenced.
#[tokio::test]
async fn l6_a_failover_that_waits_in_an_older_state_directory_fences_nobody() {
    let (mut gateway, host, volume, _) = with_three_points().await;
    let client = gateway.client();
    let forced = FailoverRequest { force: true, ..request() };
    client.failover(&forced).await.expect("begun");
    let note = gateway.path("state/failovers/host1/default.json");
    let begun = std::fs::read_to_string(&note).expect("kept");
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    wait_until("it to be over", async || client.failovers().await.is_ok_and(|all| all.is_empty())).await;
    back.publish(&volume, 1, &granules(0, 20), LayerKind::Point).await;
    gateway.stop();
    // As it was before it had fenced anybody.
    let mut begun: serde_json::Value = serde_json::from_str(&begun).expect("JSON");
    (begun["stage"], begun["claimed"]) = ("fencing".into(), false.into());
    std::fs::write(&note, begun.to_string()).expect("written");
    gateway.start().await;
    let is_said = async || {
        gateway.status().await.reasons.iter().any(|reason| reason.message.contains("has gone on since that failover was begun"))
    };
    wait_until("that to be said", is_said).await;
    let words = refused(&gateway, &forced).await;
    assert!(words.contains("fences nobody"), "{words}");
    let mut back = host.connect_when_ready("default").await;
    let volume = back.claim_back("data", &volume, Generation(3)).await;
    back.publish(&volume, 1, &granules(3, 20), LayerKind::Point).await;
    client.failover(&FailoverRequest { abort: true, ..request() }).await.expect("given up");
    assert!(!note.exists());
    assert_eq!(client.failover(&forced).await.expect("begun anew").generation, 4);
    gateway.check_store();
}

/// † It went through since, and left points aside of which the note that was put back knows nothing.
#[tokio::test]
async fn what_a_failover_left_aside_that_waits_in_an_older_state_directory_is_not_brought_home() {
    let (mut gateway, host, _, points) = with_three_points().await;
    let other = gateway.pair("host2").await;
    gateway.client().failover(&to(points[0])).await.expect("begun");
    gateway.stop();
    let note = gateway.path("state/failovers/host1/default.json");
    let mut begun: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&note).expect("kept")).expect("JSON");
    (begun["stage"], begun["claimed"]) = ("fencing".into(), false.into());
    std::fs::write(&note, begun.to_string()).expect("written");
    gateway.start().await;
    wait_until("its group to be open", async || !gateway.points(None).await.is_empty()).await;
    let pulled = async || {
        let mut pull = host.pulling("host1", "default").await;
        pull.send(SourceMessage::PullBegin(PullBegin { id: RequestId(1), have: None })).await;
        pull
    };
    let words = pulled().await.refusal().await.text;
    assert!(words.contains("may have been left aside"), "{words}");
    let told = async || other.hello_as("host1", "default").await.refusal().await.text;
    let words = told().await;
    assert!(words.contains("farside failover host1/default --abort") && !words.contains("is let in"), "{words}");
    gateway.client().failover(&FailoverRequest { abort: true, ..request() }).await.expect("given up");
    let words = told().await;
    assert!(words.contains("--force --stand-in host2"), "{words}");
    gateway.client().failover(&to(points[0])).await.expect("it was named");
    let brought_home = pulled()
        .await
        .expect("a point", |m| match m {
            ReceiverMessage::PullPoint(point) => Some(point.position),
            _ => None,
        })
        .await;
    assert_eq!(brought_home, points[0]);
}

/// † Its target was promoted since, and is in use: what is written there is nowhere else.
#[tokio::test]
async fn what_was_promoted_is_not_written_over_by_a_state_directory_from_before() {
    let (mut gateway, _, _, _) = with_three_points().await;
    let target = with_follower(&gateway).await;
    gateway.stop();
    let files = ["data.json", "data~holds.json"].map(|file| gateway.path("state/followers").join(file));
    let before = files.clone().map(|file| std::fs::read_to_string(file).expect("kept"));
    // As it was while it was filled; or on its way between two points, which one that is killed goes on with.
    let mut holds: serde_json::Value = serde_json::from_str(&before[1]).expect("JSON");
    let at = holds["following"]["stage"]["at"].clone();
    assert!(!at.is_null() && holds["generation"] == 1, "{holds}");
    holds["following"]["stage"] = serde_json::json!({ "applying": { "between": null, "to": at } });
    std::fs::write(&files[1], holds.to_string()).expect("written");
    gateway.start().await;
    follower_is("it to go on", &gateway, FollowerState::Following).await;

    gateway.client().failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    follower_is("it to be promoted", &gateway, FollowerState::Promoted).await;
    for between in [serde_json::Value::Null, serde_json::json!([at, at])] {
        writes_to(&target);
        gateway.stop();
        std::fs::remove_dir_all(gateway.path("state/failovers")).expect("there is one");
        std::fs::write(&files[0], &before[0]).expect("put back");
        holds["following"]["stage"] = serde_json::json!({ "applying": { "between": between, "to": at } });
        std::fs::write(&files[1], holds.to_string()).expect("put back");
        gateway.start().await;
        follower_is("it to stop", &gateway, FollowerState::Diverged).await;
        let one = gateway.client().follower("data").await.expect("there");
        assert!(one.reasons.iter().any(|reason| reason.message.contains("does not know of")), "{:?}", one.reasons);
        assert_eq!(&std::fs::read(&target).expect("read")[8192..8196], b"ours");
        // A person may have it written over.
        gateway.client().follower_tell(routes::FOLLOWER_HEAL, "data").await.expect("healed");
        follower_is("it to follow", &gateway, FollowerState::Following).await;
        assert_ne!(&std::fs::read(&target).expect("read")[8192..8196], b"ours");
        std::fs::create_dir_all(gateway.path("state/failovers")).expect("made");
    }
}

/// † The same of one that was promoted for good, of which no pin tells; the note that was put back is of the failover before it.
#[tokio::test]
async fn what_was_promoted_for_good_is_not_written_over_by_a_state_directory_from_before() {
    let (mut gateway, _, _, _) = with_three_points().await;
    let target = with_follower(&gateway).await;
    let files = ["data.json", "data~holds.json"].map(|file| gateway.path("state/followers").join(file));
    let before = files.clone().map(|file| std::fs::read_to_string(file).expect("kept"));
    let forced = FailoverRequest { force: true, ..request() };
    gateway.client().failover(&forced).await.expect("begun");
    let note = gateway.path("state/failovers/host1/default.json");
    let read = || std::fs::read_to_string(&note).unwrap_or_default();
    wait_until("it to be promoted", async || read().contains("promoted")).await;
    let second = read();
    gateway.client().failover(&FailoverRequest { again: true, ..forced.clone() }).await.expect("once more");
    follower_is("its target to be promoted", &gateway, FollowerState::Promoted).await;
    gateway.client().failover(&FailoverRequest { commit: Some(true), ..forced }).await.expect("for good");
    wait_until("no pin to be left", async || pins(&gateway).await.is_empty()).await;
    gateway.stop();
    writes_to(&target);
    // As it was between the two.
    let mut holds: serde_json::Value = serde_json::from_str(&before[1]).expect("JSON");
    let at = holds["following"]["stage"]["at"].clone();
    holds["following"]["stage"] = serde_json::json!({ "applying": { "between": null, "to": at } });
    holds["generation"] = 2.into();
    std::fs::write(&note, second).expect("put back");
    std::fs::write(&files[0], &before[0]).expect("put back");
    std::fs::write(&files[1], holds.to_string()).expect("put back");
    gateway.start().await;
    follower_is("it to stop", &gateway, FollowerState::Diverged).await;
    assert_eq!(&std::fs::read(&target).expect("read")[8192..8196], b"ours");
    wait_until("the older one to be over", async || !note.exists()).await;
    assert!(!gateway.path("state/known-promotions/host1/default.json").exists(), "nobody here knows who promoted that");
}

/// The failover was noted, and is over: its source has its history back, and nothing of its target is anybody else's.
#[tokio::test]
async fn a_follower_that_was_paused_on_its_way_goes_on_after_a_failback() {
    let (mut gateway, host, volume, _) = with_three_points().await;
    with_follower(&gateway).await;
    gateway.client().follower_tell(routes::FOLLOWER_PAUSE, "data").await.expect("paused");
    gateway.stop();
    let file = gateway.path("state/followers/data~holds.json");
    let mut holds: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("kept")).expect("JSON");
    let at = holds["following"]["stage"]["at"].clone();
    holds["following"]["stage"] = serde_json::json!({ "applying": { "between": null, "to": at } });
    std::fs::write(&file, holds.to_string()).expect("written");
    gateway.start().await;
    gateway.client().failover(&FailoverRequest { force: true, ..request() }).await.expect("begun");
    let mut back = host.connect_when_ready("default").await;
    back.claim_back("data", &volume, Generation(3)).await;
    wait_until("it to be over", async || gateway.client().failovers().await.is_ok_and(|all| all.is_empty())).await;
    drop(back);
    gateway.stop();
    gateway.start().await;
    gateway.client().follower_tell(routes::FOLLOWER_RESUME, "data").await.expect("resumed");
    follower_is("it to follow", &gateway, FollowerState::Following).await;
    // † A state directory from before knows of none of that, and no pin tells of it any more.
    gateway.stop();
    std::fs::remove_dir_all(gateway.path("state/known-promotions")).expect("there is one");
    std::fs::write(&file, holds.to_string()).expect("put back");
    gateway.start().await;
    follower_is("it to stop", &gateway, FollowerState::Diverged).await;
}
