//! What waits for I/O on a tap of ours is done by a process of its own.
//!
//! Invariant: no thread of the daemon waits in the kernel for a request that the daemon itself must serve. If it were killed
//! then, the thread could not end before the request does, and it holds the doors that a successor needs to serve it: both
//! would wait for ever. A helper holds nothing: it waits until a successor serves the tap, and finishes.
//!
//! The helper is this very program, told so by its first argument. One helper at a time works on a device: it holds a lock,
//! and whoever comes after it waits for that, with the tap served already.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use farside_blockio::Buffer;
use farside_blockio::dm::DevNumber;
use farside_insert::Insertion;
use farside_nbd::kernel::{self, Setting};

use crate::tap;

const ARGUMENT: &str = "--change-device";
/// What a helper prints that had nothing to do.
const AS_IT_WAS: &str = "as it was\n";
/// How often a helper is looked for that may not take as long as it likes.
const HELPER_POLL: Duration = Duration::from_millis(20);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Put a tap under a device.
    Insert {
        /// The device.
        device: PathBuf,
        /// The tap's node.
        tap: PathBuf,
    },
    /// Put a device on its own disks again.
    TakeOut {
        /// The device.
        device: PathBuf,
    },
    /// Write what the page cache holds for a tap's own node.
    Sync {
        /// The tap's node.
        tap: PathBuf,
    },
    /// Write a piece of a tap again as it is, unless somebody uses the tap.
    WriteAgain {
        /// The tap's node.
        tap: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// Make a device of the kernel's NBD client as it should be.
    Settle(Setting),
    /// End such a device, whose server is gone, if nobody uses it.
    Disconnect {
        /// By which the kernel knows it.
        identifier: String,
    },
    /// The same of a device of ublk's.
    EndUblk {
        /// By which the kernel knows it.
        token: u64,
    },
}

impl Change {
    fn arguments(&self) -> Vec<PathBuf> {
        match self {
            Self::Insert { device, tap } => vec!["insert".into(), device.clone(), tap.clone()],
            Self::TakeOut { device } => vec!["take-out".into(), device.clone()],
            Self::Sync { tap } => vec!["sync".into(), tap.clone()],
            Self::WriteAgain { tap, offset, bytes } => {
                vec!["write-again".into(), tap.clone(), offset.to_string().into(), bytes.to_string().into()]
            }
            Self::Settle(setting) => ["settle".into()].into_iter().chain(setting.words()).map(PathBuf::from).collect(),
            Self::Disconnect { identifier } => vec!["disconnect".into(), identifier.into()],
            Self::EndUblk { token } => vec!["end-ublk".into(), token.to_string().into()],
        }
    }

    /// Has a helper do it, and waits for that. False: it was so already.
    ///
    /// # Errors
    /// What the helper says.
    pub(crate) fn make(&self, runtime_dir: &Path) -> anyhow::Result<bool> {
        let output = self.helper(runtime_dir).output().context("no helper can be started")?;
        Self::made(&output)
    }

    /// As [`Change::make`], and waits for the helper no longer than so. Then it is killed: what the kernel keeps it waiting for it gets
    /// no more, and what it had not begun is not begun.
    ///
    /// # Errors
    /// Also when it takes longer.
    pub(crate) fn make_within(&self, patience: Duration, runtime_dir: &Path) -> anyhow::Result<bool> {
        let until = Instant::now() + patience;
        let mut helper = self.helper(runtime_dir).spawn().context("no helper can be started")?;
        while helper.try_wait().context("a child can be waited for")?.is_none() {
            if Instant::now() >= until {
                let killed = helper.kill();
                // The kernel may need as long as the device does.
                std::thread::spawn(move || helper.wait());
                killed.context("a helper cannot be killed")?;
                bail!("the kernel does not answer within {} s ({}): its log may say why", patience.as_secs(), self.words());
            }
            std::thread::sleep(HELPER_POLL);
        }
        // What it says fits into a pipe.
        Self::made(&helper.wait_with_output().context("a child can be waited for")?)
    }

