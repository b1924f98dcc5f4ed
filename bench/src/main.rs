//! Side by side with what a user would run instead, in one run on one machine: first sync, a scattered delta, restore; bytes
//! on the wire, CPU and memory. Prints a table and writes JSON. Believe the ratios, not the digits.
//!
//! Everything runs on loopback and in one temporary directory; the page cache is dropped before each measurement where the
//! user may do that. Competitors that are not installed are left out, by name.

mod image;
mod measure;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use farside_tests::verify::{Rng, connect};
use farside_tests::{Site, VolumeSpec, program, tool};
use serde::Serialize;

use crate::measure::{Cost, ProcessCost, drop_caches, timed};

/// Measures Farside against rsync and restic on the same data, in the same run.
#[derive(Debug, Parser)]
#[command(name = "farside-bench", version)]
struct Args {
    /// Size of the volume in MiB.
    #[arg(long, default_value_t = 4096)]
    size_mib: u64,
    /// Share of the volume that the delta changes, in percent, as scattered 4 KiB blocks.
    #[arg(long, default_value_t = 5)]
    delta_percent: u64,
    /// Where the JSON goes.
    #[arg(long, default_value = "bench.json")]
    json: PathBuf,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    tool: String,
    seconds: f64,
    cpu_seconds: f64,
    /// CPU seconds per GB (10⁹ bytes) of what was copied or changed.
    cpu_seconds_per_gb: f64,
    peak_rss_mib: u64,
    /// Times as fast as this line: its seconds ÷ Farside's.
    farside_is_faster_by: f64,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    size_bytes: u64,
    changed_bytes: u64,
    rows: Vec<Row>,
    wire_bytes_first_sync: u64,
    wire_bytes_delta: u64,
    wire_per_changed_byte: f64,
    left_out: Vec<String>,
}

impl Report {
    /// The first of a group of rows is Farside's.
    fn add(&mut self, what: &str, tool: &str, cost: Cost, ours: f64) {
        let bytes = if what.contains("scattered") { self.changed_bytes } else { self.size_bytes };
        self.rows.push(Row {
            cpu_seconds_per_gb: cost.cpu_seconds / (bytes as f64 / 1e9),
            what: what.to_owned(),
            tool: tool.to_owned(),
            seconds: cost.seconds,
            cpu_seconds: cost.cpu_seconds,
            peak_rss_mib: cost.peak_rss_kib >> 10,
            farside_is_faster_by: cost.seconds / ours,
        });
    }
}

fn installed(name: &str) -> bool {
    tool(name).arg("--version").output().or_else(|_| tool(name).arg("version").output()).is_ok()
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bytes = args.size_mib << 20;
    let mut report = Report { size_bytes: bytes, ..Report::default() };
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes, group: "default".into() }], "1s", 4);
    let backing = site.backing("data");
    eprintln!("making {} MiB of mixed content …", args.size_mib);
    image::fill(&backing, bytes)?;
    let copies = Copies { rsync: site.path("rsync.img"), restic: site.path("restic"), restored: site.path("restic-out") };

    first_sync(&mut site, &backing, &copies, &mut report)?;
    delta(&site, &backing, &copies, args.delta_percent, &mut report)?;
    restore(&site, &copies, &mut report)?;
    print(&report);
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?).with_context(|| args.json.display().to_string())?;
    println!("\nJSON: {}", args.json.display());
    Ok(())
}

struct Copies {
    rsync: PathBuf,
    restic: PathBuf,
    restored: PathBuf,
}

fn restic(repository: &Path) -> std::process::Command {
    let mut command = tool("restic");
    command.arg("--repo").arg(repository).arg("--no-cache").arg("--quiet").env("RESTIC_PASSWORD", "bench");
    command
}

fn wire_bytes(site: &Site) -> u64 {
    site.volume_status("data")["counters"]["wire_bytes"].as_u64().unwrap_or(0)
}

/// Waits until what was changed is published, and measures both daemons meanwhile.
fn until_published(site: &Site, begin: impl FnOnce()) -> Cost {
    let daemons = [site.daemon.as_ref(), site.receiver.as_ref()].map(|p| ProcessCost::start(p.expect("it runs").pid()));
    let start = Instant::now();
    begin();
    site.wait_quiet();
    let seconds = start.elapsed().as_secs_f64();
    let costs: Vec<(f64, u64)> = daemons.iter().map(ProcessCost::so_far).collect();
    Cost { seconds, cpu_seconds: costs.iter().map(|c| c.0).sum(), peak_rss_kib: costs.iter().map(|c| c.1).max().unwrap_or(0) }
}

