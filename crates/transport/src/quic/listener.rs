//! The receiver's side: who knocks, whether they are paired, and how many there are.
//!
//! Invariant: nothing of a peer is kept beyond the handshake's limits before its certificate was found in the book.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use farside_region::Name;
use quinn::{AsyncUdpSocket, Endpoint, Incoming, TokioRuntime, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::time::{timeout, timeout_at};

use super::configuration::{self, Limits};
use super::frames::{FrameReader, write_frame};
use super::gate::{Gate, Knock, Pass, site};
use super::handshake::{Answer, EXPORTER_LABEL, Lane, OPENING_BYTES_MAX, Opening, PairingProof};
use super::link::{Core, QuicConnection};
use super::socket::{self, SocketBuffers};
use super::tunnel;
use crate::token::{Prover, proof};
use crate::{Carrier, CloseCode, Connection, Fingerprint, Identity, PairingBook};

/// Events that wait for [`Listener::next`].
const EVENTS_QUEUED: usize = 64;
/// How long a pairing or refused peer is given to take its answer before the connection is dropped.
const LINGER: Duration = Duration::from_secs(2);

/// TCP connections that the kernel keeps for us.
const BACKLOG: u32 = 128;
/// From where a source comes is written down so often, at most.
const RECORD_AGAIN: Duration = Duration::from_secs(3600);
/// Pause after one could not be taken.
const NO_ACCEPT: Duration = Duration::from_millis(100);
/// Ports that are tried for one that is free over UDP and TCP.
const PORTS_TRIED: u32 = 100;
/// Why the source chose it only the source knows.
const OVER_TCP: Carrier = Carrier::Tcp(None);
const STOPPING: &[u8] = b"the receiver is stopping";

type Bound = (Arc<dyn AsyncUdpSocket>, SocketBuffers);

/// What happened at the door.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ListenerEvent {
    /// A paired source is connected.
    Connected(Arc<dyn Connection>),
    /// A source was paired.
    Paired {
        /// Under which name.
        name: Name,
        /// Its certificate.
        fingerprint: Fingerprint,
        /// Where it came from.
        address: SocketAddr,
        /// The certificates whose pairing this one replaced; their connections are closed.
        replaced: Vec<Fingerprint>,
    },
    /// Somebody was refused.
    Refused {
        /// Where it came from.
        address: SocketAddr,
        /// Its certificate, if it came that far.
        fingerprint: Option<Fingerprint>,
        /// The name it said, if it came that far.
        name: Option<Name>,
        /// Why.
        code: CloseCode,
        /// What it was told.
        reason: String,
    },
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The UDP address.
    pub udp: SocketAddr,
    /// The TCP address, for sources that UDP does not reach; port 0 is that of UDP.
    pub tcp: Option<SocketAddr>,
}

impl From<SocketAddr> for Listen {
    /// Both at one address.
    fn from(both: SocketAddr) -> Self {
        Self { udp: both, tcp: Some(both) }
    }
}

/// Accepts connections of paired sources, and pairs those who bring a token.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    events: AsyncMutex<mpsc::Receiver<ListenerEvent>>,
    buffers: SocketBuffers,
    tcp: Option<SocketAddr>,
    /// Whether nothing comes over UDP any more.
    udp_ended: watch::Sender<bool>,
    /// What follows it goes when it goes.
    tunnels: watch::Sender<bool>,
    /// Ends when the last tunnel has.
    last_tunnel: AsyncMutex<mpsc::Receiver<()>>,
}

/// What tunnels are taken with.
#[derive(Debug)]
struct Tunnels {
    tls: Arc<rustls::ServerConfig>,
    server: quinn::ServerConfig,
}

#[derive(Debug)]
struct Shared {
    endpoint: Endpoint,
    identity: Identity,
    name: Name,
    book: Arc<PairingBook>,
    limits: Limits,
    gate: Arc<Gate>,
    events: mpsc::Sender<ListenerEvent>,
    open: Mutex<Open>,
    /// When it was written down last where a source came from.
    recorded: Mutex<HashMap<Fingerprint, Instant>>,
}

