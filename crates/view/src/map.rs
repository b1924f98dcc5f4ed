//! Which granules an overlay holds: a bit for each, in memory, and the bytes of that in the file `map`.
//!
//! Invariants:
//! - bits are never taken back, so a page that was torn is a mixture, sector by sector, of two that are both true;
//! - † a sector is believed if its checksum says that it was written there, or if it is zeroes: a bit that is wrong would show
//!   what the point holds in the place of what was written, or the other way round.
//!
//! It does not know when a bit may be durable: that is the flush's ([`crate::Overlay`]).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use farside_region::{GranuleIndex, GranuleRun, mutation};
use nix::errno::Errno;
use thiserror::Error;

use crate::medium::Medium;

const SECTOR_BYTES: usize = 512;
const SECTOR_WORDS: usize = 63;
/// Of the file, which is read and written in such pages.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE_SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
const PAGE_WORDS: usize = PAGE_SECTORS * SECTOR_WORDS;
const PAGE_GRANULES: u64 = PAGE_WORDS as u64 * 64;
/// Behind the bits of a sector, before its checksum.
const MAGIC: [u8; 4] = *b"FSOM";

type Page = Box<[AtomicU64; PAGE_WORDS]>;

/// Why a map is not believed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MapError {
    /// Not what was written there.
    #[error("`map` is damaged at byte {at}, where it says which of the granules {} to {} were written", .of.start, .of.end())]
    Damaged {
        /// Where its sector begins.
        at: u64,
        /// Whose bits are in it.
        of: GranuleRun,
    },
    /// What the system said.
    #[error("it cannot be read")]
    Io(#[source] Errno),
}

/// The bits, and which of them are not in the file.
#[derive(Debug)]
pub(crate) struct Map {
    pages: Vec<OnceLock<Page>>,
    /// Pages with bits that are not in the file.
    dirty: Vec<AtomicBool>,
    count: AtomicU64,
}

impl Map {
    /// Of so many granules, none of which was written.
    pub(crate) fn new(granules: u64) -> Self {
        let pages = granules.div_ceil(PAGE_GRANULES) as usize;
        Self {
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            dirty: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            count: AtomicU64::new(0),
        }
    }

    /// Length of its file.
    pub(crate) fn file_bytes(&self) -> u64 {
        (self.pages.len() * PAGE_BYTES) as u64
    }

    /// Takes over what the file says. All of that is to be written again.
    pub(crate) fn load(&self, file: &dyn Medium) -> Result<(), MapError> {
        let mut at = 0;
        // What was never written is a hole, also of a volume of many tebibytes.
        while at < self.file_bytes()
            && let Some(data) = file.next_data(at).map_err(MapError::Io)?
        {
            let page = data as usize / PAGE_BYTES;
            let mut bytes = [0; PAGE_BYTES];
            file.get((page * PAGE_BYTES) as u64, &mut bytes).map_err(MapError::Io)?;
            for (sector, bytes) in bytes.as_chunks().0.iter().enumerate() {
                let index = (page * PAGE_SECTORS + sector) as u64;
                let words = decode(index, bytes).ok_or_else(|| damaged(index))?;
                for (word, bits) in self.page(page)[sector * SECTOR_WORDS..].iter().zip(words) {
                    word.store(bits, Ordering::Relaxed);
                    self.count.fetch_add(u64::from(bits.count_ones()), Ordering::Relaxed);
                }
            }
            let is_durable = mutation::on("bits that an opening finds are taken for durable");
            self.dirty[page].store(!is_durable, Ordering::Relaxed);
            at = ((page + 1) * PAGE_BYTES) as u64;
        }
        Ok(())
    }

