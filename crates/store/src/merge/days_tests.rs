//! Days in a store, with everything that comes and goes in it: points, retention, merges, checkpoints, pins, readers that stay for days, and
//! receivers that die, some in the middle of a merge. An oracle that is no part of the store says what every retained point holds, and at
//! the end nothing may be there that nobody needs.
//!
//! As many days as one has time for: `FARSIDE_DAYS=30 cargo test --release -p farside-store days_in_a -- --nocapture`

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farside_ledger::{Body, Grid, LayerKind, Pin, Unpin, Verdict};
use farside_region::RegionIndex;

use super::tests::names;
use super::*;
use crate::backend::Backend;
use crate::backend::memory::Memory;
use crate::checkpoint::SPAN;
use crate::group::{Dated, set_waiting_bytes_least};
use crate::testkit::{Fill, PASSED_MS, Runs, TempStore, TestVolume, layers};
use crate::{GroupStore, PointReader, Severity, Store, StoreReader, check};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Between two publications.
const TICK_MS: u64 = 10 * MINUTE_MS;
const GRANULES: u64 = 64;
/// Regions have eight.
const REGIONS: u64 = GRANULES / 8;

type Image = Vec<Option<Fill>>;

/// Leases hold for six hours of the service's clock, and are renewed by the clock of whoever reads, which stands still here.
const HELD_MS: u64 = 6 * HOUR_MS;

/// Somebody who reads a point for hours or days.
struct Guest {
    since_ms: u64,
    until_ms: u64,
    reader: PointReader,
    image: Image,
}

/// Where the store is.
enum Place {
    Dir(TempStore),
    Bucket(Arc<Memory>, tempfile::TempDir),
}

impl Place {
    fn bucket() -> Self {
        let bucket = Arc::new(Memory::default());
        Store::init_bucket(&(Arc::clone(&bucket) as Arc<dyn Backend>)).expect("init");
        Self::Bucket(bucket, tempfile::tempdir().expect("temp dir"))
    }

    fn open(&self) -> Store {
        match self {
            Self::Dir(store) => store.open(),
            Self::Bucket(bucket, dir) => Store::open_bucket(Arc::clone(bucket) as _, &dir.path().join("staging")).expect("open"),
        }
    }

    fn reader(&self) -> StoreReader {
        match self {
            Self::Dir(store) => StoreReader::open(&store.path()).expect("open"),
            Self::Bucket(bucket, _) => StoreReader::open_bucket(Arc::clone(bucket) as _).expect("open"),
        }
    }

    /// All that holds content.
    fn objects(&self) -> BTreeSet<String> {
        let folders = ["segments", "packs"].iter().map(|folder| format!("groups/{}/{folder}", names()));
        match self {
            Self::Dir(store) => folders.flat_map(|folder| store.files(&folder)).collect(),
            Self::Bucket(bucket, _) => folders.flat_map(|folder| bucket.names(&folder)).collect(),
        }
    }
}

struct Days {
    place: Place,
    group: Option<GroupStore>,
    volumes: Vec<TestVolume>,
    policy: Policy,
    random: u64,
    now_ms: u64,
    /// What each point held of each volume when it was published.
    held: BTreeMap<Slot, Vec<Image>>,
    guests: Vec<Guest>,
    /// Guests who stayed longer than their leases, and were told that their points, or where they lay, are gone.
    late: u64,
    pins: Vec<Slot>,
    published: u64,
    merges: u64,
    deaths: u64,
    deaths_in_merges: u64,
    is_to_die: bool,
}

