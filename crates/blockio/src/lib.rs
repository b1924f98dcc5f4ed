//! Everything that touches a disk: aligned buffers, the io_uring engine, devices opened through their one door, process
//! settings, the device mapper, and [`BlockQueue`], the shape in which a tap sees a volume.
//!
//! Invariants: a buffer that the kernel may write is owned by the [`Ring`] and by nobody else until its completion; a device
//! is used through one open file description that carries its lock ([`FileDevice`]); direct I/O always. This is the one
//! library that may contain `unsafe`, but for `crates/hooks/src/kernel.rs`. What it does not know: regions, epochs, replication, NBD.

#![allow(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buffer;
mod clone;
mod device;
pub mod dm;
mod door;
mod engine;
mod identity;
mod mem;
mod openers;
mod presence;
pub mod process;
mod queue;
mod ring;
#[cfg(test)]
mod testing;
mod topology;
mod untaken;
mod waker;
mod written;

pub use buffer::{BUFFER_ALIGN, Buffer, BufferPool, Gather};
pub use clone::clone_file;
pub use device::{DeviceError, DeviceKind, FileDevice, OpenOptions, is_of_medium, seek_extent};
pub use door::{hold, remote_filesystem};
pub use engine::{DeviceDone, DeviceEngine, DeviceOp};
pub use identity::{Identity, Known};
pub use mem::MemQueue;
pub use nix::errno::Errno;
pub use openers::{Users, ancestors, living_openers, open_still, openers, openers_but, users_of_file, users_of_file_but};
pub use presence::Presence;
pub use queue::{BlockQueue, Done, Extent, ExtentKind, Op, Payload, PlainQueue, QueueInfo, Request, RequestId};
pub use ring::{Abandoned, Completion, Fallocate, Owner, Pages, Ring, RingError, SharedFd, Tag};
pub use topology::Topology;
pub use untaken::is_taken;
pub use waker::Waker;
pub use written::{WriteWatch, Written, counts_writes, sectors_written};
