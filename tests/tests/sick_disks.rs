//! Disks that fail under us: what is lost track of is found again, and nothing waits for ever.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use farside_tests::mount::possible;
use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Process, Site, VolumeSpec, run, tool, wait_for};
use serde_json::Value;

const BYTES: u64 = 16 << 20;

/// A file on FUSE, whose server can be told to answer nothing.
struct Mute {
    dir: PathBuf,
    server: Process,
    fuse: Process,
}

impl Mute {
    fn make(site: &Site) -> Self {
        let (image, socket, dir) = (site.path("mute.img"), site.path("mute.sock"), site.path("mute"));
        std::fs::File::create(&image).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
        std::fs::create_dir(&dir).expect("mkdir");
        let server = tool("qemu-nbd").args(["-f", "raw", "-t", "-k"]).arg(&socket).arg(&image).spawn().expect("it is installed");
        let server = Process::new(server, "qemu-nbd");
        wait_for("qemu-nbd", || std::os::unix::net::UnixStream::connect(&socket).ok());
        let fuse = tool("nbdfuse").arg(dir.join("disk")).arg("--unix").arg(&socket).spawn().expect("it is installed");
        let this = Self { dir, server, fuse: Process::new(fuse, "nbdfuse") };
        wait_for("nbdfuse", || this.file().metadata().ok().filter(|m| m.len() == BYTES));
        this
    }

    fn file(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Whoever opens, reads or looks at it waits.
    fn mute(&self, mute: bool) {
        self.fuse.signal(if mute { libc::SIGSTOP } else { libc::SIGCONT });
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.mute(false);
        let _ = tool("fusermount3").args(["-u", "-z", "-q"]).arg(&self.dir).status();
        self.server.signal(libc::SIGTERM);
    }
}

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

    /// Until not even a byte fits.
    fn fill(&self) {
        let file = std::fs::File::create(self.at.join("filler")).expect("created");
        let (mut at, mut piece) = (0, 1 << 20);
        while piece > 0 {
            match file.write_at(&vec![7; piece], at) {
                Ok(written) => at += written as u64,
                Err(_) => piece /= 4,
            }
            file.sync_all().expect("synced"); // what is only in memory may not fit
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.at.join("filler")).expect("it was filled");
    }

    /// Writes to it wait, also those under way.
    fn freeze(&self, frozen: bool) {
        run(tool("fsfreeze").arg(if frozen { "--freeze" } else { "--unfreeze" }).arg(&self.at));
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
        let _ = tool("fsfreeze").arg("--unfreeze").arg(&self.at).stderr(std::process::Stdio::null()).status(); // of a test that failed
        let _ = tool("umount").arg("--lazy").arg(&self.at).status(); // the daemon of a test that failed still uses it
    }
}

/// The volume `hangs`, published, with a write under way that its disk does not answer until it is thawed: the disk, the backing
/// on it, and the writer.
fn volume_that_hangs(site: &Site) -> (Ext4, PathBuf, JoinHandle<std::io::Result<()>>) {
    let disk = Ext4::make(site.path("disk.ext4"), site.path("disk"));
    let backing = site.path("disk/hangs.img");
    std::fs::write(&backing, vec![1; BYTES as usize]).expect("written");
    run(site.farside().args(["volume", "add", "hangs", "--backing"]).arg(&backing));
    site.wait_quiet();
    let mut client = farside_nbd::client::Client::connect(&site.path("host/hangs.nbd"), "hangs").expect("connected");
    disk.freeze(true);
    let writer = std::thread::spawn(move || client.write(0, &[9; 4096], 0));
    wait_for("the write to be under way", || (site.volume_status("hangs")["tap"]["in_flight"] == 1).then_some(()));
    (disk, backing, writer)
}

/// Once all is published, the newest point is what the disk holds.
fn assert_newest_is(site: &Site, volume: &str, backing: &Path) {
    site.wait_quiet();
    let restored = site.path("restored.img");
    site.restore(volume, "latest", &restored);
    let same = std::fs::read(backing).expect("read") == std::fs::read(&restored).expect("read");
    assert!(same, "the newest point of {volume} is not the disk");
}

