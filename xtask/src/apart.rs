//! Tests that each have a process of their own, as many at a time as this machine has processors for: those of emulated machines,
//! and, one more, those of real daemons.
//!
//! A guest has one processor unless its test is about several, so two tests keep two processors busy. Those that are about several
//! run first, one at a time: an emulated machine with two processors that are not served at once loses timers. Meanwhile the others
//! have the processors only when nobody else wants them. A test of daemons waits more than it computes; what counts there is that no
//! long one is left to the end, and that none waits for another one only because they are of one file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use crate::test_all::{Count, cargo, endure, idle, parse_result, seconds};

/// Whose tests they are.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The package, and its folder.
    package: &'static str,
    pub(crate) folder: &'static str,
    /// Whose guests have two processors: how their titles begin.
    alone: &'static [&'static str],
    /// The longest tests, by how their titles begin: what begins last should not end last.
    first: &'static [&'static str],
    /// Those that every run has, by how their titles begin. Of the others some come after them, for as long as [`OTHERS`] says; which is another matter with each
    /// commit, so that all are run before long.
    core: &'static [&'static str],
    /// How many run at a time beyond one for each processor. † With two more on two processors a daemon that gives way to its host's load did not
    /// publish for minutes, where others built something beside.
    more: usize,
}

/// All of it is to end within an hour on two processors, and what emulates machines takes more than that by itself: so long, after the
/// core of them, others begin.
const OTHERS: Duration = Duration::from_secs(5 * 60);
/// After so long, counted from the start of all steps, none begins any more; the longest takes ten minutes.
const ALL: Duration = Duration::from_secs(46 * 60);

/// Emulated machines.
pub(crate) const MACHINES: Plan = Plan {
    package: "farside-vm",
    folder: "tests/vm",
    alone: &[
        "kernel_client::an_application_notices_no_kill",
        "ublk::a_daemon_may_die_at_any_moment",
        "ublk::a_device_grows_with_its_backing",
        "ublk::a_machine_without_memory",
        "ublk::a_request_costs_no_more_system_calls",
        "ublk::a_ublk_device_lives_through_everything",
        "ublk::every_point_satisfies_the_dependency_across_queues",
    ],
    first: &[
        "packages::",
        "boot::what",
        "cuts::",
        "sites::",
        "boot::",
        "bypass::",
        "tracking::",
        "insertion::",
        "false_clean::",
        "two_disks::",
    ],
    core: &[
        "crash_points::",
        "cuts::",
        "false_clean::",
        "farside",
        "insertion::a_mounted_volume_of_lvm_is_protected",
        "judge::",
        "kernel_client::an_application_notices_no_kill",
        "kernels::",
        "network::",
        "power::",
        "tracking::",
        "ublk::a_daemon_may_die_as_it_makes_a_device_on_the_newest",
        "ublk::a_daemon_may_die_at_any_moment_of_its_start_on_the_newest",
        "ublk::a_device_grows_with_its_backing",
        "ublk::a_machine_without_memory",
        "ublk::a_request_costs_no_more_system_calls",
        "ublk::a_ublk_device_lives_through_everything_on_the_newest",
        "ublk::every_point_satisfies_the_dependency_across_queues",
    ],
    more: 0,
};

/// Real daemons on this machine.
pub(crate) const PROCESSES: Plan = Plan {
    package: "farside-tests",
    folder: "tests",
    alone: &[],
    first: &[
        "links::",
        "sick_disks::",
        "at_rest::",
        "backing::",
        "power_cuts::",
        "fio::",
        "kill_nine::",
        "bucket::",
        "failback::",
    ],
    core: &[""],
    more: 1,
};

/// More than that need more memory than a small machine has.
const WORKERS_MAX: usize = 4;

/// What runs in a process of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    /// The file of tests that it is of.
    file: String,
    program: PathBuf,
    /// `None`: all of the file.
    name: Option<String>,
}

impl Test {
    fn title(&self) -> String {
        let name = self.name.as_deref().unwrap_or("all");
        format!("{}::{name}", self.file)
    }

    fn is_alone(&self, plan: &Plan) -> bool {
        plan.alone.iter().any(|title| self.title().starts_with(title))
    }

    fn is_core(&self, plan: &Plan) -> bool {
        plan.core.iter().any(|title| self.title().starts_with(title))
    }

    /// Where it comes among those that run beside each other.
    fn rank(&self, plan: &Plan) -> usize {
        plan.first.iter().position(|title| self.title().starts_with(title)).unwrap_or(plan.first.len())
    }

