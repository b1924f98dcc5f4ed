use std::convert::Infallible;

use farside_region::{Geometry, GranuleIndex, GranuleRun, LayerKey, RegionIndex, Seq, Term, VolumeId};
use proptest::prelude::*;

use super::*;
use crate::format::{FRAME_HEAD_BYTES, KIND_FOOTER, frame_head};

const KEY: [u8; 32] = *b"a digest key for tests, 32 bytes";

pub(super) fn id(geometry: Geometry) -> PartId {
    PartId { key: LayerKey { volume: VolumeId(*b"volume-volume-vo"), term: Term(7), seq: Seq(3) }, part: 2, geometry }
}

/// 97 granules of 64 bytes, the last one of 40; regions of 16 granules.
pub(super) fn small() -> Geometry {
    Geometry::with_shape(96 * 64 + 40, 6, 4).expect("valid")
}

pub(super) fn run(start: u64, count: u64) -> GranuleRun {
    GranuleRun { start: GranuleIndex(start), count }
}

/// Content that compresses somewhat and differs everywhere.
pub(super) fn content(geometry: &Geometry, run: GranuleRun) -> Vec<u8> {
    let at = geometry.bytes_of(run);
    (at.offset.0..at.offset.0 + at.len).map(|i| ((i / 16) % 251) as u8 + 1).collect()
}

pub(super) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut out = vec![0; bytes];
    reader.fill(&mut out);
    out
}

fn verify(part: &[u8], id: PartId) -> Result<Footer, PartError> {
    let mut verifier = PartVerifier::new(id, &KEY);
    verifier.feed(part)?;
    let summary = verifier.finish()?;
    let footer = open(part)?;
    assert_eq!(footer.summary(), summary);
    Ok(footer)
}

fn open(part: &[u8]) -> Result<Footer, PartError> {
    let footer = read_footer(part.len() as u64, |at, buf| {
        buf.copy_from_slice(&part[at as usize..at as usize + buf.len()]);
        Ok::<_, Infallible>(())
    });
    footer.map_err(|e| match e {
        ReadFooterError::Part(e) => e,
        ReadFooterError::Read(e) => match e {},
    })
}

/// Every byte of the volume as a part says it is: `None` where it says nothing, `Some(None)` where unreadable.
fn image(part: &[u8], footer: &Footer) -> Result<Vec<Option<Option<u8>>>, PartError> {
    let geometry = footer.id().geometry;
    let mut image = vec![None; geometry.volume_bytes() as usize];
    let (mut decoder, mut out) = (FrameDecoder::new(&KEY), Vec::new());
    for frame in footer.frames() {
        let at = geometry.bytes_of(frame.run);
        let place = &mut image[at.offset.0 as usize..(at.offset.0 + at.len) as usize];
        match frame.kind {
            RunKind::Data => {
                let stored = &part[frame.offset as usize..(frame.offset + frame.stored_bytes) as usize];
                decoder.decode(footer, frame, stored, &mut out)?;
                place.iter_mut().zip(&out).for_each(|(p, b)| *p = Some(Some(*b)));
            }
            RunKind::Zero => place.fill(Some(Some(0))),
            RunKind::Unreadable => place.fill(Some(None)),
        }
    }
    Ok(image)
}

/// A part with frames of every kind and codec, and the short last granule.
fn sample(compression: Compression) -> Vec<u8> {
    let g = small();
    let mut writer = PartWriter::new(id(g), &KEY, Encoder::new(compression));
    writer.push_data(GranuleIndex(1), &content(&g, run(1, 9))).expect("fits");
    writer.push_zero(run(10, 4)).expect("fits");
    writer.push_unreadable(run(20, 2)).expect("fits");
    writer.push_data(GranuleIndex(30), &noise(5 * 64, 1)).expect("fits");
    writer.push_data(GranuleIndex(90), &content(&g, run(90, 7))).expect("fits");
    writer.finish().0
}

#[derive(Clone, Debug)]
enum Push {
    Data(Vec<u8>),
    Read(Vec<bool>),
    Zero(u64),
    Unreadable(u64),
}

