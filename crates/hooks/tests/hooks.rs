//! Whole guards with commands: what runs in which order, and that everything is ended whoever dies, hangs, writes or does not read.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use farside_hooks::{Forgotten, Guard, Hook, Outcome, Plan, Run, Stage, What, resume};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const GUARD: &str = env!("CARGO_BIN_EXE_farside-hooks-test-guard");

struct Site(TempDir);

impl Site {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn note(&self) -> PathBuf {
        self.path("run/group.json")
    }

    /// A shell script that has `$1` as its stage, `$D` as this folder, and first logs `HOOK STAGE` (and the cut).
    fn hook(&self, name: &str, script: &str) -> Hook {
        let folder = self.0.path().display();
        let script = format!("D={folder}; echo $FARSIDE_HOOK $1 $FARSIDE_CUT >> $D/log; {script}");
        let words = ["/bin/sh", "-c", script.as_str(), "hook"].map(str::to_owned).to_vec();
        Hook { name: name.parse().unwrap(), what: What::Command(words), timeout: LONG }
    }

    fn plan(&self, hooks: Vec<Hook>) -> Plan {
        let volumes = ["data", "wal"].map(|name| name.parse().unwrap()).to_vec();
        Plan {
            version: Plan::VERSION,
            group: "group".parse().unwrap(),
            volumes,
            hooks,
            hold_ms: 60_000,
            note: self.note(),
            spared: vec![],
        }
    }

    fn start(&self, hooks: Vec<Hook>) -> Run {
        Run::start(&guard(), &self.plan(hooks)).unwrap()
    }

    /// One hook, to the end.
    fn run(&self, script: &str) -> Outcome {
        let mut run = self.start(vec![self.hook("h", script)]);
        let _ = run.ready();
        run.end(true)
    }

