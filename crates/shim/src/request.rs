//! A host request as a token: what to do next, until it is complete.

use farside_region::{ByteExtent, ByteOffset, EpochId, GranuleRun, RegionIndex};
use thiserror::Error;

use crate::mutation::mutated;
use crate::save::Before;
use crate::sync::{Arc, Ordering, fence};
use crate::volume::Intent;
use crate::{Connection, Queue, RegionState, Volume};

/// What the host asks for.
#[derive(Clone, Debug)]
pub enum Op {
    /// Read these bytes.
    Read(ByteExtent),
    /// Write these bytes; with a connection = FUA: durable before it is complete.
    Write(ByteExtent, Option<Arc<Connection>>),
    /// Make durable what was completed before.
    Flush(Arc<Connection>),
    /// These bytes read as zero from now on; give the space back where possible. With a connection = FUA.
    Trim(ByteExtent, Option<Arc<Connection>>),
    /// As `Trim`; `no_hole`: keep the space allocated.
    WriteZeroes {
        /// Where.
        extent: ByteExtent,
        /// Keep the space allocated.
        no_hole: bool,
        /// FUA.
        fua: Option<Arc<Connection>>,
    },
}

/// One operation on the backing device, through the ring of the queue that received the request (L11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Read these bytes for the host.
    Read(ByteExtent),
    /// Read this old content into a buffer of the driver's and hand it back with [`IoResult::Data`]: it is about to be
    /// overwritten and belongs to a cut.
    Save(ByteExtent),
    /// Write this part of the request's data.
    Write(ByteExtent),
    /// Make these bytes zero: punch a hole, or write zeroes where that fails or `no_hole` forbids it. The content is always
    /// defined afterwards †.
    Zero {
        /// Where.
        extent: ByteExtent,
        /// Keep the space allocated.
        no_hole: bool,
    },
    /// Flush the backing device.
    Flush,
}

/// How an [`Io`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoResult<'a> {
    /// Done (anything but `Save`).
    Done,
    /// What was there (`Save` only): exactly the bytes asked for.
    Data(&'a [u8]),
    /// Failed with this errno.
    Failed(i32),
}

/// What a request waits for. Only for logs and histograms: whoever parks is woken through its queue's [`crate::Wake`] and then
/// re-advances everything it has parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParkKey {
    /// An intent bit on its way to the disk.
    Intent,
    /// A place in the in-flight table of the queue.
    InFlight,
    /// The grace of a switch, with an overlapping mark under way.
    Grace,
    /// An older write in flight on a frozen granule.
    Drain,
    /// Somebody else's claim on a frozen granule.
    Claim,
    /// The hold of a group that is cut together with others.
    Hold,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The backing device said so.
    #[error("the backing device failed with errno {0}")]
    Backing(i32),
    /// A flush of the backing failed, by whomever issued; this connection had not been told yet (T14).
    #[error("a flush of the backing device failed")]
    FlushFailed,
    /// The intent map is lost and the policy says `fail`.
    #[error("the intent map cannot be written and on_tracking_lost = fail")]
    TrackingLost,
}

/// What to do next with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do this, then [`Request::io_done`], then [`Request::advance`].
    Io(Io),
    /// Nothing until the queue is woken; then [`Request::advance`] again.
    Park(ParkKey),
    /// Answer the host and drop the token.
    Complete(Result<(), Failure>),
}

impl Op {
    pub(crate) fn extent(&self) -> Option<ByteExtent> {
        match self {
            Self::Read(extent) | Self::Write(extent, _) | Self::Trim(extent, _) | Self::WriteZeroes { extent, .. } => {
                Some(*extent)
            }
            Self::Flush(_) => None,
        }
    }
}

/// How a piece reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Write,
    Zero { no_hole: bool },
}

impl Pass {
    /// A NO_HOLE request never takes the COLD_ZERO way: it promises allocated space (T8). Nor does any where somebody else may have written.
    fn may_skip_zero(self, volume: &Volume) -> bool {
        let is_zeroing = self == Self::Zero { no_hole: false } || (mutated!(volume, NoHoleSkipsZero) && self != Self::Write);
        is_zeroing && !volume.doubts_zeroes()
    }

    fn io(self, extent: ByteExtent) -> Io {
        match self {
            Self::Write => Io::Write(extent),
            Self::Zero { no_hole } => Io::Zero { extent, no_hole },
        }
    }
}

/// A piece that is marked and registered as in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    extent: ByteExtent,
    run: GranuleRun,
    epoch: EpochId,
}

