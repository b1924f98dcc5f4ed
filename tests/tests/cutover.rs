//! A planned move: the host gives a group away with nothing lost, whatever interrupts that, and has it back with what differs.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use farside_tests::mount::SmallDisk;
use farside_tests::verify::{connect, write_noise};
use farside_tests::{Site, VolumeSpec, json, run, wait_for, wait_until};
use serde_json::Value;

const BYTES: u64 = 64 << 20;

fn write(site: &Site, seed: u64, requests: u64) -> u64 {
    write_noise(&site.tap("data"), BYTES, seed, requests)
}

fn disk(site: &Site) -> Vec<u8> {
    std::fs::read(site.backing("data")).expect("a backing")
}

fn verb(site: &Site, verb: &str, arguments: &[&str]) -> Command {
    let mut command = site.farside();
    command.args([verb, "default"]).args(arguments);
    command
}

fn words(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).expect("text")
}

/// How the cutover, or the failback, is; `None`: there is none.
fn status(site: &Site) -> Option<Value> {
    let all = json(site.farside().args(["cutover", "--list"]));
    all.as_array().expect("a list").first().cloned()
}

fn is_served(tap: &Path) -> bool {
    UnixStream::connect(tap).and_then(|stream| stream.shutdown(Shutdown::Both)).is_ok()
}

