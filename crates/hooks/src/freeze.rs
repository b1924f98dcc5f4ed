//! Freezes a file system, and thaws it.
//!
//! ```text
//!  begin ──► syncfs ──(order)──► FIFREEZE ──► frozen ──(order)──► FITHAW ──► thawed
//!               │ late, or          │ late: the order is given in advance, so that it thaws as soon as it is frozen
//!               │ not all written
//!               └► it is not frozen
//! ```
//!
//! † FIFREEZE stops writers first, and then writes all that is in memory: with gigabytes of it on a slow disk whoever writes waits for minutes.
//! So that is written before, while they go on, and what is left for it is what they wrote meanwhile. Of several, all are written before the first
//! is frozen: whoever writes there would wait for the disks of the others, too.
//!
//! All calls wait in the kernel, where nothing can be stopped, and so does opening a directory of a file system that hangs. So each
//! file system has a thread of its own from the first to the last of it, and the guard waits for what that reports no longer than it
//! wants to. The thread is there before anything is frozen: a thaw needs nothing new.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::kernel;
use crate::plan::Plan;
use crate::wait::{Limit, Waiting};

/// Of a thread that makes three system calls; all of it is locked in memory.
const STACK_BYTES: usize = 256 << 10;

/// Where file systems are found: those of the kernel, or a test's.
pub(crate) trait FileSystems: Send + Sync {
    /// The file system that is mounted at a path, if it may be frozen, or why not.
    fn open(&self, mount_point: &Path) -> Result<Box<dyn FileSystem>, String>;

    /// Called before the first freeze. A failure is borne: it costs nothing but where memory is short.
    fn prepare(&self) -> Result<(), String>;
}

/// A mounted file system.
pub(crate) trait FileSystem {
    /// Writes what is in memory, while whoever uses it goes on. Fails also if something could not be written in the background since it was opened, or
    /// before, and nobody was told.
    fn sync(&self) -> Result<(), Errno>;
    /// `EBUSY`: it is frozen already.
    fn freeze(&self) -> Result<(), Errno>;
    /// `EINVAL`: it is not frozen.
    fn thaw(&self) -> Result<(), Errno>;
}

/// Those of the kernel; none that one of these lies on.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) spared: Vec<PathBuf>,
}

impl Mounted {
    /// Of a plan.
    pub(crate) fn of(plan: &Plan) -> Self {
        // What is begun later is noted while this one is frozen.
        let of_the_note = plan.note.parent().map(Path::to_owned);
        Self { spared: plan.spared.iter().cloned().chain(of_the_note).collect() }
    }
}

impl FileSystems for Mounted {
    fn open(&self, mount_point: &Path) -> Result<Box<dyn FileSystem>, String> {
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(mount_point);
        let directory = directory.map_err(|error| format!("{} cannot be opened: {error}", mount_point.display()))?;
        check_mount(&directory, mount_point)?;
        // Not what stat says: subvolumes of btrfs differ in that, and are frozen together.
        let frozen = mount_of(&directory).map(|(mount, _)| mount.device).ok();
        let open = |path: &PathBuf| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
        let lies_on_it = |path: &&PathBuf| {
            let its = open(path).and_then(|file| mount_of(&file)).map(|(mount, _)| mount.device).ok();
            its.is_some() && its == frozen
        };
        if let Some(own) = self.spared.iter().find(lies_on_it) {
            let (own, mount_point) = (own.display(), mount_point.display());
            return Err(format!("{mount_point} cannot be frozen: farsided itself writes to {own}, which lies there"));
        }
        Ok(Box::new(directory))
    }

    fn prepare(&self) -> Result<(), String> {
        lock_memory()
    }
}

impl FileSystem for File {
    fn sync(&self) -> Result<(), Errno> {
        nix::unistd::syncfs(self.as_fd())
    }

    fn freeze(&self) -> Result<(), Errno> {
        kernel::freeze(self.as_fd())
    }

    fn thaw(&self) -> Result<(), Errno> {
        kernel::thaw(self.as_fd())
    }
}

