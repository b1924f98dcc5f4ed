//! The sender pipeline of one volume: reads a frozen epoch's granules, leaves out what compares equal, and streams parts.
//!
//! Owns: its ring on the volume's one file description, the read buffers, the part under way. Reads run ahead by a window of
//! regions, across the boundaries of parts; a region that was read whole is encoded elsewhere (`encode`), unless it is a hole, and
//! regions enter the part in order.
//!
//! Invariants: a hole is asked for only after the run was handed out by the reader, so after it was claimed or drained (T9);
//! content is used only if the reader accepted it; what was read ahead is forgotten with the connection it was read for,
//! since its claims do not survive a reset (T1). It decides nothing: which part, from where and until where is an order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use farside_blockio::process::monotonic_ns;
use farside_blockio::{
    Buffer, BufferPool, DeviceDone, DeviceEngine, DeviceOp, Errno, ExtentKind, FileDevice, Ring, RingError, Tag, Waker,
};
use farside_keys::ContentKeys;
use farside_layer::{PartAssembler, PartId};
use farside_region::{EpochId, Geometry, GranuleIndex, GranuleRun, GranuleSet, LayerKey, RegionIndex, RegionSet, VolumeId};
use farside_replication::source::{PartRead, ReadPart, SentPart, VerifyChunk, VerifyRead};
use farside_shim::{FrozenReader, Next, ReadVerdict, Volume};
use farside_transport::{CloseCode, Connection, Pacer};
use farside_wire::{DigestRun, PartHeader};
use tokio::sync::mpsc;
use tracing::{debug, error};

use crate::channel::{Receiver, Sender, channel};
use crate::compression::{Choice, Waited};
use crate::encode::{Content, Encoded, Encoders, Task};
use crate::keys::GroupKeys;
use crate::tap;
use crate::verify::{Published, Verifying};
use crate::yielding::{Host, Yielding};

/// Granules that may be on their way between the device and the part, and regions they may lie in.
const WINDOW_GRANULES: u64 = 4096;
const WINDOW_REGIONS: usize = 512;
/// Memory for reads: the window, and room for a run that comes late.
const POOL_BYTES: usize = 24 << 20;
const RUN_BYTES_MAX: usize = 1 << 20;
/// Bytes that make a chunk worth sending.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks on their way to the connection; each may hold a whole region.
const CHUNKS_MAX: usize = 2;
/// So many regions that are read and not encoded say that the encoders are what the sender waits for.
const IN_LINE_MIN: usize = 3;
/// Runs shorter than this are read without asking for holes.
const HOLE_BYTES_MIN: u64 = 128 << 10;
/// A part of zeroes is short whatever it covers; it ends here (64 GiB), so that progress is seen and slices stay small.
const PART_GRANULES_MAX: u64 = 1 << 24;
/// Marks the id of a read for a verify.
const VERIFY_FLIGHT: u64 = 1 << 63;
/// Reads in flight for a verify.
const VERIFY_DEPTH: usize = 2;
/// Regions whose digests are asked for at once.
const COMPARE_REGIONS: u64 = 8;

/// What the control thread asks for.
pub(crate) enum Order {
    /// Read and send a part.
    Read(Box<ReadPart>, Arc<dyn Connection>),
    /// End it at the next region boundary.
    Finish(LayerKey, u32),
    /// Give it up; answered.
    Abort(LayerKey, u32),
    /// What a comparing part asked for.
    Digests(LayerKey, u32, GranuleIndex, Vec<DigestRun>),
    /// Read these cold regions in place, and compare; replaces the chunk before.
    Verify(Box<VerifyChunk>),
    /// The connection is gone: forget everything. Not answered.
    Forget,
    /// End the thread.
    Quit,
}

/// What the pipeline reports; with the connection it was for.
#[derive(Debug)]
pub(crate) enum Report {
    Read { connection: u64, epoch: EpochId, read: Box<PartRead> },
    Aborted { connection: u64, key: LayerKey, part: u32 },
    DigestsWanted { connection: u64, key: LayerKey, part: u32, run: GranuleRun },
    Verified(Box<VerifyRead>),
}

/// Bytes that went through, since the daemon started.
#[derive(Debug, Default)]
pub(crate) struct SentCounters {
    pub(crate) read_bytes: AtomicU64,
    pub(crate) wire_bytes: AtomicU64,
    pub(crate) equal_bytes: AtomicU64,
    /// The pipeline goes on only when the backing answers.
    pub(crate) waits_for_disk: AtomicBool,
}

