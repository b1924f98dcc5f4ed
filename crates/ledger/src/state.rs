//! Replay: what a ledger amounts to after so many records.
//!
//! `judge` decides from the state alone, `admit` changes it and cannot fail; [`State::apply`] is the two in turn. Nothing else
//! changes a state, so what was void left no trace but its place in the chain.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use farside_region::{
    Geometry, GroupId, LayerKey, LedgerPosition, MergeId, Name, PackedRegions, RecordDigest, RegionSet, Seq, Slot, Term,
    VolumeId, mutation,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::to_postcard;
use crate::digests::Digests;
use crate::label::Label;
use crate::memory::Forgotten;
use crate::merges::MergeFact;
use crate::packs::{PackId, PackUse, Packs, Place};
use crate::record::{
    Body, Claim, CutTime, EpochInfo, Heartbeat, LayerEntry, LayerKind, Layers, Pin, Prune, PrunedParts, Record, Stamp,
    TrackingLost, Verified, VerifiedHow, VolumeMeta,
};
use crate::retention::HeldBy;
use crate::rows::Rows;
use crate::stored::{LayerName, Stored, by_serde, count};
use crate::verdict::{Malformed, Verdict, VoidReason};

/// Between records of different writers ledger time advances by at most this, and the age clock between any two records, in
/// milliseconds.
const STEP_MS_MAX: u64 = 2 * 3600 * 1000;

/// Memory for the regions that accepted layers touched, in bytes. What is older than fits is known by its first and its last
/// region only; whoever needs more asks the layer's record: see [`State::is_exact`]. Part of the format of checkpoints.
pub const TOUCHED_BYTES_MAX: usize = 8 << 20;

/// How long replay knows of a part that it was given up lately, in milliseconds of the age clock: a day. Part of the format of
/// checkpoints.
pub const GIVEN_UP_LATELY_MS: u64 = 24 * 3600 * 1000;

/// A group's ledger, replayed up to a head.
///
/// Memory, and the state of a checkpoint, grow with what is retained: points, parts and the layers (about 200 bytes each) and merges (about 100) that they
/// are of. Of what is over, no more is known than [`Memory`](crate::Memory) says, and a day of what was given up; what layers touched takes at most
/// [`TOUCHED_BYTES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    group: GroupId,
    /// Of the records from `digests_from` on.
    pub(crate) digests: Digests,
    pub(crate) digests_from: u64,
    /// Of records before them that something names.
    pub(crate) old_digests: Rows<Slot, RecordDigest>,
    time_ms: u64,
    age_clock_ms: u64,
    last_stamp: Option<Stamp>,
    pub(crate) volumes: BTreeMap<VolumeId, VolumeState>,
    points: Rows<Slot, Point>,
    held_by: BTreeMap<VolumeId, HeldBy>,
    roots_changed: Option<Slot>,
    /// Of layers from this slot on it is known exactly what they touched.
    pub(crate) exact_from: Slot,
    /// What that takes.
    pub(crate) touched_bytes: usize,
    /// What accepted prunes and merges gave up within [`GIVEN_UP_LATELY_MS`], in their order.
    pub(crate) given_up: VecDeque<GivenUp>,
    /// The newest points that were verified, retained or not.
    last_proofs: Proofs<PointProof>,
    /// Where parts lie that have no object of their own.
    pub(crate) packs: Packs,
}

/// What an accepted prune or merge gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GivenUp {
    /// What the age clock said then, in milliseconds.
    pub(crate) age_clock_ms: u64,
    pub(crate) parts: Vec<PrunedParts>,
}

/// What replay knows about one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    meta: VolumeMeta,
    source: Name,
    pub(crate) term: Term,
    last_seq: Seq,
    pub(crate) layers: Rows<Slot, LayerFact>,
    pub(crate) slots: Rows<(Term, Seq), Slot>,
    pub(crate) forgotten: Option<Forgotten>,
    unreadable: RegionSet,
    pub(crate) quiet: Option<(Slot, CutTime)>,
    tracking_lost: Option<Slot>,
    pub(crate) merges: BTreeMap<MergeId, MergeFact>,
    pub(crate) decreed: BTreeSet<MergeId>,
}

/// One accepted layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFact {
    /// Which.
    pub key: LayerKey,
    /// The slot of its record.
    pub slot: Slot,
    /// As a member of a point, or fuzzy.
    pub kind: LayerKind,
    /// Its digest.
    pub digest: [u8; 32],
    /// How many parts it was published with.
    pub part_count: u32,
    /// Bytes of these parts.
    pub bytes: u64,
    pub(crate) touched: PackedRegions,
    pub(crate) pruned: BTreeSet<u32>,
}

/// A retained recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The slot of its record, which is also its name.
    pub slot: Slot,
    /// When it was cut, on the source's clocks.
    pub epoch: EpochInfo,
    /// What its source says of it.
    pub label: Option<Box<Label>>,
    /// Its volumes.
    pub members: Vec<PointMember>,
    /// Ledger time of its record, in milliseconds.
    pub time_ms: u64,
    /// What the age clock said then, in milliseconds.
    pub age_clock_ms: u64,
    /// The wall clock of the process that published it, in milliseconds since 1970; for people.
    pub published_wall_ms: i64,
    /// Some region of a member holds an unreadable run.
    pub degraded: bool,
    /// What holds it against pruning: slot of the pin's record, reason.
    pub pins: BTreeMap<Slot, String>,
    /// When it was verified last.
    pub proofs: Proofs<Proof>,
}

