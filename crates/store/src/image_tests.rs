//! Liveness and pruning against a model that knows, granule by granule, who holds what.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use farside_ledger::{
    Claim, EpochInfo, LayerKind, Layers, PartEntry, Pin, PrunedParts, Stamp, Unpin, VolumeMeta, group_id, volume_id,
};
use farside_region::{BootId, Generation, MergeId, Name, Seq, Term};
use proptest::prelude::*;

use super::*;
use crate::attempt::Attempt;

const GRANULES: u64 = 24;
const VOLUMES: usize = 2;

/// The parts of a layer, each of runs (start, count, content); `None`: the volume is not a member.
type LayerParts = Option<Vec<Vec<(u64, u64, u8)>>>;

#[derive(Clone, Debug)]
enum Op {
    /// One per volume.
    Layers {
        point: bool,
        members: Vec<LayerParts>,
    },
    Claim(usize),
    Pin(usize),
    Unpin(usize),
    Prune {
        keep: u32,
    },
    /// Some parts of an interval become so many.
    Merge {
        volume: usize,
        interval: usize,
        first: usize,
        count: usize,
        into: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let run = (0..GRANULES, 1u64..10, 0u8..4);
    let part = prop::collection::vec(run, 0..4);
    let layer = prop::option::of(prop::collection::vec(part, 0..3));
    prop_oneof![
        8 => (any::<bool>(), prop::collection::vec(layer, VOLUMES)).prop_map(|(point, members)| Op::Layers { point, members }),
        1 => (0..VOLUMES).prop_map(Op::Claim),
        1 => (0usize..8).prop_map(Op::Pin),
        1 => (0usize..8).prop_map(Op::Unpin),
        3 => (1u32..4).prop_map(|keep| Op::Prune { keep }),
        4 => (0..VOLUMES, 0usize..4, 0usize..4, 1usize..6, 0usize..9).prop_map(|(volume, interval, first, count, into)| {
            // Mostly one, as the writer makes them.
            Op::Merge { volume, interval, first, count, into: if into == 8 { 2 } else { 1 } }
        }),
    ]
}

type Cell = Option<(PartName, Content)>;

/// What the group must be, by brute force.
#[derive(Default)]
struct Model {
    heads: BTreeMap<VolumeId, Vec<Cell>>,
    points: BTreeMap<Slot, BTreeMap<VolumeId, Vec<Cell>>>,
}

impl Model {
    fn used(&self, image: &GroupImage) -> BTreeSet<PartName> {
        let retained = self.points.iter().filter(|(slot, _)| image.state().points().contains_key(slot));
        let all = retained.flat_map(|(_, members)| members.values()).chain(self.heads.values());
        all.flatten().flatten().map(|(part, _)| *part).collect()
    }
}

struct World {
    image: GroupImage,
    model: Model,
    volumes: Vec<VolumeMeta>,
    runs: HashMap<PartName, Vec<(GranuleRun, Content)>>,
    records: Vec<(Record, RecordDigest)>,
    pins: Vec<Slot>,
    merges: u64,
    /// When a part died that took the place of others is known exactly: each was alone.
    exact: bool,
}

fn name(text: &str) -> Name {
    text.parse().expect("name")
}

impl World {
    fn new() -> Self {
        let meta = |v: usize| VolumeMeta {
            id: volume_id(&name("h"), &name("g"), &name(&format!("v{v}"))),
            name: name(&format!("v{v}")),
            geometry: Geometry::with_shape(GRANULES * 512, 9, 2).expect("geometry"),
            digest_key: [1; 32].into(),
            generation: Generation(1),
        };
        let mut world = Self {
            image: GroupImage::new(group_id(&name("h"), &name("g"))),
            model: Model::default(),
            volumes: (0..VOLUMES).map(meta).collect(),
            runs: HashMap::new(),
            records: Vec::new(),
            pins: Vec::new(),
            merges: 0,
            exact: true,
        };
        (0..VOLUMES).for_each(|v| world.run(&Op::Claim(v)));
        world
    }

