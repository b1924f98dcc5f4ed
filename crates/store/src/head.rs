//! A ledger from its newest checkpoint to its head, found without a listing: for readers of a bucket, where the names of a long
//! history are a hundred answers, each of which waits for the one before.
//!
//! Roots of checkpoints are never deleted and come one after another, so the newest is found by doubling and narrowing. The records
//! after it are asked for so many at once, and the first slot that is not there may be the head.
//!
//! Invariant: what is found is what a listing would have given, or nothing is. At the first thing that is out of order the caller
//! lists, and whatever is wrong is said by who has seen all names. A search that was led astray costs time.
//!
//! | What could go wrong | What keeps it from counting |
//! |---|---|
//! | A record is lost and later ones are there: the slot is torn, and no head | Slots ahead of the empty one are asked for: the rest of [`AHEAD`], and at distances that double up to [`FAR`]. A hole goes unseen only where fewer records follow it than it swallowed; writers, `store check` and `store recover` list |
//! | Lost records were voided, and nothing follows | The `.void` of the empty slot, and of the one before it. If all that was given up came back, the ledger is whole without them |
//! | *n* was asked for just before it was put, *n* + 1 just after | *n* is asked for again: services show what was put to all who ask later |
//! | The reader slept while a checkpoint came, and records that it covers went or were put by somebody late | After the last record, and before a slot is called torn, the root that covers it: if it is there, all begins anew |
//! | A root was deleted by hand, a stray one lies far up, a checkpoint is not of this history | What is taken for the newest must have its state, follow the root before it, and hold the newest record that it covers |
//!
//! A batch takes slots in which nothing lies; the first slot of a run ([`farside_ledger::BATCH_SLOTS`]) always has an object, so those
//! are asked for as well.
//!
//! It deliberately does not say what is torn, use an older checkpoint, or know of a `.void` in the middle: such ledgers are listed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use farside_ledger::{BATCH_SLOTS, CheckpointPlace, CheckpointRoot, RECORD_BYTES_MAX, run_of};
use farside_region::{GroupId, Slot};

use crate::backend::{Backend, ObjectName, block_on};
use crate::checkpoint::{ROOT_READ_BYTES, covers, span};
use crate::error::{Result, StoreError};
use crate::image::GroupImage;
use crate::names::GroupNames;
use crate::replay::{self, Records, Replayed, decode, find_record, get, parallel};

/// Records that are asked for at once.
const AHEAD: u64 = 32;
/// Of each, what is read so; one that has more is read alone.
const AHEAD_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 256 << 10 };
/// How far beyond the head a record is looked for: as many as a checkpoint covers.
const FAR: u64 = 4096;
/// Roots that are asked for at first: 0, 1, 3, 7 and so on.
const DOUBLED: usize = 7;
/// And then, where the newest must be, in so many steps.
const STEPS: u64 = 16;
/// How often checkpoints may come while somebody looks.
const SEARCHES: u32 = 4;

mod by_repeats;

/// An object, if it is there, or what its medium says is wrong with it.
type Found = Option<Result<Bytes, String>>;

/// What is asked for.
enum Look {
    /// An object that has no more bytes than so many.
    Object(ObjectName, u64),
    /// Whether there is one, which may be large.
    Presence(ObjectName),
}

/// Why a search ended before the head.
enum Stop {
    /// Something is not as it is in a ledger that nobody harmed.
    Odd(String),
    /// The same of a slot, unless a checkpoint covers it: then it may be empty, or of somebody who came late.
    Torn(Slot, String),
    /// A checkpoint came meanwhile.
    Overtaken,
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Replays a ledger for a reader of a bucket.
///
/// # Errors
/// What the service says.
pub(crate) fn replay(backend: &dyn Backend, names: &GroupNames, group: GroupId) -> Result<Replayed> {
    Search { backend, names, group }.find(Search::each)
}

/// The same for who only opens a point: of the objects since the checkpoint a few are read, and damage of the others goes unseen.
///
/// # Errors
/// What the service says.
pub(crate) fn replay_to_open(backend: &dyn Backend, names: &GroupNames, group: GroupId) -> Result<Replayed> {
    Search { backend, names, group }.find(Search::open)
}

/// Replays what came into a ledger since it was replayed: up to the first slot that is empty, which is taken for the head without a look at what
/// may lie beyond. `None`: all is to begin anew from a checkpoint, since something is out of order, or one came that covers what is new, or much
/// came without.
///
/// # Errors
/// What the medium says.
pub(crate) fn go_on(backend: &dyn Backend, names: &GroupNames, group: GroupId, image: GroupImage) -> Result<Option<GroupImage>> {
    match (Search { backend, names, group }).go_on(image) {
        Ok(image) => Ok(Some(image)),
        Err(Stop::Store(error)) => Err(error),
        Err(Stop::Overtaken) => Ok(None),
        Err(Stop::Odd(why) | Stop::Torn(_, why)) => {
            tracing::warn!(group = %names, why, "the ledger is replayed anew");
            Ok(None)
        }
    }
}

struct Search<'s> {
    backend: &'s dyn Backend,
    names: &'s GroupNames,
    group: GroupId,
}

