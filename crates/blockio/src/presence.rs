//! Whether a block device that was opened is there still.
//!
//! A disk that was pulled, or lost its path, leaves a descriptor behind on which everything fails. It comes back as another device, which nobody holds;
//! and the kernel counts nothing any more at the old one, as if nobody wrote.
//!
//! It does not see what goes from below a device of the device mapper: that one stays.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::dm::DevNumber;
use crate::{DeviceKind, FileDevice, door};

/// Looks now and then, into sysfs alone. What is gone stays gone: what has its number later is another device.
#[derive(Debug)]
pub struct Presence {
    folder: PathBuf,
    disk: Option<u64>,
    is_gone: bool,
}

impl Presence {
    /// `None`: it is a file.
    pub fn of(device: &FileDevice) -> Option<Self> {
        if device.kind() != DeviceKind::Block {
            return None;
        }
        let number = DevNumber::of(device.metadata().ok()?.rdev());
        Self::at(PathBuf::from(format!("/sys/dev/block/{number}")))
    }

    /// By a device's folder in sysfs; `None`: there is none, of which nothing can be said later.
    pub fn at(folder: PathBuf) -> Option<Self> {
        let disk = disk(&folder);
        folder.exists().then_some(Self { folder, disk, is_gone: false })
    }

    /// Whether it is surely gone.
    pub fn is_gone(&mut self) -> bool {
        self.is_gone |= match std::fs::symlink_metadata(&self.folder) {
            Err(error) => error.kind() == ErrorKind::NotFound, // where one cannot look, nothing is known
            Ok(_) => self.disk.zip(disk(&self.folder)).is_some_and(|(then, now)| then != now),
        };
        self.is_gone
    }
}

/// What tells a device from one that got its number later; a partition's is its disk's. `None`: the kernel does not.
pub(crate) fn disk(folder: &Path) -> Option<u64> {
    ["diskseq", "../diskseq"].iter().find_map(|name| door::sysfs_u64(&folder.join(name).to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_gone_when_its_folder_is_or_shows_another_disk_and_does_not_come_back() {
        let sys = tempfile::tempdir_in(".").unwrap();
        let at = |name: &str| sys.path().join(name);
        let put = |name: &str, diskseq: &str| {
            std::fs::create_dir_all(at(name)).unwrap();
            std::fs::write(at(name).join("diskseq"), diskseq).unwrap();
        };
        assert!(Presence::at(at("8:0")).is_none());
        put("8:0", "7\n");
        std::fs::create_dir(at("8:0/8:1")).unwrap(); // a partition
        let mut all: Vec<_> = ["8:0", "8:0/8:1"].map(at).into_iter().map(|folder| Presence::at(folder).unwrap()).collect();
        let mut replaced = Presence::at(at("8:0/8:1")).unwrap();
        let mut gone = |expected| all.iter_mut().for_each(|one| assert_eq!(one.is_gone(), expected));
        gone(false);
        std::fs::remove_dir_all(at("8:0")).unwrap();
        gone(true);
        put("8:0", "7\n");
        gone(true);
        put("8:0", "8\n");
        std::fs::create_dir(at("8:0/8:1")).unwrap();
        assert!(replaced.is_gone(), "another disk has its number");

        // A kernel that does not number disks.
        std::fs::create_dir(at("9:0")).unwrap();
        let mut old = Presence::at(at("9:0")).unwrap();
        assert!(!old.is_gone());
        std::fs::remove_dir(at("9:0")).unwrap();
        assert!(old.is_gone());
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let device = FileDevice::open(file.path(), crate::OpenOptions::at_once()).unwrap();
        assert!(Presence::of(&device).is_none());
    }
}
