//! Fetches that clients wait for, or may soon.
//!
//! Invariant: of a region one at a time is under way, and what becomes of it, a failure too, is shared by all who came for it before its end.
//!
//! They fetch nothing themselves ([`crate::View`]), and do not decide who waits ([`crate::ViewQueue`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use farside_region::RegionIndex;

use crate::Region;

/// `None`: it failed, and why was said.
type Fetched = Option<Arc<Region>>;

/// One that is to come, under way, or over.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    region: RegionIndex,
    fetched: Arc<OnceLock<Fetched>>,
}

impl Fetch {
    pub(crate) fn region(&self) -> RegionIndex {
        self.region
    }

    pub(crate) fn is_over(&self) -> bool {
        self.fetched.get().is_some()
    }
}

/// Those that are not over.
#[derive(Debug, Default)]
pub(crate) struct Fetches(Mutex<HashMap<RegionIndex, Arc<OnceLock<Fetched>>>>);

impl Fetches {
    /// The one of a region.
    pub(crate) fn of(&self, region: RegionIndex) -> Fetch {
        Fetch { region, fetched: self.all().entry(region).or_default().clone() }
    }

    /// Waits for the end of one, and carries it out if nobody else does.
    pub(crate) fn join(&self, fetch: &Fetch, carry_out: impl FnOnce() -> Fetched) -> Fetched {
        let fetched = fetch.fetched.get_or_init(|| {
            let fetched = carry_out();
            self.all().remove(&fetch.region); // whoever comes now finds it in the cache, or tries anew
            fetched
        });
        fetched.clone()
    }

    /// How many have come for a region.
    #[cfg(test)]
    pub(crate) fn waiting_for(&self, region: RegionIndex) -> usize {
        self.all().get(&region).map_or(0, |fetched| Arc::strong_count(fetched) - 1)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<RegionIndex, Arc<OnceLock<Fetched>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
