//! What this host needs to protect its volumes, what of it is missing, and the one command that mends each.
//!
//! It runs beside the daemon, in the process of whoever asks: also where the daemon does not start. It only looks, until it is
//! told to mend, and then it loads modules, finishes with devices that a crash left half way, and has LVM overlook what is
//! Farside's. It does not speak with the daemon: who calls it may.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use farside_blockio::Ring;
use farside_blockio::dm::{Control, DevNumber};
use farside_control::source::IfAbsent;
use farside_insert::{State, Stray, stack};
use farside_region::Name;
use farside_service::files::FileError;
use farside_ublk::{Choice, Effect, Fault, Kernel};
use serde::Serialize;

use crate::boot::{self, Sight};
use crate::change;
use crate::config::{Config, ConfigError, VolumeConfig};
use crate::failback::{self, Asked};
use crate::node;
use crate::stacked;
use crate::state_dir::{volume_path, volumes_path};
use crate::tap::TapConfig;
use crate::volume::{KnownDevice, device_of};

mod append;
mod fstab;

/// Modules that every boot should load, one per line.
const MODULES_FILE: &str = "/etc/modules-load.d/farside.conf";

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Warning,
    /// Something does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: `nbd`, `volume data`, …
    pub subject: String,
    /// How bad.
    pub verdict: Verdict,
    /// What was found, as a sentence.
    pub found: String,
    /// The one command that mends it; left out where there is nothing to mend or no command does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    /// How we mend it ourselves.
    #[serde(skip)]
    remedy: Option<Remedy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Remedy {
    Module(&'static str),
    Device(PathBuf),
    /// All but the twins of these; the second is the runtime directory.
    Sweep(Vec<PathBuf>, PathBuf),
    Filter,
    /// The file of a volume is written again.
    Configure(PathBuf, Box<VolumeConfig>),
}

impl Finding {
    /// Without a remedy.
    pub fn new(subject: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict, found: found.into(), mend: None, remedy: None }
    }

    /// With the command that mends it.
    #[must_use]
    pub fn mend(self, command: impl Into<String>) -> Self {
        Self { mend: Some(command.into()), ..self }
    }

    fn module(self, module: &'static str) -> Self {
        let command = format!("modprobe {module} && echo {module} >> {MODULES_FILE}");
        Self { remedy: Some(Remedy::Module(module)), ..self.mend(command) }
    }
}

/// Looks at everything, and mends what it can if it is told to. `config` is the daemon's configuration file.
pub fn examine(config: &Path, mend: bool) -> Vec<Finding> {
    mended(&|| look(config), mend)
}

/// The same of a gateway, which has no volumes and no farsided: what it needs of the kernel.
pub fn examine_gateway(mend: bool) -> Vec<Finding> {
    let has_ublk = || Kernel::running().is_ok_and(|kernel| kernel.allows_without_recovery().is_ok());
    mended(&|| vec![devices_of_points(has_ublk(), has_nbd())], mend)
}

fn mended(look: &dyn Fn() -> Vec<Finding>, mend: bool) -> Vec<Finding> {
    let findings = look();
    if !mend {
        return findings;
    }
    let mut failed = Vec::new();
    for (finding, remedy) in findings.iter().filter_map(|finding| Some((finding, finding.remedy.as_ref()?))) {
        if let Err(error) = apply(remedy) {
            failed.push(Finding::new(finding.subject.clone(), Verdict::Missing, format!("it could not be mended: {error:#}")));
        }
    }
    let mut findings = look();
    findings.extend(failed);
    findings
}

fn look(path: &Path) -> Vec<Finding> {
    let config = Config::load(path);
    let accepted = config.as_ref().map_or(&[][..], |config| &config.source.accept_faults);
    let mut findings = vec![io_uring(), ublk(accepted)];
    findings.extend(faults(accepted));
    findings.extend([nbd(), device_mapper(), memory()]);
    findings.extend(priority());
    match config {
        Ok(config) => {
            findings.push(Finding::new("configuration", Verdict::Good, format!("{} is valid", path.display())));
            findings.push(state(&config.source.state_dir));
            findings.extend(config.volumes.values().map(|volume| of_volume(volume, &config)));
            findings.extend(crate::hooks::examine(&config));
            findings.extend(strays(&config));
            findings.extend(lvm());
            findings.extend(fstab::look(&config));
        }
        Err(ConfigError::File(FileError::Io { path: absent, source }))
            if absent == path && source.kind() == ErrorKind::NotFound =>
        {
            let found = format!("there is no {}: the package farsided brings one", path.display());
            findings.push(Finding::new("configuration", Verdict::Missing, found));
        }
        Err(error) => {
            let found = Finding::new("configuration", Verdict::Missing, error.to_string());
            findings.push(found.mend(format!("farsided --check --config {}", path.display())));
        }
    }
    findings
}

