//! Which volumes are served: opened at the start, added, taken over by a reload, removed.
//!
//! Invariants: a volume is opened once at a time; what is served by a command is configured, or not served again. A device that
//! does not answer holds up its own volume; who waits for it under the lock of changes, a reload or the removal of what is not served,
//! does so for less than [`RELOAD_WAIT`], and nobody does under another lock.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use farside_blockio::DeviceError;
use farside_blockio::dm::DevNumber;
use farside_control::source::VolumeAdd;
use farside_control::{ApiError, Code, ErrorCode, Reason, Severity};
use farside_insert::State;
use farside_nbd::ListenError;
use farside_region::{Name, NameError, VolumeId};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::Daemon;
use crate::boot;
use crate::config::{Config, ConfigError, VolumeConfig};
use crate::failback::HeldByFailback;
use crate::group::{Ask, Farewell, GroupStart, Leaving, Note};
use crate::keys::KeyMissing;
use crate::locked;
use crate::source_name;
use crate::state_dir::Mark;
use crate::strangers::{Strangers, left_in};
use crate::tap::{self, TapConfig};
use crate::volume::{Surroundings, device_of};
pub(crate) use claimed::Claimed;
use claimed::claimed;
use inserted::take_out_unused;
pub(crate) use inserted::{HeldDevice, UsedByNobody};

mod again;
mod claimed;
mod held;
mod inserted;
mod known;
mod moved;
mod reopen;

/// How long a command waits for the last requests of a volume that leaves. Less than a client waits for its answer.
pub(super) const LEAVE_WAIT: Duration = Duration::from_secs(15);

/// How long a reload waits in all. Less than a client waits, too; what takes longer goes on.
const RELOAD_WAIT: Duration = Duration::from_secs(25);

/// How long a device is waited for that cannot carry a tap now, and a volume that could not be opened, before the next look.
const AGAIN: Duration = Duration::from_secs(1);

/// And so long at most.
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// The volumes beside what their groups know of them.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    served: Mutex<BTreeMap<Name, (Name, VolumeId)>>,
    /// Why what is configured is not served.
    unserved: Mutex<BTreeMap<Name, Unserved>>,
    /// Served still, and to be closed when their last requests are answered.
    leaving: Mutex<BTreeSet<Name>>,
    /// Those that somebody opens as soon as that can be, and tries again until then.
    tried: Mutex<BTreeSet<Name>>,
    /// Those that could not be opened, each with somebody who tries again from time to time.
    pub(super) tried_again: Mutex<BTreeSet<Name>>,
    /// Those that a command is adding, until they are configured.
    pub(super) adding: Mutex<BTreeMap<Name, VolumeConfig>>,
    strangers: std::sync::OnceLock<Strangers>,
    known: known::Known,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unserved {
    /// It is being opened.
    Starting,
    /// It is being opened again, after it could not be for this reason.
    TriedAgain(String),
    /// It is being closed first.
    Closing,
    /// It would be, but what it remembers cannot be kept, for this reason.
    Unkept(String),
    /// It cannot be, for this reason, and is tried again.
    Failed(String),
    /// It cannot be before a person does something, for this reason.
    GivenUp(String),
    /// Not before the key of its group is here, which is asked for.
    KeyMissing(String),
    /// Not before the failback of its group is over.
    FailingBack(Name),
}

impl Volumes {
    pub(super) fn served(&self) -> usize {
        locked(&self.served).len()
    }

    /// Those that are being opened.
    pub(super) fn opening(&self) -> Vec<String> {
        let unserved = locked(&self.unserved);
        unserved.iter().filter(|(_, why)| why.is_opening()).map(|(name, _)| name.to_string()).collect()
    }

    pub(super) fn is_served(&self, name: &Name) -> bool {
        locked(&self.served).contains_key(name)
    }

    /// Claims the opening of a volume. False: somebody is at it, or it is served.
    fn begin(&self, name: &Name) -> bool {
        self.begin_as(name, |_| Unserved::Starting)
    }

    /// What is said of it meanwhile is made of what was said before.
    fn begin_as(&self, name: &Name, meanwhile: impl FnOnce(Option<&Unserved>) -> Unserved) -> bool {
        let mut unserved = locked(&self.unserved);
        let before = unserved.get(name);
        if self.is_served(name) || before.is_some_and(Unserved::is_opening) {
            return false;
        }
        let meanwhile = meanwhile(before);
        unserved.insert(name.clone(), meanwhile);
        true
    }

    /// Claims the end of a volume. False: somebody has, or it is not served.
    pub(super) fn begin_to_leave(&self, name: &Name) -> bool {
        let mut leaving = locked(&self.leaving);
        self.is_served(name) && leaving.insert(name.clone())
    }

    pub(super) fn left(&self, name: &Name) {
        let mut leaving = locked(&self.leaving);
        locked(&self.served).remove(name);
        leaving.remove(name);
    }

    /// It could not leave.
    fn stays(&self, name: &Name) {
        locked(&self.leaving).remove(name);
    }

    /// Why no group tells of a volume. `None`: nobody serves it, or opens it.
    pub(super) fn why_untold(&self, name: &Name) -> Option<Unserved> {
        if self.is_leaving(name) {
            return Some(Unserved::Closing);
        }
        let why = locked(&self.unserved).get(name).cloned();
        // Served it came to be after its group was asked.
        why.or_else(|| self.is_served(name).then_some(Unserved::Starting))
    }

    pub(super) fn is_added(&self, name: &Name) -> bool {
        locked(&self.adding).contains_key(name)
    }

    pub(super) fn is_leaving(&self, name: &Name) -> bool {
        locked(&self.leaving).contains(name)
    }

    /// Whether somebody tries to open it until that can be.
    pub(super) fn is_tried(&self, name: &Name) -> bool {
        !self.is_served(name) && (locked(&self.tried_again).contains(name) || locked(&self.tried).contains(name))
    }

    /// Whoever tries it does so again, whatever kept it from being opened.
    fn is_tried_on(&self, name: &Name) {
        if let Some(why) = locked(&self.unserved).get_mut(name)
            && let Unserved::GivenUp(given_up) = why
        {
            *why = Unserved::Failed(std::mem::take(given_up));
        }
    }

    /// It is tried until the answer is dropped.
    fn tries(&self, name: &Name) -> Tried<'_> {
        locked(&self.tried).insert(name.clone());
        Tried { volumes: self, name: name.clone() }
    }

    /// How many are not served at this moment and may have users who wait for that.
    pub(super) fn awaited(&self, configured: &[Name], has_device: impl Fn(&Name) -> bool) -> usize {
        let leaving = locked(&self.leaving).len();
        leaving + configured.iter().filter(|name| !self.is_served(name) && has_device(name)).count()
    }
}

/// Somebody opens a volume as soon as that can be.
struct Tried<'a> {
    volumes: &'a Volumes,
    name: Name,
}

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        locked(&self.volumes.tried).remove(&self.name);
    }
}

