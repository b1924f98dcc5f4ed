//! The bytes of a volume's intent map: pages, header, and the masks of a clean stop (`docs/formats/intent-map.md`).
//!
//! Owns the layout and the choice between two slots. Invariant: what was read from disk is an `Unchecked…` until its magic,
//! version, checksum and owner were looked at; no bit of an unchecked block is ever believed. Two bad slots never mean
//! "nothing is dirty": a page becomes all-dirty, a header becomes *no header* (T17).
//! Deliberately not here: files, and the order of writes and syncs (`farside_shim::IntentOwner`).

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    BootId, ByteOffset, Geometry, GranuleMask, GranuleSet, LedgerPosition, MapId, RecordDigest, RegionIndex, RegionRange, Slot,
    Term,
};

/// Bytes of a page or header slot: one sector of any device, written in one piece.
pub const INTENT_BLOCK_BYTES: usize = 4096;
/// The most regions that one page can describe.
pub const PAGE_REGIONS_MAX: u32 = (PAGE_BITS_BYTES * 8) as u32;

const PAGE_HEAD_BYTES: usize = 64;
const PAGE_BITS_BYTES: usize = INTENT_BLOCK_BYTES - PAGE_HEAD_BYTES;
const PAGE_WORDS: usize = PAGE_BITS_BYTES / 8;
const PAGE_MAGIC: &[u8; 8] = b"FARSpage";
const HEADER_MAGIC: &[u8; 8] = b"FARShead";
const OWED_MAGIC: &[u8; 8] = b"FARSowed";
const VERSION: u32 = 1;

/// One slot's bytes. 4096-byte aligned, so that it can be handed to direct I/O as it is.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct IntentBlock(pub [u8; INTENT_BLOCK_BYTES]);

impl fmt::Debug for IntentBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IntentBlock({:02x?}…)", &self.0[..16])
    }
}

