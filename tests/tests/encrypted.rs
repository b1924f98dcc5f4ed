//! Volumes that are encrypted on their host: what leaves it, what the gateway can do without the key, and who restores with it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use farside_nbd::client::Client;
use farside_tests::markers::{self, MARKER, with};
use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, VolumeSpec, is_quiet, json, program, run, slot_of, wait_for, wait_until};
use serde_json::Value;

const BYTES: u64 = 24 << 20;

/// A site whose group is encrypted with a key file; nothing is started.
fn site() -> Site {
    let site = Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "200ms", 8);
    run(program("farside").args(["key", "new"]).arg(key(&site)));
    encrypt(&site, &key(&site));
    site
}

fn key(site: &Site) -> PathBuf {
    site.path("host/db.key")
}

fn configuration(site: &Site) -> PathBuf {
    site.path("host/farsided.toml")
}

fn encrypt(site: &Site, key: &Path) {
    let text = fs::read_to_string(configuration(site)).expect("read");
    let clear = text.lines().filter(|line| !line.starts_with("encryption = ") && !line.starts_with("key = "));
    let sealed = format!("[[group]]\nencryption = \"end-to-end\"\nkey = \"file:{}\"", key.display());
    let text: String = clear.map(|line| format!("{}\n", if line == "[[group]]" { &sealed } else { line })).collect();
    fs::write(configuration(site), text).expect("written");
}

/// The newest point there is.
fn newest(site: &Site) -> Option<u64> {
    site.points("data").last().map(slot_of)
}

fn write_markers(site: &Site) {
    markers::write(site, "data", BYTES, 1 << 20, 3);
}

/// The files below a directory that hold a marker, or the key file's bytes.
fn with_secrets(site: &Site, dir: &Path) -> Vec<PathBuf> {
    let key = fs::read(key(site)).expect("the key file");
    with(dir, &[MARKER, &key])
}

/// Whether the memory of a process holds it.
fn in_memory(pid: u32, secret: &[u8]) -> bool {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    maps.lines().filter(|line| line.contains(" rw")).any(|line| {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let at = |text| u64::from_str_radix(text, 16).expect("an address");
        let (mut at, end, mut piece) = (at(from), at(to), vec![0; 1 << 20]);
        while at < end {
            let bytes = piece.len().min((end - at) as usize);
            let read = memory.read_at(&mut piece[..bytes], at).unwrap_or(0);
            if read == 0 {
                break;
            }
            if piece[..read].windows(secret.len()).any(|window| window == secret) {
                return true;
            }
            // What lies across two pieces is found in the second.
            at += if read > secret.len() && at + (read as u64) < end { (read - secret.len()) as u64 } else { read as u64 };
        }
        false
    })
}

fn restore(site: &Site, to: &str, key: &[&str]) -> (Output, String, PathBuf) {
    let to = site.path(to);
    let mut command = site.farside_at_store(&["restore", "data", "--point", "latest", "--store"]);
    let output = command.arg("--to").arg(&to).args(key).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said, to)
}

/// Restored with the key it is what the host has.
fn check_restored(site: &Site, keeper: &str) {
    let (output, said, to) = restore(site, "restored.img", &["--key", keeper]);
    assert!(output.status.success(), "{said}");
    assert!(
        fs::read(&to).expect("restored") == fs::read(site.backing("data")).expect("the disk"),
        "the newest point is the volume"
    );
    fs::remove_file(to).expect("restored");
}

fn group(site: &Site) -> Value {
    site.status()["groups"][0].clone()
}

fn codes(of: &Value) -> Vec<String> {
    let reasons = of["reasons"].as_array().expect("reasons");
    reasons.iter().map(|reason| reason["code"].as_str().expect("a code").to_owned()).collect()
}

