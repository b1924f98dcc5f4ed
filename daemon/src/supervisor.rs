//! The daemon as a whole: starts what the configuration names, stops it in order, changes it while it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::bail;
use farside_blockio::process::{
    Priority, boot_id, lock_memory, map_large_allocations, monotonic_ns, refuse_core_dumps, set_io_flusher,
};
use farside_control::source::{
    Accept, Connection, GroupSettings, GroupStatus, LIMIT_WINDOWS_MAX, LimitWindow, Limits, Paired, PointTaken, PointWanted,
    SourceStatus, TAKE_WAIT_MS, TAKE_WAIT_MS_MAX, TITLE_BYTES_MAX,
};
use farside_control::{
    ApiError, Code, DurationError, ErrorCode, GridError, Rate, RateError, RateLimit, Reason, Severity, WindowError,
    parse_epoch_interval, parse_span,
};
use farside_region::{Generation, Name, VolumeId};
use farside_service::systemd;
use farside_transport::{DialError, Identity, Pin, Route};
use farside_wire::InstanceId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use crate::bandwidth::{Bandwidth, RateWindow};
use crate::boot::Backings;
use crate::config::{Config, ConfigError, GroupSaid};
use crate::encode::Encoders;
use crate::failback::Failbacks;
use crate::group::{Ask, GroupHandle, Inbox, Note, Stopped};
use crate::hooks;
use crate::intent_file::IntentFile;
use crate::keys::GroupKeys;
use crate::locked;
use crate::node;
use crate::source_name;
use crate::state_dir::StateDir;
use crate::volume::Surroundings;
use crate::watch::Noticed;
use told::Told;
use volumes::Volumes;

pub(crate) use volumes::{Claimed, HeldDevice, UsedByNobody};

mod left;
mod reload;
mod told;
mod volumes;

/// How a host comes to its receiver.
const PAIR: &str = "on the gateway: farside-receiver token; then here: farside pair TOKEN";
/// How a host comes to be who it was, or another.
const MEND_IDENTITY: &str = "mend that and restart farsided; only where they are lost for good, move identity.key and identity.crt away first, and pair anew";
/// How long a stop tries to take away the devices that nobody uses.
const WITHDRAW_WAIT: Duration = Duration::from_secs(5);

/// How long a stop serves what is mounted while its host is being switched off.
const UNMOUNT_WAIT: Duration = Duration::from_secs(40);
/// And how long for a device that does not answer, and may never.
const SILENT_WAIT: Duration = Duration::from_secs(30);
/// TimeoutStopSec= of the unit. † Who is killed before he is through leaves no volume clean.
const STOP_GIVEN: Duration = Duration::from_secs(90);
// The last look may begin just before the time for looks is over.
const _: () =
    assert!(UNMOUNT_WAIT.saturating_add(WITHDRAW_WAIT).saturating_add(crate::group::STOP_MAX).as_secs() < STOP_GIVEN.as_secs());
const UNMOUNT_POLL: Duration = Duration::from_millis(50);

/// How often the clock is looked at for what may be sent.
const BANDWIDTH_LOOK: Duration = Duration::from_secs(5);

/// A control thread that was silent for so long is dead: systemd restarts us, and the intent map knows what changed.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The service is ready when everything was opened, or after so long: a device that does not even answer its opening holds up
/// neither its host nor the watchdog. Longer than a held device is waited for, shorter than systemd waits for a start.
const READY_WITHIN: Duration = Duration::from_secs(40);

