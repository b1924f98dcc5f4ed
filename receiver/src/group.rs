//! A group's thread: it owns the group's `Target` and `GroupStore`, feeds the one with what happens and does with the other
//! what comes out, in the order given.
//!
//! ```text
//! Away(words, retry at) ──the store is open and the group opens──► Here(Target, GroupStore)
//!        ▲                                                              │
//!        └──the store was given up, or this group cannot be written:────┘
//!           every session is closed with the reason
//! ```
//!
//! It decides nothing about data. What it may block on: the store's disk. Never a source, never another group.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use farside_control::receiver::ReceiverCounters;
use farside_control::{ApiError, ErrorCode, PointId};
use farside_ledger::{Body, LayerKind, PartEntry, Pin, Policy, Unpin, Verdict, VoidReason, group_id, volume_id};
use farside_region::{LayerKey, Slot, VolumeId};
use farside_replication::target::{self, Action, AppendOutcome, Config, Event, LandedLayer, Report, SessionId, Target, Ticket};
use farside_store::{GroupNames, GroupStore, PartLander, PointInfo, Remedy, StoreError};
use farside_transport::{Backoff, CloseCode};
use farside_wire::{
    LedgerSlice, PartHeader, PointAnswer, PointQuery, ReceiverMessage, RefusalCode, RequestId, SourceMessage, decode_payload,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::door::{Session, refusal};
use crate::pace::Pace;
use crate::points::{exact_slice, point_page, wire_run};
use crate::process::Receiver;
use crate::status::{GroupView, Lag, since_published, way_out};
use crate::vault::Generation;

/// What may wait for a group, by number, and frames by size. Those who tell it wait in turn.
const MAIL_MAX: usize = 256;
const FRAME_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(FRAME_BYTES_MAX >= farside_wire::PAYLOAD_BYTES_MAX, "any frame fits");
/// How often a group looks at its disk and its dues when nothing happens.
const TICK: Duration = Duration::from_millis(500);
/// How often the picture of a group is made anew while things happen.
const SHOW: Duration = Duration::from_millis(250);
/// How often it is looked which bytes are dead.
const DEAD_AGAIN: Duration = Duration::from_secs(30);
/// How often pruning is tried at the least when space is short.
const PRUNE_SHORT: Duration = Duration::from_secs(5);
/// When a group that could not be opened or written is tried again: doubled each time, up to the second.
const REOPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));
/// When a torn ledger is read again: doubled each time, up to the second.
const TORN_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The only shape of volumes over the wire.
const GRANULE_BYTES: u64 = 4 << 10;
const REGION_GRANULES: u64 = 1 << 10;
/// Layers whose beginning is remembered, for the lag.
const BEGINNINGS_MAX: usize = 1024;

/// So many parts in a row may fail on the disk before the group takes no more for a while.
const PARTS_FAILED_MAX: u32 = 8;
/// Claims that a group may make in a minute, for each of its volumes: every one takes a slot of the ledger for ever. What is
/// void costs a source its claim, so this bounds void records, too.
const CLAIMS_PER_VOLUME: usize = 8;
/// Pins of one point; more are no use to anybody.
const PINS_MAX: usize = 64;

/// What a person wants of a point's pins.
#[derive(Clone, Debug)]
pub(crate) enum PinChange {
    /// One more.
    Pin { reason: String },
    /// None.
    Unpin,
}

/// What a group is told.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A connection stands; its greeting follows.
    Connected { session: Arc<Session> },
    /// A source said something, which nobody has looked at. With the room that it takes.
    Frame { session: SessionId, frame: Bytes, arrived: Instant, room: OwnedSemaphorePermit },
    /// A source greets.
    Message { session: SessionId, message: Box<SourceMessage>, arrived: Instant },
    /// A connection ended; nothing of it can land any more.
    Closed { session: SessionId },
    /// A part's header came.
    BeginPart { session: SessionId, header: PartHeader, reply: oneshot::Sender<BeginPart> },
    /// A part's end.
    Part { session: SessionId, header: PartHeader, outcome: PartOutcome },
    /// The API wants the newest points, oldest of them first.
    Points { newest: usize, reply: oneshot::Sender<Result<Vec<PointInfo>, String>> },
    /// The API wants to see how the group is now.
    Show { reply: oneshot::Sender<()> },
    /// The API wants a point pinned or not.
    Pin { point: PointId, change: PinChange, reply: oneshot::Sender<Result<PointInfo, ApiError>> },
    /// The process stops.
    Stop,
}

/// What becomes of a part's stream.
#[derive(Debug)]
pub(crate) enum BeginPart {
    /// Write it there.
    Land(Box<PartLander>),
    /// Read it and forget it: its term is over.
    Swallow,
    /// Nothing: its session is gone.
    Drop,
    /// It cannot be begun.
    Failed(StoreError),
}

/// What became of a part.
#[derive(Debug)]
pub(crate) enum PartOutcome {
    /// Whole, verified, durable.
    Landed(PartEntry),
    /// Read and forgotten.
    Unwanted { bytes: u64 },
    /// Not landed.
    Failed(StoreError),
}

