//! Parts of encrypted volumes: as the others, and what is only about them.

use std::convert::Infallible;

use farside_keys::{ContentKeys, FRAME_OVERHEAD_BYTES, GroupKey, Seal, SealMode, Sealer, Secret, stored_digest};
use farside_region::{Geometry, GranuleIndex, GranuleRun, LayerKey, Seq, Term, VolumeId};
use proptest::prelude::*;

use super::*;
use crate::format::FRAME_HEAD_BYTES;
use crate::tests::{content, id, noise, reseal_footer, run, small};

fn group(n: u8) -> GroupKey {
    GroupKey::new(Secret::new(&[n; 32]))
}

fn seal() -> Seal {
    group(1).seal(SealMode::EndToEnd, id(small()).key.volume)
}

fn keys() -> ContentKeys {
    ContentKeys::unseal(&group(1), id(small()).key.volume, &seal()).expect("its own")
}

/// Of another group's volume of the same name, as if its claim said so.
fn wrong() -> ContentKeys {
    let seal = group(2).seal(SealMode::EndToEnd, id(small()).key.volume);
    ContentKeys::unseal(&group(2), id(small()).key.volume, &seal).expect("its own")
}

fn encoder(compression: Compression, seed: u8) -> Encoder {
    Encoder::new(compression).sealing(Sealer::new(Secret::new(&[seed; 32])))
}

fn sample(compression: Compression, seed: u8) -> Vec<u8> {
    let g = small();
    let mut writer = PartWriter::new(id(g), keys(), encoder(compression, seed));
    writer.push_data(GranuleIndex(1), &content(&g, run(1, 9))).expect("fits");
    writer.push_zero(run(10, 4)).expect("fits");
    writer.push_unreadable(run(20, 2)).expect("fits");
    writer.push_data(GranuleIndex(30), &noise(5 * 64, 1)).expect("fits");
    writer.push_data(GranuleIndex(90), &content(&g, run(90, 7))).expect("fits");
    writer.finish().0
}

fn verify(part: &[u8], keys: &ContentKeys) -> Result<Footer, PartError> {
    let mut verifier = PartVerifier::new(id(small()), keys);
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

/// What the data frames hold, one after the other.
fn read(part: &[u8], footer: &Footer, keys: &ContentKeys) -> Result<Vec<u8>, PartError> {
    let (mut decoder, mut one, mut all) = (FrameDecoder::new(keys), Vec::new(), Vec::new());
    for frame in footer.frames().iter().filter(|f| f.kind == RunKind::Data) {
        decoder.decode(footer, frame, stored(part, frame), &mut one)?;
        all.extend_from_slice(&one);
    }
    Ok(all)
}

fn stored<'p>(part: &'p [u8], frame: &FrameRef) -> &'p [u8] {
    &part[frame.offset as usize..(frame.offset + frame.stored_bytes) as usize]
}

fn check(part: &[u8], footer: &Footer, keys: &ContentKeys) -> Result<(), PartError> {
    let (mut decoder, mut one) = (FrameDecoder::new(keys), Vec::new());
    let mut data = footer.frames().iter().filter(|f| f.kind == RunKind::Data);
    data.try_for_each(|frame| decoder.check(footer, frame, stored(part, frame), &mut one))
}