impl IntentBlock {
    /// All zeroes: a slot never written.
    pub fn zeroed() -> Box<Self> {
        Box::new(Self([0; INTENT_BLOCK_BYTES]))
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IntentError {
    /// Too short or too long for what it should be.
    #[error("{0} bytes is not the length of this structure")]
    Length(usize),
    /// Not ours, or never written.
    #[error("the magic number is wrong")]
    Magic,
    /// A format this version does not know.
    #[error("format version {0} is not known; a newer farsided wrote it")]
    Version(u32),
    /// The same, where the version did not change for it.
    #[error("the {0} is not known; a newer farsided wrote it")]
    Unknown(&'static str),
    /// Torn or rotten.
    #[error("the checksum does not match")]
    Checksum,
    /// Whole, but of another map, page or shape.
    #[error("it belongs to another map, page or volume shape")]
    Foreign,
    /// The checksum matches, the content does not make sense.
    #[error("a field holds an impossible value ({0})")]
    Field(&'static str),
}

/// Which of two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotIndex {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotIndex {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// The number of an intent page, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageIndex(pub u64);

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How regions map to pages, and pages to bytes of the intent file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntentLayout {
    region_count: u64,
    page_regions: u32,
}

impl IntentLayout {
    /// The layout of a real volume: full pages.
    pub fn new(geometry: &Geometry) -> Self {
        Self::with_page_regions(geometry, PAGE_REGIONS_MAX)
    }

    /// Pages of so many regions, for tests and simulation, where a volume of a few regions should have a few pages.
    ///
    /// # Panics
    /// When `page_regions` is 0 or more than [`PAGE_REGIONS_MAX`].
    pub fn with_page_regions(geometry: &Geometry, page_regions: u32) -> Self {
        assert!((1..=PAGE_REGIONS_MAX).contains(&page_regions), "a page of {page_regions} regions");
        Self { region_count: geometry.region_count(), page_regions }
    }

    /// Regions of the volume.
    pub fn region_count(&self) -> u64 {
        self.region_count
    }

    /// Regions per page.
    pub fn page_regions(&self) -> u32 {
        self.page_regions
    }

    /// Number of pages.
    pub fn page_count(&self) -> u64 {
        self.region_count.div_ceil(u64::from(self.page_regions))
    }

    /// The page that holds a region's bit, and the bit's place in it.
    pub fn place(&self, region: RegionIndex) -> (PageIndex, u32) {
        let n = u64::from(self.page_regions);
        (PageIndex(region.0 / n), (region.0 % n) as u32)
    }

    /// The regions of a page.
    ///
    /// # Panics
    /// When the page is beyond the map.
    pub fn page_run(&self, page: PageIndex) -> RegionRange {
        let n = u64::from(self.page_regions);
        let start = page.0 * n;
        assert!(start < self.region_count, "page {page} is beyond the map");
        RegionRange { start: RegionIndex(start), count: n.min(self.region_count - start) }
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        (2 + 2 * self.page_count()) * INTENT_BLOCK_BYTES as u64
    }

    /// Where a header slot lies.
    pub fn header_offset(slot: SlotIndex) -> ByteOffset {
        ByteOffset((slot == SlotIndex::B) as u64 * INTENT_BLOCK_BYTES as u64)
    }

    /// Where a page's slot lies.
    ///
    /// # Panics
    /// When the page is beyond the map.
    pub fn page_offset(&self, page: PageIndex, slot: SlotIndex) -> ByteOffset {
        assert!(page.0 < self.page_count(), "page {page} is beyond the map");
        ByteOffset((2 + 2 * page.0 + (slot == SlotIndex::B) as u64) * INTENT_BLOCK_BYTES as u64)
    }
}

/// The bits of one page: bit i is the page's region i; set = its content may differ from what is published.
#[derive(Clone, PartialEq, Eq)]
pub struct PageBits(Box<[u64; PAGE_WORDS]>);

impl fmt::Debug for PageBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageBits({} set)", self.count())
    }
}

impl PageBits {
    /// None set.
    pub fn clear() -> Self {
        Self(Box::new([0; PAGE_WORDS]))
    }

    /// The first `count` set.
    pub fn first(count: u64) -> Self {
        let mut bits = Self::clear();
        (0..count as u32).for_each(|i| bits.set(i, true));
        bits
    }

    /// One bit.
    pub fn get(&self, i: u32) -> bool {
        self.0[i as usize / 64] >> (i % 64) & 1 == 1
    }

    /// Sets or clears one bit.
    pub fn set(&mut self, i: u32, on: bool) {
        let (word, bit) = (&mut self.0[i as usize / 64], 1u64 << (i % 64));
        if on { *word |= bit } else { *word &= !bit }
    }

    /// Number of bits set.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// The places of the bits set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().enumerate().flat_map(|(w, &bits)| {
            std::iter::successors((bits != 0).then_some(bits), |b| Some(b & (b - 1)).filter(|b| *b != 0))
                .map(move |b| w as u32 * 64 + b.trailing_zeros())
        })
    }
}

/// A page as it stands in one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Whose.
    pub map: MapId,
    /// Which.
    pub index: PageIndex,
    /// Rises by one with every write of the page; the higher of two valid slots counts.
    pub seq: u64,
    /// The bits.
    pub bits: PageBits,
}