    fn log(&self) -> Vec<String> {
        fs::read_to_string(self.path("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn wait_for(&self, line: &str) {
        wait_until(line, || self.log().iter().any(|is| is == line));
    }

    fn wait_for_number(&self, name: &str) -> i32 {
        let read = || fs::read_to_string(self.path(name)).ok().filter(|text| text.ends_with('\n'))?.trim().parse().ok();
        wait_until(name, || read().is_some());
        read().unwrap()
    }

    fn resume(&self) -> Vec<Forgotten> {
        resume(&guard(), &self.path("run")).unwrap()
    }
}

fn guard() -> Guard {
    Guard::Program { program: GUARD.into(), args: vec![] }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Gone, or dead and not yet buried by whoever inherited it.
fn is_dead(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn said(outcome: &Outcome) -> &str {
    outcome.ran.first().and_then(|ran| ran.said.as_deref()).unwrap_or_default()
}

#[test]
fn pre_cuts_run_in_order_and_post_cuts_in_reverse() {
    let site = Site::new();
    let env = "echo $FARSIDE_GROUP/$FARSIDE_VOLUMES/$FARSIDE_STAGE/$FARSIDE_HOOK/$(pwd)";
    let mut run = site.start(vec![site.hook("a", env), site.hook("b", "true"), site.hook("c", "cat; true")]);
    run.ready().unwrap();
    assert_eq!(site.log(), ["a pre-cut", "b pre-cut", "c pre-cut"]);
    assert!(site.note().exists());
    let outcome = run.end(true);
    assert!(outcome.held && outcome.why.is_none(), "{outcome:?}");
    assert_eq!(site.log()[3..], ["c post-cut taken", "b post-cut taken", "a post-cut taken"]);
    assert_eq!(said(&outcome), "group/data wal/pre-cut/a//");
    let ran: Vec<_> = outcome.ran.iter().map(|ran| (ran.hook.as_str(), ran.stage)).collect();
    let (pre, post) = (Stage::PreCut, Stage::PostCut);
    assert_eq!(ran, [("a", pre), ("b", pre), ("c", pre), ("c", post), ("b", post), ("a", post)]);
    assert_eq!(fs::read_dir(site.path("run")).unwrap().count(), 0, "neither a note nor a lock stays");
}

#[test]
fn a_pre_cut_that_fails_ends_what_was_begun_and_itself() {
    let site = Site::new();
    let fails = "test $1 = post-cut || { echo one >&2; echo no >&2; exit 3; }";
    let mut run = site.start(vec![site.hook("a", "true"), site.hook("b", fails), site.hook("c", "true")]);
    assert_eq!(run.ready().unwrap_err(), "the pre-cut of hook b failed: exit status: 3: no");
    assert_eq!(site.log(), ["a pre-cut", "b pre-cut", "b post-cut not-taken", "a post-cut not-taken"]);
    let outcome = run.end(true);
    assert!(!outcome.held && outcome.ran.len() == 4, "{outcome:?}");
    assert!(!site.note().exists());
}

#[test]
fn a_command_that_cannot_be_started_leaves_nothing_to_end() {
    let site = Site::new();
    let none = Hook { what: What::Command(vec!["/none/such".to_owned()]), ..site.hook("b", "") };
    let mut run = site.start(vec![site.hook("a", "true"), none]);
    let why = run.ready().unwrap_err();
    assert!(why.starts_with("the pre-cut of hook b failed: /none/such cannot be started"), "{why}");
    run.end(false);
    assert_eq!(site.log(), ["a pre-cut", "a post-cut not-taken"]);
    assert!(!site.note().exists());
}

#[test]
fn a_cut_that_was_not_taken_is_not_held() {
    let site = Site::new();
    let mut run = site.start(vec![site.hook("a", "true")]);
    run.ready().unwrap();
    let outcome = run.end(false);
    assert_eq!((outcome.held, outcome.why.as_deref()), (false, Some("the cut was not taken")));
    assert_eq!(site.log(), ["a pre-cut", "a post-cut not-taken"]);
}

#[test]
fn what_is_late_is_killed_with_its_children() {
    let site = Site::new();
    let hangs = "test $1 = post-cut && exit 0; sleep 1000 & echo $! > $D/child; wait";
    let hook = Hook { timeout: Duration::from_millis(700), ..site.hook("a", hangs) };
    let mut run = site.start(vec![hook]);
    let why = run.ready().unwrap_err();
    assert_eq!(why, "the pre-cut of hook a failed: it was not done after 700ms, and was killed");
    let child = site.wait_for_number("child");
    wait_until("the child is dead", || is_dead(child));
    assert_eq!(site.log(), ["a pre-cut", "a post-cut not-taken"]);
}

#[test]
fn a_post_cut_that_fails_stops_no_other_and_is_tried_again() {
    let site = Site::new();
    let fails = "test $1 = pre-cut || test -e $D/mended || { echo stuck >&2; exit 1; }";
    let hooks = vec![site.hook("a", "true"), site.hook("b", fails), site.hook("c", "true")];
    let mut run = site.start(hooks.clone());
    run.ready().unwrap();
    let outcome = run.end(true);
    let why = "the post-cut of hook b failed: exit status: 1: stuck";
    assert_eq!((outcome.held, outcome.why.as_deref()), (false, Some(why)));
    assert_eq!(site.log()[3..], ["c post-cut taken", "b post-cut taken", "a post-cut taken"]);
    // The next guard begins nothing while that is so, nor is it forgotten.
    let refused = site.start(hooks.clone()).ready().unwrap_err();
    assert!(refused.contains("what an earlier guard began is not ended") && refused.contains(why), "{refused}");
    let forgotten = site.resume();
    assert_eq!((forgotten.len(), forgotten[0].failed.as_deref()), (1, Some(why)));
    assert_eq!(site.log()[6..], ["b post-cut not-taken", "b post-cut not-taken"]);
    fs::write(site.path("mended"), "").unwrap();
    let mut run = site.start(hooks);
    run.ready().unwrap();
    assert!(run.end(true).held);
    assert_eq!(site.log()[8..10], ["b post-cut not-taken", "a pre-cut"]);
}

#[test]
fn a_farsided_that_is_gone_ends_the_hold() {
    let site = Site::new();
    let mut run = site.start(vec![site.hook("a", "true"), site.hook("b", "true")]);
    run.ready().unwrap();
    drop(run);
    site.wait_for("a post-cut not-taken");
    assert_eq!(site.log()[2..], ["b post-cut not-taken", "a post-cut not-taken"]);
    wait_until("the note is removed", || !site.note().exists());
}

#[test]
fn a_farsided_that_is_gone_ends_a_pre_cut_that_runs() {
    let site = Site::new();
    let run = site.start(vec![site.hook("a", "test $1 = post-cut || { echo $$ > $D/pid; exec sleep 1000; }")]);
    let pid = site.wait_for_number("pid");
    drop(run);
    site.wait_for("a post-cut not-taken");
    assert!(is_dead(pid));
}

/// farsided is a process of its own here: a shell that keeps the guard's input open, and is killed.
#[test]
fn a_farsided_that_is_killed_ends_the_hold() {
    let site = Site::new();
    let plan = serde_json::to_string(&site.plan(vec![site.hook("a", "true")])).unwrap();
    fs::write(site.path("plan"), plan + "\n").unwrap();
    let script = format!("mkfifo fifo; {GUARD} < fifo > answers & exec 3> fifo; cat plan >&3; exec sleep 1000");
    let mut farsided = Command::new("/bin/sh").args(["-c", &script]).current_dir(site.0.path()).spawn().unwrap();
    wait_until("ready", || fs::read_to_string(site.path("answers")).is_ok_and(|said| said.contains(r#"{"ready":{}}"#)));
    farsided.kill().unwrap();
    farsided.wait().unwrap();
    site.wait_for("a post-cut not-taken");
}

#[test]
fn what_a_killed_guard_began_is_ended_by_whoever_comes_next() {
    let site = Site::new();
    let hangs = "test $1 = post-cut || { echo $PPID > $D/guard; echo $$ > $D/pid; exec sleep 1000; }";
    let mut run = site.start(vec![site.hook("a", "true"), site.hook("b", hangs), site.hook("c", "true")]);
    let (guard, command) = (site.wait_for_number("guard"), site.wait_for_number("pid"));
    assert!(site.resume().is_empty(), "its guard lives");
    assert!(site.note().exists());
    kill(Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    assert!(run.ready().unwrap_err().contains("the guard is lost"));
    assert!(!run.end(true).held);
    wait_until("the pre-cut died with its guard", || is_dead(command));
    // The guard is reaped by then, and its lock is free.
    wait_until("the guard is dead", || is_dead(guard));
    assert_eq!(site.log(), ["a pre-cut", "b pre-cut"]);
    let forgotten = site.resume();
    assert_eq!((forgotten.len(), &forgotten[0].failed, forgotten[0].ran.len()), (1, &None, 2), "{forgotten:?}");
    assert_eq!(site.log()[2..], ["b post-cut not-taken", "a post-cut not-taken"]);
    assert!(!site.note().exists() && site.resume().is_empty());
}

#[test]
fn a_note_that_nobody_wrote_is_named_and_followed_by_nobody() {
    let site = Site::new();
    assert!(site.resume().is_empty(), "no directory");
    fs::create_dir(site.path("run")).unwrap();
    fs::write(site.note(), "{").unwrap();
    let foreign = serde_json::json!({ "plan": site.plan(vec![site.hook("a", "true")]), "begun": ["a"] }).to_string();
    let others = site.path("run/others.json");
    fs::write(&others, foreign).unwrap();
    fs::set_permissions(&others, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let why: Vec<String> = site.resume().into_iter().filter_map(|forgotten| forgotten.failed).collect();
    assert!(why.len() == 2 && why[0].contains("group.json") && why[0].contains("damaged"), "{why:?}");
    assert!(why[1].contains("not a file that only this user can write"), "{why:?}");
    assert!(site.start(vec![site.hook("a", "true")]).ready().unwrap_err().contains("damaged"));
    assert!(site.note().exists() && site.log().is_empty());
}

#[test]
fn a_hold_that_runs_out_ends_by_itself() {
    let site = Site::new();
    let plan = Plan { hold_ms: 50, ..site.plan(vec![site.hook("a", "true")]) };
    let mut run = Run::start(&guard(), &plan).unwrap();
    run.ready().unwrap();
    site.wait_for("a post-cut not-taken");
    let outcome = run.end(true);
    let why = "the hold of 50ms ran out before the cut was taken";
    assert_eq!((outcome.held, outcome.why.as_deref()), (false, Some(why)));
}

#[test]
fn whoever_writes_much_is_not_blocked() {
    let site = Site::new();
    let outcome = site.run("head -c 3000000 /dev/zero | tr '\\0' x | tee /dev/stderr; echo; echo done");
    assert!(outcome.held, "{:?}", outcome.why);
    assert_eq!(said(&outcome), "done");
}

#[test]
fn a_grandchild_may_keep_the_output_open_and_is_not_blocked_by_it() {
    let site = Site::new();
    let script = "test $1 = post-cut && exit 0; { head -c 1000000 /dev/zero >&2; echo 1 > $D/written; exec sleep 1000; } & \
                  echo $! > $D/child; echo started";
    let mut run = site.start(vec![site.hook("a", script)]);
    run.ready().unwrap();
    site.wait_for_number("written");
    let child = site.wait_for_number("child");
    assert!(!is_dead(child), "it holds something, maybe, and nobody killed it");
    let outcome = run.end(true);
    assert!(outcome.held && said(&outcome) == "started", "{outcome:?}");
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
}

#[test]
fn a_farsided_that_never_reads_holds_up_nothing() {
    let site = Site::new();
    let hooks: Vec<Hook> = (0..60).map(|n| site.hook(&format!("h{n}"), "printf %0200d 0")).collect();
    let mut guard = Command::new(GUARD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, output) = (guard.stdin.take().unwrap(), guard.stdout.take().unwrap());
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let line = serde_json::to_string(&site.plan(hooks)).unwrap() + "\n";
    input.write_all(line.as_bytes()).unwrap();
    site.wait_for("h59 pre-cut");
    input.write_all(b"{\"cut\":\"taken\"}\n").unwrap();
    guard.wait().unwrap();
    assert_eq!(site.log().len(), 120);
    assert!(site.log()[119].starts_with("h0 post-cut"));
    assert!(!site.note().exists());
    drop(output);
}

#[test]
fn what_is_no_plan_gets_one_clear_answer() {
    let site = Site::new();
    let plan = site.plan(vec![site.hook("a", "true")]);
    let text = serde_json::to_string(&plan).unwrap();
    let long = format!("{}\n", "x".repeat(2 << 20));
    let (version, none) = (text.replace(r#""version":1"#, r#""version":7"#), site.plan(vec![]));
    let none = serde_json::to_string(&none).unwrap();
    let deep = "[".repeat(100_000);
    let cases: [(&str, &str); 7] = [
        ("", "farsided said no plan"),
        (&text, "farsided said no plan"), // without its end
        ("hello\n", "it cannot be read"),
        (&(deep + "\n"), "it cannot be read"),
        (&(version + "\n"), "it is of version 7"),
        (&(none + "\n"), "it has no hooks"),
        (&long, "it is longer than"),
    ];
    for (input, why) in cases {
        let mut guard = Command::new(GUARD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let _ = guard.stdin.take().unwrap().write_all(input.as_bytes()); // it need not read all of it
        let mut answer = String::new();
        guard.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert!(!guard.wait().unwrap().success());
        assert!(answer.starts_with(r#"{"ended":{"held":false,"why":""#) && answer.contains(why), "{why}: {answer}");
        assert_eq!(answer.lines().count(), 1, "{answer}");
    }
    assert!(site.log().is_empty() && !site.path("run").exists());
    let error = Run::start(&guard(), &Plan { hooks: vec![], ..plan }).unwrap_err();
    assert_eq!(error.to_string(), "it has no hooks");
}

#[test]
fn what_comes_before_its_time_ends_it() {
    let site = Site::new();
    let hangs = "test $1 = post-cut || exec sleep 1000";
    let line = serde_json::to_string(&site.plan(vec![site.hook("a", hangs)])).unwrap();
    for word in [r#"{"cut":"taken"}"#, r#"{"cut":"not-taken"}"#, "hello"] {
        let mut guard = Command::new(GUARD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = guard.stdin.take().unwrap();
        writeln!(input, "{line}\n{word}").unwrap();
        let mut answer = String::new();
        guard.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        let last = answer.lines().last().unwrap();
        assert!(last.starts_with(r#"{"ended":{"held":false"#) && !answer.contains("ready"), "{word}: {answer}");
        assert!(guard.wait().unwrap().success());
    }
}

#[test]
fn signals_end_commands_and_not_the_guard() {
    let site = Site::new();
    let kills = "for signal in HUP INT QUIT TERM PIPE USR1 TSTP; do kill -$signal $PPID; done";
    let outcome = site.run(&format!("{kills}; echo $(grep -E 'SigIgn|SigBlk' /proc/self/status | cut -f 2)"));
    assert!(outcome.held, "{:?}", outcome.why);
    // Those of real time may be ignored by whoever started this test.
    let plain = |word: &str| u64::from_str_radix(word, 16).unwrap() & 0x7fff_ffff;
    assert_eq!(said(&outcome).split(' ').map(plain).collect::<Vec<_>>(), [0, 0], "{outcome:?}");
    let outcome = site.run("kill -TERM $$");
    assert!(outcome.why.as_deref().unwrap_or_default().contains("signal: 15"), "{outcome:?}");
}

#[test]
fn commands_may_be_killed_for_want_of_memory() {
    let site = Site::new();
    let protect = "echo -500 2>/dev/null > /proc/$$/oom_score_adj";
    // Whoever may not protect itself (CAP_SYS_RESOURCE) is not protected, and its commands are not either.
    let protected = Command::new("/bin/sh").args(["-c", protect]).stderr(Stdio::null()).status().unwrap().success();
    let guard = Guard::Program { program: "/bin/sh".into(), args: vec!["-c".to_owned(), format!("{protect}; exec {GUARD}")] };
    let waits = "while test $(cat /proc/$$/oom_score_adj) -lt 0; do :; done; cat /proc/$PPID/oom_score_adj";
    let mut run = Run::start(&guard, &site.plan(vec![site.hook("a", waits)])).unwrap();
    run.ready().unwrap();
    let outcome = run.end(true);
    assert!(outcome.held && (said(&outcome) == "-500") == protected, "{outcome:?}");
}

/// The one mount that is everywhere, and that no kernel freezes.
#[test]
fn what_cannot_be_frozen_is_named() {
    let site = Site::new();
    let hook = Hook { name: "f".parse().unwrap(), what: What::Freeze("/proc".into()), timeout: LONG };
    let mut run = site.start(vec![site.hook("a", "true"), hook]);
    let why = run.ready().unwrap_err();
    assert!(why.starts_with("the pre-cut of hook f failed:") && why.contains("/proc cannot be frozen"), "{why}");
    run.end(false);
    assert_eq!(site.log(), ["a pre-cut", "a post-cut not-taken"]);
    assert!(!site.note().exists());
}

#[test]
fn a_guard_behind_a_socket_is_as_good() {
    let site = Site::new();
    let socket = site.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let input = std::os::fd::OwnedFd::from(stream);
        let output = input.try_clone().unwrap();
        let mut command = Command::new(GUARD);
        let mut guard = command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn().unwrap();
        drop(command);
        guard.wait().unwrap()
    });
    let mut run = Run::start(&Guard::Socket(socket.clone()), &site.plan(vec![site.hook("a", "echo hello")])).unwrap();
    run.ready().unwrap();
    let outcome = run.end(true);
    assert!(outcome.held && said(&outcome) == "hello", "{outcome:?}");
    assert!(server.join().unwrap().success());
    assert!(Run::start(&Guard::Socket(Path::new("/none").into()), &site.plan(vec![site.hook("a", "")])).is_err());
}

#[test]
fn a_guard_that_is_none_is_waited_for_no_longer_than_it_lives() {
    let site = Site::new();
    for (program, answer) in [("/bin/true", "the guard is lost"), ("/bin/cat", "the guard said something that is not known")] {
        let guard = Guard::Program { program: program.into(), args: vec![] };
        // One that is gone at once may be seen when the plan is sent.
        let Ok(mut run) = Run::start(&guard, &site.plan(vec![site.hook("a", "")])) else { continue };
        let why = run.ready().unwrap_err();
        assert!(why.contains(answer), "{why}");
        assert!(!run.end(true).held);
    }
    let none = Guard::Program { program: "/none/such".into(), args: vec![] };
    assert!(Run::start(&none, &site.plan(vec![site.hook("a", "")])).is_err());
}
