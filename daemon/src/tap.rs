//! How a host reaches its volume. What differs from tap to tap is here; the rest of the daemon knows [`TapConfig`], which is
//! configured, `Prepared`, which holds what may fail before the volume is `attached`, and `Handle`, which is running.
//!
//! | Tap | The host's side | When the daemon stops or dies |
//! |---|---|---|
//! | `ublk` | a block device, `/dev/farside/NAME` | requests wait for the next daemon |
//! | `nbd-device` | the same, through the kernel's NBD client | requests wait for the next daemon, for up to 24 hours |
//! | `nbd` | a socket for NBD clients | connections end |
//!
//! Invariant: a tap feeds its requests to a [`BlockQueue`] of the volume on the thread that calls `Tap::run`, and to nobody else.
//! It deliberately does not know what the queue does with them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use farside_blockio::dm::DevNumber;
use farside_blockio::{Abandoned, BlockQueue, FileDevice, OpenOptions, RingError, Waker, living_openers, open_still, openers};
use farside_insert::stack;
use farside_nbd::ServeError;
use farside_nbd::kernel::{Claim, Keeper, KernelDevice};
use farside_region::{Name, VolumeId};
use farside_ublk::{Broken, Choice, Held, Kernel, Spec};
use tracing::{error, info, warn};

use crate::boot::{self, Backings, unserved};
use crate::change::{self, Change};
use crate::channel::{Receiver, Sender, channel};
use crate::config::{DataPath, LimitsConfig, RUN_DIR, VolumeConfig, write_atomically};
use crate::node::Place;
use crate::showing::{FirstWrite, Showing};
use crate::volume::Surroundings;
use crate::{backing, locked, node};

/// `tap` of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapConfig {
    /// A Unix socket on which NBD clients find it.
    Nbd {
        /// The socket.
        socket: PathBuf,
    },
    /// A block device of the kernel's own NBD client, `/dev/farside/NAME`.
    NbdDevice,
    /// A block device of the kernel's ublk driver, `/dev/farside/NAME`.
    Ublk,
}

const NBD_DEVICE: &str = "nbd-device";
const UBLK: &str = "ublk";
/// The name of a volume's ublk device for the kernel, in the volume's folder: there before the device is, gone with the folder. † Without it nobody
/// finds that device again, and its users wait for ever beside those of a second one.
const TOKEN_FILE: &str = "ublk";
/// The longest read or write of a ublk device. That times the depth is what its buffers may grow to; pages that no request
/// needed are never touched.
const UBLK_IO_BYTES: u32 = 512 << 10;
/// How long a device that an earlier daemon left may take to end. Less than a boot waits for one disk
/// ([`crate::boot::unserved`]).
const END_WAIT: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(20);
const IDENTIFIER: &str = "farside:";

/// The longest path of a tap: a Unix socket's has 107 bytes, and it is made as `PATH.new` first.
pub(crate) const SOCKET_PATH_MAX: usize = 103;

impl TapConfig {
    /// As written: `ublk`, `nbd-device`, `nbd`, which is the socket `default_socket`, or `nbd:unix:PATH`.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn parse(text: &str, default_socket: PathBuf) -> Result<Self, String> {
        let socket = match text {
            NBD_DEVICE => return Ok(Self::NbdDevice),
            UBLK => return Ok(Self::Ublk),
            "nbd" => Some(default_socket),
            _ => text.strip_prefix("nbd:unix:").map(PathBuf::from),
        };
        let socket = socket.filter(|path| path.is_absolute());
        let socket =
            socket.ok_or_else(|| format!("`{text}` is not a tap: use ublk, nbd-device, nbd or nbd:unix:/absolute/path"))?;
        match socket.as_os_str().len() {
            0..=SOCKET_PATH_MAX => Ok(Self::Nbd { socket }),
            long => Err(format!("the tap's path has {long} bytes; a Unix socket's may have {SOCKET_PATH_MAX} here")),
        }
    }

    /// What a new volume has when nobody says: a block device for a block device, by the best way that this kernel has.
    pub fn choose(backing: &Path, accepted_faults: &[String]) -> &'static str {
        let is_device = std::fs::metadata(backing).is_ok_and(|metadata| metadata.file_type().is_block_device());
        match is_device {
            true if Kernel::running().and_then(|kernel| kernel.allows(accepted_faults)).is_ok() => UBLK,
            true if farside_nbd::kernel::probe().is_ok() => NBD_DEVICE,
            _ => "nbd",
        }
    }

    /// Whether both would claim the same name on this host.
    pub fn collides(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Nbd { socket }, Self::Nbd { socket: other }) if socket == other)
    }

    /// Whether the host sees a block device.
    pub(crate) fn is_device(&self) -> bool {
        match self {
            Self::Nbd { .. } => false,
            Self::NbdDevice | Self::Ublk => true,
        }
    }

    /// Where the host finds a volume.
    pub(crate) fn address(&self, volume: &Name) -> String {
        match self {
            Self::Nbd { .. } => self.to_string(),
            Self::NbdDevice | Self::Ublk => node::path(volume).display().to_string(),
        }
    }
}