fn io_uring() -> Finding {
    match Ring::new(8) {
        Ok(_) => Finding::new("io_uring", Verdict::Good, "rings can be made"),
        Err(error) => {
            let found = format!("no ring can be made, and nothing is served without: {error}");
            Finding::new("io_uring", Verdict::Missing, found).mend("sysctl -w kernel.io_uring_disabled=0")
        }
    }
}

const INSTEAD: &str = "new volumes are devices of the kernel's NBD client instead";

fn without_ublk(why: &str, has_nbd: bool) -> Finding {
    match has_nbd {
        true => Finding::new("ublk", Verdict::Good, format!("{why}; {INSTEAD}")),
        false => {
            let found = format!("{why}, and the kernel's NBD client is not there either: no volume can be a device of its own");
            Finding::new("ublk", Verdict::Warning, found)
        }
    }
}

fn has_nbd() -> bool {
    farside_nbd::kernel::probe().is_ok()
}

/// With what `point open --device` and drills make their devices.
fn devices_of_points(has_ublk: bool, has_nbd: bool) -> Finding {
    let subject = "devices of points";
    match (has_ublk, has_nbd) {
        (true, _) => Finding::new(subject, Verdict::Good, "the kernel makes them, by ublk"),
        (false, true) => Finding::new(subject, Verdict::Good, "the kernel makes them, by its NBD client"),
        (false, false) => {
            let found = "neither ublk nor the kernel's NBD client is loaded: a point is opened without `--device`, or restored";
            let finding = Finding::new(subject, Verdict::Warning, found);
            let module = ["nbd", "ublk_drv"].into_iter().find(|module| is_module(module));
            module.map_or(finding.clone(), |module| finding.module(module))
        }
    }
}

fn ublk(accepted: &[String]) -> Finding {
    let kernel = match Kernel::running() {
        Ok(kernel) => kernel,
        Err(_) if !Path::new("/dev/ublk-control").exists() && is_module("ublk_drv") => {
            return Finding::new("ublk", Verdict::Warning, "the kernel has it, and it is not loaded").module("ublk_drv");
        }
        Err(error) => {
            return without_ublk(&format!("{:#}", anyhow::Error::from(error)), has_nbd());
        }
    };
    match kernel.allows(accepted) {
        Ok(()) => {
            let Choice { path, why } = kernel.data_path_of_devices(accepted);
            let points = if kernel.allows_without_recovery().is_ok() { ", and open points as their device" } else { "" };
            let found = format!(
                "the kernel has it (features {:#x}): new volumes of block devices have it as their tap{points}; data path {}: {why}",
                kernel.features,
                path.as_str()
            );
            Finding::new("ublk", Verdict::Good, found)
        }
        Err(error) => Finding::new("ublk", Verdict::Warning, format!("{error}; {INSTEAD}, where that is loaded")),
    }
}

/// What is known to be wrong with this kernel's ublk, and what we do about it.
fn faults(accepted: &[String]) -> Vec<Finding> {
    let Ok(kernel) = Kernel::running() else { return Vec::new() };
    let of = |fault: &Fault| {
        let is_accepted = accepted.iter().any(|name| name == fault.name);
        let (verdict, therefore) = match fault.effect {
            _ if is_accepted => (Verdict::Warning, "`accept_faults` lets it be"),
            Effect::Refused => (Verdict::Warning, "so no ublk device is made here"),
            Effect::OneQueue => (Verdict::Good, "so ublk devices have one queue each"),
            Effect::NoZeroCopy => (Verdict::Good, "so the data of ublk devices is copied"),
            Effect::NoPartitionScan => {
                (Verdict::Good, "so partitions are looked for where there is a table when a device is made")
            }
        };
        let found = format!("{}: {}; {therefore}. Free of it: {}", kernel.release, fault.what, fault.mended);
        Finding::new(format!("kernel fault {}", fault.name), verdict, found)
    };
    kernel.faults().map(of).collect()
}

