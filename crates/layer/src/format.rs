//! The fixed structures of a part and their limits. All integers are little-endian.

use farside_keys::{FRAME_OVERHEAD_BYTES, STORED_DIGEST_BYTES};
use farside_region::{Geometry, GranuleIndex, GranuleRun, LayerKey, RegionIndex, Seq, Term, VolumeId};
use thiserror::Error;

/// The largest part, with everything that belongs to it, in bytes.
pub const PART_BYTES_MAX: u64 = 64 << 20;
/// The most granules in a data frame; fewer where a region is smaller.
pub const FRAME_GRANULES_MAX: u64 = 64;
/// The most frames in a part.
pub const FRAMES_MAX: usize = 1 << 15;
/// The most data granules in a part: content that compresses well fills a part by this before it does by bytes.
pub const DATA_GRANULES_MAX: usize = 1 << 16;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 64;
/// The largest footer body.
pub const FOOTER_BYTES_MAX: usize =
    HEADER_BYTES + FRAMES_MAX * (ENTRY_BYTES + STORED_DIGEST_BYTES) + DATA_GRANULES_MAX * DIGEST_BYTES;
/// The largest end of a part from which [`crate::Footer::from_tail`] can be read.
pub const TAIL_BYTES_MAX: usize = FRAME_HEAD_BYTES + FOOTER_BYTES_MAX + TRAILER_BYTES;

pub(crate) const FRAME_HEAD_BYTES: usize = 32;
pub(crate) const ENTRY_BYTES: usize = 32;
pub(crate) const DIGEST_BYTES: usize = 16;
pub(crate) const VERSION: u16 = 1;
pub(crate) const MAGIC: [u8; 8] = *b"FSLAYPRT";
pub(crate) const END_MAGIC: [u8; 8] = *b"FSLAYEND";
/// The flag of a part whose payloads are encrypted.
pub(crate) const FLAG_SEALED: u16 = 1;
/// The frame head before the footer's body.
pub(crate) const KIND_FOOTER: u8 = 0xf0;

/// Which part of which layer, of a volume of which shape and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartId {
    /// The layer.
    pub key: LayerKey,
    /// From 0.
    pub part: u32,
    /// The volume when the epoch was frozen.
    pub geometry: Geometry,
}

/// What a run of granules is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunKind {
    /// Content follows.
    Data,
    /// Zeroes.
    Zero,
    /// The backing device could not read it.
    Unreadable,
}

impl RunKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Zero => 2,
            Self::Unreadable => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Data, Self::Zero, Self::Unreadable].into_iter().find(|k| k.to_byte() == byte)
    }
}

/// How a data frame's payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Raw, Self::Zstd].into_iter().find(|c| c.to_byte() == byte)
    }
}

/// One frame as the footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// Its granules.
    pub run: GranuleRun,
    /// What they are.
    pub kind: RunKind,
    /// How the payload is stored; [`Codec::Raw`] where there is none.
    pub codec: Codec,
    /// Where the payload begins in the part.
    pub offset: u32,
    /// Bytes of the payload; 0 unless the kind is data.
    pub stored_bytes: u32,
    /// CRC-32C of the payload.
    pub crc: u32,
    /// Index of its first granule digest in the footer, for data.
    pub first_digest: u32,
    /// Which data frame of the part it is, from 0, and so the index of its stored digest in the footer of an encrypted part.
    pub data_frame: u32,
}

/// What a finished or verified part amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSummary {
    /// The whole file.
    pub bytes: u64,
    /// Binds header, frame table and granule digests, and with them all content.
    pub footer_digest: [u8; 32],
    /// Granules with content.
    pub data_granules: u64,
    /// Granules of zeroes.
    pub zero_granules: u64,
    /// Granules that could not be read.
    pub unreadable_granules: u64,
}

