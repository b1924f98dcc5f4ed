//! Images as lists of block digests: enough to say which blocks of a changed copy must be written, and whether a restored
//! image equals, in every byte, what had been written by some moment.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use farside_blockio::seek_extent;
use nix::unistd::Whence;

/// A file-system block; also what the tap is written in.
pub(crate) const BLOCK: usize = 4096;

/// How much is read or written at once.
pub(crate) const RUN_BLOCKS: usize = 64;

/// The digest of one block.
pub(crate) type Digest = [u8; 32];

/// One digest per block of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocks(pub(crate) Vec<Digest>);

impl Blocks {
    /// Reads an image; its holes are not read.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut blocks = vec![digest(&[0; BLOCK]); usize::try_from(bytes).expect("64 bits").div_ceil(BLOCK)];
        let mut buffer = vec![0; RUN_BLOCKS * BLOCK];
        let mut at = 0;
        while at < bytes
            && let Some(start) = seek_extent(&file, at, Whence::SeekData)?
        {
            let end = seek_extent(&file, start, Whence::SeekHole)?.unwrap_or(bytes);
            let mut offset = start / BLOCK as u64 * BLOCK as u64;
            while offset < end {
                let len = buffer.len().min(usize::try_from(bytes - offset).expect("64 bits"));
                file.read_exact_at(&mut buffer[..len], offset)?;
                for (i, block) in buffer[..len].chunks(BLOCK).enumerate() {
                    blocks[offset as usize / BLOCK + i] = digest(block);
                }
                offset += len as u64;
            }
            at = end.max(offset);
        }
        Ok(Self(blocks))
    }

    /// The runs of blocks, at most [`RUN_BLOCKS`] long, in which `other` differs.
    pub(crate) fn differing_runs(&self, other: &Self) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for i in (0..other.0.len()).filter(|&i| self.0.get(i) != other.0.get(i)) {
            match runs.last_mut() {
                Some(run) if run.end == i && run.len() < RUN_BLOCKS => run.end = i + 1,
                _ => runs.push(i..i + 1),
            }
        }
        runs
    }
}

/// The digest of a block's content.
pub(crate) fn digest(block: &[u8]) -> Digest {
    *blake3::hash(block).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeroes_and_every_difference_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for path in [&a, &b] {
            File::create(path).and_then(|file| file.set_len(1 << 22)).expect("a sparse file");
        }
        let file = File::options().write(true).open(&b).expect("a file");
        file.write_all_at(&[7; 3 * BLOCK], 100 * BLOCK as u64).expect("written");
        file.write_all_at(&[0; BLOCK], 500 * BLOCK as u64).expect("written");
        file.write_all_at(&[1], (1 << 22) - 1).expect("written");
        let (a, b) = (Blocks::of(&a).expect("read"), Blocks::of(&b).expect("read"));
        assert_eq!(a.0.len(), 1024);
        assert_eq!(a.differing_runs(&b), [100..103, 1023..1024]);
        assert!(b.differing_runs(&b).is_empty());
    }

    #[test]
    fn runs_are_bounded() {
        let (a, b) = (Blocks(vec![[0; 32]; 200]), Blocks(vec![[1; 32]; 200]));
        let runs = a.differing_runs(&b);
        assert!(runs.iter().all(|run| run.len() <= RUN_BLOCKS));
        assert_eq!(runs.iter().map(std::iter::ExactSizeIterator::len).sum::<usize>(), 200);
    }
}
