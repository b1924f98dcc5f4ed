//! Merges, for the thread that owns the group: what to look at, what becomes of what was written, and what never will be anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farside_ledger::{Body, Decree, Policy, Verdict, VolumeMeta};
use farside_region::{LayerKey, MergeId, Slot, VolumeId};

use super::{Dead, GroupStore};
use crate::error::{Result, StoreError};
use crate::image::{PartRuns, parts_of};
use crate::index::PartNo;
use crate::keys::Unlocking;
use crate::liveness::{Part, PartName};
use crate::merge::{Interval, Intervals, MergeLook, MergeTried, SoundParts, SpoiledLook, Writing};
use crate::replay::Slots;
use crate::segments::{FooterFault, runs_of};

/// Merges that one decree names, at most.
const DECREED_AT_ONCE: usize = 1024;
/// What merges replaced and is not deleted yet may have one byte for so many of what is published,
const WAITING_SHARE: u64 = 8;
/// or so many.
#[cfg(not(test))]
const WAITING_BYTES_LEAST: u64 = 1 << 30;
#[cfg(test)]
thread_local! {
    static WAITING_BYTES_LEAST: std::cell::Cell<u64> = const { std::cell::Cell::new(1 << 30) };
}

/// Less, for a test.
#[cfg(test)]
pub(crate) fn set_waiting_bytes_least(bytes: u64) {
    WAITING_BYTES_LEAST.set(bytes);
}

/// And no more parts than these, which are in memory.
const WAITING_PARTS_MAX: usize = 100_000;

/// What a group knows of merges that are not in its ledger.
#[derive(Debug, Default)]
pub(super) struct Merging {
    writing: Writing,
    intervals: Intervals,
    /// Parts that no record names (yet).
    unnamed: BTreeMap<PartName, Dead>,
    /// The slot after the newest one that a void record gave up, of those from the first of these slots on. `None`: not looked for yet.
    voids: Option<(Slot, Slot)>,
}

impl Merging {
    /// A part of a merge lies in the store, and no record names it.
    pub(super) fn found(&mut self, part: PartName, found: Dead) {
        self.unnamed.insert(part, found);
    }

    /// Whether no record that was given up can have named a merge: what such a one published is not ours to delete.
    fn is_after_voids(&self, merge: MergeId) -> bool {
        self.voids.is_some_and(|(from, after)| from <= merge.since() && after <= merge.since())
    }
}

impl GroupStore {
    /// Why nothing is merged, whatever there is: for people.
    pub fn why_not_merged(&self) -> Option<String> {
        let said = if let Err(error) = self.usable() {
            error.to_string()
        } else if self.image.has_unknown() {
            "segments are damaged".to_owned()
        } else if self.image.is_spoiled(None, Slot(0)) {
            "parts that were merged are damaged, and what they replaced is kept".to_owned()
        } else if self.merges_wait() {
            "what was merged before waits to be deleted".to_owned()
        } else {
            return None;
        };
        Some(said)
    }

    /// These parts, which merges wrote, are damaged: what they replaced stays in the store, as far as it is there still, until they were read
    /// and are sound ([`GroupStore::spoiled_look`]) or are given up.
    pub fn spoil(&mut self, parts: impl IntoIterator<Item = PartName>) {
        self.spoil_as(parts, false);
    }

    fn spoil_as(&mut self, parts: impl IntoIterator<Item = PartName>, is_met: bool) {
        let before = self.image.spoiled().count();
        parts.into_iter().for_each(|part| self.image.spoil(part, is_met));
        let now = self.image.spoiled().count();
        if now > before {
            tracing::error!(group = %self.names(), parts = now, "parts that were merged are damaged: what they replaced is kept from now on");
        }
    }

    /// What was known before the group was opened.
    pub(super) fn spoil_what_is_known(&mut self) {
        let known = self.known.spoiled.clone();
        self.spoil(known);
        if self.known.may_be_any {
            let parts = self.image.parts().iter().map(|(_, part)| part.name).filter(|name| name.layer.merge().is_some());
            let parts: Vec<PartName> = parts.collect();
            self.spoil(parts);
        }
    }

    /// Hears of what readers met damaged since.
    pub fn hear_of_damage(&mut self) {
        let met = self.segments.take_spoiled();
        if !met.is_empty() {
            self.spoil_as(met, true);
        }
    }

    /// The parts that merges wrote and that are known to be damaged, those among them that a ledger that is torn does not name.
    pub fn spoiled(&self) -> BTreeSet<PartName> {
        self.image.known_spoiled().collect()
    }

    /// Whether a part that a merge wrote was given up, or is none of this ledger's: nothing is kept for it.
    pub fn is_past(&self, part: &PartName) -> bool {
        self.image.is_past(part)
    }

