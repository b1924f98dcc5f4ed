//! The life of a device.
//!
//! ```text
//!              add          start            server dies or stops
//! (nothing) ───────► Dead ────────► Live ◄──────────────────────► Quiesced
//!                     ▲                     begin, serve, go live     │
//!                     └──── remove ◄──────────────────────────────────┘
//! ```
//!
//! Invariants: a device is ours if and only if the kernel gives back our token for it. From the beginning of a recovery to its
//! end nothing is waited for but our own queues. A kernel of 2024 (fault `null-between-queues`) does not get over a server that dies
//! in between with a part of its commands given: there a device has one queue, whose commands are given in one system call. What the device is called beside `/dev/ublkbN` is others' business.

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use farside_blockio::{BUFFER_ALIGN, Buffer, DeviceError, Errno, FileDevice, SharedFd, Waker, hold};

use crate::UblkError;
use farside_region::ByteOffset;

use crate::control::Control;
use crate::kernel::{Choice, DataPath, Kernel, NEEDED, ZERO_COPY};
use crate::server::{Handle, Server};
use crate::uapi::{self, DeviceInfo, DeviceState, Discard, Params, SECTOR, attribute, control, feature};

/// Where the kernel lists its ublk devices.
const LIST: &str = "/sys/class/ublk-char";
/// How long a dead server may take to be gone: its ring is torn down after its process.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const POLL: Duration = Duration::from_millis(5);
/// The longest discard or zeroing that one request asks for.
pub(crate) const ZERO_BYTES_MAX: u64 = 1 << 30;

/// As many queues as a device may have: more than anybody has a use for.
pub const QUEUES_MAX: u16 = 64;

/// What a device shall be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The owner's secret: whoever knows it may take the device over.
    pub token: u64,
    /// Queues, each served by a thread of its own, from 1 to [`QUEUES_MAX`]. A device that is there keeps those that it has.
    pub queues: u16,
    /// Requests in flight at once, on each queue.
    pub depth: u16,
    /// The longest read or write, and the memory that each request in flight may take: a power of two, at least 4 KiB.
    pub io_bytes_max: u32,
    /// The tags whose pages may be registered, from 0 on; what comes with others is copied. `None`: all.
    pub slots: Option<u16>,
    /// Whether data is copied also where it need not be.
    pub copied: bool,
    /// Names of [`crate::FAULTS`] that a person accepts.
    pub accepted_faults: Vec<String>,
}

/// A device that is ours, and not served yet.
#[derive(Debug)]
pub struct Device {
    control: Control,
    info: DeviceInfo,
    /// It was there before, and its users wait.
    recovered: bool,
    /// Its backing has grown to so many sectors.
    grows_to: Option<u64>,
    can_grow: bool,
    /// It has, and the device cannot.
    is_small: bool,
    scan: Scan,
    data_path: Choice,
    slots: Option<u16>,
}

/// Whether the kernel looks for partitions as it starts a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    Yes,
    /// † Where a kernel has the fault `scan-under-lock`. It does not look where the server has no privilege, so only a disk
    /// that has a partition table runs that risk.
    No,
}

impl Scan {
    fn of(kernel: &Kernel, backing: &FileDevice, accepted: &[String]) -> Self {
        if kernel.may_scan(accepted) { Self::Yes } else { Self::where_needed(backing) }
    }

    fn where_needed(backing: &FileDevice) -> Self {
        let signature = Buffer::alone(BUFFER_ALIGN).and_then(|mut block| {
            backing.read_exact_at(ByteOffset(0), &mut block)?;
            Ok([block[510], block[511]])
        });
        match signature {
            Ok([0x55, 0xaa]) => Self::Yes,
            _ => Self::No,
        }
    }
}

/// What [`held`] found.
#[derive(Debug)]
pub struct Held {
    control: Control,
    info: DeviceInfo,
    /// Nobody else gets it while we think.
    hold: Option<OwnedFd>,
}

