//! The kernel's device mapper, through `/dev/mapper/control`: what `dm-ioctl.h` says, as functions.
//!
//! Invariant: names and uuids that the kernel would cut short or misread are refused here; whatever the kernel answers is read
//! within its bounds. It decides nothing: which table belongs to which device is its caller's matter.
//!
//! (`devicemapper-sys` would need libclang on every machine that builds.)

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

const CONTROL: &str = "/dev/mapper/control";
/// The interface that we speak: flags and structures up to it are used.
const VERSION: [u32; 3] = [4, 0, 0];
const NAME_LEN: usize = 128;
const UUID_LEN: usize = 129;
const TYPE_LEN: usize = 16;
/// Longest answer that is taken: a table of some ten thousand pieces.
const ANSWER_MAX: usize = 4 << 20;

/// Commands.
mod command {
    pub(super) const VERSION: u8 = 0;
    pub(super) const LIST_DEVICES: u8 = 2;
    pub(super) const DEV_CREATE: u8 = 3;
    pub(super) const DEV_REMOVE: u8 = 4;
    pub(super) const DEV_SUSPEND: u8 = 6;
    pub(super) const DEV_STATUS: u8 = 7;
    pub(super) const TABLE_LOAD: u8 = 9;
    pub(super) const TABLE_CLEAR: u8 = 10;
    pub(super) const TABLE_DEPS: u8 = 11;
    pub(super) const TABLE_STATUS: u8 = 12;
}

/// Flags.
mod flag {
    pub(super) const READONLY: u32 = 1;
    pub(super) const SUSPEND: u32 = 1 << 1;
    pub(super) const STATUS_TABLE: u32 = 1 << 4;
    pub(super) const ACTIVE_PRESENT: u32 = 1 << 5;
    pub(super) const INACTIVE_PRESENT: u32 = 1 << 6;
    pub(super) const BUFFER_FULL: u32 = 1 << 8;
    pub(super) const SKIP_LOCKFS: u32 = 1 << 10;
    pub(super) const NOFLUSH: u32 = 1 << 11;
    pub(super) const QUERY_INACTIVE: u32 = 1 << 12;
}

/// What udev's rules read from an event: no links by content, no other layers on top. (`DM_UDEV_DISABLE_{SUBSYSTEM,DISK,OTHER}_RULES`,
/// in the upper half of the cookie.)
const UDEV_HANDS_OFF: u32 = (2 | 4 | 8) << 16;

/// Why the device mapper did not do it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DmError {
    /// There is none.
    #[error("the kernel's device mapper is not there ({CONTROL}): modprobe dm_mod")]
    NoControl(#[source] io::Error),
    /// A name that it would not take as it is.
    #[error("{name:?} is no name for a device of the device mapper: 1 to {max} bytes, without / and control characters")]
    Name {
        /// As given.
        name: String,
        /// Bytes that fit.
        max: usize,
    },
    /// It was asked and refused.
    #[error("the device mapper cannot {what} {name}{}", if *errno == Errno::EBUSY { ": it is in use" } else { "" })]
    Refused {
        /// What.
        what: &'static str,
        /// Which device.
        name: String,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// An answer that makes no sense.
    #[error("the device mapper's answer about {name} makes no sense")]
    Answer {
        /// Which device.
        name: String,
    },
}

impl DmError {
    /// What the kernel said, if it was asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// A block device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNumber {
    /// Of its driver.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
}

impl DevNumber {
    /// From what `stat` says.
    pub fn of(dev: u64) -> Self {
        Self { major: nix::sys::stat::major(dev) as u32, minor: nix::sys::stat::minor(dev) as u32 }
    }

    /// Of the device that a node, or a link to one, is for.
    ///
    /// # Errors
    /// When there is nothing.
    pub fn at(node: &Path) -> io::Result<Self> {
        std::fs::metadata(node).map(|metadata| Self::of(metadata.rdev()))
    }

    /// From `MAJOR:MINOR`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DevNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One piece of a table. Sectors have 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// First sector of the device.
    pub start: u64,
    /// How many.
    pub sectors: u64,
    /// `linear`, `striped`, …
    pub kind: String,
    /// As that kind wants them; device numbers as `MAJOR:MINOR`.
    pub parameters: String,
}

/// What a device is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its uuid; may be empty.
    pub uuid: String,
    /// Its number.
    pub number: DevNumber,
    /// How often it is open: mounted, built upon, in hand.
    pub open_count: u32,
    /// Whether I/O waits.
    pub suspended: bool,
    /// Whether it refuses writes.
    pub readonly: bool,
    /// Whether it has a table in use.
    pub live: bool,
    /// Whether it has a table that waits for a resume.
    pub inactive: bool,
}

