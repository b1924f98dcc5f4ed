//! A view as the queue of a tap: threads of its own do the work, since a queue never blocks.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, select, unbounded};
use farside_blockio::{BlockQueue, Buffer, Completion, Done, Extent, Op, QueueInfo, Request, Ring, Waker};
use farside_region::{ByteExtent, mutation};
use nix::errno::Errno;

use crate::{Base, View};

/// Fetch what somebody may be about to read. That is waiting for a store, more than it is work.
const AHEAD_THREADS: usize = 4;
/// Sectors, where the volume has whole ones.
const BLOCK_SHIFT_MAX: u32 = 9;
/// What reading less than costs the same.
const BLOCK_PREFERRED: u32 = 4096;

/// A view that is served, or one of its servers' share in that. Dropped, it waits for the requests that are under way.
pub struct ViewQueue<B: Base> {
    view: Arc<View<B>>,
    /// None while it is dropped.
    requests: Option<Sender<Request>>,
    done: Receiver<Done>,
    /// None while it is dropped.
    ahead: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl<B: Base> fmt::Debug for ViewQueue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewQueue").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl<B: Base + 'static> ViewQueue<B> {
    /// A queue of a view, with so many threads. `waker`: the server's, which then calls [`BlockQueue::reap`]. A view may have several, of a
    /// server each; the first one fetches ahead for all of them.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(view: Arc<View<B>>, threads: usize, waker: &Waker) -> io::Result<Self> {
        let (requests, queue) = unbounded::<Request>();
        let (finished, done) = unbounded();
        let work = |at| {
            let (view, queue, finished, waker) = (view.clone(), queue.clone(), finished.clone(), waker.clone());
            std::thread::Builder::new().name(format!("view-{at}")).spawn(move || {
                for request in queue {
                    if finished.send(carry_out(&view, request)).is_ok() {
                        waker.wake();
                    }
                }
            })
        };
        let (ahead, ended) = bounded(0);
        let fetch = |at| {
            let (view, wanted) = (Arc::downgrade(&view), view.wanted().clone());
            let ended: Receiver<()> = ended.clone();
            std::thread::Builder::new().name(format!("ahead-{at}")).spawn(move || {
                loop {
                    select! {
                        recv(ended) -> _ => return,
                        recv(wanted) -> region => {
                            let (Ok(region), Some(view)) = (region, view.upgrade()) else { return };
                            view.fetch_ahead(region);
                        }
                    }
                }
            })
        };
        let threads = (0..threads.max(1)).map(work).collect::<io::Result<_>>()?;
        let is_first = view.begin_queue();
        let queue = Self { view: view.clone(), requests: Some(requests), done, ahead: Some(ahead), threads };
        if is_first {
            // Nobody waits for these: at the end they may be waiting for a store.
            (0..AHEAD_THREADS).map(fetch).collect::<io::Result<Vec<_>>>()?;
        }
        Ok(queue)
    }
}

impl<B: Base> Drop for ViewQueue<B> {
    fn drop(&mut self) {
        self.view.end_queue();
        (self.requests, self.ahead) = (None, None);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // one that panicked has said so
        }
    }
}

/// A mistake of ours in one request is that one's error: what is never answered would be waited for, also by who closes the view.
pub(crate) fn carry_out<B: Base>(view: &View<B>, mut request: Request) -> Done {
    let mut buffer = request.take_buffer();
    let result = catch_unwind(AssertUnwindSafe(|| attempt(view, &request, buffer.as_mut()))).unwrap_or(Err(Errno::EIO));
    Done { id: request.id, result, buffer }
}

fn attempt<B: Base>(view: &View<B>, request: &Request, buffer: Option<&mut Buffer>) -> Result<(), Errno> {
    let (offset, extent) = (request.extent.offset.0, request.extent);
    match (request.op, buffer) {
        (Op::Read, Some(buffer)) => view.read(offset, buffer),
        (Op::Write, Some(buffer)) => view.write(offset, buffer),
        (Op::Flush, _) => view.flush(),
        (Op::Trim, _) => view.trim(extent),
        (Op::WriteZeroes { no_hole }, _) => view.zero(extent, no_hole),
        (Op::Read | Op::Write, None) => Err(Errno::EINVAL),
    }?;
    if request.fua && !mutation::on("a write over a point is durable by its word") { view.flush() } else { Ok(()) }
}

impl<B: Base + 'static> BlockQueue for ViewQueue<B> {
    fn info(&self) -> QueueInfo {
        QueueInfo {
            size: self.view.bytes(),
            block_min: 1 << self.view.bytes().trailing_zeros().min(BLOCK_SHIFT_MAX),
            block_preferred: BLOCK_PREFERRED,
            readonly: !self.view.is_writable(),
            zeroes_fast: false, // a granule's rest may have to be fetched
            trims: true,        // and is left by a trim
        }
    }

    fn submit(&mut self, _ring: &mut Ring, request: Request) {
        let requests = self.requests.as_ref().expect("it is not being dropped");
        requests.send(request).expect("the threads live as long as this");
    }

    fn complete(&mut self, _ring: &mut Ring, completion: Completion) {
        unreachable!("{completion:?} of a queue that asks a ring for nothing");
    }

    fn wake(&mut self, _ring: &mut Ring) {}

    fn reap(&mut self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    fn extents(&mut self, extent: ByteExtent, max: usize, out: &mut Vec<Extent>) -> Result<(), Errno> {
        self.view.extents(extent, max, out)
    }
}
