//! The day after: the host that has the promoted disk publishes in place of the one that was lost, which comes back, gets what
//! differs, follows, is killed in the middle, gives up, begins anew, and takes its history back.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use farside_tests::mount::SmallDisk;
use farside_tests::verify::{connect, write_noise};
use farside_tests::{Process, Site, json, run, wait_for, wait_until};
use serde_json::Value;

const BYTES: u64 = 96 << 20;

fn write(site: &Site, seed: u64, requests: u64) -> u64 {
    write_noise(&site.tap("data"), BYTES, seed, requests)
}

fn disk(site: &Site) -> Vec<u8> {
    std::fs::read(site.backing("data")).expect("a backing")
}

fn newest(site: &Site) -> String {
    site.points("data").last().expect("a point")["id"].as_str().expect("an id").to_owned()
}

fn assert_newest_is(site: &Site, image: &[u8]) {
    let restored = site.path("restored.img");
    site.restore("data", "latest", &restored);
    assert!(std::fs::read(&restored).expect("restored") == image, "the newest point is something else");
    std::fs::remove_file(restored).expect("restored");
}

fn failback(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.farside();
    command.args(["failback", "default"]).args(arguments);
    command
}

/// How the failback is; `None`: there is none.
fn status(site: &Site) -> Option<Value> {
    let mut command = site.farside();
    let all = json(command.args(["failback", "--list"]));
    all.as_array().expect("a list").first().cloned()
}

fn is_served(tap: &Path) -> bool {
    UnixStream::connect(tap).and_then(|stream| stream.shutdown(Shutdown::Both)).is_ok()
}

/// What was kept of its disks before it was overwritten.
fn branches(site: &Site) -> Vec<Value> {
    json(site.farside().args(["branch", "list"])).as_array().expect("a list").clone()
}

/// A branch, as whoever opens a copy of it over its point sees the volume.
fn content_of(site: &Site, branch: &Value) -> Vec<u8> {
    assert_eq!(branch["whole"], true, "{branch}");
    let copy = site.path("branch-copy");
    let kept = Path::new(branch["path"].as_str().expect("a path")).join("data");
    run(Command::new("cp").args(["-r", "--sparse=always"]).arg(kept).arg(&copy));
    let over = branch["over"]["id"].as_str().expect("a point");
    let bytes = opened(site, over, |open| open.arg("--writable").arg("--overlay").arg(&copy));
    std::fs::remove_dir_all(copy).expect("removed");
    bytes
}

/// A point, as whoever opens it sees the volume.
fn opened(site: &Site, point: &str, more: impl FnOnce(&mut Command) -> &mut Command) -> Vec<u8> {
    let socket = site.path("opened.nbd");
    let mut open = farside_tests::program("farside");
    open.args(["point", "open", "host1/default/data", point, "--store"]).arg(site.store());
    let open = more(&mut open).arg("--export").arg(format!("nbd:{}", socket.display()));
    let opened = Process::new(open.stdout(Stdio::null()).spawn().expect("it starts"), "farside point open");
    wait_for("the point to be open", || is_served(&socket).then_some(()));
    let mut client = connect(&socket);
    let mut bytes = vec![0; client.size() as usize];
    for (at, piece) in (0..).step_by(1 << 20).zip(bytes.chunks_mut(1 << 20)) {
        client.read(at, piece).expect("it is read");
    }
    drop(client);
    opened.stop();
    bytes
}

/// Whether the point of a branch is kept for it.
fn is_pinned_for(site: &Site, branch: &Value) -> bool {
    let point = site.points("data").into_iter().find(|point| point["id"] == branch["over"]["id"]).expect("it is there");
    let name = branch["id"].as_str().expect("an id").rsplit('/').next().expect("a name").to_owned();
    point["pins"].to_string().contains(&format!("branch of host1: {name}"))
}

/// Waits until the disks of the old host are the newest point of its stand-in, which is quiet.
fn follows(old: &Site, stand_in: &Site) -> Value {
    stand_in.wait_quiet();
    let newest = newest(old);
    wait_until("the old host to hold the newest point", || {
        let now = status(old).ok_or("there is no failback")?;
        if now["stage"] == "following" && now["holds"]["id"] == newest.as_str() { Ok(now) } else { Err(now.to_string()) }
    })
}

fn fenced(site: &Site) {
    wait_until("the old host to be fenced", || {
        let volume = site.volume_status("data");
        if volume["state"]["state"] == "fenced" { Ok(()) } else { Err(volume.to_string()) }
    });
}

/// Its history was failed over to a standby disk while its last writes were on the way.
fn lost(site: &mut Site) -> std::path::PathBuf {
    write(site, 1, 2_000);
    site.wait_quiet();
    let target = site.path("standby.img");
    run(&mut site.gateway(&["follower", "add", "host1/default/data", target.to_str().expect("text")]));
    site.receiver.take().expect("it runs").stop();
    write(site, 2, 50);
    site.daemon.take().expect("it runs").kill();
    site.start_receiver();
    let done = json(&mut site.gateway(&["failover", "host1/default", "--yes"]));
    assert_eq!((&done["stage"], &done["generation"]), (&Value::from("promoted"), &Value::from(2)), "{done}");
    target
}

