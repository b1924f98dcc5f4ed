//! What goes into a [`Target`](super::Target) and what comes out of it.

use farside_ledger::{Body, KeptEnd, PartEntry, Policy, Verdict};
use farside_region::{GranuleIndex, GranuleRun, GroupId, KeyId, LayerKey, LedgerPosition, Name, VolumeId};
use farside_wire::{DigestRun, LedgerSlice, PointQuery, ReceiverMessage, RequestId, SourceMessage};

use crate::source::{LayerDigestFn, Nanos, SECOND};

/// A connection, numbered by the receiver's process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Pairs an [`Action::Append`] with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Whose group this is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ledger's group.
    pub group: GroupId,
    /// The source's name; a `Hello` with another is refused.
    pub source: Name,
    /// The group's name.
    pub group_name: Name,
    /// The store's id, for messages to people.
    pub store: [u8; 16],
    /// The same function as the source's.
    pub layer_digest: LayerDigestFn,
    /// When the process began, by the clock of the steps; that of what an earlier one staged lies before it.
    pub began: Nanos,
    /// All numbers.
    pub limits: Limits,
}

/// The limits of one group at the receiver, in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one group that may stand at once (different runs of the source: one that died, a clone).
    pub sessions_max: usize,
    /// Bytes of parts under way per connection, once it has used as much; the first grant is a step.
    pub credit_window: u64,
    /// A connection that landed nothing for so long is idle: its window begins anew, and the disk is not kept for it.
    pub credit_idle: Nanos,
    /// A change of the sum granted smaller than this is not worth a message, unless the source has nothing left.
    pub credit_step: u64,
    /// Unpublished layers per volume that are kept track of.
    pub layers_max: usize,
    /// Parts of one layer.
    pub parts_max: u32,
    /// A heartbeat is recorded when nothing was for so long.
    pub heartbeat_record: Nanos,
    /// After a failed append it is tried again so much later.
    pub append_retry: Nanos,
    /// Bytes of region lists in one page of a ledger slice.
    pub slice_ranges_max: usize,
    /// Sources may have a record made so often, in the long run; 0 = as often as they like.
    pub record_interval: Nanos,
    /// And so many at once.
    pub record_burst: u64,
    /// Memory for what end messages say of layers that are not published, in bytes.
    pub ends_bytes_max: usize,
    /// Ranges of unreadable regions of one volume. A disk that has more is beyond help.
    pub unreadable_ranges_max: usize,
    /// What any file takes of the store's disk, however short it is.
    pub file_bytes: u64,
    /// What is staged waits for others no longer than this, and is published with them in one append; 0 = each as soon as it is
    /// staged, alone.
    pub publish_every: Nanos,
    /// Nor when so many bytes wait. One append names no more, unless one record alone does.
    pub publish_bytes: u64,
    /// Nor when so many layers of one volume do: far fewer than a source can have unpublished.
    pub publish_layers: usize,
}

impl Limits {
    /// Whether room is to be made before a source has to wait. `free_bytes`: what a group may have under way of `disk_bytes`. † Where many share a
    /// disk each one's share is small, however much there is.
    pub fn is_little_room(&self, free_bytes: u64, disk_bytes: u64) -> bool {
        disk_bytes < self.credit_window || free_bytes < self.credit_step.saturating_mul(2).min(self.credit_window)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 4,
            credit_window: 256 << 20,
            credit_idle: 10 * SECOND,
            credit_step: 32 << 20,
            layers_max: 256,
            parts_max: 1 << 20,
            heartbeat_record: 3600 * SECOND,
            append_retry: 2 * SECOND,
            slice_ranges_max: 40_000,
            record_interval: SECOND / 50,
            record_burst: 500,
            ends_bytes_max: 8 << 20,
            unreadable_ranges_max: 1 << 16,
            file_bytes: 4 << 10,
            publish_every: 0,
            publish_bytes: 64 << 20,
            publish_layers: 24,
        }
    }
}

