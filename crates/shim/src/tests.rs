//! A whole source side on one thread: two volumes, their queues, owner, switcher, sender and cooler, in an order drawn from a
//! seed, over disks whose operations land late, out of order, and in a volatile cache. Every law that can be seen from here is
//! checked at every step; every mutation has to be noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use farside_region::intent::{IntentLayout, Page, PageBits, PageIndex, SlotIndex, recover_page};
use farside_region::{EpochId, Geometry, GranuleIndex, GranuleRun, GranuleSet, MapId, RegionIndex};

use crate::sync::Arc;
use crate::*;

const GRANULE: u64 = 8;
const MAP: MapId = MapId([7; 16]);

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A backing device: what landed on each granule, in order, with the epoch of the write; and how much of it is durable.
struct Disk {
    landed: Vec<Vec<(u64, u8)>>,
    durable: Vec<usize>,
}

impl Disk {
    fn now(&self, granule: u64) -> u8 {
        self.landed[granule as usize].last().expect("formatted").1
    }

    /// The content as of the end of an epoch: the last write of it, or of one before, that landed.
    fn at(&self, granule: u64, epoch: u64) -> u8 {
        self.landed[granule as usize].iter().rfind(|(e, _)| *e <= epoch).expect("formatted").1
    }

    fn mark(&self) -> Vec<usize> {
        self.landed.iter().map(Vec::len).collect()
    }

    fn flushed(&mut self, mark: &[usize]) {
        self.durable.iter_mut().zip(mark).for_each(|(d, m)| *d = (*d).max(*m));
    }

    /// Everything that a power cut may leave there.
    fn candidates(&self, granule: u64) -> BTreeSet<u8> {
        let g = granule as usize;
        self.landed[g][self.durable[g] - 1..].iter().map(|(_, v)| *v).collect()
    }
}

/// The intent file: per slot what is durable, and what has been written since the last sync.
#[derive(Default)]
struct Map {
    slots: BTreeMap<(u64, bool), (Page, Vec<Page>)>,
}

impl Map {
    /// Whatever a power cut leaves of the two slots (a slot being written may be torn): does recovery see the bit?
    fn bit_surely_durable(&self, layout: &IntentLayout, region: RegionIndex) -> bool {
        let (page, place) = layout.place(region);
        let options = |slot| {
            let (durable, written) = &self.slots[&(page.0, slot)];
            let torn = (!written.is_empty()).then_some(None);
            std::iter::once(durable).chain(written).map(Some).chain(torn)
        };
        let newest =
            |a: Option<&Page>, b: Option<&Page>| a.into_iter().chain(b).max_by_key(|p| p.seq).is_none_or(|p| p.bits.get(place));
        options(false).all(|a| options(true).all(|b| newest(a, b)))
    }

    fn sync(&mut self) {
        self.slots.values_mut().for_each(|(durable, written)| {
            if let Some(last) = written.drain(..).next_back() {
                *durable = last;
            }
        });
    }
}

struct Running {
    request: Request,
    queue: usize,
    value: u8,
    io: Option<(Io, Vec<usize>)>,
}

struct Layer {
    epoch: EpochId,
    set: GranuleSet,
    reader: FrozenReader,
    reads: Vec<(GranuleRun, Option<Vec<u8>>)>,
    content: BTreeMap<u64, u8>,
    ended: bool,
}

struct Site {
    volume: Arc<Volume>,
    queues: Vec<Queue>,
    owner: IntentOwner,
    cooler: Cooler,
    running: Vec<Running>,
    disk: Disk,
    map: Map,
    commit: Option<Commit>,
    cool_flush: Option<Vec<usize>>,
    layer: Option<Layer>,
    published: Vec<u8>,
    /// The record that last published each region; how far the header has seen records.
    record_of: Vec<u64>,
    header: u64,
    connection: Arc<Connection>,
}

struct World {
    rng: Rng,
    geometry: Geometry,
    layout: IntentLayout,
    switcher: Switcher,
    sites: Vec<Site>,
    record: u64,
    tally: Tally,
}

#[derive(Default, Debug)]
struct Tally {
    points: u64,
    fuzzy: u64,
    cooled: u64,
    saves: u64,
    held: u64,
    zero_skips: u64,
    left_out: usize,
    parks: BTreeMap<String, u64>,
}

