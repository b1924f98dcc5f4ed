//! The source's side: find the receiver, know it by its pin, say who we are.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farside_region::Name;
use quinn::{AsyncUdpSocket, ConnectionError as QuinnError, Endpoint, TokioRuntime, TransportErrorCode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::configuration::{self, Limits, SERVER_NAME};
use super::frames::{FrameError, FrameReader, write_frame};
use super::handshake::{Answer, EXPORTER_LABEL, Lane, OPENING_BYTES_MAX, Opening, PairingProof};
use super::link::{Core, LANES_MAX, QuicConnection, translate};
use super::route::{Carriers, Meter, Route};
use super::socket;
use super::tunnel::{self, Tunnel};
use crate::identity::{IdentityError, later_format, later_words, read_secret, remove_secret, write_secret};
use crate::token::{Prover, proof};
use crate::{Backoff, Carrier, CloseCode, Closed, Connection, Dial, DialError, Fingerprint, Identity, PairingToken, WhyTcp};

const PIN_FORMAT: u32 = 1;
/// How long a receiver that ended the control stream has to say why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Pauses before one more connection that carries parts is tried again: the first, and the longest.
const LANE_AGAIN: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(600));

/// Pause before what nobody answered is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The receiver a source is paired with: where it is and what its certificate is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    format: u32,
    /// The receiver's name.
    pub receiver: Name,
    /// Its certificate.
    pub fingerprint: Fingerprint,
    /// Where it listens: `host:port`, tried in order.
    pub addresses: Vec<String>,
}

/// Why a stored pin cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// The file is not a pin.
    #[error("{} does not describe a receiver: {reason}; put it back from a copy, or move it aside and pair again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A later version wrote it.
    #[error("{} {}", path.display(), later_words(*found, PIN_FORMAT))]
    Later {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl Pin {
    /// A pin of a receiver.
    pub fn new(receiver: Name, fingerprint: Fingerprint, addresses: Vec<String>) -> Self {
        Self { format: PIN_FORMAT, receiver, fingerprint, addresses }
    }

    /// The pin kept in `path`; `None` before the first pairing.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn load(path: &Path) -> Result<Option<Self>, PinError> {
        let damaged = |reason: String| PinError::Damaged { path: path.to_owned(), reason };
        let Some(bytes) = read_secret(path)? else { return Ok(None) };
        if let Some(found) = later_format(&bytes, PIN_FORMAT) {
            return Err(PinError::Later { path: path.to_owned(), found });
        }
        let pin: Self = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if pin.format == PIN_FORMAT { Ok(Some(pin)) } else { Err(damaged(format!("format {} is not known", pin.format))) }
    }

    /// Keeps the pin in `path`, atomically, durably, mode 0600.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PinError> {
        let bytes = serde_json::to_vec_pretty(self).expect("a pin is plain data");
        Ok(write_secret(path, &bytes)?)
    }

    /// Takes the pin in `path` away, durably; one that is not there is no error.
    ///
    /// # Errors
    /// When the file cannot be removed, or that is not durable.
    pub fn forget(path: &Path) -> Result<(), PinError> {
        Ok(remove_secret(path)?)
    }
}

/// Connects to the paired receiver, whichever it is at the moment.
#[derive(Clone, Debug)]
pub struct QuicDialer {
    identity: Identity,
    source: Name,
    pin: watch::Receiver<Option<Pin>>,
    route: Route,
    limits: Limits,
}

impl QuicDialer {
    /// A dialer for the source of this name. It follows `pin`: a new pairing is used at once. What it learns of the way to the receiver is
    /// shared with all that have the same route.
    pub fn new(identity: Identity, source: Name, pin: watch::Receiver<Option<Pin>>, route: Route, limits: Limits) -> Self {
        Self { identity, source, pin, route, limits }
    }

