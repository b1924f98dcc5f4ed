//! A reader in another language that was written from `docs/formats` alone (`tests/independent`) restores what was written, and
//! refuses by name what is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use farside_ledger::{
    Body, Decree, LayerKind, Layers, Record, Unpin, Verdict, Verified, VerifiedHow, decode_object, encode_object,
    may_repeat_others, volume_id,
};
use farside_nbd::client::Client;
use farside_region::{MergeId, Seq, Slot};
use farside_tests::verify::Rng;
use farside_tests::{Site, VolumeSpec, program, run, slot_of, wait_for};

/// The last granule is short.
const BYTES: usize = (10 << 20) + 2560;
const GROUP: &str = "groups/host1/default";
/// A checkpoint covers so many slots.
const SLOTS: u64 = 4096;

/// What the host writes, and what the volume holds at each point.
struct Host {
    client: Client,
    holds: Vec<u8>,
    points: BTreeMap<u64, Vec<u8>>,
}

impl Host {
    fn write(&mut self, at: usize, data: &[u8]) {
        self.client.write(at as u64, data, 0).expect("written");
        self.holds[at..at + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, at: usize, bytes: usize) {
        self.client.write_zeroes(at as u64, bytes as u32, 0).expect("zeroed");
        self.holds[at..at + bytes].fill(0);
    }

    /// Gives the slot of the point that holds these writes.
    fn point(&mut self, site: &Site, writes: impl FnOnce(&mut Self)) -> u64 {
        let slot = slot_of(&site.point_after("data", || {
            writes(self);
            self.client.flush().expect("flushed");
        }));
        self.points.insert(slot, self.holds.clone());
        slot
    }
}

fn text(bytes: usize) -> Vec<u8> {
    b"the quick brown fox ".iter().copied().cycle().take(bytes).collect()
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..bytes).map(|_| rng.draw() as u8).collect()
}

/// The reader, with the store of a folder: what it printed and, if it refused, what it said.
fn reader(store: &Path, more: &[&str]) -> (String, Option<String>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("independent/reader.py");
    let output = Command::new("/usr/bin/python3").arg(script).arg(store).args(more).output().expect("python3 is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("Traceback"), "{said}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), (!output.status.success()).then_some(said))
}

/// The points that the reader finds.
fn listed(store: &Path) -> Vec<u64> {
    let lines = reader(store, &[]).0;
    lines.lines().filter_map(|l| l.strip_prefix("point ")?.split(' ').next()?.parse().ok()).collect()
}

/// The image that the reader restores, or why it does not.
fn restored(store: &Path, slot: u64) -> Result<Vec<u8>, String> {
    let to = store.with_extension("img");
    match reader(store, &["host1/default/data", &slot.to_string(), to.to_str().expect("text")]).1 {
        Some(refused) => Err(refused),
        None => {
            let image = fs::read(&to).expect("restored");
            fs::remove_file(&to).expect("restored");
            Ok(image)
        }
    }
}

/// The records of a store, by slot.
fn records(store: &Path) -> Vec<Record> {
    let file = |slot: u64| store.join(GROUP).join(format!("ledger/{}/{slot}", slot / SLOTS));
    let files = (0..).map(file).take_while(|file| file.exists());
    files
        .flat_map(|file| decode_object(&fs::read(file).expect("a record")).expect("a record"))
        .map(|(record, _)| record)
        .collect()
}

/// Puts a record after the newest one.
fn append(store: &Path, last: &Record, body: Body) -> Record {
    let digest = last.encode().expect("it was read").digest;
    let record = Record { slot: last.slot.next(), prev: digest, body, ..last.clone() };
    let slot = record.slot.0;
    let folder = store.join(GROUP).join(format!("ledger/{}", slot / SLOTS));
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(slot.to_string()), record.encode().expect("small").bytes).expect("written");
    record
}

fn copy(site: &Site, name: &str) -> PathBuf {
    let to = site.path(name);
    run(Command::new("cp").arg("-a").arg(site.store()).arg(&to));
    to
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).expect("read");
    bytes[at] ^= 4;
    fs::write(file, bytes).expect("written");
}

