//! `kill -9` hits daemon and receiver in turn while a verifying client writes: nothing acknowledged is lost, the source and
//! the newest point end identical, every listed point verifies.

use farside_tests::{Endurance, Site, load, slot_of, wait_for};

const BYTES: u64 = 96 << 20;
/// Of each of the two.
const KILLS: u32 = 20;
const KEEP: u32 = 8;

#[test]
fn twenty_kills_of_each_lose_nothing() {
    let mut site = Site::with_volume(BYTES, "200ms", KEEP);
    let endurance = Endurance::from_environment(7);
    let writer = load::verifying(site.tap("data"), BYTES, endurance.seed());
    let mut round = 0;
    while round < 2 * KILLS || endurance.goes_on() {
        // Let some hundred requests pass, and a point where both sides are up.
        writer.wait_for_more(300);
        if round % 2 == 0 {
            site.daemon.take().expect("it runs").kill();
            site.start_daemon();
        } else {
            site.receiver.take().expect("it runs").kill();
            site.start_receiver();
        }
        if round % 3 == 2 {
            let before = site.points("data").last().map_or(0, slot_of);
            wait_for("a new point", || site.points("data").last().map(slot_of).filter(|&s| s > before));
        }
        round += 1;
    }
    let mut client = writer.end();
    assert!(client.broken > 0, "no kill met a connection");
    endurance.report(&format!("{round} kills, {} of which met a connection", client.broken));
    let restored = site.check_newest("data", &mut client);
    site.check_store();
    let source = std::fs::read(site.backing("data")).expect("backing");
    assert!(source == restored, "the source and the newest point differ");
    // Those that retention gives up go when the receiver looks next.
    wait_for("what is kept to be all there is", || (site.points("data").len() <= KEEP as usize).then_some(()));
    for (i, point) in site.points("data").iter().enumerate() {
        let to = site.path(&format!("point-{i}.img"));
        site.restore("data", point["id"].as_str().expect("an id"), &to);
        std::fs::remove_file(to).expect("it was restored");
    }
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
}
