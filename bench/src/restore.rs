//! Restores from a bucket beside restic's and beside a raw parallel GET of the same objects; and how soon the first byte of an open point
//! is there, by the volume's size and by how many points there are.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use farside_layer::{Compression, Encoder, PartId, PartWriter, layer_digest};
use farside_ledger::{
    Body, Claim, EpochInfo, LayerEntry, LayerKind, Layers, PartEntry, Stamp, State, VolumeMeta, group_id, volume_id,
};
use farside_nbd::client::Client;
use farside_region::{BootId, Generation, Geometry, GranuleIndex, GranuleRun, LayerKey, Name, RegionSet, Seq, Term};
use farside_s3_servers::{Bucket, RadosGw};
use farside_store::{Attempt, GroupNames, PartName, Store};
use farside_tests::{Process, Site, VolumeSpec, program, tool};

use crate::image;
use crate::measure::{Cost, drop_caches, installed, timed};
use crate::report::{OpenRow, Report};

/// What a raw client has under way at once: as many as Farside.
const AT_ONCE: &str = "12";
/// For the first byte.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked for.
pub(crate) struct Wanted {
    pub(crate) bytes: u64,
    pub(crate) rounds: usize,
    /// Histories of the points that are opened.
    pub(crate) points: Vec<u64>,
}

pub(crate) fn run(wanted: &Wanted, report: &mut Report) -> Result<()> {
    if ["radosgw", "ceph-mon", "ceph-osd"].iter().all(|name| installed(name)) {
        from_bucket(wanted, report)?;
    } else {
        report.left_out("radosgw is not installed: no restores from a bucket");
    }
    for &points in &wanted.points {
        for bytes in [1 << 30, 64 << 30, 1 << 40] {
            first_byte(bytes, points, wanted.rounds, report)?;
        }
    }
    Ok(())
}

/// One of those who bring the volume back.
struct Contender<'a> {
    tool: &'static str,
    restore: Box<dyn Fn() -> Result<Cost> + 'a>,
}

fn from_bucket(wanted: &Wanted, report: &mut Report) -> Result<()> {
    const WHAT: &str = "from a bucket";
    let bucket = RadosGw::shared().bucket();
    let spec = VolumeSpec { name: "data".into(), bytes: wanted.bytes, group: "default".into() };
    let mut site = Site::new(&[spec], "1s", 4);
    let keys = format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={}\n", bucket.access_key, bucket.secret_key);
    let url = format!("s3://{}/site-1?endpoint={}&region={}", bucket.name, bucket.endpoint, Bucket::REGION);
    site.keep_points_in(&url, &keys);
    let backing = site.backing("data");
    eprintln!("making {} MiB of mixed content, and a point of it in a bucket …", wanted.bytes >> 20);
    image::fill(&backing, wanted.bytes)?;
    site.start_receiver();
    site.start_daemon();
    site.pair();
    site.wait_quiet();
    site.daemon.take().context("it runs")?.stop();
    site.receiver.take().context("it runs")?.stop();

    let to = site.path("restored.img");
    let ours = || {
        let cost = timed(site.farside_at_store(&["restore", "data", "--point", "latest", "--store"]).arg("--to").arg(&to))?;
        let same = tool("cmp").arg("--silent").arg(&to).arg(&backing).status()?.success();
        ensure!(same, "the restored image differs from the source");
        fs::remove_file(&to)?;
        Ok(cost)
    };
    let objects = match installed("curl") {
        true => segments(&bucket)?,
        false => Vec::new(),
    };
    let scratch = site.path("scratch");
    let mut contenders = vec![Contender { tool: "farside", restore: Box::new(ours) }];
    if objects.is_empty() {
        report.left_out("curl is not installed: no raw parallel GET");
    } else {
        let raw = || {
            let mut command = curl(&bucket);
            command.args(["--parallel", "--parallel-max", AT_ONCE]);
            for url in &objects {
                command.args(["--output", "/dev/null"]).arg(url);
            }
            timed(&mut command)
        };
        contenders.push(Contender { tool: "curl, raw GETs", restore: Box::new(raw) });
    }
    if installed("restic") {
        ensure!(restic(&bucket).arg("init").stdout(Stdio::null()).status()?.success(), "restic makes no repository");
        timed(restic(&bucket).arg("backup").arg(&backing))?;
        let theirs = || {
            let cost = timed(restic(&bucket).args(["restore", "latest", "--target"]).arg(&scratch))?;
            fs::remove_dir_all(&scratch)?;
            Ok(cost)
        };
        contenders.push(Contender { tool: "restic", restore: Box::new(theirs) });
    } else {
        report.left_out("restic is not installed");
    }
    let mut costs: Vec<Vec<Cost>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..wanted.rounds {
        eprintln!("restores from a bucket, round {} of {} …", round + 1, wanted.rounds);
        for turn in 0..contenders.len() {
            let who = (round + turn) % contenders.len();
            drop_caches();
            costs[who].push((contenders[who].restore)()?);
        }
    }
    for (contender, mut costs) in contenders.iter().zip(costs) {
        costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        report.copied(WHAT, contender.tool, costs[costs.len() / 2], wanted.bytes);
    }
    Ok(())
}

