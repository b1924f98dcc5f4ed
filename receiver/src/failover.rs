//! Failovers: the source of a group is fenced, and a point of it takes its place.
//!
//! ```text
//! asked ──► Fencing (durable) ──► claims of the next generation, all volumes ──► a point is chosen and pinned ──► Fenced
//!                                                                                                                  │
//!              Over ◄── a still higher generation is in the ledger ── Promoted ◄── followers are told to hold it ──┘
//! ```
//!
//! Invariant: what was begun is gone on with, after a kill at any moment too: nothing in it asks anything of the source. Before `Fencing` is durable
//! nothing was changed; from the claims on nothing of the old generation is published, whoever sends it and however late.
//!
//! A failover that was promoted may be *committed*: it is for good then, its point is kept no more, and its source is refused until that is taken back.
//!
//! Not here: what a claim does to those before (`ledger`), how a source learns of it (`replication`), how targets are written (`follow`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use farside_control::failover::{FailoverRequest, FailoverStage, FailoverStatus};
use farside_control::{Address, ApiError, Code, ErrorCode, Reason, Severity};
use farside_ledger::PointFilter;
use farside_region::{Generation, Name, Slot};
use farside_replication::lineage::{Aside, Lineage};
use farside_store::GroupNames;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub(crate) use self::lost::{KNOWN, Known, Lost, left_behind};
use self::shown::{show, shown_alone};
use self::taken_back::formers_by_pins;
pub(crate) use self::taken_back::{TAKEN_BACK, TakenBack};
use crate::group::{Fence, Fenced, GroupHandle, Mail, PointChange, Promotable, PromotionLook, Waits, Wanted};
use crate::points::PointsAsk;
use crate::process::Receiver;
use crate::rollback;
use crate::state_dir::{StateDir, StateError, unsaved};

mod lost;
mod shown;
mod stand_in;
mod taken_back;
mod unread;

/// How often it is looked whether something is left to do.
const LOOK: Duration = Duration::from_secs(1);
/// How long a group is waited for that is only asked how it is, and a step of a failover by whoever wants the next.
const ANSWER: Duration = Duration::from_secs(5);
/// How often it is looked whether that step is done.
const TURN: Duration = Duration::from_millis(10);
/// So many are looked at at once where all are shown.
const SHOWN_AT_ONCE: usize = 64;
/// Of those looks, of what is over.
const SELDOM: u64 = 5;
const VERSION: u32 = 1;

/// All failovers that are not over.
#[derive(Debug, Default)]
pub(crate) struct Failovers {
    all: Mutex<BTreeMap<GroupNames, Failover>>,
    /// Those that are over, and left something aside that is there still.
    taken_back: Mutex<BTreeMap<GroupNames, TakenBack>>,
    /// Up to which generation promotions are known here that are over.
    known: Mutex<BTreeMap<GroupNames, Known>>,
    /// The highest generation of each group when this process first opened its ledger.
    opened: Mutex<BTreeMap<GroupNames, Generation>>,
    /// Files and folders of theirs that cannot be read, and why.
    unread: Mutex<BTreeMap<PathBuf, String>>,
    /// One step of a group's at a time.
    working: Turns,
    /// One of a group is begun at a time, from the look to the note.
    beginning: Turns,
    /// One note is written at a time. Never held while a group is asked something: a group's thread takes it.
    writing: Mutex<()>,
    /// Why some do not go on, in words.
    troubles: Mutex<BTreeMap<GroupNames, String>>,
    /// What cannot be taken up, in words, by its file or folder. † It may be what says which points of a group are its history.
    broken: Mutex<BTreeMap<PathBuf, String>>,
}

/// One at a time, of each group: one that is slow, or whose store does not answer, holds up no other.
#[derive(Debug, Default)]
struct Turns(Mutex<BTreeMap<GroupNames, Arc<Mutex<()>>>>);

impl Turns {
    fn of(&self, names: &GroupNames) -> Arc<Mutex<()>> {
        Arc::clone(lock(&self.0).entry(names.clone()).or_default())
    }
}

/// Waits for a turn, but not for ever: whoever has it may wait for a disk.
fn turn<'t>(of: &'t Mutex<()>, names: &GroupNames, limit: Duration) -> Result<MutexGuard<'t, ()>, ApiError> {
    let until = Instant::now() + limit;
    loop {
        match of.try_lock() {
            Ok(turn) => return Ok(turn),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                let message = format!("a step of the failover of {names} takes long: the store may be slow");
                return Err(ApiError::new(ErrorCode::Unavailable, message, "it goes on by itself: `farside failover --list`"));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(TURN),
        }
    }
}

/// A failover, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failover {
    version: u32,
    source: Name,
    group: Name,
    generation: u64,
    /// Under which it was first to fence, if it is raised since: claims of its own may lie in the ledger from that one on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raised_from: Option<u64>,
    /// As it was asked for; `None`: the newest of then.
    wanted: Option<Slot>,
    forced: bool,
    stage: Stage,
    /// The claims that fence are in the ledger.
    #[serde(default)]
    claimed: bool,
    /// Who was connected while nobody was fenced yet, if anybody was.
    #[serde(default)]
    came_back: Option<Name>,
    /// The host that may publish in its place.
    #[serde(default)]
    stand_in: Option<Name>,
    /// Points that are here and cannot be published may be lost.
    #[serde(default)]
    lose_staged: bool,
    /// Those before it, whose points are pinned until this one's is.
    #[serde(default)]
    former: Vec<Former>,
    /// That was over when this one was begun: nothing of it stands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    former_is_over: bool,
    /// The newest point when whoever published before was fenced.
    #[serde(default)]
    parted: Option<Slot>,
    /// The same of the source itself, if it was fenced by an earlier one.
    #[serde(default)]
    source_parted: Option<Slot>,
    /// What those before it left aside.
    #[serde(default, skip_serializing_if = "Lineage::is_empty")]
    aside: Lineage,
    /// The source may not come back; also after another one that followed it.
    #[serde(default)]
    committed: bool,
    /// This very one is for good.
    #[serde(default)]
    settled: bool,
    /// Whoever forced it was told that its point is degraded, and may have another such one. `None`: noted by an earlier build.
    #[serde(default)]
    takes_degraded: Option<bool>,
    /// The newest point when it was begun, if that was to be brought up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shown: Option<Shown>,
    /// The one that stands until this one has fenced somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Box<Failover>>,
    /// Taken up from an earlier process.
    #[serde(skip)]
    is_taken_up: bool,
}

/// What a person was shown of the newest point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shown {
    point: Slot,
    /// The volumes that it holds.
    members: Vec<String>,
}