/// As [`TapConfig::parse`] takes it.
impl fmt::Display for TapConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd { socket } => write!(f, "nbd:unix:{}", socket.display()),
            Self::NbdDevice => f.write_str(NBD_DEVICE),
            Self::Ublk => f.write_str(UBLK),
        }
    }
}

/// A tap for which everything is there that can be missing for a reason that a person mends. Nothing is served yet.
#[derive(Debug)]
pub(crate) enum Prepared {
    Nbd(farside_nbd::Listener),
    NbdDevice { runtime_dir: PathBuf },
    Ublk { device: Box<farside_ublk::Device>, runtime_dir: PathBuf },
}

impl Prepared {
    /// Prepares the tap of a volume with this folder. The volume's locks are ours already.
    ///
    /// # Errors
    /// What is missing, with the remedy.
    pub(crate) fn new(
        config: &VolumeConfig,
        dir: &Path,
        id: VolumeId,
        backing: &FileDevice,
        around: &Surroundings,
    ) -> anyhow::Result<Self> {
        // It was another before: who still uses that device would wait for ever, beside those who use this one.
        if config.tap != TapConfig::Ublk {
            abolish_ublk(dir, &around.runtime_dir)?;
        }
        if config.tap != TapConfig::NbdDevice {
            abolish_nbd(id, &around.runtime_dir)?;
        }
        match &config.tap {
            TapConfig::Ublk => {
                let spec = Spec {
                    token: token(dir)?,
                    queues: queues(config.queues),
                    depth: depth(&around.limits) as u16,
                    io_bytes_max: UBLK_IO_BYTES,
                    slots: None,
                    copied: config.data_path == DataPath::Copy,
                    accepted_faults: around.accepted_faults.clone(),
                };
                let device = farside_ublk::Device::claim(&spec, backing)?;
                let Choice { path, why } = device.data_path();
                info!(volume = %config.name, queues = device.queues(), data_path = path.as_str(), "{why}");
                Ok(Self::Ublk { device: Box::new(device), runtime_dir: around.runtime_dir.clone() })
            }
            TapConfig::Nbd { socket } => Ok(Self::Nbd(listen(socket, around)?)),
            TapConfig::NbdDevice => {
                farside_nbd::kernel::probe()?;
                Ok(Self::NbdDevice { runtime_dir: around.runtime_dir.clone() })
            }
        }
    }

    /// How many queues it feeds, each on a thread of its own.
    pub(crate) fn queues(&self) -> usize {
        match self {
            Self::Nbd(_) | Self::NbdDevice { .. } => 1,
            Self::Ublk { device, .. } => device.queues().into(),
        }
    }

    /// Whether all its requests come from one client, the kernel, whatever their queue.
    pub(crate) fn has_one_client(&self) -> bool {
        matches!(self, Self::Ublk { .. })
    }

