//! The messages. New ones are added at the end of an enum and gated by version or feature: the order here is the format.
//!
//! `Hello` stays the first variant with these first fields for ever, so that any two builds can refuse each other by name.

use std::collections::BTreeSet;
use std::fmt;

use farside_ledger::{Claim, EpochInfo, Grid, Heartbeat, Label, LayerKind, Policy, VoidReason, VolumeMeta};
use farside_region::{
    GranuleDigest, GranuleIndex, GranuleRun, LayerKey, LedgerPosition, Name, RegionSet, Seq, Slot, Term, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::{
    CohortAsk, CohortSay, DecodeError, Features, PointAnswer, PointQuery, PullBegin, PullChunk, PullFork, PullPoint, PullQuery,
    PullVolumes, RollBackAnswer, RollBackAsk, VersionRange,
};

/// The most granules that one [`DigestQuery`] may ask for (32 real regions).
pub const DIGEST_GRANULES_MAX: u64 = 32 * 1024;
/// The most volumes in a [`Damage`].
pub const DAMAGED_VOLUMES_MAX: usize = 1024;
/// The most members of one [`EpochEnd`].
pub const END_MEMBERS_MAX: usize = 64;
/// The most ranges of regions in one [`EpochEnd`], all sets of all members together.
pub const END_RANGES_MAX: usize = 160_000;
/// The most layers that one [`ResumeQuery`] may name.
pub const RESUME_LAYERS_MAX: usize = 256;
/// The longest wrapped key, in bytes.
pub const WRAPPED_KEY_BYTES_MAX: usize = 64 << 10;
/// The longest text in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Pairs a question with its answer; the asker counts, per connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// One run of a source process, drawn at random when it starts: tells a restarted or cloned source from one that reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub [u8; 16]);

/// From the source. A connection belongs to one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SourceMessage {
    /// First on every connection; answered by [`ReceiverMessage::Hello`] or a refusal.
    Hello(SourceHello),
    /// The position rule's question; answered by [`ReceiverMessage::LedgerSlice`], page by page.
    ReadLedger(ReadLedger),
    /// Asks for a volume; answered by [`ReceiverMessage::ClaimVerdict`].
    Claim(ClaimRequest),
    /// A layer's parts will follow on their own streams.
    LayerBegin(LayerBegin),
    /// The kind and members of a frozen epoch of the group (T10), or one slice of a pass.
    EpochEnd(EpochEnd),
    /// Nothing changed up to a time.
    Heartbeat(Heartbeat),
    /// What became of these layers; answered by [`ReceiverMessage::ResumeAnswer`].
    Resume(ResumeQuery),
    /// What the newest published layers hold; answered by [`ReceiverMessage::DigestAnswer`].
    Digests(DigestQuery),
    /// For people; answered by [`ReceiverMessage::Points`].
    Points(PointQuery),
    /// What the source's configuration says about the group; after the greeting, and whenever it changes.
    Settings(Settings),
    /// Changes may go untracked, and nothing at the source keeps that: answered by [`ReceiverMessage::LossRecorded`], or by a
    /// refusal `Term`.
    TrackingLost(LossReport),
    /// In place of [`Self::Settings`], where both have [`Features::GRID`].
    Retention(Policy),
    /// A volume was held against what is published, and nothing was wrong; where both have [`Features::COMPARED`].
    Compared(Compared),
    /// The source goes on only when what is staged is published: the receiver is to wait for nothing more. Where both have
    /// [`Features::PUBLISH`].
    Publish,
    /// A wrapped key of the group, as `docs/formats/keys.md` has it, which the store is to keep: before the first claim of a volume that is
    /// encrypted with it. Where both have [`Features::SEALED`].
    WrappedKey(Vec<u8>),
    /// Which point may be pulled; answered by [`ReceiverMessage::PullPoint`], or by a refusal. Only on a connection that is there for it:
    /// [`Features::PULL`].
    PullBegin(PullBegin),
    /// What a region of that point holds that the asker's disk does not; answered by [`ReceiverMessage::Pulled`].
    Pull(PullQuery),
    /// In place of [`Self::EpochEnd`] of a point of which something is said, where both have [`Features::LABELS`].
    LabelledEnd(LabelledEnd),
    /// Which point the asker's disks went their own way from; answered by [`ReceiverMessage::PullPoint`], or by a refusal. Where the receiver has
    /// [`Features::FORK`].
    PullFork(PullFork),
    /// The source encrypts nothing by itself, and asks whether the receiver wants the group encrypted at rest: after the greeting, before it asks
    /// for anything else; answered by [`ReceiverMessage::GroupKey`], or by a refusal. Where both have [`Features::AT_REST`].
    KeyWanted,
    /// An answer to [`ReceiverMessage::Cohort`]. Only on a connection that is there for it: [`Features::COHORT`].
    Cohort(CohortSay),
    /// In place of [`Self::Retention`], where nobody has said at the source what to keep: it holds only where nothing was ever said of the
    /// group. Where both have [`Features::DEFAULTS`].
    DefaultRetention(Policy),
    /// Which volumes the asker has disks for: before [`Self::PullBegin`], [`Self::PullFork`] and [`Self::RollBack`]. Where the receiver has
    /// [`Features::PULL_VOLUMES`].
    PullVolumes(PullVolumes),
    /// What is discarded when the asker takes his history back with his own disks; answered by [`ReceiverMessage::RollBack`], or by a refusal. Where
    /// the receiver has [`Features::ROLL_BACK`].
    RollBack(RollBackAsk),
}

