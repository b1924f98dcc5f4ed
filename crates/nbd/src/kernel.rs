//! The kernel's own NBD client as a server's only client: `/dev/nbdN` over a volume, where the kernel has no ublk.
//!
//! A socket pair joins the two; no name in the file system, so nobody else can connect. We do the handshake in user space and
//! hand the kernel its end over generic netlink. The device carries our identifier, by which a successor finds it again.
//!
//! Invariants:
//! - A device outlives its server. Requests wait in the kernel until a successor connects it again ([`DEAD_CONNECTION`]): a
//!   restart is a pause. What was under way is sent again, so a successor serves only once its predecessor's I/O has ended
//!   (the backing's door sees to that), and a connection that broke in one life of a server is renewed only when nothing of it
//!   is under way any more.
//! - Only a device with our identifier is connected again, and only one that nobody uses is taken away.
//! - One connection, and no limit on how long a request may take: after such a limit the kernel would send a request again
//!   that is still under way here, and the late one would land on top of newer content.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::stat::Mode;
use thiserror::Error;

use crate::Handle;
use crate::client::Client;
use netlink::{Attributes, Family};

mod netlink;
mod sysfs;

/// How long requests wait in the kernel for the server of a volume to come back before they fail.
pub const DEAD_CONNECTION: Duration = Duration::from_secs(24 * 3600);
/// How often the kernel looks whether a request was sent to a connection that is gone: how long a restart takes at most for a
/// request that was under way. Otherwise it only tells its log of slow ones.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const HANDSHAKE_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// How long the kernel may need to open a device whose server is gone and that can be opened.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// Numbers of the kernel's `nbd-netlink.h`.
mod nbd {
    pub(super) const FAMILY: &str = "nbd";
    pub(super) const VERSION: u8 = 1;

    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;

    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;

    pub(super) const SOCK_ITEM: u16 = 1;
    pub(super) const SOCK_FD: u16 = 1;
}

/// Why there is no device, or why it stays.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The module is not loaded.
    #[error("the kernel's NBD client is not loaded: modprobe nbd (for every boot: echo nbd > /etc/modules-load.d/farside.conf)")]
    NoClient,
    /// It does not keep identifiers.
    #[error("this kernel's NBD client keeps no identifiers, so a restart could not find its device: Linux 5.14 is needed")]
    NoIdentifiers,
    /// A command was refused.
    #[error("the kernel's NBD client cannot {what}{}", hint(*errno))]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        #[source]
        errno: Errno,
    },
    /// Our own server did not answer the handshake.
    #[error("the server of {identifier} did not take the kernel for its client")]
    Handshake {
        /// Whose.
        identifier: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A device never shrinks under its users.
    #[error("{} has {had} bytes and its backing only {has}: unmount it, then nbd-client -d {0}", device.display())]
    Smaller {
        /// The device.
        device: PathBuf,
        /// Bytes of the device.
        had: u64,
        /// Bytes of the backing.
        has: u64,
    },
    /// A device's blocks stay as they are.
    #[error("{} has blocks of {had} bytes and its backing of {has}: unmount it, then nbd-client -d {0}", device.display())]
    Blocks {
        /// The device.
        device: PathBuf,
        /// Bytes of its blocks.
        had: u32,
        /// Bytes of the backing's.
        has: u32,
    },
    /// Somebody else serves it.
    #[error("{} is still connected to another server: end that one", device.display())]
    StillServed {
        /// The device.
        device: PathBuf,
    },
    /// It must not be taken away.
    #[error("{} is in use: unmount it, or take it out of what is built on it", device.display())]
    InUse {
        /// The device.
        device: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => ": grant CAP_SYS_ADMIN",
        _ => "",
    }
}

/// What a volume's device is to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// No other device has it; kept by the kernel while the device lives.
    pub identifier: String,
    /// Of a block in bytes: a power of two from 512 to a page.
    pub block: u32,
    /// Whether seeking costs something below.
    pub rotational: bool,
    /// How long requests wait for a server to come back, in whole seconds; they fail at once where nobody will.
    pub dead_connection: Duration,
}

/// A device that is connected to a server.
#[derive(Debug)]
pub struct KernelDevice {
    index: u32,
    was_there: bool,
    /// The server's end of the pair: it hangs up as soon as the kernel has let go of the other.
    watch: OwnedFd,
    /// Bytes; it was smaller, and its users may be there already.
    grows_to: Option<u64>,
}

