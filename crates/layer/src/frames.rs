//! From runs of granules to frames: the work of a part that needs no part, so that several threads can do it for one.
//!
//! Digests are computed over the content as it is handed in, before anything else touches it. Adjacent data joins one frame; a
//! full frame's worth is encoded straight from the caller's buffer. What is encrypted was compressed before.

use std::fmt;

use farside_keys::{ContentKeys, FRAME_OVERHEAD_BYTES, FRAME_SALT_BYTES, STORED_DIGEST_BYTES, Sealer, stored_digest};
use farside_region::{Geometry, GranuleDigest, GranuleIndex, GranuleRun};
use thiserror::Error;

use crate::digest::granule_digest;
use crate::format::{Codec, FRAME_HEAD_BYTES, RunKind, frame_granules, frame_head};
use crate::zero::split_zero;

/// How data frames are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw.
    Off,
    /// By zstd of this level, and raw where that does not help.
    Zstd(i32),
}

/// The compressor, and what encryption draws salts from: made once, it goes from part to part.
pub struct Encoder {
    zstd: Option<zstd::bulk::Compressor<'static>>,
    compression: Compression,
    sealer: Option<Sealer>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Encoder").field(&self.compression).finish()
    }
}

impl Encoder {
    /// A compressor. A level beyond zstd's range becomes its nearest.
    pub fn new(compression: Compression) -> Self {
        Self { zstd: Self::compressor(compression), compression, sealer: None }
    }

    /// The same, also for encrypted volumes.
    #[must_use]
    pub fn sealing(self, sealer: Sealer) -> Self {
        Self { sealer: Some(sealer), ..self }
    }

    fn compressor(compression: Compression) -> Option<zstd::bulk::Compressor<'static>> {
        match compression {
            Compression::Off => None,
            Compression::Zstd(level) => {
                let range = zstd::compression_level_range();
                let level = level.clamp(*range.start(), *range.end());
                Some(zstd::bulk::Compressor::new(level).expect("zstd takes every level of its own range"))
            }
        }
    }

    /// From now on so. Made anew for that: a compressor whose output once did not fit takes no other level.
    pub fn set(&mut self, compression: Compression) {
        if self.compression != compression {
            (self.zstd, self.compression) = (Self::compressor(compression), compression);
        }
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

/// Frames that were made, in order, and not put into a part yet.
#[derive(Default)]
pub struct Frames {
    pub(crate) pieces: Vec<Piece>,
    /// Heads and payloads of the data frames, one after the other.
    pub(crate) bytes: Vec<u8>,
    pub(crate) digests: Vec<GranuleDigest>,
    /// Of the payloads as they are stored, where they are encrypted.
    pub(crate) stored_digests: Vec<[u8; STORED_DIGEST_BYTES]>,
    /// Whether they are.
    pub(crate) sealed: bool,
}

/// One frame, or one run without a payload.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) run: GranuleRun,
    pub(crate) kind: RunKind,
    pub(crate) codec: Codec,
    pub(crate) stored_bytes: u32,
    pub(crate) crc: u32,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("pieces", &self.pieces.len()).field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Frames {
    /// Bytes of payload: of what has to be stored, the heads aside.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.pieces.iter().map(|p| u64::from(p.stored_bytes)).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.bytes.clear();
        self.digests.clear();
        self.stored_digests.clear();
    }
}

/// Makes frames of runs that ascend.
pub struct FrameEncoder {
    geometry: Geometry,
    keys: ContentKeys,
    encoder: Encoder,
    frame_granules: u64,
    next: u64,
    pending: Pending,
    made: Frames,
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameEncoder").field("next", &self.next).field("made", &self.made).finish_non_exhaustive()
    }
}

impl FrameEncoder {
    /// For a volume of that shape and those keys. `content_bytes`: about how much is coming, at once.
    ///
    /// # Panics
    /// When the volume is encrypted, and its keys are not here or the encoder was not made for that: see [`Encoder::sealing`].
    pub fn new(geometry: Geometry, keys: impl Into<ContentKeys>, encoder: Encoder, content_bytes: usize) -> Self {
        let keys = keys.into();
        assert!(!matches!(keys, ContentKeys::Opaque), "who writes a volume's content has its keys");
        assert!(!keys.is_sealed() || encoder.sealer.is_some(), "salts are drawn from somewhere");
        let mut made = Frames { sealed: keys.is_sealed(), ..Frames::default() };
        made.bytes.reserve(content_bytes);
        Self { geometry, keys, encoder, frame_granules: frame_granules(&geometry), next: 0, pending: Pending::default(), made }
    }

    /// Appends content as it was read: granules of zeroes become zero runs, the rest data.
    ///
    /// # Errors
    /// See [`PushError`]; never [`PushError::Full`].
    pub fn push_read(&mut self, start: GranuleIndex, content: &[u8]) -> Result<(), PushError> {
        let run = self.content_run(start, content)?;
        self.check_order(run)?;
        self.append_read(start, content);
        Ok(())
    }

    /// Appends a run of zeroes of any length.
    ///
    /// # Errors
    /// See [`PushError`]; never [`PushError::Full`].
    pub fn push_zero(&mut self, run: GranuleRun) -> Result<(), PushError> {
        self.push_run(RunKind::Zero, run)
    }

    /// Appends a run that the backing device could not read.
    ///
    /// # Errors
    /// See [`PushError`]; never [`PushError::Full`].
    pub fn push_unreadable(&mut self, run: GranuleRun) -> Result<(), PushError> {
        self.push_run(RunKind::Unreadable, run)
    }

