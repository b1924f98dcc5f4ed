//! What the tests need of the system, and how it gets there: through apt on a Debian 12 as root, otherwise by telling a
//! person.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

/// A Debian package and a program by which its presence is known.
const NEEDED: &[(&str, &str)] = &[
    ("borgbackup", "borg"),
    ("e2fsprogs", "mke2fs"),
    ("fio", "fio"),
    ("fuse3", "fusermount3"),
    ("iproute2", "bridge"),
    ("iproute2", "ip"),
    ("iproute2", "tc"),
    ("libnbd-bin", "nbdcopy"),
    ("libnbd-bin", "nbdfuse"),
    ("libnbd-bin", "nbdinfo"),
    ("mount", "losetup"),
    ("postgresql", "/usr/lib/postgresql/15/bin/postgres"), // Debian keeps it out of the search path
    ("python3-libnbd", "nbdsh"),
    ("qemu-utils", "qemu-img"),
    ("restic", "restic"),
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("xfsprogs", "mkfs.xfs"),
];

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
    apt(&["update", "-qq"])?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(&missing);
    apt(&args)?;
    match NEEDED.iter().find(|(_, program)| !is_installed(program)) {
        Some((package, program)) => bail!("{package} is installed, and yet there is no {program}"),
        None => Ok(()),
    }
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
