//! From runs of granules to the bytes of a part.
//!
//! Digests are computed over the content as it is handed in, before anything else touches it. Adjacent data joins one frame,
//! adjacent zeroes one run; a full frame's worth is encoded straight from the caller's buffer.

use std::fmt;

use farside_region::{GranuleDigest, GranuleIndex, GranuleRun};
use thiserror::Error;

use crate::digest::{footer_digest, granule_digest};
use crate::format::{
    Codec, DATA_GRANULES_MAX, DIGEST_BYTES, ENTRY_BYTES, FRAME_HEAD_BYTES, FRAMES_MAX, FrameRef, HEADER_BYTES, KIND_FOOTER,
    PART_BYTES_MAX, PartId, PartSummary, RunKind, TRAILER_BYTES, Trailer, frame_granules, frame_head,
};
use crate::zero::split_zero;

/// How data frames are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw.
    Off,
    /// By zstd of this level, and raw where that does not help.
    Zstd(i32),
}

/// The compressor: made once, it goes from part to part.
pub struct Encoder {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    compression: Compression,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encoder").field(&self.compression).finish()
    }
}

impl Encoder {
    /// A compressor. A level beyond zstd's range becomes its nearest.
    pub fn new(compression: Compression) -> Self {
        let zstd = match compression {
            Compression::Off => None,
            Compression::Zstd(level) => {
                let range = zstd::compression_level_range();
                let level = level.clamp(*range.start(), *range.end());
                Some(zstd::bulk::Compressor::new(level).expect("zstd takes every level of its own range"))
            }
        };
        Self { zstd, compression }
    }

    /// Appends the content as a payload.
    fn append(&mut self, content: &[u8], out: &mut Vec<u8>) -> Codec {
        let start = out.len();
        // Anything that saves less than a 32nd is not worth decompressing.
        let room = content.len() - content.len().div_ceil(32);
        if let Some(zstd) = &mut self.zstd {
            out.resize(start + room, 0);
            if let Ok(stored) = zstd.compress_to_buffer(content, &mut out[start..]) {
                out.truncate(start + stored);
                return Codec::Zstd;
            }
            out.truncate(start);
        }
        out.extend_from_slice(content);
        Codec::Raw
    }
}

/// Why a run was not taken. The part is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PushError {
    /// This part might exceed a limit: finish it and push into the next.
    #[error("the part is full")]
    Full,
    /// Runs must ascend within a part. (Another part of the layer may hold what was skipped.)
    #[error("granules {}..+{} come after granule {next} was passed", run.start, run.count)]
    Order {
        /// What was pushed.
        run: GranuleRun,
        /// The first granule that may still come.
        next: GranuleIndex,
    },
    /// Empty, or beyond the volume.
    #[error("granules {start}..+{count} are not in the volume")]
    Beyond {
        /// First granule.
        start: GranuleIndex,
        /// Number of granules.
        count: u64,
    },
    /// Content of whole granules is wanted (the last of the volume may be short).
    #[error("{bytes} bytes of content from granule {start} are not whole granules")]
    Length {
        /// First granule.
        start: GranuleIndex,
        /// What was given.
        bytes: usize,
    },
}

/// Data not yet made a frame.
#[derive(Default)]
struct Pending {
    start: u64,
    count: u64,
    content: Vec<u8>,
}

/// Writes one part: runs in, ascending; chunks of bytes out whenever the caller wants them; the tail at the end.
pub struct PartWriter {
    id: PartId,
    digest_key: [u8; 32],
    encoder: Encoder,
    frame_granules: u64,
    next: u64,
    pending: Pending,
    frames: Vec<FrameRef>,
    digests: Vec<GranuleDigest>,
    out: Vec<u8>,
    taken: u64,
}

impl fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, frames, next, .. } = self;
        f.debug_struct("PartWriter").field("id", id).field("frames", &frames.len()).field("next", next).finish_non_exhaustive()
    }
}

impl PartWriter {
    /// Begins a part.
    pub fn new(id: PartId, digest_key: &[u8; 32], encoder: Encoder) -> Self {
        Self {
            id,
            digest_key: *digest_key,
            encoder,
            frame_granules: frame_granules(&id.geometry),
            next: 0,
            pending: Pending::default(),
            frames: Vec::new(),
            digests: Vec::new(),
            out: id.encode().to_vec(),
            taken: 0,
        }
    }

    /// Which part this is.
    pub fn id(&self) -> &PartId {
        &self.id
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// Whether this much data, in one run, surely still fits.
    pub fn has_room_for(&self, granules: u64) -> bool {
        let frames = granules.div_ceil(self.frame_granules) + 1;
        let bytes = granules.saturating_mul(self.id.geometry.granule_bytes());
        self.fits(frames, granules, bytes)
    }

    /// Whether a whole region surely still fits, however data and zeroes alternate in it.
    pub fn has_room_for_region(&self) -> bool {
        let geometry = &self.id.geometry;
        // In the worst case every granule is a frame.
        self.fits(geometry.region_granules(), geometry.region_granules(), geometry.region_bytes())
    }

    /// Bytes made so far, those not yet taken included.
    pub fn produced_bytes(&self) -> u64 {
        self.produced() + self.pending.content.len() as u64
    }

    /// Appends data: content of whole granules from `start`.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push_data(&mut self, start: GranuleIndex, content: &[u8]) -> Result<(), PushError> {
        let run = self.content_run(start, content)?;
        self.check_order(run)?;
        if !self.has_room_for(run.count) {
            return Err(PushError::Full);
        }
        self.append_data(run, content);
        Ok(())
    }