/// What keeps two sides apart.
const CONNECTION_CODES: [Code; 4] = [Code::NotConnected, Code::WrongReceiver, Code::ReceiverRefuses, Code::VersionMismatch];

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start, or could not stop in order; the text says what to do.
pub fn run(config: &Path) -> anyhow::Result<()> {
    // A broken invariant ends the process, not one of its threads: systemd starts it again, and the intent map knows what
    // changed. A thread that is missing would leave hosts waiting for ever.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    // Before any thread is started: they inherit it.
    set_io_flusher().unwrap_or_else(|error| warn!("{error}"));
    map_large_allocations();
    lock_memory().unwrap_or_else(|error| warn!("{error}"));
    refuse_core_dumps().unwrap_or_else(|error| warn!("{error}"));
    let config = Config::load(config)?;
    let state = Arc::new(StateDir::open(&config.source.state_dir)?);
    source_name::say_of_another(state.path(), &config.source.name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let links = links()?;
    let result = runtime.block_on(async {
        let (notices, noticed) = mpsc::unbounded_channel();
        let daemon = Daemon::new(config, state, links.handle().clone(), notices)?;
        daemon.serve(noticed).await
    });
    links.shutdown_timeout(Duration::from_secs(5));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// What encrypts, sends and receives, on threads that give way to whoever uses the volumes. † Nothing else runs there: a thread that
/// is started by one of these is as slow as they are, and may not have the right to be faster again; what opens volumes starts threads.
fn links() -> std::io::Result<tokio::runtime::Runtime> {
    let give_way = || drop(Priority::Background.set()); // where it is refused, all threads are equal
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("link")
        .on_thread_start(give_way)
        .enable_all()
        .build()
}

/// How far a daemon is.
///
/// ```text
/// Serving ─► Ending ─► Stopping
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// It was told to stop. Nothing is changed any more; what is mounted on a host that is switched off is served until it is
    /// unmounted, and what is closed to be opened again is opened.
    Ending,
    /// Its volumes are closed, and nothing is opened.
    Stopping,
}

/// The running daemon; shared by API handlers.
pub(crate) struct Daemon {
    config: Arc<Mutex<Config>>,
    state: Arc<StateDir>,
    identity: Identity,
    /// Why the files of it could not be read at the start: what is used instead is known to nobody, and pairs with nobody.
    identity_trouble: Option<String>,
    pin: watch::Sender<Option<Pin>>,
    /// Why the file of it could not be read at the start.
    pin_trouble: Mutex<Option<String>>,
    around: Surroundings,
    pub(crate) instance: InstanceId,
    groups: Mutex<BTreeMap<Name, GroupHandle>>,
    volumes: Volumes,
    phase: Mutex<Phase>,
    /// systemd was told that the service is ready.
    ready: AtomicBool,
    /// One change of the configuration at a time.
    changes: tokio::sync::Mutex<()>,
    pub(crate) failbacks: Failbacks,
    /// One change of the pairing at a time.
    pairing: tokio::sync::Mutex<()>,
    /// In what the configuration on disk is not the one that runs.
    stale: Mutex<reload::Stale>,
    /// What hooks quiesced and nobody could end when it was tried last, by its note, and why.
    hooks_left: Mutex<Vec<(PathBuf, String)>>,
    started: Instant,
}

impl Daemon {
    fn new(
        mut config: Config,
        state: Arc<StateDir>,
        links: tokio::runtime::Handle,
        noticed: mpsc::UnboundedSender<Noticed>,
    ) -> anyhow::Result<Arc<Self>> {
        // † Taps never wait for what is needed to replicate: who is not known to be trusted is connected to no more than nobody, and
        // who cannot say who he is connects to nobody.
        let pin_path = state.pairing();
        let (identity, identity_trouble) = match Identity::load_or_create(state.path(), &pin_path) {
            Ok(identity) => (identity, None),
            Err(error) => {
                error!(%error, "nothing is replicated until this host can say who it is");
                (Identity::ephemeral()?, Some(error.to_string()))
            }
        };
        let (pin, pin_trouble) = match Pin::load(&pin_path) {
            Ok(pin) => (pin.filter(|_| identity_trouble.is_none()), None),
            Err(error) => {
                error!(%error, "nothing is replicated until it is known which receiver this host is paired with");
                (None, Some(error.to_string()))
            }
        };
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let stale = reload::Stale::at_the_start(state.path(), &mut config);
        let shared = Arc::new(Mutex::new(config.clone()));
        let around = Surroundings {
            source: config.source.name.clone(),
            boot: boot_id()?,
            limits: config.limits.clone(),
            api_group: config.source.api_group.clone(),
            accepted_faults: config.source.accept_faults.clone(),
            runtime_dir: config.source.runtime_dir().to_owned(),
            links,
            pacer: Arc::default(),
            route: Route::new(config.source.carrier),
            encoders: Encoders::start(config.limits.encoder_threads())?,
            keys: GroupKeys::none(), // each group has its own
            noticed,
            backings: Arc::new(Backings::of(&config)),
            config: shared.clone(),
            unkept: Arc::default(),
        };
        around.pacer.set(config.bandwidth.now().bytes_per_s());
        Ok(Arc::new(Self {
            config: shared,
            state,
            identity,
            identity_trouble,
            pin: watch::Sender::new(pin),
            pin_trouble: Mutex::new(pin_trouble),
            around,
            instance: InstanceId(instance),
            groups: Mutex::new(BTreeMap::new()),
            volumes: Volumes::default(),
            phase: Mutex::new(Phase::Serving),
            ready: AtomicBool::new(false),
            changes: tokio::sync::Mutex::new(()),
            failbacks: Failbacks::default(),
            pairing: tokio::sync::Mutex::new(()),
            stale: Mutex::new(stale),
            hooks_left: Mutex::default(),
            started: Instant::now(),
        }))
    }

    async fn serve(self: Arc<Self>, mut noticed: mpsc::UnboundedReceiver<Noticed>) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut reload = signal(SignalKind::hangup())?;
        // systemd may watch us from the first moment; an opening may take long.
        let watched = self.clone();
        let housekeeping = tokio::spawn(async move { systemd::housekeeping(|| watched.alive()).await });
        let bandwidth = tokio::spawn(self.clone().keep_bandwidth());
        let left = tokio::spawn(self.clone().end_what_hooks_left());
        let patience = tokio::time::sleep(READY_WITHIN);
        tokio::pin!(patience);
        let (api, mut starts) = self.begin().await?;
        let mut opening = true;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // On a task of its own: it may wait for devices. Said in the log by the reload itself.
                _ = reload.recv() => {
                    let daemon = self.clone();
                    tokio::spawn(async move { drop(daemon.reload().await) });
                }
                Some(what) = noticed.recv() => {
                    let daemon = self.clone();
                    tokio::spawn(async move {
                        match what {
                            Noticed::Bypassed(volume) => daemon.insert_again(&volume).await,
                            Noticed::TapLost(volume) => daemon.serve_again(&volume).await,
                            Noticed::Grown(volume) => daemon.grow(&volume).await,
                        }
                    });
                }
                started = starts.join_next(), if opening => if started.is_none() {
                    opening = false;
                    self.say_ready();
                },
                () = &mut patience, if opening && !self.ready.load(Ordering::Relaxed) => self.say_ready(),
            }
        }
        info!("stopping");
        *locked(&self.phase) = Phase::Ending;
        systemd::stopping();
        housekeeping.abort();
        let stopped = self.stop_groups().await;
        bandwidth.abort();
        left.abort();
        api.abort();
        match stopped {
            Stopped::Clean => Ok(()),
            Stopped::Unclean => bail!("stopped, but not cleanly: the next start compares what was hot"),
            Stopped::LossUnkept => {
                bail!("stopped, and a reboot will forget that tracking was lost: the log says of which volumes")
            }
        }
    }

    /// Begins to serve: the API, and what is configured. Whoever polls the set hears when all of it was opened, or could not be.
    async fn begin(self: &Arc<Self>) -> anyhow::Result<(JoinHandle<()>, JoinSet<()>)> {
        // Until it is known whom to trust nothing is changed.
        let first = self.changes.lock().await;
        let (api, is_tried) = crate::api::serve(self);
        self.take_up_failbacks()?;
        let mut starts = self.start_all();
        // Who comes after this service asks it something.
        starts.spawn(async move { drop(is_tried.await) });
        self.go_on_with_failbacks();
        drop(first);
        Ok((api, starts))
    }

    fn alive(&self) -> bool {
        let now = monotonic_ns();
        locked(&self.groups).iter().all(|(name, group)| {
            let silent = Duration::from_nanos(now.saturating_sub(group.heartbeat.load(Ordering::Relaxed)));
            if silent > SILENCE_MAX {
                error!(group = %name, seconds = silent.as_secs(), "the control thread is silent; the watchdog is not fed");
            }
            silent <= SILENCE_MAX
        })
    }

    /// Devices stay, and their users wait for the next daemon: nobody can know of all of them. Only when the host is being switched
    /// off there is no next daemon: then devices are served until they are unmounted, and taken away.
    async fn withdraw_devices(self: &Arc<Self>) {
        if !tokio::task::spawn_blocking(systemd::host_ends).await.unwrap_or(false) {
            return;
        }
        info!("this host is being switched off: what is mounted is served until it is unmounted");
        let began = Instant::now();
        let mut silent = volumes::Silent::default();
        loop {
            let stay = self.withdraw_unused(WITHDRAW_WAIT, &mut silent).await;
            let configured: Vec<Name> = locked(&self.config).volumes.keys().cloned().collect();
            // Not as long as for what is mounted: after this the groups wait for the same devices, and there is an end to a service's time.
            let patient = began.elapsed() < volumes::LEAVE_WAIT;
            let awaited = if patient { self.volumes.awaited(&configured, |name| node::path(name).exists()) } else { 0 };
            // † A device that is only slow, on a host that is: who is at it waits in the kernel for what we answer, and holds up who
            // switches the host off if we do not.
            let slow = if began.elapsed() < SILENT_WAIT { silent.still() } else { 0 };
            match stay + awaited + slow {
                0 => return,
                stay if began.elapsed() > UNMOUNT_WAIT => {
                    error!(
                        "{stay} devices are in use and stay; whoever writes to one of them while this host is switched off waits for ever"
                    );
                    return;
                }
                _ => tokio::time::sleep(UNMOUNT_POLL).await,
            }
        }
    }

    async fn stop_groups(self: &Arc<Self>) -> Stopped {
        self.withdraw_devices().await;
        // † Not before: what is closed to be opened again has users that wait for it, and who is switched off waits for them.
        *locked(&self.phase) = Phase::Stopping;
        // Those that a cutover stops it stops itself, beside the others.
        let (handing_over, hurried) = (self.handing_over(), self.hurry_cutovers());
        let groups: Vec<_> = {
            let mut groups = locked(&self.groups);
            let names: Vec<Name> = groups.keys().filter(|name| !handing_over.contains(name)).cloned().collect();
            names.into_iter().filter_map(|name| groups.remove_entry(&name)).collect()
        };
        let mut stops = Vec::new();
        for (name, group) in groups {
            let configured = self.volumes_of(&name).len();
            stops.push(tokio::task::spawn_blocking(move || group.stop(configured, None).stopped));
        }
        hurried.await;
        let mut worst = Stopped::Clean;
        for stop in stops {
            worst = worst.max(stop.await.unwrap_or(Stopped::Unclean));
        }
        if worst == Stopped::Clean { self.stopped_as_maps_say().await } else { worst }
    }

    /// What the next start will find of all that is configured. Groups answer for what they had; what was never opened, since its
    /// disk was not there, may have been left by a crash before.
    async fn stopped_as_maps_say(&self) -> Stopped {
        let configured = locked(&self.config).volumes.values().map(|v| (v.name.clone(), v.group.clone())).collect::<Vec<_>>();
        let folders: Vec<_> = configured.into_iter().map(|(name, group)| (self.state.volume_path(&group, &name), name)).collect();
        let looked = tokio::task::spawn_blocking(move || {
            let mut worst = Stopped::Clean;
            for (dir, name) in folders {
                match IntentFile::says_clean(&dir) {
                    Ok(None | Some(true)) => continue,
                    Ok(Some(false)) => {
                        warn!(volume = %name, "it was left by a crash and not opened since: the next start compares what was hot")
                    }
                    Err(error) => warn!(volume = %name, "whether it was stopped cleanly is not known: {error}"),
                }
                worst = Stopped::Unclean;
            }
            worst
        });
        tokio::time::timeout(volumes::LEAVE_WAIT, looked)
            .await
            .map_or(Stopped::Unclean, |worst| worst.unwrap_or(Stopped::Unclean))
    }

    fn is_stopping(&self) -> bool {
        *locked(&self.phase) == Phase::Stopping
    }

    /// Who would change something now would not see what comes of it.
    ///
    /// # Errors
    /// When the daemon was told to stop.
    pub(crate) fn may_change(&self) -> Result<(), ApiError> {
        match *locked(&self.phase) {
            Phase::Serving => Ok(()),
            Phase::Ending | Phase::Stopping => {
                let todo = "say it again when farsided runs again: systemctl status farsided";
                Err(ApiError::new(ErrorCode::Conflict, "farsided is stopping: nothing is changed any more", todo))
            }
        }
    }

    /// One change of the configuration at a time, and none at the end.
    async fn begin_change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
        let one = self.changes.lock().await;
        self.may_change()?;
        Ok(one)
    }

    /// For `systemctl status`.
    fn served_of_configured(&self) -> String {
        let configured = locked(&self.config).volumes.len();
        let opening = self.volumes.opening();
        let late = if opening.is_empty() { String::new() } else { format!("; being opened: {}", opening.join(", ")) };
        format!("{} of {configured} volumes served{late}", self.volumes.served())
    }

    /// Also said again, when the last of those that were late was opened.
    fn say_ready(&self) {
        systemd::ready(&self.served_of_configured());
        self.ready.store(true, Ordering::Relaxed);
    }

    fn tell_groups(&self) {
        let config = locked(&self.config).clone();
        self.limit_bandwidth();
        for (name, group) in locked(&self.groups).iter() {
            group.inbox.send(Note::Ask(Ask::Settings(config.group(name))));
        }
    }

    pub(crate) async fn ask<T>(
        &self,
        volume: &Name,
        ask: impl FnOnce(VolumeId, oneshot::Sender<anyhow::Result<T>>) -> Ask,
    ) -> Result<T, ApiError> {
        let (_, group, id) = self.find(volume.as_str())?;
        let (reply, answer) = oneshot::channel();
        self.tell(&group, ask(id, reply))?;
        answer
            .await
            .map_err(|_| ApiError::internal("the group's thread gave no answer"))?
            .map_err(|e| ApiError::new(ErrorCode::Conflict, format!("{e:#}"), "see the daemon's log"))
    }

    pub(crate) fn tell(&self, group: &Name, ask: Ask) -> Result<(), ApiError> {
        match locked(&self.groups).get(group) {
            Some(handle) => handle.inbox.send(Note::Ask(ask)),
            None => return Err(ApiError::not_found("group", group.as_str(), "`farside status` shows the groups")),
        }
        Ok(())
    }

    /// The way into the thread of a group that runs.
    pub(crate) fn inbox_of(&self, group: &Name) -> Option<Inbox> {
        locked(&self.groups).get(group).map(|handle| handle.inbox.clone())
    }

    /// A group that has stopped: whoever opens a volume of it next starts it anew.
    pub(crate) fn forget_group(&self, group: &Name) -> Option<GroupHandle> {
        locked(&self.groups).remove(group)
    }

    pub(crate) fn api_socket(&self) -> (std::path::PathBuf, Option<String>) {
        let config = locked(&self.config);
        (config.source.api_socket.clone(), config.source.api_group.clone())
    }

    pub(crate) fn group_names(&self) -> Vec<Name> {
        locked(&self.groups).keys().cloned().collect()
    }

    pub(crate) async fn status(&self) -> SourceStatus {
        self.status_within(told::ANSWER_WITHIN).await
    }

    async fn status_within(&self, within: Duration) -> SourceStatus {
        let Told { groups, without_volumes, silent } = self.told_within(within).await;
        let unanswered: Vec<String> = silent.iter().map(ToString::to_string).collect();
        let untold = self.untold(&groups, &unanswered).into_iter().flat_map(|volume| volume.reasons);
        // Once for each group.
        let mut reasons: Vec<Reason> = untold.filter(|reason| reason.code != Code::GroupSilent.word()).collect();
        reasons.extend(unanswered.iter().map(|group| told::is_silent(group)));
        let stops = match *locked(&self.phase) {
            Phase::Serving => None,
            Phase::Ending => {
                Some("farsided is stopping: on a host that is switched off it serves what is mounted until it is unmounted")
            }
            Phase::Stopping => Some("farsided is stopping: its volumes are closed, what can still be published is"),
        };
        reasons.extend(stops.map(|what| {
            let todo = "wait; what is owed then is written down, and the next start goes on from there";
            Reason::new(Severity::Warning, Code::Stopping, what, todo)
        }));
        reasons.extend(self.failbacks.reasons());
        reasons.extend(self.not_paired());
        reasons.extend(self.not_as_on_disk());
        reasons.extend(self.still_quiesced(&groups));
        SourceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.around.source.to_string(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            connection: self.connection(groups.iter().chain(&without_volumes)),
            limits: self.limits(),
            groups,
            unanswered,
            reasons,
        }
    }

    fn not_paired(&self) -> Option<Reason> {
        let unpaired = self.pin.borrow().is_none();
        let (message, todo) = match (&self.identity_trouble, &*locked(&self.pin_trouble)) {
            (Some(why), _) => (format!("this host cannot show the receiver who it is: {why}"), MEND_IDENTITY.to_owned()),
            (None, None) => ("this host is not paired with a receiver".to_owned(), PAIR.to_owned()),
            (None, Some(why)) => (
                format!("this host is not paired with a receiver that it knows of: {why}"),
                format!("put the file back and restart farsided; or {PAIR}"),
            ),
        };
        unpaired.then(|| Reason::new(Severity::Error, Code::NotPaired, message, todo))
    }

    fn connection<'g>(&self, groups: impl Iterator<Item = &'g GroupStatus> + Clone) -> Connection {
        let Some(pin) = self.pin.borrow().clone() else { return Connection::NotPaired };
        let receiver = pin.receiver.to_string();
        // A gateway that is full ends connections; one that is and does not is connected.
        let is_apart = |group: &GroupStatus, reason: &Reason| {
            CONNECTION_CODES.iter().any(|code| code.word() == reason.code)
                || (!group.link.connected && reason.code == Code::GatewayFull.word())
        };
        let trouble = groups.clone().find_map(|group| group.reasons.iter().find(|reason| is_apart(group, reason)));
        match trouble {
            Some(reason) => Connection::Disconnected { receiver, error: reason.message.clone() },
            // That nothing is wrong yet does not say that it answers.
            None if { groups }.any(|group| group.link.connected) => Connection::Connected { receiver },
            None => Connection::Connecting { receiver },
        }
    }

    pub(crate) async fn pair(&self, token: &str) -> Result<Paired, ApiError> {
        let _one = self.pairing.lock().await;
        self.may_change()?;
        if let Some(why) = &self.identity_trouble {
            let what = format!("this host pairs with nobody while it cannot show who it is: {why}");
            return Err(ApiError::new(ErrorCode::Conflict, what, MEND_IDENTITY));
        }
        let token = token.parse::<farside_transport::PairingToken>().map_err(|e| {
            let todo = "make a new one with `farside-receiver token` at the gateway";
            ApiError::new(ErrorCode::BadRequest, e.to_string(), todo)
        })?;
        let limits = farside_transport::Limits::default();
        let paired = farside_transport::pair(&token, &self.identity, &self.around.source, &self.around.route, &limits).await;
        let pin = paired.map_err(|e| why_not_paired(&e))?;
        pin.save(&self.state.pairing())
            .map_err(|e| ApiError::new(ErrorCode::Unavailable, e.to_string(), "mend that, then use the same token"))?;
        let paired = Paired {
            receiver: pin.receiver.to_string(),
            receiver_fingerprint: pin.fingerprint.to_string(),
            source_fingerprint: self.identity.fingerprint().to_string(),
        };
        *locked(&self.pin_trouble) = None;
        // Connections to another receiver end by that.
        self.pin.send_replace(Some(pin));
        Ok(paired)
    }

    /// Forgets the receiver: where it is and its certificate. Connections to it end by that.
    pub(crate) async fn unpair(&self) -> Result<String, ApiError> {
        let _one = self.pairing.lock().await;
        self.may_change()?;
        let path = self.state.pairing();
        // From the file: one that could not be read, or is not used, is forgotten as well.
        let receiver = match Pin::load(&path) {
            Ok(Some(pin)) => format!("the receiver {}", pin.receiver),
            Ok(None) => return Err(ApiError::new(ErrorCode::Conflict, "this host is not paired with a receiver", "")),
            Err(_) => "a receiver that is not known".to_owned(),
        };
        Pin::forget(&path).map_err(|e| {
            ApiError::new(
                ErrorCode::Unavailable,
                format!("the pairing stays: {e}"),
                "mend the disk that holds the state directory",
            )
        })?;
        *locked(&self.pin_trouble) = None;
        self.pin.send_replace(None);
        info!(receiver, "unpaired");
        Ok(receiver)
    }

    pub(crate) async fn set_group(&self, name: &str, settings: &GroupSettings) -> Result<GroupSettings, ApiError> {
        let _one = self.begin_change().await?;
        let wrong = |what: &str| ApiError::new(ErrorCode::BadRequest, what, "see `farside group set --help`");
        let name: Name = name.parse().map_err(|e: farside_region::NameError| wrong(&e.to_string()))?;
        let configured = locked(&self.config).groups.contains_key(&name);
        let known = configured || locked(&self.groups).contains_key(&name);
        if !known {
            let todo = "`farside status` shows the groups; a group begins with its first volume: `farside volume add --group`";
            return Err(ApiError::not_found("group", name.as_str(), todo));
        }
        let old = locked(&self.config).group(&name);
        // What could not be read back from the file must not be written there.
        let read = |ms: u64, parse: fn(&str) -> Result<Duration, DurationError>| {
            parse(&format!("{ms}ms")).map_err(|e| wrong(&e.to_string()))
        };
        let said = GroupSaid {
            epoch_interval: settings.epoch_interval_ms.map(|ms| read(ms, parse_epoch_interval)).transpose()?,
            keep: settings.keep,
            span: settings.span_ms.map(|ms| read(ms, parse_span)).transpose()?,
            grid: settings.grid.as_ref().map(|text| text.parse().map_err(|e: GridError| wrong(&e.to_string()))).transpose()?,
            rate: settings.rate.as_ref().map(|text| text.parse().map_err(|e: RateError| wrong(&e.to_string()))).transpose()?,
            consistent_every: settings
                .consistent_every
                .as_ref()
                .map(|text| hooks::parse_every(text).map_err(|what| wrong(&what)))
                .transpose()?,
        };
        if said.keep == Some(0) {
            return Err(wrong("keep must be at least 1"));
        }
        if said.consistent_every.unwrap_or(old.consistent_every).is_some() && old.hooks.is_empty() {
            let message = format!("group {name} has no hooks that would quiesce anything");
            let todo = "name them in farsided.toml, as [[hook]], and reload (docs/operate.md, \"Application-consistent points\")";
            return Err(ApiError::new(ErrorCode::Conflict, message, todo));
        }
        let config = locked(&self.config).clone();
        let group = self.write_group(&config, &name, said)?;
        locked(&self.config).groups.insert(name, group.clone());
        self.tell_groups();
        Ok(GroupSettings {
            epoch_interval_ms: Some(group.epoch_interval.as_millis() as u64),
            keep: Some(group.keep),
            span_ms: Some(group.span().as_millis() as u64),
            grid: Some(group.grid.to_string()),
            rate: Some(group.rate.to_string()),
            consistent_every: Some(hooks::words_of_every(group.consistent_every)),
        })
    }

    pub(crate) fn limits(&self) -> Limits {
        let bandwidth = locked(&self.config).bandwidth.clone();
        let window = |window: &RateWindow| LimitWindow { at: window.at.to_string(), rate_bytes_per_s: window.rate.bytes_per_s() };
        Limits {
            rate_bytes_per_s: bandwidth.rate.bytes_per_s(),
            windows: bandwidth.windows.iter().map(window).collect(),
            now_bytes_per_s: self.around.pacer.limit(),
        }
    }

    /// Sets the limits, durably, and for whoever sends at this moment.
    pub(crate) async fn set_limits(&self, limits: Limits) -> Result<Limits, ApiError> {
        let _one = self.begin_change().await?;
        let wrong = |what: String| ApiError::new(ErrorCode::BadRequest, what, "see `farside limit set --help`");
        let rate = |bytes: u64| {
            Rate::from_bytes_per_s(bytes).ok_or_else(|| wrong("the rate must be between 64kbit and 8Tbit".to_owned()))
        };
        if limits.windows.len() > LIMIT_WINDOWS_MAX {
            return Err(wrong(format!("there may be {LIMIT_WINDOWS_MAX} windows")));
        }
        let window = |said: &LimitWindow| {
            let at = said.at.parse().map_err(|e: WindowError| wrong(e.to_string()))?;
            Ok::<_, ApiError>(RateWindow { at, rate: rate(said.rate_bytes_per_s)? })
        };
        let bandwidth = Bandwidth {
            rate: RateLimit(limits.rate_bytes_per_s.map(rate).transpose()?),
            windows: limits.windows.iter().map(window).collect::<Result<_, _>>()?,
        };
        let config = locked(&self.config).clone();
        config.write_bandwidth(&bandwidth).map_err(|error| not_kept(&error))?;
        info!(bandwidth = bandwidth.words(), "the bandwidth limits were set");
        locked(&self.config).bandwidth = bandwidth;
        self.limit_bandwidth();
        Ok(self.limits())
    }

    /// Has what holds now hold for whoever sends.
    fn limit_bandwidth(&self) {
        let wanted = locked(&self.config).bandwidth.now();
        if self.around.pacer.limit() != wanted.bytes_per_s() {
            self.around.pacer.set(wanted.bytes_per_s());
            info!(rate = %wanted, "the bandwidth limit is");
        }
    }

    /// As the hours go by.
    async fn keep_bandwidth(self: Arc<Self>) {
        loop {
            tokio::time::sleep(BANDWIDTH_LOOK).await;
            self.limit_bandwidth();
        }
    }

    pub(crate) async fn pause(&self, name: &str, pause: bool) -> Result<(), ApiError> {
        self.may_change()?;
        let (name, ..) = self.find(name)?;
        self.ask(&name, |id, reply| Ask::Pause(id, pause, reply)).await
    }

    /// `until`: which promotion was known when it was decided that what is fenced may be accepted.
    pub(crate) async fn resync(&self, name: &str, accept: Option<Accept>, until: Option<Generation>) -> Result<(), ApiError> {
        self.may_change()?;
        let (name, ..) = self.find(name)?;
        self.ask(&name, |id, reply| Ask::Resync(id, accept, until, reply)).await
    }

    pub(crate) async fn verify(&self, name: &str) -> Result<(), ApiError> {
        self.may_change()?;
        let (name, ..) = self.find(name)?;
        self.ask(&name, Ask::Verify).await.map(drop)
    }

    pub(crate) async fn points(
        &self,
        group: &Name,
        kind: farside_wire::PointQueryKind,
    ) -> Result<farside_wire::PointAnswer, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.tell(group, Ask::Points(kind, reply))?;
        let not_connected = |e: &dyn std::fmt::Display| {
            ApiError::new(ErrorCode::NotConnected, e.to_string(), "ask at the gateway, or with --store when it is gone")
        };
        match tokio::time::timeout(Duration::from_secs(30), answer).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(error))) => Err(not_connected(&error)),
            Ok(Err(_)) => Err(not_connected(&"the connection to the receiver ended")),
            Err(_) => Err(not_connected(&"the receiver does not answer")),
        }
    }

    /// Makes a point of a group now, and waits until it is published.
    pub(crate) async fn take_point(&self, group: &str, wanted: PointWanted) -> Result<PointTaken, ApiError> {
        let PointWanted { title, hooks, wait_ms } = wanted;
        let wrong = |what: String| ApiError::new(ErrorCode::BadRequest, what, "see `farside point take --help`");
        if title.len() > TITLE_BYTES_MAX {
            return Err(wrong(format!("a title has at most {TITLE_BYTES_MAX} bytes; this one has {}", title.len())));
        }
        let wait_ms = wait_ms.unwrap_or(TAKE_WAIT_MS);
        if wait_ms > TAKE_WAIT_MS_MAX {
            return Err(wrong(format!("nobody waits for longer than {} s", TAKE_WAIT_MS_MAX / 1000)));
        }
        self.may_change()?;
        let name: Name = group.parse().map_err(|e: farside_region::NameError| wrong(e.to_string()))?;
        let (reply, answer) = oneshot::channel();
        self.tell(&name, Ask::Take(title, hooks, reply))?;
        match tokio::time::timeout(Duration::from_millis(wait_ms), answer).await {
            Ok(Ok(taken)) => taken.map_err(|e| ApiError::new(ErrorCode::Conflict, format!("{e:#}"), "see `farside status`")),
            Ok(Err(_)) => Err(ApiError::internal("the group's thread gave no answer")),
            Err(_) => {
                let status = self.status().await.groups.into_iter().find(|status| status.name == group);
                let what = status.and_then(|status| match status.link.connected {
                    true => status.consistent?.now,
                    false => Some("waits for a connection to the receiver".to_owned()),
                });
                let what = what.unwrap_or_else(|| "is not published yet".to_owned());
                let message = format!("after {} s the point {what}", wait_ms.div_ceil(1000));
                Err(ApiError::new(ErrorCode::Busy, message, "`farside status` says how the group is; or wait longer: --wait"))
            }
        }
    }

    /// Whether a volume or group of that name is served or configured.
    pub(crate) fn knows(&self, name: &str) -> bool {
        let config = locked(&self.config).clone();
        let configured = config.volumes.keys().chain(config.groups.keys()).any(|n| n.as_str() == name);
        configured || locked(&self.groups).keys().any(|n| n.as_str() == name)
    }

    /// Whose the volumes of a group are: this host's, or those of the source in whose place it stands.
    pub(crate) fn source_of(&self, group: &Name) -> Name {
        self.stands_in_for(group).unwrap_or_else(|| self.around.source.clone())
    }

    /// The source in whose place this host stands with a group, if it does.
    pub(crate) fn stands_in_for(&self, group: &Name) -> Option<Name> {
        locked(&self.config).groups.get(group).and_then(|group| group.stand_in_for.clone())
    }
}

