//! A volume's intent map on disk: finds, creates, grows and writes it. Which bytes to write is decided by
//! `farside_shim::IntentOwner` (pages) and the control thread (header).
//!
//! Invariants: the file is used through one locked description (L11); it was synced after the lock was taken and before
//! anything read from it is believed†; a header's next write goes to the older slot, after the sync of the one before; a
//! failed write or sync latches the file failed.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use farside_blockio::{DeviceError, FileDevice, OpenOptions, is_of_medium};
use farside_region::intent::{
    BackingIdentity, Header, HeaderState, INTENT_BLOCK_BYTES, IntentBlock, IntentError, IntentLayout, Owed, OwnFile, Page,
    PageIndex, SlotIndex, UncheckedOwed, check_page_version, recover_header, recover_page,
};
use farside_region::{Geometry, GranuleSet, LedgerPosition, MapId, RegionIndex, RegionRange, Term};
use farside_shim::Commit;
use thiserror::Error;
use tracing::warn;

use crate::config::{ConfigError, sync_dir};
use crate::state_dir::{Mark, is_read_only};

/// Why an intent map cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum IntentFileError {
    /// Whoever judged what was found does not want it opened, and knows why.
    #[error("it is not to be opened")]
    Refused,
    /// It cannot be opened, or another process has it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Reading, writing or syncing failed.
    #[error("the intent map {} cannot be {verb}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Written by a newer version.
    #[error("the intent map {}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IntentError,
    },
    /// The backing device got smaller, which would cut published data.
    #[error(
        "the volume shrank from {before} to {now} bytes; shrinking is not supported: give the space back, or remove the volume and add its disk under another name (farside explain shape)"
    )]
    Shrunk {
        /// Bytes at the last attach.
        before: u64,
        /// Bytes now.
        now: u64,
    },
    /// The folder.
    #[error(transparent)]
    Folder(#[from] ConfigError),
    /// It would be attached after its group has said how it stopped.
    #[error("farsided is stopping")]
    Stopping,
}

impl IntentFileError {
    /// Whether a disk does not give back what it was given.
    fn is_of_the_medium(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_of_medium(source))
    }

    /// Whether its file system takes no write at all, as after an error.
    pub(crate) fn is_read_only(&self) -> bool {
        match self {
            Self::Device(DeviceError::Open { source, .. }) | Self::Io { source, .. } => is_read_only(source),
            Self::Folder(ConfigError::Io { source, .. }) => is_read_only(source),
            _ => false,
        }
    }
}

/// Why nothing is believed of a map that says it is another file's.
const COPY: &str = "the intent map is a copy, which knows nothing of what was written since";
/// The map, in its volume's folder. Without it a new one is made, in which everything is dirty.
pub(crate) const MAP_FILE: &str = "intent";
/// What [`IntentFile::has_room`] writes; a crash may leave it.
const TRIAL: &str = "intent.trial";

/// An open intent map.
#[derive(Debug)]
pub(crate) struct IntentFile {
    device: FileDevice,
    dir: PathBuf,
    header: Header,
    newest: SlotIndex,
    failed: bool,
}

/// What was found at start.
#[derive(Debug)]
pub(crate) struct Found {
    /// The header before this attach; `None` = there was none to be trusted (T17).
    pub(crate) header: Option<Header>,
    /// Both slots of every page.
    pub(crate) slots: Vec<[Box<IntentBlock>; 2]>,
    /// What a clean stop left owed, if this is the start after one.
    pub(crate) owed: Option<GranuleSet>,
    /// The regions whose bit is set.
    pub(crate) hot: farside_region::RegionSet,
}

impl IntentFile {
    /// Opens the map in a volume's folder, or creates one in which everything is dirty. `judge` hears the header exactly as
    /// the last attach left it, before anything is written: growing the map would take the word `clean` out of it, and with
    /// it what the backing looked like†.
    ///
    /// # Errors
    /// Anything that makes it unusable, with the remedy; a live owner is waited for up to 30 s; and what `judge` says.
    pub(crate) fn open(
        dir: &Path,
        geometry: &Geometry,
        fresh_id: MapId,
        judge: &mut dyn FnMut(&Header) -> Result<(), IntentFileError>,
    ) -> Result<(Self, Found), IntentFileError> {
        let path = dir.join(MAP_FILE);
        let _ = std::fs::remove_file(dir.join(TRIAL));
        let io = |verb| move |source| IntentFileError::Io { path: dir.join(MAP_FILE), verb, source };
        // One that cannot be looked at is not one that is not there: a new one would forget what was confirmed.
        let is_new = !path.try_exists().map_err(io("looked at"))?;
        if is_new {
            create(dir, geometry, &Header::new(fresh_id, geometry, &IntentLayout::new(geometry)), &|_| true)?;
        }
        let mut device = FileDevice::open(&path, OpenOptions::daemon())?;
        // † The file's previous owner may have died with writes in the page cache or the device's: what is read from here on
        // must be what a power cut would leave, or a bit is trusted that was never durable.
        device.sync_data().map_err(io("synced"))?;
        let unreadable = unreadable(&device, 0..device.size() / INTENT_BLOCK_BYTES as u64)?;
        let is_damaged = unreadable.is_some();
        // † The other header may be the older one: it may say `clean` of what was served since.
        let is_headless = unreadable.as_ref().is_some_and(|(first, _)| *first < 2);
        if let Some((index, source)) = unreadable {
            warn!(path = %path.display(), "the intent map cannot be read at byte {}: {source}; it is made anew", index * INTENT_BLOCK_BYTES as u64);
        }
        let mut found_header = read_header(&device, &path)?;
        if let Some((header, _)) = &found_header
            && header.volume_bytes > geometry.volume_bytes()
        {
            return Err(IntentFileError::Shrunk { before: header.volume_bytes, now: geometry.volume_bytes() });
        }
        found_header = found_header.filter(|_| !is_headless);
        if let Some((header, _)) = &found_header {
            let is_a_copy = header.file.zip(own(&device)).is_some_and(|(file, own)| !file.may_be(&own));
            if is_a_copy {
                warn!(dir = %dir.display(), "{COPY}: everything will be compared");
                Mark::TrackingLost.put_because(dir, COPY)?;
            }
            if !is_new {
                judge(header)?;
            }
            let grown = header.volume_bytes < geometry.volume_bytes();
            if grown || is_a_copy || is_damaged || (!is_new && header.state == HeaderState::Attached) {
                device = renew(dir, device, header, geometry, is_damaged)?;
            }
        }
        let layout = IntentLayout::new(geometry);
        if device.size() != layout.file_bytes() {
            // Neither header is valid and the size is another volume's: nothing in here can be trusted.
            found_header = None;
        }
        if found_header.is_none() {
            drop(device);
            create(dir, geometry, &Header::new(fresh_id, geometry, &layout), &|_| true)?;
            device = FileDevice::open(&path, OpenOptions::daemon())?;
        }
        let header = read_header(&device, &path)?.expect("a header was found or has just been written");
        Self::read(device, dir, geometry, header, found_header.is_some())
    }

