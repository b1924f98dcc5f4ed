//! The receiver's side of one group.
//!
//! | File | Owns |
//! |---|---|
//! | `api` | events, actions, limits |
//! | `sessions` | connections, greeting, credit, answers about the ledger |
//! | `landing` | layers that are not published: parts, end messages, staging |
//! | `compose` | one append at a time: what, when, and what its verdict means |
//! | `cadence` | when what is staged is published, and how much of it at once |
//!
//! Layers are *staged* when they are durable here, and *published* when a record names them. Between the two they wait for others,
//! where a record is dear; only publication lets a source forget anything (L7).
//!
//! Invariants: at most one append is under way; a layer is composed only while staged and next in its volume's chain; every
//! record is composed from the state as it is then, never kept (T11).

mod api;
mod cadence;
mod compose;
mod landing;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use farside_ledger::{BATCH_SLOTS, Body, CutTime, Heartbeat, KeptEnd, LayerKind, Policy, State};
use farside_region::{KeyId, LayerKey, Slot, Term, VolumeId};
use farside_wire::{InstanceId, LabelledEnd, LossReport, ReceiverMessage, Settings, SourceMessage};

use crate::source::Nanos;

pub use api::{Action, AppendOutcome, Config, Dated, DropWhy, Event, LandedLayer, Limits, Report, SessionId, Ticket};

use compose::{Appending, QueuedClaim};
use landing::{End, Landing};
use sessions::{Disk, Session};

/// Decides for one group at the receiver. The ledger's replayed state is the store's; each step sees the newest.
#[derive(Debug)]
pub struct Target {
    config: Config,
    sessions: BTreeMap<SessionId, Session>,
    layers: BTreeMap<LayerKey, Landing>,
    /// What a process before this one kept, and how long ago it was staged, until the first step, which knows the time.
    kept: BTreeMap<LayerKey, (KeptEnd, Nanos)>,
    /// Of which a wrapping was seen to be in the store.
    keys: BTreeSet<KeyId>,
    claims: VecDeque<QueuedClaim>,
    /// Losses of tracking that the ledger is to remember; kept also when their connection is gone.
    losses: BTreeMap<VolumeId, (SessionId, LossReport)>,
    /// Volumes that their source compared with what was published in that slot, until that is on record of a point.
    compared: BTreeMap<VolumeId, (Term, Slot)>,
    submissions: VecDeque<(u64, Body)>,
    heartbeat: Option<Heartbeat>,
    quiet: BTreeMap<VolumeId, (CutTime, Nanos)>,
    recorded_at: Nanos,
    /// When the records that sources had made would all be due, one each interval.
    records_due: Nanos,
    appending: Option<Appending>,
    last_ticket: Ticket,
    /// The volume whose layer was published last: the next one goes first.
    served: Option<VolumeId>,
    claimants: BTreeMap<VolumeId, (Term, InstanceId)>,
    /// Slices that brought nothing and drew on what is kept back, since their volume's claim or newest point, or since there was
    /// room.
    empty_slices: BTreeMap<VolumeId, usize>,
    /// `None` until it was told.
    disk: Option<Disk>,
    trouble: Option<Trouble>,
    /// What is staged is to be published at once, whatever the cadence.
    hurried: bool,
    /// Requests that are billed are used up: see [`Event::Budget`].
    spent: bool,
    /// Records that one append may hold: one after something went wrong for which nobody in particular was to blame.
    together: u64,
    /// A point may be none any more: see [`Target::give_up_left_behind`].
    ends_changed: bool,
    /// Of the newest step.
    now: Nanos,
}

/// The store could not append.
#[derive(Clone, Debug)]
struct Trouble {
    text: String,
    /// Of the first of the failures that nothing went well between.
    since: Nanos,
    retry_at: Nanos,
}

