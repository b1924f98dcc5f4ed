//! The worst day, by command line: a source that is silent is fenced while it still runs, its copy is handed over, it wakes up and changes
//! nothing, and takes its history back when a person says so.

use farside_tests::mount::SmallStore;
use farside_tests::verify::write_noise;
use farside_tests::{Site, VolumeSpec, json, run, slot_of, wait_for};
use serde_json::Value;

const BYTES: u64 = 32 << 20;

fn write(site: &Site, seed: u64, requests: u64) {
    write_noise(&site.tap("data"), BYTES, seed, requests);
}

fn follower_at(site: &Site, newest: u64) {
    wait_for("the follower to hold the newest point", || {
        let one = json(&mut site.gateway(&["follower", "show", "host1-data"]));
        (one["state"] == "following" && one["holds"]["id"].as_str()?.starts_with(&format!("{newest}-"))).then_some(())
    });
}

fn newest(site: &Site) -> u64 {
    slot_of(site.points("data").last().expect("a point"))
}

fn assert_restores_to(site: &Site, image: &[u8]) {
    let restored = site.path("restored.img");
    site.restore("data", "latest", &restored);
    assert!(std::fs::read(&restored).expect("restored") == image, "the newest point is something else");
    std::fs::remove_file(restored).expect("restored");
}

/// A planned move: whoever stops in order owes nothing, and the gateway knows; whoever was killed does not say so.
#[test]
fn of_a_source_that_stopped_in_order_nothing_is_lost_and_it_is_said() {
    let mut site = Site::with_volume(BYTES, "200ms", 100);
    write(&site, 1, 100);
    site.wait_quiet();
    let plan = |site: &Site| json(&mut site.gateway(&["failover", "host1/default", "--plan"]));
    site.daemon.take().expect("it runs").kill();
    wait_for("its end to be noticed", || plan(&site)["connected_from"].is_null().then_some(()));
    assert_eq!(plan(&site)["all_published"], false, "it was killed");
    site.start_daemon();
    site.wait_quiet();
    assert_eq!(plan(&site)["all_published"], false, "it is connected");

    write(&site, 2, 100);
    site.wait_quiet(); // a stop has no more than its `stop_wait_seconds`
    site.daemon.take().expect("it runs").stop();
    wait_for("its last word to be heard", || (plan(&site)["all_published"] == true).then_some(()));
    let words = run(&mut site.gateway(&["failover", "host1/default", "--plan"]));
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(words.contains("host1 had published all when it stopped: nothing is lost"), "{words}");
    let image = std::fs::read(site.backing("data")).expect("its disk");
    let older = slot_of(&site.points("data")[0]).to_string();
    let of_older = json(&mut site.gateway(&["failover", "host1/default", "--plan", "--point", &older]));
    assert_eq!(of_older["all_published"], false, "an older point has less");
    let done = json(&mut site.gateway(&["failover", "host1/default", "--yes"]));
    assert_eq!((&done["stage"], &done["all_published"]), (&Value::from("promoted"), &Value::from(false)), "{done}");
    assert_restores_to(&site, &image);
}

