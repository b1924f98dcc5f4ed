//! `cargo run --release -p farside-fuzz -- …`: the fuzzer's command line. `xtask fuzz` and `xtask test` call it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use farside_fuzz::{runner, targets};

/// Fuzzes every decoder.
#[derive(Debug, Parser)]
#[command(name = "farside-fuzz", subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names the targets.
    List,
    /// Fuzzes targets, each for some time.
    Run {
        /// Only this one. May be given more than once.
        #[arg(long)]
        target: Vec<String>,
        /// How long each target is fuzzed, in seconds.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Instead: for how many hours all of them together.
        #[arg(long, conflicts_with = "seconds")]
        hours: Option<f64>,
        /// Decides the inputs; drawn anew by default, and printed.
        #[arg(long)]
        seed: Option<u64>,
        /// How many targets at once; all cores by default.
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Tries one input.
    Try {
        /// The target.
        target: String,
        /// The input.
        file: PathBuf,
    },
    /// One target in this process; what `run` starts.
    #[command(hide = true)]
    Child {
        target: String,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        milliseconds: u64,
        #[arg(long)]
        scratch: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farside-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List => {
            targets::all().iter().for_each(|target| println!("{:20} {}", target.name, target.what));
            Ok(())
        }
        Command::Run { target, seconds, hours, seed, jobs } => {
            let targets = match &target[..] {
                [] => targets::all(),
                names => names.iter().map(|name| runner::named(name)).collect::<Result<_, _>>()?,
            };
            let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
            let rounds = targets.len().div_ceil(jobs.max(1)).max(1);
            let time = hours.map_or(seconds, |hours| hours * 3600.0 / rounds as f64);
            let seed = seed.map_or_else(random, Ok)?;
            runner::run(&runner::Plan { targets, time: Duration::try_from_secs_f64(time)?, jobs, seed })
        }
        Command::Try { target, file } => runner::try_file(&runner::named(&target)?, &file),
        Command::Child { target, seed, milliseconds, scratch } => {
            runner::child(&runner::named(&target)?, seed, Duration::from_millis(milliseconds), &scratch)
        }
    }
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(u32::from_le_bytes(bytes).into())
}
