//! What the running kernel's driver can do, and what is wrong with it.
//!
//! What it can do is asked ([`crate::uapi::feature`]), never concluded from a version. What is wrong with it can only be known
//! from one, so [`FAULTS`] names the builds; a fault that a later feature bit proves mended is told by that bit. Invariant: a
//! fault that could stop the machine or lose a write refuses the device, unless a person accepted it by name.

use farside_blockio::{DeviceKind, FileDevice};

use crate::UblkError;
use crate::control::Control;
use crate::uapi::feature;

/// A kernel release, as upstream counts.
pub type Version = (u32, u32, u32);

/// The running kernel, as far as its ublk driver is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// Of the sources it was built from, where that can be told.
    pub version: Option<Version>,
    /// What its driver can do: bits of [`feature`].
    pub features: u64,
    /// `kernel.panic_on_warn` is set.
    panics_on_warnings: bool,
}

/// Something known to be wrong with some kernels.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// By which a person accepts it.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    /// Which builds are free of it.
    pub mended: &'static str,
    /// What we do about it.
    pub effect: Effect,
    is_in: fn(&Kernel) -> bool,
}

/// What a [`Fault`] keeps us from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// No ublk device is made or served.
    Refused,
    /// Data is copied.
    NoZeroCopy,
    /// The kernel looks for partitions only where the disk has a table already.
    NoPartitionScan,
    /// A device has one queue.
    OneQueue,
}

/// Every fault that we know of and that the way in which we use the driver would meet.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "null-at-add",
        what: "its driver uses the map of processors before there is one as a device is made, which kills the kernel's worker \
               and leaves the driver locked until a reboot",
        mended: "6.18.6, 6.19, or Ubuntu's 6.17.0-41 (6.17.0-1020 on AWS, 6.17.0-1021 on Azure)",
        effect: Effect::Refused,
        is_in: |kernel| matches!(kernel.version, Some((6, 18, 4 | 5))) || kernel.is_ubuntu_6_17_with_half_a_backport(),
    },
    Fault {
        name: "null-at-second-recovery",
        what: "its driver dereferences null when a server dies while it takes a device over and the next one begins (CVE-2024-46735)",
        mended: "6.1.110, 6.6.51, 6.10.10 or 6.11",
        effect: Effect::Refused,
        is_in: |kernel| {
            kernel.version.is_some_and(|version| match version {
                (6, 1, patch) => patch < 110,
                (6, 6, patch) => patch < 51,
                (6, 10, patch) => patch < 10,
                version => version < (6, 11, 0),
            })
        },
    },
    Fault {
        name: "pages-outlive-their-server",
        what: "its driver gives the requests of a server that died to the next one while the dead one still holds their pages, and \
               may then end a request that nobody has done",
        mended: "any whose driver has the feature BUF_REG_OFF_DAEMON (6.17 and newer)",
        effect: Effect::NoZeroCopy,
        is_in: |kernel| kernel.has(feature::AUTO_BUF_REG) && !kernel.has(feature::BUF_REG_OFF_DAEMON),
    },
    Fault {
        name: "false-alarm-of-bounds",
        what: "a kernel built with checks of array bounds raises a false alarm as a request's pages are registered, and this one is \
               told to stop at any alarm (kernel.panic_on_warn = 1)",
        mended: "none yet: `sysctl -w kernel.panic_on_warn=0` lets it go on",
        effect: Effect::NoZeroCopy,
        is_in: |kernel| kernel.has(feature::AUTO_BUF_REG) && kernel.panics_on_warnings,
    },
    Fault {
        name: "scan-under-lock",
        what: "its driver holds the device's lock while the kernel reads the partition table, and a server that dies at that moment \
               leaves a process that nothing ends (CVE-2025-68823)",
        mended: "any whose driver has the feature NO_AUTO_PART_SCAN (7.0 and newer)",
        effect: Effect::NoPartitionScan,
        is_in: |kernel| !kernel.has(feature::NO_AUTO_PART_SCAN),
    },
    Fault {
        name: "null-between-queues",
        what: "its driver dereferences null when a server dies between the commands of a device's first and its last queue and the \
               next one takes over",
        mended: "any whose driver has the feature PER_IO_DAEMON (6.16 and newer)",
        effect: Effect::OneQueue,
        is_in: |kernel| !kernel.has(feature::PER_IO_DAEMON),
    },
];

