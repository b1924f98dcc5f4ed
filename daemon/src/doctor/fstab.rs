//! What `/etc/fstab` says of volumes, as far as a boot or a death of the daemon would go wrong by it.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use farside_blockio::dm::DevNumber;
use farside_control::source::IfAbsent;
use farside_insert::stack;

use super::{Finding, Verdict};
use crate::config::{Config, VolumeConfig};
use crate::failback::{self, Asked};
use crate::fstab::{Entry, FSTAB, entries};
use crate::node;
use crate::state_dir::volume_path;
use crate::volume::device_of;

/// What is mounted: of `UUID=` and the like, udev's link to it.
fn device(entry: &Entry<'_>) -> PathBuf {
    match entry.source.split_once('=') {
        Some((tag, value)) => Path::new("/dev/disk").join(format!("by-{}", tag.to_lowercase())).join(value.trim_matches('"')),
        None => stack::unescaped(entry.source),
    }
}

/// Whether a boot ends in emergency mode where it is not there. (The root file system is another matter.)
fn is_waited_for(entry: &Entry<'_>) -> bool {
    let is_left_alone = |option| ["nofail", "noauto", "x-systemd.automount", "_netdev"].contains(&option);
    entry.mount != Path::new("/") && !entry.options.split(',').any(is_left_alone)
}

/// What is to be said of it.
pub(super) fn look(config: &Config) -> Vec<Finding> {
    let text = std::fs::read_to_string(FSTAB).unwrap_or_default();
    let awaited = entries(&text).filter(is_waited_for).filter_map(|entry| {
        let why = config.volumes.values().find_map(|volume| why_not_there(&entry, volume, config))?;
        Some(awaited(&entry, &why))
    });
    entries(&text).filter_map(|entry| requires(&entry)).chain(awaited).collect()
}

/// A mount that systemd would restart together with the daemon.
fn requires(entry: &Entry<'_>) -> Option<Finding> {
    if !entry.options.contains("x-systemd.requires=farsided") {
        return None;
    }
    let found = format!(
        "{} requires farsided.service: when farsided dies, systemd wants it unmounted first, which waits for farsided",
        entry.mount.display()
    );
    let mend = format!("sed -i 's/x-systemd.requires=farsided\\.service/defaults/' {FSTAB} && systemctl daemon-reload");
    Some(Finding::new("fstab", Verdict::Missing, found).mend(mend))
}

fn awaited(entry: &Entry<'_>, why: &str) -> Finding {
    let (source, mount) = (device(entry), entry.mount.display());
    let source = source.display();
    let found = format!(
        "{mount} is mounted from {source} without nofail: {why}, and then the boot waits 90 s and ends in emergency mode"
    );
    Finding::new("fstab", Verdict::Warning, found)
        .mend(format!("editor {FSTAB}: nofail among the options of {mount}; systemctl daemon-reload"))
}

/// When a boot does not find what is mounted, if that is of this volume.
fn why_not_there(entry: &Entry<'_>, volume: &VolumeConfig, config: &Config) -> Option<String> {
    let (name, tap) = (&volume.name, node::path(&volume.name));
    let source = device(entry);
    if source == tap {
        return Some(format!("it is not there at a boot at which volume {name} is not served"));
    }
    let state_dir = &config.source.state_dir;
    let device = device_of(volume, &volume_path(state_dir, &volume.group, &volume.name));
    let all = failback::disks_of(config);
    let is_held = || failback::stays_hidden(state_dir, Asked { group: &volume.group, volume: name, backing: &device, all: &all });
    let number = number_of(&source)?;
    let is_on = |path: &Path| number_of(path).is_some_and(|disk| number == disk || stack::is_part_of(number, disk));
    if is_on(&device) && is_held() {
        return Some(format!(
            "group {} was handed over or is being failed back, and no boot sees the disk so long",
            volume.group
        ));
    }
    let is_hidden = !volume.insert && volume.if_absent == IfAbsent::Refuse;
    (is_hidden && (is_on(&tap) || is_on(&device)))
        .then(|| format!("volume {name} says if_absent = \"refuse\", so it is not there at a boot at which it is not served"))
}

/// The number of a block device. (A folder or a file has none, and `stat` gives zero.)
fn number_of(path: &Path) -> Option<DevNumber> {
    let is_device = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
    DevNumber::at(path).ok().filter(|_| is_device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_by_its_name_is_not_to_keep_a_boot_waiting() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("farsided.toml");
        let at = dir.path().display();
        let text = format!(
            "[source]\nname='h1'\nstate_dir='{at}/state'\n[[volume]]\nname='data'\nbacking='{at}/data'\ntap='nbd:unix:{at}/tap'\nif_absent='refuse'\n"
        );
        std::fs::write(dir.path().join("data"), "").expect("written");
        let bind = format!("{at} /srv/data none bind 0 0");
        std::fs::write(&path, text).expect("written");
        let config = Config::load(&path).expect("valid");
        let of = |line: &str| {
            let entry = entries(line).find(is_waited_for)?;
            config.volumes.values().find_map(|volume| why_not_there(&entry, volume, &config)).map(|why| awaited(&entry, &why))
        };
        let found = of("/dev/farside/data /srv/my\\040data ext4 defaults 0 2").expect("it is said");
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.found.contains("/srv/my data") && found.found.contains("volume data is not served"), "{found:?}");
        for fine in [
            "/dev/farside/data /srv/data ext4 nofail 0 2",
            "/dev/farside/data /srv/data ext4 noauto,ro 0 2",
            "# /dev/farside/data /srv/data ext4 defaults 0 2",
            "/dev/farside/other /srv/data ext4 defaults 0 2",
            "UUID=none-of-ours /srv/data ext4 defaults 0 2",
            "/dev/farside/data none swap sw 0 0",
            "/dev/farside/data /srv/data ext4 x-systemd.automount 0 2",
            &bind,
            "nonsense",
        ] {
            assert_eq!(of(fine), None, "{fine}");
        }
    }

    #[test]
    fn what_is_named_by_its_content_is_looked_for_where_udev_has_it_and_no_mount_requires_the_daemon() {
        let entry =
            entries("PARTUUID=\"12-34\" /srv xfs x-systemd.requires=farsided.service,noatime 0 0").next().expect("a mount");
        assert_eq!(device(&entry), Path::new("/dev/disk/by-partuuid/12-34"));
        let found = requires(&entry).expect("it is said");
        assert!(found.verdict == Verdict::Missing && found.mend.is_some_and(|mend| mend.contains("systemctl")));
        assert_eq!(requires(&entries("UUID=1 /srv xfs defaults 0 0").next().expect("a mount")), None);
    }
}
