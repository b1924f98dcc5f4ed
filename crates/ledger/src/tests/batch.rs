//! Several records in one object: what is written is read, and nothing else is.

use farside_region::RecordDigest;
use proptest::prelude::*;

use super::*;
use crate::codec::RECORD_BYTES_MAX;

/// So many records that follow one another from a slot on, as they are stored.
pub(super) fn records(first: u64, count: u64) -> (Vec<(Record, RecordDigest)>, Vec<Encoded>) {
    let (mut records, mut encoded) = (Vec::new(), Vec::new());
    let mut prev = RecordDigest([9; 32]);
    for slot in first..first + count {
        let layers = Layers {
            kind: LayerKind::Point,
            epoch: epoch(),
            label: None,
            members: vec![entry(1, Term(0), slot + 1, slot as u8)],
        };
        let stamp = Stamp { writer: [1; 16], mono_ms: slot, wall_ms: 5 };
        let nonce = [slot as u8; 16];
        let record = Record { group: group(), slot: Slot(slot), prev, nonce, stamp, body: Body::Layers(layers) };
        let its = record.encode().expect("small");
        prev = its.digest;
        records.push((record, its.digest));
        encoded.push(its);
    }
    (records, encoded)
}

fn object(first: u64, count: u64) -> Vec<u8> {
    encode_object(Slot(first), &records(first, count).1).expect("they fit")
}

/// The bytes of an object with its own digest, whatever they say.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let content = bytes.len() - 32;
    let digest = blake3::hash(&bytes[..content]);
    bytes[content..].copy_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn one_record_is_what_it_is_alone_and_several_come_back_in_their_order() {
    let (_, encoded) = records(7, 1);
    assert_eq!(object(7, 1), encoded[0].bytes);
    for (first, count) in [(0, 1), (0, 2), (0, 64), (62, 2), (63, 1), (64, 64), (100, 28), (4090, 6)] {
        let bytes = object(first, count);
        assert_eq!(decode_object(&bytes), Ok(records(first, count).0), "{count} from {first}");
        assert_eq!(bytes.len(), object_bytes(count as usize, records(first, count).1.iter().map(|r| r.bytes.len()).sum()));
    }
}

/// The head of the object is a promise, too: see `docs/formats/ledger.md`.
#[test]
fn a_batch_is_these_bytes() {
    let bytes = object(2, 3);
    let lengths: Vec<u32> = records(2, 3).1.iter().map(|r| r.bytes.len() as u32).collect();
    let mut expected = b"FSLBATCH\x01\x00\x03\x00\x00\x00\x00\x00".to_vec();
    lengths.iter().for_each(|length| expected.extend_from_slice(&length.to_le_bytes()));
    records(2, 3).1.iter().for_each(|record| expected.extend_from_slice(&record.bytes));
    expected.extend_from_slice(blake3::hash(&expected).as_bytes());
    assert_eq!(bytes, expected);
}

#[test]
fn what_leaves_its_run_or_is_too_large_is_no_object() {
    for (first, count) in [(63, 2), (0, 65), (1, 64), (4095, 2)] {
        let refused = encode_object(Slot(first), &records(first, count).1);
        assert_eq!(refused, Err(BatchError::Run { first: Slot(first), count: count as usize }));
    }
    let (_, mut large) = records(0, 2);
    let rest = RECORD_BYTES_MAX - large[0].bytes.len();
    large[1].bytes.resize(rest, 0);
    assert!(matches!(encode_object(Slot(0), &large), Err(BatchError::TooLarge(_))));
    // As if it had been written by somebody who does not know of runs.
    let (_, encoded) = records(62, 3);
    let shifted = encode_object(Slot(0), &encoded).expect("the slots are not looked at here");
    assert_eq!(decode_object(&shifted), Err(DecodeError::Batch));
}

#[test]
fn records_that_do_not_follow_one_another_are_no_batch() {
    let (_, encoded) = records(0, 4);
    let of = |which: &[usize]| {
        let some: Vec<Encoded> = which.iter().map(|i| encoded[*i].clone()).collect();
        decode_object(&encode_object(Slot(0), &some).expect("small")).map(|records| records.len())
    };
    assert_eq!(of(&[0, 1, 2, 3]), Ok(4));
    for which in [&[0, 2][..], &[1, 0], &[0, 0], &[0, 1, 3], &[2, 3, 0]] {
        assert_eq!(of(which), Err(DecodeError::Batch), "{which:?}");
    }
}

