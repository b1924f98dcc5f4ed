//! The process from start to stop.
//!
//! Order of a start: state directory (lock), identity, pairings, store, API socket, UDP socket, groups, readiness. A store
//! that cannot be opened does not keep the receiver from running: it says so, and goes on when the store answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use farside_blockio::process::refuse_core_dumps;
use farside_control::Reloaded;
use farside_control::receiver::Budget as BudgetStatus;
use farside_ledger::Policy;
use farside_objects::Location;
use farside_region::Name;
use farside_replication::target;
use farside_service::socket::{self, SocketError};
use farside_service::systemd;
use farside_store::{GroupNames, Space};
use farside_transport::{
    Backoff, BookError, CloseCode, Fingerprint, Identity, IdentityError, Listen, Listener, ListenerEvent, PairingBook,
};
use tokio::signal::unix::{SignalKind, signal};

use crate::budget::Budget;
use crate::cohort::Cohorts;
use crate::config::{Config, ConfigError, ListenTcp};
use crate::failover::{self, Failovers};
use crate::floor::{Floor, FloorSaid};
use crate::follow::Followers;
use crate::keys::Keys;
use crate::landing::{LANDER_BYTES, Memory};
use crate::merge;
use crate::refusals::Refusals;
use crate::roster::Roster;
use crate::schedule::{self, Schedule};
use crate::state_dir::{StateDir, StateError};
use crate::vault::{StorePlace, Vault};
use crate::verify::Verifications;
use crate::{api, door};

/// How often a store that failed is tried again.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// How often at the least what could not be listed in it is listed again: doubled up to this, since a service is paid for it.
const LISTED_AGAIN: Duration = Duration::from_secs(60);

/// Why the receiver did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The list of pairings.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The runtime.
    #[error("no threads for the runtime: {0}")]
    Runtime(std::io::Error),
    /// The UDP address, or the TCP address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Signals.
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
    /// The UDP socket, later. Who starts it again has a new one.
    #[error("nothing comes over UDP any more, since its socket failed (the log says how): start it again")]
    SocketFailed,
}

/// What all parts of the process share.
#[derive(Debug)]
pub(crate) struct Receiver {
    config: ArcSwap<Config>,
    path: PathBuf,
    /// One reload at a time.
    reloading: Mutex<()>,
    /// Why the configuration on disk is not the one that runs.
    stale: Mutex<Vec<String>>,
    pub(crate) state_dir: Arc<StateDir>,
    pub(crate) vault: Vault,
    pub(crate) book: Arc<PairingBook>,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) local_address: std::net::SocketAddr,
    pub(crate) listener: Arc<Listener>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) memory: Memory,
    pub(crate) parts_per_connection: u32,
    /// Bytes of answers that wait for their sources.
    pub(crate) answers_queued: Arc<AtomicUsize>,
    pub(crate) space: Grants,
    pub(crate) verifications: Verifications,
    pub(crate) schedule: Schedule,
    pub(crate) followers: Followers,
    pub(crate) failovers: Failovers,
    pub(crate) keys: Keys,
    pub(crate) cohorts: Cohorts,
    pub(crate) floor: Floor,
    pub(crate) budget: Budget,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) started: Instant,
    stopping: AtomicBool,
    pub(crate) refusals: Refusals,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    bytes: u64,
    connected: bool,
}

/// Once all groups have stopped, followers are waited for so long.
const FOLLOWERS_END: Duration = Duration::from_secs(40);
/// So much of the spare each source may draw, however many share it: its volumes' first claims.
const SPARE_BYTES_MIN: u64 = 256 << 10;
/// So much of its source's share each group may take to be its own until it looks again.
const SPARE_STEP_BYTES: u64 = 64 << 10;

/// Bytes that were granted to groups and have not landed: nobody is granted them again. And what sources drew of the spare,
/// which is for all of them.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    granted: Mutex<BTreeMap<GroupNames, Granted>>,
    /// By source, since the disk had room.
    drawn: Mutex<BTreeMap<Name, u64>>,
}

