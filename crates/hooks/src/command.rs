//! Runs one stage of a command.
//!
//! It always returns: a command that is late is killed with its process group, one that does not die of that (it waits in the kernel)
//! is left. (Only starting it waits for the disk on which its program lies, as anything does.) What it writes is read to the end as long as it runs, but only the end is kept.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use farside_region::printable;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::kernel;
use crate::plan::{Cut, Hook, Plan, Stage};
use crate::wait::{Limit, Waiting, set_nonblocking};

/// How long a killed command may take to be gone.
pub(crate) const KILLED_WAIT: Duration = Duration::from_secs(2);
/// How often to look after a child where the kernel does not say when it ends.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const KEPT_BYTES: usize = 4 << 10;
/// At most this much is read at once, so that whoever writes without end does not keep its own time from passing. More than what
/// a pipe holds (64 KiB), so that all is read of one that ended.
const READ_AT_ONCE: usize = 256 << 10;
const SAID_BYTES_MAX: usize = 200;

/// What is asked of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) hook: &'a Hook,
    pub(crate) stage: Stage,
    /// In the post-cut.
    pub(crate) cut: Option<Cut>,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) said: Option<String>,
    pub(crate) failed: Option<String>,
    /// Whether there was a process at all. Where there was none, there is nothing to end.
    pub(crate) begun: bool,
}

/// Runs `words... STAGE` until it ends or its time is over.
pub(crate) fn run(asked: Asked<'_>, words: &[String], limit: &Limit, waiting: &mut Waiting) -> Done {
    let mut child = match start(asked, words) {
        Ok(child) => child,
        Err(error) => {
            let program = words.first().map(String::as_str).unwrap_or_default();
            return Done { said: None, failed: Some(format!("{program} cannot be started: {error}")), begun: false };
        }
    };
    let (mut out, mut err) = (Tail::of(child.stdout.take()), Tail::of(child.stderr.take()));
    let (status, late) = wait(&mut child, &mut out, &mut err, limit, waiting);
    let complaint = match (late, status) {
        (Some(late), Some(Ok(_))) => Some(format!("{late}, and was killed")),
        (Some(late), None) => Some(format!("{late}, and does not end although it was killed (it waits in the kernel)")),
        (_, Some(Err(error))) => Some(format!("how it ended is not known: {error}")),
        (None, Some(Ok(status))) => (!status.success()).then(|| status.to_string()),
        (None, None) => Some("how it ended is not known".to_owned()),
    };
    let last = err.last_line();
    let failed = complaint.map(|why| last.map_or_else(|| why.clone(), |last| format!("{why}: {last}")));
    let said = out.last_line();
    // Whatever it started may still write there, and must not be blocked by it.
    [out, err].into_iter().filter_map(|tail| tail.pipe).for_each(|pipe| waiting.leave(pipe));
    Done { said, failed, begun: true }
}

fn start(asked: Asked<'_>, words: &[String]) -> std::io::Result<Child> {
    let Some((program, arguments)) = words.split_first() else { return Err(ErrorKind::InvalidInput.into()) };
    let volumes: Vec<&str> = asked.plan.volumes.iter().map(|volume| volume.as_str()).collect();
    let mut command = Command::new(program);
    command.args(arguments).arg(asked.stage.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/").process_group(0);
    // What systemd gave to the guard is for the guard only.
    for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FARSIDE_CUT"] {
        command.env_remove(name);
    }
    command.env("FARSIDE_GROUP", asked.plan.group.as_str()).env("FARSIDE_VOLUMES", volumes.join(" "));
    command.env("FARSIDE_STAGE", asked.stage.to_string()).env("FARSIDE_HOOK", asked.hook.name.as_str());
    if let Some(cut) = asked.cut {
        command.env("FARSIDE_CUT", cut.to_string());
    }
    // If the guard is killed, somebody else runs the post-cut: it must not find a pre-cut that still goes on, and ends after it.
    kernel::start_fresh(&mut command, asked.stage == Stage::PreCut);
    let child = command.spawn()?;
    forgive(&child);
    Ok(child)
}

/// A guard is not killed for want of memory, and its child would inherit that: a database that a hook starts must not. Only the
/// parent can do it, with the guard's own setting left as it is.
fn forgive(child: &Child) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    if own.trim().parse().is_ok_and(|score: i32| score < 0) {
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0"); // it may be gone by now
    }
}

/// How it ended, where it did, and why it was not let go on.
fn wait(
    child: &mut Child,
    out: &mut Tail,
    err: &mut Tail,
    limit: &Limit,
    waiting: &mut Waiting,
) -> (Option<std::io::Result<ExitStatus>>, Option<String>) {
    let ended = kernel::pidfd(child.id()).ok();
    let mut late: Option<String> = None;
    let mut until = limit.until();
    loop {
        let status = child.try_wait().transpose();
        out.read();
        err.read();
        if status.is_some() {
            return (status, late);
        }
        let now = Instant::now();
        if late.is_none() {
            late = limit.over(waiting);
            if late.is_some() {
                // It was not waited for, so its number is still its own.
                let _ = killpg(pid(child), Signal::SIGKILL);
                until = now + KILLED_WAIT;
            }
        } else if now >= until {
            return (None, late);
        }
        let wake = if ended.is_some() { until } else { until.min(now + LOOK_AGAIN) };
        let fds: Vec<BorrowedFd<'_>> =
            ended.iter().map(OwnedFd::as_fd).chain([&*out, &*err].into_iter().filter_map(Tail::fd)).collect();
        waiting.wait(&fds, limit.listen && late.is_none(), wake);
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("the kernel's numbers of processes are positive and small"))
}

/// The reading end of a pipe, and the last that came out of it.
#[derive(Debug)]
struct Tail {
    /// None at its end.
    pipe: Option<File>,
    kept: Vec<u8>,
}

impl Tail {
    fn of(pipe: Option<impl Into<OwnedFd>>) -> Self {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        if let Some(pipe) = &pipe {
            set_nonblocking(pipe.as_fd());
        }
        Self { pipe, kept: Vec::new() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(File::as_fd)
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut chunk = [0; 16 << 10];
        let mut total = 0;
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.kept.extend(&chunk[..count]);
                    let excess = self.kept.len().saturating_sub(KEPT_BYTES);
                    self.kept.drain(..excess);
                    total += count;
                    if total >= READ_AT_ONCE {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn last_line(&self) -> Option<String> {
        last_line(&self.kept)
    }
}

/// The last line that says something, fit to be shown: on one line, without what steers a terminal, and short.
pub(crate) fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.split(['\n', '\r']).rev().map(str::trim).find(|line| !line.is_empty())?;
    let mut shown = printable(line, char::REPLACEMENT_CHARACTER);
    let end = (0..=SAID_BYTES_MAX.min(shown.len())).rev().find(|at| shown.is_char_boundary(*at));
    shown.truncate(end.unwrap_or_default());
    Some(shown)
}
