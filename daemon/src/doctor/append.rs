//! Lines that are added to a file of the system's configuration, in which others write, too.
//!
//! Invariant: what was in it stays, byte for byte, whatever encoding it has; where that cannot be, nothing is changed. † `system_id`
//! and `host_id` of LVM stand in such a file: without them a host's volume groups are foreign to it at the next boot.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use anyhow::Context as _;

use crate::config::sync_dir;

/// Adds lines at the end of a file, which is made if it is not there, unless it says them already.
///
/// # Errors
/// When it cannot be read in full, or not be replaced: it is as it was.
pub(super) fn add_lines(path: &Path, lines: &str, is_said: impl FnOnce(&str) -> bool) -> anyhow::Result<()> {
    let as_it_was = || format!("{} stays as it is: nothing can be added to it", path.display());
    // What the name leads to is replaced, not the name.
    let real = match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        real => real.with_context(as_it_was)?,
    };
    let mut bytes = Vec::new();
    let known = match File::open(&real) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        file => {
            let mut file = file.with_context(as_it_was)?;
            file.read_to_end(&mut bytes).with_context(as_it_was)?;
            Some(file.metadata().with_context(as_it_was)?)
        }
    };
    if is_said(&String::from_utf8_lossy(&bytes)) {
        return Ok(());
    }
    if bytes.last().is_some_and(|last| *last != b'\n') {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(lines.as_bytes());
    let dir = real.parent().context("a file has a folder")?;
    let replace = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut temp = tempfile::NamedTempFile::new_in(dir)?;
        temp.write_all(&bytes)?;
        if let Some(known) = &known {
            fchown(temp.as_file(), Some(known.uid()), Some(known.gid()))?;
        }
        let permissions = known.map_or(Permissions::from_mode(0o644), |known| known.permissions());
        temp.as_file().set_permissions(permissions)?;
        temp.as_file().sync_all()?;
        temp.persist(&real)?;
        Ok(())
    };
    replace().with_context(as_it_was)?;
    Ok(sync_dir(dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A comment in Latin-1, and only our lines were left: `system_id` was gone, and with it, at the next boot, the volume groups.
    #[test]
    fn what_others_wrote_stays_byte_for_byte() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (path, link) = (dir.path().join("lvmlocal.conf"), dir.path().join("link"));
        let others = b"# f\xfcr web1\nlocal {\n\tsystem_id = \"web1\"\n\thost_id = 7\n}";
        std::fs::write(&path, others).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("ours");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        let mut before = File::open(&path).expect("there");
        let add = || add_lines(&link, "ours\n", |text| text.lines().any(|line| line == "ours"));
        add().expect("added");
        let now = [others.as_slice(), b"\nours\n"].concat();
        assert_eq!(std::fs::read(&path).expect("there"), now);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink(), "whoever put it there needs it");
        // † It is replaced as a whole: a full disk, or a power cut, leaves one or the other.
        let mut read = Vec::new();
        before.read_to_end(&mut read).expect("it is open");
        assert_eq!(read, others, "nothing was written over it");
        add().expect("it says so");
        assert_eq!(std::fs::read(&path).expect("there"), now, "once is enough");
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 2, "nothing is left beside it");
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_is_and_what_is_not_there_is_made() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("modules-load.d/farside.conf");
        add_lines(&path, "ublk_drv\n", |_| false).expect("made");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "ublk_drv\n");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o644);
        // A folder can be opened, and not be read: as a file whose disk gives an error.
        let unreadable = dir.path().join("modules-load.d");
        let error = add_lines(&unreadable, "ublk_drv\n", |_| false).expect_err("nobody knows what is in it");
        assert!(format!("{error:#}").contains("stays as it is"), "{error:#}");
        assert!(path.exists());
    }
}