/// One thing about a device that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A file in its `queue` folder.
    Queue {
        /// Of `/dev/nbdINDEX`.
        index: u32,
        /// Of the file.
        name: String,
        /// Its content.
        value: String,
    },
    /// Its size.
    Size {
        /// Of `/dev/nbdINDEX`.
        index: u32,
        /// The kernel does it to no other.
        identifier: String,
        /// New.
        bytes: u64,
    },
}

impl Setting {
    /// For the arguments of a process.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Queue { index, name, value } => vec!["queue".into(), index.to_string(), name.clone(), value.clone()],
            Self::Size { index, identifier, bytes } => {
                vec!["size".into(), index.to_string(), identifier.clone(), bytes.to_string()]
            }
        }
    }

    /// What such words mean.
    pub fn of_words(words: &[&str]) -> Option<Self> {
        let [kind, index, name, value] = *words else { return None };
        let (index, name) = (index.parse().ok()?, name.to_owned());
        match kind {
            "queue" if !name.contains('/') => Some(Self::Queue { index, name, value: value.to_owned() }),
            "size" => Some(Self::Size { index, identifier: name, bytes: value.parse().ok()? }),
            _ => None,
        }
    }

    /// Makes it so. May wait for requests of the device: call it in a process that serves none of them.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn make(&self) -> Result<(), KernelError> {
        match self {
            Self::Queue { index, name, value } => {
                sysfs::set(*index, name, value).map_err(|(path, source)| KernelError::Io { what: "write", path, source })
            }
            Self::Size { index, identifier, bytes } => {
                let attributes = Attributes::default().u32(nbd::INDEX, *index).u64(nbd::SIZE_BYTES, *bytes);
                let attributes = attributes.text(nbd::BACKEND_IDENTIFIER, identifier);
                let refused = |errno| KernelError::Refused { what: "grow a device", errno };
                speak()?.ask(nbd::RECONFIGURE, attributes).map(drop).map_err(refused)
            }
        }
    }
}

impl KernelDevice {
    /// Connects a device to a server that runs: the one with that identifier if there is one, else a new one.
    ///
    /// # Errors
    /// [`KernelError`]; a device that was there is there as it was.
    pub fn attach(spec: &Spec, server: &Handle) -> Result<Self, KernelError> {
        match Self::attach_again(spec, server)? {
            Some(device) => Ok(device),
            None => Self::connect(&mut speak()?, spec, Line::open(spec, server)?),
        }
    }

    /// `None`: there is no device with that identifier.
    fn attach_again(spec: &Spec, server: &Handle) -> Result<Option<Self>, KernelError> {
        let mut family = speak()?;
        let began = Instant::now();
        loop {
            let shown = sysfs::find(&spec.identifier);
            let shown = shown.map_err(|source| KernelError::Io { what: "look at", path: "/sys/block".into(), source })?;
            let Some(shown) = shown else { return Ok(None) };
            let line = Line::open(spec, server)?;
            let device = path_of(shown.index);
            if shown.bytes > line.bytes {
                return Err(KernelError::Smaller { device, had: shown.bytes, has: line.bytes });
            }
            if shown.block != spec.block {
                return Err(KernelError::Blocks { device, had: shown.block, has: spec.block });
            }
            if let Some(device) = Self::reconnect(&mut family, spec, &shown, line)? {
                return Ok(Some(device));
            }
            // The predecessor's end is closed with its process; the kernel hears of it a moment later.
            if began.elapsed() > HANDSHAKE_MAX {
                return Err(KernelError::StillServed { device });
            }
            std::thread::sleep(POLL);
        }
    }

    fn connect(family: &mut Family, spec: &Spec, line: Line) -> Result<Self, KernelError> {
        let attributes = line.attributes(spec).u64(nbd::BLOCK_SIZE_BYTES, u64::from(spec.block)).u64(nbd::SIZE_BYTES, line.bytes);
        let refused = |errno| KernelError::Refused { what: "connect a device", errno };
        let answer = family.ask(nbd::CONNECT, attributes).map_err(refused)?;
        let index = netlink::find(&answer, nbd::INDEX).and_then(|value| value.first_chunk());
        let index = u32::from_ne_bytes(*index.ok_or_else(|| refused(Errno::EPROTO))?);
        if !sysfs::keeps_identifiers(index) {
            let _ = family.ask(nbd::DISCONNECT, Attributes::default().u32(nbd::INDEX, index)); // nobody knows it yet
            return Err(KernelError::NoIdentifiers);
        }
        Ok(Self { index, was_there: false, watch: line.watch, grows_to: None })
    }

