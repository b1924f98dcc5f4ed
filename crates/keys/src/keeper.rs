//! What unwraps a group's key: a passphrase, a file, or a command that speaks with whoever keeps keys.
//!
//! This is the one place of the crate that reads files and starts programs. Nothing is kept: what was read is overwritten when the
//! wrapping or unwrapping is done.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::wrapping::WRAPPING_BYTES_MAX;

/// The largest key file or passphrase.
const SECRET_BYTES_MAX: usize = 64 << 10;
/// A key file with fewer bytes is a mistake: it could be guessed.
const FILE_BYTES_MIN: usize = 16;
/// A command that is not done by then is ended; a file system that gives no file by then is waited for no longer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Whether it has ended is looked at so often, once it has said all.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What it started may hold its standard error open.
const WORDS_WAIT: Duration = Duration::from_secs(1);

/// What unwraps a group's key, as people name it.
#[derive(Clone, PartialEq, Eq)]
pub enum Keeper {
    /// `file:PATH`: all bytes of a file, which should be random ones.
    File(PathBuf),
    /// `passphrase:PATH`: the first line of a file.
    PassphraseFile(PathBuf),
    /// `passphrase`: asked for, by whoever has a terminal or an environment.
    Passphrase(Option<Zeroizing<String>>),
    /// `command:PROGRAM ARGUMENT…`: a program that is given a secret and gives back bytes to be stored (`wrap`), or the other way
    /// (`unwrap`).
    Command(Vec<String>),
}

/// As people name it, without any passphrase. † Of a program only its name, for all logs and whoever reads a status: among its arguments may be a token.
impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::PassphraseFile(path) => write!(f, "passphrase:{}", path.display()),
            Self::Passphrase(_) => f.write_str("passphrase"),
            Self::Command(words) => write!(f, "command:{}", program(words)),
        }
    }
}

/// What is called, and whether with arguments.
pub(crate) fn program(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [program] => program.clone(),
        [program, ..] => format!("{program} …"),
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({self})")
    }
}

/// It names no way to a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` names no key: say file:PATH, passphrase, passphrase:PATH or command:PROGRAM")]
pub struct ParseKeeperError(String);

impl FromStr for Keeper {
    type Err = ParseKeeperError;

    fn from_str(text: &str) -> Result<Self, ParseKeeperError> {
        let bad = || ParseKeeperError(text.to_owned());
        match text.split_once(':') {
            None if text == "passphrase" => Ok(Self::Passphrase(None)),
            Some((_, rest)) if rest.trim().is_empty() => Err(bad()),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("passphrase", path)) => Ok(Self::PassphraseFile(path.into())),
            Some(("command", words)) => Ok(Self::Command(words.split_whitespace().map(str::to_owned).collect())),
            _ => Err(bad()),
        }
    }
}

impl Keeper {
    /// What [`Keeper::for_service`] takes, in words.
    pub const SERVICE_WORDS: &str = "file:PATH, passphrase:PATH or command:PROGRAM ARGUMENT…, with absolute paths";

    /// One for a service: that nobody has to be there for, and that does not depend on where the service was started.
    ///
    /// # Errors
    /// What is wrong with the text, in words.
    pub fn for_service(text: &str) -> Result<Self, String> {
        let words = Self::SERVICE_WORDS;
        let keeper: Self = text.parse().map_err(|_| format!("names no key: say {words}"))?;
        let is_absolute = match &keeper {
            Self::File(path) | Self::PassphraseFile(path) => path.is_absolute(),
            Self::Command(words) => words.first().is_some_and(|program| Path::new(program).is_absolute()),
            Self::Passphrase(_) => {
                return Err("nobody is there to be asked for a passphrase: name a file, passphrase:PATH".to_owned());
            }
        };
        if is_absolute { Ok(keeper) } else { Err(format!("must be an absolute path: {words}")) }
    }
}

