//! The daemon as a whole: starts what the configuration names, stops it in order, changes it while it runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_blockio::process::{boot_id, lock_memory, monotonic_ns, set_io_flusher};
use farside_control::source::{Accept, Connection, GroupSettings, GroupStatus, Limits, Paired, SourceStatus, VolumeAdd};
use farside_control::{ApiError, Code, ErrorCode, Rate, Reason, Reloaded, Severity};
use farside_region::{Name, VolumeId};
use farside_service::systemd;
use farside_transport::{Identity, Pin, QuicDialer};
use farside_wire::InstanceId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::config::{Config, GroupConfig, VolumeConfig, parse_tap};
use crate::group::{Ask, GroupHandle, GroupStart, Note, Stopped};
use crate::state_dir::{Mark, StateDir};
use crate::volume::Surroundings;

/// A control thread that was silent for so long is dead: systemd restarts us, and the intent map knows what changed.
const SILENCE_MAX: Duration = Duration::from_secs(30);

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
    lock_memory().unwrap_or_else(|error| warn!("{error}"));
    let config = Config::load(config)?;
    let state = Arc::new(StateDir::open(&config.source.state_dir)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let daemon = Daemon::new(config, state, tokio::runtime::Handle::current())?;
        daemon.serve().await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// The running daemon; shared by API handlers.
pub(crate) struct Daemon {
    config: Mutex<Config>,
    state: Arc<StateDir>,
    identity: Identity,
    pin: watch::Sender<Option<Pin>>,
    around: Surroundings,
    instance: InstanceId,
    groups: Mutex<BTreeMap<Name, GroupHandle>>,
    volumes: Mutex<BTreeMap<Name, (Name, VolumeId)>>,
    /// Why what is configured is not served.
    unserved: Mutex<BTreeMap<Name, String>>,
    stopping: AtomicBool,
    /// One change of the configuration at a time.
    changes: tokio::sync::Mutex<()>,
    /// Why the configuration on disk is not the one that runs.
    stale: Mutex<Vec<String>>,
    started: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    fn new(config: Config, state: Arc<StateDir>, runtime: tokio::runtime::Handle) -> anyhow::Result<Arc<Self>> {
        let identity = Identity::load_or_create(state.path())?;
        let pin = Pin::load(&state.path().join("receiver.json"))?;
        let mut instance = [0; 16];
        getrandom::fill(&mut instance).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let around = Surroundings {
            source: config.source.name.clone(),
            boot: boot_id()?,
            limits: config.limits.clone(),
            api_group: config.source.api_group.clone(),
            runtime_dir: config.source.runtime_dir().to_owned(),
            runtime,
            pacer: Arc::default(),
        };
        around.pacer.set(config.rate.map(Rate::bytes_per_s));
        Ok(Arc::new(Self {
            config: Mutex::new(config),
            state,
            identity,
            pin: watch::Sender::new(pin),
            around,
            instance: InstanceId(instance),
            groups: Mutex::new(BTreeMap::new()),
            volumes: Mutex::new(BTreeMap::new()),
            unserved: Mutex::default(),
            stopping: AtomicBool::new(false),
            changes: tokio::sync::Mutex::new(()),
            stale: Mutex::default(),
            started: Instant::now(),
        }))
    }

    async fn serve(self: Arc<Self>) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut reload = signal(SignalKind::hangup())?;
        let api = crate::api::listen(&self)?;
        let volumes: Vec<VolumeConfig> = locked(&self.config).volumes.values().cloned().collect();
        let count = volumes.len();
        self.distrust_strangers(&volumes)?;
        let mut starts = tokio::task::JoinSet::new();
        for volume in volumes {
            let daemon = self.clone();
            // One volume that cannot be served must not keep the others from their hosts.
            starts.spawn(async move {
                let name = volume.name.clone();
                if let Err(error) = daemon.start_volume(volume).await {
                    error!(volume = %name, "not served: {error:#}");
                }
            });
        }
        while starts.join_next().await.is_some() {}
        let served = locked(&self.volumes).len();
        systemd::ready(&format!("{served} of {count} volumes served"));
        let watched = self.clone();
        let housekeeping = tokio::spawn(async move { systemd::housekeeping(|| watched.alive()).await });
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // Said in the log by the reload itself.
                _ = reload.recv() => drop(self.reload().await),
            }
        }
        info!("stopping");
        self.stopping.store(true, Ordering::Relaxed);
        systemd::stopping();
        housekeeping.abort();
        let stopped = self.stop_groups().await;
        api.abort();
        match stopped {
            Stopped::Clean => Ok(()),
            Stopped::Unclean => bail!("stopped, but not cleanly: the next start compares what was hot"),
            Stopped::LossUnkept => {
                bail!("stopped, and a reboot will forget that tracking was lost: the log says of which volumes")
            }
        }
    }

    /// A volume that is not configured may be written without us: its map must not be trusted when it comes back. That is
    /// also what a `volume remove` leaves that was interrupted.
    fn distrust_strangers(&self, volumes: &[VolumeConfig]) -> anyhow::Result<()> {
        let below = |dir: &Path| -> Vec<std::path::PathBuf> {
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect()
        };
        let known: Vec<_> =
            volumes.iter().map(|v| self.state.path().join("volumes").join(v.group.as_str()).join(v.name.as_str())).collect();
        for dir in below(&self.state.path().join("volumes")).iter().flat_map(|group| below(group)) {
            if !known.contains(&dir) && !Mark::TrackingLost.is_set(&dir)? {
                Mark::TrackingLost.put(&dir, true)?;
            }
        }
        Ok(())
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

    async fn stop_groups(&self) -> Stopped {
        let groups = std::mem::take(&mut *locked(&self.groups));
        let mut stops = Vec::new();
        for (_, group) in groups {
            stops.push(tokio::task::spawn_blocking(move || {
                let (answer, answered) = crossbeam::channel::bounded(1);
                group.inbox.send(Note::Ask(Ask::Stop(answer)));
                let stopped = answered.recv().unwrap_or(Stopped::Unclean);
                group.link.abort();
                let _ = group.thread.join();
                stopped
            }));
        }
        let mut worst = Stopped::Clean;
        for stop in stops {
            worst = worst.max(stop.await.unwrap_or(Stopped::Unclean));
        }
        worst
    }

    /// Serves a volume; its group is started if it is the first of it.
    async fn start_volume(&self, volume: VolumeConfig) -> anyhow::Result<()> {
        let name = volume.name.clone();
        let started = self.try_to_start(volume).await;
        locked(&self.unserved).remove(&name);
        if let Err(error) = &started
            && locked(&self.config).volumes.contains_key(&name)
        {
            locked(&self.unserved).insert(name, format!("{error:#}"));
        }
        started
    }

    async fn try_to_start(&self, volume: VolumeConfig) -> anyhow::Result<()> {
        let name = volume.name.clone();
        let group = volume.group.clone();
        let id = farside_ledger::volume_id(&self.around.source, &group, &name);
        let settings = locked(&self.config).group(&group); // never both locks at once
        let inbox = {
            let mut groups = locked(&self.groups);
            if !groups.contains_key(&group) {
                let dialer = QuicDialer::new(
                    self.identity.clone(),
                    self.around.source.clone(),
                    self.pin.subscribe(),
                    farside_transport::Limits::default(),
                );
                let start = GroupStart {
                    name: group.clone(),
                    config: settings,
                    around: self.around.clone(),
                    state: self.state.clone(),
                    dial: Arc::new(dialer),
                    instance: self.instance,
                };
                groups.insert(group.clone(), start.start()?);
            }
            groups[&group].inbox.clone()
        };
        let (reply, answer) = oneshot::channel();
        inbox.send(Note::Ask(Ask::Add(volume, reply)));
        answer.await.context("the group's thread has ended")??;
        locked(&self.volumes).insert(name, (group, id));
        Ok(())
    }

    async fn stop_volume(&self, name: &Name) -> anyhow::Result<()> {
        self.ask(name, Ask::Remove).await.map_err(|e| anyhow::anyhow!("{e}"))?;
        locked(&self.volumes).remove(name);
        Ok(())
    }

    /// Takes over what changed on disk: volumes that are new are served, volumes that are gone are removed, groups get their
    /// settings. An invalid configuration changes nothing. What can only change with a restart stays, and is named.
    pub(crate) async fn reload(&self) -> Result<Reloaded, ApiError> {
        systemd::reloading();
        let reloaded = self.take_over().await;
        let (served, configured) = (locked(&self.volumes).len(), locked(&self.config).volumes.len());
        systemd::ready(&format!("{served} of {configured} volumes served"));
        match &reloaded {
            Err(error) => {
                error!("the running configuration stays: {error}");
                *locked(&self.stale) = vec![format!("the configuration on disk is not valid, the one before stays: {error}")];
            }
            Ok(reloaded) => {
                let words =
                    |what: &String| format!("{what}: changed on disk; the value before stays until farsided is restarted");
                *locked(&self.stale) = reloaded.needs_restart.iter().map(words).collect();
                info!(changed = reloaded.changed.len(), "configuration read again");
                reloaded.changed.iter().for_each(|what| info!(%what, "changed"));
                reloaded.needs_restart.iter().for_each(|what| warn!(%what, "changes with the next restart only"));
                reloaded.failed.iter().for_each(|what| error!(%what, "taken over, but"));
            }
        }
        reloaded
    }

    async fn take_over(&self) -> Result<Reloaded, ApiError> {
        let _one = self.changes.lock().await;
        let old = locked(&self.config).clone();
        let invalid = |e: &dyn std::fmt::Display| {
            ApiError::new(
                ErrorCode::Conflict,
                e.to_string(),
                "mend that and reload again; until then the running configuration stays",
            )
        };
        let mut new = Config::load(&old.path).map_err(|e| invalid(&e))?;
        let changes = old.changes(&new);
        new.source = old.source.clone();
        new.limits = old.limits.clone();
        for (name, volume) in &mut new.volumes {
            if let Some(old) = old.volumes.get(name) {
                volume.clone_from(old);
            }
        }
        *locked(&self.config) = new.clone();
        self.tell_groups();
        let served = |name: &Name| locked(&self.volumes).contains_key(name);
        let mut failed = Vec::new();
        for name in old.volumes.keys().filter(|n| !new.volumes.contains_key(*n) && served(n)) {
            failed.extend(self.stop_volume(name).await.err().map(|e| format!("volume {name}: {e:#}")));
        }
        for (name, volume) in new.volumes.iter().filter(|(n, _)| !served(n)) {
            failed.extend(self.start_volume(volume.clone()).await.err().map(|e| format!("volume {name}: {e:#}")));
        }
        Ok(Reloaded { changed: changes.live, needs_restart: changes.needs_restart, failed })
    }

    fn tell_groups(&self) {
        let config = locked(&self.config).clone();
        self.around.pacer.set(config.rate.map(Rate::bytes_per_s));
        for (name, group) in locked(&self.groups).iter() {
            group.inbox.send(Note::Ask(Ask::Settings(config.group(name))));
        }
    }

    fn find(&self, name: &str) -> Result<(Name, Name, VolumeId), ApiError> {
        let missing = || ApiError::not_found("volume", name, "`farside volume list` shows those that are served");
        let parsed: Name = name.parse().map_err(|_| missing())?;
        let (group, id) = locked(&self.volumes).get(&parsed).cloned().ok_or_else(missing)?;
        Ok((parsed, group, id))
    }

    async fn ask<T>(
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

    fn tell(&self, group: &Name, ask: Ask) -> Result<(), ApiError> {
        match locked(&self.groups).get(group) {
            Some(handle) => handle.inbox.send(Note::Ask(ask)),
            None => return Err(ApiError::not_found("group", group.as_str(), "`farside status` shows the groups")),
        }
        Ok(())
    }

    pub(crate) fn api_socket(&self) -> (std::path::PathBuf, Option<String>) {
        let config = locked(&self.config);
        (config.source.api_socket.clone(), config.source.api_group.clone())
    }

    pub(crate) fn group_names(&self) -> Vec<Name> {
        locked(&self.groups).keys().cloned().collect()
    }

    pub(crate) async fn status(&self) -> SourceStatus {
        let mut groups = Vec::new();
        for name in self.group_names() {
            let (reply, answer) = oneshot::channel();
            if self.tell(&name, Ask::Status(reply)).is_ok()
                && let Ok(status) = answer.await
                // A group whose last volume was removed has nothing to say.
                && !status.volumes.is_empty()
            {
                groups.push(status);
            }
        }
        let configured: Vec<Name> = locked(&self.config).volumes.keys().cloned().collect();
        let served = locked(&self.volumes).clone();
        let mut reasons: Vec<Reason> = configured
            .iter()
            .filter(|n| !served.contains_key(*n))
            .map(|n| {
                let todo = "mend it, then: farside reload. Until then its group's points are made without it";
                let why = locked(&self.unserved).get(n).map_or_else(|| "it is being opened".to_owned(), Clone::clone);
                Reason::new(Severity::Error, Code::NotServed, format!("volume {n} is not served: {why}"), todo)
            })
            .collect();
        if self.stopping.load(Ordering::Relaxed) {
            let todo = "wait; what is owed then is written down, and the next start goes on from there";
            let what = "farsided is stopping: its volumes are closed, what can still be published is";
            reasons.push(Reason::new(Severity::Warning, Code::Stopping, what, todo));
        }
        reasons.extend(self.not_paired());
        reasons.extend(locked(&self.stale).iter().map(|what| {
            let todo = "mend it, then: farside reload; or restart farsided for what only a restart can change";
            Reason::new(Severity::Warning, Code::ConfigurationStale, what, todo)
        }));
        SourceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.around.source.to_string(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            connection: self.connection(&groups),
            limits: self.limits(),
            groups,
            reasons,
        }
    }

    fn not_paired(&self) -> Option<Reason> {
        let todo = "on the gateway: farside-receiver token; then here: farside pair TOKEN";
        let unpaired = self.pin.borrow().is_none();
        unpaired.then(|| Reason::new(Severity::Error, Code::NotPaired, "this host is not paired with a receiver", todo))
    }

    fn connection(&self, groups: &[GroupStatus]) -> Connection {
        let Some(pin) = self.pin.borrow().clone() else { return Connection::NotPaired };
        let receiver = pin.receiver.to_string();
        let apart = groups.iter().filter(|g| !g.link.connected);
        let trouble = apart.flat_map(|g| &g.reasons).find(|r| CONNECTION_CODES.iter().any(|code| code.word() == r.code));
        match trouble {
            Some(reason) => Connection::Disconnected { receiver, error: reason.message.clone() },
            None => Connection::Connected { receiver },
        }
    }

    pub(crate) async fn pair(&self, token: &str) -> Result<Paired, ApiError> {
        let bad = |e: &dyn std::fmt::Display| {
            ApiError::new(ErrorCode::BadRequest, e.to_string(), "make a new one with `farside-receiver token` at the gateway")
        };
        let token = token.parse::<farside_transport::PairingToken>().map_err(|e| bad(&e))?;
        let limits = farside_transport::Limits::default();
        let pin = farside_transport::pair(&token, &self.identity, &self.around.source, &limits).await.map_err(|e| {
            ApiError::new(ErrorCode::Refused, e.to_string(), "make a new token with `farside-receiver token` at the gateway")
        })?;
        pin.save(&self.state.path().join("receiver.json")).map_err(ApiError::internal)?;
        let paired = Paired {
            receiver: pin.receiver.to_string(),
            receiver_fingerprint: pin.fingerprint.to_string(),
            source_fingerprint: self.identity.fingerprint().to_string(),
        };
        self.pin.send_replace(Some(pin));
        Ok(paired)
    }

    pub(crate) async fn set_group(&self, name: &str, settings: &GroupSettings) -> Result<GroupSettings, ApiError> {
        let _one = self.changes.lock().await;
        let wrong = |what: &str| ApiError::new(ErrorCode::BadRequest, what, "see `farside group set --help`");
        let name: Name = name.parse().map_err(|e: farside_region::NameError| wrong(&e.to_string()))?;
        let configured = locked(&self.config).groups.contains_key(&name);
        let known = configured || locked(&self.groups).contains_key(&name);
        if !known {
            let todo = "`farside status` shows the groups; a group begins with its first volume: `farside volume add --group`";
            return Err(ApiError::not_found("group", name.as_str(), todo));
        }
        let old = locked(&self.config).group(&name);
        let group = GroupConfig {
            epoch_interval: settings.epoch_interval_ms.map_or(old.epoch_interval, Duration::from_millis),
            keep: settings.keep.unwrap_or(old.keep),
            span: settings.span_ms.map_or(old.span, Duration::from_millis),
        };
        if group.keep == 0 {
            return Err(wrong("keep must be at least 1"));
        }
        if !(Duration::from_millis(50)..=Duration::from_secs(86_400)).contains(&group.epoch_interval) {
            return Err(wrong("the epoch interval must be between 50ms and 24h"));
        }
        let config = locked(&self.config).clone();
        config.write_group(&name, &group).map_err(ApiError::internal)?;
        locked(&self.config).groups.insert(name, group.clone());
        self.tell_groups();
        Ok(GroupSettings {
            epoch_interval_ms: Some(group.epoch_interval.as_millis() as u64),
            keep: Some(group.keep),
            span_ms: Some(group.span.as_millis() as u64),
        })
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { rate_bytes_per_s: self.around.pacer.limit() }
    }

    /// Sets the limits, durably, and for whoever sends at this moment.
    pub(crate) async fn set_limits(&self, limits: Limits) -> Result<Limits, ApiError> {
        let _one = self.changes.lock().await;
        let wrong = || {
            ApiError::new(ErrorCode::BadRequest, "the rate must be between 64kbit and 8Tbit", "see `farside limit set --help`")
        };
        let rate = limits.rate_bytes_per_s.map(|bytes| Rate::from_bytes_per_s(bytes).ok_or_else(wrong)).transpose()?;
        let config = locked(&self.config).clone();
        config.write_rate(rate).map_err(ApiError::internal)?;
        locked(&self.config).rate = rate;
        self.around.pacer.set(rate.map(Rate::bytes_per_s));
        info!(rate = rate.map_or_else(|| "none".to_owned(), |rate| rate.to_string()), "the bandwidth limit was set");
        Ok(self.limits())
    }

    pub(crate) async fn add_volume(&self, add: &VolumeAdd) -> Result<(), ApiError> {
        let _one = self.changes.lock().await;
        let wrong = |what: String| ApiError::new(ErrorCode::BadRequest, what, "see `farside volume add --help`");
        let name: Name = add.name.parse().map_err(|e: farside_region::NameError| wrong(e.to_string()))?;
        let group = add.group.as_deref().unwrap_or("default");
        let group: Name = group.parse().map_err(|e: farside_region::NameError| wrong(e.to_string()))?;
        let config = locked(&self.config).clone();
        if config.volumes.contains_key(&name) {
            let todo = "choose another name, or `farside volume remove` it first";
            return Err(ApiError::new(ErrorCode::Conflict, format!("there is a volume {name} already"), todo));
        }
        if !add.backing.is_absolute() {
            return Err(wrong("the backing must be an absolute path".into()));
        }
        if let Some(other) = config.volumes.values().find(|v| v.backing == add.backing) {
            return Err(wrong(format!("{} backs volume {} already", add.backing.display(), other.name)));
        }
        let tap_socket = match &add.tap {
            None => config.default_tap_socket(&name),
            Some(tap) => parse_tap(tap).ok_or_else(|| wrong(format!("`{tap}` is not a tap; use nbd:unix:/absolute/path")))?,
        };
        if let Some(other) = config.volumes.values().find(|v| v.tap_socket == tap_socket) {
            return Err(wrong(format!("{} is the tap of volume {} already", tap_socket.display(), other.name)));
        }
        let volume = VolumeConfig {
            name: name.clone(),
            group,
            backing: add.backing.clone(),
            tap_socket,
            on_tracking_lost: Default::default(),
        };
        // Served first: what cannot be served is not written down.
        let failed = |e: anyhow::Error| ApiError::new(ErrorCode::Conflict, format!("{e:#}"), "mend that and try again");
        self.start_volume(volume.clone()).await.map_err(failed)?;
        config.write_volume(&volume).map_err(ApiError::internal)?;
        locked(&self.config).volumes.insert(name, volume);
        Ok(())
    }

    pub(crate) async fn remove_volume(&self, name: &str) -> Result<(), ApiError> {
        let _one = self.changes.lock().await;
        let (name, group, _) = self.find(name)?;
        let config = locked(&self.config).clone();
        // From here on the volume may be written without us: whatever interrupts this, its map is not trusted again.
        let (dir, _) = self.state.volume_dir(&group, &name).map_err(ApiError::internal)?;
        let marked = Mark::TrackingLost.is_set(&dir).map_err(ApiError::internal)?;
        Mark::TrackingLost.put(&dir, true).map_err(ApiError::internal)?;
        if let Err(error) = config.remove_volume(&name) {
            // It stays, and stays trusted.
            Mark::TrackingLost.put(&dir, marked).map_err(ApiError::internal)?;
            return Err(ApiError::new(ErrorCode::Conflict, error.to_string(), "edit that file, then reload farsided"));
        }
        locked(&self.config).volumes.remove(&name);
        self.stop_volume(&name).await.map_err(ApiError::internal)
    }

    pub(crate) async fn pause(&self, name: &str, pause: bool) -> Result<(), ApiError> {
        let (name, ..) = self.find(name)?;
        self.ask(&name, |id, reply| Ask::Pause(id, pause, reply)).await
    }

    pub(crate) async fn resync(&self, name: &str, accept: Option<Accept>) -> Result<(), ApiError> {
        let (name, ..) = self.find(name)?;
        self.ask(&name, |id, reply| Ask::Resync(id, accept, reply)).await
    }

    pub(crate) async fn verify(&self, name: &str) -> Result<(), ApiError> {
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

    /// Whether a volume or group of that name is served or configured.
    pub(crate) fn knows(&self, name: &str) -> bool {
        let config = locked(&self.config).clone();
        let configured = config.volumes.keys().chain(config.groups.keys()).any(|n| n.as_str() == name);
        configured || locked(&self.groups).keys().any(|n| n.as_str() == name)
    }

    pub(crate) fn source(&self) -> &Name {
        &self.around.source
    }
}
