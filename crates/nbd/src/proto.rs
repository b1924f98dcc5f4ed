//! Numbers of the NBD protocol, as its specification (`doc/proto.md` of the NetworkBlockDevice project) names them.

/// Start of the server's greeting: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Start of every option, and second word of the greeting: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its payload.
pub const REQUEST_LEN: usize = 28;
/// Longest string that either side must accept.
pub const STRING_MAX: usize = 4096;
/// Longest payload that every client may assume.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Handshake flags; the client's have the same bits.
pub mod handshake {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// The answer to `EXPORT_NAME` has no padding.
    pub const NO_ZEROES: u16 = 2;
}

/// Options.
pub mod option {
    /// Choose an export and begin; errors can only be shown by hanging up.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// List exports.
    pub const LIST: u32 = 3;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Answers to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// A piece of information.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Malformed, or not now.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// Longer than we read.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// For people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred, maximum.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod flag {
    /// The others mean something.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH exists.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA exists.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM exists.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES exists.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Reads in one piece can be asked for.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE exists.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Zeroing can be asked for only if fast.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows.
    pub const WRITE: u16 = 1;
    /// Finish and hang up; no answer.
    pub const DISC: u16 = 2;
    /// Make answered writes durable.
    pub const FLUSH: u16 = 3;
    /// Content not needed.
    pub const TRIM: u16 = 4;
    /// Prefetch.
    pub const CACHE: u16 = 5;
    /// Make zero.
    pub const WRITE_ZEROES: u16 = 6;
    /// Describe an extent.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1;
    /// Keep the space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// In one chunk.
    pub const DF: u16 = 1 << 2;
    /// One descriptor.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Only if faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of structured replies.
pub mod chunk {
    /// Flag: the last of its reply.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Descriptors.
    pub const BLOCK_STATUS: u16 = 5;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) | 1;
    /// The request failed there.
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
}

/// `base:allocation`.
pub mod allocation {
    /// The context's name.
    pub const NAME: &str = "base:allocation";
    /// Our number for it.
    pub const ID: u32 = 1;
    /// Not allocated.
    pub const HOLE: u32 = 1;
    /// Reads as zeroes.
    pub const ZERO: u32 = 2;
}

/// Errors in replies.
pub mod error {
    /// Read-only.
    pub const EPERM: u32 = 1;
    /// The device failed.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// The request makes no sense.
    pub const EINVAL: u32 = 22;
    /// Beyond the end, or the device is full.
    pub const ENOSPC: u32 = 28;
    /// Too large for one chunk.
    pub const EOVERFLOW: u32 = 75;
    /// Not as fast as asked for.
    pub const ENOTSUP: u32 = 95;
    /// The server is going away.
    pub const ESHUTDOWN: u32 = 108;
}

/// The protocol's number for a device's error.
pub fn error_of(errno: farside_blockio::Errno) -> u32 {
    use farside_blockio::Errno;
    match errno {
        Errno::EPERM | Errno::EACCES | Errno::EROFS => error::EPERM,
        Errno::ENOMEM => error::ENOMEM,
        Errno::EINVAL => error::EINVAL,
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => error::ENOSPC,
        Errno::EOVERFLOW => error::EOVERFLOW,
        Errno::EOPNOTSUPP => error::ENOTSUP,
        Errno::ESHUTDOWN => error::ESHUTDOWN,
        _ => error::EIO,
    }
}
