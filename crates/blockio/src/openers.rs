//! Who has a block device open without claiming it, since the kernel's exclusive claim (`O_EXCL`) is granted beside them; or a file, which has
//! no claims: whoever locks it otherwise than we do (`flock`), or not at all, as loop devices do, is told by this only.
//!
//! It knows processes, also those in containers, as far as this process may look at them (root with CAP_SYS_PTRACE; what may
//! not be looked at is not seen). It does not know what the kernel itself has open without a claim: loop devices on a device, NVMe targets.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};

use crate::dm::{DevNumber, encode_dev};
use crate::door::process_name;

/// How long who has a device open may be one that only looks at it.
const WAIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// How long a loop device may take to say what is below it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Other processes that have a device or a partition of it open, as a person would say it: `process 123 (qemu-system-x86)`.
pub fn openers(device: &Path) -> Vec<String> {
    openers_but(device, |_| false)
}

/// The same without some processes.
pub fn openers_but(device: &Path, is_left_out: impl Fn(u32) -> bool) -> Vec<String> {
    let Ok(number) = DevNumber::at(device) else { return Vec::new() };
    let numbers = with_partitions(number);
    others().filter(|pid| has_open(*pid, &numbers) && !is_left_out(*pid)).map(process_name).collect()
}

/// All processes but this one.
fn others() -> impl Iterator<Item = u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
}

/// This process's parent, and that one's, and so on: a shell that has given it what it has open itself.
pub fn ancestors() -> Vec<u32> {
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After its name, which may hold anything, and its state.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 0)
    };
    std::iter::successors(parent(&std::process::id()), parent).collect()
}

/// Which of the processes that have a file open count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// All: what the file holds is to change under them.
    All,
    /// Those that may write to it: it is to lose its name, and whoever reads it goes on with what it was.
    Writers,
}

impl Users {
    fn count(self, fdinfo: &str) -> bool {
        let flags = said(fdinfo, "flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
        self == Self::All || flags.is_none_or(|flags| flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY)
    }
}

/// Who else has a file open, under whatever name: other processes and loop devices, or whoever has locked a part of it (`fcntl`).
///
/// † Of descriptors nothing is asked that lies elsewhere, but where an inode's number is the same by chance: a network file system may
/// never answer. Of what is below a loop device the kernel asks its file system, wherever that is, and is waited for only so long.
pub fn users_of_file(file: &File, which: Users) -> Vec<String> {
    users_of_file_but(file, which, |_| false)
}

/// The same without some processes.
pub fn users_of_file_but(file: &File, which: Users, is_left_out: impl Fn(u32) -> bool) -> Vec<String> {
    let Ok(this) = file.metadata() else { return Vec::new() };
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default();
    let own = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap_or_default();
    let has_it = |pid: &u32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(|entry| {
            let fdinfo = std::fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(entry.file_name()));
            fdinfo.is_ok_and(|fdinfo| which.count(&fdinfo) && may_be_it((&own, &path), (&fdinfo, &entry.path())))
                && std::fs::metadata(entry.path()).is_ok_and(|other| (other.dev(), other.ino()) == (this.dev(), this.ino()))
        })
    };
    let mut users: Vec<String> = others().filter(|pid| !is_left_out(*pid) && has_it(pid)).map(process_name).collect();
    users.extend(loops_on(Path::new("/sys/block"), |device, name| match file_below(Path::new("/dev").join(device)) {
        Some(below) => below == (encode_dev(this.dev()), this.ino()),
        // Where devices are hidden, or there is no answer. Another name of the file is missed then.
        None => Path::new(name) == path,
    }));
    // What has the lock may be in a process that may not be looked at.
    users.extend(locker(file).filter(|_| users.is_empty()));
    users
}

/// Whether a descriptor may be of the same file, as far as the kernel says by itself. Before Linux 5.14 it says no inode: only
/// what has the same name is looked at more closely then, and a hard link is missed.
fn may_be_it((own, path): (&str, &Path), (fdinfo, link): (&str, &Path)) -> bool {
    match said(own, "ino:") {
        Some(inode) => said(fdinfo, "ino:") == Some(inode),
        None => std::fs::read_link(link).is_ok_and(|other| other == path),
    }
}

