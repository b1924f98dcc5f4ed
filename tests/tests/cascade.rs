//! A site that has nothing but the store keeps a file equal to a volume's points: `farside store follow`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use farside_s3_servers::{Bucket, Fault, Faults, Kind, RadosGw};
use farside_tests::verify::write_noise;
use farside_tests::{PATIENCE, Process, Site, VolumeSpec, run, tool, wait_for};
use serde_json::Value;

const BYTES: u64 = 64 << 20;

fn follow(site: &Site, to: &Path, more: &[&str]) -> Command {
    let mut command = site.farside_at_store(&["store", "follow"]);
    command.args(["host1/default/data", "--to"]).arg(to).args(more).stdin(Stdio::null());
    command
}

/// One pass.
fn once(site: &Site, to: &Path, more: &[&str]) -> Output {
    follow(site, to, &["--once", "--json"]).args(more).output().expect("it starts")
}

/// One that goes on, and what it says.
fn start(site: &Site, to: &Path, more: &[&str]) -> (Process, impl Iterator<Item = Value> + use<>) {
    let mut child = follow(site, to, &["--every", "100ms", "--json"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let said = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    (Process::new(child, "farside store follow"), said.map(|line| serde_json::from_str(&line).expect("JSON")))
}

fn state_of(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".farside-follow");
    name.into()
}

/// What is noted of a target.
fn noted(to: &Path) -> Option<Value> {
    let noted = fs::read(state_of(to).join("follow.json")).ok()?;
    Some(serde_json::from_slice(&noted).expect("whole, whenever it is read"))
}

fn stage(to: &Path) -> Option<Value> {
    Some(noted(to)?["following"]["stage"].clone())
}

fn write(site: &Site, seed: u64, requests: u64) {
    write_noise(&site.tap("data"), BYTES, seed, requests);
}

/// Looks all the time for what holds for moments.
fn is_seen(holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    true
}

fn id(point: &Value) -> &str {
    point["id"].as_str().expect("an id")
}

/// The target is what the store says of that point.
fn compare(site: &Site, to: &Path, point: &str) {
    let image = site.path("point.img");
    site.restore("host1/default/data", point, &image);
    assert!(fs::read(to).expect("the target") == fs::read(&image).expect("restored"), "point {point}");
    fs::remove_file(&image).expect("removed");
}

fn said(output: &Output) -> String {
    format!("{}\n{}\n{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until it says that it holds a point.
fn holds(events: &mut impl Iterator<Item = Value>, point: &str) -> Value {
    events.find(|event| event["event"] == "holds" && id(&event["point"]) == point).expect("it goes on until it does")
}

#[test]
fn whatever_kills_it_the_target_holds_a_point_again() {
    // None of its points goes while it is dead: one that is filled anew need not be compared.
    let site = Site::with_volume(BYTES, "200ms", 10_000);
    let to = site.path("standby.img");
    let mut nothing = site.farside_at_store(&["store", "follow"]);
    let nothing = nothing.args(["host1/default/other", "--once", "--to"]).arg(&to).output().expect("it starts");
    assert_eq!(nothing.status.code(), Some(5), "{}", said(&nothing));
    assert!(!to.exists() && !state_of(&to).exists(), "nothing is made for what is not there");
    write(&site, 1, 300);
    site.wait_quiet();

    // Killed on the way: as it is filled, and later.
    let on_the_way = || stage(&to).is_some_and(|stage| stage.get("applying").is_some());
    let is_there = || stage(&to).is_some_and(|stage| stage.get("at").is_some());
    // Where nothing was written yet it is as it was left, and nothing is in doubt.
    let is_written = || {
        let noted = noted(&to)?;
        let now = fs::metadata(&to).ok()?;
        let now = format!("({}, {})", now.mtime(), now.mtime_nsec());
        Some(!noted["following"]["seen"]["marks"].as_str()?.contains(&now))
    };
    let is_cut_short = |later: bool| on_the_way() && (!later || is_written() == Some(true));
    let seed = AtomicU64::new(2);
    for later in [false, true] {
        let mut cut_short = 0;
        while cut_short < 3 {
            let (process, _events) = start(&site, &to, &[]);
            if later {
                wait_for("it to be there", || is_there().then_some(()));
            }
            // It is on the way for moments only: they are looked for while there is always something to bring.
            let is_over = AtomicBool::new(false);
            let was_seen = std::thread::scope(|scope| {
                if later {
                    scope.spawn(|| {
                        while !is_over.load(Ordering::Relaxed) {
                            write(&site, seed.fetch_add(1, Ordering::Relaxed), 300);
                        }
                    });
                }
                let was_seen = is_seen(|| is_cut_short(later) || (!later && is_there()));
                process.kill();
                is_over.store(true, Ordering::Relaxed);
                was_seen
            });
            assert!(was_seen, "it was never on the way");
            cut_short += u32::from(is_cut_short(later));
            if !later && is_there() {
                break; // a fast disk
            }
        }
    }
    write(&site, seed.into_inner(), 100);
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    let done = once(&site, &to, &[]);
    assert!(done.status.success(), "{}", said(&done));
    let event: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!((&event["event"], id(&event["point"])), (&"holds".into(), id(&newest)));
    compare(&site, &to, id(&newest));
    let noted = noted(&to).expect("noted");
    assert!(noted["verified_wall_ms"].is_i64(), "after a kill all of it is compared: {noted}");
    let left: Vec<_> = fs::read_dir(state_of(&to)).expect("listed").map(|entry| entry.expect("entry").file_name()).collect();
    assert!(left.len() <= 3, "what a kill leaves does not become more: {left:?}");

    // Only what changed is written, and nothing where nothing did.
    let again: Value = serde_json::from_slice(&once(&site, &to, &[]).stdout).expect("JSON");
    assert_eq!((&again["written_bytes"], id(&again["point"])), (&0.into(), id(&newest)));
    let before = fs::metadata(&to).expect("the target").modified().expect("a time");
    run(&mut follow(&site, &to, &["--once", "--verify"]));
    assert_eq!(fs::metadata(&to).expect("the target").modified().expect("a time"), before);
    let young = once(&site, &to, &["--delay", "30d"]);
    assert!(young.status.code() == Some(5) && said(&young).contains("old enough"), "{}", said(&young));
}

/// A volume that grows takes its target along; one that stays behind holds what is old enough, by the points' own clock.
#[test]
fn a_target_grows_with_its_volume_and_stays_behind_as_long_as_it_should() {
    const GROWN: u64 = BYTES + (9 << 20);
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    let (to, behind) = (site.path("standby.img"), site.path("behind.img"));
    write(&site, 1, 100);
    site.wait_quiet();
    run(&mut follow(&site, &to, &["--once"]));
    site.daemon.take().expect("it runs").stop();
    fs::File::options().write(true).open(site.backing("data")).and_then(|file| file.set_len(GROWN)).expect("grown");
    site.start_daemon();
    let noise = |site: &Site, seed, requests| {
        write_noise(&site.tap("data"), GROWN, seed, requests);
    };
    noise(&site, 2, 100);
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    let done = once(&site, &to, &["--verify"]);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(fs::metadata(&to).expect("the target").len(), GROWN);
    compare(&site, &to, id(&newest));

    let mut seed = 3;
    let held = wait_for("a point to be old enough", || {
        site.point_after("data", || noise(&site, seed, 20));
        seed += 1;
        let done = once(&site, &behind, &["--delay", "1s"]);
        let event: Value = serde_json::from_slice(&done.stdout).ok()?;
        Some(event["point"].clone()).filter(|_| done.status.success())
    });
    let points = site.points("data");
    assert!(points.iter().any(|point| id(point) == id(&held)) && id(&points[points.len() - 1]) != id(&held), "{held}");
    compare(&site, &behind, id(&held));
    // It goes on as time does, and back to the newest when that is wanted.
    wait_for("it to go on", || {
        site.point_after("data", || noise(&site, seed, 20));
        seed += 1;
        let done = once(&site, &behind, &["--delay", "1s"]);
        let event: Value = serde_json::from_slice(&done.stdout).expect("it holds one");
        (id(&event["point"]) != id(&held)).then(|| compare(&site, &behind, id(&event["point"])))
    });
    let newest = site.points("data").pop().expect("a point");
    run(&mut follow(&site, &behind, &["--once"]));
    compare(&site, &behind, id(&newest));
}

#[test]
fn it_goes_on_while_points_go_and_the_store_is_away() {
    let mut site = Site::with_volume(BYTES, "100ms", 2);
    let to = site.path("standby.img");
    write(&site, 1, 200);
    site.wait_quiet();
    let (process, mut events) = start(&site, &to, &[]);
    holds(&mut events, id(&site.points("data").pop().expect("a point")));
    let second = once(&site, &to, &[]);
    assert!(second.status.code() == Some(4) && said(&second).contains("already"), "{}", said(&second));

    // Of five points two are kept, and their segments go: whoever waits holds nothing.
    for round in 0..8 {
        write(&site, 10 + round, 150);
    }
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    holds(&mut events, id(&newest));
    compare(&site, &to, id(&newest));
    wait_for("points to be given up", || (site.points("data").len() <= 2).then_some(()));
    // It goes once another record has come.
    let mut round = 20;
    wait_for("what was given up to be deleted", || {
        write(&site, round, 1);
        round += 1;
        let status = farside_tests::json(&mut site.gateway(&["status"]));
        (status["sources"][0]["groups"][0]["deferred_segments"] == 0).then_some(())
    });
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    holds(&mut events, id(&newest));
    compare(&site, &to, id(&newest));

    // The store is away, and comes back, with more in it.
    site.receiver.take().expect("it runs").stop();
    let aside = site.path("aside");
    fs::rename(site.store(), &aside).expect("unmounted");
    fs::create_dir(site.store()).expect("where it was mounted");
    let waits = events.find(|event| event["event"] == "waits").expect("it says so");
    assert!(waits.to_string().contains("there is no store in") && waits.to_string().contains("mount"), "{waits}");
    assert_eq!(fs::read_dir(site.store()).expect("listed").count(), 0, "nothing is made there");
    fs::remove_dir(site.store()).expect("removed");
    fs::rename(&aside, site.store()).expect("mounted");
    site.start_receiver();
    write(&site, 30, 100);
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    holds(&mut events, id(&newest));
    compare(&site, &to, id(&newest));
    process.stop();

    // Somebody else writes to the target; nothing is written over it but on a person's word.
    let mut content = fs::read(&to).expect("the target");
    content[9 << 20] ^= 1;
    fs::write(&to, &content).expect("written");
    let diverged = once(&site, &to, &[]);
    let words = said(&diverged);
    assert!(diverged.status.code() == Some(6) && words.contains("regions 2 ") && words.contains("--heal"), "{words}");
    write(&site, 31, 100);
    site.wait_quiet();
    assert_eq!(once(&site, &to, &[]).status.code(), Some(6), "nor is a newer point");
    assert!(fs::read(&to).expect("the target") == content, "it is as the stranger left it");
    let unasked = once(&site, &to, &["--heal"]);
    assert_eq!(unasked.status.code(), Some(2), "{}", said(&unasked));
    let healed = once(&site, &to, &["--heal", "--yes"]);
    assert!(healed.status.success(), "{}", said(&healed));
    compare(&site, &to, id(&site.points("data").pop().expect("a point")));

    // What is there already is nobody's, and one target is of one volume.
    let other = site.path("other.img");
    fs::write(&other, "precious").expect("written");
    let precious = once(&site, &other, &[]);
    assert!(precious.status.code() == Some(4) && said(&precious).contains("--overwrite"), "{}", said(&precious));
    assert!(fs::read(&other).expect("read") == b"precious" && !state_of(&other).exists());
    let inside = once(&site, &site.store().join("standby.img"), &[]);
    assert_eq!(inside.status.code(), Some(4), "{}", said(&inside));
    site.check_store();
}

/// One that lists nothing, and whose leases go with what it reads.
#[test]
fn a_bucket_is_followed_by_leases_and_without_a_listing() {
    let rados = RadosGw::shared().bucket();
    let faults = Faults::before(&rados);
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "200ms", 5);
    let keys = format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n", rados.access_key, rados.secret_key);
    let url = format!("s3://{}/site-1?endpoint={}&region={}", rados.name, rados.endpoint, Bucket::REGION);
    site.keep_points_in(&url, &keys);
    site.start_all();
    write(&site, 1, 100);
    site.wait_quiet();

    // Its own way to the bucket.
    let (listed, leases, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&listed), Arc::clone(&leases), Arc::clone(&others));
    faults.fault(move |request| {
        match request.kind {
            Kind::List => counters.0.fetch_add(1, Ordering::Relaxed),
            Kind::Put if request.key.contains("/leases/") => counters.1.fetch_add(1, Ordering::Relaxed),
            Kind::Put => counters.2.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        Fault::Pass
    });
    let own = faults.bucket();
    let url = format!("s3://{}/site-1?endpoint={}&region={}", own.name, own.endpoint, Bucket::REGION);
    let to = site.path("standby.img");
    let mut command = farside_tests::program("farside");
    command.args(["store", "follow", &url, "host1/default/data", "--every", "100ms", "--json", "--to"]).arg(&to);
    command.env("FARSIDE_STORE_CREDENTIALS", site.path("gateway/keys")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
    let process = Process::new(child, "farside store follow");
    for round in 0..3 {
        let newest = site.points("data").pop().expect("a point");
        holds(&mut events, id(&newest));
        compare(&site, &to, id(&newest));
        write(&site, 2 + round, 100);
        site.wait_quiet();
    }
    let newest = site.points("data").pop().expect("a point");
    holds(&mut events, id(&newest));
    let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert_eq!((of(&listed), of(&others)), (0, 0));
    assert!(of(&leases) >= 2, "{}", of(&leases));
    process.stop();
    let checked = run(&mut site.farside_at_store(&["store", "check"]));
    assert!(!String::from_utf8_lossy(&checked.stdout).contains("lease "), "{checked:?}");
}

/// A loop device on a file.
struct Loop(String);

impl Loop {
    fn over(file: &Path, bytes: u64) -> Self {
        fs::File::create(file).and_then(|file| file.set_len(bytes)).expect("a file");
        let made = run(tool("losetup").args(["--find", "--show"]).arg(file));
        Self(String::from_utf8(made.stdout).expect("text").trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = tool("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_device_is_taken_alone_has_its_state_elsewhere_and_must_be_large_enough() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root for a loop device");
        return;
    }
    let site = Site::with_volume(BYTES, "200ms", 5);
    write(&site, 1, 100);
    site.wait_quiet();
    let newest = site.points("data").pop().expect("a point");
    let (device, small) = (Loop::over(&site.path("disk"), BYTES + (4 << 20)), Loop::over(&site.path("small"), BYTES / 2));
    let state = site.path("state/data").display().to_string();
    let homeless = once(&site, Path::new(&device.0), &[]);
    assert!(homeless.status.code() == Some(2) && said(&homeless).contains("--state"), "{}", said(&homeless));
    let too_small = once(&site, Path::new(&small.0), &["--state", &site.path("state/small").display().to_string()]);
    assert!(too_small.status.code() == Some(4) && said(&too_small).contains("larger"), "{}", said(&too_small));

    let with_state = ["--state", state.as_str()];
    run(&mut follow(&site, Path::new(&device.0), &["--once", "--state", &state]));
    let image = site.path("point.img");
    site.restore("host1/default/data", id(&newest), &image);
    let held = fs::read(&device.0).expect("the device");
    assert!(held[..BYTES as usize] == fs::read(&image).expect("restored"));
    let other = once(&site, Path::new(&small.0), &with_state);
    assert!(other.status.code() == Some(4) && said(&other).contains(&device.0), "one directory, one target: {}", said(&other));

    // What is mounted is somebody's.
    run(tool("mkfs.ext4").args(["-q", "-F"]).arg(&small.0));
    let at = site.path("mnt");
    fs::create_dir(&at).expect("mkdir");
    run(tool("mount").arg(&small.0).arg(&at));
    let busy = once(&site, Path::new(&small.0), &["--overwrite", "--state", &site.path("state/busy").display().to_string()]);
    run(tool("umount").arg(&at));
    assert!(busy.status.code() == Some(4) && said(&busy).contains("mounted"), "{}", said(&busy));

    // So is what somebody has open who claims nothing: a virtual machine, a database.
    let opened = fs::File::options().read(true).write(true).open(&small.0).expect("the device");
    let mut user = tool("sleep").arg("600").stdin(opened).spawn().expect("it starts");
    let before = fs::read(&small.0).expect("the device");
    let image = small.0.as_str();
    let restore = ["restore", "data", "--point", id(&newest), "--to", image, "--force", "--store"];
    let refused = site.farside_at_store(&restore).output().expect("it starts");
    let followed = once(&site, Path::new(image), &["--overwrite", "--state", &site.path("state/open").display().to_string()]);
    user.kill().expect("our own child");
    user.wait().expect("our own child");
    for said in [said(&refused), said(&followed)] {
        assert!(said.contains("open in process") && said.contains("sleep"), "{said}");
    }
    assert!(fs::read(image).expect("the device") == before, "nothing was written");
}