    /// `None`: the kernel still has a connection of which it does not know that it is dead.
    fn reconnect(family: &mut Family, spec: &Spec, shown: &sysfs::Shown, line: Line) -> Result<Option<Self>, KernelError> {
        // † Without a size: from 6.9 on the kernel waits for the requests of the old connection before it sets another one, and
        // they can only end over the new one.
        let attributes = line.attributes(spec).u32(nbd::INDEX, shown.index);
        let refused = |errno| KernelError::Refused { what: "connect a device again", errno };
        family.ask(nbd::RECONFIGURE, attributes).map_err(refused)?;
        let Line { kernel, watch, bytes, .. } = line;
        drop(kernel);
        // It answers the same whether it took the socket or not. If it did not, ours was the last descriptor.
        let grows_to = (bytes > shown.bytes).then_some(bytes);
        let device = Self { index: shown.index, was_there: true, watch, grows_to };
        Ok(Some(device).filter(|device| !device.is_lost()))
    }

    /// What is not yet as it should be, and could not be said before. To make it so waits for requests that the server must
    /// answer, on kernels from 6.9 on: never in a thread of the server's process, which could not end then.
    /// Without it a restart takes longer for what was under way (30 s), and the device stays as small as it was.
    pub fn unsettled(&self, spec: &Spec) -> Vec<Setting> {
        let rotational = if spec.rotational { "1" } else { "0" }.to_owned();
        let wanted = [("io_timeout", LOOK_AGAIN.as_millis().to_string()), ("rotational", rotational)];
        let differs = |(name, value): &(&str, String)| sysfs::setting(self.index, name).as_ref() != Some(value);
        let settings = wanted.into_iter().filter(differs);
        let settings = settings.map(|(name, value)| Setting::Queue { index: self.index, name: name.to_owned(), value });
        let size = self.grows_to.map(|bytes| Setting::Size { index: self.index, identifier: spec.identifier.clone(), bytes });
        settings.chain(size).collect()
    }

    /// Its node.
    pub fn path(&self) -> PathBuf {
        path_of(self.index)
    }

    /// Whether it was there before, and may have users that wait.
    pub fn was_there(&self) -> bool {
        self.was_there
    }

    /// Whether the connection is over.
    fn is_lost(&self) -> bool {
        let mut fds = [PollFd::new(self.watch.as_fd(), PollFlags::empty())];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
    }

    /// Keeps it connected to the server, on a thread of its own, until [`Keeper::stop`]. `report` is told when it cannot.
    ///
    /// # Errors
    /// When there is no thread, or no descriptor to stop it with.
    pub fn keep(self, spec: Spec, server: Handle, report: impl Fn(Lost) + Send + 'static) -> io::Result<Keeper> {
        let orders = Arc::new(Orders { stop: EventFd::new()?, leaving: AtomicBool::new(false) });
        let (path, index) = (self.path(), self.index);
        let thread = std::thread::Builder::new().name("nbd-device".into()).spawn({
            let orders = orders.clone();
            move || {
                if let Err(lost) = keep(self, &spec, &server, &orders) {
                    report(lost);
                }
            }
        })?;
        Ok(Keeper { path, index, orders, thread: Some(thread) })
    }
}

/// Whether the kernel has a client to attach.
///
/// # Errors
/// [`KernelError::NoClient`], with the remedy.
pub fn probe() -> Result<(), KernelError> {
    speak().map(drop)
}

/// The identifiers of the connected devices that have one.
///
/// # Errors
/// [`KernelError`].
pub fn identifiers() -> Result<Vec<String>, KernelError> {
    Ok(all()?.into_iter().map(|(_, identifier)| identifier).collect())
}

fn all() -> Result<Vec<(u32, String)>, KernelError> {
    sysfs::all().map_err(|source| KernelError::Io { what: "look at", path: "/sys/block".into(), source })
}

