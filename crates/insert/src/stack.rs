//! What lies on what, as `/sys` shows it.
//!
//! It only reads. A device that is not there has nothing below it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use farside_blockio::dm::DevNumber;

/// How deep a stack of devices is followed; the kernel's own limit is below that.
const DEPTH_MAX: u32 = 32;

/// Whether a device rests on another one, over however many layers, or is it.
pub fn rests_on(device: DevNumber, below: DevNumber) -> bool {
    any_below(device, DEPTH_MAX, &mut |number| number == below)
}

/// Whether a device is a partition of a disk.
pub fn is_part_of(device: DevNumber, disk: DevNumber) -> bool {
    at(device).join("partition").exists() && slaves(device).contains(&disk)
}

/// Whether a device rests on a tap of Farside, or is one.
pub fn rests_on_own_tap(device: DevNumber) -> bool {
    any_below(device, DEPTH_MAX, &mut is_own_tap)
}

/// Whether what a path lies on rests on a device. What lies on no block device does not.
pub fn path_rests_on(path: &Path, below: DevNumber) -> bool {
    device_of(path).is_some_and(|device| rests_on(device, below))
}

/// What the host swaps to, with the device that it is or lies on.
pub fn swaps() -> Vec<(String, DevNumber)> {
    let text = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let device = |path: &str| {
        let metadata = std::fs::metadata(path).ok()?;
        let is_device = metadata.mode() & nix::libc::S_IFMT == nix::libc::S_IFBLK;
        if is_device { Some(DevNumber::of(metadata.rdev())) } else { device_of(Path::new(path)) }
    };
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.filter_map(|path| Some((path.to_owned(), device(path)?))).collect()
}

/// The block device of the file system that a path lies on.
pub fn device_of(path: &Path) -> Option<DevNumber> {
    let number = DevNumber::of(std::fs::metadata(path).ok()?.dev());
    if number.major != 0 {
        return Some(number);
    }
    // A file system with several devices, or none (btrfs, overlayfs): where it was mounted from, if that is a device.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let source = mount_source(&mounts, number)?;
    let source = std::fs::metadata(source).ok()?;
    (source.mode() & nix::libc::S_IFMT == nix::libc::S_IFBLK).then(|| DevNumber::of(source.rdev()))
}

/// Where a file system was mounted from.
fn mount_source(mountinfo: &str, number: DevNumber) -> Option<PathBuf> {
    let number = number.to_string();
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == number).then(|| filesystem.split(' ').nth(1).map(PathBuf::from))?
    })
}

/// Whether it is one of Farside's own taps: an NBD device of the kernel that carries our identifier, or a ublk device.
pub fn is_own_tap(device: DevNumber) -> bool {
    let name = at(device).canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("ublkb") || text(device, "backend").is_some_and(|backend| backend.starts_with("farside:"))
}

/// Whether nothing can be asked of a device any more: it was taken away under its users, or is an NBD device that was
/// disconnected for good.
pub fn is_dead(device: DevNumber) -> bool {
    const NBD: u32 = 43;
    !at(device).exists() || device.major == NBD && text(device, "backend").is_none() && number(device, "size") == Some(0)
}

/// Whether it is one of the device mapper's.
pub fn is_mapped(device: DevNumber) -> bool {
    at(device).join("dm").is_dir()
}

/// What of the kernel's own uses a device, a part of it, or what rests on it, by files that it opens without a claim: loop devices,
/// NVMe and SCSI targets. In words for people.
pub fn kernel_users(device: DevNumber) -> Vec<String> {
    let is_it = |path: &Path| DevNumber::at(path).is_ok_and(|number| rests_on(number, device));
    users_in(Path::new("/sys/block"), Path::new("/sys/kernel/config"), &is_it)
}

