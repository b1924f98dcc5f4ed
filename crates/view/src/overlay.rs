//! What was written over a point: a folder with `data`, as large as the volume and as sparse as what was written, `map`, a bit for each
//! granule that is in `data` ([`Map`]), and `overlay.json`, which says of which point.
//!
//! Invariants:
//! - † a bit is durable only after what was written there: a flush syncs `data`, then writes the bits that were set before it began,
//!   then syncs `map`; flushes that come meanwhile share the next one. A power cut leaves each sector as the point or as somebody wrote it, and what was flushed as it was written;
//! - † bits that an opening finds may be in nothing but the page cache: its first flush writes them again;
//! - after a sync that failed nothing is taken or read any more: what the kernel gave up is not known. An opening believes the disk only;
//! - nothing is made or emptied before the lock is held, nor where somebody else's file may be.
//!
//! Assumed of the disk: a sector of 512 bytes is written whole or not at all.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use farside_region::{ByteExtent, Geometry, GranuleIndex, GranuleRun, mutation};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::map::{Map, MapError};
use crate::medium::Medium;
use crate::rounds::Rounds;

/// Of the folder's format.
const VERSION: u32 = 2;
const DESCRIPTION: &str = "overlay.json";
const YOUNG: &str = "overlay.json.new";
const DATA: &str = "data";
const MAP: &str = "map";
const LOCK: &str = "lock";
/// There as soon as `data` is the whole volume, durably, and is about to become a file; it holds that file's name. Bits are never taken
/// back, so what it says stays true.
const WHOLE: &str = "whole";
/// Pages of the map whose bytes a flush has in memory at once (16 MiB). So many are of half a tebibyte of granules of 4 KiB: a volume with
/// more is synced once for each. Tests have small volumes.
const FLUSH_PAGES_MAX: usize = if cfg!(test) { 1 } else { 4096 };

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
    /// Its `data` is a file of its own by now, and somebody may use that.
    #[error("the overlay {path} has become the file {file}")]
    BecameFile {
        /// The folder.
        path: PathBuf,
        /// The file, when it was made.
        file: PathBuf,
    },
    /// It is not the whole volume.
    #[error("the overlay {path} lacks {missing_bytes} bytes of the volume, which could not be read")]
    NotWhole {
        /// The folder.
        path: PathBuf,
        /// How much.
        missing_bytes: u64,
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

/// Where an overlay is.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Device and number of `data`: the folder may have been moved, and another one lie in its place.
    data: (u64, u64),
    /// Nobody else has its `data`, nor, which is given back last, it.
    _alone: [Alone; 2],
}

/// A locked file.
///
/// † Given back by name: a program that this process is just starting has copies of all its files for a moment, and the lock with them.
#[derive(Debug)]
struct Alone(File);

impl Alone {
    fn take(file: File) -> Result<Self, TryLockError> {
        file.try_lock().map(|()| Self(file))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.unlock(); // the last copy that is closed does it
    }
}

