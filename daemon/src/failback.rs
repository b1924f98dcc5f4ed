//! Failback: this host was failed over; its disks are brought to what its stand-in published since, and it takes the history back.
//!
//! ```text
//! asked ──► Held (durable): the group's volumes are served no more ──► rounds: a point is applied ──► at that point ──► the next …
//!                                        │                                                              │
//!   served as it is, fenced ◄── aborted ─┴──────────────────── aborted ◄────────────────────────────────┤ told to finish, and
//!                                                                                                       ▼ nobody may publish more
//!             over ◄── every volume took the history back from that promotion ◄── Returning (durable): served again
//! ```
//!
//! Invariants:
//! - From `Held` to its end nobody but this module opens the disks, across restarts, too, whatever the configuration says of them; what a disk is
//!   while only a part of a point is on it is never served.
//! - `at` is said of disks that nobody else can have written since: they are the very disks that were taken, kept open and locked, and what tells of
//!   writes is as it was. If that is not known, all is compared. It is said of all volumes of the note, or of none, and looked at again before they
//!   are served.
//! - A volume that is served again has no header from before, so that nothing of its old history is trusted, and all of it is compared.
//! - † What the disks hold and no point does is kept before it is overwritten ([`branch`]): the first point that they are brought to is the one that they
//!   went their own way from, and what differs from that is their branch. A point after that overwrites nothing but points.
//! - The history is taken back from the promotion that was shown to a person, and from the point that the disks were brought to: not if there is more,
//!   whatever is forced, but for points of which their source could not read all, and which a person passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farside_blockio::Identity;
use farside_control::failback::{BranchKeeps, FailbackMember, FailbackRequest, FailbackStage, FailbackStatus, FailbackStep};
use farside_control::source::{LastPoint, VolumeState, VolumeStatus};
use farside_control::{ApiError, Code, ErrorCode, Reason, Severity};
use farside_keys::GroupKey;
use farside_region::{Generation, LedgerPosition, Name, RegionSet, Slot};
use farside_replication::failback::{At, Branch, Finish, Kept, Stage, lacks};
use farside_store::FollowTarget as _;
use farside_transport::{Dial, QuicDialer};
use farside_wire::PullPoint;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::backing;
use crate::config::VolumeConfig;
use crate::group::{Ask, TakenBack};
use crate::locked;
use crate::state_dir::{Mark, volume_meta, volume_path};
use crate::supervisor::{Claimed, Daemon};
use branch::{Keeping, Suspects};
use disks::{Disks, Known};
use keys::{LARGER_DISK, fits, fixed_disks, ids_of, names_of, too_small};
use note::{Held, Note, shown};
use pull::{PullError, PulledVolume, Puller, Traffic};
use turns::Turns;

mod branch;
mod cutover;
mod disks;
mod keep;
mod keys;
mod note;
mod pull;
mod rollback;
mod taken_up;
mod turns;
mod waits;

pub(crate) use note::{Asked, disks_of, held_by, stays_hidden, why_unusable};
#[cfg(test)]
pub(crate) use note::{hold, hold_as_it_is};

/// How often it is looked for a newer point, and whether volumes are served again.
const LOOK: Duration = Duration::from_secs(1);
/// And while they are opened.
const SERVED: Duration = Duration::from_millis(100);
/// When what failed is tried again: doubled each time, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// All failbacks of this host, by group.
#[derive(Debug, Default)]
pub(crate) struct Failbacks {
    all: Mutex<BTreeMap<Name, Arc<Failback>>>,
    /// Groups whose notes cannot be read: what they hold is not known.
    unread: Mutex<BTreeSet<Name>>,
    /// Why the last cutover of a group was given up, for whoever asks too late.
    given_up: Mutex<BTreeMap<Name, String>>,
    /// One step at a time, of each group.
    turns: Turns,
}

/// A failback holds the disk of this volume.
#[derive(Debug, thiserror::Error)]
#[error("the failback of group {0} holds its disk: `farside failback --list`")]
pub(crate) struct HeldByFailback(pub(crate) Name);

/// What it shows.
#[derive(Clone, Debug, Default)]
struct View {
    taken: bool,
    point: Option<LastPoint>,
    is_since: bool,
    /// The newest of all points, if it was passed over.
    passed_over: Option<Slot>,
    other: Option<String>,
    /// The point that the disks went their own way from, if something is to be kept.
    over: Option<LastPoint>,
    bytes: BTreeMap<Name, u64>,
    why: Option<String>,
    /// Nothing comes of it before the gateway is there.
    is_without_gateway: bool,
}

#[derive(Debug)]
struct Failback {
    /// Whose history it is.
    source: Name,
    note: Mutex<Note>,
    view: Mutex<View>,
    traffic: Arc<Traffic>,
    told: Notify,
    /// What could not be read of the disks so far.
    suspects: Arc<Suspects>,
    /// The group's, once it was needed.
    key: Arc<tokio::sync::Mutex<Option<GroupKey>>>,
    /// Who has it may write to the disks.
    disks: tokio::sync::Mutex<Disks>,
    /// Volumes are asked to take the history back, or that is given up.
    taking_back: tokio::sync::Mutex<()>,
    /// Those that this process asked, and of which it knows what became of that.
    asked_here: Mutex<BTreeSet<Name>>,
}

impl Failback {
    fn new(source: Name, note: Note) -> Self {
        Self {
            source,
            note: Mutex::new(note),
            view: Mutex::default(),
            traffic: Arc::default(),
            told: Notify::new(),
            suspects: Arc::default(),
            key: Arc::default(),
            disks: tokio::sync::Mutex::default(),
            taking_back: tokio::sync::Mutex::default(),
            asked_here: Mutex::default(),
        }
    }

    fn stage(&self) -> Stage {
        locked(&self.note).course.stage.clone()
    }