/// Why a secret cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// The file cannot be read.
    #[error("the key cannot be read from {path}: {why}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: std::io::Error,
    },
    /// It is a pipe, a device or a directory.
    #[error("{path} is no regular file, and a key is read anew for each of its wrappings: keep it in a file, or name a command", path = path.display())]
    NoRegularFile {
        /// Which.
        path: PathBuf,
    },
    /// Whatever gives the file does not answer.
    #[error(
        "the key cannot be read from {path}: its file system gave no answer within {} s. See whether it is mounted and its server runs, or name \
         another file or program", waited.as_secs(), path = path.display()
    )]
    Unanswered {
        /// Which.
        path: PathBuf,
        /// What was enough.
        waited: Duration,
    },
    /// Too short or too long.
    #[error("{path} holds {bytes} bytes: a key file has {FILE_BYTES_MIN} to {SECRET_BYTES_MAX}, all of them random", path = path.display())]
    FileBytes {
        /// Which.
        path: PathBuf,
        /// What it has.
        bytes: usize,
    },
    /// There is none.
    #[error("there is no passphrase{}", from.as_ref().map_or_else(String::new, |path| format!(" in the first line of {}", path.display())))]
    NoPassphrase {
        /// Where it was looked for.
        from: Option<PathBuf>,
    },
    /// The program could not be started, or failed.
    #[error("`{command} {verb}` failed: {why}")]
    Command {
        /// The program, without what its arguments are.
        command: String,
        /// `wrap` or `unwrap`.
        verb: &'static str,
        /// Why; what it said.
        why: String,
    },
}

impl Keeper {
    /// The bytes of a key file.
    pub(crate) fn file(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
        let bytes = read(path)?;
        if (FILE_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
            return Ok(bytes);
        }
        Err(KeeperError::FileBytes { path: path.to_owned(), bytes: bytes.len() })
    }

    /// The passphrase, if it is one.
    pub(crate) fn passphrase(&self) -> Result<Option<Zeroizing<Vec<u8>>>, KeeperError> {
        let (bytes, from) = match self {
            Self::Passphrase(given) => {
                let given = given.as_ref().map(|given| given.as_bytes().to_vec());
                (Zeroizing::new(given.unwrap_or_default()), None)
            }
            Self::PassphraseFile(path) => {
                let mut bytes = read(path)?;
                let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
                bytes.truncate(end);
                if bytes.last() == Some(&b'\r') {
                    bytes.pop();
                }
                (bytes, Some(path.clone()))
            }
            Self::File(_) | Self::Command(_) => return Ok(None),
        };
        if bytes.is_empty() { Err(KeeperError::NoPassphrase { from }) } else { Ok(Some(bytes)) }
    }
}

/// The files that gave no answer in time, and who waits for it still.
static UNANSWERED: Mutex<Vec<(PathBuf, Weak<()>)>> = Mutex::new(Vec::new());

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    read_within(ANSWER_WAIT, path, read_file)
}

/// † A file system whose server is gone answers never: whoever waits for a key holds what others need. What hangs cannot be ended, so while it
/// does it is not tried again: each try would leave one more thread behind.
pub(crate) fn read_within(
    wait: Duration,
    path: &Path,
    read: impl FnOnce(&Path) -> Result<Zeroizing<Vec<u8>>, KeeperError> + Send + 'static,
) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    let unanswered = || KeeperError::Unanswered { path: path.to_owned(), waited: wait };
    let waiting = || UNANSWERED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_waited_for = {
        let mut waiting = waiting();
        waiting.retain(|(_, thread)| thread.strong_count() > 0);
        waiting.iter().any(|(known, _)| known == path)
    };
    if is_waited_for {
        return Err(unanswered());
    }
    let (done, answer) = mpsc::channel();
    let (alive, of) = (Arc::new(()), path.to_owned());
    let thread = Arc::downgrade(&alive);
    let reading = move || {
        let _ = done.send(read(&of)); // what nobody waits for any more is overwritten
        drop(alive);
    };
    let started = thread::Builder::new().name("keeper".to_owned()).spawn(reading);
    started.map_err(|why| KeeperError::File { path: path.to_owned(), why })?;
    answer.recv_timeout(wait).unwrap_or_else(|_| {
        waiting().push((path.to_owned(), thread));
        Err(unanswered())
    })
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    let failed = |why| KeeperError::File { path: path.to_owned(), why };
    // Nobody may ever write to a pipe.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(KeeperError::NoRegularFile { path: path.to_owned() });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 1)); // so that it is not moved as it grows
    file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Runs a keeper's command: `input` on its standard input, what it writes to its standard output comes back.
