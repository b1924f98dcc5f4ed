//! The judges: what must hold after every step, whatever happened. They replay the ledger from its bytes and unpack the
//! segments themselves, and compare with [`crate::oracle`].
//!
//! - L3: a published point equals, byte for byte and on all of its members, the model image at the switch that its record
//!   names by time; its members are those of that switch; every write of its epochs had landed.
//! - L2: a sector that may differ from what is published, whatever a power cut may leave of disk and map, has its region's
//!   bit surely durable.
//! - L5: every visible point, and the head image, can be read in full from the segments that exist, and is what it was; the
//!   newest K that policy promises, and pinned ones, are there.
//! - L10: a heartbeat that was accepted, and a lag that was reported, are true.
//! - L8: nothing is beyond its limit.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use farside_ledger::{Body, Claim, CohortCut, CutTime, LayerKind, Layers, Record, Stamp, State, Verdict};
use farside_region::{Geometry, LayerKey, LedgerPosition, Slot, Term, VolumeId};
use farside_store::GroupImage;

use crate::failover::Failover;
use crate::history::{Histories, Refusal, Tips};
use crate::line::Line;
use crate::oracle::{Cut, Published, show};
use crate::parts::{self, Content};
use crate::plan::Fault;
use crate::quiet;
use crate::receiver::Receiver;
use crate::site::Site;
use crate::source::{self, Source};
use crate::succession::{Claimants, Claimed, Succession};
use crate::world::{GRANULE_SECTORS, SECTOR, World};

/// See the head of the file.
#[derive(Clone, Debug)]
pub struct Judge {
    group: GroupImage,
    heads: Vec<Vec<Published>>,
    /// What every point that ever was visible held, per member.
    points: BTreeMap<Slot, PointTruth>,
    accepted: u64,
    healed: Vec<bool>,
    /// Per site and volume: changes of disk and map, and records, at the last look.
    seen: BTreeMap<(usize, usize), (u64, u64, u64)>,
    histories: Histories,
    succession: Succession,
    line: Line,
    looked_at: u64,
    clock: LedgerClock,
    ever_cloned: bool,
    /// How it was before each record, where one may be given up.
    before: Vec<Before>,
    /// What points of all histories held, where somebody has nothing but the store.
    ever: BTreeMap<LedgerPosition, BTreeMap<usize, Vec<Published>>>,
}

#[derive(Clone, Debug)]
struct Before {
    heads: Vec<Vec<Published>>,
    clock: LedgerClock,
    pinned: BTreeMap<Slot, Slot>,
    succession: Succession,
}

#[derive(Clone, Debug)]
struct PointTruth {
    images: BTreeMap<usize, Vec<Published>>,
    degraded: bool,
    at_us: u64,
    ledger_ms: u64,
}

/// Ledger time, as the design defines it, computed here once more.
#[derive(Clone, Debug, Default)]
struct LedgerClock {
    ms: u64,
    last: Option<Stamp>,
}

impl LedgerClock {
    /// An accepted layer or heartbeat: the writer's own clock, or between writers what their wall clocks say, 0 to 2 hours.
    fn advance(&mut self, stamp: &Stamp) {
        let mut highest = *stamp;
        if let Some(last) = self.last {
            let foreign = (stamp.wall_ms - last.wall_ms).clamp(0, 2 * 3_600_000) as u64;
            self.ms += if last.writer == stamp.writer { stamp.mono_ms.saturating_sub(last.mono_ms) } else { foreign };
            if last.writer == stamp.writer {
                highest.mono_ms = highest.mono_ms.max(last.mono_ms);
            }
        }
        self.last = Some(highest);
    }
}