    fn append(&mut self, body: Body) -> (Slot, Applied) {
        let stamp = Stamp { writer: [1; 16], mono_ms: self.records.len() as u64, wall_ms: 0 };
        let nonce = [self.records.len() as u8; 16];
        let attempt = Attempt::new(self.image.state(), body, nonce, stamp).expect("small");
        let (record, digest) = attempt.records.into_iter().next().expect("one");
        let runs = &self.runs;
        let applied = self.image.apply::<()>(&record, digest, |part| Ok(PartRuns::Known(runs[&part.name].clone())));
        let applied = applied.expect("no error");
        let slot = record.slot;
        self.records.push((record, digest));
        (slot, applied)
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Claim(v) => {
                let looked = self.image.state().head();
                let claim = Claim { volume: self.volumes[*v].clone(), looked, source: name("h") };
                let (_, applied) = self.append(Body::Claim(claim));
                assert_eq!(applied.verdict, Verdict::Accepted);
            }
            Op::Pin(i) => {
                let points: Vec<Slot> = self.image.state().points().keys().copied().collect();
                if let Some(&point) = points.get(*i) {
                    let (slot, _) = self.append(Body::Pin(Pin { point, reason: String::new() }));
                    self.pins.push(slot);
                }
            }
            Op::Unpin(i) => {
                if let Some(&pin) = self.pins.get(*i) {
                    self.append(Body::Unpin(Unpin { pin }));
                }
            }
            Op::Prune { keep } => self.prune(&Policy::without_grid(*keep, 0)),
            Op::Layers { point, members } => self.layers(*point, members),
            &Op::Merge { volume, interval, first, count, into } => self.merge(volume, interval, first..first + count, into),
        }
    }

    /// Merges parts of an interval, if there are such: what is visible of them at its end, by the model.
    fn merge(&mut self, volume: usize, interval: usize, range: std::ops::Range<usize>, into: usize) {
        let meta = self.volumes[volume].clone();
        let state = self.image.state();
        let points = state.points_of(meta.id);
        let Some(&point) = points.get(interval) else { return };
        let after = state.interval(meta.id, point).expect("it is retained and holds the volume");
        assert_eq!(after, interval.checked_sub(1).map(|before| points[before]));
        let newest = state.volume(meta.id).and_then(|v| v.last_layer()).map(|layer| layer.key);
        let parts =
            self.image.parts().iter().filter(|(_, part)| part.name.layer.volume == meta.id && Some(part.name.layer) != newest);
        let born = parts.filter(|(_, part)| after.is_none_or(|after| part.born > after) && part.born <= point);
        let old: Vec<Part> = born.map(|(_, part)| part.clone()).skip(range.start).take(range.len()).collect();
        if self.image.state().newest_pinned(meta.id).is_some_and(|pinned| pinned >= point) {
            return; // void: whoever reads it may go by these parts
        }
        let (Some(last), names) = (old.last(), old.iter().map(|part| part.name).collect::<BTreeSet<PartName>>()) else { return };
        let into = into.min(old.len());
        assert_eq!(names.len(), old.len());
        self.exact &= into < 2;

        let key = LayerKey::of_merge(meta.id, MergeId(self.merges));
        let cells = self.model.points[&point][&meta.id].clone();
        let is_old = |cell: &Cell| cell.is_some_and(|(part, _)| names.contains(&part));
        let mut new: Vec<Vec<(GranuleRun, Content)>> = vec![Vec::new(); into];
        let mut regions = RegionSet::new();
        for (granule, cell) in (0..).zip(&cells).filter(|(_, cell)| is_old(cell)) {
            let number = if granule < GRANULES / 2 { 0 } else { into - 1 };
            let run = GranuleRun { start: GranuleIndex(granule), count: 1 };
            new[number].push((run, cell.expect("it is somebody's").1));
            regions.insert_range(meta.geometry.regions_of(run));
        }
        let held: BTreeSet<u64> = new.iter().flatten().map(|(run, _)| run.start.0).collect();
        let numbers = |range: std::ops::Range<u32>| range.map(|number| PartName { layer: key, number });
        numbers(0..into as u32).zip(new).for_each(|(name, runs)| drop(self.runs.insert(name, runs)));
        let mut given_up: BTreeMap<LayerKey, Vec<u32>> = BTreeMap::new();
        names.iter().for_each(|part| given_up.entry(part.layer).or_default().push(part.number));
        let body = Body::Map(Map {
            volume: meta.id,
            id: MergeId(self.merges),
            point,
            parts: given_up.into_iter().map(|(layer, parts)| PrunedParts { layer, parts }).collect(),
            new: (0..into as u32).map(|n| PartEntry { bytes: 100, footer_digest: digest(key, n) }).collect(),
            regions,
        });
        self.merges += 1;
        let born = last.born;
        let (slot, applied) = self.append(body);
        assert_eq!((applied.verdict, applied.given_up.len()), (Verdict::Accepted, 0));
        assert!(names.iter().all(|part| self.image.is_replaced(part) && !self.image.is_debris(part)));
        assert!(self.image.covered(slot).is_empty(), "it stands for the slots below this one");
        let gone = self.image.covered(slot.next());
        assert_eq!(gone.iter().map(|part| part.name).collect::<BTreeSet<_>>(), names);
        assert!(names.iter().all(|part| !self.image.is_replaced(part) && self.image.is_debris(part)));
        assert!(numbers(0..into as u32).all(|name| {
            let part = self.image.parts().id(&name).and_then(|no| self.image.parts().get(no));
            part.is_some_and(|part| part.born == born)
        }));
        // The same images, from other parts.
        let retained: BTreeSet<Slot> = self.image.state().points().keys().copied().collect();
        let points = self.model.points.iter_mut().filter(|(slot, _)| retained.contains(slot));
        let images = points.filter_map(|(_, members)| members.get_mut(&meta.id)).chain(self.model.heads.get_mut(&meta.id));
        for (granule, cell) in images.flat_map(|cells| (0..).zip(cells)).filter(|(_, cell)| is_old(cell)) {
            assert!(held.contains(&granule), "what is hidden at the end of an interval is visible at no point after it");
            let number = if granule < GRANULES / 2 { 0 } else { into as u32 - 1 };
            *cell = cell.map(|(_, content)| (PartName { layer: key, number }, content));
        }
    }