    /// Those that are published, for a thread that has time to see whether they are sound again; `None`: there are none.
    pub fn spoiled_look(&self) -> Option<SpoiledLook> {
        let of = |(no, name, met): (PartNo, PartName, u64)| {
            Some((self.image.parts().get(no)?.clone(), self.state().volume(name.layer.volume)?.meta().clone(), met))
        };
        let parts: Vec<(Part, VolumeMeta, u64)> = self.image.spoiled().filter_map(of).collect();
        (!parts.is_empty()).then(|| SpoiledLook { segments: Arc::clone(&self.segments), parts })
    }

    /// These were read in full and are as they were published, which lets go of those that nobody has met damaged since; says of which. Where a
    /// footer was damaged when the group was opened, whoever opens it next sees that.
    pub fn sound(&mut self, sound: &SoundParts) -> BTreeSet<PartName> {
        self.hear_of_damage();
        sound.0.iter().filter(|(part, met)| self.image.is_sound(part, **met)).map(|(part, _)| *part).collect()
    }

    /// An interval that may have parts worth merging; `None`: none has, or nothing is merged ([`GroupStore::why_not_merged`]). For
    /// another thread to look at. `has_key`: also of encrypted volumes; that thread has what unlocks them.
    pub fn merge_look(&mut self, policy: &Policy, has_key: bool) -> Option<MergeLook> {
        self.hear_of_damage();
        if self.why_not_merged().is_some() {
            return None;
        }
        let interval = self.merging.intervals.next(&self.image, policy, has_key)?;
        self.merging.intervals.seen(&interval);
        self.look_at(interval)
    }

    pub(crate) fn look_at(&self, interval: Interval) -> Option<MergeLook> {
        let (segments, writing) = (self.segments.clone(), self.merging.writing.clone());
        MergeLook::new(segments, self.shared.readers(), writing, self.image.state(), interval)
    }

    /// Whether the next look costs no walk over all parts.
    pub fn has_merge_queue(&self) -> bool {
        self.merging.intervals.has_queue()
    }

    /// Whether so much waits to be deleted of what merges replaced that there is to be no other merge before it goes: a checkpoint comes once
    /// in 4096 records, and whoever reads a store in a directory holds deletions up for as long as he reads. Walks what waits.
    pub fn merges_wait(&self) -> bool {
        let (parts, bytes) = self.image.replaced();
        let merged = self.dead.values().map(|dead| dead.merged_bytes).filter(|bytes| *bytes > 0);
        let (parts, bytes) = merged.fold((parts, bytes), |(parts, sum), bytes| (parts + 1, sum + bytes));
        #[cfg(not(test))]
        let least = WAITING_BYTES_LEAST;
        #[cfg(test)]
        let least = WAITING_BYTES_LEAST.get();
        parts > WAITING_PARTS_MAX || bytes > least.max(self.image.parts().bytes() / WAITING_SHARE)
    }

    /// A look did not find all that there is.
    pub fn look_again(&mut self, volume: VolumeId, point: Slot) {
        self.merging.intervals.forget(volume, point);
    }

    /// A merge was written, or not. Says what to append: its record, if it still may be one. What was put in vain goes with the next
    /// decree.
    pub fn merge_written(&mut self, tried: MergeTried) -> Option<Body> {
        let MergeTried { key, history, written } = tried;
        let map = written.ok().map(|written| written.map);
        if let Some(map) = map
            && self.usable().is_ok()
            && !self.image.has_unknown()
            && history.goes_on_in(self.image.state())
            && self.image.state().would_be_merged(&map)
        {
            return Some(Body::Map(map));
        }
        self.merge_ended(key);
        None
    }

    /// What was submitted about a merge has a verdict, or will never have one: whatever it wrote is no longer under way.
    pub fn merge_ended(&mut self, key: LayerKey) {
        self.merging.writing.end(&key);
        let Some(volume) = self.state().volume(key.volume) else { return };
        let (volume, part) = (volume.meta().name.clone(), PartName { layer: key, number: 0 });
        if self.state().may_be_merged(&key) {
            self.merging.unnamed.entry(part).or_insert(Dead::of(volume));
        } else if self.image.is_debris(&part) && self.state().published(&key).is_none() {
            // It took so long that no record may name it any more.
            self.dead.entry(part).or_insert(Dead::of(volume));
        }
    }

