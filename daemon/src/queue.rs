//! The write path behind a tap: turns the server's requests into `farside_shim` tokens and carries out what they ask for.
//!
//! Owns: the data buffers of requests in flight. Invariant: every token is driven to its completion; all I/O of a token goes
//! to the ring of the queue that received it (L11). Nothing here allocates, locks or logs per request once its tables have
//! grown to the server's depth.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use farside_blockio::{
    BlockQueue, Buffer, BufferPool, Completion, DeviceDone, DeviceEngine, DeviceOp, Done, Errno, Extent, Op, Pages, Payload,
    QueueInfo, Request, Ring,
};
use farside_region::ByteExtent;
use farside_shim::{Failure, Io, IoResult, Limits, Queue, Step, Wake};

use crate::flush_note::FlushNote;
use crate::sentinel::Bell;

/// What the host did, since the daemon started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) trims: AtomicU64,
    pub(crate) trimmed_bytes: AtomicU64,
    /// Of writes, trims and zeroings that the shim has carried out, before they were answered.
    pub(crate) changed_bytes: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) parks: AtomicU64,
    pub(crate) saves: AtomicU64,
}

/// What other threads ask of a queue thread; the queue's waker tells it to look.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    flush: AtomicBool,
}

impl Orders {
    /// Asks for a flush of the backing; [`FlushDone`] is called with the result. Wake the queue afterwards.
    pub(crate) fn flush(&self) {
        self.flush.swap(true, Ordering::AcqRel); // one that begins later answers all who asked before
    }

    fn wants_flush(&self) -> bool {
        self.flush.load(Ordering::Relaxed)
    }
}

/// Told when a flush that was ordered has ended: whether it succeeded.
pub(crate) type FlushDone = Box<dyn Fn(bool) + Send>;

/// A waker of the ring as the shim's.
#[derive(Debug)]
pub(crate) struct RingWake(pub farside_blockio::Waker);

impl Wake for RingWake {
    fn wake(&self) {
        self.0.wake();
    }
}

const ORDERED_FLUSH: u64 = u64::MAX;

/// One queue of a protected volume.
pub(crate) struct ShimQueue {
    queue: Queue,
    engine: DeviceEngine,
    active: Vec<Option<Active>>,
    free: Vec<u32>,
    parked: Vec<u32>,
    retry: Vec<u32>,
    done: VecDeque<Done>,
    saves: BufferPool,
    clients: Clients,
    orders: Arc<Orders>,
    flush_done: FlushDone,
    flush_under_way: bool,
    counters: Arc<Counters>,
    bell: Option<Bell>,
    note: Arc<FlushNote>,
    /// The failures, by the volume's count, of which an answer tells that the kernel may not have yet.
    telling: u64,
}

impl std::fmt::Debug for ShimQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShimQueue")
            .field("active", &(self.active.len() - self.free.len()))
            .field("parked", &self.parked.len())
            .finish()
    }
}

/// Whose requests come: who has been told of a flush that failed (T14).
#[derive(Debug)]
enum Clients {
    /// The kernel's alone, through all queues of the volume.
    One(Arc<farside_shim::Connection>),
    /// Of a server of this queue. The newest is kept beside the table, which no request but its first looks at.
    Many(HashMap<u32, Arc<farside_shim::Connection>>, Option<u32>),
}

struct Active {
    id: farside_blockio::RequestId,
    token: farside_shim::Request,
    data: Data,
    io: Option<Io>,
    /// The bell is to be rung at its end.
    rings: bool,
    /// What it changes.
    changes: u64,
}

/// Of a request.
enum Data {
    None,
    /// Its own, for its one read or write.
    Buffer(Buffer),
    /// With the backing's byte that the first one belongs to. The host's pages are never looked at: what the shim wants to know
    /// of a write is where it goes, and what is sent is read from the backing.
    Pages(Pages, u64),
}

