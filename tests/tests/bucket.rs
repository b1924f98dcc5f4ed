//! Points in a bucket, with a real S3 server: what a directory does, without a directory; and the bucket alone is enough.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use farside_s3_servers::{Bucket, Ending, Fault, Faults, HoldsCreateOnly, Kind, RadosGw};
use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Process, Site, VolumeSpec, json, run, slot_of, status_by, wait_for};
use serde_json::Value;

const BYTES: u64 = 48 << 20;

/// A site that keeps its points in a bucket.
fn site(bucket: &Bucket) -> Site {
    site_of(bucket, &[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }])
}

fn site_of(bucket: &Bucket, volumes: &[VolumeSpec]) -> Site {
    let mut site = Site::new(volumes, "100ms", 5);
    let keys = format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n", bucket.access_key, bucket.secret_key);
    let url = format!("s3://{}/site-1?endpoint={}&region={}", bucket.name, bucket.endpoint, Bucket::REGION);
    site.keep_points_in(&url, &keys);
    site
}

#[test]
fn a_bucket_is_enough_when_host_and_gateway_are_lost() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(11));
    client.steps(&mut rng, 300);
    site.check_newest("data", &mut client);

    // The receiver is killed in the middle, twice; the host writes on.
    for _ in 0..2 {
        client.steps(&mut rng, 100);
        client.flush();
        site.receiver.take().expect("it runs").kill();
        client.steps(&mut rng, 100);
        site.start_receiver();
    }
    site.check_newest("data", &mut client);

    // The staging directory is lost with what was on its way.
    faults.fault(|request| match request.kind {
        Kind::Put => Fault::Before(Ending::SlowDown),
        _ => Fault::Pass,
    });
    client.steps(&mut rng, 200);
    client.flush();
    wait_for("something that is staged", || {
        let group = site.status()["groups"][0].clone();
        group["backlog_bytes"].as_u64().filter(|bytes| *bytes > 0)
    });
    site.receiver.take().expect("it runs").kill();
    fs::remove_dir_all(site.path("gateway/staging")).expect("removed");
    faults.fault(|_| Fault::Pass);
    site.start_receiver();
    let image = site.check_newest("data", &mut client);
    site.check_store();

    wait_for("what retention gave up to go", || (site.points("data").len() <= 5).then_some(()));

    // Host and gateway burn. A machine that has the address and the keys restores.
    site.daemon.take().expect("it runs").kill();
    site.receiver.take().expect("it runs").kill();
    fs::remove_dir_all(site.path("host")).expect("removed");
    fs::remove_dir_all(site.path("gateway/staging")).expect("removed");
    fs::remove_dir_all(site.path("gateway/state")).expect("removed");
    let names_asked_for = faults.counts().list;
    let listed = site.points("host1/default/data");
    assert!((1..=5).contains(&listed.len()), "{listed:?}");
    site.restore("host1/default/data", "latest", &site.path("restored.img"));
    assert_eq!(faults.counts().list, names_asked_for, "whoever says what he wants finds it without a listing");
    assert!(fs::read(site.path("restored.img")).expect("restored") == image, "the newest point is what the volume held");
    site.check_store();
}