/// The newest of each way to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs<T> {
    /// All of it was read.
    pub read_back: Option<T>,
    /// It was compared with what the source holds.
    pub with_source: Option<T>,
}

/// That a point was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The slot of the record that says so.
    pub slot: Slot,
    /// The wall clock of its writer, in milliseconds since 1970; for people.
    pub wall_ms: i64,
}

/// Which point was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointProof {
    /// The slot of the point's record. It may have been pruned since.
    pub point: Slot,
    /// When it was cut, by the source's wall clock, in milliseconds since 1970.
    pub cut_wall_ms: i64,
    /// When it was verified.
    pub proof: Proof,
}

impl<T> Default for Proofs<T> {
    fn default() -> Self {
        Self { read_back: None, with_source: None }
    }
}

impl<T> Proofs<T> {
    /// What is known by that way.
    pub fn by(&self, how: VerifiedHow) -> Option<&T> {
        match how {
            VerifiedHow::ReadBack => self.read_back.as_ref(),
            VerifiedHow::WithSource => self.with_source.as_ref(),
        }
    }

    /// All that is known.
    pub fn iter(&self) -> impl Iterator<Item = (VerifiedHow, &T)> {
        let all = [(VerifiedHow::ReadBack, &self.read_back), (VerifiedHow::WithSource, &self.with_source)];
        all.into_iter().filter_map(|(how, known)| Some((how, known.as_ref()?)))
    }

    fn set(&mut self, how: VerifiedHow, newest: T) {
        match how {
            VerifiedHow::ReadBack => self.read_back = Some(newest),
            VerifiedHow::WithSource => self.with_source = Some(newest),
        }
    }
}

/// A volume as a point holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointMember {
    /// Its newest layer.
    pub key: LayerKey,
    /// That layer's digest.
    pub digest: [u8; 32],
    /// The volume's size then.
    pub volume_bytes: u64,
    /// Bytes of that layer's parts.
    pub layer_bytes: u64,
    /// Some region of this member holds an unreadable run.
    pub degraded: bool,
}

/// Why a record cannot be the next of this ledger. Not a verdict: something is wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The store of another group, or a file in the wrong place.
    #[error("the record belongs to group {found}, not to {expected}")]
    Group {
        /// This ledger's.
        expected: GroupId,
        /// The record's.
        found: GroupId,
    },
    /// A file in the wrong place.
    #[error("the record says it is number {found}; the next one is {expected}")]
    Slot {
        /// The next.
        expected: Slot,
        /// The record's.
        found: Slot,
    },
    /// Some record was replaced.
    #[error("the record at slot {slot} does not follow the one before it: it names {found}, which has {expected}")]
    Prev {
        /// The record's slot.
        slot: Slot,
        /// The digest of the head.
        expected: RecordDigest,
        /// What the record names.
        found: RecordDigest,
    },
}

/// Why a cached state is of no use. Never an emergency: replay from slot 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Not a state, or of another version.
    #[error("not a cached ledger state of this version")]
    Magic,
    /// Damaged.
    #[error("the cached ledger state is damaged")]
    Damaged,
}

impl State {
    /// An empty ledger.
    pub fn new(group: GroupId) -> Self {
        Self {
            group,
            digests: Digests::default(),
            digests_from: 0,
            old_digests: Rows::new(),
            time_ms: 0,
            age_clock_ms: 0,
            last_stamp: None,
            volumes: BTreeMap::new(),
            points: Rows::new(),
            held_by: BTreeMap::new(),
            roots_changed: None,
            exact_from: Slot(0),
            touched_bytes: 0,
            given_up: VecDeque::new(),
            last_proofs: Proofs::default(),
            packs: Packs::default(),
        }
    }

    /// Whose ledger.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The head: the last slot replayed and its digest. `None` when nothing was.
    pub fn position(&self) -> Option<LedgerPosition> {
        let digest = self.digests.last()?;
        Some(LedgerPosition { slot: Slot(self.next_slot().0 - 1), digest })
    }

    /// The last slot replayed.
    pub fn head(&self) -> Option<Slot> {
        self.position().map(|p| p.slot)
    }

    /// The slot after the head.
    pub fn next_slot(&self) -> Slot {
        Slot(self.digests_from.saturating_add(self.digests.len() as u64))
    }

    /// What the next record must name as its predecessor.
    pub fn prev(&self) -> RecordDigest {
        self.digests.last().unwrap_or(Record::NO_PREDECESSOR)
    }

    /// The digest of the record in a slot up to the head, if it is known: see [`State::remembers`]. That of an accepted layer's record always is as long as the
    /// layer is, and so is that of a retained point's.
    pub fn digest_at(&self, slot: Slot) -> Option<RecordDigest> {
        match slot.0.checked_sub(self.digests_from) {
            Some(at) => self.digests.get(usize::try_from(at).ok()?),
            None => self.old_digests.get(&slot).copied(),
        }
    }

    /// Whether this ledger is known to have gone through that position. False also when it lies above the head, or [is not known any
    /// more](State::remembers).
    pub fn holds(&self, position: &LedgerPosition) -> bool {
        self.digest_at(position.slot) == Some(position.digest)
    }

    /// Ledger time in milliseconds since the ledger's first layer or heartbeat.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The stamp of the last record, with the clock of its writer never behind what that writer said before.
    pub fn last_stamp(&self) -> Option<&Stamp> {
        self.last_stamp.as_ref()
    }

    /// The age clock, in milliseconds: it advances when ledger time does, within one writer's life by the same, but by at most
    /// two hours at a time, and between writers not at all. So no point is older by it than it really is, whatever wall clocks
    /// say, and a source that was silent for weeks finds its points two hours older at most.
    pub fn age_clock_ms(&self) -> u64 {
        self.age_clock_ms
    }

