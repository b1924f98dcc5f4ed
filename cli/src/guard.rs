//! What a restore must never write to: the store itself, and whatever a volume's backing lies on, or lies on it.
//!
//! A volume's backing is written by its daemon only, which then knows that everything changed (T13). A running daemon holds
//! its lock; this is for the one that does not run just now. Block devices are compared through sysfs, since a partition, the
//! disk that it is of, and a volume that is mapped onto either are the same bytes under names whose locks know nothing of
//! each other.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use farside_daemon::config::{Config, ConfigError};
use farside_service::files::FileError;
use nix::sys::stat::{major, minor};

use crate::failure::{Exit, Failure};

/// The configuration of a farsided on this machine, whose backings are not to be written behind its back.
const SOURCE_CONFIGURATION: &str = "/etc/farside/farsided.toml";
const SYSFS: &str = "/sys";

/// Refuses a target that a restore from `store` would destroy.
pub(crate) fn refuse(to: &Path, store: &Path) -> Result<(), Failure> {
    refuse_store(to, store)?;
    refuse_backing(to, Path::new(SOURCE_CONFIGURATION), Path::new(SYSFS))
}

/// A file of the store, or a new one in it.
fn refuse_store(to: &Path, store: &Path) -> Result<(), Failure> {
    let Ok(store) = store.canonicalize() else { return Ok(()) };
    // Or what is there of the way to it: the rest may be made.
    let real = to.ancestors().chain([Path::new(".")]).find_map(|path| path.canonicalize().ok());
    match real {
        // One that was mistyped, `/` say, would be said to be the store otherwise.
        Some(real) if real.starts_with(&store) && is_none(&store) => Err(Failure::new(
            Exit::NotFound,
            format!("there is no store at {}, only the directory that {} is in", store.display(), to.display()),
            "name the directory of the store: the one with farside-store.json in it",
        )),
        Some(real) if real.starts_with(&store) => Err(Failure::new(
            Exit::Refused,
            format!("{} is inside the store {}: it would damage what it is restored from", to.display(), store.display()),
            "restore to another place",
        )),
        _ => Ok(()), // what is not there is refused when it is opened
    }
}

/// Whether it is surely no store.
fn is_none(store: &Path) -> bool {
    std::fs::metadata(store.join("farside-store.json")).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn refuse_backing(to: &Path, configuration: &Path, sysfs: &Path) -> Result<(), Failure> {
    let config = match Config::load(configuration) {
        Ok(config) => config,
        // No daemon here.
        Err(ConfigError::File(FileError::Io { path, source }))
            if path == configuration && source.kind() == ErrorKind::NotFound =>
        {
            return Ok(());
        }
        Err(error) => {
            return Err(Failure::new(
                Exit::Refused,
                format!("whether {} is a volume's backing cannot be told: {error}", to.display()),
                "mend the configuration of farsided, or run this as a user who may read it",
            ));
        }
    };
    let Ok(target) = std::fs::metadata(to) else { return Ok(()) };
    let target = Thing::of(&target);
    let under_target = target.lies_on(sysfs);
    let touches = |backing: &Path| {
        let Ok(backing) = std::fs::metadata(backing) else { return false };
        let backing = Thing::of(&backing);
        under_target.contains(&backing) || backing.lies_on(sysfs).contains(&target)
    };
    match config.volumes.values().find(|volume| touches(&volume.backing)) {
        Some(volume) => Err(Failure::new(
            Exit::Refused,
            format!(
                "{} is the backing of volume {} ({}), or shares its bytes: writing there would go unnoticed by farsided",
                to.display(),
                volume.name,
                volume.backing.display()
            ),
            "restore into a file or another device, and copy from there through the volume's tap",
        )),
        None => Ok(()),
    }
}

/// A file or a block device, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    File { device: u64, inode: u64 },
    Device { major: u64, minor: u64 },
}

impl Thing {
    fn of(meta: &Metadata) -> Self {
        match meta.file_type().is_block_device() {
            true => Self::Device { major: major(meta.rdev()), minor: minor(meta.rdev()) },
            false => Self::File { device: meta.dev(), inode: meta.ino() },
        }
    }

    /// Itself and all that it is made of: the disk of a partition, what a mapped device is mapped to, the file of a loop.
    fn lies_on(self, sysfs: &Path) -> BTreeSet<Self> {
        let mut found = BTreeSet::from([self]);
        let mut look = vec![self];
        while let Some(Self::Device { major, minor }) = look.pop() {
            let Ok(folder) = sysfs.join(format!("dev/block/{major}:{minor}")).canonicalize() else { continue };
            let mut below: Vec<Self> = Vec::new();
            if folder.join("partition").exists() {
                below.extend(folder.parent().and_then(number));
            }
            let slaves = std::fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
            below.extend(slaves.filter_map(|entry| number(&entry.path())));
            let file = std::fs::read_to_string(folder.join("loop/backing_file")).ok();
            let file = file.and_then(|path| std::fs::metadata(path.trim_end_matches('\n')).ok());
            below.extend(file.map(|meta| Self::of(&meta)));
            look.extend(below.into_iter().filter(|thing| found.insert(*thing)));
        }
        found
    }
}

