//! fio verifies what it wrote, with sixteen jobs, every block size from the smallest to a MiB, and trims, while the receiver or
//! the daemon dies twenty times: the host never notices, and what the store holds in the end is what the disk holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use farside_tests::{Endurance, Process, Site, run, tool, wait_for};

const JOBS: u64 = 16;
const JOB_BYTES: u64 = 8 << 20;
const DEATHS: u32 = 20;

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

/// fio, again and again, until it is told to stop.
struct Host {
    stop: Arc<AtomicBool>,
    runs: JoinHandle<u64>,
}

impl Host {
    fn start(tap: PathBuf, block_bytes: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let runs = std::thread::spawn(move || {
            let mut runs = 0;
            while !stopped.load(Ordering::Relaxed) {
                runs += 1;
                verify_twice(&tap, block_bytes, seed + runs);
            }
            runs
        });
        Self { stop, runs }
    }

    fn assert_well(&self) {
        assert!(!self.runs.is_finished(), "fio found something wrong");
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.runs.join().expect("fio found nothing wrong")
    }
}

fn counter(site: &Site, name: &str) -> u64 {
    site.volume_status("data")["counters"][name].as_u64().expect("a counter")
}

fn points_published(site: &Site) -> u64 {
    site.status()["groups"][0]["points_published"].as_u64().expect("a number")
}

/// Once all is published: the newest point is the disk.
fn ends_whole(mut site: Site) {
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

#[test]
fn fio_finds_nothing_while_the_receiver_dies_twenty_times() {
    let mut site = Site::with_volume(JOBS * JOB_BYTES, "200ms", 8);
    let block_bytes = site.volume_status("data")["backing"]["block_bytes"].as_u64().expect("a block size");
    let endurance = Endurance::from_environment(0);
    let host = Host::start(site.tap("data"), block_bytes, endurance.seed());
    let mut deaths = 0;
    while deaths < DEATHS || endurance.goes_on() {
        // Each death meets a load, and every third a source that has just published to it.
        let sent = counter(&site, "sent_bytes");
        wait_for("something to be sent", || {
            host.assert_well();
            (counter(&site, "sent_bytes") > sent).then_some(())
        });
        if deaths % 3 == 2 {
            let before = points_published(&site);
            wait_for("a new point", || (points_published(&site) > before).then_some(()));
        }
        site.receiver.take().expect("it runs").kill();
        let written = counter(&site, "written_bytes");
        wait_for("the host to write on without a receiver", || (counter(&site, "written_bytes") > written).then_some(()));
        site.start_receiver();
        deaths += 1;
    }
    let runs = host.end();
    endurance.report(&format!("{runs} runs of fio, {deaths} deaths of the receiver"));
    assert!(counter(&site, "trims") > 0 && counter(&site, "reads") > 0, "fio trimmed and verified");
    ends_whole(site);
}

/// fio does not connect again; what stands before the tap here does, and says again what was not answered.
#[test]
fn fio_finds_nothing_while_the_daemon_dies_twenty_times() {
    let mut site = Site::with_volume(JOBS * JOB_BYTES, "200ms", 8);
    let block_bytes = site.volume_status("data")["backing"]["block_bytes"].as_u64().expect("a block size");
    let front = site.path("front.sock");
    let options = format!("driver=nbd,server.type=unix,server.path={},reconnect-delay=300", site.tap("data").display());
    let front_server = tool("qemu-nbd")
        .args(["-t", "-e", "64", "--cache=none", "--discard=unmap", "-k"])
        .arg(&front)
        .args(["--image-opts", &options])
        .spawn()
        .expect("it is installed");
    let front_server = Process::new(front_server, "qemu-nbd");
    wait_for("qemu-nbd", || std::os::unix::net::UnixStream::connect(&front).ok());
    let endurance = Endurance::from_environment(0);
    let host = Host::start(front, block_bytes, endurance.seed());
    let mut deaths = 0;
    while deaths < DEATHS || endurance.goes_on() {
        // Each death meets requests under way, and every third a daemon that has published since it was started.
        wait_for("the host to write on", || {
            host.assert_well();
            (counter(&site, "written_bytes") > 1 << 20).then_some(())
        });
        if deaths % 3 == 2 {
            wait_for("a new point", || (points_published(&site) > 0).then_some(()));
        }
        site.daemon.take().expect("it runs").kill();
        site.start_daemon();
        deaths += 1;
    }
    let runs = host.end();
    endurance.report(&format!("{runs} runs of fio, {deaths} deaths of the daemon"));
    drop(front_server);
    ends_whole(site);
}
