//! Records of a ledger: alone, as a chain that is replayed, and the cache of what replay gave.

use std::time::Duration;

use bytes::Bytes;
use farside_ledger::{
    Body, CheckpointPlace, CheckpointRoot, Claim, Consistency, CutTime, EpochInfo, Grid, Heartbeat, Label, LayerEntry, LayerKind,
    Layers, PackId, PackPlaces, PackedPart, PackedParts, PartEntry, Pin, Policy, Prune, PrunePolicy, PrunedParts, Record, Stamp,
    State, TornVoid, TrackingLost, Unpin, Verdict, Verified, VerifiedHow, VoidReason, VolumeMeta, decode_object, decode_repeats,
    encode_object, encode_repeating, group_id, may_repeat_others, volume_id,
};
use farside_region::{
    BootId, Generation, Geometry, LayerKey, LedgerPosition, Name, RecordDigest, RegionIndex, RegionSet, Seq, Slot, Term, VolumeId,
};

use super::reads_back;
use crate::engine::{Memory, Outcome, Target, unmeasured};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "record",
        what: "a ledger record or several, from a store",
        seeds: object_seeds,
        seal: |bytes| seal(bytes),
        words: &[b"FSLEDGER", b"FSLBATCH"],
        bytes_max: 4 << 10,
        // A list that claims to be long is given at most a megabyte before its first element.
        memory: Memory { fixed_bytes: 2 << 20, bytes_per_byte: 64 },
        decode: record,
    },
    Target {
        name: "ledger",
        what: "a whole ledger that somebody wrote with good digests, replayed",
        seeds: ledger_seeds,
        seal: seal_chain,
        words: &[],
        bytes_max: 12 << 10,
        memory: Memory { fixed_bytes: 2 << 20, bytes_per_byte: 256 },
        decode: ledger,
    },
    Target {
        name: "state-cache",
        what: "a cached state, from a disk",
        seeds: || vec![replayed().to_cache(), State::new(group()).to_cache()],
        seal: |bytes| seal(bytes),
        words: &[b"FSLSTAT6"],
        bytes_max: 8 << 10,
        memory: Memory { fixed_bytes: 2 << 20, bytes_per_byte: 256 },
        decode: cache,
    },
];

const HEAD: usize = 128;
const DIGEST: usize = 32;
/// Where a record names its slot, and its predecessor.
const SLOT_AT: usize = 16;
const PREV_AT: usize = 40;

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(super) fn group() -> farside_region::GroupId {
    group_id(&name("host"), &name("db"))
}

pub(super) fn volume(n: u8) -> VolumeId {
    volume_id(&name("host"), &name("db"), &name(&format!("v{n}")))
}

/// 8 regions of 4 granules of 16 bytes.
pub(super) fn geometry() -> Geometry {
    Geometry::with_shape(8 * 64, 4, 2).expect("a geometry")
}

pub(super) fn meta(n: u8) -> VolumeMeta {
    let name = name(&format!("v{n}"));
    VolumeMeta { id: volume(n), name, geometry: geometry(), digest_key: [n.max(1); 32].into(), generation: Generation(1) }
}

pub(super) fn regions(list: &[u64]) -> RegionSet {
    list.iter().map(|r| RegionIndex(*r)).collect()
}

pub(super) fn epoch() -> EpochInfo {
    EpochInfo { boot: BootId([5; 16]), mono_before_ns: 10, mono_after_ns: 20, wall_ms: 1_700_000_000_000 }
}

pub(super) fn label() -> Label {
    Label::new(Consistency::Application, "before the upgrade", "postgresql, srv")
}

fn entry(n: u8, term: u64, seq: u64) -> LayerEntry {
    LayerEntry {
        key: LayerKey { volume: volume(n), term: Term(term), seq: Seq(seq) },
        digest: [seq as u8; 32],
        parts: vec![PartEntry { bytes: 100, footer_digest: [n; 32] }, PartEntry { bytes: 70_000, footer_digest: [9; 32] }],
        regions: regions(&[0, 1, 5]),
        unreadable_regions: regions(&[5]),
        volume_bytes: geometry().volume_bytes(),
    }
}

