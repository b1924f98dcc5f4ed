//! Connections between a source and a receiver: who may connect, and how bytes get across.
//!
//! A [`Connection`] carries two things, both opaque here (the `wire` crate gives them meaning):
//! - **control frames**: ordered, in both directions, each at most [`FRAME_BYTES_MAX`];
//! - **part streams**: one-way, each a small header and then a body in chunks, independent of each other and of the
//!   frames, so that a lost packet of one never holds up another.
//!
//! Two implementations: QUIC ([`quic`], what runs) and memory ([`memory`], for tests, with controls to break it).
//!
//! Invariants: no frame and no part reaches the layer above before both certificates were checked against what was paired
//! ([`PairingBook`], [`Pin`]) and the peer's name is known; whatever a peer sends, memory stays within [`Limits`].
//!
//! What it deliberately does not do: decide what is sent, count credits for parts, or remember anything across
//! connections. A connection that ends is gone; what was in flight on it may be lost (DESIGN: *reset*).

pub mod memory;
pub mod quic;

#[cfg(test)]
mod conformance;

mod backoff;
mod connection;
mod connector;
mod identity;
mod pace;
mod pairing;
mod token;

pub use backoff::Backoff;
pub use connection::{
    Carrier, CloseCode, Closed, Connection, ConnectionError, FRAME_BYTES_MAX, HEADER_BYTES_MAX, IncomingPart, PartError,
    PartReceiver, PartSender, Peer, Statistics, TrySendError, WhyTcp,
};
pub use connector::{Connector, ConnectorState, Dial, DialError, DialLater, NotConnected};
pub use identity::{Fingerprint, Identity, IdentityError};
pub use pace::Pacer;
pub use pairing::{BookError, OutstandingToken, PairedSource, PairingBook, PairingRefusal, TokenRequest};
pub use quic::{Carriers, LANES_MAX, Limits, Listen, Listener, ListenerEvent, Pin, PinError, QuicDialer, Route, pair};
pub use token::{PairingToken, Secret, TokenError};