#[test]
fn a_silent_source_is_fenced_and_takes_its_history_back_on_a_persons_word() {
    let mut site = Site::with_volume(BYTES, "200ms", 100);
    write(&site, 1, 200);
    site.wait_quiet();
    let target = site.path("standby.img");
    let at = target.to_str().expect("text");
    let added = run(&mut site.gateway(&["follower", "add", "host1/default/data", at]));
    assert!(String::from_utf8_lossy(&added.stdout).contains("follows host1/default/data as host1-data"));
    write(&site, 2, 100);
    site.wait_quiet();
    follower_at(&site, newest(&site));

    // R16: nothing of it asks anything of the source, which hangs in the middle of its work.
    let daemon = site.daemon.take().expect("it runs");
    daemon.signal(libc::SIGSTOP);
    let image = std::fs::read(&target).expect("the standby");
    let plan = run(&mut site.gateway(&["failover", "host1/default", "--plan"]));
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("nothing was changed") && plan.contains("lost to the copy") && plan.contains(at), "{plan}");
    // Connected still, as far as anybody knows.
    let refused = site.gateway(&["failover", "host1/default", "--yes"]).output().expect("it starts");
    if !refused.status.success() {
        assert_eq!(refused.status.code(), Some(4), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
    }
    let done = json(&mut site.gateway(&["failover", "host1/default", "--yes", "--force"]));
    assert_eq!((&done["stage"], &done["generation"]), (&Value::from("promoted"), &Value::from(2)));
    assert_eq!(done["members"][0]["state"], "promoted");
    assert!(done["rto_ms"].is_u64(), "{done}");
    assert!(std::fs::read(&target).expect("the standby") == image);
    assert_restores_to(&site, &image);
    let points = site.points("data");

    // It wakes up, with what it had under way, and writes on.
    daemon.signal(libc::SIGCONT);
    site.daemon = Some(daemon);
    write(&site, 3, 100);
    let fenced = |site: &Site| {
        let volume = wait_for("it to be fenced", || {
            let volume = site.volume_status("data");
            (volume["state"]["state"] == "fenced").then_some(volume)
        });
        assert!(volume["reasons"].to_string().contains("farside rollback default"), "{volume}");
        write(site, 4, 20);
    };
    fenced(&site);
    site.daemon.take().expect("it runs").kill();
    site.start_daemon();
    fenced(&site);
    site.receiver.take().expect("it runs").kill();
    site.start_receiver();
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    fenced(&site);
    assert_eq!(site.points("data"), points, "points came or went while it was fenced");
    let wrong = site.farside().args(["volume", "resync", "data", "--accept", "forked"]).output().expect("it starts");
    assert!(!wrong.status.success(), "another acceptance than the one that is needed was taken");
    let listed = run(&mut site.gateway(&["failover", "--list"]));
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("promoted") && listed.contains("is yours"), "{listed}");

    // A person decides for the old one.
    run(site.farside().args(["volume", "resync", "data", "--accept", "fenced"]));
    site.wait_quiet();
    let backing = std::fs::read(site.backing("data")).expect("the backing");
    assert_restores_to(&site, &backing);
    wait_for("the failover to be over", || {
        let all = json(&mut site.gateway(&["failover", "--list"]));
        all.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    run(&mut site.gateway(&["follower", "resume", "host1-data"]));
    write(&site, 5, 50);
    site.wait_quiet();
    follower_at(&site, newest(&site));
    assert!(std::fs::read(&target).expect("the standby") == std::fs::read(site.backing("data")).expect("the backing"));
    // It is the source again, also after a restart.
    site.daemon.take().expect("it runs").kill();
    site.start_daemon();
    write(&site, 6, 50);
    site.wait_quiet();
    site.check_store();
}

/// One that was begun while the store took nothing fences nobody who is back by then, and can be given up.
#[test]
fn a_source_that_is_back_before_it_is_fenced_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root to mount a small file system");
        return;
    }
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "200ms", 100);
    let small = SmallStore::of(&site, 112 << 20);
    site.start_all();
    write(&site, 1, 50);
    site.wait_quiet();
    site.daemon.take().expect("it runs").kill();
    wait_for("the receiver to notice", || {
        let plan = json(&mut site.gateway(&["failover", "host1/default", "--plan"]));
        plan["connected_from"].is_null().then_some(())
    });
    small.take_all();
    let begun = site.gateway(&["failover", "host1/default", "--yes"]).output().expect("it starts");
    assert!(!begun.status.success(), "nothing can be recorded: {begun:?}");
    let listed = || json(&mut site.gateway(&["failover", "--list"]))[0].clone();
    assert_eq!(listed()["stage"], "fencing");
    assert!(listed()["why"].is_string(), "{}", listed());

    let _daemon = site.spawn_daemon();
    wait_for("the source to be back", || listed()["connected_from"].is_string().then_some(()));
    small.give_back();
    wait_for("it not to be fenced", || listed()["why"].as_str()?.contains("host1 is connected: it is alive").then_some(()));
    let given_up = run(&mut site.gateway(&["failover", "host1/default", "--abort"]));
    assert!(String::from_utf8_lossy(&given_up.stdout).contains("nobody was fenced"), "{given_up:?}");
    assert_eq!(json(&mut site.gateway(&["failover", "--list"])).as_array().map(Vec::len), Some(0));
    let again = site.gateway(&["failover", "host1/default", "--abort"]).output().expect("it starts");
    assert_eq!(again.status.code(), Some(5), "{again:?}");
    write(&site, 2, 50);
    site.wait_quiet();
    assert_restores_to(&site, &std::fs::read(site.backing("data")).expect("the backing"));
    site.check_store();
}