    /// The tap of each queue, and what other threads hold of them. The wakers, one for each, are those through which a queue's
    /// parked requests are tried again.
    pub(crate) fn ready(self, name: &Name, limits: &LimitsConfig, wakers: Vec<Waker>) -> (Vec<Tap>, Handle) {
        let serve = |listener: Option<_>| {
            let waker = wakers[0].clone();
            let description = "a volume protected by Farside";
            let (server, handle) = farside_nbd::Server::new(listener, name.as_str(), description, nbd_limits(limits), waker);
            (vec![Tap::Nbd(server)], handle)
        };
        match self {
            Self::Nbd(listener) => {
                let (taps, server) = serve(Some(listener));
                (taps, Handle::Nbd(server))
            }
            Self::NbdDevice { runtime_dir } => {
                let (taps, server) = serve(None);
                (taps, Handle::NbdDevice { server, keeper: Arc::default(), runtime_dir, showing: Showing::new() })
            }
            Self::Ublk { device, runtime_dir } => {
                let path = device.path();
                let (token, data_path, queues) = (device.token(), Arc::new(device.data_path().clone()), device.queues());
                let (can_grow, is_small) = (device.can_grow(), device.is_small());
                let (servers, handle) = device.servers(wakers);
                let (ready, is_ready) = channel();
                let waiting = Arc::new(Mutex::new(Some((device, is_ready))));
                let taps = servers.into_iter().map(|server| Tap::Ublk(server, ready.clone())).collect();
                let withdrawn = Arc::default();
                let handle = Handle::Ublk {
                    server: handle,
                    path,
                    token,
                    data_path,
                    queues,
                    can_grow,
                    is_small,
                    waiting,
                    withdrawn,
                    runtime_dir,
                    showing: Showing::new(),
                };
                (taps, handle)
            }
        }
    }
}

/// A tap that is about to serve a queue.
#[derive(Debug)]
pub(crate) enum Tap {
    Nbd(farside_nbd::Server),
    Ublk(farside_ublk::Server, Sender<()>),
}

impl Tap {
    /// Serves the queue on this thread until the tap is stopped, or its device has gone. Gives what must be closed
    /// before another tap of this process can serve the device.
    ///
    /// # Errors
    /// Why it ended otherwise, or never began.
    pub(crate) fn run<Q: BlockQueue>(self, queue: Q) -> Result<Option<Abandoned>, Ended> {
        match self {
            Self::Nbd(server) => server.run(queue).map(|_| None).map_err(|error| Ended {
                under_way: matches!(error, ServeError::Ring(RingError::Io { .. })),
                why: error.into(),
                abandoned: None,
            }),
            Self::Ublk(server, ready) => {
                let mut under_way = false;
                let served = server.run(queue, || {
                    under_way = true;
                    let _ = ready.send(()); // whoever opened it may have given up
                });
                served.map_err(|Broken { why, abandoned }| Ended { under_way, why: why.into(), abandoned })
            }
        }
    }
}

/// Why a tap serves a queue no more.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) why: anyhow::Error,
    /// Whether there may be requests which nobody in this process can answer or give to another any more; otherwise nothing was
    /// served.
    pub(crate) under_way: bool,
    /// As with [`Tap::run`].
    pub(crate) abandoned: Option<Box<Abandoned>>,
}

/// What other threads hold of a tap.
#[derive(Clone, Debug)]
pub(crate) enum Handle {
    Nbd(farside_nbd::Handle),
    NbdDevice {
        server: farside_nbd::Handle,
        /// Of the device, once it is there.
        keeper: Arc<Mutex<Option<Keeper>>>,
        /// For who waits for the device.
        runtime_dir: PathBuf,
        showing: Showing,
    },
    Ublk {
        server: farside_ublk::Handle,
        /// The device's node.
        path: PathBuf,
        token: u64,
        data_path: Arc<Choice>,
        queues: u16,
        /// While it is used.
        can_grow: bool,
        /// It was made for a smaller volume, and stays so.
        is_small: bool,
        /// Until the device appears; told when the kernel will not wait for its server.
        waiting: Arc<Mutex<Option<Waiting>>>,
        /// It ends because we end the device.
        withdrawn: Arc<AtomicBool>,
        /// For who waits for the device.
        runtime_dir: PathBuf,
        showing: Showing,
    },
}

type Waiting = (Box<farside_ublk::Device>, Receiver<()>);

/// A device that nobody uses, and nobody can begin to use before this is dropped. Taps without a device have nothing to claim.
#[derive(Debug)]
pub(crate) enum Unused {
    Nothing,
    Nbd(Claim),
    Ublk(Box<Held>),
    /// It stays, for this reason, although its volume leaves.
    Left(anyhow::Error),
}

/// What passes through a tap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Who uses it now.
    pub(crate) clients: u32,
    /// Requests not answered yet.
    pub(crate) in_flight: u64,
    /// Requests taken since it began.
    pub(crate) requests: u64,
}

/// What it takes that the users of a tap see a larger volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The volume is closed and opened again; they wait meanwhile, as at a restart of the daemon.
    Takeover,
    /// A device made anew, which nobody may use meanwhile.
    NewDevice,
    /// A connection made anew, which is theirs.
    NextStart,
}

