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

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_control::source::IfAbsent;
use farside_region::{Name, VolumeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::config::{Config, ConfigError, RUN_DIR, VolumeConfig, write_atomically};
use crate::failback::{Asked, disks_of, stays_hidden};
use crate::state_dir::{Mark, volume_path};
use crate::{locked, tap};

pub mod order;
pub mod unserved;

const LIST: &str = "boot.json";
const RULES: &str = "/etc/udev/rules.d/63-z-farside-backings.rules";
const NOTES: &str = "bare";
/// In the runtime directory: locked by the daemon of the host.
const LOCK: &str = "host.lock";
/// A program that another daemon was just starting may have a copy of it for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_POLL: Duration = Duration::from_millis(20);
const UDEV_CONTROL: &str = "/run/udev/control";
/// What udev knows of each device.
const UDEV_DATA: &str = "/run/udev/data";
const SYS: &str = "/sys/dev/block";

/// Folders of `/dev/disk` whose links say what is on a disk.
pub(crate) const CONTENT: [&str; 4] = ["by-uuid", "by-label", "by-partuuid", "by-partlabel"];
const LINKS_MAX: usize = 16;

/// How long udev may take to look at a disk that is there.
const UDEV_WAIT: Duration = Duration::from_secs(10);
const UDEV_POLL: Duration = Duration::from_millis(50);

/// What is written down of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Backing {
    name: Name,
    group: Name,
    path: PathBuf,
    if_absent: IfAbsent,
    /// Of the volume's identity, if it is not this host's.
    #[serde(default)]
    source: Option<Name>,
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

/// Why no rule can name a disk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum Unknown {
    /// It has not looked at it.
    #[error("udev has not looked at it yet")]
    Unseen,
    #[error("it has no serial number or the like that udev knows")]
    Nameless,
    /// A rule would hide another one, too.
    #[error("{0} says of itself that it is the same disk")]
    Alike(String),
}

impl Disk {
    /// The first of them that a device has is what it is known by.
    const KEYS: [&str; 5] = ["DM_UUID", "MD_UUID", "ID_WWN_WITH_EXTENSION", "ID_WWN", "ID_SERIAL"];

    /// What udev says of a device, once it has looked at it: that is waited for. † The kernel makes a node before udev knows
    /// anything of its disk.
    fn of(device: &Path) -> Result<Self, Unknown> {
        let number = DevNumber::at(device).map_err(|_| Unknown::Unseen)?;
        let until = Instant::now() + UDEV_WAIT;
        while !is_seen(number) {
            if !Path::new(UDEV_CONTROL).exists() || Instant::now() >= until {
                return Err(Unknown::Unseen);
            }
            std::thread::sleep(UDEV_POLL);
        }
        let mut ask = Command::new("udevadm");
        let output = ask.args(["info", "--query=property", "--name"]).arg(device).stderr(std::process::Stdio::null()).output();
        let output = output.map_err(|_| Unknown::Unseen)?;
        let disk = Self::parse(&String::from_utf8_lossy(&output.stdout)).ok_or(Unknown::Nameless)?;
        match disk.devices(Path::new(UDEV_DATA), Path::new(SYS)).into_iter().find(|other| *other != number) {
            Some(other) => Err(Unknown::Alike(format!("device {other}"))),
            None => Ok(disk),
        }
    }

    /// The devices that udev would take for this disk.
    fn devices(&self, data: &Path, sys: &Path) -> Vec<DevNumber> {
        let line = format!("E:{}={}", self.key, self.value);
        let is_it = |number: &DevNumber| {
            let known = std::fs::read_to_string(data.join(format!("b{number}"))).unwrap_or_default();
            let part = std::fs::read_to_string(sys.join(number.to_string()).join("partition")).ok();
            known.lines().any(|known| known == line) && part.and_then(|part| part.trim().parse().ok()) == self.partition
        };
        // † What udev knows of a device may outlive it.
        let numbers = std::fs::read_dir(sys).into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| DevNumber::parse(entry.file_name().to_str()?));
        numbers.filter(is_it).collect()
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
    /// Of the volumes' identities.
    #[serde(default)]
    source: Option<Name>,
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