/// Everything a sender thread is made of.
pub(crate) struct SenderThread {
    pub(crate) id: VolumeId,
    pub(crate) keys: Arc<GroupKeys>,
    pub(crate) volume: Arc<Volume>,
    pub(crate) device: FileDevice,
    pub(crate) depth: usize,
    /// The host's requests, which reads of ours must not hold up.
    pub(crate) host: tap::Handle,
    pub(crate) encoders: Encoders,
    pub(crate) compression: Choice,
    pub(crate) orders: Receiver<Order>,
    pub(crate) waker: Waker,
    pub(crate) report: Box<dyn Fn(Report) + Send>,
    pub(crate) links: tokio::runtime::Handle,
    pub(crate) pacer: Arc<Pacer>,
    pub(crate) counters: Arc<SentCounters>,
}

impl SenderThread {
    /// The thread's whole life.
    ///
    /// # Errors
    /// When there is no ring or no memory.
    pub(crate) fn run(self) -> Result<(), RingError> {
        let mut ring = Ring::new(64)?;
        let pool = BufferPool::new(POOL_BYTES, RUN_BYTES_MAX).map_err(|source| RingError::Io { source })?;
        let engine = DeviceEngine::new(self.device.clone()).map_err(|source| RingError::Io { source })?;
        ring.wake_read(Tag::server(0), &self.waker);
        let (done, encoded) = channel();
        let mut pipeline = Pipeline {
            geometry: *self.volume.geometry(),
            id: self.id,
            keys: self.keys,
            encoders: self.encoders,
            compression: self.compression,
            waited: Waited::default(),
            done,
            volume: self.volume,
            device: self.device,
            yielding: Yielding::new(self.depth),
            host: self.host,
            report: self.report,
            links: self.links,
            pacer: self.pacer,
            waker: self.waker.clone(),
            counters: self.counters,
            engine,
            pool,
            reading: None,
            job: None,
            orphans: 0,
            stale: Stale::default(),
            generation: 0,
            wanted: Arc::default(),
            verifying: None,
            verify_flights: 0,
            verify_ids: 0,
        };
        loop {
            while let Ok(order) = self.orders.try_recv() {
                if matches!(order, Order::Quit) {
                    return Ok(());
                }
                pipeline.order(order);
            }
            while let Ok(encoded) = encoded.try_recv() {
                pipeline.encoded(encoded);
            }
            let more = pipeline.work(&mut ring);
            pipeline.verify(&mut ring);
            let nap = if more { Some(Duration::ZERO) } else { pipeline.look_again() };
            ring.wait(nap)?;
            while let Some(completion) = ring.pop() {
                if completion.tag == Tag::server(0) {
                    ring.wake_read(Tag::server(0), &self.waker);
                } else if let Some(done) = pipeline.engine.complete(&mut ring, completion) {
                    match done.id & VERIFY_FLIGHT {
                        0 => pipeline.ended(&mut ring, done),
                        _ => pipeline.verify_ended(done),
                    }
                }
            }
        }
    }
}

struct Pipeline {
    geometry: Geometry,
    id: VolumeId,
    keys: Arc<GroupKeys>,
    volume: Arc<Volume>,
    device: FileDevice,
    yielding: Yielding,
    host: tap::Handle,
    encoders: Encoders,
    compression: Choice,
    /// Since the last region entered the part.
    waited: Waited,
    /// Where regions come back from them.
    done: Sender<Encoded>,
    report: Box<dyn Fn(Report) + Send>,
    links: tokio::runtime::Handle,
    pacer: Arc<Pacer>,
    waker: Waker,
    counters: Arc<SentCounters>,
    engine: DeviceEngine,
    pool: BufferPool,
    reading: Option<Reading>,
    job: Option<Job>,
    /// Reads in flight whose reading was forgotten.
    orphans: usize,
    /// With the encoders, of readings that were forgotten.
    stale: Stale,
    /// Of the reading, below 2³¹; in the ids of its reads.
    generation: u32,
    /// The same, for the encoders.
    wanted: Arc<AtomicU32>,
    verifying: Option<Verifying>,
    /// Reads in flight for a verify, also of chunks that were given up.
    verify_flights: usize,
    verify_ids: u32,
}

/// A frozen epoch of this volume on its way through the window.
struct Reading {
    epoch: EpochId,
    reader: FrozenReader,
    set: Arc<GranuleSet>,
    /// The first region that is neither in a part nor in the window.
    limit: RegionIndex,
    /// The first region that is not in a part.
    next: RegionIndex,
    window: VecDeque<RegionWork>,
    window_granules: u64,
    /// One operation on the ring each.
    flights: HashMap<u32, Flight>,
    flight_ids: u32,
}

/// A run on its way. One that cannot be read in one go is read again granule by granule, so that one bad sector costs one
/// granule; on the ring like any other, since a host write may wait for what another flight has claimed.
struct Flight {
    run: GranuleRun,
    singly: Option<Singly>,
}

#[derive(Default)]
struct Singly {
    pieces: Vec<(GranuleRun, Content)>,
    failed: Option<Errno>,
}

