//! When the group's counter is switched, as what, and when a cut is given up (§4.2, §4.4, T6, T10).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use farside_ledger::LayerKind;
use farside_region::{EpochId, GranuleSet, LayerKey, RegionIndex, RegionSet, VolumeId, mutation};
use farside_wire::{LayerBegin, SourceMessage};

use super::api::{Action, DemoteCause, Nanos, Report, Sample, SwitchDone, SwitchMember};
use super::verify::VerifyOutcome;
use super::volume::{Check, Frozen, Layer, PassStart, Service, Stage, Standing, Volume};
use super::wish::Labelled;
use super::{Epoch, Hold, Kind, Link, Phase, Source, Switching};

impl Source {
    /// Cuts are tried; what does not fit a cut becomes a pass.
    pub(super) fn try_switch(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if self.phase == Phase::Halted || self.switching.is_some() || !matches!(self.link, Link::Up { .. }) {
            return;
        }
        if self.is_quiescing() || self.try_wish(now, out) {
            return;
        }
        let fits: Vec<VolumeId> = self.volumes.values().filter(|v| self.may_switch(v)).map(|v| v.id()).collect();
        let too_big = self.too_big_for_a_cut(&fits);
        if let Some(&id) = too_big.iter().find(|id| self.volumes[id].weight() > 0) {
            return self.switch(now, LayerKind::Fuzzy, &[id], None, out);
        }
        let due = self.phase == Phase::Draining
            || self.last_cut.is_none_or(|last| now >= last.saturating_add(self.config.limits.epoch_interval));
        let members: Vec<VolumeId> = fits.into_iter().filter(|id| !too_big.contains(id)).collect();
        let wanted = members.iter().any(|id| self.volumes[id].weight() > 0 || self.wants_point(&self.volumes[id]));
        if due && wanted && !self.cut_must_wait(now) {
            self.switch(now, LayerKind::Point, &members, None, out);
        }
    }

    /// Its newest layer is not part of a point, and none that would be is on its way. (Until the first of them is published a
    /// second would be as empty as the first was needed; without this a slow store, or a stop, is given dozens of them.)
    fn wants_point(&self, volume: &Volume) -> bool {
        let is_cut = |l: &Layer| self.epochs.get(&l.epoch).is_some_and(|e| e.kind == Kind::Cut);
        match volume.layers.back() {
            Some(newest) => !is_cut(newest) && !mutation::on("hole: no point after the last pass"),
            None => volume.point_due,
        }
    }

    pub(super) fn may_switch(&self, volume: &Volume) -> bool {
        volume.fits(self.config.limits.unpublished_layers_max)
            && (volume.compare.is_empty() || volume.layers.is_empty() || mutation::on("T6 compare beside an unpublished layer"))
    }

    /// † One that hung in a cut proves in a pass of its own that it is read again: a second cut with it would be held up as the
    /// first was, and the others' points with it.
    ///
    /// And so does one that has much to send from before: a first sync in a cut would keep the others' points back until it is
    /// done.
    fn is_better_alone(&self, id: VolumeId, old_max: u64) -> bool {
        let volume = &self.volumes[&id];
        let hangs = volume.hangs && volume.weight() > 0;
        let old = if mutation::on("a first sync joins the cut") { volume.compare_bytes() } else { volume.old_bytes() };
        hangs || old > old_max
    }

    /// Members that would break the cut's budget: those with a big set to compare or to send anew, and then the heaviest.
    pub(super) fn too_big_for_a_cut(&self, fits: &[VolumeId]) -> BTreeSet<VolumeId> {
        let old_max = self.config.limits.cut_bytes_min;
        let mut big: BTreeSet<VolumeId> = fits.iter().copied().filter(|id| self.is_better_alone(*id, old_max)).collect();
        let mut rest: Vec<(u64, VolumeId)> =
            fits.iter().filter(|id| !big.contains(id)).map(|id| (self.volumes[id].weight(), *id)).collect();
        rest.sort_unstable();
        let mut sum: u64 = rest.iter().map(|(weight, _)| weight).sum();
        while sum > self.cut_budget
            && let Some((weight, id)) = rest.pop()
        {
            sum -= weight;
            big.insert(id);
        }
        big
    }

