//! Histories that part: a host put back to an older copy of itself, a store put back, a clone beside the original. Each is
//! refused by name and stays so over restarts, older points stay good, the host is served; then the documented way out is
//! walked and everything converges.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use farside_tests::verify::{Rng, connect};
use farside_tests::{Process, Site, program, run, slot_of, tail, tool, wait_for};
use serde_json::Value;

const BYTES: u64 = 32 << 20;

fn write(site: &Site, seed: u64, requests: u64) {
    let mut client = connect(&site.tap("data"));
    let mut rng = Rng(seed);
    for _ in 0..requests {
        let len = (1 + rng.below(8)) * 4096;
        let content: Vec<u8> = (0..len / 8).flat_map(|_| rng.draw().to_le_bytes()).collect();
        client.write(rng.below((BYTES - len) / 4096) * 4096, &content, 0).expect("a write");
    }
    client.flush().expect("a flush");
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run(tool("cp").args(["--archive", "--sparse=always", "--no-target-directory"]).arg(from).arg(to));
}

fn state_of(volume: &Value) -> &str {
    volume["state"]["state"].as_str().expect("a state")
}

fn newest(site: &Site) -> u64 {
    site.points("data").last().map_or(0, slot_of)
}

/// Waits for the state, which must name itself and the way out, and keeps no write from the host.
fn expect_refused(site: &Site, state: &str, way_out: &str) {
    let volume = wait_for(state, || {
        let volume = site.volume_status("data");
        (state_of(&volume) == state).then_some(volume)
    });
    let reasons = volume["reasons"].to_string();
    assert!(reasons.contains(way_out), "the way out is not named: {volume}");
    let table = run(site.farside().arg("status"));
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("data") && table.contains(way_out), "{table}");
    let mut client = connect(&site.tap("data"));
    client.write(0, &[7; 4096], 0).expect("the host is served");
}

/// Nothing is resumed silently: not by a restart of either side, and no point is added or taken away.
fn expect_refused_for_good(site: &mut Site, state: &str, way_out: &str) {
    let points = site.points("data");
    expect_refused(site, state, way_out);
    site.daemon.take().expect("it runs").kill();
    site.start_daemon();
    expect_refused(site, state, way_out);
    site.receiver.take().expect("it runs").stop();
    site.start_receiver();
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    expect_refused(site, state, way_out);
    assert_eq!(site.points("data"), points, "points came or went while it was refused");
}

fn resync(site: &Site, accept: &str) {
    run(site.farside().args(["volume", "resync", "data", "--accept", accept]));
    site.wait_quiet();
    let image = site.path("newest.img");
    site.restore("data", "latest", &image);
    let (restored, backing) = (std::fs::read(&image), std::fs::read(site.backing("data")));
    assert!(restored.expect("restored") == backing.expect("backing"), "the source and the newest point differ");
    std::fs::remove_file(image).expect("restored");
    site.check_store();
}

fn content(site: &Site, point: &str) -> blake3::Hash {
    let image = site.path("content.img");
    site.restore("data", point, &image);
    let hash = blake3::hash(&std::fs::read(&image).expect("restored"));
    std::fs::remove_file(image).expect("restored");
    hash
}

fn no_panic(site: &Site) {
    for log in ["daemon.log", "receiver.log", "clone.log"] {
        let text = std::fs::read_to_string(site.path(log)).unwrap_or_default();
        assert!(!text.contains("panicked"), "{log}: {}", tail(&site.path(log)));
    }
}

