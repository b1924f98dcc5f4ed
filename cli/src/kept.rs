//! What a command keeps in a folder of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use tempfile::NamedTempFile;

/// Writes a file of JSON: the whole of it or what was there before, whatever happens.
///
/// # Errors
/// What the system says.
pub(crate) fn write(dir: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(&serde_json::to_vec_pretty(content).expect("it is JSON"))?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name)).map_err(|error| error.error)?;
    File::open(dir)?.sync_all()
}

/// The same for the only one who writes there: what a kill left half done is overwritten by the next, and never becomes more.
///
/// # Errors
/// What the system says; what was there before may be there or not.
pub(crate) fn write_alone(dir: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(content).expect("it is JSON"))?;
    file.sync_all()?;
    std::fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}