/// Disconnects the devices with these identifiers, whose servers are gone, from whoever uses them: what they ask of these fails already, or waits for
/// ever. Gives their nodes.
///
/// † Opens none of them: who opens a device reads its partition table first, all others wait for that, and what a server was asked before it was killed nobody
/// answers until the device is disconnected.
///
/// # Errors
/// What the kernel says.
pub fn disconnect_left(identifiers: &[String]) -> Result<Vec<PathBuf>, KernelError> {
    let looking = |source| KernelError::Io { what: "look at", path: "/sys/block".into(), source };
    let mut gone = Vec::new();
    for identifier in identifiers {
        let Some(shown) = sysfs::find(identifier).map_err(looking)? else { continue };
        ask_to_disconnect(shown.index)?;
        gone.push(path_of(shown.index));
    }
    Ok(gone)
}

/// Disconnects the device with this identifier, whose server is gone, if there is one and nobody uses it. Gives its node. May wait for
/// the device: not to be called by the process that is to serve it.
///
/// `is_free`: † whether nobody has it open without a claim, as virtual machines and databases do, and nothing is mounted from it or
/// built on it, for a device that cannot be opened cannot be claimed.
///
/// # Errors
/// [`KernelError::InUse`], and what the kernel says.
pub fn disconnect(identifier: &str, is_free: impl FnOnce(&Path) -> bool) -> Result<Option<PathBuf>, KernelError> {
    let found =
        sysfs::find(identifier).map_err(|source| KernelError::Io { what: "look at", path: "/sys/block".into(), source })?;
    let Some(shown) = found else { return Ok(None) };
    let device = path_of(shown.index);
    let _claim = claim_of_the_dead(&device)?;
    if !is_free(&device) {
        return Err(KernelError::InUse { device });
    }
    ask_to_disconnect(shown.index)?;
    Ok(Some(device))
}

/// `None`: it cannot be opened. † Whoever opens a device first reads its partition table, and all others wait for him: if its server is
/// gone, until the device is disconnected. Who has claimed it the kernel finds before it waits, and refuses us; but that it was not
/// refused in time proves nothing.
fn claim_of_the_dead(device: &Path) -> Result<Option<Claim>, KernelError> {
    let failed = |source| KernelError::Io { what: "open", path: device.to_owned(), source };
    let (claimed, claim_now) = std::sync::mpsc::channel();
    let path = device.to_owned();
    let waits = std::thread::Builder::new().name("nbd-claim".into());
    waits.spawn(move || claimed.send(claim(&path))).map_err(failed)?;
    match claim_now.recv_timeout(OPEN_MAX) {
        Ok(claim) => claim.map(Some),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(failed(io::Error::other("its thread has ended"))),
    }
}

fn ask_to_disconnect(index: u32) -> Result<(), KernelError> {
    let refused = |errno| KernelError::Refused { what: "disconnect a device", errno };
    speak()?.ask(nbd::DISCONNECT, Attributes::default().u32(nbd::INDEX, index)).map(drop).map_err(refused)
}

/// Claims a device exclusively, if nobody uses it. Opens it: not for a process that serves it, unless one of another has done so before.
///
/// # Errors
/// [`KernelError::InUse`].
pub fn claim(device: &Path) -> Result<Claim, KernelError> {
    let flags = OFlag::O_RDWR | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    match nix::fcntl::open(device, flags, Mode::empty()) {
        Ok(fd) => Ok(Claim { _fd: fd, device: device.to_owned() }),
        Err(Errno::EBUSY) => Err(KernelError::InUse { device: device.to_owned() }),
        Err(errno) => Err(KernelError::Io { what: "open", path: device.to_owned(), source: errno.into() }),
    }
}

fn speak() -> Result<Family, KernelError> {
    Family::open(nbd::FAMILY, nbd::VERSION).map_err(|errno| match errno {
        Errno::ENOENT => KernelError::NoClient,
        errno => KernelError::Refused { what: "be spoken to", errno },
    })
}

