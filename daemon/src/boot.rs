//! What a boot knows of the disks below protected volumes, before `farsided` serves them and without it. `docs/boot.md` tells
//! the whole story.
//!
//! | Where | What | Read by |
//! |---|---|---|
//! | `/etc/farside/boot.json` | the volumes, their disks and policies | [`unserved`], also where the configuration is not valid |
//! | `/etc/udev/rules.d/63-z-farside-backings.rules` | their disks | udev: what is named there is hidden |
//! | `/run/farside/bare/NAME` | this disk is used without Farside in this boot | udev, which does not hide it then; the daemon |
//!
//! Invariants: a disk is hidden before it is served for the first time, and hidden or not is no matter of whether any program
//! of ours runs: rules are files. It is shown again only when its volume has left, or when it is durably marked that everything
//! must be compared. A disk is never hidden while somebody else uses it: that would have systemd unmount it.
//!
//! Only the daemon of this host does that (its runtime directory is `/run/farside`), for block devices whose tap is a device.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_control::source::IfAbsent;
use farside_region::Name;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{Config, RUN_DIR, VolumeConfig, write_atomically};

pub mod order;
pub mod unserved;

const LIST: &str = "boot.json";
const RULES: &str = "/etc/udev/rules.d/63-z-farside-backings.rules";
const NOTES: &str = "bare";

/// What is written down of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Backing {
    name: Name,
    group: Name,
    path: PathBuf,
    if_absent: IfAbsent,
}

/// `boot.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct List {
    state_dir: PathBuf,
    volumes: Vec<Backing>,
}

impl List {
    /// Empty where there is none.
    fn load(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// What udev is to read.
    fn rules(&self) -> String {
        let mut text = String::from(
            "# Written by farsided: the disks below protected volumes, which 63-z-farside-hide.rules hides. Do not edit.\n",
        );
        for Backing { name, path, .. } in &self.volumes {
            let Ok(device) = path.strip_prefix("/dev") else { continue };
            let device = pattern(&device.to_string_lossy());
            text += &match device.contains('/') {
                false => format!("SUBSYSTEM==\"block\", KERNEL==\"{device}\", ENV{{FARSIDE_BACKING}}=\"{name}\"\n"),
                true => format!(
                    "SUBSYSTEM==\"block\", SYMLINK==\"{device}\", ENV{{FARSIDE_BACKING}}=\"{name}\", ENV{{FARSIDE_LINK}}=\"{device}\"\n"
                ),
            };
        }
        text
    }
}

/// What udev matches names with: any character that means something to it stands for any character.
fn pattern(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:+=@#%,~".contains(c);
    name.chars().map(|c| if plain(c) { c } else { '?' }).collect()
}

/// Where these things are.
#[derive(Debug)]
struct Places {
    list: PathBuf,
    rules: PathBuf,
    notes: PathBuf,
}

impl Places {
    fn of(config: &Path) -> Self {
        Self { list: config.with_file_name(LIST), rules: RULES.into(), notes: Path::new(RUN_DIR).join(NOTES) }
    }

    /// Durably, before it is relied on.
    fn write(&self, list: &List) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(list).context("a list of names is JSON")? + "\n";
        if std::fs::read_to_string(&self.list).is_ok_and(|found| found == text) && self.holds_rules_of(list) {
            return Ok(());
        }
        write_atomically(&self.list, &text)?;
        if self.holds_rules_of(list) || !self.rules.parent().is_some_and(Path::is_dir) {
            return Ok(()); // or there is no udev
        }
        write_atomically(&self.rules, &list.rules())?;
        read_rules_again();
        Ok(())
    }

    fn holds_rules_of(&self, list: &List) -> bool {
        std::fs::read_to_string(&self.rules).is_ok_and(|found| found == list.rules())
    }

    fn note(&self, name: &Name) -> PathBuf {
        self.notes.join(name.as_str())
    }

    fn is_bare(&self, name: &Name) -> bool {
        self.note(name).exists()
    }

    /// From now on udev shows the disk, until the next boot or until it is taken back.
    fn put_note(&self, name: &Name) -> io::Result<()> {
        std::fs::create_dir_all(&self.notes)?;
        std::fs::write(self.note(name), "")
    }

    fn remove_note(&self, name: &Name) {
        match std::fs::remove_file(self.note(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(volume = %name, %error, "its disk is still shown to the host beside its tap");
            }
            _ => {}
        }
    }
}

