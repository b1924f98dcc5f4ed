//! Volumes that the gateway keeps encrypted at rest: nothing is configured on their host, and whoever has the store alone reads nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use farside_keys::{Keeper, Wrapping};
use farside_nbd::client::Client;
use farside_tests::drill::Drill;
use farside_tests::markers::{self, MARKER, files, with};
use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, VolumeSpec, is_quiet, json, program, run, slot_of, status_by, tail, wait_for, wait_until};
use serde_json::Value;

const BYTES: u64 = 24 << 20;

fn key(site: &Site, name: &str) -> PathBuf {
    let path = site.path(name);
    if !path.exists() {
        run(program("farside").args(["key", "new"]).arg(&path));
    }
    path
}

fn keeper(path: &Path) -> String {
    format!("file:{}", path.display())
}

/// What the gateway is to be told beside its main file.
fn tell(site: &Site, text: &str) {
    let file = site.path("gateway/receiver.d/at-rest.toml");
    fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
    fs::write(file, text).expect("written");
}

fn at_rest(keys: &[&Path]) -> String {
    let keys: Vec<String> = keys.iter().map(|path| format!("\"{}\"", keeper(path))).collect();
    format!("[[at_rest]]\nkeys = [{}]\n", keys.join(", "))
}

fn reload(site: &Site) {
    run(&mut site.gateway(&["reload"]));
}

/// A site whose gateway encrypts at rest, with two that keep its keys; nothing is started.
fn site() -> Site {
    let site = Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "200ms", 8);
    tell(&site, &at_rest(&[&key(&site, "first.key"), &key(&site, "second.key")]));
    site
}

fn disk(site: &Site) -> Vec<u8> {
    fs::read(site.backing("data")).expect("a disk")
}

fn write_markers(site: &Site, volume: &str, seed: u64) {
    markers::write(site, volume, BYTES, 2 << 20, seed);
}

/// The key of the group as it is, out of the store.
fn group_key(site: &Site) -> [u8; 32] {
    let wrapped = fs::read(site.store().join("groups/host1/default/keys/0")).expect("a wrapped key");
    let wrapping = Wrapping::decode(&wrapped).expect("whole");
    *wrapping.unwrap(&Keeper::File(key(site, "first.key"))).expect("its keeper").secret().bytes()
}

fn check_restored(site: &Site, keeper: &str) {
    let to = site.path("restored.img");
    let mut command = site.farside_at_store(&["restore", "data", "--point", "latest", "--key", keeper, "--store"]);
    run(command.arg("--to").arg(&to));
    assert!(fs::read(&to).expect("restored") == disk(site), "the newest point is not the volume");
    fs::remove_file(to).expect("restored");
}

