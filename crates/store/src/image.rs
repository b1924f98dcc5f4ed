//! A group as replay and the footers of its parts give it: ledger state, head images, parts and their liveness. Pure.
//!
//! Owns the order in which these three change together. Invariant: a record that was accepted is reflected in all of them or
//! (if a footer could not be had) in none. The receiver, readers beside it and the simulator run this same code; they differ
//! in where records and footers come from.

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::{
    Body, CheckpointParts, CheckpointPlace, LayerEntry, Map, PackId, PartEntry, Place, Policy, Prune, PrunePolicy, Record, Rows,
    State, Verdict,
};
use farside_region::{
    Geometry, GranuleIndex, GranuleRun, GroupId, LayerKey, RecordDigest, RegionIndex, RegionRange, RegionSet, Slot, VolumeId,
    mutation,
};

use crate::checkpoint::span;
use crate::index::{Content, Extent, PartNo, VolumeIndex};
use crate::liveness::{Part, PartName, Parts};
use crate::replaced::Replaced;

/// What a footer says a part holds, in the order in which the runs are laid over each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartRuns {
    /// These.
    Known(Vec<(GranuleRun, Content)>),
    /// The footer is missing or does not verify: what the part held is unknown, and with it all of its layer's regions, until
    /// newer layers have laid themselves over them.
    Damaged {
        /// These regions, from the layer's record; `None`: what replay still knows of it, for an old one perhaps more than it
        /// touched.
        regions: Option<RegionSet>,
    },
}

impl PartRuns {
    /// Whether the footer is missing or does not verify.
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

/// The image of a volume, and what of it is unknown because a footer is damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeImage {
    /// Who holds what, as far as known.
    pub index: VolumeIndex,
    /// Granules that a damaged part may have held, with that part. Empty in a sound store.
    pub unknown: VolumeIndex,
}

impl VolumeImage {
    /// Whether a run is known to be zeroes throughout.
    pub(crate) fn is_zero(&self, run: GranuleRun) -> bool {
        let whole = |extent: Extent| extent.content == Content::Zero && extent.run == run;
        self.unknown.extents(run).next().is_none() && self.index.extents(run).next().is_some_and(whole)
    }

    /// Lays a part over the image. `changed` hears which parts gained or lost how many granules, gains first.
    pub(crate) fn lay(&mut self, no: PartNo, runs: &PartRuns, unknown: &[GranuleRun], mut changed: impl FnMut(PartNo, Change)) {
        match runs {
            PartRuns::Known(runs) => {
                for &(run, content) in runs {
                    changed(no, Change::Gained(run.count));
                    self.unknown.remove(run, |from, count| changed(from, Change::Lost(count)));
                    self.index.apply(Extent { run, part: no, content }, |from, count| changed(from, Change::Lost(count)));
                }
            }
            PartRuns::Damaged { .. } => {
                for &run in unknown {
                    changed(no, Change::Gained(run.count));
                    let extent = Extent { run, part: no, content: Content::Unreadable };
                    // Two that are unknown may both be there still: neither takes anything from the other.
                    self.unknown.apply(extent, |_, _| {});
                }
            }
        }
    }
}

pub(crate) enum Change {
    Gained(u64),
    Lost(u64),
}

/// The mistake of deleting what only a record says is replaced.
const BEFORE_A_CHECKPOINT: &str = "what a merge replaced goes before a checkpoint covers it";

/// The mistake of keeping what a merged part replaced only where its footer is damaged.
const ROT_IS_NOBODYS: &str = "L4 rot in a merged part keeps nothing";

/// Slots after which a merge that the ledger does not name was given up, or never was in it.
const LONG_AGO: u64 = 1 << 14;

/// The most points that one prune record gives up.
pub const PRUNE_POINTS_MAX: usize = 1024;
/// The most parts that one prune record names.
pub const PRUNE_PARTS_MAX: usize = 20_000;

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Replay's verdict.
    pub verdict: Verdict,
    /// The parts that it gave up: their files may go. (Those that a merge replaced come with [`GroupImage::covered`].)
    pub given_up: Vec<Part>,
}

