//! Devices that nobody serves after their server: what waits in one fails as soon as that ends, however it ends, and the kernel takes the
//! disk away by itself.
//!
//! ```text
//!              add          start            its server ends              delete
//! (nothing) ───────► Dead ────────► Live ───────────────────────► Dead ──────────► (nothing)
//! ```
//!
//! What is left then is a number, and a character device that nobody can use: [`delete`] takes it away for who made it, [`sweep`] for
//! whoever died. Neither touches a device that outlives its server, whatever its token says, nor one that is served.
//!
//! † None is stopped by a command (`STOP_DEV`): that waits in the kernel for requests which this process has yet to answer, and a process
//! that is killed meanwhile never ends. Its server ends instead, and the kernel's own worker does the rest.

use std::path::PathBuf;
use std::time::Instant;

use farside_blockio::Errno;

use crate::control::Control;
use crate::device::{Device, PATIENCE, POLL, Scan, ZERO_BYTES_MAX, block_path, list};
use crate::kernel::{Choice, DataPath, Kernel};
use crate::uapi::{self, DeviceInfo, DeviceState, Discard, Params, SECTOR, attribute, control, feature};
use crate::{Effect, UblkError};

/// What a device without recovery shall be. It has one queue, and its data is copied.
#[derive(Clone, Debug)]
pub struct Shape {
    /// By which [`delete`] and [`sweep`] find it.
    pub token: u64,
    /// Its size; what is left of the last sector is not shown.
    pub bytes: u64,
    /// Of a block in bytes: a power of two from 512 to 4096.
    pub block: u32,
    /// Bytes from which on a discard gives space back, a power of two.
    pub granule: u32,
    /// Whether the kernel takes no writes for it.
    pub readonly: bool,
    /// Whether there is a partition table, for which the kernel shall look.
    pub has_partitions: bool,
    /// Requests in flight at once.
    pub depth: u16,
    /// The longest read or write, and the memory that each request in flight may take: a power of two, at least 4 KiB.
    pub io_bytes_max: u32,
}

impl Kernel {
    /// Whether devices without recovery can be had.
    ///
    /// # Errors
    /// As [`Kernel::allows`], and [`UblkError::LateDeletion`].
    pub fn allows_without_recovery(&self) -> Result<(), UblkError> {
        self.allows(&[])?;
        // It cannot be asked for: a driver that does not know the command says so only of a device that it has.
        match self.version.is_some_and(|version| version >= (6, 9, 0)) {
            true => Ok(()),
            false => Err(UblkError::LateDeletion { release: self.release.clone() }),
        }
    }

    /// Whether a server that dies as a device with a partition table is started leaves nothing that a reboot alone ends.
    pub fn may_look_for_partitions(&self) -> bool {
        self.faults().all(|fault| fault.effect != Effect::NoPartitionScan)
    }
}

impl Device {
    /// Makes a device that ends with its server. It is shown by [`Device::go_live`].
    ///
    /// # Errors
    /// [`UblkError`], with the remedy.
    ///
    /// # Panics
    /// When the shape is none of a device.
    pub fn without_recovery(shape: &Shape) -> Result<Self, UblkError> {
        let mut control = Control::open()?;
        let kernel = Kernel::of(control.features()?);
        kernel.allows_without_recovery()?;
        let wanted = DeviceInfo {
            queues: 1,
            depth: shape.depth,
            state: DeviceState::Dead,
            io_bytes_max: shape.io_bytes_max,
            id: uapi::ANY_DEVICE,
            pid: -1,
            flags: feature::CMD_IOCTL_ENCODE,
            token: shape.token,
        };
        let params = params(shape);
        let info = control.add(&wanted)?;
        if let Err(error) = control.set_params(info.id, &params) {
            let _ = control.order("delete", control::DEL_DEV_ASYNC, info.id, 0);
            return Err(error);
        }
        let scan = if shape.has_partitions || kernel.may_look_for_partitions() { Scan::Yes } else { Scan::No };
        let why = "what is behind it wants memory of its own".to_owned();
        Ok(Self::made(control, info, scan, Choice { path: DataPath::Copy, why }))
    }
}

fn params(shape: &Shape) -> Params {
    assert!(shape.io_bytes_max.is_power_of_two() && shape.io_bytes_max >= 4096, "a request's memory is a buffer");
    assert!(shape.block.is_power_of_two() && (512..=4096).contains(&shape.block), "the kernel has no such block");
    let sectors = (ZERO_BYTES_MAX / SECTOR) as u32;
    let shift = |bytes: u32| bytes.ilog2() as u8;
    Params {
        attributes: attribute::VOLATILE_CACHE | attribute::FUA | if shape.readonly { attribute::READ_ONLY } else { 0 },
        logical_shift: shift(shape.block),
        physical_shift: shift(shape.granule.clamp(shape.block, 4096)),
        io_opt_shift: 0,
        io_min_shift: shift(shape.granule.clamp(shape.block, 4096)),
        sectors_max: (u64::from(shape.io_bytes_max) / SECTOR) as u32,
        device_sectors: shape.bytes / SECTOR,
        discard: (!shape.readonly).then_some(Discard {
            alignment: 0,
            granularity: shape.granule,
            sectors_max: sectors,
            zeroes_sectors_max: sectors,
        }),
        memory_align: None,
    }
}