#[test]
fn what_leaves_the_host_is_read_with_its_key_and_by_nobody_else() {
    let mut site = site();
    site.start_all();
    write_markers(&site);
    site.wait_quiet();
    let keeper = format!("file:{}", key(&site).display());
    let encryption = group(&site)["encryption"].clone();
    let id = encryption["key"].as_str().expect("its id").to_owned();
    assert_eq!((encryption["mode"].as_str(), id.len()), (Some("end-to-end"), 32));

    // Neither files of the gateway nor its memory; the host's own disk shows that this would find it.
    assert!(with_secrets(&site, &site.path("gateway")).is_empty());
    assert!(with_secrets(&site, &site.path("host")).contains(&site.backing("data")));
    let gateway = site.receiver.as_ref().expect("it runs").pid();
    assert!(in_memory(gateway, b"host1"), "its memory can be read");
    assert!(!in_memory(gateway, MARKER));
    assert!(!in_memory(gateway, &fs::read(key(&site)).expect("the key")));
    for log in ["daemon.log", "receiver.log"] {
        assert!(!fs::read(site.path(log)).expect("a log").windows(MARKER.len()).any(|w| w == MARKER));
    }

    // With the key, with another one, without one.
    check_restored(&site, &keeper);
    let (output, said, to) = restore(&site, "none.img", &[]);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(&id) && said.contains("file (keys/0)") && said.contains("--key"), "{said}");
    assert!(!to.exists(), "nothing was begun");
    let other = site.path("other.key");
    run(program("farside").args(["key", "new"]).arg(&other));
    let (output, said, to) = restore(&site, "other.img", &["--key", &format!("file:{}", other.display())]);
    assert!(output.status.code() == Some(4) && said.contains("does not open the key") && !to.exists(), "{said}");
    let (output, said, _) = restore(&site, "other.img", &["--allow-damaged"]);
    assert!(output.status.code() == Some(4) && said.contains(&id), "damage is something else: {said}");
    // All at once: by whichever fits. That none does is no damage either.
    let of_store = |action: &str, keys: &[&Path], more: &[&str]| {
        let mut command = program("farside");
        command.args(["store", action]).arg(site.store()).args(more);
        command.args(keys.iter().map(|key| format!("--key=file:{}", key.display())));
        let output = command.output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let recovered = site.path("recovered").display().to_string();
    let (code, said) = of_store("recover", &[], &[]);
    assert!(code == Some(0) && said.contains("encrypted end-to-end") && said.contains("--key KEY"), "{said}");
    let (code, said) = of_store("recover", &[&other], &["--to", &recovered]);
    assert!(code == Some(4) && said.contains("no key that was given opens host1/default/data"), "{said}");
    let (code, said) = of_store("recover", &[&other, &key(&site)], &["--to", &recovered]);
    let image = site.path("recovered/host1/default/data.img");
    assert!(code == Some(0) && fs::read(image).expect("restored") == fs::read(site.backing("data")).expect("read"), "{said}");
    // † One flipped digit of a wrapped key loses all of it: a check says so, and does not call another key's store sound.
    let (code, said) = of_store("check", &[&other], &[]);
    assert!(code == Some(4) && !said.contains("every published point"), "{said}");
    let wrapped = site.store().join("groups/host1/default/keys/0");
    let whole = fs::read_to_string(&wrapped).expect("a wrapped key");
    let at = whole.find("\"wrapped\": \"").expect("there") + 12;
    let digit = if whole.as_bytes()[at] == b'1' { "2" } else { "1" };
    fs::write(&wrapped, format!("{}{digit}{}", &whole[..at], &whole[at + 1..])).expect("written");
    let (code, said) = of_store("check", &[], &[]);
    assert!(code == Some(6) && said.contains("it is damaged") && !said.contains("every published point"), "{said}");
    let (_, said, _) = restore(&site, "other.img", &["--key", &keeper]);
    assert!(said.contains("the wrapped key is damaged"), "{said}");
    fs::write(&wrapped, whole).expect("put back");
    assert_eq!(of_store("check", &[&key(&site)], &[]).0, Some(0));

    // What needs no key: structure, listing, and whether all is as it was published.
    site.check_store();
    assert!(!site.points("data").is_empty());
    run(site.farside().args(["volume", "verify", "data"]));
    let socket = site.path("gateway/api.sock");
    let mut verify = program("farside");
    let output = run(verify.arg("--socket").arg(&socket).args(["point", "verify", "latest", "--of", "data", "--json"]));
    let verified: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(verified["volumes"][0]["damaged_regions"], 0, "{verified}");
    // A reader that was written from the documents alone reads the ledger, and says what it cannot do.
    let reader = |more: &[&str]| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("independent/reader.py");
        let output = std::process::Command::new("/usr/bin/python3").arg(script).arg(site.store()).args(more).output();
        let output = output.expect("python3 is installed");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (done, said) = reader(&[]);
    assert!(done && said.contains("1 claim") && said.contains("point "), "{said}");
    let slot = slot_of(site.points("data").last().expect("a point")).to_string();
    let (done, said) = reader(&["host1/default/data", &slot, "-"]);
    assert!(!done && said.contains("it is encrypted") && !said.contains("Traceback"), "{said}");
    // And with the key everything else that reads.
    run(&mut site.farside_at_store(&["store", "check", "--key", &keeper]));
}

