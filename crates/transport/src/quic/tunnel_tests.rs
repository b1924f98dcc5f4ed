//! Over TCP: the common contract, when it is taken and left, and what hostile bytes do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use super::configuration;
use super::route::Timing;
use super::tests::{Gateway, limits};
use super::{Carriers, Limits, Listen, Listener, ListenerEvent, Pin, QuicDialer, Route, pair};
use crate::conformance::{Ends, conformance};
use crate::memory::name;
use crate::{Backoff, Carrier, CloseCode, Closed, Connection, Connector, Dial, DialError, Identity, PairingBook, WhyTcp};

async fn ends() -> (Ends, Gateway) {
    let gateway = Gateway::start(limits());
    let dialer = dialer(&gateway, &Route::new(Carriers::Tcp)).await;
    let source = dialer.dial().await.expect("connected");
    let receiver = gateway.connected().await;
    assert_eq!(source.peer().carrier, Carrier::Tcp(Some(WhyTcp::Asked)));
    assert_eq!(receiver.peer().carrier, Carrier::Tcp(None));
    ((source, receiver), gateway)
}

conformance!(ends());

/// Of a source that is paired over the same route.
async fn dialer(gateway: &Gateway, route: &Route) -> QuicDialer {
    let identity = Identity::ephemeral().expect("made");
    let pin = pair(&gateway.token(60), &identity, &name("db1"), route, &limits()).await.expect("paired");
    assert!(matches!(gateway.event().await, ListenerEvent::Paired { .. }));
    QuicDialer::new(identity, name("db1"), watch::channel(Some(pin)).1, route.clone(), limits())
}

/// A way to a gateway: what is sent to its address arrives, unless it is cut.
struct Way {
    address: SocketAddr,
    udp_passes: Arc<AtomicBool>,
    /// From so many new sockets nothing gets through, ever.
    udp_deaf: Arc<AtomicUsize>,
    /// One of so many is lost; 0 = none.
    udp_lost_of: Arc<AtomicUsize>,
    /// Datagrams that came and did not pass.
    udp_stopped: watch::Receiver<usize>,
    /// TCP connections end when this changes.
    tcp_cut: watch::Sender<usize>,
}

impl Way {
    async fn to(gateway: &Gateway) -> Self {
        let udp_passes = Arc::new(AtomicBool::new(false));
        let (udp_deaf, udp_lost_of) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let ((stopped, udp_stopped), (tcp_cut, cut)) = (watch::channel(0), watch::channel(0));
        let (front, tcp) = loop {
            let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
            if let Ok(tcp) = TcpListener::bind(front.local_addr().expect("bound")).await {
                break (Arc::new(front), tcp);
            }
        };
        let (address, to) = (front.local_addr().expect("bound"), gateway.address);
        let (passes, deaf, lost_of) = (Arc::clone(&udp_passes), Arc::clone(&udp_deaf), Arc::clone(&udp_lost_of));
        tokio::spawn(async move {
            let mut clients = std::collections::HashMap::<SocketAddr, Arc<UdpSocket>>::new();
            let mut unheard = std::collections::HashSet::new();
            let (mut buffer, mut came) = (vec![0; 65_536], 0_usize);
            while let Ok((length, client)) = front.recv_from(&mut buffer).await {
                came += 1;
                let is_new = !clients.contains_key(&client) && !unheard.contains(&client);
                if is_new && deaf.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    unheard.insert(client);
                }
                let is_lost = unheard.contains(&client) || came.checked_rem(lost_of.load(Ordering::SeqCst)) == Some(0);
                if is_lost || !passes.load(Ordering::SeqCst) {
                    stopped.send_modify(|count| *count += 1);
                    continue;
                }
                let back = match clients.get(&client) {
                    Some(back) => Arc::clone(back),
                    None => {
                        let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound"));
                        back.connect(to).await.expect("connected");
                        let (from, front) = (Arc::clone(&back), Arc::clone(&front));
                        tokio::spawn(async move {
                            let mut buffer = vec![0; 65_536];
                            while let Ok(length) = from.recv(&mut buffer).await {
                                let _ = front.send_to(&buffer[..length], client).await;
                            }
                        });
                        clients.insert(client, Arc::clone(&back));
                        back
                    }
                };
                let _ = back.send(&buffer[..length]).await;
            }
        });
        tokio::spawn(async move {
            while let Ok((mut near, _)) = tcp.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await.expect("connected");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, udp_passes, udp_deaf, udp_lost_of, udp_stopped, tcp_cut }
    }
}