impl Status {
    /// Its node, whatever udev does.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.number.minor))
    }
}

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The one in use.
    Live,
    /// The one that the next resume puts in use.
    Inactive,
}

/// How to suspend, or to resume with a new table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuspendOptions {
    /// Do not have a file system on it write everything first.
    pub skip_lockfs: bool,
    /// Do not wait for what the target can hold back.
    pub noflush: bool,
}

impl SuspendOptions {
    fn flags(self) -> u32 {
        let set = |on, flag| if on { flag } else { 0 };
        set(self.skip_lockfs, flag::SKIP_LOCKFS) | set(self.noflush, flag::NOFLUSH)
    }
}

/// `struct dm_ioctl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME_LEN],
    uuid: [u8; UUID_LEN],
    data: [u8; 7],
}

const HEADER_LEN: usize = size_of::<Header>();
/// Of `struct dm_target_spec`.
const SPEC_LEN: usize = 40;
const _: () = assert!(HEADER_LEN == 312);

/// A conversation with the device mapper.
#[derive(Debug)]
pub struct Control {
    file: File,
}

impl Control {
    /// Opens the control node.
    ///
    /// # Errors
    /// [`DmError::NoControl`]; [`DmError::Refused`] when the kernel speaks another major version.
    pub fn open() -> Result<Self, DmError> {
        let file = File::options().read(true).write(true).open(CONTROL).map_err(DmError::NoControl)?;
        let control = Self { file };
        control.ask(command::VERSION, "be spoken to", Question::default())?;
        Ok(control)
    }