impl Judge {
    /// A judge of an empty ledger.
    pub fn new(world: &World) -> Self {
        let heads = world.home().disks.iter().map(|d| vec![Published::Absent; d.borrow().sectors()]).collect();
        Self {
            group: crate::receiver::new_group(world),
            heads,
            points: BTreeMap::new(),
            accepted: 0,
            healed: vec![false; world.volumes()],
            seen: BTreeMap::new(),
            histories: Histories::default(),
            succession: Succession::default(),
            line: Line::default(),
            looked_at: 0,
            clock: LedgerClock::default(),
            ever_cloned: false,
            before: Vec::new(),
            ever: BTreeMap::new(),
        }
    }

    /// Points that were compared with the truth.
    pub fn points(&self) -> u64 {
        self.points.len() as u64
    }

    /// Records accepted.
    pub fn records(&self) -> u64 {
        self.accepted
    }

    fn ledger(&self) -> &State {
        self.group.state()
    }

    /// What a machine knows as its own history, for a snapshot of it.
    pub fn tips(&self, world: &World, site: &Site) -> Tips {
        self.histories.tips(world, site.life.get())
    }

    /// A machine begins another life with this.
    pub fn begin_life(&mut self, site: &Site, tips: Tips) {
        self.ever_cloned |= site.no > 0;
        self.histories.begin(site.life.get(), tips);
    }

    /// A machine says that a volume is refused.
    pub fn on_refusal(&self, world: &World, site: &Site, volume: usize, why: Refusal) {
        if why == Refusal::Fenced {
            return world.check(self.succession.on_fenced(world, site, volume));
        }
        world.check(self.histories.on_refusal(world, self.ledger(), site, volume, why));
    }

    /// The store went back to when the judge was this one.
    pub fn go_back(&mut self, then: &Self) {
        self.group = then.group.clone();
        self.heads.clone_from(&then.heads);
        self.points.clone_from(&then.points);
        self.succession.clone_from(&then.succession);
        self.line.on_rewound();
        self.clock.clone_from(&then.clock);
        self.before.clone_from(&then.before);
        self.healed.fill(false);
        self.seen.clear();
    }

    /// The layers that records from this slot on published.
    pub fn layers_from(&self, slot: u64) -> impl Iterator<Item = LayerKey> {
        let facts = self.ledger().volumes().flat_map(|(_, known)| known.layers_above(None));
        facts.filter(move |fact| fact.slot.0 >= slot).map(|fact| fact.key)
    }

    /// The records from this slot on are given up. None of them is a prune: the segments of all others are there.
    pub fn give_up_from(&mut self, world: &World, slot: u64) {
        self.group = crate::receiver::replay(world, slot);
        let Some(before) = self.before.get(slot as usize).cloned() else { return };
        self.before.truncate(slot as usize);
        (self.heads, self.clock, self.succession) = (before.heads, before.clock, before.succession);
        world.pinned.replace(before.pinned);
        self.points.retain(|point, _| point.0 < slot);
        self.line.on_rewound();
        self.healed.fill(false);
        self.seen.clear();
    }

    /// A record landed in the ledger.
    pub fn on_record(&mut self, world: &World, slot: u64) {
        let bytes = world.store.borrow().ledger()[slot as usize].clone();
        let (record, digest) = match Record::decode(&bytes) {
            Ok(decoded) => decoded,
            Err(e) => return world.fail(format!("the record in slot {slot} cannot be read: {e}")),
        };
        if world.plan.has(Fault::TornLedger) {
            let pinned = world.pinned.borrow().clone();
            let succession = self.succession.clone();
            self.before.push(Before { heads: self.heads.clone(), clock: self.clock.clone(), pinned, succession });
        }
        let before = self.ledger().points().len();
        let verdict = match self.group.apply(&record, digest, |part| parts::runs_of(world, part)) {
            Ok(applied) => applied.verdict,
            Err(why) => return world.fail(format!("L4: the record in slot {slot} names what cannot be read: {why}")),
        };
        world.say(|| format!("ledger[{slot}] {} {verdict:?}", describe(world, &record.body)));
        if verdict == Verdict::Accepted && matches!(record.body, Body::Layers(_) | Body::Heartbeat(_)) {
            self.clock.advance(&record.stamp);
        }
        // A mutated replay may let a void record take effect: what counts is what readers see.
        let took_effect = verdict == Verdict::Accepted || self.ledger().points().len() > before;
        if verdict == Verdict::Accepted {
            self.accepted += 1;
        }
        match &record.body {
            Body::Claim(claim) if verdict == Verdict::Accepted => {
                let fences = world.fences.borrow().contains(&digest);
                self.on_claim(world, record.slot, claim, (record.stamp.writer, fences));
            }
            Body::Layers(layers) if took_effect => self.on_layers(world, record.slot, layers),
            Body::Pin(pin) if took_effect => {
                world.pinned.borrow_mut().insert(record.slot, pin.point);
            }
            Body::Unpin(unpin) if took_effect => {
                world.pinned.borrow_mut().remove(&unpin.pin);
            }
            Body::Heartbeat(beat) if took_effect => {
                for (id, _) in &beat.members {
                    self.check_quiet(world, *id, &beat.t);
                }
            }
            _ => {}
        }
    }