fn pushes() -> impl Strategy<Value = Vec<(u64, Push)>> {
    let push = prop_oneof![
        (1u64..40, any::<u64>(), any::<bool>()).prop_map(|(n, seed, dull)| Push::Data(if dull {
            vec![seed as u8 | 1; n as usize * 64]
        } else {
            noise(n as usize * 64, seed)
        })),
        prop::collection::vec(any::<bool>(), 1..20).prop_map(Push::Read),
        (1u64..30).prop_map(Push::Zero),
        (1u64..10).prop_map(Push::Unreadable),
    ];
    prop::collection::vec((0u64..9, push), 0..14)
}

/// Pushes what fits into the volume and returns the image that it should give.
fn write(writer: &mut PartWriter, pushes: &[(u64, Push)], mut chunk: impl FnMut(&mut PartWriter)) -> Vec<Option<Option<u8>>> {
    let g = writer.id().geometry;
    let mut image = vec![None; g.volume_bytes() as usize];
    let mut at = 0;
    for (gap, push) in pushes {
        at += gap;
        let left = g.granule_count().saturating_sub(at);
        if left == 0 {
            break;
        }
        let count = match push {
            Push::Data(bytes) => (bytes.len() as u64 / 64).min(left),
            Push::Read(zeroes) => (zeroes.len() as u64).min(left),
            Push::Zero(n) | Push::Unreadable(n) => (*n).min(left),
        };
        let (run, bytes) = (run(at, count), g.bytes_of(run(at, count)));
        let place = &mut image[bytes.offset.0 as usize..(bytes.offset.0 + bytes.len) as usize];
        match push {
            Push::Data(data) => {
                writer.push_data(run.start, &data[..bytes.len as usize]).expect("fits");
                place.iter_mut().zip(data).for_each(|(p, b)| *p = Some(Some(*b)));
            }
            Push::Read(zeroes) => {
                let data: Vec<u8> = zeroes.iter().flat_map(|z| [if *z { 0 } else { 9 }; 64]).take(bytes.len as usize).collect();
                writer.push_read(run.start, &data).expect("fits");
                place.iter_mut().zip(data).for_each(|(p, b)| *p = Some(Some(b)));
            }
            Push::Zero(_) => {
                writer.push_zero(run).expect("fits");
                place.fill(Some(Some(0)));
            }
            Push::Unreadable(_) => {
                writer.push_unreadable(run).expect("fits");
                place.fill(Some(None));
            }
        }
        chunk(writer);
        at += count;
    }
    image
}

/// Also after content that does not compress, which leaves zstd's context in the middle of something.
#[test]
fn an_encoder_takes_another_level_at_any_time() {
    let g = small();
    let mut encoder = Encoder::new(Compression::Off);
    for level in [1, -6, 3, 0, -1, 19] {
        encoder.set(if level == 0 { Compression::Off } else { Compression::Zstd(level) });
        let mut frames = FrameEncoder::new(g, &KEY, encoder, 0);
        frames.push_read(GranuleIndex(0), &noise(64 * 64, level as u64)).expect("in order");
        frames.push_read(GranuleIndex(64), &[7; 64 * 8]).expect("in order");
        encoder = frames.finish().1;
    }
}

