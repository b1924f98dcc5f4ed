//! Hosts whose last word was that they owe nothing: all that they had published was published then.
//!
//! † Published in the store that was open then. What is opened later may be an older copy of it, which has not all of that.

use std::collections::BTreeMap;

use farside_region::{LedgerPosition, Name};
use farside_store::GroupStore;

#[derive(Debug, Default)]
pub(super) struct LastWords(BTreeMap<Name, Word>);

#[derive(Clone, Copy, Debug)]
struct Word {
    /// The head when it was said; `None`: nothing had been published.
    at: Option<LedgerPosition>,
    /// The ledger that is open went through it.
    holds: bool,
}

impl LastWords {
    /// A host left for good. Nothing is made of it where the ledger cannot be read up to its end: nobody could tell later whether all is there.
    pub(super) fn heard(&mut self, host: Name, store: &GroupStore) {
        if store.torn().is_none() {
            self.0.insert(host, Word { at: store.state().position(), holds: true });
        }
    }

    /// It is back, and may owe something.
    pub(super) fn is_back(&mut self, host: &Name) {
        self.0.remove(host);
    }

    /// A store was opened. What does not hold there is not forgotten: the one that it was said of may be put back.
    pub(super) fn opens(&mut self, store: &GroupStore) {
        for word in self.0.values_mut() {
            // † What cannot be told now is no promise.
            word.holds = word.at.is_none_or(|at| store.went_through(&at).unwrap_or(false));
        }
    }

    /// Whether a host owes nothing, as far as it said.
    pub(super) fn hold_of(&self, host: &Name) -> bool {
        self.0.get(host).is_some_and(|word| word.holds)
    }
}
