//! Reading a frozen epoch, for the sender.

use farside_region::{EpochId, GranuleRun, GranuleSet, RegionIndex};

use crate::{Volume, sync::Arc};

/// What the sender does next.
#[derive(Debug)]
pub enum Next {
    /// Read this run (asking for holes only now, T9), then [`FrozenReader::read_done`]. Several may be outstanding.
    Read(GranuleRun),
    /// Content that was saved before it was overwritten.
    Held(HeldRun),
    /// Nothing now; wait for [`crate::Wakes::sender`], or for an outstanding read to come back.
    Wait,
    /// Nothing left (below the limit).
    End,
}

/// A run out of the side buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRun {
    /// Which granules.
    pub run: GranuleRun,
    /// Their content; `None` = could not be read when it was to be saved: an `unreadable` run.
    pub data: Option<Vec<u8>>,
}

/// What to do with a run that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// It is the epoch's content: use it.
    Accept,
    /// The cut was demoted meanwhile: throw it away; `next` will ask for it again.
    Reread,
}

/// Hands out a frozen epoch's granules of one volume, each exactly once: mostly ascending, claimed ones later.
#[derive(Debug)]
pub struct FrozenReader {}

impl FrozenReader {
    /// A reader of `todo`, which belongs to the epoch: under claims while the volume's cut of that epoch lasts, otherwise as a
    /// pass (also to read again after a reset, T1).
    pub fn new(_volume: Arc<Volume>, _epoch: EpochId, _todo: GranuleSet) -> Self {
        todo!()
    }

    /// The next run below region `until`. A run never crosses a region.
    pub fn next(&mut self, _until: RegionIndex) -> Next {
        todo!()
    }

    /// A run came back from the device, with content or unreadable.
    ///
    /// # Panics
    /// When it is not outstanding.
    pub fn read_done(&mut self, _run: GranuleRun) -> ReadVerdict {
        todo!()
    }

    /// What was not accepted yet, outstanding reads included.
    pub fn todo(&self) -> &GranuleSet {
        todo!()
    }
}