impl Target {
    /// Takes up a group with what its landing holds. Layers that no longer can be published are dropped (T4): call only
    /// after a replay that verified every slot up to the highest.
    pub fn new(config: Config, state: &State, landed: Vec<LandedLayer>, actions: &mut Vec<Action>) -> Self {
        let recorded_at = config.began;
        let mut target = Self {
            config,
            sessions: BTreeMap::new(),
            layers: BTreeMap::new(),
            kept: BTreeMap::new(),
            keys: BTreeSet::new(),
            claims: VecDeque::new(),
            losses: BTreeMap::new(),
            compared: BTreeMap::new(),
            submissions: VecDeque::new(),
            heartbeat: None,
            quiet: BTreeMap::new(),
            recorded_at,
            records_due: 0,
            appending: None,
            last_ticket: Ticket(0),
            served: None,
            claimants: BTreeMap::new(),
            empty_slices: BTreeMap::new(),
            disk: None,
            trouble: None,
            hurried: false,
            spent: false,
            together: BATCH_SLOTS,
            ends_changed: false,
            now: 0,
        };
        target.take_up(state, landed, actions);
        target
    }

    /// Takes one event; appends what is to be done.
    pub fn step(&mut self, now: Nanos, state: &State, event: Event, actions: &mut Vec<Action>) {
        self.now = now;
        self.take_up_ends(state);
        match event {
            Event::Message { session, message } => self.message(now, state, session, *message, actions),
            Event::Closed { session } => self.closed(session),
            Event::PartLanded { session, key, part, entry } => self.part_landed(state, session, key, part, entry, actions),
            Event::PartFailed { session, key, part, why } => self.part_failed(session, key, part, why, actions),
            Event::Appended { ticket, outcome } => self.appended(now, state, ticket, outcome, actions),
            Event::Submit { submission, body } => self.submissions.push_back((submission, *body)),
            Event::Digests { session, id, volume, start, runs } => self.digests(session, id, volume, start, runs, actions),
            Event::Grantable { free_bytes, disk_bytes, spare_bytes, reserve_bytes } => {
                self.disk = Some(Disk { free_bytes, disk_bytes, spare_bytes, reserve_bytes });
                if free_bytes > self.config.limits.file_bytes {
                    self.empty_slices.clear();
                }
            }
            Event::Budget { spent } => self.spent = spent,
            Event::Publish => {
                self.hurried = true;
                // Whoever says so waits for nothing that only spares the store.
                self.records_due = 0;
                if let Some(trouble) = &mut self.trouble {
                    trouble.retry_at = now;
                }
            }
            Event::KeyKept { key } => drop(self.keys.insert(key)),
            Event::Tick => {}
        }
        self.give_up_left_behind(state, actions);
        self.grant(actions);
        self.append_next(now, state, actions);
    }

    /// Connections that greeted.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    /// Whether a connection stands that has shown to hold the current claim of a volume: nobody else publishes anything of it.
    pub fn is_held(&self, state: &State, volume: VolumeId) -> bool {
        let term = state.volume(volume).map(|volume| volume.term());
        term.is_some() && self.sessions.values().any(|session| session.holds(volume) == term)
    }

    /// Bytes of parts that were granted and have not landed; never grant the same disk twice.
    pub fn granted_bytes(&self) -> u64 {
        self.sessions.values().map(|s| s.held_back(self.now, &self.config.limits)).sum()
    }

    /// Unpublished layers that have something landed, and the bytes of their parts.
    pub fn unpublished(&self) -> (usize, u64) {
        (self.layers.len(), self.layers.values().map(Landing::bytes).sum())
    }

    /// Volumes that wait to be claimed for the first time.
    pub fn new_volumes(&self, state: &State) -> BTreeSet<VolumeId> {
        let claimed = self.claims.iter().map(|queued| queued.claim.volume.id);
        claimed.filter(|id| state.volume(*id).is_none()).collect()
    }

    /// Since when the oldest layer that is staged waits to be published; `None` = none does.
    pub fn staged_since(&self) -> Option<Nanos> {
        self.layers.values().filter_map(Landing::staged_since).min()
    }

    /// The members of the newest point that is staged whole and not published.
    pub fn newest_staged_point(&self) -> Option<&[LayerKey]> {
        self.ends_of_staged_points().max_by_key(|end| end.epoch.mono_before_ns).map(|end| &*end.members)
    }

