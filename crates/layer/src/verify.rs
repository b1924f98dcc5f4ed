//! Checks a part as its bytes arrive, in pieces of any size: every byte of it, with memory for one frame and the footer.
//!
//! The verifier computes the footer from what it sees and holds the received one against it, so content, frame table and
//! digests cannot disagree. Of an encrypted part whose keys are elsewhere it checks all but that the granule digests are those of the
//! content: what is stored has digests of its own.

use std::fmt;

use farside_keys::{ContentKeys, STORED_DIGEST_BYTES, stored_digest};
use farside_region::{GranuleDigest, GranuleIndex};

use crate::digest::{footer_digest, granule_digest};
use crate::format::{
    Announced, Codec, DIGEST_BYTES, ENTRY_BYTES, FRAME_HEAD_BYTES, FrameRef, FrameRules, HEADER_BYTES, PART_BYTES_MAX, PartError,
    PartId, TRAILER_BYTES, Trailer, parse_frame_head,
};
use crate::reader::{Footer, FrameDecoder};

/// What the next bytes are.
#[derive(Clone, Copy)]
enum Stage {
    Header,
    FrameHead,
    Payload(FrameRef),
    Footer { body_bytes: usize, crc: u32 },
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
    frames: Vec<FrameRef>,
    digests: Vec<GranuleDigest>,
    stored_digests: Vec<[u8; STORED_DIGEST_BYTES]>,
    digest: [u8; 32],
    /// Where the present structure begins.
    at: u64,
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
            frames: Vec::new(),
            digests: Vec::new(),
            stored_digests: Vec::new(),
            digest: [0; 32],
            at: 0,
        }
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.at + self.partial.len() as u64
    }

    /// Memory that it holds now, in bytes: one unfinished structure, and what the footer will be held against.
    pub fn held_bytes(&self) -> usize {
        let tables = self.frames.capacity() * size_of::<FrameRef>() + self.digests.capacity() * DIGEST_BYTES;
        let tables = tables + self.stored_digests.capacity() * STORED_DIGEST_BYTES;
        tables + self.partial.capacity() + self.content.capacity()
    }

    /// Takes the next bytes, any number of them.
    ///
    /// # Errors
    /// What is wrong, and in which region; every later call fails, too.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), PartError> {
        while !bytes.is_empty() {
            let need = self.need()?;
            if self.partial.is_empty() && bytes.len() >= need {
                let (now, later) = bytes.split_at(need);
                bytes = later;
                self.step(now)?;
            } else {
                let (now, later) = bytes.split_at(bytes.len().min(need - self.partial.len()));
                bytes = later;
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

    /// Says that no more bytes come: the verified footer.
    ///
    /// # Errors
    /// When the part is not complete, or was found damaged.
    pub fn finish(self) -> Result<Footer, PartError> {
        match self.stage {
            Stage::End => {
                let (sealed, digests) = (self.decoder.keys().is_sealed(), (self.digests, self.stored_digests));
                Ok(Footer::assemble(self.expected, sealed, self.frames, digests, self.digest, self.at))
            }
            Stage::Failed => Err(PartError::Failed),
            _ => Err(PartError::Truncated(self.bytes())),
        }
    }

    fn need(&self) -> Result<usize, PartError> {
        match &self.stage {
            Stage::Header => Ok(HEADER_BYTES),
            Stage::FrameHead => Ok(FRAME_HEAD_BYTES),
            Stage::Payload(frame) => Ok(frame.stored_bytes as usize),
            Stage::Footer { body_bytes, .. } => Ok(*body_bytes),
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
            Stage::Footer { body_bytes, crc } => self.check_footer(bytes, body_bytes, crc),
            Stage::Trailer { footer_offset, body_bytes } => {
                let trailer = Trailer::decode(bytes, self.at + TRAILER_BYTES as u64)?;
                if trailer != (Trailer { footer_offset, body_bytes, footer_digest: self.digest }) {
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
                self.frames.push(frame);
                Ok(if frame.stored_bytes > 0 { Stage::Payload(frame) } else { Stage::FrameHead })
            }
            Announced::Footer { body_bytes, frames, crc } => {
                if frames != self.frames.len() as u64 || body_bytes as usize != self.body_bytes() {
                    return Err(PartError::Footer("it does not fit the frames before it"));
                }
                let end = self.at + (FRAME_HEAD_BYTES + self.body_bytes() + TRAILER_BYTES) as u64;
                if end > PART_BYTES_MAX {
                    return Err(PartError::TooLong(PART_BYTES_MAX));
                }
                Ok(Stage::Footer { body_bytes: body_bytes as usize, crc })
            }
        }
    }

    fn body_bytes(&self) -> usize {
        let digests = self.rules.data_granules() * DIGEST_BYTES + self.stored_digests.len() * STORED_DIGEST_BYTES;
        HEADER_BYTES + self.frames.len() * ENTRY_BYTES + digests
    }

    fn check_payload(&mut self, frame: &FrameRef, bytes: &[u8]) -> Result<Stage, PartError> {
        let sealed = self.decoder.keys().is_sealed();
        if sealed {
            frame.check_stored(&self.expected, bytes)?;
            self.stored_digests.push(stored_digest(bytes));
        }
        if matches!(self.decoder.keys(), ContentKeys::Opaque) {
            return Ok(Stage::FrameHead);
        }
        let unpacked = match frame.codec {
            // Checked where it lies, not copied.
            Codec::Raw if !sealed && crc32c::crc32c(bytes) == frame.crc => bytes,
            Codec::Raw | Codec::Zstd => {
                self.content.resize(frame.content_bytes(&self.expected.geometry), 0);
                self.decoder.unpack(&self.expected, frame, bytes, &mut self.content, sealed)?;
                &self.content
            }
        };
        let digest_key = self.decoder.keys().digest_key().expect("they are here");
        for (granule, content) in (frame.run.start.0..).zip(unpacked.chunks(self.expected.geometry.granule_bytes() as usize)) {
            self.digests.push(granule_digest(digest_key, GranuleIndex(granule), content));
        }
        Ok(Stage::FrameHead)
    }

    fn check_footer(&mut self, bytes: &[u8], body_bytes: usize, crc: u32) -> Result<Stage, PartError> {
        if crc32c::crc32c(bytes) != crc {
            return Err(PartError::Footer("its checksum does not match"));
        }
        let (header, rest) = bytes.split_at(HEADER_BYTES);
        if header != self.expected.encode(self.decoder.keys().is_sealed()) {
            return Err(PartError::Footer("it repeats another header"));
        }
        let (table, digests) = rest.split_at(self.frames.len() * ENTRY_BYTES);
        if !self.frames.iter().zip(table.chunks_exact(ENTRY_BYTES)).all(|(f, entry)| f.encode_entry() == entry) {
            return Err(PartError::Footer("it lists other frames than there are"));
        }
        let (digests, stored) = digests.split_at(self.rules.data_granules() * DIGEST_BYTES);
        let (digests, _) = digests.as_chunks::<DIGEST_BYTES>();
        let (stored, _) = stored.as_chunks::<STORED_DIGEST_BYTES>();
        if let Some(i) = self.stored_digests.iter().zip(stored).position(|(computed, listed)| computed != listed) {
            let frame = self.frames.iter().filter(|f| f.stored_bytes > 0).nth(i).expect("every digest came from a data frame");
            return Err(PartError::Payload { region: self.expected.geometry.region_of(frame.run.start), run: frame.run });
        }
        if matches!(self.decoder.keys(), ContentKeys::Opaque) {
            self.digests = digests.iter().map(|listed| GranuleDigest(*listed)).collect();
        }
        if let Some(i) = self.digests.iter().zip(digests).position(|(computed, listed)| computed.0 != *listed) {
            let granule = self.granule_of_digest(i);
            return Err(PartError::Granule { region: self.expected.geometry.region_of(granule), granule });
        }
        self.digest = footer_digest(bytes);
        Ok(Stage::Trailer { footer_offset: self.at - FRAME_HEAD_BYTES as u64, body_bytes: body_bytes as u32 })
    }

    fn granule_of_digest(&self, i: usize) -> GranuleIndex {
        let data = self.frames.iter().rev().find(|f| f.stored_bytes > 0 && f.first_digest as usize <= i);
        let frame = data.expect("every digest came from a data frame");
        GranuleIndex(frame.run.start.0 + (i - frame.first_digest as usize) as u64)
    }
}
