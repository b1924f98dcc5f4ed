//! Which mounts come after the daemon, and which it needs itself: systemd's generator `farsided-generator`, which is this
//! program under that name.
//!
//! A mount of a tap waits for the tap's device by itself as it comes up. Only a dependency on the daemon has it unmounted before
//! the daemon stops. Which mount will be of a tap cannot be known before udev has seen the disks, so every mount of a disk in
//! `/etc/fstab` comes after the daemon, but for those that the daemon needs: there would be a cycle.

use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use farside_insert::stack::unescaped;

use super::{LIST, List};
use crate::config::{Config, STATE_DIR};
use crate::fstab::{Entry, FSTAB, entries};

/// The name under which this program is a generator.
pub const NAME: &str = "farsided-generator";
const UNITS: [&str; 2] = ["farsided.service", "farside-boot.service"];
const DROP_IN: &str = "50-farside.conf";

/// Writes drop-ins of units into systemd's folder for them.
///
/// # Errors
/// When that cannot be written. The boot goes on: what is missing then is an order at its end.
pub fn generate(folder: &Path) -> anyhow::Result<()> {
    let fstab = std::fs::read_to_string(FSTAB).unwrap_or_default();
    let config = Path::new("/etc/farside/farsided.toml");
    let needed = match Config::load(config) {
        Ok(config) => needed_by(&config),
        // It will not start; what decides without it needs the state directory.
        Err(_) => List::load(&config.with_file_name(LIST)).map(|list| vec![list.state_dir]).unwrap_or_default(),
    };
    for (unit, text) in drop_ins(&fstab, &needed) {
        let dir = folder.join(format!("{unit}.d"));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::write(dir.join(DROP_IN), text).with_context(|| format!("cannot write to {}", dir.display()))?;
    }
    Ok(())
}

/// The state directory first; then the volumes that are files.
fn needed_by(config: &Config) -> Vec<PathBuf> {
    let files = config.volumes.values().map(|v| v.backing.clone()).filter(|path| !path.starts_with("/dev"));
    let mut needed: Vec<PathBuf> = std::iter::once(config.source.state_dir.clone()).chain(files).collect();
    // A link to where it is, as far as that can be seen now.
    let behind: Vec<PathBuf> =
        needed.iter().chain([&STATE_DIR.into()]).filter_map(|path| std::fs::canonicalize(path).ok()).collect();
    needed.extend(behind);
    needed
}

/// Units, and what is said of them. `needed`: what the daemon needs, beginning with its state directory.
fn drop_ins(fstab: &str, needed: &[PathBuf]) -> Vec<(String, String)> {
    let state_dir = needed.first().filter(|dir| dir.is_absolute()).map_or(Path::new(STATE_DIR), PathBuf::as_path);
    let always = ["/etc/farside", "/usr/bin", "/var/lib/farside"].map(PathBuf::from);
    let is_needed = |mount: &Path| always.iter().chain(needed).any(|path| path.starts_with(mount));
    let (disks, folders) = mounts(fstab);
    // What is needed lies in a folder that is shown elsewhere: then the folder is needed.
    let mut needed_folders: Vec<PathBuf> = Vec::new();
    while let Some((source, _)) = folders.iter().find(|(source, mount)| {
        !needed_folders.contains(source) && (is_needed(mount) || needed_folders.iter().any(|path| path.starts_with(mount)))
    }) {
        needed_folders.push(source.clone());
    }
    let is_needed = |mount: &Path| is_needed(mount) || needed_folders.iter().any(|path| path.starts_with(mount));
    let (before, after): (Vec<PathBuf>, Vec<PathBuf>) = disks.into_iter().partition(|mount| is_needed(mount));
    let mut found: Vec<(String, String)> =
        after.iter().map(|mount| (unit(mount), "[Unit]\nAfter=farsided.service\n".to_owned())).collect();
    let before: Vec<String> = before.iter().filter(|mount| *mount != Path::new("/")).map(|mount| unit(mount)).collect();
    let order = if before.is_empty() { String::new() } else { format!("After={}\n", before.join(" ")) };
    // It takes apart what rests on taps when a host is switched off. (Not lvm2-monitor.service: that is before every local mount,
    // and any of them that the daemon needs and fstab does not tell of would close a cycle.)
    let lvm = if before.is_empty() { "Before=blk-availability.service\n" } else { "" };
    found.extend(UNITS.map(|unit| {
        let lvm = if unit == UNITS[0] { lvm } else { "" };
        (unit.to_owned(), format!("[Unit]\nRequiresMountsFor=\"{}\"\n{order}{lvm}", state_dir.display()))
    }));
    found
}

