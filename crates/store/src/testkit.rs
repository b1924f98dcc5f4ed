//! A small source for tests: makes parts of a little volume, lands them and publishes them, and knows what the image is.

use std::path::{Path, PathBuf};

use farside_keys::{ContentKeys, GroupKey, Sealer, Secret};
use farside_layer::{Compression, Encoder, PartId, PartSummary, PartWriter};
use farside_ledger::{
    Body, Claim, EpochInfo, LayerEntry, LayerKind, Layers, PartEntry, Stamp, State, VolumeMeta, group_id, volume_id,
};
use farside_region::{
    BootId, DigestKey, Generation, Geometry, GranuleIndex, GranuleRun, LayerKey, Name, RegionIndex, RegionSet, SealMode, Seq,
    Slot, Term, VolumeId,
};
use tempfile::TempDir;

use crate::{Appended, Attempt, GroupStore, Store};

pub(crate) const GRANULE: u64 = 512;

thread_local! {
    /// Added to the monotonic clock of what this thread appends.
    pub(crate) static PASSED_MS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    /// By the wall clock, which went on before the process began as well.
    pub(crate) static WALL_PASSED_MS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Data of one byte, zeroes, or not readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    Byte(u8),
    Zero,
    Unreadable,
}

/// What one part holds: (first granule, how many, what), ascending.
pub(crate) type Runs = Vec<(u64, u64, Fill)>;

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("name")
}

/// A store in a temporary directory.
pub(crate) struct TempStore {
    pub(crate) dir: TempDir,
}

/// Short histories are long: what is over is forgotten soon, on this thread, so that every test goes through it.
pub(crate) fn forget_soon() {
    farside_ledger::Memory::set(Some(farside_ledger::Memory { every: crate::checkpoint::span(), layers: 3, slots: 96 }));
}

impl TempStore {
    pub(crate) fn new() -> Self {
        forget_soon();
        let dir = tempfile::tempdir().expect("temp dir");
        Store::init(&dir.path().join("store")).expect("init");
        Self { dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn open(&self) -> Store {
        Store::open(&self.path()).expect("open")
    }

    pub(crate) fn group(&self) -> GroupStore {
        self.open().group(&name("host"), &name("default")).expect("group")
    }

    /// All files below a folder of the store, relative to it.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let mut files = Vec::new();
        walk(&self.path().join(folder), &mut |p| files.push(p.strip_prefix(self.path()).expect("below").display().to_string()));
        files.sort();
        files
    }
}

fn walk(dir: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("entry").path();
        if path.is_dir() { walk(&path, each) } else { each(&path) }
    }
}

/// A volume and what a source would know about it.
#[derive(Clone, Debug)]
pub(crate) struct TestVolume {
    pub(crate) meta: VolumeMeta,
    pub(crate) term: Term,
    pub(crate) seq: u64,
    pub(crate) image: Vec<Option<Fill>>,
    /// Of an encrypted one.
    pub(crate) group_key: Option<GroupKey>,
}

impl TestVolume {
    /// `granules` of 512 bytes, regions of 8.
    pub(crate) fn new(volume: &str, granules: u64) -> Self {
        let geometry = Geometry::with_shape(granules * GRANULE, 9, 3).expect("geometry");
        let id = volume_id(&name("host"), &name("default"), &name(volume));
        let meta = VolumeMeta { id, name: name(volume), geometry, digest_key: [7; 32].into(), generation: Generation(1) };
        Self { meta, term: Term(0), seq: 0, image: vec![None; granules as usize], group_key: None }
    }

    /// The same, encrypted.
    pub(crate) fn sealed(self, key: &GroupKey) -> Self {
        self.sealed_as(SealMode::EndToEnd, key)
    }

    pub(crate) fn sealed_as(self, mode: SealMode, key: &GroupKey) -> Self {
        let digest_key = DigestKey::Sealed(key.seal(mode, self.id()));
        Self { meta: VolumeMeta { digest_key, ..self.meta }, group_key: Some(key.clone()), ..self }
    }

    pub(crate) fn id(&self) -> VolumeId {
        self.meta.id
    }

    pub(crate) fn claim_body(&self, looked: Option<Slot>) -> Body {
        Body::Claim(Claim { volume: self.meta.clone(), looked, source: name("host") })
    }

    pub(crate) fn claim(&mut self, group: &mut GroupStore) {
        let looked = group.state().head();
        let appended = group.append(self.claim_body(looked)).expect("claim");
        assert!(appended.verdict.is_done(), "{:?}", appended.verdict);
        self.term = Term(appended.position.slot.0);
        self.seq = 0;
    }

    pub(crate) fn key(&self, seq: u64) -> LayerKey {
        LayerKey { volume: self.id(), term: self.term, seq: Seq(seq) }
    }

    /// The bytes of a part.
    pub(crate) fn part(&self, key: LayerKey, part: u32, runs: &[(u64, u64, Fill)]) -> (Vec<u8>, PartSummary) {
        let id = PartId { key, part, geometry: self.meta.geometry };
        let keys = ContentKeys::of(&self.meta.digest_key, self.id(), self.group_key.as_ref()).expect("its own key");
        let encoder = Encoder::new(Compression::Zstd(1)).sealing(Sealer::new(Secret::random().expect("randomness")));
        let mut writer = PartWriter::new(id, keys, encoder);
        for &(start, count, fill) in runs {
            let run = GranuleRun { start: GranuleIndex(start), count };
            match fill {
                Fill::Byte(b) => {
                    let bytes: Vec<u8> = (0..count).flat_map(|i| granule(start + i, b)).collect();
                    writer.push_data(run.start, &bytes).expect("fits");
                }
                Fill::Zero => writer.push_zero(run).expect("fits"),
                Fill::Unreadable => writer.push_unreadable(run).expect("fits"),
            }
        }
        let mut bytes = writer.take_chunk();
        let (tail, summary, _) = writer.finish();
        bytes.extend(tail);
        (bytes, summary)
    }