    /// Appends content as it was read: granules of zeroes become zero runs, the rest data.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push_read(&mut self, start: GranuleIndex, content: &[u8]) -> Result<(), PushError> {
        let run = self.content_run(start, content)?;
        self.check_order(run)?;
        let granule_bytes = self.id.geometry.granule_bytes() as usize;
        let (mut frames, mut data) = (0, 0);
        for (granules, zero) in split_zero(content, granule_bytes) {
            let (first, last) = (start.0 + granules.start as u64, start.0 + granules.end as u64 - 1);
            frames += if zero { 1 } else { last / self.frame_granules - first / self.frame_granules + 1 };
            data += if zero { 0 } else { granules.len() as u64 };
        }
        if !self.fits(frames, data, data * granule_bytes as u64) {
            return Err(PushError::Full);
        }
        for (granules, zero) in split_zero(content, granule_bytes) {
            let piece = GranuleRun { start: GranuleIndex(start.0 + granules.start as u64), count: granules.len() as u64 };
            if zero {
                self.append_run(RunKind::Zero, piece);
            } else {
                self.append_data(
                    piece,
                    &content[granules.start * granule_bytes..content.len().min(granules.end * granule_bytes)],
                );
            }
        }
        Ok(())
    }

    /// Appends a run of zeroes of any length.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push_zero(&mut self, run: GranuleRun) -> Result<(), PushError> {
        self.push_run(RunKind::Zero, run)
    }

    /// Appends a run that the backing device could not read.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push_unreadable(&mut self, run: GranuleRun) -> Result<(), PushError> {
        self.push_run(RunKind::Unreadable, run)
    }

    /// Bytes that [`PartWriter::take_chunk`] would give.
    pub fn ready_bytes(&self) -> usize {
        self.out.len()
    }

    /// The bytes made since the last call, to be sent while the part grows.
    pub fn take_chunk(&mut self) -> Vec<u8> {
        self.taken += self.out.len() as u64;
        std::mem::take(&mut self.out)
    }

    /// Ends the part: the bytes not yet taken, what it amounts to, and the encoder for the next one.
    pub fn finish(mut self) -> (Vec<u8>, PartSummary, Encoder) {
        self.flush_pending();
        let footer_offset = self.produced();
        let mut body = Vec::with_capacity(self.body_bytes(0, 0));
        body.extend_from_slice(&self.id.encode());
        self.frames.iter().for_each(|f| body.extend_from_slice(&f.encode_entry()));
        self.digests.iter().for_each(|d| body.extend_from_slice(&d.0));
        let (body_bytes, crc) = (body.len() as u32, crc32c::crc32c(&body));
        let footer_digest = footer_digest(&body);
        self.out.extend_from_slice(&frame_head(KIND_FOOTER, 0, body_bytes, 0, self.frames.len() as u64, crc));
        self.out.extend_from_slice(&body);
        self.out.extend_from_slice(&Trailer { footer_offset, body_bytes, footer_digest }.encode());
        let granules = |kind| self.frames.iter().filter(|f| f.kind == kind).map(|f| f.run.count).sum();
        let summary = PartSummary {
            bytes: self.produced(),
            footer_digest,
            data_granules: granules(RunKind::Data),
            zero_granules: granules(RunKind::Zero),
            unreadable_granules: granules(RunKind::Unreadable),
        };
        assert!(summary.bytes <= PART_BYTES_MAX, "room was checked before every push");
        (self.out, summary, self.encoder)
    }

    fn produced(&self) -> u64 {
        self.taken + self.out.len() as u64
    }

    fn body_bytes(&self, more_frames: u64, more_granules: u64) -> usize {
        let frames = self.frames.len() + more_frames as usize;
        let granules = self.digests.len() + more_granules as usize;
        HEADER_BYTES + frames * ENTRY_BYTES + granules * DIGEST_BYTES
    }

    /// Whether so many more frames with so much data fit, with what is pending and the end of the part.
    fn fits(&self, frames: u64, granules: u64, bytes: u64) -> bool {
        if granules > DATA_GRANULES_MAX as u64 || frames > FRAMES_MAX as u64 {
            return false;
        }
        let frames = frames + u64::from(self.pending.count > 0);
        let granules = granules + self.pending.count;
        let body = self.body_bytes(frames, granules) as u64;
        // One head more: that of a zero run which is not written yet.
        let payload = bytes + self.pending.content.len() as u64 + (frames + 1) * FRAME_HEAD_BYTES as u64;
        self.frames.len() as u64 + frames <= FRAMES_MAX as u64
            && self.digests.len() as u64 + granules <= DATA_GRANULES_MAX as u64
            && self.produced() + payload + body + (FRAME_HEAD_BYTES + TRAILER_BYTES) as u64 <= PART_BYTES_MAX
    }

    fn content_run(&self, start: GranuleIndex, content: &[u8]) -> Result<GranuleRun, PushError> {
        let count = (content.len() as u64).div_ceil(self.id.geometry.granule_bytes());
        let run = self.checked_run(start, count)?;
        if self.id.geometry.bytes_of(run).len != content.len() as u64 {
            return Err(PushError::Length { start, bytes: content.len() });
        }
        Ok(run)
    }

    fn checked_run(&self, start: GranuleIndex, count: u64) -> Result<GranuleRun, PushError> {
        let inside = start.0.checked_add(count).is_some_and(|end| end <= self.id.geometry.granule_count());
        if count == 0 || !inside { Err(PushError::Beyond { start, count }) } else { Ok(GranuleRun { start, count }) }
    }

    fn check_order(&self, run: GranuleRun) -> Result<(), PushError> {
        if run.start.0 < self.next { Err(PushError::Order { run, next: GranuleIndex(self.next) }) } else { Ok(()) }
    }

    fn push_run(&mut self, kind: RunKind, run: GranuleRun) -> Result<(), PushError> {
        let run = self.checked_run(run.start, run.count)?;
        self.check_order(run)?;
        if !self.fits(1, 0, 0) {
            return Err(PushError::Full);
        }
        self.append_run(kind, run);
        Ok(())
    }

    /// Runs without a payload. One that ends the table is held back, without an offset and with its head not written, so that
    /// the next can join it; whatever else follows writes it first.
    fn append_run(&mut self, kind: RunKind, run: GranuleRun) {
        self.flush_data();
        self.next = run.end().0;
        if let Some(last) = self.frames.last_mut()
            && last.kind == kind
            && last.run.end() == run.start
        {
            last.run.count += run.count;
            return;
        }
        self.flush_held();
        self.frames.push(FrameRef { run, kind, codec: Codec::Raw, offset: HELD, stored_bytes: 0, crc: 0, first_digest: 0 });
    }

    fn append_data(&mut self, run: GranuleRun, content: &[u8]) {
        self.flush_held();
        if self.pending.start + self.pending.count != run.start.0 {
            self.flush_data();
        }
        self.next = run.end().0;
        let granule_bytes = self.id.geometry.granule_bytes();
        let (mut at, mut rest) = (run.start.0, content);
        while !rest.is_empty() {
            let boundary = (at / self.frame_granules + 1) * self.frame_granules;
            let bytes = rest.len().min(((boundary - at) * granule_bytes) as usize);
            let (now, later) = rest.split_at(bytes);
            let count = (bytes as u64).div_ceil(granule_bytes);
            let whole = at + count == boundary;
            if whole && self.pending.count == 0 {
                self.encode_frame(at, count, now);
            } else {
                if self.pending.count == 0 {
                    self.pending.start = at;
                }
                self.pending.count += count;
                self.pending.content.extend_from_slice(now);
                if whole {
                    self.flush_data();
                }
            }
            at += count;
            rest = later;
        }
    }

    fn flush_pending(&mut self) {
        self.flush_data();
        self.flush_held();
    }

    fn flush_data(&mut self) {
        if self.pending.count > 0 {
            let mut pending = std::mem::take(&mut self.pending);
            self.encode_frame(pending.start, pending.count, &pending.content);
            pending.content.clear();
            self.pending.content = pending.content;
        }
    }

    fn flush_held(&mut self) {
        let offset = self.payload_offset();
        if let Some(last) = self.frames.last_mut().filter(|f| f.offset == HELD) {
            last.offset = offset;
            self.out.extend_from_slice(&last.encode_head());
        }
    }

    fn payload_offset(&self) -> u32 {
        u32::try_from(self.produced() + FRAME_HEAD_BYTES as u64).expect("a part is shorter than 4 GiB")
    }

    fn encode_frame(&mut self, start: u64, count: u64, content: &[u8]) {
        let offset = self.payload_offset();
        let first_digest = self.digests.len() as u32;
        let granule_bytes = self.id.geometry.granule_bytes() as usize;
        for (i, granule) in content.chunks(granule_bytes).enumerate() {
            self.digests.push(granule_digest(&self.digest_key, GranuleIndex(start + i as u64), granule));
        }
        let head_at = self.out.len();
        self.out.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
        let codec = self.encoder.append(content, &mut self.out);
        let payload = &self.out[head_at + FRAME_HEAD_BYTES..];
        let frame = FrameRef {
            run: GranuleRun { start: GranuleIndex(start), count },
            kind: RunKind::Data,
            codec,
            offset,
            stored_bytes: payload.len() as u32,
            crc: crc32c::crc32c(payload),
            first_digest,
        };
        self.out[head_at..head_at + FRAME_HEAD_BYTES].copy_from_slice(&frame.encode_head());
        self.frames.push(frame);
    }
}

/// The offset of a frame whose head is not written yet.
const HELD: u32 = 0;
