//! Random access: the footer first, then the frames one needs.

use std::fmt;

use farside_keys::{ContentKeys, STORED_DIGEST_BYTES, stored_digest};
use farside_region::{GranuleDigest, GranuleIndex, RegionSet, mutation};
use thiserror::Error;

use crate::digest::{footer_digest, granule_digest};
use crate::format::{
    Announced, Codec, DIGEST_BYTES, ENTRY_BYTES, FOOTER_BYTES_MAX, FRAME_HEAD_BYTES, FRAMES_MAX, FrameRef, FrameRules,
    HEADER_BYTES, PART_BYTES_MAX, PartError, PartId, PartSummary, RunKind, TRAILER_BYTES, Trailer, parse_frame_head,
};

/// A mistake that tests switch on.
const UNCHECKED: &str = "L4 content is not checked where it is read";

/// A part's table of contents, checked against its digest and the rules for frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    id: PartId,
    sealed: bool,
    frames: Vec<FrameRef>,
    digests: Vec<GranuleDigest>,
    stored_digests: Vec<[u8; STORED_DIGEST_BYTES]>,
    digest: [u8; 32],
    part_bytes: u64,
}

/// Why a footer could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadFooterError<E: std::error::Error + 'static> {
    /// The file could not be read.
    #[error("the part's footer cannot be read")]
    Read(#[source] E),
    /// Its bytes are wrong.
    #[error(transparent)]
    Part(#[from] PartError),
}

/// Reads the footer of a part of `part_bytes` bytes; `read_at(offset, buffer)` fills the buffer from there.
///
/// # Errors
/// What `read_at` says, or what is wrong with the bytes.
pub fn read_footer<E: std::error::Error + 'static>(
    part_bytes: u64,
    mut read_at: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Footer, ReadFooterError<E>> {
    check_part_bytes(part_bytes)?;
    let mut end = [0; TRAILER_BYTES];
    read_at(part_bytes - TRAILER_BYTES as u64, &mut end).map_err(ReadFooterError::Read)?;
    let trailer = Footer::check_trailer(&Trailer::decode(&end, part_bytes)?)?;
    let mut tail = vec![0; FRAME_HEAD_BYTES + trailer.body_bytes as usize];
    read_at(trailer.footer_offset, &mut tail).map_err(ReadFooterError::Read)?;
    Ok(Footer::parse(&tail, &trailer, part_bytes)?)
}

/// As [`read_footer`], and holds what is stored against the footer, frame by frame, by their checksums: no key is needed, and nothing is unpacked.
///
/// # Errors
/// What `read_at` says, or what is wrong with the bytes.
pub fn check_stored<E: std::error::Error + 'static>(
    part_bytes: u64,
    mut read_at: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Footer, ReadFooterError<E>> {
    let footer = read_footer(part_bytes, &mut read_at)?;
    let mut stored = Vec::new();
    for frame in &footer.frames {
        stored.resize(frame.stored_bytes as usize, 0);
        read_at(frame.offset.into(), &mut stored).map_err(ReadFooterError::Read)?;
        frame.check_stored(&footer.id, &stored)?;
    }
    Ok(footer)
}

fn check_part_bytes(part_bytes: u64) -> Result<(), PartError> {
    if part_bytes > PART_BYTES_MAX {
        return Err(PartError::TooLong(PART_BYTES_MAX));
    }
    if part_bytes < (2 * HEADER_BYTES + FRAME_HEAD_BYTES + TRAILER_BYTES) as u64 {
        return Err(PartError::Truncated(part_bytes));
    }
    Ok(())
}

impl FrameRef {
    /// Holds what is stored of it against its checksum.
    pub(crate) fn check_stored(&self, id: &PartId, stored: &[u8]) -> Result<(), PartError> {
        let torn = crc32c::crc32c(stored) != self.crc && !mutation::on(UNCHECKED);
        if stored.len() != self.stored_bytes as usize || torn {
            return Err(PartError::Payload { region: id.geometry.region_of(self.run.start), run: self.run });
        }
        Ok(())
    }
}

impl Footer {
    /// How many of a part's last bytes [`Footer::from_tail`] needs, by the last of them: at least [`TRAILER_BYTES`].
    ///
    /// # Errors
    /// What is wrong.
    pub fn tail_bytes(tail: &[u8], part_bytes: u64) -> Result<u64, PartError> {
        check_part_bytes(part_bytes)?;
        let end = tail.len().checked_sub(TRAILER_BYTES).ok_or(PartError::Truncated(part_bytes))?;
        let trailer = Self::check_trailer(&Trailer::decode(&tail[end..], part_bytes)?)?;
        Ok((FRAME_HEAD_BYTES + trailer.body_bytes as usize + TRAILER_BYTES) as u64)
    }

    /// Reads the footer from the end of a part: at least its last bytes from the footer on, see [`Footer::tail_bytes`];
    /// [`crate::TAIL_BYTES_MAX`] always suffice.
    ///
    /// # Errors
    /// What is wrong; [`PartError::Truncated`] when the tail does not reach back to the footer.
    pub fn from_tail(tail: &[u8], part_bytes: u64) -> Result<Self, PartError> {
        check_part_bytes(part_bytes)?;
        let end = tail.len().checked_sub(TRAILER_BYTES).ok_or(PartError::Truncated(part_bytes))?;
        let trailer = Self::check_trailer(&Trailer::decode(&tail[end..], part_bytes)?)?;
        let from = end.checked_sub(FRAME_HEAD_BYTES + trailer.body_bytes as usize).ok_or(PartError::Truncated(part_bytes))?;
        Self::parse(&tail[from..end], &trailer, part_bytes)
    }

    fn check_trailer(trailer: &Trailer) -> Result<Trailer, PartError> {
        let body = trailer.body_bytes as usize;
        if body > FOOTER_BYTES_MAX { Err(PartError::Limit("footer bytes")) } else { Ok(*trailer) }
    }

    fn parse(bytes: &[u8], trailer: &Trailer, part_bytes: u64) -> Result<Self, PartError> {
        let (head, body) = bytes.split_at(FRAME_HEAD_BYTES);
        let Announced::Footer { body_bytes, frames, crc } = parse_frame_head(head, trailer.footer_offset)? else {
            return Err(PartError::Footer("its head is another frame's"));
        };
        if body_bytes != trailer.body_bytes || crc32c::crc32c(body) != crc {
            return Err(PartError::Footer("its checksum does not match"));
        }
        if footer_digest(body) != trailer.footer_digest {
            return Err(PartError::Footer("its digest does not match"));
        }
        if frames > FRAMES_MAX as u64 {
            return Err(PartError::Limit("frames"));
        }
        let footer = Self::parse_body(body, frames as usize, trailer.footer_digest, part_bytes)?;
        Ok(footer)
    }

    fn parse_body(body: &[u8], frames: usize, digest: [u8; 32], part_bytes: u64) -> Result<Self, PartError> {
        let table_end = HEADER_BYTES + frames * ENTRY_BYTES;
        if body.len() < table_end {
            return Err(PartError::Footer("its length does not fit its frames"));
        }
        let (id, sealed) = PartId::decode(&body[..HEADER_BYTES])?;
        let mut rules = FrameRules::new(id.geometry, sealed);
        let mut table = Vec::with_capacity(frames);
        for entry in body[HEADER_BYTES..table_end].chunks_exact(ENTRY_BYTES) {
            let mut frame = FrameRef::decode_entry(entry).ok_or(PartError::Footer("it lists a frame of unknown kind"))?;
            rules.accept(&mut frame)?;
            table.push(frame);
        }
        let digests_end = table_end + rules.data_granules() * DIGEST_BYTES;
        if body.len() != digests_end + rules.stored_digests() * STORED_DIGEST_BYTES {
            return Err(PartError::Footer("it has not one digest per data granule"));
        }
        let (digests, _) = body[table_end..digests_end].as_chunks::<DIGEST_BYTES>();
        let (stored_digests, _) = body[digests_end..].as_chunks::<STORED_DIGEST_BYTES>();
        if rules.next_offset() + (FRAME_HEAD_BYTES + body.len() + TRAILER_BYTES) as u64 != part_bytes {
            return Err(PartError::Footer("its frames do not fill the part"));
        }
        let digests = digests.iter().map(|d| GranuleDigest(*d)).collect();
        Ok(Self { id, sealed, frames: table, digests, stored_digests: stored_digests.to_vec(), digest, part_bytes })
    }

    /// Whether its payloads are encrypted.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Which part it is of. Compare it with the part that was asked for: a footer alone cannot know.
    pub fn id(&self) -> &PartId {
        &self.id
    }

    /// The frames, ascending.
    pub fn frames(&self) -> &[FrameRef] {
        &self.frames
    }

    /// The digests of all data granules, in the order of the frames.
    pub fn digests(&self) -> &[GranuleDigest] {
        &self.digests
    }

    /// The digests of one data frame's granules; empty for other frames.
    ///
    /// # Panics
    /// When the frame is of another footer.
    pub fn digests_of(&self, frame: &FrameRef) -> &[GranuleDigest] {
        match frame.kind {
            RunKind::Data => {
                let first = frame.first_digest as usize;
                &self.digests[first..first + frame.run.count as usize]
            }
            RunKind::Zero | RunKind::Unreadable => &[],
        }
    }

    /// The frame that holds a granule.
    pub fn frame_of(&self, granule: GranuleIndex) -> Option<&FrameRef> {
        let i = self.frames.partition_point(|f| f.run.start <= granule);
        self.frames[..i].last().filter(|f| granule < f.run.end())
    }

    /// Bytes, footer digest and counts.
    pub fn summary(&self) -> PartSummary {
        let granules = |kind| self.frames.iter().filter(|f| f.kind == kind).map(|f| f.run.count).sum();
        PartSummary {
            bytes: self.part_bytes,
            footer_digest: self.digest,
            data_granules: granules(RunKind::Data),
            zero_granules: granules(RunKind::Zero),
            unreadable_granules: granules(RunKind::Unreadable),
        }
    }

    /// The regions that frames of one kind touch.
    pub fn regions(&self, kind: RunKind) -> RegionSet {
        let mut set = RegionSet::new();
        for frame in self.frames.iter().filter(|f| f.kind == kind) {
            set.insert_range(self.id.geometry.regions_of(frame.run));
        }
        set
    }
}

/// Decodes single frames, with every granule checked against its digest. Made once, used for any part of one volume.
pub struct FrameDecoder {
    keys: ContentKeys,
    /// What a payload was before it was encrypted.
    opened: Vec<u8>,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameDecoder")
    }
}