    /// Parts that were given up less than [`GIVEN_UP_LATELY_MS`] ago by the age clock, and so by any clock: who read a point when
    /// it went may still want them. Also after a checkpoint: whoever deletes may be a process that began just now.
    pub fn given_up_lately(&self) -> impl Iterator<Item = (LayerKey, u32)> {
        let pruned = self.given_up.iter().flat_map(|given_up| &given_up.parts);
        pruned.flat_map(|pruned| pruned.parts.iter().map(|&part| (pruned.layer, part)))
    }

    /// A volume that was ever claimed.
    pub fn volume(&self, id: VolumeId) -> Option<&VolumeState> {
        self.volumes.get(&id)
    }

    /// All volumes that were ever claimed.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeId, &VolumeState)> {
        self.volumes.iter().map(|(&id, v)| (id, v))
    }

    /// The retained points by slot.
    pub fn points(&self) -> &Rows<Slot, Point> {
        &self.points
    }

    /// The newest retained point that holds a volume.
    pub fn newest_point_of(&self, volume: VolumeId) -> Option<&Point> {
        self.points.get(&self.held_by.get(&volume)?.newest()?)
    }

    /// The newest points that were verified, each way, whether they are retained or not, and when they were last.
    pub fn last_proofs(&self) -> &Proofs<PointProof> {
        &self.last_proofs
    }

    /// Where a published part lies that has no object of its own, until a day after it was given up.
    pub fn place(&self, layer: &LayerKey, number: u32) -> Option<Place> {
        self.packs.place(layer, number)
    }

    /// The same of a part that is to be published by a record in that slot.
    pub fn place_in(&self, slot: Slot, layer: &LayerKey, number: u32) -> Option<Place> {
        self.packs.place_in(slot, layer, number)
    }

    /// All packs of which something is needed, or was until a day ago by the age clock: whatever is not here, and
    /// [is decided](PackId::is_decided), nobody needs.
    pub fn packs(&self) -> &BTreeMap<PackId, PackUse> {
        self.packs.uses()
    }

    pub(crate) fn held_by(&self, volume: VolumeId) -> Option<&HeldBy> {
        self.held_by.get(&volume)
    }

    /// An accepted layer.
    pub fn layer(&self, key: &LayerKey) -> Option<&LayerFact> {
        self.volumes.get(&key.volume)?.layer(key.term, key.seq)
    }

    /// Whether it is known exactly what layers in this slot touched. Of older ones only their record knows that.
    pub fn is_exact(&self, slot: Slot) -> bool {
        slot >= self.exact_from
    }

    /// The newest accepted pin, unpin or prune record.
    pub fn roots_changed(&self) -> Option<Slot> {
        self.roots_changed
    }

    /// The record that alone knows what the layers in this slot touched. `None`: it is known here, or the slot is above the head.
    pub fn only_known_by(&self, slot: Slot) -> Option<RecordDigest> {
        if self.is_exact(slot) { None } else { self.digest_at(slot) }
    }

    /// The accepted layers of a volume above a slot (`None`: all), for the position rule.
    pub fn layers_above(&self, volume: VolumeId, above: Option<Slot>) -> impl Iterator<Item = &LayerFact> {
        self.volumes.get(&volume).into_iter().flat_map(move |v| v.layers_above(above))
    }

    /// What layers that come next are judged by, without the history: for whoever builds several records that follow one another.
    /// Of what came before it knows the newest layer of each volume, the head's digest, and no point; so it costs the same
    /// however long the ledger is.
    pub fn without_history(&self) -> Self {
        let volumes: BTreeMap<_, _> = self.volumes.iter().map(|(id, volume)| (*id, volume.without_history())).collect();
        let held_bytes = |volume: &VolumeState| volume.layers.values().map(|layer| layer.touched.held_bytes()).sum::<usize>();
        Self {
            digests: self.digests.last().into_iter().collect(),
            digests_from: self.next_slot().0.saturating_sub(1),
            time_ms: self.time_ms,
            age_clock_ms: self.age_clock_ms,
            last_stamp: self.last_stamp,
            exact_from: self.exact_from,
            touched_bytes: volumes.values().map(held_bytes).sum(),
            volumes,
            ..Self::new(self.group)
        }
    }

    /// Whether a record is the next of this ledger: its group, its slot, its predecessor.
    ///
    /// # Errors
    /// What is wrong, which is never a matter of a race: the store was mixed up or tampered with.
    pub fn follows(&self, record: &Record) -> Result<(), ChainError> {
        if record.group != self.group {
            return Err(ChainError::Group { expected: self.group, found: record.group });
        }
        if record.slot != self.next_slot() {
            return Err(ChainError::Slot { expected: self.next_slot(), found: record.slot });
        }
        if record.prev != self.prev() {
            return Err(ChainError::Prev { slot: record.slot, expected: self.prev(), found: record.prev });
        }
        Ok(())
    }

    /// Replays one record: the verdict on it, which everybody who replays these bytes reaches.
    ///
    /// `digest` is what [`Record::decode`] or [`Record::encode`] gave with the record. A record that does not
    /// [follow](Self::follows) is [`VoidReason::BrokenChain`] and leaves even the head alone; callers ask first, to name it.
    pub fn apply(&mut self, record: &Record, digest: RecordDigest) -> Verdict {
        let verdict = self.judge(record);
        if verdict != Verdict::Void(VoidReason::BrokenChain) {
            self.packs.reach(record.slot);
        }
        match verdict {
            Verdict::Void(VoidReason::BrokenChain) => return verdict,
            Verdict::Accepted => self.admit(record),
            Verdict::Void(reason) if mutation::on("accept a void record") && reason != VoidReason::Duplicate => {
                if let Body::Layers(layers) = &record.body {
                    self.admit_layers(record.slot, &record.stamp, layers);
                }
            }
            Verdict::Void(_) => {}
        }
        self.digests.push(digest);
        self.forget();
        verdict
    }

    /// What [`State::apply`] would say, without doing it.
    pub fn judge(&self, record: &Record) -> Verdict {
        if self.follows(record).is_err() {
            return Verdict::Void(VoidReason::BrokenChain);
        }
        let judged = match &record.body {
            Body::Claim(claim) => self.judge_claim(record.slot, claim),
            Body::Layers(layers) => self.judge_layers(layers),
            Body::Heartbeat(heartbeat) => self.judge_heartbeat(heartbeat),
            Body::Pin(pin) => self.judge_pin(pin),
            Body::Unpin(unpin) => self.pinned_point(unpin.pin).map(|_| ()).ok_or(VoidReason::NoSuchPin(unpin.pin)),
            Body::Prune(prune) => self.judge_prune(record.slot, prune),
            Body::TrackingLost(lost) => self.judge_tracking_lost(lost),
            Body::Verified(verified) => {
                self.points.get(&verified.point).map(|_| ()).ok_or(VoidReason::NoSuchPoint(verified.point))
            }
            Body::Map(map) => self.judge_map(record.slot, map),
            Body::Decree(decree) => self.judge_decree(decree),
            Body::PackPlaces(said) => Packs::judge(record.slot, said).map_err(VoidReason::Malformed),
            Body::TornVoid(_) => Err(VoidReason::Torn),
        };
        judged.map_or_else(Verdict::Void, |()| Verdict::Accepted)
    }

    fn judge_claim(&self, slot: Slot, claim: &Claim) -> Result<(), VoidReason> {
        if claim.looked.is_some_and(|looked| looked >= slot) {
            return Err(VoidReason::Malformed(Malformed::LookedAhead));
        }
        let Some(volume) = self.volumes.get(&claim.volume.id) else { return Ok(()) };
        let (old, new) = (&volume.meta, &claim.volume);
        if let Some(last) = volume.last_layer()
            && claim.looked.is_none_or(|looked| last.slot > looked)
            && !mutation::on("a claim without the slot up to which it looked")
        {
            return Err(VoidReason::ClaimOvertaken { last_layer: last.slot });
        }
        if new.generation < old.generation && !mutation::on("L6 a lower generation claims") {
            return Err(VoidReason::Fenced { current: old.generation });
        }
        if !same_shape(&old.geometry, &new.geometry) {
            return Err(VoidReason::ClaimShape(new.id));
        }
        let (ledger_bytes, claim_bytes) = (old.geometry.volume_bytes(), new.geometry.volume_bytes());
        if claim_bytes < ledger_bytes {
            return Err(VoidReason::ClaimShrinks { ledger_bytes, claim_bytes });
        }
        if new.digest_key != old.digest_key && !mutation::on("a claim gives a volume another key or seal") {
            return Err(VoidReason::ClaimDigestKey);
        }
        Ok(())
    }

    fn judge_layers(&self, layers: &Layers) -> Result<(), VoidReason> {
        if layers.members.is_empty() {
            return Err(VoidReason::Malformed(Malformed::NoMembers));
        }
        if layers.epoch.mono_after_ns < layers.epoch.mono_before_ns {
            return Err(VoidReason::Malformed(Malformed::Times));
        }
        if layers.label.as_ref().is_some_and(|label| layers.kind == LayerKind::Fuzzy || !label.fits()) {
            return Err(VoidReason::Malformed(Malformed::Label));
        }
        let volumes: BTreeSet<VolumeId> = layers.members.iter().map(|m| m.key.volume).collect();
        if volumes.len() != layers.members.len() {
            return Err(VoidReason::Malformed(Malformed::Twice));
        }
        let mut done = 0;
        for member in &layers.members {
            done += usize::from(self.standing(layers.kind, member)? == Standing::Done);
        }
        if done == layers.members.len() {
            Err(VoidReason::Duplicate)
        } else if done > 0 && layers.kind == LayerKind::Point {
            Err(VoidReason::PointPartlyDuplicate)
        } else {
            Ok(())
        }
    }

    fn standing(&self, kind: LayerKind, entry: &LayerEntry) -> Result<Standing, VoidReason> {
        let key = entry.key;
        let volume = self.volumes.get(&key.volume).ok_or(VoidReason::UnknownVolume(key.volume))?;
        check_entry(&volume.meta.geometry, entry).map_err(VoidReason::Malformed)?;
        if key.term != volume.term && !mutation::on("staged data carried across a term") {
            return Err(VoidReason::Term { volume: key.volume, current: volume.term });
        }
        if key.seq == volume.last_seq.next() || mistaken_for_new(volume, key) {
            return Ok(Standing::New);
        }
        if let Some(known) = volume.layer(key.term, key.seq) {
            let same = known.digest == entry.digest || mutation::on("T11 a duplicate is not compared");
            return if same { Ok(Standing::Done) } else { Err(VoidReason::DuplicateDiffers(key)) };
        }
        Err(match kind {
            _ if key.seq <= volume.last_seq => VoidReason::Seq { volume: key.volume, last: volume.last_seq },
            LayerKind::Point => VoidReason::PointOverGap { volume: key.volume, last: volume.last_seq },
            LayerKind::Fuzzy => VoidReason::Seq { volume: key.volume, last: volume.last_seq },
        })
    }

    fn judge_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), VoidReason> {
        if heartbeat.members.is_empty() {
            return Err(VoidReason::Malformed(Malformed::NoMembers));
        }
        let volumes: BTreeSet<VolumeId> = heartbeat.members.iter().map(|(v, _)| *v).collect();
        if volumes.len() != heartbeat.members.len() {
            return Err(VoidReason::Malformed(Malformed::Twice));
        }
        for &(id, term) in &heartbeat.members {
            let volume = self.volumes.get(&id).ok_or(VoidReason::UnknownVolume(id))?;
            if volume.term != term && !mutation::on("T15 heartbeats of an old term count") {
                return Err(VoidReason::HeartbeatTerm(id));
            }
            let above = volume.last_layer().is_some_and(|l| l.slot > heartbeat.position.slot)
                && !mutation::on("T15 a heartbeat below a layer counts");
            if above || !self.holds(&heartbeat.position) {
                return Err(VoidReason::HeartbeatPosition(id));
            }
        }
        Ok(())
    }

    fn judge_tracking_lost(&self, lost: &TrackingLost) -> Result<(), VoidReason> {
        let volume = self.volumes.get(&lost.volume).ok_or(VoidReason::UnknownVolume(lost.volume))?;
        if volume.term != lost.term {
            return Err(VoidReason::Term { volume: lost.volume, current: volume.term });
        }
        // Every header position that this one would lie above lies below the one before too.
        if volume.tracking_lost_since_header_moved() { Err(VoidReason::Duplicate) } else { Ok(()) }
    }

    fn judge_pin(&self, pin: &Pin) -> Result<(), VoidReason> {
        if pin.reason.len() > Pin::REASON_BYTES_MAX {
            return Err(VoidReason::Malformed(Malformed::Reason));
        }
        if !self.points.contains_key(&pin.point) {
            return Err(VoidReason::NoSuchPoint(pin.point));
        }
        Ok(())
    }

    fn judge_prune(&self, slot: Slot, prune: &Prune) -> Result<(), VoidReason> {
        if prune.looked >= slot {
            return Err(VoidReason::Malformed(Malformed::LookedAhead));
        }
        let unchecked = mutation::on("T16 prune unchecked at its slot");
        if let Some(changed) = self.roots_changed
            && changed > prune.looked
            && !unchecked
        {
            return Err(VoidReason::PruneOvertaken(changed));
        }
        let points: BTreeSet<Slot> = prune.points.iter().copied().collect();
        let layers: BTreeSet<LayerKey> = prune.parts.iter().map(|p| p.layer).collect();
        if points.len() != prune.points.len() || layers.len() != prune.parts.len() {
            return Err(VoidReason::Malformed(Malformed::Twice));
        }
        if points.is_empty() && layers.is_empty() {
            return Err(VoidReason::Malformed(Malformed::NoMembers));
        }
        if let Some(point) = prune.points.iter().copied().find(|p| !self.points.contains_key(p)) {
            return Err(VoidReason::NoSuchPoint(point));
        }
        let measure = self.measure(&prune.policy);
        if let Some(point) = prune.points.iter().copied().find(|p| !unchecked && !measure.lets_go_of(*p)) {
            return Err(VoidReason::NotPrunable(point));
        }
        for pruned in &prune.parts {
            if !pruned.parts.windows(2).all(|w| w[0] < w[1]) {
                return Err(VoidReason::Malformed(Malformed::Twice));
            }
            let known = self
                .published(&pruned.layer)
                .filter(|known| known.record <= prune.looked && pruned.parts.iter().all(|part| known.has(*part)));
            if known.is_none() || !(unchecked || self.may_prune_layer(&pruned.layer, &points)) {
                return Err(VoidReason::PruneLive(pruned.layer));
            }
        }
        Ok(())
    }

    /// Whether the ledger's own knowledge lets parts of a layer go once the points in `without` are gone: the newest layer of
    /// a volume, and a layer that a retained point names as a member, stay whatever the index says. Necessary, not enough:
    /// which part still holds the newest content of a granule, at the head or at a retained point, only the index knows.
    /// Of parts that took the place of others: they stay while the point is retained at which they hold what those did.
    pub fn may_prune_layer(&self, key: &LayerKey, without: &BTreeSet<Slot>) -> bool {
        if key.merge().is_some() {
            return self.may_prune_merge(key, without);
        }
        let Some(volume) = self.volumes.get(&key.volume) else { return false };
        let Some(layer) = volume.layer(key.term, key.seq) else { return false };
        let newest = volume.last_layer().is_some_and(|l| l.slot == layer.slot);
        let member = layer.kind == LayerKind::Point && self.points.contains_key(&layer.slot) && !without.contains(&layer.slot);
        !newest && !member
    }

    fn admit(&mut self, record: &Record) {
        let slot = record.slot;
        match &record.body {
            Body::Claim(claim) => self.admit_claim(slot, claim),
            Body::Layers(layers) => self.admit_layers(slot, &record.stamp, layers),
            Body::Heartbeat(heartbeat) => {
                self.advance_time(&record.stamp);
                for (id, _) in &heartbeat.members {
                    if let Some(volume) = self.volumes.get_mut(id) {
                        volume.quiet = Some((slot, heartbeat.t));
                    }
                }
            }
            Body::Pin(pin) => {
                if let Some(point) = self.points.get_mut(&pin.point) {
                    point.pins.insert(slot, pin.reason.clone());
                }
                self.roots_changed = Some(slot);
            }
            Body::Unpin(unpin) => {
                if let Some(point) = self.pinned_point(unpin.pin).and_then(|p| self.points.get_mut(&p)) {
                    point.pins.remove(&unpin.pin);
                }
                self.roots_changed = Some(slot);
            }
            Body::Prune(prune) => self.admit_prune(slot, prune),
            Body::TrackingLost(lost) => {
                if let Some(volume) = self.volumes.get_mut(&lost.volume) {
                    volume.tracking_lost = Some(slot);
                }
            }
            Body::Verified(verified) => self.admit_verified(Proof { slot, wall_ms: record.stamp.wall_ms }, verified),
            Body::Map(map) => self.admit_map(slot, map),
            Body::Decree(decree) => self.admit_decree(decree),
            Body::PackPlaces(said) => self.packs.say(said),
            Body::TornVoid(_) => unreachable!("a torn slot is always void"),
        }
    }

    fn admit_verified(&mut self, proof: Proof, verified: &Verified) {
        if let Some(point) = self.points.get_mut(&verified.point) {
            point.proofs.set(verified.how, proof);
            let newest = PointProof { point: point.slot, cut_wall_ms: point.epoch.wall_ms, proof };
            // A person may look at old ones at any time: that says nothing of how old what is known to be sound is.
            if self.last_proofs.by(verified.how).is_none_or(|last| last.point <= newest.point) {
                self.last_proofs.set(verified.how, newest);
            }
        }
    }

    fn admit_claim(&mut self, slot: Slot, claim: &Claim) {
        let volume = self.volumes.entry(claim.volume.id).or_insert_with(|| VolumeState {
            meta: claim.volume.clone(),
            source: claim.source.clone(),
            term: Term(slot.0),
            last_seq: Seq(0),
            layers: Rows::new(),
            slots: Rows::new(),
            forgotten: None,
            unreadable: RegionSet::new(),
            quiet: None,
            tracking_lost: None,
            merges: BTreeMap::new(),
            decreed: BTreeSet::new(),
        });
        volume.meta = claim.volume.clone();
        volume.source = claim.source.clone();
        volume.term = Term(slot.0);
        volume.last_seq = Seq(0);
        volume.quiet = None;
    }

    fn admit_layers(&mut self, slot: Slot, stamp: &Stamp, layers: &Layers) {
        self.advance_time(stamp);
        let mut members = Vec::new();
        for entry in &layers.members {
            let Some(volume) = self.volumes.get_mut(&entry.key.volume) else { continue };
            if volume.layer(entry.key.term, entry.key.seq).is_some() && !mistaken_for_new(volume, entry.key) {
                continue;
            }
            self.touched_bytes += volume.admit_layer(slot, layers.kind, entry);
            self.packs.publish(entry);
            members.push(PointMember {
                key: entry.key,
                digest: entry.digest,
                volume_bytes: entry.volume_bytes,
                layer_bytes: layer_bytes(entry),
                degraded: !volume.unreadable.is_empty(),
            });
        }
        if layers.kind == LayerKind::Point && !members.is_empty() {
            members.sort_by_key(|m| m.key.volume);
            let point = Point {
                slot,
                epoch: layers.epoch,
                label: layers.label.clone(),
                degraded: members.iter().any(|m| m.degraded),
                members,
                time_ms: self.time_ms,
                age_clock_ms: self.age_clock_ms,
                published_wall_ms: stamp.wall_ms,
                pins: BTreeMap::new(),
                proofs: Proofs::default(),
            };
            for member in &point.members {
                self.held_by.entry(member.key.volume).or_default().add(slot, point.degraded);
            }
            self.points.insert(slot, point);
        }
        self.coarsen(slot);
    }

    /// Gives up what the oldest layers touched exactly, as far as it takes too much memory.
    fn coarsen(&mut self, last: Slot) {
        while self.touched_bytes > TOUCHED_BYTES_MAX && self.exact_from <= last {
            for volume in self.volumes.values_mut() {
                if let Some(layer) = volume.layers.get_mut(&self.exact_from) {
                    self.touched_bytes -= layer.touched.held_bytes();
                    layer.touched = layer.touched.hull();
                }
            }
            self.exact_from = Slot(self.exact_from.0 + 1);
        }
    }

    fn admit_prune(&mut self, slot: Slot, prune: &Prune) {
        for slot in &prune.points {
            for member in self.points.remove(slot).into_iter().flat_map(|point| point.members) {
                if let Some(held) = self.held_by.get_mut(&member.key.volume) {
                    held.remove(*slot);
                    if held.is_empty() {
                        self.held_by.remove(&member.key.volume);
                    }
                }
            }
        }
        for pruned in &prune.parts {
            if let Some(volume) = self.volumes.get_mut(&pruned.layer.volume) {
                volume.give_up(&pruned.layer, &pruned.parts);
            }
        }
        if !prune.parts.is_empty() {
            self.packs.give_up(&prune.parts);
            self.given_up.push_back(GivenUp { age_clock_ms: self.age_clock_ms, parts: prune.parts.clone() });
        }
        self.roots_changed = Some(slot);
    }

    fn pinned_point(&self, pin: Slot) -> Option<Slot> {
        self.points.values().find(|p| p.pins.contains_key(&pin)).map(|p| p.slot)
    }

    /// Ledger time: of one writer, its monotonic clock; between writers, the difference of their stamps within 0 to 2 hours. The
    /// age clock never runs faster.
    fn advance_time(&mut self, stamp: &Stamp) {
        let mut next = *stamp;
        if let Some(last) = self.last_stamp {
            let (step_ms, aged_ms) = if last.writer == stamp.writer {
                next.mono_ms = stamp.mono_ms.max(last.mono_ms);
                let step_ms = next.mono_ms - last.mono_ms;
                (step_ms, if mutation::on("L5 silence ages points") { step_ms } else { step_ms.min(STEP_MS_MAX) })
            } else {
                let step_ms = stamp.wall_ms.saturating_sub(last.wall_ms).clamp(0, STEP_MS_MAX as i64) as u64;
                (step_ms, if mutation::on("L5 a wall clock ages points") { step_ms } else { 0 })
            };
            self.time_ms = self.time_ms.saturating_add(step_ms);
            self.age_clock_ms = self.age_clock_ms.saturating_add(aged_ms);
        }
        let before_ms = self.age_clock_ms.checked_sub(GIVEN_UP_LATELY_MS);
        while before_ms.is_some_and(|before| self.given_up.front().is_some_and(|first| first.age_clock_ms <= before)) {
            let gone = self.given_up.pop_front().expect("it was just looked at");
            self.packs.forget(&gone.parts);
        }
        self.last_stamp = Some(next);
    }
}