impl Data {
    fn take_buffer(&mut self) -> Option<Buffer> {
        match std::mem::replace(self, Self::None) {
            Self::Buffer(buffer) => Some(buffer),
            _ => None,
        }
    }

    fn read(&mut self, extent: ByteExtent) -> DeviceOp {
        let offset = extent.offset;
        match self {
            Self::Pages(pages, at) => DeviceOp::ReadPages { offset, pages: *pages, range: part(*at, extent) },
            _ => DeviceOp::Read { offset, buffer: self.whole(extent) },
        }
    }

    fn write(&mut self, extent: ByteExtent) -> DeviceOp {
        let offset = extent.offset;
        match self {
            Self::Pages(pages, at) => DeviceOp::WritePages { offset, pages: *pages, range: part(*at, extent), durable: false },
            _ => DeviceOp::Write { offset, buffer: self.whole(extent), durable: false },
        }
    }

    /// The buffer, which one read or write uses whole: the tap's largest payload is below a piece.
    fn whole(&mut self, extent: ByteExtent) -> Buffer {
        let buffer = self.take_buffer().expect("reads and writes have a place for their data");
        assert_eq!(buffer.len() as u64, extent.len, "a tap's payload is never split");
        buffer
    }
}

/// Where an extent lies in pages that belong to the backing from `at` on.
fn part(at: u64, extent: ByteExtent) -> std::ops::Range<usize> {
    let from = (extent.offset.0 - at) as usize;
    from..from + extent.len as usize
}

impl ShimQueue {
    /// A queue over its share of the volume and the device's engine. `client`: whose all requests are, if it is one client's.
    ///
    /// # Errors
    /// When the memory for saves cannot be had.
    pub(crate) fn new(
        queue: Queue,
        engine: DeviceEngine,
        depth: usize,
        orders: Arc<Orders>,
        flush_done: FlushDone,
        counters: Arc<Counters>,
        bell: Option<Bell>,
        note: Arc<FlushNote>,
        client: Option<Arc<farside_shim::Connection>>,
    ) -> std::io::Result<Self> {
        let run = Limits::DEFAULT.claim_run_bytes as usize;
        Ok(Self {
            queue,
            engine,
            active: Vec::with_capacity(depth),
            free: Vec::with_capacity(depth),
            parked: Vec::with_capacity(depth),
            retry: Vec::with_capacity(depth),
            done: VecDeque::with_capacity(depth),
            saves: BufferPool::new(run * depth.min(64), run)?,
            clients: client.map_or_else(|| Clients::Many(HashMap::new(), None), Clients::One),
            orders,
            flush_done,
            flush_under_way: false,
            counters,
            bell,
            note,
            telling: 0,
        })
    }

    /// A client that has sent a request; its connection, if that is wanted.
    #[inline]
    fn client(&mut self, client: u32, wanted: bool) -> Option<Arc<farside_shim::Connection>> {
        match &mut self.clients {
            Clients::One(connection) => wanted.then(|| connection.clone()),
            Clients::Many(_, Some(newest)) if *newest == client && !wanted => None,
            Clients::Many(known, newest) => {
                let volume = self.queue.volume();
                *newest = Some(client);
                let connection = known.entry(client).or_insert_with(|| volume.connect());
                wanted.then(|| connection.clone())
            }
        }
    }

    /// Advances a request until it waits for something.
    fn drive(&mut self, ring: &mut Ring, index: u32) {
        let active = self.active[index as usize].as_mut().expect("a request that is driven is active");
        match active.token.advance(&mut self.queue) {
            Step::Io(io) => self.start(ring, index, io),
            Step::Park(_) => {
                self.counters.parks.fetch_add(1, Ordering::Relaxed);
                self.parked.push(index);
            }
            Step::Complete(result) => {
                let Active { id, token, mut data, rings, changes, .. } =
                    self.active[index as usize].take().expect("active until now");
                let buffer = data.take_buffer();
                self.free.push(index);
                self.counters.changed_bytes.fetch_add(changes, Ordering::Release);
                if let Some(bell) = self.bell.as_ref().filter(|_| rings) {
                    bell.ring();
                }
                self.telling = self.telling.max(token.tells());
                let result = result.map_err(|failure| {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                    errno_of(failure)
                });
                self.done.push_back(Done { id, result, buffer });
            }
        }
    }