/// A site whose state directory has a file system of its own, after some writes: all is published, and nothing hot.
fn cold_site(seed: u64) -> (Site, Ext4, Verifier, Rng) {
    let mut site = Site::new(&[spec()], "200ms", 8);
    let state = Ext4::make(site.path("state.ext4"), site.path("host/state"));
    site.start_all();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(seed);
    client.steps(&mut rng, 50);
    client.flush();
    site.wait_quiet();
    wait_for("everything to cool", || (site.volume_status("data")["hot_bytes"] == 0).then_some(()));
    (site, state, client, rng)
}

/// What is said once a loss of tracking is in the receiver's ledger.
fn lost_at_the_receiver(site: &Site) -> Value {
    let status = wait_for("the receiver to have it", || {
        let status = site.volume_status("data");
        status.to_string().contains("at the receiver, which has it").then_some(status)
    });
    assert_eq!(status["state"]["state"], "tracking_lost", "{status}");
    status
}

/// L2: the state directory dies while a region is cold, the host writes to that region, and the machine is rebooted before the
/// directory could be written again. Only the receiver knows; the next start must compare everything.
#[test]
fn a_loss_of_tracking_that_only_the_receiver_could_keep_is_heeded_after_a_reboot() {
    if !possible() {
        return; // needs root and a loop device
    }
    let (mut site, state, mut client, mut rng) = cold_site(1);

    state.fail();
    client.steps(&mut rng, 10);
    client.flush();
    drop(client);
    let status = lost_at_the_receiver(&site);
    let mark = site.path("host/state/volumes/default/data/tracking-lost");
    assert!(status.to_string().contains(&format!("cannot mark {}", mark.display())), "it does not say where: {status}");

    let mut daemon = site.daemon.take().expect("it runs");
    daemon.signal(libc::SIGTERM);
    wait_for("the stop", || (!daemon.is_running()).then_some(()));
    let log = std::fs::read_to_string(site.path("daemon.log")).expect("a log");
    assert!(!log.contains("kept nowhere"), "the receiver has it: {log}");
    state.mend();
    for entry in std::fs::read_dir(site.path("host")).expect("a folder").map(|e| e.expect("an entry")) {
        // A reboot empties the runtime directory.
        if entry.file_name().to_string_lossy().starts_with("tracking-lost-") {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    assert!(!site.path("host/state/volumes/default/data/tracking-lost").exists(), "nothing here knows");
    site.start_daemon();
    assert_newest_is(&site, "data", &site.backing("data"));
    site.daemon.take().expect("it runs").stop();
}

/// L1: the file system of the state directory takes no write any more, and the daemon is killed. The next one serves all the same, knows that it has lost
/// track, and compares everything once the disk is mended.
#[test]
fn a_state_directory_that_became_read_only_keeps_no_volume_from_its_host_after_a_crash() {
    if !possible() {
        return; // needs root and a loop device
    }
    let (mut site, state, client, _) = cold_site(3);
    drop(client);
    state.fail();
    site.daemon.take().expect("it runs").kill();

    site.start_daemon();
    let mut client = farside_nbd::client::Client::connect(&site.tap("data"), "data").expect("connected");
    client.set_timeout(Some(farside_tests::PATIENCE)).expect("a socket");
    client.write(8 << 20, &[5; 4096], 0).expect("answered");
    drop(client);
    lost_at_the_receiver(&site);

    site.daemon.take().expect("it runs").kill();
    state.mend();
    site.start_daemon();
    assert_newest_is(&site, "data", &site.backing("data"));
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
    // Served: then it is configured too, and can be removed like any other, as soon as that is done.
    let remove = || site.farside().args(["volume", "remove", "other", "--yes"]).output().expect("it starts").status;
    wait_for("it to be removed", || remove().success().then_some(()));
    assert!(!site.path("host/state/volumes/default/other").exists());
    site.daemon.take().expect("it runs").stop();
}

/// After a crash the map is written anew. Where there is no room for a second one, that must not keep the volume from its host.
#[test]
fn a_full_state_directory_keeps_no_volume_from_its_host_after_a_crash() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    let state = Ext4::make(site.path("state.ext4"), site.path("host/state"));
    site.start_all();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(7), 100);
    client.flush();
    site.daemon.take().expect("it runs").kill();
    drop(client);
    state.fill();
    site.start_daemon();
    let log = std::fs::read_to_string(site.path("daemon.log")).expect("a log");
    assert!(log.contains("written anew in its place"), "{log}");
    assert!(!site.path("host/state/volumes/default/data/intent.new").exists(), "it would keep the disk full");
    assert_newest_is(&site, "data", &site.backing("data"));
    state.make_room();
    site.daemon.take().expect("it runs").stop();
}

