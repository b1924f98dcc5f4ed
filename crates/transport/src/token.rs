//! The one line that a person carries from the receiver to the source, and the proof that whoever connects has it.
//!
//! Line: `farside1-` and then base 32 (RFC 4648, lower case, no padding) of
//! `version 1 ‖ flags ‖ expiry (u64 LE, Unix seconds) ‖ receiver fingerprint (32) ‖ secret (16) ‖ source name (u8 length) ‖
//! number of addresses (u8) ‖ each address (u8 length) ‖ first 4 bytes of the BLAKE3 of all before`.
//! One word without characters that a shell would touch.
//!
//! Invariant: the secret is printed only by [`PairingToken::to_line`]; the book on the receiver keeps a key derived from it.

use std::fmt;
use std::str::FromStr;

use farside_region::Name;

use crate::Fingerprint;

const PREFIX: &str = "farside1-";
const VERSION: u8 = 1;
const FLAG_REPLACE: u8 = 1;
const ADDRESSES_MAX: usize = 16;
const LINE_BYTES_MAX: usize = 8 << 10;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The one-time secret of a token: 16 random bytes. Not printable.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// What the receiver keeps instead of the secret, and what proofs are made with.
    pub(crate) fn proof_key(&self) -> [u8; 32] {
        blake3::derive_key("farside 2026 pairing token v1: proof key", &self.0)
    }

    /// Which token this is, for whoever keeps its proof key.
    pub(crate) fn token_id(&self) -> [u8; 8] {
        let whole = blake3::derive_key("farside 2026 pairing token v1: token id", &self.0);
        *whole.first_chunk().expect("32 bytes hold 8")
    }
}

/// Everything a source needs to find its receiver, to know it, and to be let in once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairingToken {
    /// Where the receiver listens: `host:port`, tried in order.
    pub addresses: Vec<String>,
    /// The receiver's certificate.
    pub receiver: Fingerprint,
    /// Proves that the source was invited.
    pub secret: Secret,
    /// Unix seconds on the receiver's clock; only the receiver judges it.
    pub expires_unix_s: u64,
    /// The only source name it is good for, if it is restricted.
    pub source: Option<Name>,
    /// Whether it may take over a name that is paired already. For display; the receiver keeps its own word.
    pub replace: bool,
}

/// Why a line is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not begin as one.
    #[error("this is not a pairing token: it begins with `{PREFIX}` and is printed by `farside-receiver token`")]
    NotAToken,
    /// It begins as one but is cut or mistyped.
    #[error("this pairing token is damaged: copy the whole line")]
    Damaged,
    /// It comes from a newer version.
    #[error("this pairing token has version {0}, which this program does not know: upgrade it")]
    Version(u8),
}

impl PairingToken {
    /// The line to print. It contains the secret.
    pub fn to_line(&self) -> String {
        let mut bytes = vec![VERSION, if self.replace { FLAG_REPLACE } else { 0 }];
        bytes.extend_from_slice(&self.expires_unix_s.to_le_bytes());
        bytes.extend_from_slice(&self.receiver.0);
        bytes.extend_from_slice(&self.secret.0);
        put_text(&mut bytes, self.source.as_ref().map_or("", Name::as_str));
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)];
        bytes.push(addresses.len() as u8);
        for address in addresses {
            put_text(&mut bytes, address);
        }
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..4]);
        format!("{PREFIX}{}", base32(&bytes))
    }
}

impl FromStr for PairingToken {
    type Err = TokenError;

    fn from_str(line: &str) -> Result<Self, TokenError> {
        let body = line.trim().strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if body.len() > LINE_BYTES_MAX {
            return Err(TokenError::Damaged);
        }
        let bytes = from_base32(body).ok_or(TokenError::Damaged)?;
        let (content, check) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if blake3::hash(content).as_bytes()[..4] != check[..] {
            return Err(TokenError::Damaged);
        }
        let (version, mut rest) = content.split_first().ok_or(TokenError::Damaged)?;
        if *version != VERSION {
            return Err(TokenError::Version(*version));
        }
        parse(&mut rest).ok_or(TokenError::Damaged)
    }
}

fn parse(rest: &mut &[u8]) -> Option<PairingToken> {
    let [flags] = take(rest)?;
    let expires_unix_s = u64::from_le_bytes(take(rest)?);
    let receiver = Fingerprint(take(rest)?);
    let secret = Secret(take(rest)?);
    let source = match take_text(rest)? {
        "" => None,
        name => Some(name.parse().ok()?),
    };
    let [count] = take(rest)?;
    let addresses: Vec<String> = (0..count).map(|_| take_text(rest).map(str::to_owned)).collect::<Option<_>>()?;
    let printable = addresses.iter().all(|a| !a.is_empty() && a.bytes().all(|b| b.is_ascii_graphic()));
    let fits = rest.is_empty() && printable && (1..=ADDRESSES_MAX).contains(&addresses.len()) && flags & !FLAG_REPLACE == 0;
    fits.then_some(PairingToken { addresses, receiver, secret, expires_unix_s, source, replace: flags & FLAG_REPLACE != 0 })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let [length] = take(rest)?;
    let (text, tail) = rest.split_at_checked(length.into())?;
    *rest = tail;
    std::str::from_utf8(text).ok()
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let length = u8::try_from(text.len()).expect("names and addresses are checked to be short");
    bytes.push(length);
    bytes.extend_from_slice(text.as_bytes());
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let mut word = [0_u8; 8];
        word[3..3 + group.len()].copy_from_slice(group);
        let value = u64::from_be_bytes(word);
        for digit in 0..(group.len() * 8).div_ceil(5) {
            text.push(ALPHABET[(value >> (35 - 5 * digit)) as usize & 31] as char);
        }
    }
    text
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut value, mut bits) = (0_u32, 0);
    for byte in text.bytes() {
        let digit = ALPHABET.iter().position(|&a| a == byte.to_ascii_lowercase())?;
        value = (value << 5 | digit as u32) & 0xFFF;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits) as u8);
        }
    }
    (value & ((1 << bits) - 1) == 0).then_some(bytes)
}

