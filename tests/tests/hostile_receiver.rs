//! A gateway that was paired and turned against its host: it says nothing, reads nothing, floods, talks nonsense or plays back
//! what it said before. The host's writes go on, the daemon's memory stays flat, and an honest gateway can take over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farside_ledger::LayerKind;
use farside_region::{LedgerPosition, RecordDigest, Slot};
use farside_tests::verify::{Rng, Verifier};
use farside_tests::{Site, VolumeSpec, run, tail, wait_for};
use farside_transport::{CloseCode, Connection, Identity, Limits, Listener, ListenerEvent, PairingBook, TokenRequest};
use farside_wire::{
    ClaimOutcome, ClaimVerdict, Credit, Features, LedgerSlice, Notice, Published, ReceiverHello, ReceiverMessage, SourceMessage,
    TEXT_BYTES_MAX, decode_payload, encode_payload,
};

const BYTES: u64 = 32 << 20;
/// What the daemon may need beside what it held before: buffers of a connection, both ways.
const GROWTH_KIB_MAX: u64 = 96 << 10;

/// A layer was begun on what a bad gateway granted: the host has made that durable.
static LURED: AtomicBool = AtomicBool::new(false);

/// What a connection meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Not a word, not even a greeting.
    Silent,
    /// A greeting, and then nothing is read or said.
    Deaf,
    /// Claims are granted and credit given, and no part is ever taken.
    Greedy,
    /// Notices without end.
    Flood,
    /// Frames of noise.
    Noise,
    /// All that was said by the one before.
    Playback,
}

const MANNERS: [Manner; 6] = [Manner::Silent, Manner::Deaf, Manner::Greedy, Manner::Flood, Manner::Noise, Manner::Playback];

/// A gateway of bad manners, one after the other, for as many connections as there are.
struct Gateway {
    runtime: tokio::runtime::Runtime,
    connections: Receiver<Arc<dyn Connection>>,
    token: String,
    _listener: Arc<Listener>,
    _book: tempfile::TempDir,
}

impl Gateway {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let identity = Identity::ephemeral().expect("an identity");
        let book = Arc::new(PairingBook::open(&folder.path().join("pairings.json")).expect("an empty book"));
        let address = "127.0.0.1:0".parse::<std::net::SocketAddr>().expect("an address");
        let name = "gateway".parse().expect("a name");
        let listener = runtime.block_on(async { Listener::bind(address, &identity, name, Arc::clone(&book), Limits::default()) });
        let listener = Arc::new(listener.expect("bound"));
        let request = TokenRequest {
            addresses: vec![listener.local_address().expect("bound").to_string()],
            receiver: identity.fingerprint(),
            lifetime_s: 3600,
            source: None,
            replace: false,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let token = book.create_token(request, now).expect("a token").to_line();
        let (found, connections) = channel();
        runtime.spawn(accept(Arc::clone(&listener), found));
        Self { runtime, connections, token, _listener: listener, _book: folder }
    }
}

async fn accept(listener: Arc<Listener>, found: Sender<Arc<dyn Connection>>) {
    while let Some(event) = listener.next().await {
        if let ListenerEvent::Connected(connection) = event
            && found.send(connection).is_err()
        {
            return;
        }
    }
}

fn say(message: &ReceiverMessage) -> Bytes {
    encode_payload(message).expect("it fits")
}

fn hello() -> Bytes {
    say(&ReceiverMessage::Hello(ReceiverHello { version: 1, features: Features(0), store: [9; 16] }))
}