fn read_rules_again() {
    if !Path::new("/run/udev/control").exists() {
        return;
    }
    match Command::new("udevadm").args(["control", "--reload"]).status() {
        Ok(status) if status.success() => {}
        Ok(status) => warn!("udev does not read its rules again at once: udevadm {status}"),
        Err(error) => warn!("udev does not read its rules again at once: {error}"),
    }
}

/// Why udev is to look at a device again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// What it shows has changed.
    Changed,
    /// It may be used, as if it had just been found: LVM heeds nothing less.
    Found,
}

/// Has udev look at a device and its partitions again.
pub(crate) fn have_udev_look(device: &Path, why: Look) -> io::Result<()> {
    let action = match why {
        Look::Changed => "change",
        Look::Found => "add",
    };
    let number = DevNumber::of(std::fs::metadata(device)?.rdev());
    let folder = std::fs::canonicalize(format!("/sys/dev/block/{number}"))?;
    std::fs::write(folder.join("uevent"), action)?;
    for entry in std::fs::read_dir(&folder)?.flatten() {
        if entry.path().join("partition").exists() {
            std::fs::write(entry.path().join("uevent"), action)?;
        }
    }
    Ok(())
}

/// What the daemon keeps of it.
#[derive(Debug)]
pub(crate) struct Backings {
    /// None: this is not the daemon of the host.
    places: Option<Places>,
    list: Mutex<List>,
    /// Volumes that a person wants back from their hosts.
    wanted: Mutex<BTreeSet<Name>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // what is on disk is the truth, and is written whole
}

impl Backings {
    /// As the last daemon left them, without what is not configured any more.
    pub(crate) fn of(config: &Config) -> Self {
        let places = (config.source.runtime_dir() == Path::new(RUN_DIR)).then(|| Places::of(&config.path));
        Self::at(places, config)
    }

    fn at(places: Option<Places>, config: &Config) -> Self {
        let Some(places) = places else {
            return Self { places: None, list: Mutex::default(), wanted: Mutex::default() };
        };
        let before = List::load(&places.list).unwrap_or_else(|error| {
            warn!("{error:#}: it is made anew as volumes are served");
            List::default()
        });
        let stays = |backing: &Backing| config.volumes.get(&backing.name).is_some_and(|v| entry(v).as_ref() == Some(backing));
        let (kept, gone): (Vec<Backing>, Vec<Backing>) = before.volumes.into_iter().partition(stays);
        let list = List { state_dir: config.source.state_dir.clone(), volumes: kept };
        if let Err(error) = places.write(&list) {
            warn!("the disks of volumes that are not configured any more stay hidden: {error:#}");
        }
        for backing in gone {
            let _ = have_udev_look(&backing.path, Look::Found); // it may be gone, too
        }
        Self { places: Some(places), list: Mutex::new(list), wanted: Mutex::default() }
    }

    /// Before the volume's disk is touched: whoever checks or mounts it at this moment must not find it taken.
    ///
    /// # Errors
    /// When its host uses it without Farside in this boot, by policy.
    pub(crate) fn refuse_bare(&self, volume: &VolumeConfig) -> anyhow::Result<()> {
        let Some(places) = &self.places else { return Ok(()) };
        if places.is_bare(&volume.name) && !locked(&self.wanted).contains(&volume.name) {
            let disk = volume.backing.display();
            bail!(
                "{disk} is used without Farside since this host was booted, because farsided did not serve it then: unmount it, then \
                 `farside reload`; everything is compared then. The next boot does that by itself"
            );
        }
        Ok(())
    }

    /// The volume's disk is ours, and about to be served: nobody is shown it from now on.
    ///
    /// # Errors
    /// When its host uses it without Farside in this boot, by policy; or when it cannot be hidden.
    pub(crate) fn take(&self, volume: &VolumeConfig) -> anyhow::Result<()> {
        let (Some(places), Some(backing)) = (&self.places, entry(volume)) else { return Ok(()) };
        let name = &volume.name;
        self.refuse_bare(volume)?;
        let mut list = locked(&self.list);
        list.volumes.retain(|other| other.name != *name);
        list.volumes.push(backing);
        list.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        places.write(&list).context("what hides its disk from its host after a boot cannot be written")?;
        places.remove_note(name);
        have_udev_look(&volume.backing, Look::Changed).unwrap_or_else(|error| warn!(volume = %name, %error, "udev was not told"));
        Ok(())
    }