impl Device {
    /// Takes over the device that carries the token, or makes one for the backing. What its users ask for waits until
    /// [`Device::go_live`].
    ///
    /// # Errors
    /// [`UblkError`], with the remedy. Nothing has changed then that the next attempt would not take up.
    pub fn claim(spec: &Spec, backing: &FileDevice) -> Result<Self, UblkError> {
        let mut control = Control::open()?;
        let kernel = Kernel::of(control.features()?);
        let can_grow = kernel.has(feature::UPDATE_SIZE);
        let data_path = kernel.data_path(backing, spec.copied, &spec.accepted_faults);
        let params = params(spec, backing, data_path.path);
        if let Some(found) = find(&mut control, spec.token)? {
            let info = wait_until_quiet(&mut control, found)?;
            if info.state == DeviceState::Quiesced {
                let now = control.params(info.id)?;
                check(&info, &now, &params)?;
                let has_grown = now.device_sectors < params.device_sectors;
                let (grows, is_small) = (has_grown && can_grow, has_grown && !can_grow);
                if is_small {
                    let device = block_path(info.id);
                    tracing::warn!(device = %device.display(), "the backing has grown; this kernel's devices grow when they are made anew");
                }
                let data_path = match now.memory_align < params.memory_align {
                    true => Choice {
                        path: DataPath::Copy,
                        why: "the backing takes memory less freely than the one that the device was made for".to_owned(),
                    },
                    false => data_path,
                };
                let data_path = data_path.with(DataPath::of_device(info.flags));
                return Ok(Self {
                    control,
                    info,
                    recovered: true,
                    grows_to: grows.then_some(params.device_sectors),
                    can_grow,
                    is_small,
                    scan: Scan::No,
                    data_path,
                    slots: spec.slots,
                });
            }
            // Its server died before it had started it: nobody can use it.
            control.order("delete the unfinished", control::DEL_DEV, info.id, 0)?;
        }
        // One that is there is served all the same: its users wait.
        kernel.allows(&spec.accepted_faults)?;
        let wanted = DeviceInfo {
            queues: if kernel.may_have_queues(&spec.accepted_faults) { spec.queues } else { 1 },
            depth: spec.depth,
            state: DeviceState::Dead,
            io_bytes_max: spec.io_bytes_max,
            id: uapi::ANY_DEVICE,
            pid: -1,
            flags: NEEDED | if data_path.path == DataPath::ZeroCopy { ZERO_COPY } else { 0 },
            token: spec.token,
        };
        let info = control.add(&wanted)?;
        control.set_params(info.id, &params)?;
        let data_path = data_path.with(DataPath::of_device(info.flags));
        let scan = Scan::of(&kernel, backing, &spec.accepted_faults);
        Ok(Self {
            control,
            info,
            recovered: false,
            grows_to: None,
            can_grow,
            is_small: false,
            scan,
            data_path,
            slots: spec.slots,
        })
    }

    /// One that was just added.
    pub(crate) fn made(control: Control, info: DeviceInfo, scan: Scan, data_path: Choice) -> Self {
        let slots = None;
        Self { control, info, recovered: false, grows_to: None, can_grow: false, is_small: false, scan, data_path, slots }
    }

    /// How its data comes and goes, and why.
    pub fn data_path(&self) -> &Choice {
        &self.data_path
    }

    /// `/dev/ublkbN`.
    pub fn path(&self) -> PathBuf {
        block_path(self.info.id)
    }

    /// Whether it was there before.
    pub fn was_there(&self) -> bool {
        self.recovered
    }

    /// Whether the kernel can make it larger while it is used.
    pub fn can_grow(&self) -> bool {
        self.can_grow
    }

    /// Whether it shows less than its backing has, and cannot show more.
    pub fn is_small(&self) -> bool {
        self.is_small
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.info.queues
    }

    /// The servers of its queues, in their order, and what other threads hold of them. The wakers, one for each, are those
    /// through which parked requests of a queue are tried again. None serves before all run.
    ///
    /// # Panics
    /// When there are more wakers than queues, or fewer.
    pub fn servers(&self, wakers: Vec<Waker>) -> (Vec<Server>, Handle) {
        let slots = match self.data_path.path {
            DataPath::ZeroCopy => self.slots.unwrap_or(self.info.depth).min(self.info.depth),
            DataPath::Copy => 0,
        };
        Server::of(self.info, self.recovered, self.scan, slots, wakers)
    }

    /// The owner's secret.
    pub fn token(&self) -> u64 {
        self.info.token
    }

    /// Lets its users in: their requests come to the server, which must have said that it is ready.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn go_live(mut self) -> Result<(), UblkError> {
        let pid = u64::from(std::process::id());
        match self.recovered {
            true => self.control.order("resume", control::END_USER_RECOVERY, self.info.id, pid)?,
            false => self.control.order("start", control::START_DEV, self.info.id, pid)?,
        }
        match self.grows_to {
            Some(sectors) => self.control.order("grow", control::UPDATE_SIZE, self.info.id, sectors),
            None => Ok(()),
        }
    }
}