/// What is wrong with the bytes of a part.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PartError {
    /// It ends too early.
    #[error("the part is cut off after {0} bytes")]
    Truncated(u64),
    /// Bytes behind the trailer, or more than a part may have.
    #[error("the part is longer than it should be, at byte {0}")]
    TooLong(u64),
    /// Something else altogether.
    #[error("these bytes do not begin like a part of a layer")]
    Magic,
    /// Written by a newer Farside: update this one.
    #[error("the part has format version {0}; this program knows version {VERSION}")]
    Version(u16),
    /// Damaged.
    #[error("the part's header is damaged")]
    Header,
    /// A part of another layer or volume, or another part of this one.
    #[error("this is part {} of layer {}, not part {} of layer {} of a volume of {} bytes", found.part, found.key, expected.part, expected.key, expected.geometry.volume_bytes())]
    WrongPart {
        /// Asked for.
        expected: Box<PartId>,
        /// In the header.
        found: Box<PartId>,
    },
    /// Damaged.
    #[error("the frame head at byte {0} is damaged")]
    FrameHead(u64),
    /// A frame that no writer makes: beyond the volume, out of order, over a region's edge, of impossible length.
    #[error("the frame at byte {offset} for granules {}..+{} cannot be: {why}", run.start, run.count)]
    Frame {
        /// Of its head.
        offset: u64,
        /// Its granules.
        run: GranuleRun,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// Damaged content, found by the checksum of what is stored.
    #[error("region {region}: the stored bytes of granules {}..+{} are damaged", run.start, run.count)]
    Payload {
        /// Where.
        region: RegionIndex,
        /// The frame's granules.
        run: GranuleRun,
    },
    /// The part is encrypted and its volume is not, or the other way.
    #[error("the part is {}, and its volume is {}", sealed(*found), sealed(!*found))]
    Sealed {
        /// Whether the part is encrypted.
        found: bool,
    },
    /// The content is encrypted, and the key is not here.
    #[error("region {region}: granules {}..+{} are encrypted: their key is needed", run.start, run.count)]
    KeyNeeded {
        /// Where.
        region: RegionIndex,
        /// The frame's granules.
        run: GranuleRun,
    },
    /// The checksums are right, and yet it was not encrypted with this key, or is of another place.
    #[error("region {region}: granules {}..+{} do not decrypt", run.start, run.count)]
    Decrypt {
        /// Where.
        region: RegionIndex,
        /// The frame's granules.
        run: GranuleRun,
    },
    /// The checksum is right, and yet it does not decompress to that many bytes.
    #[error("region {region}: granules {}..+{} do not decompress", run.start, run.count)]
    Decompress {
        /// Where.
        region: RegionIndex,
        /// The frame's granules.
        run: GranuleRun,
    },
    /// The content is not what the footer says was read at the source.
    #[error("region {region}: granule {granule} does not have the digest that the footer gives")]
    Granule {
        /// Where.
        region: RegionIndex,
        /// Which.
        granule: GranuleIndex,
    },
    /// The footer is damaged, or lists other frames than there are.
    #[error("the part's footer is damaged: {0}")]
    Footer(&'static str),
    /// The trailer is damaged.
    #[error("the part's trailer is damaged")]
    Trailer,
    /// A limit of this module is exceeded.
    #[error("the part exceeds a limit: {0}")]
    Limit(&'static str),
    /// An earlier call already said what is wrong.
    #[error("the part was found damaged before")]
    Failed,
}

fn sealed(yes: bool) -> &'static str {
    if yes { "encrypted" } else { "not encrypted" }
}

/// Reads fixed fields from a slice whose length was checked.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("the caller hands in the whole structure");
        self.0 = rest;
        *field
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// How many granules a data frame has at most, in a volume of this shape: frames are aligned to it, so none crosses a region.
pub(crate) fn frame_granules(geometry: &Geometry) -> u64 {
    FRAME_GRANULES_MAX.min(geometry.region_granules())
}

impl PartId {
    /// The header of this part; `sealed`: its payloads are encrypted.
    pub(crate) fn encode(&self, sealed: bool) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(if sealed { FLAG_SEALED } else { 0 }).to_le_bytes());
        bytes.extend_from_slice(&self.part.to_le_bytes());
        bytes.extend_from_slice(&self.key.volume.0);
        bytes.extend_from_slice(&self.key.term.0.to_le_bytes());
        bytes.extend_from_slice(&self.key.seq.0.to_le_bytes());
        bytes.extend_from_slice(&self.geometry.volume_bytes().to_le_bytes());
        bytes.push(self.geometry.granule_bytes().trailing_zeros() as u8);
        bytes.push(self.geometry.region_granules().trailing_zeros() as u8);
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.try_into().expect("the fields fill the header")
    }

    /// What a header says, and whether the payloads are encrypted.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, bool), PartError> {
        let mut fields = Fields(bytes);
        if fields.take() != MAGIC {
            return Err(PartError::Magic);
        }
        if crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) != u32::from_le_bytes(Fields(&bytes[HEADER_BYTES - 4..]).take()) {
            return Err(PartError::Header);
        }
        let version = u16::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(PartError::Version(version));
        }
        let flags = u16::from_le_bytes(fields.take());
        let part = fields.u32();
        let volume = VolumeId(fields.take());
        let (term, seq) = (Term(fields.u64()), Seq(fields.u64()));
        let volume_bytes = fields.u64();
        let [granule_shift, region_granules_shift, a, b] = fields.take();
        if flags & !FLAG_SEALED != 0 || [a, b] != [0; 2] {
            return Err(PartError::Header);
        }
        let geometry = Geometry::with_shape(volume_bytes, granule_shift, region_granules_shift).map_err(|_| PartError::Header)?;
        Ok((Self { key: LayerKey { volume, term, seq }, part, geometry }, flags == FLAG_SEALED))
    }
}

