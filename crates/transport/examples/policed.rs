//! What several connections carry where each flow of packets gets only so much, beside one, in one run.
//!
//! `cargo run --release -p farside-transport --example policed [MBIT_PER_S]`
//!
//! In between stands a policer: it drops what a flow (the address that sends) has beyond its rate, as carriers' networks do.

use std::collections::HashMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farside_transport::{
    Carriers, Connection, Dial, Identity, Limits, Listener, ListenerEvent, PairingBook, QuicDialer, Route, TokenRequest, pair,
};
use tokio::sync::watch;

const PART_BYTES: usize = 8 << 20;
const CHUNK_BYTES: usize = 256 << 10;
const SECONDS: usize = 8;
/// A flow may be ahead of its rate for so long.
const BURST_S: f64 = 0.05;

/// Bytes that a flow may send now.
struct Bucket {
    bytes: f64,
    filled: Instant,
}

impl Bucket {
    fn lets(&mut self, bytes: usize, rate: f64) -> bool {
        let now = Instant::now();
        self.bytes = (self.bytes + (now - self.filled).as_secs_f64() * rate).min(rate * BURST_S);
        self.filled = now;
        let lets = self.bytes >= bytes as f64;
        self.bytes -= if lets { bytes as f64 } else { 0.0 };
        lets
    }
}

/// Its address. It lives as long as the process.
fn policer(gateway: SocketAddr, bytes_per_s: f64) -> Result<SocketAddr, Box<dyn Error>> {
    let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    let address = front.local_addr()?;
    std::thread::spawn(move || {
        let mut flows: HashMap<SocketAddr, (Arc<UdpSocket>, Bucket)> = HashMap::new();
        let mut buffer = vec![0; 65_536];
        while let Ok((length, host)) = front.recv_from(&mut buffer) {
            let (back, bucket) = flows.entry(host).or_insert_with(|| {
                let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket"));
                back.connect(gateway).expect("an address");
                let (from, front) = (back.clone(), front.clone());
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(length) = from.recv(&mut buffer) {
                        let _ = front.send_to(&buffer[..length], host);
                    }
                });
                (back, Bucket { bytes: bytes_per_s * BURST_S, filled: Instant::now() })
            });
            if bucket.lets(length, bytes_per_s) {
                let _ = back.send(&buffer[..length]);
            }
        }
    });
    Ok(address)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mbit: usize = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let bytes_per_s = mbit as f64 * 125_000.0;
    let directory = tempfile::tempdir()?;
    let book = Arc::new(PairingBook::open(&directory.path().join("pairings.json"))?);
    let (here, there) = (Identity::ephemeral()?, Identity::ephemeral()?);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Listener::bind(any, &there, "receiver".parse()?, Arc::clone(&book), Limits::default())?;
    let addresses = vec![policer(listener.local_address()?, bytes_per_s)?.to_string()];
    let request = TokenRequest { addresses, receiver: there.fingerprint(), lifetime_s: 60, source: None, replace: false };
    let token = book.create_token(request, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let pin = pair(&token, &here, &"source".parse()?, &Route::new(Carriers::Udp), &Limits::default()).await?;
    let mut rates = Vec::new();
    for lanes in [1, 4, 1, 4] {
        let limits = Limits { lanes, ..Limits::default() };
        let (pins, route) = (watch::channel(Some(pin.clone())).1, Route::new(Carriers::Udp));
        let source = QuicDialer::new(here.clone(), "source".parse()?, pins, route, limits).dial().await?;
        let receiver = loop {
            match listener.next().await {
                Some(ListenerEvent::Connected(connection)) => break connection,
                Some(_) => {}
                None => return Err("the listener ended".into()),
            }
        };
        while source.statistics().connections < lanes as u32 {
            tokio::task::yield_now().await;
        }
        let parts = (SECONDS * lanes * mbit * 125_000).div_ceil(PART_BYTES);
        let begun = Instant::now();
        carry(&source, &receiver, parts).await?;
        let rate = (parts * PART_BYTES) as f64 / begun.elapsed().as_secs_f64();
        let s = source.statistics();
        println!(
            "{lanes} connections: {:.0} Mbit/s, each flow gets {mbit}; {:.1} % of the packets were lost",
            rate / 125_000.0,
            s.lost_packets as f64 * 100.0 / s.sent_packets.max(1) as f64
        );
        rates.push(rate);
    }
    println!("four against one: {:.2} and {:.2} times the rate", rates[1] / rates[0], rates[3] / rates[2]);
    Ok(())
}

async fn carry(source: &Arc<dyn Connection>, receiver: &Arc<dyn Connection>, parts: usize) -> Result<(), Box<dyn Error>> {
    let (sending, chunk) = (Arc::clone(source), Bytes::from(vec![0x5a; CHUNK_BYTES]));
    let sender = tokio::spawn(async move {
        for _ in 0..parts {
            let mut part = sending.open_part(Bytes::from_static(b"header")).await.expect("opened");
            for _ in 0..PART_BYTES / CHUNK_BYTES {
                part.write(chunk.clone()).await.expect("written");
            }
            part.finish().expect("finished");
        }
    });
    let mut readers = Vec::new();
    for _ in 0..parts {
        let mut part = receiver.accept_part().await?;
        readers.push(tokio::spawn(async move { while part.body.next(CHUNK_BYTES).await.expect("read").is_some() {} }));
    }
    for reader in readers {
        reader.await?;
    }
    sender.await?;
    Ok(())
}