/// † Somebody has the gateway's keys, and deletes: first as anybody does, then all versions for good that nothing locks.
#[test]
fn l4_what_is_locked_or_versioned_outlives_who_has_the_gateways_keys() {
    let rados = RadosGw::shared().bucket_with_versions();
    let holds = HoldsCreateOnly::before(&rados);
    let mut site = site(&holds.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(13));
    client.steps(&mut rng, 200);
    let locked = site.check_newest("data", &mut client);
    let lock = |arguments: &[&str]| {
        let mut command = site.farside_at_store(&["store", "lock"]);
        json(command.args(["--of", "host1/default"]).args(arguments))
    };
    let lock = lock(&["--point", "latest", "--case", "audit 17"]);
    let id = lock["id"].as_str().expect("a lock has a name").to_owned();
    assert!(lock["objects"].as_u64().is_some_and(|objects| objects >= 5) && lock["case"] == "audit 17", "{lock}");

    // The group goes on, and gives the point up.
    let point = lock["point"].as_str().expect("it names its point").to_owned();
    wait_for("retention to give the point up", || {
        client.steps(&mut rng, 20);
        client.flush();
        (!site.points("data").iter().any(|kept| kept["id"] == point.as_str())).then_some(())
    });
    let newest = site.check_newest("data", &mut client);
    assert!(newest != locked);
    site.daemon.take().expect("it runs").kill();
    site.receiver.take().expect("it runs").kill();
    let now = || jiff::Timestamp::now().as_millisecond();
    let before = now();
    // The server's clock may be one of a few milliseconds, and is the same machine's.
    wait_for("time to go on", || (now() > before + 50).then_some(()));

    let at = |what: &str| {
        let (url, keys) = site.bucket_address().expect("it is in one");
        (format!("{url}&{what}"), keys)
    };
    let farside = |what: &str, arguments: &[&str]| {
        let (url, keys) = at(what);
        let mut command = farside_tests::program("farside");
        let arguments = arguments.iter().map(|argument| argument.replace("STORE", &url));
        command.args(arguments).env("FARSIDE_STORE_CREDENTIALS", keys);
        command
    };
    let restored = |what: &str, point: &str, name: &str| {
        let to = site.path(name).display().to_string();
        run(&mut farside(what, &["restore", "host1/default/data", "--point", point, "--store", "STORE", "--to", &to]));
        fs::read(&to).expect("restored")
    };
    rados.versions().into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>().iter().for_each(|key| rados.delete(key));
    let as_of = format!("as_of={}", jiff::Timestamp::from_millisecond(before + 25).expect("a time"));
    assert!(restored(&as_of, "latest", "as-it-was.img") == newest);
    assert!(restored(&format!("lock={id}"), &point, "locked.img") == locked);
    let refused = farside(&as_of, &["store", "init", "STORE"]).output().expect("ran");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("read only"), "{refused:?}");

    while rados.versions().iter().filter(|(key, version)| rados.delete_version(key, version)).count() > 0 {}
    let left = rados.versions().len() as u64;
    assert_eq!(Some(left), lock["objects"].as_u64().map(|objects| objects + 1), "what is locked, and the list");
    assert!(restored(&format!("lock={id}"), &point, "again.img") == locked);
    let (locked_at, to) = (format!("lock={id}"), site.path("recovered").display().to_string());
    run(&mut farside(&locked_at, &["store", "recover", "STORE", "--point", &point, "--to", &to]));
    run(&mut farside(&locked_at, &["store", "check", "STORE"]));
    let locks = json(&mut farside("", &["store", "locks", "STORE"]));
    assert_eq!((locks.as_array().map(Vec::len), locks[0]["id"].as_str()), (Some(1), Some(id.as_str())), "{locks}");
    run(&mut farside("", &["store", "unlock", "STORE", &id, "--yes"]));
    while rados.versions().iter().filter(|(key, version)| rados.delete_version(key, version)).count() > 0 {}
    assert!(rados.versions().is_empty());
}

/// The group as the gateway shows it.
fn at_the_gateway(site: &Site) -> Value {
    let mut command = farside_tests::program("farside");
    let status = status_by(command.arg("--socket").arg(site.path("gateway/api.sock")));
    status["sources"][0]["groups"][0].clone()
}

/// How long staged points wait; holds from the receiver's next start on.
fn publish_every(site: &Site, every: &str) {
    fs::write(site.path("gateway/receiver.d/cadence.toml"), format!("[receiver]\npublish_every = \"{every}\"\n")).expect("write");
}

/// Writes until points are staged that wait to be published, and both sides say so.
fn stage_something(site: &Site, client: &mut Verifier, rng: &mut Rng) {
    wait_for("staged points that are not published", || {
        client.steps(rng, 5);
        client.flush();
        let (host, gateway) = (site.status()["groups"][0].clone(), at_the_gateway(site));
        let (published, staged) = (host["lag_ms"].as_u64()?, host["staged_lag_ms"].as_u64()?);
        let waits = gateway["unpublished_ms"].as_u64().is_some() && gateway["staged_lag_ms"].as_u64().is_some();
        (staged < published && waits && host["backlog_bytes"].as_u64()? > 0).then_some(())
    });
}