impl FrameRef {
    /// The bytes of its content, uncompressed.
    ///
    /// # Panics
    /// When the frame is beyond a volume of this geometry.
    pub fn content_bytes(&self, geometry: &Geometry) -> usize {
        match self.kind {
            RunKind::Data => geometry.bytes_of(self.run).len as usize,
            RunKind::Zero | RunKind::Unreadable => 0,
        }
    }

    pub(crate) fn encode_head(&self) -> [u8; FRAME_HEAD_BYTES] {
        frame_head(self.kind.to_byte(), self.codec.to_byte(), self.stored_bytes, self.run.start.0, self.run.count, self.crc)
    }

    /// What of its head an encrypted payload is bound to.
    pub(crate) fn bound_head(&self) -> [u8; farside_keys::FRAME_HEAD_BYTES] {
        *self.encode_head().first_chunk().expect("a head is longer")
    }

    pub(crate) fn encode_entry(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = Vec::with_capacity(ENTRY_BYTES);
        bytes.push(self.kind.to_byte());
        bytes.push(self.codec.to_byte());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.stored_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.run.start.0.to_le_bytes());
        bytes.extend_from_slice(&self.run.count.to_le_bytes());
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        bytes.extend_from_slice(&self.offset.to_le_bytes());
        bytes.try_into().expect("the fields fill the entry")
    }

    /// From an entry of a footer's table; `None` when its kind, codec or padding is unknown.
    pub(crate) fn decode_entry(entry: &[u8]) -> Option<Self> {
        let mut fields = Fields(entry);
        let [kind, codec, a, b] = fields.take();
        let stored_bytes = fields.u32();
        let run = GranuleRun { start: GranuleIndex(fields.u64()), count: fields.u64() };
        let crc = fields.u32();
        let offset = fields.u32();
        if [a, b] != [0; 2] {
            return None;
        }
        let (kind, codec) = (RunKind::from_byte(kind)?, Codec::from_byte(codec)?);
        Some(Self { run, kind, codec, offset, stored_bytes, crc, first_digest: 0, data_frame: 0 })
    }
}

/// The head before a frame's payload, and before the footer's body (with `start` 0 and the number of frames as `count`).
pub(crate) fn frame_head(kind: u8, codec: u8, stored_bytes: u32, start: u64, count: u64, crc: u32) -> [u8; FRAME_HEAD_BYTES] {
    let mut bytes = Vec::with_capacity(FRAME_HEAD_BYTES);
    bytes.extend_from_slice(&[kind, codec, 0, 0]);
    bytes.extend_from_slice(&stored_bytes.to_le_bytes());
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes.try_into().expect("the fields fill the frame head")
}

/// What a frame head announces.
pub(crate) enum Announced {
    Frame(FrameRef),
    Footer { body_bytes: u32, frames: u64, crc: u32 },
}

/// Reads a frame head at `at`; the frame's payload begins behind it.
pub(crate) fn parse_frame_head(bytes: &[u8], at: u64) -> Result<Announced, PartError> {
    let bad = PartError::FrameHead(at);
    let crc = u32::from_le_bytes(Fields(&bytes[FRAME_HEAD_BYTES - 4..]).take());
    if crc32c::crc32c(&bytes[..FRAME_HEAD_BYTES - 4]) != crc {
        return Err(bad);
    }
    if bytes[0] == KIND_FOOTER {
        let mut fields = Fields(&bytes[1..]);
        let pad: [u8; 3] = fields.take();
        let body_bytes = fields.u32();
        let (start, frames) = (fields.u64(), fields.u64());
        if pad != [0; 3] || start != 0 {
            return Err(bad);
        }
        return Ok(Announced::Footer { body_bytes, frames, crc: fields.u32() });
    }
    let offset = u32::try_from(at + FRAME_HEAD_BYTES as u64).map_err(|_| PartError::TooLong(at))?;
    // An entry differs from a head only in its last field.
    let mut frame = FrameRef::decode_entry(bytes).ok_or(bad)?;
    frame.offset = offset;
    Ok(Announced::Frame(frame))
}