/// The segment of the newest layer.
fn newest_segment(site: &Site) -> PathBuf {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).expect("a number");
    let place = |path: &PathBuf| {
        let term = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        (number(term), number(path.file_stem().and_then(|name| name.to_str())))
    };
    site.segments("data").into_iter().max_by_key(place).expect("there are segments")
}

/// A volume with zeroes, holes, text and noise, six points, a restart of the host between them, and retention that has let go
/// of the second and of what only it held. Both processes have ended.
fn history() -> (Site, Host) {
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES as u64, group: "default".into() };
    let mut site = Site::new(&[spec], "100ms", 2);
    site.prune_at_once();
    site.start_all();
    let connect = |site: &Site| Client::connect(&site.tap("data"), "").expect("connected");
    let mut host = Host { client: connect(&site), holds: vec![0; BYTES], points: BTreeMap::new() };
    let pin = |site: &Site, slot: u64| {
        let mut farside = program("farside");
        farside.arg("--socket").arg(site.path("gateway/api.sock"));
        run(farside.args(["point", "pin", &slot.to_string(), "--of", "default", "--reason", "a test"]));
    };

    let first = host.point(&site, |host| {
        host.write(0, &text(3 << 19));
        host.write(2 << 20, &noise(1 << 20, 1));
        host.write(3 << 20, &vec![0; 1 << 18]);
        host.write(BYTES - 5120, &noise(5120, 2));
    });
    pin(&site, first);
    let second = host.point(&site, |host| host.write(5 << 20, &noise(1 << 18, 3)));
    site.daemon.take().expect("it runs").stop();
    site.start_daemon();
    host.client = connect(&site);
    let third = host.point(&site, |host| {
        host.write(5 << 20, &text(1 << 18));
        host.zero((2 << 20) + 512, 100 << 10);
        (0..40).for_each(|i| host.write(i * 50 * 512, &noise(512, i as u64)));
    });
    pin(&site, third);
    host.point(&site, |host| host.write(BYTES - 512, &text(512)));
    host.point(&site, |host| host.write(6 << 20, &noise(200 << 10, 4)));
    let is_gone = || site.points("data").iter().all(|point| slot_of(point) != second);
    wait_for("the second point to go", || is_gone().then_some(()));
    // What only it held goes when another record has come.
    host.point(&site, |host| host.write(7 << 20, &noise(4 << 10, 5)));
    wait_for("what it held to go", || {
        let segments = site.segments("data").len();
        let parts: usize = records(&site.store()).iter().map(parts_of).sum();
        (segments < parts).then_some(())
    });
    site.daemon.take().expect("it runs").stop();
    site.receiver.take().expect("it runs").stop();
    (site, host)
}

fn parts_of(record: &Record) -> usize {
    match &record.body {
        Body::Layers(layers) => layers.members.iter().map(|member| member.parts.len()).sum(),
        _ => 0,
    }
}

