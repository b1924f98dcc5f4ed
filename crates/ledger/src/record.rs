//! What a ledger record says. Plain data: what makes a record accepted or void is in `state.rs`, its bytes in `codec.rs`.

use std::fmt;

use farside_region::{
    BootId, DigestKey, Generation, Geometry, GroupId, LayerKey, LedgerPosition, MergeId, Name, RecordDigest, RegionSet, Slot,
    Term, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::label::Label;
use crate::packs::PackPlaces;
use crate::retention::Policy;

/// One record, in one slot of one group's ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whose ledger; a record of another group is never taken for one of this.
    pub group: GroupId,
    /// Its place.
    pub slot: Slot,
    /// The digest of the record before it; [`Record::NO_PREDECESSOR`] in slot 0.
    pub prev: RecordDigest,
    /// Drawn at random per attempt, so that a writer recognises his own record after an ambiguous answer.
    pub nonce: [u8; 16],
    /// When its writer made it.
    pub stamp: Stamp,
    /// What it says.
    pub body: Body,
}

impl Record {
    /// What slot 0 names as the digest before it.
    pub const NO_PREDECESSOR: RecordDigest = RecordDigest([0; 32]);
}

/// The clocks of the process that wrote a record. Compared only within one `writer`, except clamped (ledger time).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Drawn at random when the writing process started.
    pub writer: [u8; 16],
    /// Milliseconds of its monotonic clock, from any origin fixed for that `writer`.
    pub mono_ms: u64,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
}

/// The kinds of records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// A source asks for a volume.
    Claim(Claim),
    /// Layers are published.
    Layers(Layers),
    /// Nothing changed up to a time.
    Heartbeat(Heartbeat),
    /// A point must not be pruned.
    Pin(Pin),
    /// A pin is withdrawn.
    Unpin(Unpin),
    /// Points and dead parts are given up.
    Prune(Prune),
    /// A source lost track of what changes on a volume.
    TrackingLost(TrackingLost),
    /// A point was found sound.
    Verified(Verified),
    /// Parts are replaced by others that hold what is still needed of them.
    Map(Map),
    /// Merges that will never be.
    Decree(Decree),
    /// Where parts lie that the records after it name.
    PackPlaces(PackPlaces),
    /// Stands in for the unreadable bytes found in this slot. Always void; kept at `ledger/<n>.void`.
    TornVoid(TornVoid),
}

/// What a ledger knows about a volume as such.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMeta {
    /// The volume.
    pub id: VolumeId,
    /// What people call it.
    pub name: Name,
    /// Its size and how it is divided. The shape never changes; the size may grow.
    pub geometry: Geometry,
    /// Keys the granule digests, or says how the volume is encrypted. The first accepted claim of a volume fixes it for ever; a
    /// later claim must carry the same.
    pub digest_key: DigestKey,
    /// The fencing token; a claim with a lower one than the ledger holds is void.
    pub generation: Generation,
}

/// Leaves the digest key out: it belongs in no log.
impl fmt::Debug for VolumeMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeMeta")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("geometry", &self.geometry)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// A source asks for a volume; if accepted, the record's slot becomes the volume's term and its sequence starts anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The volume, as the claimant sees it.
    pub volume: VolumeMeta,
    /// The head up to which the claimant looked at the ledger under the position rule; `None` when it was empty. A layer of
    /// the volume above it makes the claim void.
    pub looked: Option<Slot>,
    /// Who claims.
    pub source: Name,
}

/// Whether published layers make a point that people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LayerKind {
    /// One cut, one layer per member, all or none.
    Point,
    /// Parts of passes; never visible as a point.
    Fuzzy,
}

/// The layers of one frozen epoch, or slices of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Point or fuzzy.
    pub kind: LayerKind,
    /// When the epoch was frozen.
    pub epoch: EpochInfo,
    /// What is said of the point; of fuzzy layers nothing.
    pub label: Option<Box<Label>>,
    /// One entry per volume, each volume at most once.
    pub members: Vec<LayerEntry>,
}

/// The switch that froze an epoch, on the source's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochInfo {
    /// The source kernel's boot, which gives the monotonic times their meaning.
    pub boot: BootId,
    /// CLOCK_MONOTONIC in nanoseconds, read before the switch.
    pub mono_before_ns: u64,
    /// The same, read after it.
    pub mono_after_ns: u64,
    /// The source's milliseconds since 1970, for people.
    pub wall_ms: i64,
}