/// From the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ReceiverMessage {
    /// The connection stands.
    Hello(ReceiverHello),
    /// One page of an answer to [`SourceMessage::ReadLedger`].
    LedgerSlice(LedgerSlice),
    /// The fate of a claim.
    ClaimVerdict(ClaimVerdict),
    /// How much may be sent.
    Credit(Credit),
    /// These layers are durable at the receiver.
    Staged(Staged),
    /// These layers are named by an accepted record: the only thing that clears bits (L7).
    Published(Published),
    /// These layers can never be published: their term is over.
    Void(Void),
    /// These layers' data is gone or was not what the end message said: claim anew (T5).
    Lost(Lost),
    /// The answer to [`SourceMessage::Resume`].
    ResumeAnswer(ResumeAnswer),
    /// The answer to [`SourceMessage::Digests`].
    DigestAnswer(DigestAnswer),
    /// The answer to [`SourceMessage::Points`].
    Points(PointAnswer),
    /// The receiver will not do it; says why and what to do.
    Refusal(Refusal),
    /// How the receiver is.
    Notice(Notice),
    /// The answer to [`SourceMessage::TrackingLost`]: the ledger keeps it.
    LossRecorded(LossRecorded),
    /// What the store has lost of this group: a state, the newest one holds. Said after the greeting unless it is nothing, and
    /// whenever it changes.
    Damage(Damage),
    /// The answer to [`SourceMessage::PullBegin`].
    PullPoint(PullPoint),
    /// A piece of the answer to [`SourceMessage::Pull`].
    Pulled(PullChunk),
    /// The answer to [`SourceMessage::KeyWanted`].
    GroupKey(GroupKeyAnswer),
    /// Groups of several hosts are to be cut as one. Only on a connection that is there for it: [`Features::COHORT`].
    Cohort(CohortAsk),
    /// The answer to [`SourceMessage::RollBack`].
    RollBack(RollBackAnswer),
}

/// The key with which the volumes of a group are encrypted at rest, for the memory of its source; `None`: the receiver encrypts nothing of the group.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupKeyAnswer(pub Option<[u8; 32]>);

/// Without the key.
impl fmt::Debug for GroupKeyAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "GroupKeyAnswer(a key)" } else { "GroupKeyAnswer(none)" })
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceHello {
    /// The versions it speaks.
    pub versions: VersionRange,
    /// What it can do.
    pub features: Features,
    /// Which run of which source.
    pub instance: InstanceId,
    /// Counts this run's connections of this group: an older one is stale.
    pub connection: u64,
    /// The source's name.
    pub source: Name,
    /// The group this connection is for.
    pub group: Name,
}

/// What the source's configuration says that the receiver has to do: which points to keep, as [`Policy`] without a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The newest so many.
    pub keep: u32,
    /// And all that are younger, in milliseconds.
    pub span_ms: u64,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverHello {
    /// The version chosen.
    pub version: u16,
    /// The features in common.
    pub features: Features,
    /// The store behind it, for messages to people.
    pub store: [u8; 16],
}

/// Asks what the ledger says about a volume above a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLedger {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// What the header holds; `None` = nothing was ever confirmed.
    pub position: Option<LedgerPosition>,
    /// Continue after this slot (next page).
    pub after: Option<Slot>,
}

