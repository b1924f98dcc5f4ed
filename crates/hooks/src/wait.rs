//! The one place where a guard waits.
//!
//! Owns farsided's line (what came in, what is still to go out) and the pipes that commands left open. Whatever is waited for, those
//! are served meanwhile: a guard never blocks in a read or a write, so that nobody else can keep it from ending what it began.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::plan::{LINE_BYTES_MAX, Said};

const CHUNK: usize = 64 << 10;
/// Where poll itself fails, for want of memory.
const POLL_FAILED: Duration = Duration::from_millis(10);

/// A line of farsided, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Line(Vec<u8>),
    TooLong,
    /// The end of its input.
    Gone,
}

/// What is served while something else is waited for.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    peer: Option<Peer>,
    leftovers: Vec<File>,
}

#[derive(Debug)]
struct Peer {
    input: OwnedFd,
    inbox: Vec<u8>,
    closed: bool,
    output: OwnedFd,
    outbox: Vec<u8>,
    /// Nobody reads what is said, and nobody will.
    deaf: bool,
}

impl Waiting {
    /// With farsided at the other end.
    pub(crate) fn with_peer(input: OwnedFd, output: OwnedFd) -> Self {
        set_nonblocking(output.as_fd());
        let peer = Peer { input, inbox: Vec::new(), closed: false, output, outbox: Vec::new(), deaf: false };
        Self { peer: Some(peer), leftovers: Vec::new() }
    }

    /// Takes over the reading end of a pipe that somebody may still write to: its content is nobody's interest, but a full pipe
    /// would block the writer.
    pub(crate) fn leave(&mut self, pipe: File) {
        self.leftovers.push(pipe);
    }

    /// Says something; it goes out now or during later waits.
    pub(crate) fn say(&mut self, said: &Said) {
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.deaf) else { return };
        if let Ok(line) = serde_json::to_vec(said) {
            peer.outbox.extend(line);
            peer.outbox.push(b'\n');
        }
        peer.flush();
    }

    /// Waits until all that was said has gone out, or nobody will read it, or it is late.
    pub(crate) fn flush(&mut self, until: Instant) {
        while self.peer.as_ref().is_some_and(|peer| !peer.outbox.is_empty()) && Instant::now() < until {
            self.wait(&[], false, until);
        }
    }

    /// Whether farsided said something that was not taken yet, or is gone.
    pub(crate) fn has_heard(&self) -> bool {
        self.peer.as_ref().is_some_and(Peer::has_heard)
    }

    /// Takes the next line, if it is there.
    pub(crate) fn heard(&mut self) -> Option<Heard> {
        self.peer.as_mut()?.heard()
    }

    /// Waits until one of `fds` can be read from (or is at its end), farsided has said something (if `listen`), or it is `until`;
    /// it may also return for nothing.
    pub(crate) fn wait(&mut self, fds: &[BorrowedFd<'_>], listen: bool, until: Instant) {
        let mut polled: Vec<PollFd<'_>> = Vec::new();
        let leftovers = self.leftovers.iter().map(File::as_fd);
        polled.extend(leftovers.chain(fds.iter().copied()).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let heard_at = polled.len();
        let listening = self.peer.as_ref().filter(|peer| listen && !peer.has_heard());
        polled.extend(listening.map(|peer| PollFd::new(peer.input.as_fd(), PollFlags::POLLIN)));
        let is_listening = listening.is_some();
        let talking = self.peer.as_ref().filter(|peer| !peer.outbox.is_empty());
        polled.extend(talking.map(|peer| PollFd::new(peer.output.as_fd(), PollFlags::POLLOUT)));
        match poll(&mut polled, timeout(until)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return,
            Err(_) => thread::sleep(POLL_FAILED.min(until.saturating_duration_since(Instant::now()))),
        }
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(polled);
        let mut at = 0;
        self.leftovers.retain_mut(|pipe| {
            at += 1;
            !ready[at - 1] || !is_over(&pipe.read(&mut [0; CHUNK]))
        });
        if let Some(peer) = &mut self.peer {
            if is_listening && ready[heard_at] {
                peer.read();
            }
            peer.flush();
        }
    }
}

impl Peer {
    fn has_heard(&self) -> bool {
        self.closed || self.inbox.len() > LINE_BYTES_MAX || self.inbox.contains(&b'\n')
    }

    fn heard(&mut self) -> Option<Heard> {
        if let Some(end) = self.inbox.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.inbox.drain(..=end).collect();
            line.pop();
            return Some(if line.len() > LINE_BYTES_MAX { Heard::TooLong } else { Heard::Line(line) });
        }
        if self.inbox.len() > LINE_BYTES_MAX {
            return Some(Heard::TooLong);
        }
        self.closed.then_some(Heard::Gone)
    }

    /// Called when there is something to read, so it does not block.
    fn read(&mut self) {
        let mut chunk = [0; CHUNK];
        match nix::unistd::read(&self.input, &mut chunk) {
            Ok(0) => self.closed = true,
            Ok(count) => self.inbox.extend(&chunk[..count]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.closed = true,
        }
    }

    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            match nix::unistd::write(&self.output, &self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.deaf = true;
                    self.outbox.clear();
                }
            }
        }
    }
}

fn is_over(read: &io::Result<usize>) -> bool {
    read.as_ref()
        .map_or_else(|error| !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted), |count| *count == 0)
}

/// Until when something may go on.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) began: Instant,
    pub(crate) timeout: Duration,
    /// The end of the hold, where it has begun.
    pub(crate) hold_until: Option<Instant>,
    /// Whether a word of farsided ends it.
    pub(crate) listen: bool,
}

impl Limit {
    /// Nothing but its time ends it.
    pub(crate) fn only(timeout: Duration) -> Self {
        Self { began: Instant::now(), timeout, hold_until: None, listen: false }
    }

    /// The latest end.
    pub(crate) fn until(&self) -> Instant {
        let timeout = self.began + self.timeout;
        self.hold_until.map_or(timeout, |hold| hold.min(timeout))
    }

    /// Why it is over now.
    pub(crate) fn over(&self, waiting: &Waiting) -> Option<String> {
        let now = Instant::now();
        if now >= self.began + self.timeout {
            return Some(format!("it was not done after {:?}", self.timeout));
        }
        if self.hold_until.is_some_and(|until| now >= until) {
            return Some("it was not done when the hold ran out, which began with the first freeze".to_owned());
        }
        (self.listen && waiting.has_heard()).then(|| "it was not done when farsided gave up".to_owned())
    }
}

/// For whoever waits with poll. Failing that, a write may block.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) {
    if let Ok(flags) = fcntl(fd, FcntlArg::F_GETFL) {
        let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK)); // fails for no open descriptor
    }
}

fn timeout(until: Instant) -> PollTimeout {
    // Rounded up: a wait that ends just before its time would be repeated without a pause.
    let left = until.saturating_duration_since(Instant::now()).as_nanos().div_ceil(1_000_000);
    i32::try_from(left).ok().and_then(|left| PollTimeout::try_from(left).ok()).unwrap_or(PollTimeout::MAX)
}
