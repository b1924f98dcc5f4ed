//! Points that were verified, on request and unasked: what is on record of them, and what is said where one is not sound.

use std::path::{Path, PathBuf};

use farside_control::client::Client;
use farside_control::failover::FailoverRequest;
use farside_control::receiver::ReceiverGroup;
use farside_control::routes::{PagesQuery, PointsQuery};
use farside_control::{PinRequest, Reason, Verification, VerificationState, VerifiedHow};
use farside_ledger::LayerKind;
use farside_wire::ReceiverMessage;

use crate::site::{Gateway, granules, wait_until};

fn anything() -> PointsQuery {
    PointsQuery { of: Some("host1/default".into()), limit: None }
}

pub(crate) async fn verified(client: &Client, point: &str, of: &str) -> Verification {
    let query = PointsQuery { of: Some(of.into()), limit: None };
    client.point_verify(point, &query).await.expect("begun");
    let mut now = None;
    wait_until("the verification to end", async || {
        let shown = client.verification().await.expect("one was begun");
        let is_over = shown.state != VerificationState::Running;
        now = is_over.then_some(shown);
        is_over
    })
    .await;
    now.expect("it ended")
}

async fn group(gateway: &Gateway) -> ReceiverGroup {
    gateway.status().await.sources[0].groups[0].clone()
}

fn newest_segment(gateway: &Gateway) -> PathBuf {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
        }
    }
    let mut found = Vec::new();
    walk(&gateway.path("store/groups/host1/default/segments"), &mut found);
    found.into_iter().max().expect("a segment")
}

#[tokio::test]
async fn a_point_that_was_found_sound_as_a_whole_is_on_record() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    for volume in [&data, &log] {
        source.publish(volume, 1, &granules(0, 40), LayerKind::Point).await;
    }
    assert_eq!(group(&gateway).await.last_verified, None);
    let client = gateway.client();

    // Each of these points holds one volume.
    let done = verified(&client, "latest", "host1/default/log").await;
    assert!(done.is_sound() && done.not_recorded.is_none(), "{done:?}");
    assert_eq!(done.recorded.expect("on record").how, VerifiedHow::ReadBack);
    let points = gateway.points(Some("host1/default")).await;
    assert_eq!((points[0].verified.len(), points[1].verified.len()), (1, 0), "{points:?}");
    assert_eq!(Some(points[0].verified[0]), done.recorded);
    let only = PagesQuery { of: Some("host1/default".into()), verified: true, ..PagesQuery::default() };
    let page = client.point_page(&only).await.expect("a page");
    assert_eq!((page.points.iter().map(|point| point.id).collect::<Vec<_>>(), page.total), (vec![points[0].id], Some(1)));
    let last = group(&gateway).await.last_verified.expect("known");
    assert_eq!((last.id, last.verified, last.retained), (points[0].id, points[0].verified[0], true));

    // An older one says nothing of the newest that was; and it is all there after a restart.
    let older = points[1].id.to_string();
    assert!(verified(&client, &older, "host1/default").await.recorded.is_some());
    assert_eq!(group(&gateway).await.last_verified.map(|last| last.id), Some(points[0].id));
    gateway.stop();
    gateway.start().await;
    wait_until("the group", async || gateway.points(None).await.len() == 2).await;
    assert!(gateway.points(None).await.iter().all(|point| point.verified.len() == 1));

    // One that is damaged is not put on record again.
    let segment = newest_segment(&gateway);
    let good = std::fs::read(&segment).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&segment, &bad).expect("written");
    let done = verified(&client, "latest", "host1/default").await;
    assert!(done.volumes[0].damaged_regions > 0 && done.recorded.is_none() && done.not_recorded.is_none(), "{done:?}");
    // † Nor is it brought up by who was told that nothing is lost.
    drop((source, host));
    let plan = FailoverRequest { group: "host1/default".into(), plan: true, ..FailoverRequest::default() };
    wait_until("its source to be gone", async || client.failover(&plan).await.expect("planned").connected_from.is_none()).await;
    let planned = client.failover(&plan).await.expect("planned");
    assert!(planned.damaged.is_some_and(|why| why.contains("region 0")), "it is said by the plan");
    let refused = client.failover(&FailoverRequest { plan: false, ..plan.clone() }).await.expect_err("refused").to_string();
    assert!(refused.contains("found damaged"), "{refused}");
    std::fs::write(&segment, &good).expect("written");
    assert!(verified(&client, "latest", "host1/default").await.is_sound());
    wait_until("that to be known", async || client.failover(&plan).await.expect("planned").damaged.is_none()).await;
    gateway.stop();
    gateway.check_store();
}

