//! Power cuts: the backing and the disk of the state directory forget what was not flushed, while files are written and
//! synced on an ext4 on the tap. Afterwards only hot regions are read again, the newest point is what the disk really
//! holds (so nothing that was lost was taken for clean, L2), and every file that was synced is there.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use farside_tests::mount::{Mounted, fsck_clean, possible};
use farside_tests::power::{Disk, formatted};
use farside_tests::verify::Rng;
use farside_tests::{Site, VolumeSpec, run, tool, wait_for};

const BYTES: u64 = 256 << 20;
const STATE_BYTES: u64 = 32 << 20;
const CUTS: u64 = 10;
const FILES_PER_CUT: usize = 25;

/// The state directory's file system.
struct StateMount(PathBuf);

impl StateMount {
    fn new(disk: &Disk, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("mkdir");
        run(tool("mount").args(["-t", "ext4"]).arg(disk.device()).arg(&at));
        Self(at)
    }
}

impl Drop for StateMount {
    fn drop(&mut self) {
        if !tool("umount").arg(&self.0).status().is_ok_and(|status| status.success()) {
            let _ = tool("umount").arg("--lazy").arg(&self.0).status(); // a failed test's daemon still holds it
        }
    }
}

fn file_content(number: usize) -> Vec<u8> {
    let mut rng = Rng(number as u64 + 1);
    let len = 1 + rng.below(48 << 10) as usize;
    (0..len.div_ceil(8)).flat_map(|_| rng.draw().to_le_bytes()).take(len).collect()
}

fn name_of(number: usize) -> String {
    format!("file-{number:05}")
}

/// Writes over one file again and again, past the page cache and without a flush, until the power goes.
fn scribble(dir: &Path) {
    let to = format!("of={}", dir.join("scribble").display());
    let mut dd = tool("dd");
    dd.args(["if=/dev/urandom", &to, "bs=64k", "count=64", "oflag=direct", "conv=notrunc"]).stderr(Stdio::null());
    while dd.status().expect("dd").success() {}
}

/// Writes one file so that it survives.
fn write_synced(dir: &Path, number: usize) -> std::io::Result<()> {
    let mut file = File::create(dir.join(name_of(number)))?;
    file.write_all(&file_content(number))?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

fn check_files(dir: &Path, acknowledged: usize) {
    for number in 0..acknowledged {
        let found = std::fs::read(dir.join(name_of(number))).unwrap_or_else(|e| panic!("{}: {e}", name_of(number)));
        assert!(found == file_content(number), "{} was synced and is not what was written", name_of(number));
    }
}

/// Everything published; the newest point is what the disk holds; nothing but hot regions was read for it.
fn judge(site: &Site, disk: &Disk, hot_bytes: u64) -> u64 {
    site.wait_quiet();
    let read = site.volume_status("data")["counters"]["sent_bytes"].as_u64().expect("a counter");
    assert!(read <= hot_bytes, "{read} bytes were read again, {hot_bytes} were hot");
    let image = site.path("newest.img");
    site.restore("data", "latest", &image);
    assert!(std::fs::read(&image).expect("restored") == disk.content(), "the disk and the newest point differ");
    std::fs::remove_file(image).expect("restored");
    read
}

#[test]
fn ten_power_cuts_leave_nothing_falsely_clean() {
    if !possible() {
        eprintln!("not run: needs root, FUSE and loop devices");
        return;
    }
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec], "200ms", 10_000);
    let mut disk = Disk::new(&site.path("disk"), formatted(&site.path("disk"), BYTES));
    let mut state_disk = Disk::new(&site.path("state-disk"), formatted(&site.path("state-disk"), STATE_BYTES));
    std::fs::remove_file(site.backing("data")).expect("made with the site");
    std::os::unix::fs::symlink(disk.device(), site.backing("data")).expect("a link");
    let mut state = Some(StateMount::new(&state_disk, site.path("host/state")));
    site.start_all();
    site.wait_quiet();
    let hot = |site: &Site| site.volume_status("data")["hot_bytes"].as_u64().expect("a number");
    wait_for("the volume to cool after its first sync", || (hot(&site) < BYTES / 8).then_some(()));

    let mut rng = Rng(41);
    let (mut acknowledged, mut blocks_lost) = (0, 0);
    for cut in 0..CUTS {
        let mounted = Mounted::on_tap(&site.tap("data"), &site.path("scratch"));
        check_files(mounted.path(), acknowledged);
        let writer = std::thread::spawn({
            let dir = mounted.path().to_owned();
            move || (acknowledged..).find(|&number| write_synced(&dir, number).is_err()).expect("the power goes")
        });
        let scribbler = std::thread::spawn({
            let dir = mounted.path().to_owned();
            move || scribble(&dir)
        });
        wait_for("files to be synced", || {
            assert!(!writer.is_finished(), "a file could not be written while there was power");
            mounted.path().join(name_of(acknowledged + FILES_PER_CUT)).exists().then_some(())
        });
        // Everything stands still at once: first who runs, then what remembers.
        let daemon = site.daemon.take().expect("it runs");
        daemon.signal(libc::SIGSTOP);
        // Now and then nothing of the cache survives, and now and then nearly everything.
        let kept = [4, 0, 7][cut as usize % 3];
        let lost = (disk.cut(&mut rng, kept), state_disk.cut(&mut rng, kept));
        daemon.kill();
        acknowledged = writer.join().expect("the writer wrote");
        scribbler.join().expect("it scribbled");
        blocks_lost += lost.0;
        drop(mounted);
        drop(state.take());
        disk.unplug();
        state_disk.unplug();

        disk.switch_on();
        state_disk.switch_on();
        state = Some(StateMount::new(&state_disk, site.path("host/state")));
        site.start_daemon();
        let hot_bytes = hot(&site);
        assert!(hot_bytes < BYTES, "everything is hot: nothing is proved");
        let read = judge(&site, &disk, hot_bytes);
        println!(
            "cut {cut}: {} blocks lost, {} of the state; {} MiB hot, {} MiB read again; {acknowledged} files synced",
            lost.0,
            lost.1,
            hot_bytes >> 20,
            read >> 20
        );
    }
    assert!(blocks_lost > 0, "no power cut met anything that was not flushed");
    let mounted = Mounted::on_tap(&site.tap("data"), &site.path("scratch"));
    check_files(mounted.path(), acknowledged);
    drop(mounted);
    site.wait_quiet();
    let image = site.path("final.img");
    site.restore("data", "latest", &image);
    fsck_clean(&image);
    site.check_store();
    site.daemon.take().expect("it runs").stop();
    drop(state);
}
