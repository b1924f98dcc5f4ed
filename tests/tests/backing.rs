//! What happened to a backing while nobody served it: nothing, a change, growth, another file in its place. Whatever it was,
//! the newest point equals the backing afterwards; and where it was nothing, nothing is compared.

use std::os::unix::fs::FileExt as _;

use farside_nbd::client::Client;
use farside_tests::verify::Rng;
use farside_tests::{Site, wait_for};

const BYTES: u64 = 24 << 20;

fn newest_equals_backing(site: &Site, what: &str) {
    site.wait_quiet();
    let image = site.path("newest.img");
    site.restore("data", "latest", &image);
    let (point, backing) = (std::fs::read(&image).expect("restored"), std::fs::read(site.backing("data")).expect("there"));
    assert!(point == backing, "{what}: the newest point is not what the backing holds");
    std::fs::remove_file(image).expect("it was restored");
}

/// Only what is cold can be falsely clean.
fn wait_cold(site: &Site) {
    wait_for("every region to cool", || (site.volume_status("data")["hot_bytes"] == 0).then_some(()));
}

/// What the daemon logged since its start number `start` (from 0).
fn log_of(site: &Site, start: usize) -> String {
    let log = std::fs::read_to_string(site.path("daemon.log")).expect("there");
    let served: Vec<usize> = log.match_indices("served").map(|(at, _)| at).collect();
    assert!(!served.is_empty(), "{log}");
    let from = if start == 0 { 0 } else { served[start - 1] + 1 };
    log[from..].to_owned()
}

#[test]
fn what_happened_while_nobody_served_it_is_noticed_and_nothing_else_is() {
    let mut site = Site::with_volume(BYTES, "200ms", 4);
    let mut client = Client::connect(&site.tap("data"), "data").expect("connected");
    let mut rng = Rng(11);
    let mut block = vec![0; 1 << 20];
    for at in (0..BYTES).step_by(1 << 20) {
        block.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.draw().to_le_bytes()));
        client.write(at, &block, 0).expect("written");
    }
    client.flush().expect("flushed");
    drop(client);
    newest_equals_backing(&site, "at first");
    wait_cold(&site);

    // Nothing: not even our own probes may look like a change.
    for start in 1..=2 {
        site.daemon.take().expect("it runs").stop();
        site.start_daemon();
        site.wait_quiet();
        let log = log_of(&site, start);
        assert!(!log.contains("will be compared"), "{log}");
        assert!(log.contains("clean=true"), "{log}");
        assert_eq!(site.volume_status("data")["hot_bytes"], 0, "nothing was heated");
    }

    // Growth together with a change of what was there, as by resize2fs on the bare file.
    site.daemon.take().expect("it runs").stop();
    let file = std::fs::File::options().write(true).open(site.backing("data")).expect("there");
    file.set_len(BYTES + (8 << 20)).and_then(|()| file.write_all_at(b"changed in the dark", 9 << 20)).expect("written");
    drop(file);
    site.start_daemon();
    newest_equals_backing(&site, "grown and changed");

    // Another file in its place, after a crash.
    wait_cold(&site);
    site.daemon.take().expect("it runs").kill();
    let other = site.path("host/other.img");
    std::fs::write(&other, vec![5; (BYTES + (8 << 20)) as usize]).expect("written");
    std::fs::rename(&other, site.backing("data")).expect("renamed");
    site.start_daemon();
    newest_equals_backing(&site, "another file");

    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
}

/// Clients of a socket hear a size once: the volume stays as it is until the next start, and says why.
#[test]
fn growth_that_clients_cannot_see_is_said_and_taken_at_the_next_start() {
    const GROWN: u64 = BYTES + (8 << 20);
    let mut site = Site::with_volume(BYTES, "200ms", 4);
    let is_said = |site: &Site| {
        let reasons = site.volume_status("data")["reasons"].as_array().cloned().unwrap_or_default();
        reasons.iter().any(|reason| reason["code"] == "backing_grown")
    };
    site.wait_quiet();
    assert!(!is_said(&site));
    let file = std::fs::File::options().write(true).open(site.backing("data")).expect("there");
    file.set_len(GROWN).expect("grown");
    wait_for("the growth to be said", || is_said(&site).then_some(()));
    let mut client = Client::connect(&site.tap("data"), "data").expect("connected");
    assert_eq!(client.size(), BYTES);
    client.write(9 << 20, &[7; 4096], 0).expect("it is served as it was");
    client.flush().expect("flushed");
    drop(client);
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    assert_eq!(site.volume_status("data")["bytes"], GROWN);
    assert!(!is_said(&site));
    let mut client = Client::connect(&site.tap("data"), "data").expect("connected");
    client.write(GROWN - 4096, &[8; 4096], 0).expect("what is new can be written");
    client.flush().expect("flushed");
    drop(client);
    newest_equals_backing(&site, "grown");
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
}
