//! What replay forgets, so that the state of a ledger that goes on for years stays as large as what is retained.
//!
//! Every [`Memory::every`] slots the state is gone through, whatever the record in the last of them was:
//! - a layer is forgotten once all its parts are given up and none of them [lately](State::given_up_lately), it is in no retained point, and
//!   [`Memory::layers`] newer ones of its volume came in. What is left of all of them is where the newest was and between which regions they
//!   lie ([`Forgotten`]);
//! - a merge, and that there will be none of an id, once its id is so old that no record may name it any more ([`Memory::slots`]). Of one that
//!   was accepted also: all that it wrote is given up as above, and its point is gone;
//! - the digest of a record that is [`Memory::slots`] behind, unless a layer or merge that is known came in there, or the volume's claim, or its
//!   newest heartbeat, or it is one of the newest points that were verified: what the positions of sources that are away name, records that are asked for
//!   what they touched, and what is shown.
//!
//! Why nothing is missed:
//! - What is judged by layers is judged by the newest ones (claims, heartbeats, what comes next), by those of parts that are left (prunes, merges), or by
//!   those above somebody's position: there, what was forgotten counts as having touched everything between its first and last region, in the newest one's term.
//! - A layer under a key that was forgotten is never new ([`State::judge`]: its number lies below the last accepted one's). Whether it is the same cannot
//!   be told any more, so such a record is void, and nobody hears that it is published.
//! - A position that is not known any more is not one of another history: whoever must tell asks the records themselves ([`State::remembers`]).

use std::collections::BTreeSet;
use std::ops::Range;

use farside_region::{LayerKey, LedgerPosition, RegionIndex, RegionRange, RegionSet, Slot, Term, VolumeId};
use serde::{Deserialize, Serialize};

use crate::state::{LayerFact, State, VolumeState};

/// How much of what is over replay remembers. Part of the format of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Every so many slots it is gone through; a checkpoint's slots are a multiple, or the other way round.
    pub every: u64,
    /// The newest so many layers of every volume are known, whatever became of them.
    pub layers: usize,
    /// So many slots back every record's digest is known, and a merge may be named so many slots after it began.
    pub slots: u64,
}

/// What every program remembers. A source has far fewer layers under way than are known, and a merge takes hours.
const MEMORY: Memory = Memory { every: 4096, layers: 8192, slots: 1 << 18 };

impl Memory {
    /// What this program remembers.
    #[cfg(not(any(test, feature = "mutations")))]
    #[inline(always)]
    pub fn get() -> Self {
        MEMORY
    }
}

#[cfg(any(test, feature = "mutations"))]
mod short {
    use std::cell::Cell;

    use super::{MEMORY, Memory};

    thread_local! {
        static HERE: Cell<Memory> = const { Cell::new(MEMORY) };
    }

    impl Memory {
        /// What this thread remembers.
        pub fn get() -> Self {
            HERE.get()
        }

        /// From now on this thread remembers so much (`None`: what every program does): short histories of tests are long then.
        pub fn set(memory: Option<Self>) {
            HERE.set(memory.unwrap_or(MEMORY));
        }
    }
}

/// What is left of the layers of a volume that were forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The slot of the newest.
    pub slot: Slot,
    /// Its term.
    pub term: Term,
    /// The first and the last region that any of them touched; `None`: they were empty.
    pub touched: Option<(RegionIndex, RegionIndex)>,
}

impl Forgotten {
    /// All regions from the first to the last.
    pub fn regions(&self) -> RegionSet {
        let mut regions = RegionSet::new();
        if let Some((first, last)) = self.touched {
            regions.insert_range(RegionRange { start: first, count: last.0 - first.0 + 1 });
        }
        regions
    }