impl Handle {
    /// Shows the volume to the host as a device, if that is its tap's kind, or as the one that a predecessor left and whose
    /// requests wait. Its queue runs already. Gives the device's node. `lost` is told when the device is not served any more.
    /// `first` gets the node of a device that was made now, before anybody knows whose it is, and gives what must end before anybody
    /// does.
    ///
    /// # Errors
    /// Why there is no device, with the remedy.
    pub(crate) fn appear(
        &self,
        (name, id): (&Name, VolumeId),
        device: &FileDevice,
        place: Place,
        lost: impl Fn(String) + Send + 'static,
        first: impl FnOnce(&Path) -> Option<FirstWrite>,
    ) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Self::Nbd(_) => Ok(None),
            Self::NbdDevice { server, keeper, runtime_dir, showing } => {
                let rotational = backing::is_rotational(device);
                let identifier = identifier_of(id);
                let (block, dead_connection) = (device.block_min(), farside_nbd::kernel::DEAD_CONNECTION);
                if let Some(stray) = locked(&STRAYS).remove(&identifier).as_deref() {
                    *locked(stray) = Stray::ServedAgain; // waits for a helper that is about it
                }
                let spec = farside_nbd::kernel::Spec { identifier, block, rotational, dead_connection };
                let shown = KernelDevice::attach(&spec, server)?;
                let (path, was_there, unsettled) = (shown.path(), shown.was_there(), shown.unsettled(&spec));
                let kept = shown.keep(spec, server.clone(), move |why| lost(format!("{:#}", anyhow::Error::from(why))));
                *locked(keeper) = Some(kept.context("no thread for the device")?);
                for setting in unsettled {
                    let made = Change::Settle(setting).make(runtime_dir);
                    made.map(drop).unwrap_or_else(|error| warn!(volume = %name, device = %path.display(), "{error:#}"));
                }
                let first = if was_there { left_in(name, &path, runtime_dir) } else { before_it_is_shown(name, &path, first) };
                if let Err(error) = show(showing, name, &path, place, first) {
                    let _ = self.claim().and_then(|unused| self.withdraw(name, unused)); // in use: a predecessor's
                    return Err(error).with_context(|| format!("cannot make {}", node::path(name).display()));
                }
                Ok(Some(path))
            }
            Self::Ublk { waiting, runtime_dir, showing, .. } => {
                let (device, ready) = locked(waiting).take().expect("a tap appears once");
                for _ in 0..device.queues() {
                    ready.recv().context("the device cannot be served; the daemon's log says why")?;
                }
                let (path, was_there) = (device.path(), device.was_there());
                let left = if was_there { left_in(name, &path, runtime_dir) } else { None };
                // Nobody is to look at a new one before it is known to see what is written.
                let shown = (was_there && left.is_none()).then_some(place);
                node::announce(name, &path, shown);
                device.go_live()?;
                let first = if was_there { left } else { before_it_is_shown(name, &path, first) };
                if was_there {
                    info!(volume = %name, device = %path.display(), "taken over: what waited in it goes on");
                }
                show(showing, name, &path, place, first)
                    .with_context(|| format!("cannot make {}", node::path(name).display()))?;
                Ok(Some(path))
            }
        }
    }

    /// Claims the volume's device before the volume leaves. Waits for the device.
    ///
    /// # Errors
    /// When somebody uses it.
    pub(crate) fn claim(&self) -> anyhow::Result<Unused> {
        match self {
            Self::Nbd(_) => Ok(Unused::Nothing),
            Self::NbdDevice { keeper, runtime_dir, .. } => {
                let tap = locked(keeper).as_ref().map(|kept| kept.path().to_owned());
                // The kernel may read a device when it is opened for the first time: not by us.
                tap.map(|tap| Change::Sync { tap }.make(runtime_dir)).transpose()?;
                let claim = locked(keeper).as_ref().map(Keeper::claim).transpose()?;
                let Some(claim) = claim else { return Ok(Unused::Nothing) };
                opened_by_nobody(claim.path())?;
                Ok(Unused::Nbd(claim))
            }
            Self::Ublk { path, token, runtime_dir, waiting, .. } => {
                // Before it appears nobody writes to it, nor after somebody else has ended it.
                if locked(waiting).is_none() && path.exists() {
                    Change::Sync { tap: path.clone() }.make(runtime_dir)?;
                }
                let Some(held) = farside_ublk::held(*token)? else { return Ok(Unused::Nothing) };
                opened_by_nobody(path)?;
                Ok(Unused::Ublk(Box::new(held)))
            }
        }
    }

    /// Takes a claimed device away from the host. Its tap serves still. Waits for the device.
    ///
    /// # Errors
    /// When it is still there.
    pub(crate) fn withdraw(&self, name: &Name, unused: Unused) -> anyhow::Result<()> {
        match (self, unused) {
            (Self::NbdDevice { keeper, runtime_dir, .. }, Unused::Nbd(claim)) => {
                let tap = locked(keeper).as_ref().map(|kept| kept.path().to_owned());
                tap.into_iter().for_each(|tap| sync(name, tap, runtime_dir));
                let mut keeper = locked(keeper);
                if let Some(kept) = keeper.take()
                    && let Err((kept, error)) = kept.detach(claim)
                {
                    *keeper = Some(kept);
                    return Err(error.into());
                }
            }
            (Self::Ublk { path, runtime_dir, waiting, withdrawn, .. }, Unused::Ublk(held)) => {
                if locked(waiting).is_none() {
                    sync(name, path.clone(), runtime_dir);
                }
                withdrawn.store(true, Ordering::SeqCst);
                held.remove().inspect_err(|_| withdrawn.store(false, Ordering::SeqCst))?;
            }
            (_, Unused::Left(why)) => return Err(why),
            _ => return Ok(()),
        }
        self.showing().into_iter().for_each(Showing::give_up);
        node::withdraw(name);
        Ok(())
    }

    fn showing(&self) -> Option<&Showing> {
        match self {
            Self::Nbd(_) => None,
            Self::NbdDevice { showing, .. } | Self::Ublk { showing, .. } => Some(showing),
        }
    }

    /// Why the host does not find its device, if it does not.
    pub(crate) fn lacks_its_name(&self) -> Option<String> {
        self.showing()?.lacks()
    }

    /// No new request: what has been taken is finished and answered, then [`Tap::run`] returns.
    pub(crate) fn stop(&self) {
        self.showing().into_iter().for_each(Showing::give_up);
        match self {
            Self::Nbd(server) | Self::NbdDevice { server, .. } => server.stop(),
            Self::Ublk { server, .. } => server.stop(),
        }
    }

    /// Whether [`Handle::stop`] was called.
    pub(crate) fn is_stopping(&self) -> bool {
        match self {
            Self::Nbd(server) | Self::NbdDevice { server, .. } => server.is_stopping(),
            Self::Ublk { server, .. } => server.is_stopping(),
        }
    }

    /// Whether its end is our own doing: it was stopped, or its device taken away.
    pub(crate) fn is_meant_to_end(&self) -> bool {
        let is_withdrawn = matches!(self, Self::Ublk { withdrawn, .. } if withdrawn.load(Ordering::SeqCst));
        is_withdrawn || self.is_stopping()
    }

    /// Has the queues look at what is parked, and at what they were ordered.
    pub(crate) fn wake(&self) {
        match self {
            Self::Nbd(server) | Self::NbdDevice { server, .. } => server.waker().wake(),
            Self::Ublk { server, .. } => server.wake(),
        }
    }

    /// What passes through it.
    pub(crate) fn load(&self) -> Load {
        match self {
            Self::Nbd(server) | Self::NbdDevice { server, .. } => {
                let counters = server.counters();
                Load {
                    clients: counters.connections.load(Ordering::Relaxed) as u32,
                    in_flight: counters.jobs.load(Ordering::Relaxed),
                    requests: counters.commands.load(Ordering::Relaxed),
                }
            }
            Self::Ublk { server, .. } => {
                let counters = server.counters();
                Load {
                    clients: 1, // the kernel
                    in_flight: counters.in_flight.load(Ordering::Relaxed),
                    requests: counters.requests.load(Ordering::Relaxed),
                }
            }
        }
    }

    /// How the data of its requests comes and goes, and why; `None`: through a socket.
    pub(crate) fn data_path(&self) -> Option<&Choice> {
        match self {
            Self::Nbd(_) | Self::NbdDevice { .. } => None,
            Self::Ublk { data_path, .. } => Some(data_path),
        }
    }

    /// How many queues a device of ublk's has.
    pub(crate) fn queues(&self) -> Option<u16> {
        match self {
            Self::Nbd(_) | Self::NbdDevice { .. } => None,
            Self::Ublk { queues, .. } => Some(*queues),
        }
    }

    /// Requests that were copied although they need not have been.
    pub(crate) fn copied(&self) -> u64 {
        match self {
            Self::Nbd(_) | Self::NbdDevice { .. } => 0,
            Self::Ublk { server, .. } => server.counters().copied.load(Ordering::Relaxed),
        }
    }

    /// What it takes that the host sees a larger volume.
    pub(crate) fn way_to_grow(&self) -> Way {
        match self {
            Self::Nbd(_) => Way::NextStart,
            Self::Ublk { can_grow: false, .. } => Way::NewDevice,
            Self::NbdDevice { .. } | Self::Ublk { .. } => Way::Takeover,
        }
    }

    /// Whether the host sees less than the volume.
    pub(crate) fn is_small(&self) -> bool {
        matches!(self, Self::Ublk { is_small: true, .. })
    }

    /// Whether the host waits, from [`Handle::stop`] on, until the next daemon serves it: then nothing else may be waited for.
    pub(crate) fn leaves_its_host_waiting(&self) -> bool {
        !matches!(self, Self::Nbd(_))
    }
}

