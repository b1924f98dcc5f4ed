//! Merges: parts that take the place of others (`docs/formats/store.md`, *Merging*).
//!
//! Invariant: a map record is accepted only if every retained point, and the head image, are the same with the new parts in the place of
//! the old ones, provided that its writer kept to one thing that replay cannot see: that the new parts hold exactly the granules of
//! the old ones which are visible at its point. For that the old parts must be born in one *interval*: after one retained point of
//! their volume and up to the next. Whoever reads one of them reads all of them, and what of them is hidden at the interval's end is
//! hidden for good. Points only go, so intervals only grow: what was one when it was planned is one whenever it is judged.

use std::collections::{BTreeMap, BTreeSet};

use farside_region::{LayerKey, MergeId, Slot, VolumeId, mutation};
use serde::{Deserialize, Serialize};

use crate::memory::is_too_old;
use crate::record::{Decree, Map};
use crate::state::{GivenUp, Point, State, VolumeState};
use crate::verdict::{Malformed, VoidReason};

/// The mistake of merging what a retained point lies between.
const ACROSS_A_POINT: &str = "a merge across a retained point";
/// The mistake of merging up to a point that is not there (any more).
const WITHOUT_A_POINT: &str = "a merge whose point is gone";
/// The mistake of believing a merge after it was decreed never to be.
const AFTER_ITS_DECREE: &str = "a map record accepted after its decree";
/// The mistake of believing one of which nobody knows any more whether it was decreed never to be.
const TOO_OLD: &str = "a merge is believed however long ago it began";
/// The mistake of replacing parts that somebody else replaced.
const OF_WHAT_IS_GONE: &str = "a merge of parts that are gone";
/// The mistake of merging what a pinned point may be read from.
const UNDER_A_PIN: &str = "a merge of what a pinned point needs";
/// The mistake of giving up what a merge wrote while its point is retained.
const MERGE_PRUNED: &str = "a prune takes a merged part of a retained point";

/// A merge that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeFact {
    /// The slot of its record.
    pub slot: Slot,
    /// The slot in which its parts count as born: the last of those that they replace.
    pub born: Slot,
    /// The point at which it held the same as what it replaced.
    pub point: Slot,
    /// How many parts it has.
    pub part_count: u32,
    /// Their bytes.
    pub bytes: u64,
    pub(crate) pruned: BTreeSet<u32>,
}

/// What is known of the parts that have a key: those of a layer, or of a merge.
#[derive(Clone, Copy, Debug)]
pub struct Published<'s> {
    /// The slot in which they were born.
    pub born: Slot,
    /// The slot of the record that names them.
    pub record: Slot,
    /// How many there were.
    pub part_count: u32,
    /// Those that an accepted record gave up.
    pub given_up: &'s BTreeSet<u32>,
}

impl Published<'_> {
    /// Whether such a part is there and was not given up.
    pub fn has(&self, number: u32) -> bool {
        number < self.part_count && !self.given_up.contains(&number)
    }
}

