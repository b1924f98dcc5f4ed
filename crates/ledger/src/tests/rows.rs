//! A table of rows is a sorted map, whether it is bytes still or not.

use std::collections::BTreeMap;
use std::ops::Bound;

use ::bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::codec::{from_postcard, to_postcard};
use crate::rows::{LEAF_ROWS, Passing, Rows};
use crate::stored::Stored;

/// What somebody does with one.
#[derive(Clone, Debug)]
enum Do {
    Insert(u64, u64),
    Remove(u64),
    Change(u64),
    Look(u64),
}

fn doing() -> impl Strategy<Value = Do> {
    let key = 0..600_u64;
    prop_oneof![
        (key.clone(), any::<u64>()).prop_map(|(key, value)| Do::Insert(key, value)),
        key.clone().prop_map(Do::Remove),
        key.clone().prop_map(Do::Change),
        key.prop_map(Do::Look),
    ]
}

fn of_bytes(model: &BTreeMap<u64, u64>) -> Rows<u64, u64> {
    let bytes = Bytes::from(to_postcard(model));
    let mut from = &bytes[..];
    let rows = Rows::read(&mut from, &bytes).expect("our own");
    assert!(from.is_empty());
    rows
}

fn same(rows: &Rows<u64, u64>, model: &BTreeMap<u64, u64>) {
    assert_eq!((rows.len(), rows.is_empty(), rows.last_key()), (model.len(), model.is_empty(), model.keys().last().copied()));
    let passed: Vec<(u64, u64)> = rows.passing().map(|(key, value): (u64, Passing<'_, u64>)| (key, *value)).collect();
    assert!(passed.iter().map(|(key, value)| (key, value)).eq(model));
    assert!(rows.iter().eq(model.iter()));
    assert!(rows.iter().rev().eq(model.iter().rev()));
    assert!(rows.keys().eq(model.keys()) && rows.values().rev().eq(model.values().rev()));
    assert_eq!(to_postcard(rows), to_postcard(model));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_a_map(begun: BTreeMap<u16, u64>, many in any::<bool>(), all in vec(doing(), 0..400), bounds in vec((0..600_u64, 0..600_u64), 20)) {
        let mut model: BTreeMap<u64, u64> = begun.into_iter().map(|(key, value)| (u64::from(key % 600), value)).collect();
        if many {
            model.extend((0..500).map(|key| (key, key * key)));
        }
        let mut rows = of_bytes(&model);
        for one in all {
            match one {
                Do::Insert(key, value) => assert_eq!(rows.insert(key, value), model.insert(key, value)),
                Do::Remove(key) => assert_eq!(rows.remove(&key), model.remove(&key)),
                Do::Change(key) => {
                    let changed = rows.get_mut(&key).map(|value| std::mem::replace(value, !key));
                    assert_eq!(changed, model.get_mut(&key).map(|value| std::mem::replace(value, !key)));
                }
                Do::Look(key) => {
                    assert_eq!((rows.get(&key), rows.contains_key(&key)), (model.get(&key), model.contains_key(&key)));
                }
            }
        }
        for (one, other) in bounds {
            let (low, high) = (one.min(other), one.max(other));
            assert!(rows.range(low..high).eq(model.range(low..high)));
            assert!(rows.range(low..=high).rev().eq(model.range(low..=high).rev()));
            assert!(rows.range(..low).rev().eq(model.range(..low).rev()));
            let above = (Bound::Excluded(low), Bound::Unbounded);
            assert!(rows.range(above).eq(model.range(above)));
            // From both ends.
            let (mut ours, mut theirs) = (rows.range(low..high), model.range(low..high));
            for i in 0.. {
                let (a, b) = if i % 3 == 0 { (ours.next_back(), theirs.next_back()) } else { (ours.next(), theirs.next()) };
                assert_eq!(a, b);
                if a.is_none() {
                    break;
                }
            }
        }
        same(&rows, &model);
        assert_eq!(&rows, &of_bytes(&model));
        assert_eq!(&rows.clone(), &model.clone().into_iter().collect::<Rows<u64, u64>>());
        same(&of_bytes(&model), &model);
        let recast: Rows<u64, u64> = of_bytes(&model).recast(|key| key, |value| value);
        same(&recast, &model);
    }

    /// Also bytes that nobody wrote: gone through is taken, and taken is what serde reads.
    #[test]
    fn what_is_read_by_hand_is_what_serde_reads(points: Vec<(u8, u64, Option<(String, u16)>, i64)>, at: prop::sample::Index, byte: Option<u8>, cut: prop::sample::Index) {
        for (key, number, label, wall_ms) in points {
            let slot = Slot(number);
            let layer = LayerKey { volume: vol(key), term: Term(number / 3), seq: Seq(number >> 40) };
            let label = label.map(|(title, groups)| {
                let cut = CohortCut { cohort: [key; 16], cut: [1; 16], groups, wall_ms };
                let consistency = if key % 2 == 0 { Consistency::Cohort(cut) } else { Consistency::Application };
                Box::new(Label { consistency, title: title.clone(), hooks: title })
            });
            let reason = label.as_ref().map(|label| label.title.clone());
            let member = PointMember { key: layer, digest: [key; 32], volume_bytes: number, layer_bytes: 7, degraded: key % 2 == 1 };
            let proof = reason.is_some().then_some(Proof { slot, wall_ms });
            let point = Point {
                slot,
                epoch: EpochInfo { boot: BootId([key; 16]), mono_before_ns: 0, mono_after_ns: number, wall_ms },
                label,
                members: vec![member; usize::from(key % 4)],
                time_ms: number,
                age_clock_ms: number / 2,
                published_wall_ms: wall_ms,
                degraded: key % 3 == 0,
                pins: reason.map(|reason| (slot, reason)).into_iter().collect(),
                proofs: Proofs { read_back: proof, with_source: None },
            };
            let touched = regions(&(0..u64::from(key)).map(|i| i * 3).collect::<Vec<_>>());
            let layer = LayerFact {
                key: layer,
                slot,
                kind: if key % 2 == 0 { LayerKind::Point } else { LayerKind::Fuzzy },
                digest: [key; 32],
                part_count: number as u32,
                bytes: number,
                touched: (&touched).into(),
                pruned: (0..u32::from(key % 5)).collect(),
            };
            let part = CheckpointPart { layer: layer.key, number: number as u32, bytes: number, footer_digest: [key; 32], born: slot };
            by_hand(&to_postcard(&point), &point, at, byte, cut)?;
            by_hand(&to_postcard(&layer), &layer, at, byte, cut)?;
            by_hand(&to_postcard(&part), &part, at, byte, cut)?;
            by_hand(&to_postcard(&(slot, [layer.digest; 3])), &(slot, [layer.digest; 3].to_vec()), at, None, cut).err();
        }
    }

    #[test]
    fn numbers_of_any_length_are_read(number: u64, bits in 0..64_u32, behind: Vec<u8>) {
        for number in [number >> bits, !0 >> bits, 1 << bits] {
            let mut bytes = to_postcard(&number);
            bytes.extend(&behind);
            let mut from = &bytes[..];
            assert_eq!((u64::read(&mut from), from), (Some(number), &behind[..]));
            read_as::<u64>(&bytes);
            read_as::<u32>(&bytes);
            read_as::<i64>(&bytes);
        }
    }

    #[test]
    fn numbers_are_read_as_serde_reads_them(bytes in vec(prop_oneof![any::<u8>(), Just(0x80), Just(0xff)], 0..16)) {
        read_as::<u64>(&bytes);
        read_as::<u32>(&bytes);
        read_as::<i64>(&bytes);
        read_as::<bool>(&bytes);
        read_as::<String>(&bytes);
        read_as::<Option<u32>>(&bytes);
        read_as::<Vec<u32>>(&bytes);
        read_as::<LayerKind>(&bytes);
        read_as::<BTreeMap<u32, bool>>(&bytes);
    }
}

fn by_hand<T>(
    good: &[u8],
    value: &T,
    at: prop::sample::Index,
    byte: Option<u8>,
    cut: prop::sample::Index,
) -> Result<(), TestCaseError>
where
    T: Stored + PartialEq + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let read = T::read(&mut &good[..]);
    prop_assert_eq!(read.as_ref(), Some(value));
    let mut other = good.to_vec();
    if let Some(byte) = byte {
        other[at.index(good.len())] = byte;
    }
    read_as::<T>(&other);
    read_as::<T>(&good[..cut.index(good.len())]);
    Ok(())
}

fn read_as<T>(bytes: &[u8])
where
    T: Stored + PartialEq + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let (mut from, mut passed) = (bytes, bytes);
    let (ours, is_one) = (T::read(&mut from), T::pass(&mut passed).is_some());
    assert_eq!(is_one, ours.is_some(), "gone through is taken: {bytes:?}");
    assert!(!is_one || passed.len() == from.len());
    let theirs = postcard::take_from_bytes::<T>(bytes).ok();
    assert_eq!(ours.map(|ours| (ours, from)), theirs, "{bytes:?}");
}

