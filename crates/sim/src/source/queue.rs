//! A host request from the tap to its answer: the loop that the queue thread runs over its ring, one task per request.
//!
//! What the judges need is noted on the way: the epoch in which each piece was marked (the counter's value during the call to
//! `advance` that first lets something past the mark), when the host had its answer, and what a flush promised.

use std::rc::Rc;

use farside_region::{ByteExtent, ByteOffset};
use farside_shim::{Failure, Io, IoResult, Op, ParkKey, Request, Step};

use crate::disk::Done;
use crate::host::{HostOp, Workload};
use crate::site::Piece;
use crate::world::SECTOR;

use super::{Source, Vol};

const EIO: i32 = 5;

/// A token that dies with its process instead of panicking.
struct Token(Option<Request>);

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(request) = self.0.take() {
            request.crash();
        }
    }
}

/// What one request went through.
#[derive(Default)]
struct Story {
    first_epoch: Option<u64>,
    /// The present piece's epoch, once it is past its mark.
    piece: Option<u64>,
    /// Sectors that a write of it covered.
    done: Vec<(usize, usize)>,
}

fn extent(first: usize, count: usize) -> ByteExtent {
    ByteExtent { offset: ByteOffset((first * SECTOR) as u64), len: (count * SECTOR) as u64 }
}

impl Source {
    pub(super) async fn request(self: Rc<Self>, v: usize, q: usize, tag: u64, op: HostOp) {
        let (world, site) = (self.world.clone(), self.site.clone());
        let vol = &self.volumes[v];
        let steps = world.steps();
        steps.pause().await;
        let shim_op = self.shim_op(vol, q, op);
        if let Some((first, count)) = op.changes() {
            site.oracle.borrow_mut().issued(tag, v, first, count, world.now_us.get());
        }
        let promised = site.acked_n.borrow()[v].clone();
        let fua = matches!(op, HostOp::Write { fua: true, .. } | HostOp::Zero { fua: true, .. });
        let flushes = &vol.flushes[q];
        flushes.set(flushes.get() + usize::from(fua || op == HostOp::Flush));
        let failures_before = site.flush_failures.borrow()[v];
        let disk_failures_before = site.disks[v].borrow().flush_failures();
        let newest_before = site.disks[v].borrow().versions().0.to_vec();
        self.say(|| format!("v{v}.{q} w{tag} {op:?}"));
        let content = match op {
            HostOp::Write { first, count, .. } => Workload::content(tag, v, first, count),
            HostOp::Rewrite { first, count } => {
                (first..first + count).flat_map(|s| site.disks[v].borrow().current(s).to_vec()).collect()
            }
            _ => Vec::new(),
        };
        let started = vol.queues[q].borrow_mut().start(shim_op);
        let mut token = match started {
            Ok(request) => Token(Some(request)),
            Err(e) => {
                world.fail(format!("w{tag}: {e}"));
                return;
            }
        };
        let mut story = Story::default();
        let result = loop {
            steps.pause().await;
            let rung = vol.queue_bells[q].rung();
            let epoch = self.switcher.borrow().epoch().0;
            let request = token.0.as_mut().expect("taken only at the end");
            let step = request.advance(&mut vol.queues[q].borrow_mut());
            self.note_mark(tag, epoch, op, &step, &mut story);
            match step {
                Step::Park(key) => {
                    self.say(|| format!("v{v}.{q} w{tag} parks: {key:?}"));
                    steps.until(|| vol.queue_bells[q].rung() != rung).await;
                }
                Step::Io(io) => {
                    let (done, data) = self.carry_out(v, tag, op, io, &content, &mut story).await;
                    let request = token.0.as_mut().expect("taken only at the end");
                    let result = match (&done, &data) {
                        (Done::Failed, _) => IoResult::Failed(EIO),
                        (_, Some(data)) => IoResult::Data(data),
                        _ => IoResult::Done,
                    };
                    request.io_done(&mut vol.queues[q].borrow_mut(), result);
                }
                Step::Complete(result) => {
                    drop(token.0.take());
                    break result;
                }
            }
        };
        self.say(|| format!("v{v}.{q} w{tag} done {result:?} {}", story.piece.map_or(String::new(), |e| format!("epoch {e}"))));
        flushes.set(flushes.get() - usize::from(fua || op == HostOp::Flush));
        self.answered(v, q, tag, op, result, &story, &promised, failures_before, disk_failures_before, &newest_before);
        vol.requests.set(vol.requests.get() - 1);
    }

    fn shim_op(&self, vol: &Vol, q: usize, op: HostOp) -> Op {
        let conn = |fua: bool| fua.then(|| vol.connections[q].clone());
        match op {
            HostOp::Write { first, count, fua } => Op::Write(extent(first, count), conn(fua)),
            HostOp::Rewrite { first, count } => Op::Write(extent(first, count), None),
            HostOp::Zero { first, count, fua, no_hole } => {
                Op::WriteZeroes { extent: extent(first, count), no_hole, fua: conn(fua) }
            }
            HostOp::Trim { first, count } => Op::Trim(extent(first, count), None),
            HostOp::Flush => Op::Flush(vol.connections[q].clone()),
            HostOp::Read { first, count } => Op::Read(extent(first, count)),
        }
    }

    /// Past the mark is whatever may wait for older epochs, or touches the disk.
    fn note_mark(&self, tag: u64, epoch: u64, op: HostOp, step: &Step, story: &mut Story) {
        let past = match step {
            Step::Io(Io::Save(_) | Io::Write(_) | Io::Zero { .. }) => true,
            Step::Park(key) => matches!(key, ParkKey::Grace | ParkKey::Drain | ParkKey::Claim),
            _ => false,
        };
        if past && op.changes().is_some() && story.piece.is_none() {
            story.piece = Some(epoch);
            story.first_epoch.get_or_insert(epoch);
            let marked = self.site.oracle.borrow_mut().marked(tag, epoch);
            self.world.check(marked);
        }
    }

