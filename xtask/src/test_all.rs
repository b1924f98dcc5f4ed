//! `xtask test`: everything that must hold before a change lands, step by step, each with its duration. One failing step
//! does not hide what the next would say.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use crate::apart::{self, Built};
use crate::{check, fuzz, install, kernels, package};

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
    /// Run all tests of emulated machines. Without it those that not every run has begin as long as there is time, others with each commit.
    #[arg(long)]
    whole: bool,
    /// Name the steps and do nothing.
    #[arg(long)]
    list: bool,
}

/// What a step does.
enum Work {
    /// A function of this program.
    Here(fn() -> anyhow::Result<()>),
    /// A program that succeeds or does not.
    Program(Command),
    /// Programs whose output is libtest's: their tests are counted.
    Tests(Command),
    /// The tests of these packages, a package after another.
    Of(fn(&Built) -> bool),
    /// Tests that each have a process of their own; some of them go on for hours if asked to.
    Apart(&'static apart::Plan),
}

/// When a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// After the one before it.
    Own,
    /// From its turn on, beside the steps that follow: it mostly waits for a network.
    Beside,
    /// Beside the [`WAITING`], one after another, while nobody else wants the processors: it computes, and hurries nowhere.
    Idle,
}

/// Builds everything, of whatever package, in one go. † Cargo would build most of it again for every choice of packages, since each turns
/// on other features of the same libraries: that was half of the time.
const BUILD: &str = "build";
const PROCESSES: &str = "processes";
/// Whose tests wait more than they compute, for a disk or for each other: beside the first of them there begins what has time.
const WAITING: &[&str] = &["tests", PROCESSES];
/// Makes packages of the programs that were built; emulated machines install them.
const PACKAGES: &str = "packages";
/// Before it everything has ended that runs beside others.
const VM: &str = "vm";

struct Step {
    name: &'static str,
    what: &'static str,
    turn: Turn,
    work: Work,
}

impl Step {
    /// Without what else it cannot run.
    fn needs(&self) -> &'static [&'static str] {
        match self.name {
            "tests" | "simulator" | "fuzz" | "demo" | PROCESSES | PACKAGES => &[BUILD],
            VM => &[BUILD, PACKAGES],
            _ => &[],
        }
    }
}

/// What runs beside others, until it is waited for.
type Beside = JoinHandle<Vec<Line>>;