#[test]
fn with_the_key_it_is_what_it_was_and_without_it_is_whole() {
    let clear = {
        let mut writer = PartWriter::new(id(small()), keys().digest_key().expect("known"), Encoder::new(Compression::Off));
        writer.push_data(GranuleIndex(1), &content(&small(), run(1, 9))).expect("fits");
        writer.finish().0
    };
    for compression in [Compression::Off, Compression::Zstd(1)] {
        let part = sample(compression, 1);
        let footer = open(&part).expect("good");
        assert!(footer.is_sealed() && !open(&clear).expect("good").is_sealed());
        // Whoever has the key and whoever has not come to the same footer: one digest names the part for both.
        assert_eq!(verify(&part, &keys()).as_ref(), Ok(&footer));
        assert_eq!(verify(&part, &ContentKeys::Opaque).as_ref(), Ok(&footer));
        assert_eq!(Footer::from_tail(&part, part.len() as u64).as_ref(), Ok(&footer));
        let all = [content(&small(), run(1, 9)), noise(5 * 64, 1), content(&small(), run(90, 7))].concat();
        assert_eq!(read(&part, &footer, &keys()), Ok(all));
        assert_eq!(check(&part, &footer, &keys()), Ok(()));
        assert_eq!(check(&part, &footer, &ContentKeys::Opaque), Ok(()));
        let needed = read(&part, &footer, &ContentKeys::Opaque).expect_err("no key");
        assert!(matches!(needed, PartError::KeyNeeded { .. }), "{needed}");
        for frame in footer.frames().iter().filter(|f| f.kind == RunKind::Data) {
            let plain = frame.content_bytes(&small());
            let overhead = FRAME_OVERHEAD_BYTES;
            match frame.codec {
                Codec::Raw => assert_eq!(frame.stored_bytes as usize, plain + overhead),
                Codec::Zstd => assert!((frame.stored_bytes as usize) < plain + overhead),
            }
        }
    }
}

#[test]
fn nothing_of_the_content_is_in_it() {
    let part = sample(Compression::Off, 1);
    for run in [run(1, 9), run(90, 7)] {
        let plain = content(&small(), run);
        assert!(plain.windows(16).all(|w| !part.windows(16).any(|p| p == w)));
    }
    let noise = noise(5 * 64, 1);
    assert!(noise.windows(8).all(|w| !part.windows(8).any(|p| p == w)));
    // Nor is the same content encrypted to the same bytes.
    let (again, footer) = (sample(Compression::Off, 2), open(&part).expect("good"));
    for frame in footer.frames().iter().filter(|f| f.kind == RunKind::Data) {
        assert_ne!(stored(&part, frame), stored(&again, frame));
    }
    assert_eq!(open(&again).expect("good").digests(), footer.digests(), "what tells a source what it need not send");
}

#[test]
fn another_key_reads_nothing() {
    let part = sample(Compression::Zstd(1), 1);
    let error = verify(&part, &wrong()).expect_err("another key");
    assert!(matches!(error, PartError::Decrypt { .. }), "{error}");
    let error = read(&part, &open(&part).expect("good"), &wrong()).expect_err("another key");
    assert!(matches!(error, PartError::Decrypt { .. }), "{error}");
}

#[test]
fn what_is_not_encrypted_is_refused_where_it_should_be_and_the_other_way() {
    let digest_key = *keys().digest_key().expect("known");
    let mut writer = PartWriter::new(id(small()), &digest_key, Encoder::new(Compression::Off));
    writer.push_data(GranuleIndex(1), &content(&small(), run(1, 9))).expect("fits");
    let clear = writer.finish().0;
    for keys in [keys(), ContentKeys::Opaque] {
        assert_eq!(verify(&clear, &keys), Err(PartError::Sealed { found: false }));
    }
    let error = read(&clear, &open(&clear).expect("good"), &keys()).expect_err("not encrypted");
    assert_eq!(error, PartError::Sealed { found: false });
    let (part, clear) = (sample(Compression::Off, 1), ContentKeys::from(&digest_key));
    assert_eq!(verify(&part, &clear), Err(PartError::Sealed { found: true }));
    assert_eq!(read(&part, &open(&part).expect("good"), &clear), Err(PartError::Sealed { found: true }));
    let error = PartError::Sealed { found: true }.to_string();
    assert_eq!(error, "the part is encrypted, and its volume is not encrypted");
}