impl State {
    /// What was published under a key, of a layer or of a merge.
    pub fn published(&self, key: &LayerKey) -> Option<Published<'_>> {
        self.volume(key.volume)?.published(key)
    }

    /// Whether an accepted record gave that part up.
    pub fn is_given_up(&self, key: &LayerKey, number: u32) -> bool {
        self.published(key).is_some_and(|published| published.given_up.contains(&number))
    }

    /// Whether a merge may still be accepted under that key, as far as this ledger goes.
    pub fn may_be_merged(&self, key: &LayerKey) -> bool {
        let (Some(merge), Some(volume)) = (key.merge(), self.volume(key.volume)) else { return false };
        !volume.merges.contains_key(&merge) && !volume.decreed.contains(&merge) && !is_too_old(merge.since(), self.next_slot())
    }

    /// Whether a map record would be accepted now.
    pub fn would_be_merged(&self, map: &Map) -> bool {
        self.judge_map(self.next_slot(), map).is_ok()
    }

    /// The interval that ends with a retained point of a volume: the retained point before it (`None`: from the beginning), of those
    /// that hold the volume. `None` if that point is not there, or does not hold it.
    pub fn interval(&self, volume: VolumeId, point: Slot) -> Option<Option<Slot>> {
        let held = self.held_by(volume)?;
        held.holds(point).then(|| held.before(point))
    }

    /// The retained points that hold a volume, ascending.
    pub fn points_of(&self, volume: VolumeId) -> Vec<Slot> {
        self.held_by(volume).map_or_else(Vec::new, |held| held.all())
    }

    /// The newest pinned point that holds a volume: parts born up to it may be read by whoever goes by the pin, and are not merged.
    pub fn newest_pinned(&self, volume: VolumeId) -> Option<Slot> {
        let holds = |point: &&Point| !point.pins.is_empty() && point.members.iter().any(|member| member.key.volume == volume);
        self.points().values().rev().find(holds).map(|point| point.slot)
    }

    pub(crate) fn judge_map(&self, slot: Slot, map: &Map) -> Result<(), VoidReason> {
        let malformed = |why| Err(VoidReason::Malformed(why));
        let volume = self.volume(map.volume).ok_or(VoidReason::UnknownVolume(map.volume))?;
        let mut named: BTreeMap<LayerKey, BTreeSet<u32>> = BTreeMap::new();
        for merged in &map.parts {
            if merged.parts.is_empty() {
                return malformed(Malformed::NoMembers);
            }
            if !merged.parts.windows(2).all(|w| w[0] < w[1])
                || named.insert(merged.layer, merged.parts.iter().copied().collect()).is_some()
            {
                return malformed(Malformed::Twice);
            }
        }
        if named.is_empty() {
            return malformed(Malformed::NoMembers);
        }
        let old: usize = named.values().map(BTreeSet::len).sum();
        if map.id.0 >= MergeId::END || map.new.len() > old || named.keys().any(|key| key.volume != map.volume) {
            return malformed(Malformed::Merge);
        }
        if map.regions.last().is_some_and(|r| r.0 >= volume.meta().geometry.region_count()) {
            return malformed(Malformed::Region);
        }
        if volume.merges.contains_key(&map.id) || (volume.decreed.contains(&map.id) && !mutation::on(AFTER_ITS_DECREE)) {
            return Err(VoidReason::MergeAgain(map.id));
        }
        // Whether there was one, or a decree, is not known of one that began so long ago.
        if is_too_old(map.id.since(), slot) && !mutation::on(TOO_OLD) {
            return Err(VoidReason::MergeAgain(map.id));
        }
        let interval = self.interval(map.volume, map.point);
        if interval.is_none() && !mutation::on(WITHOUT_A_POINT) {
            return Err(VoidReason::NoSuchPoint(map.point));
        }
        if let Some(pinned) = self.newest_pinned(map.volume).filter(|pinned| *pinned >= map.point && !mutation::on(UNDER_A_PIN)) {
            return Err(VoidReason::MergePinned(pinned));
        }
        let (mut first, mut last) = (Slot(u64::MAX), Slot(0));
        for (key, parts) in &named {
            let Some(published) = volume.published(key) else { return Err(VoidReason::MergeGone(*key)) };
            if !parts.iter().all(|part| published.has(*part)) && !mutation::on(OF_WHAT_IS_GONE) {
                return Err(VoidReason::MergeGone(*key));
            }
            let after = interval.flatten().is_none_or(|before| published.born > before);
            if (!after && !mutation::on(ACROSS_A_POINT)) || published.born > map.point {
                return Err(VoidReason::MergeAcross { layer: *key, point: map.point });
            }
            if volume.last_layer().is_some_and(|newest| newest.key == *key) {
                return Err(VoidReason::MergeNewest(*key));
            }
            (first, last) = (first.min(published.born), last.max(published.born));
        }
        match volume.left_between(first, last).find(|(key, part)| !named.get(key).is_some_and(|parts| parts.contains(part))) {
            Some((skipped, _)) => Err(VoidReason::MergeSkips(skipped)),
            None => Ok(()),
        }
    }

    pub(crate) fn admit_map(&mut self, slot: Slot, map: &Map) {
        let age_clock_ms = self.age_clock_ms();
        let Some(volume) = self.volumes.get_mut(&map.volume) else { return };
        let born = map.parts.iter().filter_map(|merged| volume.published(&merged.layer)).map(|old| old.born).max();
        for merged in &map.parts {
            volume.give_up(&merged.layer, &merged.parts);
        }
        let fact = MergeFact {
            slot,
            born: born.unwrap_or(map.point),
            point: map.point,
            part_count: map.new.len() as u32,
            bytes: map.new.iter().fold(0, |sum, part| sum.saturating_add(part.bytes)),
            pruned: BTreeSet::new(),
        };
        volume.merges.insert(map.id, fact);
        self.packs.give_up(&map.parts);
        self.given_up.push_back(GivenUp { age_clock_ms, parts: map.parts.clone() });
    }

    pub(crate) fn judge_decree(&self, decree: &Decree) -> Result<(), VoidReason> {
        if decree.merges.is_empty() {
            return Err(VoidReason::Malformed(Malformed::NoMembers));
        }
        let once: BTreeSet<&(VolumeId, MergeId)> = decree.merges.iter().collect();
        if once.len() < decree.merges.len() {
            return Err(VoidReason::Malformed(Malformed::Twice));
        }
        for (id, merge) in &decree.merges {
            let volume = self.volume(*id).ok_or(VoidReason::UnknownVolume(*id))?;
            if merge.0 >= MergeId::END {
                return Err(VoidReason::Malformed(Malformed::Merge));
            }
            if volume.merges.contains_key(merge) {
                return Err(VoidReason::MergeAccepted(*merge));
            }
        }
        Ok(())
    }

    pub(crate) fn admit_decree(&mut self, decree: &Decree) {
        for (id, merge) in &decree.merges {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.decreed.insert(*merge);
            }
        }
    }

    /// Whether the ledger's own knowledge lets the parts of a merge go once the points in `without` are gone: all that they hold was
    /// visible at the merge's point.
    pub(crate) fn may_prune_merge(&self, key: &LayerKey, without: &BTreeSet<Slot>) -> bool {
        let volume = self.volume(key.volume);
        let fact = key.merge().and_then(|merge| volume?.merges.get(&merge));
        fact.is_some_and(|fact| {
            !self.points().contains_key(&fact.point) || without.contains(&fact.point) || mutation::on(MERGE_PRUNED)
        })
    }
}