#[test]
fn a_flipped_bit_or_another_length_is_never_a_batch_and_what_is_newer_is_called_so() {
    let good = object(0, 3);
    for cut in 0..good.len() {
        assert!(decode_object(&good[..cut]).is_err(), "cut to {cut}");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(decode_object(&bytes).is_err(), "byte {at} bit {bit}");
        }
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode_object(&sealed(bytes)).expect_err("changed")
    };
    assert_eq!(with(8, 3), DecodeError::Version(3));
    assert_eq!(with(12, 1), DecodeError::Flags(1));
    for count in [0, 1, 65, 255] {
        assert_eq!(with(10, count), DecodeError::Batch, "{count} records");
    }
    for count in [2, 4] {
        assert!(
            decode_object(&sealed({
                let mut b = good.clone();
                b[10] = count;
                b
            }))
            .is_err(),
            "{count} records"
        );
    }
    // A length that claims more than there is, or nothing.
    assert!(matches!(with(19, 0xff), DecodeError::Length(_)));
    assert!(matches!(
        decode_object(&sealed({
            let mut b = good.clone();
            b[16..20].fill(0);
            b
        })),
        Err(DecodeError::Length(_))
    ));
}

/// What whoever composes several records judges them by is what replay will say.
#[test]
fn without_its_history_a_state_judges_layers_alike() {
    let mut world = World::new();
    world.put(Body::Claim(Claim { volume: meta(1), looked: None, source: name("host") }));
    world.put(Body::Claim(Claim { volume: meta(2), looked: Some(Slot(0)), source: name("host") }));
    let layers = |kind, members| Body::Layers(Layers { kind, epoch: epoch(), label: None, members });
    let (one, two) = (Term(0), Term(1));
    world.put(layers(LayerKind::Fuzzy, vec![entry(1, one, 1, 1)]));
    world.put(layers(LayerKind::Point, vec![entry(1, one, 2, 2), entry(2, two, 1, 3)]));
    let degraded = LayerEntry { unreadable_regions: regions(&[2]), ..entry(2, two, 2, 4) };
    world.put(layers(LayerKind::Fuzzy, vec![degraded]));
    let mut ahead = world.state.without_history();
    assert_eq!((ahead.next_slot(), ahead.prev()), (world.state.next_slot(), world.state.prev()));
    assert_eq!(ahead.position(), world.state.position());
    let known = (0..world.state.next_slot().0).filter(|slot| ahead.digest_at(Slot(*slot)).is_some());
    assert_eq!(known.count(), 1, "what is copied does not grow with the ledger");
    for body in [
        layers(LayerKind::Point, vec![entry(1, one, 3, 5), entry(2, two, 3, 6)]),
        layers(LayerKind::Point, vec![entry(1, one, 5, 7)]),
        layers(LayerKind::Fuzzy, vec![entry(1, one, 4, 7)]),
        layers(LayerKind::Fuzzy, vec![entry(1, two, 5, 7)]),
        layers(LayerKind::Fuzzy, vec![entry(2, two, 4, 8)]),
        layers(LayerKind::Fuzzy, vec![entry(2, two, 4, 8)]),
    ] {
        let record = world.record(body.clone());
        assert_eq!(ahead.judge(&record), world.state.judge(&record), "{body:?}");
        let digest = record.encode().expect("small").digest;
        ahead.apply(&record, digest);
        world.put(body);
        for id in [vol(1), vol(2)] {
            let (short, long) = (ahead.volume(id).expect("claimed"), world.state.volume(id).expect("claimed"));
            assert_eq!((short.next_key(), short.unreadable()), (long.next_key(), long.unreadable()));
            assert_eq!((short.ends_fuzzy(), short.meta()), (long.ends_fuzzy(), long.meta()));
        }
    }
    assert_eq!(ahead.prev(), world.state.prev());
}

proptest! {
    #[test]
    fn noise_behind_a_good_head_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..600), count in 0_u16..70) {
        let mut bytes = b"FSLBATCH\x01\x00".to_vec();
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&noise);
        bytes.extend_from_slice(&[0; 32]);
        prop_assert!(decode_object(&sealed(bytes)).is_err());
    }
}
