//! What is read as whole files: configurations of both daemons, and a store with everything in it.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use farside_layer::{Compression, Encoder, PartId, PartWriter, layer_digest};
use farside_ledger::{Body, Claim, LayerEntry, LayerKind, Layers, PartEntry, Record, Stamp, State, VolumeMeta, group_id};
use farside_region::{
    Generation, Geometry, GranuleIndex, GranuleRun, LayerKey, RecordDigest, RegionIndex, RegionSet, Seq, Slot, Term,
};
use farside_store::{GroupNames, GroupObject, ObjectName, StoreReader, check, verify_point};
use tempfile::TempDir;

use super::ledger::{epoch, name, volume};
use super::{no_seal, reads_back, small};
use crate::engine::{Memory, Outcome, Target, magnitude, unmeasured};

/// Both configurations go through an owned tree of TOML, with spans.
const TEXT: Memory = Memory { fixed_bytes: 256 << 10, bytes_per_byte: 512 };

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "daemon-config",
        what: "farsided.toml, from the host's disk",
        seeds: || vec![include_bytes!("../../../../daemon/farsided.toml").to_vec(), HOST.as_bytes().to_vec()],
        seal: no_seal,
        words: TOML,
        bytes_max: 8 << 10,
        memory: TEXT,
        decode: daemon_config,
    },
    Target {
        name: "receiver-config",
        what: "receiver.toml, from the gateway's disk",
        seeds: || vec![include_bytes!("../../../../receiver/receiver.toml").to_vec(), GATEWAY.as_bytes().to_vec()],
        seal: no_seal,
        words: TOML,
        bytes_max: 8 << 10,
        memory: TEXT,
        decode: receiver_config,
    },
    Target {
        name: "object-names",
        what: "names of files in a store",
        seeds: || NAMES.iter().map(|name| name.as_bytes().to_vec()).collect(),
        seal: no_seal,
        words: &[b"/", b".", b".void", b"ledger/", b"segments/", b"0", b"4096", b"18446744073709551615", b"4294967296"],
        bytes_max: 600,
        memory: small(32),
        decode: object_name,
    },
    Target {
        name: "store",
        what: "a store's folder: descriptions, ledger, segments; opened, read and checked",
        seeds: || vec![a_store()],
        seal: seal_store,
        words: &[b"FSLEDGER", b"FSLAYPRT", b"FSLAYEND", b"\"version\": 1", b"farside store", b"farside group"],
        bytes_max: 16 << 10,
        // Its listings take buffers of the system's size.
        memory: Memory { fixed_bytes: 8 << 20, bytes_per_byte: 512 },
        decode: store,
    },
];

const TOML: &[&[u8]] = &[
    b"[source]\n",
    b"[[volume]]\n",
    b"[[group]]\n",
    b"[limits]\n",
    b"[retention]\n",
    b" = ",
    b"\"\"",
    b"'''",
    b"-1",
    b"9223372036854775807",
    b"0x",
    b"inf",
    b"1979-05-27T07:32:00Z",
    b"\"99999999999d\"",
    b"\"1h30m\"",
    b"every 1m keep 1d, ",
    b"\"20Mbit\"",
    b"[[",
    b"{",
    "é".as_bytes(),
];

const HOST: &str = "[source]\nname = \"host\"\nstate_dir = \"/s\"\napi_socket = \"/r/a.sock\"\n[[group]]\nname = \"db\"\nepoch_interval = \"500ms\"\n\
keep = 3\nspan = \"48h\"\ngrid = \"every 1m keep 1d\"\n[[volume]]\nname = \"v1\"\ngroup = \"db\"\nbacking = \"/dev/vdb\"\ntap = \"nbd:unix:/r/v1.nbd\"\n\
on_tracking_lost = \"fail\"\n[limits]\nqueue_depth = 64\n[bandwidth]\nrate = \"20Mbit\"\n[[bandwidth.window]]\nat = \"Mon-Fri 22:00-06:00\"\nrate = \"5MiB\"\n";
const GATEWAY: &str = "[receiver]\nname = \"gw\"\nlisten = \"127.0.0.1:1\"\nadvertise = [\"gw:1\"]\nstore = \"/s\"\n[limits]\ncredit_mib = 64\n\
[retention]\nkeep = 5\nspan = \"2d\"\ninterval = \"1m\"\nat_least_span = \"1h30m\"\ngrid = \"every 5s keep 10m, every 1m keep 1y\"\n";

