//! Which parts anything still needs. Pure.
//!
//! A part is *born* in the slot whose record named it, and *dies* in the slot at which the head image stopped using it. A
//! retained point at slot `p` needs it exactly if it was born by then and had not died: the image of a point is the head
//! image as it was then. Roots are the retained points, pinned ones among them, **and the head image**: without the latter a
//! prune between a fuzzy layer and the next point would delete what that point will consist of.
//!
//! Invariant: parts are numbered in the order of publication, and `died` is set once. Replay without the parts that were
//! already deleted may set `died` later than it was; every retained point gives the same answer all the same, since no
//! retained point lies where they differ (DESIGN §5, retention). The same goes for parts that took the place of others: they have
//! the last of their numbers, and count as born with the last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use farside_ledger::{CheckpointPart, CheckpointParts, LayerEntry, Map, Passing, Place, PrunedParts, Rows, State, Stored};
use farside_region::{LayerKey, RecordDigest, Slot, VolumeId, mutation};
use serde::{Deserialize, Serialize};

use crate::index::PartNo;

/// The mistake that DESIGN names: liveness without the head image.
pub const MUTATION_RETAINED_POINTS_ONLY: &str = "retained points as the only roots";

/// The name of a part: which layer, which number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartName {
    /// The layer.
    pub layer: LayerKey,
    /// Its number in the layer, from 0.
    pub number: u32,
}

impl std::fmt::Display for PartName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.layer, self.number)
    }
}

/// A published part that no accepted record has given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: PartName,
    /// Bytes of its file.
    pub bytes: u64,
    /// The digest that its footer must have.
    pub footer_digest: [u8; 32],
    /// The slot of the record that published it.
    pub born: Slot,
    /// The slot at which the head image stopped using it.
    pub died: Option<Slot>,
    /// Granules of the head image that lie in it; 0 until it was indexed.
    pub head_granules: u64,
    /// Where it lies if it has no object of its own.
    pub place: Option<Place>,
}

impl Part {
    /// Whether the image of its volume at that slot uses it.
    pub fn lives_at(&self, slot: Slot) -> bool {
        self.born <= slot && self.died.is_none_or(|died| slot < died)
    }
}

impl From<CheckpointPart> for Part {
    fn from(part: CheckpointPart) -> Self {
        let CheckpointPart { layer, number, bytes, footer_digest, born } = part;
        Self { name: PartName { layer, number }, bytes, footer_digest, born, died: None, head_granules: 0, place: None }
    }
}

/// As it lies in a checkpoint.
impl Stored for Part {
    fn read(from: &mut &[u8]) -> Option<Self> {
        CheckpointPart::read(from).map(Self::from)
    }

    fn pass(from: &mut &[u8]) -> Option<()> {
        CheckpointPart::pass(from)
    }
}

impl Stored for PartNo {
    fn read(from: &mut &[u8]) -> Option<Self> {
        u32::read(from).map(|ordinal| Self(ordinal.into()))
    }
}

/// All published parts of a group that were not given up.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    all: Rows<PartNo, Part>,
    /// Made when somebody asks for a name: who opens a point knows none.
    by_name: OnceLock<BTreeMap<PartName, PartNo>>,
    next: u64,
    /// `None`: a part's ordinal in a checkpoint is its number.
    anew: Option<Anew>,
    /// Of all of them; counted when somebody asks.
    bytes: OnceLock<u64>,
}

/// What parts are called in checkpoints since the ordinals of these were used up: they have 32 bits there, numbers here 64.
#[derive(Clone, Debug)]
struct Anew {
    /// Those that were left then, ascending: they got the ordinals from 0 on.
    left: Vec<PartNo>,
    /// The number that came next: it, and those after it, got the ordinals behind those.
    next: u64,
}

impl Anew {
    fn ordinal(&self, no: u64) -> u64 {
        match no.checked_sub(self.next) {
            Some(after) => self.left.len() as u64 + after,
            // It was left then, as it still is.
            None => self.left.partition_point(|left| left.0 < no) as u64,
        }
    }
}

