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
//! - `at` is said of disks that nobody else can have written since: they are kept open and locked, and what tells of writes is as it was. If that is not
//!   known, all is compared. It is said of all volumes of the note, or of none.
//! - A volume that is served again has no header from before, so that nothing of its old history is trusted, and all of it is compared.
//! - The history is taken back from the promotion that was shown to a person, and from the point that the disks were brought to: not if there is more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farside_control::failback::{FailbackMember, FailbackRequest, FailbackStage, FailbackStatus, FailbackStep};
use farside_control::source::{LastPoint, VolumeState, VolumeStatus};
use farside_control::{ApiError, Code, ErrorCode, Reason, Severity};
use farside_region::{Generation, LedgerPosition, Name, RegionSet};
use farside_store::{FileTarget, FollowTarget as _, RestoreTarget as _, Seen};
use farside_transport::{Dial, QuicDialer};
use farside_wire::PullPoint;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::config::{VolumeConfig, sync_dir, write_atomically};
use crate::group::Ask;
use crate::locked;
use crate::status::last_point;
use crate::supervisor::Daemon;
use pull::{PullError, PulledVolume, Puller, Traffic};

mod pull;

const VERSION: u32 = 1;
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
    /// One begins at a time.
    beginning: tokio::sync::Mutex<()>,
}

/// A failback holds the disk of this volume.
#[derive(Debug, thiserror::Error)]
#[error("the failback of group {0} holds its disk: `farside failback --list`")]
pub(crate) struct HeldByFailback(pub(crate) Name);

/// A point, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct At {
    position: LedgerPosition,
    wall_ms: i64,
}

impl At {
    fn shown(&self) -> LastPoint {
        last_point(&self.position, self.wall_ms)
    }
}

impl From<&PullPoint> for At {
    fn from(point: &PullPoint) -> Self {
        Self { position: point.position, wall_ms: point.epoch.wall_ms }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
enum Stage {
    /// The disks are held. `at`: the point that they all are, or were before `applying` was begun.
    Held { at: Option<At>, applying: Option<At> },
    /// They are served again, or about to be, and the history is taken back. `forced`: whatever was published after that point.
    Returning { at: Option<At>, forced: bool, served: bool },
    /// They are served again as they are.
    Aborting,
}

/// A volume that is failed back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    name: Name,
    backing: PathBuf,
    /// What tells whether somebody wrote to it since `at` was said of it.
    seen: Option<Seen>,
    /// A person removes it: it is no part of this any more, and served by nobody until that is done.
    leaving: bool,
}

/// As it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    version: u32,
    group: Name,
    /// The promotion that a person was shown.
    generation: u64,
    volumes: Vec<Held>,
    stage: Stage,
}

/// What it is told, and what it shows.
#[derive(Clone, Debug, Default)]
struct View {
    finish: Option<Finish>,
    abort: bool,
    taken: bool,
    point: Option<LastPoint>,
    is_since: bool,
    other: Option<String>,
    bytes: BTreeMap<Name, u64>,
    why: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Finish {
    force: bool,
}

#[derive(Debug)]
struct Failback {
    note: Mutex<Note>,
    view: Mutex<View>,
    traffic: Arc<Traffic>,
    told: Notify,
    /// Who has it may write to the disks.
    disks: tokio::sync::Mutex<Disks>,
}

/// The disks while they are held.
#[derive(Debug, Default)]
struct Disks {
    /// Open, and locked.
    open: BTreeMap<Name, Arc<FileTarget>>,
    /// What they are, in this process.
    known: Option<Known>,
}

/// They are that point, but for these regions of some.
#[derive(Debug)]
struct Known {
    at: LedgerPosition,
    lacks: BTreeMap<Name, Arc<Mutex<RegionSet>>>,
    /// What tells whether somebody else wrote to them.
    seen: BTreeMap<Name, Option<Seen>>,
}

impl Failback {
    fn new(note: Note) -> Self {
        Self {
            note: Mutex::new(note),
            view: Mutex::default(),
            traffic: Arc::default(),
            told: Notify::new(),
            disks: tokio::sync::Mutex::default(),
        }
    }

    fn stage(&self) -> Stage {
        locked(&self.note).stage.clone()
    }

