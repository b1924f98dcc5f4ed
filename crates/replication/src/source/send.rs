//! Reading parts, saying what they became, and hearing what was made of them (§4.4, T1, T10).

use std::collections::BTreeMap;

use farside_ledger::LayerKind;
use farside_region::{EpochId, GranuleRun, LayerKey, LedgerPosition, RegionIndex, RegionSet, VolumeId, mutation};
use farside_wire::{DigestAnswer, DigestQuery, EndMember, EpochEnd, Features, LabelledEnd, Published, SourceMessage};

use super::api::{Action, DemoteCause, Nanos, PartRead, ReadPart, Report};
use super::status::PointStatus;
use super::volume::{Layer, Reading, ReadingState, Reclaim, Service, Stage, Volume, above, slot_of};
use super::{Hold, Kind, Link, Phase, Source};

/// At most so many bytes of a part are neither content nor proportional to it: header, footer, frame heads.
const PART_OVERHEAD: u64 = 64 << 10;

/// Whether a layer is still being sent.
fn is_open(volumes: &BTreeMap<VolumeId, Volume>, key: &LayerKey) -> bool {
    volumes.get(&key.volume).is_some_and(|volume| volume.layers.iter().any(|layer| layer.key == *key))
}

impl Source {
    /// Gives every volume's sender something to do, as far as credit goes.
    pub(super) fn read_on(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !matches!(self.link, Link::Up { .. }) {
            return;
        }
        self.judge_line(now, out);
        let mut ids: Vec<VolumeId> =
            self.volumes.values().filter(|v| v.is_checked() && v.reading.is_none()).map(|v| v.id()).collect();
        ids.iter().for_each(|&id| self.begin_slice(now, id, out));
        // What points wait for goes first.
        ids.sort_by_key(|id| self.reads_for_a_pass(*id));
        ids.into_iter().for_each(|id| self.read_next(now, id, out));
    }

    fn reads_for_a_pass(&self, id: VolumeId) -> bool {
        let layer = self.volumes[&id].layers.iter().find(|l| l.stage == Stage::Reading);
        layer.and_then(|l| self.epochs.get(&l.epoch)).is_some_and(|e| e.kind == Kind::Pass)
    }

    /// What the next part of this volume's pass may take of the credit that is left, in bytes. It leaves half to the others,
    /// however little there is: else the first sync of one volume would hold every other's points up, for as long as it takes.
    fn share_of_a_pass(&self, id: VolumeId, left: u64) -> u64 {
        let is_alone = self.volumes.values().all(|v| v.id() == id || !v.takes_part());
        let all = is_alone || mutation::on("a pass takes all the credit");
        if all { left } else { (left / 2).max(self.config.limits.part_bytes / 4).min(left) }
    }

    /// A pass goes on with its next slice when the one before was read.
    fn begin_slice(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let volume = &self.volumes[&id];
        let may = volume.service == Service::Running
            && volume.layers.len() < self.config.limits.unpublished_layers_max
            && !volume.layers.iter().any(|l| l.stage == Stage::Reading);
        let next = volume.frozen.iter().find_map(|(&epoch, f)| Some((epoch, f.next_slice?)));
        if let (true, Some((epoch, from))) = (may, next) {
            self.begin_layer(now, id, epoch, from, out);
        }
    }

