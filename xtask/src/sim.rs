//! `xtask sim`: replays one seed of the simulator with its story, or runs many.

use std::ops::Range;
use std::time::{Instant, SystemTime};

use anyhow::{Context, bail};
use farside_sim::mutations::{MUTATIONS, PLANS};
use farside_sim::run::Options;
use farside_sim::sweep::sweep;

/// Runs the simulator.
#[derive(Debug, clap::Args)]
pub(crate) struct SimArgs {
    /// Replay this one seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run these seeds, `A..B`.
    #[arg(long, value_parser = parse_range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// Run such plans, not those of chance: merges, failovers, failbacks, followers, cohorts, calm-cohorts, kept-cohorts, hooks.
    #[arg(long, conflicts_with_all = ["mutate", "hours"])]
    plan: Option<String>,
    /// Run new seeds for so many hours, from a number that the day decides, until one breaks a law: for the night.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "mutate"])]
    hours: Option<f64>,
    /// Print the story of the run as it happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Make this mistake, by name; `list` names all. May be given more than once.
    #[arg(long)]
    mutate: Vec<String>,
    /// With --mutate: run all seeds instead of stopping at the first that notices.
    #[arg(long)]
    all: bool,
    /// Say how often the seeds met each fault, each action of the state machines, and whatever else is rare.
    #[arg(long)]
    coverage: bool,
    /// Threads; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

fn parse_range(text: &str) -> anyhow::Result<Range<u64>> {
    let (from, to) = text.split_once("..").context("write it as A..B")?;
    Ok(from.parse()?..to.parse()?)
}

/// Runs the subcommand.
///
/// # Errors
/// When a law was broken (without `--mutate`), or none was (with it).
pub(crate) fn main(args: &SimArgs) -> anyhow::Result<()> {
    if args.mutate.iter().any(|m| m == "list") {
        for mutation in MUTATIONS {
            println!("{:45} {}", mutation.name, mutation.caught_by);
        }
        return Ok(());
    }
    let names: Vec<&str> = args.mutate.iter().map(String::as_str).collect();
    if let Some(unknown) = names.iter().find(|n| !MUTATIONS.iter().any(|m| m.name == **n)) {
        bail!("there is no mutation `{unknown}`; `--mutate list` names them");
    }
    let of_mutation = || MUTATIONS.iter().find(|m| names.contains(&m.name)).and_then(|m| m.directed);
    let directed = match &args.plan {
        Some(name) => Some(PLANS.iter().find(|(plan, _)| plan == name).with_context(|| format!("there is no plan `{name}`"))?.1),
        None => of_mutation(),
    };
    let options = Options { trace: args.trace, mutations: &names, directed };
    if let Some(seed) = args.seed {
        let outcome = farside_sim::run::run(seed, options);
        println!("seed {seed}: {} points, {} records, {} steps", outcome.points, outcome.records, outcome.steps);
        if let Some(bad) = outcome.bad {
            if !args.trace {
                outcome.tail.iter().for_each(|line| println!("{line}"));
            }
            bail!("seed {seed}: {bad}");
        }
        return Ok(());
    }
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    if let Some(hours) = args.hours {
        return night(hours, threads);
    }
    let summary = sweep(args.seeds.clone(), threads, options, !names.is_empty() && !args.all);
    if args.coverage {
        summary.met.iter().for_each(|(what, count)| println!("{count:9} {what}"));
    }
    println!("{summary}");
    match (names.is_empty(), summary.failures.is_empty()) {
        (true, false) => bail!("{} seeds broke a law", summary.failures.len()),
        (false, true) => bail!("no seed noticed the mistake"),
        _ => Ok(()),
    }
}

/// Seeds between two lines of progress.
const SHIFT: u64 = 2_000;

/// No two nights run the same seeds.
fn night(hours: f64, threads: usize) -> anyhow::Result<()> {
    let days =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock stands before 1970")?.as_secs() / 86_400;
    let (begun, first) = (Instant::now(), days * 10_000_000);
    let (mut from, mut points) = (first, 0);
    while begun.elapsed().as_secs_f64() < hours * 3600.0 {
        let summary = sweep(from..from + SHIFT, threads, Options::default(), true);
        // What is not left to chance takes its turns.
        let (name, plan) = PLANS[usize::try_from((from - first) / SHIFT)? % PLANS.len()];
        let planned = sweep(from..from + SHIFT / 4, threads, Options { directed: Some(plan), ..Options::default() }, true);
        if !planned.failures.is_empty() {
            println!("{planned}");
            bail!("a seed broke a law; it is replayed with `--plan {name}` beside its number");
        }
        (from, points) = (from + SHIFT, points + summary.points);
        if !summary.failures.is_empty() {
            println!("{summary}");
            bail!("a seed broke a law");
        }
        println!(
            "{:6.2} h: seeds {first}..{from}, {points} points compared with the truth, none bad",
            begun.elapsed().as_secs_f64() / 3600.0
        );
    }
    Ok(())
}