#[test]
fn a_restart_a_new_wrapping_and_a_gateway_that_was_away_change_nothing() {
    let mut site = site();
    site.start_all();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(7);
    client.steps(&mut rng, 200);
    client.flush();
    site.wait_quiet();
    drop(client);
    // Another file for the same key: kept beside the daemon, and handed to the gateway with the next connection.
    let (old, second) = (format!("file:{}", key(&site).display()), site.path("host/second.key"));
    run(program("farside").args(["key", "new"]).arg(&second));
    let second_keeper = format!("file:{}", second.display());
    let folder = site.path("host/state/keys/default");
    run(program("farside").args(["key", "wrap"]).arg(&folder).args(["--key", &old, "--with", &second_keeper]));
    site.daemon.take().expect("it runs").kill();
    encrypt(&site, &second);
    site.start_daemon();
    // Written while it is not connected, and compared by digests that the gateway cannot make.
    site.receiver.take().expect("it runs").kill();
    write_markers(&site);
    site.start_receiver();
    site.wait_quiet();
    site.daemon.take().expect("it runs").kill();
    site.start_daemon();
    site.wait_quiet();
    for keeper in [&old, &second_keeper] {
        check_restored(&site, keeper);
    }
    let output = run(program("farside").args(["key", "list", "--json"]).arg(site.store()));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().all(|wrapped| wrapped["volumes"][0] == "data" && wrapped["by"] == "file"), "{listed:?}");
    // A passphrase, on any machine that reads the store.
    let mut wrap = program("farside");
    wrap.env("FARSIDE_PASSPHRASE", "correct horse").args(["key", "wrap"]).arg(site.store());
    run(wrap.args(["--key", &old, "--with", "passphrase"]));
    let file = site.path("passphrase");
    fs::File::create(&file).and_then(|mut file| file.write_all(b"correct horse\n")).expect("written");
    check_restored(&site, &format!("passphrase:{}", file.display()));
    site.check_store();
}

/// The host is served in any case; what is to be encrypted does not go out until it can be, nor in clear because of a word.
#[test]
fn without_the_key_the_host_is_served_and_nothing_is_sent() {
    let mut site = site();
    site.start_all();
    write_markers(&site);
    site.wait_quiet();
    let newest = newest(&site);
    site.daemon.take().expect("it runs").kill();
    let away = site.path("away.key");
    fs::rename(key(&site), &away).expect("renamed");
    site.start_daemon();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    client.steps(&mut Rng(5), 50);
    client.flush();
    wait_for("the status to say that the key is missing", || {
        codes(&group(&site)).contains(&"key_missing".to_owned()).then_some(())
    });
    assert_eq!(group(&site)["encryption"]["key"], Value::Null);
    assert_eq!(self::newest(&site), newest, "nothing was sent");
    // It is asked for again by itself.
    fs::rename(&away, key(&site)).expect("renamed");
    wait_until("what was written meanwhile to follow", || is_quiet(site.status()));
    drop(client);
    check_restored(&site, &format!("file:{}", key(&site).display()));

    // The words are taken out of the configuration: nothing goes out in clear for that.
    site.daemon.take().expect("it runs").stop();
    let text = fs::read_to_string(configuration(&site)).expect("read");
    let clear: String =
        text.lines().filter(|l| !l.starts_with("encryption = ") && !l.starts_with("key = ")).map(|l| format!("{l}\n")).collect();
    fs::write(configuration(&site), clear).expect("written");
    site.start_daemon();
    wait_for("the status to say so", || codes(&group(&site)).contains(&"key_missing".to_owned()).then_some(()));
    write_markers(&site);
    assert!(with_secrets(&site, &site.path("gateway")).is_empty());
}

/// What a host boots with is there before who has its keys.
#[test]
fn a_volume_whose_key_comes_late_begins_as_soon_as_it_is_there() {
    let mut site = site();
    let away = site.path("away.key");
    fs::rename(key(&site), &away).expect("renamed");
    site.start_receiver();
    site.daemon = Some(site.spawn_daemon());
    wait_for("the status to say why it is not served", || {
        std::os::unix::net::UnixStream::connect(site.path("host/api.sock")).ok()?;
        site.status()["reasons"].to_string().contains("key of group default cannot be had").then_some(())
    });
    fs::rename(&away, key(&site)).expect("renamed");
    wait_for("it to be served", || std::os::unix::net::UnixStream::connect(site.tap("data")).ok());
    site.pair();
    write_markers(&site);
    site.wait_quiet();
    check_restored(&site, &format!("file:{}", key(&site).display()));
}