/// What lies between staged and published costs time when the gateway is lost, and nothing else.
#[test]
fn points_wait_on_the_gateways_disk_and_are_published_together() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    publish_every(&site, "1h");
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(14));
    client.steps(&mut rng, 100);
    client.flush();
    // The first point waits for nobody: the host says that it waits.
    wait_for("the first point", || (!site.points("data").is_empty()).then_some(()));
    stage_something(&site, &mut client, &mut rng);

    // The gateway is killed: what is staged is on its disk, and waits again.
    site.receiver.take().expect("it runs").kill();
    client.steps(&mut rng, 50);
    site.start_receiver();
    stage_something(&site, &mut client, &mut rng);

    // Its disk is lost as well: the host has forgotten nothing of what was not published.
    site.receiver.take().expect("it runs").kill();
    fs::remove_dir_all(site.path("gateway/staging")).expect("removed");
    client.steps(&mut rng, 50);
    site.start_receiver();
    stage_something(&site, &mut client, &mut rng);
    site.receiver.take().expect("it runs").kill();
    // Long enough that a slow machine has several points ready by then.
    publish_every(&site, "5s");
    site.start_receiver();
    site.check_newest("data", &mut client);

    // Many points in few objects of the ledger.
    let ledger = Arc::new(AtomicUsize::new(0));
    let puts = Arc::clone(&ledger);
    faults.fault(move |request| {
        if request.kind == Kind::Put && request.key.contains("/ledger/") {
            puts.fetch_add(1, Ordering::Relaxed);
        }
        Fault::Pass
    });
    let counted = |site: &Site| {
        let counters = at_the_gateway(site)["counters"].clone();
        let of = |name: &str| counters[name].as_u64().expect("a number");
        (of("points_published") + of("passes_published"), of("publications"))
    };
    let (records_before, publications_before) = counted(&site);
    wait_for("twenty records", || {
        client.steps(&mut rng, 5);
        client.flush();
        (counted(&site).0 >= records_before + 20).then_some(())
    });
    let (records, publications) = counted(&site);
    assert!(
        (publications - publications_before) * 2 <= records - records_before,
        "{} records in {} objects",
        records - records_before,
        publications - publications_before
    );
    site.check_newest("data", &mut client);
    let (_, publications) = counted(&site);
    assert!(ledger.load(Ordering::Relaxed) as u64 >= publications - publications_before, "each is a PUT");
    site.check_store();
}

/// What goes into the bucket takes as long as the line does; what comes from the host is staged meanwhile.
#[test]
fn l10_what_a_host_writes_is_staged_while_segments_are_on_their_way_to_the_bucket() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(16));
    client.steps(&mut rng, 50);
    site.check_newest("data", &mut client);
    let held = hold_a_segment(&faults, &mut client, &mut rng);
    let (on_their_way, published) = (held.load(Ordering::Relaxed), site.points("data").len());
    let since = Instant::now();
    client.steps(&mut rng, 20);
    client.flush();
    wait_for("what was written since to be staged", || {
        let group = site.status()["groups"][0].clone();
        let (lag, staged) = (group["lag_ms"].as_u64()?, group["staged_lag_ms"].as_u64()?);
        let since = since.elapsed().as_millis() as u64;
        (staged < since && since < lag).then_some(())
    });
    // Nothing was given up meanwhile: it was heard while that waited.
    assert_eq!((held.load(Ordering::Relaxed), site.points("data").len()), (on_their_way, published));
    faults.fault(|_| Fault::Pass);
    site.check_newest("data", &mut client);
    site.check_store();
}

