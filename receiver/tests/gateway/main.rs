//! The receiver as a process, and a source made of nothing but messages: what is published, refused, resumed and survived.
//!
//! Tests wait for conditions with a generous deadline, never for time.

mod at_rest;
mod cohorts;
mod discards;
mod failover;
mod followers;
mod holds;
mod hostile;
mod hosts;
mod lost;
mod pull;
mod site;
mod slow;
mod verified;

use farside_control::routes::{PagesQuery, PointsQuery};
use farside_ledger::{LayerKind, PointFilter};
use farside_region::{Seq, Slot};
use farside_transport::{CloseCode, Closed};
use farside_wire::{
    ClaimOutcome, HeldLayer, LayerBegin, LayerFate, PointQuery, PointQueryKind, ReceiverMessage, RefusalCode, RequestId,
    ResumeQuery, SourceMessage,
};

use site::{Gateway, Source, granules, wait_for};

#[tokio::test]
async fn layers_become_points_that_everybody_can_list() {
    let (mut gateway, _host, mut source, volume) = Gateway::with_claim().await;
    let first = source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
    let second = source.publish(&volume, 2, &granules(7, 3), LayerKind::Fuzzy).await;
    let third = source.publish(&volume, 3, &granules(9, 1), LayerKind::Point).await;
    assert!(first.slot < second.slot && second.slot < third.slot);

    let points = gateway.points(None).await;
    assert_eq!(
        points.iter().map(|p| p.id.slot).collect::<Vec<_>>(),
        [third.slot.0, first.slot.0],
        "newest first, no fuzzy layer"
    );
    assert_eq!((points[0].source.as_str(), points[0].members[0].volume.as_str()), ("host1", "data"));
    assert_eq!(gateway.points(Some("host1/default/data")).await.len(), 2);
    let unknown = gateway.client().points(&PointsQuery { of: Some("nothing".into()), limit: None }).await;
    assert!(unknown.expect_err("refused").to_string().contains("nothing"));

    let mut query = PagesQuery { of: Some("host1/default".into()), limit: Some(1), ..PagesQuery::default() };
    let page = gateway.client().point_page(&query).await.expect("a page");
    assert_eq!((&page.points[..], page.total), (&points[..1], Some(2)));
    query.cursor = page.next;
    let page = gateway.client().point_page(&query).await.expect("a page");
    assert_eq!((&page.points[..], page.total, page.next), (&points[1..], None, None));
    let nonsense = PagesQuery { cursor: Some("nonsense".into()), ..query.clone() };
    assert!(gateway.client().point_page(&nonsense).await.expect_err("refused").to_string().contains("nonsense"));
    let pinned = PagesQuery { pinned: true, cursor: None, ..query };
    assert_eq!(gateway.client().point_page(&pinned).await.expect("a page").total, Some(0));

    let kind = PointQueryKind::List { filter: PointFilter::default(), below: None, limit: 1 };
    source.send(SourceMessage::Points(PointQuery { id: RequestId(77), kind })).await;
    let page = source
        .expect("points", |m| match m {
            ReceiverMessage::Points(answer) if answer.id == RequestId(77) => Some(answer.page),
            _ => None,
        })
        .await;
    assert_eq!(page.points.iter().map(|p| p.slot).collect::<Vec<_>>(), [third.slot]);
    assert_eq!((page.more, page.total), (true, Some(2)));

    let status = gateway.status().await;
    let group = &status.sources[0].groups[0];
    assert_eq!((group.points, group.head_slot), (2, Some(third.slot.0)));
    assert!(status.sources[0].connected_from.is_some() && status.store.writable, "{status:?}");
    gateway.stop();
    gateway.check_store();
}

/// What was durable when the process died is not asked for again, and is published by the end message that comes after.
#[tokio::test]
async fn a_killed_receiver_goes_on_with_what_had_landed() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 10), LayerKind::Point).await;
    let member = source.send_layer(&volume, 2, &granules(3, 5)).await;
    // A part's landing is not said; an end message for what is not whole yet shows nothing, so look at the disk.
    wait_for("the part in landing", || gateway.landed_files("host1/default/data").contains(&"2.0".to_owned())).await;
    gateway.kill();
    gateway.start().await;
    let mut source = host.connect("default").await;
    let layers = vec![HeldLayer { seq: Seq(2), parts: 1 }];
    source.send(SourceMessage::Resume(ResumeQuery { id: RequestId(1), volume: volume.id, term: volume.term, layers })).await;
    let answer = source
        .expect("a resume answer", |m| match m {
            ReceiverMessage::ResumeAnswer(answer) => Some(answer),
            _ => None,
        })
        .await;
    assert_eq!((answer.term, answer.last_seq), (Some(volume.term), Seq(1)));
    assert_eq!(answer.layers[0].fate, LayerFate::Landing { parts: 1, end: None, staged: false });
    source.end(vec![member], LayerKind::Point).await;
    source.published(&volume, 2).await;
    assert_eq!(gateway.points(None).await.len(), 2);
    gateway.stop();
    gateway.check_store();
}

