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
use farside_control::PointId;
use farside_control::cohort::{CohortCut, CohortGroup, CohortPoint, CohortStatus, CohortTrouble};
use farside_keys::Secret;
use farside_ledger::{CohortCut as Cut, State};
use farside_region::{Name, Slot};
use farside_replication::cohort::{CohortAction, CohortConfig, CohortEvent, CohortLimits, CohortOutcome, Conductor};
use farside_store::GroupNames;
use farside_transport::{CloseCode, Connection};
use farside_wire::{
    CohortAsk, CohortSay, Features, ReceiverHello, ReceiverMessage, RefusalCode, SourceHello, SourceMessage, VersionRange,
    decode_payload, encode_payload,
};
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::config::{Cohort, Config};
use crate::door::refusal;
use crate::group::{CohortCuts, GroupHandle};
use crate::process::Receiver;

/// Questions that may wait for a host: a conductor asks no more before it is answered.
const ASKS_MAX: usize = 16;
/// A host that takes nothing for so long has gone.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// Hosts that are just connecting are waited for so long.
const FIRST: Duration = Duration::from_secs(10);
/// So many of the newest whole cuts are kept beside what retention keeps.
const KEPT: usize = 10;
/// How long is waited at most before time is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// What is kept for whole cuts is asked for again after so long at first, and at last.
const SOON: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(30);
/// Numbers connections, upwards.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

type Event = CohortEvent<GroupNames>;

/// All cohorts of the configuration, and all hosts that are there for one.
#[derive(Debug, Default)]
pub(crate) struct Cohorts {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: BTreeMap<Name, Running>,
    /// The newest connection of each group.
    here: BTreeMap<GroupNames, Here>,
    /// Points of the newest whole cuts of each cohort: retention keeps them.
    kept: BTreeMap<Name, BTreeMap<GroupNames, BTreeSet<Slot>>>,
    /// Of which that is known, as of the last cut that was called one, for the groups that it has now.
    looked: BTreeSet<Name>,
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
    events: mpsc::UnboundedSender<Event>,
    seen: Arc<Mutex<Seen>>,
}

/// What came of its cuts, since the process began.
#[derive(Debug, Default)]
struct Seen {
    cuts: u64,
    missed: u64,
    held_us: Option<u64>,
    trouble: Option<CohortTrouble>,
}

impl Cohorts {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the configuration is now: what is in it is conducted, from its beginning where it changed.
    pub(crate) fn apply(receiver: &Arc<Receiver>, config: &Config) {
        let mut inner = receiver.cohorts.lock();
        inner.running.retain(|_, running| config.cohorts.contains(&running.config));
        let Inner { running, looked, .. } = &mut *inner;
        looked.retain(|name| running.contains_key(name));
        inner.kept.retain(|name, _| config.cohorts.iter().any(|cohort| cohort.name == *name));
        for cohort in &config.cohorts {
            if inner.running.contains_key(&cohort.name) {
                continue;
            }
            let (events, happened) = mpsc::unbounded_channel();
            for (group, here) in inner.here.iter().filter(|(group, _)| cohort.groups.contains(group)) {
                let _ = events.send(CohortEvent::Joined { group: group.clone(), connection: here.number });
            }
            let seen = Arc::<Mutex<Seen>>::default();
            receiver.runtime.spawn(conduct(Arc::clone(receiver), cohort.clone(), happened, Arc::clone(&seen)));
            let running = Running { config: cohort.clone(), events, seen };
            inner.running.insert(cohort.name.clone(), running);
        }
    }

