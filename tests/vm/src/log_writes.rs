//! Every moment at which the power could have gone: the log that the kernel's dm-log-writes target keeps of a disk, read and
//! replayed here.
//!
//! The log holds each write, in the order in which it completed, and each flush. So the disk after any flush can be made
//! from the disk before the log and the entries up to that flush: the least that a disk with a volatile cache would hold if
//! the power went right then. Layout: sector 0 is the superblock {magic, version, entries: u64; sector size: u32}; each entry
//! is one sector {sector, sectors, flags, length of data: u64} followed by the written sectors (a discard has none; a mark's
//! words stand in the entry's own sector). All little endian; sectors are of the size that the superblock says. Source: the
//! kernel's `Documentation/admin-guide/device-mapper/log-writes.rst` and `drivers/md/dm-log-writes.c`.

use std::ops::Range;

use thiserror::Error;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const ENTRY_BYTES: usize = 32;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// A log, parsed and not copied.
#[derive(Debug)]
pub struct WriteLog<'a> {
    bytes: &'a [u8],
    entries: Vec<Entry>,
}

/// One thing that happened to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What.
    pub what: What,
    /// Whether everything before it was durable when it completed.
    pub flush: bool,
    /// Whether it was itself durable when it completed.
    pub fua: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Bytes of the disk were written; where they are in the log.
    Write {
        /// Of the disk.
        at: u64,
        /// In the log.
        from: Range<usize>,
    },
    /// Bytes of the disk were discarded.
    Discard(Range<u64>),
    /// Somebody said something (`dmsetup message DEVICE 0 mark WORDS`).
    Mark(String),
}

/// A log that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogError {
    /// Nothing of the kind is there.
    #[error("the disk holds no log of dm-log-writes (magic {magic:#x}, version {version}, sectors of {sector} bytes)")]
    NoLog {
        /// What is there instead.
        magic: u64,
        /// What is there instead.
        version: u64,
        /// What is there instead.
        sector: u32,
    },
    /// It goes on behind the end of its disk.
    #[error("entry {entry} of the log, at byte {at}, does not fit on its disk")]
    Truncated {
        /// Which one.
        entry: u64,
        /// Where it begins.
        at: usize,
    },
}

impl<'a> WriteLog<'a> {
    /// Reads a log from the content of its disk.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, LogError> {
        let number = |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("eight bytes")));
        let (magic, version, count, sector) = (number(0), number(8), number(16), number(24) as u32);
        if magic != MAGIC || version != VERSION || !sector.is_power_of_two() || (sector as usize) < ENTRY_BYTES {
            return Err(LogError::NoLog { magic, version, sector });
        }
        let sector = sector as usize;
        let mut entries = Vec::new();
        let mut at = sector;
        for entry in 0..count {
            let truncated = LogError::Truncated { entry, at };
            if at + sector > bytes.len() {
                return Err(truncated);
            }
            let (disk_sector, sectors, flags, data) = (number(at), number(at + 8), number(at + 16), number(at + 24) as usize);
            let (start, len) = (disk_sector * sector as u64, sectors as usize * sector);
            let payload = at + sector;
            at = payload;
            let what = if flags & MARK != 0 {
                let words = at - sector + ENTRY_BYTES..(at - sector + ENTRY_BYTES + data).min(at);
                What::Mark(String::from_utf8_lossy(&bytes[words]).trim_end_matches('\0').to_owned())
            } else if flags & DISCARD != 0 {
                What::Discard(start..start + len as u64)
            } else {
                at += len;
                if at > bytes.len() {
                    return Err(truncated);
                }
                What::Write { at: start, from: payload..at }
            };
            entries.push(Entry { what, flush: flags & FLUSH != 0, fua: flags & FUA != 0 });
        }
        Ok(Self { bytes, entries })
    }

    /// What happened, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Applies everything to `disk` (what it held before the log began), one entry after the other, and calls `check` at each
    /// crash point: after every entry with which everything before it had become durable. `lose`: entries, by their number,
    /// that a lying disk would have lost.
    ///
    /// # Panics
    /// When the log writes behind the disk's end.
    pub fn replay(&self, disk: &mut [u8], lose: impl Fn(usize) -> bool, mut check: impl FnMut(CrashPoint<'_>)) {
        let mut marks = Vec::new();
        for (number, entry) in self.entries.iter().enumerate() {
            match &entry.what {
                What::Write { .. } | What::Discard(_) if lose(number) => {}
                What::Write { at, from } => disk[*at as usize..][..from.len()].copy_from_slice(&self.bytes[from.clone()]),
                What::Discard(range) => disk[range.start as usize..range.end as usize].fill(0),
                What::Mark(words) => marks.push(words.as_str()),
            }
            if entry.flush || entry.fua {
                check(CrashPoint { number, disk, marks: &marks });
            }
        }
    }
}

