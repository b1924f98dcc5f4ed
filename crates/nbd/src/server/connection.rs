//! One client: its socket, what was received and not yet consumed, what is gathered to be sent.
//!
//! Invariant: at most one receive and one send are on the ring. The head buffer of a gather has room for the replies of every
//! piece that may be running, because commands are taken only while little of it is used.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Instant;

use farside_blockio::{Buffer, Errno, Gather, Ring, SharedFd, Tag, is_taken};
use nix::sys::socket::Shutdown;

use super::memory::footprint;
use super::stream::DESCRIPTORS_MAX;
use crate::{Command, Event, Head, Session};

/// Received bytes that are not consumed yet.
const INPUT_LEN: usize = 128 << 10;
/// A client's commands are taken only while the heads of unsent replies fill less than this.
const HEADS_BUSY: usize = 4 << 10;
/// The longest answer to one option or block status.
const ANSWER_MAX: usize = 4 << 10;

const _: () = assert!(DESCRIPTORS_MAX * 8 + Head::LEN_MAX <= ANSWER_MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Commands are taken.
    Open,
    /// No more input; replies are still sent.
    Closing,
    /// Nothing goes in or out.
    Broken,
}

/// What the next bytes of the stream belong to.
#[derive(Debug)]
pub(super) enum Work {
    /// A request, or an option.
    Next,
    /// Nothing: the command must start first.
    Start { cookie: u64, command: Command },
    /// Nothing: pieces of a read are still to be submitted.
    Reading(Reading),
    /// The payload of a write.
    Writing(Writing),
    /// The payload of a refused write; its reply must not overtake it.
    Discard { reply: Head },
}

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) job: u32,
    pub(super) rest: Range<u64>,
}

#[derive(Debug)]
pub(super) struct Writing {
    pub(super) job: u32,
    pub(super) rest: Range<u64>,
    pub(super) fua: bool,
    /// Of the first piece of `rest`; `None` until there is one, or while the ring receives into it.
    pub(super) buffer: Option<Buffer>,
    /// Length of that piece; 0 while it has no buffer.
    pub(super) piece: u64,
    pub(super) filled: usize,
}

/// Where a receive puts its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Into {
    Input,
    Payload,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) fd: SharedFd,
    pub(super) since: Instant,
    pub(super) session: Session,
    pub(super) state: State,
    pub(super) work: Work,
    pub(super) jobs: usize,
    /// Changes that had begun when it came: its own begin behind them. `None`: they have ended.
    pub(super) behind: Option<u64>,
    /// A change of it waits for those of others.
    pub(super) is_held: bool,
    pub(super) receiving: bool,
    receiving_into: Into,
    pub(super) sending: bool,
    pub(super) ready: bool,
    pub(super) in_line: bool,
    pub(super) first_in_line: bool,
    input: Option<Buffer>,
    pub(super) unread: Range<usize>,
    next: Gather,
    heads_used: usize,
    /// Whether an error of a change is among what is gathered, and among what is being sent.
    next_tells: bool,
    sending_tells: bool,
    /// Whether one was sent of which it is not known that the other side took it.
    told: bool,
    pub(super) spare: Option<Gather>,
    /// Its turn for memory beyond what it is guaranteed.
    pub(super) in_large: bool,
    pub(super) first_in_large: bool,
    /// Since when it has taken nothing of what it was sent, if somebody waits for that.
    pub(super) deaf_since: Option<Instant>,
    /// Memory, as the pool counts it: of reads in the queue, of what is gathered, of what is being sent, of writes.
    pub(super) reading_bytes: u64,
    next_bytes: u64,
    pub(super) sending_bytes: u64,
    pub(super) writing_bytes: u64,
}

impl Connection {
    pub(super) fn new(fd: SharedFd, session: Session, pieces_max: usize) -> io::Result<Self> {
        let heads = HEADS_BUSY + ANSWER_MAX + 2 * Head::LEN_MAX * pieces_max + 4096;
        let gather = || -> io::Result<Gather> {
            let mut gather = Gather::new();
            gather.push_buffer(Buffer::alone(heads)?);
            Ok(gather)
        };
        Ok(Self {
            fd,
            since: Instant::now(),
            session,
            state: State::Open,
            work: Work::Next,
            jobs: 0,
            behind: None,
            is_held: false,
            receiving: false,
            receiving_into: Into::Input,
            sending: false,
            ready: false,
            in_line: false,
            first_in_line: false,
            input: Some(Buffer::alone(INPUT_LEN)?),
            unread: 0..0,
            next: gather()?,
            heads_used: 0,
            next_tells: false,
            sending_tells: false,
            told: false,
            spare: Some(gather()?),
            in_large: false,
            first_in_large: false,
            deaf_since: None,
            reading_bytes: 0,
            next_bytes: 0,
            sending_bytes: 0,
            writing_bytes: 0,
        })
    }

    /// Whether unsent replies forbid to take on more.
    pub(super) fn heads_busy(&self) -> bool {
        self.heads_used >= HEADS_BUSY
    }

    /// Memory that its reads hold until it has taken the replies.
    pub(super) fn read_bytes(&self) -> u64 {
        self.reading_bytes + self.next_bytes + self.sending_bytes
    }