    /// How many points are staged whole and not published.
    pub fn staged_points(&self) -> usize {
        // Each member's layer has the end of all.
        self.ends_of_staged_points().filter_map(|end| end.members.first()).collect::<BTreeSet<_>>().len()
    }

    fn ends_of_staged_points(&self) -> impl Iterator<Item = &End> {
        let is_staged = |key: &LayerKey| self.layers.get(key).is_some_and(Landing::is_staged);
        let ends = self.layers.values().filter_map(|landing| landing.end.as_ref());
        ends.filter(move |end| end.kind == LayerKind::Point && end.members.iter().all(is_staged))
    }

    /// Why nothing can be appended now, for people; `None` = it can.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|t| t.text.as_str())
    }

    /// Whether the store failed, and is left alone for now. What it still is asked for are submissions.
    pub fn is_left_alone(&self, now: Nanos) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| now < trouble.retry_at)
    }

    /// Up to when a volume is known unchanged by a heartbeat that still holds, and when that arrived here. Age it by the
    /// arrival, never by the other machine's clock.
    pub fn quiet(&self, state: &State, volume: VolumeId) -> Option<(CutTime, Nanos)> {
        let heartbeat = self.heartbeat.as_ref()?;
        let &(_, term) = heartbeat.members.iter().find(|(id, _)| *id == volume)?;
        let known = state.volume(volume)?;
        let above = known.last_layer().is_some_and(|l| l.slot > heartbeat.position.slot);
        (known.term() == term && !above).then(|| self.quiet.get(&volume).copied()).flatten()
    }

    fn message(&mut self, now: Nanos, state: &State, from: SessionId, message: SourceMessage, out: &mut Vec<Action>) {
        if let SourceMessage::Hello(hello) = message {
            return self.hello(from, hello, out);
        }
        if !self.sessions.contains_key(&from) {
            return;
        }
        match message {
            SourceMessage::ReadLedger(question) => self.read_ledger(state, from, &question, out),
            SourceMessage::Claim(request) => self.claim(state, from, request, out),
            SourceMessage::LayerBegin(begin) => self.layer_begin(state, from, begin.key, out),
            SourceMessage::EpochEnd(end) => self.epoch_end(state, from, end, None, out),
            SourceMessage::LabelledEnd(LabelledEnd { label, end }) => {
                self.epoch_end(state, from, end, Some(Box::new(label)), out)
            }
            SourceMessage::Heartbeat(heartbeat) => self.heard(now, state, heartbeat),
            SourceMessage::Resume(query) => self.resume(state, from, &query, out),
            SourceMessage::Digests(query) => self.digest_query(state, from, &query, out),
            SourceMessage::Points(query) => out.push(Action::AnswerPoints { session: from, query }),
            SourceMessage::Settings(Settings { keep, span_ms }) => {
                self.retention(state, from, (Policy::without_grid(keep, span_ms), true), out);
            }
            SourceMessage::Retention(policy) => self.retention(state, from, (policy, true), out),
            SourceMessage::DefaultRetention(policy) => self.retention(state, from, (policy, false), out),
            SourceMessage::TrackingLost(report) => self.loss_reported(state, from, report, out),
            SourceMessage::Compared(compared) => self.was_compared(state, &compared),
            SourceMessage::Publish => self.hurried = true,
            SourceMessage::KeyWanted => out.push(Action::GiveKey { session: from }),
            SourceMessage::WrappedKey(wrapped) => out.push(Action::KeepKey { session: from, wrapped }),
            _ => self.close(from, "a message that this build does not know", out),
        }
    }

    fn send(&self, session: SessionId, message: ReceiverMessage, out: &mut Vec<Action>) {
        out.push(Action::Send { session, message: Box::new(message) });
    }

    fn broadcast(&self, message: &ReceiverMessage, out: &mut Vec<Action>) {
        self.sessions.keys().for_each(|&session| self.send(session, message.clone(), out));
    }
}