/// Deletes the device with this token, whose server has ended: its ring is closed, and so is its character device. Waits until the kernel
/// has taken the disk away; who still has that open meets errors, and keeps nobody waiting. Gives its node, if there was one.
///
/// # Errors
/// [`UblkError::Served`] when the kernel does not let go of it for half a minute; and what it says otherwise.
pub fn delete(token: u64) -> Result<Option<PathBuf>, UblkError> {
    let mut control = Control::open()?;
    let until = Instant::now() + PATIENCE;
    loop {
        let Some(info) = list(&mut control)?.into_iter().find(|info| is_without_recovery(info) && info.token == token) else {
            return Ok(None);
        };
        if info.state == DeviceState::Dead {
            return delete_dead(&mut control, &info);
        }
        if Instant::now() >= until {
            return Err(UblkError::Served { id: info.id, pid: info.pid });
        }
        std::thread::sleep(POLL);
    }
}

/// Deletes what servers left that are gone, of the devices of whose token `is_left` says so. Gives their nodes. Where there is no ublk,
/// nothing is left.
///
/// # Errors
/// What the kernel says.
pub fn sweep(is_left: impl Fn(u64) -> bool) -> Result<Vec<PathBuf>, UblkError> {
    let mut control = match Control::open() {
        Err(UblkError::Missing | UblkError::NotLoaded) => return Ok(Vec::new()),
        control => control?,
    };
    let mut gone = Vec::new();
    for info in list(&mut control)? {
        // † One of a farsided that is down has users who wait for the next one.
        if is_without_recovery(&info) && info.state == DeviceState::Dead && is_left(info.token) {
            gone.extend(delete_dead(&mut control, &info)?);
        }
    }
    Ok(gone)
}

fn is_without_recovery(info: &DeviceInfo) -> bool {
    info.flags & feature::USER_RECOVERY == 0
}

fn delete_dead(control: &mut Control, info: &DeviceInfo) -> Result<Option<PathBuf>, UblkError> {
    match control.order("delete", control::DEL_DEV_ASYNC, info.id, 0) {
        Ok(()) => Ok(Some(block_path(info.id))),
        // Somebody else was faster.
        Err(UblkError::Command { errno: Errno::ENODEV, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            token: 1,
            bytes: (8 << 20) + 512,
            block: 512,
            granule: 4096,
            readonly: false,
            has_partitions: false,
            depth: 64,
            io_bytes_max: 1 << 19,
        }
    }

    #[test]
    fn a_device_is_what_its_shape_says_and_wants_flushes() {
        let params = super::params(&shape());
        assert_eq!((params.device_sectors, params.sectors_max), (16385, 1024));
        assert_eq!((params.logical_shift, params.physical_shift, params.io_min_shift), (9, 12, 12));
        assert_eq!(params.attributes, attribute::VOLATILE_CACHE | attribute::FUA);
        let discard = params.discard.unwrap();
        assert_eq!((discard.granularity, u64::from(discard.sectors_max) * SECTOR), (4096, ZERO_BYTES_MAX));
        assert_eq!(params.memory_align, None, "a copy is aligned");
    }

    #[test]
    fn one_that_takes_no_writes_says_so_and_discards_nothing() {
        let params = super::params(&Shape { readonly: true, block: 4096, ..shape() });
        assert_ne!(params.attributes & attribute::READ_ONLY, 0);
        assert!(params.discard.is_none() && params.logical_shift == 12);
    }

    #[test]
    fn only_devices_that_end_with_their_server_are_deleted_here() {
        let info = DeviceInfo {
            queues: 1,
            depth: 64,
            state: DeviceState::Dead,
            io_bytes_max: 1 << 19,
            id: 3,
            pid: 1,
            flags: feature::CMD_IOCTL_ENCODE,
            token: 1,
        };
        assert!(is_without_recovery(&info));
        assert!(!is_without_recovery(&DeviceInfo { flags: crate::kernel::NEEDED, ..info }), "a volume's");
    }

    #[test]
    fn kernels_that_keep_a_deleted_device_for_its_users_have_none() {
        let kernel = |version| {
            let mut kernel = Kernel::of(crate::kernel::NEEDED);
            kernel.version = version;
            kernel
        };
        assert!(kernel(Some((6, 12, 95))).allows_without_recovery().is_ok());
        assert!(matches!(kernel(Some((6, 6, 60))).allows_without_recovery(), Err(UblkError::LateDeletion { .. })));
        assert!(matches!(kernel(Some((6, 18, 4))).allows_without_recovery(), Err(UblkError::Faulty { .. })));
        assert!(kernel(None).allows_without_recovery().is_err(), "nobody knows");
    }
}
