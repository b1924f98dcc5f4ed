//! The gateway of a protected host: a receiver on this machine itself, which is ten times as fast as an emulated one and lets the
//! guest have the processor; or an emulated machine, for who mounts there what was restored, or measures.
//!
//! A guest reaches the receiver here through QEMU's own network, which shows it the loopback of this machine under another address. In
//! between stands a wire of ours, so that the network can be cut.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use farside_tests::{PATIENCE, Process, bin_dir, run, tail, tool, wait_for};
use nix::sys::socket::{Shutdown, shutdown};
use tempfile::TempDir;

use crate::{Guest, Machine, Network, network};

/// What a datagram of the replication has at most, and more.
const DATAGRAM_MAX: usize = 64 << 10;

/// A gateway that runs.
#[derive(Debug)]
pub struct Gateway {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Here(Here),
    Emulated(Box<Emulated>),
}

#[derive(Debug)]
struct Here {
    receiver: Option<Process>,
    wire: Wire,
    dir: TempDir,
}

#[derive(Debug)]
struct Emulated {
    machine: Machine,
    guest: Guest,
    /// It ends with it.
    _network: Network,
}

/// Its folder, in a command of the shell: `store` and `state` are in it, `receiver.toml`, and what is restored.
pub const FOLDER: &str = "$GATEWAY";
/// The folder at an emulated gateway.
const EMULATED_FOLDER: &str = "/store";

impl Gateway {
    /// One on this machine.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn here() -> Self {
        let dir = tempfile::Builder::new().prefix("farside-vm-gateway-").tempdir().expect("a temporary directory");
        let wire = Wire::new();
        let configuration = configuration(
            &dir.path().display().to_string(),
            &format!("{RECEIVER}:{}", wire.port),
            &format!("{}:{}", network::HERE, wire.port),
        );
        std::fs::write(dir.path().join("receiver.toml"), configuration).expect("room");
        let mut here = Here { receiver: None, wire, dir };
        here.start();
        Self { place: Place::Here(here) }
    }

    /// An emulated one, switched off, whose disk `store` is empty.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn emulated(mut machine: Machine, network: Network) -> Self {
        let mut guest = machine.boot();
        let store = guest.disk("store");
        let at = EMULATED_FOLDER;
        guest.run(&format!("/bin/mke2fs -q -t ext4 {store} && mkdir -p {at} && mount -t ext4 {store} {at}"));
        let address = format!("{}:7400", machine.address());
        guest.upload(&format!("{at}/receiver.toml"), configuration(at, &address, &address).as_bytes(), 0o644);
        start_emulated(&mut guest);
        Self { place: Place::Emulated(Box::new(Emulated { machine, guest, _network: network })) }
    }

    /// The address of an emulated one.
    ///
    /// # Panics
    /// When it is none.
    pub fn address(&self) -> String {
        match &self.place {
            Place::Here(_) => panic!("it has no address of its own"),
            Place::Emulated(emulated) => emulated.machine.address(),
        }
    }

    /// The machine of an emulated one.
    ///
    /// # Panics
    /// When it is none.
    pub fn guest(&mut self) -> &mut Guest {
        match &mut self.place {
            Place::Here(_) => panic!("it is no emulated machine"),
            Place::Emulated(emulated) => &mut emulated.guest,
        }
    }

    /// What a reader of a disk of an emulated one would see.
    ///
    /// # Panics
    /// When it is none, or has no disk of that name.
    pub fn disk_content(&self, serial: &str) -> Vec<u8> {
        match &self.place {
            Place::Here(_) => panic!("it is no emulated machine"),
            Place::Emulated(emulated) => emulated.machine.disk_content(serial),
        }
    }

    /// Runs a command of the shell at it that must succeed, with our programs in its search path. Returns its standard output.
    ///
    /// # Panics
    /// With its whole output when it does not.
    pub fn run(&mut self, command: &str) -> String {
        match &mut self.place {
            Place::Here(here) => {
                let path = std::env::var("PATH").unwrap_or_default();
                let mut shell = tool("timeout");
                shell
                    .arg(PATIENCE.as_secs().to_string())
                    .args(["sh", "-c", command])
                    .env("PATH", format!("{}:{path}", bin_dir().display()))
                    .env("GATEWAY", here.dir.path());
                String::from_utf8_lossy(&run(&mut shell).stdout).into_owned()
            }
            Place::Emulated(emulated) => emulated.guest.run(&format!("GATEWAY={EMULATED_FOLDER}; {command}")),
        }
    }

    /// What a point of a volume holds.
    ///
    /// # Panics
    /// When there is no such point.
    pub fn restore(&mut self, volume: &str, point: &str) -> Vec<u8> {
        self.run(&format!("farside restore {volume} --point {point} --store {FOLDER}/store --to {FOLDER}/restored.img"));
        let content = self.download("restored.img");
        self.run(&format!("rm {FOLDER}/restored.img"));
        content
    }

    /// A file of its folder.
    ///
    /// # Panics
    /// When it is not there.
    pub fn download(&mut self, name: &str) -> Vec<u8> {
        match &mut self.place {
            Place::Here(here) => std::fs::read(here.dir.path().join(name)).expect("it is there"),
            Place::Emulated(emulated) => emulated.guest.download(&format!("{EMULATED_FOLDER}/{name}")),
        }
    }

    /// A token for a host.
    ///
    /// # Panics
    /// When it gives none.
    pub fn token(&mut self) -> String {
        self.run(&format!("farside-receiver token --config {FOLDER}/receiver.toml")).trim().to_owned()
    }

    fn of_here(&mut self) -> &mut Here {
        match &mut self.place {
            Place::Here(here) => here,
            Place::Emulated(_) => panic!("it is not on this machine"),
        }
    }

    /// From now on nothing arrives, in either direction.
    ///
    /// # Panics
    /// When it is not on this machine.
    pub fn cut(&mut self) {
        self.of_here().wire.state.cut.store(true, Ordering::SeqCst);
    }

    /// Ends [`Gateway::cut`].
    ///
    /// # Panics
    /// When it is not on this machine.
    pub fn heal(&mut self) {
        self.of_here().wire.state.cut.store(false, Ordering::SeqCst);
    }

    /// How many datagrams a cut network has swallowed so far.
    ///
    /// # Panics
    /// When it is not on this machine.
    pub fn datagrams_lost(&mut self) -> u64 {
        self.of_here().wire.state.lost.load(Ordering::SeqCst)
    }

    /// It loses everything that it had, and is another one from now on.
    ///
    /// # Panics
    /// When it is not on this machine, or does not come up.
    pub fn replace(&mut self) {
        self.of_here().receiver.take().expect("it runs").stop();
        self.run(&format!("rm -r {FOLDER}/store {FOLDER}/state"));
        self.of_here().start();
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// When something is wrong with the store, the receiver does not end cleanly, or a kernel complained.
    pub fn shut_down(mut self) {
        self.run(&format!("farside store check {FOLDER}/store"));
        match self.place {
            Place::Here(mut here) => here.receiver.take().expect("it runs").stop(),
            Place::Emulated(emulated) => emulated.guest.shut_down(),
        }
    }
}