const NAMES: &[&str] = &[
    "groups/host/db/group.json",
    "groups/host/db/ledger/1/5000",
    "groups/host/db/ledger/0/0.void",
    "groups/host/db/segments/v1/5000/17.3",
    "groups/host/db/packs/0000000000001234cdcdcdcdcdcdcdcd",
];

thread_local! {
    /// In memory where the system has such a place: it is written thousands of times a second.
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

fn folder() -> PathBuf {
    FOLDER.with(|folder| {
        let make = || match Path::new("/dev/shm") {
            memory if memory.is_dir() => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("a folder"),
            _ => tempfile::tempdir().expect("a folder"),
        };
        folder.borrow_mut().get_or_insert_with(make).path().to_owned()
    })
}

/// Gives `work` a file with these bytes, which only its owner can read.
pub(super) fn with_file(name: &str, bytes: &[u8], work: impl FnOnce(&Path) -> Outcome) -> Outcome {
    use std::os::unix::fs::PermissionsExt as _;
    let path = unmeasured(|| {
        let path = folder().join(name);
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        path
    });
    let outcome = work(&path);
    unmeasured(|| drop(path));
    outcome
}

fn daemon_config(bytes: &[u8]) -> Outcome {
    with_file("farsided.toml", bytes, |path| match farside_daemon::config::Config::load(path) {
        Err(error) => Outcome::refused(error),
        Ok(config) => {
            unmeasured(|| {
                assert_eq!(config.changes(&config), farside_daemon::config::Changes::default(), "it differs from itself");
                rewrite(&config, path);
            });
            Outcome::accepted((config.groups.len().min(4), config.volumes.len().min(4), config.bandwidth.windows.len().min(3)))
        }
    })
}

/// What the API writes of it, alone in an empty configuration, says the same.
fn rewrite(config: &farside_daemon::config::Config, path: &Path) {
    fs::write(path, "[source]\nname = \"host\"\n").expect("written");
    let drop_ins = config.drop_ins();
    let _ = fs::remove_dir_all(&drop_ins);
    fs::create_dir(&drop_ins).expect("made");
    for (name, group) in config.groups.iter().take(2) {
        let said = farside_daemon::config::GroupSaid {
            epoch_interval: Some(group.epoch_interval),
            keep: group.policy_is_said.then_some(group.keep),
            span: group.span_said,
            grid: group.policy_is_said.then(|| group.grid.clone()),
            rate: Some(group.rate),
            consistent_every: Some(group.consistent_every),
        };
        config.write_group(name, &said).expect("written");
    }
    for volume in config.volumes.values().take(2) {
        config.write_volume(volume).expect("written");
    }
    config.write_bandwidth(&config.bandwidth).expect("written");
    let again = farside_daemon::config::Config::load(path).expect("what the API writes can be read");
    for (name, group) in again.groups {
        assert_eq!(config.groups.get(&name), Some(&group), "group {name}");
    }
    for (name, volume) in again.volumes {
        assert_eq!(config.volumes.get(&name), Some(&volume), "volume {name}");
    }
    assert_eq!(again.bandwidth, config.bandwidth);
    let _ = fs::remove_dir_all(&drop_ins);
}

fn receiver_config(bytes: &[u8]) -> Outcome {
    with_file("receiver.toml", bytes, |path| match farside_receiver::Config::load(path) {
        Err(error) => Outcome::refused(error),
        Ok(config) => {
            let (next, changes) = config.take_over(&config);
            assert_eq!((&next, changes.live.len(), changes.needs_restart.len()), (&config, 0, 0), "it differs from itself");
            let _ = config.retention.floor(&farside_ledger::Policy::without_grid(1, 1));
            Outcome::accepted((config.advertise.len().min(4), magnitude(config.retention.span.as_secs())))
        }
    })
}

fn host_db() -> GroupNames {
    GroupNames::new(name("host"), name("db"))
}

fn object_name(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Outcome::refused("not text") };
    let Ok(object) = ObjectName::new(text) else { return Outcome::refused("no name") };
    let names = host_db();
    match names.parse(&object) {
        None => Outcome::refused("none of ours"),
        Some(parsed) => {
            let again = match &parsed {
                GroupObject::Description => names.description(),
                GroupObject::Record(slot) => names.record(*slot),
                GroupObject::Checkpoint(number) => names.checkpoint(*number),
                GroupObject::CheckpointState(number) => names.checkpoint_state(*number),
                GroupObject::CheckpointDigests(number) => names.checkpoint_digests(*number),
                GroupObject::RecordVoid(slot) => names.record_void(*slot),
                GroupObject::Key(number) => names.key(*number),
                GroupObject::Pack(pack) => names.pack(*pack),
                GroupObject::Lease(nonce) => names.lease(*nonce),
                GroupObject::LeaseClock(nonce) => names.lease_clock(*nonce),
                GroupObject::Segment { volume: of, term, seq, number } => {
                    let layer = LayerKey { volume: volume(1), term: *term, seq: *seq };
                    names.segment(of, &farside_store::PartName { layer, number: *number })
                }
            };
            reads_back(&object, || Some(again));
            Outcome::accepted(std::mem::discriminant(&parsed))
        }
    }
}

