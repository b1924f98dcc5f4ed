//! The object store in memory: a create-only ledger whose PUTs may stall, and immutable segments.
//!
//! 1. A ledger PUT lands at any time after it was issued, or never when its writer died; the slot belongs to the first that
//!    lands, and a PUT that finds it taken changes nothing. The answer may be lost.
//!    A stalled one lands only after it woke.
//! 2. A segment exists from the moment it was linked until it is deleted. Nothing else happens to it.
//! 3. What is landing (not linked) survives a receiver's crash only as far as it was synced.

use std::collections::{BTreeMap, BTreeSet};

/// A ledger PUT in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PutId(pub u64);

/// How a PUT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutResult {
    /// The slot is ours.
    Created,
    /// Somebody was there before.
    Exists,
}

/// See the head of the file. `K` names a segment.
#[derive(Debug)]
pub struct MemoryStore<K> {
    ledger: Vec<Vec<u8>>,
    segments: BTreeMap<K, Vec<u8>>,
    flight: Vec<(PutId, u64, Vec<Vec<u8>>)>,
    stalled: BTreeSet<PutId>,
    stall_next: bool,
    done: BTreeMap<PutId, PutResult>,
    next: u64,
    /// Slots below this one are covered by a checkpoint.
    covered: u64,
}

impl<K> Default for MemoryStore<K> {
    fn default() -> Self {
        Self {
            ledger: Vec::new(),
            segments: BTreeMap::new(),
            flight: Vec::new(),
            stalled: BTreeSet::new(),
            stall_next: false,
            done: BTreeMap::new(),
            next: 0,
            covered: 0,
        }
    }
}

impl<K: Ord + Clone> MemoryStore<K> {
    /// The next PUT stalls.
    pub fn stall_next(&mut self) {
        self.stall_next = true;
    }

    /// Issues a PUT of an object: the records of this slot and those after it.
    pub fn put(&mut self, slot: u64, records: Vec<Vec<u8>>) -> PutId {
        self.next += 1;
        let id = PutId(self.next);
        if std::mem::take(&mut self.stall_next) {
            self.stalled.insert(id);
        }
        self.flight.push((id, slot, records));
        id
    }

    /// PUTs that may land now.
    pub fn in_flight(&self) -> Vec<PutId> {
        self.flight.iter().map(|p| p.0).filter(|id| !self.stalled.contains(id)).collect()
    }

    /// Whether some PUT stalls.
    pub fn has_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// What stalled wakes.
    pub fn wake(&mut self) {
        self.stalled.clear();
    }

    /// Lets one land, all of it or nothing. Returns the slots that it created.
    ///
    /// # Panics
    /// When it is not in flight, or would leave a gap (a writer appends at the head it replayed to, so that is a bug).
    pub fn land(&mut self, id: PutId) -> std::ops::Range<u64> {
        let at = self.flight.iter().position(|p| p.0 == id).expect("the PUT is in flight");
        let (_, slot, records) = self.flight.swap_remove(at);
        let head = self.ledger.len() as u64;
        assert!(slot <= head, "a PUT at slot {slot} would leave a gap after {head}");
        let result = if slot == head { PutResult::Created } else { PutResult::Exists };
        if result == PutResult::Created {
            self.ledger.extend(records);
        }
        self.done.insert(id, result);
        head..self.ledger.len() as u64
    }

    /// The answer, once.
    pub fn take(&mut self, id: PutId) -> Option<PutResult> {
        self.done.remove(&id)
    }

    /// The writer died: its answers are lost. PUTs that stalled, and those for which `keep` says so, may still land.
    pub fn orphan(&mut self, mut keep: impl FnMut() -> bool) {
        self.done.clear();
        let stalled = &self.stalled;
        self.flight.retain(|p| stalled.contains(&p.0) || keep());
    }

    /// Nothing of a dead writer is left.
    pub fn forget_flight(&mut self) {
        self.flight.clear();
        self.stalled.clear();
        self.done.clear();
    }

    /// All that is there, without what is in flight.
    pub fn snapshot(&self) -> Self {
        let (ledger, segments) = (self.ledger.clone(), self.segments.clone());
        Self { ledger, segments, next: self.next, covered: self.covered, ..Self::default() }
    }

    /// The slots from this one on are gone.
    pub fn lose_from(&mut self, slot: u64) {
        self.ledger.truncate(slot as usize);
    }

    /// A person puts records at the ledger's end: what a copy of the store has, or what says that slots are void.
    pub fn append_by_hand(&mut self, bytes: Vec<u8>) {
        self.ledger.push(bytes);
    }

    /// A checkpoint is durable that covers the slots below this one.
    pub fn cover(&mut self, end: u64) {
        self.covered = self.covered.max(end);
    }

    /// Slots below this one are covered by a checkpoint: what becomes of their records decides nothing.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Records there are, from slot 0.
    pub fn ledger(&self) -> &[Vec<u8>] {
        &self.ledger
    }

    /// Links a segment. A second link of the same name changes nothing (the first is immutable).
    pub fn link(&mut self, key: K, bytes: Vec<u8>) {
        self.segments.entry(key).or_insert(bytes);
    }

    /// A segment's bytes.
    pub fn segment(&self, key: &K) -> Option<&[u8]> {
        self.segments.get(key).map(Vec::as_slice)
    }

    /// What it takes of a disk.
    pub fn bytes(&self) -> u64 {
        let all = self.ledger.iter().chain(self.segments.values());
        all.map(|file| file.len() as u64).sum()
    }

    /// The names there are.
    pub fn names(&self) -> impl Iterator<Item = &K> {
        self.segments.keys()
    }

    /// Deletes a segment.
    pub fn delete(&mut self, key: &K) {
        self.segments.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_lands_has_the_slot_and_a_dead_writers_put_may_still_land() {
        let mut s = MemoryStore::<u8>::default();
        let (a, b) = (s.put(0, vec![vec![1]]), s.put(0, vec![vec![2], vec![3]]));
        s.orphan(|| true);
        assert_eq!(s.land(b), 0..2);
        assert_eq!(s.land(a), 2..2);
        assert_eq!((s.take(a), s.take(b), s.take(b)), (Some(PutResult::Exists), Some(PutResult::Created), None));
        assert_eq!(s.ledger(), [vec![2], vec![3]]);
    }
}
