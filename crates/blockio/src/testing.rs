//! Files for this crate's tests, on a disk that has direct I/O (a temporary folder may be a RAM disk that has not).

use std::path::PathBuf;

use tempfile::TempDir;

pub(crate) fn folder() -> TempDir {
    let binary = std::env::current_exe().unwrap();
    tempfile::tempdir_in(binary.parent().unwrap()).unwrap()
}

/// A file with that content in a folder that goes away with the first value.
pub(crate) fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("device");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}