    /// A decree over the merges that came to nothing, so that what they wrote may go; `None`: there are none. To be appended; after an
    /// accepted one there may be more. Of merges that a record may have named which a repair gave up since, there is none: what such a record
    /// published stays, and so does everything while something is damaged.
    pub fn decree_plan(&mut self) -> Option<Body> {
        if self.usable().is_err() || self.merging.unnamed.is_empty() || self.image.has_unknown() {
            return None;
        }
        self.look_for_voids();
        let mut merges = Vec::new();
        for part in self.merging.unnamed.keys() {
            let named = |merge| (part.layer.volume, merge);
            let is_ours = |merge: &MergeId| merge.since() <= self.state().next_slot() && self.merging.is_after_voids(*merge);
            let over = self.state().may_be_merged(&part.layer) && !self.merging.writing.is(&part.layer);
            let merge = part.layer.merge().filter(is_ours).map(named);
            if let Some(merge) = merge.filter(|merge| over && merges.last() != Some(merge)) {
                merges.push(merge);
            }
            if merges.len() == DECREED_AT_ONCE {
                break;
            }
        }
        (!merges.is_empty()).then_some(Body::Decree(Decree { merges }))
    }

    /// Which slots were given up: only a repair does that, and the group is opened again after it.
    fn look_for_voids(&mut self) {
        let first = self.merging.unnamed.keys().filter_map(|part| part.layer.merge()).map(MergeId::since).min();
        let Some(first) = first.filter(|first| self.merging.voids.is_none_or(|(from, _)| *first < from)) else { return };
        match Slots::list_from(&*self.segments.backend, self.names(), first.0) {
            Ok(slots) => self.merging.voids = Some((first, slots.voids.last().map_or(Slot(0), |newest| Slot(newest + 1)))),
            Err(error) => {
                tracing::warn!(group = %self.names(), %error, "what merges left stays until it is known which slots were given up");
            }
        }
    }

    /// Decrees away what came to nothing, and merges until nothing is worth it; says how many merges there were. All at once: for tests and
    /// tools. A receiver does it piece by piece, beside everything else.
    ///
    /// # Errors
    /// Those of [`GroupStore::append`], and what is wrong with a part.
    pub fn merge(&mut self, policy: &Policy) -> Result<usize> {
        self.merge_with(policy, None)
    }

    /// The same, of encrypted volumes as well.
    ///
    /// # Errors
    /// Those of [`GroupStore::merge`]; [`StoreError::KeyNeeded`].
    pub fn merge_with(&mut self, policy: &Policy, keys: Option<&Unlocking>) -> Result<usize> {
        self.certain()?;
        while let Some(decree) = self.decree_plan() {
            if self.append(decree)?.verdict != Verdict::Accepted {
                break;
            }
        }
        let mut merges = 0;
        while let Some(look) = self.merge_look(policy, keys.is_some()) {
            let look = match keys {
                Some(keys) => look.unlocked(keys)?,
                None => look,
            };
            let all = look.find(&|_| true)?;
            if all.more {
                self.look_again(look.volume(), look.point());
            }
            for found in all.merges {
                let tried = look.write(&found, &|_| true)?;
                let (key, error) = (tried.key, tried.written.as_ref().err().map(ToString::to_string));
                if let Some(body) = self.merge_written(tried) {
                    let appended = self.append(body);
                    self.merge_ended(key);
                    merges += usize::from(appended?.verdict == Verdict::Accepted);
                }
                if let Some(error) = error {
                    tracing::warn!(group = %self.names(), error, "parts were not merged");
                }
            }
        }
        Ok(merges)
    }

    /// The parts of merges in records to be appended: they are there, and are what is named.
    pub(super) fn read_merged<'b>(&self, bodies: impl Iterator<Item = &'b Body>) -> Result<BTreeMap<PartName, PartRuns>> {
        let mut runs = BTreeMap::new();
        for body in bodies {
            let Body::Map(map) = body else { continue };
            let Some(volume) = self.state().volume(map.volume) else { continue }; // void, as replay will say
            for part in parts_of(map.key(), &map.new, Slot(0), |_| None) {
                let footer = self.segments.footer(&volume.meta().name, &part).map_err(|fault| match fault {
                    FooterFault::Store(error) => error,
                    FooterFault::Damaged(why) => StoreError::BadPart { layer: map.key(), part: part.name.number, why },
                })?;
                runs.insert(part.name, PartRuns::Known(runs_of(&footer)));
            }
        }
        Ok(runs)
    }

    /// What became of the parts of merges, now that a record came in.
    pub(super) fn sort_out_merges(&mut self) {
        for (part, found) in std::mem::take(&mut self.merging.unnamed) {
            if self.image.is_debris(&part) {
                self.dead.insert(part, found);
            } else if self.state().may_be_merged(&part.layer) {
                self.merging.unnamed.insert(part, found);
            }
        }
    }

    /// Parts of merges that no record names.
    pub fn unnamed_merges(&self) -> usize {
        self.merging.unnamed.len()
    }

    /// What the parts of a volume that was merged are named by, and how many bytes they have: merges so far, for people.
    pub fn merged(&self, volume: VolumeId) -> (u64, u64) {
        let merges = self.state().volume(volume).map(|volume| volume.merges());
        merges.map_or((0, 0), |merges| (merges.len() as u64, merges.values().map(|merge| merge.bytes).sum()))
    }
}