impl Parts {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the ledger alone says of them: not what the head image uses.
    pub fn to_checkpoint(&self) -> CheckpointParts {
        let of = |(no, part): (PartNo, &Part)| {
            let Part { name: PartName { layer, number }, bytes, footer_digest, born, .. } = *part;
            (self.ordinal(no.0), CheckpointPart { layer, number, bytes, footer_digest, born })
        };
        CheckpointParts { next: self.ordinal(self.next), parts: self.iter().map(of).collect() }
    }

    fn next_ordinal(&self) -> u64 {
        self.anew.as_ref().map_or(self.next, |anew| anew.ordinal(self.next))
    }

    fn ordinal(&self, no: u64) -> u32 {
        let ordinal = self.anew.as_ref().map_or(no, |anew| anew.ordinal(no));
        u32::try_from(ordinal).expect("where a checkpoint ends, parts are numbered anew before their ordinals are used up")
    }

    /// Whether the next part has no ordinal that a checkpoint could say.
    pub(crate) fn are_used_up(&self) -> bool {
        self.next_ordinal() > u32::MAX.into()
    }

    /// Gives the parts that are left the ordinals from 0 on, in their order. To be done exactly where a checkpoint ends, so that whoever goes on
    /// from it and whoever came to it make the same ones after it. Their numbers here stay.
    pub(crate) fn number_anew(&mut self) {
        self.anew = Some(Anew { left: self.all.passing().map(|(no, _)| no).collect(), next: self.next });
    }

    /// The inverse; no head image uses any of them yet. Where they lie the state knows.
    pub(crate) fn from_checkpoint(checkpoint: CheckpointParts, state: &State) -> Self {
        let CheckpointParts { next, parts } = checkpoint;
        let all = match state.packs().is_empty() {
            true => parts.recast(|ordinal| PartNo(ordinal.into()), Part::from),
            false => {
                let placed = |(no, part): (u32, Passing<'_, CheckpointPart>)| {
                    (PartNo(no.into()), Part { place: state.place(&part.layer, part.number), ..Part::from(*part) })
                };
                parts.passing().map(placed).collect()
            }
        };
        Self { all, next: next.into(), ..Self::new() }
    }

    fn by_name(&self) -> &BTreeMap<PartName, PartNo> {
        self.by_name.get_or_init(|| self.all.passing().map(|(no, part)| (part.name, no)).collect())
    }

    fn by_name_mut(&mut self) -> &mut BTreeMap<PartName, PartNo> {
        self.by_name();
        self.by_name.get_mut().expect("it was just made")
    }

    /// Those of a layer that was accepted in a slot; `state`: says where they lie.
    pub fn add_layer(&mut self, slot: Slot, entry: &LayerEntry, state: &State) {
        for (number, part) in (0..).zip(&entry.parts) {
            let id = PartNo(self.next);
            self.next += 1;
            let name = PartName { layer: entry.key, number };
            if let Some(by_name) = self.by_name.get_mut() {
                by_name.insert(name, id);
            }
            self.has_grown(part.bytes);
            let place = state.place(&entry.key, number);
            let part = Part {
                name,
                bytes: part.bytes,
                footer_digest: part.footer_digest,
                born: slot,
                died: None,
                head_granules: 0,
                place,
            };
            self.all.insert(id, part);
        }
    }

    /// Forgets those that an accepted prune record gave up; says what they were.
    pub fn give_up(&mut self, pruned: &[PrunedParts]) -> Vec<Part> {
        let names = pruned.iter().flat_map(|p| p.parts.iter().map(|&number| PartName { layer: p.layer, number }));
        let numbers: Vec<PartNo> = names.filter_map(|name| self.by_name_mut().remove(&name)).collect();
        let gone: Vec<Part> = numbers.iter().filter_map(|no| self.all.remove(no)).collect();
        self.has_shrunk(gone.iter().map(|part| part.bytes).sum());
        gone
    }

