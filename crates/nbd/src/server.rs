//! One thread, one ring: the clients' sockets, their sessions and the queue.
//!
//! A client's stream is worked on in order; its commands become *jobs*, a job of more than one piece's length several
//! *pieces* (each a request of the queue). Replies are gathered and sent as their jobs end, in any order.
//!
//! Back-pressure, in one place: a connection is not read while its jobs, its unsent replies, the pieces of all connections
//! or its part of the buffers ([`memory`]) are at their limit. Who waits for pieces waits in one line and takes turns; who waits
//! for memory beyond what it is guaranteed, in another, which nobody else passes for such memory. Both are for what comes back by
//! itself, but for replies that a client does not take: who holds what others wait for, and takes nothing for a while, is hung
//! up. So is who has not ended its handshake for a while when all places are taken and somebody else has come. Invariant: a connection's slot is free only when no job and no operation of the ring belongs to it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use farside_blockio::{BlockQueue, BufferPool, Completion, Done, Errno, Extent, Owner, Ring, RingError, Tag, Waker};
use thiserror::Error;

use crate::{Export, ExportError, Head, Listener, Session, proto};
use connection::{Connection, State, Work};
use jobs::{Job, JobKind, Piece, Slab};
use memory::{Shares, footprint};

mod connection;
mod jobs;
mod memory;
mod stream;

/// Everything that is bounded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at once; one more waits here, others in the kernel.
    pub connections_max: usize,
    /// Commands of one client that are not answered yet.
    pub jobs_per_connection_max: usize,
    /// Requests in the queue at once, of all clients.
    pub pieces_max: usize,
    /// Longest request given to the queue that has a buffer; longer commands are split.
    pub piece_bytes_max: u32,
    /// Longest read or write of a client.
    pub payload_max: u32,
    /// Memory for the data of all clients.
    pub buffer_bytes_max: usize,
    /// How long a stop waits for clients to take their last replies.
    pub farewell_max: Duration,
    /// How long a client may take nothing of its replies while somebody else waits for the memory that they hold.
    pub deaf_max: Duration,
    /// How long a handshake may take while somebody else waits for the place.
    pub handshake_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16,
            jobs_per_connection_max: 128,
            pieces_max: 256,
            piece_bytes_max: 1 << 20,
            payload_max: proto::PAYLOAD_MAX,
            buffer_bytes_max: 64 << 20,
            farewell_max: Duration::from_secs(2),
            deaf_max: Duration::from_secs(30),
            handshake_max: Duration::from_secs(10),
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), ServeError> {
        let pieces = (self.payload_max as usize).div_ceil(self.piece_bytes_max.max(1) as usize);
        let guaranteed = 2 * self.connections_max * self.piece_bytes_max as usize;
        let wrong = if self.connections_max == 0 || self.jobs_per_connection_max == 0 {
            "there must be room for one connection and one job"
        } else if !self.piece_bytes_max.is_power_of_two() || self.piece_bytes_max < 65536 {
            "piece_bytes_max must be a power of two from 64 KiB"
        } else if !self.payload_max.is_power_of_two() || self.payload_max < self.piece_bytes_max {
            "payload_max must be a power of two and hold a piece"
        } else if self.pieces_max < pieces || self.buffer_bytes_max < self.payload_max as usize + guaranteed {
            "pieces_max must hold the longest command, buffer_bytes_max that and two pieces for each connection"
        } else {
            return Ok(());
        };
        Err(ServeError::Limits { wrong })
    }
}