/// The files that an input may make, by its first byte.
const FILES: &[&str] = &[
    "farside-store.json",
    "groups/host/db/group.json",
    "groups/host/db/ledger/0/0",
    "groups/host/db/ledger/0/1",
    "groups/host/db/ledger/0/2",
    "groups/host/db/ledger/0/3",
    "groups/host/db/segments/v1/0/1.0",
    "groups/host/db/segments/v1/0/1.1",
    "groups/host/db/segments/v1/0/2.0",
    "groups/host/db/ledger/0/1.void",
    "groups/host/db/ledger/0/2.void",
    "groups/host/db/ledger/0/18446744073709551615",
    "groups/host/db/segments/v1/9/1.0",
    "groups/host/db/landing/v1/0/3.0",
    "groups/host/other/group.json",
    "groups/host/db/ledger/4503599627370495/18446744073709551615",
];
const RECORDS: std::ops::Range<u8> = 2..6;

/// Each file: its number, its length (u16 LE), its bytes.
fn files(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let (mut rest, mut files) = (bytes, Vec::new());
    while let Some((&[which, a, b], tail)) = rest.split_first_chunk::<3>() {
        let (content, tail) = tail.split_at(tail.len().min(u16::from_le_bytes([a, b]).into()));
        files.push((which % FILES.len() as u8, content));
        rest = tail;
    }
    files
}

fn join(files: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let file = |(which, content): &(u8, Vec<u8>)| [&[*which], &(content.len() as u16).to_le_bytes()[..], content].concat();
    files.iter().flat_map(file).collect()
}