    /// Puts the new parts of an accepted merge in the place of the old ones: in the last of their places. Says what these were, in the
    /// order of publication. What the head image takes from them is for the caller to move.
    pub(crate) fn merge(&mut self, map: &Map, born: Slot) -> Vec<(PartNo, Part)> {
        let names = map.parts.iter().flat_map(|p| p.parts.iter().map(|&number| PartName { layer: p.layer, number }));
        let numbers: BTreeSet<PartNo> = names.filter_map(|name| self.by_name().get(&name).copied()).collect();
        let gone: Vec<(PartNo, Part)> = numbers.into_iter().filter_map(|no| Some((no, self.all.remove(&no)?))).collect();
        for (_, part) in &gone {
            self.by_name_mut().remove(&part.name);
            self.has_shrunk(part.bytes);
        }
        let places = gone.iter().map(|(no, _)| *no).skip(gone.len().saturating_sub(map.new.len()));
        for ((number, new), no) in (0..).zip(&map.new).zip(places) {
            let name = PartName { layer: map.key(), number };
            self.by_name_mut().insert(name, no);
            self.has_grown(new.bytes);
            let (bytes, footer_digest) = (new.bytes, new.footer_digest);
            let part = Part { name, bytes, footer_digest, born, died: None, head_granules: 0, place: None };
            self.all.insert(no, part);
        }
        gone
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// One part.
    pub fn get(&self, id: PartNo) -> Option<&Part> {
        self.all.get(&id)
    }

    /// The id of a part.
    pub fn id(&self, name: &PartName) -> Option<PartNo> {
        self.by_name().get(name).copied()
    }

    /// All, in the order of publication.
    pub fn iter(&self) -> impl Iterator<Item = (PartNo, &Part)> {
        self.all.iter().map(|(&id, part)| (id, part))
    }

    /// Those published between two of them, both included.
    pub(crate) fn between(&self, first: PartNo, last: PartNo) -> impl Iterator<Item = &Part> {
        self.all.range(first..=last).map(|(_, part)| part)
    }

    /// The newest.
    pub fn last(&self) -> Option<PartNo> {
        self.all.last_key()
    }

    /// The parts of a layer that are left.
    pub fn of_layer(&self, layer: LayerKey) -> impl Iterator<Item = PartNo> + '_ {
        let range = PartName { layer, number: 0 }..=PartName { layer, number: u32::MAX };
        self.by_name().range(range).map(|(_, &id)| id)
    }

    /// The record that says which regions a part's layer or merge touched, its slot and digest, where replay does not know it: for parts
    /// whose footer is damaged.
    pub(crate) fn told_by(state: &State, part: &Part) -> Option<(Slot, RecordDigest)> {
        let record = match part.name.layer.merge() {
            Some(_) => state.published(&part.name.layer)?.record,
            None => part.born,
        };
        if part.name.layer.merge().is_none() && state.is_exact(record) {
            return None;
        }
        Some((record, state.digest_at(record)?))
    }

    /// The parts of a volume that its image at a slot uses, in the order in which they are laid over each other.
    pub fn living_at(&self, volume: VolumeId, slot: Slot) -> impl Iterator<Item = (PartNo, &Part)> {
        self.iter().filter(move |(_, p)| p.name.layer.volume == volume && p.lives_at(slot))
    }

    /// The same, for whoever needs each for a moment only.
    pub(crate) fn passing_that_live_at(&self, volume: VolumeId, slot: Slot) -> impl Iterator<Item = (PartNo, Passing<'_, Part>)> {
        self.all.passing().filter(move |(_, part)| part.name.layer.volume == volume && part.lives_at(slot))
    }

    /// All of them as they are.
    pub(crate) fn take_all(&mut self) -> Rows<PartNo, Part> {
        std::mem::take(self).all
    }

    /// The head image took granules of a part.
    pub(crate) fn gained(&mut self, id: PartNo, granules: u64) {
        if let Some(part) = self.all.get_mut(&id) {
            part.head_granules += granules;
        }
    }