/// Has a helper write what a device's page cache holds. A disk that refuses that keeps no device from going.
/// What a predecessor may have left in its device, and nobody is to come before.
fn left_in(name: &Name, device: &Path, runtime_dir: &Path) -> Option<FirstWrite> {
    // One that was shown has had its first write.
    if node::is_shown(name, device) { None } else { FirstWrite::left(runtime_dir, device) }
}

/// Gives `first` a device that was made now.
fn before_it_is_shown(name: &Name, device: &Path, first: impl FnOnce(&Path) -> Option<FirstWrite>) -> Option<FirstWrite> {
    node::withdraw_link(name); // of a device before it, which may have had the same number
    first(device)
}

fn show(showing: &Showing, name: &Name, device: &Path, place: Place, first: Option<FirstWrite>) -> io::Result<()> {
    if first.is_some() {
        warn!(volume = %name, device = %device.display(), "its first write has not ended: it is not shown before that");
    }
    let (name, device) = (name.clone(), device.to_owned());
    showing.show(first, move || node::publish(&name, &device, place))
}

fn sync(volume: &Name, tap: PathBuf, runtime_dir: &Path) {
    if let Err(error) = (Change::Sync { tap }).make(runtime_dir) {
        error!(%volume, "{error:#}");
    }
}

/// A claim of the kernel's is granted beside whoever has a device open without one: a virtual machine, a database, the kernel's
/// own loop devices and targets.
pub(crate) fn opened_by_nobody(device: &Path) -> anyhow::Result<()> {
    opened_by(device, openers)
}