    /// Gathers a reply's head, or any small bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.state == State::Broken {
            return;
        }
        let range = self.heads_used..self.heads_used + bytes.len();
        self.next.buffer_mut(0)[range.clone()].copy_from_slice(bytes);
        self.next.push_slice(0, range.clone());
        self.heads_used = range.end;
    }

    /// Gathers a reply's data.
    pub(super) fn push_data(&mut self, buffer: Buffer) {
        if self.state == State::Broken {
            return;
        }
        let len = buffer.len();
        self.next_bytes += footprint(len as u64);
        let number = self.next.push_buffer(buffer);
        self.next.push_slice(number, 0..len);
    }

    /// A change ended with an error, which what is gathered next says.
    pub(super) fn tells_error(&mut self) {
        self.next_tells = true;
    }

    /// Whether the other side may not have the error of a change, as far as that can be known when its connection is at an end. That is told once.
    ///
    /// † What the kernel took is not told: a line may be cut long before either side knows, and what was sent before is lost with it.
    pub(super) fn gives_up_telling(&mut self) -> bool {
        std::mem::take(&mut self.next_tells) | std::mem::take(&mut self.sending_tells) | std::mem::take(&mut self.told)
    }

    /// Whether it has not taken the error of a change that it was sent, as of its last look, and may never. That is told once.
    pub(super) fn gives_up_told(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }

    /// Looks whether it has taken what it was sent.
    pub(super) fn look_whether_taken(&mut self) {
        if self.told && is_taken(&*self.fd).unwrap_or(false) {
            self.told = false;
        }
    }

    /// The kernel has all that was being sent.
    pub(super) fn all_sent(&mut self) {
        self.told |= std::mem::take(&mut self.sending_tells);
    }

    /// What was gathered, if it can be sent now.
    pub(super) fn next_to_send(&mut self) -> Option<Gather> {
        if self.sending || self.next.is_empty() || self.state == State::Broken {
            return None;
        }
        let spare = self.spare.take()?;
        self.heads_used = 0;
        self.sending_bytes = std::mem::take(&mut self.next_bytes);
        self.sending_tells |= std::mem::take(&mut self.next_tells);
        Some(std::mem::replace(&mut self.next, spare))
    }

    /// Whether there is a reply that the kernel does not have yet, or never gets.
    pub(super) fn owes(&self) -> bool {
        self.sending || !self.next.is_empty()
    }

    pub(super) fn send(&mut self, ring: &mut Ring, tag: Tag, gather: Gather) {
        self.sending = true;
        ring.send_gather(tag, &self.fd, gather);
    }

    /// Gives the session what is unread.
    pub(super) fn receive_event(&mut self, answer: &mut Vec<u8>) -> Option<Event> {
        let input = self.input.as_ref().expect("the ring does not have it");
        let (consumed, event) = self.session.receive(&input[self.unread.clone()], answer);
        self.unread.start += consumed;
        event
    }

    /// Moves unread bytes into the piece that a write fills; whether it is full.
    pub(super) fn fill(&mut self) -> bool {
        let (Work::Writing(writing), Some(input)) = (&mut self.work, &self.input) else { return false };
        let Some(buffer) = &mut writing.buffer else { return false };
        let take = (buffer.len() - writing.filled).min(self.unread.len());
        buffer[writing.filled..][..take].copy_from_slice(&input[self.unread.start..][..take]);
        writing.filled += take;
        self.unread.start += take;
        self.session.payload_taken(take as u64);
        writing.filled == buffer.len()
    }

    /// Asks for more bytes, unless that is under way.
    pub(super) fn receive(&mut self, ring: &mut Ring, tag: Tag) {
        if self.receiving || self.state != State::Open {
            return;
        }
        let Some(mut input) = self.input.take() else { return };
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.unread.end > INPUT_LEN / 2 {
            input.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let free = self.unread.end..input.len();
        (self.receiving, self.receiving_into) = (true, Into::Input);
        ring.recv(tag, &self.fd, input, free);
    }

    /// Asks for bytes of a payload, straight into the buffer of its piece.
    pub(super) fn receive_payload(&mut self, ring: &mut Ring, tag: Tag, buffer: Buffer, filled: usize) {
        let free = filled..buffer.len();
        (self.receiving, self.receiving_into) = (true, Into::Payload);
        ring.recv(tag, &self.fd, buffer, free);
    }

    /// Takes what a receive brought.
    pub(super) fn received(&mut self, buffer: Buffer, result: Result<u32, Errno>) {
        self.receiving = false;
        // † Of a line that was reset nothing is left to be seen, whatever was lost with it.
        if result.is_ok() {
            self.look_whether_taken();
        }
        let bytes = result.unwrap_or(0) as usize;
        match self.receiving_into {
            Into::Input => {
                self.input = Some(buffer);
                self.unread.end += bytes;
            }
            Into::Payload => {
                // After an abandoned write there is nobody to fill it for.
                if let Work::Writing(writing) = &mut self.work {
                    writing.filled += bytes;
                    writing.buffer = Some(buffer);
                    self.session.payload_taken(bytes as u64);
                }
            }
        }
        if bytes == 0 && self.state == State::Open {
            self.state = State::Closing; // the end of the stream, or a broken one: the send will tell
        }
    }

    pub(super) fn shut(&self, how: Shutdown) {
        // It fails only where the peer has hung up already, which is what is wanted.
        let _ = nix::sys::socket::shutdown(self.fd.as_raw_fd(), how);
    }

    /// Whether it is the client, not the device, that has something to do.
    pub(super) fn keeps_us_waiting(&self) -> bool {
        self.sending || self.jobs == 0
    }

    /// Whether nothing of it is left to be done.
    pub(super) fn over(&self) -> bool {
        let quiet = self.jobs == 0 && !self.receiving && !self.sending;
        let waiting = matches!(self.work, Work::Start { .. } | Work::Reading(_));
        match self.state {
            State::Open => false,
            State::Closing => quiet && !waiting && self.next.is_empty(),
            State::Broken => quiet,
        }
    }
}