/// A failover that nobody forced waits for what is on its way into the bucket, and hears meanwhile who comes back.
#[test]
fn l6_a_source_that_is_back_while_its_failover_waits_for_uploads_is_not_fenced() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(17));
    client.steps(&mut rng, 50);
    site.check_newest("data", &mut client);
    hold_a_segment(&faults, &mut client, &mut rng);
    site.daemon.take().expect("it runs").kill();
    its_end_is_noticed(&site);
    let mut begin = site.gateway(&["failover", "host1/default", "--yes"]);
    let waiting = begin.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let why = |site: &Site, words: &str| {
        wait_for(words, || {
            let listed = json(&mut site.gateway(&["failover", "--list"]))[0].clone();
            (listed["stage"] == "fencing" && listed["why"].as_str()?.contains(words)).then_some(())
        });
    };
    why(&site, "on its way into the bucket");
    site.start_daemon();
    why(&site, "host1 is connected: it is alive");
    let told = waiting.wait_with_output().expect("it ends");
    let words = String::from_utf8_lossy(&told.stderr);
    assert!(!told.status.success() && words.contains("on its way into the bucket") && words.contains("it is alive"), "{words}");
    run(&mut site.gateway(&["failover", "host1/default", "--abort"]));
    faults.fault(|_| Fault::Pass);
    client.steps(&mut rng, 20);
    site.check_newest("data", &mut client);

    // And who does not come back is fenced once it is there, with all that was staged.
    hold_a_segment(&faults, &mut client, &mut rng);
    let newest = |site: &Site, of: &str| slot_of(site.points(of).last().expect("a point"));
    let published = newest(&site, "data");
    site.daemon.take().expect("it runs").kill();
    its_end_is_noticed(&site);
    let mut begin = site.gateway(&["failover", "host1/default", "--yes"]);
    let waiting = begin.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    why(&site, "on its way into the bucket");
    faults.fault(|_| Fault::Pass);
    let told = waiting.wait_with_output().expect("it ends");
    assert!(told.status.success(), "{told:?}");
    assert!(newest(&site, "host1/default/data") > published, "what was staged was published first");
}

/// The gateway sees that its host is gone.
fn its_end_is_noticed(site: &Site) {
    wait_for("its end to be noticed", || {
        let plan = json(&mut site.gateway(&["failover", "host1/default", "--plan"]));
        plan["connected_from"].is_null().then_some(())
    });
}

/// One is on its way, and does not arrive, nor do those after it; says how many were sent.
fn hold_a_segment(faults: &Faults, client: &mut Verifier, rng: &mut Rng) -> Arc<AtomicUsize> {
    let held = hold_segments(faults);
    wait_for("a segment to be on its way", || {
        client.steps(rng, 5);
        client.flush();
        (held.load(Ordering::Relaxed) > 0).then_some(())
    });
    held
}

/// Segments do not arrive; says how many were sent.
fn hold_segments(faults: &Faults) -> Arc<AtomicUsize> {
    let held = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&held);
    faults.fault(move |request| {
        let is_segment = request.kind == Kind::Put && ["/packs/", "/segments/"].iter().any(|folder| request.key.contains(folder));
        if is_segment {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if is_segment { Fault::Held } else { Fault::Pass }
    });
    held
}

/// The host is gone for good, and the gateway's process as well: what was staged is published by the next one; and a stop does not wait for that.
#[test]
fn what_is_staged_is_published_after_the_host_and_the_process_are_gone() {
    for planned in [false, true] {
        // One of its own: a host without a memory is not let into another's points.
        let mut site = site(&RadosGw::shared().bucket());
        publish_every(&site, "1h");
        site.start_all();
        let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(15));
        client.steps(&mut rng, 100);
        client.flush();
        wait_for("the first point", || (!site.points("data").is_empty()).then_some(()));
        stage_something(&site, &mut client, &mut rng);
        site.daemon.take().expect("it runs").kill();
        let before = site.points("host1/default/data").len();
        let receiver = site.receiver.take().expect("it runs");
        if planned {
            receiver.stop();
        } else {
            receiver.kill();
            publish_every(&site, "1s");
            site.start_receiver();
        }
        wait_for("what was staged", || (site.points("host1/default/data").len() > before).then_some(()));
        site.check_store();
    }
}

