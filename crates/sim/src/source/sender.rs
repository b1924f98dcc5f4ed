//! The sender of one volume: reads frozen granules under the shim's rules, compares, digests, and makes parts of them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use farside_layer::{Compression, Encoder, PartId, PartWriter, granule_digest, is_zero};
use farside_region::{GranuleIndex, GranuleRun, GranuleSet, RegionIndex, RegionSet};
use farside_replication::source::{Event, PartRead, ReadPart, SentPart};
use farside_shim::{FrozenReader, Next, ReadVerdict};
use farside_wire::{DIGEST_GRANULES_MAX, DigestRun, PART_HEADER_BYTES, PartHeader};

use crate::disk::Done;
use crate::net::{ConnId, Load, To};
use crate::world::SECTOR;

use super::{Item, Source, Vol};

/// A granule as it was read; `None` = could not be.
type Granule = Option<Vec<u8>>;

/// What was given up.
struct Aborted;

/// One part on its way.
struct Part {
    writer: PartWriter,
    taken: u64,
    left: GranuleSet,
    unreadable: GranuleSet,
    zero_regions: RegionSet,
    regions: RegionSet,
}

impl Source {
    pub(super) async fn sender(self: Rc<Self>, v: usize) {
        let steps = self.world.steps();
        let vol = &self.volumes[v];
        let mut encoder = Some(Encoder::new(if v == 0 { Compression::Zstd(1) } else { Compression::Off }));
        loop {
            steps.pause().await;
            steps.until(|| vol.job.borrow().is_some()).await;
            let job = vol.job.borrow().clone().expect("just seen");
            let no = vol.job_no.get();
            let id = PartId { key: job.key, part: job.part, geometry: self.site.geometry(v) };
            self.world.note_shape(v, job.key.term, id.geometry);
            let mut part = Part {
                writer: PartWriter::new(id, &job.digest_key, encoder.take().expect("given back")),
                taken: 0,
                left: GranuleSet::new(),
                unreadable: GranuleSet::new(),
                zero_regions: RegionSet::new(),
                regions: RegionSet::new(),
            };
            let read = self.read_part(vol, &job, no, &mut part).await;
            let empty = part.writer.is_empty();
            let (bytes, summary, back) = part.writer.finish();
            encoder = Some(back);
            let Some((next, done, ended)) = read.ok().filter(|_| vol.job_no.get() == no) else {
                self.say(|| format!("v{v} sender gives up part {}.{}.{}", job.key.term, job.key.seq, job.part));
                continue;
            };
            vol.set_job(None);
            let sent = (!empty).then_some(SentPart { bytes: summary.bytes, footer_digest: summary.footer_digest });
            if sent.is_some() {
                let mut stream = PartHeader { key: job.key, part: job.part }.encode().to_vec();
                debug_assert_eq!(stream.len(), PART_HEADER_BYTES);
                stream.extend_from_slice(&bytes);
                self.world.net.borrow_mut().send(To::Receiver, ConnId(job.connection), Load::Part(stream));
            }
            self.say(|| {
                format!(
                    "v{v} part {}.{}.{}: {} granules, sent {:?}, next region {next}, done {done}",
                    job.key.term,
                    job.key.seq,
                    job.part,
                    part.taken,
                    sent.map(|s| s.bytes)
                )
            });
            let read = PartRead {
                connection: job.connection,
                key: job.key,
                part: job.part,
                sent,
                next,
                done,
                cut_held: false,
                granules: part.taken,
                left: part.left,
                unreadable: part.unreadable,
                zero_regions: part.zero_regions,
            };
            self.inbox.borrow_mut().push_back(Item::Part { read, epoch: job.epoch, ended });
        }
    }

