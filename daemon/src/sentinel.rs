//! Blocks of a backing device that nobody can use it without changing: superblocks, labels, partition tables. They tell whether
//! it was used while nobody served it: booted without us, mounted or checked by a rescue system.
//!
//! Two things are kept of them, in the volume's folder:
//!
//! | Kept | When | Held against the device |
//! |---|---|---|
//! | a digest of all of them | at a clean stop, after the last write | at a start that finds `clean`: nobody may have changed a byte |
//! | what only a mount, an unmount or a check changes ([`marks`]) | whenever the host has changed it through the tap | at every other start |
//!
//! After a power cut a digest is worth nothing: the host itself writes these blocks. But it does not mount by itself: between
//! the power cut and our start nothing may have mounted the file system, checked it, or replayed its journal. A host that mounts
//! and loses its power before that is kept (a moment) costs a comparison.
//!
//! It cannot see who writes elsewhere and leaves these blocks as they are; a file system that it does not know is told by the
//! digest alone. A file is told by its times (T2).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use data_encoding::HEXLOWER;
use farside_blockio::{Buffer, DeviceKind, FileDevice};
use farside_region::{ByteOffset, Geometry, GranuleIndex, VolumeId};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::backing::Unread;
use crate::channel::{Receiver, Sender, channel};
use crate::config::{ConfigError, write_atomically};
use crate::locked;

const BLOCK: u64 = Geometry::GRANULE_BYTES;
const FILE: &str = "sentinels.json";
/// In the place of a block that cannot be read.
const UNREADABLE: &[u8] = b"unreadable";
/// Of btrfs.
const BTRFS: u64 = 64 << 10;
/// In which tables count, where the disk has no larger blocks.
const SECTOR: u64 = 512;
/// Of a GPT, partitions that are looked at.
const PARTITIONS_MAX: u64 = 32;
/// Of an MBR, or a table of its chain.
const ENTRIES: usize = 4;
/// Kinds of partitions that are chains of tables.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Of an MBR, partitions and tables that are looked at.
const CHAINED_MAX: usize = 2 * PARTITIONS_MAX as usize;
/// How blocks are looked for. 0 knew no blocks but of 512 bytes, no logical partitions, and none that does not begin at a block. † What
/// was kept by earlier rules is held against what those find now: a block more would be taken for a use of the disk.
const RULES: u32 = 1;

/// What was found at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sentinels {
    /// Of every block, at a clean stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// By where the file system begins.
    marks: BTreeMap<u64, String>,
    /// Before the host changed them last: what it wrote then may not have become durable.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<BTreeMap<u64, String>>,
    #[serde(default)]
    rules: u32,
    /// Every block that was looked at could be read.
    #[serde(default)]
    is_whole: bool,
    /// Where a file system begins, or may begin.
    #[serde(skip)]
    starts: Vec<u64>,
}