#[test]
fn any_flipped_bit_is_found_with_the_key_and_without() {
    for compression in [Compression::Off, Compression::Zstd(1)] {
        let part = sample(compression, 1);
        let footer = open(&part).expect("good");
        for i in 0..part.len() {
            for bit in [0, 3, 7] {
                let mut bad = part.clone();
                bad[i] ^= 1 << bit;
                let hit = footer.frames().iter().find(|f| (f.offset..f.offset + f.stored_bytes).contains(&(i as u32)));
                for keys in [keys(), ContentKeys::Opaque] {
                    let error = verify(&bad, &keys).expect_err("a flipped bit");
                    let Some(frame) = hit else { continue };
                    let region = small().region_of(frame.run.start);
                    assert_eq!(error, PartError::Payload { region, run: frame.run }, "byte {i}");
                    assert_eq!(check(&bad, &open(&bad).expect("the footer is untouched"), &keys), Err(error));
                }
            }
        }
        for cut in 0..part.len() {
            for keys in [keys(), ContentKeys::Opaque] {
                assert_eq!(verify(&part[..cut], &keys), Err(PartError::Truncated(cut as u64)));
            }
        }
    }
}

/// Puts payloads of frames in their places, as if they had been written there: every checksum and digest of what is stored is right.
fn with_payloads(part: &[u8], payloads: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let footer = open(part).expect("good");
    let (mut bad, data) = (part.to_vec(), footer.frames().iter().filter(|f| f.kind == RunKind::Data).count());
    for (n, payload) in payloads {
        let frame = footer.frames().iter().filter(|f| f.kind == RunKind::Data).nth(*n).expect("there");
        assert_eq!(payload.len(), frame.stored_bytes as usize);
        let (at, forged) = (frame.offset as usize, FrameRef { crc: crc32c::crc32c(payload), ..*frame });
        bad[at..at + payload.len()].copy_from_slice(payload);
        bad[at - FRAME_HEAD_BYTES..at].copy_from_slice(&forged.encode_head());
        let end = bad.len() - TRAILER_BYTES;
        let body = u64::from_le_bytes(bad[end..end + 8].try_into().expect("8 bytes")) as usize + FRAME_HEAD_BYTES;
        let entry = body + HEADER_BYTES + 32 * footer.frames().iter().position(|f| f == frame).expect("listed");
        bad[entry..entry + 32].copy_from_slice(&forged.encode_entry());
        let digest = end - 16 * (data - n);
        bad[digest..digest + 16].copy_from_slice(&stored_digest(payload));
        reseal_footer(&mut bad);
    }
    bad
}

#[test]
fn payloads_that_change_places_do_not_decrypt() {
    let g = small();
    let write = |runs: &[GranuleRun], seed, fill: u8| {
        let mut writer = PartWriter::new(id(g), keys(), encoder(Compression::Off, seed));
        runs.iter().for_each(|run| writer.push_data(run.start, &[fill; 128]).expect("fits"));
        writer.finish().0
    };
    let part = write(&[run(0, 2), run(4, 2)], 1, 5);
    let payload = |part: &[u8], n: usize| stored(part, &open(part).expect("good").frames()[n]).to_vec();
    assert_eq!(with_payloads(&part, &[(0, payload(&part, 0))]), part, "the forger's parts are good otherwise");
    // Two of one part.
    let swapped = with_payloads(&part, &[(0, payload(&part, 1)), (1, payload(&part, 0))]);
    // The same place in another layer's part: it decrypts, and is not what the digests say.
    let other = with_payloads(&part, &[(0, payload(&write(&[run(0, 2)], 2, 6), 0))]);
    for (bad, decrypts) in [(swapped, false), (other, true)] {
        let footer = open(&bad).expect("consistent in itself");
        assert_eq!(verify(&bad, &ContentKeys::Opaque).as_ref(), Ok(&footer), "whoever has no key cannot know");
        for error in [verify(&bad, &keys()).expect_err("swapped"), read(&bad, &footer, &keys()).expect_err("swapped")] {
            let expected =
                if decrypts { matches!(error, PartError::Granule { .. }) } else { matches!(error, PartError::Decrypt { .. }) };
            assert!(expected, "{error}");
        }
    }
    // Of another volume of the same group.
    let volume = VolumeId([9; 16]);
    let theirs = group(1).seal(SealMode::EndToEnd, volume);
    let theirs = ContentKeys::unseal(&group(1), volume, &theirs).expect("its own");
    let mut writer =
        PartWriter::new(PartId { key: LayerKey { volume, ..id(g).key }, ..id(g) }, &theirs, encoder(Compression::Off, 1));
    writer.push_data(GranuleIndex(0), &[5; 128]).expect("fits");
    let bad = with_payloads(&part, &[(0, payload(&writer.finish().0, 0))]);
    assert!(matches!(verify(&bad, &keys()), Err(PartError::Decrypt { .. })));
}