/// Why serving ended, or never began.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The ring cannot be had, or broke.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No memory for the buffers.
    #[error("no memory for the buffers of the NBD server")]
    Memory {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The limits contradict each other.
    #[error("limits of the NBD server: {wrong}")]
    Limits {
        /// Which.
        wrong: &'static str,
    },
    /// The device cannot be described to a client.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// What a server has done; monotonic, except for the two that say "now".
#[derive(Debug, Default)]
pub struct Counters {
    /// Clients connected now.
    pub connections: AtomicU64,
    /// Commands not answered yet.
    pub jobs: AtomicU64,
    /// Commands taken.
    pub commands: AtomicU64,
    /// Commands answered with an error of the device.
    pub errors: AtomicU64,
    /// Bytes of reads answered.
    pub bytes_read: AtomicU64,
    /// Bytes of writes taken.
    pub bytes_written: AtomicU64,
    /// Times that a client had to wait for a piece or a buffer.
    pub waits: AtomicU64,
}

/// What other threads hold of a running server.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    drained: AtomicBool,
    counters: Counters,
    adopted: Mutex<Vec<OwnedFd>>,
}

impl Shared {
    fn adopted(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner) // nothing panics with it
    }
}

impl Handle {
    /// No new client, no new command: what has been taken is finished and answered, then [`Server::run`] returns.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Takes a connected stream socket for a client's, as if it had come through the listener.
    pub fn adopt(&self, socket: OwnedFd) {
        self.shared.adopted().push(socket);
        self.waker.wake();
    }

    /// Whether [`Handle::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// Whether every command has ended after a stop: nothing of a client will reach the queue any more.
    pub fn drained(&self) -> bool {
        self.shared.drained.load(Ordering::SeqCst)
    }

    /// What it has done.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Wakes its thread, which then calls [`BlockQueue::wake`].
    pub fn waker(&self) -> &Waker {
        &self.waker
    }
}

/// A server that is about to run. Make it anywhere; [`Server::run`] belongs to one thread.
pub struct Server {
    listener: Option<Listener>,
    name: String,
    description: String,
    limits: Limits,
    shared: Arc<Shared>,
    waker: Waker,
}

impl Server {
    /// A server for one socket; without one, for the clients that it is given with [`Handle::adopt`]. Clients see `name` and
    /// `description`. The waker is the one through which parked requests of the queue are tried again.
    pub fn new(
        listener: impl Into<Option<Listener>>,
        name: &str,
        description: &str,
        limits: Limits,
        waker: Waker,
    ) -> (Self, Handle) {
        let listener = listener.into();
        let shared = Arc::new(Shared::default());
        let handle = Handle { shared: Arc::clone(&shared), waker: waker.clone() };
        (Self { listener, name: name.to_owned(), description: description.to_owned(), limits, shared, waker }, handle)
    }

    /// Serves the queue on this thread until it is stopped, and gives it back. The socket's file is removed.
    ///
    /// # Errors
    /// [`ServeError`], before the first client or when the ring breaks.
    pub fn run<Q: BlockQueue>(self, mut queue: Q) -> Result<Q, ServeError> {
        self.limits.check()?;
        let ring = Ring::new(self.limits.pieces_max.min(4096) as u32)?;
        let export = Export::new(&self.name, &self.description, queue.info(), self.limits.payload_max)?;
        let memory = |source| ServeError::Memory { source };
        let pool = BufferPool::new(self.limits.buffer_bytes_max, self.limits.piece_bytes_max as usize).map_err(memory)?;
        let pieces = Slab::with_capacity(self.limits.pieces_max);
        let shares = Shares::new(&self.limits, pool.capacity());
        let mut running = Running {
            ring,
            queue: &mut queue,
            export,
            limits: self.limits,
            shared: self.shared,
            pool,
            share: (self.limits.buffer_bytes_max / self.limits.connections_max) as u64,
            shares,
            connections: (0..self.limits.connections_max).map(|_| None).collect(),
            connected: 0,
            newcomers: VecDeque::with_capacity(2),
            accepting: false,
            accept_failed: false,
            accept_warned: false,
            jobs: Slab::with_capacity(self.limits.connections_max * self.limits.jobs_per_connection_max),
            begun: 0,
            holds: false,
            pieces,
            submitted: 0,
            line: VecDeque::with_capacity(self.limits.connections_max),
            large: VecDeque::with_capacity(self.limits.connections_max),
            ready: Vec::with_capacity(self.limits.connections_max),
            extents: Vec::with_capacity(stream::DESCRIPTORS_MAX + 1),
            answer: Vec::with_capacity(8 << 10),
            farewell: None,
        };
        let served = running.serve(self.listener.as_ref(), &self.waker);
        running.shared.adopted().clear();
        drop(running);
        served?;
        Ok(queue)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).field("name", &self.name).finish_non_exhaustive()
    }
}