/// One group.
#[derive(Clone, Debug)]
pub struct GroupImage {
    state: State,
    parts: Parts,
    heads: BTreeMap<VolumeId, VolumeImage>,
    /// Parts up to here are in the head images.
    indexed: Option<PartNo>,
    /// Damaged parts of which something may lie in a head image.
    damaged: BTreeSet<PartNo>,
    /// Whose they are.
    unknown: BTreeSet<VolumeId>,
    /// Parts of merges that were found damaged, wherever something of them lies, and how often they were met so.
    damaged_merges: BTreeMap<PartName, u64>,
    replaced: Replaced,
    /// Replay began at this slot: a checkpoint covers those before.
    begun: Slot,
}

/// The mistake of taking the parts of layers that replay has forgotten for such as no record ever named.
const FORGOTTEN_IS_ORPHAN: &str = "L4 what is forgotten is an orphan";

impl GroupImage {
    /// A group without history.
    pub fn new(group: GroupId) -> Self {
        Self {
            state: State::new(group),
            parts: Parts::new(),
            heads: BTreeMap::new(),
            indexed: None,
            damaged: BTreeSet::new(),
            unknown: BTreeSet::new(),
            damaged_merges: BTreeMap::new(),
            replaced: Replaced::default(),
            begun: Slot(0),
        }
    }

    /// A group as a checkpoint holds it: as [`GroupImage::replay`] had made it, nothing indexed.
    pub(crate) fn from_checkpoint(state: State, parts: CheckpointParts) -> Self {
        let group = state.group();
        let parts = Parts::from_checkpoint(parts, &state);
        Self { begun: state.next_slot(), state, parts, ..Self::new(group) }
    }

    /// The ledger.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The parts.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Takes out all parts, for whoever needs no more of this than the ledger.
    pub(crate) fn take_parts(&mut self) -> Rows<PartNo, Part> {
        self.parts.take_all()
    }

    /// The head image of a volume; `None` before its first layer with content.
    pub fn head(&self, volume: VolumeId) -> Option<&VolumeImage> {
        self.heads.get(&volume)
    }

    /// For the simulator: break the ledger's own rules.
    #[cfg(feature = "mutations")]
    pub fn state_mut_for_mutations(&mut self) -> &mut State {
        &mut self.state
    }

    /// Replays a record without looking at any footer: the first half of opening a group. [`GroupImage::index`] is the second.
    pub fn replay(&mut self, record: &Record, digest: RecordDigest) -> Applied {
        let new: Vec<LayerEntry> = self.new_layers(record).into_iter().cloned().collect();
        let verdict = self.state.apply(record, digest);
        let mut given_up = Vec::new();
        for entry in new.iter().filter(|e| self.state.layer(&e.key).is_some()) {
            self.parts.add_layer(record.slot, entry, &self.state);
        }
        match &record.body {
            Body::Prune(prune) if verdict == Verdict::Accepted => given_up = self.parts.give_up(&prune.parts),
            Body::Map(map) if verdict == Verdict::Accepted => {
                let gone = self.merge(map, record.slot, None);
                given_up = self.replace(record.slot, gone);
            }
            _ => {}
        }
        self.keep_ordinals();
        Applied { verdict, given_up }
    }

    /// † Ordinals of checkpoints are not used up, however many parts a group publishes.
    fn keep_ordinals(&mut self) {
        if self.parts.are_used_up() && CheckpointPlace::completed_by(&self.state, span()).is_some() {
            self.parts.number_anew();
        }
    }

