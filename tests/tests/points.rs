//! What an operator does with points and with a damaged store: pin, verify, restore again after a kill, repair.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use farside_tests::verify::{Rng, Verifier, write_noise};
use farside_tests::{Site, VolumeSpec, program, run, slot_of, wait_for};
use serde_json::Value;

const BYTES: u64 = 48 << 20;

fn output(command: &mut Command) -> (i32, String, Value) {
    let Output { status, stdout, stderr } = command.stdin(std::process::Stdio::null()).output().expect("it starts");
    let json = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
    (status.code().expect("not killed"), String::from_utf8_lossy(&stderr).into_owned(), json)
}

/// Writes, and waits until a point holds it.
fn write(site: &Site, client: &mut Verifier, rng: &mut Rng, requests: u64) -> u64 {
    slot_of(&site.point_after("data", || {
        client.steps(rng, requests);
        client.flush();
    }))
}

/// A segment of the newest point that is used from end to end: no later layer covers what the newest one holds.
fn newest_segment(site: &Site) -> PathBuf {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let place = |path: &PathBuf| {
        let parts: Vec<&str> = path.iter().rev().take(2).map(|part| part.to_str().expect("a name")).collect();
        let (seq, _) = parts[0].split_once('.').expect("<seq>.<part>");
        (number(parts[1]), number(seq), fs::metadata(path).map_or(0, |file| file.len()))
    };
    // Those of merges have terms that no claim has.
    site.segments("data").into_iter().filter(|path| place(path).0 < 1 << 63).max_by_key(place).expect("there are segments")
}

#[test]
fn a_pinned_point_outlives_retention_and_damage_is_named_by_verify() {
    let mut site = Site::with_volume(BYTES, "100ms", 2);
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(7));
    let pinned = write(&site, &mut client, &mut rng, 400);
    let id = pinned.to_string();
    let of = ["--of", "default", "--json"];
    let (code, text, point) = output(site.gateway(&["point", "pin", &id, "--reason", "before the upgrade"]).args(of));
    assert_eq!((code, &point["pins"][0]["reason"]), (0, &Value::from("before the upgrade")), "{text}");
    let again = output(site.gateway(&["point", "pin", &id, "--reason", "before the upgrade"]).args(of)).2;
    assert_eq!(again["pins"].as_array().map(Vec::len), Some(1), "{again}");
    let (code, text, _) = output(&mut site.gateway(&["point", "pin", "999999", "--of", "default"]));
    assert_eq!(code, 5, "{text}");
    // farsided is asked, and says where this is done.
    let (code, text, _) = output(site.farside().args(["point", "pin", &id, "--of", "default"]));
    assert!(code == 4 && text.contains("gateway"), "{text}");

    for _ in 0..4 {
        write(&site, &mut client, &mut rng, 20);
    }
    wait_for("the others to be pruned", || (site.points("data").len() == 3).then_some(()));
    assert_eq!(slot_of(&site.points("data")[0]), pinned);

    // By whom they are listed makes no difference.
    let store = site.store();
    let at_store = || {
        let mut command = program("farside");
        command.args(["point", "list", "data", "--store"]).arg(&store);
        command
    };
    let asked = |mut command: Command| {
        command.args(["point", "list", "data"]);
        command
    };
    for list in [&at_store as &dyn Fn() -> Command, &|| asked(site.gateway(&[])), &|| asked(site.farside())] {
        let slots = |more: &[&str]| -> Vec<u64> {
            let (code, text, listed) = output(list().arg("--json").args(more));
            assert_eq!(code, 0, "{text}");
            listed.as_array().expect("a list").iter().map(slot_of).collect()
        };
        let all = slots(&[]);
        assert_eq!((all.len(), all[2], all.is_sorted_by(|a, b| a > b)), (3, pinned, true));
        assert_eq!((slots(&["--limit", "2"]), slots(&["--since", "-1d"])), (all[..2].to_vec(), all));
        assert_eq!((slots(&["--pinned"]), slots(&["--reason", "THE upgrade"])), (vec![pinned], vec![pinned]));
        assert_eq!((slots(&["--until", "-1d"]), slots(&["--reason", "no such reason"])), (vec![], vec![]));
        let text = String::from_utf8(run(list().args(["--limit", "1"])).stdout).expect("text");
        assert!(text.contains("the newest 1 of 3 recovery points"), "{text}");
    }

    let (code, text, verified) = output(site.gateway(&["point", "verify", &id]).args(of));
    assert_eq!((code, &verified["state"]["is"]), (0, &Value::from("done")), "{text}");
    assert_eq!((&verified["done_bytes"], &verified["total_bytes"]), (&Value::from(BYTES), &Value::from(BYTES)), "{verified}");
    let (code, text, _) = output(site.gateway(&["point", "unpin", &id]).args(of));
    assert_eq!(code, 0, "{text}");
    write(&site, &mut client, &mut rng, 20);
    wait_for("the unpinned point to go", || (slot_of(&site.points("data")[0]) != pinned).then_some(()));

    let file = newest_segment(&site);
    let mut bytes = fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("write");
    let newest = slot_of(site.points("data").last().expect("points")).to_string();
    let segment = file.strip_prefix(site.store()).expect("in the store").display().to_string();
    let offline = |site: &Site| {
        let mut command = program("farside");
        command.args(["point", "verify", "latest", "--of", "data", "--json", "--store"]).arg(site.store());
        output(&mut command)
    };
    let (code, text, here) = offline(&site);
    assert!(code == 6 && here["volumes"][0]["damage"][0]["segment"] == segment.as_str(), "{text} {here}");
    assert!(text.contains(&format!("point {newest}-")), "{text}");
    let (code, text, there) = output(&mut site.gateway(&["point", "verify", "latest", "--of", "data", "--json"]));
    assert_eq!((code, &there["volumes"]), (6, &here["volumes"]), "{text}");
    let shown = site.gateway(&["point", "verify", "latest", "--of", "data"]).output().expect("it starts");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let region = here["volumes"][0]["damage"][0]["region"].as_u64().expect("a number");
    assert!(shown.contains("volume data") && shown.contains(&format!("region {region} ")) && shown.contains(&segment), "{shown}");
    site.daemon.take().expect("it runs").stop();
}

