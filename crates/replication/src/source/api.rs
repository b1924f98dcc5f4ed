//! What goes into a [`Source`](super::Source) and what comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use farside_ledger::{CutTime, EpochInfo, Label, LayerKind, Policy, VolumeMeta};
use farside_region::{
    BootId, DigestKey, EpochId, GranuleIndex, GranuleRun, GranuleSet, LayerKey, LedgerPosition, Name, RegionIndex, RegionRange,
    RegionSet, Seal, Term, VolumeId,
};
use farside_wire::{DigestRun, InstanceId, ReceiverMessage, RefusalCode, RequestId, SourceMessage};

/// Nanoseconds.
pub type Nanos = u64;
/// One second.
pub const SECOND: Nanos = 1_000_000_000;

/// Computes a layer's digest from its key and its parts' footer digests, in order: `layer`'s function, given from outside
/// because this crate handles no bytes.
pub type LayerDigestFn = fn(&LayerKey, &[[u8; 32]]) -> [u8; 32];

/// Who this source is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The source's name.
    pub source: Name,
    /// The group's name.
    pub group: Name,
    /// Whether it publishes in place of the source of that name, whose history it has not taken part in.
    pub stands_in: bool,
    /// Whether the receiver is asked for the key of the group: there is none of its own, and who stores may want it encrypted.
    pub asks_for_key: bool,
    /// Drawn at random once per process.
    pub instance: InstanceId,
    /// The kernel's boot id.
    pub boot: BootId,
    /// Which points the receiver is to keep.
    pub policy: Policy,
    /// Whether somebody has said so.
    pub policy_is_said: bool,
    /// See [`LayerDigestFn`].
    pub layer_digest: LayerDigestFn,
    /// All numbers.
    pub limits: Limits,
}

/// The limits of one group at the source, in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// At least this long between two switches of the group.
    pub epoch_interval: Nanos,
    /// At least this long between two heartbeats of an idle group.
    pub heartbeat_interval: Nanos,
    /// The header's ledger position is made durable at least this often while it advances.
    pub header_refresh: Nanos,
    /// A slice of a pass ends at the first region boundary after so many bytes of parts …
    pub slice_bytes: u64,
    /// … or after so long …
    pub slice_time: Nanos,
    /// … or after so many parts.
    pub layer_parts_max: u32,
    /// A part ends at the first region boundary after so many bytes. Real parts stay below 64 MiB if this plus one region fits.
    pub part_bytes: u64,
    /// Where connections break before a part has arrived, parts become shorter, down to this or a region.
    pub part_bytes_min: u64,
    /// A pass or cut begins only while a volume has fewer unpublished layers.
    pub unpublished_layers_max: usize,
    /// A verify asks for the digests of so much of a volume at once.
    pub verify_bytes: u64,
    /// A volume with more dirt than this is not put into a cut (the present budget shrinks below it after an overflow and
    /// grows back; see [`Limits::cut_bytes_min`]).
    pub cut_bytes_max: u64,
    /// The cut budget never shrinks below this. Half the side buffer is a good value: a cut that fits cannot overflow it.
    pub cut_bytes_min: u64,
    /// A cut that is not read to its end after so long is demoted.
    pub cut_hold: Nanos,
    /// A member of a demoted cut whose part has waited so long for its disk, all together, claims anew, so that the others go
    /// on.
    pub hung_member: Nanos,
    /// An unreadable run is tried again with the first layer after so long; doubles up to 64 times this.
    pub unreadable_retry: Nanos,
    /// So many claims in turn with another instance, without a layer of ours in between, are `Forked`.
    pub claim_turns_max: u32,
    /// Ranges of regions that one end message may list, all members together; a cut with more is demoted at once, a slice
    /// is cut there. The lesser sets of a message have at most three times as many: [`farside_wire::END_RANGES_MAX`] is four
    /// times the default.
    pub end_ranges_max: usize,
    /// What each member of such a message may list in each of the lesser sets, whatever their number: 64 times this is no more than the default limit.
    pub end_share_min: usize,
    /// A volume whose claim or position check is refused for a passing reason is asked about again after so long.
    pub recheck: Nanos,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            epoch_interval: SECOND,
            heartbeat_interval: SECOND,
            header_refresh: 60 * SECOND,
            slice_bytes: 1 << 30,
            slice_time: 60 * SECOND,
            layer_parts_max: 1024,
            part_bytes: 56 << 20,
            part_bytes_min: 1 << 20,
            unpublished_layers_max: 64,
            verify_bytes: 64 << 20,
            cut_bytes_max: 1 << 30,
            cut_bytes_min: 16 << 20,
            cut_hold: 60 * SECOND,
            hung_member: 120 * SECOND,
            unreadable_retry: 60 * SECOND,
            claim_turns_max: 4,
            end_ranges_max: 40_000,
            end_share_min: 64,
            recheck: 5 * SECOND,
        }
    }
}

