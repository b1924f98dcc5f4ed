//! A compactor, as small as it can be: it lays neighbouring parts of an interval together, by chance and not because it is worth it, and
//! decrees away what others left.
//!
//! What belongs here is the order of durable steps: the new part is in the store before its record is submitted, and what it wrote in vain
//! goes only after a decree. Anything may happen between two steps: a crash, prunes, records of others, another compactor. What is
//! visible of the old parts the product's own code says.

use std::collections::BTreeMap;
use std::rc::Rc;

use farside_layer::{Compression, Encoder, PartId, PartWriter};
use farside_ledger::{Body, Decree, Map, PartEntry, PrunedParts};
use farside_region::{Geometry, GranuleIndex, GranuleRun, LayerKey, MergeId, RegionSet, Slot};
use farside_replication::target::Event;
use farside_store::{Content as Kind, LaidParts, Part, PartName, PartRuns};

use super::{RESERVE_BYTES, Receiver, layer_key};
use crate::exec::Steps;
use crate::parts::{self, Content};
use crate::world::SegmentKey;

impl Receiver {
    /// Merges now and then.
    pub(super) async fn compacts(self: Rc<Self>) {
        let steps = self.world.steps();
        let mut next = 0;
        loop {
            steps.until(|| self.world.now_us.get() >= next).await;
            self.decree_what_came_to_nothing();
            if let Some((key, map)) = self.merge_something(&steps).await {
                // It may have been overtaken meanwhile, or be overtaken on its way.
                if self.group.borrow().state().would_be_merged(&map) {
                    self.submit(Body::Map(map));
                    self.merging.borrow_mut().insert(key, Some(self.submissions.get()));
                } else {
                    self.world.met("a merge is overtaken");
                    self.merging.borrow_mut().remove(&key);
                }
            }
            let wait = self.world.rng.borrow_mut().below(60_000) as u64;
            next = self.world.now_us.get() + 5_000 + wait;
            steps.pause().await;
        }
    }

    /// What was submitted has its verdict.
    pub(super) fn merge_submitted(&self, submission: u64) {
        self.merging.borrow_mut().retain(|_, of| *of != Some(submission));
    }

    fn decree_what_came_to_nothing(&self) {
        let (group, merging) = (self.group.borrow(), self.merging.borrow());
        let store = self.world.store.borrow();
        let keys = store.names().map(|name| layer_key(&self.world, name));
        let over = keys.filter(|key| group.state().may_be_merged(key) && !merging.contains_key(key));
        let merges: Vec<_> = over.filter_map(|key| Some((key.volume, key.merge()?))).collect();
        drop(store);
        let waits = self.inbox.borrow().iter().any(|event| matches!(event, Event::Submit { .. }));
        if !merges.is_empty() && !waits {
            self.world.met("a merge is decreed away");
            self.submit(Body::Decree(Decree { merges }));
        }
    }