/// What a person has chosen, as [`Failover`] keeps it.
#[derive(Clone)]
struct Chosen {
    wanted: Option<Slot>,
    takes_degraded: Option<bool>,
    shown: Option<Shown>,
}

impl Chosen {
    fn of(request: &FailoverRequest, look: &PromotionLook) -> Self {
        let point = look.point.as_ref();
        let shown = |point: &Promotable| Shown {
            point: point.slot,
            members: point.members.iter().map(|(volume, _)| volume.clone()).collect(),
        };
        Self {
            wanted: request.point.map(Slot),
            takes_degraded: Some(request.force && point.is_some_and(|point| point.degraded)),
            shown: point.filter(|_| request.point.is_none()).map(shown),
        }
    }
}

/// A failover that another one took the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    generation: u64,
    point: Slot,
}

impl Former {
    fn pin_reason(self) -> String {
        pin_reason(self.generation)
    }
}

/// What the reasons of all pins of failovers begin with.
pub(crate) const PIN_REASONS: &str = "failover, generation ";

fn pin_reason(generation: u64) -> String {
    format!("{PIN_REASONS}{generation}")
}

/// How far a failover is, for whoever would stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody is fenced yet.
    Fencing,
    /// Its source is fenced, and has not taken its history back.
    Stands,
    /// It waits, and the history has gone on without it, up to this one; only the ledger says so.
    LeftBehind(Generation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Fencing,
    /// `None`: the group had no point.
    Fenced {
        point: Option<Slot>,
    },
    Promoted {
        point: Option<Slot>,
    },
}

impl Failover {
    pub(crate) fn names(&self) -> GroupNames {
        GroupNames { source: self.source.clone(), group: self.group.clone() }
    }

    /// † Until the claims are in the ledger nothing has changed: whoever stood in may come and show that it is alive. `highest`: of the ledger,
    /// where that is known; the claims may be in it though that is not noted.
    fn standing(&self, highest: Option<Generation>) -> &Self {
        let is_claimed = self.claimed || highest.is_some_and(|highest| self.may_have_claimed(highest));
        self.before.as_deref().filter(|_| self.stage == Stage::Fencing && !is_claimed).unwrap_or(self)
    }

    /// Whether all volumes of its point were claimed above it: whoever has only some of them back needs it for the others.
    fn is_taken_back(&self, look: &PromotionLook) -> bool {
        match look.point.as_ref().filter(|_| self.point().is_some()) {
            Some(point) => point.generations.iter().all(|generation| generation.0 > self.generation),
            None => look.generation.0 > self.generation,
        }
    }

    fn pin_reason(&self) -> String {
        pin_reason(self.generation)
    }

    /// What the next one has to withdraw.
    fn with_former(&self) -> Vec<Former> {
        let this = self.point().map(|point| Former { generation: self.generation, point });
        self.former.iter().copied().chain(this).collect()
    }

    /// It is said again, with another point; what was said before, and is not said anew, holds.
    fn choose(&mut self, chosen: Chosen, stand_in: Option<Name>, request: &FailoverRequest) {
        (self.wanted, self.takes_degraded, self.shown) = (chosen.wanted, chosen.takes_degraded, chosen.shown);
        self.stand_in = stand_in.or(self.stand_in.take());
        self.forced |= request.force;
        self.lose_staged |= request.lose_staged;
    }

    /// What it brings up. † Of a newest one that comes while it waits nobody has seen that it lacks volumes: it has those that were shown.
    fn brings_up(&self, takes_degraded: bool) -> Wanted {
        match (&self.shown, self.point()) {
            (Some(shown), None) => Wanted::NewestWith { members: shown.members.clone(), takes_degraded },
            (None, None) if !takes_degraded => Wanted::NewestWith { members: Vec::new(), takes_degraded },
            (_, point) => point.map_or(Wanted::Newest, Wanted::Point),
        }
    }

    /// The newest point from before it. † Also one that was not brought up: of what is above the point that was, nobody may have published anything since.
    fn newest_before(&self) -> Option<Slot> {
        match self.stage {
            Stage::Fencing => None,
            Stage::Fenced { point } | Stage::Promoted { point } => self.parted.max(point),
        }
    }

    /// What is the history by it; while nothing is brought up, by those before it.
    fn lineage(&self) -> Lineage {
        let brought_up = self.point().filter(|_| self.stage != Stage::Fencing).zip(self.newest_before());
        self.aside.clone().and(brought_up.map(|(point, parted)| Aside { point, parted }))
    }

    /// An earlier build did not note what those before it left aside: the one that stands still says so, and goes once this one has fenced.
    fn inherits(&mut self) {
        if let Some(before) = self.before.as_ref().filter(|_| self.aside.is_empty()) {
            self.aside = before.lineage();
        }
    }

    /// Whether a person means exactly the point that was shown as the newest. † What is staged above it would be brought up as well.
    fn is_held_to(&self, request: &FailoverRequest) -> bool {
        let shown = self.shown.as_ref().filter(|_| self.stage == Stage::Fencing).map(|shown| shown.point);
        request.force && request.goes_on.is_none() && shown.is_some() && request.point.map(Slot) == shown
    }

    /// Whether the point that a person named was given up before it could be pinned.
    fn has_lost_its_point(&self, receiver: &Receiver, group: &GroupHandle) -> bool {
        let wanted = self.wanted.filter(|_| self.stage == Stage::Fencing);
        wanted.is_some_and(|point| look(receiver, group, Some(point)).is_err_and(|error| error.code == ErrorCode::NotFound))
    }

    fn point(&self) -> Option<Slot> {
        match self.stage {
            Stage::Fencing => self.wanted,
            Stage::Fenced { point } | Stage::Promoted { point } => point,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A step that was done, and cannot be noted.
fn unnoted(error: StateError) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        error.to_string(),
        "see the receiver's state directory; it goes on by itself when that can be written",
    )
}

fn unforgotten(error: StateError) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        error.to_string(),
        "see the receiver's state directory; it goes on until the same is said again",
    )
}

fn is_of_another_point(names: &GroupNames) -> ApiError {
    let message = format!("{names} was failed over already, to another point");
    let what =
        "`farside failover --list` shows it; another point of it can be restored or opened, or brought up with --again --force";
    ApiError::new(ErrorCode::Conflict, message, what)
}