/// A page of what the ledger says about a volume. `head` and `current` are of the moment of this page; layers come in slot
/// order, so the last page (`more == false`) completes the answer up to its own `head`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerSlice {
    /// Of the question.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// Whether the ledger still carries the position asked from (true when none was given).
    pub ancestor: bool,
    /// Accepted layers of the volume above the position.
    pub layers: Vec<LedgerLayer>,
    /// Ask again after the last slot given.
    pub more: bool,
    /// The head; `None` = an empty ledger.
    pub head: Option<LedgerPosition>,
    /// What the ledger knows about the volume; `None` = never claimed.
    pub current: Option<CurrentVolume>,
}

impl LedgerSlice {
    /// The same, of a ledger that does not carry the position.
    #[must_use]
    pub fn rewound(self) -> Self {
        Self { ancestor: false, layers: Vec::new(), more: false, ..self }
    }
}

/// One accepted layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerLayer {
    /// Its record's slot.
    pub slot: Slot,
    /// Under which claim.
    pub term: Term,
    /// What it touches.
    pub regions: RegionSet,
}

/// The state of a volume in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentVolume {
    /// As the newest claim says; its digest key is to be adopted.
    pub meta: VolumeMeta,
    /// The current claim.
    pub term: Term,
    /// Last accepted layer of it; 0 = none.
    pub last_seq: Seq,
    /// Whether the ledger holds any layer of the volume, under whatever term.
    pub has_layers: bool,
    /// Whether the newest layer is not part of a point, so that a point is due.
    pub point_due: bool,
    /// Who made the current claim, if the receiver remembers.
    pub claimant: Option<InstanceId>,
    /// The newest point that holds the volume.
    pub newest_point: Option<NewestPoint>,
    /// The newest record that says that tracking was lost. Above the asker's position it means: compare everything.
    pub tracking_lost: Option<Slot>,
}

/// The newest point of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestPoint {
    /// Its record.
    pub position: LedgerPosition,
    /// When it was cut.
    pub epoch: EpochInfo,
}

/// Asks for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// Comes back in the answer.
    pub id: RequestId,
    /// The body of the record.
    pub claim: Claim,
}

impl ClaimRequest {
    /// Nobody here knows of that volume: it is not taken, and who claimed it asks again in a while.
    pub fn not_taken(&self) -> ClaimVerdict {
        let volume = self.claim.volume.id;
        ClaimVerdict { id: self.id, volume, outcome: ClaimOutcome::Void { reason: VoidReason::UnknownVolume(volume) } }
    }
}

/// The fate of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimVerdict {
    /// Of the question.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// What became of it.
    pub outcome: ClaimOutcome,
}

/// See [`ClaimVerdict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimOutcome {
    /// The slot is the term now.
    Accepted {
        /// The claim's own record.
        position: LedgerPosition,
    },
    /// Look again, or stop.
    Void {
        /// Why.
        reason: VoidReason,
    },
}

/// Asks the ledger to keep that tracking of a volume was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossReport {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// The asker's term.
    pub term: Term,
}

/// Every granule of a volume has the digest that is published, or was sent while that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Which volume.
    pub volume: VolumeId,
    /// The asker's term.
    pub term: Term,
    /// What was published of the volume at the end.
    pub position: LedgerPosition,
}

/// The ledger keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossRecorded {
    /// Of the question.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
}

/// Volumes of which content is damaged or missing in the store, and nothing newer lies in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Each with its segments; at most [`DAMAGED_VOLUMES_MAX`].
    pub volumes: Vec<DamagedVolume>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedVolume {
    /// Which.
    pub volume: VolumeId,
    /// How many of its segments.
    pub segments: u32,
}

/// Announces a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerBegin {
    /// Which.
    pub key: LayerKey,
}

/// What a frozen epoch turned out to be. Replaces an earlier end of the same layers; may then only turn point into fuzzy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// Point or fuzzy, for all members.
    pub kind: LayerKind,
    /// When it was frozen.
    pub epoch: EpochInfo,
    /// All unpublished members of the epoch, or one slice: 1 to [`END_MEMBERS_MAX`], each volume once, and at most
    /// [`END_RANGES_MAX`] ranges.
    pub members: Vec<EndMember>,
}

/// The end of a cut, and what is said of its point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelledEnd {
    /// What.
    pub label: Label,
    /// Of a point: anything else is refused.
    pub end: EpochEnd,
}