    fn helper(&self, runtime_dir: &Path) -> Command {
        let mut command = Command::new("/proc/self/exe"); // also after an upgrade
        let daemon = std::process::id().to_string();
        command.arg(ARGUMENT).arg(daemon).arg(runtime_dir).args(self.arguments());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn made(output: &Output) -> anyhow::Result<bool> {
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout != AS_IT_WAS.as_bytes())
    }

    fn words(&self) -> String {
        self.arguments().iter().map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
    }
}

/// If this process was started as a helper: does its work, and says how it ended. To be called first of all.
pub fn as_helper() -> Option<ExitCode> {
    if let Some(code) = crate::hooks::as_guard() {
        return Some(code);
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let arguments: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    match end_with(arguments.first()).and_then(|()| help(&arguments[1..])) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

/// What a daemon did not live to see begin does not begin: its successor may have looked at the device already. In the kernel a
/// helper stays until it is through.
fn end_with(parent: Option<&PathBuf>) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let alive = parent.and_then(|pid| pid.to_str()?.parse().ok()) == Some(nix::unistd::getppid().as_raw());
    anyhow::ensure!(alive, "{ARGUMENT} is for farsided itself");
    Ok(())
}

fn help(arguments: &[PathBuf]) -> anyhow::Result<()> {
    let words: Vec<&Path> = arguments.iter().map(PathBuf::as_path).collect();
    let (runtime_dir, what, device) = match words[..] {
        [runtime_dir, what, device, ..] => (runtime_dir, what, device),
        _ => bail!("{ARGUMENT} is for farsided itself"),
    };
    if what == Path::new("sync") {
        // Not for writing: udev looks at a device that was open for that anew, which may be about to go.
        let node = File::open(device).with_context(|| format!("cannot open {}", device.display()))?;
        return node.sync_all().with_context(|| format!("{}: what was written to it last may be lost", device.display()));
    }
    if let (Some("write-again"), [offset, bytes]) = (what.to_str(), &words[3..]) {
        let number = |word: &Path| word.to_str().and_then(|word| word.parse::<u64>().ok());
        let (offset, bytes) = number(offset).zip(number(bytes)).with_context(|| format!("{ARGUMENT} is for farsided itself"))?;
        // By which a successor knows of it: a killed helper's is held until the kernel has ended its write.
        let file = open_lock(runtime_dir, device)?;
        file.lock().context("the device's lock cannot be had")?;
        if !write_again(device, offset, bytes).with_context(|| format!("cannot write {} again", device.display()))? {
            print!("{AS_IT_WAS}");
        }
        return Ok(());
    }
    if what == Path::new("settle") {
        let words: Option<Vec<&str>> = words[2..].iter().map(|word| word.to_str()).collect();
        let setting = words.and_then(|words| Setting::of_words(&words));
        return Ok(setting.with_context(|| format!("{ARGUMENT} is for farsided itself"))?.make()?);
    }
    if what == Path::new("disconnect") {
        let mut user = None;
        let is_free = |device: &Path| tap::awaited_by_nobody(device).map_err(|error| user = Some(error)).is_ok();
        let gone = kernel::disconnect(device.to_str().unwrap_or_default(), is_free);
        // Who uses it says more than that somebody does.
        let gone = gone.map_err(|error| user.take().unwrap_or_else(|| error.into()))?;
        if gone.is_none() {
            print!("{AS_IT_WAS}");
        }
        return Ok(());
    }
    if what == Path::new("end-ublk") {
        let token = device.to_str().and_then(|token| token.parse().ok());
        match farside_ublk::held(token.with_context(|| format!("{ARGUMENT} is for farsided itself"))?)? {
            Some(held) => {
                // † Only now: who has opened it while the kernel kept us waiting may have it.
                tap::awaited_by_nobody(&held.path())?;
                held.remove()?;
            }
            None => print!("{AS_IT_WAS}"),
        }
        return Ok(());
    }
    let tap = match (what.to_str(), &words[3..]) {
        (Some("insert"), [tap]) => Some(*tap),
        (Some("take-out"), []) => None,
        _ => bail!("{ARGUMENT} is for farsided itself"),
    };
    let file = open_lock(runtime_dir, device)?;
    file.lock().context("the device's lock cannot be had")?;
    // With the lock, what looks half done is.
    let insertion = Insertion::prepare(device, true)?;
    match tap {
        Some(tap) if insertion.insert(tap)? => {}
        Some(_) => print!("{AS_IT_WAS}"),
        None => insertion.take_out()?,
    }
    Ok(())
}

/// False: somebody uses it.
fn write_again(device: &Path, offset: u64, bytes: u64) -> io::Result<bool> {
    use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
    let mut options = File::options();
    let exclusive = options.read(true).write(true).custom_flags(nix::libc::O_DIRECT | nix::libc::O_EXCL).open(device);
    let file = match exclusive {
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => return Ok(false),
        file => file?,
    };
    let mut piece = Buffer::alone(bytes as usize)?;
    file.read_exact_at(&mut piece, offset)?;
    file.write_all_at(&piece, offset)?;
    Ok(true)
}

/// Whether no helper works on a device.
///
/// # Errors
/// When that cannot be known.
pub(crate) fn is_idle(runtime_dir: &Path, device: &Path) -> anyhow::Result<bool> {
    is_idle_number(runtime_dir, number_of(device)?)
}

/// The same of a device whose number is known.
///
/// # Errors
/// When that cannot be known.
pub(crate) fn is_idle_number(runtime_dir: &Path, number: DevNumber) -> anyhow::Result<bool> {
    match open_lock_of(runtime_dir, number)?.try_lock() {
        Ok(()) => Ok(true), // and let go at once: a helper waits for it so long
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error).context("the device's lock cannot be had"),
    }
}