    /// The head image gave granules of a part up, for a layer of that slot.
    pub(crate) fn lost(&mut self, id: PartNo, granules: u64, slot: Slot) {
        if let Some(part) = self.all.get_mut(&id) {
            part.head_granules = part.head_granules.checked_sub(granules).expect("the head image loses only what it had");
            self.settle(id, slot);
        }
    }

    /// A part of which the head image uses nothing is dead from that slot on.
    pub(crate) fn settle(&mut self, id: PartNo, slot: Slot) {
        if let Some(part) = self.all.get_mut(&id)
            && part.head_granules == 0
        {
            part.died.get_or_insert(slot);
        }
    }

    /// When a part died that took the place of others, which replay could not see happen.
    pub(crate) fn died_with(&mut self, id: PartNo, died: Option<Slot>) {
        if let Some(part) = self.all.get_mut(&id)
            && part.head_granules == 0
        {
            part.died = died;
        }
    }

    /// Newer layers cover all that a damaged part may have held: dead from that slot on, if it was not before.
    pub(crate) fn bury(&mut self, id: PartNo, slot: Slot) {
        if let Some(part) = self.all.get_mut(&id) {
            part.head_granules = 0;
            part.died.get_or_insert(slot);
        }
    }

    /// The parts that nothing needs once the points in `without` are gone, at most `limit` of them, oldest first, by layer.
    pub fn dead(&self, state: &State, without: &BTreeSet<Slot>, limit: usize) -> Vec<PrunedParts> {
        self.dead_but_of(&BTreeMap::new(), state, without, limit)
    }

    /// The same, without those of some volumes that came in up to a slot.
    pub(crate) fn dead_but_of(
        &self,
        spared: &BTreeMap<VolumeId, Slot>,
        state: &State,
        without: &BTreeSet<Slot>,
        limit: usize,
    ) -> Vec<PrunedParts> {
        let mut points: BTreeMap<VolumeId, Vec<Slot>> = BTreeMap::new();
        for point in state.points().values().filter(|p| !without.contains(&p.slot)) {
            for member in &point.members {
                points.entry(member.key.volume).or_default().push(point.slot); // ascending: points are
            }
        }
        let mut dead: BTreeMap<LayerKey, Vec<u32>> = BTreeMap::new();
        let mut count = 0;
        for part in self.all.values() {
            if count == limit {
                break;
            }
            if spared.get(&part.name.layer.volume).is_some_and(|up_to| part.born <= *up_to) {
                continue;
            }
            let died = match part.died {
                Some(died) => died,
                None if mutation::on(MUTATION_RETAINED_POINTS_ONLY) => Slot(u64::MAX),
                None => continue,
            };
            let held = points.get(&part.name.layer.volume).is_some_and(|slots| {
                let first = slots.partition_point(|&s| s < part.born);
                slots.get(first).is_some_and(|&s| s < died)
            });
            if !held && state.may_prune_layer(&part.name.layer, without) {
                dead.entry(part.name.layer).or_default().push(part.name.number);
                count += 1;
            }
        }
        dead.into_iter()
            .map(|(layer, mut parts)| {
                parts.sort_unstable();
                PrunedParts { layer, parts }
            })
            .collect()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        *self.bytes.get_or_init(|| self.all.passing().map(|(_, part)| part.bytes).sum())
    }

    fn has_grown(&mut self, bytes: u64) {
        if let Some(all) = self.bytes.get_mut() {
            *all += bytes;
        }
    }

    fn has_shrunk(&mut self, bytes: u64) {
        if let Some(all) = self.bytes.get_mut() {
            *all -= bytes;
        }
    }

    /// Bytes of those that nothing needs now. Walks them all.
    pub fn dead_bytes(&self, state: &State) -> u64 {
        let dead = self.dead(state, &BTreeSet::new(), usize::MAX);
        let names = dead.iter().flat_map(|d| d.parts.iter().map(|&number| PartName { layer: d.layer, number }));
        names.filter_map(|n| self.all.get(self.by_name().get(&n)?)).map(|p| p.bytes).sum()
    }
}
