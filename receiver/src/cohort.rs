//! Cohorts: groups of several hosts that are cut as one, and who conducts that. What is decided is `farside_replication::cohort`'s; here are
//! tasks, connections, clocks, and who asks.
//!
//! Invariants: nothing of it is kept but what the groups' ledgers say of their points; a connection of a cohort publishes nothing, and none of
//! them waits for a group's thread, or for another one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use farside_control::cohort::{CohortCut, CohortGroup, CohortPoint, CohortStatus, CohortTally, CohortTrouble};
use farside_control::{ApiError, Code, ErrorCode, PointCut, PointId, Reason, Severity};
use farside_keys::Secret;
use farside_ledger::{CohortCut as Cut, Point, State};
use farside_region::{Name, Slot};
use farside_replication::cohort::{
    CohortAction, CohortConfig, CohortEvent, CohortLimits, CohortOutcome, CohortsKept, Conductor, WHOLE_KEPT, WholeCut, whole,
};
use farside_store::GroupNames;
use farside_transport::{CloseCode, Connection};
use farside_wire::{
    CohortAsk, CohortSay, Features, ReceiverHello, ReceiverMessage, RefusalCode, SourceHello, SourceMessage, VersionRange,
    decode_payload, encode_payload,
};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{Cohort, Config};
use crate::door::refusal;
use crate::group::{CohortAnswer, CohortCuts, Doubt, GroupHandle};
use crate::process::Receiver;
use crate::state_dir::StateDir;

/// Questions that may wait for a host: a conductor asks no more before it is answered.
const ASKS_MAX: usize = 16;
/// What hosts say of a group may wait for the conductor so often, over all connections: honest ones answer what they are asked.
const SAID_MAX: usize = 16;
/// A host that takes nothing for so long has gone.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// Hosts that are just connecting are waited for so long.
const FIRST: Duration = Duration::from_secs(10);
/// How long is waited at most before time is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// What is kept for whole cuts is asked for again after so long at first, and at last.
const SOON: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(30);
/// So many points of cuts are kept until it was looked whether they are whole: it is looked after each, and for one that is late again and again.
const NOT_LOOKED_FOR: usize = 2 * WHOLE_KEPT;
/// So many groups are named that do not answer.
const SILENT_NAMED: usize = 3;
/// Numbers connections, upwards.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

type Event = CohortEvent<GroupNames>;
/// An event, and the room that it takes until it was heard.
type Happened = (Event, Option<OwnedSemaphorePermit>);
type Whole = WholeCut<GroupNames, PointId>;

/// All cohorts of the configuration, and all hosts that are there for one.
#[derive(Debug, Default)]
pub(crate) struct Cohorts {
    inner: Mutex<Inner>,
    /// Who writes down which are forgotten. † Not under the lock of all: threads of groups wait for that one, and a disk may hang.
    forgetting: Mutex<()>,
    /// How often what is configured, or forgotten, may have changed.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<Name, Running>,
    /// The newest connection of each group.
    here: BTreeMap<GroupNames, Here>,
    /// The newest whole cuts of each cohort: retention keeps their points.
    kept: CohortsKept<GroupNames, PointId>,
    /// Cohorts whose points a person has given to the policies of their groups. One that the configuration has is none of them.
    forgotten: BTreeSet<Name>,
}

#[derive(Debug)]
struct Here {
    number: u64,
    asks: mpsc::Sender<CohortAsk>,
}

#[derive(Debug)]
struct Running {
    config: Cohort,
    /// It ends, and says so to whoever was asked, when this is dropped.
    events: mpsc::UnboundedSender<Happened>,
    /// Room for what is said of each group. Connections come and go no faster than handshakes are made.
    room: BTreeMap<GroupNames, Arc<Semaphore>>,
    seen: Arc<Mutex<Seen>>,
}

/// What came of its cuts, since the process began.
#[derive(Debug, Default)]
struct Seen {
    cuts: u64,
    missed: u64,
    held_us: Option<u64>,
    trouble: Option<CohortTrouble>,
    /// The newest whole one, when it was looked last.
    newest_at: Option<Timestamp>,
    /// Looks that began, and which of them said that.
    looks: u64,
    newest_of: u64,
    /// It is looked for after a cut that was missed.
    is_looked_for: bool,
    /// Why it is not known for long now which cuts there are: nothing of its groups is given up meanwhile.
    unknown: Option<String>,
}

