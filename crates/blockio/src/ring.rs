//! One thread's io_uring: operations go in with what they own, and come out with it.
//!
//! Invariant: memory that the kernel may touch (buffers, message headers, the word of a wake) lies in the ring's slab from
//! submission to completion, whatever the caller does; a ring that is dropped waits for the kernel first. Device reads and
//! writes complete in full or with an error: the ring itself continues short ones. It deliberately has no limit of its own:
//! what is in flight is bounded by its users' requests.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use farside_region::{ByteExtent, ByteOffset};
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;

use crate::{Buffer, Gather, Waker};

/// A file descriptor that stays open while any operation uses it.
pub type SharedFd = Arc<OwnedFd>;

/// Who gets a completion: the queue and the server in front of it share a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The block queue (and the device below it).
    Queue,
    /// The server that feeds the queue.
    Server,
}

/// What a caller recognises its operation by. Need not be unique, except for [`Ring::cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// Who handles the completion.
    pub owner: Owner,
    /// The owner's own number.
    pub id: u64,
}

impl Tag {
    /// A tag of the queue.
    pub fn queue(id: u64) -> Self {
        Self { owner: Owner::Queue, id }
    }

    /// A tag of the server.
    pub fn server(id: u64) -> Self {
        Self { owner: Owner::Server, id }
    }
}

/// How `fallocate` changes an extent. Both leave it reading as zeroes, or fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallocate {
    /// Give the space back.
    PunchHole,
    /// Keep, or reserve, the space.
    ZeroRange,
}

/// What became of an operation, with everything that moved into it.
#[derive(Debug)]
#[must_use]
pub struct Completion {
    /// As submitted.
    pub tag: Tag,
    /// Bytes for a transfer, 0 for the others.
    pub result: Result<u32, Errno>,
    /// The buffer of a read, write, receive, send or command that has one.
    pub buffer: Option<Buffer>,
    /// The gather of a [`Ring::send_gather`], advanced by what was sent.
    pub gather: Option<Gather>,
    /// The connection that an accept made.
    pub accepted: Option<OwnedFd>,
}

/// The ring cannot be had or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The administrator switched io_uring off.
    #[error(
        "io_uring is disabled on this host (kernel.io_uring_disabled = {setting}): run `sysctl -w kernel.io_uring_disabled=0`, \
         or, where it is 1, add this service's group as kernel.io_uring_group"
    )]
    Disabled {
        /// Content of the sysctl.
        setting: String,
    },
    /// A seccomp filter forbids it, which containers do by default.
    #[error(
        "io_uring is forbidden here ({source}), probably by the container's seccomp profile: allow io_uring_setup, \
         io_uring_enter and io_uring_register, or run outside the container"
    )]
    Forbidden {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel has none.
    #[error(
        "this kernel has no io_uring (or a seccomp filter hides it): Linux 5.19 or newer built with CONFIG_IO_URING is needed"
    )]
    Missing,
    /// Out of lockable memory, on kernels that account rings there.
    #[error("no memory for an io_uring: raise the locked-memory limit (systemd: LimitMEMLOCK=infinity)")]
    Memory,
    /// Anything else.
    #[error("io_uring failed")]
    Io {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Memory that somebody else, a driver, has registered in a slot of a ring's table: pages of a request that it waits for. Who
/// gave it knows how long that holds; the kernel refuses a slot in which nothing is, and a range beyond what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pages {
    /// In the table of [`Ring::with_slots`].
    pub slot: u16,
    /// Bytes.
    pub len: u32,
}

/// An io_uring and the operations in flight on it. Belongs to the thread that makes it.
pub struct Ring {
    uring: IoUring,
    slots: Vec<Option<Operation>>,
    free: Vec<u32>,
    backlog: VecDeque<squeue::Entry>,
    #[allow(clippy::vec_box)] // the kernel is told their addresses
    scratch: Vec<Box<Scratch>>,
    in_flight: usize,
    _not_send: PhantomData<*mut ()>, // the kernel ties the ring to the thread that creates it
}

struct Operation {
    tag: Tag,
    fd: SharedFd,
    kind: Kind,
}