    /// The frames, for [`PartAssembler::append`](crate::PartAssembler::append), and the compressor for the next ones.
    pub fn finish(mut self) -> (Frames, Encoder) {
        self.flush();
        self.made.bytes.shrink_to_fit(); // it may wait for its turn
        (self.made, self.encoder)
    }

    fn push_run(&mut self, kind: RunKind, run: GranuleRun) -> Result<(), PushError> {
        let run = self.checked_run(run.start, run.count)?;
        self.check_order(run)?;
        self.append_run(kind, run);
        Ok(())
    }

    /// The first granule that may still come.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Granules and bytes that are not made a frame yet.
    pub(crate) fn pending(&self) -> (u64, u64) {
        (self.pending.count, self.pending.content.len() as u64)
    }

    /// What was made since this was cleared.
    pub(crate) fn made(&mut self) -> &mut Frames {
        &mut self.made
    }

    pub(crate) fn content_run(&self, start: GranuleIndex, content: &[u8]) -> Result<GranuleRun, PushError> {
        let count = (content.len() as u64).div_ceil(self.geometry.granule_bytes());
        let run = self.checked_run(start, count)?;
        if self.geometry.bytes_of(run).len != content.len() as u64 {
            return Err(PushError::Length { start, bytes: content.len() });
        }
        Ok(run)
    }

    pub(crate) fn checked_run(&self, start: GranuleIndex, count: u64) -> Result<GranuleRun, PushError> {
        let inside = start.0.checked_add(count).is_some_and(|end| end <= self.geometry.granule_count());
        if count == 0 || !inside { Err(PushError::Beyond { start, count }) } else { Ok(GranuleRun { start, count }) }
    }

    pub(crate) fn check_order(&self, run: GranuleRun) -> Result<(), PushError> {
        if run.start.0 < self.next { Err(PushError::Order { run, next: GranuleIndex(self.next) }) } else { Ok(()) }
    }

    /// The longest runs of data or zeroes in content as it was read, and their bytes.
    pub(crate) fn split<'c>(
        &self,
        start: GranuleIndex,
        content: &'c [u8],
    ) -> impl Iterator<Item = (GranuleRun, Option<&'c [u8]>)> + use<'c> {
        let granule_bytes = self.geometry.granule_bytes() as usize;
        split_zero(content, granule_bytes).map(move |(granules, zero)| {
            let run = GranuleRun { start: GranuleIndex(start.0 + granules.start as u64), count: granules.len() as u64 };
            let data = &content[granules.start * granule_bytes..content.len().min(granules.end * granule_bytes)];
            (run, (!zero).then_some(data))
        })
    }

    pub(crate) fn append_read(&mut self, start: GranuleIndex, content: &[u8]) {
        for (run, data) in self.split(start, content) {
            match data {
                Some(data) => self.append_data(run, data),
                None => self.append_run(RunKind::Zero, run),
            }
        }
    }

    pub(crate) fn append_run(&mut self, kind: RunKind, run: GranuleRun) {
        self.flush();
        self.next = run.end().0;
        self.made.pieces.push(Piece { run, kind, codec: Codec::Raw, stored_bytes: 0, crc: 0 });
    }

    pub(crate) fn append_data(&mut self, run: GranuleRun, content: &[u8]) {
        if self.pending.start + self.pending.count != run.start.0 {
            self.flush();
        }
        self.next = run.end().0;
        let granule_bytes = self.geometry.granule_bytes();
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
                    self.flush();
                }
            }
            at += count;
            rest = later;
        }
    }

    /// Makes a frame of what is pending.
    pub(crate) fn flush(&mut self) {
        if self.pending.count > 0 {
            let mut pending = std::mem::take(&mut self.pending);
            self.encode_frame(pending.start, pending.count, &pending.content);
            pending.content.clear();
            self.pending.content = pending.content;
        }
    }

    fn encode_frame(&mut self, start: u64, count: u64, content: &[u8]) {
        let granule_bytes = self.geometry.granule_bytes() as usize;
        let digest_key = self.keys.digest_key().expect("looked at when this was made");
        let first_digest = self.made.digests.len();
        for (i, granule) in content.chunks(granule_bytes).enumerate() {
            self.made.digests.push(granule_digest(digest_key, GranuleIndex(start + i as u64), granule));
        }
        let digests = &self.made.digests[first_digest..];
        let bytes = &mut self.made.bytes;
        let head_at = bytes.len();
        bytes.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
        let payload_at = bytes.len();
        let codec = if let ContentKeys::Sealed(keys) = &self.keys {
            bytes.extend_from_slice(&[0; FRAME_SALT_BYTES]);
            let codec = self.encoder.append(content, bytes);
            let stored_bytes = (bytes.len() - payload_at - FRAME_SALT_BYTES + FRAME_OVERHEAD_BYTES) as u32;
            let head = frame_head(RunKind::Data.to_byte(), codec.to_byte(), stored_bytes, start, count, 0);
            let bound = head.first_chunk().expect("a head is longer");
            keys.seal(self.encoder.sealer.as_mut().expect("looked at when this was made"), bound, digests, bytes, payload_at);
            self.made.stored_digests.push(stored_digest(&bytes[payload_at..]));
            codec
        } else {
            self.encoder.append(content, bytes)
        };
        let payload = &bytes[payload_at..];
        let (stored_bytes, crc) = (payload.len() as u32, crc32c::crc32c(payload));
        let head = frame_head(RunKind::Data.to_byte(), codec.to_byte(), stored_bytes, start, count, crc);
        bytes[head_at..head_at + FRAME_HEAD_BYTES].copy_from_slice(&head);
        let run = GranuleRun { start: GranuleIndex(start), count };
        self.made.pieces.push(Piece { run, kind: RunKind::Data, codec, stored_bytes, crc });
    }
}