/// The host that has the promoted disk now, and publishes as `host1`.
fn stand_in(site: &Site, target: &Path) -> Site {
    let mut other = site.another_host("host2", "200ms", 100);
    std::fs::rename(target, other.backing("data")).expect("the disk is given to it");
    let file = other.path("host/farsided.toml");
    let toml = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, toml.replace("epoch_interval", "stand_in_for = \"host1\"\nepoch_interval")).expect("written");
    other.start_daemon();
    let unknown = site.gateway(&["failover", "host1/default", "--stand-in", "host2"]).output().expect("it starts");
    assert!(!unknown.status.success(), "a host that nobody paired may stand in");
    other.pair();
    wait_until("it to be refused, since nobody said that it may stand in", || {
        let status = other.status().to_string();
        if status.contains("--stand-in") { Ok(()) } else { Err(status) }
    });
    run(&mut site.gateway(&["failover", "host1/default", "--stand-in", "host2"]));
    wait_until("its disk to be asked about", || {
        let volume = other.volume_status("data");
        if volume["state"]["state"] == "forked" { Ok(()) } else { Err(volume.to_string()) }
    });
    run(other.farside().args(["volume", "resync", "data", "--accept", "forked"]));
    other.wait_quiet();
    other
}

#[test]
fn a_host_that_was_failed_over_gets_what_differs_and_takes_its_history_back() {
    let mut old = Site::with_volume(BYTES, "200ms", 1000);
    let target = lost(&mut old);
    let mut new = stand_in(&old, &target);
    write(&new, 3, 300);
    new.wait_quiet();
    assert_newest_is(&old, &disk(&new));

    // The old host is there again. Nothing is changed by a plan, nor without a yes.
    old.start_daemon();
    fenced(&old);
    write(&old, 4, 20);
    let before = disk(&old);
    let plan = run(&mut failback(&old, &["--plan"]));
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains("nothing was changed") && plan.contains("is overwritten") && plan.contains("host2 serves"), "{plan}");
    assert!(!failback(&old, &[]).stdin(Stdio::null()).output().expect("it starts").status.success());
    let finish = failback(&old, &["--finish"]).output().expect("it starts");
    assert_eq!(finish.status.code(), Some(5), "what was not begun is finished: {finish:?}");
    assert!(disk(&old) == before && status(&old).is_none() && branches(&old).is_empty());
    let user = connect(&old.tap("data"));
    let used = failback(&old, &["--yes"]).output().expect("it starts");
    assert!(!used.status.success() && status(&old).is_none(), "it began under who uses the volume: {used:?}");
    drop(user);

    // Begun, and killed wherever that is; it goes on, and nobody sees a disk that is no point.
    let begun = wait_until("nobody to use it", || {
        let begun =
            failback(&old, &["--yes", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let file = old.path("host/state/failback/default.json");
        let mut begun = begun;
        loop {
            if file.exists() {
                return Ok(begun);
            }
            if begun.try_wait().expect("a child").is_some() {
                let said = begun.wait_with_output().expect("a child");
                return Err(String::from_utf8_lossy(&said.stderr).into_owned());
            }
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
    });
    old.daemon.take().expect("it runs").kill();
    let _ = begun.wait_with_output();
    old.daemon = Some(old.spawn_daemon());
    wait_for("its interface", || UnixStream::connect(old.path("host/api.sock")).ok());
    assert!(status(&old).is_some(), "the kill ended it");
    follows(&old, &new);
    assert!(!is_served(&old.tap("data")), "a volume is served that is being failed back");
    assert!(disk(&old) == disk(&new), "the old host's disk is not the newest point");
    // What it held is not lost: what was on the way when it was failed over, and what was written since.
    let kept = branches(&old);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(content_of(&old, &kept[0]) == before, "the branch is not what the disk held: {kept:?}");
    assert!(is_pinned_for(&old, &kept[0]), "nothing keeps the point that the branch lies over");
    // Under another name, or in another group, it is the same disk.
    let tap = format!("nbd:unix:{}", old.path("host/other.nbd").display());
    let backing = old.backing("data");
    let mut add = old.farside();
    add.args(["volume", "add", "other", "--group", "other", "--tap", &tap, "--backing"]).arg(&backing);
    let added = add.output().expect("it starts");
    assert!(
        !added.status.success() && !is_served(&old.path("host/other.nbd")),
        "a disk is served that is being written: {added:?}"
    );

    // What is followed costs what changed.
    let before = follows(&old, &new);
    let changed = write(&new, 5, 100);
    let after = follows(&old, &new);
    let moved = |now: &Value| now["received_bytes"].as_u64().expect("a number");
    let received = moved(&after) - moved(&before);
    assert!(received * 10 <= changed * 11 + (640 << 10), "{received} bytes were received for {changed} that changed");
    assert!(disk(&old) == disk(&new));

    // What the group did not have before waits for those that it had.
    let mut more = old.farside();
    more.args(["volume", "add", "more", "--group", "default", "--tap", &tap, "--backing"]).arg(old.path("more.img"));
    std::fs::File::create(old.path("more.img")).and_then(|file| file.set_len(8 << 20)).expect("a file");
    let added = more.output().expect("it starts");
    assert!(!added.status.success() && String::from_utf8_lossy(&added.stderr).contains("failback"), "{added:?}");

    // Another disk in its place is left alone, until a person says that it is meant.
    old.daemon.take().expect("it runs").kill();
    let (backing, aside) = (old.backing("data"), old.path("aside.img"));
    std::fs::rename(&backing, &aside).expect("taken away");
    std::fs::write(&backing, vec![0x5a; BYTES as usize]).expect("another one");
    old.daemon = Some(old.spawn_daemon());
    wait_for("its interface", || UnixStream::connect(old.path("host/api.sock")).ok());
    let waits = |words: &str| wait_for(words, || status(&old)?["why"].as_str()?.contains(words).then_some(()));
    waits("is another disk than the one of volume data that was taken");
    assert!(disk(&old).iter().all(|byte| *byte == 0x5a), "another disk was overwritten");
    std::fs::rename(&aside, &backing).expect("brought back");
    follows(&old, &new);
    assert!(disk(&old) == disk(&new));
    std::fs::copy(&backing, &aside).expect("copied");
    std::fs::rename(&aside, &backing).expect("put in its place");
    waits("is another disk than the one of volume data that was taken");
    run(&mut failback(&old, &["--accept-disks", "--yes"]));
    follows(&old, &new);

    // Whoever writes to it in between is noticed: it is the point again, all of it, and what was written is kept.
    old.daemon.take().expect("it runs").kill();
    let stranger = std::fs::File::options().write(true).open(old.backing("data")).expect("opened");
    std::os::unix::fs::FileExt::write_all_at(&stranger, b"a stranger", 50 << 20).expect("written");
    drop(stranger); // whoever has it open is waited for
    let strange = disk(&old);
    old.daemon = Some(old.spawn_daemon());
    wait_for("its interface", || UnixStream::connect(old.path("host/api.sock")).ok());
    wait_until("what was written there to be gone", || if disk(&old) == disk(&new) { Ok(()) } else { Err("it differs") });
    follows(&old, &new);
    let kept = branches(&old);
    assert_eq!((kept.len(), &kept[1]["bytes"]), (2, &Value::from(4096)), "a granule was written to: {kept:?}");
    assert!(content_of(&old, &kept[1]) == strange, "what a stranger wrote is lost: {kept:?}");

    // Given up: it is served as it is, fenced, and begun anew.
    let aborted = run(&mut failback(&old, &["--abort"]));
    assert!(String::from_utf8_lossy(&aborted.stdout).contains("aborted"), "{aborted:?}");
    assert!(status(&old).is_none());
    fenced(&old);
    write(&old, 6, 20);
    let before = disk(&old);
    write(&new, 7, 20);
    new.wait_quiet();
    wait_until("it to begin again", || {
        let begun = failback(&old, &["--yes"]).output().expect("it starts");
        if begun.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&begun.stderr).into_owned()) }
    });
    follows(&old, &new);
    assert!(disk(&old) == disk(&new));
    // What its disks were when it was given up is in a point: only what came after that is kept.
    let kept = branches(&old);
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept[2]["bytes"].as_u64().expect("a number") <= 20 * 9 * 4096, "{kept:?}");
    assert!(content_of(&old, &kept[2]) == before, "the third branch is not what the disk held: {kept:?}");
    assert!(is_pinned_for(&old, &kept[2]));
    run(old.farside().args(["branch", "remove", "--yes"]).arg(kept[2]["id"].as_str().expect("an id")));
    assert_eq!(branches(&old), kept[..2]);
    assert!(!is_pinned_for(&old, &kept[2]) && is_pinned_for(&old, &kept[1]) && is_pinned_for(&old, &kept[0]));

    // It ends when nobody publishes more, with what was published last.
    let finishing = failback(&old, &["--finish"]).stdout(Stdio::piped()).spawn().expect("it starts");
    wait_for("it to wait for the stand-in", || {
        let now = status(&old).expect("it cannot be over");
        now["why"].as_str()?.contains("host2 is connected").then_some(())
    });
    // That it is gone says nothing of what it owes.
    write(&new, 8, 50);
    new.daemon.take().expect("it runs").kill();
    wait_for("it to wait for the word of the stand-in", || {
        let now = status(&old).expect("it cannot be over");
        now["why"].as_str()?.contains("did not say that all of it is published").then_some(())
    });
    new.start_daemon();
    new.wait_quiet();
    new.daemon.take().expect("it runs").stop();
    let finished = finishing.wait_with_output().expect("a child");
    assert!(finished.status.success(), "{}", farside_tests::tail(&old.path("daemon.log")));
    assert!(String::from_utf8_lossy(&finished.stdout).contains("is back"), "{finished:?}");
    assert!(disk(&old) == disk(&new), "the old host did not get all");
    old.wait_quiet();
    write(&old, 9, 50);
    old.wait_quiet();
    assert_newest_is(&old, &disk(&old));
    wait_for("the failover to be over", || {
        json(&mut old.gateway(&["failover", "--list"])).as_array().is_some_and(Vec::is_empty).then_some(())
    });

    // Whoever stood in publishes nothing any more, and the other one does, also after a restart.
    let last = newest(&old);
    new.start_daemon();
    write(&new, 10, 20);
    wait_until("the stand-in to be told so", || {
        let status = new.status().to_string();
        if status.contains("its source has its history back") { Ok(()) } else { Err(status) }
    });
    assert_eq!(newest(&old), last, "the stand-in published");
    old.daemon.take().expect("it runs").kill();
    old.start_daemon();
    write(&old, 11, 20);
    old.wait_quiet();
    assert_newest_is(&old, &disk(&old));
    old.check_store();
}