impl Cohorts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the configuration is now: what is in it is conducted, from its beginning where it changed.
    ///
    /// What is kept for those that are in it no more is kept on: a file that was not there to be read must not give up anything.
    pub(crate) fn apply(receiver: &Arc<Receiver>, config: &Config) {
        Self::remember(receiver, config);
        let mut inner = receiver.cohorts.lock();
        inner.running.retain(|_, running| config.cohorts.contains(&running.config));
        let Inner { running, kept, .. } = &mut *inner;
        kept.are_as_before(|name| running.contains_key(name));
        for cohort in &config.cohorts {
            if inner.running.contains_key(&cohort.name) {
                continue;
            }
            let (events, happened) = mpsc::unbounded_channel();
            for (group, here) in inner.here.iter().filter(|(group, _)| cohort.groups.contains(group)) {
                let _ = events.send((CohortEvent::Joined { group: group.clone(), connection: here.number }, None));
            }
            let seen = Arc::<Mutex<Seen>>::default();
            receiver.runtime.spawn(conduct(Arc::clone(receiver), cohort.clone(), happened, Arc::clone(&seen)));
            let running = Running::new(cohort.clone(), events, seen);
            inner.running.insert(cohort.name.clone(), running);
        }
        drop(inner);
        receiver.cohorts.changed();
    }

    /// After what changed is there to be read.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// For whoever knows what is not configured: another number if that may be something else now. It is read before that is.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// What is configured again is not forgotten any more.
    fn remember(receiver: &Arc<Receiver>, config: &Config) {
        let _one = receiver.cohorts.forgetting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = receiver.cohorts.lock().forgotten.clone();
        let forgotten: BTreeSet<Name> = before.iter().filter(|name| !has(config, name)).cloned().collect();
        if forgotten == before {
            return;
        }
        if let Err(error) = receiver.state_dir.remember_cohorts_forgotten(&forgotten) {
            tracing::warn!(%error, "a cohort that is in the configuration again is forgotten again should it be taken out");
        }
        receiver.cohorts.lock().forgotten = forgotten;
    }

    /// Takes up what an earlier process was told to forget. † What cannot be read was never told: more is kept then, and not less.
    pub(crate) fn load(&self, state_dir: &StateDir) {
        match state_dir.cohorts_forgotten() {
            Ok(forgotten) => self.lock().forgotten = forgotten,
            Err(error) => tracing::error!(%error, "which cohorts were forgotten is not known: their points are kept on"),
        }
    }

    /// The ids of those whose points are as all others.
    pub(crate) fn forgotten(&self, config: &Config) -> BTreeSet<[u8; 16]> {
        let inner = self.lock();
        inner.forgotten.iter().filter(|name| !has(config, name)).map(|name| Cut::cohort_id(name.as_str())).collect()
    }

    /// The points of a cohort that the configuration has no more fall to the policies of their groups. Blocking.
    pub(crate) fn forget(receiver: &Receiver, name: &Name) -> Result<(), ApiError> {
        let _one = receiver.cohorts.forgetting.lock().unwrap_or_else(PoisonError::into_inner);
        if has(&receiver.config(), name) {
            let message = format!("cohort {name} is in the configuration, and is being cut");
            let what = "take its [[cohort]] out of receiver.toml first, and `farside reload`";
            return Err(ApiError::new(ErrorCode::Conflict, message, what));
        }
        let mut forgotten = receiver.cohorts.lock().forgotten.clone();
        forgotten.insert(name.clone());
        receiver.state_dir.remember_cohorts_forgotten(&forgotten).map_err(|error| {
            ApiError::new(ErrorCode::Unavailable, error.to_string(), "see the receiver's state directory; nothing was changed")
        })?;
        let mut inner = receiver.cohorts.lock();
        inner.forgotten = forgotten;
        inner.kept.forget(name);
        drop(inner);
        receiver.cohorts.changed();
        tracing::warn!(cohort = %name, "a cohort was forgotten: its points are kept as all others are");
        Ok(())
    }

    /// Tells whoever conducts the cohort of a group.
    fn tell(&self, group: &GroupNames, event: Event) {
        let inner = self.lock();
        if let Some(running) = inner.running.values().find(|running| running.config.groups.contains(group)) {
            let _ = running.events.send((event, None)); // it ends with the configuration
        }
    }

    /// The same of what a host says. False: it says more than anybody asked for.
    fn said(&self, group: &GroupNames, connection: u64, say: CohortSay) -> bool {
        let inner = self.lock();
        let Some((running, room)) = inner.running.values().find_map(|running| Some((running, running.room.get(group)?))) else {
            return true; // to nobody
        };
        let Ok(room) = Arc::clone(room).try_acquire_owned() else { return false };
        let _ = running.events.send((CohortEvent::Said { group: group.clone(), connection, say }, Some(room)));
        true
    }

    fn joined(&self, group: &GroupNames, number: u64, asks: mpsc::Sender<CohortAsk>) {
        self.lock().here.insert(group.clone(), Here { number, asks });
        self.tell(group, CohortEvent::Joined { group: group.clone(), connection: number });
    }

    fn left(&self, group: &GroupNames, number: u64) {
        let mut inner = self.lock();
        if inner.here.get(group).is_some_and(|here| here.number == number) {
            inner.here.remove(group);
        }
        drop(inner);
        self.tell(group, CohortEvent::Left { group: group.clone(), connection: number });
    }

    /// False: it has gone, or does not read.
    fn ask(&self, group: &GroupNames, connection: u64, ask: CohortAsk) -> bool {
        let asks = self.lock().here.get(group).filter(|here| here.number == connection).map(|here| here.asks.clone());
        asks.is_some_and(|asks| asks.try_send(ask).is_ok())
    }

    /// Points of a group that are kept for whole cuts.
    pub(crate) fn kept(&self, group: &GroupNames) -> BTreeSet<Slot> {
        self.lock().kept.of_group(group).into_iter().map(|point| Slot(point.slot)).collect()
    }

    /// Its newest points of cuts that nobody has looked for yet. † One of them may be whole, and its newer ones halves: while a group of the cohort that is
    /// slow is asked, a policy that keeps one would give up the newest that is whole.
    pub(crate) fn not_looked_for(&self, config: &Config, group: &GroupNames, state: &State) -> Vec<Slot> {
        let mut found = Vec::new();
        for cohort in config.cohorts.iter().filter(|cohort| cohort.groups.contains(group)) {
            let kept = self.lock().kept.newest_of(&cohort.name, group).map(|point| Slot(point.slot));
            let id = Cut::cohort_id(cohort.name.as_str());
            // (One that is degraded is of no whole cut.)
            let is_of_it =
                |point: &Point| !point.degraded && point.consistency().cohort_cut().is_some_and(|cut| cut.cohort == id);
            found.extend(unlooked(state.points().values().rev().map(|point| (point.slot, is_of_it(point))), kept));
        }
        found
    }

    /// Points of a group that are of cuts of cohorts that the configuration has no more, and nobody has forgotten. † Nobody looks which of those cuts are
    /// whole, and by its own ledger alone a group would keep halves, and give up halves of whole cuts for them. They are as many as there were when the
    /// cohort was taken out: no newer ones come.
    pub(crate) fn not_configured(&self, config: &Config, state: &State) -> Vec<Slot> {
        let mut others = self.forgotten(config);
        others.extend(config.cohorts.iter().map(|cohort| Cut::cohort_id(cohort.name.as_str())));
        let is_of_none = |point: &&Point| {
            // (One that is degraded is of no whole cut.)
            !point.degraded && point.consistency().cohort_cut().is_some_and(|cut| !others.contains(&cut.cohort))
        };
        state.points().values().filter(is_of_none).map(|point| point.slot).collect()
    }

    /// That those are kept, and by which name they are forgotten: who renamed a cohort may not know that they do not fall to the new one.
    pub(crate) fn not_configured_reason(&self, config: &Config, names: &GroupNames, state: &State) -> Option<Reason> {
        let slots = self.not_configured(config, state);
        let mut cohorts = BTreeMap::new();
        for point in slots.iter().filter_map(|slot| state.points().get(slot)) {
            let Some((cut, label)) = point.consistency().cohort_cut().zip(point.label.as_ref()) else { continue };
            // A host says the name beside the id.
            let said = || label.hooks.parse::<Name>().ok().filter(|name| Cut::cohort_id(name.as_str()) == cut.cohort);
            let name: &mut Option<Name> = cohorts.entry(cut.cohort).or_default();
            *name = name.take().or_else(said);
        }
        (!cohorts.is_empty()).then(|| not_configured_of(names, slots.len(), &cohorts))
    }

    /// Whether it is known which points of a group are kept for whole cuts: until this says yes, nothing of the group is given up.
    /// `has_points_of`: see [`has_points_of`]. † A group that has left a cohort has points of its cuts all the same, and others keep theirs.
    pub(crate) fn knows(&self, config: &Config, group: &GroupNames, has_points_of: impl Fn(&Name) -> bool) -> bool {
        // Before the lock: whoever is held waits for nobody's points.
        let of: Vec<&Name> = config
            .cohorts
            .iter()
            .filter(|cohort| cohort.groups.contains(group) || has_points_of(&cohort.name))
            .map(|cohort| &cohort.name)
            .collect();
        self.lock().kept.knows(of)
    }

    /// `is_all`: every group that the cohort has now was asked.
    fn keep(&self, cohort: &Cohort, found: &Found, is_all: bool) {
        let mut inner = self.lock();
        // It may have been taken out of the configuration meanwhile.
        let Some(running) = inner.running.get(&cohort.name) else { return };
        let is_it = running.config == *cohort;
        let is_silent = |group: &GroupNames| found.silent.iter().any(|(silent, _)| silent == group);
        inner.kept.not_told(&cohort.name, &found.groups, found.silent.len());
        inner.kept.found(&cohort.name, &found.groups, is_silent, is_all && is_it, WHOLE_KEPT);
    }

    /// What came of the cuts of each.
    pub(crate) fn tallies(&self) -> Vec<CohortTally> {
        let tally = |(name, running): (&Name, &Running)| {
            let seen = locked(&running.seen);
            CohortTally {
                name: name.to_string(),
                cuts: seen.cuts,
                missed: seen.missed,
                held_us: seen.held_us,
                newest_at: seen.newest_at,
            }
        };
        self.lock().running.iter().map(tally).collect()
    }

    /// Which of them were not cut as one when it was tried last, and who missed it; and whose groups give up nothing.
    pub(crate) fn reasons(&self) -> Vec<Reason> {
        let of = |(name, running): (&Name, &Running)| {
            let seen = locked(&running.seen);
            let missed = seen.trouble.as_ref().map(|trouble| not_as_one(name, trouble, seen.newest_at));
            let unknown = seen.unknown.as_ref().map(|why| not_pruned(name, why));
            [missed, unknown].into_iter().flatten()
        };
        self.lock().running.iter().flat_map(of).collect()
    }

    /// A cut of that cohort is wanted now. False: there is none of that name.
    pub(crate) fn wanted(&self, name: &str) -> bool {
        let inner = self.lock();
        let running = inner.running.iter().find(|(known, _)| known.as_str() == name);
        running.is_some_and(|(_, running)| running.events.send((CohortEvent::Wanted, None)).is_ok())
    }
}