/// One layer of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndMember {
    /// Which.
    pub key: LayerKey,
    /// Number of parts.
    pub parts: u32,
    /// Over the parts' footers.
    pub digest: [u8; 32],
    /// What it touches, compared-equal regions included.
    pub regions: RegionSet,
    /// Those of them that the layer rewrites in full (or found equal in full): nothing older shows through.
    pub whole_regions: RegionSet,
    /// Those of them in which a run could not be read.
    pub unreadable_regions: RegionSet,
    /// Size of the volume when the epoch was frozen.
    pub volume_bytes: u64,
}

/// Asks about layers, all of one term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeQuery {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// The asker's term.
    pub term: Term,
    /// The layers he holds, ascending. Only these may be truncated.
    pub layers: Vec<HeldLayer>,
}

/// A layer that the asker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLayer {
    /// Which.
    pub seq: Seq,
    /// The parts that he remembers having sent; others of that layer are to be dropped.
    pub parts: u32,
}

/// What became of layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeAnswer {
    /// Of the question.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// The term now current; another than the asker's means: claim again.
    pub term: Option<Term>,
    /// The last accepted layer of that term.
    pub last_seq: Seq,
    /// One per layer asked for, in the same order.
    pub layers: Vec<ResumedLayer>,
}

/// One layer's fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumedLayer {
    /// Which.
    pub seq: Seq,
    /// What became of it.
    pub fate: LayerFate,
}

/// See [`ResumedLayer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerFate {
    /// Named by an accepted record.
    Published {
        /// The record.
        position: LedgerPosition,
        /// As what.
        kind: LayerKind,
    },
    /// On the receiver's disk, whole or in part; nothing at all is `parts: 0`.
    Landing {
        /// So many parts, from 0, are durable; others were dropped.
        parts: u32,
        /// The kind and members under which it is known, if an end message came.
        end: Option<SaidEnd>,
        /// Whether the layer, and all before it, are complete.
        staged: bool,
    },
}

/// What an end message had said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidEnd {
    /// The kind.
    pub kind: LayerKind,
    /// The members, ascending.
    pub members: Vec<LayerKey>,
}

/// Asks for the digests of a run of granules in the newest published image of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestQuery {
    /// Comes back in the answer.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// Refused when another claim is current.
    pub term: Term,
    /// Which granules; at most [`DIGEST_GRANULES_MAX`].
    pub run: GranuleRun,
}

/// Digests of granules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestAnswer {
    /// Of the question.
    pub id: RequestId,
    /// Which volume.
    pub volume: VolumeId,
    /// The first granule that `runs` begins with.
    pub start: GranuleIndex,
    /// One after the other; together as many granules as were asked for.
    pub runs: Vec<DigestRun>,
}

/// Neighbouring granules of one sort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestRun {
    /// In no published layer: never equal to anything.
    Absent {
        /// How many.
        granules: u64,
    },
    /// All zeroes.
    Zero {
        /// How many.
        granules: u64,
    },
    /// Recorded as unreadable: never equal to anything.
    Unreadable {
        /// How many.
        granules: u64,
    },
    /// Data, one digest per granule.
    Data(Vec<GranuleDigest>),
}

impl DigestRun {
    /// How many granules it covers.
    pub fn granules(&self) -> u64 {
        match self {
            Self::Absent { granules } | Self::Zero { granules } | Self::Unreadable { granules } => *granules,
            Self::Data(digests) => digests.len() as u64,
        }
    }
}

/// How many bytes of parts the source may send on this connection, all in all, since it began. Only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// The sum.
    pub granted_bytes: u64,
}

/// Layers that became durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Which.
    pub layers: Vec<LayerKey>,
}

/// Layers that were published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The record.
    pub position: LedgerPosition,
    /// As what.
    pub kind: LayerKind,
    /// Which.
    pub layers: Vec<LayerKey>,
}

/// Layers of a term that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Void {
    /// Which.
    pub layers: Vec<LayerKey>,
}

/// Layers whose data is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Which.
    pub layers: Vec<LayerKey>,
}

/// The receiver will not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind of no.
    pub code: RefusalCode,
    /// Which volume; `None` = the connection.
    pub volume: Option<VolumeId>,
    /// For a person: what happened, and what to do next. At most [`TEXT_BYTES_MAX`] bytes.
    pub text: String,
}

/// See [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RefusalCode {
    /// No version in common.
    Version,
    /// The source, or its group, is not known here or belongs to another key.
    Unknown,
    /// A newer connection of the same run took over, or too many stand.
    Session,
    /// A record of the ledger does not verify (`LedgerTorn`): repair it first.
    LedgerTorn,
    /// The store cannot be written now; try again later.
    Store,
    /// A message that breaks the protocol, or arrived where it may not.
    Protocol,
    /// One layer's name was used for two contents (T11).
    DuplicateDiffers,
    /// The question's term is over.
    Term,
}