/// Sources find the gateway at the end of a way.
async fn behind_a_way() -> (Gateway, Way) {
    let mut gateway = Gateway::start(limits());
    let way = Way::to(&gateway).await;
    gateway.address = way.address;
    (gateway, way)
}

fn quick() -> Timing {
    let ms = Duration::from_millis;
    let (head_start, head_start_known, patience) = (ms(50), ms(10), ms(50));
    Timing { head_start, head_start_known, patience, seek: (ms(20), ms(100)), ..Timing::default() }
}

fn route() -> Route {
    Route::with_timing(Carriers::Auto, quick())
}

async fn talk(source: &Arc<dyn Connection>, receiver: &Arc<dyn Connection>) {
    for (from, to) in [(source, receiver), (receiver, source)] {
        from.send(Bytes::from_static(b"hello")).await.expect("sent");
        assert_eq!(to.recv().await.expect("received"), "hello");
    }
}

#[tokio::test]
async fn where_udp_is_silent_tcp_is_taken_and_left_when_udp_is_answered_again() {
    let (gateway, way) = behind_a_way().await;
    let dialer = Arc::new(dialer(&gateway, &route()).await);
    let mut connector = Connector::with_backoff(dialer, Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600)));
    let before = *way.udp_stopped.borrow();
    let source = connector.next().await;
    let receiver = gateway.connected().await;
    assert_eq!(source.peer().carrier, Carrier::Tcp(Some(WhyTcp::Silent)));
    assert_eq!(source.peer().fingerprint, gateway.identity.fingerprint());
    assert!(*way.udp_stopped.borrow() >= before + 2, "UDP was tried, and again when the receiver was there");
    talk(&source, &receiver).await;

    let switched = tokio::spawn(async move {
        connector.switch().await;
        connector
    });
    // It is looked for, in vain.
    let so_far = *way.udp_stopped.borrow();
    way.udp_stopped.clone().wait_for(|stopped| *stopped > so_far).await.expect("it lives");
    talk(&source, &receiver).await;
    way.udp_passes.store(true, Ordering::SeqCst);
    let mut connector = switched.await.expect("joined");
    assert!(matches!(source.closed().await, Closed::Here { code: CloseCode::Done, .. }));
    match receiver.closed().await {
        Closed::ByPeer { code: CloseCode::Done, reason } => assert_eq!(reason, "it goes on over UDP"),
        other => panic!("{other:?}"),
    }
    // Its back-off is an hour: nothing is waited for.
    let (source, receiver) = (connector.next().await, gateway.connected().await);
    assert_eq!((source.peer().carrier, receiver.peer().carrier), (Carrier::Udp, Carrier::Udp));
    talk(&source, &receiver).await;
}

/// Sends parts without end; the peer reads them.
fn load(source: &Arc<dyn Connection>, receiver: Arc<dyn Connection>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(mut part) = receiver.accept_part().await {
            while let Ok(Some(_)) = part.body.next(1 << 20).await {}
        }
    });
    let source = Arc::clone(source);
    tokio::spawn(async move {
        let chunk = Bytes::from(vec![7; 64 << 10]);
        while let Ok(mut part) = source.open_part(Bytes::new()).await {
            for _ in 0..16 {
                if part.write(chunk.clone()).await.is_err() {
                    return;
                }
            }
            let _ = part.finish();
        }
    })
}

