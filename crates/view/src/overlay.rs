//! What was written over a point: a folder with `data`, as large as the volume and as sparse as what was written, `map`, a bit for each
//! granule that is in `data`, and `overlay.json`, which says of which point.
//!
//! Invariants:
//! - † a bit is durable only after what was written there: a flush syncs `data`, then writes the bits that were set before it began,
//!   then syncs `map`. A power cut leaves each sector as the point or as somebody wrote it, and what was flushed as it was written;
//! - † bits that an opening finds may be in nothing but the page cache: its first flush writes them again;
//! - bits are never taken back, so a write of the map that was torn is a mixture of two that are both true;
//! - after a sync that failed nothing is taken or read any more: what the kernel gave up is not known. An opening believes the disk only;
//! - nothing is made or emptied before the lock is held, nor where somebody else's file may be.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use farside_blockio::seek_extent;
use farside_region::{ByteExtent, Geometry, GranuleIndex, GranuleRun};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::Whence;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Of the folder's format.
const VERSION: u32 = 1;
const DESCRIPTION: &str = "overlay.json";
const YOUNG: &str = "overlay.json.new";
const DATA: &str = "data";
const MAP: &str = "map";
const LOCK: &str = "lock";
/// Of the map, which is read and written in such pages.
const PAGE_WORDS: usize = 512;
const PAGE_BYTES: usize = PAGE_WORDS * 8;
const PAGE_GRANULES: u64 = PAGE_WORDS as u64 * 64;
/// Zeroes that are written at once where the file system cannot make holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What an overlay lies over. One is opened over nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The store's id, in hexadecimal.
    pub store: String,
    /// SOURCE/GROUP/VOLUME.
    pub volume: String,
    /// The volume's id, in hexadecimal.
    pub volume_id: String,
    /// The point's id.
    pub point: String,
    /// Size of the volume in that point.
    pub volume_bytes: u64,
    /// Of a granule.
    pub granule_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    version: u32,
    over: Origin,
}

/// What every version of a description has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why there is no overlay.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// Another process has it.
    #[error("the overlay {path} is in use by another process")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It lies over something else.
    #[error("the overlay {path} was written over point {point} of {volume}, and over nothing else does it make sense")]
    OfAnother {
        /// The folder.
        path: PathBuf,
        /// Its point.
        point: String,
        /// Its volume.
        volume: String,
    },
    /// There is something in the folder, and no overlay.
    #[error("{path} is no overlay, and not empty either")]
    NotOne {
        /// The folder.
        path: PathBuf,
    },
    /// Others could have put there what they like.
    #[error("{path} belongs to another user, or others may write there")]
    OfOthers {
        /// The folder.
        path: PathBuf,
    },
    /// It is damaged, or of a newer version.
    #[error("the overlay {path} cannot be understood: {why}")]
    Unknown {
        /// The folder.
        path: PathBuf,
        /// What about it.
        why: String,
    },
    /// What the system said.
    #[error("{path} cannot be {verb}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

type Page = Box<[AtomicU64; PAGE_WORDS]>;

/// An overlay that is open; nobody else has it open meanwhile.
#[derive(Debug)]
pub struct Overlay {
    geometry: Geometry,
    data: File,
    map: File,
    pages: Vec<OnceLock<Page>>,
    /// Pages with bits that are not in the file.
    dirty: Vec<AtomicBool>,
    granules: AtomicU64,
    /// Held by who flushes.
    flush: Mutex<()>,
    /// A sync failed.
    failed: AtomicBool,
    _lock: File,
}