/// A layer found in landing when the group was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LandedLayer {
    /// Which.
    pub key: LayerKey,
    /// Its durable, verified parts by number, ascending.
    pub parts: Vec<(u32, PartEntry)>,
    /// What was kept of its end message; see [`Action::KeepEnd`].
    pub end: Option<KeptEnd>,
    /// How long ago it was staged, if that is so. Its record says so.
    pub staged_ago: Nanos,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message; the first of a session must be its `Hello`.
    Message {
        /// From which session.
        session: SessionId,
        /// The message.
        message: Box<SourceMessage>,
    },
    /// The connection is gone. Landing of its parts was stopped.
    Closed {
        /// Which.
        session: SessionId,
    },
    /// A part is durable under its name: verified, footer and directory entry synced.
    PartLanded {
        /// On which session it came.
        session: SessionId,
        /// Of which layer.
        key: LayerKey,
        /// Its number.
        part: u32,
        /// Its length and footer digest.
        entry: PartEntry,
    },
    /// A part did not land although its connection stands: it did not verify, or the disk is full. Its bytes are gone.
    PartFailed {
        /// On which session it came.
        session: SessionId,
        /// Of which layer.
        key: LayerKey,
        /// Its number.
        part: u32,
        /// For a person.
        why: String,
    },
    /// What became of an [`Action::Append`]. The state given to this step has the record in it.
    Appended {
        /// Which.
        ticket: Ticket,
        /// What became of it.
        outcome: AppendOutcome,
    },
    /// Somebody else than a source wants a record: pin, unpin, prune. [`Action::Submitted`] follows.
    Submit {
        /// The caller's number.
        submission: u64,
        /// What.
        body: Box<Body>,
    },
    /// The answer to [`Action::ReadDigests`].
    Digests {
        /// Who asked.
        session: SessionId,
        /// What.
        id: RequestId,
        /// Which volume.
        volume: VolumeId,
        /// Where `runs` begins.
        start: GranuleIndex,
        /// As many granules as asked; `Err` = the store failed, for a person.
        runs: Result<Vec<DigestRun>, String>,
    },
    /// How many bytes of parts may be under way or land for this group now, with everything kept that must be kept. Tell it
    /// whenever it changes much, and after each prune.
    Grantable {
        /// What may still come.
        free_bytes: u64,
        /// What the disk has for sources, whoever has it: where that is much, and little of it is this group's, no disk is full.
        disk_bytes: u64,
        /// What the disk has above half of what is kept back, whoever was granted it: for the small records that a full
        /// disk must still take.
        spare_bytes: u64,
        /// What is kept back.
        reserve_bytes: u64,
    },
    /// What is staged waits, whatever else would end its wait, until the opposite is said: requests that a service bills are used
    /// up. Only what a claim would end the term of is published all the same.
    Budget {
        /// Whether they are.
        spent: bool,
    },
    /// All that is staged is to be published now: the receiver is about to stop, say.
    Publish,
    /// A wrapping of this key is in the store, durably.
    KeyKept {
        /// Which.
        key: KeyId,
    },
    /// Time passed.
    Tick,
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// The records are in their slots: position and verdict of each, in their order. Of a submission there is one.
    Judged {
        /// What became of each.
        records: Vec<(LedgerPosition, Verdict)>,
    },
    /// Another writer took the slot; the state now holds his record. Compose anew.
    Collided,
    /// The store could not: full, read-only, torn. Nothing was appended, or nobody knows; the state is as it was.
    Failed {
        /// For a person.
        text: String,
    },
    /// No later try can do better, and the store itself is well: parts that the record names are gone or not what landed, or
    /// it is too large to be written. Nothing was appended.
    Unusable {
        /// The layers to blame; empty = all that it names.
        layers: Vec<LayerKey>,
        /// For a person.
        text: String,
    },
    /// Whoever submitted the record does not want it any more: what it says is not so since. Nothing was appended, and nothing is lost.
    Withdrawn {
        /// For a person.
        text: String,
    },
}

/// What a record is to say, and since when that is known: its stamp says when that was, since points age from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated {
    /// What.
    pub body: Body,
    /// How long ago.
    pub ago: Nanos,
}

