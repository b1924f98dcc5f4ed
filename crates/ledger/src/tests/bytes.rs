//! The bytes of records: golden ones, and hostile ones.

use std::time::Duration;

use farside_region::{MergeId, RecordDigest};
use proptest::prelude::*;

use super::*;
use crate::codec::{MAGIC, VERSION, from_postcard};

fn samples() -> Vec<(&'static str, Record)> {
    let member = LayerEntry {
        parts: vec![PartEntry { bytes: 300, footer_digest: [0xa1; 32] }, PartEntry { bytes: 70_000, footer_digest: [0xa2; 32] }],
        regions: regions(&[0, 1, 5]),
        unreadable_regions: regions(&[5]),
        ..entry(1, Term(3), 300, 0xd1)
    };
    let position = LedgerPosition { slot: Slot(4), digest: RecordDigest([0x77; 32]) };
    let bodies = [
        ("claim", Body::Claim(Claim { volume: meta(1), looked: Some(Slot(2)), source: name("host") })),
        (
            "claim of an encrypted volume",
            Body::Claim(Claim {
                volume: VolumeMeta { digest_key: DigestKey::Sealed(seal()), ..meta(1) },
                looked: None,
                source: name("host"),
            }),
        ),
        (
            "claim of a volume that is encrypted at rest",
            Body::Claim(Claim {
                volume: VolumeMeta { digest_key: DigestKey::Sealed(Seal { mode: SealMode::AtRest, ..seal() }), ..meta(1) },
                looked: None,
                source: name("host"),
            }),
        ),
        ("point", Body::Layers(Layers { kind: LayerKind::Point, epoch: epoch(), label: None, members: vec![member.clone()] })),
        (
            "point with a label",
            Body::Layers(Layers {
                kind: LayerKind::Point,
                epoch: epoch(),
                label: Some(Box::new(label())),
                members: vec![member.clone()],
            }),
        ),
        (
            "point of a cohort",
            Body::Layers(Layers {
                kind: LayerKind::Point,
                epoch: epoch(),
                label: Some(Box::new(Label::new(Consistency::Cohort(cohort_cut(0x5c)), "", "cohort erp"))),
                members: vec![member],
            }),
        ),
        (
            "fuzzy",
            Body::Layers(Layers { kind: LayerKind::Fuzzy, epoch: epoch(), label: None, members: vec![entry(2, Term(1), 1, 2)] }),
        ),
        ("heartbeat", World::new().beat(&[(1, Term(3)), (2, Term(1))], position)),
        ("pin", Body::Pin(Pin { point: Slot(5), reason: "before the upgrade".to_owned() })),
        ("unpin", Body::Unpin(Unpin { pin: Slot(8) })),
        (
            "prune",
            Body::Prune(Prune {
                looked: Slot(9),
                policy: PrunePolicy::LedgerTime { keep: 10, span_ms: 86_400_000 },
                points: vec![Slot(5), Slot(6)],
                parts: vec![PrunedParts { layer: entry(1, Term(3), 2, 0).key, parts: vec![0, 1] }],
            }),
        ),
        (
            "prune by age",
            Body::Prune(Prune {
                looked: Slot(9),
                policy: PrunePolicy::Aged(Policy {
                    grid: Grid::of([(Duration::from_secs(60), Duration::from_secs(86_400))]),
                    ..Policy::without_grid(10, 600_000)
                }),
                points: vec![Slot(5), Slot(6)],
                parts: vec![PrunedParts { layer: entry(1, Term(3), 2, 0).key, parts: vec![0, 1] }],
            }),
        ),
        ("torn", Body::TornVoid(TornVoid { torn_digest: [0x0b; 32], torn_bytes: 4096 })),
        ("tracking lost", Body::TrackingLost(TrackingLost { volume: vol(1), term: Term(3) })),
        (
            "pack places",
            Body::PackPlaces(PackPlaces {
                packs: vec![PackedParts {
                    pack: PackId::new(Slot(10), [0xab; 8]),
                    parts: vec![
                        PackedPart { layer: entry(1, Term(3), 300, 0).key, number: 0, offset: 0 },
                        PackedPart { layer: entry(1, Term(3), 300, 0).key, number: 1, offset: 300 },
                    ],
                }],
            }),
        ),
        ("verified", Body::Verified(Verified { point: Slot(300), how: VerifiedHow::WithSource })),
        (
            "map",
            Body::Map(Map {
                volume: vol(1),
                id: MergeId(0x1122_3344_5566_7788),
                point: Slot(9),
                parts: vec![
                    PrunedParts { layer: entry(1, Term(3), 2, 0).key, parts: vec![0, 1] },
                    PrunedParts { layer: LayerKey::of_merge(vol(1), MergeId(7)), parts: vec![0] },
                ],
                new: vec![PartEntry { bytes: 70_000, footer_digest: [0xa3; 32] }],
                regions: regions(&[0, 1, 5]),
            }),
        ),
        ("decree", Body::Decree(Decree { merges: vec![(vol(1), MergeId(0x7fff_ffff_ffff_ffff)), (vol(2), MergeId(1))] })),
    ];
    let stamp = Stamp { writer: [0x11; 16], mono_ms: 1234, wall_ms: -5 };
    let record = |(what, body)| {
        (what, Record { group: group(), slot: Slot(10), prev: RecordDigest([0x22; 32]), nonce: [0x33; 16], stamp, body })
    };
    bodies.into_iter().map(record).collect()
}

