//! `farside volume verify` on real processes: what was called clean is held against what is published, and mended; and the
//! bandwidth limit, which holds for a daemon that runs and for the next one.

use std::os::unix::fs::FileExt as _;

use farside_tests::verify::{Rng, Verifier, connect};
use farside_tests::{Site, VolumeSpec, run, wait_for};
use serde_json::Value;

const BYTES: u64 = 24 << 20;
const DAMAGED: i32 = 6;

/// Waits until nothing is hot: every region was published and has cooled.
fn wait_cold(site: &Site) {
    site.wait_quiet();
    wait_for("every region to cool", || (site.volume_status("data")["hot_bytes"] == 0).then_some(()));
}

fn verify(site: &Site) -> (Option<i32>, Value) {
    let output = site.farside().args(["volume", "verify", "data", "--json"]).output().expect("it starts");
    let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), result)
}

/// A byte of the backing changes behind the tap's back: no mark knows of it, so no later point would ever have it.
#[test]
fn a_clean_region_that_differs_is_named_and_sent() {
    let site = Site::with_volume(BYTES, "200ms", 8);
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(11);
    client.steps(&mut rng, 200);
    client.flush();
    wait_cold(&site);
    let (code, result) = verify(&site);
    assert_eq!((code, &result["outcome"], &result["cold_bytes"]), (Some(0), &"done".into(), &BYTES.into()), "{result}");
    assert_eq!(result["differing_bytes"], 0, "{result}");

    let backing = std::fs::File::options().read(true).write(true).open(site.backing("data")).expect("the backing");
    let at = (9 << 20) + 5;
    let mut byte = [0];
    backing.read_exact_at(&mut byte, at).expect("read");
    backing.write_all_at(&[byte[0] ^ 1], at).and_then(|()| backing.sync_all()).expect("written");
    let (code, result) = verify(&site);
    assert_eq!(code, Some(DAMAGED), "{result}");
    assert_eq!(result["differing"], serde_json::json!([{ "offset": 8 << 20, "bytes": 4 << 20 }]), "{result}");
    site.wait_quiet();
    let restored = site.path("restored.img");
    site.restore("data", "latest", &restored);
    let disk = std::fs::read(site.backing("data")).expect("read");
    assert!(std::fs::read(&restored).expect("read") == disk, "the difference was sent");
    // Readable later, for people too.
    let shown = run(site.farside().args(["volume", "show", "data"]));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("differed"), "{shown:?}");
}

/// The store's disk changes a bit of what it holds. The host has that content still, and a verify has it sent again.
#[test]
fn what_rots_in_the_store_is_healed_from_the_host() {
    let site = Site::with_volume(BYTES, "200ms", 1);
    let mut client = connect(&site.tap("data"));
    site.wait_quiet();
    // Nothing else is as large, and nothing is written over it.
    let (mut noise, mut rng) = (Vec::new(), Rng(13));
    noise.resize_with(4 << 20, || rng.draw() as u8);
    client.write(8 << 20, &noise, 0).and_then(|()| client.flush()).expect("durable");
    wait_cold(&site);
    let segment = site.largest_segment("data");
    let file = std::fs::File::options().read(true).write(true).open(&segment).expect("a segment");
    let (at, mut byte) = (segment.metadata().expect("a segment").len() / 3, [0]);
    file.read_exact_at(&mut byte, at).and_then(|()| file.write_all_at(&[byte[0] ^ 4], at)).expect("written");
    let sound = |site: &Site| {
        let store = site.store().display().to_string();
        let arguments = ["point", "verify", "latest", "--of", "data", "--json", "--store", &store];
        let output = farside_tests::program("farside").args(arguments).output().expect("it starts");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        (output.status.code(), result["volumes"][0]["damage"][0]["segment"].as_str().map(str::to_owned))
    };
    let name = segment.strip_prefix(site.store()).expect("in the store").display().to_string();
    assert_eq!(sound(&site), (Some(DAMAGED), Some(name)));
    let (_, result) = verify(&site);
    assert_eq!(result["outcome"], "done", "{result}");
    assert_ne!(result["differing_bytes"], 0, "{result}");
    site.wait_quiet();
    wait_for("a point without what had rotted", || (sound(&site) == (Some(0), None)).then_some(()));
    let restored = site.path("restored.img");
    site.restore("data", "latest", &restored);
    let disk = std::fs::read(site.backing("data")).expect("read");
    assert!(std::fs::read(&restored).expect("read") == disk && disk[8 << 20..][..noise.len()] == noise);
}

/// Over the line come digests only. What they say is on record of a point that holds both volumes.
#[test]
fn the_newest_point_is_compared_with_the_host_and_that_is_on_record() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec("data"), spec("log")], "200ms", 8);
    site.start_all();
    for (volume, seed) in [("data", 14), ("log", 15)] {
        let mut client = Verifier::new(&site.tap(volume), BYTES);
        client.steps(&mut Rng(seed), 200);
        client.flush();
    }
    site.wait_quiet();
    let compared = |site: &Site| site.points("data").iter().any(|p| p["verified"][0]["how"] == "with_source");
    assert!(!compared(&site));
    let against_source = |point: &str| {
        let arguments = ["point", "verify", point, "--of", "default", "--against-source"];
        site.farside().args(arguments).output().expect("it starts")
    };
    let refused = against_source("-1h");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let done = against_source("latest");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && text.contains("data was verified") && text.contains("log was verified"), "{done:?}");
    wait_for("the record", || compared(&site).then_some(()));
}

#[test]
fn a_limit_holds_at_once_and_after_a_restart() {
    let mut site = Site::with_volume(BYTES, "200ms", 8);
    let text = |args: &[&str], site: &Site| {
        let output = run(site.farside().args(args));
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(text(&["limit", "show"], &site), "rate: no limit\n");
    assert_eq!(text(&["limit", "set", "--rate", "40Mbit"], &site), "rate: 40Mbit/s\n");
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    assert_eq!(text(&["limit", "show"], &site), "rate: 40Mbit/s\n");
    assert_eq!(site.status()["limits"]["rate_bytes_per_s"], 5_000_000);
    // What is written is published under it.
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(12), 200);
    client.flush();
    site.wait_quiet();
    client.check_all();
    drop(client);
    // One of all hours, and one of a group within it; both outlive a restart.
    let at = "00:00-24:00";
    let shown = "rate: 40Mbit/s\n00:00-24:00: 5MiB/s\nnow: 5MiB/s\n";
    assert_eq!(text(&["limit", "set", "--rate", "5MiB", "--at", at], &site), shown);
    assert!(text(&["group", "set", "default", "--rate", "1Mbit"], &site).ends_with("; sent at 1Mbit/s at most\n"));
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    assert_eq!(text(&["limit", "show"], &site), shown);
    let said = wait_for("the volume", || Some(text(&["status"], &site)).filter(|said| said.contains("group default sends")));
    assert!(said.contains("group default sends at most 1Mbit/s\n"), "{said}");
    assert!(said.contains("this host sends at most 5MiB/s at this hour (farside limit show)\n"), "{said}");
    let missing = site.farside().args(["limit", "clear", "--at", "Mon 09:00-10:00"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && error.contains("no limit holds at Mon 09:00-10:00"), "{error}");
    assert!(error.contains("there is: 00:00-24:00"), "{error}");
    assert_eq!(text(&["limit", "clear", "--at", at], &site), "rate: 40Mbit/s\n");
    assert_eq!(text(&["limit", "clear"], &site), "rate: no limit\n");
    assert!(!text(&["group", "set", "default", "--rate", "none"], &site).contains("sent at"));
}