fn first_sync(site: &mut Site, backing: &Path, copies: &Copies, report: &mut Report) -> Result<()> {
    eprintln!("first sync …");
    site.start_receiver();
    site.start_daemon();
    drop_caches();
    let ours = until_published(site, || site.pair());
    report.wire_bytes_first_sync = wire_bytes(site);
    report.add("first sync", "farside", ours, ours.seconds);
    drop_caches();
    let read = timed(tool("dd").arg(format!("if={}", backing.display())).args([
        "of=/dev/null",
        "bs=4M",
        "iflag=direct",
        "status=none",
    ]))?;
    report.add("first sync", "dd, read only (floor)", read, ours.seconds);
    if installed("rsync") {
        drop_caches();
        let cost = timed(tool("rsync").args(["-W", "--inplace", "--fsync"]).arg(backing).arg(&copies.rsync))?;
        report.add("first sync", "rsync -W", cost, ours.seconds);
    } else {
        report.left_out.push("rsync is not installed".into());
    }
    if installed("restic") {
        timed(restic(&copies.restic).arg("init"))?;
        drop_caches();
        let cost = timed(restic(&copies.restic).args(["backup", "--force"]).arg(backing))?;
        report.add("first sync", "restic backup", cost, ours.seconds);
    } else {
        report.left_out.push("restic is not installed".into());
    }
    Ok(())
}

fn delta(site: &Site, backing: &Path, copies: &Copies, percent: u64, report: &mut Report) -> Result<()> {
    eprintln!("{percent} % of scattered 4 KiB blocks …");
    farside_tests::run(site.farside().args(["volume", "pause", "data"]));
    let (blocks, mut rng) = (report.size_bytes / 4096, Rng(42));
    let mut client = connect(&site.tap("data"));
    let mut block = vec![0; 4096];
    let mut changed = std::collections::BTreeSet::new();
    while (changed.len() as u64) < blocks * percent / 100 {
        changed.insert(rng.below(blocks));
    }
    for &at in &changed {
        block.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.draw().to_le_bytes()));
        client.write(at * 4096, &block, 0)?;
    }
    client.flush()?;
    report.changed_bytes = changed.len() as u64 * 4096;
    let before = wire_bytes(site);
    drop_caches();
    let ours = until_published(site, || {
        farside_tests::run(site.farside().args(["volume", "resume", "data"]));
    });
    report.wire_bytes_delta = wire_bytes(site) - before;
    report.wire_per_changed_byte = report.wire_bytes_delta as f64 / report.changed_bytes as f64;
    let what = format!("{percent} % scattered");
    report.add(&what, "farside", ours, ours.seconds);
    if copies.rsync.exists() {
        drop_caches();
        let cost = timed(
            tool("rsync").args(["--inplace", "--no-whole-file", "--fsync", "--ignore-times"]).arg(backing).arg(&copies.rsync),
        )?;
        report.add(&what, "rsync --inplace", cost, ours.seconds);
    }
    if copies.restic.exists() {
        drop_caches();
        let cost = timed(restic(&copies.restic).arg("backup").arg(backing))?;
        report.add(&what, "restic backup", cost, ours.seconds);
    }
    Ok(())
}

fn restore(site: &Site, copies: &Copies, report: &mut Report) -> Result<()> {
    eprintln!("restore …");
    let to = site.path("restored.img");
    drop_caches();
    let ours = timed(
        program("farside").args(["restore", "data", "--point", "latest", "--store"]).arg(site.store()).arg("--to").arg(&to),
    )?;
    report.add("restore", "farside", ours, ours.seconds);
    let same = tool("cmp").arg("--silent").arg(&to).arg(site.backing("data")).status()?.success();
    anyhow::ensure!(same, "the restored image differs from the source");
    std::fs::remove_file(&to)?;
    if copies.restic.exists() {
        drop_caches();
        let cost = timed(restic(&copies.restic).args(["restore", "latest", "--target"]).arg(&copies.restored))?;
        report.add("restore", "restic restore", cost, ours.seconds);
    }
    Ok(())
}

fn print(report: &Report) {
    let gib = report.size_bytes as f64 / f64::from(1 << 30);
    println!(
        "\n{gib:.1} GiB; {:.0} MiB changed; page cache dropped before each line\n",
        report.changed_bytes as f64 / f64::from(1 << 20)
    );
    println!(
        "{:<16} {:<24} {:>9} {:>9} {:>10} {:>10} {:>14}",
        "what", "tool", "seconds", "CPU s", "CPU s/GB", "RSS MiB", "÷ farside"
    );
    for r in &report.rows {
        println!(
            "{:<16} {:<24} {:>9.2} {:>9.2} {:>10.2} {:>10} {:>13.2}×",
            r.what, r.tool, r.seconds, r.cpu_seconds, r.cpu_seconds_per_gb, r.peak_rss_mib, r.farside_is_faster_by
        );
    }
    println!("\nbytes on the wire per changed byte: {:.2}", report.wire_per_changed_byte);
    for line in &report.left_out {
        println!("left out: {line}");
    }
}