impl Sentinels {
    /// What is found on a device; `None`: a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn look(device: &FileDevice, key: &[u8; 32]) -> std::io::Result<Option<Self>> {
        Self::look_by(RULES, device, u64::MAX, key)
    }

    /// What a start finds in the place of this, which was kept when the device was so long.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn look_again(&self, device: &FileDevice, bytes: u64, key: &[u8; 32]) -> std::io::Result<Option<Self>> {
        Self::look_by(self.rules.min(RULES), device, bytes, key)
    }

    fn look_by(rules: u32, device: &FileDevice, bytes: u64, key: &[u8; 32]) -> std::io::Result<Option<Self>> {
        if device.kind() != DeviceKind::Block {
            return Ok(None);
        }
        let disk = Disk { bytes: bytes.min(device.size()), unit: device.block_min().into(), rules };
        look(disk, key, &mut |at| {
            let mut block = Buffer::alone(BLOCK as usize)?;
            // A dead sector stays one, and is no reason to trust less of the rest.
            let read = device.read_exact_at(ByteOffset(at), &mut block);
            Ok(read.map_or_else(|_| UNREADABLE.to_vec(), |()| block.to_vec()))
        })
        .map(Some)
    }

    /// What was kept; `None`: nothing.
    ///
    /// # Errors
    /// [`Unread`]: something is there.
    pub(crate) fn kept(dir: &Path) -> Result<Option<Self>, Unread> {
        crate::backing::read_kept(&dir.join(FILE))
    }

    /// Keeps it, durably; the digest only if nobody writes any more.
    ///
    /// # Errors
    /// When it is not durable.
    pub(crate) fn keep(&self, dir: &Path, at_rest: bool) -> Result<(), ConfigError> {
        let kept = Self { digest: self.digest.clone().filter(|_| at_rest), ..self.clone() };
        write_atomically(&dir.join(FILE), &serde_json::to_string(&kept).expect("strings are JSON"))
    }

    /// As [`Sentinels::keep`]. Where nothing was found, or it cannot be kept, what was kept before is taken away.
    ///
    /// # Errors
    /// When that is there still.
    pub(crate) fn keep_or_forget(found: Option<&Self>, dir: &Path, at_rest: bool) -> std::io::Result<()> {
        match found.map(|found| found.keep(dir, at_rest)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) => warn!(dir = %dir.display(), %error, "superblocks cannot be kept"),
            None => {}
        }
        match std::fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a dead sector cannot pass for what somebody did.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// What somebody did who is not us, since `kept` was kept.
    pub(crate) fn differ(&self, kept: &Self, was_clean: bool) -> Option<&'static str> {
        let as_before = !was_clean && kept.before.as_ref() == Some(&self.marks);
        if self.marks != kept.marks && !as_before {
            return Some("a file system on it was mounted, unmounted or checked while nobody served it");
        }
        let changed = was_clean && kept.digest.is_some() && self.digest != kept.digest;
        changed.then_some("a superblock, label or partition table on it changed while nobody served it")
    }
}

/// What is looked at.
#[derive(Clone, Copy, Debug)]
struct Disk {
    bytes: u64,
    /// Of its logical blocks, in which its tables count.
    unit: u64,
    /// By which of [`RULES`].
    rules: u32,
}

impl Disk {
    /// In what a table may count: also as a machine sees it to which the disk is shown with small blocks.
    fn units(self) -> impl Iterator<Item = u64> {
        let own = (self.rules > 0 && self.unit != SECTOR).then_some(self.unit);
        own.into_iter().chain([SECTOR])
    }
}

fn look(disk: Disk, key: &[u8; 32], read: &mut dyn FnMut(u64) -> std::io::Result<Vec<u8>>) -> std::io::Result<Sentinels> {
    let mut blocks = BTreeMap::new();
    let mut block = |at: u64| -> std::io::Result<Vec<u8>> {
        if at.saturating_add(BLOCK) > disk.bytes {
            return Ok(Vec::new());
        }
        if let Some(known) = blocks.get(&at) {
            return Ok(Vec::clone(known));
        }
        let found = read(at)?;
        blocks.insert(at, found.clone());
        Ok(found)
    };
    let mut marks = BTreeMap::new();
    block(0)?;
    block(BLOCK)?; // of GPT or LVM
    block((disk.bytes / BLOCK).saturating_sub(1) * BLOCK)?; // GPT's second header
    let mut starts = vec![0];
    for unit in disk.units() {
        starts.extend(partitions(unit, disk.rules, &mut |at| span(at, &mut block))?);
    }
    starts.retain(|start| disk.rules > 0 || start.is_multiple_of(BLOCK));
    for &start in &starts {
        let first = span(start, &mut block)?;
        span(start.saturating_add(BTRFS), &mut block)?;
        marks.extend(self::marks(&first).map(|text| (start, text)));
    }
    let mut all = Vec::new();
    for (at, content) in &blocks {
        all.extend_from_slice(&farside_layer::granule_digest(key, GranuleIndex(at / BLOCK), content).0);
    }
    let digest = farside_layer::granule_digest(key, GranuleIndex(0), &all);
    let is_whole = blocks.values().all(|block| block != UNREADABLE);
    Ok(Sentinels { digest: Some(HEXLOWER.encode(&digest.0)), marks, before: None, rules: disk.rules, is_whole, starts })
}

/// A block's worth of bytes from anywhere on, of the two blocks that it lies in; less at the end, nothing beyond it or where the first
/// cannot be read.
fn span(at: u64, block: &mut dyn FnMut(u64) -> std::io::Result<Vec<u8>>) -> std::io::Result<Vec<u8>> {
    let within = at % BLOCK;
    let mut bytes = block(at - within)?;
    if within > 0 {
        let next = block((at - within).saturating_add(BLOCK))?;
        if bytes.len() as u64 != BLOCK {
            return Ok(Vec::new());
        }
        bytes.drain(..within as usize);
        bytes.extend(next.into_iter().take(within as usize));
    }
    Ok(bytes)
}

