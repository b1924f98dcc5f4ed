//! One queue of a device: one thread, one ring. Queues of a device share nothing but its file and their counters.
//!
//! The kernel holds one command of ours for each tag. It completes one when a request has come, the request goes to the
//! [`BlockQueue`], and its end is told together with the next command for that tag. So a request costs no system call of its
//! own: whatever completions one `io_uring_enter` brings is worked on, and whatever that starts goes down with the next.
//!
//! | The device was made for | A request's data |
//! |---|---|
//! | [`DataPath::ZeroCopy`] | a read's: the driver registers the request's own pages in the ring's slot of the tag's number, until its end is told. A write's is copied as it is taken |
//! | [`DataPath::Copy`] | each command has a buffer: a write's data is in it when the request comes, a read's is taken from it at the end |
//!
//! † A write's own pages are never what the backing gets: a host may change a page while it is written (the page cache does, and
//! so does whoever writes directly), and what it puts there may have been written after a switch that came between: the cut would
//! hold it without what was acknowledged before it (L3). A copy that is taken before the write is marked is never newer than its
//! epoch. It is one system call, from `/dev/ublkcN`. Only [`Server::passing_pages`] does without.
//!
//! Where a read's pages cannot be registered (no memory), or the backing does not take them as they lie (`EINVAL`), it is copied,
//! too, at its end. So is every one where a device that was made for zero copy must have its data copied by now. Copies are made on
//! this thread and not through the ring, whose workers want memory that there may not be.
//!
//! ```text
//! tag:   Fetching ──request──► Working ──end──► Fetching        any ──the device ends──► Gone
//! ```
//!
//! Invariants: a tag's buffer belongs to the ring while the tag is `Fetching`, and to the block queue, or to the tag, while it is
//! `Working`; its pages are used between a request's submission to the queue and its end, and never after. Each request is committed
//! exactly once, or never: then the kernel gives it to the successor. A stop takes no request any more, answers those that it has,
//! and leaves the others to the successor.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use farside_blockio::{
    Abandoned, BlockQueue, Buffer, BufferPool, Completion, Done, Errno, Op, Owner, Pages, Payload, Request, RequestId, Ring,
    SharedFd, Tag, Waker, process,
};
use farside_region::{ByteExtent, ByteOffset};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::uio::{pread, pwrite};

use crate::UblkError;
use crate::device::{Scan, begin};
use crate::kernel::DataPath;
use crate::opening::{Place, places};
use crate::uapi::{self, DESCRIPTOR_BYTES, Descriptor, DeviceInfo, IoCommand, Operation, SECTOR};

/// The kernel is one client: whoever writes through the page cache shares its flushes (T14).
const CLIENT: u32 = 0;
/// Tag of the ring's read of the waker; the others are the kernel's tags, which end below.
const WAKE: u64 = 1 << 32;
/// Until the kernel is asked again that has not taken every command: it had no memory, or was interrupted.
const TAKE_AGAIN: Duration = Duration::from_millis(1);

/// What a server has done; monotonic, except for `in_flight`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests not answered yet.
    pub in_flight: AtomicU64,
    /// Requests taken.
    pub requests: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Requests that were copied though their pages were to be used: reads, and writes of [`Server::passing_pages`].
    pub copied: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    counters: Counters,
}

/// What other threads hold of the servers of a device.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    wakers: Arc<[Waker]>,
}