    fn on_claim(&mut self, world: &World, slot: Slot, claim: &Claim, (writer, fences): ([u8; 16], bool)) {
        let Some(volume) = world.volume_of(claim.volume.id) else {
            return world.fail(format!("a claim of a volume that does not exist: {}", claim.volume.name));
        };
        let of_somebody = |by: &Claimants| by.get(&(volume, claim.volume.generation.0, claim.looked)).cloned();
        let by = if fences { None } else { of_somebody(&world.claimants.borrow()) };
        let claimed = Claimed { volume, slot, generation: claim.volume.generation.0, by: by.unwrap_or_default(), writer };
        let newest = self.newest_point(volume);
        world.check(self.succession.on_claim(world, claimed, newest));
    }

    /// The gateway says that a failover is done.
    pub fn on_promoted(&mut self, world: &World, failover: &Failover) {
        let whole = |point: &&PointTruth| failover.forced || !point.degraded;
        let newest = self.line.newest(|slot| self.points.get(&slot).is_some_and(|point| whole(&point)));
        let point = failover.point();
        if failover.wanted.is_none() && newest.is_some() && point != newest {
            return world.fail(format!("L6: the newest point is {newest:?}, and {point:?} was brought up in its place"));
        }
        if let Some(point) = point
            && !world.pinned.borrow().values().any(|pinned| *pinned == point)
        {
            return world.fail(format!("L5: point {point} was brought up, and nothing keeps it"));
        }
        self.line.on_promoted(point);
        world.check(self.succession.on_promoted(failover.generation));
    }

    /// A machine's disks, which were brought to a point, are served, and its history goes on from there.
    pub fn on_taken_back(&self, world: &World, at: Slot) {
        let has_all = |point: &PointTruth| (0..world.volumes()).all(|volume| point.images.contains_key(&volume));
        let newest = self.line.newest(|slot| self.points.get(&slot).is_some_and(|point| !point.degraded && has_all(point)));
        if let Some(newest) = newest.filter(|newest| *newest != at) {
            world.fail(format!("L6: the history is taken back at {at}, and its newest point is {newest}"));
        }
    }

    /// What a point holds of a volume, or its newest point if that one does not have it; as a restore leaves it.
    pub fn restored(&self, volume: usize, point: Option<Slot>) -> Vec<u8> {
        let of = |slot: &Slot| self.points.get(slot)?.images.get(&volume);
        let newest = || self.points.values().rev().find_map(|p| p.images.get(&volume));
        let image = point.as_ref().and_then(of).or_else(newest);
        let bytes = |published: &Published| if let Published::Value(value) = published { *value } else { [0; SECTOR] };
        image.map_or_else(|| vec![0; self.heads[volume].len() * SECTOR], |image| image.iter().flat_map(bytes).collect())
    }

    /// Where the newest point of a volume is.
    pub fn newest_position(&self, volume: usize) -> Option<LedgerPosition> {
        let slot = self.newest_point(volume)?;
        Some(LedgerPosition { slot, digest: self.ledger().digest_at(slot)? })
    }