/// A volume that the group begins to serve. Its taps may be up already; its map is tracked from before this event.
#[derive(Clone, Debug)]
pub struct VolumeSetup {
    /// Identity, name, geometry, generation, and the digest key kept locally (a ledger that knows the volume overrides it:
    /// [`Action::AdoptMeta`]).
    pub meta: VolumeMeta,
    /// The confirmed term in the header.
    pub confirmed: Option<Term>,
    /// The ledger position in the header.
    pub position: Option<LedgerPosition>,
    /// The regions that were hot in the bits *read at attach*, before anything was served.
    pub inherited: RegionSet,
    /// How the attach before this one ended.
    pub start: Start,
    /// A durable flag says that tracking was lost.
    pub tracking_lost: bool,
    /// A durable flag says that the volume is paused.
    pub paused: bool,
}

/// How the last attach ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With a `clean` header: the driver has put everything owed back into the open map.
    Clean,
    /// With a crash, or never begun: everything inherited is compared.
    Unclean,
}

/// One look at all volumes, a few times per `epoch_interval`.
#[derive(Clone, Debug)]
pub struct Tick {
    /// Read *before* the samples were taken; heartbeats carry it (T15).
    pub time: CutTime,
    /// What the open maps and the in-flight tables hold.
    pub volumes: Vec<(VolumeId, Sample)>,
}

/// What the open epoch of a volume looks like, and how its reader gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bytes marked in the open map.
    pub dirty_bytes: u64,
    /// Host writes between mark and completion, in any epoch.
    pub in_flight: u64,
    /// Whether the reader can go on only when the backing answers: a read of its own, or a host write that must be over
    /// first. What it waits for on the line, at the receiver or here is none of that.
    pub waits_for_disk: bool,
}