/// Devices that did not answer in time when they were to be taken away, each with what is still at it.
#[derive(Debug, Default)]
pub(super) struct Silent(BTreeMap<Name, JoinHandle<anyhow::Result<()>>>);

impl Silent {
    /// How many have not answered yet.
    pub(super) fn still(&self) -> usize {
        self.0.values().filter(|withdrawal| !withdrawal.is_finished()).count()
    }
}

/// What comes of something, unless that takes longer; it goes on then, and `late` is told what came of it. Whoever holds a lock waits
/// no longer than that for a device.
async fn in_time<T: Send + 'static>(
    until: Instant,
    work: impl Future<Output = T> + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Option<T> {
    let mut work = tokio::spawn(work);
    match tokio::time::timeout_at(until, &mut work).await {
        Ok(done) => done.ok(),
        Err(_) => {
            tokio::spawn(async move { work.await.map(late) });
            None
        }
    }
}

/// Tells whoever waits for a volume that leaves what came of it; the log, if he has given up.
fn said_in_time(name: &Name, done: oneshot::Sender<anyhow::Result<()>>, left: anyhow::Result<()>) {
    match done.send(left) {
        Ok(()) => {}
        Err(Ok(())) => info!(volume = %name, "it has left"),
        Err(Err(why)) => error!(volume = %name, "{why:#}"),
    }
}

/// Why a volume has not left well.
enum LeaveError {
    /// It is served as before.
    Stays(ApiError),
    /// It has left.
    Failed(ApiError),
}

impl Daemon {
    /// Begins to open everything that is configured, each on a task of its own. Whoever polls the set hears of each end.
    pub(super) fn start_all(self: &Arc<Self>) -> tokio::task::JoinSet<()> {
        let configured: Vec<VolumeConfig> = locked(&self.config).volumes.values().cloned().collect();
        configured.iter().for_each(|v| assert!(self.volumes.begin(&v.name), "nobody else opens volumes yet"));
        let known: Vec<PathBuf> = configured.iter().map(|v| self.state.volume_path(&v.group, &v.name)).collect();
        let ids: Vec<VolumeId> = configured.iter().map(|v| self.id_of(v)).collect();
        let device = |v: &VolumeConfig| device_of(v, &self.state.volume_path(&v.group, &v.name));
        let devices: Vec<PathBuf> = configured.iter().filter(|v| v.insert).map(device).collect();
        let folders = left_in(&self.state.volumes(), &known);
        let left: Vec<VolumeId> = folders.iter().filter_map(|dir| self.id_in(dir)).collect();
        tap::sweep(&ids, &left, &devices, &self.around.runtime_dir, &self.around.backings);
        folders.into_iter().filter(|dir| tap::has_token(dir)).for_each(|dir| self.end_stray(dir));
        let strangers = Strangers::mark(&self.state.volumes(), known, &|dir| self.note_loss(dir));
        self.volumes.strangers.set(strangers).expect("volumes are started once");
        let mut starts = tokio::task::JoinSet::new();
        for volume in configured {
            let daemon = self.clone();
            // One volume that cannot be served must not keep the others from their hosts.
            starts.spawn(async move {
                let name = volume.name.clone();
                if let Err(error) = daemon.open_configured(volume).await {
                    error!(volume = %name, "not served: {error:#}");
                }
            });
        }
        starts
    }

    pub(super) fn id_of(&self, volume: &VolumeConfig) -> VolumeId {
        farside_ledger::volume_id(&self.source_of(&volume.group), &volume.group, &volume.name)
    }

    /// Of the volume that has this folder.
    fn id_in(&self, dir: &Path) -> Option<VolumeId> {
        let (group, name) = names_of(dir)?;
        Some(farside_ledger::volume_id(&self.source_of(&group), &group, &name))
    }

    /// Ends the device that a volume left which is not configured any more, if nobody uses it. Its name is claimed from here on:
    /// whoever adds it meanwhile is told to wait, and does not get a device that is about to go.
    fn end_stray(self: &Arc<Self>, dir: PathBuf) {
        let Some((group, name)) = names_of(&dir).filter(|(_, name)| self.volumes.begin(name)) else { return };
        let id = farside_ledger::volume_id(&self.source_of(&group), &group, &name);
        let daemon = self.clone();
        // Not waited for: a device whose server is gone may not answer.
        tokio::task::spawn_blocking(move || {
            match tap::end(&dir, id, &name, &daemon.around.runtime_dir) {
                Ok(()) => info!(volume = %name, "it is not configured any more, and has no device any more"),
                Err(error) => warn!(
                    volume = %name,
                    "it is not configured any more, and its device stays, whose users wait: {error:#}; stop them and restart farsided, or add the volume again"
                ),
            }
            locked(&daemon.volumes.unserved).remove(&name);
        });
    }

    /// A volume is not configured any more. From then on it may be written without us: its map is not trusted again.
    fn forget(&self, group: &Name, name: &Name) {
        let dir = self.state.volume_path(group, name);
        self.volumes.strangers.get().expect("set before the first").forget(&dir, &|dir| self.note_loss(dir));
    }

    /// Serves a volume whose opening was claimed; says so, or why not, to whoever asks from then on.
    async fn open(self: &Arc<Self>, volume: VolumeConfig) -> anyhow::Result<()> {
        let (name, group, is_inserted) = (volume.name.clone(), volume.group.clone(), volume.insert);
        let opened = self.try_to_open(volume).await;
        self.around.backings.want_no_more(&name);
        let configured = locked(&self.config).volumes.contains_key(&name);
        let mut unserved = locked(&self.volumes.unserved);
        match &opened {
            Err(error) if configured && error.is::<KeyMissing>() => {
                unserved.insert(name, Unserved::KeyMissing(error.to_string()))
            }
            Err(error) if configured && error.is::<HeldByFailback>() => unserved.insert(name, Unserved::FailingBack(group)),
            Err(error) if configured && again::is_given_up(error, is_inserted) => {
                unserved.insert(name, Unserved::GivenUp(format!("{error:#}")))
            }
            Err(error) if configured => unserved.insert(name, Unserved::Failed(format!("{error:#}"))),
            _ => unserved.remove(&name),
        };
        opened
    }

    /// Like [`Daemon::open`], of a volume that a reload may take out of the configuration meanwhile: it is let go then. One that
    /// cannot be opened now is tried again by itself: its host may wait, in the device that an earlier daemon made, for something that
    /// is over by then.
    async fn open_configured(self: &Arc<Self>, volume: VolumeConfig) -> anyhow::Result<()> {
        let (name, group, is_inserted) = (volume.name.clone(), volume.group.clone(), volume.insert);
        let opened = self.open(volume).await;
        if let Err(error) = &opened {
            self.open_again(&name, error, is_inserted);
        }
        opened?;
        if !locked(&self.config).volumes.contains_key(&name) {
            self.forget(&group, &name);
            self.leave(&name, None);
            bail!("it was taken out of the configuration while it was being opened");
        }
        Ok(())
    }