#[test]
fn the_documents_are_enough_to_restore_every_point() {
    let (site, host) = history();
    let store = site.store();
    let (lines, refused) = reader(&store, &[]);
    assert!(refused.is_none() && lines.contains(&format!("volume host1/default/data: {BYTES} bytes")), "{refused:?} {lines}");
    let counted = lines.lines().find(|line| line.starts_with("records")).expect("a line");
    assert!(counted.contains(" 2 claim,") && counted.contains(" 2 pin,") && counted.contains(" prune"), "{lines}");

    let points: Vec<u64> = site.points("data").iter().map(slot_of).collect();
    assert_eq!(listed(&store), points, "{lines}");
    assert!(points.iter().filter(|slot| host.points.contains_key(slot)).count() >= 3, "{points:?} {:?}", host.points.keys());
    for slot in points {
        let to = site.path("farside.img");
        site.restore("data", &slot.to_string(), &to);
        let (by_farside, by_reader) = (fs::read(&to).expect("restored"), restored(&store, slot).expect("restored"));
        assert!(by_reader == by_farside, "point {slot} differs from what farside restores");
        assert!(host.points.get(&slot).is_none_or(|held| *held == by_reader), "point {slot} is not what was written");
        let piped = Command::new("/usr/bin/python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("independent/reader.py"))
            .arg(&store)
            .args(["host1/default/data", &slot.to_string(), "-"])
            .output()
            .expect("python3 is installed");
        assert!(piped.stdout == by_reader, "point {slot} is another one through a pipe");
        fs::remove_file(to).expect("restored");
    }

    // The same records in fewer objects, as they lie in a bucket.
    let batches = copy(&site, "batches");
    put_together(&batches);
    assert_eq!(reader(&batches, &[]), (lines, None));
    for (&slot, held) in host.points.iter().filter(|(slot, _)| listed(&batches).contains(slot)) {
        assert!(restored(&batches, slot).as_ref() == Ok(held), "point {slot}, of a batch");
    }
    run(program("farside").args(["store", "check"]).arg(&batches));
    flip(&batches.join(GROUP).join("ledger/0/0"), 900);
    let refused = reader(&batches, &[]).1.expect("refused");
    assert!(refused.contains("ledger/0/0: torn"), "{refused}");
}

/// Puts the records of a store that has a few into objects of up to seven.
fn put_together(store: &Path) {
    let all = records(store);
    let folder = store.join(GROUP).join("ledger/0");
    assert!(all.len() > 7 && all.len() < 4096, "{} records, in one run", all.len());
    for some in all.chunks(7) {
        some.iter().for_each(|record| fs::remove_file(folder.join(record.slot.to_string())).expect("it was there"));
        let encoded: Vec<_> = some.iter().map(|record| record.encode().expect("it was read")).collect();
        let object = encode_object(some[0].slot, &encoded).expect("small");
        fs::write(folder.join(some[0].slot.to_string()), object).expect("written");
    }
}

#[test]
fn the_reader_refuses_a_flipped_bit_by_name() {
    let (site, host) = history();
    let (&first, image) = host.points.first_key_value().expect("points");
    let newest = *host.points.last_key_value().expect("points").0;
    let segment = newest_segment(&site).strip_prefix(site.store()).expect("in the store").to_owned();
    let bytes = fs::read(site.store().join(&segment)).expect("read");
    assert_eq!(bytes[64], 1, "the first frame is of data");
    let footer = u64::from_le_bytes(bytes[bytes.len() - 64..][..8].try_into().expect("eight bytes")) as usize;
    let last_digest = bytes.len() - 64 - 1;
    for (name, at) in [("a payload", 64 + 32 + 1000), ("the footer's head", footer + 8), ("a granule's digest", last_digest)] {
        let store = copy(&site, "damaged");
        flip(&store.join(&segment), at);
        let refused = restored(&store, newest).expect_err(name);
        assert!(refused.contains(segment.to_str().expect("text")), "{name}: {refused}");
        assert!(restored(&store, first).as_ref() == Ok(image), "{name}: the first point needs nothing of it");
        fs::remove_dir_all(store).expect("removed");
    }

    // Of what an object repeats nobody needs anything who reads them all.
    let store = copy(&site, "damaged");
    let object = store.join(GROUP).join(format!("ledger/0/{newest}"));
    let bytes = fs::read(&object).expect("a record");
    assert!(may_repeat_others(&bytes), "the newest repeats some");
    flip(&object, bytes.len() - 40);
    assert!(restored(&store, newest).is_ok());
    fs::remove_dir_all(store).expect("removed");

    let store = copy(&site, "damaged");
    let record = format!("{GROUP}/ledger/0/{newest}");
    flip(&store.join(&record), 200);
    let refused = [reader(&store, &[]).1.expect("refused"), restored(&store, newest).expect_err("a record")];
    assert!(refused.iter().all(|refused| refused.contains(&format!("{record}: torn"))), "{refused:?}");
    assert!(restored(&store, first).as_ref() == Ok(image), "what is before a torn record stays readable");
}

/// What the receiver merges reads as it did before, for both readers, and a receiver that is killed meanwhile leaves nothing behind.
#[test]
fn what_was_merged_is_restored_as_it_was() {
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES as u64, group: "default".into() };
    let mut site = Site::new(&[spec], "100ms", 2);
    site.prune_at_once();
    site.gateway_says("merge", "[merge]\nevery = \"1s\"\n");
    site.start_all();
    let mut host = Host {
        client: Client::connect(&site.tap("data"), "").expect("connected"),
        holds: vec![0; BYTES],
        points: BTreeMap::new(),
    };
    host.point(&site, |host| {
        host.write(0, &noise(6 << 20, 1));
        host.write(BYTES - 5120, &noise(5120, 2));
    });
    let merges = |site: &Site| {
        let accepted = records(&site.store()).iter().filter(|record| matches!(record.body, Body::Map(_))).count();
        let parts = |path: &PathBuf| path.parent().and_then(Path::file_name).is_some_and(|term| term.len() >= 19);
        (accepted, site.segments("data").iter().filter(|path| parts(path)).count())
    };
    for round in 0..3 {
        // Most of what was there is written over, some of it again and again.
        for i in 0..8_usize {
            host.point(&site, |host| {
                host.write(i % 3 * (1 << 20), &noise(1 << 20, 10 + i as u64));
                host.zero((4 << 20) + i * 512, 4096);
                host.write(BYTES - 512, &text(512));
            });
        }
        wait_for("parts to be merged", || (merges(&site).0 > round).then_some(()));
        // Wherever it is by now.
        site.receiver.take().expect("it runs").kill();
        site.start_receiver();
    }
    site.daemon.take().expect("it runs").stop();
    wait_for("nothing to be left over", || {
        let mut check = program("farside");
        check.args(["store", "check", "--json"]).arg(site.store());
        let found: serde_json::Value = serde_json::from_slice(&check.output().expect("it starts").stdout).expect("JSON");
        // What a merge replaced waits for a checkpoint.
        let waits = |finding: &serde_json::Value| finding["problem"] == "awaits_deletion";
        found["findings"].as_array().is_some_and(|found| found.iter().all(waits)).then_some(())
    });
    site.receiver.take().expect("it runs").stop();

    let store = site.store();
    let (lines, refused) = reader(&store, &[]);
    assert!(refused.is_none() && lines.contains(" map,"), "{refused:?} {lines}");
    let points: Vec<u64> = site.points("data").iter().map(slot_of).collect();
    assert_eq!(listed(&store), points, "{lines}");
    assert!(points.iter().any(|slot| host.points.contains_key(slot)), "{points:?} {:?}", host.points.keys());
    for slot in points {
        let to = site.path("farside.img");
        site.restore("data", &slot.to_string(), &to);
        let by_farside = fs::read(&to).expect("restored");
        assert!(restored(&store, slot).as_ref() == Ok(&by_farside), "point {slot} differs from what farside restores");
        assert!(host.points.get(&slot).is_none_or(|held| *held == by_farside), "point {slot} is not what was written");
        fs::remove_file(to).expect("restored");
    }

    // A decree, and a map record that comes after it: void, for both.
    let all = records(&store);
    let map = all.iter().rev().find_map(|record| if let Body::Map(map) = &record.body { Some(map.clone()) } else { None });
    let mut map = map.expect("there are merges");
    let volume =
        volume_id(&"host1".parse().expect("a name"), &"default".parse().expect("a name"), &"data".parse().expect("a name"));
    assert_eq!(map.volume, volume);
    let mut last = append(&store, all.last().expect("records"), Body::Decree(Decree { merges: vec![(volume, MergeId(77))] }));
    last = append(&store, &last, Body::Decree(Decree { merges: vec![(volume, map.id)] }));
    last = append(&store, &last, Body::Map(map.clone()));
    map.id = MergeId(77);
    last = append(&store, &last, Body::Map(map.clone()));
    map.id = MergeId(78);
    last = append(&store, &last, Body::Map(map));
    let mut state = farside_ledger::State::new(last.group);
    let verdicts: Vec<Verdict> =
        records(&store).iter().map(|record| state.apply(record, record.encode().expect("it was read").digest)).collect();
    let end = verdicts.len();
    assert_eq!(verdicts[end - 5], Verdict::Accepted);
    assert!(verdicts[end - 4..].iter().all(|verdict| *verdict != Verdict::Accepted), "{verdicts:?}");
    let (lines, refused) = reader(&store, &[]);
    assert!(refused.is_none() && lines.contains(" decree,"), "{refused:?} {lines}");
    for slot in end - 4..end {
        assert!(lines.contains(&format!("record {slot} of host1/default: ")), "{lines}");
    }
}

