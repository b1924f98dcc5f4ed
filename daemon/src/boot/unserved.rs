//! After the start of the daemon, once in a boot: what becomes of the disks of volumes that it does not serve. The unit
//! `farside-boot.service` runs it (`farsided --unserved`).
//!
//! By each volume's policy the disk stays hidden (`refuse`), or its host uses it as if there were no Farside (`bare`).
//! Invariant: before a disk is shown, the mark that has everything compared is durable, and nobody serves it: its door is held
//! from before the mark until after the note that keeps the daemon from it. What cannot be marked stays hidden.
//!
//! It needs neither a valid configuration nor a daemon: only the list that the last good start left.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_blockio::{DeviceError, FileDevice, OpenOptions};
use farside_control::source::IfAbsent;
use farside_insert::stack;

use super::{Backing, List, Look, Places, have_udev_look};
use crate::node;
use crate::state_dir::Mark;

/// How long a daemon that is being started again and again, or is still at it, may take to serve a volume.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(250);

/// What was found of a volume.
enum Found {
    /// Its host has its tap, or has its disk already.
    Settled,
    /// Its disk is not there.
    Missing,
    /// Nobody serves it.
    Free(FileDevice),
    /// Somebody has its disk: a daemon that is about to serve it.
    Taken(DeviceError),
}

/// Decides for each volume, and says so. `config` is the daemon's configuration file; with `bare` every disk is shown, at once.
///
/// # Errors
/// Names the volumes whose disks stay hidden, and why.
pub fn run(config: &Path, bare: bool) -> anyhow::Result<()> {
    let places = Places::of(config);
    let list = List::load(&places.list)?;
    let until = Instant::now() + if bare { Duration::ZERO } else { PATIENCE };
    let mut hidden = Vec::new();
    for volume in &list.volumes {
        if let Err(error) = settle(volume, &list, &places, until, bare) {
            hidden.push(format!("volume {}: {error:#}", volume.name));
        }
    }
    match hidden.is_empty() {
        true => Ok(()),
        false => bail!("{}", hidden.join("\n")),
    }
}

fn settle(volume: &Backing, list: &List, places: &Places, until: Instant, bare: bool) -> anyhow::Result<()> {
    let disk = volume.path.display();
    let door = loop {
        let found = look(volume, places)?;
        let late = Instant::now() >= until;
        match found {
            // Its tap may be there without a server.
            Found::Settled if bare && !places.is_bare(&volume.name) => {
                return super::mark(&list.state_dir, volume).context("that its disk is used without Farside cannot be kept");
            }
            Found::Settled => return Ok(()),
            Found::Free(door) if late => break door,
            Found::Missing if late => bail!("{disk} is not there"),
            Found::Taken(error) if late => {
                if is_used(&volume.path) {
                    // † As a part of something that was put together before us, for one: LVM in the initramfs.
                    super::mark(&list.state_dir, volume).context("that its disk is used without Farside cannot be kept")?;
                }
                bail!("it is not served yet: {error}")
            }
            // † Not while it sleeps: the daemon wants the door.
            found => {
                drop(found);
                std::thread::sleep(POLL);
            }
        }
    };
    if volume.if_absent == IfAbsent::Refuse && !bare {
        bail!(
            "farsided does not serve it (journalctl -b -u farsided says why), and its policy is `refuse`: {disk} stays hidden, and what \
             is to be mounted from it is not. Mend that, then `systemctl restart farsided`; or use the disk without Farside, which \
             has it compared in full later: `farsided --unserved --bare`"
        );
    }
    let dir = volume.folder(&list.state_dir);
    // Its folder is never made here: where it is missing, the state directory is not mounted, or lost.
    Mark::TrackingLost.put(&dir, true).with_context(|| {
        format!(
            "{disk} stays hidden: that it is used without Farside cannot be kept, and what changes would never be compared. Mend the \
             state directory; if it is lost for good, remove {} and say `udevadm control --reload; udevadm trigger`",
            places.rules.display()
        )
    })?;
    places.put_note(&volume.name).with_context(|| format!("{disk} stays hidden: that it is used cannot be noted"))?;
    drop(door);
    have_udev_look(&volume.path, Look::Found).with_context(|| format!("udev is not told that {disk} may be shown"))?;
    eprintln!(
        "<4>volume {}: farsided does not serve it; {disk} is used without Farside until the next boot, and compared then",
        volume.name
    );
    Ok(())
}

