//! What changes the volume while it is protected, and remembers enough to say afterwards what a point must hold.
//!
//! Two forms. [`Basic`] needs no privilege: successive states of a local copy, made by `debugfs -w`, whose differing blocks
//! go through the tap with a flush after each state. [`Mounted`](super::mounted::Mounted) writes files on the mounted file
//! system. Both note when each change began and when it was acknowledged, in CLOCK_MONOTONIC, which is what a point's cut is
//! given in: what was acknowledged before the cut must be there, what began after it must not.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use farside_nbd::client::Client as Nbd;

use super::blocks::{BLOCK, Blocks, Digest};
use super::tools::{ask, run, tool};
use crate::failure::{Exit, Failure, OrFail as _};

/// A point's cut: it fell between these two readings of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Read just before.
    pub(crate) before_ns: u64,
    /// Read just after.
    pub(crate) after_ns: u64,
}

/// What a restored image turned out to be.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// Which state it holds, in words.
    pub(crate) state: String,
    /// What was compared, in words.
    pub(crate) compared: String,
    /// Whether e2fsck was asked, and found nothing. It is not asked in the middle of a state that debugfs wrote, since
    /// debugfs keeps no journal.
    pub(crate) file_system_checked: bool,
}

/// Something that changes the volume.
pub(crate) trait Workload: Send + Sync {
    /// Makes one more change, up to its flush.
    fn round(&self, number: u32) -> Result<(), Failure>;
    /// How long to wait between two.
    fn gap(&self) -> Duration;
    /// Bytes written so far.
    fn written_bytes(&self) -> u64;
    /// Whether a round is under way.
    fn is_writing(&self) -> bool;
    /// Whether a point cut then is sure to lie between two rounds.
    fn is_between_rounds(&self, cut: Cut) -> bool;
    /// Compares an image restored from a point with what the point must hold, and has its file system checked on a copy in
    /// `scratch`.
    fn compare(&self, cut: Cut, image: &Path, scratch: &Path) -> Result<Finding, Failure>;
}

/// A workload on its own thread.
#[derive(Debug)]
pub(crate) struct Running {
    thread: Option<JoinHandle<Result<(), Failure>>>,
    stop: Arc<AtomicBool>,
}