/// Answers questions so that everything is sent; keeps what it said.
async fn lure(connection: &dyn Connection) -> Vec<Bytes> {
    let mut said = vec![hello()];
    let _ = connection.send(said[0].clone()).await;
    let position = LedgerPosition { slot: Slot(3), digest: RecordDigest([7; 32]) };
    while let Ok(frame) = connection.recv().await {
        let answers = match decode_payload::<SourceMessage>(&frame).expect("the daemon is honest") {
            SourceMessage::ReadLedger(q) => vec![ReceiverMessage::LedgerSlice(LedgerSlice {
                id: q.id,
                volume: q.volume,
                ancestor: true,
                layers: Vec::new(),
                more: false,
                head: None,
                current: None,
            })],
            SourceMessage::Claim(q) => vec![
                ReceiverMessage::ClaimVerdict(ClaimVerdict {
                    id: q.id,
                    volume: q.claim.volume.id,
                    outcome: ClaimOutcome::Accepted { position },
                }),
                ReceiverMessage::Credit(Credit { granted_bytes: u64::MAX }),
            ],
            // A layer that nobody has taken is called published.
            SourceMessage::LayerBegin(begin) => {
                LURED.store(true, Ordering::Release);
                vec![ReceiverMessage::Published(Published {
                    position,
                    kind: LayerKind::Point,
                    layers: vec![farside_region::LayerKey { seq: begin.key.seq.next(), ..begin.key }],
                })]
            }
            _ => Vec::new(),
        };
        for answer in answers {
            said.push(say(&answer));
            let _ = connection.send(say(&answer)).await;
        }
    }
    said
}

async fn behave(manner: Manner, connection: Arc<dyn Connection>, recording: Vec<Bytes>) -> Vec<Bytes> {
    match manner {
        Manner::Silent => drop(connection.closed().await),
        Manner::Deaf => {
            let _ = connection.send(hello()).await;
            connection.closed().await;
        }
        Manner::Greedy => return lure(&*connection).await,
        Manner::Flood => {
            let _ = connection.send(hello()).await;
            let notice = say(&ReceiverMessage::Notice(Notice::StoreFailed { text: "x".repeat(TEXT_BYTES_MAX) }));
            while connection.send(notice.clone()).await.is_ok() {}
        }
        Manner::Noise => {
            let _ = connection.send(hello()).await;
            let mut rng = Rng(5);
            let mut noise = || (0..1 + rng.below(4000)).map(|_| rng.draw() as u8).collect::<Vec<u8>>();
            while connection.send(noise().into()).await.is_ok() {}
        }
        Manner::Playback => {
            for frame in &recording {
                let _ = connection.send(frame.clone()).await;
            }
            connection.closed().await;
        }
    }
    recording
}

#[test]
fn whatever_a_gateway_does_costs_lag_and_nothing_else() {
    let spec = VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() };
    let mut site = Site::new(&[spec], "200ms", 8);
    site.start_daemon();
    let gateway = Gateway::start();
    let mut client = Verifier::new(&site.tap("data"), BYTES);
    let mut rng = Rng(17);
    let mut write = |client: &mut Verifier, requests: u64| {
        client.steps(&mut rng, requests);
        client.flush();
    };
    write(&mut client, 200);
    let daemon = |site: &Site| site.daemon.as_ref().expect("it runs").rss_kib();
    let before = daemon(&site);
    run(site.farside().args(["pair", &gateway.token]));
    let mut recording = Vec::new();
    for manner in MANNERS {
        let connection = wait_for("the daemon to connect", || gateway.connections.try_recv().ok());
        let behaving = gateway.runtime.spawn(behave(manner, Arc::clone(&connection), recording));
        write(&mut client, 300);
        assert_eq!(client.broken, 0, "{manner:?}: a write did not complete");
        if manner == Manner::Greedy {
            wait_for("a layer to be begun", || LURED.load(Ordering::Acquire).then_some(()));
        }
        connection.close(CloseCode::Done, "next");
        recording = gateway.runtime.block_on(behaving).expect("it behaves as it should");
        let now = daemon(&site);
        assert!(now < before + GROWTH_KIB_MAX, "{manner:?}: memory grew from {before} to {now} KiB");
    }
    // An honest gateway. What the other one granted is not in its ledger, which a person must accept.
    site.start_receiver();
    site.pair();
    wait_for("the ledger to be called rewound", || {
        (site.volume_status("data")["state"]["state"] == "target_rewound").then_some(())
    });
    run(site.farside().args(["volume", "resync", "data", "--accept", "rewound"]));
    site.check_newest("data", &mut client);
    let log = std::fs::read_to_string(site.path("daemon.log")).unwrap_or_default();
    assert!(!log.contains("panicked"), "{}", tail(&site.path("daemon.log")));
}
