//! `/dev/farside/NAME`: where a host finds a volume's device, whatever number the kernel gave it.
//!
//! Invariant: the name points to the volume's device or is not there; it changes in one step. What users mount is their own
//! business: nothing here looks at what is below the names.
//!
//! Where udev runs it is told, too (`60-farside.rules`): systemd waits for a device of fstab until udev has named it, and a
//! link that udev does not know of is none for it.

use std::io;
use std::path::{Path, PathBuf};

use farside_region::Name;
use tracing::debug;

const FOLDER: &str = "/dev/farside";
/// Where udev's rule finds the name of a kernel device's volume.
const UDEV: &str = "/run/farside/udev";

/// A volume's name in `/dev`.
pub(crate) fn path(volume: &Name) -> PathBuf {
    Path::new(FOLDER).join(volume.as_str())
}

/// Lets a volume's name point to its device.
///
/// # Errors
/// When `/dev` does not take it.
pub(crate) fn publish(volume: &Name, device: &Path) -> io::Result<()> {
    publish_in(Path::new(FOLDER), volume, device)?;
    if let Err(error) = tell_udev(Path::new(UDEV), volume, device) {
        debug!(%volume, %error, "udev was not told the volume's name");
    }
    Ok(())
}

/// Leaves the name where the rule looks for it, and has udev look.
fn tell_udev(folder: &Path, volume: &Name, device: &Path) -> io::Result<()> {
    let Some(kernel_name) = device.file_name() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(kernel_name), format!("FARSIDE_NAME={volume}\n"))?;
    std::fs::write(Path::new("/sys/class/block").join(kernel_name).join("uevent"), "change")
}

/// Takes a volume's name away; it need not be there.
pub(crate) fn withdraw(volume: &Name) {
    let link = path(volume);
    if let Some(kernel_name) = std::fs::read_link(&link).ok().as_deref().and_then(Path::file_name) {
        let _ = std::fs::remove_file(Path::new(UDEV).join(kernel_name));
    }
    let _ = std::fs::remove_file(link); // a name without a device hurts nobody, and is replaced by the next
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
        // udev reads lines of KEY=VALUE. (There is no such device to ask it to look at.)
        let rules = dev.path().join("udev");
        tell_udev(&rules, &volume, Path::new("/dev/no-device-of-any-kernel")).expect_err("no uevent");
        let told = std::fs::read_to_string(rules.join("no-device-of-any-kernel")).expect("told");
        assert_eq!(told, "FARSIDE_NAME=data\n");
    }
}