    fn run(&self, plan: &Plan, hours: Option<f64>, priority: Priority) -> anyhow::Result<(Count, String)> {
        let mut command = match priority {
            Priority::Normal => Command::new(&self.program),
            Priority::Idle => idle(&Command::new(&self.program)),
        };
        // As cargo runs it.
        command.current_dir(crate::root().join(plan.folder)).env("CARGO_PKG_NAME", plan.package).args(["--test-threads", "1"]);
        if let Some(name) = &self.name {
            command.args(["--exact", name]);
        }
        endure(&mut command, hours);
        let (status, said) = said_by(&mut command).with_context(|| format!("{command:?} does not start"))?;
        let count = said.lines().filter_map(parse_result).fold(Count::default(), Count::plus);
        let ran = self.name.is_none() || count != Count::default();
        match status.success() {
            true if ran => Ok((count, if hours.is_some() { said } else { String::new() })),
            true => bail!("{}: it did not run\n{said}", self.title()),
            false if count.failed > 0 => Ok((count, said)),
            false => bail!("{}: {status}\n{said}", self.title()),
        }
    }
}

/// How a program ended, and what it said. † Through a file: a test that is aborted leaves daemons behind, which hold a pipe open for as long as they live.
fn said_by(command: &mut Command) -> io::Result<(ExitStatus, String)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("xtask-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let mut file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let status = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?).status()?;
    let mut said = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut said)?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

/// Who waits when there are fewer processors than threads that want one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    Normal,
    /// Whoever has it, before anybody else.
    Idle,
}

/// What is yet to run.
#[derive(Debug, Default)]
struct Queue {
    /// One at a time, and nobody takes a processor from it.
    alone: VecDeque<Test>,
    /// One of them runs.
    is_alone_running: bool,
    others: VecDeque<Test>,
}

impl Queue {
    /// What runs next, and how.
    fn take(&mut self, plan: &Plan) -> Option<(Test, Priority)> {
        if !self.is_alone_running
            && let Some(test) = self.alone.pop_front()
        {
            self.is_alone_running = true;
            return Some((test, Priority::Normal));
        }
        match self.is_alone_running {
            // Who has little time does not begin with what is long, and knows deadlines of systemd's and of ours.
            true => {
                let short = (0..self.others.len()).max_by_key(|at| self.others[*at].rank(plan))?;
                Some((self.others.remove(short)?, Priority::Idle))
            }
            false => Some((self.others.pop_front()?, Priority::Normal)),
        }
    }

    fn ended(&mut self, test: &Test, plan: &Plan) {
        self.is_alone_running &= !test.is_alone(plan);
    }
}

/// Runs them all; `whole`: however long that takes. `begun`: when the first of all steps did.
///
/// # Errors
/// When they cannot be built or listed.
pub(crate) fn run(plan: &Plan, hours: Option<f64>, whole: bool, begun: Instant) -> anyhow::Result<Count> {
    let tests = tests(plan)?;
    let named = || plan.alone.iter().chain(plan.first).chain(plan.core);
    if let Some(title) = named().find(|title| !tests.iter().any(|test| test.title().starts_with(**title))) {
        bail!("there is no test {title}, which is to run alone, first or at last: say its name in xtask/src/apart.rs");
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = (processors + plan.more).min(WORKERS_MAX);
    let (core, mut others): (Vec<Test>, Vec<Test>) = tests.into_iter().partition(|test| test.is_core(plan));
    let is_limited = hours.is_none() && !whole;
    if is_limited {
        begin_with(&mut others, commit());
    }
    let all = begun + ALL;
    let (mut count, late) = run_all(plan, core, workers, hours, is_limited.then_some(all));
    let until = is_limited.then_some(all.min(Instant::now() + OTHERS));
    let mut left = Vec::new();
    // What runs alone has its turn, and no other.
    for tests in others.chunk_by(|one, next| one.is_alone(plan) == next.is_alone(plan)) {
        let (more, not_begun) = run_all(plan, tests.to_vec(), workers, hours, until);
        count = count.plus(more);
        left.extend(not_begun);
    }
    let minutes = |time: Duration| time.as_secs() / 60;
    let within = format!("within {} min after these and {} of all", minutes(OTHERS), minutes(ALL));
    for (left, when) in [(late, format!("within {} min of all steps", minutes(ALL))), (left, within)] {
        if !left.is_empty() {
            println!("{} tests did not begin {when}; another commit begins with others, and --whole runs all:", left.len());
            left.iter().for_each(|test| println!("  {}", test.title()));
        }
    }
    if count.passed == 0 { Err(anyhow!("no test ran")) } else { Ok(count) }
}

/// Another one comes first with each number.
fn begin_with(tests: &mut [Test], number: u64) {
    if !tests.is_empty() {
        tests.rotate_left((number % tests.len() as u64) as usize);
    }
}

/// A number of this commit; 0 where there is none.
fn commit() -> u64 {
    let said =
        Command::new("git").args(["rev-parse", "--short=15", "HEAD"]).current_dir(crate::root()).stderr(Stdio::null()).output();
    let hex = said.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    hex.and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0)
}