/// An overlay that is open; nobody else has it open meanwhile.
#[derive(Debug)]
pub struct Overlay {
    geometry: Geometry,
    data: Box<dyn Medium>,
    map_file: Box<dyn Medium>,
    map: Map,
    flushes: Rounds,
    /// A sync failed.
    failed: AtomicBool,
    /// None in tests without one.
    folder: Option<Folder>,
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
            let is_empty = || entry.metadata().is_ok_and(|meta| meta.is_file() && meta.blocks() == 0 && meta.nlink() == 1);
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
        let alone = |name, file| match Alone::take(file) {
            Ok(alone) => Ok(alone),
            Err(TryLockError::WouldBlock) => Err(OverlayError::InUse { path: dir.to_owned() }),
            Err(TryLockError::Error(error)) => Err(io(name, "locked")(error)),
        };
        let lock = alone(LOCK, file(LOCK)?)?;
        let is_new = is_new()?; // somebody may have made one meanwhile
        let (data, map) = (file(DATA)?, file(MAP)?);
        // It may become a file of its own, which has no folder.
        let data_lock = alone(DATA, data.try_clone().map_err(io(DATA, "locked"))?)?;
        let map_bytes = Self::map_bytes(geometry);
        if is_new {
            for (name, file, bytes) in [(DATA, &data, geometry.volume_bytes()), (MAP, &map, map_bytes)] {
                file.set_len(0).and_then(|()| file.set_len(bytes)).and_then(|()| file.sync_all()).map_err(io(name, "made"))?;
            }
            describe(dir, over).map_err(io(DESCRIPTION, "written"))?;
        }
        let is = data.metadata().map_err(io(DATA, "looked at"))?;
        if is.nlink() > 1
            && let Ok(file) = std::fs::read(dir.join(WHOLE))
        {
            let file = PathBuf::from(OsString::from_vec(file));
            return Err(OverlayError::BecameFile { path: dir.to_owned(), file });
        }
        // Also of one that is there: who made it may have been killed before this.
        sync_folder(dir).map_err(io("", "synced"))?;
        sync_folder(above(dir)).map_err(io("..", "synced"))?;
        for (name, file, bytes) in [(DATA, &data, geometry.volume_bytes()), (MAP, &map, map_bytes)] {
            let now = file.metadata().map_err(io(name, "looked at"))?.len();
            if now != bytes {
                let why = format!("`{name}` has {now} bytes and must have {bytes}");
                return Err(OverlayError::Unknown { path: dir.to_owned(), why });
            }
        }
        match Self::of(Box::new(data), Box::new(map), geometry) {
            Ok(overlay) => {
                let folder = Folder { path: dir.to_owned(), data: (is.dev(), is.ino()), _alone: [data_lock, lock] };
                Ok(Self { folder: Some(folder), ..overlay })
            }
            Err(MapError::Io(errno)) => Err(io(MAP, "read")(errno.into())),
            Err(damaged) => Err(OverlayError::Unknown { path: dir.to_owned(), why: damaged.to_string() }),
        }
    }

    /// Opens one that is there, over whatever it says, with the usual granules.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn reopen(dir: &Path) -> Result<Self, OverlayError> {
        let io = |source| OverlayError::Io { path: dir.join(DESCRIPTION), verb: "read", source };
        let unknown = |why: String| OverlayError::Unknown { path: dir.to_owned(), why };
        let text = std::fs::read(dir.join(DESCRIPTION)).map_err(io)?;
        let found: Description = serde_json::from_slice(&text).map_err(|error| unknown(format!("`{DESCRIPTION}`: {error}")))?;
        let geometry = Geometry::new(found.over.volume_bytes).map_err(|error| unknown(error.to_string()))?;
        if geometry.granule_bytes() != found.over.granule_bytes {
            return Err(unknown(format!("its granules have {} bytes", found.over.granule_bytes)));
        }
        Self::open(dir, &found.over, &geometry)
    }

    /// Of two files of the right lengths, as the disk has them, and without a folder: nobody else has them open.
    ///
    /// # Errors
    /// When the map is damaged; what the system says.
    pub fn of(data: Box<dyn Medium>, map_file: Box<dyn Medium>, geometry: &Geometry) -> Result<Self, MapError> {
        for file in [&data, &map_file] {
            // † After a sync that failed in another process the page cache may hold what the disk does not.
            file.sync().and_then(|()| file.forget()).map_err(MapError::Io)?;
        }
        let map = Map::new(geometry.granule_count());
        map.load(&*map_file)?;
        Ok(Self {
            geometry: *geometry,
            data,
            map_file,
            map,
            flushes: Rounds::default(),
            failed: AtomicBool::new(false),
            folder: None,
        })
    }

    /// Bytes of the granules that were written.
    pub fn written_bytes(&self) -> u64 {
        self.map.count() * self.geometry.granule_bytes()
    }

    /// Whether it may become a file of that name, as far as can be seen before it is filled.
    ///
    /// # Errors
    /// The file system's, if it gives nothing there a second name.
    pub fn try_name(&self, path: &Path) -> Result<(), OverlayError> {
        let io = |source| OverlayError::Io { path: path.to_owned(), verb: "made: no file can get a second name there", source };
        let folder = self.folder.as_ref().ok_or_else(|| io(io::ErrorKind::Unsupported.into()))?;
        let mark = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let trial = above(path).join(format!(".farside-trial-{}-{mark:x}", std::process::id()));
        // Not `data`: a second name of that says that it has become a file.
        std::fs::hard_link(folder.path.join(LOCK), &trial).map_err(io)?;
        std::fs::remove_file(&trial).map_err(io)
    }

    /// What the file system of its folder has left for this user, in bytes; `u64::MAX` if it has no limit.
    ///
    /// # Errors
    /// The file system's.
    pub fn room_bytes(&self) -> Result<u64, OverlayError> {
        let path = self.folder.as_ref().map_or_else(PathBuf::new, |folder| folder.path.clone());
        match nix::sys::statvfs::statvfs(&path) {
            Ok(is) if is.blocks() == 0 => Ok(u64::MAX), // in memory, without a limit
            Ok(is) => {
                let blocks = if nix::unistd::geteuid().is_root() { is.blocks_free() } else { is.blocks_available() };
                Ok(blocks.saturating_mul(is.fragment_size()))
            }
            Err(errno) => Err(OverlayError::Io { path, verb: "looked at", source: errno.into() }),
        }
    }

    /// Bytes of the granules that are not there, at most the last one too many.
    pub(crate) fn missing_bytes(&self) -> u64 {
        (self.geometry.granule_count() - self.map.count()) * self.geometry.granule_bytes()
    }

    /// An overlay in which every granule is needs no point: its `data` becomes a file of its own, and its folder goes. It stays open, and what
    /// is written goes to that file.
    ///
    /// # Errors
    /// [`OverlayError::NotWhole`]; when there is something of that name, or it is on another file system; what the system says. A file of
    /// that name is whole.
    pub fn become_file(&self, path: &Path) -> Result<(), OverlayError> {
        let io = |verb| move |source| OverlayError::Io { path: path.to_owned(), verb, source };
        let folder = self.folder.as_ref().ok_or_else(|| io("made")(io::ErrorKind::Unsupported.into()))?;
        // † Before the name: who finds it believes it.
        self.flush().map_err(|errno| io("synced")(errno.into()))?;
        if self.missing_bytes() > 0 {
            return Err(OverlayError::NotWhole { path: folder.path.clone(), missing_bytes: self.missing_bytes() });
        }
        // Who moved the folder, and made another one there, keeps both.
        let moved = || io("made")(io::Error::other(format!("{} is not where it was", folder.path.display())));
        if identity(&folder.path.join(DATA)).ok() != Some(folder.data) {
            return Err(moved());
        }
        say_whole(&folder.path, path).map_err(io("made"))?;
        std::fs::hard_link(folder.path.join(DATA), path).map_err(io("made"))?;
        if identity(path).ok() != Some(folder.data) {
            let _ = std::fs::remove_file(path);
            return Err(moved());
        }
        // It is locked by this process.
        Self::tidy(&folder.path, path).map_err(io("synced"))
    }

    /// Removes the folder of an overlay that has become this file, as far as a kill or a power cut left it, and nobody has it open. Says
    /// whether it has: a link that somebody else made to the `data` of an overlay is none.
    pub fn tidy_away(dir: &Path, file: &Path) -> bool {
        let data = identity(&dir.join(DATA));
        let is_it = data.is_ok_and(|data| identity(file).is_ok_and(|file| data == file))
            && dir.join(WHOLE).symlink_metadata().is_ok()
            && !is_inside(file, dir);
        is_it && Self::is_free(dir).unwrap_or(false) && Self::tidy(dir, file).is_ok()
    }

    /// Whether a file of that name would lie in the folder itself.
    pub fn holds(dir: &Path, file: &Path) -> bool {
        is_inside(file, dir)
    }

    fn tidy(dir: &Path, file: &Path) -> io::Result<()> {
        // † Its name before the last other name of it goes.
        File::open(file)?.sync_all()?;
        sync_folder(above(file))?;
        // In this order: without its description it is no overlay any more, and to the last it tells that its data is that file.
        for name in [DESCRIPTION, MAP, DATA, WHOLE, LOCK] {
            let _ = std::fs::remove_file(dir.join(name)); // what is left does no harm
        }
        let _ = std::fs::remove_dir(dir);
        Ok(())
    }

    /// Whether a granule was written.
    pub fn has(&self, granule: GranuleIndex) -> bool {
        self.map.has(granule)
    }

    /// How large the map of so many granules is.
    pub fn map_bytes(geometry: &Geometry) -> u64 {
        Map::new(geometry.granule_count()).file_bytes()
    }

    /// The granules of a run are in `data` from now on. Not to be called for one granule by two at a time.
    pub(crate) fn set(&self, run: GranuleRun) {
        self.map.set(run);
    }

    /// Keeps what something holds that is about to be overwritten: the granules of these runs of which nothing is here yet, as `read` gives them; of
    /// what it says `false` of there is nothing to keep. What is here stays: it was kept before somebody overwrote it. All of it is durable when this
    /// returns; it says how many bytes are new. Not to be called for one granule by two at a time.
    ///
    /// # Errors
    /// The overlay's device's, and those of `read`; none of these runs may be overwritten then.
    pub fn keep(
        &self,
        runs: &[GranuleRun],
        mut read: impl FnMut(ByteExtent, &mut [u8]) -> Result<bool, Errno>,
    ) -> Result<u64, Errno> {
        let mut kept = 0;
        let is_missing = |granule: &u64| {
            !self.has(GranuleIndex(*granule)) || mutation::on("what was kept before is lost to what came in its place")
        };
        let mut content = Vec::new();
        for granule in runs.iter().flat_map(|run| run.start.0..run.end().0).filter(is_missing) {
            let run = GranuleRun { start: GranuleIndex(granule), count: 1 };
            let extent = self.geometry.bytes_of(run);
            content.resize(extent.len as usize, 0);
            if !read(extent, &mut content)? {
                continue;
            }
            // Whatever an attempt before left there, and gave no bit.
            if content.iter().all(|byte| *byte == 0) {
                self.zero_at(extent, false)?;
            } else {
                self.write_at(extent.offset.0, &content)?;
            }
            self.set(run);
            kept += extent.len;
        }
        // † Also where nothing is new: the flush of an earlier call may have found no room.
        if !mutation::on("what is kept is durable some time later") {
            self.flush()?;
        }
        Ok(kept)
    }

    /// Gives all that is here, granule by granule.
    ///
    /// # Errors
    /// The overlay's device's, and those of `write`.
    pub fn give(&self, mut write: impl FnMut(ByteExtent, &[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut content = Vec::new();
        for granule in self.map.iter().filter(|granule| granule.0 < self.geometry.granule_count()) {
            let extent = self.geometry.bytes_of(GranuleRun { start: granule, count: 1 });
            content.resize(extent.len as usize, 0);
            self.read_at(extent.offset.0, &mut content)?;
            write(extent, &content)?;
        }
        Ok(())
    }

    /// As a program that is being started has them.
    #[cfg(test)]
    pub(crate) fn copies_of_locks(&self) -> Vec<File> {
        let alone = self.folder.iter().flat_map(|folder| &folder._alone);
        alone.map(|alone| alone.0.try_clone().expect("a copy")).collect()
    }

    /// Whether nobody has the overlay in a folder open; also of one without a lock, which nobody ever had.
    ///
    /// # Errors
    /// When that cannot be known.
    pub fn is_free(dir: &Path) -> io::Result<bool> {
        let lock = match File::open(dir.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            opened => opened?,
        };
        match Alone::take(lock) {
            Ok(_) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether there is an overlay in a folder, whoever has it open.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(DESCRIPTION).is_file()
    }

    /// Reads what was written there.
    ///
    /// # Errors
    /// The device's.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        self.is_whole()?;
        self.data.get(offset, out)
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.is_whole()?;
        self.data.put(offset, bytes)
    }

    /// Makes an extent zeroes; with `no_hole` its space stays allocated.
    pub(crate) fn zero_at(&self, extent: ByteExtent, no_hole: bool) -> Result<(), Errno> {
        self.is_whole()?;
        self.data.zero(extent, no_hole)
    }

    /// What was written before this call is durable after it.
    ///
    /// # Errors
    /// The device's. What has no room is tried again with the next flush; after a sync that failed it is `EIO` from then on.
    pub fn flush(&self) -> Result<(), Errno> {
        self.flushes.join(|| self.carry_out_flush())
    }

    fn carry_out_flush(&self) -> Result<(), Errno> {
        self.is_whole()?;
        let (mut at, mut is_map_written) = (0, false);
        while !self.map.ends_at(at) {
            // † Before `data` is synced: what is set while that goes on may be of data that it does not cover.
            let too_late = mutation::on("an overlay's bits are taken after its data was synced");
            let mut bits = if too_late { Vec::new() } else { self.map.take_dirty(&mut at, FLUSH_PAGES_MAX) };
            if !mutation::on("an overlay's bits come before its data") {
                self.sync(&*self.data)?;
            }
            if too_late {
                bits = self.map.take_dirty(&mut at, FLUSH_PAGES_MAX);
            }
            for (offset, bytes) in &bits {
                if let Err(errno) = self.map_file.put(*offset, &**bytes) {
                    // Pages of an earlier turn were written and are not synced: these ones see to it that the next flush syncs the map.
                    self.map.give_back(&bits);
                    return Err(errno);
                }
            }
            is_map_written |= !bits.is_empty();
        }
        if !is_map_written || mutation::on("an overlay's bits are not synced") { Ok(()) } else { self.sync(&*self.map_file) }
    }

    fn sync(&self, file: &dyn Medium) -> Result<(), Errno> {
        file.sync().inspect_err(|_| self.failed.store(true, Ordering::SeqCst))
    }

    fn is_whole(&self) -> Result<(), Errno> {
        if self.failed.load(Ordering::SeqCst) { Err(Errno::EIO) } else { Ok(()) }
    }
}

/// Device and number.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|is| (is.dev(), is.ino()))
}

fn above(path: &Path) -> &Path {
    path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a file lies in a folder, whatever both are called.
fn is_inside(file: &Path, dir: &Path) -> bool {
    let real = |path: &Path| std::fs::metadata(path).map(|is| (is.dev(), is.ino()));
    matches!((real(above(file)), real(dir)), (Ok(above), Ok(dir)) if above == dir) || file.starts_with(dir)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Says, durably, that `data` is whole, and what it becomes.
fn say_whole(dir: &Path, file: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let whole = options.open(dir.join(WHOLE))?;
    whole.write_all_at(file.as_os_str().as_bytes(), 0)?;
    whole.sync_all()?;
    sync_folder(dir)
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
