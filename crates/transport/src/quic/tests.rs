//! QUIC on loopback: the common contract, who is let in, and what hostile bytes do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Endpoint, TokioRuntime, VarInt};
use tokio::sync::watch;

use super::configuration::{self, ALPN, SERVER_NAME};
use super::handshake::{Opening, PairingProof};
use super::{Limits, Listener, ListenerEvent, Pin, QuicDialer, Route, pair, socket};
use crate::conformance::{Ends, conformance, read_all};
use crate::memory::name;
use crate::{
    Backoff, Carrier, Carriers, CloseCode, Closed, Connection, Connector, Dial, DialError, FRAME_BYTES_MAX, Identity,
    PairingBook, PairingToken, TokenRequest,
};

/// A receiver with its book, and everything a source needs.
pub(super) struct Gateway {
    pub(super) listener: Arc<Listener>,
    book: Arc<PairingBook>,
    pub(super) identity: Identity,
    /// Where sources find it.
    pub(super) address: SocketAddr,
    _directory: tempfile::TempDir,
}

pub(super) fn limits() -> Limits {
    Limits { socket_buffer_bytes: 1 << 20, ..Limits::default() }
}

impl Gateway {
    pub(super) fn start(limits: Limits) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let book = Arc::new(PairingBook::open(&directory.path().join("pairings.json")).expect("opened"));
        let identity = Identity::ephemeral().expect("made");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = Listener::bind(any, &identity, name("gateway"), Arc::clone(&book), limits).expect("bound");
        let address = listener.local_address().expect("bound");
        Self { listener: Arc::new(listener), book, identity, address, _directory: directory }
    }

    async fn restarted(self, limits: Limits) -> Self {
        let Self { listener, book, identity, address, _directory } = self;
        drop(listener);
        // The old socket lives until the endpoint's own task has seen the end.
        let listener = loop {
            match Listener::bind(address, &identity, name("gateway"), Arc::clone(&book), limits.clone()) {
                Ok(listener) => break Arc::new(listener),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        };
        Self { listener, book, identity, address, _directory }
    }

    pub(super) fn token(&self, lifetime_s: u64) -> PairingToken {
        let request = TokenRequest {
            addresses: vec![self.address.to_string()],
            receiver: self.identity.fingerprint(),
            lifetime_s,
            source: None,
            replace: false,
        };
        self.book.create_token(request, super::listener::unix_s()).expect("made")
    }

    async fn paired_dialer(&self, source: &str) -> QuicDialer {
        let identity = Identity::ephemeral().expect("made");
        let pin = pair(&self.token(60), &identity, &name(source), &Route::default(), &limits()).await.expect("paired");
        assert!(matches!(self.event().await, ListenerEvent::Paired { name, .. } if name.as_str() == source));
        dialer(&identity, source, pin)
    }

    /// One that makes so many connections of one, and its identity.
    pub(super) async fn dialer_with(&self, source: &str, lanes: usize) -> (QuicDialer, Identity) {
        let identity = Identity::ephemeral().expect("made");
        let pin = pair(&self.token(60), &identity, &name(source), &Route::default(), &limits()).await.expect("paired");
        assert!(matches!(self.event().await, ListenerEvent::Paired { name, .. } if name.as_str() == source));
        let limits = Limits { lanes, ..limits() };
        let pin = watch::channel(Some(pin)).1;
        (QuicDialer::new(identity.clone(), name(source), pin, Route::default(), limits), identity)
    }

    pub(super) async fn event(&self) -> ListenerEvent {
        self.listener.next().await.expect("the listener lives")
    }

    pub(super) async fn connected(&self) -> Arc<dyn Connection> {
        match self.event().await {
            ListenerEvent::Connected(connection) => connection,
            other => panic!("{other:?}"),
        }
    }
}

fn dialer(identity: &Identity, source: &str, pin: Pin) -> QuicDialer {
    QuicDialer::new(identity.clone(), name(source), watch::channel(Some(pin)).1, Route::default(), limits())
}

async fn ends() -> (Ends, Gateway) {
    let gateway = Gateway::start(limits());
    let source = gateway.paired_dialer("db1").await.dial().await.expect("connected");
    let receiver = gateway.connected().await;
    assert_eq!((source.peer().name.as_str(), receiver.peer().name.as_str()), ("gateway", "db1"));
    assert_eq!(source.peer().fingerprint, gateway.identity.fingerprint());
    ((source, receiver), gateway)
}