    fn page(&self, page: usize) -> &[AtomicU64; PAGE_WORDS] {
        self.pages[page].get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    /// Whether a granule was written.
    pub(crate) fn has(&self, granule: GranuleIndex) -> bool {
        let Place { page, word, mask } = place_of(granule.0);
        self.pages[page].get().is_some_and(|page| page[word].load(Ordering::Acquire) & mask != 0)
    }

    /// Sets the bits of a run. Two that set the same bit must not do it at the same time: the first one's page is not dirty yet when the
    /// second one finds the bit set.
    pub(crate) fn set(&self, run: GranuleRun) {
        for Place { page, word, mask } in (run.start.0..run.end().0).map(place_of) {
            if self.page(page)[word].fetch_or(mask, Ordering::AcqRel) & mask == 0 {
                self.count.fetch_add(1, Ordering::Relaxed);
                self.dirty[page].store(true, Ordering::Release);
            }
        }
    }

    /// All that were written, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = GranuleIndex> + '_ {
        let pages = self.pages.iter().enumerate().filter_map(|(at, page)| Some((at, page.get()?)));
        let words = pages.flat_map(|(at, page)| page.iter().enumerate().map(move |(word, bits)| (at * PAGE_WORDS + word, bits)));
        words.flat_map(|(word, bits)| {
            let bits = bits.load(Ordering::Acquire);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| GranuleIndex(word as u64 * 64 + bit))
        })
    }

    /// Granules that were written.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The bytes of pages that have bits which are not in the file, from page `at` on, as they are now, and where each belongs. At most
    /// `max`; `at` is the page after the last one that was looked at, or one that does not exist.
    pub(crate) fn take_dirty(&self, at: &mut usize, max: usize) -> Vec<(u64, Box<[u8; PAGE_BYTES]>)> {
        let mut taken = Vec::new();
        while *at < self.dirty.len() && taken.len() < max {
            let dirty = &self.dirty[*at];
            // The plain look first: most pages of a large volume are clean.
            if dirty.load(Ordering::Relaxed) && dirty.swap(false, Ordering::AcqRel) {
                taken.push(((*at * PAGE_BYTES) as u64, self.encode(*at)));
            }
            *at += 1;
        }
        taken
    }

    /// What was taken could not be written.
    pub(crate) fn give_back(&self, taken: &[(u64, Box<[u8; PAGE_BYTES]>)]) {
        taken.iter().for_each(|(at, _)| self.dirty[*at as usize / PAGE_BYTES].store(true, Ordering::Release));
    }

    /// Whether there is no page from `at` on.
    pub(crate) fn ends_at(&self, at: usize) -> bool {
        at >= self.dirty.len()
    }

    fn encode(&self, page: usize) -> Box<[u8; PAGE_BYTES]> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        let words = self.page(page).as_chunks::<SECTOR_WORDS>().0;
        for (sector, (bytes, words)) in bytes.as_chunks_mut().0.iter_mut().zip(words).enumerate() {
            encode((page * PAGE_SECTORS + sector) as u64, words.each_ref().map(|word| word.load(Ordering::Acquire)), bytes);
        }
        bytes
    }
}

/// A sector without bits is zeroes, as one that was never written.
fn encode(index: u64, words: [u64; SECTOR_WORDS], bytes: &mut [u8; SECTOR_BYTES]) {
    if words.iter().all(|word| *word == 0) {
        return bytes.fill(0);
    }
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes[SECTOR_WORDS * 8..][..4].copy_from_slice(&MAGIC);
    let crc = crc_of(index, bytes);
    bytes[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn decode(index: u64, bytes: &[u8; SECTOR_BYTES]) -> Option<[u64; SECTOR_WORDS]> {
    let words = bytes.as_chunks().0;
    let is_nothing = bytes.iter().all(|byte| *byte == 0);
    let is_ours = bytes[SECTOR_WORDS * 8..][..4] == MAGIC && bytes[SECTOR_BYTES - 4..] == crc_of(index, bytes).to_le_bytes();
    let is_believed = is_nothing || is_ours || mutation::on("an overlay's map is believed as it is");
    is_believed.then(|| std::array::from_fn(|at| u64::from_le_bytes(words[at])))
}

/// Of a sector, and of the place where it is.
fn crc_of(index: u64, bytes: &[u8; SECTOR_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), &bytes[..SECTOR_BYTES - 4])
}

fn damaged(index: u64) -> MapError {
    let count = SECTOR_WORDS as u64 * 64;
    MapError::Damaged { at: index * SECTOR_BYTES as u64, of: GranuleRun { start: GranuleIndex(index * count), count } }
}

/// Where a granule's bit is.
struct Place {
    page: usize,
    word: usize,
    mask: u64,
}

fn place_of(granule: u64) -> Place {
    let bit = granule % PAGE_GRANULES;
    Place { page: (granule / PAGE_GRANULES) as usize, word: (bit / 64) as usize, mask: 1 << (bit % 64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut words = [0; SECTOR_WORDS];
        (words[0], words[62]) = (0b101, 1 << 63);
        let mut bytes = [0xee; SECTOR_BYTES];
        encode(3, words, &mut bytes);
        assert_eq!(bytes[..9], [5, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[496..], [0, 0, 0, 0, 0, 0, 0, 0x80, b'F', b'S', b'O', b'M', 0x63, 0x97, 0xb4, 0xdd]);
        assert_eq!(decode(3, &bytes), Some(words));
        encode(3, [0; SECTOR_WORDS], &mut bytes);
        assert!(bytes == [0; SECTOR_BYTES] && decode(3, &bytes) == Some([0; SECTOR_WORDS]));
    }

    #[test]
    fn no_changed_bit_is_believed_and_no_sector_in_another_place() {
        let mut words = [0; SECTOR_WORDS];
        words[7] = 0xf0;
        let mut bytes = [0; SECTOR_BYTES];
        encode(1, words, &mut bytes);
        assert_eq!(decode(2, &bytes), None);
        for bit in 0..SECTOR_BYTES * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(1, &changed), None, "bit {bit}");
        }
    }
}