struct Running<'q, Q> {
    ring: Ring,
    queue: &'q mut Q,
    export: Export,
    limits: Limits,
    shared: Arc<Shared>,
    pool: BufferPool,
    share: u64, // of the buffers, for the reads of one client
    shares: Shares,
    connections: Vec<Option<Connection>>,
    connected: usize,
    newcomers: VecDeque<OwnedFd>, // all places are taken; one adopted and one accepted at most
    accepting: bool,
    accept_failed: bool,
    accept_warned: bool,
    jobs: Slab<Job>,
    begun: u64,  // jobs so far
    holds: bool, // a change waits for those of other connections
    pieces: Slab<Piece>,
    submitted: u64,       // pieces so far
    line: VecDeque<u32>,  // connections that wait for pieces
    large: VecDeque<u32>, // connections that wait for memory beyond their guarantee
    ready: Vec<u32>,      // connections to be looked at after this batch of completions
    extents: Vec<Extent>,
    answer: Vec<u8>,
    farewell: Option<Instant>,
}

/// Which of the server's operations a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ticket {
    Accept,
    Wake,
    Receive(u32),
    Send(u32),
}

impl Ticket {
    fn tag(self) -> Tag {
        Tag::server(match self {
            Self::Accept => 0,
            Self::Wake => 1,
            Self::Receive(index) => 2 | u64::from(index) << 8,
            Self::Send(index) => 3 | u64::from(index) << 8,
        })
    }

    fn of(tag: Tag) -> Self {
        let index = (tag.id >> 8) as u32;
        match tag.id & 0xff {
            0 => Self::Accept,
            1 => Self::Wake,
            2 => Self::Receive(index),
            _ => Self::Send(index),
        }
    }
}