/// Begins the service of a device's queue: its character device, opened by nobody else.
pub(crate) fn begin(info: &DeviceInfo, recovered: bool) -> Result<SharedFd, UblkError> {
    let path = PathBuf::from(format!("/dev/ublkc{}", info.id));
    let until = Instant::now() + PATIENCE;
    if recovered {
        let mut control = Control::open()?;
        loop {
            match control.order("take over", control::START_USER_RECOVERY, info.id, 0) {
                // The dead server's file is not closed yet.
                Err(UblkError::Command { errno: Errno::EBUSY, .. }) if Instant::now() < until => std::thread::sleep(POLL),
                // Somebody has begun, and died before he gave a command.
                Err(UblkError::Command { errno: Errno::EINVAL, .. }) => break,
                other => break other?,
            }
        }
    }
    loop {
        let opened = std::fs::OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_CLOEXEC).open(&path);
        match opened {
            Ok(file) => return Ok(Arc::new(OwnedFd::from(file))),
            // Not closed yet, or not made by devtmpfs or udev yet.
            Err(error)
                if matches!(error.raw_os_error(), Some(nix::libc::EBUSY | nix::libc::ENOENT)) && Instant::now() < until =>
            {
                std::thread::sleep(POLL);
            }
            Err(source) => return Err(UblkError::Io { what: "open", path, source }),
        }
    }
}

/// The device that carries a token and that nobody uses: nobody can begin to use it while this is held. `None`: there is no
/// such device.
///
/// # Errors
/// [`UblkError::InUse`]: mounted, mapped, or held in another way.
pub fn held(token: u64) -> Result<Option<Held>, UblkError> {
    let mut control = match Control::open() {
        Err(UblkError::Missing | UblkError::NotLoaded) => return Ok(None),
        control => control?,
    };
    let Some(info) = find(&mut control, token)? else { return Ok(None) };
    let hold = match hold(&block_path(info.id)) {
        Ok(hold) => Some(hold),
        Err(DeviceError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None, // never started
        Err(source) => return Err(UblkError::InUse { id: info.id, source }),
    };
    Ok(Some(Held { control, info, hold }))
}

/// Ends a device under whoever uses it, as `ublk del` does: for tests.
///
/// # Errors
/// When the kernel refuses.
#[doc(hidden)]
pub fn end_under_its_users(id: u32) -> Result<(), UblkError> {
    let mut control = Control::open()?;
    control.order("stop", control::STOP_DEV, id, 0)?;
    control.order("delete", control::DEL_DEV, id, 0)
}

impl Held {
    /// Its node.
    pub fn path(&self) -> PathBuf {
        block_path(self.info.id)
    }

    /// Ends the device. What its server has taken is answered first; if it has none, nothing waits in it, for nobody uses it.
    /// What its page cache holds is lost: have it written before, by a process that does not serve it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(mut self) -> Result<(), UblkError> {
        self.control.order("stop", control::STOP_DEV, self.info.id, 0)?;
        drop(self.hold.take());
        self.control.order("delete", control::DEL_DEV, self.info.id, 0)
    }
}

pub(crate) fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// The device with the token.
fn find(control: &mut Control, token: u64) -> Result<Option<DeviceInfo>, UblkError> {
    Ok(list(control)?.into_iter().find(|info| info.token == token))
}

/// All ublk devices, whoever's, that may be ours.
pub(crate) fn list(control: &mut Control) -> Result<Vec<DeviceInfo>, UblkError> {
    let failed = |source| UblkError::Io { what: "list", path: LIST.into(), source };
    let list = match std::fs::read_dir(LIST) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(failed)?,
    };
    let mut ids = Vec::new();
    for entry in list {
        let name = entry.map_err(failed)?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_prefix("ublkc")).and_then(|id| id.parse::<u32>().ok()));
    }
    infos(&ids, |id| control.info(id))
}

