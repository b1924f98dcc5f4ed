//! The queue thread's side of a volume.

use thiserror::Error;

use crate::{Op, Request, Volume, sync::Arc};

/// A client connection: which flush failures it has been told about (T14).
#[derive(Debug)]
pub struct Connection {}

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
pub struct Queue {}

impl Queue {
    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        todo!()
    }

    /// Takes a request in. It must be driven to [`crate::Step::Complete`].
    ///
    /// # Errors
    /// When it goes beyond the volume. An empty extent is a request that completes at once.
    pub fn start(&mut self, _op: Op) -> Result<Request, StartError> {
        todo!()
    }
}