    /// The way to a receiver is `by`: all addresses, or one over one carrier.
    async fn connect(&self, by: By) -> Result<Arc<dyn Connection>, DialError> {
        let mut pins = self.pin.clone();
        let pin = pins.borrow_and_update().clone().ok_or(DialError::NotPaired)?;
        self.route.leads_to(pin.fingerprint);
        let id = if self.limits.lanes > 1 { Some(lane_id()?) } else { None };
        let opening = |_: &[u8; 32]| Opening { source: self.source.clone(), pairing: None, lane: id.map(Lane::Leads) };
        let caller = Caller::new(&self.identity, pin.fingerprint, &self.limits, opening);
        let reached = async {
            match by {
                By::Any => caller.reach(&pin.addresses, &self.route).await,
                By::Udp => caller.reach(&pin.addresses, &self.route.over_udp()).await,
                By::One(address, carrier) => {
                    let reached = timeout(self.limits.handshake_timeout, caller.reach_by(address, carrier)).await;
                    reached.unwrap_or_else(|_| Err(caller.unanswered(address)))
                }
            }
        };
        let (made, answer) = tokio::select! {
            reached = reached => reached?,
            () = replaced(&mut pins, pin.fingerprint) => return Err(DialError::Replaced),
        };
        let Made { core, send, frames, endpoint, .. } = made;
        // However late in the attempt the pairing ended, or in the life of what came of it: nothing goes there any more.
        let (watched, route, begun) = (Arc::clone(&core), self.route.clone(), Instant::now());
        tokio::spawn(async move {
            let is_udp = watched.carrier() == Carrier::Udp;
            tokio::select! {
                closed = watched.closed() => if is_udp { route.ended(&closed, begun.elapsed(), Instant::now()) },
                () = replaced(&mut pins, pin.fingerprint) => watched.close(CloseCode::Done, "not paired with this receiver any more"),
            }
        });
        let (carrier, address) = (core.carrier(), core.quinn().remote_address());
        let connection = QuicConnection::start(core, answer.receiver, pin.fingerprint, send, frames, Some(endpoint));
        if let Some(id) = id.filter(|_| carrier == Carrier::Udp) {
            tokio::spawn(self.clone().add_lanes(Arc::downgrade(&connection), address, pin.fingerprint, id));
        }
        Ok(connection)
    }

    /// The others that carry its parts, each from a port of its own. It goes on without those that do not come to be.
    async fn add_lanes(self, led: Weak<QuicConnection>, address: SocketAddr, receiver: Fingerprint, id: [u8; 16]) {
        let opening = |_: &[u8; 32]| Opening { source: self.source.clone(), pairing: None, lane: Some(Lane::Joins(id)) };
        let caller = Caller::new(&self.identity, receiver, &self.limits, opening);
        let (first, cap) = LANE_AGAIN;
        let (mut pauses, mut said) = (Backoff::new(first, cap), false);
        let wanted = self.limits.lanes.min(LANES_MAX);
        loop {
            let Some((leading, are_all)) = led.upgrade().map(|led| (led.quinn(), led.connections() >= wanted)) else { return };
            if are_all {
                // One over which nothing went yet may end alone.
                tokio::select! {
                    () = sleep(cap) => continue,
                    _ = leading.closed() => return,
                }
            }
            let reached = tokio::select! {
                reached = timeout(self.limits.handshake_timeout, caller.reach_by(address, Carrier::Udp)) => reached,
                _ = leading.closed() => return,
            };
            let why = match reached.unwrap_or_else(|_| Err(caller.unanswered(address))) {
                Ok((made, _)) => {
                    let Some(led) = led.upgrade() else { return };
                    if !led.join(&made.core, Some(made.endpoint)) {
                        return made.core.close(CloseCode::Done, "there is nothing to carry");
                    }
                    continue;
                }
                Err(error @ (DialError::Unreachable { .. } | DialError::Local(_))) => error,
                // There may be room later: as this host came back, what it had before may have counted still.
                Err(error @ DialError::Refused { code: CloseCode::Overloaded, .. }) => error,
                Err(error) => return tracing::info!(%address, %error, "it goes on with fewer connections than it may have"),
            };
            if !std::mem::replace(&mut said, true) {
                tracing::info!(%address, %why, "it goes on with fewer connections than it may have, for now");
            }
            let pause = pauses.next(getrandom::u64().unwrap_or(u64::MAX));
            tokio::select! {
                () = sleep(pause) => {}
                _ = leading.closed() => return,
            }
        }
    }