    /// Has what pulls stop, and nothing of it go on as long as this is held.
    ///
    /// # Errors
    /// When it does not: nothing of it was changed.
    async fn stop_for_a_moment(&self) -> Result<tokio::sync::MutexGuard<'_, Disks>, ApiError> {
        let group = locked(&self.note).group.to_string();
        turns::interrupted(&self.disks, &self.traffic.interrupt, (&group, turns::PATIENCE)).await
    }

    fn show(&self) -> FailbackStatus {
        let (note, view) = (locked(&self.note).clone(), locked(&self.view).clone());
        let (stage, holds) = match &note.course.stage {
            Stage::HandingOver => (FailbackStage::HandingOver, None),
            Stage::HandedOver { at } => (FailbackStage::HandedOver, at.as_ref().map(shown)),
            Stage::Held { .. } if !view.taken => (FailbackStage::Taking, None),
            Stage::Held { .. } if note.course.branch.is_due() => (FailbackStage::Keeping, None),
            // Also where it was a point when it began, which may be an old one by now.
            Stage::Held { at: Some(at), applying: None } => {
                let (holds, newest) = (shown(at), view.point.as_ref());
                let is_there = newest.is_some_and(|newest| newest.id == holds.id);
                (if is_there { FailbackStage::Following } else { FailbackStage::Pulling }, Some(holds))
            }
            Stage::Held { .. } => (FailbackStage::Pulling, None),
            Stage::Returning { at, .. } => (FailbackStage::Returning, Some(shown(at))),
            Stage::Aborting => (FailbackStage::Aborting, None),
        };
        let member = |held: &Held| FailbackMember {
            volume: held.name.to_string(),
            bytes: view.bytes.get(&held.name).copied().unwrap_or_default(),
            backing: held.backing.display().to_string(),
        };
        let traffic = &self.traffic;
        FailbackStatus {
            group: note.group.to_string(),
            source: Some(self.source.to_string()),
            stage,
            finishing: note.course.finish.is_some(),
            generation: note.generation,
            holds,
            point: view.point.clone(),
            is_since: view.is_since,
            other: view.other.clone(),
            members: note.volumes.iter().map(member).collect(),
            done_regions: traffic.done.load(Ordering::Relaxed),
            total_regions: traffic.total.load(Ordering::Relaxed),
            received_bytes: traffic.received.load(Ordering::Relaxed),
            sent_bytes: traffic.sent.load(Ordering::Relaxed),
            written_bytes: traffic.written.load(Ordering::Relaxed),
            kept_bytes: traffic.kept.load(Ordering::Relaxed),
            branch: match &note.course.branch {
                Branch::Kept { id, .. } => Some(format!("{}/{id}", note.group)),
                _ => None,
            },
            over: match &note.course.branch {
                Branch::Kept { over, .. } => Some(shown(over)),
                Branch::Wanted { .. } => view.over,
                Branch::None | Branch::Discarded => None,
            },
            keeps: match &note.course.branch {
                Branch::None => BranchKeeps::Nothing,
                Branch::Discarded => BranchKeeps::Discarded,
                Branch::Wanted { .. } => BranchKeeps::Wanted,
                Branch::Kept { is: Kept::Whole, .. } => BranchKeeps::Kept,
                Branch::Kept { .. } => BranchKeeps::Keeping,
            },
            why: view.why,
            without_gateway: view.is_without_gateway,
        }
    }
}

impl Failbacks {
    fn of(&self, group: &str) -> Option<Arc<Failback>> {
        locked(&self.all).iter().find(|(name, _)| name.as_str() == group).map(|(_, one)| one.clone())
    }

    /// Whether a failback of which something is known holds the disk of a volume.
    ///
    /// # Errors
    /// When it does.
    fn refuse_held(&self, group: &Name, volume: &Name, backing: &Path) -> Result<(), HeldByFailback> {
        let all = locked(&self.all);
        match all.iter().find(|(_, one)| locked(&one.note).holds((group, volume), Some(backing))) {
            Some((of, _)) => Err(HeldByFailback(of.clone())),
            None => Ok(()),
        }
    }

    /// What people should know.
    pub(crate) fn reasons(&self) -> Vec<Reason> {
        let all: Vec<Arc<Failback>> = locked(&self.all).values().cloned().collect();
        let said = all.iter().map(|one| {
            let (note, why) = (locked(&one.note).clone(), locked(&one.view).why.clone());
            let group = &note.group;
            if matches!(note.course.stage, Stage::HandingOver | Stage::HandedOver { .. }) {
                let (message, what) = match (&note.course.stage, why) {
                    (_, Some(why)) => (
                        format!("group {group} was handed over, and its disks cannot be kept from others: {why}"),
                        format!("mend that; or `farside cutover {group} --abort`, if it was not failed over"),
                    ),
                    (Stage::HandingOver, None) => (
                        format!("group {group} is being handed over: its volumes are served no more, and what is not published yet is"),
                        format!("`farside status` shows how much that is; `farside cutover {group} --abort` serves them again"),
                    ),
                    _ => (
                        format!("group {group} was handed over: all of it is published, and nobody serves it here"),
                        format!(
                            "`farside failover` on the gateway, if that was not said yet; then `farside failback {group}` brings it back; \
                             `farside cutover {group} --abort` serves it here again"
                        ),
                    ),
                };
                return Reason::new(Severity::Warning, Code::FailingBack, message, what);
            }
            let message = match (&note.course.stage, why) {
                (_, Some(why)) => format!("the failback of group {} does not go on: {why}", note.group),
                (Stage::Held { at: Some(_), applying: None }, None) => {
                    format!("group {} is being failed back: its disks follow what its stand-in publishes", note.group)
                }
                (Stage::Held { .. }, None) => {
                    format!("group {} is being failed back: its disks are brought to the newest point", note.group)
                }
                (Stage::Returning { .. }, None) => format!("group {} takes its history back", note.group),
                (_, None) => format!("the volumes of group {} are served again as they are", note.group),
            };
            let what = "`farside failback --list` shows how far it is; --finish ends it, --abort gives it up";
            Reason::new(Severity::Warning, Code::FailingBack, message, what)
        });
        said.collect()
    }
}

fn unkept(error: anyhow::Error) -> ApiError {
    let what = "mend the disk that holds the state, and say the same again; `farside failback --list` shows what holds";
    ApiError::new(ErrorCode::Unavailable, format!("it cannot be kept: {error:#}"), what)
}

fn conflict(message: String, what: &str) -> ApiError {
    ApiError::new(ErrorCode::Conflict, message, what)
}

impl Daemon {
    /// Changes what is kept, and then what holds. One change at a time.
    fn change(&self, failback: &Failback, change: impl FnOnce(&mut Note)) -> anyhow::Result<()> {
        let mut note = locked(&failback.note);
        let mut changed = note.clone();
        change(&mut changed);
        if changed != *note {
            changed.leave_paused(&self.state_path())?;
            changed.keep(&self.state_path())?;
            *note = changed;
        }
        Ok(())
    }

    fn turn(&self, failback: &Failback, stage: Stage) -> anyhow::Result<()> {
        self.change(failback, |note| note.course.stage = stage)
    }

    /// All of them.
    pub(crate) fn show_failbacks(&self) -> Vec<FailbackStatus> {
        let all: Vec<Arc<Failback>> = locked(&self.failbacks.all).values().cloned().collect();
        all.iter().map(|one| one.show()).collect()
    }

