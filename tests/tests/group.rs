//! Two volumes of a group with dependent writes: data is written only after its log record was acknowledged. In every
//! point, the log is at least as far as the data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farside_tests::verify::connect;
use farside_tests::{Site, VolumeSpec, slot_of, wait_for};

const BYTES: u64 = 16 << 20;

fn counter_in(image: &std::path::Path) -> u64 {
    let bytes = std::fs::read(image).expect("restored");
    // The counter goes round 64 places, 16 KiB apart; the newest wins.
    (0..64).map(|i| u64::from_le_bytes(bytes[i * 16384..i * 16384 + 8].try_into().expect("8 bytes"))).max().expect("64 places")
}

#[test]
fn every_point_satisfies_the_dependency() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "db".into() };
    let mut site = Site::new(&[spec("log"), spec("data")], "100ms", 40);
    site.start_all();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, log, data) = (stop.clone(), site.tap("log"), site.tap("data"));
        std::thread::spawn(move || {
            let (mut log, mut data) = (connect(&log), connect(&data));
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let mut block = vec![0; 4096];
                block[..8].copy_from_slice(&n.to_le_bytes());
                log.write(n % 64 * 16384, &block, 0).expect("a write");
                data.write(n % 64 * 16384, &block, 0).expect("a write");
            }
            n
        })
    };
    // Points whose two members are both in, thirty of them, under load.
    let both = |site: &Site| -> Vec<_> {
        site.points("data").into_iter().filter(|p| p["members"].as_array().is_some_and(|m| m.len() == 2)).collect()
    };
    wait_for("thirty points of both", || (both(&site).len() >= 30).then_some(()));
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().expect("the writer wrote");
    site.wait_quiet();
    let points = both(&site);
    let mut seen = Vec::new();
    for point in &points {
        let id = point["id"].as_str().expect("an id");
        let (log, data) = (site.path("log.out"), site.path("data.out"));
        site.restore("log", id, &log);
        site.restore("data", id, &data);
        let (l, d) = (counter_in(&log), counter_in(&data));
        assert!(l == d || l == d + 1, "point {id}: the log holds {l}, the data {d}");
        seen.push(d);
        std::fs::remove_file(log).expect("restored");
        std::fs::remove_file(data).expect("restored");
    }
    assert!(seen.windows(2).all(|w| w[0] <= w[1]), "points go back in time: {seen:?}");
    assert_eq!(seen.last(), Some(&written), "the newest point holds everything");
    assert!(points.windows(2).all(|w| slot_of(&w[0]) < slot_of(&w[1])));
}
