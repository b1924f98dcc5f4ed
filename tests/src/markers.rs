//! What would be read in clear: markers all over a volume, and where they, or keys, came to lie.

use std::fs;
use std::path::{Path, PathBuf};

use farside_nbd::client::Client;

use crate::Site;
use crate::verify::Rng;

/// In everything that [`write()`] writes.
pub const MARKER: &[u8] = b"in the clear it would be read here";

/// Writes markers all over the first `bytes` of a volume, one place in so many, some of them compressible, some not.
pub fn write(site: &Site, volume: &str, bytes: u64, every: usize, seed: u64) {
    let mut client = Client::connect(&site.tap(volume), volume).expect("connected");
    let mut rng = Rng(seed);
    for at in (0..bytes).step_by(every) {
        let mut granules: Vec<u8> = (0..16384).map(|_| rng.draw() as u8).collect();
        granules[100..100 + MARKER.len()].copy_from_slice(MARKER);
        granules[8192..].iter_mut().zip(MARKER.iter().cycle()).for_each(|(byte, of)| *byte = *of);
        client.write(at, &granules, 0).expect("written");
    }
    client.flush().expect("flushed");
}

/// All files below a directory.
pub fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    // What goes meanwhile is not there.
    for path in fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            files(&path, found)
        } else if path.is_file() {
            found.push(path)
        }
    }
}

/// The files below a directory that hold one of these.
pub fn with(dir: &Path, secrets: &[&[u8]]) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files(dir, &mut all);
    all.retain(|file| {
        let bytes = fs::read(file).unwrap_or_default();
        secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == *secret))
    });
    all
}
