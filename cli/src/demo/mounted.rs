//! The workload as a user has it: files on the mounted file system, which lies on the tap through nbdfuse and a loop device.
//!
//! Invariant: dropping a [`Mounted`] leaves no mount, loop device or nbdfuse behind, also when the tap below has died.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::tools::{MOUNTING, ask, find, run, tool};
use super::workload::{Cut, Finding, Workload, check_file_system, content, now_ns};
use crate::failure::{Exit, Failure, OrFail as _};

const NBDFUSE_PATIENCE: Duration = Duration::from_secs(10);

/// A file that was written and synced, and perhaps removed.
#[derive(Debug)]
struct FileRecord {
    path: String,
    digest: blake3::Hash,
    begun_ns: u64,
    synced_ns: Option<u64>,
    removal_begun_ns: Option<u64>,
}

/// A line that was appended to the log and synced.
#[derive(Debug)]
struct LineRecord {
    begun_ns: u64,
    synced_ns: Option<u64>,
}

#[derive(Debug, Default)]
struct Journal {
    files: Vec<FileRecord>,
    lines: Vec<LineRecord>,
    written_bytes: u64,
}

/// The mounted file system and what was done on it.
#[derive(Debug)]
pub(crate) struct Mounted {
    stack: Stack,
    journal: Mutex<Journal>,
}

/// Why the volume cannot be mounted here; `None` if it can be tried.
pub(crate) fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse: {error}"));
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("there are no loop devices".to_owned());
    }
    let missing: Vec<&str> = MOUNTING.iter().copied().filter(|program| find(program).is_none()).collect();
    (!missing.is_empty()).then(|| format!("not installed: {} (packages libnbd-bin, mount)", missing.join(", ")))
}

/// What lies between the tap and the files, from the bottom up.
#[derive(Debug, Default)]
struct Stack {
    nbdfuse: Option<(Child, PathBuf)>,
    device: Option<String>,
    mount: Option<PathBuf>,
}

