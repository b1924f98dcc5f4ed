//! Whether parts of merges that were met damaged are sound again: somebody may have put their objects back, or a disk may have come to its
//! senses.
//!
//! Invariant: sound is what was read from the medium in full, where each frame has its digests. Who cannot tell says nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use farside_layer::RunKind;
use farside_ledger::VolumeMeta;

use crate::backend::block_on;
use crate::error::{Result, StoreError};
use crate::liveness::{Part, PartName};
use crate::segments::{FooterFault, Segments};

/// Parts of merges that were met damaged, to be read once more beside everything else.
#[derive(Debug)]
pub struct SpoiledLook {
    pub(crate) segments: Arc<Segments>,
    pub(crate) parts: Vec<(Part, VolumeMeta)>,
}

impl SpoiledLook {
    /// Reads them; says which are as they were published. `goes_on` hears how many bytes were read since it was asked last, and may take its
    /// time.
    ///
    /// # Errors
    /// [`StoreError::Stopped`] when `goes_on` says no; what the store says.
    pub fn sound(&self, goes_on: &dyn Fn(u64) -> bool) -> Result<BTreeSet<PartName>> {
        let mut sound = BTreeSet::new();
        for (part, volume) in &self.parts {
            if self.is_sound(part, volume, goes_on)? {
                sound.insert(part.name);
            }
        }
        Ok(sound)
    }

    fn is_sound(&self, part: &Part, volume: &VolumeMeta, goes_on: &dyn Fn(u64) -> bool) -> Result<bool> {
        block_on(self.segments.backend.drop_cached(&self.segments.locate(&volume.name, part).object))?;
        // What memory has of it is older than what is looked at.
        self.segments.forget(&part.name);
        let footer = match self.segments.footer(&volume.name, part) {
            Ok(footer) => footer,
            Err(FooterFault::Damaged(_)) => return Ok(false),
            Err(FooterFault::Store(error)) => return Err(error),
        };
        for frame in footer.frames().iter().filter(|frame| frame.kind == RunKind::Data) {
            if self.segments.check_frame(volume, part, frame.offset)?.is_some() {
                return Ok(false);
            }
            if !goes_on(u64::from(frame.stored_bytes)) {
                return Err(StoreError::Stopped);
            }
        }
        Ok(true)
    }
}