    /// Whether the disk of a volume of that name, or the disk of that path, may be a part of a point.
    fn holds(&self, (group, volume): (&Name, &Name), backing: Option<&Path>) -> bool {
        let note = locked(&self.note);
        let is_it = |held: &Held| {
            (note.group == *group && held.name == *volume) || backing.is_some_and(|backing| is_same_disk(backing, &held.backing))
        };
        let is_open_to_all =
            |held: &Held| !held.leaving && !matches!(note.stage, Stage::Held { .. } | Stage::Returning { served: false, .. });
        note.volumes.iter().any(|held| is_it(held) && !is_open_to_all(held))
    }

    fn show(&self) -> FailbackStatus {
        let (note, view) = (locked(&self.note).clone(), locked(&self.view).clone());
        let (stage, holds) = match &note.stage {
            Stage::Held { .. } if !view.taken => (FailbackStage::Taking, None),
            Stage::Held { at: Some(at), applying: None } => (FailbackStage::Following, Some(at.shown())),
            Stage::Held { .. } => (FailbackStage::Pulling, None),
            Stage::Returning { at, .. } => (FailbackStage::Returning, at.as_ref().map(At::shown)),
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
            stage,
            finishing: view.finish.is_some(),
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
            why: view.why,
        }
    }
}

impl Failbacks {
    /// Whether a failback holds the disk of a volume, which nobody else opens then.
    ///
    /// # Errors
    /// When it does.
    pub(crate) fn refuse_held(&self, group: &Name, volume: &Name, backing: &Path) -> Result<(), HeldByFailback> {
        let all = locked(&self.all);
        match all.iter().find(|(_, one)| one.holds((group, volume), Some(backing))) {
            Some((of, _)) => Err(HeldByFailback(of.clone())),
            None => Ok(()),
        }
    }