impl Grants {
    pub(crate) fn grant(&self, names: &GroupNames, bytes: u64, connected: bool) {
        let (mut granted, now) = (self.lock(), Granted { bytes, connected });
        match granted.get_mut(names) {
            Some(known) => *known = now,
            None => drop(granted.insert(names.clone(), now)),
        }
    }

    pub(crate) fn forget(&self, names: &GroupNames) {
        self.lock().remove(names);
    }

    /// What a group may have under way of `grantable` bytes: what others do not have, and no more than its share among those
    /// that are connected (though not less than `least`), so that some that are idle do not take all there is.
    pub(crate) fn room(&self, names: &GroupNames, grantable: u64, least: u64) -> u64 {
        let granted = self.lock();
        let others = granted.iter().filter(|(other, _)| *other != names).map(|(_, granted)| granted);
        let (bytes, connected) =
            others.fold((0u64, 1u64), |(bytes, n), other| (bytes.saturating_add(other.bytes), n + u64::from(other.connected)));
        grantable.saturating_sub(bytes).min((grantable / connected).max(least))
    }

    /// What records of a group may take of `spare` bytes: its source's share, one being left for who comes next. `grantable`:
    /// there is room again for everybody, and what was drawn counts no more.
    pub(crate) fn spare(&self, names: &GroupNames, spare: u64, grantable: u64) -> u64 {
        let (sources, groups) = {
            let granted = self.lock();
            let others = granted.iter().filter(|(other, granted)| granted.connected && *other != names);
            let (own, foreign): (Vec<&Name>, Vec<&Name>) =
                others.map(|(other, _)| &other.source).partition(|source| **source == names.source);
            // The groups of one source stand together.
            (1 + foreign.chunk_by(|a, b| a == b).count() as u64, 1 + own.len() as u64)
        };
        let mut drawn = self.drawn();
        if grantable > 0 {
            drawn.clear();
        }
        let all = drawn.values().fold(spare, |sum, bytes| sum.saturating_add(*bytes));
        let own = drawn.get(&names.source).copied().unwrap_or(0);
        let left = (all / (sources + 1)).max(SPARE_BYTES_MIN).saturating_sub(own).min(spare);
        (left / groups).max(left.min(SPARE_STEP_BYTES))
    }

    /// A record of a group took so much of the disk and had no credit for it.
    pub(crate) fn draw(&self, names: &GroupNames, bytes: u64) {
        let mut drawn = self.drawn();
        let own = drawn.entry(names.source.clone()).or_default();
        *own = own.saturating_add(bytes);
    }

    fn drawn(&self) -> MutexGuard<'_, BTreeMap<Name, u64>> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupNames, Granted>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    /// As it is now; a reload replaces it.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Reads the configuration again. An invalid one changes nothing.
    pub(crate) fn reload(self: &Arc<Self>) -> Result<Reloaded, ConfigError> {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        systemd::reloading();
        let taken = Config::load_said(&self.path).map(|(new, said)| {
            let news = self.floor.take_up(&self.state_dir, &said);
            let (config, mut changes) = self.config().take_over(&new);
            news.correct(&mut changes);
            (config, changes, news)
        });
        systemd::ready("receiving");
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let (config, changes, news) = taken.inspect_err(|error| {
            tracing::error!("the running configuration stays: {error}");
            *stale = vec![format!("the configuration on disk is not valid, the one before stays: {error}")];
        })?;
        let words = |what: &String| format!("{what}: changed on disk; the value before stays until the receiver is restarted");
        *stale = changes.needs_restart.iter().map(words).chain(news.words).collect();
        let config = Arc::new(config);
        self.config.store(Arc::clone(&config));
        // † Not before: whoever asks in between would have what was taken out kept.
        self.keys.keep_those_of(&config);
        Cohorts::apply(self, &config);
        tracing::info!(changed = changes.live.len(), "configuration read again");
        changes.live.iter().for_each(|what| tracing::info!(%what, "changed"));
        changes.needs_restart.iter().for_each(|what| tracing::warn!(%what, "changes with the next restart only"));
        Ok(Reloaded { changed: changes.live, needs_restart: changes.needs_restart, ..Reloaded::default() })
    }