    async fn try_to_open(self: &Arc<Self>, volume: VolumeConfig) -> anyhow::Result<()> {
        let name = volume.name.clone();
        let group = volume.group.clone();
        self.refuse_held((&group, &name), &volume.backing)?;
        let source = self.source_of(&group);
        let id = farside_ledger::volume_id(&source, &group, &name);
        let (strangers, dir) =
            (self.volumes.strangers.get().expect("set before the first"), self.state.volume_path(&group, &name));
        strangers.admit(&dir)?;
        self.end_where_it_was(&dir, &group, &volume, id).await?;
        let is_own = source == self.around.source;
        if is_own {
            source_name::before_a_volume(self.state.path(), &source)?;
        }
        let settings = locked(&self.config).group(&group); // never both locks at once
        if locked(&self.config).volumes.contains_key(&name) {
            self.volumes.known.tell_of(&group);
        }
        let inbox = {
            let mut groups = locked(&self.groups);
            // What is opened after the stop began would be closed by nobody.
            if self.is_stopping() {
                bail!("farsided is stopping");
            }
            if !groups.contains_key(&group) {
                let start = GroupStart {
                    name: group.clone(),
                    config: settings,
                    around: Surroundings { source, ..self.around.clone() },
                    state: self.state.clone(),
                    dial: self.volumes.known.dial(&group, self.dialer(self.around.limits.connections)),
                    instance: self.instance,
                };
                groups.insert(group.clone(), start.start()?);
            }
            groups[&group].inbox.clone()
        };
        let (reply, answer) = oneshot::channel();
        inbox.send(Note::Ask(Ask::Add(volume, reply)));
        let added = answer.await.context("the group's thread has ended")?;
        // The gateway may have the key.
        if added.as_ref().err().is_none_or(|error| error.is::<KeyMissing>()) {
            self.volumes.known.tell_of(&group);
        }
        added?;
        strangers.serves(&dir);
        if is_own {
            source_name::serves(self.state.path(), &self.around.source);
        }
        locked(&self.volumes.served).insert(name, (group, id));
        Ok(())
    }

    /// Claims the device of a volume that is to leave: whoever uses it keeps it, and the volume stays.
    pub(crate) async fn claim(&self, name: &Name) -> Result<Claimed, ApiError> {
        let Leaving { tap, insertion, dir } = self.ask(name, Ask::Leaving).await?;
        if let Some(insertion) = insertion {
            self.take_out_of_device(name, insertion, &dir).await?;
            return Ok(Claimed::once_out(tap, None, None).await);
        }
        match claimed(&tap).await {
            Ok(Ok(Ok(unused))) => Ok(Claimed { tap, unused, is_out: false, held: None, end: None }),
            Ok(Ok(Err(error))) => {
                let what = format!("volume {name} stays: {error:#}");
                Err(ApiError::new(ErrorCode::Conflict, what, "then say the same again"))
            }
            Ok(Err(error)) => Err(ApiError::internal(error)),
            Err(_) => {
                let what = format!("volume {name} stays: its device does not answer");
                Err(ApiError::new(ErrorCode::Unavailable, what, "see the kernel's log, then say the same again"))
            }
        }
    }

    /// Takes away the devices that nobody uses, all at once, since their host is being switched off. Whoever reads one that stays
    /// would wait for ever, and some read all that there are: LVM does then. Gives how many stay because they are used; one that
    /// does not answer within `patience` joins `silent`, and is not asked again before it does. One that is being closed does
    /// not answer for now.
    pub(super) async fn withdraw_unused(self: &Arc<Self>, patience: Duration, silent: &mut Silent) -> usize {
        silent.0.retain(|_, withdrawal| !withdrawal.is_finished());
        let names: Vec<Name> = locked(&self.volumes.served).keys().filter(|name| !silent.0.contains_key(name)).cloned().collect();
        let names = names.into_iter().filter(|name| !self.volumes.is_leaving(name));
        let mut withdrawals = tokio::task::JoinSet::new();
        for name in names {
            let daemon = self.clone();
            withdrawals.spawn(async move {
                let mut withdrawal = tokio::spawn({
                    let (daemon, name) = (daemon, name.clone());
                    async move { daemon.withdraw(&name).await }
                });
                match tokio::time::timeout(patience, &mut withdrawal).await {
                    Ok(withdrawn) => (name, Ok(withdrawn.map_err(anyhow::Error::from).flatten())),
                    Err(_) => (name, Err(withdrawal)),
                }
            });
        }
        let mut stay = 0;
        while let Some(ended) = withdrawals.join_next().await {
            match ended {
                Ok((_, Ok(Ok(())))) => {}
                Ok((volume, Ok(Err(error)))) => {
                    debug!(%volume, "its device stays: {error:#}");
                    stay += 1;
                }
                Ok((volume, Err(withdrawal))) => {
                    warn!(%volume, "its device does not answer yet; while it stays, whoever reads it waits for the next start");
                    silent.0.insert(volume, withdrawal);
                }
                Err(error) => warn!(%error, "a device stays"),
            }
        }
        stay
    }

    async fn withdraw(&self, name: &Name) -> anyhow::Result<()> {
        let Ok(Leaving { tap, insertion, .. }) = self.ask(name, Ask::Leaving).await else { return Ok(()) };
        let (volume, runtime_dir) = (name.clone(), self.around.runtime_dir.clone());
        let withdraw = move || {
            let _nobody = insertion.map(|insertion| take_out_unused(insertion, &runtime_dir)).transpose()?;
            let unused = tap.claim()?;
            tap.withdraw(&volume, unused).unwrap_or_else(|error| warn!(%volume, "its device stays: {error:#}"));
            Ok(())
        };
        tokio::task::spawn_blocking(withdraw).await?
    }

    /// Claims the device, takes it from the host, then lets the volume go.
    async fn take_down(&self, name: &Name, claimed: Option<Claimed>) -> Result<(), LeaveError> {
        let claimed = match claimed {
            Some(claimed) => claimed,
            None => self.claim(name).await.map_err(LeaveError::Stays)?,
        };
        let volume = name.clone();
        let withdrawn = tokio::task::spawn_blocking(move || claimed.withdraw(&volume)).await;
        let error = match withdrawn.map_err(anyhow::Error::from).flatten() {
            Ok(held) => {
                let left = self.ask_to_leave(name, Farewell::Removed).await.flatten().map_err(LeaveError::Failed);
                drop(held); // nobody had it before the volume was closed
                return left;
            }
            Err(error) => error,
        };
        error!(volume = %name, "its device is still there, and whatever uses it waits: {error:#}");
        // † By its folder the next start knows whose that device is.
        self.ask_to_leave(name, Farewell::DeviceStays).await.flatten().map_err(LeaveError::Failed)?;
        let what = format!("volume {name} is not configured any more, and its device is still there: {error:#}");
        let todo = "stop whatever uses it, then `systemctl restart farsided`, which takes it away; or add the volume again";
        Err(LeaveError::Failed(ApiError::new(ErrorCode::Unavailable, what, todo)))
    }