/// What the kernel says of a descriptor; older ones do not know its inode.
fn said<'i>(fdinfo: &'i str, what: &str) -> Option<&'i str> {
    fdinfo.lines().find_map(|line| line.strip_prefix(what)).map(str::trim)
}

/// Loop devices over a file, as `is_it` tells by their name and that of what is below them.
fn loops_on(folder: &Path, is_it: impl Fn(&OsStr, &str) -> bool) -> Vec<String> {
    let blocks = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let over_it = blocks.map(|block| block.file_name()).filter(|device| {
        // Those that are bound.
        let file = std::fs::read_to_string(folder.join(device).join("loop/backing_file"));
        file.is_ok_and(|file| is_it(device, file.trim_end_matches('\n')))
    });
    over_it.map(|device| format!("loop device /dev/{} (losetup -d)", device.to_string_lossy())).collect()
}

/// The file system, as a number, and an inode there.
type FileNumber = (u64, u64);

/// What is below a loop device, whatever became of its name, which may be one of another mount namespace.
///
/// To open and close it changes nothing: one that is cleared when nobody has it open any more (`autoclear`) would be already.
fn file_below(device: PathBuf) -> Option<FileNumber> {
    in_time(device, ANSWERS_WITHIN, |device| {
        let device = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(device).ok()?;
        let mut status = [0; 29];
        // SAFETY: the descriptor is open, and the kernel writes one `struct loop_info64`, which has 232 bytes.
        unsafe { ioctl::loop_status(device.as_raw_fd(), &raw mut status) }.ok()?;
        Some((status[0], status[1]))
    })
}

/// Devices that have not answered in time, with where they will.
static SILENT: Mutex<BTreeMap<PathBuf, Arc<Answer>>> = Mutex::new(BTreeMap::new());

/// What a thread is asked that may never answer.
#[derive(Default)]
struct Answer {
    said: Mutex<Option<Option<FileNumber>>>,
    is_said: Condvar,
}

impl Answer {
    fn so_far(&self) -> MutexGuard<'_, Option<Option<FileNumber>>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `look` says of a device, if it does in time. A thread that waits for longer is left behind; until it ends the device is not
/// asked again. What waits for a server of FUSE cannot even be killed: this process does its work, and is gone only once that answers.
fn in_time(
    device: PathBuf,
    limit: Duration,
    look: impl FnOnce(&Path) -> Option<FileNumber> + Send + 'static,
) -> Option<FileNumber> {
    let silent = || SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    if silent().get(&device).is_some_and(|answer| answer.so_far().is_none()) {
        return None;
    }
    let (answer, asked) = (Arc::<Answer>::default(), device.clone());
    let says = Arc::clone(&answer);
    let waits = std::thread::Builder::new().name("loop-status".into());
    let look = move || {
        let below = look(&asked);
        *says.so_far() = Some(below);
        says.is_said.notify_one();
    };
    waits.spawn(look).ok()?;
    let said = answer.is_said.wait_timeout_while(answer.so_far(), limit, |said| said.is_none());
    let said = *said.unwrap_or_else(PoisonError::into_inner).0;
    if said.is_none() {
        silent().insert(device, answer);
    }
    said.flatten()
}

mod ioctl {
    nix::ioctl_read_bad!(loop_status, 0x4c05, [u64; 29]); // LOOP_GET_STATUS64
}

/// Who has locked a part of a file; not by `flock`, which this does not meet.
fn locker(file: &File) -> Option<String> {
    let (kind, free) = (nix::libc::F_WRLCK as i16, nix::libc::F_UNLCK as i16);
    let mut lock = nix::libc::flock { l_type: kind, l_whence: nix::libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).ok().filter(|_| lock.l_type != free)?;
    // The newer kind belongs to no process.
    let process = u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0);
    Some(process.map_or_else(|| "a process that has locked it".to_owned(), process_name))
}

/// The same without those that were killed and only wait in the kernel for what the device owes them: nothing of it reaches
/// anybody any more. For a device that nobody serves: as long as it is there they cannot end.
pub fn living_openers(device: &Path) -> Vec<String> {
    openers_but(device, is_killed)
}