    /// Whether the store itself has no room for what comes: then nothing is to keep what retention gives up. A bucket has.
    pub(crate) fn is_full(&self) -> bool {
        let has_room = |space: Space| space.grantable() >= target::Limits::default().credit_step;
        matches!(self.config().store, Location::Dir(_)) && self.vault.space().is_some_and(|space| !has_room(space))
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Forgets a source's certificate durably and closes its connections; says whether it was paired. Its points stay.
    pub(crate) fn unpair(&self, name: &Name) -> Result<bool, BookError> {
        let Some(fingerprint) = self.book.remove(name)? else { return Ok(false) };
        self.listener.disconnect(&fingerprint, CloseCode::NotPaired, "this source was unpaired on the receiver");
        tracing::info!(source = %name, %fingerprint, "unpaired a source");
        Ok(true)
    }

    /// What its source said last is to be kept of a group; `None` if that is not known here.
    pub(crate) fn policy_of(&self, names: &GroupNames) -> Option<Policy> {
        self.state_dir.policy(&names.source, &names.group).unwrap_or_else(|error| {
            tracing::warn!(group = %names, %error, "what is to be kept is not known");
            None
        })
    }

    /// How long what is staged waits for others, in nanoseconds. In a directory a record costs next to nothing.
    pub(crate) fn publish_every(&self) -> u64 {
        let config = self.config();
        match config.store {
            Location::Dir(_) => 0,
            _ => u64::try_from(config.publish_every.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// What the configuration says is to be kept of a group whose source said nothing.
    pub(crate) fn policy_default(&self) -> Policy {
        self.config().retention.policy()
    }

    /// Under which addresses sources reach this receiver, as far as can be known.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let config = self.config();
        if !config.advertise.is_empty() {
            return config.advertise.clone();
        }
        let port = self.local_address.port();
        let ports = [Some(port), self.listener.tcp_address().map(|tcp| tcp.port()).filter(|tcp| *tcp != port)];
        let at = |ip: std::net::IpAddr| {
            let addresses = ports.into_iter().flatten().map(move |port| std::net::SocketAddr::new(ip, port).to_string());
            addresses.collect::<Vec<_>>()
        };
        if !self.local_address.ip().is_unspecified() {
            return at(self.local_address.ip());
        }
        let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
        let addresses = interfaces.filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| std::net::IpAddr::from(a.ip()));
            let v6 = address.as_sockaddr_in6().map(|a| std::net::IpAddr::from(a.ip()));
            // Link-local addresses mean nothing without their interface.
            let usable = |ip: &std::net::IpAddr| match ip {
                std::net::IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
                std::net::IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && self.local_address.is_ipv6(),
            };
            v4.or(v6).filter(usable)
        });
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort();
        addresses.dedup();
        addresses.into_iter().take(8).flat_map(at).collect()
    }

    pub(crate) fn budget_status(&self) -> BudgetStatus {
        let (used_bytes, used_bytes_max, limit_bytes) = self.memory.status();
        BudgetStatus { used_bytes, used_bytes_max, limit_bytes }
    }

