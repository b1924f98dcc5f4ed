//! Volumes on top of volumes: they are refused.
//!
//! † Whoever stops closes all his taps first, and then has each disk flushed: one that lies on a tap of ours, over whatever layers, waits in the kernel for a
//! tap that nobody serves any more. No signal ends that, and what waits keeps the lock of the state directory, without which no other daemon serves anything.
//!
//! Deliberately not followed: a loop device to its file, as nowhere else.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::bail;
use farside_blockio::dm::DevNumber;
use farside_insert::{State, stack};

use crate::config::VolumeConfig;
use crate::node;

/// `twin`: what is served of a device that a tap is put under. That itself rests on its tap, and is to.
///
/// # Errors
/// When what would be served rests on a tap.
pub(crate) fn refuse(config: &VolumeConfig, twin: Option<&Path>) -> anyhow::Result<()> {
    match found(config, twin) {
        Some(found) => bail!("{found}"),
        None => Ok(()),
    }
}

/// The same, in words for people; `None`: nothing is wrong. A device that a tap is under is not looked at without its twin.
pub(crate) fn found(config: &VolumeConfig, twin: Option<&Path>) -> Option<String> {
    let lies_on = match (config.insert, twin) {
        (true, Some(twin)) => DevNumber::at(twin).into_iter().collect(),
        (true, None) if matches!(farside_insert::state_of(&config.backing), Ok(State::Inserted { .. })) => return None,
        _ => devices_of(&config.backing),
    };
    of(config, &lies_on, &|device| stack::find_below(device, &mut tap)).map(|stacked| stacked.to_string())
}

/// A disk is what it is; a file lies on those of its file system.
fn devices_of(backing: &Path) -> Vec<DevNumber> {
    match std::fs::metadata(backing) {
        Ok(metadata) if metadata.file_type().is_block_device() => vec![DevNumber::of(metadata.rdev())],
        _ => stack::devices_of(backing),
    }
}

/// A tap: whose, or what the kernel calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tap {
    Of(String),
    Called(String),
}

/// † Others have ublk devices as well, and a disk of theirs is as good as any: one is ours by what we note of each, or by its link.
fn tap(device: DevNumber) -> Option<Tap> {
    let name = stack::name(device).filter(|_| stack::is_own_tap(device))?;
    let is_marked = stack::text(device, "backend").is_some(); // an NBD device of ours
    let linked = || {
        let links = std::fs::read_dir(node::FOLDER).into_iter().flatten().flatten().map(|link| link.path());
        let mut ours = links.filter(|link| DevNumber::at(link).is_ok_and(|number| number == device));
        ours.next()?.file_name()?.to_str().map(str::to_owned)
    };
    match node::volume_of(&name).or_else(linked) {
        Some(volume) => Some(Tap::Of(volume)),
        None => is_marked.then_some(Tap::Called(name)),
    }
}

/// A backing that rests on a tap.
#[derive(Debug, PartialEq, Eq)]
enum Stacked {
    /// On that of the volume itself, which was put under it.
    OnItsOwn {
        backing: PathBuf,
        volume: String,
    },
    On {
        backing: PathBuf,
        tap: Tap,
    },
}

fn of(config: &VolumeConfig, lies_on: &[DevNumber], below: &dyn Fn(DevNumber) -> Option<Tap>) -> Option<Stacked> {
    let tap = lies_on.iter().find_map(|device| below(*device))?;
    let backing = config.backing.clone();
    Some(match tap {
        Tap::Of(volume) if !config.insert && volume == config.name.as_str() => Stacked::OnItsOwn { backing, volume },
        tap => Stacked::On { backing, tap },
    })
}

impl fmt::Display for Stacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (backing, tap) = match self {
            Self::OnItsOwn { backing, volume } => {
                return write!(
                    f,
                    "{} rests on the tap of volume {volume} itself, which was put under it: say `insert = true` in its file again, then restart \
                     farsided. `farside volume remove {volume}` takes the tap out after that",
                    backing.display()
                );
            }
            Self::On { backing, tap } => (backing.display(), tap),
        };
        let whose = match tap {
            Tap::Of(volume) => format!("the tap of volume {volume}"),
            Tap::Called(name) => format!("/dev/{name}, a tap"),
        };
        write!(
            f,
            "{backing} lies on {whose}, which farsided serves, too: as it stops, one would wait for the other until a reboot. What is written to {backing} \
             is in the points of that volume already; for points of its own give it a disk, or a file on a disk, that no tap is below"
        )
    }
}

#[cfg(test)]
mod tests {
    use farside_control::source::IfAbsent;

    use super::*;
    use crate::config::{DataPath, OnTrackingLost};
    use crate::tap::TapConfig;

    /// The disk is 8:0, with a partition 8:1; 259:3 is the tap of `data`, over whatever layers below 254:0; of 259:9 nothing but that it is ours is known.
    fn below(device: DevNumber) -> Option<Tap> {
        match (device.major, device.minor) {
            (254 | 259, 0 | 3) => Some(Tap::Of("data".to_owned())),
            (259, 9) => Some(Tap::Called("nbd9".to_owned())),
            _ => None,
        }
    }

    fn said(name: &str, insert: bool, lies_on: &[&str]) -> Option<String> {
        let config = VolumeConfig {
            name: name.parse().expect("a name"),
            group: "default".parse().expect("a name"),
            backing: "/srv/vm.img".into(),
            insert,
            tap: TapConfig::Nbd { socket: "/run/x".into() },
            data_path: DataPath::default(),
            queues: None,
            on_tracking_lost: OnTrackingLost::default(),
            if_absent: IfAbsent::default(),
        };
        let lies_on: Vec<_> = lies_on.iter().map(|number| DevNumber::parse(number).expect("a number")).collect();
        of(&config, &lies_on, &below).map(|stacked| stacked.to_string())
    }

    /// What lies on a tap, over whatever layers, was served. As farsided stopped, its flush waited for that tap, and nothing but a reboot had any volume
    /// of the host served again.
    #[test]
    fn what_rests_on_a_tap_is_no_backing() {
        assert_eq!(said("vm", false, &["8:0"]), None);
        assert_eq!(said("vm", false, &[]), None, "of a file on no disk");
        let refused = said("vm", false, &["8:1", "254:0"]).expect("one of the two disks of its file system");
        assert!(refused.starts_with("/srv/vm.img lies on the tap of volume data,"), "{refused}");
        assert!(said("vm", false, &["259:9"]).expect("ours").contains("lies on /dev/nbd9, a tap,"));
        // What its tap is put under, while the disks of that lie on another tap.
        assert!(said("vm", true, &["254:0"]).expect("its twin").contains("lies on the tap of volume data"));
        // Whose file was changed while its tap was under its device.
        let refused = said("data", false, &["254:0"]).expect("refused");
        assert!(refused.contains("the tap of volume data itself") && refused.contains("say `insert = true`"), "{refused}");
    }

    #[test]
    fn a_disk_or_a_file_on_one_is_looked_at() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let file = dir.path().join("file");
        std::fs::write(&file, []).expect("written");
        assert_eq!(devices_of(&file), stack::devices_of(dir.path()));
        assert_eq!(devices_of(&dir.path().join("not there")), []);
    }
}