/// `kill`: the copy is what a power cut left; otherwise what a clean stop left.
fn a_host_put_back(kill: bool) {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    let end = |site: &mut Site| {
        let daemon = site.daemon.take().expect("it runs");
        if kill { daemon.kill() } else { daemon.stop() }
    };
    write(&site, 1, 200);
    site.wait_quiet();
    end(&mut site);
    let snapshot = site.path("snapshot");
    copy(&site.path("host"), &snapshot);
    site.start_daemon();
    write(&site, 2, 200);
    site.wait_quiet();
    let lost = site.points("data").last().expect("a point")["id"].as_str().expect("an id").to_owned();
    let before = content(&site, &lost);
    end(&mut site);

    copy(&snapshot, &site.path("host"));
    site.start_daemon();
    expect_refused_for_good(&mut site, "forked", "--accept forked");
    let refused = site.farside().args(["volume", "resync", "data", "--accept", "target-rewound"]).output().expect("it starts");
    assert!(!refused.status.success(), "another acceptance than the one that is needed was taken");
    resync(&site, "forked");
    assert_eq!(content(&site, &lost), before, "the point of the history that was given up reads as it did");
    write(&site, 3, 100);
    site.wait_quiet();
    no_panic(&site);
}

#[test]
fn a_host_put_back_after_a_clean_stop_is_forked() {
    a_host_put_back(false);
}

#[test]
fn a_host_put_back_after_a_power_cut_is_forked() {
    a_host_put_back(true);
}

#[test]
fn a_store_put_back_is_called_rewound() {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    write(&site, 4, 200);
    site.wait_quiet();
    site.receiver.take().expect("it runs").stop();
    let snapshot = site.path("snapshot");
    copy(&site.store(), &snapshot);
    let kept = site.points("data").last().expect("a point")["id"].as_str().expect("an id").to_owned();
    let before = content(&site, &kept);
    site.start_receiver();
    write(&site, 5, 200);
    site.wait_quiet();
    site.receiver.take().expect("it runs").stop();

    copy(&snapshot, &site.store());
    site.start_receiver();
    expect_refused_for_good(&mut site, "target_rewound", "--accept rewound");
    resync(&site, "rewound");
    assert_eq!(content(&site, &kept), before, "a point of the older store reads as it did");
    write(&site, 6, 100);
    site.wait_quiet();
    no_panic(&site);
}

/// The copy of a host, started beside it.
struct CloneOf {
    _process: Process,
    socket: PathBuf,
}

impl CloneOf {
    fn start(site: &Site, dir: &Path) -> Self {
        let config = dir.join("farsided.toml");
        let toml = std::fs::read_to_string(&config).expect("copied");
        let (old, new) = (site.path("host").display().to_string(), dir.display().to_string());
        std::fs::write(&config, toml.replace(&old, &new)).expect("written");
        let log = std::fs::File::create(site.path("clone.log")).expect("a log file");
        let child = program("farsided")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        Self { _process: Process::new(child, "farsided"), socket: dir.join("api.sock") }
    }

    fn volume(&self) -> Option<Value> {
        let output = program("farside").arg("--socket").arg(&self.socket).args(["status", "--json"]).output().expect("it starts");
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        Some(status["groups"][0]["volumes"][0].clone()).filter(Value::is_object) // which it is once it is served
    }
}

#[test]
fn a_clone_beside_the_original_is_refused_and_the_original_goes_on() {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    write(&site, 7, 200);
    site.wait_quiet();
    site.daemon.take().expect("it runs").stop();
    let dir = site.path("clone");
    copy(&site.path("host"), &dir);
    site.start_daemon();
    write(&site, 8, 100);
    site.wait_quiet();

    let clone = CloneOf::start(&site, &dir);
    let refused = wait_for("the clone to be refused", || clone.volume().filter(|v| state_of(v) == "forked"));
    assert!(refused["reasons"].to_string().contains("--accept forked"), "{refused}");
    // The original never notices for good: it streams, and its points go on.
    for seed in 9..12 {
        let before = newest(&site);
        write(&site, seed, 100);
        wait_for("a new point of the original", || {
            assert_eq!(clone.volume().map(|v| state_of(&v).to_owned()).as_deref(), Some("forked"));
            (newest(&site) > before).then_some(())
        });
    }
    // The way out: the clone is stopped.
    drop(clone);
    write(&site, 12, 100);
    site.wait_quiet();
    let image = site.path("newest.img");
    site.restore("data", "latest", &image);
    let (restored, backing) = (std::fs::read(&image), std::fs::read(site.backing("data")));
    assert!(restored.expect("restored") == backing.expect("backing"), "the original and the newest point differ");
    no_panic(&site);
}