enum Kind {
    Read { transfer: Transfer },
    Write { transfer: Transfer, dsync: bool },
    Recv { buffer: Buffer },
    Send { buffer: Buffer },
    Gather { gather: Gather, scratch: Box<Scratch> },
    Wake { waker: Waker, scratch: Box<Scratch> },
    Accept,
    Command { buffer: Option<Buffer> },
    Plain, // fsync, fallocate, poll: nothing moves
}

enum Memory {
    Buffer(Buffer),
    Pages(Pages),
}

impl From<Buffer> for Memory {
    fn from(buffer: Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl From<Pages> for Memory {
    fn from(pages: Pages) -> Self {
        Self::Pages(pages)
    }
}

impl Memory {
    /// The address that the kernel is told, which in registered pages is the number of the byte, and the pages' slot.
    fn place(&mut self, range: &Range<usize>) -> (*mut u8, Option<u16>) {
        match self {
            Self::Buffer(buffer) => (buffer.kernel_ptr(range), None),
            Self::Pages(pages) => {
                assert!(range.start <= range.end && range.end <= pages.len as usize, "an operation stays inside its pages");
                (std::ptr::without_provenance_mut(range.start), Some(pages.slot))
            }
        }
    }
}

/// A device transfer that may take several submissions.
struct Transfer {
    memory: Memory,
    range: Range<usize>,
    offset: u64,
    done: usize,
    interrupted: u8,
}

impl Transfer {
    fn new(memory: impl Into<Memory>, range: Range<usize>, offset: ByteOffset) -> Self {
        Self { memory: memory.into(), range, offset: offset.0, done: 0, interrupted: 0 }
    }

    fn rest(&mut self) -> (*mut u8, Option<u16>, u32, u64) {
        let rest = self.range.start + self.done..self.range.end;
        let (address, slot) = self.memory.place(&rest);
        (address, slot, transfer_len(&rest), self.offset + self.done as u64)
    }
}

/// Memory for what the kernel wants by address; recycled.
struct Scratch {
    header: libc::msghdr,
    vectors: [libc::iovec; Gather::SLICES_MAX],
    word: u64,
}

const CANCEL: u64 = u64::MAX;
const INTERRUPTED_MAX: u8 = 100;
/// How often one looks whether the kernel is done with a thread.
const THREAD_POLL: Duration = Duration::from_millis(1);
/// Until one asks again who had no memory.
const NO_MEMORY_WAIT: Duration = Duration::from_millis(1);

impl Ring {
    /// A ring whose submission queue holds `entries` (rounded up to a power of two); more may be in flight.
    ///
    /// # Errors
    /// [`RingError`], which names the remedy where the host forbids io_uring.
    pub fn new(entries: u32) -> Result<Self, RingError> {
        let uring = build(entries).map_err(RingError::explain)?;
        let capacity = entries as usize * 4;
        Ok(Self {
            uring,
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            backlog: VecDeque::with_capacity(capacity),
            scratch: (0..8).map(|_| Box::new(Scratch::new())).collect(),
            in_flight: 0,
            _not_send: PhantomData,
        })
    }

    /// As [`Ring::new`], with a table of so many empty slots in which a driver registers [`Pages`].
    ///
    /// # Errors
    /// As [`Ring::new`].
    pub fn with_slots(entries: u32, slots: u16) -> Result<Self, RingError> {
        let ring = Self::new(entries)?;
        ring.uring.submitter().register_buffers_sparse(u32::from(slots)).map_err(RingError::explain)?;
        Ok(ring)
    }

    /// Operations submitted and not yet returned by [`Ring::pop`].
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Reads `range` of the buffer from a device, in full or with an error (`EIO` where the device ends early).
    ///
    /// # Panics
    /// As all of these: when `range` is not inside the buffer.
    pub fn read(&mut self, tag: Tag, fd: &SharedFd, offset: ByteOffset, buffer: Buffer, range: Range<usize>) {
        self.start(tag, fd, Kind::Read { transfer: Transfer::new(buffer, range, offset) });
    }

    /// Writes `range` of the buffer to a device, in full or with an error; with `dsync` durably.
    pub fn write(&mut self, tag: Tag, fd: &SharedFd, offset: ByteOffset, buffer: Buffer, range: Range<usize>, dsync: bool) {
        self.start(tag, fd, Kind::Write { transfer: Transfer::new(buffer, range, offset), dsync });
    }

    /// As [`Ring::read`], into registered pages.
    pub fn read_pages(&mut self, tag: Tag, fd: &SharedFd, offset: ByteOffset, pages: Pages, range: Range<usize>) {
        self.start(tag, fd, Kind::Read { transfer: Transfer::new(pages, range, offset) });
    }

    /// As [`Ring::write`], from registered pages.
    pub fn write_pages(&mut self, tag: Tag, fd: &SharedFd, offset: ByteOffset, pages: Pages, range: Range<usize>, dsync: bool) {
        self.start(tag, fd, Kind::Write { transfer: Transfer::new(pages, range, offset), dsync });
    }

    /// Makes what was completed before durable (`fdatasync`).
    pub fn sync_data(&mut self, tag: Tag, fd: &SharedFd) {
        let entry = opcode::Fsync::new(Fd(fd.as_raw_fd())).flags(FsyncFlags::DATASYNC).build();
        self.start_with(tag, fd, Kind::Plain, entry);
    }

    /// Zeroes an extent without moving data.
    pub fn fallocate(&mut self, tag: Tag, fd: &SharedFd, how: Fallocate, extent: ByteExtent) {
        let mode = match how {
            Fallocate::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Fallocate::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        };
        let entry = opcode::Fallocate::new(Fd(fd.as_raw_fd()), extent.len).offset(extent.offset.0).mode(mode).build();
        self.start_with(tag, fd, Kind::Plain, entry);
    }

    /// Receives what is there, at least one byte, into `range`; 0 is the end of the stream.
    pub fn recv(&mut self, tag: Tag, fd: &SharedFd, mut buffer: Buffer, range: Range<usize>) {
        let entry = opcode::Recv::new(Fd(fd.as_raw_fd()), buffer.kernel_ptr(&range), transfer_len(&range)).build();
        self.start_with(tag, fd, Kind::Recv { buffer }, entry);
    }

    /// Sends `range`; the result may be short only where the connection broke.
    pub fn send(&mut self, tag: Tag, fd: &SharedFd, mut buffer: Buffer, range: Range<usize>) {
        let entry = opcode::Send::new(Fd(fd.as_raw_fd()), buffer.kernel_ptr(&range), transfer_len(&range))
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.start_with(tag, fd, Kind::Send { buffer }, entry);
    }

    /// Sends the first [`Gather::SLICES_MAX`] slices of the gather, which comes back advanced. Send again while not empty.
    ///
    /// # Panics
    /// When there is nothing to send.
    pub fn send_gather(&mut self, tag: Tag, fd: &SharedFd, mut gather: Gather) {
        assert!(!gather.is_empty(), "a gather that is sent holds bytes");
        let mut scratch = self.scratch.pop().unwrap_or_else(|| Box::new(Scratch::new()));
        let message = scratch.describe(&mut gather);
        let entry =
            opcode::SendMsg::new(Fd(fd.as_raw_fd()), message).flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32).build();
        self.start_with(tag, fd, Kind::Gather { gather, scratch }, entry);
    }

    /// Takes the next connection of a listening socket.
    pub fn accept(&mut self, tag: Tag, fd: &SharedFd) {
        let entry =
            opcode::Accept::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut()).flags(libc::SOCK_CLOEXEC).build();
        self.start_with(tag, fd, Kind::Accept, entry);
    }