conformance!(ends());

fn refusal(result: Result<impl Sized, DialError>) -> (CloseCode, String) {
    match result {
        Err(DialError::Refused { code, reason }) => (code, reason),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("let in"),
    }
}

#[tokio::test]
async fn an_unknown_source_is_refused_by_name_on_both_sides() {
    let gateway = Gateway::start(limits());
    let stranger = Identity::ephemeral().expect("made");
    let pin = Pin::new(name("gateway"), gateway.identity.fingerprint(), vec![gateway.address.to_string()]);
    let (code, reason) = refusal(dialer(&stranger, "db1", pin).dial().await);
    assert_eq!(code, CloseCode::NotPaired);
    assert!(reason.contains("db1") && reason.contains(&stranger.fingerprint().to_string()), "{reason}");
    match gateway.event().await {
        ListenerEvent::Refused { fingerprint, name, code, .. } => {
            assert_eq!((fingerprint, code), (Some(stranger.fingerprint()), CloseCode::NotPaired));
            assert_eq!(name.expect("said").as_str(), "db1");
        }
        other => panic!("{other:?}"),
    }
}

/// A receiver that is busy sends the end of the control stream in one packet and the reason in a later one.
#[tokio::test]
async fn a_refusal_is_heard_after_the_end_of_the_control_stream() {
    let receiver = Identity::ephemeral().expect("made");
    let (socket, _) = socket::bind((Ipv4Addr::LOCALHOST, 0).into(), 1 << 20).expect("bound");
    let config = configuration::server(&receiver, &limits(), Carrier::Udp).expect("made");
    let endpoint = configuration::endpoint(&receiver);
    let endpoint = Endpoint::new_with_abstract_socket(endpoint, Some(config), socket, Arc::new(TokioRuntime)).expect("made");
    let pin = Pin::new(name("gateway"), receiver.fingerprint(), vec![endpoint.local_addr().expect("bound").to_string()]);
    let refuse = async {
        let connection = endpoint.accept().await.expect("lives").await.expect("connected");
        let (mut send, _frames) = connection.accept_bi().await.expect("opened");
        send.finish().expect("open");
        assert!(matches!(send.stopped().await, Ok(None)), "the source has the end of the stream");
        connection.close(VarInt::from_u32(CloseCode::NotPaired.number()), b"pair it");
        connection
    };
    let dialer = dialer(&Identity::ephemeral().expect("made"), "db1", pin);
    let (dialled, _refused) = tokio::join!(dialer.dial(), refuse);
    assert_eq!(refusal(dialled), (CloseCode::NotPaired, "pair it".to_owned()));
}

#[tokio::test]
async fn a_paired_source_cannot_take_another_name() {
    let gateway = Gateway::start(limits());
    let identity = Identity::ephemeral().expect("made");
    let pin = pair(&gateway.token(60), &identity, &name("db1"), &Route::default(), &limits()).await.expect("paired");
    let (code, reason) = refusal(dialer(&identity, "db2", pin).dial().await);
    assert_eq!(code, CloseCode::WrongName);
    assert!(reason.contains("db1") && reason.contains("db2"), "{reason}");
}

#[tokio::test]
async fn a_receiver_with_another_certificate_is_not_talked_to() {
    let gateway = Gateway::start(limits());
    let expected = Identity::ephemeral().expect("made").fingerprint();
    let pin = Pin::new(name("gateway"), expected, vec![gateway.address.to_string()]);
    let me = Identity::ephemeral().expect("made");
    let found = gateway.identity.fingerprint();
    match dialer(&me, "db1", pin).dial().await {
        Err(DialError::WrongReceiver { expected: e, found: f, .. }) => assert_eq!((e, f), (expected, found)),
        other => panic!("{other:?}"),
    }
    // Nor is a token's secret shown to it.
    let token = PairingToken { receiver: expected, ..gateway.token(60) };
    assert!(matches!(pair(&token, &me, &name("db1"), &Route::default(), &limits()).await, Err(DialError::WrongReceiver { .. })));
    assert_eq!(gateway.book.tokens(0).len(), 1, "the token was not used");
}