fn users_in(blocks: &Path, configured: &Path, is_it: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let list = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let text = |path: PathBuf| std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let uses = |file: PathBuf| text(file).is_some_and(|path| is_it(Path::new(&path)));
    let mut users = Vec::new();
    for block in list(blocks.to_owned()).filter(|block| uses(block.join("loop/backing_file"))) {
        users.push(format!("loop device /dev/{} (losetup -d)", name(&block)));
    }
    for subsystem in list(configured.join("nvmet/subsystems")) {
        let spaces = list(subsystem.join("namespaces"));
        let used = spaces.filter(|space| text(space.join("enable")).as_deref() == Some("1") && uses(space.join("device_path")));
        users.extend(used.map(|space| format!("namespace {} of the NVMe target {}", name(&space), name(&subsystem))));
    }
    for backstore in list(configured.join("target/core")).flat_map(list) {
        if uses(backstore.join("udev_path")) {
            users.push(format!("backstore {} of a SCSI target", name(&backstore)));
        }
    }
    users
}

/// Whether it lies on other devices.
pub fn has_slaves(device: DevNumber) -> bool {
    !slaves(device).is_empty()
}

/// One of its numbers.
pub fn number(device: DevNumber, file: &str) -> Option<u64> {
    text(device, file)?.parse().ok()
}

/// One of its attributes, without the end of its line.
pub fn text(device: DevNumber, file: &str) -> Option<String> {
    Some(std::fs::read_to_string(at(device).join(file)).ok()?.trim_end().to_owned())
}

fn at(device: DevNumber) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{device}"))
}

fn any_below(device: DevNumber, depth: u32, is: &mut dyn FnMut(DevNumber) -> bool) -> bool {
    is(device) || depth > 0 && slaves(device).into_iter().any(|below| any_below(below, depth - 1, is))
}

/// What a device lies on, one layer down; a partition lies on its disk.
fn slaves(device: DevNumber) -> Vec<DevNumber> {
    let of = |path: PathBuf| DevNumber::parse(std::fs::read_to_string(path.join("dev")).ok()?.trim());
    let entries = std::fs::read_dir(at(device).join("slaves")).into_iter().flatten().flatten();
    let mut below: Vec<DevNumber> = entries.filter_map(|entry| of(entry.path())).collect();
    if at(device).join("partition").exists() {
        below.extend(at(device).canonicalize().ok().and_then(|at| of(at.parent()?.to_owned())));
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_of_no_device_is_found_by_where_it_was_mounted_from() {
        let info = "28 1 0:25 /@ / rw,relatime shared:1 - btrfs /dev/mapper/root rw\n\
                    29 28 0:26 / /proc rw - proc proc rw\n";
        let source = |number: &str| mount_source(info, DevNumber::parse(number).unwrap());
        assert_eq!(source("0:25").unwrap(), Path::new("/dev/mapper/root"));
        assert_eq!(source("0:26").unwrap(), Path::new("proc"));
        assert_eq!(source("0:27"), None);
    }

    #[test]
    fn users_in_the_kernel_are_named() {
        let root = tempfile::tempdir().unwrap();
        let (blocks, configured) = (root.path().join("block"), root.path().join("config"));
        let put = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (number, file) in [(0, "/dev/other\n"), (1, "/dev/ublkb0\n")] {
            put(blocks.join(format!("loop{number}/loop/backing_file")), file);
        }
        std::fs::create_dir_all(blocks.join("sda")).unwrap();
        let space = |number: u32| configured.join(format!("nvmet/subsystems/rack/namespaces/{number}"));
        for (number, enable) in [(1, "0\n"), (2, "1\n")] {
            put(space(number).join("device_path"), "/dev/ublkb0\n");
            put(space(number).join("enable"), enable);
        }
        put(configured.join("target/core/fileio_0/disk/udev_path"), "/dev/ublkb0\n");
        let users = users_in(&blocks, &configured, &|path| path == Path::new("/dev/ublkb0"));
        assert_eq!(users.len(), 3, "{users:?}");
        assert!(users[0].contains("/dev/loop1") && users[1].contains("namespace 2 of the NVMe target rack"), "{users:?}");
        assert!(users[2].contains("backstore disk"), "{users:?}");
    }

    #[test]
    fn what_is_not_there_rests_on_nothing() {
        let nothing = DevNumber { major: 4095, minor: 1 };
        assert!(!rests_on_own_tap(nothing) && !has_slaves(nothing) && !is_mapped(nothing));
        assert!(rests_on(nothing, nothing));
        assert!(!path_rests_on(Path::new("/proc"), nothing));
    }
}