    /// Why the configuration on disk is not the one that runs.
    pub(crate) fn stale(&self) -> Vec<String> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs the receiver that the configuration at `path` describes, until SIGTERM or SIGINT.
///
/// # Errors
/// [`RunError`]: it did not start, or cannot go on.
pub fn run(path: &Path) -> Result<(), RunError> {
    // What is encrypted may be read here, and its keys are.
    refuse_core_dumps().unwrap_or_else(|error| tracing::warn!("{error}"));
    let (config, said) = Config::load_said(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("receiver").build();
    let runtime = runtime.map_err(RunError::Runtime)?;
    let handle = runtime.handle().clone();
    let result = runtime.block_on(serve((config, said), path, handle));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

async fn serve((config, said): (Config, Vec<FloorSaid>), path: &Path, runtime: tokio::runtime::Handle) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Signals)?;
    let state_dir = Arc::new(StateDir::open(&config.state_dir)?);
    let identity = Identity::load_or_create(state_dir.path(), &state_dir.pairings())?;
    let book = Arc::new(PairingBook::open(&state_dir.pairings())?);
    let (place, state) = (StorePlace::of(&config), Arc::clone(&state_dir));
    let vault = tokio::task::spawn_blocking(move || Vault::open(place, state)).await.expect("opening does not panic");
    let socket = socket::listen(&config.api_socket, config.api_group.as_deref())?;
    let socket = tokio::net::UnixListener::from_std(socket)
        .map_err(|source| SocketError::Io { path: config.api_socket.clone(), source })?;
    // One half may wait in the windows of connections, the other is for parts being verified and written.
    let half_bytes = (config.limits.receive_budget_mib << 20) / 2;
    let landing_bytes = u64::from(half_bytes);
    let parts_all = u32::try_from(landing_bytes / LANDER_BYTES).unwrap_or(u32::MAX).max(1);
    let parts_per_connection = config.limits.parts_per_connection.min(parts_all);
    let limits = farside_transport::Limits {
        receive_budget_bytes: half_bytes,
        parts_open: parts_per_connection,
        parts_open_all: parts_all,
        connections: config.limits.connections,
        // One for each group, twice while they reconnect, and some that are being refused.
        connections_per_source: config.limits.groups_per_source.saturating_mul(2).saturating_add(8),
        ..farside_transport::Limits::default()
    };
    let bind = |tcp| {
        let listen = Listen { udp: config.listen, tcp };
        Listener::bind(listen, &identity, config.name.clone(), Arc::clone(&book), limits.clone())
    };
    let bound = match config.listen_tcp {
        Some(ListenTcp::Nowhere) => bind(None),
        Some(ListenTcp::At(address)) => bind(Some(address)),
        // Who did not ask for it is not kept from receiving by another service that has the port.
        None => bind(Some(config.listen)).or_else(|no_tcp| {
            bind(None).inspect(
                |_| tracing::warn!(%no_tcp, "TCP is not listened to: hosts whose UDP does not get through are not reached"),
            )
        }),
    };
    let listener = bound.map_err(|source| RunError::Listen { address: config.listen, source })?;
    let listener = Arc::new(listener);
    warn_of_small_buffers(&listener);
    // † Before any group gives up anything.
    let floor = Floor::default();
    let news = floor.take_up(&state_dir, &said);
    let receiver = Arc::new(Receiver {
        state_dir,
        vault,
        book,
        fingerprint: identity.fingerprint(),
        local_address: listener.local_address().unwrap_or(config.listen),
        listener: Arc::clone(&listener),
        roster: Arc::default(),
        memory: Memory::new(landing_bytes),
        parts_per_connection,
        answers_queued: Arc::default(),
        space: Grants::default(),
        verifications: Verifications::default(),
        schedule: Schedule::default(),
        followers: Followers::default(),
        failovers: Failovers::default(),
        keys: Keys::default(),
        cohorts: Cohorts::default(),
        floor,
        budget: Budget::default(),
        runtime,
        started: Instant::now(),
        stopping: AtomicBool::new(false),
        refusals: Refusals::default(),
        config: ArcSwap::from_pointee(config),
        path: path.to_owned(),
        reloading: Mutex::default(),
        stale: Mutex::new(news.words),
    });
    receiver.followers.load(&receiver.state_dir);
    receiver.failovers.load(&receiver.state_dir);
    receiver.cohorts.load(&receiver.state_dir);
    let groups_known = start_known_groups(&receiver).await;
    schedule::start(Arc::clone(&receiver)).map_err(RunError::Runtime)?;
    merge::start(Arc::clone(&receiver)).map_err(RunError::Runtime)?;
    Followers::start(&receiver).map_err(RunError::Runtime)?;
    failover::start(Arc::clone(&receiver)).map_err(RunError::Runtime)?;
    Cohorts::apply(&receiver, &receiver.config());
    let api = tokio::spawn(api::serve(Arc::clone(&receiver), socket));
    let keeper = tokio::spawn(keep_store(Arc::clone(&receiver), groups_known));
    let watchdog = tokio::spawn(systemd::housekeeping(|| true));
    let tcp = receiver.listener.tcp_address().map_or_else(|| "none".to_owned(), |tcp| tcp.to_string());
    tracing::info!(address = %receiver.local_address, %tcp, name = %receiver.config().name, fingerprint = %receiver.fingerprint, "listening");
    systemd::ready("receiving");
    let reloads = {
        let receiver = Arc::clone(&receiver);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                let receiver = Arc::clone(&receiver);
                // Said in the log by the reload itself.
                let _ = tokio::task::spawn_blocking(move || drop(receiver.reload())).await;
            }
        })
    };
    let ended = tokio::select! {
        () = welcome(&receiver, &listener) => Err(RunError::SocketFailed),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    reloads.abort();
    tracing::info!("stopping");
    systemd::stopping();
    receiver.stopping.store(true, Ordering::Release);
    api.abort();
    keeper.abort();
    watchdog.abort();
    let ending = Arc::clone(&receiver);
    let _ = tokio::task::spawn_blocking(move || {
        let (others, (done, followers_end)) = (Arc::clone(&ending), std::sync::mpsc::channel());
        let stop = move || {
            others.followers.stop();
            let _ = done.send(());
        };
        let stopping = std::thread::Builder::new().name("followers".to_owned()).spawn(stop);
        // † Beside it: a follower may wait for a program that keeps keys, and groups are to publish what is staged.
        ending.roster.stop();
        if stopping.is_ok() && followers_end.recv_timeout(FOLLOWERS_END).is_err() {
            tracing::warn!("a follower does not end; it goes on where it is at the next start");
        }
        // What was met on the way out is known to the next process, too.
        ending.schedule.hear_last();
        ending.schedule.keep(&ending.state_dir);
    })
    .await;
    listener.shut_down().await;
    let _ = std::fs::remove_file(&receiver.config().api_socket);
    ended
}

