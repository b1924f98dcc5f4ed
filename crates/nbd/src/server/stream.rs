//! A client's stream, in order: requests become jobs, payloads become pieces.
//!
//! Invariant: whatever stops the stream (limits, buffers, no bytes) is tried again by what ends it: a job's end, a send's end,
//! the line, a receive.

use std::sync::atomic::Ordering;

use farside_blockio::{BUFFER_ALIGN, BlockQueue, Buffer, Extent, ExtentKind, Op, Payload, Request, RequestId};
use farside_region::{ByteExtent, ByteOffset};

use super::connection::{Reading, State, Work, Writing};
use super::jobs::{Job, JobKind, Piece};
use super::memory::footprint;
use super::{Running, Ticket};
use crate::proto::{self, allocation};
use crate::{Command, Event, Head};

/// Descriptors in one block status.
pub(super) const DESCRIPTORS_MAX: usize = 240;
/// A payload of which at least this is missing is received straight into its buffer.
const STRAIGHT_MIN: usize = 32 << 10;

/// What stopped a stream.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// Bytes.
    Bytes,
    /// The client's own limits, or the end.
    Quiet,
    /// Pieces, which others have.
    Line,
    /// Memory beyond its guarantee, which others have.
    Large,
}

impl<Q: BlockQueue> Running<'_, Q> {
    /// Works on a stream until something stops it.
    pub(super) fn advance(&mut self, index: u32) {
        let stop = loop {
            if let Some(stop) = self.step(index) {
                break stop;
            }
        };
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        (connection.in_line, connection.in_large) = (stop == Stop::Line, stop == Stop::Large);
        let line = match stop {
            Stop::Line => &mut self.line,
            Stop::Large => &mut self.large,
            Stop::Quiet => return,
            Stop::Bytes => return self.receive(index),
        };
        // One that wants something else meanwhile keeps its place until it is its turn.
        if !line.contains(&index) {
            line.push_back(index);
            self.shared.counters.waits.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn receive(&mut self, index: u32) {
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        let tag = Ticket::Receive(index).tag();
        if let Work::Writing(writing) = &mut connection.work
            && connection.unread.is_empty()
            && connection.state == State::Open
            && let Some(buffer) = writing.buffer.take_if(|buffer| buffer.len() - writing.filled >= STRAIGHT_MIN)
        {
            let filled = writing.filled;
            connection.receive_payload(&mut self.ring, tag, buffer, filled);
        } else {
            connection.receive(&mut self.ring, tag);
        }
    }

    /// One step; `None` to go on.
    fn step(&mut self, index: u32) -> Option<Stop> {
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        if connection.state == State::Broken || connection.receiving {
            return Some(Stop::Quiet);
        }
        match &mut connection.work {
            Work::Next if connection.state == State::Open => self.next(index),
            Work::Next => Some(Stop::Quiet),
            Work::Start { cookie, command } => {
                let (cookie, command) = (*cookie, *command);
                self.start(index, cookie, command)
            }
            Work::Reading(_) => self.read_on(index),
            Work::Writing(_) => self.write_on(index),
            Work::Discard { reply } => {
                let reply = *reply;
                let take = connection.session.payload_left().min(connection.unread.len() as u64);
                connection.unread.start += take as usize;
                connection.session.payload_taken(take);
                if connection.session.payload_left() > 0 {
                    return Some(Stop::Bytes);
                }
                connection.work = Work::Next;
                connection.push(reply.as_bytes());
                None
            }
        }
    }

    fn next(&mut self, index: u32) -> Option<Stop> {
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        if connection.heads_busy() || connection.jobs >= self.limits.jobs_per_connection_max {
            return Some(Stop::Quiet);
        }
        if connection.unread.is_empty() {
            return Some(Stop::Bytes);
        }
        let mut answer = std::mem::take(&mut self.answer);
        let event = connection.receive_event(&mut answer);
        connection.push(&answer);
        answer.clear();
        self.answer = answer;
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        match event {
            None | Some(Event::Answer) => {}
            Some(Event::Command { cookie, command }) => {
                self.shared.counters.commands.fetch_add(1, Ordering::Relaxed);
                connection.work = Work::Start { cookie, command };
            }
            Some(Event::Reply(head)) => {
                connection.work = Work::Discard { reply: head };
            }
            Some(Event::Disconnect) => {
                connection.state = State::Closing;
                return Some(Stop::Quiet);
            }
            Some(Event::Abort) => {
                self.break_off(index);
                return Some(Stop::Quiet);
            }
        }
        None
    }

    fn start(&mut self, index: u32, cookie: u64, command: Command) -> Option<Stop> {
        let is_change = !matches!(command, Command::Read { .. } | Command::BlockStatus { .. });
        if is_change && self.is_behind(index) {
            return Some(Stop::Quiet);
        }
        let structured = self.connections[index as usize].as_ref().expect("a living connection").session.structured();
        let whole = |extent: ByteExtent| (extent.offset.0, extent.len as u32);
        match command {
            Command::Read { extent, whole: one } if structured && (!one || extent.len <= self.piece_max()) => {
                let job = self.begin(index, cookie, JobKind::ReadInChunks, whole(extent));
                self.set_work(index, Work::Reading(Reading { job, rest: range(extent) }));
            }
            Command::Read { extent, .. } => return self.read_whole(index, cookie, extent),
            Command::Write { extent, fua } => {
                let job = self.begin(index, cookie, JobKind::Change, whole(extent));
                self.shared.counters.bytes_written.fetch_add(extent.len, Ordering::Relaxed);
                self.set_work(index, Work::Writing(Writing { job, rest: range(extent), fua, buffer: None, piece: 0, filled: 0 }));
            }
            Command::BlockStatus { extent, one } => {
                self.block_status(index, cookie, extent, one);
                self.set_work(index, Work::Next);
            }
            Command::Flush => return self.change(index, cookie, Op::Flush, ByteExtent { offset: ByteOffset(0), len: 0 }, false),
            Command::Trim { extent, fua } => return self.change(index, cookie, Op::Trim, extent, fua),
            Command::WriteZeroes { extent, fua, no_hole } => {
                return self.change(index, cookie, Op::WriteZeroes { no_hole }, extent, fua);
            }
        }
        None
    }

    /// Whether a change must not begin yet. † What a client sent over a line that is dead is with the device still, and is sent again over another one, and
    /// then something else to the same place: the first must not land last. The line may be dead long before anybody knows.
    fn is_behind(&mut self, index: u32) -> bool {
        if self.connected == 1 {
            return false;
        }
        let of = |index: u32| self.connections[index as usize].as_ref();
        let leaves = |other: u32| of(other).is_some_and(|other| other.state != State::Open);
        let behind = of(index).expect("a living connection").behind;
        // As a rule nobody is new, and nobody leaves.
        if behind.is_none() && !(0..self.connections.len() as u32).any(leaves) {
            return false;
        }
        // One of which nothing is with the device waits for its client, which may never send the rest.
        let is_under_way = |job: &Job| job.kind == JobKind::Change && job.outstanding > 0 && job.connection != index;
        let is_held = self.jobs.iter().any(|job| is_under_way(job) && (Some(job.turn) < behind || leaves(job.connection)));
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        connection.behind = behind.filter(|_| is_held);
        connection.is_held = is_held;
        self.holds |= is_held;
        is_held
    }

    /// A command without data.
    fn change(&mut self, index: u32, cookie: u64, op: Op, extent: ByteExtent, fua: bool) -> Option<Stop> {
        if !self.may_take(index, 1) {
            return Some(Stop::Line);
        }
        let job = self.begin(index, cookie, JobKind::Change, (extent.offset.0, extent.len as u32));
        self.jobs.get_mut(job).more = false;
        self.set_work(index, Work::Next);
        self.submit(job, op, extent, fua, None);
        None
    }

    fn read_on(&mut self, index: u32) -> Option<Stop> {
        let piece_max = self.piece_max();
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        let Work::Reading(reading) = &connection.work else { unreachable!("called while reading") };
        let (job, start, len) = (reading.job, reading.rest.start, (reading.rest.end - reading.rest.start).min(piece_max));
        let held = connection.read_bytes();
        if connection.heads_busy() || (held > 0 && held + footprint(len) > self.share) {
            return Some(Stop::Quiet);
        }
        if !self.may_take(index, 1) {
            return Some(Stop::Line);
        }
        if !self.may_hold(index, held, footprint(len)) {
            // A piece is guaranteed to who has none: what is held comes back, and is heard of.
            return Some(Stop::Quiet);
        }
        let Some(buffer) = self.take(len) else { return Some(Stop::Large) };
        let len = buffer.len() as u64;
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        let Work::Reading(reading) = &mut connection.work else { unreachable!("checked above") };
        reading.rest.start += len;
        let more = !reading.rest.is_empty();
        if !more {
            connection.work = Work::Next;
        }
        connection.reading_bytes += footprint(len);
        self.jobs.get_mut(job).more = more;
        self.submit(job, Op::Read, extent(start, len), false, Some(buffer));
        None
    }

    /// A read whose reply is one: it starts when there is memory for all of it.
    fn read_whole(&mut self, index: u32, cookie: u64, all: ByteExtent) -> Option<Stop> {
        let piece_max = self.piece_max();
        let connection = self.connections[index as usize].as_ref().expect("a living connection");
        let held = connection.read_bytes();
        let whole = all.len / piece_max * piece_max;
        let needs = whole + if whole < all.len { footprint(all.len - whole) } else { 0 };
        if held > 0 && held + needs > self.share {
            return Some(Stop::Quiet);
        }
        if !self.may_take(index, all.len.div_ceil(piece_max) as usize) {
            return Some(Stop::Line);
        }
        if !self.may_hold(index, held, needs) {
            return Some(if held > 0 { Stop::Quiet } else { Stop::Large });
        }
        // Last piece first, so that the list ends up in order.
        let (mut first, mut end, mut count, mut took) = (None, all.offset.0 + all.len, 0, 0);
        while end > all.offset.0 {
            let full = (end - all.offset.0 - 1) % piece_max + 1;
            let buffer = if self.pieces.len() < self.limits.pieces_max { self.take(full) } else { None };
            let Some(buffer) = buffer else {
                self.forget_pieces(first);
                return Some(Stop::Large);
            };
            let len = buffer.len() as u64;
            end -= len;
            (count, took) = (count + 1, took + footprint(len));
            let piece = Piece { job: 0, offset: end, len: len as u32, buffer: Some(buffer), next: first };
            first = Some(self.pieces.insert(piece));
        }
        let job = self.begin(index, cookie, JobKind::ReadWhole, (all.offset.0, all.len as u32));
        let entry = self.jobs.get_mut(job);
        (entry.more, entry.first_piece, entry.outstanding) = (false, first, count);
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        connection.work = Work::Next;
        connection.reading_bytes += took;
        while let Some(number) = first {
            let piece = self.pieces.get_mut(number);
            piece.job = job;
            first = piece.next;
            let (extent, payload) = (extent(piece.offset, u64::from(piece.len)), piece.buffer.take().map(Payload::Buffer));
            let request = Request { id: RequestId(u64::from(number)), client: index, op: Op::Read, extent, fua: false, payload };
            self.submitted += 1;
            self.queue.submit(&mut self.ring, request);
        }
        None
    }

    fn forget_pieces(&mut self, mut first: Option<u32>) {
        while let Some(number) = first {
            first = self.pieces.remove(number).next;
        }
    }

    fn write_on(&mut self, index: u32) -> Option<Stop> {
        let piece_max = self.piece_max();
        let connection = self.connections[index as usize].as_ref().expect("a living connection");
        let Work::Writing(writing) = &connection.work else { unreachable!("called while writing") };
        if writing.buffer.is_none() {
            let len = (writing.rest.end - writing.rest.start).min(piece_max);
            let held = connection.writing_bytes;
            if !self.may_take(index, 1) {
                return Some(Stop::Line);
            }
            if !self.may_hold(index, held, footprint(len)) {
                return Some(Stop::Quiet); // as in a read
            }
            let Some(buffer) = self.take(len) else { return Some(Stop::Large) };
            let connection = self.connections[index as usize].as_mut().expect("a living connection");
            connection.writing_bytes += footprint(buffer.len() as u64);
            let Work::Writing(writing) = &mut connection.work else { unreachable!("checked above") };
            (writing.piece, writing.buffer, writing.filled) = (buffer.len() as u64, Some(buffer), 0);
        }
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        if !connection.fill() {
            return Some(Stop::Bytes);
        }
        let Work::Writing(writing) = &mut connection.work else { unreachable!("checked above") };
        let buffer = writing.buffer.take().expect("filled above");
        let (job, start, len, fua) = (writing.job, writing.rest.start, buffer.len() as u64, writing.fua);
        writing.rest.start += len;
        writing.piece = 0;
        let more = !writing.rest.is_empty();
        if !more {
            connection.work = Work::Next;
        }
        self.jobs.get_mut(job).more = more;
        self.submit(job, Op::Write, extent(start, len), fua, Some(buffer));
        None
    }

    fn block_status(&mut self, index: u32, cookie: u64, extent: ByteExtent, one: bool) {
        let mut extents = std::mem::take(&mut self.extents);
        extents.clear();
        let max = if one { 1 } else { DESCRIPTORS_MAX };
        let result = self.queue.extents(extent, max, &mut extents);
        let connection = self.connections[index as usize].as_mut().expect("a living connection");
        match result {
            Err(errno) => connection.push(Head::error(cookie, proto::error_of(errno), true).as_bytes()),
            Ok(()) => {
                if extents.is_empty() {
                    extents.push(Extent { len: extent.len, kind: ExtentKind::Data }); // a reply describes something
                }
                let mut left = extent.len;
                extents.truncate(max);
                extents.retain_mut(|found| {
                    found.len = found.len.min(left);
                    left -= found.len;
                    found.len > 0
                });
                connection.push(Head::block_status(cookie, extents.len() as u32).as_bytes());
                for found in &extents {
                    let flags = match found.kind {
                        ExtentKind::Data => 0,
                        ExtentKind::Hole => allocation::HOLE | allocation::ZERO,
                        ExtentKind::Zero => allocation::ZERO,
                    };
                    connection.push(&(found.len as u32).to_be_bytes());
                    connection.push(&flags.to_be_bytes());
                }
            }
        }
        self.extents = extents;
    }

    fn begin(&mut self, index: u32, cookie: u64, kind: JobKind, (offset, len): (u64, u32)) -> u32 {
        self.connections[index as usize].as_mut().expect("a living connection").jobs += 1;
        self.shared.counters.jobs.fetch_add(1, Ordering::Relaxed);
        self.begun += 1;
        self.jobs.insert(Job {
            connection: index,
            cookie,
            kind,
            turn: self.begun - 1,
            offset,
            len,
            outstanding: 0,
            more: true,
            silent: false,
            error: None,
            first_piece: None,
        })
    }

    fn submit(&mut self, job: u32, op: Op, extent: ByteExtent, fua: bool, buffer: Option<Buffer>) {
        let piece = Piece { job, offset: extent.offset.0, len: extent.len as u32, buffer: None, next: None };
        let id = RequestId(u64::from(self.pieces.insert(piece)));
        let entry = self.jobs.get_mut(job);
        entry.outstanding += 1;
        let client = entry.connection;
        self.submitted += 1;
        let payload = buffer.map(Payload::Buffer);
        self.queue.submit(&mut self.ring, Request { id, client, op, extent, fua, payload });
    }

    /// Whether a connection may have that many pieces now: there are, and nobody waits longer.
    fn may_take(&self, index: u32, pieces: usize) -> bool {
        let connection = self.connections[index as usize].as_ref().expect("a living connection");
        (self.line.is_empty() || connection.first_in_line) && self.pieces.len() + pieces <= self.limits.pieces_max
    }

    /// Whether an account of a connection that holds `held` may hold so much more.
    fn may_hold(&self, index: u32, held: u64, more: u64) -> bool {
        let connection = self.connections[index as usize].as_ref().expect("a living connection");
        self.shares.guarantees(held, more)
            || ((self.large.is_empty() || connection.first_in_large)
                && self.shares.spares(
                    held,
                    more,
                    self.connections.iter().flatten().flat_map(|c| [c.read_bytes(), c.writing_bytes]),
                ))
    }

    /// A buffer for one piece of at most `len` bytes; a shorter one where the memory that is free lies in pieces.
    fn take(&self, len: u64) -> Option<Buffer> {
        let shortest = u64::from(self.export.info().block_min).max(BUFFER_ALIGN as u64);
        let mut len = len;
        loop {
            if let Some(buffer) = self.pool.take(len as usize) {
                return Some(buffer);
            }
            if len <= shortest {
                return None;
            }
            len = (len.next_power_of_two() / 2).max(shortest);
        }
    }

    fn set_work(&mut self, index: u32, work: Work) {
        self.connections[index as usize].as_mut().expect("a living connection").work = work;
    }

    fn piece_max(&self) -> u64 {
        u64::from(self.limits.piece_bytes_max)
    }
}

fn extent(offset: u64, len: u64) -> ByteExtent {
    ByteExtent { offset: ByteOffset(offset), len }
}

fn range(extent: ByteExtent) -> std::ops::Range<u64> {
    extent.offset.0..extent.offset.0 + extent.len
}