/// How a connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The line fell silent, or broke.
    Broken,
    /// One of the two sides closed it, or the receiver was started anew.
    Closed,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A volume joins the group.
    AddVolume(Box<VolumeSetup>),
    /// A volume leaves it: [`Action::Removed`] follows when nothing of it is under way.
    RemoveVolume {
        /// Which.
        volume: VolumeId,
    },
    /// A connection for this group stands. Numbers only grow.
    Connected {
        /// Its number.
        connection: u64,
    },
    /// It is gone, and with it everything sent on it that was not acknowledged. Parts being read for it are to be given up;
    /// what is still reported of them is ignored by its connection number.
    Disconnected {
        /// Its number; an old one is ignored.
        connection: u64,
        /// Whether that tells of the line.
        how: Ended,
    },
    /// A message on it.
    Message {
        /// The connection.
        connection: u64,
        /// The message. Answers to point queries are the driver's own business.
        message: Box<ReceiverMessage>,
    },
    /// Time passed.
    Tick(Tick),
    /// A header write asked for by [`Action::WriteHeader`] is durable (with the values of the newest one, if several waited).
    HeaderDurable {
        /// Which volume.
        volume: VolumeId,
        /// What is durable now.
        confirmed: Option<Term>,
        /// What is durable now.
        position: Option<LedgerPosition>,
    },
    /// The switch asked for by [`Action::Switch`] is done, its grace too: the maps are final.
    SwitchDone(SwitchDone),
    /// The shim gave up save-before-overwrite for this epoch, before or after the switch was reported done.
    Demoted {
        /// Which; frees nothing here that [`Action::Release`] would not free.
        epoch: EpochId,
        /// Why.
        why: DemoteCause,
    },
    /// A part asked for by [`Action::ReadPart`] was read and handed to the connection.
    PartRead(Box<PartRead>),
    /// The part was given up as asked by [`Action::AbortPart`], or could not be sent.
    PartAborted {
        /// As in [`ReadPart`].
        connection: u64,
        /// Which.
        key: LayerKey,
        /// Which.
        part: u32,
    },
    /// A comparing part needs digests of these granules before it can go on; answered by [`Action::Digests`].
    DigestsWanted {
        /// As in [`ReadPart`].
        connection: u64,
        /// Which.
        key: LayerKey,
        /// Which.
        part: u32,
        /// At most [`farside_wire::DIGEST_GRANULES_MAX`].
        run: GranuleRun,
    },
    /// These regions are hot and have been idle for a while: which of them may cool? Answered by [`Action::Cool`] once the
    /// header covers what was published.
    CoolWanted {
        /// Which volume.
        volume: VolumeId,
        /// The candidates.
        regions: RegionSet,
    },
    /// The answer to [`Action::KeepHot`].
    HotRegions {
        /// Which volume.
        volume: VolumeId,
        /// All that are hot now; those that were cooling have been turned back.
        regions: RegionSet,
    },
    /// The answer to [`Action::HeatAll`]: every bit of the volume is durable, every region hot.
    AllHot {
        /// Which volume.
        volume: VolumeId,
    },
    /// The intent map cannot be written, or something bypassed the tap; the driver has made that durable where it can.
    TrackingLost {
        /// Which volume.
        volume: VolumeId,
    },
    /// Whoever reads the volume for us is gone: no order is answered any more in this attach, not even to give up.
    ReaderLost {
        /// Which volume.
        volume: VolumeId,
    },
    /// After [`Event::TrackingLost`]: nothing durable at this host says so. The receiver is asked to keep it, as soon as it
    /// can be; [`Action::LossKept`] follows.
    KeepLoss {
        /// Which volume.
        volume: VolumeId,
    },
    /// A backing flush failed; the shim keeps everything hot that was hot (T14).
    FlushFailed {
        /// Which volume.
        volume: VolumeId,
    },
    /// A person pauses it; the durable flag is already set.
    Pause {
        /// Which volume.
        volume: VolumeId,
    },
    /// A person resumes it; the durable flag is already withdrawn.
    Resume {
        /// Which volume.
        volume: VolumeId,
    },
    /// A person says `--accept`: the published history is to be continued by this disk as it is (T3).
    Accept {
        /// Which volume.
        volume: VolumeId,
    },
    /// As [`Event::Accept`] of what is `Fenced` or `Forked`, as long as the newest point is this one, which the disk was brought to.
    TakeBack {
        /// Which volume.
        volume: VolumeId,
        /// Where that point is.
        at: LedgerPosition,
    },
    /// What was said of a refusal ([`Event::Accept`], [`Event::TakeBack`]) is taken back: it stands again, unless something may have been claimed by it
    /// ([`Source::may_have_taken_back`](super::Source::may_have_taken_back)).
    Withdraw {
        /// Which volume.
        volume: VolumeId,
    },
    /// A person asks to compare everything.
    Resync {
        /// Which volume.
        volume: VolumeId,
    },
    /// A person asks to compare the whole volume with what is published (T6). One that is under way goes on.
    Verify {
        /// Which volume.
        volume: VolumeId,
    },
    /// The answer to [`Action::Verify`].
    VerifyRead {
        /// Which volume.
        volume: VolumeId,
        /// What was found.
        read: Box<VerifyRead>,
    },
    /// The answer to [`Action::Heat`]: every one of these regions is hot, its bit durable.
    Heated {
        /// Which volume.
        volume: VolumeId,
        /// As in the action.
        regions: RegionSet,
    },
    /// A new interval between switches.
    SetEpochInterval {
        /// At least this long.
        interval: Nanos,
    },
    /// What the receiver's answer about the key of the group makes of its volumes: the seal of each under that key, or none at all. Again whenever a
    /// volume joins.
    KeyAnswered {
        /// Whose answer.
        connection: u64,
        /// Of the volumes that are there.
        seals: BTreeMap<VolumeId, Seal>,
    },
    /// The wrapped keys of the group, which the store is to keep; for the next connection.
    SetWrappedKeys {
        /// Each as `docs/formats/keys.md` has it.
        wrapped: Vec<Vec<u8>>,
    },
    /// Other points are to be kept from now on.
    SetPolicy {
        /// Which.
        policy: Policy,
        /// Whether somebody has said so.
        is_said: bool,
    },
    /// Somebody wants a point of all volumes; [`Report::WishDone`], or [`Report::WishDropped`], follows.
    Wish(super::Wish),
    /// Which volumes of the group are not here: until they are, no point is one of all. Whenever that changes, before a wish.
    Lacks {
        /// Their names.
        volumes: Vec<Name>,
    },
    /// Nobody waits for it any more.
    ForgetWish {
        /// Its id.
        wish: u64,
    },
    /// The answer to [`Action::Quiesce`].
    Quiesced {
        /// Which.
        wish: u64,
        /// That applications are quiet; or why not, and that they are not kept quiet.
        result: Result<(), String>,
    },
    /// The answer to [`Action::Resume`] of an epoch.
    Resumed {
        /// Which.
        epoch: EpochId,
        /// What hooks say, for people, if applications were quiet from before the switch until after it; otherwise why that is not so,
        /// or not known.
        result: Result<String, String>,
    },
    /// A planned stop begins: the taps take nothing new. Cuts are tried at once until everything is published
    /// ([`super::Source::settled`]) or the driver loses patience.
    Drain,
    /// No action after those of this one, which ask for headers. Then ask [`super::Source::owed`].
    Halt,
}