/// The points of a second thin out to one, and those of four seconds as they grow older; none of these is ever without one.
#[test]
fn points_thin_out_by_the_grid_that_the_host_says() {
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec], "100ms", 1);
    let rules = "every 1s keep 4s, every 4s keep 1h";
    let (file, span) = (site.path("host/farsided.toml"), "span = \"0s\"\n");
    let toml = fs::read_to_string(&file).expect("read");
    assert!(toml.contains(span), "{toml}");
    fs::write(&file, toml.replace(span, &format!("{span}grid = \"{rules}\"\n"))).expect("write");
    site.prune_at_once();
    site.start_all();
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(11));

    const CELL_MS: u64 = 4000;
    let time = |point: &Value| point["ledger_time_ms"].as_u64().expect("a number");
    // The ledger time of every point that was ever seen.
    let mut seen = BTreeMap::new();
    let left = wait_for("points to thin out", || {
        write(&site, &mut client, &mut rng, 5);
        let left: BTreeMap<u64, u64> = site.points("data").iter().map(|p| (slot_of(p), time(p))).collect();
        seen.extend(left.iter().map(|(slot, t)| (*slot, *t)));
        let count = |points: &BTreeMap<u64, u64>, cell| points.values().filter(|t| *t / CELL_MS == cell).count();
        let thinned = |cell: &u64| count(&left, *cell) == 1 && count(&seen, *cell) > 2;
        ((0..seen.values().max().expect("points") / CELL_MS).filter(thinned).count() >= 2).then_some(left)
    });
    let mut firsts: BTreeMap<u64, u64> = BTreeMap::new();
    seen.iter().for_each(|(slot, t)| _ = firsts.entry(t / CELL_MS).or_insert(*slot));
    assert!(firsts.values().all(|slot| left.contains_key(slot)), "the first of a cell is gone: {seen:?} {left:?}");
    assert!(left.contains_key(seen.keys().next_back().expect("points")), "the newest is gone");

    let (code, text, _) =
        output(site.farside().args(["group", "set", "default", "--grid", "every 4s keep 1h, every 1s keep 2h"]));
    assert!(code == 2 && text.contains("rule 2, `every 1s keep 2h`, is not coarser"), "{code} {text}");
    let (code, text, group) = output(site.farside().args(["group", "set", "default", "--keep", "3", "--json"]));
    assert_eq!((code, &group["grid"]), (0, &Value::from(rules)), "{text}");
    let status = site.farside().arg("status").output().expect("it starts");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(&format!("group default keeps of older points: {rules}")), "{status}");
    let (code, text, group) = output(site.farside().args(["group", "set", "default", "--grid", "none", "--json"]));
    assert_eq!((code, &group["grid"]), (0, &Value::from("none")), "{text}");
    wait_for("all but the newest three to go", || {
        write(&site, &mut client, &mut rng, 5);
        (site.points("data").len() <= 4).then_some(())
    });
    site.daemon.take().expect("it runs").stop();
}