pub(crate) fn run(words: &[String], verb: &'static str, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    // One that asks a person at his terminal must stay in its foreground; it ends with Ctrl-C.
    run_with(words, verb, input, File::open("/dev/tty").is_err())
}

/// With a group of its own all that it started ends with it.
pub(crate) fn run_with(
    words: &[String],
    verb: &'static str,
    input: &[u8],
    own_group: bool,
) -> Result<Zeroizing<Vec<u8>>, KeeperError> {
    let failed = |why: String| KeeperError::Command { command: program(words), verb, why };
    let (name, arguments) = words.split_first().ok_or_else(|| failed("no program is named".into()))?;
    let mut command = Command::new(name);
    command.args(arguments).arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if own_group {
        command.process_group(0);
    }
    let mut child = Started { child: command.spawn().map_err(|e| failed(e.to_string()))?, own_group };
    let until = Instant::now() + ANSWER_WAIT;
    let (done, end) = mpsc::channel();
    let (mut stdin, stdout, stderr) = (child.child.stdin.take(), child.child.stdout.take(), child.child.stderr.take());
    // One that reads nothing would make us wait for it.
    let input = Zeroizing::new(input.to_vec());
    thread::spawn(move || stdin.as_mut().map(|stdin| stdin.write_all(&input)));
    let (heard, words_of) = mpsc::channel();
    thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut from) = stderr {
            let _ = from.by_ref().take(1024).read_to_end(&mut said); // what it did not say is not told
            let _ = heard.send(String::from_utf8_lossy(&said).trim().to_owned());
            // Whoever says more than that must not end by it.
            let _ = std::io::copy(&mut from, &mut std::io::sink());
        }
    });
    thread::spawn(move || {
        let mut output = Zeroizing::new(Vec::with_capacity(WRAPPING_BYTES_MAX + 1));
        let read = stdout.map_or(Ok(0), |from| from.take(WRAPPING_BYTES_MAX as u64 + 1).read_to_end(&mut output));
        let _ = done.send(read.map(|_| output));
    });
    let output = match end.recv_timeout(ANSWER_WAIT) {
        Ok(Ok(output)) if output.len() <= WRAPPING_BYTES_MAX => output,
        Ok(Ok(_)) => return Err(failed(format!("it wrote more than {WRAPPING_BYTES_MAX} bytes{}", ended(&mut child)))),
        Ok(Err(error)) => return Err(failed(format!("{error}{}", ended(&mut child)))),
        Err(_) => return Err(failed(format!("it was not done after {} s{}", ANSWER_WAIT.as_secs(), ended(&mut child)))),
    };
    // It may close its output and go on.
    let status = loop {
        match child.has_ended() {
            Ok(true) => break child.end().map_err(|error| failed(error.to_string()))?,
            Ok(false) if Instant::now() < until => thread::sleep(LOOK_AGAIN),
            Ok(false) => return Err(failed(format!("it was not done after {} s{}", ANSWER_WAIT.as_secs(), ended(&mut child)))),
            Err(error) => return Err(failed(format!("{error}{}", ended(&mut child)))),
        }
    };
    if !status.success() {
        let said = words_of.recv_timeout(WORDS_WAIT).unwrap_or_default();
        return Err(failed(if said.is_empty() { status.to_string() } else { format!("{status}: {said}") }));
    }
    Ok(output)
}

/// A command that runs, or has just ended.
struct Started {
    child: Child,
    own_group: bool,
}

impl Started {
    /// Without taking note of it: its number stays its own.
    fn has_ended(&self) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(self.pid()), flags)? != WaitStatus::StillAlive)
    }

    /// Ends it, and whatever it started. † Children that go on would hold its pipes, and a thread of ours for each, at every try. Before its end is
    /// taken note of: after that its number may be another's.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if self.own_group {
            let _ = killpg(self.pid(), Signal::SIGKILL); // what has ended is past that
        }
        if !self.has_ended()? {
            self.child.kill()?;
        }
        self.child.wait()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number is positive"))
    }
}

/// Ends a command that is of no use any more.
fn ended(started: &mut Started) -> &'static str {
    match started.end() {
        Ok(_) => ", and was ended",
        Err(_) => "",
    }
}
