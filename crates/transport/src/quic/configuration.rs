//! Every number of the carrier, in one place, and quinn's configuration made of them.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    ServerConfig, TransportConfig, VarInt,
};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};

use super::verify::{AnySource, PinnedReceiver};
use crate::{Carrier, Fingerprint, Identity};

/// The protocol name in TLS: another major version is another name.
pub(super) const ALPN: &[u8] = b"farside/1";
/// The same of the TLS around a tunnel's packets.
pub(super) const ALPN_TUNNEL: &[u8] = b"farside-tunnel/1";
/// The name in TLS's server-name field. Certificates are pinned; this means nothing.
pub(super) const SERVER_NAME: &str = "farside";
/// Payload of the largest packet tried: a 9,000-byte Ethernet frame less IPv6 and UDP headers.
pub const MTU_MAX: u16 = 8952;

/// Bounds of memory and patience. The defaults carry 1 Gbit/s over 50 ms of round trip (6.25 MB in flight).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that a peer may send on one stream before we have read them.
    pub stream_window_bytes: u32,
    /// Bytes that a peer may send on one connection before we have read them; what we buffer unsent is bounded by it too.
    pub connection_window_bytes: u32,
    /// Bytes that a listener sends ahead of acknowledgements on one connection: answers only, so that a peer that asks and
    /// never reads holds little.
    pub answer_window_bytes: u32,
    /// Bytes that all connections of a listener may hold unread together. Their windows share it, down to 256 KiB each.
    pub receive_budget_bytes: u32,
    /// Part streams that a peer may have open at once.
    pub parts_open: u32,
    /// Part streams that all connections of a listener may have open at once. They share it, down to one each.
    pub parts_open_all: u32,
    /// Connections that a listener keeps.
    pub connections: usize,
    /// Connections that one source may have (it makes one per group); a newer one closes the oldest.
    pub connections_per_source: usize,
    /// Connections that a listener lets be under construction; a quarter of them is kept for addresses from which paired
    /// sources came before.
    pub handshakes: usize,
    /// Of these, from one address (IPv6: one network of 64 bits) that is not one of them.
    pub handshakes_per_address: usize,
    /// Connections past TLS whose certificate is not known, until they have shown a token.
    pub strangers: usize,
    /// Of these, from one address.
    pub strangers_per_address: usize,
    /// Connections over UDP that a dialler makes of one, up to [`LANES_MAX`](super::LANES_MAX): more than one where each flow of packets gets only so much.
    pub lanes: usize,
    /// Time for such a one to say what it wants.
    pub stranger_timeout: Duration,
    /// Time for TLS, identity and pairing together.
    pub handshake_timeout: Duration,
    /// Quiet time after which something is sent to keep the path alive.
    pub keep_alive: Duration,
    /// Silence after which the peer counts as gone.
    pub idle_timeout: Duration,
    /// Wanted size of each socket buffer.
    pub socket_buffer_bytes: usize,
}

/// The window of a connection to a receiver, until it is known whose it is.
pub(super) const FIRST_WINDOW_BYTES: u32 = 64 << 10;
/// What every connection may have, however many there are.
const WINDOW_BYTES_MIN: u32 = 256 << 10;

impl Default for Limits {
    fn default() -> Self {
        Self {
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
            answer_window_bytes: 2 << 20,
            receive_budget_bytes: 64 << 20,
            parts_open: 32,
            parts_open_all: 64,
            connections: 128,
            connections_per_source: 64,
            handshakes: 64,
            handshakes_per_address: 8,
            strangers: 8,
            strangers_per_address: 2,
            lanes: 1,
            stranger_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(15),
            socket_buffer_bytes: 8 << 20,
        }
    }
}

impl Limits {
    /// The window of each of the `mine` connections of a source, of `all` and of so many `sources`: what every connection has, and an equal
    /// part of the rest for each source. † By connections alone, a source that makes many took from all others.
    pub(super) fn share_bytes(&self, all: usize, sources: usize, mine: usize) -> u32 {
        let rest = u64::from(self.receive_budget_bytes).saturating_sub(u64::from(WINDOW_BYTES_MIN) * all.max(1) as u64);
        let share = u64::from(WINDOW_BYTES_MIN) + rest / (sources.max(1) as u64 * mine.max(1) as u64);
        u32::try_from(share).unwrap_or(u32::MAX).min(self.connection_window_bytes)
    }