#[tokio::test]
async fn expired_reused_and_invented_tokens_are_refused() {
    let gateway = Gateway::start(limits());
    let (a, b) = (Identity::ephemeral().expect("made"), Identity::ephemeral().expect("made"));
    let expired = gateway.token(0);
    assert_eq!(refusal(pair(&expired, &a, &name("a"), &Route::default(), &limits()).await).0, CloseCode::TokenExpired);

    let token = gateway.token(60);
    pair(&token, &a, &name("a"), &Route::default(), &limits()).await.expect("paired");
    pair(&token, &a, &name("a"), &Route::default(), &limits()).await.expect("the same machine may repeat itself");
    let (code, reason) = refusal(pair(&token, &b, &name("b"), &Route::default(), &limits()).await);
    assert_eq!(code, CloseCode::TokenUnknown);
    assert!(reason.contains("used before"), "{reason}");

    let other = Gateway::start(limits());
    let foreign = PairingToken { secret: other.token(60).secret, ..gateway.token(60) };
    let (code, reason) = refusal(pair(&foreign, &b, &name("b"), &Route::default(), &limits()).await);
    assert_eq!(code, CloseCode::TokenUnknown);
    assert!(reason.contains("does not know the token"), "{reason}");
    assert_eq!(gateway.book.sources().len(), 1);
}

#[tokio::test]
async fn a_wrong_proof_for_a_real_token_is_refused() {
    let gateway = Gateway::start(limits());
    let token = gateway.token(60);
    let me = Identity::ephemeral().expect("made");
    let pairing = Some(PairingProof { token_id: token.secret.token_id(), proof: [0; 32] });
    let raw = Raw::connect(&gateway, &me).await;
    let (mut send, _receive) = raw.connection.open_bi().await.expect("opened");
    super::frames::write_frame(&mut send, Opening { source: name("x"), pairing, lane: None }.encode()).await.expect("written");
    assert_eq!(raw.closed_with().await, CloseCode::TokenUnknown);
    assert_eq!(gateway.book.tokens(0).len(), 1);
}

/// A TLS peer that does not keep to our protocol.
pub(super) struct Raw {
    pub(super) connection: quinn::Connection,
    _endpoint: Endpoint,
}