/// Goes on with what was begun, until the receiver stops: each on a thread of its own, for one may wait for its group.
pub(crate) fn start(receiver: Arc<Receiver>) -> std::io::Result<()> {
    thread::Builder::new().name("failover".to_owned()).spawn(move || {
        let mut at_work: BTreeMap<GroupNames, thread::JoinHandle<()>> = BTreeMap::new();
        while !receiver.is_stopping() {
            at_work.retain(|_, thread| !thread.is_finished());
            let mut all: BTreeSet<GroupNames> = lock(&receiver.failovers.all).keys().cloned().collect();
            all.extend(lock(&receiver.failovers.taken_back).keys().cloned());
            for names in all.into_iter().filter(|names| !at_work.contains_key(names)).collect::<Vec<_>>() {
                let (of, receiver) = (names.clone(), Arc::clone(&receiver));
                match thread::Builder::new().name(format!("failover:{}", names.group)).spawn(move || work(&receiver, &of)) {
                    Ok(thread) => drop(at_work.insert(names, thread)),
                    Err(error) => tracing::error!(group = %names, %error, "its failover does not go on yet"),
                }
            }
            thread::sleep(LOOK);
        }
    })?;
    Ok(())
}

/// Goes on with one, until it is over.
fn work(receiver: &Receiver, names: &GroupNames) {
    let failovers = &receiver.failovers;
    for turns in 0_u64.. {
        if receiver.is_stopping() || !(failovers.stands(names) || failovers.taken_back(names).is_some()) {
            return;
        }
        // What stands against it is said by itself, or is in nobody's way.
        let _ = match failovers.stands(names) {
            true => failovers.go_on(receiver, names),
            false if turns % SELDOM == 0 => failovers.look_for_newer(receiver, names),
            false => Ok(()),
        };
        if turns % SELDOM == 0
            && failovers.stands(names)
            && let Ok(group) = handle(receiver, names)
            && let Err(error) = receiver.runtime.block_on(rollback::goes_with_new_claims(&group))
        {
            tracing::debug!(group = %names, error = %error.message, "what is pinned for a rollback stays where it is for now");
        }
        thread::sleep(LOOK);
    }
}

impl Failovers {
    /// Takes up those of an earlier process. To be called before any group is opened: what they are about to bring up is kept from here on.
    pub(crate) fn load(&self, state_dir: &StateDir) {
        let (mut found, broken) = state_dir.failovers();
        for one in &mut found {
            one.inherits();
            one.is_taken_up = true;
        }
        *lock(&self.known) = state_dir.known().into_iter().map(|one| (one.names(), one)).collect();
        let (taken_back, unread) = state_dir.taken_back();
        unread.iter().for_each(|(_, words)| tracing::error!(%words, "what a failover left aside cannot be read"));
        *lock(&self.unread) = unread.into_iter().collect();
        *lock(&self.taken_back) = taken_back.into_iter().map(|one| (one.names(), one)).collect();
        broken.iter().for_each(|(_, words)| tracing::error!(%words, "a failover cannot be taken up"));
        *lock(&self.broken) = broken.into_iter().collect();
        *lock(&self.all) = found.into_iter().map(|one| (one.names(), one)).collect();
    }

    /// Begins one, or goes on with the one that was begun; with `plan`, says what would happen. Blocking.
    pub(crate) fn begin(&self, receiver: &Receiver, request: &FailoverRequest) -> Result<FailoverStatus, ApiError> {
        let group = find_group(receiver, &request.group)?;
        let names = group.names().clone();
        if let Some(cut) = &request.cut {
            is_of_cut(receiver, &group, request.point, cut)?;
        }
        let beginning = self.beginning.of(&names);
        let _one = if request.plan { None } else { Some(turn(&beginning, &names, ANSWER)?) };
        let known = lock(&self.all).get(&names).cloned();
        let stand_in = stand_in::wanted(receiver, &names, request)?;
        if request.abort {
            return self.abort(receiver, &names);
        }
        if let Some(commit) = request.commit {
            return self.commit(receiver, &group, commit, request);
        }
        // † Whoever watches one says the same again and again: what another person gave up meanwhile must not begin anew by that.
        if let Some(generation) = request.goes_on
            && known.as_ref().is_none_or(|known| known.generation < generation)
        {
            let message =
                format!("the failover of {names} is not there any more: it was given up, or the history was taken back");
            return Err(ApiError::new(ErrorCode::Conflict, message, "`farside failover --list` shows what is there"));
        }
        let again = request.again && request.goes_on.is_none();
        if let Some(known) = known.as_ref().filter(|known| !again || !matches!(known.stage, Stage::Promoted { .. })) {
            if known.is_held_to(request)
                || (request.goes_on.is_none()
                    && request.point.map(Slot) != known.wanted
                    && known.has_lost_its_point(receiver, &group))
            {
                return self.with_another_point(receiver, &group, (known, stand_in), request);
            }
            if request.point.map(Slot).is_some_and(|point| known.point() != Some(point)) {
                return Err(is_of_another_point(&names));
            }
            if again {
                let message = format!("the failover of {names} is not through yet");
                return Err(ApiError::new(ErrorCode::Conflict, message, "`farside failover --list` shows how far it is"));
            }
            // † Whoever asks once more means what is there now, and would be told of a copy that is weeks old.
            let is_through = matches!(known.stage, Stage::Promoted { .. });
            let newest = if is_through { look(receiver, &group, None)?.newest.map(|newest| newest.id) } else { None };
            if let (Stage::Promoted { point: Some(point) }, None, Some(newest)) = (known.stage, &stand_in, newest)
                && Some(Slot(newest.slot)) > known.newest_before()
                // † Nobody else of a cohort is fenced for a cut that this one has left behind.
                && (!request.plan || request.cut.is_some())
            {
                let message = format!(
                    "{names} was failed over to point {point} already (generation {}), and points up to {newest} were published since",
                    known.generation
                );
                let what =
                    "--again fails it over once more, to what was published since; `farside failover --list` shows what is where";
                return Err(ApiError::new(ErrorCode::Conflict, message, what));
            }
            // † Who only watches changes nothing of it: it may be another one than he began, which nobody has forced.
            if !request.plan && request.goes_on.is_none() {
                if let Some(stand_in) = stand_in.filter(|host| known.stand_in.as_ref() != Some(host)) {
                    self.let_stand_in(receiver, &group, (known, stand_in), request.force)?;
                }
                // What is shown of it by now is what is forced.
                let shown = || look_for(receiver, &group, known.brings_up(true));
                let is_degraded = || shown().is_ok_and(|look| look.point.is_some_and(|point| point.degraded));
                let takes_degraded = request.force && known.stage == Stage::Fencing && is_degraded();
                let is_more = (request.force && !known.forced) || (request.lose_staged && !known.lose_staged);
                if is_more || (takes_degraded && known.takes_degraded != Some(true)) {
                    self.change(receiver, &names, |known| {
                        known.forced |= request.force;
                        known.lose_staged |= request.lose_staged;
                        if takes_degraded {
                            known.takes_degraded = Some(true);
                        }
                    })?;
                }
            }
            if !request.plan {
                self.go_on(receiver, &names)?;
            }
            return self.show_one(receiver, &names);
        }
        // Nobody knows of it while one stands that followed it.
        let over = self.taken_back(&names).filter(|_| known.is_none());
        let look = look(receiver, &group, request.point.map(Slot))?;
        let Chosen { wanted, takes_degraded, shown } = Chosen::of(request, &look);
        let aside = known.as_ref().map(Failover::lineage).or(over.as_ref().map(TakenBack::lineage)).unwrap_or_default();
        let former: Vec<Former> =
            known.iter().flat_map(Failover::with_former).chain(over.as_ref().and_then(TakenBack::brought_up)).collect();
        // † Above all that were here, too: a store that was put back has a lower one, and what was handed over under it would be taken for this one's.
        let highest = former.iter().map(|former| former.generation).fold(look.generation.0, u64::max);
        let failover = Failover {
            version: VERSION,
            source: names.source.clone(),
            group: names.group.clone(),
            generation: highest.checked_add(1).ok_or_else(|| no_generation(&names))?,
            raised_from: None,
            wanted,
            forced: request.force,
            stage: Stage::Fencing,
            claimed: false,
            came_back: None,
            stand_in,
            lose_staged: request.lose_staged,
            former,
            former_is_over: known.is_none(),
            parted: None,
            source_parted: known.as_ref().and_then(|known| known.source_parted.or(known.parted)),
            aside: look.lost.iter().flat_map(Lost::aside).fold(aside, |all, one| all.and(Some(one))),
            committed: known.as_ref().is_some_and(|known| known.committed),
            settled: false,
            takes_degraded,
            shown,
            before: known.clone().map(Box::new),
            is_taken_up: false,
        };
        let planned = FailoverStatus { stage: FailoverStage::Planned, ..show(receiver, &group, &failover, &look) };
        // † Nobody else of a cohort is fenced for a plan that would be refused.
        self.refuse_unread(&receiver.state_dir, &names, request, &look)?;
        if request.plan {
            return Ok(planned);
        }
        refuse(&names, request, &planned, (&look, over.as_ref()))?;
        let mut failover = failover;
        if known.is_none() {
            let formers = formers_by_pins(receiver, &group)?;
            let is_broken = self.why_broken(&receiver.state_dir, &names).is_some();
            if is_broken {
                // † Given up, this one would leave nothing that says how that one stands.
                failover.former_is_over = false;
            }
            // † What was published since that one is not of the source.
            if is_broken || look.lost.is_some() {
                failover.source_parted = formers.iter().map(|former| former.point).min();
            }
            failover.former.extend(formers);
        }
        let generation = look.generation;
        let working = self.working.of(&names);
        let one = turn(&working, &names, ANSWER)?;
        // † Whoever was at it would write over the new one what he had begun with.
        let same = self::look(receiver, &group, None)?.generation == generation;
        let is_as_it_was = self.taken_back(&names).filter(|_| known.is_none()) == over;
        if !same || !is_as_it_was || lock(&self.all).get(&names) != known.as_ref() {
            let message = format!("the failover of {names} has gone on meanwhile");
            return Err(ApiError::new(
                ErrorCode::Conflict,
                message,
                "`farside failover --list` shows how it is; then say the same again",
            ));
        }
        self.keep(&receiver.state_dir, failover).map_err(unsaved)?;
        drop(one);
        self.go_on(receiver, &names)?;
        self.show_one(receiver, &names)
    }