/// What a ledger without the rules of the chain would take: a layer of this term again, any layer of another.
fn mistaken_for_new(volume: &VolumeState, key: LayerKey) -> bool {
    (key.term == volume.term && mutation::on("a layer retried at a later slot"))
        || (key.term != volume.term && mutation::on("staged data carried across a term"))
}

/// How a layer stands to what was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    New,
    Done,
}

fn same_shape(a: &Geometry, b: &Geometry) -> bool {
    a.granule_bytes() == b.granule_bytes() && a.region_bytes() == b.region_bytes()
}

fn layer_bytes(entry: &LayerEntry) -> u64 {
    entry.parts.iter().fold(0, |sum, p| sum.saturating_add(p.bytes))
}

fn check_entry(known: &Geometry, entry: &LayerEntry) -> Result<(), Malformed> {
    if entry.key.seq == Seq(0) {
        return Err(Malformed::SeqZero);
    }
    let grown = known.resized(entry.volume_bytes).ok().filter(|g| g.volume_bytes() >= known.volume_bytes());
    let geometry = grown.ok_or(Malformed::VolumeBytes)?;
    if entry.regions.last().is_some_and(|r| r.0 >= geometry.region_count()) {
        return Err(Malformed::Region);
    }
    let mut stray = entry.unreadable_regions.clone();
    stray.subtract(&entry.regions);
    if stray.is_empty() { Ok(()) } else { Err(Malformed::Region) }
}