    /// With one more.
    fn with(before: Option<Self>, layer: &LayerFact) -> Self {
        let mut ranges = layer.touched().ranges();
        let first = ranges.next();
        let last = ranges.last().or(first);
        let here = first.zip(last).map(|(first, last)| (first.start, RegionIndex(last.start.0 + last.count - 1)));
        let before_touched = before.and_then(|before| before.touched);
        let touched = match (before_touched, here) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        let (slot, term) = match before {
            Some(before) if before.slot > layer.slot => (before.slot, before.term),
            _ => (layer.slot, layer.key.term),
        };
        Self { slot, term, touched }
    }
}

impl State {
    /// Whether the digest of the record in a slot up to the head is known: otherwise whether this ledger [went through](Self::holds) a position
    /// there only that record tells, or the one after it. True above the head: there is no such position.
    pub fn remembers(&self, slot: Slot) -> bool {
        slot >= self.next_slot() || self.digest_at(slot).is_some()
    }

    /// From which slot on every record's digest is known: of those before it single ones are.
    pub fn remembers_all_from(&self) -> Slot {
        Slot(self.digests_from)
    }

    /// Those before, ascending.
    pub fn remembers_singly(&self) -> impl Iterator<Item = Slot> + '_ {
        self.old_digests.keys().copied()
    }

    /// Whether this ledger went through a position, as far as is known; `None`: ask the record.
    pub fn held(&self, position: &LedgerPosition) -> Option<bool> {
        self.remembers(position.slot).then(|| self.holds(position))
    }

    /// The regions that layers of a volume above a slot touched, up to another slot; of old ones, and of those that were forgotten, wherever they came in,
    /// all between their first and their last.
    pub fn touched(&self, volume: VolumeId, above: Slot, until: Slot) -> RegionSet {
        let Some(known) = self.volume(volume) else { return RegionSet::new() };
        let mut touched = known.forgotten_above(Some(above)).map_or_else(RegionSet::new, |forgotten| forgotten.regions());
        for layer in known.layers_above(Some(above)).take_while(|layer| layer.slot <= until) {
            layer.touched().ranges().for_each(|range| touched.insert_range(range));
        }
        touched
    }

    /// Whether a key is that of a layer or merge that may have been published and forgotten.
    pub fn may_be_forgotten(&self, key: &LayerKey) -> bool {
        let Some(volume) = self.volume(key.volume) else { return false };
        match key.merge() {
            Some(merge) => is_too_old(merge.since(), self.next_slot()) && !volume.merges.contains_key(&merge),
            None => {
                let is_known = volume.layer(key.term, key.seq).is_some();
                !is_known && volume.forgotten().is_some_and(|forgotten| key.term <= forgotten.term)
            }
        }
    }

    /// A record came in: forgets what is over, if it is time.
    pub(crate) fn forget(&mut self) {
        let (memory, next) = (Memory::get(), self.next_slot());
        if !next.0.is_multiple_of(memory.every) {
            return;
        }
        let mut over: BTreeSet<LayerKey> = BTreeSet::new();
        for (id, volume) in self.volumes() {
            let old = volume.layers.values().rev().skip(memory.layers.max(1));
            let is_over =
                |layer: &&LayerFact| layer.pruned.len() == layer.part_count as usize && !self.points().contains_key(&layer.slot);
            over.extend(old.filter(is_over).map(|layer| layer.key));
            let merges = volume.merges.iter().filter(|(merge, fact)| {
                is_too_old(merge.since(), next)
                    && fact.pruned.len() == fact.part_count as usize
                    && !self.points().contains_key(&fact.point)
            });
            over.extend(merges.map(|(merge, _)| LayerKey::of_merge(id, *merge)));
        }
        if !over.is_empty() {
            let lately = self.given_up.iter().flat_map(|given_up| &given_up.parts);
            lately.for_each(|pruned| _ = over.remove(&pruned.layer));
        }
        let loose: Vec<Slot> = over.iter().filter_map(|key| self.forget_one(key)).collect();
        if !loose.is_empty() {
            let merges = self.volumes().flat_map(|(_, volume)| volume.merges.values()).map(|merge| merge.slot);
            let others: BTreeSet<Slot> = merges.chain(self.proved()).collect();
            let is_named = |slot: &Slot| others.contains(slot) || self.volumes.values().any(|volume| volume.names(*slot));
            let nameless: Vec<Slot> = loose.into_iter().filter(|slot| !is_named(slot)).collect();
            nameless.iter().for_each(|slot| _ = self.old_digests.remove(slot));
        }
        for volume in self.volumes.values_mut() {
            volume.decreed.retain(|merge| !is_too_old(merge.since(), next));
        }
        self.forget_digests(Slot(next.0.saturating_sub(memory.slots)));
    }

    /// The newest points that were verified: they are told of by their digests, retained or not.
    fn proved(&self) -> impl Iterator<Item = Slot> + '_ {
        self.last_proofs().iter().map(|(_, proof)| proof.point)
    }

    /// Says in which slot its record is.
    fn forget_one(&mut self, key: &LayerKey) -> Option<Slot> {
        let exact_from = self.exact_from;
        let volume = self.volumes.get_mut(&key.volume)?;
        if let Some(merge) = key.merge() {
            return volume.merges.remove(&merge).map(|fact| fact.slot);
        }
        let layer = volume.forget_layer(key)?;
        if layer.slot >= exact_from {
            self.touched_bytes = self.touched_bytes.saturating_sub(layer.touched().held_bytes());
        }
        Some(layer.slot)
    }

    /// Forgets the digests of records below a slot that nothing names which is known.
    fn forget_digests(&mut self, below: Slot) {
        let from = Slot(self.digests_from);
        let Some(count) = below.0.checked_sub(from.0).filter(|count| *count > 0) else { return };
        let mut named: BTreeSet<Slot> = self.proved().filter(|slot| (from..below).contains(slot)).collect();
        for volume in self.volumes.values() {
            named.extend(volume.named_in(from..below));
        }
        let kept: Vec<_> = named.into_iter().filter_map(|slot| Some((slot, self.digest_at(slot)?))).collect();
        self.old_digests.extend(kept);
        self.digests.forget_first(usize::try_from(count).unwrap_or(usize::MAX));
        self.digests_from = below.0;
    }
}

