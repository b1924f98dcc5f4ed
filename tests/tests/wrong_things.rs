//! Wrong things: each gets a clear error that names the thing and the next step; nothing is lost, nothing panics.

use std::net::UdpSocket;
use std::os::unix::fs::FileExt as _;

use farside_tests::mount::SmallStore;
use farside_tests::verify::{Rng, Verifier, connect};
use farside_tests::{Site, VolumeSpec, program, run, status_by, tail, wait_for};

const BYTES: u64 = 16 << 20;

fn spec() -> VolumeSpec {
    VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }
}

fn written(site: &Site, seed: u64, requests: u64) -> Verifier {
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(seed), requests);
    client.flush();
    client
}

fn no_panic(site: &Site) {
    for log in ["daemon.log", "receiver.log"] {
        let text = std::fs::read_to_string(site.path(log)).unwrap_or_default();
        assert!(!text.contains("panicked"), "{log}: {}", tail(&site.path(log)));
    }
}

#[test]
fn a_token_works_once_and_only_in_its_time() {
    let mut site = Site::new(&[spec()], "200ms", 8);
    site.start_receiver();
    site.start_daemon();
    // Nobody paired yet: the state says so, and the host is served.
    let status = site.status();
    assert_eq!(status["connection"]["state"], "not_paired", "{status}");
    let mut client = written(&site, 1, 50);

    let config = site.path("gateway/receiver.toml");
    let token = |more: &[&str]| {
        let output = run(program("farside-receiver").args(["token", "--config"]).arg(&config).args(more));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    let pair = |token: &str| site.farside().args(["pair", token]).output().expect("it starts");

    let garbage = pair("farside-nonsense");
    assert!(!garbage.status.success());
    let expired = token(&["--expires", "1s"]);
    let made = std::time::Instant::now();
    wait_for("the token's second to pass", || (made.elapsed() > std::time::Duration::from_secs(2)).then_some(()));
    let late = pair(&expired);
    let text = String::from_utf8_lossy(&late.stderr);
    assert!(!late.status.success() && text.contains("expired"), "{text}");
    let once = token(&[]);
    assert!(pair(&once).status.success());
    // Another host with the same token.
    let other = Site::new(&[spec()], "200ms", 8);
    let toml = std::fs::read_to_string(other.path("host/farsided.toml")).expect("written");
    std::fs::write(other.path("host/farsided.toml"), toml.replace("host1", "host2")).expect("written");
    let mut other = other;
    other.start_daemon();
    let reused = other.farside().args(["pair", &once]).output().expect("it starts");
    let text = String::from_utf8_lossy(&reused.stderr);
    assert!(!reused.status.success() && text.contains("token"), "{text}");
    assert!(!text.contains(&once), "a secret is printed");
    site.wait_quiet();
    client.check_all();
    no_panic(&site);
}

#[test]
fn garbage_on_the_wire_hurts_nobody() {
    let site = Site::with_volume(BYTES, "200ms", 8);
    let text = std::fs::read_to_string(site.path("gateway/receiver.toml")).expect("written");
    let line = text.lines().find(|l| l.starts_with("listen")).expect("a listen line");
    let address = line.split('"').nth(1).expect("an address");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut rng = Rng(3);
    for _ in 0..2000 {
        let garbage: Vec<u8> = (0..rng.below(1400)).map(|_| rng.draw() as u8).collect();
        let _ = socket.send_to(&garbage, address);
    }
    let mut client = written(&site, 2, 200);
    site.wait_quiet();
    client.check_all();
    site.check_store();
    no_panic(&site);
}

#[test]
fn an_unknown_source_is_refused_by_name_on_both_sides() {
    let mut site = Site::with_volume(BYTES, "200ms", 8);
    drop(written(&site, 4, 50));
    site.wait_quiet();
    let refusal = |site: &Site, words: &str| {
        wait_for("a refusal by name", || {
            let status = site.status();
            let text = status["connection"]["error"].as_str().unwrap_or_default().to_owned();
            (status["connection"]["state"] == "disconnected" && text.contains(words)).then_some(text)
        })
    };
    // The receiver forgets whom it knew.
    site.receiver.take().expect("it runs").stop();
    std::fs::remove_file(site.path("gateway/state/pairings.json")).expect("the book");
    let path = site.path("receiver.log");
    let log = || std::fs::read_to_string(&path).expect("a log");
    let before = log().len();
    site.start_receiver();
    let why = refusal(&site, "does not know the source");
    assert!(why.contains("refused"), "{why}");
    wait_for("the receiver's log to name who was refused", || log()[before..].contains("host1").then_some(()));
    // Another receiver at the same address.
    site.receiver.take().expect("it runs").stop();
    std::fs::rename(site.path("gateway/state"), site.path("gateway/state.old")).expect("moved");
    site.start_receiver();
    let why = refusal(&site, "is not the receiver");
    assert!(why.contains("pair again"), "the refusal says what to do: {why}");
    no_panic(&site);
}

#[test]
fn a_flipped_bit_is_named_and_other_points_live() {
    let mut site = Site::with_volume(BYTES, "200ms", 50);
    drop(written(&site, 5, 200));
    site.wait_quiet();
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
    site.check_store();
    let largest = site.largest_segment("data");
    let file = std::fs::File::options().read(true).write(true).open(&largest).expect("a file");
    let mut byte = [0];
    let at = largest.metadata().expect("a file").len() / 3;
    file.read_exact_at(&mut byte, at).expect("read");
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).expect("written");
    let check = program("farside").args(["store", "check"]).arg(site.store()).output().expect("it starts");
    let text = format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(!check.status.success(), "{text}");
    assert!(text.contains("data") && text.contains("region"), "volume and region are named: {text}");
}

