//! What a boot knows of the disks below protected volumes, before `farsided` serves them and without it. `docs/boot.md` tells
//! the whole story.
//!
//! | Where | What | Read by |
//! |---|---|---|
//! | `/etc/farside/boot.json` | the volumes, their disks and policies | [`unserved`], also where the configuration is not valid |
//! | `/etc/udev/rules.d/63-z-farside-backings.rules` | their disks, by what udev knows them by | udev: what is named there is hidden |
//! | `/run/farside/bare/NAME` | this disk is used without Farside in this boot | udev, which does not hide it then; the daemon |
//!
//! Invariants: a disk is hidden before it is served for the first time, and hidden or not is no matter of whether any program
//! of ours runs: rules are files. It is shown again only when its volume has left, or when it is durably marked that everything
//! must be compared. A disk is never hidden while somebody else uses it: that would have systemd unmount it. † Nor by a name that
//! another disk may have at the next boot, `/dev/sdb` for one: that may be the disk with the root file system then. A disk that
//! says nothing of itself is not hidden.
//!
//! Only the daemon of this host does that (its runtime directory is `/run/farside`), for block devices whose tap is a device.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_control::source::IfAbsent;
use farside_region::Name;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{Config, ConfigError, RUN_DIR, VolumeConfig, write_atomically};
use crate::locked;
use crate::state_dir::{Mark, volume_path};

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
    /// None: nothing tells it from others.
    #[serde(default)]
    disk: Option<Disk>,
}

/// A disk, or a partition of one, as udev knows it at every boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Disk {
    /// One of [`Disk::KEYS`].
    key: String,
    value: String,
    partition: Option<u32>,
}

impl Disk {
    /// The first of them that a device has is what it is known by.
    const KEYS: [&str; 5] = ["DM_UUID", "MD_UUID", "ID_WWN_WITH_EXTENSION", "ID_WWN", "ID_SERIAL"];

    /// What udev says of a device.
    fn of(device: &Path) -> Option<Self> {
        let mut ask = Command::new("udevadm");
        let output =
            ask.args(["info", "--query=property", "--name"]).arg(device).stderr(std::process::Stdio::null()).output().ok()?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(properties: &str) -> Option<Self> {
        let of = |wanted: &str| {
            let mut lines = properties.lines().filter_map(|line| line.split_once('='));
            lines.find(|(key, value)| *key == wanted && !value.is_empty()).map(|(_, value)| value.to_owned())
        };
        let (key, value) = Self::KEYS.iter().find_map(|key| Some((*key, of(key)?)))?;
        let partition = match of("DEVTYPE")?.as_str() {
            "partition" => Some(of("PARTN")?.parse().ok()?),
            _ => None,
        };
        Some(Self { key: key.to_owned(), value, partition })
    }

    /// What udev matches it by.
    fn matches(&self) -> String {
        let part = match self.partition {
            Some(number) => format!("ENV{{DEVTYPE}}==\"partition\", ENV{{PARTN}}==\"{number}\""),
            None => "ENV{DEVTYPE}==\"disk\"".to_owned(),
        };
        format!("{part}, ENV{{{}}}==\"{}\"", self.key, pattern(&self.value))
    }
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
        self.volumes.iter().filter_map(Backing::rule).for_each(|rule| text += &rule);
        text
    }
}

impl Backing {
    /// What is kept of its volume.
    fn folder(&self, state_dir: &Path) -> PathBuf {
        volume_path(state_dir, &self.group, &self.name)
    }

    fn rule(&self) -> Option<String> {
        let device = self.path.strip_prefix("/dev").ok()?.to_string_lossy();
        // The name by which it is configured stays.
        let link = match device.contains('/') {
            true => format!(", ENV{{FARSIDE_LINK}}=\"{}\"", pattern(&device)),
            false => String::new(),
        };
        let matches = self.disk.as_ref()?.matches();
        Some(format!("SUBSYSTEM==\"block\", {matches}, ENV{{FARSIDE_BACKING}}=\"{}\"{link}\n", self.name))
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
    let number = DevNumber::at(device)?;
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
    /// Who a disk is.
    disk_of: fn(&Path) -> Option<Disk>,
}

impl Backings {
    /// As the last daemon left them, without what is not configured any more.
    pub(crate) fn of(config: &Config) -> Self {
        let places = (config.source.runtime_dir() == Path::new(RUN_DIR)).then(|| Places::of(&config.path));
        Self::at(places, config, Disk::of)
    }