/// Regions that the encoders have and nobody wants any more. They hold their content until they are back, so the window is
/// smaller by them: connections that end one after the other make no more of it than one.
#[derive(Debug, Default)]
struct Stale {
    regions: usize,
    granules: u64,
}

/// A region on its way.
struct RegionWork {
    region: RegionIndex,
    /// That arrive, or are awaited.
    granules: u64,
    /// Of them, awaited.
    missing: u64,
    runs: Vec<(GranuleRun, Content)>,
    left: Vec<GranuleRun>,
    handed_in: bool,
    encoded: Option<Encoded>,
}

/// A part being made.
struct Job {
    order: Box<ReadPart>,
    keys: ContentKeys,
    connection: Arc<dyn Connection>,
    id: PartId,
    part: PartAssembler,
    chunks: mpsc::Sender<Chunk>,
    pending: VecDeque<Chunk>,
    finish: bool,
    ranges: usize,
    last_region: Option<RegionIndex>,
    granules: u64,
    left: GranuleSet,
    unreadable: GranuleSet,
    zero_regions: RegionSet,
    /// What is published of regions that are to be compared.
    published: HashMap<RegionIndex, Vec<Published>>,
    asked_until: RegionIndex,
    asked: bool,
    ended: Option<Box<PartRead>>,
}

enum Chunk {
    Bytes(Bytes),
    End,
}

impl Pipeline {
    fn order(&mut self, order: Order) {
        match order {
            Order::Read(order, connection) => self.begin(order, connection),
            Order::Finish(key, part) => {
                if let Some(job) = self.job_of(key, part) {
                    job.finish = true;
                }
            }
            Order::Abort(key, part) => {
                if let Some(job) = self.job_of(key, part) {
                    let connection = job.order.connection;
                    self.forget();
                    (self.report)(Report::Aborted { connection, key, part });
                }
            }
            Order::Digests(key, part, start, runs) => {
                let geometry = self.geometry;
                if let Some(job) = self.job_of(key, part) {
                    job.take_digests(&geometry, start, &runs);
                }
            }
            Order::Verify(chunk) => {
                let keys = self.keys.content_keys(self.id, &chunk.digest_key);
                self.verifying = Some(Verifying::new(chunk, keys, &self.geometry));
            }
            Order::Forget => {
                self.verifying = None;
                self.forget();
            }
            Order::Quit => unreachable!("handled by the loop"),
        }
    }

    fn job_of(&mut self, key: LayerKey, part: u32) -> Option<&mut Job> {
        self.job.as_mut().filter(|j| j.order.key == key && j.order.part == part)
    }

    /// Gives up the part and all that was read ahead. Reads in flight come home as orphans, and so do regions being encoded.
    fn forget(&mut self) {
        self.job = None;
        if let Some(reading) = self.reading.take() {
            self.orphans += reading.flights.len();
            self.stale.add(&reading.window);
            reading.reader.abandon();
            self.generation = self.generation.wrapping_add(1) & !(1 << 31);
            self.wanted.store(self.generation, Ordering::Relaxed);
        }
    }

    fn begin(&mut self, order: Box<ReadPart>, connection: Arc<dyn Connection>) {
        assert!(self.job.is_none(), "one part at a time");
        let continues = self.reading.as_ref().is_some_and(|r| {
            r.epoch == order.epoch && Arc::ptr_eq(&r.set, &order.set) && self.geometry_next(r) == r.set.next_region(order.from)
        });
        if !continues {
            self.forget();
            let mut todo = (*order.set).clone();
            let mut at = RegionIndex(0);
            while let Some(region) = todo.next_region(at).filter(|&r| r < order.from) {
                todo.remove_region(region);
                at = region;
            }
            self.reading = Some(Reading {
                epoch: order.epoch,
                reader: FrozenReader::new(self.volume.clone(), order.epoch, todo),
                set: order.set.clone(),
                limit: order.from,
                next: order.from,
                window: VecDeque::new(),
                window_granules: 0,
                flights: HashMap::new(),
                flight_ids: 0,
            });
        }
        let id = PartId { key: order.key, part: order.part, geometry: self.geometry };
        let keys = self.keys.content_keys(self.id, &order.digest_key);
        let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
        let header = PartHeader { key: order.key, part: order.part }.encode();
        let header = Bytes::copy_from_slice(&header);
        self.links.spawn(forward(connection.clone(), self.pacer.clone(), header, receiver, self.waker.clone()));
        self.job = Some(Job {
            id,
            part: PartAssembler::new(id, keys.is_sealed()),
            keys,
            connection,
            chunks,
            pending: VecDeque::new(),
            finish: false,
            ranges: 0,
            last_region: None,
            granules: 0,
            left: GranuleSet::new(),
            unreadable: GranuleSet::new(),
            zero_regions: RegionSet::new(),
            published: HashMap::new(),
            asked_until: order.from,
            asked: false,
            ended: None,
            order,
        });
    }