impl Running {
    /// Begins.
    pub(crate) fn start(workload: Arc<dyn Workload>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for number in 1.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                workload.round(number)?;
                std::thread::park_timeout(workload.gap());
            }
            Ok(())
        });
        Self { thread: Some(thread), stop }
    }

    /// An error if it ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return self.join();
        }
        Ok(())
    }

    /// Ends it; how it ended does not matter where the volume was killed under it.
    pub(crate) fn end(mut self) {
        let _ = self.join();
    }

    fn join(&mut self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.thread().unpark();
        thread.join().unwrap_or_else(|_| Err(Failure::new(Exit::Failed, "the workload panicked", "")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

/// This machine's CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

/// Content that differs from round to round: half of it compresses, half does not.
pub(crate) fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut random);
    for (i, half) in random.chunks_mut(4096).enumerate().filter(|(i, _)| i % 2 == 0) {
        let text = format!("round {seed}, block {i}: the quick brown fox jumps over the lazy dog. ");
        half.iter_mut().zip(text.bytes().cycle()).for_each(|(to, from)| *to = from);
    }
    random
}

/// One write that went through the tap.
#[derive(Debug)]
struct Write {
    start: usize,
    digests: Vec<Digest>,
    issued_ns: u64,
    acked_ns: Option<u64>,
}

/// One state of the file system: all writes up to `writes` and a flush.
#[derive(Debug)]
struct State {
    number: u32,
    writes: usize,
}

#[derive(Debug)]
struct Journal {
    base: Blocks,
    current: Blocks,
    writes: Vec<Write>,
    states: Vec<State>,
    written_bytes: u64,
    writing: bool,
}

/// States of a local copy, written through the tap.
#[derive(Debug)]
pub(crate) struct Basic {
    copy: PathBuf,
    tap: PathBuf,
    scratch: PathBuf,
    connection: Mutex<Option<Nbd>>,
    journal: Mutex<Journal>,
}

impl Basic {
    /// `image` is what the volume holds now; a copy of it is kept in `scratch`.
    pub(crate) fn new(image: &Path, tap: PathBuf, scratch: PathBuf) -> Result<Self, Failure> {
        std::fs::create_dir_all(&scratch).or_fail("cannot make a folder")?;
        let copy = scratch.join("copy.img");
        copy_sparse(image, &copy)?;
        let base = Blocks::of(&copy).or_fail("cannot read the image")?;
        let states = vec![State { number: 0, writes: 0 }];
        let journal = Journal { current: base.clone(), base, writes: Vec::new(), states, written_bytes: 0, writing: false };
        Ok(Self { copy, tap, scratch, connection: Mutex::new(None), journal: Mutex::new(journal) })
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next state in the copy.
    fn change_copy(&self, number: u32) -> Result<(), Failure> {
        let mut script = format!("mkdir /round-{number}\ncd /round-{number}\n");
        for file in 0..3 {
            let path = self.scratch.join(format!("new-{file}"));
            let bytes = (64 << 10) * (1 + (number as usize * 7 + file * 5) % 12);
            std::fs::write(&path, content(u64::from(number) * 8 + file as u64, bytes)).or_fail("cannot write a file")?;
            script.push_str(&format!("write {} file-{file}\n", path.display()));
        }
        let state = self.scratch.join("state");
        std::fs::write(&state, format!("state {number}\n")).or_fail("cannot write a file")?;
        script.push_str(&format!("cd /\nrm state\nwrite {} state\n", state.display()));
        if number > 4 {
            let old = number - 4;
            (0..3).for_each(|file| script.push_str(&format!("rm round-{old}/file-{file}\n")));
            script.push_str(&format!("rmdir round-{old}\n"));
        }
        let commands = self.scratch.join("commands");
        std::fs::write(&commands, script).or_fail("cannot write a file")?;
        run(tool("debugfs").arg("-w").arg("-f").arg(&commands).arg(&self.copy)).map(drop)
    }

    /// Writes what differs through the tap, noting when.
    fn ship(&self, number: u32) -> Result<(), Failure> {
        let new = Blocks::of(&self.copy).or_fail("cannot read the copy")?;
        let runs = self.journal().current.differing_runs(&new);
        let copy = File::open(&self.copy).or_fail("cannot read the copy")?;
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let nbd = match &mut *connection {
            Some(nbd) => nbd,
            none => none.insert(Nbd::connect(&self.tap, "").or_fail("cannot connect to the tap")?),
        };
        self.journal().writing = true;
        for run in runs {
            let mut data = vec![0; run.len() * BLOCK];
            copy.read_exact_at(&mut data, (run.start * BLOCK) as u64).or_fail("cannot read the copy")?;
            let digests = new.0[run.clone()].to_vec();
            let index = {
                let mut journal = self.journal();
                journal.writes.push(Write { start: run.start, digests, issued_ns: now_ns(), acked_ns: None });
                journal.writes.len() - 1
            };
            let offset = (run.start * BLOCK) as u64;
            if data.iter().all(|byte| *byte == 0) {
                nbd.trim(offset, data.len() as u32).or_fail("a trim through the tap")?;
            } else {
                nbd.write(offset, &data, 0).or_fail("a write through the tap")?;
            }
            let mut journal = self.journal();
            journal.writes[index].acked_ns = Some(now_ns());
            journal.written_bytes += data.len() as u64;
        }
        nbd.flush().or_fail("a flush through the tap")?;
        let mut journal = self.journal();
        journal.writing = false;
        journal.current = new;
        let writes = journal.writes.len();
        journal.states.push(State { number, writes });
        Ok(())
    }
}

impl Journal {
    /// How many writes a point must hold, and how many it may.
    fn writes_at(&self, cut: Cut) -> (usize, usize) {
        let must = self.writes.iter().filter(|write| write.acked_ns.is_some_and(|at| at <= cut.before_ns)).count();
        let may = self.writes.iter().filter(|write| write.issued_ns < cut.after_ns).count();
        (must, may)
    }

    /// The image after so many writes.
    fn image_after(&self, writes: usize) -> Blocks {
        let mut blocks = self.base.clone();
        for write in &self.writes[..writes] {
            blocks.0[write.start..write.start + write.digests.len()].copy_from_slice(&write.digests);
        }
        blocks
    }

    /// The state that so many writes make, if they make a whole one.
    fn state_after(&self, writes: usize) -> Option<u32> {
        self.states.iter().rev().find(|state| state.writes == writes).map(|state| state.number)
    }
}

impl Workload for Basic {
    fn round(&self, number: u32) -> Result<(), Failure> {
        self.change_copy(number)?;
        self.ship(number)
    }

    fn gap(&self) -> Duration {
        Duration::from_millis(400)
    }

    fn written_bytes(&self) -> u64 {
        self.journal().written_bytes
    }

    fn is_writing(&self) -> bool {
        self.journal().writing
    }

    fn is_between_rounds(&self, cut: Cut) -> bool {
        let journal = self.journal();
        let (must, may) = journal.writes_at(cut);
        must == may && journal.state_after(must).is_some()
    }

    fn compare(&self, cut: Cut, image: &Path, scratch: &Path) -> Result<Finding, Failure> {
        let restored = Blocks::of(image).or_fail("cannot read the restored image")?;
        let journal = self.journal();
        let (must, may) = journal.writes_at(cut);
        let Some(writes) = (must..=may.max(must)).find(|&writes| journal.image_after(writes) == restored) else {
            let expected = journal.image_after(must);
            let wrong: Vec<usize> = expected.differing_runs(&restored).into_iter().flatten().collect();
            let message = format!(
                "the point does not hold what had been written by its cut: {} of {} blocks differ, the first at byte {}",
                wrong.len(),
                expected.0.len(),
                wrong.first().map_or(0, |block| block * BLOCK),
            );
            return Err(Failure::new(Exit::Damaged, message, "this is a bug; run the demo with --keep and report it"));
        };
        let whole = journal.state_after(writes);
        let state = whole.map_or_else(
            || format!("after write {writes} of {}, amid a state", journal.writes.len()),
            |number| format!("state {number}"),
        );
        if whole.is_some() {
            let copy = scratch.join("replayed.img");
            check_file_system(image, &copy)?;
            std::fs::remove_file(&copy).or_fail("cannot remove a copy")?;
        }
        let compared = format!("{} blocks, every byte", restored.0.len());
        Ok(Finding { state, compared, file_system_checked: whole.is_some() })
    }
}

/// Copies a sparse file as a sparse file.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<(), Failure> {
    run(tool("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

/// Makes an ext4 image with real files of this machine in it.
pub(crate) fn make_image(image: &Path, bytes: u64, scratch: &Path) -> Result<u64, Failure> {
    let seed = scratch.join("seed");
    let mut budget = (bytes / 8).min(128 << 20);
    let mut copied = 0;
    for place in ["/usr/share/doc", "/usr/share/i18n", "/usr/bin", "/usr/lib/x86_64-linux-gnu"] {
        let limit = budget.min(32 << 20);
        let took = copy_files(Path::new(place), &seed.join(place.trim_start_matches('/').replace('/', "-")), limit)?;
        copied += took;
        budget -= took.min(budget);
    }
    std::fs::create_dir_all(&seed).or_fail("cannot make a folder")?;
    std::fs::write(seed.join("state"), "state 0\n").or_fail("cannot write a file")?;
    std::fs::write(seed.join("noise"), content(0, 4 << 20)).or_fail("cannot write a file")?;
    File::create(image).and_then(|file| file.set_len(bytes)).or_fail(format!("cannot make {}", image.display()))?;
    run(tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"]).arg(&seed).arg(image))?;
    std::fs::remove_dir_all(&seed).or_fail("cannot remove a folder")?;
    Ok(copied + (4 << 20))
}

/// Copies regular files, the first by name, up to a limit.
fn copy_files(from: &Path, to: &Path, limit_bytes: u64) -> Result<u64, Failure> {
    std::fs::create_dir_all(to).or_fail("cannot make a folder")?;
    let (mut copied, mut count, mut folders) = (0, 0, vec![from.to_owned()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && copied + metadata.len() <= limit_bytes && metadata.len() > 0 {
                // What this user may not read is left out.
                if std::fs::copy(&path, to.join(format!("{count:05}"))).is_ok() {
                    (copied, count) = (copied + metadata.len(), count + 1);
                }
            }
            if copied + (64 << 10) > limit_bytes || count >= 4000 {
                return Ok(copied);
            }
        }
    }
    Ok(copied)
}

/// Replays the journal on a copy, as a mount would, and has the file system checked.
pub(crate) fn check_file_system(image: &Path, copy: &Path) -> Result<(), Failure> {
    copy_sparse(image, copy)?;
    super::tools::run_accepting(tool("e2fsck").args(["-p", "-E", "journal_only"]).arg(copy), &[0, 1])?;
    let checked = ask(tool("e2fsck").arg("-fn").arg(copy));
    checked.map(drop).map_err(|failure| Failure { exit: Exit::Damaged, ..failure })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(start: usize, fill: u8, issued_ns: u64, acked_ns: Option<u64>) -> Write {
        Write { start, digests: vec![[fill; 32]], issued_ns, acked_ns }
    }

    fn journal() -> Journal {
        let base = Blocks(vec![[0; 32]; 4]);
        let writes = vec![write(0, 1, 10, Some(20)), write(1, 2, 30, Some(40)), write(0, 3, 50, None)];
        let states = vec![State { number: 0, writes: 0 }, State { number: 1, writes: 2 }];
        Journal { current: base.clone(), base, writes, states, written_bytes: 0, writing: false }
    }

    #[test]
    fn a_cut_says_which_writes_must_and_may_be_in() {
        let journal = journal();
        let at = |before_ns, after_ns| journal.writes_at(Cut { before_ns, after_ns });
        assert_eq!(at(5, 6), (0, 0));
        assert_eq!(at(15, 16), (0, 1));
        assert_eq!(at(25, 26), (1, 1));
        assert_eq!(at(45, 46), (2, 2));
        assert_eq!(at(60, 70), (2, 3));
        assert_eq!(journal.state_after(2), Some(1));
        assert_eq!(journal.state_after(1), None);
        assert_eq!(journal.image_after(3).0, [[3; 32], [2; 32], [0; 32], [0; 32]]);
    }

    #[test]
    fn an_image_that_lacks_an_acknowledged_write_is_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        std::fs::write(&image, vec![0; 4 * BLOCK]).expect("written");
        let basic = Basic::new(&image, dir.path().join("tap"), dir.path().join("scratch")).expect("made");
        let block = content(1, BLOCK);
        for (start, issued_ns, acked_ns) in [(2, 10, Some(20)), (3, 22, Some(28))] {
            let digests = vec![super::super::blocks::digest(&block)];
            basic.journal().writes.push(Write { start, digests, issued_ns, acked_ns });
        }
        let file = File::options().write(true).open(&image).expect("a file");
        let late = Cut { before_ns: 21, after_ns: 25 };
        let failure = basic.compare(late, &image, dir.path()).expect_err("it lacks a block");
        assert_eq!(failure.exit, Exit::Damaged);
        file.write_all_at(&block, 2 * BLOCK as u64).expect("written");
        assert_eq!(basic.compare(late, &image, dir.path()).expect("the first write").state, "after write 1 of 2, amid a state");
        file.write_all_at(&block, 3 * BLOCK as u64).expect("written");
        assert_eq!(basic.compare(late, &image, dir.path()).expect("both writes").state, "after write 2 of 2, amid a state");
        let early = Cut { before_ns: 5, after_ns: 6 };
        assert!(basic.compare(early, &image, dir.path()).is_err(), "it holds what came after the cut");
    }
}
