//! Checks a part as its bytes arrive, in pieces of any size: every byte of it, with memory for one frame and little more.
//!
//! The verifier computes the footer from what it sees and holds the received one against it as that comes, so content, frame table and
//! digests cannot disagree. It keeps neither table nor digests, which are 3 MiB of the parts of many frames, one such part for each
//! source that catches up with scattered writes: a hash of each says whether the two are the same, and four bytes of each digest
//! which granule is not.
//!
//! Of an encrypted part whose keys are elsewhere it checks all but that the granule digests are those of the content: what is stored has
//! digests of its own.

use std::fmt;

use farside_keys::{ContentKeys, STORED_DIGEST_BYTES, stored_digest};
use farside_region::{GranuleIndex, GranuleRun};

use crate::digest::{footer_hasher, granule_digest};
use crate::format::{
    Announced, Codec, DATA_GRANULES_MAX, DIGEST_BYTES, ENTRY_BYTES, FRAME_GRANULES_MAX, FRAME_HEAD_BYTES, FRAMES_MAX, FrameRef,
    FrameRules, HEADER_BYTES, PART_BYTES_MAX, PartError, PartId, PartSummary, RunKind, TRAILER_BYTES, Trailer, parse_frame_head,
};
use crate::reader::FrameDecoder;

/// What a [`PartVerifier`] of a real volume's part holds at most, in bytes: what [`PartVerifier::held_bytes`] says, and what it does not
/// count, the decompressor and the hashes.
pub const VERIFIER_BYTES_MAX: usize = TABLES_BYTES_MAX + 3 * FRAME_BYTES_MAX + (256 << 10);
const TABLES_BYTES_MAX: usize = FRAMES_MAX * (size_of::<PackedRun>() + HEAD_BYTES) + DATA_GRANULES_MAX * HEAD_BYTES;
/// One frame as it is stored, opened, and unpacked.
const FRAME_BYTES_MAX: usize = (256 << 10) + 64;

/// Of each digest this much is kept, to say which one it was that the footer lists otherwise.
const HEAD_BYTES: usize = 4;

/// What the next bytes are.
#[derive(Clone, Copy)]
enum Stage {
    Header,
    FrameHead,
    Payload(FrameRef),
    Footer { crc: u32 },
    Trailer { footer_offset: u64, body_bytes: u32 },
    End,
    Failed,
}

/// Takes the bytes of one part in order, and says what is wrong as soon as it can be known.
pub struct PartVerifier {
    expected: PartId,
    decoder: FrameDecoder,
    rules: FrameRules,
    stage: Stage,
    /// Bytes of the present structure that came in earlier calls.
    partial: Vec<u8>,
    content: Vec<u8>,
    frames: Listed,
    digests: Listed,
    stored_digests: Listed,
    /// Of each data frame.
    runs: Vec<PackedRun>,
    body: Body,
    /// What it comes to, as far as it came.
    summary: PartSummary,
    /// Where the present structure begins.
    at: u64,
}

/// The granules of a data frame, as start (of at most 2^40, see [`farside_region::Geometry`]) and number (at most [`FRAME_GRANULES_MAX`]).
#[derive(Clone, Copy)]
struct PackedRun(u64);

impl PackedRun {
    const COUNT_BITS: u32 = FRAME_GRANULES_MAX.ilog2() + 1;

    fn of(run: GranuleRun) -> Self {
        Self(run.start.0 << Self::COUNT_BITS | run.count)
    }

    fn run(self) -> GranuleRun {
        GranuleRun { start: GranuleIndex(self.0 >> Self::COUNT_BITS), count: self.0 & ((1 << Self::COUNT_BITS) - 1) }
    }
}

/// A section of the footer: as it is to be, and as it comes.
#[derive(Default)]
struct Listed {
    hash: blake3::Hasher,
    count: usize,
    heads: Vec<[u8; HEAD_BYTES]>,
    received: blake3::Hasher,
    /// Of the received ones, the first whose head is not what it is to be.
    other: Option<usize>,
}

impl Listed {
    fn push(&mut self, entry: &[u8]) {
        self.hash.update(entry);
        self.count += 1;
    }

