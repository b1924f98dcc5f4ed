//! Restores from a bucket beside restic's and beside a raw parallel GET of the same objects.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use farside_s3_servers::{Bucket, RadosGw};
use farside_tests::{Site, VolumeSpec, tool};

use crate::image;
use crate::measure::{Cost, drop_caches, installed, timed};
use crate::report::Report;

/// What a raw client has under way at once: as many as Farside.
const AT_ONCE: &str = "12";

/// What is asked for.
pub(crate) struct Wanted {
    pub(crate) bytes: u64,
    pub(crate) rounds: usize,
}

pub(crate) fn run(wanted: &Wanted, report: &mut Report) -> Result<()> {
    if ["radosgw", "ceph-mon", "ceph-osd"].iter().all(|name| installed(name)) {
        from_bucket(wanted, report)?;
    } else {
        report.left_out("radosgw is not installed: no restores from a bucket");
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