    /// What came of a volume that is to leave. The outer error: it stays as it was.
    async fn ask_to_leave(&self, name: &Name, farewell: Farewell) -> Result<Result<(), ApiError>, ApiError> {
        let left = self.ask(name, |id, reply| Ask::Leave(id, farewell, reply)).await?;
        Ok(left.map_err(|error| ApiError::new(ErrorCode::Conflict, format!("{error:#}"), "see the daemon's log")))
    }

    /// Lets a volume go, in the background, however long its device takes. None: it is leaving already, or not served.
    ///
    /// What is configured again by then is opened again.
    fn leave(self: &Arc<Self>, name: &Name, mut claimed: Option<Claimed>) -> Option<oneshot::Receiver<anyhow::Result<()>>> {
        if !claimed.as_mut().is_some_and(Claimed::takes_its_end) && !self.volumes.begin_to_leave(name) {
            return None;
        }
        let (done, gone) = oneshot::channel();
        let (daemon, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            let left = match daemon.take_down(&name, claimed).await {
                Err(LeaveError::Stays(why)) => {
                    daemon.volumes.stays(&name);
                    return said_in_time(&name, done, Err(anyhow::anyhow!("{why}")));
                }
                Err(LeaveError::Failed(why)) => Err(anyhow::anyhow!("{why}")),
                Ok(()) => Ok(()),
            };
            daemon.volumes.left(&name);
            daemon.show_disk(&name).await;
            said_in_time(&name, done, left);
            daemon.open_what_is_configured(&name).await;
        });
        Some(gone)
    }

    /// It is served, if it is configured and nobody serves it; in the background.
    pub(crate) fn open_soon(self: &Arc<Self>, name: &Name) {
        let (daemon, name) = (self.clone(), name.clone());
        tokio::spawn(async move { daemon.open_what_is_configured(&name).await });
    }

    /// What came to be configured while somebody had claimed its name.
    async fn open_what_is_configured(self: &Arc<Self>, name: &Name) {
        let configured = locked(&self.config).volumes.get(name).cloned().filter(|_| self.volumes.begin(name));
        if let Some(volume) = configured
            && let Err(error) = self.open_configured(volume).await
        {
            error!(volume = %name, "not served again: {error:#}");
        }
    }

    /// The disk of a volume that has left is its host's again, unless the volume is configured, or somebody opens it. Nobody does
    /// meanwhile.
    pub(crate) async fn show_disk(&self, name: &Name) {
        if !locked(&self.config).volumes.contains_key(name) && self.volumes.begin(name) {
            self.show_claimed_disk(name).await;
            locked(&self.volumes.unserved).remove(name);
        }
    }

    /// As [`Daemon::show_disk`], of a volume whose opening was claimed.
    async fn show_claimed_disk(&self, name: &Name) {
        let (backings, name) = (self.around.backings.clone(), name.clone());
        tokio::task::spawn_blocking(move || backings.let_go(&name))
            .await
            .unwrap_or_else(|error| warn!(%error, "a disk stays hidden"));
    }

    /// Waits for a volume that leaves; not longer than a person would.
    async fn gone(name: &Name, gone: oneshot::Receiver<anyhow::Result<()>>, until: Instant) -> Result<(), ApiError> {
        match tokio::time::timeout_at(until, gone).await {
            Ok(Ok(left)) => left.map_err(|e| ApiError::new(ErrorCode::Unavailable, format!("{e:#}"), "see the daemon's log")),
            Ok(Err(_)) => Err(ApiError::internal(format!("volume {name} was not let go"))),
            Err(_) => Err(ApiError::new(
                ErrorCode::Unavailable,
                format!("the device of volume {name} does not answer: requests of its host are still under way"),
                "it is not configured any more and takes no new requests; it is let go, and its state removed, when the device answers",
            )),
        }
    }

    /// Takes over which volumes there are.
    pub(super) async fn take_over_volumes(self: &Arc<Self>, new: &BTreeMap<Name, VolumeConfig>) -> Vec<String> {
        let (began, mut failed) = (Instant::now(), Vec::new());
        // Claimed before anything is waited for: from now on they are being opened.
        new.keys().filter(|name| !self.volumes.is_served(name)).for_each(|name| self.around.backings.want_back(name));
        let (begun, refused): (Vec<_>, Vec<_>) = new.values().cloned().partition(|volume| self.volumes.begin(&volume.name));
        let late = refused.iter().filter(|volume| self.volumes.is_leaving(&volume.name));
        failed.extend(late.map(|volume| format!("{}; then it is opened again", self.under_way(&volume.name).message)));
        // † Who tries by himself just now may have looked before a person mended what was wrong.
        let tried_now = |volume: &VolumeConfig| self.volumes.is_tried(&volume.name);
        let tried_now: Vec<_> = refused.iter().filter(|volume| tried_now(volume)).cloned().collect();
        // Of these a removal was not finished.
        let served: Vec<Name> = locked(&self.volumes.served).keys().cloned().collect();
        let gone = served.into_iter().filter(|name| !new.contains_key(name) && !self.volumes.is_added(name));
        let leaving: Vec<_> = gone.filter_map(|name| self.leave(&name, None).map(|gone| (name, gone))).collect();
        for (name, gone) in leaving {
            failed.extend(Self::gone(&name, gone, began + LEAVE_WAIT).await.err().map(|e| format!("volume {name}: {e}")));
        }
        locked(&self.volumes.unserved).retain(|name, why| new.contains_key(name) || why.is_opening());
        let mut starts = tokio::task::JoinSet::new();
        let begun = begun.into_iter().map(|volume| (volume, true)).chain(tried_now.into_iter().map(|volume| (volume, false)));
        for (volume, is_begun) in begun {
            let (daemon, name) = (self.clone(), volume.name.clone());
            let late = {
                let name = name.clone();
                move |opened: anyhow::Result<()>| match opened {
                    Ok(()) => info!(volume = %name, "it is open at last"),
                    Err(error) => error!(volume = %name, "not served: {error:#}"),
                }
            };
            let open = async move {
                if !is_begun && !daemon.begin_after_others(&volume.name, began + RELOAD_WAIT).await {
                    return Ok(()); // it is served, or status says what comes of it
                }
                daemon.around.backings.want_back(&volume.name);
                daemon.open_configured(volume).await
            };
            starts.spawn(async move {
                match in_time(began + RELOAD_WAIT, open, late).await {
                    Some(opened) => opened.err().map(|e| format!("volume {name}: {e:#}")),
                    None => {
                        Some(format!("volume {name} is still being opened: `farside volume show {name}` says what comes of it"))
                    }
                }
            });
        }
        failed.extend(starts.join_all().await.into_iter().flatten());
        failed.extend(self.make_small_ones_anew(began + RELOAD_WAIT).await);
        failed
    }

    /// Whether a volume is served, as far as is known here.
    pub(crate) fn is_served(&self, name: &Name) -> bool {
        self.volumes.is_served(name)
    }

    pub(crate) fn find(&self, name: &str) -> Result<(Name, Name, VolumeId), ApiError> {
        let missing = || ApiError::not_found("volume", name, "`farside volume list` shows them");
        let parsed: Name = name.parse().map_err(|_| missing())?;
        if let Some((group, id)) = locked(&self.volumes.served).get(&parsed).cloned() {
            return Ok((parsed, group, id));
        }
        let reasons = self.untold(&[], &[]).into_iter().find(|volume| volume.name == name).map(|volume| volume.reasons);
        let reason = reasons.and_then(|mut reasons| reasons.pop());
        Err(reason.map_or_else(missing, |reason| ApiError::new(ErrorCode::Conflict, reason.message, reason.what_to_do)))
    }

    pub(crate) async fn add_volume(self: &Arc<Self>, add: &VolumeAdd) -> Result<(), ApiError> {
        let one = self.begin_change().await?;
        let volume = self.new_volume(add)?;
        self.is_read(&volume)?;
        // One of that name that is not gone yet listens there itself.
        if !self.volumes.is_leaving(&volume.name) && !self.volumes.is_added(&volume.name) {
            is_nobodys(&volume.tap).await?;
        }
        self.around.backings.want_back(&volume.name);
        if !self.volumes.begin(&volume.name) {
            return Err(self.under_way(&volume.name));
        }
        // Served first: what cannot be served is not written down. But a device that rests on our tap is served whatever comes,
        // also by who starts after a crash at any moment of this.
        let config = locked(&self.config).clone();
        if volume.insert
            && let Err(error) = config.write_volume(&volume)
        {
            self.forget(&volume.group, &volume.name);
            locked(&self.volumes.unserved).remove(&volume.name);
            return Err(not_written(&volume.name, &error));
        }
        locked(&self.volumes.adding).insert(volume.name.clone(), volume.clone());
        // A device that does not answer its opening holds up no other change.
        drop(one);
        let added = match self.open(volume.clone()).await {
            Ok(()) => self.write_down(&volume).await,
            Err(error) => Err(self.give_up_adding(&volume, &error).await),
        };
        locked(&self.volumes.adding).remove(&volume.name);
        added
    }

    /// † Whether the volume is to be encrypted, and whose history it goes on with, is what its files say, not what was read of them: a first
    /// sync in clear cannot be taken back, and one of a history of its own never becomes what a stand-in is to be.
    fn is_read(&self, volume: &VolumeConfig) -> Result<(), ApiError> {
        let (path, group) = (locked(&self.config).path.clone(), &volume.group);
        let invalid = |error: &ConfigError| ApiError::new(ErrorCode::Conflict, error.to_string(), "mend the configuration first");
        let there = Config::load(&path).map_err(|error| invalid(&error))?.group(group);
        let (here, is_used) = {
            let config = locked(&self.config);
            (config.group(group), config.volumes.values().any(|volume| volume.group == *group))
        };
        let (key, todo) = match is_used {
            _ if there.encryption != here.encryption => {
                ("`encryption` or `key`", "systemctl restart farsided, then add the volume")
            }
            _ if there.stand_in_for == here.stand_in_for => return Ok(()),
            false => ("`stand_in_for`", "farside reload, then add the volume"),
            true => (
                "`stand_in_for`",
                "put it back, or take the group's other volumes out first: `farside volume remove NAME`, then farside reload",
            ),
        };
        let what = format!("{key} of group {group} changed in the configuration since farsided read it");
        Err(ApiError::new(ErrorCode::Conflict, what, todo))
    }

    /// A volume that is added is served: it is configured.
    async fn write_down(self: &Arc<Self>, volume: &VolumeConfig) -> Result<(), ApiError> {
        let one = self.changes.lock().await;
        let config = locked(&self.config).clone();
        // A reload may have taken over what a person wrote while it was being opened. What rests on our tap is served whatever comes.
        let taken = config.volumes.values().find(|other| match other.name == volume.name {
            true => *other != volume,
            false => other.collides(volume),
        });
        let written = match (taken.filter(|_| !volume.insert), config.volumes.contains_key(&volume.name)) {
            (Some(other), _) => Err(collides(volume, other)),
            (None, true) => Ok(()),
            (None, false) => config.write_volume(volume).map(drop).map_err(|error| not_written(&volume.name, &error)),
        };
        if let Err(error) = written {
            self.forget(&volume.group, &volume.name);
            let gone = self.leave(&volume.name, None);
            drop(one);
            if let Some(gone) = gone {
                let gone = Self::gone(&volume.name, gone, Instant::now() + LEAVE_WAIT).await;
                gone.unwrap_or_else(|error| warn!(volume = %volume.name, "{error}"));
            }
            return Err(error);
        }
        locked(&self.config).volumes.insert(volume.name.clone(), volume.clone());
        Ok(())
    }

    /// A volume that is added cannot be served.
    pub(super) async fn give_up_adding(self: &Arc<Self>, volume: &VolumeConfig, error: &anyhow::Error) -> ApiError {
        // † What rests on our tap is served by whoever is started next, unless nobody knows it any more.
        if self.rests_on_tap(volume) {
            locked(&self.config).volumes.insert(volume.name.clone(), volume.clone());
            self.open_soon(&volume.name);
            let what =
                format!("volume {} is not served, but stays configured: its device rests on its tap: {error:#}", volume.name);
            return ApiError::new(
                ErrorCode::Conflict,
                what,
                "farside reload, once it is mended; then farside volume remove, if it is not wanted",
            );
        }
        if volume.insert {
            let _one = self.changes.lock().await;
            let config = locked(&self.config).clone();
            // † A reload has read what was written, and serves it, or says why not: it may rest on our tap by now.
            if config.volumes.contains_key(&volume.name) {
                let what =
                    format!("volume {} was not opened by this, but a reload has found it configured: {error:#}", volume.name);
                let todo = format!("farside volume show {}: it says what came of it", volume.name);
                self.open_soon(&volume.name);
                return ApiError::new(ErrorCode::Conflict, what, todo);
            }
            if let Err(why) = config.remove_volume(&volume.name)
                && config.has_written(&volume.name)
            {
                // The next start reads it, whatever is said here.
                locked(&self.config).volumes.insert(volume.name.clone(), volume.clone());
                locked(&self.volumes.unserved).insert(volume.name.clone(), Unserved::Failed(format!("{error:#}")));
                let what = format!("volume {} is not served, but stays configured ({why}): {error:#}", volume.name);
                return ApiError::new(
                    ErrorCode::Conflict,
                    what,
                    format!("mend that, then: farside volume remove {}", volume.name),
                );
            }
            locked(&self.volumes.unserved).remove(&volume.name);
        }
        // It may have been hidden on the way, and nobody serves it.
        self.show_disk(&volume.name).await;
        self.open_soon(&volume.name);
        let todo = what_would_do(error, volume);
        ApiError::new(ErrorCode::Conflict, format!("volume {} is not added: {error:#}", volume.name), todo)
    }

    /// Whether a host's device rests on the tap of a volume: whoever uses it waits for who serves that.
    fn rests_on_tap(&self, volume: &VolumeConfig) -> bool {
        let dir = self.state.volume_path(&volume.group, &volume.name);
        volume.insert && matches!(farside_insert::state_of(&device_of(volume, &dir)), Ok(State::Inserted { .. }))
    }

    /// What a request means, as far as that can be told without opening anything.
    fn new_volume(&self, add: &VolumeAdd) -> Result<VolumeConfig, ApiError> {
        let wrong = |what: String, todo: &str| ApiError::new(ErrorCode::BadRequest, what, todo);
        let named = |e: NameError| wrong(e.to_string(), "a name has 1 to 64 of a-z A-Z 0-9 . _ -");
        let name: Name = add.name.parse().map_err(named)?;
        let group: Name = add.group.as_deref().unwrap_or("default").parse().map_err(named)?;
        let mut config = locked(&self.config).clone();
        let taken = |what: String, todo: String| Err(ApiError::new(ErrorCode::Conflict, what, todo));
        if config.volumes.contains_key(&name) {
            return taken(format!("there is a volume {name} already"), "choose another name".to_owned());
        }
        if self.volumes.is_added(&name) {
            return Err(self.under_way(&name));
        }
        config.volumes.extend(locked(&self.volumes.adding).clone());
        if !add.backing.is_absolute() {
            return Err(wrong("the backing must be an absolute path".into(), "begin it with /"));
        }
        let part = name.as_str().rsplit_once("-part").is_some_and(|(_, number)| number.parse::<u32>().is_ok());
        if part {
            return Err(wrong(
                format!("{name} is what a partition of a volume is called"),
                "choose a name that does not end in -partN",
            ));
        }
        // The kernel may give a name like /dev/sdb to another disk at the next boot.
        let is_short = !add.insert && add.backing.parent() == Some(Path::new("/dev"));
        let lasting = is_short.then(|| boot::lasting_name(DevNumber::at(&add.backing).ok()?)).flatten();
        let add = &VolumeAdd { backing: lasting.unwrap_or_else(|| add.backing.clone()), ..add.clone() };
        if let Some(other) = config.volumes.values().find(|v| v.backing == add.backing) {
            let todo = format!(
                "choose another backing; or, to serve it under another name, first `farside volume remove {}`",
                other.name
            );
            return taken(format!("{} backs volume {} already", add.backing.display(), other.name), todo);
        }
        let tap = add.tap.as_deref().unwrap_or_else(|| TapConfig::choose(&add.backing, &config.source.accept_faults));
        let tap = config.tap(&name, add.insert, Some(tap)).map_err(|what| wrong(what, "give another one with --tap, or none"))?;
        if let Some(other) = config.volumes.values().find(|v| v.tap.collides(&tap)) {
            let what = format!("{tap} is the tap of volume {} already", other.name);
            return taken(what, "choose another one with --tap nbd:unix:/absolute/path".to_owned());
        }
        let (backing, insert) = (add.backing.clone(), add.insert);
        let (data_path, queues, on_tracking_lost) = Default::default();
        Ok(VolumeConfig { name, group, backing, insert, tap, data_path, queues, on_tracking_lost, if_absent: add.if_absent })
    }

    /// Why nothing can be done with a volume at this moment.
    fn under_way(&self, name: &Name) -> ApiError {
        let what = match self.volumes.is_leaving(name) {
            true => "is still being removed: its device has not answered the last requests of its host",
            false => "is just being opened",
        };
        ApiError::new(ErrorCode::Busy, format!("volume {name} {what}"), "wait for that, then try again")
    }

    pub(crate) async fn remove_volume(self: &Arc<Self>, name: &str) -> Result<(), ApiError> {
        self.may_change()?;
        if let Some(name) = name.parse().ok().filter(|name| self.volumes.is_added(name)) {
            return Err(self.under_way(&name));
        }
        let served = name.parse().ok().filter(|name| self.volumes.is_served(name) && !self.volumes.is_leaving(name));
        let by_hand = |name: &Name| {
            let config = locked(&self.config).clone();
            config.volumes.contains_key(name) && !config.has_written(name) && config.is_in_a_file(name).unwrap_or(true)
        };
        let claimed = match &served {
            // It will be refused below, with its device as it is.
            Some(name) if by_hand(name) => None,
            Some(name) => Some(self.claim(name).await?),
            None => None,
        };
        let is_out = claimed.as_ref().is_some_and(|claimed| claimed.is_out);
        let removed = self.remove_claimed(name, claimed).await;
        match (removed, &served) {
            // What it was refused for, or has left: in both cases there is nothing that stood aside.
            (Err(error), Some(name)) if is_out && self.volumes.is_served(name) && !self.volumes.is_leaving(name) => {
                Err(self.stays_after_all(name, error).await)
            }
            (removed, _) => removed,
        }
    }

    async fn remove_claimed(self: &Arc<Self>, name: &str, claimed: Option<Claimed>) -> Result<(), ApiError> {
        let one = self.changes.lock().await;
        let missing = || ApiError::not_found("volume", name, "`farside volume list` shows them");
        let name: Name = name.parse().map_err(|_| missing())?;
        // Also who came to be added since: what is served then and not configured is about to be.
        if self.volumes.is_leaving(&name) || self.volumes.is_added(&name) {
            return Err(self.under_way(&name));
        }
        let config = locked(&self.config).clone();
        let group = match (locked(&self.volumes.served).get(&name), config.volumes.get(&name)) {
            (Some((group, _)), _) => group.clone(),
            (None, Some(volume)) => volume.group.clone(),
            (None, None) => return Err(missing()),
        };
        if self.volumes.is_served(&name) {
            self.take_out(&name, &group, &config)?;
            let gone = self.leave(&name, claimed).ok_or_else(|| self.under_way(&name))?;
            drop(one);
            return Self::gone(&name, gone, Instant::now() + LEAVE_WAIT).await;
        }
        if let Some(volume) = config.volumes.get(&name).filter(|volume| self.rests_on_tap(volume)) {
            let what = format!("{} rests on the tap of volume {name}, which nobody serves", volume.backing.display());
            let todo = "mend why it is not served (farside volume list), farside reload; then say the same again";
            return Err(ApiError::new(ErrorCode::Conflict, what, todo));
        }
        // † What a note that cannot be read may hold is shown to nobody, and stays known to be of its group.
        self.refuse_unread(group.as_str())?;
        let was_held = self.leave_failback(&group, &name).await?;
        // Nobody else opens it from here on.
        let before = locked(&self.volumes.unserved).get(&name).cloned();
        if !self.begin_after_others(&name, Instant::now() + LEAVE_WAIT).await {
            if was_held {
                self.left_failback(&group, &name, false).map_err(ApiError::internal)?;
            }
            return Err(self.under_way(&name));
        }
        // Nobody serves it, but somebody may wait in the device that an earlier daemon made.
        let abolished = self.end_device((&group, &name)).await.map_err(|error| {
            let todo = "unmount it, and stop whatever else uses it; then say the same again";
            ApiError::new(ErrorCode::Conflict, format!("volume {name} stays: {error:#}"), todo)
        });
        let taken_out = abolished.and_then(|()| self.take_out(&name, &group, &config));
        if was_held {
            self.left_failback(&group, &name, taken_out.is_ok()).map_err(ApiError::internal)?;
        }
        let cleared = taken_out.as_ref().map_or(Ok(()), |()| clear(&self.state.volume_path(&group, &name)));
        if taken_out.is_ok() {
            self.show_claimed_disk(&name).await;
        }
        let mut unserved = locked(&self.volumes.unserved);
        match before.filter(|why| taken_out.is_err() && !why.is_opening()) {
            Some(why) => unserved.insert(name, why),
            None => unserved.remove(&name),
        };
        taken_out.and(cleared)
    }

    /// Ends the device of a volume that nobody serves, if nobody uses it.
    async fn end_device(&self, (group, name): (&Name, &Name)) -> anyhow::Result<()> {
        let (dir, name) = (self.state.volume_path(group, name), name.clone());
        let (id, runtime_dir) =
            (farside_ledger::volume_id(&self.source_of(group), group, &name), self.around.runtime_dir.clone());
        tokio::task::spawn_blocking(move || tap::end(&dir, id, &name, &runtime_dir)).await?
    }

    /// Takes a volume out of the configuration. From then on it may be written without us: whatever interrupts this, its map is
    /// not trusted again.
    fn take_out(&self, name: &Name, group: &Name, config: &Config) -> Result<(), ApiError> {
        let (dir, _) = self.state.volume_dir(group, name).map_err(ApiError::internal)?;
        Mark::Leaving.put(&dir, true).map_err(ApiError::internal)?;
        // What is served and not configured, or only as the files were before, is only let go.
        let is_there = config.volumes.contains_key(name);
        let removed = match is_there && !config.has_written(name) {
            true => config.is_in_a_file(name).and_then(|is_in| if is_in { config.remove_volume(name) } else { Ok(()) }),
            false => config.remove_volume(name),
        };
        if let Err(error) = removed
            && is_there
        {
            // It stays, and stays trusted, unless something was lost meanwhile.
            Mark::Leaving.put(&dir, false).map_err(ApiError::internal)?;
            let todo = "take it out of that file, or mend what is wrong with it; then say the same again";
            return Err(ApiError::new(ErrorCode::Conflict, error.to_string(), todo));
        }
        locked(&self.config).volumes.remove(name);
        self.is_stale_no_more(name);
        self.forget(group, name);
        // † What could be marked in no other way stays marked by this.
        let marked = Mark::TrackingLost.put(&dir, true).and_then(|()| Mark::Leaving.put(&dir, false));
        marked.unwrap_or_else(|error| warn!(volume = %name, %error, "that it has left is marked, and that mark stays"));
        info!(volume = %name, "not configured any more");
        Ok(())
    }
}