    fn geometry_next(&self, reading: &Reading) -> Option<RegionIndex> {
        reading.set.next_region(reading.next)
    }

    /// One turn: hands chunks over, issues reads, asks for digests, has regions encoded, puts at most one into the part. True:
    /// there may be more to do at once. The caller submits and reaps between turns, since a host write may wait for a read that
    /// has been claimed.
    fn work(&mut self, ring: &mut Ring) -> bool {
        if self.job.is_none() || !self.flush_pending() || self.job.is_none() {
            self.waits(false);
            return false;
        }
        // Asking for holes, too, may take as long as the disk likes.
        self.waits(true);
        let drains = self.fill(ring);
        self.waits(drains);
        self.ask_digests();
        self.hand_in();
        self.append_next()
    }

    /// Hands chunks to the connection. False: it takes none now (or is gone).
    fn flush_pending(&mut self) -> bool {
        let Some(job) = self.job.as_mut() else { return true };
        while let Some(chunk) = job.pending.pop_front() {
            match job.chunks.try_send(chunk) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(chunk)) => {
                    job.pending.push_front(chunk);
                    self.waited.for_line = true;
                    return false;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    // The stream broke; if the connection stands, it must not: what the receiver has is unknown.
                    debug!(layer = %job.order.key, part = job.order.part, "the part's stream ended early");
                    job.connection.close(CloseCode::Internal, "a part's stream ended early");
                    self.forget();
                    return false;
                }
            }
        }
        if let Some(read) = job.ended.take() {
            let report = Report::Read { connection: job.order.connection, epoch: job.order.epoch, read };
            self.job = None;
            (self.report)(report);
        }
        true
    }

    /// Says whether it waits for the backing; reads in flight are waited for in any case.
    fn waits(&self, otherwise: bool) {
        let flights = self.reading.as_ref().is_some_and(|reading| !reading.flights.is_empty()) || self.orphans > 0;
        self.counters.waits_for_disk.store(flights || otherwise, Ordering::Relaxed);
    }

    /// When to work although nothing happened: the reads that are held back depend on what the host does.
    fn look_again(&self) -> Option<Duration> {
        self.job.as_ref().and_then(|_| self.yielding.look_again())
    }

    /// Issues reads, as far ahead as the window goes. True: a host write that is older must be over first.
    fn fill(&mut self, ring: &mut Ring) -> bool {
        let (Some(reading), Some(job)) = (self.reading.as_mut(), self.job.as_ref()) else { return false };
        while self.stale.leave_room_beside(reading.window.len(), reading.window_granules) {
            let Some(region) = reading.set.next_region(reading.limit).filter(|&r| job.order.until.is_none_or(|u| r < u)) else {
                break;
            };
            let granules = reading.set.mask(&self.geometry, region).count();
            let (runs, left) = (Vec::new(), Vec::new());
            let work = RegionWork { region, granules, missing: granules, runs, left, handed_in: false, encoded: None };
            reading.window.push_back(work);
            reading.window_granules += granules;
            reading.limit = RegionIndex(region.0 + 1);
        }
        let host = self.host.load();
        let host = Host { requests: host.requests, in_flight: host.in_flight };
        let depth = self.yielding.depth(monotonic_ns(), host, reading.flights.len() + self.orphans);
        while reading.flights.len() + self.orphans < depth {
            let run = match reading.reader.next(reading.limit) {
                Next::Read(run) => run,
                Next::Held(held) => {
                    let content = held.data.map_or(Content::Unreadable, Content::Held);
                    reading.arrived(&self.geometry, held.run, content);
                    continue;
                }
                Next::Left(run) => {
                    reading.left(&self.geometry, run);
                    continue;
                }
                Next::Wait => return true,
                Next::End => break,
            };
            let extent = self.geometry.bytes_of(run);
            if extent.len >= HOLE_BYTES_MIN && is_hole(&self.device, extent) {
                if reading.reader.read_done(run) == ReadVerdict::Accept {
                    reading.arrived(&self.geometry, run, Content::Zero);
                }
                continue;
            }
            // A run that was handed out may be claimed, and a host write may wait for it: it is read at once, whatever the
            // pool says. No more than `depth` such buffers exist.
            let Some(buffer) = self.pool.take(extent.len as usize).or_else(|| Buffer::alone(extent.len as usize).ok()) else {
                let flight = Flight { run, singly: Some(Singly::default()) };
                reading.read_singly(ring, &mut self.engine, &self.geometry, self.generation, flight);
                continue;
            };
            let op = DeviceOp::Read { offset: extent.offset, buffer };
            let id = reading.take_off(self.generation, Flight { run, singly: None });
            self.engine.submit(ring, id, op);
        }
        false
    }

    fn ended(&mut self, ring: &mut Ring, done: DeviceDone) {
        let (generation, id) = ((done.id >> 32) as u32, done.id as u32);
        let Some(reading) = self.reading.as_mut().filter(|_| generation == self.generation) else {
            self.orphans -= 1;
            return;
        };
        let Flight { run, singly } = reading.flights.remove(&id).expect("a read in flight");
        let buffer = done.buffer.expect("a read has its buffer");
        match (done.result, singly) {
            (Ok(()), None) => {
                if reading.reader.read_done(run) == ReadVerdict::Accept {
                    reading.arrived(&self.geometry, run, Content::Read(buffer));
                }
            }
            (Err(errno), None) => {
                drop(buffer); // its room is needed for the granules
                let singly = Some(Singly { failed: Some(errno), ..Singly::default() });
                reading.read_singly(ring, &mut self.engine, &self.geometry, self.generation, Flight { run, singly });
            }
            (result, Some(mut singly)) => {
                let granule = singly.next(run);
                singly.failed = result.err().or(singly.failed);
                let content = if result.is_ok() { Content::Read(buffer) } else { Content::Unreadable };
                singly.pieces.push((granule, content));
                let flight = Flight { run, singly: Some(singly) };
                if let Some(errno) = reading.read_singly(ring, &mut self.engine, &self.geometry, self.generation, flight) {
                    // After the claim is given back: whoever reads the log may be slow.
                    error!(device = %self.device.path().display(), ?run, %errno, "the backing device cannot be read");
                }
            }
        }
    }

    /// Goes on with the chunk of a verify: its few reads, and its verdict.
    fn verify(&mut self, ring: &mut Ring) {
        let Some(verifying) = &mut self.verifying else { return };
        while self.verify_flights < VERIFY_DEPTH {
            let Some(run) = verifying.next(&self.volume, RUN_BYTES_MAX as u64) else { break };
            let extent = self.geometry.bytes_of(run);
            if is_hole(&self.device, extent) {
                verifying.compare(&self.geometry, run, None);
                continue;
            }
            let Some(buffer) = self.pool.take(extent.len as usize).or_else(|| Buffer::alone(extent.len as usize).ok()) else {
                verifying.failed(&self.geometry, run);
                continue;
            };
            self.verify_ids = self.verify_ids.wrapping_add(1);
            verifying.begin(self.verify_ids, run);
            self.verify_flights += 1;
            let op = DeviceOp::Read { offset: extent.offset, buffer };
            self.engine.submit(ring, VERIFY_FLIGHT | u64::from(self.verify_ids), op);
        }
        if let Some(read) = verifying.verdict(&self.volume) {
            self.verifying = None;
            (self.report)(Report::Verified(Box::new(read)));
        }
    }

    fn verify_ended(&mut self, done: DeviceDone) {
        self.verify_flights -= 1;
        let Some(verifying) = &mut self.verifying else { return };
        // A read of a chunk that was given up is nobody's.
        let Some(run) = verifying.landed(done.id as u32) else { return };
        match (done.result, done.buffer) {
            (Ok(()), Some(buffer)) => verifying.compare(&self.geometry, run, Some(&buffer)),
            _ => verifying.failed(&self.geometry, run),
        }
    }

    /// Asks for the digests of the next regions to be compared, unless it has asked already or knows enough.
    fn ask_digests(&mut self) {
        let (Some(reading), Some(job)) = (self.reading.as_ref(), self.job.as_mut()) else { return };
        if job.asked || job.ended.is_some() {
            return;
        }
        let unknown = reading.window.iter().filter(|w| !w.handed_in).map(|w| w.region);
        let mut wanted = unknown.filter(|r| *r >= job.asked_until && job.order.compare.contains(*r)).peekable();
        let Some(first) = wanted.next() else { return };
        let mut last = first;
        while let Some(next) = wanted.next_if(|r| r.0 == last.0 + 1 && r.0 - first.0 < COMPARE_REGIONS) {
            last = next;
        }
        let start = self.geometry.region_run(first).start;
        let end = self.geometry.region_run(last).end();
        job.asked = true;
        job.asked_until = RegionIndex(last.0 + 1);
        (self.report)(Report::DigestsWanted {
            connection: job.order.connection,
            key: job.order.key,
            part: job.order.part,
            run: GranuleRun { start, count: end.0 - start.0 },
        });
    }

    /// Has every region encoded that is there in full, and of which is known what it needs.
    fn hand_in(&mut self) {
        let (Some(reading), Some(job)) = (self.reading.as_mut(), self.job.as_mut()) else { return };
        for work in reading.window.iter_mut().filter(|w| w.missing == 0 && !w.handed_in) {
            let published = match job.order.compare.contains(work.region) {
                false => None,
                true => match job.published.remove(&work.region) {
                    None => continue, // not asked for yet, or not answered
                    known => known,
                },
            };
            work.handed_in = true;
            work.encoded = self.encoders.hand_in(Task {
                region: work.region,
                geometry: self.geometry,
                keys: job.keys.clone(),
                runs: std::mem::take(&mut work.runs),
                published,
                compression: self.compression.now(),
                generation: self.generation,
                wanted: self.wanted.clone(),
                done: self.done.clone(),
                waker: self.waker.clone(),
            });
        }
    }

    fn encoded(&mut self, mut encoded: Encoded) {
        encoded.content = Vec::new(); // its memory is wanted
        let generation = self.generation;
        let Some(reading) = self.reading.as_mut().filter(|_| encoded.generation == generation) else {
            return self.stale.came_back(&encoded);
        };
        let work = reading.work_of(encoded.region);
        work.encoded = Some(encoded);
    }

    /// Puts the next region into the part if it is ready, and ends the part where it must end. False: nothing to do now.
    fn append_next(&mut self) -> bool {
        let (Some(reading), Some(job)) = (self.reading.as_mut(), self.job.as_mut()) else { return false };
        if job.ended.is_some() {
            return false;
        }
        let next = reading.set.next_region(reading.next).filter(|&r| job.order.until.is_none_or(|u| r < u));
        let Some(region) = next else {
            let done_at = job.order.until.unwrap_or(RegionIndex(self.geometry.region_count()));
            reading.next = done_at.max(reading.next);
            self.end_part(true);
            return true;
        };
        // None: what was given up is with the encoders still, and leaves no room.
        let Some(front) = reading.window.front_mut() else { return false };
        assert_eq!(front.region, region, "regions enter a part in order");
        if job.should_end_before(region) {
            self.end_part(false);
            return true;
        }
        let Some(encoded) = front.encoded.take() else {
            let in_line = reading.window.iter().filter(|w| w.handed_in && w.encoded.is_none()).count();
            self.waited.for_encoders |= in_line >= IN_LINE_MIN;
            return false;
        };
        // Zeroes say nothing about what compressing costs.
        if !encoded.is_zero {
            self.compression.region(std::mem::take(&mut self.waited));
        }
        let granules = front.granules;
        let left = std::mem::take(&mut front.left);
        left.into_iter().for_each(|run| job.left.insert_run(&self.geometry, run));
        reading.window.pop_front();
        reading.window_granules -= granules;
        reading.next = RegionIndex(region.0 + 1);
        self.counters.equal_bytes.fetch_add(encoded.equal * self.geometry.granule_bytes(), Ordering::Relaxed);
        self.counters.read_bytes.fetch_add(granules * self.geometry.granule_bytes(), Ordering::Relaxed);
        job.append(&self.geometry, granules, encoded);
        if job.part.ready_bytes() >= CHUNK_BYTES {
            let chunk = job.part.take_chunk();
            job.pending.push_back(Chunk::Bytes(chunk.into()));
        }
        true
    }

    fn end_part(&mut self, done: bool) {
        let (Some(reading), Some(job)) = (self.reading.as_ref(), self.job.as_mut()) else { return };
        let empty = job.part.is_empty();
        let (tail, summary) = std::mem::replace(&mut job.part, PartAssembler::new(job.id, job.keys.is_sealed())).finish();
        // Of an empty part nothing is sent: its stream is not even opened.
        let sent = (!empty).then(|| {
            job.pending.push_back(Chunk::Bytes(tail.into()));
            job.pending.push_back(Chunk::End);
            self.counters.wire_bytes.fetch_add(summary.bytes, Ordering::Relaxed);
            SentPart { bytes: summary.bytes, footer_digest: summary.footer_digest }
        });
        let next = reading.set.next_region(reading.next).filter(|&r| job.order.until.is_none_or(|u| r < u));
        job.ended = Some(Box::new(PartRead {
            connection: job.order.connection,
            key: job.order.key,
            part: job.order.part,
            sent,
            next: reading.next,
            done: done || next.is_none(),
            cut_held: false, // the control thread knows
            granules: job.granules,
            left: std::mem::take(&mut job.left),
            unreadable: std::mem::take(&mut job.unreadable),
            zero_regions: std::mem::take(&mut job.zero_regions),
        }));
    }
}

