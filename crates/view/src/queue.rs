//! A view as the queue of a tap: threads of its own do the work, since a queue never blocks.
//!
//! Invariant: a store that does not answer holds up only what needs it. Each request is tried without waiting first; those that would have
//! to wait do so in a limited number of threads, the others of them in no thread.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded, select, unbounded};
use farside_blockio::{BlockQueue, Buffer, Completion, Done, Extent, Op, QueueInfo, Request, Ring, Waker};
use farside_region::{ByteExtent, mutation};
use nix::errno::Errno;

use crate::view::{Hears, Turn};
use crate::{Base, View};

/// Fetch what somebody may be about to read. That is waiting for a store, more than it is work.
const AHEAD_THREADS: usize = 4;
/// One for a flush, and one more.
const FREE_THREADS: usize = 2;
/// Sectors, where the volume has whole ones.
const BLOCK_SHIFT_MAX: u32 = 9;
/// What reading less than costs the same.
const BLOCK_PREFERRED: u32 = 4096;

/// A view that is served, or one of its servers' share in that. Dropped, it waits for the requests that are under way.
pub struct ViewQueue<B: Base> {
    view: Arc<View<B>>,
    jobs: Arc<Jobs>,
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
    /// A queue of a view, of which so many threads wait for the store at once, and two more never do. `waker`: the server's,
    /// which then calls [`BlockQueue::reap`]. A view may have several, of a server each; the first one fetches ahead for all of them.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(view: Arc<View<B>>, threads: usize, waker: &Waker) -> io::Result<Self> {
        let jobs = Arc::new(Jobs { state: Mutex::default(), come: Condvar::new(), waiting_max: threads.max(1) });
        let hears: Arc<dyn Hears> = jobs.clone();
        view.tell(Arc::downgrade(&hears));
        let (finished, done) = unbounded();
        let (ahead, ended) = bounded(0);
        let is_first = view.begin_queue();
        // Dropped after an error, it ends those that have begun.
        let mut queue = Self { view, jobs, done, ahead: Some(ahead), threads: Vec::new() };
        for at in 0..queue.jobs.waiting_max + FREE_THREADS {
            let (view, jobs, finished, waker) = (queue.view.clone(), queue.jobs.clone(), finished.clone(), waker.clone());
            let answer = move |done| {
                if finished.send(done).is_ok() {
                    waker.wake();
                }
            };
            let work = move || work(&view, &jobs, &answer);
            queue.threads.push(std::thread::Builder::new().name(format!("view-{at}")).spawn(work)?);
        }
        let fetch = |at| {
            let (view, wanted) = (Arc::downgrade(&queue.view), queue.view.wanted().clone());
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
        if is_first {
            // Nobody waits for these: at the end they may be waiting for a store.
            (0..AHEAD_THREADS).map(fetch).collect::<io::Result<Vec<_>>>()?;
        }
        Ok(queue)
    }
}

impl<B: Base> ViewQueue<B> {
    pub(crate) fn put(&self, request: Request) {
        self.jobs.state().ready.push_back(Job::new(request, Turn::default()));
        self.jobs.come.notify_one();
    }
}

impl<B: Base> Drop for ViewQueue<B> {
    fn drop(&mut self) {
        self.view.end_queue();
        self.ahead = None;
        self.jobs.state().is_over = true;
        self.jobs.come.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // one that panicked has said so
        }
    }
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(crate) struct Job {
    request: Request,
    buffer: Option<Buffer>,
    turn: Turn,
}

impl Job {
    pub(crate) fn new(mut request: Request, turn: Turn) -> Self {
        Self { buffer: request.take_buffer(), request, turn }
    }

    /// `EAGAIN`: it would have to wait, and it is not its turn.
    ///
    /// A mistake of ours in one request is that one's error: what is never answered would be waited for, also by who closes the view.
    pub(crate) fn carry_out<B: Base>(&mut self, view: &View<B>) -> Result<(), Errno> {
        catch_unwind(AssertUnwindSafe(|| self.attempt(view))).unwrap_or(Err(Errno::EIO))
    }

    fn attempt<B: Base>(&mut self, view: &View<B>) -> Result<(), Errno> {
        let (offset, extent, turn) = (self.request.extent.offset.0, self.request.extent, &mut self.turn);
        match (self.request.op, self.buffer.as_mut()) {
            (Op::Read, Some(buffer)) => view.read_in(turn, offset, buffer),
            (Op::Write, Some(buffer)) => view.write_in(turn, offset, buffer),
            (Op::Flush, _) => view.flush(),
            (Op::Trim, _) => view.trim(extent),
            (Op::WriteZeroes { no_hole }, _) => view.zero_in(turn, extent, no_hole),
            (Op::Read | Op::Write, None) => Err(Errno::EINVAL),
        }?;
        if self.request.fua && !mutation::on("a write over a point is durable by its word") { view.flush() } else { Ok(()) }
    }

    fn done(self, result: Result<(), Errno>) -> Done {
        Done { id: self.request.id, result, buffer: self.buffer }
    }
}

