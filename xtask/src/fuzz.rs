//! `xtask fuzz`: the fuzzer of `crates/fuzz`, built without what development crates turn on.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Seconds for each target where nothing else is said: what `xtask test` gives.
const SECONDS: f64 = 6.0;
/// What `xtask test` begins from, so that everybody sees the same.
const SEED: u64 = 1;

/// Fuzzes every decoder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For so many hours, all targets together, from a seed drawn anew; 6 seconds each without it.
    #[arg(long)]
    hours: Option<f64>,
    /// Only this target; `list` names all. May be given more than once.
    #[arg(long)]
    target: Vec<String>,
    /// Decides the inputs.
    #[arg(long)]
    seed: Option<u64>,
    /// Targets at once; all cores by default.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs the subcommand.
///
/// # Errors
/// When something was found. It is made small and kept in `crates/fuzz/corpus`, and the command to try it again is printed.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let mut command = fuzzer();
    if args.target.iter().any(|target| target == "list") {
        command.arg("list");
        return succeed(command);
    }
    command.arg("run");
    match args.hours {
        Some(hours) => command.args(["--hours", &hours.to_string()]),
        None => command.args(["--seconds", &SECONDS.to_string()]),
    };
    let seed = args.seed.or((args.hours.is_none()).then_some(SEED));
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(jobs) = args.jobs {
        command.args(["--jobs", &jobs.to_string()]);
    }
    for target in &args.target {
        command.args(["--target", target]);
    }
    succeed(command)
}

/// The step of `xtask test`, by the program that was built in this folder.
pub(crate) fn step(bin_dir: &Path) -> Command {
    let mut command = Command::new(bin_dir.join("farside-fuzz"));
    command.current_dir(crate::root()).args(["run", "--seconds", &SECONDS.to_string(), "--seed", &SEED.to_string()]);
    command
}

fn fuzzer() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "--release", "--locked", "-p", "farside-fuzz", "--"]).current_dir(crate::root());
    command
}

fn succeed(mut command: Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{command:?} does not start"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