fn refused(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn newest(site: &Site) -> Option<u64> {
    site.points("data").last().map(slot_of)
}

fn encryption(site: &Site) -> Value {
    site.status()["groups"][0]["encryption"].clone()
}

/// How the gateway says that a volume lies in its store.
fn kept(site: &Site, volume: &str) -> Value {
    let status = status_by(&mut site.gateway(&[]));
    let volumes = status["sources"][0]["groups"][0]["volumes"].as_array().expect("volumes").clone();
    volumes.iter().find(|kept| kept["name"] == volume).unwrap_or_else(|| panic!("{status}"))["encryption"].clone()
}

fn wrapped(site: &Site) -> usize {
    json(program("farside").args(["key", "list"]).arg(site.store())).as_array().expect("a list").len()
}

/// Waits until the host says why nothing is sent.
fn wait_for_words(site: &Site, words: &str) {
    wait_until(words, || {
        let status = site.status().to_string();
        if status.contains(words) { Ok(()) } else { Err(status) }
    });
}

#[test]
fn what_lands_is_encrypted_without_a_word_on_the_host() {
    let mut site = site();
    site.start_all();
    write_markers(&site, "data", 3);
    site.wait_quiet();
    let shown = encryption(&site);
    let id = shown["key"].as_str().expect("its id").to_owned();
    assert_eq!((shown["mode"].as_str(), id.len()), (Some("at-rest"), 32));
    assert_eq!(kept(&site, "data"), "at-rest");

    // The store has it wrapped by both, and nothing in clear; the host's own disk shows that this would find it.
    assert_eq!(wrapped(&site), 2);
    assert!(with(&site.path("gateway"), &[MARKER]).is_empty());
    assert!(with(&site.path("host"), &[MARKER]).contains(&site.backing("data")));
    // The host has the key in its memory, and nowhere else.
    let group_key = group_key(&site);
    let hex: String = group_key.iter().map(|byte| format!("{byte:02x}")).collect();
    let secrets: [&[u8]; 2] = [&group_key, hex.as_bytes()];
    let is_nowhere = |site: &Site| {
        assert!(!site.path("host/state/keys").exists());
        assert_eq!(with(&site.path("host"), &secrets), [] as [PathBuf; 0]);
        assert_eq!(with(&site.path("gateway"), &secrets), [] as [PathBuf; 0]);
        for log in ["daemon.log", "receiver.log"] {
            let log = fs::read(site.path(log)).expect("a log");
            assert!(!secrets.iter().chain(&[MARKER]).any(|secret| log.windows(secret.len()).any(|window| window == *secret)));
        }
    };
    is_nowhere(&site);

    // Either keeper and the directory are enough; without one, or with another, one clear error.
    let (first, second) = (key(&site, "first.key"), key(&site, "second.key"));
    for path in [&first, &second] {
        check_restored(&site, &keeper(path));
    }
    let to = site.path("none.img");
    let restore = |more: &[&str]| {
        let mut command = site.farside_at_store(&["restore", "data", "--point", "latest", "--store"]);
        refused(command.arg("--to").arg(&to).args(more))
    };
    let said = restore(&[]);
    assert!(said.contains("at-rest") && said.contains(&id) && said.contains("--key"), "{said}");
    let said = restore(&["--key", &keeper(&key(&site, "other.key"))]);
    assert!(said.contains("does not open the key") && !to.exists(), "{said}");
    // So it is for who keeps a copy of the newest.
    let follow = |to: &Path, more: &[&str]| {
        let mut command = site.farside_at_store(&["store", "follow"]);
        command.args(["host1/default/data", "--once", "--to"]).arg(to).args(more);
        command
    };
    let said = refused(&mut follow(&to, &[]));
    assert!(said.contains("at-rest") && said.contains(&id) && said.contains("--key"), "{said}");
    let other = keeper(&key(&site, "other.key"));
    let said = refused(&mut follow(&to, &["--key", &other]));
    assert!(said.contains("does not open the key") && !to.exists(), "{said}");
    let standby = site.path("standby.img");
    run(&mut follow(&standby, &["--verify", "--key", &keeper(&second)]));
    assert!(fs::read(&standby).expect("filled") == disk(&site), "the copy is not the volume");
    fs::remove_file(standby).expect("there");
    site.check_store();
    run(&mut site.farside_at_store(&["store", "check", "--key", &other, "--key", &keeper(&first)]));
    let unopened = site.farside_at_store(&["store", "check", "--key", &other]).output().expect("ran");
    assert_eq!(unopened.status.code(), Some(4), "{unopened:?}");

    // Digests go on: the volume is compared, and the point read back, by who has the key and by who has not.
    run(site.farside().args(["volume", "verify", "data"]));
    let verified = json(&mut site.gateway(&["point", "verify", "latest", "--of", "data"]));
    assert_eq!(verified["volumes"][0]["damaged_regions"], 0, "{verified}");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("independent/reader.py");
    let output = Command::new("/usr/bin/python3").arg(script).arg(site.store()).output().expect("python3 is installed");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("point "), "{said}");

    // A gateway that is started again, and a host: the key is asked for again, and it is the same one.
    site.receiver.take().expect("it runs").kill();
    write_markers(&site, "data", 4);
    site.start_receiver();
    site.wait_quiet();
    site.daemon.take().expect("it runs").kill();
    site.start_daemon();
    write_markers(&site, "data", 5);
    site.wait_quiet();
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    site.wait_quiet();
    assert_eq!(encryption(&site)["key"], id.as_str());
    assert_eq!(wrapped(&site), 2, "another key, or another wrapping");
    check_restored(&site, &keeper(&second));
    is_nowhere(&site);
    site.check_store();
}