    /// Goes on with another point, or the newest, where the one that was wanted is gone: nobody could bring it up any more.
    fn with_another_point(
        &self,
        receiver: &Receiver,
        group: &GroupHandle,
        (known, stand_in): (&Failover, Option<Name>),
        request: &FailoverRequest,
    ) -> Result<FailoverStatus, ApiError> {
        let look = look(receiver, group, request.point.map(Slot))?;
        let chosen = Chosen::of(request, &look);
        let mut changed = known.clone();
        changed.choose(chosen.clone(), stand_in.clone(), request);
        // Whoever is fenced already may be alive.
        let planned = show(receiver, group, &changed, &look);
        let connected_from = planned.connected_from.clone().filter(|_| !known.claimed);
        let planned = FailoverStatus { stage: FailoverStage::Planned, connected_from, ..planned };
        let names = known.names();
        self.refuse_unread(&receiver.state_dir, &names, request, &look)?;
        if request.plan {
            return Ok(planned);
        }
        refuse(&names, request, &planned, (&look, None))?;
        let mut is_chosen = false;
        self.change(receiver, &names, |known| {
            is_chosen = known.stage == Stage::Fencing && known.claims_from() == changed.claims_from();
            if is_chosen {
                known.choose(chosen, stand_in, request);
            }
        })?;
        // It brought up what it was told before.
        if !is_chosen {
            return Err(is_of_another_point(&names));
        }
        self.go_on(receiver, &names)?;
        self.show_one(receiver, &names)
    }

    /// Gives one up that has fenced nobody.
    fn abort(&self, receiver: &Receiver, names: &GroupNames) -> Result<FailoverStatus, ApiError> {
        let working = self.working.of(names);
        let _one = turn(&working, names, ANSWER)?;
        let gone = || ApiError::not_found("failover", &names.to_string(), "`farside failover --list` lists them");
        let known = lock(&self.all).get(names).cloned().ok_or_else(gone)?;
        let group = handle(receiver, names)?;
        // † Of a claim whose answer was lost nobody knows, and it would fence a source that is alive, after all was given up.
        receiver.runtime.block_on(answered(&group, |reply| Mail::Settle { reply }))?;
        let look = look(receiver, &group, None)?;
        // † Without the one before it, which an earlier build did not keep, nothing would stand.
        let over = self.taken_back(names).and_then(|over| over.brought_up());
        let is_lost = |former: &Former| !known.former_is_over && Some(*former) != over;
        let has_lost_another = known.before.is_none() && known.former.iter().any(is_lost);
        let may_have_fenced = known.stage != Stage::Fencing || known.claimed || known.may_have_claimed(look.generation);
        if (may_have_fenced || has_lost_another) && !look.left_behind {
            let message = format!("{names} was failed over: its source is fenced, or may be (generation {})", known.generation);
            let what = "the way back is `farside failback` on its host, or `farside rollback` there";
            return Err(ApiError::new(ErrorCode::Conflict, message, what));
        }
        match &known.before {
            Some(before) => self.put_back(&receiver.state_dir, Failover::clone(before)).map_err(unforgotten)?,
            None => self.forget(&receiver.state_dir, names).map_err(unforgotten)?,
        }
        lock(&self.troubles).remove(names);
        tracing::warn!(group = %names, "a failover was given up before it fenced anybody");
        Ok(FailoverStatus { stage: FailoverStage::Over, ..shown_alone(&known) })
    }

