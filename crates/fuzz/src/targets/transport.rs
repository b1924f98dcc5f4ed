//! What comes before anybody is known: tokens, the first frames, the framing itself; and the receiver's book of pairings.

use bytes::BytesMut;
use farside_transport::quic::{Answer, Lane, MTU_MAX, Opening, PairingProof, take_frame, take_packet};
use farside_transport::{Fingerprint, PairingBook, PairingToken, TokenRequest};

use super::files::with_file;
use super::ledger::name;
use super::{no_seal, reads_back, small};
use crate::engine::{Outcome, Target, magnitude, unmeasured};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "pairing-token",
        what: "the line that a person carries from the receiver to the source",
        seeds: || vec![GOLDEN.to_vec(), [b" ", GOLDEN, b"\n"].concat()],
        seal: seal_token,
        words: &[b"farside1-", b"gateway.example:7420", b"[2001:db8::1]:7420"],
        bytes_max: 4 << 10,
        memory: small(16),
        decode: token,
    },
    Target {
        name: "opening",
        what: "the first frame of whoever connects, at the receiver, and its answer, at the source",
        seeds: opening_seeds,
        seal: no_seal,
        words: &[b"FSD1", b"FSD1\x01", b"FSD1\x02"],
        bytes_max: 320,
        memory: small(8),
        decode: opening,
    },
    Target {
        name: "frames",
        what: "the framing of control streams, on both sides",
        seeds: || vec![b"\0\0\0\0\x01\0\0\0a\x05\0\0\0hello".to_vec(), [&200_u32.to_le_bytes()[..], &[7; 200]].concat()],
        seal: no_seal,
        words: &[&[0; 4], &[255; 4], &[0, 1, 0, 0], &[1, 1, 0, 0]],
        bytes_max: 2 << 10,
        memory: small(8),
        decode: frames,
    },
    Target {
        name: "tcp-packets",
        what: "QUIC's packets out of a TCP connection, on both sides, before anybody is known",
        seeds: || vec![b"\x01\0a\x05\0hello".to_vec(), [&MTU_MAX.to_le_bytes()[..], &[7; MTU_MAX as usize], b"\x01\0b"].concat()],
        seal: no_seal,
        words: &[&[0; 2], &[255; 2], b"\xf8\x22", b"\xf9\x22", &[1, 0]],
        bytes_max: 12 << 10,
        memory: small(8),
        decode: packets,
    },
    Target {
        name: "pairing-book",
        what: "the receiver's book of paired sources and tokens, from its disk",
        seeds: || vec![BOOK.as_bytes().to_vec(), EMPTY_BOOK.as_bytes().to_vec()],
        seal: no_seal,
        words: &[b"\"format\"", b"\"sources\"", b"\"tokens\"", b"\"proof_key\"", b"null", b"true", b"1e400", b"[[[[", b"\\u0000"],
        bytes_max: 4 << 10,
        memory: small(64),
        decode: book,
    },
];

const GOLDEN: &[u8] = b"farside1-aeaqbusjnmaaaaaaa4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqscijbeeqscijbeeqscijbeeqsa3\
emiyqefdhmf2gk53bpexgk6dbnvygyzj2g42demaslmzdambrhjsgeob2hiyv2orxgqzdabzugwja";
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The four bytes of the line's hash.
fn seal_token(line: &mut Vec<u8>) {
    let Some(at) = line.windows(9).position(|w| w == b"farside1-").map(|at| at + 9) else { return };
    let end = line[at..].iter().position(|b| !b.is_ascii_alphanumeric()).map_or(line.len(), |n| at + n);
    let (mut bytes, mut value, mut bits) = (Vec::new(), 0_u32, 0);
    for byte in &line[at..end] {
        let Some(digit) = ALPHABET.iter().position(|a| *a == byte.to_ascii_lowercase()) else { return };
        value = (value << 5 | digit as u32) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
        }
    }
    let Some(content) = bytes.len().checked_sub(4) else { return };
    let check = blake3::hash(&bytes[..content]);
    bytes[content..].copy_from_slice(&check.as_bytes()[..4]);
    let mut text = Vec::new();
    for group in bytes.chunks(5) {
        let mut word = [0; 8];
        word[3..3 + group.len()].copy_from_slice(group);
        let value = u64::from_be_bytes(word);
        text.extend((0..(group.len() * 8).div_ceil(5)).map(|digit| ALPHABET[(value >> (35 - 5 * digit)) as usize & 31]));
    }
    line.splice(at..end, text);
}

fn token(bytes: &[u8]) -> Outcome {
    let Ok(line) = std::str::from_utf8(bytes) else { return Outcome::refused("not text") };
    match line.parse::<PairingToken>() {
        Err(error) => Outcome::refused(error),
        Ok(token) => {
            assert!((1..=16).contains(&token.addresses.len()), "{} addresses", token.addresses.len());
            reads_back(&token, || token.to_line().parse().ok());
            Outcome::accepted((token.addresses.len(), token.source.is_some(), token.replace))
        }
    }
}

