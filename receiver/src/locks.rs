//! The lock step of a follower: what its target holds is kept under another name before it goes on, round by round.
//!
//! Who does it is the file system (a copy that shares its blocks), or a program of the gateway's administrator (`[[lock]]`), for a volume
//! manager's snapshots.
//!
//! Invariants:
//! - only what a target holds whole is locked, and the target stays as it is meanwhile: the follower's thread does both; a lock counts once
//!   the target was found untouched after it;
//! - what is begun is noted before it is begun and until it is undone, so that a kill leaves nothing that nobody knows of;
//! - nothing is removed but what was noted here.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use farside_blockio::clone_file;
use farside_control::PointId;
use farside_control::follower::LockRule;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The file system's own way.
pub(crate) const REFLINK: &str = "reflink";
/// A rule keeps at most so many.
pub(crate) const LOCKED_MAX: u32 = 1000;
/// How much of a program's words is read.
const WORDS_MAX: u64 = 4096;
/// How long a program that is told to end has for that.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// How often a program is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A `[[lock]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockProgram {
    /// What followers name.
    pub name: String,
    /// The program and its first arguments; `lock` or `unlock` comes after them.
    pub program: Vec<String>,
    /// How long one run may take.
    pub timeout: Duration,
}

/// A round that is locked, or was begun to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Locked {
    pub(crate) slot: u64,
    pub(crate) tag: u32,
    /// By the gateway's wall clock.
    pub(crate) wall_ms: i64,
    /// Who did it, and can undo it.
    by: String,
    /// What it is called: a path, or the first line that its program said. `None`: it was begun.
    pub(crate) name: Option<String>,
    /// The target was not looked at since.
    #[serde(default)]
    unsure: bool,
}

impl Locked {
    pub(crate) fn id(&self) -> PointId {
        PointId { slot: self.slot, tag: self.tag }
    }

    /// Who has it, and under which name as far as that is known.
    pub(crate) fn whose(&self) -> String {
        format!("by {}{}", self.by, self.name.as_ref().map_or_else(String::new, |name| format!(": {name}")))
    }

    /// Whether it is what its point holds.
    pub(crate) fn is_sure(&self) -> bool {
        self.name.is_some() && !self.unsure
    }

    fn begun(id: PointId, by: &str, wall_ms: i64) -> Self {
        Self { slot: id.slot, tag: id.tag, wall_ms, by: by.to_owned(), name: None, unsure: false }
    }
}

/// Whose target it is.
pub(crate) struct Whose<'t> {
    pub(crate) follower: String,
    /// SOURCE/GROUP/VOLUME.
    pub(crate) volume: String,
    /// The file or device itself, whatever led to it.
    pub(crate) target: PathBuf,
    /// Makes an empty file share its blocks. † Of the one that is open: its name may lead to another by now.
    pub(crate) share: &'t dyn Fn(&File) -> io::Result<()>,
}

/// Whether something is to be done at a point: a round, or what an earlier one left.
pub(crate) fn is_due(locked: &[Locked], id: PointId, rule: &LockRule, now_ms: i64) -> bool {
    let is_left = locked.iter().any(|one| !one.is_sure()) || locked.len() > rule.keep as usize;
    is_left || is_new(locked, id, rule, now_ms)
}

/// Whether a point is to be locked that is not. One that the target came back to is.
fn is_new(locked: &[Locked], id: PointId, rule: &LockRule, now_ms: i64) -> bool {
    let Some(last) = locked.last() else { return true };
    // A time that has not come yet is not believed.
    let is_time = u64::try_from(now_ms - last.wall_ms).map_or(true, |since_ms| since_ms >= rule.every_ms);
    is_time && locked.iter().all(|one| one.id() != id)
}

/// What rounds are done with.
pub(crate) struct Round<'r> {
    pub(crate) programs: &'r [LockProgram],
    pub(crate) whose: Whose<'r>,
    /// Makes a list durable before it returns.
    pub(crate) keep: &'r mut dyn FnMut(&[Locked]) -> Result<(), String>,
    pub(crate) goes_on: &'r dyn Fn() -> bool,
}