/// Whether a directory is where the whole of a file system is mounted. Any other one would freeze the file system around it, which
/// is not what was named.
fn check_mount(directory: &File, named: &Path) -> Result<(), String> {
    let unknown = |error: std::io::Error| format!("what is mounted at {} is not known: {error}", named.display());
    let (mount, path) = mount_of(directory).map_err(unknown)?;
    judge(&mount, &path, named)
}

/// The mount that an open file is in, and the path of the file.
fn mount_of(file: &File) -> std::io::Result<(Mount, PathBuf)> {
    let fd = file.as_raw_fd();
    let path = fs::read_link(format!("/proc/self/fd/{fd}"))?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let mounts = fs::read(format!("/proc/{}/mountinfo", std::process::id()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let mount = id.and_then(|id| mount(&mounts, id)).ok_or(ErrorKind::NotFound)?;
    Ok((mount, path))
}

fn judge(mount: &Mount, path: &Path, named: &Path) -> Result<(), String> {
    let named = named.display();
    if mount.point != path.as_os_str().as_bytes() {
        let around = String::from_utf8_lossy(&mount.point);
        return Err(format!("{named} is not a mount point: the file system mounted at {around} would be frozen"));
    }
    // A subvolume of btrfs looks like that too; it can be frozen only with its file system, and whoever names it knows that.
    if mount.root != b"/" && mount.kind != b"btrfs" {
        return Err(format!("{named} is only a part of a file system (a bind mount): name where the whole of it is mounted"));
    }
    Ok(())
}

#[derive(Debug)]
struct Mount {
    /// Of its superblock: `major:minor`.
    device: Vec<u8>,
    root: Vec<u8>,
    point: Vec<u8>,
    kind: Vec<u8>,
}

/// A mount of `/proc/PID/mountinfo` by its id.
fn mount(mountinfo: &[u8], id: &str) -> Option<Mount> {
    mountinfo.split(|byte| *byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let kind = fields.iter().skip(6).skip_while(|field| **field != b"-").nth(1)?;
        let is_it = *fields.first()? == id.as_bytes();
        is_it.then(|| {
            Some(Mount {
                device: fields.get(2)?.to_vec(),
                root: plain(fields.get(3)?),
                point: plain(fields.get(4)?),
                kind: kind.to_vec(),
            })
        })?
    })
}

/// A field of mountinfo, which has blanks and backslashes as three octal digits.
fn plain(field: &[u8]) -> Vec<u8> {
    let (mut rest, mut plain) = (field, Vec::new());
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    plain
}

/// What the thread of a file system reports.
#[derive(Debug)]
enum Report {
    /// How long that took.
    Synced(Duration),
    Frozen(Result<(), String>),
    Thawed(Result<(), String>, Was),
}

/// What a thaw found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Was {
    Frozen,
    /// Thawed by somebody else, or never frozen.
    NotFrozen,
}

/// How a thaw ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Thaw {
    /// It was frozen until now.
    Thawed,
    /// We never froze it, so it was not thawed: somebody else may have frozen it.
    NotOurs,
    /// It was not frozen any more.
    WasNot,
    /// The kernel says no, or it cannot be reached.
    Failed(String),
    /// It will be thawed, but nobody knows when: [`Freeze::join`].
    Late(String),
}

/// A file system that is being frozen, is frozen, or is being thawed.
#[derive(Debug)]
pub(crate) struct Freeze {
    order: Sender<()>,
    reports: Receiver<Report>,
    wake: Arc<EventFd>,
    worker: JoinHandle<()>,
    state: State,
    step: Arc<Step>,
    /// How long it took to write what was in memory.
    synced_in: Duration,
}

/// What the thread and the guard agree on, once: whether FIFREEZE is called.
#[derive(Debug, Default)]
struct Step(AtomicU8);

impl Step {
    const SYNCING: u8 = 0;
    const FREEZING: u8 = 1;
    const GIVEN_UP: u8 = 2;

