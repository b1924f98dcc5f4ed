//! Has a program die at a step of its own: `farside-vm-die FILE STOPS COMMAND …`.
//!
//! Runs the command under the eyes of the kernel's tracer until one of its threads has opened `FILE`, lets that thread enter or leave
//! a system call so many times more, and kills the whole process there. What a moment of the clock meets once in thousands of tries
//! is met each time.

use std::io;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Waits until it is looked at.
const BEGIN: &str = "kill -STOP $$; exec \"$@\"";

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, stops, command @ ..] = &arguments[..] else {
        return Err(io::Error::other("farside-vm-die FILE STOPS COMMAND …"));
    };
    let stops: u32 = stops.parse().map_err(|_| io::Error::other(format!("{stops} is no number")))?;
    let process = Pid::from_raw(Command::new("/bin/sh").args(["-c", BEGIN, "sh"]).args(command).spawn()?.id() as i32);
    waitpid(process, Some(WaitPidFlag::WUNTRACED))?;
    let all = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(process, all)?;
    kill(process, Signal::SIGCONT)?;
    let mut opener: Option<(Pid, u32)> = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceSyscall(thread) => {
                opener = match opener {
                    None if has_opened(thread, Path::new(file)) => Some((thread, stops)),
                    Some((whose, left)) if whose == thread => Some((thread, left - 1)),
                    other => other,
                };
                if matches!(opener, Some((_, 0))) {
                    return end(process);
                }
                goes_on(thread, None)?;
            }
            // It was told to go on, or a thread begins.
            WaitStatus::PtraceEvent(thread, ..) | WaitStatus::Stopped(thread, Signal::SIGSTOP) => goes_on(thread, None)?,
            WaitStatus::Stopped(thread, signal) => goes_on(thread, signal)?,
            WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..) if ended == process => {
                return Err(io::Error::other(format!("it ended before it had opened {file}")));
            }
            _ => {}
        }
    }
}

/// One that is gone meanwhile is no error.
fn goes_on(thread: Pid, signal: impl Into<Option<Signal>>) -> io::Result<()> {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the call that the thread enters or leaves opens files, and this one is open.
fn has_opened(thread: Pid, file: &Path) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    if call.split(' ').next().and_then(|number| number.parse().ok()) != Some(libc::SYS_openat) {
        return false;
    }
    let open = std::fs::read_dir(format!("/proc/{thread}/fd")).into_iter().flatten().flatten();
    open.into_iter().any(|one| std::fs::read_link(one.path()).is_ok_and(|link| link == file))
}

fn end(process: Pid) -> io::Result<()> {
    kill(process, Signal::SIGKILL)?;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..)) if ended == process => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