/// Begun, and not waited for.
fn begin(site: &Site, arguments: &[&str]) -> Child {
    // That a client has gone may not have been noticed yet.
    wait_until("nobody to use it", || {
        let mut begun =
            verb(site, "cutover", arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        loop {
            if status(site).is_some() {
                return Ok(begun);
            }
            if begun.try_wait().expect("a child").is_some() {
                let said = begun.wait_with_output().expect("a child");
                return Err(String::from_utf8_lossy(&said.stderr).into_owned());
            }
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
    })
}

/// What is written takes minutes to be published, or is at once.
fn slow(site: &Site, is_slow: bool) {
    run(site.farside().args(["group", "set", "default", "--rate", if is_slow { "64Kbit" } else { "none" }]));
}

fn interface(site: &Site) {
    wait_for("its interface", || UnixStream::connect(site.path("host/api.sock")).ok());
}

fn plan(site: &Site) -> Value {
    json(&mut site.gateway(&["failover", "host1/default", "--plan"]))
}

/// It says that it was given up, and why; the volume is served, and nothing of it was lost.
fn given_up(site: &Site, begun: Child, why: &str) {
    let ended = begun.wait_with_output().expect("a child");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(1) && said.contains("was given up") && said.contains(why), "{ended:?}");
    wait_for("the end of it", || status(site).is_none().then_some(()));
    wait_for("its tap", || is_served(&site.tap("data")).then_some(()));
}

#[test]
fn what_is_given_up_is_served_as_before() {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    write(&site, 1, 500);
    site.wait_quiet();

    // Nothing is changed by a plan, without a yes, or under who uses it.
    let text = words(&mut verb(&site, "cutover", &["--plan"]));
    assert!(text.contains("is served here no more") && text.contains("nothing was changed"), "{text}");
    assert!(!verb(&site, "cutover", &[]).stdin(Stdio::null()).output().expect("it starts").status.success());
    let user = connect(&site.tap("data"));
    let used = verb(&site, "cutover", &["--yes"]).output().expect("it starts");
    let said = String::from_utf8_lossy(&used.stderr).into_owned();
    assert!(used.status.code() == Some(4) && said.contains("in use"), "{used:?}");
    drop(user);
    assert!(status(&site).is_none());
    let unknown = site.farside().args(["cutover", "nobody", "--yes"]).output().expect("it starts");
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
    let unbegun = verb(&site, "cutover", &["--abort"]).output().expect("it starts");
    assert_eq!(unbegun.status.code(), Some(5), "{unbegun:?}");

    // Without a gateway it is not begun.
    site.receiver.take().expect("it runs").kill();
    let alone = verb(&site, "cutover", &["--yes"]).output().expect("it starts");
    assert!(!alone.status.success() && status(&site).is_none() && is_served(&site.tap("data")), "{alone:?}");
    site.start_receiver();
    site.wait_quiet();

    // Not all can be published in time.
    slow(&site, true);
    write(&site, 2, 300);
    given_up(&site, begin(&site, &["--yes", "--wait", "1s"]), "not all of it was published within 1 s");
    write(&site, 3, 20);

    // Aborted in the middle, by either verb; meanwhile nobody has it, and nothing else is done to it.
    for by in ["cutover", "failback"] {
        let begun = begin(&site, &["--yes", "--wait", "1h"]);
        wait_for("its tap to go", || (!is_served(&site.tap("data"))).then_some(()));
        assert_eq!(status(&site).expect("it goes on")["stage"], "handing_over");
        let again = words(&mut verb(&site, "cutover", &["--plan"]));
        assert!(again.contains("nothing was changed"), "{again}");
        assert!(!verb(&site, "failback", &["--yes"]).output().expect("it starts").status.success());
        assert!(!site.farside().args(["volume", "remove", "data"]).output().expect("it starts").status.success());
        assert!(site.status().to_string().contains("is being handed over"));
        let aborted = words(&mut verb(&site, by, &["--abort"]));
        assert!(aborted.contains("are served here as their disks are") && !aborted.contains("fenced"), "{by}: {aborted}");
        given_up(&site, begun, "it was aborted");
        write(&site, 4, 20);
    }

    // Killed, and stopped, in the middle: the next start serves it.
    for is_killed in [true, false] {
        let begun = begin(&site, &["--yes", "--wait", "1h"]);
        wait_for("its tap to go", || (!is_served(&site.tap("data"))).then_some(()));
        let daemon = site.daemon.take().expect("it runs");
        if is_killed {
            daemon.kill()
        } else {
            daemon.stop()
        }
        assert!(!begun.wait_with_output().expect("a child").status.success());
        site.start_daemon();
        assert!(status(&site).is_none());
        // After a kill it is compared first.
        slow(&site, false);
        site.wait_quiet();
        slow(&site, true);
        write(&site, 5, 300);
    }

    // Its gateway is started anew in the middle, and nobody hurries: it goes on.
    let begun = begin(&site, &["--yes", "--wait", "1h"]);
    site.receiver.take().expect("it runs").kill();
    site.start_receiver();
    slow(&site, false);
    let ended = begun.wait_with_output().expect("a child");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(status(&site).expect("it holds")["stage"], "handed_over");

    // Served here again, it goes on where it was: nothing is compared.
    let before = disk(&site);
    run(&mut verb(&site, "cutover", &["--abort"]));
    assert!(status(&site).is_none());
    site.wait_quiet();
    assert!(disk(&site) == before);
    let log = std::fs::read_to_string(site.path("daemon.log")).expect("a log");
    let log = &log[log.rfind("handed over: all of it is published").expect("it was")..];
    assert!(!log.contains("will be compared") && log.contains("clean=true"), "{log}");
    write(&site, 6, 100);
    site.wait_quiet();
    let restored = site.path("restored.img");
    site.restore("data", "latest", &restored);
    assert!(std::fs::read(&restored).expect("restored") == disk(&site));
    site.check_store();
}

#[test]
fn what_is_handed_over_is_lost_to_nobody_and_comes_back_with_what_differs() {
    let mut site = Site::with_volume(BYTES, "200ms", 1000);
    write(&site, 1, 1_500);
    site.wait_quiet();
    let target = site.path("standby.img");
    run(&mut site.gateway(&["follower", "add", "host1/default/data", target.to_str().expect("text")]));
    write(&site, 2, 200);
    let said = wait_until("it to be handed over", || {
        let done = verb(&site, "cutover", &["--yes"]).output().expect("it starts");
        let said = String::from_utf8_lossy(if done.status.success() { &done.stdout } else { &done.stderr }).into_owned();
        if done.status.success() { Ok(said) } else { Err(said) }
    });
    assert!(said.contains("all that was written here is published") && said.contains("farside failover host1/default"), "{said}");
    let image = disk(&site);
    let now = status(&site).expect("it holds");
    let newest = site.points("data").last().expect("a point")["id"].clone();
    assert_eq!((&now["stage"], &now["holds"]["id"]), (&Value::from("handed_over"), &newest), "{now}");
    assert!(!is_served(&site.tap("data")) && site.status().to_string().contains("was handed over"));

    // Before it was failed over there is nothing to fail back; after a restart it is as it was.
    let early = verb(&site, "failback", &["--yes"]).output().expect("it starts");
    assert!(!early.status.success() && String::from_utf8_lossy(&early.stderr).contains("was not failed over"), "{early:?}");
    let finish = verb(&site, "failback", &["--finish"]).output().expect("it starts");
    assert_eq!(finish.status.code(), Some(4), "{finish:?}");
    site.daemon.take().expect("it runs").kill();
    site.daemon = Some(site.spawn_daemon());
    interface(&site);
    wait_for("it to be held", || (status(&site)?["holds"]["id"] == newest).then_some(()));
    assert!(!is_served(&site.tap("data")), "a restart serves what was handed over");

    // The gateway knows that nothing is lost, and the copy is what the host had.
    assert_eq!(plan(&site)["all_published"], true, "{}", plan(&site));
    let done = json(&mut site.gateway(&["failover", "host1/default", "--yes"]));
    assert_eq!((&done["stage"], &done["generation"]), (&Value::from("promoted"), &Value::from(2)), "{done}");
    assert!(std::fs::read(&target).expect("the copy") == image, "the copy is not what was handed over");

    // Somebody has the copy, and writes.
    let mut other = site.another_host("host2", "200ms", 100);
    std::fs::rename(&target, other.backing("data")).expect("the disk is given to it");
    let file = other.path("host/farsided.toml");
    let toml = std::fs::read_to_string(&file).expect("a configuration");
    std::fs::write(&file, toml.replace("epoch_interval", "stand_in_for = \"host1\"\nepoch_interval")).expect("written");
    other.start_daemon();
    other.pair();
    run(&mut site.gateway(&["failover", "host1/default", "--stand-in", "host2"]));
    other.wait_for_state("data", "forked");
    run(other.farside().args(["volume", "resync", "data", "--accept", "forked"]));
    other.wait_quiet();
    let changed = write(&other, 3, 100);
    other.wait_quiet();

    // It comes back: nothing is compared, and what crosses the network is what changed.
    run(&mut verb(&site, "failback", &["--yes"]));
    let now = wait_for("it to follow", || status(&site).filter(|now| now["stage"] == "following"));
    let received = now["received_bytes"].as_u64().expect("a number");
    assert!(disk(&site) == disk(&other), "it did not come back as it is there");
    let looked = now["total_regions"].as_u64().expect("a number");
    println!("{received} bytes received for {changed} that changed; {looked} regions looked at");
    assert!(received * 10 <= changed * 11 + (640 << 10), "{received} bytes were received for {changed} that changed");
    other.daemon.take().expect("it runs").stop();
    run(&mut verb(&site, "failback", &["--finish"]));
    site.wait_quiet();
    write(&site, 4, 50);
    site.wait_quiet();
    let restored = site.path("restored.img");
    site.restore("data", "latest", &restored);
    assert!(std::fs::read(&restored).expect("restored") == disk(&site));

    // Once more. That it was failed over before is nothing to come back from; promoted meanwhile, it is fenced when it is served again.
    wait_until("it to be handed over", || {
        let done = verb(&site, "cutover", &["--yes"]).output().expect("it starts");
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
    });
    let early = verb(&site, "failback", &["--yes"]).output().expect("it starts");
    assert!(!early.status.success() && String::from_utf8_lossy(&early.stderr).contains("was not failed over"), "{early:?}");
    let done = json(&mut site.gateway(&["failover", "host1/default", "--yes"]));
    assert_eq!(done["stage"], "promoted", "{done}");
    let refused = verb(&site, "cutover", &["--abort"]).output().expect("it starts");
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("was failed over since"),
        "{refused:?}"
    );
    site.receiver.take().expect("it runs").stop();
    let refused = verb(&site, "cutover", &["--abort"]).output().expect("it starts");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("cannot be asked"), "{refused:?}");
    assert_eq!(status(&site).expect("it holds")["stage"], "handed_over");
    site.start_receiver();
    run(&mut verb(&site, "cutover", &["--abort", "--force"]));
    site.wait_for_state("data", "fenced");
    site.check_store();
}

