//! `xtask test`: everything that must hold before a change lands, step by step, each with its duration. One failing step
//! does not hide what the next would say.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use crate::{apart, check, fuzz, install, kernels, package};

/// Options of `xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run only these steps, by name.
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Leave out these steps, by name.
    #[arg(long, value_name = "STEP")]
    skip: Vec<String>,
    /// Let the tests of processes and of emulated machines that wear things out go on for so many hours each
    /// (FARSIDE_TEST_HOURS), and show what each did.
    #[arg(long, value_name = "N")]
    hours: Option<f64>,
    /// Name the steps and do nothing.
    #[arg(long)]
    list: bool,
}

/// What a step does.
enum Work {
    /// A function of this program.
    Here(fn() -> anyhow::Result<()>),
    /// The same, beside the steps that follow, up to the one that needs it: it mostly waits for a network.
    Beside(fn() -> anyhow::Result<()>),
    /// A program that succeeds or does not.
    Program(Command),
    /// Programs whose output is libtest's: their tests are counted.
    Tests(Command),
    /// Tests that each have a process of their own; some of them go on for hours if asked to.
    Apart(&'static apart::Plan),
}

/// The step before which everything has ended that runs beside others.
const NEEDS_WHAT_RUNS_BESIDE: &str = "vm";

struct Step {
    name: &'static str,
    what: &'static str,
    work: Work,
}

/// A step that runs beside others.
struct Beside {
    name: &'static str,
    begun: Instant,
    thread: JoinHandle<(anyhow::Result<()>, Duration)>,
}

/// What a step came to.
type Line = (&'static str, Duration, Count);

/// Development crates turn on features that no product binary has, so they are built apart from the product.
const PRODUCT: &[&str] =
    &["--workspace", "--exclude", "farside-sim", "--exclude", "xtask", "--exclude", "farside-tests", "--exclude", "farside-vm"];

fn steps() -> anyhow::Result<Vec<Step>> {
    let mut docs = cargo(&["doc", "--release", "--locked", "--workspace", "--no-deps", "--keep-going"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let mut demo = Command::new(bin_dir()?.join("farside"));
    demo.args(["demo", "--size", "256MiB"]);
    let step = |name, what, work| Step { name, what, work };
    Ok(vec![
        step("install", "what the tests need of the system", Work::Here(install::run)),
        step("kernels", "Debian kernels for virtual machines, fetched once", Work::Beside(kernels::run)),
        step("format", "cargo fmt", Work::Program(cargo(&["fmt", "--all", "--check"]))),
        step("rules", "imports, licences, words, unsafe code, laws", Work::Here(check::run)),
        step(
            "lints",
            "clippy, warnings denied",
            Work::Program(cargo(&[
                "clippy",
                "--release",
                "--locked",
                "--workspace",
                "--all-targets",
                "--keep-going",
                "--",
                "-D",
                "warnings",
            ])),
        ),
        step("docs", "rustdoc, warnings denied", Work::Program(docs)),
        step(
            "tests",
            "of every crate",
            Work::Tests(cargo(&[&["test", "--release", "--locked", "--no-fail-fast"], PRODUCT].concat())),
        ),
        step(
            "simulator",
            "1,000 seeds break no law, every mistake is noticed",
            Work::Tests(cargo(&["test", "--release", "--locked", "--no-fail-fast", "-p", "farside-sim", "-p", "xtask"])),
        ),
        step(
            "models",
            "the five protocols under loom",
            Work::Tests(cargo(&[
                "test",
                "--release",
                "--locked",
                "--no-fail-fast",
                "-p",
                "farside-shim",
                "--features",
                "loom",
                "models",
            ])),
        ),
        step("fuzz", "every decoder, six seconds each", Work::Program(fuzz::step())),
        step(
            "programs",
            "farside, farsided, farside-receiver",
            Work::Program(cargo(&[
                "build",
                "--release",
                "--locked",
                "-p",
                "farside",
                "-p",
                "farside-daemon",
                "-p",
                "farside-receiver",
            ])),
        ),
        step("demo", "the README's first command, smaller", Work::Program(demo)),
        step("processes", "real daemons, kills, file systems, databases", Work::Apart(&apart::PROCESSES)),
        step("packages", "Debian packages for hosts and gateways", Work::Here(|| package::run(&package::for_tests()))),
        step("vm", "emulated machines: real kernels, power cuts", Work::Apart(&apart::MACHINES)),
    ])
}

/// Runs the steps.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let steps = steps()?;
    if args.list {
        steps.iter().for_each(|step| println!("{:10} {}", step.name, step.what));
        return Ok(());
    }
    if let Some(unknown) = args.only.iter().chain(&args.skip).find(|name| !steps.iter().any(|step| step.name == **name)) {
        bail!("there is no step `{unknown}`; --list names them");
    }
    let begun = Instant::now();
    let mut report: Vec<Line> = Vec::new();
    let mut beside: Vec<Beside> = Vec::new();
    for step in steps {
        let chosen = args.only.is_empty() || args.only.iter().any(|name| name == step.name);
        if !chosen || args.skip.iter().any(|name| name == step.name) {
            continue;
        }
        if step.name == NEEDS_WHAT_RUNS_BESIDE {
            report.extend(beside.drain(..).map(Beside::ended));
        }
        println!("\n==> {}: {}", step.name, step.what);
        let begun = Instant::now();
        match step.work {
            Work::Beside(function) => {
                let thread = std::thread::spawn(move || (function(), begun.elapsed()));
                beside.push(Beside { name: step.name, begun, thread });
            }
            work => {
                let count = carry_out(work, args.hours);
                println!("==> {}: {} in {}", step.name, count.words(), seconds(begun.elapsed()));
                report.push((step.name, begun.elapsed(), count));
            }
        }
    }
    report.extend(beside.drain(..).map(Beside::ended));
    println!();
    for (name, took, count) in &report {
        println!("{name:10} {:>9}  {}", seconds(*took), count.words());
    }
    let total = report.iter().fold(Count::default(), |sum, (_, _, count)| sum.plus(*count));
    println!("{:10} {:>9}", "total", seconds(begun.elapsed()));
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        let failed: Vec<&str> = report.iter().filter(|(_, _, count)| count.failed > 0).map(|(name, _, _)| *name).collect();
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

impl Beside {
    /// Waits for it.
    fn ended(self) -> Line {
        let (result, took) = self.thread.join().unwrap_or_else(|_| (Err(anyhow!("it panicked")), self.begun.elapsed()));
        let count = judged(result);
        println!("==> {}: {} in {}", self.name, count.words(), seconds(took));
        (self.name, took, count)
    }
}

fn judged(result: anyhow::Result<()>) -> Count {
    result.map_or_else(
        |error| {
            eprintln!("{error:#}");
            Count::FAILED
        },
        |()| Count::PASSED,
    )
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Count {
    const PASSED: Self = Self { passed: 1, failed: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1 };

    pub(crate) fn plus(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }

    pub(crate) fn words(self) -> String {
        match self {
            Self::PASSED => "passed".to_owned(),
            Self::FAILED => "FAILED".to_owned(),
            Self { passed, failed: 0 } => format!("{passed} passed"),
            Self { passed, failed } => format!("{passed} passed, {failed} FAILED"),
        }
    }
}

fn carry_out(work: Work, hours: Option<f64>) -> Count {
    let result = match work {
        Work::Here(function) | Work::Beside(function) => return judged(function()),
        Work::Program(mut command) => run_program(&mut command).map(|()| Count::PASSED),
        Work::Tests(mut command) => run_tests(&mut command),
        Work::Apart(plan) => apart::run(plan, hours),
    };
    result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        Count::FAILED
    })
}

/// Lets tests go on for so many hours, and show what they did.
pub(crate) fn endure(tests: &mut Command, hours: Option<f64>) {
    if let Some(hours) = hours {
        tests.env("FARSIDE_TEST_HOURS", hours.to_string()).arg("--show-output");
    }
}

fn run_program(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{command:?} does not start"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Lets everything through but the lines of tests that passed, and counts.
fn run_tests(command: &mut Command) -> anyhow::Result<Count> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?} does not start"))?;
    let stdout = child.stdout.take().expect("it was asked for");
    let mut count = Count::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("the output of a test is not text")?;
        if let Some(result) = parse_result(&line) {
            count = count.plus(result);
        }
        let is_noise = line.is_empty() || (line.starts_with("test ") && line.ends_with("... ok")) || line.starts_with("running ");
        if !is_noise {
            println!("{line}");
        }
    }
    let status = child.wait().context("a child can be waited for")?;
    if !status.success() && count.failed == 0 {
        eprintln!("{command:?}: {status}");
        count.failed = 1;
    }
    if status.success() && count.passed == 0 {
        bail!("{command:?}: no test ran");
    }
    Ok(count)
}

/// `test result: ok. 12 passed; 0 failed; …`
pub(crate) fn parse_result(line: &str) -> Option<Count> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |what: &str| rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok());
    Some(Count { passed: number("passed")?, failed: number("failed")? })
}

pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(crate::root());
    command
}

/// Where cargo puts programs: this one came from there.
fn bin_dir() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("a process knows its file")?;
    Ok(this.parent().context("a program is in a folder")?.to_owned())
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_libtest_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.31s";
        assert_eq!(parse_result(line), Some(Count { passed: 12, failed: 3 }));
        assert_eq!(parse_result("test x ... ok"), None);
    }

    #[test]
    fn a_step_that_ran_no_test_has_failed() {
        let mut silent = Command::new("true");
        assert!(run_tests(&mut silent).is_err());
        let mut broken = Command::new("false");
        assert_eq!(run_tests(&mut broken).expect("counted"), Count { passed: 0, failed: 1 });
    }
}
