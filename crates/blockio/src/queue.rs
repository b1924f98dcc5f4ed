//! The shape in which a tap (NBD now, ublk later) sees a volume: one queue of a block device, driven by one thread with one
//! ring.
//!
//! The thread's loop, stated once:
//! 1. `submit` each new request. The queue may complete it, start operations on the ring, or park it.
//! 2. For each completion of the ring: `complete` if its tag is [`crate::Owner::Queue`]'s; the server's own otherwise.
//! 3. When the waker fired: `wake`, so that parked requests are tried again.
//! 4. After any of these: `reap` until it gives nothing.
//! 5. After each wait for the ring, which also gives the kernel what was asked for: `answered`.
//!
//! Invariant: every request submitted is reaped exactly once, with its buffer. A queue holds no lock of the server and never
//! blocks; how many requests it holds is the server's limit, not its own.

use std::collections::VecDeque;

use farside_region::{ByteExtent, ByteOffset};
use nix::errno::Errno;

use crate::{Buffer, Completion, DeviceEngine, DeviceOp, FileDevice, Pages, Ring};

/// The server's name for a request; unique among those it has not reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Fill the buffer from the extent.
    Read,
    /// Write the buffer to the extent.
    Write,
    /// Make every write that was reaped before durable. No extent, no buffer.
    Flush,
    /// The content is not needed any more; reads back as zeroes, but for parts of what the queue counts in, which may be left.
    Trim,
    /// Make it read as zeroes; with `no_hole` keep its space allocated.
    WriteZeroes {
        /// Whether the space must stay allocated.
        no_hole: bool,
    },
}

/// Where the data of a read goes, or of a write comes from.
#[derive(Debug)]
pub enum Payload {
    /// Memory of ours, as long as the extent.
    Buffer(Buffer),
    /// Of the host itself: pages that the server's driver keeps registered until the request is reaped. Only the queue's ring
    /// knows them, and nobody can look at what is in them.
    Pages(Pages),
}

/// One request. Extents are aligned to [`QueueInfo::block_min`] and lie inside the device: the server has checked.
#[derive(Debug)]
pub struct Request {
    /// The server's name for it.
    pub id: RequestId,
    /// Whose it is: a number unique among the clients connected now. A flush that failed is told to each of them once (T14).
    pub client: u32,
    /// What to do.
    pub op: Op,
    /// Where. Empty (0, 0) for a flush.
    pub extent: ByteExtent,
    /// Whether it must be durable before it completes (writes, trims, zeroes).
    pub fua: bool,
    /// `extent.len` bytes for reads and writes, otherwise `None`.
    pub payload: Option<Payload>,
}

impl Request {
    /// The buffer of a read or write, for a queue that has no ring and is never given pages.
    ///
    /// # Panics
    /// When it was given pages.
    pub fn take_buffer(&mut self) -> Option<Buffer> {
        match self.payload.take() {
            Some(Payload::Buffer(buffer)) => Some(buffer),
            Some(Payload::Pages(pages)) => panic!("{pages:?} are known to a ring only"),
            None => None,
        }
    }
}

/// The end of a request.
#[derive(Debug)]
#[must_use]
pub struct Done {
    /// As submitted.
    pub id: RequestId,
    /// The device's error passes through.
    pub result: Result<(), Errno>,
    /// As submitted, filled by a successful read. Pages do not come back: they are the server's all along.
    pub buffer: Option<Buffer>,
}

/// What a client is told about the device. Constant while it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Bytes; a multiple of `block_min`.
    pub size: u64,
    /// Unit of every offset and length, a power of two: the direct-I/O alignment.
    pub block_min: u32,
    /// What requests should be aligned to for speed.
    pub block_preferred: u32,
    /// Whether writes of any kind are refused (the server does it).
    pub readonly: bool,
    /// Whether zeroing is known to be faster than writing zeroes.
    pub zeroes_fast: bool,
    /// Whether a trim is of use. † Not where it would have to write zeroes: a new file system on it would fill the disk. Who asks for one all the same,
    /// since it was offered to him once, gets zeroes as he was promised.
    pub trims: bool,
}

/// Content of an extent, for block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Must be read to be known.
    Data,
    /// Not allocated; reads as zeroes.
    Hole,
    /// Allocated; reads as zeroes.
    Zero,
}

/// A run of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
}

/// One queue of a block device. See the module for the order of calls.
pub trait BlockQueue {
    /// What is served.
    fn info(&self) -> QueueInfo;