/// The bytes are a promise: what was written once must be readable for ever. A change here needs a new format version.
#[test]
fn golden_bytes() {
    let mut text = String::new();
    for (what, record) in samples() {
        text += &format!("{what}\n");
        for line in record.encode().expect("small").bytes.chunks(32) {
            text += &line.iter().map(|b| format!("{b:02x}")).collect::<String>();
            text.push('\n');
        }
    }
    assert_eq!(text, include_str!("golden.txt"));
}

#[test]
fn golden_identities() {
    let hex = |id: [u8; 16]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(group().0), "05ecd2a7e8c7ce66950cf1f3d6bf6fd9");
    assert_eq!(hex(vol(1).0), "d38c5ac5d0876a29a9bdeb99f3b4423c");
    assert_ne!(group_id(&name("a"), &name("bc")), group_id(&name("ab"), &name("c")), "the names cannot run together");
}

/// Puts the digest right again, as a liar would.
fn reseal(bytes: &mut [u8]) {
    let content = bytes.len() - 32;
    let digest = blake3::hash(&bytes[..content]);
    bytes[content..].copy_from_slice(digest.as_bytes());
}

#[test]
fn damage_is_told_from_what_is_newer() {
    let good = samples()[0].1.encode().expect("small").bytes;
    let with = |at: usize, value: u8, sealed: bool| {
        let mut bytes = good.clone();
        bytes[at] = value;
        if sealed {
            reseal(&mut bytes);
        }
        Record::decode(&bytes).expect_err("changed")
    };
    assert_eq!(with(0, 0, true), DecodeError::Magic);
    assert_eq!(with(8, 9, false), DecodeError::Digest, "a flipped bit in the version is damage");
    assert_eq!(with(8, VERSION as u8 + 1, true), DecodeError::Version(VERSION + 1));
    assert_eq!(with(10, 99, true), DecodeError::Kind(99));
    assert_eq!(with(120, 1, true), DecodeError::Flags(1));
    assert_eq!(with(12, 1, true), DecodeError::Length(good.len()));
    assert_eq!(Record::decode(&[]), Err(DecodeError::Length(0)));
    assert_eq!(Record::decode(&vec![0; RECORD_BYTES_MAX + 1]), Err(DecodeError::Length(RECORD_BYTES_MAX + 1)));
    for cut in 0..good.len() {
        assert!(Record::decode(&good[..cut]).is_err(), "cut to {cut}");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(Record::decode(&bytes).is_err(), "byte {at} bit {bit}");
        }
    }
}