    fn layers(&mut self, point: bool, members: &[LayerParts]) {
        let mut entries = Vec::new();
        let mut cells = self.model.heads.clone();
        for (meta, parts) in self.volumes.iter().zip(members) {
            let Some(parts) = parts else { continue };
            let state = self.image.state().volume(meta.id).expect("claimed");
            let key = LayerKey { volume: meta.id, term: state.term(), seq: Seq(state.last_seq().0 + 1) };
            let head = cells.entry(meta.id).or_insert_with(|| vec![None; GRANULES as usize]);
            let mut regions = RegionSet::new();
            let mut all = Vec::new();
            for (number, part) in (0..).zip(parts) {
                let name = PartName { layer: key, number };
                let mut runs = Vec::new();
                for &(start, count, content) in part {
                    let run = GranuleRun { start: GranuleIndex(start), count: count.min(GRANULES - start) };
                    let content = [Content::Data, Content::Data, Content::Zero, Content::Unreadable][usize::from(content)];
                    regions.insert_range(meta.geometry.regions_of(run));
                    head[start as usize..run.end().0 as usize].fill(Some((name, content)));
                    runs.push((run, content));
                }
                all.extend(runs.clone());
                self.runs.insert(name, runs);
            }
            let unreadable = self.image.unreadable_after(meta.id, &regions, &all);
            let is_unreadable = |r: &farside_region::RegionIndex| {
                let run = meta.geometry.region_run(*r);
                head[run.start.0 as usize..run.end().0 as usize].iter().flatten().any(|(_, c)| *c == Content::Unreadable)
            };
            assert_eq!(unreadable, regions.iter().filter(is_unreadable).collect(), "unreadable regions after the layer");
            let parts = (0..parts.len() as u32).map(|n| PartEntry { bytes: 100, footer_digest: digest(key, n) }).collect();
            entries.push(LayerEntry {
                key,
                digest: digest(key, u32::MAX),
                parts,
                regions,
                unreadable_regions: unreadable,
                volume_bytes: meta.geometry.volume_bytes(),
            });
        }
        if entries.is_empty() {
            return;
        }
        let members: Vec<VolumeId> = entries.iter().map(|e| e.key.volume).collect();
        let kind = if point { LayerKind::Point } else { LayerKind::Fuzzy };
        let epoch = EpochInfo { boot: BootId([0; 16]), mono_before_ns: 0, mono_after_ns: 0, wall_ms: 0 };
        let (slot, applied) = self.append(Body::Layers(Layers { kind, epoch, label: None, members: entries }));
        assert_eq!(applied.verdict, Verdict::Accepted);
        self.model.heads = cells;
        if point {
            let held = members.into_iter().map(|v| (v, self.model.heads[&v].clone())).collect();
            self.model.points.insert(slot, held);
        }
    }