    /// Goes on to TCP when too much is lost, or when that was found to be better.
    async fn leave_udp(&self, current: &dyn Connection) -> Arc<dyn Connection> {
        let (address, window) = (current.peer().address, self.route.timing.window);
        let (mut news, mut meter) = (self.route.news(), Meter::new(&self.route, current.statistics(), Instant::now()));
        loop {
            let carried = tokio::select! {
                () = sleep(window) => meter.look(current.statistics(), Instant::now()),
                _ = news.changed() => None,
            };
            let Some((why, is_trial)) = self.route.leaves_udp(carried, Instant::now()) else { continue };
            match self.connect(By::One(address, Carrier::Tcp(Some(why)))).await {
                Ok(connection) => return connection,
                Err(_) if is_trial => drop(self.route.tried(None, Instant::now())),
                Err(DialError::Unreachable { .. }) => self.route.has_no_tcp(Instant::now()),
                Err(_) => {}
            }
        }
    }

    /// Goes back to UDP when it is answered, or when TCP was tried and is no better.
    async fn leave_tcp(&self, current: &dyn Connection, why: WhyTcp) -> Arc<dyn Connection> {
        let mut news = self.route.news();
        if why == WhyTcp::Lossy && self.route.is_tried() {
            let mut meter = Meter::new(&self.route, current.statistics(), Instant::now());
            let carried = loop {
                sleep(self.route.timing.window).await;
                if let Some(carried) = meter.try_on(current.statistics(), Instant::now()) {
                    break carried;
                }
            };
            if !self.route.tried(Some(carried), Instant::now())
                && let Ok(connection) = self.connect(By::Udp).await
            {
                return connection;
            }
        }
        let (first, cap) = self.route.timing.seek;
        let mut pauses = Backoff::new(first, cap);
        loop {
            let alone = self.route.leaves_udp_alone(Instant::now());
            let pause = pauses.next(getrandom::u64().unwrap_or(u64::MAX));
            tokio::select! {
                () = sleep(alone.max(pause)) => {}
                _ = news.changed() => {}
            }
            if !self.route.leaves_udp_alone(Instant::now()).is_zero() {
                continue;
            }
            if let Ok(connection) = self.connect(By::Udp).await {
                self.route.is_answered(true);
                return connection;
            }
        }
    }
}

/// The way of an attempt.
enum By {
    Any,
    /// To any address.
    Udp,
    One(SocketAddr, Carrier),
}

#[async_trait]
impl Dial for QuicDialer {
    async fn dial(&self) -> Result<Arc<dyn Connection>, DialError> {
        self.connect(By::Any).await
    }

    async fn changed(&self) {
        let mut pin = self.pin.clone();
        pin.mark_unchanged();
        if pin.changed().await.is_err() {
            std::future::pending().await
        }
    }

    async fn better(&self, current: &dyn Connection) -> Arc<dyn Connection> {
        match (self.route.carriers(), current.peer().carrier) {
            (Carriers::Auto, Carrier::Udp) => self.leave_udp(current).await,
            (Carriers::Auto, Carrier::Tcp(Some(why))) => self.leave_tcp(current, why).await,
            _ => std::future::pending().await,
        }
    }
}

/// Completes when it is not the receiver of that certificate that is paired. Cancel-safe.
async fn replaced(pins: &mut watch::Receiver<Option<Pin>>, fingerprint: Fingerprint) {
    if pins.wait_for(|pin| pin.as_ref().is_none_or(|pin| pin.fingerprint != fingerprint)).await.is_err() {
        std::future::pending().await // nobody changes it any more
    }
}

/// Uses a token: connects to its receiver, proves the secret, registers this source's certificate under `source`, and
/// returns the pin to keep. Using it again from the same machine succeeds (an answer may be lost).
///
/// # Errors
/// [`DialError`]; on [`DialError::Refused`] the receiver's text says what is wrong with the token.
pub async fn pair(
    token: &PairingToken,
    identity: &Identity,
    source: &Name,
    route: &Route,
    limits: &Limits,
) -> Result<Pin, DialError> {
    let key = token.secret.proof_key();
    let prove =
        |prover: Prover, session: &[u8; 32]| proof(&key, prover, session, &identity.fingerprint(), &token.receiver, source);
    let opening = |session: &[u8; 32]| {
        let proof = *prove(Prover::Source, session).as_bytes();
        let pairing = Some(PairingProof { token_id: token.secret.token_id(), proof });
        Opening { source: source.clone(), pairing, lane: None }
    };
    route.leads_to(token.receiver);
    let caller = Caller::new(identity, token.receiver, limits, opening);
    let (mut made, answer) = caller.reach(&token.addresses, route).await?;
    // blake3's comparison takes the same time whatever differs.
    let proven = answer.proof.is_some_and(|proof| prove(Prover::Receiver, &made.session) == proof);
    let address = made.core.quinn().remote_address().to_string();
    // The receiver closes when it knows that its answer was read.
    let _ = made.send.finish();
    let _ = timeout(Duration::from_secs(1), made.core.quinn().closed()).await;
    made.core.close(CloseCode::Done, "paired");
    if !proven {
        return Err(DialError::Unproven { address });
    }
    Ok(Pin::new(answer.receiver, token.receiver, token.addresses.clone()))
}

