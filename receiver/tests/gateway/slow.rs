//! A paired source that begins and never ends, or says again what it said before; local clients that never finish a request.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use farside_ledger::LayerKind;
use farside_wire::{LayerBegin, SourceMessage};

use crate::site::{Gateway, granules, wait_for};

/// What the program and the allocator need beside what is counted.
const SLACK_BYTES: u64 = 64 << 20;

/// Part streams that are opened and left, with a byte now and then.
#[tokio::test]
async fn streams_that_never_end_hold_little_memory_and_nobody_up() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let slow = gateway.pair("slow").await;
    let good = gateway.pair("good").await;
    let mut source = good.connect("default").await;
    let volume = source.claim("data").await;
    let before = gateway.resident_bytes_max();
    let (mut sessions, mut streams) = (Vec::new(), Vec::new());
    for group in 0..16 {
        let mut session = slow.connect(&format!("group{group}")).await;
        let claimed = session.claim("data").await;
        let (bytes, _) = claimed.part(1, &granules(0, 40));
        session.send(SourceMessage::LayerBegin(LayerBegin { key: claimed.key(1) })).await;
        // As many as each may open while there are so many connections.
        let stream = session.begin_part(&claimed, 1, 0, &bytes[..100]).await;
        streams.push((stream, bytes[100..].to_vec()));
        sessions.push(session);
    }
    wait_for("all of them to have begun", || (0..16).all(|g| !gateway.landed_files(&format!("slow/group{g}/data")).is_empty()))
        .await;
    for seq in 1..=20 {
        source.publish(&volume, seq, &granules(seq, 3), LayerKind::Point).await;
        for (stream, left) in &mut streams {
            let byte = left.remove(0);
            stream.write(bytes::Bytes::copy_from_slice(&[byte])).await.expect("it is still read");
        }
    }
    assert_eq!(gateway.status().await.sources.len(), 2);
    let grown = gateway.resident_bytes_max() - before;
    // The budget for parts on their way in.
    assert!(grown <= (64 << 20) + SLACK_BYTES, "{} MiB more than before", grown >> 20);
    drop((streams, sessions));
    // Nothing of what was begun stays.
    let empty = |group: u32| gateway.landed_files(&format!("slow/group{group}/data")).is_empty();
    wait_for("landing to be empty", || (0..16).all(empty)).await;
    gateway.check_store();
}

/// Everything that was said in one connection is said again in the next, and once more under the next claim.
#[tokio::test]
async fn a_recording_played_back_publishes_nothing() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let first = source.claim("data").await;
    let (bytes, member) = first.part(1, &granules(0, 3));
    source.publish(&first, 1, &granules(0, 3), LayerKind::Point).await;
    drop(source);

    let mut again = host.connect_when_ready("default").await;
    again.play(&first, 1, &bytes, &member).await;
    // A new claim, and a point of it: whatever the recording did has been done by then.
    let second = again.claim_above("data", &first).await;
    again.play(&first, 1, &bytes, &member).await;
    again.publish(&second, 1, &granules(5, 2), LayerKind::Point).await;
    again.play(&first, 1, &bytes, &member).await;
    again.play(&second, 1, &second.part(1, &granules(5, 2)).0, &second.part(1, &granules(5, 2)).1).await;
    again.publish(&second, 2, &granules(9, 1), LayerKind::Point).await;
    assert_eq!(gateway.points(Some("host1/default")).await.len(), 3, "one for each that was made");
    gateway.check_store();
}

/// Hundreds of strangers begin a connection and leave it, from as many addresses as they like: a host that is known comes in, one
/// that is not yet known is paired, and what they began takes little.
#[tokio::test]
async fn hundreds_of_handshakes_that_never_end_keep_no_honest_host_out() {
    const STRANGERS: usize = 300;
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let known = gateway.pair("known").await;
    let mut source = known.connect("default").await;
    let volume = source.claim("data").await;
    source.publish(&volume, 1, &granules(0, 3), LayerKind::Point).await;
    drop(source);

    // What a client says first, many times over: said to a socket that answers nothing.
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let nowhere = known.at(sink.local_addr().expect("bound"));
    let dials: Vec<_> = (0..STRANGERS)
        .map(|_| {
            let nowhere = nowhere.clone();
            tokio::spawn(async move { drop(nowhere.dial().await) })
        })
        .collect();
    let mut first = std::collections::BTreeMap::new();
    let mut datagram = [0; 2048];
    while first.len() < STRANGERS {
        let (length, from) = sink.recv_from(&mut datagram).await.expect("received");
        first.entry(from).or_insert_with(|| datagram[..length].to_vec());
    }
    dials.iter().for_each(tokio::task::JoinHandle::abort);

    let before = gateway.resident_bytes_max();
    let sockets: Vec<_> =
        (0..STRANGERS).map(|n| std::net::UdpSocket::bind((format!("127.0.1.{}", n % 250), 0)).expect("bound")).collect();
    let begin = || {
        for (socket, datagram) in sockets.iter().zip(first.values()) {
            let _ = socket.send_to(datagram, known.receiver());
        }
    };
    for round in 0..5 {
        begin();
        // One after the other: each of these comes while the others' handshakes hang.
        let mut source = known.connect_when_ready("default").await;
        let volume = source.claim_above("data", &volume).await;
        source.publish(&volume, 1, &granules(round, 3), LayerKind::Point).await;
        begin();
        gateway.pair(&format!("new{round}")).await;
    }
    let grown = gateway.resident_bytes_max() - before;
    assert!(grown <= SLACK_BYTES, "{} MiB more than before", grown >> 20);
    gateway.check_store();
}

/// Hundreds of local clients that begin a request and leave it.
#[tokio::test]
async fn clients_that_never_finish_a_request_keep_nobody_waiting() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let files = || std::fs::read_dir(format!("/proc/{}/fd", gateway.process())).expect("it runs").count();
    let (before, memory) = (files(), gateway.resident_bytes_max());
    let mut slow = Vec::new();
    for _ in 0..400 {
        // Waits while the listener's queue is full.
        let mut stream = UnixStream::connect(gateway.path("api.sock")).expect("connected");
        let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\nx-slow: "); // it may be sent away at once
        slow.push(stream);
    }
    // Every request below comes after all of them, and is answered.
    gateway.status().await;
    // Who gives way may be about to be closed still.
    wait_for("few enough files for clients", || files() - before <= farside_service::clients::CLIENTS_MAX + 8).await;
    for stream in &mut slow {
        let _ = stream.write_all(b"y");
    }
    gateway.status().await;
    let grown = gateway.resident_bytes_max() - memory;
    assert!(grown <= SLACK_BYTES, "{} MiB more than before", grown >> 20);
}