    fn push_digest(&mut self, digest: &[u8; DIGEST_BYTES]) {
        self.push(digest);
        self.heads.push(*digest.first_chunk().expect("a digest is longer than its head"));
    }

    /// Takes bytes of it as they come, which begin at this byte of the section.
    fn receive(&mut self, at: usize, bytes: &[u8]) {
        self.received.update(bytes);
        if self.heads.is_empty() || self.other.is_some() {
            return;
        }
        let is_other = |(at, byte): &(usize, &u8)| {
            at % DIGEST_BYTES < HEAD_BYTES && self.heads[at / DIGEST_BYTES][at % DIGEST_BYTES] != **byte
        };
        self.other = (at..).zip(bytes).find(is_other).map(|(at, _)| at / DIGEST_BYTES);
    }

    fn is_as_received(&self) -> bool {
        self.hash.finalize() == self.received.finalize()
    }
}

/// The footer's body as it comes.
struct Body {
    at: usize,
    bytes: usize,
    crc: u32,
    hash: blake3::Hasher,
    is_of_another: bool,
}

impl fmt::Debug for PartVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartVerifier").field("expected", &self.expected).field("at", &self.at).finish_non_exhaustive()
    }
}

impl PartVerifier {
    /// For the part that is expected, of a volume with those keys.
    pub fn new(expected: PartId, keys: impl Into<ContentKeys>) -> Self {
        let keys = keys.into();
        Self {
            expected,
            rules: FrameRules::new(expected.geometry, keys.is_sealed()),
            decoder: FrameDecoder::new(keys),
            stage: Stage::Header,
            partial: Vec::new(),
            content: Vec::new(),
            frames: Listed::default(),
            digests: Listed::default(),
            stored_digests: Listed::default(),
            runs: Vec::new(),
            body: Body { at: 0, bytes: 0, crc: 0, hash: footer_hasher(), is_of_another: false },
            summary: PartSummary { bytes: 0, footer_digest: [0; 32], data_granules: 0, zero_granules: 0, unreadable_granules: 0 },
            at: 0,
        }
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.at + self.partial.len() as u64
    }

    /// Memory that it holds now, in bytes: one unfinished structure, and what the footer will be held against. Less than
    /// [`VERIFIER_BYTES_MAX`].
    pub fn held_bytes(&self) -> usize {
        let heads = self.digests.heads.capacity() + self.stored_digests.heads.capacity();
        let tables = heads * HEAD_BYTES + self.runs.capacity() * size_of::<PackedRun>();
        tables + self.partial.capacity() + self.content.capacity() + self.decoder.held_bytes()
    }