/// One of fifty packets is lost: TCP is tried, and stays because it carries more, or goes because it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_much_is_lost_tcp_is_tried_and_stays_if_it_is_better() {
    for is_better in [true, false] {
        let (gateway, way) = behind_a_way().await;
        way.udp_passes.store(true, Ordering::SeqCst);
        let timing = Timing {
            window: Duration::from_millis(500),
            packets: 100,
            windows: 3,
            head_start: Duration::from_secs(3600),
            ..quick()
        };
        let route = Route::with_timing(Carriers::Auto, timing);
        let hour = Duration::from_secs(3600);
        let dialer = Arc::new(dialer(&gateway, &route).await);
        let mut connector = Connector::with_backoff(dialer.clone(), Backoff::new(hour, hour));
        let source = connector.next().await;
        let receiver = gateway.connected().await;
        assert_eq!(source.peer().carrier, Carrier::Udp);
        way.udp_lost_of.store(50, Ordering::SeqCst);
        let loaded = load(&source, receiver);
        connector.switch().await;
        loaded.await.expect("joined");
        let source = connector.next().await;
        assert_eq!(source.peer().carrier, Carrier::Tcp(Some(WhyTcp::Lossy)));
        let receiver = gateway.connected().await;
        if is_better {
            let _loaded = load(&source, receiver);
            let mut news = route.news();
            tokio::select! {
                decided = news.changed() => decided.expect("it lives"),
                () = connector.switch() => panic!("TCP carries more here"),
            }
            assert_eq!(route.prefers_tcp(std::time::Instant::now()), Some(WhyTcp::Lossy));
            // And the next connection is over TCP from its beginning.
            let again = dialer.dial().await.expect("connected");
            assert_eq!(again.peer().carrier, Carrier::Tcp(Some(WhyTcp::Lossy)));
        } else {
            // Nothing is carried any more.
            connector.switch().await;
            assert_eq!(connector.next().await.peer().carrier, Carrier::Udp);
            assert_eq!(route.prefers_tcp(std::time::Instant::now()), None);
        }
    }
}

#[tokio::test]
async fn first_packets_that_are_lost_are_no_silence() {
    let (gateway, way) = behind_a_way().await;
    way.udp_passes.store(true, Ordering::SeqCst);
    let route = Route::with_timing(Carriers::Auto, Timing { patience: Duration::from_secs(3600), ..quick() });
    let dialer = dialer(&gateway, &route).await;
    // Those that were sent before the receiver was found over TCP; new ones are answered.
    way.udp_deaf.store(1, Ordering::SeqCst);
    let source = dialer.dial().await.expect("connected");
    assert_eq!((source.peer().carrier, way.udp_deaf.load(Ordering::SeqCst)), (Carrier::Udp, 0));
}

#[tokio::test]
async fn only_what_is_allowed_is_tried() {
    let (gateway, way) = behind_a_way().await;
    let pairing = dialer(&gateway, &Route::new(Carriers::Tcp)).await;
    assert_eq!(*way.udp_stopped.borrow(), 0);
    assert_eq!(pairing.dial().await.expect("connected").peer().carrier, Carrier::Tcp(Some(WhyTcp::Asked)));
    let quick = Limits { handshake_timeout: Duration::from_millis(200), ..limits() };
    let udp = QuicDialer::new(
        Identity::ephemeral().expect("made"),
        name("db1"),
        watch::channel(Some(Pin::new(name("gateway"), gateway.identity.fingerprint(), vec![way.address.to_string()]))).1,
        Route::new(Carriers::Udp),
        quick,
    );
    assert!(matches!(udp.dial().await, Err(DialError::Unreachable { .. })));
    assert!(*way.udp_stopped.borrow() > 0);
}

