//! How soon the first byte of an open point is there, by the volume's size and by how many points there are: from the start of the command,
//! with cold caches. Half of what is measured may be the disk's: compare two programs by turns on the same stores (`--stores`), and no run
//! with another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use farside_layer::{Compression, Encoder, PartId, PartWriter, layer_digest};
use farside_ledger::{
    Body, Claim, EpochInfo, LayerEntry, LayerKind, Layers, PartEntry, Stamp, State, VolumeMeta, group_id, volume_id,
};
use farside_nbd::client::Client;
use farside_region::{BootId, Generation, Geometry, GranuleIndex, GranuleRun, LayerKey, Name, RegionSet, Seq, Term};
use farside_store::{Attempt, Draft, GroupNames, PartName, Store};
use farside_tests::{Process, program};

use crate::measure::drop_caches;
use crate::report::{OpenRow, Report};

/// For the first byte.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of the volumes, in bytes.
const SIZES: [u64; 3] = [1 << 30, 64 << 30, 1 << 40];

/// What is asked for.
pub(crate) struct Wanted {
    pub(crate) rounds: usize,
    /// Histories of the points that are opened.
    pub(crate) points: Vec<u64>,
    /// Where the stores are kept; each is made where it is not there yet.
    pub(crate) stores: Option<PathBuf>,
}

pub(crate) fn run(wanted: &Wanted, report: &mut Report) -> Result<()> {
    for &points in &wanted.points {
        for bytes in SIZES {
            first_byte(wanted, bytes, points, report)?;
        }
    }
    Ok(())
}

/// Opens the newest point of a sparse volume with so many points, and reads its first bytes.
fn first_byte(wanted: &Wanted, bytes: u64, points: u64, report: &mut Report) -> Result<()> {
    eprintln!("a point of {} GiB, of {points} …", bytes >> 30);
    let dir = tempfile::tempdir()?;
    let store = wanted.stores.as_deref().unwrap_or(dir.path()).join(format!("{}-gib-{points}-points", bytes >> 30));
    if !store.exists() {
        // One that was not finished is not taken for one.
        let begun = store.with_extension("begun");
        if begun.exists() {
            fs::remove_dir_all(&begun)?;
        }
        fs::create_dir_all(&begun)?;
        make(&begun, bytes, points)?;
        fs::rename(&begun, &store)?;
    }
    let socket = dir.path().join("point.nbd");
    let mut times = Vec::new();
    for _ in 0..wanted.rounds {
        drop_caches();
        let begun = Instant::now();
        let mut command = program("farside");
        command.args(["point", "open", "data@latest", "--json", "--store"]).arg(&store);
        command.arg("--export").arg(format!("nbd:{}", socket.display())).stdin(Stdio::null()).stdout(Stdio::null());
        let mut opened = Process::new(command.spawn()?, "farside point open");
        let mut client = loop {
            match Client::connect(&socket, "") {
                Ok(client) => break client,
                Err(error) => ensure!(begun.elapsed() < PATIENCE && opened.is_running(), "nobody serves the point: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(1));
        };
        let mut first = [0; 4096];
        client.read(0, &mut first)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(first.iter().any(|byte| *byte != 0), "the first bytes are zeroes");
        drop(client);
        opened.stop();
    }
    times.sort_by(f64::total_cmp);
    report.opened(OpenRow { volume_bytes: bytes, points, first_byte_ms: times[times.len() / 2] });
    Ok(())
}

/// A store of one volume: all of it as zeroes but its first granule, and then a granule at a time, each in another region.
fn make(path: &Path, bytes: u64, points: u64) -> Result<()> {
    let name = |text: &str| text.parse::<Name>().context("a name");
    let (source, group, volume) = (name("host")?, name("default")?, name("data")?);
    Store::init(path)?;
    drop(Store::open(path)?.group(&source, &group)?);
    let names = GroupNames::new(source.clone(), group.clone());
    let geometry = Geometry::new(bytes)?;
    let id = volume_id(&source, &group, &volume);
    let meta = VolumeMeta { id, name: volume, geometry, digest_key: [7; 32].into(), generation: Generation(1) };
    let mut state = State::new(group_id(&source, &group));
    let put = |file: &Path, bytes: &[u8]| -> Result<()> {
        fs::create_dir_all(file.parent().context("a folder")?)?;
        Ok(fs::write(file, bytes)?)
    };
    // The records of the newest 4096 slots, which objects repeat.
    let mut before: Vec<Vec<u8>> = Vec::new();
    let mut append = |body, second: u64| -> Result<()> {
        let stamp = Stamp { writer: [1; 16], mono_ms: second * 1000, wall_ms: second as i64 * 1000 };
        let attempt = Attempt::repeating(&state, vec![Draft { body, nonce: [0; 16], stamp }], &before)?;
        if attempt.slot().0 % 4096 == 0 {
            before.clear();
        }
        before.push(attempt.records[0].0.encode()?.bytes);
        put(&path.join(names.record(attempt.slot()).as_str()), &attempt.bytes)?;
        let (record, digest) = &attempt.records[0];
        ensure!(state.apply(record, *digest).is_done(), "a record of ours is void");
        Ok(())
    };
    append(Body::Claim(Claim { volume: meta.clone(), looked: None, source: source.clone() }), 0)?;
    let content: Vec<u8> = (0..geometry.granule_bytes()).map(|i| (i % 251) as u8 + 1).collect();
    for i in 0..points {
        let key = LayerKey { volume: id, term: Term(0), seq: Seq(i + 1) };
        let mut writer = PartWriter::new(PartId { key, part: 0, geometry }, &meta.digest_key, Encoder::new(Compression::Zstd(1)));
        let at = GranuleIndex(i % geometry.region_count() * geometry.region_granules());
        writer.push_data(at, &content)?;
        let mut run = GranuleRun { start: at, count: 1 };
        if i == 0 {
            run = geometry.whole();
            writer.push_zero(GranuleRun { start: GranuleIndex(1), count: run.count - 1 })?;
        }
        let mut bytes = writer.take_chunk();
        let (tail, summary, _) = writer.finish();
        bytes.extend(tail);
        put(&path.join(names.segment(&meta.name, &PartName { layer: key, number: 0 }).as_str()), &bytes)?;
        let part = PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest };
        let mut regions = RegionSet::new();
        regions.insert_range(geometry.regions_of(run));
        let entry = LayerEntry {
            digest: layer_digest(&key, &[part.footer_digest]),
            key,
            parts: vec![part],
            regions,
            unreadable_regions: RegionSet::new(),
            volume_bytes: geometry.volume_bytes(),
        };
        let epoch = EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: i as i64 * 1000 };
        append(Body::Layers(Layers { kind: LayerKind::Point, epoch, label: None, members: vec![entry] }), i)?;
    }
    // As a receiver does all along: the checkpoints.
    drop(Store::open(path)?.group(&source, &group)?);
    Ok(())
}