/// The device that a folder of sysfs is about.
fn number(folder: &Path) -> Option<Thing> {
    let text = std::fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(Thing::Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_used_refuses_and_none_does_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let configuration = dir.path().join("farsided.toml");
        let to = dir.path().join("out");
        assert!(refuse_backing(&to, &configuration, dir.path()).is_ok(), "no daemon here");
        fs::write(&configuration, "not = [").expect("write");
        let refused = refuse_backing(&to, &configuration, dir.path()).expect_err("it cannot be told");
        assert!(refused.exit == Exit::Refused && refused.message.contains("farsided.toml"), "{refused:?}");
    }

    #[test]
    fn a_file_is_the_same_under_every_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        fs::write(&a, "x").expect("write");
        fs::write(&c, "x").expect("write");
        fs::hard_link(&a, &b).expect("link");
        let [a, b, c] = [a, b, c].map(|path| Thing::of(&fs::metadata(path).expect("meta")));
        assert!(a == b && a != c);
    }

    /// sda with two partitions; a volume group on sda2 with two volumes; a loop device on a file.
    #[test]
    fn devices_that_share_bytes_are_found_and_neighbours_are_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let sys = dir.path();
        let make = |folder: &str, device: &str| {
            fs::create_dir_all(sys.join(folder).join("slaves")).expect("mkdir");
            fs::write(sys.join(folder).join("dev"), format!("{device}\n")).expect("write");
            fs::create_dir_all(sys.join("dev/block")).expect("mkdir");
            symlink(sys.join(folder), sys.join("dev/block").join(device)).expect("link");
        };
        make("devices/sda", "8:0");
        for (partition, device) in [("sda1", "8:1"), ("sda2", "8:2")] {
            make(&format!("devices/sda/{partition}"), device);
            fs::write(sys.join(format!("devices/sda/{partition}/partition")), "1\n").expect("write");
        }
        for (volume, device) in [("dm-0", "253:0"), ("dm-1", "253:1")] {
            make(&format!("devices/{volume}"), device);
            symlink(sys.join("devices/sda/sda2"), sys.join(format!("devices/{volume}/slaves/sda2"))).expect("link");
        }
        make("devices/loop0", "7:0");
        let file = sys.join("disk.img");
        fs::write(&file, "x").expect("write");
        fs::create_dir_all(sys.join("devices/loop0/loop")).expect("mkdir");
        fs::write(sys.join("devices/loop0/loop/backing_file"), format!("{}\n", file.display())).expect("write");

        let device = |major, minor| Thing::Device { major, minor };
        let on = |thing: Thing| thing.lies_on(sys);
        assert_eq!(on(device(8, 1)), BTreeSet::from([device(8, 1), device(8, 0)]));
        assert_eq!(on(device(253, 1)), BTreeSet::from([device(253, 1), device(8, 2), device(8, 0)]));
        assert!(!on(device(253, 0)).contains(&device(253, 1)) && !on(device(253, 0)).contains(&device(8, 1)));
        let file = Thing::of(&fs::metadata(&file).expect("meta"));
        assert_eq!(on(device(7, 0)), BTreeSet::from([device(7, 0), file]));
        assert_eq!(on(device(99, 0)), BTreeSet::from([device(99, 0)]), "one that sysfs does not know");
    }

    #[test]
    fn nothing_is_restored_into_the_store_it_comes_from() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = dir.path().join("store");
        fs::create_dir_all(store.join("groups")).expect("mkdir");
        fs::write(store.join("farside-store.json"), "{}").expect("write");
        let link = dir.path().join("link");
        symlink(&store, &link).expect("link");
        for bad in
            [store.join("farside-store.json"), store.join("new"), store.join("groups/new"), link.join("farside-store.json")]
        {
            let refused = refuse_store(&bad, &link).expect_err("inside");
            assert!(refused.exit == Exit::Refused && refused.message.contains("inside the store"), "{refused:?}");
        }
        let none = refuse_store(&dir.path().join("out"), dir.path()).expect_err("no store");
        assert!(none.exit == Exit::NotFound && none.message.contains("there is no store at"), "{none:?}");
        assert!(refuse_store(&dir.path().join("out"), &store).is_ok());
        assert!(refuse_store(&dir.path().join("nowhere/out"), &store).is_ok(), "refused when it is opened");
    }
}