/// Where partitions begin, and the tables behind the first block: of a GPT, or of an MBR with its logical partitions, that counts in
/// blocks of so many bytes.
fn partitions(unit: u64, rules: u32, read: &mut dyn FnMut(u64) -> std::io::Result<Vec<u8>>) -> std::io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    let table = read(0)?;
    if !is_table(&table) {
        return Ok(starts);
    }
    let header = read(unit)?;
    if header.get(..8) == Some(b"EFI PART") {
        if unit >= BLOCK {
            starts.push(unit);
        }
        let (first, each) = (long(&header, 72).unwrap_or(2), u64::from(word(&header, 84).unwrap_or(128)).clamp(128, BLOCK));
        for number in 0..PARTITIONS_MAX {
            let Some(at) = first.checked_mul(unit).and_then(|at| at.checked_add(number * each)) else { break };
            let entries = read(at / BLOCK * BLOCK)?;
            starts
                .extend(long(&entries, (at % BLOCK) as usize + 32).filter(|lba| *lba > 0).and_then(|lba| lba.checked_mul(unit)));
        }
        return Ok(starts);
    }
    let mut chains = Vec::new();
    for (kind, lba) in entries(&table) {
        starts.push(lba * unit);
        chains.extend((rules > 0 && EXTENDED.contains(&kind)).then_some(lba));
    }
    for chain in chains {
        // As the kernel follows it: each table names partitions behind itself, and by the chain's begin the next one. Where that is
        // none it ends. One that bites its tail ends with the room for it.
        let mut at = Some(chain);
        while let Some(here) = at.take_if(|_| starts.len() + ENTRIES < CHAINED_MAX) {
            let table = read(here * unit)?;
            if !is_table(&table) {
                break;
            }
            starts.push(here * unit);
            for (kind, lba) in entries(&table) {
                match EXTENDED.contains(&kind) {
                    true => at = at.or(Some(chain + lba)),
                    false => starts.push((here + lba) * unit),
                }
            }
        }
    }
    Ok(starts)
}

fn is_table(block: &[u8]) -> bool {
    block.get(510..512) == Some(&[0x55, 0xaa])
}

/// Of an MBR, or a table of its chain: the kind of each partition and where it begins.
fn entries(table: &[u8]) -> impl Iterator<Item = (u8, u64)> {
    (0..ENTRIES).filter_map(|number| {
        let at = 446 + 16 * number;
        Some((*table.get(at + 4)?, u64::from(word(table, at + 8).filter(|lba| *lba > 0)?)))
    })
}