/// Who does not know of encryption must see that he does not, and nobody may read zeroes as a key.
#[test]
fn a_claim_is_of_the_kind_that_says_what_it_is() {
    let others = [
        (0, 12_u16, "no seal"),
        (0, 16, "no seal"),
        (1, 1, "a seal"),
        (1, 16, "another mode"),
        (2, 1, "a seal"),
        (2, 12, "another mode"),
    ];
    for (at, other, why) in others {
        let mut bytes = samples()[at].1.encode().expect("small").bytes;
        bytes[10..12].copy_from_slice(&other.to_le_bytes());
        reseal(&mut bytes);
        assert_eq!(Record::decode(&bytes), Err(DecodeError::Body), "{why}");
    }
    let sealed = samples()[1].1.encode().expect("small").bytes;
    let mode = sealed.windows(32).position(|piece| piece == [0xc0; 32]).expect("its commitment") - 17;
    assert_eq!(sealed[mode], 1);
    for byte in [0, 2, 9] {
        let mut bytes = sealed.clone();
        bytes[mode] = byte;
        reseal(&mut bytes);
        assert_eq!(Record::decode(&bytes), Err(DecodeError::Body), "mode {byte}");
    }
}

#[test]
fn a_record_too_large_is_refused_before_it_is_written() {
    let scattered: RegionSet = (0..1_000_000u64).map(|i| RegionIndex(2 * i)).collect();
    let layers = |n| {
        let members = (0..n).map(|i| LayerEntry { regions: scattered.clone(), ..entry(i, Term(0), 1, 1) }).collect();
        World::new().record(Body::Layers(Layers { kind: LayerKind::Point, epoch: epoch(), label: None, members }))
    };
    assert!(layers(1).encode().is_ok(), "a million scattered regions fit");
    let TooLarge { bytes } = layers(3).encode().expect_err("three millions do not");
    assert!(bytes > RECORD_BYTES_MAX);
}

/// A length that is claimed costs no memory: only bytes that are there do.
#[test]
fn claimed_lengths_are_not_believed() {
    for body in [vec![0xff; 9], vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], vec![0x80; 60]] {
        for kind in 1u16..=7 {
            let mut bytes = samples()[0].1.encode().expect("small").bytes[..128].to_vec();
            bytes[10..12].copy_from_slice(&kind.to_le_bytes());
            bytes[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&body);
            bytes.extend_from_slice(&[0; 32]);
            reseal(&mut bytes);
            assert_eq!(Record::decode(&bytes), Err(DecodeError::Body), "kind {kind}");
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_decode(mut bytes in prop::collection::vec(any::<u8>(), 0..400), dressed in any::<bool>()) {
        if dressed && bytes.len() >= RECORD_BYTES_MIN {
            bytes[..8].copy_from_slice(&MAGIC);
        }
        prop_assert!(Record::decode(&bytes).is_err());
    }

    /// Whatever a body says: it decodes or it does not, and what decodes can be judged by any state.
    #[test]
    fn hostile_bodies_neither_panic_nor_break_a_state(which in 0usize..13, cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), slot in 0u64..5) {
        let (_, record) = &samples()[which];
        let mut w = claimed();
        w.fuzzy(1);
        w.point(&[1, 2]);
        let record = Record { slot: Slot(slot), ..w.record(record.body.clone()) };
        let mut bytes = record.encode().expect("small").bytes;
        for (at, value) in &cuts {
            let at = 128 + at.index(bytes.len() - 160);
            bytes[at] = *value;
        }
        reseal(&mut bytes);
        if let Ok((decoded, digest)) = Record::decode(&bytes) {
            let decoded = Record { slot: w.state.next_slot(), ..decoded };
            let before = w.state.clone();
            let verdict = w.state.apply(&decoded, digest);
            prop_assert_eq!(w.state.next_slot(), before.next_slot().next());
            prop_assert_eq!(before.judge(&decoded), verdict);
            let cache = w.state.to_cache();
            prop_assert_eq!(State::from_cache(&cache), Ok(w.state.clone()));
        }
    }

    #[test]
    fn a_damaged_cache_is_refused(at in any::<prop::sample::Index>(), xor in 1u8.., cut in any::<prop::sample::Index>()) {
        let mut w = claimed();
        w.point(&[1, 2]);
        let good = w.state.to_cache();
        prop_assert_eq!(State::from_cache(&good), Ok(w.state.clone()));
        let mut bad = good.clone();
        bad[at.index(good.len())] ^= xor;
        prop_assert!(State::from_cache(&bad).is_err());
        prop_assert!(State::from_cache(&good[..cut.index(good.len())]).is_err());
    }
}