#[tokio::test]
async fn the_newest_point_is_verified_unasked_and_what_is_damaged_is_said_until_it_is_not() {
    let mut gateway = Gateway::new("[verify]\nevery = \"1s\"\nafter_start = \"0s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
    wait_until("the first point to be verified", async || group(&gateway).await.last_verified.is_some()).await;
    let first = gateway.points(None).await[0].id;
    assert_eq!(group(&gateway).await.last_verified.map(|last| last.id), Some(first));
    wait_until("its pin to be gone", async || gateway.points(None).await.iter().all(|point| !point.pinned)).await;

    // It is damaged before it is there to be verified.
    gateway.stop();
    let segment = newest_segment(&gateway);
    let good = std::fs::read(&segment).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&segment, &bad).expect("written");
    gateway.start().await;
    let reason = |group: &ReceiverGroup| group.reasons.iter().find(|reason| reason.code == "verification_failed").cloned();
    let in_full = |reason: Reason| reason.message.contains("was read in full");
    wait_until("the damage to be said", async || reason(&group(&gateway).await).is_some_and(in_full)).await;
    let said = reason(&group(&gateway).await).expect("just seen");
    let object = segment.strip_prefix(gateway.path("store")).expect("in the store").display().to_string();
    for name in ["host1/default", &first.to_string(), "volume data", "region 0", &object] {
        assert!(said.message.contains(name), "{said:?}");
    }
    assert!(said.what_to_do.contains(&format!("farside point verify {first}")), "{said:?}");
    wait_until("its pin to be gone", async || gateway.points(None).await.iter().all(|point| !point.pinned)).await;
    // Whoever put it back need not wait.
    std::fs::write(&segment, &good).expect("written");
    let done = verified(&gateway.client(), "latest", "host1/default").await;
    assert!(done.recorded.is_some(), "{done:?}");
    wait_until("it to be forgotten", async || reason(&group(&gateway).await).is_none()).await;
    gateway.stop();
    gateway.check_store();
}

/// † Retention gave up the last point that was whole while the gateway knew that all newer ones were damaged.
#[tokio::test]
async fn what_is_older_than_damage_stays_until_something_newer_is_sound() {
    let mut gateway = Gateway::new("[retention]\ninterval = \"0s\"\n[verify]\nevery = \"never\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.set_keep(2).await;
    for seq in 1..=2 {
        source.publish(&volume, seq, &granules(seq, 40), LayerKind::Point).await;
    }
    let segment = newest_segment(&gateway);
    let mut bad = std::fs::read(&segment).expect("read");
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&segment, &bad).expect("written");
    let retained = async || -> Vec<u64> { gateway.points(None).await.iter().rev().map(|point| point.id.slot).collect() };
    let [sound, damaged] = retained().await[..] else { panic!("two points") };
    let client = gateway.client();
    assert!(verified(&client, "latest", "host1/default").await.volumes[0].damaged_regions > 0);
    let pin = PinRequest { reason: "looked at".into() };
    client.point_pin(&damaged.to_string(), &anything(), &pin).await.expect("pinned");
    // Its source is told, which has it still.
    let told = |m| if let ReceiverMessage::Damage(damage) = m { Some(damage.volumes.len()) } else { None };
    assert_eq!(source.expect("to be told of the damage", told).await, 1);
    for seq in 3..=7 {
        source.publish(&volume, seq, &granules(1000 * seq, 1), LayerKind::Point).await;
    }
    wait_until("the policy to be kept", async || retained().await.len() == 4).await;
    assert_eq!(retained().await[..2], [sound, damaged]);
    assert!(verified(&client, &sound.to_string(), "host1/default").await.is_sound(), "it is whole");
    source.publish(&volume, 8, &granules(9000, 1), LayerKind::Point).await;
    wait_until("the policy to be kept", async || retained().await.len() == 4).await;
    assert_eq!(retained().await[..2], [sound, damaged], "that an older one is whole says nothing of the newer ones");
    // † Nor is all kept that comes meanwhile: the newest is read every day.
    assert!(verified(&client, "latest", "host1/default").await.volumes[0].damaged_regions > 0);
    source.publish(&volume, 9, &granules(9001, 1), LayerKind::Point).await;
    source.publish(&volume, 10, &granules(9002, 1), LayerKind::Point).await;
    wait_until("the policy to be kept", async || retained().await.len() == 4).await;
    assert_eq!(retained().await[..2], [sound, damaged]);
    // All of it is written anew.
    source.publish(&volume, 11, &granules(2, 40), LayerKind::Point).await;
    assert!(verified(&client, "latest", "host1/default").await.is_sound());
    assert_eq!(source.expect("to be told that there is none", told).await, 0);
    source.publish(&volume, 12, &granules(9000, 1), LayerKind::Point).await;
    wait_until("the policy to be all that counts", async || !retained().await.contains(&sound)).await;
    // † That a newer one is sound says nothing of it, and it may be what somebody wants.
    let plan = FailoverRequest { group: "host1/default".into(), plan: true, ..FailoverRequest::default() };
    assert_eq!(client.failover(&plan).await.expect("planned").damaged, None);
    let older = FailoverRequest { point: Some(damaged), ..plan };
    assert!(client.failover(&older).await.expect("planned").damaged.is_some());
    gateway.stop();
}