    /// The part streams that each of them may have open.
    pub(super) fn share_parts(&self, all: usize, sources: usize, mine: usize) -> u32 {
        let rest = u64::from(self.parts_open_all).saturating_sub(all.max(1) as u64);
        let share = 1 + rest / (sources.max(1) as u64 * mine.max(1) as u64);
        u32::try_from(share).unwrap_or(u32::MAX).min(self.parts_open.max(1))
    }
}

/// TLS 1.3 with AES-128-GCM first: the fastest here, and the one QUIC needs for its first packets anyway.
fn provider() -> Arc<CryptoProvider> {
    let suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites: suites, ..aws_lc_rs::default_provider() })
}

/// Settings of an endpoint. Its secrets come from the identity: after a restart it can still tell peers of the process
/// before that their connections are gone (by a stateless reset), and they need not wait for the idle time-out.
pub(super) fn endpoint(identity: &Identity) -> EndpointConfig {
    let key = blake3::derive_key("farside 2026 QUIC stateless reset v1", identity.key().secret_der());
    let mut config = EndpointConfig::new(Arc::new(ResetKey(key)));
    config.cid_generator(|| Box::new(RandomIds));
    // The default of 1,472 would make the peer's MTU discovery stop there.
    config.max_udp_payload_size(MTU_MAX).expect("within QUIC's range");
    config
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing hashes takes the same time whatever differs.
        let signature = signature.try_into().map_err(|_| CryptoError)?;
        if blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(signature) { Ok(()) } else { Err(CryptoError) }
    }
}

/// Connection ids that a later process of the same identity takes for possible ones, too.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        getrandom::fill(&mut id).expect("the kernel gives random numbers once it has given a key");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn transport(limits: &Limits, send_window_bytes: u32, carrier: Carrier) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(20));
    let idle = IdleTimeout::try_from(limits.idle_timeout).unwrap_or_else(|_| IdleTimeout::from(VarInt::from_u32(20_000)));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(limits.parts_open))
        .stream_receive_window(VarInt::from_u32(limits.stream_window_bytes))
        .receive_window(VarInt::from_u32(limits.connection_window_bytes))
        .send_window(u64::from(send_window_bytes))
        // Earlier parts first: they become `staged` in order.
        .send_fairness(false)
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acks))
        // Until a path is known, lost first packets are repeated soon: a receiver that was restarted is found at once.
        .initial_rtt(Duration::from_millis(100))
        .keep_alive_interval(Some(limits.keep_alive))
        .max_idle_timeout(Some(idle));
    match carrier {
        Carrier::Udp => {
            let mut mtu = MtuDiscoveryConfig::default();
            mtu.upper_bound(MTU_MAX);
            // quinn does not send a close while the window is full, and one MTU probe can fill its default of 12,000 bytes: a
            // refusal would arrive as silence.
            let mut congestion = CubicConfig::default();
            congestion.initial_window(64 << 10);
            config.congestion_controller_factory(Arc::new(congestion)).mtu_discovery_config(Some(mtu));
        }
        // TCP below finds out how much the path takes, and makes packets of its own of these.
        Carrier::Tcp(_) => {
            let window = Window(u64::from(limits.connection_window_bytes));
            config
                .congestion_controller_factory(Arc::new(window))
                .mtu_discovery_config(None)
                .min_mtu(MTU_MAX)
                .initial_mtu(MTU_MAX);
        }
    }
    config
}

/// No control of congestion: so many bytes may be in flight.
#[derive(Clone, Copy)]
struct Window(u64);