/// Of the first block of a file system: what a mount, an unmount, a check or the replay of its journal changes, and nothing else
/// does while it is mounted.
fn marks(block: &[u8]) -> Option<String> {
    if block.get(1024 + 56..1024 + 58) == Some(&[0x53, 0xef]) {
        let at = |field: usize| word(block, 1024 + field);
        let half = |field: usize| at(field).map(|word| word & 0xffff);
        let uuid = block.get(1024 + 104..1024 + 120)?;
        // Times of last mount and check, mounts, state, and whether the journal must be replayed.
        let (mounted, checked, mounts, state, replay) = (at(44)?, at(64)?, half(52)?, half(58)?, at(96)? & 4);
        return Some(format!("ext {} {mounted} {checked} {mounts} {state} {replay}", HEXLOWER.encode(uuid)));
    }
    if block.get(..4) == Some(b"XFSB") {
        // Counts of inodes and free blocks and, of version 5, the log position of its last write: written at unmount.
        let (uuid, counts, lsn) = (block.get(32..48)?, block.get(128..152)?, block.get(240..248)?);
        return Some(format!("xfs {} {} {}", HEXLOWER.encode(uuid), HEXLOWER.encode(counts), HEXLOWER.encode(lsn)));
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// Whether the host has written where a file system begins, and the marks of that are not kept yet: then a successor that finds other ones cannot tell
/// that from a use of the disk by somebody else.
///
/// A note in the runtime directory, which outlives the process and not the boot: how many such writes began, and how many had ended when marks were
/// looked at that are kept. Invariant: one that the kernel may have got is counted as begun.
#[derive(Debug)]
pub(crate) struct MarksNote {
    file: File,
    counts: Mutex<MarkCounts>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct MarkCounts {
    begun: u64,
    ended: u64,
    settled: u64,
}

impl MarksNote {
    fn path(runtime_dir: &Path, volume: VolumeId) -> PathBuf {
        runtime_dir.join(format!("marks-{volume}"))
    }

    /// Whether every mark that the host changed in this boot is kept, as a predecessor left it. False where nobody knows.
    pub(crate) fn is_settled(runtime_dir: &Path, volume: VolumeId) -> bool {
        let words = std::fs::read(Self::path(runtime_dir, volume)).unwrap_or_default();
        matches!(words.as_chunks::<8>(), ([begun, settled], []) if begun == settled)
    }

    /// Begins anew. `is_kept`: what is on the device now.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(crate) fn begin(runtime_dir: &Path, volume: VolumeId, is_kept: bool) -> std::io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(Self::path(runtime_dir, volume))?;
        let counts = MarkCounts { begun: u64::from(!is_kept), ..MarkCounts::default() };
        file.write_all_at(&counts.words(), 0)?;
        Ok(Self { file, counts: Mutex::new(counts) })
    }

    /// Its volume leaves.
    pub(crate) fn remove(runtime_dir: &Path, volume: VolumeId) {
        let _ = std::fs::remove_file(Self::path(runtime_dir, volume)); // one that stays is of a volume that is not there
    }

    fn write_begins(&self) {
        self.change(|counts| counts.begun += 1);
    }

    fn write_ended(&self) {
        locked(&self.counts).ended += 1;
    }

    fn ended(&self) -> u64 {
        locked(&self.counts).ended
    }

    /// So many had ended when somebody looked, and what was found is kept.
    fn kept(&self, ended: u64) {
        self.change(|counts| counts.settled = counts.settled.max(ended));
    }

    fn change(&self, change: impl FnOnce(&mut MarkCounts)) {
        let mut counts = locked(&self.counts);
        change(&mut counts);
        // A place in memory, written before: on the queue's own thread, and only where a file system begins.
        if let Err(error) = self.file.write_all_at(&counts.words(), 0) {
            warn!(%error, "that a superblock is written cannot be noted: a successor may take it for somebody else's");
        }
    }
}

impl MarkCounts {
    fn words(self) -> [u8; 16] {
        let mut words = [0; 16];
        words[..8].copy_from_slice(&self.begun.to_le_bytes());
        words[8..].copy_from_slice(&self.settled.to_le_bytes());
        words
    }
}

/// Keeps the marks as the host changes them, on a thread of its own: the device may be slow.
#[derive(Debug)]
pub(crate) struct Guard {
    bell: Bell,
    thread: JoinHandle<()>,
}

/// For the queue: tells when the host wrote where a file system begins.
#[derive(Clone, Debug)]
pub(crate) struct Bell {
    starts: Arc<Starts>,
    note: Arc<MarksNote>,
    written: Sender<()>,
}

/// Where file systems begin, or may: also in partitions that are made while the volume is served.
#[derive(Debug)]
struct Starts([AtomicU64; STARTS_MAX]);

/// The disk's begin; and by each of two units a GPT's header and partitions, or what an MBR leads to.
const STARTS_MAX: usize = 1 + 2 * CHAINED_MAX;

impl Starts {
    const NONE: u64 = u64::MAX;

    fn new(starts: &[u64]) -> Self {
        let new = Self(std::array::from_fn(|_| AtomicU64::new(Self::NONE)));
        new.set(starts);
        new
    }

    fn set(&self, starts: &[u64]) {
        let starts = starts.iter().copied().chain(std::iter::repeat(Self::NONE));
        self.0.iter().zip(starts).for_each(|(place, start)| place.store(start, Ordering::Relaxed));
    }

    fn meets(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.saturating_add(bytes);
        let mut starts = self.0.iter().map(|start| start.load(Ordering::Relaxed)).take_while(|start| *start != Self::NONE);
        starts.any(|start| start < end && offset < start.saturating_add(BLOCK))
    }
}

impl Bell {
    /// Whether a write there may have changed marks.
    pub(crate) fn is_for(&self, offset: u64, bytes: u64) -> bool {
        self.starts.meets(offset, bytes)
    }

    /// Such a write begins: before the kernel gets it.
    pub(crate) fn write_begins(&self) {
        self.note.write_begins();
    }

    /// It has ended.
    pub(crate) fn ring(&self) {
        self.note.write_ended();
        let _ = self.written.send_if_empty(()); // it is going to look
    }
}

impl Guard {
    /// From what is on the device, which is kept by now.
    ///
    /// # Errors
    /// When there is no thread.
    pub(crate) fn start(
        device: &FileDevice,
        dir: &Path,
        key: [u8; 32],
        kept: Sentinels,
        note: MarksNote,
        name: &str,
    ) -> std::io::Result<Self> {
        let (written, writes) = channel();
        let note = Arc::new(note);
        let kept_note = note.clone();
        let starts = Arc::new(Starts::new(&kept.starts));
        let (device, dir, volume, of_bell) = (device.clone(), dir.to_owned(), name.to_owned(), starts.clone());
        let mut look = move || {
            let found = Sentinels::look(&device, &key)?;
            found.iter().for_each(|found| of_bell.set(&found.starts));
            Ok(found)
        };
        let watch = move || keep_up(&writes, kept, &kept_note, &volume, &dir, &mut look);
        let thread = std::thread::Builder::new().name(format!("marks-{}", name.get(..8).unwrap_or(name))).spawn(watch)?;
        Ok(Self { bell: Bell { starts, note, written }, thread })
    }

    /// For the queue.
    pub(crate) fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Ends the thread, once the queue has ended. Waits for the device.
    pub(crate) fn end(self) {
        drop(self.bell);
        let _ = self.thread.join();
    }
}

/// Until nobody writes any more.
fn keep_up(
    writes: &Receiver<()>,
    mut kept: Sentinels,
    note: &MarksNote,
    volume: &str,
    dir: &Path,
    look: &mut dyn FnMut() -> std::io::Result<Option<Sentinels>>,
) {
    while writes.recv().is_ok() {
        let ended = note.ended();
        match look() {
            Ok(Some(found)) if found.marks != kept.marks => {
                let found = Sentinels { before: Some(kept.marks.clone()), ..found };
                match found.keep(dir, false) {
                    Ok(()) => {
                        info!(%volume, "a file system on it was mounted, unmounted or checked by the host");
                        kept = found;
                        note.kept(ended);
                    }
                    Err(error) => {
                        warn!(%volume, %error, "what a mount changed cannot be kept: the next start may compare everything");
                    }
                }
            }
            Ok(_) => note.kept(ended),
            Err(error) => warn!(%volume, %error, "superblocks cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Nothing;

    const KEY: [u8; 32] = [7; 32];

    fn ext(mounts: u16, replay: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        block[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        block[1024 + 52..1024 + 54].copy_from_slice(&mounts.to_le_bytes());
        block[1024 + 96..1024 + 100].copy_from_slice(&replay.to_le_bytes());
        block
    }

    fn found(disk: &[u8]) -> Sentinels {
        found_by(disk, SECTOR, RULES)
    }

    fn found_by(disk: &[u8], unit: u64, rules: u32) -> Sentinels {
        let shape = Disk { bytes: disk.len() as u64, unit, rules };
        look(shape, &KEY, &mut |at| Ok(disk[at as usize..][..BLOCK as usize].to_vec())).expect("it can be read")
    }

    /// A table, or one of a chain, with partitions of a kind from a block on.
    fn lay_table(at: &mut [u8], partitions: &[(u8, u32)]) {
        at[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (number, (kind, lba)) in partitions.iter().enumerate() {
            at[446 + 16 * number + 4] = *kind;
            at[446 + 16 * number + 8..][..4].copy_from_slice(&lba.to_le_bytes());
        }
    }

    #[test]
    fn what_a_mount_changes_is_told_from_what_the_host_writes_all_the_time() {
        let mut disk = vec![0; 1 << 20];
        disk[..4096].copy_from_slice(&ext(3, 4));
        let kept = found(&disk);
        assert_eq!(found(&disk).differ(&kept, true), None);
        disk[1024 + 48] ^= 1; // when it was written last
        assert_eq!(found(&disk).differ(&kept, false), None, "after a crash that is the host's own");
        assert!(found(&disk).differ(&kept, true).is_some(), "after a clean stop it is nobody's");
        for other in [ext(4, 4), ext(3, 0)] {
            disk[..4096].copy_from_slice(&other);
            assert!(found(&disk).differ(&kept, false).is_some(), "mounted; or its journal was replayed");
        }
        disk[..4096].fill(0);
        assert!(found(&disk).differ(&kept, false).is_some(), "there is no file system any more");
        // The host mounted, and the power went before that was durable.
        disk[..4096].copy_from_slice(&ext(3, 4));
        let before = Some(found(&disk).marks);
        disk[..4096].copy_from_slice(&ext(4, 4));
        let kept = Sentinels { before, ..found(&disk) };
        disk[..4096].copy_from_slice(&ext(3, 4));
        assert_eq!(found(&disk).differ(&kept, false), None);
        assert!(found(&disk).differ(&kept, true).is_some(), "after a clean stop all was durable");
    }

    #[test]
    fn file_systems_in_partitions_are_found_and_lies_in_tables_harm_nobody() {
        let mut disk = vec![0; 4 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
        disk[446 + 24..446 + 28].copy_from_slice(&u32::MAX.to_le_bytes()); // beyond the end
        disk[1 << 20..][..4096].copy_from_slice(&ext(3, 4));
        assert_eq!(found(&disk).marks.keys().collect::<Vec<_>>(), [&(1 << 20)]);
        // A write to the superblock there is heard of, also when the partition was made after the volume was first served.
        let starts = Starts::new(&found(&vec![0; 4 << 20]).starts);
        assert!(starts.meets(510, 2) && !starts.meets(1 << 20, 4096));
        starts.set(&found(&disk).starts);
        assert!(starts.meets((1 << 20) + 4095, 1) && !starts.meets((1 << 20) + 4096, 4096) && starts.meets(0, u64::MAX));
        // The same, by a GPT.
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        disk[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        disk[1024 + 128 + 32..1024 + 128 + 40].copy_from_slice(&2048u64.to_le_bytes());
        let kept = found(&disk);
        assert_eq!(kept.marks.keys().collect::<Vec<_>>(), [&(1 << 20)]);
        disk[1 << 20..][..4096].copy_from_slice(&ext(4, 4));
        assert!(found(&disk).differ(&kept, false).is_some());
        for (at, lie) in [(512 + 72, u64::MAX), (1024 + 32, u64::MAX), (512 + 84, 0)] {
            let mut liar = disk.clone();
            liar[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            found(&liar);
        }
        found(&[0; 4096]);
        found(&[]);
    }

    fn places(found: &Sentinels) -> Vec<u64> {
        found.marks.keys().copied().collect()
    }

    #[test]
    fn partitions_of_a_disk_with_large_blocks_are_found() {
        let mut disk = vec![0; 4 << 20];
        lay_table(&mut disk, &[(0xee, 1)]);
        let header = BLOCK as usize;
        assert!(
            Starts::new(&found_by(&disk, BLOCK, RULES).starts).meets(BLOCK, 512),
            "the header is heard of when it is written"
        );
        disk[header..header + 8].copy_from_slice(b"EFI PART");
        disk[header + 72..header + 80].copy_from_slice(&2u64.to_le_bytes());
        disk[header + 84..header + 88].copy_from_slice(&128u32.to_le_bytes());
        disk[2 * header + 32..2 * header + 40].copy_from_slice(&256u64.to_le_bytes());
        disk[1 << 20..][..4096].copy_from_slice(&ext(3, 4));
        let kept = found_by(&disk, BLOCK, RULES);
        assert_eq!(places(&kept), [1 << 20]);
        assert!(Starts::new(&kept.starts).meets(BLOCK, 512), "a partition more is heard of");
        disk[1 << 20..][..4096].copy_from_slice(&ext(4, 4));
        assert!(found_by(&disk, BLOCK, RULES).differ(&kept, false).is_some());
        // An MBR, in blocks of either size: a machine may see the disk in small ones.
        let mut disk = vec![0; 4 << 20];
        lay_table(&mut disk, &[(0x83, 256), (0x83, 4096)]);
        disk[1 << 20..][..4096].copy_from_slice(&ext(3, 4));
        disk[2 << 20..][..4096].copy_from_slice(&ext(3, 4));
        assert_eq!(places(&found_by(&disk, BLOCK, RULES)), [1 << 20, 2 << 20]);
    }

    #[test]
    fn logical_partitions_and_those_that_begin_anywhere_are_found() {
        let mut disk = vec![0; 4 << 20];
        lay_table(&mut disk, &[(0x83, 63), (0x05, 2048)]);
        disk[63 * 512..][..4096].copy_from_slice(&ext(3, 4));
        lay_table(&mut disk[2048 * 512..], &[(0x83, 63), (0x05, 1001)]);
        disk[(2048 + 63) * 512..][..4096].copy_from_slice(&ext(3, 4));
        lay_table(&mut disk[(2048 + 1001) * 512..], &[(0x83, 2)]);
        disk[(2048 + 1001 + 2) * 512..][..4096].copy_from_slice(&ext(3, 4));
        let kept = found(&disk);
        let places = places(&kept);
        assert_eq!(places, [63 * 512, (2048 + 63) * 512, (2048 + 1001 + 2) * 512]);
        let starts = Starts::new(&kept.starts);
        for place in places.iter().copied().chain([(2048 + 1001) * 512]) {
            assert!(starts.meets(place, 512), "a superblock, or a table that a partition is added to");
        }
        for place in places {
            let mut mounted = disk.clone();
            mounted[place as usize..][..4096].copy_from_slice(&ext(4, 4));
            assert!(found(&mounted).differ(&kept, false).is_some(), "{place}");
        }
        // A chain that bites its tail, one that leaves the disk, and a partition that ends with it.
        for next in [1001, u32::MAX] {
            let mut liar = disk.clone();
            lay_table(&mut liar[(2048 + 1001) * 512..], &[(0x83, 2), (0x0f, next)]);
            let found = found(&liar);
            assert!(found.marks == kept.marks && found.starts.len() < STARTS_MAX);
        }
        lay_table(&mut disk, &[(0x83, (4 << 20) / 512 - 3)]);
        disk[(4 << 20) - 3 * 512..].copy_from_slice(&ext(3, 4)[..3 * 512]);
        assert!(found(&disk).marks.contains_key(&((4 << 20) - 3 * 512)));
    }

    /// † An upgrade takes no volume for used, and no use of it for its own doing.
    #[test]
    fn what_an_earlier_version_kept_is_held_against_what_that_one_would_find() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut disk = vec![0; 4 << 20];
        lay_table(&mut disk, &[(0x83, 1024), (0x83, 2047), (0x05, 4096)]);
        lay_table(&mut disk[2 << 20..], &[(0x83, 63)]);
        for at in [1024, 2047, 4096 + 63] {
            disk[at * 512..][..4096].copy_from_slice(&ext(3, 4));
        }
        let old = found_by(&disk, BLOCK, 0);
        assert_eq!(places(&old), [1024 * 512]);
        old.keep(dir.path(), true).expect("kept");
        let text = std::fs::read_to_string(dir.path().join(FILE)).expect("kept").replace(",\"rules\":0", "");
        assert!(!text.contains("rules"));
        std::fs::write(dir.path().join(FILE), text).expect("written");
        let kept = Sentinels::kept(dir.path()).expect("read").expect("kept");
        for was_clean in [false, true] {
            assert_eq!(found_by(&disk, BLOCK, kept.rules).differ(&kept, was_clean), None);
        }
        disk[1024 * 512..][..4096].copy_from_slice(&ext(4, 4));
        assert!(found_by(&disk, BLOCK, kept.rules).differ(&kept, false).is_some());
    }

    #[test]
    fn what_was_kept_is_found_again_and_a_digest_only_after_a_clean_stop() {
        let dir = tempfile::tempdir().expect("temp dir");
        assert_eq!(Sentinels::kept(dir.path()), Ok(None));
        let here = Sentinels { starts: Vec::new(), ..found(&ext(1, 0)) };
        here.keep(dir.path(), true).expect("kept");
        assert_eq!(Sentinels::kept(dir.path()), Ok(Some(here.clone())));
        here.keep(dir.path(), false).expect("kept");
        assert_eq!(Sentinels::kept(dir.path()), Ok(Some(Sentinels { digest: None, ..here.clone() })));
        Sentinels::keep_or_forget(None, dir.path(), true).expect("forgotten");
        assert_eq!(Sentinels::kept(dir.path()), Ok(None), "nothing is better than what is stale");
        Sentinels::keep_or_forget(None, dir.path(), true).expect("nothing to forget");
        std::fs::write(dir.path().join(FILE), "{\"marks\":").expect("written");
        assert_eq!(Sentinels::kept(dir.path()), Err(Unread), "that is not nothing");
    }

    #[test]
    fn a_write_where_a_file_system_begins_is_told() {
        let (written, writes) = channel();
        let runtime = tempfile::tempdir().expect("temp dir");
        let note = Arc::new(MarksNote::begin(runtime.path(), VolumeId([7; 16]), true).expect("a note"));
        let bell = Bell { starts: Arc::new(Starts::new(&[0, 1 << 20])), note, written };
        for (offset, bytes, told) in
            [(0, 512, true), (512, 512, true), (4096, 4096, false), (0, 1 << 30, true), (1 << 20, 512, true)]
        {
            assert_eq!(bell.is_for(offset, bytes), told, "{offset} {bytes}");
        }
        assert!(!bell.is_for((1 << 20) - 512, 512) && !bell.is_for((1 << 20) + 4096, 512));
        bell.ring();
        bell.ring();
        assert_eq!((writes.try_recv(), writes.try_recv()), (Ok(()), Err(Nothing::Yet)));
    }

    #[test]
    fn a_dead_sector_proves_no_use_of_the_disk() {
        let mut disk = vec![0; 1 << 20];
        disk[..4096].copy_from_slice(&ext(3, 4));
        let kept = found(&disk);
        let shape = Disk { bytes: disk.len() as u64, unit: SECTOR, rules: RULES };
        let mut read = |at: u64| Ok(if at == 0 { UNREADABLE.to_vec() } else { disk[at as usize..][..BLOCK as usize].to_vec() });
        let now = look(shape, &KEY, &mut read).expect("the rest can be read");
        assert!(
            now.differ(&kept, false).is_some() && !now.is_whole() && kept.is_whole(),
            "it is compared, and nobody is refused"
        );
        let old: Sentinels = serde_json::from_str(r#"{"marks":{}}"#).expect("of an earlier version");
        assert!(!old.is_whole());
    }

    #[test]
    fn what_the_host_changes_is_told_from_what_somebody_else_does_once_it_is_kept() {
        let dir = tempfile::tempdir().expect("temp dir");
        let volume = VolumeId([7; 16]);
        let is_settled = || MarksNote::is_settled(dir.path(), volume);
        assert!(!is_settled(), "nobody knows");
        let note = MarksNote::begin(dir.path(), volume, false).expect("a note");
        assert!(!is_settled(), "what is there could not be kept");
        drop(note);
        let note = MarksNote::begin(dir.path(), volume, true).expect("a note");
        assert!(is_settled());
        note.write_begins();
        assert!(!is_settled(), "the kernel may have it");
        note.kept(note.ended());
        assert!(!is_settled(), "it has not ended");
        note.write_ended();
        let ended = note.ended();
        note.write_begins();
        note.kept(ended);
        assert!(!is_settled(), "another one began");
        note.write_ended();
        note.kept(note.ended());
        assert!(is_settled());
        std::fs::write(MarksNote::path(dir.path(), volume), [0; 8]).expect("written");
        assert!(!is_settled(), "torn");
        MarksNote::remove(dir.path(), volume);
        assert!(!is_settled());
    }

    #[test]
    fn marks_are_kept_as_the_host_changes_them() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (written, writes) = channel();
        let before = found(&ext(1, 0));
        let note = MarksNote::begin(dir.path(), VolumeId([7; 16]), true).expect("a note");
        let mut states = [ext(1, 0), ext(2, 4)].into_iter();
        let (seen, looks) = channel();
        let thread = std::thread::spawn({
            let dir = dir.path().to_owned();
            move || {
                keep_up(&writes, before, &note, "data", &dir, &mut || {
                    let state = states.next().map(|state| found(&state));
                    let _ = seen.send(());
                    Ok(state)
                });
            }
        });
        written.send(()).expect("it lives");
        looks.recv().expect("it looks");
        assert_eq!(Sentinels::kept(dir.path()), Ok(None), "nothing changed");
        written.send(()).expect("it lives");
        drop(written);
        thread.join().expect("it ends");
        assert_eq!(Sentinels::kept(dir.path()).expect("read").expect("kept").marks, found(&ext(2, 4)).marks);
    }
}