/// At 8 kB in a second a point does not come to its end here; what was met is known all the same, also by who is started next.
#[tokio::test]
async fn damage_is_said_as_soon_as_it_is_met_and_kept_though_the_reading_is_cut_short() {
    let mut gateway = Gateway::new("[verify]\nevery = \"1s\"\nafter_start = \"1h\"\nrate = \"64kbit\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    let ends = [granules(0, 40), granules(1024, 1000)].concat();
    source.publish(&volume, 1, &ends, LayerKind::Point).await;
    gateway.stop();
    let segment = newest_segment(&gateway);
    let mut bad = std::fs::read(&segment).expect("read");
    bad[1000] ^= 1; // in the first region
    std::fs::write(&segment, &bad).expect("written");
    let config = std::fs::read_to_string(gateway.path("receiver.toml")).expect("read");
    std::fs::write(gateway.path("receiver.toml"), config.replace("\"1h\"", "\"0s\"")).expect("written");
    gateway.start().await;
    let is_said = async |gateway: &Gateway| {
        let group = group(gateway).await;
        group.reasons.iter().any(|reason| reason.code == "verification_failed" && reason.message.contains("1 regions so far"))
    };
    wait_until("the damage to be said", async || is_said(&gateway).await).await;
    wait_until("it to be kept", async || gateway.path("state/found/host1/default.json").exists()).await;
    // Nothing is read any more: it is what was kept.
    let config = std::fs::read_to_string(gateway.path("receiver.toml")).expect("read");
    std::fs::write(gateway.path("receiver.toml"), config.replace("\"1s\"", "\"never\"")).expect("written");
    gateway.kill();
    gateway.start().await;
    wait_until("the damage to be said again", async || is_said(&gateway).await).await;
    gateway.stop();
}

/// A process that was killed while it verified has left its pin; a person's pin stays.
#[tokio::test]
async fn the_pin_of_a_verification_that_was_cut_short_is_withdrawn_at_the_next_start() {
    let mut gateway = Gateway::new("[verify]\nevery = \"never\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
    let client = gateway.client();
    for reason in ["mine", "farside-receiver is verifying it"] {
        client.point_pin("latest", &anything(), &PinRequest { reason: reason.into() }).await.expect("pinned");
    }
    gateway.kill();
    gateway.start().await;
    wait_until("the pin to be gone", async || gateway.points(None).await.iter().any(|point| point.pins.len() == 1)).await;
    assert_eq!(gateway.points(None).await[0].pins[0].reason, "mine");
    assert_eq!(group(&gateway).await.last_verified, None, "never is never");
    gateway.stop();
    gateway.check_store();
}

/// What a reading found damaged takes back what was said of every point that may share it, and outlives the process.
#[tokio::test]
async fn damage_withdraws_what_was_verified_before_and_is_said_again_after_a_restart() {
    let mut gateway = Gateway::new("[verify]\nevery = \"never\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
    let segment = newest_segment(&gateway);
    assert!(verified(&gateway.client(), "latest", "host1/default").await.recorded.is_some());
    source.publish(&volume, 2, &granules(2048, 4), LayerKind::Point).await;
    let points = gateway.points(None).await;
    assert_eq!((points[0].verified.len(), points[1].verified.len()), (0, 1), "{points:?}");

    let good = std::fs::read(&segment).expect("read");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&segment, &bad).expect("written");
    let done = verified(&gateway.client(), "latest", "host1/default").await;
    assert!(done.volumes[0].damaged_regions > 0, "{done:?}");
    let only = PagesQuery { of: Some("host1/default".into()), verified: true, ..PagesQuery::default() };
    for restart in [false, true] {
        if restart {
            gateway.kill();
            gateway.start().await;
            wait_until("the group", async || gateway.points(None).await.len() == 2).await;
        }
        let points = gateway.points(None).await;
        assert!(points.iter().all(|point| point.verified.is_empty()), "after a restart: {restart}: {points:?}");
        wait_until("no point to count", async || group(&gateway).await.last_verified.is_none()).await;
        let page = gateway.client().point_page(&only).await.expect("a page");
        assert_eq!((page.points.len(), page.total), (0, Some(0)), "after a restart: {restart}");
        let reasons = group(&gateway).await.reasons;
        let said = reasons.iter().find(|reason| reason.code == "verification_failed");
        assert!(said.is_some_and(|said| said.message.contains("was read in full and is damaged")), "{reasons:?}");
    }

    // What the newer one has of it is sound, so the older one is.
    std::fs::write(&segment, &good).expect("written");
    assert!(verified(&gateway.client(), "latest", "host1/default").await.recorded.is_some());
    let points = gateway.points(None).await;
    assert!(points.iter().all(|point| point.verified.len() == 1), "{points:?}");
    assert!(group(&gateway).await.reasons.iter().all(|reason| reason.code != "verification_failed"));
    gateway.stop();

    // What cannot be read is not taken for nothing.
    std::fs::write(gateway.path("state/found/host1/default.json"), "{\"version\": 9}").expect("written");
    gateway.start().await;
    wait_until("it to be said", async || {
        let status = gateway.status().await;
        let groups = status.sources.iter().flat_map(|source| &source.groups);
        groups.flat_map(|group| &group.reasons).any(|reason| reason.message.contains("what readings found before is not known"))
    })
    .await;
    // It may have been anything.
    assert!(gateway.points(None).await.iter().all(|point| point.verified.is_empty()));
    assert_eq!(group(&gateway).await.last_verified, None);
    assert!(verified(&gateway.client(), "latest", "host1/default").await.recorded.is_some());
    assert_eq!(gateway.points(None).await.iter().map(|point| point.verified.len()).collect::<Vec<_>>(), [1, 0], "newest first");
    gateway.stop();
    gateway.check_store();
}

/// What its source could not read is not what the volume held: nobody says of such a point that it was verified.
#[tokio::test]
async fn a_degraded_point_is_read_and_not_put_on_record() {
    let mut gateway = Gateway::new("[verify]\nevery = \"1h\"\nafter_start = \"0s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    let mut content = granules(0, 40);
    content[7].1.clear();
    source.publish(&volume, 1, &content, LayerKind::Point).await;
    wait_until("it to be read", async || gateway.log().contains("it is degraded")).await;
    wait_until("its pin to be gone", async || gateway.points(None).await.iter().all(|point| !point.pinned)).await;
    let done = verified(&gateway.client(), "latest", "host1/default").await;
    assert!(done.recorded.is_none() && done.not_recorded.is_some_and(|why| why.contains("is degraded")));
    let points = gateway.points(None).await;
    assert!(points[0].degraded && points[0].verified.is_empty(), "{points:?}");
    assert_eq!(group(&gateway).await.last_verified, None);
    gateway.stop();
}