    /// Tells whoever conducts the cohort of a group.
    fn tell(&self, group: &GroupNames, event: Event) {
        let inner = self.lock();
        if let Some(running) = inner.running.values().find(|running| running.config.groups.contains(group)) {
            let _ = running.events.send(event); // it ends with the configuration
        }
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

    /// Points of a group that are kept for whole cuts. † By its own ledger alone a group would give them up for cuts that others do not have.
    pub(crate) fn kept(&self, group: &GroupNames) -> BTreeSet<Slot> {
        let inner = self.lock();
        inner.kept.values().filter_map(|groups| groups.get(group)).flatten().copied().collect()
    }

    /// Whether it is known which points of a group are kept for whole cuts. † A process that has just begun knows of none, and the first prune would
    /// give them up: until this says yes, nothing of the group is given up.
    pub(crate) fn knows(&self, config: &Config, group: &GroupNames) -> bool {
        let inner = self.lock();
        config.cohorts.iter().filter(|cohort| cohort.groups.contains(group)).all(|cohort| inner.looked.contains(&cohort.name))
    }

    fn keep(&self, cohort: &Cohort, cuts: &[CohortCut]) {
        let mut groups = BTreeMap::<GroupNames, BTreeSet<Slot>>::new();
        for (at, names) in cohort.groups.iter().enumerate() {
            let slots = cuts.iter().take(KEPT).map(|cut| Slot(cut.points[at].point.slot));
            groups.insert(names.clone(), slots.collect());
        }
        let mut inner = self.lock();
        // It may have been taken out of the configuration meanwhile.
        if inner.running.get(&cohort.name).is_some_and(|running| running.config == *cohort) {
            inner.kept.insert(cohort.name.clone(), groups);
            inner.looked.insert(cohort.name.clone());
        }
    }

    /// A cut of that cohort is wanted now. False: there is none of that name.
    pub(crate) fn wanted(&self, name: &str) -> bool {
        let inner = self.lock();
        let running = inner.running.iter().find(|(known, _)| known.as_str() == name);
        running.is_some_and(|(_, running)| running.events.send(CohortEvent::Wanted).is_ok())
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Conducts the cuts of one cohort, for ever.
async fn conduct(receiver: Arc<Receiver>, cohort: Cohort, mut happened: mpsc::UnboundedReceiver<Event>, seen: Arc<Mutex<Seen>>) {
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
    receiver.runtime.spawn(find_kept(Arc::clone(&receiver), cohort.clone()));
    loop {
        let until_due = Duration::from_nanos(conductor.due().saturating_sub(now())).min(LOOK);
        match tokio::time::timeout(until_due, happened.recv()).await {
            Ok(Some(event)) => conductor.step(now(), event, &mut actions),
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
                tracing::error!(cohort = %cohort.name, "the system gives no randomness: no cut of the cohort is begun");
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
                        if let Some(cut) = cut {
                            let before = awaited.replace(cut);
                            let is_found = look(&receiver, &cohort, before, &seen).await;
                            if !is_found && receiver.cohorts.lock().looked.remove(&cohort.name) {
                                receiver.runtime.spawn(find_kept(Arc::clone(&receiver), cohort.clone()));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Finds what is kept for whole cuts, however long a group does not answer: before that nothing of the cohort is given up.
async fn find_kept(receiver: Arc<Receiver>, cohort: Cohort) {
    let (seen, mut wait) = (Mutex::default(), SOON);
    let is_wanted = || {
        let inner = receiver.cohorts.lock();
        let is_it = inner.running.get(&cohort.name).is_some_and(|running| running.config == cohort);
        is_it && !inner.looked.contains(&cohort.name)
    };
    while is_wanted() && !receiver.is_stopping() {
        if look(&receiver, &cohort, None, &seen).await {
            return;
        }
        if wait == LATE {
            tracing::warn!(cohort = %cohort.name, "not every group of a cohort can be asked for its cuts: nothing of them is pruned or merged before that");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LATE);
    }
}

/// Which cuts are whole, of which retention keeps the newest; and whether the one before the last has become one.
/// False: not every group could be asked.
async fn look(receiver: &Arc<Receiver>, cohort: &Cohort, before: Option<[u8; 16]>, seen: &Mutex<Seen>) -> bool {
    // Of a group that the store has nothing of there is no point, and so no whole cut.
    if cohort.groups.iter().any(|group| receiver.roster.is_new(group)) {
        receiver.cohorts.keep(cohort, &[]);
        return true;
    }
    let Ok(Ok(groups)) = tokio::time::timeout(LOOK, gather(receiver, cohort)).await else { return false };
    receiver.cohorts.keep(cohort, &whole(&groups));
    let lacks = before.and_then(|cut| groups.iter().find(|(_, cuts)| !cuts.contains_key(&cut)));
    if let Some((group, _)) = lacks {
        let why = "it has no point of a cut that was taken: that was given up before it was sent, or could not be read in full";
        let mut seen = locked(seen);
        (seen.cuts, seen.missed) = (seen.cuts.saturating_sub(1), seen.missed + 1);
        tracing::warn!(cohort = %cohort.name, %group, "{why}");
        seen.trouble = Some(CohortTrouble { at: Timestamp::now(), group: Some(group.to_string()), why: why.to_owned() });
    }
    true
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
    if let Err((code, text)) = answer(&receiver, &connection, &names, number, hello.versions).await {
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
    names: &GroupNames,
    number: u64,
    versions: VersionRange,
) -> Result<(), (RefusalCode, String)> {
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
            receiver.cohorts.tell(names, CohortEvent::Said { group: names.clone(), connection: number, say: printable(said) });
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
        CohortSay::Not { cut, why } => {
            CohortSay::Not { cut, why: why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() }
        }
        other => other,
    }
}

/// Points of a group that say that they are of cuts of a cohort, by cut. What the source could not read all of is none.
pub(crate) fn cuts_of(state: &State, cohort: &str) -> CohortCuts {
    let id = Cut::cohort_id(cohort);
    let points = state.points().values();
    points
        .filter_map(|point| {
            let cut = point.consistency().cohort_cut().filter(|cut| cut.cohort == id && !point.degraded)?;
            let digest = state.digest_at(point.slot)?;
            Some((cut.cut, (cut, PointId::new(point.slot.0, &digest.0))))
        })
        .collect()
}

/// The cuts of which every group has its point, newest first.
fn whole(groups: &[(GroupNames, CohortCuts)]) -> Vec<CohortCut> {
    let Some(((_, first), others)) = groups.split_first() else { return Vec::new() };
    let is_whole =
        |cut: &Cut| usize::from(cut.groups) == groups.len() && others.iter().all(|(_, cuts)| cuts.contains_key(&cut.cut));
    let mut all: Vec<&Cut> = first.values().map(|(cut, _)| cut).filter(|cut| is_whole(cut)).collect();
    all.sort_by_key(|cut| (std::cmp::Reverse(cut.wall_ms), cut.cut));
    all.into_iter()
        .map(|cut| CohortCut {
            id: cut.cut.iter().map(|byte| format!("{byte:02x}")).collect(),
            at: Timestamp::from_millisecond(cut.wall_ms).unwrap_or_default(),
            points: groups
                .iter()
                .map(|(group, cuts)| CohortPoint { group: group.to_string(), point: cuts[&cut.cut].1 })
                .collect(),
        })
        .collect()
}

/// The whole cuts of a cohort, newest first; or why they cannot be told.
pub(crate) async fn points(receiver: &Arc<Receiver>, cohort: &Cohort) -> Result<Vec<CohortCut>, String> {
    Ok(whole(&gather(receiver, cohort).await?))
}

async fn gather(receiver: &Arc<Receiver>, cohort: &Cohort) -> Result<Vec<(GroupNames, CohortCuts)>, String> {
    let mut groups = Vec::new();
    for names in &cohort.groups {
        let known = receiver.roster.all().into_iter().find(|group| group.names() == names);
        let Some(group) = known else { return Err(format!("{names} is not in the store: nothing was ever sent of it")) };
        let cuts = group.cohort_cuts(cohort.name.as_str()).await.map_err(|why| format!("{names}: {why}"))?;
        groups.push((names.clone(), cuts));
    }
    Ok(groups)
}

/// How all cohorts are.
pub(crate) async fn show(receiver: &Arc<Receiver>) -> Vec<CohortStatus> {
    let config = receiver.config();
    let mut all = Vec::new();
    for cohort in &config.cohorts {
        let points = points(receiver, cohort).await;
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
            Ok(mut cuts) => {
                status.points = cuts.len() as u64;
                status.newest = (!cuts.is_empty()).then(|| cuts.swap_remove(0));
            }
            Err(why) => status.unknown = Some(why),
        }
        all.push(status);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(!cohorts.knows(&config, &names("web1")) && !cohorts.knows(&config, &names("web2")), "it has just begun");
        assert!(cohorts.knows(&config, &names("web3")), "a group of no cohort");
        let (events, _happened) = mpsc::unbounded_channel();
        let running = Running { config: cohort.clone(), events, seen: Arc::default() };
        cohorts.lock().running.insert(cohort.name.clone(), running);
        assert!(!cohorts.knows(&config, &names("web1")), "it is conducted, and nobody has looked");
        let another = Cohort { groups: vec![names("web1")], ..cohort.clone() };
        cohorts.keep(&another, &[]);
        assert!(!cohorts.knows(&config, &names("web1")), "that was found of the groups that it had before");
        cohorts.keep(&cohort, &[]);
        assert!(cohorts.knows(&config, &names("web1")) && cohorts.knows(&config, &names("web2")));
    }
}