/// How the data of requests comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// A read goes into the host's own pages; a write's data is copied by us, as it is taken.
    ZeroCopy,
    /// The driver copies between them and memory of ours.
    Copy,
}

impl DataPath {
    /// Of a device with these flags.
    pub(crate) fn of_device(flags: u64) -> Self {
        if flags & ZERO_COPY == ZERO_COPY { Self::ZeroCopy } else { Self::Copy }
    }

    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero copy",
            Self::Copy => "copy",
        }
    }
}

/// A data path, and why it is this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub path: DataPath,
    /// As the rest of a sentence.
    pub why: String,
}

impl Choice {
    /// With a device that is there already, or of which the driver made less. One that was made for zero copy can do with a copy;
    /// the other way round is none.
    pub(crate) fn with(self, made_for: DataPath) -> Self {
        match made_for {
            DataPath::Copy if self.path == DataPath::ZeroCopy => Self {
                path: made_for,
                why: "the device was made so; a reboot, or taking the volume out and adding it, makes it anew".to_owned(),
            },
            _ => self,
        }
    }
}

impl Kernel {
    /// Asks the driver.
    ///
    /// # Errors
    /// [`UblkError`], with the remedy, where there is none.
    pub fn running() -> Result<Self, UblkError> {
        Ok(Self::of(Control::open()?.features()?))
    }

    pub(crate) fn of(features: u64) -> Self {
        let name = nix::sys::utsname::uname().ok();
        let word = |word: &std::ffi::OsStr| word.to_string_lossy().into_owned();
        let release = name.as_ref().map_or_else(String::new, |name| word(name.release()));
        let build = name.as_ref().map_or_else(String::new, |name| word(name.version()));
        let signature = std::fs::read_to_string("/proc/version_signature").unwrap_or_default();
        let panic_on_warn = std::fs::read_to_string("/proc/sys/kernel/panic_on_warn").unwrap_or_default();
        let version = upstream_version(&release, &build, &signature);
        Self { release, version, features, panics_on_warnings: panic_on_warn.trim() == "1" }
    }

    /// Whether its driver has all of these [`feature`] bits.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// What is wrong with it.
    pub fn faults(&self) -> impl Iterator<Item = &'static Fault> + '_ {
        FAULTS.iter().filter(|fault| (fault.is_in)(self))
    }

    /// Whether devices can be had: the driver keeps them over a restart of their server, and has no fault that a person has not
    /// accepted.
    ///
    /// # Errors
    /// [`UblkError::NoRecovery`] and [`UblkError::Faulty`].
    pub fn allows(&self, accepted: &[String]) -> Result<(), UblkError> {
        if !self.has(NEEDED) {
            return Err(UblkError::NoRecovery { features: self.features });
        }
        let mut refusing = self.faults().filter(|fault| fault.effect == Effect::Refused);
        match refusing.find(|fault| !is_accepted(fault, accepted)) {
            Some(fault) => Err(UblkError::Faulty { release: self.release.clone(), fault }),
            None => Ok(()),
        }
    }

    /// How the data of a new device for this backing comes and goes. `copied`: a person wants it so.
    pub fn data_path(&self, backing: &FileDevice, copied: bool, accepted: &[String]) -> Choice {
        let topology = backing.topology();
        self.choose(copied, accepted, backing.kind() == DeviceKind::Block, topology.stable_writes)
    }

    /// As far as the kernel alone decides.
    pub fn data_path_of_devices(&self, accepted: &[String]) -> Choice {
        self.choose(false, accepted, true, false)
    }