    fn read_next(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Link::Up { connection, granted, spent, .. } = self.link else { return };
        let reserved: u64 = self.volumes.values().filter_map(|v| v.reading.as_ref()).map(|r| r.reserved).sum();
        let left = granted.saturating_sub(spent.saturating_add(reserved));
        if left == 0 {
            return; // as for every event until there is more: nothing of the sets is counted
        }
        let limits = self.config.limits;
        let is_pass = self.reads_for_a_pass(id);
        let volume = &self.volumes[&id];
        let Some(layer) = volume.layers.iter().find(|l| l.stage == Stage::Reading) else { return };
        let Some(frozen) = volume.frozen.get(&layer.epoch) else { return };
        let slice_left = if is_pass { limits.slice_bytes.saturating_sub(layer.bytes()).max(1) } else { u64::MAX };
        let share =
            if is_pass { self.share_of_a_pass(id, left) } else { share_of_a_cut(volume.granule_bytes(&frozen.set), left) };
        // No dribble of small parts: a layer's record lists them all.
        if share == left && left < limits.part_bytes / 4 {
            return;
        }
        let whole = limits.part_bytes.min(share).min(slice_left);
        let bytes_max = whole.min(self.longest_part(volume, layer, is_pass && layer.until.is_none()));
        // A part has a whole region at least.
        let reserved = bytes_max.max(whole.min(volume.geometry().region_bytes() + PART_OVERHEAD));
        let part = layer.parts();
        let action = ReadPart {
            connection,
            key: layer.key,
            part,
            digest_key: volume.meta.digest_key,
            epoch: layer.epoch,
            set: frozen.set.clone(),
            from: layer.cursor,
            until: layer.until,
            compare: frozen.compare.clone(),
            bytes_max,
            ranges_max: limits.end_ranges_max / 2,
        };
        let (key, state) = (layer.key, ReadingState::Going);
        let volume = self.volumes.get_mut(&id).expect("looked at above");
        volume.reading = Some(Reading { key, part, begun: now, waited: 0, seen_at: now, reserved, state, asked: Vec::new() });
        let (line, volumes) = (&mut self.line, &self.volumes);
        line.begins(key, bytes_max, |key| is_open(volumes, key));
        out.push(Action::ReadPart(Box::new(action)));
    }

    /// What the connection before this one brought is known when every volume of which parts were under way has heard what is there. Of one that does not
    /// hear it in time nothing is expected.
    fn judge_line(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Link::Up { since, .. } = self.link else { return };
        if !self.line.is_in_doubt() {
            return;
        }
        let may_hear = |v: &Volume| v.is_active() && !v.is_checked() && v.layers.iter().any(Layer::is_in_doubt);
        let is_patient = now < since.saturating_add(self.config.limits.recheck);
        if is_patient && self.volumes.values().any(may_hear) {
            return;
        }
        let (line, volumes) = (&mut self.line, &self.volumes);
        if let Some(bytes) = line.judge(|key| is_open(volumes, key)) {
            out.push(Action::Report { volume: None, what: Report::ShorterParts { bytes } });
        }
    }

    /// How long the next part of a layer may be, as far as the line goes. A layer that ends with no slice has room for all of it all the same: its
    /// record lists its parts.
    fn longest_part(&self, volume: &Volume, layer: &Layer, ends_with_slice: bool) -> u64 {
        let Some(bytes) = self.line.holds().filter(|_| !mutation::on("parts are as long on a line that breaks under them"))
        else {
            return u64::MAX;
        };
        let Some(frozen) = volume.frozen.get(&layer.epoch).filter(|_| !ends_with_slice) else { return bytes };
        let from = |region| volume.granule_bytes(&above(&frozen.set, region));
        let left = from(layer.cursor).saturating_sub(layer.until.map_or(0, from));
        let parts_left = self.config.limits.layer_parts_max.saturating_sub(layer.parts()).max(1);
        bytes.max(left.div_ceil(u64::from(parts_left)))
    }

    /// A slice that takes too long ends with the part it is at. Not one that has sent nothing to a gateway that is full: what is
    /// equal there is one record, and each takes room that it does not have.
    ///
    /// Of a layer whose end is no slice's (a cut, also one that was demoted, and what is read again) only the part ends. What was sent
    /// of a part is lost with its connection: over a slow line that breaks every few minutes no whole one would ever arrive. Of one that breaks sooner
    /// `line` takes care.
    pub(super) fn end_slow_slices(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.end_waiting_slices(now);
        let (slice_time, parts_max) = (self.config.limits.slice_time, self.config.limits.layer_parts_max);
        let is_full = self.is_gateway_full;
        for volume in self.volumes.values_mut() {
            let Some(reading) = &mut volume.reading else { continue };
            let Some(layer) = volume.layers.iter().find(|l| l.key == reading.key) else { continue };
            let is_pass = self.epochs.get(&layer.epoch).is_some_and(|e| e.kind == Kind::Pass);
            let ends_slice = is_pass && layer.until.is_none();
            let is_slow = now >= reading.begun.saturating_add(slice_time)
                && layer.parts() < parts_max
                && !mutation::on("a slow part ends of a slice only");
            let late = match ends_slice {
                true => now >= layer.begun.saturating_add(slice_time) || volume.service != Service::Running,
                false => is_slow,
            };
            let spares_records = is_full && layer.bytes() == 0 && volume.service == Service::Running;
            if late && !spares_records && reading.state == ReadingState::Going {
                reading.state = ReadingState::Finishing;
                out.push(Action::FinishPart { key: reading.key, part: reading.part });
            }
        }
    }