/// A switch that was done.
#[derive(Debug)]
pub struct SwitchDone {
    /// The epoch that was frozen.
    pub epoch: EpochId,
    /// When.
    pub info: EpochInfo,
    /// What each member's frozen map holds, with the `extra` of [`Action::Switch`] in it.
    pub members: Vec<(VolumeId, GranuleSet)>,
}

/// Why a cut was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DemoteCause {
    /// The side buffer is full.
    SideBuffer,
    /// The claim pool is exhausted.
    ClaimPool,
    /// A member did not get read in time.
    Hung,
    /// A member was paused or taken out.
    Member,
    /// The connection was reset while it was being read.
    Reset,
    /// A member had to claim anew.
    Claim,
    /// Too scattered for one end message.
    Scattered,
}

/// What the sender is to read. It walks the set upwards from `from`, whole regions at a time, and ends the part at a region
/// boundary: when `bytes_max` is reached, when told by [`Action::FinishPart`], before `until`, or when the set ends.
#[derive(Clone)]
pub struct ReadPart {
    /// On which connection the part is to be sent.
    pub connection: u64,
    /// Of which layer.
    pub key: LayerKey,
    /// Its number.
    pub part: u32,
    /// Keys the digests.
    pub digest_key: DigestKey,
    /// The epoch whose older writes must have drained, and whose claims count while it is a cut.
    pub epoch: EpochId,
    /// All that the epoch froze of this volume.
    pub set: Arc<GranuleSet>,
    /// The first region to look at.
    pub from: RegionIndex,
    /// The first region not to look at; `None` = to the end of the set.
    pub until: Option<RegionIndex>,
    /// Regions in which a granule that equals its published digest is left out; ask by [`Event::DigestsWanted`].
    pub compare: Arc<RegionSet>,
    /// Ends the part at the next region boundary.
    pub bytes_max: u64,
    /// Ends the part at the region boundary where its regions would make more ranges than this.
    pub ranges_max: usize,
}

/// Without the digest key: whoever prints an action must not print a secret.
impl std::fmt::Debug for ReadPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadPart")
            .field("connection", &self.connection)
            .field("key", &self.key)
            .field("part", &self.part)
            .field("epoch", &self.epoch)
            .field("from", &self.from)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// A part that was read.
#[derive(Clone, Debug)]
pub struct PartRead {
    /// As in [`ReadPart`].
    pub connection: u64,
    /// Of which layer.
    pub key: LayerKey,
    /// Its number.
    pub part: u32,
    /// What was sent; `None` = nothing (all compared equal, or no granule was left), and the number is not used.
    pub sent: Option<SentPart>,
    /// All regions of the set below this one are done.
    pub next: RegionIndex,
    /// Nothing of the set is left at or above `next`, or `until` was reached.
    pub done: bool,
    /// Whether the epoch was still a cut when the last granule of this part was taken. A part of a pass says false.
    pub cut_held: bool,
    /// Granules read, compared-equal ones included.
    pub granules: u64,
    /// What was left out of a pass because it was marked again: a later epoch's. Its regions are not rewritten in full.
    pub left: GranuleSet,
    /// What could not be read.
    pub unreadable: GranuleSet,
    /// Regions of which every granule is in the set and was read as zero.
    pub zero_regions: RegionSet,
}

/// Regions to be read in place and held against what is published.
#[derive(Clone, Debug)]
pub struct VerifyChunk {
    /// Of which volume.
    pub volume: VolumeId,
    /// Pairs it with its answer. A newer chunk of the volume replaces this one.
    pub id: RequestId,
    /// Which regions, all of each.
    pub chunk: RegionRange,
    /// Keys the digests.
    pub digest_key: DigestKey,
    /// What is published, from the first granule of the chunk to its last.
    pub runs: Vec<DigestRun>,
}