impl Running {
    fn new(config: Cohort, events: mpsc::UnboundedSender<Happened>, seen: Arc<Mutex<Seen>>) -> Self {
        let room = config.groups.iter().map(|group| (group.clone(), Arc::new(Semaphore::new(SAID_MAX)))).collect();
        Self { config, events, room, seen }
    }
}

/// Of points, newest first, and whether they are of cuts of a cohort: the newest that are, and are above what is kept of it.
fn unlooked(newest_first: impl Iterator<Item = (Slot, bool)>, kept: Option<Slot>) -> impl Iterator<Item = Slot> {
    let above = newest_first.take_while(move |(slot, _)| kept.is_none_or(|kept| *slot > kept));
    above.filter_map(|(slot, is_of_it)| is_of_it.then_some(slot)).take(NOT_LOOKED_FOR)
}

/// Whether the configuration has a cohort of that name.
fn has(config: &Config, name: &Name) -> bool {
    config.cohorts.iter().any(|cohort| cohort.name == *name)
}

fn not_as_one(name: &Name, trouble: &CohortTrouble, newest_at: Option<Timestamp>) -> Reason {
    let group = trouble.group.as_ref().map_or_else(String::new, |group| format!("{group}: "));
    let newest = newest_at.map_or_else(
        || "no cut of it is known that is whole and sound".to_owned(),
        |at| format!("its newest whole cut is of {at:.0}"),
    );
    let message = format!("cohort {name} was not cut as one at {:.0}: {group}{}; {newest}", trouble.at, trouble.why);
    let what = "it is tried again by itself, and is over with the next cut; `farside cohort list` shows who is there";
    Reason::new(Severity::Warning, Code::CohortMissed, message, what)
}

/// `cohorts`: by id, and their names as far as a host said them. † An id is no name: by it nothing is found, and nothing forgotten.
fn not_configured_of(group: &GroupNames, points: usize, cohorts: &BTreeMap<[u8; 16], Option<Name>>) -> Reason {
    let mut shown: Vec<String> = cohorts.values().flatten().map(Name::to_string).collect();
    shown.sort();
    let named = shown.first().cloned();
    let nameless = cohorts.iter().filter(|(_, name)| name.is_none());
    shown.extend(nameless.map(|(id, _)| format!("one whose points do not say its name, of id {}", HEXLOWER.encode(id))));
    let message = format!(
        "{points} points of {group} are of cuts of a cohort that the configuration does not have ({}): retention gives none of them up",
        shown.into_iter().take(SILENT_NAMED).collect::<Vec<_>>().join(", ")
    );
    let back = "put its [[cohort]] back into receiver.toml, and `farside reload`";
    let what = named.map_or_else(
        || format!("once nobody needs those cuts, forget the cohort by the name that it had in receiver.toml, also after a rename; or {back}"),
        |name| {
            format!(
                "once nobody needs those cuts (`farside cohort cuts {name}`): `farside cohort forget {name}`, also after a rename; or {back}"
            )
        },
    );
    Reason::new(Severity::Info, Code::DeletionWaits, message, what)
}

fn not_pruned(name: &Name, why: &str) -> Reason {
    let message = format!(
        "nothing of the groups of cohort {name} is pruned or merged: which points are kept for its cuts is not known before every group of it has said \
         which it has; {why}"
    );
    let what = "see to the groups that are named: it goes on by itself when they answer. Where that takes too long, take the [[cohort]] out of \
                receiver.toml, and `farside reload`: all points of its cuts stay then, and others are pruned";
    Reason::new(Severity::Warning, Code::DeletionWaits, message, what)
}

impl Seen {
    /// A look begins. Its number is for [`Self::found`].
    fn looks(&mut self) -> u64 {
        self.looks += 1;
        self.looks
    }