/// What to do. In the order given; each is finished before the next begins, except appends and digests.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action {
    /// Send a message.
    Send {
        /// To which session.
        session: SessionId,
        /// What.
        message: Box<ReceiverMessage>,
    },
    /// Close this connection and stop landing its parts *before* going on; no event of it may follow.
    CloseSession {
        /// Which.
        session: SessionId,
        /// For the log.
        why: &'static str,
    },
    /// Append these records, in their order, all or none of them, in one object: they fit one. At most one append at a time; layers
    /// that they name must be in the store, under their final names and durable, before the slot is written.
    /// [`Event::Appended`] follows.
    Append {
        /// Which.
        ticket: Ticket,
        /// What, at least one.
        records: Vec<Dated>,
    },
    /// What became of an [`Event::Submit`].
    Submitted {
        /// The caller's number.
        submission: u64,
        /// What became of it; a collision was retried.
        outcome: AppendOutcome,
    },
    /// Forget an unpublished layer: delete its parts, landed or under way.
    DropLayer {
        /// Which.
        key: LayerKey,
    },
    /// Delete the parts from this number on, landed or under way.
    DropParts {
        /// Of which layer.
        key: LayerKey,
        /// The first to go.
        from: u32,
    },
    /// Keep what was said of a staged layer, durably and in the place of what was kept of it before, until the layer is dropped or
    /// published: a process that comes after this one publishes it without its source. If that fails, try
    /// [`Target::end_to_keep`](super::Target::end_to_keep) again; until then the source of a restart says it again.
    KeepEnd {
        /// What.
        end: Box<KeptEnd>,
        /// How long ago the layer was staged; kept with it.
        ago: Nanos,
    },
    /// Look up digests in the head image; [`Event::Digests`] follows.
    ReadDigests {
        /// Who asked.
        session: SessionId,
        /// What.
        id: RequestId,
        /// Which volume.
        volume: VolumeId,
        /// Which granules.
        run: GranuleRun,
    },
    /// Send this session a slice of the ledger, when its one layer has got the regions that its record names: replay kept no
    /// more than the first and the last of them, and all between would look like somebody else's writes. What stands for layers that replay has
    /// forgotten stays as it is.
    AnswerLedger {
        /// Who asked.
        session: SessionId,
        /// All but these regions.
        slice: Box<LedgerSlice>,
        /// A position that replay has forgotten: if the record there is another, this ledger is no continuation of it, and the slice is
        /// [of no layers](LedgerSlice::rewound).
        position: Option<LedgerPosition>,
    },
    /// Keep this wrapped key in the store, durably; [`Event::KeyKept`] follows before the next message of the session. Where that cannot be
    /// done the session ends, with the reason.
    KeepKey {
        /// Who gave it.
        session: SessionId,
        /// Its bytes, whatever they are.
        wrapped: Vec<u8>,
    },
    /// Answer this session whether the group is to be encrypted at rest, and with which key. [`Event::KeyKept`] comes before the answer.
    GiveKey {
        /// Who asked.
        session: SessionId,
    },
    /// Answer a question about points to this session, from the store.
    AnswerPoints {
        /// Who asked.
        session: SessionId,
        /// What.
        query: PointQuery,
    },
    /// The source says which points of the group to keep: remember it durably, and prune by it. Comes only from a session that
    /// holds the current claim of a volume.
    Policy {
        /// Which.
        policy: Policy,
        /// `false`: it is what a source keeps of which nobody has said anything, and takes the place of nothing that was ever said.
        is_said: bool,
    },
    /// A point or a prune came in: see whether something may be pruned (and then [`Event::Submit`] it).
    Prune,
    /// Worth a line in the log.
    Report {
        /// Which volume; `None` = the group.
        volume: Option<VolumeId>,
        /// What.
        what: Report,
    },
}

/// What a log wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// A record was judged.
    Judged {
        /// Its position.
        position: LedgerPosition,
        /// The verdict.
        verdict: Verdict,
    },
    /// An append failed.
    AppendFailed {
        /// The store's words.
        text: String,
    },
    /// A record can never be made; what it named is lost.
    Unusable {
        /// The store's words.
        text: String,
    },
    /// A record was withdrawn before it was made.
    Withdrawn {
        /// Why.
        text: String,
    },
    /// A layer's data was dropped, and why.
    Dropped {
        /// Which.
        key: LayerKey,
        /// Why.
        why: DropWhy,
    },
    /// A part did not verify or had no room.
    PartFailed {
        /// Which.
        key: LayerKey,
        /// Which.
        part: u32,
        /// The words.
        why: String,
    },
    /// A session was refused.
    SessionRefused {
        /// Why.
        why: &'static str,
    },
}

/// Why landed data went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropWhy {
    /// Its term is over (T4).
    Term,
    /// Not above the last accepted layer, and named by no record (T4).
    Behind,
    /// Not what the end message says (T5).
    Mismatch,
    /// No record can name it: see [`AppendOutcome::Unusable`].
    Unusable,
    /// The point that it was staged for is none any more, and its source has left it out since.
    LeftBehind,
}