/// ```text
/// Read ─► Reading ─► Done
/// Intent ─► Mark ─► Claim ⇄ Saving ⇄ SaveSingly
///   ▲        │▲      └─► Passing ─► Mark … ─► Flush ─► Flushing ─► Done
///   └─cooled─┘└──── next piece ──────┘
/// ```
/// A request of one piece begins at Mark, whose own look at its regions sends it to Intent if one is not hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Read,
    Reading,
    /// A write that may not begin yet; `is_short`: the look at its mark covers it.
    Held {
        is_short: bool,
    },
    /// Look at all regions of the rest of the request.
    Intent,
    /// Mark the next piece.
    Mark,
    Claim(Piece),
    /// `rest`: granules of the claimed run behind this one, to be saved one by one.
    Saving {
        piece: Piece,
        run: GranuleRun,
        rest: u64,
        cut: EpochId,
    },
    /// The claimed run could not be read in one go.
    SaveSingly(Piece, GranuleRun, EpochId),
    Passing(Piece),
    Flush,
    Flushing {
        flush: u64,
        /// How many had failed when it began.
        failures: u64,
    },
    /// Only the answer is left.
    Answer(Result<(), Failure>),
    Done,
}

/// A host request on its way. Must be driven to [`Step::Complete`]; dropping it before panics.
#[derive(Debug)]
pub struct Request {
    phase: Phase,
    pass: Pass,
    /// The first byte not yet passed on, and the one after the last.
    at: u64,
    end: u64,
    fua: Option<Arc<Connection>>,
    /// Its place in the queue's in-flight table.
    entry: Option<u16>,
    slot: usize,
    /// How many failures of flushes its answer tells of.
    tells: u64,
}

impl Request {
    pub(crate) fn new(op: Op, slot: usize, volume: &Volume) -> Self {
        let (at, end) = op.extent().map_or((0, 0), |e| (e.offset.0, e.offset.0 + e.len));
        // The look between announce and mark covers a request of one piece; a longer one asks for all its intent at once.
        let granule = at & !(volume.geometry.granule_bytes() - 1);
        let is_short = end - granule <= volume.limits.piece_bytes && !mutated!(volume, MarkBeforeIntent);
        let first = if is_short { Phase::Mark } else { Phase::Intent };
        let (phase, pass, fua) = match op {
            Op::Read(_) if at == end => (Phase::Answer(Ok(())), Pass::Write, None),
            Op::Read(_) => (Phase::Read, Pass::Write, None),
            Op::Write(_, fua) => (first, Pass::Write, fua),
            Op::Flush(connection) => (Phase::Flush, Pass::Write, Some(connection)),
            Op::Trim(_, fua) => (first, Pass::Zero { no_hole: false }, fua),
            Op::WriteZeroes { no_hole, fua, .. } => (first, Pass::Zero { no_hole }, fua),
        };
        // † Looked at once, and before anything of it: a request that is on its way was issued before the hold.
        let is_held = matches!(phase, Phase::Mark | Phase::Intent) && volume.is_held();
        let phase = if is_held { Phase::Held { is_short } } else { phase };
        Self { phase, pass, at, end, fua, entry: None, slot, tells: 0 }
    }

    /// What to do next. Never blocks.
    ///
    /// # Panics
    /// While an [`Io`] of it is outstanding, after it completed, or with another queue than the one it began on.
    pub fn advance(&mut self, queue: &mut Queue) -> Step {
        assert_eq!(self.slot, queue.slot, "a request stays on its queue");
        match self.look(queue) {
            Step::Park(_) => {
                // Whoever makes it possible to go on looks at the bell after that; so arm it, and look once more.
                queue.volume.queue_bells[queue.slot].arm();
                self.look(queue)
            }
            step => step,
        }
    }