    /// Begins one, or tells it what to do.
    ///
    /// # Errors
    /// What stands against it; nothing was changed then.
    pub(crate) async fn failback(self: &Arc<Self>, request: &FailbackRequest) -> Result<FailbackStatus, ApiError> {
        let _one = self.failbacks.turns.of(&request.group, turns::PATIENCE).await?;
        self.refuse_unread(&request.group)?;
        let Some(known) = self.failbacks.of(&request.group) else {
            return match request.step {
                FailbackStep::Begin => self.begin_failback(request).await,
                FailbackStep::Finish | FailbackStep::Abort | FailbackStep::AcceptDisks => {
                    Err(ApiError::not_found("failback of group", &request.group, "`farside failback --list` lists them"))
                }
            };
        };
        let stage = known.stage();
        match (&stage, request.step) {
            (Stage::HandedOver { .. }, FailbackStep::Begin) => {
                return self.begin_from_handed_over(&known, request).await;
            }
            (Stage::HandingOver | Stage::HandedOver { .. }, FailbackStep::Abort) if !request.plan => {
                if matches!(stage, Stage::HandedOver { .. }) && !request.force {
                    self.refuse_failed_over(&known).await?;
                }
                return self.abort_cutover(&known);
            }
            (Stage::HandedOver { .. }, FailbackStep::Finish) | (Stage::HandingOver, _) if !request.plan => {
                return Err(conflict(
                    format!("group {} is handed over, and no failback of it was begun", request.group),
                    "`farside cutover --list` shows how far that is; `farside failback` without --finish begins one",
                ));
            }
            _ => {}
        }
        // Nobody is asked to take anything back between that and the note.
        let mut _taking_back = None;
        if !request.plan && request.step == FailbackStep::Abort {
            _taking_back = Some(known.taking_back.lock().await);
            self.give_up_taking_back(&known).await?;
        }
        if !request.plan {
            match request.step {
                FailbackStep::Begin if request.discard_branch => self.discard_branch(&known).await?,
                FailbackStep::Begin => Ok(()),
                FailbackStep::Finish => {
                    let finish = Some(Finish { force: request.force });
                    let passed_over = locked(&known.view).passed_over.filter(|_| request.force);
                    self.change(&known, |note| {
                        (note.course.finish, note.course.abort) = (finish, false);
                        note.may_pass = passed_over;
                    })
                }
                // What is a part of a point is served by nobody: it is done when they are at one.
                FailbackStep::Abort => {
                    // What is being kept is put back at once; whatever else is under way ends first.
                    let is_due = {
                        let note = locked(&known.note);
                        note.course.branch.is_due() && !note.course.abort
                    };
                    let _disks = if is_due { Some(known.stop_for_a_moment().await?) } else { None };
                    self.change(&known, |note| (note.course.finish, note.course.abort) = (None, true))
                }
                FailbackStep::AcceptDisks => self.accept_disks(&known).await?,
            }
            .map_err(unkept)?;
            locked(&known.view).is_without_gateway = false;
            known.told.notify_one();
        }
        Ok(known.show())
    }

    /// † What volumes were asked to take back, and have not claimed while their line is down, they would claim when it is there again.
    ///
    /// # Errors
    /// When one has claimed, or may have.
    async fn give_up_taking_back(&self, failback: &Failback) -> Result<(), ApiError> {
        let note = locked(&failback.note).clone();
        if !matches!(note.course.stage, Stage::Returning { served: true, .. }) {
            return Ok(());
        }
        for name in note.held().iter().map(|held| &held.name) {
            let generation = Generation(note.generation);
            // † What another process asked for may have been claimed, and this one has not heard the verdict.
            let was_asked = note.was_asked(name) && !locked(&failback.asked_here).contains(name);
            let is_withdrawn = match self.ask(name, |id, reply| Ask::Withdraw(id, (generation, was_asked), reply)).await {
                // It is not served, and asks for nothing: what it has taken back is in its folder.
                Err(_) if !self.is_served(name) => {
                    !was_asked && self.generation_of(&note.group, name).is_none_or(|of| of <= generation)
                }
                answer => answer?,
            };
            if !is_withdrawn {
                let group = &note.group;
                let message = format!(
                    "volume {name} has taken its history back already, or may have: the failback of group {group} is not given up"
                );
                let what = format!(
                    "it goes on when the gateway is there: `farside failback --list`; `farside rollback {group}` takes back what is left, with its \
                     disks as they are"
                );
                return Err(ApiError::new(ErrorCode::Conflict, message, what));
            }
        }
        Ok(())
    }

    /// Under which generation a volume was claimed last, as far as its folder says.
    fn generation_of(&self, group: &Name, name: &Name) -> Option<Generation> {
        volume_meta(&volume_path(&self.state_path(), group, name)).ok().flatten().map(|meta| meta.generation)
    }

    /// A person says that the disks which are there now are meant: all of them are compared.
    async fn accept_disks(&self, failback: &Failback) -> Result<anyhow::Result<()>, ApiError> {
        if locked(&failback.note).course.is_served() {
            let message = "the disks are served already, or about to be, as they are: there is nothing to accept";
            return Err(conflict(message.to_owned(), "`farside failback --list` shows for what it waits"));
        }
        let mut disks = failback.stop_for_a_moment().await?;
        // They are opened anew.
        disks.let_go();
        let held = locked(&failback.note).held();
        let are_same = tokio::task::spawn_blocking(move || held.iter().all(disks::is_same)).await.map_err(ApiError::internal)?;
        Ok(self.change(failback, |note| {
            for held in &mut note.volumes {
                (held.identity, held.seen) = (None, None);
            }
            note.course.accepts(are_same);
        }))
    }