impl Days {
    fn new(place: Place, volumes: &[&str], seed: u64) -> Self {
        crate::testkit::forget_soon();
        SPAN.set(64);
        set_waiting_bytes_least(64 << 10);
        let grid =
            Grid::of([(10, 6 * 60), (60, 2 * 24 * 60), (6 * 60, 7 * 24 * 60), (24 * 60, 365 * 24 * 60)].map(|(every, keep)| {
                let minutes = |n: u64| std::time::Duration::from_millis(n * MINUTE_MS);
                (minutes(every), minutes(keep))
            }));
        let mut site = Self {
            place,
            group: None,
            volumes: volumes.iter().map(|name| TestVolume::new(name, GRANULES)).collect(),
            policy: Policy { grid, ..Policy::without_grid(3, 0) },
            random: seed | 1,
            now_ms: 0,
            held: BTreeMap::new(),
            guests: Vec::new(),
            late: 0,
            pins: Vec::new(),
            published: 0,
            merges: 0,
            deaths: 0,
            deaths_in_merges: 0,
            is_to_die: false,
        };
        site.open();
        let mut volumes = std::mem::take(&mut site.volumes);
        volumes.iter_mut().for_each(|volume| volume.claim(site.group()));
        site.volumes = volumes;
        let all = || vec![vec![(0, GRANULES, Fill::Byte(1))]];
        site.publish(LayerKind::Point, &(0..site.volumes.len()).map(|_| all()).collect::<Vec<_>>());
        site
    }

    fn open(&mut self) {
        self.group = Some(self.place.open().group(&names().source, &names().group).expect("group"));
    }

    fn die(&mut self) {
        self.group = None; // nothing is said to anybody
        self.deaths += 1;
        self.open();
    }

    fn group(&mut self) -> &mut GroupStore {
        self.group.as_mut().expect("it runs")
    }

    fn next(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        PASSED_MS.set(PASSED_MS.get() + ms);
        if let Place::Bucket(bucket, _) = &self.place {
            bucket.pass_ms(ms.try_into().expect("not so long"));
        }
    }

    /// One layer of each volume, in one record.
    fn publish(&mut self, kind: LayerKind, parts: &[Vec<Runs>]) {
        let said = vec![self.said(kind, parts)];
        self.append(said);
    }

    fn said(&mut self, kind: LayerKind, parts: &[Vec<Runs>]) -> (Dated, Option<Vec<Image>>) {
        let group = self.group.as_mut().expect("it runs");
        let members = self.volumes.iter_mut().zip(parts).map(|(volume, parts)| volume.land(group, parts)).collect();
        let images = (kind == LayerKind::Point).then(|| self.volumes.iter().map(|volume| volume.image.clone()).collect());
        (Dated { body: layers(kind, members), ago: std::time::Duration::ZERO }, images)
    }

    fn append(&mut self, said: Vec<(Dated, Option<Vec<Image>>)>) {
        let (said, images): (Vec<_>, Vec<_>) = said.into_iter().unzip();
        let appended = self.group().append_all(said).expect("appended");
        for (appended, images) in appended.into_iter().zip(images) {
            assert!(appended.verdict.is_done(), "{:?}", appended.verdict);
            if let Some(images) = images {
                self.held.insert(appended.position.slot, images);
                self.published += 1;
            }
        }
    }

    /// What is written between two cuts: some regions often, the others now and then, holes, and rarely nearly all.
    fn writes(&mut self) -> Vec<Runs> {
        let byte = self.next(255) as u8;
        let mut wanted: BTreeMap<u64, Fill> = BTreeMap::new();
        let many = if self.next(200) == 0 { GRANULES } else { 1 + self.next(5) };
        for _ in 0..many {
            let granule = if self.next(4) == 0 { self.next(GRANULES) } else { self.next(GRANULES / 8) };
            let fill = if self.next(12) == 0 { Fill::Zero } else { Fill::Byte(byte) };
            wanted.insert(granule, fill);
        }
        let runs: Vec<_> = wanted.into_iter().map(|(granule, fill)| (granule, 1, fill)).collect();
        let half = runs.len() / 2;
        // Often in two parts.
        match self.next(3) {
            0 if half > 0 => vec![runs[..half].to_vec(), runs[half..].to_vec()],
            _ => vec![runs],
        }
    }

    fn tick(&mut self) {
        self.pass(TICK_MS);
        let count = self.volumes.len();
        // Mostly a point; now and then what a failed cut left before it; now and then several that were staged while the bucket was away.
        let records = if self.next(10) == 0 { 3 } else { 1 };
        let mut said = Vec::new();
        for at in 0..records {
            let kind = if at + 1 < records && self.next(2) == 0 { LayerKind::Fuzzy } else { LayerKind::Point };
            let parts: Vec<_> = (0..count).map(|_| self.writes()).collect();
            said.push(self.said(kind, &parts));
            if self.group().room() < said.len() as u64 + 2 {
                self.append(std::mem::take(&mut said));
            }
        }
        if !said.is_empty() {
            self.append(said);
        }
        match self.next(100) {
            0 | 1 => self.die(),
            2 => self.pin(),
            3 => self.unpin(),
            4 => self.invite(),
            _ => {}
        }
        self.guests_leave();
        if self.now_ms.is_multiple_of(HOUR_MS) {
            self.keep_house();
        }
    }