impl Stale {
    fn add(&mut self, window: &VecDeque<RegionWork>) {
        for work in window.iter().filter(|work| work.handed_in && work.encoded.is_none()) {
            self.regions += 1;
            self.granules += work.granules;
        }
    }

    fn came_back(&mut self, encoded: &Encoded) {
        self.regions -= 1;
        self.granules -= encoded.granules;
    }

    /// Whether one more region may be read, with so much in the window.
    fn leave_room_beside(&self, regions: usize, granules: u64) -> bool {
        granules + self.granules < WINDOW_GRANULES && regions + self.regions < WINDOW_REGIONS
    }
}

impl Singly {
    /// The granule that is read next, or was just read.
    fn next(&self, run: GranuleRun) -> GranuleRun {
        GranuleRun { start: GranuleIndex(run.start.0 + self.pieces.len() as u64), count: 1 }
    }
}

impl Reading {
    /// Registers a flight; gives the id of its operation.
    fn take_off(&mut self, generation: u32, flight: Flight) -> u64 {
        let id = self.flight_ids;
        self.flight_ids = self.flight_ids.wrapping_add(1);
        self.flights.insert(id, flight);
        u64::from(generation) << 32 | u64::from(id)
    }

    /// Reads the next granule of a run, or ends it. At the end gives what went wrong on the way, if anything.
    fn read_singly(
        &mut self,
        ring: &mut Ring,
        engine: &mut DeviceEngine,
        geometry: &Geometry,
        generation: u32,
        mut flight: Flight,
    ) -> Option<Errno> {
        let run = flight.run;
        let singly = flight.singly.get_or_insert_default();
        while (singly.pieces.len() as u64) < run.count {
            let next = singly.next(run);
            let extent = geometry.bytes_of(next);
            if let Ok(buffer) = Buffer::alone(extent.len as usize) {
                let id = self.take_off(generation, flight);
                engine.submit(ring, id, DeviceOp::Read { offset: extent.offset, buffer });
                return None;
            }
            singly.failed = Some(Errno::ENOMEM);
            singly.pieces.push((next, Content::Unreadable)); // read again with the next layer, as any
        }
        let singly = flight.singly.expect("made above");
        if self.reader.read_done(run) == ReadVerdict::Accept {
            singly.pieces.into_iter().for_each(|(piece, content)| self.arrived(geometry, piece, content));
        }
        singly.failed
    }