/// The same of a device whose server is gone. † Helpers of a killed daemon wait in it and cannot end before it does.
pub(crate) fn awaited_by_nobody(device: &Path) -> anyhow::Result<()> {
    let number = DevNumber::at(device).with_context(|| format!("cannot look at {}", device.display()))?;
    // The kernel's claim says so too, of a device that can be opened.
    ensure!(!unserved::holds_a_mount(number), "something is mounted from {}, or swaps to it", device.display());
    ensure!(!stack::is_built_on(number), "another device is built on {}", device.display());
    opened_by(device, living_openers)
}

fn opened_by(device: &Path, processes: fn(&Path) -> Vec<String>) -> anyhow::Result<()> {
    let openers = open_still(|| {
        let mut openers = processes(device);
        openers.extend(DevNumber::at(device).map(stack::kernel_users).unwrap_or_default());
        openers
    });
    ensure!(openers.is_empty(), "{} is open in {}", device.display(), openers.join(", "));
    Ok(())
}

/// Ends whatever device an earlier daemon left of a volume that nobody serves, and its name: only then its disk may be seen.
/// `dir`: the volume's folder, which need not be there.
///
/// Waits no longer than for a helper each that ends a device, and as long again for one that was ended: whoever holds the doors meanwhile holds up their next owner.
///
/// # Errors
/// When somebody uses the device, or when it cannot be known in time that there is none.
pub(crate) fn end(dir: &Path, id: VolumeId, name: &Name, runtime_dir: &Path) -> anyhow::Result<()> {
    let link = node::path(name);
    // A client of the kernel's that is not connected is no device.
    let is_there =
        |number| stack::is_own_tap(number) && (stack::text(number, "backend").is_none() || stack::text(number, "pid").is_some());
    if DevNumber::at(&link).is_ok_and(is_there) {
        awaited_by_nobody(&link)?;
    }
    let has_ended = abolish_ublk(dir, runtime_dir)? | abolish_nbd(id, runtime_dir)?;
    // Who was killed as he waited in it may not have let go of it yet.
    let until = Instant::now() + if has_ended { END_WAIT } else { Duration::ZERO };
    while DevNumber::at(&link).is_ok_and(is_there) {
        if Instant::now() < until {
            std::thread::sleep(END_POLL);
            continue;
        }
        // One of which nothing else is known any more.
        bail!("its device is still there, as {}", link.display());
    }
    node::withdraw(name);
    Ok(())
}