impl Raw {
    pub(super) async fn connect(gateway: &Gateway, identity: &Identity) -> Self {
        let (socket, _) = socket::bind((Ipv4Addr::UNSPECIFIED, 0).into(), 1 << 20).expect("bound");
        let endpoint =
            Endpoint::new_with_abstract_socket(configuration::endpoint(identity), None, socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.expect("made");
        let (config, _) = configuration::client(identity, gateway.identity.fingerprint(), &limits(), Carrier::Udp).expect("made");
        let connection = endpoint.connect_with(config, gateway.address, SERVER_NAME).expect("begun").await.expect("connected");
        Self { connection, _endpoint: endpoint }
    }

    /// Past the introduction, as a paired source.
    async fn introduced(gateway: &Gateway, source: &str) -> (Self, Arc<dyn Connection>, quinn::SendStream) {
        let me = Identity::ephemeral().expect("made");
        pair(&gateway.token(60), &me, &name(source), &Route::default(), &limits()).await.expect("paired");
        assert!(matches!(gateway.event().await, ListenerEvent::Paired { .. }));
        let raw = Self::connect(gateway, &me).await;
        let (mut send, _recv) = raw.connection.open_bi().await.expect("opened");
        super::frames::write_frame(&mut send, Opening { source: name(source), pairing: None, lane: None }.encode())
            .await
            .expect("written");
        let there = gateway.connected().await;
        (raw, there, send)
    }

    pub(super) async fn closed_with(&self) -> CloseCode {
        match self.connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => CloseCode::from_number(close.error_code.into_inner()),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn garbage_inside_tls_is_refused_and_the_listener_goes_on() {
    let gateway = Gateway::start(limits());
    let me = Identity::ephemeral().expect("made");
    for garbage in [&b"\x04\0\0\0junk"[..], b"\xff\xff\xff\xff", b"\x05\0\0\0FSD1\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let raw = Raw::connect(&gateway, &me).await;
        let (mut send, _recv) = raw.connection.open_bi().await.expect("opened");
        send.write_all(garbage).await.expect("written");
        assert_eq!(raw.closed_with().await, CloseCode::Protocol, "{garbage:?}");
    }
    gateway.paired_after_refusals().await;
}

impl Gateway {
    /// Skips refusals and shows that a good source still gets in.
    async fn paired_after_refusals(&self) {
        let identity = Identity::ephemeral().expect("made");
        let pin = pair(&self.token(60), &identity, &name("good"), &Route::default(), &limits()).await.expect("paired");
        let _source = dialer(&identity, "good", pin).dial().await.expect("connected");
        while !matches!(self.event().await, ListenerEvent::Connected(_)) {}
    }
}

#[tokio::test]
async fn garbage_on_the_port_is_nothing() {
    let gateway = Gateway::start(limits());
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    for length in [0, 1, 20, 1200, 1400, 9000] {
        for first in [0x00, 0x40, 0xC0, 0xFF] {
            let mut packet: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(37)).collect();
            if let Some(byte) = packet.first_mut() {
                *byte = first;
            }
            // A QUIC version 1 long header with nonsense behind it.
            if length > 20 {
                packet[1..5].copy_from_slice(&[0, 0, 0, 1]);
            }
            socket.send_to(&packet, gateway.address).expect("sent");
        }
    }
    gateway.paired_after_refusals().await;
}

#[tokio::test]
async fn an_oversized_frame_ends_the_connection_by_name() {
    let gateway = Gateway::start(limits());
    let (raw, there, mut send) = Raw::introduced(&gateway, "db1").await;
    send.write_all(&u32::try_from(FRAME_BYTES_MAX + 1).expect("fits").to_le_bytes()).await.expect("written");
    match there.recv().await {
        Err(crate::ConnectionError::Closed(Closed::Here { code, reason })) => {
            assert_eq!(code, CloseCode::Protocol);
            assert!(reason.contains("1048577"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(raw.closed_with().await, CloseCode::Protocol);
}

#[tokio::test]
async fn a_torn_or_ended_control_stream_ends_the_connection() {
    for bytes in [&b""[..], b"\x05\0\0\0abc"] {
        let gateway = Gateway::start(limits());
        let (raw, there, mut send) = Raw::introduced(&gateway, "db1").await;
        send.write_all(bytes).await.expect("written");
        send.finish().expect("finished");
        assert!(matches!(
            there.recv().await,
            Err(crate::ConnectionError::Closed(Closed::Here { code: CloseCode::Protocol, .. }))
        ));
        assert_eq!(raw.closed_with().await, CloseCode::Protocol);
    }
}

#[tokio::test]
async fn a_bad_part_header_ends_the_connection() {
    for bytes in [&b"\xff\xff"[..], b"\x05\0abc", b"\x01"] {
        let gateway = Gateway::start(limits());
        let (raw, there, _send) = Raw::introduced(&gateway, "db1").await;
        let mut part = raw.connection.open_uni().await.expect("opened");
        part.write_all(bytes).await.expect("written");
        part.finish().expect("finished");
        assert_eq!(raw.closed_with().await, CloseCode::Protocol, "{bytes:?}");
        assert!(there.accept_part().await.is_err());
    }
}

#[tokio::test]
async fn a_part_reset_before_its_header_is_nothing() {
    let gateway = Gateway::start(limits());
    let (raw, there, _send) = Raw::introduced(&gateway, "db1").await;
    let mut cut = raw.connection.open_uni().await.expect("opened");
    cut.write_all(b"\x05\0ab").await.expect("written");
    cut.reset(VarInt::from_u32(9)).expect("reset");
    let mut whole = raw.connection.open_uni().await.expect("opened");
    whole.write_all(b"\x05\0helloworld").await.expect("written");
    whole.finish().expect("finished");
    let mut part = there.accept_part().await.expect("accepted");
    assert_eq!(part.header, "hello");
    assert_eq!(read_all(&mut *part.body).await.expect("whole"), b"world");
}

/// Streams beyond the limit and streams before the introduction are not even opened.
#[tokio::test]
async fn streams_are_bounded() {
    let gateway = Gateway::start(Limits { parts_open: 3, ..limits() });
    let raw = Raw::connect(&gateway, &Identity::ephemeral().expect("made")).await;
    let mut before = std::pin::pin!(raw.connection.open_uni());
    tokio::select! {
        biased;
        _ = &mut before => panic!("a stranger opened a part stream"),
        () = tokio::task::yield_now() => {}
    }
    let (raw, _there, _send) = Raw::introduced(&gateway, "db1").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(raw.connection.open_uni().await.expect("opened"));
    }
    tokio::select! {
        biased;
        _ = raw.connection.open_uni() => panic!("a fourth stream"),
        () = tokio::task::yield_now() => {}
    }
}

#[tokio::test]
async fn other_protocols_are_refused() {
    let gateway = Gateway::start(limits());
    let (socket, _) = socket::bind((Ipv4Addr::UNSPECIFIED, 0).into(), 1 << 20).expect("bound");
    let me = Identity::ephemeral().expect("made");
    let endpoint = Endpoint::new_with_abstract_socket(configuration::endpoint(&me), None, socket, Arc::new(TokioRuntime));
    let endpoint = endpoint.expect("made");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = super::verify::PinnedReceiver::new(gateway.identity.fingerprint(), false, Arc::clone(&provider));
    let build = || {
        rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("made")
            .dangerous()
    };
    let mut other = build()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![me.certificate()], me.key())
        .expect("made");
    other.alpn_protocols = vec![b"farside/2".to_vec()];
    assert_ne!(other.alpn_protocols[0], ALPN);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(other).expect("made");
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), gateway.address, SERVER_NAME).expect("begun");
    assert!(connecting.await.is_err(), "another version of the protocol must not connect");

    let verifier = super::verify::PinnedReceiver::new(gateway.identity.fingerprint(), false, Arc::clone(&provider));
    let mut nameless = build().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    nameless.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(nameless).expect("made");
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), gateway.address, SERVER_NAME).expect("begun");
    let ended = match connecting.await {
        Err(error) => error,
        // TLS 1.3 lets a client believe it is connected before the server saw its certificate.
        Ok(connection) => connection.closed().await,
    };
    assert!(ended.to_string().contains("certificate"), "{ended}");
    gateway.paired_after_refusals().await;
}

