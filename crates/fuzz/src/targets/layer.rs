//! Parts of layers: as a stream from a source, and as segments of a store read from their end.

use std::convert::Infallible;

use farside_layer::{
    Codec, Compression, Encoder, Footer, FrameDecoder, HEADER_BYTES, PartId, PartVerifier, PartWriter, RunKind, TRAILER_BYTES,
    granule_digest, read_footer,
};
use farside_region::{Geometry, GranuleIndex, GranuleRun, LayerKey, Seq, Term, VolumeId};

use crate::engine::{Memory, Outcome, Target, magnitude, unmeasured};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "part-stream",
        what: "a part as it comes from a source, in pieces",
        seeds,
        seal: seal_stream,
        words: WORDS,
        bytes_max: 6 << 10,
        // A decompressor's context, one frame, the tables.
        memory: Memory { fixed_bytes: 512 << 10, bytes_per_byte: 16 },
        decode: stream,
    },
    Target {
        name: "part-footer",
        what: "the end of a segment, and frames found through it, from a store",
        seeds,
        seal: |bytes| seal_footer(bytes),
        words: WORDS,
        bytes_max: 6 << 10,
        memory: Memory { fixed_bytes: 512 << 10, bytes_per_byte: 16 },
        decode: footer,
    },
];

const WORDS: &[&[u8]] = &[b"FSLAYPRT", b"FSLAYEND", &[0xf0, 0, 0, 0], &[1, 0, 0, 0], &[1, 1, 0, 0], &[2, 0, 0, 0], &[3, 0, 0, 0]];
const KEY: [u8; 32] = *b"a digest key for tests, 32 bytes";
const HEAD: usize = 32;
const ENTRY: usize = 32;

/// 97 granules of 64 bytes, the last one of 40; regions of 16 granules.
pub(super) fn id() -> PartId {
    let geometry = Geometry::with_shape(96 * 64 + 40, 6, 4).expect("a geometry");
    PartId { key: LayerKey { volume: VolumeId(*b"volume-volume-vo"), term: Term(7), seq: Seq(3) }, part: 2, geometry }
}

fn seeds() -> Vec<Vec<u8>> {
    let run = |start, count| GranuleRun { start: GranuleIndex(start), count };
    let part = |compression| {
        let mut writer = PartWriter::new(id(), &KEY, Encoder::new(compression));
        writer.push_data(GranuleIndex(1), &[7; 9 * 64]).expect("it fits");
        writer.push_zero(run(10, 4)).expect("it fits");
        writer.push_unreadable(run(20, 2)).expect("it fits");
        let noise: Vec<u8> = (0..5 * 64_u32).map(|i| (i * i * 31 + (i >> 3)) as u8 | 1).collect();
        writer.push_data(GranuleIndex(30), &noise).expect("it fits");
        writer.push_data(GranuleIndex(95), &[9; 64 + 40]).expect("it fits");
        writer.finish().0
    };
    let mut zeroes = PartWriter::new(id(), &KEY, Encoder::new(Compression::Off));
    zeroes.push_zero(run(0, 97)).expect("it fits");
    vec![part(Compression::Off), part(Compression::Zstd(1)), zeroes.finish().0]
}

/// A footer that fits its frames, or one that lies with good checksums.
fn seal_stream(bytes: &mut Vec<u8>) {
    if bytes.len().is_multiple_of(8) { seal_footer(bytes) } else { rebuild(bytes) }
}

/// Leaves the frames alone, and makes the sums of footer and trailer right, whatever they say.
pub(super) fn seal_footer(bytes: &mut [u8]) {
    let Some(trailer) = bytes.len().checked_sub(TRAILER_BYTES) else { return };
    let stated = u64::from_le_bytes(bytes[trailer..trailer + 8].try_into().expect("eight bytes"));
    let Ok(offset) = usize::try_from(stated) else { return };
    let Some(body) = offset.checked_add(HEAD).filter(|body| body.checked_add(HEADER_BYTES).is_some_and(|end| end <= trailer))
    else {
        return;
    };
    sum_into(bytes, body, HEADER_BYTES - 4);
    let length = ((trailer - body) as u32).to_le_bytes();
    bytes[offset + 4..offset + 8].copy_from_slice(&length);
    bytes[trailer + 8..trailer + 12].copy_from_slice(&length);
    let (sum, digest) = (crc32c::crc32c(&bytes[body..trailer]), footer_digest(&bytes[body..trailer]));
    bytes[offset + 24..offset + 28].copy_from_slice(&sum.to_le_bytes());
    sum_into(bytes, offset, HEAD - 4);
    bytes[trailer + 16..trailer + 48].copy_from_slice(&digest);
    sum_into(bytes, trailer, TRAILER_BYTES - 12);
}