#[test]
fn a_region_that_was_promised_room_fits_in_any_pieces() {
    let g = Geometry::new(1 << 40).expect("valid");
    let alternating: Vec<u8> = (0..1024 * 4096).map(|i| u8::from(i / 4096 % 2 == 0)).collect();
    for content in [alternating, noise(4 << 20, 5)] {
        let mut writer = PartWriter::new(id(g), keys(), encoder(Compression::Off, 1));
        let mut region = 0;
        while writer.has_room_for_region() {
            writer.push_read(GranuleIndex(region * 1024), &content).expect("it was promised");
            writer.take_chunk();
            region += 1;
        }
        let (_, summary, _) = writer.finish();
        assert!(region > 12, "{region} regions only");
        assert!(summary.bytes <= PART_BYTES_MAX);
    }
}

proptest! {
    #[test]
    fn however_it_is_cut_and_encoded_it_comes_out(
        pieces in prop::collection::vec((0u64..6, 1u64..20, any::<bool>()), 1..10),
        compress in any::<bool>(),
        step in 1usize..300,
    ) {
        let g = small();
        let compression = if compress { Compression::Zstd(1) } else { Compression::Off };
        let mut writer = PartWriter::new(id(g), keys(), encoder(compression, 1));
        let mut apart = PartAssembler::new(id(g), true);
        let mut frames = FrameEncoder::new(g, keys(), encoder(compression, 1), 0);
        let (mut part, mut joined, mut expected, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (gap, count, dull) in pieces {
            let start = at + gap;
            if start >= g.granule_count() { break; }
            let run = run(start, count.min(g.granule_count() - start));
            let bytes = g.bytes_of(run).len as usize;
            let data = if dull { vec![3; bytes] } else { noise(bytes, start + 1) };
            writer.push_data(run.start, &data).expect("fits");
            frames.push_read(run.start, &data).expect("ascending");
            if writer.ready_bytes() > step { part.extend(writer.take_chunk()); }
            expected.extend(data);
            at = run.end().0;
        }
        let (tail, summary, _) = writer.finish();
        part.extend(tail);
        apart.append(frames.finish().0).expect("fits");
        joined.extend(apart.finish().0);
        for keys in [keys(), ContentKeys::Opaque] {
            let mut verifier = PartVerifier::new(id(g), &keys);
            for piece in part.chunks(step) { prop_assert_eq!(verifier.feed(piece), Ok(())); }
            prop_assert_eq!(verifier.finish().expect("whole"), summary);
        }
        for part in [part, joined] {
            prop_assert_eq!(read(&part, &open(&part).expect("good"), &keys()), Ok(expected.clone()));
        }
    }
}

/// The bytes are a promise: what was written once must be readable for ever. A change here needs a new format version.
#[test]
fn golden_bytes_sealed() {
    let g = Geometry::with_shape(5 * 16 + 8, 4, 2).expect("valid");
    let volume = VolumeId(*b"0123456789abcdef");
    let id = PartId { key: LayerKey { volume, term: Term(258), seq: Seq(1) }, part: 1, geometry: g };
    let keys = ContentKeys::unseal(&group(1), volume, &group(1).seal(SealMode::EndToEnd, volume)).expect("its own");
    let mut writer = PartWriter::new(id, &keys, encoder(Compression::Off, 7));
    writer.push_data(GranuleIndex(0), b"sixteen bytes ..").expect("fits");
    writer.push_zero(run(1, 2)).expect("fits");
    writer.push_unreadable(run(4, 1)).expect("fits");
    writer.push_data(GranuleIndex(5), b"the end.").expect("fits");
    let (part, _, _) = writer.finish();
    let text: String = part.chunks(32).map(|l| l.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect();
    assert_eq!(text, include_str!("golden-sealed.hex"));
}

/// A liar's footers, whose checksums are right: each byte of every section is held against what it is to be.
#[test]
fn a_footer_that_lists_anything_else_is_refused_whatever_byte_it_is() {
    let (part, body) = (sample(Compression::Zstd(1), 1), |part: &[u8]| {
        u64::from_le_bytes(part[part.len() - TRAILER_BYTES..][..8].try_into().expect("8 bytes")) as usize + FRAME_HEAD_BYTES
    });
    let footer = open(&part).expect("good");
    let data: Vec<GranuleRun> = footer.frames().iter().filter(|f| f.kind == RunKind::Data).map(|f| f.run).collect();
    let granules: Vec<GranuleIndex> = data.iter().flat_map(|run| (run.start.0..run.end().0).map(GranuleIndex)).collect();
    let digests = HEADER_BYTES + footer.frames().len() * 32;
    let (stored, end) = (digests + granules.len() * 16, part.len() - TRAILER_BYTES - body(&part));
    for at in 0..end {
        let mut bad = part.clone();
        bad[body(&part) + at] ^= 0x40;
        reseal_footer(&mut bad);
        let region = |granule| small().region_of(granule);
        let expected = match at {
            _ if at < HEADER_BYTES => PartError::Footer("it repeats another header"),
            _ if at < digests => PartError::Footer("it lists other frames than there are"),
            // Of four bytes it is known whose they are.
            _ if at < stored && (at - digests) % 16 < 4 => {
                let granule = granules[(at - digests) / 16];
                PartError::Granule { region: region(granule), granule }
            }
            _ if at < stored => PartError::Footer("it lists other digests than its content has"),
            _ if (at - stored) % 16 < 4 => {
                let run = data[(at - stored) / 16];
                PartError::Payload { region: region(run.start), run }
            }
            _ => PartError::Footer("it lists other digests of what is stored"),
        };
        for pieces in [1, 7, part.len()] {
            let mut verifier = PartVerifier::new(id(small()), keys());
            let found = bad.chunks(pieces).try_for_each(|piece| verifier.feed(piece));
            assert_eq!(found, Err(expected.clone()), "byte {at} of the footer, in pieces of {pieces}");
        }
        let is_of_granules = (digests..stored).contains(&at);
        assert_eq!(verify(&bad, &ContentKeys::Opaque).is_ok(), is_of_granules, "whoever has no key cannot know of byte {at}");
    }
}

/// As many frames and granules as a part may have, and frames as large.
#[test]
fn a_verifier_holds_no_more_than_it_says() {
    let g = Geometry::new(1 << 40).expect("valid");
    let (dull, noise) = (vec![7; 2 * 4096], noise(64 * 4096, 1));
    let mut writer = PartWriter::new(id(g), keys(), encoder(Compression::Zstd(1), 1));
    writer.push_data(GranuleIndex(0), &noise).expect("fits");
    let mut at = 64;
    while writer.push_data(GranuleIndex(at), &dull).is_ok() {
        at += 3;
    }
    let (part, summary, _) = writer.finish();
    let frames = open(&part).expect("good").frames().len();
    assert!(frames > FRAMES_MAX - 2 && summary.data_granules > 60_000, "{frames} frames, {summary:?}");
    for keys in [keys(), ContentKeys::Opaque] {
        let (mut verifier, mut most) = (PartVerifier::new(id(g), &keys), 0);
        for piece in part.chunks(100_000) {
            verifier.feed(piece).expect("good");
            most = most.max(verifier.held_bytes());
        }
        assert_eq!(verifier.finish().expect("whole"), summary);
        let counted_max = VERIFIER_BYTES_MAX - (256 << 10);
        assert!((counted_max / 3..=counted_max).contains(&most), "{most} bytes of {counted_max}");
    }
}