    /// A point should hold every volume that can be in one: wait for the last cut's members and for checks under way.
    pub(super) fn cut_must_wait(&self, now: Nanos) -> bool {
        let cut_unfinished = self.epochs.iter().any(|(&id, e)| e.kind != Kind::Pass && self.layers_of(id).any(Layer::is_frozen));
        let Link::Up { since, .. } = self.link else { return true };
        let patience = now < since.saturating_add(self.config.limits.recheck);
        let unchecked = self.volumes.values().any(|v| v.is_active() && !v.is_checked());
        cut_unfinished || (unchecked && patience)
    }

    pub(super) fn switch(
        &mut self,
        now: Nanos,
        kind: LayerKind,
        members: &[VolumeId],
        wished: Option<Labelled>,
        out: &mut Vec<Action>,
    ) {
        let mut taken = BTreeMap::new();
        let mut list = Vec::new();
        for id in members {
            let volume = self.volumes.get_mut(id).expect("members are volumes");
            let mut extra = std::mem::take(&mut volume.resend);
            let compare = std::mem::take(&mut volume.compare);
            compare.ranges().for_each(|r| extra.insert_whole(r));
            volume.take_retries(now).ranges().for_each(|r| extra.insert_whole(r));
            list.push(SwitchMember { volume: *id, extra: extra.clone() });
            taken.insert(*id, Taken { extra, compare });
        }
        if kind == LayerKind::Point {
            // Passes must not push the next cut away: a volume written faster than a cut may hold would never have a point.
            self.last_cut = Some(now);
        }
        self.switching = Some(Switching { kind, connection: self.link.connection(), members: taken, wished });
        out.push(Action::Switch { kind, members: list });
    }

    pub(super) fn switch_done(&mut self, now: Nanos, done: SwitchDone, out: &mut Vec<Action>) {
        let Some(switching) = self.switching.take() else { return };
        let SwitchDone { epoch: id, info, members } = done;
        self.switched_for_a_wish(switching.wished.as_ref(), id, out);
        let kind = if switching.kind == LayerKind::Point { Kind::Cut } else { Kind::Pass };
        let mut epoch = Epoch { kind, members: BTreeSet::new(), since: now, bytes: 0, hold: Hold::Held, label: Labelled::Not };
        for (id, _) in &members {
            if let Some(volume) = self.volumes.get_mut(id) {
                // What the last tick saw has just been frozen; the next one says what came since. Without this a switch that
                // is read before that tick would be followed by empty ones for ever. Until then nobody calls it quiet.
                volume.sample = Sample { dirty_bytes: 0, in_flight: volume.sample.in_flight.max(1), ..volume.sample };
            }
        }
        let nothing = members.iter().all(|(v, set)| {
            let compared = switching.members.get(v).is_some_and(|t| !t.compare.is_empty());
            set.is_empty() && !compared && !self.volumes.get(v).is_some_and(|v| self.wants_point(v))
        });
        if nothing && switching.wished.is_none() {
            out.push(Action::Release { epoch: id });
            return;
        }
        let mut taken = switching.members;
        let mut ranges = 0;
        for (volume_id, set) in members {
            let Some(Taken { compare, .. }) = taken.remove(&volume_id) else { continue };
            let Some(volume) = self.volumes.get_mut(&volume_id) else { continue };
            let total_bytes = volume.granule_bytes(&set);
            volume.freeze_unreadable(&set);
            epoch.bytes += total_bytes;
            epoch.members.insert(volume_id);
            ranges += set.regions().range_count();
            let frozen = Frozen {
                next_slice: set.next_region(RegionIndex(0)).filter(|_| kind == Kind::Pass),
                set: Arc::new(set),
                compare: Arc::new(compare),
                info,
                released_below: RegionIndex(0),
                since: now,
                total_bytes,
                done_bytes: 0,
                sent_bytes: 0,
            };
            let keep = kind == Kind::Cut || frozen.next_slice.is_some();
            if keep {
                volume.frozen.insert(id, frozen);
            }
            if kind == Kind::Pass {
                volume.pass_begun(now, total_bytes);
            }
        }
        let scattered = kind == Kind::Cut && ranges > self.config.limits.end_ranges_max;
        self.epochs.insert(id, epoch);
        if let Some(wished) = switching.wished {
            self.wish_is_cut(wished, id);
        }
        match kind {
            Kind::Cut if scattered => self.scatter(now, id, out),
            Kind::Cut => self.begin_cut_layers(now, id, out),
            Kind::Pass | Kind::Demoted => {}
        }
        let reset = switching.connection != self.link.connection();
        if kind == Kind::Cut && reset && !mutation::on("a reset cut re-sent as a point") {
            self.demote(now, id, DemoteCause::Reset, out);
        }
        if let Some((early, why)) = self.demoted_early.take()
            && early == id
        {
            self.demote(now, id, why, out);
        }
        self.forget_empty_epochs(out);
    }