/// A ledger of sixteen slots in which every field of the state has something in it.
fn checkpointed() -> (EncodedCheckpoint, CheckpointPlace, CheckpointParts) {
    let mut w = claimed();
    let unreadable = LayerEntry { unreadable_regions: regions(&[2]), ..w.next(2, 9) };
    assert_eq!(w.layers(LayerKind::Point, vec![w.next(1, 8), unreadable]), Verdict::Accepted);
    w.pass_ms(1500);
    let point = w.point(&[1]);
    assert_eq!(w.put(Body::Pin(Pin { point, reason: "before the upgrade".to_owned() })), Verdict::Accepted);
    assert_eq!(w.put(w.beat(&[(1, w.term(1))], w.position())), Verdict::Accepted);
    assert_eq!(w.put(Body::TrackingLost(TrackingLost { volume: vol(1), term: w.term(1) })), Verdict::Accepted);
    let layer = w.state.layers_above(vol(2), None).next().expect("one").key;
    let part = CheckpointPart { layer, number: 0, bytes: 100, footer_digest: [9; 32], born: Slot(2) };
    let parts = CheckpointParts { next: 3, parts: [(1, part)].into_iter().collect() };
    let volume = VolumeMeta { digest_key: DigestKey::Sealed(seal()), ..meta(7) };
    assert_eq!(w.put(Body::Claim(Claim { volume, looked: None, source: name("host") })), Verdict::Accepted);
    let (pack, packed) = (PackId::new(w.state.next_slot(), [0xab; 8]), w.next(1, 0).key);
    let packed = PackedParts { pack, parts: vec![PackedPart { layer: packed, number: 0, offset: 4096 }] };
    assert_eq!(w.put(Body::PackPlaces(PackPlaces { packs: vec![packed] })), Verdict::Accepted);
    let fuzzy = w.fuzzy(1);
    w.point(&[1]);
    let layer = w.state.layers_above(vol(1), None).find(|layer| layer.slot == fuzzy).expect("there").key;
    let given_up = vec![PrunedParts { layer, parts: vec![0] }];
    let looked = w.state.head().expect("not empty");
    let policy = PrunePolicy::Aged(Policy::without_grid(1, 0));
    assert_eq!(w.put(Body::Prune(Prune { looked, policy, points: vec![], parts: given_up })), Verdict::Accepted);
    w.pass_ms(700);
    w.point(&[1]);
    let (of_point, at) = {
        let layers: Vec<(LayerKey, Slot)> = w.state.layers_above(vol(1), None).map(|layer| (layer.key, layer.slot)).collect();
        layers[layers.len() - 2]
    };
    let merge = Map {
        volume: vol(1),
        id: MergeId(0xabcd),
        point: at,
        parts: vec![PrunedParts { layer: of_point, parts: vec![0] }],
        new: vec![PartEntry { bytes: 70, footer_digest: [7; 32] }],
        regions: regions(&[1]),
    };
    assert_eq!(w.put(Body::Map(merge)), Verdict::Accepted);
    assert_eq!(w.put(Body::Decree(Decree { merges: vec![(vol(2), MergeId(3))] })), Verdict::Accepted);
    let first = *w.state.points().keys().next().expect("a point");
    for (point, how) in [(first, VerifiedHow::ReadBack), (point, VerifiedHow::WithSource), (point, VerifiedHow::ReadBack)] {
        w.pass_ms(100);
        assert_eq!(w.put(Body::Verified(Verified { point, how })), Verdict::Accepted);
    }
    let place = CheckpointPlace { number: 2, slots: 6 };
    (EncodedCheckpoint::new(place, [0x44; 32], &w.state, &parts), place, parts)
}

/// As golden as the records: whoever makes this checkpoint makes these bytes. A change here needs a new format version.
#[test]
fn golden_bytes_of_a_checkpoint() {
    let (encoded, place, parts) = checkpointed();
    let mut text = String::new();
    for (what, bytes) in [("root", &encoded.root), ("state", &encoded.state)] {
        text += &format!("{what}\n");
        for line in bytes.chunks(32) {
            text += &line.iter().map(|b| format!("{b:02x}")).collect::<String>();
            text.push('\n');
        }
    }
    assert_eq!(text, include_str!("golden-checkpoint.txt"));
    let (root, _) = CheckpointRoot::decode(&encoded.root, group(), place).expect("our own");
    assert_eq!(root.state(&encoded.state.clone().into()).expect("our own").1, parts);
}

