//! What lies on what, as `/sys` shows it.
//!
//! It only reads. A device that is not there has nothing below it.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
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

/// What is known of a device, or else of the first one below it, over however many layers, of which something is known.
pub fn find_below<T>(device: DevNumber, known: &mut dyn FnMut(DevNumber) -> Option<T>) -> Option<T> {
    let mut found = None;
    any_below(device, DEPTH_MAX, &mut |number| {
        found = known(number);
        found.is_some()
    });
    found
}

/// Whether what a path lies on rests on a device. What lies on no block device does not.
pub fn path_rests_on(path: &Path, below: DevNumber) -> bool {
    devices_of(path).into_iter().any(|device| rests_on(device, below))
}

/// What the host swaps to, with the device that it is or lies on.
pub fn swaps() -> Vec<(String, DevNumber)> {
    let text = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let devices = |path: &str| match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => vec![DevNumber::of(metadata.rdev())],
        _ => devices_of(Path::new(path)),
    };
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.flat_map(|path| devices(path).into_iter().map(|device| (path.to_owned(), device))).collect()
}

/// The block devices of the file system that a path lies on: one, of a btrfs all that it has, and none of what lies on none.
pub fn devices_of(path: &Path) -> Vec<DevNumber> {
    let Ok(metadata) = std::fs::metadata(path) else { return Vec::new() };
    let number = DevNumber::of(metadata.dev());
    if number.major != 0 {
        return vec![number];
    }
    // † What is said of a file in a btrfs is the number of its subvolume, which stands in no list: the mount is found by its place.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    mount_at(&mounts, &path).map(|mount| mount.devices()).unwrap_or_default()
}

/// The block devices of all file systems in a list of mounts, as in `/proc/1/mountinfo`.
pub fn mounted(mountinfo: &str) -> Vec<DevNumber> {
    mountinfo.lines().filter_map(Mount::of).flat_map(|mount| mount.devices()).collect()
}

/// A line of mountinfo: proc_pid_mountinfo(5).
struct Mount {
    number: DevNumber,
    point: PathBuf,
    kind: String,
    source: PathBuf,
}

impl Mount {
    fn of(line: &str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (mut mount, mut filesystem) = (mount.split(' ').skip(2), filesystem.split(' '));
        let number = DevNumber::parse(mount.next()?)?;
        Some(Self {
            number,
            point: unescaped(mount.nth(1)?),
            kind: filesystem.next()?.to_owned(),
            source: unescaped(filesystem.next()?),
        })
    }

    fn devices(&self) -> Vec<DevNumber> {
        if self.number.major != 0 {
            return vec![self.number];
        }
        // Anything else is a word, or a path that may hang.
        let named = self.source.starts_with("/dev").then(|| std::fs::metadata(&self.source).ok()).flatten();
        let Some(source) =
            named.filter(|metadata| metadata.file_type().is_block_device()).map(|metadata| DevNumber::of(metadata.rdev()))
        else {
            return Vec::new();
        };
        match &*self.kind {
            "btrfs" => all_of_btrfs(Path::new("/sys/fs/btrfs"), source),
            _ => vec![source],
        }
    }
}

/// A path as it stands in a field of fstab(5) or mountinfo, where a space is `\040`.
pub fn unescaped(field: &str) -> PathBuf {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
        .into()
}

/// The mount that a path lies in: the last one of those whose place is nearest to it.
fn mount_at(mountinfo: &str, path: &Path) -> Option<Mount> {
    let over = mountinfo.lines().filter_map(Mount::of).filter(|mount| path.starts_with(&mount.point));
    over.max_by_key(|mount| mount.point.components().count())
}

/// All devices of the btrfs that one belongs to.
fn all_of_btrfs(known: &Path, one: DevNumber) -> Vec<DevNumber> {
    let list = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let number = |device: PathBuf| DevNumber::parse(std::fs::read_to_string(device.join("dev")).ok()?.trim());
    let mut all = list(known).map(|fs| list(&fs.join("devices")).filter_map(number).collect::<Vec<_>>());
    all.find(|devices| devices.contains(&one)).unwrap_or_else(|| vec![one])
}

/// Whether it is one of Farside's own taps: an NBD device of the kernel that carries our identifier, or a ublk device.
pub fn is_own_tap(device: DevNumber) -> bool {
    name(device).is_some_and(|name| name.starts_with("ublkb"))
        || text(device, "backend").is_some_and(|backend| backend.starts_with("farside:"))
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

/// Whether another device lies on a device, on a part of it, or on what does.
pub fn is_built_on(device: DevNumber) -> bool {
    let blocks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut numbers = blocks.filter_map(|block| DevNumber::parse(std::fs::read_to_string(block.path().join("dev")).ok()?.trim()));
    numbers.any(|number| number != device && rests_on(number, device))
}

/// What the kernel calls it.
pub fn name(device: DevNumber) -> Option<String> {
    at(device).canonicalize().ok()?.file_name()?.to_str().map(str::to_owned)
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
    fn a_file_system_of_no_number_is_found_by_where_it_is_and_what_it_was_mounted_from() {
        let info = "28 1 0:25 /@ / rw,relatime shared:1 - btrfs /dev/mapper/root rw\n\
                    29 28 0:26 / /proc rw - proc proc rw\n\
                    30 28 8:1 / /var/lib rw - ext4 /dev/sda1 rw\n\
                    31 30 0:25 /@state /var/lib/far\\040side rw - btrfs /dev/mapper/root rw\n\
                    32 30 0:31 / /var/lib/far\\040side rw - tmpfs over rw\n";
        let source = |path: &str| mount_at(info, Path::new(path)).map(|mount| (mount.kind, mount.source));
        let root = || Some(("btrfs".to_owned(), PathBuf::from("/dev/mapper/root")));
        assert_eq!(source("/etc"), root());
        assert_eq!(source("/var/library"), root());
        assert_eq!(source("/var/lib/x").unwrap().1, Path::new("/dev/sda1"));
        assert_eq!(source("/var/lib/far side/maps").unwrap().0, "tmpfs", "the one above");
        assert_eq!(mount_at("", Path::new("/")).map(|mount| mount.point), None);
        assert_eq!(mounted("30 28 8:1 / /var/lib rw - ext4 /dev/sda1 rw\n"), [DevNumber::parse("8:1").unwrap()]);
    }

    /// † Each of them, whatever it was mounted by.
    #[test]
    fn a_btrfs_lies_on_all_its_devices() {
        let known = tempfile::tempdir().unwrap();
        for (filesystem, device, number) in [("a", "sda", "8:0\n"), ("b", "dm-1", "254:1\n"), ("b", "sdb", "8:16\n")] {
            let folder = known.path().join(filesystem).join("devices").join(device);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("dev"), number).unwrap();
        }
        let number = |text: &str| DevNumber::parse(text).unwrap();
        let mut of = all_of_btrfs(known.path(), number("8:16"));
        of.sort_by_key(|number| number.major);
        assert_eq!(of, [number("8:16"), number("254:1")]);
        assert_eq!(all_of_btrfs(known.path(), number("9:0")), [number("9:0")]);
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