impl Handle {
    /// No new request: what has been taken is answered, then [`Server::run`] returns. The device stays, and its users wait for
    /// the next server.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether [`Handle::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.shared.stop.load(Ordering::SeqCst)
    }

    /// What it has done.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Wakes each of their threads, which then calls [`BlockQueue::wake`].
    pub fn wake(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// A server of one queue that is about to run. Make it anywhere; [`Server::run`] belongs to one thread.
pub struct Server {
    info: DeviceInfo,
    queue: u16,
    place: Place,
    recovered: bool,
    scan: Scan,
    slots: u16,
    passes_pages: bool,
    shared: Arc<Shared>,
    waker: Waker,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("info", &self.info).field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Server {
    /// One for each queue of the device, with its waker.
    pub(crate) fn of(info: DeviceInfo, recovered: bool, scan: Scan, slots: u16, wakers: Vec<Waker>) -> (Vec<Self>, Handle) {
        assert_eq!(wakers.len(), usize::from(info.queues), "each queue has a waker");
        let shared = Arc::new(Shared::default());
        let handle = Handle { shared: Arc::clone(&shared), wakers: wakers.clone().into() };
        let queues = places(info.queues).into_iter().zip(wakers).zip(0..);
        let server = |((place, waker), queue)| Self {
            info,
            queue,
            place,
            recovered,
            scan,
            slots,
            passes_pages: false,
            shared: shared.clone(),
            waker,
        };
        (queues.map(server).collect(), handle)
    }

    /// A write's own pages go to the backing, where the device was made for zero copy: for who only passes requests on and never
    /// has to say what was written when (L3), as what others do is measured.
    pub fn passing_pages(self) -> Self {
        Self { passes_pages: true, ..self }
    }

    /// Serves the queue on this thread until it is stopped or the device ends. Begins when the servers of all queues run. Gives the
    /// ring, if the kernel still has commands: they must end before this process serves the device again. `ready` is called once
    /// the kernel has every command of this queue, so that [`crate::Device::go_live`] will not wait for ever; never where that
    /// fails.
    ///
    /// # Errors
    /// Before the first request, or when the ring breaks. The device's users wait then for the next server.
    pub fn run<Q: BlockQueue>(self, queue: Q, ready: impl FnOnce()) -> Result<Option<Abandoned>, Broken> {
        let Self { info, queue: number, .. } = self;
        let (depth, io_bytes) = (info.depth, info.io_bytes_max as usize);
        let device = PathBuf::from(format!("/dev/ublkc{}", info.id));
        let memory = |source| UblkError::Io { what: "find memory for the requests of", path: device.clone(), source };
        let path = DataPath::of_device(info.flags);
        let pool = BufferPool::new(usize::from(depth) * io_bytes, io_bytes).map_err(memory)?;
        // Every command in one system call: see `device`.
        let entries = u32::from(depth) * 2;
        // Without a slot nothing can be registered, and each request that has data says so.
        let ring = match self.slots {
            0 => Ring::new(entries)?,
            slots => Ring::with_slots(entries, slots)?,
        };
        let file = self.place.arrive(info.id, || begin(&info, self.recovered))?;
        if self.scan == Scan::No && !self.recovered {
            // The kernel asks whose commands they are when it has the last one. Nothing that follows needs the privilege.
            process::give_up_administration().unwrap_or_else(|error| tracing::warn!("{error}"));
        }
        let mut running = Running {
            ring,
            queue,
            number,
            file,
            descriptors: None,
            path,
            passes_pages: self.passes_pages,
            pool,
            device_bytes: 0,
            io_bytes,
            tags: (0..depth).map(|_| TagState::Gone).collect(),
            working: 0,
            gone: usize::from(depth),
            shared: self.shared,
        };
        running.device_bytes = running.queue.info().size;
        for tag in 0..depth {
            let buffer = (path == DataPath::Copy).then(|| running.buffer(io_bytes));
            running.gone -= 1;
            running.fetch(tag, uapi::io::FETCH, 0, buffer);
        }
        let served = running.serve(&self.waker, &device, ready);
        let Running { ring, gone, tags, .. } = running;
        let abandoned = (gone < tags.len()).then(|| ring.abandon());
        match served {
            Ok(()) => Ok(abandoned),
            Err(why) => Err(Broken { why, abandoned: abandoned.map(Box::new) }),
        }
    }
}

/// Why a queue is not served any more.
#[derive(Debug)]
pub struct Broken {
    /// What failed.
    pub why: UblkError,
    /// The ring, if the kernel still has commands; see [`Server::run`].
    pub abandoned: Option<Box<Abandoned>>,
}

impl<E: Into<UblkError>> From<E> for Broken {
    fn from(why: E) -> Self {
        Self { why: why.into(), abandoned: None }
    }
}

/// A tag, in the eyes of its server.
#[derive(Debug)]
enum TagState {
    /// The kernel has our command, and the ring the buffer if there is one.
    Fetching,
    /// A request is under way.
    Working(Work),
    /// Nothing comes here any more.
    Gone,
}

/// What must be known at a request's end.
#[derive(Debug)]
struct Work {
    /// What the kernel is told of a success.
    bytes: u32,
    data: WorkData,
}

#[derive(Debug)]
enum WorkData {
    /// The queue has the tag's buffer, or it is kept here where the request has no use for it.
    Buffer(Option<Buffer>),
    /// The driver keeps it registered; a request without data is no different.
    Pages,
    /// The queue has a copy.
    Copied,
}

struct Running<Q> {
    ring: Ring,
    queue: Q,
    number: u16,
    file: SharedFd,
    /// There once the kernel has every command.
    descriptors: Option<MmapRaw>,
    path: DataPath,
    passes_pages: bool,
    /// A buffer for each tag; untouched memory costs nothing.
    pool: BufferPool,
    device_bytes: u64,
    io_bytes: usize,
    tags: Vec<TagState>,
    working: usize,
    gone: usize,
    shared: Arc<Shared>,
}

impl<Q: BlockQueue> Running<Q> {
    /// † The descriptors are mapped when the kernel has every command of the queue, and not before. A kernel older than 6.16
    /// remembers whose memory they are mapped into until somebody takes the device over, and lets nobody take over a device
    /// of which no queue has all its commands: a server that died between the two would leave one that nobody can serve again.
    fn serve(&mut self, waker: &Waker, device: &Path, ready: impl FnOnce()) -> Result<(), UblkError> {
        self.ring.wake_read(Tag::server(WAKE), waker);
        // A command that the kernel does not want completes at once.
        self.ring.wait(Some(Duration::ZERO))?;
        while !self.ring.is_submitted() {
            std::thread::sleep(TAKE_AGAIN);
            self.ring.wait(Some(Duration::ZERO))?;
        }
        self.descriptors = Some(self.map(device)?);
        let mut ready = Some(ready);
        loop {
            while let Some(completion) = self.ring.pop() {
                match completion.tag {
                    Tag { owner: Owner::Queue, .. } => self.queue.complete(&mut self.ring, completion),
                    Tag { id: WAKE, .. } => {
                        self.ring.wake_read(Tag::server(WAKE), waker);
                        self.queue.wake(&mut self.ring);
                    }
                    Tag { id: tag, .. } => self.arrived(tag as u16, completion)?,
                }
                self.reap();
            }
            if let Some(ready) = ready.take_if(|_| self.gone == 0) {
                ready();
            }
            if self.gone == self.tags.len() && self.queue.is_idle() {
                return Ok(()); // the device has ended
            }
            // † What the queue does on its own is heard of too: a flush whose end nobody reports may have failed (T14).
            if self.shared.stop.load(Ordering::SeqCst) && self.working == 0 && self.queue.is_idle() {
                // The last answers go down with this; requests that come back with them are the successor's.
                self.ring.wait(Some(Duration::ZERO))?;
                self.queue.answered(&mut self.ring);
                return Ok(());
            }
            self.ring.wait(None)?;
            self.queue.answered(&mut self.ring);
        }
    }

    /// A command came back: with a request, or because none will come.
    fn arrived(&mut self, tag: u16, completion: Completion) -> Result<(), UblkError> {
        let buffer = completion.buffer;
        match completion.result {
            // Never committed: the successor gets it, with a buffer of its own. The driver uses ours when a command is with it, or
            // as one commits: never again.
            Ok(uapi::RESULT_OK) if self.shared.stop.load(Ordering::SeqCst) => {
                self.tags[usize::from(tag)] = TagState::Gone;
                self.gone += 1;
                Ok(())
            }
            Ok(uapi::RESULT_OK) => {
                let descriptor = self.descriptor(tag);
                self.take(tag, descriptor, buffer);
                Ok(())
            }
            // UBLK_IO_RES_ABORT: the device ends.
            Err(Errno::ENODEV) => {
                self.tags[usize::from(tag)] = TagState::Gone;
                self.gone += 1;
                Ok(())
            }
            other => {
                let errno = other.err().unwrap_or(Errno::EPROTO);
                Err(UblkError::Command { what: "get requests of", id: tag.into(), errno })
            }
        }
    }

    fn map(&self, device: &Path) -> Result<MmapRaw, UblkError> {
        let len = (self.tags.len() * DESCRIPTOR_BYTES).next_multiple_of(page_bytes());
        let offset = u64::from(self.number) * uapi::DESCRIPTORS_STRIDE;
        let mapped = MmapOptions::new().offset(offset).len(len).map_raw_read_only(&*self.file);
        mapped.map_err(|source| UblkError::Io { what: "map", path: device.to_owned(), source })
    }

    fn descriptor(&self, tag: u16) -> Descriptor {
        let mut bytes = [0u8; DESCRIPTOR_BYTES];
        let descriptors = self.descriptors.as_ref().expect("they are mapped before a request is seen");
        let from = descriptors.as_ptr();
        assert!((usize::from(tag) + 1) * DESCRIPTOR_BYTES <= descriptors.len(), "a tag lies inside the mapping");
        // SAFETY: the source lies inside the mapping (asserted), which lives as long as we do; the kernel writes a tag's
        // descriptor only before it completes the tag's command, and that completion has been seen.
        unsafe { from.add(usize::from(tag) * DESCRIPTOR_BYTES).copy_to_nonoverlapping(bytes.as_mut_ptr(), DESCRIPTOR_BYTES) };
        Descriptor::decode(&bytes)
    }

    /// A tag has one buffer at a time.
    fn buffer(&self, bytes: usize) -> Buffer {
        self.pool.take(bytes).expect("the pool holds a buffer for each tag")
    }

    /// Takes a request on.
    fn take(&mut self, tag: u16, descriptor: Descriptor, buffer: Option<Buffer>) {
        let counters = &self.shared.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.in_flight.fetch_add(1, Ordering::Relaxed);
        self.working += 1;
        let data = match self.path {
            DataPath::Copy => WorkData::Buffer(buffer),
            DataPath::ZeroCopy => WorkData::Pages,
        };
        let Some((op, extent)) = self.meaning(&descriptor) else {
            self.tags[usize::from(tag)] = TagState::Working(Work { bytes: 0, data });
            return self.end(tag, Err(Errno::EOPNOTSUPP), None);
        };
        let has_data = matches!(op, Op::Read | Op::Write);
        let len = extent.len as u32;
        let (payload, data) = match data {
            data if !has_data => (None, data),
            WorkData::Buffer(buffer) => {
                let mut buffer = buffer.expect("a command has the tag's buffer");
                buffer.set_len(extent.len as usize);
                (Some(Payload::Buffer(buffer)), WorkData::Buffer(None))
            }
            _ if op == Op::Write && !self.passes_pages => return self.copy(tag, &descriptor),
            _ if descriptor.unregistered => return self.copy_unasked(tag, &descriptor),
            _ => (Some(Payload::Pages(Pages { slot: tag, len })), WorkData::Pages),
        };
        self.tags[usize::from(tag)] = TagState::Working(Work { bytes: if has_data { len } else { 0 }, data });
        self.submit(tag, (op, extent), descriptor.fua, payload);
    }

    fn submit(&mut self, tag: u16, (op, extent): (Op, ByteExtent), fua: bool, payload: Option<Payload>) {
        let request = Request { id: RequestId(tag.into()), client: CLIENT, op, extent, fua, payload };
        self.queue.submit(&mut self.ring, request);
    }

    fn meaning(&self, descriptor: &Descriptor) -> Option<(Op, ByteExtent)> {
        meaning(descriptor, self.device_bytes, self.io_bytes as u64)
    }

    /// Goes on with a tag's request without its pages.
    fn copy_unasked(&mut self, tag: u16, descriptor: &Descriptor) {
        self.shared.counters.copied.fetch_add(1, Ordering::Relaxed);
        self.copy(tag, descriptor);
    }

    /// Gives a tag's request to the queue with memory of ours.
    fn copy(&mut self, tag: u16, descriptor: &Descriptor) {
        let (op, extent) = self.meaning(descriptor).expect("it was looked at before");
        let mut buffer = self.buffer(extent.len as usize);
        self.tags[usize::from(tag)] = TagState::Working(Work { bytes: extent.len as u32, data: WorkData::Copied });
        let taken = if op == Op::Write { self.copy_in(tag, &mut buffer) } else { Ok(()) };
        match taken {
            Ok(()) => self.submit(tag, (op, extent), descriptor.fua, Some(Payload::Buffer(buffer))),
            Err(errno) => self.end(tag, Err(errno), Some(buffer)),
        }
    }

    /// Takes a write's data.
    fn copy_in(&self, tag: u16, buffer: &mut [u8]) -> Result<(), Errno> {
        whole(buffer.len(), |done| pread(&*self.file, &mut buffer[done..], data_at(self.number, tag, done)))
    }

    /// Gives a read its data.
    fn copy_out(&self, tag: u16, buffer: &[u8]) -> Result<(), Errno> {
        whole(buffer.len(), |done| pwrite(&*self.file, &buffer[done..], data_at(self.number, tag, done)))
    }

    fn reap(&mut self) {
        while let Some(Done { id, result, buffer }) = self.queue.reap() {
            self.end(id.0 as u16, result, buffer);
        }
    }

    /// The queue is done with a request.
    fn end(&mut self, tag: u16, result: Result<(), Errno>, buffer: Option<Buffer>) {
        let state = std::mem::replace(&mut self.tags[usize::from(tag)], TagState::Gone);
        let TagState::Working(work) = state else { panic!("tag {tag} is answered and is {state:?}") };
        match (work.data, result) {
            (WorkData::Buffer(kept), result) => {
                let buffer = buffer.or(kept).expect("a tag's buffer comes back with its request");
                self.commit(tag, result, work.bytes, Some(buffer));
            }
            // The backing does not take pages that lie so.
            (WorkData::Pages, Err(Errno::EINVAL)) if work.bytes > 0 => {
                let descriptor = self.descriptor(tag);
                self.copy_unasked(tag, &descriptor);
            }
            (WorkData::Copied, Ok(())) if self.descriptor(tag).operation == Operation::Read => {
                let given = self.copy_out(tag, &buffer.expect("a read has a place for its data"));
                self.commit(tag, given, work.bytes, None);
            }
            (WorkData::Pages | WorkData::Copied, result) => self.commit(tag, result, work.bytes, None),
        }
    }

    /// Tells the kernel how a request ended, and asks for the tag's next one.
    fn commit(&mut self, tag: u16, result: Result<(), Errno>, bytes: u32, buffer: Option<Buffer>) {
        let counters = &self.shared.counters;
        counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.working -= 1;
        let result = match result {
            Ok(()) => bytes as i32,
            Err(errno) => {
                counters.errors.fetch_add(1, Ordering::Relaxed);
                -(errno as i32)
            }
        };
        self.fetch(tag, uapi::io::COMMIT_AND_FETCH, result, buffer);
    }

    fn fetch(&mut self, tag: u16, op: u32, result: i32, buffer: Option<Buffer>) {
        self.tags[usize::from(tag)] = TagState::Fetching;
        let queue = self.number;
        let command = move |address| IoCommand { queue, tag, result, address }.encode();
        let register = (self.path == DataPath::ZeroCopy).then(|| uapi::register_in(tag));
        self.ring.command(Tag::server(tag.into()), &self.file, op, register, buffer, command);
    }
}

/// What a request asks for; `None`: nothing that a device of ours may be asked for.
fn meaning(descriptor: &Descriptor, device_bytes: u64, io_bytes: u64) -> Option<(Op, ByteExtent)> {
    let op = match descriptor.operation {
        Operation::Flush => return Some((Op::Flush, ByteExtent { offset: ByteOffset(0), len: 0 })),
        Operation::Read => Op::Read,
        Operation::Write => Op::Write,
        Operation::Discard => Op::Trim,
        Operation::WriteZeroes => Op::WriteZeroes { no_hole: descriptor.no_unmap },
        Operation::Other(_) => return None,
    };
    let extent = ByteExtent {
        offset: ByteOffset(descriptor.first_sector.checked_mul(SECTOR)?),
        len: u64::from(descriptor.sectors) * SECTOR,
    };
    let fits = extent.len > 0 && extent.offset.0.checked_add(extent.len)? <= device_bytes;
    let has_room = !matches!(op, Op::Read | Op::Write) || extent.len <= io_bytes;
    (fits && has_room).then_some((op, extent))
}

/// Where the driver has a byte of a request's data.
fn data_at(queue: u16, tag: u16, byte: usize) -> i64 {
    (uapi::data_offset(queue, tag) + byte as u64) as i64
}

/// Goes on until all is there. `step` is told how much is, and says how much more it did.
fn whole(len: usize, mut step: impl FnMut(usize) -> nix::Result<usize>) -> Result<(), Errno> {
    let mut done = 0;
    while done < len {
        match step(done) {
            Ok(0) => return Err(Errno::EIO),
            Ok(more) => done += more,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn page_bytes() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |bytes| bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u64 = 1 << 30;
    const IO: u64 = 512 << 10;

    fn ask(operation: Operation, first_sector: u64, sectors: u32) -> Option<(Op, ByteExtent)> {
        meaning(&Descriptor { operation, fua: false, no_unmap: true, unregistered: false, sectors, first_sector }, DEVICE, IO)
    }

    #[test]
    fn requests_mean_what_the_kernel_means() {
        let extent = |offset, len| ByteExtent { offset: ByteOffset(offset), len };
        assert_eq!(ask(Operation::Read, 8, 1), Some((Op::Read, extent(4096, 512))));
        assert_eq!(ask(Operation::Write, 0, 1024), Some((Op::Write, extent(0, IO))));
        assert_eq!(ask(Operation::Flush, 77, 77), Some((Op::Flush, extent(0, 0))));
        assert_eq!(ask(Operation::Discard, 0, (DEVICE / SECTOR) as u32), Some((Op::Trim, extent(0, DEVICE))));
        assert_eq!(ask(Operation::WriteZeroes, 0, 8), Some((Op::WriteZeroes { no_hole: true }, extent(0, 4096))));
    }

    #[test]
    fn what_lies_outside_or_has_no_room_is_refused() {
        let end = DEVICE / SECTOR;
        assert!(ask(Operation::Write, end - 1, 1).is_some() && ask(Operation::Write, end - 1, 2).is_none());
        assert!(ask(Operation::Read, u64::MAX, 1).is_none() && ask(Operation::Read, u64::MAX / SECTOR, u32::MAX).is_none());
        assert!(ask(Operation::Read, 0, 1025).is_none(), "it does not fit the tag's buffer");
        assert!(ask(Operation::Write, 0, 0).is_none());
        assert!(ask(Operation::Other(13), 0, 8).is_none());
    }
}