/// Three records that follow each other: a claim, a fuzzy layer of two parts, a point.
fn a_store() -> Vec<u8> {
    let group = group_id(&name("host"), &name("db"));
    let geometry = Geometry::with_shape(16 * 512, 9, 3).expect("a geometry");
    let meta = VolumeMeta { id: volume(1), name: name("v1"), geometry, digest_key: [7; 32].into(), generation: Generation(1) };
    let key = |seq| LayerKey { volume: volume(1), term: Term(0), seq: Seq(seq) };
    let part = |seq, number, start: u64, count: usize| {
        let id = PartId { key: key(seq), part: number, geometry };
        let mut writer = PartWriter::new(id, &meta.digest_key, Encoder::new(Compression::Zstd(1)));
        writer.push_data(GranuleIndex(start), &vec![seq as u8; count * 512]).expect("it fits");
        writer.push_zero(GranuleRun { start: GranuleIndex(start + count as u64), count: 4 }).expect("it fits");
        let (bytes, summary, _) = writer.finish();
        (bytes, PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest })
    };
    let parts = [part(1, 0, 0, 4), part(1, 1, 8, 4), part(2, 0, 2, 2)];
    let entry = |seq, parts: Vec<PartEntry>, regions: &[u64]| LayerEntry {
        key: key(seq),
        digest: layer_digest(&key(seq), &parts.iter().map(|p| p.footer_digest).collect::<Vec<_>>()),
        parts,
        regions: regions.iter().map(|r| RegionIndex(*r)).collect(),
        unreadable_regions: RegionSet::new(),
        volume_bytes: geometry.volume_bytes(),
    };
    let layers = |kind, entry| Body::Layers(Layers { kind, epoch: epoch(), label: None, members: vec![entry] });
    let bodies = [
        Body::Claim(Claim { volume: meta.clone(), looked: None, source: name("host") }),
        layers(LayerKind::Fuzzy, entry(1, vec![parts[0].1, parts[1].1], &[0, 1])),
        layers(LayerKind::Point, entry(2, vec![parts[2].1], &[0])),
    ];
    let mut state = State::new(group);
    let mut all = vec![
        (0, br#"{"format": "farside store", "version": 1, "id": "000102030405060708090a0b0c0d0e0f"}"#.to_vec()),
        (
            1,
            format!(r#"{{"format": "farside group", "version": 1, "id": "{group}", "source": "host", "group": "db"}}"#)
                .into_bytes(),
        ),
    ];
    for (which, body) in RECORDS.zip(bodies) {
        let stamp = Stamp { writer: [1; 16], mono_ms: 0, wall_ms: 0 };
        let record = Record { group, slot: state.next_slot(), prev: state.prev(), nonce: [which; 16], stamp, body };
        let encoded = record.encode().expect("small");
        state.apply(&record, encoded.digest);
        all.push((which, encoded.bytes));
    }
    all.extend([6, 7, 8].into_iter().zip(parts.map(|(bytes, _)| bytes)));
    join(&all)
}

/// Makes every record follow the one before it.
fn seal_store(bytes: &mut Vec<u8>) {
    let group = group_id(&name("host"), &name("db"));
    let mut all: Vec<(u8, Vec<u8>)> = files(bytes).into_iter().map(|(which, content)| (which, content.to_vec())).collect();
    let mut prev = Record::NO_PREDECESSOR;
    for slot in RECORDS.map(|which| u64::from(which - RECORDS.start)) {
        // The last file of that name is the one that stays.
        let Some((_, record)) = all.iter_mut().rev().find(|(which, _)| u64::from(*which) == slot + u64::from(RECORDS.start))
        else {
            break;
        };
        if record.len() < 160 {
            break;
        }
        let content = record.len() - 32;
        record[12..16].copy_from_slice(&((content - 128) as u32).to_le_bytes());
        record[16..24].copy_from_slice(&slot.to_le_bytes());
        record[24..40].copy_from_slice(&group.0);
        record[40..72].copy_from_slice(&prev.0);
        let digest = blake3::hash(&record[..content]);
        record[content..].copy_from_slice(digest.as_bytes());
        prev = RecordDigest(*digest.as_bytes());
    }
    *bytes = join(&all);
}

/// Regions of a volume that are read one by one; a claim may speak of a thousand million.
const REGIONS_READ: u64 = 64;

fn store(bytes: &[u8]) -> Outcome {
    let root = unmeasured(|| {
        let root = folder().join("store");
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).expect("made");
        for (which, content) in files(bytes) {
            let path = root.join(FILES[usize::from(which)]);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(&path, content).expect("written");
        }
        root
    });
    let outcome = read_store(&root);
    unmeasured(|| drop(root));
    outcome
}

fn read_store(root: &Path) -> Outcome {
    let reader = match StoreReader::open(root) {
        Ok(reader) => reader,
        Err(error) => return Outcome::refused(error),
    };
    let group = match reader.group(&host_db()) {
        Ok(group) => group,
        Err(error) => return Outcome::refused(error),
    };
    let torn = group.torn().map(|torn| torn.slot);
    let (mut read, mut failed) = (0_u32, 0_u32);
    let is_small = group.state().volumes().all(|(_, v)| v.meta().geometry.region_count() <= REGIONS_READ);
    for point in group.points().into_iter().take(3) {
        for member in point.members.iter().take(2) {
            let Ok(reader) = group.point_reader_as_it_is(point.slot, member.volume) else {
                failed += 1;
                continue;
            };
            let (regions, mut content) = (reader.geometry().region_count(), reader.content());
            if reader.geometry().region_bytes() > 1 << 20 {
                continue;
            }
            for region in (0..regions.min(4)).chain([regions - 1]) {
                match reader.read_region(RegionIndex(region), &mut content) {
                    Ok(()) => read += 1,
                    Err(_) => failed += 1,
                }
                let _ = (reader.salvage_region(RegionIndex(region), &mut content), reader.is_zero(RegionIndex(region)));
            }
            if is_small {
                let _ = verify_point(&reader, 1, 4, &|_| true);
            }
        }
    }
    let findings = if is_small {
        StoreReader::open(root).and_then(|store| check(&store, &|_| true)).map_or(99, |report| report.findings.len())
    } else {
        0
    };
    let shape = (torn, read.min(8), failed.min(8), findings.min(8), group.state().next_slot());
    if group.state().next_slot() == Slot(0) { Outcome::refused("an empty ledger") } else { Outcome::accepted(shape) }
}