    /// As a crash left it, on a file system that takes no write any more: a map that has failed. Whoever serves with it has lost track, and has
    /// [`IntentFile::make_anew`] tried. † Not one that a clean stop left: it goes on to say `clean`, whatever is written meanwhile.
    ///
    /// # Errors
    /// When there is no such map of such a volume, or it cannot be read.
    pub(crate) fn open_unwritable(dir: &Path, geometry: &Geometry) -> Result<(Self, Found), IntentFileError> {
        let path = dir.join(MAP_FILE);
        let io = |verb, source| IntentFileError::Io { path: path.clone(), verb, source };
        let device = FileDevice::open(&path, OpenOptions { readonly: true, ..OpenOptions::daemon() })?;
        match device.sync_data() {
            // ext4 syncs nothing any more after an error. What is read here and is not on the disk costs nothing: nobody trusts this map.
            Err(error) if is_read_only(&error) => {}
            synced => synced.map_err(|source| io("synced", source))?,
        }
        let found = read_header(&device, &path)?.filter(|_| matches!(unreadable(&device, 0..2), Ok(None)));
        let is_left = |header: &Header| {
            header.state == HeaderState::Attached
                && header.volume_bytes == geometry.volume_bytes()
                && device.size() == IntentLayout::new(geometry).file_bytes()
        };
        let header = found.filter(|(header, _)| is_left(header));
        let header = header.ok_or_else(|| io("written", std::io::ErrorKind::ReadOnlyFilesystem.into()))?;
        let (file, found) = Self::read(device, dir, geometry, header, true)?;
        Ok((Self { failed: true, ..file }, found))
    }

    fn read(
        device: FileDevice,
        dir: &Path,
        geometry: &Geometry,
        (header, newest): (Header, SlotIndex),
        was_there: bool,
    ) -> Result<(Self, Found), IntentFileError> {
        let layout = IntentLayout::new(geometry);
        let mut slots = Vec::new();
        let mut hot = farside_region::RegionSet::new();
        for p in 0..layout.page_count() {
            let pair = read_pair(&device, PageIndex(p))?;
            let page = recover_page(header.map, &layout, PageIndex(p), [&pair[0].0, &pair[1].0]).page;
            let start = layout.page_run(PageIndex(p)).start.0;
            page.bits.iter().for_each(|i| hot.insert(RegionIndex(start + u64::from(i))));
            slots.push(pair);
        }
        let owed = (header.state == HeaderState::Clean)
            .then(|| std::fs::read(dir.join("owed")).ok())
            .flatten()
            .and_then(|bytes| UncheckedOwed(&bytes).check(&header, geometry).ok())
            .map(|owed| owed.set);
        let found = Found { header: was_there.then(|| header.clone()), slots, owed, hot };
        Ok((Self { device, dir: dir.to_owned(), header, newest, failed: false }, found))
    }

    /// Whether the map in a volume's folder, of which nobody here is the owner, says that a stop was in order. `None`: there is none.
    ///
    /// # Errors
    /// When it cannot be read, or another version wrote it.
    pub(crate) fn says_clean(dir: &Path) -> Result<Option<bool>, IntentFileError> {
        let path = dir.join(MAP_FILE);
        let io = |verb| move |source| IntentFileError::Io { path: dir.join(MAP_FILE), verb, source };
        if !path.try_exists().map_err(io("looked at"))? {
            return Ok(None);
        }
        let mut slots = vec![0; 2 * INTENT_BLOCK_BYTES];
        let file = File::open(&path).map_err(io("opened"))?;
        match std::os::unix::fs::FileExt::read_exact_at(&file, &mut slots, 0) {
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(io("read")(error)),
            _ => {} // cut off: what is missing verifies as nothing
        }
        let (a, b) = slots.split_at(INTENT_BLOCK_BYTES);
        let found = recover_header([a, b]).map_err(|source| IntentFileError::Format { path, source })?;
        Ok(Some(found.is_some_and(|(header, _)| header.state == HeaderState::Clean)))
    }