/// Keys that do not ascend are nobody's: a table is searched.
#[test]
fn rows_out_of_order_are_none() {
    for keys in [vec![2_u64, 1], vec![1, 1], (0..200).chain([63]).collect()] {
        let rows: Vec<(u64, u64)> = keys.iter().map(|key| (*key, 0)).collect();
        let bytes = Bytes::from(to_postcard(&rows));
        assert!(Rows::<u64, u64>::read(&mut &bytes[..], &bytes).is_none());
        let by_serde: Rows<u64, u64> = from_postcard(&bytes).expect("a map to serde");
        assert!(by_serde.keys().is_sorted());
    }
}

/// What many bytes claim to hold takes no memory before they are there.
#[test]
fn a_length_alone_takes_no_memory() {
    let bytes = Bytes::from(to_postcard(&u64::from(u32::MAX)));
    assert!(Rows::<u64, u64>::read(&mut &bytes[..], &bytes).is_none());
    assert!(Vec::<u64>::read(&mut &bytes[..]).is_none());
}

/// Who looks at one row of a long table makes a leaf of it, and who adds one makes none.
#[test]
fn little_is_made_of_what_nobody_asks_for() {
    const ROWS: u64 = 1000 * LEAF_ROWS as u64;
    let model: BTreeMap<u64, u64> = (0..ROWS).map(|key| (key, key)).collect();
    let mut rows = of_bytes(&model);
    assert_eq!((rows.get(&(ROWS - 1)), rows.made()), (Some(&(ROWS - 1)), 1));
    assert_eq!((rows.insert(ROWS, 1), rows.made()), (None, 1));
    assert_eq!(rows.values().next_back(), Some(&1));
    assert_eq!((rows.range(ROWS..).count(), rows.contains_key(&(ROWS + 1)), rows.made()), (1, false, 1));
    assert_eq!((rows.passing().count() as u64, rows.made()), (ROWS + 1, 1));
    assert_eq!((rows.iter().count() as u64, rows.made()), (ROWS + 1, 1000));
}