    /// A slice of which no part is read waits for credit. What it has sent is published only when it ends, and a gateway whose room is taken by
    /// slices that have not ended has no other way to make some.
    fn end_waiting_slices(&mut self, now: Nanos) {
        if !matches!(self.link, Link::Up { .. }) {
            return;
        }
        let waiting = self.volumes.values().filter(|v| v.is_checked() && v.reading.is_none());
        let keys: Vec<LayerKey> =
            waiting.filter_map(|v| v.layers.iter().find(|l| l.stage == Stage::Reading)).map(|l| l.key).collect();
        keys.iter().for_each(|key| self.end_full_slice(now, key));
    }

    pub(super) fn abort_reading(&mut self, id: VolumeId, out: &mut Vec<Action>) {
        if let Some(reading) = self.volumes.get_mut(&id).and_then(|v| v.reading.as_mut())
            && reading.state != ReadingState::Aborting
        {
            reading.state = ReadingState::Aborting;
            out.push(Action::AbortPart { key: reading.key, part: reading.part });
        }
    }

    pub(super) fn part_aborted(&mut self, key: LayerKey, part: u32) {
        if let Some(volume) = self.volumes.get_mut(&key.volume)
            && volume.reading.as_ref().is_some_and(|r| (r.key, r.part) == (key, part))
        {
            volume.reading = None;
        }
    }