    fn work_of(&mut self, region: RegionIndex) -> &mut RegionWork {
        let at = self.window.partition_point(|w| w.region < region);
        self.window.get_mut(at).filter(|w| w.region == region).expect("runs are asked for inside the window")
    }

    fn arrived(&mut self, geometry: &Geometry, run: GranuleRun, content: Content) {
        let work = self.work_of(geometry.region_of(run.start));
        work.missing = work.missing.checked_sub(run.count).expect("each granule arrives once");
        work.runs.push((run, content));
    }

    /// A run that this epoch need not send any more.
    fn left(&mut self, geometry: &Geometry, run: GranuleRun) {
        let work = self.work_of(geometry.region_of(run.start));
        work.missing = work.missing.checked_sub(run.count).expect("each granule arrives or is left out once");
        work.granules -= run.count;
        work.left.push(run);
        self.window_granules -= run.count;
    }
}

impl Job {
    fn take_digests(&mut self, geometry: &Geometry, start: GranuleIndex, runs: &[DigestRun]) {
        self.asked = false;
        let granules = runs.iter().flat_map(Published::expand);
        for (granule, published) in (start.0..).map(GranuleIndex).zip(granules) {
            self.published.entry(geometry.region_of(granule)).or_default().push(published);
        }
    }

    fn should_end_before(&self, region: RegionIndex) -> bool {
        let Some(last) = self.last_region else { return false };
        let new_range = region.0 != last.0 + 1;
        self.finish
            || self.part.produced_bytes() >= self.order.bytes_max
            || self.granules >= PART_GRANULES_MAX
            || !self.part.has_room_for_region()
            || (new_range && self.ranges >= self.order.ranges_max)
    }