    /// The new parts of an accepted merge take the place of the old ones, also in the head image: `runs` says what they hold. Without
    /// that, it must not have been indexed.
    fn merge(&mut self, map: &Map, slot: Slot, runs: Option<&[PartRuns]>) -> Vec<(PartNo, Part)> {
        let born = self.state.published(&map.key()).map_or(slot, |published| published.born);
        let gone = self.parts.merge(map, born);
        let is_indexed = gone.last().is_some_and(|(last, _)| self.indexed.is_some_and(|indexed| indexed >= *last));
        if !is_indexed {
            return gone;
        }
        let runs = runs.expect("what is indexed is kept in step by `apply`");
        let head = self.heads.entry(map.volume).or_default();
        let numbers: BTreeSet<PartNo> = gone.iter().map(|(no, _)| *no).collect();
        // Newest is newest: the new parts take from the image what the old ones had of it, and nothing from anybody else.
        // (All that they had lies in the regions of the new ones, if these hold what they should.)
        let geometry = self.state.volume(map.volume).expect("its record was accepted").meta().geometry;
        let within = map.regions.ranges().map(|regions| granules_of_regions(&geometry, regions.start.0, regions.count));
        let mut had = head.index.take_in(within, |no| numbers.contains(&no));
        if had.iter().map(|extent| extent.run.count).sum::<u64>() < gone.iter().map(|(_, part)| part.head_granules).sum() {
            had.extend(head.index.take(|no| numbers.contains(&no)));
            had.sort_unstable_by_key(|extent| extent.run.start);
        }
        let mut kept = 0;
        let nos = gone[gone.len() - map.new.len()..].iter().map(|(no, _)| *no);
        for (no, runs) in nos.zip(runs) {
            let geometry = self.state.volume(map.volume).expect("its record was accepted").meta().geometry;
            let (runs, whole): (Vec<(GranuleRun, Content)>, bool) = match runs {
                PartRuns::Known(runs) => (runs.clone(), true),
                PartRuns::Damaged { .. } => {
                    let regions = map.regions.ranges().map(|r| granules_of_regions(&geometry, r.start.0, r.count));
                    (regions.map(|run| (run, Content::Unreadable)).collect(), false)
                }
            };
            let mut gained = 0;
            for (run, content) in runs {
                let from = had.partition_point(|extent| extent.run.end() <= run.start);
                for extent in had[from..].iter().take_while(|extent| extent.run.start < run.end()) {
                    let start = extent.run.start.max(run.start);
                    let run = GranuleRun { start, count: extent.run.end().min(run.end()).0 - start.0 };
                    let layer = if whole { &mut head.index } else { &mut head.unknown };
                    layer.apply(Extent { run, part: no, content }, |_, _| {});
                    gained += run.count;
                }
            }
            kept += gained;
            self.parts.gained(no, gained);
            if !whole {
                self.damaged.insert(no);
                self.unknown.insert(map.volume);
                self.damaged_merges.extend(self.parts.get(no).map(|part| (part.name, 0)));
                continue;
            }
            // What replay would find: what it holds went when the last went that held any of it. Where something of that lives on, in
            // another new part, nobody can tell that from what lived in the same old one: by now, then.
            let died = gone.iter().map(|(_, old)| old.died).collect::<Option<Vec<Slot>>>();
            self.parts.died_with(no, died.map_or(Some(slot), |all| all.into_iter().max()));
        }
        let had: u64 = had.iter().map(|extent| extent.run.count).sum();
        if kept < had {
            tracing::error!(volume = %map.volume, merge = %map.id, granules = had - kept, "a merge lost granules of the head image");
        }
        gone
    }

    /// What a map replaced stays until [`GroupImage::covered`]. Says what need not.
    fn replace(&mut self, slot: Slot, gone: Vec<(PartNo, Part)>) -> Vec<Part> {
        let gone: Vec<Part> = gone.into_iter().map(|(_, part)| part).collect();
        if mutation::on(BEFORE_A_CHECKPOINT) {
            return gone;
        }
        self.replaced.add(slot, gone);
        Vec::new()
    }

