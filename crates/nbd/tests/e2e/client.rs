//! A small NBD client that shows what the server says, good or bad.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use farside_nbd::proto::{self, chunk, option};

/// A client in transmission.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    structured: bool,
    next_cookie: u64,
}

/// The reply to one command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) error: u32,
    /// Where, if the server said so.
    pub(crate) error_at: Option<u64>,
    /// Chunks of content: offset and bytes (zeroes for a hole).
    pub(crate) content: Vec<(u64, Vec<u8>)>,
    pub(crate) holes: usize,
    /// Block status: length and flags.
    pub(crate) status: Vec<(u32, u32)>,
}

impl Client {
    pub(crate) fn connect(path: &Path, structured: bool) -> Self {
        let mut socket = UnixStream::connect(path).unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut client = Self { socket, structured, next_cookie: 1 };
        client.send(&3u32.to_be_bytes());
        if structured {
            assert_eq!(client.option(option::STRUCTURED_REPLY, &[]), proto::reply::ACK);
            let mut query = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15];
            query.extend(b"base:allocation");
            assert_eq!(client.option(option::SET_META_CONTEXT, &query), proto::reply::ACK);
        }
        assert_eq!(client.option(option::GO, &[0; 6]), proto::reply::ACK);
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Sends an option and gives the type of its last answer.
    fn option(&mut self, option: u32, data: &[u8]) -> u32 {
        let mut bytes = proto::OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
        loop {
            let head = self.take(20);
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            self.take(u32::from_be_bytes(head[16..].try_into().unwrap()) as usize);
            if !matches!(kind, proto::reply::INFO | proto::reply::META_CONTEXT) {
                return kind;
            }
        }
    }

    pub(crate) fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The bytes of a request, and its cookie.
    pub(crate) fn encode(&mut self, kind: u16, flags: u16, offset: u64, len: u32) -> (Vec<u8>, u64) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = proto::REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        (bytes, cookie)
    }

    /// Sends a request and does not wait.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        let (mut bytes, cookie) = self.encode(kind, flags, offset, len);
        bytes.extend(payload);
        self.send(&bytes);
        cookie
    }

    /// Sends a request and waits for its reply, the only one.
    pub(crate) fn call(&mut self, kind: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Reply {
        let cookie = self.request(kind, flags, offset, len, payload);
        let read = if kind == proto::command::READ { len } else { 0 };
        let (replied, reply) = self.reply(|_| (offset, read));
        assert_eq!(replied, cookie);
        reply
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.call(proto::command::WRITE, 0, offset, data.len() as u32, data).error
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let reply = self.call(proto::command::READ, 0, offset, len, &[]);
        assert_eq!(reply.error, 0);
        reply.joined(offset, len)
    }

    pub(crate) fn flush(&mut self) -> u32 {
        self.call(proto::command::FLUSH, 0, 0, 0, &[]).error
    }

    /// The next whole reply (chunks of several must not be mixed) and its cookie. `extent_of` says where and how long the read
    /// with a cookie is, for simple replies.
    pub(crate) fn reply(&mut self, extent_of: impl Fn(u64) -> (u64, u32)) -> (u64, Reply) {
        let mut reply = Reply::default();
        loop {
            let head = self.take(16);
            let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            if word(0) == proto::SIMPLE_REPLY_MAGIC {
                reply.error = word(4);
                let (offset, len) = extent_of(cookie);
                if reply.error == 0 && len > 0 {
                    assert!(!self.structured, "a structured read never has a simple reply");
                    reply.content.push((offset, self.take(len as usize)));
                }
                return (cookie, reply);
            }
            assert_eq!((word(0), self.structured), (proto::CHUNK_MAGIC, true));
            let (flags, kind) = ((word(4) >> 16) as u16, word(4) as u16);
            let len = u32::from_be_bytes(self.take(4).try_into().unwrap()) as usize;
            let body = self.take(len);
            reply.chunk(kind, &body);
            if flags & chunk::DONE != 0 {
                return (cookie, reply);
            }
        }
    }

    /// Asserts that the server hung up without another byte.
    pub(crate) fn assert_hung_up(mut self) {
        let mut rest = Vec::new();
        // A reset is also a hang-up: bytes of ours were not read.
        let _ = self.socket.read_to_end(&mut rest);
        assert_eq!(rest, b"");
    }
}

impl Reply {
    fn chunk(&mut self, kind: u16, body: &[u8]) {
        let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
        match kind {
            chunk::NONE => assert!(body.is_empty()),
            chunk::OFFSET_DATA => self.content.push((long(0), body[8..].to_vec())),
            chunk::OFFSET_HOLE => {
                self.holes += 1;
                self.content.push((long(0), vec![0; word(8) as usize]));
            }
            chunk::BLOCK_STATUS => {
                assert_eq!(word(0), proto::allocation::ID);
                self.status =
                    body[4..].chunks(8).map(|d| (u32::from_be_bytes(d[..4].try_into().unwrap()), d[7].into())).collect();
            }
            chunk::ERROR => self.error = word(0),
            chunk::ERROR_OFFSET => (self.error, self.error_at) = (word(0), Some(long(6))),
            other => panic!("unknown chunk {other}"),
        }
    }

    /// The chunks in order; they must cover the read exactly.
    pub(crate) fn joined(mut self, offset: u64, len: u32) -> Vec<u8> {
        self.content.sort();
        let mut all = Vec::new();
        for (at, bytes) in self.content {
            assert_eq!(at, offset + all.len() as u64, "chunks overlap or leave a gap");
            all.extend(bytes);
        }
        assert_eq!(all.len(), len as usize);
        all
    }
}