impl Here {
    fn start(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let log = File::options().create(true).append(true).open(path("receiver.log")).expect("room");
        // setpriv ends it with the thread that starts it, also when that has no time to clean up.
        let mut command = tool("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(bin_dir().join("farside-receiver"))
            .args(["run", "--config"])
            .arg(path("receiver.toml"))
            .stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let mut process = Process::new(command.spawn().expect("our own program starts"), "farside-receiver");
        let socket = path("receiver.sock");
        wait_for("the receiver's socket", || {
            assert!(process.is_running(), "the receiver ended: {}", tail(&path("receiver.log")));
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        self.receiver = Some(process);
    }
}

/// Of a test that fails it says what its gateway saw.
impl Drop for Here {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("gateway:\n{}", tail(&self.dir.path().join("receiver.log")));
        }
    }
}

fn start_emulated(guest: &mut Guest) {
    let at = EMULATED_FOLDER;
    guest.start_command(&format!("exec farside-receiver run --config {at}/receiver.toml"), "/run/receiver.log");
    guest.wait_until(&format!("farside --socket {at}/receiver.sock status --json"));
}

fn configuration(folder: &str, listen: &str, advertise: &str) -> String {
    format!(
        "[receiver]\nlisten = \"{listen}\"\nadvertise = [\"{advertise}\"]\nstore = \"{folder}/store\"\n\
         state_dir = \"{folder}/state\"\napi_socket = \"{folder}/receiver.sock\"\n"
    )
}

/// As `md5sum` of a guest says it.
///
/// # Panics
/// When this machine has no `md5sum`.
pub fn md5_of(content: &[u8]) -> String {
    let mut md5 = tool("md5sum");
    let mut md5 = md5.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum is installed");
    md5.stdin.take().expect("piped").write_all(content).expect("md5sum reads");
    let output = md5.wait_with_output().expect("our own child");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a first word").to_owned()
}

/// Where the receiver listens. Its port is the wire's: while that is taken here, nobody is given it there.
const RECEIVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// QUIC has given up a connection on which nothing came for so long.
const SILENCE: Duration = Duration::from_secs(60);

/// Carries datagrams between guests and the receiver, unless it is cut.
#[derive(Debug)]
struct Wire {
    /// Where guests send to.
    port: u16,
    state: Arc<WireState>,
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct WireState {
    cut: AtomicBool,
    /// Datagrams that came while it was cut.
    lost: AtomicU64,
}

impl WireState {
    /// Whether what has just come is lost.
    fn loses(&self) -> bool {
        let cut = self.cut.load(Ordering::SeqCst);
        if cut {
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
        cut
    }
}

impl Wire {
    fn new() -> Self {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
        let port = socket.local_addr().expect("it is bound").port();
        let (state, closed) = (Arc::<WireState>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (state, closed) = (state.clone(), closed.clone());
            move || carry(&socket, port, &state, &closed)
        });
        Self { port, state, closed, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // So that whoever waits sees it.
        let waker =
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|waker| waker.send_to(&[], (Ipv4Addr::LOCALHOST, self.port)));
        if let (Ok(_), Some(thread)) = (waker, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// Takes what guests send until it is closed. Each client has a socket of its own towards the receiver, for as long as it is answered.
fn carry(here: &Arc<UdpSocket>, port: u16, state: &Arc<WireState>, closed: &AtomicBool) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    while let Ok((len, client)) = here.recv_from(&mut buffer) {
        if closed.load(Ordering::SeqCst) {
            break;
        }
        if state.loses() {
            continue;
        }
        clients.retain(|_, there| Arc::strong_count(there) > 1); // somebody answers
        let there = clients.entry(client).or_insert_with(|| {
            let there = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
            there.connect((RECEIVER, port)).and_then(|()| there.set_read_timeout(Some(SILENCE))).expect("a socket");
            let there = Arc::new(there);
            let (from, to, state) = (there.clone(), here.clone(), state.clone());
            std::thread::spawn(move || answer(&from, &to, client, &state));
            there
        });
        let _ = there.send(&buffer[..len]); // lost, as on a wire
    }
    for there in clients.values() {
        let _ = shutdown(there.as_raw_fd(), Shutdown::Both);
    }
}

/// Hands a client what the receiver sends it, until there is nothing any more.
fn answer(from: &UdpSocket, to: &UdpSocket, client: SocketAddr, state: &WireState) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        match from.recv(&mut buffer) {
            Ok(0) => return, // shut down: nobody sends an empty datagram
            Ok(len) if !state.loses() => drop(to.send_to(&buffer[..len], client)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            Err(_) => {} // nobody listens there just now
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 16];
        let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
        (buffer[..len].to_vec(), from)
    }

