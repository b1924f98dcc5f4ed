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
//! It decides nothing about data. What it may block on: the store's disk, and small requests of a bucket. Never segments on their way
//! there ([`uploads`]), never a source, never another group.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use farside_control::Reason;
use farside_control::receiver::ReceiverCounters;
use farside_ledger::{Body, Policy, State, group_id};
use farside_objects::Location;
use farside_region::{LayerKey, Name, Slot, VolumeId};
use farside_replication::target::{self, Config, Event, LandedLayer, SessionId, Target};
use farside_store::{GroupNames, GroupStore, KnownDamage, SpoiledParts};
use farside_transport::{Backoff, CloseCode};
use farside_wire::{Damage, ReceiverMessage, RefusalCode};
use tokio::sync::{Semaphore, mpsc};

use self::at_rest::Asker;
pub(crate) use self::at_rest::Trouble as KeyTrouble;
use self::fence::Listening;
pub(crate) use self::fence::{Fence, Fenced, Promotable, PromotionLook, Waits, Wanted};
pub(crate) use self::follow::{FollowAsk, FollowError, FollowNext};
use self::last_words::LastWords;
pub(crate) use self::mail::{BeginPart, CohortAnswer, CohortCuts, Doubt, GroupHandle, Mail, PartOutcome, PointChange};
use self::mail::{FRAME_BYTES_MAX, MAIL_MAX};
use self::merges::Submitted;
pub(crate) use self::merges::{MergeNext, MergeStanding};
use self::pins::Changing;
pub(crate) use self::pull::{PullAsk, PullLook, PullWanted, Pullable};
use self::refused::Denied;
pub(crate) use self::rollback::{DiscardAsk, Discards};
pub(crate) use self::sources::gone_for_good;
pub(crate) use self::unclaimed::Unclaimed;
use crate::config;
use crate::door::{Session, refusal};
use crate::pace::Pace;
use crate::process::Receiver;
use crate::status::{GroupView, since_1970};
use crate::vault::Generation;

mod actions;
mod at_rest;
mod fence;
mod follow;
mod last_words;
mod mail;
mod merges;
mod pins;
mod pull;
mod refused;
mod rollback;
mod sources;
mod unclaimed;
mod uploads;
mod view;

