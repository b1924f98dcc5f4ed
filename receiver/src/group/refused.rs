//! Whose an error of the store is: that of the whole store, which is given up and opened again for all, or that of this group, which
//! alone waits then.
//!
//! Invariant: what is in the way of one group alone, for however long, has the store given up once in [`DENIED_AGAIN`] at most. † Every group
//! loses its connections with the store, and a source that could not come back cannot be told from one that is gone.

use std::time::{Duration, Instant};

use farside_store::{Store, StoreError};

use super::{Group, Place};
use crate::vault::Generation;

/// How long the store is not opened again, with credentials that may be other ones, for what is refused of one group in spite of that.
const DENIED_AGAIN: Duration = Duration::from_secs(300);

/// That the service refuses something of this group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Denied {
    /// The opening of the store that was given up for it.
    given_up: Generation,
    /// The newest in which it was refused.
    last: Generation,
    /// Since when it was refused in that one.
    since: Instant,
}

impl Denied {
    /// Refused with the store of `generation`. Says whether it is refused in spite of credentials that were read anew: it is about this group's
    /// objects then.
    fn is_again(known: &mut Option<Self>, generation: Generation, now: Instant) -> bool {
        let first = Self { given_up: generation, last: generation, since: now };
        let Some(denied) = known.as_mut().filter(|denied| denied.given_up != generation) else {
            known.get_or_insert(first);
            return false;
        };
        // Whoever had it opened again: the credentials are as new.
        if denied.last != generation {
            (denied.last, denied.since) = (generation, now);
        }
        let is_again = now.saturating_duration_since(denied.since) < DENIED_AGAIN;
        if !is_again {
            *denied = first;
        }
        is_again
    }
}

impl Group {
    /// Tells the vault; if the store is given up, the group leaves it with the next tick at the latest. What only this group
    /// cannot write, or is not sure of, makes only this group leave.
    pub(super) fn store_error(&mut self, error: &StoreError) {
        let Place::Here(here) = &self.place else { return };
        let generation = here.generation;
        if self.is_of_this_group(generation, error) {
            self.unwritable = Some(error.to_string());
        } else {
            self.receiver.vault.failed(generation, error);
        }
    }

    /// The same of a group that could not be opened: it is away, and stays so.
    pub(super) fn not_opened(&mut self, store: &Store, generation: Generation, error: &StoreError) {
        // What is in memory of it is gone with the attempt: if the store is well, opening that anew would bring nothing.
        let is_io = matches!(error, StoreError::Io { .. });
        let is_well = self.is_of_this_group(generation, error) || is_io && store.look().is_ok();
        if !is_well {
            self.receiver.vault.failed(generation, error);
        }
    }

    /// Whether an error met with the store of `generation` says nothing of what others have there.
    fn is_of_this_group(&mut self, generation: Generation, error: &StoreError) -> bool {
        match error {
            StoreError::ReadOnly { .. }
            | StoreError::Denied { .. }
            | StoreError::Uncertain { .. }
            | StoreError::BehindCheckpoint { .. } => true,
            StoreError::RemoteDenied { .. } => Denied::is_again(&mut self.denied, generation, Instant::now()),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_refused_has_the_store_given_up_once_in_a_while_whoever_had_it_opened() {
        let (mut denied, start) = (None, Instant::now());
        let mut again = |generation, seconds| Denied::is_again(&mut denied, generation, start + Duration::from_secs(seconds));
        assert!(!again(1, 0), "with other credentials, perhaps");
        assert!(!again(1, 1), "it is being given up");
        assert!(again(2, 2) && again(2, 301));
        assert!(!again(2, 302), "other credentials may be there by now");
        assert!(again(3, 303) && again(3, 500));
        // Another group had the store opened again.
        assert!(again(4, 600) && again(4, 890));
        assert!(!again(4, 900));
    }
}