/// Who has something open still after a moment, as `look` tells: whoever only looks at new devices is soon done.
pub fn open_still(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let until = Instant::now() + WAIT;
    loop {
        let openers = look();
        if openers.is_empty() || Instant::now() >= until {
            return openers;
        }
        std::thread::sleep(POLL);
    }
}

fn with_partitions(number: DevNumber) -> Vec<DevNumber> {
    let entries = std::fs::read_dir(format!("/sys/dev/block/{number}")).into_iter().flatten().flatten();
    let partitions = entries.filter(|entry| entry.path().join("partition").exists());
    let numbers = partitions.filter_map(|entry| DevNumber::parse(std::fs::read_to_string(entry.path().join("dev")).ok()?.trim()));
    numbers.chain([number]).collect()
}

/// Whether a process was sent a deadly signal that it could not take yet: the kernel then marks each of its threads with `SIGKILL`,
/// whatever the signal was.
fn is_killed(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let states: Vec<String> = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok()).collect();
    all_await_their_end(states.iter().map(String::as_str))
}

/// † All that are left: of a process that becomes another program (exec) all threads but one are ended the same way, and it lives on.
fn all_await_their_end<'a>(states: impl Iterator<Item = &'a str>) -> bool {
    let has_ended = |state: &&str| {
        let state = state.lines().find_map(|line| line.strip_prefix("State:"));
        state.is_some_and(|state| state.trim_start().starts_with(['Z', 'X']))
    };
    let mut left = states.filter(|state| !has_ended(state)).peekable();
    left.peek().is_some() && left.all(awaits_its_end)
}

/// By `/proc/PID/status` of a thread.
fn awaits_its_end(state: &str) -> bool {
    let pending = state.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|signals| u64::from_str_radix(signals.trim(), 16).ok()).unwrap_or(0);
    pending >> (nix::libc::SIGKILL - 1) & 1 == 1
}

fn has_open(pid: u32, numbers: &[DevNumber]) -> bool {
    let with_nodes = LazyCell::new(|| {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"));
        mounts.map(|mounts| mounts_with_nodes(&mounts)).unwrap_or_default()
    });
    // A virtual machine in a jail has its disk's node elsewhere.
    let is_on_one = |descriptor: &OsStr| {
        let fdinfo = std::fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(descriptor));
        fdinfo.is_ok_and(|fdinfo| said(&fdinfo, "mnt_id:").is_some_and(|id| with_nodes.contains(id)))
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|entry| {
        let link = entry.path();
        // Only then is it looked at more closely: what lies on a network file system may not answer.
        let may_be_node = std::fs::read_link(&link)
            .is_ok_and(|node| node.starts_with("/dev") || node.is_absolute() && is_on_one(&entry.file_name()));
        may_be_node
            && std::fs::metadata(&link)
                .is_ok_and(|node| node.file_type().is_block_device() && numbers.contains(&DevNumber::of(node.rdev())))
    })
}

