//! What a checkpoint's tables hold, read from its bytes by hand: as postcard has them, and as serde would read them.
//!
//! A state of a hundred thousand points is 27 MB, most of them digests and keys. serde reads such arrays byte by byte, and makes a value of
//! everything before anybody asks for it. So each kind of row can be *passed* as well: all that could be wrong with it is looked at, and nothing
//! is made. Invariant: what can be passed can be read, and what is read is what serde would read; so who passed all rows of a table may read any
//! of them later (`what_is_read_by_hand_is_what_serde_reads`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use farside_region::{BootId, LayerKey, PackedRegions, RecordDigest, Seq, Slot, Term, VolumeId};
use serde::de::DeserializeOwned;

use crate::checkpoint::CheckpointPart;
use crate::in_turn::{LayerTouch, Touched};
use crate::label::Label;
use crate::record::{EpochInfo, LayerKind};
use crate::state::{LayerFact, Point, PointMember, Proof, Proofs};

/// Something that lies in a checkpoint's table.
pub trait Stored: Sized {
    /// The next one; `None`: these bytes are not one.
    fn read(from: &mut &[u8]) -> Option<Self>;

    /// Goes on behind the next one; `None` exactly where [`Stored::read`] says so.
    fn pass(from: &mut &[u8]) -> Option<()> {
        Self::read(from).map(drop)
    }
}

/// By serde: for what is small or seldom there.
pub(crate) fn by_serde<T: DeserializeOwned>(from: &mut &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(from).ok()?;
    *from = rest;
    Some(value)
}

/// So many bytes.
fn bytes<'a>(from: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (bytes, rest) = from.split_at_checked(usize::try_from(count).ok()?)?;
    *from = rest;
    Some(bytes)
}

/// How many elements follow. Each has a byte at least: nothing is made of a number that no bytes are behind.
pub(crate) fn count(from: &mut &[u8]) -> Option<usize> {
    usize::try_from(u64::read(from)?).ok().filter(|count| *count <= from.len())
}

impl Stored for u64 {
    #[inline]
    fn read(from: &mut &[u8]) -> Option<Self> {
        // Most are small.
        if let [byte @ ..0x80, rest @ ..] = from {
            let number = Self::from(*byte);
            *from = rest;
            return Some(number);
        }
        several_bytes(from)
    }
}

fn several_bytes(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for (at, &byte) in from.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *from = &from[at + 1..];
            // The tenth byte has one bit of it.
            return (at < 9 || byte <= 1).then_some(number);
        }
    }
    None
}

impl Stored for u32 {
    #[inline]
    fn read(from: &mut &[u8]) -> Option<Self> {
        // postcard reads no more than five bytes for one.
        let before = from.len();
        let number = u64::read(from)?;
        (before - from.len() <= 5).then(|| Self::try_from(number).ok()).flatten()
    }
}

impl Stored for i64 {
    #[inline]
    fn read(from: &mut &[u8]) -> Option<Self> {
        let zigzag = u64::read(from)?;
        Some((zigzag >> 1) as Self ^ -((zigzag & 1) as Self))
    }
}

impl Stored for bool {
    #[inline]
    fn read(from: &mut &[u8]) -> Option<Self> {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        match byte {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl<const N: usize> Stored for [u8; N] {
    #[inline]
    fn read(from: &mut &[u8]) -> Option<Self> {
        let (bytes, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(*bytes)
    }

    #[inline]
    fn pass(from: &mut &[u8]) -> Option<()> {
        *from = from.get(N..)?;
        Some(())
    }
}

impl Stored for String {
    fn read(from: &mut &[u8]) -> Option<Self> {
        let count = u64::read(from)?;
        std::str::from_utf8(bytes(from, count)?).ok().map(str::to_owned)
    }
}

impl<T: Stored> Stored for Option<T> {
    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(if bool::read(from)? { Some(T::read(from)?) } else { None })
    }

    fn pass(from: &mut &[u8]) -> Option<()> {
        if bool::read(from)? { T::pass(from) } else { Some(()) }
    }
}

/// What has elements one after the other. Where a key comes twice in a map the later one counts, as for serde.
macro_rules! sequences {
    ($([$($of:tt)+] $sequence:ty: $element:ty;)+) => {$(
        impl<$($of)+> Stored for $sequence {
            fn read(from: &mut &[u8]) -> Option<Self> {
                let count = count(from)?;
                if count == 0 {
                    return Some(Self::new());
                }
                (0..count).map(|_| <$element>::read(from)).collect()
            }

            fn pass(from: &mut &[u8]) -> Option<()> {
                let count = count(from)?;
                (0..count).try_for_each(|_| <$element>::pass(from))
            }
        }
    )+};
}

sequences! {
    [T: Stored] Vec<T>: T;
    [T: Stored] VecDeque<T>: T;
    [T: Stored + Ord] BTreeSet<T>: T;
    [K: Stored + Ord, V: Stored] BTreeMap<K, V>: (K, V);
}

impl<A: Stored, B: Stored> Stored for (A, B) {
    #[inline]
    fn read(from: &mut &[u8]) -> Option<Self> {
        Some((A::read(from)?, B::read(from)?))
    }

    #[inline]
    fn pass(from: &mut &[u8]) -> Option<()> {
        A::pass(from)?;
        B::pass(from)
    }
}

/// Structures are their fields in order.
macro_rules! structures {
    ($($structure:ident { $($field:ident: $of:ty),+ })+) => {$(
        impl Stored for $structure {
            #[inline]
            fn read(from: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: <$of>::read(from)?),+ })
            }

            #[inline]
            fn pass(from: &mut &[u8]) -> Option<()> {
                $(<$of>::pass(from)?;)+
                Some(())
            }
        }
    )+};
}