#[test]
fn a_volume_that_began_in_clear_never_becomes_an_encrypted_one() {
    let mut site = Site::with_volume(BYTES, "200ms", 8);
    write_markers(&site);
    site.wait_quiet();
    let newest = newest(&site);
    site.daemon.take().expect("it runs").stop();
    run(program("farside").args(["key", "new"]).arg(key(&site)));
    encrypt(&site, &key(&site));
    site.start_daemon();
    wait_for("the status to say so", || {
        let reasons = group(&site)["reasons"].to_string();
        (reasons.contains("key_missing") && reasons.contains("began") || reasons.contains("begun without encryption"))
            .then_some(())
    });
    assert_eq!(self::newest(&site), newest);

    // Nor with a state directory that knows nothing of it: the ledger does.
    site.daemon.take().expect("it runs").stop();
    fs::remove_dir_all(site.path("host/state/volumes")).expect("removed");
    site.start_daemon();
    wait_for("the volume to be refused", || {
        let said = codes(&site.volume_status("data"));
        said.iter().any(|code| code == "key_differs" || code == "forked").then_some(())
    });
    assert_eq!(self::newest(&site), newest);
}

fn disk(site: &Site) -> Vec<u8> {
    fs::read(site.backing("data")).expect("a disk")
}

fn follower(site: &Site) -> Value {
    json(&mut site.gateway(&["follower", "show", "host1-data"]))
}