/// By a helper, as below: a device whose server is gone may not even be opened in time. False: there was none.
fn abolish_nbd(id: VolumeId, runtime_dir: &Path) -> anyhow::Result<bool> {
    let identifier = identifier_of(id);
    match farside_nbd::kernel::identifiers()?.contains(&identifier) {
        true => Change::Disconnect { identifier }.make_within(END_WAIT, runtime_dir),
        false => Ok(false),
    }
}

fn abolish_ublk(dir: &Path, runtime_dir: &Path) -> anyhow::Result<bool> {
    let Some(token) = known_token(dir)? else { return Ok(false) };
    let has_ended = Change::EndUblk { token }.make_within(END_WAIT, runtime_dir)?;
    // Nothing is to be looked for by it any more; a device that is made later has one of its own.
    match std::fs::remove_file(dir.join(TOKEN_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("the name of a device that is gone stays")
        }
        _ => Ok(has_ended),
    }
}

/// Whether a volume with this folder may have a device.
pub(crate) fn may_have_device(dir: &Path, id: VolumeId) -> bool {
    has_token(dir) || farside_nbd::kernel::identifiers().is_ok_and(|all| all.contains(&identifier_of(id)))
}

/// Whether a volume with this folder may have a device of ublk's.
pub(crate) fn has_token(dir: &Path) -> bool {
    dir.join(TOKEN_FILE).exists()
}