/// What the threads of a queue share. What need not wait for the store is never behind what does: as long as some wait, others are free.
#[derive(Debug)]
struct Jobs {
    state: Mutex<State>,
    come: Condvar,
    /// So many wait for the store at once.
    waiting_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// To be tried.
    ready: VecDeque<Job>,
    /// They would have to wait, and as many as may do. Whoever has waited takes the next one, so that none is here while nobody waits.
    parked: VecDeque<Job>,
    /// Threads that may wait.
    waiting: usize,
    is_over: bool,
}

impl State {
    /// Those come first for which somebody else has waited. Whether there are any.
    fn unpark(&mut self) -> bool {
        let (come, parked): (VecDeque<Job>, _) = self.parked.drain(..).partition(|job| job.turn.has_come());
        self.parked = parked;
        let any = !come.is_empty();
        come.into_iter().rev().for_each(|job| self.ready.push_front(job));
        any
    }
}

impl Jobs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One to be tried; `None` at the end.
    fn take(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            state.unpark();
            match state.ready.pop_front() {
                Some(job) => return Some(job),
                None if state.is_over => return None,
                None => state = self.come.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Gives one back that has to wait, if it may.
    fn wait_or_park(&self, job: Job) -> Option<Job> {
        let mut state = self.state();
        if state.waiting == self.waiting_max {
            state.parked.push_back(job);
            return None;
        }
        state.waiting += 1;
        Some(in_turn(job))
    }

    /// Whoever has waited takes the one that has been parked for longest.
    fn next_to_wait(&self) -> Option<Job> {
        let mut state = self.state();
        if state.unpark() {
            self.come.notify_all();
        }
        let next = state.parked.pop_front();
        state.waiting -= usize::from(next.is_none());
        next.map(in_turn)
    }
}

impl Hears for Jobs {
    fn fetch_is_over(&self) {
        // Who is parked after this look sees for himself that it is over.
        if self.state().unpark() {
            self.come.notify_all();
        }
    }
}

fn in_turn(mut job: Job) -> Job {
    job.turn.may_wait = true;
    job
}

fn work<B: Base>(view: &View<B>, jobs: &Jobs, answer: &dyn Fn(Done)) {
    while let Some(mut job) = jobs.take() {
        let mut waits = match job.carry_out(view) {
            Err(Errno::EAGAIN) => jobs.wait_or_park(job),
            result => {
                answer(job.done(result));
                None
            }
        };
        while let Some(mut job) = waits {
            let result = job.carry_out(view);
            answer(job.done(result));
            waits = jobs.next_to_wait();
        }
    }
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
        self.put(request);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use farside_blockio::{Payload, RequestId};
    use farside_region::{Geometry, RegionIndex};
    use farside_store::StoreError;

    use super::*;
    use crate::tests::{extent, origin};
    use crate::{Overlay, Region};

    const REGION: u64 = 16 * 4096;

    /// It answers nobody as long as somebody has the other end, and then fails: one end for each of the first regions, the last for all that follow.
    struct Held {
        geometry: Geometry,
        held: Vec<Receiver<()>>,
        reads: Arc<AtomicU64>,
    }

    impl Base for Held {
        fn geometry(&self) -> &Geometry {
            &self.geometry
        }

        fn is_zero(&self, _: RegionIndex) -> bool {
            false
        }

        fn read(&self, region: RegionIndex) -> Result<Region, StoreError> {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let _ = self.held[(region.0 as usize).min(self.held.len() - 1)].recv();
            Err(StoreError::Stopped)
        }
    }

    /// Of a hundred regions; with what ends the wait, and the count of reads.
    fn held(overlay: Option<&std::path::Path>) -> (Arc<View<Held>>, Sender<()>, Arc<AtomicU64>) {
        let (holds, held) = bounded(0);
        let (view, reads) = held_by(vec![held], overlay);
        (view, holds, reads)
    }

    fn held_by(held: Vec<Receiver<()>>, overlay: Option<&std::path::Path>) -> (Arc<View<Held>>, Arc<AtomicU64>) {
        let (geometry, reads) = (Geometry::with_shape(100 * REGION, 12, 4).expect("valid"), Arc::default());
        let overlay = overlay.map(|dir| Overlay::open(dir, &origin("1-aaaa"), &geometry).expect("an overlay"));
        let base = Held { geometry, held, reads: Arc::clone(&reads) };
        (Arc::new(View::new(base, overlay, 8 * REGION, Box::new(|_| {}))), reads)
    }

    /// Two may wait. Given back is what ends their wait, which so goes before the queue does, also if a test fails.
    fn queue(view: &Arc<View<Held>>, holds: Sender<()>) -> (ViewQueue<Held>, Sender<()>) {
        (ViewQueue::new(view.clone(), 2, &Waker::new().expect("a waker")).expect("threads"), holds)
    }

    fn put(queue: &ViewQueue<Held>, id: u64, op: Op, offset: u64, len: u64) {
        let payload = matches!(op, Op::Read | Op::Write).then(|| {
            let mut buffer = Buffer::alone(len as usize).expect("memory");
            buffer.fill(7);
            Payload::Buffer(buffer)
        });
        queue.put(Request { id: RequestId(id), client: 1, op, extent: extent(offset, len), fua: false, payload });
    }

    fn settle(queue: &ViewQueue<Held>, waiting: usize, parked: usize) {
        let is_so = || {
            let state = queue.jobs.state();
            (state.waiting, state.parked.len(), state.ready.len()) == (waiting, parked, 0)
        };
        while !is_so() {
            thread::yield_now();
        }
    }

    fn done(queue: &ViewQueue<Held>) -> (u64, Result<(), Errno>) {
        let done = queue.done.recv().expect("its threads live");
        (done.id.0, done.result)
    }

    #[test]
    fn who_waited_for_the_same_fetch_shares_its_failure() {
        let (view, holds, reads) = held(None);
        thread::scope(|scope| {
            let reads: Vec<_> = (0..8).map(|_| scope.spawn(|| view.read(0, &mut [0; 512]))).collect();
            // A multiple of the number of locks away.
            let other = scope.spawn(|| view.read(64 * REGION, &mut [0; 512]));
            while (view.waiting_for(RegionIndex(0)), view.waiting_for(RegionIndex(64))) != (8, 1) {
                thread::yield_now();
            }
            drop(holds);
            reads.into_iter().chain([other]).for_each(|read| assert_eq!(read.join().expect("no panic"), Err(Errno::EIO)));
        });
        assert_eq!(reads.load(Ordering::SeqCst), 2);
        assert_eq!(view.read(0, &mut [0]), Err(Errno::EIO));
        assert_eq!(reads.load(Ordering::SeqCst), 3, "who comes later tries again");
    }

    #[test]
    fn who_was_not_even_let_wait_shares_it_too() {
        let (view, holds, reads) = held(None);
        let (queue, holds) = queue(&view, holds);
        (0..8).for_each(|id| put(&queue, id, Op::Read, id * 512, 512));
        settle(&queue, 2, 6);
        drop(holds);
        let mut all: Vec<_> = (0..8).map(|_| done(&queue)).collect();
        all.sort_by_key(|(id, _)| *id);
        assert_eq!(all, (0..8).map(|id| (id, Err(Errno::EIO))).collect::<Vec<_>>());
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_somebody_else_fetched_is_heard_of_while_all_who_may_wait_do() {
        let ((first, held), (second, held_too)) = (bounded(0), bounded(0));
        let (view, _) = held_by(vec![held, held_too], None);
        let queue = ViewQueue::new(view.clone(), 1, &Waker::new().expect("a waker")).expect("threads");
        put(&queue, 0, Op::Read, 0, 512);
        thread::scope(|scope| {
            let elsewhere = scope.spawn(|| view.read(REGION, &mut [0; 512]));
            settle(&queue, 1, 0);
            while view.waiting_for(RegionIndex(1)) != 1 {
                thread::yield_now();
            }
            put(&queue, 1, Op::Read, REGION, 512);
            settle(&queue, 1, 1);
            drop(second);
            assert_eq!(done(&queue), (1, Err(Errno::EIO)), "the first is waited for still");
            assert_eq!(elsewhere.join().expect("no panic"), Err(Errno::EIO));
        });
        drop(first);
        assert_eq!(done(&queue), (0, Err(Errno::EIO)));
    }

    #[test]
    fn a_store_that_does_not_answer_holds_up_only_what_needs_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (view, holds, _) = held(Some(dir.path()));
        view.write(0, &[1; 4096]).expect("a whole granule");
        let (queue, holds) = queue(&view, holds);
        // A part of a granule, and more missing regions than there are threads.
        put(&queue, 0, Op::Write, 4096 + 512, 512);
        (1..9).for_each(|id| put(&queue, id, Op::Read, id * REGION, 512));
        settle(&queue, 2, 7);
        put(&queue, 10, Op::Read, 512, 512);
        assert_eq!(done(&queue), (10, Ok(())));
        put(&queue, 11, Op::Write, 4096, 4096);
        assert_eq!(done(&queue), (11, Ok(())), "beside a part of it that waits");
        put(&queue, 12, Op::WriteZeroes { no_hole: false }, 8 * REGION, REGION);
        assert_eq!(done(&queue), (12, Ok(())));
        put(&queue, 13, Op::Flush, 0, 0);
        assert_eq!(done(&queue), (13, Ok(())));
        drop(holds);
        let mut all: Vec<_> = (0..9).map(|_| done(&queue)).collect();
        all.sort_by_key(|(id, _)| *id);
        let failed = |id: u64| (id, if id == 8 { Ok(()) } else { Err(Errno::EIO) });
        assert_eq!(all[1..], (1..9).map(failed).collect::<Vec<_>>(), "what the last one reads was zeroed before its turn");
        let mut found = [0; 8192];
        view.read(0, &mut found).expect("it was written");
        assert!(found[..4096] == [1; 4096] && found[4096..] == [7; 4096]);
    }
}
