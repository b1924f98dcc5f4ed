//! From frames to the bytes of a part.
//!
//! Owns the frame table, the order of things and the limits of a part. Adjacent zeroes become one run, also across what was
//! encoded apart.

use std::fmt;

use farside_keys::{ContentKeys, FRAME_OVERHEAD_BYTES, STORED_DIGEST_BYTES};
use farside_region::{GranuleDigest, GranuleIndex, GranuleRun};

use crate::digest::footer_digest;
use crate::format::{
    Codec, DATA_GRANULES_MAX, DIGEST_BYTES, ENTRY_BYTES, FRAME_HEAD_BYTES, FRAMES_MAX, FrameRef, HEADER_BYTES, KIND_FOOTER,
    PART_BYTES_MAX, PartId, PartSummary, RunKind, TRAILER_BYTES, Trailer, frame_granules, frame_head,
};
use crate::frames::{Encoder, FrameEncoder, Frames, PushError};

/// Puts one part together: frames in, ascending; chunks of bytes out whenever the caller wants them; the tail at the end.
pub struct PartAssembler {
    id: PartId,
    next: u64,
    sealed: bool,
    frames: Vec<FrameRef>,
    /// Those of them with a payload.
    data_frames: u32,
    digests: Vec<GranuleDigest>,
    stored_digests: Vec<[u8; STORED_DIGEST_BYTES]>,
    out: Vec<u8>,
    taken: u64,
}

impl fmt::Debug for PartAssembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, frames, next, .. } = self;
        f.debug_struct("PartAssembler").field("id", id).field("frames", &frames.len()).field("next", next).finish_non_exhaustive()
    }
}

impl PartAssembler {
    /// Begins a part; `sealed`: of an encrypted volume.
    pub fn new(id: PartId, sealed: bool) -> Self {
        let out = id.encode(sealed).to_vec();
        Self {
            id,
            next: 0,
            sealed,
            frames: Vec::new(),
            data_frames: 0,
            digests: Vec::new(),
            stored_digests: Vec::new(),
            out,
            taken: 0,
        }
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.next == 0
    }

    /// Whether a whole region surely still fits, however data and zeroes alternate in it.
    pub fn has_room_for_region(&self) -> bool {
        let geometry = &self.id.geometry;
        // In the worst case every granule is a frame.
        self.fits(geometry.region_granules(), geometry.region_granules(), geometry.region_bytes())
    }

    /// Bytes made so far, those not yet taken included.
    pub fn produced_bytes(&self) -> u64 {
        self.taken + self.out.len() as u64
    }

    /// Appends frames that were made apart, for a volume of this shape.
    ///
    /// # Errors
    /// [`PushError::Order`], [`PushError::Full`].
    ///
    /// # Panics
    /// When these are encrypted and the part is not to be, or the other way.
    pub fn append(&mut self, mut frames: Frames) -> Result<(), PushError> {
        assert_eq!(frames.sealed, self.sealed, "a part is encrypted as its volume is");
        if let Some(first) = frames.pieces.first().filter(|p| p.run.start.0 < self.next) {
            return Err(PushError::Order { run: first.run, next: GranuleIndex(self.next) });
        }
        if !self.fits(frames.pieces.len() as u64, frames.digests.len() as u64, frames.payload_bytes()) {
            return Err(PushError::Full);
        }
        self.take_in(&mut frames);
        Ok(())
    }

    /// Bytes that [`PartAssembler::take_chunk`] would give.
    pub fn ready_bytes(&self) -> usize {
        self.out.len()
    }

    /// The bytes made since the last call, to be sent while the part grows.
    pub fn take_chunk(&mut self) -> Vec<u8> {
        self.taken += self.out.len() as u64;
        std::mem::take(&mut self.out)
    }

    /// Ends the part: the bytes not yet taken, and what it amounts to.
    pub fn finish(mut self) -> (Vec<u8>, PartSummary) {
        self.flush_held();
        let footer_offset = self.produced_bytes();
        let mut body = Vec::with_capacity(self.body_bytes(0, 0));
        body.extend_from_slice(&self.id.encode(self.sealed));
        self.frames.iter().for_each(|f| body.extend_from_slice(&f.encode_entry()));
        self.digests.iter().for_each(|d| body.extend_from_slice(&d.0));
        self.stored_digests.iter().for_each(|d| body.extend_from_slice(d));
        let (body_bytes, crc) = (body.len() as u32, crc32c::crc32c(&body));
        let footer_digest = footer_digest(&body);
        self.out.extend_from_slice(&frame_head(KIND_FOOTER, 0, body_bytes, 0, self.frames.len() as u64, crc));
        self.out.extend_from_slice(&body);
        self.out.extend_from_slice(&Trailer { footer_offset, body_bytes, footer_digest }.encode());
        let granules = |kind| self.frames.iter().filter(|f| f.kind == kind).map(|f| f.run.count).sum();
        let summary = PartSummary {
            bytes: self.produced_bytes(),
            footer_digest,
            data_granules: granules(RunKind::Data),
            zero_granules: granules(RunKind::Zero),
            unreadable_granules: granules(RunKind::Unreadable),
        };
        assert!(summary.bytes <= PART_BYTES_MAX, "room was checked before every push");
        (self.out, summary)
    }

