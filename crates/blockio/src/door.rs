//! The door of a device: the one open file description that carries its lock, and who stands in it.
//!
//! Invariant: nothing is read or written before the lock is held (`flock`; `O_EXCL` on a block device), and it is held until
//! the last clone is gone, so a dead process's I/O has landed before a successor begins. Waiting is polling: neither lock has
//! a bounded wait.
//!
//! A block device gets a shared `flock` beside `O_EXCL`, for its holder's name in the kernel's list, and against whoever would
//! format it. Not an exclusive one: udev processes no event of a device that is locked so, and waits, and everybody who waits
//! for udev waits with it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, major, minor};
use nix::sys::statfs::fstatfs;

use crate::device::identity;
use crate::{DeviceError, DeviceKind, OpenOptions};

/// How often somebody looks who waits for long; at first more often, for whoever takes over from the dead has a host waiting.
const POLL: Duration = Duration::from_millis(50);
const POLL_AT_FIRST: Duration = Duration::from_millis(1);
/// How often the list of locks is looked at for a holder that it does not show.
const LOOKS_MAX: usize = 16;

/// Opens and locks, waiting as the options say.
pub(crate) fn open(path: &Path, kind: DeviceKind, options: OpenOptions) -> Result<OwnedFd, DeviceError> {
    let began = Instant::now();
    let fd = wait(path, kind, options.wait, began, || match nix::fcntl::open(path, flags(kind, options), Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::EBUSY) if kind == DeviceKind::Block => Ok(None),
        Err(Errno::EINVAL) => Err(no_direct_io(path)),
        Err(errno) => Err(DeviceError::Open { path: path.to_owned(), source: errno.into() }),
    })?;
    let shared = options.readonly || kind == DeviceKind::Block;
    wait(path, kind, options.wait, began, || match try_lock(fd.as_fd(), shared) {
        Ok(()) => Ok(Some(())),
        Err(Errno::EWOULDBLOCK) => Ok(None),
        Err(errno) => Err(DeviceError::Query { path: path.to_owned(), what: "lock", source: errno.into() }),
    })?;
    Ok(fd)
}

/// Takes a block device for oneself without reading anything of it: a mount, a mapping, a swap or
/// another holder keeps it. Waits a moment for who is about to let go. It is ours until what is returned is dropped.
///
/// # Errors
/// [`DeviceError::Busy`] names who has it.
pub fn hold(path: &Path) -> Result<OwnedFd, DeviceError> {
    open(path, DeviceKind::Block, OpenOptions { wait: Duration::from_secs(1), readonly: false })
}

fn flags(kind: DeviceKind, options: OpenOptions) -> OFlag {
    let mut flags = OFlag::O_DIRECT | OFlag::O_CLOEXEC;
    flags |= if options.readonly { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    if kind == DeviceKind::Block {
        flags |= OFlag::O_EXCL;
    }
    flags
}

fn wait<T>(
    path: &Path,
    kind: DeviceKind,
    limit: Duration,
    began: Instant,
    mut attempt: impl FnMut() -> Result<Option<T>, DeviceError>,
) -> Result<T, DeviceError> {
    loop {
        if let Some(got) = attempt()? {
            return Ok(got);
        }
        let waited = began.elapsed();
        if waited >= limit {
            let holder = holder(path, kind).unwrap_or_else(|| "an owner that the kernel does not name".to_owned());
            return Err(DeviceError::Busy { path: path.to_owned(), holder, waited });
        }
        std::thread::sleep((waited / 4).clamp(POLL_AT_FIRST, POLL).min(limit - waited));
    }
}

fn try_lock(fd: BorrowedFd<'_>, shared: bool) -> Result<(), Errno> {
    let how = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: flock takes a descriptor, which is borrowed and so open, and flags.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }).map(drop)
}

fn no_direct_io(path: &Path) -> DeviceError {
    let plain = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    let filesystem = plain.map_or_else(|_| "an unknown file system".to_owned(), |fd| filesystem_name(fd.as_fd()));
    DeviceError::NoDirectIo { path: path.to_owned(), filesystem }
}

/// Everyone who holds the device, as a person would say it.
fn holder(path: &Path, kind: DeviceKind) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let mut names = Vec::new();
    if kind == DeviceKind::Block {
        use std::os::unix::fs::MetadataExt;
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        names.extend(sysfs_holders(&format!("/sys/dev/block/{major}:{minor}/holders")));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        names.extend(mount_points(&mounts, &format!("{major}:{minor}")));
    }
    let (device, inode) = identity(&metadata);
    // The kernel gives this list in pieces: an entry is missed when one before it goes between two of them. Then look again.
    let pids = (0..LOOKS_MAX).find_map(|_| {
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let pids = flock_pids(&locks, (major(device), minor(device)), inode);
        (!pids.is_empty()).then_some(pids)
    });
    names.extend(pids.into_iter().flatten().map(process_name));
    (!names.is_empty()).then(|| names.join(", "))
}

