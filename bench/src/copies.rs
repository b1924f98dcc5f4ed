//! First sync, deltas and restore: the work that backup and copy tools do too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use farside_tests::verify::{Rng, connect};
use farside_tests::{Site, VolumeSpec, program, tool};

use crate::image;
use crate::measure::{Cost, ProcessCost, drop_caches, installed, timed};
use crate::report::Report;

const REGION: u64 = 4 << 20;
const GRANULE: u64 = 4096;

/// Where the others keep their copies.
struct Copies {
    rsync: PathBuf,
    restic: PathBuf,
    borg: PathBuf,
    scratch: PathBuf,
}

pub(crate) fn run(bytes: u64, percent: u64, report: &mut Report) -> Result<()> {
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes, group: "default".into() }], "1s", 4);
    let backing = site.backing("data");
    eprintln!("making {} MiB of mixed content …", bytes >> 20);
    image::fill(&backing, bytes)?;
    let copies = Copies {
        rsync: site.path("rsync.img"),
        restic: site.path("restic"),
        borg: site.path("borg"),
        scratch: site.path("scratch"),
    };
    for name in ["rsync", "restic", "borg", "qemu-img", "nbdcopy"] {
        if !installed(name) {
            report.left_out(format!("{name} is not installed"));
        }
    }
    first_sync(&mut site, &backing, &copies, bytes, report)?;
    let blocks = bytes / GRANULE;
    let mut rng = Rng(42);
    let mut scattered = BTreeSet::new();
    while (scattered.len() as u64) < blocks * percent / 100 {
        scattered.insert(rng.below(blocks) * GRANULE);
    }
    delta(&site, &backing, &copies, "scattered", &scattered, GRANULE, report)?;
    let regions = bytes / REGION;
    let mut clustered = BTreeSet::new();
    while (clustered.len() as u64) < (regions * percent / 100).max(1) {
        clustered.insert(rng.below(regions) * REGION);
    }
    delta(&site, &backing, &copies, "clustered", &clustered, REGION, report)?;
    restore(&site, &copies, bytes, report)
}

fn restic(copies: &Copies) -> Command {
    let mut command = tool("restic");
    command.arg("--repo").arg(&copies.restic).args(["--no-cache", "--quiet"]).env("RESTIC_PASSWORD", "bench");
    command
}

fn borg(copies: &Copies, verb: &str) -> Command {
    let mut command = tool("borg");
    let base = copies.borg.with_extension("home");
    command.arg(verb).env("BORG_PASSPHRASE", "bench").env("BORG_BASE_DIR", base).env("BORG_REPO", &copies.borg);
    command
}

fn wire_bytes(site: &Site) -> u64 {
    site.volume_status("data")["counters"]["wire_bytes"].as_u64().unwrap_or(0)
}

/// Waits until what was changed is published, and measures both daemons meanwhile: CPU of both together, memory of the bigger.
fn until_published(site: &Site, begin: impl FnOnce()) -> Cost {
    let daemons = [site.daemon.as_ref(), site.receiver.as_ref()].map(|p| ProcessCost::start(p.expect("it runs").pid()));
    let start = Instant::now();
    begin();
    site.wait_quiet();
    let seconds = start.elapsed().as_secs_f64();
    let costs: Vec<(f64, u64)> = daemons.iter().map(ProcessCost::so_far).collect();
    Cost { seconds, cpu_seconds: costs.iter().map(|c| c.0).sum(), peak_rss_kib: costs.iter().map(|c| c.1).max().unwrap_or(0) }
}