fn path_of(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

/// Why a device is not served any more.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Lost {
    /// Somebody disconnected it.
    #[error("{} was disconnected by somebody else (nbd-client -d?)", .0.display())]
    Disconnected(PathBuf),
    /// Its connection broke and cannot be renewed.
    #[error("the connection of {} broke and cannot be renewed", .0.display())]
    Broken(PathBuf, #[source] KernelError),
}

/// Both ends of a new connection, the handshake done.
struct Line {
    kernel: OwnedFd,
    watch: OwnedFd,
    bytes: u64,
    flags: u16,
}

impl Line {
    fn open(spec: &Spec, server: &Handle) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Handshake { identifier: spec.identifier.clone(), source };
        let open = || {
            let (kernel, ours) = UnixStream::pair()?;
            let watch = OwnedFd::from(ours.try_clone()?);
            server.adopt(ours.into());
            kernel.set_read_timeout(Some(HANDSHAKE_MAX))?;
            kernel.set_write_timeout(Some(HANDSHAKE_MAX))?;
            let client = Client::over(kernel, "")?;
            client.set_timeout(None)?; // the kernel would inherit it
            let (bytes, flags) = (client.size(), client.flags());
            Ok(Self { kernel: client.into_socket().into(), watch, bytes, flags })
        };
        open().map_err(failed)
    }

    fn attributes(&self, spec: &Spec) -> Attributes {
        let socket = Attributes::default().u32(nbd::SOCK_FD, self.kernel.as_raw_fd() as u32);
        Attributes::default()
            .u64(nbd::SERVER_FLAGS, u64::from(self.flags))
            .u64(nbd::DEAD_CONN_TIMEOUT, spec.dead_connection.as_secs())
            .text(nbd::BACKEND_IDENTIFIER, &spec.identifier)
            .nested(nbd::SOCKETS, Attributes::default().nested(nbd::SOCK_ITEM, socket))
    }
}

/// What the thread is told.
#[derive(Debug)]
struct Orders {
    stop: EventFd,
    /// A disconnection is ours.
    leaving: AtomicBool,
}

/// Waits for the connection to break and renews it. Ends well when it is told to stop.
fn keep(mut device: KernelDevice, spec: &Spec, server: &Handle, orders: &Orders) -> Result<(), Lost> {
    let is_told = || {
        let mut stop = [PollFd::new(orders.stop.as_fd(), PollFlags::POLLIN)];
        let is_stopped = poll(&mut stop, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        is_stopped || server.is_stopping() || orders.leaving.load(Ordering::SeqCst)
    };
    loop {
        let mut fds =
            [PollFd::new(device.watch.as_fd(), PollFlags::empty()), PollFd::new(orders.stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            polled => polled.expect("two open descriptors can be polled"),
        };
        if is_told() {
            return Ok(());
        }
        if !sysfs::is_connected(device.index) {
            return Err(Lost::Disconnected(device.path()));
        }
        // What the old connection brought is sent again over the new one: it must have landed by then.
        while server.counters().connections.load(Ordering::SeqCst) > 0 {
            // † Somebody else may be on the server's socket, for as long as he likes.
            if is_told() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        let path = device.path();
        tracing::warn!(device = %path.display(), "the kernel's connection broke: connecting it again");
        // † The connection of a device that somebody disconnects breaks a moment before it has gone: a new one would be another.
        let again = KernelDevice::attach_again(spec, server).map_err(|error| Lost::Broken(path.clone(), error))?;
        device = again.ok_or(Lost::Disconnected(path))?;
    }
}

/// Keeps a device connected.
pub struct Keeper {
    path: PathBuf,
    index: u32,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps it no longer: when its server ends, requests wait for a successor.
    pub fn stop(&mut self) {
        let _ = self.orders.stop.write(1); // full: it was told often enough
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Claims the device exclusively, if nobody uses it: no file system, no device built on it, no other owner.
    ///
    /// # Errors
    /// [`KernelError::InUse`].
    pub fn claim(&self) -> Result<Claim, KernelError> {
        claim(&self.path)
    }

    /// Takes the device away. What its page cache holds is lost: have it written before, by a process that does not serve it.
    ///
    /// # Errors
    /// [`KernelError`]: it is there, and kept.
    pub fn detach(self, claim: Claim) -> Result<(), (Self, KernelError)> {
        self.leave(Some(claim))
    }

    /// Takes the device away from whoever uses it: what they ask of it fails from now on, and the node is free when they are gone.
    ///
    /// # Errors
    /// [`KernelError`]: it is there, and kept.
    pub fn tear_away(self) -> Result<(), (Self, KernelError)> {
        self.leave(None)
    }

    fn leave(mut self, claim: Option<Claim>) -> Result<(), (Self, KernelError)> {
        self.orders.leaving.store(true, Ordering::SeqCst);
        match ask_to_disconnect(self.index) {
            Ok(()) => {
                drop(claim);
                self.stop();
                Ok(())
            }
            Err(error) => {
                self.orders.leaving.store(false, Ordering::SeqCst);
                Err((self, error))
            }
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Nobody else can mount a device or build on it meanwhile.
#[derive(Debug)]
pub struct Claim {
    _fd: OwnedFd,
    device: PathBuf,
}

impl Claim {
    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.device
    }
}