/// Walks the frames as they lie there, and makes every sum, the footer's copy of each frame and the digests of raw content
/// right. Where the frames end, the footer is made anew from them.
fn rebuild(bytes: &mut Vec<u8>) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    sum_into(bytes, 0, HEADER_BYTES - 4);
    let (mut at, mut table, mut digests) = (HEADER_BYTES, Vec::new(), Vec::new());
    let mut listed = listed_digests(bytes).into_iter();
    while let Some(head) = bytes.get(at..at + HEAD) {
        let (kind, codec) = (head[0], head[1]);
        if kind == 0xf0 {
            break;
        }
        let stored = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let start = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        let count = u64::from_le_bytes(head[16..24].try_into().expect("eight bytes"));
        let Some(payload) = bytes.get(at + HEAD..(at + HEAD).saturating_add(stored)) else { break };
        if kind == 1 {
            let granules = count.min(64) as usize;
            let of_content =
                |(i, content): (usize, &[u8])| granule_digest(&KEY, GranuleIndex(start.wrapping_add(i as u64)), content).0;
            let computed: Vec<[u8; 16]> = match codec {
                0 => payload.chunks(64).enumerate().map(of_content).collect(),
                _ => Vec::new(),
            };
            let old: Vec<[u8; 16]> = listed.by_ref().take(granules).collect();
            digests.extend(if codec == 0 { computed } else { old });
        }
        let sum = if stored > 0 { crc32c::crc32c(payload) } else { u32::from_le_bytes([head[24], head[25], head[26], head[27]]) };
        bytes[at + 24..at + 28].copy_from_slice(&sum.to_le_bytes());
        sum_into(bytes, at, HEAD - 4);
        let mut entry = bytes[at..at + HEAD - 4].to_vec();
        entry.extend_from_slice(&((at + HEAD) as u32).to_le_bytes());
        table.push(entry);
        at += HEAD + stored;
    }
    let Some(found) = bytes.get(at).filter(|kind| **kind == 0xf0 && bytes.len() >= at + HEAD + TRAILER_BYTES) else { return };
    let mut body = bytes[..HEADER_BYTES].to_vec();
    table.iter().for_each(|entry| body.extend_from_slice(&entry[..ENTRY]));
    digests.iter().for_each(|digest| body.extend_from_slice(digest));
    let mut head = vec![*found, 0, 0, 0];
    head.extend_from_slice(&(body.len() as u32).to_le_bytes());
    head.extend_from_slice(&0_u64.to_le_bytes());
    head.extend_from_slice(&(table.len() as u64).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
    let mut trailer = (at as u64).to_le_bytes().to_vec();
    trailer.extend_from_slice(&(body.len() as u32).to_le_bytes());
    trailer.extend_from_slice(&[0; 4]);
    trailer.extend_from_slice(&footer_digest(&body));
    trailer.extend_from_slice(&[0; 4]);
    trailer.extend_from_slice(&crc32c::crc32c(&trailer).to_le_bytes());
    trailer.extend_from_slice(b"FSLAYEND");
    bytes.truncate(at);
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(&trailer);
}

/// The digests that the footer lists now, as far as one can tell where they lie.
fn listed_digests(bytes: &[u8]) -> Vec<[u8; 16]> {
    let Some(trailer) = bytes.len().checked_sub(TRAILER_BYTES).map(|at| &bytes[at..]) else { return Vec::new() };
    let offset = u64::from_le_bytes(trailer[..8].try_into().expect("eight bytes")) as usize;
    let Some(head) = offset.checked_add(HEAD).and_then(|end| bytes.get(offset..end)) else { return Vec::new() };
    let frames = u64::from_le_bytes(head[16..24].try_into().expect("eight bytes")).min(1 << 15) as usize;
    let from = offset + HEAD + HEADER_BYTES + frames * ENTRY;
    let digests = bytes.get(from..bytes.len() - TRAILER_BYTES).unwrap_or_default();
    digests.as_chunks::<16>().0.to_vec()
}