    async fn begin_failback(self: &Arc<Self>, request: &FailbackRequest) -> Result<FailbackStatus, ApiError> {
        let (group, volumes) = self.configured_group(&request.group)?;
        let this = self.status_of(&group).await;
        let served: BTreeMap<&str, &VolumeStatus> =
            this.iter().flat_map(|found| &found.volumes).map(|volume| (volume.name.as_str(), volume)).collect();
        let is_fenced = |name: &Name| served.get(name.as_str()).is_some_and(|volume| volume.state == VolumeState::Fenced);
        if let Some(other) = volumes.iter().find(|volume| !is_fenced(&volume.name)) {
            let message =
                format!("volume {} is not `Fenced`: no copy was promoted in its place, as far as this host knows", other.name);
            return Err(conflict(
                message,
                "`farside failover` on the gateway comes first; `farside volume list` shows the states",
            ));
        }
        let note = Note::new(group.clone(), volumes.iter().map(|volume| self.held(volume)).collect());
        let failback = Failback::new(self.source_of(&group), note);
        let puller = self.puller(&group, &failback).await.map_err(unreachable)?;
        let point = self.newest(&failback, &puller, None).await.map_err(unreachable)?;
        self.heard(&failback, &point);
        locked(&failback.note).generation = point.promotion.unwrap_or(point.generation).0;
        let held = locked(&failback.note).held();
        if let Some(why) = too_small(fixed_disks(&held), &point) {
            return Err(conflict(why, LARGER_DISK));
        }
        let names: Vec<Name> = volumes.iter().map(|volume| volume.name.clone()).collect();
        self.keys_to(&failback, &puller, &point, &names).await.map_err(unreachable)?;
        drop(puller);
        let base = note::base(&self.state_path(), &group, locked(&failback.note).generation);
        locked(&failback.note).course.branch =
            if request.discard_branch { Branch::Discarded } else { Branch::Wanted { base: base.clone() } };
        if !request.discard_branch {
            let cannot = |why: String| {
                conflict(
                    format!("what only the disks of this host hold cannot be kept: {why}"),
                    "copy off what you need of it, and say --discard-branch: what differs is overwritten then",
                )
            };
            let failed = |error: PullError| match error {
                PullError::NoFork | PullError::Refused(_) => cannot(error.to_string()),
                other => unreachable(other),
            };
            let bases = [base.map(|base| base.position)];
            let fork = self.fork(&group, &failback, &mut None, &held, bases).await.map_err(failed)?;
            locked(&failback.view).over = Some(shown(&At::from(&fork)));
            if let Some(why) = volumes.iter().find_map(|volume| fits(&volume.name, &fork).err()) {
                return Err(cannot(format!("{why}, from before the failover")));
            }
        }
        let refused = refuse_unpublished(&group, &point, request.force);
        if request.plan {
            let why = refused.err().map(|error| error.message);
            return Ok(FailbackStatus { stage: FailbackStage::Planned, why, ..failback.show() });
        }
        refused?;
        let claimed = self.claim_all(&group, &volumes).await?;
        let note = locked(&failback.note).clone();
        if let Err(error) = note.keep(&self.state_path()) {
            // † It may be there all the same, and a restart would begin what nobody was told of.
            note.forget(&self.state_path()).map_err(unkept)?;
            return Err(unkept(error));
        }
        warn!(%group, generation = note.generation, "a failback begins: its volumes are served no more");
        let failback = Arc::new(failback);
        locked(&self.failbacks.all).insert(group, failback.clone());
        for (name, claimed) in claimed {
            self.leave_for_failback(&name, claimed).await;
        }
        tokio::spawn(self.clone().fail_back(failback.clone()));
        Ok(failback.show())
    }

    /// A group that may be taken out of service, and what is configured of it.
    ///
    /// # Errors
    /// When there is none, or it cannot be.
    fn configured_group(&self, name: &str) -> Result<(Name, Vec<VolumeConfig>), ApiError> {
        let unknown = || ApiError::not_found("group", name, "`farside status` shows the groups of this host");
        let group: Name = name.parse().map_err(|_| unknown())?;
        let volumes = self.volumes_of(&group);
        if volumes.is_empty() {
            return Err(unknown());
        }
        Ok((group, volumes))
    }

    fn held(&self, volume: &VolumeConfig) -> Held {
        Held {
            name: volume.name.clone(),
            backing: volume.backing.clone(),
            // As it was known when it was served last; what is known of one that a tap was put under is its twin.
            identity: match volume.insert {
                true => std::fs::metadata(&volume.backing).ok().map(|found| Identity::of_opened(&found)),
                false => backing::kept(&self.volume_path(volume)),
            },
            seen: None,
            beyond: None,
            was_asked: false,
            leaving: false,
            paused: Mark::Paused.is_set(&self.volume_path(volume)).unwrap_or(false),
        }
    }

    /// Claims the devices of a group, and the end of its volumes. Whether a device is in use its kernel says then; who is connected to a socket only
    /// we know.
    ///
    /// # Errors
    /// When somebody uses one: none is claimed.
    ///
    /// † Taps are out from under devices before it is noted that those are held: a note never speaks of a device that a crash leaves on a tap which
    /// nobody serves. Without the note the next start puts the tap back, and compares.
    async fn claim_all(self: &Arc<Self>, group: &Name, volumes: &[VolumeConfig]) -> Result<Vec<(Name, Claimed)>, ApiError> {
        self.refuse_clients(group).await?;
        let mut unused = Vec::new();
        for volume in volumes {
            unused.push((volume, self.claim_unused(volume).await?));
        }
        let mut claimed = Vec::new();
        for (volume, unused) in unused {
            claimed.push((volume.name.clone(), self.take_out_claimed(volume, unused).await?));
        }
        Ok(claimed)
    }

    async fn refuse_clients(&self, group: &Name) -> Result<(), ApiError> {
        let this = self.status_of(group).await;
        let mut volumes = this.iter().flat_map(|found| &found.volumes);
        match volumes.find(|volume| volume.tap.clients > 0 && volume.tap.address.starts_with("nbd:")) {
            None => Ok(()),
            Some(used) => {
                let (clients, address) = (used.tap.clients, &used.tap.address);
                let message = format!("volume {} is in use: {clients} clients are connected to {address}", used.name);
                Err(conflict(message, "unmount what is on it, end what uses it, and say the same again"))
            }
        }
    }

    /// A connection that pulls.
    async fn puller(&self, group: &Name, failback: &Failback) -> Result<Arc<Puller>, PullError> {
        self.puller_of((&self.source_of(group), group), failback.traffic.clone()).await
    }

    /// The newest point that holds all volumes of it, if there is one.
    async fn newest(&self, failback: &Failback, puller: &Puller, have: Option<LedgerPosition>) -> Result<PullPoint, PullError> {
        let (volumes, course) = {
            let note = locked(&failback.note);
            (ids_of(&failback.source, &note), note.course.clone())
        };
        puller.wants(volumes).await?;
        // What is about to be kept may be of a history that the store has not.
        let point = puller.point(have.filter(|_| !course.branch.is_due())).await?;
        match course.is_newer_than(&point) {
            None => Ok(point),
            Some(at) => {
                let group = &locked(&failback.note).group;
                Err(PullError::Refused(waits::store_is_older(group, at.position.slot, point.position.slot)))
            }
        }
    }

    async fn puller_of(&self, names: (&Name, &Name), traffic: Arc<Traffic>) -> Result<Arc<Puller>, PullError> {
        let dialer: QuicDialer = self.dialer(1);
        let connection = dialer.dial().await.map_err(|error| PullError::Ended(error.to_string()))?;
        Ok(Arc::new(Puller::begin(connection, names, self.instance, traffic).await?))
    }

