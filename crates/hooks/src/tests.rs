//! The guard with file systems that do what a test wants: order, lateness, and what others do meanwhile. Commands, signals and
//! deaths are in `tests/hooks.rs`.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tempfile::TempDir;

use crate::command::last_line;
use crate::forgotten::end_forgotten;
use crate::freeze::{FileSystem, FileSystems};
use crate::guard::guard;
use crate::note::{Locked, Note};
use crate::wait::Waiting;
use crate::{Hook, Plan, PlanError, Run, Stage, What};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(100);

/// What was done, and what is held back.
#[derive(Debug, Default)]
struct World {
    seen: Mutex<(Vec<String>, HashSet<String>)>,
    changed: Condvar,
}

impl World {
    fn did(&self, what: String) {
        self.seen.lock().unwrap().0.push(what);
        self.changed.notify_all();
    }

    /// But for the syncs.
    fn log(&self) -> Vec<String> {
        self.whole_log().into_iter().filter(|did| !did.starts_with("sync ")).collect()
    }

    fn whole_log(&self) -> Vec<String> {
        self.seen.lock().unwrap().0.clone()
    }

    fn hold_back(&self, what: &str) {
        self.seen.lock().unwrap().1.insert(what.to_owned());
    }

    fn let_go(&self, what: &str) {
        self.seen.lock().unwrap().1.remove(what);
        self.changed.notify_all();
    }

    fn wait_for(&self, what: &str) {
        let seen = self.seen.lock().unwrap();
        drop(self.changed.wait_while(seen, |(did, _)| !did.iter().any(|did| did == what)).unwrap());
    }

    fn pass(&self, what: &str) {
        let seen = self.seen.lock().unwrap();
        drop(self.changed.wait_while(seen, |(_, held)| held.contains(what)).unwrap());
    }
}

#[derive(Clone, Debug)]
struct Fake(Arc<World>);

struct FakeSystem(Arc<World>, PathBuf);

impl FileSystems for Fake {
    fn open(&self, mount_point: &Path) -> Result<Box<dyn FileSystem>, String> {
        if mount_point == Path::new("/none") {
            return Err("/none is not a mount point".to_owned());
        }
        Ok(Box::new(FakeSystem(self.0.clone(), mount_point.to_owned())))
    }

    fn prepare(&self) -> Result<(), String> {
        self.0.did("prepare".to_owned());
        Ok(())
    }
}

impl FakeSystem {
    fn call(&self, what: &str) {
        let call = format!("{what} {}", self.1.display());
        self.0.pass(&call);
        self.0.did(call);
    }
}

impl FileSystem for FakeSystem {
    fn sync(&self) -> Result<(), Errno> {
        self.call("sync");
        if self.1 == Path::new("/sick") { Err(Errno::EIO) } else { Ok(()) }
    }

    fn freeze(&self) -> Result<(), Errno> {
        self.call("freeze");
        if self.1 == Path::new("/busy") { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn thaw(&self) -> Result<(), Errno> {
        self.call("thaw");
        match self.1.to_str() {
            Some("/meanwhile") => Err(Errno::EINVAL),
            Some("/broken") => Err(Errno::EIO),
            _ => Ok(()),
        }
    }
}

struct Site {
    folder: TempDir,
    world: Arc<World>,
}

impl Site {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), world: Arc::default() }
    }

    fn note(&self) -> PathBuf {
        self.folder.path().join("run/group.json")
    }

    fn plan(&self, hooks: Vec<Hook>) -> Plan {
        let (group, volumes) = ("group".parse().unwrap(), vec!["data".parse().unwrap()]);
        Plan { version: Plan::VERSION, group, volumes, hooks, hold_ms: 60_000, note: self.note(), spared: Vec::new() }
    }

    fn start(&self, plan: &Plan) -> (Run, JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fake = Fake(self.world.clone());
        let guard = thread::spawn(move || {
            let input = OwnedFd::from(theirs);
            let output = input.try_clone().unwrap();
            guard(input, output, |_| Arc::new(fake));
        });
        let line = [serde_json::to_vec(plan).unwrap(), b"\n".to_vec()].concat();
        (Run::over(ours, plan, &line).unwrap(), guard)
    }
}

fn freeze(path: &str) -> Hook {
    Hook { name: path.trim_start_matches('/').parse().unwrap(), what: What::Freeze(path.into()), timeout: LONG }
}

fn short(hook: Hook) -> Hook {
    Hook { timeout: SHORT, ..hook }
}