impl World {
    fn new(seed: u64, mutations: Mutations) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| _ = rng.below(2));
        let geometry = Geometry::with_shape(GRANULE * 18 + 3, 3, 2).expect("valid");
        let layout = IntentLayout::with_page_regions(&geometry, 2);
        let tight = rng.one_in(2);
        let limits = Limits {
            in_flight_per_queue: 1 + rng.below(6) as usize,
            mask_pool_bytes: if tight { rng.below(8) as usize * 8 } else { 1 << 10 },
            claim_pool_bytes: if tight { rng.below(5) as usize * 16 } else { 1 << 10 },
            side_buffer_bytes: if tight { (rng.below(12) * GRANULE) as usize } else { 1 << 10 },
            claim_run_bytes: GRANULE * (1 + rng.below(3)),
            pass_run_bytes: GRANULE * (1 + rng.below(5)),
            left_run_bytes: GRANULE * (1 + rng.below(2)),
            piece_bytes: GRANULE * (2 + rng.below(6)),
        };
        let group = Group::new(&limits, GRANULE);
        let sites = (0..2)
            .map(|_| {
                let mut map = Map::default();
                for p in 0..layout.page_count() {
                    for slot in [false, true] {
                        let page = Page { map: MAP, index: PageIndex(p), seq: slot as u64, bits: PageBits::clear() };
                        map.slots.insert((p, slot), (page, Vec::new()));
                    }
                }
                let config = VolumeConfig { layout, limits, queues: 2, mutations, ..VolumeConfig::new(geometry) };
                let mut slots = |p: PageIndex| [false, true].map(|s| map.slots[&(p.0, s)].0.encode(&layout));
                let (volume, queues, owner) = group.open_volume(config, Wakes::none(2), MAP, &mut slots);
                let granules = geometry.granule_count() as usize;
                Site {
                    queues,
                    owner,
                    cooler: Cooler::new(volume.clone()),
                    running: Vec::new(),
                    disk: Disk { landed: vec![vec![(0, 0)]; granules], durable: vec![1; granules] },
                    map,
                    commit: None,
                    cool_flush: None,
                    layer: None,
                    published: vec![0; granules],
                    record_of: vec![0; geometry.region_count() as usize],
                    header: 0,
                    connection: volume.connect(),
                    volume,
                }
            })
            .collect();
        Self { rng, geometry, layout, switcher: Switcher::new(group), sites, record: 0, tally: Tally::default() }
    }

    fn step(&mut self, writing: bool) {
        let s = self.rng.below(2) as usize;
        match self.rng.below(24) {
            0..=3 if writing => self.start(s),
            0..=8 => self.drive(s),
            9..=11 => self.own(s),
            12 => self.switch(),
            13 | 14 => {
                if let Some(frozen) = self.switcher.poll() {
                    self.freeze(frozen);
                }
            }
            15..=18 => self.send(s),
            19 => self.conclude(s),
            20..=22 => self.cool(s),
            _ if self.rng.one_in(12) => {
                if let Some(layer) = &self.sites[s].layer {
                    self.switcher.demote(layer.epoch);
                }
            }
            _ => {
                if let Some(epoch) = self.sites[s].volume.take_events().overflowed {
                    self.switcher.demote(epoch);
                }
            }
        }
        self.check(s);
    }

    fn start(&mut self, s: usize) {
        let site = &mut self.sites[s];
        if site.running.len() > 6 {
            return;
        }
        let granules = self.geometry.granule_count();
        let start = self.rng.below(granules);
        let count = (1 + if self.rng.one_in(3) { self.rng.below(9) } else { self.rng.below(2) }).min(granules - start);
        let extent = self.geometry.bytes_of(GranuleRun { start: GranuleIndex(start), count });
        let fua = self.rng.one_in(4).then(|| site.connection.clone());
        let (op, value) = match self.rng.below(12) {
            0 => (Op::Flush(site.connection.clone()), 0),
            1 | 2 => (Op::Trim(extent, fua), 0),
            3 => (Op::WriteZeroes { extent, no_hole: self.rng.one_in(2), fua }, 0),
            4 => (Op::Read(extent), 0),
            _ => (Op::Write(extent, fua), 1 + self.rng.below(250) as u8),
        };
        let queue = self.rng.below(2) as usize;
        let request = site.queues[queue].start(op).expect("inside the volume");
        site.running.push(Running { request, queue, value, io: None });
    }

    /// Advances a request, or lets an operation of one land.
    fn drive(&mut self, s: usize) {
        let site = &mut self.sites[s];
        if site.running.is_empty() {
            return;
        }
        let i = self.rng.below(site.running.len() as u64) as usize;
        let running = &mut site.running[i];
        let queue = &mut site.queues[running.queue];
        let granules = |extent| self.geometry.granules_of(extent).map(|run| run.start.0..run.end().0).expect("inside");
        let Some((io, mark)) = running.io.take() else {
            let at_zero = running.request.at_for_tests();
            let step = running.request.advance(queue);
            self.tally.zero_skips += (running.request.at_for_tests() != at_zero) as u64;
            match step {
                Step::Io(io) => {
                    if let Io::Write(extent) | Io::Zero { extent, .. } = io {
                        for g in granules(extent) {
                            let region = self.geometry.region_of(GranuleIndex(g));
                            assert!(site.map.bit_surely_durable(&self.layout, region), "L2: a write before the bit of {region}");
                        }
                    }
                    running.io = Some((io, site.disk.mark()));
                }
                Step::Park(key) => *self.tally.parks.entry(format!("{key:?}")).or_default() += 1,
                Step::Complete(result) => {
                    assert_eq!(result, Ok(()));
                    site.running.swap_remove(i);
                }
            }
            return;
        };
        match io {
            Io::Write(extent) | Io::Zero { extent, .. } => {
                let epoch = running.request.epoch().expect("passing").0;
                granules(extent).for_each(|g| site.disk.landed[g as usize].push((epoch, running.value)));
            }
            Io::Flush => site.disk.flushed(&mark),
            Io::Save(extent) => {
                self.tally.saves += 1;
                let data = read(&self.geometry, &site.disk, self.geometry.granules_of(extent).expect("inside"));
                return running.request.io_done(queue, IoResult::Data(&data));
            }
            Io::Read(_) => {}
        }
        running.request.io_done(queue, IoResult::Done);
    }

    fn own(&mut self, s: usize) {
        let site = &mut self.sites[s];
        match site.commit.take() {
            Some(commit) => {
                if commit.needs_sync() {
                    site.map.sync();
                }
                site.owner.committed(true);
            }
            None => {
                site.commit = site.owner.next_commit();
                for write in site.commit.iter().flat_map(|c| &c.writes) {
                    let page = recover_page(MAP, &self.layout, write.page, [&write.block.0, &[0; 4096]]).page;
                    for region in self.layout.page_run(write.page).iter().filter(|&r| !page.bits.get(self.layout.place(r).1)) {
                        let record = site.record_of[region.0 as usize];
                        assert!(site.header >= record, "L2: {region} is cleared before the header covers record {record}");
                    }
                    let slot = site.map.slots.get_mut(&(write.page.0, write.slot == SlotIndex::B)).expect("both slots exist");
                    slot.1.push(page);
                }
            }
        }
    }

    fn switch(&mut self) {
        let kind = if self.rng.one_in(3) { Kind::Pass } else { Kind::Cut };
        let fits: Vec<usize> = (0..2).filter(|&s| self.sites[s].layer.is_none()).collect();
        let wanted: Vec<usize> = if kind == Kind::Cut && !self.rng.one_in(4) { fits } else { fits.into_iter().take(1).collect() };
        let members: Vec<Member> =
            wanted.iter().map(|&s| Member { volume: self.sites[s].volume.clone(), also: GranuleSet::new() }).collect();
        if !members.is_empty() {
            let _ = self.switcher.begin(kind, members);
        }
    }

    fn freeze(&mut self, frozen: Frozen) {
        for member in frozen.members {
            let site = self.sites.iter_mut().find(|s| Arc::ptr_eq(&s.volume, &member.volume)).expect("ours");
            assert!(site.layer.is_none(), "at most one frozen per volume");
            let reader = FrozenReader::new(member.volume, frozen.epoch, member.set.clone());
            let (reads, content) = (Vec::new(), BTreeMap::new());
            site.layer = Some(Layer { epoch: frozen.epoch, set: member.set, reader, reads, content, ended: false });
        }
    }

    fn send(&mut self, s: usize) {
        let site = &mut self.sites[s];
        let Some(layer) = &mut site.layer else { return };
        if !layer.reads.is_empty() && self.rng.one_in(2) {
            let i = self.rng.below(layer.reads.len() as u64) as usize;
            if layer.reads[i].1.is_none() {
                layer.reads[i].1 = Some(read(&self.geometry, &site.disk, layer.reads[i].0));
                return;
            }
            let (run, data) = layer.reads.swap_remove(i);
            if layer.reader.read_done(run) == ReadVerdict::Accept {
                take(&mut layer.content, run, &data.expect("read"));
            }
            return;
        }
        match layer.reader.next(RegionIndex(self.rng.below(self.geometry.region_count() + 1))) {
            Next::Read(run) => layer.reads.push((run, None)),
            Next::Held(held) => {
                self.tally.held += 1;
                take(&mut layer.content, held.run, &held.data.expect("no read fails here"));
            }
            Next::Left(_) | Next::Wait => {}
            Next::End => layer.ended = layer.reader.remaining().is_empty(),
        }
    }

    fn conclude(&mut self, s: usize) {
        let Some(layer) = &self.sites[s].layer else { return };
        let epoch = layer.epoch;
        let done =
            |site: &Site| site.layer.as_ref().is_none_or(|l| l.epoch != epoch || (l.ended && l.reader.remaining().is_empty()));
        if !self.sites.iter().all(done) {
            return;
        }
        let kind = self.switcher.conclude(epoch);
        self.record += 1;
        for site in &mut self.sites {
            let Some(layer) = site.layer.take_if(|l| l.epoch == epoch) else { continue };
            for (&g, &value) in &layer.content {
                site.published[g as usize] = value;
                site.record_of[self.geometry.region_of(GranuleIndex(g)).0 as usize] = self.record;
            }
            for g in 0..self.geometry.granule_count() {
                // A pass may leave out what the next epoch will hold.
                let sent = layer.content.contains_key(&g);
                let left = !sent && kind == Kind::Pass && site.volume.open_set().contains(&self.geometry, GranuleIndex(g));
                self.tally.left_out += usize::from(left && layer.set.contains(&self.geometry, GranuleIndex(g)));
                assert!(layer.set.contains(&self.geometry, GranuleIndex(g)) == sent || left, "granule {g}");
                if kind == Kind::Cut {
                    assert_eq!(
                        site.published[g as usize],
                        site.disk.at(g, epoch.0),
                        "L3: granule {g} of the point of epoch {epoch}"
                    );
                }
            }
        }
        match kind {
            Kind::Cut => self.tally.points += 1,
            Kind::Pass => self.tally.fuzzy += 1,
        }
        self.switcher.release(epoch);
    }

    fn cool(&mut self, s: usize) {
        let site = &mut self.sites[s];
        let mut mentioned = |region| site.layer.as_ref().is_some_and(|l| l.set.touches(region));
        match site.cooler.poll(&mut mentioned) {
            CoolStep::Idle => {
                let zero = |r: RegionIndex| {
                    let run = self.geometry.region_run(r);
                    (run.start.0..run.end().0).all(|g| site.published[g as usize] == 0)
                };
                let some: Vec<_> =
                    self.geometry.all_regions().iter().filter(|_| self.rng.one_in(2)).map(|r| (r, zero(r))).collect();
                self.tally.cooled += site.cooler.begin(&mut some.into_iter()) as u64;
            }
            CoolStep::Wait => {
                if let Some(mark) = site.cool_flush.take() {
                    site.disk.flushed(&mark);
                    site.cooler.flush_end(true);
                }
            }
            CoolStep::Flush if self.rng.one_in(2) => {
                site.cooler.flush_begin();
                site.cool_flush = Some(site.disk.mark());
            }
            CoolStep::Flush => {}
            CoolStep::Header => {
                site.header = self.record;
                site.cooler.header_durable();
            }
        }
    }

    /// L2 at this very moment, whatever a power cut would leave: a granule that may differ from what is published lies in a
    /// region whose bit is surely durable.
    fn check(&self, s: usize) {
        let site = &self.sites[s];
        for region in self.geometry.all_regions().iter() {
            let run = self.geometry.region_run(region);
            let differs =
                (run.start.0..run.end().0).find(|&g| site.disk.candidates(g) != BTreeSet::from([site.published[g as usize]]));
            if let Some(g) = differs {
                assert!(site.map.bit_surely_durable(&self.layout, region), "L2 false-clean: granule {g} of {region}");
            }
        }
    }

    /// No change may be forgotten: what differs from what is published is marked, frozen or in flight.
    fn check_maps(&self, s: usize) {
        let site = &self.sites[s];
        let (open, held) = (site.volume.open_set(), site.layer.as_ref().map(|l| &l.set));
        for g in 0..self.geometry.granule_count() {
            let granule = GranuleIndex(g);
            let known = open.contains(&self.geometry, granule)
                || site.volume.maps.iter().any(|m| m.is_dirty(self.geometry.region_of(granule)))
                || held.is_some_and(|h| h.contains(&self.geometry, granule));
            assert!(known || site.disk.now(g) == site.published[g as usize], "granule {g} is forgotten");
        }
    }

    fn run(mut self, steps: usize) -> Tally {
        for _ in 0..steps {
            self.step(true);
        }
        // Then peace: everything completes, and everything is published and cools.
        for _ in 0..4000 {
            self.step(false);
            let quiet = |site: &Site| site.running.is_empty() && site.layer.is_none() && site.volume.open_is_empty();
            if self.sites.iter().all(quiet) && self.sites.iter().all(|s| s.volume.hot_regions().is_empty()) {
                break;
            }
        }
        for s in 0..2 {
            self.check_maps(s);
            let site = &self.sites[s];
            assert!(
                site.running.is_empty(),
                "a request never completes: {:?}",
                site.running.iter().map(|r| &r.request).collect::<Vec<_>>()
            );
        }
        std::mem::take(&mut self.tally)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.sites.iter_mut().flat_map(|s| s.running.drain(..)).for_each(|r| r.request.crash());
    }
}