    fn heard(&self, failback: &Failback, point: &PullPoint) {
        let mut view = locked(&failback.view);
        view.point = Some(shown(&At::from(point)));
        view.is_since = point.is_since;
        view.passed_over = point.passed_over;
        view.is_without_gateway = false;
        view.other = point.other.as_ref().map(|other| named(other.name.as_ref()));
        view.bytes = point.members.iter().map(|member| (member.meta.name.clone(), member.volume_bytes)).collect();
    }

    /// To its end, whatever fails meanwhile.
    async fn fail_back(self: Arc<Self>, failback: Arc<Failback>) {
        let mut wait = AGAIN.0;
        while self.is_known(&failback) {
            let tried = match failback.stage() {
                Stage::HandingOver => return, // whoever is at it says what follows
                Stage::HandedOver { .. } => self.wait_for_a_word(&failback).await,
                Stage::Held { .. } => self.hold_and_follow(&failback).await,
                Stage::Returning { .. } | Stage::Aborting => self.return_to_service(&failback).await,
            };
            match tried {
                Ok(()) => {
                    locked(&failback.view).why = None;
                    wait = AGAIN.0;
                }
                Err(error) => {
                    let why = self.with_way_out(&failback, &error);
                    if locked(&failback.view).why.replace(why.clone()).as_ref() != Some(&why) {
                        warn!(group = %locked(&failback.note).group, "the failback cannot go on yet: {why}");
                    }
                    let _ = tokio::time::timeout(wait, failback.told.notified()).await;
                    wait = (wait * 2).min(AGAIN.1);
                }
            }
        }
    }

    fn is_known(&self, failback: &Arc<Failback>) -> bool {
        let group = locked(&failback.note).group.clone();
        locked(&self.failbacks.all).get(&group).is_some_and(|known| Arc::ptr_eq(known, failback))
    }

    /// What is failed back is configured as it was when that began.
    fn check_configured(&self, group: &Name, held: &[Held]) -> anyhow::Result<()> {
        let volumes = self.volumes_of(group);
        let is_there = |held: &&Held| volumes.iter().any(|volume| volume.name == held.name && volume.backing == held.backing);
        match held.iter().find(|held| !is_there(held)) {
            None => Ok(()),
            Some(held) => anyhow::bail!(
                "volume {} is not configured in group {group} with the backing {} any more: put that back (farside reload)",
                held.name,
                held.backing.display()
            ),
        }
    }

    /// Takes the disks, so that nobody else has them, and looks what they are. Says what is held, and the point that they all are.
    async fn take_disks(self: &Arc<Self>, failback: &Failback) -> anyhow::Result<(Vec<Held>, Option<LedgerPosition>)> {
        let mut disks = failback.disks.lock().await;
        let (group, held, course) = {
            let note = locked(&failback.note);
            (note.group.clone(), note.held(), note.course.clone())
        };
        let (mut taken, mut could_be) = (Ok(()), held.clone());
        for held in held.iter().filter(|held| !disks.open.contains_key(&held.name)).cloned().collect::<Vec<_>>() {
            if let Err(error) = self.take_for_failback(&group, &held.name).await {
                could_be.retain(|one| one.name != held.name);
                taken = taken.and(Err(error));
            }
        }
        let opened = self.open_disks(&mut disks, &group, &could_be).await;
        self.note_identities(failback, &disks)?; // also of those that could be
        taken.and(opened)?;
        let noted = course.says().map(|at| (at.position, &held[..]));
        disks.believe(noted).await?;
        locked(&failback.view).taken = true;
        self.check_configured(&group, &held)?;
        let have = disks.known.as_ref().map(|known| known.at);
        let held = locked(&failback.note).held(); // with what was found
        Ok((held, have))
    }

    /// Those that are open are the ones that are meant from here on, where it was not known which.
    fn note_identities(&self, failback: &Failback, disks: &Disks) -> anyhow::Result<()> {
        let found = disks.identities();
        self.change(failback, |note| {
            for held in note.volumes.iter_mut().filter(|held| held.identity.is_none()) {
                held.identity = found.get(&held.name).cloned();
            }
        })
    }

    /// Follows points until it is told otherwise, or something fails. `Ok`: the stage is another one, or it is over.
    async fn hold_and_follow(self: &Arc<Self>, failback: &Arc<Failback>) -> anyhow::Result<()> {
        let mut puller = None;
        while self.is_known(failback) {
            let note = locked(&failback.note).clone();
            let Stage::Held { at, applying } = note.course.stage.clone() else { return Ok(()) };
            if let Some(ending) = note.course.ending() {
                return self.end_held(failback, ending).await;
            }
            let (held, have) = self.take_disks(failback).await?;
            if let Some(branch) = note.course.begins_anew(have) {
                self.change(failback, |note| note.course.branch = branch)?;
                continue;
            }
            // With nothing locked: it may take its time.
            let told = async {
                let connected = match &puller {
                    Some(connected) => Arc::clone(connected),
                    None => puller.insert(self.puller(&note.group, failback).await?).clone(),
                };
                match self.newest(failback, &connected, have).await {
                    // † What they are only in part the store may have lost, and have all that they were: of what differs from that, it says nothing.
                    Err(PullError::Refused(_)) if have.is_some() && applying.is_some() => {
                        let connected = puller.insert(self.puller(&note.group, failback).await?).clone();
                        let mut point = self.newest(failback, &connected, at.as_ref().map(|at| at.position)).await?;
                        point.members.iter_mut().for_each(|member| member.touched = None);
                        Ok((connected, point))
                    }
                    told => told.map(|point| (connected, point)),
                }
            };
            let (connected, point) = match told.await {
                Ok(told) => told,
                // Nobody can say whether there is more; whoever forces that waits for nobody.
                Err(error) if note.course.finish.is_some_and(|finish| finish.force) && !matches!(error, PullError::NoKey(_)) => {
                    warn!(group = %note.group, %error, "the failback is finished without a word of the receiver");
                    let is_back = self.go_back(failback, &held, have, None).await?.is_some();
                    locked(&failback.view).is_without_gateway = !is_back;
                    anyhow::ensure!(is_back, "{error}: {}", waits::lacks_the_rest(&note.group, &note.course));
                    return Ok(());
                }
                Err(error @ PullError::NoKey(_)) if note.course.finish.is_some() => {
                    return Err(anyhow::Error::from(error).context(
                        "there may be a newer point: give the gateway the key; or stop the gateway, and say --finish --force, to finish without it; or --abort",
                    ));
                }
                Err(PullError::Refused(why)) if applying.is_some() && have.is_some() => {
                    anyhow::bail!("{why}; but {}", waits::lacks_the_rest(&note.group, &note.course));
                }
                Err(error) => return Err(error.into()),
            };
            self.heard(failback, &point);
            if note.course.branch.is_due() {
                self.keep_branch(failback, &mut puller, &note, (&held, have)).await?;
                locked(&failback.view).why = None;
                continue;
            }
            let is_there = applying.is_none() && have == Some(point.position) && !failback.disks.lock().await.lacks_something();
            if !is_there {
                self.apply(failback, &connected, &held, &point, None).await?;
                locked(&failback.view).why = None;
                continue;
            }
            let finish = locked(&failback.note).course.finish;
            if let Some(finish) = finish {
                match why_not(&point, note.generation).filter(|_| !finish.force) {
                    Some(why) => locked(&failback.view).why = Some(why),
                    None => {
                        if self.go_back(failback, &held, have, Some(&point)).await?.is_some() {
                            connected.is_over();
                            return Ok(());
                        }
                    }
                }
            }
            let _ = tokio::time::timeout(LOOK, failback.told.notified()).await;
        }
        Ok(())
    }