/// The disk of the state directory answers nothing for a while. Writes to regions that are hot go on, and so do points, answers and the
/// daemon itself. The first write to a cold region waits for its bit, as it must, and that is said.
#[test]
fn a_state_directory_that_stands_still_holds_up_what_must_wait_for_it_and_nothing_else() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    let state = Ext4::make(site.path("state.ext4"), site.path("host/state"));
    site.start_all();
    let mut client = farside_nbd::client::Client::connect(&site.tap("data"), "data").expect("connected");
    client.write(0, &[1; 4096], 0).expect("answered");
    site.wait_quiet();
    wait_for("everything to cool", || (site.volume_status("data")["hot_bytes"] == 0).then_some(()));
    client.set_timeout(Some(farside_tests::PATIENCE)).expect("a socket");
    client.write(0, &[2; 4096], 0).expect("answered");
    site.wait_quiet();
    // However long that took: its region is hot.
    client.write(0, &[2; 4096], 0).expect("answered");
    state.freeze(true);
    let newest = || site.status()["groups"][0]["last_point"]["id"].clone();
    let before = newest();
    client.write(4096, &[3; 4096], 0).expect("it waits for nothing");
    wait_for("a point of it", || (newest() != before).then_some(()));
    let writer = std::thread::spawn(move || client.write(8 << 20, &[4; 4096], 0));
    let is_said = || site.volume_status("data").to_string().contains("map_waits");
    wait_for("it to be said", || is_said().then_some(()));
    assert_eq!(site.volume_status("data")["tap"]["in_flight"], 1, "its bit is not durable");
    state.freeze(false);
    writer.join().expect("it ended").expect("answered");
    wait_for("nothing to be said any more", || (!is_said()).then_some(()));
    assert_newest_is(&site, "data", &site.backing("data"));
    site.daemon.take().expect("it runs").stop();
}

/// A device that answers nothing holds up its own volume: whoever removes it is told, and every other command goes on.
#[test]
fn removing_a_volume_whose_device_hangs_holds_up_no_other_command() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    site.start_all();
    let (disk, backing, writer) = volume_that_hangs(&site);
    let mut remove = site.farside().args(["volume", "remove", "hangs", "--yes"]).spawn().expect("it starts");
    wait_for("the removal to wait for the device", || (!site.path("host/farsided.d/volume-hangs.toml").exists()).then_some(()));
    run(site.farside().args(["group", "set", "default", "--keep", "9"]));
    let again = site.farside().args(["volume", "remove", "hangs", "--yes"]).output().expect("it starts");
    assert!(String::from_utf8_lossy(&again.stderr).contains("still being removed"), "{again:?}");
    let add = site.farside().args(["volume", "add", "hangs", "--backing"]).arg(&backing).output().expect("it starts");
    assert!(String::from_utf8_lossy(&add.stderr).contains("still being removed"), "{add:?}");
    assert!(site.path("host/state/volumes/default/hangs").exists(), "its device is in use still");
    disk.freeze(false);
    writer.join().expect("it ended").expect("the write was answered: it came before the end");
    remove.wait().expect("our own child"); // its patience may have ended before
    wait_for("the volume to be gone", || (!site.path("host/state/volumes/default/hangs").exists()).then_some(()));
    wait_for("its name to be free", || {
        let add = site.farside().args(["volume", "add", "hangs", "--backing"]).arg(&backing).output().expect("it starts");
        add.status.success().then_some(())
    });
    site.daemon.take().expect("it runs").stop();
}