/// All in words where they fail; what was begun is in the list then.
impl Round<'_> {
    /// Locks what a target holds, unless that is done. It counts only once it is [confirmed](Self::confirm): whoever calls this looks at the target
    /// once more first.
    pub(crate) fn lock(&mut self, (rule, id): (&LockRule, PointId), locked: &mut Vec<Locked>, now_ms: i64) -> Result<(), String> {
        // † Also of this point: what was locked before a kill nobody has looked at since.
        self.undo_unsure(locked)?;
        // Before there is one more: what cannot be undone would become ever more.
        self.trim(rule, locked)?;
        if !is_new(locked, id, rule, now_ms) {
            return Ok(());
        }
        let by = provider(self.programs, &rule.by)?;
        by.is_free(&self.whose, id)?;
        locked.push(Locked::begun(id, &rule.by, now_ms));
        (self.keep)(locked)?;
        let name = by.lock(&self.whose, id, self.goes_on)?;
        let last = locked.last_mut().expect("it was just pushed");
        (last.name, last.unsure) = (Some(name), true);
        (self.keep)(locked)
    }

    /// The target is what it should be, after it was locked. Now, and not before, the oldest goes.
    pub(crate) fn confirm(&mut self, rule: &LockRule, locked: &mut Vec<Locked>) -> Result<(), String> {
        if let Some(last) = locked.last_mut().filter(|last| last.unsure) {
            last.unsure = false;
            (self.keep)(locked)?;
        }
        if let Some(last) = locked.last() {
            provider(self.programs, &last.by)?.settle(&self.whose, last)?;
        }
        self.trim(rule, locked)
    }

    /// What was begun, or locked and is not confirmed, goes.
    pub(crate) fn undo_unsure(&mut self, locked: &mut Vec<Locked>) -> Result<(), String> {
        while let Some(at) = locked.iter().position(|one| !one.is_sure()) {
            self.undo(at, locked)?;
        }
        Ok(())
    }

    fn trim(&mut self, rule: &LockRule, locked: &mut Vec<Locked>) -> Result<(), String> {
        while locked.len() > rule.keep as usize {
            self.undo(0, locked)?;
        }
        Ok(())
    }

    fn undo(&mut self, at: usize, locked: &mut Vec<Locked>) -> Result<(), String> {
        provider(self.programs, &locked[at].by)?.unlock(&self.whose, &locked[at], self.goes_on)?;
        locked.remove(at);
        (self.keep)(locked)
    }
}

/// Whether a rule makes sense for a target.
///
/// # Errors
/// In words.
pub(crate) fn check(programs: &[LockProgram], rule: &LockRule, target: &Path) -> Result<(), String> {
    if !(1..=LOCKED_MAX).contains(&rule.keep) {
        return Err(format!("{} rounds cannot be kept locked: 1 to {LOCKED_MAX}", rule.keep));
    }
    match provider(programs, &rule.by)? {
        Provider::Program(_) => Ok(()),
        Provider::Reflink => {
            let target = &fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
            let folder = target.parent().unwrap_or(Path::new("/"));
            if target.starts_with("/dev") {
                return Err(format!("{} is no file, and `reflink` is for files", target.display()));
            }
            let cannot = |error: io::Error| {
                format!("{} has no copies that share their blocks ({error}): XFS and Btrfs have them", folder.display())
            };
            let from = tempfile::tempfile_in(folder).map_err(cannot)?;
            from.set_len(4096).map_err(cannot)?;
            clone_file(&from, &tempfile::tempfile_in(folder).map_err(cannot)?).map_err(cannot)
        }
    }
}

enum Provider<'p> {
    Reflink,
    Program(&'p LockProgram),
}

fn provider<'p>(programs: &'p [LockProgram], by: &str) -> Result<Provider<'p>, String> {
    if by == REFLINK {
        return Ok(Provider::Reflink);
    }
    let found = programs.iter().find(|program| program.name == by).map(Provider::Program);
    found.ok_or_else(|| format!("there is no [[lock]] `{by}` in receiver.toml"))
}