    /// The disks are to be served again, from the point that they are. `None`: they are at none, or something changed meanwhile.
    async fn go_back(
        &self,
        failback: &Failback,
        held: &[Held],
        have: Option<LedgerPosition>,
        told: Option<&PullPoint>,
    ) -> anyhow::Result<Option<()>> {
        // Nothing is given up meanwhile: they stay open, and locked.
        let disks = failback.disks.lock().await;
        let looked = locked(&failback.note).clone();
        let goes_back = looked.course.goes_back(have, disks.lacks_something());
        let Some(at) = goes_back.filter(|_| looked.held() == held) else { return Ok(None) };
        // † What came after a person's word nobody has passed over.
        let passed_over = told.and_then(|point| point.passed_over);
        if let Some(newer) = passed_over.filter(|_| passed_over > looked.may_pass) {
            locked(&failback.view).why = Some(says_again(newer));
            return Ok(None);
        }
        self.change(failback, |note| {
            note.course.returns(at);
            // What was forced is to end the newest of all.
            note.generation = told.and_then(|point| point.promotion).map_or(note.generation, |promotion| promotion.0);
            note.passes = passed_over;
        })?;
        Ok(Some(()))
    }

    /// Brings the disks to a point; what is overwritten is kept first, where that is said.
    async fn apply(
        &self,
        failback: &Failback,
        puller: &Arc<Puller>,
        held: &[Held],
        point: &PullPoint,
        keeping: Option<(Name, Keeping)>,
    ) -> anyhow::Result<()> {
        let keys = self.keys_to(failback, puller, point, &names_of(held)).await?;
        let mut disks = failback.disks.lock().await;
        let note = locked(&failback.note).clone();
        let may = note.course.may_apply(keeping.as_ref().map(|(id, _)| id));
        if !may || *held != note.held() || !disks.have_all(held) {
            return Ok(()); // something changed while nothing was locked
        }
        let looked = note.course.branch.clone();
        // What was looked at for this very point before it was interrupted is not looked at again.
        let goes_on = disks.known.as_ref().is_some_and(|known| known.at == point.position);
        let newest_bytes = locked(&failback.view).bytes.clone();
        let mut work = Vec::new();
        let mut beyond = BTreeMap::new();
        let mut lacking = BTreeMap::new();
        let mut is_known = disks.known.is_some();
        for volume in held {
            let member = point.members.iter().find(|member| member.meta.name == volume.name).expect("it was looked for");
            let geometry = member.meta.geometry.resized(member.volume_bytes)?;
            let target = disks.open[&volume.name].clone();
            let (has, is_fixed) = (target.bytes()?, target.is_fixed()?);
            if is_fixed && has < member.volume_bytes {
                let (path, needs) = (volume.backing.display(), member.volume_bytes);
                anyhow::bail!("{path} has {has} bytes, and volume {} has {needs}: make it larger", volume.name);
            }
            let kept = keeping.as_ref().and_then(|(_, keeping)| keeping.of(&volume.name));
            // † What lies beyond would be overwritten, and was never kept: by this point, or by the newest after it.
            let ends = if kept.is_some() { Some(member.volume_bytes).filter(|ends| has > *ends) } else { volume.beyond };
            let reaches = newest_bytes.get(&volume.name).copied().unwrap_or(0).max(member.volume_bytes);
            if let Some(ends) = ends.filter(|ends| reaches > *ends && note.course.branch != Branch::Discarded) {
                let path = volume.backing.display();
                anyhow::bail!(
                    "{path} has {has} bytes, of which {ends} are in a point or kept, and the newest point of volume {} has {reaches}: what lies \
                     beyond would be overwritten. Copy off what you need of it, and: farside failback {} --discard-branch",
                    volume.name,
                    note.group
                );
            }
            beyond.insert(volume.name.clone(), ends.filter(|ends| *ends >= member.volume_bytes));
            let mut all = RegionSet::new();
            all.insert_range(geometry.all_regions());
            let before = disks.known.as_ref().and_then(|known| known.lacks.get(&volume.name)).map(|lacks| locked(lacks).clone());
            let nothing = RegionSet::new();
            let touched = member.touched.as_ref().or(goes_on.then_some(&nothing));
            let (regions, was_known) = lacks(&all, touched, before.as_ref());
            is_known &= was_known;
            let regions = Arc::new(Mutex::new(regions));
            lacking.insert(volume.name.clone(), regions.clone());
            let keys = keys[&volume.name].clone();
            let volume = PulledVolume { id: member.meta.id, keys, geometry, target, lacks: regions, kept };
            work.push((volume, member.volume_bytes));
        }
        let total = work.iter().map(|(volume, _)| locked(&volume.lacks).len()).sum();
        failback.traffic.total.store(total, Ordering::Relaxed);
        failback.traffic.done.store(0, Ordering::Relaxed);
        let group = locked(&failback.note).group.clone();
        info!(%group, point = %point.position.slot, regions = total, "disks are brought to a point");
        self.change(failback, |note| note.course.applies(At::from(point), is_known))?;
        disks.known = Some(Known { at: point.position, lacks: lacking, seen: BTreeMap::new() });
        let brought = bring_all(puller, work).await;
        // Also of what was brought in part: what is written from here on is somebody else's.
        let seen = disks.sync_and_see().await;
        let Some(known) = disks.known.as_mut() else { return Ok(()) };
        match seen {
            Ok(seen) => known.seen = seen,
            Err(error) => {
                disks.known = None;
                return Err(error);
            }
        }
        brought?;
        let seen = known.seen.clone();
        let branch = match keeping {
            Some((id, keeping)) => match tokio::task::spawn_blocking(move || keeping.end()).await?? {
                true => Branch::Kept { id, over: At::from(point), is: Kept::Whole },
                false => Branch::None,
            },
            None => looked.clone(),
        };
        self.change(failback, |note| {
            let is_all = note.held().iter().all(|now| held.iter().any(|held| held.name == now.name));
            note.course.applied(At::from(point), is_all, (&looked, branch));
            for held in &mut note.volumes {
                held.seen = seen.get(&held.name).cloned().flatten();
                held.beyond = beyond.get(&held.name).copied().flatten();
            }
        })
    }