    fn prune(&mut self, policy: &Policy) {
        while let Some(plan) = self.image.prune_plan(policy) {
            let (_, applied) = self.append(Body::Prune(plan));
            assert_eq!(applied.verdict, Verdict::Accepted, "the ledger agrees with the plan");
            let used = self.model.used(&self.image);
            for part in &applied.given_up {
                assert!(!used.contains(&part.name), "{} was given up and is needed", part.name);
            }
        }
        let used = self.model.used(&self.image);
        for (_, part) in self.image.parts().iter() {
            let kept_by_ledger = !self.image.state().may_prune_layer(&part.name.layer, &BTreeSet::new());
            assert!(used.contains(&part.name) || kept_by_ledger || !self.exact, "{} is dead and was not given up", part.name);
        }
    }

    /// Every image, from the extents.
    fn check_images(&self, image: &GroupImage) {
        let cells = |v: &VolumeImage| {
            assert_eq!(v.unknown.extent_count(), 0);
            let mut cells: Vec<Cell> = vec![None; GRANULES as usize];
            for e in v.index.extents(GranuleRun { start: GranuleIndex(0), count: GRANULES }) {
                let part = image.parts().get(e.part).expect("used parts exist").name;
                cells[e.run.start.0 as usize..e.run.end().0 as usize].fill(Some((part, e.content)));
            }
            cells
        };
        for (volume, head) in &self.model.heads {
            let empty = VolumeImage::default();
            assert_eq!(&cells(image.head(*volume).unwrap_or(&empty)), head, "the head image");
        }
        for slot in image.state().points().keys() {
            for (volume, held) in &self.model.points[slot] {
                let runs = |_, part: &Part| Ok::<_, ()>(PartRuns::Known(self.runs[&part.name].clone()));
                assert_eq!(&cells(&image.image_at(*volume, *slot, runs).expect("no error")), held, "the image of point {slot}");
            }
        }
    }

    /// The same ledger, replayed when the parts that were given up are long gone.
    fn reopened(&self) -> GroupImage {
        let mut image = GroupImage::new(self.image.state().group());
        for (record, digest) in &self.records {
            image.replay(record, *digest);
        }
        for (no, part) in image.unindexed() {
            image.index(no, &PartRuns::Known(self.runs[&part.name].clone()));
        }
        image
    }
}