fn hang(name: &str) -> Hook {
    let script = "test $1 = post-cut || exec sleep 1000";
    let words = ["sh", "-c", script, "hang"].map(str::to_owned).to_vec();
    Hook { name: name.parse().unwrap(), what: What::Command(words), timeout: LONG }
}

#[test]
fn file_systems_are_frozen_in_order_and_thawed_in_reverse() {
    let site = Site::new();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/b")]));
    run.ready().unwrap();
    assert_eq!(site.world.log(), ["prepare", "freeze /a", "freeze /b"]);
    assert!(site.note().exists());
    let outcome = run.end(true);
    assert!(outcome.held && outcome.why.is_none(), "{outcome:?}");
    assert_eq!(site.world.log()[3..], ["thaw /b", "thaw /a"]);
    let said: Vec<&str> = outcome.ran.iter().filter_map(|ran| ran.said.as_deref()).collect();
    assert_eq!(said, ["/a is frozen", "/b is frozen", "/b is thawed", "/a is thawed"]);
    guard.join().unwrap();
    assert_eq!(site.folder.path().join("run").read_dir().unwrap().count(), 0, "neither a note nor a lock stays");
}

#[test]
fn what_somebody_else_froze_is_not_thawed() {
    let site = Site::new();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/busy"), freeze("/c")]));
    let why = run.ready().unwrap_err();
    assert!(why.contains("pre-cut of hook busy") && why.contains("frozen already, by somebody else"), "{why}");
    assert_eq!(site.world.log(), ["prepare", "freeze /a", "freeze /busy", "thaw /a"]);
    assert!(!run.end(true).held, "not ready is not held, whatever is said");
    guard.join().unwrap();
    assert!(!site.note().exists());
}

/// The freeze says nothing of data that was lost on its way to the disk, and the point said that applications find theirs whole in it.
#[test]
fn what_could_not_be_written_is_not_frozen() {
    let site = Site::new();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/sick")]));
    let why = run.ready().unwrap_err();
    let said = "hook sick failed: not all that was written to /sick has reached its disk: I/O error";
    assert!(why.contains("pre-cut of") && why.contains(said), "{why}");
    assert!(!run.end(true).held);
    guard.join().unwrap();
    assert_eq!(site.world.log(), ["prepare"], "it is known before anything is frozen");
    assert!(!site.note().exists());
}

#[test]
fn what_somebody_else_thawed_was_not_held() {
    let site = Site::new();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/meanwhile")]));
    run.ready().unwrap();
    let outcome = run.end(true);
    let why = outcome.why.unwrap();
    assert!(!outcome.held && why.contains("hook meanwhile") && why.contains("somebody else thawed"), "{why}");
    assert!(site.world.log().contains(&"thaw /a".to_owned()));
    guard.join().unwrap();
    assert!(!site.note().exists(), "nothing is left to be done");
}

#[test]
fn a_path_that_is_no_mount_point_is_refused_and_the_others_are_thawed() {
    let site = Site::new();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/none")]));
    assert!(run.ready().unwrap_err().contains("hook none failed: /none is not a mount point"));
    guard.join().unwrap();
    assert_eq!(site.world.log(), ["prepare"], "it is known before anything is frozen");
}

#[test]
fn a_freeze_that_is_late_holds_up_nobody_and_is_thawed_when_it_comes() {
    let site = Site::new();
    site.world.hold_back("freeze /slow");
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), short(freeze("/slow"))]));
    let why = run.ready().unwrap_err();
    assert!(why.contains("hook slow failed: it was not done after 100ms"), "{why}");
    // farsided has the last word, and /a is thawed, while /slow still hangs.
    assert!(!run.end(false).held);
    assert_eq!(site.world.log(), ["prepare", "freeze /a", "thaw /a"]);
    assert!(!guard.is_finished() && site.note().exists());
    assert!(crate::resume_forgotten(&site.folder.path().join("run")).is_empty(), "its guard lives");
    // Nor is anything begun meanwhile.
    let (mut second, refused) = site.start(&site.plan(vec![freeze("/a")]));
    assert!(second.ready().unwrap_err().contains("still at work"));
    refused.join().unwrap();
    site.world.let_go("freeze /slow");
    guard.join().unwrap();
    assert_eq!(site.world.log()[3..], ["freeze /slow", "thaw /slow"]);
    assert!(!site.note().exists());
}