/// Of those of the devices that may be ours.
///
/// A device of somebody without privileges wants its path in every command, also from root, and answers `EINVAL` without it. Ours
/// are none. † Nothing else is passed over: what is refused for want of privileges (`EPERM`) may be ours, and a second device
/// would be made for its volume.
fn infos(ids: &[u32], mut info: impl FnMut(u32) -> Result<Option<DeviceInfo>, UblkError>) -> Result<Vec<DeviceInfo>, UblkError> {
    static SAID: Once = Once::new();
    let mut all = Vec::new();
    for &id in ids {
        match info(id) {
            Ok(found) => all.extend(found),
            Err(UblkError::Command { errno: Errno::EINVAL, .. }) => SAID.call_once(|| {
                let device = block_path(id);
                tracing::warn!(device = %device.display(), "it was made by somebody without privileges: such devices are passed over");
            }),
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The volume's locks are ours already: a server that still seems to live is dying.
fn wait_until_quiet(control: &mut Control, mut info: DeviceInfo) -> Result<DeviceInfo, UblkError> {
    let until = Instant::now() + PATIENCE;
    while info.state == DeviceState::Live {
        if Instant::now() >= until {
            return Err(UblkError::Served { id: info.id, pid: info.pid });
        }
        std::thread::sleep(POLL);
        info = control.info(info.id)?.unwrap_or(DeviceInfo { state: DeviceState::Dead, ..info });
    }
    match info.state {
        DeviceState::Dead | DeviceState::Quiesced => Ok(info),
        state => {
            Err(UblkError::Differs { id: info.id, what: format!("is in the state {state:?}, in which nobody can serve it") })
        }
    }
}

/// Whether a device that was made by another run can be served with what there is now.
fn check(info: &DeviceInfo, now: &Params, wanted: &Params) -> Result<(), UblkError> {
    let differs = |what: String| Err(UblkError::Differs { id: info.id, what });
    if now.device_sectors > wanted.device_sectors {
        let (now, wanted) = (now.device_sectors * SECTOR, wanted.device_sectors * SECTOR);
        return differs(format!("has {now} bytes and its backing {wanted}"));
    }
    if now.logical_shift < wanted.logical_shift {
        let (now, wanted) = (1u64 << now.logical_shift, 1u64 << wanted.logical_shift);
        return differs(format!("has blocks of {now} bytes and its backing needs {wanted}"));
    }
    let path = info.flags & (ZERO_COPY | feature::SUPPORT_ZERO_COPY);
    if path != 0 && path != ZERO_COPY {
        return differs(format!("has its data come and go in a way that this farsided does not know (flags {:#x})", info.flags));
    }
    let promised = attribute::VOLATILE_CACHE | attribute::FUA;
    if now.attributes & promised != promised {
        return differs("promises that no flush is needed".to_owned());
    }
    if !(1..=QUEUES_MAX).contains(&info.queues)
        || !(1..=uapi::DEPTH_MAX).contains(&info.depth)
        || !info.io_bytes_max.is_power_of_two()
    {
        return differs(format!("has {} queues of {} requests of {} bytes", info.queues, info.depth, info.io_bytes_max));
    }
    Ok(())
}

/// The device as the backing is; the cache is always volatile.
fn params(spec: &Spec, backing: &FileDevice, data_path: DataPath) -> Params {
    assert!(spec.io_bytes_max.is_power_of_two() && spec.io_bytes_max as usize >= BUFFER_ALIGN, "a request's memory is a buffer");
    let topology = backing.topology();
    let sectors = (ZERO_BYTES_MAX / SECTOR) as u32;
    let rotational = if topology.rotational { attribute::ROTATIONAL } else { 0 };
    // The kernel wants no block above its page.
    let physical = topology.physical_block.min(BUFFER_ALIGN as u32).max(backing.block_min());
    Params {
        attributes: attribute::VOLATILE_CACHE | attribute::FUA | rotational,
        logical_shift: backing.block_min().ilog2() as u8,
        physical_shift: physical.ilog2() as u8,
        io_opt_shift: topology.io_opt.max(1).ilog2() as u8,
        io_min_shift: topology.io_min.ilog2() as u8,
        sectors_max: (u64::from(spec.io_bytes_max) / SECTOR) as u32,
        device_sectors: backing.size() / SECTOR,
        // Without it a discard would be a write of zeroes, and a new file system would fill the disk with them.
        discard: backing.punches().then_some(Discard {
            alignment: 0,
            granularity: topology.discard_granularity,
            sectors_max: sectors,
            zeroes_sectors_max: sectors,
        }),
        memory_align: (data_path == DataPath::ZeroCopy).then_some(topology.memory_align),
    }
}

#[cfg(test)]
mod tests {
    use farside_blockio::OpenOptions;

    use super::*;

    fn spec() -> Spec {
        Spec { token: 1, queues: 1, depth: 128, io_bytes_max: 1 << 19, slots: None, copied: false, accepted_faults: Vec::new() }
    }

    fn file_of(bytes: u64) -> (tempfile::NamedTempFile, FileDevice) {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        file.as_file().set_len(bytes).unwrap();
        let device = FileDevice::open(file.path(), OpenOptions::at_once()).unwrap();
        (file, device)
    }

    #[test]
    fn a_device_is_as_its_backing_and_always_wants_flushes() {
        let (_file, device) = file_of(8 << 20);
        let params = super::params(&spec(), &device, DataPath::Copy);
        assert_eq!((params.device_sectors, params.sectors_max), (16384, 1024));
        assert_eq!(1 << params.logical_shift, device.block_min());
        assert_eq!(params.attributes, attribute::VOLATILE_CACHE | attribute::FUA);
        assert_eq!(params.discard.is_some(), device.punches());
        assert_eq!(params.memory_align, None, "a copy is aligned");
        let align = super::params(&spec(), &device, DataPath::ZeroCopy).memory_align;
        assert_eq!(align, Some(device.topology().memory_align));
    }

    #[test]
    fn a_device_of_somebody_without_privileges_hides_none_of_ours() {
        let ours = DeviceInfo::decode(&[0; DeviceInfo::BYTES]);
        let failed = |id, errno| Err(UblkError::Command { what: "ask for information about", id, errno });
        let found = infos(&[0, 1, 2], |id| match id {
            0 => failed(id, Errno::EINVAL),
            1 => Ok(None),
            _ => Ok(Some(DeviceInfo { id, ..ours })),
        });
        assert_eq!(found.unwrap().iter().map(|info| info.id).collect::<Vec<_>>(), [2]);
        assert!(infos(&[0], |id| failed(id, Errno::EPERM)).is_err(), "it may be ours");
    }

    #[test]
    fn only_a_partition_table_is_looked_for() {
        let (file, device) = file_of(8 << 20);
        assert_eq!(Scan::where_needed(&device), Scan::No);
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[0x55, 0xaa], 510).unwrap();
        file.as_file().sync_all().unwrap();
        assert_eq!(Scan::where_needed(&device), Scan::Yes);
    }

    #[test]
    fn a_device_that_does_not_fit_is_not_served() {
        let (_file, device) = file_of(8 << 20);
        let wanted = params(&spec(), &device, DataPath::Copy);
        let info = DeviceInfo {
            queues: 1,
            depth: 128,
            state: DeviceState::Quiesced,
            io_bytes_max: 1 << 19,
            id: 3,
            pid: 1,
            flags: 0,
            token: 1,
        };
        assert!(check(&info, &wanted, &wanted).is_ok());
        assert!(check(&DeviceInfo { queues: 4, ..info }, &wanted, &wanted).is_ok(), "as many as it was made with");
        let smaller = Params { device_sectors: wanted.device_sectors - 8, ..wanted };
        assert!(check(&info, &smaller, &wanted).is_ok(), "the backing grew");
        let larger = Params { device_sectors: wanted.device_sectors + 8, ..wanted };
        let error = check(&info, &larger, &wanted).unwrap_err().to_string();
        assert!(error.contains("/dev/ublkb3") && error.contains("8388608"), "{error}");
        let finer = Params { logical_shift: 9, ..wanted };
        let coarse = Params { logical_shift: 12, ..wanted };
        assert!(check(&info, &finer, &coarse).is_err() && check(&info, &coarse, &finer).is_ok());
        let through = Params { attributes: attribute::FUA, ..wanted };
        assert!(check(&info, &through, &wanted).is_err(), "nobody would flush");
        for odd in [
            DeviceInfo { flags: feature::USER_COPY, ..info },
            DeviceInfo { flags: ZERO_COPY | feature::SUPPORT_ZERO_COPY, ..info },
            DeviceInfo { queues: 0, ..info },
            DeviceInfo { depth: 0, ..info },
            DeviceInfo { io_bytes_max: 12288, ..info },
        ] {
            assert!(check(&odd, &wanted, &wanted).is_err());
        }
    }
}
