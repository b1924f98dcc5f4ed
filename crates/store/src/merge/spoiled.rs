//! Whether parts of merges that were met damaged are sound again: somebody may have put their objects back, or a disk may have come to its
//! senses.
//!
//! Invariant: sound is what was read from the medium in full, where each frame has its digests. Who cannot tell says nothing.

use std::collections::BTreeMap;
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
    /// With how often each had been met.
    pub(crate) parts: Vec<(Part, VolumeMeta, u64)>,
}

/// Those that are sound, and how often each had been met damaged before that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SoundParts(pub(crate) BTreeMap<PartName, u64>);

impl SoundParts {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl SpoiledLook {
    /// Reads them; says which are as they were published. `goes_on` hears how many bytes were read since it was asked last, and may take its
    /// time; where it says no, that is all. One that cannot be looked at keeps no other.
    pub fn sound(&self, goes_on: &dyn Fn(u64) -> bool) -> SoundParts {
        let mut sound = SoundParts::default();
        for (part, volume, met) in &self.parts {
            match self.is_sound(part, volume, goes_on) {
                Ok(true) => {
                    sound.0.insert(part.name, *met);
                }
                Ok(false) => {}
                Err(StoreError::Stopped) => break,
                Err(error) => tracing::warn!(part = %part.name, %error, "a part that is damaged could not be read again"),
            }
        }
        sound
    }

    fn is_sound(&self, part: &Part, volume: &VolumeMeta, goes_on: &dyn Fn(u64) -> bool) -> Result<bool> {
        match block_on(self.segments.backend.drop_cached(&self.segments.locate(&volume.name, part).object)) {
            Err(StoreError::Unreadable { .. }) => return Ok(false),
            other => other?,
        }
        // What memory has of it is older than what is looked at.
        self.segments.forget(&part.name);
        let footer = match self.segments.footer_as_it_is(&volume.name, part) {
            Ok(footer) => footer,
            Err(FooterFault::Damaged(_)) => return Ok(false),
            Err(FooterFault::Store(error)) => return Err(error),
        };
        for frame in footer.frames().iter().filter(|frame| frame.kind == RunKind::Data) {
            if self.segments.fault_of(volume, part, &footer, frame)?.is_some() {
                return Ok(false);
            }
            if !goes_on(u64::from(frame.stored_bytes)) {
                return Err(StoreError::Stopped);
            }
        }
        Ok(true)
    }
}