/// Whether something of its host's holds a disk as it is.
fn is_used(device: &Path) -> bool {
    let held = |number: DevNumber| {
        let mut holders = std::fs::read_dir(format!("/sys/dev/block/{number}/holders")).into_iter().flatten();
        holders.next().is_some()
    };
    is_mounted(device) || DevNumber::at(device).is_ok_and(held)
}

fn look(volume: &Backing, places: &Places) -> anyhow::Result<Found> {
    if places.is_bare(&volume.name) || node::path(&volume.name).exists() {
        return Ok(Found::Settled);
    }
    match FileDevice::open(&volume.path, OpenOptions::at_once()) {
        Ok(door) => Ok(Found::Free(door)),
        Err(DeviceError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Found::Missing),
        Err(error @ DeviceError::Busy { .. }) => Ok(Found::Taken(error)),
        Err(error) => Err(error).context("its disk cannot be looked at"),
    }
}

/// Whether a device, or a part of it, is mounted as it is: what happens to it there passes no tap.
pub(crate) fn is_mounted(device: &Path) -> bool {
    let Ok(number) = DevNumber::at(device) else { return false };
    // A service does not see all of them.
    let host = std::fs::read_to_string("/proc/1/mountinfo");
    let mounts = host.or_else(|_| std::fs::read_to_string("/proc/self/mountinfo")).unwrap_or_default();
    let mounted = mounts.lines().filter_map(|line| DevNumber::parse(line.split(' ').nth(2)?));
    mounted.into_iter().any(|mounted| stack::rests_on(mounted, number) && !stack::rests_on_own_tap(mounted))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume whose disk is a file, which nobody has.
    fn place(dir: &Path, if_absent: IfAbsent) -> (Places, List) {
        let disk = dir.join("disk");
        std::fs::write(&disk, vec![0; 1 << 20]).expect("written");
        let volume = Backing {
            name: "no-such-volume-anywhere".parse().expect("a name"),
            group: "default".parse().expect("a name"),
            path: disk,
            if_absent,
            disk: None,
        };
        let places = Places { list: dir.join("boot.json"), rules: dir.join("x.rules"), notes: dir.join("bare") };
        (places, List { state_dir: dir.join("state"), volumes: vec![volume] })
    }

    fn decide(places: &Places, list: &List, bare: bool) -> anyhow::Result<()> {
        settle(&list.volumes[0], list, places, Instant::now(), bare)
    }

    #[test]
    fn what_cannot_be_marked_stays_hidden() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, list) = place(dir.path(), IfAbsent::Bare);
        for bare in [false, true] {
            let error = format!("{:#}", decide(&places, &list, bare).expect_err("there is no state directory"));
            assert!(error.contains("stays hidden") && error.contains("state directory"), "{error}");
            assert!(!places.is_bare(&list.volumes[0].name) && !dir.path().join("state").exists());
        }
    }

    #[test]
    fn the_policy_decides_and_a_person_above_it() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let (places, list) = place(dir.path(), IfAbsent::Refuse);
        let folder = dir.path().join("state/volumes/default/no-such-volume-anywhere");
        std::fs::create_dir_all(&folder).expect("made");
        let name = &list.volumes[0].name;
        let error = decide(&places, &list, false).expect_err("refused").to_string();
        assert!(error.contains("`refuse`") && error.contains("--unserved --bare"), "{error}");
        assert!(!places.is_bare(name) && !Mark::TrackingLost.is_set(&folder).expect("asked"));
        // Somebody has it: it is not shown either.
        let door = FileDevice::open(&list.volumes[0].path, OpenOptions::at_once()).expect("free");
        decide(&places, &list, true).expect_err("taken");
        assert!(!places.is_bare(name));
        drop(door);
        // A file is no device that udev could look at; it was noted before.
        decide(&places, &list, true).expect_err("udev is not told of a file");
        assert!(places.is_bare(name) && Mark::TrackingLost.is_set(&folder).expect("asked"));
        decide(&places, &list, false).expect("it is settled");
    }
}
