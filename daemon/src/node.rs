//! `/dev/farside/NAME`: where a host finds a volume's device, whatever number the kernel gave it.
//!
//! Invariant: the name points to the volume's device or is not there; it changes in one step. What users mount is their own
//! business: nothing here looks at what is below the names.
//!
//! Where udev runs it is told, too (`60-farside.rules`): systemd waits for a device of fstab until udev has named it, and a
//! link that udev does not know of is none for it. Invariant: what udev is told of a device in use stays true and whole while
//! daemons come and go: a device of which udev knows nothing for a moment is gone for systemd, which unmounts it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use farside_blockio::dm::DevNumber;
use farside_region::Name;
use tracing::warn;

use crate::boot::{self, Look, have_udev_look};

pub(crate) const FOLDER: &str = "/dev/farside";
/// Where udev's rule finds the name of a kernel device's volume.
const UDEV: &str = "/run/farside/udev";

/// Where a volume's device belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Under a device of the device mapper, whose content is the same: nobody else is to look at this one.
    pub(crate) inserted: bool,
}

/// A volume's name in `/dev`.
pub(crate) fn path(volume: &Name) -> PathBuf {
    Path::new(FOLDER).join(volume.as_str())
}

/// Lets a volume's name point to its device.
///
/// # Errors
/// When `/dev` does not take it.
pub(crate) fn publish(volume: &Name, device: &Path, place: Place) -> io::Result<()> {
    publish_in(Path::new(FOLDER), volume, device)?;
    let tell = || {
        let is_found = place.inserted || boot::is_known_as(DevNumber::at(device)?, volume);
        note(Path::new(UDEV), volume, device, Some(place))?;
        have_udev_look(device, Look::Changed)?;
        // † udev found it before it was to be seen, and LVM heeds nothing else. Two looks: its links of then, by which LVM is
        // told to overlook it, go with the first.
        match is_found {
            true => Ok(()),
            false => have_udev_look(device, Look::Found),
        }
    };
    let told = tell();
    if let Err(error) = told
        && Path::new("/run/udev/control").exists()
    {
        warn!(%volume, %error, "udev was not told the volume's name: what waits for its device or its UUID waits on");
    }
    Ok(())
}

/// Has udev find the name when it looks at the device for the first time; or, as `None`, that it is one of ours, and nobody is to look
/// at it nor find it by that name yet.
pub(crate) fn announce(volume: &Name, device: &Path, place: Option<Place>) {
    // Said again, and complained of, when the device is there.
    let _ = note(Path::new(UDEV), volume, device, place);
}

const NAME_KEY: &str = "FARSIDE_NAME";
const UNSHOWN_KEY: &str = "FARSIDE_UNSHOWN";

/// Leaves the name where the rule looks for it, in one step.
fn note(folder: &Path, volume: &Name, device: &Path, place: Option<Place>) -> io::Result<()> {
    let Some(kernel_name) = device.file_name() else { return Ok(()) };
    let key = if place.is_some() { NAME_KEY } else { UNSHOWN_KEY };
    let inserted = if place.is_some_and(|place| place.inserted) { "FARSIDE_INSERTED=1\n" } else { "" };
    std::fs::create_dir_all(folder)?;
    let young = folder.join(format!(".{}.new", kernel_name.to_string_lossy()));
    std::fs::write(&young, format!("{key}={volume}\n{inserted}"))?;
    let now = folder.join(kernel_name);
    // One at a time: two volumes may come to have each other's numbers.
    let mut noted = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    std::fs::rename(young, &now)?;
    // † Of a device that it lost: the next one that the kernel gives that number may be anybody's, and would have the volume's name. (A note that was
    // not left here may be of another daemon's volume of that name.)
    let before = noted.insert(volume.clone(), now.clone()).filter(|before| *before != now);
    if let Some(before) = before.filter(|before| is_note_of(before, volume)) {
        let _ = std::fs::remove_file(before);
    }
    Ok(())
}

/// Where this process left each volume's name last.
static NOTED: Mutex<BTreeMap<Name, PathBuf>> = Mutex::new(BTreeMap::new());

/// Takes a volume's name away; it need not be there.
pub(crate) fn withdraw(volume: &Name) {
    forget(Path::new(UDEV), volume);
    withdraw_link(volume);
}