    /// A checkpoint, root and state, is durable that covers all slots below this one. Says what maps in them replaced: replay goes by none of
    /// that any more, whatever becomes of the records, so the files may go as if a prune record had given them up.
    pub fn covered(&mut self, end: Slot) -> Vec<Part> {
        self.replaced.covered(end)
    }

    /// Whether a map replaced that part, and no checkpoint covers the map yet, as far as was said: a replay may need it.
    pub fn is_replaced(&self, part: &PartName) -> bool {
        self.replaced.has(part)
    }

    /// How many parts wait for a checkpoint, and their bytes.
    pub(crate) fn replaced(&self) -> (usize, u64) {
        (self.replaced.len(), self.replaced.bytes())
    }

    /// The slot at which replay began: a checkpoint covers those before.
    pub(crate) fn begun(&self) -> Slot {
        self.begun
    }

    /// A part that a merge wrote is damaged, whatever its footer says: what it replaced may be all that is left of its content. Also of one that the
    /// ledger does not name (yet, or any more, where it is torn). `is_met`: somebody met that just now.
    pub(crate) fn spoil(&mut self, part: PartName, is_met: bool) {
        if part.layer.merge().is_some() && !mutation::on(ROT_IS_NOBODYS) {
            *self.damaged_merges.entry(part).or_default() += u64::from(is_met);
        }
    }

    /// A part that a merge wrote was read in full and is as it was published; nobody met it damaged since it was met so often.
    pub(crate) fn is_sound(&mut self, part: &PartName, met: u64) -> bool {
        let is_damaged = |no| self.damaged.contains(&no);
        let is_over = self.damaged_merges.get(part) == Some(&met) && !self.parts.id(part).is_some_and(is_damaged);
        is_over && self.damaged_merges.remove(part).is_some()
    }