fn nbd() -> Finding {
    use farside_nbd::kernel::{self, KernelError};
    match kernel::probe() {
        Ok(()) => Finding::new("nbd", Verdict::Good, "the kernel's NBD client is loaded: volumes can have `--tap nbd-device`"),
        Err(KernelError::NoClient) if is_module("nbd") => {
            let found = "the kernel's NBD client is not loaded: no volume can have `--tap nbd-device` or `--device`";
            Finding::new("nbd", Verdict::Warning, found).module("nbd")
        }
        Err(error) => Finding::new("nbd", Verdict::Warning, format!("{:#}", anyhow::Error::from(error))),
    }
}

fn device_mapper() -> Finding {
    match Control::open().and_then(|control| control.version()) {
        Ok([major, minor, patch]) => {
            let found = format!("version {major}.{minor}.{patch}: volumes of LVM can be protected while they are mounted");
            Finding::new("device mapper", Verdict::Good, found)
        }
        Err(error) => {
            let found = Finding::new("device mapper", Verdict::Warning, format!("{:#}", anyhow::Error::from(error)));
            if is_module("dm_mod") { found.module("dm_mod") } else { found }
        }
    }
}

/// Whether the running kernel has a module, loaded or not. What is built in counts as loaded.
fn is_module(name: &str) -> bool {
    Command::new("modprobe").args(["-n", "-q", name]).status().is_ok_and(|status| status.success())
}

/// Of the daemon, if it runs.
fn memory() -> Finding {
    let status = daemon_process().and_then(|process| std::fs::read_to_string(process.join("status")).ok());
    let Some(status) = status else {
        let found = "farsided does not run, so whether its memory is locked cannot be seen";
        return Finding::new("memory", Verdict::Warning, found).mend("systemctl start farsided");
    };
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap_or("0 kB").trim();
    match locked {
        "0 kB" => {
            let found =
                "the memory of farsided is not locked: a host write may wait for swap. Its unit sets LimitMEMLOCK=infinity";
            Finding::new("memory", Verdict::Warning, found).mend("systemctl restart farsided")
        }
        locked => Finding::new("memory", Verdict::Good, format!("farsided keeps {locked} locked")),
    }
}

/// Whether the threads that serve devices get a processor before whatever else the host does. `None`: none serves.
fn priority() -> Option<Finding> {
    let threads = std::fs::read_dir(daemon_process()?.join("task")).ok()?.flatten();
    let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    let nice: Vec<i32> = threads.map(stat).filter_map(|stat| nice_of(&stat, "queue")).collect();
    let (least, subject) = (*nice.iter().max()?, "priority");
    Some(match least {
        ..=-20 => Finding::new(subject, Verdict::Good, "threads that serve volumes are as urgent as the kernel's own"),
        nice => {
            let found = format!(
                "threads that serve volumes have the priority of any other (nice {nice}): where processors are busy, a host write \
                 waits for one. Its unit sets LimitNICE=-20"
            );
            Finding::new(subject, Verdict::Warning, found).mend("systemctl restart farsided")
        }
    })
}

/// Of the thread that a line of `/proc/PID/task/*/stat` describes, if its name begins so.
fn nice_of(stat: &str, name: &str) -> Option<i32> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, comm) = before.split_once('(')?;
    if comm.starts_with(name) { after.split(' ').nth(16)?.parse().ok() } else { None }
}

/// `/proc/PID` of the daemon, if it runs.
fn daemon_process() -> Option<PathBuf> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut named = processes.filter(|process| {
        let comm = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        comm.trim_end() == "farsided"
    });
    Some(named.next()?.path())
}

