//! A third volume joins a busy group, over a line on which its first sync takes long: the points of the other two go on, say
//! that they hold two members, and agree with each other; when the sync is done, points hold all three.

use farside_tests::load::{self, counter_in};
use farside_tests::netns::{Network, possible};
use farside_tests::verify::{Rng, connect};
use farside_tests::{Site, VolumeSpec, run, wait_for};
use serde_json::Value;

const BYTES: u64 = 16 << 20;
const THIRD_BYTES: u64 = 96 << 20;
/// Points of the two, during the sync of the third.
const POINTS: usize = 5;

fn members(point: &Value) -> usize {
    point["members"].as_array().expect("members").len()
}

#[test]
fn a_third_volume_joins_and_the_points_of_two_go_on() {
    if !possible() {
        eprintln!("not run: needs root for network namespaces");
        return;
    }
    let network = Network::new(50, 256 << 10);
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "db".into() };
    let mut site = Site::new(&[spec("log"), spec("data")], "200ms", 10_000);
    site.connect_through(&network);
    site.start_all();
    let writer = load::dependent_writes(site.tap("log"), site.tap("data"));
    let with =
        |site: &Site, count: usize| -> Vec<Value> { site.points("data").into_iter().filter(|p| members(p) == count).collect() };
    wait_for("points of two", || (with(&site, 2).len() >= 3).then_some(()));

    // What no compression shortens, so that the line decides how long it takes.
    let backing = site.backing("third");
    let mut rng = Rng(3);
    let content: Vec<u8> = (0..THIRD_BYTES / 8).flat_map(|_| rng.draw().to_le_bytes()).collect();
    std::fs::write(&backing, content).expect("written");
    run(site
        .farside()
        .args(["volume", "add", "third", "--group", "db", "--backing"])
        .arg(&backing)
        .arg("--tap")
        .arg(format!("nbd:unix:{}", site.tap("third").display())));
    let before = with(&site, 2).len();
    wait_for("points of two while the third is syncing", || {
        writer.assert_running();
        let third = site.volume_status("third");
        let during = with(&site, 2).len() - before;
        assert!(
            during >= POINTS || third["in_last_point"] == false,
            "the third was in a point after {during} points of the other two"
        );
        (during >= POINTS).then_some(())
    });
    let third = site.volume_status("third");
    assert_eq!(third["state"]["state"], "behind", "its first sync is still going on: {third}");
    // It may be written to meanwhile, as any volume.
    connect(&site.tap("third")).write(4096, &[9; 8192], 0).expect("a write");
    wait_for("points of all three", || (with(&site, 3).len() >= 3).then_some(()));
    let written = writer.end();
    site.wait_quiet();

    let points = site.points("data");
    let joined = points.iter().position(|p| members(p) == 3).expect("there are some");
    assert!(points[joined..].iter().all(|p| members(p) == 3), "a member got lost again");
    // (On a slow machine one of the two may have been there before the other.)
    for point in points.iter().filter(|p| members(p) > 1).step_by(points.len() / 8) {
        let id = point["id"].as_str().expect("an id");
        let (log, data) = (counter_in(&site, "log", id), counter_in(&site, "data", id));
        assert!(log == data || log == data + 1, "point {id}: the log holds {log}, the data {data}");
    }
    assert_eq!(counter_in(&site, "data", "latest"), written, "the newest point holds everything");
    let image = site.path("third.out");
    site.restore("third", "latest", &image);
    let (restored, source) = (std::fs::read(&image), std::fs::read(&backing));
    assert!(restored.expect("restored") == source.expect("backing"), "the third and the newest point differ");
    site.check_store();
}
