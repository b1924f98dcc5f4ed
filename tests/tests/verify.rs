//! `farside volume verify` on real processes: what was called clean is held against what is published, and mended; and the
//! bandwidth limit, which holds for a daemon that runs and for the next one.

use std::os::unix::fs::FileExt as _;

use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, run, wait_for};
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
    assert_eq!(text(&["limit", "clear"], &site), "rate: no limit\n");
    client.check_all();
}