    /// Lands the parts of the next layer and gives its entry.
    pub(crate) fn land(&mut self, group: &GroupStore, parts: &[Runs]) -> LayerEntry {
        self.seq += 1;
        let key = self.key(self.seq);
        let mut entries = Vec::new();
        let mut regions = RegionSet::new();
        for (number, runs) in (0..).zip(parts) {
            let (bytes, _) = self.part(key, number, runs);
            let mut lander = group.landing().begin_part(&self.meta, key, number).expect("begin");
            bytes.chunks(100).for_each(|c| lander.write(c).expect("write"));
            entries.push(lander.finish().expect("finish"));
            for &(start, count, fill) in runs {
                let run = GranuleRun { start: GranuleIndex(start), count };
                regions.insert_range(self.meta.geometry.regions_of(run));
                self.image[start as usize..(start + count) as usize].fill(Some(fill));
            }
        }
        self.entry(group, key, entries, regions)
    }

    fn entry(&self, group: &GroupStore, key: LayerKey, parts: Vec<PartEntry>, regions: RegionSet) -> LayerEntry {
        let digests: Vec<[u8; 32]> = parts.iter().map(|p| p.footer_digest).collect();
        LayerEntry {
            digest: farside_layer::layer_digest(&key, &digests),
            unreadable_regions: group.unreadable_after(key, &parts, &regions).expect("unreadable"),
            key,
            parts,
            regions,
            volume_bytes: self.meta.geometry.volume_bytes(),
        }
    }

    /// Lands and publishes one layer.
    pub(crate) fn publish(&mut self, group: &mut GroupStore, kind: LayerKind, parts: &[Runs]) -> Appended {
        let entry = self.land(group, parts);
        let appended = group.append(layers(kind, vec![entry])).expect("append");
        assert!(appended.verdict.is_done(), "{:?}", appended.verdict);
        appended
    }

    /// The first sync: everything, as one point.
    pub(crate) fn base(&mut self, group: &mut GroupStore, byte: u8) -> Slot {
        let granules = self.meta.geometry.granule_count();
        self.publish(group, LayerKind::Point, &[vec![(0, granules, Fill::Byte(byte))]]).position.slot
    }

    /// What a device would read.
    pub(crate) fn bytes(image: &[Option<Fill>]) -> Vec<u8> {
        let of = |(i, fill): (usize, &Option<Fill>)| match fill.expect("covered") {
            Fill::Byte(b) => granule(i as u64, b),
            Fill::Zero | Fill::Unreadable => vec![0; GRANULE as usize],
        };
        image.iter().enumerate().flat_map(of).collect()
    }
}

/// Two small volumes, claimed.
pub(crate) fn two_volumes(group: &mut GroupStore) -> [TestVolume; 2] {
    let mut volumes = [TestVolume::new("v", 16), TestVolume::new("w", 16)];
    volumes.iter_mut().for_each(|volume| volume.claim(group));
    volumes
}

/// Content that tells which granule it is of, and compresses a little.
pub(crate) fn granule(number: u64, byte: u8) -> Vec<u8> {
    (0..GRANULE).map(|i| byte ^ (i as u8 & 0x70) ^ (number as u8)).collect()
}

pub(crate) fn layers(kind: LayerKind, members: Vec<LayerEntry>) -> Body {
    let epoch = EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: 1000 };
    Body::Layers(Layers { kind, epoch, label: None, members })
}

/// A group's state after so many points of a volume, one a second, of which nothing is in any store.
pub(crate) fn state_of_points(volume: &TestVolume, points: u64) -> State {
    state_of_cuts(volume, &(0..points as i64).map(|second| (second, second)).collect::<Vec<_>>())
}

/// The same of points that were cut and published at those seconds, by two clocks.
pub(crate) fn state_of_cuts(volume: &TestVolume, cuts: &[(i64, i64)]) -> State {
    let mut state = State::new(group_id(&name("host"), &name("default")));
    let mut append = |body, published: i64, second: u64| {
        let stamp = Stamp { writer: [1; 16], mono_ms: second * 1000, wall_ms: published * 1000 };
        let attempt = Attempt::new(&state, body, [0; 16], stamp).expect("a record");
        let (record, digest) = &attempt.records[0];
        assert!(state.apply(record, *digest).is_done());
    };
    append(volume.claim_body(None), 0, 0);
    let mut regions = RegionSet::new();
    regions.insert(RegionIndex(0));
    for (second, &(cut, published)) in (0..).zip(cuts) {
        let key = volume.key(second + 1);
        let part = PartEntry { bytes: 1000, footer_digest: [3; 32] };
        let entry = LayerEntry {
            digest: farside_layer::layer_digest(&key, &[part.footer_digest]),
            key,
            parts: vec![part],
            regions: regions.clone(),
            unreadable_regions: RegionSet::new(),
            volume_bytes: volume.meta.geometry.volume_bytes(),
        };
        let epoch = EpochInfo { boot: BootId([1; 16]), mono_before_ns: 1, mono_after_ns: 2, wall_ms: cut * 1000 };
        append(Body::Layers(Layers { kind: LayerKind::Point, epoch, label: None, members: vec![entry] }), published, second);
    }
    state
}