#[tokio::test]
async fn a_part_that_does_not_verify_is_refused_and_nothing_of_it_stays() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    let (mut bytes, _) = volume.part(1, &granules(0, 10));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    source.send_part(&volume, 1, 0, &bytes).await;
    match source.closed().await {
        Closed::ByPeer { code: CloseCode::Refused, reason } => {
            assert!(reason.contains("refused") || reason.contains("part"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    assert!(gateway.landed_files("host1/default/data").is_empty());
    let mut source = host.connect("default").await;
    source.publish(&volume, 1, &granules(0, 10), LayerKind::Point).await;
    assert_eq!(gateway.points(None).await.len(), 1);
}

/// A body that ends early, or a sender that gives up, is no part.
#[tokio::test]
async fn a_part_reset_in_the_middle_leaves_nothing() {
    let (mut gateway, _host, mut source, volume) = Gateway::with_claim().await;
    let (bytes, _) = volume.part(1, &granules(0, 100));
    source.begin_part_and_reset(&volume, 1, 0, &bytes[..bytes.len() / 2]).await;
    source.publish(&volume, 1, &granules(0, 100), LayerKind::Point).await;
    gateway.stop();
    gateway.check_store();
}

#[tokio::test]
async fn wrong_words_are_refused_by_name_and_hurt_nobody_else() {
    let mut gateway = Gateway::new("[limits]\ngroups_per_source = 2\nvolumes_per_group = 1\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut good = host.connect("default").await;
    let volume = good.claim("data").await;

    let garbage = host.raw().await;
    garbage.send(bytes::Bytes::from_static(b"\xff\xff\xff")).await.expect("sent");
    assert!(matches!(garbage.closed().await, Closed::ByPeer { .. }));

    let mut other_name = host.hello_as("somebody-else", "default").await;
    let refusal = other_name.refusal().await;
    assert!(refusal.code == RefusalCode::Unknown && refusal.text.contains("somebody-else"), "{refusal:?}");

    let mut second = host.connect("second").await;
    let mut third = host.hello_as("host1", "third").await;
    let refusal = third.refusal().await;
    assert!(refusal.text.contains("limits.groups_per_source"), "{refusal:?}");

    second.claim_raw("data", |claim| claim.volume.id.0[0] ^= 1).await;
    let refusal = second.refusal().await;
    assert!(refusal.volume.is_some() && refusal.text.contains("data"), "{refusal:?}");

    let mut shapes = host.connect("second").await;
    let odd = farside_region::Geometry::with_shape(1 << 20, 9, 4).expect("a geometry");
    shapes.claim_raw("data", |claim| claim.volume.geometry = odd).await;
    let refusal = shapes.refusal().await;
    assert!(refusal.text.contains("4 KiB"), "{refusal:?}");

    let mut again = host.connect("second").await;
    let one = again.claim("one").await;
    // As often as it likes: what is refused takes no slot, and the others go on.
    for _ in 0..100 {
        let two = again.claim_raw("two", |_| {}).await;
        let refusal = again.refusal().await;
        assert!(refusal.volume == Some(two.id) && refusal.text.contains("limits.volumes_per_group"), "{refusal:?}");
        let voided = again.expect("a verdict", |m| match m {
            ReceiverMessage::ClaimVerdict(verdict) => Some((verdict.volume, verdict.outcome)),
            _ => None,
        });
        assert!(matches!(voided.await, (id, ClaimOutcome::Void { .. }) if id == two.id));
    }
    again.publish(&one, 1, &granules(0, 3), LayerKind::Point).await;

    good.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
}

#[tokio::test]
async fn a_source_says_how_many_points_are_kept() {
    let mut gateway = Gateway::new("[retention]\nkeep = 100\ninterval = \"0s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    let mut newest = Slot(0);
    for seq in 1..=6 {
        newest = source.publish(&volume, seq, &granules(seq, 1), LayerKind::Point).await.slot;
    }
    assert_eq!(gateway.points(None).await.len(), 6);
    source.set_keep(2).await;
    let pruned = async || gateway.points(None).await.len() == 2;
    site::wait_until("two points", pruned).await;
    assert_eq!(gateway.points(None).await[0].id.slot, newest.0);
    gateway.kill();
    gateway.start().await;
    assert_eq!(gateway.points(None).await.len(), 2, "and it is remembered");
    gateway.stop();
    gateway.check_store();
}

/// There is always something that the next prune would take by itself, and that one is an hour away.
#[tokio::test]
async fn parts_are_merged_however_seldom_points_are_given_up() {
    let mut gateway = Gateway::new("[retention]\ninterval = \"1h\"\n[merge]\nevery = \"1s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    // Of each part half is written over by the next.
    let halves = |seq: u64| granules(0, 20).into_iter().chain(granules(20 * seq, 20)).collect::<Vec<_>>();
    for seq in 1..=8 {
        source.publish(&volume, seq, &halves(seq), LayerKind::Point).await;
    }
    // It is remembered before what comes after it is published.
    source.set_keep(3).await;
    source.publish(&volume, 9, &halves(9), LayerKind::Point).await;
    gateway.kill();
    gateway.start().await;
    let mut source = host.connect("default").await;
    let volume = source.claim_above("data", &volume).await;
    site::wait_until("the prune of its start", async || gateway.points(None).await.len() == 3).await;
    for seq in 1..=3 {
        source.publish(&volume, seq, &halves(9 + seq), LayerKind::Point).await;
    }
    site::wait_until("parts to be merged", async || gateway.status().await.sources[0].groups[0].counters.merges > 0).await;
    source.publish(&volume, 4, &halves(13), LayerKind::Point).await;
    assert_eq!(gateway.points(None).await.len(), 7, "the next prune is in an hour");
    gateway.stop();
    gateway.check_store();
}

/// A gateway that was reinstalled does not know how many points its sources want: it gives none up before they say it.
#[tokio::test]
async fn a_reinstalled_gateway_gives_up_nothing_by_itself() {
    let mut gateway = Gateway::new("[retention]\nkeep = 2\ninterval = \"0s\"\n[verify]\nafter_start = \"1h\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.set_keep(100).await;
    for seq in 1..=5 {
        source.publish(&volume, seq, &granules(seq, 1), LayerKind::Point).await;
    }
    gateway.stop();
    std::fs::remove_dir_all(gateway.path("state")).expect("removed");
    // It must not take the store for its own without being told that it is: it never had one, so it does.
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim_above("data", &volume).await;
    source.publish(&volume, 1, &granules(9, 1), LayerKind::Point).await;
    assert_eq!(gateway.points(None).await.len(), 6);
    // Nor where nobody has said it there.
    source.set_default_keep(1).await;
    let is_unsaid = async || {
        let group = &gateway.status().await.sources[0].groups[0];
        group.reasons.iter().any(|reason| reason.code == "retention_unsaid")
    };
    site::wait_until("that to be said", is_unsaid).await;
    assert_eq!(gateway.points(None).await.len(), 6);
    // Nor does it know what was found damaged, before it has read the newest point.
    source.set_keep(3).await;
    source.publish(&volume, 2, &granules(10, 1), LayerKind::Point).await;
    let is_untold = async || {
        let group = &gateway.status().await.sources[0].groups[0];
        group.reasons.iter().any(|reason| reason.message.contains("has not read it before"))
    };
    site::wait_until("that to be said", is_untold).await;
    assert_eq!(gateway.points(None).await.len(), 7);
    verified::verified(&gateway.client(), "latest", "host1/default").await;
    let pruned = async || gateway.points(None).await.len() == 3;
    site::wait_until("three points", pruned).await;
}

/// † The next start knows of no other policy than what was written down, and by a shorter one it gives up what was to be kept.
#[tokio::test]
async fn a_policy_that_could_not_be_written_down_is_once_it_can() {
    let (gateway, _host, mut source, volume) = Gateway::with_claim().await;
    source.set_keep(2).await;
    source.publish(&volume, 1, &granules(1, 1), LayerKind::Point).await;
    let (folder, aside) = (gateway.path("state/groups/host1"), gateway.path("aside"));
    let kept = || std::fs::read_to_string(folder.join("default.json")).unwrap_or_default().replace(' ', "");
    site::wait_until("two to be kept", async || kept().contains("\"keep\":2")).await;
    std::fs::rename(&folder, &aside).expect("moved");
    std::fs::write(&folder, "no folder").expect("written");
    source.set_keep(5).await;
    let is_said = async || {
        let group = &gateway.status().await.sources[0].groups[0];
        group.reasons.iter().any(|reason| reason.message.contains("is not known to the next start"))
    };
    site::wait_until("that to be said", is_said).await;
    std::fs::remove_file(&folder).expect("removed");
    std::fs::rename(&aside, &folder).expect("moved back");
    site::wait_until("five to be kept", async || kept().contains("\"keep\":5")).await;
    site::wait_until("nothing to be said", async || !is_said().await).await;
}

/// More at once than there is memory for: parts wait to be opened, and none waits for another's end.
#[tokio::test]
async fn many_parts_at_once_land_in_little_memory() {
    let mut gateway = Gateway::new("[limits]\nreceive_budget_mib = 8\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    let layers: Vec<u64> = (1..=12).collect();
    source.publish_at_once(&volume, &layers, 700).await;
    let budget = gateway.status().await.receive_budget;
    assert!(budget.used_bytes_max <= budget.limit_bytes && budget.used_bytes_max > 0, "{budget:?}");
    gateway.stop();
    gateway.check_store();
}

/// The directory goes away and comes back: both sides say why, the points are there again, and everything goes on.
#[tokio::test]
async fn a_vanished_store_is_waited_for() {
    let (gateway, host, mut source, volume) = Gateway::with_claim().await;
    source.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
    std::fs::rename(gateway.path("store"), gateway.path("away")).expect("moved");
    match source.closed().await {
        Closed::ByPeer { reason, .. } => assert!(reason.contains("vanished"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let refusal = host.hello_as("host1", "default").await.refusal().await;
    assert!(refusal.code == RefusalCode::Store && refusal.text.contains("vanished"), "{refusal:?}");
    let status = gateway.status().await;
    assert!(!status.store.writable && status.reasons.iter().any(|r| r.code == "store_failed"), "{status:?}");
    // An empty mount point is not a fresh store.
    std::fs::create_dir(gateway.path("store")).expect("made");
    let refusal = host.hello_as("host1", "default").await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Store);
    std::fs::remove_dir(gateway.path("store")).expect("still empty");
    std::fs::rename(gateway.path("away"), gateway.path("store")).expect("moved back");
    let healed = async || gateway.status().await.store.writable && gateway.points(None).await.len() == 1;
    site::wait_until("the store's return", healed).await;
    let mut source = host.connect_when_ready("default").await;
    source.publish(&volume, 2, &granules(1, 1), LayerKind::Point).await;
    assert_eq!(gateway.points(None).await.len(), 2);
}

#[tokio::test]
async fn one_receiver_per_state_and_per_store() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let words = gateway.run_and_fail(&["run", "--config", "receiver.toml"]);
    assert!(words.contains("in use by another farside-receiver"), "{words}");

    // Another state directory and another port, the same store: it runs, takes nothing, and says why.
    let mut other = gateway.beside();
    other.start().await;
    let status = other.status().await;
    assert!(!status.store.writable, "{status:?}");
    assert!(status.reasons.iter().any(|r| r.message.contains("another receiver has this store open")), "{status:?}");
    gateway.stop();
    let taken = async || other.status().await.store.writable;
    site::wait_until("the store to be free", taken).await;
}

#[tokio::test]
async fn strangers_and_old_tokens_are_told_so() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let token = gateway.token(&["--for", "host1"]);
    let stranger = Source::stranger(&gateway);
    let error = stranger.pair(&token, "host2").await.expect_err("made for host1");
    assert!(error.to_string().contains("host1"), "{error}");
    let host = stranger.pair(&token, "host1").await.expect("paired");
    let error = Source::stranger(&gateway).pair(&token, "host1").await.expect_err("used");
    assert!(error.to_string().contains("used before"), "{error}");
    host.connect("default").await;
    let unpaired = Source::stranger(&gateway).with_pin(&host).dial().await.expect_err("not paired");
    assert!(unpaired.to_string().contains("does not know the source"), "{unpaired}");
    // It is told who was refused, and notes it by and by.
    site::wait_until("the refusal to be noted", async || {
        let reasons = gateway.status().await.reasons;
        reasons.iter().any(|r| r.code == "refused_peer" && r.message.contains("stranger"))
    })
    .await;

    let replaced = Source::stranger(&gateway).pair(&gateway.token(&["--replace"]), "host1").await.expect("replaced");
    replaced.connect("default").await;
    assert!(host.dial().await.is_err(), "the old machine is out");
}

#[tokio::test]
async fn the_command_line_says_what_is_wrong() {
    let mut gateway = Gateway::new("");
    let words = gateway.run_and_fail(&["token", "--config", "receiver.toml"]);
    assert!(words.contains("not running"), "{words}");
    std::fs::write(gateway.path("bad.toml"), "[receiver]\nlsten = \"x\"").expect("written");
    let words = gateway.run_and_fail(&["run", "--config", "bad.toml"]);
    assert!(words.contains("lsten"), "{words}");
    gateway.start().await;
    let words = gateway.run_and_fail(&["token", "--config", "receiver.toml", "--expires", "soon"]);
    assert!(words.contains("90s"), "{words}");
    let line = gateway.token(&["--expires", "90s"]);
    let token: farside_transport::PairingToken = line.parse().expect("a token");
    assert_eq!(token.addresses.len(), 1);
    assert!(!gateway.log().contains(&line), "a token is never logged");
    gateway.stop();
    assert!(!gateway.path("api.sock").exists());
}

/// What could not be read once, or was brought back, is read again: nobody has to restart anything.
#[tokio::test]
async fn a_ledger_that_is_whole_again_is_noticed() {
    let (mut gateway, host, mut source, volume) = Gateway::with_claim().await;
    let first = source.publish(&volume, 1, &granules(0, 10), LayerKind::Point).await;
    gateway.stop();
    let (record, good) = gateway.start_torn(first.slot).await;
    let mut refused = host.hello_as("host1", "default").await;
    assert_eq!(refused.refusal().await.code, RefusalCode::LedgerTorn);
    std::fs::write(&record, &good).expect("brought back");
    site::wait_until("the ledger to be whole", async || !gateway.says_torn().await).await;
    let mut source = host.connect_when_ready("default").await;
    let volume = source.claim_above("data", &volume).await;
    source.publish(&volume, 1, &granules(0, 10), LayerKind::Point).await;
    assert_eq!(gateway.points(None).await.len(), 2);
    gateway.stop();
    gateway.check_store();
}

/// A file is away for a moment while an editor or a tool puts another in its place: a reload just then gives up nothing.
#[tokio::test]
async fn a_floor_of_retention_holds_on_while_its_file_is_away() {
    let mut gateway = Gateway::new("[retention]\ninterval = \"0s\"\n");
    let (file, away) = (gateway.path("receiver.d/x.toml"), gateway.path("away"));
    std::fs::create_dir(gateway.path("receiver.d")).expect("made");
    std::fs::write(&file, "[retention]\nat_least_keep = 5\n").expect("written");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.set_keep(1).await;
    for seq in 1..=4 {
        source.publish(&volume, seq, &granules(seq, 2), LayerKind::Point).await;
    }
    std::fs::rename(&file, &away).expect("moved");
    let changed = gateway.client().reload().await.expect("reloaded").changed;
    assert!(changed.is_empty(), "{changed:?}");
    source.publish(&volume, 5, &granules(5, 2), LayerKind::Point).await;
    gateway.stop();
    gateway.start().await;
    let mut source = host.connect("default").await;
    let volume = source.claim_above("data", &volume).await;
    source.set_keep(1).await;
    source.publish(&volume, 1, &granules(6, 2), LayerKind::Point).await;
    site::wait_until("pruning, down to the floor", async || gateway.points(None).await.len() == 5).await;
    source.publish(&volume, 2, &granules(7, 2), LayerKind::Point).await;
    site::wait_until("pruning, down to the floor again", async || {
        let points = gateway.points(None).await;
        assert!(points.len() >= 5, "{points:?}");
        points.len() == 5
    })
    .await;
    let is_held =
        |r: &farside_control::Reason| r.code == "configuration_stale" && r.message.contains("receiver.d/x.toml said it");
    assert!(gateway.status().await.reasons.iter().any(is_held));
    // Said to be less it is less.
    std::fs::write(&file, "[retention]\nat_least_keep = 2\n").expect("written");
    gateway.client().reload().await.expect("reloaded");
    assert!(!gateway.status().await.reasons.iter().any(is_held));
    source.publish(&volume, 3, &granules(8, 2), LayerKind::Point).await;
    site::wait_until("pruning, as it is said now", async || gateway.points(None).await.len() == 2).await;
}

/// Who took over a host has its key; what it says of retention must not cost the history that is to help then.
#[tokio::test]
async fn a_source_cannot_give_up_more_history_than_the_gateway_allows() {
    let mut gateway = Gateway::new("[retention]\nat_least_keep = 5\ninterval = \"0s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    for seq in 1..=12 {
        source.publish(&volume, seq, &granules(seq, 2), LayerKind::Point).await;
    }
    source.set_keep(1).await;
    site::wait_until("pruning, down to the floor", async || gateway.points(None).await.len() == 5).await;
    for seq in 13..=15 {
        source.publish(&volume, seq, &granules(seq, 2), LayerKind::Point).await;
    }
    site::wait_until("pruning again", async || {
        let points = gateway.points(None).await;
        assert!(points.len() >= 5, "{points:?}");
        points.len() == 5 && points[0].members[0].seq == 15
    })
    .await;
    // A restart does not make the age of the newest point unknown.
    drop(source);
    gateway.stop();
    gateway.start().await;
    site::wait_until("a lag", async || {
        let group = &gateway.status().await.sources[0].groups[0];
        group.lag_ms.is_some() && group.lag_is_at_least
    })
    .await;
}

/// The wrong disk was added, say. For a week the group's lag was unknown.
#[tokio::test]
async fn a_volume_that_was_removed_within_a_layer_says_nothing_of_the_lag() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, wrong) = (source.claim("data").await, source.claim("wrong").await);
    source.send(SourceMessage::LayerBegin(LayerBegin { key: wrong.key(1) })).await;
    source.publish(&data, 1, &granules(1, 2), LayerKind::Point).await;
    let lag = async || gateway.status().await.sources[0].groups[0].lag_ms;
    site::wait_until("the other volume's first point to be waited for", async || lag().await.is_none()).await;
    drop(source);
    let mut source = host.connect("default").await;
    let data = source.claim_above("data", &data).await;
    source.publish(&data, 1, &granules(2, 2), LayerKind::Point).await;
    site::wait_until("a lag", async || lag().await.is_some()).await;
}

/// A host that was reinstalled, or that stands in, has its defaults: they take the place of nothing that was ever said of the group.
#[tokio::test]
async fn what_nobody_said_gives_up_nothing_that_was_to_be_kept() {
    let mut gateway = Gateway::new("[retention]\nkeep = 2\ninterval = \"0s\"\n");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.set_keep(5).await;
    for seq in 1..=7 {
        source.publish(&volume, seq, &granules(seq, 2), LayerKind::Point).await;
    }
    let kept = async |newest: u64| {
        let points = gateway.points(None).await;
        assert!(points.len() >= 5, "{points:?}");
        points.len() == 5 && points[0].members[0].seq == newest
    };
    site::wait_until("what was said", async || kept(7).await).await;
    source.set_default_keep(1).await;
    source.publish(&volume, 8, &granules(8, 2), LayerKind::Point).await;
    site::wait_until("that it holds", async || kept(8).await).await;
    source.set_keep(1).await;
    site::wait_until("what is said now", async || gateway.points(None).await.len() == 1).await;
}

/// One member goes on, the other does not: only the gateway may be left to say so.
#[tokio::test]
async fn a_volume_that_is_no_longer_in_the_points_is_named() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let (data, log) = (source.claim("data").await, source.claim("log").await);
    let members = vec![source.send_layer(&data, 1, &granules(0, 4)).await, source.send_layer(&log, 1, &granules(0, 4)).await];
    source.end(members, LayerKind::Point).await;
    let both = source.published(&log, 1).await;
    let reasons = async || gateway.status().await.sources[0].groups[0].reasons.clone();
    assert!(reasons().await.iter().all(|r| r.code != "volume_not_in_points"));
    source.publish(&data, 2, &granules(0, 4), LayerKind::Point).await;
    site::wait_until("the volume to be named", async || {
        let reasons = reasons().await;
        let found = reasons.iter().find(|r| r.code == "volume_not_in_points");
        found.is_some_and(|r| r.message.contains("volume log") && r.message.contains(&format!("newest one is {}", both.slot)))
    })
    .await;
    let group = gateway.status().await.sources[0].groups[0].clone();
    let last = |name: &str| group.volumes.iter().find(|v| v.name == name).and_then(|v| v.last_point.clone()).map(|p| p.id.slot);
    assert!(last("log") == Some(both.slot.0) && last("data") > last("log"), "{group:?}");
}