impl Stack {
    fn build(tap: &Path, scratch: &Path) -> Result<Self, Failure> {
        let mut stack = Self::default();
        let (fuse, mount) = (scratch.join("fuse"), scratch.join("mnt"));
        for dir in [&fuse, &mount] {
            std::fs::create_dir_all(dir).or_fail("cannot make a folder")?;
        }
        let log = File::create(scratch.join("nbdfuse.log")).or_fail("cannot write a log")?;
        let disk = fuse.join("disk");
        let child = tool("nbdfuse")
            .arg(&disk)
            .arg("--unix")
            .arg(tap)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .or_fail("nbdfuse does not start")?;
        let (child, _) = stack.nbdfuse.insert((child, fuse));
        let deadline = Instant::now() + NBDFUSE_PATIENCE;
        while !disk.exists() {
            let ended = child.try_wait().or_fail("nbdfuse")?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(scratch.join("nbdfuse.log")).unwrap_or_default();
                return Err(Failure::new(Exit::Failed, format!("nbdfuse serves nothing: {}", log.trim()), ""));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        stack.device = Some(ask(tool("losetup").args(["--find", "--show"]).arg(&disk))?);
        let device = stack.device.as_deref().expect("just set");
        run(tool("mount").args(["-t", "ext4", device]).arg(&mount))?;
        stack.mount = Some(mount);
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take()
            && run(tool("timeout").args(["10", "umount"]).arg(&mount)).is_err()
        {
            let _ = run(tool("umount").arg("--lazy").arg(&mount));
        }
        if let Some(device) = self.device.take() {
            let _ = run(tool("losetup").args(["--detach", &device]));
        }
        if let Some((mut child, fuse)) = self.nbdfuse.take() {
            let _ = run(tool("umount").arg("--lazy").arg(&fuse));
            let deadline = Instant::now() + Duration::from_secs(5);
            while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_))) {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Mounted {
    /// Mounts what the tap serves.
    pub(crate) fn new(tap: &Path, scratch: &Path) -> Result<Self, Failure> {
        Ok(Self { stack: Stack::build(tap, scratch)?, journal: Mutex::default() })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> &Path {
        self.stack.mount.as_deref().expect("mounted as long as it exists")
    }

    fn write_file(&self, path: &str, data: &[u8]) -> Result<(), Failure> {
        let record = FileRecord {
            path: path.to_owned(),
            digest: blake3::hash(data),
            begun_ns: now_ns(),
            synced_ns: None,
            removal_begun_ns: None,
        };
        let index = {
            let mut journal = self.journal();
            journal.files.push(record);
            journal.files.len() - 1
        };
        let whole = self.root().join(path);
        let folder = whole.parent().expect("a file has a folder");
        File::create(&whole)
            .and_then(|mut file| file.write_all(data).and_then(|()| file.sync_all()))
            .and_then(|()| File::open(folder)?.sync_all())
            .and_then(|()| File::open(self.root())?.sync_all())
            .or_fail(format!("writing {path} on the volume"))?;
        let mut journal = self.journal();
        journal.files[index].synced_ns = Some(now_ns());
        journal.written_bytes += data.len() as u64;
        Ok(())
    }

    fn append_line(&self, number: u32) -> Result<(), Failure> {
        self.journal().lines.push(LineRecord { begun_ns: now_ns(), synced_ns: None });
        let line = line_text(number as usize);
        File::options()
            .append(true)
            .create(true)
            .open(self.root().join("log"))
            .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| File::open(self.root())?.sync_all())
            .or_fail("appending to the log on the volume")?;
        let mut journal = self.journal();
        journal.lines.last_mut().expect("just pushed").synced_ns = Some(now_ns());
        journal.written_bytes += line.len() as u64;
        Ok(())
    }

    fn remove_round(&self, number: u32) -> Result<(), Failure> {
        let folder = format!("round-{number}");
        let begun = now_ns();
        for file in self.journal().files.iter_mut().filter(|file| file.path.starts_with(&format!("{folder}/"))) {
            file.removal_begun_ns = Some(begun);
        }
        std::fs::remove_dir_all(self.root().join(folder)).or_fail("removing files on the volume")
    }
}

/// Line `number` of the log, from 1.
fn line_text(number: usize) -> String {
    format!("{number:08} what is acknowledged stays acknowledged\n")
}

impl Workload for Mounted {
    fn round(&self, number: u32) -> Result<(), Failure> {
        std::fs::create_dir(self.root().join(format!("round-{number}"))).or_fail("making a folder on the volume")?;
        for file in 0..3 {
            let bytes = (32 << 10) * (1 + (number as usize * 7 + file * 5) % 16);
            let data = content(u64::from(number) * 8 + file as u64, bytes);
            self.write_file(&format!("round-{number}/file-{file}"), &data)?;
        }
        self.append_line(number)?;
        if number > 6 {
            self.remove_round(number - 6)?;
        }
        Ok(())
    }

    fn gap(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn written_bytes(&self) -> u64 {
        self.journal().written_bytes
    }

    fn is_writing(&self) -> bool {
        true
    }

    /// With a journal every cut is as good as any other.
    fn is_between_rounds(&self, _: Cut) -> bool {
        true
    }

    fn compare(&self, cut: Cut, image: &Path, scratch: &Path) -> Result<Finding, Failure> {
        let out = scratch.join("files");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir_all(&out).or_fail("cannot make a folder")?;
        let copy = scratch.join("replayed.img");
        check_file_system(image, &copy)?;
        let journal = self.journal();
        let commands = scratch.join("commands");
        let mut script = format!("dump log {}\n", out.join("log").display());
        for (i, file) in journal.files.iter().enumerate() {
            script.push_str(&format!("dump {} {}\n", file.path, out.join(i.to_string()).display()));
        }
        std::fs::write(&commands, script).or_fail("cannot write a file")?;
        run(tool("debugfs").arg("-f").arg(&commands).arg(&copy))?;
        std::fs::remove_file(&copy).or_fail("cannot remove a copy")?;
        let mut equal = 0;
        for (i, file) in journal.files.iter().enumerate() {
            let found = std::fs::read(out.join(i.to_string())).ok();
            equal += judge_file(file, cut, found.as_deref())?;
        }
        let log = std::fs::read_to_string(out.join("log")).unwrap_or_default();
        let lines = judge_log(&journal.lines, cut, &log)?;
        Ok(Finding {
            state: format!("line {lines} of the log"),
            compared: format!("{equal} files and {lines} log lines, every byte"),
            file_system_checked: true,
        })
    }
}

/// 1 if the point must hold the file, and does.
fn judge_file(file: &FileRecord, cut: Cut, found: Option<&[u8]>) -> Result<u32, Failure> {
    let damage = |what: &str| {
        Err(Failure::new(Exit::Damaged, format!("{} {what}", file.path), "this is a bug; run the demo with --keep and report it"))
    };
    let must_be_there =
        file.synced_ns.is_some_and(|at| at <= cut.before_ns) && file.removal_begun_ns.is_none_or(|at| at >= cut.after_ns);
    let must_not_be_there = file.begun_ns >= cut.after_ns;
    match found {
        None if must_be_there => damage("was synced before the cut and is not in the point"),
        Some(_) if must_not_be_there => damage("was begun after the cut and is in the point"),
        Some(data) if must_be_there && blake3::hash(data) != file.digest => {
            damage("was synced before the cut and differs in the point")
        }
        _ => Ok(u32::from(must_be_there)),
    }
}

/// How many lines the log has: all that were synced before the cut, none that was begun after it, each whole.
fn judge_log(lines: &[LineRecord], cut: Cut, log: &str) -> Result<usize, Failure> {
    let must = lines.iter().filter(|line| line.synced_ns.is_some_and(|at| at <= cut.before_ns)).count();
    let may = lines.iter().filter(|line| line.begun_ns < cut.after_ns).count();
    let expected: String = (1..=may).map(line_text).collect();
    let complete = log.lines().count();
    if !expected.starts_with(log) || complete < must {
        let message = format!("the log in the point has {complete} lines; by its cut {must} were acknowledged and {may} begun");
        return Err(Failure::new(Exit::Damaged, message, "this is a bug; run the demo with --keep and report it"));
    }
    Ok(complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { before_ns: 100, after_ns: 110 };

    fn file(begun_ns: u64, synced_ns: Option<u64>, removal_begun_ns: Option<u64>) -> FileRecord {
        FileRecord { path: "f".into(), digest: blake3::hash(b"x"), begun_ns, synced_ns, removal_begun_ns }
    }

    #[test]
    fn files_are_judged_by_when_they_were_acknowledged() {
        let synced = file(10, Some(90), None);
        assert_eq!(judge_file(&synced, CUT, Some(b"x")).expect("equal"), 1);
        assert!(judge_file(&synced, CUT, None).is_err());
        assert!(judge_file(&synced, CUT, Some(b"y")).is_err());
        let under_way = file(90, Some(120), None);
        for found in [None, Some(&b""[..]), Some(b"x")] {
            assert_eq!(judge_file(&under_way, CUT, found).expect("either"), 0);
        }
        let late = file(115, Some(120), None);
        assert!(judge_file(&late, CUT, Some(b"x")).is_err());
        let removed = file(10, Some(20), Some(105));
        assert_eq!(judge_file(&removed, CUT, None).expect("either"), 0);
        let removed_later = file(10, Some(20), Some(115));
        assert!(judge_file(&removed_later, CUT, None).is_err());
    }

    #[test]
    fn the_log_is_a_prefix_that_holds_every_acknowledged_line() {
        let line = |begun_ns, synced_ns| LineRecord { begun_ns, synced_ns };
        let lines = [line(10, Some(20)), line(30, Some(105)), line(120, Some(130))];
        let log = |n: usize| (1..=n).map(line_text).collect::<String>();
        assert!(judge_log(&lines, CUT, "").is_err());
        assert_eq!(judge_log(&lines, CUT, &log(1)).expect("enough"), 1);
        assert_eq!(judge_log(&lines, CUT, &log(2)).expect("may be in"), 2);
        assert!(judge_log(&lines, CUT, &log(3)).is_err());
        assert!(judge_log(&lines, CUT, "00000001 something else\n").is_err());
    }
}