    /// A person says that it is for good, or takes that back.
    fn commit(
        &self,
        receiver: &Receiver,
        group: &GroupHandle,
        commit: bool,
        request: &FailoverRequest,
    ) -> Result<FailoverStatus, ApiError> {
        let names = group.names();
        let status = self.show_one(receiver, names)?;
        let known = lock(&self.all).get(names).cloned();
        let is_promoted = known.as_ref().is_some_and(|known| matches!(known.stage, Stage::Promoted { .. }));
        let refused = |message: String, what: &str| Err(ApiError::new(ErrorCode::Refused, message, what));
        if commit && (!is_promoted || status.stage == FailoverStage::Over) {
            let message = format!("the failover of {names} is not through, or its history was taken back");
            return Err(ApiError::new(ErrorCode::Conflict, message, "`farside failover --list` shows how far it is"));
        }
        if commit && known.as_ref().is_some_and(|known| known.settled) {
            return Ok(status);
        }
        let taken_back = known.as_ref().map_or(0, |known| known.generation);
        if commit && look(receiver, group, None)?.generation.0 > taken_back {
            let message = format!("some volumes of {names} were taken back by their source, and its stand-in publishes no more");
            let what = "on the source: farside rollback, which takes back the others, too; or farside failback --finish";
            return Err(ApiError::new(ErrorCode::Conflict, message, what));
        }
        if commit && !request.force {
            let Some(stand_in) = &status.stand_in else {
                let message = format!("nobody publishes {names} in place of its source");
                return refused(message, "farside failover --stand-in HOST first; or --force, if it is to be replicated no more");
            };
            let parted = known.as_ref().and_then(Failover::newest_before).map(|parted| parted.0);
            if status.newest.as_ref().map(|newest| newest.id.slot) <= parted {
                let message = format!("{stand_in} has published nothing of {names} yet: its source may be the only one that can");
                return refused(message, "wait for its first point (`farside point list`), or say --force");
            }
        }
        if request.plan {
            return Ok(status);
        }
        self.change(receiver, names, |known| {
            (known.committed, known.settled) = (commit, commit);
            if let Some(before) = &mut known.before {
                (before.committed, before.settled) = (commit, commit);
            }
        })?;
        let is_its = |(known, point): &(Failover, &farside_control::source::LastPoint)| {
            known.settled && known.point() == Some(Slot(point.id.slot))
        };
        if !commit && let Some((known, point)) = known.zip(status.point.as_ref()).filter(is_its) {
            let change = PointChange::OwnPin { reason: known.pin_reason() };
            receiver.runtime.block_on(group.change(point.id, change))?;
        }
        // Whoever is connected and may not be is told; what is kept for the way back is kept no more.
        let _ = receiver.runtime.block_on(group.tell(Mail::StandIn));
        if commit {
            self.go_on(receiver, names)?;
        }
        tracing::warn!(group = %names, commit, "whether a failover is for good was changed");
        self.show_one(receiver, names)
    }

    fn change(&self, receiver: &Receiver, names: &GroupNames, change: impl FnOnce(&mut Failover)) -> Result<(), ApiError> {
        let working = self.working.of(names);
        let _one = turn(&working, names, ANSWER)?;
        let Some(known) = lock(&self.all).get(names).cloned() else { return Ok(()) };
        let mut changed = known.clone();
        change(&mut changed);
        if changed != known { self.keep(&receiver.state_dir, changed).map_err(unsaved) } else { Ok(()) }
    }

    /// Makes a step durable. What a group's thread has noted meanwhile stays.
    fn keep(&self, state_dir: &StateDir, mut changed: Failover) -> Result<(), StateError> {
        let _one = lock(&self.writing);
        let names = changed.names();
        let before = lock(&self.all).get(&names).cloned();
        // † Not of another one, which this one follows.
        let same = before.as_ref().filter(|before| before.stage == Stage::Fencing);
        changed.came_back = changed.came_back.or_else(|| same.and_then(|before| before.came_back.clone()));
        state_dir.remember_failover(&changed, before.as_ref())?;
        lock(&self.broken).remove(&state_dir.failover_path(&names));
        lock(&self.all).insert(names, changed);
        Ok(())
    }

    /// The one before it stands.
    fn put_back(&self, state_dir: &StateDir, before: Failover) -> Result<(), StateError> {
        let _one = lock(&self.writing);
        let names = before.names();
        let given_up = lock(&self.all).get(&names).cloned();
        state_dir.remember_failover(&before, given_up.as_ref())?;
        lock(&self.all).insert(names, before);
        Ok(())
    }

    /// It is over. † Not while a group's thread writes something of it, which would be there at the next start.
    fn forget(&self, state_dir: &StateDir, names: &GroupNames) -> Result<(), StateError> {
        let _one = lock(&self.writing);
        state_dir.forget_failover(names)?;
        lock(&self.all).remove(names);
        Ok(())
    }

    /// That host is connected: if nobody is fenced yet, nobody is without a person's word. Called by the group's thread, which is the one that fences.
    pub(crate) fn comes_back(&self, state_dir: &StateDir, names: &GroupNames, host: &Name) {
        let is_new = |one: &&mut Failover| one.stage == Stage::Fencing && !one.claimed && one.came_back.is_none();
        if lock(&self.all).get_mut(names).filter(is_new).is_none() {
            return;
        }
        let _one = lock(&self.writing);
        // It holds at once, durable or not.
        let noted = lock(&self.all).get_mut(names).filter(is_new).map(|one| {
            one.came_back = Some(host.clone());
            one.clone()
        });
        let Some(noted) = noted else { return };
        tracing::warn!(group = %names, %host, "it is back, and its failover waits for a person's word");
        if let Err(error) = state_dir.remember_failover(&noted, Some(&noted)) {
            tracing::error!(group = %names, %host, %error, "that it is back cannot be kept");
        }
    }

    /// Who was connected since a failover was begun that has fenced nobody.
    pub(crate) fn came_back(&self, names: &GroupNames) -> Option<Name> {
        lock(&self.all).get(names).and_then(|one| one.came_back.clone())
    }

    /// Whether a group was failed over, and nobody has taken its history back.
    pub(crate) fn stands(&self, names: &GroupNames) -> bool {
        lock(&self.all).contains_key(names)
    }

    /// The point that a group is about to be failed over to, which is not pinned yet; or the newest that was shown, until it is known which.
    pub(crate) fn wanted(&self, names: &GroupNames) -> Option<Slot> {
        let shown = |one: &Failover| one.shown.as_ref().filter(|_| one.stage == Stage::Fencing).map(|shown| shown.point);
        let over = || self.taken_back(names)?.brought_up().map(|former| former.point);
        let all = lock(&self.all);
        let Some(one) = all.get(names) else {
            drop(all);
            return over();
        };
        Some(one).filter(|one| !one.settled).and_then(|one| one.point().or_else(|| shown(one)))
    }