#[tokio::test]
async fn a_connection_ends_with_its_tcp_connection_and_at_once() {
    let (gateway, way) = behind_a_way().await;
    let source = dialer(&gateway, &Route::new(Carriers::Tcp)).await.dial().await.expect("connected");
    let receiver = gateway.connected().await;
    talk(&source, &receiver).await;
    way.tcp_cut.send_modify(|count| *count += 1);
    for end in [source, receiver] {
        match end.closed().await {
            Closed::Broken(why) => assert!(why.contains("TCP connection"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn another_receiver_is_not_taken_for_ours() {
    let (gateway, way) = behind_a_way().await;
    let pin = Pin::new(name("gateway"), Identity::ephemeral().expect("made").fingerprint(), vec![way.address.to_string()]);
    for carriers in [Carriers::Auto, Carriers::Tcp] {
        let route = Route::with_timing(carriers, quick());
        let me = Identity::ephemeral().expect("made");
        let soon = Limits { handshake_timeout: Duration::from_secs(1), ..limits() };
        let dialer = QuicDialer::new(me, name("db1"), watch::channel(Some(pin.clone())).1, route, soon);
        match dialer.dial().await {
            Err(DialError::WrongReceiver { found, .. }) => assert_eq!(found, gateway.identity.fingerprint()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stranger_is_refused_by_name_over_tcp_too() {
    let gateway = Gateway::start(limits());
    let pin = Pin::new(name("gateway"), gateway.identity.fingerprint(), vec![gateway.address.to_string()]);
    let (me, route) = (Identity::ephemeral().expect("made"), Route::new(Carriers::Tcp));
    let dialer = QuicDialer::new(me, name("db1"), watch::channel(Some(pin)).1, route, limits());
    match dialer.dial().await {
        Err(DialError::Refused { code: CloseCode::NotPaired, reason }) => assert!(reason.contains("db1"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(gateway.event().await, ListenerEvent::Refused { code: CloseCode::NotPaired, .. }));
}

/// Silence, bytes that are no TLS, TLS with bytes that are no packets: each ends, and holds nobody else up.
#[tokio::test]
async fn hostile_bytes_end_their_connection_and_no_other() {
    let short = Limits { handshake_timeout: Duration::from_secs(2), ..limits() };
    let gateway = Gateway::start(short);
    let good = dialer(&gateway, &Route::new(Carriers::Tcp)).await;
    let source = good.dial().await.expect("connected");
    let receiver = gateway.connected().await;
    let to = gateway.address;
    let ended = |mut stream: TcpStream| async move {
        // The end, or its error: either way it is over.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    ended(TcpStream::connect(to).await.expect("connected")).await;
    let mut noise = TcpStream::connect(to).await.expect("connected");
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    ended(noise).await;
    let (tls, _) = configuration::tunnel_client(gateway.identity.fingerprint()).expect("made");
    for bytes in [&[0, 0][..], &[0xff, 0xff], &[3, 0, 1, 2, 3], &[1]] {
        let stream = TcpStream::connect(to).await.expect("connected");
        let server = rustls::pki_types::ServerName::try_from(configuration::SERVER_NAME).expect("a name");
        let mut stream = tokio_rustls::TlsConnector::from(Arc::clone(&tls)).connect(server, stream).await.expect("connected");
        stream.write_all(bytes).await.expect("written");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    talk(&source, &receiver).await;
    let again = good.dial().await.expect("connected");
    talk(&again, &gateway.connected().await).await;
}

/// Whoever may not come in more often than so may not do that over TCP either.
#[tokio::test]
async fn the_gate_counts_tcp_connections() {
    let few = Limits { handshakes: 8, handshakes_per_address: 2, handshake_timeout: Duration::from_secs(3600), ..limits() };
    let gateway = Gateway::start(few);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(gateway.address).await.expect("connected"));
    }
    let mut third = TcpStream::connect(gateway.address).await.expect("the kernel takes it");
    let _ = third.read_to_end(&mut Vec::new()).await; // it is let go
    drop(held);
    // As soon as the others are gone there is a place.
    let route = Route::new(Carriers::Tcp);
    let me = Identity::ephemeral().expect("made");
    let pin = loop {
        match pair(&gateway.token(60), &me, &name("db1"), &route, &limits()).await {
            Ok(pin) => break pin,
            Err(DialError::Unreachable { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(pin.receiver.as_str(), "gateway");
}

#[tokio::test]
async fn who_is_connected_over_tcp_hears_that_the_receiver_stops() {
    let gateway = Gateway::start(limits());
    let source = dialer(&gateway, &Route::new(Carriers::Tcp)).await.dial().await.expect("connected");
    let receiver = gateway.connected().await;
    talk(&source, &receiver).await;
    gateway.listener.shut_down().await;
    assert!(matches!(source.closed().await, Closed::ByPeer { code: CloseCode::ShuttingDown, .. }));
    // Nobody listens there any more.
    while TcpStream::connect(gateway.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn tcp_listens_where_it_is_told_and_says_what_is_wrong() {
    let directory = tempfile::tempdir().expect("tempdir");
    let book = Arc::new(PairingBook::open(&directory.path().join("pairings.json")).expect("opened"));
    let (identity, any) = (Identity::ephemeral().expect("made"), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let bind = |tcp| Listener::bind(Listen { udp: any, tcp }, &identity, name("gateway"), Arc::clone(&book), limits());
    let both = bind(Some(any)).expect("bound");
    assert_eq!(both.tcp_address(), Some(both.local_address().expect("bound")), "one port");
    assert_eq!(bind(None).expect("bound").tcp_address(), None);
    let taken = bind(both.tcp_address()).expect_err("taken").to_string();
    assert!(taken.contains(&format!("TCP {}", both.tcp_address().expect("bound"))), "{taken}");
}

/// A peer that reads no more holds nothing of a receiver that is done with it.
#[tokio::test]
async fn a_peer_that_does_not_read_is_let_go() {
    let gateway = Gateway::start(Limits { handshake_timeout: Duration::from_secs(1), ..limits() });
    let (tls, _) = configuration::tunnel_client(gateway.identity.fingerprint()).expect("made");
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("small");
    let stream = socket.connect(gateway.address).await.expect("connected");
    let server = rustls::pki_types::ServerName::try_from(configuration::SERVER_NAME).expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(tls).connect(server, stream).await.expect("connected");
    // A version that nobody speaks is answered with those that the receiver does: the answers fill what it can send.
    let mut packet = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    packet.resize(1200, 0);
    let framed = [&1200_u16.to_le_bytes()[..], &packet].concat();
    let ended = loop {
        if let Err(error) = stream.write_all(&framed).await {
            break error;
        }
    };
    assert!(matches!(ended.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{ended}");
}

/// Where TCP is preferred and is not there, UDP is taken at once, and TCP not preferred any more.
#[tokio::test]
async fn who_prefers_tcp_finds_udp_where_there_is_no_tcp() {
    let directory = tempfile::tempdir().expect("tempdir");
    let book = Arc::new(PairingBook::open(&directory.path().join("pairings.json")).expect("opened"));
    let (identity, any) = (Identity::ephemeral().expect("made"), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let listen = Listen { udp: any, tcp: None };
    let listener = Listener::bind(listen, &identity, name("gateway"), Arc::clone(&book), limits()).expect("bound");
    let addresses = vec![listener.local_address().expect("bound").to_string()];
    let request =
        crate::TokenRequest { addresses, receiver: identity.fingerprint(), lifetime_s: 60, source: None, replace: false };
    let token = book.create_token(request, super::listener::unix_s()).expect("made");
    let (me, route) = (Identity::ephemeral().expect("made"), route());
    let pin = pair(&token, &me, &name("db1"), &route, &limits()).await.expect("paired");
    let now = std::time::Instant::now();
    for then in [now, now + Duration::from_secs(30)] {
        route.ended(&Closed::TimedOut, Duration::ZERO, then);
    }
    assert_eq!(route.prefers_tcp(now), Some(WhyTcp::Dies));
    let dialer = QuicDialer::new(me, name("db1"), watch::channel(Some(pin)).1, route.clone(), limits());
    assert_eq!(dialer.dial().await.expect("connected").peer().carrier, Carrier::Udp);
    assert_eq!(route.prefers_tcp(now), None);
}