    /// Whether a map of a volume of that size fits beside what is in the folder.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn has_room(dir: &Path, geometry: &Geometry) -> Result<(), IntentFileError> {
        let trial = dir.join(TRIAL);
        let header = Header::new(MapId([0; 16]), geometry, &IntentLayout::new(geometry));
        let fits = write_whole(&trial, geometry, &header, &|_| true);
        let removed = std::fs::remove_file(&trial).map_err(|source| ("removed", source));
        fits.and(removed).map_err(|(verb, source)| IntentFileError::Io { path: trial, verb, source })
    }

    /// The newest durable header.
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Writes the header with the changes made by `change`, durably.
    ///
    /// # Errors
    /// The write's or sync's; the file is failed from then on.
    pub(crate) fn write_header(&mut self, change: impl FnOnce(&mut Header)) -> Result<(), IntentFileError> {
        // One of a build that did not say which file it is says so from here on.
        let mut header = Header { file: own(&self.device).or(self.header.file), ..self.header.clone() };
        change(&mut header);
        header.seq += 1;
        let slot = self.newest.other();
        self.write(IntentLayout::header_offset(slot), &header.encode())?;
        self.sync()?;
        (self.header, self.newest) = (header, slot);
        Ok(())
    }

    /// Writes what the owner of the pages wants, then syncs once.
    ///
    /// # Errors
    /// As [`IntentFile::write_header`].
    pub(crate) fn write_pages(&mut self, commit: &Commit) -> Result<(), IntentFileError> {
        for w in &commit.writes {
            self.write(w.offset, &w.block)?;
        }
        self.sync()
    }

    /// The last write of a planned stop: first the masks of what is owed, then the `clean` header that vouches for them (T2),
    /// with the confirmed term and position that were still to be written.
    ///
    /// # Errors
    /// As [`IntentFile::write_header`]; the stop is not clean then.
    pub(crate) fn write_clean(
        &mut self,
        owed: GranuleSet,
        backing: Option<BackingIdentity>,
        confirmed: Option<(Option<Term>, Option<LedgerPosition>)>,
    ) -> Result<(), IntentFileError> {
        let owed = Owed { map: self.header.map, header_seq: self.header.seq + 1, set: owed };
        let path = self.dir.join("owed");
        let io = |source| IntentFileError::Io { path: path.clone(), verb: "written", source };
        let mut temp = tempfile::NamedTempFile::new_in(&self.dir).map_err(io)?;
        std::io::Write::write_all(&mut temp, &owed.encode()).map_err(io)?;
        temp.as_file().sync_all().map_err(io)?;
        temp.persist(&path).map_err(|e| io(e.error))?;
        sync_dir(&self.dir)?;
        self.write_header(|h| {
            h.state = HeaderState::Clean;
            h.backing = backing;
            if let Some((term, position)) = confirmed {
                (h.term, h.position) = (term, position);
            }
        })
    }

    /// Whether a write or sync failed: nothing more is written until [`IntentFile::make_anew`].
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Makes a new map in the place of the one that failed: another id, every bit set, the header as `change` makes it of the
    /// last durable one. Until it is in its place, whole and durable, the old one stays as it is.
    ///
    /// # Errors
    /// When it still cannot be written; try again later.
    pub(crate) fn make_anew(
        &mut self,
        geometry: &Geometry,
        id: MapId,
        change: impl FnOnce(&mut Header),
    ) -> Result<(), IntentFileError> {
        let mut header = Header { map: id, seq: self.header.seq + 1, state: HeaderState::Attached, ..self.header.clone() };
        change(&mut header);
        create(&self.dir, geometry, &header, &|_| true)?;
        self.device = FileDevice::open(self.dir.join(MAP_FILE), OpenOptions::daemon())?;
        // As `create` leaves it: slot B is the newest of everything.
        (self.header, self.newest) = (Header { seq: header.seq + 1, file: own(&self.device), ..header }, SlotIndex::B);
        self.failed = false;
        Ok(())
    }

    /// Makes what is there the map of a crash, in which everything is cold.
    #[cfg(test)]
    pub(crate) fn leave_cold(dir: &Path, geometry: &Geometry) {
        let (file, _) = Self::open(dir, geometry, MapId([9; 16]), &mut |_| Ok(())).expect("a map");
        create(dir, geometry, &Header { state: HeaderState::Attached, backing: None, ..file.header.clone() }, &|_| false)
            .expect("made");
    }

    #[cfg(test)]
    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }

    fn write(&mut self, offset: farside_region::ByteOffset, block: &IntentBlock) -> Result<(), IntentFileError> {
        let result = if self.failed { Err(latched()) } else { self.device.write_all_at(offset, &block.0) };
        self.latch("written", result)
    }

    fn sync(&mut self) -> Result<(), IntentFileError> {
        let result = if self.failed { Err(latched()) } else { self.device.sync_data() };
        self.latch("synced", result)
    }

    fn latch(&mut self, verb: &'static str, result: std::io::Result<()>) -> Result<(), IntentFileError> {
        self.failed |= result.is_err();
        result.map_err(|source| IntentFileError::Io { path: self.dir.join(MAP_FILE), verb, source })
    }
}

/// What is known of a file that no copy of it has.
fn own(device: &FileDevice) -> Option<OwnFile> {
    device.metadata().ok().map(|found| own_file(&found))
}

fn own_file(found: &std::fs::Metadata) -> OwnFile {
    let since = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    OwnFile { inode: found.ino(), born_ns: since.and_then(|since| u64::try_from(since.as_nanos()).ok()) }
}

fn latched() -> std::io::Error {
    std::io::Error::other("an earlier write failed; nothing is written until it is opened again")
}

