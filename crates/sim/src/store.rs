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

#[derive(Debug)]
struct Put {
    id: PutId,
    slot: u64,
    records: Vec<Vec<u8>>,
    object: Vec<u8>,
}

/// See the head of the file. `K` names a segment.
#[derive(Debug)]
pub struct MemoryStore<K> {
    ledger: Vec<Vec<u8>>,
    segments: BTreeMap<K, Vec<u8>>,
    flight: Vec<Put>,
    stalled: BTreeSet<PutId>,
    stall_next: bool,
    done: BTreeMap<PutId, PutResult>,
    next: u64,
    /// Slots below this one are covered by a checkpoint.
    covered: u64,
    /// Where several records are in one object: by its first slot, the slot after its last, and the object.
    batches: BTreeMap<u64, (u64, Vec<u8>)>,
    /// What else lies there, by name: checkpoints and leases.
    others: BTreeMap<String, Other>,
    /// In which order they came, also those that are gone.
    others_came: BTreeMap<String, u64>,
}

/// An object beside ledger and segments.
#[derive(Clone, Debug)]
pub struct Other {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// When it came to be, by the service's clock.
    pub created_ms: i64,
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
            batches: BTreeMap::new(),
            others: BTreeMap::new(),
            others_came: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone> MemoryStore<K> {
    /// The next PUT stalls.
    pub fn stall_next(&mut self) {
        self.stall_next = true;
    }

    /// Issues a PUT of an object: the records of this slot and those after it.
    pub fn put(&mut self, slot: u64, records: Vec<Vec<u8>>, object: Vec<u8>) -> PutId {
        self.next += 1;
        let id = PutId(self.next);
        if std::mem::take(&mut self.stall_next) {
            self.stalled.insert(id);
        }
        self.flight.push(Put { id, slot, records, object });
        id
    }

    /// PUTs that may land now.
    pub fn in_flight(&self) -> Vec<PutId> {
        self.flight.iter().map(|p| p.id).filter(|id| !self.stalled.contains(id)).collect()
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
        let at = self.flight.iter().position(|p| p.id == id).expect("the PUT is in flight");
        let Put { slot, records, object, .. } = self.flight.swap_remove(at);
        let head = self.ledger.len() as u64;
        assert!(slot <= head, "a PUT at slot {slot} would leave a gap after {head}");
        let result = if slot == head { PutResult::Created } else { PutResult::Exists };
        if result == PutResult::Created {
            if records.len() > 1 {
                self.batches.insert(slot, (slot + records.len() as u64, object));
            }
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
        self.flight.retain(|p| stalled.contains(&p.id) || keep());
    }

    /// Nothing of a dead writer is left.
    pub fn forget_flight(&mut self) {
        self.flight.clear();
        self.stalled.clear();
        self.done.clear();
    }

    /// All that is there, without what is in flight.
    pub fn snapshot(&self) -> Self {
        let (ledger, segments, batches) = (self.ledger.clone(), self.segments.clone(), self.batches.clone());
        let (others, others_came) = (self.others.clone(), self.others_came.clone());
        Self { ledger, segments, batches, others, others_came, next: self.next, covered: self.covered, ..Self::default() }
    }

    /// The slots from this one on are gone.
    pub fn lose_from(&mut self, slot: u64) {
        self.ledger.truncate(slot as usize);
        self.batches.retain(|_, (end, _)| *end <= slot);
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

    /// The object in a slot; none in one that an object before it takes as well.
    pub fn record_object(&self, slot: u64) -> Option<&[u8]> {
        let before = self.batches.range(..=slot).next_back().filter(|(_, (end, _))| slot < *end);
        match before {
            Some((first, (_, object))) => (*first == slot).then_some(object.as_slice()),
            None => self.ledger.get(slot as usize).map(Vec::as_slice),
        }
    }

    /// Creates an object beside ledger and segments, unless there is one of that name. Says whether it did.
    pub fn create_other(&mut self, name: &str, bytes: Vec<u8>, created_ms: i64) -> bool {
        if self.others.contains_key(name) {
            return false;
        }
        let came = self.others_came.len() as u64;
        self.others_came.entry(name.to_owned()).or_insert(came);
        self.others.insert(name.to_owned(), Other { bytes, created_ms });
        true
    }

    /// One of them.
    pub fn other(&self, name: &str) -> Option<&Other> {
        self.others.get(name)
    }

    /// Deletes one.
    pub fn delete_other(&mut self, name: &str) {
        self.others.remove(name);
    }

    /// Those whose names begin so, in the order in which they came, after one of them.
    pub fn others_below(&self, prefix: &str, after: Option<&str>) -> Vec<(&str, &Other)> {
        let came = |name: &str| self.others_came.get(name).copied();
        let after = after.and_then(came);
        let mut all: Vec<_> = self.others.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        all.retain(|(name, _)| after.is_none_or(|after| came(name) > Some(after)));
        all.sort_by_key(|(name, _)| came(name));
        all.into_iter().map(|(name, other)| (name.as_str(), other)).collect()
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
        let (a, b) = (s.put(0, vec![vec![1]], vec![1]), s.put(0, vec![vec![2], vec![3]], vec![2, 3]));
        s.orphan(|| true);
        assert_eq!(s.land(b), 0..2);
        assert_eq!(s.land(a), 2..2);
        assert_eq!((s.take(a), s.take(b), s.take(b)), (Some(PutResult::Exists), Some(PutResult::Created), None));
        assert_eq!(s.ledger(), [vec![2], vec![3]]);
        assert_eq!((s.record_object(0), s.record_object(1), s.record_object(2)), (Some(&[2, 3][..]), None, None));
    }
}