/// A ledger with records of every kind, each of which makes sense where it is.
fn bodies() -> Vec<Body> {
    let claim = |n, looked| Body::Claim(Claim { volume: meta(n), looked, source: name("host") });
    let layers = |kind, members| Body::Layers(Layers { kind, epoch: epoch(), label: None, members });
    let t = CutTime { boot: BootId([5; 16]), mono_ns: 99, wall_ms: 3 };
    vec![
        claim(1, None),
        claim(2, Some(Slot(0))),
        layers(LayerKind::Fuzzy, vec![entry(1, 0, 1)]),
        layers(LayerKind::Point, vec![entry(1, 0, 2), entry(2, 1, 1)]),
        Body::Layers(Layers {
            kind: LayerKind::Point,
            epoch: epoch(),
            label: Some(Box::new(label())),
            members: vec![entry(1, 0, 3), entry(2, 1, 2)],
        }),
        Body::Pin(Pin { point: Slot(3), reason: "before the upgrade".to_owned() }),
        Body::Unpin(Unpin { pin: Slot(5) }),
        // The driver puts in what the ledger then holds at that slot.
        Body::Heartbeat(Heartbeat {
            members: vec![(volume(1), Term(0)), (volume(2), Term(1))],
            position: LedgerPosition { slot: Slot(6), digest: RecordDigest([0; 32]) },
            t,
        }),
        Body::Prune(Prune {
            looked: Slot(7),
            policy: PrunePolicy::Aged(Policy {
                grid: Grid::of([(Duration::from_secs(1), Duration::from_secs(1))]),
                ..Policy::without_grid(1, 0)
            }),
            points: vec![Slot(3)],
            parts: vec![PrunedParts { layer: entry(1, 0, 1).key, parts: vec![0, 1] }],
        }),
        Body::TrackingLost(TrackingLost { volume: volume(1), term: Term(0) }),
        Body::Verified(Verified { point: Slot(4), how: VerifiedHow::WithSource }),
        Body::TornVoid(TornVoid { torn_digest: [0x0b; 32], torn_bytes: 4096 }),
        claim(1, Some(Slot(10))),
        Body::PackPlaces(PackPlaces {
            packs: vec![PackedParts {
                pack: PackId::new(Slot(13), [3; 8]),
                parts: vec![PackedPart { layer: entry(1, 12, 1).key, number: 0, offset: 9 }],
            }],
        }),
        layers(LayerKind::Fuzzy, vec![entry(1, 12, 1)]),
    ]
}

fn records() -> Vec<Record> {
    let mut state = State::new(group());
    let mut records = Vec::new();
    for mut body in bodies() {
        if let Body::Heartbeat(heartbeat) = &mut body {
            heartbeat.position = state.position().expect("there are records");
        }
        let slot = state.next_slot();
        let stamp = Stamp { writer: [1; 16], mono_ms: 1000 * slot.0, wall_ms: 1_700_000_000_000 };
        let record = Record { group: group(), slot, prev: state.prev(), nonce: [slot.0 as u8; 16], stamp, body };
        let digest = record.encode().expect("small").digest;
        state.apply(&record, digest);
        records.push(record);
    }
    records
}

fn replayed() -> State {
    let mut state = State::new(group());
    for record in records() {
        state.apply(&record, record.encode().expect("small").digest);
    }
    state
}

fn record_seeds() -> Vec<Vec<u8>> {
    records().iter().map(|record| record.encode().expect("small").bytes).collect()
}

/// Records alone, and some together.
fn object_seeds() -> Vec<Vec<u8>> {
    let encoded: Vec<_> = records().iter().map(|record| record.encode().expect("small")).collect();
    let of = |at: std::ops::Range<usize>| encode_object(Slot(at.start as u64), &encoded[at]).expect("small");
    let before: Vec<&[u8]> = encoded.iter().map(|record| &record.bytes[..]).collect();
    let repeating = |at: std::ops::Range<usize>| {
        encode_repeating(Slot(at.start as u64), &encoded[at.clone()], &before[..at.start]).expect("small")
    };
    let repeating = [repeating(1..2), repeating(3..5), repeating(7..8)];
    record_seeds().into_iter().chain([of(0..2), of(2..5), of(3..9)]).chain(repeating).collect()
}

