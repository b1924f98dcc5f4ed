//! Records that an object repeats: what is written is read, nothing of another chain is, and their damage is not that of its own records.

use farside_region::{RecordDigest, mutation};

use super::batch::records;
use super::*;
use crate::codec::RECORD_BYTES_MAX;
use crate::repeats::REPEATED_MAX;

/// The object of so many records from a slot on, before which these lie.
fn object(first: u64, count: usize) -> (Vec<(Record, RecordDigest)>, Vec<u8>) {
    let (all, encoded) = records(0, first + count as u64);
    let (before, own) = encoded.split_at(first as usize);
    let before: Vec<&[u8]> = before.iter().map(|record| &record.bytes[..]).collect();
    (all, encode_repeating(Slot(first), own, &before).expect("small"))
}

fn slots_repeated(bytes: &[u8]) -> Result<Vec<u64>, DecodeError> {
    Ok(decode_repeats(bytes)?.iter().map(|repeated| repeated.record.slot.0).collect())
}

#[test]
fn an_object_repeats_what_came_since_its_last_digit_was_zero() {
    for (slot, from) in
        [(0, 0), (1, 0), (7, 0), (8, 0), (9, 8), (63, 56), (64, 0), (65, 64), (72, 64), (512, 0), (0o1234, 0o1230)]
    {
        assert_eq!(repeats_from(Slot(slot), 1), Slot(from), "{slot}");
    }
    for (slot, from) in [(0o1230, 0o1200), (0o1200, 0o1000), (0o1000, 0), (4096, 4096), (4097, 4096), (0o31000, 0o30000)] {
        assert_eq!(repeats_from(Slot(slot), 1), Slot(from), "{slot}");
    }
    assert_eq!(repeats_from(Slot(u64::MAX), 1), Slot(u64::MAX - 7));
    // Of several what any of them asks for.
    for (first, records, from) in
        [(9, 7, 8), (9, 8, 0), (53, 4, 0), (65, 63, 64), (64, 64, 0), (0o1234, 4, 0o1230), (0o1234, 5, 0o1200)]
    {
        assert_eq!(repeats_from(Slot(first), records), Slot(from), "{records} from {first}");
    }
    // What follows a checkpoint is four objects at most, and together not much.
    let mut repeated = 0;
    for slot in 4096..8192 {
        let (mut begin, mut objects) = (slot, 0);
        repeated += slot - repeats_from(Slot(slot), 1).0;
        while begin > 4096 {
            (begin, objects) = (repeats_from(Slot(begin), 1).0, objects + 1);
        }
        assert!(objects <= 4, "{slot}");
    }
    assert_eq!(repeated, 14 * 4096);
}

#[test]
fn what_is_repeated_is_read_back_and_so_are_the_own_records() {
    for (first, count) in [(1, 1), (5, 3), (8, 1), (64, 1), (70, 10), (126, 2)] {
        let (all, bytes) = object(first, count);
        assert_eq!(decode_object(&bytes).as_deref(), Ok(&all[first as usize..]), "{count} from {first}");
        let from = repeats_from(Slot(first), count as u64).0;
        assert_eq!(slots_repeated(&bytes), Ok((from..first).collect()), "{count} from {first}");
        for (repeated, (record, digest)) in decode_repeats(&bytes).expect("whole").iter().zip(&all[from as usize..]) {
            assert_eq!((&repeated.record, &repeated.digest), (record, digest));
            assert_eq!(repeated.bytes, record.encode().expect("small").bytes);
        }
    }
    // Nothing to repeat: the object is what it was before anything was repeated.
    let (_, encoded) = records(7, 2);
    assert_eq!(encode_repeating(Slot(7), &encoded, &[] as &[&[u8]]), encode_object(Slot(7), &encoded));
    assert_eq!(slots_repeated(&encode_object(Slot(7), &encoded).expect("small")), Ok(vec![]));
    assert_eq!(slots_repeated(&encoded[0].bytes), Ok(vec![]));
}