/// Where to reach a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupHandle {
    names: GroupNames,
    mail: mpsc::Sender<Mail>,
    /// Bytes of frames that may be on their way to it.
    room: Arc<Semaphore>,
    view: Arc<ArcSwap<GroupView>>,
}

impl GroupHandle {
    pub(crate) fn names(&self) -> &GroupNames {
        &self.names
    }

    /// Waits while the group's mailbox is full. An error: the group has stopped.
    pub(crate) async fn tell(&self, mail: Mail) -> Result<(), Mail> {
        self.mail.send(mail).await.map_err(|e| e.0)
    }

    /// Tells it what a source said; waits while too much waits for it. False: the group has stopped.
    pub(crate) async fn frame(&self, session: SessionId, frame: Bytes, arrived: Instant) -> bool {
        let bytes = u32::try_from(frame.len().min(FRAME_BYTES_MAX)).expect("less than 4 GiB");
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(bytes).await else { return false };
        self.tell(Mail::Frame { session, frame, arrived, room }).await.is_ok()
    }

    /// How it was a moment ago.
    pub(crate) fn view(&self) -> Arc<GroupView> {
        self.view.load_full()
    }

    /// Makes [`GroupHandle::view`] new, unless the group is busy for longer than a person likes to wait.
    pub(crate) async fn refresh(self) {
        let (reply, shown) = oneshot::channel();
        let ask = async {
            if self.tell(Mail::Show { reply }).await.is_ok() {
                let _ = shown.await;
            }
        };
        let _ = tokio::time::timeout(SHOW, ask).await;
    }

