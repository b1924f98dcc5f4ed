//! The ublk tap: a real block device, `/dev/ublkbN`, whose requests a [`farside_blockio::BlockQueue`] answers.
//!
//! | | |
//! |---|---|
//! | [`uapi`] | the kernel's bytes |
//! | `control` | `/dev/ublk-control`: one command at a time |
//! | [`Kernel`] | what the driver can do, and what is known to be wrong with it |
//! | [`Device`] | the life of a device: made or taken over, started, removed |
//! | `without_recovery` | devices that end with their server ([`Device::without_recovery`]) |
//! | [`Server`] | one queue: one thread, one ring that carries the kernel's commands and the backing's I/O |
//! | `opening` | the moment at which all queues of a device begin |
//!
//! Invariants. *A volume's device outlives its server*: whoever dies leaves it quiesced, requests wait, and what was not answered is
//! given to the successor again ([`uapi::feature::USER_RECOVERY_REISSUE`]); only [`Held::remove`] ends one. *Nobody takes over
//! a foreign device*: each carries its owner's token. *The cache is volatile*: flushes and FUA come to us, whatever the backing
//! says of its own.
//!
//! It knows nothing of regions, epochs and replication, and uses no C library: see ARCHITECTURE.md.

#![allow(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod control;
mod device;
mod kernel;
mod opening;
mod server;
pub mod uapi;
mod without_recovery;

use std::path::PathBuf;

use farside_blockio::{DeviceError, Errno, RingError};
use thiserror::Error;

#[doc(hidden)]
pub use device::end_under_its_users;
pub use device::{Device, Held, QUEUES_MAX, Spec, held};
pub use kernel::{Choice, DataPath, Effect, FAULTS, Fault, Kernel, Version};
pub use server::{Broken, Counters, Handle, Server};
pub use uapi::{DeviceInfo, DeviceState};
pub use without_recovery::{Shape, delete, sweep};

/// Why there is no device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UblkError {
    /// Not in this kernel.
    #[error(
        "this kernel has no ublk: use the tap nbd-device, or a kernel built with CONFIG_BLK_DEV_UBLK (Debian 12: \
         linux-image-amd64 from bookworm-backports)"
    )]
    Missing,
    /// In this kernel's package, and not loaded.
    #[error(
        "the kernel module ublk_drv is not loaded: run `modprobe ublk_drv`, and write `ublk_drv` into /etc/modules-load.d/farside.conf"
    )]
    NotLoaded,
    /// The control device cannot be opened.
    #[error("/dev/ublk-control cannot be opened ({source}): ublk devices need root with CAP_SYS_ADMIN")]
    Forbidden {
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Devices of this kernel die with their server.
    #[error(
        "this kernel's ublk cannot keep a device over a restart of its server (features {features:#x}): Linux 6.5 or newer is \
         needed; use the tap nbd-device"
    )]
    NoRecovery {
        /// What it can.
        features: u64,
    },
    /// A deleted device stays for its users.
    #[error(
        "this kernel ({release}) keeps a ublk device that is deleted until its last user is gone: Linux 6.9 or newer is needed for \
         one that ends with its server; use the kernel's NBD client"
    )]
    LateDeletion {
        /// Of the kernel.
        release: String,
    },
    /// Its driver is known to be bad.
    #[error(
        "this kernel ({release}) has the known fault `{}`: {}. Boot one without it ({}), use the tap nbd-device, or, if this \
         build is mended, write `accept_faults = [\"{}\"]` into [source]",
        fault.name, fault.what, fault.mended, fault.name
    )]
    Faulty {
        /// Of the kernel.
        release: String,
        /// What is wrong with it.
        fault: &'static Fault,
    },
    /// The kernel refused.
    #[error("cannot {what} ublk device {}: {}", name_of(*id), errno.desc())]
    Command {
        /// What was tried.
        what: &'static str,
        /// On which.
        id: u32,
        /// What it said.
        errno: Errno,
    },
    /// Its server lives.
    #[error("/dev/ublkb{id} of this volume is still served by process {pid}: stop that first")]
    Served {
        /// Its number.
        id: u32,
        /// Its server.
        pid: i32,
    },
    /// It is not what this version would make of the backing.
    #[error(
        "/dev/ublkb{id} of this volume {what}: unmount it, stop whatever uses it, then `farside volume remove` and add it again \
         (or reboot)"
    )]
    Differs {
        /// Its number.
        id: u32,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody uses the device.
    #[error("/dev/ublkb{id} is in use: unmount it, and stop whatever else uses it")]
    InUse {
        /// Its number.
        id: u32,
        /// Who.
        #[source]
        source: DeviceError,
    },
    /// Why, the thread of that queue says.
    #[error("another queue of {} cannot be served", name_of(*id))]
    OtherQueue {
        /// Of the device.
        id: u32,
    },
    /// A file or device could not be used.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No ring, or it broke.
    #[error(transparent)]
    Ring(#[from] RingError),
}

fn name_of(id: u32) -> String {
    if id == uapi::ANY_DEVICE { "control".to_owned() } else { format!("/dev/ublkb{id}") }
}