impl<Q: BlockQueue> Running<'_, Q> {
    fn serve(&mut self, listener: Option<&Listener>, waker: &Waker) -> Result<(), ServeError> {
        self.ring.wake_read(Ticket::Wake.tag(), waker);
        loop {
            self.accept(listener);
            if self.stopped() {
                return Ok(());
            }
            self.ring.wait(self.nap())?;
            // † A reply that waits behind another one is not with the kernel.
            if !self.connections.iter().flatten().any(Connection::owes) {
                self.queue.answered(&mut self.ring);
            }
            self.accept_failed = false;
            while let Some(completion) = self.ring.pop() {
                match completion.tag.owner {
                    Owner::Queue => self.queue.complete(&mut self.ring, completion),
                    Owner::Server => self.complete(completion, waker),
                }
                self.reap();
            }
            self.settle();
            while self.seat_newcomer() {
                self.settle();
            }
        }
    }

    /// Looks after everybody who may have something to do, until nobody has.
    fn settle(&mut self) {
        loop {
            loop {
                while let Some(index) = self.ready.pop() {
                    if let Some(connection) = &mut self.connections[index as usize] {
                        connection.ready = false;
                        self.advance(index);
                        self.reap();
                    }
                }
                self.serve_line();
                self.serve_large();
                self.reap();
                if self.ready.is_empty() {
                    break;
                }
            }
            self.hang_up_the_deaf();
            let mut parted = false;
            for index in 0..self.connections.len() {
                self.send(index as u32);
                parted |= self.part(index as u32);
            }
            // What it held may be what somebody waits for.
            if !parted || self.large.is_empty() {
                return;
            }
        }
    }

    fn nap(&self) -> Option<Duration> {
        let retry = self.accept_failed.then_some(Duration::from_millis(100));
        let farewell = self.farewell.map(|until| until.saturating_duration_since(Instant::now()));
        let deaf = self.connections.iter().flatten().filter_map(|c| c.deaf_since).min();
        let deaf = deaf.map(|since| (since + self.limits.deaf_max).saturating_duration_since(Instant::now()));
        let stuck = self.newcomers.front().and_then(|_| self.handshake_in_the_way());
        let stuck = stuck.map(|(since, _)| (since + self.limits.handshake_max).saturating_duration_since(Instant::now()));
        [retry, farewell, deaf, stuck].into_iter().flatten().min()
    }

    /// Whether it is time to return. Begins the farewell of a stop.
    fn stopped(&mut self) -> bool {
        if !self.shared.stop.load(Ordering::SeqCst) {
            return false;
        }
        if self.farewell.is_none() {
            self.farewell = Some(Instant::now() + self.limits.farewell_max);
            self.newcomers.clear();
            self.ring.cancel(Ticket::Accept.tag());
            for index in 0..self.connections.len() as u32 {
                self.close_input(index);
                self.mark_ready(index);
            }
            self.settle();
        }
        let late = self.farewell.is_some_and(|until| Instant::now() >= until);
        if late {
            // Clients had their time; the device's is not ours to limit.
            for index in 0..self.connections.len() as u32 {
                if self.connections[index as usize].as_ref().is_some_and(Connection::keeps_us_waiting) {
                    self.break_off(index);
                }
            }
            self.settle();
            self.farewell = Some(Instant::now() + self.limits.farewell_max);
        }
        // † What the queue does on its own is heard of too: a flush whose end nobody reports may have failed (T14).
        let drained = self.jobs.is_empty() && self.queue.is_idle();
        self.shared.drained.store(drained, Ordering::SeqCst);
        drained && (self.connected == 0 || late)
    }

    fn accept(&mut self, listener: Option<&Listener>) {
        while self.newcomers.is_empty() && self.farewell.is_none() {
            let adopted = self.shared.adopted().pop();
            self.newcomers.extend(adopted);
            if !self.seat_newcomer() {
                break;
            }
            self.settle();
        }
        if let Some(listener) = listener
            && self.newcomers.is_empty()
            && self.farewell.is_none()
            && !self.accepting
            && !self.accept_failed
        {
            self.ring.accept(Ticket::Accept.tag(), listener.fd());
            self.accepting = true;
        }
    }

    fn complete(&mut self, completion: Completion, waker: &Waker) {
        match Ticket::of(completion.tag) {
            Ticket::Wake => {
                self.ring.wake_read(Ticket::Wake.tag(), waker);
                self.queue.wake(&mut self.ring);
            }
            Ticket::Accept => {
                self.accepting = false;
                match (completion.result, completion.accepted) {
                    (Ok(_), Some(fd)) if self.farewell.is_none() => {
                        self.accept_warned = false;
                        self.newcomers.push_back(fd);
                        self.seat_newcomer();
                    }
                    (Err(errno), _) if errno != Errno::ECANCELED => {
                        if !std::mem::replace(&mut self.accept_warned, true) {
                            tracing::warn!(%errno, "NBD: cannot take a connection; trying again");
                        }
                        self.accept_failed = true;
                    }
                    _ => {}
                }
            }
            Ticket::Receive(index) => self.received(index, completion),
            Ticket::Send(index) => self.sent(index, completion),
        }
    }

    /// Gives the one who waits a place, or has the oldest handshake that takes too long make one. True: he has it.
    fn seat_newcomer(&mut self) -> bool {
        if self.newcomers.is_empty() {
            return false;
        }
        if self.connected < self.connections.len() {
            self.newcomers.pop_front().into_iter().for_each(|fd| self.welcome(fd));
            return true;
        }
        if let Some((since, index)) = self.handshake_in_the_way()
            && since.elapsed() >= self.limits.handshake_max
        {
            tracing::warn!(
                export = self.export.name(),
                "NBD: a client that does not end its handshake is hung up: another one waits for its place"
            );
            self.break_off(index); // its place is free when the ring has let go of it
        }
        false
    }

    /// The oldest handshake: since when it has lasted, and whose it is. None while somebody who was hung up is leaving: one is enough
    /// for one, and that may take as long as a disk likes.
    fn handshake_in_the_way(&self) -> Option<(Instant, u32)> {
        if self.connections.iter().flatten().any(|connection| connection.state == State::Broken) {
            return None;
        }
        let all = self.connections.iter().zip(0..).filter_map(|(connection, index)| Some((connection.as_ref()?, index)));
        let stuck = all.filter(|(connection, _)| !connection.session.transmitting());
        stuck.map(|(connection, index)| (connection.since, index)).min()
    }

    fn welcome(&mut self, fd: OwnedFd) {
        let free = self.connections.iter().position(Option::is_none).expect("accepted only while there is room");
        match Connection::new(Arc::new(fd), Session::new(self.export.clone()), self.limits.pieces_max) {
            Ok(mut connection) => {
                connection.push(&Session::greeting());
                connection.behind = Some(self.begun);
                // † It may be a client that is here already, and whose other line is dead: neither side may know of that for minutes.
                for other in self.connections.iter_mut().flatten() {
                    other.look_whether_taken();
                    if other.gives_up_told() {
                        self.queue.unanswered();
                    }
                }
                self.connections[free] = Some(connection);
                self.connected += 1;
                self.count_connections();
                self.mark_ready(free as u32);
            }
            Err(error) => tracing::warn!(%error, "NBD: no memory for a connection"),
        }
    }

    fn received(&mut self, index: u32, completion: Completion) {
        let connection = self.connections[index as usize].as_mut().expect("a connection outlives its operations");
        let buffer = completion.buffer.expect("a receive has a buffer");
        connection.received(buffer, completion.result);
        if connection.state != State::Open {
            if connection.gives_up_told() {
                self.queue.unanswered();
            }
            self.abandon(index);
        }
        self.mark_ready(index);
    }

    fn sent(&mut self, index: u32, completion: Completion) {
        let connection = self.connections[index as usize].as_mut().expect("a connection outlives its operations");
        connection.sending = false;
        connection.deaf_since = None; // it took something
        let mut gather = completion.gather.expect("a send has a gather");
        if completion.result.is_ok() && !gather.is_empty() {
            connection.send(&mut self.ring, Ticket::Send(index).tag(), gather);
            return;
        }
        if completion.result.is_ok() {
            connection.all_sent();
        }
        gather.clear(1);
        connection.spare = Some(gather);
        connection.sending_bytes = 0;
        if completion.result.is_err() {
            self.break_off(index);
        }
        self.mark_ready(index);
    }

    fn send(&mut self, index: u32) {
        if let Some(connection) = &mut self.connections[index as usize]
            && let Some(gather) = connection.next_to_send()
        {
            connection.send(&mut self.ring, Ticket::Send(index).tag(), gather);
        }
    }

    /// No more input from this client; what is running is finished and answered.
    fn close_input(&mut self, index: u32) {
        if let Some(connection) = &mut self.connections[index as usize]
            && connection.state == State::Open
        {
            connection.state = State::Closing;
            if connection.receiving {
                connection.shut(nix::sys::socket::Shutdown::Read);
            }
            self.abandon(index);
        }
    }

    /// Nothing more to or from this client.
    fn break_off(&mut self, index: u32) {
        if let Some(connection) = &mut self.connections[index as usize]
            && connection.state != State::Broken
        {
            connection.state = State::Broken;
            // † At once: its other requests may take long, and it may be here again before they have ended.
            if connection.gives_up_telling() {
                self.queue.unanswered();
            }
            connection.shut(nix::sys::socket::Shutdown::Both);
            self.abandon(index);
            self.mark_ready(index);
        }
    }

    /// Gives up a command whose rest will not come: its pieces in the queue end unanswered.
    fn abandon(&mut self, index: u32) {
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        let broken = connection.state == State::Broken;
        let job = match std::mem::replace(&mut connection.work, Work::Next) {
            Work::Writing(writing) => {
                if writing.piece > 0 {
                    connection.writing_bytes -= footprint(writing.piece);
                }
                Some(writing.job)
            }
            Work::Reading(reading) if broken => Some(reading.job),
            Work::Start { .. } if broken => None,
            kept @ (Work::Reading(_) | Work::Start { .. }) => {
                connection.work = kept;
                None
            }
            Work::Next | Work::Discard { .. } => None,
        };
        if let Some(number) = job {
            let job = self.jobs.get_mut(number);
            job.more = false;
            job.silent = true;
            if job.outstanding == 0 {
                self.end_job(number);
            }
        }
    }

    /// Forgets a connection that is over; true: it was.
    fn part(&mut self, index: u32) -> bool {
        let over = self.connections[index as usize].as_ref().is_some_and(Connection::over);
        if over && let Some(mut connection) = self.connections[index as usize].take() {
            connection.look_whether_taken();
            if connection.gives_up_told() {
                self.queue.unanswered();
            }
            connection.shut(nix::sys::socket::Shutdown::Both); // somebody may have a duplicate of an adopted one
            self.queue.client_gone(index);
            self.line.retain(|&waiting| waiting != index);
            self.large.retain(|&waiting| waiting != index);
            self.connected -= 1;
            self.count_connections();
        }
        over
    }

    fn mark_ready(&mut self, index: u32) {
        if let Some(connection) = &mut self.connections[index as usize]
            && !connection.ready
        {
            connection.ready = true;
            self.ready.push(index);
        }
    }

    /// Whoever has waited longest for pieces tries again. Who got some and wants more goes to the end: others have their turn.
    fn serve_line(&mut self) {
        while let Some(&index) = self.line.front() {
            let Some(connection) = &mut self.connections[index as usize] else {
                self.line.pop_front();
                continue;
            };
            connection.first_in_line = true;
            let before = self.submitted;
            self.advance(index);
            let connection = self.connections[index as usize].as_mut().expect("an advance does not part");
            connection.first_in_line = false;
            let waits_on = connection.in_line;
            if waits_on && self.submitted == before {
                return;
            }
            self.line.pop_front();
            if waits_on {
                self.line.push_back(index);
            }
        }
    }

    /// Whoever has waited longest for memory beyond its guarantee tries again; nobody passes.
    fn serve_large(&mut self) {
        while let Some(&index) = self.large.front() {
            let Some(connection) = &mut self.connections[index as usize] else {
                self.large.pop_front();
                continue;
            };
            connection.first_in_large = true;
            self.advance(index);
            let connection = self.connections[index as usize].as_mut().expect("an advance does not part");
            connection.first_in_large = false;
            if connection.in_large {
                return;
            }
            self.large.pop_front();
        }
    }

    /// Ends connections that hold memory for which somebody waits, if nothing but their client could give it back and it has
    /// not for too long.
    fn hang_up_the_deaf(&mut self) {
        let mut late = None;
        let wanted = !self.large.is_empty();
        for (index, connection) in self.connections.iter_mut().enumerate() {
            let Some(connection) = connection else { continue };
            let holds = wanted && self.shares.exceeds(connection.read_bytes()) && connection.reading_bytes == 0;
            if !holds || connection.state == State::Broken {
                connection.deaf_since = None;
                continue;
            }
            let since = *connection.deaf_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.limits.deaf_max {
                late = Some(index as u32);
            }
        }
        if let Some(index) = late {
            tracing::warn!(
                export = self.export.name(),
                "NBD: a client that takes no replies is hung up: another one waits for the memory they hold"
            );
            self.break_off(index); // the ring hears of it, and what it held comes back with that
        }
    }

    fn reap(&mut self) {
        while let Some(done) = self.queue.reap() {
            self.done(done);
        }
    }

    fn done(&mut self, done: Done) {
        let number = done.id.0 as u32;
        let piece = self.pieces.get_mut(number);
        let (job_number, offset, len) = (piece.job, piece.offset, piece.len);
        let job = self.jobs.get_mut(job_number);
        job.outstanding -= 1;
        let is_idle = job.outstanding == 0;
        let last = is_idle && !job.more;
        if let Err(errno) = done.result {
            job.error.get_or_insert(proto::error_of(errno));
            self.shared.counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        let (index, cookie, kind) = (job.connection, job.cookie, job.kind);
        if kind == JobKind::ReadWhole {
            piece.buffer = done.buffer; // until all are there
        } else {
            self.pieces.remove(number);
            let connection = self.connections[index as usize].as_mut().expect("a connection outlives its jobs");
            if kind == JobKind::Change && done.buffer.is_some() {
                connection.writing_bytes -= footprint(u64::from(len));
                self.mark_ready(index); // the rest of a long write may wait for it
            } else if kind == JobKind::ReadInChunks {
                connection.reading_bytes -= footprint(u64::from(len));
                let buffer = done.buffer.expect("a read gives its buffer back");
                match done.result {
                    Ok(()) if jobs::is_zero(&buffer) => connection.push(Head::hole(cookie, offset, len, last).as_bytes()),
                    Ok(()) => {
                        connection.push(Head::data(cookie, offset, len, last).as_bytes());
                        connection.push_data(buffer);
                    }
                    Err(errno) => {
                        connection.push(Head::error_at(cookie, proto::error_of(errno), offset, last).as_bytes());
                    }
                }
            }
        }
        if last {
            self.end_job(job_number);
        } else if is_idle && kind == JobKind::Change {
            self.release(); // it waits for its client
        }
    }

    /// Answers a job whose last piece has ended, and forgets it.
    fn end_job(&mut self, number: u32) {
        let job = self.jobs.remove(number);
        let connection = self.connections[job.connection as usize].as_mut().expect("a connection outlives its jobs");
        let silent = job.silent || connection.state == State::Broken;
        let error = job.error.unwrap_or(0);
        let mut held = job.first_piece;
        // † Who comes next may be the same client, asking once more for what it had no answer to: a disk may say a failed flush only once (T14).
        if error != 0 && job.kind == JobKind::Change {
            match silent {
                true => self.queue.unanswered(),
                false => connection.tells_error(),
            }
        }
        match job.kind {
            _ if silent => {}
            JobKind::ReadInChunks => {}
            JobKind::ReadWhole if connection.session.structured() => match error {
                0 => connection.push(Head::data(job.cookie, job.offset, job.len, true).as_bytes()),
                error => connection.push(Head::error(job.cookie, error, true).as_bytes()),
            },
            JobKind::ReadWhole | JobKind::Change => connection.push(Head::simple(job.cookie, error).as_bytes()),
        }
        while let Some(piece) = held {
            let piece = self.pieces.remove(piece);
            held = piece.next;
            connection.reading_bytes -= footprint(u64::from(piece.len));
            if !silent
                && error == 0
                && let Some(buffer) = piece.buffer
            {
                connection.push_data(buffer);
            }
        }
        connection.jobs -= 1;
        let counters = &self.shared.counters;
        counters.jobs.fetch_sub(1, Ordering::Relaxed);
        if job.kind != JobKind::Change {
            counters.bytes_read.fetch_add(u64::from(job.len), Ordering::Relaxed);
        }
        self.mark_ready(job.connection);
        if job.kind == JobKind::Change {
            self.release();
        }
    }

    /// Something that a change waited for may have ended.
    fn release(&mut self) {
        if !std::mem::take(&mut self.holds) {
            return;
        }
        for index in 0..self.connections.len() as u32 {
            let connection = self.connections[index as usize].as_mut();
            if connection.is_some_and(|connection| std::mem::take(&mut connection.is_held)) {
                self.mark_ready(index);
            }
        }
    }

    fn count_connections(&self) {
        self.shared.counters.connections.store(self.connected as u64, Ordering::Relaxed);
    }
}
