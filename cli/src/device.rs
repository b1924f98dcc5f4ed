//! An open point as a block device of this machine's kernel: `/dev/nbdN`, while the command lasts that serves it.
//!
//! Nobody serves such a device after its process: what waits in it then fails at once, and it is gone when its users are. What a killed
//! process left is swept by the next one. The device's identifier names the process and when it began, for numbers come again.
//!
//! † No thread of a process that serves a device may wait in the kernel for it: killed then, neither would ever end. So what its page cache
//! holds is written by a process of its own, and only then is it opened here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use farside_nbd::Handle;
use farside_nbd::kernel::{self, Keeper, KernelDevice, KernelError, Spec};

use crate::failure::{Exit, Failure, OrFail as _};

const IDENTIFIER: &str = "farside-open:";
const MODULE: &str = "nbd";

/// Dropped, what still uses it sees errors.
pub(crate) struct Device(Option<Keeper>);

impl Device {
    /// Makes one over a server that runs. `block`: of the device, in bytes.
    pub(crate) fn attach(server: &Handle, block: u32) -> Result<Self, Failure> {
        if matches!(kernel::probe(), Err(KernelError::NoClient)) && nix::unistd::geteuid().is_root() {
            // Whether that helped is seen below.
            let _ =
                Command::new("modprobe").arg(MODULE).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let pid = std::process::id();
        let began = began(pid).or_fail("when this process began is not known")?;
        let identifier = format!("{IDENTIFIER}{pid}:{began}");
        let spec = Spec { identifier, block, rotational: false, dead_connection: Duration::ZERO };
        let attach = || {
            sweep()?;
            let device = KernelDevice::attach(&spec, server)?;
            let kept = device.keep(spec.clone(), server.clone(), |lost| eprintln!("farside: {lost}"));
            kept.map_err(|source| KernelError::Io { what: "start a thread for", path: "the device".into(), source })
        };
        match attach() {
            Ok(keeper) => Ok(Self(Some(keeper))),
            Err(error) => Err(Failure::from_error(Exit::Failed, &error, "run it as root, or without --device: over NBD")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }

    /// Takes it away, if nobody uses it; or, by `force`, from whoever does. What was written to it has reached its server then.
    ///
    /// # Errors
    /// Refused where somebody uses it: then it stays.
    pub(crate) fn detach(&mut self, force: bool) -> Result<(), Failure> {
        write_back(self.path())?;
        let keeper = self.0.take().expect("it is there until it is dropped");
        let claimed = keeper.claim();
        let ended = match (claimed, force) {
            (Ok(claim), _) => keeper.detach(claim),
            (Err(_), true) => keeper.tear_away(),
            (Err(error), false) => Err((keeper, error)),
        };
        ended.map_err(|(keeper, error)| {
            self.0 = Some(keeper);
            Failure::from_error(Exit::Refused, &error, "")
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(keeper) = self.0.take() {
            let _ = keeper.tear_away(); // its process ends
        }
    }
}

/// What the page cache of a device holds.
fn write_back(device: &Path) -> Result<(), Failure> {
    let said = Command::new("sync").arg(device).stdin(Stdio::null()).output().or_fail("sync cannot be started")?;
    if said.status.success() {
        return Ok(());
    }
    let message = format!("{} cannot be written back: {}", device.display(), String::from_utf8_lossy(&said.stderr).trim());
    Err(Failure::new(Exit::Failed, message, "is there room for what is written? end it by SIGTERM to lose it"))
}

/// Whether somebody uses the device of an open point: a file system, or what is built on it.
///
/// # Errors
/// Where it cannot be opened.
pub(crate) fn is_used(device: &Path) -> Result<bool, Failure> {
    match kernel::claim(device) {
        Ok(_) => Ok(false),
        Err(KernelError::InUse { .. }) => Ok(true),
        Err(error) => Err(Failure::from_error(Exit::Failed, &error, "")),
    }
}

/// Takes away what killed processes have left and nobody uses.
pub(crate) fn sweep() -> Result<Vec<PathBuf>, KernelError> {
    let mut left = kernel::identifiers()?;
    left.retain(|identifier| is_left(identifier));
    // Nobody serves these any more: whoever has one open meets errors or waits, and is better told the former.
    kernel::disconnect_unused(&left, |_| true)
}

fn is_left(identifier: &str) -> bool {
    let of = identifier.strip_prefix(IDENTIFIER).and_then(|of| of.split_once(':'));
    let of = of.and_then(|(pid, then)| Some((pid.parse::<u32>().ok()?, then.parse::<u64>().ok()?)));
    of.is_some_and(|(pid, then)| began(pid).is_ok_and(|now| now != then) || !Path::new(&format!("/proc/{pid}")).exists())
}

/// When a process began, in the kernel's own unit. (proc_pid_stat(5): the 22nd; the second is a name, with anything in it.)
fn began(pid: u32) -> std::io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(22 - 3));
    after_name.and_then(|began| began.parse().ok()).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_was_left_if_its_process_is_not_the_one_that_made_it() {
        let pid = std::process::id();
        let began = began(pid).expect("it runs");
        assert!(!is_left(&format!("{IDENTIFIER}{pid}:{began}")), "it lives");
        assert!(is_left(&format!("{IDENTIFIER}{pid}:{}", began + 1)), "another one had its number");
        let mut child = Command::new("true").spawn().expect("it starts");
        child.wait().expect("it ends");
        assert!(is_left(&format!("{IDENTIFIER}{}:{began}", child.id())));
        for of_others in ["farside:7e57", "farside-open:", "farside-open:x:1", "data"] {
            assert!(!is_left(of_others), "{of_others}");
        }
    }
}