/// Groups that the store holds are opened at once: they are shown, and cleaned up, whether their source comes or not.
/// Says whether all could be listed; what can be is served whatever is in the way of the rest.
async fn start_known_groups(receiver: &Arc<Receiver>) -> bool {
    let receiver = Arc::clone(receiver);
    let started = tokio::task::spawn_blocking(move || {
        let Ok((store, _)) = receiver.vault.current() else { return false };
        match store.groups() {
            Ok(listing) => {
                for names in &listing.groups {
                    if let Err(error) = receiver.roster.group(&receiver, names) {
                        tracing::warn!(group = %names, %error, "a group of the store is not served");
                    }
                }
                let words = |(source, error): &(_, _)| format!("the groups of {source} cannot be listed: {error}");
                receiver.roster.not_listed(listing.unlisted.iter().map(words).collect());
                let is_all = listing.unlisted.is_empty();
                if is_all {
                    receiver.roster.listed(listing.groups.into_iter().collect());
                }
                is_all
            }
            Err(error) => {
                receiver.roster.not_listed(vec![format!("the groups of the store cannot be listed: {error}")]);
                false
            }
        }
    });
    started.await.unwrap_or(false)
}

/// Opens a store that failed again, for ever, and lists its groups until that succeeds.
async fn keep_store(receiver: Arc<Receiver>, mut groups_known: bool) {
    let mut open = receiver.vault.generation().is_some();
    let (mut patience, mut list_at) = (Backoff::new(STORE_RETRY, LISTED_AGAIN), Instant::now());
    loop {
        tokio::time::sleep(STORE_RETRY).await;
        let keeper = Arc::clone(&receiver);
        let now_open = tokio::task::spawn_blocking(move || keeper.vault.retry()).await.unwrap_or(false);
        if now_open && (!open || !groups_known && Instant::now() >= list_at) {
            groups_known = start_known_groups(&receiver).await;
            if groups_known {
                patience.reset();
            }
            list_at = Instant::now() + patience.next(0);
        }
        open = now_open;
    }
}