proptest! {
    /// Regions that are encoded apart, in any order, make the very bytes that one writer makes.
    #[test]
    fn encoding_apart_changes_nothing(
        zeroes in prop::collection::vec(prop::option::of(any::<bool>()), 1..120),
        level in prop::option::of(-2i32..3),
        region_shift in 0u8..6,
        takes in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let g = Geometry::with_shape(small().volume_bytes(), 6, region_shift).expect("valid");
        let compression = level.map_or(Compression::Off, Compression::Zstd);
        let granules = g.granule_count().min(zeroes.len() as u64);
        let content = |i: u64| {
            let len = g.bytes_of(run(i, 1)).len as usize;
            zeroes[i as usize].map(|zero| if zero { vec![0; len] } else { noise(len, i) })
        };
        let mut writer = PartWriter::new(id(g), &KEY, Encoder::new(compression));
        let mut apart = PartAssembler::new(id(g), false);
        let (mut whole, mut joined) = (Vec::new(), Vec::new());
        let mut encoder = Some(Encoder::new(compression));
        for (turn, first) in (0..granules).step_by(g.region_granules() as usize).enumerate() {
            let mut frames = FrameEncoder::new(g, &KEY, encoder.take().expect("given back"), 0);
            for i in first..granules.min(first + g.region_granules()) {
                match content(i) {
                    Some(data) => {
                        writer.push_read(GranuleIndex(i), &data).expect("fits");
                        frames.push_read(GranuleIndex(i), &data).expect("ascending");
                    }
                    None => {
                        writer.push_unreadable(run(i, 1)).expect("fits");
                        frames.push_unreadable(run(i, 1)).expect("ascending");
                    }
                }
            }
            let (frames, again) = frames.finish();
            encoder = Some(again);
            apart.append(frames).expect("fits");
            if takes[turn % takes.len()] { joined.extend(apart.take_chunk()); }
        }
        let (tail, summary, _) = writer.finish();
        whole.extend(tail);
        let (tail, same) = apart.finish();
        joined.extend(tail);
        prop_assert_eq!(summary, same);
        prop_assert!(whole == joined);
    }

    #[test]
    fn what_goes_in_comes_out_however_it_is_cut(pushes in pushes(), level in prop::option::of(1i32..4), step in 1usize..400, region_shift in 0u8..8) {
        let g = Geometry::with_shape(small().volume_bytes(), 6, region_shift).expect("valid");
        let encoder = Encoder::new(level.map_or(Compression::Off, Compression::Zstd));
        let mut writer = PartWriter::new(id(g), &KEY, encoder);
        let mut part = Vec::new();
        let expected = write(&mut writer, &pushes, |w| if w.ready_bytes() > step { part.extend(w.take_chunk()) });
        let (tail, summary, _) = writer.finish();
        part.extend(tail);
        prop_assert_eq!(summary.bytes, part.len() as u64);

        let mut verifier = PartVerifier::new(id(g), &KEY);
        for piece in part.chunks(step) { prop_assert_eq!(verifier.feed(piece), Ok(())); }
        prop_assert_eq!(verifier.bytes(), part.len() as u64);
        let verified = verifier.finish().expect("complete");
        let opened = open(&part).expect("good");
        prop_assert_eq!(verified, summary);
        prop_assert_eq!(&Footer::from_tail(&part, part.len() as u64).expect("good"), &opened);
        let (bytes, trailer) = (part.len() as u64, part.len() - TRAILER_BYTES);
        let from = part.len() - Footer::tail_bytes(&part[trailer..], bytes).expect("good") as usize;
        prop_assert_eq!(&Footer::from_tail(&part[from..], bytes).expect("all of it"), &opened);
        prop_assert_eq!(Footer::from_tail(&part[from + 1..], bytes), Err(PartError::Truncated(bytes)));
        prop_assert_eq!(opened.summary(), summary);
        prop_assert_eq!(image(&part, &opened).expect("good"), expected.clone());
        for (i, byte) in expected.iter().enumerate() {
            prop_assert_eq!(opened.frame_of(GranuleIndex(i as u64 / 64)).is_some(), byte.is_some());
        }
        for f in opened.frames() {
            if f.kind == RunKind::Data { prop_assert_eq!(g.regions_of(f.run).count, 1, "a data frame crosses a region"); }
        }
    }

    #[test]
    fn cut_or_lengthened_parts_are_refused(cut in 0usize..2000, compress in any::<bool>()) {
        let part = sample(if compress { Compression::Zstd(1) } else { Compression::Off });
        let cut = cut.min(part.len() - 1);
        prop_assert_eq!(verify(&part[..cut], id(small())), Err(PartError::Truncated(cut as u64)));
        prop_assert!(open(&part[..cut]).is_err());
        let mut longer = part.clone();
        longer.push(0);
        prop_assert_eq!(verify(&longer, id(small())), Err(PartError::TooLong(part.len() as u64)));
        prop_assert!(open(&longer).is_err());
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        prop_assert!(verify(&bytes, id(small())).is_err());
        prop_assert!(open(&bytes).is_err());
        prop_assert!(Footer::from_tail(&bytes, bytes.len() as u64 + 77).is_err());
    }

    /// Damage under checksums that are right: what only the rules and the digests can find.
    #[test]
    fn lies_with_good_checksums_are_refused(frame in 0usize..8, byte in 0usize..28, xor in 1u8.., in_footer in any::<bool>()) {
        let part = sample(Compression::Zstd(1));
        let footer = open(&part).expect("good");
        let frames = footer.frames();
        let frame = frames[frame % frames.len()];
        let mut bad = part.clone();
        if in_footer {
            let body = footer_body(&part);
            let entry = body + HEADER_BYTES + 32 * frames.iter().position(|f| *f == frame).expect("listed");
            bad[entry + byte] ^= xor;
            reseal_footer(&mut bad);
        } else {
            let head = frame.offset as usize - FRAME_HEAD_BYTES;
            bad[head + byte] ^= xor;
            let crc = crc32c::crc32c(&bad[head..head + 28]);
            bad[head + 28..head + 32].copy_from_slice(&crc.to_le_bytes());
        }
        prop_assert!(verify(&bad, id(small())).is_err());
        // A footer whose table lies either breaks a rule, or points a reader at bytes that do not check.
        if in_footer && let Ok(footer) = open(&bad) {
            let same = image(&bad, &footer).is_ok_and(|i| i == image(&part, &open(&part).expect("good")).expect("good"));
            prop_assert!(!same || footer.summary().footer_digest != open(&part).expect("good").summary().footer_digest);
        }
    }

    #[test]
    fn zeroes_are_found(len in 0usize..1500, dirt in prop::option::of(0usize..1500), granule in 1usize..300) {
        let mut bytes = vec![0; len];
        if let Some(d) = dirt.filter(|d| *d < len) { bytes[d] = 1; }
        prop_assert_eq!(is_zero(&bytes), bytes.iter().all(|b| *b == 0));
        let mut next = 0;
        let mut last = None;
        for (range, zero) in split_zero(&bytes, granule) {
            prop_assert_eq!(range.start, next);
            prop_assert!(!range.is_empty());
            prop_assert!(last != Some(zero), "two runs of the same kind touch");
            for g in range.clone() {
                let piece = &bytes[g * granule..len.min((g + 1) * granule)];
                prop_assert_eq!(piece.iter().all(|b| *b == 0), zero);
            }
            (next, last) = (range.end, Some(zero));
        }
        prop_assert_eq!(next, len.div_ceil(granule));
    }
}