    /// The version of the interface that the kernel speaks.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn version(&self) -> Result<[u32; 3], DmError> {
        Ok(self.ask(command::VERSION, "be spoken to", Question::default())?.header.version)
    }

    /// Every device's name and number.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn list(&self) -> Result<Vec<(String, DevNumber)>, DmError> {
        let answer = self.ask(command::LIST_DEVICES, "list", Question::default())?;
        parse_list(answer.data()).ok_or(DmError::Answer { name: "all devices".to_owned() })
    }

    /// What a device is now; `None`: there is none of that name.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn status(&self, name: &str) -> Result<Option<Status>, DmError> {
        match self.ask(command::DEV_STATUS, "describe", Question::of(name)?) {
            Ok(answer) => Ok(Some(answer.status())),
            Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The name of a device's number; `None`: the device mapper has no such device.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn by_number(&self, number: DevNumber) -> Result<Option<Status>, DmError> {
        let dev = nix::sys::stat::makedev(u64::from(number.major), u64::from(number.minor));
        let question = Question { dev: encode_dev(dev), ..Question::default() };
        match self.ask(command::DEV_STATUS, "describe", question) {
            Ok(answer) => Ok(Some(answer.status())),
            Err(error) if error.errno() == Some(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a device without a table.
    ///
    /// # Errors
    /// [`DmError`]; `EBUSY` when the name or the uuid is taken.
    pub fn create(&self, name: &str, uuid: &str) -> Result<Status, DmError> {
        let uuid_fits = uuid.len() < UUID_LEN && !uuid.bytes().any(|b| b.is_ascii_control());
        if !uuid_fits {
            return Err(DmError::Name { name: uuid.to_owned(), max: UUID_LEN - 1 });
        }
        let question = Question { uuid: uuid.to_owned(), ..Question::of(name)? };
        Ok(self.ask(command::DEV_CREATE, "make", question)?.status())
    }

    /// Gives a device a table that its next resume puts in use.
    ///
    /// # Errors
    /// [`DmError`]; `EINVAL` when the table is not possible, with the reason in the kernel's log.
    pub fn load(&self, name: &str, table: &[Target], readonly: bool) -> Result<(), DmError> {
        let flags = if readonly { flag::READONLY } else { 0 };
        let question = Question { flags, data: encode_table(table)?, targets: table.len() as u32, ..Question::of(name)? };
        self.ask(command::TABLE_LOAD, "load a table into", question).map(drop)
    }

    /// Drops the table that waits for a resume, if there is one.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn clear(&self, name: &str) -> Result<(), DmError> {
        self.ask(command::TABLE_CLEAR, "clear the loaded table of", Question::of(name)?).map(drop)
    }

    /// Has I/O wait, once what is under way has ended. A mounted file system writes everything first.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn suspend(&self, name: &str, options: SuspendOptions) -> Result<(), DmError> {
        let question = Question { flags: flag::SUSPEND | options.flags(), ..Question::of(name)? };
        self.ask(command::DEV_SUSPEND, "suspend", question).map(drop)
    }

    /// Lets I/O go on. If a table waits, the kernel suspends (with these options), puts it in use and resumes, in one call.
    ///
    /// # Errors
    /// [`DmError`]; when the new table cannot be used, the device is left suspended with its old one.
    pub fn resume(&self, name: &str, options: SuspendOptions) -> Result<(), DmError> {
        let question = Question { flags: options.flags(), ..Question::of(name)? };
        self.ask(command::DEV_SUSPEND, "resume", question).map(drop)
    }

    /// As [`Control::resume`], and udev is told to keep its hands off the device.
    ///
    /// # Errors
    /// As [`Control::resume`].
    pub fn resume_unseen(&self, name: &str, options: SuspendOptions) -> Result<(), DmError> {
        let question = Question { flags: options.flags(), event: UDEV_HANDS_OFF, ..Question::of(name)? };
        self.ask(command::DEV_SUSPEND, "resume", question).map(drop)
    }

    /// Removes a device that nobody uses.
    ///
    /// # Errors
    /// [`DmError`]; `EBUSY` when somebody does.
    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        let question = Question { event: UDEV_HANDS_OFF, ..Question::of(name)? };
        self.ask(command::DEV_REMOVE, "remove", question).map(drop)
    }

    /// The devices that a table rests on.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn deps(&self, name: &str, slot: Slot) -> Result<Vec<DevNumber>, DmError> {
        let flags = if slot == Slot::Inactive { flag::QUERY_INACTIVE } else { 0 };
        let answer = self.ask(command::TABLE_DEPS, "describe", Question { flags, ..Question::of(name)? })?;
        parse_deps(answer.data()).ok_or_else(|| DmError::Answer { name: name.to_owned() })
    }

    /// A table; empty where there is none.
    ///
    /// # Errors
    /// [`DmError`].
    pub fn table(&self, name: &str, slot: Slot) -> Result<Vec<Target>, DmError> {
        let inactive = if slot == Slot::Inactive { flag::QUERY_INACTIVE } else { 0 };
        let question = Question { flags: flag::STATUS_TABLE | inactive, ..Question::of(name)? };
        let answer = self.ask(command::TABLE_STATUS, "describe", question)?;
        let count = answer.header.target_count as usize;
        parse_table(answer.data(), count).ok_or_else(|| DmError::Answer { name: name.to_owned() })
    }

    fn ask(&self, command: u8, what: &'static str, question: Question) -> Result<Answer, DmError> {
        let mut room = 16 << 10;
        loop {
            let mut bytes = question.bytes(room);
            // SAFETY: the kernel reads and writes at most `data_size` bytes from the pointer, which `Question::bytes` made the
            // buffer's own length; the buffer is aligned for the header and lives through the call.
            let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request(command), bytes.as_mut_ptr()) };
            if let Err(errno) = Errno::result(result) {
                if errno == Errno::EINTR {
                    continue;
                }
                let name = if question.name.is_empty() { "a device".to_owned() } else { question.name };
                return Err(DmError::Refused { what, name, errno });
            }
            let answer = Answer::new(bytes);
            if answer.header.flags & flag::BUFFER_FULL == 0 || room >= ANSWER_MAX {
                return Ok(answer);
            }
            room *= 4;
        }
    }
}

/// `_IOWR(0xfd, command, struct dm_ioctl)`.
fn request(command: u8) -> libc::c_ulong {
    nix::request_code_readwrite!(0xfd, command, HEADER_LEN) as libc::c_ulong
}

#[derive(Debug, Default)]
struct Question {
    name: String,
    uuid: String,
    dev: u64,
    flags: u32,
    event: u32,
    targets: u32,
    data: Vec<u8>,
}