/// What is in a file system that was mounted for the branches, in bytes.
fn used(branches: &Path) -> u64 {
    let is = nix::sys::statvfs::statvfs(branches).expect("mounted");
    (is.blocks() - is.blocks_free()) * is.fragment_size()
}

/// What a fenced host wrote is in no point. It is killed again and again while that is kept, and runs out of room for it.
#[test]
fn what_a_fenced_host_wrote_is_kept_wherever_it_is_killed_or_runs_out_of_room() {
    let mut old = Site::with_volume(BYTES, "200ms", 1000);
    let branches_dir = old.path("host/state/branches");
    std::fs::create_dir_all(&branches_dir).expect("made");
    let Some(small) = SmallDisk::mount(&branches_dir, "84m") else { return };
    let target = lost(&mut old);
    let mut new = stand_in(&old, &target);
    write(&new, 3, 300);
    new.wait_quiet();
    old.start_daemon();
    fenced(&old);
    write(&old, 4, 3_000);
    let before = disk(&old);

    let begin = |old: &Site, more: &[&str]| {
        wait_until("it to begin", || {
            let mut begun = failback(old, &["--yes"]);
            let begun = begun.args(more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
            let (mut begun, file) = (begun, old.path("host/state/failback/default.json"));
            loop {
                if file.exists() {
                    return Ok(Process::new(begun, "farside failback"));
                }
                if begun.try_wait().expect("a child").is_some() {
                    let said = begun.wait_with_output().expect("a child");
                    return Err(String::from_utf8_lossy(&said.stderr).into_owned());
                }
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        })
    };
    begin(&old, &[]).kill();
    let again = |old: &mut Site| {
        old.daemon.take().expect("it runs").kill();
        old.daemon = Some(old.spawn_daemon());
        wait_for("its interface", || UnixStream::connect(old.path("host/api.sock")).ok());
    };
    let mut kills = 0;
    for mib in [2, 6, 10, 14] {
        wait_for("more to be kept", || (used(&branches_dir) >= mib << 20).then_some(()));
        again(&mut old);
        kills += usize::from(branches(&old)[0]["whole"] == false);
    }
    wait_for("the room to be used up", || status(&old)?["why"].as_str()?.contains("MiB would be left").then_some(()));
    assert_eq!((kills, status(&old).expect("it goes on")["stage"].as_str()), (4, Some("keeping")), "{:?}", status(&old));
    let waiting = branches(&old);
    assert_eq!((waiting.len(), &waiting[0]["whole"]), (1, &Value::from(false)), "{waiting:?}");
    let refused = old.farside().args(["branch", "remove", "--yes"]).arg(waiting[0]["id"].as_str().expect("an id")).output();
    assert!(!refused.expect("it starts").status.success(), "a branch was removed that is being written");
    assert!(is_pinned_for(&old, &waiting[0]));
    let jobs = json(old.farside().args(["job", "list"]));
    let job = jobs.as_array().expect("a list").iter().find(|job| job["job"] == "failback").expect("it is listed");
    assert!(job["why"].to_string().contains("would be left") && job["ended_by"] == "farside failback default --abort", "{jobs}");
    let jobs = json(&mut old.gateway(&["job", "list"]));
    assert!(
        jobs.as_array().expect("a list").iter().any(|job| job["of"] == "host1/default" && job["stage"] == "promoted"),
        "{jobs}"
    );
    // Given up: what was overwritten is put back, and nothing is kept any more.
    let overwritten = disk(&old) != before;
    assert!(overwritten, "nothing was overwritten by then");
    run(&mut failback(&old, &["--abort"]));
    fenced(&old);
    assert!(disk(&old) == before, "what was overwritten was not put back");
    assert!(branches(&old).is_empty() && !is_pinned_for(&old, &waiting[0]));

    small.resize("400m");
    begin(&old, &[]).kill();
    for mib in [24, 32, 40] {
        wait_for("more to be kept", || (used(&branches_dir) >= mib << 20).then_some(()));
        again(&mut old);
    }
    follows(&old, &new);
    assert!(disk(&old) == disk(&new), "the old host's disk is not the newest point");
    let kept = branches(&old);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(content_of(&old, &kept[0]) == before, "the branch is not what the disk held: {kept:?}");

    // What the stand-in grows by is followed, too, and is nothing that was here.
    new.daemon.take().expect("it runs").stop();
    let grown = std::fs::File::options().write(true).open(new.backing("data")).expect("opened");
    grown.set_len(BYTES + (9 << 20)).expect("grown");
    new.start_daemon();
    write_noise(&new.tap("data"), BYTES + (9 << 20), 5, 50);
    follows(&old, &new);
    assert!(disk(&old) == disk(&new) && disk(&old).len() as u64 == BYTES + (9 << 20), "it did not grow");
    assert_eq!(branches(&old), kept);

    // A person may give it up.
    run(&mut failback(&old, &["--abort"]));
    fenced(&old);
    write(&old, 6, 20);
    let _begun = begin(&old, &["--discard-branch"]);
    follows(&old, &new);
    assert!(disk(&old) == disk(&new));
    assert_eq!(branches(&old), kept, "what was given up is kept");
    new.daemon.take().expect("it runs").stop();
    let finished = failback(&old, &["--finish"]).stdout(Stdio::piped()).output().expect("it starts");
    assert!(finished.status.success(), "{finished:?}");
    assert!(disk(&old) == disk(&new), "the old host did not get all");
    // It is there as long as a person wants it.
    assert!(content_of(&old, &kept[0]) == before);
    run(old.farside().args(["branch", "remove", "--yes"]).arg(kept[0]["id"].as_str().expect("an id")));
    assert!(branches(&old).is_empty());
    old.wait_quiet();
    assert_newest_is(&old, &disk(&old));
    old.check_store();
}

/// The copy stays, and its source is refused; then a person has that taken back, and the source goes on with its own disk.
#[test]
fn a_failover_is_for_good_or_its_source_goes_on_with_its_own_disk() {
    let mut old = Site::with_volume(BYTES, "200ms", 1000);
    let commit = |site: &Site, more: &[&str]| site.gateway(&["commit", "host1/default"]).args(more).output().expect("it starts");
    let unknown = commit(&old, &["--yes"]);
    assert!(!unknown.status.success(), "what was not failed over is for good");
    let target = lost(&mut old);
    let alone = commit(&old, &["--yes"]);
    assert_eq!(alone.status.code(), Some(4), "nobody publishes it, and its source is sent away: {alone:?}");
    let mut new = stand_in(&old, &target);
    write(&new, 3, 100);
    new.wait_quiet();
    let list = |site: &Site| json(&mut site.gateway(&["failover", "--list"])).as_array().expect("a list").clone();
    let is_pinned = |site: &Site| site.points("data").iter().any(|point| point["pins"].to_string().contains("failover"));
    let warns = |site: &Site| json(&mut site.gateway(&["status"])).to_string().contains("failed_over");
    let planned = commit(&old, &["--plan"]);
    assert!(String::from_utf8_lossy(&planned.stdout).contains("host2 has host1/default for good"), "{planned:?}");
    assert!(list(&old)[0]["committed"] == false && is_pinned(&old) && warns(&old));
    assert!(!commit(&old, &[]).status.success(), "nobody said yes");

    assert!(commit(&old, &["--yes"]).status.success());
    assert!(list(&old)[0]["committed"] == true && !is_pinned(&old) && !warns(&old), "{:?}", list(&old));
    old.start_daemon();
    let refused = |site: &Site| {
        wait_until("the source to be sent away", || {
            let status = site.status().to_string();
            if status.contains("for good") { Ok(()) } else { Err(status) }
        });
    };
    refused(&old);
    write(&old, 4, 20);
    let rollback =
        |site: &Site, more: &[&str]| site.farside().args(["rollback", "default"]).args(more).output().expect("it starts");
    assert_eq!(rollback(&old, &["--yes"]).status.code(), Some(4));
    let resync = old.farside().args(["volume", "resync", "data", "--accept", "fenced"]).output().expect("it starts");
    assert!(String::from_utf8_lossy(&resync.stderr).contains("farside commit SOURCE/GROUP --undo"), "{resync:?}");
    // Whoever stands in goes on, whoever is restarted.
    old.receiver.take().expect("it runs").kill();
    old.start_receiver();
    write(&new, 5, 50);
    new.wait_quiet();
    assert_newest_is(&old, &disk(&new));
    refused(&old);

    assert!(commit(&old, &["--undo"]).status.success());
    fenced(&old);
    assert!(warns(&old));
    let before = (disk(&old), newest(&old));
    let planned = rollback(&old, &["--plan"]);
    assert!(String::from_utf8_lossy(&planned.stdout).contains("goes on with its disk as it is"), "{planned:?}");
    assert!(!rollback(&old, &[]).status.success() && newest(&old) == before.1);
    assert!(rollback(&old, &["--yes"]).status.success());
    old.wait_quiet();
    assert!(disk(&old) == before.0, "its disk was changed");
    assert_newest_is(&old, &disk(&old));
    wait_for("the failover to be over", || list(&old).is_empty().then_some(()));
    let again = rollback(&old, &["--yes"]);
    assert_eq!(again.status.code(), Some(4), "{again:?}");
    new.daemon.take().expect("it runs").stop();
    old.check_store();
}

/// Points that are pinned for a rollback.
fn discarded(site: &Site) -> Vec<String> {
    let points = site.points("data");
    let pins = |point: &Value| point["pins"].as_array().cloned().unwrap_or_default();
    let is_ours = |pin: &Value| {
        let words = "what host2 wrote after the failover, from before host1 was rolled back";
        pin["reason"].as_str().is_some_and(|reason| reason.ends_with(words))
    };
    let of = |point: &Value| {
        pins(point).iter().filter(|pin| is_ours(pin)).map(|_| point["id"].as_str().expect("an id").to_owned()).collect()
    };
    points.iter().flat_map(|point| -> Vec<String> { of(point) }).collect()
}

/// Its source goes on with its own disk: what its stand-in published is shown and pinned before that, wherever it is killed, and stays when all else goes.
#[test]
fn what_a_rollback_discards_is_shown_and_pinned_before_that() {
    let mut old = Site::with_volume(BYTES, "200ms", 3);
    let target = lost(&mut old);
    let mut new = stand_in(&old, &target);
    write(&new, 3, 300);
    new.wait_quiet();
    old.start_daemon();
    fenced(&old);
    write(&old, 4, 20);
    let (own, theirs) = (disk(&old), disk(&new));
    assert!(own != theirs);
    let rollback =
        |site: &Site, more: &[&str]| site.farside().args(["rollback", "default"]).args(more).output().expect("it starts");
    let said = |output: &[u8]| String::from_utf8_lossy(output).into_owned();

    // Who cannot be asked what is discarded has not pinned it: nothing is changed, unless a person says so.
    old.receiver.take().expect("it runs").stop();
    for more in ["--plan", "--yes"] {
        let refused = rollback(&old, &[more]);
        let words = said(&refused.stderr);
        assert!(
            refused.status.code() == Some(4) && words.contains("cannot be pinned") && words.contains("--force"),
            "{refused:?}"
        );
    }
    let alone = old.farside().args(["volume", "resync", "data", "--accept", "fenced"]).output().expect("it starts");
    assert!(alone.status.code() == Some(4) && said(&alone.stderr).contains("cannot be pinned"), "{alone:?}");
    let unseen = rollback(&old, &["--plan", "--force"]);
    assert!(unseen.status.success() && said(&unseen.stdout).contains("unseen and unpinned"), "{unseen:?}");
    fenced(&old);
    old.prune_at_once();
    old.start_receiver();
    new.wait_quiet();
    fenced(&old);
    assert_newest_is(&old, &theirs);
    let last = newest(&old);

    let planned = wait_until("the gateway to say what is discarded", || {
        let planned = rollback(&old, &["--plan"]);
        if planned.status.success() { Ok(said(&planned.stdout)) } else { Err(said(&planned.stderr)) }
    });
    for words in [
        "data: goes on with its disk as it is",
        "that host2 published since the failover",
        "is pinned first on the gateway",
        &format!("farside point open host1/default/data {last}"),
        &format!("farside point unpin {last} --of host1/default"),
        "what host2 has not published is on its disks only",
        "nothing was changed",
    ] {
        assert!(planned.contains(words), "{words}: {planned}");
    }
    assert!(rollback(&old, &[]).status.code() == Some(2) && discarded(&old).is_empty() && newest(&old) == last);
    // Both ways side by side, and each of them by whose content it is to be.
    let rejoin = |more: &[&str]| said(&run(old.farside().args(["volume", "rejoin", "data"]).args(more)).stdout);
    let both = rejoin(&[]);
    for words in [
        "--winner here: these disks (farside rollback default)",
        &format!("farside point open host1/default/data {last}"),
        "--winner there: what was published since (farside failback default)",
        &format!("default to point {last}"),
        "what only these disks hold is kept first",
        "nothing was changed",
    ] {
        assert!(both.contains(words), "{words}: {both}");
    }
    let here = rejoin(&["--winner", "here", "--plan"]);
    assert!(here.contains("data: goes on with its disk as it is") && here.contains("is pinned first on the gateway"), "{here}");
    let there = rejoin(&["--winner", "there", "--plan"]);
    assert!(there.contains("is overwritten where it differs") && !there.contains("goes on with its disk"), "{there}");
    assert!(discarded(&old).is_empty() && newest(&old) == last);
    fenced(&old);

    // Killed as soon as it is pinned, and said again until nothing is fenced any more: it is pinned once.
    let mut first = old
        .farside()
        .args(["rollback", "default", "--yes"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_for("it to be pinned", || (!discarded(&old).is_empty()).then_some(()));
    old.daemon.take().expect("it runs").kill();
    let _ = first.wait();
    old.start_daemon();
    wait_until("it to be taken back", || {
        let again = rollback(&old, &["--yes"]);
        let volume = old.volume_status("data");
        if volume["state"]["state"] == "streaming" { Ok(()) } else { Err(format!("{volume}: {again:?}")) }
    });
    old.wait_quiet();
    assert!(disk(&old) == own, "its disk was changed");
    assert_newest_is(&old, &own);
    wait_for("the failover to be over", || {
        json(&mut old.gateway(&["failover", "--list"])).as_array().is_some_and(Vec::is_empty).then_some(())
    });
    assert_eq!(discarded(&old), [last.as_str()]);
    let again = rollback(&old, &["--yes"]);
    assert_eq!((again.status.code(), discarded(&old)), (Some(4), vec![last.clone()]), "{again:?}");

    // All else goes, and it opens as the stand-in wrote it.
    let since = newest(&old);
    let is_there = |point: &str| old.points("data").iter().any(|one| one["id"] == point);
    let mut seed = 5;
    wait_for("what was published since to be pruned", || {
        write(&old, seed, 20);
        seed += 1;
        old.wait_quiet();
        (!is_there(&since)).then_some(())
    });
    assert!(is_there(&last));
    assert!(opened(&old, &last, |open| open) == theirs, "it is not what the stand-in wrote");
    new.daemon.take().expect("it runs").stop();
    old.check_store();
    // Until a person lets go of it.
    run(&mut old.gateway(&["point", "unpin", &last, "--of", "host1/default"]));
    wait_for("it to be pruned", || {
        write(&old, seed, 20);
        seed += 1;
        old.wait_quiet();
        (!is_there(&last)).then_some(())
    });
    old.check_store();
}

/// A person takes one volume back by itself: what the stand-in published is pinned before that, as by a rollback of its group.
#[test]
fn what_one_volume_discards_by_a_resync_is_pinned_before_that() {
    let mut old = Site::with_volume(BYTES, "200ms", 1000);
    let target = lost(&mut old);
    let mut new = stand_in(&old, &target);
    write(&new, 3, 100);
    new.wait_quiet();
    old.start_daemon();
    fenced(&old);
    write(&old, 4, 20);
    let (own, theirs, last) = (disk(&old), disk(&new), newest(&old));
    assert!(own != theirs && discarded(&old).is_empty());
    let resync = || old.farside().args(["volume", "resync", "data", "--accept", "fenced"]).output().expect("it starts");
    let taken_back = resync();
    assert!(taken_back.status.success() && discarded(&old) == [last.as_str()], "{taken_back:?}");
    old.wait_quiet();
    assert!(disk(&old) == own, "its disk was changed");
    assert_newest_is(&old, &own);
    assert!(opened(&old, &last, |open| open) == theirs, "it is not what the stand-in wrote");
    let again = resync();
    assert!(again.status.code() == Some(4) && String::from_utf8_lossy(&again.stderr).contains("not Fenced"), "{again:?}");
    assert_eq!(discarded(&old), [last.as_str()]);
    new.daemon.take().expect("it runs").stop();
    old.check_store();
}

/// A copy that is to be failed over once more may be alive, too: while nobody is fenced it stands in as before, may show itself, and a person may
/// give the second failover up.
#[test]
fn a_stand_in_that_was_given_up_for_lost_shows_itself_and_goes_on() {
    let mut old = Site::with_volume(BYTES, "200ms", 1000);
    let target = lost(&mut old);
    let mut new = stand_in(&old, &target);
    write(&new, 3, 100);
    new.wait_quiet();
    let listed = |site: &Site| json(&mut site.gateway(&["failover", "--list"]))[0].clone();
    let first = listed(&old);
    new.daemon.take().expect("it runs").kill();
    old.receiver.take().expect("it runs").kill();
    old.fence_after("1h");
    old.start_receiver();
    wait_for("the group to be open", || {
        let plan = old.gateway(&["failover", "host1/default", "--again", "--plan"]).output().expect("it starts");
        plan.status.success().then_some(())
    });
    let again = &["failover", "host1/default", "--again", "--yes"];
    let mut waiting = old.gateway(again).stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    let why = |site: &Site, words: &str| {
        wait_for(words, || listed(site)["why"].as_str()?.contains(words).then_some(()));
        assert_eq!(listed(site)["stage"], "fencing");
    };
    why(&old, "may still come back");

    new.start_daemon();
    why(&old, "host2 is connected: it is alive");
    assert!(!waiting.wait().expect("it ends").success(), "nobody was fenced");
    // What it publishes meanwhile counts.
    write(&new, 4, 50);
    new.wait_quiet();
    assert_newest_is(&old, &disk(&new));
    old.receiver.take().expect("it runs").kill();
    old.start_receiver();
    why(&old, "host2");
    run(&mut old.gateway(&["failover", "host1/default", "--abort"]));
    for key in ["stage", "generation", "stand_in", "point"] {
        assert_eq!(listed(&old)[key], first[key], "{key}");
    }
    write(&new, 5, 50);
    new.wait_quiet();
    assert_newest_is(&old, &disk(&new));
    let nothing = old.gateway(&["failover", "host1/default", "--abort"]).output().expect("it starts");
    assert!(!nothing.status.success(), "the first one has fenced its source");
    old.check_store();
}

/// A restart in the middle of taking the history back: while the gateway is away nobody knows whether a volume that was asked has claimed. One that was
/// never asked, and is not served, asks for nothing.
#[test]
fn after_a_restart_a_failback_is_given_up_where_nothing_can_have_been_taken_back() {
    let mut old = Site::with_volume(BYTES, "200ms", 1000);
    let target = lost(&mut old);
    let mut new = stand_in(&old, &target);
    old.start_daemon();
    fenced(&old);
    wait_until("it to begin", || {
        let begun = failback(&old, &["--yes"]).output().expect("it starts");
        if begun.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&begun.stderr).into_owned()) }
    });
    follows(&old, &new);
    new.daemon.take().expect("it runs").stop();
    old.receiver.take().expect("it runs").stop();
    let killed_while_taking_back = |old: &mut Site, was_asked: bool| {
        old.daemon.take().expect("it runs").kill();
        let path = old.path("host/state/failback/default.json");
        let mut note: Value = serde_json::from_slice(&std::fs::read(&path).expect("a note")).expect("JSON");
        let at = note["stage"]["at"].clone();
        assert!(at["position"].is_object(), "{note}");
        note["stage"] = serde_json::json!({"is": "returning", "at": at, "served": true});
        note["volumes"][0]["was_asked"] = was_asked.into();
        std::fs::write(&path, note.to_string()).expect("written");
    };
    let starts = |old: &mut Site| {
        old.daemon = Some(old.spawn_daemon());
        wait_for("its interface", || UnixStream::connect(old.path("host/api.sock")).ok());
    };
    let (backing, aside) = (old.backing("data"), old.path("aside.img"));

    killed_while_taking_back(&mut old, true);
    std::fs::rename(&backing, &aside).expect("taken away");
    starts(&mut old);
    let refused = failback(&old, &["--abort"]).output().expect("it starts");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("or may have"), "{why}");
    assert_eq!(status(&old).expect("it goes on")["stage"], "returning");

    killed_while_taking_back(&mut old, false);
    starts(&mut old);
    let mut aborted = failback(&old, &["--abort"]).stdout(Stdio::null()).spawn().expect("it starts");
    wait_for("it to be given up", || status(&old).is_none_or(|now| now["stage"] == "aborting").then_some(()));
    std::fs::rename(&aside, &backing).expect("brought back");
    assert!(aborted.wait().expect("it ends").success());
    wait_for("it to be over", || status(&old).is_none().then_some(()));
    old.start_receiver();
    fenced(&old);
    old.check_store();
}