    /// Whether a group was failed over for good, and who has it now.
    pub(crate) fn committed(&self, names: &GroupNames) -> Option<String> {
        let all = lock(&self.all);
        let one = all.get(names).filter(|one| one.committed)?;
        Some(one.stand_in.as_ref().map_or_else(|| "a copy of it".to_owned(), Name::to_string))
    }

    /// Whether a host may publish in place of the source of a group that was failed over. Not before that one is fenced.
    /// `highest`: of the ledger, where that is known.
    pub(crate) fn stands_in(&self, names: &GroupNames, host: &Name, highest: Option<Generation>) -> bool {
        let is_it = |one: &Failover| one.stage != Stage::Fencing && one.stand_in.as_ref() == Some(host);
        lock(&self.all).get(names).is_some_and(|one| is_it(one.standing(highest)))
    }

    /// Whether there was a failover, and how far it is.
    pub(crate) fn how_it_stands(&self, names: &GroupNames) -> Option<Standing> {
        let all = lock(&self.all);
        let is_begun = all.get(names)?.standing(None).stage == Stage::Fencing;
        Some(if is_begun { Standing::Fencing } else { Standing::Stands })
    }

    /// Who does, if there was a failover.
    pub(crate) fn stand_in_of(&self, names: &GroupNames) -> Option<Option<Name>> {
        lock(&self.all).get(names).map(|one| one.standing(None).stand_in.clone())
    }

    /// The generation of the failover that stands, and the newest point from before it. `highest`: of the ledger, in which its claims may be though that
    /// is not noted.
    pub(crate) fn promotion(&self, names: &GroupNames, highest: Generation) -> Option<(Generation, Option<Slot>)> {
        let of = |one: &Failover| (Generation(one.generation), one.newest_before());
        lock(&self.all).get(names).map(|one| of(one.standing(Some(highest))))
    }

    /// Which points are the history by the failover that stands, or that is over, and those before it. `highest`: of the ledger.
    pub(crate) fn lineage(&self, names: &GroupNames, highest: Generation) -> Lineage {
        let standing = lock(&self.all).get(names).map(|one| one.standing(Some(highest)).lineage());
        standing.or_else(|| self.taken_back(names).map(|over| over.lineage())).unwrap_or_default()
    }

    /// Whether the source is fenced by the failover that stands, and has taken nothing back since. `highest`: of the ledger.
    pub(crate) fn has_fenced(&self, names: &GroupNames, highest: Generation) -> bool {
        let all = lock(&self.all);
        let standing = all.get(names).map(|one| one.standing(Some(highest)));
        standing.is_some_and(|one| (one.stage != Stage::Fencing || one.claimed) && highest.0 <= one.generation)
    }

    /// Up to which point the disks of a host that was fenced and the history are one, at most.
    pub(crate) fn parted(&self, names: &GroupNames, host: &Name) -> Option<Slot> {
        let all = lock(&self.all);
        let one = all.get(names)?.standing(None);
        let of_source = one.source_parted.filter(|_| *host == names.source);
        of_source.or(one.parted).or_else(|| one.point())
    }

    /// As far as it goes; what stands against more is said.
    fn go_on(&self, receiver: &Receiver, names: &GroupNames) -> Result<(), ApiError> {
        let done = self.steps(receiver, names);
        let mut troubles = lock(&self.troubles);
        match done.as_ref().map_or_else(|error| Some(error.message.clone()), Clone::clone) {
            None => drop(troubles.remove(names)),
            Some(why) => {
                if troubles.insert(names.clone(), why.clone()).as_ref() != Some(&why) {
                    tracing::warn!(group = %names, %why, "a failover cannot go on yet");
                }
            }
        }
        done.map(drop)
    }