/// What it says when it fails.
fn refused(command: &mut std::process::Command) -> String {
    let output = command.output().expect("it starts");
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until the old host's disk is the newest point.
fn follows(old: &Site) {
    wait_until("the old host to hold the newest point", || {
        let now = json(old.farside().args(["failback", "--list"]))[0].clone();
        let newest = old.points("data").last().expect("a point")["id"].clone();
        if now["stage"] == "following" && now["holds"]["id"] == newest { Ok(()) } else { Err(now.to_string()) }
    });
}

/// Only who was given the key reads the content; then it is followed, stood in for, handed over and brought back as any other, and the store and
/// what goes over the line stay encrypted.
#[test]
fn a_gateway_that_was_given_the_key_does_what_it_does_for_others() {
    let mut old = site();
    old.start_all();
    write_markers(&old);
    old.wait_quiet();
    let target = old.path("standby.img");
    let add = |site: &Site| site.gateway(&["follower", "add", "host1/default/data", target.to_str().expect("text")]);

    // Without it everything says what is wanted, and nothing is begun.
    let said = refused(&mut add(&old));
    assert!(said.contains("[[key]]") && !target.exists(), "{said}");
    let said = refused(old.farside().args(["cutover", "default", "--yes"]));
    assert!(said.contains("[[key]]") && said.contains("key_missing"), "{said}");
    assert!(json(old.farside().args(["cutover", "--list"])).as_array().expect("a list").is_empty());

    // Another key opens nothing; the one that does is taken up while it runs, and let go of.
    let other = old.path("other.key");
    run(program("farside").args(["key", "new"]).arg(&other));
    let file = old.path("gateway/receiver.d/keys.toml");
    fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
    let give = |site: &Site, key: Option<&Path>| {
        let entry = |key: &Path| format!("[[key]]\nof = \"host1/default\"\nkey = \"file:{}\"\n", key.display());
        fs::write(&file, key.map(entry).unwrap_or_default()).expect("written");
        run(&mut site.gateway(&["reload"]));
    };
    give(&old, Some(&other));
    let said = refused(&mut add(&old));
    assert!(said.contains("does not open the key") && said.contains("file (keys/0)"), "{said}");
    give(&old, Some(&key(&old)));
    run(&mut add(&old));
    let is_following = |site: &Site| {
        wait_until("the follower to follow", || {
            let shown = follower(site);
            let newest = site.points("data").last().expect("a point")["id"].clone();
            if shown["state"] == "following" && shown["holds"]["id"] == newest { Ok(()) } else { Err(shown) }
        });
    };
    is_following(&old);
    give(&old, None);
    wait_until("the follower to say what it lacks", || {
        let shown = follower(&old);
        let is_said = shown["state"] == "failed" && shown["reasons"].to_string().contains("[[key]]");
        if is_said { Ok(()) } else { Err(shown) }
    });
    give(&old, Some(&key(&old)));
    is_following(&old);
    assert!(fs::read(&target).expect("the target") == disk(&old), "the target is not the newest point");
    run(&mut old.gateway(&["follower", "verify", "host1-data"]));

    // Handed over, and given up again.
    run(old.farside().args(["cutover", "default", "--yes"]));
    let mut abort = old.farside();
    run(abort.args(["cutover", "default", "--abort"]));
    wait_for("its tap", || Client::connect(&old.tap("data"), "data").ok());
    old.wait_quiet();

    // The other site takes over.
    old.daemon.take().expect("it runs").kill();
    wait_until("the gateway to notice the silence", || {
        let output = old.gateway(&["failover", "host1/default", "--yes"]).output().expect("it starts");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    });
    let mut new = old.another_host("host2", "200ms", 100);
    encrypt(&new, &key(&old));
    fs::rename(&target, new.backing("data")).expect("the disk is given to it");
    let file = new.path("host/farsided.toml");
    let toml = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, toml.replace("epoch_interval", "stand_in_for = \"host1\"\nepoch_interval")).expect("written");
    new.daemon = Some(new.spawn_daemon());
    // A key of its own would be of no use.
    wait_until("it to ask for the key of the group", || {
        let status = std::panic::catch_unwind(|| new.status().to_string()).unwrap_or_default();
        if status.contains("farside key copy") { Ok(()) } else { Err(status) }
    });
    let folder = new.path("host/state/keys/default");
    assert!(!folder.join("0").exists(), "a key was drawn");
    new.daemon.take().expect("it runs").kill();
    let mut copy = program("farside");
    copy.args(["key", "copy"]).arg(old.store()).args(["--of", "host1/default", "--to"]).arg(&folder);
    run(&mut copy);
    let again = run(&mut copy);
    assert!(String::from_utf8_lossy(&again.stdout).contains("has all of them"), "{again:?}");
    // Not beside the key of something else, which would be taken for it.
    let strange = new.path("strange");
    fs::create_dir(&strange).expect("mkdir");
    let kept = fs::read_to_string(folder.join("0")).expect("just copied");
    let id = kept.split('"').skip_while(|word| *word != "key").nth(2).expect("its id").to_owned();
    fs::write(strange.join("0"), kept.replace(&id, &"0".repeat(32))).expect("written");
    let mut copy = program("farside");
    copy.args(["key", "copy"]).arg(old.store()).args(["--of", "host1/default", "--to"]).arg(&strange);
    let said = refused(&mut copy);
    assert!(said.contains("is none of group") && !strange.join("1").exists(), "{said}");
    new.start_daemon();
    new.pair();
    run(&mut old.gateway(&["failover", "host1/default", "--stand-in", "host2"]));
    new.wait_for_state("data", "forked");
    run(new.farside().args(["volume", "resync", "data", "--accept", "forked"]));
    new.wait_quiet();
    let mut client = Client::connect(&new.tap("data"), "data").expect("connected");
    for at in [0, 5 << 20, BYTES - 4096] {
        let mut granule = MARKER.repeat(4096 / MARKER.len() + 1);
        granule.truncate(4096);
        client.write(at, &granule, 0).expect("written");
    }
    client.flush().expect("flushed");
    drop(client);
    new.wait_quiet();

    // The old host is back, gets what differs, and takes its history back.
    old.start_daemon();
    old.wait_for_state("data", "fenced");
    let mut client = Client::connect(&old.tap("data"), "data").expect("connected");
    client.write(9 << 20, &[7; 4096], 0).expect("written");
    client.flush().expect("flushed");
    drop(client);
    assert!(disk(&old) != disk(&new));
    give(&old, Some(&other));
    let said = refused(old.farside().args(["failback", "default", "--yes"]));
    assert!(said.contains("[[key]]"), "{said}");
    give(&old, Some(&key(&old)));
    run(old.farside().args(["failback", "default", "--yes"]));
    follows(&old);
    assert!(disk(&old) == disk(&new), "the old host's disk is not the newest point");
    let branches = json(old.farside().args(["branch", "list"]));
    assert_eq!((branches[0]["whole"].as_bool(), branches.as_array().map(Vec::len)), (Some(true), Some(1)), "{branches}");
    new.wait_quiet();
    new.daemon.take().expect("it runs").stop();
    run(old.farside().args(["failback", "default", "--finish"]));
    old.wait_quiet();
    check_restored(&old, &format!("file:{}", key(&old).display()));
    old.check_store();
    assert!(with_secrets(&old, &old.path("gateway")).is_empty(), "the store holds something in clear");
}