/// What the regions of a [`VerifyChunk`] hold. Each one is judged by its state *after* its content was read and compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyRead {
    /// As in [`VerifyChunk`].
    pub id: RequestId,
    /// Not cold then: not judged.
    pub hot: RegionSet,
    /// Cold, and something readable in them is not what is published, or nothing is.
    pub differing: RegionSet,
    /// Cold, and something in them could not be read.
    pub unreadable: RegionSet,
}

/// A part on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentPart {
    /// Its length.
    pub bytes: u64,
    /// The digest in its trailer.
    pub footer_digest: [u8; 32],
}

/// What to do. In the order given.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Send a message.
    Send {
        /// On which connection.
        connection: u64,
        /// What.
        message: Box<SourceMessage>,
    },
    /// Close the connection, which broke the protocol or refused everything, and try again with back-off.
    Disconnect {
        /// Which.
        connection: u64,
        /// For the log.
        why: Problem,
    },
    /// Make these durable in the header, in one write; [`Event::HeaderDurable`] follows. Writes of one volume go in order;
    /// several that wait may be made one.
    WriteHeader {
        /// Which volume.
        volume: VolumeId,
        /// The confirmed term.
        confirmed: Option<Term>,
        /// The ledger position.
        position: Option<LedgerPosition>,
    },
    /// Switch the group's counter. [`Event::SwitchDone`] follows. At most one at a time.
    Switch {
        /// `Point` = a cut, with save-before-overwrite; `Fuzzy` = a pass.
        kind: LayerKind,
        /// Who takes part.
        members: Vec<SwitchMember>,
    },
    /// Give up save-before-overwrite of this epoch; its saved granules are worthless.
    Demote {
        /// Which.
        epoch: EpochId,
        /// Why.
        why: DemoteCause,
    },
    /// All of the epoch is read and said, or given up: claims, side buffer and descriptor may go.
    Release {
        /// Which.
        epoch: EpochId,
    },
    /// Read, digest, compress and send a part. At most one per volume at a time.
    ReadPart(Box<ReadPart>),
    /// End the part being read at its next region boundary.
    FinishPart {
        /// Which.
        key: LayerKey,
        /// Which.
        part: u32,
    },
    /// Stop reading and sending it; [`Event::PartAborted`] follows, or the [`Event::PartRead`] that was on its way.
    AbortPart {
        /// Which.
        key: LayerKey,
        /// Which.
        part: u32,
    },
    /// The answer to [`Event::DigestsWanted`].
    Digests {
        /// Which.
        key: LayerKey,
        /// Which.
        part: u32,
        /// Where `runs` begins.
        start: GranuleIndex,
        /// As many granules as were asked for.
        runs: Vec<DigestRun>,
    },
    /// These regions may cool: heat → grace → ask [`super::Source::mentions`] again → flush → clear.
    Cool {
        /// Which volume.
        volume: VolumeId,
        /// Which regions.
        regions: RegionSet,
        /// Those of them whose published content is all zeroes (T8).
        zero: RegionSet,
    },
    /// Read these regions in place, under no claim and no epoch, and hold them against the digests; [`Event::VerifyRead`]
    /// follows.
    Verify(Box<VerifyChunk>),
    /// Set the bits of these regions durably; [`Event::Heated`] follows (T6).
    Heat {
        /// Which volume.
        volume: VolumeId,
        /// Which regions.
        regions: RegionSet,
    },
    /// Set every bit of the volume durably; [`Event::AllHot`] follows (T3).
    HeatAll {
        /// Which volume.
        volume: VolumeId,
    },
    /// Turn every region that is cooling back to hot and list all hot ones; [`Event::HotRegions`] follows.
    KeepHot {
        /// Which volume.
        volume: VolumeId,
    },
    /// The ledger knows this volume: keep its digest key from now on.
    AdoptMeta {
        /// What the ledger says.
        meta: Box<VolumeMeta>,
    },
    /// The receiver's ledger keeps the loss that [`Event::KeepLoss`] spoke of: no crash forgets it any more.
    LossKept {
        /// Which volume.
        volume: VolumeId,
    },
    /// Everything is going to be compared and every bit is set: the durable flag may go (T3).
    WithdrawTrackingLost {
        /// Which volume.
        volume: VolumeId,
    },
    /// Quiesce applications, in bounded time, for a cut; [`Event::Quiesced`] follows, always.
    Quiesce {
        /// For which wish.
        wish: u64,
    },
    /// All volumes can be cut, for a wish that is one of a cohort: [`Event::Quiesced`] follows, when all of that are held, or why not.
    CanCut {
        /// For which wish.
        wish: u64,
    },
    /// Let them go on, at once. Only after they were quiet, once; or held.
    Resume {
        /// The epoch that was cut meanwhile: [`Event::Resumed`] follows, always. `None`: none was, and nobody waits for an answer.
        epoch: Option<EpochId>,
    },
    /// The volume is out of the group.
    Removed {
        /// Which volume.
        volume: VolumeId,
    },
    /// Worth a line in the log.
    Report {
        /// Which volume; `None` = the group.
        volume: Option<VolumeId>,
        /// What.
        what: Report,
    },
}

