//! How fast one connection carries part streams on this machine, over UDP and over TCP, with both ends in this process.
//!
//! `cargo run --release -p farside-transport --example loopback [GiB]`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use farside_transport::{
    Carriers, Connection, Dial, Identity, Limits, Listener, ListenerEvent, PairingBook, QuicDialer, Route, TokenRequest, pair,
};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::watch;

const PART_BYTES: usize = 64 << 20;
const CHUNK_BYTES: usize = 256 << 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let gib: usize = std::env::args().nth(1).map_or(Ok(4), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let book = Arc::new(PairingBook::open(&directory.path().join("pairings.json"))?);
    let (here, there) = (Identity::ephemeral()?, Identity::ephemeral()?);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Listener::bind(any, &there, "receiver".parse()?, Arc::clone(&book), Limits::default())?;
    println!("socket buffers: {:?}", listener.socket_buffers());
    let addresses = vec![listener.local_address()?.to_string()];
    let request = TokenRequest { addresses, receiver: there.fingerprint(), lifetime_s: 60, source: None, replace: false };
    let token = book.create_token(request, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let pin = pair(&token, &here, &"source".parse()?, &Route::default(), &Limits::default()).await?;
    let mut rates = Vec::new();
    for carriers in [Carriers::Udp, Carriers::Tcp] {
        let (pins, route) = (watch::channel(Some(pin.clone())).1, Route::new(carriers));
        let source = QuicDialer::new(here.clone(), "source".parse()?, pins, route, Limits::default()).dial().await?;
        let receiver = loop {
            match listener.next().await {
                Some(ListenerEvent::Connected(connection)) => break connection,
                Some(_) => {}
                None => return Err("the listener ended".into()),
            }
        };
        carry(&source, &receiver, 1).await?;
        let (cpu_before, begun) = (cpu_s()?, Instant::now());
        let bytes = carry(&source, &receiver, gib << 30 >> 26).await?;
        let (wall_s, cpu_s, gb) = (begun.elapsed().as_secs_f64(), cpu_s()? - cpu_before, bytes as f64 / 1e9);
        let s = source.statistics();
        println!(
            "{}: {gb:.2} GB in {wall_s:.2} s: {:.2} GB/s, {:.2} CPU-s/GB (both ends)",
            source.peer().carrier,
            gb / wall_s,
            cpu_s / gb
        );
        println!("mtu {}, lost packets {}, window {} KiB, rtt {:?}", s.mtu, s.lost_packets, s.congestion_window >> 10, s.rtt);
        rates.push((gb / wall_s, cpu_s / gb));
    }
    let [(udp, udp_cpu), (tcp, tcp_cpu)] = rates[..] else { unreachable!("two carriers") };
    println!("TCP against UDP: {:.2} of the rate, {:.2} of the CPU time", tcp / udp, tcp_cpu / udp_cpu);
    Ok(())
}

/// Carries `parts` part streams and returns how many bytes arrived.
async fn carry(source: &Arc<dyn Connection>, receiver: &Arc<dyn Connection>, parts: usize) -> Result<u64, Box<dyn Error>> {
    let receiver = Arc::clone(receiver);
    let sink = tokio::spawn(async move {
        let mut bytes = 0_u64;
        for _ in 0..parts {
            let mut part = receiver.accept_part().await?;
            while let Some(chunk) = part.body.next(CHUNK_BYTES).await? {
                bytes += chunk.len() as u64;
            }
        }
        Ok::<_, farside_transport::PartError>(bytes)
    });
    let chunk = Bytes::from(vec![0xA5; CHUNK_BYTES]);
    for _ in 0..parts {
        let mut part = source.open_part(Bytes::from_static(b"part")).await?;
        for _ in 0..PART_BYTES / CHUNK_BYTES {
            part.write(chunk.clone()).await?;
        }
        part.finish()?;
    }
    Ok(sink.await??)
}

fn cpu_s() -> Result<f64, nix::Error> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
