//! QUIC: the carrier that runs. Sole importer of quinn.
//!
//! TLS 1.3 only, no resumption, no early data; both sides show their self-signed certificate and prove its key. The source
//! pins the receiver's inside the TLS handshake; the receiver looks the source's up in its [`crate::PairingBook`] right
//! after it, so that a refusal carries words. The first stream is the control stream: it begins with one frame each way
//! (see `handshake`), then carries the frames of the layer above.
//!
//! The packets travel over UDP, or, where that does not get through, in a TCP connection (`tunnel`); `route` says in which.
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
mod route;
mod socket;
mod tunnel;
mod verify;
mod window;

pub use configuration::{Limits, MTU_MAX};
pub use dialer::{Pin, PinError, QuicDialer, pair};
pub use frames::{FrameTooLong, take_frame};
pub use handshake::{Answer, Lane, Opening, PairingProof};
pub use link::{LANES_MAX, QuicConnection};
pub use listener::{Listen, Listener, ListenerEvent};
pub use route::{Carriers, Route};
pub use socket::SocketBuffers;
pub use tunnel::{PacketLength, take_packet};

#[cfg(test)]
mod lane_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tunnel_tests;