fn known_token(dir: &Path) -> anyhow::Result<Option<u64>> {
    let path = dir.join(TOKEN_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let token = u64::from_str_radix(text.trim(), 16);
            let wrong = || {
                format!(
                    "{} is damaged: reboot, then remove it; whoever uses the device until then would wait for ever",
                    path.display()
                )
            };
            token.map(Some).with_context(wrong)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Random, and never 0, which is every device's that nobody marked.
fn token(dir: &Path) -> anyhow::Result<u64> {
    if let Some(token) = known_token(dir)? {
        return Ok(token);
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    let token = u64::from_ne_bytes(bytes) | 1;
    write_atomically(&dir.join(TOKEN_FILE), &format!("{token:016x}\n"))?;
    Ok(token)
}

/// Takes away what a crash in the middle of a removal left and nobody uses: devices of volumes that are not configured, twins of
/// devices that are not. To be called before anything is served. `configured`: their ids, and the devices that have taps put
/// under them; `left`: of volumes that are not, and have a folder still.
///
/// † What no volume of ours has may be another daemon's, which serves it: only the daemon of the host takes that away.
pub(crate) fn sweep(configured: &[VolumeId], left: &[VolumeId], devices: &[PathBuf], runtime_dir: &Path, backings: &Backings) {
    match farside_nbd::kernel::identifiers() {
        Ok(mut strays) => {
            let is_of_the_host = backings.is_of_the_host();
            strays.retain(|identifier| is_stray(identifier, configured, (!is_of_the_host).then_some(left)));
            locked(&STRAYS).extend(strays.into_iter().map(|stray| (stray, Arc::new(Mutex::new(Stray::Left(String::new()))))));
            let runtime_dir = runtime_dir.to_owned();
            std::thread::spawn(move || disconnect_strays(&runtime_dir));
        }
        Err(error) => warn!("{error:#}"),
    }
    let is_idle = |number| {
        let at = |runtime_dir| change::is_idle_number(runtime_dir, number).unwrap_or(false);
        at(runtime_dir) && (backings.is_of_the_host() || !boot::is_host_served() && at(Path::new(RUN_DIR)))
    };
    match farside_insert::sweep(devices, is_idle) {
        Ok(twins) => twins.iter().for_each(|twin| warn!(%twin, "it belonged to no volume: removed")),
        Err(error) => warn!("twins of devices may have been left: {error:#}"),
    }
}

/// Whether a device of the kernel's NBD client is to be taken away. `left`: if only of these volumes.
fn is_stray(identifier: &str, configured: &[VolumeId], left: Option<&[VolumeId]>) -> bool {
    let is_of = |ids: &[VolumeId]| ids.iter().any(|id| identifier_of(*id) == identifier);
    identifier.starts_with(IDENTIFIER) && !is_of(configured) && left.is_none_or(is_of)
}

/// Devices of the kernel's NBD client that an earlier daemon left, of volumes that are not configured, by their identifiers. † Who
/// serves one again takes it out first: somebody may be about to disconnect it, and holds its lock so long.
static STRAYS: Mutex<BTreeMap<String, Arc<Mutex<Stray>>>> = Mutex::new(BTreeMap::new());

#[derive(Debug, PartialEq, Eq)]
enum Stray {
    /// What was said last of why it is left.
    Left(String),
    ServedAgain,
}

/// Until nobody uses one of them any more: whoever does waits for a server that does not come, and then lets go of it. By helpers: a
/// device whose server is gone may not even be opened in time.
fn disconnect_strays(runtime_dir: &Path) {
    const LOOK_AGAIN_MAX: Duration = Duration::from_secs(3600);
    let mut pause = Duration::from_secs(1);
    loop {
        let strays: Vec<_> = locked(&STRAYS).iter().map(|(identifier, stray)| (identifier.clone(), stray.clone())).collect();
        if strays.is_empty() {
            return;
        }
        for (identifier, stray) in strays {
            let mut stray = locked(&stray);
            let Stray::Left(said) = &mut *stray else { continue };
            match (Change::Disconnect { identifier: identifier.clone() }).make_within(END_WAIT, runtime_dir) {
                Ok(is_gone_now) => {
                    if is_gone_now {
                        warn!(%identifier, "a device of the kernel's NBD client belonged to no volume: removed");
                    }
                    drop(stray);
                    locked(&STRAYS).remove(&identifier);
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if *said != why {
                        warn!(%identifier, "a device that belongs to no volume is left until it can be removed: {why}");
                        *said = why;
                    }
                }
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_AGAIN_MAX);
    }
}

/// How the kernel is told whose a device is.
fn identifier_of(volume: VolumeId) -> String {
    format!("{IDENTIFIER}{volume}")
}

/// Of a new ublk device. One thread serves more requests than most disks; beyond the bound each queue is a thread, memory for its
/// requests and one more table that a save looks through, and no faster.
fn queues(configured: Option<u16>) -> u16 {
    const UNLESS_CONFIGURED_MAX: u16 = 8;
    let processors = || std::thread::available_parallelism().map_or(1, |count| u16::try_from(count.get()).unwrap_or(u16::MAX));
    configured.unwrap_or_else(|| processors().min(UNLESS_CONFIGURED_MAX))
}

/// How many requests a queue behind a tap may get at once.
pub(crate) fn depth(limits: &LimitsConfig) -> usize {
    (limits.queue_depth as usize).max(64)
}

fn nbd_limits(limits: &LimitsConfig) -> farside_nbd::Limits {
    farside_nbd::Limits { pieces_max: depth(limits), ..farside_nbd::Limits::default() }
}

fn listen(path: &Path, around: &Surroundings) -> anyhow::Result<farside_nbd::Listener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let options = farside_nbd::SocketOptions { path: path.to_owned(), group: around.api_group.clone() };
    // The volume's locks are ours already: whoever still answers there is a predecessor that was killed.
    Ok(farside_nbd::Listener::bind_after_another(&options, OpenOptions::daemon().wait)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// † A second daemon on a host takes nothing away that the first one serves.
    #[test]
    fn what_belongs_to_no_volume_of_its_own_is_taken_away_by_the_daemon_of_the_host_alone() {
        let id = |volume: &str| {
            let name = |text: &str| text.parse::<Name>().expect("a name");
            farside_ledger::volume_id(&name("host"), &name("default"), &name(volume))
        };
        let (configured, left) = ([id("data")], [id("gone")]);
        for (identifier, by_the_host, by_another) in [
            (identifier_of(id("data")), false, false),
            (identifier_of(id("gone")), true, true),
            (identifier_of(id("other")), true, false),
            ("somebody's".to_owned(), false, false),
        ] {
            assert_eq!(is_stray(&identifier, &configured, None), by_the_host, "{identifier}");
            assert_eq!(is_stray(&identifier, &configured, Some(&left)), by_another, "{identifier}");
        }
    }
}