impl FrameDecoder {
    /// For the volume with those keys.
    pub fn new(keys: impl Into<ContentKeys>) -> Self {
        Self {
            keys: keys.into(),
            opened: Vec::new(),
            zstd: zstd::bulk::Decompressor::new().expect("zstd makes a context while there is memory"),
        }
    }

    /// Decodes one data frame of `footer` from its `stored_bytes` bytes at `offset`. The content replaces what `out` held.
    ///
    /// # Errors
    /// Which granules are damaged; `out` is empty then.
    ///
    /// # Panics
    /// When the frame is of another footer, or is not a data frame.
    pub fn decode(&mut self, footer: &Footer, frame: &FrameRef, stored: &[u8], out: &mut Vec<u8>) -> Result<(), PartError> {
        out.resize(frame.content_bytes(&footer.id.geometry), 0);
        let checked = self.decode_to(footer, frame, stored, out);
        if checked.is_err() {
            out.clear();
        }
        checked
    }

    /// The same, to where it belongs: as many bytes as the frame's content has.
    ///
    /// # Errors
    /// Which granules are damaged; `out` is zeroes then.
    ///
    /// # Panics
    /// As [`FrameDecoder::decode`], and when `out` is not as long as that.
    pub fn decode_to(&mut self, footer: &Footer, frame: &FrameRef, stored: &[u8], out: &mut [u8]) -> Result<(), PartError> {
        assert_eq!(frame.kind, RunKind::Data, "only data frames have content");
        let checked = self.unpack(&footer.id, frame, stored, out, footer.sealed).and_then(|()| {
            let digest_key = self.keys.digest_key().expect("what was unpacked was read");
            let digests = footer.digests_of(frame).iter();
            let content = out.chunks(footer.id.geometry.granule_bytes() as usize);
            for ((digest, granule), bytes) in digests.zip(frame.run.start.0..).zip(content) {
                let granule = GranuleIndex(granule);
                if granule_digest(digest_key, granule, bytes) != *digest && !mutation::on(UNCHECKED) {
                    return Err(PartError::Granule { region: footer.id.geometry.region_of(granule), granule });
                }
            }
            Ok(())
        });
        if checked.is_err() {
            out.fill(0); // nothing that was not checked leaves here
        }
        checked
    }