impl Overlay {
    /// Opens the overlay in a folder, or makes one in a folder that is empty or not there.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn open(dir: &Path, over: &Origin, geometry: &Geometry) -> Result<Self, OverlayError> {
        let io = |name: &str, verb| {
            let path = dir.join(name);
            move |source| OverlayError::Io { path, verb, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("", "made"))?;
        let folder = std::fs::metadata(dir).map_err(io("", "looked at"))?;
        if folder.uid() != nix::unistd::geteuid().as_raw() || folder.mode() & 0o022 != 0 {
            return Err(OverlayError::OfOthers { path: dir.to_owned() });
        }
        let file = |name| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
            options.open(dir.join(name)).map_err(io(name, "opened"))
        };
        // What a beginning that was interrupted left is no reason to refuse; it holds nothing yet.
        let is_ours = |entry: &std::fs::DirEntry| {
            let is_empty = || entry.metadata().is_ok_and(|meta| meta.is_file() && meta.blocks() == 0);
            let name = entry.file_name();
            name == LOCK || name == YOUNG || ((name == DATA || name == MAP) && is_empty())
        };
        let described = || match std::fs::read(dir.join(DESCRIPTION)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(DESCRIPTION, "read")(error)),
        };
        let is_strange = || {
            let mut entries = std::fs::read_dir(dir).map_err(io("", "listed"))?;
            Ok(entries.any(|entry| !entry.is_ok_and(|entry| is_ours(&entry))))
        };
        let is_new = || match described()? {
            Some(text) => check(dir, &text, over).map(|()| false),
            None if is_strange()? => Err(OverlayError::NotOne { path: dir.to_owned() }),
            None => Ok(true),
        };
        is_new()?; // before even the lock is made there
        let lock = file(LOCK)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OverlayError::InUse { path: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io(LOCK, "locked")(error)),
        }
        let is_new = is_new()?; // somebody may have made one meanwhile
        let (data, map) = (file(DATA)?, file(MAP)?);
        let pages = geometry.granule_count().div_ceil(PAGE_GRANULES) as usize;
        let map_bytes = (pages * PAGE_BYTES) as u64;
        if is_new {
            for (name, file, bytes) in [(DATA, &data, geometry.volume_bytes()), (MAP, &map, map_bytes)] {
                file.set_len(0).and_then(|()| file.set_len(bytes)).and_then(|()| file.sync_all()).map_err(io(name, "made"))?;
            }
            describe(dir, over).map_err(io(DESCRIPTION, "written"))?;
            let above = dir.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(above).and_then(|above| above.sync_all()).map_err(io("..", "synced"))?;
        }
        for (name, file, bytes) in [(DATA, &data, geometry.volume_bytes()), (MAP, &map, map_bytes)] {
            let now = file.metadata().map_err(io(name, "looked at"))?.len();
            // † After a sync that failed in another process the page cache may hold what the disk does not.
            file.sync_data().map_err(io(name, "synced"))?;
            posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .map_err(|errno| io(name, "read anew")(errno.into()))?;
            if now != bytes {
                let why = format!("`{name}` has {now} bytes and must have {bytes}");
                return Err(OverlayError::Unknown { path: dir.to_owned(), why });
            }
        }
        let overlay = Self {
            geometry: *geometry,
            data,
            map,
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            dirty: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            granules: AtomicU64::new(0),
            flush: Mutex::new(()),
            failed: AtomicBool::new(false),
            _lock: lock,
        };
        overlay.load().map_err(io(MAP, "read"))?;
        Ok(overlay)
    }

    /// Bytes of the granules that were written.
    pub fn written_bytes(&self) -> u64 {
        self.granules.load(Ordering::Relaxed) * self.geometry.granule_bytes()
    }

    fn load(&self) -> io::Result<()> {
        let (mut at, end) = (0, (self.pages.len() * PAGE_BYTES) as u64);
        // What was never written is a hole, also of a volume of many tebibytes.
        while at < end
            && let Some(data) = seek_extent(&self.map, at, Whence::SeekData)?
        {
            let page = data as usize / PAGE_BYTES;
            let mut bytes = [0; PAGE_BYTES];
            self.map.read_exact_at(&mut bytes, (page * PAGE_BYTES) as u64)?;
            let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
            for (word, bits) in self.page(page).iter().zip(words) {
                word.store(bits, Ordering::Relaxed);
                self.granules.fetch_add(u64::from(bits.count_ones()), Ordering::Relaxed);
            }
            self.dirty[page].store(true, Ordering::Relaxed);
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

    /// The granules of a run are in `data` from now on.
    pub(crate) fn set(&self, run: GranuleRun) {
        for Place { page, word, mask } in (run.start.0..run.end().0).map(place_of) {
            if self.page(page)[word].fetch_or(mask, Ordering::AcqRel) & mask == 0 {
                self.granules.fetch_add(1, Ordering::Relaxed);
                self.dirty[page].store(true, Ordering::Release);
            }
        }
    }

    pub(crate) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        self.is_whole()?;
        self.data.read_exact_at(out, offset).map_err(|error| errno_of(&error))
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.is_whole()?;
        self.data.write_all_at(bytes, offset).map_err(|error| errno_of(&error))
    }

    /// Makes an extent zeroes; with `no_hole` its space stays allocated.
    pub(crate) fn zero_at(&self, extent: ByteExtent, no_hole: bool) -> Result<(), Errno> {
        self.is_whole()?;
        let how = match no_hole {
            true => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            false => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        };
        let (offset, len) = (extent.offset.0 as i64, extent.len as i64);
        match fallocate(&self.data, how | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            done => return done,
        }
        let mut at = extent.offset.0;
        let end = at + extent.len;
        while at < end {
            let len = (end - at).min(ZEROES.len() as u64);
            self.write_at(at, &ZEROES[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    /// What was written before this call is durable after it.
    ///
    /// # Errors
    /// The device's. What has no room is tried again with the next flush; after a sync that failed it is `EIO` from then on.
    pub fn flush(&self) -> Result<(), Errno> {
        let _only = self.flush.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_whole()?;
        // † Before `data` is synced: what is set while that goes on may be of data that it does not cover.
        let mut bits: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, dirty) in self.dirty.iter().enumerate() {
            if dirty.load(Ordering::Relaxed) && dirty.swap(false, Ordering::AcqRel) {
                let words = self.page(at).iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes());
                bits.push((at, words.collect()));
            }
        }
        self.sync(&self.data)?;
        for (page, bytes) in &bits {
            if let Err(error) = self.map.write_all_at(bytes, (page * PAGE_BYTES) as u64) {
                bits.iter().for_each(|(page, _)| self.dirty[*page].store(true, Ordering::Release));
                return Err(errno_of(&error));
            }
        }
        if bits.is_empty() { Ok(()) } else { self.sync(&self.map) }
    }

    fn sync(&self, file: &File) -> Result<(), Errno> {
        file.sync_data().map_err(|error| {
            self.failed.store(true, Ordering::SeqCst);
            errno_of(&error)
        })
    }

    fn is_whole(&self) -> Result<(), Errno> {
        if self.failed.load(Ordering::SeqCst) { Err(Errno::EIO) } else { Ok(()) }
    }
}

fn check(dir: &Path, text: &[u8], over: &Origin) -> Result<(), OverlayError> {
    let unknown = |why: String| OverlayError::Unknown { path: dir.to_owned(), why };
    let wrong = |error| unknown(format!("`{DESCRIPTION}`: {error}"));
    let Versioned { version } = serde_json::from_slice(text).map_err(wrong)?;
    if version != VERSION {
        return Err(unknown(format!("it has version {version}, and this program knows {VERSION}")));
    }
    let found: Description = serde_json::from_slice(text).map_err(wrong)?;
    if found.over != *over {
        return Err(OverlayError::OfAnother { path: dir.to_owned(), point: found.over.point, volume: found.over.volume });
    }
    Ok(())
}

/// The last step of making one.
fn describe(dir: &Path, over: &Origin) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&Description { version: VERSION, over: over.clone() })?;
    let young = dir.join(YOUNG);
    let _ = std::fs::remove_file(&young); // of a beginning that was interrupted
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&young)?;
    file.write_all_at(&text, 0)?;
    file.sync_all()?;
    std::fs::rename(&young, dir.join(DESCRIPTION))?;
    File::open(dir)?.sync_all()
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

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