fn number_of(device: &Path) -> anyhow::Result<DevNumber> {
    DevNumber::at(device).with_context(|| format!("cannot look at {}", device.display()))
}

fn open_lock(runtime_dir: &Path, device: &Path) -> anyhow::Result<File> {
    open_lock_of(runtime_dir, number_of(device)?)
}

fn open_lock_of(runtime_dir: &Path, number: DevNumber) -> anyhow::Result<File> {
    let path = runtime_dir.join(format!("device-{}-{}.lock", number.major, number.minor));
    let open = || -> io::Result<File> {
        std::fs::create_dir_all(runtime_dir)?;
        File::options().create(true).truncate(false).write(true).open(&path)
    };
    open().with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a helper holds of a device at which it works.
    pub(crate) fn lock(runtime_dir: &Path, device: &Path) -> File {
        let helper = open_lock(runtime_dir, device).expect("opened");
        helper.lock().expect("locked");
        helper
    }

    #[test]
    fn a_device_at_which_a_helper_works_is_not_idle() {
        let dir = tempfile::tempdir().expect("temp dir");
        let device = Path::new("/dev/null");
        assert!(is_idle(dir.path(), device).expect("known"));
        let helper = lock(dir.path(), device);
        assert!(!is_idle(dir.path(), device).expect("known"));
        drop(helper);
        assert!(is_idle(dir.path(), device).expect("known"));
    }

    #[test]
    fn a_helper_wants_its_words() {
        let dir = tempfile::tempdir().expect("temp dir");
        for words in [
            &["insert", "/dev/null"][..],
            &["take-out", "/dev/null", "/dev/null"],
            &["write-again", "/dev/null", "0"],
            &["dance", "/dev/null"],
            &["settle", "queue", "0", "../x", "1"],
            &["end-ublk", "mine"],
            &[],
        ] {
            let arguments: Vec<PathBuf> = [dir.path().to_owned()].into_iter().chain(words.iter().map(PathBuf::from)).collect();
            let error = help(&arguments).expect_err("not what it does").to_string();
            assert!(error.ends_with("is for farsided itself"), "{error}");
        }
    }
}
