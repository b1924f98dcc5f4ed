//! What a disk remembers: what was flushed for sure, and what was written and not flushed only as long as the power is on.
//!
//! The content lives in memory behind an NBD server of this process. Whoever attaches to the socket has a disk with a
//! volatile cache: [`power`](crate::power) through nbdfuse and a loop device, the virtual machines of `tests/vm` directly.
//! Invariants: a flush makes durable whatever was acknowledged before it; [`cut_all`] stops several disks at one moment, so
//! that nothing becomes durable on one of them after something was lost on another.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use farside_blockio::{BlockQueue, Buffer, Completion, Done, Errno, Op, QueueInfo, Request, Ring, Waker};
use farside_nbd::{Handle, Limits, Listener, ServeError, Server, SocketOptions};

use crate::verify::Rng;
use crate::wait_until;

/// What becomes durable or is lost as one.
const BLOCK: usize = 4096;

/// The chances, in eight, with which everything survives.
const EVERY: u64 = 8;

/// How many unsynced blocks a power cut waits for: one write of who syncs after each, which is all there is once files are not allocated
/// any more. That all of them stay by chance does not happen.
const WORTH_A_CUT: usize = 16;

/// What a disk does with a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Makes durable what was written before it.
    Honest,
    /// Answers that it did, and did not. For tests of tests.
    Lying,
}

/// What survives, what is seen, and what lies between.
#[derive(Debug)]
struct Memory {
    durable: Vec<u8>,
    seen: Vec<u8>,
    /// Writes since the last flush, in order: where, and what. Any of them may survive, also one that a later one covers.
    unsynced: Vec<(usize, Vec<u8>)>,
    flush: Flush,
    off: bool,
    /// Flushes stand still.
    held: bool,
    /// How many do.
    standing: u32,
}

impl Memory {
    fn run(&mut self, request: &Request, buffer: Option<&mut Buffer>) -> Result<(), Errno> {
        if self.off {
            return Err(Errno::EIO);
        }
        let at = request.extent.offset.0 as usize;
        let len = request.extent.len as usize;
        match (request.op, buffer) {
            (Op::Read, Some(buffer)) => buffer.copy_from_slice(&self.seen[at..at + len]),
            (Op::Write, Some(buffer)) => self.write(at, buffer.to_vec()),
            (Op::Trim | Op::WriteZeroes { .. }, _) => self.write(at, vec![0; len]),
            (Op::Flush, _) => self.flush(),
            (Op::Read | Op::Write, None) => unreachable!("the server gives reads and writes a buffer"),
        }
        if request.fua {
            self.flush();
        }
        Ok(())
    }

    fn write(&mut self, at: usize, content: Vec<u8>) {
        self.seen[at..at + content.len()].copy_from_slice(&content);
        self.unsynced.push((at, content));
    }

    fn flush(&mut self) {
        if self.flush == Flush::Lying {
            return;
        }
        for (at, content) in self.unsynced.drain(..) {
            self.durable[at..at + content.len()].copy_from_slice(&content);
        }
    }

    fn unsynced_blocks(&self) -> usize {
        self.unsynced.iter().map(|(_, content)| content.len().div_ceil(BLOCK)).sum()
    }

    /// Of what was not flushed, each block stays with `kept` chances in eight. Returns how many were lost.
    fn cut(&mut self, rng: &mut Rng, kept: u64) -> usize {
        let unsynced = std::mem::take(&mut self.unsynced);
        let mut lost = 0;
        for (at, content) in &unsynced {
            for (i, block) in content.chunks(BLOCK).enumerate() {
                if rng.below(8) < kept {
                    self.durable[at + i * BLOCK..][..block.len()].copy_from_slice(block);
                } else {
                    lost += 1;
                }
            }
        }
        for (at, content) in &unsynced {
            let range = *at..at + content.len();
            self.seen[range.clone()].copy_from_slice(&self.durable[range]);
        }
        (self.off, self.held) = (true, false);
        lost
    }
}