    /// The volume has left, and its disk is nobody's: its host may see it again.
    pub(crate) fn let_go(&self, name: &Name) {
        let Some(places) = &self.places else { return };
        let mut list = locked(&self.list);
        let Some(at) = list.volumes.iter().position(|backing| backing.name == *name) else { return };
        let backing = list.volumes.remove(at);
        if let Err(error) = places.write(&list) {
            warn!(volume = %name, "its disk stays hidden: {error:#}");
        }
        let _ = have_udev_look(&backing.path, Look::Found); // it may be gone
    }

    /// A person says that this volume's disk is free.
    pub(crate) fn want_back(&self, name: &Name) {
        locked(&self.wanted).insert(name.clone());
    }
}

/// What is written down of a volume; none of one that hides nothing.
fn entry(volume: &VolumeConfig) -> Option<Backing> {
    let hides = volume.tap.is_device() && !volume.insert && volume.backing.starts_with("/dev");
    hides.then(|| Backing {
        name: volume.name.clone(),
        group: volume.group.clone(),
        path: volume.backing.clone(),
        if_absent: volume.if_absent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, volumes: &str) -> Config {
        let path = dir.join("farsided.toml");
        std::fs::write(&path, format!("[source]\nname='h'\n{volumes}")).expect("written");
        Config::load(&path).expect("valid")
    }

    fn places(dir: &Path) -> Places {
        Places { list: dir.join(LIST), rules: dir.join("x.rules"), notes: dir.join(NOTES) }
    }

    const TWO: &str = "[[volume]]\nname='a'\nbacking='/dev/nothing-a'\ntap='ublk'\nif_absent='refuse'\n\
                       [[volume]]\nname='b'\nbacking='/dev/disk/by-id/x y\"z'\ntap='nbd-device'\n\
                       [[volume]]\nname='c'\nbacking='/dev/c'\ninsert=true\n[[volume]]\nname='d'\nbacking='/srv/d.img'\n";

    #[test]
    fn what_is_served_as_a_device_is_hidden_before_and_shown_after() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).unwrap_or_default();
        let two = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &two);
        assert_eq!(rules().lines().count(), 1, "nothing is hidden that was never served: {}", rules());
        two.volumes.values().for_each(|volume| backings.take(volume).expect("taken"));
        assert!(rules().contains("KERNEL==\"nothing-a\", ENV{FARSIDE_BACKING}=\"a\""), "{}", rules());
        assert!(rules().contains("SYMLINK==\"disk/by-id/x?y?z\", ENV{FARSIDE_BACKING}=\"b\""), "{}", rules());
        assert_eq!(rules().lines().count(), 3, "{}", rules());
        let list = List::load(&dir.path().join(LIST)).expect("whole");
        assert_eq!(
            (list.volumes.len(), list.volumes[0].if_absent, list.volumes[1].if_absent),
            (2, IfAbsent::Refuse, IfAbsent::Bare)
        );
        // The next daemon finds what this one left, but for what was taken out of the configuration meanwhile.
        drop(backings);
        let one = config(dir.path(), &TWO[TWO.find("[[volume]]\nname='b'").expect("there")..]);
        let backings = Backings::at(Some(places(dir.path())), &one);
        assert!(!rules().contains("nothing-a") && rules().contains("by-id/x"), "{}", rules());
        backings.let_go(&"b".parse().expect("a name"));
        assert_eq!(rules().lines().count(), 1, "{}", rules());
    }

    #[test]
    fn a_disk_that_is_used_bare_is_taken_back_only_when_a_person_says_so() {
        let dir = tempfile::tempdir().expect("temp dir");
        let config = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &config);
        let volume = config.volumes.values().next().expect("one");
        places(dir.path()).put_note(&volume.name).expect("noted");
        let error = backings.take(volume).expect_err("it is in use").to_string();
        assert!(error.contains("without Farside") && error.contains("farside reload"), "{error}");
        assert!(
            !dir.path().join("x.rules").exists()
                || !std::fs::read_to_string(dir.path().join("x.rules")).expect("read").contains("nothing-a")
        );
        backings.want_back(&volume.name);
        backings.take(volume).expect("taken back");
        assert!(!places(dir.path()).is_bare(&volume.name));
    }
}