fn opening_seeds() -> Vec<Vec<u8>> {
    let pairing = Some(PairingProof { token_id: *b"12345678", proof: [7; 32] });
    vec![
        Opening { source: name("db1"), pairing: None, lane: None }.encode().to_vec(),
        Opening { source: name("db1"), pairing, lane: None }.encode().to_vec(),
        Opening { source: name("db1"), pairing: None, lane: Some(Lane::Leads([5; 16])) }.encode().to_vec(),
        Opening { source: name("db1"), pairing: None, lane: Some(Lane::Joins([6; 16])) }.encode().to_vec(),
        Answer { receiver: name("gw"), proof: Some([8; 32]) }.encode().to_vec(),
    ]
}

fn opening(bytes: &[u8]) -> Outcome {
    let (opening, answer) = (Opening::decode(bytes), Answer::decode(bytes));
    if let Some(opening) = &opening {
        assert_eq!(opening.encode(), bytes, "one opening, two ways to write it");
    }
    if let Some(answer) = &answer {
        assert_eq!(answer.encode(), bytes, "one answer, two ways to write it");
    }
    let shape = (opening.as_ref().map(|o| o.pairing.is_some()), answer.as_ref().map(|a| a.proof.is_some()));
    if shape == (None, None) { Outcome::refused("neither") } else { Outcome::accepted(shape) }
}

/// Frames of at most 256 bytes, in pieces.
fn frames(bytes: &[u8]) -> Outcome {
    let step = 1 + bytes.len() % 37;
    let (mut buffer, mut sizes, mut total) = (BytesMut::new(), Vec::new(), 0);
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match take_frame(&mut buffer, 256) {
                Err(error) => {
                    assert!(error.bytes > error.max);
                    return Outcome::refused(error);
                }
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert!(frame.len() <= 256, "a frame of {} bytes", frame.len());
                    assert_eq!(bytes[total + 4..][..frame.len()], frame[..], "a frame holds other bytes than came");
                    total += 4 + frame.len();
                    if sizes.len() < 3 {
                        sizes.push(magnitude(frame.len() as u64) / 3);
                    }
                }
            }
        }
    }
    if sizes.is_empty() { Outcome::refused("no whole frame") } else { Outcome::accepted((sizes, buffer.is_empty())) }
}

/// In pieces, as TCP brings them.
fn packets(bytes: &[u8]) -> Outcome {
    let step = 1 + bytes.len() % 37;
    let (mut buffer, mut sizes, mut total) = (BytesMut::new(), Vec::new(), 0);
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match take_packet(&mut buffer) {
                Err(error) => {
                    assert!(error.bytes == 0 || error.bytes > MTU_MAX, "{error}");
                    return Outcome::refused(error);
                }
                Ok(None) => break,
                Ok(Some(packet)) => {
                    assert!((1..=usize::from(MTU_MAX)).contains(&packet.len()), "a packet of {} bytes", packet.len());
                    assert_eq!(bytes[total + 2..][..packet.len()], packet[..], "a packet holds other bytes than came");
                    total += 2 + packet.len();
                    if sizes.len() < 3 {
                        sizes.push(magnitude(packet.len() as u64) / 3);
                    }
                }
            }
        }
        assert!(buffer.len() < 2 + usize::from(MTU_MAX), "a whole packet is kept back");
    }
    if sizes.is_empty() { Outcome::refused("no whole packet") } else { Outcome::accepted((sizes, buffer.is_empty())) }
}

const EMPTY_BOOK: &str = r#"{"format":1,"sources":[],"tokens":[]}"#;
const BOOK: &str = concat!(
    r#"{"format":1,"sources":[{"name":"db1","fingerprint":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","#,
    r#""paired_unix_s":1800000000}],"tokens":[{"id":"0011223344556677","#,
    r#""proof_key":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","expires_unix_s":1800000000,"#,
    r#""source":"db2","replace":true,"used_by":null}]}"#
);

fn book(bytes: &[u8]) -> Outcome {
    with_file("pairings.json", bytes, |path| match PairingBook::open(path) {
        Err(error) => Outcome::refused(error),
        Ok(book) => {
            let sources = book.sources();
            assert!(sources.iter().all(|s| book.name_of(&s.fingerprint).as_ref() == Some(&s.name)), "a source that is not found");
            let tokens = book.tokens(1).len();
            unmeasured(|| {
                let request = TokenRequest {
                    addresses: vec!["gateway:7400".to_owned()],
                    receiver: Fingerprint([1; 32]),
                    lifetime_s: u64::MAX,
                    source: None,
                    replace: false,
                };
                // A book that was read can be written, and reads the same.
                if book.create_token(request, 1).is_ok() {
                    let again = PairingBook::open(path).expect("what was written can be read");
                    assert_eq!((again.sources(), again.tokens(1).len()), (sources.clone(), tokens + 1));
                }
            });
            Outcome::accepted((sources.len().min(4), tokens.min(4)))
        }
    })
}
