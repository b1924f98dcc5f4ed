//! Ten volumes and a sparse one of 10 TiB on one daemon: what it takes is printed (memory, start-up), and memory stays
//! below what `docs/operate.md` says. The big one's first sync costs what is in it, not its size.

use std::time::Instant;

use farside_tests::verify::connect;
use farside_tests::{Site, VolumeSpec};

const SMALL_BYTES: u64 = 64 << 20;
const BIG_BYTES: u64 = 10 << 40;
/// What `docs/operate.md` grants the daemon of such a host, and its gateway's receiver.
const DAEMON_KIB_MAX: u64 = 256 << 10;
const RECEIVER_KIB_MAX: u64 = 128 << 10;

#[test]
fn ten_volumes_and_ten_tebibytes_fit() {
    let small: Vec<String> = (0..10).map(|i| format!("disk-{i}")).collect();
    let mut specs: Vec<VolumeSpec> =
        small.iter().map(|name| VolumeSpec { name: name.clone(), bytes: SMALL_BYTES, group: "default".into() }).collect();
    specs.push(VolumeSpec { name: "big".into(), bytes: BIG_BYTES, group: "big".into() });
    let mut site = Site::new(&specs, "1s", 8);
    let report = |site: &Site, when: &str| {
        let (daemon, receiver) = (site.daemon.as_ref().expect("it runs"), site.receiver.as_ref().expect("it runs"));
        let rss = (daemon.rss_kib(), receiver.rss_kib());
        println!("{when}: farsided {} MiB, farside-receiver {} MiB", rss.0 >> 10, rss.1 >> 10);
        assert!(rss.0 <= DAEMON_KIB_MAX, "farsided takes {} KiB", rss.0);
        assert!(rss.1 <= RECEIVER_KIB_MAX, "farside-receiver takes {} KiB", rss.1);
    };
    let begun = Instant::now();
    site.start_all();
    println!("first start: {:?} until eleven taps answer and both are paired", begun.elapsed());
    report(&site, "started");

    let mut clients: Vec<_> = small.iter().map(|name| connect(&site.tap(name))).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        for offset in (0..SMALL_BYTES).step_by(1 << 20) {
            client.write(offset, &[i as u8 + 1; 64 << 10], 0).expect("a write");
        }
    }
    let mut big = connect(&site.tap("big"));
    let places = [0, BIG_BYTES / 3 / 4096 * 4096, BIG_BYTES - 4096];
    for place in places {
        big.write(place, &[0xb1; 4096], 0).expect("a write");
    }
    let begun = Instant::now();
    site.wait_quiet_while_it_shrinks();
    println!("first sync: {:?} for {} MiB of data on ten volumes and three granules in 10 TiB", begun.elapsed(), 10 * 4);
    report(&site, "synced");

    // A change on each makes a point of all ten, and one of the big one.
    for client in &mut clients {
        client.write(0, &[0xcc; 4096], 0).expect("a write");
    }
    big.write(places[1], &[0xcc; 4096], 0).expect("a write");
    site.wait_quiet();
    report(&site, "after a change on each");
    site.daemon.take().expect("it runs").stop();
    let begun = Instant::now();
    site.start_daemon();
    println!("start after a clean stop: {:?}", begun.elapsed());
    let begun = Instant::now();
    site.wait_quiet();
    println!("quiet again: {:?}", begun.elapsed());
    let compared = site.volume_status("big")["counters"]["equal_bytes"].as_u64();
    assert_eq!(compared, Some(0), "a clean stop leaves nothing to compare");
    report(&site, "at the end");
    for name in &small {
        let image = site.path("image");
        site.restore(name, "latest", &image);
        let (restored, backing) = (std::fs::read(&image), std::fs::read(site.backing(name)));
        assert!(restored.expect("restored") == backing.expect("backing"), "{name}: source and newest point differ");
        std::fs::remove_file(image).expect("restored");
    }
}