    /// The published parts of merges that are known to be damaged, and how often each was met.
    pub(crate) fn spoiled(&self) -> impl Iterator<Item = (PartNo, PartName, u64)> + '_ {
        self.damaged_merges.iter().filter_map(|(name, met)| Some((self.parts.id(name)?, *name, *met)))
    }

    /// Those, and what may be published still, as far as the ledger tells.
    pub(crate) fn known_spoiled(&self) -> impl Iterator<Item = PartName> + '_ {
        self.damaged_merges.keys().copied().filter(|part| !self.is_past(part))
    }

    /// Whether a part that a merge wrote was given up, or is none of this ledger's, as far as that tells.
    pub(crate) fn is_past(&self, part: &PartName) -> bool {
        let is_given_up = || self.state.published(&part.layer).is_some_and(|known| known.given_up.contains(&part.number));
        let since = part.layer.merge().map_or(0, |merge| merge.since().0);
        self.parts.id(part).is_none() && (is_given_up() || since.saturating_add(LONG_AGO) < self.state.next_slot().0)
    }

    /// Whether parts that a merge replaced may be all that is left of their content, as a merged part is damaged: any that were born in that
    /// slot or later, of that volume if one is given.
    pub(crate) fn is_spoiled(&self, volume: Option<VolumeId>, born: Slot) -> bool {
        let mut merges = self.spoiled().filter_map(|(no, ..)| self.parts.get(no));
        merges.any(|merge| volume.is_none_or(|volume| merge.name.layer.volume == volume) && born <= merge.born)
    }

    /// Whether a dead segment may be deleted, as far as damage goes. What is damaged may come back, or may have been left out of a copy: as long
    /// as the head image of a volume is unknown in part nothing of it goes that a record named and that is not newer, nor anything that a merge wrote and
    /// no record names, and what a merge may have replaced stays as long as a merged part that it may lie in is damaged.
    ///
    /// Of another volume it says nothing: no part holds content of two, a merge is of one, and what an image of a volume takes is of its own parts.
    pub(crate) fn may_go(&self, part: &PartName) -> bool {
        match self.state.published(&part.layer).map(|published| published.born) {
            Some(born) => !self.is_below_damage(part.layer.volume, born) && !self.is_spoiled(Some(part.layer.volume), born),
            // † What it replaced, or was replaced by, nobody knows any more.
            None if part.layer.merge().is_none()
                && self.state.may_be_forgotten(&part.layer)
                && !mutation::on(FORGOTTEN_IS_ORPHAN) =>
            {
                let volume = part.layer.volume;
                !self.unknown.contains(&volume) && !self.is_spoiled(Some(volume), Slot(0))
            }
            None => part.layer.merge().is_none() || !self.has_unknown() && !self.is_spoiled(None, Slot(0)),
        }
    }

    /// The same of a dead pack, whose parts may be of any volume; they were born in the slot that its name says, or later. A record that
    /// gave its parts up may not be known any more, so none counts as one that no record named.
    pub(crate) fn pack_may_go(&self, pack: &PackId) -> bool {
        let slot = pack.slot();
        // It has nothing of a volume whose layers are all older.
        let may_have = |volume: &VolumeId| {
            self.state.volume(*volume).is_none_or(|known| known.last_layer().is_some_and(|last| last.slot >= slot))
        };
        let is_unknown = self.unknown.iter().any(|volume| may_have(volume) && self.is_below_damage(*volume, slot));
        !self.replaced.has_in(pack) && !is_unknown && !self.is_spoiled(None, slot)
    }

    /// The parts that are not in the head images yet, in the order in which [`GroupImage::index`] wants them.
    pub fn unindexed(&self) -> Vec<(PartNo, Part)> {
        self.parts.iter().filter(|(id, _)| self.indexed.is_none_or(|done| *id > done)).map(|(id, p)| (id, p.clone())).collect()
    }

    /// Whether every part is in the head images.
    pub fn is_indexed(&self) -> bool {
        self.parts.last().is_none_or(|last| self.indexed.is_some_and(|done| done >= last))
    }

    /// Lays a part over the head image of its volume.
    ///
    /// # Panics
    /// When a part is given out of order.
    pub fn index(&mut self, no: PartNo, runs: &PartRuns) {
        assert!(self.indexed.is_none_or(|done| no > done), "parts are indexed in the order of their publication");
        self.indexed = Some(no);
        let Some(part) = self.parts.get(no) else { return };
        let (layer, slot) = (part.name.layer, part.born);
        let unknown = self.unknown_in(layer, runs);
        let parts = &mut self.parts;
        let head = self.heads.entry(layer.volume).or_default();
        head.lay(no, runs, &unknown, |from, change| match change {
            Change::Gained(count) => parts.gained(from, count),
            Change::Lost(count) => parts.lost(from, count, slot),
        });
        if runs.is_damaged() {
            self.damaged.insert(no); // alive, whatever was counted
            self.unknown.insert(layer.volume);
            let of_merge = parts.get(no).map(|part| part.name).filter(|name| name.layer.merge().is_some());
            self.damaged_merges.extend(of_merge.map(|name| (name, 0)));
            return;
        }
        parts.settle(no, slot);
        if !self.damaged.is_empty() && head.unknown.extent_count() == 0 {
            // Newer layers cover all that the volume's damaged parts may have held.
            self.unknown.remove(&layer.volume);
            self.damaged.retain(|&no| {
                let elsewhere = parts.get(no).is_some_and(|p| p.name.layer.volume != layer.volume);
                if !elsewhere {
                    parts.bury(no, slot);
                }
                elsewhere
            });
        }
    }

    /// Whether a damaged part may lie in a head image. Until newer layers cover it, nothing of its volume that is not newer is given up: it may come back.
    pub fn has_unknown(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Those parts.
    pub fn damaged(&self) -> impl Iterator<Item = PartNo> + '_ {
        self.damaged.iter().copied()
    }

    /// Whether it is one of those.
    pub(crate) fn is_damaged(&self, no: PartNo) -> bool {
        self.damaged.contains(&no)
    }

    /// Where the newest damaged part of a volume came in: what came later needs nothing of it, and gives it nothing.
    fn damaged_up_to(&self, volume: VolumeId) -> Slot {
        let parts = self.damaged.iter().filter_map(|no| self.parts.get(*no));
        let born = parts.filter(|part| part.name.layer.volume == volume).map(|part| part.born).max();
        born.unwrap_or(Slot(u64::MAX))
    }

    /// Whether what came in in that slot may be needed because of what is damaged of a volume.
    fn is_below_damage(&self, volume: VolumeId, born: Slot) -> bool {
        self.unknown.contains(&volume) && born <= self.damaged_up_to(volume)
    }

    /// The granules that a part may hold of which nothing is known: if it is damaged, those of all regions that its layer
    /// touched, as the volume is now.
    fn unknown_in(&self, layer: LayerKey, runs: &PartRuns) -> Vec<GranuleRun> {
        let PartRuns::Damaged { regions } = runs else { return Vec::new() };
        let Some(volume) = self.state.volume(layer.volume) else { return Vec::new() };
        // Of a merge only its record knows it.
        let kept = || match layer.merge() {
            Some(_) => None,
            None => Some(volume.layer(layer.term, layer.seq).map_or_else(RegionSet::new, |fact| fact.touched().regions())),
        };
        unknown_runs(&volume.meta().geometry, regions.clone().or_else(kept))
    }

    /// Replays a record and keeps the head images in step. `runs` is asked for every part that comes in, of a layer or of a merge, as it
    /// will be; if it fails, nothing has changed.
    ///
    /// # Errors
    /// Those of `runs`.
    pub fn apply<E>(
        &mut self,
        record: &Record,
        digest: RecordDigest,
        mut runs: impl FnMut(&Part) -> Result<PartRuns, E>,
    ) -> Result<Applied, E> {
        let mut content = Vec::new();
        for entry in self.new_layers(record) {
            let place = |number| self.state.place_in(record.slot, &entry.key, number);
            for part in parts_of(entry.key, &entry.parts, record.slot, place) {
                content.push((part.name, runs(&part)?));
            }
        }
        if let Body::Map(map) = &record.body
            && self.state.judge(record) == Verdict::Accepted
        {
            // Where they are born matters to nobody who looks at them.
            let runs: Vec<PartRuns> =
                parts_of(map.key(), &map.new, record.slot, |_| None).map(|part| runs(&part)).collect::<Result<_, _>>()?;
            let verdict = self.state.apply(record, digest);
            let gone = self.merge(map, record.slot, Some(&runs));
            let given_up = self.replace(record.slot, gone);
            self.keep_ordinals();
            return Ok(Applied { verdict, given_up });
        }
        let applied = self.replay(record, digest);
        for (name, runs) in content {
            if let Some(no) = self.parts.id(&name) {
                self.index(no, &runs);
            }
        }
        Ok(applied)
    }

    /// The layers of a record that would come in: not those of a void one, nor duplicates in a fuzzy one.
    fn new_layers<'r>(&self, record: &'r Record) -> Vec<&'r LayerEntry> {
        match &record.body {
            Body::Layers(layers) if self.state.judge(record) == Verdict::Accepted || mutation::on("accept a void record") => {
                let again = mutation::on("a layer retried at a later slot");
                layers.members.iter().filter(|m| again || self.state.layer(&m.key).is_none()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether the image of a volume at a slot is its head image, which is at hand.
    pub fn is_head(&self, volume: VolumeId, slot: Slot) -> bool {
        let newest = self.state.volume(volume).and_then(|v| v.last_layer()).map(|l| l.slot);
        self.is_indexed() && newest.is_none_or(|newest| newest <= slot)
    }

    /// The image of a volume as it was at a slot, of which every part is still there: the head, or a retained point. `runs`
    /// is asked for the parts that live there; before everything was indexed, for all that were born by then, with the same
    /// result.
    ///
    /// # Errors
    /// Those of `runs`.
    pub fn image_at<E>(
        &self,
        volume: VolumeId,
        slot: Slot,
        mut runs: impl FnMut(PartNo, &Part) -> Result<PartRuns, E>,
    ) -> Result<VolumeImage, E> {
        if self.is_head(volume, slot) {
            return Ok(self.heads.get(&volume).cloned().unwrap_or_default());
        }
        let mut image = VolumeImage::default();
        for (no, part) in self.parts.living_at(volume, slot) {
            let runs = runs(no, part)?;
            image.lay(no, &runs, &self.unknown_in(part.name.layer, &runs), |_, _| {});
        }
        Ok(image)
    }

    /// What a layer's entry must name as `unreadable_regions`, exactly: those of its regions in which the head image, with
    /// the layer's own runs laid over it, holds an unreadable run.
    pub fn unreadable_after(&self, volume: VolumeId, regions: &RegionSet, layer_runs: &[(GranuleRun, Content)]) -> RegionSet {
        let mut after = RegionSet::new();
        let Some(known) = self.state.volume(volume) else { return after };
        let geometry = known.meta().geometry;
        let own = layer_runs.iter().filter(|(_, c)| *c == Content::Unreadable);
        let mut ask = known.unreadable().clone();
        own.for_each(|(run, _)| geometry.regions_of(*run).iter().for_each(|r| ask.insert(r)));
        for region in ask.iter().filter(|r| regions.contains(*r)) {
            let whole = granules_of_regions(&geometry, region.0, 1);
            let mut image = VolumeIndex::new();
            let below = self.heads.get(&volume).into_iter().flat_map(|h| h.index.extents(whole));
            below.for_each(|e| image.apply(e, |_, _| {}));
            let over = layer_runs.iter().filter(|(run, _)| run.overlaps(&whole));
            over.for_each(|&(run, content)| image.apply(Extent { run, part: PartNo::END, content }, |_, _| {}));
            if image.extents(whole).any(|e| e.content == Content::Unreadable) {
                after.insert(region);
            }
        }
        after
    }

    /// Bytes of parts that were given up and lie in packs of which something is needed.
    pub fn dead_bytes_in_packs(&self) -> u64 {
        self.state.packs().values().map(|pack| pack.bytes.saturating_sub(pack.living_bytes)).sum()
    }

    /// A prune record that gives up what `policy` lets go, and the parts that are dead then. `None`: nothing to give up. Large
    /// ones come in several turns. While the head image of a volume is partly unknown, no part of it is given up that is not newer than what is damaged, and
    /// no older point that it is a member of: † one of these may be the last that is whole. What is newer has the damage as well, and a disk that ran
    /// full of it would have no room for what is to be sent again.
    pub fn prune_plan(&self, policy: &Policy) -> Option<Prune> {
        self.prune_plan_keeping(policy, &BTreeSet::new(), &BTreeSet::new())
    }

    /// The same, of which nothing gives up any of the points that somebody needs. Those of the cohorts that were forgotten are as all others.
    pub fn prune_plan_keeping(&self, policy: &Policy, kept: &BTreeSet<Slot>, forgotten: &BTreeSet<[u8; 16]>) -> Option<Prune> {
        let unknown: BTreeMap<VolumeId, Slot> =
            self.unknown.iter().map(|volume| (*volume, self.damaged_up_to(*volume))).collect();
        let is_before = |slot: Slot, volume: &VolumeId| unknown.get(volume).is_some_and(|damaged| slot < *damaged);
        let is_of_unknown = |slot: &Slot| {
            let point = self.state.points().get(slot).filter(|_| !unknown.is_empty());
            point.is_some_and(|point| point.members.iter().any(|member| is_before(point.slot, &member.key.volume)))
        };
        let looked = self.state.head()?;
        let mut points = self.state.prunable_beside_kin(policy, forgotten);
        points.retain(|point| !kept.contains(point) && !is_of_unknown(point));
        points.truncate(PRUNE_POINTS_MAX);
        let without: BTreeSet<Slot> = points.iter().copied().collect();
        let parts = self.parts.dead_but_of(&unknown, &self.state, &without, PRUNE_PARTS_MAX);
        (!points.is_empty() || !parts.is_empty()).then(|| Prune {
            looked,
            policy: PrunePolicy::Aged(policy.clone()),
            points,
            parts,
        })
    }

    /// Whether a file of that name that lies in the store or in landing may be swept (T4): no record names it, and none can
    /// any more. Only after a replay of every slot up to the highest existing one.
    ///
    /// Files of a volume or term that this ledger never heard of are not debris: only an accepted claim lets them be written,
    /// so they prove that the ledger is not what it was.
    pub fn is_debris(&self, name: &PartName) -> bool {
        let key: &LayerKey = &name.layer;
        if key.term.is_merge() {
            // One that no record names may be under way, until it is decreed that it is not, or began too long ago to be named.
            return match self.state.published(key) {
                Some(merge) => !merge.has(name.number) && !self.is_replaced(name),
                None if mutation::on("what a merge wrote goes without a decree") => true,
                None => self.state.volume(key.volume).is_some() && !self.state.may_be_merged(key) && !self.is_replaced(name),
            };
        }
        self.state.volume(key.volume).is_some_and(|volume| match volume.layer(key.term, key.seq) {
            // In a pack as well, it has an object of its own from an attempt that came to nothing.
            Some(layer) => {
                let elsewhere = self.state.place(key, name.number).is_some();
                let given_up = layer.pruned().contains(&name.number) && !self.is_replaced(name);
                name.number >= layer.part_count || given_up || elsewhere
            }
            None if mutation::on("T4 sweep everything that no record names") => true,
            None => {
                let is_over = key.term < volume.term() || (key.term == volume.term() && key.seq <= volume.last_seq());
                is_over && (!self.is_replaced(name) || mutation::on(FORGOTTEN_IS_ORPHAN))
            }
        })
    }

    /// Whether a layer may still come to be named by a record: it is of the current term, and above the last accepted one.
    pub fn is_awaited(&self, key: &LayerKey) -> bool {
        self.state.volume(key.volume).is_some_and(|volume| key.term == volume.term() && key.seq > volume.last_seq())
    }
}

/// The parts that a record names under a key, as they will be once it is accepted. `place`: of those that have no object of their own.
pub(crate) fn parts_of(
    layer: LayerKey,
    parts: &[PartEntry],
    born: Slot,
    place: impl Fn(u32) -> Option<Place>,
) -> impl Iterator<Item = Part> {
    (0..).zip(parts).map(move |(number, part)| Part {
        name: PartName { layer, number },
        bytes: part.bytes,
        footer_digest: part.footer_digest,
        born,
        died: None,
        head_granules: 0,
        place: place(number),
    })
}

/// The granules that a damaged part may hold, if its layer touched these regions (`None`: nobody knows which).
pub(crate) fn unknown_runs(geometry: &Geometry, regions: Option<RegionSet>) -> Vec<GranuleRun> {
    let regions = regions.unwrap_or_else(|| {
        let mut all = RegionSet::new();
        all.insert_range(RegionRange { start: RegionIndex(0), count: geometry.region_count() });
        all
    });
    let whole = regions.ranges().map(|r| granules_of_regions(geometry, r.start.0, r.count));
    // What lies beyond the volume's end is in no part, and would never be covered.
    let end = geometry.granule_count();
    whole.map(|run| GranuleRun { count: run.count.min(end.saturating_sub(run.start.0)), ..run }).filter(|r| r.count > 0).collect()
}

/// The granules of whole regions, also of those beyond a volume that has grown since.
fn granules_of_regions(geometry: &Geometry, first: u64, count: u64) -> GranuleRun {
    let per_region = geometry.region_granules();
    GranuleRun { start: GranuleIndex(first * per_region), count: count * per_region }
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
