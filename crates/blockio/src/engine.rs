//! A device as one ring drives it: every operation completes in full or with an error, and zeroing always works.
//!
//! Invariant: after a successful [`DeviceOp::Zero`] the extent reads as zeroes, whatever the device can do: a hole is punched,
//! else the kernel zeroes the range, else zeroes are written. A discard is never trusted to do that.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use farside_region::{ByteExtent, ByteOffset};
use nix::errno::Errno;

use crate::queue::rest_of;
use crate::{Buffer, Completion, Fallocate, FileDevice, Pages, Ring, Tag};

/// Bytes that one write of zeroes carries.
const ZERO_WRITE: usize = 1 << 20;

/// An operation on a device. Offsets and lengths are multiples of [`FileDevice::block_min`].
#[derive(Debug)]
pub enum DeviceOp {
    /// Fill the buffer.
    Read {
        /// Of its first byte.
        offset: ByteOffset,
        /// As long as the read.
        buffer: Buffer,
    },
    /// Write the buffer.
    Write {
        /// Of its first byte.
        offset: ByteOffset,
        /// As long as the write.
        buffer: Buffer,
        /// Whether it must be on stable storage before it completes.
        durable: bool,
    },
    /// Fill a part of registered pages.
    ReadPages {
        /// Of its first byte.
        offset: ByteOffset,
        /// Where to.
        pages: Pages,
        /// Which part.
        range: Range<usize>,
    },
    /// Write a part of registered pages.
    WritePages {
        /// Of its first byte.
        offset: ByteOffset,
        /// Where from.
        pages: Pages,
        /// Which part.
        range: Range<usize>,
        /// Whether it must be on stable storage before it completes.
        durable: bool,
    },
    /// Make every completed write durable.
    Flush,
    /// Make the extent read as zeroes.
    Zero {
        /// Where.
        extent: ByteExtent,
        /// Whether the space must stay allocated.
        keep_space: bool,
        /// Whether it must be on stable storage before it completes.
        durable: bool,
    },
}

/// The end of an operation.
#[derive(Debug)]
#[must_use]
pub struct DeviceDone {
    /// As submitted.
    pub id: u64,
    /// The device's answer.
    pub result: Result<(), Errno>,
    /// Of a read or write that has one.
    pub buffer: Option<Buffer>,
}

/// Drives a [`FileDevice`] through a ring; uses the tags of [`crate::Owner::Queue`] alone.
#[derive(Debug)]
pub struct DeviceEngine {
    device: FileDevice,
    running: Vec<Option<Running>>,
    free: Vec<u32>,
    zeroes: Option<Buffer>, // None while a write of zeroes uses it
    waiting: VecDeque<u32>, // for `zeroes`
    punch: bool,
    zero_range: bool,
}

#[derive(Debug)]
struct Running {
    id: u64,
    step: Step,
    /// What it does now is counted as given, and ends.
    gives: bool,
}

/// ```text
/// Punch ──unsupported──► ZeroRange ──unsupported──► WriteZeroes (in pieces) ──► Sync, where it must be durable ──► done
/// ```
#[derive(Clone, Copy, Debug)]
enum Step {
    Transfer,
    Punch(Zeroing),
    ZeroRange(Zeroing),
    WriteZeroes(Zeroing, u64), // done so far
    Sync,
}

#[derive(Clone, Copy, Debug)]
struct Zeroing {
    extent: ByteExtent,
    durable: bool,
}

impl DeviceEngine {
    /// An engine for a device; several (one per ring) may share it.
    ///
    /// # Errors
    /// When there is no memory for its zeroes.
    pub fn new(device: FileDevice) -> io::Result<Self> {
        let zeroes = Some(Buffer::alone(ZERO_WRITE)?);
        let (running, free) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
        Ok(Self { device, running, free, zeroes, waiting: VecDeque::with_capacity(1024), punch: true, zero_range: true })
    }

    /// The device.
    pub fn device(&self) -> &FileDevice {
        &self.device
    }

    /// Whether zeroing costs less than writing.
    pub fn zeroes_fast(&self) -> bool {
        self.punch && self.device.punches()
    }