/// The head is a promise: see `docs/formats/ledger.md`.
#[test]
fn an_object_that_repeats_is_these_bytes() {
    let (all, bytes) = object(3, 2);
    let encoded: Vec<Vec<u8>> = all.iter().map(|(record, _)| record.encode().expect("small").bytes).collect();
    let mut expected = b"FSLBATCH\x02\x00\x02\x00\x00\x00\x00\x00\x03\x00\x00\x00".to_vec();
    for at in [3, 4, 0, 1, 2] {
        expected.extend_from_slice(&(encoded[at].len() as u32).to_le_bytes());
    }
    encoded[3..].iter().for_each(|record| expected.extend_from_slice(record));
    expected.extend_from_slice(blake3::hash(&expected).as_bytes());
    encoded[..3].iter().for_each(|record| expected.extend_from_slice(record));
    expected.extend_from_slice(blake3::hash(&expected).as_bytes());
    assert_eq!(bytes, expected);
}

/// The largest number of bytes that the own records of an object take, with what is said of them.
fn own_bytes(bytes: &[u8]) -> usize {
    let (own, repeated) = (bytes[10] as usize, bytes[16] as usize);
    let lengths = bytes[20..].chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four")) as usize);
    20 + 4 * (own + repeated) + lengths.take(own).sum::<usize>() + 32
}

#[test]
fn damage_of_what_is_repeated_is_not_that_of_the_own_records_and_no_damage_is_believed() {
    let (all, good) = object(4, 1);
    let own = own_bytes(&good);
    for cut in b"FSLBATCH".len()..good.len() {
        assert!(decode_repeats(&good[..cut]).is_err(), "cut to {cut}");
        assert_eq!(decode_object(&good[..cut]).is_ok(), cut >= own, "cut to {cut}");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(decode_repeats(&bytes).map_or(true, |repeated| repeated.is_empty()), "byte {at} bit {bit}");
            match decode_object(&bytes) {
                Ok(records) => assert!(at >= own && records == all[4..], "byte {at} bit {bit}"),
                Err(_) => assert!(at < own, "byte {at} bit {bit}"),
            }
        }
    }
}

/// An object with digests of its own, whatever it says.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let own = own_bytes(&bytes) - 32;
    let digest = blake3::hash(&bytes[..own]);
    bytes[own..own + 32].copy_from_slice(digest.as_bytes());
    let end = bytes.len() - 32;
    let digest = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn what_an_object_must_not_say_is_refused() {
    let good = object(4, 1).1;
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode_object(&sealed(bytes)).expect_err("changed")
    };
    assert_eq!(with(12, 1), DecodeError::Flags(1));
    for count in [0, 65] {
        let mut bytes = good.clone();
        bytes[10] = count;
        assert!(decode_object(&bytes).is_err(), "{count} records");
    }
    let mut bytes = good.clone();
    bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(decode_object(&bytes).is_err(), "more than there are");
}

/// What counts without its chain is what somebody else put, or nobody.
#[test]
fn l6_what_is_of_another_chain_is_not_repeated() {
    let story = || {
        let (all, encoded) = records(0, 6);
        // The same but for the slot's nonce: of who lost the slot.
        let mut lost = all[4].0.clone();
        lost.nonce = [99; 16];
        let lost = lost.encode().expect("small");
        let of = |before: [&[u8]; 2]| encode_repeating(Slot(5), &encoded[5..], &before).expect("small");
        let honest = of([&encoded[3].bytes, &encoded[4].bytes]);
        assert_eq!(slots_repeated(&honest), Ok(vec![3, 4]));
        let object = of([&encoded[3].bytes, &lost.bytes]);
        assert_eq!(decode_object(&object).as_deref(), Ok(&all[5..]), "its own record is what it is");
        assert_eq!(decode_repeats(&object), Err(DecodeError::Repeats), "L6: a record that lost its slot counts");
        for before in [[2, 4], [4, 3], [3, 3], [4, 5]] {
            let object = of(before.map(|at| &encoded[at].bytes[..]));
            assert_eq!(decode_repeats(&object), Err(DecodeError::Repeats), "L6: {before:?} do not lead up to it");
        }
    };
    mutation::tell(&[("a repeated record counts without the chain", "L6: a record that lost its slot counts")], story);
}