fn footer_body(part: &[u8]) -> usize {
    u64::from_le_bytes(part[part.len() - TRAILER_BYTES..][..8].try_into().expect("8 bytes")) as usize + FRAME_HEAD_BYTES
}

/// Makes the checksums and digests over a changed footer body right again, as a liar would.
pub(super) fn reseal_footer(part: &mut [u8]) {
    let (body, end) = (footer_body(part), part.len() - TRAILER_BYTES);
    let crc = crc32c::crc32c(&part[body..end]);
    let frames = u64::from_le_bytes(part[body - FRAME_HEAD_BYTES + 16..][..8].try_into().expect("8 bytes"));
    let head = frame_head(KIND_FOOTER, 0, (end - body) as u32, 0, frames, crc);
    part[body - FRAME_HEAD_BYTES..body].copy_from_slice(&head);
    let footer_digest = crate::digest::footer_digest(&part[body..end]);
    let trailer = crate::format::Trailer {
        footer_offset: (body - FRAME_HEAD_BYTES) as u64,
        body_bytes: (end - body) as u32,
        footer_digest,
    };
    part[end..].copy_from_slice(&trailer.encode());
}

/// A part of any frames, with every checksum, offset and digest right.
fn forge(geometry: Geometry, frames: &[(RunKind, Codec, GranuleRun, Vec<u8>)], digests: usize) -> Vec<u8> {
    let header = id(geometry).encode(false);
    let (mut part, mut body) = (header.to_vec(), header.to_vec());
    for (kind, codec, run, payload) in frames {
        let frame = FrameRef {
            run: *run,
            kind: *kind,
            codec: *codec,
            offset: (part.len() + FRAME_HEAD_BYTES) as u32,
            stored_bytes: payload.len() as u32,
            crc: crc32c::crc32c(payload),
            first_digest: 0,
            data_frame: 0,
        };
        part.extend_from_slice(&frame.encode_head());
        part.extend_from_slice(payload);
        body.extend_from_slice(&frame.encode_entry());
    }
    body.resize(body.len() + 16 * digests, 0);
    let footer_offset = part.len() as u64;
    part.extend_from_slice(&frame_head(KIND_FOOTER, 0, body.len() as u32, 0, frames.len() as u64, 0));
    part.extend_from_slice(&body);
    let trailer = crate::format::Trailer { footer_offset, body_bytes: body.len() as u32, footer_digest: [0; 32] };
    part.extend_from_slice(&trailer.encode());
    reseal_footer(&mut part);
    part
}