    fn some_point(&mut self) -> Slot {
        let points: Vec<Slot> = self.group().state().points().keys().copied().collect();
        points[self.next(points.len() as u64) as usize]
    }

    /// Appends a record, and gives its slot.
    fn say(&mut self, body: Body) -> Slot {
        let appended = self.group().append(body).expect("appended");
        assert_eq!(appended.verdict, Verdict::Accepted);
        appended.position.slot
    }

    fn pin(&mut self) {
        let point = self.some_point();
        let pin = self.say(Body::Pin(Pin { point, reason: "a person's".to_owned() }));
        self.pins.push(pin);
    }

    fn unpin(&mut self) {
        if let Some(pin) = self.pins.pop() {
            self.say(Body::Unpin(Unpin { pin }));
        }
    }

    fn invite(&mut self) {
        let (point, volume) = (self.some_point(), self.next(self.volumes.len() as u64) as usize);
        let group = self.place.reader().group(&names()).expect("group");
        let reader = group.point_reader(point, self.volumes[volume].id()).expect("opened");
        // In a directory nothing is deleted while anybody reads, and little is merged while much waits for that.
        let longest_ms = if matches!(self.place, Place::Dir(_)) { HELD_MS } else { 3 * DAY_MS };
        let (since_ms, stays_ms) = (self.now_ms, [HELD_MS, longest_ms][self.next(2) as usize]);
        let until_ms = since_ms + self.next(stays_ms);
        self.guests.push(Guest { since_ms, until_ms, reader, image: self.held[&point][volume].clone() });
    }

    fn guests_leave(&mut self) {
        let now_ms = self.now_ms;
        for guest in self.guests.extract_if(.., |guest| guest.until_ms <= now_ms) {
            match content_of(&guest.reader) {
                Ok(content) => assert!(content == TestVolume::bytes(&guest.image), "who read for long reads what was there"),
                Err(error) => {
                    assert!(matches!(error, StoreError::PointDeleted { .. } | StoreError::PartMerged { .. }), "{error}");
                    let is_held = matches!(self.place, Place::Dir(_)) || now_ms - guest.since_ms < HELD_MS;
                    assert!(!is_held, "he had a lock, or a lease");
                    self.late += 1;
                }
            }
        }
    }

    fn keep_house(&mut self) {
        let policy = self.policy.clone();
        self.group().prune(&policy).expect("pruned");
        // As soon as there is something to merge.
        self.is_to_die |= self.next(30) == 0;
        if self.is_to_die {
            self.die_in_a_merge();
        }
        self.merges += self.group().merge(&policy).expect("merged") as u64;
        for _ in 0..4 {
            self.group().sweep().expect("swept");
        }
        let state = self.group.as_ref().expect("it runs").state();
        self.held.retain(|slot, _| state.points().contains_key(slot));
    }

    /// What it wrote is there, and no record says so.
    fn die_in_a_merge(&mut self) {
        let policy = self.policy.clone();
        // In most intervals there is nothing to merge.
        while let Some(look) = self.group().merge_look(&policy, false) {
            if let Some(found) = look.find(&|_| true).expect("found").merges.first() {
                let tried = look.write(found, &|_| true).expect("written");
                assert!(tried.written.is_ok());
                self.deaths_in_merges += 1;
                self.is_to_die = false;
                return self.die();
            }
        }
    }