impl VolumeState {
    fn without_history(&self) -> Self {
        let newest = self.last_layer();
        Self {
            meta: self.meta.clone(),
            source: self.source.clone(),
            layers: newest.map(|layer| (layer.slot, layer.clone())).into_iter().collect(),
            slots: newest.map(|layer| ((layer.key.term, layer.key.seq), layer.slot)).into_iter().collect(),
            unreadable: self.unreadable.clone(),
            merges: BTreeMap::new(),
            decreed: BTreeSet::new(),
            ..*self
        }
    }

    /// What the newest accepted claim said, with the size grown to the newest layer's.
    pub fn meta(&self) -> &VolumeMeta {
        &self.meta
    }

    /// Who made the newest accepted claim.
    pub fn source(&self) -> &Name {
        &self.source
    }

    /// The slot of the newest accepted claim.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last accepted sequence number of that term; 0 when there is none.
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }

    /// The key that the next layer must have.
    pub fn next_key(&self) -> LayerKey {
        LayerKey { volume: self.meta.id, term: self.term, seq: self.last_seq.next() }
    }

    /// The newest accepted layer of any term.
    pub fn last_layer(&self) -> Option<&LayerFact> {
        self.layers.values().next_back()
    }

    /// Whether a point is due even if nothing is dirty: the newest layer is not part of one.
    pub fn ends_fuzzy(&self) -> bool {
        self.last_layer().is_some_and(|l| l.kind == LayerKind::Fuzzy)
    }

    /// The accepted layers above a slot (`None`: all), oldest first; without those that were [forgotten](Self::forgotten_above).
    pub fn layers_above(&self, above: Option<Slot>) -> impl DoubleEndedIterator<Item = &LayerFact> {
        let from = above.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.layers.range((from, std::ops::Bound::Unbounded)).map(|(_, l)| l)
    }

    /// An accepted layer that is known.
    pub fn layer(&self, term: Term, seq: Seq) -> Option<&LayerFact> {
        self.layers.get(self.slots.get(&(term, seq))?)
    }

    pub(crate) fn layer_mut(&mut self, term: Term, seq: Seq) -> Option<&mut LayerFact> {
        self.layers.get_mut(self.slots.get(&(term, seq))?)
    }

    /// Regions in which the head image may hold an unreadable run.
    pub fn unreadable(&self) -> &RegionSet {
        &self.unreadable
    }

    /// The newest heartbeat under this term with no layer after it: its slot, and up to when nothing had changed.
    pub fn quiet(&self) -> Option<(Slot, CutTime)> {
        self.quiet
    }

    /// The newest record that says that the volume's source lost track of changes. It concerns an attach whose header position
    /// lies below it.
    pub fn tracking_lost(&self) -> Option<Slot> {
        self.tracking_lost
    }

    /// Whether that record lies above all that a header position can have moved to since: the newest claim, the newest layer.
    pub fn tracking_lost_since_header_moved(&self) -> bool {
        let moved = self.last_layer().map_or(0, |l| l.slot.0).max(self.term.0);
        self.tracking_lost.is_some_and(|lost| lost.0 > moved)
    }

    /// What a new layer's entry must name as `unreadable_regions` when its writer has no index to ask: the regions it touches
    /// that were unreadable and are not rewritten in full, and those in which it has unreadable runs itself.
    pub fn unreadable_after(&self, regions: &RegionSet, rewritten_whole: &RegionSet, unreadable: &RegionSet) -> RegionSet {
        let mut after = self.unreadable.intersection(regions);
        after.subtract(rewritten_whole);
        after.union_with(unreadable);
        after
    }

    /// Takes up a layer; says how many bytes what it touched takes.
    fn admit_layer(&mut self, slot: Slot, kind: LayerKind, entry: &LayerEntry) -> usize {
        let touched = PackedRegions::from(&entry.regions);
        let touched_bytes = touched.held_bytes();
        self.last_seq = self.last_seq.max(entry.key.seq);
        self.slots.insert((entry.key.term, entry.key.seq), slot);
        self.layers.insert(
            slot,
            LayerFact {
                key: entry.key,
                slot,
                kind,
                digest: entry.digest,
                part_count: entry.parts.len() as u32,
                bytes: layer_bytes(entry),
                touched,
                pruned: BTreeSet::new(),
            },
        );
        self.unreadable.subtract(&entry.regions);
        self.unreadable.union_with(&entry.unreadable_regions);
        self.quiet = None;
        if let Ok(geometry) = self.meta.geometry.resized(entry.volume_bytes) {
            self.meta.geometry = geometry;
        }
        touched_bytes
    }
}