#[test]
fn a_killed_restore_goes_on_where_it_was_and_mends_any_file() {
    let mut site = Site::with_volume(BYTES, "100ms", 8);
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(3));
    write(&site, &mut client, &mut rng, 1500);
    site.daemon.take().expect("it runs").stop();
    let wanted = fs::read(site.backing("data")).expect("read");
    let to = site.path("out.img");
    let partial = site.path("out.img.farside-partial");
    let restore = |more: &[&str]| {
        let mut command = program("farside");
        command
            .args(["restore", "data", "--point", "latest", "--json", "--store"])
            .arg(site.store())
            .arg("--to")
            .arg(&to)
            .args(more);
        command
    };
    let mut child = restore(&[]).stdout(std::process::Stdio::null()).spawn().expect("it starts");
    wait_for("the restore to begin", || (partial.exists() || to.exists()).then_some(()));
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    let left = |path: &Path| path.exists();
    assert!(left(&partial) || left(&to));
    run(&mut restore(&["--resume"]));
    assert!(fs::read(&to).expect("read") == wanted && !left(&partial));

    // A wholly different file, and one that differs in a byte.
    fs::write(&to, vec![0xee; BYTES as usize / 3]).expect("write");
    let (code, text, _) = output(&mut restore(&[]));
    assert!(code == 4 && text.contains("--force"), "{text}");
    run(&mut restore(&["--resume"]));
    let mut bytes = fs::read(&to).expect("read");
    assert!(bytes == wanted);
    bytes[BYTES as usize - 1] ^= 1;
    fs::write(&to, &bytes).expect("write");
    let (code, text, restored) = output(&mut restore(&["--resume"]));
    // The granule, and the first region, which was away meanwhile.
    assert_eq!((code, restored["kept_bytes"].as_u64()), (0, Some(BYTES - 4096 - (4 << 20))), "{text} {restored}");
    assert!(fs::read(&to).expect("read") == wanted);
}