#[tokio::test]
async fn the_source_comes_back_after_a_restart_of_the_receiver() {
    let mut gateway = Gateway::start(limits());
    let dialer = gateway.paired_dialer("db1").await;
    let mut connector = Connector::with_backoff(Arc::new(dialer), Backoff::new(Duration::ZERO, Duration::ZERO));
    for round in 0..3 {
        let source = connector.next().await;
        let receiver = gateway.connected().await;
        source.send(Bytes::from(vec![round])).await.expect("sent");
        assert_eq!(receiver.recv().await.expect("received"), vec![round]);
        drop(receiver);
        gateway = gateway.restarted(limits()).await;
    }
}

#[tokio::test]
async fn a_planned_stop_is_told() {
    let ((source, _receiver), gateway) = ends().await;
    gateway.listener.shut_down().await;
    assert!(matches!(source.closed().await, Closed::ByPeer { code: CloseCode::ShuttingDown, .. }));
    assert!(gateway.listener.next().await.is_none());
}

#[tokio::test]
async fn a_newer_connection_of_a_source_takes_over() {
    let gateway = Gateway::start(Limits { connections_per_source: 1, ..limits() });
    let dialer = gateway.paired_dialer("db1").await;
    let first = dialer.dial().await.expect("connected");
    let _there = gateway.connected().await;
    let second = dialer.dial().await.expect("connected");
    assert!(matches!(first.closed().await, Closed::ByPeer { code: CloseCode::Superseded, .. }));
    assert_eq!(second.close_reason(), None);
}

#[tokio::test]
async fn too_many_sources_are_refused_by_name() {
    let gateway = Gateway::start(Limits { connections: 1, ..limits() });
    let (one, two) = (gateway.paired_dialer("one").await, gateway.paired_dialer("two").await);
    let first = one.dial().await.expect("connected");
    let there = gateway.connected().await;
    assert_eq!(refusal(two.dial().await).0, CloseCode::Overloaded);
    assert!(matches!(gateway.event().await, ListenerEvent::Refused { code: CloseCode::Overloaded, .. }));
    drop(first);
    there.closed().await;
    two.dial().await.expect("there is room again");
}