impl LayerFact {
    /// The regions it touched. Of old layers all between the first and the last: see [`State::is_exact`].
    pub fn touched(&self) -> &PackedRegions {
        &self.touched
    }

    /// The parts that an accepted prune or merge gave up.
    pub fn pruned(&self) -> &BTreeSet<u32> {
        &self.pruned
    }
}

impl State {
    /// Reads a state as postcard has it, up to its end; `all`: what `from` is a part of. Its tables stay bytes until somebody looks into them.
    /// `None`: these bytes are none. What was read is one only if it [is linked](State::is_linked).
    pub(crate) fn read(from: &mut &[u8], all: &Bytes) -> Option<Self> {
        Some(Self {
            group: by_serde(from)?,
            digests: Digests::read(from, all)?,
            digests_from: u64::read(from)?,
            old_digests: Rows::read(from, all)?,
            time_ms: u64::read(from)?,
            age_clock_ms: u64::read(from)?,
            last_stamp: by_serde(from)?,
            volumes: (0..count(from)?).map(|_| Some((by_serde(from)?, VolumeState::read(from, all)?))).collect::<Option<_>>()?,
            points: Rows::read(from, all)?,
            held_by: BTreeMap::read(from)?,
            roots_changed: Option::read(from)?,
            exact_from: Slot::read(from)?,
            touched_bytes: by_serde(from)?,
            given_up: by_serde(from)?,
            last_proofs: by_serde(from)?,
            packs: by_serde(from)?,
        })
    }