/// Who keeps the key may change; the key does not, and nothing is written again. While nobody unwraps it the host is served, and waits.
#[test]
fn a_key_at_rest_has_other_keepers_and_is_missed() {
    let mut site = site();
    site.start_all();
    write_markers(&site, "data", 3);
    site.wait_quiet();
    let id = encryption(&site)["key"].clone();
    // Another keeper from now on, while it runs and nobody connects.
    let (first, second, third) = (key(&site, "first.key"), key(&site, "second.key"), key(&site, "third.key"));
    tell(&site, &at_rest(&[&third, &second]));
    reload(&site);
    wait_for("the third to keep it", || (wrapped(&site) == 3).then_some(()));
    check_restored(&site, &keeper(&third));
    tell(&site, &at_rest(&[&third]));
    site.receiver.take().expect("it runs").stop();
    site.start_receiver();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(7), 100);
    client.flush();
    site.wait_quiet();
    assert_eq!(encryption(&site)["key"], id);

    // Gone: what is to be encrypted waits, and no other key is drawn in its place.
    let before = newest(&site);
    let away = site.path("away.key");
    fs::rename(&third, &away).expect("renamed");
    site.receiver.take().expect("it runs").stop();
    site.start_receiver();
    client.steps(&mut Rng(8), 50);
    client.flush();
    wait_for_words(&site, "cannot unwrap the key");
    assert_eq!((newest(&site), wrapped(&site)), (before, 3), "{}", tail(&site.path("receiver.log")));
    fs::rename(&away, &third).expect("renamed");
    wait_until("what was written meanwhile to follow", || is_quiet(site.status()));
    drop(client);

    // Not configured any more: what began encrypted stays so, as long as something unwraps its key; a volume is never sent in clear for that.
    tell(&site, &format!("[[key]]\nof = \"*\"\nkey = \"{}\"\n", keeper(&first)));
    site.receiver.take().expect("it runs").stop();
    site.start_receiver();
    write_markers(&site, "data", 6);
    site.wait_quiet();
    assert_eq!(encryption(&site)["mode"], "at-rest");
    check_restored(&site, &keeper(&first));
    tell(&site, "");
    site.receiver.take().expect("it runs").stop();
    site.start_receiver();
    write_markers(&site, "data", 9);
    wait_for_words(&site, "cannot unwrap the key");
    assert!(with(&site.path("gateway"), &[MARKER]).is_empty());
    tell(&site, &at_rest(&[&first]));
    reload(&site);
    wait_until("it to go on", || is_quiet(site.status()));
    check_restored(&site, &keeper(&second));
    site.check_store();
}

/// How a volume lies in the store is settled when it begins, by its host first.
#[test]
fn what_began_in_clear_or_is_encrypted_by_its_host_stays_so() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec("data")], "200ms", 8);
    site.start_all();
    write_markers(&site, "data", 3);
    site.wait_quiet();
    assert_eq!(encryption(&site), Value::Null);
    let first = key(&site, "first.key");
    tell(&site, &at_rest(&[&first]));
    reload(&site);

    // It goes on as it is, and both sides say so; what is added is encrypted, without a restart of anything.
    let (backing, tap) = (site.backing("late"), site.tap("late"));
    fs::File::create(&backing).and_then(|file| file.set_len(BYTES)).expect("a sparse file");
    let file = site.path("host/farsided.toml");
    let one = fs::read_to_string(&file).expect("a configuration");
    let late = format!(
        "name = \"late\"\ngroup = \"default\"\nbacking = \"{}\"\ntap = \"nbd:unix:{}\"",
        backing.display(),
        tap.display()
    );
    fs::write(&file, format!("{one}[[volume]]\n{late}\n")).expect("written");
    run(site.farside().arg("reload"));
    wait_for("its tap", || std::os::unix::net::UnixStream::connect(&tap).ok());
    write_markers(&site, "data", 4);
    write_markers(&site, "late", 5);
    site.wait_quiet();
    wait_until("both sides to say how it is kept", || {
        let shown = [kept(&site, "data"), kept(&site, "late"), encryption(&site)["mode"].clone()];
        if shown == [Value::Null, "at-rest".into(), "at-rest".into()] { Ok(()) } else { Err(format!("{shown:?}")) }
    });
    let reasons = |volume: &str| site.volume_status(volume)["reasons"].to_string();
    assert!(reasons("data").contains("in_clear") && !reasons("late").contains("in_clear"), "{}", reasons("data"));
    site.daemon.take().expect("it runs").kill();
    site.start_daemon();
    site.wait_quiet();
    let mut late = Vec::new();
    files(&site.store().join("groups/host1/default/segments/late"), &mut late);
    assert!(!late.is_empty(), "its segments are somewhere else");
    assert!(with(&site.store(), &[MARKER]).iter().all(|file| !late.contains(file)), "it is in clear");
    check_restored(&site, &keeper(&first));
    site.check_store();

    // A host that encrypts end to end is given nothing, and nothing of it can be read here.
    let mut own = Site::new(&[spec("data")], "200ms", 8);
    let own_key = key(&own, "host/own.key");
    let file = own.path("host/farsided.toml");
    let text = fs::read_to_string(&file).expect("a configuration");
    let sealed = format!("[[group]]\nencryption = \"end-to-end\"\nkey = \"{}\"", keeper(&own_key));
    fs::write(&file, text.replace("[[group]]", &sealed)).expect("written");
    tell(&own, &at_rest(&[&key(&own, "first.key")]));
    own.start_all();
    write_markers(&own, "data", 3);
    own.wait_quiet();
    assert_eq!((encryption(&own)["mode"].clone(), kept(&own, "data")), ("end-to-end".into(), "end-to-end".into()));
    assert_eq!(wrapped(&own), 1, "a second key was drawn");
    let said = refused(&mut own.gateway(&["follower", "add", "host1/default/data", own.path("t.img").to_str().expect("text")]));
    assert!(said.contains("[[key]]"), "{said}");
    check_restored(&own, &keeper(&own_key));
}

