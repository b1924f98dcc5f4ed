//! fio verifies what it wrote, with sixteen jobs, every block size from the smallest to a MiB, and trims, while the receiver
//! dies twenty times: the host never notices, and what the store holds in the end is what the disk holds.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farside_tests::{Endurance, Site, run, tool, wait_for};

const JOBS: u64 = 16;
const JOB_BYTES: u64 = 8 << 20;
const RECEIVER_DEATHS: u32 = 20;

/// Two runs: each job fills its part of the volume in random order and reads everything back; then each trims block after
/// block, fills it again, and reads everything back. (`serialize_overlap`: fio would otherwise have the trim of a block and
/// the write to it under way together.)
fn verify_twice(tap: &Path, block_bytes: u64, seed: u64) {
    let sizes = format!("--bssplit={block_bytes}/20:4k/30:16k/20:64k/15:256k/10:1m/5");
    let phases = [vec!["--rw=randwrite", "--verify_backlog=64"], vec!["--rw=trimwrite", "--serialize_overlap=1"]];
    for phase in phases {
        run(tool("fio")
            .args(["--name=verify", "--ioengine=nbd", "--thread", "--iodepth=8", "--group_reporting", "--end_fsync=1"])
            .arg(format!("--uri=nbd+unix:///?socket={}", tap.display()))
            .args([format!("--numjobs={JOBS}"), format!("--size={JOB_BYTES}"), format!("--offset_increment={JOB_BYTES}")])
            .args([sizes.as_str(), &format!("--randseed={seed}"), "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
            .args(phase));
    }
}

#[test]
fn fio_finds_nothing_while_the_receiver_dies_twenty_times() {
    let mut site = Site::with_volume(JOBS * JOB_BYTES, "200ms", 8);
    let block_bytes = site.volume_status("data")["backing"]["block_bytes"].as_u64().expect("a block size");
    let stop = Arc::new(AtomicBool::new(false));
    let host = {
        let (stop, tap) = (stop.clone(), site.tap("data"));
        std::thread::spawn(move || {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                runs += 1;
                verify_twice(&tap, block_bytes, runs);
            }
            runs
        })
    };
    let counter = |site: &Site, name: &str| site.volume_status("data")["counters"][name].as_u64().expect("a counter");
    let endurance = Endurance::from_environment();
    let mut deaths = 0;
    while deaths < RECEIVER_DEATHS || endurance.goes_on() {
        // Each death meets a load, and every third a source that has just published to it.
        let sent = counter(&site, "sent_bytes");
        wait_for("something to be sent", || {
            assert!(!host.is_finished(), "fio found something wrong");
            (counter(&site, "sent_bytes") > sent).then_some(())
        });
        if deaths % 3 == 2 {
            let before = site.status()["groups"][0]["points_published"].as_u64().expect("a number");
            wait_for("a new point", || {
                (site.status()["groups"][0]["points_published"].as_u64().expect("a number") > before).then_some(())
            });
        }
        site.receiver.take().expect("it runs").kill();
        let written = counter(&site, "written_bytes");
        wait_for("the host to write on without a receiver", || (counter(&site, "written_bytes") > written).then_some(()));
        site.start_receiver();
        deaths += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let runs = host.join().expect("fio found nothing wrong");
    println!("{runs} runs of fio, {deaths} deaths of the receiver");
    assert!(counter(&site, "trims") > 0 && counter(&site, "reads") > 0, "fio trimmed and verified");
    assert_eq!(counter(&site, "errors"), 0, "a request of the host failed");
    site.wait_quiet();
    site.check_store();
    let image = site.path("newest.img");
    site.restore("data", "latest", &image);
    let (restored, backing) = (std::fs::read(&image), std::fs::read(site.backing("data")));
    assert!(restored.expect("restored") == backing.expect("backing"), "the source and the newest point differ");
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
}