impl Question {
    fn of(name: &str) -> Result<Self, DmError> {
        let fits = (1..NAME_LEN).contains(&name.len()) && !name.contains('/') && !name.bytes().any(|b| b.is_ascii_control());
        if !fits || name == "." || name == ".." {
            return Err(DmError::Name { name: name.to_owned(), max: NAME_LEN - 1 });
        }
        Ok(Self { name: name.to_owned(), ..Self::default() })
    }

    /// In words, so that it is aligned for the header.
    fn bytes(&self, room: usize) -> Vec<u64> {
        let len = HEADER_LEN + self.data.len().max(room).next_multiple_of(8);
        let text = |size: usize, from: &str| {
            let mut text = from.as_bytes().to_vec();
            text.resize(size, 0);
            text
        };
        let mut bytes = Vec::with_capacity(len);
        VERSION.iter().for_each(|word| bytes.extend_from_slice(&word.to_ne_bytes()));
        for word in [len as u32, HEADER_LEN as u32, self.targets, 0, self.flags, self.event, 0] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.dev.to_ne_bytes());
        bytes.extend_from_slice(&text(NAME_LEN, &self.name));
        bytes.extend_from_slice(&text(UUID_LEN + 7, &self.uuid));
        bytes.extend_from_slice(&self.data);
        bytes.resize(len, 0);
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes"))).collect()
    }
}

struct Answer {
    header: Header,
    bytes: Vec<u8>,
}

impl Answer {
    fn new(words: Vec<u64>) -> Self {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let header = Header {
            version: [word(0), word(4), word(8)],
            data_size: word(12),
            data_start: word(16),
            target_count: word(20),
            open_count: word(24) as i32,
            flags: word(28),
            event_nr: word(32),
            padding: 0,
            dev: u64::from_ne_bytes(bytes[40..48].try_into().expect("eight bytes")),
            name: bytes[48..48 + NAME_LEN].try_into().expect("as long"),
            uuid: bytes[48 + NAME_LEN..48 + NAME_LEN + UUID_LEN].try_into().expect("as long"),
            data: [0; 7],
        };
        Self { header, bytes }
    }

    /// What follows the header, and zeroes: the size that the kernel says ends before the last piece's padding.
    fn data(&self) -> &[u8] {
        self.bytes.get(self.header.data_start as usize..).unwrap_or_default()
    }

    fn status(&self) -> Status {
        let h = &self.header;
        let set = |flag| h.flags & flag != 0;
        Status {
            name: text(&h.name),
            uuid: text(&h.uuid),
            number: decode_dev(h.dev),
            open_count: h.open_count.max(0) as u32,
            suspended: set(flag::SUSPEND),
            readonly: set(flag::READONLY),
            live: set(flag::ACTIVE_PRESENT),
            inactive: set(flag::INACTIVE_PRESENT),
        }
    }
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

/// The kernel's `huge_encode_dev`: as `new_encode_dev`, 32 bits of it.
pub(crate) fn encode_dev(dev: u64) -> u64 {
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

fn decode_dev(dev: u64) -> DevNumber {
    DevNumber { major: (dev >> 8 & 0xfff) as u32, minor: (dev & 0xff | dev >> 12 & 0xf_ff00) as u32 }
}

fn encode_table(table: &[Target]) -> Result<Vec<u8>, DmError> {
    let mut bytes = Vec::new();
    for target in table {
        let wrong = target.kind.is_empty() || target.kind.len() >= TYPE_LEN || target.kind.contains('\0');
        if wrong || target.parameters.contains('\0') {
            return Err(DmError::Name { name: target.kind.clone(), max: TYPE_LEN - 1 });
        }
        let len = (SPEC_LEN + target.parameters.len() + 1).next_multiple_of(8);
        let start = bytes.len();
        bytes.extend_from_slice(&target.start.to_ne_bytes());
        bytes.extend_from_slice(&target.sectors.to_ne_bytes());
        bytes.extend_from_slice(&0i32.to_ne_bytes());
        bytes.extend_from_slice(&(len as u32).to_ne_bytes()); // from the start of this one
        bytes.extend_from_slice(target.kind.as_bytes());
        bytes.resize(start + SPEC_LEN, 0);
        bytes.extend_from_slice(target.parameters.as_bytes());
        bytes.resize(start + len, 0);
    }
    Ok(bytes)
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk::<4>().copied()?))
}