/// Where the intent maps lie, and whether that is safe.
fn state(dir: &Path) -> Finding {
    let subject = "intent maps";
    // It need not be there before the first start.
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let shown = dir.display();
    let devices = stack::devices_of(there);
    match devices.first() {
        Some(_) if devices.iter().any(|device| stack::rests_on_own_tap(*device)) => {
            let found =
                format!("{shown} lies on a volume that farsided itself serves, which would wait for itself: move `state_dir`");
            Finding::new(subject, Verdict::Missing, found)
        }
        Some(device) => {
            let found = format!("they lie in {shown}, on device {device}, which no tap of Farside serves: 32 KiB per TiB");
            Finding::new(subject, Verdict::Good, found)
        }
        None => {
            let found = format!("{shown} lies on no block device that can be named: after a reboot everything may be compared");
            Finding::new(subject, Verdict::Warning, found)
        }
    }
}

fn of_volume(volume: &VolumeConfig, config: &Config) -> Finding {
    let state_dir = &config.source.state_dir;
    let subject = format!("volume {}", volume.name);
    let device = device_of(volume, &volume_path(state_dir, &volume.group, &volume.name));
    let volume = &VolumeConfig { backing: device, ..volume.clone() };
    let backing = volume.backing.display();
    let Ok(metadata) = std::fs::metadata(&volume.backing) else {
        return Finding::new(subject, Verdict::Missing, format!("{backing} is not there"));
    };
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let number = DevNumber::of(metadata.rdev());
    let all = failback::disks_of(config);
    let asked = Asked { group: &volume.group, volume: &volume.name, backing: &volume.backing, all: &all };
    let held = match failback::held_by(state_dir, asked) {
        Ok(group) => group.map(|group| {
            let is_device = metadata.file_type().is_block_device();
            let sight = if is_device { boot::sight(&config.path, &volume.name, number) } else { Sight::Hidden };
            held(subject.clone(), &volume.backing, &group, (boot::unserved::is_mounted(&volume.backing), sight))
        }),
        Err(error) => return Finding::new(subject, Verdict::Missing, format!("{error:#}")),
    };
    if let Some(found) = stacked::found(volume, None) {
        return Finding::new(subject, Verdict::Missing, found);
    }
    if !metadata.file_type().is_block_device() && !volume.insert {
        let served = || Finding::new(subject, Verdict::Good, format!("{backing} is served as {}", volume.address()));
        return held.unwrap_or_else(served);
    }
    if let Some((swap, _)) = swap_on(volume, number) {
        let found = format!(
            "the host swaps to {swap}, which lies on this volume: a start of farsided after a crash may need the memory that waits for \
             its own tap"
        );
        return Finding::new(subject, Verdict::Missing, found).mend(format!("swapoff {swap}"));
    }
    if stack::path_rests_on(state_dir, number) || stack::path_rests_on(Path::new("/"), number) {
        let found = format!("{backing} holds the root file system or the state directory, and cannot be protected in place");
        return Finding::new(subject, Verdict::Missing, found).mend(format!("farside volume remove {}", volume.name));
    }
    match (volume.insert, held) {
        (true, held) => inserted(subject, &volume.backing, held),
        (false, Some(held)) => held,
        (false, None) => disk(subject, volume, number, &config.path),
    }
}

/// A disk that a failback keeps from everybody, or that was handed over.
fn held(subject: String, disk: &Path, group: &Name, (is_mounted, sight): (bool, Sight)) -> Finding {
    let disk = disk.display();
    let by = format!("group {group} was handed over, or is being failed back (farside failback --list)");
    if is_mounted {
        let found =
            format!("{disk} is mounted, and {by}: another host may serve the group, and what is written here is in no point");
        return Finding::new(subject, Verdict::Missing, found).mend(format!("umount {disk}"));
    }
    match sight {
        Sight::Hidden => Finding::new(subject, Verdict::Good, format!("{disk} is kept from everybody: {by}")),
        Sight::Nameless => {
            let found = format!(
                "{disk} is kept from everybody as long as farsided runs: {by}. It is not hidden at a boot, for nothing of its own that udev \
                 knows tells it from others: take its mount out of /etc/fstab until that is over"
            );
            Finding::new(subject, Verdict::Warning, found)
        }
        Sight::Seen => {
            let found = format!("{disk} is not hidden: udev has not done as 63-z-farside-backings.rules says, and {by}");
            Finding::new(subject, Verdict::Missing, found)
                .mend(format!("udevadm control --reload; udevadm trigger --settle {disk}"))
        }
    }
}