    fn at(places: Option<Places>, config: &Config, disk_of: fn(&Path) -> Option<Disk>) -> Self {
        let without = || Self { places: None, list: Mutex::default(), wanted: Mutex::default(), disk_of };
        let Some(places) = places else { return without() };
        let before = match List::load(&places.list) {
            Ok(before) => before,
            Err(error) => {
                let rules = places.rules.display();
                warn!("{error:#}: which disks are hidden stays as it is, until that file and {rules} are removed");
                return without();
            }
        };
        // What is configured keeps its entry, whatever of it was edited, until it is served. † A rule that is not there any more is
        // not made again: the disk may be in use by now, and hiding it would have it unmounted.
        let rules = std::fs::read_to_string(&places.rules).unwrap_or_default();
        let is_hidden = |backing: &Backing| backing.rule().is_none_or(|rule| rules.contains(&rule));
        let (mut kept, gone): (Vec<Backing>, Vec<Backing>) =
            before.volumes.into_iter().filter(is_hidden).partition(|backing| config.volumes.contains_key(&backing.name));
        let (mut shown, state_dir) = (Vec::new(), config.source.state_dir.clone());
        for backing in gone {
            match mark(&before.state_dir, &backing) {
                Ok(()) => shown.push(backing.path),
                Err(error) => {
                    let disk = backing.path.display();
                    warn!(volume = %backing.name, %error, "{disk} stays hidden: that it may be used now cannot be kept");
                    kept.push(backing);
                }
            }
        }
        let list = List { state_dir, volumes: kept };
        if let Err(error) = places.write(&list) {
            warn!("the disks of volumes that are not configured any more stay hidden: {error:#}");
        }
        for path in shown {
            let _ = have_udev_look(&path, Look::Found); // it may be gone, too
        }
        Self { places: Some(places), list: Mutex::new(list), wanted: Mutex::default(), disk_of }
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
        let (Some(places), Some(mut backing)) = (&self.places, entry(volume)) else { return Ok(()) };
        let name = &volume.name;
        self.refuse_bare(volume)?;
        backing.disk = (self.disk_of)(&volume.backing);
        if backing.disk.is_none() {
            let disk = volume.backing.display();
            warn!(volume = %name, "{disk} has no serial number or the like that udev knows: it is not hidden from its host at a boot");
        }
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
        disk: None,
    })
}