    /// The groups of all volumes, and their disks.
    fn disks(&self) -> Vec<(Name, PathBuf)> {
        self.volumes.iter().map(|backing| (backing.group.clone(), backing.path.clone())).collect()
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

/// Names under which volumes were made, as the list beside a configuration says them.
pub(crate) fn sources(config: &Path) -> Vec<Name> {
    let list = List::load(&config.with_file_name(LIST)).unwrap_or_default();
    list.source.into_iter().chain(list.volumes.into_iter().filter_map(|backing| backing.source)).collect()
}

impl Backing {
    /// What is kept of its volume.
    fn folder(&self, state_dir: &Path) -> PathBuf {
        volume_path(state_dir, &self.group, &self.name)
    }

    /// Whether a failback has it is asked; these are all disks that are known.
    fn asked<'a>(&'a self, all: &'a [(Name, PathBuf)]) -> Asked<'a> {
        Asked { group: &self.group, volume: &self.name, backing: &self.path, all }
    }

    fn id(&self, source: &Name) -> VolumeId {
        farside_ledger::volume_id(self.source.as_ref().unwrap_or(source), &self.group, &self.name)
    }

    fn rule(&self) -> Option<String> {
        let device = self.path.strip_prefix("/dev").ok()?.to_string_lossy();
        // The name by which it is configured stays.
        let link = match device.contains('/') {
            true => format!(", ENV{{FARSIDE_LINK}}=\"{}\"", pattern(&device)),
            false => String::new(),
        };
        let matches = self.disk.as_ref()?.matches();
        Some(format!("SUBSYSTEM==\"block\", {matches}, {}{link}\n", names(&self.name)))
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
        // † No rule is ever there of which neither the list before nor the one to come knows: by such a one, a daemon takes them for another's.
        let rules = std::fs::read_to_string(&self.rules).unwrap_or_default();
        let goes = named_in(&rules).any(|name| list.volumes.iter().all(|backing| backing.name.as_str() != name));
        if goes {
            self.write_rules(list)?;
        }
        write_atomically(&self.list, &text)?;
        self.write_rules(list)
    }

    fn write_rules(&self, list: &List) -> anyhow::Result<()> {
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
    if !Path::new(UDEV_CONTROL).exists() {
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

/// What udev knows of a device.
fn udev_data(number: DevNumber) -> String {
    std::fs::read_to_string(Path::new(UDEV_DATA).join(format!("b{number}"))).unwrap_or_default()
}

/// Whether udev has looked at a device, with all its rules.
fn is_seen(number: DevNumber) -> bool {
    udev_data(number).lines().any(|line| line.starts_with("I:"))
}

/// Whether udev shows a device as this volume's already.
pub(crate) fn is_known_as(number: DevNumber, volume: &Name) -> bool {
    let name = format!("E:FARSIDE_NAME={volume}");
    let known = udev_data(number);
    known.lines().any(|line| line == name) && !known.lines().any(|line| line.starts_with("E:FARSIDE_INSERTED="))
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

/// What is asked of the host.
#[derive(Clone, Copy, Debug)]
struct Host {
    /// Who a disk is.
    disk_of: fn(&Path) -> Result<Disk, Unknown>,
    /// Another disk than the one at this path, in use as it is, that a rule for this one would hide.
    mistaken: fn(&Disk, &Path) -> Option<DevNumber>,
    /// Ends the device that shows a volume, unless somebody uses it; see [`tap::end`].
    end_tap: fn(&Path, VolumeId, &Name, &Path) -> anyhow::Result<()>,
}

impl Host {
    const REAL: Self = Self { disk_of: Disk::of, mistaken, end_tap: tap::end };
}

fn mistaken(disk: &Disk, path: &Path) -> Option<DevNumber> {
    let own = DevNumber::at(path).ok()?;
    let mut alike = disk.devices(Path::new(UDEV_DATA), Path::new(SYS)).into_iter();
    alike.find(|other| *other != own && unserved::is_in_use(*other))
}

/// None: another daemon has it, also after a while.
fn lock_host(run_dir: &Path, patience: Duration) -> io::Result<Option<File>> {
    std::fs::create_dir_all(run_dir)?;
    let file = File::options().create(true).truncate(false).write(true).open(run_dir.join(LOCK))?;
    let until = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return Ok(None),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
        }
    }
}

/// Whether the daemon of the host runs, or that cannot be told.
pub(crate) fn is_host_served() -> bool {
    is_locked(Path::new(RUN_DIR))
}

fn is_locked(run_dir: &Path) -> bool {
    match File::open(run_dir.join(LOCK)) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// What the daemon keeps of it.
#[derive(Debug)]
pub(crate) struct Backings {
    /// None: this is not the daemon of the host.
    places: Option<Places>,
    source: Name,
    list: Mutex<List>,
    /// Volumes that a person wants back from their hosts.
    wanted: Mutex<BTreeSet<Name>>,
    /// Why a served disk is seen by its host at a boot.
    seen: Mutex<BTreeMap<Name, String>>,
    host: Host,
    /// Held as long as this is the daemon of the host.
    lock: Option<File>,
}

impl Backings {
    /// As the last daemon left them, without what is not configured any more.
    pub(crate) fn of(config: &Config) -> Self {
        let run_dir = Path::new(RUN_DIR);
        if config.source.runtime_dir() != run_dir {
            return Self::at(None, config, Host::REAL);
        }
        // † Before a byte is written: one of another configuration has another list, and would have the disks of all others shown at the next boot.
        match lock_host(run_dir, LOCK_WAIT) {
            Ok(None) => {
                warn!("another farsided is the daemon of this host: which disks are hidden is its matter");
                Self::at(None, config, Host::REAL)
            }
            lock => {
                let lock = lock.unwrap_or_else(|error| {
                    warn!("{}: {error}: a second farsided would not be noticed", run_dir.join(LOCK).display());
                    None
                });
                Self { lock, ..Self::at(Some(Places::of(&config.path)), config, Host::REAL) }
            }
        }
    }

    fn at(places: Option<Places>, config: &Config, host: Host) -> Self {
        let source = config.source.name.clone();
        let with = |places, list| {
            let (wanted, seen) = (Mutex::default(), Mutex::default());
            Self { places, source: source.clone(), list: Mutex::new(list), wanted, seen, host, lock: None }
        };
        let Some(places) = places else { return with(None, List::default()) };
        // † Rules that nobody can read are not gone: without their entries the next boot would have their disks mounted past their taps.
        let rules = match std::fs::read(&places.rules) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            rules => rules.with_context(|| format!("cannot read {}", places.rules.display())),
        };
        let (before, rules) = match List::load(&places.list).and_then(|before| Ok((before, rules?))) {
            Ok((before, rules)) => (before, String::from_utf8_lossy(&rules).into_owned()),
            Err(error) => {
                let rules = places.rules.display();
                warn!("{error:#}: which disks are hidden stays as it is, until that file and {rules} are removed");
                return with(None, List::default());
            }
        };
        // † One that was started by hand with another configuration would have them shown at the next boot, and nobody would compare them.
        let is_known = |name: &&str| {
            before.volumes.iter().any(|backing| backing.name.as_str() == *name)
                || config.volumes.keys().any(|volume| volume.as_str() == *name)
        };
        let strangers: Vec<&str> = named_in(&rules).filter(|name| !is_known(name)).collect();
        if !strangers.is_empty() {
            let (file, list) = (places.rules.display(), places.list.display());
            warn!(
                "{file} hides the disks of volumes that neither {} nor {list} knows ({}): which disks are hidden is another configuration's \
                 matter. If there is none any more, remove that file",
                config.path.display(),
                strangers.join(", ")
            );
            return with(None, List::default());
        }
        // What is configured keeps its entry, whatever of it was edited, until it is served. † A rule that is not there any more is
        // not made again: the disk may be in use by now, and hiding it would have it unmounted. (A rule that another version
        // worded is one, too.)
        let mut all = before.disks();
        all.extend(disks_of(config));
        let is_hidden = |backing: &Backing| backing.disk.is_none() || rules.contains(&names(&backing.name));
        let (mut kept, gone): (Vec<Backing>, Vec<Backing>) = before.volumes.into_iter().filter(is_hidden).partition(|backing| {
            // † A disk that may hold a part of a point is nobody's, whatever became of the configuration. The device that a tap is put under is its
            // host's, unless that is so.
            let hides = config.volumes.get(&backing.name).is_some_and(|volume| !volume.insert);
            hides || stays_hidden(&before.state_dir, backing.asked(&all))
        });
        let mut shown = Vec::new();
        for backing in &mut kept {
            let mistaken = backing.disk.as_ref().and_then(|disk| (host.mistaken)(disk, &backing.path));
            if let Some(other) = mistaken
                && mark(&before.state_dir, backing).is_ok()
            {
                let disk = backing.path.display();
                warn!(volume = %backing.name, "{disk} is not hidden: device {other}, which is in use, says of itself that it is the same disk");
                backing.disk = None;
            }
        }
        for backing in gone {
            match may_show(host, &source, &before.state_dir, &backing) {
                Ok(()) => shown.push(backing.path),
                Err(error) => {
                    let disk = backing.path.display();
                    warn!(volume = %backing.name, "it is not configured any more, and {disk} stays hidden until the next start: {error:#}");
                    kept.push(backing);
                }
            }
        }
        let list = List { state_dir: config.source.state_dir.clone(), source: Some(source.clone()), volumes: kept };
        if let Err(error) = places.write(&list) {
            warn!("the disks of volumes that are not configured any more stay hidden: {error:#}");
        }
        for path in shown {
            let _ = have_udev_look(&path, Look::Found); // it may be gone, too
        }
        with(Some(places), list)
    }

    /// Whether this is the daemon of the host: what no volume has is its to take away.
    pub(crate) fn is_of_the_host(&self) -> bool {
        self.places.is_some() || self.lock.is_some()
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
    pub(crate) fn take(&self, volume: &VolumeConfig, source: &Name) -> anyhow::Result<()> {
        let (Some(places), Some(mut backing)) = (&self.places, entry(volume, source)) else { return Ok(()) };
        let name = &volume.name;
        self.refuse_bare(volume)?;
        let known = (self.host.disk_of)(&volume.backing);
        let mut list = locked(&self.list);
        locked(&self.seen).remove(name);
        backing.disk = match known {
            Ok(disk) => Some(disk),
            Err(why) => {
                // † What udev does not know yet takes nothing away from what it knew.
                let is_it = |other: &&Backing| why == Unknown::Unseen && other.name == *name && other.path == volume.backing;
                let before = list.volumes.iter().find(is_it).and_then(|before| before.disk.clone());
                if before.is_none() {
                    let disk = volume.backing.display();
                    warn!(volume = %name, "{disk} is not hidden from its host at a boot: {why}");
                    if why != Unknown::Unseen {
                        locked(&self.seen).insert(name.clone(), format!("{disk} is not hidden from its host at a boot: {why}"));
                    }
                }
                before
            }
        };
        list.volumes.retain(|other| other.name != *name);
        list.volumes.push(backing);
        list.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        places.write(&list).context("what hides its disk from its host after a boot cannot be written")?;
        places.remove_note(name);
        locked(&self.wanted).remove(name);
        have_udev_look(&volume.backing, Look::Changed).unwrap_or_else(|error| warn!(volume = %name, %error, "udev was not told"));
        Ok(())
    }

    /// Before a disk is taken whose host mounts it by its own name at every boot: that no boot would see it.
    ///
    /// # Errors
    /// When nothing tells udev which it is.
    pub(crate) fn refuse_nameless(&self, disk: &Path) -> anyhow::Result<()> {
        if self.places.is_none() {
            return Ok(());
        }
        match (self.host.disk_of)(disk) {
            // Where there is no udev, or it is late, it is hidden by what is known of it, or its host sees all disks in any case.
            Ok(_) | Err(Unknown::Unseen) => Ok(()),
            Err(why) => bail!("{} could not be hidden from its host at a boot: {why}", disk.display()),
        }
    }

    /// The volume has left, and its disk is nobody's: its host may see it again. Nobody opens the volume meanwhile.
    pub(crate) fn let_go(&self, name: &Name) {
        let Some(places) = &self.places else { return };
        let (found, state_dir) = {
            let list = locked(&self.list);
            (list.volumes.iter().find(|backing| backing.name == *name).cloned(), list.state_dir.clone())
        };
        let Some(backing) = found else { return };
        // † With nothing locked: others wait for the list, and a device may be long in ending.
        if let Err(error) = may_show(self.host, &self.source, &state_dir, &backing) {
            let disk = backing.path.display();
            warn!(volume = %name, "{disk} stays hidden until the next start: {error:#}");
            return;
        }
        let mut list = locked(&self.list);
        list.volumes.retain(|other| *other != backing);
        if let Err(error) = places.write(&list) {
            warn!(volume = %name, "its disk stays hidden: {error:#}");
        }
        let _ = have_udev_look(&backing.path, Look::Found); // it may be gone
    }

    /// What a person said held for the opening that has failed by now: the disk may be its host's.
    pub(crate) fn want_no_more(&self, name: &Name) {
        locked(&self.wanted).remove(name);
    }

    /// Why a served volume's disk is seen by its host at a boot; `None`: it is not.
    pub(crate) fn seen(&self, name: &Name) -> Option<String> {
        locked(&self.seen).get(name).cloned()
    }

    /// A person says that this volume's disk is free.
    pub(crate) fn want_back(&self, name: &Name) {
        locked(&self.wanted).insert(name.clone());
    }
}

/// What is written down of a volume; none of one that hides nothing.
fn entry(volume: &VolumeConfig, source: &Name) -> Option<Backing> {
    let hides = volume.tap.is_device() && !volume.insert && volume.backing.starts_with("/dev");
    hides.then(|| Backing {
        name: volume.name.clone(),
        group: volume.group.clone(),
        path: volume.backing.clone(),
        if_absent: volume.if_absent,
        source: Some(source.clone()),
        disk: None,
    })
}

/// Before the disk of a volume that left is seen again.
fn may_show(host: Host, source: &Name, state_dir: &Path, backing: &Backing) -> anyhow::Result<()> {
    mark(state_dir, backing).context("that it may be used from now on cannot be kept")?;
    (host.end_tap)(&backing.folder(state_dir), backing.id(source), &backing.name, Path::new(RUN_DIR))
}

/// How a disk below a volume is kept from its host, as far as udev shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// It is hidden, or was never to be.
    Hidden,
    /// At the next boot, too, its host sees it: no rule can name it.
    Nameless,
    /// There is a rule, and udev did not do as it says.
    Seen,
}

/// Whether the host sees the disk of a volume that is served. `config` is the daemon's configuration file.
pub(crate) fn sight(config: &Path, volume: &Name, disk: DevNumber) -> Sight {
    let places = Places::of(config);
    let list = List::load(&places.list).unwrap_or_default();
    let Some(backing) = list.volumes.iter().find(|backing| backing.name == *volume) else { return Sight::Hidden };
    if places.is_bare(volume) || !is_seen(disk) {
        return Sight::Hidden;
    }
    let known = std::fs::read_to_string(Path::new(UDEV_DATA).join(format!("b{disk}"))).unwrap_or_default();
    match backing.disk {
        None => Sight::Nameless,
        Some(_) if known.lines().any(|line| line == "E:SYSTEMD_READY=0") => Sight::Hidden,
        Some(_) => Sight::Seen,
    }
}

/// Whether a path names a disk by what is on it: the tap shows the same, and such a link leads there as soon as it is served.
pub(crate) fn names_content(path: &Path) -> bool {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let disk = path.strip_prefix("/dev/disk").unwrap_or(Path::new(""));
        let kind = disk.iter().next().and_then(|kind| kind.to_str()).unwrap_or_default();
        if CONTENT.contains(&kind) || disk.starts_with("by-id") && path.file_name().is_some_and(is_of_lvm) {
            return true;
        }
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    false
}

fn is_of_lvm(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with("lvm-pv-uuid-")
}

/// A link that leads to a device by what it is, and always to this one.
pub(crate) fn lasting_name(device: DevNumber) -> Option<PathBuf> {
    let links = std::fs::read_dir("/dev/disk/by-id").ok()?.flatten().map(|link| link.path());
    let leads =
        |link: &PathBuf| DevNumber::at(link).is_ok_and(|found| found == device) && !link.file_name().is_some_and(is_of_lvm);
    links.filter(leads).min()
}

/// What the rule of a volume has in it, and of no other.
fn names(volume: &Name) -> String {
    format!("ENV{{FARSIDE_BACKING}}=\"{volume}\"")
}

/// Whose disks these rules hide.
fn named_in(rules: &str) -> impl Iterator<Item = &str> {
    let lines = rules.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once("ENV{FARSIDE_BACKING}=\"")?.1.split('"').next())
}

/// Has everything of a volume compared; one whose folder is gone has no past.
fn mark(state_dir: &Path, backing: &Backing) -> Result<(), ConfigError> {
    let dir = backing.folder(state_dir);
    match dir.try_exists() {
        Ok(false) => Ok(()),
        // † What cannot be looked at is not gone.
        Ok(true) | Err(_) => Mark::TrackingLost.put(&dir, true),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use super::*;

    fn config(dir: &Path, volumes: &str) -> Config {
        let path = dir.join("farsided.toml");
        std::fs::write(&path, format!("[source]\nname='h'\nstate_dir='{}'\n{volumes}", dir.display())).expect("written");
        Config::load(&path).expect("valid")
    }

    /// The device's own name is its serial number.
    fn disk_of(device: &Path) -> Result<Disk, Unknown> {
        let value = device.file_name().ok_or(Unknown::Nameless)?.to_string_lossy().into_owned();
        Ok(Disk { key: "ID_SERIAL".into(), value, partition: None })
    }

    fn named() -> Name {
        "h".parse().expect("a name")
    }

    const HOST: Host = Host { disk_of, mistaken: |_, _| None, end_tap: |_, _, _, _| Ok(()) };

    fn places(dir: &Path) -> Places {
        Places { list: dir.join(LIST), rules: dir.join("x.rules"), notes: dir.join(NOTES) }
    }

    const TWO: &str = "[[volume]]\nname='a'\nbacking='/dev/nothing-a'\ntap='ublk'\nif_absent='refuse'\n\
                       [[volume]]\nname='b'\nbacking='/dev/disk/by-id/x y\"z'\ntap='nbd-device'\n\
                       [[volume]]\nname='c'\nbacking='/dev/c'\ninsert=true\n[[volume]]\nname='d'\nbacking='/srv/d.img'\n";

    #[test]
    fn a_host_has_one_daemon() {
        let dir = tempfile::tempdir().expect("temp dir");
        let run_dir = dir.path().join("run");
        assert!(!is_locked(&run_dir));
        let first = lock_host(&run_dir, Duration::ZERO).expect("a folder").expect("nobody has it");
        assert!(lock_host(&run_dir, Duration::ZERO).expect("a folder").is_none(), "the first one lives");
        assert!(is_locked(&run_dir));
        drop(first);
        assert!(!is_locked(&run_dir));
        assert!(lock_host(&run_dir, Duration::ZERO).expect("a folder").is_some());
    }

    #[test]
    fn what_is_served_as_a_device_is_hidden_before_and_shown_after() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).unwrap_or_default();
        let two = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &two, HOST);
        assert_eq!(rules().lines().count(), 1, "nothing is hidden that was never served: {}", rules());
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
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
        let backings = Backings::at(Some(places(dir.path())), &one, HOST);
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
        let backings = Backings::at(Some(places(dir.path())), &two, Host { disk_of: |_| Err(Unknown::Nameless), ..HOST });
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        let rules = std::fs::read_to_string(dir.path().join("x.rules")).expect("written");
        assert_eq!(rules.lines().count(), 1, "{rules}");
    }

    #[test]
    fn a_start_shows_no_disk_that_is_not_marked_and_hides_none_again() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).unwrap_or_default();
        let two = config(dir.path(), TWO);
        let folder = dir.path().join("volumes/default/a");
        std::fs::create_dir_all(&folder).expect("made");
        let backings = Backings::at(Some(places(dir.path())), &two, HOST);
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        // Edited, perhaps wrongly: it stays hidden until it is served.
        let edited = config(dir.path(), &TWO.replace("nothing-a", "elsewhere"));
        let _ = Backings::at(Some(places(dir.path())), &edited, HOST);
        assert!(rules().contains("nothing-a"), "{}", rules());
        // Not configured any more, while a failback has a part of a point on it.
        let one = config(dir.path(), &TWO[TWO.find("[[volume]]\nname='b'").expect("there")..]);
        let over = crate::failback::hold(dir.path(), ("g", "a"), Path::new("/dev/disk/by-id/nothing-a"));
        let _ = Backings::at(Some(places(dir.path())), &one, HOST);
        assert!(rules().contains("nothing-a"), "{}", rules());
        // Nor while nobody can read that of its group; of another one that is no matter.
        std::fs::write(dir.path().join("failback/default.json"), "{").expect("written");
        over();
        let _ = Backings::at(Some(places(dir.path())), &one, HOST);
        assert!(rules().contains("nothing-a"), "{}", rules());
        std::fs::rename(dir.path().join("failback/default.json"), dir.path().join("failback/other.json")).expect("renamed");
        let _ = Backings::at(Some(places(dir.path())), &one, HOST);
        assert!(!rules().contains("nothing-a") && Mark::TrackingLost.is_set(&folder).expect("asked"), "{}", rules());
        // The packages were removed, and the disk is mounted by now.
        std::fs::remove_file(dir.path().join("x.rules")).expect("removed");
        let _ = Backings::at(Some(places(dir.path())), &one, HOST);
        assert!(!rules().contains("by-id/x"), "{}", rules());
        // What cannot be read changes nothing.
        std::fs::write(dir.path().join(LIST), "{").expect("written");
        std::fs::write(dir.path().join("x.rules"), "as it was").expect("written");
        let backings = Backings::at(Some(places(dir.path())), &two, HOST);
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("nothing is hidden"));
        assert_eq!(rules(), "as it was");
    }

    /// † A daemon that was started by hand, with a configuration elsewhere, had all of them shown at the next boot, and nothing compared.
    #[test]
    fn disks_that_another_configuration_hides_stay_hidden() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).expect("written");
        let two = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &two, HOST);
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        let before = rules();
        assert_eq!(named_in(&before).collect::<Vec<_>>(), ["a", "b"], "{before}");
        let elsewhere = Places { list: dir.path().join("elsewhere.json"), ..places(dir.path()) };
        let third = config(dir.path(), "[[volume]]\nname='e'\nbacking='/dev/nothing-e'\ntap='ublk'\n");
        let backings = Backings::at(Some(elsewhere), &third, HOST);
        third.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("its own matter"));
        assert_eq!(rules(), before);
        assert!(!backings.is_of_the_host() && !dir.path().join("elsewhere.json").exists());
        // † A rule that has no entry any more would be taken for another's for ever: it goes first, and comes last.
        let mut list = List::load(&dir.path().join(LIST)).expect("readable");
        list.volumes.retain(|backing| backing.name.as_str() == "b");
        std::fs::write(dir.path().join("no-folder"), "").expect("written");
        let stuck = Places { list: dir.path().join("no-folder/boot.json"), ..places(dir.path()) };
        stuck.write(&list).expect_err("the list cannot be written");
        assert_eq!(named_in(&rules()).collect::<Vec<_>>(), ["b"]);
        std::fs::remove_file(dir.path().join("x.rules")).expect("removed");
        stuck.write(&list).expect_err("the list cannot be written");
        assert!(!dir.path().join("x.rules").exists());
        std::fs::write(dir.path().join("x.rules"), &before).expect("written");
        // Its list was lost: what is configured is its own.
        std::fs::remove_file(dir.path().join(LIST)).expect("removed");
        assert!(Backings::at(Some(places(dir.path())), &two, HOST).is_of_the_host());
    }

    /// † They were taken for gone, and what is hidden was forgotten with them.
    #[test]
    fn rules_that_nobody_can_read_are_not_gone() {
        let dir = tempfile::tempdir().expect("temp dir");
        let two = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &two, HOST);
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        drop(backings);
        let list = || std::fs::read_to_string(dir.path().join(LIST)).expect("written");
        let before = list();
        assert!(before.contains("nothing-a"));
        // A folder can be opened, and not be read: as a file whose disk gives an error.
        std::fs::rename(dir.path().join("x.rules"), dir.path().join("kept")).expect("renamed");
        std::fs::create_dir(dir.path().join("x.rules")).expect("made");
        let _ = Backings::at(Some(places(dir.path())), &two, HOST);
        assert_eq!(list(), before);
        // Whatever a disk made of a comment in them.
        std::fs::remove_dir(dir.path().join("x.rules")).expect("removed");
        let rules = std::fs::read(dir.path().join("kept")).expect("there");
        std::fs::write(dir.path().join("x.rules"), [b"# \xfc\n".as_slice(), &rules].concat()).expect("written");
        let _ = Backings::at(Some(places(dir.path())), &two, HOST);
        assert_eq!(list(), before);
    }

    /// The device that a tap is put under is its host's, but while a failback or a cutover holds it.
    #[test]
    fn the_device_of_an_inserted_volume_is_hidden_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().expect("temp dir");
        let is_hidden =
            || std::fs::read_to_string(dir.path().join("x.rules")).expect("written").contains("ENV{ID_SERIAL}==\"c\"");
        let inserted = config(dir.path(), TWO);
        let c = &inserted.volumes[&"c".parse::<Name>().expect("a name")];
        let backings = Backings::at(Some(places(dir.path())), &inserted, HOST);
        backings.take(c, &named()).expect("nothing to do");
        assert!(!is_hidden(), "its host uses it");
        let over = crate::failback::hold(dir.path(), ("g", "c"), Path::new("/dev/c"));
        backings.take(&VolumeConfig { insert: false, ..c.clone() }, &named()).expect("taken");
        let _ = Backings::at(Some(places(dir.path())), &inserted, HOST);
        assert!(is_hidden(), "the next daemon goes on with it");
        over();
        let _ = Backings::at(Some(places(dir.path())), &inserted, HOST);
        assert!(!is_hidden(), "a kill before that was kept, or after it was over, takes it from nobody");
    }

    /// It would be mounted at the next boot, with a part of a point on it, or beside the host to which it was handed over.
    #[test]
    fn a_device_that_could_not_be_hidden_is_not_taken() {
        let dir = tempfile::tempdir().expect("temp dir");
        let two = config(dir.path(), TWO);
        let refused = |places, disk_of| {
            let backings = Backings::at(places, &two, Host { disk_of, ..HOST });
            backings.refuse_nameless(Path::new("/dev/c")).err().map(|error| error.to_string())
        };
        let here = || Some(places(dir.path()));
        assert_eq!(refused(here(), disk_of), None);
        assert_eq!(refused(here(), |_| Err(Unknown::Unseen)), None);
        assert_eq!(refused(None, |_| Err(Unknown::Nameless)), None, "not the daemon of the host");
        let why = refused(here(), |_| Err(Unknown::Nameless)).expect("nobody could tell it");
        assert!(why.contains("/dev/c could not be hidden"), "{why}");
        assert!(refused(here(), |_| Err(Unknown::Alike("device 8:0".to_owned()))).is_some());
    }

    #[test]
    fn a_disk_is_not_named_by_what_is_on_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let link = dir.path().join("data");
        std::os::unix::fs::symlink("/dev/disk/by-label/no-such-label", &link).expect("linked");
        for path in ["/dev/disk/by-uuid/1", "/dev/disk/by-partlabel/x", "/dev/disk/by-id/lvm-pv-uuid-1"] {
            assert!(names_content(Path::new(path)), "{path}");
        }
        assert!(names_content(&link));
        for path in ["/dev/disk/by-id/virtio-x", "/dev/disk/by-path/pci-1", "/dev/sdb", "/dev/vg/data", "/dev/null"] {
            assert!(!names_content(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_disk_is_not_shown_beside_a_device_that_is_in_use() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).unwrap_or_default();
        let two = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &two, HOST);
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        let in_use = Host { end_tap: |_, _, _, _| anyhow::bail!("it is mounted"), ..HOST };
        let one = config(dir.path(), &TWO[TWO.find("[[volume]]\nname='b'").expect("there")..]);
        let backings = Backings::at(Some(places(dir.path())), &one, in_use);
        assert!(rules().contains("nothing-a"), "{}", rules());
        let (a, b) = ("a".parse().expect("a name"), "b".parse().expect("a name"));
        backings.let_go(&b);
        backings.let_go(&a);
        assert!(rules().contains("nothing-a") && rules().contains("by-id/x"), "{}", rules());
        // It was unmounted meanwhile. A version that words its rules otherwise has left them.
        let other = rules().replace("SUBSYSTEM==\"block\", ", "");
        std::fs::write(dir.path().join("x.rules"), other).expect("written");
        let _ = Backings::at(Some(places(dir.path())), &one, HOST);
        assert!(!rules().contains("nothing-a") && rules().contains("by-id/x"), "{}", rules());
        assert!(rules().contains("SUBSYSTEM"), "{}", rules());
    }

    impl Backings {
        /// Of a host on which no device ends while there is a [`SlowEnd`] in the folder of its configuration.
        pub(crate) fn of_slow_host(config: &Config) -> Self {
            let dir = config.path.parent().expect("a folder");
            Self::at(Some(places(dir)), config, Host { end_tap: SlowEnd::end_tap, ..HOST })
        }
    }

    /// No device ends before this is dropped.
    pub(crate) struct SlowEnd {
        gate: PathBuf,
        _held: File,
    }

    impl SlowEnd {
        const GATE: &str = "may-end";
        const MET: &str = "ends";

        /// Of devices whose volumes' folders are below this one.
        pub(crate) fn of(dir: &Path) -> Self {
            let gate = dir.join(Self::GATE);
            nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
            let held = File::options().read(true).write(true).open(&gate).expect("nobody is waited for");
            Self { gate, _held: held }
        }

        /// Whether somebody waits for the end of a device.
        pub(crate) fn is_met(&self) -> bool {
            self.gate.with_file_name(Self::MET).exists()
        }

        fn end_tap(folder: &Path, _: VolumeId, _: &Name, _: &Path) -> anyhow::Result<()> {
            let gate = folder.ancestors().map(|dir| dir.join(Self::GATE));
            let Some((gate, path)) = gate.filter_map(|path| Some((File::open(&path).ok()?, path))).next() else { return Ok(()) };
            std::fs::write(path.with_file_name(Self::MET), "")?;
            std::io::read_to_string(gate)?; // until nobody can write to it
            Ok(())
        }
    }

    impl Drop for SlowEnd {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.gate); // nobody opens it any more: who did reads the end of it
        }
    }

    #[test]
    fn a_device_that_is_long_in_ending_holds_up_no_other_volume() {
        let dir = tempfile::tempdir().expect("temp dir");
        let two = config(dir.path(), TWO);
        let backings = Backings::of_slow_host(&two);
        two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        let (a, b) = ("a".parse::<Name>().expect("a name"), "b".parse::<Name>().expect("a name"));
        std::thread::scope(|scope| {
            let not_yet = SlowEnd::of(dir.path());
            scope.spawn(|| backings.let_go(&b));
            while !not_yet.is_met() {
                std::thread::yield_now();
            }
            assert!(backings.list.try_lock().is_ok(), "nobody else can be opened");
            backings.take(&two.volumes[&a], &two.source.name).expect("taken");
            drop(not_yet);
        });
        let rules = std::fs::read_to_string(dir.path().join("x.rules")).expect("written");
        assert!(rules.contains("nothing-a") && !rules.contains("by-id/x"), "{rules}");
    }

    #[test]
    fn what_udev_has_not_seen_yet_stays_hidden_and_what_it_takes_for_another_disk_does_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let rules = || std::fs::read_to_string(dir.path().join("x.rules")).unwrap_or_default();
        let two = config(dir.path(), TWO);
        let take = |host: Host| {
            let backings = Backings::at(Some(places(dir.path())), &two, host);
            two.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
            rules().lines().count()
        };
        let unseen = Host { disk_of: |_| Err(Unknown::Unseen), ..HOST };
        assert_eq!(take(unseen), 1, "nothing is known of them");
        assert_eq!(take(HOST), 3);
        assert_eq!(take(unseen), 3, "{}", rules());
        // The name leads to another disk by now.
        let moved = config(dir.path(), &TWO.replace("nothing-a", "elsewhere"));
        let backings = Backings::at(Some(places(dir.path())), &moved, unseen);
        moved.volumes.values().for_each(|volume| backings.take(volume, &named()).expect("taken"));
        assert!(!rules().contains("nothing-a") && rules().contains("by-id/x"), "{}", rules());
        assert_eq!(take(HOST), 3);
        assert_eq!(take(Host { disk_of: |_| Err(Unknown::Alike("device 8:16".into())), ..HOST }), 1, "{}", rules());
        assert_eq!(take(HOST), 3);
        // Another disk with the same serial number is mounted by now.
        let twice = Host { mistaken: |_, _| Some(DevNumber { major: 8, minor: 16 }), ..HOST };
        let _ = Backings::at(Some(places(dir.path())), &two, twice);
        assert_eq!(rules().lines().count(), 1, "{}", rules());
    }

    #[test]
    fn disks_that_say_the_same_of_themselves_are_told_apart_by_nothing_but_their_partitions() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (data, sys) = (dir.path().join("data"), dir.path().join("sys"));
        let device = |number: &str, partition: Option<u32>, serial: &str| {
            std::fs::create_dir_all(&data).expect("made");
            std::fs::create_dir_all(sys.join(number)).expect("made");
            std::fs::write(data.join(format!("b{number}")), format!("I:5\nE:ID_SERIAL={serial}\n")).expect("written");
            if let Some(partition) = partition {
                std::fs::write(sys.join(number).join("partition"), format!("{partition}\n")).expect("written");
            }
        };
        device("8:0", None, "QM1");
        device("8:1", Some(1), "QM1");
        device("8:16", None, "QM12");
        let found = |partition| {
            let disk = Disk { key: "ID_SERIAL".into(), value: "QM1".into(), partition };
            disk.devices(&data, &sys).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!((found(None), found(Some(1)), found(Some(2))), (vec!["8:0".into()], vec!["8:1".into()], vec![]));
        device("8:32", None, "QM1");
        assert_eq!(found(None).len(), 2);
        // It is gone; what udev knew of it is still there.
        std::fs::remove_dir_all(sys.join("8:32")).expect("removed");
        assert_eq!(found(None), ["8:0"]);
    }

    #[test]
    fn a_disk_that_is_used_bare_is_taken_back_only_when_a_person_says_so() {
        let dir = tempfile::tempdir().expect("temp dir");
        let config = config(dir.path(), TWO);
        let backings = Backings::at(Some(places(dir.path())), &config, HOST);
        let volume = config.volumes.values().next().expect("one");
        places(dir.path()).put_note(&volume.name).expect("noted");
        let error = backings.take(volume, &named()).expect_err("it is in use").to_string();
        assert!(error.contains("without Farside") && error.contains("farside reload"), "{error}");
        assert!(
            !dir.path().join("x.rules").exists()
                || !std::fs::read_to_string(dir.path().join("x.rules")).expect("read").contains("nothing-a")
        );
        backings.want_back(&volume.name);
        backings.want_no_more(&volume.name);
        backings.take(volume, &named()).expect_err("it was in use then; a person has to say so again");
        backings.want_back(&volume.name);
        backings.take(volume, &named()).expect("taken back");
        assert!(!places(dir.path()).is_bare(&volume.name));
    }
}