/// The gateway burnt down with the stand-in: the disks are served, and nobody watches for ever.
#[test]
fn what_is_finished_without_a_gateway_is_served_and_said_to_wait_for_it() {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    write(&site, 1, 500);
    site.wait_quiet();
    let image = disk(&site);
    site.daemon.take().expect("it runs").kill();
    run(&mut site.gateway(&["failover", "host1/default", "--yes", "--force"]));
    site.start_daemon();
    fenced(&site);
    wait_until("nobody to use it", || {
        let begun = failback(&site, &["--yes", "--force"]).output().expect("it starts");
        if begun.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&begun.stderr).into_owned()) }
    });
    site.receiver.take().expect("it runs").stop();
    let told = failback(&site, &["--finish", "--force", "--yes"]).output().expect("it starts");
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert_eq!(told.status.code(), Some(3), "{words}");
    assert!(words.contains("goes on by itself") && words.contains("failback default --abort"), "{words}");
    assert!(words.contains("the volumes are served here"), "{words}");
    assert_eq!(status(&site).expect("it goes on")["stage"], "returning");
    assert!(disk(&site) == image);
    site.start_receiver();
    wait_for("it to be over", || status(&site).is_none().then_some(()));
    write(&site, 2, 20);
    site.wait_quiet();
    site.check_store();
}