/// The disk as it was at least when an entry of the log completed.
#[derive(Clone, Copy, Debug)]
pub struct CrashPoint<'a> {
    /// The entry.
    pub number: usize,
    /// The disk.
    pub disk: &'a [u8],
    /// What had been said by then, in order.
    pub marks: &'a [&'a str],
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    fn entry(sector: u64, flags: u64, data: &[u8]) -> Vec<u8> {
        let is_mark = flags & MARK != 0;
        let sectors = if is_mark { 0 } else { data.len() as u64 / SECTOR as u64 };
        let data_len = if is_mark { data.len() as u64 } else { 0 };
        let mut bytes: Vec<u8> = [sector, sectors, flags, data_len].iter().flat_map(|n| n.to_le_bytes()).collect();
        if is_mark {
            bytes.extend(data);
        }
        bytes.resize(SECTOR, 0);
        if !is_mark {
            bytes.extend(data);
        }
        bytes
    }

    fn log(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [MAGIC, VERSION, entries.len() as u64].iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend((SECTOR as u32).to_le_bytes());
        bytes.resize(SECTOR, 0);
        bytes.extend(entries.concat());
        bytes
    }

    #[test]
    fn a_replay_stops_at_every_flush_with_what_was_written_before() {
        let bytes = log(&[
            entry(1, 0, &[7; SECTOR]),
            entry(0, FLUSH, &[]),
            entry(2, FUA, &[8; SECTOR]),
            entry(0, MARK, b"said"),
            entry(3, 0, &[9; SECTOR]),
            entry(0, FLUSH, &[]),
        ]);
        let log = WriteLog::parse(&bytes).expect("a log");
        assert_eq!(log.entries()[3].what, What::Mark("said".into()));
        let mut seen = Vec::new();
        log.replay(
            &mut [0; 4 * SECTOR],
            |_| false,
            |point| {
                seen.push(([1, 2, 3].map(|sector| point.disk[sector * SECTOR]), point.marks.len()));
            },
        );
        assert_eq!(seen, [([7, 0, 0], 0), ([7, 8, 0], 0), ([7, 8, 9], 1)]);
    }

    #[test]
    fn what_a_lying_disk_loses_is_missing() {
        let bytes = log(&[entry(1, 0, &[7; SECTOR]), entry(0, FLUSH, &[])]);
        let log = WriteLog::parse(&bytes).expect("a log");
        log.replay(&mut [0; 4 * SECTOR], |number| number == 0, |point| assert_eq!(point.disk[SECTOR], 0));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        assert!(matches!(WriteLog::parse(&[0; 4096]), Err(LogError::NoLog { .. })));
        let mut bytes = log(&[entry(1, 0, &[7; SECTOR])]);
        bytes.truncate(2 * SECTOR);
        assert_eq!(WriteLog::parse(&bytes).expect_err("too short"), LogError::Truncated { entry: 0, at: SECTOR });
    }
}
