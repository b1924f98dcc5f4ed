//! Disks that fail under us: what is lost track of is found again, and nothing waits for ever.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use farside_tests::mount::possible;
use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, VolumeSpec, run, tool, wait_for};

const BYTES: u64 = 16 << 20;

fn spec() -> VolumeSpec {
    VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }
}

/// An ext4 file system in a file, mounted; unmounted when dropped.
struct Ext4 {
    image: PathBuf,
    at: PathBuf,
}

impl Ext4 {
    fn make(image: PathBuf, at: PathBuf) -> Self {
        std::fs::File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("an image");
        run(tool("mkfs.ext4").arg("-q").arg(&image));
        std::fs::create_dir_all(&at).expect("mkdir");
        let this = Self { image, at };
        this.mount();
        this
    }

    fn mount(&self) {
        run(tool("mount").args(["-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.at));
    }

    /// What a failing disk does to it: from now on it takes no write.
    fn fail(&self) {
        let output = run(tool("findmnt").args(["-n", "-o", "SOURCE", "--mountpoint"]).arg(&self.at));
        let device = String::from_utf8(output.stdout).expect("text");
        let name = Path::new(device.trim()).file_name().expect("a device").to_owned();
        let trigger = Path::new("/sys/fs/ext4").join(name).join("trigger_fs_error");
        std::fs::write(&trigger, "1").expect("the kernel lets a test fail a file system");
    }

    /// What a person does about it.
    fn mend(&self) {
        run(tool("umount").arg(&self.at));
        let status = tool("e2fsck").args(["-f", "-y"]).arg(&self.image).output().expect("it starts").status;
        assert!(status.code().is_some_and(|code| code <= 1), "e2fsck: {status}");
        self.mount();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = tool("umount").arg("--lazy").arg(&self.at).status(); // the daemon of a test that failed still uses it
    }
}

/// L2: the state directory dies while a region is cold, the host writes to that region, and the machine is rebooted before the
/// directory could be written again. Only the receiver knows; the next start must compare everything.
#[test]
fn a_loss_of_tracking_that_only_the_receiver_could_keep_is_heeded_after_a_reboot() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    let state = Ext4::make(site.path("state.ext4"), site.path("host/state"));
    site.start_all();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(1);
    while client.acknowledged < 50 {
        client.step(&mut rng, 4096);
    }
    client.flush();
    site.wait_quiet();
    wait_for("everything to cool", || (site.volume_status("data")["hot_bytes"] == 0).then_some(()));

    state.fail();
    while client.acknowledged < 60 {
        client.step(&mut rng, 4096);
    }
    client.flush();
    drop(client);
    let status = site.volume_status("data");
    assert_eq!(status["state"]["state"], "tracking_lost", "{status}");
    assert!(status.to_string().contains("at the receiver, which has it"), "{status}");

    let mut daemon = site.daemon.take().expect("it runs");
    daemon.signal(libc::SIGTERM);
    wait_for("the stop", || (!daemon.is_running()).then_some(()));
    state.mend();
    for entry in std::fs::read_dir(site.path("host")).expect("a folder").map(|e| e.expect("an entry")) {
        // A reboot empties the runtime directory.
        if entry.file_name().to_string_lossy().starts_with("tracking-lost-") {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    assert!(!site.path("host/state/volumes/default/data/tracking-lost").exists(), "nothing here knows");
    site.start_daemon();
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    let restored = site.path("restored.img");
    site.restore("data", newest["id"].as_str().expect("an id"), &restored);
    let same = std::fs::read(site.backing("data")).expect("read") == std::fs::read(&restored).expect("read");
    assert!(same, "the newest point is not the disk");
    site.daemon.take().expect("it runs").stop();
}

/// Who gives up waiting for `volume add` must not leave a volume that is served and not configured.
#[test]
fn an_add_whose_client_went_away_ends_whole() {
    let mut site = Site::new(&[spec()], "200ms", 8);
    site.start_all();
    let backing = site.path("other.img");
    let file = std::fs::File::create(&backing).expect("created");
    file.set_len(BYTES).expect("sized");
    file.write_all_at(&[7; 4096], 0).expect("written");
    // Held by somebody else: the add waits at the door.
    file.lock().expect("free");
    let mut add = site.farside().args(["volume", "add", "other", "--backing"]).arg(&backing).spawn().expect("it starts");
    wait_for("the daemon to be at it", || site.path("host/state/volumes/default/other").exists().then_some(()));
    add.kill().expect("our own child");
    add.wait().expect("our own child");
    drop(file);
    wait_for("the volume", || {
        let status = site.status();
        let groups = status["groups"].as_array()?;
        groups.iter().flat_map(|g| g["volumes"].as_array().into_iter().flatten()).find(|v| v["name"] == "other").map(drop)
    });
    // Served: then it is configured too, and can be removed like any other.
    run(site.farside().args(["volume", "remove", "other", "--yes"]));
    assert!(!site.path("host/state/volumes/default/other").exists());
    site.daemon.take().expect("it runs").stop();
}