/// Open connections of paired sources, oldest first.
#[derive(Debug, Default)]
struct Open {
    by_source: HashMap<Fingerprint, Vec<Weak<Core>>>,
    /// Those that others of the same source may join, by the id that it said.
    led: HashMap<(Fingerprint, [u8; 16]), Weak<QuicConnection>>,
}

impl Open {
    fn living(&self) -> impl Iterator<Item = Arc<Core>> + '_ {
        self.by_source.values().flatten().filter_map(Weak::upgrade)
    }

    fn forget_ended(&mut self) {
        self.by_source.retain(|_, cores| {
            cores.retain(|core| core.upgrade().is_some_and(|core| core.quinn().close_reason().is_none()));
            !cores.is_empty()
        });
        self.led.retain(|_, led| led.strong_count() > 0);
    }
}

impl Listener {
    /// Binds the addresses and begins to accept. `name` is what sources are told; `book` says who may come.
    ///
    /// # Errors
    /// When an address cannot be bound, or the identity does not make a TLS configuration.
    pub fn bind(
        listen: impl Into<Listen>,
        identity: &Identity,
        name: Name,
        book: Arc<PairingBook>,
        limits: Limits,
    ) -> std::io::Result<Self> {
        let listen = listen.into();
        let server = |carrier| configuration::server(identity, &limits, carrier).map_err(std::io::Error::other);
        let udp = server(Carrier::Udp)?;
        let tunnels = Arc::new(Tunnels {
            tls: configuration::tunnel_server(identity).map_err(std::io::Error::other)?,
            server: server(OVER_TCP)?,
        });
        let ((socket, buffers), tcp) = bind_both(listen, limits.socket_buffer_bytes)?;
        let tcp_address = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(configuration::endpoint(identity), Some(udp), socket, runtime)?;
        let (events, receiver) = mpsc::channel(EVENTS_QUEUED);
        let (identity, gate) = (identity.clone(), Gate::new(&limits, book.sites()));
        let shared = Arc::new(Shared {
            endpoint,
            identity,
            name,
            book,
            limits,
            gate,
            events,
            open: Mutex::default(),
            recorded: Mutex::default(),
        });
        let udp_ended = watch::Sender::new(false);
        tokio::spawn(accept(Arc::clone(&shared), udp_ended.clone()));
        let (stop, stopping) = watch::channel(false);
        let (one_lives, last_tunnel) = mpsc::channel(1);
        if let Some(tcp) = tcp {
            tokio::spawn(accept_tunnels(Arc::clone(&shared), tcp, tunnels, stopping, one_lives));
        }
        let (events, last_tunnel) = (AsyncMutex::new(receiver), AsyncMutex::new(last_tunnel));
        Ok(Self { shared, events, buffers, tcp: tcp_address, udp_ended, tunnels: stop, last_tunnel })
    }

    /// Where it listens over TCP, if it does.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Where it listens over UDP, with the port that was chosen for port 0.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// What the kernel gave for socket buffers.
    pub fn socket_buffers(&self) -> SocketBuffers {
        self.buffers
    }

    /// The next event; `None` after [`Listener::shut_down`], and when nothing can come over UDP any more because its socket failed. Cancel-safe.
    pub async fn next(&self) -> Option<ListenerEvent> {
        let (mut events, mut udp_ended) = (self.events.lock().await, self.udp_ended.subscribe());
        tokio::select! {
            biased;
            event = events.recv() => event,
            _ = udp_ended.wait_for(|ended| *ended) => None,
        }
    }

    /// Closes the connections of a certificate, for example because its pairing was removed.
    pub fn disconnect(&self, fingerprint: &Fingerprint, code: CloseCode, reason: &str) {
        self.shared.disconnect(fingerprint, code, reason);
    }