/// The disk, and who waits for it.
#[derive(Debug)]
struct Shared {
    memory: Mutex<Memory>,
    moved: Condvar,
}

impl Shared {
    /// Where a flush that is held stands until it is let go, or the power goes; with it stands the disk.
    fn admit(&self, request: &Request) -> MutexGuard<'_, Memory> {
        let mut memory = lock(&self.memory);
        if request.fua || matches!(request.op, Op::Flush) {
            memory.standing += 1;
            memory = self.moved.wait_while(memory, |memory| memory.held && !memory.off).unwrap_or_else(PoisonError::into_inner);
            memory.standing -= 1;
        }
        memory
    }
}

/// Its queue.
#[derive(Debug)]
struct Queue {
    disk: Arc<Shared>,
    block_min: u32,
    done: VecDeque<Done>,
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockQueue for Queue {
    fn info(&self) -> QueueInfo {
        let size = lock(&self.disk.memory).seen.len() as u64;
        QueueInfo {
            size,
            block_min: self.block_min,
            block_preferred: BLOCK as u32,
            readonly: false,
            zeroes_fast: false,
            trims: true,
        }
    }

    fn submit(&mut self, _ring: &mut Ring, mut request: Request) {
        let mut buffer = request.take_buffer();
        let result = self.disk.admit(&request).run(&request, buffer.as_mut());
        self.done.push_back(Done { id: request.id, result, buffer });
    }

    fn complete(&mut self, _ring: &mut Ring, _completion: Completion) {
        unreachable!("a disk in memory starts no operations");
    }

    fn wake(&mut self, _ring: &mut Ring) {}

    fn reap(&mut self) -> Option<Done> {
        self.done.pop_front()
    }
}

/// A disk that forgets, served on a socket until it is dropped.
#[derive(Debug)]
pub struct Platter {
    disk: Arc<Shared>,
    stop: Handle,
    server: Option<JoinHandle<Result<Queue, ServeError>>>,
}

impl Platter {
    /// A disk with this content, served at `socket`, switched off. `block_min`: the smallest thing it reads or writes.
    ///
    /// # Panics
    /// When the socket cannot be made.
    pub fn serve(socket: &Path, content: Vec<u8>, block_min: u32, flush: Flush) -> Self {
        // Zeroes that nobody touched cost no memory, so an empty disk is not copied.
        let durable = if content.iter().all(|byte| *byte == 0) { vec![0; content.len()] } else { content.clone() };
        let memory = Memory { seen: content, durable, unsynced: Vec::new(), flush, off: true, held: false, standing: 0 };
        let disk = Arc::new(Shared { memory: Mutex::new(memory), moved: Condvar::new() });
        let listener = Listener::bind(&SocketOptions { path: socket.to_owned(), group: None }).expect("a socket");
        let waker = Waker::new().expect("a waker");
        let (server, stop) = Server::new(listener, "disk", "", Limits::default(), waker);
        let queue = Queue { disk: disk.clone(), block_min, done: VecDeque::new() };
        let server = std::thread::spawn(move || server.run(queue));
        Self { disk, stop, server: Some(server) }
    }

    /// Gives it power.
    ///
    /// # Panics
    /// When it has some.
    pub fn switch_on(&self) {
        assert!(std::mem::replace(&mut lock(&self.disk.memory).off, false), "it is on");
    }

    /// The power goes: nothing more is read or written. Returns how many blocks were lost.
    pub fn cut(&self, rng: &mut Rng, kept: u64) -> usize {
        let lost = lock(&self.disk.memory).cut(rng, kept);
        self.disk.moved.notify_all();
        lost
    }

    /// From now on no flush is answered, and nothing that comes after one, until [`Platter::let_go`] or a power cut.
    pub fn hold_flushes(&self) {
        lock(&self.disk.memory).held = true;
    }

    /// Whether a flush is held.
    pub fn is_holding(&self) -> bool {
        let memory = lock(&self.disk.memory);
        memory.held && memory.standing > 0
    }

