//! One client's protocol, without any I/O: bytes go in, commands and answers come out.
//!
//! The driver's order of calls:
//! 1. [`Session::greeting`] once, to be sent.
//! 2. [`Session::receive`] with whatever bytes are there. It consumes some and may give an [`Event`]; while it gives neither,
//!    more bytes are needed.
//! 3. After a command with a payload, [`Session::payload_left`] bytes belong to it (or, after a refused one, to nobody): the
//!    driver takes them itself, into memory of its choice, and says so with [`Session::payload_taken`]; only then `receive`
//!    again.
//!
//! Invariant: a command that is given has a known opcode and flags, an extent inside the export aligned to its blocks, and a
//! length within the limit; everything else is answered here as the specification says. Memory is bounded by one option.

use farside_region::{ByteExtent, ByteOffset};

use crate::Export;
use crate::proto::{self, allocation, chunk, command, command_flag, error};
use handshake::Handshake;

mod handshake;

/// What the client wants of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read; `whole` if it must be answered in one chunk.
    Read {
        /// Where.
        extent: ByteExtent,
        /// One chunk (DF).
        whole: bool,
    },
    /// Write; the payload follows.
    Write {
        /// Where.
        extent: ByteExtent,
        /// Durably.
        fua: bool,
    },
    /// Make answered writes durable.
    Flush,
    /// Content not needed.
    Trim {
        /// Where.
        extent: ByteExtent,
        /// Durably.
        fua: bool,
    },
    /// Make zero.
    WriteZeroes {
        /// Where.
        extent: ByteExtent,
        /// Durably.
        fua: bool,
        /// Keep the space.
        no_hole: bool,
    },
    /// Describe.
    BlockStatus {
        /// Where.
        extent: ByteExtent,
        /// One descriptor only.
        one: bool,
    },
}

/// What came of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes to be sent.
    Answer,
    /// A command for the device; its reply carries the cookie.
    Command {
        /// The client's name for it.
        cookie: u64,
        /// What to do.
        command: Command,
    },
    /// A command that needs no device: send this head once its payload, if any, has been taken (a client that is still
    /// sending does not expect it).
    Reply(Head),
    /// Finish what is running, send it, hang up.
    Disconnect,
    /// Hang up now: what came is not the protocol, or cannot be answered.
    Abort,
}

/// One client's connection.
#[derive(Debug)]
pub struct Session {
    export: Export,
    phase: Phase,
    structured: bool,
    allocation: bool,
    partial: [u8; proto::REQUEST_LEN],
    partial_len: usize,
    payload_left: u64,
}

/// `Handshake ──GO | EXPORT_NAME──► Transmission ──DISC | garbage──► Over`; `Handshake ──ABORT | garbage──► Over`
#[derive(Debug)]
enum Phase {
    Handshake(Box<Handshake>),
    Transmission,
    Over,
}

impl Session {
    /// A new client of an export.
    pub fn new(export: Export) -> Self {
        Self {
            export,
            phase: Phase::Handshake(Box::new(Handshake::new())),
            structured: false,
            allocation: false,
            partial: [0; proto::REQUEST_LEN],
            partial_len: 0,
            payload_left: 0,
        }
    }

