//! An open point as a block device of this machine's kernel, while the command lasts that serves it: `/dev/ublkbN`, or `/dev/nbdN` where
//! the kernel has no ublk that will do.
//!
//! Nobody serves such a device after its process: what waits in it then fails at once, and it is gone when its users are. What a killed
//! process left is swept by the next one. A device carries who made it: the process, and when that began, for numbers come again.
//!
//! † No thread of a process that serves a device may wait in the kernel for it: killed then, neither would ever end. So what its page cache
//! holds is written by a process of its own, and only then is it opened here.

mod nbd;
mod ublk;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use farside_blockio::{open_still, openers};
use farside_nbd::Handle;
use farside_nbd::kernel::{self, Claim, KernelError};
use farside_store::LazyPointReader;
use farside_view::View;

use crate::failure::{Exit, Failure, OrFail as _};

/// The first argument of a process that does only that.
const WRITE_BACK: &str = "write-back-for-farside";
/// How soon its end is seen, or that nobody waits for it any more.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A point that is served.
pub(crate) type PointView = View<Arc<LazyPointReader>>;

/// Which of the kernel's drivers makes a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// ublk where this kernel's will do, else its NBD client.
    Auto,
    /// ublk: /dev/ublkbN, with the kernel's module ublk_drv.
    Ublk,
    /// The kernel's NBD client: /dev/nbdN, with its module nbd.
    #[value(alias = "nbd-device")]
    Nbd,
}

impl By {
    /// As it is written on a command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
        }
    }
}

/// Dropped, what still uses it sees errors.
pub(crate) enum Device {
    Ublk(ublk::Device),
    Nbd(nbd::Device),
}

impl Device {
    /// Makes one of a view that a server serves. `block`: of the device, in bytes; `threads`: as many as carry out its requests.
    pub(crate) fn attach(
        by: By,
        view: &Arc<PointView>,
        server: &Handle,
        (block, threads): (u32, usize),
    ) -> Result<Self, Failure> {
        let owner = Owner::this().or_fail("when this process began is not known")?;
        let no_ublk = match by {
            By::Nbd => None,
            By::Auto | By::Ublk => match ublk::Device::attach(by, view, (block, threads), owner) {
                Ok(device) => return Ok(Self::Ublk(device)),
                Err(failure) if by == By::Ublk => return Err(failure),
                Err(failure) => Some(failure),
            },
        };
        nbd::Device::attach(server, block, owner).map(Self::Nbd).map_err(|failure| match no_ublk {
            Some(no_ublk) => Failure { message: format!("{}; nor by ublk: {}", failure.message, no_ublk.message), ..failure },
            None => failure,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Ublk(device) => device.path(),
            Self::Nbd(device) => device.path(),
        }
    }

    /// Takes it away. What was written to it has reached its server then.
    ///
    /// # Errors
    /// Refused where somebody uses it and [`How::Kindly`] is all that is wanted: then it stays. With [`How::AtOnce`] it is gone, and what it
    /// kept may be lost.
    pub(crate) fn detach(&mut self, how: &Pressed) -> Result<(), Failure> {
        if matches!(self, Self::Ublk(device) if device.is_over()) {
            return Ok(()); // its name may be another one's by now
        }
        let path = self.path().to_owned();
        let mut is_written = write_back(&path, how)?;
        // † Not opened here as long as it keeps anything.
        let claim = match is_written.then(|| claim_unused(&path)) {
            Some(Err(failure)) if how.now() == How::Kindly => return Err(failure),
            claim => claim.and_then(Result::ok),
        };
        // † Who had it open until a moment ago may have written since.
        is_written &= write_back(&path, how)?;
        match self {
            Self::Ublk(device) => device.end(claim),
            Self::Nbd(device) => device.end(claim),
        }?;
        let message = || format!("{} was taken away before what was written to it had reached its server", path.display());
        if is_written { Ok(()) } else { Err(Failure::new(Exit::Failed, message(), "")) }
    }
}

/// How firmly a device is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// If nobody uses it.
    Kindly,
    /// From whoever uses it.
    Firmly,
    /// And what it keeps is not waited for.
    AtOnce,
}

/// The same of one that is under way: others may make it firmer.
#[derive(Debug)]
pub(crate) struct Pressed(Mutex<How>);

impl Pressed {
    pub(crate) fn new(how: How) -> Self {
        Self(Mutex::new(how))
    }

    pub(crate) fn now(&self) -> How {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn press(&self, how: How) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = how.max(*now);
    }
}

/// If this process was started to write a device back, that is done now.
pub(crate) fn as_helper() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WRITE_BACK {
        return None;
    }
    let device = arguments.next().unwrap_or_default();
    // Not for writing: udev looks at a device that was open for that anew, which may be about to go.
    match File::open(device).and_then(|node| node.sync_all()) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{error}");
            Some(ExitCode::FAILURE)
        }
    }
}