/// One layer as a record names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry {
    /// Which layer.
    pub key: LayerKey,
    /// Over the footer digests of its parts, in order.
    pub digest: [u8; 32],
    /// Its parts, in order; empty for a layer without content.
    pub parts: Vec<PartEntry>,
    /// Every region that it touches, compared-equal ones included. Outlives the segments (T16).
    pub regions: RegionSet,
    /// Those of `regions` in which the head image *after this layer* still holds an unreadable run. A region that is in
    /// `regions` and not in here is thereby said to be readable in full, so whoever cannot tell must carry it over:
    /// [`crate::VolumeState::unreadable_after`].
    pub unreadable_regions: RegionSet,
    /// The volume's size in bytes when the epoch was frozen.
    pub volume_bytes: u64,
}

/// One part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its whole file, in bytes.
    pub bytes: u64,
    /// The digest that its trailer carries.
    pub footer_digest: [u8; 32],
}

/// A moment on a source's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutTime {
    /// The source kernel's boot.
    pub boot: BootId,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub mono_ns: u64,
    /// Milliseconds since 1970, for people.
    pub wall_ms: i64,
}

/// Nothing of these volumes changed up to `t`, resting on what the ledger held at `position` (T15).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The volumes, each with the term under which this is said.
    pub members: Vec<(VolumeId, Term)>,
    /// How far the source had seen the ledger.
    pub position: LedgerPosition,
    /// Read before the source looked at its maps.
    pub t: CutTime,
}

/// The source of a volume lost track of what its host writes, and could keep a note of that nowhere else. Whoever attaches the
/// volume with a header position below this record compares everything: his intent map may miss writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackingLost {
    /// The volume.
    pub volume: VolumeId,
    /// Under which claim.
    pub term: Term,
}

/// A point must stay. The slot of the accepted record is the pin's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The slot of the point's record.
    pub point: Slot,
    /// Why, for people; at most [`Pin::REASON_BYTES_MAX`] bytes.
    pub reason: String,
}

impl Pin {
    /// The longest reason, in bytes.
    pub const REASON_BYTES_MAX: usize = 1024;
}

/// Withdraws one pin; a point may have several, and stays while one is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpin {
    /// The slot of the pin's record.
    pub pin: Slot,
}

/// All members of a point were verified, and nothing was wrong with them. When is what the stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The slot of the point's record.
    pub point: Slot,
    /// How that is known.
    pub how: VerifiedHow,
}

/// How a point was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VerifiedHow {
    /// It was read in full: every frame was decoded, and every granule has its digest.
    ReadBack,
    /// Its digests are those of what the source holds; content was read there only.
    WithSource,
}

/// Gives up points, and names the parts that are dead once they are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prune {
    /// The head up to which the writer had replayed when it judged. A pin, unpin or prune accepted above it makes this void.
    pub looked: Slot,
    /// The policy under which every named point must be prunable, in this record's own slot.
    pub policy: PrunePolicy,
    /// Slots of the points to give up; may be empty.
    pub points: Vec<Slot>,
    /// The parts to delete.
    pub parts: Vec<PrunedParts>,
}

/// What a prune went by, and on which clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrunePolicy {
    /// Count and span in ledger time: what the first prunes went by. Judged as ever, and written no more.
    LedgerTime {
        /// See [`Policy::keep`].
        keep: u32,
        /// How long points stay, in milliseconds of ledger time.
        span_ms: u64,
    },
    /// A policy, whose ages are those of the group's age clock.
    Aged(Policy),
}

/// Parts of one layer that nothing needs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedParts {
    /// The layer.
    pub layer: LayerKey,
    /// Part numbers, ascending.
    pub parts: Vec<u32>,
}

/// Replaces parts of a volume by new ones, which hold exactly the granules of the old ones that are visible at a point.
///
/// Nothing in it says up to where its writer had looked: all that it rests on is in it and in the state of its own slot. A point
/// that is still there, and between it and the one before it no other, are all that makes it right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Whose parts.
    pub volume: VolumeId,
    /// What the new parts are named by: see [`Map::key`].
    pub id: MergeId,
    /// The slot of the retained point at which the new parts hold what the old ones did. All old ones were born after the
    /// retained point of the volume before it, and not after this one.
    pub point: Slot,
    /// The old parts, given up.
    pub parts: Vec<PrunedParts>,
    /// The new parts; not more than old ones.
    pub new: Vec<PartEntry>,
    /// Every region that the new parts touch.
    pub regions: RegionSet,
}

impl Map {
    /// The key of the new parts.
    pub fn key(&self) -> LayerKey {
        LayerKey::of_merge(self.volume, self.id)
    }
}

/// Merges of which no record will ever be accepted, so that what was written for them may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decree {
    /// They.
    pub merges: Vec<(VolumeId, MergeId)>,
}

/// Replaces bytes in this slot that do not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TornVoid {
    /// BLAKE3 over the bytes found.
    pub torn_digest: [u8; 32],
    /// How many bytes were found.
    pub torn_bytes: u64,
}