    /// Whole regions upwards, until something ends the part: (next region, done, the volume's part of the epoch has ended).
    async fn read_part(&self, vol: &Vol, job: &ReadPart, no: u64, part: &mut Part) -> Result<(RegionIndex, bool, bool), Aborted> {
        let geometry = self.site.geometry(vol.index);
        let end = RegionIndex(geometry.region_count());
        let until = job.until.unwrap_or(end);
        let mut todo = (*job.set).clone();
        for r in (0..job.from.0).chain(until.0..end.0) {
            todo.remove_region(RegionIndex(r));
        }
        let mut reader = FrozenReader::new(vol.shim.clone(), job.epoch, todo);
        let mut at = job.from;
        loop {
            let Some(region) = job.set.next_region(at).filter(|r| *r < until) else {
                let ended = job.until.is_none_or(|u| job.set.next_region(u).is_none());
                return Ok((until.max(at), true, ended));
            };
            let full = part.writer.ready_bytes() as u64 >= job.bytes_max || vol.finish.get();
            let mut ranges = part.regions.clone();
            ranges.insert(region);
            if !part.regions.is_empty() && (full || ranges.range_count() > job.ranges_max) {
                return Ok((region, false, false));
            }
            self.read_region(vol, job, no, part, &mut reader, region).await?;
            part.regions.insert(region);
            at = RegionIndex(region.0 + 1);
        }
    }

    async fn read_region(
        &self,
        vol: &Vol,
        job: &ReadPart,
        no: u64,
        part: &mut Part,
        reader: &mut FrozenReader,
        region: RegionIndex,
    ) -> Result<(), Aborted> {
        let steps = self.world.steps();
        let geometry = self.site.geometry(vol.index);
        let mut found: BTreeMap<u64, Granule> = BTreeMap::new();
        let gone = || vol.job_no.get() != no;
        let holes = self.holes_asked_too_early(vol, geometry.region_run(region));
        loop {
            steps.pause().await;
            if gone() {
                return Err(Aborted);
            }
            let rung = vol.sender_bell.rung();
            vol.waits_for_disk.set(false);
            match reader.next(RegionIndex(region.0 + 1)) {
                Next::End => break,
                Next::Left(run) => {
                    self.world.met("a pass leaves out what was marked again");
                    part.left.insert_run(&geometry, run);
                    self.say(|| format!("v{} leaves out granules {}+{}", vol.index, run.start, run.count));
                }
                Next::Wait => {
                    vol.waits_for_disk.set(true);
                    steps.until(|| vol.sender_bell.rung() != rung || gone()).await;
                }
                Next::Held(held) => {
                    self.say(|| {
                        format!("v{} takes granules {}+{} from the side buffer", vol.index, held.run.start, held.run.count)
                    });
                    self.note(&mut found, held.run, held.data.as_deref(), &geometry);
                }
                Next::Read(run) => {
                    vol.waits_for_disk.set(true);
                    let data = self.read_run(vol, run).await;
                    if reader.read_done(run) == ReadVerdict::Accept {
                        data.into_iter().for_each(|(granule, content)| {
                            let hole = holes.contains(&granule);
                            found.insert(granule, content.map(|data| if hole { vec![0; data.len()] } else { data }));
                        });
                    }
                }
            }
        }
        part.taken += found.len() as u64;
        let whole = geometry.region_run(region);
        let zero = |g: &Granule| g.as_ref().is_some_and(|d| is_zero(d));
        if found.len() as u64 == whole.count && found.values().all(zero) {
            part.zero_regions.insert(region);
        }
        for (granule, _) in found.iter().filter(|(_, g)| g.is_none()) {
            part.unreadable.insert_run(&geometry, GranuleRun { start: GranuleIndex(*granule), count: 1 });
        }
        if job.compare.contains(region) {
            self.leave_out_equal(vol, job, no, whole, &mut found).await?;
        }
        for (granule, content) in found {
            let start = GranuleIndex(granule);
            let pushed = match content {
                Some(data) => part.writer.push_read(start, &data),
                None => part.writer.push_unreadable(GranuleRun { start, count: 1 }),
            };
            pushed.expect("small parts have room");
        }
        Ok(())
    }

