//! farsided's end of the line to a guard.
//!
//! Every wait has an end, whatever the guard does. It holds nothing but a socket: when that is closed, by a drop or by the end of
//! farsided, the guard ends what it began.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::command::KILLED_WAIT;
use crate::forgotten::Forgotten;
use crate::plan::{Cut, LINE_BYTES_MAX, Plan, PlanError, Ran, Resume, Said, Verdict};

/// What a guard may take for itself, besides its hooks.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
const WRITE_WAIT: Duration = Duration::from_secs(5);
/// How long it may take to end what other guards left.
pub const RESUME_WAIT: Duration = Duration::from_secs(3600);

/// Where guards come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Whoever listens there starts one for each connection (systemd).
    Socket(PathBuf),
    /// A program that calls [`crate::guard_main`].
    Program {
        /// Its path.
        program: PathBuf,
        /// What makes it a guard.
        args: Vec<String>,
    },
}

impl Guard {
    fn connect(&self) -> io::Result<UnixStream> {
        match self {
            Self::Socket(path) => UnixStream::connect(path),
            Self::Program { program, args } => spawn(program.clone(), args.clone()),
        }
    }
}

/// Has a guard do what [`crate::resume_forgotten`] does, with the privileges of a guard. Waits for that, [`RESUME_WAIT`] at most.
///
/// # Errors
/// There is no guard, or it was lost; what it did until then is done.
pub fn resume(guard: &Guard, directory: &Path) -> io::Result<Vec<Forgotten>> {
    let mut line = serde_json::to_vec(&Resume { version: Plan::VERSION, resume: directory.to_owned() })?;
    line.push(b'\n');
    let mut stream = guard.connect()?;
    stream.set_write_timeout(Some(WRITE_WAIT))?;
    stream.write_all(&line)?;
    let until = Instant::now() + RESUME_WAIT;
    let mut run =
        Run { stream, inbox: Vec::new(), ran: Vec::new(), state: State::Begun, ready_max: RESUME_WAIT, end_max: RESUME_WAIT };
    let mut all = Vec::new();
    loop {
        match run.next(until).map_err(io::Error::other)? {
            Said::Forgotten(forgotten) => all.push(forgotten),
            Said::Ended { why: Some(why), .. } => return Err(io::Error::other(why)),
            Said::Ended { why: None, .. } => return Ok(all),
            Said::Ran(_) | Said::Ready {} => return Err(io::Error::other("the guard said something that was not asked")),
        }
    }
}

/// How a cut with hooks ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether everything was held when the cut was taken: the point is consistent for the applications.
    pub held: bool,
    /// If not, the first reason, as a sentence.
    pub why: Option<String>,
    /// What ran, in order: pre-cuts, then post-cuts.
    pub ran: Vec<Ran>,
}

/// A guard at work for one cut: [`Run::start`], [`Run::ready`], the cut, [`Run::end`].
///
/// Dropped, or with its process killed, it counts as not taken: the guard goes on by itself and ends what it began. If the guard
/// itself is lost, its note stays: call [`crate::resume_forgotten`] whenever a cut was not held.
#[derive(Debug)]
pub struct Run {
    stream: UnixStream,
    inbox: Vec<u8>,
    ran: Vec<Ran>,
    state: State,
    /// The longest that [`Run::ready`] and [`Run::end`] wait.
    ready_max: Duration,
    end_max: Duration,
}

#[derive(Clone, Debug)]
enum State {
    /// Pre-cuts are running.
    Begun,
    Ready,
    Ended {
        held: bool,
        why: Option<String>,
    },
}

impl Run {
    /// Starts a guard, and has it begin. Call it on a thread that may block.
    ///
    /// # Errors
    /// The plan is not valid ([`ErrorKind::InvalidInput`]), or there is no guard. Nothing was begun then, or it is being ended.
    pub fn start(guard: &Guard, plan: &Plan) -> io::Result<Self> {
        let invalid = |error: PlanError| io::Error::new(ErrorKind::InvalidInput, error);
        plan.check().map_err(invalid)?;
        let mut line = serde_json::to_vec(plan)?;
        if line.len() > LINE_BYTES_MAX {
            return Err(invalid(PlanError::TooLong));
        }
        line.push(b'\n');
        Self::over(guard.connect()?, plan, &line)
    }