/// A device that does not even answer its opening keeps neither the other volumes from their hosts, nor the service from being
/// ready, nor a stop from ending; it is served when it answers.
#[test]
fn a_device_that_never_answers_its_opening_holds_up_nobody_else() {
    if !possible() {
        return; // needs root and FUSE
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    let mute = Mute::make(&site);
    std::fs::create_dir_all(site.path("host/farsided.d")).expect("made");
    let volume = format!("[[volume]]\nname = \"mute\"\nbacking = \"{}\"\n", mute.file().display());
    std::fs::write(site.path("host/farsided.d/volume-mute.toml"), volume).expect("written");
    let path = site.path("notify.sock");
    let systemd = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    systemd.set_nonblocking(true).expect("a socket");
    site.environment = vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "60000000".into())];
    let hears = |wanted: &str| {
        wait_for(wanted, || {
            let mut buffer = [0; 1024];
            let length = systemd.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned()).filter(|said| said.contains(wanted))
        })
    };
    mute.mute(true);
    site.start_receiver();
    hears("READY=1");
    let mut daemon = site.spawn_daemon();
    wait_for("the other volume", || std::os::unix::net::UnixStream::connect(site.tap("data")).ok());
    site.pair();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(3), 50);
    client.flush();
    assert_eq!(site.status()["reasons"][0]["code"], "starting");
    // Ready all the same, after the bound, with who is late.
    assert!(hears("READY=1").contains("1 of 2 volumes served; being opened: mute"));
    wait_for("a point of the other", || (!site.points("data").is_empty()).then_some(()));
    daemon.signal(libc::SIGTERM);
    wait_for("a stop that does not wait for it", || (!daemon.is_running()).then_some(()));

    let daemon = site.spawn_daemon();
    hears("READY=1");
    assert_eq!(site.status()["reasons"][0]["code"], "starting");
    mute.mute(false);
    hears("STATUS=2 of 2 volumes served");
    site.check_newest("data", &mut client);
    daemon.stop();
}

/// What a thread waits for in the kernel outlives even SIGKILL, and so do its files: whoever comes next is told that, not that
/// another daemon is to be stopped.
#[test]
fn a_killed_daemon_that_its_device_holds_is_named_and_followed_when_the_device_answers() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    let disk = Ext4::make(site.path("disk.ext4"), site.path("disk"));
    std::fs::rename(site.backing("data"), site.path("disk/data.img"))
        .or_else(|_| std::fs::File::create(site.path("disk/data.img")).and_then(|f| f.set_len(BYTES)))
        .expect("a backing");
    let config = site.path("host/farsided.toml");
    let toml = std::fs::read_to_string(&config).expect("written");
    let (old, new) = (site.backing("data"), site.path("disk/data.img"));
    std::fs::write(&config, toml.replace(&*old.to_string_lossy(), &new.to_string_lossy())).expect("written");
    site.start_all();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(4), 100);
    client.flush();
    site.wait_quiet();
    disk.freeze(true);
    let mut other = farside_nbd::client::Client::connect(&site.tap("data"), "").expect("connected");
    let writer = std::thread::spawn(move || other.write(0, &[0; 512], 0));
    wait_for("the write to be under way", || (site.volume_status("data")["tap"]["in_flight"] == 1).then_some(()));
    let mut killed = site.daemon.take().expect("it runs");
    killed.signal(libc::SIGKILL);
    let log = || std::fs::read_to_string(site.path("daemon.log")).unwrap_or_default();
    wait_for("its successor to say what is the matter", || {
        let mut next = site.spawn_daemon();
        wait_for("its end", || (!next.is_running()).then_some(()));
        log().contains(&format!("a farsided that was killed (pid {})", killed.pid())).then_some(())
    });
    assert!(killed.is_running(), "its device has not answered");
    disk.freeze(false);
    wait_for("the end of the killed one", || (!killed.is_running()).then_some(()));
    writer.join().expect("it ended").expect_err("nobody answered it");
    site.start_daemon();
    assert_newest_is(&site, "data", &site.path("disk/data.img"));
    site.daemon.take().expect("it runs").stop();
}

