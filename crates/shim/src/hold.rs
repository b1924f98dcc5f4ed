//! The hold: no write of a group begins for a moment, while groups of several hosts are cut as one.
//!
//! ```text
//! open ──hold(n)──► held by n ──let_go(n), by whoever comes first──► open
//! ```
//!
//! Invariant: whoever hears `true` from [`Group::let_go`] knows that no write of the group began between [`Group::hold`] and that
//! call. So a cut that was switched in between is one moment together with every other cut of which the same is true, and whose hold
//! was there before any of them switched: if a write of one host completed before a write of another was issued, no such cuts hold the
//! second without the first.
//!
//! Why: let A be in the new epoch of its group. A's writer read that epoch after the switch, which came after *every* hold began.
//! B was issued after A completed, so B's writer looks at its gate after B's hold began, and finds it closed. B goes on after its own
//! group was switched, or after the hold ran out, which is heard. No order between the clocks of hosts is needed.
//!
//! It is let go by whoever switches, or by a timer that does nothing else: no host write waits for anybody's answer (L1). Reads and
//! flushes are not held.

use crate::sync::{AtomicU64, Ordering};
use crate::{Group, Volume};

/// One hold of a group; a number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HoldId(u64);

/// What writes look at before they begin.
#[derive(Debug)]
pub(crate) struct Gate {
    /// 0, or the hold that closed it.
    held: AtomicU64,
    last: AtomicU64,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { held: AtomicU64::new(0), last: AtomicU64::new(0) }
    }
}

impl Group {
    /// From here on no write of the group begins, until [`Group::let_go`]. `None`: it is held already.
    pub fn hold(&self) -> Option<HoldId> {
        let id = self.gate.last.fetch_add(1, Ordering::Relaxed) + 1;
        let closed = self.gate.held.compare_exchange(0, id, Ordering::AcqRel, Ordering::Acquire);
        closed.is_ok().then_some(HoldId(id))
    }

    /// Ends a hold. Whether it lasted until now: `false` if it was ended before, so that writes may have begun.
    pub fn let_go(&self, hold: HoldId) -> bool {
        let ended = self.gate.held.compare_exchange(hold.0, 0, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if ended {
            self.volumes().iter().for_each(|volume| volume.ring_all());
        }
        ended
    }

    /// Whether no write of the group may begin now.
    #[inline]
    pub fn is_held(&self) -> bool {
        self.gate.held.load(Ordering::Acquire) != 0
    }
}

impl Volume {
    /// Whether a write may not begin now.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.group.is_held() && !crate::mutation::mutated!(self, PastTheHold)
    }
}