    /// What that look found, unless one that began later was faster: that knows more.
    fn found(&mut self, look: u64, newest_at: Option<Timestamp>) {
        if look > self.newest_of {
            (self.newest_of, self.newest_at) = (look, newest_at);
        }
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Conducts the cuts of one cohort, for ever.
async fn conduct(
    receiver: Arc<Receiver>,
    cohort: Cohort,
    mut happened: mpsc::UnboundedReceiver<Happened>,
    seen: Arc<Mutex<Seen>>,
) {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let started = Instant::now();
    let now = || nanos(started.elapsed());
    let config = CohortConfig {
        name: cohort.name.clone(),
        groups: cohort.groups.clone(),
        every: nanos(cohort.every),
        hold_us: u32::try_from(cohort.hold.as_micros()).unwrap_or(u32::MAX),
    };
    let mut conductor = Conductor::new(config, CohortLimits::default(), nanos(cohort.every.min(FIRST)));
    let mut actions = Vec::new();
    // The cut that was called one last, until it is looked for.
    let mut awaited: Option<[u8; 16]> = None;
    receiver.runtime.spawn(find_kept(Arc::clone(&receiver), cohort.clone(), Arc::clone(&seen)));
    loop {
        let until_due = Duration::from_nanos(conductor.due().saturating_sub(now())).min(LOOK);
        match tokio::time::timeout(until_due, happened.recv()).await {
            Ok(Some((event, _room))) => conductor.step(now(), event, &mut actions),
            Ok(None) => {
                conductor.end(now(), &mut actions);
                for action in actions {
                    if let CohortAction::Ask { group, connection, ask } = action {
                        receiver.cohorts.ask(&group, connection, ask);
                    }
                }
                return;
            }
            Err(_) => {}
        }
        if now() >= conductor.due() {
            let Ok(cut) = drawn() else {
                let why = "the system gives no randomness: no cut is begun".to_owned();
                tracing::error!(cohort = %cohort.name, "{why}");
                locked(&seen).trouble = Some(CohortTrouble { at: Timestamp::now(), group: None, why });
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let wall_ms = Timestamp::now().as_millisecond();
            conductor.step(now(), CohortEvent::Tick { cut, wall_ms }, &mut actions);
        }
        // What cannot be asked has gone, which is an event, too.
        while !actions.is_empty() {
            for action in std::mem::take(&mut actions) {
                match action {
                    CohortAction::Ask { group, connection, ask } => {
                        if !receiver.cohorts.ask(&group, connection, ask) {
                            conductor.step(now(), CohortEvent::Left { group, connection }, &mut actions);
                        }
                    }
                    CohortAction::Done(outcome) => {
                        let cut = outcome.result.is_ok().then_some(outcome.cut.cut);
                        done(&cohort.name, outcome, &seen);
                        // A host is ready for the next one only when its point of the one before is published, or given up.
                        let Some(cut) = cut else {
                            let (receiver, cohort, seen) = (Arc::clone(&receiver), cohort.clone(), Arc::clone(&seen));
                            receiver.clone().runtime.spawn(async move { look_for_newest(&receiver, &cohort, &seen).await });
                            continue;
                        };
                        let before = awaited.replace(cut);
                        let is_found = look(&receiver, &cohort, before, &seen).await;
                        if is_found.is_err() && receiver.cohorts.lock().kept.ask_again(&cohort.name) {
                            receiver.runtime.spawn(find_kept(Arc::clone(&receiver), cohort.clone(), Arc::clone(&seen)));
                        }
                    }
                }
            }
        }
    }
}

/// Finds what is kept for whole cuts, however long a group does not answer: before that nothing of the cohort is given up.
async fn find_kept(receiver: Arc<Receiver>, cohort: Cohort, seen: Arc<Mutex<Seen>>) {
    let mut wait = SOON;
    let is_wanted = || {
        let inner = receiver.cohorts.lock();
        let is_it = inner.running.get(&cohort.name).is_some_and(|running| running.config == cohort);
        is_it && !inner.kept.knows([&cohort.name])
    };
    while is_wanted() && !receiver.is_stopping() {
        let Err(why) = look(&receiver, &cohort, None, &seen).await else { return };
        if wait == LATE {
            tracing::warn!(cohort = %cohort.name, %why, "not every group of a cohort can be asked for its cuts: nothing of them is pruned or merged before that");
            locked(&seen).unknown = Some(why);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LATE);
    }
    // It may have been found by a look after a cut, while this one failed.
    locked(&seen).unknown = None;
}

/// Which cuts are whole, of which retention keeps the newest; and whether the one before the last has become one.
///
/// # Errors
/// Not every group could be asked: who does not answer, and why.
async fn look(receiver: &Arc<Receiver>, cohort: &Cohort, before: Option<[u8; 16]>, seen: &Mutex<Seen>) -> Result<(), String> {
    let this = locked(seen).looks();
    let found = gather(receiver, cohort.name.as_str()).await;
    let lacking = found.lacking(receiver, cohort);
    let is_all = found.is_listed && lacking.is_empty();
    // † Whoever stops has no groups any more.
    if receiver.is_stopping() {
        return Err("the receiver is stopping".to_owned());
    }
    receiver.cohorts.keep(cohort, &found, is_all);
    if is_all {
        let mut seen = locked(seen);
        seen.found(this, found.newest().map(|cut| cut.at));
        seen.unknown = None;
    }
    let lacks = before.and_then(|cut| {
        let is_lacking =
            |names: &&GroupNames| found.groups.iter().any(|(group, cuts)| group == *names && !cuts.contains_key(&cut));
        cohort.groups.iter().find(is_lacking)
    });
    if let Some(group) = lacks {
        let why = "it has no point of a cut that was taken: that was given up before it was sent, or could not be read in full";
        let mut seen = locked(seen);
        (seen.cuts, seen.missed) = (seen.cuts.saturating_sub(1), seen.missed + 1);
        tracing::warn!(cohort = %cohort.name, %group, "{why}");
        seen.trouble = Some(CohortTrouble { at: Timestamp::now(), group: Some(group.to_string()), why: why.to_owned() });
    }
    match (found.is_listed, is_all) {
        (_, true) => Ok(()),
        (true, _) => Err(found.why_silent(&lacking)),
        (false, _) => Err(unlisted(receiver)),
    }
}

/// Where no newer one is made, what was the newest may have been left aside since, or found damaged. Nothing else goes by it.
/// One at a time: cuts may be missed faster than a group answers.
async fn look_for_newest(receiver: &Arc<Receiver>, cohort: &Cohort, seen: &Mutex<Seen>) {
    let this = {
        let mut seen = locked(seen);
        if std::mem::replace(&mut seen.is_looked_for, true) {
            return;
        }
        seen.looks()
    };
    let found = gather(receiver, cohort.name.as_str()).await;
    let is_all = found.is_listed && found.lacking(receiver, cohort).is_empty();
    let mut seen = locked(seen);
    seen.is_looked_for = false;
    if is_all {
        seen.found(this, found.newest().map(|cut| cut.at));
    }
}

/// A cut's id.
fn drawn() -> Result<[u8; 16], ()> {
    let mut id = [0; 16];
    id.copy_from_slice(&Secret::random().map_err(drop)?.bytes()[..16]);
    Ok(id)
}

fn done(name: &Name, outcome: CohortOutcome<GroupNames>, seen: &Mutex<Seen>) {
    let mut seen = locked(seen);
    match outcome.result {
        Ok(held_us) => {
            (seen.cuts, seen.held_us, seen.trouble) = (seen.cuts + 1, Some(u64::from(held_us)), None);
            tracing::debug!(cohort = %name, held_us, "cut as one");
        }
        Err((who, why)) => {
            seen.missed += 1;
            let group = who.map(|group| group.to_string());
            // Said once, and again when it is another.
            let is_new = seen.trouble.as_ref().is_none_or(|known| known.group != group || known.why != why);
            if is_new {
                tracing::warn!(cohort = %name, group = group.as_deref().unwrap_or("-"), %why, "the groups of a cohort were not cut as one");
            }
            seen.trouble = Some(CohortTrouble { at: Timestamp::now(), group, why });
        }
    }
}

/// Serves a connection that is there for cuts, after its greeting, to its end.
pub(crate) async fn serve(receiver: Arc<Receiver>, connection: Arc<dyn Connection>, group: GroupHandle, hello: SourceHello) {
    let names = group.names().clone();
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    if let Err((code, text)) = answer(&receiver, &connection, &group, number, hello.versions).await {
        tracing::warn!(group = %names, %text, "a connection of a cohort was refused");
        let _ = tokio::time::timeout(SEND_WAIT, say(&connection, &ReceiverMessage::Refusal(refusal(code, &text)))).await;
        let _ = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
        connection.close(CloseCode::Refused, &text);
    }
    receiver.cohorts.left(&names, number);
    connection.close(CloseCode::Done, "done");
}

async fn say(connection: &Arc<dyn Connection>, message: &ReceiverMessage) -> bool {
    let payload: Bytes = encode_payload(message).expect("a question fits a frame");
    matches!(tokio::time::timeout(SEND_WAIT, connection.send(payload)).await, Ok(Ok(())))
}

async fn answer(
    receiver: &Arc<Receiver>,
    connection: &Arc<dyn Connection>,
    group: &GroupHandle,
    number: u64,
    versions: VersionRange,
) -> Result<(), (RefusalCode, String)> {
    let names = group.names();
    // Not while a note stands: it does for a volume that the source has removed since, and that nobody takes back.
    if connection.peer().name == names.source && receiver.failovers.has_fenced(names, group.view().highest_generation()) {
        // † It would take the place of who stands in, who would take it back, for ever: no cut of the cohort would be whole.
        let text = format!("{names} was failed over: its source is in no cut of a cohort until it has its history back");
        return Err((RefusalCode::Session, text));
    }
    let version = VersionRange::OURS.negotiate(versions).map_err(|error| (RefusalCode::Version, error.to_string()))?;
    let store = receiver.vault.id().ok_or_else(|| (RefusalCode::Store, "the store is not open".to_owned()))?;
    if !say(connection, &ReceiverMessage::Hello(ReceiverHello { version, features: Features::COHORT, store })).await {
        return Ok(());
    }
    let (asks, mut asked) = mpsc::channel(ASKS_MAX);
    receiver.cohorts.joined(names, number, asks);
    let reads = async {
        while let Ok(frame) = connection.recv().await {
            let message: SourceMessage = decode_payload(&frame).map_err(|error| (RefusalCode::Protocol, error.to_string()))?;
            let SourceMessage::Cohort(said) = message else {
                let text = "a message that has no place on a connection of a cohort";
                return Err((RefusalCode::Protocol, text.to_owned()));
            };
            if !receiver.cohorts.said(names, number, printable(said)) {
                return Err((RefusalCode::Protocol, "it says more than it is asked for".to_owned()));
            }
        }
        Ok(())
    };
    let writes = async {
        // It ends when a newer connection takes its place.
        while let Some(ask) = asked.recv().await {
            if !say(connection, &ReceiverMessage::Cohort(ask)).await {
                break;
            }
        }
    };
    tokio::select! {
        read = reads => read,
        () = writes => Ok(()),
    }
}

/// What a host says is shown to people, and is not trusted to steer their terminals.
fn printable(say: CohortSay) -> CohortSay {
    match say {
        CohortSay::Not { cut, why } => CohortSay::Not { cut, why: farside_region::printable(&why, ' ') },
        other => other,
    }
}

/// Points of a group that say that they are of cuts of a cohort, by cut.
pub(crate) fn cuts_of(state: &State, cohort: &str) -> CohortCuts {
    let point = |slot: Slot| Some(PointId::new(slot.0, &state.digest_at(slot)?.0));
    farside_replication::cohort::cuts_of(state, cohort, point)
}

/// Whether a group has points of cuts of a cohort.
pub(crate) fn has_points_of(state: &State, cohort: &Name) -> bool {
    let id = Cut::cohort_id(cohort.as_str());
    state.points().values().any(|point| point.consistency().cohort_cut().is_some_and(|cut| cut.cohort == id))
}

/// What the ledgers say of the cuts of a cohort, whatever the configuration says of it now.
#[derive(Debug, Default)]
struct Found {
    /// Each group of the store that has points of any, by name.
    groups: Vec<(GroupNames, CohortCuts)>,
    /// Of their points those to which nobody is failed over unless that is forced.
    doubts: BTreeMap<(GroupNames, PointId), Doubt>,
    /// Groups that do not answer, and why.
    silent: Vec<(GroupNames, String)>,
    /// Every group of the store is one of these.
    is_listed: bool,
}

impl Found {
    /// The cuts that are whole, newest first.
    fn whole(&self) -> Vec<Whole> {
        whole(&self.groups)
    }

    fn shown(&self, whole: &Whole) -> CohortCut {
        let PointCut { id, at, .. } = PointCut::new(&whole.cut.cut, whole.cut.groups, whole.cut.wall_ms);
        let point = |(group, point): &(GroupNames, PointId)| {
            let Doubt { is_aside, damaged } = self.doubts.get(&(group.clone(), *point)).cloned().unwrap_or_default();
            CohortPoint { group: group.to_string(), point: *point, aside: is_aside, damaged }
        };
        CohortCut { id, at, points: whole.points.iter().map(point).collect() }
    }

    /// The newest that is whole, and that a failover takes.
    fn newest(&self) -> Option<CohortCut> {
        self.whole().iter().map(|whole| self.shown(whole)).find(|cut| cut.doubt().is_none())
    }

    /// Groups of the cohort that were not asked. What the store has nothing of has no points, and is in no cut.
    fn lacking<'c>(&self, receiver: &Receiver, cohort: &'c Cohort) -> Vec<&'c GroupNames> {
        let is_asked = |names: &GroupNames| receiver.roster.is_new(names) || self.groups.iter().any(|(group, _)| group == names);
        cohort.groups.iter().filter(|names| !is_asked(names)).collect()
    }

    /// Why those do not answer; not of all if they are many.
    fn why_silent(&self, lacking: &[&GroupNames]) -> String {
        let why = |names: &GroupNames| {
            let why = self.silent.iter().find(|(silent, _)| silent == names).map_or("it does not answer", |(_, why)| why);
            format!("{names}: {why}")
        };
        let named: Vec<String> = lacking.iter().take(SILENT_NAMED).map(|names| why(names)).collect();
        let others = lacking.len() - named.len();
        named.join("; ") + &if others > 0 { format!("; and {others} others") } else { String::new() }
    }
}

/// The whole cuts of a cohort, newest first; or why they cannot be told. By the ledgers: those of groups that it has no more are there, and a
/// cohort that the configuration has no more has its own.
pub(crate) async fn points(receiver: &Arc<Receiver>, name: &str) -> Result<Vec<CohortCut>, String> {
    let (config, found) = (receiver.config(), gather(receiver, name).await);
    let groups = config.cohorts.iter().find(|cohort| cohort.name.as_str() == name).map(|cohort| &cohort.groups);
    if !found.is_listed {
        return Err(unlisted(receiver));
    }
    let whole = found.whole();
    let kept: BTreeSet<GroupNames> = {
        let inner = receiver.cohorts.lock();
        inner.kept.of_cohort(name).flat_map(|whole| &whole.points).map(|(group, _)| group.clone()).collect()
    };
    // † A group that does not answer may be in newer cuts than those that are whole without it: whoever takes the newest would take an old one.
    // It is surely in none only where the configuration says who is in the cohort, and no cut of it was ever seen.
    let is_missed =
        |names: &GroupNames| whole.is_empty() || groups.is_none_or(|groups| groups.contains(names)) || kept.contains(names);
    match found.silent.iter().find(|(names, _)| is_missed(names)) {
        Some((names, why)) => Err(format!("{names}: {why}")),
        None => Ok(whole.iter().map(|whole| found.shown(whole)).collect()),
    }
}

/// Why not every group of the store is known.
fn unlisted(receiver: &Receiver) -> String {
    let hidden = receiver.roster.hidden();
    match hidden.first() {
        Some(why) => format!("which groups the store has is not known: {why}"),
        None => "the store is not open yet: which groups it has is not known".to_owned(),
    }
}

/// How many cuts some group has a point of, whole or not; or why that cannot be told.
pub(crate) async fn cuts_there_are(receiver: &Arc<Receiver>, name: &str) -> Result<usize, String> {
    let found = gather(receiver, name).await;
    let cuts: BTreeSet<[u8; 16]> = found.groups.iter().flat_map(|(_, cuts)| cuts.keys().copied()).collect();
    match found.silent.first() {
        _ if !found.is_listed => Err(unlisted(receiver)),
        Some((names, why)) if cuts.is_empty() => Err(format!("{names}: {why}")),
        _ => Ok(cuts.len()),
    }
}

/// Asks all groups of the store at once: one that waits for its disk holds up none of the others.
async fn gather(receiver: &Arc<Receiver>, name: &str) -> Found {
    // † Before they are asked: what came to be known after that was not.
    let (is_listed, unserved) = (receiver.roster.is_listed(), receiver.roster.unserved());
    let mut asked = JoinSet::new();
    for group in receiver.roster.all() {
        let name = name.to_owned();
        asked.spawn(async move {
            let answer = tokio::time::timeout(LOOK, group.cohort_cuts(&name)).await;
            (group.names().clone(), answer.unwrap_or_else(|_| Err("it does not answer".to_owned())))
        });
    }
    let silent = unserved.into_iter().map(|names| (names, "it is not served: the log says why".to_owned())).collect();
    let mut found = Found { is_listed, silent, ..Found::default() };
    while let Some(answered) = asked.join_next().await {
        match answered.expect("asking does not panic") {
            (names, Ok(CohortAnswer { cuts, doubts })) => {
                found.doubts.extend(doubts.into_iter().map(|(point, doubt)| ((names.clone(), point), doubt)));
                found.groups.push((names, cuts));
            }
            (names, Err(why)) => found.silent.push((names, why)),
        }
    }
    found.groups.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.silent.sort();
    found
}

/// How all cohorts are.
pub(crate) async fn show(receiver: &Arc<Receiver>) -> Vec<CohortStatus> {
    let config = receiver.config();
    let mut all = Vec::new();
    for cohort in &config.cohorts {
        let points = points(receiver, cohort.name.as_str()).await;
        let lacks = cohort.groups.iter().find(|names| receiver.roster.all().iter().all(|group| group.names() != *names));
        let inner = receiver.cohorts.lock();
        let group = |names: &GroupNames| CohortGroup { group: names.to_string(), connected: inner.here.contains_key(names) };
        let mut status = CohortStatus {
            name: cohort.name.to_string(),
            every_ms: u64::try_from(cohort.every.as_millis()).unwrap_or(u64::MAX),
            hold_us: u64::try_from(cohort.hold.as_micros()).unwrap_or(u64::MAX),
            groups: cohort.groups.iter().map(group).collect(),
            ..CohortStatus::default()
        };
        if let Some(running) = inner.running.get(&cohort.name) {
            let seen = locked(&running.seen);
            (status.cuts, status.missed, status.held_us) = (seen.cuts, seen.missed, seen.held_us);
            status.trouble.clone_from(&seen.trouble);
        }
        match points {
            Ok(cuts) => {
                status.points = cuts.len() as u64;
                status.newest = cuts.into_iter().find(|cut| cut.doubt().is_none());
            }
            Err(why) => status.unknown = Some(why),
        }
        if let Some(names) = lacks {
            status.unknown = Some(format!("{names} is not in the store: nothing was ever sent of it"));
        }
        all.push(status);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> GroupNames {
        GroupNames { source: name.parse().expect("a name"), group: "g".parse().expect("a name") }
    }

    fn cut(n: u8, groups: u16) -> Cut {
        Cut { cohort: Cut::cohort_id("erp"), cut: [n; 16], groups, wall_ms: 1_700_000_000_000 + i64::from(n) }
    }

    /// Each group with the cuts that it has points of.
    fn found(groups: &[(&str, &[Cut])], silent: &[&str]) -> Found {
        let point = |cut: &Cut| (cut.cut, (*cut, PointId { slot: u64::from(cut.cut[0]), tag: 0 }));
        Found {
            groups: groups.iter().map(|(name, cuts)| (group(name), cuts.iter().map(point).collect())).collect(),
            silent: silent.iter().map(|name| (group(name), "away".to_owned())).collect(),
            is_listed: true,
            ..Found::default()
        }
    }

    fn to_keep(found: &Found, before: Vec<Whole>) -> Vec<Whole> {
        let is_silent = |group: &GroupNames| found.silent.iter().any(|(silent, _)| silent == group);
        farside_replication::cohort::whole_to_keep(&found.groups, is_silent, before, WHOLE_KEPT)
    }

    fn ids(cuts: &[Whole]) -> Vec<u8> {
        cuts.iter().map(|whole| whole.cut.cut[0]).collect()
    }

    #[test]
    fn a_cut_stays_one_of_those_that_were_cut_whoever_is_in_the_cohort_now() {
        // Of a and b; of a, b and c, which joined; of a and c, when b had left. And halves of each.
        let (two, three, other) = (cut(1, 2), cut(2, 3), cut(3, 2));
        let halves = [cut(4, 2), cut(5, 3)];
        let all = found(
            &[("a", &[two, three, other, halves[0], halves[1]]), ("b", &[two, three, halves[1]]), ("c", &[three, other])],
            &[],
        );
        assert_eq!(ids(&all.whole()), [3, 2, 1], "newest first, and no halves");
        let names = |at: usize| all.shown(&all.whole()[at]).points.into_iter().map(|point| point.group).collect::<Vec<_>>();
        assert_eq!((names(0), names(2)), (vec!["a/g".to_owned(), "c/g".to_owned()], vec!["a/g".to_owned(), "b/g".to_owned()]));
        // † One that says something else of the same cut is no part of it.
        let strange = found(&[("a", &[cut(1, 2)]), ("b", &[cut(1, 3)])], &[]);
        assert!(strange.whole().is_empty());
    }

    /// † The clock of the gateway was days ahead, and was set right; who joined later has only the newer cuts.
    #[test]
    fn the_newest_is_what_was_written_last_whatever_the_clock_said() {
        let ahead = |n: u8| Cut { wall_ms: 1_800_000_000_000 + i64::from(n), ..cut(n, 2) };
        let cuts = [cut(1, 2), ahead(2), ahead(3), cut(4, 2), cut(5, 2)];
        let three = cut(6, 3);
        let all = found(&[("a", &[&cuts[..], &[three]].concat()), ("b", &[&cuts[..], &[three]].concat()), ("c", &[three])], &[]);
        assert_eq!(ids(&all.whole()), [6, 5, 4, 3, 2, 1]);
        assert_eq!(ids(&to_keep(&all, Vec::new())), [6, 5, 4, 3, 2, 1]);
        let alone = found(&[("a", &[cut(7, 1)])], &[]);
        assert!(alone.whole().is_empty(), "one group is no cohort");
    }

    #[test]
    fn what_was_whole_is_kept_while_a_group_of_it_does_not_answer() {
        let cuts: Vec<Cut> = (1..=30).map(|n| cut(n, 2)).collect();
        let before = to_keep(&found(&[("a", &cuts), ("b", &cuts)], &[]), Vec::new());
        assert_eq!(ids(&before), (21..=30).rev().collect::<Vec<_>>(), "the newest");
        let newer = cut(31, 2);
        let with_newer = [&cuts[..], &[newer]].concat();
        let half = to_keep(&found(&[("a", &with_newer), ("c", &[newer])], &["b"]), before.clone());
        assert_eq!(ids(&half), (22..=31).rev().collect::<Vec<_>>(), "b is silent, and a would give up what b has");
        let gone = to_keep(&found(&[("a", &cuts[..25]), ("c", &[])], &["b"]), before.clone());
        assert_eq!(ids(&gone), (21..=25).rev().collect::<Vec<_>>(), "what a has no more is none");
        assert!(to_keep(&found(&[("a", &cuts), ("b", &[])], &[]), before).is_empty(), "b answered, and has none");
    }

    /// What `newest_at`, its metric and `farside cohort list` say would be refused on the day itself.
    #[test]
    fn a_cut_that_a_failover_refuses_is_not_the_newest() {
        let cuts = [cut(1, 2), cut(2, 2), cut(3, 2)];
        let mut all = found(&[("a", &cuts), ("b", &cuts)], &[]);
        let newest = |all: &Found| all.newest().map(|cut| cut.points[0].point.slot);
        assert_eq!(newest(&all), Some(3));
        let mut doubt = |name: &str, slot, doubt| all.doubts.insert((group(name), PointId { slot, tag: 0 }), doubt);
        doubt("a", 3, Doubt { is_aside: true, damaged: None });
        doubt("b", 2, Doubt { is_aside: false, damaged: Some("a segment is gone".to_owned()) });
        assert_eq!(newest(&all), Some(1));
        let shown: Vec<CohortCut> = all.whole().iter().map(|whole| all.shown(whole)).collect();
        assert!(shown.len() == 3 && shown[0].points[0].aside && !shown[0].points[1].aside, "it is there all the same");
        assert!(shown[1].doubt().is_some_and(|why| why.contains("b/g") && why.ends_with("a segment is gone")));
    }

    /// A cut was missed, and while a slow group is asked the next one succeeds.
    #[test]
    fn an_older_look_says_nothing_of_the_newest_cut_after_a_newer_one() {
        let at = |second| Some(Timestamp::from_second(second).expect("a time"));
        let mut seen = Seen::default();
        let (missed, next) = (seen.looks(), seen.looks());
        seen.found(next, at(2));
        seen.found(missed, at(1));
        assert_eq!(seen.newest_at, at(2));
        let last = seen.looks();
        seen.found(last, None);
        assert_eq!(seen.newest_at, None, "it was left aside since");
    }

    #[test]
    fn who_does_not_answer_is_named_with_why() {
        let all = found(&[("a", &[])], &["b", "c", "d", "e"]);
        let groups = ["b", "c", "d", "e", "f"].map(group);
        let lacking: Vec<&GroupNames> = groups.iter().collect();
        assert_eq!(all.why_silent(&lacking[..1]), "b/g: away");
        assert_eq!(all.why_silent(&lacking[4..]), "f/g: it does not answer");
        assert_eq!(all.why_silent(&lacking), "b/g: away; c/g: away; d/g: away; and 2 others");
    }

    /// What is looked for by an id that is taken for a name is not there.
    #[test]
    fn a_command_says_the_name_of_a_cohort_and_never_its_id() {
        let name: Name = "erp".parse().expect("a name");
        let (known, unknown) = (Cut::cohort_id("erp"), [0; 16]);
        let of = |cohorts: &[([u8; 16], Option<Name>)]| not_configured_of(&group("a"), 2, &cohorts.iter().cloned().collect());
        let named = of(&[(unknown, None), (known, Some(name))]);
        assert!(named.message.contains("(erp, ") && named.message.contains(&HEXLOWER.encode(&unknown)), "{}", named.message);
        assert!(
            named.what_to_do.contains("`farside cohort forget erp`") && !named.what_to_do.contains("000"),
            "{}",
            named.what_to_do
        );
        let nameless = of(&[(unknown, None)]);
        assert!(nameless.message.contains(&HEXLOWER.encode(&unknown)), "{}", nameless.message);
        assert!(
            !nameless.what_to_do.contains("cohort forget") && !nameless.what_to_do.contains("000"),
            "{}",
            nameless.what_to_do
        );
    }

    fn names(source: &str) -> GroupNames {
        let name = |text: &str| text.parse().expect("a name");
        GroupNames::new(name(source), name("db"))
    }

    /// † What is kept for cuts is in no ledger: a process that has just begun must not take "not known yet" for "nothing".
    #[test]
    fn nothing_is_known_of_a_cohort_before_all_of_its_groups_were_asked() {
        let groups = vec![names("web1"), names("web2")];
        let cohort = Cohort { name: "shop".parse().expect("a name"), groups, every: LOOK, hold: LOOK };
        let config = Config { cohorts: vec![cohort.clone()], ..Config::default() };
        let cohorts = Cohorts::default();
        assert!(
            !cohorts.knows(&config, &names("web1"), |_| false) && !cohorts.knows(&config, &names("web2"), |_| false),
            "it has just begun"
        );
        assert!(cohorts.knows(&config, &names("web3"), |_| false), "a group of no cohort");
        assert!(!cohorts.knows(&config, &names("web3"), |name| *name == cohort.name), "it has left, and has points of its cuts");
        let (events, _happened) = mpsc::unbounded_channel();
        let running = Running::new(cohort.clone(), events, Arc::default());
        cohorts.lock().running.insert(cohort.name.clone(), running);
        assert!(!cohorts.knows(&config, &names("web1"), |_| false), "it is conducted, and nobody has looked");
        let another = Cohort { groups: vec![names("web1")], ..cohort.clone() };
        cohorts.keep(&another, &Found::default(), true);
        assert!(!cohorts.knows(&config, &names("web1"), |_| false), "that was found of the groups that it had before");
        cohorts.keep(&cohort, &Found::default(), false);
        assert!(!cohorts.knows(&config, &names("web1"), |_| false), "not all of them answered");
        cohorts.keep(&cohort, &Found::default(), true);
        assert!(cohorts.knows(&config, &names("web1"), |_| false) && cohorts.knows(&config, &names("web2"), |_| false));
    }

    /// † c has left, and its ledger is torn: after a start a and b were asked, and gave up their parts of what all three have.
    #[test]
    fn what_a_group_that_has_left_may_have_is_kept_while_it_does_not_answer() {
        let (three, newer) = (cut(1, 3), cut(2, 2));
        let cohort =
            Cohort { name: "erp".parse().expect("a name"), groups: vec![group("a"), group("b")], every: LOOK, hold: LOOK };
        let cohorts = Cohorts::default();
        let (events, _happened) = mpsc::unbounded_channel();
        cohorts.lock().running.insert(cohort.name.clone(), Running::new(cohort.clone(), events, Arc::default()));
        let look = |groups: &[(&str, &[Cut])], silent: &[&str]| {
            cohorts.keep(&cohort, &found(groups, silent), true);
            cohorts.kept(&group("a")).into_iter().map(|slot| slot.0).collect::<Vec<_>>()
        };
        let both = [three, newer];
        assert_eq!(look(&[("a", &both), ("b", &both)], &["c"]), [1, 2]);
        // Halves that come later are none of it, and displace nothing.
        let halves: Vec<Cut> = (3..=20).map(|n| cut(n, 2)).collect();
        let with_halves = [&both[..], &halves].concat();
        assert_eq!(look(&[("a", &with_halves), ("b", &both)], &["c"]), [1, 2]);
        assert_eq!(look(&[("a", &both), ("b", &both), ("c", &[three])], &[]), [1, 2], "it answers: it is whole");
        assert_eq!(look(&[("a", &both), ("b", &both), ("c", &[])], &[]), [2], "it has none");
        cohorts.lock().kept.are_as_before(|_| false);
        // Of four groups: one that is silent cannot have what two lack.
        assert_eq!(look(&[("a", &[cut(1, 4), newer]), ("b", &[cut(1, 4), newer])], &["c"]), [2]);
    }

    /// † A cut that one host missed may be whole, too, for all that is known: ten newer ones are there when it is looked first.
    #[test]
    fn newer_halves_do_not_push_out_what_may_be_whole_with_a_group_that_has_left() {
        let (three, newer) = (cut(1, 3), cut(20, 2));
        let cohort =
            Cohort { name: "erp".parse().expect("a name"), groups: vec![group("a"), group("b")], every: LOOK, hold: LOOK };
        let cohorts = Cohorts::default();
        let (events, _happened) = mpsc::unbounded_channel();
        cohorts.lock().running.insert(cohort.name.clone(), Running::new(cohort.clone(), events, Arc::default()));
        let kept = |name: &str| cohorts.kept(&group(name)).into_iter().map(|slot| slot.0).collect::<Vec<_>>();
        let look = |groups: &[(&str, &[Cut])], silent: &[&str]| {
            cohorts.keep(&cohort, &found(groups, silent), true);
            (kept("a"), kept("b"))
        };
        let halves: Vec<Cut> = (2..=19).map(|n| cut(n, 2)).collect();
        let (with_halves, both) = ([&[three, newer][..], &halves].concat(), [three, newer]);
        let all = ((1..=20).collect(), vec![1, 20]);
        assert_eq!(look(&[("a", &with_halves), ("b", &both)], &["c"]), all);
        let later: Vec<Cut> = (21..=40).map(|n| cut(n, 2)).collect();
        let with_later = [&with_halves[..], &later].concat();
        assert_eq!(look(&[("a", &with_later), ("b", &both)], &["c"]), all, "they stay, and no more of them");
        assert_eq!(look(&[("a", &with_later), ("b", &both), ("c", &[three])], &[]), (vec![1, 20], vec![1, 20]), "it answers");
    }

    /// A policy that keeps one, and a group of the cohort that does not answer while newer cuts are made.
    #[test]
    fn what_may_be_the_newest_whole_cut_is_kept_until_it_was_looked_for() {
        let points = |newest: u64| (1..=newest).rev().map(|slot| (Slot(slot), slot % 2 == 0));
        let slots = |newest, kept: Option<u64>| unlooked(points(newest), kept.map(Slot)).map(|slot| slot.0).collect::<Vec<_>>();
        assert_eq!(slots(9, Some(4)), [8, 6], "above what is kept, and of its cuts");
        assert_eq!(slots(9, Some(8)), [0; 0]);
        assert_eq!(slots(7, None), [6, 4, 2], "none was whole yet");
        assert_eq!((slots(1000, None).len(), slots(1000, None)[0]), (NOT_LOOKED_FOR, 1000), "and no more than that");
    }

    /// A conductor hears nothing while it waits for a group that does not answer.
    #[test]
    fn what_a_host_says_unasked_is_not_kept() {
        let cohort =
            Cohort { name: "shop".parse().expect("a name"), groups: vec![names("web1"), names("web2")], every: LOOK, hold: LOOK };
        let cohorts = Cohorts::default();
        let not = || CohortSay::Not { cut: [1; 16], why: "no".to_owned() };
        assert!(cohorts.said(&names("web1"), 1, not()), "nobody is told");
        let (events, mut happened) = mpsc::unbounded_channel();
        cohorts.lock().running.insert(cohort.name.clone(), Running::new(cohort, events, Arc::default()));
        let heard = (0..1_000_000).filter(|n| cohorts.said(&names("web1"), n / 100, not())).count();
        assert_eq!((heard, happened.len()), (SAID_MAX, SAID_MAX), "whatever connection it is on");
        assert!(cohorts.said(&names("web2"), 2, not()), "another host's room is its own");
        drop(happened.try_recv().expect("there is one"));
        assert!(cohorts.said(&names("web1"), 1, not()) && !cohorts.said(&names("web1"), 1, not()), "what was heard makes room");
    }
}
