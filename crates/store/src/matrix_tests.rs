//! Every kind of object of a store, damaged in every way: it is noticed, it is named, and nothing else is ever read in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use farside_ledger::{Body, LayerKind, Pin, Unpin};
use farside_region::{RegionIndex, Slot};

use crate::backend::memory::Memory;
use crate::checkpoint::span;
use crate::testkit::{Fill, TestVolume, name};
use crate::{
    Backend, GroupNames, GroupObject, GroupStore, ObjectName, PointReader, Severity, Store, StoreReader, block_on, check,
    verify_point,
};

fn names() -> GroupNames {
    GroupNames::new(name("host"), name("default"))
}

/// A bucket with something of everything, and what its points hold.
struct World {
    bucket: Arc<Memory>,
    dir: tempfile::TempDir,
    volume: TestVolume,
    points: BTreeMap<Slot, Vec<u8>>,
    /// Its lease is one of the objects.
    _reading: Option<PointReader>,
}

impl World {
    fn new() -> Self {
        let bucket = Arc::new(Memory::default());
        Store::init_bucket(&(Arc::clone(&bucket) as Arc<dyn Backend>)).expect("init");
        let dir = tempfile::tempdir().expect("temp dir");
        let (volume, points) = (TestVolume::new("v", 61), BTreeMap::new());
        let mut world = Self { bucket, dir, volume, points, _reading: None };
        drop(world.open("other"));
        let mut group = world.open("default");
        world.volume.claim(&mut group);
        world.point(&mut group, &[vec![(0, 30, Fill::Byte(1))], vec![(30, 31, Fill::Byte(2))]]);
        world.point(&mut group, &[vec![(3, 9, Fill::Byte(3)), (40, 8, Fill::Zero)]]);
        let first = *world.points.keys().next().expect("a point");
        // A record that is torn and stood in for.
        let torn = group.state().next_slot();
        let pin = Body::Pin(Pin { point: first, reason: "lost".into() });
        group.append(pin).expect("append");
        world.put(&names().record(torn), b"torn".to_vec());
        drop(group);
        let mut group = world.open("default");
        group.repair_torn().expect("repair");
        assert!(group.torn().is_none() && !world.bucket.names(names().record_void(torn).as_str()).is_empty());
        while group.state().next_slot().0 < 2 * span() + 2 {
            let pin = group.append(Body::Pin(Pin { point: first, reason: "kept".into() })).expect("append").position.slot;
            group.append(Body::Unpin(Unpin { pin })).expect("append");
        }
        world.volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(20, 2, Fill::Byte(4))]]);
        world.volume.claim(&mut group);
        world.point(&mut group, &[vec![(21, 30, Fill::Byte(5))]]);
        while group.state().next_slot().0 < 3 * span() + 1 {
            world.volume.publish(&mut group, LayerKind::Fuzzy, &[vec![(50, 1, Fill::Byte(6))]]);
        }
        world.point(&mut group, &[vec![(48, 8, Fill::Byte(7))]]);
        // Without what nobody would miss.
        while group.trim_ledger().expect("trimmed") > 0 {}
        drop(group);
        let reading = world.reader().group(&names()).expect("group").point_reader(first, world.volume.id());
        world._reading = Some(reading.expect("reader"));
        world
    }

    fn open(&self, group: &str) -> GroupStore {
        let store = Store::open_bucket(self.backend(), &self.dir.path().join("staging")).expect("open");
        store.group(&name("host"), &name(group)).expect("group")
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.bucket) as Arc<dyn Backend>
    }

    fn reader(&self) -> StoreReader {
        StoreReader::open_bucket(self.backend()).expect("open")
    }

    fn point(&mut self, group: &mut GroupStore, parts: &[crate::testkit::Runs]) {
        let slot = self.volume.publish(group, LayerKind::Point, parts).position.slot;
        self.points.insert(slot, TestVolume::bytes(&self.volume.image));
    }

    fn get(&self, object: &ObjectName) -> Bytes {
        block_on(self.bucket.get(object, u64::MAX)).expect("get").expect("it is there")
    }

    fn put(&self, object: &ObjectName, content: Vec<u8>) {
        block_on(self.bucket.put_right(object, content.into())).expect("put");
    }

    /// What check, opening, listing and reading say together. Whatever is read without a word is what it was.
    fn look(&self) -> Said {
        let mut said = Said::default();
        let store = match StoreReader::open_bucket(self.backend()) {
            Ok(store) => store,
            Err(error) => return Said { words: vec![error.to_string()], ..said },
        };
        said.id = Some(store.id());
        match check(&store, &|_| true) {
            Ok(report) => {
                for finding in report.findings.into_iter().filter(|f| f.severity >= Severity::Warning) {
                    let object = finding.object.unwrap_or_default();
                    // Where no reader looks a verification sees nothing.
                    if !finding.text.contains("its content is whole") {
                        said.checked.extend(finding.points.iter().map(|point| (*point, object.clone())));
                    }
                    said.words.push(format!("{object}: {}", finding.text));
                }
            }
            Err(error) => said.words.push(error.to_string()),
        }
        let group = match store.group(&names()) {
            Ok(group) => group,
            Err(error) => {
                said.words.push(error.to_string());
                return said;
            }
        };
        said.words.extend(group.torn().map(|torn| torn.error(&names()).to_string()));
        for point in group.points() {
            let whole = &self.points[&point.slot];
            said.listed.insert(point.slot);
            let reader = group.point_reader_as_it_is(point.slot, self.volume.id()).expect("a point that is listed is opened");
            let verified = verify_point(&reader, 1, usize::MAX, &|_| true).expect("read");
            let damaged: BTreeSet<RegionIndex> = verified.damage.iter().map(|damage| damage.region).collect();
            let mut content = reader.content();
            for region in (0..reader.geometry().region_count()).map(RegionIndex) {
                let at = reader.geometry().bytes_of(reader.geometry().region_run(region));
                let bytes = &whole[at.offset.0 as usize..(at.offset.0 + at.len) as usize];
                match reader.read_region(region, &mut content) {
                    Ok(()) => assert!(&content.bytes[..] == bytes && !damaged.contains(&region), "L4: rot is read as content"),
                    Err(error) => {
                        assert!(damaged.contains(&region), "{error}");
                        let words = error.to_string();
                        let named = [&format!("point {}", point.slot), &format!("region {region}"), "volume v"];
                        assert!(named.iter().all(|name| words.contains(*name)), "{words}");
                        said.words.push(words);
                    }
                }
            }
            said.verified.extend(verified.damage.into_iter().map(|damage| (point.slot, damage.segment)));
        }
        said
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    id: Option<[u8; 16]>,
    words: Vec<String>,
    listed: BTreeSet<Slot>,
    /// Which point needs which damaged object, as the check says, and as a verification does.
    checked: BTreeSet<(Slot, String)>,
    verified: BTreeSet<(Slot, String)>,
}

