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
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use farside_blockio::dm::DevNumber;
use farside_insert::Insertion;

const ARGUMENT: &str = "--change-device";
/// What a helper prints that had nothing to do.
const AS_IT_WAS: &str = "as it was\n";

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
}

impl Change {
    fn arguments(&self) -> Vec<PathBuf> {
        match self {
            Self::Insert { device, tap } => vec!["insert".into(), device.clone(), tap.clone()],
            Self::TakeOut { device } => vec!["take-out".into(), device.clone()],
            Self::Sync { tap } => vec!["sync".into(), tap.clone()],
        }
    }

    /// Has a helper do it, and waits for that. False: it was so already.
    ///
    /// # Errors
    /// What the helper says.
    pub(crate) fn make(&self, runtime_dir: &Path) -> anyhow::Result<bool> {
        let mut command = Command::new("/proc/self/exe"); // also after an upgrade
        command
            .arg(ARGUMENT)
            .arg(std::process::id().to_string())
            .arg(runtime_dir)
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let output = command.stderr(Stdio::piped()).output().context("no helper can be started")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout != AS_IT_WAS.as_bytes())
    }
}

/// If this process was started as a helper: does its work, and says how it ended. To be called first of all.
pub fn as_helper() -> Option<ExitCode> {
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
        let node = File::options().write(true).open(device).with_context(|| format!("cannot open {}", device.display()))?;
        return node.sync_all().with_context(|| format!("{}: what was written to it last may be lost", device.display()));
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

/// Whether no helper works on a device.
///
/// # Errors
/// When that cannot be known.
pub(crate) fn is_idle(runtime_dir: &Path, device: &Path) -> anyhow::Result<bool> {
    match open_lock(runtime_dir, device)?.try_lock() {
        Ok(()) => Ok(true), // and let go at once: only one daemon starts helpers
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error).context("the device's lock cannot be had"),
    }
}

fn open_lock(runtime_dir: &Path, device: &Path) -> anyhow::Result<File> {
    let number = DevNumber::at(device).with_context(|| format!("cannot look at {}", device.display()))?;
    let path = runtime_dir.join(format!("device-{}-{}.lock", number.major, number.minor));
    let open = || -> io::Result<File> {
        std::fs::create_dir_all(runtime_dir)?;
        File::options().create(true).truncate(false).write(true).open(&path)
    };
    open().with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_at_which_a_helper_works_is_not_idle() {
        let dir = tempfile::tempdir().expect("temp dir");
        let device = Path::new("/dev/null");
        assert!(is_idle(dir.path(), device).expect("known"));
        let helper = open_lock(dir.path(), device).expect("opened");
        helper.lock().expect("locked");
        assert!(!is_idle(dir.path(), device).expect("known"));
        drop(helper);
        assert!(is_idle(dir.path(), device).expect("known"));
    }

    #[test]
    fn a_helper_wants_its_words() {
        let dir = tempfile::tempdir().expect("temp dir");
        for words in [&["insert", "/dev/null"][..], &["take-out", "/dev/null", "/dev/null"], &["dance", "/dev/null"], &[]] {
            let arguments: Vec<PathBuf> = [dir.path().to_owned()].into_iter().chain(words.iter().map(PathBuf::from)).collect();
            let error = help(&arguments).expect_err("not what it does").to_string();
            assert!(error.ends_with("is for farsided itself"), "{error}");
        }
    }
}