fn first_sync(site: &mut Site, backing: &Path, copies: &Copies, bytes: u64, report: &mut Report) -> Result<()> {
    const WHAT: &str = "first sync";
    eprintln!("{WHAT} …");
    site.start_receiver();
    site.start_daemon();
    drop_caches();
    let ours = until_published(site, || site.pair());
    report.copied(WHAT, "farside", ours, bytes);
    let mut other = |name: &str, tool: &'static str, command: &mut Command| -> Result<()> {
        if installed(name) {
            drop_caches();
            report.copied(WHAT, tool, timed(command)?, bytes);
        }
        Ok(())
    };
    let from = format!("if={}", backing.display());
    other("dd", "dd, read only", tool("dd").args([&from, "of=/dev/null", "bs=4M", "iflag=direct", "status=none"]))?;
    let to = copies.scratch.with_extension("qemu");
    other(
        "qemu-img",
        "qemu-img convert",
        tool("qemu-img").args(["convert", "-m", "16", "-W", "-t", "none", "-T", "none", "-O", "raw"]).arg(backing).arg(&to),
    )?;
    let _ = std::fs::remove_file(&to);
    let to = copies.scratch.with_extension("nbdcopy");
    let (source, target) = (copies.scratch.with_extension("from"), copies.scratch.with_extension("to"));
    if installed("nbdcopy") && installed("qemu-nbd") {
        std::fs::File::create(&to)?.set_len(bytes)?;
        let _servers = [crate::tap::qemu_nbd(backing, &source, true)?, crate::tap::qemu_nbd(&to, &target, false)?];
        let uri = |path: &Path| format!("nbd+unix:///?socket={}", path.display());
        other("nbdcopy", "nbdcopy, plain sockets", tool("nbdcopy").arg("--flush").args([uri(&source), uri(&target)]))?;
    }
    let _ = std::fs::remove_file(&to);
    other("rsync", "rsync -W", tool("rsync").args(["-W", "--inplace", "--fsync"]).arg(backing).arg(&copies.rsync))?;
    if installed("restic") {
        timed(restic(copies).arg("init"))?;
    }
    other("restic", "restic", restic(copies).args(["backup", "--force"]).arg(backing))?;
    if installed("borg") {
        timed(borg(copies, "init").args(["--encryption", "repokey-blake2"]))?;
    }
    other("borg", "borg", borg(copies, "create").args(["--compression", "lz4", "::first"]).arg(backing))
}

/// Rewrites `len` bytes at each place with noise while replication is paused, then lets everybody catch up.
fn delta(
    site: &Site,
    backing: &Path,
    copies: &Copies,
    what: &'static str,
    places: &BTreeSet<u64>,
    len: u64,
    report: &mut Report,
) -> Result<()> {
    let changed = places.len() as u64 * len;
    eprintln!("{what} delta, {} MiB …", changed >> 20);
    farside_tests::run(site.farside().args(["volume", "pause", "data"]));
    let mut client = connect(&site.tap("data"));
    let mut rng = Rng(len);
    let mut block = vec![0; len.min(1 << 20) as usize];
    for &place in places {
        for at in (place..place + len).step_by(block.len()) {
            block.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.draw().to_le_bytes()));
            client.write(at, &block, 0)?;
        }
    }
    client.flush()?;
    let before = wire_bytes(site);
    drop_caches();
    let ours = until_published(site, || {
        farside_tests::run(site.farside().args(["volume", "resume", "data"]));
    });
    report.copied(what, "farside", ours, changed);
    report.on_the_wire(what, (wire_bytes(site) - before) as f64 / changed as f64);
    let mut other = |name: &str, tool: &'static str, command: &mut Command| -> Result<()> {
        if installed(name) {
            drop_caches();
            report.copied(what, tool, timed(command)?, changed);
        }
        Ok(())
    };
    other(
        "rsync",
        "rsync --inplace",
        tool("rsync").args(["--inplace", "--no-whole-file", "--fsync", "--ignore-times"]).arg(backing).arg(&copies.rsync),
    )?;
    other("restic", "restic", restic(copies).arg("backup").arg(backing))?;
    other("borg", "borg", borg(copies, "create").args(["--compression", "lz4"]).arg(format!("::{what}")).arg(backing))
}

fn restore(site: &Site, copies: &Copies, bytes: u64, report: &mut Report) -> Result<()> {
    const WHAT: &str = "restore";
    eprintln!("{WHAT} …");
    let to = site.path("restored.img");
    drop_caches();
    let ours = timed(
        program("farside").args(["restore", "data", "--point", "latest", "--store"]).arg(site.store()).arg("--to").arg(&to),
    )?;
    report.copied(WHAT, "farside", ours, bytes);
    let same = tool("cmp").arg("--silent").arg(&to).arg(site.backing("data")).status()?.success();
    anyhow::ensure!(same, "the restored image differs from the source");
    std::fs::remove_file(&to)?;
    if installed("restic") {
        drop_caches();
        let cost = timed(restic(copies).args(["restore", "latest", "--target"]).arg(&copies.scratch))?;
        report.copied(WHAT, "restic", cost, bytes);
        std::fs::remove_dir_all(&copies.scratch)?;
    }
    if installed("borg") {
        std::fs::create_dir_all(&copies.scratch)?;
        drop_caches();
        let cost = timed(borg(copies, "extract").arg("::clustered").current_dir(&copies.scratch))?;
        report.copied(WHAT, "borg", cost, bytes);
        std::fs::remove_dir_all(&copies.scratch)?;
    }
    Ok(())
}
