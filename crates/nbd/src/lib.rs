//! An NBD server over a [`farside_blockio::BlockQueue`]: the tap that works on every kernel, and the way out for restored
//! images. What of the protocol it speaks is written in `docs/formats/nbd.md`.
//!
//! Three layers: [`proto`] is the bytes, [`Session`] one client's protocol without any I/O, [`Server`] the thread that moves
//! bytes between sockets, sessions and the queue. Invariants: a client's bytes can end its own connection and nothing else;
//! every queue and buffer is bounded by [`Limits`]; a client that does not read its replies is not read from either.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
mod export;
pub mod kernel;
pub mod proto;
mod server;
mod session;
mod socket;

pub use export::{Export, ExportError};
pub use server::{Counters, Handle, Limits, ServeError, Server};
pub use session::{Command, Event, Head, Session};
pub use socket::{ListenError, Listener, SocketOptions, clients_of};
