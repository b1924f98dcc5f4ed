//! A way from hosts to a gateway that lets TCP through always and UDP when it is told to.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::spawn;

use crate::free_port;

/// What is sent to its address arrives at the gateway, and what comes back at the host. Its threads live as long as the process.
#[derive(Debug)]
pub struct Way {
    /// Where hosts send to.
    pub address: SocketAddr,
    passes: Arc<AtomicBool>,
    stopped: Arc<AtomicU64>,
}

impl Way {
    /// To a gateway. UDP does not get through.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(gateway: SocketAddr) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let (passes, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let udp = Arc::new(UdpSocket::bind(address).expect("a free port"));
        let tcp = TcpListener::bind(address).expect("a free port");
        let (lets, counts) = (passes.clone(), stopped.clone());
        spawn(move || packets(&udp, gateway, &lets, &counts));
        spawn(move || {
            for near in tcp.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(gateway) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().expect("a copy"), to.try_clone().expect("a copy"));
                    spawn(move || bytes(from, to));
                }
            }
        });
        Self { address, passes, stopped }
    }

    /// Whether UDP gets through from now on.
    pub fn let_udp_through(&self, passes: bool) {
        self.passes.store(passes, Ordering::SeqCst);
    }

    /// Packets that did not get through so far.
    pub fn stopped_packets(&self) -> u64 {
        self.stopped.load(Ordering::SeqCst)
    }
}

fn packets(front: &Arc<UdpSocket>, gateway: SocketAddr, passes: &Arc<AtomicBool>, stopped: &AtomicU64) {
    let mut hosts = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((length, host)) = front.recv_from(&mut buffer) {
        if !passes.load(Ordering::SeqCst) {
            stopped.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let back = hosts.entry(host).or_insert_with(|| {
            let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket"));
            back.connect(gateway).expect("an address");
            let (from, front, passes) = (back.clone(), front.clone(), passes.clone());
            spawn(move || {
                let mut buffer = vec![0; 65_536];
                // Where nobody listens there is an error for each packet that was sent.
                loop {
                    if let Ok(length) = from.recv(&mut buffer)
                        && passes.load(Ordering::SeqCst)
                    {
                        let _ = front.send_to(&buffer[..length], host);
                    }
                }
            });
            back
        });
        let _ = back.send(&buffer[..length]);
    }
}

fn bytes(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