fn read(geometry: &Geometry, disk: &Disk, run: GranuleRun) -> Vec<u8> {
    let len = |g| geometry.bytes_of(GranuleRun { start: GranuleIndex(g), count: 1 }).len as usize;
    (run.start.0..run.end().0).flat_map(|g| vec![disk.now(g); len(g)]).collect()
}

fn take(content: &mut BTreeMap<u64, u8>, run: GranuleRun, data: &[u8]) {
    for (i, granule) in data.chunks(GRANULE as usize).enumerate() {
        let before = content.insert(run.start.0 + i as u64, granule[0]);
        assert!(before.is_none(), "a granule is accepted twice");
    }
    assert_eq!(data.len().div_ceil(GRANULE as usize), run.count as usize);
}

fn seeds_that_fail(mutation: Mutation, seeds: u64) -> usize {
    let fails = |seed: &u64| catch_unwind(AssertUnwindSafe(|| World::new(*seed, Mutations::only(mutation)).run(400))).is_err();
    (0..seeds).filter(fails).count()
}

#[test]
fn laws_hold_in_any_order() {
    let mut all = Tally::default();
    for seed in 0..400 {
        let tally = catch_unwind(|| World::new(seed, Mutations::default()).run(400)).unwrap_or_else(|_| panic!("seed {seed}"));
        all.points += tally.points;
        all.fuzzy += tally.fuzzy;
        all.cooled += tally.cooled;
        all.saves += tally.saves;
        all.held += tally.held;
        all.zero_skips += tally.zero_skips;
        all.left_out += tally.left_out;
        tally.parks.into_iter().for_each(|(k, n)| *all.parks.entry(k).or_default() += n);
    }
    println!("{all:?}");
    // The run means something only if all of it happens.
    assert!(
        all.points > 100
            && all.fuzzy > 100
            && all.cooled > 100
            && all.saves > 100
            && all.held > 100
            && all.zero_skips > 20
            && all.left_out > 100,
        "{all:?}"
    );
    for key in ["Intent", "InFlight", "Drain", "Claim"] {
        assert!(all.parks.contains_key(key), "nothing ever parks for {key}: {all:?}");
    }
}

#[test]
fn every_shortcut_is_noticed() {
    for mutation in [
        Mutation::MarkBeforeIntent,
        Mutation::CoolMentioned,
        Mutation::ClearWithoutFlush,
        Mutation::ClearBeforeHeader,
        Mutation::ClearInCoolingWindow,
        Mutation::WriteBeforeSync,
        Mutation::PassWithoutDraining,
        Mutation::SaveWithoutClaim,
    ] {
        let failed = seeds_that_fail(mutation, 200);
        println!("{mutation:?}: {failed} of 200 seeds");
        assert!(failed > 0, "{mutation:?} goes unnoticed");
    }
}
