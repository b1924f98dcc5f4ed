//! The handshake: flags, then options, until one of them begins the transmission.
//!
//! Invariant: at most one option is held, and at most [`OPTION_MAX`] bytes of it; a longer one is read to its end and refused.

use crate::Export;
use crate::proto::{self, allocation, handshake, info, option, reply};

/// Longest option that is looked at: two names and some queries.
pub(super) const OPTION_MAX: usize = 32 << 10;
/// Longest option that is read to its end in order to be refused politely.
const OPTION_SKIP_MAX: u32 = 1 << 20;
const OPTION_HEAD: usize = 16;

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    NeedBytes,
    Answered,
    Begin,
    Leave,
    Abort,
}

#[derive(Debug)]
pub(super) struct Handshake {
    step: Step,
    held: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    allocation: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Flags,
    Head,
    Body { option: u32, len: usize },
    Skip { option: u32, left: usize },
}

impl Handshake {
    pub(super) fn new() -> Self {
        Self { step: Step::Flags, held: Vec::new(), no_zeroes: false, structured: false, allocation: false }
    }

    pub(super) fn structured(&self) -> bool {
        self.structured
    }

    pub(super) fn allocation(&self) -> bool {
        self.allocation
    }

    /// Consumes bytes up to the end of one option.
    pub(super) fn receive(&mut self, input: &[u8], export: &Export, out: &mut Vec<u8>) -> (usize, Progress) {
        let mut consumed = 0;
        loop {
            let wanted = match self.step {
                Step::Flags => 4,
                Step::Head => OPTION_HEAD,
                Step::Body { len, .. } => len,
                Step::Skip { option, left } => {
                    let take = left.min(input.len() - consumed);
                    consumed += take;
                    if take < left {
                        self.step = Step::Skip { option, left: left - take };
                        return (consumed, Progress::NeedBytes);
                    }
                    self.step = Step::Head;
                    answer(out, option, reply::ERR_TOO_BIG, b"this option is too long");
                    return (consumed, Progress::Answered);
                }
            };
            let take = (wanted - self.held.len()).min(input.len() - consumed);
            self.held.extend_from_slice(&input[consumed..consumed + take]);
            consumed += take;
            if self.held.len() < wanted {
                return (consumed, Progress::NeedBytes);
            }
            let held = std::mem::take(&mut self.held);
            let progress = self.advance(&held, export, out);
            self.held = held;
            self.held.clear();
            if let Some(progress) = progress {
                return (consumed, progress);
            }
        }
    }

    fn advance(&mut self, held: &[u8], export: &Export, out: &mut Vec<u8>) -> Option<Progress> {
        match self.step {
            Step::Flags => {
                let flags = Reader(held).u32()?;
                let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
                self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
                self.step = Step::Head;
                (flags & !known != 0).then_some(Progress::Abort)
            }
            Step::Head => self.head(held),
            Step::Body { option, .. } => {
                self.step = Step::Head;
                Some(self.option(option, held, export, out))
            }
            Step::Skip { .. } => unreachable!("skipped bytes are not held"),
        }
    }

    fn head(&mut self, held: &[u8]) -> Option<Progress> {
        let mut reader = Reader(held);
        let (magic, option, len) = (reader.u64()?, reader.u32()?, reader.u32()?);
        if magic != proto::OPTION_MAGIC || len > OPTION_SKIP_MAX {
            return Some(Progress::Abort);
        }
        self.step = match len as usize {
            _ if option == option::EXPORT_NAME && len as usize > proto::STRING_MAX => return Some(Progress::Abort),
            left if left > OPTION_MAX => Step::Skip { option, left },
            len => Step::Body { option, len },
        };
        None
    }

