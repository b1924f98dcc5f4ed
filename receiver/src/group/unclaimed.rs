//! Volumes that nobody publishes though somebody is connected for their group: their source does not make their claim, since it was refused,
//! or refuses to go on itself.
//!
//! Why is for the source to say, but for one thing, which it asks: whether the ledger has what it saw published (L6).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use farside_region::VolumeId;
use farside_replication::target::SessionId;
use farside_wire::LedgerSlice;

/// So long a source may take for its claims before it is worth a word: they wait for a switch, for a key, for what is published before them.
const CLAIMED_WITHIN: Duration = Duration::from_secs(30);

/// What is known of them.
#[derive(Debug, Default)]
pub(crate) struct Unclaimed {
    /// Since when.
    since: BTreeMap<VolumeId, Instant>,
    /// Those whose source saw more published than there is.
    rewound: BTreeMap<VolumeId, SessionId>,
}

impl Unclaimed {
    /// A source was told what the ledger has of a volume.
    pub(super) fn answered(&mut self, session: SessionId, slice: &LedgerSlice) {
        match slice.ancestor {
            true => drop(self.rewound.remove(&slice.volume)),
            false => drop(self.rewound.insert(slice.volume, session)),
        }
    }

    /// Nobody holds these now.
    pub(super) fn look(&mut self, free: BTreeSet<VolumeId>, stands: impl Fn(&SessionId) -> bool, any_stands: bool, now: Instant) {
        self.rewound.retain(|id, session| free.contains(id) && stands(session));
        self.since.retain(|id, _| any_stands && free.contains(id));
        for id in free.into_iter().filter(|_| any_stands) {
            self.since.entry(id).or_insert(now);
        }
    }

    /// Those whose source saw more published than there is.
    pub(crate) fn rewound(&self) -> impl Iterator<Item = VolumeId> {
        self.rewound.keys().copied()
    }

    /// The others, if it takes long.
    pub(crate) fn late(&self, now: Instant) -> impl Iterator<Item = VolumeId> {
        let is_late = move |since: &Instant| now.saturating_duration_since(*since) >= CLAIMED_WITHIN;
        self.since.iter().filter(move |(id, since)| is_late(since) && !self.rewound.contains_key(id)).map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(volume: VolumeId, ancestor: bool) -> LedgerSlice {
        let (layers, head, current) = (Vec::new(), None, None);
        LedgerSlice { id: farside_wire::RequestId(1), volume, ancestor, layers, more: false, head, current }
    }

    #[test]
    fn a_claim_that_is_not_made_is_said_when_it_takes_long_and_a_rewound_store_at_once() {
        let (a, b) = (VolumeId([1; 16]), VolumeId([2; 16]));
        let (session, now) = (SessionId(1), Instant::now());
        let later = now + CLAIMED_WITHIN;
        let stands = |asked: &SessionId| *asked == session;
        let mut unclaimed = Unclaimed::default();
        unclaimed.look(BTreeSet::from([a, b]), stands, true, now);
        unclaimed.answered(session, &slice(b, false));
        assert_eq!(unclaimed.late(now).count(), 0, "it has just come");
        assert_eq!(unclaimed.rewound().collect::<Vec<_>>(), [b]);
        assert_eq!(unclaimed.late(later).collect::<Vec<_>>(), [a], "the other was said already");
        // The newer store is back, and the claim of the other is made.
        unclaimed.answered(session, &slice(b, true));
        unclaimed.look(BTreeSet::from([b]), stands, true, later);
        assert_eq!((unclaimed.rewound().count(), unclaimed.late(later).collect::<Vec<_>>()), (0, vec![b]));
        // Nobody is connected: that is said instead.
        unclaimed.answered(session, &slice(b, false));
        unclaimed.look(BTreeSet::from([a, b]), |_| false, false, later);
        assert_eq!((unclaimed.rewound().count(), unclaimed.late(later).count()), (0, 0));
        unclaimed.look(BTreeSet::from([a, b]), stands, true, later);
        assert_eq!(unclaimed.late(later).count(), 0, "whoever comes again has as long");
    }
}