/// Just after a start of the gateway nobody is connected, whoever is alive: that silence fences nobody, and whoever came back is not fenced behind their
/// back, though the gateway is started again and they are in their pause by then.
#[test]
fn a_gateway_that_was_just_started_waits_for_a_source_that_may_be_alive() {
    let mut site = Site::with_volume(BYTES, "200ms", 100);
    write(&site, 1, 50);
    site.wait_quiet();
    site.daemon.take().expect("it runs").kill();
    site.receiver.take().expect("it runs").kill();
    site.fence_after("1h");
    site.start_receiver();
    let plan = wait_for("the group to be open", || {
        let plan = site.gateway(&["failover", "host1/default", "--plan", "--json"]).output().expect("it starts");
        serde_json::from_slice::<Value>(&plan.stdout).ok().filter(|plan| plan["point"].is_object())
    });
    assert!(plan["connected_from"].is_null() && plan["waits_ms"].as_u64().is_some_and(|ms| ms > 3_000_000), "{plan}");
    let begin = |site: &Site| {
        let piped = std::process::Stdio::piped;
        site.gateway(&["failover", "host1/default", "--yes"]).stdout(piped()).stderr(piped()).spawn().expect("it starts")
    };
    let waiting = begin(&site);
    let listed = |site: &Site| json(&mut site.gateway(&["failover", "--list"]))[0].clone();
    let why = |site: &Site, words: &str| {
        wait_for(words, || listed(site)["why"].as_str()?.contains(words).then_some(()));
        assert_eq!(listed(site)["stage"], "fencing");
    };
    why(&site, "may still come back");
    // Somebody else gives it up: who waits for it is told, and begins none.
    run(&mut site.gateway(&["failover", "host1/default", "--abort"]));
    let told = waiting.wait_with_output().expect("it ends");
    assert!(!told.status.success() && String::from_utf8_lossy(&told.stderr).contains("it was given up"), "{told:?}");
    assert_eq!(json(&mut site.gateway(&["failover", "--list"])).as_array().map(Vec::len), Some(0));

    let waiting = begin(&site);
    why(&site, "may still come back");
    site.start_daemon();
    why(&site, "host1 is connected: it is alive");
    let ended = waiting.wait_with_output().expect("it ends");
    assert!(!ended.status.success(), "nobody was fenced: {ended:?}");
    // It is gone again, or in a pause: nobody can tell.
    site.daemon.take().expect("it runs").kill();
    why(&site, "host1 came back after this failover was begun");
    site.receiver.take().expect("it runs").kill();
    site.fence_after("0s");
    site.start_receiver();
    why(&site, "host1 came back after this failover was begun");

    let forced = json(&mut site.gateway(&["failover", "host1/default", "--yes", "--force"]));
    assert_eq!((&forced["stage"], &forced["generation"]), (&Value::from("promoted"), &Value::from(2)));
}

/// The point that a person named is given up before anybody is fenced for it: the store was put back. He names another one.
#[test]
fn a_failover_whose_point_is_gone_fences_nobody_and_takes_another_one() {
    let mut site = Site::with_volume(BYTES, "200ms", 100);
    write(&site, 1, 50);
    site.wait_quiet();
    site.receiver.take().expect("it runs").stop();
    let (store, copy) = (site.store(), site.path("store-before"));
    let copied = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        run(std::process::Command::new("cp").arg("-aT").arg(from).arg(to));
    };
    copied(&store, &copy);
    let image = std::fs::read(site.backing("data")).expect("its disk");
    site.start_receiver();
    write(&site, 2, 50);
    site.wait_quiet();
    let lost = newest(&site).to_string();
    site.daemon.take().expect("it runs").kill();
    site.receiver.take().expect("it runs").kill();
    site.fence_after("1h");
    site.start_receiver();
    let listed = |site: &Site| json(&mut site.gateway(&["failover", "--list"]))[0].clone();
    let why = |site: &Site, words: &str| {
        wait_for(words, || listed(site)["why"].as_str()?.contains(words).then_some(()));
        assert_eq!(listed(site)["stage"], "fencing");
    };
    let null = std::process::Stdio::null;
    let begun = ["failover", "host1/default", "--yes", "--point", &lost];
    let mut waiting = wait_for("the group to be open", || {
        let plan = site.gateway(&["failover", "host1/default", "--plan", "--json"]).output().expect("it starts");
        plan.status.success().then(|| site.gateway(&begun).stdout(null()).stderr(null()).spawn().expect("it starts"))
    });
    why(&site, "may still come back");
    site.receiver.take().expect("it runs").kill();
    assert!(!waiting.wait().expect("it ends").success());
    copied(&copy, &store);
    site.fence_after("0s");
    site.start_receiver();
    why(&site, "is not there any more");
    assert!(listed(&site)["point"].is_null(), "{}", listed(&site));

    let done = json(&mut site.gateway(&["failover", "host1/default", "--yes"]));
    assert_eq!(done["stage"], "promoted", "{done}");
    assert_restores_to(&site, &image);
}