impl VolumeState {
    /// The merges that were accepted.
    pub fn merges(&self) -> &BTreeMap<MergeId, MergeFact> {
        &self.merges
    }

    /// Merges that will never be accepted.
    pub fn decreed(&self) -> &BTreeSet<MergeId> {
        &self.decreed
    }

    fn published(&self, key: &LayerKey) -> Option<Published<'_>> {
        if let Some(merge) = key.merge() {
            let MergeFact { slot, born, part_count, ref pruned, .. } = *self.merges.get(&merge)?;
            return Some(Published { born, record: slot, part_count, given_up: pruned });
        }
        let layer = self.layer(key.term, key.seq)?;
        Some(Published { born: layer.slot, record: layer.slot, part_count: layer.part_count, given_up: layer.pruned() })
    }

    pub(crate) fn give_up(&mut self, key: &LayerKey, parts: &[u32]) {
        match key.merge() {
            Some(merge) => {
                if let Some(fact) = self.merges.get_mut(&merge) {
                    fact.pruned.extend(parts);
                }
            }
            None => {
                if let Some(layer) = self.layer_mut(key.term, key.seq) {
                    layer.pruned.extend(parts);
                }
            }
        }
    }

    /// The parts that are left of those born between two slots, both excluded.
    fn left_between(&self, first: Slot, last: Slot) -> impl Iterator<Item = (LayerKey, u32)> + '_ {
        let layers = self.layers_above(Some(first)).take_while(move |layer| layer.slot < last).map(|layer| layer.key);
        let merges = self.merges.iter().filter(move |(_, fact)| fact.born > first && fact.born < last);
        let merges = merges.map(|(merge, _)| LayerKey::of_merge(self.meta().id, *merge));
        layers.chain(merges).flat_map(|key| {
            let published = self.published(&key);
            published.into_iter().flat_map(move |published| {
                (0..published.part_count).filter(move |part| published.has(*part)).map(move |part| (key, part))
            })
        })
    }
}