    /// A cut has one layer per member, empty ones too.
    fn begin_cut_layers(&mut self, now: Nanos, id: EpochId, out: &mut Vec<Action>) {
        let members: Vec<_> = self.epochs[&id].members.iter().copied().collect();
        for volume in members {
            self.begin_layer(now, volume, id, RegionIndex(0), out);
        }
    }

    /// Too many ranges for one message: every member becomes a pass of its own, cut into slices.
    fn scatter(&mut self, now: Nanos, id: EpochId, out: &mut Vec<Action>) {
        let epoch = self.epochs.get_mut(&id).expect("just inserted");
        epoch.kind = Kind::Pass;
        for member in &epoch.members {
            let volume = self.volumes.get_mut(member).expect("members are volumes");
            let frozen = volume.frozen.get_mut(&id).expect("just inserted");
            frozen.next_slice = frozen.set.next_region(RegionIndex(0));
            if frozen.next_slice.is_none() {
                volume.frozen.remove(&id);
            }
        }
        let why = DemoteCause::Scattered;
        self.last_demotion = Some((now, why));
        out.push(Action::Demote { epoch: id, why });
        out.push(Action::Report { volume: None, what: Report::Demoted { epoch: id, why } });
    }

    /// A new layer of a frozen epoch, from a region on. Its number is used up, whatever becomes of it (T5).
    pub(super) fn begin_layer(&mut self, now: Nanos, id: VolumeId, epoch: EpochId, from: RegionIndex, out: &mut Vec<Action>) {
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        let term = volume.held.expect("nothing is switched before a claim");
        volume.last_seq = volume.last_seq.next();
        let key = LayerKey { volume: id, term, seq: volume.last_seq };
        let frozen = volume.frozen.get_mut(&epoch).expect("the caller found it");
        frozen.next_slice = None;
        let stage = if frozen.set.next_region(from).is_some() { Stage::Reading } else { Stage::Read };
        let (info, volume_bytes) = (frozen.info, volume.meta.geometry.volume_bytes());
        volume.layers.push_back(Layer {
            key,
            epoch,
            info,
            from,
            until: (stage == Stage::Read).then_some(from),
            cursor: from,
            stage,
            reads: Vec::new(),
            there: 0,
            begun: now,
            volume_bytes,
        });
        if matches!(self.link, Link::Up { .. }) {
            self.send(SourceMessage::LayerBegin(LayerBegin { key }), out);
        }
    }

    /// The one verb to give up: the whole group's epoch at once. Nothing to do once every member is known staged.
    pub(super) fn demote(&mut self, now: Nanos, id: EpochId, why: DemoteCause, out: &mut Vec<Action>) {
        let all_staged = self.layers_of(id).all(|l| l.stage == Stage::Staged);
        let Some(epoch) = self.epochs.get(&id) else { return };
        if epoch.kind == Kind::Cut && !all_staged {
            self.demote_anyway(now, id, why, out);
        }
    }