fn sysfs_holders(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let kernel = entry.file_name().to_string_lossy().into_owned();
            match std::fs::read_to_string(format!("/sys/block/{kernel}/dm/name")) {
                Ok(name) => format!("/dev/mapper/{} ({kernel})", name.trim()),
                Err(_) => format!("/dev/{kernel}"),
            }
        })
        .collect()
}

fn mount_points(mountinfo: &str, device: &str) -> Vec<String> {
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f.len() > 4 && f[2] == device).map(|f| format!("the file system mounted at {}", f[4])).collect()
}

/// Pids of the flock holders of a file in `/proc/locks` (waiters are lines with `->`).
fn flock_pids(locks: &str, device: (u64, u64), inode: u64) -> Vec<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", device.0, device.1);
    let mut pids: Vec<u32> = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|f| f.len() >= 6 && f[1] == "FLOCK" && f[5] == wanted)
        .filter_map(|f| f[4].parse().ok())
        .collect();
    pids.dedup();
    pids
}

pub(crate) fn process_name(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

/// A number that the kernel shows in a file.
pub(crate) fn sysfs_u64(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Magic numbers of `statfs(2)`: what other hosts may write, too, and locks may not keep them from. Not FUSE, nor virtiofs, which is FUSE by its
/// number: that may be a local disk just as well (ntfs-3g, gocryptfs), and whoever needs more of it than locks on this host has to try it.
const REMOTE: &[(i64, &str)] = &[
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x00c3_6400, "CephFS"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "AFS"),
];

const LOCAL: &[(i64, &str)] = &[
    (0xef53, "ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683e, "Btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x2fc1_2fc1, "ZFS"),
    (0x794c_7630, "overlayfs"),
    (0x6573_5546, "FUSE"),
    (0xf2f5_2010, "F2FS"),
    (0x7371_7368, "squashfs"),
];

/// The file system at a path, if its locks and caches are shared with other hosts.
///
/// # Errors
/// When it cannot be looked at.
pub fn remote_filesystem(path: &Path) -> std::io::Result<Option<&'static str>> {
    Ok(known(REMOTE, magic(&nix::sys::statfs::statfs(path)?)))
}

/// Refuses those.
pub(crate) fn refuse_remote(path: &Path) -> Result<(), DeviceError> {
    match remote_filesystem(path) {
        Ok(Some(name)) => Err(DeviceError::Remote { path: path.to_owned(), filesystem: name.to_owned() }),
        Ok(None) | Err(_) => Ok(()), // the open that follows says why
    }
}

/// What a person calls the file system of an open file.
pub(crate) fn filesystem_name(fd: BorrowedFd<'_>) -> String {
    let Ok(stat) = fstatfs(fd) else { return "an unknown file system".to_owned() };
    let magic = magic(&stat);
    let name = known(LOCAL, magic).or_else(|| known(REMOTE, magic));
    name.map_or_else(|| format!("a file system of type {magic:#x}"), str::to_owned)
}

#[allow(clippy::unnecessary_cast)] // the type differs between architectures
fn magic(stat: &nix::sys::statfs::Statfs) -> i64 {
    stat.filesystem_type().0 as i64 & 0xffff_ffff
}

fn known(table: &[(i64, &'static str)], magic: i64) -> Option<&'static str> {
    table.iter().find(|(m, _)| *m == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_holders_are_found_and_waiters_are_not() {
        let locks = "1: FLOCK  ADVISORY  WRITE 4242 08:01:131074 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 4243 08:01:131074 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 77 08:01:131074 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 88 08:01:9 0 EOF\n";
        assert_eq!(flock_pids(locks, (8, 1), 131_074), [4242]);
        assert!(flock_pids(locks, (8, 2), 131_074).is_empty());
    }

    #[test]
    fn mounts_of_a_device_are_named() {
        let info = "36 35 98:0 / /mnt/a rw - ext4 /dev/sda rw\n37 35 98:1 / /mnt/b rw - ext4 /dev/sdb rw\n";
        assert_eq!(mount_points(info, "98:1"), ["the file system mounted at /mnt/b"]);
    }

    #[test]
    fn remote_file_systems_are_known_by_their_magic() {
        let of = |magic| known(REMOTE, magic);
        assert_eq!([of(0x6969), of(0x0102_1997), of(0x00c3_6400)], [Some("NFS"), Some("9p"), Some("CephFS")]);
        assert_eq!([of(0xef53), of(0x6573_5546)], [None, None], "ext4, FUSE");
        assert_eq!(remote_filesystem(Path::new("/proc")).expect("it is there"), None);
        assert!(remote_filesystem(Path::new("/proc/none")).is_err());
        assert_eq!(known(LOCAL, 0xef53), Some("ext4"));
    }
}