    fn body_bytes(&self, more_frames: u64, more_granules: u64) -> usize {
        let frames = self.frames.len() + more_frames as usize;
        let granules = self.digests.len() + more_granules as usize;
        // Not every frame has a payload; of those to come it is not known.
        let payloads = if self.sealed { self.stored_digests.len() + more_frames as usize } else { 0 };
        HEADER_BYTES + frames * ENTRY_BYTES + granules * DIGEST_BYTES + payloads * STORED_DIGEST_BYTES
    }

    /// Whether so many more frames with so much data fit, and then the end of the part.
    fn fits(&self, frames: u64, granules: u64, bytes: u64) -> bool {
        if granules > DATA_GRANULES_MAX as u64 || frames > FRAMES_MAX as u64 || bytes > PART_BYTES_MAX {
            return false;
        }
        let body = self.body_bytes(frames, granules) as u64;
        // One head more: that of a zero run which is not written yet.
        let heads = (frames + 1) * FRAME_HEAD_BYTES as u64;
        let overhead = if self.sealed { frames * FRAME_OVERHEAD_BYTES as u64 } else { 0 };
        let payload = bytes + heads + overhead;
        self.frames.len() as u64 + frames <= FRAMES_MAX as u64
            && self.digests.len() as u64 + granules <= DATA_GRANULES_MAX as u64
            && self.produced_bytes() + payload + body + (FRAME_HEAD_BYTES + TRAILER_BYTES) as u64 <= PART_BYTES_MAX
    }

    /// Appends frames for which there is room, and leaves none of them.
    fn take_in(&mut self, frames: &mut Frames) {
        let mut from = 0;
        let mut first_digest = self.digests.len() as u32;
        let mut data_frame = self.data_frames;
        let only_data = frames.pieces.iter().all(|p| p.kind == RunKind::Data);
        if only_data && !frames.pieces.is_empty() {
            self.flush_held();
        }
        // Most regions are data throughout, and then nothing is copied.
        let moved = only_data && self.out.is_empty();
        for piece in &frames.pieces {
            self.next = piece.run.end().0;
            if piece.kind != RunKind::Data {
                self.take_in_run(piece.kind, piece.run);
                continue;
            }
            self.flush_held();
            let before = if moved { from } else { 0 };
            let Ok(offset) = u32::try_from(self.produced_bytes() + (before + FRAME_HEAD_BYTES) as u64) else {
                unreachable!("a part is shorter than 4 GiB");
            };
            let (run, stored_bytes) = (piece.run, piece.stored_bytes);
            self.frames.push(FrameRef {
                run,
                kind: piece.kind,
                codec: piece.codec,
                offset,
                stored_bytes,
                crc: piece.crc,
                first_digest,
                data_frame,
            });
            data_frame += 1;
            first_digest += run.count as u32;
            let end = from + FRAME_HEAD_BYTES + stored_bytes as usize;
            if !moved {
                self.out.extend_from_slice(&frames.bytes[from..end]);
            }
            from = end;
        }
        if moved {
            self.out = std::mem::take(&mut frames.bytes);
        }
        self.data_frames = data_frame;
        self.digests.extend_from_slice(&frames.digests);
        self.stored_digests.extend_from_slice(&frames.stored_digests);
        frames.clear();
    }

    /// Runs without a payload. One that ends the table is held back, without an offset and with its head not written, so that
    /// the next can join it; whatever else follows writes it first.
    fn take_in_run(&mut self, kind: RunKind, run: GranuleRun) {
        if let Some(last) = self.frames.last_mut()
            && last.kind == kind
            && last.run.end() == run.start
        {
            last.run.count += run.count;
            return;
        }
        self.flush_held();
        self.frames.push(FrameRef {
            run,
            kind,
            codec: Codec::Raw,
            offset: HELD,
            stored_bytes: 0,
            crc: 0,
            first_digest: 0,
            data_frame: 0,
        });
    }

