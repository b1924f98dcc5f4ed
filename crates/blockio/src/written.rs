//! Whether somebody else writes on a block device that is ours: what the kernel has counted there, against what we gave to it.
//!
//! Invariant: no false alarm. What is ours is counted before the kernel gets it, and as the most that the kernel may count for
//! it. Drivers that take whole requests (disks and their partitions) count a write once, when it is done: there one sector more
//! is a sector of somebody else's, whatever the load. Others count what was tried: the device mapper counts a write twice that
//! found the queue below full and was given to it again, so there only what is written while we write nothing is certain. What
//! may have been counted twice is settled whenever nothing of ours is under way: both counts start anew.
//!
//! It does not see what goes to the same sectors by another name: to a disk's partition through the disk, to a volume of the
//! device mapper through the disks below. Nor can it see anything where the kernel does not count (`queue/iostats`).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::stat::{major, minor};
use nix::sys::utsname::uname;

use crate::dm::DevNumber;
use crate::{DeviceKind, FileDevice, door, presence, topology};

/// A bio has so many pieces of at least a page; a longer write may have more, and be given in two.
const PAGE: u64 = 4096;

/// What we gave to the kernel to be written on a device.
#[derive(Debug)]
pub(crate) struct Given {
    bytes_max: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    /// A write up to here is counted once whatever happens.
    once_up_to: u64,
}

impl Given {
    pub(crate) fn new(device: Option<u64>) -> Self {
        let zero = || AtomicU64::new(0);
        Self { bytes_max: zero(), begun: zero(), ended: zero(), once_up_to: device.map_or(0, once_up_to) }
    }

    /// Before a write is given.
    pub(crate) fn begin_write(&self, bytes: u64) {
        self.begin(if bytes <= self.once_up_to { bytes } else { 2 * bytes });
    }

    /// Before a zeroing is given. What only the device does, or refuses (`by_device`), is not tried a second time by writing.
    pub(crate) fn begin_zero(&self, bytes: u64, by_device: bool) {
        self.begin(if by_device && self.once_up_to > 0 { bytes } else { 2 * bytes });
    }

    fn begin(&self, bytes: u64) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.bytes_max.fetch_add(bytes, Ordering::SeqCst);
    }

    /// When it has ended, however.
    pub(crate) fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// Only drivers that take whole requests count a write when it is done, and not when it is tried.
fn once_up_to(device: u64) -> u64 {
    let Some(queue) = topology::queue_of(device).filter(|queue| queue.join("../mq").is_dir()) else { return 0 };
    let limit = |name: &str, unit: u64| Some(door::sysfs_u64(&queue.join(name).to_string_lossy())? * unit);
    limit("max_sectors_kb", 1024).min(limit("max_segments", PAGE)).unwrap_or(0)
}

/// The kernel's count of what was written on a device, and which device that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// 512 bytes each; written, zeroed or discarded since the kernel found the device.
    pub sectors: u64,
    /// Tells a device from one that got its number later; `None`: the kernel does not.
    pub disk: Option<u64>,
}

/// Looks now and then. It keeps no door shut.
#[derive(Debug)]
pub struct WriteWatch {
    ours: Arc<Given>,
    folder: PathBuf,
    seen: u64,
    given: u64,
}

impl WriteWatch {
    /// Begins to watch a device on which nothing of ours is under way yet. `None`: a file, or a device that is not counted.
    pub fn new(device: &FileDevice) -> Option<Self> {
        if device.kind() != DeviceKind::Block {
            return None;
        }
        let number = device.metadata().ok()?.rdev();
        let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)));
        let seen = sectors(&folder)?;
        let given = device.given().bytes_max.load(Ordering::SeqCst) / 512;
        Some(Self { ours: device.given().clone(), folder, seen, given })
    }

    /// What the kernel has counted.
    pub fn written(&self) -> Option<Written> {
        Some(Written { sectors: sectors(&self.folder)?, disk: presence::disk(&self.folder) })
    }

    /// Whether the kernel began to count when it found the device. † Loop devices and its NBD clients stay, and their counts with them, when they are
    /// given something else.
    pub fn begins_at_zero(&self) -> bool {
        begins_at_zero(&self.folder)
    }

    /// Whether it counts at all: a person may have told it not to (`queue/iostats`).
    pub fn is_counted(&self) -> bool {
        is_switched_on(&self.folder)
    }

    /// Sectors that somebody else has written since the last look, as far as that shows already. † Of a device that is gone nothing shows
    /// any more: [`crate::Presence`] says so.
    pub fn look(&mut self) -> Option<u64> {
        let given = &self.ours;
        let ended = given.ended.load(Ordering::SeqCst);
        let begun = given.begun.load(Ordering::SeqCst);
        let seen = sectors(&self.folder)?;
        let bytes = given.bytes_max.load(Ordering::SeqCst);
        let at_rest = ended == begun && begun == given.begun.load(Ordering::SeqCst);
        self.judge(seen, bytes / 512, at_rest)
    }

    /// `given` was read after `seen`; `at_rest`: nothing was under way when `seen` was read, nor begun since.
    fn judge(&mut self, seen: u64, given: u64, at_rest: bool) -> Option<u64> {
        let foreign = seen.checked_sub(self.seen).map(|more| more.saturating_sub(given - self.given));
        match (foreign, at_rest) {
            (_, true) => (self.seen, self.given) = (seen, given),
            // What is under way may still be counted: only what is known already is settled.
            (Some(foreign), false) => self.seen += foreign,
            // Counted from zero again: it is another device's count, and our own part of it is not known.
            (None, false) => {}
        }
        foreign.filter(|sectors| *sectors > 0)
    }
}