    fn look(&mut self, queue: &mut Queue) -> Step {
        loop {
            match self.phase {
                Phase::Read => {
                    self.phase = Phase::Reading;
                    return Step::Io(Io::Read(extent(self.at, self.end)));
                }
                Phase::Held { .. } if queue.volume.is_held() => return Step::Park(ParkKey::Hold),
                Phase::Held { is_short } => self.phase = if is_short { Phase::Mark } else { Phase::Intent },
                Phase::Intent => match self.intent(&queue.volume) {
                    Intent::Waiting => return Step::Park(ParkKey::Intent),
                    Intent::Hot => self.phase = Phase::Mark,
                    Intent::Failed => self.answer(queue, Err(Failure::TrackingLost)),
                },
                Phase::Mark => {
                    let Some(piece) = self.next_piece(&queue.volume) else {
                        match self.fua {
                            Some(_) => self.phase = Phase::Flush,
                            None => self.answer(queue, Ok(())),
                        }
                        continue;
                    };
                    if self.entry.is_none() {
                        self.entry = queue.take_entry();
                    }
                    let Some(entry) = self.entry else {
                        return Step::Park(ParkKey::InFlight);
                    };
                    self.phase = match mark(queue, piece, entry) {
                        Some(piece) => Phase::Claim(piece),
                        None => Phase::Intent,
                    };
                }
                Phase::Claim(piece) => match queue.volume.before_write(queue.slot, piece.run, piece.epoch) {
                    Before::Nothing => {
                        if mutated!(queue.volume, WaitAnnounced) {
                            queue.volume.idle(queue.slot);
                        }
                        self.phase = Phase::Passing(piece);
                        return Step::Io(self.pass.io(piece.extent));
                    }
                    Before::Park(key) => return Step::Park(key),
                    Before::Save(run, cut) => {
                        self.phase = Phase::Saving { piece, run, rest: 0, cut };
                        return Step::Io(Io::Save(queue.volume.geometry.bytes_of(run)));
                    }
                },
                Phase::SaveSingly(piece, run, cut) => {
                    if !queue.volume.holds_cut(cut) {
                        // Given up meanwhile, and for good: nothing is worth a wait any more.
                        queue.volume.saved(queue.slot, run, cut, None);
                        self.phase = Phase::Claim(piece);
                        continue;
                    }
                    let one = GranuleRun { count: 1, ..run };
                    self.phase = Phase::Saving { piece, run: one, rest: run.count - 1, cut };
                    return Step::Io(Io::Save(queue.volume.geometry.bytes_of(one)));
                }
                Phase::Flush => {
                    if self.entry.is_none() {
                        self.entry = queue.take_entry();
                    }
                    let Some(entry) = self.entry else {
                        return Step::Park(ParkKey::InFlight);
                    };
                    let flush = queue.volume.next_flush();
                    queue.volume.in_flight[queue.slot].set_flush(entry, flush);
                    fence(Ordering::SeqCst); // known as under way before it is
                    self.phase = Phase::Flushing { flush, failures: queue.volume.flush_failures() };
                    return Step::Io(Io::Flush);
                }
                Phase::Answer(result) => {
                    self.phase = Phase::Done;
                    return Step::Complete(result);
                }
                Phase::Reading | Phase::Saving { .. } | Phase::Passing(_) | Phase::Flushing { .. } => {
                    panic!("advance while an operation of the request is outstanding")
                }
                Phase::Done => panic!("advance after completion"),
            }
        }
    }

    /// Intent comes first, for the whole request at once, and is durable before anything is marked † (L2): a mark without it
    /// dies with the process, and the write with it.
    fn intent(&self, volume: &Volume) -> Intent {
        let Some(run) = volume.geometry.granules_of(extent(self.at, self.end)) else {
            return Intent::Hot;
        };
        let intent = volume.look_at_intent(run, self.pass.may_skip_zero(volume));
        if intent == Intent::Waiting && mutated!(volume, MarkBeforeIntent) { Intent::Hot } else { intent }
    }

    /// The next bytes to mark: at most one piece, and nothing of regions that are known to be zero where zeroing is all that is
    /// asked (T8: they complete at once).
    fn next_piece(&mut self, volume: &Volume) -> Option<ByteExtent> {
        let (geometry, size) = (&volume.geometry, volume.geometry.region_bytes());
        let is_zero = |at: u64| volume.region_state(RegionIndex(at / size)) == RegionState::ColdZero;
        while self.pass.may_skip_zero(volume) && self.at < self.end && is_zero(self.at) {
            self.at = self.end.min((self.at / size + 1) * size);
        }
        let granule = self.at & !(geometry.granule_bytes() - 1);
        let mut end = self.end.min(granule + volume.limits.piece_bytes);
        if self.pass.may_skip_zero(volume) {
            let mut region = (self.at / size + 1) * size;
            while region < end && !is_zero(region) {
                region += size;
            }
            end = end.min(region);
        }
        (self.at < end).then(|| extent(self.at, end))
    }