/// One row of many stays, here and there, as in a grid that thins out: it takes no more leaves than rows need, nor room.
#[test]
fn what_is_left_of_many_rows_lies_together() {
    let all = 100 * LEAF_ROWS as u64;
    for stays in [LEAF_ROWS as u64 / 2, LEAF_ROWS as u64, 3 * LEAF_ROWS as u64] {
        let mut rows: Rows<u64, u64> = of_bytes(&(0..all).map(|key| (key, key)).collect());
        (0..all).filter(|key| key % stays != 0).for_each(|key| _ = rows.remove(&key));
        same(&rows, &(0..all).step_by(stays as usize).map(|key| (key, key)).collect());
        let (leaves, room) = rows.room();
        assert!(leaves <= 8 * rows.len() / LEAF_ROWS + 2, "{leaves} leaves of {} rows", rows.len());
        assert!(room <= 8 * rows.len() + LEAF_ROWS, "room for {room}, and {} are there", rows.len());
    }
}

/// † A layer whose name leads nowhere would be swept, though its parts are there.
#[test]
fn a_table_of_layers_and_one_of_their_names_that_differ_are_no_state() {
    let mut w = claimed();
    for _ in 0..9 {
        w.point(&[1]);
    }
    let read = |state: &State| {
        let bytes = Bytes::from(to_postcard(state));
        State::read(&mut &bytes[..], &bytes).filter(State::is_linked)
    };
    assert_eq!(read(&w.state).as_ref(), Some(&w.state));
    let changed = |change: fn(&mut VolumeState)| {
        let mut state = w.state.clone();
        change(state.volumes.get_mut(&vol(1)).expect("claimed"));
        assert!(state != w.state && read(&state).is_none());
    };
    changed(|volume| _ = volume.slots.remove(&volume.slots.last_key().expect("there")));
    changed(|volume| _ = volume.layers.remove(&volume.layers.last_key().expect("there")));
    changed(|volume| {
        let name = volume.slots.last_key().expect("there");
        *volume.slots.get_mut(&name).expect("there") = Slot(1);
    });
    changed(|volume| {
        let (term, seq) = volume.slots.last_key().expect("there");
        let slot = volume.slots.remove(&(term, seq)).expect("there");
        volume.slots.insert((term, Seq(seq.0 + 1)), slot);
    });
}