/// Has everything of a volume compared; one whose folder is gone has no past.
fn mark(state_dir: &Path, backing: &Backing) -> Result<(), ConfigError> {
    let dir = backing.folder(state_dir);
    if dir.is_dir() { Mark::TrackingLost.put(&dir, true) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, volumes: &str) -> Config {
        let path = dir.join("farsided.toml");
        std::fs::write(&path, format!("[source]\nname='h'\n{volumes}")).expect("written");
        Config::load(&path).expect("valid")
    }

    /// The device's own name is its serial number.
    fn disk_of(device: &Path) -> Option<Disk> {
        let value = device.file_name()?.to_string_lossy().into_owned();
        Some(Disk { key: "ID_SERIAL".into(), value, partition: None })
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
        let backings = Backings::at(Some(places(dir.path())), &two, disk_of);
        assert_eq!(rules().lines().count(), 1, "nothing is hidden that was never served: {}", rules());
        two.volumes.values().for_each(|volume| backings.take(volume).expect("taken"));
        assert!(rules().contains("ENV{ID_SERIAL}==\"nothing-a\", ENV{FARSIDE_BACKING}=\"a\"\n"), "{}", rules());
        let b = "ENV{ID_SERIAL}==\"x?y?z\", ENV{FARSIDE_BACKING}=\"b\", ENV{FARSIDE_LINK}=\"disk/by-id/x?y?z\"\n";
        assert!(rules().contains(b), "{}", rules());
        assert_eq!(rules().lines().count(), 3, "{}", rules());
        let list = List::load(&dir.path().join(LIST)).expect("whole");
        assert_eq!(
            (list.volumes.len(), list.volumes[0].if_absent, list.volumes[1].if_absent),
            (2, IfAbsent::Refuse, IfAbsent::Bare)
        );
        // The next daemon finds what this one left, but for what was taken out of the configuration meanwhile.
        drop(backings);
        let one = config(dir.path(), &TWO[TWO.find("[[volume]]\nname='b'").expect("there")..]);
        let backings = Backings::at(Some(places(dir.path())), &one, disk_of);
        assert!(!rules().contains("nothing-a") && rules().contains("by-id/x"), "{}", rules());
        backings.let_go(&"b".parse().expect("a name"));
        assert_eq!(rules().lines().count(), 1, "{}", rules());
    }

    #[test]
    fn a_disk_is_hidden_by_what_it_is_and_never_by_where_it_was_found() {
        let disk = "DEVNAME=/dev/sdb\nDEVTYPE=disk\nID_SERIAL=X 1\nID_WWN=0x5\n";
        let rule = |disk| Some(Disk::parse(disk)?.matches());
        assert_eq!(rule(disk).as_deref(), Some("ENV{DEVTYPE}==\"disk\", ENV{ID_WWN}==\"0x5\""));
        let part = "DEVTYPE=partition\nPARTN=2\nID_WWN=\nID_SERIAL=X 1\n";
        assert_eq!(rule(part).as_deref(), Some("ENV{DEVTYPE}==\"partition\", ENV{PARTN}==\"2\", ENV{ID_SERIAL}==\"X?1\""));
        assert_eq!(rule("DEVTYPE=disk\nID_PATH=pci-1\n"), None);
        // Neither is it written down of one that says nothing of itself.
        let dir = tempfile::tempdir().expect("temp dir");
        let two = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &two, |_| None);
        two.volumes.values().for_each(|volume| backings.take(volume).expect("taken"));
        let rules = std::fs::read_to_string(dir.path().join("x.rules")).expect("written");
        assert_eq!(rules.lines().count(), 1, "{rules}");
    }

    #[test]
    fn a_start_shows_no_disk_that_is_not_marked_and_hides_none_again() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).unwrap_or_default();
        let state = format!("state_dir='{}'\n", dir.path().join("state").display());
        let two = config(dir.path(), &format!("{state}{TWO}"));
        let folder = dir.path().join("state/volumes/default/a");
        std::fs::create_dir_all(&folder).expect("made");
        let backings = Backings::at(Some(places(dir.path())), &two, disk_of);
        two.volumes.values().for_each(|volume| backings.take(volume).expect("taken"));
        // Edited, perhaps wrongly: it stays hidden until it is served.
        let edited = config(dir.path(), &format!("{state}{}", TWO.replace("nothing-a", "elsewhere")));
        let _ = Backings::at(Some(places(dir.path())), &edited, disk_of);
        assert!(rules().contains("nothing-a"), "{}", rules());
        // Not configured any more.
        let one = config(dir.path(), &format!("{state}{}", &TWO[TWO.find("[[volume]]\nname='b'").expect("there")..]));
        let _ = Backings::at(Some(places(dir.path())), &one, disk_of);
        assert!(!rules().contains("nothing-a") && Mark::TrackingLost.is_set(&folder).expect("asked"), "{}", rules());
        // The packages were removed, and the disk is mounted by now.
        std::fs::remove_file(dir.path().join("x.rules")).expect("removed");
        let _ = Backings::at(Some(places(dir.path())), &one, disk_of);
        assert!(!rules().contains("by-id/x"), "{}", rules());
        // What cannot be read changes nothing.
        std::fs::write(dir.path().join(LIST), "{").expect("written");
        std::fs::write(dir.path().join("x.rules"), "as it was").expect("written");
        let backings = Backings::at(Some(places(dir.path())), &two, disk_of);
        two.volumes.values().for_each(|volume| backings.take(volume).expect("nothing is hidden"));
        assert_eq!(rules(), "as it was");
    }

    #[test]
    fn a_disk_that_is_used_bare_is_taken_back_only_when_a_person_says_so() {
        let dir = tempfile::tempdir().expect("temp dir");
        let config = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &config, disk_of);
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