/// Takes what comes to the door, until nothing can come any more.
async fn welcome(receiver: &Arc<Receiver>, listener: &Listener) {
    while let Some(event) = listener.next().await {
        match event {
            ListenerEvent::Connected(connection) => {
                let peer = connection.peer();
                tracing::info!(source = %peer.name, address = %peer.address, "connected");
                receiver.refusals.forget(&peer.name, peer.address.ip());
                tokio::spawn(door::serve(Arc::clone(receiver), connection));
            }
            // Logged at the door.
            ListenerEvent::Paired { name, address, .. } => receiver.refusals.forget(&name, address.ip()),
            ListenerEvent::Refused { address, name, reason, .. } => {
                receiver.refusals.note(name, address, reason, Instant::now());
            }
            other => tracing::debug!(?other, "at the door"),
        }
    }
}

fn warn_of_small_buffers(listener: &Listener) {
    let buffers = listener.socket_buffers();
    // The kernel counts double.
    if buffers.receive_bytes < 4 << 20 {
        tracing::warn!(
            receive_bytes = buffers.receive_bytes,
            "the UDP socket's buffers are small, which costs throughput: set net.core.rmem_max and wmem_max to 8388608"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_group_is_granted_more_than_its_share_or_what_others_have() {
        let group = |name: &str| GroupNames { source: "db1".parse().expect("a name"), group: name.parse().expect("a name") };
        let (a, b, c) = (group("a"), group("b"), group("c"));
        let grants = Grants::default();
        assert_eq!(grants.room(&a, 900, 10), 900, "alone");
        grants.grant(&b, 0, true);
        grants.grant(&c, 100, false);
        assert_eq!(grants.room(&a, 900, 10), 450, "two are connected");
        grants.grant(&b, 700, true);
        assert_eq!(grants.room(&a, 900, 10), 100, "what the others left");
        assert_eq!(grants.room(&c, 900, 10), 200);
        grants.forget(&b);
        grants.forget(&c);
        grants.grant(&b, 0, true);
        assert_eq!(grants.room(&a, 12, 10), 10, "not less than is of use");
    }

    /// A hostile source claims, loses track and claims, in as many groups as it may have, on a disk that it keeps full: without a
    /// share of its own every other host's claims would wait for ever.
    #[test]
    fn no_source_draws_more_of_the_spare_than_its_share() {
        const MIB: u64 = 1 << 20;
        let group = |source: &str, name: &str| GroupNames {
            source: source.parse().expect("a name"),
            group: name.parse().expect("a name"),
        };
        let (one, two, other) = (group("db1", "a"), group("db1", "b"), group("db2", "a"));
        let grants = Grants::default();
        [&one, &two, &other].into_iter().for_each(|names| grants.grant(names, 0, true));
        assert_eq!(grants.spare(&one, 3 * MIB, 0), MIB / 2, "a third is for who comes next, and it has two groups");
        grants.draw(&one, MIB / 2);
        assert_eq!(grants.spare(&two, 3 * MIB - MIB / 2, 0), MIB / 4);
        grants.draw(&two, MIB / 2);
        assert_eq!((grants.spare(&one, 2 * MIB, 0), grants.spare(&two, 2 * MIB, 0)), (0, 0));
        assert_eq!(grants.spare(&other, 2 * MIB, 0), MIB);
        assert_eq!(grants.spare(&group("db3", "a"), 2 * MIB, 0), 3 * MIB / 4, "it takes some of everybody's");
        assert_eq!(grants.spare(&one, 3 * MIB, 1), MIB / 2, "there was room again");
        assert_eq!(grants.spare(&other, 100, 0), 100, "not more than there is");
    }
}