fn long_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..)?.first_chunk::<8>().copied()?))
}

fn parse_table(bytes: &[u8], count: usize) -> Option<Vec<Target>> {
    let mut table = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let next = word_at(bytes, at + 20)? as usize; // from the start of the answer
        let kind = text(bytes.get(at + 24..at + SPEC_LEN)?);
        let parameters = text(bytes.get(at + SPEC_LEN..next.max(at + SPEC_LEN))?);
        table.push(Target { start: long_at(bytes, at)?, sectors: long_at(bytes, at + 8)?, kind, parameters });
        at = if next > at { next } else { return None };
    }
    Some(table)
}

fn parse_deps(bytes: &[u8]) -> Option<Vec<DevNumber>> {
    let count = word_at(bytes, 0)? as usize;
    (0..count).map(|i| long_at(bytes, i.checked_mul(8)?.checked_add(8)?).map(decode_dev)).collect()
}

fn parse_list(bytes: &[u8]) -> Option<Vec<(String, DevNumber)>> {
    let mut list = Vec::new();
    let mut at = 0;
    loop {
        let dev = long_at(bytes, at)?;
        if dev == 0 {
            return Some(list); // nothing at all
        }
        let next = word_at(bytes, at + 8)? as usize; // from the start of this one
        list.push((text(bytes.get(at + 12..)?), decode_dev(dev)));
        match next {
            0 => return Some(list),
            next => at = at.checked_add(next)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(start: u64, parameters: &str) -> Target {
        Target { start, sectors: 8, kind: "linear".into(), parameters: parameters.into() }
    }

    #[test]
    fn a_table_is_laid_out_as_the_kernel_reads_it() {
        let bytes = encode_table(&[linear(0, "8:16 0"), linear(8, "8:32 2048")]).unwrap();
        assert_eq!((long_at(&bytes, 0), long_at(&bytes, 8), word_at(&bytes, 20)), (Some(0), Some(8), Some(48)));
        assert_eq!(&bytes[24..32], b"linear\0\0");
        assert_eq!(&bytes[40..48], b"8:16 0\0\0");
        assert_eq!((long_at(&bytes, 48), word_at(&bytes, 68), bytes.len()), (Some(8), Some(56), 104));
    }

    #[test]
    fn an_answer_is_read_as_the_kernel_writes_it_and_lies_end_it() {
        let mut bytes = encode_table(&[linear(0, "8:16 0"), linear(8, "8:32 2048")]).unwrap();
        bytes[68..72].copy_from_slice(&104u32.to_ne_bytes()); // in answers it counts from their start
        assert_eq!(parse_table(&bytes, 2).unwrap(), [linear(0, "8:16 0"), linear(8, "8:32 2048")]);
        assert_eq!(parse_table(&bytes, 3), None);
        for next in [0u32, 8, 4000, u32::MAX] {
            bytes[20..24].copy_from_slice(&next.to_ne_bytes());
            assert_eq!(parse_table(&bytes, 2), None, "{next}");
        }
        assert_eq!(parse_deps(&[0; 8]), Some(vec![]));
        assert_eq!(parse_deps(&u64::MAX.to_ne_bytes()), None);
        assert_eq!(parse_list(&[0; 16]), Some(vec![]));
        assert_eq!(parse_list(&[1; 12]), None);
    }

    #[test]
    fn numbers_survive_the_kernels_packing() {
        for (major, minor) in [(8, 16), (253, 0), (254, 255), (259, 256), (4000, 70_000)] {
            let dev = nix::sys::stat::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), DevNumber { major: major as u32, minor: minor as u32 });
            assert_eq!(DevNumber::parse(&format!("{major}:{minor}")), Some(DevNumber::of(dev)));
        }
    }

    #[test]
    fn names_that_would_be_cut_short_are_refused() {
        for name in ["", "a/b", ".", "..", "a\n", &"x".repeat(NAME_LEN)] {
            assert!(matches!(Question::of(name), Err(DmError::Name { .. })), "{name:?}");
        }
        let bytes = Question::of("data").unwrap().bytes(64);
        let answer = Answer::new(bytes);
        assert_eq!((answer.status().name.as_str(), answer.header.data_size), ("data", 312 + 64));
    }
}