    /// Where paired sources came from, as far as the door knows.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<IpAddr> {
        self.shared.gate.known()
    }

    /// From now on UDP goes by this socket.
    #[cfg(test)]
    pub(super) fn rebind(&self, socket: Arc<dyn AsyncUdpSocket>) {
        self.shared.endpoint.rebind_abstract(socket).expect("it has an address");
    }

    /// The connections of all sources, each with what came over it, in bytes.
    #[cfg(test)]
    pub(super) fn carried(&self) -> Vec<(Arc<Core>, u64)> {
        let of = |core: Arc<Core>| {
            let bytes = core.quinn().stats().udp_rx.bytes;
            (core, bytes)
        };
        let mut open = self.shared.open();
        open.forget_ended();
        open.living().map(of).collect()
    }

    /// Refuses whoever comes, tells everybody connected, and waits (boundedly) until they were told.
    pub async fn shut_down(&self) {
        self.shared.endpoint.set_server_config(None);
        for core in self.shared.open().living() {
            core.close(CloseCode::ShuttingDown, "the receiver is stopping");
        }
        self.tunnels.send_replace(true);
        self.shared.endpoint.close(VarInt::from_u32(CloseCode::ShuttingDown.number()), STOPPING);
        let mut last_tunnel = self.last_tunnel.lock().await;
        let _ = timeout(LINGER, async { tokio::join!(self.shared.endpoint.wait_idle(), last_tunnel.recv()) }).await;
        self.events.lock().await.close();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.endpoint.close(VarInt::from_u32(CloseCode::ShuttingDown.number()), STOPPING);
    }
}

/// Binds both; with port 0 to one that is free over both.
fn bind_both(listen: Listen, buffer_bytes: usize) -> std::io::Result<(Bound, Option<TcpListener>)> {
    let mut tries = if listen.udp.port() == 0 { PORTS_TRIED } else { 1 };
    loop {
        tries -= 1;
        let bound = socket::bind(listen.udp, buffer_bytes)?;
        let Some(mut tcp) = listen.tcp else { return Ok((bound, None)) };
        if tcp.port() == 0 {
            tcp.set_port(bound.0.local_addr()?.port());
        }
        match listen_tcp(tcp) {
            Ok(listener) => return Ok((bound, Some(listener))),
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(std::io::Error::new(error.kind(), format!("TCP {tcp}: {error}"))),
        }
    }
}

fn listen_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // After a restart connections of the process before may still be known to the kernel.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Why a connection under construction is not wanted.
struct Refusal {
    code: CloseCode,
    reason: String,
    fingerprint: Option<Fingerprint>,
    name: Option<Name>,
}

impl Refusal {
    fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), fingerprint: None, name: None }
    }
}

/// Takes TCP connections, each for one connection of a source, until the listener goes.
async fn accept_tunnels(
    shared: Arc<Shared>,
    tcp: TcpListener,
    tunnels: Arc<Tunnels>,
    mut stopping: watch::Receiver<bool>,
    one_lives: mpsc::Sender<()>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = tcp.accept() => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many files, or the peer is gone again.
                tracing::debug!(%error, "no TCP connection");
                tokio::time::sleep(NO_ACCEPT).await;
                continue;
            }
        };
        // One that gets no pass is let go, and comes again.
        if let Some(pass) = shared.gate.tunnel(address.ip()) {
            let (shared, tunnels, stopping, lives) =
                (Arc::clone(&shared), Arc::clone(&tunnels), stopping.clone(), one_lives.clone());
            tokio::spawn(async move {
                shared.take_tunnel(stream, &tunnels, pass, stopping).await;
                drop(lives);
            });
        }
    }
}