    /// One after the other, each durable before the next. Says for what it waits, if time is all that it needs.
    fn steps(&self, receiver: &Receiver, names: &GroupNames) -> Result<Option<String>, ApiError> {
        let working = self.working.of(names);
        let _one = match turn(&working, names, ANSWER) {
            Ok(turn) => turn,
            // Whoever is at it goes on.
            Err(late) => return Ok(Some(late.message)),
        };
        loop {
            let known = lock(&self.all).get(names).cloned();
            let Some(mut failover) = known else { return Ok(None) };
            let group = handle(receiver, names)?;
            match failover.stage {
                Stage::Fencing if !failover.claimed => {
                    let fence = Fence {
                        generation: Generation(failover.generation),
                        forced: failover.forced,
                        lose_staged: failover.lose_staged,
                        point: failover.wanted,
                    };
                    match receiver.runtime.block_on(answered(&group, |reply| Mail::Fence { fence, reply }))? {
                        // † The source may have taken its history back under that one; or the claims are our own.
                        Fenced::Above(generation) => failover.raise(generation),
                        Fenced::Done => {
                            (failover.claimed, failover.before) = (true, None);
                            // † It holds at once, durable or not: asked again, a group fences once more, above itself.
                            if let Some(known) = lock(&self.all).get_mut(names) {
                                (known.claimed, known.before) = (true, None);
                            }
                            // Who stood in may have been let in at that very moment.
                            let _ = receiver.runtime.block_on(group.tell(Mail::StandIn));
                        }
                        Fenced::Waits(Waits::Mail) => continue,
                        Fenced::Waits(Waits::Uploads) => {
                            return Ok(Some(format!(
                                "what {names} has staged is on its way into the bucket: after that its source is fenced, if it has not come back by then"
                            )));
                        }
                        Fenced::Waits(Waits::Silence(_)) => {
                            return Ok(Some(format!(
                                "{names} was opened, or its connections were ended, less than {} s ago (`fence_after` in receiver.toml): if its source is alive it \
                                 may still come back; after that it is fenced by itself, or at once with --force",
                                receiver.config().fence_after.as_secs()
                            )));
                        }
                    }
                }
                Stage::Fencing => {
                    // † A pin that a note without the claims does not know of is not of this one.
                    self.keep(&receiver.state_dir, failover.clone()).map_err(unnoted)?;
                    // Now none can be added.
                    let newest = look(receiver, &group, None)?;
                    // † What was staged until now may be degraded, and nobody has seen it: also if it was forced for another reason.
                    let wanted = failover.brings_up(failover.takes_degraded.unwrap_or(failover.forced));
                    let wanted = look_for(receiver, &group, wanted);
                    // Where there is nothing to bring up, nothing stands in the way of whoever took it back.
                    if wanted.as_ref().is_err_and(|error| error.code == ErrorCode::NotFound) && failover.is_taken_back(&newest) {
                        failover.stage = Stage::Promoted { point: None };
                        self.keep(&receiver.state_dir, failover).map_err(unnoted)?;
                        continue;
                    }
                    let point = wanted?.point;
                    failover.parted = newest.newest.map(|newest| Slot(newest.id.slot));
                    if let Some(point) = &point {
                        let change = PointChange::OwnPin { reason: failover.pin_reason() };
                        receiver.runtime.block_on(group.change(point.shown.id, change))?;
                    }
                    failover.stage = Stage::Fenced { point: point.map(|point| point.slot) };
                }
                Stage::Fenced { point } => {
                    let found = match point.map(|point| look(receiver, &group, Some(point))) {
                        // An older store was put back. There is no other way on: whoever wants another point says `--again`.
                        Some(Err(error)) if error.code == ErrorCode::NotFound => {
                            tracing::error!(group = %names, %error, "the point of a failover is gone: no follower is brought to it");
                            None
                        }
                        look => look.transpose()?.and_then(|look| look.point),
                    };
                    if let (Some(point), Some(found)) = (point, found) {
                        let members: Vec<String> = found.members.into_iter().map(|(name, _)| name).collect();
                        receiver.followers.promote(receiver, names, (point, &members), failover.generation).map_err(unnoted)?;
                    }
                    // This one has what that left aside, and outranks it while it stands; at its end it is tried again.
                    if let Err(error) = self.forget_taken_back(&receiver.state_dir, names) {
                        tracing::error!(group = %names, %error, "the note of an earlier failover stays");
                    }
                    failover.stage = Stage::Promoted { point };
                }
                Stage::Promoted { .. } if !failover.former.is_empty() => {
                    for former in &failover.former {
                        let known = look(receiver, &group, Some(former.point));
                        if known.as_ref().is_err_and(|error| error.code != ErrorCode::NotFound) {
                            known?;
                        } else if let Ok(PromotionLook { point: Some(point), .. }) = known {
                            let change = PointChange::Unpin { only: former.pin_reason() };
                            receiver.runtime.block_on(group.change(point.shown.id, change))?;
                        }
                    }
                    failover.former.clear();
                }
                Stage::Promoted { point } => {
                    // † Only what is not there is looked past: one that does not answer in time has what it had.
                    let look = match point.map(|point| look(receiver, &group, Some(point))) {
                        Some(Err(error)) if error.code != ErrorCode::NotFound => return Err(error),
                        Some(Ok(look)) => look,
                        _ => look(receiver, &group, None)?,
                    };
                    if !failover.is_taken_back(&look) {
                        // Withdrawn once, and then there is nothing to withdraw.
                        if let Some(point) = look.point.filter(|_| failover.settled && point.is_some()) {
                            let change = PointChange::Unpin { only: failover.pin_reason() };
                            receiver.runtime.block_on(group.change(point.shown.id, change))?;
                        }
                        return Ok(None);
                    }
                    self.end_taken_back(receiver, &failover, &look)?;
                    return Ok(None);
                }
            }
            self.keep(&receiver.state_dir, failover).map_err(unnoted)?;
        }
    }

    /// All of them.
    pub(crate) fn show(&self, receiver: &Receiver) -> Vec<FailoverStatus> {
        let all: Vec<GroupNames> = lock(&self.all).keys().cloned().collect();
        // Side by side: groups whose store does not answer take as long as one.
        let of_some = |some: &[GroupNames]| {
            thread::scope(|scope| {
                let one = |names| self.show_one(receiver, names).ok();
                let ask = |names| (names, thread::Builder::new().spawn_scoped(scope, move || one(names)));
                let asked: Vec<_> = some.iter().map(ask).collect();
                let shown = asked.into_iter().map(|(names, asked)| match asked {
                    Ok(thread) => thread.join().ok().flatten(),
                    Err(_) => one(names),
                });
                shown.flatten().collect::<Vec<_>>()
            })
        };
        all.chunks(SHOWN_AT_ONCE).flat_map(of_some).collect()
    }

    fn show_one(&self, receiver: &Receiver, names: &GroupNames) -> Result<FailoverStatus, ApiError> {
        let gone = || ApiError::not_found("failover", &names.to_string(), "`farside failover --list` lists them");
        let failover = lock(&self.all).get(names).cloned().ok_or_else(gone)?;
        let looked = handle(receiver, names).and_then(|group| {
            let looked = look_for(receiver, &group, failover.brings_up(true));
            // Of one that is for good the point goes as policy says.
            let is_gone = looked.as_ref().is_err_and(|error| failover.settled && error.code == ErrorCode::NotFound);
            Ok((if is_gone { look(receiver, &group, None)? } else { looked? }, group))
        });
        let trouble = lock(&self.troubles).get(names).cloned();
        match looked {
            Ok((look, group)) => Ok(FailoverStatus { why: trouble, ..show(receiver, &group, &failover, &look) }),
            // What is known of it is shown all the same: nobody may think that there is none.
            Err(error) => Ok(FailoverStatus { why: trouble.or(Some(error.message)), ..shown_alone(&failover) }),
        }
    }

    /// What people should know.
    pub(crate) fn reasons(&self) -> Vec<Reason> {
        let said = lock(&self.all);
        let troubles = lock(&self.troubles).clone();
        let of_all = said.values().filter(|failover| !failover.settled || troubles.contains_key(&failover.names())).map(|failover| {
            let names = failover.names();
            let message = match (failover.stage, troubles.get(&names)) {
                (_, Some(why)) => format!("the failover of {names} does not go on: {why}"),
                (Stage::Fencing, None) => format!("{names} is being failed over: its source is not fenced yet"),
                _ => format!(
                    "{names} was failed over (generation {}): what its source has since is not taken",
                    failover.generation
                ),
            };
            let what = format!(
                "`farside failover --list`; to take {names} back, on its host: `farside failback {0}`, or `farside rollback {0}` to go on with its disks \
                 as they are; if it is not to come back: `farside commit {names}`",
                names.group
            );
            Reason::new(Severity::Warning, Code::FailedOver, message, what)
        });
        let broken = lock(&self.broken);
        let of_broken = broken.values().map(|words| {
            let what = "nothing goes on with that failover: put the file back (or the version that wrote it) and restart farside-receiver; until then a failover of that group must be forced, to a point that is named";
            Reason::new(Severity::Error, Code::FailedOver, words, what)
        });
        of_all.chain(of_broken).chain(self.reasons_of_taken_back()).collect()
    }
}