/// Has the kernel load a driver. Whether that helped is seen by who asks for it next.
fn load(module: &str) {
    let _ = Command::new("modprobe").arg(module).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// What the page cache of a device holds. Says no if that was given up.
fn write_back(device: &Path, how: &Pressed) -> Result<bool, Failure> {
    // Whatever has become of its file meanwhile.
    let mut helper = Command::new("/proc/self/exe");
    helper.arg(WRITE_BACK).arg(device);
    let Some(said) = said_by(helper, how).or_fail("a helper cannot be started")? else { return Ok(false) };
    if said.status.success() {
        return Ok(true);
    }
    let message = format!("{} cannot be written back: {}", device.display(), String::from_utf8_lossy(&said.stderr).trim());
    Err(Failure::new(Exit::Failed, message, "is there room for what is written? end it by SIGTERM to lose it"))
}

/// What a helper said, unless it was given up.
fn said_by(mut helper: Command, how: &Pressed) -> io::Result<Option<Output>> {
    if how.now() == How::AtOnce {
        return Ok(None);
    }
    let mut helper = helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    while helper.try_wait()?.is_none() {
        if how.now() == How::AtOnce {
            let _ = helper.kill(); // † and is not waited for: it may end only when the device is gone
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    helper.wait_with_output().map(Some)
}

/// Claims a device that nobody has mounted, built upon or open.
///
/// † The kernel's claim is granted beside whoever has it open without one, as virtual machines and databases do.
fn claim_unused(device: &Path) -> Result<Claim, Failure> {
    let claim = kernel::claim(device).map_err(|error| match error {
        KernelError::InUse { .. } => Failure::from_error(Exit::Refused, &error, ""),
        error => Failure::from_error(Exit::Failed, &error, ""),
    })?;
    let openers = open_still(|| openers(device));
    if openers.is_empty() {
        return Ok(claim);
    }
    let message = format!("{} is open in {}", device.display(), openers.join(", "));
    Err(Failure::new(Exit::Refused, message, "end what uses it"))
}

/// Whether somebody uses the device of an open point: a file system, what is built on it, or a process that has it open.
///
/// # Errors
/// Where it cannot be opened.
pub(crate) fn is_used(device: &Path) -> Result<bool, Failure> {
    if !device.exists() {
        return Ok(false); // somebody else has ended it
    }
    match claim_unused(device) {
        Ok(_) => Ok(false),
        Err(failure) if failure.exit == Exit::Refused => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Takes away what killed processes have left, also from whoever uses it and sees errors already.
///
/// # Errors
/// What a driver says; the other one's are gone all the same.
pub(crate) fn sweep() -> Result<Vec<PathBuf>, Failure> {
    let (ublk, nbd) = (ublk::sweep(), nbd::sweep());
    let mut gone = ublk.map_err(|error| Failure::from_error(Exit::Failed, &error, ""))?;
    gone.extend(nbd.map_err(|error| Failure::from_error(Exit::Failed, &error, ""))?);
    Ok(gone)
}

/// A process that made a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    pid: u32,
    /// In the kernel's own unit.
    began: u64,
}

impl Owner {
    fn this() -> std::io::Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, began: began(pid)? })
    }

    /// `same`: of when it began, what is known of it.
    fn is_gone(self, same: impl Fn(u64) -> u64) -> bool {
        match began(self.pid) {
            Ok(now) => same(now) != same(self.began),
            Err(_) => !Path::new(&format!("/proc/{}", self.pid)).exists(),
        }
    }
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
    fn an_owner_is_gone_if_its_number_is_free_or_another_one_s() {
        let this = Owner::this().expect("it runs");
        assert!(!this.is_gone(|began| began), "it lives");
        assert!(Owner { began: this.began + 1, ..this }.is_gone(|began| began), "another one had its number");
        let mut child = Command::new("true").spawn().expect("it starts");
        child.wait().expect("it ends");
        assert!(Owner { pid: child.id(), ..this }.is_gone(|began| began));
    }

    #[test]
    fn a_device_is_made_by_what_the_configuration_of_taps_calls_it() {
        for (word, by) in [("auto", By::Auto), ("ublk", By::Ublk), ("nbd", By::Nbd), ("nbd-device", By::Nbd)] {
            assert_eq!(By::from_str(word, false), Ok(by));
        }
        for by in By::value_variants() {
            assert_eq!(By::from_str(by.as_str(), false), Ok(*by));
        }
    }

    #[test]
    fn a_helper_that_does_not_end_is_given_up() {
        let helper = |what: &str| {
            let mut helper = Command::new("sh");
            helper.args(["-c", what]);
            helper
        };
        let how = Pressed::new(How::Kindly);
        let said = said_by(helper("echo full >&2; exit 3"), &how).expect("it starts").expect("it ended");
        assert_eq!((said.status.code(), said.stderr.as_slice()), (Some(3), b"full\n".as_slice()));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| said_by(helper("exec sleep 1000"), &how));
            how.press(How::AtOnce);
            assert!(waits.join().expect("no panic").expect("it starts").is_none());
        });
        how.press(How::Kindly);
        assert_eq!(how.now(), How::AtOnce, "nobody takes that back");
    }

    #[test]
    fn a_device_that_is_not_there_is_not_used() {
        assert!(!is_used(Path::new("/dev/no-such-device")).expect("known"));
    }
}