#[test]
fn void_records_change_nothing_and_checkpoints_are_held_against_records() {
    let (mut site, host) = history();
    let store = site.store();
    let before = listed(&store);
    let (&newest, image) = host.points.last_key_value().expect("points");

    // A layer that nobody awaits, a pin that is not there.
    let all = records(&store);
    let layers = all.iter().rev().find_map(|record| match &record.body {
        Body::Layers(layers) if layers.kind == LayerKind::Point => Some(layers.clone()),
        _ => None,
    });
    let mut layers: Layers = layers.expect("there are points");
    layers.members[0].key.seq = Seq(layers.members[0].key.seq.0 + 2);
    // What is known of a point, and of none.
    let verified = |point| Body::Verified(Verified { point, how: VerifiedHow::ReadBack });
    let known = append(&store, all.last().expect("records"), verified(Slot(newest)));
    let mut last = append(&store, &known, Body::Layers(layers));
    let void = last.slot;
    last = append(&store, &last, verified(void));
    while last.slot.0 <= SLOTS {
        let pin = last.slot;
        last = append(&store, &last, Body::Unpin(Unpin { pin }));
    }
    let mut state = farside_ledger::State::new(last.group);
    for record in records(&store) {
        let verdict = state.apply(&record, record.encode().expect("it was read").digest);
        assert!(record.slot < void || verdict != Verdict::Accepted, "{record:?}");
    }
    let (lines, refused) = reader(&store, &[]);
    assert!(refused.is_none() && lines.contains(&format!("record {void} of host1/default: layers, void")), "{refused:?}");
    // One of the two stamps was accepted, and of what is accepted only the number is told.
    assert!(lines.contains(", 1 verified\n") && !lines.contains(&format!("record {} of", known.slot)), "{lines}");
    assert!(lines.contains(&format!("record {} of host1/default: verified, void: no such point", void.0 + 1)), "{lines}");
    assert_eq!(listed(&store), before);
    assert!(restored(&store, newest).as_ref() == Ok(image));

    // What replaces a torn record is void, too: a repair's.
    let voided = copy(&site, "voided");
    let file = format!("ledger/1/{}", last.slot);
    flip(&voided.join(GROUP).join(&file), 130);
    run(program("farside").args(["store", "repair", "--yes"]).arg(&voided));
    // The record is mended where one bit was flipped, and given up where it is torn.
    assert_eq!(reader(&voided, &[]), (lines, None));
    let torn = voided.join(GROUP).join(&file);
    fs::write(&torn, b"torn").expect("written");
    run(program("farside").args(["store", "repair", "--yes"]).arg(&voided));
    let (after, refused) = reader(&voided, &[]);
    assert!(refused.is_none() && after.contains(&format!("record {} of host1/default: void", last.slot)), "{refused:?} {after}");
    assert!(listed(&voided) == before && restored(&voided, newest).as_ref() == Ok(image));
    fs::write(&torn, b"Torn").expect("written");
    let refused = reader(&voided, &[]).1.expect("refused");
    assert!(refused.contains(&format!("{file}.void: torn")), "{refused}");

    // The receiver makes the checkpoint; it agrees with the records, and does not stand for them.
    site.start_receiver();
    let root = store.join(GROUP).join("checkpoint/0");
    wait_for("a checkpoint", || root.exists().then_some(()));
    site.receiver.take().expect("it runs").stop();
    assert!(root.with_extension("state").exists());
    assert_eq!(reader(&store, &[]).1, None);
    assert!(restored(&store, newest).as_ref() == Ok(image));
    for (file, at) in [("checkpoint/0", 60), ("checkpoint/0.state", 5000)] {
        let store = copy(&site, "damaged");
        flip(&store.join(GROUP).join(file), at);
        let refused = restored(&store, newest).expect_err(file);
        assert!(refused.contains(&format!("{file}: not whole")), "{refused}");
        fs::remove_dir_all(store).expect("removed");
    }
    let shortened = copy(&site, "shortened");
    fs::remove_dir_all(shortened.join(GROUP).join("ledger/1")).expect("removed");
    fs::remove_file(shortened.join(GROUP).join(format!("ledger/0/{}", SLOTS - 1))).expect("removed");
    let refused = restored(&shortened, newest).expect_err("records are gone");
    assert!(refused.contains("checkpoint/0: it covers records that are not there"), "{refused}");
}