    /// Its newest points, oldest of them first.
    pub(crate) async fn points(&self, newest: usize) -> Result<Vec<PointInfo>, String> {
        let (reply, answer) = oneshot::channel();
        let stopped = || "the receiver is stopping".to_owned();
        self.tell(Mail::Points { newest, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Changes the pins of a point; the point as it is then, once that is in the ledger.
    pub(crate) async fn pin(&self, point: PointId, change: PinChange) -> Result<PointInfo, ApiError> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || ApiError::new(ErrorCode::Unavailable, "the group was closed meanwhile", "see `farside status`; then try again");
        self.tell(Mail::Pin { point, change, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Asks it to stop. Blocking.
    pub(crate) fn stop(&self) {
        let _ = self.mail.blocking_send(Mail::Stop);
    }
}

/// Starts a group's thread.
pub(crate) fn start(receiver: Arc<Receiver>, names: GroupNames) -> std::io::Result<(GroupHandle, std::thread::JoinHandle<()>)> {
    let (mail, mailbox) = mpsc::channel(MAIL_MAX);
    let view = Arc::new(ArcSwap::from_pointee(GroupView::new(&names)));
    let room = Arc::new(Semaphore::new(FRAME_BYTES_MAX));
    let handle = GroupHandle { names: names.clone(), mail, room, view: Arc::clone(&view) };
    let thread = std::thread::Builder::new().name(format!("g:{}", names.group)).spawn(move || {
        let _guard = AbortOnPanic;
        let now = Instant::now();
        let policy = receiver.policy_of(&names);
        let mut group = Group {
            receiver,
            names,
            view,
            place: Place::Away { words: "the group is being opened".to_owned(), retry_at: now },
            sessions: BTreeMap::new(),
            events: VecDeque::new(),
            policy,
            policy_is_default: false,
            prune: Prune { due: true, short: false, last: None },
            submitted: 0,
            claims: Pace::default(),
            pinning: BTreeMap::new(),
            beginnings: BTreeMap::new(),
            cut_seen: BTreeMap::new(),
            last_failure: String::new(),
            tally: ReceiverCounters::default(),
            dead_bytes: 0,
            dead_seen: None,
            unwritable: None,
            parts_failed: 0,
            reopen: Backoff::new(REOPEN.0, REOPEN.1),
            torn_again: None,
            torn_patience: Backoff::new(TORN_AGAIN.0, TORN_AGAIN.1),
        };
        group.run(mailbox);
    })?;
    Ok((handle, thread))
}

/// An invariant that broke must stop the process: what is in memory is not to be believed any more.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

struct Group {
    receiver: Arc<Receiver>,
    names: GroupNames,
    view: Arc<ArcSwap<GroupView>>,
    place: Place,
    sessions: BTreeMap<SessionId, Arc<Session>>,
    /// What our own actions brought about, before anything else is looked at; messages with the time at which they came to the
    /// door, since a lag must not forget how long they waited.
    events: VecDeque<(Event, Option<Instant>)>,
    /// What is to be kept, once that is known.
    policy: Option<Policy>,
    /// Nobody said it: it holds for one opening of a group that was empty then.
    policy_is_default: bool,
    prune: Prune,
    /// Numbers what is submitted.
    submitted: u64,
    claims: Pace,
    /// Who waits for pins, by the last submission.
    pinning: BTreeMap<u64, Pinning>,
    /// When a layer was announced, for the lag.
    beginnings: BTreeMap<LayerKey, Instant>,
    /// When the cut of the newest point of a volume was announced, as far as this process saw it.
    cut_seen: BTreeMap<VolumeId, Instant>,
    /// Why the last part did not land: the words a closed session is given.
    last_failure: String,
    tally: ReceiverCounters,
    /// Bytes of segments that nothing needs, and when that was looked at.
    dead_bytes: u64,
    dead_seen: Option<Instant>,
    /// This group's files cannot be written, though the store may be well.
    unwritable: Option<String>,
    /// Parts in a row that the disk did not take.
    parts_failed: u32,
    reopen: Backoff,
    /// When a torn ledger is read again.
    torn_again: Option<Instant>,
    torn_patience: Backoff,
}

enum Place {
    Away { words: String, retry_at: Instant },
    Here(Box<Here>),
}

struct Here {
    store: GroupStore,
    target: Target,
    generation: Generation,
}

struct Prune {
    due: bool,
    /// The disk is too full for what this group may have under way.
    short: bool,
    last: Option<Instant>,
}

/// A change of a point's pins, on its way into the ledger.
struct Pinning {
    point: PointId,
    /// Its records: the first of them.
    first: u64,
    trouble: Option<ApiError>,
    reply: oneshot::Sender<Result<PointInfo, ApiError>>,
}

impl Group {
    fn run(&mut self, mut mailbox: mpsc::Receiver<Mail>) {
        let runtime = self.receiver.runtime.clone();
        let (mut next_tick, mut next_show) = (Instant::now(), Instant::now());
        loop {
            if Instant::now() >= next_tick {
                self.tick();
                next_tick = Instant::now() + TICK;
            }
            self.work();
            // A mail is cheap, a picture of the whole group is not.
            if Instant::now() >= next_show {
                self.show();
                next_show = Instant::now() + SHOW;
            }
            let deadline = tokio::time::Instant::from_std(next_tick);
            match runtime.block_on(async { tokio::time::timeout_at(deadline, mailbox.recv()).await }) {
                Err(_) => {}
                Ok(None | Some(Mail::Stop)) => break,
                Ok(Some(mail)) => self.read(mail),
            }
        }
        for session in self.sessions.values() {
            session.close(CloseCode::ShuttingDown, "the receiver is stopping");
        }
    }

    fn now(&self) -> u64 {
        self.since_start(Instant::now())
    }

    fn since_start(&self, when: Instant) -> u64 {
        u64::try_from(when.saturating_duration_since(self.receiver.started).as_nanos()).unwrap_or(u64::MAX)
    }

    fn read(&mut self, mail: Mail) {
        match mail {
            Mail::Connected { session } => {
                self.tally.connections += 1;
                self.sessions.insert(session.id, session);
                // A group that looks empty and alone may have to give way: it is not alone from here on.
                self.show();
            }
            Mail::Frame { session, frame, arrived, room: _room } => self.frame(session, &frame, arrived),
            Mail::Message { session, message, arrived } => self.message(session, message, arrived),
            Mail::Closed { session } => {
                if self.sessions.remove(&session).is_some() {
                    self.happened(Event::Closed { session });
                }
            }
            Mail::BeginPart { session, header, reply } => {
                let answer = self.begin_part(session, &header);
                let _ = reply.send(answer);
            }
            Mail::Part { session, header, outcome } => self.part(session, &header, outcome),
            Mail::Points { newest, reply } => {
                let answer = match &self.place {
                    Place::Here(here) => {
                        let mut points: Vec<PointInfo> = here.store.points_below(None).take(newest).collect();
                        points.reverse();
                        Ok(points)
                    }
                    Place::Away { words, .. } => Err(words.clone()),
                };
                let _ = reply.send(answer);
            }
            Mail::Show { reply } => {
                self.show();
                let _ = reply.send(());
            }
            Mail::Pin { point, change, reply } => self.pin(point, change, reply),
            Mail::Stop => unreachable!("the loop ends with it"),
        }
    }

    /// Submits what makes the pins of a point so.
    fn pin(&mut self, point: PointId, change: PinChange, reply: oneshot::Sender<Result<PointInfo, ApiError>>) {
        let pins = match self.pinned(point) {
            Ok(info) => info.pins,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let bodies: Vec<Body> = match change {
            PinChange::Unpin => pins.into_iter().map(|(pin, _)| Body::Unpin(Unpin { pin })).collect(),
            PinChange::Pin { reason } if pins.iter().any(|(_, known)| *known == reason) => Vec::new(),
            PinChange::Pin { .. } if pins.len() >= PINS_MAX => {
                let message = format!("point {point} has {PINS_MAX} pins, which is enough to keep it");
                return drop(reply.send(Err(ApiError::new(
                    ErrorCode::Conflict,
                    message,
                    "farside point unpin withdraws them all",
                ))));
            }
            PinChange::Pin { reason } => vec![Body::Pin(Pin { point: Slot(point.slot), reason })],
        };
        if bodies.is_empty() {
            return drop(reply.send(self.pinned(point)));
        }
        let first = self.submitted + 1;
        bodies.into_iter().for_each(|body| self.submit(body));
        self.pinning.insert(self.submitted, Pinning { point, first, trouble: None, reply });
    }

    /// A point of this group.
    fn pinned(&self, point: PointId) -> Result<PointInfo, ApiError> {
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => {
                return Err(ApiError::new(ErrorCode::Unavailable, words, "try again when the store answers again"));
            }
        };
        let info = here.store.point(Slot(point.slot)).filter(|info| PointId::new(info.slot.0, &info.digest.0) == point);
        info.ok_or_else(|| ApiError::not_found("point", &point.to_string(), "`farside point list` shows those that are kept"))
    }

    fn submit(&mut self, body: Body) {
        self.submitted += 1;
        self.happened(Event::Submit { submission: self.submitted, body: Box::new(body) });
    }

    /// What was submitted has its verdict.
    fn submitted(&mut self, submission: u64, outcome: AppendOutcome) {
        let trouble = match outcome {
            AppendOutcome::Judged { verdict: Verdict::Accepted | Verdict::Void(VoidReason::NoSuchPin(_)), .. } => None,
            AppendOutcome::Judged { verdict: Verdict::Void(reason), .. } => Some((ErrorCode::Conflict, reason.to_string())),
            AppendOutcome::Failed { text } | AppendOutcome::Unusable { text, .. } => Some((ErrorCode::Unavailable, text)),
            AppendOutcome::Collided => unreachable!("a collision is retried"),
        };
        let Some((&last, pinning)) = self.pinning.range_mut(submission..).next().filter(|(_, p)| p.first <= submission) else {
            if let Some((ErrorCode::Unavailable, text)) = trouble {
                tracing::warn!(group = %self.names, %text, "nothing was pruned");
                self.prune.due = true;
            }
            return;
        };
        if let Some((code, text)) = trouble {
            pinning.trouble = Some(ApiError::new(code, text, "see `farside status` on this gateway"));
        }
        if submission < last {
            return;
        }
        let done = self.pinning.remove(&last).expect("it was just found");
        let answer = done.trouble.map_or_else(|| self.pinned(done.point), Err);
        let _ = done.reply.send(answer);
    }

    fn frame(&mut self, session: SessionId, frame: &Bytes, arrived: Instant) {
        // What a session that was closed still says is not even looked at.
        let Some(link) = self.sessions.get(&session).cloned() else { return };
        match decode_payload::<SourceMessage>(frame) {
            Ok(message) => self.message(session, Box::new(message), arrived),
            Err(error) => {
                tracing::warn!(group = %self.names, %error, "a source sent what is not a message");
                self.end_session(&link, RefusalCode::Protocol, CloseCode::Protocol, &error.to_string());
            }
        }
    }

    fn message(&mut self, session: SessionId, message: Box<SourceMessage>, arrived: Instant) {
        // A session that was closed stays closed.
        let Some(link) = self.sessions.get(&session).cloned() else { return };
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => {
                let words = words.clone();
                return self.turn_away(&link, RefusalCode::Store, &words);
            }
        };
        if let Some(torn) = here.store.torn() {
            let text = format!(
                "the ledger of {} is torn in slot {} ({}: {}); on the gateway: {}",
                self.names,
                torn.slot,
                torn.file,
                torn.why,
                way_out(torn, self.receiver.vault.path())
            );
            return self.turn_away(&link, RefusalCode::LedgerTorn, &text);
        }
        match &*message {
            SourceMessage::Claim(request) => {
                let volumes = here.store.state().volumes().count();
                if !self.claims.admit(Instant::now(), CLAIMS_PER_VOLUME * volumes.max(8)) {
                    let text = format!("{} claims its volumes again and again: something is wrong on its host", self.names);
                    return self.turn_away(&link, RefusalCode::Store, &text);
                }
                if let Err(text) = self.check_claim(here, &request.claim) {
                    return self.turn_away(&link, RefusalCode::Protocol, &text);
                }
            }
            SourceMessage::LayerBegin(begin) => {
                if self.beginnings.len() >= BEGINNINGS_MAX {
                    self.beginnings.pop_first();
                }
                self.beginnings.entry(begin.key).or_insert(arrived);
            }
            _ => {}
        }
        self.events.push_back((Event::Message { session, message }, Some(arrived)));
    }

    /// What happened, just now.
    fn happened(&mut self, event: Event) {
        self.events.push_back((event, None));
    }

    /// A claim is for a volume of this group, whose files get its name, and there is room for it.
    fn check_claim(&self, here: &Here, claim: &farside_ledger::Claim) -> Result<(), String> {
        let (volume, state) = (&claim.volume, here.store.state());
        if claim.source != self.names.source || volume.id != volume_id(&self.names.source, &self.names.group, &volume.name) {
            return Err(format!("the claim of volume `{}` does not carry the id of that name", volume.name));
        }
        // The digests' and the indexes' sizes follow from the shape.
        if (volume.geometry.granule_bytes(), volume.geometry.region_granules()) != (GRANULE_BYTES, REGION_GRANULES) {
            return Err(format!("volume `{}` does not have granules of 4 KiB in regions of 4 MiB", volume.name));
        }
        let limit = self.receiver.config().limits.volumes_per_group;
        let waiting = here.target.new_volumes(state);
        let is_new = state.volume(volume.id).is_none() && !waiting.contains(&volume.id);
        if is_new && state.volumes().count() + waiting.len() >= limit {
            return Err(format!(
                "{} has {limit} volumes here, which is this receiver's limit (`limits.volumes_per_group`)",
                self.names
            ));
        }
        Ok(())
    }

    fn turn_away(&mut self, session: &Arc<Session>, code: RefusalCode, text: &str) {
        self.end_session(session, code, CloseCode::Refused, text);
    }

    fn end_session(&mut self, session: &Arc<Session>, code: RefusalCode, end: CloseCode, text: &str) {
        session.send(&ReceiverMessage::Refusal(refusal(code, text)));
        session.close(end, text);
        self.sessions.remove(&session.id);
        self.happened(Event::Closed { session: session.id });
    }

    fn begin_part(&mut self, session: SessionId, header: &PartHeader) -> BeginPart {
        let Some(link) = self.sessions.get(&session) else { return BeginPart::Drop };
        let Place::Here(here) = &self.place else { return BeginPart::Drop };
        let (key, part) = (header.key, header.part);
        match here.target.accepts_part(here.store.state(), session, key, part) {
            Ok(()) => {}
            Err(RefusalCode::Term | RefusalCode::Unknown) => return BeginPart::Swallow,
            Err(RefusalCode::Session) => return BeginPart::Drop,
            Err(_) => {
                let text = format!("part {part} of layer {key} was not to be sent");
                let link = Arc::clone(link);
                self.turn_away(&link, RefusalCode::Protocol, &text);
                return BeginPart::Drop;
            }
        }
        let begun = here.store.volume(key.volume).and_then(|volume| here.store.landing().begin_part(volume, key, part));
        match begun {
            Ok(lander) => BeginPart::Land(Box::new(lander)),
            Err(error) => BeginPart::Failed(error),
        }
    }

    fn part(&mut self, session: SessionId, header: &PartHeader, outcome: PartOutcome) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        let (key, part) = (header.key, header.part);
        let event = match outcome {
            PartOutcome::Landed(entry) => {
                self.tally.parts += 1;
                self.tally.part_bytes += entry.bytes;
                self.parts_failed = 0;
                Event::PartLanded { session, key, part, entry }
            }
            // Its bytes count as taken, or the source would run out of credit in the end.
            PartOutcome::Unwanted { bytes } => {
                Event::PartLanded { session, key, part, entry: PartEntry { bytes, footer_digest: [0; 32] } }
            }
            PartOutcome::Failed(error) => {
                self.tally.parts_failed += 1;
                let why = error.to_string();
                self.last_failure.clone_from(&why);
                self.part_error(&error);
                Event::PartFailed { session, key, part, why }
            }
        };
        self.happened(event);
    }

    /// A part did not land. Nobody was told anything of it, so nothing else is in doubt; but if it happens again and again, this
    /// group waits for a while.
    fn part_error(&mut self, error: &StoreError) {
        match error {
            StoreError::Io { .. } if error.remedy() == Remedy::Reopen => {
                self.parts_failed += 1;
                if self.parts_failed >= PARTS_FAILED_MAX {
                    self.parts_failed = 0;
                    self.unwritable = Some(error.to_string());
                }
            }
            _ => self.store_error(error),
        }
    }

    /// Tells the vault; if the store is given up, the group leaves it with the next tick at the latest. What only this group
    /// cannot write makes only this group leave.
    fn store_error(&mut self, error: &StoreError) {
        match (&self.place, error) {
            (Place::Away { .. }, _) => {}
            (Place::Here(_), StoreError::ReadOnly { .. } | StoreError::Denied { .. }) => {
                self.unwritable = Some(error.to_string())
            }
            (Place::Here(here), _) => drop(self.receiver.vault.failed(here.generation, error)),
        }
    }

    fn tick(&mut self) {
        match &mut self.place {
            Place::Here(here) if self.receiver.vault.generation() != Some(here.generation) => self.leave(),
            // Perhaps somebody brought the file back.
            Place::Here(here) if here.store.torn().is_some() => match self.torn_again {
                None => self.torn_again = Some(Instant::now() + self.torn_patience.next(0)),
                Some(at) if Instant::now() >= at => {
                    self.torn_again = None;
                    // The target that comes knows none of the connections that stand.
                    self.leave_with("the ledger is read again".to_owned(), Duration::ZERO);
                    self.enter();
                }
                Some(_) => {}
            },
            Place::Here(here) => {
                if let Err(error) = here.store.space() {
                    self.store_error(&error);
                    return;
                }
                if here.store.deferred() > 0
                    && let Err(error) = here.store.sweep()
                {
                    tracing::warn!(group = %self.names, %error, "dead segments could not be deleted yet");
                }
                self.look_at_disk();
                self.prune_if_due();
                self.happened(Event::Tick);
            }
            Place::Away { retry_at, .. } if Instant::now() >= *retry_at => self.enter(),
            Place::Away { .. } => {}
        }
        self.beginnings.retain(|_, seen| seen.elapsed() < Duration::from_secs(7 * 86_400));
    }

    /// Opens the group.
    fn enter(&mut self) {
        let opened = self.receiver.vault.current().and_then(|(store, generation)| {
            let group = store.group(&self.names.source, &self.names.group);
            group.map(|group| (group, generation, store.id())).map_err(|error| {
                self.receiver.vault.failed(generation, &error);
                error.to_string()
            })
        });
        match opened {
            Err(words) => {
                if !matches!(&self.place, Place::Away { words: before, .. } if *before == words) {
                    tracing::warn!(group = %self.names, %words, "the group cannot be opened");
                }
                // The vault has a patience of its own.
                let delay = if self.receiver.vault.generation().is_some() { self.reopen.next(0) } else { TICK };
                self.place = Place::Away { words, retry_at: Instant::now() + delay };
            }
            Ok((store, generation, id)) => {
                let limits = &self.receiver.config().limits;
                let config = Config {
                    group: group_id(&self.names.source, &self.names.group),
                    source: self.names.source.clone(),
                    group_name: self.names.group.clone(),
                    store: id,
                    layer_digest: farside_layer::layer_digest,
                    limits: target::Limits { credit_window: u64::from(limits.credit_mib) << 20, ..target::Limits::default() },
                };
                let landed = store.landing().landed();
                let landed = landed.into_iter().map(|l| LandedLayer { key: l.key, parts: l.parts }).collect();
                let mut actions = Vec::new();
                let target = Target::new(config, store.state(), landed, &mut actions);
                let head = store.state().head();
                match store.torn() {
                    None => {
                        self.torn_patience.reset();
                        tracing::info!(group = %self.names, ?head, points = store.state().points().len(), "the group is open");
                    }
                    Some(torn) => tracing::error!(group = %self.names, slot = %torn.slot, why = torn.why, "the ledger is torn"),
                }
                // Points of which nobody here knows how many to keep, of a gateway that was reinstalled, say, are all kept until
                // their source has said it. Those of a new group follow the configuration until then. A torn ledger may hide
                // any number of points: nothing replayed does not mean that it is new.
                if std::mem::take(&mut self.policy_is_default) {
                    self.policy = None;
                }
                if self.policy.is_none() && head.is_none() && store.torn().is_none() {
                    self.policy = Some(self.receiver.policy_default());
                    self.policy_is_default = true;
                }
                self.place = Place::Here(Box::new(Here { store, target, generation }));
                self.prune.due = true;
                self.act(actions);
                self.look_at_disk();
            }
        }
    }

    /// The store was given up, or the group cannot be written: everybody is told why, and the files are let go.
    fn leave(&mut self) {
        let delay = if self.unwritable.is_some() { self.reopen.next(0) } else { TICK };
        let words = self.unwritable.take().or_else(|| self.receiver.vault.current().err());
        let words = words.unwrap_or_else(|| "the store is being opened again".to_owned());
        self.leave_with(words, delay);
    }

    fn leave_with(&mut self, words: String, delay: Duration) {
        for session in std::mem::take(&mut self.sessions).into_values() {
            session.send(&ReceiverMessage::Refusal(refusal(RefusalCode::Store, &words)));
            session.close(CloseCode::Refused, &words);
        }
        self.events.clear();
        self.pinning.clear();
        self.receiver.space.forget(&self.names);
        self.place = Place::Away { words, retry_at: Instant::now() + delay };
    }

    /// Tells the target how much disk there is for this group.
    fn look_at_disk(&mut self) {
        let Place::Here(here) = &self.place else { return };
        let Ok(space) = here.store.space() else { return };
        let least = 2 * target::Limits::default().credit_step;
        let free_bytes = self.receiver.space.room(&self.names, space.grantable(), least);
        // Before the source has to wait, not when it does.
        self.prune.short = free_bytes < u64::from(self.receiver.config().limits.credit_mib) << 20;
        self.prune.due |= self.prune.short;
        let spare_bytes = self.receiver.space.spare(&self.names, space.spare(), space.grantable());
        self.happened(Event::Grantable { free_bytes, spare_bytes, reserve_bytes: space.reserve() });
    }

    fn prune_if_due(&mut self) {
        let interval = self.receiver.config().retention.interval;
        let interval = if self.prune.short { interval.min(PRUNE_SHORT) } else { interval };
        let waited = self.prune.last.is_none_or(|last| last.elapsed() >= interval);
        let Place::Here(here) = &self.place else { return };
        if !self.prune.due || !waited {
            return;
        }
        self.prune.due = false;
        self.prune.last = Some(Instant::now());
        if self.policy_is_default {
            // A reload may have changed it.
            self.policy = Some(self.receiver.policy_default());
        }
        let Some(policy) = &self.policy else { return };
        let policy = self.receiver.config().retention.floor(*policy);
        if let Some(body) = here.store.prune_plan(&policy) {
            self.submit(body);
        }
    }

    /// Feeds the target until nothing is left that it or its actions brought about.
    fn work(&mut self) {
        while let Some((event, arrived)) = self.events.pop_front() {
            let now = self.since_start(arrived.unwrap_or_else(Instant::now));
            let Place::Here(here) = &mut self.place else {
                self.events.clear();
                return;
            };
            let mut actions = Vec::new();
            here.target.step(now, here.store.state(), event, &mut actions);
            self.receiver.space.grant(&self.names, here.target.granted_bytes(), !self.sessions.is_empty());
            self.act(actions);
        }
        if self.unwritable.is_some() {
            self.leave();
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { session, message } => {
                    if let ReceiverMessage::Published(published) = &*message {
                        self.published(published.kind, &published.layers);
                    }
                    if let Some(link) = self.sessions.get(&session) {
                        link.send(&message);
                    }
                }
                Action::CloseSession { session, why } => self.close_session(session, why),
                Action::Append { ticket, body } => self.append(ticket, *body),
                Action::Submitted { submission, outcome } => self.submitted(submission, outcome),
                Action::DropLayer { key } => self.drop_parts(key, 0),
                Action::DropParts { key, from } => self.drop_parts(key, from),
                Action::ReadDigests { session, id, volume, run } => self.digests(session, id, volume, run),
                Action::AnswerLedger { session, slice } => self.answer_ledger(session, *slice),
                Action::AnswerPoints { session, query } => self.answer_points(session, &query),
                Action::Policy { policy } => self.set_policy(policy),
                Action::Prune => self.prune.due = true,
                Action::Report { volume, what } => self.report(volume, &what),
                other => tracing::error!(?other, "an action that this build does not know"),
            }
        }
    }

    fn close_session(&mut self, session: SessionId, why: &'static str) {
        let Some(link) = self.sessions.remove(&session) else { return };
        let words = if self.last_failure.is_empty() { why.to_owned() } else { std::mem::take(&mut self.last_failure) };
        tracing::info!(group = %self.names, %words, "closing a connection");
        // Returns when none of its parts can land any more, as the next action expects.
        link.close(CloseCode::Refused, &words);
    }

    fn append(&mut self, ticket: Ticket, body: Body) {
        let Place::Here(here) = &mut self.place else { return };
        let kind = match &body {
            Body::Layers(layers) => Some(Some(layers.kind)),
            Body::Prune(_) => Some(None),
            _ => None,
        };
        let drawn = drawn_bytes(&body);
        let outcome = match here.store.append(body) {
            Ok(appended) => {
                self.receiver.space.draw(&self.names, drawn);
                self.reopen.reset();
                match kind.filter(|_| appended.verdict == Verdict::Accepted) {
                    Some(Some(LayerKind::Point)) => self.tally.points_published += 1,
                    Some(Some(LayerKind::Fuzzy)) => self.tally.passes_published += 1,
                    Some(None) => self.tally.prunes += 1,
                    None => {}
                }
                AppendOutcome::Judged { position: appended.position, verdict: appended.verdict }
            }
            Err(StoreError::Overtaken { .. }) => AppendOutcome::Collided,
            Err(error) if error.remedy() == Remedy::Lose => {
                AppendOutcome::Unusable { layers: error.layer().into_iter().collect(), text: error.to_string() }
            }
            Err(error) => {
                self.store_error(&error);
                AppendOutcome::Failed { text: error.to_string() }
            }
        };
        self.events.push_front((Event::Appended { ticket, outcome }, None));
    }

    fn drop_parts(&mut self, key: LayerKey, from: u32) {
        let Place::Here(here) = &mut self.place else { return };
        if let Err(error) = here.store.drop_parts(key, from) {
            tracing::warn!(group = %self.names, %key, %error, "parts could not be deleted yet");
            self.store_error(&error);
        }
    }

    fn digests(&mut self, session: SessionId, id: RequestId, volume: VolumeId, run: farside_region::GranuleRun) {
        let Place::Here(here) = &self.place else { return };
        let runs = here.store.digests(volume, run).map(|runs| runs.into_iter().map(wire_run).collect());
        let runs = runs.map_err(|error| {
            self.receiver.vault.failed(here.generation, &error);
            error.to_string()
        });
        self.happened(Event::Digests { session, id, volume, start: run.start, runs });
    }

    fn answer_ledger(&mut self, session: SessionId, slice: LedgerSlice) {
        let (Place::Here(here), Some(link)) = (&self.place, self.sessions.get(&session).cloned()) else { return };
        match exact_slice(&here.store, slice) {
            Ok(slice) => link.send(&ReceiverMessage::LedgerSlice(slice)),
            Err(error) => {
                self.store_error(&error);
                self.turn_away(&link, RefusalCode::Store, &error.to_string());
            }
        }
    }

    fn answer_points(&mut self, session: SessionId, query: &PointQuery) {
        let (Place::Here(here), Some(link)) = (&self.place, self.sessions.get(&session)) else { return };
        let page = point_page(&here.store, query);
        link.send(&ReceiverMessage::Points(PointAnswer { id: query.id, page }));
    }

    fn set_policy(&mut self, policy: Policy) {
        let (source, group) = (&self.names.source, &self.names.group);
        // A default that was never said is not remembered, so it is compared with what is.
        if self.receiver.policy_of(&self.names) == Some(policy) {
            self.policy = Some(policy);
            self.policy_is_default = false;
            return;
        }
        if let Err(error) = self.receiver.state_dir.remember_policy(source, group, &policy) {
            tracing::warn!(group = %self.names, %error, "what is to be kept could not be remembered");
            // What is given up is gone for ever: until it is remembered, only more may be kept.
            let larger = |old: &Policy| Policy { keep: old.keep.max(policy.keep), span_ms: old.span_ms.max(policy.span_ms) };
            self.policy = self.policy.as_ref().map(larger);
            return;
        }
        self.policy = Some(policy);
        self.policy_is_default = false;
        self.prune.due = true;
        tracing::info!(group = %self.names, keep = policy.keep, span_ms = policy.span_ms, "the source says what is to be kept");
    }

    /// Remembers since when the newest point's content is old.
    fn published(&mut self, kind: LayerKind, layers: &[LayerKey]) {
        let begun = layers.iter().filter_map(|key| self.beginnings.remove(key)).min();
        if kind == LayerKind::Point
            && let Some(begun) = begun
        {
            self.cut_seen.extend(layers.iter().map(|key| (key.volume, begun)));
        }
    }

    fn report(&self, volume: Option<VolumeId>, what: &Report) {
        let name = volume.and_then(|id| match &self.place {
            Place::Here(here) => here.store.state().volume(id).map(|v| v.meta().name.to_string()),
            Place::Away { .. } => None,
        });
        let (group, volume) = (&self.names, name.unwrap_or_default());
        match what {
            Report::Judged { position, verdict } => tracing::debug!(%group, slot = %position.slot, ?verdict, "a record"),
            Report::Unusable { text } => tracing::error!(%group, %text, "a record cannot be made; what it named is lost"),
            Report::AppendFailed { text } => tracing::error!(%group, %text, "nothing can be published"),
            Report::Dropped { key, why } => tracing::info!(%group, volume, %key, ?why, "a layer was dropped"),
            Report::PartFailed { key, part, why } => tracing::warn!(%group, volume, %key, part, %why, "a part did not land"),
            Report::SessionRefused { why } => tracing::info!(%group, why, "a connection is ended"),
            other => tracing::debug!(%group, ?other, "a report"),
        }
    }

    /// How old the group is at most: its oldest volume. `None` if a volume has no point.
    /// A volume that left the group does not count: it is not in the newest point, and nothing came of it since. It is named.
    fn lag(&self, here: &Here) -> Option<Lag> {
        let state = here.store.state();
        let age = |id: VolumeId| {
            let point = state.newest_point_of(id)?;
            let seen = self.cut_seen.get(&id).map(|cut| Lag { age: cut.elapsed(), is_at_least: false });
            // A heartbeat says that nothing changed since.
            let quiet = here.target.quiet(state, id).map(|(_, arrived)| Duration::from_nanos(self.now().saturating_sub(arrived)));
            let quiet = quiet.map(|age| Lag { age, is_at_least: false });
            let known = [seen, quiet].into_iter().flatten().min();
            Some(known.unwrap_or_else(|| Lag { age: since_published(point), is_at_least: true }))
        };
        let newest = state.points().values().next_back();
        let counts = |id: VolumeId| {
            let in_newest = newest.is_some_and(|p| p.members.iter().any(|m| m.key.volume == id));
            let layer = state.volume(id).and_then(|v| v.last_layer().filter(|l| l.key.term == v.term()));
            let layer_since = layer.is_some_and(|l| newest.is_none_or(|p| l.slot > p.slot));
            let term = state.volume(id).map(|v| v.term());
            let begun = self.beginnings.keys().any(|key| key.volume == id && Some(key.term) == term);
            in_newest || layer_since || begun || here.target.quiet(state, id).is_some()
        };
        let ages: Option<Vec<Lag>> = state.volumes().filter(|(id, _)| counts(*id)).map(|(id, _)| age(id)).collect();
        ages?.into_iter().max()
    }

    /// Puts up how the group is now.
    fn show(&mut self) {
        // It walks all parts.
        if let Place::Here(here) = &self.place
            && self.dead_seen.is_none_or(|seen| seen.elapsed() >= DEAD_AGAIN)
        {
            self.dead_bytes = here.store.dead_bytes();
            self.dead_seen = Some(Instant::now());
        }
        let mut view = GroupView::new(&self.names);
        let newest = self.sessions.values().max_by_key(|s| s.heard());
        view.connected_from = newest.map(|s| s.address());
        view.heard = newest.map(|s| s.heard()).or(self.view.load().heard);
        match &self.place {
            Place::Away { words, .. } => view.away(words),
            Place::Here(here) => {
                let lag = self.lag(here);
                view.here(&here.store, self.receiver.vault.path(), &here.target, lag, self.dead_bytes, self.tally);
            }
        }
        self.view.store(Arc::new(view));
    }
}

/// What a record takes of the disk, about, that no credit was for.
fn drawn_bytes(body: &Body) -> u64 {
    match body {
        Body::Layers(layers) if layers.members.iter().any(|m| !m.parts.is_empty()) => 0,
        Body::Layers(layers) => 4096 + layers.members.iter().map(|m| 12 * m.regions.range_count() as u64).sum::<u64>(),
        Body::Prune(_) => 0,
        _ => 4096,
    }
}