/// Swap on a volume's backing, or on its tap.
fn swap_on(volume: &VolumeConfig, backing: DevNumber) -> Option<(String, DevNumber)> {
    let tap = volume.tap.is_device().then(|| DevNumber::at(&node::path(&volume.name)).ok()).flatten();
    let lies_there = |swap| stack::rests_on(swap, backing) || tap.is_some_and(|tap| stack::rests_on(swap, tap));
    stack::swaps().into_iter().find(|(_, swap)| lies_there(*swap))
}

/// A disk that nobody but us is to use.
fn disk(subject: String, volume: &VolumeConfig, number: DevNumber, config: &Path) -> Finding {
    let (backing, address) = (volume.backing.display(), volume.address());
    if boot::unserved::is_mounted(&volume.backing) {
        let found = format!(
            "{backing} is mounted itself, and not {address}: what is written there is not replicated; it will be compared"
        );
        return Finding::new(subject, Verdict::Missing, found).mend(format!("umount {backing} && farside reload"));
    }
    if volume.tap.is_device()
        && let Some(link) = names_of_content(number)
    {
        let found = format!("{} leads to {backing}, and not to {address}: a mount by it would pass no tap", link.display());
        return Finding::new(subject, Verdict::Missing, found)
            .mend(format!("udevadm control --reload; udevadm trigger --settle {backing}"));
    }
    let policy = match volume.if_absent {
        IfAbsent::Bare => "bare",
        IfAbsent::Refuse => "refuse",
    };
    let found = format!("{backing} is served as {address}; at a boot without Farside: {policy}");
    match boot::sight(config, &volume.name, number) {
        Sight::Hidden => {}
        Sight::Nameless => {
            let found = format!(
                "{found}. It is not hidden at a boot: it has no serial number or the like of its own that udev knows, so a mount by \
                 UUID may find it before {address} is there. Give it one (libvirt: <serial>), and name {address} in /etc/fstab"
            );
            return Finding::new(subject, Verdict::Warning, found);
        }
        Sight::Seen => {
            let found = format!("{backing} is not hidden: udev has not done as 63-z-farside-backings.rules says");
            return Finding::new(subject, Verdict::Missing, found)
                .mend(format!("udevadm control --reload; udevadm trigger --settle {backing}"));
        }
    }
    let by_number = volume.backing.parent() == Some(Path::new("/dev"));
    match by_number.then(|| boot::lasting_name(number)).flatten() {
        Some(name) => {
            let (found, name) = (format!("{found}. The next boot may give the name {backing} to another disk"), name.display());
            Finding::new(subject, Verdict::Warning, format!("{found}; this one is always {name}"))
                .mend(format!("editor farsided.d/volume-{}.toml, backing = \"{name}\"; systemctl restart farsided", volume.name))
        }
        None => Finding::new(subject, Verdict::Good, found),
    }
}

/// A link that leads to a device, or to a part of it, by what is on it.
fn names_of_content(number: DevNumber) -> Option<PathBuf> {
    let leads = |link: &PathBuf| DevNumber::at(link).is_ok_and(|found| found == number || stack::is_part_of(found, number));
    let links = |kind| std::fs::read_dir(Path::new("/dev/disk").join(kind)).into_iter().flatten().flatten();
    boot::CONTENT.iter().flat_map(links).map(|link| link.path()).find(leads)
}

const LVM_CONFIG: &str = "/etc/lvm/lvmlocal.conf";
/// What LVM must not take for a physical volume: disks below taps, by the name that udev's rule gives them, and twins.
const LVM_FILTER: &str = "\"r|^/dev/farside-backing/|\"";

/// What has LVM overlook them. The package takes it out again as it is purged (`debian/farsided.postrm`).
fn lvm_lines() -> String {
    format!("# By farside doctor: what lies below volumes of Farside.\ndevices {{\n\tglobal_filter = [ {LVM_FILTER} ]\n}}\n")
}