impl Page {
    /// The bytes of a slot.
    pub fn encode(&self, layout: &IntentLayout) -> Box<IntentBlock> {
        let mut block = IntentBlock::zeroed();
        let b = &mut block.0;
        b[0..8].copy_from_slice(PAGE_MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[16..32].copy_from_slice(&self.map.0);
        b[32..40].copy_from_slice(&self.index.0.to_le_bytes());
        b[40..48].copy_from_slice(&self.seq.to_le_bytes());
        b[48..52].copy_from_slice(&layout.page_regions.to_le_bytes());
        for (bytes, word) in b[PAGE_HEAD_BYTES..].chunks_exact_mut(8).zip(self.bits.0.iter()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        seal(b, 12);
        block
    }
}

/// A slot's bytes that nobody has looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct UncheckedPage<'a>(pub &'a [u8]);

impl UncheckedPage<'_> {
    /// The page, if these bytes are one, of this map and place.
    ///
    /// # Errors
    /// Says what is wrong. Every error means the same to the caller: this slot does not count.
    pub fn check(self, map: MapId, layout: &IntentLayout, index: PageIndex) -> Result<Page, IntentError> {
        let b = checked(self.0, PAGE_MAGIC, 12)?;
        if b[16..32] != map.0 || u64_at(b, 32) != index.0 || u32_at(b, 48) != layout.page_regions {
            return Err(IntentError::Foreign);
        }
        let mut bits = PageBits::clear();
        for (word, bytes) in bits.0.iter_mut().zip(b[PAGE_HEAD_BYTES..].chunks_exact(8)) {
            *word = u64_at(bytes, 0);
        }
        let count = layout.page_run(index).count;
        if bits.iter().last().is_some_and(|i| u64::from(i) >= count) {
            return Err(IntentError::Field("bits beyond the volume"));
        }
        Ok(Page { map, index, seq: u64_at(b, 40), bits })
    }
}

/// What a start finds of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredPage {
    /// The page that counts; all-dirty with sequence 0 when neither slot is valid.
    pub page: Page,
    /// The slot that holds it; `None` when neither is valid. The next write goes to the other one (or to A).
    pub newest: Option<SlotIndex>,
}

/// Picks the valid slot with the highest sequence.
///
/// † Two bad slots mean *all dirty*: a torn page must never read as "nothing to do", or every change in 126 GiB is lost.
pub fn recover_page(map: MapId, layout: &IntentLayout, index: PageIndex, slots: [&[u8]; 2]) -> RecoveredPage {
    let [a, b] = slots.map(|s| UncheckedPage(s).check(map, layout, index).ok());
    match newer(a, b, |p| p.seq) {
        Some((page, slot)) => RecoveredPage { page, newest: Some(slot) },
        None => {
            let bits = PageBits::first(layout.page_run(index).count);
            RecoveredPage { page: Page { map, index, seq: 0, bits }, newest: None }
        }
    }
}

/// Whether the bytes of a page's slot are of a version that is known here, or of none.
///
/// # Errors
/// [`IntentError::Version`]: a newer program wrote it. † [`recover_page`] would take the older slot, in which bits may be missing.
pub fn check_page_version(slot: &[u8]) -> Result<(), IntentError> {
    match checked(slot, PAGE_MAGIC, 12) {
        Err(error @ IntentError::Version(_)) => Err(error),
        _ => Ok(()),
    }
}

/// How the last attach ended, as far as the header knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderState {
    /// A source serves the volume, or died while it did: only the bits of the pages count.
    Attached,
    /// Stopped as planned: the `owed` masks say exactly what is still to be published (T2).
    Clean,
}

/// What a backing file looked like when it was left in peace. Different at the next start → `Compare(all)` (T2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackingIdentity {
    /// Its inode number.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Change time: seconds and nanoseconds.
    pub ctime: (i64, u32),
}

/// What a file system knows a file by that a copy of it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnFile {
    /// Its inode number.
    pub inode: u64,
    /// When it was born, in nanoseconds since 1970; `None`: nobody keeps that there.
    pub born_ns: Option<u64>,
}

impl OwnFile {
    /// Whether they may be one file: nothing that is known of both is another.
    pub fn may_be(&self, other: &Self) -> bool {
        self.inode == other.inode && self.born_ns.zip(other.born_ns).is_none_or(|(a, b)| a == b)
    }
}

/// The small durable record beside the intent map: what was confirmed, and how far the ledger was seen (DESIGN 4.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Ties header, pages and masks together.
    pub map: MapId,
    /// Rises by one with every write; the higher of two valid slots counts.
    pub seq: u64,
    /// How the last attach ended.
    pub state: HeaderState,
    /// The term under which layers were sent; `None` before the first claim.
    pub term: Option<Term>,
    /// How far the ledger was seen; `None` = nothing of it.
    pub position: Option<LedgerPosition>,
    /// Size of the volume in bytes.
    pub volume_bytes: u64,
    /// The backing file at `clean`; `None` while attached, and for block devices.
    pub backing: Option<BackingIdentity>,
    /// T14: in this boot of the kernel a flush of the backing failed: nothing that was hot may cool before the next boot.
    pub flush_failed: Option<BootId>,
    /// The file that this was made for, which is told by it from its copies. `None`: nobody looked.
    pub file: Option<OwnFile>,
    /// Regions per page, needed to find the pages.
    pub page_regions: u32,
}