/// The digest says that these are the bytes that somebody wrote, and not that he wrote a state: whatever they are, they are read as serde reads
/// them or refused, and nothing that is looked into later panics.
#[test]
fn a_state_that_its_writer_got_wrong_is_refused_or_read_as_it_is() {
    let (encoded, place, _) = checkpointed();
    let (root, _) = CheckpointRoot::decode(&encoded.root, group(), place).expect("our own");
    let (mut refused, mut read) = (0, 0);
    for at in 0..encoded.state.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut state = encoded.state.clone();
            state[at] ^= flip;
            let named = CheckpointRoot { state_digest: *blake3::hash(&state).as_bytes(), ..root };
            match named.state(&state.clone().into()) {
                Ok((by_hand, parts)) => {
                    let theirs: (State, CheckpointParts) = from_postcard(&state[8..]).expect("as by hand");
                    assert_eq!((&by_hand, &parts), (&theirs.0, &theirs.1), "byte {at}, {flip:#x}");
                    assert_eq!(by_hand.to_cache(), theirs.0.to_cache());
                    read += 1;
                }
                Err(CheckpointError::Magic | CheckpointError::Place) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        let cut = &encoded.state[..at];
        let named = CheckpointRoot { state_digest: *blake3::hash(cut).as_bytes(), state_bytes: at as u64, ..root };
        assert!(named.state(&cut.to_vec().into()).is_err(), "{at} bytes");
    }
    assert!(refused > 100 && read > 100, "{refused} {read}");
}

#[test]
fn a_checkpoint_with_any_bit_wrong_or_any_byte_missing_is_refused() {
    let (encoded, place, _) = checkpointed();
    let (root, _) = CheckpointRoot::decode(&encoded.root, group(), place).expect("our own");
    let flipped = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    for bit in 0..encoded.root.len() * 8 {
        let error = CheckpointRoot::decode(&flipped(&encoded.root, bit), group(), place).expect_err("flipped");
        assert!(!error.is_newer(), "damage is never taken for a newer version");
    }
    for bit in 0..encoded.state.len() * 8 {
        assert_eq!(root.state(&flipped(&encoded.state, bit).into()).err(), Some(CheckpointError::Digest));
    }
    for len in 0..encoded.root.len() {
        assert!(CheckpointRoot::decode(&encoded.root[..len], group(), place).is_err());
    }
    for len in 0..encoded.state.len() {
        assert_eq!(root.state(&encoded.state[..len].to_vec().into()).err(), Some(CheckpointError::Digest));
    }
    let elsewhere = [(group(), CheckpointPlace { number: 0, ..place }), (group(), CheckpointPlace { slots: 8, ..place })];
    for (group, place) in elsewhere.into_iter().chain([(farside_region::GroupId([1; 16]), place)]) {
        assert_eq!(CheckpointRoot::decode(&encoded.root, group, place).err(), Some(CheckpointError::Place));
    }
}

#[test]
fn a_checkpoint_of_a_newer_version_is_told_from_a_damaged_one() {
    let (encoded, place, _) = checkpointed();
    let with = |at: usize, value: u8| {
        let mut bytes = encoded.root[..encoded.root.len() - 32].to_vec();
        bytes[at] = value;
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        bytes
    };
    for (at, newer) in [(8, CheckpointError::Version(3)), (12, CheckpointError::Flags(3))] {
        assert_eq!(CheckpointRoot::decode(&with(at, 3), group(), place).err(), Some(newer));
    }
    // The chain of roots goes on over those of an earlier Farside, whose states are not read.
    let (earlier, _) = CheckpointRoot::decode(&with(8, 1), group(), place).expect("a root");
    assert!(earlier.is_of_an_earlier_version());
    assert_eq!(earlier.state(&encoded.state.into()).err(), Some(CheckpointError::Earlier));
}
