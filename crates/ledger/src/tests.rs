//! A small world for the tests: one group, volumes by number, records built from the state like a writer does.

mod batch;
mod bytes;
mod chains;
mod grid;
mod in_turn;
mod labels;
mod memory;
mod merges;
mod packs;
mod promotion;
mod properties;
mod repeats;
mod retention;
mod rows;
mod stories;

use farside_region::{
    BootId, DigestKey, Generation, Geometry, GroupId, KeyId, LayerKey, LedgerPosition, Name, RegionIndex, RegionSet, Seal,
    SealMode, Seq, Slot, Term,
};

use crate::*;

fn name(text: &str) -> Name {
    text.parse().expect("valid")
}

fn vol(n: u8) -> farside_region::VolumeId {
    volume_id(&name("host"), &name("db"), &name(&format!("v{n}")))
}

fn group() -> GroupId {
    group_id(&name("host"), &name("db"))
}

/// 8 regions of 4 granules of 16 bytes.
fn geometry() -> Geometry {
    Geometry::with_shape(8 * 64, 4, 2).expect("valid")
}

fn seal() -> Seal {
    Seal { mode: SealMode::EndToEnd, key: KeyId([0x4b; 16]), commitment: [0xc0; 32] }
}

fn meta(n: u8) -> VolumeMeta {
    VolumeMeta {
        id: vol(n),
        name: name(&format!("v{n}")),
        geometry: geometry(),
        digest_key: [n.max(1); 32].into(),
        generation: Generation(1),
    }
}

fn regions(list: &[u64]) -> RegionSet {
    list.iter().map(|r| RegionIndex(*r)).collect()
}

fn label() -> Label {
    Label::new(Consistency::Application, "before the upgrade", "postgresql, srv")
}

fn cohort_cut(n: u8) -> CohortCut {
    CohortCut { cohort: CohortCut::cohort_id("erp"), cut: [n; 16], groups: 3, wall_ms: 1_700_000_000_000 }
}

fn epoch() -> EpochInfo {
    EpochInfo { boot: BootId([5; 16]), mono_before_ns: 10, mono_after_ns: 20, wall_ms: 1_700_000_000_000 }
}

fn entry(n: u8, term: Term, seq: u64, content: u8) -> LayerEntry {
    LayerEntry {
        key: LayerKey { volume: vol(n), term, seq: Seq(seq) },
        digest: [content; 32],
        parts: vec![PartEntry { bytes: 100, footer_digest: [content; 32] }],
        regions: regions(&[1, 2]),
        unreadable_regions: RegionSet::new(),
        volume_bytes: geometry().volume_bytes(),
    }
}

/// A ledger with its clock: every record comes from writer `writer` at `mono_ms`/`wall_ms`.
#[derive(Clone)]
struct World {
    state: State,
    writer: u8,
    mono_ms: u64,
    wall_ms: i64,
    log: Vec<(Record, farside_region::RecordDigest, Verdict)>,
}

impl World {
    fn new() -> Self {
        Self { state: State::new(group()), writer: 1, mono_ms: 0, wall_ms: 1_700_000_000_000, log: Vec::new() }
    }

    fn record(&self, body: Body) -> Record {
        let stamp = Stamp { writer: [self.writer; 16], mono_ms: self.mono_ms, wall_ms: self.wall_ms };
        let nonce = [self.log.len() as u8; 16];
        Record { group: group(), slot: self.state.next_slot(), prev: self.state.prev(), nonce, stamp, body }
    }

    fn put(&mut self, body: Body) -> Verdict {
        let record = self.record(body);
        let encoded = record.encode().expect("small");
        let (decoded, digest) = Record::decode(&encoded.bytes).expect("round trip");
        assert_eq!((&decoded, digest), (&record, encoded.digest));
        let verdict = self.state.apply(&decoded, digest);
        self.log.push((decoded, digest, verdict));
        verdict
    }

    fn pass_ms(&mut self, ms: u64) {
        self.mono_ms += ms;
        self.wall_ms += ms as i64;
    }

    fn claim(&mut self, n: u8) -> Verdict {
        let looked = self.state.head();
        self.put(Body::Claim(Claim { volume: meta(n), looked, source: name("host") }))
    }

    fn layers(&mut self, kind: LayerKind, members: Vec<LayerEntry>) -> Verdict {
        self.put(Body::Layers(Layers { kind, epoch: epoch(), label: None, members }))
    }

    fn next(&self, n: u8, content: u8) -> LayerEntry {
        let key = self.state.volume(vol(n)).expect("claimed").next_key();
        entry(n, key.term, key.seq.0, content)
    }

    fn point(&mut self, volumes: &[u8]) -> Slot {
        let slot = self.state.next_slot();
        let content = slot.0 as u8;
        let members = volumes.iter().map(|n| self.next(*n, content)).collect();
        assert_eq!(self.layers(LayerKind::Point, members), Verdict::Accepted);
        slot
    }

    fn fuzzy(&mut self, n: u8) -> Slot {
        let slot = self.state.next_slot();
        let member = self.next(n, slot.0 as u8);
        assert_eq!(self.layers(LayerKind::Fuzzy, vec![member]), Verdict::Accepted);
        slot
    }

    fn beat(&self, members: &[(u8, Term)], position: LedgerPosition) -> Body {
        let t = CutTime { boot: BootId([5; 16]), mono_ns: 99, wall_ms: 3 };
        Body::Heartbeat(Heartbeat { members: members.iter().map(|(n, t)| (vol(*n), *t)).collect(), position, t })
    }

    fn position(&self) -> LedgerPosition {
        self.state.position().expect("not empty")
    }

    fn term(&self, n: u8) -> Term {
        self.state.volume(vol(n)).expect("claimed").term()
    }
}

/// Two volumes, claimed.
fn claimed() -> World {
    let mut world = World::new();
    assert_eq!(world.claim(1), Verdict::Accepted);
    assert_eq!(world.claim(2), Verdict::Accepted);
    world
}

fn void(verdict: Verdict) -> VoidReason {
    match verdict {
        Verdict::Void(reason) => reason,
        Verdict::Accepted => panic!("accepted"),
    }
}