impl Header {
    /// The first header of a new map.
    pub fn new(map: MapId, geometry: &Geometry, layout: &IntentLayout) -> Self {
        Self {
            map,
            seq: 1,
            state: HeaderState::Attached,
            term: None,
            position: None,
            volume_bytes: geometry.volume_bytes(),
            backing: None,
            flush_failed: None,
            file: None,
            page_regions: layout.page_regions,
        }
    }

    /// The bytes of a slot.
    pub fn encode(&self) -> Box<IntentBlock> {
        let mut block = IntentBlock::zeroed();
        let b = &mut block.0;
        b[0..8].copy_from_slice(HEADER_MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[16..32].copy_from_slice(&self.map.0);
        b[32..40].copy_from_slice(&self.seq.to_le_bytes());
        b[40] = match self.state {
            HeaderState::Attached => 1,
            HeaderState::Clean => 2,
        };
        b[44..48].copy_from_slice(&self.page_regions.to_le_bytes());
        b[48..56].copy_from_slice(&self.volume_bytes.to_le_bytes());
        if let Some(term) = self.term {
            b[41] |= 1;
            b[56..64].copy_from_slice(&term.0.to_le_bytes());
        }
        if let Some(position) = self.position {
            b[41] |= 2;
            b[64..72].copy_from_slice(&position.slot.0.to_le_bytes());
            b[72..104].copy_from_slice(&position.digest.0);
        }
        if let Some(backing) = self.backing {
            b[41] |= 4;
            b[104..112].copy_from_slice(&backing.inode.to_le_bytes());
            b[112..120].copy_from_slice(&backing.size.to_le_bytes());
            b[120..128].copy_from_slice(&backing.mtime.0.to_le_bytes());
            b[128..136].copy_from_slice(&backing.ctime.0.to_le_bytes());
            b[136..140].copy_from_slice(&backing.mtime.1.to_le_bytes());
            b[140..144].copy_from_slice(&backing.ctime.1.to_le_bytes());
        }
        if let Some(boot) = self.flush_failed {
            b[41] |= 8;
            b[144..160].copy_from_slice(&boot.0);
        }
        if let Some(file) = self.file {
            b[41] |= 16;
            b[160..168].copy_from_slice(&file.inode.to_le_bytes());
            b[168..176].copy_from_slice(&file.born_ns.unwrap_or(0).to_le_bytes());
        }
        seal(b, 12);
        block
    }
}

/// A slot's bytes that nobody has looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct UncheckedHeader<'a>(pub &'a [u8]);

impl UncheckedHeader<'_> {
    /// The header, if these bytes are one.
    ///
    /// # Errors
    /// Says what is wrong; this slot does not count.
    pub fn check(self) -> Result<Header, IntentError> {
        let b = checked(self.0, HEADER_MAGIC, 12)?;
        let state = match b[40] {
            1 => HeaderState::Attached,
            2 => HeaderState::Clean,
            _ => return Err(IntentError::Unknown("state")),
        };
        let flags = b[41];
        if flags & !31 != 0 {
            return Err(IntentError::Unknown("flag"));
        }
        let page_regions = u32_at(b, 44);
        if !(1..=PAGE_REGIONS_MAX).contains(&page_regions) {
            return Err(IntentError::Field("regions per page"));
        }
        let digest = || RecordDigest(b[72..104].try_into().expect("32 bytes"));
        let time = |s, ns| (u64_at(b, s) as i64, u32_at(b, ns));
        Ok(Header {
            map: MapId(b[16..32].try_into().expect("16 bytes")),
            seq: u64_at(b, 32),
            state,
            term: (flags & 1 != 0).then(|| Term(u64_at(b, 56))),
            position: (flags & 2 != 0).then(|| LedgerPosition { slot: Slot(u64_at(b, 64)), digest: digest() }),
            volume_bytes: u64_at(b, 48),
            backing: (flags & 4 != 0).then(|| BackingIdentity {
                inode: u64_at(b, 104),
                size: u64_at(b, 112),
                mtime: time(120, 136),
                ctime: time(128, 140),
            }),
            flush_failed: (flags & 8 != 0).then(|| BootId(b[144..160].try_into().expect("16 bytes"))),
            file: (flags & 16 != 0)
                .then(|| OwnFile { inode: u64_at(b, 160), born_ns: Some(u64_at(b, 168)).filter(|born| *born != 0) }),
            page_regions,
        })
    }
}