    pub(super) fn part_read(&mut self, now: Nanos, read: &PartRead, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&read.key.volume) else { return };
        if volume.reading.as_ref().is_none_or(|r| (r.key, r.part) != (read.key, read.part)) {
            return;
        }
        volume.reading = None;
        if let (Link::Up { spent, .. }, Some(sent)) = (&mut self.link, read.sent) {
            *spent += sent.bytes;
        }
        if read.sent.is_none() {
            self.line.brings(read.key, 0); // what is equal need not arrive
        }
        let Some(epoch) = volume.layer_mut(&read.key).map(|l| l.epoch) else { return };
        volume.part_read(read, now, self.config.limits.unreadable_retry);
        if read.done {
            self.layer_is_read(&read.key);
        } else {
            self.end_full_slice(now, &read.key);
        }
        let as_cut = read.cut_held || mutation::on("a reset cut re-sent as a point");
        if !as_cut && self.epochs.get(&epoch).is_some_and(|e| e.kind == Kind::Cut) {
            self.demote(now, epoch, DemoteCause::SideBuffer, out);
        }
    }

    /// The whole layer is read: fix where it ends.
    fn layer_is_read(&mut self, key: &LayerKey) {
        let Some(volume) = self.volumes.get_mut(&key.volume) else { return };
        let Some(layer) = volume.layers.iter_mut().find(|l| l.key == *key) else { return };
        let last = volume.frozen.get(&layer.epoch).and_then(|f| f.set.regions().last());
        let end = last.map_or(layer.cursor, |r| layer.cursor.max(RegionIndex(r.0 + 1)));
        layer.until.get_or_insert(end);
        layer.cursor = layer.end();
        layer.stage = Stage::Read;
    }

    /// A slice of a pass ends where it has enough in it, and the next one begins there.
    fn end_full_slice(&mut self, now: Nanos, key: &LayerKey) {
        let limits = self.config.limits;
        let is_full = self.is_gateway_full;
        let volume = self.volumes.get_mut(&key.volume).expect("the caller found it");
        let Some(layer) = volume.layers.iter().find(|l| l.key == *key) else { return };
        let is_pass = self.epochs.get(&layer.epoch).is_some_and(|e| e.kind == Kind::Pass);
        if !is_pass || layer.until.is_some() || layer.cursor == layer.from {
            return;
        }
        let full = layer.bytes() >= limits.slice_bytes
            || (now >= layer.begun.saturating_add(limits.slice_time) && !(is_full && layer.bytes() == 0))
            || volume.service != Service::Running
            || layer.parts() >= limits.layer_parts_max
            || volume.covered(layer).range_count() >= limits.end_ranges_max / 2;
        if !full {
            return;
        }
        let layer = volume.layers.iter_mut().find(|l| l.key == *key).expect("just seen");
        layer.until = Some(layer.cursor);
        layer.stage = Stage::Read;
        let (cursor, epoch) = (layer.cursor, layer.epoch);
        let frozen = volume.frozen.get_mut(&epoch).expect("a layer's epoch is frozen");
        frozen.next_slice = frozen.set.next_region(cursor);
    }

    /// Says every end that is due: kind and members of the group's epoch once, after the last read of every member (T10).
    pub(super) fn say_ends(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !matches!(self.link, Link::Up { .. }) {
            return;
        }
        let ids: Vec<EpochId> = self.epochs.keys().copied().collect();
        for id in ids {
            let alone = mutation::on("T10 a demoted epoch is said per member");
            match self.epochs[&id].kind {
                Kind::Pass => self.say_slices(now, id, out),
                Kind::Demoted if alone => self.say_slices(now, id, out),
                Kind::Demoted => self.say_together(now, id, LayerKind::Fuzzy, out),
                Kind::Cut if self.label_is_pending(id) => {}
                Kind::Cut => self.say_together(now, id, LayerKind::Point, out),
            }
        }
    }

    fn say_slices(&mut self, now: Nanos, id: EpochId, out: &mut Vec<Action>) {
        let due: Vec<LayerKey> = self
            .layers_of(id)
            .filter(|l| l.stage == Stage::Read && self.volumes[&l.key.volume].is_checked())
            .map(|l| l.key)
            .collect();
        for key in due {
            self.say(now, id, LayerKind::Fuzzy, &[key], out);
        }
        let unread = |s: &Self| {
            s.layers_of(id).any(Layer::is_frozen)
                || s.volumes.values().any(|v| v.frozen.get(&id).is_some_and(|f| f.next_slice.is_some()))
        };
        if !unread(self) {
            self.release(id, out);
        }
    }

    fn say_together(&mut self, now: Nanos, id: EpochId, kind: LayerKind, out: &mut Vec<Action>) {
        let ready = |l: &Layer| l.stage != Stage::Reading && self.volumes[&l.key.volume].is_checked();
        let due = self.layers_of(id).any(|l| l.stage == Stage::Read);
        if !due || !self.layers_of(id).all(ready) {
            return;
        }
        let keys: Vec<LayerKey> = self.layers_of(id).map(|l| l.key).collect();
        if mutation::on("kind said per member") {
            keys.iter().for_each(|key| self.say(now, id, kind, &[*key], out));
        } else {
            self.say(now, id, kind, &keys, out);
        }
        self.release(id, out);
    }

    fn say(&mut self, now: Nanos, id: EpochId, kind: LayerKind, keys: &[LayerKey], out: &mut Vec<Action>) {
        let limits = &self.config.limits;
        let share = (limits.end_ranges_max / keys.len().max(1)).max(limits.end_share_min);
        let members: Vec<EndMember> = keys.iter().filter_map(|key| self.end_member(now, key, share)).collect();
        let Some(info) = self.layers_of(id).next().map(|l| l.info) else { return };
        for key in keys {
            let layer = self.layer_mut(key).expect("the caller found it");
            if layer.stage == Stage::Read {
                layer.stage = Stage::Sent;
            }
        }
        let end = EpochEnd { kind, epoch: info, members };
        let label = self.label_of(id).filter(|label| {
            let is_of_cohort = label.consistency.cohort_cut().is_some();
            kind == LayerKind::Point
                && self.features.has(if is_of_cohort { Features::LABELS_OF_COHORTS } else { Features::LABELS })
        });
        self.send(
            match label {
                Some(label) => SourceMessage::LabelledEnd(LabelledEnd { label: *label, end }),
                None => SourceMessage::EpochEnd(end),
            },
            out,
        );
    }

    /// `share`: the ranges that either of the lesser sets may have. Beyond it they say less than is known, never more: fewer
    /// regions are called whole, and more unreadable. (Those that are called so and were read stay so until they are rewritten or compared: to retry them with
    /// the others would end in as many again, as long as the disk is bad.)
    fn end_member(&mut self, now: Nanos, key: &LayerKey, share: usize) -> Option<EndMember> {
        let volume = self.volumes.get_mut(&key.volume)?;
        let layer = volume.layers.iter().find(|l| l.key == *key)?;
        let footers: Vec<[u8; 32]> = layer.reads.iter().filter_map(|r| r.sent).map(|s| s.footer_digest).collect();
        let mut unreadable_regions = RegionSet::new();
        layer.reads.iter().for_each(|r| unreadable_regions.union_with(&r.unreadable));
        let (regions, volume_bytes) = (volume.covered(layer), layer.volume_bytes);
        let whole = volume.covered_whole(layer);
        if unreadable_regions.range_count() > share {
            unreadable_regions.clone_from(&regions);
        }
        let whole_regions = volume.say_whole(&whole, share, now, self.config.limits.unreadable_retry);
        Some(EndMember {
            key: *key,
            parts: footers.len() as u32,
            digest: (self.config.layer_digest)(key, &footers),
            regions,
            whole_regions,
            unreadable_regions,
            volume_bytes,
        })
    }

    fn release(&mut self, id: EpochId, out: &mut Vec<Action>) {
        if let Some(epoch) = self.epochs.get_mut(&id)
            && epoch.hold == Hold::Held
        {
            epoch.hold = Hold::Released;
            out.push(Action::Release { epoch: id });
        }
    }

    pub(super) fn staged(&mut self, keys: &[LayerKey]) {
        for key in keys {
            if let Some(layer) = self.layer_mut(key)
                && layer.stage == Stage::Sent
            {
                layer.stage = Stage::Staged;
                self.staged_unasked = true;
            }
            self.is_there(*key);
            if mutation::on("L7 staged clears")
                && let Some(volume) = self.volumes.get_mut(&key.volume)
            {
                volume.publish(key);
            }
        }
    }

    /// All parts of a layer arrived.
    fn is_there(&mut self, key: LayerKey) {
        if let Some(layer) = self.layer_mut(&key)
            && let Some(bytes) = layer.arrived(layer.parts())
        {
            self.line.brings(key, bytes);
        }
    }

    /// A receiver may let what is staged wait for more of it. Whoever goes on only when it is published says so.
    pub(super) fn ask_to_publish(&mut self, out: &mut Vec<Action>) {
        let up = matches!(self.link, Link::Up { .. }) && self.features.has(Features::PUBLISH);
        if !up || !self.staged_unasked {
            return;
        }
        let waits = |volume: &Volume| {
            volume.is_checked()
                && volume.layers.iter().any(|layer| layer.stage == Stage::Staged)
                && (self.phase == Phase::Draining || self.waits_for_publication(volume))
        };
        if self.volumes.values().any(waits) {
            self.staged_unasked = false;
            self.send(SourceMessage::Publish, out);
        }
    }

    /// Something of this volume waits until nothing is unpublished, or less: a compare, a verify, its first point, the next cut.
    fn waits_for_publication(&self, volume: &Volume) -> bool {
        !volume.compare.is_empty()
            || volume.verify.is_some()
            || volume.newest_point.is_none()
            || self.is_wished_for(volume)
            || volume.layers.len() >= self.config.limits.unpublished_layers_max / 2
    }

    pub(super) fn published(&mut self, now: Nanos, published: &Published, out: &mut Vec<Action>) {
        let mut members = 0;
        for &key in &published.layers {
            let Some(volume) = self.volumes.get(&key.volume) else { continue };
            if volume.held == Some(key.term) && !volume.awaits_fates() {
                members += 1;
                self.is_there(key);
                // † As in a resume: nobody here said its end.
                if self.layer_mut(&key).is_some_and(|layer| layer.stage == Stage::Reading) {
                    self.claim_anew(now, key.volume, Reclaim::Lost);
                    continue;
                }
                self.published_layer(now, key, published.position, published.kind, out);
            }
        }
        if members > 0 {
            let (position, kind) = (published.position, published.kind);
            out.push(Action::Report { volume: None, what: Report::Published { position, kind, members } });
        }
    }

    /// The only thing that lets go of what a layer covered (L7).
    pub(super) fn published_layer(
        &mut self,
        _now: Nanos,
        key: LayerKey,
        position: LedgerPosition,
        kind: LayerKind,
        out: &mut Vec<Action>,
    ) {
        let Some(volume) = self.volumes.get_mut(&key.volume) else { return };
        if volume.held != Some(key.term) {
            return;
        }
        let epoch = volume.layers.iter().find(|l| l.key == key).map(|layer| layer.epoch);
        let touched = volume.layers.iter().find(|l| l.key == key).map(|layer| volume.covered(layer));
        let Some(layer) = volume.publish(&key) else { return };
        touched.iter().for_each(|regions| volume.recorded(position, regions));
        volume.turns = 0;
        volume.point_due = kind == LayerKind::Fuzzy && !mutation::on("hole: no point after the last pass");
        if slot_of(volume.published) < slot_of(Some(position)) {
            volume.published = Some(position);
        }
        if kind == LayerKind::Point {
            let point = PointStatus { position, epoch: layer.info };
            volume.newest_point = Some(point);
            volume.converged();
            let limits = &self.config.limits;
            self.cut_budget = self.cut_budget.saturating_mul(2).min(limits.cut_bytes_max);
            epoch.into_iter().for_each(|epoch| self.wish_published(epoch, point, out));
        }
        if mutation::on("hole: position of the group") {
            for other in self.volumes.values_mut().filter(|v| v.held.is_some()) {
                if slot_of(other.published) < slot_of(Some(position)) {
                    other.published = Some(position);
                }
            }
        }
        self.forget_empty_epochs(out);
    }

    pub(super) fn lost(&mut self, now: Nanos, keys: &[LayerKey]) {
        for key in keys {
            if self.volumes.get(&key.volume).is_some_and(|v| v.held == Some(key.term)) {
                self.claim_anew(now, key.volume, Reclaim::Lost);
            }
        }
    }

    pub(super) fn void(&mut self, now: Nanos, keys: &[LayerKey]) {
        for key in keys {
            let ours = |v: &super::volume::Volume| v.held == Some(key.term) && v.reclaim.is_none();
            if self.volumes.get(&key.volume).is_some_and(ours) {
                self.claim_anew(now, key.volume, Reclaim::Term);
            }
        }
    }

    pub(super) fn digests_wanted(&mut self, key: LayerKey, part: u32, run: GranuleRun, out: &mut Vec<Action>) {
        let id = self.next_request();
        let Some(volume) = self.volumes.get_mut(&key.volume) else { return };
        let Some(reading) = &mut volume.reading else { return };
        if (reading.key, reading.part) != (key, part) {
            return;
        }
        reading.asked.push((id, run));
        self.send(SourceMessage::Digests(DigestQuery { id, volume: key.volume, term: key.term, run }), out);
    }

    /// Asks again what the receiver could not answer.
    pub(super) fn ask_digests_again(&mut self, id: VolumeId, out: &mut Vec<Action>) {
        let Some(reading) = self.volumes.get_mut(&id).and_then(|v| v.reading.as_mut()) else { return };
        let (key, part) = (reading.key, reading.part);
        for (_, run) in std::mem::take(&mut reading.asked) {
            self.digests_wanted(key, part, run, out);
        }
    }

    pub(super) fn digest_answer(&mut self, answer: DigestAnswer, out: &mut Vec<Action>) {
        if self.verify_digests(&answer, out) {
            return;
        }
        let Some(reading) = self.volumes.get_mut(&answer.volume).and_then(|v| v.reading.as_mut()) else { return };
        let Some(at) = reading.asked.iter().position(|(id, _)| *id == answer.id) else { return };
        let (_, run) = reading.asked.swap_remove(at);
        let (key, part) = (reading.key, reading.part);
        let count: u64 = answer.runs.iter().map(|r| r.granules()).sum();
        if (answer.start, count) != (run.start, run.count) {
            return self.protocol_error("digests of other granules than asked for", out);
        }
        out.push(Action::Digests { key, part, start: answer.start, runs: answer.runs });
    }
}

/// What a part of a cut with so many bytes of content may take of the credit that is left: no more than it may need.
fn share_of_a_cut(content: u64, left: u64) -> u64 {
    left.min(content.saturating_add(content / 32).saturating_add(PART_OVERHEAD))
}
