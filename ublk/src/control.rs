//! `/dev/ublk-control`: one command at a time, each waited for.
//!
//! Invariant: memory that a command points at is ours until its completion has come; where none comes it is given up rather
//! than used again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;

use crate::UblkError;
use crate::uapi::{ANY_DEVICE, ControlCommand, DeviceInfo, Params, control};

const PATH: &str = "/dev/ublk-control";

/// An open control device.
pub(crate) struct Control {
    ring: IoUring<squeue::Entry128>,
    file: File,
}

impl Control {
    /// # Errors
    /// [`UblkError::Missing`], [`UblkError::NotLoaded`] or [`UblkError::Forbidden`], with the remedy.
    pub(crate) fn open() -> Result<Self, UblkError> {
        let file = OpenOptions::new().read(true).write(true).open(PATH).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if is_module_there() => UblkError::NotLoaded,
            io::ErrorKind::NotFound => UblkError::Missing,
            _ => UblkError::Forbidden { source },
        })?;
        let ring = IoUring::builder().build(4).map_err(|source| UblkError::Ring(farside_blockio::RingError::explain(source)))?;
        Ok(Self { ring, file })
    }

    /// What this kernel's driver can do: bits of [`crate::uapi::feature`].
    pub(crate) fn features(&mut self) -> Result<u64, UblkError> {
        let bytes: [u8; 8] = self.exchange("ask for features", control::GET_FEATURES, ANY_DEVICE, [0; 8])?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// `None`: there is no such device.
    pub(crate) fn info(&mut self, id: u32) -> Result<Option<DeviceInfo>, UblkError> {
        match self.exchange("ask for information about", control::GET_DEV_INFO, id, [0; DeviceInfo::BYTES]) {
            Ok(bytes) => Ok(Some(DeviceInfo::decode(&bytes))),
            Err(UblkError::Command { errno: Errno::ENODEV, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a device; the kernel chooses its number and may make less of it than was asked for.
    pub(crate) fn add(&mut self, wanted: &DeviceInfo) -> Result<DeviceInfo, UblkError> {
        let bytes = self.exchange("add", control::ADD_DEV, ANY_DEVICE, wanted.encode())?;
        Ok(DeviceInfo::decode(&bytes))
    }

    pub(crate) fn set_params(&mut self, id: u32, params: &Params) -> Result<(), UblkError> {
        self.exchange("describe", control::SET_PARAMS, id, params.encode()).map(drop)
    }

    pub(crate) fn params(&mut self, id: u32) -> Result<Params, UblkError> {
        let bytes = self.exchange("ask for the parameters of", control::GET_PARAMS, id, Params::request())?;
        Ok(Params::decode(&bytes))
    }

    /// A command that needs no memory.
    pub(crate) fn order(&mut self, what: &'static str, op: u32, id: u32, data: u64) -> Result<(), UblkError> {
        let command = ControlCommand { device: id, len: 0, address: 0, data };
        self.run(op, command).map_err(|errno| UblkError::Command { what, id, errno })
    }

    fn exchange<const N: usize>(&mut self, what: &'static str, op: u32, id: u32, bytes: [u8; N]) -> Result<[u8; N], UblkError> {
        let mut bytes = Box::new(bytes);
        let command = ControlCommand { device: id, len: N as u16, address: bytes.as_mut_ptr() as u64, data: 0 };
        let result = self.run(op, command);
        if result == Err(Errno::EIDRM) {
            // No completion: the kernel may still write there.
            std::mem::forget(std::mem::replace(&mut bytes, Box::new([0; N])));
        }
        result.map(|()| *bytes).map_err(|errno| UblkError::Command { what, id, errno })
    }

    /// Submits a command and waits for its end; `EIDRM` if that never comes.
    fn run(&mut self, op: u32, command: ControlCommand) -> Result<(), Errno> {
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), op).cmd(command.encode()).build();
        // SAFETY: what the command points at is owned by the caller of this function, which uses or frees it only after a
        // completion (`exchange`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("one command at a time has room");
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINTR | nix::libc::EAGAIN | nix::libc::EBUSY)) => {}
                Err(_) => return Err(Errno::EIDRM),
            }
            if let Some(done) = self.ring.completion().next() {
                return if done.result() < 0 { Err(Errno::from_raw(-done.result())) } else { Ok(()) };
            }
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// Whether this kernel's package has the module, so that loading it would do.
fn is_module_there() -> bool {
    let Ok(kernel) = nix::sys::utsname::uname() else { return false };
    let folder = Path::new("/lib/modules").join(kernel.release());
    std::fs::read_to_string(folder.join("modules.dep")).is_ok_and(|list| list.contains("/ublk_drv.ko"))
}