    /// Writes a part that could take the place of some.
    async fn merge_something(&self, steps: &Steps) -> Option<(LayerKey, Map)> {
        let (volume, point, interval, chosen) = self.choose()?;
        steps.pause().await;
        let id = self.world.names.ids[volume];
        let next = self.group.borrow().state().next_slot();
        let key =
            LayerKey::of_merge(id, MergeId::new(next, u64::from_le_bytes(*self.world.rng.borrow_mut().bytes16().first_chunk()?)));
        let geometry = self.shape_at(volume, point)?;
        let mut laid = LaidParts::default();
        for part in &interval {
            // Pruned meanwhile, or merged: then it came too late.
            let Ok(PartRuns::Known(runs)) = parts::runs(&self.world, part.name.layer, part.name.number) else { return None };
            laid.lay(part, &runs, false);
        }
        let (mut writer, mut regions) = (
            PartWriter::new(PartId { key, part: 0, geometry }, &self.world.names.digest_key(id), Encoder::new(Compression::Off)),
            RegionSet::new(),
        );
        for extent in laid.needed(&chosen) {
            let part = &interval[chosen.start + extent.part.0 as usize];
            let unpacked = parts::segment(&self.world, part.name.layer, part.name.number).ok()?;
            regions.insert_range(geometry.regions_of(extent.run));
            match extent.content {
                Kind::Zero => writer.push_zero(extent.run).ok()?,
                Kind::Unreadable => writer.push_unreadable(extent.run).ok()?,
                Kind::Data => {
                    for granule in extent.run.start.0..extent.run.end().0 {
                        let one = GranuleRun { start: GranuleIndex(granule), count: 1 };
                        let (run, content) = unpacked.iter().rev().find(|(run, _)| run.overlaps(&one))?;
                        let shape = self.world.shape(volume, part.name.layer.term);
                        let Content::Data(data) = parts::cut(content, &shape, *run, one) else { return None };
                        // A volume that has grown had a last granule that was short.
                        writer.push_data(one.start, &data).ok()?;
                    }
                }
            }
        }
        let mut bytes = writer.take_chunk();
        let (tail, summary, _) = writer.finish();
        bytes.extend(tail);
        // It takes no room that a source was granted, or that is kept back.
        let room = self.world.store_free().is_none_or(|free| free >= 2 * RESERVE_BYTES + bytes.len() as u64);
        if self.world.store_is_full() || !room {
            self.world.met("a merge has no room");
            return None;
        }
        self.merging.borrow_mut().insert(key, None);
        steps.pause().await; // a crash here leaves nothing
        self.world.note_shape(volume, key.term, geometry);
        let name: SegmentKey = (volume, key.term.0, key.seq.0, 0);
        self.world.store.borrow_mut().link(name, bytes);
        self.world.met("a merge is written");
        self.world.say(|| format!("merge v{volume} {key} of {} parts up to point {point} is written", chosen.len()));
        steps.pause().await; // and here a part that no record names
        if self.world.chance(0.2) {
            let stalled_until = self.world.now_us.get() + 400_000;
            steps.until(|| self.world.now_us.get() >= stalled_until).await;
        }
        let mut old: BTreeMap<LayerKey, Vec<u32>> = BTreeMap::new();
        interval[chosen].iter().for_each(|part| old.entry(part.name.layer).or_default().push(part.name.number));
        let map = Map {
            volume: id,
            id: key.merge()?,
            point,
            parts: old.into_iter().map(|(layer, parts)| PrunedParts { layer, parts }).collect(),
            new: vec![PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest }],
            regions,
        };
        Some((key, map))
    }

    /// Neighbours of an interval: the volume, the point that ends it, its parts, and which of them.
    fn choose(&self) -> Option<(usize, Slot, Vec<Part>, std::ops::Range<usize>)> {
        let group = self.group.borrow();
        let mut rng = self.world.rng.borrow_mut();
        let volume = rng.below(self.world.volumes());
        let id = self.world.names.ids[volume];
        let points = group.state().points_of(id);
        if points.is_empty() {
            return None;
        }
        let point = rng.pick(&points);
        let after = group.state().interval(id, point)?;
        let newest = group.state().volume(id)?.last_layer().map(|layer| layer.key);
        let born = |part: &Part| part.born <= point && after.is_none_or(|after| part.born > after);
        let of_volume = group.parts().iter().map(|(_, part)| part).filter(|part| part.name.layer.volume == id);
        let interval: Vec<Part> = of_volume.filter(|part| born(part)).cloned().collect();
        let free = interval.iter().position(|part| Some(part.name.layer) == newest).unwrap_or(interval.len());
        if free < 2 {
            return None;
        }
        let first = rng.below(free - 1);
        let count = 2 + rng.below(free - first - 1);
        Some((volume, point, interval, first..first + count))
    }

    fn shape_at(&self, volume: usize, point: Slot) -> Option<Geometry> {
        let (group, id) = (self.group.borrow(), self.world.names.ids[volume]);
        let member = group.state().points().get(&point)?.members.iter().find(|member| member.key.volume == id)?;
        self.world.names.geometry[volume].resized(member.volume_bytes).ok()
    }

    /// Whether a merge is under way, or something of one is left.
    pub(super) fn is_merging(&self) -> bool {
        let group = self.group.borrow();
        let of_merge = |name: &SegmentKey| PartName { layer: layer_key(&self.world, name), number: name.3 };
        let left = self.world.store.borrow().names().any(|name| group.state().may_be_merged(&of_merge(name).layer));
        left || !self.merging.borrow().is_empty()
    }
}