/// Follows the frames of a part in order and holds each against the rules; both readers use it.
pub(crate) struct FrameRules {
    geometry: Geometry,
    sealed: bool,
    next_granule: u64,
    next_offset: u64,
    frames: usize,
    data_frames: usize,
    data_granules: usize,
}

impl FrameRules {
    pub(crate) fn new(geometry: Geometry, sealed: bool) -> Self {
        Self { geometry, sealed, next_granule: 0, next_offset: HEADER_BYTES as u64, frames: 0, data_frames: 0, data_granules: 0 }
    }

    /// The digests of payloads that the footer has.
    pub(crate) fn stored_digests(&self) -> usize {
        if self.sealed { self.data_frames } else { 0 }
    }

    /// Where the next frame's head, or the footer's, begins.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next_offset
    }

    pub(crate) fn data_granules(&self) -> usize {
        self.data_granules
    }

    /// Accepts the next frame, and numbers its digests.
    pub(crate) fn accept(&mut self, frame: &mut FrameRef) -> Result<(), PartError> {
        let run = frame.run;
        let wrong = |why| PartError::Frame { offset: self.next_offset, run, why };
        if u64::from(frame.offset) != self.next_offset + FRAME_HEAD_BYTES as u64 {
            return Err(wrong("it is not where it should be"));
        }
        let end = run.start.0.checked_add(run.count).filter(|end| *end <= self.geometry.granule_count());
        let end = end.ok_or_else(|| wrong("it goes beyond the volume"))?;
        if run.count == 0 {
            return Err(wrong("it is empty"));
        }
        if run.start.0 < self.next_granule {
            return Err(wrong("it overlaps or goes back"));
        }
        if self.frames == FRAMES_MAX {
            return Err(PartError::Limit("frames"));
        }
        if frame.kind == RunKind::Data {
            let per_frame = frame_granules(&self.geometry);
            if run.start.0 / per_frame != (end - 1) / per_frame {
                return Err(wrong("it crosses a frame boundary"));
            }
            let content = self.geometry.bytes_of(run).len;
            let overhead = if self.sealed { FRAME_OVERHEAD_BYTES as u64 } else { 0 };
            let fits = |bytes: u64| match frame.codec {
                Codec::Raw => bytes == content,
                Codec::Zstd => bytes > 0 && bytes < content,
            };
            if !u64::from(frame.stored_bytes).checked_sub(overhead).is_some_and(fits) {
                return Err(wrong("its length does not fit its granules"));
            }
            if self.data_granules + run.count as usize > DATA_GRANULES_MAX {
                return Err(PartError::Limit("data granules"));
            }
            frame.first_digest = self.data_granules as u32;
            frame.data_frame = self.data_frames as u32;
            self.data_frames += 1;
            self.data_granules += run.count as usize;
        } else if frame.stored_bytes != 0 || frame.crc != 0 || frame.codec != Codec::Raw {
            return Err(wrong("it has a payload and should have none"));
        }
        self.frames += 1;
        self.next_granule = end;
        self.next_offset += FRAME_HEAD_BYTES as u64 + u64::from(frame.stored_bytes);
        if self.next_offset > PART_BYTES_MAX {
            return Err(PartError::TooLong(self.next_offset));
        }
        Ok(())
    }
}

/// The end of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) footer_offset: u64,
    pub(crate) body_bytes: u32,
    pub(crate) footer_digest: [u8; 32],
}

impl Trailer {
    pub(crate) fn encode(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = Vec::with_capacity(TRAILER_BYTES);
        bytes.extend_from_slice(&self.footer_offset.to_le_bytes());
        bytes.extend_from_slice(&self.body_bytes.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.footer_digest);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(&END_MAGIC);
        bytes.try_into().expect("the fields fill the trailer")
    }

    /// Reads the trailer of a part of so many bytes.
    pub(crate) fn decode(bytes: &[u8], part_bytes: u64) -> Result<Self, PartError> {
        let mut fields = Fields(bytes);
        let (footer_offset, body_bytes, a) = (fields.u64(), fields.u32(), fields.u32());
        let footer_digest = fields.take();
        let (b, crc) = (fields.u32(), fields.u32());
        let end: [u8; 8] = fields.take();
        let whole = footer_offset.checked_add(u64::from(body_bytes) + (FRAME_HEAD_BYTES + TRAILER_BYTES) as u64);
        if end != END_MAGIC
            || crc32c::crc32c(&bytes[..TRAILER_BYTES - 12]) != crc
            || a != 0
            || b != 0
            || whole != Some(part_bytes)
        {
            return Err(PartError::Trailer);
        }
        Ok(Self { footer_offset, body_bytes, footer_digest })
    }
}
