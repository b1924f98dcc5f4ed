//! `farside drill`: all volumes of a point or none, to be written, beside a source that goes on; nothing is left of it, however its owner
//! ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use farside_tests::drill::Drill;
use farside_tests::verify::connect;
use farside_tests::{Site, VolumeSpec, program, wait_for};
use serde_json::Value;

const BYTES: u64 = 16 << 20;

/// A group of two, with content in both, and a folder for drills.
fn site() -> (Site, PathBuf) {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "db".into() };
    let mut site = Site::new(&[spec("log"), spec("data")], "100ms", 1000);
    site.start_all();
    site.point_after("data", || {
        for (volume, stamp) in [("log", 1), ("data", 2)] {
            let mut client = connect(&site.tap(volume));
            client.write(0, &[stamp; 4096], 0).expect("written");
            client.flush().expect("durable");
        }
    });
    let dir = site.path("drills");
    (site, dir)
}

fn start(site: &Site, dir: &Path, more: &[&str]) -> Drill {
    Drill::start(site, "host1/db", dir, more)
}

fn drill(dir: &Path, words: &[&str]) -> Output {
    program("farside").arg("drill").args(words).arg("--json").arg("--dir").arg(dir).output().expect("it starts")
}

fn list(dir: &Path) -> Vec<Value> {
    serde_json::from_slice(&drill(dir, &["list"]).stdout).expect("JSON")
}

#[test]
fn a_drill_has_all_volumes_and_leaves_nothing() {
    let (site, dir) = site();
    let plan =
        program("farside").args(["drill", "start", "db", "--plan", "--store"]).arg(site.store()).arg("--dir").arg(&dir).output();
    let plan = plan.expect("it starts");
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(plan.status.success() && text.contains("log") && text.contains("data"), "{plan:?}");
    assert!(!dir.exists(), "a plan changes nothing");

    let mut one = start(&site, &dir, &[]);
    assert!(one.said["stage"] == "ready" && one.said["rto_ms"].is_u64(), "{}", one.said);
    for (volume, stamp) in [("log", 1), ("data", 2)] {
        let (mut client, mut found) = (connect(&one.socket(volume)), vec![0; 4096]);
        client.read(0, &mut found).expect("read");
        assert!(found == [stamp; 4096], "{volume} is of the point");
        client.write(0, &[9; 4096], 0).expect("written");
        client.read(0, &mut found).expect("read");
        assert!(found == [9; 4096], "{volume} holds what was written");
    }
    // The source goes on: a newer point appears, and holds nothing of the drill.
    site.point_after("data", || {
        let mut client = connect(&site.tap("data"));
        client.write(8192, &[3; 4096], 0).expect("written");
        client.flush().expect("durable");
    });
    let two = start(&site, &dir, &[]);
    let mut found = vec![0; 4096];
    connect(&two.socket("data")).read(0, &mut found).expect("read");
    assert!(found == [2; 4096], "what one drill writes no other has");
    assert_eq!(list(&dir).len(), 2);

    // They are found by who does not say where they are kept, too, with the command that ends them.
    let say = |words: &[&str]| {
        let said = program("farside").args(words).output().expect("it starts");
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let ends = format!("farside drill stop {} --dir {}", one.id(), dir.display());
    assert!(say(&["drill", "list"]).contains(&ends), "{}", say(&["drill", "list"]));
    let third = start(&site, &dir, &[]);
    let stopped = say(&["drill", "stop", third.id()]);
    assert!(stopped.contains(third.id()) && list(&dir).len() == 2, "{stopped}");

    // In use: refused by name, and it is served on; then not any more.
    let mut client = connect(&one.socket("log"));
    let refused = wait_for("the one to be named that is still connected", || {
        let refused = drill(&dir, &["stop", one.id()]);
        assert_eq!(refused.status.code(), Some(4), "{refused:?}");
        Some(refused).filter(|refused| String::from_utf8_lossy(&refused.stderr).contains("log of drill"))
    });
    let says = String::from_utf8_lossy(&refused.stderr);
    assert!(says.contains(" is in use at ") && says.contains("--force"), "{says}");
    client.read(0, &mut found).expect("it is served on");
    let stopped = drill(&dir, &["stop", one.id(), "--force"]);
    assert!(stopped.status.success(), "{stopped:?}");
    wait_for("its end", || (!one.owner.is_running()).then_some(()));
    assert!(!dir.join(one.id()).exists() && list(&dir).len() == 1);
    assert_eq!(drill(&dir, &["stop", one.id()]).status.code(), Some(5));
    let id = two.id().to_owned();
    two.owner.stop();
    assert!(!dir.join(id).exists(), "SIGTERM ends it in order");
    site.check_store();
}

#[test]
fn what_a_killed_owner_left_is_shown_and_swept() {
    let (site, dir) = site();
    let one = start(&site, &dir, &[]);
    let (id, socket) = (one.id().to_owned(), one.socket("data"));
    one.owner.kill();
    wait_for("its servers' end", || std::os::unix::net::UnixStream::connect(&socket).is_err().then_some(()));
    let left = list(&dir);
    assert!(left.len() == 1 && left[0]["id"] == *id && left[0]["is_interrupted"] == true, "{left:?}");
    // The next start sweeps it…
    let two = start(&site, &dir, &[]);
    assert!(!dir.join(&id).exists() && list(&dir).len() == 1);
    let id = two.id().to_owned();
    two.owner.kill();
    // …and so does a stop, which refuses while a server has not ended yet.
    wait_for("it to be swept", || {
        let stopped = drill(&dir, &["stop", "--all"]);
        let says = String::from_utf8_lossy(&stopped.stderr);
        assert!(stopped.status.success() || says.contains("is served still"), "{stopped:?}");
        stopped.status.success().then_some(())
    });
    assert!(!dir.join(&id).exists() && list(&dir).is_empty());
}

#[test]
fn a_drill_ends_with_its_time_and_as_a_whole() {
    let (site, dir) = site();
    let mut short = start(&site, &dir, &["--ttl", "1s"]);
    wait_for("its end", || (!short.owner.is_running()).then_some(()));
    assert!(!dir.join(short.id()).exists(), "nobody had to ask for it");

    // A volume that is not there any more ends the others, and so is closed only when nobody uses them either.
    let mut whole = start(&site, &dir, &[]);
    let log = whole.socket("log");
    let close = || program("farside").args(["point", "close"]).arg(&log).output().expect("it starts");
    let client = connect(&whole.socket("data"));
    let refused = close();
    let says = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{says}");
    assert!(says.contains("stays open") && says.contains(&format!("farside drill stop {}", whole.id())), "{says}");
    assert!(whole.owner.is_running());
    drop(client);
    wait_for("the client's end", || close().status.success().then_some(()));
    wait_for("its end", || (!whole.owner.is_running()).then_some(()));
    assert!(!dir.join(whole.id()).exists() && list(&dir).is_empty());

    // A name of a volume is no group; a folder of others is none.
    let refused = |group: &str, dir: &Path| {
        let mut command = program("farside");
        command.args(["drill", "start", group, "--store"]).arg(site.store()).arg("--dir").arg(dir);
        command.output().expect("it starts").status.code()
    };
    assert_eq!(refused("log", &dir), Some(2));
    assert_eq!(refused("nothing", &dir), Some(5));
    let open = site.path("open");
    fs::create_dir(&open).expect("made");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    assert_eq!(refused("db", &open), Some(4));
}