fn curl(bucket: &Bucket) -> Command {
    let mut command = tool("curl");
    command.args(["--silent", "--fail-with-body", "--noproxy", "*", "--aws-sigv4", &format!("aws:amz:{}:s3", Bucket::REGION)]);
    // Older versions sign the host without its port, unless they are told.
    let host = bucket.endpoint.trim_start_matches("http://");
    command.arg("--header").arg(format!("Host: {host}"));
    // Of an empty body.
    let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    command.arg("--header").arg(format!("x-amz-content-sha256: {digest}"));
    command.arg("--user").arg(format!("{}:{}", bucket.access_key, bucket.secret_key));
    command
}

/// The addresses of all segments and packs in a bucket.
fn segments(bucket: &Bucket) -> Result<Vec<String>> {
    let place = format!("{}/{}", bucket.endpoint, bucket.name);
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        // As it is signed: older versions of curl sign a query as it is written.
        let encoded = |key: &str| key.replace('/', "%2F");
        let query = if after.is_empty() { String::new() } else { format!("&start-after={}", encoded(&after)) };
        let prefix = encoded("site-1/groups/");
        let output = curl(bucket).arg(format!("{place}?list-type=2&prefix={prefix}{query}")).output()?;
        ensure!(output.status.success(), "the bucket cannot be listed: {}", String::from_utf8_lossy(&output.stdout));
        let text = String::from_utf8(output.stdout)?;
        let keys: Vec<&str> =
            text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>")).map(|(key, _)| key).collect();
        found.extend(
            keys.iter().filter(|key| key.contains("/segments/") || key.contains("/packs/")).map(|key| format!("{place}/{key}")),
        );
        match keys.last().filter(|_| text.contains("<IsTruncated>true")) {
            Some(last) => after = (*last).to_owned(),
            None => return Ok(found),
        }
    }
}

fn restic(bucket: &Bucket) -> Command {
    let mut command = tool("restic");
    command.arg("--repo").arg(format!("s3:{}/{}/restic", bucket.endpoint, bucket.name)).args(["--no-cache", "--quiet"]);
    command.args(["-o", "s3.bucket-lookup=path"]).env("RESTIC_PASSWORD", "bench").env("AWS_DEFAULT_REGION", Bucket::REGION);
    command.env("AWS_ACCESS_KEY_ID", &bucket.access_key).env("AWS_SECRET_ACCESS_KEY", &bucket.secret_key);
    command
}

/// Opens the newest point of a sparse volume with so many points, and reads its first bytes.
fn first_byte(bytes: u64, points: u64, rounds: usize, report: &mut Report) -> Result<()> {
    eprintln!("a point of {} GiB, of {points} …", bytes >> 30);
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("store");
    make(&store, bytes, points)?;
    let socket = dir.path().join("point.nbd");
    let mut times = Vec::new();
    for _ in 0..rounds {
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
    let mut append = |body, second: u64| -> Result<()> {
        let stamp = Stamp { writer: [1; 16], mono_ms: second * 1000, wall_ms: second as i64 * 1000 };
        let attempt = Attempt::new(&state, body, [0; 16], stamp)?;
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