    /// Over a line to a guard that was started.
    pub(crate) fn over(mut stream: UnixStream, plan: &Plan, line: &[u8]) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_WAIT))?;
        stream.write_all(line)?;
        let stage = plan.timeouts() + KILLED_WAIT * u32::try_from(plan.hooks.len()).unwrap_or(u32::MAX);
        // Pre-cuts, post-cuts where one fails, and before all that the post-cuts that an earlier guard left.
        let (ready_max, end_max) = (stage * 3 + ANSWER_WAIT, stage + ANSWER_WAIT);
        Ok(Self { stream, inbox: Vec::new(), ran: Vec::new(), state: State::Begun, ready_max, end_max })
    }

    /// Waits until everything is held. Bounded by the timeouts of all hooks and stages, and some seconds.
    ///
    /// # Errors
    /// Why not, as a sentence. Then everything was ended, or is being.
    pub fn ready(&mut self) -> Result<(), String> {
        let until = Instant::now() + self.ready_max;
        while matches!(self.state, State::Begun) {
            self.hear(until);
        }
        match &self.state {
            State::Begun | State::Ready => Ok(()),
            State::Ended { why, .. } => Err(why.clone().unwrap_or_else(|| "the guard ended without a reason".to_owned())),
        }
    }

    /// Says whether the cut was taken, and waits until everything is ended. Bounded by the timeouts of all post-cuts, and some
    /// seconds.
    pub fn end(mut self, taken: bool) -> Outcome {
        let taken = taken && matches!(self.state, State::Ready);
        let verdict = Verdict { cut: if taken { Cut::Taken } else { Cut::NotTaken } };
        if let Ok(mut line) = serde_json::to_vec(&verdict) {
            line.push(b'\n');
            let _ = self.stream.write_all(&line); // whether it came is what the guard says
        }
        let until = Instant::now() + self.end_max;
        loop {
            if let State::Ended { held, why } = self.state {
                let held = held && taken;
                let why = why.or_else(|| (!held).then(|| "the cut was not taken".to_owned()));
                return Outcome { held, why: why.filter(|_| !held), ran: self.ran };
            }
            self.hear(until);
        }
    }

    /// Takes the next word of the guard. That there is none any more is its end.
    fn hear(&mut self, until: Instant) {
        match self.next(until) {
            Ok(Said::Ran(ran)) => self.ran.push(ran),
            Ok(Said::Ready {}) => self.state = State::Ready,
            Ok(Said::Ended { held, why }) => self.state = State::Ended { held, why },
            Ok(Said::Forgotten(_)) => {} // for others
            Err(why) => {
                // Whatever it still does, it is to end it.
                let _ = self.stream.shutdown(std::net::Shutdown::Both); // a guard that is gone needs no word
                self.state = State::Ended { held: false, why: Some(why) };
            }
        }
    }

    fn next(&mut self, until: Instant) -> Result<Said, String> {
        let lost = |error: io::Error| format!("the guard is lost: {error}");
        loop {
            if let Some(end) = self.inbox.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.inbox.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| format!("the guard said something that is not known: {error}"));
            }
            if self.inbox.len() > LINE_BYTES_MAX {
                return Err("the guard said something that is too long".to_owned());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("the guard does not answer".to_owned());
            }
            self.stream.set_read_timeout(Some(left)).map_err(lost)?;
            let mut chunk = [0; 8 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("the guard is lost: it ended before its last word".to_owned()),
                Ok(count) => self.inbox.extend(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

/// Starts a guard of our own, and has a thread wait for its end, whenever that is.
fn spawn(program: PathBuf, args: Vec<String>) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let (input, output) = (OwnedFd::from(theirs.try_clone()?), OwnedFd::from(theirs));
    let (started, starts) = mpsc::channel();
    let life = move || {
        let mut command = Command::new(program);
        // In a group of its own: who kills ours, as a terminal does, does not mean the guard.
        command.args(args).stdin(Stdio::from(input)).stdout(Stdio::from(output)).process_group(0);
        let child = command.spawn();
        // It has our copy of its end of the line: with that open we would never see that it is gone.
        drop(command);
        match child {
            Ok(mut child) => {
                let _ = started.send(Ok(())); // whoever asked may be gone
                let _ = child.wait(); // how it ended, it said itself
            }
            Err(error) => drop(started.send(Err(error))),
        }
    };
    Builder::new().name("hooks-guard".into()).spawn(life)?;
    starts.recv().unwrap_or_else(|_| Err(ErrorKind::BrokenPipe.into()))?;
    Ok(ours)
}
