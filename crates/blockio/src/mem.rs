//! A device in memory, for tests of whatever drives a [`BlockQueue`]: completes at once, or only when told to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farside_region::ByteExtent;
use nix::errno::Errno;

use crate::{BlockQueue, Buffer, Completion, Done, Extent, ExtentKind, Op, QueueInfo, Request, Ring};

/// A volatile volume. Clones share it, so that a test can look at, hold and fail what a server's thread does.
#[derive(Clone, Debug)]
pub struct MemQueue {
    info: QueueInfo,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    content: Vec<u8>,
    parked: VecDeque<Request>,
    parked_max: usize,
    done: VecDeque<Done>,
    held: bool,
    fail: Option<Errno>,
    log: Vec<(Op, ByteExtent, bool)>,
}

impl MemQueue {
    /// A zeroed volume.
    ///
    /// # Panics
    /// When the size is not a multiple of the block size.
    pub fn new(info: QueueInfo) -> Self {
        assert_eq!(info.size % u64::from(info.block_min), 0, "a device has whole blocks");
        let content = vec![0; usize::try_from(info.size).expect("a volume in memory fits memory")];
        let (parked, parked_max, done, log) = (VecDeque::new(), 0, VecDeque::new(), Vec::new());
        Self { info, shared: Arc::new(Mutex::new(Shared { content, parked, parked_max, done, held: false, fail: None, log })) }
    }

    /// While held, requests are parked; they go on at the next [`BlockQueue::wake`] after the hold ends.
    pub fn hold(&self, held: bool) {
        self.lock().held = held;
    }

    /// While set, every request fails with it.
    pub fn fail(&self, errno: Option<Errno>) {
        self.lock().fail = errno;
    }

    /// Requests that are parked.
    pub fn parked(&self) -> usize {
        self.lock().parked.len()
    }

    /// The most that were parked at once.
    pub fn parked_max(&self) -> usize {
        self.lock().parked_max
    }

    /// A copy of the content.
    pub fn content(&self) -> Vec<u8> {
        self.lock().content.clone()
    }

    /// Every request so far, in order of submission, with its FUA flag.
    pub fn log(&self) -> Vec<(Op, ByteExtent, bool)> {
        self.lock().log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn run(&mut self, mut request: Request) {
        let mut buffer = request.take_buffer();
        let Request { id, op, extent, .. } = request;
        let result = self.fail.map_or(Ok(()), Err);
        if result.is_ok() {
            let start = usize::try_from(extent.offset.0).expect("inside the volume");
            let content = &mut self.content[start..][..usize::try_from(extent.len).expect("inside the volume")];
            apply(op, content, buffer.as_mut());
        }
        self.done.push_back(Done { id, result, buffer });
    }
}

fn apply(op: Op, content: &mut [u8], buffer: Option<&mut Buffer>) {
    match op {
        Op::Read => buffer.expect("a read has a buffer").copy_from_slice(content),
        Op::Write => content.copy_from_slice(buffer.expect("a write has a buffer")),
        Op::Trim | Op::WriteZeroes { .. } => content.fill(0),
        Op::Flush => {}
    }
}

impl BlockQueue for MemQueue {
    fn info(&self) -> QueueInfo {
        self.info
    }

    fn submit(&mut self, _ring: &mut Ring, request: Request) {
        let mut shared = self.lock();
        shared.log.push((request.op, request.extent, request.fua));
        if shared.held {
            shared.parked.push_back(request);
            shared.parked_max = shared.parked_max.max(shared.parked.len());
        } else {
            shared.run(request);
        }
    }

    fn complete(&mut self, _ring: &mut Ring, _completion: Completion) {
        unreachable!("a volume in memory starts no operations");
    }

    fn wake(&mut self, _ring: &mut Ring) {
        let mut shared = self.lock();
        while !shared.held
            && let Some(request) = shared.parked.pop_front()
        {
            shared.run(request);
        }
    }

    fn reap(&mut self) -> Option<Done> {
        self.lock().done.pop_front()
    }

    /// Zero runs by content, in whole blocks.
    fn extents(&mut self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        let (shared, from) = (self.lock(), out.len());
        let start = usize::try_from(extent.offset.0).map_err(|_| Errno::EOVERFLOW)?;
        let len = usize::try_from(extent.len).map_err(|_| Errno::EOVERFLOW)?;
        for block in shared.content[start..][..len].chunks(self.info.block_min as usize) {
            let kind = if block.iter().all(|&b| b == 0) { ExtentKind::Hole } else { ExtentKind::Data };
            crate::queue::push_extent(out, from, Extent { len: block.len() as u64, kind });
            if out.len() - from > max {
                out.pop();
                break;
            }
        }
        Ok(())
    }
}
