//! How fast one thread makes and checks layers: `cargo run --release -p farside-layer --example speed [FILE]`.
//!
//! Reads up to 512 MiB of FILE, or makes content of which half compresses, and prints GB/s of uncompressed content, in clear and
//! encrypted.

use std::time::{Duration, Instant};

use farside_keys::{ContentKeys, GroupKey, SealMode, Sealer, Secret};
use farside_layer::{
    Compression, Encoder, FrameDecoder, PartId, PartVerifier, PartWriter, RunKind, granule_digest, is_zero, read_footer,
};
use farside_region::{Geometry, GranuleIndex, LayerKey, Seq, Term, VolumeId};

const KEY: [u8; 32] = [7; 32];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let content = match std::env::args().nth(1) {
        Some(path) => {
            use std::io::Read;
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(512 << 20).read_to_end(&mut bytes)?;
            bytes
        }
        None => mixed(256 << 20),
    };
    let id = PartId {
        key: LayerKey { volume: VolumeId([1; 16]), term: Term(1), seq: Seq(1) },
        part: 0,
        geometry: Geometry::new(content.len() as u64)?,
    };
    println!("{} MiB", content.len() >> 20);
    let mut zeroes = vec![1; content.len()];
    zeroes.fill(0); // so that it has memory of its own
    timed("zero test", content.len(), || zeroes.chunks(4096).filter(|g| is_zero(g)).count());
    drop(zeroes);
    timed("granule digests", content.len(), || {
        content.chunks(4096).enumerate().map(|(i, g)| usize::from(granule_digest(&KEY, GranuleIndex(i as u64), g).0[0])).sum()
    });
    let (group, volume) = (GroupKey::new(Secret::new(&KEY)), id.key.volume);
    let sealed = ContentKeys::unseal(&group, volume, &group.seal(SealMode::EndToEnd, volume))?;
    let compressions = [Compression::Off, Compression::Zstd(-1), Compression::Zstd(1), Compression::Zstd(3)];
    for (keys, compression) in compressions.iter().flat_map(|&c| [(ContentKeys::from(&KEY), c), (sealed.clone(), c)]) {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let how = if keys.is_sealed() { ", encrypted" } else { "" };
        timed(&format!("write, {compression:?}{how}"), content.len(), || {
            let mut bytes = 0;
            write(&content, id, &keys, compression, |_, chunk| bytes += chunk.len());
            bytes
        });
        write(&content, id, &keys, compression, |part, chunk| {
            parts.resize(part + 1, Vec::new());
            parts[part].extend_from_slice(&chunk);
        });
        let verify = |keys: &ContentKeys| {
            let good = parts.iter().enumerate().all(|(i, part)| {
                let mut verifier = PartVerifier::new(PartId { part: i as u32, ..id }, keys);
                part.chunks(64 << 10).all(|c| verifier.feed(c).is_ok()) && verifier.finish().is_ok()
            });
            usize::from(good)
        };
        timed("  verify", content.len(), || verify(&keys));
        if keys.is_sealed() {
            timed("  verify without the key", content.len(), || verify(&ContentKeys::Opaque));
        }
        timed("  decode by footer", content.len(), || parts.iter().map(|p| decode(p, &keys)).sum());
    }
    Ok(())
}

/// The best of three, so that a busy machine disturbs less. Prints GB/s and what the work returned.
fn timed(what: &str, bytes: usize, mut work: impl FnMut() -> usize) {
    let mut best = Duration::MAX;
    let mut result = 0;
    for _ in 0..3 {
        let start = Instant::now();
        result = work();
        best = best.min(start.elapsed());
    }
    println!("{what:<34} {:6.2} GB/s   ({result})", bytes as f64 / best.as_secs_f64() / 1e9);
}

/// Hands over (part number, chunk) as a sender does: a chunk of every 256 KiB read.
fn write(content: &[u8], id: PartId, keys: &ContentKeys, compression: Compression, mut send: impl FnMut(usize, Vec<u8>)) {
    let encoder = Encoder::new(compression).sealing(Sealer::new(Secret::random().expect("randomness")));
    let mut writer = PartWriter::new(id, keys, encoder);
    for (i, block) in content.chunks(256 << 10).enumerate() {
        let part = writer.id().part;
        if !writer.has_room_for(64) {
            let (bytes, _, encoder) = writer.finish();
            send(part as usize, bytes);
            writer = PartWriter::new(PartId { part: part + 1, ..id }, keys, encoder);
        }
        writer.push_read(GranuleIndex(i as u64 * 64), block).expect("ascending, and there is room");
        send(writer.id().part as usize, writer.take_chunk());
    }
    let part = writer.id().part;
    send(part as usize, writer.finish().0);
}

fn decode(part: &[u8], keys: &ContentKeys) -> usize {
    let read = |at: u64, buf: &mut [u8]| {
        buf.copy_from_slice(&part[at as usize..at as usize + buf.len()]);
        Ok::<_, std::convert::Infallible>(())
    };
    let footer = read_footer(part.len() as u64, read).expect("just written");
    let (mut decoder, mut out, mut sum) = (FrameDecoder::new(keys), Vec::new(), 0);
    for frame in footer.frames().iter().filter(|f| f.kind == RunKind::Data) {
        let stored = &part[frame.offset as usize..(frame.offset + frame.stored_bytes) as usize];
        decoder.decode(&footer, frame, stored, &mut out).expect("just written");
        sum += out.len();
    }
    sum
}

/// Half text-like, half noise, in turns of 1 MiB.
fn mixed(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        let noise = (out.len() >> 20) % 2 == 1;
        let word = next();
        if noise {
            out.extend_from_slice(&word.to_le_bytes());
        } else {
            out.extend_from_slice(b"record=");
            out.extend_from_slice(&(word % 1000).to_string().into_bytes());
            out.push(b'\n');
        }
    }
    out.truncate(bytes);
    out
}