/// Put back by a reload while its device still holds its last request: it leaves first, then it is opened again, and nothing is
/// taken for unchanged that was written between.
#[test]
fn a_volume_put_back_while_it_is_leaving_is_opened_again_when_it_has_left() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    site.start_all();
    let (disk, backing, writer) = volume_that_hangs(&site);
    let (drop_in, aside) = (site.path("host/farsided.d/volume-hangs.toml"), site.path("host/aside.toml"));
    std::fs::copy(&drop_in, &aside).expect("copied");
    let reload = || site.farside().arg("reload").output().expect("it starts");
    let said =
        |output: &std::process::Output| String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    let out = site.farside().args(["volume", "remove", "hangs", "--yes"]).output().expect("it starts");
    assert!(said(&out).contains("hangs") && said(&out).contains("does not answer"), "{out:?}");
    std::fs::rename(&aside, &drop_in).expect("renamed");
    let back = reload();
    assert!(said(&back).contains("still being removed") && said(&back).contains("then it is opened again"), "{back:?}");
    disk.freeze(false);
    writer.join().expect("it ended").expect("the write was answered: it came before the end");
    wait_for("it to be served again", || {
        let client = farside_nbd::client::Client::connect(&site.path("host/hangs.nbd"), "hangs").ok()?;
        drop(client);
        (site.volume_status("hangs")["state"]["state"] != "not_served").then_some(())
    });
    // Its state went with it: the points under its name are not known to be its own (T17).
    wait_for("its history to be called another's", || (site.volume_status("hangs")["state"]["state"] == "forked").then_some(()));
    run(site.farside().args(["volume", "resync", "hangs", "--accept", "forked"]));
    assert_newest_is(&site, "hangs", &backing);
    site.daemon.take().expect("it runs").stop();
}

/// An `add` that cannot be written down is undone: nothing is served that the next start would not serve.
#[test]
fn an_add_that_the_configuration_has_no_room_for_is_undone() {
    if !possible() {
        return; // needs root and a loop device
    }
    let mut site = Site::new(&[spec()], "200ms", 8);
    let drop_ins = Ext4::make(site.path("drop-ins.ext4"), site.path("host/farsided.d"));
    site.start_all();
    let backing = site.path("other.img");
    std::fs::File::create(&backing).and_then(|f| f.set_len(BYTES)).expect("a sparse file");
    let list =
        || std::fs::read_dir(&drop_ins.at).expect("a folder").map(|e| e.expect("an entry").file_name()).collect::<Vec<_>>();
    let add = || site.farside().args(["volume", "add", "other", "--backing"]).arg(&backing).output().expect("it starts");
    drop_ins.fill();
    let before = list();
    let output = add();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{output:?}");
    assert!(text.contains("volume other is not added") && text.contains("farsided.d/volume-other.toml"), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert_eq!(list(), before, "half a file is left");
    assert!(!site.path("host/state/volumes/default/other").exists(), "what was not added has no state");
    assert!(std::os::unix::net::UnixStream::connect(site.path("host/other.nbd")).is_err(), "it is served");
    let volumes = String::from_utf8(run(site.farside().args(["volume", "list"])).stdout).expect("text");
    assert!(!volumes.contains("other"), "{volumes}");
    drop_ins.make_room();
    assert!(add().status.success());
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    site.volume_status("other");
    site.daemon.take().expect("it runs").stop();
}