/// A connection whose handshake was agreed.
struct Made {
    core: Arc<Core>,
    send: quinn::SendStream,
    frames: FrameReader,
    endpoint: Endpoint,
    session: [u8; 32],
}

/// Who calls, whom, and what it says first.
struct Caller<'a, F> {
    identity: &'a Identity,
    expected: Fingerprint,
    limits: &'a Limits,
    opening: F,
    /// What was met over TCP last, and where.
    over_tcp: Mutex<Option<(SocketAddr, String)>>,
}

type Reached = Result<(Made, Answer), DialError>;

impl<'a, F: Fn(&[u8; 32]) -> Opening> Caller<'a, F> {
    fn new(identity: &'a Identity, expected: Fingerprint, limits: &'a Limits, opening: F) -> Self {
        Self { identity, expected, limits, opening, over_tcp: Mutex::default() }
    }

    /// Tries every address in turn, that where it was reached last first: those of a token may be of networks that this host is not on, and
    /// each takes the whole time of a handshake. The most telling error is kept.
    async fn reach(&self, addresses: &[String], route: &Route) -> Reached {
        let mut worst = None;
        let last = route.reached();
        let was_it = |address: &&String| last.as_ref().is_some_and(|(known, _)| known == *address);
        for address in addresses.iter().filter(was_it).chain(addresses.iter().filter(|address| !was_it(address))) {
            let found = match timeout(self.limits.handshake_timeout, tokio::net::lookup_host(address)).await {
                Ok(Ok(resolved)) => Ok(resolved.take(8).collect::<Vec<_>>()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the name service does not answer".to_owned()),
            };
            let mut resolved = found.unwrap_or_else(|reason| {
                worst = Some(telling(worst.take(), DialError::Unresolved { address: address.clone(), reason }));
                // Where it was last: whoever answers there must have the certificate that was paired.
                last.iter().filter(|(known, _)| known == address).map(|(_, at)| *at).collect()
            });
            resolved.sort_by_key(|at| last.as_ref().is_none_or(|(_, known)| known != at));
            for socket_address in resolved {
                match timeout(self.limits.handshake_timeout, self.reach_one(socket_address, route)).await {
                    Ok(Ok(made)) => {
                        route.was_reached(address, socket_address);
                        return Ok(made);
                    }
                    Ok(Err(error)) => worst = Some(telling(worst, error)),
                    Err(_) => worst = Some(telling(worst, self.unanswered(socket_address))),
                }
            }
        }
        Err(worst.unwrap_or_else(|| DialError::Unreachable { address: addresses.join(", "), over_tcp: None }))
    }

    /// Nobody answered there in time.
    fn unanswered(&self, address: SocketAddr) -> DialError {
        let met = self.over_tcp.lock().unwrap_or_else(PoisonError::into_inner);
        let over_tcp = met.as_ref().filter(|(at, _)| *at == address).map(|(_, said)| said.clone());
        DialError::Unreachable { address: address.to_string(), over_tcp }
    }

    async fn reach_one(&self, address: SocketAddr, route: &Route) -> Reached {
        if route.carriers() == Carriers::Udp {
            return self.reach_by(address, Carrier::Udp).await;
        }
        match route.prefers_tcp(Instant::now()) {
            Some(WhyTcp::Asked) => self.reach_by(address, Carrier::Tcp(Some(WhyTcp::Asked))).await,
            Some(why) => self.reach_tcp_first(address, why, route).await,
            None => self.reach_udp_first(address, route).await,
        }
    }

    /// Over UDP, which was found to be bad, only where TCP is not there.
    async fn reach_tcp_first(&self, address: SocketAddr, why: WhyTcp, route: &Route) -> Reached {
        let counts = |reached: &Reached| matches!(reached, Ok(_) | Err(DialError::Refused { .. } | DialError::Unproven { .. }));
        let is_there = AtomicBool::new(false);
        let mut tcp = pin!(async {
            loop {
                let Ok(tunnel) = self.tunnel(address).await else { std::future::pending().await };
                is_there.store(true, Ordering::Relaxed);
                let reached = self.reach_in(address, tunnel, Carrier::Tcp(Some(why))).await;
                if counts(&reached) {
                    break reached;
                }
                sleep(AGAIN).await;
            }
        });
        tokio::select! {
            reached = &mut tcp => return reached,
            () = sleep(route.head_start()) => {}
        }
        let reached = tokio::select! {
            reached = &mut tcp => return reached,
            reached = self.udp(address) => reached,
        };
        if reached.is_ok() && !is_there.load(Ordering::Relaxed) {
            // It takes more round trips. Only where there is none, and not where it is slow, UDP is the way again for everybody.
            let _ = timeout(route.timing.patience, tcp).await;
            if !is_there.load(Ordering::Relaxed) {
                route.has_no_tcp(Instant::now());
            }
        }
        reached
    }

    async fn reach_udp_first(&self, address: SocketAddr, route: &Route) -> Reached {
        let ask = || async {
            let reached = self.udp(address).await;
            if !matches!(reached, Err(DialError::Local(_))) {
                route.is_answered(true);
            }
            reached
        };
        let mut udp = pin!(ask());
        tokio::select! {
            reached = &mut udp => return reached,
            () = sleep(route.head_start()) => {}
        }
        let tunnel = tokio::select! {
            reached = &mut udp => return reached,
            tunnel = self.tunnel(address) => tunnel,
        };
        let tunnel = match tunnel {
            Ok(tunnel) => tunnel,
            // It may be another one that has the port over TCP.
            Err(error) => return timeout(self.limits.handshake_timeout / 2, udp).await.unwrap_or(Err(error)),
        };
        // The receiver is there now, which it may not have been when the first packets went: does it not answer new ones?
        tokio::select! {
            reached = udp => return reached,
            reached = ask() => return reached,
            () = sleep(route.timing.patience) => {}
        }
        route.is_answered(false);
        self.reach_in(address, tunnel, Carrier::Tcp(Some(WhyTcp::Silent))).await
    }

    /// Over UDP, until something is said.
    async fn udp(&self, address: SocketAddr) -> Reached {
        loop {
            match self.reach_by(address, Carrier::Udp).await {
                Err(DialError::Unreachable { .. }) => sleep(AGAIN).await,
                // No socket: what TCP says is heard meanwhile.
                Err(error @ DialError::Local(_)) => {
                    sleep(self.limits.handshake_timeout / 2).await;
                    return Err(error);
                }
                said => return said,
            }
        }
    }

    /// Over one carrier.
    async fn reach_by(&self, address: SocketAddr, carrier: Carrier) -> Reached {
        if carrier != Carrier::Udp {
            return self.reach_in(address, self.tunnel(address).await?, carrier).await;
        }
        let unspecified = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let (socket, _) = socket::bind(unspecified, self.limits.socket_buffer_bytes).map_err(local)?;
        self.greet(address, socket, carrier).await
    }

    /// Tries it again until somebody answers: as over UDP a receiver that is being started is found, and one whose door is busy.
    async fn tunnel(&self, address: SocketAddr) -> Result<Arc<Tunnel>, DialError> {
        let (tls, verifier) = configuration::tunnel_client(self.expected).map_err(local)?;
        loop {
            let error = match tunnel::connect(address, Arc::clone(&tls), || verifier.stranger()).await {
                Ok(Ok(tunnel)) => return Ok(tunnel),
                Ok(Err(found)) => {
                    return Err(DialError::WrongReceiver { address: address.to_string(), expected: self.expected, found });
                }
                Err(error) => error,
            };
            tracing::debug!(%address, %error, "no tunnel");
            *self.over_tcp.lock().unwrap_or_else(PoisonError::into_inner) = Some((address, error.to_string()));
            sleep(AGAIN).await;
        }
    }

    async fn reach_in(&self, address: SocketAddr, tunnel: Arc<Tunnel>, carrier: Carrier) -> Reached {
        let greeted = self.greet(address, Arc::clone(&tunnel) as Arc<dyn AsyncUdpSocket>, carrier);
        let (made, answer) = tokio::select! {
            greeted = greeted => greeted?,
            why = tunnel::lasting(&tunnel) => {
                tracing::debug!(%address, %why, "a tunnel ended during the handshake");
                return Err(DialError::Unreachable { address: address.to_string(), over_tcp: Some(why.to_string()) });
            }
        };
        let (core, connection) = (Arc::downgrade(&made.core), made.core.quinn().clone());
        tokio::spawn(async move { Core::end_with(core, connection, &tunnel).await });
        Ok((made, answer))
    }

    async fn greet(&self, address: SocketAddr, socket: Arc<dyn AsyncUdpSocket>, carrier: Carrier) -> Reached {
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(configuration::endpoint(self.identity), None, socket, runtime);
        let endpoint = endpoint.map_err(local)?;
        let (config, verifier) = configuration::client(self.identity, self.expected, self.limits, carrier).map_err(local)?;
        let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(local)?;
        let connection = connecting.await.map_err(|error| match verifier.stranger() {
            Some(found) => DialError::WrongReceiver { address: address.to_string(), expected: self.expected, found },
            None => explain(address, &error),
        })?;
        let core = Core::new(connection, carrier);
        let (mut send, receive) = core.quinn().open_bi().await.map_err(|e| explain(address, &e))?;
        let mut session = [0; 32];
        let exported = core.quinn().export_keying_material(&mut session, EXPORTER_LABEL, b"");
        exported.map_err(|_| local("TLS exports no key material"))?;
        let mut frames = FrameReader::new(receive);
        // If the write fails the connection is closed, and the read says why.
        let _ = write_frame(&mut send, (self.opening)(&session).encode()).await;
        let answer = match frames.next(OPENING_BYTES_MAX).await {
            Ok(frame) => Answer::decode(&frame),
            Err(FrameError::Lost(error)) => return Err(explain(address, &error)),
            // The control stream of a refused connection may end a packet before the connection does, which says why.
            Err(FrameError::Ended | FrameError::Torn) => match timeout(LAST_WORDS, core.quinn().closed()).await {
                Ok(error) => return Err(explain(address, &error)),
                Err(_) => None,
            },
            Err(FrameError::TooLong(_)) => None,
        };
        let garbled = || DialError::Incompatible { address: address.to_string(), reason: "its answer makes no sense".to_owned() };
        let answer = answer.ok_or_else(|| {
            core.close(CloseCode::Protocol, "the answer makes no sense");
            garbled()
        })?;
        Ok((Made { core, send, frames, endpoint, session }, answer))
    }
}

fn lane_id() -> Result<[u8; 16], DialError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(local)?;
    Ok(id)
}