/// Runs these, as long as there is time to begin one, and says which are left.
fn run_all(plan: &Plan, tests: Vec<Test>, workers: usize, hours: Option<f64>, until: Option<Instant>) -> (Count, Vec<Test>) {
    let (alone, others): (VecDeque<Test>, VecDeque<Test>) = tests.into_iter().partition(|test| test.is_alone(plan));
    let (queue, total) = (Mutex::new(Queue { alone, others, ..Queue::default() }), Mutex::new(Count::default()));
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || if until.is_some_and(|until| Instant::now() >= until) { None } else { queue().take(plan) };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((test, priority)) = next() {
                    let begun = Instant::now();
                    let (count, said) =
                        test.run(plan, hours, priority).unwrap_or_else(|error| (Count::FAILED, format!("{error:#}\n")));
                    queue().ended(&test, plan);
                    // At once, or two that end together would be printed into each other.
                    let mut out = std::io::stdout().lock();
                    let _ = writeln!(out, "{}: {} in {}\n{said}", test.title(), count.words(), seconds(begun.elapsed()));
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    *total = total.plus(count);
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut queue = queue();
    let Queue { alone, others, .. } = std::mem::take(&mut *queue);
    (total, alone.into_iter().chain(others).collect())
}

/// Says what tests there are, the longest first.
fn tests(plan: &Plan) -> anyhow::Result<Vec<Test>> {
    let mut tests = Vec::new();
    for built in built()?.iter().filter(|built| built.is_of(plan.folder)) {
        let test = |name| Test { file: built.file.clone(), program: built.program.clone(), name };
        match built.is_file_of_tests {
            true => tests.extend(names(&built.program)?.into_iter().map(|name| test(Some(name)))),
            false => tests.push(test(None)),
        }
    }
    tests.sort_by_key(|test| test.rank(plan));
    Ok(tests)
}

/// A program of tests, of whatever package.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Built {
    /// Its package's.
    folder: PathBuf,
    /// The file of tests, or what else it is the unit tests of.
    file: String,
    is_file_of_tests: bool,
    program: PathBuf,
}

impl Built {
    /// Whether it is of the package in this folder.
    pub(crate) fn is_of(&self, folder: &str) -> bool {
        self.folder == crate::root().join(folder)
    }

    /// All its tests, as cargo runs them.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }

    /// Of a line that cargo says of a build; `None`: it is about something else.
    fn parse(line: &str) -> Option<Self> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
        let (target, program) = (&message["target"], message["executable"].as_str()?);
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
        let (file, is_file_of_tests) = (target["name"].as_str()?.to_owned(), target["kind"][0] == "test");
        is_test.then(|| Self { folder, file, is_file_of_tests, program: program.into() })
    }
}

/// Builds all packages and their tests, once.
///
/// # Errors
/// When that fails.
pub(crate) fn built() -> anyhow::Result<&'static [Built]> {
    static BUILT: OnceLock<Vec<Built>> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built);
    }
    let what = ["--workspace", "--lib", "--bins", "--tests", "--message-format", "json-render-diagnostics"];
    let mut build = cargo(&[&["build", "--release", "--locked"], &what[..]].concat());
    let output =
        build.stdin(Stdio::null()).stderr(Stdio::inherit()).output().with_context(|| format!("{build:?} does not start"))?;
    if !output.status.success() {
        bail!("{build:?}: {}", output.status);
    }
    Ok(BUILT.get_or_init(|| String::from_utf8_lossy(&output.stdout).lines().filter_map(Built::parse).collect()))
}

