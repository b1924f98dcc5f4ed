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
use crate::error::Result;
use crate::image::GroupImage;
use crate::repeats::gather;
use crate::replay::Slots;

/// Runs, of which eight are a block.
const RUN: u64 = BATCH_SLOTS;
const BLOCK: u64 = 8 * RUN;
/// Slots that are asked for at once, of those that an octal digit tells apart.
const OF_A_DIGIT: usize = 8;

/// Multiples of a step above a slot.
fn multiples(step: u64, above: u64) -> impl Iterator<Item = u64> {
    let first = (above / step).saturating_add(1).saturating_mul(step);
    (0..).map_while(move |nth| first.checked_add(step.checked_mul(nth)?))
}

/// The slots in which something is, of those that were asked for, and what.
fn there(asked: &[u64], found: Vec<Found>) -> impl Iterator<Item = (u64, Result<Bytes, String>)> {
    asked.iter().zip(found).filter_map(|(&slot, found)| Some((slot, found?)))
}

impl Search<'_> {
    /// Slots that tell in which block the head is, after a checkpoint's end, and in which run of the first one.
    fn digits(from: Slot) -> Vec<u64> {
        let blocks: Vec<u64> = multiples(BLOCK, from.0).take(OF_A_DIGIT).collect();
        let end = blocks.first().copied().unwrap_or(u64::MAX);
        std::iter::once(from.0).chain(multiples(RUN, from.0).take_while(|&run| run < end)).chain(blocks).collect()
    }

    /// Whether an object is in each of these slots.
    fn presence(&self, slots: &[u64]) -> Vec<Look> {
        slots.iter().map(|&slot| Look::Presence(self.names.record(Slot(slot)))).collect()
    }

    /// What the newest checkpoint holds, and all that came since.
    pub(super) fn open(&self) -> Result<GroupImage, Stop> {
        let (image, found) = self.begin(|from| self.presence(&Self::digits(from)))?;
        self.open_from(image, found)
    }

    /// `found`: what lies in the slots that tell where the head is.
    fn open_from(&self, mut image: GroupImage, found: Vec<Found>) -> Result<GroupImage, Stop> {
        let from = image.state().next_slot();
        let begun = CheckpointPlace::covering(from, span());
        let mut slots = Slots::default();
        slots.records.extend(there(&Self::digits(from), found).map(|(slot, _)| slot));
        let look = |slots: &mut Slots, asked: &[u64]| -> Result<()> {
            let found = self.get(&self.presence(asked))?;
            slots.records.extend(there(asked, found).map(|(slot, _)| slot));
            Ok(())
        };
        // More than a checkpoint's slots, where none could be written for a while.
        let mut asked_to = multiples(BLOCK, from.0).nth(OF_A_DIGIT - 1);
        while let Some(last) = asked_to.filter(|last| slots.records.contains(last)) {
            let more: Vec<u64> = multiples(BLOCK, last).take(OF_A_DIGIT).collect();
            look(&mut slots, &more)?;
            asked_to = more.last().copied();
        }
        let newest = |slots: &Slots| slots.records.last().copied().unwrap_or(from.0);
        let block = newest(&slots);
        if block > from.0 && block.is_multiple_of(BLOCK) {
            look(&mut slots, &multiples(RUN, block).take(OF_A_DIGIT - 1).collect::<Vec<_>>())?;
        }
        // A batch leaves slots empty, so all of the run are asked for, and the first of the next one.
        let run = newest(&slots);
        let end = run_of(Slot(run)).0.saturating_add(RUN + 1);
        let asked: Vec<u64> = (run.saturating_add(1)..end).collect();
        let found = self.get(&asked.iter().map(|&slot| self.record(Slot(slot))).collect::<Vec<_>>())?;
        let mut objects = BTreeMap::new();
        for (slot, object) in there(&asked, found) {
            slots.records.insert(slot);
            objects.extend(object.ok().map(|object| (slot, object)));
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