    /// Starts an operation. `id` comes back in its end and need not be unique.
    pub fn submit(&mut self, ring: &mut Ring, id: u64, op: DeviceOp) {
        let step = match &op {
            DeviceOp::Read { .. } | DeviceOp::Write { .. } | DeviceOp::ReadPages { .. } | DeviceOp::WritePages { .. } => {
                Step::Transfer
            }
            DeviceOp::Flush => Step::Sync,
            DeviceOp::Zero { extent, keep_space, durable } => {
                let zeroing = Zeroing { extent: *extent, durable: *durable };
                if *keep_space || !self.zeroes_fast() { Step::ZeroRange(zeroing) } else { Step::Punch(zeroing) }
            }
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.running.push(None);
            self.running.len() as u32 - 1
        });
        self.running[index as usize] = Some(Running { id, step, gives: false });
        let tag = Tag::queue(u64::from(index));
        match op {
            DeviceOp::Read { offset, buffer } => {
                let len = buffer.len();
                ring.read(tag, self.device.fd(), offset, buffer, 0..len);
            }
            DeviceOp::Write { offset, buffer, durable } => {
                let len = buffer.len();
                self.give(index);
                self.device.given().begin_write(len as u64);
                ring.write(tag, self.device.fd(), offset, buffer, 0..len, durable);
            }
            DeviceOp::ReadPages { offset, pages, range } => ring.read_pages(tag, self.device.fd(), offset, pages, range),
            DeviceOp::WritePages { offset, pages, range, durable } => {
                self.give(index);
                self.device.given().begin_write(range.len() as u64);
                ring.write_pages(tag, self.device.fd(), offset, pages, range, durable);
            }
            DeviceOp::Flush | DeviceOp::Zero { .. } => self.run(ring, index, step),
        }
    }

    /// Takes a completion of this engine's; gives the end of the operation that it ended.
    ///
    /// # Panics
    /// When the completion is not this engine's.
    pub fn complete(&mut self, ring: &mut Ring, completion: Completion) -> Option<DeviceDone> {
        let index = completion.tag.id as u32;
        let running = self.running[index as usize].as_mut().expect("the completion of an operation in flight");
        let step = running.step;
        if std::mem::take(&mut running.gives) {
            self.device.given().end();
        }
        let (result, mut buffer) = (completion.result.map(|_| ()), completion.buffer);
        if let Step::WriteZeroes(..) = step {
            self.zeroes = buffer.take();
        }
        let next = self.next(step, result);
        if let Some(step) = next {
            self.run(ring, index, step);
        }
        self.serve_waiting(ring);
        if next.is_some() {
            return None;
        }
        let running = self.running[index as usize].take().expect("checked above");
        self.free.push(index);
        Some(DeviceDone { id: running.id, result, buffer })
    }

    /// What follows a step, unless it was the last.
    fn next(&mut self, step: Step, result: Result<(), Errno>) -> Option<Step> {
        match (step, result) {
            (Step::Punch(zeroing), Err(Errno::EOPNOTSUPP | Errno::ENOSYS)) => {
                self.punch = false;
                Some(Step::ZeroRange(zeroing))
            }
            (Step::ZeroRange(zeroing), Err(Errno::EOPNOTSUPP | Errno::ENOSYS)) => {
                self.zero_range = false;
                Some(Step::WriteZeroes(zeroing, 0))
            }
            (Step::WriteZeroes(zeroing, done), Ok(())) => {
                let done = done + zero_piece(zeroing, done);
                if done < zeroing.extent.len { Some(Step::WriteZeroes(zeroing, done)) } else { sync_after(zeroing) }
            }
            (Step::Punch(zeroing) | Step::ZeroRange(zeroing), Ok(())) => sync_after(zeroing),
            _ => None,
        }
    }

    fn run(&mut self, ring: &mut Ring, index: u32, step: Step) {
        let step = match step {
            Step::ZeroRange(zeroing) if !self.zero_range => Step::WriteZeroes(zeroing, 0),
            other => other,
        };
        self.running[index as usize].as_mut().expect("a running operation").step = step;
        if let Step::Punch(zeroing) | Step::ZeroRange(zeroing) = step {
            self.give(index);
            self.device.given().begin_zero(zeroing.extent.len, matches!(step, Step::Punch(_)));
        }
        let tag = Tag::queue(u64::from(index));
        match step {
            Step::Transfer => unreachable!("a transfer is one operation"),
            Step::Sync => ring.sync_data(tag, self.device.fd()),
            Step::Punch(zeroing) => ring.fallocate(tag, self.device.fd(), Fallocate::PunchHole, zeroing.extent),
            Step::ZeroRange(zeroing) => ring.fallocate(tag, self.device.fd(), Fallocate::ZeroRange, zeroing.extent),
            Step::WriteZeroes(zeroing, done) => match self.zeroes.take() {
                Some(zeroes) => {
                    let len = zero_piece(zeroing, done) as usize;
                    self.give(index);
                    self.device.given().begin_write(len as u64);
                    let fd = self.device.fd();
                    ring.write(tag, fd, rest_of(zeroing.extent, done).offset, zeroes, 0..len, false);
                }
                None => self.waiting.push_back(index),
            },
        }
    }

    /// What this operation does now is counted until it completes.
    fn give(&mut self, index: u32) {
        self.running[index as usize].as_mut().expect("a running operation").gives = true;
    }

    fn serve_waiting(&mut self, ring: &mut Ring) {
        if self.zeroes.is_some()
            && let Some(index) = self.waiting.pop_front()
        {
            let step = self.running[index as usize].as_ref().expect("a waiting operation").step;
            self.run(ring, index, step);
        }
    }
}

fn zero_piece(zeroing: Zeroing, done: u64) -> u64 {
    (zeroing.extent.len - done).min(ZERO_WRITE as u64)
}

fn sync_after(zeroing: Zeroing) -> Option<Step> {
    zeroing.durable.then_some(Step::Sync)
}

#[cfg(test)]
mod tests;