/// Where `/etc/fstab` has disks mounted, and which files and folders it shows elsewhere, and where.
fn mounts(fstab: &str) -> (Vec<PathBuf>, Vec<(PathBuf, PathBuf)>) {
    let (mut disks, mut folders) = (Vec::new(), Vec::new());
    for Entry { source, mount, .. } in entries(fstab) {
        if source.starts_with("/dev/") || source.contains('=') {
            disks.push(mount);
        } else if source.starts_with('/') {
            folders.push((unescaped(source), mount));
        }
    }
    (disks, folders)
}

/// The mount unit of a path, as systemd-escape(1) has it.
fn unit(mount: &Path) -> String {
    let parts: Vec<String> = mount
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy().bytes().map(escaped).collect()),
            _ => None,
        })
        .collect();
    let name = parts.join("-");
    match name.strip_prefix('.') {
        None if name.is_empty() => "-.mount".to_owned(),
        None => format!("{name}.mount"),
        Some(rest) => format!("\\x2e{rest}.mount"),
    }
}

fn escaped(byte: u8) -> String {
    match byte.is_ascii_alphanumeric() || b":_.".contains(&byte) {
        true => char::from(byte).to_string(),
        false => format!("\\x{byte:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_come_after_the_daemon_but_for_those_that_it_needs() {
        let fstab = "# /dev/x /no ext4\nUUID=1 / ext4 defaults 0 1\nUUID=2 /var ext4 defaults 0 2\n\
                     UUID=3 /srv ext4 defaults 0 2\n/dev/farside/data /srv/my-data\\040x xfs noatime 0 2\n\
                     LABEL=s none swap sw 0 0\ntmpfs /tmp tmpfs defaults 0 0\nhost:/x /mnt nfs defaults 0 0\n\
                     LABEL=i /images ext4 defaults 0 2\nUUID=4 /imagesque ext4 defaults 0 2\n";
        let found = drop_ins(fstab, &["/var/lib/farside".into(), "/images/a.img".into()]);
        let units: Vec<&str> = found.iter().map(|(unit, _)| unit.as_str()).collect();
        assert_eq!(
            units,
            ["srv.mount", "srv-my\\x2ddata\\x20x.mount", "imagesque.mount", "farsided.service", "farside-boot.service"]
        );
        assert_eq!(found[0].1, "[Unit]\nAfter=farsided.service\n");
        assert_eq!(found[3].1, "[Unit]\nRequiresMountsFor=\"/var/lib/farside\"\nAfter=var.mount images.mount\n");
        let plain = drop_ins("UUID=1 / ext4 defaults 0 1\n", &[]);
        let daemon = "[Unit]\nRequiresMountsFor=\"/var/lib/farside\"\nBefore=blk-availability.service\n";
        assert_eq!(plain[0], ("farsided.service".to_owned(), daemon.to_owned()));
        // The state directory is in a folder of another disk.
        let bound =
            "UUID=1 / ext4 defaults 0 1\nUUID=2 /big ext4 defaults 0 2\n/big/var /var none bind 0 0\nUUID=3 /srv ext4 rw 0 2\n";
        let found = drop_ins(bound, &["/var/lib/farside".into()]);
        assert_eq!(found.iter().map(|(unit, _)| unit.as_str()).collect::<Vec<_>>(), ["srv.mount", UNITS[0], UNITS[1]]);
        assert!(found[1].1.contains("After=big.mount\n"), "{}", found[1].1);
        assert_eq!(unit(Path::new("/")), "-.mount");
        assert_eq!(unit(Path::new("/.a/.b//c")), "\\x2ea-.b-c.mount");
    }
}