/// The gateway has the key, so it does what it does for volumes in clear; what hosts send and get back stays encrypted.
#[test]
fn it_is_followed_drilled_stood_in_for_and_brought_back() {
    let mut old = site();
    old.start_all();
    write_markers(&old, "data", 3);
    old.wait_quiet();
    let target = old.path("standby.img");
    run(&mut old.gateway(&["follower", "add", "host1/default/data", target.to_str().expect("text")]));
    wait_until("the follower to follow", || {
        let shown = json(&mut old.gateway(&["follower", "show", "host1-data"]));
        let newest = old.points("data").last().expect("a point")["id"].clone();
        if shown["state"] == "following" && shown["holds"]["id"] == newest { Ok(()) } else { Err(shown) }
    });
    assert!(fs::read(&target).expect("the target") == disk(&old), "the target is not the newest point");
    run(&mut old.gateway(&["follower", "verify", "host1-data"]));
    let drill = Drill::start(&old, "host1/default", &old.path("drill"), &["--key", &keeper(&key(&old, "second.key"))]);
    let mut client = Client::connect(&drill.socket("data"), "data").expect("connected");
    let mut granule = [0; 4096];
    client.read(0, &mut granule).expect("read");
    assert_eq!(&granule[100..100 + MARKER.len()], MARKER);
    drop(client);
    drill.owner.stop();

    // The other site takes over: it has nothing of the key, and needs nothing.
    old.daemon.take().expect("it runs").kill();
    wait_until("the gateway to notice the silence", || {
        let output = old.gateway(&["failover", "host1/default", "--yes"]).output().expect("it starts");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    let mut new = old.another_host("host2", "200ms", 100);
    fs::rename(&target, new.backing("data")).expect("the disk is given to it");
    let file = new.path("host/farsided.toml");
    let toml = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, toml.replace("epoch_interval", "stand_in_for = \"host1\"\nepoch_interval")).expect("written");
    new.start_daemon();
    new.pair();
    run(&mut old.gateway(&["failover", "host1/default", "--stand-in", "host2"]));
    new.wait_for_state("data", "forked");
    run(new.farside().args(["volume", "resync", "data", "--accept", "forked"]));
    new.wait_quiet();
    write_markers(&new, "data", 8);
    new.wait_quiet();
    assert_eq!(encryption(&new)["mode"], "at-rest");

    // The old host is back, gets what differs, and takes its history back.
    old.start_daemon();
    old.wait_for_state("data", "fenced");
    let mut client = Client::connect(&old.tap("data"), "data").expect("connected");
    client.write(9 << 20, &[7; 4096], 0).expect("written");
    client.flush().expect("flushed");
    drop(client);
    assert!(disk(&old) != disk(&new));
    run(old.farside().args(["failback", "default", "--yes"]));
    wait_until("the old host to hold the newest point", || {
        let now = json(old.farside().args(["failback", "--list"]))[0].clone();
        let newest = old.points("data").last().expect("a point")["id"].clone();
        if now["stage"] == "following" && now["holds"]["id"] == newest { Ok(()) } else { Err(now.to_string()) }
    });
    assert!(disk(&old) == disk(&new), "the old host's disk is not the newest point");
    new.wait_quiet();
    new.daemon.take().expect("it runs").stop();
    run(old.farside().args(["failback", "default", "--finish"]));
    old.wait_quiet();
    check_restored(&old, &keeper(&key(&old, "first.key")));
    old.check_store();
    let store = old.store();
    assert!(with(&store, &[MARKER]).is_empty(), "the store holds something in clear");
    assert!(with(&old.path("host/state"), &[&group_key(&old)]).is_empty());

    // Its state is gone: it is the history again on a person's word, under the key that the history has.
    old.daemon.take().expect("it runs").kill();
    fs::remove_dir_all(old.path("host/state/volumes")).expect("removed");
    old.start_daemon();
    old.wait_for_state("data", "fenced");
    // The failover is over: nobody can tell what goes by that, so it is said twice.
    let once = old.farside().args(["volume", "resync", "data", "--accept", "fenced"]).output().expect("it starts");
    let words = String::from_utf8_lossy(&once.stderr).into_owned();
    assert!(once.status.code() == Some(4) && words.contains("no failover of host1/default is known here"), "{once:?}");
    assert!(words.contains("`farside rollback default --force`"), "{words}");
    run(old.farside().args(["rollback", "default", "--force", "--yes"]));
    old.wait_quiet();
    write_markers(&old, "data", 11);
    old.wait_quiet();
    assert!(with(&store, &[MARKER]).is_empty(), "it went on in clear");
    check_restored(&old, &keeper(&key(&old, "first.key")));
}
