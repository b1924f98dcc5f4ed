//! A private network of guests: a hub in this process to which each guest's network card is wired by a Unix socket.
//!
//! Nothing of it is on any network of this machine. A frame goes to every other guest; one whose card cannot take it soon
//! enough loses it, as on a wire. The hub can be cut, which loses every frame, and healed. It ends with its owner.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

/// Frames that wait for one card.
const QUEUE_FRAMES: usize = 512;
/// An Ethernet frame with whatever a virtual card may merge into it.
const FRAME_MAX: usize = 128 << 10;

/// The network.
#[derive(Debug)]
pub struct Network {
    dir: TempDir,
    hub: Arc<Hub>,
    hosts: AtomicU8,
}

#[derive(Debug, Default)]
struct Hub {
    ports: Mutex<Vec<Port>>,
    cut: AtomicBool,
    /// Frames that a cut has cost.
    lost: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Port {
    number: usize,
    /// Frames on their way to the card.
    queue: SyncSender<Arc<[u8]>>,
    /// To end the port's threads.
    stream: UnixStream,
}

impl Network {
    /// A network without guests.
    ///
    /// # Panics
    /// When its socket cannot be made.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("farside-vm-net-").tempdir().expect("a temporary directory");
        let hub = Arc::new(Hub::default());
        let listener = UnixListener::bind(dir.path().join("hub")).expect("a socket");
        std::thread::spawn({
            let hub = hub.clone();
            move || hub.take_ports(&listener)
        });
        Self { dir, hub, hosts: AtomicU8::new(0) }
    }

    /// Where a card is wired to.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    /// The number of one more host, from 1.
    pub(crate) fn admit(&self) -> u8 {
        self.hosts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// From now on every frame is lost.
    pub fn cut(&self) {
        self.hub.cut.store(true, Ordering::SeqCst);
    }

    /// From now on frames arrive again.
    pub fn heal(&self) {
        self.hub.cut.store(false, Ordering::SeqCst);
    }

    /// How many frames were lost while it was cut.
    pub fn frames_lost(&self) -> u64 {
        self.hub.lost.load(Ordering::SeqCst)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.hub.closed.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.socket()); // so that whoever takes ports sees it
        for port in self.hub.ports().drain(..) {
            let _ = port.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Hub {
    fn ports(&self) -> MutexGuard<'_, Vec<Port>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_ports(self: &Arc<Self>, listener: &UnixListener) {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept() else { return };
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            let (queue, frames) = sync_channel(QUEUE_FRAMES);
            let (reader, writer) = (stream.try_clone(), stream.try_clone());
            let (Ok(reader), Ok(writer)) = (reader, writer) else { continue };
            self.ports().push(Port { number, queue, stream });
            std::thread::spawn(move || deliver(writer, &frames));
            let hub = self.clone();
            std::thread::spawn(move || {
                let _ = hub.listen(number, reader);
                hub.ports().retain(|port| port.number != number);
            });
        }
    }

    /// Hands what one card sends to all others, until it is unplugged.
    fn listen(&self, number: usize, mut from: UnixStream) -> io::Result<()> {
        loop {
            let mut len = [0; 4];
            from.read_exact(&mut len)?;
            let len = u32::from_be_bytes(len) as usize;
            if len > FRAME_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no frame is that long"));
            }
            let mut frame = vec![0; 4 + len];
            frame[..4].copy_from_slice(&(len as u32).to_be_bytes());
            from.read_exact(&mut frame[4..])?;
            if self.cut.load(Ordering::SeqCst) {
                self.lost.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let frame: Arc<[u8]> = frame.into();
            for port in self.ports().iter().filter(|port| port.number != number) {
                let _ = port.queue.try_send(frame.clone()); // full: lost, as on a wire
            }
        }
    }
}

fn deliver(mut to: UnixStream, frames: &Receiver<Arc<[u8]>>) {
    while let Ok(frame) = frames.recv() {
        if to.write_all(&frame).is_err() {
            return;
        }
    }
}

/// The address of host number `host`, and of its network.
pub(crate) fn address(host: u8) -> String {
    format!("10.77.0.{host}")
}

/// What a card is wired to.
#[derive(Clone, Debug)]
pub(crate) enum Wiring {
    /// A [`Network`], by its socket.
    Hub(PathBuf),
    /// QEMU's own network, for the loopback of this machine. It leads further, but guests have no route there.
    Here,
}

/// The address that this machine's loopback has for a card that is wired to it.
pub const HERE: &str = "10.77.0.254";

/// The network card of host number `host`, for qemu.
pub(crate) fn card(host: u8, wiring: &Wiring) -> [String; 4] {
    let end = match wiring {
        Wiring::Hub(socket) => format!("stream,id=net0,server=off,addr.type=unix,addr.path={}", socket.display()),
        Wiring::Here => format!("user,id=net0,ipv6=off,net=10.77.0.0/24,host={HERE},dns=10.77.0.253,dhcpstart=10.77.0.100"),
    };
    ["-netdev".into(), end, "-device".into(), format!("virtio-net-pci,netdev=net0,mac=52:54:00:77:00:{host:02x}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(to: &mut UnixStream, frame: &[u8]) {
        to.write_all(&(frame.len() as u32).to_be_bytes()).expect("a hub");
        to.write_all(frame).expect("a hub");
    }

    fn receive(from: &mut UnixStream) -> Vec<u8> {
        let mut len = [0; 4];
        from.read_exact(&mut len).expect("a frame");
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        from.read_exact(&mut frame).expect("a frame");
        frame
    }

    #[test]
    fn frames_go_to_all_others_unless_the_network_is_cut() {
        let network = Network::new();
        let mut cards: Vec<UnixStream> = (0..3).map(|_| UnixStream::connect(network.socket()).expect("a hub")).collect();
        farside_tests::wait_for("three ports", || (network.hub.ports().len() == 3).then_some(()));
        send(&mut cards[0], b"one");
        assert_eq!(receive(&mut cards[1]), b"one");
        assert_eq!(receive(&mut cards[2]), b"one");
        network.cut();
        send(&mut cards[1], b"lost");
        farside_tests::wait_for("the frame to be lost", || (network.frames_lost() == 1).then_some(()));
        network.heal();
        send(&mut cards[1], b"two");
        assert_eq!(receive(&mut cards[0]), b"two");
        assert_eq!(receive(&mut cards[2]), b"two");
    }
}
