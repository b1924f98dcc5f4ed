//! Frames: `u32 length | u32 crc32c | payload`, little endian; the payload is the postcard form of one message.
//!
//! Invariant: what [`FrameReader::next_frame`] hands out carried a good checksum and was at most [`FRAME_BYTES_MAX`] long.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{ReceiverMessage, SourceMessage};

/// The longest payload of a frame, in bytes. Longer things are paged by their messages.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Length and checksum in front of every payload.
pub const FRAME_HEADER_BYTES: usize = 8;
/// The oldest version of the messages that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest.
pub const VERSION_MAX: u16 = 1;

/// The versions that one side speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl VersionRange {
    /// What this build speaks.
    pub const OURS: Self = Self { min: VERSION_MIN, max: VERSION_MAX };

    /// The newest version that both speak.
    ///
    /// # Errors
    /// When there is none, or `peer` is not a range.
    pub fn negotiate(self, peer: Self) -> Result<u16, DecodeError> {
        let newest = self.max.min(peer.max);
        if peer.min > peer.max || newest < self.min.max(peer.min) {
            return Err(DecodeError::Version { ours: self, theirs: peer });
        }
        Ok(newest)
    }
}

/// Optional abilities, one bit each. Bits that a side does not know are ignored by it, so a bit may only ever allow, never
/// demand. None is defined yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(pub u64);

impl Features {
    /// What this build can do.
    pub const OURS: Self = Self(0);

    /// What both can do.
    #[must_use]
    pub fn common(self, peer: Self) -> Self {
        Self(self.0 & peer.0)
    }
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The length is beyond the limit: not our protocol, or an attack.
    #[error("a frame of {0} bytes; at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// Damaged on the way.
    #[error("a frame's checksum does not match: the connection is damaged, or does not carry this protocol")]
    Checksum,
    /// Good checksum, but nothing this build knows: a newer message, or none at all.
    #[error("a {0} that this build does not understand")]
    Unknown(&'static str),
    /// More bytes than the message has.
    #[error("{0} bytes too many after a message")]
    TrailingBytes(usize),
    /// A text, list or set beyond its own limit.
    #[error("a message breaks a limit: {0}")]
    Limit(&'static str),
    /// No version in common.
    #[error("the peer speaks versions {}..={}, this build {}..={}: update the older side", theirs.min, theirs.max, ours.min, ours.max)]
    Version {
        /// What this build speaks.
        ours: VersionRange,
        /// What the peer said.
        theirs: VersionRange,
    },
}

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// It should have been paged.
    #[error("a message of {0} bytes; at most {FRAME_BYTES_MAX} fit a frame")]
    TooLong(usize),
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::SourceMessage {}
    impl Sealed for crate::ReceiverMessage {}
}

/// A message of either direction.
pub trait Message: Serialize + DeserializeOwned + sealed::Sealed {
    /// For errors.
    const WHAT: &'static str;

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// Names the limit.
    fn check(&self) -> Result<(), DecodeError>;
}

impl Message for SourceMessage {
    const WHAT: &'static str = "message from a source";

    fn check(&self) -> Result<(), DecodeError> {
        self.check_limits()
    }
}

impl Message for ReceiverMessage {
    const WHAT: &'static str = "message from a receiver";

    fn check(&self) -> Result<(), DecodeError> {
        self.check_limits()
    }
}

/// The payload of a message, for a transport that frames by itself.
///
/// # Errors
/// When it is longer than a frame may be.
pub fn encode_payload<M: Message>(message: &M) -> Result<Bytes, EncodeError> {
    let payload = postcard::to_allocvec(message).expect("messages hold nothing that postcard cannot write");
    if payload.len() > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLong(payload.len()));
    }
    Ok(payload.into())
}

/// A message as one frame.
///
/// # Errors
/// When it is longer than a frame may be.
pub fn encode<M: Message>(message: &M) -> Result<Bytes, EncodeError> {
    let payload = encode_payload(message)?;
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame.into())
}

/// A message from the payload of one frame.
///
/// # Errors
/// When it is not exactly one message of this direction, within all limits.
pub fn decode_payload<M: Message>(payload: &[u8]) -> Result<M, DecodeError> {
    if payload.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong(payload.len()));
    }
    let (message, rest) = postcard::take_from_bytes::<M>(payload).map_err(|_| DecodeError::Unknown(M::WHAT))?;
    if !rest.is_empty() {
        return Err(DecodeError::TrailingBytes(rest.len()));
    }
    message.check()?;
    Ok(message)
}

/// Takes frames out of a stream of bytes. Holds at most one frame and what came with it.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The payload of the next whole frame; `None` when more bytes are needed.
    ///
    /// # Errors
    /// After one, the stream cannot be trusted any more: close the connection.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, DecodeError> {
        if self.buffer.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes(self.buffer[at..at + 4].try_into().expect("four bytes"));
        let (length, checksum) = (word(0) as usize, word(4));
        if length > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLong(length));
        }
        if self.buffer.len() < FRAME_HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        if crc32c::crc32c(&payload) != checksum {
            return Err(DecodeError::Checksum);
        }
        Ok(Some(payload))
    }

    /// The next whole message; `None` when more bytes are needed.
    ///
    /// # Errors
    /// As [`FrameReader::next_frame`] and [`decode_payload`].
    pub fn next_message<M: Message>(&mut self) -> Result<Option<M>, DecodeError> {
        self.next_frame()?.map(|payload| decode_payload(&payload)).transpose()
    }
}