/// Which side proves that it knows the secret; each proof is good for one direction only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prover {
    Source,
    Receiver,
}

/// Proves knowledge of the secret inside one TLS session between two certificates. `session` is exported key material of
/// that session, so a proof seen elsewhere is worth nothing here.
pub(crate) fn proof(
    key: &[u8; 32],
    prover: Prover,
    session: &[u8; 32],
    source: &Fingerprint,
    receiver: &Fingerprint,
    name: &Name,
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(match prover {
        Prover::Source => b"farside pairing v1 source\0",
        Prover::Receiver => b"farside pairing v1 recver\0",
    });
    hasher.update(session).update(&source.0).update(&receiver.0).update(name.as_str().as_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PairingToken {
        PairingToken {
            addresses: vec!["gateway.example:7420".to_owned(), "[2001:db8::1]:7420".to_owned()],
            receiver: Fingerprint([7; 32]),
            secret: Secret([9; 16]),
            expires_unix_s: 1_800_000_000,
            source: Some("db1".parse().expect("a name")),
            replace: true,
        }
    }

    #[test]
    fn golden_line() {
        let line = sample().to_line();
        assert_eq!(line, GOLDEN);
        assert_eq!(line.parse::<PairingToken>().expect("parsed"), sample());
        assert_eq!(format!("  {}\n", line).parse::<PairingToken>().expect("parsed"), sample());
        assert!(!format!("{:?}", sample()).contains("9, 9"), "the secret is not printed");
    }

    const GOLDEN: &str = "farside1-aeaqbusjnmaaaaaaa4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqscijbeeqscijbeeqscij\
                          beeqsa3emiyqefdhmf2gk53bpexgk6dbnvygyzj2g42demaslmzdambrhjsgeob2hiyv2orxgqzdabzugwja";

    #[test]
    fn every_damage_is_noticed() {
        let line = sample().to_line();
        assert_eq!("hello".parse::<PairingToken>(), Err(TokenError::NotAToken));
        for cut in PREFIX.len()..line.len() {
            assert_eq!(line[..cut].parse::<PairingToken>(), Err(TokenError::Damaged), "cut at {cut}");
        }
        for at in PREFIX.len()..line.len() {
            let mut other = line.clone().into_bytes();
            other[at] = if other[at] == b'a' { b'b' } else { b'a' };
            let other = String::from_utf8(other).expect("ASCII");
            assert_eq!(other.parse::<PairingToken>(), Err(TokenError::Damaged), "changed at {at}");
        }
        let mut newer = vec![2, 0, 0];
        let check = blake3::hash(&newer);
        newer.extend_from_slice(&check.as_bytes()[..4]);
        assert_eq!(format!("{PREFIX}{}", base32(&newer)).parse::<PairingToken>(), Err(TokenError::Version(2)));
    }

    proptest::proptest! {
        #[test]
        fn base_32_is_reversible(bytes: Vec<u8>) {
            proptest::prop_assert_eq!(from_base32(&base32(&bytes)), Some(bytes));
        }

        #[test]
        fn arbitrary_lines_do_not_panic(body in "[a-z2-7]{0,200}", check: bool) {
            let mut bytes = from_base32(&body).unwrap_or_default();
            if check {
                let sum = blake3::hash(&bytes);
                bytes.extend_from_slice(&sum.as_bytes()[..4]);
            }
            let _ = format!("{PREFIX}{}", base32(&bytes)).parse::<PairingToken>();
        }
    }

    #[test]
    fn proofs_depend_on_everything() {
        let (a, b) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let (x, y): (Name, Name) = ("x".parse().expect("a name"), "y".parse().expect("a name"));
        let base = proof(&[0; 32], Prover::Source, &[0; 32], &a, &b, &x);
        for other in [
            proof(&[1; 32], Prover::Source, &[0; 32], &a, &b, &x),
            proof(&[0; 32], Prover::Receiver, &[0; 32], &a, &b, &x),
            proof(&[0; 32], Prover::Source, &[1; 32], &a, &b, &x),
            proof(&[0; 32], Prover::Source, &[0; 32], &b, &b, &x),
            proof(&[0; 32], Prover::Source, &[0; 32], &a, &a, &x),
            proof(&[0; 32], Prover::Source, &[0; 32], &a, &b, &y),
        ] {
            assert_ne!(base, other);
        }
    }
}