    /// Checks one data frame of `footer` as far as that can be done with the keys that are here: by decoding it; without keys, by
    /// the digest of what is stored. `out` is for what is decoded.
    ///
    /// # Errors
    /// As [`FrameDecoder::decode`].
    ///
    /// # Panics
    /// As [`FrameDecoder::decode`].
    pub fn check(&mut self, footer: &Footer, frame: &FrameRef, stored: &[u8], out: &mut Vec<u8>) -> Result<(), PartError> {
        if !(matches!(self.keys, ContentKeys::Opaque) && footer.sealed) {
            return self.decode(footer, frame, stored, out);
        }
        let (id, wanted) = (&footer.id, footer.stored_digests[frame.data_frame as usize]);
        frame.check_stored(id, stored)?;
        if stored_digest(stored) != wanted {
            return Err(PartError::Payload { region: id.geometry.region_of(frame.run.start), run: frame.run });
        }
        Ok(())
    }

    /// Checks the payload's checksum, decrypts and decompresses it into `out`, which is as long as the frame's content, without looking at
    /// digests.
    pub(crate) fn unpack(
        &mut self,
        id: &PartId,
        frame: &FrameRef,
        stored: &[u8],
        out: &mut [u8],
        sealed: bool,
    ) -> Result<(), PartError> {
        assert_eq!(out.len(), frame.content_bytes(&id.geometry), "a frame's content has its place");
        let region = id.geometry.region_of(frame.run.start);
        if sealed != self.keys.is_sealed() {
            return Err(PartError::Sealed { found: sealed });
        }
        frame.check_stored(id, stored)?;
        let payload = match &self.keys {
            ContentKeys::Clear(_) => stored,
            ContentKeys::Opaque => return Err(PartError::KeyNeeded { region, run: frame.run }),
            ContentKeys::Sealed(keys) => {
                self.opened.clear();
                self.opened.reserve_exact(stored.len());
                let opened = keys.open(&frame.bound_head(), stored, &mut self.opened);
                opened.map_err(|_| PartError::Decrypt { region, run: frame.run })?;
                &self.opened
            }
        };
        match frame.codec {
            Codec::Raw if payload.len() == out.len() => out.copy_from_slice(payload),
            Codec::Raw => return Err(PartError::Payload { region, run: frame.run }),
            Codec::Zstd => {
                if !matches!(self.zstd.decompress_to_buffer(payload, out), Ok(n) if n == out.len()) {
                    return Err(PartError::Decompress { region, run: frame.run });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn keys(&self) -> &ContentKeys {
        &self.keys
    }

    /// Memory that it holds now, beside the decompressor's, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.opened.capacity()
    }
}