impl Search<'_> {
    /// A ledger from its newest checkpoint to its head, replayed by one `way`, or listed where something is out of order.
    fn find(&self, way: impl Fn(&Self) -> Result<GroupImage, Stop>) -> Result<Replayed> {
        let Self { backend, names, group } = *self;
        let mut why = "checkpoints came whenever it was searched".to_owned();
        for _ in 0..SEARCHES {
            match way(self) {
                Ok(image) => return Ok(Replayed { image, torn: None, strays: Vec::new(), spoiled: BTreeSet::new() }),
                Err(Stop::Overtaken) => {}
                Err(Stop::Torn(slot, _)) if covers(backend, names, slot)? => {}
                Err(Stop::Store(error)) => return Err(error),
                Err(Stop::Odd(odd) | Stop::Torn(_, odd)) => {
                    why = odd;
                    break;
                }
            }
        }
        tracing::warn!(group = %names, why, "the ledger is listed");
        replay::replay(backend, names, group, |_| {})
    }

    /// Every object since the newest checkpoint by itself.
    fn each(&self) -> Result<GroupImage, Stop> {
        let (image, ahead) = self.begin(|from| self.ahead(from))?;
        self.follow(CheckpointPlace::covering(image.state().next_slot(), span()), image, ahead)
    }

    /// Several objects at once.
    fn get(&self, wanted: &[Look]) -> Result<Vec<Found>> {
        let look = |look: &Look| match look {
            Look::Object(name, bytes_max) => get(self.backend, name, *bytes_max),
            Look::Presence(name) => Ok(block_on(self.backend.size(name))?.map(|_| Ok(Bytes::new()))),
        };
        parallel(self.backend, wanted, look).into_iter().collect()
    }

    fn record(&self, slot: Slot) -> Look {
        Look::Object(self.names.record(slot), AHEAD_BYTES)
    }

    fn ahead(&self, from: Slot) -> Vec<Look> {
        (from.0..from.0.saturating_add(AHEAD)).map(|slot| self.record(Slot(slot))).collect()
    }

    /// What the newest checkpoint holds, and what is found of what is to be asked for after it: at first, what lies in the slot after it.
    fn begin(&self, after: impl Fn(Slot) -> Vec<Look>) -> Result<(GroupImage, Vec<Found>), Stop> {
        let mut roots = self.newest_roots()?;
        let Some((number, root)) = roots.pop_last() else {
            return Ok((GroupImage::new(self.group), self.get(&after(Slot(0)))?));
        };
        let odd = |why: &str| odd(number, why);
        let (root, _) = self.decode_root(number, &root)?;
        let end = root.place.end().ok_or_else(|| odd("it covers more slots than there are"))?;
        let last = Slot(end.0 - 1);

        let mut wanted = vec![Look::Object(self.names.checkpoint_state(number), root.state_bytes), self.record(last)];
        let before = number.checked_sub(1);
        let known = before.and_then(|before| roots.remove(&before));
        if known.is_none() {
            wanted.extend(before.map(|before| self.root(before)));
        }
        let besides = wanted.len();
        wanted.extend(after(end));
        let mut found = self.get(&wanted)?;
        let ahead = found.split_off(besides);
        let mut found = found.into_iter();
        let mut next = || found.next().expect("it was asked for");
        let not_there = || Err("it is not there".to_owned());
        let state = next().unwrap_or_else(not_there).map_err(|why| odd(&format!("it has no state: {why}")))?;
        let (state, parts) = root.state(&state).map_err(|error| odd(&error.to_string()))?;
        let newest = match next() {
            Some(found) => self.decode(last, found).map(|records| records.into_iter().find(|(record, _)| record.slot == last)),
            // In a batch; or it was given up. A record that follows says as much of the history.
            None if ahead.first().is_some_and(Option::is_some) => Ok(None),
            None => match find_record(self.backend, self.names, last)? {
                Ok(found) => Ok(Some(found)),
                Err(unusable) => return Err(odd(&unusable.to_string())),
            },
        };
        let newest = newest.map_err(|stop| match stop {
            Stop::Torn(_, why) => odd(&why),
            other => other,
        })?;
        if newest.is_some_and(|(_, digest)| state.digest_at(last) != Some(digest)) {
            return Err(odd("it does not hold the newest record that it covers"));
        }
        let previous = match before {
            None => [0; 32],
            Some(before) => self.decode_root(before, &known.unwrap_or_else(|| next().unwrap_or_else(not_there)))?.1,
        };
        if root.previous != previous {
            return Err(odd("it does not follow the one before it"));
        }
        Ok((GroupImage::from_checkpoint(state, parts), ahead))
    }

    fn root(&self, number: u64) -> Look {
        Look::Object(self.names.checkpoint(number), ROOT_READ_BYTES)
    }

    /// Roots that are there, the newest among them; empty before there is any.
    fn newest_roots(&self) -> Result<BTreeMap<u64, Result<Bytes, String>>> {
        let (mut there, mut missing) = (BTreeMap::new(), BTreeSet::new());
        let doubled: Vec<u64> = (0..u64::BITS).map(|bit| (1 << bit) - 1).collect();
        let mut doubled = doubled.chunks(DOUBLED);
        let mut asked = doubled.next().map(<[u64]>::to_vec);
        while let Some(numbers) = asked {
            let wanted: Vec<_> = numbers.iter().map(|&number| self.root(number)).collect();
            for (number, found) in numbers.into_iter().zip(self.get(&wanted)?) {
                match found {
                    Some(root) => drop(there.insert(number, root)),
                    None => drop(missing.insert(number)),
                }
            }
            // One that is missing below another was deleted by hand: the newest is above what is there.
            let Some((&newest, _)) = there.last_key_value() else { break };
            asked = match missing.range(newest..).next() {
                None => doubled.next().map(<[u64]>::to_vec),
                Some(&end) if end - newest == 1 => None,
                Some(&end) => {
                    let step = (end - newest).div_ceil(STEPS);
                    Some((newest + step..end).step_by(usize::try_from(step).unwrap_or(usize::MAX)).collect())
                }
            };
        }
        Ok(there)
    }

    /// Goes on from there to the head. `ahead`: what lies in the next slots; the search began in `begun`.
    fn follow(&self, begun: CheckpointPlace, mut image: GroupImage, mut ahead: Vec<Found>) -> Result<GroupImage, Stop> {
        loop {
            let end = image.state().next_slot().0.saturating_add(ahead.len() as u64);
            let mut ahead_of = ahead.into_iter();
            while let Some(found) = ahead_of.next() {
                let slot = image.state().next_slot();
                let found = match found {
                    Some(found) => found,
                    None if ahead_of.as_slice().iter().all(Option::is_none) => break,
                    None => self.again(slot)?.ok_or_else(|| missing(slot))?,
                };
                let records = self.decode(slot, found)?;
                image.state().follows(&records[0].0).map_err(|why| torn(slot, &why))?;
                records.iter().for_each(|(record, digest)| drop(image.replay(record, *digest)));
                // The slots that a batch takes beside its own: whatever lies there is nobody's.
                (1..records.len()).for_each(|_| drop(ahead_of.next()));
            }
            let next = image.state().next_slot();
            if next.0 < end && self.is_head(begun, &image, end)? {
                return Ok(image);
            }
            ahead = self.get(&self.ahead(next))?;
        }
    }

    /// Goes on from there to the first slot that is empty: by one, and by more where there is more.
    fn go_on(&self, mut image: GroupImage) -> Result<GroupImage, Stop> {
        let (first, mut at_once) = (image.state().next_slot(), 1);
        loop {
            let from = image.state().next_slot();
            let mut asked = self.ahead(from);
            asked.truncate(at_once);
            let mut found = self.get(&asked)?.into_iter();
            while let Some(one) = found.next() {
                let slot = image.state().next_slot();
                let one = match one {
                    Some(one) => one,
                    None if found.as_slice().iter().all(Option::is_none) => return self.is_to_be_believed(first, image),
                    None => self.again(slot)?.ok_or_else(|| missing(slot))?,
                };
                let records = self.decode(slot, one)?;
                image.state().follows(&records[0].0).map_err(|why| torn(slot, &why))?;
                records.iter().for_each(|(record, digest)| drop(image.replay(record, *digest)));
                // The slots that a batch takes beside its own.
                (1..records.len()).for_each(|_| drop(found.next()));
            }
            at_once = (at_once * 2).min(AHEAD as usize);
        }
    }

    /// What was replayed from a slot on, unless a checkpoint decides what is in there.
    fn is_to_be_believed(&self, first: Slot, image: GroupImage) -> Result<GroupImage, Stop> {
        let next = image.state().next_slot();
        let came_since = next.0.saturating_sub(image.begun().0);
        match next > first && (came_since >= 2 * span() || covers(self.backend, self.names, first)?) {
            true => Err(Stop::Overtaken),
            false => Ok(image),
        }
    }

    /// Whether the next slot, which was empty, is the head: nothing lies in it, covers it or comes after it. From `end` on nobody has
    /// looked yet; the search began in `begun`. `false`: it was filled meanwhile.
    fn is_head(&self, begun: CheckpointPlace, image: &GroupImage, end: u64) -> Result<bool, Stop> {
        let slot = image.state().next_slot();
        let mut places = vec![CheckpointPlace::covering(slot, span())];
        if begun.number != places[0].number {
            places.push(begun);
        }
        let void = |slot| Look::Object(self.names.record_void(slot), AHEAD_BYTES);
        let mut wanted: Vec<_> = places.iter().map(|place| self.root(place.number)).collect();
        wanted.push(void(slot));
        wanted.extend(slot.0.checked_sub(1).map(|before| void(Slot(before))));
        let voids = places.len()..wanted.len();
        let far = (0..=FAR.ilog2()).map(|bit| slot.0.saturating_add(1 << bit));
        // A batch takes slots that have no object; the first of a run always has one.
        let run = |slot: u64| run_of(Slot(slot.saturating_add(BATCH_SLOTS - 1))).0;
        let far: BTreeSet<u64> = far.flat_map(|far| [far, run(far)]).filter(|&far| far >= end).collect();
        wanted.extend(far.into_iter().map(|far| self.record(Slot(far))));
        let found = self.get(&wanted)?;
        for (place, root) in places.iter().zip(&found) {
            let Some(root) = root else { continue };
            let (root, _) = self.decode_root(place.number, root)?;
            if place.end().and_then(|end| image.state().digest_at(Slot(end.0 - 1))) != Some(root.last) {
                return Err(Stop::Overtaken);
            }
        }
        if found[voids.clone()].iter().any(Option::is_some) {
            return Err(Stop::Odd(format!("a record at slot {slot} was replaced")));
        }
        if found[voids.end..].iter().all(Option::is_none) {
            return Ok(true);
        }
        self.again(slot)?.map(|_| false).ok_or_else(|| missing(slot))
    }

    /// A slot that was empty, while one after it is not.
    fn again(&self, slot: Slot) -> Result<Found> {
        get(self.backend, &self.names.record(slot), AHEAD_BYTES)
    }

    fn decode_root(&self, number: u64, found: &Result<Bytes, String>) -> Result<(CheckpointRoot, [u8; 32]), Stop> {
        let bytes = found.as_ref().map_err(|why| odd(number, why))?;
        let place = CheckpointPlace { number, slots: span() };
        CheckpointRoot::decode(bytes, self.group, place).map_err(|error| odd(number, &error.to_string()))
    }

    fn decode(&self, slot: Slot, found: Result<Bytes, String>) -> Result<Records, Stop> {
        let found = match found {
            Ok(bytes) => Ok(bytes),
            // Too large to be read with others, perhaps.
            Err(_) => get(self.backend, &self.names.record(slot), RECORD_BYTES_MAX as u64)?.ok_or_else(|| missing(slot))?,
        };
        decode(&found).map_err(|unusable| torn(slot, &unusable))
    }
}

fn odd(checkpoint: u64, why: &str) -> Stop {
    Stop::Odd(format!("checkpoint {checkpoint}: {why}"))
}

fn torn(slot: Slot, why: &dyn std::fmt::Display) -> Stop {
    Stop::Torn(slot, format!("slot {slot}: {why}"))
}

fn missing(slot: Slot) -> Stop {
    torn(slot, &"nothing is there, and later records exist")
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