/// Whoever brings up a point as that of a cut means no other one.
fn is_of_cut(receiver: &Receiver, group: &GroupHandle, point: Option<u64>, cut: &str) -> Result<(), ApiError> {
    let names = group.names();
    let filter = PointFilter { label: Some(cut.to_owned()), ..PointFilter::default() };
    let ask = PointsAsk { volume: None, filter, below: point.map(|slot| Slot(slot.saturating_add(1))), limit: 1 };
    let found = receiver.runtime.block_on(group.points(ask));
    let found = found.map_err(|why| ApiError::new(ErrorCode::Unavailable, format!("{names}: {why}"), "see `farside status`"))?;
    let shown = found.points.first().map(|info| crate::status::point(names, info));
    match shown.filter(|shown| Some(shown.id.slot) == point && shown.cut.as_ref().is_some_and(|of| of.id == cut)) {
        Some(_) => Ok(()),
        None => {
            let point = point.map_or_else(|| "none".to_owned(), |slot| slot.to_string());
            let message = format!("point {point} of {names} is not of cut {cut}, or is there no more");
            Err(ApiError::new(
                ErrorCode::NotFound,
                message,
                "`farside cohort cuts NAME` lists the cuts with the point of each group",
            ))
        }
    }
}

/// What a person must force.
fn refuse(
    names: &GroupNames,
    request: &FailoverRequest,
    planned: &FailoverStatus,
    (look, over): (&PromotionLook, Option<&TakenBack>),
) -> Result<(), ApiError> {
    let Some(point) = &look.point else {
        let message = format!("{names} has no point");
        if let Some(newest) = &look.newest {
            let what = format!("--point {} --force brings up the newest of them", newest.id.slot);
            return Err(ApiError::new(ErrorCode::Refused, format!("all points of {names} were left aside by a failover"), what));
        }
        return Err(ApiError::new(ErrorCode::Conflict, message, "there is nothing to fail over to"));
    };
    let refused = |message: String, what: &str| Err(ApiError::new(ErrorCode::Refused, message, what));
    if request.force {
        return Ok(());
    }
    if let Some(from) = &planned.connected_from {
        let alive = planned.fences.as_deref().unwrap_or(names.source.as_str());
        let message = format!("{alive} is connected, from {from}: it is alive, or was seconds ago");
        return refused(message, "stop it first, or wait until its silence is noticed; if it must not go on, say --force");
    }
    if request.cut.is_none()
        && let Some(newest) = look.newest.as_ref().filter(|newest| **newest != point.shown)
    {
        let over = over.filter(|_| request.point.is_none());
        if let Some(which) = over.and_then(|over| over.says_which(point.slot.0, newest.id.slot)) {
            return Err(which);
        }
        let message = format!("point {} is not the newest of {names}", point.shown.id);
        return refused(message, "say --force if an older one is what you want: newer ones are kept, and not brought up");
    }
    // † Also of a cut of a cohort: the newest may be of what ransomware wrote.
    if point.is_aside {
        let message = format!("point {} was left aside by a failover of {names} to an older one", point.shown.id);
        return refused(
            message,
            "say --force if it is what you want after all; without --point, or with an older --cut, it is not taken",
        );
    }
    // † Whoever is told that nothing is lost looks no further.
    if let Some(why) = &point.damaged {
        let message = format!("point {} may have what was found damaged: {why}", point.shown.id);
        let what = "`farside point verify` says of it, or of an older one, whether it is sound, and lets it be taken then; or say --force";
        return refused(message, what);
    }
    if point.degraded {
        let message = format!("the source could not read all of point {}", point.shown.id);
        return refused(message, "take an older one that is not degraded, or say --force");
    }
    Ok(())
}

fn find_group(receiver: &Receiver, address: &str) -> Result<GroupHandle, ApiError> {
    let address: Address = address
        .parse()
        .map_err(|error: farside_control::AddressError| ApiError::new(ErrorCode::BadRequest, error.to_string(), ""))?;
    let is_it = |group: &GroupHandle| address.is_group(group.names().source.as_str(), group.names().group.as_str());
    let mut found: Vec<GroupHandle> = receiver.roster.all().into_iter().filter(is_it).collect();
    match found.len() {
        0 => match receiver.roster.hidden().first() {
            // † It may be there, and whoever is told that it is not looks for it elsewhere.
            Some(why) => Err(ApiError::new(
                ErrorCode::Unavailable,
                format!("`{address}` is not among what can be seen: {why}"),
                "try again",
            )),
            None => Err(ApiError::not_found("group", &address.to_string(), "`farside status` lists what the store holds")),
        },
        1 => Ok(found.remove(0)),
        _ => {
            let all: Vec<_> = found.iter().map(|group| group.names().to_string()).collect();
            let message = format!("`{address}` may be {}", all.join(", "));
            Err(ApiError::new(ErrorCode::BadRequest, message, "say which: SOURCE/GROUP"))
        }
    }
}

fn handle(receiver: &Receiver, names: &GroupNames) -> Result<GroupHandle, ApiError> {
    let found = receiver.roster.all().into_iter().find(|group| group.names() == names);
    found.ok_or_else(|| ApiError::new(ErrorCode::Unavailable, format!("{names} is not open yet"), "try again"))
}

fn look(receiver: &Receiver, group: &GroupHandle, point: Option<Slot>) -> Result<PromotionLook, ApiError> {
    look_for(receiver, group, point.map_or(Wanted::Newest, Wanted::Point))
}

fn look_for(receiver: &Receiver, group: &GroupHandle, wanted: Wanted) -> Result<PromotionLook, ApiError> {
    receiver.runtime.block_on(look_within(ANSWER, group, wanted))
}

/// A host claimed the last number there is, with an earlier build of the receiver.
fn no_generation(names: &GroupNames) -> ApiError {
    let message =
        format!("{names} cannot be failed over: its ledger is at the last generation there is, and no promotion is above that");
    ApiError::new(ErrorCode::Conflict, message, "restore its newest point elsewhere: `farside restore`")
}

/// Nothing hangs on the answer: whoever waits for it is told that there is none yet.
async fn look_within(limit: Duration, group: &GroupHandle, wanted: Wanted) -> Result<PromotionLook, ApiError> {
    let late = || {
        ApiError::new(
            ErrorCode::Unavailable,
            format!("{} does not answer yet: its store may be slow", group.names()),
            "try again",
        )
    };
    tokio::time::timeout(limit, answered(group, |reply| Mail::PromotionLook { wanted, reply })).await.map_err(|_| late())?
}

/// Waits for the answer as long as it takes.
async fn answered<T>(
    group: &GroupHandle,
    mail: impl FnOnce(oneshot::Sender<Result<T, ApiError>>) -> Mail,
) -> Result<T, ApiError> {
    let gone = || ApiError::new(ErrorCode::Unavailable, "the group was closed meanwhile", "try again");
    let (reply, answer) = oneshot::channel();
    group.tell(mail(reply)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

#[cfg(test)]
mod tests;