/// Whether LVM overlooks what lies below taps. It looks at devices itself, whatever udev says of them.
fn lvm() -> Option<Finding> {
    let subject = "LVM";
    let output = Command::new("lvm").args(["lvmconfig", "devices/global_filter"]).output().ok()?; // there is none
    let filter = String::from_utf8_lossy(&output.stdout);
    Some(match filter.trim() {
        filter if filter.contains("farside-backing") => {
            Finding::new(subject, Verdict::Good, "it overlooks the disks below volumes")
        }
        "" => {
            let found = "it looks at the disks below volumes, too: a physical volume on a tap would be there twice";
            let remedy = Some(Remedy::Filter);
            Finding { remedy, ..Finding::new(subject, Verdict::Warning, found).mend("farside doctor --fix") }
        }
        filter => {
            let found = format!(
                "it looks at the disks below volumes, too: a physical volume on a tap would be there twice. It has a filter of its own \
                 ({filter}): put {LVM_FILTER} first in it"
            );
            Finding::new(subject, Verdict::Warning, found).mend("editor /etc/lvm/lvm.conf")
        }
    })
}

/// A device under which a tap belongs, but while it is `held`.
fn inserted(subject: String, device: &Path, held: Option<Finding>) -> Finding {
    let shown = device.display();
    let runs = daemon_process().is_some();
    let halted = farside_insert::is_halted(device).unwrap_or(false);
    let half_done = farside_insert::is_half_done(device).unwrap_or(false);
    let restart = if runs { "systemctl restart farsided" } else { "systemctl start farsided" };
    match farside_insert::state_of(device) {
        _ if halted => {
            let found = format!("{shown} is suspended, whatever uses it waits: a change of its table was interrupted");
            let remedy = Some(Remedy::Device(device.to_owned()));
            Finding { remedy, ..Finding::new(subject, Verdict::Missing, found).mend("farside doctor --fix") }
        }
        _ if half_done => {
            let found = format!(
                "a table of Farside's is loaded for {shown} and not in use: a change of its table was interrupted before its last step \
                 (`dmsetup table --inactive` shows it)"
            );
            let remedy = Some(Remedy::Device(device.to_owned()));
            Finding { remedy, ..Finding::new(subject, Verdict::Missing, found).mend("farside doctor --fix") }
        }
        Ok(State::Inserted { .. }) if runs => Finding::new(subject, Verdict::Good, format!("the tap is under {shown}")),
        Ok(State::Inserted { .. }) => {
            let found = format!("{shown} rests on a tap that nobody serves: whatever uses it waits");
            Finding::new(subject, Verdict::Missing, found).mend(restart)
        }
        Ok(_) if held.is_some() => held.expect("it was looked at"),
        Ok(state) => {
            let step = match state {
                State::Twinned => "its twin is made, and the tables were not swapped",
                State::StaleTwin => {
                    "its twin has other extents: the device was changed since, or a crash came before the twin had any"
                }
                _ => "nothing of Farside's is there",
            };
            let found =
                format!("the tap is not under {shown} ({step}): what is written there is not replicated; it will be compared");
            Finding::new(subject, Verdict::Missing, found).mend(restart)
        }
        Err(error) => Finding::new(subject, Verdict::Missing, format!("{:#}", anyhow::Error::from(error))),
    }
}

/// What belongs to no volume.
fn strays(config: &Config) -> Vec<Finding> {
    let device = |v: &VolumeConfig| device_of(v, &volume_path(&config.source.state_dir, &v.group, &v.name));
    let kept: Vec<PathBuf> = config.volumes.values().filter(|v| v.insert).map(device).collect();
    let run_dir = config.source.runtime_dir().to_owned();
    let found = farside_insert::strays(&kept).unwrap_or_default();
    let of = |Stray { name, uuid, state, is_halted, .. }: Stray| match state {
        _ if is_halted => {
            let found = format!(
                "/dev/mapper/{name} is suspended, whatever uses it waits: a change of its table was interrupted, and no volume needs its twin"
            );
            let remedy = Some(match state {
                Some(State::Inserted { .. }) | None => Remedy::Device(Path::new("/dev/mapper").join(&name)),
                Some(_) => Remedy::Sweep(kept.clone(), run_dir.clone()),
            });
            Finding { remedy, ..Finding::new(name, Verdict::Missing, found).mend("farside doctor --fix") }
        }
        Some(State::Inserted { over }) => {
            let found = format!("/dev/mapper/{name} rests on a tap of no volume: whatever uses it waits for ever");
            let finding = Finding::new(name.clone(), Verdict::Missing, found);
            match forgotten(config, &name, &uuid, over) {
                Some(volume) => {
                    let found = format!("{}. It belongs to volume {}, whose file is gone", finding.found, volume.name);
                    let remedy = Some(Remedy::Configure(config.path.clone(), Box::new(volume)));
                    Finding { found, remedy, ..finding.mend("farside doctor --fix; systemctl restart farsided") }
                }
                None => {
                    let found = format!("{}; put its volume back into the configuration, and start farsided", finding.found);
                    Finding { found, ..finding }
                }
            }
        }
        _ => {
            let finding =
                Finding::new(name.clone(), Verdict::Warning, format!("the twin of {name} is there, and no volume needs it"));
            Finding { remedy: Some(Remedy::Sweep(kept.clone(), run_dir.clone())), ..finding.mend("farside doctor --fix") }
        }
    };
    found.into_iter().map(of).collect()
}

