//! Side by side with what a user would run instead, in one run on one machine. Prints tables and writes JSON. Believe the
//! ratios, not the digits.
//!
//! Everything runs on loopback and in one temporary directory; the page cache is dropped before each measurement where the
//! user may do that. What is not installed is left out, by name. Each section makes its own site; none depends on another.

mod copies;
mod drbd;
mod drill;
mod first_byte;
mod image;
mod lag;
mod measure;
mod report;
mod restore;
mod tap;
mod vm;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use crate::report::Report;

/// Measures Farside against rsync, restic, borg, qemu-img, nbdcopy, qemu-nbd and nbdkit on the same data, in the same run.
#[derive(Debug, Parser)]
#[command(name = "farside-bench", version)]
struct Args {
    /// Size of the volume in MiB.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(64..))]
    size_mib: u64,
    /// Share of the volume that each delta changes, in percent.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=50))]
    delta_percent: u64,
    /// Seconds that each workload on the tap runs.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    tap_seconds: u64,
    /// Of section `vm`, only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    vm: Vec<vm::Subject>,
    /// How often section `vm` measures each of them, in turns.
    #[arg(long, default_value_t = 2)]
    vm_rounds: usize,
    /// How often sections `restore` and `first-byte` measure each of them, in turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    restore_rounds: u16,
    /// Of section `first-byte`, the histories of the points that are opened.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 10_000], value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    points: Vec<u64>,
    /// Of section `first-byte`, a folder for the stores, which are kept there and used again; without it they are made anew, and removed.
    #[arg(long)]
    stores: Option<PathBuf>,
    /// Only these sections; all of them but `drill`, `restore`, `first-byte` and `vm` without it.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Where the JSON goes.
    #[arg(long, default_value = "bench.json")]
    json: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// First sync, a scattered and a clustered delta, restore.
    Copies,
    /// IOPS and latency of the tap: idle, replicating, around cuts.
    Tap,
    /// Lag against write rate.
    Lag,
    /// Latency and lag of a source beside a drill that is written to.
    Drill,
    /// Restores from a bucket, beside restic and a raw parallel GET, and section `first-byte`. Needs radosgw
    /// (`cargo run --release -p xtask -- test --only install`) for the former.
    Restore,
    /// The first byte of an open point by size and history.
    FirstByte,
    /// Block devices in an emulated machine: ublk, the kernel's NBD client and the disk itself. Needs qemu and the kernels:
    /// `cargo run --release -p xtask -- test --only install --only kernels --only packages`.
    Vm,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let wanted = |section| args.only.is_empty() || args.only.contains(&section);
    let mut report = Report::new(args.size_mib << 20, measure::drop_caches());
    if wanted(Section::Copies) {
        copies::run(args.size_mib << 20, args.delta_percent, &mut report)?;
    }
    if wanted(Section::Tap) {
        tap::run(args.tap_seconds, &mut report)?;
    }
    if wanted(Section::Lag) {
        lag::run(args.tap_seconds, &mut report)?;
    }
    if args.only.contains(&Section::Drill) {
        drill::run(args.tap_seconds, &mut report)?;
    }
    if args.only.contains(&Section::Restore) {
        let wanted = restore::Wanted { bytes: args.size_mib << 20, rounds: args.restore_rounds.into() };
        restore::run(&wanted, &mut report)?;
    }
    if args.only.contains(&Section::Restore) || args.only.contains(&Section::FirstByte) {
        let wanted = first_byte::Wanted { rounds: args.restore_rounds.into(), points: args.points, stores: args.stores };
        first_byte::run(&wanted, &mut report)?;
    }
    if args.only.contains(&Section::Vm) {
        vm::run(&vm::Wanted { devices: args.vm, rounds: args.vm_rounds, seconds: args.tap_seconds }, &mut report)?;
    }
    report.print();
    std::fs::write(&args.json, serde_json::to_string_pretty(&report)?).with_context(|| args.json.display().to_string())?;
    println!("\nJSON: {}", args.json.display());
    Ok(())
}