#[test]
fn frames_that_no_writer_makes_are_refused_by_both_readers() {
    use RunKind::{Data, Unreadable, Zero};
    let g = small();
    let zero = |r| (Zero, Codec::Raw, r, vec![]);
    let raw = |r: GranuleRun, bytes: usize| (Data, Codec::Raw, r, vec![1; bytes]);
    let packed = |r: GranuleRun, bytes: usize| (Data, Codec::Zstd, r, vec![1; bytes]);
    let good = forge(g, &[zero(run(3, 2)), (Unreadable, Codec::Raw, run(5, 1), vec![])], 0);
    assert!(verify(&good, id(g)).is_ok() && open(&good).is_ok(), "the forger's parts are good otherwise");
    let frame = |part: &[u8], why: &str| {
        for error in [verify(part, id(g)).expect_err(why), open(part).expect_err(why)] {
            assert!(matches!(&error, PartError::Frame { why: w, .. } if *w == why), "{why}: {error}");
        }
    };
    frame(&forge(g, &[zero(run(3, 2)), zero(run(4, 2))], 0), "it overlaps or goes back");
    frame(&forge(g, &[zero(run(3, 2)), zero(run(0, 2))], 0), "it overlaps or goes back");
    frame(&forge(g, &[zero(run(3, 0))], 0), "it is empty");
    frame(&forge(g, &[zero(run(97, 1))], 0), "it goes beyond the volume");
    frame(&forge(g, &[zero(run(3, u64::MAX))], 0), "it goes beyond the volume");
    frame(&forge(g, &[(Zero, Codec::Raw, run(1, 1), vec![7])], 0), "it has a payload and should have none");
    frame(&forge(g, &[(Unreadable, Codec::Zstd, run(1, 1), vec![])], 0), "it has a payload and should have none");
    frame(&forge(g, &[raw(run(15, 2), 128)], 2), "it crosses a frame boundary");
    frame(&forge(g, &[raw(run(1, 1), 63)], 1), "its length does not fit its granules");
    frame(&forge(g, &[raw(run(96, 1), 64)], 1), "its length does not fit its granules");
    frame(&forge(g, &[packed(run(1, 1), 64)], 1), "its length does not fit its granules");
    frame(&forge(g, &[packed(run(1, 1), 0)], 1), "its length does not fit its granules");
    let garbage = forge(g, &[packed(run(1, 1), 20)], 1);
    let expected = PartError::Decompress { region: RegionIndex(0), run: run(1, 1) };
    assert_eq!(verify(&garbage, id(g)), Err(expected.clone()));
    assert_eq!(image(&garbage, &open(&garbage).expect("consistent")), Err(expected));
    // A zstd frame that holds more than its granules do.
    let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).expect("in memory");
    let bomb = forge(Geometry::new(1 << 30).expect("valid"), &[(Data, Codec::Zstd, run(0, 1), bomb)], 1);
    let g = Geometry::new(1 << 30).expect("valid");
    assert_eq!(verify(&bomb, id(g)), Err(PartError::Decompress { region: RegionIndex(0), run: run(0, 1) }));
}

#[test]
fn a_footer_that_lies_with_good_checksums_is_refused() {
    let part = sample(Compression::Off);
    let (body, end) = (footer_body(&part), part.len() - TRAILER_BYTES);
    let changed = |at: usize, value: u8| {
        let mut bad = part.clone();
        bad[at] = value;
        bad
    };
    let head_crc = |bad: &mut Vec<u8>| {
        let crc = crc32c::crc32c(&bad[body - 32..body - 4]);
        bad[body - 4..body].copy_from_slice(&crc.to_le_bytes());
    };
    let trailer_crc = |bad: &mut Vec<u8>| {
        let crc = crc32c::crc32c(&bad[end..end + 52]);
        bad[end + 52..end + 56].copy_from_slice(&crc.to_le_bytes());
    };
    // The checksum of the body, in its head.
    let mut bad = changed(body - 8, part[body - 8] ^ 1);
    head_crc(&mut bad);
    assert_eq!(verify(&bad, id(small())), Err(PartError::Footer("its checksum does not match")));
    assert_eq!(open(&bad), Err(PartError::Footer("its checksum does not match")));
    // The digest of the body, and the padding, in the trailer.
    let mut bad = changed(end + 16, part[end + 16] ^ 1);
    trailer_crc(&mut bad);
    assert_eq!(verify(&bad, id(small())), Err(PartError::Trailer));
    assert_eq!(open(&bad), Err(PartError::Footer("its digest does not match")));
    for padding in [12, 48] {
        let mut bad = changed(end + padding, 1);
        trailer_crc(&mut bad);
        assert_eq!(verify(&bad, id(small())), Err(PartError::Trailer));
        assert_eq!(open(&bad), Err(PartError::Trailer));
    }
    // The number of frames.
    let mut bad = changed(body - 16, part[body - 16] + 1);
    head_crc(&mut bad);
    assert_eq!(verify(&bad, id(small())), Err(PartError::Footer("it does not fit the frames before it")));
    assert!(open(&bad).is_err());
    // Another header than the part has: a footer moved here from another part.
    let mut bad = part.clone();
    bad[body..body + HEADER_BYTES].copy_from_slice(&PartId { part: 9, ..id(small()) }.encode(false));
    reseal_footer(&mut bad);
    assert_eq!(verify(&bad, id(small())), Err(PartError::Footer("it repeats another header")));
    assert_eq!(open(&bad).expect("consistent").id().part, 9, "random access must compare the id, as it is told to");
}