    pub(super) fn demote_anyway(&mut self, now: Nanos, id: EpochId, why: DemoteCause, out: &mut Vec<Action>) {
        let Some(epoch) = self.epochs.get_mut(&id) else { return };
        if epoch.kind == Kind::Pass {
            return;
        }
        if epoch.kind == Kind::Cut {
            epoch.kind = Kind::Demoted;
            if epoch.hold == Hold::Held {
                out.push(Action::Demote { epoch: id, why });
            }
            if matches!(why, DemoteCause::SideBuffer | DemoteCause::ClaimPool) {
                let limits = &self.config.limits;
                // Not `clamp`, which panics where the least is above the most: what was configured must not end the daemon.
                self.cut_budget = (epoch.bytes / 2).min(limits.cut_bytes_max).max(limits.cut_bytes_min);
            }
            // One that was too much for its time or its room was a pass, in the end.
            if matches!(why, DemoteCause::SideBuffer | DemoteCause::ClaimPool | DemoteCause::Hung) {
                let since = epoch.since;
                for volume in self.volumes.values_mut() {
                    if let Some(bytes) = volume.frozen.get(&id).map(|frozen| frozen.total_bytes) {
                        volume.pass_begun(since, bytes);
                    }
                }
            }
            self.last_demotion = Some((now, why));
            out.push(Action::Report { volume: None, what: Report::Demoted { epoch: id, why } });
        }
        for layer in self.volumes.values_mut().flat_map(|v| &mut v.layers).filter(|l| l.epoch == id) {
            layer.stage = layer.stage.min(Stage::Read);
        }
    }

    /// The shim gave up already.
    pub(super) fn demoted(&mut self, now: Nanos, id: EpochId, why: DemoteCause, out: &mut Vec<Action>) {
        match self.epochs.get(&id) {
            // A layer read to its end while the cut held is as good as it was.
            Some(_) if self.layers_of(id).all(|l| l.stage != Stage::Reading) => {}
            Some(_) => self.demote(now, id, why, out),
            None => self.demoted_early = Some((id, why)),
        }
    }

    /// All layers of a volume are given up: the others' are said again, as fuzzy, without it (T11).
    pub(super) fn orphan(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        self.abort_reading(id, out);
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        for epoch_id in volume.orphan() {
            if let Some(epoch) = self.epochs.get_mut(&epoch_id) {
                epoch.members.remove(&id);
                if !mutation::on("hole: member claims anew alone") {
                    self.demote_anyway(now, epoch_id, DemoteCause::Claim, out);
                }
            }
        }
        self.forget_empty_epochs(out);
    }

    /// Epochs that no volume holds any more are over.
    pub(super) fn forget_empty_epochs(&mut self, out: &mut Vec<Action>) {
        let volumes = &self.volumes;
        self.epochs.retain(|id, epoch| {
            let lives = epoch.members.iter().any(|v| volumes.get(v).is_some_and(|v| v.frozen.contains_key(id)));
            if !lives && epoch.hold == Hold::Held {
                out.push(Action::Release { epoch: *id });
            }
            lives
        });
    }