#[test]
fn a_bucket_that_does_not_let_us_in_is_said_and_waited_for() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(12));
    client.steps(&mut rng, 50);
    site.check_newest("data", &mut client);
    faults.fault(|_| Fault::Before(Ending::Forbidden));
    client.steps(&mut rng, 50);
    client.flush();
    let refused = wait_for("the refusal to be shown", || {
        let mut command = farside_tests::program("farside");
        let output = run(command.arg("--socket").arg(site.path("gateway/api.sock")).args(["status", "--json"]));
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        Some(status.to_string()).filter(|text| text.contains("refuses access"))
    });
    assert!(!refused.contains(&rados.secret_key), "{refused}");
    faults.fault(|_| Fault::Pass);
    site.check_newest("data", &mut client);
}

/// Of two groups, each with a volume: `data` of `default`, `logs` of `other`.
fn site_of_two(bucket: &Bucket) -> Site {
    let spec = |name: &str, group: &str| VolumeSpec { name: name.into(), bytes: 8 << 20, group: group.into() };
    site_of(bucket, &[spec("data", "default"), spec("logs", "other")])
}

/// Starts it, until there is a point of what was written to each.
fn start_two(site: &mut Site, mut rng: Rng) -> (Verifier, Verifier, Rng) {
    site.start_all();
    let client = |name: &str| Verifier::new(&site.tap(name), 8 << 20);
    let (mut data, mut logs) = (client("data"), client("logs"));
    data.steps(&mut rng, 20);
    logs.steps(&mut rng, 20);
    site.check_newest("data", &mut data);
    site.check_newest("logs", &mut logs);
    (data, logs, rng)
}

/// What one group is refused is said once of the store, and the other one gets a point.
fn the_other_goes_on(site: &Site, logs: &mut Verifier, rng: &mut Rng) {
    let before = site.points("host1/other/logs").len();
    logs.steps(rng, 20);
    logs.flush();
    wait_for("a point of the other group", || (site.points("host1/other/logs").len() > before).then_some(()));
    let log = fs::read_to_string(site.path("receiver.log")).expect("the log");
    assert_eq!(log.matches("the store failed").count(), 1, "{log}");
}

/// A policy, or a hold on an object, refuses what one group writes. With the credentials read anew it is refused again: every group lost its
/// connections each two seconds for that.
#[test]
fn what_is_refused_of_one_group_keeps_no_other_from_going_on() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site_of_two(&faults.bucket());
    let (mut data, mut logs, mut rng) = start_two(&mut site, Rng(14));

    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    faults.fault(move |request| {
        if request.kind != Kind::Put || !request.key.contains("/default/ledger/") {
            return Fault::Pass;
        }
        counter.fetch_add(1, Ordering::Relaxed);
        Fault::Before(Ending::Forbidden)
    });
    data.steps(&mut rng, 20);
    data.flush();
    wait_for("it to be refused again and again", || (refused.load(Ordering::Relaxed) >= 4).then_some(()));
    the_other_goes_on(&site, &mut logs, &mut rng);
    faults.fault(|_| Fault::Pass);
    site.check_newest("data", &mut data);
    site.check_newest("logs", &mut logs);
}

/// The same of what is read when a group is opened: the gateway was started again, and gave the store up each two seconds, for ever.
#[test]
fn a_group_that_the_service_does_not_let_us_open_keeps_no_other_from_going_on() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site_of_two(&faults.bucket());
    let (mut data, mut logs, mut rng) = start_two(&mut site, Rng(16));

    site.receiver.take().expect("it runs").kill();
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    faults.fault(move |request| {
        let is_read = matches!(request.kind, Kind::Get | Kind::List);
        if !is_read || !(request.key.contains("/default/") || request.query.contains("default")) {
            return Fault::Pass;
        }
        counter.fetch_add(1, Ordering::Relaxed);
        Fault::Before(Ending::Forbidden)
    });
    site.start_receiver();
    wait_for("it to be refused again and again", || (refused.load(Ordering::Relaxed) >= 6).then_some(()));
    // Who restores cannot look into it either, but can into the other.
    the_other_goes_on(&site, &mut logs, &mut rng);
    let shown = at_the_gateway(&site);
    assert!(shown["name"] == "default" && shown["reasons"].to_string().contains("refuses access"), "{shown}");
    faults.fault(|_| Fault::Pass);
    site.check_newest("data", &mut data);
    site.check_newest("logs", &mut logs);
}