fn sum_into(bytes: &mut [u8], from: usize, len: usize) {
    let sum = crc32c::crc32c(&bytes[from..from + len]);
    bytes[from + len..from + len + 4].copy_from_slice(&sum.to_le_bytes());
}

fn footer_digest(body: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(b"farside part footer v1\0").update(body).finalize().as_bytes()
}

/// As from a stream whose pieces the first byte decides.
fn stream(bytes: &[u8]) -> Outcome {
    let step = 1 + bytes.len() % 97;
    let mut verifier = PartVerifier::new(id(), &KEY);
    for piece in bytes.chunks(step) {
        if let Err(error) = verifier.feed(piece) {
            assert!(verifier.feed(b"x").is_err(), "it goes on after it failed");
            return Outcome::refused(error);
        }
    }
    match verifier.finish() {
        Err(error) => Outcome::refused(error),
        Ok(summary) => {
            let footer = open(bytes).expect("what was verified as a stream is read from its end");
            unmeasured(|| {
                assert_eq!(footer.summary(), summary, "what was verified as a stream reads differently from its end");
                let damaged = decode_all(bytes, &footer);
                assert_eq!(damaged, 0, "what was verified as a stream is damaged when it is read");
            });
            shape(&footer)
        }
    }
}

fn footer(bytes: &[u8]) -> Outcome {
    match open(bytes) {
        Err(error) => Outcome::refused(error),
        Ok(footer) => {
            decode_all(bytes, &footer);
            shape(&footer)
        }
    }
}

fn open(bytes: &[u8]) -> Result<Footer, String> {
    let tail = Footer::from_tail(bytes, bytes.len() as u64).map_err(|e| e.to_string());
    let read = read_footer(bytes.len() as u64, |at, buffer| {
        let at = usize::try_from(at).expect("inside the part");
        buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
        Ok::<_, Infallible>(())
    });
    let read = read.map_err(|e| e.to_string());
    assert_eq!(tail.is_ok(), read.is_ok(), "the two ways to a footer disagree: {tail:?}, {read:?}");
    if let (Ok(tail), Ok(read)) = (&tail, &read) {
        assert_eq!(tail, read);
    }
    read
}

/// Decodes every frame; says how many are damaged.
fn decode_all(bytes: &[u8], footer: &Footer) -> usize {
    let geometry = footer.id().geometry;
    let (mut decoder, mut content) = (FrameDecoder::new(&KEY), Vec::new());
    let (mut next, mut damaged) = (0, 0);
    for frame in footer.frames() {
        assert!(frame.run.count > 0 && frame.run.start.0 >= next, "frames overlap or are empty");
        next = frame.run.end().0;
        assert!(next <= geometry.granule_count(), "a frame beyond the volume");
        assert_eq!(footer.frame_of(frame.run.start), Some(frame));
        if frame.kind == RunKind::Data {
            assert_eq!(footer.digests_of(frame).len() as u64, frame.run.count);
            let stored = &bytes[frame.offset as usize..(frame.offset + frame.stored_bytes) as usize];
            // Shapes of other volumes make frames of up to 64 MiB; the receiver takes no such volume.
            if frame.content_bytes(&geometry) > 64 << 10 {
                continue;
            }
            match decoder.decode(footer, frame, stored, &mut content) {
                Ok(()) => assert_eq!(content.len(), frame.content_bytes(&geometry)),
                Err(_) => damaged += 1,
            }
        }
    }
    for kind in [RunKind::Data, RunKind::Zero, RunKind::Unreadable] {
        assert!(footer.regions(kind).last().is_none_or(|r| r.0 < geometry.region_count()));
    }
    damaged
}

fn shape(footer: &Footer) -> Outcome {
    let summary = footer.summary();
    let granules = [summary.data_granules, summary.zero_granules, summary.unreadable_granules].map(magnitude);
    let packed = footer.frames().iter().filter(|f| f.codec == Codec::Zstd).count();
    Outcome::accepted((footer.frames().len().min(16), packed.min(4), granules))
}