/// Picks the valid slot with the highest sequence; `None` = this volume has no header (T17: `Forked` if its ledger has layers).
/// The next header goes to the other slot.
///
/// # Errors
/// When a whole slot has a format version, a state or a flag that this one does not know: refuse, never treat it as torn. † The older slot may say `clean`.
pub fn recover_header(slots: [&[u8]; 2]) -> Result<Option<(Header, SlotIndex)>, IntentError> {
    let [a, b] = slots.map(|s| UncheckedHeader(s).check());
    let is_unknown = |error: &&IntentError| matches!(error, IntentError::Version(_) | IntentError::Unknown(_));
    if let Some(unknown) = [&a, &b].into_iter().find_map(|slot| slot.as_ref().err().filter(is_unknown)) {
        return Err(*unknown);
    }
    Ok(newer(a.ok(), b.ok(), |h| h.seq))
}

/// What a planned stop leaves behind: exactly what is still to be published (T2). It counts only under a `clean` header of
/// the same map whose seq is `header_seq` (+ nothing): an older file must never stand in for a newer stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    /// Of which map.
    pub map: MapId,
    /// The seq that the `clean` header, written after this, carries.
    pub header_seq: u64,
    /// What is owed.
    pub set: GranuleSet,
}

impl Owed {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let (whole, masks) = self.set.parts();
        let masks: Vec<_> = masks.collect();
        let mut out = Vec::with_capacity(64 + whole.range_count() * 16 + masks.len() * 136 + 4);
        out.extend_from_slice(OWED_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.map.0);
        out.extend_from_slice(&self.header_seq.to_le_bytes());
        out.extend_from_slice(&(whole.range_count() as u64).to_le_bytes());
        out.extend_from_slice(&(masks.len() as u64).to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        for range in whole.ranges() {
            out.extend_from_slice(&range.start.0.to_le_bytes());
            out.extend_from_slice(&range.count.to_le_bytes());
        }
        for (region, mask) in masks {
            out.extend_from_slice(&region.0.to_le_bytes());
            mask.0.iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
        }
        seal(&mut out, 12);
        out
    }
}

/// The file's bytes that nobody has looked at yet.
#[derive(Clone, Copy, Debug)]
pub struct UncheckedOwed<'a>(pub &'a [u8]);

impl UncheckedOwed<'_> {
    /// The masks, if they belong to exactly this `clean` header. Anything else means: only the intent bits count.
    ///
    /// # Errors
    /// Says why they do not count.
    pub fn check(self, header: &Header, geometry: &Geometry) -> Result<Owed, IntentError> {
        let b = self.0;
        if b.len() < 64 {
            return Err(IntentError::Length(b.len()));
        }
        let b = verified(b, OWED_MAGIC, 12)?;
        let (ranges, masks) = (u64_at(b, 40), u64_at(b, 48));
        let want = ranges.checked_mul(16).zip(masks.checked_mul(136)).and_then(|(r, m)| r.checked_add(m)?.checked_add(64));
        if want != Some(b.len() as u64) {
            return Err(IntentError::Length(b.len()));
        }
        let map = MapId(b[16..32].try_into().expect("16 bytes"));
        let header_seq = u64_at(b, 32);
        if header.state != HeaderState::Clean || map != header.map || header_seq != header.seq {
            return Err(IntentError::Foreign);
        }
        let mut set = GranuleSet::new();
        let (range_bytes, mask_bytes) = b[64..].split_at(ranges as usize * 16);
        for r in range_bytes.chunks_exact(16) {
            let (start, count) = (u64_at(r, 0), u64_at(r, 8));
            if count == 0 || start.checked_add(count).is_none_or(|end| end > geometry.region_count()) {
                return Err(IntentError::Field("region range"));
            }
            set.insert_whole(RegionRange { start: RegionIndex(start), count });
        }
        for m in mask_bytes.chunks_exact(136) {
            let region = RegionIndex(u64_at(m, 0));
            if region.0 >= geometry.region_count() {
                return Err(IntentError::Field("region of a mask"));
            }
            let mask = GranuleMask(std::array::from_fn(|i| u64_at(m, 8 + 8 * i)));
            if mask.next_run(geometry.region_run(region).count as usize).is_some() {
                return Err(IntentError::Field("granules beyond the region"));
            }
            set.insert_mask(region, &mask);
        }
        Ok(Owed { map, header_seq, set })
    }
}