impl Said {
    fn names(&self, object: &ObjectName) -> bool {
        let goes_on = |rest: &str| {
            let rest = rest.strip_prefix('.').unwrap_or(rest);
            rest.starts_with(|next: char| next.is_ascii_digit()) || rest.starts_with("state") || rest.starts_with("digests")
        };
        self.words
            .iter()
            .any(|words| words.match_indices(object.as_str()).any(|(at, found)| !goes_on(&words[at + found.len()..])))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Store,
    Group,
    Record,
    Void,
    Root,
    State,
    Digests,
    Segment,
    Pack,
    Lease,
}

fn kind_of(object: &ObjectName) -> Kind {
    let of_group = |group: &str| GroupNames::new(name("host"), name(group)).parse(object);
    match of_group("default").or_else(|| of_group("other")) {
        None => Kind::Store,
        Some(GroupObject::Description) => Kind::Group,
        Some(GroupObject::Record(_)) => Kind::Record,
        Some(GroupObject::RecordVoid(_)) => Kind::Void,
        Some(GroupObject::Checkpoint(_)) => Kind::Root,
        Some(GroupObject::CheckpointState(_)) => Kind::State,
        Some(GroupObject::CheckpointDigests(_)) => Kind::Digests,
        Some(GroupObject::Segment { .. }) => Kind::Segment,
        Some(GroupObject::Pack(_)) => Kind::Pack,
        Some(GroupObject::Lease(_) | GroupObject::LeaseClock(_)) => Kind::Lease,
        Some(GroupObject::Key(_)) => unreachable!("nothing of this store is encrypted"),
    }
}

#[derive(Clone, Debug)]
enum Harm {
    Flip(usize),
    Cut(usize),
    Longer,
    Gone,
    Swapped(ObjectName),
}

/// So many bits of every object are flipped, one at a time.
const FLIPS: usize = 12;

fn harms(bytes: usize, other: Option<&ObjectName>) -> Vec<Harm> {
    let mut harms: Vec<Harm> = (0..FLIPS.min(bytes)).map(|i| Harm::Flip(i * bytes / FLIPS.min(bytes))).collect();
    harms.extend((bytes > 0).then(|| Harm::Flip(bytes - 1)));
    let mut cuts = vec![0, 1, bytes / 2, bytes.saturating_sub(1)];
    cuts.retain(|left| *left < bytes);
    harms.extend(cuts.into_iter().map(Harm::Cut));
    harms.extend([Harm::Longer, Harm::Gone]);
    harms.extend(other.cloned().map(Harm::Swapped));
    harms
}

/// What nothing in a store can tell, and why that is no loss of a point that anybody would take for whole.
fn goes_unseen(world: &World, object: &ObjectName, harm: &Harm, said: &Said, sound: &Said) -> bool {
    let newest = *world.points.keys().next_back().expect("points");
    match (kind_of(object), harm) {
        // Who holds what for how long, not what it is.
        (Kind::Lease, _) => true,
        // Of a pack only the parts in it are known.
        (Kind::Pack, Harm::Longer) => true,
        // Sources know which store is theirs.
        (Kind::Store, Harm::Flip(_)) => said.id != sound.id,
        // Of a group into which nothing was ever put.
        (Kind::Group, Harm::Gone) => *object != names().description(),
        // As if it had not been written yet; the source, which saw it published, knows.
        (Kind::Record, Harm::Gone) => *object == names().record(newest),
        // As if an earlier Farside had written it: then its records stay, which tell as much.
        (Kind::Digests, Harm::Gone) => *object == names().checkpoint_digests(0),
        _ => false,
    }
}

#[test]
fn l4_whatever_is_damaged_however_is_named_and_never_read_as_content() {
    let world = World::new();
    let sound = world.look();
    assert_eq!((&sound.words, sound.listed.len()), (&Vec::new(), 4));
    let objects: Vec<ObjectName> =
        world.bucket.names("").into_iter().map(|name| ObjectName::new(name).expect("a name")).collect();
    let kinds: BTreeSet<Kind> = objects.iter().map(kind_of).collect();
    assert_eq!(kinds.len(), 10, "there is something of everything: {kinds:?}");
    let (mut seen, mut unseen) = (0, Vec::new());
    for object in &objects {
        let (kind, good) = (kind_of(object), world.get(object));
        let other = objects.iter().find(|other| kind_of(other) == kind && *other != object && world.get(other) != good);
        for harm in harms(good.len(), other) {
            let mut bad = good.to_vec();
            match &harm {
                Harm::Flip(at) => bad[*at] ^= 1,
                Harm::Cut(left) => bad.truncate(*left),
                Harm::Longer => bad.push(b' '),
                Harm::Gone => block_on(world.bucket.delete(object)).expect("delete"),
                Harm::Swapped(other) => {
                    bad = world.get(other).to_vec();
                    world.put(other, good.to_vec());
                }
            }
            if !matches!(harm, Harm::Gone) {
                world.put(object, bad.clone());
            }
            let said = world.look();
            // A space behind a text says nothing.
            let cut_of_nothing = matches!(harm, Harm::Cut(_)) && bad == good.trim_ascii_end();
            let same = matches!((kind, &harm), (Kind::Store | Kind::Group, Harm::Longer)) || cut_of_nothing;
            let named = said.names(object)
                || match (&harm, kind) {
                    // What came first is named; nobody believes what follows it.
                    (Harm::Swapped(other), Kind::Record | Kind::Root | Kind::State) => said.names(other),
                    // The torn record is there again.
                    (Harm::Gone, Kind::Void) => said.words.iter().any(|w| w.contains(object.as_str().trim_end_matches(".void"))),
                    // Without its description nobody knows that it is a store.
                    (Harm::Gone, Kind::Store) => said.words.iter().any(|words| words.contains("memory://bucket")),
                    _ => false,
                };
            if named {
                seen += 1;
            } else {
                let excused = same || goes_unseen(&world, object, &harm, &said, &sound);
                assert!(excused, "{object}: {harm:?} of {} bytes is not named: {said:?}", good.len());
                unseen.push((kind, harm.clone()));
            }
            if matches!(kind, Kind::Segment | Kind::Pack) {
                assert_eq!(said.checked, said.verified, "{object}: {harm:?}");
                assert_eq!(said.listed, sound.listed);
            }
            world.put(object, good.to_vec());
            if let Harm::Swapped(other) = &harm {
                world.put(other, bad);
            }
        }
        assert_eq!(world.look().words, [""; 0], "{object} was put back");
    }
    assert!(seen > 500 && unseen.len() < 60, "{seen} {unseen:?}");
}