/// Whether somebody listens at the tap of a volume that has no predecessor: nobody is waited for then.
async fn is_nobodys(tap: &TapConfig) -> Result<(), ApiError> {
    let TapConfig::Nbd { socket } = tap else { return Ok(()) };
    // One that does not take it in is there, too.
    let listens = match tokio::net::UnixStream::connect(socket).await {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    if !listens {
        return Ok(());
    }
    let what = format!("somebody listens at {} already", socket.display());
    Err(ApiError::new(ErrorCode::Conflict, what, "choose another path with --tap nbd:unix:/absolute/path"))
}

/// What is to be added has come to be somebody else's since it was asked for.
fn collides(volume: &VolumeConfig, other: &VolumeConfig) -> ApiError {
    let what =
        format!("volume {} is not added: meanwhile the configuration says otherwise of volume {}", volume.name, other.name);
    ApiError::new(ErrorCode::Conflict, what, "see `farside volume list`; then say it again with another name, backing or tap")
}

fn not_written(volume: &Name, error: &ConfigError) -> ApiError {
    let what = format!("volume {volume} is not added: {error}");
    ApiError::new(ErrorCode::Unavailable, what, "mend the disk that holds the configuration, then say the same again")
}

/// The group and the volume whose folder it is.
fn names_of(dir: &Path) -> Option<(Name, Name)> {
    let name = |dir: &Path| dir.file_name()?.to_str()?.parse::<Name>().ok();
    Some((name(dir.parent()?)?, name(dir)?))
}

/// Removes what a volume left that was not served.
fn clear(folder: &Path) -> Result<(), ApiError> {
    let removed = std::fs::remove_dir_all(folder);
    removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) }).map_err(|e| {
        let what = format!("{} cannot be removed: {e}", folder.display());
        ApiError::new(ErrorCode::Unavailable, what, "remove it by hand; it holds nothing that is needed any more")
    })
}