#[test]
fn a_torn_record_is_voided_after_asking_and_the_chain_goes_on() {
    let mut site = Site::with_volume(BYTES, "100ms", 8);
    let (mut client, mut rng) = (Verifier::new(&site.tap("data"), BYTES), Rng(5));
    write(&site, &mut client, &mut rng, 200);
    let last = write(&site, &mut client, &mut rng, 20);
    let store = site.store();
    let repair = |more: &[&str]| {
        let mut command = program("farside");
        command.args(["store", "repair"]).arg(&store).args(more);
        output(&mut command)
    };
    let (code, text, _) = repair(&["--yes"]);
    assert!(code == 4 && text.contains("stop farside-receiver"), "{text}");
    site.receiver.take().expect("it runs").stop();
    let (code, text, _) = repair(&[]);
    assert_eq!(code, 0, "nothing to repair: {text}");
    let ledger = site.store().join("groups/host1/default/ledger/0");
    let record = ledger.join(last.to_string());
    let bytes = fs::read(&record).expect("read");
    // Of its own bytes, which come before what it repeats.
    fs::write(&record, &bytes[..100]).expect("tear");
    site.start_receiver();
    let status = wait_for("the receiver to say so", || {
        let status = output(&mut site.gateway(&["status", "--json"])).2;
        status.to_string().contains("ledger_torn").then(|| status.to_string())
    });
    assert!(status.contains("farside store repair"), "it names the way out: {status}");
    let (code, text, _) = output(&mut site.gateway(&["point", "list", "data"]));
    assert!(code == 0 && text.contains("newer than what is shown") && text.contains("farside store repair"), "{text}");
    site.receiver.take().expect("it runs").stop();
    // What is shown as the newest is not, and whoever takes it for that is told.
    for command in [&["point", "list", "data"][..], &["point", "show", "latest", "--of", "data"]] {
        let (code, text, _) = output(&mut site.farside_at_store(&[command, &["--store"]].concat()));
        assert!(code == 6 && text.contains("newer than what is shown") && text.contains("farside store repair"), "{text}");
    }

    let (code, text, _) = repair(&[]);
    assert!(code == 4 && text.contains("--yes"), "it asks: {text}");
    let (code, text, done) = repair(&["--yes", "--json"]);
    assert_eq!((code, done[0]["voided"][0].as_u64()), (0, Some(last)), "{text} {done}");
    site.check_store();
    site.start_receiver();
    wait_for("the source to see that points are gone", || {
        (site.volume_status("data")["state"]["state"] == "target_rewound").then_some(())
    });
    run(site.farside().args(["volume", "resync", "data", "--accept", "rewound"]));
    let newer = write(&site, &mut client, &mut rng, 20);
    assert!(newer > last);
    let to = site.path("out.img");
    site.daemon.take().expect("it runs").stop();
    site.restore("data", "latest", &to);
    assert!(fs::read(&to).expect("read") == fs::read(site.backing("data")).expect("read"));
    site.check_store();
}