    /// What is lost in a cut never comes, in either direction: whatever is sent after it comes instead.
    #[test]
    fn datagrams_go_both_ways_unless_the_wire_is_cut() {
        let wire = Wire::new();
        let there = UdpSocket::bind((RECEIVER, wire.port)).expect("nobody else has it");
        let guest = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        guest.connect((Ipv4Addr::LOCALHOST, wire.port)).expect("a socket");
        [&there, &guest].iter().for_each(|socket| socket.set_read_timeout(Some(PATIENCE)).expect("a socket"));
        let is_lost = |datagrams: u64| {
            farside_tests::wait_for("a datagram to be lost", || {
                (wire.state.lost.load(Ordering::SeqCst) == datagrams).then_some(())
            });
        };
        guest.send(b"one").expect("sent");
        let (first, client) = receive(&there);
        assert_eq!(first, b"one");
        there.send_to(b"yes", client).expect("sent");
        assert_eq!(receive(&guest).0, b"yes");

        wire.state.cut.store(true, Ordering::SeqCst);
        guest.send(b"lost").expect("sent");
        is_lost(1);
        there.send_to(b"lost", client).expect("sent");
        is_lost(2);
        wire.state.cut.store(false, Ordering::SeqCst);
        guest.send(b"two").expect("sent");
        assert_eq!(receive(&there), (b"two".to_vec(), client));
        there.send_to(b"well", client).expect("sent");
        assert_eq!(receive(&guest).0, b"well");

        // Another guest is answered for itself.
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        other.set_read_timeout(Some(PATIENCE)).expect("a socket");
        other.send_to(b"me", (Ipv4Addr::LOCALHOST, wire.port)).expect("sent");
        let (said, second) = receive(&there);
        assert!(said == b"me" && second != client);
        there.send_to(b"you", second).expect("sent");
        assert_eq!(receive(&other).0, b"you");
    }
}