impl ControllerFactory for Window {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for Window {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        self.0
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        self.0
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// What a receiver listens with.
pub(super) fn server(identity: &Identity, limits: &Limits, carrier: Carrier) -> Result<ServerConfig, rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(AnySource::new(Arc::clone(&provider)));
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], identity.key())?;
    let crypto = QuicServerConfig::try_from(once(tls, ALPN)).map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // A tunnel has an endpoint of its own, for one connection.
    let (incoming, buffered) = if carrier == Carrier::Udp { (limits.handshakes, 4 << 20) } else { (1, 64 << 10) };
    config.migration(false).max_incoming(incoming).incoming_buffer_size(64 << 10).incoming_buffer_size_total(buffered);
    // The first share is small: it grows when the source turns out to be known.
    let mut transport = transport(limits, limits.answer_window_bytes, carrier);
    transport.receive_window(VarInt::from_u32(FIRST_WINDOW_BYTES)).max_concurrent_uni_streams(VarInt::from_u32(0));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What a receiver takes tunnels with. Who comes is asked inside.
pub(super) fn tunnel_server(identity: &Identity) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate()], identity.key())?;
    Ok(Arc::new(once(tls, ALPN_TUNNEL)))
}

/// No resumption and no early data.
fn once(mut tls: rustls::ServerConfig, alpn: &[u8]) -> rustls::ServerConfig {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    tls
}

/// What a source dials with; the verifier tells whom it met instead of the expected one.
pub(super) fn client(
    identity: &Identity,
    expected: Fingerprint,
    limits: &Limits,
    carrier: Carrier,
) -> Result<(ClientConfig, Arc<PinnedReceiver>), rustls::Error> {
    let (tls, verifier) = pinning(expected, false)?;
    let tls = only(tls.with_client_auth_cert(vec![identity.certificate()], identity.key())?, ALPN);
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(limits, limits.connection_window_bytes, carrier)));
    Ok((config, verifier))
}

/// What a source makes a tunnel with. The verifier must be asked afterwards whether it was the expected one: before it is known that a
/// receiver answers there at all, another certificate says nothing.
pub(super) fn tunnel_client(expected: Fingerprint) -> Result<(Arc<rustls::ClientConfig>, Arc<PinnedReceiver>), rustls::Error> {
    let (tls, verifier) = pinning(expected, true)?;
    Ok((Arc::new(only(tls.with_no_client_auth(), ALPN_TUNNEL)), verifier))
}

type Pinning = rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>;

fn pinning(expected: Fingerprint, later: bool) -> Result<(Pinning, Arc<PinnedReceiver>), rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(PinnedReceiver::new(expected, later, Arc::clone(&provider)));
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>);
    Ok((tls, verifier))
}

/// No resumption, no early data, no name.
fn only(mut tls: rustls::ClientConfig, alpn: &[u8]) -> rustls::ClientConfig {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    tls.enable_sni = false;
    tls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_share_the_budget() {
        let limits = Limits::default();
        assert_eq!(limits.share_bytes(0, 0, 0), 16 << 20);
        assert_eq!(limits.share_bytes(4, 4, 1), (256 << 10) + (63 << 20) / 4);
        assert_eq!(limits.share_bytes(16, 1, 16), 4 << 20);
        assert_eq!(limits.share_bytes(1000, 1000, 1), 256 << 10);
        let parts = |all, sources, mine| limits.share_parts(all, sources, mine);
        assert_eq!((parts(0, 0, 0), parts(4, 4, 1), parts(1000, 1000, 1)), (32, 16, 1));
        // However they are spread: no more than all, and whoever has one is not less for another's many.
        for many in 1..100 {
            let (all, sources) = (many + 1, 2);
            let (theirs, mine) = (limits.share_bytes(all, sources, many), limits.share_bytes(all, sources, 1));
            assert!(u64::from(theirs) * many as u64 + u64::from(mine) <= u64::from(limits.receive_budget_bytes), "{many}");
            assert!(mine >= limits.receive_budget_bytes / 4, "{many}: {mine}");
            assert!(
                parts(all, sources, many) * many as u32 + parts(all, sources, 1) <= limits.parts_open_all.max(all as u32),
                "{many}"
            );
        }
        let bandwidth_delay = 125_000_000 / 20;
        assert!(limits.stream_window_bytes >= bandwidth_delay);
    }
}
