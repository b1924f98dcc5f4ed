//! The contract between replication and whatever carries its bytes.
//!
//! Deliberately free of QUIC's words, so that memory can keep it too.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use farside_region::Name;

use crate::Fingerprint;

/// The longest control frame, in bytes. Longer answers are paged by the layer above.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// The longest header of a part stream, in bytes.
pub const HEADER_BYTES_MAX: usize = 4 << 10;
/// The longest reason text that is sent with a close, in bytes.
pub(crate) const REASON_BYTES_MAX: usize = 512;

/// Who is at the other end. Known, and checked against the pairing, before a [`Connection`] exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The source's name (seen from a receiver) or the receiver's (seen from a source).
    pub name: Name,
    /// The SHA-256 of its certificate, which was pinned at pairing.
    pub fingerprint: Fingerprint,
    /// Where it was when the connection was made.
    pub address: SocketAddr,
    /// What the packets travel in.
    pub carrier: Carrier,
}

/// What the packets of a connection travel in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// UDP.
    #[default]
    Udp,
    /// TLS over TCP, and why, as far as this side knows: it was the source that chose.
    Tcp(Option<WhyTcp>),
}

/// Why a source connects over TCP, which costs more than UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyTcp {
    /// It is to.
    Asked,
    /// Over UDP nobody answers, though the receiver is there.
    Silent,
    /// Connections over UDP fell silent soon after they were made.
    Dies,
    /// Too many packets over UDP are lost: somebody polices them.
    Lossy,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp => f.write_str("UDP"),
            Self::Tcp(None) => f.write_str("TCP"),
            Self::Tcp(Some(why)) => write!(f, "TCP: {why}"),
        }
    }
}

impl fmt::Display for WhyTcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "as configured",
            Self::Silent => "UDP is not answered",
            Self::Dies => "connections over UDP fell silent",
            Self::Lossy => "too many UDP packets are lost",
        })
    }
}

/// One authenticated connection. Cheap to share; every method may be called from any task.
///
/// `recv` and `accept_part` are cancel-safe: dropping their future loses nothing. Two callers at once are served in turn.
/// Dropping the last handle closes the connection.
#[async_trait]
pub trait Connection: fmt::Debug + Send + Sync {
    /// Who is at the other end.
    fn peer(&self) -> &Peer;

    /// Queues `frame` behind all frames before it; waits only while the (short, bounded) send queue is full. Success does
    /// not mean that it arrived. Cancel-safe: the frame is queued whole or not at all.
    ///
    /// # Errors
    /// [`ConnectionError::FrameTooLong`] beyond [`FRAME_BYTES_MAX`]; [`ConnectionError::Closed`].
    async fn send(&self, frame: Bytes) -> Result<(), ConnectionError>;

    /// As [`Connection::send`], for threads that must not wait.
    ///
    /// # Errors
    /// [`TrySendError::Full`] gives the frame back.
    fn try_send(&self, frame: Bytes) -> Result<(), TrySendError>;

    /// The next control frame.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] once everything that arrived before the end was given out.
    async fn recv(&self) -> Result<Bytes, ConnectionError>;

    /// Opens a part stream; waits while the peer allows no more of them. The header travels with the first chunk.
    ///
    /// # Errors
    /// [`ConnectionError::HeaderTooLong`] beyond [`HEADER_BYTES_MAX`]; [`ConnectionError::Closed`].
    async fn open_part(&self, header: Bytes) -> Result<Box<dyn PartSender>, ConnectionError>;

    /// The next part stream of the peer, once its whole header is there. A stream that is reset before, or whose header is
    /// out of bounds, is dropped silently or closes the connection, respectively.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`].
    async fn accept_part(&self) -> Result<IncomingPart, ConnectionError>;

    /// Closes at once; frames and parts in flight may be lost. The first close counts.
    fn close(&self, code: CloseCode, reason: &str);

    /// Waits for the end and says why.
    async fn closed(&self) -> Closed;

    /// Waits until what [`Connection::close`] said has left this process, which takes no network. For who is about to end: what is not sent before its
    /// runtime ends is never sent.
    async fn sent(&self);