#[tokio::test]
async fn a_newcomer_takes_the_place_of_whoever_has_most() {
    let gateway = Gateway::start(Limits { connections: 2, ..limits() });
    let (one, two) = (gateway.paired_dialer("one").await, gateway.paired_dialer("two").await);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push((one.dial().await.expect("connected"), gateway.connected().await));
    }
    let _two = two.dial().await.expect("there is always room for a first one");
    assert!(matches!(held[0].0.closed().await, Closed::ByPeer { code: CloseCode::Overloaded, .. }));
    assert_eq!(held[1].0.close_reason(), None);
}

/// Anybody can finish TLS with a certificate that he made himself, and then say nothing.
#[tokio::test]
async fn silent_strangers_do_not_keep_a_paired_source_out() {
    let gateway = Gateway::start(limits());
    let dialer = gateway.paired_dialer("db1").await;
    let stranger = Identity::ephemeral().expect("made");
    let mut silent = Vec::new();
    for _ in 0..limits().handshakes {
        silent.push(Raw::connect(&gateway, &stranger).await);
    }
    let _source = dialer.dial().await.expect("let in beside them");
    while !matches!(gateway.event().await, ListenerEvent::Connected(_)) {}
    let left = |raw: &&Raw| raw.connection.close_reason().is_none();
    assert!(silent.iter().filter(left).count() <= limits().strangers_per_address, "most of them were sent away at once");
}

/// A peer that asks and never reads holds little of our memory, however large the answers are.
#[tokio::test]
async fn answers_that_nobody_reads_are_few() {
    let gateway = Gateway::start(limits());
    let dialer = gateway.paired_dialer("db1").await;
    let (source, receiver) = (dialer.dial().await.expect("connected"), gateway.connected().await);
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let answers = tokio::spawn(async move {
        for _ in 0..64 {
            receiver.send(Bytes::from(vec![0; FRAME_BYTES_MAX])).await.expect("sent");
            count.fetch_add(FRAME_BYTES_MAX, std::sync::atomic::Ordering::Relaxed);
        }
        receiver
    });
    // Nothing can show that no more will come; a queue without a bound is full long before this.
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The queue, what is sent ahead of acknowledgements, what the source's own window takes unread, and a frame in hand.
    let bound = (2 << 20) + limits().answer_window_bytes as usize + limits().stream_window_bytes as usize + FRAME_BYTES_MAX;
    let held = accepted.load(std::sync::atomic::Ordering::Relaxed);
    assert!(held <= bound, "{held}");
    for _ in 0..64 {
        assert_eq!(source.recv().await.expect("received").len(), FRAME_BYTES_MAX);
    }
    answers.await.expect("all were sent");
}

#[tokio::test]
async fn the_door_knows_a_paired_source_after_a_restart() {
    let gateway = Gateway::start(limits());
    let source = gateway.paired_dialer("db1").await;
    assert!(gateway.book.sites().is_empty(), "nobody is known for a token");
    let _connected = source.dial().await.expect("connected");
    let here = [std::net::IpAddr::from(Ipv4Addr::LOCALHOST)];
    while gateway.book.sites().iter().map(|(site, _)| *site).collect::<Vec<_>>() != here {
        tokio::task::yield_now().await; // it is recorded aside
    }
    let gateway = gateway.restarted(limits()).await;
    assert_eq!(gateway.listener.known(), here);
}

#[tokio::test]
async fn who_listens_is_told_when_udp_has_failed() {
    #[derive(Debug)]
    struct Failing(SocketAddr);

    impl quinn::AsyncUdpSocket for Failing {
        fn create_io_poller(self: Arc<Self>) -> std::pin::Pin<Box<dyn quinn::UdpPoller>> {
            unreachable!("nobody sends")
        }

        fn try_send(&self, _: &quinn::udp::Transmit<'_>) -> std::io::Result<()> {
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut std::task::Context<'_>,
            _: &mut [std::io::IoSliceMut<'_>],
            _: &mut [quinn::udp::RecvMeta],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Err(std::io::Error::from_raw_os_error(nix::libc::ENOMEM)))
        }

        fn local_addr(&self) -> std::io::Result<SocketAddr> {
            Ok(self.0)
        }
    }

    let gateway = Gateway::start(limits());
    gateway.listener.rebind(Arc::new(Failing(gateway.address)));
    assert!(gateway.listener.next().await.is_none());
}