    /// What people should know.
    pub(crate) fn reasons(&self) -> Vec<Reason> {
        let all: Vec<Arc<Failback>> = locked(&self.all).values().cloned().collect();
        let said = all.iter().map(|one| {
            let (note, why) = (locked(&one.note).clone(), locked(&one.view).why.clone());
            let message = match (&note.stage, why) {
                (_, Some(why)) => format!("the failback of group {} does not go on: {why}", note.group),
                (Stage::Held { at: Some(_), applying: None }, None) => {
                    format!("group {} is being failed back: its disks follow what its stand-in publishes", note.group)
                }
                (Stage::Held { .. }, None) => {
                    format!("group {} is being failed back: its disks are brought to the newest point", note.group)
                }
                (Stage::Returning { .. }, None) => format!("group {} takes its history back", note.group),
                (Stage::Aborting, None) => format!("the failback of group {} is being aborted", note.group),
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
    fn failback_dir(&self) -> PathBuf {
        self.state_path().join("failback")
    }

    fn note_path(&self, group: &Name) -> PathBuf {
        self.failback_dir().join(format!("{group}.json"))
    }

    fn keep(&self, note: &Note) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(note)?;
        let folder = self.failback_dir();
        if !folder.is_dir() {
            std::fs::create_dir_all(&folder)?;
            sync_dir(&self.state_path())?; // a note in a folder that a power cut takes is none
        }
        write_atomically(&self.note_path(&note.group), &text)?;
        Ok(())
    }

    fn forget_note(&self, group: &Name) -> anyhow::Result<()> {
        match std::fs::remove_file(self.note_path(group)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        if self.failback_dir().is_dir() {
            sync_dir(&self.failback_dir())?;
        }
        Ok(())
    }

    /// Changes what is kept, and then what holds. One change at a time.
    fn change(&self, failback: &Failback, change: impl FnOnce(&mut Note)) -> anyhow::Result<()> {
        let mut note = locked(&failback.note);
        let mut changed = note.clone();
        change(&mut changed);
        self.keep(&changed)?;
        *note = changed;
        Ok(())
    }

    fn turn(&self, failback: &Failback, stage: Stage) -> anyhow::Result<()> {
        self.change(failback, |note| note.stage = stage)
    }

    /// Takes up what was begun. Before any volume is opened.
    ///
    /// # Errors
    /// When what is kept cannot be read: nothing may be served that is only in part what it should be.
    pub(crate) fn take_up_failbacks(&self) -> anyhow::Result<()> {
        for note in notes(&self.state_path())? {
            locked(&self.failbacks.all).insert(note.group.clone(), Arc::new(Failback::new(note)));
        }
        Ok(())
    }

    /// Goes on with what was taken up.
    pub(crate) fn go_on_with_failbacks(self: &Arc<Self>) {
        let all: Vec<Arc<Failback>> = locked(&self.failbacks.all).values().cloned().collect();
        for one in all {
            let (group, leaving): (Name, Vec<Name>) = {
                let note = locked(&one.note);
                (note.group.clone(), note.volumes.iter().filter(|held| held.leaving).map(|held| held.name.clone()).collect())
            };
            for name in leaving {
                // Its removal was interrupted: it is what the configuration says.
                let is_removed = !self.volumes_of(&group).iter().any(|volume| volume.name == name);
                if let Err(error) = self.left_failback(&group, &name, is_removed) {
                    warn!(%group, volume = %name, "it stays held: {error:#}");
                }
            }
            tokio::spawn(self.clone().fail_back(one));
        }
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
        let _one = self.failbacks.beginning.lock().await;
        let known =
            locked(&self.failbacks.all).iter().find(|(name, _)| name.as_str() == request.group).map(|(_, one)| one.clone());
        let Some(known) = known else {
            return match request.step {
                FailbackStep::Begin => self.begin_failback(request).await,
                FailbackStep::Finish | FailbackStep::Abort => {
                    Err(ApiError::not_found("failback of group", &request.group, "`farside failback --list` lists them"))
                }
            };
        };
        if !request.plan {
            match request.step {
                FailbackStep::Begin => {}
                FailbackStep::Finish => {
                    locked(&known.view).finish = Some(Finish { force: request.force });
                    if request.force && matches!(known.stage(), Stage::Returning { .. }) {
                        self.change(&known, |note| {
                            if let Stage::Returning { forced, .. } = &mut note.stage {
                                *forced = true;
                            }
                        })
                        .map_err(unkept)?;
                    }
                }
                // What is a part of a point is served by nobody: it is done when they are at one.
                FailbackStep::Abort => locked(&known.view).abort = true,
            }
            known.told.notify_one();
        }
        Ok(known.show())
    }

    async fn begin_failback(self: &Arc<Self>, request: &FailbackRequest) -> Result<FailbackStatus, ApiError> {
        let unknown = || ApiError::not_found("group", &request.group, "`farside status` shows the groups of this host");
        let group: Name = request.group.parse().map_err(|_| unknown())?;
        let volumes: Vec<VolumeConfig> = self.volumes_of(&group);
        if volumes.is_empty() {
            return Err(unknown());
        }
        if let Some(inserted) = volumes.iter().find(|volume| volume.insert) {
            let message = format!("the tap of volume {} lies under a device that its host uses", inserted.name);
            let what = "boot from something else, and restore the point to its disk; or protect that disk without --insert";
            return Err(conflict(message, what));
        }
        let status = self.status().await;
        let of_group = status.groups.iter().filter(|found| found.name == group.as_str());
        let served: BTreeMap<&str, &VolumeStatus> =
            of_group.flat_map(|found| &found.volumes).map(|volume| (volume.name.as_str(), volume)).collect();
        let is_fenced = |name: &Name| served.get(name.as_str()).is_some_and(|volume| volume.state == VolumeState::Fenced);
        if let Some(other) = volumes.iter().find(|volume| !is_fenced(&volume.name)) {
            let message =
                format!("volume {} is not `Fenced`: no copy was promoted in its place, as far as this host knows", other.name);
            return Err(conflict(
                message,
                "`farside failover` on the gateway comes first; `farside volume list` shows the states",
            ));
        }
        let failback = Failback::new(Note {
            version: VERSION,
            group: group.clone(),
            generation: 0,
            volumes: volumes
                .iter()
                .map(|volume| Held { name: volume.name.clone(), backing: volume.backing.clone(), seen: None, leaving: false })
                .collect(),
            stage: Stage::Held { at: None, applying: None },
        });
        let unreachable = |error: PullError| {
            ApiError::new(ErrorCode::NotConnected, error.to_string(), "see `farside status` here and on the gateway")
        };
        let puller = self.puller(&group, &failback).await.map_err(unreachable)?;
        let point = puller.point(None).await.map_err(unreachable)?;
        drop(puller);
        self.heard(&failback, &point);
        locked(&failback.note).generation = point.generation.0;
        for volume in &volumes {
            fits(volume, &point)
                .map_err(|why| conflict(why, "`farside point show latest` on the gateway says what the point holds"))?;
        }
        if request.plan {
            return Ok(FailbackStatus { stage: FailbackStage::Planned, ..failback.show() });
        }
        if !point.by_holder && !request.force {
            let message = format!("nothing was published of group {group} since it was failed over");
            let what = "protect the copy first (stand_in_for; see `farside failover --help`); --force to have the disks as they were then";
            return Err(ApiError::new(ErrorCode::Refused, message, what));
        }
        // Whether a device is in use its kernel says, below.
        let connected = |volume: &&VolumeStatus| volume.tap.clients > 0 && volume.tap.address.starts_with("nbd:");
        if let Some(used) = served.values().copied().find(connected) {
            let message =
                format!("volume {} is in use: {} clients are connected to {}", used.name, used.tap.clients, used.tap.address);
            return Err(conflict(message, "unmount what is on it, end what uses it, and say the same again"));
        }
        let mut claimed = Vec::new();
        for volume in &volumes {
            claimed.push((volume.name.clone(), self.claim(&volume.name).await?));
        }
        let note = locked(&failback.note).clone();
        if let Err(error) = self.keep(&note) {
            // † It may be there all the same, and a restart would begin what nobody was told of.
            self.forget_note(&group).map_err(unkept)?;
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

    /// A connection that pulls.
    async fn puller(&self, group: &Name, failback: &Failback) -> Result<Arc<Puller>, PullError> {
        let dialer: QuicDialer = self.dialer();
        let connection = dialer.dial().await.map_err(|error| PullError::Ended(error.to_string()))?;
        let source = self.source_of(group);
        Ok(Arc::new(Puller::begin(connection, (&source, group), self.instance, failback.traffic.clone()).await?))
    }

    fn heard(&self, failback: &Failback, point: &PullPoint) {
        let mut view = locked(&failback.view);
        view.point = Some(At::from(point).shown());
        view.is_since = point.by_holder;
        view.other = point.other.as_ref().map(|other| other.name.to_string());
        view.bytes = point.members.iter().map(|member| (member.meta.name.clone(), member.volume_bytes)).collect();
    }

    /// To its end, whatever fails meanwhile.
    async fn fail_back(self: Arc<Self>, failback: Arc<Failback>) {
        let mut wait = AGAIN.0;
        while self.is_known(&failback) {
            let tried = match failback.stage() {
                Stage::Held { .. } => self.hold_and_follow(&failback).await,
                Stage::Returning { .. } | Stage::Aborting => self.return_to_service(&failback).await,
            };
            match tried {
                Ok(()) => {
                    locked(&failback.view).why = None;
                    wait = AGAIN.0;
                }
                Err(error) => {
                    let why = format!("{error:#}");
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

    /// What is failed back, as it is configured: all of it, as it was when that began.
    fn configured(&self, failback: &Failback) -> anyhow::Result<Vec<VolumeConfig>> {
        let note = locked(&failback.note).clone();
        let volumes = self.volumes_of(&note.group);
        let find = |held: &Held| {
            volumes.iter().find(|volume| volume.name == held.name && volume.backing == held.backing).cloned().ok_or_else(|| {
                anyhow::anyhow!(
                    "volume {} is not configured in group {} with the backing {} any more: put that back (farside reload)",
                    held.name,
                    note.group,
                    held.backing.display()
                )
            })
        };
        note.volumes.iter().filter(|held| !held.leaving).map(find).collect()
    }

    /// Follows points until it is told otherwise, or something fails. `Ok`: the stage is another one, or it is over.
    async fn hold_and_follow(self: &Arc<Self>, failback: &Arc<Failback>) -> anyhow::Result<()> {
        for volume in self.configured(failback)? {
            if !failback.disks.lock().await.open.contains_key(&volume.name) {
                self.take_for_failback(&volume).await?;
            }
        }
        locked(&failback.view).taken = true;
        let group = locked(&failback.note).group.clone();
        let mut puller = None;
        while self.is_known(failback) {
            let Stage::Held { at, applying } = failback.stage() else { return Ok(()) };
            if locked(&failback.view).abort && applying.is_none() {
                failback.disks.lock().await.let_go();
                return self.turn(failback, Stage::Aborting);
            }
            let mut disks = failback.disks.lock().await;
            let volumes = self.configured(failback)?;
            disks.open(&volumes).await?;
            let noted = match (&at, &applying) {
                (Some(at), None) => Some((at.position, locked(&failback.note).volumes.clone())),
                _ => None,
            };
            disks.believe(noted).await?;
            let connected = match &puller {
                Some(connected) => Arc::clone(connected),
                None => puller.insert(self.puller(&group, failback).await?).clone(),
            };
            let have = disks.known.as_ref().map(|known| known.at);
            let point = connected.point(have).await?;
            self.heard(failback, &point);
            if applying.is_some() || have != Some(point.position) || disks.lacks_something() {
                if locked(&failback.view).abort && applying.is_none() {
                    continue;
                }
                self.apply(failback, &connected, &mut disks, &volumes, &point).await?;
                locked(&failback.view).why = None;
                continue;
            }
            drop(disks);
            let (finish, generation) = (locked(&failback.view).finish, locked(&failback.note).generation);
            if let Some(finish) = finish {
                match why_not(&point, generation).filter(|_| !finish.force) {
                    Some(why) => locked(&failback.view).why = Some(why),
                    None => {
                        failback.disks.lock().await.let_go();
                        connected.is_over();
                        let returning = Stage::Returning { at, forced: finish.force, served: false };
                        return self.change(failback, |note| (note.stage, note.generation) = (returning, point.generation.0));
                    }
                }
            }
            let _ = tokio::time::timeout(LOOK, failback.told.notified()).await;
        }
        Ok(())
    }

    /// Brings the disks to a point.
    async fn apply(
        &self,
        failback: &Failback,
        puller: &Arc<Puller>,
        disks: &mut Disks,
        volumes: &[VolumeConfig],
        point: &PullPoint,
    ) -> anyhow::Result<()> {
        let mut work = Vec::new();
        let mut lacks = BTreeMap::new();
        let mut is_known = disks.known.is_some();
        for volume in volumes {
            fits(volume, point).map_err(anyhow::Error::msg)?;
            let member = point.members.iter().find(|member| member.meta.name == volume.name).expect("it was looked for");
            let geometry = member.meta.geometry.resized(member.volume_bytes)?;
            let key = *member.meta.digest_key.clear().ok_or_else(|| anyhow::anyhow!("volume {} is encrypted", volume.name))?;
            let target = disks.open[&volume.name].clone();
            let (has, is_fixed) = (target.bytes()?, target.is_fixed()?);
            if is_fixed && has < member.volume_bytes {
                let (path, needs) = (volume.backing.display(), member.volume_bytes);
                anyhow::bail!("{path} has {has} bytes, and volume {} has {needs}: make it larger", volume.name);
            }
            let mut all = RegionSet::new();
            all.insert_range(geometry.all_regions());
            let before = disks.known.as_ref().and_then(|known| known.lacks.get(&volume.name)).map(|lacks| locked(lacks).clone());
            let regions = match (&member.touched, before) {
                (Some(touched), Some(mut before)) => {
                    before.union_with(touched);
                    let mut others = all.clone();
                    others.subtract(&before);
                    all.subtract(&others);
                    all
                }
                _ => {
                    is_known = false;
                    all
                }
            };
            let regions = Arc::new(Mutex::new(regions));
            lacks.insert(volume.name.clone(), regions.clone());
            work.push((PulledVolume { id: member.meta.id, key, geometry, target, lacks: regions }, member.volume_bytes));
        }
        let total = work.iter().map(|(volume, _)| locked(&volume.lacks).len()).sum();
        failback.traffic.total.store(total, Ordering::Relaxed);
        failback.traffic.done.store(0, Ordering::Relaxed);
        let group = locked(&failback.note).group.clone();
        info!(%group, point = %point.position.slot, regions = total, "disks are brought to a point");
        let Stage::Held { at, .. } = failback.stage() else { return Ok(()) };
        self.turn(failback, Stage::Held { at: at.filter(|_| is_known), applying: Some(At::from(point)) })?;
        disks.known = Some(Known { at: point.position, lacks, seen: BTreeMap::new() });
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
        self.change(failback, |note| {
            for held in &mut note.volumes {
                held.seen = seen.get(&held.name).cloned().flatten();
            }
            note.stage = Stage::Held { at: Some(At::from(point)), applying: None };
        })
    }

    /// Serves the volumes, and has them take the history back, unless it was aborted. `Ok`: it is over, or they are held again.
    async fn return_to_service(self: &Arc<Self>, failback: &Arc<Failback>) -> anyhow::Result<()> {
        let note = locked(&failback.note).clone();
        if let Stage::Returning { at, forced: false, served: false } = &note.stage {
            // † Days may have gone by since that was decided.
            let have = at.as_ref().map(|at| at.position);
            let look = async { self.puller(&note.group, failback).await?.point(have).await };
            let point =
                look.await.map_err(|error| anyhow::anyhow!("{error}; to serve the disks in any case: --finish --force"))?;
            self.heard(failback, &point);
            if have != Some(point.position) || why_not(&point, note.generation).is_some() {
                return self.turn(failback, Stage::Held { at: at.clone(), applying: None });
            }
        }
        let takes_back = match &note.stage {
            Stage::Returning { at, forced, .. } => {
                self.turn(failback, Stage::Returning { at: at.clone(), forced: *forced, served: true })?;
                let at = at.as_ref().filter(|_| !forced).map(|at| at.position);
                Some((Generation(note.generation), at))
            }
            _ => None,
        };
        for held in note.volumes.iter().filter(|held| !held.leaving) {
            self.open_soon(&held.name);
        }
        for name in note.volumes.iter().filter(|held| !held.leaving).map(|held| &held.name) {
            // One that is removed meanwhile is waited for no more.
            while self.volumes_of(&note.group).iter().any(|volume| volume.name == *name) {
                let abort = locked(&failback.view).abort;
                if takes_back.is_some() && abort {
                    return self.turn(failback, Stage::Aborting);
                }
                match (self.volume_state(&note.group, name).await, takes_back) {
                    (None | Some(VolumeState::NotServed), _) => {}
                    (Some(_), None) => break,
                    (Some(VolumeState::Behind { .. } | VolumeState::Streaming | VolumeState::Paused), _) => break,
                    (Some(VolumeState::Idle), _) => {}
                    (Some(VolumeState::Fenced), Some((generation, at))) => {
                        self.ask(name, |id, reply| Ask::TakeBack(id, generation, at, reply)).await?;
                    }
                    (Some(state @ (VolumeState::Forked | VolumeState::TargetRewound | VolumeState::TrackingLost)), _) => {
                        anyhow::bail!("volume {name} is {}: farside volume show {name}", state.word());
                    }
                }
                let _ = tokio::time::timeout(SERVED, failback.told.notified()).await;
            }
        }
        self.forget_note(&note.group)?;
        locked(&self.failbacks.all).remove(&note.group);
        info!(group = %note.group, "the failback is over");
        Ok(())
    }

    /// A person removes a volume whose disk may be held: it is let go of, and served by nobody until that is done. `true`: it was held.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub(crate) async fn leave_failback(&self, group: &Name, name: &Name) -> Result<bool, ApiError> {
        let known = locked(&self.failbacks.all).get(group).filter(|one| one.holds((group, name), None)).cloned();
        let Some(failback) = known else { return Ok(false) };
        failback.traffic.interrupt.fetch_add(1, Ordering::SeqCst);
        let mut disks = failback.disks.lock().await;
        let kept =
            self.change(&failback, |note| note.volumes.iter_mut().filter(|v| v.name == *name).for_each(|v| v.leaving = true));
        failback.traffic.interrupt.fetch_sub(1, Ordering::SeqCst);
        kept.map_err(unkept)?;
        disks.open.remove(name);
        Ok(true)
    }

    /// That it is removed is done, or it stays.
    pub(crate) fn left_failback(&self, group: &Name, name: &Name, is_removed: bool) -> anyhow::Result<()> {
        let Some(failback) = locked(&self.failbacks.all).get(group).cloned() else { return Ok(()) };
        self.change(&failback, |note| match is_removed {
            true => note.volumes.retain(|held| held.name != *name),
            false => note.volumes.iter_mut().filter(|held| held.name == *name).for_each(|held| held.leaving = false),
        })?;
        if locked(&failback.note).volumes.is_empty() {
            self.forget_note(group)?;
            locked(&self.failbacks.all).remove(group);
        }
        failback.told.notify_one();
        Ok(())
    }
}

impl Disks {
    /// Nobody holds them any more.
    fn let_go(&mut self) {
        *self = Self::default();
    }

    /// Opens and locks what is not; what is not wanted is closed.
    async fn open(&mut self, volumes: &[VolumeConfig]) -> anyhow::Result<()> {
        self.open.retain(|name, _| volumes.iter().any(|volume| volume.name == *name));
        for volume in volumes {
            if self.open.contains_key(&volume.name) {
                continue;
            }
            let (path, name) = (volume.backing.clone(), volume.name.to_string());
            let target = tokio::task::spawn_blocking(move || {
                let target = FileTarget::open_to_follow(&path, &name, 0, false, true)?;
                target.read_anew().map(|()| target).map_err(anyhow::Error::from)
            });
            self.open.insert(volume.name.clone(), Arc::new(target.await??));
        }
        Ok(())
    }

    /// Believes what is known of the disks, or else what was noted, only as far as nobody can have written to them since.
    async fn believe(&mut self, noted: Option<(LedgerPosition, Vec<Held>)>) -> anyhow::Result<()> {
        let seen = self.sync_and_see().await?;
        if let Some(known) = &self.known {
            // Where nothing tells, that they are locked must do.
            let is_as_it_was = |name: &Name| known.lacks.contains_key(name) && seen.get(name) == known.seen.get(name);
            if self.open.keys().all(is_as_it_was) {
                return Ok(());
            }
            warn!("somebody wrote to a disk that is held, or it cannot be told: all is compared");
            self.known = None;
            return Ok(());
        }
        let Some((at, held)) = noted else { return Ok(()) };
        let then = |name: &Name| held.iter().find(|held| held.name == *name).and_then(|held| held.seen.as_ref());
        let is_as_it_was = |name: &Name| then(name).is_some() && seen.get(name).and_then(Option::as_ref) == then(name);
        if self.open.keys().all(is_as_it_was) {
            let lacks = self.open.keys().map(|name| (name.clone(), Arc::default())).collect();
            self.known = Some(Known { at, lacks, seen });
        }
        Ok(())
    }

    /// What tells whether somebody writes to them from now on.
    async fn sync_and_see(&self) -> anyhow::Result<BTreeMap<Name, Option<Seen>>> {
        let open = self.open.clone();
        let look = tokio::task::spawn_blocking(move || {
            let look = |(name, target): (Name, Arc<FileTarget>)| {
                target.sync()?;
                Ok((name, target.seen()?))
            };
            open.into_iter().map(look).collect::<std::io::Result<BTreeMap<_, _>>>()
        });
        Ok(look.await??)
    }

    fn lacks_something(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.lacks.values().any(|lacks| !locked(lacks).is_empty()))
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

/// Why the history cannot be taken back from there, unless a person forces it.
fn why_not(point: &PullPoint, generation: u64) -> Option<String> {
    let position = point.position.slot;
    if point.generation.0 != generation {
        return Some(format!(
            "the group was failed over again meanwhile (generation {}); if that is to be taken back: --force",
            point.generation
        ));
    }
    if let Some(other) = &point.other {
        return Some(match other.connected {
            true => format!("{} is connected, and may publish more: stop its users, then farsided on it", other.name),
            false => format!(
                "{} did not say that all of it is published: its connection broke, or the receiver was started since. Start farsided there, and \
                 stop it in order; or, if nobody writes there any more and what it may owe is to be lost: --force",
                other.name
            ),
        });
    }
    if let Some(newer) = point.passed_over {
        return Some(format!(
            "newer points, up to {newer}, hold what their source could not read, and this is point {position}: mend that disk, or --force"
        ));
    }
    (!point.by_holder).then(|| "nothing was published since the failover; --force to go on with what was before".to_owned())
}

/// What is kept below a state directory.
///
/// # Errors
/// When something of it cannot be read.
fn notes(state_dir: &Path) -> anyhow::Result<Vec<Note>> {
    let found = match std::fs::read_dir(state_dir.join("failback")) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut notes = Vec::new();
    for entry in found {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        let read = std::fs::read_to_string(&path).map_err(anyhow::Error::from);
        let note = read.and_then(|text| Ok(serde_json::from_str::<Note>(&text)?)).map_err(|error| {
            anyhow::anyhow!(
                "{}: {error}; it says which disks hold a part of a point: put it back, or remove it only if you compare them all",
                path.display()
            )
        })?;
        if note.version != VERSION {
            anyhow::bail!("{} is of version {}, and this build reads {VERSION}", path.display(), note.version);
        }
        notes.push(note);
    }
    Ok(notes)
}

/// Whether a disk may hold a part of a point, so that nobody may see it, farsided or not.
///
/// # Errors
/// When that cannot be told.
pub(crate) fn is_half_done(state_dir: &Path, volume: &Name, backing: &Path) -> anyhow::Result<bool> {
    let is_half_done = |note: Note| {
        let is_half = matches!(note.stage, Stage::Held { applying: Some(_), .. });
        is_half && note.volumes.iter().any(|held| held.name == *volume || is_same_disk(&held.backing, backing))
    };
    Ok(notes(state_dir)?.into_iter().any(is_half_done))
}

/// Whether two paths are one disk, or one file.
fn is_same_disk(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let which = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let is_device = found.file_type().is_block_device();
        Some((is_device, if is_device { (found.rdev(), 0) } else { (found.dev(), found.ino()) }))
    };
    one == other || which(one).is_some_and(|one| which(other) == Some(one))
}

/// Whether a volume's disk can be brought to its part of a point.
fn fits(volume: &VolumeConfig, point: &PullPoint) -> Result<(), String> {
    let member = point.members.iter().find(|member| member.meta.name == volume.name);
    let member = member.ok_or_else(|| format!("volume {} is not in point {}", volume.name, point.position.slot))?;
    if member.meta.digest_key.clear().is_none() {
        return Err(format!("volume {} is encrypted: restore it with its key", volume.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use farside_region::{RecordDigest, Slot};

    use super::*;

    fn note(stage: Stage, backing: &Path) -> Note {
        let held = Held { name: "data".parse().expect("a name"), backing: backing.to_owned(), seen: None, leaving: false };
        Note { version: VERSION, group: "db".parse().expect("a name"), generation: 2, volumes: vec![held], stage }
    }

    fn at() -> At {
        At { position: LedgerPosition { slot: Slot(7), digest: RecordDigest([0x5a; 32]) }, wall_ms: 0 }
    }

    #[test]
    fn a_position_is_kept_as_it_is() {
        let kept = serde_json::to_value(at()).expect("JSON");
        let position = serde_json::from_value::<At>(kept.clone()).expect("as it was kept").position;
        assert_eq!((position.slot, position.digest), (Slot(7), RecordDigest([0x5a; 32])));
        for bad in ["", "5a", &"5g".repeat(32), &"é".repeat(32)] {
            let mut kept = kept.clone();
            kept["position"]["digest"] = bad.into();
            assert!(serde_json::from_value::<At>(kept).is_err(), "{bad}");
        }
    }

    /// A disk is the same under whatever name, and nobody sees one that holds a part of a point.
    #[test]
    fn a_disk_that_is_half_done_is_known_by_any_name() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (disk, other) = (dir.path().join("disk"), dir.path().join("other"));
        std::fs::write(&disk, b"x").expect("written");
        std::fs::write(&other, b"x").expect("written");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&disk, &link).expect("linked");
        let name = |text: &str| -> Name { text.parse().expect("a name") };
        std::fs::create_dir(dir.path().join("failback")).expect("made");
        let keep = |stage: Stage| {
            let text = serde_json::to_string(&note(stage, &disk)).expect("JSON");
            std::fs::write(dir.path().join("failback/db.json"), text).expect("written");
        };
        keep(Stage::Held { at: Some(at()), applying: Some(at()) });
        let half = |volume: &str, backing: &Path| is_half_done(dir.path(), &name(volume), backing).expect("readable");
        assert!(half("data", &other) && half("x", &disk) && half("x", &link) && !half("x", &other));
        keep(Stage::Held { at: Some(at()), applying: None });
        assert!(!half("data", &disk));
        std::fs::write(dir.path().join("failback/db.json"), "{").expect("written");
        let unreadable = is_half_done(dir.path(), &name("x"), &other).expect_err("nobody knows").to_string();
        assert!(unreadable.contains("db.json"), "{unreadable}");
    }

    #[test]
    fn what_may_be_opened_follows_from_the_stage() {
        let dir = tempfile::tempdir().expect("temp dir");
        let disk = dir.path().join("disk");
        std::fs::write(&disk, b"x").expect("written");
        let name = |text: &str| -> Name { text.parse().expect("a name") };
        let (db, data, x) = (name("db"), name("data"), name("x"));
        let returning = |served| Stage::Returning { at: Some(at()), forced: false, served };
        let held = Stage::Held { at: None, applying: None };
        for (stage, holds) in [(held, true), (returning(false), true), (returning(true), false), (Stage::Aborting, false)] {
            let mut note = note(stage, &disk);
            assert_eq!(Failback::new(note.clone()).holds((&db, &data), None), holds, "{note:?}");
            assert_eq!(Failback::new(note.clone()).holds((&x, &x), Some(&disk)), holds, "{note:?}");
            assert!(!Failback::new(note.clone()).holds((&x, &data), Some(dir.path())));
            note.volumes[0].leaving = true;
            assert!(Failback::new(note).holds((&db, &data), None), "it is being removed");
        }
    }
}