    /// False: the other was first.
    fn take(&self, next: u8) -> bool {
        self.0.compare_exchange(Self::SYNCING, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// FIFREEZE has not returned, or was never asked for.
    Begun,
    /// What was in memory is written, and FIFREEZE was not asked for.
    Synced,
    Frozen,
    /// FIFREEZE failed.
    NotOurs,
    /// FIFREEZE is not called any more; its thread may be about what comes before it.
    GivenUp,
    /// It was late, and thaws by itself.
    Late,
}

impl Freeze {
    /// Begins to write what is in memory of what is mounted there, which is to be frozen.
    ///
    /// # Errors
    /// There is no thread for it, and nothing was begun.
    pub(crate) fn begin(systems: Arc<dyn FileSystems>, mount_point: &Path) -> Result<Self, String> {
        let path = mount_point.to_owned();
        let step = Arc::<Step>::default();
        Self::spawn(step.clone(), move |orders, reports| {
            let system = match systems.open(&path) {
                Ok(system) => system,
                Err(why) => return reports.send(Report::Frozen(Err(why))),
            };
            let began = Instant::now();
            // † FIFREEZE says nothing of file data that could not be written, which is then missing in the cut. It is not asked for once more after
            // that: it may wait for what is frozen, and the thaw for it. The kernel says it once: the next point does not hear of it (hooks_failed).
            if let Err(errno) = system.sync() {
                return reports.send(Report::Frozen(Err(not_written(&path, errno))));
            }
            reports.send(Report::Synced(began.elapsed()));
            if orders.recv().is_err() || !step.take(Step::FREEZING) {
                return; // nobody listens
            }
            if let Err(errno) = system.freeze() {
                return reports.send(Report::Frozen(Err(not_frozen(&path, errno))));
            }
            reports.send(Report::Frozen(Ok(())));
            let _ = orders.recv(); // if the guard is gone, that is an order too
            reports.send(thaw(&*system, &path));
        })
    }

    /// Begins to thaw what another guard froze.
    ///
    /// # Errors
    /// There is no thread for it, and nothing was begun.
    pub(crate) fn end_forgotten(systems: Arc<dyn FileSystems>, mount_point: &Path) -> Result<Self, String> {
        let path = mount_point.to_owned();
        Self::spawn(Arc::default(), move |_, reports| match systems.open(&path) {
            Ok(system) => reports.send(thaw(&*system, &path)),
            Err(why) => reports.send(Report::Thawed(Err(why), Was::Frozen)),
        })
    }

    fn spawn(step: Arc<Step>, work: impl FnOnce(Receiver<()>, Reports) + Send + 'static) -> Result<Self, String> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.map_err(|errno| format!("nothing can be waited for: {errno}"))?);
        let (order, orders) = mpsc::channel();
        let (to, reports) = mpsc::channel();
        let their = Reports { to, wake: wake.clone() };
        let worker = Builder::new().name("freeze".into()).stack_size(STACK_BYTES).spawn(move || work(orders, their));
        let worker = worker.map_err(|error| format!("there is no thread for it: {error}"))?;
        Ok(Self { order, reports, wake, worker, state: State::Begun, step, synced_in: Duration::ZERO })
    }

    /// Waits until what was in memory is written. If that is late, it is not frozen at all.
    ///
    /// # Errors
    /// Why it may not be frozen, or that it is late.
    pub(crate) fn synced(&mut self, limit: &Limit, waiting: &mut Waiting) -> Result<(), String> {
        match self.report(limit, waiting) {
            Ok(Report::Synced(took)) => {
                (self.state, self.synced_in) = (State::Synced, took);
                Ok(())
            }
            Ok(Report::Frozen(ended)) => {
                self.state = State::NotOurs;
                Err(ended.err().unwrap_or_else(|| "it was frozen too soon".to_owned()))
            }
            Ok(Report::Thawed(ended, _)) => Err(ended.err().unwrap_or_else(|| "it was thawed at once".to_owned())),
            Err(late) => {
                let _ = self.give_up(); // that it came to its end just now changes nothing
                Err(format!("{late}; what was written there was not on its disk by then, so it was not frozen"))
            }
        }
    }

    /// How long it took to write what was in memory.
    pub(crate) fn synced_in(&self) -> Duration {
        self.synced_in
    }

    /// It is not to be frozen, and was not asked to be. `false`: what is in memory is on its way to the disk, and its thread waits for that.
    pub(crate) fn give_up(&mut self) -> bool {
        let is_through = matches!(self.state, State::Synced | State::NotOurs) || self.reports.try_recv().is_ok();
        if self.step.take(Step::GIVEN_UP) {
            self.state = State::GivenUp;
            let _ = self.order.send(()); // for whoever waits for one
        }
        is_through
    }

    /// Has it frozen, and waits for that; it is [`synced`](Freeze::synced). If it is late, it is not frozen at all; or, if the kernel is about it,
    /// thawed as soon as it is frozen.
    ///
    /// # Errors
    /// Why it is not frozen, or not in time.
    pub(crate) fn frozen(&mut self, limit: &Limit, waiting: &mut Waiting) -> Result<(), String> {
        self.state = State::Begun;
        let _ = self.order.send(()); // a thread that died is found dead
        match self.report(limit, waiting) {
            Ok(Report::Frozen(Ok(()))) => {
                self.state = State::Frozen;
                Ok(())
            }
            Ok(Report::Frozen(Err(why))) => {
                self.state = State::NotOurs;
                Err(why)
            }
            Ok(Report::Thawed(..) | Report::Synced(_)) => Err("it was thawed at once".to_owned()),
            Err(late) if self.step.take(Step::GIVEN_UP) => {
                self.state = State::GivenUp;
                Err(format!("{late}; it was not frozen"))
            }
            Err(late) => {
                self.state = State::Late;
                let _ = self.order.send(()); // the thread is there, or has thawed it
                Err(format!("{late}; it is thawed as soon as it is frozen"))
            }
        }
    }

    /// Thaws it.
    pub(crate) fn thaw(&mut self, limit: &Limit, waiting: &mut Waiting) -> Thaw {
        match self.state {
            State::NotOurs | State::Synced => return Thaw::NotOurs,
            // † A process that cannot end stays as long as its lock: or there would be one more with each cut.
            State::GivenUp if self.worker.is_finished() => return Thaw::NotOurs,
            State::GivenUp => return Thaw::Late("what was written there is still on its way to its disk".to_owned()),
            // The others do not wait for it.
            State::Late => return self.late_end().unwrap_or_else(|| Thaw::Late("it is still being frozen".to_owned())),
            State::Begun | State::Frozen => drop(self.order.send(())),
        }
        match self.report(limit, waiting) {
            Ok(report) => thaw_of(report),
            Err(late) => {
                self.state = State::Late;
                Thaw::Late(late)
            }
        }
    }

    /// Waits for the end of one that was late, however long it takes.
    pub(crate) fn join(self) -> Thaw {
        let died = self.worker.join().is_err();
        let last = self.reports.try_iter().last();
        match last {
            Some(Report::Frozen(Ok(())) | Report::Synced(_)) | None if died => Thaw::Failed("its thread died".to_owned()),
            Some(report) => thaw_of(report),
            None => Thaw::NotOurs,
        }
    }

    /// What became of one that was late, if it is known by now.
    fn late_end(&self) -> Option<Thaw> {
        match self.reports.try_iter().last()? {
            // The thaw comes, but who knows when.
            Report::Frozen(Ok(())) | Report::Synced(_) => None,
            report => Some(thaw_of(report)),
        }
    }

    fn report(&self, limit: &Limit, waiting: &mut Waiting) -> Result<Report, String> {
        loop {
            let _ = self.wake.read(); // before the look, so that what comes after the look wakes again
            match self.reports.try_recv() {
                Ok(report) => return Ok(report),
                Err(TryRecvError::Disconnected) => return Ok(Report::Thawed(Err("its thread died".to_owned()), Was::Frozen)),
                Err(TryRecvError::Empty) => {}
            }
            if let Some(late) = limit.over(waiting) {
                return Err(late);
            }
            waiting.wait(&[self.wake.as_fd()], limit.listen, limit.until());
        }
    }
}

/// Where a thread reports to.
#[derive(Debug)]
struct Reports {
    to: Sender<Report>,
    wake: Arc<EventFd>,
}

impl Reports {
    fn send(&self, report: Report) {
        let _ = self.to.send(report); // a guard that wants to know is there
        let _ = self.wake.write(1); // a count that is full wakes too
    }
}

fn thaw(system: &dyn FileSystem, path: &Path) -> Report {
    match system.thaw() {
        Ok(()) => Report::Thawed(Ok(()), Was::Frozen),
        Err(Errno::EINVAL) => Report::Thawed(Ok(()), Was::NotFrozen),
        Err(errno) => Report::Thawed(Err(format!("{} cannot be thawed: {}", path.display(), errno.desc())), Was::Frozen),
    }
}

fn thaw_of(report: Report) -> Thaw {
    match report {
        Report::Thawed(Ok(()), Was::Frozen) => Thaw::Thawed,
        Report::Thawed(Ok(()), Was::NotFrozen) => Thaw::WasNot,
        Report::Thawed(Err(why), _) => Thaw::Failed(why),
        Report::Frozen(Err(_)) | Report::Synced(_) => Thaw::NotOurs,
        Report::Frozen(Ok(())) => Thaw::Failed("it is frozen, and nobody thaws it".to_owned()),
    }
}

fn not_written(path: &Path, errno: Errno) -> String {
    format!("not all that was written to {} has reached its disk: {}; it was not frozen", path.display(), errno.desc())
}

fn not_frozen(path: &Path, errno: Errno) -> String {
    let path = path.display();
    match errno {
        Errno::EBUSY => format!("{path} is frozen already, by somebody else (fsfreeze --unfreeze {path}, if they forgot)"),
        Errno::EOPNOTSUPP => format!("the file system at {path} cannot be frozen"),
        errno => format!("{path} cannot be frozen: {}", errno.desc()),
    }
}

/// Keeps this process in memory: nothing of it has to be read from a file system that is frozen, or waits for memory that only
/// frozen ones could free.
///
/// # Errors
/// What it was that the kernel refused; the process works without it.
fn lock_memory() -> Result<(), String> {
    let refused = |errno: Errno| format!("the guard's memory is not locked: {}", errno.desc());
    // With a finite limit the call may work, and every allocation after it fail.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY); // seen at once
    if getrlimit(Resource::RLIMIT_MEMLOCK).map_err(refused)?.0 != RLIM_INFINITY {
        return Err(refused(Errno::EPERM));
    }
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        31 22 254:1 / /srv/my\\040data rw shared:7 master:2 - xfs /dev/vdb rw\n\
        32 22 254:0 /var/db /mnt rw - ext4 /dev/vda rw\n\
        33 22 0:40 /@data /b rw - btrfs /dev/vdc rw\n";

    fn judged(id: &str, path: &str) -> Result<(), String> {
        judge(&mount(MOUNTS, id).unwrap(), Path::new(path), Path::new(path))
    }

    #[test]
    fn only_where_a_whole_file_system_is_mounted_it_is_frozen() {
        assert_eq!(judged("31", "/srv/my data"), Ok(()));
        assert_eq!(judged("33", "/b"), Ok(()), "a subvolume");
        let inside = judged("31", "/srv/my data/pg").unwrap_err();
        assert!(inside.contains("/srv/my data/pg is not a mount point"), "{inside}");
        assert!(judged("22", "/var").unwrap_err().contains("mounted at / would be frozen"));
        assert!(judged("32", "/mnt").unwrap_err().contains("bind mount"));
        assert!(mount(MOUNTS, "34").is_none());
    }

    #[test]
    fn a_directory_that_is_no_mount_point_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let systems = Mounted { spared: vec![folder.path().to_owned()] };
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let why = systems.open(&inner).err().unwrap();
        assert!(why.contains(&format!("{} is not a mount point", inner.display())), "{why}");
        let why = systems.open(&folder.path().join("none")).err().unwrap();
        assert!(why.contains("cannot be opened"), "{why}");
        assert!(check_mount(&File::open("/proc").unwrap(), Path::new("/proc")).is_ok());
        let ours = Mounted { spared: vec!["/none".into(), "/proc/self".into()] };
        assert!(ours.open(Path::new("/proc")).err().unwrap().contains("farsided itself writes to /proc/self"));
    }
}