    fn start(&mut self, ring: &mut Ring, index: u32, io: Io) {
        let active = self.active[index as usize].as_mut().expect("active");
        active.io = Some(io);
        let op = match io {
            Io::Read(extent) => active.data.read(extent),
            Io::Write(extent) => active.data.write(extent),
            Io::Save(extent) => match self.saves.take(extent.len as usize) {
                Some(buffer) => {
                    self.counters.saves.fetch_add(1, Ordering::Relaxed);
                    DeviceOp::Read { offset: extent.offset, buffer }
                }
                None => return self.retry.push(index), // another save will give its buffer back
            },
            Io::Zero { extent, no_hole } => DeviceOp::Zero { extent, keep_space: no_hole, durable: false },
            Io::Flush => DeviceOp::Flush,
        };
        self.engine.submit(ring, u64::from(index), op);
    }

    fn flush_if_ordered(&mut self, ring: &mut Ring) {
        if !self.flush_under_way && self.orders.wants_flush() && self.orders.flush.swap(false, Ordering::AcqRel) {
            self.flush_under_way = true;
            self.engine.submit(ring, ORDERED_FLUSH, DeviceOp::Flush);
        }
    }

    fn ended(&mut self, ring: &mut Ring, end: DeviceDone) {
        if end.id == ORDERED_FLUSH {
            self.flush_under_way = false;
            if end.result.is_err() {
                self.note.failed();
                // † T14, before any other completion is shown: a host flush that overlapped this one must not succeed.
                let volume = self.queue.volume();
                let flush = volume.flush_begin();
                volume.flush_end(flush, false);
            }
            (self.flush_done)(end.result.is_ok());
            // One that was ordered meanwhile has found nothing to do.
            return self.flush_if_ordered(ring);
        }
        let index = end.id as u32;
        let active = self.active[index as usize].as_mut().expect("an operation in flight belongs to a request");
        let io = active.io.take().expect("an operation was started");
        if io == Io::Flush && end.result.is_err() {
            self.note.failed();
        }
        let result = end.result.map_err(|e| e as i32);
        match (io, end.buffer) {
            (Io::Save(_), Some(buffer)) => {
                let result = result.map_or_else(IoResult::Failed, |()| IoResult::Data(&buffer));
                active.token.io_done(&mut self.queue, result);
                drop(buffer);
                while let Some(waiting) = self.retry.pop() {
                    let io = self.active[waiting as usize].as_ref().and_then(|a| a.io).expect("it waits with its operation");
                    self.start(ring, waiting, io);
                    if self.retry.last() == Some(&waiting) {
                        break; // still no buffer
                    }
                }
            }
            (_, buffer) => {
                if let Some(buffer) = buffer {
                    active.data = Data::Buffer(buffer);
                }
                active.token.io_done(&mut self.queue, result.map_or_else(IoResult::Failed, |()| IoResult::Done));
            }
        }
        self.drive(ring, index);
    }

    fn count(&self, request: &Request) {
        let c = &self.counters;
        let add = |n: &AtomicU64, bytes: Option<&AtomicU64>| {
            n.fetch_add(1, Ordering::Relaxed);
            if let Some(bytes) = bytes {
                bytes.fetch_add(request.extent.len, Ordering::Relaxed);
            }
        };
        match request.op {
            Op::Read => add(&c.reads, Some(&c.read_bytes)),
            Op::Write => add(&c.writes, Some(&c.written_bytes)),
            Op::Flush => add(&c.flushes, None),
            Op::Trim | Op::WriteZeroes { .. } => add(&c.trims, Some(&c.trimmed_bytes)),
        }
    }
}

fn errno_of(failure: Failure) -> Errno {
    match failure {
        Failure::Backing(errno) => Errno::from_raw(errno),
        _ => Errno::EIO,
    }
}