#[test]
fn any_flipped_bit_is_found_and_content_is_named() {
    for compression in [Compression::Off, Compression::Zstd(1)] {
        let part = sample(compression);
        let footer = open(&part).expect("good");
        for i in 0..part.len() {
            for bit in [0, 3, 7] {
                let mut bad = part.clone();
                bad[i] ^= 1 << bit;
                let error = verify(&bad, id(small())).expect_err("a flipped bit");
                let hit = footer.frames().iter().find(|f| (f.offset..f.offset + f.stored_bytes).contains(&(i as u32)));
                if let Some(frame) = hit {
                    let region = small().region_of(frame.run.start);
                    assert_eq!(error, PartError::Payload { region, run: frame.run }, "byte {i}");
                    let opened = open(&bad).expect("the footer is untouched");
                    assert_eq!(image(&bad, &opened), Err(error));
                }
            }
        }
    }
}

#[test]
fn content_that_differs_from_its_digest_is_named_by_granule() {
    let part = sample(Compression::Off);
    let frame = *open(&part).expect("good").frame_of(GranuleIndex(32)).expect("there");
    let mut bad = part.clone();
    bad[frame.offset as usize + 2 * 64 + 5] ^= 1; // the frame begins at 32
    let payload = frame.offset as usize..(frame.offset + frame.stored_bytes) as usize;
    let crc = crc32c::crc32c(&bad[payload.clone()]);
    let head = FrameRef { crc, ..frame }.encode_head();
    bad[payload.start - FRAME_HEAD_BYTES..payload.start].copy_from_slice(&head);
    let body = footer_body(&bad);
    let entries = open(&part).expect("good").frames().len();
    for i in 0..entries {
        let at = body + HEADER_BYTES + 32 * i;
        if bad[at + 8..at + 16] == frame.run.start.0.to_le_bytes() {
            bad[at..at + 32].copy_from_slice(&FrameRef { crc, ..frame }.encode_entry());
        }
    }
    reseal_footer(&mut bad);
    let named = PartError::Granule { region: RegionIndex(2), granule: GranuleIndex(34) };
    assert_eq!(verify(&bad, id(small())), Err(named.clone()));
    let opened = open(&bad).expect("consistent in itself");
    assert_eq!(image(&bad, &opened), Err(named));
}

#[test]
fn the_digest_binds_number_and_key() {
    let a = granule_digest(&KEY, GranuleIndex(1), b"content");
    assert_ne!(a, granule_digest(&KEY, GranuleIndex(2), b"content"), "the same content elsewhere");
    assert_ne!(a, granule_digest(&[0; 32], GranuleIndex(1), b"content"), "another volume's key");
    let part = sample(Compression::Zstd(1));
    let mut verifier = PartVerifier::new(id(small()), &[0; 32]);
    let first = PartError::Granule { region: RegionIndex(0), granule: GranuleIndex(1) };
    assert_eq!(verifier.feed(&part), Err(first));
    assert_eq!(verifier.feed(b"more"), Err(PartError::Failed));
    assert_eq!(verifier.finish(), Err(PartError::Failed));
}