/// The same for who looks into `/dev` only.
pub(crate) fn withdraw_link(volume: &Name) {
    let _ = std::fs::remove_file(path(volume)); // a name without a device hurts nobody, and is replaced by the next
}

/// Whether a volume's name points to this device.
pub(crate) fn is_shown(volume: &Name, device: &Path) -> bool {
    let is_of = |path: &Path| std::fs::canonicalize(path).ok(); // udev writes it another way than we
    is_of(&path(volume)).is_some_and(|shown| Some(shown) == is_of(device))
}

/// The volume whose device the kernel calls so, or that it was the device of last.
pub(crate) fn volume_of(kernel_name: &str) -> Option<String> {
    volume_noted(Path::new(UDEV), kernel_name)
}

fn volume_noted(folder: &Path, kernel_name: &str) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(kernel_name)).ok()?;
    let mut values = text.lines().filter_map(|line| line.split_once('='));
    values.find(|(key, _)| [NAME_KEY, UNSHOWN_KEY].contains(key)).map(|(_, volume)| volume.to_owned())
}

/// † By the name in it: udev takes the link away together with the device, and who reads that comes too late.
fn forget(folder: &Path, volume: &Name) {
    let notes = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|note| note.path());
    notes.filter(|note| is_note_of(note, volume)).for_each(|note| drop(std::fs::remove_file(note)));
}

fn is_note_of(note: &Path, volume: &Name) -> bool {
    let lines = [NAME_KEY, UNSHOWN_KEY].map(|key| format!("{key}={volume}"));
    std::fs::read_to_string(note).is_ok_and(|text| text.lines().any(|found| lines.iter().any(|line| found == line)))
}

fn publish_in(folder: &Path, volume: &Name, device: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    // No volume's name begins with a dot.
    let young = folder.join(format!(".{volume}.new"));
    match std::fs::remove_file(&young) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(device, &young)?;
    std::fs::rename(&young, folder.join(volume.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_its_device() {
        let dev = tempfile::tempdir().expect("temp dir");
        let folder = dev.path().join("farside");
        let volume: Name = "data".parse().expect("a name");
        std::fs::create_dir(&folder).expect("made");
        std::fs::write(folder.join(".data.new"), "what a crash left").expect("written");
        for device in ["/dev/nbd0", "/dev/nbd7"] {
            publish_in(&folder, &volume, Path::new(device)).expect("published");
            assert_eq!(std::fs::read_link(folder.join("data")).expect("a link"), Path::new(device));
        }
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 1);
        // udev reads lines of KEY=VALUE.
        let rules = dev.path().join("udev");
        let (inserted, place) = (Some(Place { inserted: true }), Some(Place { inserted: false }));
        for (place, lines) in [
            (None, "FARSIDE_UNSHOWN=data\n"),
            (inserted, "FARSIDE_NAME=data\nFARSIDE_INSERTED=1\n"),
            (place, "FARSIDE_NAME=data\n"),
        ] {
            note(&rules, &volume, Path::new("/dev/nbd7"), place).expect("told");
            assert_eq!(std::fs::read_to_string(rules.join("nbd7")).expect("told"), lines);
            assert_eq!(volume_noted(&rules, "nbd7").as_deref(), Some("data"), "{lines}");
        }
        assert_eq!(volume_noted(&rules, "sda"), None);
        assert_eq!(std::fs::read_dir(&rules).expect("a folder").count(), 1);
        note(&rules, &"data2".parse().expect("a name"), Path::new("/dev/nbd8"), place).expect("told");
        // A device that was lost may come again as anybody's.
        std::fs::write(rules.join("nbd6"), "FARSIDE_NAME=data\n").expect("another daemon's volume of that name");
        note(&rules, &volume, Path::new("/dev/nbd9"), None).expect("told");
        assert!(
            rules.join("nbd6").exists()
                && !rules.join("nbd7").exists()
                && rules.join("nbd8").exists()
                && rules.join("nbd9").exists()
        );
        note(&rules, &volume, Path::new("/dev/nbd7"), place).expect("told");
        assert!(rules.join("nbd7").exists() && rules.join("nbd8").exists() && !rules.join("nbd9").exists());
        std::fs::write(rules.join("nbd9"), "FARSIDE_UNSHOWN=data\n").expect("an earlier version left it");
        forget(&rules, &volume);
        assert!(!rules.join("nbd7").exists() && rules.join("nbd8").exists() && !rules.join("nbd9").exists());
    }
}