impl BlockQueue for ShimQueue {
    fn info(&self) -> QueueInfo {
        let device = self.engine.device();
        let block_min = device.block_min();
        QueueInfo {
            size: device.size(),
            block_min,
            block_preferred: block_min.max(4096),
            readonly: false,
            zeroes_fast: self.engine.zeroes_fast(),
            trims: self.engine.zeroes_fast(),
        }
    }

    fn submit(&mut self, ring: &mut Ring, request: Request) {
        self.count(&request);
        let Request { id, op, extent, fua, payload, client, .. } = request;
        let writes = matches!(op, Op::Write | Op::Trim | Op::WriteZeroes { .. });
        let rings = writes && self.bell.as_ref().is_some_and(|bell| bell.is_for(extent.offset.0, extent.len));
        let mut data = match payload {
            Some(Payload::Buffer(buffer)) => Data::Buffer(buffer),
            Some(Payload::Pages(pages)) => Data::Pages(pages, extent.offset.0),
            None => Data::None,
        };
        // From its first request on, so that no failure that a client could rely on is kept from it (T14).
        let connection = self.client(client, fua || op == Op::Flush);
        let op = match op {
            Op::Read => farside_shim::Op::Read(extent),
            Op::Write => farside_shim::Op::Write(extent, connection),
            Op::Flush => farside_shim::Op::Flush(connection.expect("made above")),
            Op::Trim => farside_shim::Op::Trim(extent, connection),
            Op::WriteZeroes { no_hole } => farside_shim::Op::WriteZeroes { extent, no_hole, fua: connection },
        };
        match self.queue.start(op) {
            Ok(token) => {
                if let Some(bell) = self.bell.as_ref().filter(|_| rings) {
                    bell.write_begins();
                }
                let active = Active { id, token, data, io: None, rings, changes: if writes { extent.len } else { 0 } };
                let index = match self.free.pop() {
                    Some(index) => {
                        self.active[index as usize] = Some(active);
                        index
                    }
                    None => {
                        self.active.push(Some(active));
                        self.active.len() as u32 - 1
                    }
                };
                self.drive(ring, index);
            }
            Err(_) => self.done.push_back(Done { id, result: Err(Errno::EINVAL), buffer: data.take_buffer() }),
        }
    }

    fn complete(&mut self, ring: &mut Ring, completion: Completion) {
        if let Some(end) = self.engine.complete(ring, completion) {
            self.ended(ring, end);
        }
    }

    fn wake(&mut self, ring: &mut Ring) {
        self.flush_if_ordered(ring);
        // Those that park again are behind `count`, for the next wake.
        let count = self.parked.len();
        for i in 0..count {
            self.drive(ring, self.parked[i]);
        }
        self.parked.drain(..count);
    }

    fn answered(&mut self, ring: &mut Ring) {
        if self.telling > 0 && ring.is_submitted() {
            self.note.told(std::mem::take(&mut self.telling));
        }
    }

    fn unanswered(&mut self) {
        let volume = self.queue.volume();
        if volume.flush_failures() > 0 {
            self.note.failed();
            volume.tell_failed_flush_again();
        }
    }

    fn is_idle(&self) -> bool {
        !self.flush_under_way && !self.orders.wants_flush()
    }

    fn reap(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn extents(&mut self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        // A punch holds the inode's lock until its I/O is done, and a seek would wait for that on the host's own thread (L1).
        let zeroing = |a: &Active| matches!(a.io, Some(Io::Zero { .. }));
        if self.active.iter().flatten().any(zeroing) {
            out.push(Extent { len: extent.len, kind: farside_blockio::ExtentKind::Data });
            return Ok(());
        }
        self.engine.device().extents(extent, max, out)
    }

    fn client_gone(&mut self, client: u32) {
        if let Clients::Many(known, newest) = &mut self.clients {
            known.remove(&client);
            *newest = None;
        }
    }
}