    async fn carry_out(
        &self,
        v: usize,
        tag: u64,
        op: HostOp,
        io: Io,
        content: &[u8],
        story: &mut Story,
    ) -> (Done, Option<Vec<u8>>) {
        let (world, site) = (&self.world, &self.site);
        match io {
            Io::Read(e) | Io::Save(e) => {
                let saving = matches!(io, Io::Save(_));
                if saving {
                    self.say(|| format!("v{v} w{tag} saves {}+{}", e.offset, e.len));
                }
                let id = site.disks[v].borrow_mut().read(e.offset.0, e.len as usize);
                match site.backing(world, v, id).await {
                    Done::Read(data) => (Done::Ok, saving.then_some(data)),
                    other => (other, None),
                }
            }
            Io::Write(e) | Io::Zero { extent: e, .. } => {
                let epoch = story.piece.take().expect("a write is past its mark");
                let data = match (op.changes(), &io) {
                    (Some((first, _)), Io::Write(_)) => {
                        let at = e.offset.0 as usize - first * SECTOR;
                        content[at..at + e.len as usize].to_vec()
                    }
                    _ => vec![0; e.len as usize],
                };
                story.done.push((e.offset.0 as usize / SECTOR, e.len as usize / SECTOR));
                self.say(|| {
                    format!("v{v} w{tag} to disk: sectors {}+{} epoch {epoch}", e.offset.0 as usize / SECTOR, data.len() / SECTOR)
                });
                let id = site.write_piece(world, Piece { volume: v, epoch, request: tag }, e.offset.0, data);
                let done = site.backing(world, v, id).await;
                site.oracle.borrow_mut().piece_done(tag);
                (done, None)
            }
            Io::Flush => (self.flush_backing(v).await, None),
        }
    }

    /// A flush of the backing, by whomever.
    pub(super) async fn flush_backing(&self, v: usize) -> Done {
        let (world, site) = (&self.world, &self.site);
        let id = site.disks[v].borrow_mut().flush();
        let done = site.backing(world, v, id).await;
        if done == Done::Failed {
            self.say(|| format!("v{v} a flush FAILED"));
            site.flush_failures.borrow_mut()[v] += 1;
            // What was acknowledged and not durable is in doubt from now on, and every connection is to hear of it.
            site.acked_n.borrow_mut()[v].fill(0);
        }
        done
    }

    fn answered(
        &self,
        v: usize,
        q: usize,
        tag: u64,
        op: HostOp,
        result: Result<(), Failure>,
        story: &Story,
        promised: &[u64],
        failures_before: u64,
        disk_failures_before: u64,
        newest_before: &[u64],
    ) {
        let (world, site) = (&self.world, &self.site);
        let now = world.now_us.get();
        if op.changes().is_some() {
            site.oracle.borrow_mut().acked(tag, result.is_ok().then_some(story.first_epoch).flatten(), now);
        }
        let landed = site.landed_n.borrow_mut().remove(&tag).unwrap_or_default();
        let fua = matches!(op, HostOp::Write { fua: true, .. } | HostOp::Zero { fua: true, .. });
        if op == HostOp::Flush || fua {
            let told = &self.volumes[v].told[q];
            match result {
                // Another one on this connection may have the bad news already, its answer on the way.
                Ok(()) if failures_before > told.get() && self.volumes[v].flushes[q].get() == 0 => {
                    world.fail(format!(
                        "T14: w{tag}: a flush had failed before, this connection was never told, and {op:?} succeeds"
                    ));
                }
                Ok(()) => {}
                Err(_) => told.set(site.flush_failures.borrow()[v]),
            }
        }
        if result.is_err() {
            return;
        }
        site.oracle.borrow_mut().succeeded(tag);
        let disk = site.disks[v].borrow();
        // A flush that overlapped a failed one may say success; the next one on this connection then says the truth (T14).
        let failed_since = disk.has_bad_news()
            || disk.flush_failures() > disk_failures_before
            || site.flush_failures.borrow()[v] > failures_before;
        let (newest, durable) = disk.versions();
        let not_durable = (0..promised.len()).find(|&s| durable[s] < promised[s]);
        if let Some(s) = not_durable.filter(|_| op == HostOp::Flush && !failed_since) {
            world.fail(format!("w{tag}: a flush succeeded and sector {s} of v{v}, acknowledged before, is not durable"));
        }
        let not_durable = landed.iter().find(|(s, n)| durable[**s] < **n);
        if let Some((s, _)) = not_durable.filter(|_| fua && !failed_since) {
            world.fail(format!("w{tag}: FUA succeeded and sector {s} of v{v} is not durable"));
        }
        let mut acked = site.acked_n.borrow_mut();
        if !failed_since {
            for (s, n) in landed.into_iter().filter(|(s, n)| !disk.in_doubt(*s, *n)) {
                acked[v][s] = acked[v][s].max(n);
            }
        }
        if matches!(op, HostOp::Trim { .. } | HostOp::Zero { .. }) {
            let (first, count) = op.changes().expect("it changes");
            let skipped = (first..first + count).filter(|s| !story.done.iter().any(|(f, n)| (*f..f + n).contains(s)));
            for s in skipped {
                let busy = site.oracle.borrow().busy(v, s, tag);
                if !busy && newest[s] == newest_before[s] && disk.current(s) != [0; SECTOR] {
                    return world
                        .fail(format!("T8: w{tag} {op:?} was acknowledged without I/O, but sector {s} of v{v} is not zero"));
                }
            }
        }
    }
}