#[test]
fn a_layer_digest_binds_key_and_order() {
    let key = id(small()).key;
    let (a, b) = ([1; 32], [2; 32]);
    let digests = [
        layer_digest(&key, &[]),
        layer_digest(&key, &[a]),
        layer_digest(&key, &[a, b]),
        layer_digest(&key, &[b, a]),
        layer_digest(&LayerKey { seq: Seq(4), ..key }, &[a, b]),
        layer_digest(&LayerKey { term: Term(8), ..key }, &[a, b]),
        layer_digest(&LayerKey { volume: VolumeId([0; 16]), ..key }, &[a, b]),
    ];
    for (i, x) in digests.iter().enumerate() {
        assert!(digests[i + 1..].iter().all(|y| x != y), "digest {i} is not unique");
    }
}

#[test]
fn another_part_is_refused_by_name() {
    let part = sample(Compression::Off);
    let expected = PartId { part: 3, ..id(small()) };
    let error = verify(&part, expected).expect_err("another part");
    assert_eq!(error, PartError::WrongPart { expected: Box::new(expected), found: Box::new(id(small())) });
    assert!(error.to_string().contains("this is part 2 of layer"), "{error}");
}

#[test]
fn runs_that_cannot_be_are_refused_and_change_nothing() {
    let g = small();
    let mut writer = PartWriter::new(id(g), &KEY, Encoder::new(Compression::Off));
    writer.push_zero(run(5, 3)).expect("fits");
    let next = GranuleIndex(8);
    assert_eq!(writer.push_zero(run(7, 1)), Err(PushError::Order { run: run(7, 1), next }));
    assert_eq!(writer.push_data(GranuleIndex(4), &[1; 64]), Err(PushError::Order { run: run(4, 1), next }));
    assert_eq!(writer.push_zero(run(8, 0)), Err(PushError::Beyond { start: next, count: 0 }));
    assert_eq!(writer.push_zero(run(96, 2)), Err(PushError::Beyond { start: GranuleIndex(96), count: 2 }));
    assert_eq!(writer.push_unreadable(run(u64::MAX, 2)), Err(PushError::Beyond { start: GranuleIndex(u64::MAX), count: 2 }));
    assert_eq!(writer.push_data(next, &[1; 65]), Err(PushError::Length { start: next, bytes: 65 }));
    assert_eq!(writer.push_data(GranuleIndex(96), &[1; 64]), Err(PushError::Length { start: GranuleIndex(96), bytes: 64 }));
    assert_eq!(writer.push_read(next, &[]), Err(PushError::Beyond { start: next, count: 0 }));
    writer.push_zero(run(8, 2)).expect("fits");
    let (part, summary, _) = writer.finish();
    assert_eq!((summary.zero_granules, summary.data_granules), (5, 0));
    assert_eq!(verify(&part, id(g)).expect("good").frames().len(), 1, "zeroes that touch are one run");
}

#[test]
fn an_empty_part_is_a_part() {
    let writer = PartWriter::new(id(small()), &KEY, Encoder::new(Compression::Off));
    assert!(writer.is_empty());
    let (part, summary, _) = writer.finish();
    assert_eq!(part.len(), HEADER_BYTES + FRAME_HEAD_BYTES + HEADER_BYTES + TRAILER_BYTES);
    assert_eq!(verify(&part, id(small())).expect("good").summary(), summary);
    assert_eq!(open(&part).expect("good").summary(), summary);
}

#[test]
fn a_part_ends_at_each_of_its_limits() {
    let g = Geometry::new(1 << 40).expect("valid");
    // Bytes: content that does not compress.
    let mut writer = PartWriter::new(id(g), &KEY, Encoder::new(Compression::Zstd(1)));
    let block = noise(64 * 4096, 3);
    let mut at = 0;
    while writer.has_room_for(64) {
        writer.push_data(GranuleIndex(at), &block).expect("there is room");
        at += 64;
    }
    assert_eq!(writer.push_data(GranuleIndex(at), &block), Err(PushError::Full));
    let (part, summary, encoder) = writer.finish();
    assert!(summary.bytes <= PART_BYTES_MAX && summary.bytes > PART_BYTES_MAX - (1 << 20), "{} bytes", summary.bytes);
    assert_eq!(verify(&part, id(g)).expect("good").summary(), summary);

    // Granules: content that compresses to nothing.
    let mut writer = PartWriter::new(id(g), &KEY, encoder);
    let dull = vec![7; 64 * 4096];
    let mut at = 0;
    while writer.push_data(GranuleIndex(at), &dull).is_ok() {
        at += 64;
    }
    let (part, summary, encoder) = writer.finish();
    assert_eq!(summary.data_granules, DATA_GRANULES_MAX as u64);
    assert_eq!(verify(&part, id(g)).expect("good").summary(), summary);

    // Frames: scattered zeroes.
    let mut writer = PartWriter::new(id(g), &KEY, encoder);
    let mut at = 0;
    while writer.push_zero(run(at, 1)).is_ok() {
        at += 2;
    }
    let (part, summary, _) = writer.finish();
    assert_eq!(summary.zero_granules, FRAMES_MAX as u64);
    let footer = verify(&part, id(g)).expect("good");
    assert_eq!(open(&part).expect("good"), footer);
    assert!(part.len() <= PART_BYTES_MAX as usize);
}