    /// Ends [`Platter::hold_flushes`].
    pub fn let_go(&self) {
        lock(&self.disk.memory).held = false;
        self.disk.moved.notify_all();
    }

    /// Takes the power away as the end of a proper shutdown: nothing is lost.
    pub fn switch_off(&self) {
        self.cut(&mut Rng(0), EVERY);
    }

    /// Lays other content on it, durably: nothing is left of what was there, flushed or not.
    ///
    /// # Panics
    /// When it is longer or shorter.
    pub fn lay(&self, content: &[u8]) {
        let memory = &mut *lock(&self.disk.memory);
        memory.unsynced.clear();
        memory.seen.copy_from_slice(content);
        memory.durable.copy_from_slice(content);
    }

    /// What was flushed.
    pub fn durable(&self) -> Vec<u8> {
        lock(&self.disk.memory).durable.clone()
    }

    /// What a reader would see.
    pub fn content(&self) -> Vec<u8> {
        lock(&self.disk.memory).seen.clone()
    }
}

impl Drop for Platter {
    fn drop(&mut self) {
        self.let_go();
        self.stop.stop();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// The power of all these goes at one moment, together with that of whoever uses them: `kill` runs when nothing can become
/// durable any more. The moment is one at which the caches hold something worth losing, for somebody may have flushed just
/// before. Returns how many blocks were lost.
///
/// # Panics
/// When nothing is written that is not flushed.
pub fn cut_all(platters: &[&Platter], rng: &mut Rng, kept: u64, kill: impl FnOnce()) -> usize {
    let mut most = 0;
    let mut held = wait_until("something in the caches to be lost", || {
        let held: Vec<MutexGuard<'_, Memory>> = platters.iter().map(|platter| lock(&platter.disk.memory)).collect();
        let blocks: usize = held.iter().map(|memory| memory.unsynced_blocks()).sum();
        most = most.max(blocks);
        if blocks >= WORTH_A_CUT { Ok(held) } else { Err(format!("there were never more than {most} blocks of {BLOCK} bytes")) }
    });
    kill();
    let lost = held.iter_mut().map(|memory| memory.cut(rng, kept)).sum();
    drop(held);
    platters.iter().for_each(|platter| platter.disk.moved.notify_all());
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(flush: Flush) -> Memory {
        Memory {
            durable: vec![0; 8 * BLOCK],
            seen: vec![0; 8 * BLOCK],
            unsynced: Vec::new(),
            flush,
            off: false,
            held: false,
            standing: 0,
        }
    }

    fn fill(memory: &mut Memory, block: usize, byte: u8) {
        memory.write(block * BLOCK, vec![byte; BLOCK]);
    }

    #[test]
    fn what_was_flushed_survives_and_what_came_later_does_not() {
        let mut memory = memory(Flush::Honest);
        fill(&mut memory, 1, 7);
        memory.flush();
        fill(&mut memory, 1, 8);
        fill(&mut memory, 2, 9);
        assert_eq!(memory.cut(&mut Rng(1), 0), 2);
        assert_eq!((memory.seen[BLOCK], memory.seen[2 * BLOCK]), (7, 0));
        assert_eq!(memory.seen, memory.durable);
        assert!(memory.off);
    }

    #[test]
    fn a_lying_disk_loses_what_it_said_was_safe() {
        let mut memory = memory(Flush::Lying);
        fill(&mut memory, 1, 7);
        memory.flush();
        assert_eq!(memory.cut(&mut Rng(1), 0), 1);
        assert_eq!(memory.seen[BLOCK], 0);
    }

    #[test]
    fn a_cache_may_have_written_some_of_it_and_an_older_version_too() {
        let mut memory = memory(Flush::Honest);
        for version in 1..=4 {
            (0..8).for_each(|block| fill(&mut memory, block, version));
        }
        let lost = memory.cut(&mut Rng(1), 4);
        assert!(lost > 0 && lost < 32, "{lost}");
        assert!((0..8).any(|block| (1..4).contains(&memory.durable[block * BLOCK])), "no older version survived");
        assert_eq!(memory.seen, memory.durable);
    }
}