/// The volume whose tap is under a device and that is not configured any more, by what its folder still says.
fn forgotten(config: &Config, name: &str, uuid: &str, over: DevNumber) -> Option<VolumeConfig> {
    let folders = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut dirs = folders(&volumes_path(&config.source.state_dir)).flat_map(|group| folders(&group).collect::<Vec<_>>());
    let dir = dirs.find(|dir| !uuid.is_empty() && KnownDevice::of(dir).is_some_and(|known| known.uuid == uuid))?;
    let name_of = |path: &Path| path.file_name()?.to_str()?.parse::<Name>().ok();
    let (volume, group) = (name_of(&dir)?, name_of(dir.parent()?)?);
    let tap = if stack::text(over, "backend").is_some() { TapConfig::NbdDevice } else { TapConfig::Ublk };
    (!config.volumes.contains_key(&volume)).then(|| VolumeConfig {
        name: volume,
        group,
        backing: Path::new("/dev/mapper").join(name),
        insert: true,
        tap,
        data_path: Default::default(),
        queues: Default::default(),
        on_tracking_lost: Default::default(),
        if_absent: IfAbsent::default(),
    })
}

fn apply(remedy: &Remedy) -> anyhow::Result<()> {
    match remedy {
        Remedy::Module(module) => {
            let status = Command::new("modprobe").arg(module).status()?;
            anyhow::ensure!(status.success(), "modprobe {module} failed");
            let is_said = |text: &str| text.lines().any(|line| line.trim() == *module);
            append::add_lines(Path::new(MODULES_FILE), &format!("{module}\n"), is_said)?;
        }
        Remedy::Device(device) => farside_insert::mend(device)?,
        Remedy::Sweep(kept, run_dir) => {
            drop(farside_insert::sweep(kept, |number| change::is_idle_number(run_dir, number).unwrap_or(false))?);
        }
        Remedy::Configure(config, volume) => drop(Config::load(config)?.write_volume(volume)?),
        Remedy::Filter => {
            append::add_lines(Path::new(LVM_CONFIG), &lvm_lines(), |text| text.contains(&lvm_lines()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm_was_told_goes_with_the_package() {
        let postrm = include_str!("../../debian/farsided.postrm");
        let purge = postrm
            .split_once("# What `farside doctor --fix` told LVM")
            .and_then(|(_, part)| part.split_once('\n'))
            .expect("it has such a part")
            .1;
        let dir = tempfile::tempdir().expect("temp dir");
        let file = dir.path().join("lvmlocal.conf");
        let purge = purge.replace(LVM_CONFIG, file.to_str().expect("plain text"));
        let run = || {
            let status =
                Command::new("sh").args(["-e", "-c", &purge, "farsided.postrm", "purge"]).status().expect("there is a shell");
            assert!(status.success(), "{purge}");
        };
        run(); // there is none
        let others = "local {\n\tsystem_id = \"x\"\n}\n";
        std::fs::write(&file, format!("{others}{}{others}", lvm_lines())).expect("written");
        run();
        assert_eq!(std::fs::read_to_string(&file).expect("it stays"), format!("{others}{others}"));
        // † All up to the next such line went with it, or up to the end.
        let end = lvm_lines().rfind('}').expect("it has an end");
        let edited = format!("{}  }}\n", &lvm_lines()[..end]);
        std::fs::write(&file, format!("{edited}{others}")).expect("written");
        run();
        assert_eq!(std::fs::read_to_string(&file).expect("it stays"), others);
        let open = format!("{others}{}", &lvm_lines()[..end]);
        std::fs::write(&file, &open).expect("written");
        run();
        assert_eq!(std::fs::read_to_string(&file).expect("it stays"), open);
        std::fs::write(&file, lvm_lines()).expect("written");
        run();
        assert!(!file.exists(), "nothing else was in it");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
    }

    /// Of a device that was handed over it was said that its tap is missing, and to start farsided again.
    #[test]
    fn a_disk_that_is_held_is_as_it_should_be_unless_somebody_uses_it_or_may() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let at = dir.path().canonicalize().expect("there");
        let path = at.join("farsided.toml");
        let text = format!(
            "[source]\nname='h1'\nstate_dir='{at}/state'\n[[volume]]\nname='data'\nbacking='{at}/data'\ntap='nbd:unix:{at}/tap'\n",
            at = at.display()
        );
        std::fs::write(&path, text).expect("written");
        std::fs::write(at.join("data"), "").expect("written");
        let config = Config::load(&path).expect("valid");
        let of_data = || of_volume(config.volumes.values().next().expect("one"), &config);
        assert!(of_data().found.contains("is served as"));
        let over = failback::hold(&at.join("state"), ("default", "data"), &at.join("data"));
        let found = of_data();
        assert!(found.verdict == Verdict::Good && found.found.contains("farside failback --list"), "{found:?}");
        over();
        assert!(of_data().found.contains("is served as"));
        let group = "db".parse().expect("a name");
        let of = |is_mounted, sight| held("volume x".to_owned(), Path::new("/dev/vg/x"), &group, (is_mounted, sight));
        let used = of(true, Sight::Hidden);
        assert!(used.verdict == Verdict::Missing && used.mend.as_deref() == Some("umount /dev/vg/x"), "{used:?}");
        assert_eq!(of(false, Sight::Nameless).verdict, Verdict::Warning);
        assert_eq!(of(false, Sight::Seen).verdict, Verdict::Missing);
    }

    #[test]
    fn who_can_make_no_device_is_warned() {
        assert_eq!(without_ublk("no ublk here", true).verdict, Verdict::Good);
        let neither = without_ublk("no ublk here", false);
        assert!(neither.verdict == Verdict::Warning && neither.found.contains("not there either"), "{neither:?}");
        assert_eq!(devices_of_points(true, false).verdict, Verdict::Good);
        assert_eq!(devices_of_points(false, true).verdict, Verdict::Good);
        assert_eq!(devices_of_points(false, false).verdict, Verdict::Warning);
    }

    #[test]
    fn nobody_is_told_to_check_a_file_that_is_not_there() {
        let dir = tempfile::tempdir().expect("temp dir");
        let findings = examine(&dir.path().join("farsided.toml"), false);
        let absent = findings.iter().find(|finding| finding.subject == "configuration").expect("looked at");
        assert!(absent.verdict == Verdict::Missing && absent.mend.is_none(), "{absent:?}");
    }

    #[test]
    fn everything_that_is_missing_says_how_to_mend_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("farsided.toml");
        std::fs::write(&path, "nonsense = 1\n").expect("written");
        let of = |subject: &str| examine(&path, false).into_iter().find(|f| f.subject == subject).expect("looked at");
        let wrong = of("configuration");
        assert_eq!(wrong.verdict, Verdict::Missing);
        assert!(wrong.found.contains("nonsense") && wrong.mend.is_some_and(|mend| mend.contains("--check")));
        let state = dir.path().join("state");
        let text = format!(
            "[source]\nname='h'\nstate_dir='{}'\n[[volume]]\nname='a'\nbacking='/dev/none'\n[[volume]]\nname='b'\n\
             backing='/dev/null'\ninsert=true\n",
            state.display()
        );
        std::fs::write(&path, text).expect("written");
        assert_eq!(of("configuration").verdict, Verdict::Good);
        assert!(of("intent maps").found.contains(&state.display().to_string()));
        assert_eq!(of("volume a").verdict, Verdict::Missing);
        let b = of("volume b");
        assert!(b.verdict == Verdict::Missing && !b.found.is_empty(), "{b:?}");
        assert_eq!(of("io_uring").verdict, Verdict::Good);
    }
}