    /// A mistake (T9): which granules are holes is asked before they are claimed or drained.
    fn holes_asked_too_early(&self, vol: &Vol, run: GranuleRun) -> BTreeSet<u64> {
        if !farside_region::mutation::on("T9 holes asked before the claim") {
            return BTreeSet::new();
        }
        let geometry = self.site.geometry(vol.index);
        let image = self.site.disks[vol.index].borrow().image();
        let is_hole = |granule: &u64| {
            let bytes = geometry.bytes_of(GranuleRun { start: GranuleIndex(*granule), count: 1 });
            is_zero(&image[bytes.offset.0 as usize..][..bytes.len as usize])
        };
        (run.start.0..run.end().0).filter(is_hole).collect()
    }

    fn note(
        &self,
        found: &mut BTreeMap<u64, Granule>,
        run: GranuleRun,
        data: Option<&[u8]>,
        geometry: &farside_region::Geometry,
    ) {
        let granule_bytes = geometry.granule_bytes() as usize;
        for i in 0..run.count {
            let content = data.map(|d| d[i as usize * granule_bytes..d.len().min((i as usize + 1) * granule_bytes)].to_vec());
            found.insert(run.start.0 + i, content);
        }
    }

    /// A run from the backing; where it cannot be read, granule by granule.
    async fn read_run(&self, vol: &Vol, run: GranuleRun) -> BTreeMap<u64, Granule> {
        let geometry = self.site.geometry(vol.index);
        let mut found = BTreeMap::new();
        match self.read_bytes(vol, run).await {
            Some(data) => self.note(&mut found, run, Some(&data), &geometry),
            None => {
                for granule in run.start.0..run.end().0 {
                    let one = GranuleRun { start: GranuleIndex(granule), count: 1 };
                    let data = if run.count > 1 { self.read_bytes(vol, one).await } else { None };
                    self.note(&mut found, one, data.as_deref(), &geometry);
                }
            }
        }
        found
    }

    pub(super) async fn read_bytes(&self, vol: &Vol, run: GranuleRun) -> Option<Vec<u8>> {
        let bytes = self.site.geometry(vol.index).bytes_of(run);
        debug_assert!(bytes.len.is_multiple_of(SECTOR as u64));
        let op = self.site.disks[vol.index].borrow_mut().read(bytes.offset.0, bytes.len as usize);
        match self.site.backing(&self.world, vol.index, op).await {
            Done::Read(data) => Some(data),
            _ => None,
        }
    }

    /// Takes out what the newest published layers hold already.
    async fn leave_out_equal(
        &self,
        vol: &Vol,
        job: &ReadPart,
        no: u64,
        run: GranuleRun,
        found: &mut BTreeMap<u64, Granule>,
    ) -> Result<(), Aborted> {
        assert!(run.count <= DIGEST_GRANULES_MAX, "a region of the simulator is small");
        vol.digests.replace(None);
        self.push(Event::DigestsWanted { connection: job.connection, key: job.key, part: job.part, run });
        let gone = || vol.job_no.get() != no;
        self.world.steps().until(|| vol.digests.borrow().is_some() || gone()).await;
        let Some((start, runs)) = vol.digests.take().filter(|_| !gone()) else { return Err(Aborted) };
        let mut at = start;
        for run in runs {
            match &run {
                DigestRun::Zero { granules } => {
                    for g in at..at + granules {
                        if found.get(&g).and_then(Option::as_ref).is_some_and(|d| is_zero(d)) {
                            found.remove(&g);
                        }
                    }
                }
                DigestRun::Data(digests) => {
                    for (g, digest) in (at..).zip(digests) {
                        let same = |d: &Vec<u8>| {
                            granule_digest(job.digest_key.clear().expect("not encrypted"), GranuleIndex(g), d) == *digest
                        };
                        if found.get(&g).and_then(Option::as_ref).is_some_and(same) {
                            found.remove(&g);
                        }
                    }
                }
                DigestRun::Absent { .. } | DigestRun::Unreadable { .. } => {}
            }
            at += run.granules();
        }
        Ok(())
    }
}