#[test]
fn a_region_that_was_promised_room_fits_in_any_pieces() {
    let g = Geometry::new(1 << 40).expect("valid");
    let alternating: Vec<u8> = (0..1024 * 4096).map(|i| u8::from(i / 4096 % 2 == 0)).collect();
    for (content, step) in [(alternating.clone(), 16), (alternating, 1024), (noise(4 << 20, 5), 16), (noise(4 << 20, 6), 7)] {
        let mut writer = PartWriter::new(id(g), &KEY, Encoder::new(Compression::Off));
        let mut region = 0;
        while writer.has_room_for_region() {
            for (i, piece) in content.chunks(step * 4096).enumerate() {
                writer.push_read(GranuleIndex(region * 1024 + (i * step) as u64), piece).expect("it was promised");
            }
            writer.take_chunk();
            region += 1;
        }
        let (_, summary, _) = writer.finish();
        assert!(region > 14, "{region} regions only");
        assert!(summary.bytes <= PART_BYTES_MAX);
    }
}

#[test]
fn regions_are_told_by_kind() {
    let part = sample(Compression::Off);
    let footer = open(&part).expect("good");
    let regions = |kind| footer.regions(kind).iter().map(|r| r.0).collect::<Vec<_>>();
    assert_eq!(regions(RunKind::Data), [0, 1, 2, 5, 6]);
    assert_eq!(regions(RunKind::Zero), [0]);
    assert_eq!(regions(RunKind::Unreadable), [1]);
}

/// The bytes are a promise: what was written once must be readable for ever. A change here needs a new format version.
#[test]
fn golden_bytes() {
    let g = Geometry::with_shape(5 * 16 + 8, 4, 2).expect("valid");
    let key = LayerKey { volume: VolumeId(*b"0123456789abcdef"), term: Term(258), seq: Seq(1) };
    let id = PartId { key, part: 1, geometry: g };
    let mut writer = PartWriter::new(id, &KEY, Encoder::new(Compression::Off));
    writer.push_data(GranuleIndex(0), b"sixteen bytes ..").expect("fits");
    writer.push_zero(run(1, 2)).expect("fits");
    writer.push_unreadable(run(4, 1)).expect("fits");
    writer.push_data(GranuleIndex(5), b"the end.").expect("fits");
    let (part, summary, _) = writer.finish();
    assert_eq!(hex(&part), include_str!("golden.hex"));
    let layer: String = layer_digest(&key, &[summary.footer_digest]).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(layer, "8a8ee4e38154106edfe771d3ecfcd353cc34e223709827c73bca8759f4addb35");
}

/// What zstd makes may change with its version; what it made must stay readable.
#[test]
fn golden_bytes_compressed() {
    let golden: Vec<u8> = include_str!("golden-zstd.hex")
        .lines()
        .flat_map(|l| (0..l.len() / 2).map(|i| u8::from_str_radix(&l[2 * i..2 * i + 2], 16).expect("hex")))
        .collect();
    let footer = verify(&golden, id(small())).expect("good");
    assert!(footer.frames().iter().any(|f| f.codec == Codec::Zstd), "it has compressed frames");
    let raw = sample(Compression::Off);
    assert_eq!(image(&golden, &footer), image(&raw, &open(&raw).expect("good")));
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|l| l.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let mut part = sample(Compression::Off);
    part[8] = 2;
    let crc = crc32c::crc32c(&part[..60]);
    part[60..64].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(verify(&part, id(small())), Err(PartError::Version(2)));
}