    fn option(&mut self, option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) -> Progress {
        match option {
            option::EXPORT_NAME => return self.export_name(data, export, out),
            option::ABORT => {
                answer(out, option, reply::ACK, &[]);
                return Progress::Leave;
            }
            option::INFO | option::GO => return self.go(option, data, export, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data, export, out),
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => {
                answer(out, option, reply::ERR_INVALID, b"this option carries no data");
            }
            option::LIST => {
                let mut entry = (export.name().len() as u32).to_be_bytes().to_vec();
                entry.extend_from_slice(export.name().as_bytes());
                entry.extend_from_slice(export.description().as_bytes());
                answer(out, option, reply::SERVER, &entry);
                answer(out, option, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if self.structured => {
                answer(out, option, reply::ERR_INVALID, b"structured replies are on already");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                answer(out, option, reply::ACK, &[]);
            }
            option::STARTTLS => answer(out, option, reply::ERR_UNSUP, b"there is no TLS on this socket"),
            _ => answer(out, option, reply::ERR_UNSUP, b"unknown option"),
        }
        Progress::Answered
    }

    fn export_name(&self, name: &[u8], export: &Export, out: &mut Vec<u8>) -> Progress {
        if !export.answers_to(name) {
            return Progress::Abort; // this option has no other way to say so
        }
        out.extend_from_slice(&export.info().size.to_be_bytes());
        out.extend_from_slice(&export.flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Progress::Begin
    }

    fn go(&mut self, option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) -> Progress {
        let Some((name, wanted)) = parse_go(data) else {
            answer(out, option, reply::ERR_INVALID, b"malformed name or list of information");
            return Progress::Answered;
        };
        if name.len() > proto::STRING_MAX {
            answer(out, option, reply::ERR_TOO_BIG, b"a name has at most 4096 bytes");
            return Progress::Answered;
        }
        if !export.answers_to(name) {
            answer(out, option, reply::ERR_UNKNOWN, b"no such export");
            return Progress::Answered;
        }
        let (mut send_name, mut send_description) = (false, false);
        for kind in wanted.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])) {
            send_name |= kind == info::NAME;
            send_description |= kind == info::DESCRIPTION;
        }
        let mut fact = |kind: u16, parts: &[&[u8]]| {
            let mut data = kind.to_be_bytes().to_vec();
            parts.iter().for_each(|part| data.extend_from_slice(part));
            answer(out, option, reply::INFO, &data);
        };
        fact(info::EXPORT, &[&export.info().size.to_be_bytes(), &export.flags(self.structured).to_be_bytes()]);
        let [min, preferred, max] = export.block_sizes().map(u32::to_be_bytes);
        fact(info::BLOCK_SIZE, &[&min, &preferred, &max]);
        if send_name {
            fact(info::NAME, &[export.name().as_bytes()]);
        }
        if send_description {
            fact(info::DESCRIPTION, &[export.description().as_bytes()]);
        }
        answer(out, option, reply::ACK, &[]);
        if option == option::GO { Progress::Begin } else { Progress::Answered }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], export: &Export, out: &mut Vec<u8>) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.allocation = false; // a new choice replaces the last, also one that fails
        }
        let Some((name, found)) = parse_queries(data, set) else {
            return answer(out, option, reply::ERR_INVALID, b"malformed name or queries");
        };
        if !self.structured {
            return answer(out, option, reply::ERR_INVALID, b"contexts need structured replies");
        }
        if !export.answers_to(name) {
            return answer(out, option, reply::ERR_UNKNOWN, b"no such export");
        }
        if found {
            let id = if set { allocation::ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(allocation::NAME.as_bytes());
            answer(out, option, reply::META_CONTEXT, &context);
            self.allocation |= set;
        }
        answer(out, option, reply::ACK, &[]);
    }
}

/// Name, and the list of kinds (pairs of bytes) that the client wants to know.
fn parse_go(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut reader = Reader(data);
    let len = reader.u32()?;
    let name = reader.take(len as usize)?;
    let count = reader.u16()?;
    let wanted = reader.take(usize::from(count) * 2)?;
    reader.0.is_empty().then_some((name, wanted))
}

/// Name, and whether a query means `base:allocation`.
fn parse_queries(data: &[u8], set: bool) -> Option<(&[u8], bool)> {
    let mut reader = Reader(data);
    let len = reader.u32()?;
    let name = reader.take(len as usize)?;
    let count = reader.u32()?;
    let mut found = count == 0 && !set;
    for _ in 0..count {
        let len = reader.u32()?;
        let query = reader.take(len as usize)?;
        found |= query == allocation::NAME.as_bytes() || (!set && query == b"base:");
    }
    reader.0.is_empty().then_some((name, found))
}

fn answer(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&proto::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// Takes big-endian numbers off the front; `None` where there are too few bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }
}