/// Whole records with good digests, of slots that no ledger reaches.
#[test]
fn l9_a_repeated_record_of_the_last_slot_that_there_is_is_refused() {
    let (all, encoded) = records(0, 6);
    let last = Record { slot: Slot(u64::MAX), ..all[3].0.clone() }.encode().expect("small");
    let object = encode_repeating(Slot(5), &encoded[5..], &[&last.bytes[..], &encoded[4].bytes]).expect("small");
    assert_eq!(decode_repeats(&object), Err(DecodeError::Repeats));
    assert_eq!(decode_with_repeats(&object).map(|all| all.len()), Ok(1), "its own record is what it is");
    let mut newest = Newest::default();
    newest.take_in(&last.bytes);
    newest.take_in(&object);
    assert_eq!(newest.oldest(), Some((Slot(5), all[5].0.prev)));
}

#[test]
fn what_is_repeated_has_a_limit_and_never_makes_an_object_too_large() {
    let (_, encoded) = records(0, 65);
    let large = |bytes: usize| {
        let mut records = encoded[..64].to_vec();
        records.iter_mut().for_each(|record| record.bytes.resize(bytes, 0));
        records.into_iter().map(|record| record.bytes).collect::<Vec<_>>()
    };
    let count = |object: Vec<u8>| if object[8] == 2 { u32::from_le_bytes(object[16..20].try_into().expect("four")) } else { 0 };
    // Some kilobytes: all that are wanted; the newest where these are too many.
    for (slot, bytes, repeated) in [(64, 8 << 10, 64), (64, 64 << 10, 32), (64, REPEATED_BYTES_MAX + 1, 0), (56, 8 << 10, 16)] {
        let before = &large(bytes)[..slot];
        let object = encode_repeating(Slot(slot as u64), &encoded[slot..=slot], before).expect("small");
        assert_eq!(count(object), repeated, "{bytes} bytes in slot {slot}");
    }
    let mut own = encoded[64].clone();
    own.bytes.resize(RECORD_BYTES_MAX - (1 << 20), 0);
    let object = encode_repeating(Slot(64), std::slice::from_ref(&own), &large(64 << 10)).expect("small");
    assert!(object.len() <= RECORD_BYTES_MAX);
    assert_eq!(count(object), 15);
    own.bytes.resize(RECORD_BYTES_MAX, 0);
    let object = encode_repeating(Slot(64), std::slice::from_ref(&own), &large(1 << 10)).expect("as large as one may be");
    assert_eq!(object, own.bytes);
    assert_eq!(REPEATED_MAX as u64, 8_u64.pow(4) - 1);
}

#[test]
fn a_writer_keeps_the_newest_run_and_nothing_that_does_not_follow() {
    let (all, encoded) = records(0, 70);
    let mut newest = Newest::default();
    let slots =
        |newest: &Newest| newest.from(Slot(0)).map(|bytes| Record::decode(bytes).expect("whole").0.slot.0).collect::<Vec<_>>();
    for record in &encoded[..64] {
        newest.take_in(&record.bytes);
    }
    assert_eq!(slots(&newest), (0..64).collect::<Vec<_>>(), "the first slot of the next run repeats them");
    newest.take_in(&encode_object(Slot(64), &encoded[64..67]).expect("small"));
    assert_eq!(slots(&newest), [64, 65, 66]);
    assert_eq!(newest.oldest(), Some((Slot(64), all[63].1)));
    // One that does not follow is where it begins anew, with what it repeats.
    let before: Vec<&[u8]> = encoded[64..69].iter().map(|record| &record.bytes[..]).collect();
    newest.take_in(&encode_repeating(Slot(69), &encoded[69..], &before).expect("small"));
    assert_eq!(slots(&newest), [64, 65, 66, 67, 68, 69]);
    newest.take_in(&encoded[3].bytes);
    assert_eq!(slots(&newest), [3]);
    newest.take_in(b"FSLBATCH");
    assert_eq!((slots(&newest), newest.oldest()), (vec![], None));
}