    /// Takes a request; it will be reaped, at once or later.
    fn submit(&mut self, ring: &mut Ring, request: Request);

    /// Takes the completion of one of the queue's own operations.
    fn complete(&mut self, ring: &mut Ring, completion: Completion);

    /// Looks again at everything that is parked: the waker fired.
    fn wake(&mut self, ring: &mut Ring);

    /// The answers to all that was reaped have been put into the ring, which has been waited for since.
    fn answered(&mut self, ring: &mut Ring) {
        let _ = ring;
    }

    /// A client is not sent the error of a change that it waited for: its connection broke.
    fn unanswered(&mut self) {}

    /// This client is gone, and no request of it is left; its number may come again for another one.
    fn client_gone(&mut self, client: u32) {
        let _ = client;
    }

    /// Whether nothing of the queue's own is under way or asked for, beside requests: its ring may go.
    fn is_idle(&self) -> bool {
        true
    }

    /// The next finished request.
    fn reap(&mut self) -> Option<Done>;

    /// Describes the start of `extent` in at most `max` runs, appended to `out`: together they begin at its offset and may end
    /// before or beyond its end. Advisory; "data" is always a legal answer.
    ///
    /// # Errors
    /// The device's.
    fn extents(&mut self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        let _ = max;
        out.push(Extent { len: extent.len, kind: ExtentKind::Data });
        Ok(())
    }
}

/// A device as it is: requests go to the file description and nothing else happens. Serves restored images, and tests.
#[derive(Debug)]
pub struct PlainQueue {
    engine: DeviceEngine,
    done: VecDeque<Done>,
    readonly: bool,
}

impl PlainQueue {
    /// Serves a device; one opened read-only is served read-only.
    ///
    /// # Errors
    /// When there is no memory for the engine's zeroes.
    pub fn new(device: FileDevice) -> std::io::Result<Self> {
        let readonly = device.readonly();
        Ok(Self { engine: DeviceEngine::new(device)?, done: VecDeque::with_capacity(1024), readonly })
    }
}

impl BlockQueue for PlainQueue {
    fn info(&self) -> QueueInfo {
        let device = self.engine.device();
        let block_min = device.block_min();
        QueueInfo {
            size: device.size(),
            block_min,
            block_preferred: block_min.max(4096),
            readonly: self.readonly,
            zeroes_fast: self.engine.zeroes_fast(),
            trims: self.engine.zeroes_fast(),
        }
    }

    fn submit(&mut self, ring: &mut Ring, request: Request) {
        let Request { id, op, extent, fua, payload, .. } = request;
        let (offset, whole) = (extent.offset, 0..extent.len as usize);
        let op = match op {
            Op::Read => match payload.expect("a read has a place for its data") {
                Payload::Buffer(buffer) => DeviceOp::Read { offset, buffer },
                Payload::Pages(pages) => DeviceOp::ReadPages { offset, pages, range: whole },
            },
            Op::Write => match payload.expect("a write has data") {
                Payload::Buffer(buffer) => DeviceOp::Write { offset, buffer, durable: fua },
                Payload::Pages(pages) => DeviceOp::WritePages { offset, pages, range: whole, durable: fua },
            },
            Op::Flush => DeviceOp::Flush,
            Op::Trim => DeviceOp::Zero { extent, keep_space: false, durable: fua },
            Op::WriteZeroes { no_hole } => DeviceOp::Zero { extent, keep_space: no_hole, durable: fua },
        };
        self.engine.submit(ring, id.0, op);
    }

    fn complete(&mut self, ring: &mut Ring, completion: Completion) {
        if let Some(done) = self.engine.complete(ring, completion) {
            self.done.push_back(Done { id: RequestId(done.id), result: done.result, buffer: done.buffer });
        }
    }

    fn wake(&mut self, _ring: &mut Ring) {}

    fn reap(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn extents(&mut self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        self.engine.device().extents(extent, max, out)
    }
}

/// Joins runs of the same kind that follow each other.
pub(crate) fn push_extent(out: &mut Vec<Extent>, from: usize, extent: Extent) {
    match out[from..].last_mut() {
        Some(last) if last.kind == extent.kind => last.len += extent.len,
        _ => out.push(extent),
    }
}

/// The part of `extent` that starts `done` bytes into it.
pub(crate) fn rest_of(extent: ByteExtent, done: u64) -> ByteExtent {
    ByteExtent { offset: ByteOffset(extent.offset.0 + done), len: extent.len - done }
}