/// Where a copy lies: beside the target.
fn copy_of(target: &Path, id: PointId) -> PathBuf {
    beside(target, &format!("@{id}"))
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

impl Provider<'_> {
    /// Whether nobody else has the name.
    fn is_free(&self, whose: &Whose<'_>, id: PointId) -> Result<(), String> {
        let copy = copy_of(&whose.target, id);
        match self {
            Self::Reflink if is_there(&copy) || is_there(&beside(&copy, PART)) => {
                Err(format!("{} is there already, and no lock of this follower", copy.display()))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self, whose: &Whose<'_>, id: PointId, goes_on: &dyn Fn() -> bool) -> Result<String, String> {
        match self {
            Self::Reflink => {
                let copy = copy_of(&whose.target, id);
                let failed = |error: io::Error| format!("{} cannot be made: {error}", copy.display());
                reflink(whose.share, &copy).map_err(failed)?;
                sync_folder(&copy).map_err(failed)?;
                Ok(copy.display().to_string())
            }
            Self::Program(program) => {
                let said = program.run("lock", whose, id, None, goes_on)?;
                let first = said.lines().map(str::trim).find(|line| !line.is_empty());
                Ok(first.map_or_else(|| id.to_string(), str::to_owned))
            }
        }
    }

    /// After it is confirmed.
    fn settle(&self, whose: &Whose<'_>, one: &Locked) -> Result<(), String> {
        match self {
            Self::Reflink => remove(&beside(&copy_of(&whose.target, one.id()), PART)),
            Self::Program(_) => Ok(()),
        }
    }

    fn unlock(&self, whose: &Whose<'_>, one: &Locked, goes_on: &dyn Fn() -> bool) -> Result<(), String> {
        match self {
            Self::Reflink => {
                let copy = one.name.as_ref().map_or_else(|| copy_of(&whose.target, one.id()), PathBuf::from);
                // † What has the name of one that was only begun may be somebody's own.
                if one.name.is_some() || is_ours(&copy) {
                    remove(&copy)?;
                }
                remove(&beside(&copy, PART))?;
                sync_folder(&copy).map_err(|error| format!("that {} is gone is not durable: {error}", copy.display()))
            }
            Self::Program(program) => program.run("unlock", whose, one.id(), one.name.as_deref(), goes_on).map(drop),
        }
    }
}

fn remove(path: &Path) -> Result<(), String> {
    remove_if_there(path).map_err(|error| format!("{} cannot be removed: {error}", path.display()))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a copy is the one that was made here, whose first name it still has.
fn is_ours(copy: &Path) -> bool {
    let which = |path: &Path| path.symlink_metadata().map(|is| (is.dev(), is.ino())).ok();
    which(copy).is_some_and(|it| which(&beside(copy, PART)) == Some(it))
}

const PART: &str = ".part";

fn reflink(share: &dyn Fn(&File) -> io::Result<()>, copy: &Path) -> io::Result<()> {
    let part = beside(copy, PART);
    remove_if_there(&part)?;
    let to = File::options().write(true).create_new(true).mode(0o600).open(&part)?;
    share(&to)?;
    to.set_permissions(Permissions::from_mode(0o400))?;
    to.sync_all()?;
    fs::hard_link(&part, copy) // whatever has the name by now keeps it
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

impl LockProgram {
    fn run(
        &self,
        verb: &str,
        whose: &Whose<'_>,
        id: PointId,
        name: Option<&str>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<String, String> {
        let (program, first) = self.program.split_first().ok_or_else(|| format!("[[lock]] `{}` names no program", self.name))?;
        let said = |words: &str| format!("[[lock]] `{}`: {program} {verb} {words}", self.name);
        let failed = |error: io::Error| said(&format!("cannot be started: {error}"));
        // † No pipes: what it leaves running would hold their ends, and whoever reads them.
        let (mut out, mut trouble) = (tempfile::tempfile().map_err(failed)?, tempfile::tempfile().map_err(failed)?);
        let child = Command::new(program)
            .args(first)
            .arg(verb)
            .env("FARSIDE_FOLLOWER", &whose.follower)
            .env("FARSIDE_VOLUME", &whose.volume)
            .env("FARSIDE_TARGET", &whose.target)
            .env("FARSIDE_POINT", id.to_string())
            // † Never empty: `lvremove vg/$FARSIDE_LOCK` would be all of them.
            .env("FARSIDE_LOCK", name.map_or_else(|| id.to_string(), str::to_owned))
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(trouble.try_clone().map_err(failed)?)
            .process_group(0)
            .spawn();
        let mut child = child.map_err(failed)?;
        let group = Pid::from_raw(child.id().cast_signed());
        let mut why = wait(group, self.timeout, goes_on);
        if why.is_err() {
            // † A volume manager in the middle of a change must be able to end it: what it suspended would hang whoever touches it.
            let _ = killpg(group, Signal::SIGTERM);
            let _ = wait(group, TERM_GRACE, &|| true);
        }
        // Also what it left running; before it is reaped nobody else has its number.
        let _ = killpg(group, Signal::SIGKILL);
        if wait(group, TERM_GRACE, &|| true).is_err() {
            why = why.and(Err("cannot be ended".to_owned()));
            let reaper = thread::Builder::new().name("reaper".to_owned()).spawn(move || child.wait());
            drop(reaper); // without one it stays a zombie until the receiver ends
            return Err(said(&why.expect_err("it was just made one")));
        }
        let ended = child.wait().map_err(|error| format!("is not heard of: {error}"));
        match why.and(ended) {
            Ok(status) if status.success() => Ok(words(&mut out, SeekFrom::Start(0))),
            Ok(status) => {
                let length = trouble.metadata().map_or(0, |is| is.len());
                let trouble = words(&mut trouble, SeekFrom::Start(length.saturating_sub(WORDS_MAX)));
                let last = trouble.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
                Err(said(&format!("failed ({status}): {last}")))
            }
            Err(words) => Err(said(&words)),
        }
    }
}

fn words(file: &mut File, from: SeekFrom) -> String {
    let mut bytes = Vec::new();
    let _ = file.seek(from).and_then(|_| file.take(WORDS_MAX).read_to_end(&mut bytes)); // what can be read
    let text = String::from_utf8_lossy(&bytes);
    text.chars().map(|c| if farside_region::steers(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Waits until a child has ended, which is not reaped by that.
fn wait(child: Pid, timeout: Duration, goes_on: &dyn Fn() -> bool) -> Result<(), String> {
    let until = Instant::now() + timeout;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(child), flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(format!("is not heard of: {error}")),
        }
        if !goes_on() {
            return Err("was interrupted, and is run again".to_owned());
        }
        if Instant::now() >= until {
            return Err(format!("took longer than {timeout:?}, and was ended"));
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn id(slot: u64) -> PointId {
        PointId { slot, tag: 7 }
    }

    fn rule(by: &str, keep: u32, every_ms: u64) -> LockRule {
        LockRule { by: by.to_owned(), keep, every_ms, strict: false }
    }

    /// A program that copies the target, and what it is asked for.
    struct Place {
        dir: tempfile::TempDir,
        programs: Vec<LockProgram>,
    }

    impl Place {
        fn new(script: &str) -> Self {
            let dir = tempfile::tempdir().expect("temp dir");
            let file = dir.path().join("script");
            fs::write(&file, script).expect("written");
            let program = ["/bin/sh".into(), file.display().to_string(), dir.path().display().to_string()];
            let programs = vec![LockProgram { name: "copy".into(), program: program.into(), timeout: Duration::from_secs(3600) }];
            fs::write(dir.path().join("target"), "one").expect("written");
            Self { dir, programs }
        }

        fn target(&self) -> PathBuf {
            self.dir.path().join("target")
        }

        fn copies(&self) -> Vec<(String, String)> {
            let entries = fs::read_dir(self.dir.path()).expect("listed").map(|entry| entry.expect("an entry").path());
            let mut all: Vec<_> = entries
                .filter(|path| path.extension().is_some_and(|end| end == "copy"))
                .map(|path| {
                    let name = path.file_stem().expect("named").to_string_lossy().into_owned();
                    (name, fs::read_to_string(path).expect("read"))
                })
                .collect();
            all.sort();
            all
        }

        fn with<T>(
            &self,
            keep: &mut dyn FnMut(&[Locked]) -> Result<(), String>,
            goes_on: &dyn Fn() -> bool,
            work: impl FnOnce(&mut Round<'_>) -> T,
        ) -> T {
            let share = |to: &File| to.write_all_at(b"shared", 0);
            let target = self.dir.path().join("target");
            let whose = Whose { follower: "f".into(), volume: "a/b/c".into(), target, share: &share };
            work(&mut Round { programs: &self.programs, whose, keep, goes_on })
        }

        fn round(&self, rule: &LockRule, at: u64, locked: &mut Vec<Locked>) -> Result<(), String> {
            self.with(&mut |_| Ok(()), &|| true, |round| {
                round.lock((rule, id(at)), locked, HOUR_MS)?;
                round.confirm(rule, locked)
            })
        }
    }

    const COPY: &str = "\
        copy=\"$1/$FARSIDE_POINT.copy\"\n\
        case $2 in\n\
        lock) cp \"$FARSIDE_TARGET\" \"$copy\"; echo \"$copy\";;\n\
        unlock) test \"$FARSIDE_LOCK\" = \"$FARSIDE_POINT\" || test \"$FARSIDE_LOCK\" = \"$copy\" || exit 3; rm -f \"$copy\";;\n\
        esac\n";

    #[test]
    fn rounds_are_kept_and_the_oldest_goes() {
        let (place, rule, mut locked) = (Place::new(COPY), rule("copy", 2, 0), Vec::new());
        for (slot, content) in [(1, "one"), (2, "two"), (3, "three")] {
            fs::write(place.target(), content).expect("written");
            assert!(is_due(&locked, id(slot), &rule, HOUR_MS));
            place.round(&rule, slot, &mut locked).expect("locked");
            assert!(!is_due(&locked, id(slot), &rule, HOUR_MS), "it is done");
        }
        let copies = [("2-00000007", "two"), ("3-00000007", "three")].map(|(name, content)| (name.into(), content.into()));
        assert_eq!(place.copies(), copies);
        assert_eq!(locked.iter().map(|one| one.slot).collect::<Vec<_>>(), [2, 3]);
        assert!(locked[1].name.as_ref().is_some_and(|name| name.ends_with("3-00000007.copy")), "{locked:?}");
    }

    /// Killed at every note: nothing is left that is not noted, and what is gone on with ends the same.
    #[test]
    fn a_kill_leaves_nothing_that_nobody_knows_of() {
        let rule = rule("copy", 1, 0);
        for moves_on in [false, true] {
            for keeps in 0..6 {
                let (place, mut locked) = (Place::new(COPY), Vec::new());
                place.round(&rule, 1, &mut locked).expect("locked");
                // What is durable is what was kept last.
                let durable = std::cell::RefCell::new(locked.clone());
                let left = Cell::new(keeps);
                let mut keep = |now: &[Locked]| {
                    let more = left.get();
                    if more == 0 {
                        return Err("killed".to_owned());
                    }
                    left.set(more - 1);
                    *durable.borrow_mut() = now.to_vec();
                    Ok(())
                };
                let ended = place.with(&mut keep, &|| true, |round| {
                    round.lock((&rule, id(2)), &mut locked, HOUR_MS)?;
                    round.confirm(&rule, &mut locked)
                });
                assert_eq!(ended.is_err(), keeps < 4, "{keeps}");
                let mut locked = durable.into_inner();
                for (name, _) in place.copies() {
                    assert!(locked.iter().any(|one| one.id().to_string() == name), "{name} is not noted: {locked:?}");
                }
                let at = if moves_on { 3 } else { 2 };
                place.round(&rule, at, &mut locked).expect("locked");
                assert_eq!(place.copies(), [(id(at).to_string(), "one".to_owned())], "{keeps}");
                assert_eq!(locked.len(), 1);
            }
        }
    }

    /// Somebody wrote to the target while it was locked: what was locked goes, by the name that it has, and what was there before stays.
    #[test]
    fn what_is_not_confirmed_goes_and_costs_nothing_that_was_good() {
        for by in ["copy", REFLINK] {
            let (place, rule) = (Place::new(&COPY.replace("test \"$FARSIDE_LOCK\" = \"$FARSIDE_POINT\" ||", "")), rule(by, 1, 0));
            let mut locked = Vec::new();
            place.round(&rule, 1, &mut locked).expect("locked");
            let files = || fs::read_dir(place.dir.path()).expect("listed").count();
            let before = (locked.clone(), files());
            place.with(&mut |_| Ok(()), &|| true, |round| round.lock((&rule, id(2)), &mut locked, HOUR_MS)).expect("locked");
            assert!(locked.len() == 2 && !locked[1].is_sure() && files() > before.1);
            // At once, or at the next round of that very point after a kill.
            let mut later = locked.clone();
            place.with(&mut |_| Ok(()), &|| true, |round| round.undo_unsure(&mut locked)).expect("undone");
            assert_eq!((&locked, files()), (&before.0, before.1), "{by}");
            assert!(is_due(&later, id(2), &rule, HOUR_MS));
            place.round(&rule, 2, &mut later).expect("locked");
            assert_eq!((later.len(), later[0].slot, later[0].is_sure(), files()), (1, 2, true, before.1), "{by}");
        }
    }

    #[test]
    fn what_a_program_says_and_how_it_ends_is_told() {
        let failed = |script: &str| {
            let place = Place::new(script);
            let ended = place.round(&rule("copy", 1, 0), 1, &mut Vec::new());
            ended.expect_err("it failed")
        };
        let words = failed("echo first >&2; echo 'no space in pool' >&2; exit 5\n");
        assert!(words.contains("lock failed (exit status: 5): no space in pool"), "{words}");
        assert!(failed("exit 1").contains("it said nothing"));
        // What it leaves running in a group of its own has its words, and holds nobody up.
        let mut place = Place::new("setsid sleep 3600 & sleep 3600 & sleep 3600\n");
        let round = |place: &Place, goes_on: &dyn Fn() -> bool| {
            place.with(&mut |_| Ok(()), goes_on, |round| round.lock((&rule("copy", 1, 0), id(1)), &mut Vec::new(), 0))
        };
        let looked = Cell::new(0);
        let interrupted = round(&place, &|| looked.replace(looked.get() + 1) < 2);
        assert!(interrupted.expect_err("interrupted").contains("was interrupted"));
        place.programs[0].timeout = Duration::ZERO;
        assert!(round(&place, &|| true).expect_err("too long").contains("took longer than"));
        place.programs[0].program = vec!["/nowhere".into()];
        assert!(round(&place, &|| true).expect_err("not there").contains("cannot be started"));
        place.programs.clear();
        assert!(round(&place, &|| true).expect_err("not there").contains("there is no [[lock]] `copy`"));
        // What it does not say is what it is called; what it says too much is left.
        let place = Place::new("yes | head -c 1000000\n");
        let mut locked = Vec::new();
        place.round(&rule("copy", 1, 0), 1, &mut locked).expect("locked");
        assert_eq!(locked[0].name.as_deref(), Some("y"));
    }

    #[test]
    fn a_round_is_due_by_the_clock_and_only_where_the_clock_makes_sense() {
        let whole = |slot, wall_ms| Locked { name: Some("x".into()), ..Locked::begun(id(slot), "copy", wall_ms) };
        let rule = rule("copy", 3, 1000);
        assert!(is_due(&[], id(1), &rule, 0));
        let locked = [whole(1, 5000)];
        assert!(!is_due(&locked, id(1), &rule, 9000), "there is nothing new");
        assert!(!is_due(&locked, id(2), &rule, 5999) && is_due(&locked, id(2), &rule, 6000));
        assert!(is_due(&locked, id(2), &rule, 4000), "a clock that went back");
        assert!(is_due(&[whole(1, 0), Locked::begun(id(2), "copy", 0)], id(3), &rule, 1), "one that was begun");
    }

    #[test]
    fn a_point_that_the_target_came_back_to_is_locked_once() {
        let (place, rule, mut locked) = (Place::new(COPY), rule("copy", 5, 0), Vec::new());
        for slot in [1, 2, 1, 2, 1] {
            place.round(&rule, slot, &mut locked).expect("locked");
            assert!(!is_due(&locked, id(slot), &rule, HOUR_MS));
        }
        assert_eq!((locked.len(), place.copies().len()), (2, 2));
    }

    /// Nor is anything locked while what is one too many cannot be undone.
    #[test]
    fn what_cannot_be_undone_does_not_become_more() {
        let place = Place::new("test $2 = lock\n");
        let (rule, mut locked) = (rule("copy", 1, 0), Vec::new());
        for slot in 1..9 {
            let done = place.round(&rule, slot, &mut locked);
            assert_eq!(done.is_ok(), slot == 1);
        }
        assert_eq!(locked.len(), 2, "the first, and the one after which it could not be undone");
    }

    /// Killed before its name was noted, and somebody else's file in its place since.
    #[test]
    fn a_copy_is_ours_only_if_it_was_made_here() {
        let (place, rule) = (Place::new(""), rule(REFLINK, 2, 0));
        let (mut locked, mut durable) = (Vec::new(), Vec::new());
        let mut keep = |now: &[Locked]| match now.iter().all(|one| one.name.is_none()) {
            true => {
                durable = now.to_vec();
                Ok(())
            }
            false => Err("killed".to_owned()),
        };
        place.with(&mut keep, &|| true, |round| round.lock((&rule, id(1)), &mut locked, 1)).expect_err("killed");
        let copy = copy_of(&place.target(), id(1));
        let text = |path: &Path| fs::read_to_string(path).expect("read");
        assert_eq!((text(&copy).as_str(), is_ours(&copy)), ("shared", true));
        fs::remove_file(&copy).and_then(|()| fs::write(&copy, "mine")).expect("somebody's own");
        let taken = place.round(&rule, 1, &mut durable).expect_err("taken");
        assert!(taken.contains("no lock of this follower"), "{taken}");
        assert!(place.round(&rule, 2, &mut durable).is_ok(), "it goes on");
        assert_eq!((text(&copy).as_str(), durable.len()), ("mine", 1));
        let files = fs::read_dir(place.dir.path()).expect("listed").count();
        assert_eq!(files, 4, "script, target, somebody's own, and the copy of the second point under one name");
    }

    #[test]
    fn what_cannot_be_locked_is_refused_at_once() {
        let place = Place::new(COPY);
        let check = |by: &str, keep, target: &str| check(&place.programs, &rule(by, keep, 0), Path::new(target));
        assert_eq!(check("copy", 1, "/dev/vg/x"), Ok(()));
        assert!(check("copy", 0, "/x").expect_err("none").contains("1 to 1000"));
        assert!(check("thin", 1, "/x").expect_err("unknown").contains("[[lock]] `thin`"));
        assert!(check(REFLINK, 1, "/dev/vg/x").expect_err("a device").contains("is no file"));
        // procfs has no files of ours, let alone shared ones.
        assert!(check(REFLINK, 1, "/proc/x").expect_err("it cannot").contains("XFS and Btrfs"));
        // A copy that somebody else made is not taken for ours.
        fs::write(copy_of(&place.target(), id(1)), "mine").expect("written");
        let refused = place.round(&rule(REFLINK, 1, 0), 1, &mut Vec::new()).expect_err("taken");
        assert!(refused.contains("no lock of this follower"), "{refused}");
    }
}