    /// The [`Io`] that `advance` returned has ended.
    ///
    /// # Panics
    /// When none was outstanding, or `Save` comes back with another length.
    pub fn io_done(&mut self, queue: &mut Queue, result: IoResult<'_>) {
        let volume = &*queue.volume;
        let failed = match result {
            IoResult::Failed(errno) => Some(Failure::Backing(errno)),
            IoResult::Done | IoResult::Data(_) => None,
        };
        match self.phase {
            Phase::Reading => self.phase = Phase::Answer(failed.map_or(Ok(()), Err)),
            // One bad sector costs one granule, here as in the sender.
            Phase::Saving { piece, run, cut, .. } if failed.is_some() && run.count > 1 => {
                self.phase = Phase::SaveSingly(piece, run, cut);
            }
            Phase::Saving { piece, run, rest, cut } => {
                let data = match result {
                    IoResult::Data(data) => {
                        assert_eq!(data.len() as u64, volume.geometry.bytes_of(run).len, "a save brings what was asked for");
                        Some(data)
                    }
                    IoResult::Failed(_) => None,
                    IoResult::Done => panic!("a save comes back with data or an error"),
                };
                volume.saved(queue.slot, run, cut, data);
                self.phase = match rest {
                    0 => Phase::Claim(piece),
                    count => Phase::SaveSingly(piece, GranuleRun { start: run.end(), count }, cut),
                };
            }
            Phase::Passing(piece) => {
                self.at = piece.extent.offset.0 + piece.extent.len;
                volume.in_flight[queue.slot].clear(self.entry.expect("a marked piece is registered"));
                volume.ring_all();
                match failed {
                    // What the device holds now is anybody's guess; the granules are dirty, so it will be read.
                    Some(failure) => self.answer(queue, Err(failure)),
                    None => self.phase = Phase::Mark,
                }
            }
            Phase::Flushing { flush, failures } => {
                // First the consequences, then the entry: a cooler that no longer sees the flush sees its failure.
                volume.flush_result(flush, failed.is_none());
                volume.in_flight[queue.slot].clear(self.entry.expect("a flush is registered"));
                volume.ring_all();
                let connection = self.fua.take().expect("a flush has a connection");
                let learnt = connection.learn(volume);
                self.tells = learnt.unwrap_or(0);
                // † Of all that overlapped it the kernel may have told one, and all users of the device are one connection.
                let has_failed = failed.is_some() || learnt.is_some() || volume.flush_failures() != failures;
                self.answer(queue, if has_failed { Err(Failure::FlushFailed) } else { Ok(()) });
            }
            _ => panic!("no operation of the request is outstanding"),
        }
    }

    /// How many failures of flushes its answer is the first to tell its connection of: all so far, by the volume's count
    /// ([`Volume::flush_failures`]) as it was looked at, and none that was counted after that. 0: none.
    pub fn tells(&self) -> u64 {
        self.tells
    }

    fn answer(&mut self, queue: &mut Queue, result: Result<(), Failure>) {
        if let Some(entry) = self.entry.take() {
            queue.give_entry(entry);
            // Only this queue's own requests wait for an entry, on this very thread: no fence is needed between.
            queue.volume.queue_bells[queue.slot].ring_fenced();
        }
        self.phase = Phase::Answer(result);
    }

    /// The epoch whose map the piece under way is marked in.
    #[cfg(any(test, feature = "mutations"))]
    pub fn epoch(&self) -> Option<EpochId> {
        match self.phase {
            Phase::Claim(piece) | Phase::Saving { piece, .. } | Phase::SaveSingly(piece, ..) | Phase::Passing(piece) => {
                Some(piece.epoch)
            }
            _ => None,
        }
    }

    #[cfg(all(test, not(feature = "loom")))]
    pub(crate) fn at_for_tests(&self) -> u64 {
        self.at
    }

    /// Forgets it as a power cut would: for simulated crashes.
    #[cfg(any(test, feature = "mutations"))]
    pub fn crash(mut self) {
        self.phase = Phase::Done;
    }
}

/// Step 2 of a write, in one straight line: announce, fence, read the epoch, look at the regions again, mark, register, idle.
/// `None`: a region is no longer hot; begin again with intent. Never blocks between announce and idle: a grace waits for it.
#[inline]
fn mark(queue: &Queue, extent: ByteExtent, entry: u16) -> Option<Piece> {
    let volume = &*queue.volume;
    let run = volume.geometry.granules_of(extent).expect("a piece is not empty and inside the volume");
    let early = mutated!(volume, ReadThenAnnounce).then(|| volume.group.epoch());
    volume.announce(queue.slot, Some(run));
    let epoch = early.unwrap_or_else(|| volume.group.epoch());
    let mut regions = volume.geometry.regions_of(run).iter().filter(|&region| volume.is_looked_at(region, run));
    let hot = regions.all(|region| volume.is_markable(region));
    if hot {
        if !mutated!(volume, NoMark) {
            volume.mark(epoch, run);
        }
        volume.in_flight[queue.slot].set_write(entry, run, epoch);
    }
    if !(hot && mutated!(volume, WaitAnnounced)) {
        volume.idle(queue.slot);
    }
    hot.then_some(Piece { extent, run, epoch })
}

fn extent(at: u64, end: u64) -> ByteExtent {
    ByteExtent { offset: ByteOffset(at), len: end - at }
}

/// A request is completed exactly once: a lost one would leave the host waiting for ever, or a mark without its write.
impl Drop for Request {
    fn drop(&mut self) {
        if self.phase != Phase::Done && !std::thread::panicking() {
            panic!("a request was dropped before it was complete: {self:?}");
        }
    }
}