/// Whoever writes to the first would wait for the disk of the second.
#[test]
fn nothing_is_frozen_before_what_is_in_memory_of_all_is_written() {
    let site = Site::new();
    site.world.hold_back("sync /b");
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/b"), freeze("/c")]));
    site.world.wait_for("sync /a");
    site.world.wait_for("sync /c");
    assert_eq!(site.world.log(), ["prepare"]);
    site.world.let_go("sync /b");
    run.ready().unwrap();
    let log = site.world.whole_log();
    assert_eq!(log[4..], ["freeze /a", "freeze /b", "freeze /c"], "{log:?}");
    assert!(run.end(true).held);
    guard.join().unwrap();
    // Who was not frozen when another one could not be is through at once: the next cut finds nobody at work.
    for _ in 0..2 {
        let (mut run, guard) = site.start(&site.plan(vec![freeze("/busy"), freeze("/c")]));
        let why = run.ready().unwrap_err();
        assert!(why.contains("hook busy") && !why.contains("still at work"), "{why}");
        assert!(!run.end(true).held);
        guard.join().unwrap();
    }
    assert_eq!(site.world.log().iter().filter(|did| *did == "freeze /c").count(), 1);
}

/// The kernel would stop writers first, and then write all that is in memory.
#[test]
fn what_is_in_memory_is_written_before_the_freeze_and_if_that_is_late_nothing_is_frozen() {
    let site = Site::new();
    site.world.hold_back("sync /slow");
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), short(freeze("/slow"))]));
    let why = run.ready().unwrap_err();
    assert!(why.contains("hook slow failed: it was not done after 100ms") && why.contains("so it was not frozen"), "{why}");
    assert!(!run.end(false).held);
    assert_eq!(site.world.log(), ["prepare"]);
    // As long as it hangs there is one guard, and not one more with each cut.
    assert!(!guard.is_finished());
    let (mut second, refused) = site.start(&site.plan(vec![freeze("/a")]));
    assert!(second.ready().unwrap_err().contains("still at work"));
    refused.join().unwrap();
    // Nor is anything frozen when that comes to an end.
    let file_system = Arc::downgrade(&site.world);
    site.world.let_go("sync /slow");
    guard.join().unwrap();
    assert!(!site.note().exists(), "nothing is left to be done");
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/slow")]));
    run.ready().unwrap();
    run.end(true);
    guard.join().unwrap();
    // Each thread has one, and so has the site.
    while file_system.strong_count() > 1 {
        thread::yield_now();
    }
    let log = site.world.whole_log();
    assert_eq!(log.iter().filter(|did| *did == "sync /slow").count(), 2, "{log:?}");
    assert_eq!(log.iter().filter(|did| *did == "freeze /slow").count(), 1, "{log:?}");
}

#[test]
fn a_thaw_that_is_late_is_waited_for_by_the_guard_only() {
    let site = Site::new();
    site.world.hold_back("thaw /slow");
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), short(freeze("/slow"))]));
    run.ready().unwrap();
    let outcome = run.end(true);
    assert!(!outcome.held && outcome.why.unwrap().contains("post-cut of hook slow failed: it was not done after 100ms"));
    assert_eq!(site.world.log()[3..], ["thaw /a"]);
    assert!(site.note().exists());
    site.world.let_go("thaw /slow");
    guard.join().unwrap();
    assert_eq!(site.world.log()[4..], ["thaw /slow"]);
    assert!(!site.note().exists());
}

#[test]
fn the_hold_begins_with_the_first_freeze() {
    let site = Site::new();
    let plan = Plan { hold_ms: 200, ..site.plan(vec![freeze("/a"), hang("hang")]) };
    let (mut run, guard) = site.start(&plan);
    let why = run.ready().unwrap_err();
    assert!(why.contains("hook hang") && why.contains("when the hold ran out"), "{why}");
    guard.join().unwrap();
    assert_eq!(site.world.log(), ["prepare", "freeze /a", "thaw /a"]);
}

#[test]
fn what_cannot_be_thawed_stays_noted_and_nothing_is_begun_before_it_is() {
    let site = Site::new();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a"), freeze("/broken")]));
    run.ready().unwrap();
    assert!(run.end(true).why.unwrap().contains("/broken cannot be thawed"));
    guard.join().unwrap();
    let (mut run, guard) = site.start(&site.plan(vec![freeze("/a")]));
    let why = run.ready().unwrap_err();
    assert!(why.contains("what an earlier guard began is not ended") && why.contains("/broken"), "{why}");
    guard.join().unwrap();
    assert_eq!(site.world.log()[3..], ["thaw /broken", "thaw /a", "thaw /broken"]);
}

