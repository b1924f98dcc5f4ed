//! QUIC: the carrier that runs. Sole importer of quinn.
//!
//! TLS 1.3 only, no resumption, no early data; both sides show their self-signed certificate and prove its key. The source
//! pins the receiver's inside the TLS handshake; the receiver looks the source's up in its [`crate::PairingBook`] right
//! after it, so that a refusal carries words. The first stream is the control stream: it begins with one frame each way
//! (see `handshake`), then carries the frames of the layer above.
//!
//! Invariant: a [`QuicConnection`] exists only after both checks. Deliberately absent: migration of a source to another
//! address (it reconnects), 0-RTT (its data could be replayed).

mod configuration;
mod dialer;
mod frames;
mod gate;
mod handshake;
mod link;
mod listener;
mod socket;
mod verify;

pub use configuration::{Limits, MTU_MAX};
pub use dialer::{Pin, PinError, QuicDialer, pair};
pub use frames::{FrameTooLong, take_frame};
pub use handshake::{Answer, Opening, PairingProof};
pub use link::QuicConnection;
pub use listener::{Listener, ListenerEvent};
pub use socket::SocketBuffers;

#[cfg(test)]
mod tests;