    /// Serves the volumes, and has them take the history back, unless it was aborted. `Ok`: it is over, or they are held again.
    async fn return_to_service(self: &Arc<Self>, failback: &Arc<Failback>) -> anyhow::Result<()> {
        let note = locked(&failback.note).clone();
        if let Stage::Returning { at, served } = &note.course.stage {
            if note.course.abort {
                self.remember_base(&note, at);
                failback.disks.lock().await.let_go();
                return self.turn(failback, Stage::Aborting);
            }
            if !served && !self.may_be_served(failback, &note, at).await? {
                return Ok(());
            }
        }
        if note.course.stage == Stage::Aborting {
            // † Nothing is served while a note may say that it was handed over: who kept that may have been told that it failed.
            note.keep_if_there(&self.state_path())?;
        }
        let takes_back = match &note.course.stage {
            Stage::Returning { at, .. } => {
                let mut disks = failback.disks.lock().await;
                self.turn(failback, Stage::Returning { at: at.clone(), served: true })?;
                disks.let_go();
                Some(at.position)
            }
            _ => None,
        };
        for volume in &self.volumes_of(&note.group) {
            self.give_device_back(volume).await;
            self.open_soon(&volume.name); // also those that the group did not have before
        }
        for name in note.held().iter().map(|held| &held.name) {
            // One that is removed meanwhile is waited for no more.
            while self.volumes_of(&note.group).iter().any(|volume| volume.name == *name) {
                if let Stage::Returning { at, .. } = &note.course.stage
                    && locked(&failback.note).course.abort
                {
                    self.remember_base(&note, at);
                    return self.turn(failback, Stage::Aborting);
                }
                match (self.volume_state(&note.group, name).await, takes_back) {
                    (None | Some(VolumeState::NotServed), _) => {}
                    (Some(_), None) => break,
                    (Some(VolumeState::Behind { .. } | VolumeState::Streaming), _) => break,
                    (Some(VolumeState::Paused), _) => {
                        if waits::is_back_though_paused(self.generation_of(&note.group, name), note.generation) {
                            break;
                        }
                        locked(&failback.view).why = Some(waits::is_paused(&note.group, name));
                    }
                    (Some(VolumeState::Idle), _) => self.say_that_it_waits(failback, &note.group).await,
                    (Some(VolumeState::Fenced | VolumeState::Forked), Some(at)) => self.take_back(failback, name, at).await?,
                    (Some(state @ (VolumeState::TargetRewound | VolumeState::TrackingLost)), _) => {
                        anyhow::bail!("volume {name} is {}: farside volume show {name}", state.word());
                    }
                }
                let _ = tokio::time::timeout(SERVED, failback.told.notified()).await;
            }
        }
        if takes_back.is_some() {
            note.forget_base(&self.state_path());
        }
        note.forget(&self.state_path())?;
        locked(&self.failbacks.all).remove(&note.group);
        for held in note.held() {
            self.show_disk(&held.name).await; // of what is not configured any more
        }
        info!(group = %note.group, "it is over: what is configured of the group is served");
        Ok(())
    }

    /// † Days may have gone by since it was decided that the disks are served again: they must be what they were then, and the newest point still. If
    /// not, they are held again.
    async fn may_be_served(self: &Arc<Self>, failback: &Arc<Failback>, note: &Note, at: &At) -> anyhow::Result<bool> {
        let forced = note.course.finish.is_some_and(|finish| finish.force);
        let held_again = Stage::Held { at: Some(at.clone()), applying: None };
        let (_, have) = self.take_disks(failback).await?;
        let mut is_still = false;
        self.change(failback, |note| is_still = note.course.is_still(have))?;
        if !is_still {
            return Ok(false);
        }
        let told = async {
            let puller = self.puller(&note.group, failback).await?;
            self.newest(failback, &puller, have).await
        };
        let point = match told.await {
            Ok(point) => point,
            Err(_) if forced => return Ok(true),
            Err(error) => anyhow::bail!("{error}; to serve the disks without its word: --finish --force"),
        };
        self.heard(failback, &point);
        // † Whoever stands in may have gone on since: what came then nobody has passed over.
        let is_passed = point.passed_over <= note.passes;
        let is_right = point.position == at.position && is_passed && (forced || why_not(&point, note.generation).is_none());
        if !is_right {
            self.turn(failback, held_again)?;
        }
        Ok(is_right)
    }

    /// Has one volume take its history back, as long as that point is the newest.
    async fn take_back(self: &Arc<Self>, failback: &Arc<Failback>, name: &Name, at: LedgerPosition) -> anyhow::Result<()> {
        let (group, shown, passes) = {
            let note = locked(&failback.note);
            (note.group.clone(), note.generation, note.passes)
        };
        let newer = || {
            anyhow::anyhow!(
                "points were published after the one that the disk of volume {name} was brought to, and would be lost. To have them: farside \
                 failback {group} --abort, and begin anew; to discard them, with the newest pinned: farside rollback {group}"
            )
        };
        let unheard = |error: PullError| match error {
            PullError::Refused(why) => anyhow::anyhow!(waits::served_are_refused(&group, &why)),
            error => error.into(),
        };
        let mut from = Generation(shown);
        // At most once more: by then it is known whose generation that is.
        for _ in 0..2 {
            let taking_back = failback.taking_back.lock().await;
            if locked(&failback.note).course.abort {
                return Ok(());
            }
            locked(&failback.asked_here).insert(name.clone());
            if !locked(&failback.note).was_asked(name) {
                self.change(failback, |note| note.asks(name))?;
            }
            let asked = self.ask(name, |id, reply| Ask::TakeBack(id, from, (at, passes), reply)).await?;
            drop(taking_back);
            match asked {
                TakenBack::Begun(done) => {
                    return done.await.unwrap_or_else(|_| anyhow::bail!("volume {name} was closed meanwhile"));
                }
                TakenBack::Newer => {
                    // It may be an older one, of a store that was put back.
                    let puller = self.puller(&group, failback).await?;
                    self.newest(failback, &puller, Some(at)).await.map_err(unheard)?;
                    return Err(newer());
                }
                TakenBack::From(by) => {
                    // † It may be the claim of an earlier attempt, whose verdict a broken line or a crash took.
                    let puller = self.puller(&group, failback).await?;
                    let point = self.newest(failback, &puller, Some(at)).await.map_err(unheard)?;
                    if let Some(promotion) = point.promotion.filter(|promotion| promotion.0 != shown) {
                        anyhow::bail!(
                            "the group was failed over again meanwhile (generation {promotion}): --abort, and begin anew"
                        );
                    }
                    if point.position != at {
                        return Err(newer());
                    }
                    from = by;
                }
            }
        }
        anyhow::bail!("the generation of volume {name} changes all the time: see `farside failover --list` on the gateway")
    }