/// Why what was said is not in the configuration.
fn not_kept(error: &ConfigError) -> ApiError {
    match error {
        ConfigError::Value { .. } => ApiError::new(ErrorCode::Conflict, error.to_string(), "then say the same again"),
        error => {
            let todo = "mend the disk that holds the configuration, or make room on it; then say the same again";
            ApiError::new(ErrorCode::Unavailable, error.to_string(), todo)
        }
    }
}

/// Who says no decides what a person can do about it.
fn why_not_paired(error: &DialError) -> ApiError {
    use farside_transport::CloseCode;
    let another = "make a new one with `farside-receiver token` at the gateway";
    let (code, todo) = match error {
        DialError::Refused { code: CloseCode::TokenUnknown | CloseCode::TokenExpired, .. } => (ErrorCode::Refused, another),
        DialError::Refused { code: CloseCode::TokenOtherSource, .. } => {
            (ErrorCode::Refused, "make one for this host's name, or one without --for")
        }
        // It says what to choose.
        DialError::Refused { code: CloseCode::NameTaken, .. } => (ErrorCode::Refused, ""),
        DialError::Refused { .. } => (ErrorCode::Refused, "see `farside status` and the log at the gateway"),
        DialError::Unproven { .. } | DialError::WrongReceiver { .. } => {
            (ErrorCode::Refused, "somebody else answers there: make sure of the address, then make a new token at the gateway")
        }
        DialError::Unresolved { .. } => (
            ErrorCode::NotConnected,
            "correct this host's DNS, or make a token with `farside-receiver token --address HOST:PORT`",
        ),
        DialError::Incompatible { .. } => (ErrorCode::Refused, "install the same version on both sides, the receiver first"),
        _ => (ErrorCode::NotConnected, "the token stays good meanwhile"),
    };
    ApiError::new(code, error.to_string(), todo)
}

#[cfg(test)]
mod tests;