fn local(error: impl std::fmt::Display) -> DialError {
    DialError::Local(error.to_string())
}

/// Which of two errors says more about what to do.
fn telling(before: Option<DialError>, now: DialError) -> DialError {
    let rank = |error: &DialError| match error {
        DialError::Refused { .. } | DialError::Unproven { .. } => 5,
        DialError::WrongReceiver { .. } => 4,
        DialError::Incompatible { .. } => 3,
        DialError::Local(_) => 2,
        DialError::Unreachable { .. } => 1,
        _ => 0,
    };
    match before {
        Some(before) if rank(&before) > rank(&now) => before,
        _ => now,
    }
}

/// Why there is no connection, when the certificate was not the reason.
fn explain(address: SocketAddr, error: &QuinnError) -> DialError {
    let incompatible = |reason: String| DialError::Incompatible { address: address.to_string(), reason };
    match error {
        QuinnError::VersionMismatch => incompatible("no QUIC version in common".to_owned()),
        QuinnError::TransportError(e) => incompatible(e.to_string()),
        QuinnError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            DialError::Refused { code: CloseCode::Overloaded, reason: "too many connections".to_owned() }
        }
        QuinnError::ConnectionClosed(close) => incompatible(close.to_string()),
        other => match translate(other) {
            Closed::ByPeer { code, reason } => DialError::Refused { code, reason },
            _ => DialError::Unreachable { address: address.to_string(), over_tcp: None },
        },
    }
}
