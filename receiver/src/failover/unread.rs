//! What a source may do while the note of its group's failover cannot be read.
//!
//! Invariant: † whether that failover is for good (`farside commit`) only the note says, and the ledger does not: until it can be read, the source takes
//! no history back, and begins no volume beside a failover. What was its history all along it goes on with.

use farside_ledger::{Claim, State};
use farside_region::Generation;
use farside_store::GroupNames;

use super::Failovers;
use crate::state_dir::StateDir;

impl Failovers {
    /// Why a source does not take its history back by that claim, in words, if the failover's note is in the way.
    pub(crate) fn why_nothing_is_taken_back(
        &self,
        state_dir: &StateDir,
        names: &GroupNames,
        state: &State,
        claim: &Claim,
    ) -> Option<String> {
        // A group without volumes has nothing that could have been failed over.
        let takes_back = claim.volume.generation > state.highest_generation() && state.volumes().next().is_some();
        let words = self.why_broken(state_dir, names).filter(|_| takes_back)?;
        Some(format!(
            "the history of {names} is not taken back: its failover may be one that was committed, and the note of that cannot be read: {words}; on the gateway: put \
             that file back from a copy and restart farside-receiver; if it is damaged, there is no copy, and it was not committed, move the file aside and \
             restart farside-receiver"
        ))
    }

    /// Whether there may be a failover whose note cannot be read: the first one claims the second generation.
    pub(crate) fn may_stand_unread(&self, state_dir: &StateDir, names: &GroupNames, state: &State) -> bool {
        state.highest_generation() > Generation(1) && self.why_broken(state_dir, names).is_some()
    }
}
