//! What goes on beside layers: the header's position, cooling, heartbeats, leaving (§4.3, L2, T7, T15).

use farside_ledger::{CutTime, Heartbeat};
use farside_region::{LedgerPosition, RegionSet, Term, VolumeId, mutation};
use farside_wire::SourceMessage;

use super::api::{Action, Nanos, Tick};
use super::volume::{Cooling, Header, Service, Volume, slot_of};
use super::{Link, Phase, Source};

impl Source {
    pub(super) fn tick(&mut self, now: Nanos, tick: &Tick, out: &mut Vec<Action>) {
        for (id, sample) in &tick.volumes {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.sampled(now, *sample);
            }
        }
        self.look_for_hung(now, out);
        self.break_up_starved(now);
        self.end_slow_slices(now, out);
        self.refresh_headers(now, out);
        self.heartbeat(now, tick.time, out);
        if self.digests_retry.is_some_and(|at| now >= at) {
            self.digests_retry = None;
            let ids: Vec<_> = self.volumes.keys().copied().collect();
            for id in ids {
                self.ask_digests_again(id, out);
                self.ask_chunk_again(id);
            }
        }
    }

    /// Writes the confirmed term and the newest known position, in one write. † Of a volume that lost track only when every bit is
    /// set: a header above the record of that would have it forgotten where nothing else keeps it (see `loss`).
    pub(super) fn write_header(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        if volume.is_in_doubt() {
            return;
        }
        volume.write_header(now, volume.held.or(volume.header.confirmed), volume.published, out);
    }

    fn refresh_headers(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let refresh = self.config.limits.header_refresh;
        self.write_headers_behind(now, |volume| now >= volume.header.asked_at.saturating_add(refresh), out);
    }

    /// A planned stop says how far it saw, or the next attach compares every region of what was published since the header.
    pub(super) fn halt(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.phase = Phase::Halted;
        self.write_headers_behind(now, |_| true, out);
    }

    pub(super) fn write_headers_behind(&mut self, now: Nanos, of: impl Fn(&Volume) -> bool, out: &mut Vec<Action>) {
        let behind = self.volumes.values().filter(|v| v.held.is_some() && v.header.asked.1 != v.published && of(v));
        let behind: Vec<_> = behind.map(|v| v.id()).collect();
        behind.into_iter().for_each(|id| self.write_header(now, id, out));
    }

    pub(super) fn header_durable(
        &mut self,
        id: VolumeId,
        confirmed: Option<Term>,
        position: Option<LedgerPosition>,
        out: &mut Vec<Action>,
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.header = Header { confirmed, position, ..volume.header };
        volume.uncovered = volume.uncovered.split_off(&(slot_of(position) + 1));
        self.confirmed(id);
        let volume = self.volumes.get_mut(&id).expect("just seen");
        volume.save_generation(confirmed.is_some() && confirmed == volume.held && volume.reclaim.is_none(), out);
        if volume.cooling.as_ref().is_some_and(|c| volume.header.covers(c.position)) {
            let regions = volume.cooling.take().expect("just seen").regions;
            cool(volume, &regions, out);
        }
    }

    /// Candidates may go on when nobody here mentions them and the header covers what published them.
    pub(super) fn cool_wanted(&mut self, now: Nanos, id: VolumeId, regions: &RegionSet, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if !volume.is_checked() || volume.reclaim.is_some() || !volume.heat.0.is_empty() {
            return;
        }
        if volume.header.covers(volume.published) || mutation::on("clear before the header") {
            return cool(volume, regions, out);
        }
        let (position, asked) = (volume.published, volume.header.asked.1);
        let waiting = volume.cooling.get_or_insert_with(|| Cooling { regions: RegionSet::new(), position });
        waiting.regions.union_with(regions);
        waiting.position = position;
        if asked != position {
            self.write_header(now, id, out);
        }
    }

    /// Nothing changed up to `t`, which was read before the samples: said only while nothing is owed or in doubt.
    fn heartbeat(&mut self, now: Nanos, t: CutTime, out: &mut Vec<Action>) {
        if !matches!(self.link, Link::Up { .. }) {
            return;
        }
        let due = now >= self.last_heartbeat.saturating_add(self.config.limits.heartbeat_interval);
        // One that the receiver does not take holds up nobody's lag.
        let active: Vec<&Volume> = self.volumes.values().filter(|v| v.takes_part()).collect();
        if active.is_empty() || self.switching.is_some() || !active.iter().all(|v| is_quiet(v)) {
            return;
        }
        let members: Vec<(VolumeId, Term)> = active.iter().filter_map(|v| Some((v.id(), v.held?))).collect();
        let Some(position) = active.iter().filter_map(|v| v.published).max_by_key(|p| p.slot) else { return };
        members.iter().for_each(|(id, _)| {
            let volume = self.volumes.get_mut(id).expect("just seen");
            volume.quiet = Some(t);
        });
        if due {
            self.last_heartbeat = now;
            self.send(SourceMessage::Heartbeat(Heartbeat { members, position, t }), out);
        }
    }

    /// Everything published, as far as the last samples tell.
    pub(super) fn everything_is_quiet(&self) -> bool {
        let mut active = self.volumes.values().filter(|v| v.is_active());
        matches!(self.link, Link::Up { .. }) && self.switching.is_none() && active.all(is_quiet)
    }

    /// Volumes that leave are gone once nothing of them is under way.
    pub(super) fn let_go(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let leaving: Vec<VolumeId> = self
            .volumes
            .values()
            .filter(|v| v.service == Service::Leaving && !self.is_switching(v.id()))
            .map(|v| v.id())
            .collect();
        for id in leaving {
            self.orphan(now, id, out);
            if self.volumes[&id].reading.is_none() {
                self.write_headers_behind(now, |volume| volume.id() == id, out);
                self.volumes.remove(&id);
                out.push(Action::Removed { volume: id });
            }
        }
    }
}

impl Volume {
    pub(super) fn write_header(
        &mut self,
        now: Nanos,
        confirmed: Option<Term>,
        position: Option<LedgerPosition>,
        out: &mut Vec<Action>,
    ) {
        (self.header.asked, self.header.asked_at) = ((confirmed, position), now);
        out.push(Action::WriteHeader { volume: self.id(), confirmed, position });
    }
}

fn cool(volume: &Volume, regions: &RegionSet, out: &mut Vec<Action>) {
    let regions: RegionSet = regions.iter().filter(|&r| !volume.keeps_hot(r) || mutation::on(super::MENTIONED)).collect();
    if regions.is_empty() {
        return;
    }
    let zero = regions.iter().filter(|&r| volume.zero.contains(r)).collect();
    out.push(Action::Cool { volume: volume.id(), regions, zero });
}

fn is_quiet(volume: &Volume) -> bool {
    volume.is_checked()
        && volume.reclaim.is_none()
        && volume.heat.0.is_empty()
        && !volume.point_due
        && (volume.owes_nothing() || mutation::on("L10 quiet beside an unpublished layer"))
        && volume.verify.as_ref().is_none_or(|v| !v.is_heating())
        && volume.sample.dirty_bytes == 0
        && volume.sample.in_flight == 0
}