fn read_block(device: &FileDevice, index: u64) -> Result<Box<IntentBlock>, IntentFileError> {
    let mut block = IntentBlock::zeroed();
    let offset = farside_region::ByteOffset(index * INTENT_BLOCK_BYTES as u64);
    if offset.0 + INTENT_BLOCK_BYTES as u64 > device.size() {
        return Ok(block); // beyond the end: a slot never written
    }
    let read = device.read_exact_at(offset, &mut block.0);
    #[cfg(test)]
    let read = read.and_then(|()| if tests::is_bad(device, index) { Err(farside_blockio::Errno::EIO.into()) } else { Ok(()) });
    read.map_err(|source| IntentFileError::Io { path: device.path().to_owned(), verb: "read", source })?;
    Ok(block)
}

/// Writes a whole new map beside the old one and puts it in its place: both slots of everything, synced. What is not finished
/// is taken away again: a full disk must not be kept full by it.
fn create(dir: &Path, geometry: &Geometry, header: &Header, hot: &dyn Fn(RegionIndex) -> bool) -> Result<(), IntentFileError> {
    let temp = dir.join("intent.new");
    let made = write_whole(&temp, geometry, header, hot)
        .and_then(|()| std::fs::rename(&temp, dir.join(MAP_FILE)).map_err(|source| ("put in place", source)));
    if let Err((verb, source)) = made {
        let _ = std::fs::remove_file(&temp); // it counts for nothing; where it cannot be removed, the next attempt replaces it
        return Err(IntentFileError::Io { path: dir.join(MAP_FILE), verb, source });
    }
    Ok(sync_dir(dir)?)
}

fn write_whole(
    path: &Path,
    geometry: &Geometry,
    header: &Header,
    hot: &dyn Fn(RegionIndex) -> bool,
) -> Result<(), (&'static str, std::io::Error)> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(|e| ("created", e))?;
    let header = Header { file: file.metadata().ok().map(|found| own_file(&found)), ..header.clone() };
    let layout = IntentLayout::new(geometry);
    let at = |offset: farside_region::ByteOffset, block: &IntentBlock| {
        std::os::unix::fs::FileExt::write_all_at(&file, &block.0, offset.0).map_err(|e| ("written", e))
    };
    for slot in [SlotIndex::A, SlotIndex::B] {
        let seq = header.seq + u64::from(slot == SlotIndex::B);
        at(IntentLayout::header_offset(slot), &Header { seq, ..header.clone() }.encode())?;
        for p in (0..layout.page_count()).map(PageIndex) {
            let page = Page { map: header.map, index: p, seq: u64::from(slot == SlotIndex::B), bits: bits_of(&layout, p, hot) };
            at(layout.page_offset(p, slot), &page.encode(&layout))?;
        }
    }
    file.sync_all().map_err(|e| ("synced", e))
}

fn bits_of(layout: &IntentLayout, page: PageIndex, hot: &dyn Fn(RegionIndex) -> bool) -> farside_region::intent::PageBits {
    let mut bits = farside_region::intent::PageBits::clear();
    let RegionRange { start, count } = layout.page_run(page);
    for i in (0..count).filter(|i| hot(RegionIndex(start.0 + i))) {
        bits.set(i as u32, true);
    }
    bits
}

/// Writes the map anew beside the old one, under the same id: what was hot; of a grown volume also the old last region (which may
/// have been short) and all that is new (T12); everything, if tracking was lost. Where the disk has no room for a second map, and
/// the volume has not grown, it is written anew in its place; † not one with a slot that cannot be read (`is_damaged`), which may come back as the newest.
///
/// † A map that no clean stop left may have had a sync that failed. The kernel says so once, to whoever asked: pages that never
/// became durable read back well until the next power cut, and no later sync says otherwise. So only what is written and synced
/// through a file of our own is believed to be durable.
fn renew(
    dir: &Path,
    old: FileDevice,
    header: &Header,
    geometry: &Geometry,
    is_damaged: bool,
) -> Result<FileDevice, IntentFileError> {
    let path = dir.join(MAP_FILE);
    let before = Geometry::new(header.volume_bytes).expect("a header's size was checked");
    let old_layout = IntentLayout::new(&before);
    let mut hot = farside_region::RegionSet::new();
    for p in 0..old_layout.page_count() {
        let page = read_page(&old, header.map, &old_layout, PageIndex(p))?.page;
        let start = old_layout.page_run(PageIndex(p)).start.0;
        page.bits.iter().for_each(|i| hot.insert(RegionIndex(start + u64::from(i))));
    }
    let first_new = if before == *geometry { u64::MAX } else { before.region_count() - 1 };
    let lost = Mark::TrackingLost.is_set(dir)?;
    let is_hot = |r: RegionIndex| lost || r.0 >= first_new || hot.contains(r);
    // A clean stop's masks speak of the smaller volume: they must not stand in for the grown one.
    let header = Header {
        volume_bytes: geometry.volume_bytes(),
        state: HeaderState::Attached,
        seq: header.seq + 1,
        file: own(&old),
        ..header.clone()
    };
    match create(dir, geometry, &header, &is_hot) {
        Ok(()) => {
            drop(old);
            Ok(FileDevice::open(&path, OpenOptions::daemon())?)
        }
        Err(IntentFileError::Io { source, .. }) if is_full(&source) && before == *geometry && !is_damaged => {
            warn!(dir = %dir.display(), %source, "no room for a second intent map: this one is written anew in its place");
            renew_in_place(dir, &old, &header, &old_layout, &is_hot, lost)?;
            Ok(old)
        }
        Err(error) => Err(error),
    }
}