    fn flush_held(&mut self) {
        let offset = u32::try_from(self.produced_bytes() + FRAME_HEAD_BYTES as u64).expect("a part is shorter than 4 GiB");
        if let Some(last) = self.frames.last_mut().filter(|f| f.offset == HELD) {
            last.offset = offset;
            self.out.extend_from_slice(&last.encode_head());
        }
    }
}

/// The offset of a frame whose head is not written yet.
const HELD: u32 = 0;

/// Writes one part from its content: runs in, ascending; chunks of bytes out whenever the caller wants them; the tail at the end.
#[derive(Debug)]
pub struct PartWriter {
    part: PartAssembler,
    encoder: FrameEncoder,
}

impl PartWriter {
    /// Begins a part.
    ///
    /// # Panics
    /// As [`FrameEncoder::new`].
    pub fn new(id: PartId, keys: impl Into<ContentKeys>, encoder: Encoder) -> Self {
        let keys = keys.into();
        Self { part: PartAssembler::new(id, keys.is_sealed()), encoder: FrameEncoder::new(id.geometry, keys, encoder, 0) }
    }

    /// Which part this is.
    pub fn id(&self) -> &PartId {
        &self.part.id
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.encoder.next() == 0
    }

    /// Whether this much data, in one run, surely still fits.
    pub fn has_room_for(&self, granules: u64) -> bool {
        let geometry = &self.part.id.geometry;
        let frames = granules.div_ceil(frame_granules(geometry)) + 1;
        self.fits(frames, granules, granules.saturating_mul(geometry.granule_bytes()))
    }

    /// Whether a whole region surely still fits, however data and zeroes alternate in it.
    pub fn has_room_for_region(&self) -> bool {
        let geometry = &self.part.id.geometry;
        self.fits(geometry.region_granules(), geometry.region_granules(), geometry.region_bytes())
    }

    /// Bytes made so far, those not yet taken included.
    pub fn produced_bytes(&self) -> u64 {
        self.part.produced_bytes() + self.encoder.pending().1
    }

    /// Appends data: content of whole granules from `start`.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push_data(&mut self, start: GranuleIndex, content: &[u8]) -> Result<(), PushError> {
        let run = self.encoder.content_run(start, content)?;
        self.encoder.check_order(run)?;
        if !self.has_room_for(run.count) {
            return Err(PushError::Full);
        }
        self.encoder.append_data(run, content);
        self.part.take_in(self.encoder.made());
        Ok(())
    }

    /// Appends content as it was read: granules of zeroes become zero runs, the rest data.
    ///
    /// # Errors
    /// See [`PushError`].
    pub fn push_read(&mut self, start: GranuleIndex, content: &[u8]) -> Result<(), PushError> {
        let run = self.encoder.content_run(start, content)?;
        self.encoder.check_order(run)?;
        let per_frame = frame_granules(&self.part.id.geometry);
        let (mut frames, mut granules, mut bytes) = (0, 0, 0);
        for (run, data) in self.encoder.split(start, content) {
            frames += data.map_or(1, |_| (run.end().0 - 1) / per_frame - run.start.0 / per_frame + 1);
            granules += data.map_or(0, |_| run.count);
            bytes += data.map_or(0, |data| data.len() as u64);
        }
        if !self.fits(frames, granules, bytes) {
            return Err(PushError::Full);
        }
        self.encoder.append_read(start, content);
        self.part.take_in(self.encoder.made());
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
        self.part.ready_bytes()
    }

    /// The bytes made since the last call, to be sent while the part grows.
    pub fn take_chunk(&mut self) -> Vec<u8> {
        self.part.take_chunk()
    }

    /// Ends the part: the bytes not yet taken, what it amounts to, and the encoder for the next one.
    pub fn finish(self) -> (Vec<u8>, PartSummary, Encoder) {
        let Self { mut part, encoder } = self;
        let (mut made, encoder) = encoder.finish();
        part.take_in(&mut made);
        let (bytes, summary) = part.finish();
        (bytes, summary, encoder)
    }

    fn push_run(&mut self, kind: RunKind, run: GranuleRun) -> Result<(), PushError> {
        let run = self.encoder.checked_run(run.start, run.count)?;
        self.encoder.check_order(run)?;
        if !self.fits(1, 0, 0) {
            return Err(PushError::Full);
        }
        self.encoder.append_run(kind, run);
        self.part.take_in(self.encoder.made());
        Ok(())
    }

    /// Whether so much more fits, with what is pending.
    fn fits(&self, frames: u64, granules: u64, bytes: u64) -> bool {
        let (waiting, waiting_bytes) = self.encoder.pending();
        let frames = frames + u64::from(waiting > 0);
        self.part.fits(frames, granules.saturating_add(waiting), bytes.saturating_add(waiting_bytes))
    }
}