/// The store and nothing else: no daemon, no configuration.
#[test]
fn everything_in_a_store_is_listed_and_recovered_at_once() {
    let spec = |name: &str| VolumeSpec { name: name.into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec("data"), spec("log")], "100ms", 8);
    site.start_all();
    for volume in ["data", "log"] {
        let (mut client, mut rng) = (Verifier::new(&site.tap(volume), BYTES), Rng(volume.len() as u64));
        site.point_after(volume, || {
            client.steps(&mut rng, 300);
            client.flush();
        });
    }
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
    let farside = |args: &[&str]| {
        let mut command = program("farside");
        command.env_clear().args(args);
        command
    };
    let store = site.store().display().to_string();
    let (code, text, listed) = output(&mut farside(&["store", "recover", &store, "--json"]));
    let names: Vec<&str> = listed["volumes"].as_array().expect("a list").iter().filter_map(|v| v["volume"].as_str()).collect();
    assert_eq!((code, names), (0, vec!["host1/default/data", "host1/default/log"]), "{text} {listed}");
    assert_eq!(listed["volumes"][0]["volume_bytes"], BYTES, "{listed}");

    // A group that lost what only says who it is, is named and listed; one that lost its ledger is named.
    let (mine, group) = (site.path("mine"), site.store().join("groups/host1/default"));
    for lost in ["group.json", "ledger"] {
        fs::rename(group.join(lost), &mine).expect("moved");
        let (code, text, listed) = output(&mut farside(&["store", "recover", &store, "--json"]));
        assert!(code == 6 && format!("{text} {listed}").contains(lost), "{lost}: {text} {listed}");
        assert_eq!(listed["volumes"].as_array().map_or(0, Vec::len), if lost == "ledger" { 0 } else { 2 }, "{text} {listed}");
        fs::rename(&mine, group.join(lost)).expect("moved back");
    }

    let to = site.path("recovered");
    let file = |volume: &str| to.join(format!("host1/default/{volume}.img"));
    let recover = ["store", "recover", &store, "--to", to.to_str().expect("UTF-8"), "--json"];
    let mut child = farside(&recover).stdout(std::process::Stdio::null()).spawn().expect("it starts");
    wait_for("something to be restored", || (to.join("host1/default").exists()).then_some(()));
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    let (code, text, done) = output(&mut farside(&recover));
    assert_eq!(code, 0, "{text} {done}");
    for volume in ["data", "log"] {
        assert!(fs::read(file(volume)).expect("read") == fs::read(site.backing(volume)).expect("read"), "{volume}");
    }
    // What is complete stays as it is, whatever it holds by now; and what is missing comes from the same moment, though there is a newer one.
    fs::write(file("log"), b"mine").expect("write");
    let before = fs::read(file("data")).expect("read");
    fs::remove_file(file("data")).expect("remove");
    site.start_receiver();
    site.start_daemon();
    site.point_after("data", || {
        write_noise(&site.tap("data"), BYTES, 77, 300);
    });
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
    let (code, text, done) = output(&mut farside(&recover));
    assert_eq!((code, done["kept"].as_array().map(Vec::len)), (0, Some(1)), "{text} {done}");
    assert_eq!(fs::read(file("log")).expect("read"), b"mine");
    assert!(fs::read(file("data")).expect("read") == before, "the point that was begun with");
    assert!(fs::read(site.backing("data")).expect("read") != before, "there is a newer one");
    // Until retention gives that moment up; it says so, and not that something is damaged.
    fs::remove_file(file("data")).expect("remove");
    let begun = fs::read_to_string(to.join("recover.json")).expect("read");
    let begun: Value = serde_json::from_str(&begun).expect("JSON");
    let begun = begun["volumes"]["host1/default/data"]["point"].as_str().expect("a point").to_owned();
    site.start_receiver();
    site.start_daemon();
    let mut round = 100;
    // (Of the newest eight it is none before long.)
    while round < 200 && site.points("data").iter().any(|point| point["id"] == begun.as_str()) {
        round += 1;
        site.point_after("data", || {
            write_noise(&site.tap("data"), BYTES, round, 3);
        });
    }
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
    let (code, text, done) = output(&mut farside(&recover));
    assert!(code == 5 && text.contains(&format!("retention gave up point {begun}")), "{code} {text} {done}");
    assert_eq!(done["kept"].as_array().map(Vec::len), Some(1), "{text} {done}");
    // Of which point a file is must be known.
    fs::write(file("data"), before).expect("write");
    fs::remove_file(to.join("recover.json")).expect("remove");
    let (code, text, done) = output(&mut farside(&recover));
    assert_eq!((code, done["obstacles"].as_array().map(Vec::len)), (6, Some(2)), "{text} {done}");

    // One that is damaged is named, and the other comes all the same.
    fs::remove_dir_all(&to).expect("remove");
    let segment = newest_segment(&site);
    let mut bytes = fs::read(&segment).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).expect("write");
    let (code, text, done) = output(&mut farside(&recover));
    assert_eq!((code, &done["obstacles"][0]["what"]), (6, &Value::from("host1/default/data")), "{text} {done}");
    assert!(fs::read(file("log")).expect("read") == fs::read(site.backing("log")).expect("read") && !file("data").exists());
    let (code, text, done) = output(farside(&recover).args(["--allow-damaged", "--only", "default/data"]));
    assert!(code == 6 && file("data").exists(), "{text} {done}");
    // What is in part zeroes never passes for whole.
    let (code, text, done) = output(&mut farside(&recover));
    let said = done["obstacles"][0]["message"].as_str().unwrap_or_default();
    assert!(code == 6 && said.contains("of zeroes where the store has lost"), "{text} {done}");
    assert_eq!(output(farside(&["store", "recover", &store]).args(["--only", "nothing"])).0, 5);

    let stream = farside(&["restore", "log", "--point", "latest", "--to", "-", "--store", &store]).output().expect("it starts");
    assert!(stream.status.success() && stream.stdout == fs::read(site.backing("log")).expect("read"));
    assert!(String::from_utf8_lossy(&stream.stderr).contains("standard output"));
    let stream = farside(&["restore", "data", "--point", "latest", "--to", "-", "--store", &store]).output().expect("it starts");
    let whole = fs::read(site.backing("data")).expect("read");
    assert!(stream.status.code() == Some(6) && stream.stdout.len() < whole.len() && whole.starts_with(&stream.stdout));
}