/// A member of a switch.
#[derive(Clone, Debug)]
pub struct SwitchMember {
    /// Which volume.
    pub volume: VolumeId,
    /// What joins the frozen map beside what was marked: regions to compare, granules to send again. For a cut the shim's
    /// descriptor must hold it before the counter moves.
    pub extra: GranuleSet,
}

/// Why a connection is closed by this side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The receiver said no, by name.
    Refused {
        /// Its kind.
        code: RefusalCode,
        /// Its words.
        text: String,
    },
    /// It answered something that was not asked, or nonsense.
    Protocol(&'static str),
    /// A volume is encrypted, and it knows nothing of that.
    NoSealing,
    /// It does not say whether the group is to be encrypted at rest.
    NoKeyAnswer,
}

/// A sentence for a person, with the way out where the receiver's own words have none.
impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (code, text) = match self {
            Self::NoKeyAnswer => {
                return f.write_str(
                    "the receiver does not say whether the group is to be encrypted at rest: see what keeps the keys of its [[at_rest]], and its log",
                );
            }
            Self::NoSealing => {
                return f.write_str(
                    "the receiver takes no encrypted volumes: install the same version of Farside there, the receiver first",
                );
            }
            Self::Protocol(what) => {
                return write!(f, "the receiver sent {what}: install the same version of Farside on both sides");
            }
            Self::Refused { code, text } => (code, text),
        };
        let way_out = match code {
            RefusalCode::Version => "install the same version of Farside on both sides",
            RefusalCode::Unknown => "do as it says: it is tried again by itself",
            RefusalCode::Session => "it is tried again by itself",
            RefusalCode::LedgerTorn => "the gateway's log says which file; `farside store repair` there",
            RefusalCode::Store => "look at `farside status` at the gateway; it is tried again by itself",
            _ => "look at the gateway's log",
        };
        write!(f, "the receiver refuses: {text} ({way_out})")
    }
}

/// What a log wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// A volume changed its state.
    State(super::State),
    /// A cut was given up.
    Demoted {
        /// Which.
        epoch: EpochId,
        /// Why.
        why: DemoteCause,
    },
    /// A claim was accepted.
    Claimed {
        /// Its slot.
        term: Term,
    },
    /// A reset or loss made a layer be read again, in part.
    ReadAgain {
        /// Which.
        key: LayerKey,
        /// From which part on.
        from_part: u32,
    },
    /// The line breaks before a part has arrived, again and again: parts become shorter.
    ShorterParts {
        /// They have at most so many bytes, or a region.
        bytes: u64,
    },
    /// Layers were published.
    Published {
        /// The record.
        position: LedgerPosition,
        /// As what.
        kind: LayerKind,
        /// Of this group.
        members: usize,
    },
    /// The point of a wish is published.
    WishDone {
        /// Which.
        wish: u64,
        /// It.
        point: super::PointStatus,
        /// What is said of it.
        label: Option<Box<Label>>,
    },
    /// It is tried again by itself.
    WishAgain {
        /// Which.
        wish: u64,
        /// What came between.
        why: String,
    },
    /// Nothing comes of it.
    WishDropped {
        /// Which.
        wish: u64,
        /// Why.
        why: String,
    },
    /// Applications were not quiesced, or not all along.
    HooksFailed {
        /// Which hook, and how.
        why: String,
    },
    /// A verify found cold regions that differ from what is published: an error of ours, which it mends.
    ColdDiffers {
        /// Which regions.
        regions: RegionSet,
    },
    /// The receiver refused something of one volume.
    Refused {
        /// Its kind.
        code: RefusalCode,
        /// Its words.
        text: String,
    },
}