    /// Completes once the descriptor is readable or hung up.
    pub fn poll_readable(&mut self, tag: Tag, fd: &SharedFd) {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32).build();
        self.start_with(tag, fd, Kind::Plain, entry);
    }

    /// Completes at the next wake (or at once, if one came since the last). One at a time per waker.
    pub fn wake_read(&mut self, tag: Tag, waker: &Waker) {
        let mut scratch = self.scratch.pop().unwrap_or_else(|| Box::new(Scratch::new()));
        let word = &raw mut scratch.word;
        let entry = opcode::Read::new(Fd(waker.fd().as_raw_fd()), word.cast(), size_of::<u64>() as u32).build();
        self.start_with(tag, waker.fd(), Kind::Wake { waker: waker.clone(), scratch }, entry);
    }

    /// Gives a device's driver a command of its own with 16 bytes that say what (`IORING_OP_URING_CMD`); they are made with the
    /// address of the buffer, 0 for none. The driver may use the whole buffer until the completion, by its address: so on the
    /// thread that gave it, and never after that has ended. `argument` is what it looks
    /// for in the submission itself, in place of an address.
    pub fn command(
        &mut self,
        tag: Tag,
        fd: &SharedFd,
        op: u32,
        argument: Option<u64>,
        mut buffer: Option<Buffer>,
        payload: impl FnOnce(u64) -> [u8; 16],
    ) {
        let address = buffer.as_mut().map_or(0, |buffer| {
            buffer.set_len(buffer.capacity());
            buffer.kernel_ptr(&(0..buffer.len())) as u64
        });
        let entry = opcode::UringCmd16::new(Fd(fd.as_raw_fd()), op).cmd(payload(address)).addr(argument).build();
        self.start_with(tag, fd, Kind::Command { buffer }, entry);
    }

    /// Gives the ring up although commands are in flight that only their driver can end: they end with the process, or when what
    /// is given back is closed. Nothing in flight is waited for, and no buffer of it is used before that, nor ever but those of
    /// commands.
    ///
    /// † It is not closed here. A kernel of 2024 (6.12) that tears a ring down while its thread lives cancels commands whose
    /// completion it has queued for that thread and not delivered, and ends them twice, which is the end of the machine. As a
    /// thread ends, what is queued for it is delivered first.
    pub fn abandon(mut self) -> Abandoned {
        let mut buffers = Vec::new();
        for operation in self.slots.drain(..).flatten() {
            // Files are let go; the kernel may still write into buffers.
            match operation.kind {
                Kind::Wake { waker, scratch } => {
                    drop(waker);
                    std::mem::forget(scratch);
                }
                Kind::Command { buffer } => buffers.extend(buffer),
                // † A device writes there whatever has ended.
                kind => std::mem::forget(kind),
            }
        }
        let ring = ManuallyDrop::new(self);
        // SAFETY: the ring is never dropped or used again, so this is the only owner of what is read out of it.
        let uring = unsafe { std::ptr::read(&raw const ring.uring) };
        Abandoned { uring: ManuallyDrop::new(uring), buffers: ManuallyDrop::new(buffers), thread: nix::unistd::gettid() }
    }

    /// Asks the kernel to give up the operations with this tag; they still complete, with `ECANCELED` if it could.
    pub fn cancel(&mut self, tag: Tag) {
        for index in 0..self.slots.len() {
            if self.slots[index].as_ref().is_some_and(|operation| operation.tag == tag) {
                self.push(opcode::AsyncCancel::new(index as u64).build().user_data(CANCEL));
            }
        }
    }

    /// Submits what was asked for and sleeps until something completes or the time is over; with no time it does not sleep.
    ///
    /// # Errors
    /// When the kernel refuses to work at all.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), RingError> {
        self.push_backlog();
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            // A timer of no time costs a sleep and ten times what the rest does.
            Some(Duration::ZERO) => {
                let asked = self.uring.submission().len() as u32;
                // SAFETY: what is submitted is as valid as in the other cases, and there is no argument.
                unsafe { self.uring.submitter().enter::<libc::sigset_t>(asked, 0, EnterFlags::GETEVENTS.bits(), None) }
            }
            Some(timeout) => {
                let time = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, timed out, or the completion queue must be emptied first.
                Some(libc::EINTR | libc::ETIME | libc::EBUSY) => Ok(()),
                // † The kernel has no memory. Asked again at once, it would be asked until it has, by a thread that lets nobody run who
                // could give some back.
                Some(libc::EAGAIN) => {
                    // What has ended is told in this thread only, and where nothing can be submitted not by that call: the memory may be theirs.
                    // SAFETY: nothing is submitted, and there is no argument.
                    let _ = unsafe { self.uring.submitter().enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None) };
                    if timeout != Some(Duration::ZERO) && self.uring.completion().is_empty() {
                        std::thread::sleep(NO_MEMORY_WAIT);
                    }
                    Ok(())
                }
                _ => Err(RingError::explain(error)),
            },
        }
    }

    /// Whether the kernel has been given all that was asked for.
    pub fn is_submitted(&mut self) -> bool {
        self.backlog.is_empty() && self.uring.submission().is_empty()
    }

    /// The next completed operation, if there is one.
    pub fn pop(&mut self) -> Option<Completion> {
        loop {
            let entry = self.uring.completion().next()?;
            if entry.user_data() != CANCEL
                && let Some(completion) = self.finish(entry.user_data() as usize, entry.result())
            {
                return Some(completion);
            }
        }
    }

    fn start(&mut self, tag: Tag, fd: &SharedFd, mut kind: Kind) {
        let entry = transfer_entry(fd, &mut kind);
        self.start_with(tag, fd, kind, entry);
    }

    fn start_with(&mut self, tag: Tag, fd: &SharedFd, kind: Kind, entry: squeue::Entry) {
        let operation = Some(Operation { tag, fd: Arc::clone(fd), kind });
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = operation;
                index
            }
            None => {
                self.slots.push(operation);
                self.slots.len() as u32 - 1
            }
        };
        self.in_flight += 1;
        self.push(entry.user_data(u64::from(index)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.push_backlog();
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: everything the entry points at is owned by its slot, which stays until its completion (`start_with` is
            // called with the operation that owns the memory, and `finish` and `drop` are the only ways out of a slot).
            let pushed = unsafe { self.uring.submission().push(entry) };
            if pushed.is_ok() {
                self.backlog.pop_front();
            } else if self.uring.submit().is_err() {
                return; // `wait` tries again, and reports what is wrong
            }
        }
    }

    fn finish(&mut self, index: usize, result: i32) -> Option<Completion> {
        let mut operation = self.slots[index].take().expect("a completion belongs to an operation in flight");
        let result = if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result as u32) };
        if let Some(entry) = operation.go_on(result) {
            self.slots[index] = Some(operation);
            self.push(entry.user_data(index as u64));
            return None;
        }
        self.free.push(index as u32);
        self.in_flight -= 1;
        let mut completion = Completion { tag: operation.tag, result, buffer: None, gather: None, accepted: None };
        match operation.kind {
            Kind::Read { transfer } | Kind::Write { transfer, .. } => {
                completion.result = transfer.result(result);
                if let Memory::Buffer(buffer) = transfer.memory {
                    completion.buffer = Some(buffer);
                }
            }
            Kind::Recv { buffer } | Kind::Send { buffer } => completion.buffer = Some(buffer),
            Kind::Command { buffer } => completion.buffer = buffer,
            Kind::Gather { mut gather, scratch } => {
                gather.advance(result.unwrap_or(0) as usize);
                completion.gather = Some(gather);
                self.scratch.push(scratch);
            }
            Kind::Wake { waker, scratch } => {
                waker.seen();
                self.scratch.push(scratch);
            }
            Kind::Accept => {
                if let Ok(fd) = result {
                    // SAFETY: a successful accept returns a new descriptor that nobody else knows.
                    completion.accepted = Some(unsafe { OwnedFd::from_raw_fd(fd as i32) });
                }
            }
            Kind::Plain => {}
        }
        Some(completion)
    }

    /// Waits until nothing is in flight. Returns whether that worked.
    fn quiesce(&mut self) -> bool {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL);
        self.push(cancel);
        while self.in_flight > 0 {
            if self.wait(None).is_err() {
                return false;
            }
            while self.pop().is_some() {}
        }
        true
    }
}