/// How often a group looks at its disk and its dues when nothing happens.
const TICK: Duration = Duration::from_millis(500);
/// How often the picture of a group is made anew while things happen.
const SHOW: Duration = Duration::from_millis(250);
/// How often pruning is tried at the least when space is short.
const PRUNE_SHORT: Duration = Duration::from_secs(5);
/// When a group that could not be opened or written is tried again: doubled each time, up to the second.
const REOPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(16));
/// What could not be written into the state directory is tried again after so long.
const KEEP_AGAIN: Duration = Duration::from_secs(5);
/// When a torn ledger is read again: doubled each time, up to the second.
const TORN_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// When segments that were damaged when the group was opened are looked at again: of a directory, and of a bucket. After each time that it was opened for
/// them it is waited twice as long, up to the second: a disk may give them one time and not the next.
const DAMAGED_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// The clock of the targets begins so high, for layers that were staged before this process began.
const BEFORE: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Starts a group's thread.
pub(crate) fn start(receiver: Arc<Receiver>, names: GroupNames) -> std::io::Result<(GroupHandle, std::thread::JoinHandle<()>)> {
    let (mail, mailbox) = mpsc::channel(MAIL_MAX);
    let view = Arc::new(ArcSwap::from_pointee(GroupView::new(&names)));
    let room = Arc::new(Semaphore::new(FRAME_BYTES_MAX));
    let own_mail = mail.downgrade();
    let handle = GroupHandle { names: names.clone(), mail, room, view: Arc::clone(&view) };
    let thread = std::thread::Builder::new().name(format!("g:{}", names.group)).spawn(move || {
        let _guard = AbortOnPanic;
        let now = Instant::now();
        let policy = receiver.policy_of(&names);
        receiver.schedule.load(&receiver.state_dir, &names);
        let spoiled = receiver.schedule.met_in(&names);
        let mut group = Group {
            receiver,
            names,
            view,
            place: Place::Away { words: "the group is being opened".to_owned(), retry_at: now },
            sessions: BTreeMap::new(),
            last_words: LastWords::default(),
            unclaimed: Unclaimed::default(),
            listening: Listening::anew(),
            events: VecDeque::new(),
            policy,
            policy_is_default: false,
            policy_is_unsaid: false,
            policy_unkept: None,
            prune: Prune { due: true, ..Prune::default() },
            submitted: 0,
            claims: Pace::default(),
            changing: BTreeMap::new(),
            unpin_in_doubt: true,
            merges: BTreeMap::new(),
            merging: MergeStanding::default(),
            spoiled,
            beginnings: BTreeMap::new(),
            cut_seen: BTreeMap::new(),
            last_failure: None,
            unkept: BTreeSet::new(),
            tally: ReceiverCounters::default(),
            dead_bytes: 0,
            dead_seen: None,
            not_configured: None,
            cohorts_seen: 0,
            damage: Damage::default(),
            unwritable: None,
            denied: None,
            parts_failed: 0,
            reopen: Backoff::new(REOPEN.0, REOPEN.1),
            torn_again: None,
            damaged_again: None,
            damaged_pause: DAMAGED_AGAIN.0,
            torn_patience: Backoff::new(TORN_AGAIN.0, TORN_AGAIN.1),
            at_rest: at_rest::AtRest::new(own_mail.clone()),
            uploads: uploads::Uploads::new(own_mail),
            slot: fence::LastSlot::OfOneBefore,
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
    last_words: LastWords,
    /// Volumes of which whoever is connected holds no claim.
    unclaimed: Unclaimed,
    /// What it says that nobody is connected.
    listening: Listening,
    /// What our own actions brought about, before anything else is looked at; messages with the time at which they came to the
    /// door, since a lag must not forget how long they waited.
    events: VecDeque<(Event, Option<Instant>)>,
    /// What is to be kept, once that is known.
    policy: Option<Policy>,
    /// Nobody said it: it holds for one opening of a group that was empty then.
    policy_is_default: bool,
    /// Its source says that nobody has said any, and nobody here knows one.
    policy_is_unsaid: bool,
    /// What its source said last and the state directory does not say yet: why, and when that is tried again.
    policy_unkept: Option<(Policy, Reason, Instant)>,
    prune: Prune,
    /// Numbers what is submitted.
    submitted: u64,
    claims: Pace,
    /// Who waits for records about points, by the last submission.
    changing: BTreeMap<u64, Changing>,
    /// A record that withdraws a pin may be in the slot after the head, or come there: of a process before this one, or its answer was lost.
    unpin_in_doubt: bool,
    /// Records about merges that have no verdict yet, by their submission.
    merges: BTreeMap<u64, Submitted>,
    merging: MergeStanding,
    /// What readers of it met damaged, and no store that was opened has heard of yet.
    spoiled: SpoiledParts,
    /// When a layer was announced, for the lag.
    beginnings: BTreeMap<LayerKey, Instant>,
    /// When the cut of the newest point of a volume was announced, as far as this process saw it.
    cut_seen: BTreeMap<VolumeId, Instant>,
    /// Why the last part did not land: what a closed session is told.
    last_failure: Option<(CloseCode, String)>,
    /// Staged layers of which what was said could not be kept yet.
    unkept: BTreeSet<LayerKey>,
    tally: ReceiverCounters,
    /// Bytes of segments that nothing needs, and when that was looked at.
    dead_bytes: u64,
    dead_seen: Option<Instant>,
    /// That points of cohorts are kept that the configuration does not have.
    not_configured: Option<Reason>,
    /// As of which changes of the cohorts.
    cohorts_seen: u64,
    /// What the sources were told of damaged segments.
    damage: Damage,
    /// This group's files cannot be written, though the store may be well.
    unwritable: Option<String>,
    /// The service refused something of this group, and nothing of it succeeded since.
    denied: Option<Denied>,
    /// Parts in a row that the disk did not take.
    parts_failed: u32,
    reopen: Backoff,
    /// When a torn ledger is read again.
    torn_again: Option<Instant>,
    torn_patience: Backoff,
    /// When damaged segments are looked at again.
    damaged_again: Option<Instant>,
    /// So long it is not opened again for them.
    damaged_pause: Duration,
    /// The key that the group is kept encrypted with.
    at_rest: at_rest::AtRest,
    uploads: uploads::Uploads,
    /// Whether a claim that ends what the source may publish can lie there without being in the state.
    slot: fence::LastSlot,
}

enum Place {
    Away { words: String, retry_at: Instant },
    Here(Box<Here>),
}

struct Here {
    store: GroupStore,
    target: Target,
    generation: Generation,
    /// The requests of the bucket are used up, as the target was told.
    spent: bool,
    /// For so long.
    waits: Option<Duration>,
}

#[derive(Debug, Default)]
struct Prune {
    due: bool,
    /// The disk is too full for what this group may have under way.
    short: bool,
    last: Option<Instant>,
    /// The submission that has no outcome yet: another one before that would be the same.
    under_way: Option<u64>,
}

/// What a target is held to.
fn target_limits(receiver: &Receiver) -> target::Limits {
    target::Limits {
        credit_window: u64::from(receiver.config().limits.credit_mib) << 20,
        publish_every: receiver.publish_every(),
        ..target::Limits::default()
    }
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
            self.look_at_uploads();
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
        // † What was met since the last look: nothing that it replaced is to be deleted by the next process.
        self.hear_of_damage();
        // What is staged need not wait for the next process. If the bucket does not answer, it does, and lies where that finds it.
        self.without_uploads(|group| {
            group.work();
            group.happened(Event::Publish);
            group.work();
        });
        for session in self.sessions.values() {
            session.close(CloseCode::ShuttingDown, "the receiver is stopping");
        }
    }

    fn now(&self) -> u64 {
        self.since_start(Instant::now())
    }

    fn since_start(&self, when: Instant) -> u64 {
        let since = BEFORE + when.saturating_duration_since(self.receiver.started);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn read(&mut self, mail: Mail) {
        match mail {
            Mail::Connected { session } => {
                self.tally.connections += 1;
                self.last_words.is_back(&session.peer());
                self.sessions.insert(session.id, session.clone());
                // † Who may stand in can have changed since it was let in. Who is refused each time must not look alive each time.
                let listening = self.listening;
                self.refuse_stranger(&session);
                self.listening = listening;
                if self.sessions.contains_key(&session.id) && self.fenced() != Some(session.peer()) {
                    self.listening.hears();
                    self.receiver.failovers.comes_back(&self.receiver.state_dir, &self.names, &session.peer());
                }
                self.count_volumes();
                // A group that looks empty and alone may have to give way: it is not alone from here on.
                self.show();
            }
            Mail::Frame { session, frame, arrived, room: _room } => self.frame(session, &frame, arrived),
            Mail::Message { session, message, arrived } => self.message(session, message, arrived),
            Mail::Closed { session, settled, sent_away } => {
                if let Some(gone) = self.sessions.remove(&session) {
                    let of_it = |one: &Arc<Session>| one.peer() == gone.peer();
                    // † Its successor may be here already, and owe something. What is older is of a process that was killed, or of a line that broke:
                    // it had this one's last word after its own.
                    if settled
                        && !self.sessions.range((Bound::Excluded(session), Bound::Unbounded)).any(|(_, one)| of_it(one))
                        && let Place::Here(here) = &self.place
                    {
                        self.last_words.heard(gone.peer(), &here.store);
                    }
                    let is_back = self.sessions.values().any(of_it);
                    if sent_away && !is_back {
                        self.listening = Listening::anew();
                    }
                    self.happened(Event::Closed { session });
                }
            }
            Mail::BeginPart { session, header, reply } => {
                let answer = self.begin_part(session, &header);
                let _ = reply.send(answer);
            }
            Mail::Part { session, header, outcome } => self.part(session, &header, outcome),
            Mail::Points { ask, reply } => {
                let _ = reply.send(self.with_state(|state| ask.find(state, &self.found())));
            }
            Mail::CohortCuts { cohort, reply } => {
                let _ = reply.send(self.cohort_answer(&cohort));
            }
            Mail::PointEnds { ask, reply } => {
                let _ = reply.send(self.with_state(|state| ask.ends(state, &self.found())));
            }
            Mail::Show { reply } => {
                self.show();
                let _ = reply.send(());
            }
            Mail::Change { point, change, reply } => self.change(point, change, reply),
            Mail::MergeNext { reply } => self.merge_next(reply),
            Mail::MergeAgain { volume, point, reply } => {
                if let Place::Here(here) = &mut self.place {
                    here.store.look_again(volume, point);
                }
                let _ = reply.send(());
            }
            Mail::Spoiled { parts } => {
                // Also while its store is away: it is told when it is opened.
                self.spoiled.add(parts);
                self.hear_of_damage();
            }
            Mail::Sound { parts, reply } => {
                if let Place::Here(here) = &mut self.place {
                    let sound = here.store.sound(&parts);
                    self.receiver.schedule.change_found(&self.names, |found| found.spoiled.retain(|part| !sound.contains(part)));
                }
                let _ = reply.send(());
            }
            Mail::Merged { tried, reply } => self.merged(*tried, reply),
            Mail::Follow { ask, reply } => {
                let _ = reply.send(self.follow(&ask));
            }
            Mail::Pull { ask, reply } => {
                let _ = reply.send(self.pull(&ask));
            }
            Mail::Discards { ask, reply } => {
                let _ = reply.send(self.discards(&ask));
            }
            Mail::PromotionLook { wanted, reply } => {
                self.show(); // † Who decides on the answer goes by the picture as well: it must not show a host that has left.
                let _ = reply.send(self.promotion_look(wanted));
            }
            Mail::Fence { fence, reply } => {
                let _ = reply.send(self.fence(&fence));
            }
            Mail::Settle { reply } => {
                self.uploads.is_over(); // who asks wants to give the failover up
                let _ = reply.send(self.settle());
            }
            Mail::StandIn => self.refuse_strangers(),
            Mail::GiveKey { reply } => self.give_key(Asker::Pull(reply)),
            Mail::KeyObtained { obtained } => self.key_obtained(*obtained),
            Mail::FollowBase { volume, point, reply } => {
                let _ = reply.send(self.follow_base(&volume, point));
            }
            Mail::Uploaded => {} // looked at in any case
            Mail::Stop => unreachable!("the loop ends with it"),
        }
    }

    /// Asks the replayed ledger, if it is there.
    fn with_state<T>(&self, ask: impl FnOnce(&State) -> T) -> Result<T, String> {
        match &self.place {
            Place::Here(here) => Ok(ask(here.store.state())),
            Place::Away { words, .. } => Err(words.clone()),
        }
    }

    fn submit(&mut self, body: Body) {
        self.submitted += 1;
        self.happened(Event::Submit { submission: self.submitted, body: Box::new(body) });
    }

    /// What happened, just now.
    fn happened(&mut self, event: Event) {
        self.events.push_back((event, None));
    }

    fn is_bucket(&self) -> bool {
        matches!(self.receiver.config().store, Location::Bucket(_))
    }

    /// Whether a segment that was damaged when the group was opened is there again, as far as was looked by now.
    fn is_damage_over(&mut self) -> bool {
        let is_bucket = self.is_bucket();
        let Place::Here(here) = &mut self.place else { return false };
        if !here.store.image().has_unknown() {
            (self.damaged_again, self.damaged_pause) = (None, DAMAGED_AGAIN.0);
            return false;
        }
        if is_bucket && here.target.trouble().is_some() {
            return false;
        }
        let due = self.damaged_again.is_some_and(|at| Instant::now() >= at);
        let is_over = due && here.store.is_damage_over();
        if due || self.damaged_again.is_none() {
            let every = if is_bucket { DAMAGED_AGAIN.1 } else { DAMAGED_AGAIN.0 };
            self.damaged_pause = if is_over { (self.damaged_pause * 2).min(DAMAGED_AGAIN.1) } else { self.damaged_pause };
            self.damaged_again = Some(Instant::now() + if is_over { every.max(self.damaged_pause) } else { every });
        }
        is_over
    }

    fn tick(&mut self) {
        if self.is_damage_over() {
            tracing::info!(group = %self.names, "a damaged segment can be read again");
            self.leave_with("the store's segments are read again".to_owned(), Duration::ZERO);
            self.enter();
        }
        let is_bucket = self.is_bucket();
        // † What a torn group has is read with its key as long as anybody keeps that.
        if matches!(&self.place, Place::Here(here) if here.store.torn().is_some()) {
            self.keep_key_as_configured();
        }
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
                here.store.hear_of_damage();
                here.store.spoil(self.receiver.schedule.found(&self.names).spoiled.iter().copied());
                // What frees no disk waits until the service answers again: each request that it does not answer is time in which nobody is heard.
                let is_away = is_bucket && here.target.trouble().is_some();
                if !here.store.is_swept() && !is_away {
                    here.store.sweep_or_say();
                }
                if !is_away && let Err(error) = here.store.trim_ledger() {
                    tracing::warn!(group = %self.names, %error, "old ledger records, or states of old checkpoints, could not be deleted yet");
                }
                self.look_at_disk();
                self.keep_ends();
                self.keep_policy();
                self.prune_if_due();
                self.say_damage();
                self.keep_key_as_configured();
                let budget = self.budget();
                budget.into_iter().for_each(|event| self.happened(event));
                self.happened(Event::Tick);
            }
            Place::Away { retry_at, .. } if Instant::now() >= *retry_at => self.enter(),
            Place::Away { .. } => {}
        }
        self.beginnings.retain(|_, seen| seen.elapsed() < Duration::from_secs(7 * 86_400));
    }

    /// Whether the requests of the bucket are used up, if that has changed.
    fn budget(&mut self) -> Option<Event> {
        let Place::Here(here) = &mut self.place else { return None };
        let budget = self.receiver.config().publish_budget.filter(|_| self.receiver.publish_every() > 0);
        let wait = budget.and_then(|budget| self.receiver.budget.wait(&budget, || here.store.writes(), Instant::now()));
        let spent = wait.is_some();
        here.waits = wait;
        (std::mem::replace(&mut here.spent, spent) != spent).then_some(Event::Budget { spent })
    }

    /// What was met damaged is known to the store, and for the next one that is opened.
    fn hear_of_damage(&mut self) {
        if let Place::Here(here) = &mut self.place {
            here.store.hear_of_damage();
            let spoiled = here.store.spoiled();
            if !spoiled.is_empty() {
                self.receiver.schedule.change_found(&self.names, |found| found.spoiled.extend(spoiled));
            }
        }
    }

    /// Opens the group.
    fn enter(&mut self) {
        let opened = match self.receiver.vault.current() {
            Ok((store, generation)) => {
                let found = self.receiver.schedule.found(&self.names);
                let known = KnownDamage {
                    met: self.spoiled.clone(),
                    spoiled: found.spoiled.clone(),
                    // † What a merge replaced may be kept for damage that another receiver knows of.
                    may_be_any: found.forgotten.is_some() || found.is_untold && self.receiver.vault.is_adopted(),
                };
                match store.group_with(&self.names.source, &self.names.group, known) {
                    Ok(group) => Ok((group, generation, store.id())),
                    Err(error) => {
                        self.not_opened(&store, generation, &error);
                        Err(error.to_string())
                    }
                }
            }
            Err(words) => Err(words),
        };
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
                let config = Config {
                    group: group_id(&self.names.source, &self.names.group),
                    source: self.names.source.clone(),
                    group_name: self.names.group.clone(),
                    store: id,
                    layer_digest: farside_layer::layer_digest,
                    began: u64::try_from(BEFORE.as_nanos()).expect("ten years fit"),
                    limits: target_limits(&self.receiver),
                };
                let landed = store.landing().landed();
                let newest = landed.iter().filter_map(|l| Some(l.end.as_ref()?.1)).max().unwrap_or(0);
                let ago = Ago::of(newest, i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX));
                let landed = landed.into_iter().map(|l| {
                    let (end, staged_wall_ms) = l.end.unzip();
                    LandedLayer { key: l.key, parts: l.parts, end, staged_ago: staged_wall_ms.map_or(0, |at| ago.nanos(at)) }
                });
                let landed = landed.collect();
                let mut actions = Vec::new();
                let target = Target::new(config, store.state(), landed, &mut actions);
                let head = store.state().head();
                self.last_words.opens(&store);
                match store.torn() {
                    None => {
                        self.torn_patience.reset();
                        self.receiver.failovers.opens(&self.names, store.state());
                        tracing::info!(group = %self.names, ?head, points = store.state().points().len(), "the group is open");
                    }
                    Some(torn) => tracing::error!(group = %self.names, slot = %torn.slot, why = torn.why, "the ledger is torn"),
                }
                if self.receiver.vault.is_adopted() {
                    let is_empty = head.is_none() && store.torn().is_none();
                    self.receiver.schedule.change_found(&self.names, |found| found.seen_first(is_empty));
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
                self.place = Place::Here(Box::new(Here { store, target, generation, spent: false, waits: None }));
                self.look_for_key();
                self.prune.due = true;
                self.listening = Listening::anew();
                self.act(actions);
                // Before anything can be due.
                if let Some(event) = self.budget() {
                    self.happened(event);
                }
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
        self.hear_of_damage();
        for session in std::mem::take(&mut self.sessions).into_values() {
            session.send(&ReceiverMessage::Refusal(refusal(RefusalCode::Store, &words)));
            session.close(CloseCode::Refused, &words);
        }
        self.listening = Listening::anew();
        self.events.clear();
        self.forget_changes();
        self.unkept.clear();
        self.merges.clear();
        self.prune.under_way = None;
        self.uploads.forget();
        self.cut_seen.clear(); // what comes back may be of an older moment
        self.receiver.space.forget(&self.names);
        self.place = Place::Away { words, retry_at: Instant::now() + delay };
    }

    /// Tells the target how much disk there is for this group.
    fn look_at_disk(&mut self) {
        let is_bucket = self.is_bucket();
        let Place::Here(here) = &mut self.place else { return };
        let Ok(space) = here.store.space() else { return };
        let limits = target_limits(&self.receiver);
        let least = 2 * limits.credit_step;
        let free_bytes = self.receiver.space.room(&self.names, space.grantable(), least);
        // Before the source has to wait, not when it does. † The disk of a bucket is staging, where pruning makes no room: while an upload takes its
        // time, the same prune would be said again and again, and each be a record of its own.
        self.prune.short = !is_bucket && limits.is_little_room(free_bytes, space.grantable());
        self.prune.due |= self.prune.short;
        here.store.set_short(self.prune.short);
        let spare_bytes = self.receiver.space.spare(&self.names, space.spare(), space.grantable());
        let (disk_bytes, reserve_bytes) = (space.grantable(), space.reserve());
        self.happened(Event::Grantable { free_bytes, disk_bytes, spare_bytes, reserve_bytes });
    }

    /// Points that are not given up, whatever the policy says. What they are made of may be merged: whoever reads one then opens it again.
    fn kept_points(&self, config: &config::Config) -> BTreeSet<Slot> {
        let mut kept = self.receiver.followers.kept(&self.names);
        kept.extend(self.receiver.failovers.wanted(&self.names));
        kept.extend(self.receiver.cohorts.kept(&self.names));
        if let Place::Here(here) = &self.place {
            // † What newer points share with a damaged one is damaged in them, too: one of those before it may be the last that is whole.
            if let Some(up_to) = self.found().kept_up_to() {
                kept.extend(here.store.state().points().range(..=up_to).map(|(slot, _)| *slot));
            }
            kept.extend(self.receiver.followers.unasked(&self.names, here.store.state()));
            // † What a follower holds whose file cannot be read is told by nobody.
            if self.receiver.followers.broken.may_hold(&self.names) {
                kept.extend(here.store.state().points().keys().copied());
            }
            kept.extend(self.receiver.cohorts.not_looked_for(config, &self.names, here.store.state()));
            kept.extend(self.receiver.cohorts.not_configured(config, here.store.state()));
        }
        kept
    }

    /// Whether it is known which points are kept for cuts of the cohorts that it is in, or was.
    fn knows_its_cohorts(&self, config: &config::Config, here: &Here) -> bool {
        let has_points_of = |cohort: &Name| crate::cohort::has_points_of(here.store.state(), cohort);
        self.receiver.cohorts.knows(config, &self.names, has_points_of)
    }

    fn prune_if_due(&mut self) {
        // † One and the same for all that follows: what one says nothing of is another's.
        let config = self.receiver.config();
        let interval = config.retention.interval;
        let interval = if self.prune.short { interval.min(PRUNE_SHORT) } else { interval };
        let waited = self.prune.last.is_none_or(|last| last.elapsed() >= interval);
        let Place::Here(here) = &self.place else { return };
        // † Each request that a bucket does not answer is a minute in which nobody is heard, and nothing staged; pruning makes no room there.
        if matches!(config.store, Location::Bucket(_)) && here.target.is_left_alone(self.now()) {
            return;
        }
        // Of a cohort of which it is not known what is kept, nothing is given up, however little room there is.
        if !self.prune.due || !waited || self.prune.under_way.is_some() || !self.knows_its_cohorts(&config, here) {
            return;
        }
        self.prune.due = false;
        self.prune.last = Some(Instant::now());
        if let Some(body) = self.plan_prune(&config) {
            self.submit(body);
            self.prune.under_way = Some(self.submitted);
        }
    }

    fn plan_prune(&mut self, config: &config::Config) -> Option<Body> {
        if self.policy_is_default {
            // A reload may have changed it.
            self.policy = Some(self.receiver.policy_default());
        }
        let Place::Here(here) = &self.place else { return None };
        let policy = self.receiver.floor.over(config, self.policy.as_ref()?)?;
        let forgotten = self.receiver.cohorts.forgotten(config);
        here.store.prune_plan_keeping(&policy, &self.kept_points(config), &forgotten)
    }

    /// Whether what was planned to be given up still is to be. † It may have waited for what was uploaded before it, and points that it names
    /// are kept by now: for a follower, a failover, a cohort, because of damage, by a floor. Replay knows of none of these.
    fn still_goes(&mut self, prune: &farside_ledger::Prune) -> bool {
        let config = self.receiver.config();
        let Place::Here(here) = &self.place else { return false };
        if !self.knows_its_cohorts(&config, here) {
            return false;
        }
        let planned = match self.plan_prune(&config) {
            Some(Body::Prune(planned)) => planned.points.into_iter().collect(),
            _ => BTreeSet::new(),
        };
        prune.points.iter().all(|point| planned.contains(point))
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
}

/// How long ago layers were staged, by wall clocks. Their distances from each other stay what they were also where this machine's clock is
/// behind, as before it was told the time after a boot: the newest is of now then.
#[derive(Clone, Copy, Debug)]
struct Ago {
    newest_wall_ms: i64,
    /// Since the newest.
    since: Duration,
}

impl Ago {
    fn of(newest_wall_ms: i64, now_wall_ms: i64) -> Self {
        let since_ms = u64::try_from(now_wall_ms.saturating_sub(newest_wall_ms)).unwrap_or(0);
        Self { newest_wall_ms, since: Duration::from_millis(since_ms).min(BEFORE / 2) }
    }

    fn nanos(self, wall_ms: i64) -> u64 {
        let before_ms = u64::try_from(self.newest_wall_ms.saturating_sub(wall_ms)).unwrap_or(0);
        let ago = Duration::from_millis(before_ms).min(BEFORE / 2) + self.since;
        u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_staged_keeps_its_distances_whatever_the_clock_says_now() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let staged: [i64; 3] = [1_000_000_000_000, 1_000_000_060_000, 1_000_000_180_000];
        let newest = staged[2];
        let ago = |now_ms: i64| staged.map(|at| Duration::from_nanos(Ago::of(newest, now_ms).nanos(at)));
        assert_eq!(ago(newest + 240_000), [minutes(7), minutes(6), minutes(4)]);
        // A clock that is behind, or that knows nothing of the day.
        assert_eq!(ago(newest - 3_600_000), [minutes(3), minutes(2), minutes(0)]);
        assert_eq!(ago(0), [minutes(3), minutes(2), minutes(0)]);
        // One that was staged under such a clock.
        assert!(
            Duration::from_nanos(Ago::of(0, newest).nanos(0)) <= BEFORE
                && Ago::of(newest, 0).nanos(0) <= BEFORE.as_nanos() as u64
        );
    }
}