fn names(program: &Path) -> anyhow::Result<Vec<String>> {
    let mut list = Command::new(program);
    let listed = list.args(["--list", "--format", "terse"]).output().with_context(|| format!("{list:?} does not start"))?;
    if !listed.status.success() {
        bail!("{list:?}: {}", listed.status);
    }
    let lines = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(lines.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it left behind would be waited for: a step never ended.
    #[test]
    fn a_test_that_leaves_somebody_behind_has_ended() {
        let (status, said) =
            said_by(Command::new("sh").args(["-c", "sleep 1000 & echo $!; echo wrong >&2; exit 3"])).expect("it starts");
        let (left, rest) = said.split_once('\n').expect("its number");
        // By the shell's own: a small machine has no program for it.
        assert!(Command::new("sh").args(["-c", "kill $0", left]).status().expect("it starts").success(), "it lives");
        assert_eq!((status.code(), rest), (Some(3), "wrong\n"));
    }

    #[test]
    fn programs_of_tests_are_told_from_what_they_need() {
        let artifact = |kind: &str, test: bool, program: &str| {
            let (target, path) = (format!(r#"{{"kind":["{kind}"],"name":"n"}}"#), "/w/crates/c/Cargo.toml");
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{path}","target":{target},"profile":{{"test":{test}}},"executable":{program}}}"#
            )
        };
        let built = |is_file_of_tests| {
            Some(Built { folder: "/w/crates/c".into(), file: "n".to_owned(), is_file_of_tests, program: "/x".into() })
        };
        assert_eq!(Built::parse(&artifact("test", true, "\"/x\"")), built(true));
        assert_eq!(Built::parse(&artifact("lib", true, "\"/x\"")), built(false));
        assert_eq!(Built::parse(&artifact("bin", false, "\"/x\"")), None);
        assert_eq!(Built::parse(&artifact("lib", true, "null")), None);
        assert_eq!(Built::parse("no JSON"), None);
    }

    #[test]
    fn nobody_takes_a_processor_from_what_runs_alone() {
        let test = |title: &str| {
            let (file, name) = title.split_once("::").expect("a title");
            Test { file: file.to_owned(), program: "/x".into(), name: Some(name.to_owned()) }
        };
        let (alone, others) = ([test(MACHINES.alone[0]), test(MACHINES.alone[1])], [test("f::a"), test("f::b"), test("f::c")]);
        let mut queue = Queue { alone: alone.clone().into(), others: others.clone().into(), ..Queue::default() };
        assert_eq!(queue.take(&MACHINES), Some((alone[0].clone(), Priority::Normal)));
        assert_eq!(queue.take(&MACHINES), Some((others[2].clone(), Priority::Idle)), "what is long waits");
        queue.ended(&others[2], &MACHINES);
        assert_eq!(queue.take(&MACHINES), Some((others[1].clone(), Priority::Idle)), "the other one runs yet");
        queue.ended(&alone[0], &MACHINES);
        assert_eq!(queue.take(&MACHINES), Some((alone[1].clone(), Priority::Normal)));
        queue.ended(&alone[1], &MACHINES);
        assert_eq!(queue.take(&MACHINES), Some((others[0].clone(), Priority::Normal)));
        assert_eq!(queue.take(&MACHINES), None);
        // Wherever it stands.
        let (long, short) = (test(&format!("{}a", MACHINES.first[0])), test("f::a"));
        for others in [[long.clone(), short.clone()], [short.clone(), long.clone()]] {
            let mut queue = Queue { alone: alone.clone().into(), others: others.into(), ..Queue::default() };
            queue.take(&MACHINES);
            assert_eq!(queue.take(&MACHINES), Some((short.clone(), Priority::Idle)));
        }
    }

    #[test]
    fn whatever_is_left_out_comes_first_some_time() {
        let test = |name: &str| Test { file: "f".to_owned(), program: "/x".into(), name: Some(name.to_owned()) };
        let first = |number| {
            let mut tests = ["a", "b", "c"].map(test);
            begin_with(&mut tests, number);
            tests[0].name.clone().expect("named")
        };
        assert_eq!([0, 1, 2, 3, u64::MAX].map(first), ["a", "b", "c", "a", "a"]);
        begin_with(&mut [], 7);
    }

    #[test]
    fn all_are_run_and_what_fails_is_counted() {
        let test =
            |program: &str, name: &str| Test { file: "f".to_owned(), program: program.into(), name: Some(name.to_owned()) };
        // It says its arguments, and so what a test says.
        let good = test("/bin/echo", "t\ntest result: ok. 1 passed; 0 failed; 0 ignored");
        let (dead, silent) = (test("/bin/false", "t"), test("/bin/true", "t"));
        let tests = vec![good.clone(), dead, silent, test("/nowhere", "t"), good];
        let (count, left) = run_all(&MACHINES, tests.clone(), 2, None, None);
        assert_eq!((count, left.len()), (Count { passed: 2, failed: 3 }, 0));
        // Where there is no time any more, none begins, and all are named.
        let (count, left) = run_all(&MACHINES, tests.clone(), 2, None, Some(Instant::now()));
        assert_eq!((count, left), (Count::default(), tests));
    }
}