/// What the kernel has counted as written on a block device since it found it: 512 bytes each; written, zeroed or discarded. `None`: it does not
/// count. † Its number stands still then, as if nobody wrote.
pub fn sectors_written(device: DevNumber) -> Option<u64> {
    counted(&PathBuf::from(format!("/sys/dev/block/{device}")))
}

/// Whether the kernel counts what is written on a block device, whose folder in sysfs this is: a person may have told it not to. † The device mapper
/// of older kernels counts whatever its switch says, which is off there; that of newer ones obeys it, and it is on.
pub fn counts_writes(folder: &Path) -> bool {
    counts_writes_by(folder, &uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default())
}

fn counts_writes_by(folder: &Path, release: &str) -> bool {
    is_switched_on(folder) || (folder.join("dm").is_dir() && is_older(release))
}

/// Of these it was seen (Debian's 6.1; its 6.12 and 7.3 obey). Of those between it was not, and there a person can switch it on; so it is with those
/// of a maker who puts much newer drivers into old ones.
fn is_older(release: &str) -> bool {
    if release.contains(".el") {
        return false;
    }
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) < (6, 2))
}

fn begins_at_zero(folder: &Path) -> bool {
    let is_one =
        |part: &str, kind: &str| part.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let is_kept = |part: &std::ffi::OsStr| part.to_str().is_some_and(|part| is_one(part, "loop") || is_one(part, "nbd"));
    std::fs::canonicalize(folder).is_ok_and(|folder| !folder.iter().any(is_kept))
}

fn is_switched_on(folder: &Path) -> bool {
    let switch = ["queue/iostats", "../queue/iostats"];
    switch.iter().find_map(|name| door::sysfs_u64(&folder.join(name).to_string_lossy())) == Some(1)
}

fn counted(folder: &Path) -> Option<u64> {
    counts_writes(folder).then(|| sectors(folder)).flatten()
}

/// From the kernel's `stat` of a block device: sectors written, and discarded.
fn sectors(folder: &Path) -> Option<u64> {
    parse(&std::fs::read_to_string(folder.join("stat")).ok()?)
}