/// The digest behind the own records of an object that repeats others.
fn seal_own(bytes: &mut [u8]) {
    let of = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let end = || {
        let (own, repeated) = (usize::from(u16::from_le_bytes(bytes.get(10..12)?.try_into().ok()?)), of(16)?);
        (0..own).try_fold(20 + 4 * (own + repeated), |end, record| Some(end + of(20 + 4 * record)?))
    };
    if may_repeat_others(bytes)
        && let Some(end) = end().filter(|end| end + DIGEST <= bytes.len())
    {
        let digest = blake3::hash(&bytes[..end]);
        bytes[end..end + DIGEST].copy_from_slice(digest.as_bytes());
    }
}

/// The digest at the end, and a body as long as the head says.
fn seal(bytes: &mut [u8]) {
    if bytes.len() >= HEAD + DIGEST && bytes.starts_with(b"FSLEDGER") {
        let body = (bytes.len() - HEAD - DIGEST) as u32;
        bytes[12..16].copy_from_slice(&body.to_le_bytes());
    }
    seal_own(bytes);
    if let Some(content) = bytes.len().checked_sub(DIGEST) {
        let digest = blake3::hash(&bytes[..content]);
        bytes[content..].copy_from_slice(digest.as_bytes());
    }
}

fn record(bytes: &[u8]) -> Outcome {
    let records = match decode_object(bytes) {
        Err(error) => return Outcome::refused(error),
        Ok(records) => records,
    };
    if let Some(last) = decode_repeats(bytes).ok().as_deref().and_then(<[_]>::last) {
        assert_eq!((last.record.slot.next(), last.digest), (records[0].0.slot, records[0].0.prev), "another chain is repeated");
    }
    unmeasured(|| {
        let encoded: Vec<_> = records.iter().map(|(record, _)| record.encode().expect("it was read")).collect();
        let again = |bytes: Vec<u8>| decode_object(&bytes).expect("what was written is read");
        let first = records[0].0.slot;
        // A number may have been written in more bytes than it needs, and then the next record names other ones.
        if encoded.iter().zip(&records).all(|(encoded, (_, digest))| encoded.digest == *digest) {
            assert_eq!(again(encode_object(first, &encoded).expect("it was one")), records);
        }
    });
    match records.into_iter().next_back() {
        None => unreachable!("there is at least one"),
        Some((record, digest)) => {
            // Its own digest is over its own bytes; a number may have been written in more bytes than it needs.
            reads_back(&record, || Some(Record::decode(&record.encode().ok()?.bytes).ok()?.0));
            let mut state = unmeasured(replayed);
            let record = Record { group: state.group(), slot: state.next_slot(), prev: state.prev(), ..record };
            let outcome = unmeasured(|| judged(&mut state, &record, digest));
            unmeasured(|| drop(state));
            outcome
        }
    }
}

/// Applies a record that follows, and holds the state to its promises.
fn judged(state: &mut State, record: &Record, digest: RecordDigest) -> Outcome {
    let before = state.clone();
    let verdict = state.apply(record, digest);
    assert_eq!(before.judge(record), verdict, "judged otherwise than applied");
    assert_eq!(state.next_slot(), before.next_slot().next(), "a record takes one slot");
    assert!(state.time_ms() >= before.time_ms(), "ledger time goes back");
    for (id, volume) in before.volumes() {
        let after = state.volume(id).expect("a volume stays known");
        assert!((after.term(), after.last_seq()) >= (volume.term(), volume.last_seq()), "the chain of a volume goes back");
        assert!(after.meta().geometry.volume_bytes() >= volume.meta().geometry.volume_bytes(), "a volume shrinks");
    }
    if verdict != Verdict::Accepted {
        let mut untouched = before;
        untouched
            .apply(&Record { body: Body::TornVoid(TornVoid { torn_digest: [0; 32], torn_bytes: 0 }), ..record.clone() }, digest);
        assert_eq!(*state, untouched, "a void record left a trace");
    }
    for point in state.points().values() {
        for member in &point.members {
            assert!(state.layer(&member.key).is_some(), "a point names a layer that is not known");
        }
    }
    match verdict {
        Verdict::Accepted => {
            Outcome::accepted((kind_of(&record.body), state.volumes().count().min(4), state.points().len().min(4)))
        }
        Verdict::Void(reason) => Outcome::accepted((kind_of(&record.body), void_kind(&reason))),
    }
}