/// † If the newer slot of a page never became durable, a power cut that tears the older one now would leave neither. So nothing is
/// written before a guard is durable: an empty file, which mostly fits where nothing else does; until it is gone everything
/// counts as changed. Nothing else could tell, and a volume whose map may be short is not served.
fn renew_in_place(
    dir: &Path,
    map: &FileDevice,
    header: &Header,
    layout: &IntentLayout,
    hot: &dyn Fn(RegionIndex) -> bool,
    lost: bool,
) -> Result<(), IntentFileError> {
    if !lost {
        Mark::TrackingLost.put(dir, true)?;
    }
    rewrite_older_slots(map, header, layout, hot)?;
    rewrite_older_slots(map, header, layout, hot)?; // those that were the newer ones
    if !lost && let Err(error) = Mark::TrackingLost.put(dir, false) {
        warn!(dir = %dir.display(), %error, "a mark cannot be withdrawn: everything will be compared");
    }
    Ok(())
}

/// The newest header of a map, of those that can be read.
fn read_header(device: &FileDevice, path: &Path) -> Result<Option<(Header, SlotIndex)>, IntentFileError> {
    let readable = |index| match read_block(device, index) {
        Err(error) if error.is_of_the_medium() => Ok(IntentBlock::zeroed()),
        read => read,
    };
    recover_header([&readable(0)?.0, &readable(1)?.0]).map_err(|source| IntentFileError::Format { path: path.to_owned(), source })
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Writes header and every page into its older slot, one above the newest, and syncs. Done twice, everything was written and
/// synced by us; whenever it is interrupted, one slot of each holds what was found or what is wanted, which is no less.
fn rewrite_older_slots(
    device: &FileDevice,
    header: &Header,
    layout: &IntentLayout,
    hot: &dyn Fn(RegionIndex) -> bool,
) -> Result<(), IntentFileError> {
    let failed = |source| IntentFileError::Io { path: device.path().to_owned(), verb: "written anew", source };
    for p in (0..layout.page_count()).map(PageIndex) {
        let found = read_page(device, header.map, layout, p)?;
        let slot = found.newest.map_or(SlotIndex::A, SlotIndex::other);
        let page = Page { map: header.map, index: p, seq: found.page.seq + 1, bits: bits_of(layout, p, hot) };
        device.write_all_at(layout.page_offset(p, slot), &page.encode(layout).0).map_err(failed)?;
    }
    let found = recover_header([&read_block(device, 0)?.0, &read_block(device, 1)?.0]);
    let found = found.map_err(|source| IntentFileError::Format { path: device.path().to_owned(), source })?;
    let (newest, slot) = found.map_or((header.seq, SlotIndex::A), |(found, newest)| (found.seq, newest.other()));
    let header = Header { seq: newest + 1, ..header.clone() };
    device.write_all_at(IntentLayout::header_offset(slot), &header.encode().0).map_err(failed)?;
    device.sync_data().map_err(failed)
}

/// Both slots of a page. † Where one cannot be read, neither counts, and everything in it is dirty: the other one may be the older.
fn read_pair(device: &FileDevice, page: PageIndex) -> Result<[Box<IntentBlock>; 2], IntentFileError> {
    let pair = [2 + 2 * page.0, 3 + 2 * page.0].map(|index| read_block(device, index));
    let known = pair.iter().flatten().try_for_each(|slot| check_page_version(&slot.0));
    known.map_err(|source| IntentFileError::Format { path: device.path().to_owned(), source })?;
    match pair {
        [Err(error), _] | [_, Err(error)] if error.is_of_the_medium() => Ok([IntentBlock::zeroed(), IntentBlock::zeroed()]),
        [a, b] => Ok([a?, b?]),
    }
}

/// The first of some blocks that its disk does not give back, and why.
///
/// # Errors
/// When it cannot be read for another reason.
fn unreadable(device: &FileDevice, blocks: std::ops::Range<u64>) -> Result<Option<(u64, IntentFileError)>, IntentFileError> {
    for index in blocks {
        match read_block(device, index) {
            Err(error) if error.is_of_the_medium() => return Ok(Some((index, error))),
            read => read.map(drop)?,
        }
    }
    Ok(None)
}

/// Both slots of a page, and which counts.
fn read_page(
    device: &FileDevice,
    map: MapId,
    layout: &IntentLayout,
    page: PageIndex,
) -> Result<farside_region::intent::RecoveredPage, IntentFileError> {
    let pair = read_pair(device, page)?;
    Ok(recover_page(map, layout, page, [&pair[0].0, &pair[1].0]))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::mounted::Mounted;

    const ID: MapId = MapId([7; 16]);

    #[test]
    fn a_new_map_is_all_dirty_and_a_clean_stop_is_found_again() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        let (mut file, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("created");
        assert_eq!(found.hot.len(), 5);
        let mut owed = GranuleSet::new();
        owed.insert_whole(RegionRange { start: RegionIndex(3), count: 1 });
        file.write_header(|h| h.state = HeaderState::Attached).expect("written");
        file.write_clean(owed.clone(), None, None).expect("written");
        drop(file);
        let (mut file, found) = IntentFile::open(dir.path(), &g, MapId([8; 16]), &mut |_| Ok(())).expect("opened");
        assert_eq!((found.header.expect("there").map, found.owed), (ID, Some(owed)));
        file.write_header(|h| h.state = HeaderState::Attached).expect("written");
        drop(file);
        let (_, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        assert_eq!(found.owed, None, "a crash after a clean stop must not trust its masks");
    }

    /// A crash, and a file system that takes no write any more.
    #[test]
    fn a_map_that_cannot_be_written_is_opened_as_one_that_failed_unless_it_says_clean() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        let (mut file, _) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("created");
        file.write_header(|h| (h.state, h.term) = (HeaderState::Attached, Some(Term(5)))).expect("written");
        drop(file);
        let Some(mounted) = Mounted::over(dir.path()) else { return };
        mounted.set_read_only(true);
        let refused = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect_err("it cannot be written");
        assert!(refused.is_read_only(), "{refused}");
        let (mut file, found) = IntentFile::open_unwritable(dir.path(), &g).expect("opened");
        assert!(file.has_failed(), "somebody would wait for it");
        assert_eq!((found.header.expect("there").term, found.owed), (Some(Term(5)), None));
        file.make_anew(&g, MapId([8; 16]), |_| {}).expect_err("nor is there another");
        mounted.set_read_only(false);
        file.make_anew(&g, MapId([8; 16]), |_| {}).expect("made");
        file.write_clean(GranuleSet::new(), None, None).expect("written");
        drop(file);
        mounted.set_read_only(true);
        let refused = IntentFile::open_unwritable(dir.path(), &g).expect_err("it would go on to say clean");
        assert!(refused.is_read_only(), "{refused}");
    }

    fn inode(dir: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(dir.join(MAP_FILE)).expect("there"))
    }

    /// The sync of a page failed, was reported, and the process ended; nothing says so to the next one.
    #[test]
    fn a_map_that_no_clean_stop_left_is_written_anew_with_its_bits() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        let header = Header { seq: 7, ..Header::new(ID, &g, &IntentLayout::new(&g)) };
        create(dir.path(), &g, &header, &|r| r.0 == 3).expect("created");
        let old = File::open(dir.path().join(MAP_FILE)).expect("opened"); // its inode number is not given away again
        let before = inode(dir.path());
        let (mut file, found) = IntentFile::open(dir.path(), &g, MapId([9; 16]), &mut |_| Ok(())).expect("opened");
        assert_ne!(inode(dir.path()), before, "attached: not believed to be durable");
        assert_eq!(found.hot.iter().map(|r| r.0).collect::<Vec<_>>(), [3], "and nothing of it is forgotten");
        let found = found.header.expect("there");
        assert!(found.map == ID && found.seq > header.seq + 1, "{found:?}");
        file.write_clean(GranuleSet::new(), None, None).expect("written");
        drop((file, old));
        let before = inode(dir.path());
        let (mut file, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        assert_eq!(inode(dir.path()), before, "clean: only a file that never failed is called so");
        assert_eq!(found.owed, Some(GranuleSet::new()));
        file.write_header(|h| h.state = HeaderState::Attached).expect("written");
        drop(file);
        Mark::TrackingLost.put(dir.path(), true).expect("marked");
        let (_, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        assert_eq!(found.hot.len(), 5, "lost: every bit is durable before anything is served");
    }

    /// The state directory was put back from a backup: what was written since is in no bit of it.
    #[test]
    fn nothing_is_believed_of_a_copy() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        let (path, kept) = (dir.path().join(MAP_FILE), dir.path().join("kept"));
        create(dir.path(), &g, &Header::new(ID, &g, &IntentLayout::new(&g)), &|_| false).expect("created");
        let (mut file, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        assert!(found.hot.is_empty() && !Mark::TrackingLost.is_set(dir.path()).expect("asked"), "it is the file itself");
        let confirmed = (Some(Term(3)), None);
        file.write_clean(GranuleSet::new(), None, Some(confirmed)).expect("written");
        drop(file);
        std::fs::copy(&path, &kept).expect("copied");
        std::fs::rename(&kept, &path).expect("put back");
        let (file, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        assert_eq!((found.hot.len(), found.owed), (5, None));
        assert_eq!(found.header.expect("there").term, Some(Term(3)), "it is of the same history");
        assert!(Mark::TrackingLost.reason(dir.path()).expect("marked").contains("copy"));
        drop(file);
        // Nor does a map that was never told which file it is stay so, once something is written.
        let kept_file = || {
            let bytes = std::fs::read(&path).expect("read");
            recover_header([&bytes[..4096], &bytes[4096..8192]]).expect("known").expect("there").0.file
        };
        crashed(dir.path(), &Geometry::new(40 << 20).expect("valid"));
        assert_eq!(kept_file(), None);
        let (mut file, _) =
            IntentFile::open(dir.path(), &Geometry::new(40 << 20).expect("valid"), ID, &mut |_| Ok(())).expect("opened");
        file.write_header(|_| {}).expect("written");
        drop(file);
        assert!(kept_file().is_some());
        std::fs::remove_file(&path).expect("removed");
        // From then on it is a file of its own.
        Mark::TrackingLost.put(dir.path(), false).expect("withdrawn");
        let (mut file, _) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        file.make_anew(&g, MapId([8; 16]), |_| {}).expect("made anew");
        file.write_clean(GranuleSet::new(), None, None).expect("written");
        drop(file);
        let (_, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("opened");
        assert_eq!(found.owed, Some(GranuleSet::new()));
        assert!(!Mark::TrackingLost.is_set(dir.path()).expect("asked"));
    }

    #[test]
    fn growth_dirties_what_is_new_and_the_old_last_region_and_shrinking_is_refused() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let small = Geometry::new(10 << 20).expect("valid");
        let header = Header::new(ID, &small, &IntentLayout::new(&small));
        create(dir.path(), &small, &header, &|_| false).expect("created");
        let big = Geometry::new(20 << 20).expect("valid");
        let (file, found) = IntentFile::open(dir.path(), &big, ID, &mut |_| Ok(())).expect("grown");
        assert_eq!(found.hot.iter().map(|r| r.0).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(found.header.expect("kept").map, ID);
        drop(file);
        assert!(matches!(IntentFile::open(dir.path(), &small, ID, &mut |_| Ok(())), Err(IntentFileError::Shrunk { .. })));
    }

    /// Growing the map takes `clean` out of the header; what the backing looked like at the clean stop must be judged before.
    #[test]
    fn a_clean_header_is_judged_before_the_map_grows() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let small = Geometry::new(10 << 20).expect("valid");
        let backing = Some(BackingIdentity { inode: 1, size: 10 << 20, mtime: (2, 3), ctime: (4, 5) });
        let (mut file, _) = IntentFile::open(dir.path(), &small, ID, &mut |_| panic!("there was none")).expect("created");
        file.write_clean(GranuleSet::new(), backing, None).expect("written");
        drop(file);
        let big = Geometry::new(20 << 20).expect("valid");
        let mut heard = None;
        let (_, found) = IntentFile::open(dir.path(), &big, ID, &mut |h| {
            heard = Some((h.state, h.backing));
            Ok(())
        })
        .expect("grown");
        assert_eq!(heard, Some((HeaderState::Clean, backing)));
        assert_eq!(found.owed, None);
    }

    fn hot_of(dir: &Path, g: &Geometry) -> Vec<u64> {
        let (_, found) = IntentFile::open(dir, g, ID, &mut |_| Ok(())).expect("opened");
        assert_eq!(found.header.expect("there").map, ID);
        found.hot.iter().map(|r| r.0).collect()
    }

    /// A map whose regions 1 and 3 are hot, as an attach left it that ended by a crash.
    fn crashed(dir: &Path, g: &Geometry) {
        let layout = IntentLayout::new(g);
        drop(IntentFile::open(dir, g, ID, &mut |_| Ok(())).expect("created"));
        let file = File::options().write(true).open(dir.join(MAP_FILE)).expect("there");
        let bits = bits_of(&layout, PageIndex(0), &|r| r.0 == 1 || r.0 == 3);
        let page = Page { map: ID, index: PageIndex(0), seq: 9, bits };
        let offset = layout.page_offset(PageIndex(0), SlotIndex::A).0;
        std::os::unix::fs::FileExt::write_all_at(&file, &page.encode(&layout).0, offset).expect("written");
        // What tests put back of it is to pass for the file itself.
        let (header, _) =
            recover_header([&std::fs::read(dir.join(MAP_FILE)).expect("read")[..4096], &[]]).expect("known").expect("there");
        for slot in [SlotIndex::A, SlotIndex::B] {
            let header = Header { file: None, seq: header.seq + u64::from(slot == SlotIndex::B), ..header.clone() };
            let offset = IntentLayout::header_offset(slot).0;
            std::os::unix::fs::FileExt::write_all_at(&file, &header.encode().0, offset).expect("written");
        }
    }

    /// What a full disk leaves: the map is written anew in its place, and an interruption anywhere loses no bit.
    #[test]
    fn l2_a_map_that_is_written_anew_in_its_place_never_has_fewer_bits() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(40 << 20).expect("valid");
        let layout = IntentLayout::new(&g);
        crashed(dir.path(), &g);
        let hot = |r: RegionIndex| r.0 == 1 || r.0 == 3;
        let before = std::fs::read(dir.path().join(MAP_FILE)).expect("read");
        let rewrite = |halves: u32| {
            std::fs::write(dir.path().join(MAP_FILE), &before).expect("written");
            let device = FileDevice::open(dir.path().join(MAP_FILE), OpenOptions::daemon()).expect("opened");
            let (header, _) = recover_header([&before[..4096], &before[4096..8192]]).expect("known").expect("a header");
            for _ in 0..halves {
                rewrite_older_slots(&device, &header, &layout, &hot).expect("written");
            }
            drop(device);
            std::fs::read(dir.path().join(MAP_FILE)).expect("read")
        };
        let (half, whole) = (rewrite(1), rewrite(2));
        // Torn in the first half or the second: any of the blocks that were being written is noise.
        for (from, to) in [(&before, &half), (&half, &whole)] {
            for block in (0..before.len() / 4096).filter(|b| from[b * 4096..][..4096] != to[b * 4096..][..4096]) {
                for others in [from, to] {
                    let mut torn = others.clone();
                    torn[block * 4096..][..4096].fill(0xA5);
                    std::fs::write(dir.path().join(MAP_FILE), &torn).expect("written");
                    assert_eq!(hot_of(dir.path(), &g), [1, 3], "block {block}");
                }
            }
        }
        let slots = |bytes: &[u8]| (0..bytes.len() / 4096).map(|b| bytes[b * 4096..][..4096].to_vec()).collect::<Vec<_>>();
        let same = slots(&before).iter().zip(slots(&whole)).filter(|(a, b)| *a == b).count();
        assert_eq!(same, 0, "only what was written by us is believed to be durable");
    }

    /// A disk without an inode left has room neither for a second map nor for the guard.
    #[test]
    fn l2_a_map_is_not_written_anew_in_its_place_without_a_guard() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(40 << 20).expect("valid");
        crashed(dir.path(), &g);
        let before = std::fs::read(dir.path().join(MAP_FILE)).expect("read");
        let (header, _) = recover_header([&before[..4096], &before[4096..8192]]).expect("known").expect("a header");
        let renewed = || {
            let map = FileDevice::open(dir.path().join(MAP_FILE), OpenOptions::daemon()).expect("opened");
            renew_in_place(dir.path(), &map, &header, &IntentLayout::new(&g), &|_| false, false)
        };
        // Not there, and not to be made.
        let mark = dir.path().join("tracking-lost");
        std::os::unix::fs::symlink("nowhere/tracking-lost", &mark).expect("linked");
        renewed().expect_err("nothing guards it");
        assert_eq!(std::fs::read(dir.path().join(MAP_FILE)).expect("read"), before);
        std::fs::remove_file(&mark).expect("removed");
        renewed().expect("guarded");
        assert!(!mark.exists(), "the guard is gone");
        assert_ne!(std::fs::read(dir.path().join(MAP_FILE)).expect("read"), before);
    }

    #[test]
    fn a_map_that_cannot_be_made_leaves_nothing_behind() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(40 << 20).expect("valid");
        std::fs::create_dir(dir.path().join(MAP_FILE)).expect("mkdir");
        std::fs::create_dir(dir.path().join("intent/in-the-way")).expect("mkdir");
        let header = Header::new(ID, &g, &IntentLayout::new(&g));
        create(dir.path(), &g, &header, &|_| true).expect_err("a folder has its name");
        assert!(!dir.path().join("intent.new").exists());
    }

    #[test]
    fn two_bad_headers_mean_no_header() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(10 << 20).expect("valid");
        drop(IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("created"));
        let mut bytes = std::fs::read(dir.path().join(MAP_FILE)).expect("read");
        bytes[100] ^= 1;
        bytes[4196] ^= 1;
        std::fs::write(dir.path().join(MAP_FILE), bytes).expect("written");
        let (_, found) = IntentFile::open(dir.path(), &g, MapId([9; 16]), &mut |_| Ok(())).expect("opened");
        assert!(found.header.is_none());
        assert_eq!(found.hot.len(), 3, "everything is dirty");
    }

    thread_local! {
        /// A map's inode, and those of its blocks that its disk does not give back.
        static BAD: RefCell<(u64, Vec<u64>)> = const { RefCell::new((0, Vec::new())) };
    }

    /// Whether that block of that file is to be one that cannot be read.
    pub(super) fn is_bad(device: &FileDevice, index: u64) -> bool {
        BAD.with_borrow(|(inode, blocks)| blocks.contains(&index) && device.metadata().is_ok_and(|found| found.ino() == *inode))
    }

    /// A map without a bit, after a clean stop.
    fn clean_and_cold(dir: &Path, g: &Geometry) {
        IntentFile::leave_cold(dir, g);
        let (mut file, found) = IntentFile::open(dir, g, ID, &mut |_| Ok(())).expect("opened");
        assert!(found.hot.is_empty());
        file.write_clean(GranuleSet::new(), None, Some((Some(Term(5)), None))).expect("written");
    }

    fn opened_with_bad(dir: &Path, g: &Geometry, blocks: &[u64]) -> Result<(IntentFile, Found), IntentFileError> {
        let inode = std::fs::metadata(dir.join(MAP_FILE)).expect("a map").ino();
        BAD.set((inode, blocks.to_vec()));
        let opened = IntentFile::open(dir, g, MapId([8; 16]), &mut |_| Ok(()));
        BAD.set((0, Vec::new()));
        opened
    }

    #[test]
    fn a_page_of_a_newer_version_is_refused_and_not_taken_for_torn() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        for slot in [2, 3] {
            IntentFile::leave_cold(dir.path(), &g);
            let path = dir.path().join(MAP_FILE);
            let cold = std::fs::read(&path).expect("read");
            let mut bytes = cold.clone();
            let block = &mut bytes[slot * INTENT_BLOCK_BYTES..][..INTENT_BLOCK_BYTES];
            block[8] = 2;
            block[12..16].fill(0);
            let sum = crc32c::crc32c(block);
            block[12..16].copy_from_slice(&sum.to_le_bytes());
            std::fs::write(&path, &bytes).expect("written");
            let refused = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect_err("its bits are not known");
            assert!(matches!(refused, IntentFileError::Format { source: IntentError::Version(2), .. }), "{refused}");
            assert_eq!(std::fs::read(&path).expect("read"), bytes, "it is left as it is");
            std::fs::write(&path, &cold).expect("written");
        }
    }

    /// Either slot may be the newer one; nobody can tell from the other.
    #[test]
    fn a_page_of_which_a_slot_cannot_be_read_is_all_dirty_and_lies_elsewhere_afterwards() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        for slot in [2, 3] {
            clean_and_cold(dir.path(), &g);
            let (file, found) = opened_with_bad(dir.path(), &g, &[slot]).expect("served all the same");
            assert_eq!((found.hot.len(), found.owed), (5, None), "slot {slot}");
            assert_eq!(found.header.expect("the header is whole").term, Some(Term(5)));
            drop(file);
            let (_, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("its new place can be read");
            assert_eq!(found.hot.len(), 5, "no older slot counts again");
        }
    }

    /// The one that can be read may be the older, and say `clean` of what was served since.
    #[test]
    fn a_map_of_which_a_header_cannot_be_read_knows_nothing() {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let g = Geometry::new(20 << 20).expect("valid");
        for slot in [0, 1] {
            clean_and_cold(dir.path(), &g);
            let (file, found) = opened_with_bad(dir.path(), &g, &[slot]).expect("served all the same");
            assert!(found.header.is_none() && found.owed.is_none(), "slot {slot}");
            assert_eq!((found.hot.len(), file.header().map), (5, MapId([8; 16])));
            drop(file);
            let (_, found) = IntentFile::open(dir.path(), &g, ID, &mut |_| Ok(())).expect("its new place can be read");
            assert_eq!((found.header.expect("a new one").term, found.hot.len()), (None, 5));
            let less = Geometry::new(16 << 20).expect("valid");
            let refused = opened_with_bad(dir.path(), &less, &[slot]).expect_err("it has shrunk");
            assert!(matches!(refused, IntentFileError::Shrunk { .. }), "slot {slot}: {refused}");
        }
    }
}