fn parse(stat: &str) -> Option<u64> {
    let mut fields = stat.split_whitespace();
    let written: u64 = fields.nth(6)?.parse().ok()?;
    let discarded: u64 = fields.nth(6).map_or(Some(0), |field| field.parse().ok())?; // the 14th; older kernels have 11
    Some(written.wrapping_add(discarded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> WriteWatch {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let device = FileDevice::open(file.path(), crate::OpenOptions::at_once()).unwrap();
        assert!(WriteWatch::new(&device).is_none(), "a file is told by its times");
        WriteWatch { ours: device.given().clone(), folder: PathBuf::new(), seen: 1000, given: 0 }
    }

    /// A count that stands still because nobody counts was taken for nobody having written.
    #[test]
    fn what_the_kernel_was_told_not_to_count_is_not_known() {
        let device = tempfile::tempdir_in(".").unwrap();
        std::fs::create_dir(device.path().join("queue")).unwrap();
        std::fs::write(device.path().join("stat"), "1 0 8 0 2 0 16 0 0 0 0 0 0 4 0\n").unwrap();
        let switch = |on: &str| std::fs::write(device.path().join("queue/iostats"), on).unwrap();
        switch("1\n");
        assert_eq!(counted(device.path()), Some(20));
        switch("0\n");
        assert_eq!(counted(device.path()), None);
        // A partition's is its disk's.
        let part = device.path().join("part");
        std::fs::create_dir(&part).unwrap();
        std::fs::copy(device.path().join("stat"), part.join("stat")).unwrap();
        assert_eq!(counted(&part), None);
        switch("1\n");
        assert_eq!(counted(&part), Some(20));
        switch("0\n");
        std::fs::create_dir(device.path().join("dm")).unwrap();
        for (release, counts) in [
            ("6.1.0-50-cloud-amd64", true),
            ("5.15.3", true),
            ("6.12.95+deb12-cloud-amd64", false),
            ("7.3.4", false),
            ("", false),
        ] {
            assert_eq!(counts_writes_by(device.path(), release), counts, "{release}");
        }
        switch("1\n");
        assert!(counts_writes_by(device.path(), "7.3.4"));
    }

    /// † A loop device that had been another file's was taken for one that somebody had written to.
    #[test]
    fn devices_that_stay_as_they_are_given_something_else_do_not_count_from_zero() {
        let devices = tempfile::tempdir_in(".").unwrap();
        let from_zero = |name: &str| {
            let folder = devices.path().join("virtual/block").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            begins_at_zero(&folder)
        };
        assert!(from_zero("sda") && from_zero("sda/sda1") && from_zero("dm-0") && from_zero("loopback"));
        assert!(!from_zero("loop0") && !from_zero("loop7/loop7p1") && !from_zero("nbd12"));
        assert!(!begins_at_zero(&devices.path().join("gone")), "nothing is known");
    }

    #[test]
    fn the_kernels_line_is_read_with_and_without_what_newer_ones_add() {
        let line = "  4459  4003  364554  2127  2064  1830  56106  3327  0  2944  6083  7  0  4096  10  541  617\n";
        assert_eq!(parse(line), Some(56106 + 4096));
        assert_eq!(parse("1 2 3 4 5 6 77 8 9 10 11"), Some(77));
        assert_eq!((parse("1 2 3"), parse("")), (None, None));
    }

    #[test]
    fn ours_is_never_taken_for_somebody_elses() {
        let mut watch = watch();
        // Given and not counted yet; counted in part; counted twice by a driver; at rest.
        assert_eq!(watch.judge(1000, 16, false), None);
        assert_eq!(watch.judge(1004, 16, false), None);
        assert_eq!(watch.judge(1016, 16, true), None);
        assert_eq!(watch.judge(1016, 16, true), None);
        // A device that counts from zero again, and goes on.
        assert_eq!(watch.judge(3, 32, false), None);
        assert_eq!(watch.judge(5, 32, true), None);
        assert_eq!(watch.judge(5, 32, true), None);
    }

    #[test]
    fn a_sector_of_somebody_else_shows_at_the_latest_when_all_is_at_rest() {
        let mut watch = watch();
        assert_eq!(watch.judge(1008, 0, false), Some(8), "beside nothing of ours");
        assert_eq!(watch.judge(1008, 0, true), None, "said once");
        // Ours was counted as twice what it took; that hides 8 of 20 foreign ones for a while.
        assert_eq!(watch.judge(1008 + 8 + 20, 16, false), Some(12));
        assert_eq!(watch.judge(1008 + 8 + 20, 16, false), None, "said once");
        assert_eq!(watch.judge(1008 + 8 + 20 + 1, 16, true), Some(1));
        assert_eq!(watch.judge(1008 + 8 + 20 + 2, 16, true), Some(1));
    }

    #[test]
    fn a_write_that_some_drivers_count_twice_is_given_twice() {
        let given = Given { once_up_to: 4096, ..Given::new(None) };
        let bytes = || given.bytes_max.load(Ordering::SeqCst);
        given.begin_write(4096);
        assert_eq!(bytes(), 4096);
        given.begin_write(8192);
        assert_eq!(bytes(), 4096 + 16384);
        given.begin_zero(512, false);
        assert_eq!(bytes(), 4096 + 16384 + 1024);
        given.begin_zero(1 << 20, true);
        assert_eq!(bytes(), 4096 + 16384 + 1024 + (1 << 20), "a trim leaves no room for a foreign write to hide in");
        assert_eq!((given.begun.load(Ordering::SeqCst), given.ended.load(Ordering::SeqCst)), (4, 0));
        let tried = Given::new(None);
        tried.begin_zero(512, true);
        assert_eq!(tried.bytes_max.load(Ordering::SeqCst), 1024);
    }
}
