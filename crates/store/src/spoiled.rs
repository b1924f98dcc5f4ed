//! Which parts of merges were met damaged, between whoever reads and whoever deletes.
//!
//! Invariant: what was met is heard by who deletes before he deletes anything, also of a reader that outlives the opened group.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::liveness::PartName;

/// Parts that merges wrote and that were met damaged, and nobody has heard of yet. Of one group; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct SpoiledParts(Arc<Mutex<BTreeSet<PartName>>>);

impl SpoiledParts {
    /// These were met damaged. Of others than a merge's it does not matter: nothing else is of what they hold.
    pub fn add(&self, parts: impl IntoIterator<Item = PartName>) {
        self.lock().extend(parts.into_iter().filter(|part| part.layer.merge().is_some()));
    }

    /// Takes them out.
    pub fn take(&self) -> BTreeSet<PartName> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PartName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What whoever opens a group knows of its damage, before anything of it is swept.
#[derive(Clone, Debug, Default)]
pub struct KnownDamage {
    /// Where readers tell what they meet.
    pub met: SpoiledParts,
    /// Parts that merges wrote and that are damaged, as of [`GroupStore::spoiled`](crate::GroupStore::spoiled).
    pub spoiled: BTreeSet<PartName>,
    /// That is not known any more: any of them may be.
    pub may_be_any: bool,
}