/// A ring that was given up, with commands in flight. Dropped, it stays as it is until the process ends.
pub struct Abandoned {
    uring: ManuallyDrop<IoUring>,
    /// Of the commands.
    buffers: ManuallyDrop<Vec<Buffer>>,
    /// Whose it was.
    thread: Pid,
}

impl Abandoned {
    /// Ends what is in flight on it, and gives the buffers of commands back. Its thread must have returned; the kernel may still be
    /// at it, and is waited for († [`Ring::abandon`]). Nothing of what ends so is heard of, and drivers may hear of it a moment
    /// later: without the thread they use no buffer ([`Ring::command`]).
    pub fn close(mut self) {
        let thread = format!("/proc/self/task/{}", self.thread);
        while Path::new(&thread).exists() {
            std::thread::sleep(THREAD_POLL);
        }
        // SAFETY: it is dropped here and never again: there is no other drop of it.
        unsafe { ManuallyDrop::drop(&mut self.uring) };
        drop(ManuallyDrop::into_inner(self.buffers));
    }
}

impl fmt::Debug for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Abandoned").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.quiesce() {
            // The kernel may still write into these buffers: leak them rather than give their memory to somebody else.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Operation {
    /// The submission that continues a short or interrupted transfer.
    fn go_on(&mut self, result: Result<u32, Errno>) -> Option<squeue::Entry> {
        let (Kind::Read { transfer } | Kind::Write { transfer, .. }) = &mut self.kind else { return None };
        match result {
            Ok(n) if n > 0 => transfer.done += n as usize,
            Err(Errno::EINTR | Errno::EAGAIN) if transfer.interrupted < INTERRUPTED_MAX => transfer.interrupted += 1,
            _ => return None,
        }
        (transfer.done < transfer.range.len()).then(|| transfer_entry(&self.fd, &mut self.kind))
    }
}