    fn append(&mut self, geometry: &Geometry, granules: u64, encoded: Encoded) {
        let Encoded { region, frames, is_zero, unreadable, .. } = encoded;
        if self.last_region.is_none_or(|last| region.0 != last.0 + 1) {
            self.ranges += 1;
        }
        self.last_region = Some(region);
        self.granules += granules;
        if is_zero {
            self.zero_regions.insert(region);
        }
        unreadable.into_iter().for_each(|run| self.unreadable.insert_run(geometry, run));
        self.part.append(frames).expect("regions ascend, and room for one was checked");
    }
}

fn is_hole(device: &FileDevice, extent: farside_region::ByteExtent) -> bool {
    let mut extents = Vec::with_capacity(1);
    let known = device.extents(extent, 1, &mut extents).is_ok();
    known && extents.first().is_some_and(|e| e.kind != ExtentKind::Data && e.len >= extent.len)
}

/// A receiver that stops a part's stream ends the connection, too, and says why, once it has synced what it is syncing, and its last
/// answers are heard or this source took none for five seconds. Whoever closes it here before that never hears it.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// Carries a part's chunks to its stream; wakes the sender after each, since there is room then.
async fn forward(
    connection: Arc<dyn Connection>,
    pacer: Arc<Pacer>,
    header: Bytes,
    mut chunks: mpsc::Receiver<Chunk>,
    waker: Waker,
) {
    let Some(mut chunk) = chunks.recv().await else { return };
    let Ok(mut stream) = connection.open_part(header).await else { return waker.wake() };
    loop {
        match chunk {
            Chunk::Bytes(mut bytes) => {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(pacer.piece_bytes().min(bytes.len()));
                    pacer.take(piece.len()).await;
                    if let Err(error) = stream.write(piece).await {
                        debug!(%error, "a part's stream broke");
                        return parted(&*connection, chunks, waker).await;
                    }
                }
            }
            Chunk::End => {
                if stream.finish().is_err() {
                    return parted(&*connection, chunks, waker).await;
                }
                return waker.wake();
            }
        }
        waker.wake();
        match chunks.recv().await {
            Some(next) => chunk = next,
            None => return stream.reset(), // given up
        }
    }
}