    /// Whether its tables of layers say of each other what they should.
    pub(crate) fn is_linked(&self) -> bool {
        self.volumes.values().all(VolumeState::is_linked)
    }
}

impl VolumeState {
    /// † By the one table a layer's parts are known, and by the other that it is there: of one that is not, whatever lies in the store is swept.
    fn is_linked(&self) -> bool {
        let of_layers = self.layers.passing_as(|layer| LayerName(layer.key));
        let of_layers = of_layers.map(|(slot, LayerName(key))| ((key.term, key.seq), slot));
        let of_slots = self.slots.passing().map(|(name, slot)| (name, *slot));
        self.layers.len() == self.slots.len() && of_layers.eq(of_slots)
    }

    fn read(from: &mut &[u8], all: &Bytes) -> Option<Self> {
        Some(Self {
            meta: by_serde(from)?,
            source: by_serde(from)?,
            term: Term::read(from)?,
            last_seq: Seq::read(from)?,
            layers: Rows::read(from, all)?,
            slots: Rows::read(from, all)?,
            forgotten: by_serde(from)?,
            unreadable: by_serde(from)?,
            quiet: by_serde(from)?,
            tracking_lost: Option::read(from)?,
            merges: by_serde(from)?,
            decreed: by_serde(from)?,
        })
    }
}

const CACHE_MAGIC: [u8; 8] = *b"FSLSTAT8";

impl State {
    /// The state as bytes, for a local cache: the same state gives the same bytes.
    pub fn to_cache(&self) -> Vec<u8> {
        let mut bytes = CACHE_MAGIC.to_vec();
        bytes.extend_from_slice(&to_postcard(self));
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    }

    /// Reads a cached state. It is worth no more than its [`State::position`]: use it only if the ledger's record in that slot
    /// has that digest, and if the cache is one that this process or its like wrote.
    ///
    /// # Errors
    /// When it is damaged or of another version.
    pub fn from_cache(bytes: &[u8]) -> Result<Self, CacheError> {
        let content = bytes.len().checked_sub(32).ok_or(CacheError::Magic)?;
        let (content, tail) = bytes.split_at(content);
        let body = content.strip_prefix(&CACHE_MAGIC).ok_or(CacheError::Magic)?;
        if blake3::hash(content).as_bytes() != tail {
            return Err(CacheError::Damaged);
        }
        match postcard::take_from_bytes(body) {
            Ok((state, [])) => Ok(state),
            _ => Err(CacheError::Damaged),
        }
    }
}
