//! Two volumes of a group with dependent writes: data is written only after its log record was acknowledged. In every
//! point, the log is at least as far as the data.

use farside_tests::load::{self, counter_in};
use farside_tests::verify::connect;
use farside_tests::{Site, VolumeSpec, slot_of, wait_for};

const BYTES: u64 = 16 << 20;

#[test]
fn every_point_satisfies_the_dependency() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "db".into() };
    let mut site = Site::new(&[spec("log"), spec("data")], "100ms", 1000);
    site.start_all();
    let writer = load::dependent_writes(site.tap("log"), site.tap("data"));
    // Points whose two members are both in, thirty of them, under load.
    let both = |site: &Site| -> Vec<_> {
        site.points("data").into_iter().filter(|p| p["members"].as_array().is_some_and(|m| m.len() == 2)).collect()
    };
    wait_for("thirty points of both", || (both(&site).len() >= 30).then_some(()));
    let written = writer.end();
    site.wait_quiet();
    let points = both(&site);
    let mut seen = Vec::new();
    for point in &points {
        let id = point["id"].as_str().expect("an id");
        let (l, d) = (counter_in(&site, "log", id), counter_in(&site, "data", id));
        assert!(l == d || l == d + 1, "point {id}: the log holds {l}, the data {d}");
        seen.push(d);
    }
    assert!(seen.windows(2).all(|w| w[0] <= w[1]), "points go back in time: {seen:?}");
    assert_eq!(seen.last(), Some(&written), "the newest point holds everything");
    assert!(points.windows(2).all(|w| slot_of(&w[0]) < slot_of(&w[1])));
}

/// A member that nobody writes to holds no point back, is in each, and is what it was; then it takes part again.
#[test]
fn an_idle_member_is_in_every_point() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "db".into() };
    let mut site = Site::new(&[spec("log"), spec("data"), spec("idle")], "100ms", 1000);
    site.start_all();
    connect(&site.tap("idle")).write(8192, &[7; 4096], 0).expect("a write");
    site.wait_quiet();
    let before = site.points("idle").last().map_or(0, slot_of);
    let writer = load::dependent_writes(site.tap("log"), site.tap("data"));
    let newer = |site: &Site| -> Vec<_> { site.points("data").into_iter().filter(|p| slot_of(p) > before).collect() };
    wait_for("ten points under load", || (newer(&site).len() >= 10).then_some(()));
    connect(&site.tap("idle")).write(8192, &[8; 4096], 0).expect("a write");
    let written = writer.end();
    site.wait_quiet();
    let points = newer(&site);
    let image = site.path("idle.img");
    let mut seen = Vec::new();
    for point in &points {
        assert_eq!(point["members"].as_array().map(Vec::len), Some(3), "{point}");
        site.restore("idle", point["id"].as_str().expect("an id"), &image);
        let content = std::fs::read(&image).expect("restored");
        std::fs::remove_file(&image).expect("removed");
        assert!(content[8192..12288].iter().all(|byte| *byte == content[8192]), "torn in {point}");
        seen.push(content[8192]);
    }
    assert!(seen.is_sorted() && seen[0] == 7 && seen.last() == Some(&8), "{seen:?}");
    let newest = points.last().expect("some")["id"].as_str().expect("an id").to_owned();
    assert_eq!(counter_in(&site, "data", &newest), written);
}
