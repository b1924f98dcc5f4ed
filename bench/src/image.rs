//! Content like a disk's: half of it compresses like files do, a quarter is noise, a quarter zeroes (as a hole).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use farside_tests::verify::Rng;

const CHUNK: usize = 1 << 20;

/// Fills a sparse file.
pub(crate) fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let words: Vec<Vec<u8>> = (0..4096).map(word).collect();
    for (i, offset) in (0..bytes).step_by(CHUNK).enumerate() {
        let len = CHUNK.min((bytes - offset) as usize);
        let mut rng = Rng(i as u64);
        let mut chunk = Vec::with_capacity(CHUNK + 64);
        match i % 4 {
            0 | 1 => {
                while chunk.len() < len {
                    // Words with numbers between them: about two to one under zstd.
                    chunk.extend_from_slice(&words[rng.below(4096) as usize]);
                    chunk.extend_from_slice(&(rng.draw() as u16).to_le_bytes());
                }
            }
            2 => (0..len / 8).for_each(|_| chunk.extend_from_slice(&rng.draw().to_le_bytes())),
            _ => continue,
        }
        file.write_all_at(&chunk[..len], offset)?;
    }
    file.sync_all()
}

/// Fills a file with noise, so that none of it is a hole.
pub(crate) fn fill_noise(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let mut chunk = vec![0; CHUNK];
    for offset in (0..bytes).step_by(CHUNK) {
        let mut rng = Rng(offset);
        chunk.chunks_mut(8).for_each(|c| c.copy_from_slice(&rng.draw().to_le_bytes()));
        file.write_all_at(&chunk[..CHUNK.min((bytes - offset) as usize)], offset)?;
    }
    file.sync_all()
}

fn word(seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..3 + rng.below(6)).map(|_| b'a' + rng.below(26) as u8).collect()
}
