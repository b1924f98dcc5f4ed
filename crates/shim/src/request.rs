//! A host request as a token: what to do next, until it is complete.

use farside_region::ByteExtent;
use thiserror::Error;

use crate::{Connection, Queue, sync::Arc};

/// What the host asks for.
#[derive(Clone, Debug)]
pub enum Op {
    /// Read these bytes.
    Read(ByteExtent),
    /// Write these bytes; with a connection = FUA: durable before it is complete.
    Write(ByteExtent, Option<Arc<Connection>>),
    /// Make durable what was completed before.
    Flush(Arc<Connection>),
    /// These bytes read as zero from now on; give the space back where possible. With a connection = FUA.
    Trim(ByteExtent, Option<Arc<Connection>>),
    /// As `Trim`; `no_hole`: keep the space allocated.
    WriteZeroes {
        /// Where.
        extent: ByteExtent,
        /// Keep the space allocated.
        no_hole: bool,
        /// FUA.
        fua: Option<Arc<Connection>>,
    },
}

/// One operation on the backing device, through the ring of the queue that received the request (L11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Read these bytes for the host.
    Read(ByteExtent),
    /// Read this old content into a buffer of the driver's and hand it back with [`IoResult::Data`]: it is about to be
    /// overwritten and belongs to a cut.
    Save(ByteExtent),
    /// Write this part of the request's data.
    Write(ByteExtent),
    /// Make these bytes zero: punch a hole, or write zeroes where that fails or `no_hole` forbids it. The content is always
    /// defined afterwards †.
    Zero {
        /// Where.
        extent: ByteExtent,
        /// Keep the space allocated.
        no_hole: bool,
    },
    /// Flush the backing device.
    Flush,
}

/// How an [`Io`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoResult<'a> {
    /// Done (anything but `Save`).
    Done,
    /// What was there (`Save` only): exactly the bytes asked for.
    Data(&'a [u8]),
    /// Failed with this errno.
    Failed(i32),
}

/// What a request waits for. Only for logs and histograms: whoever parks is woken through its queue's [`crate::Wake`] and then
/// re-advances everything it has parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParkKey {
    /// An intent bit on its way to the disk.
    Intent,
    /// A place in the in-flight table of the queue.
    InFlight,
    /// The grace of a switch, with an overlapping mark under way.
    Grace,
    /// An older write in flight on a frozen granule.
    Drain,
    /// Somebody else's claim on a frozen granule.
    Claim,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The backing device said so.
    #[error("the backing device failed with errno {0}")]
    Backing(i32),
    /// A flush of the backing failed, by whomever issued; this connection had not been told yet (T14).
    #[error("a flush of the backing device failed")]
    FlushFailed,
    /// The intent map is lost and the policy says `fail`.
    #[error("the intent map cannot be written and on_tracking_lost = fail")]
    TrackingLost,
}

/// What to do next with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do this, then [`Request::io_done`], then [`Request::advance`].
    Io(Io),
    /// Nothing until the queue is woken; then [`Request::advance`] again.
    Park(ParkKey),
    /// Answer the host and drop the token.
    Complete(Result<(), Failure>),
}

/// A host request on its way. Must be driven to [`Step::Complete`]; dropping it before panics.
#[derive(Debug)]
pub struct Request {}

impl Request {
    /// What to do next. Never blocks.
    ///
    /// # Panics
    /// While an [`Io`] of it is outstanding, after it completed, or with another queue than the one it began on.
    pub fn advance(&mut self, _queue: &mut Queue) -> Step {
        todo!()
    }

    /// The [`Io`] that `advance` returned has ended.
    ///
    /// # Panics
    /// When none was outstanding, or `Save` comes back with another length.
    pub fn io_done(&mut self, _queue: &mut Queue, _result: IoResult<'_>) {
        todo!()
    }

    /// Forgets it as a power cut would: for simulated crashes.
    #[cfg(any(test, feature = "mutations"))]
    pub fn crash(self) {
        todo!()
    }
}
