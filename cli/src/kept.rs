//! What a command keeps in a folder of its own.

use std::fs::File;
use std::io::{self, Write as _};
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