/// Nobody looks at a gateway that works: the host says that the store has lost something of it, and how it comes back.
#[test]
fn what_the_store_has_lost_is_said_at_the_host_until_it_was_sent_again() {
    let mut site = Site::with_volume(BYTES, "200ms", 8);
    let mut client = written(&site, 15, 200);
    site.wait_quiet();
    let damage = |site: &Site| {
        let reasons = site.volume_status("data")["reasons"].as_array().expect("a list").clone();
        reasons.into_iter().find(|reason| reason["code"] == "segments_damaged")
    };
    assert_eq!(damage(&site), None);
    site.receiver.take().expect("it runs").stop();
    std::fs::remove_file(site.largest_segment("data")).expect("it was there");
    site.start_receiver();
    let reason = wait_for("the host to say so", || damage(&site));
    assert!(reason["what_to_do"].as_str().is_some_and(|todo| todo.contains("farside volume resync data")), "{reason}");
    // L10: nobody knows how old what a restore would bring back is.
    assert!(site.volume_status("data")["lag_ms"].is_null() && site.status()["groups"][0]["lag_ms"].is_null());
    let check = site.farside().args(["status", "--check"]).output().expect("it starts");
    assert_eq!(check.status.code(), Some(8), "it is not protected as it should be: {check:?}");
    run(site.farside().args(["volume", "resync", "data"]));
    wait_for("the damage to be mended", || damage(&site).is_none().then_some(()));
    site.check_newest("data", &mut client);
    no_panic(&site);
}

#[test]
fn a_store_of_another_source_is_not_taken_for_ours() {
    let mut site = Site::with_volume(BYTES, "200ms", 8);
    let mut client = written(&site, 6, 50);
    site.wait_quiet();
    // Another layer, whatever of these came into the first.
    client.steps(&mut Rng(16), 50);
    client.flush();
    drop(client);
    site.wait_quiet();
    let output = program("farside")
        .args(["restore", "nosuch", "--point", "latest", "--store"])
        .arg(site.store())
        .arg("--to")
        .arg(site.path("x.img"))
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("nosuch"), "{text}");
    assert!(!site.path("x.img").exists(), "nothing is created for a point that is not there");
    // A segment of one volume under the name of another.
    site.receiver.take().expect("it runs").stop();
    let segments = site.segments("data");
    let (a, b) = (&segments[0], &segments[segments.len() - 1]);
    assert_ne!(a, b, "there is one segment only");
    let content = std::fs::read(a).expect("read");
    std::fs::write(b, content).expect("written");
    let check = program("farside").args(["store", "check"]).arg(site.store()).output().expect("it starts");
    assert!(!check.status.success(), "a segment that belongs elsewhere is noticed");
}

#[test]
fn restore_refuses_what_it_would_destroy() {
    let site = Site::with_volume(BYTES, "200ms", 8);
    drop(written(&site, 7, 50));
    site.wait_quiet();
    let to = site.path("target.img");
    std::fs::write(&to, vec![7; BYTES as usize]).expect("written");
    let restore = |force: bool| {
        let mut command = program("farside");
        command.args(["restore", "data", "--point", "latest", "--store"]).arg(site.store()).arg("--to").arg(&to);
        if force {
            command.arg("--force");
        }
        command.output().expect("it starts")
    };
    let refused = restore(false);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
    assert!(std::fs::read(&to).expect("there").iter().all(|b| *b == 7), "untouched");
    assert!(restore(true).status.success());
    // The backing of a running daemon is locked, with or without force (T13).
    let backing = site.backing("data");
    let output = program("farside")
        .args(["restore", "data", "--point", "latest", "--force", "--store"])
        .arg(site.store())
        .arg("--to")
        .arg(&backing)
        .output()
        .expect("it starts");
    assert!(!output.status.success(), "a served backing is overwritten");
}

