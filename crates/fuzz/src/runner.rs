//! Many targets, each in a process of its own: what ends one ends nobody else, and leaves its input behind.
//!
//! Invariant: a finding is stored under `corpus/<target>/`, where every later run begins with it, before it is reported.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::engine::{EXECUTIONS, Limit, Target, keep_panics_quiet, left_in};
use crate::targets;

/// How long one input may take before it is called endless: thousands of times more than any needs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a child says by its exit code.
const FOUND: i32 = 101;
const ENDLESS: i32 = 102;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which targets.
    pub targets: Vec<Target>,
    /// For how long each.
    pub time: Duration,
    /// How many at once.
    pub jobs: usize,
    /// Decides the inputs.
    pub seed: u64,
}

/// Where past findings are.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The past findings of a target, in the order of their names.
///
/// # Errors
/// When they cannot be read.
pub fn known(target: &Target) -> anyhow::Result<Vec<Vec<u8>>> {
    let folder = corpus().join(target.name);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().context("the corpus")?;
    paths.sort();
    paths.iter().map(|path| fs::read(path).with_context(|| path.display().to_string())).collect()
}

/// Runs a plan and prints what came of it.
///
/// # Errors
/// When something was found, or a target could not be run.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir().context("no place for scratch files")?;
    println!("{} targets, {:?} each, {} at once, seed {}", plan.targets.len(), plan.time, plan.jobs, plan.seed);
    let queue: Mutex<VecDeque<Target>> = Mutex::new(plan.targets.iter().copied().collect());
    let failures = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            scope.spawn(|| {
                while let Some(target) = next() {
                    if let Err(error) = run_one(&target, plan, scratch.path()) {
                        eprintln!("{}: {error:#}", target.name);
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(target.name);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failures.is_empty() {
        bail!("findings in: {}", failures.join(", "));
    }
    Ok(())
}

fn run_one(target: &Target, plan: &Plan, scratch: &Path) -> anyhow::Result<()> {
    let left = scratch.join(target.name);
    let mut child = Command::new(std::env::current_exe().context("a process knows its file")?);
    child.args(["child", target.name, "--seed", &plan.seed.to_string(), "--milliseconds", &plan.time.as_millis().to_string()]);
    let status = child.arg("--scratch").arg(&left).stdin(Stdio::null()).status().context("no child process")?;
    if status.success() {
        return Ok(());
    }
    let input = left_in(&fs::read(&left).unwrap_or_default()).context("it ended before it tried anything")?;
    // A child that panicked has made its finding small already.
    let input = if status.code() == Some(FOUND) || status.code() == Some(ENDLESS) {
        input
    } else {
        target.shrink(input, |candidate| ends_alike(target, candidate, status, scratch))
    };
    let path = store(target, &input)?;
    bail!(
        "{status}; {} bytes are in {}\n  try it again:   cargo run --release -p farside-fuzz -- try {} {}\n  find it again:  cargo run --release -p farside-fuzz -- run --seed {} --target {}",
        input.len(),
        path.display(),
        target.name,
        path.display(),
        plan.seed,
        target.name
    );
}

fn ends_alike(target: &Target, input: &[u8], status: ExitStatus, scratch: &Path) -> bool {
    let file = scratch.join(format!("{}.try", target.name));
    if fs::write(&file, input).is_err() {
        return false;
    }
    let Ok(program) = std::env::current_exe() else { return false };
    let tried = Command::new(program).args(["try", target.name]).arg(&file).stdin(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|tried| tried == status)
}

fn store(target: &Target, input: &[u8]) -> anyhow::Result<PathBuf> {
    let folder = corpus().join(target.name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(&blake3::hash(input).to_hex()[..12]);
    fs::write(&path, input).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// What a child does: one target, until the time is over or something is found. Ends the process when it is.
///
/// # Errors
/// When the scratch file cannot be used.
pub fn child(target: &Target, seed: u64, time: Duration, scratch: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(scratch)?;
    keep_panics_quiet();
    watch(target.name);
    let limit = Limit { time, executions_max: u64::MAX };
    let begun = Instant::now();
    match target.fuzz(seed, known(target)?, limit, Some(&file)) {
        Ok(tally) => {
            let per_s = tally.executions as f64 / begun.elapsed().as_secs_f64();
            println!(
                "{:20} {:>10} inputs ({per_s:>7.0}/s), {:>3} % accepted, {:>4} outcomes",
                target.name,
                tally.executions,
                100 * tally.accepted / tally.executions.max(1),
                tally.outcomes
            );
            Ok(())
        }
        Err(finding) => {
            let mut bytes = (finding.input.len() as u32).to_le_bytes().to_vec();
            bytes.extend_from_slice(&finding.input);
            fs::write(scratch, bytes)?;
            eprintln!("{}: {}", target.name, finding.what);
            std::process::exit(FOUND);
        }
    }
}

/// Ends the process when an input takes for ever.
fn watch(name: &'static str) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = EXECUTIONS.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                eprintln!("{name}: one input takes more than {PATIENCE:?}");
                std::process::exit(ENDLESS);
            }
        }
    });
}

/// Tries one input and says what came of it.
///
/// # Errors
/// What rule it breaks.
pub fn try_file(target: &Target, file: &Path) -> anyhow::Result<()> {
    let input = fs::read(file).with_context(|| file.display().to_string())?;
    match target.try_input(&input) {
        Ok(outcome) => {
            println!("{outcome:?}");
            Ok(())
        }
        Err(what) => bail!("{what}"),
    }
}

/// The target of that name.
///
/// # Errors
/// When there is none.
pub fn named(name: &str) -> anyhow::Result<Target> {
    let found = targets::all().into_iter().find(|target| target.name == name);
    found.with_context(|| format!("there is no target `{name}`; `list` names them"))
}
