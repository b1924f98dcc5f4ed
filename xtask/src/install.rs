//! What the tests need of the system, and how it gets there: through apt on a Debian 12 as root, otherwise by telling a
//! person.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::kernels::Mirror;

/// A Debian package and a program by which its presence is known.
const NEEDED: &[(&str, &str)] = &[
    ("borgbackup", "borg"),
    ("ceph-common", "radosgw-admin"),
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("debhelper", "dh"),
    ("debootstrap", "debootstrap"),
    ("e2fsprogs", "mke2fs"),
    ("fio", "fio"),
    ("fuse3", "fusermount3"),
    ("iproute2", "bridge"),
    ("iproute2", "ip"),
    ("iproute2", "tc"),
    ("libnbd-bin", "nbdcopy"),
    ("libnbd-bin", "nbdfuse"),
    ("libnbd-bin", "nbdinfo"),
    ("lz4", "lz4"),
    ("mount", "losetup"),
    ("postgresql", "/usr/lib/postgresql/15/bin/postgres"), // Debian keeps it out of the search path
    ("python3-libnbd", "nbdsh"),
    (EMULATOR, "qemu-system-x86_64"),
    ("qemu-utils", "qemu-img"),
    ("radosgw", "radosgw"),
    ("restic", "restic"),
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("xfsprogs", "mkfs.xfs"),
    ("zstd", "zstd"),
];

/// Emulates the machines of the tests. It comes from backports, together with its tools: whichever of the two is there already,
/// Debian's own versions and those of the backports refuse to stand beside each other.
const EMULATOR: &str = "qemu-system-x86";
const EMULATOR_PACKAGES: [&str; 2] = [EMULATOR, "qemu-utils"];

/// Installs what is missing. Where it may not, it says what a person has to do.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(_, program)| !is_installed(program)).map(|(package, _)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        println!("everything the tests need is installed");
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !is_root || !is_installed("apt-get") {
        bail!("the tests need what is not here; install it as root, on Debian with: {command}");
    }
    println!("installing {}", missing.join(" "));
    let is_emulator_missing = missing.contains(&EMULATOR);
    if is_emulator_missing {
        missing.retain(|package| !EMULATOR_PACKAGES.contains(package));
    }
    if !missing.is_empty() {
        apt(&["update", "-qq"])?;
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], missing.as_slice()].concat())?;
    }
    // Last: libraries that it shares with the others (Ceph insists on one) then stay as this release has them.
    if is_emulator_missing {
        install_from_backports(&EMULATOR_PACKAGES)?;
    }
    match NEEDED.iter().find(|(_, program)| !is_installed(program)) {
        Some((package, program)) => bail!("{package} is installed, and yet there is no {program}"),
        None => Ok(()),
    }
}

/// From the backports of this machine's release, which its sources need not name, and do not name afterwards.
fn install_from_backports(packages: &[&str]) -> anyhow::Result<()> {
    let mirror = Mirror::of_this_machine()?;
    let own = std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let sources = std::env::temp_dir().join(format!("farside-sources-{}.list", std::process::id()));
    std::fs::write(&sources, format!("{own}\n{}", mirror.backports_line())).context("no room for a list of sources")?;
    let list = format!("Dir::Etc::SourceList={}", sources.display());
    let (suite, with_list) = (mirror.backports(), ["-o", list.as_str()]);
    let install = ["install", "-y", "-qq", "--no-install-recommends", "-t", &suite];
    let result = apt(&[with_list.as_slice(), &["update", "-qq"]].concat())
        .and_then(|()| apt(&[with_list.as_slice(), &install, packages].concat()));
    std::fs::remove_file(&sources).context("a list of sources cannot be removed")?;
    result
}

/// Whether a program is in the search path or where Debian keeps an administrator's programs.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into)).any(|dir| Path::new(&dir).join(program).is_file())
}

fn apt(args: &[&str]) -> anyhow::Result<()> {
    let output =
        Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive").output().context("apt-get does not start")?;
    if !output.status.success() {
        bail!(
            "apt-get {} failed: {}\n{}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
