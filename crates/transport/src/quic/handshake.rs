//! The first frame each way on the control stream: who the source says it is, and the pairing proof.
//!
//! Source → receiver: `"FSD1" ‖ kind (1 connect, 2 pair, 3 lead, 4 join) ‖ source name (u8 length) ‖ [pair: token id (8) ‖ proof (32)] ‖
//! [lead, join: lane id (16)]`. Who leads connects, and says by which id others may join; the answer to both is that of a connect.
//! Receiver → source: `"FSD1" ‖ kind ‖ receiver name (u8 length) ‖ [pair: proof (32)]`.
//! A refusal is the connection's close, with code and text. Nothing else is sent before the answer.

use bytes::Bytes;
use farside_region::Name;

const MAGIC: &[u8; 4] = b"FSD1";
const CONNECT: u8 = 1;
const PAIR: u8 = 2;
const LEAD: u8 = 3;
const JOIN: u8 = 4;
/// Longest frame of the handshake, in bytes.
pub(super) const OPENING_BYTES_MAX: usize = 256;
/// What TLS exports key material under for the pairing proofs.
pub(super) const EXPORTER_LABEL: &[u8] = b"EXPORTER-farside-pairing-1";

/// What the source opens with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The name that it says it has.
    pub source: Name,
    /// To be paired, instead of being known.
    pub pairing: Option<PairingProof>,
    /// One of several connections that are one; never when pairing.
    pub lane: Option<Lane>,
}

/// What a connection is of several that carry the parts of one. The id is drawn anew for each, and known to the two sides only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The one; others may join it.
    Leads([u8; 16]),
    /// Another one.
    Joins([u8; 16]),
}

/// What shows that a token is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairingProof {
    /// Which token; not secret.
    pub token_id: [u8; 8],
    /// Made with the token's secret, for this TLS session only.
    pub proof: [u8; 32],
}

/// What the receiver answers when it agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub receiver: Name,
    /// That it holds the token, too; when pairing.
    pub proof: Option<[u8; 32]>,
}

impl Opening {
    /// The frame.
    pub fn encode(&self) -> Bytes {
        let kind = match (&self.pairing, &self.lane) {
            (Some(_), _) => PAIR,
            (None, None) => CONNECT,
            (None, Some(Lane::Leads(_))) => LEAD,
            (None, Some(Lane::Joins(_))) => JOIN,
        };
        let mut bytes = begin(kind, &self.source);
        if let Some(pairing) = &self.pairing {
            bytes.extend_from_slice(&pairing.token_id);
            bytes.extend_from_slice(&pairing.proof);
        } else if let Some(Lane::Leads(id) | Lane::Joins(id)) = &self.lane {
            bytes.extend_from_slice(id);
        }
        bytes.into()
    }

    /// From the frame; `None` when it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, source, rest) = end(bytes)?;
        let (pairing, lane) = match kind {
            CONNECT if rest.is_empty() => (None, None),
            PAIR => {
                let (token_id, proof) = rest.split_first_chunk::<8>()?;
                (Some(PairingProof { token_id: *token_id, proof: proof.try_into().ok()? }), None)
            }
            LEAD => (None, Some(Lane::Leads(rest.try_into().ok()?))),
            JOIN => (None, Some(Lane::Joins(rest.try_into().ok()?))),
            _ => return None,
        };
        Some(Self { source, pairing, lane })
    }
}

impl Answer {
    /// The frame.
    pub fn encode(&self) -> Bytes {
        let mut bytes = begin(if self.proof.is_some() { PAIR } else { CONNECT }, &self.receiver);
        bytes.extend_from_slice(self.proof.as_ref().map_or(&[][..], |proof| &proof[..]));
        bytes.into()
    }

    /// From the frame; `None` when it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, receiver, rest) = end(bytes)?;
        let proof = match kind {
            CONNECT if rest.is_empty() => None,
            PAIR => Some(rest.try_into().ok()?),
            _ => return None,
        };
        Some(Self { receiver, proof })
    }
}

fn begin(kind: u8, name: &Name) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(kind);
    bytes.push(u8::try_from(name.as_str().len()).expect("a name has at most 64 bytes"));
    bytes.extend_from_slice(name.as_str().as_bytes());
    bytes
}

fn end(bytes: &[u8]) -> Option<(u8, Name, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (&[kind, length], rest) = rest.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_at_checked(length.into())?;
    Some((kind, std::str::from_utf8(name).ok()?.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::name;

    #[test]
    fn golden_bytes() {
        let connect = Opening { source: name("db1"), pairing: None, lane: None };
        assert_eq!(connect.encode(), &b"FSD1\x01\x03db1"[..]);
        let pairing = PairingProof { token_id: *b"12345678", proof: [7; 32] };
        let pair = Opening { source: name("db1"), pairing: Some(pairing), lane: None };
        assert_eq!(pair.encode(), [&b"FSD1\x02\x03db112345678"[..], &[7; 32]].concat());
        let answer = Answer { receiver: name("gw"), proof: Some([8; 32]) };
        assert_eq!(answer.encode(), [&b"FSD1\x02\x02gw"[..], &[8; 32]].concat());
        let agreed = Answer { receiver: name("gw"), proof: None };
        assert_eq!(agreed.encode(), &b"FSD1\x01\x02gw"[..]);
        let lane = |lane| Opening { source: name("db1"), pairing: None, lane: Some(lane) };
        let (lead, join) = (lane(Lane::Leads([9; 16])), lane(Lane::Joins([9; 16])));
        assert_eq!(lead.encode(), [&b"FSD1\x03\x03db1"[..], &[9; 16]].concat());
        assert_eq!(join.encode(), [&b"FSD1\x04\x03db1"[..], &[9; 16]].concat());
        for opening in [connect, pair, lead, join] {
            assert!(opening.encode().len() <= OPENING_BYTES_MAX);
            assert_eq!(Opening::decode(&opening.encode()), Some(opening));
        }
        for answer in [answer, agreed] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let pairing = Some(PairingProof { token_id: [1; 8], proof: [2; 32] });
        let pair = Opening { source: name("db1"), pairing, lane: None };
        for whole in [pair, Opening { source: name("db1"), pairing: None, lane: Some(Lane::Joins([3; 16])) }] {
            let whole = whole.encode();
            for cut in 0..whole.len() {
                assert_eq!(Opening::decode(&whole[..cut]), None, "cut at {cut}");
            }
            assert_eq!(Opening::decode(&[&whole[..], b"x"].concat()), None, "too long");
        }
        for bad in [
            &b"FSD1\x05\x03db1"[..],
            b"FSD1\x03\x03db1",
            b"FSD2\x01\x03db1",
            b"FSD1\x01\x04db1",
            b"FSD1\x01\x03db1x",
            b"FSD1\x01\x00",
            b"FSD1\x01\x02d/",
        ] {
            assert_eq!(Opening::decode(bad), None, "{bad:?}");
            assert_eq!(Answer::decode(bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let whole = [&b"FSD1"[..], &bytes].concat();
            let _ = (Opening::decode(&bytes), Answer::decode(&bytes), Opening::decode(&whole), Answer::decode(&whole));
        }
    }
}