    /// Waits until it is not said again either; three times as long as an answer takes, at most. No promise that the peer heard it.
    async fn told(&self);

    /// Why it ended, if it did.
    fn close_reason(&self) -> Option<Closed>;

    /// Counters, for status and benchmarks.
    fn statistics(&self) -> Statistics;
}

/// The sending half of a part stream. Dropping it unfinished resets the stream: the receiver never takes a torn body for a
/// whole one.
#[async_trait]
pub trait PartSender: fmt::Debug + Send {
    /// Sends the next chunk of the body; waits for the peer's window.
    ///
    /// # Errors
    /// [`PartError`]; the part is lost then.
    async fn write(&mut self, chunk: Bytes) -> Result<(), PartError>;

    /// Says that the body is whole. Not yet an acknowledgement of anything.
    ///
    /// # Errors
    /// [`PartError`]; the part is lost then.
    fn finish(self: Box<Self>) -> Result<(), PartError>;

    /// Gives up: the receiver sees [`PartError::Reset`].
    fn reset(self: Box<Self>);
}

/// The receiving half of a part stream. Dropping it before the end tells the sender to stop.
#[async_trait]
pub trait PartReceiver: fmt::Debug + Send {
    /// The next chunk of the body, at most `bytes_max` long; `None` after the last, when the sender said that the body is
    /// whole. Cancel-safe.
    ///
    /// # Errors
    /// [`PartError::Reset`] when the sender gave up, [`PartError::Connection`] when the connection ended.
    async fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, PartError>;
}

/// A part stream that the peer opened.
#[derive(Debug)]
pub struct IncomingPart {
    /// What the sender gave to [`Connection::open_part`]; at most [`HEADER_BYTES_MAX`].
    pub header: Bytes,
    /// The body. Its length is whatever the peer sends: bound it.
    pub body: Box<dyn PartReceiver>,
}

/// Counters of one connection since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections that carry it, all of whose bytes and packets are counted here; 0 where nothing is connected.
    pub connections: u32,
    /// Bytes sent, with all overhead below us.
    pub sent_bytes: u64,
    /// Bytes received, with all overhead below us.
    pub received_bytes: u64,
    /// Packets sent, lost ones and all.
    pub sent_packets: u64,
    /// Packets that had to be sent again.
    pub lost_packets: u64,
    /// Estimated round-trip time.
    pub rtt: Duration,
    /// Largest packet the path carries now, in bytes; 0 where packets do not exist.
    pub mtu: u16,
    /// Bytes that may be in flight now; 0 where nothing limits them.
    pub congestion_window: u64,
}

/// Why one side closes, as a number on the wire. The text beside it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// Nothing is wrong; this side is done.
    Done,
    /// The process is stopping; come back later.
    ShuttingDown,
    /// The peer broke the rules of the protocol.
    Protocol,
    /// The certificate is not paired with this receiver.
    NotPaired,
    /// The certificate is paired under another name than the one said.
    WrongName,
    /// Pairing: no such token, or it was used before.
    TokenUnknown,
    /// Pairing: the token's time is over.
    TokenExpired,
    /// Pairing: the token was made for a source of another name.
    TokenOtherSource,
    /// Pairing: the name (or the certificate) belongs to another pairing and the token does not allow replacing it.
    NameTaken,
    /// A newer connection of the same peer took over.
    Superseded,
    /// Limits of connections, volumes or memory are reached.
    Overloaded,
    /// The versions have nothing in common.
    Incompatible,
    /// A refusal of the layer above; its text says which.
    Refused,
    /// Something failed inside the closing process.
    Internal,
    /// A host that stops, and owes nothing: all that was written to it is published.
    Settled,
    /// The receiver's disk has no room for what was sent.
    Full,
    /// A number this version does not know.
    Other(u32),
}