    fn choose(&self, copied: bool, accepted: &[String], block: bool, stable: bool) -> Choice {
        let copy = |why: String| Choice { path: DataPath::Copy, why };
        let fault = self.faults().find(|fault| fault.effect == Effect::NoZeroCopy && !is_accepted(fault, accepted));
        if copied {
            copy("the configuration says so".to_owned())
        } else if !self.has(ZERO_COPY) {
            copy("this kernel's driver cannot register the pages of requests (AUTO_BUF_REG, Linux 6.17 and newer)".to_owned())
        } else if let Some(fault) = fault {
            copy(format!("{} (known fault {})", fault.what, fault.name))
        } else if !block {
            copy("the backing is a file, whose file system may sum up what it is about to write".to_owned())
        } else if stable {
            copy("the backing sums up what it is about to write, so that the host must not change it meanwhile".to_owned())
        } else {
            Choice { path: DataPath::ZeroCopy, why: "the kernel registers the pages of requests (AUTO_BUF_REG)".to_owned() }
        }
    }

    pub(crate) fn may_have_queues(&self, accepted: &[String]) -> bool {
        self.faults().all(|fault| fault.effect != Effect::OneQueue || is_accepted(fault, accepted))
    }

    pub(crate) fn may_scan(&self, accepted: &[String]) -> bool {
        self.faults().all(|fault| fault.effect != Effect::NoPartitionScan || is_accepted(fault, accepted))
    }

    /// Ubuntu took "NUMA-aware memory allocation" without the commit before it.
    fn is_ubuntu_6_17_with_half_a_backport(&self) -> bool {
        let Some(rest) = self.release.strip_prefix("6.17.0-") else { return false };
        let (number, flavour) = rest.split_once('-').unwrap_or((rest, ""));
        let Ok(number) = number.parse::<u32>() else { return false };
        match flavour {
            "azure" => (1014..1021).contains(&number),
            _ if number >= 1000 => (1014..1020).contains(&number),
            _ => (24..41).contains(&number),
        }
    }
}

pub(crate) const NEEDED: u64 = feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE | feature::CMD_IOCTL_ENCODE;
/// User copy is the way out for a request whose pages cannot be registered.
pub(crate) const ZERO_COPY: u64 = feature::AUTO_BUF_REG | feature::USER_COPY;

fn is_accepted(fault: &Fault, accepted: &[String]) -> bool {
    accepted.iter().any(|name| name == fault.name)
}

/// Distributions count their own builds: Debian says in `uname -v` what its sources were, Ubuntu in a file.
fn upstream_version(release: &str, build: &str, signature: &str) -> Option<Version> {
    let debian = build.split_once("Debian ").map(|(_, version)| version);
    let ubuntu = signature.split_whitespace().next_back();
    debian.or(ubuntu).and_then(version_of).or_else(|| version_of(release))
}