fn digest(key: LayerKey, number: u32) -> [u8; 32] {
    *blake3::hash(format!("{key} {number}").as_bytes()).as_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn pruning_gives_up_all_that_is_dead_and_nothing_else(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
        world.check_images(&world.image);
        let again = world.reopened();
        prop_assert_eq!(again.state(), world.image.state());
        world.check_images(&again);
        let none = BTreeSet::new();
        let dead = |image: &GroupImage| image.parts().dead(image.state(), &none, usize::MAX);
        if world.exact {
            prop_assert_eq!(dead(&again), dead(&world.image), "what is dead does not depend on how one got there");
        }
        world.image = again;
        world.exact = true;
        world.run(&Op::Layers { point: true, members: vec![Some(vec![vec![(3, 9, 0)]]), None] });
        world.prune(&Policy::without_grid(1, 0));
        world.check_images(&world.image);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// What a checkpoint calls parts has 32 bits: some years of a busy group. After that they are numbered anew, and each checkpoint is a function
    /// of the records as before: whoever goes on from one makes the next ones as whoever was there all the time.
    #[test]
    fn a_group_may_publish_more_parts_than_a_checkpoint_has_ordinals(
        before in prop::collection::vec(op(), 0..12),
        after in prop::collection::vec(op(), 1..40),
        (ordinals_left, all_are_late) in (0u32..8, any::<bool>()),
    ) {
        let mut world = World::new();
        before.iter().for_each(|op| world.run(op));
        let mut late = world.image.parts().to_checkpoint();
        let moved = u32::MAX - ordinals_left - late.next;
        late.next += moved;
        if all_are_late {
            late.parts = late.parts.iter().map(|(ordinal, part)| (ordinal + moved, *part)).collect();
        }
        let (state, begun) = (world.image.state().clone(), world.records.len());
        let late = || GroupImage::from_checkpoint(state.clone(), late.clone());
        let indexed = |world: &World, mut image: GroupImage| {
            for (no, part) in image.unindexed() {
                image.index(no, &PartRuns::Known(world.runs[&part.name].clone()));
            }
            image
        };
        (world.image, world.exact) = (indexed(&world, late()), true);

        after.iter().for_each(|op| world.run(op));
        world.check_images(&world.image);
        let mut images = vec![late()];
        for (record, digest) in &world.records[begun..] {
            images.iter_mut().for_each(|image| drop(image.replay(record, *digest)));
            let [first, others @ ..] = &images[..] else { unreachable!() };
            if CheckpointPlace::completed_by(first.state(), span()).is_some() {
                let parts = first.parts().to_checkpoint();
                prop_assert!(others.iter().all(|other| other.parts().to_checkpoint() == parts), "a checkpoint is a function of the records");
                images.push(GroupImage::from_checkpoint(first.state().clone(), parts));
            }
        }
        for image in images {
            world.check_images(&indexed(&world, image));
        }
    }
}

#[test]
fn a_name_is_debris_when_no_record_can_name_it_any_more() {
    let mut world = World::new();
    world.run(&Op::Layers { point: true, members: vec![Some(vec![vec![(0, 24, 0)], vec![(3, 1, 0)]]), None] });
    let volume = world.volumes[0].id;
    let debris = |world: &World, term, seq, number| {
        world.image.is_debris(&PartName { layer: LayerKey { volume, term: Term(term), seq: Seq(seq) }, number })
    };
    assert!(!debris(&world, 0, 1, 0) && !debris(&world, 0, 1, 1), "published");
    assert!(debris(&world, 0, 1, 2), "a part that the record does not have");
    assert!(!debris(&world, 0, 2, 0), "may come next");
    assert!(!debris(&world, 0, 9, 0), "may come later: staged ahead");
    assert!(!debris(&world, 7, 1, 0), "of a claim that this ledger does not hold: it holds less than it did");
    world.run(&Op::Claim(0));
    assert!(debris(&world, 0, 2, 0), "of a term that is over");
    assert!(!debris(&world, 0, 1, 0), "published under a term that is over");
    world.run(&Op::Layers { point: true, members: vec![Some(vec![vec![(0, 24, 0)]]), None] });
    world.run(&Op::Prune { keep: 1 });
    assert!(debris(&world, 0, 1, 0), "given up");
    let stranger = PartName { layer: LayerKey { volume: VolumeId([9; 16]), term: Term(0), seq: Seq(1) }, number: 0 };
    assert!(!world.image.is_debris(&stranger), "its claim is not in this ledger");
}

#[test]
fn without_the_head_image_as_a_root_a_prune_would_delete_what_the_next_point_needs() {
    use farside_region::mutation;
    let mut world = World::new();
    let layers = |point, start, count| Op::Layers { point, members: vec![Some(vec![vec![(start, count, 0)]]), None] };
    world.run(&layers(true, 0, 24));
    world.run(&layers(false, 0, 2));
    world.run(&layers(false, 4, 2));
    mutation::set(&[crate::liveness::MUTATION_RETAINED_POINTS_ONLY]);
    let plan = world.image.prune_plan(&Policy::without_grid(1, 0));
    mutation::set(&[]);
    let wrong: Vec<LayerKey> = plan.expect("the mistake finds something").parts.iter().map(|p| p.layer).collect();
    assert!(world.model.used(&world.image).iter().any(|p| wrong.contains(&p.layer)));
    assert_eq!(world.image.prune_plan(&Policy::without_grid(1, 0)), None);
}

/// Two points and a layer above them: the parts of the first interval and of the second, by what they are.
fn two_intervals() -> (World, [Part; 4], [Slot; 2]) {
    let mut world = World::new();
    let layer = |point, start, count| Op::Layers { point, members: vec![Some(vec![vec![(start, count, 0)]]), None] };
    world.run(&layer(false, 0, 24));
    world.run(&layer(true, 0, 4));
    world.run(&layer(false, 2, 4));
    world.run(&layer(true, 8, 4));
    world.run(&layer(false, 20, 1));
    let parts: Vec<Part> = world.image.parts().iter().map(|(_, part)| part.clone()).collect();
    let points = [parts[1].born, parts[3].born];
    let parts = [0, 1, 2, 3].map(|i: usize| parts[i].clone());
    (world, parts, points)
}

/// A map record over these parts, into one that holds what is visible of them at the point (or, if that is gone, at the head), and
/// whether it was accepted.
fn merged(world: &mut World, id: u64, point: Slot, parts: &[Part]) -> bool {
    let volume = world.volumes[0].id;
    let names: BTreeSet<PartName> = parts.iter().map(|part| part.name).collect();
    let cells = world.model.points.get(&point).map_or(&world.model.heads[&volume], |members| &members[&volume]).clone();
    let visible = (0..).zip(&cells).filter_map(|(granule, cell)| {
        let (part, content) = (*cell)?;
        let run = GranuleRun { start: GranuleIndex(granule), count: 1 };
        names.contains(&part).then_some((run, content))
    });
    let key = LayerKey::of_merge(volume, MergeId(id));
    let visible = visible.collect();
    world.runs.insert(PartName { layer: key, number: 0 }, visible);
    let map = Map {
        volume,
        id: MergeId(id),
        point,
        parts: parts.iter().map(|part| PrunedParts { layer: part.name.layer, parts: vec![part.name.number] }).collect(),
        new: vec![PartEntry { bytes: 100, footer_digest: digest(key, 0) }],
        regions: RegionSet::new(),
    };
    world.append(Body::Map(map)).1.verdict == Verdict::Accepted
}

/// Which granules of a retained point are there at all, with what content.
fn shown(world: &World, point: Slot) -> Vec<Option<Content>> {
    let runs = |_, part: &Part| Ok::<_, ()>(PartRuns::Known(world.runs[&part.name].clone()));
    let image = world.image.image_at(world.volumes[0].id, point, runs).expect("no error");
    let mut shown = vec![None; GRANULES as usize];
    for extent in image.index.extents(GranuleRun { start: GranuleIndex(0), count: GRANULES }) {
        shown[extent.run.start.0 as usize..extent.run.end().0 as usize].fill(Some(extent.content));
    }
    shown
}

#[test]
fn a_merge_across_a_point_would_take_from_it_what_it_shows() {
    use farside_region::mutation;
    let (mut world, parts, points) = two_intervals();
    let before = shown(&world, points[0]);
    assert!(!merged(&mut world, 1, points[1], &parts), "they lie on both sides of a point");
    mutation::set(&["a merge across a retained point"]);
    let accepted = merged(&mut world, 2, points[1], &parts);
    mutation::set(&[]);
    assert!(accepted && shown(&world, points[0]) != before, "the mistake costs the first point what it is");
}

#[test]
fn a_merge_without_its_point_would_take_what_another_point_shows() {
    use farside_region::mutation;
    let (mut world, parts, points) = two_intervals();
    // What is hidden by the head's newest layers is not hidden at the points before.
    world.run(&Op::Layers { point: false, members: vec![Some(vec![vec![(0, 24, 0)]]), None] });
    world.run(&Op::Layers { point: false, members: vec![Some(vec![vec![(0, 1, 0)]]), None] });
    let before = shown(&world, points[0]);
    let gone = Slot(world.image.state().head().expect("a head").0 - 1);
    assert!(!merged(&mut world, 1, gone, &parts[..2]), "there is no such point");
    mutation::set(&["a merge whose point is gone"]);
    let accepted = merged(&mut world, 2, gone, &parts[..2]);
    mutation::set(&[]);
    assert!(accepted && shown(&world, points[0]) != before, "the mistake holds what is visible where no point is");
}

#[test]
fn a_merge_of_what_is_gone_would_bring_it_back() {
    use farside_region::mutation;
    let (mut world, parts, points) = two_intervals();
    assert!(merged(&mut world, 1, points[1], &parts[2..]));
    let gave_up = world.image.parts().iter().count();
    let again = |world: &mut World, id| merged(world, id, points[1], &parts[2..]);
    assert!(!again(&mut world, 2), "somebody was first");
    mutation::set(&["a merge of parts that are gone"]);
    let accepted = again(&mut world, 3);
    mutation::set(&[]);
    assert!(accepted, "two merges of the same parts");
    assert!(world.image.state().volume(world.volumes[0].id).expect("claimed").merges().len() == 2);
    assert_eq!(world.image.parts().iter().count(), gave_up, "and the second one's part has no place");
}

#[test]
fn a_record_after_its_decree_would_name_what_is_deleted() {
    use farside_region::mutation;
    let (mut world, parts, points) = two_intervals();
    let volume = world.volumes[0].id;
    let part = PartName { layer: LayerKey::of_merge(volume, MergeId(1)), number: 0 };
    assert!(!world.image.is_debris(&part), "a record of it may be on its way");
    mutation::set(&["what a merge wrote goes without a decree"]);
    let debris = world.image.is_debris(&part);
    mutation::set(&[]);
    assert!(debris && world.image.state().may_be_merged(&part.layer), "the mistake deletes what a record may name");
    let decree = farside_ledger::Decree { merges: vec![(volume, MergeId(1))] };
    assert_eq!(world.append(Body::Decree(decree)).1.verdict, Verdict::Accepted);
    assert!(world.image.is_debris(&part));
    assert!(!merged(&mut world, 1, points[1], &parts[2..]), "it comes too late");
    mutation::set(&["a map record accepted after its decree"]);
    let accepted = merged(&mut world, 1, points[1], &parts[2..]);
    mutation::set(&[]);
    assert!(accepted && world.image.parts().id(&part).is_some(), "the mistake names what was deleted since");
}

#[test]
fn a_new_part_of_which_the_head_shows_nothing_lives_as_long_as_a_point_shows_it() {
    let mut world = World::new();
    let layer = |point, runs: &[(u64, u64, u8)]| Op::Layers { point, members: vec![Some(vec![runs.to_vec()]), None] };
    world.run(&layer(false, &[(17, 4, 0), (3, 1, 0)]));
    world.run(&layer(true, &[]));
    world.run(&layer(false, &[(3, 1, 0)]));
    world.run(&layer(false, &[(0, 1, 0)]));
    // What is hidden by now becomes one part, what is not another.
    world.merge(0, 0, 0..2, 2);
    world.check_images(&world.image);
    world.prune(&Policy::without_grid(1, 0));
    world.check_images(&world.image);
    world.check_images(&world.reopened());
}

#[test]
fn a_merged_part_stays_with_its_point() {
    use farside_region::mutation;
    let (mut world, parts, points) = two_intervals();
    assert!(merged(&mut world, 1, points[1], &parts[2..]));
    let key = LayerKey::of_merge(world.volumes[0].id, MergeId(1));
    let without = BTreeSet::new();
    assert!(!world.image.state().may_prune_layer(&key, &without));
    assert!(world.image.state().may_prune_layer(&key, &BTreeSet::from([points[1]])));
    mutation::set(&["a prune takes a merged part of a retained point"]);
    let taken = world.image.state().may_prune_layer(&key, &without);
    mutation::set(&[]);
    assert!(taken);
}