    /// The first bytes to send.
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&proto::GREETING_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&proto::OPTION_MAGIC.to_be_bytes());
        let flags = proto::handshake::FIXED_NEWSTYLE | proto::handshake::NO_ZEROES;
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// Whether the handshake is over.
    pub fn transmitting(&self) -> bool {
        matches!(self.phase, Phase::Transmission)
    }

    /// Whether reads are answered in chunks.
    pub fn structured(&self) -> bool {
        self.structured
    }

    /// Bytes of the stream that belong to the last command's payload.
    pub fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Notes that the driver took payload bytes.
    ///
    /// # Panics
    /// When there were fewer.
    pub fn payload_taken(&mut self, bytes: u64) {
        self.payload_left = self.payload_left.checked_sub(bytes).expect("a driver takes no more than the payload");
    }

    /// Consumes bytes: how many, and what came of it. Answers of the handshake are appended to `out`.
    ///
    /// # Panics
    /// When payload is left.
    pub fn receive(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Option<Event>) {
        assert_eq!(self.payload_left, 0, "a payload is taken before the next request");
        match &mut self.phase {
            Phase::Over => (input.len(), Some(Event::Abort)),
            Phase::Handshake(handshake) => {
                let (consumed, end) = handshake.receive(input, &self.export, out);
                let event = match end {
                    handshake::Progress::NeedBytes => None,
                    handshake::Progress::Answered => Some(Event::Answer),
                    handshake::Progress::Begin => {
                        self.structured = handshake.structured();
                        self.allocation = handshake.allocation();
                        self.phase = Phase::Transmission;
                        Some(Event::Answer)
                    }
                    handshake::Progress::Leave => {
                        self.phase = Phase::Over;
                        Some(Event::Disconnect)
                    }
                    handshake::Progress::Abort => {
                        self.phase = Phase::Over;
                        Some(Event::Abort)
                    }
                };
                (consumed, event)
            }
            Phase::Transmission => self.receive_request(input),
        }
    }

    fn receive_request(&mut self, input: &[u8]) -> (usize, Option<Event>) {
        if self.partial_len == 0
            && let Some(request) = input.first_chunk()
        {
            return (proto::REQUEST_LEN, Some(self.request(request)));
        }
        let take = (proto::REQUEST_LEN - self.partial_len).min(input.len());
        self.partial[self.partial_len..][..take].copy_from_slice(&input[..take]);
        self.partial_len += take;
        if self.partial_len < proto::REQUEST_LEN {
            return (take, None);
        }
        self.partial_len = 0;
        let request = self.partial;
        (take, Some(self.request(&request)))
    }

    fn request(&mut self, bytes: &[u8; proto::REQUEST_LEN]) -> Event {
        let request = RawRequest::parse(bytes);
        if request.magic != proto::REQUEST_MAGIC {
            self.phase = Phase::Over;
            return Event::Abort;
        }
        if request.kind == command::DISC {
            self.phase = Phase::Over;
            return Event::Disconnect;
        }
        if request.kind == command::WRITE {
            // A payload much longer than the limit is not worth reading to its end.
            if u64::from(request.len) > 2 * u64::from(self.export.payload_max()) {
                self.phase = Phase::Over;
                return Event::Abort;
            }
            self.payload_left = u64::from(request.len);
        }
        match self.check(&request) {
            Ok(Some(command)) => Event::Command { cookie: request.cookie, command },
            Ok(None) => Event::Reply(self.nothing_to_do(&request)),
            Err(error) => Event::Reply(self.refuse(&request, error)),
        }
    }

    /// The command, or `None` for one that is done by answering it.
    fn check(&self, request: &RawRequest) -> Result<Option<Command>, u32> {
        let info = self.export.info();
        let allowed = match request.kind {
            command::READ if self.structured => command_flag::DF | command_flag::FUA,
            command::BLOCK_STATUS if self.allocation => command_flag::REQ_ONE | command_flag::FUA,
            command::WRITE_ZEROES => command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => command_flag::FUA,
            _ => return Err(error::EINVAL),
        };
        if request.flags & !allowed != 0 {
            return Err(error::EINVAL);
        }
        if request.kind == command::FLUSH {
            return if request.offset == 0 && request.len == 0 { Ok(Some(Command::Flush)) } else { Err(error::EINVAL) };
        }
        let writes = matches!(request.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && info.readonly {
            return Err(error::EPERM);
        }
        let carries = matches!(request.kind, command::READ | command::WRITE);
        if carries && request.len > self.export.payload_max() {
            return Err(error::EINVAL);
        }
        let block = u64::from(info.block_min) - 1;
        if (request.offset | u64::from(request.len)) & block != 0 {
            return Err(error::EINVAL);
        }
        if request.offset.checked_add(u64::from(request.len)).is_none_or(|end| end > info.size) {
            let grows = matches!(request.kind, command::WRITE | command::WRITE_ZEROES);
            return Err(if grows { error::ENOSPC } else { error::EINVAL });
        }
        let extent = ByteExtent { offset: ByteOffset(request.offset), len: u64::from(request.len) };
        let set = |flag| request.flags & flag != 0;
        let fua = set(command_flag::FUA);
        if request.len == 0 {
            return if request.kind == command::BLOCK_STATUS { Err(error::EINVAL) } else { Ok(None) };
        }
        Ok(Some(match request.kind {
            command::READ => Command::Read { extent, whole: set(command_flag::DF) },
            command::WRITE => Command::Write { extent, fua },
            command::TRIM => Command::Trim { extent, fua },
            command::WRITE_ZEROES if set(command_flag::FAST_ZERO) && !info.zeroes_fast => return Err(error::ENOTSUP),
            command::WRITE_ZEROES => Command::WriteZeroes { extent, fua, no_hole: set(command_flag::NO_HOLE) },
            command::BLOCK_STATUS => Command::BlockStatus { extent, one: set(command_flag::REQ_ONE) },
            _ => return Ok(None), // CACHE: nothing is cached, so nothing is to be done
        }))
    }

    fn nothing_to_do(&self, request: &RawRequest) -> Head {
        if request.kind == command::READ && self.structured {
            Head::chunk(request.cookie, chunk::NONE, true, 0)
        } else {
            Head::simple(request.cookie, 0)
        }
    }

    fn refuse(&self, request: &RawRequest, error: u32) -> Head {
        match request.kind {
            command::READ | command::BLOCK_STATUS if self.structured => Head::error(request.cookie, error, true),
            _ => Head::simple(request.cookie, error),
        }
    }

    /// The answer to a failed read or block status, or to any other command with `error` 0 or not.
    pub fn end_of(&self, command: &Command, cookie: u64, error: u32) -> Head {
        match command {
            Command::Read { .. } | Command::BlockStatus { .. } if self.structured => Head::error(cookie, error, true),
            _ => Head::simple(cookie, error),
        }
    }
}