fn version_of(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut parts = text[..end].split('.').map(str::parse::<u32>);
    let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
    Some((major, minor, parts.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: u64 = 0x1fe;
    const NEW: u64 = 0xf_ffff;

    fn kernel(release: &str, version: Version, features: u64) -> Kernel {
        Kernel { release: release.to_owned(), version: Some(version), features, panics_on_warnings: false }
    }

    fn names(kernel: &Kernel) -> Vec<&'static str> {
        kernel.faults().map(|fault| fault.name).collect()
    }

    #[test]
    fn the_version_is_that_of_the_sources() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-11-01)";
        assert_eq!(upstream_version("6.1.0-50-amd64", debian, ""), Some((6, 1, 176)));
        assert_eq!(
            upstream_version("6.8.0-50-generic", "#51-Ubuntu SMP", "Ubuntu 6.8.0-50.51-generic 6.8.12\n"),
            Some((6, 8, 12))
        );
        assert_eq!(upstream_version("7.2.12+deb13-amd64", "#1 SMP", ""), Some((7, 2, 12)));
        assert_eq!(upstream_version("6.19-rc3", "", ""), Some((6, 19, 0)));
        assert_eq!(upstream_version("", "", ""), None);
    }

    #[test]
    fn known_bad_kernels_are_known_and_their_neighbours_are_not() {
        let bad = |kernel: &Kernel| kernel.allows(&[]).is_err();
        for (release, version, is_bad) in [
            ("6.18.3", (6, 18, 3), false),
            ("6.18.4", (6, 18, 4), true),
            ("6.18.5", (6, 18, 5), true),
            ("6.18.6", (6, 18, 6), false),
            ("6.17.0-14-generic", (6, 17, 13), false),
            ("6.17.0-35-generic", (6, 17, 13), true),
            ("6.17.0-41-generic", (6, 17, 13), false),
            ("6.17.0-1017-aws", (6, 17, 13), true),
            ("6.17.0-1020-aws", (6, 17, 13), false),
            ("6.17.0-1020-azure", (6, 17, 13), true),
            ("6.17.0-1021-azure", (6, 17, 13), false),
            ("6.8.0-50-generic", (6, 8, 12), true),
            ("6.6.50", (6, 6, 50), true),
            ("6.6.51", (6, 6, 51), false),
            ("6.10.9", (6, 10, 9), true),
            ("6.11.0", (6, 11, 0), false),
            ("6.12.95+deb12-amd64", (6, 12, 95), false),
            ("7.2.12+deb13-amd64", (7, 2, 12), false),
        ] {
            let kernel = kernel(release, version, OLD);
            assert_eq!(bad(&kernel), is_bad, "{release}: {:?}", names(&kernel));
        }
        let error = kernel("6.18.4", (6, 18, 4), OLD).allows(&[]).unwrap_err().to_string();
        assert!(error.contains("6.18.4") && error.contains("null-at-add") && error.contains("6.18.6"), "{error}");
        assert!(kernel("6.18.4", (6, 18, 4), OLD).allows(&["null-at-add".to_owned()]).is_ok(), "accepted by name");
        assert!(kernel("6.18.4", (6, 18, 4), OLD).allows(&["scan-under-lock".to_owned()]).is_err());
        assert!(matches!(kernel("6.12", (6, 12, 0), 0).allows(&[]), Err(UblkError::NoRecovery { .. })));
    }

    #[test]
    fn the_table_names_each_fault_once_and_says_what_helps() {
        let mut names: Vec<_> = FAULTS.iter().map(|fault| fault.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAULTS.len());
        assert!(FAULTS.iter().all(|fault| !fault.what.is_empty() && !fault.mended.is_empty()));
    }

    #[test]
    fn a_data_path_is_chosen_by_what_could_be_wrong_with_it() {
        let path = |kernel: &Kernel, copied, block, stable| kernel.choose(copied, &[], block, stable).path;
        let new = kernel("7.2", (7, 2, 0), NEW);
        assert_eq!(path(&new, false, true, false), DataPath::ZeroCopy);
        assert_eq!(path(&new, true, true, false), DataPath::Copy, "configured");
        assert_eq!(path(&new, false, false, false), DataPath::Copy, "a file");
        assert_eq!(path(&new, false, true, true), DataPath::Copy, "sums");
        let old = kernel("6.12", (6, 12, 95), OLD);
        assert_eq!(path(&old, false, true, false), DataPath::Copy);
        assert!(new.may_have_queues(&[]) && !old.may_have_queues(&[]));
        assert!(new.may_scan(&[]) && !old.may_scan(&[]) && old.may_scan(&["scan-under-lock".to_owned()]));
        let new_choice = new.choose(false, &[], true, false);
        let strict = Kernel { panics_on_warnings: true, ..new };
        let choice = strict.choose(false, &[], true, false);
        assert!(choice.path == DataPath::Copy && choice.why.contains("false-alarm-of-bounds"), "{choice:?}");
        assert_eq!(choice.clone().with(DataPath::ZeroCopy), choice, "pages are not used");
        let kept = new_choice.with(DataPath::Copy);
        assert!(kept.path == DataPath::Copy && kept.why.contains("made so"), "{kept:?}");
        let accepted = ["false-alarm-of-bounds".to_owned()];
        assert_eq!(strict.choose(false, &accepted, true, false).path, DataPath::ZeroCopy);
    }
}