    /// Every retained point is what it was, for who opens the store now.
    fn judge(&mut self) {
        let group = self.place.reader().group(&names()).expect("group");
        let points: BTreeSet<Slot> = group.points().iter().map(|point| point.slot).collect();
        assert_eq!(points, self.held.keys().copied().collect(), "the points that retention left");
        for (slot, images) in &self.held {
            for (volume, image) in self.volumes.iter().zip(images) {
                let reader = group.point_reader(*slot, volume.id()).expect("opened");
                assert!(content_of(&reader).expect("read") == TestVolume::bytes(image), "point {slot} of {}", volume.meta.name);
            }
        }
        let report = check(&self.place.reader(), &|_| true).expect("checked");
        assert!(report.worst().is_none_or(|worst| worst <= Severity::Note), "{:?}", report.findings);
    }

    /// Once nobody reads and a day has gone by, nothing is there that nobody needs.
    fn settle(&mut self) {
        self.guests.clear();
        for pin in std::mem::take(&mut self.pins) {
            self.say(Body::Unpin(Unpin { pin }));
        }
        self.keep_house();
        // Three days: of a merge that came to nothing its decree is given up first. Of a longer silence the age clock would take two hours.
        for hour in 1..=75 {
            self.pass(HOUR_MS);
            // A checkpoint comes, which covers what was merged.
            let records = if hour % 25 == 1 { SPAN.get() } else { 1 };
            for _ in 0..records {
                let parts: Vec<_> = (0..self.volumes.len()).map(|_| vec![vec![(60, 1, Fill::Byte(9))]]).collect();
                self.publish(LayerKind::Fuzzy, &parts);
            }
            for _ in 0..8 {
                self.group().sweep().expect("swept");
                if let Some(decree) = self.group().decree_plan() {
                    self.say(decree);
                }
            }
        }
        let state = self.group.as_ref().expect("it runs").state();
        self.held.retain(|slot, _| state.points().contains_key(slot));
    }

    /// Objects that hold content, and those of them that something published lies in.
    fn objects(&mut self) -> (usize, usize) {
        let there = self.place.objects();
        let group = self.group.as_ref().expect("it runs");
        let mut needed = BTreeSet::new();
        for (_, part) in group.image().parts().iter() {
            let volume = group.state().volume(part.name.layer.volume).expect("claimed").meta().name.clone();
            let object = part.place.map_or_else(|| names().segment(&volume, &part.name), |place| names().pack(place.pack));
            needed.insert(object.to_string());
        }
        let missing: Vec<_> = needed.difference(&there).collect();
        assert!(missing.is_empty(), "{missing:?}");
        (there.len(), needed.len())
    }
}

fn content_of(reader: &PointReader) -> crate::Result<Vec<u8>> {
    let (mut content, mut all) = (reader.content(), Vec::new());
    for region in 0..REGIONS {
        reader.read_region(RegionIndex(region), &mut content)?;
        all.extend_from_slice(&content.bytes);
    }
    Ok(all)
}

fn days() -> u64 {
    std::env::var("FARSIDE_DAYS").ok().and_then(|days| days.parse().ok()).unwrap_or(12)
}

/// Lives, and then waits until all that may go is gone.
fn live(place: Place, volumes: &[&str], seed: u64) -> Days {
    let mut site = Days::new(place, volumes, seed);
    for tick in 1..=days() * DAY_MS / TICK_MS {
        site.tick();
        if tick % (5 * DAY_MS / TICK_MS) == 0 {
            site.judge();
        }
    }
    println!(
        "{} points, {} merges, {} deaths ({} in a merge); {} guests were late",
        site.published, site.merges, site.deaths, site.deaths_in_merges, site.late
    );
    assert!(site.merges > 100 && site.deaths_in_merges > 0 && site.deaths > 15);
    site.settle();
    site.judge();
    let (there, needed) = site.objects();
    let group = site.group();
    let waits = (group.unnamed_merges(), group.deferred(), group.image().replaced());
    assert_eq!(there, needed, "{waits:?}");
    site
}

#[test]
fn days_in_a_directory_end_with_what_is_needed() {
    let site = live(Place::Dir(TempStore::new()), &["v"], 0x2545_f491_4f6c_dd1d);
    assert_eq!(site.late, 0);
}

#[test]
fn days_in_a_bucket_end_with_what_is_needed() {
    live(Place::bucket(), &["v"], 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn days_in_a_bucket_of_packs_end_with_what_is_needed() {
    live(Place::bucket(), &["a", "b"], 0xd1b5_4a32_d192_ed03);
}