/// Takes who comes over UDP. † It ends also by itself: a socket that fails takes quinn's driver along, and all connections, and who only listened would
/// never hear of it.
async fn accept(shared: Arc<Shared>, ended: watch::Sender<bool>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let proved = incoming.remote_address_validated() || !incoming.may_retry();
        match shared.gate.knock(incoming.remote_address().ip(), proved) {
            Knock::Enter(pass) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.welcome(incoming, pass, Carrier::Udp).await });
            }
            Knock::Prove => drop(incoming.retry()),
            Knock::Wait => incoming.ignore(),
        }
    }
    ended.send_replace(true);
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A TCP connection from its beginning to its end. Its pass is given back when it is known who came, or when all of it is gone.
    async fn take_tunnel(
        self: &Arc<Self>,
        stream: TcpStream,
        tunnels: &Tunnels,
        pass: Pass,
        mut stopping: watch::Receiver<bool>,
    ) {
        let pass = Arc::new(Mutex::new(Some(pass)));
        let patience = tokio::time::Instant::now() + self.limits.handshake_timeout;
        let accepted = tokio::select! {
            accepted = timeout_at(patience, tunnel::accept(stream, Arc::clone(&tunnels.tls), Arc::clone(&pass))) => accepted,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let tunnel = match accepted {
            Ok(Ok(tunnel)) => tunnel,
            Ok(Err(error)) => return tracing::debug!(%error, "a TCP connection that is none of a source"),
            Err(_) => return tracing::debug!("a TCP connection said too little"),
        };
        let (config, socket) = (configuration::endpoint(&self.identity), Arc::clone(&tunnel) as Arc<dyn AsyncUdpSocket>);
        let made = Endpoint::new_with_abstract_socket(config, Some(tunnels.server.clone()), socket, Arc::new(TokioRuntime));
        let endpoint = match made {
            Ok(endpoint) => endpoint,
            Err(error) => return tracing::warn!(%error, "no endpoint for a TCP connection"),
        };
        let first = async {
            loop {
                let incoming = endpoint.accept().await?;
                match self.gate.knock(incoming.remote_address().ip(), true) {
                    Knock::Enter(handshake) => return Some((incoming, handshake)),
                    // It is sent again.
                    Knock::Prove | Knock::Wait => incoming.ignore(),
                }
            }
        };
        let mut served = pin!(async {
            let (incoming, handshake) = tokio::select! {
                first = timeout_at(patience, first) => first.ok().flatten()?,
                _ = tunnel.ended() => return None,
            };
            // There is one in each.
            endpoint.set_server_config(None);
            let (core, connection) = tokio::select! {
                welcomed = self.welcome(incoming, handshake, OVER_TCP) => welcomed?,
                _ = tunnel::lasting(&tunnel) => return None,
            };
            if self.knows(&core) {
                drop(pass.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
            Core::end_with(core, connection, &tunnel).await;
            Some(())
        });
        tokio::select! {
            _ = &mut served => {}
            // † Not of one that has ended: quinn forgets its reason then. And before what is served is dropped, which closes it without words.
            _ = stopping.wait_for(|stopping| *stopping) => endpoint.close(VarInt::from_u32(CloseCode::ShuttingDown.number()), STOPPING),
        }
        let _ = timeout(LINGER, endpoint.wait_idle()).await;
    }

    /// Whether it is the connection of a paired source.
    fn knows(&self, core: &Weak<Core>) -> bool {
        self.open().by_source.values().flatten().any(|known| known.ptr_eq(core))
    }

    /// From the first packet to an event, within the time limit. What came through the handshake.
    async fn welcome(
        self: &Arc<Self>,
        incoming: Incoming,
        pass: Pass,
        carrier: Carrier,
    ) -> Option<(Weak<Core>, quinn::Connection)> {
        let address = incoming.remote_address();
        let handshake = async {
            let connection = incoming.accept()?.await?;
            Ok::<_, quinn::ConnectionError>(Core::new(connection, carrier))
        };
        let core = match timeout(self.limits.handshake_timeout, handshake).await {
            Ok(Ok(core)) => core,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "a handshake failed");
                return None;
            }
            Err(_) => {
                tracing::debug!(%address, "a handshake took too long");
                return None;
            }
        };
        let handles = (Arc::downgrade(&core), core.quinn().clone());
        let refusal = match timeout(self.limits.handshake_timeout, self.introduce(&core, pass)).await {
            Ok(Ok(())) => return Some(handles),
            Ok(Err(refusal)) => refusal,
            Err(_) => Refusal::new(CloseCode::Protocol, "the introduction took too long"),
        };
        let Refusal { code, reason, fingerprint, name } = refusal;
        core.close(code, &reason);
        tracing::warn!(%address, ?fingerprint, ?name, %reason, "refused a connection");
        // A flood of refusals must not keep anyone waiting: then some go unreported.
        let _ = self.events.try_send(ListenerEvent::Refused { address, fingerprint, name, code, reason });
        Some(handles)
    }

    async fn introduce(self: &Arc<Self>, core: &Arc<Core>, pass: Pass) -> Result<(), Refusal> {
        let fingerprint = fingerprint(core.quinn())?;
        let known = |refusal: Refusal| Refusal { fingerprint: Some(fingerprint), ..refusal };
        let address = core.quinn().remote_address().ip();
        let paired = self.book.name_of(&fingerprint);
        // Anybody can come this far. Who is not known gives back the pass that paired sources need, too.
        let (_pass, patience) = if paired.is_some() {
            self.gate.remember(address, fingerprint);
            (pass, self.limits.handshake_timeout)
        } else {
            drop(pass);
            let reason = "too many machines that are not paired knock at the same time; try again in some seconds";
            let stranger = self.gate.stranger(address);
            (stranger.ok_or_else(|| known(Refusal::new(CloseCode::Overloaded, reason)))?, self.limits.stranger_timeout)
        };
        let (opening, mut send, frames) = match timeout(patience, open(core)).await {
            Ok(opened) => opened.map_err(known)?,
            Err(_) => return Err(known(Refusal::new(CloseCode::Protocol, "the introduction took too long"))),
        };
        let name = opening.source;
        let named = |refusal: Refusal| Refusal { name: Some(name.clone()), ..known(refusal) };
        if let Some(pairing) = opening.pairing {
            return self.pair(core, (&mut send, frames), pairing, &name, fingerprint).await.map_err(named);
        }
        match paired {
            None => {
                let reason =
                    format!("this receiver does not know the source `{name}` with the certificate {fingerprint}: pair it");
                return Err(named(Refusal::new(CloseCode::NotPaired, reason)));
            }
            Some(paired) if paired != name => {
                let reason =
                    format!("this certificate is paired as `{paired}`, not as `{name}`: set `source.name` or pair again");
                return Err(named(Refusal::new(CloseCode::WrongName, reason)));
            }
            Some(_) => {}
        }
        if let Some(Lane::Joins(id)) = opening.lane {
            // What it was to be part of may have ended by now, and goes on without in any case: nobody is told.
            if let Err(Refusal { code, reason, .. }) = self.add_lane(core, (fingerprint, id), &mut send).await {
                tracing::debug!(source = %name, %reason, "no further connection");
                core.close(code, &reason);
            }
            return Ok(());
        }
        self.register(core, fingerprint).map_err(named)?;
        tokio::spawn(Arc::clone(self).follow(Arc::downgrade(core), core.quinn().clone()));
        // Perhaps it was sent away since it was looked up; from here on whoever does that finds its connection.
        match self.book.name_of(&fingerprint) {
            Some(now) if now == name => {}
            Some(now) => {
                return Err(named(Refusal::new(CloseCode::WrongName, format!("this machine was paired as {now} meanwhile"))));
            }
            None => return Err(named(Refusal::new(CloseCode::NotPaired, "this source was unpaired"))),
        }
        self.record(fingerprint, site(address));
        let answer = Answer { receiver: self.name.clone(), proof: None };
        write_frame(&mut send, answer.encode()).await.map_err(|_| named(Refusal::new(CloseCode::Protocol, "gone")))?;
        let connection = QuicConnection::start(Arc::clone(core), name, fingerprint, send, frames, None);
        if let Some(Lane::Leads(id)) = opening.lane {
            self.open().led.insert((fingerprint, id), Arc::downgrade(&connection));
        }
        let _ = self.events.send(ListenerEvent::Connected(connection)).await;
        Ok(())
    }

    /// Where a source came from, for the next life of this receiver. Nobody waits for it. † Each is two syncs of a disk, on threads that land parts, too:
    /// one that comes from somewhere else each time is written down seldom.
    fn record(&self, source: Fingerprint, site: IpAddr) {
        let now = Instant::now();
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.retain(|_, at| now.duration_since(*at) < RECORD_AGAIN);
        if recorded.contains_key(&source) || self.book.has_come_from(&source, site) {
            return;
        }
        recorded.insert(source, now);
        let book = Arc::clone(&self.book);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = book.came_from(&source, site) {
                tracing::warn!(%error, "where a source came from is not on record");
            }
        });
    }

    /// One more that carries parts of a connection of the same source. † It takes no room that whole connections need: where they are
    /// many there is one of each.
    async fn add_lane(
        self: &Arc<Self>,
        core: &Arc<Core>,
        led: (Fingerprint, [u8; 16]),
        send: &mut quinn::SendStream,
    ) -> Result<(), Refusal> {
        let fingerprint = led.0;
        {
            let mut open = self.open();
            open.forget_ended();
            let gone = || Refusal::new(CloseCode::Done, "the connection that this one was to carry parts of is not here");
            let led = open.led.get(&led).and_then(Weak::upgrade).ok_or_else(gone)?;
            let mine = open.by_source.get(&fingerprint).map_or(0, Vec::len);
            if mine >= self.limits.connections_per_source / 2 || open.living().count() >= self.limits.connections / 2 {
                return Err(Refusal::new(CloseCode::Overloaded, "there are too many connections for one more to carry parts"));
            }
            open.by_source.entry(fingerprint).or_default().push(Arc::downgrade(core));
            if !led.join(core, None) {
                return Err(Refusal::new(CloseCode::Overloaded, "that connection has ended, or as many carry its parts as may"));
            }
            self.share_windows(&open);
        }
        tokio::spawn(Arc::clone(self).follow(Arc::downgrade(core), core.quinn().clone()));
        if self.book.name_of(&fingerprint).is_none() {
            return Err(Refusal::new(CloseCode::NotPaired, "this source was unpaired"));
        }
        let answer = Answer { receiver: self.name.clone(), proof: None };
        write_frame(send, answer.encode()).await.map_err(|_| Refusal::new(CloseCode::Protocol, "gone"))
    }

    /// Makes room for a connection: closes the source's oldest when it has too many. When all together have, a source that
    /// would still have fewer takes the place of the oldest of whoever has most; others are refused.
    fn register(&self, core: &Arc<Core>, fingerprint: Fingerprint) -> Result<(), Refusal> {
        let mut open = self.open();
        open.forget_ended();
        let mine = open.by_source.get(&fingerprint).map_or(0, Vec::len);
        let others: usize =
            open.by_source.iter().filter(|(source, _)| **source != fingerprint).map(|(_, cores)| cores.len()).sum();
        if others >= self.limits.connections {
            let most = open.by_source.values_mut().max_by_key(|cores| cores.len()).filter(|cores| cores.len() > mine + 1);
            let Some(most) = most else {
                return Err(Refusal::new(CloseCode::Overloaded, "this receiver has too many connections"));
            };
            if let Some(oldest) = most.remove(0).upgrade() {
                oldest.close(CloseCode::Overloaded, "this receiver has too many connections, and this source has most of them");
            }
        }
        let mine = open.by_source.entry(fingerprint).or_default();
        mine.push(Arc::downgrade(core));
        let surplus = mine.len().saturating_sub(self.limits.connections_per_source.max(1));
        for old in mine.drain(..surplus).filter_map(|core| core.upgrade()) {
            old.close(CloseCode::Superseded, "a newer connection of the same source took over");
        }
        self.share_windows(&open);
        Ok(())
    }

    /// Gives every connection its share of the receive budget and of the part streams.
    fn share_windows(&self, open: &Open) {
        let living = |cores: &Vec<Weak<Core>>| cores.iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        let of_sources: Vec<Vec<_>> = open.by_source.values().map(living).filter(|cores| !cores.is_empty()).collect();
        let (all, sources) = (of_sources.iter().map(Vec::len).sum(), of_sources.len());
        for cores in of_sources {
            let window = self.limits.share_bytes(all, sources, cores.len());
            let parts = VarInt::from_u32(self.limits.share_parts(all, sources, cores.len()));
            for core in cores {
                core.share(window);
                core.quinn().set_max_concurrent_uni_streams(parts);
            }
        }
    }

    /// Waits for a connection to end and hands its share on.
    async fn follow(self: Arc<Self>, core: Weak<Core>, connection: quinn::Connection) {
        connection.closed().await;
        drop(core);
        let mut open = self.open();
        open.forget_ended();
        self.share_windows(&open);
    }

    fn disconnect(&self, fingerprint: &Fingerprint, code: CloseCode, reason: &str) {
        let cores = self.open().by_source.remove(fingerprint).unwrap_or_default();
        for core in cores.iter().filter_map(Weak::upgrade) {
            core.close(code, reason);
        }
    }

    async fn pair(
        self: &Arc<Self>,
        core: &Arc<Core>,
        (send, mut frames): (&mut quinn::SendStream, FrameReader),
        pairing: PairingProof,
        name: &Name,
        source: Fingerprint,
    ) -> Result<(), Refusal> {
        let mut session = [0; 32];
        let exported = core.quinn().export_keying_material(&mut session, EXPORTER_LABEL, b"");
        exported.map_err(|_| Refusal::new(CloseCode::Internal, "TLS exports no key material"))?;
        let (shared, receiver, own_name) = (Arc::clone(self), self.identity.fingerprint(), name.clone());
        let address = core.quinn().remote_address();
        // † To its end, whatever becomes of the connection: once it is on record, whoever is replaced must go.
        let redeemed = tokio::spawn(async move {
            let (book, name) = (Arc::clone(&shared.book), own_name.clone());
            let redeemed = tokio::task::spawn_blocking(move || {
                // blake3's comparison takes the same time whatever differs.
                let proves = |key: &[u8; 32]| proof(key, Prover::Source, &session, &source, &receiver, &name) == pairing.proof;
                book.redeem(&pairing.token_id, proves, &name, source, unix_s())
            });
            let redeemed = redeemed.await.map_err(|_| Refusal::new(CloseCode::Internal, "the pairing failed"))?;
            let (key, replaced) = redeemed.map_err(|refusal| {
                if let crate::PairingRefusal::Storage(error) = &refusal {
                    tracing::error!(%error, "a pairing could not be recorded");
                }
                Refusal::new(refusal.code(), refusal.to_string())
            })?;
            for old in &replaced {
                match *old == source {
                    true => shared.disconnect(old, CloseCode::WrongName, "this machine was paired under another name"),
                    false => shared.disconnect(old, CloseCode::NotPaired, "another machine was paired under this name"),
                }
            }
            tracing::info!(name = %own_name, fingerprint = %source, "paired a source");
            let event = ListenerEvent::Paired { name: own_name, fingerprint: source, address, replaced };
            let _ = shared.events.send(event).await;
            Ok(key)
        });
        let key = redeemed.await.map_err(|_| Refusal::new(CloseCode::Internal, "the pairing failed"))??;
        let proof = proof(&key, Prover::Receiver, &session, &source, &receiver, name);
        let answer = Answer { receiver: self.name.clone(), proof: Some(*proof.as_bytes()) };
        if write_frame(send, answer.encode()).await.is_ok() {
            // The source ends its stream when it has read the answer.
            let _ = timeout(LINGER, frames.next(0)).await;
        }
        core.close(CloseCode::Done, "paired");
        Ok(())
    }
}

/// What the peer opens with.
async fn open(core: &Core) -> Result<(Opening, quinn::SendStream, FrameReader), Refusal> {
    let cut = |_| Refusal::new(CloseCode::Protocol, "the introduction was cut");
    let (send, receive) = core.quinn().accept_bi().await.map_err(cut)?;
    let mut frames = FrameReader::new(receive);
    let opening = frames.next(OPENING_BYTES_MAX).await.ok().and_then(|frame| Opening::decode(&frame));
    let opening = opening.ok_or_else(|| Refusal::new(CloseCode::Protocol, "the introduction makes no sense"))?;
    Ok((opening, send, frames))
}

fn fingerprint(connection: &quinn::Connection) -> Result<Fingerprint, Refusal> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let first = identity.as_ref().and_then(|chain| chain.first());
    first
        .map(|certificate| Fingerprint::of(certificate))
        .ok_or_else(|| Refusal::new(CloseCode::NotPaired, "no certificate was shown"))
}

pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
