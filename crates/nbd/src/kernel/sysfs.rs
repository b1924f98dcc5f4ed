//! What the kernel shows of its NBD devices in `/sys/block`, and the two settings that netlink has no word for.

use std::io;
use std::path::{Path, PathBuf};

/// A device as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) index: u32,
    pub(super) bytes: u64,
    pub(super) block: u32,
}

const SYS: &str = "/sys/block";
const SECTOR: u64 = 512;

/// The connected device that somebody gave an identifier.
pub(super) fn find(identifier: &str) -> io::Result<Option<Shown>> {
    find_in(Path::new(SYS), identifier)
}

/// The connected devices that have an identifier.
pub(super) fn all() -> io::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(SYS)? {
        let at = entry?.path();
        let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(index) = name.strip_prefix("nbd").and_then(|n| n.parse().ok()) else { continue };
        if let Ok(backend) = std::fs::read_to_string(at.join("backend"))
            && is_connected(index)
        {
            found.push((index, backend.trim_end().to_owned()));
        }
    }
    Ok(found)
}

fn find_in(sys: &Path, identifier: &str) -> io::Result<Option<Shown>> {
    for entry in std::fs::read_dir(sys)? {
        let at = entry?.path();
        let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(index) = name.strip_prefix("nbd").and_then(|n| n.parse().ok()) else { continue };
        let text = |file: &str| std::fs::read_to_string(at.join(file)).ok();
        // The identifier alone outlives its connection in some kernels.
        if text("pid").is_none() || text("backend").is_none_or(|backend| backend.trim_end() != identifier) {
            continue;
        }
        let number = |file: &str| -> io::Result<u64> {
            let unclear = || io::Error::new(io::ErrorKind::InvalidData, format!("{name}/{file} is no number"));
            text(file).and_then(|n| n.trim().parse().ok()).ok_or_else(unclear)
        };
        let block = number("queue/logical_block_size")? as u32;
        return Ok(Some(Shown { index, bytes: number("size")? * SECTOR, block }));
    }
    Ok(None)
}

/// Whether a device is connected, if perhaps to a server that is dead.
pub(super) fn is_connected(index: u32) -> bool {
    at(index).join("pid").exists()
}

/// Whether the kernel keeps the identifiers of its devices.
pub(super) fn keeps_identifiers(index: u32) -> bool {
    at(index).join("backend").exists()
}

/// One of a device's settings.
pub(super) fn setting(index: u32, name: &str) -> Option<String> {
    std::fs::read_to_string(at(index).join("queue").join(name)).ok().map(|value| value.trim().to_owned())
}

/// Writes one of a device's settings.
pub(super) fn set(index: u32, setting: &str, value: &str) -> Result<(), (PathBuf, io::Error)> {
    let path = at(index).join("queue").join(setting);
    std::fs::write(&path, value).map_err(|error| (path, error))
}

fn at(index: u32) -> PathBuf {
    Path::new(SYS).join(format!("nbd{index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_identifier_while_it_is_connected() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (device, backend) in [("nbd0", "other"), ("nbd12", "ours")] {
            write(&format!("{device}/backend"), &format!("{backend}\n"));
            write(&format!("{device}/size"), "8\n");
            write(&format!("{device}/queue/logical_block_size"), "512\n");
        }
        write("nbdx/backend", "ours\n");
        assert_eq!(find_in(sys.path(), "ours").unwrap(), None, "nobody is connected");
        write("nbd0/pid", "7\n");
        write("nbd12/pid", "7\n");
        assert_eq!(find_in(sys.path(), "ours").unwrap(), Some(Shown { index: 12, bytes: 4096, block: 512 }));
        assert_eq!(find_in(sys.path(), "our").unwrap(), None);
    }
}