/// File systems of this machine that hold device nodes; who asks them is answered.
const WITH_NODES: [&str; 13] =
    ["bcachefs", "btrfs", "devtmpfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "squashfs", "tmpfs", "xfs"];

/// The ids of the mounts of such file systems on which device nodes count, by a process's `mountinfo`.
fn mounts_with_nodes(mountinfo: &str) -> BTreeSet<String> {
    let with_nodes = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let (id, mut options) = (fields.next()?, fields.nth(4)?.split(','));
        let holds_nodes = WITH_NODES.contains(&file_system.split(' ').next()?) && options.all(|option| option != "nodev");
        holds_nodes.then(|| id.to_owned())
    });
    with_nodes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_looked_for_where_they_count_and_where_somebody_answers() {
        let mounts = concat!(
            "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n",
            "23 22 0:21 / /run rw,nosuid,nodev shared:5 - tmpfs tmpfs rw,size=1\n",
            "24 22 0:40 / /srv/a\\040jail rw - tmpfs none rw\n",
            "25 22 0:41 / /mnt rw,relatime - nfs4 server:/x rw,vers=4.2\n",
            "26 22 0:42 / /fuse rw - fuse.sshfs x rw\n",
            "nonsense\n",
        );
        assert_eq!(mounts_with_nodes(mounts), BTreeSet::from(["22".to_owned(), "24".to_owned()]));
    }

    /// Only where loop devices and nodes may be made. † A virtual machine in a jail (Firecracker's) was not seen.
    #[test]
    fn who_has_a_device_open_by_a_node_elsewhere_is_seen() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [file, node] = ["file", "disk"].map(|name| dir.path().join(name));
        std::fs::write(&file, [0; 4096]).expect("written");
        let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let Some(made) = made.ok().filter(|made| made.status.success()) else { return };
        let device = String::from_utf8(made.stdout).expect("a name");
        let device = Path::new(device.trim());
        let number = std::fs::metadata(device).expect("there").rdev();
        let made = nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR, number);
        let opened = made.map_err(std::io::Error::from).and_then(|()| File::open(&node));
        let seen = opened.as_ref().ok().map(|opened| {
            let mut child = std::process::Command::new("sleep")
                .arg("600")
                .stdin(opened.try_clone().expect("a handle"))
                .spawn()
                .expect("started");
            let seen = openers(device);
            child.kill().and_then(|()| child.wait()).expect("ended");
            (seen, child.id())
        });
        drop(opened);
        std::process::Command::new("losetup").arg("-d").arg(device).status().expect("it ends");
        let Some((seen, child)) = seen else { return };
        assert!(seen.iter().any(|user| user.contains(&child.to_string())), "{seen:?}");
    }

    /// † The file below a loop device was asked for by its name, which may be on a server that is gone, or another file's by now.
    #[test]
    fn a_loop_device_is_asked_for_and_not_what_its_file_was_called() {
        let dir = tempfile::tempdir().expect("temp dir");
        for (device, file) in [("loop0", "/gone/nfs/a"), ("loop1", "/b (deleted)"), ("loop2", "/c")] {
            std::fs::create_dir_all(dir.path().join(device).join("loop")).expect("made");
            std::fs::write(dir.path().join(device).join("loop/backing_file"), format!("{file}\n")).expect("written");
        }
        std::fs::create_dir_all(dir.path().join("loop3/loop")).expect("made"); // not bound
        std::fs::create_dir(dir.path().join("sda")).expect("made");
        let asked = std::cell::RefCell::new(Vec::new());
        let on_it = loops_on(dir.path(), |device, file| {
            asked.borrow_mut().push((device.to_str().expect("a name").to_owned(), file.to_owned()));
            device == "loop1"
        });
        assert_eq!(on_it, ["loop device /dev/loop1 (losetup -d)"]);
        let mut asked = asked.into_inner();
        asked.sort();
        let all = [("loop0", "/gone/nfs/a"), ("loop1", "/b (deleted)"), ("loop2", "/c")];
        assert_eq!(asked, all.map(|(device, file)| (device.to_owned(), file.to_owned())));
        assert_eq!(file_below("/dev/null".into()), None, "no loop device");
    }

    /// † The kernel asks the server of the file below a loop device, and one that is gone held up every restore to a file.
    #[test]
    fn a_loop_device_that_does_not_answer_is_waited_for_once() {
        let device = || PathBuf::from("/dev/loop-silent");
        let (answers, server) = std::sync::mpsc::channel();
        let hangs = move |_: &Path| server.recv().ok();
        assert_eq!(in_time(device(), Duration::from_millis(10), hangs), None);
        let begun = Instant::now();
        assert_eq!(in_time(device(), Duration::from_secs(60), |_| panic!("another thread")), None);
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(in_time("/dev/loop-other".into(), Duration::from_secs(60), |_| Some((1, 2))), Some((1, 2)));
        answers.send((7, 7)).expect("it waits still");
        let until = Instant::now() + Duration::from_secs(60);
        while in_time(device(), Duration::from_secs(60), |_| Some((3, 4))) != Some((3, 4)) {
            assert!(Instant::now() < until, "it is asked again once it answers");
            std::thread::sleep(POLL);
        }
    }

    /// Only where loop devices may be made.
    #[test]
    fn a_loop_device_is_seen_though_its_file_has_another_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        std::fs::write(&file, [0; 4096]).expect("written");
        std::fs::hard_link(&file, &link).expect("linked");
        let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&link).output();
        let Some(made) = made.ok().filter(|made| made.status.success()) else { return };
        let device = String::from_utf8(made.stdout).expect("a name");
        std::fs::remove_file(&link).expect("removed");
        let users = users_of_file(&File::open(&file).expect("open"), Users::Writers);
        let other = users_of_file(&File::create(dir.path().join("other")).expect("made"), Users::All);
        let below = file_below(device.trim().into());
        std::process::Command::new("losetup").arg("-d").arg(device.trim()).status().expect("it ends");
        if below.is_some() {
            assert!(users.contains(&format!("loop device {} (losetup -d)", device.trim())), "{users:?}");
        }
        assert!(!other.iter().any(|user| user.starts_with("loop")), "{other:?}");
    }

    /// † On older kernels, which say no inode, all that anybody had open was looked at, on servers that are gone, too.
    #[test]
    fn what_may_be_the_same_file_is_told_without_looking_at_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [it, other] = ["it", "other"].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink("/none/it", &it)
            .and_then(|()| std::os::unix::fs::symlink("/none/other", &other))
            .expect("linked");
        let path = Path::new("/none/it");
        let said = |inode: &str| format!("pos:\t0\nflags:\t0100002\nmnt_id:\t27\n{inode}");
        let (none, seven, eight) = (said(""), said("ino:\t7\n"), said("ino:\t8\n"));
        assert!(may_be_it((&none, path), (&none, &it)) && !may_be_it((&none, path), (&none, &other)));
        assert!(may_be_it((&seven, path), (&seven, &other)), "under another name");
        assert!(!may_be_it((&seven, path), (&eight, &it)));
    }

    /// † Without it they saw nobody: not those of other users, nor any that have more capabilities.
    #[test]
    fn units_that_look_who_has_something_open_may() {
        for unit in [
            "daemon/systemd/farsided.service",
            "receiver/systemd/farside-receiver.service",
            "cli/systemd/farside-follow@.service",
        ] {
            let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(unit)).expect("there");
            let mut sets = text.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
            assert!(sets.any(|set| set.split(' ').any(|capability| capability == "CAP_SYS_PTRACE")), "{unit}");
        }
    }

    #[test]
    fn who_only_reads_a_file_is_told_from_who_may_write() {
        let writes = |fdinfo: &str| Users::Writers.count(fdinfo);
        assert!(!writes("pos:\t0\nflags:\t0100000\nmnt_id:\t27\nino:\t12\n") && Users::All.count("flags:\t0100000\n"));
        // For writing alone, for both, for neither (mode 3), and what is not understood.
        for flags in ["0100001", "02100002", "0100003", "what"] {
            assert!(writes(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t27\n")), "{flags}");
        }
        assert!(writes(""), "nothing is known");
    }

    #[test]
    fn a_killed_thread_is_told_from_others() {
        let state = |pending: &str| {
            format!("Name:\tfarsided\nState:\tD (disk sleep)\nSigQ:\t0/1\nSigPnd:\t{pending}\nShdPnd:\t0000000000000100\n")
        };
        assert!(awaits_its_end(&state("0000000000000100")));
        assert!(awaits_its_end(&state("0000000000004100")), "by another signal");
        // To a whole process, not yet given to it, or other signals.
        for other in ["0000000000000000", "0000000000004000", "0000000000000200", "", "what"] {
            assert!(!awaits_its_end(&state(other)), "{other}");
        }
        let (killed, lives) = (state("0000000000000100"), state("0000000000000000"));
        let ended = lives.replace("D (disk sleep)", "Z (zombie)");
        assert!(all_await_their_end([ended.as_str(), killed.as_str()].into_iter()), "its first thread has ended already");
        assert!(!all_await_their_end([killed.as_str(), lives.as_str()].into_iter()), "it becomes another program");
        assert!(!all_await_their_end([ended.as_str()].into_iter()) && !all_await_their_end([].into_iter()), "nothing is known");
        assert!(!is_killed(std::process::id()), "this one lives");
        let mine = std::fs::read_to_string("/proc/self/status").expect("there");
        assert!(mine.contains("\nSigPnd:\t"), "as the kernel writes it: {mine}");
    }
}