#[test]
fn a_second_daemon_or_receiver_is_refused_at_once() {
    let site = Site::with_volume(BYTES, "200ms", 8);
    let second = program("farsided").arg("--config").arg(site.path("host/farsided.toml")).output().expect("it starts");
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("in use"), "{text}");
    let second = program("farside-receiver")
        .args(["run", "--config"])
        .arg(site.path("gateway/receiver.toml"))
        .output()
        .expect("it starts");
    assert!(!second.status.success(), "{second:?}");
    // A daemon with another state directory still finds the volume's door shut.
    let toml = std::fs::read_to_string(site.path("host/farsided.toml")).expect("written");
    let dir = site.path("host2");
    std::fs::create_dir_all(&dir).expect("mkdir");
    let moved =
        toml.replace("/host/state", "/host2/state").replace("/host/api.sock", "/host2/api.sock").replace("data.nbd", "data2.nbd");
    std::fs::write(dir.join("farsided.toml"), moved).expect("written");
    let log = dir.join("log");
    let mut other = program("farsided");
    other.arg("--config").arg(dir.join("farsided.toml")).stderr(std::fs::File::create(&log).expect("a file"));
    let mut child = other.spawn().expect("it starts");
    wait_for("the volume to be refused", || std::fs::read_to_string(&log).expect("a log").contains("in use").then_some(()));
    let mut client = connect(&site.tap("data"));
    client.write(0, &[1; 4096], 0).expect("the first daemon serves on");
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    no_panic(&site);
}

#[test]
fn a_full_store_costs_lag_and_recovers_by_itself() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root to mount a small file system");
        return;
    }
    let mut site = Site::new(&[spec()], "200ms", 4);
    // 64 MiB of it are kept for ledger and pruning.
    let small = SmallStore::of(&site, 112 << 20);
    site.start_all();
    let mut client = written(&site, 8, 100);
    site.wait_quiet();
    let points = site.points("data").len();
    small.take(32 << 20);
    let mut rng = Rng(9);
    wait_for("`gateway full` to be said", || {
        for _ in 0..20 {
            client.step(&mut rng, 4096);
        }
        let volume = site.volume_status("data");
        // The gateway ends the connection where a part has no room: nobody is sent to look at the network.
        let group = site.status()["groups"][0]["reasons"].clone();
        let misled =
            |reason: &serde_json::Value| reason["code"] == "not_connected" && reason["message"].to_string().contains("full");
        assert!(!group.as_array().is_some_and(|reasons| reasons.iter().any(misled)), "{group}");
        volume["reasons"].as_array().is_some_and(|r| r.iter().any(|r| r["code"] == "gateway_full")).then_some(())
    });
    assert!(!site.points("data").is_empty() && points > 0, "existing points stay");
    site.check_store();
    small.give_back();
    site.check_newest("data", &mut client);
    no_panic(&site);
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
}

/// The landing of one group cannot be listed. The store was given up for all groups each two seconds, for ever.
#[test]
fn a_group_that_cannot_be_opened_keeps_no_other_from_going_on() {
    let spec = |name: &str, group: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: group.into() };
    let mut site = Site::new(&[spec("data", "default"), spec("logs", "other")], "200ms", 5);
    site.start_all();
    let client = |name: &str| Verifier::new(&site.tap(name), BYTES);
    let (mut data, mut logs, mut rng) = (client("data"), client("logs"), Rng(17));
    data.steps(&mut rng, 20);
    logs.steps(&mut rng, 20);
    site.check_newest("data", &mut data);
    site.check_newest("logs", &mut logs);

    site.receiver.take().expect("it runs").kill();
    let (landing, away) = (site.store().join("landing/host1/default"), site.path("away"));
    std::fs::rename(&landing, &away).expect("moved");
    std::os::unix::fs::symlink(&landing, &landing).expect("a link to itself");
    site.start_receiver();
    let group = || {
        let status = status_by(program("farside").arg("--socket").arg(site.path("gateway/api.sock")));
        status["sources"][0]["groups"][0].clone()
    };
    let shown =
        wait_for("the reason to be shown", || Some(group()).filter(|group| group["reasons"].to_string().contains("landing")));
    assert_eq!(shown["name"], "default", "{shown}");
    for _ in 0..2 {
        let before = site.points("host1/other/logs").len();
        logs.steps(&mut rng, 20);
        logs.flush();
        wait_for("a point of the other group", || (site.points("host1/other/logs").len() > before).then_some(()));
    }
    let log = std::fs::read_to_string(site.path("receiver.log")).expect("the log");
    assert!(!log.contains("the store failed"), "{log}");
    std::fs::remove_file(&landing).expect("removed");
    std::fs::rename(&away, &landing).expect("moved back");
    site.check_newest("data", &mut data);
    site.check_newest("logs", &mut logs);
    no_panic(&site);
}