struct RawRequest {
    magic: u32,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl RawRequest {
    fn parse(bytes: &[u8; proto::REQUEST_LEN]) -> Self {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let both = word(4);
        Self { magic: word(0), flags: (both >> 16) as u16, kind: both as u16, cookie: long(8), offset: long(16), len: word(24) }
    }
}

/// The bytes of a reply without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; Head::LEN_MAX],
    len: u8,
}

impl Head {
    /// Of the longest head: a chunk that names an error and its offset.
    pub const LEN_MAX: usize = 34;

    /// A simple reply; data follows if the command was a read and `error` is 0.
    pub fn simple(cookie: u64, error: u32) -> Self {
        Self::empty().u32(proto::SIMPLE_REPLY_MAGIC).u32(error).u64(cookie)
    }

    /// A chunk whose payload has `len` bytes.
    pub fn chunk(cookie: u64, kind: u16, done: bool, len: u32) -> Self {
        let flags = if done { chunk::DONE } else { 0 };
        Self::empty().u32(proto::CHUNK_MAGIC).u16(flags).u16(kind).u64(cookie).u32(len)
    }

    /// A chunk of data, which follows.
    pub fn data(cookie: u64, offset: u64, len: u32, done: bool) -> Self {
        Self::chunk(cookie, chunk::OFFSET_DATA, done, len + 8).u64(offset)
    }

    /// A chunk of zeroes.
    pub fn hole(cookie: u64, offset: u64, len: u32, done: bool) -> Self {
        Self::chunk(cookie, chunk::OFFSET_HOLE, done, 12).u64(offset).u32(len)
    }

    /// A chunk that says the request failed.
    pub fn error(cookie: u64, error: u32, done: bool) -> Self {
        Self::chunk(cookie, chunk::ERROR, done, 6).u32(error).u16(0)
    }

    /// A chunk that says where the request failed.
    pub fn error_at(cookie: u64, error: u32, offset: u64, done: bool) -> Self {
        Self::chunk(cookie, chunk::ERROR_OFFSET, done, 14).u32(error).u16(0).u64(offset)
    }

    /// The chunk of a block status with `count` descriptors, which follow.
    pub fn block_status(cookie: u64, count: u32) -> Self {
        Self::chunk(cookie, chunk::BLOCK_STATUS, true, 4 + 8 * count).u32(allocation::ID)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn empty() -> Self {
        Self { bytes: [0; Self::LEN_MAX], len: 0 }
    }

    fn push(mut self, bytes: &[u8]) -> Self {
        self.bytes[usize::from(self.len)..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
        self
    }

    fn u16(self, value: u16) -> Self {
        self.push(&value.to_be_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.push(&value.to_be_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.push(&value.to_be_bytes())
    }
}

#[cfg(test)]
mod tests;