fn kind_of(body: &Body) -> std::mem::Discriminant<Body> {
    std::mem::discriminant(body)
}

fn void_kind(reason: &VoidReason) -> std::mem::Discriminant<VoidReason> {
    std::mem::discriminant(reason)
}

/// Records one after the other, each behind its length (u16 LE).
fn ledger_seeds() -> Vec<Vec<u8>> {
    let all = record_seeds();
    let join = |records: &[Vec<u8>]| {
        records.iter().flat_map(|r| [(r.len() as u16).to_le_bytes().to_vec(), r.clone()].concat()).collect::<Vec<u8>>()
    };
    vec![join(&all), join(&all[..4])]
}

fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut records) = (bytes, Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (record, tail) = tail.split_at(tail.len().min(u16::from_le_bytes(*length).into()));
        records.push(record);
        rest = tail;
    }
    records
}

/// Makes every record the next one of this ledger.
fn seal_chain(bytes: &mut Vec<u8>) {
    let (mut sealed, mut prev) = (Vec::with_capacity(bytes.len()), Record::NO_PREDECESSOR);
    let mut slot = 0_u64;
    for record in split(bytes) {
        let mut record = record.to_vec();
        if record.len() >= HEAD + DIGEST {
            record[SLOT_AT..SLOT_AT + 8].copy_from_slice(&slot.to_le_bytes());
            record[SLOT_AT + 8..PREV_AT].copy_from_slice(&group().0);
            record[PREV_AT..PREV_AT + 32].copy_from_slice(&prev.0);
            seal(&mut record);
            prev = RecordDigest(*record.last_chunk().expect("a digest"));
            slot += 1;
        }
        sealed.extend_from_slice(&(record.len() as u16).to_le_bytes());
        sealed.extend_from_slice(&record);
    }
    *bytes = sealed;
}

fn ledger(bytes: &[u8]) -> Outcome {
    let mut state = State::new(group());
    let mut last = Outcome::refused("no record at all");
    for bytes in split(bytes) {
        match Record::decode(bytes) {
            Err(error) => return Outcome::refused(error),
            Ok((record, digest)) => match state.follows(&record) {
                Err(error) => return Outcome::refused(error),
                Ok(()) => {
                    let mut copy = unmeasured(|| state.clone());
                    last = unmeasured(|| judged(&mut copy, &record, digest));
                    state.apply(&record, digest);
                    unmeasured(|| {
                        assert_eq!(copy, state, "two who replay disagree");
                        drop(copy);
                    });
                }
            },
        }
    }
    unmeasured(|| assert_eq!(State::from_cache(&state.to_cache()), Ok(state.clone()), "a cache is not what was cached"));
    last
}

fn cache(bytes: &[u8]) -> Outcome {
    read_by_hand(bytes.get(8..bytes.len().saturating_sub(32)).unwrap_or_default());
    match State::from_cache(bytes) {
        Err(error) => Outcome::refused(error),
        Ok(state) => {
            reads_back(&state, || State::from_cache(&state.to_cache()).ok());
            Outcome::accepted((state.volumes().count().min(8), state.points().len().min(8)))
        }
    }
}

/// The same as the state of a checkpoint, which is read by hand: what serde refuses is refused, and all of what is read is what serde reads.
fn read_by_hand(body: &[u8]) {
    unmeasured(|| {
        let by_serde = match postcard::take_from_bytes::<State>(body) {
            Ok((state, [])) => Some(state),
            _ => None,
        };
        // Of no parts.
        let bytes = Bytes::from([b"FSCHKST7", body, &[0, 0]].concat());
        let last = by_serde.as_ref().map_or(0, |state| state.next_slot().0.saturating_sub(1));
        let root = CheckpointRoot {
            version: 2,
            group: by_serde.as_ref().map_or(group(), State::group),
            place: CheckpointPlace { number: last, slots: 1 },
            last: by_serde.as_ref().map_or(Record::NO_PREDECESSOR, State::prev),
            previous: [0; 32],
            state_bytes: bytes.len() as u64,
            state_digest: *blake3::hash(&bytes).as_bytes(),
        };
        if let Ok((by_hand, _)) = root.state(&bytes) {
            assert_eq!(Some(by_hand), by_serde, "read by hand it is another");
        }
    });
}
