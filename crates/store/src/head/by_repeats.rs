//! A ledger for who opens a point: the newest object is looked for by the octal digits of its slot, and it and three others at most repeat all
//! records since the checkpoint ([`crate::repeats`]). So a history asks for as much however long ago the checkpoint was.
//!
//! Invariants:
//! - what counts leads by digests from the newest object to the checkpoint, or all is read one by one, as by who does not open a point;
//! - the head is believed in as by them: nothing covers it, replaces it or comes after it.
//!
//! What is damaged or missing between the objects that are read goes unseen, as with who lists ([`crate::replay::replay_to_open`]).

use std::collections::BTreeMap;

use bytes::Bytes;
use farside_ledger::{BATCH_SLOTS, CheckpointPlace, run_of};
use farside_region::Slot;

use super::{Found, Look, Search, Stop};
use crate::checkpoint::span;
use crate::image::GroupImage;
use crate::repeats::gather;
use crate::replay::Slots;

/// As many slots as the last two octal digits tell apart, and the last three.
const RUN: u64 = BATCH_SLOTS;
const BLOCK: u64 = 8 * RUN;
/// Values of an octal digit, but for zero.
const OF_A_DIGIT: usize = 7;

/// Multiples of a step above a slot, as many as a digit tells apart.
fn multiples(step: u64, above: u64) -> impl Iterator<Item = u64> {
    (above / step + 1..).map_while(move |nth| nth.checked_mul(step)).take(OF_A_DIGIT)
}

/// The slots in which something is, of those that were asked for, and what.
fn there(asked: &[u64], found: Vec<Found>) -> impl Iterator<Item = (u64, Result<Bytes, String>)> {
    asked.iter().zip(found).filter_map(|(&slot, found)| Some((slot, found?)))
}

impl Search<'_> {
    /// Slots that tell in which block the head is, after a checkpoint's end, and in which run of the first one.
    fn digits(from: Slot) -> Vec<u64> {
        let first = multiples(BLOCK, from.0).next().unwrap_or(u64::MAX);
        let runs = multiples(RUN, from.0).take_while(|&run| run < first);
        std::iter::once(from.0).chain(runs).chain(multiples(BLOCK, from.0)).collect()
    }

    /// Whether an object is in each of these slots.
    fn presence(&self, slots: &[u64]) -> Vec<Look> {
        slots.iter().map(|&slot| Look::Presence(self.names.record(Slot(slot)))).collect()
    }

    /// What the newest checkpoint holds, and all that came since.
    pub(super) fn open(&self) -> Result<GroupImage, Stop> {
        let (mut image, found) = self.begin(|from| self.presence(&Self::digits(from)))?;
        let from = image.state().next_slot();
        let begun = CheckpointPlace::covering(from, span());
        let mut slots = Slots::default();
        slots.records.extend(there(&Self::digits(from), found).map(|(slot, _)| slot));
        let newest = |slots: &Slots| slots.records.last().copied().unwrap_or(from.0);
        let block = newest(&slots);
        if block > from.0 && block.is_multiple_of(BLOCK) {
            let runs: Vec<u64> = multiples(RUN, block).collect();
            let found = self.get(&self.presence(&runs))?;
            slots.records.extend(there(&runs, found).map(|(slot, _)| slot));
        }
        // A batch leaves slots empty, so all of the run are asked for, and the first of the next one.
        let run = newest(&slots);
        let end = run_of(Slot(run)).0.saturating_add(RUN + 1);
        let asked: Vec<u64> = (run.saturating_add(1)..end).collect();
        let found = self.get(&asked.iter().map(|&slot| self.record(Slot(slot))).collect::<Vec<_>>())?;
        let mut objects = BTreeMap::new();
        for (slot, object) in there(&asked, found) {
            slots.records.insert(slot);
            // One that is too large to be read with others is read where it is needed.
            objects.extend(object.ok().map(|object| (slot, Some(object))));
        }

        let gathered = gather(self.backend, self.names, &slots, from.0, objects)?;
        match gathered.first() {
            Some((first, _)) if image.state().follows(first).is_ok() => {
                gathered.iter().for_each(|(record, digest)| drop(image.replay(record, *digest)));
            }
            None if slots.records.is_empty() => {}
            _ => return self.follow_anew(begun, image),
        }
        if image.state().next_slot().0 < end && self.is_head(begun, &image, end)? {
            return Ok(image);
        }
        self.follow_anew(begun, image)
    }

    /// Goes on one by one.
    fn follow_anew(&self, begun: CheckpointPlace, image: GroupImage) -> Result<GroupImage, Stop> {
        let ahead = self.get(&self.ahead(image.state().next_slot()))?;
        self.follow(begun, image, ahead)
    }
}

#[cfg(test)]
#[path = "../by_repeats_tests.rs"]
mod tests;