/// Ransomware: failed over to the point before it, and nothing was published since. That one comes back, and not what it was taken instead of,
/// which stays a point.
#[test]
fn what_comes_back_after_a_failover_to_an_older_point_is_that_point() {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    write(&site, 1, 500);
    site.wait_quiet();
    let (older, good) = (newest(&site), disk(&site));
    write(&site, 2, 500);
    site.wait_quiet();
    let (newer, bad) = (newest(&site), disk(&site));
    assert!(older != newer && good != bad);
    site.daemon.take().expect("it runs").kill();
    let at = older.split('-').next().expect("a slot");
    let done = json(&mut site.gateway(&["failover", "host1/default", "--point", at, "--force", "--yes"]));
    assert_eq!((&done["stage"], &done["point"]["id"]), (&Value::from("promoted"), &Value::from(older.as_str())), "{done}");
    // Nothing was published since: failed over once more it is that one again, and a person says so.
    let again = |args: &[&str]| {
        site.gateway(&[&["failover", "host1/default", "--again", "--yes"], args].concat()).output().expect("it starts")
    };
    let refused = again(&[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not the newest"), "{refused:?}");
    let aside = newer.split('-').next().expect("a slot");
    let refused = again(&["--point", aside]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was left aside"), "{refused:?}");
    let done: Value = serde_json::from_slice(&again(&["--force", "--json"]).stdout).expect("JSON");
    assert_eq!((&done["point"]["id"], &done["generation"]), (&Value::from(older.as_str()), &Value::from(3)), "{done}");

    site.start_daemon();
    fenced(&site);
    let refused = failback(&site, &["--yes"]).output().expect("it starts");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("left aside"), "{refused:?}");
    let plan = json(&mut failback(&site, &["--plan", "--force"]));
    assert_eq!(plan["point"]["id"], older.as_str(), "{plan}");
    wait_until("nobody to use it", || {
        let begun = failback(&site, &["--yes", "--force"]).output().expect("it starts");
        if begun.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&begun.stderr).into_owned()) }
    });
    run(&mut failback(&site, &["--finish", "--force", "--yes"]));
    assert!(disk(&site) == good, "the disk is not what was failed over to");
    // It goes on from there: what the newest point has more is taken back by the next one.
    site.wait_quiet();
    write(&site, 3, 50);
    site.wait_quiet();
    assert_newest_is(&site, &disk(&site));
    let restored = site.path("restored.img");
    site.restore("data", &newer, &restored);
    assert!(std::fs::read(&restored).expect("restored") == bad, "the newer point is not what it was");
    site.check_store();
}