#[test]
fn forgotten_freezes_are_thawed_in_reverse_and_need_not_be_frozen() {
    let site = Site::new();
    let plan = site.plan(vec![freeze("/a"), freeze("/meanwhile"), freeze("/c")]);
    let locked = Locked::take(&site.note()).unwrap().unwrap();
    let begun = vec!["a".parse().unwrap(), "meanwhile".parse().unwrap()];
    locked.write(&Note { plan, begun }).unwrap();
    let systems: Arc<dyn FileSystems> = Arc::new(Fake(site.world.clone()));
    let forgotten = end_forgotten(&locked, &site.note(), None, &systems, &mut Waiting::default()).unwrap();
    assert_eq!(forgotten.failed, None);
    assert!(forgotten.ran.iter().all(|ran| ran.stage == Stage::PostCut));
    assert_eq!(site.world.log(), ["thaw /meanwhile", "thaw /a"]);
    assert!(!site.note().exists());
}

#[test]
fn who_is_gone_before_everything_is_frozen_holds_up_nothing() {
    let site = Site::new();
    let (run, guard) = site.start(&site.plan(vec![freeze("/a"), hang("hang")]));
    drop(run);
    let until = Instant::now() + LONG;
    while !guard.is_finished() && Instant::now() < until {
        thread::yield_now();
    }
    assert!(guard.is_finished(), "the pre-cut that hangs was ended");
    assert_eq!(site.world.log().iter().filter(|did| did.starts_with("freeze")).count(), {
        site.world.log().iter().filter(|did| did.starts_with("thaw")).count()
    });
}

#[test]
fn what_is_said_is_one_short_harmless_line() {
    assert_eq!(last_line(b""), None);
    assert_eq!(last_line(b" \n\t\n"), None);
    assert_eq!(last_line(b"one\ntwo \r\n\n").as_deref(), Some("two"));
    assert_eq!(last_line("a\x1b[2Jb\u{202e}c".as_bytes()).as_deref(), Some("a\u{fffd}[2Jb\u{fffd}c"));
    assert_eq!(last_line(b"a\xffb").as_deref(), Some("a\u{fffd}b"));
    let long = last_line("é".repeat(150).as_bytes()).unwrap();
    assert_eq!((long.len(), long.chars().all(|c| c == 'é')), (200, true));
    assert_eq!(last_line(format!("x{}", "é".repeat(150)).as_bytes()).unwrap().len(), 199);
}

#[test]
fn a_plan_that_a_guard_would_not_follow_is_refused() {
    let site = Site::new();
    let good = site.plan(vec![freeze("/a")]);
    good.check().unwrap();
    let text = serde_json::to_string(&good).unwrap();
    assert_eq!(Plan::read(text.as_bytes()).unwrap(), good);
    assert!(text.contains(r#"{"name":"a","what":{"freeze":"/a"},"timeout_ms":60000}"#), "{text}");
    let with = |hook: Hook| site.plan(vec![hook]).check().unwrap_err();
    assert!(matches!(site.plan(vec![]).check(), Err(PlanError::NoHooks)));
    assert!(matches!(site.plan(vec![freeze("/a"), freeze("/a")]).check(), Err(PlanError::Twice(_))));
    assert!(matches!(with(freeze("a")), PlanError::RelativeMount(..)));
    assert!(matches!(with(Hook { what: What::Command(vec![]), ..freeze("/a") }), PlanError::NoProgram(_)));
    assert!(matches!(with(Hook { timeout: Duration::ZERO, ..freeze("/a") }), PlanError::Timeout(_)));
    assert!(matches!(with(Hook { timeout: Duration::MAX, ..freeze("/a") }), PlanError::Timeout(_)));
    assert!(matches!(Plan { hold_ms: u64::MAX, ..good.clone() }.check(), Err(PlanError::Hold)));
    for note in ["note.json", "/run/note", "/"] {
        assert!(matches!(Plan { note: note.into(), ..good.clone() }.check(), Err(PlanError::Note(_))), "{note}");
    }
    let other = text.replace(r#""version":1"#, r#""version":2,"more":{}"#);
    assert!(matches!(Plan::read(other.as_bytes()), Err(PlanError::Version(2))));
    let more = text.replace(r#""version":1"#, r#""version":1,"more":{}"#);
    assert!(matches!(Plan::read(more.as_bytes()), Err(PlanError::Json(_))), "what it does not know it does not begin");
}