/// A stream broke: takes no more of it once it is known why, if anybody says so.
async fn parted(connection: &dyn Connection, mut chunks: mpsc::Receiver<Chunk>, waker: Waker) {
    let _ = tokio::time::timeout(LAST_WORDS, connection.closed()).await;
    chunks.close();
    waker.wake();
}

#[cfg(test)]
mod tests {
    use farside_layer::Compression;

    use super::*;

    /// It stops the stream first.
    #[tokio::test]
    async fn what_a_receiver_says_as_it_ends_is_heard() {
        let peer = |name: &str| farside_transport::Peer {
            name: name.parse().expect("a name"),
            fingerprint: farside_transport::Fingerprint::of(name.as_bytes()),
            address: ([127, 0, 0, 1], 1).into(),
            carrier: farside_transport::Carrier::Udp,
        };
        let (here, there) = farside_transport::memory::pair(peer("host1"), peer("gateway"));
        let here: Arc<dyn Connection> = Arc::new(here);
        let (chunks, queue) = mpsc::channel(4);
        let forwarding = forward(Arc::clone(&here), Arc::default(), Bytes::new(), queue, Waker::new().expect("an eventfd"));
        tokio::spawn(forwarding);
        chunks.send(Chunk::Bytes(Bytes::from_static(b"some"))).await.expect("it takes it");
        drop(there.accept_part().await.expect("a part"));
        // As long as its last answers may take.
        let parting = async {
            let error = loop {
                match chunks.try_send(Chunk::Bytes(Bytes::from_static(b"more"))) {
                    Ok(()) => tokio::task::yield_now().await,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, mpsc::error::TrySendError::Full(_)), "it was given up before anything was said");
            there.close(CloseCode::Full, "the disk is full");
        };
        tokio::join!(parting, chunks.closed());
        let how = here.close_reason().expect("it is known before the stream is given up");
        assert!(
            matches!(&how, farside_transport::Closed::ByPeer { code: CloseCode::Full, reason } if reason == "the disk is full"),
            "{how:?}"
        );
    }

    /// L8: each reset leaves a window with the encoders; a hundred of them must not be a hundred windows of content.
    #[test]
    fn l8_what_was_given_up_is_part_of_the_window_until_it_is_back() {
        let geometry = Geometry::new(64 << 20).expect("valid");
        let whole = geometry.region_run(RegionIndex(0)).count;
        let (done, back) = channel();
        let encoders = Encoders::start(1).expect("a thread");
        let (wanted, waker) = (Arc::new(AtomicU32::new(0)), Waker::new().expect("an eventfd"));
        let hand_in = |region: RegionIndex| {
            let at_once = encoders.hand_in(Task {
                region,
                geometry,
                keys: (&[7; 32]).into(),
                runs: vec![(geometry.region_run(region), Content::Unreadable)],
                published: None,
                compression: Compression::Off,
                generation: 1,
                wanted: wanted.clone(),
                done: done.clone(),
                waker: waker.clone(),
            });
            assert!(at_once.is_none());
        };
        let mut stale = Stale::default();
        let mut given_up = 0;
        while stale.leave_room_beside(0, 0) {
            let work = |region, handed_in| RegionWork {
                region,
                granules: whole,
                missing: 0,
                runs: Vec::new(),
                left: Vec::new(),
                handed_in,
                encoded: None,
            };
            // Of each window one region is with the encoders, and one is not yet.
            hand_in(RegionIndex(given_up));
            stale.add(&VecDeque::from([work(RegionIndex(given_up), true), work(RegionIndex(given_up + 1), false)]));
            given_up += 1;
        }
        assert_eq!(given_up, WINDOW_GRANULES / whole, "as many as one window holds");
        assert!(!stale.leave_room_beside(0, 0));
        for _ in 0..given_up {
            stale.came_back(&back.recv().expect("each comes back"));
            assert!(stale.leave_room_beside(0, 0) && stale.leave_room_beside(1, 0));
        }
        assert_eq!((stale.regions, stale.granules), (0, 0));
    }
}