impl Transfer {
    fn result(&self, last: Result<u32, Errno>) -> Result<u32, Errno> {
        last?;
        if self.done == self.range.len() { Ok(self.done as u32) } else { Err(Errno::EIO) }
    }
}

impl Scratch {
    fn new() -> Self {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: msghdr is integers and pointers, for which all zeroes is a valid value ("no name, no control data").
        let header = unsafe { std::mem::zeroed() };
        Self { header, vectors: [none; Gather::SLICES_MAX], word: 0 }
    }

    fn describe(&mut self, gather: &mut Gather) -> *const libc::msghdr {
        let slices = &gather.slices[gather.first..];
        let count = slices.len().min(Gather::SLICES_MAX);
        for (vector, (buffer, range)) in self.vectors.iter_mut().zip(slices) {
            let base = gather.buffers[*buffer as usize].kernel_ptr(range);
            *vector = libc::iovec { iov_base: base.cast(), iov_len: range.len() };
        }
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = count as _;
        &raw const self.header
    }
}

fn transfer_len(range: &Range<usize>) -> u32 {
    u32::try_from(range.len()).expect("a buffer is at most 1 GiB")
}

fn transfer_entry(fd: &SharedFd, kind: &mut Kind) -> squeue::Entry {
    let fd = Fd(fd.as_raw_fd());
    match kind {
        Kind::Read { transfer } => match transfer.rest() {
            (address, None, len, offset) => opcode::Read::new(fd, address, len).offset(offset).build(),
            (address, Some(slot), len, offset) => opcode::ReadFixed::new(fd, address, len, slot).offset(offset).build(),
        },
        Kind::Write { transfer, dsync } => {
            let flags = if *dsync { libc::RWF_DSYNC } else { 0 };
            match transfer.rest() {
                (address, None, len, offset) => opcode::Write::new(fd, address, len).offset(offset).rw_flags(flags).build(),
                (address, Some(slot), len, offset) => {
                    opcode::WriteFixed::new(fd, address, len, slot).offset(offset).rw_flags(flags).build()
                }
            }
        }
        _ => unreachable!("only device transfers are continued"),
    }
}

/// The cheapest ring that this kernel has.
fn build(entries: u32) -> io::Result<IoUring> {
    let modern = IoUring::builder()
        .setup_cqsize(entries * 4)
        .setup_clamp()
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries);
    match modern {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(entries * 4).setup_clamp().build(entries)
        }
        other => other,
    }
}

impl RingError {
    /// What an io_uring that cannot be had or used means, with the remedy.
    pub fn explain(source: io::Error) -> Self {
        let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        Self::classify(source, setting.trim())
    }

    fn classify(source: io::Error, setting: &str) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if matches!(setting, "1" | "2") => Self::Disabled { setting: setting.to_owned() },
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden { source },
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::ENOMEM) => Self::Memory,
            _ => Self::Io { source },
        }
    }
}

#[cfg(test)]
mod tests;