    /// What a point holds of a volume.
    pub fn image_of(&self, volume: usize, point: Slot) -> Option<&Vec<Published>> {
        self.points.get(&point)?.images.get(&volume)
    }

    /// The same of a point of any history that the store ever had.
    pub fn image_ever(&self, volume: usize, at: &LedgerPosition) -> Option<&Vec<Published>> {
        self.ever.get(at)?.get(&volume)
    }

    /// Points that say that they are of a cut of several hosts, degraded ones too.
    pub fn cohort_points(&self) -> impl Iterator<Item = (Slot, CohortCut, bool)> + '_ {
        let points = self.ledger().points().iter();
        points.filter_map(|(slot, point)| Some((*slot, point.consistency().cohort_cut()?, point.degraded)))
    }

    /// What is said next is a degraded point: the ledger calls some region unreadable.
    pub fn is_degraded(&self) -> bool {
        self.ledger().volumes().any(|(_, volume)| !volume.unreadable().is_empty())
    }

    /// What readers of the ledger know.
    pub fn state(&self) -> &State {
        self.ledger()
    }

    /// Under which generation a volume was claimed last.
    pub fn generation(&self, volume: usize) -> u64 {
        self.succession.generation(volume)
    }

    /// Whether every volume was claimed above a generation.
    pub fn is_taken_back(&self, generation: u64) -> bool {
        (0..self.heads.len()).all(|volume| self.succession.generation(volume) > generation)
    }

    fn on_layers(&mut self, world: &World, slot: Slot, layers: &Layers) {
        for entry in &layers.members {
            let Some(volume) = world.volume_of(entry.key.volume) else {
                return world.fail(format!("a layer of a volume that does not exist: {}", entry.key));
            };
            let Some(fact) = self.ledger().layer(&entry.key) else {
                return world.fail(format!("L4: layer {} was accepted and replay does not know it", entry.key));
            };
            if fact.slot != slot {
                continue; // a member that was done before (T11)
            }
            let key = entry.key;
            if let Err(why) = self.histories.on_layer(world, self.group.state(), volume, key, slot) {
                return world.fail(why);
            }
            if let Err(why) = self.succession.on_layer(world, volume, key) {
                return world.fail(why);
            }
            for part in 0..entry.parts.len() as u32 {
                if let Err(why) = self.overlay(world, volume, key, part, entry) {
                    return world.fail(format!("L4: layer {key} part {part}, named by the record in slot {slot}: {why}"));
                }
            }
        }
        if layers.kind == LayerKind::Point {
            self.on_point(world, slot, layers);
        }
    }

    fn overlay(
        &mut self,
        world: &World,
        volume: usize,
        key: LayerKey,
        part: u32,
        entry: &farside_ledger::LayerEntry,
    ) -> Result<(), String> {
        let geometry = world.shape(volume, key.term);
        for (run, content) in parts::segment(world, key, part)?.iter() {
            let run = *run;
            for region in geometry.regions_of(run).iter() {
                if !entry.regions.contains(region) {
                    return Err(format!("it touches region {region}, which its record does not list"));
                }
            }
            put(&mut self.heads[volume], &geometry, run, content);
        }
        Ok(())
    }

    fn on_point(&mut self, world: &World, slot: Slot, layers: &Layers) {
        let sites = world.sites();
        let found = sites.iter().find(|s| s.oracle.borrow().cut_between(&layers.epoch).is_ok()).unwrap_or(&sites[0]);
        let cut = match found.oracle.borrow().cut_between(&layers.epoch) {
            Ok(cut) => cut.clone(),
            Err(why) => return world.fail(format!("L3: point {slot}: {why}")),
        };
        let members: BTreeSet<usize> = layers.members.iter().filter_map(|m| world.volume_of(m.key.volume)).collect();
        if members != cut.members {
            let why = format!("L3: point {slot} holds volumes {members:?}; the cut of epoch {} had {:?}", cut.epoch, cut.members);
            return world.fail(why);
        }
        let degraded = self.ledger().points().get(&slot).is_some_and(|p| p.degraded);
        self.line.on_point(slot);
        let mut images = BTreeMap::new();
        let mut bad = false;
        for entry in &layers.members {
            let Some(volume) = world.volume_of(entry.key.volume) else { continue };
            if let Err(why) = self.compare(found, volume, entry.volume_bytes, &cut, degraded) {
                return world.fail(format!("L3: point {slot}, cut of epoch {}, v{volume}: {why}", cut.epoch));
            }
            bad |= (0..self.heads[volume].len()).any(|s| self.was_bad(found, volume, s));
            images.insert(volume, self.heads[volume].clone());
            self.healed[volume] |= Some(found.no) == world.main.get();
            let author = world.authors.borrow().get(&entry.key).map(|author| author.site);
            if author != Some(found.no) {
                let why = format!("L6: point {slot} was cut on site {}, and its layer {} is of {author:?}", found.no, entry.key);
                return world.fail(why);
            }
        }
        if degraded {
            world.met("degraded point");
        }
        if degraded && !bad {
            return world.fail(format!("point {slot} is called degraded, and every sector could be read all the time"));
        }
        quiet::on_point(world, slot, cut.at_ns, layers, &images);
        let ledger_ms = self.clock.ms;
        if let Some(digest) = self.ledger().digest_at(slot).filter(|_| world.plan.cascades > 0) {
            self.ever.insert(LedgerPosition { slot, digest }, images.clone());
        }
        self.points.insert(slot, PointTruth { images, degraded, at_us: cut.at_ns / 1000, ledger_ms });
    }

    fn compare(&self, site: &Site, volume: usize, bytes: u64, cut: &Cut, degraded: bool) -> Result<(), String> {
        let truth = site.oracle.borrow();
        if cut.attach == truth.attach()
            && site.source_alive.get()
            && let Some(tag) = truth.in_flight_upto(volume, cut.epoch).first()
        {
            return Err(format!("write w{tag} of that cut has not completed"));
        }
        let want = truth.image(volume, cut.attach, cut.epoch);
        let meddled = site.backings.borrow()[volume].meddled;
        if bytes != (want.len() * SECTOR) as u64 {
            return Err(format!("the record says that it has {bytes} bytes; it had {}", want.len() * SECTOR));
        }
        for (sector, (got, want)) in self.heads[volume].iter().zip(&want).enumerate() {
            match got {
                Published::Value(got) if got == want => {}
                // Until a verify has found it.
                _ if meddled && truth.is_tampered(volume, sector) => {}
                Published::Unreadable if degraded && self.was_bad(site, volume, sector) => {}
                Published::Unreadable if degraded => {
                    return Err(format!("sector {sector} is called unreadable, and could be read all the time"));
                }
                Published::Unreadable => {
                    return Err(format!("sector {sector} is unreadable and the point is not called degraded"));
                }
                Published::Absent => return Err(format!("sector {sector} was never published; the cut holds {}", show(want))),
                Published::Value(got) => {
                    return Err(format!("sector {sector} holds {}; the cut holds {}", show(got), show(want)));
                }
            }
        }
        Ok(())
    }

    /// Whether something of a sector's granule could not be read at some time. (Other sites have disks of their own.)
    fn was_bad(&self, site: &Site, volume: usize, sector: usize) -> bool {
        let first = sector / GRANULE_SECTORS * GRANULE_SECTORS;
        site.no > 0 || self.ever_cloned || site.disks[volume].borrow().was_bad(first..first + GRANULE_SECTORS)
    }

    /// "Nothing changed up to T": everything acknowledged by T is in what is published.
    fn check_quiet(&self, world: &World, id: VolumeId, t: &CutTime) {
        let Some(volume) = world.volume_of(id) else { return };
        let sites = world.sites();
        // Of a machine that was put back since, nothing is known any more.
        let of_boot = sites.iter().find(|s| s.boot.get() == t.boot);
        let Some(site) = of_boot.or_else(|| sites.first().filter(|_| !self.ever_cloned)) else { return };
        if let Err(why) = site.oracle.borrow().holds_by(volume, &self.heads[volume], t.mono_ns / 1000) {
            world.fail(format!("L10: a heartbeat says that nothing of v{volume} changed up to {} ns, but {why}", t.mono_ns));
        }
    }

    /// A lag was reported: everything acknowledged before that must be in the newest point, or a heartbeat says so.
    pub fn check_lag(&self, world: &World, site: &Site, volume: usize, lag_us: u64) {
        let by_us = world.now_us.get().saturating_sub(lag_us);
        let newest = self.points.iter().rev().find_map(|(slot, p)| Some((slot, p.images.get(&volume)?)));
        let Some((slot, image)) = newest else {
            return world.fail(format!("L10: v{volume} has no point, and a lag of {lag_us} us is reported"));
        };
        if let Err(why) = site.oracle.borrow().holds_by(volume, image, by_us) {
            world.fail(format!("L10: lag of v{volume} is said to be {lag_us} us; but the newest point ({slot}): {why}"));
        }
    }

    /// Looks at everything that may have changed.
    pub fn look<'a>(&mut self, world: &World, sources: impl Iterator<Item = &'a Rc<Source>>, receiver: Option<&Receiver>) {
        if world.bad().is_some() {
            return;
        }
        self.check_clean(world);
        self.looked_at += 1;
        if self.looked_at.is_multiple_of(16) {
            for source in sources {
                let site = source.site();
                for (volume, lag_us) in source.reported_lag() {
                    if site.tainted.borrow()[volume].is_none() {
                        self.check_lag(world, site, volume, lag_us);
                    }
                }
                world.check(source.within_limits());
            }
            if let Some(receiver) = receiver {
                world.check(receiver.within_limits());
            }
        }
        if self.looked_at.is_multiple_of(64) {
            self.check_points(world);
        }
    }

    /// L2.
    fn check_clean(&mut self, world: &World) {
        for site in world.sites() {
            for volume in 0..world.volumes() {
                // Where the loss of tracking is on record, every region counts as dirty.
                let lost = site.state_dir.borrow()[volume].tracking_lost;
                // What somebody did while nobody served it is seen by the next attach.
                let in_doubt = |b: &crate::site::Backing| b.meddled || b.passed;
                let lost = lost || in_doubt(&site.backings.borrow()[volume]) || self.loss_is_on_record(world, &site, volume);
                if lost || site.tainted.borrow()[volume].is_some() {
                    continue;
                }
                let changes = (site.disks[volume].borrow().changes(), site.maps[volume].borrow().changes());
                let now = (changes.0, changes.1, self.ledger().next_slot().0);
                if self.seen.insert((site.no, volume), now) != Some(now) {
                    world.check(self.check_clean_volume(world, &site, volume));
                }
            }
        }
    }

    /// The ledger says above the position in the volume's header that tracking was lost: whoever attaches compares everything.
    fn loss_is_on_record(&self, world: &World, site: &Site, volume: usize) -> bool {
        let lost = self.ledger().volume(world.names.ids[volume]).and_then(|v| v.tracking_lost());
        let position = site.start.borrow()[volume].position;
        lost.is_some_and(|lost| position.is_none_or(|p| p.slot < lost))
    }

    fn check_clean_volume(&self, world: &World, site: &Site, volume: usize) -> Result<(), String> {
        let disk = site.disks[volume].borrow();
        let geometry = site.geometry(volume);
        let sectors_per_region = (geometry.region_bytes() as usize) / SECTOR;
        for region in geometry.all_regions().iter() {
            let first = region.0 as usize * sectors_per_region;
            let last = (first + sectors_per_region).min(geometry.volume_bytes() as usize / SECTOR);
            let differs = (first..last).find(|&s| {
                let Published::Value(published) = self.heads[volume][s] else { return true };
                match disk.certain(s) {
                    Some(value) => value != published,
                    None => disk.candidates(s).0 != [&published[..]],
                }
            });
            let Some(sector) = differs else { continue };
            if let Err(how) = source::bit_surely_durable(world, site, volume, region) {
                let (may, _) = disk.candidates(sector);
                let may: Vec<String> = may.iter().map(|v| show((*v).try_into().expect("a sector"))).collect();
                let published = show_published(&self.heads[volume][sector]);
                return Err(format!(
                    "L2 false-clean: v{volume} sector {sector} (region {region}) of site {} may hold {may:?}, published is {published}; {how}",
                    site.no
                ));
            }
        }
        Ok(())
    }

    /// L5.
    pub fn check_points(&self, world: &World) {
        for (slot, point) in self.ledger().points() {
            let Some(truth) = self.points.get(slot) else {
                return world.fail(format!("a point at slot {slot} that was never judged"));
            };
            for (&volume, image) in &truth.images {
                match parts::read_image(world, &self.group, volume, Some(*slot)) {
                    Ok(read) if read == *image => {}
                    Ok(read) => {
                        let s = read.iter().zip(image).position(|(a, b)| a != b).unwrap_or(0);
                        let (now, was) = (show_published(&read[s]), show_published(&image[s]));
                        return world.fail(format!("L5: point {slot} v{volume} sector {s} reads {now} now and was {was}"));
                    }
                    Err(why) => return world.fail(format!("L5: point {slot} of v{volume} cannot be read: {why}")),
                }
            }
            if point.degraded != truth.degraded {
                return world.fail(format!("L5: point {slot} changed its mind about being degraded"));
            }
        }
        for volume in 0..self.heads.len() {
            match parts::read_image(world, &self.group, volume, None) {
                Ok(read) if read == self.heads[volume] => {}
                Ok(_) => return world.fail(format!("L5: the head image of v{volume} is not what was published")),
                Err(why) => return world.fail(format!("L5: the head image of v{volume} cannot be read: {why}")),
            }
        }
        self.check_policy(world);
    }

    fn check_policy(&self, world: &World) {
        let keep = world.plan.keep as usize;
        for volume in 0..self.heads.len() {
            let good = self.points.iter().rev().filter(|(_, p)| !p.degraded && p.images.contains_key(&volume));
            for (slot, _) in good.take(keep) {
                if !self.ledger().points().contains_key(slot) {
                    return world.fail(format!("L5: v{volume} must keep point {slot}, one of its newest {keep} good ones"));
                }
            }
        }
        for (slot, point) in &self.points {
            let young = self.clock.ms - point.ledger_ms < world.plan.span_ms;
            if young && !self.ledger().points().contains_key(slot) {
                let age = self.clock.ms - point.ledger_ms;
                return world
                    .fail(format!("L5: point {slot} is gone at an age of {age} ms; the span is {} ms", world.plan.span_ms));
            }
        }
        for slot in world.pinned.borrow().values() {
            if !self.ledger().points().contains_key(slot) {
                return world.fail(format!("L5: pinned point {slot} is gone"));
            }
        }
    }

    /// The newest point that holds a volume.
    pub fn newest_point(&self, volume: usize) -> Option<Slot> {
        self.points.iter().rev().find(|(_, p)| p.images.contains_key(&volume)).map(|(slot, _)| *slot)
    }

    /// The newest claim of a volume.
    pub fn term(&self, world: &World, volume: usize) -> Option<Term> {
        self.ledger().volume(world.names.ids[volume]).map(|known| known.term())
    }

    /// Everything was published at some time.
    pub fn is_synced(&self, world: &World) -> bool {
        let home = world.home();
        let sectors = |v: usize| home.geometry(v).volume_bytes() as usize / SECTOR;
        self.heads.iter().enumerate().all(|(v, head)| head[..sectors(v)].iter().all(|p| *p != Published::Absent))
    }

    /// What is published of a sector.
    pub fn published(&self, volume: usize, sector: usize) -> Published {
        self.heads[volume][sector]
    }

    /// From now on a new point on every volume is wanted.
    pub fn heal_begins(&mut self, _world: &World) {
        self.healed.fill(false);
    }

    /// Published and disk are the same, and every volume has a point of after the healing began.
    pub fn converged(&self, world: &World) -> Result<(), String> {
        let home = world.main();
        for volume in (0..self.heads.len()).filter(|v| home.absent.get() != Some(*v)) {
            if !self.healed[volume] {
                return Err(format!("v{volume} has no new point"));
            }
            let image = home.image(volume);
            let same = |s: usize| {
                let lost = self.heads[volume][s] == Published::Unreadable && self.is_dead(&home, volume, s);
                lost || self.heads[volume][s] == Published::Value(image[s])
            };
            if let Some(s) = (0..image.len()).find(|&s| !same(s)) {
                let published = show_published(&self.heads[volume][s]);
                return Err(format!("v{volume} sector {s} holds {}, published is {published}", show(&image[s])));
            }
        }
        Ok(())
    }

    /// Whether something of a sector's granule is dead.
    fn is_dead(&self, site: &Site, volume: usize, sector: usize) -> bool {
        let first = sector / GRANULE_SECTORS * GRANULE_SECTORS;
        (first..first + GRANULE_SECTORS).any(|s| site.disks[volume].borrow().is_dead(s))
    }

    /// What only the end can show.
    pub fn final_checks(&self, world: &World, receiver: Option<&Receiver>) {
        if world.bad().is_some() {
            return;
        }
        self.check_points(world);
        let policy = world.policy();
        // By time, a record that came a moment ago may have made one more too old.
        if let Some(receiver) = receiver.filter(|_| policy.span_ms == 0) {
            world.check(receiver.nothing_grew(self.ledger(), &policy));
        }
    }

    /// What a point that was published holds of a volume; for tests.
    pub fn point_times(&self) -> impl Iterator<Item = (Slot, u64)> + '_ {
        self.points.iter().map(|(slot, p)| (*slot, p.at_us))
    }
}