#[tokio::test]
async fn a_removed_pairing_loses_its_connections() {
    let ((source, receiver), gateway) = ends().await;
    assert_eq!(gateway.book.remove(&name("db1")).expect("written"), Some(receiver.peer().fingerprint));
    gateway.listener.disconnect(&receiver.peer().fingerprint, CloseCode::NotPaired, "unpaired");
    assert!(matches!(source.closed().await, Closed::ByPeer { code: CloseCode::NotPaired, .. }));
}

#[tokio::test]
async fn a_connection_ends_with_the_pairing_it_was_made_under() {
    let gateway = Gateway::start(limits());
    let identity = Identity::ephemeral().expect("made");
    let pin = pair(&gateway.token(60), &identity, &name("db1"), &Route::default(), &limits()).await.expect("paired");
    assert!(matches!(gateway.event().await, ListenerEvent::Paired { .. }));
    let pins = watch::Sender::new(Some(pin));
    let source = QuicDialer::new(identity.clone(), name("db1"), pins.subscribe(), Route::default(), limits());
    let connection = source.dial().await.expect("connected");
    let _there = gateway.connected().await;
    // During an attempt that would take a minute; nobody answers there.
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let other = Pin::new(name("other"), identity.fingerprint(), vec![silent.local_addr().expect("bound").to_string()]);
    pins.send_replace(Some(other));
    assert!(matches!(connection.closed().await, Closed::Here { code: CloseCode::Done, .. }));
    let patient = Limits { handshake_timeout: Duration::from_secs(60), ..limits() };
    let source = QuicDialer::new(identity, name("db1"), pins.subscribe(), Route::default(), patient);
    let attempt = tokio::spawn(async move { source.dial().await.map(drop) });
    tokio::task::yield_now().await; // it is under way
    pins.send_replace(None);
    let error = attempt.await.expect("joined").expect_err("nobody to connect to");
    assert!(matches!(error, DialError::Replaced), "{error}");
}

