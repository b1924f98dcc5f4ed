//! Tests that each have a process of their own, as many at a time as this machine has processors for: those of emulated machines,
//! and those of real daemons.
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
    /// Tests much like others, on another kernel or another way: they run after those, as long as the step has not taken [`LONG`] yet.
    spare: &'static [&'static str],
}

/// A machine may be three times as slow as another one, and all of it is to end within its time there, too.
const LONG: Duration = Duration::from_secs(20 * 60);
/// After so long, counted from the start of all steps, none begins any more: whoever runs this waits for 90 minutes at most, and of those that are not begun
/// first the longest takes 8 on such a machine.
const ALL: Duration = Duration::from_secs(70 * 60);

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
    spare: &[
        "boot::what_fstab_names",
        "boot::a_partition_comes_up",
        "bypass::a_table_that_is_changed_behind_our_back_is_noticed_over_ublk",
        "bypass::lvm_takes_the_tap_out",
        "cuts::ten_power_cuts_of_an_ext4_on_the_stock_kernel",
        "cuts::ten_power_cuts_of_an_xfs",
        "insertion::ten_times_in_and_out",
        "kernel_client::a_device_grows",
        "kernel_client::a_machine_without_memory",
        "packages::a_daemon_that_is_killed",
        "pair::a_host_that_loses_its_power_is_restored",
        "two_disks::every_point_is_what_the_kernels_log_says",
        "ublk::a_daemon_may_die_as_it_makes_a_device_on_backports",
        "ublk::a_daemon_may_die_at_any_moment_of_its_start_on_backports",
        "ublk::a_data_path_is_chosen",
        "ublk::a_device_is_handed_over",
        "ublk::a_device_that_cannot_grow",
        "ublk::a_ublk_device_lives_through_everything_on_backports",
    ],
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
    spare: &[],
};

/// More guests than that need more memory than a small machine has.
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

    fn is_spare(&self, plan: &Plan) -> bool {
        plan.spare.iter().any(|title| self.title().starts_with(title))
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
    fn take(&mut self) -> Option<(Test, Priority)> {
        if !self.is_alone_running
            && let Some(test) = self.alone.pop_front()
        {
            self.is_alone_running = true;
            return Some((test, Priority::Normal));
        }
        match self.is_alone_running {
            // Who has little time does not begin with what is long, and knows deadlines of systemd's and of ours.
            true => Some((self.others.pop_back()?, Priority::Idle)),
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
    let named = || plan.alone.iter().chain(plan.first).chain(plan.spare);
    if let Some(title) = named().find(|title| !tests.iter().any(|test| test.title().starts_with(**title))) {
        bail!("there is no test {title}, which is to run alone, first or at last: say its name in xtask/src/apart.rs");
    }
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
    let (spare, tests): (Vec<Test>, Vec<Test>) = tests.into_iter().partition(|test| test.is_spare(plan));
    let is_limited = hours.is_none() && !whole;
    let (all, long) = (begun + ALL, Instant::now() + LONG);
    let (count, late) = run_all(plan, tests, workers, hours, is_limited.then_some(all));
    let (more, left) = run_all(plan, spare, workers, hours, is_limited.then_some(all.min(long)));
    for (left, after, which) in
        [(late, ALL, "tests were left out, since all steps"), (left, LONG, "more were left out, since it")]
    {
        if !left.is_empty() {
            println!("{} {which} took {} min without them; --whole runs them:", left.len(), after.as_secs() / 60);
            left.iter().for_each(|test| println!("  {}", test.title()));
        }
    }
    let count = count.plus(more);
    if count.passed == 0 { Err(anyhow!("no test ran")) } else { Ok(count) }
}

/// Runs these, as long as there is time to begin one, and says which are left.
fn run_all(plan: &Plan, tests: Vec<Test>, workers: usize, hours: Option<f64>, until: Option<Instant>) -> (Count, Vec<Test>) {
    let (alone, others): (VecDeque<Test>, VecDeque<Test>) = tests.into_iter().partition(|test| test.is_alone(plan));
    let (queue, total) = (Mutex::new(Queue { alone, others, ..Queue::default() }), Mutex::new(Count::default()));
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || if until.is_some_and(|until| Instant::now() >= until) { None } else { queue().take() };
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
        assert_eq!(queue.take(), Some((alone[0].clone(), Priority::Normal)));
        assert_eq!(queue.take(), Some((others[2].clone(), Priority::Idle)), "what is long waits");
        queue.ended(&others[2], &MACHINES);
        assert_eq!(queue.take(), Some((others[1].clone(), Priority::Idle)), "the other one runs yet");
        queue.ended(&alone[0], &MACHINES);
        assert_eq!(queue.take(), Some((alone[1].clone(), Priority::Normal)));
        queue.ended(&alone[1], &MACHINES);
        assert_eq!(queue.take(), Some((others[0].clone(), Priority::Normal)));
        assert_eq!(queue.take(), None);
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