/// Whether no record may name a merge any more that began then.
pub(crate) fn is_too_old(since: Slot, slot: Slot) -> bool {
    since.0.saturating_add(Memory::get().slots) <= slot.0
}

impl VolumeState {
    /// What is left of layers that were forgotten, if any was.
    pub fn forgotten(&self) -> Option<&Forgotten> {
        self.forgotten.as_ref()
    }

    /// The same, if one of them was above a slot (`None`: any).
    pub fn forgotten_above(&self, above: Option<Slot>) -> Option<&Forgotten> {
        self.forgotten().filter(|forgotten| above.is_none_or(|above| forgotten.slot > above))
    }

    fn forget_layer(&mut self, key: &LayerKey) -> Option<LayerFact> {
        let slot = self.slots.remove(&(key.term, key.seq))?;
        let layer = self.layers.remove(&slot)?;
        self.forgotten = Some(Forgotten::with(self.forgotten, &layer));
        Some(layer)
    }

    /// Those of these slots in which a layer, a merge, its claim or its heartbeat came in.
    fn named_in(&self, slots: Range<Slot>) -> impl Iterator<Item = Slot> + '_ {
        let layers = self.layers.range(slots.clone()).map(|(slot, _)| *slot);
        let others = self.merges.values().map(|merge| merge.slot).chain([Slot(self.term.0)]);
        layers.chain(others.chain(self.quiet.map(|(slot, _)| slot)).filter(move |slot| slots.contains(slot)))
    }

    /// Whether one of them is that one, but for merges.
    fn names(&self, slot: Slot) -> bool {
        self.layers.contains_key(&slot) || self.term.0 == slot.0 || self.quiet.is_some_and(|(quiet, _)| quiet == slot)
    }
}