/// What a step came to.
type Line = (&'static str, Duration, Count);

/// Packages whose tests are steps of their own.
const DEVELOPMENT: &[&str] = &["crates/sim", "xtask"];

fn is_development(built: &Built) -> bool {
    DEVELOPMENT.iter().any(|folder| built.is_of(folder))
}

fn is_product(built: &Built) -> bool {
    !is_development(built) && ![&apart::PROCESSES, &apart::MACHINES].iter().any(|plan| built.is_of(plan.folder))
}

fn steps() -> anyhow::Result<Vec<Step>> {
    let mut docs = cargo(&["doc", "--release", "--locked", "--workspace", "--no-deps", "--keep-going"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let mut demo = Command::new(bin_dir()?.join("farside"));
    demo.args(["demo", "--size", "256MiB"]);
    let turn = |turn, name, what, work| Step { name, what, turn, work };
    let step = |name, what, work| turn(Turn::Own, name, what, work);
    let idle = |name, what, work| turn(Turn::Idle, name, what, work);
    let program = |args: &[&str]| Work::Program(cargo(args));
    let clippy = ["clippy", "--release", "--locked", "--workspace", "--all-targets", "--keep-going", "--", "-D", "warnings"];
    let product = ["check", "--release", "--locked", "-p", "farside", "-p", "farside-daemon", "-p", "farside-receiver"];
    let models = ["test", "--release", "--locked", "--no-fail-fast", "-p", "farside-shim", "--features", "loom", "models"];
    Ok(vec![
        step("install", "what the tests need of the system", Work::Here(install::run)),
        turn(Turn::Beside, "kernels", "Debian kernels for virtual machines, fetched once", Work::Here(kernels::run)),
        step("format", "cargo fmt", program(&["fmt", "--all", "--check"])),
        step("rules", "imports, licences, words, unsafe code, laws", Work::Here(check::run)),
        step(BUILD, "all programs and all tests", Work::Here(|| apart::built().map(|_| ()))),
        step("tests", "of every crate", Work::Of(is_product)),
        idle("simulator", "1,000 seeds break no law, every mistake is noticed", Work::Of(is_development)),
        step("fuzz", "every decoder, six seconds each", Work::Program(fuzz::step(&bin_dir()?))),
        step("demo", "the README's first command, smaller", Work::Program(demo)),
        idle("lints", "clippy, warnings denied", program(&clippy)),
        idle("product", "the programs alone, as users build them, without what only tests turn on", program(&product)),
        idle("docs", "rustdoc, warnings denied", Work::Program(docs)),
        idle("models", "the five protocols under loom", Work::Tests(cargo(&models))),
        step(PROCESSES, "real daemons, kills, file systems, databases", Work::Apart(&apart::PROCESSES)),
        step(PACKAGES, "Debian packages for hosts and gateways", Work::Here(|| package::run(&package::for_tests()))),
        step(VM, "emulated machines: real kernels, power cuts", Work::Apart(&apart::MACHINES)),
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
    let is_left_out = |step: &Step| args.skip.iter().any(|name| name == step.name);
    let is_meant = |step: &Step| (args.only.is_empty() || args.only.iter().any(|name| name == step.name)) && !is_left_out(step);
    let needed: Vec<&str> = steps.iter().filter(|step| is_meant(step)).flat_map(Step::needs).copied().collect();
    let is_chosen = |step: &Step| is_meant(step) || (needed.contains(&step.name) && !is_left_out(step));
    let steps: Vec<Step> = steps.into_iter().filter(is_chosen).collect();
    let (mut idle, steps): (Vec<Step>, Vec<Step>) = match steps.iter().any(|step| WAITING.contains(&step.name)) {
        true => steps.into_iter().partition(|step| step.turn == Turn::Idle),
        // Alone, they have the whole machine.
        false => (Vec::new(), steps),
    };
    let begun = Instant::now();
    let mut report: Vec<Line> = Vec::new();
    let mut beside: Vec<Beside> = Vec::new();
    for step in steps {
        if step.turn == Turn::Beside {
            say(&step);
            beside.push(std::thread::spawn(move || vec![carry_out(step, None, false, begun)]));
            continue;
        }
        if WAITING.contains(&step.name) && !idle.is_empty() {
            let idle = std::mem::take(&mut idle);
            beside.push(std::thread::spawn(move || idle.into_iter().map(carry_out_idle).collect()));
        }
        if step.name == VM {
            report.extend(beside.drain(..).flat_map(ended));
        }
        say(&step);
        report.push(carry_out(step, args.hours, args.whole, begun));
    }
    report.extend(beside.drain(..).flat_map(ended));
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

fn say(step: &Step) {
    println!("\n==> {}: {}", step.name, step.what);
}

/// Waits for what runs beside others.
fn ended(beside: Beside) -> Vec<Line> {
    beside.join().unwrap_or_else(|_| vec![("beside", Duration::ZERO, Count::FAILED)]) // it said why as it panicked
}

fn carry_out(step: Step, hours: Option<f64>, whole: bool, all_begun: Instant) -> Line {
    let begun = Instant::now();
    let result = match step.work {
        Work::Here(function) => function().map(|()| Count::PASSED),
        Work::Program(mut command) => run_program(&mut command).map(|()| Count::PASSED),
        Work::Tests(command) => run_all(vec![command]),
        Work::Of(is_meant) => tests_of(is_meant).and_then(run_all),
        Work::Apart(plan) => apart::run(plan, hours, whole, all_begun),
    };
    let count = judged(result);
    println!("==> {}: {} in {}", step.name, count.words(), seconds(begun.elapsed()));
    (step.name, begun.elapsed(), count)
}

/// Carries a step out while nobody else wants a processor, and shows in one piece what it said.
fn carry_out_idle(step: Step) -> Line {
    let (begun, mut said) = (Instant::now(), String::new());
    let result = match step.work {
        Work::Program(command) => run_idle(&command, &mut said).map(|output| {
            said += &String::from_utf8_lossy(&output.stdout);
            if output.status.success() { Count::PASSED } else { Count::FAILED }
        }),
        Work::Tests(command) => run_all_idle(&[command], &mut said),
        Work::Of(is_meant) => tests_of(is_meant).and_then(|commands| run_all_idle(&commands, &mut said)),
        Work::Here(_) | Work::Apart(_) => Err(anyhow!("{} runs beside nothing", step.name)),
    };
    let count = judged(result);
    print!("\n==> {}: {}\n{said}==> {}: {} in {}\n", step.name, step.what, step.name, count.words(), seconds(begun.elapsed()));
    (step.name, begun.elapsed(), count)
}

/// Runs a program to its end; what it says beside its standard output is kept.
fn run_idle(command: &Command, said: &mut String) -> anyhow::Result<Output> {
    let output = idle(command).output().with_context(|| format!("{command:?} does not start"))?;
    *said += &String::from_utf8_lossy(&output.stderr);
    Ok(output)
}

/// Runs programs of tests, one after another.
fn run_all_idle(commands: &[Command], said: &mut String) -> anyhow::Result<Count> {
    let mut sum = Count::default();
    for command in commands {
        let output = run_idle(command, said)?;
        let count = counted(&output.stdout[..], |line| *said += &format!("{line}\n"))?;
        sum = sum.plus(count.of_program(command, output.status));
    }
    some(sum)
}

/// The same, for when nobody else wants a processor.
pub(crate) fn idle(command: &Command) -> Command {
    let mut chrt = Command::new("chrt"); // of util-linux
    chrt.args(["--idle", "0"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    chrt.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        chrt.current_dir(folder);
    }
    chrt
}

fn judged(result: anyhow::Result<Count>) -> Count {
    result.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        Count::FAILED
    })
}

/// The tests of these packages, as cargo runs them.
fn tests_of(is_meant: fn(&Built) -> bool) -> anyhow::Result<Vec<Command>> {
    Ok(apart::built()?.iter().filter(|built| is_meant(built)).map(Built::command).collect())
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

    /// A program of tests that failed, though none of its tests is known to have, has failed.
    fn of_program(self, command: &Command, status: ExitStatus) -> Self {
        if status.success() || self.failed > 0 {
            return self;
        }
        eprintln!("{command:?}: {status}");
        Self { failed: 1, ..self }
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

/// Runs programs of tests, one after another.
fn run_all(commands: Vec<Command>) -> anyhow::Result<Count> {
    let counts = commands.into_iter().map(|mut command| judged(run_tests(&mut command)));
    some(counts.fold(Count::default(), Count::plus))
}

/// Where no test ran, nothing was tested.
fn some(count: Count) -> anyhow::Result<Count> {
    if count == Count::default() { Err(anyhow!("no test ran")) } else { Ok(count) }
}

/// Lets everything through but the lines of tests that passed, and counts.
fn run_tests(command: &mut Command) -> anyhow::Result<Count> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?} does not start"))?;
    let stdout = child.stdout.take().expect("it was asked for");
    let count = counted(BufReader::new(stdout), |line| println!("{line}"))?;
    let status = child.wait().context("a child can be waited for")?;
    Ok(count.of_program(command, status))
}

/// What a program of tests said, line by line.
fn counted(stdout: impl BufRead, mut say: impl FnMut(&str)) -> anyhow::Result<Count> {
    let mut count = Count::default();
    for line in stdout.lines() {
        let line = line.context("the output of a test is not text")?;
        count = count.plus(parse_result(&line).unwrap_or_default());
        if !is_noise(&line) {
            say(&line);
        }
    }
    Ok(count)
}

/// Nobody asks which tests passed, nor for programs that have none.
fn is_noise(line: &str) -> bool {
    line.is_empty()
        || (line.starts_with("test ") && line.ends_with("... ok"))
        || line.starts_with("running ")
        || line.starts_with("test result: ok. 0 passed")
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
        assert!(run_all(vec![Command::new("true")]).is_err());
        let broken = run_all(vec![Command::new("false"), Command::new("true")]);
        assert_eq!(broken.expect("counted"), Count { passed: 0, failed: 1 });
    }

    #[test]
    fn what_runs_beside_others_is_counted_as_what_does_not() {
        let mut echo = Command::new("/bin/sh");
        echo.args(["-c", "echo $WHAT; echo 'test a ... ok'; echo 'test result: ok. 2 passed; 0 failed; 0 ignored'"]);
        echo.env("WHAT", "something");
        let step = |work| Step { name: "s", what: "a step", turn: Turn::Idle, work };
        assert_eq!(carry_out_idle(step(Work::Tests(echo))).2, Count { passed: 2, failed: 0 });
        for nothing in ["true", "false"] {
            assert_eq!(carry_out_idle(step(Work::Tests(Command::new(nothing)))).2, Count::FAILED);
        }
        assert_eq!(carry_out_idle(step(Work::Program(Command::new("true")))).2, Count::PASSED);
        assert_eq!(carry_out_idle(step(Work::Program(Command::new("false")))).2, Count::FAILED);
        let (text, mut said) = ("hello\ntest a ... ok\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n", Vec::new());
        let count = counted(text.as_bytes(), |line| said.push(line.to_owned())).expect("text");
        assert_eq!((count, said[0].as_str()), (Count { passed: 1, failed: 1 }, "hello"));
    }

    #[test]
    fn what_a_step_needs_comes_before_it() {
        let steps = steps().expect("steps");
        for (at, step) in steps.iter().enumerate() {
            assert!(step.needs().iter().all(|name| steps[..at].iter().any(|step| step.name == *name)), "{}", step.name);
        }
    }
}