/// And those of one field that field.
macro_rules! wrappers {
    ($($wrapper:ident($of:ty))+) => {$(
        impl Stored for $wrapper {
            #[inline]
            fn read(from: &mut &[u8]) -> Option<Self> {
                <$of>::read(from).map(Self)
            }

            #[inline]
            fn pass(from: &mut &[u8]) -> Option<()> {
                <$of>::pass(from)
            }
        }
    )+};
}

wrappers! { Slot(u64) Term(u64) Seq(u64) VolumeId([u8; 16]) RecordDigest([u8; 32]) BootId([u8; 16]) }

structures! {
    LayerKey { volume: VolumeId, term: Term, seq: Seq }
    EpochInfo { boot: BootId, mono_before_ns: u64, mono_after_ns: u64, wall_ms: i64 }
    LayerFact {
        key: LayerKey, slot: Slot, kind: LayerKind, digest: [u8; 32], part_count: u32, bytes: u64, touched: PackedRegions,
        pruned: BTreeSet<u32>
    }
    Point {
        slot: Slot, epoch: EpochInfo, label: Option<Box<Label>>, members: Vec<PointMember>, time_ms: u64, age_clock_ms: u64,
        published_wall_ms: i64, degraded: bool, pins: BTreeMap<Slot, String>, proofs: Proofs<Proof>
    }
    PointMember { key: LayerKey, digest: [u8; 32], volume_bytes: u64, layer_bytes: u64, degraded: bool }
    Proof { slot: Slot, wall_ms: i64 }
    CheckpointPart { layer: LayerKey, number: u32, bytes: u64, footer_digest: [u8; 32], born: Slot }
}

/// The key of a [`LayerFact`].
#[derive(Debug)]
pub(crate) struct LayerName(pub(crate) LayerKey);

impl Stored for LayerName {
    fn read(from: &mut &[u8]) -> Option<Self> {
        LayerTouch::read_to_touched(from).map(|(key, _)| Self(key))
    }
}

impl Stored for LayerTouch {
    fn read(from: &mut &[u8]) -> Option<Self> {
        let (key, (ranges, packed)) = Self::read_to_touched(from)?;
        Some(Self { key, touched: Touched::of(packed, || PackedRegions::from_packed(ranges, packed)) })
    }
}

impl LayerTouch {
    fn read_to_touched<'a>(from: &mut &'a [u8]) -> Option<(LayerKey, (u32, &'a [u8]))> {
        let key = LayerKey::read(from)?;
        Slot::pass(from)?;
        LayerKind::pass(from)?;
        <[u8; 32]>::pass(from)?;
        u32::pass(from)?;
        u64::pass(from)?;
        let (ranges, count) = (u32::read(from)?, u64::read(from)?);
        let packed = bytes(from, count)?;
        <BTreeSet<u32>>::pass(from)?;
        Some((key, (ranges, packed)))
    }
}

impl<T: Stored> Stored for Proofs<T> {
    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(Self { read_back: Option::read(from)?, with_source: Option::read(from)? })
    }

    fn pass(from: &mut &[u8]) -> Option<()> {
        <Option<T>>::pass(from)?;
        <Option<T>>::pass(from)
    }
}

impl Stored for LayerKind {
    fn read(from: &mut &[u8]) -> Option<Self> {
        match u32::read(from)? {
            0 => Some(Self::Point),
            1 => Some(Self::Fuzzy),
            _ => None,
        }
    }
}

impl Stored for Box<Label> {
    fn read(from: &mut &[u8]) -> Option<Self> {
        by_serde(from)
    }
}

impl Stored for PackedRegions {
    fn read(from: &mut &[u8]) -> Option<Self> {
        let ranges = u32::read(from)?;
        let count = u64::read(from)?;
        Some(Self::from_packed(ranges, bytes(from, count)?))
    }

    fn pass(from: &mut &[u8]) -> Option<()> {
        u32::pass(from)?;
        let count = u64::read(from)?;
        bytes(from, count).map(drop)
    }
}
