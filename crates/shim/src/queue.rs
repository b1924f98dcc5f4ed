//! The queue thread's side of a volume.

use farside_region::ByteExtent;
use thiserror::Error;

use crate::sync::{Arc, AtomicU64, Ordering};
use crate::{Op, Request, Volume};

/// A client connection: which flush failures it has been told about (T14).
#[derive(Debug)]
pub struct Connection {
    told: AtomicU64,
}

impl Connection {
    pub(crate) fn new(told: u64) -> Self {
        Self { told: AtomicU64::new(told) }
    }

    /// How many flushes have failed, if that is more than this connection knows of; now it knows.
    pub(crate) fn learn(&self, volume: &Volume) -> Option<u64> {
        let failures = volume.flush_failures();
        let new = self.told.swap(failures, Ordering::AcqRel) < failures;
        if new {
            volume.flush_failures_reported.fetch_max(failures, Ordering::AcqRel);
        }
        new.then_some(failures)
    }
}

/// Why a request cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StartError {
    /// It reaches beyond the end of the volume.
    #[error("the request goes beyond the end of the volume")]
    OutOfRange,
}

/// One queue of a volume; owned by the thread that drives its requests.
#[derive(Debug)]
pub struct Queue {
    pub(crate) volume: Arc<Volume>,
    pub(crate) slot: usize,
    /// Free entries of the in-flight table; the lowest are used first, so that scans stay short.
    free: Vec<u16>,
}

impl Queue {
    pub(crate) fn new(volume: Arc<Volume>, slot: usize) -> Self {
        let free = (0..volume.limits.in_flight_per_queue as u16).rev().collect();
        Self { volume, slot, free }
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Takes a request in. It must be driven to [`crate::Step::Complete`].
    ///
    /// # Errors
    /// When it goes beyond the volume. An empty extent is a request that completes at once.
    pub fn start(&mut self, op: Op) -> Result<Request, StartError> {
        if let Some(ByteExtent { offset, len }) = op.extent()
            && offset.0.checked_add(len).is_none_or(|end| end > self.volume.geometry.volume_bytes())
        {
            return Err(StartError::OutOfRange);
        }
        Ok(Request::new(op, self.slot, &self.volume))
    }

    pub(crate) fn take_entry(&mut self) -> Option<u16> {
        self.free.pop()
    }

    pub(crate) fn give_entry(&mut self, entry: u16) {
        self.free.push(entry);
    }
}