/// A token has all addresses of its gateway, also of networks that a host is not on.
#[tokio::test]
async fn where_the_receiver_was_reached_last_is_tried_first() {
    let gateway = Gateway::start(limits());
    let identity = Identity::ephemeral().expect("made");
    let pin = pair(&gateway.token(60), &identity, &name("db1"), &Route::default(), &limits()).await.expect("paired");
    assert!(matches!(gateway.event().await, ListenerEvent::Paired { .. }));
    let pins = watch::Sender::new(Some(pin.clone()));
    let source = QuicDialer::new(identity, name("db1"), pins.subscribe(), Route::default(), limits());
    let first = source.dial().await.expect("connected");
    let silent = [(); 2].map(|()| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound"));
    let at = |socket: &std::net::UdpSocket| socket.local_addr().expect("bound").to_string();
    let addresses = silent.iter().map(at).chain(pin.addresses).collect();
    pins.send_replace(Some(Pin::new(pin.receiver, pin.fingerprint, addresses)));
    let again = source.dial().await.expect("connected");
    assert_eq!(again.peer().address, first.peer().address);
    for socket in silent {
        socket.set_nonblocking(true).expect("set");
        let heard = socket.recv(&mut [0; 2048]).map_err(|error| error.kind());
        assert_eq!(heard, Err(std::io::ErrorKind::WouldBlock), "it was tried before");
    }
}

#[tokio::test]
async fn whose_name_is_not_resolved_is_looked_for_where_it_was() {
    let gateway = Gateway::start(limits());
    let identity = Identity::ephemeral().expect("made");
    let pin = pair(&gateway.token(60), &identity, &name("db1"), &Route::default(), &limits()).await.expect("paired");
    assert!(matches!(gateway.event().await, ListenerEvent::Paired { .. }));
    // It has no port, so nobody is asked for it.
    let nowhere = "gateway.example";
    let pins = watch::Sender::new(Some(Pin::new(pin.receiver, pin.fingerprint, vec![nowhere.to_owned()])));
    let route = Route::default();
    let source = QuicDialer::new(identity, name("db1"), pins.subscribe(), route.clone(), limits());
    let error = source.dial().await.expect_err("nobody knows where it is");
    assert!(matches!(error, DialError::Unresolved { .. }), "{error}");
    route.was_reached(nowhere, pin.addresses[0].parse().expect("an address"));
    source.dial().await.expect("connected");
}

#[tokio::test]
async fn nobody_home_is_unreachable() {
    let quick = Limits { handshake_timeout: Duration::from_millis(50), ..limits() };
    let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let addresses = vec![silent.local_addr().expect("bound").to_string()];
    let me = Identity::ephemeral().expect("made");
    let pin = watch::channel(Some(Pin::new(name("gateway"), me.fingerprint(), addresses))).1;
    let nobody = QuicDialer::new(me.clone(), name("db1"), pin.clone(), Route::default(), quick.clone());
    assert!(matches!(nobody.dial().await, Err(DialError::Unreachable { .. })));
    let nobody = QuicDialer::new(me.clone(), name("db1"), pin, Route::new(Carriers::Tcp), quick);
    let said = nobody.dial().await.map(drop).expect_err("nobody listens there").to_string();
    assert!(said.contains("over TCP: Connection refused"), "{said}");
    let unpaired = QuicDialer::new(me, name("db1"), watch::channel(None).1, Route::default(), limits());
    assert!(matches!(unpaired.dial().await, Err(DialError::NotPaired)));
}

#[tokio::test]
async fn the_path_grows_to_large_packets() {
    let ((source, receiver), _gateway) = ends().await;
    let sink = tokio::spawn(async move {
        while let Ok(mut part) = receiver.accept_part().await {
            read_all(&mut *part.body).await.expect("whole");
            receiver.send(Bytes::from_static(b"got it")).await.expect("sent");
        }
    });
    // Discovery goes on as long as there is traffic; it needs about a dozen round trips.
    while source.statistics().mtu < 8900 {
        let mut part = source.open_part(Bytes::new()).await.expect("opened");
        // So much fits what any kernel keeps for a socket: a probe that is lost for that ends the search.
        part.write(Bytes::from(vec![7; 64 << 10])).await.expect("written");
        part.finish().expect("finished");
        assert_eq!(source.recv().await.expect("received"), "got it");
    }
    drop(source);
    sink.await.expect("joined");
}

#[test]
fn a_pin_is_kept() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("receiver.json");
    assert_eq!(Pin::load(&path).expect("absent is not an error"), None);
    let pin = Pin::new(name("gateway"), crate::Fingerprint([3; 32]), vec!["a:1".to_owned(), "[::1]:2".to_owned()]);
    pin.save(&path).expect("saved");
    assert_eq!(Pin::load(&path).expect("loaded"), Some(pin));
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replace("\"format\": 1", "\"format\": 9")).expect("written");
    assert!(Pin::load(&path).expect_err("refused").to_string().contains("later version"));
}

/// A receiver that is killed says nothing. The one that comes after it at the same address tells its peers, with the same
/// identity, at once: their idle time-out here is an hour.
#[test]
fn a_killed_receiver_is_noticed_when_the_next_one_answers() {
    let patient = Limits { idle_timeout: Duration::from_secs(3600), keep_alive: Duration::from_millis(20), ..limits() };
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (at_source, first, second) = (runtime(), runtime(), runtime());
    let gateway = first.block_on(async { Gateway::start(patient.clone()) });
    let source = at_source.block_on(async {
        let me = Identity::ephemeral().expect("made");
        let pin = pair(&gateway.token(60), &me, &name("db1"), &Route::default(), &patient).await.expect("paired");
        let dialer = QuicDialer::new(me, name("db1"), watch::channel(Some(pin)).1, Route::default(), patient.clone());
        let source = dialer.dial().await.expect("connected");
        source.send(Bytes::from_static(b"hello")).await.expect("sent");
        source
    });
    let there = first.block_on(async {
        loop {
            if let ListenerEvent::Connected(connection) = gateway.event().await {
                break connection;
            }
        }
    });
    first.block_on(there.recv()).expect("received");
    // Its tasks are gone before anything of it could say goodbye.
    first.shutdown_timeout(Duration::from_secs(60));
    drop(there);
    let _second = second.block_on(gateway.restarted(patient));
    assert_eq!(at_source.block_on(source.closed()), Closed::PeerRestarted);
}