/// Lays a run over an image of sectors.
pub fn put(image: &mut [Published], geometry: &Geometry, run: farside_region::GranuleRun, content: &Content) {
    let bytes = geometry.bytes_of(run);
    let first = bytes.offset.0 as usize / SECTOR;
    for i in 0..bytes.len as usize / SECTOR {
        image[first + i] = match content {
            Content::Zero => Published::Value([0; SECTOR]),
            Content::Unreadable => Published::Unreadable,
            Content::Data(data) => Published::Value(data[i * SECTOR..(i + 1) * SECTOR].try_into().expect("a sector")),
        };
    }
}

fn show_published(published: &Published) -> String {
    match published {
        Published::Absent => "nothing".to_owned(),
        Published::Unreadable => "unreadable".to_owned(),
        Published::Value(value) => show(value),
    }
}

fn describe(world: &World, body: &Body) -> String {
    let name = |id| world.volume_of(id).map_or_else(|| "v?".to_owned(), |v| format!("v{v}"));
    match body {
        Body::Claim(c) => format!("claim {} looked {:?}", name(c.volume.id), c.looked.map(|s| s.0)),
        Body::Layers(l) => {
            let members: Vec<_> =
                l.members.iter().map(|m| format!("{} {}.{}", name(m.key.volume), m.key.term, m.key.seq)).collect();
            format!("{:?} {}", l.kind, members.join(", "))
        }
        Body::Heartbeat(h) => format!("heartbeat up to {} us", h.t.mono_ns / 1000),
        Body::Prune(p) => format!("prune {:?}", p.points.iter().map(|s| s.0).collect::<Vec<_>>()),
        Body::Pin(p) => format!("pin {}", p.point),
        other => format!("{other:?}"),
    }
}