/// The description of one group cannot be looked at. The gateway was started again, listed no group for that, and so published nothing of hosts that
/// were gone, and knew nothing to fail over; and nothing could be checked.
#[test]
fn a_group_that_cannot_be_looked_at_hides_no_other() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site_of_two(&faults.bucket());
    publish_every(&site, "1h");
    site.start_all();
    let (mut logs, mut rng) = (Verifier::new(&site.tap("logs"), 8 << 20), Rng(18));
    logs.steps(&mut rng, 20);
    logs.flush();
    for volume in ["data", "logs"] {
        wait_for("the first point", || (!site.points(volume).is_empty()).then_some(()));
    }
    let shown = |site: &Site| {
        let status = status_by(&mut site.gateway(&[]));
        status["sources"][0]["groups"].as_array().cloned().unwrap_or_default()
    };
    wait_for("points that wait to be published", || {
        logs.steps(&mut rng, 5);
        logs.flush();
        let groups = shown(&site);
        groups.iter().find(|group| group["name"] == "other")?["unpublished_ms"].as_u64()
    });
    let before = site.points("host1/other/logs").len();
    site.daemon.take().expect("it runs").kill();
    site.receiver.take().expect("it runs").kill();
    faults.fault(|request| {
        let is_look = matches!(request.kind, Kind::Get | Kind::Head);
        match is_look && request.key.ends_with("/default/group.json") {
            true => Fault::Before(Ending::Forbidden),
            false => Fault::Pass,
        }
    });
    publish_every(&site, "1s");
    site.start_receiver();
    wait_for("what was staged", || (site.points("host1/other/logs").len() > before).then_some(()));
    let groups = wait_for("the reason to be shown", || {
        let groups = shown(&site);
        groups.iter().any(|group| group["reasons"].to_string().contains("refuses access")).then_some(groups)
    });
    assert_eq!(groups.iter().map(|group| &group["name"]).collect::<Vec<_>>(), ["default", "other"]);
    // For what is refused of one group the store is opened anew once, with credentials that may be others by now: then nobody's group is there.
    wait_for("the plan of the other group", || {
        site.gateway(&["failover", "host1/other", "--plan"]).output().expect("it starts").status.success().then_some(())
    });
    let plan = site.gateway(&["failover", "host1/default", "--plan"]).output().expect("it starts");
    let words = String::from_utf8_lossy(&plan.stderr).into_owned();
    assert!(!plan.status.success() && words.contains("refuses access"), "{words}");
    // Of all that there is to check.
    let checked = site.farside_at_store(&["--json", "store", "check"]).output().expect("it starts");
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap_or_else(|e| panic!("{e}: {checked:?}"));
    let findings = report["findings"].as_array().expect("a list");
    let faults_found: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "error").collect();
    assert!(matches!(faults_found[..], [one] if one["group"] == "host1/default"), "{report:#}");
    assert!(report["points"].as_u64() > Some(before as u64), "{report:#}");
    site.restore("host1/other/logs", "latest", &site.path("restored.img"));
    faults.fault(|_| Fault::Pass);
    wait_for("it to be open", || {
        shown(&site)
            .iter()
            .all(|group| group["head_slot"].is_u64() && group["reasons"].as_array().is_some_and(Vec::is_empty))
            .then_some(())
    });
    site.check_store();
}

