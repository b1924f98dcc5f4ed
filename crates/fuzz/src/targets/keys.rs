//! What is encrypted: parts, read with their key and without, and keys that were wrapped, from a store that is not trusted.

use farside_keys::{ContentKeys, GroupKey, SealMode, Sealer, Secret, Wrapping};
use farside_layer::{Compression, Encoder, Footer, FrameDecoder, PartError, PartVerifier, PartWriter, RunKind};
use farside_region::{GranuleIndex, GranuleRun};

use super::layer::{id, seal_footer};
use super::{no_seal, reads_back, small};
use crate::engine::{Memory, Outcome, Target, magnitude, unmeasured};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "part-sealed",
        what: "an encrypted part, as a receiver that has no key sees it, and as one that has",
        seeds: parts,
        seal: |bytes| seal_footer(bytes),
        words: &[b"FSLAYPRT", &[1, 0, 1, 0], &[1, 0, 0, 0], &[1, 1, 0, 0]],
        bytes_max: 6 << 10,
        // Two decompressors' contexts, one frame, the tables, twice.
        memory: Memory { fixed_bytes: 1 << 20, bytes_per_byte: 32 },
        decode: part,
    },
    Target {
        name: "key-wrapping",
        what: "a wrapped key, from a store",
        seeds: wrappings,
        seal: no_seal,
        words: &[b"\"format\"", b"farside key", b"\"by\"", b"passphrase", b"file", b"command", b"\"argon2id\"", b"\"nonce\""],
        bytes_max: 2 << 10,
        memory: small(64),
        decode: wrapping,
    },
];

fn keys() -> ContentKeys {
    let (group, volume) = (GroupKey::new(Secret::new(&[1; 32])), id().key.volume);
    ContentKeys::unseal(&group, volume, &group.seal(SealMode::EndToEnd, volume)).expect("its own")
}

fn parts() -> Vec<Vec<u8>> {
    let part = |compression| {
        let encoder = Encoder::new(compression).sealing(Sealer::new(Secret::new(&[2; 32])));
        let mut writer = PartWriter::new(id(), keys(), encoder);
        writer.push_data(GranuleIndex(1), &[7; 9 * 64]).expect("it fits");
        writer.push_zero(GranuleRun { start: GranuleIndex(10), count: 4 }).expect("it fits");
        writer.push_data(GranuleIndex(95), &[9; 64 + 40]).expect("it fits");
        writer.finish().0
    };
    vec![part(Compression::Off), part(Compression::Zstd(1))]
}

fn part(bytes: &[u8]) -> Outcome {
    let verify = |keys: &ContentKeys| -> Result<Footer, PartError> {
        let mut verifier = PartVerifier::new(id(), keys);
        verifier.feed(bytes)?;
        let summary = verifier.finish()?;
        let footer = Footer::from_tail(bytes, bytes.len() as u64)?;
        assert_eq!(footer.summary(), summary, "what was verified as a stream reads differently from its end");
        Ok(footer)
    };
    let keys = keys();
    match (verify(&ContentKeys::Opaque), verify(&keys)) {
        (Err(_), Ok(_)) => panic!("whoever has no key refuses what is right"),
        (Err(error), Err(_)) => Outcome::refused(error),
        (Ok(footer), with_key) => {
            if let Ok(with_key) = &with_key {
                assert_eq!(*with_key, footer, "a part is two, with its key and without");
            }
            let (mut blind, mut seeing, mut content) =
                (FrameDecoder::new(ContentKeys::Opaque), FrameDecoder::new(keys), Vec::new());
            for frame in footer.frames().iter().filter(|f| f.kind == RunKind::Data) {
                let stored = &bytes[frame.offset as usize..(frame.offset + frame.stored_bytes) as usize];
                assert_eq!(blind.check(&footer, frame, stored, &mut content), Ok(()), "verified as a stream, and damaged alone");
                let read = seeing.decode(&footer, frame, stored, &mut content);
                assert!(with_key.is_err() || read.is_ok(), "verified as a stream, and not read: {read:?}");
            }
            Outcome::accepted((with_key.is_ok(), footer.frames().len().min(16), magnitude(footer.summary().data_granules)))
        }
    }
}

fn wrappings() -> Vec<Vec<u8>> {
    let (key, nonce, wrapped) = ("ab".repeat(16), "cd".repeat(12), "ef".repeat(48));
    let text = |by: &str, more: &str| {
        let text = format!(
            "{{\n  \"format\": \"farside key\",\n  \"version\": 1,\n  \"key\": \"{key}\",\n  \"by\": \"{by}\",\n{more}  \"wrapped\": \"{wrapped}\"\n}}\n"
        );
        text.into_bytes()
    };
    let nonce = format!("  \"nonce\": \"{nonce}\",\n");
    let argon2id = format!(
        "  \"argon2id\": {{\n    \"memory_kib\": 65536,\n    \"passes\": 3,\n    \"lanes\": 4,\n    \"salt\": \"{}\"\n  }},\n",
        "12".repeat(16)
    );
    let bound = text("file", &format!("  \"group\": \"web1/db\",\n{nonce}"));
    let bound = String::from_utf8(bound).expect("text").replace("\"version\": 1", "\"version\": 2").into_bytes();
    let digested = text("command", &format!("  \"digest\": \"{}\",\n", "34".repeat(32)));
    vec![text("file", &nonce), text("passphrase", &(argon2id + &nonce)), text("command", ""), bound, digested]
}

fn wrapping(bytes: &[u8]) -> Outcome {
    match Wrapping::decode(bytes) {
        Err(error) => Outcome::refused(error),
        Ok(wrapping) => {
            reads_back(&wrapping, || Wrapping::decode(&wrapping.encode()).ok());
            unmeasured(|| assert_eq!(wrapping.encode(), Wrapping::decode(&wrapping.encode()).expect("just so").encode()));
            Outcome::accepted(wrapping.way())
        }
    }
}