const CODES: [(CloseCode, u32); 16] = [
    (CloseCode::Done, 0),
    (CloseCode::ShuttingDown, 1),
    (CloseCode::Protocol, 2),
    (CloseCode::NotPaired, 3),
    (CloseCode::WrongName, 4),
    (CloseCode::TokenUnknown, 5),
    (CloseCode::TokenExpired, 6),
    (CloseCode::TokenOtherSource, 7),
    (CloseCode::NameTaken, 8),
    (CloseCode::Superseded, 9),
    (CloseCode::Overloaded, 10),
    (CloseCode::Incompatible, 11),
    (CloseCode::Refused, 12),
    (CloseCode::Internal, 13),
    (CloseCode::Settled, 14),
    (CloseCode::Full, 15),
];

impl CloseCode {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            known => CODES.iter().find(|(code, _)| *code == known).map_or(u32::MAX, |(_, number)| *number),
        }
    }

    /// The meaning of a number on the wire.
    pub fn from_number(number: u64) -> Self {
        let known = CODES.iter().find(|(_, n)| u64::from(*n) == number).map(|(code, _)| *code);
        known.unwrap_or(Self::Other(u32::try_from(number).unwrap_or(u32::MAX)))
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// This side closed it.
    #[error("closed by this side: {reason}")]
    Here {
        /// What was said to the peer.
        code: CloseCode,
        /// The text said to the peer.
        reason: String,
    },
    /// The peer closed it and said why.
    #[error("closed by the peer: {reason}")]
    ByPeer {
        /// Why.
        code: CloseCode,
        /// Its words, with control characters replaced and bounded in length.
        reason: String,
    },
    /// Nothing came for the idle time-out.
    #[error("the peer fell silent")]
    TimedOut,
    /// The peer restarted and knows nothing of this connection.
    #[error("the peer was restarted")]
    PeerRestarted,
    /// The carrier failed, or the peer broke its rules.
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl Closed {
    /// The number that was said, if one was.
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Here { code, .. } | Self::ByPeer { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Why something on a connection did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The connection ended.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// A frame to send is longer than the peer accepts. The connection goes on.
    #[error("a control frame of {bytes} bytes is longer than {max}")]
    FrameTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A part header to send is longer than the peer accepts. The connection goes on.
    #[error("a part header of {bytes} bytes is longer than {max}")]
    HeaderTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// Why [`Connection::try_send`] did not queue a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// The send queue is full; here is the frame back.
    #[error("the send queue is full")]
    Full(Bytes),
    /// It cannot be sent.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// How a part stream ended before its body was whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartError {
    /// The sender gave up.
    #[error("the sender gave up this part")]
    Reset,
    /// The receiver does not want the rest.
    #[error("the receiver does not want this part")]
    Stopped,
    /// The connection ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl From<Closed> for PartError {
    fn from(closed: Closed) -> Self {
        Self::Connection(ConnectionError::Closed(closed))
    }
}

/// A peer's reason as it may be shown: valid text, one line, bounded.
pub(crate) fn readable(reason: &[u8]) -> String {
    let end = reason.len().min(REASON_BYTES_MAX);
    let text = String::from_utf8_lossy(&reason[..end]);
    farside_region::printable(&text, char::REPLACEMENT_CHARACTER)
}

/// A reason as it may be sent: bounded, cut at a character.
pub(crate) fn bounded(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_codes_are_a_bijection() {
        for (code, number) in CODES {
            assert_eq!(code.number(), number);
            assert_eq!(CloseCode::from_number(u64::from(number)), code);
        }
        assert_eq!(CloseCode::from_number(4711), CloseCode::Other(4711));
        assert_eq!(CloseCode::from_number(u64::MAX), CloseCode::Other(u32::MAX));
    }

    #[test]
    fn reasons_are_bounded_and_printable() {
        let long = "ä".repeat(REASON_BYTES_MAX);
        assert!(bounded(&long).len() <= REASON_BYTES_MAX);
        assert_eq!(readable(b"a\x1b[31m\nb\xff"), "a\u{fffd}[31m\u{fffd}b\u{fffd}");
        assert!(readable(long.as_bytes()).len() <= 2 * REASON_BYTES_MAX);
    }
}