/// By a lease, which goes when he is done; who may not put one reads all the same.
#[test]
fn who_reads_keeps_his_point_and_who_may_not_write_is_told_that_he_does_not() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(13));
    client.steps(&mut rng, 50);
    site.check_newest("data", &mut client);

    // Which object is deleted stands in the request's body: but nothing else is, and one at a time.
    let (put, deleted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let watch = |refuse: bool| {
        let (put, deleted) = (Arc::clone(&put), Arc::clone(&deleted));
        faults.fault(move |request| {
            if request.key.contains("/leases/") && request.kind == Kind::Put {
                if refuse {
                    return Fault::Before(Ending::Forbidden);
                }
                put.fetch_add(1, Ordering::Relaxed);
            } else if request.kind == Kind::Delete {
                deleted.fetch_add(1, Ordering::Relaxed);
            }
            Fault::Pass
        });
    };
    let held = || put.load(Ordering::Relaxed) - deleted.load(Ordering::Relaxed);
    watch(false);
    site.restore("data", "latest", &site.path("restored.img"));
    assert_eq!((put.load(Ordering::Relaxed), held()), (1, 0), "one while it lasted");

    let point = site.points("data").last().expect("a point")["id"].as_str().expect("an id").to_owned();
    let socket = site.path("view.nbd");
    let mut command = site.farside_at_store(&["point", "open", &format!("data@{point}"), "--store"]);
    command.arg("--export").arg(format!("nbd:{}", socket.display()));
    let opened = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    let opened = Process::new(opened, "farside point open");
    wait_for("the view", || socket.exists().then_some(()));
    assert_eq!(held(), 1);
    let checked = run(&mut site.farside_at_store(&["store", "check"]));
    let (text, words) = (String::from_utf8_lossy(&checked.stdout).into_owned(), format!("process {} of", opened.pid()));
    assert!(text.contains(&words) && text.contains("of volume data; it keeps what it needs"), "{text}");
    opened.stop();
    assert_eq!(held(), 0);

    watch(true);
    let restored = site.path("again.img");
    let said = run(site.farside_at_store(&["restore", "data", "--point", &point, "--store"]).arg("--to").arg(&restored));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("nothing keeps this point while it is read") && said.contains("farside point pin"), "{said}");
    watch(false);
    site.check_newest("data", &mut client);
}

/// A failover that nobody may give up: its fence is in the bucket, and the answer was lost. The source, which came back meanwhile, would be fenced by
/// what is not there any more.
#[test]
fn l6_a_failover_whose_fence_had_no_answer_is_not_given_up() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = site(&faults.bucket());
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(17));
    client.steps(&mut rng, 50);
    site.check_newest("data", &mut client);
    site.daemon.take().expect("it runs").kill();
    let failover = |site: &Site, arguments: &[&str]| {
        let mut command = farside_tests::program("farside");
        command.arg("--socket").arg(site.path("gateway/api.sock")).args(["failover", "host1/default"]).args(arguments);
        command.stdin(Stdio::null()).output().expect("it starts")
    };
    wait_for("its end to be noticed", || {
        let plan: Value = serde_json::from_slice(&failover(&site, &["--plan", "--json"]).stdout).ok()?;
        plan["connected_from"].is_null().then_some(())
    });
    // The first record that comes now is carried out, and nothing is answered any more.
    let fenced = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fenced);
    faults.fault(move |request| {
        let is_record = request.kind == Kind::Put && request.key.contains("/ledger/");
        match is_record && count.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Fault::After(Ending::Closed),
            false => Fault::Before(Ending::Closed),
        }
    });
    let mut command = farside_tests::program("farside");
    command.arg("--socket").arg(site.path("gateway/api.sock")).args(["failover", "host1/default", "--yes"]);
    let mut waiting = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_for("the fence to be put", || (fenced.load(Ordering::Relaxed) > 0).then_some(()));
    site.start_daemon();
    let list = |site: &Site| {
        let mut command = farside_tests::program("farside");
        let output = command.arg("--socket").arg(site.path("gateway/api.sock")).args(["failover", "--list", "--json"]).output();
        String::from_utf8_lossy(&output.expect("it starts").stdout).into_owned()
    };
    // While the store may not be asked, nobody knows.
    wait_for("the source to be there, or the store to be away", || {
        let refused = failover(&site, &["--abort"]);
        assert!(!refused.status.success(), "given up: {refused:?}");
        String::from_utf8_lossy(&refused.stderr).contains("try again when the store answers").then_some(())
    });
    faults.fault(|_| Fault::Pass);
    // Then it is in the ledger, and goes on.
    wait_for("the failover to be through", || {
        let refused = failover(&site, &["--abort"]);
        assert!(!refused.status.success(), "given up: {refused:?}");
        list(&site).contains("\"promoted\"").then_some(())
    });
    let _ = waiting.wait();
    wait_for("the source to be fenced", || (site.volume_status("data")["state"]["state"] == "fenced").then_some(()));
    site.check_store();
}