pub(super) fn not_served(name: &Name, why: Option<&Unserved>, state_dir: &Path) -> Reason {
    let meanwhile = "Until then its group's points are made without it";
    match why {
        Some(Unserved::Failed(why) | Unserved::TriedAgain(why)) => {
            let todo = format!(
                "mend it: it is tried again by itself within {} s, and at once by farside reload. {meanwhile}",
                AGAIN_MAX.as_secs()
            );
            Reason::new(Severity::Error, Code::NotServed, format!("volume {name} is not served: {why}"), todo)
        }
        Some(Unserved::GivenUp(why)) => {
            let todo = format!("mend it, then: farside reload. {meanwhile}");
            Reason::new(Severity::Error, Code::NotServed, format!("volume {name} is not served: {why}"), todo)
        }
        Some(Unserved::KeyMissing(why)) => {
            let todo = format!("mend it: the key is asked for again by itself, and the volume is served then. {meanwhile}");
            Reason::new(Severity::Error, Code::NotServed, format!("volume {name} cannot begin: {why}"), todo)
        }
        Some(Unserved::FailingBack(group)) => {
            let what = format!("volume {name} is not served: group {group} was handed over, or is being failed back");
            let todo = "farside failback --list shows how far that is; --finish or --abort serves it again";
            Reason::new(Severity::Warning, Code::FailingBack, what, todo)
        }
        Some(Unserved::Starting) => {
            let todo = "wait; if another process holds its device or its tap, that takes up to 30 s, and then has its reason";
            Reason::new(Severity::Warning, Code::Starting, format!("volume {name} is being opened"), todo)
        }
        Some(Unserved::Closing) => {
            let what = format!("volume {name} is being closed, to be opened again");
            let todo = "wait; its users do, too, where its tap is a device";
            Reason::new(Severity::Warning, Code::Starting, what, todo)
        }
        Some(Unserved::Unkept(why)) => {
            let what = format!("volume {name} is not closed and opened again, and its users wait: {why}");
            let todo = format!(
                "make room on the disk that holds {}, or mend it: the rest follows by itself. If the host is rebooted before that: \
                 farside volume resync {name}",
                state_dir.display()
            );
            Reason::new(Severity::Error, Code::NotServed, what, todo)
        }
        None => {
            let what = format!("volume {name} is not served, and nobody is opening it");
            Reason::new(Severity::Error, Code::NotServed, what, format!("farside reload. {meanwhile}"))
        }
    }
}