/// What is handed over must be durable: where that cannot be, nothing is taken out of service for it, and the directory is named.
#[test]
fn a_cutover_that_cannot_be_kept_names_the_directory_that_is_full_and_changes_nothing() {
    let volume = VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[volume], "200ms", 100);
    let state = site.path("host/state");
    std::fs::create_dir_all(&state).expect("made");
    let Some(_small) = SmallDisk::mount(&state, "64m") else { return };
    site.start_all();
    write(&site, 1, 50);
    site.wait_quiet();
    let filler = state.join("filler");
    let mut file = std::fs::File::create(&filler).expect("made");
    let full = std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("it is full");
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    drop(file);
    wait_until("nobody to use it", || {
        let told = verb(&site, "cutover", &["--yes"]).output().expect("it starts");
        let words = String::from_utf8_lossy(&told.stderr).into_owned();
        let names = words.contains(state.to_str().expect("text")) && words.contains("No space left on device");
        assert!(!told.status.success(), "{words}");
        if names && words.contains("nothing was changed") { Ok(()) } else { Err(words) }
    });
    assert!(status(&site).is_none() && is_served(&site.tap("data")));
    std::fs::remove_file(&filler).expect("removed");
    wait_until("it to be handed over", || {
        let done = verb(&site, "cutover", &["--yes"]).output().expect("it starts");
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
    });
}