/// How the receiver is; a state, not an event: the newest one holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Notice {
    /// All is well (again).
    Ready,
    /// Its disk has no room for more parts; existing points are intact. Credit comes when there is room.
    GatewayFull {
        /// Bytes it could still take.
        free_bytes: u64,
        /// Bytes it keeps for its ledger and for pruning.
        reserve_bytes: u64,
    },
    /// It cannot publish: store read-only, vanished, torn. At most [`TEXT_BYTES_MAX`] bytes.
    StoreFailed {
        /// For a person.
        text: String,
    },
}

impl SourceMessage {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        match self {
            Self::Digests(query) if query.run.count == 0 || query.run.count > DIGEST_GRANULES_MAX => {
                Err(DecodeError::Limit("granules in a digest query"))
            }
            Self::Digests(query) if query.run.start.0.checked_add(query.run.count).is_none() => {
                Err(DecodeError::Limit("the end of a digest query"))
            }
            Self::EpochEnd(end) => end.check_limits(),
            Self::LabelledEnd(labelled) if !labelled.label.fits() => Err(DecodeError::Limit("the label of a point")),
            Self::LabelledEnd(labelled) if labelled.end.kind != LayerKind::Point => {
                Err(DecodeError::Limit("a label of what is no point"))
            }
            Self::LabelledEnd(labelled) => labelled.end.check_limits(),
            Self::Resume(query) if query.layers.len() > RESUME_LAYERS_MAX => Err(DecodeError::Limit("layers in a resume query")),
            Self::Resume(query) if !query.layers.is_sorted_by(|a, b| a.seq < b.seq) => {
                Err(DecodeError::Limit("the order of layers in a resume query"))
            }
            Self::Retention(policy) | Self::DefaultRetention(policy) if policy.grid.rules().len() > Grid::RULES_SAID_MAX => {
                Err(DecodeError::Limit("rules of a retention grid"))
            }
            Self::WrappedKey(bytes) if bytes.len() > WRAPPED_KEY_BYTES_MAX => Err(DecodeError::Limit("bytes of a wrapped key")),
            Self::Pull(query) => query.check_limits(),
            Self::PullVolumes(asked) => asked.check_limits(),
            Self::Cohort(say) => say.check_limits(),
            Self::Points(query) if query.text_bytes() > TEXT_BYTES_MAX => {
                Err(DecodeError::Limit("the reason in a question about points"))
            }
            _ => Ok(()),
        }
    }
}

impl EpochEnd {
    fn check_limits(&self) -> Result<(), DecodeError> {
        if !(1..=END_MEMBERS_MAX).contains(&self.members.len()) {
            return Err(DecodeError::Limit("the number of members of an epoch"));
        }
        let volumes: BTreeSet<VolumeId> = self.members.iter().map(|m| m.key.volume).collect();
        if volumes.len() != self.members.len() {
            return Err(DecodeError::Limit("a volume twice in an epoch"));
        }
        let sets = self.members.iter().flat_map(|m| [&m.regions, &m.whole_regions, &m.unreadable_regions]);
        if sets.map(RegionSet::range_count).sum::<usize>() > END_RANGES_MAX {
            return Err(DecodeError::Limit("ranges of regions in an epoch"));
        }
        Ok(())
    }
}

impl ReceiverMessage {
    pub(crate) fn check_limits(&self) -> Result<(), DecodeError> {
        match self {
            Self::Refusal(refusal) if refusal.text.len() > TEXT_BYTES_MAX => Err(DecodeError::Limit("the text of a refusal")),
            Self::Notice(Notice::StoreFailed { text }) if text.len() > TEXT_BYTES_MAX => {
                Err(DecodeError::Limit("the text of a notice"))
            }
            Self::Damage(damage) if damage.volumes.len() > DAMAGED_VOLUMES_MAX => {
                Err(DecodeError::Limit("volumes in a report of damage"))
            }
            Self::PullPoint(point) => point.check_limits(),
            Self::Pulled(chunk) => chunk.check_limits(),
            Self::Cohort(ask) => ask.check_limits(),
            Self::DigestAnswer(answer) => {
                let total = answer.runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.granules()));
                match total {
                    Some(1..=DIGEST_GRANULES_MAX) => Ok(()),
                    _ => Err(DecodeError::Limit("granules in a digest answer")),
                }
            }
            _ => Ok(()),
        }
    }
}