/// The next step after a volume could not be opened.
fn what_would_do(error: &anyhow::Error, volume: &VolumeConfig) -> String {
    let backing = volume.backing.display();
    if let Some(error) = error.downcast_ref::<DeviceError>() {
        return match error {
            DeviceError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path given with --backing; below /home, /root and /tmp the systemd unit hides what there is".to_owned()
            }
            DeviceError::Open { .. } | DeviceError::Query { .. } => {
                format!("see what the kernel says of it: journalctl -k | grep {backing}")
            }
            DeviceError::Kind { .. } => "give a block device or a regular file with --backing".to_owned(),
            // These say it themselves.
            _ => String::new(),
        };
    }
    if let Some(error) = error.downcast_ref::<ListenError>() {
        return match error {
            ListenError::InUse { .. } | ListenError::NotASocket { .. } => String::new(),
            ListenError::NoSuchGroup { .. } => "make the group, or correct `api_group` in farsided.toml".to_owned(),
            _ => "choose another tap with --tap nbd:unix:/absolute/path".to_owned(),
        };
    }
    if error.downcast_ref::<farside_ublk::UblkError>().is_some() {
        return String::new(); // it says it itself
    }
    if error.downcast_ref::<farside_region::GeometryError>().is_some() {
        return format!("give {backing} its size first (truncate -s, lvextend), at least one sector");
    }
    "nothing was changed; put that right and say the same again".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_volume_is_opened_once_at_a_time() {
        let volumes = Volumes::default();
        assert!(volumes.begin(&name("data")));
        assert!(!volumes.begin(&name("data")), "somebody is at it");
        assert!(volumes.begin(&name("other")));
        locked(&volumes.unserved).insert(name("data"), Unserved::Failed("no".into()));
        assert!(volumes.begin(&name("data")), "it may be tried again");
        locked(&volumes.unserved).remove(&name("data"));
        let id = VolumeId([1; 16]);
        locked(&volumes.served).insert(name("data"), (name("default"), id));
        assert!(!volumes.begin(&name("data")), "it is served");
        assert!(!volumes.begin_to_leave(&name("other")), "it is not served");
        assert!(volumes.begin_to_leave(&name("data")));
        assert!(!volumes.begin_to_leave(&name("data")), "let go once");
        assert!(!volumes.begin(&name("data")) && volumes.is_leaving(&name("data")), "its device has not answered");
        volumes.left(&name("data"));
        assert!(!volumes.is_leaving(&name("data")) && volumes.begin(&name("data")), "it may come back");
    }

    #[test]
    fn what_is_being_tried_is_no_error_and_what_nobody_tries_is_one() {
        let state = Path::new("/var/lib/farside");
        let reason = not_served(&name("data"), Some(&Unserved::Starting), state);
        assert_eq!((reason.severity, reason.code.as_str()), (Severity::Warning, "starting"));
        let reason = not_served(&name("data"), Some(&Unserved::Closing), state);
        assert_eq!((reason.severity, reason.code.as_str()), (Severity::Warning, "starting"));
        let reason = not_served(&name("data"), None, state);
        assert_eq!((reason.severity, reason.code.as_str()), (Severity::Error, "not_served"));
        let reason = not_served(&name("data"), Some(&Unserved::Failed("it is on fire".into())), state);
        assert_eq!((reason.severity, reason.code.as_str()), (Severity::Error, "not_served"));
        assert!(reason.message.contains("it is on fire"));
    }

    #[test]
    fn every_failure_to_open_has_its_own_next_step() {
        let volume = VolumeConfig {
            name: name("data"),
            group: name("default"),
            backing: "/dev/nope".into(),
            insert: false,
            tap: TapConfig::Nbd { socket: "/run/x".into() },
            data_path: Default::default(),
            queues: None,
            on_tracking_lost: Default::default(),
            if_absent: Default::default(),
        };
        let todo = |error: anyhow::Error| what_would_do(&error, &volume);
        let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
        assert!(todo(DeviceError::Open { path: "/dev/nope".into(), source: gone() }.into()).contains("--backing"));
        assert!(todo(DeviceError::Kind { path: "/dev/null".into() }.into()).contains("block device"));
        assert!(todo(ListenError::Io { path: "/run/x".into(), what: "bind", source: gone() }.into()).contains("--tap"));
        let empty = farside_region::Geometry::new(0).expect_err("nothing to protect");
        assert!(todo(anyhow::Error::from(empty).context("/dev/nope")).contains("size"));
    }

    #[test]
    fn a_host_that_is_switched_off_waits_for_what_is_opened_again() {
        let volumes = Volumes::default();
        let configured = [name("data"), name("logs")];
        let awaited = || volumes.awaited(&configured, |volume| *volume == name("data"));
        assert_eq!(awaited(), 1, "its device is there, and nobody serves it: `logs` has none");
        let served = |name: Name| locked(&volumes.served).insert(name, (self::name("default"), VolumeId([1; 16])));
        served(name("data"));
        assert_eq!(awaited(), 0);
        assert!(volumes.begin_to_leave(&name("data")));
        assert_eq!(awaited(), 1);
        volumes.left(&name("data"));
        assert_eq!(awaited(), 1, "closed, and not open again");
        served(name("data"));
        assert_eq!(awaited(), 0);
    }

    #[tokio::test]
    async fn what_takes_longer_goes_on_holds_nobody_up_and_says_how_it_ended() {
        let unheard = |_: u32| panic!("it was in time");
        assert_eq!(in_time(Instant::now() + LEAVE_WAIT, async { 7 }, unheard).await, Some(7));
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let (late, is_late) = oneshot::channel();
        let work = async move {
            may_go_on.await.expect("it is told");
            7
        };
        assert_eq!(in_time(Instant::now(), work, |done| late.send(done).expect("somebody listens")).await, None);
        go_on.send(()).expect("it goes on");
        assert_eq!(is_late.await, Ok(7));
    }
}