fn newer<T>(a: Option<T>, b: Option<T>, seq: impl Fn(&T) -> u64) -> Option<(T, SlotIndex)> {
    match (a, b) {
        (Some(a), Some(b)) if seq(&b) > seq(&a) => Some((b, SlotIndex::B)),
        (Some(a), _) => Some((a, SlotIndex::A)),
        (None, b) => b.map(|b| (b, SlotIndex::B)),
    }
}

/// CRC32C over everything but itself, with its own four bytes as zero.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&bytes[..at]), &[0; 4]), &bytes[at + 4..])
}

fn seal(bytes: &mut [u8], at: usize) {
    let crc = checksum(bytes, at);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn checked<'a>(bytes: &'a [u8], magic: &[u8; 8], at: usize) -> Result<&'a [u8], IntentError> {
    if bytes.len() != INTENT_BLOCK_BYTES {
        return Err(IntentError::Length(bytes.len()));
    }
    verified(bytes, magic, at)
}

fn verified<'a>(bytes: &'a [u8], magic: &[u8; 8], at: usize) -> Result<&'a [u8], IntentError> {
    if bytes[..8] != *magic {
        return Err(IntentError::Magic);
    }
    if u32_at(bytes, at) != checksum(bytes, at) {
        return Err(IntentError::Checksum);
    }
    match u32_at(bytes, 8) {
        VERSION => Ok(bytes),
        other => Err(IntentError::Version(other)),
    }
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{GranuleIndex, GranuleRun};

    const MAP: MapId = MapId([0xa5; 16]);

    fn geometry() -> Geometry {
        Geometry::with_shape(100 * 64, 6, 4).expect("valid") // 100 granules, 7 regions, the last one short
    }

    fn layout() -> IntentLayout {
        IntentLayout::with_page_regions(&geometry(), 3)
    }

    fn page(seq: u64, bits: &[u32]) -> Page {
        let mut set = PageBits::clear();
        bits.iter().for_each(|&i| set.set(i, true));
        Page { map: MAP, index: PageIndex(1), seq, bits: set }
    }

    fn header() -> Header {
        Header {
            map: MAP,
            seq: 9,
            state: HeaderState::Clean,
            term: Some(Term(3)),
            position: Some(LedgerPosition { slot: Slot(7), digest: RecordDigest([0xd1; 32]) }),
            volume_bytes: 6400,
            backing: Some(BackingIdentity { inode: 11, size: 6400, mtime: (-2, 5), ctime: (1 << 33, 6) }),
            flush_failed: Some(BootId([0xb0; 16])),
            file: Some(OwnFile { inode: 0xf1, born_ns: Some(0xf2) }),
            page_regions: 3,
        }
    }

    fn owed() -> Owed {
        let mut set = GranuleSet::new();
        set.insert_whole(RegionRange { start: RegionIndex(1), count: 2 });
        set.insert_run(&geometry(), GranuleRun { start: GranuleIndex(64), count: 3 });
        Owed { map: MAP, header_seq: 9, set }
    }

    /// The bytes that are not zero, as `offset: hex` lines, so that a golden structure fits a screen.
    fn dump(bytes: &[u8]) -> String {
        let mut out = String::new();
        for (i, line) in bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|b| *b != 0)) {
            out += &format!("{:04x}: ", i * 16);
            line.iter().for_each(|b| out += &format!("{b:02x}"));
            out += "\n";
        }
        out
    }

    #[test]
    fn golden_page() {
        assert_eq!(
            dump(&page(0x0102, &[0, 2]).encode(&layout()).0),
            concat!(
                "0000: 464152537061676501000000519202ee\n",
                "0010: a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5\n",
                "0020: 01000000000000000201000000000000\n",
                "0030: 03000000000000000000000000000000\n",
                "0040: 05000000000000000000000000000000\n",
            )
        );
    }

    #[test]
    fn golden_header() {
        assert_eq!(
            dump(&header().encode().0),
            concat!(
                "0000: 464152536865616401000000a7c37491\n",
                "0010: a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5\n",
                "0020: 0900000000000000021f000003000000\n",
                "0030: 00190000000000000300000000000000\n",
                "0040: 0700000000000000d1d1d1d1d1d1d1d1\n",
                "0050: d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1\n",
                "0060: d1d1d1d1d1d1d1d10b00000000000000\n",
                "0070: 0019000000000000feffffffffffffff\n",
                "0080: 00000000020000000500000006000000\n",
                "0090: b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0\n",
                "00a0: f100000000000000f200000000000000\n",
            )
        );
    }

    #[test]
    fn golden_owed() {
        assert_eq!(
            dump(&owed().encode()),
            concat!(
                "0000: 464152536f77656401000000195dc3dd\n",
                "0010: a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5\n",
                "0020: 09000000000000000100000000000000\n",
                "0030: 01000000000000000000000000000000\n",
                "0040: 01000000000000000200000000000000\n",
                "0050: 04000000000000000700000000000000\n",
            )
        );
    }

    #[test]
    fn the_layout_of_a_real_volume() {
        let layout = IntentLayout::new(&Geometry::new(10 << 40).expect("valid"));
        assert_eq!((PAGE_REGIONS_MAX, layout.page_count(), layout.file_bytes()), (32_256, 82, 166 * 4096));
        assert_eq!(layout.place(RegionIndex(32_256)), (PageIndex(1), 0));
        assert_eq!(layout.page_run(PageIndex(81)).count, 2_621_440 - 81 * 32_256);
        assert_eq!(IntentLayout::header_offset(SlotIndex::B).0, 4096);
        assert_eq!(layout.page_offset(PageIndex(3), SlotIndex::B).0, 9 * 4096);
    }

    #[test]
    fn the_newest_whole_slot_counts_and_two_bad_ones_are_all_dirty() {
        let (old, new) = (page(4, &[0]).encode(&layout()), page(5, &[1]).encode(&layout()));
        let recover = |a: &IntentBlock, b: &IntentBlock| recover_page(MAP, &layout(), PageIndex(1), [&a.0, &b.0]);
        assert_eq!(recover(&old, &new), RecoveredPage { page: page(5, &[1]), newest: Some(SlotIndex::B) });
        assert_eq!(recover(&new, &old), RecoveredPage { page: page(5, &[1]), newest: Some(SlotIndex::A) });
        let mut torn = new.clone();
        torn.0[2048..].fill(0xff);
        assert_eq!(recover(&torn, &old), RecoveredPage { page: page(4, &[0]), newest: Some(SlotIndex::B) });
        assert_eq!(recover(&torn, &IntentBlock::zeroed()), RecoveredPage { page: page(0, &[0, 1, 2]), newest: None });
        // Another map's page, or another page of this map, is as good as none.
        let other = Page { map: MapId([1; 16]), ..page(9, &[]) }.encode(&layout());
        let misplaced = Page { index: PageIndex(0), ..page(9, &[]) }.encode(&layout());
        assert_eq!(recover(&other, &misplaced).newest, None);
    }

    #[test]
    fn two_bad_headers_are_none_and_a_newer_format_is_refused() {
        let h = header().encode();
        let older = Header { seq: 8, ..header() }.encode();
        assert_eq!(recover_header([&older.0, &h.0]), Ok(Some((header(), SlotIndex::B))));
        assert_eq!(recover_header([&h.0, &[0; 4096]]), Ok(Some((header(), SlotIndex::A))));
        assert_eq!(recover_header([&[0; 4096], &[0; 4096]]), Ok(None));
        let mut newer = h.clone();
        newer.0[8] = 2;
        seal(&mut newer.0, 12);
        assert_eq!(recover_header([&newer.0, &older.0]), Err(IntentError::Version(2)));
        for (at, byte, what) in [(41, 32, "flag"), (41, 255, "flag"), (40, 3, "state"), (40, 0, "state")] {
            let mut newer = Header { seq: 9, ..header() }.encode();
            newer.0[at] = byte;
            assert_eq!(UncheckedHeader(&newer.0).check(), Err(IntentError::Checksum), "torn");
            seal(&mut newer.0, 12);
            for slots in [[&newer.0[..], &older.0], [&older.0, &newer.0[..]]] {
                assert_eq!(recover_header(slots), Err(IntentError::Unknown(what)), "the older one may be `clean`");
            }
        }
        newer.0[9] = 1; // torn as well: does not count, and refuses nothing
        assert_eq!(recover_header([&newer.0, &older.0]).map(|h| h.map(|h| h.0.seq)), Ok(Some(8)));
    }

    #[test]
    fn masks_count_only_under_their_own_clean_header() {
        let bytes = owed().encode();
        assert_eq!(UncheckedOwed(&bytes).check(&header(), &geometry()), Ok(owed()));
        for foreign in [
            Header { seq: 10, ..header() },
            Header { map: MapId([1; 16]), ..header() },
            Header { state: HeaderState::Attached, ..header() },
        ] {
            assert_eq!(UncheckedOwed(&bytes).check(&foreign, &geometry()), Err(IntentError::Foreign));
        }
        // Whole and ours, but of a larger volume.
        let small = Geometry::with_shape(64 * 16, 6, 4).expect("valid");
        assert!(matches!(UncheckedOwed(&bytes).check(&header(), &small), Err(IntentError::Field(_))));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(at in 0usize..4096, bit in 0u8..8) {
            let flip = |mut b: Box<IntentBlock>| { b.0[at] ^= 1 << bit; b };
            let bad = flip(page(5, &[1]).encode(&layout()));
            prop_assert!(UncheckedPage(&bad.0).check(MAP, &layout(), PageIndex(1)).is_err());
            prop_assert!(UncheckedHeader(&flip(header().encode()).0).check().is_err());
            let mut bytes = owed().encode();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(UncheckedOwed(&bytes).check(&header(), &geometry()).is_err());
        }

        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..700), magic in 0usize..3, sealed in any::<bool>()) {
            for (i, m) in [PAGE_MAGIC, HEADER_MAGIC, OWED_MAGIC][magic].iter().enumerate() {
                if let Some(b) = bytes.get_mut(i) { *b = *m; }
            }
            if magic < 2 { bytes.resize(4096, 0x5a); }
            if sealed && bytes.len() >= 16 {
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
                seal(&mut bytes, 12);
            }
            let _ = UncheckedPage(&bytes).check(MAP, &layout(), PageIndex(1));
            let _ = UncheckedHeader(&bytes).check();
            let _ = UncheckedOwed(&bytes).check(&header(), &geometry());
        }

        #[test]
        fn masks_come_back(runs in prop::collection::vec((0u64..100, 1u64..40), 0..8)) {
            let mut set = GranuleSet::new();
            runs.into_iter().for_each(|(s, n)| set.insert_run(&geometry(), GranuleRun { start: GranuleIndex(s), count: n.min(100 - s) }));
            let owed = Owed { map: MAP, header_seq: 9, set };
            prop_assert_eq!(UncheckedOwed(&owed.encode()).check(&header(), &geometry()), Ok(owed));
        }
    }
}