    /// Cuts that hang are given up; members that still hang then are left behind.
    pub(super) fn look_for_hung(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let limits = self.config.limits;
        let ids: Vec<_> = self.epochs.keys().copied().collect();
        for id in ids {
            let reading: Vec<_> = self.layers_of(id).filter(|l| l.stage == Stage::Reading).map(|l| l.key.volume).collect();
            let epoch = &self.epochs[&id];
            match epoch.kind {
                Kind::Cut if !reading.is_empty() && now >= epoch.since.saturating_add(limits.cut_hold) => {
                    for volume in &reading {
                        self.volumes.get_mut(volume).expect("a layer's volume is there").hangs = true;
                    }
                    self.demote(now, id, DemoteCause::Hung, out);
                }
                // † Others may be outside the epoch, too: no cut is tried while this one is not read to its end.
                Kind::Demoted if self.volumes.values().any(|v| v.takes_part() && !reading.contains(&v.id())) => {
                    for volume in reading {
                        let hung = self.volumes[&volume].reading.as_ref().is_some_and(|r| r.waited >= limits.hung_member);
                        if hung && self.volumes[&volume].check == Check::Checked {
                            self.claim_anew(now, volume, super::volume::Reclaim::Term);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// A demoted cut that is granted no room becomes a pass, whose slices end with what they have (`end_slow_slices`). † All of it is published at once
    /// and takes room until then: a gateway that is full of such, or has less room than one of them needs, would never have any again.
    ///
    /// Its end was said on no connection: what was is read again up to where it ended, and that had its room.
    pub(super) fn break_up_starved(&mut self, now: Nanos) {
        // Of what a slow line has under way less is granted, too.
        if self.trouble.is_none() || !self.is_starved(now) {
            return;
        }
        let limits = self.config.limits;
        let ids: Vec<_> = self.epochs.iter().filter(|(_, e)| e.kind == Kind::Demoted).map(|(id, _)| *id).collect();
        for id in ids {
            let waits = |l: &Layer| l.stage == Stage::Reading && l.until.is_none();
            let going = |l: &Layer| l.stage == Stage::Reading && self.volumes[&l.key.volume].reading.is_some();
            let late = now >= self.epochs[&id].since.saturating_add(limits.slice_time);
            if late && self.layers_of(id).any(waits) && !self.layers_of(id).any(going) {
                let epoch = self.epochs.get_mut(&id).expect("just listed");
                epoch.kind = Kind::Pass;
                // The next one may fit.
                self.cut_budget = (epoch.bytes / 2).min(limits.cut_bytes_max).max(limits.cut_bytes_min);
            }
        }
    }

    pub(super) fn pause(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.service == Service::Running {
            volume.service = Service::Paused;
        }
        let frozen: Vec<_> = volume.layers.iter().filter(|l| l.is_frozen()).map(|l| l.epoch).collect();
        for epoch in frozen {
            self.demote(now, epoch, DemoteCause::Member, out);
        }
    }

    /// No order to its reader is answered any more: what it has under way is owed again, and the group's cuts go on without it.
    pub(super) fn reader_lost(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.service = volume.service.max(Service::Unread);
        volume.reading = None;
        volume.end_verify(now, VerifyOutcome::Stopped);
        self.orphan(now, id, out);
    }

    /// Asks for a full compare, or recovers from lost tracking: every bit first.
    pub(super) fn tracking_lost(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.standing == Standing::Good {
            volume.standing = Standing::TrackingLost;
        }
        if !volume.heat.0.contains(&super::volume::HeatFor::TrackingLost) {
            self.heat(now, id, super::volume::HeatFor::TrackingLost, out);
        }
    }
}

/// What a switch under way took from a volume.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) extra: GranuleSet,
    pub(super) compare: RegionSet,
}

impl Volume {
    /// Bytes that a switch would freeze, about.
    pub(super) fn weight(&self) -> u64 {
        self.sample.dirty_bytes + self.old_bytes()
    }

    /// Of these, what is to be sent anew or compared: from before the open map.
    fn old_bytes(&self) -> u64 {
        self.granule_bytes(&self.resend) + self.compare_bytes()
    }

    /// Two passes in a row that end with as much dirt as they began with are no way to get there. Cuts that were given up count
    /// as passes. One that began with nothing, in a cut given up for another's sake, was no try.
    fn pass_begun(&mut self, now: Nanos, bytes: u64) {
        let futile = match self.pass {
            Some(last) if last.bytes > 0 && bytes >= last.bytes / 10 * 9 && now > last.at => last.futile + 1,
            _ => 0,
        };
        self.not_converging = None;
        if let Some(last) = self.pass
            && futile >= 2
        {
            let per_s = |bytes: u64| (u128::from(bytes) * u128::from(super::SECOND) / u128::from(now - last.at)) as u64;
            self.not_converging = Some(super::NotConverging {
                dirty_bytes_per_s: per_s(bytes),
                sent_bytes_per_s: per_s(last.bytes.saturating_sub(last.left_bytes)),
                needed_cut_bytes: bytes,
            });
        }
        self.pass = Some(PassStart { at: now, bytes, left_bytes: 0, futile });
    }

    /// A published cut: it got there.
    pub(super) fn converged(&mut self) {
        self.pass = None;
        self.not_converging = None;
    }
}