    /// Takes the next bytes, any number of them.
    ///
    /// # Errors
    /// What is wrong, and in which region; every later call fails, too.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), PartError> {
        while !bytes.is_empty() {
            let need = self.need()?;
            let now;
            if matches!(self.stage, Stage::Footer { .. }) {
                // As it comes: it can be as long as some frames.
                (now, bytes) = bytes.split_at(bytes.len().min(need));
                self.step(now)?;
            } else if self.partial.is_empty() && bytes.len() >= need {
                (now, bytes) = bytes.split_at(need);
                self.step(now)?;
            } else {
                (now, bytes) = bytes.split_at(bytes.len().min(need - self.partial.len()));
                self.partial.reserve_exact(need - self.partial.len());
                self.partial.extend_from_slice(now);
                if self.partial.len() == need {
                    let mut whole = std::mem::take(&mut self.partial);
                    self.step(&whole)?;
                    whole.clear();
                    self.partial = whole;
                }
            }
        }
        Ok(())
    }

    /// Says that no more bytes come: what the part amounts to.
    ///
    /// # Errors
    /// When the part is not complete, or was found damaged.
    pub fn finish(self) -> Result<PartSummary, PartError> {
        match self.stage {
            Stage::End => Ok(PartSummary { bytes: self.at, ..self.summary }),
            Stage::Failed => Err(PartError::Failed),
            _ => Err(PartError::Truncated(self.bytes())),
        }
    }

    /// Bytes of the present structure, or what is left of it.
    fn need(&self) -> Result<usize, PartError> {
        match &self.stage {
            Stage::Header => Ok(HEADER_BYTES),
            Stage::FrameHead => Ok(FRAME_HEAD_BYTES),
            Stage::Payload(frame) => Ok(frame.stored_bytes as usize),
            Stage::Footer { .. } => Ok(self.body.bytes - self.body.at),
            Stage::Trailer { .. } => Ok(TRAILER_BYTES),
            Stage::End => Err(PartError::TooLong(self.at)),
            Stage::Failed => Err(PartError::Failed),
        }
    }

    fn step(&mut self, bytes: &[u8]) -> Result<(), PartError> {
        match self.check(bytes) {
            Ok(next) => {
                self.at += bytes.len() as u64;
                self.stage = next;
                Ok(())
            }
            Err(error) => {
                self.stage = Stage::Failed;
                Err(error)
            }
        }
    }

    fn check(&mut self, bytes: &[u8]) -> Result<Stage, PartError> {
        match self.stage {
            Stage::Header => self.check_header(bytes),
            Stage::FrameHead => self.check_frame_head(bytes),
            Stage::Payload(frame) => self.check_payload(&frame, bytes),
            Stage::Footer { crc } => self.check_footer(bytes, crc),
            Stage::Trailer { footer_offset, body_bytes } => {
                let trailer = Trailer::decode(bytes, self.at + TRAILER_BYTES as u64)?;
                if trailer != (Trailer { footer_offset, body_bytes, footer_digest: self.summary.footer_digest }) {
                    return Err(PartError::Trailer);
                }
                Ok(Stage::End)
            }
            Stage::End | Stage::Failed => unreachable!("need() refuses these stages"),
        }
    }

    fn check_header(&mut self, bytes: &[u8]) -> Result<Stage, PartError> {
        let (found, sealed) = PartId::decode(bytes)?;
        if found != self.expected {
            return Err(PartError::WrongPart { expected: Box::new(self.expected), found: Box::new(found) });
        }
        if sealed != self.decoder.keys().is_sealed() {
            return Err(PartError::Sealed { found: sealed });
        }
        Ok(Stage::FrameHead)
    }

    fn check_frame_head(&mut self, bytes: &[u8]) -> Result<Stage, PartError> {
        match parse_frame_head(bytes, self.at)? {
            Announced::Frame(mut frame) => {
                self.rules.accept(&mut frame)?;
                self.frames.push(&frame.encode_entry());
                let summary = &mut self.summary;
                let granules = match frame.kind {
                    RunKind::Data => &mut summary.data_granules,
                    RunKind::Zero => &mut summary.zero_granules,
                    RunKind::Unreadable => &mut summary.unreadable_granules,
                };
                *granules += frame.run.count;
                Ok(if frame.stored_bytes > 0 { Stage::Payload(frame) } else { Stage::FrameHead })
            }
            Announced::Footer { body_bytes, frames, crc } => {
                self.body.bytes = self.body_bytes();
                if frames != self.frames.count as u64 || body_bytes as usize != self.body.bytes {
                    return Err(PartError::Footer("it does not fit the frames before it"));
                }
                let end = self.at + (FRAME_HEAD_BYTES + self.body.bytes + TRAILER_BYTES) as u64;
                if end > PART_BYTES_MAX {
                    return Err(PartError::TooLong(PART_BYTES_MAX));
                }
                Ok(Stage::Footer { crc })
            }
        }
    }

    fn body_bytes(&self) -> usize {
        let digests = self.rules.data_granules() * DIGEST_BYTES + self.stored_digests.count * STORED_DIGEST_BYTES;
        HEADER_BYTES + self.frames.count * ENTRY_BYTES + digests
    }

    fn check_payload(&mut self, frame: &FrameRef, bytes: &[u8]) -> Result<Stage, PartError> {
        let sealed = self.decoder.keys().is_sealed();
        self.runs.push(PackedRun::of(frame.run));
        if sealed {
            frame.check_stored(&self.expected, bytes)?;
            self.stored_digests.push_digest(&stored_digest(bytes));
        }
        if matches!(self.decoder.keys(), ContentKeys::Opaque) {
            return Ok(Stage::FrameHead);
        }
        let unpacked = match frame.codec {
            // Checked where it lies, not copied.
            Codec::Raw if !sealed && crc32c::crc32c(bytes) == frame.crc => bytes,
            Codec::Raw | Codec::Zstd => {
                let content_bytes = frame.content_bytes(&self.expected.geometry);
                self.content.reserve_exact(content_bytes.saturating_sub(self.content.len()));
                self.content.resize(content_bytes, 0);
                self.decoder.unpack(&self.expected, frame, bytes, &mut self.content, sealed)?;
                &self.content
            }
        };
        let digest_key = self.decoder.keys().digest_key().expect("they are here");
        for (granule, content) in (frame.run.start.0..).zip(unpacked.chunks(self.expected.geometry.granule_bytes() as usize)) {
            self.digests.push_digest(&granule_digest(digest_key, GranuleIndex(granule), content).0);
        }
        Ok(Stage::FrameHead)
    }

    fn check_footer(&mut self, bytes: &[u8], crc: u32) -> Result<Stage, PartError> {
        let body = &mut self.body;
        body.crc = crc32c::crc32c_append(body.crc, bytes);
        body.hash.update(bytes);
        let header = self.expected.encode(self.decoder.keys().is_sealed());
        let digests_at = HEADER_BYTES + self.frames.count * ENTRY_BYTES;
        let stored_at = digests_at + self.rules.data_granules() * DIGEST_BYTES;
        let (from, to) = (body.at, body.at + bytes.len());
        body.at = to;
        // What of it lies in a section: where that is in the section, and its bytes.
        let within = |start: usize, end: usize| {
            let (first, last) = (from.clamp(start, end), to.clamp(start, end));
            (first - start, &bytes[first.clamp(from, to) - from..last.clamp(from, to) - from])
        };
        let (at, part) = within(0, HEADER_BYTES);
        body.is_of_another |= header[at..at + part.len()] != *part;
        let (at, part) = within(HEADER_BYTES, digests_at);
        self.frames.receive(at, part);
        let (at, part) = within(digests_at, stored_at);
        self.digests.receive(at, part);
        let (at, part) = within(stored_at, body.bytes);
        self.stored_digests.receive(at, part);
        match to == body.bytes {
            true => self.end_footer(crc, self.at - from as u64 - FRAME_HEAD_BYTES as u64),
            false => Ok(Stage::Footer { crc }),
        }
    }

    /// All of the footer is here. Its checksum comes first: what else is wrong with a damaged one says nothing.
    fn end_footer(&mut self, crc: u32, footer_offset: u64) -> Result<Stage, PartError> {
        if self.body.crc != crc {
            return Err(PartError::Footer("its checksum does not match"));
        }
        if self.body.is_of_another {
            return Err(PartError::Footer("it repeats another header"));
        }
        if !self.frames.is_as_received() {
            return Err(PartError::Footer("it lists other frames than there are"));
        }
        if !self.stored_digests.is_as_received() {
            let Some(i) = self.stored_digests.other else {
                return Err(PartError::Footer("it lists other digests of what is stored"));
            };
            let run = self.runs[i].run();
            return Err(PartError::Payload { region: self.expected.geometry.region_of(run.start), run });
        }
        // Whoever has no key cannot know what they are to be.
        if !matches!(self.decoder.keys(), ContentKeys::Opaque) && !self.digests.is_as_received() {
            let Some(i) = self.digests.other else {
                return Err(PartError::Footer("it lists other digests than its content has"));
            };
            let granule = self.granule_of_digest(i);
            return Err(PartError::Granule { region: self.expected.geometry.region_of(granule), granule });
        }
        self.summary.footer_digest = *self.body.hash.finalize().as_bytes();
        Ok(Stage::Trailer { footer_offset, body_bytes: self.body.bytes as u32 })
    }

    fn granule_of_digest(&self, mut i: usize) -> GranuleIndex {
        for run in self.runs.iter().map(|packed| packed.run()) {
            match i.checked_sub(run.count as usize) {
                Some(left) => i = left,
                None => return GranuleIndex(run.start.0 + i as u64),
            }
        }
        unreachable!("every digest came from a data frame")
    }
}
