//! A group that somebody reads again and again over days, and who holds off nothing in between.
//!
//! A reader of a directory shares `reader.lock` as long as it lives, and one of a bucket has a lease for each point that it has open: whoever waits
//! for the next point must have neither, or nothing would ever be deleted. So he lets the group rest, and *wakes* it: he takes the lock, and only
//! then looks at what came into the ledger since.
//!
//! Invariant: † who reads goes by a ledger that was looked at after the lock was taken, as whoever opens the store does. What rests cannot be read
//! from; what could not be woken is gone, and is opened anew.
//!
//! A look costs one request where nothing came: for the record after the newest. What that does not show (a record that was lost, given up, or
//! replaced) is found by a *thorough* one, which begins anew from the newest checkpoint; whoever waits does that now and then. So is whatever a
//! checkpoint covers that came meanwhile, which also bounds what is in memory.

use std::sync::Arc;

use farside_region::mutation;

use crate::backend::Backend;
use crate::error::{Result, StoreError};
use crate::head;
use crate::image::GroupImage;
use crate::keys::Unlocking;
use crate::locks::{ReaderLock, Readers};
use crate::names::GroupNames;
use crate::reader::GroupReader;
use crate::replay::{Torn, replay};
use crate::segments::Segments;
use crate::store::read_store_description;

/// The mistake of taking the lock last.
const LOOKED_FIRST: &str = "L4 who waits for a point looks at the ledger before he keeps what it names";

/// One group of a store, replayed, of which nothing is kept from being deleted.
#[derive(Debug)]
pub struct RestingGroup {
    pub(crate) store: [u8; 16],
    pub(crate) readers: Readers,
    pub(crate) segments: Arc<Segments>,
    pub(crate) image: GroupImage,
    pub(crate) torn: Option<Torn>,
    pub(crate) unlocking: Unlocking,
}

impl RestingGroup {
    /// Source and group.
    pub fn names(&self) -> &GroupNames {
        &self.segments.names
    }

    /// The group as it is now. `thorough`: from the newest checkpoint on, and not from where it rested.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], also where another store is there now; what the file system or the service says.
    pub fn wake(self, thorough: bool) -> Result<GroupReader> {
        let Self { store, readers, segments, image, torn, unlocking } = self;
        let (backend, group): (&dyn Backend, _) = (&*segments.backend, image.state().group());
        let names = &segments.names;
        // † Where a directory is not mounted any more, every record is missing, and nothing is new. (A service that is away says so.)
        let is_silent = matches!(readers, Readers::Locked(_));
        if (is_silent || thorough) && read_store_description(backend)? != store {
            return Err(StoreError::NotAStore { path: backend.place().into() });
        }
        let mut lock = readers.share()?;
        if mutation::on(LOOKED_FIRST) {
            lock = ReaderLock::none();
        }
        let gone_on = match thorough || torn.is_some() {
            _ if mutation::on("a cascade wakes by what it knew") => Some(image),
            true => None,
            false => head::go_on(backend, names, group, image)?,
        };
        let (image, torn) = match (gone_on, &readers) {
            (Some(image), _) => (image, None),
            (None, Readers::Locked(_)) => {
                let replayed = replay(backend, names, group, |_| {})?;
                (replayed.image, replayed.torn)
            }
            (None, Readers::Leased | Readers::None) => {
                let replayed = head::replay(backend, names, group)?;
                (replayed.image, replayed.torn)
            }
        };
        if mutation::on(LOOKED_FIRST) {
            lock = readers.share()?;
        }
        Ok(GroupReader::awake(Self { store, readers, segments, image, torn, unlocking }, lock))
    }
}

#[cfg(test)]
#[path = "resting_tests.rs"]
mod tests;