    /// A person removes a volume whose disk may be held: it is let go of, and served by nobody until that is done. `true`: it was held.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub(crate) async fn leave_failback(&self, group: &Name, name: &Name) -> Result<bool, ApiError> {
        let known = locked(&self.failbacks.all).get(group).filter(|one| locked(&one.note).holds((group, name), None)).cloned();
        let Some(failback) = known else { return Ok(false) };
        if !locked(&failback.note).volumes.iter().any(|held| held.name == *name) {
            return Ok(false); // it is new to the group, and waits
        }
        let mut disks = failback.stop_for_a_moment().await?;
        let change = |note: &mut Note| note.volumes.iter_mut().filter(|v| v.name == *name).for_each(|v| v.leaving = true);
        self.change(&failback, change).map_err(unkept)?;
        disks.open.remove(name);
        Ok(true)
    }

    /// That it is removed is done, or it stays.
    pub(crate) fn left_failback(&self, group: &Name, name: &Name, is_removed: bool) -> anyhow::Result<()> {
        let Some(failback) = locked(&self.failbacks.all).get(group).cloned() else { return Ok(()) };
        self.change(&failback, |note| match is_removed {
            true => note.volumes.retain(|held| held.name != *name),
            false => {
                note.volumes.iter_mut().filter(|held| held.name == *name).for_each(|held| held.leaving = false);
                // † It may be in part another point than the others are, and what only its disk holds may not be kept yet.
                if let Stage::Held { at, applying } = &mut note.course.stage {
                    *applying = applying.take().or(at.take());
                }
                if note.course.branch.may_begin_anew() {
                    note.course.branch = Branch::Wanted { base: None };
                }
            }
        })?;
        let note = locked(&failback.note).clone();
        if note.volumes.is_empty() {
            note.forget(&self.state_path())?;
            locked(&self.failbacks.all).remove(group);
        }
        failback.told.notify_one();
        Ok(())
    }
}

/// Each volume to its point, whole.
async fn bring_all(puller: &Arc<Puller>, work: Vec<(PulledVolume, u64)>) -> anyhow::Result<()> {
    for (volume, bytes) in &work {
        if !volume.target.is_fixed()? && volume.target.bytes()? < *bytes {
            volume.target.resize(*bytes)?;
        }
    }
    for (volume, _) in &work {
        puller.bring(volume).await?;
    }
    Ok(())
}

fn unreachable(error: PullError) -> ApiError {
    let what = match &error {
        PullError::NoKey(_) => "`farside explain key_missing` and docs/operate.md, `Encrypted volumes`, say who needs which key",
        PullError::NotThere(_) => "`farside point show latest --of GROUP` on the gateway says what the point holds",
        _ => "see `farside status` here and on the gateway",
    };
    if matches!(error, PullError::NoKey(_) | PullError::NotThere(_)) {
        return conflict(error.to_string(), what);
    }
    ApiError::new(ErrorCode::NotConnected, error.to_string(), what)
}

/// # Errors
/// When there is nothing new to be had, unless a person forces it.
fn refuse_unpublished(group: &Name, point: &PullPoint, force: bool) -> Result<(), ApiError> {
    if point.is_since || force {
        return Ok(());
    }
    // † Days of a stand-in's work may lie in points that lack one volume of this host's.
    if let Some(newer) = point.passed_over {
        let message = format!(
            "points up to {newer} of group {group} are newer than {}, which would come back: they are what a failover to an older one left aside, or \
             hold not all volumes of this host in whole",
            point.position.slot
        );
        let what = format!(
            "if they were left aside on purpose, --force: the disks come back as what was failed over to; if the stand-in published them, protect there \
             what they lack, or remove it here (`farside volume remove`). `farside point show {newer}` on the gateway says when it was cut, and what it \
             holds"
        );
        return Err(ApiError::new(ErrorCode::Refused, message, what));
    }
    let message = format!("nothing was published of group {group} since it was failed over");
    let what =
        "protect the copy first (stand_in_for; see `farside failover --help`); --force to have the disks as they were then";
    Err(ApiError::new(ErrorCode::Refused, message, what))
}

fn says_again(newer: Slot) -> String {
    format!(
        "points up to {newer}, which would be passed over, came after --force was said, or were not known then: --finish --force once more"
    )
}

fn named(host: Option<&Name>) -> String {
    host.map_or_else(|| "a host that the gateway does not know".to_owned(), Name::to_string)
}

/// Why the history cannot be taken back from there, unless a person forces it.
fn why_not(point: &PullPoint, generation: u64) -> Option<String> {
    let position = point.position.slot;
    if let Some(promotion) = point.promotion.filter(|promotion| promotion.0 != generation) {
        return Some(format!(
            "the group was failed over again meanwhile (generation {promotion}); if that is to be taken back: --force"
        ));
    }
    if let Some(other) = &point.other {
        return Some(match (&other.name, other.connected) {
            (Some(name), true) => format!("{name} is connected, and may publish more: stop its users, then farsided on it"),
            (Some(name), false) => format!(
                "{name} did not say that all of it is published: its connection broke, or the receiver was started since. Start farsided there, and \
                 stop it in order; or, if nobody writes there any more and what it may owe is to be lost: --force"
            ),
            (None, _) => "the gateway knows of no failover, though one happened: whoever stood in may have more to publish. If nobody writes there \
                          any more: --force"
                .to_owned(),
        });
    }
    if let Some(newer) = point.passed_over {
        return Some(format!(
            "newer points, up to {newer}, hold what their source could not read, or lack a volume, or were left aside by the failover, and this is point \
             {position}: mend that disk, or wait until the volume is in them again, or --force"
        ));
    }
    (!point.is_since).then(|| "nothing was published since the failover; --force to go on with what was before".to_owned())
}
