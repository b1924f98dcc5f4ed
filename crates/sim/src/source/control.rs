//! The group's control thread: events one after the other into `replication::Source`, its actions carried out in order, and
//! the timers and small loops that stand around it (switch, coolers, headers, ticks, the connection, a planned stop).

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use farside_ledger::{CutTime, EpochInfo, LayerKind};
use farside_region::{EpochId, RegionSet};
use farside_replication::source::{
    Action, DemoteCause, Event, Limits, PartRead, Report, SECOND, Sample, SwitchDone, SwitchMember, Tick,
};
use farside_shim::{CoolStep, Kind, Member, Tracking};

use farside_wire::{ClaimRequest, LabelledEnd, SourceMessage};

use crate::coverage;
use crate::disk::Done;
use crate::history::Author;
use crate::net::{Load, To};
use crate::oracle::Cut;
use crate::plan::Plan;
use crate::world::{GRANULE_SHIFT, REGION_SECTORS, SECTOR};

use super::intent::{HeaderWant, IntentOrder, Loss};
use super::{Item, Source, Vol};

const MS: u64 = SECOND / 1000;
/// A mistake of the driver: bits that are hot in memory alone count as durable.
const WITHDRAWN: &str = "tracking-lost withdrawn while the map cannot be written";

/// A switch that replication asked for.
pub(super) struct PendingSwitch {
    kind: LayerKind,
    members: Vec<SwitchMember>,
    begun: Option<(EpochId, EpochInfo)>,
}

/// The shim's bounds, small enough to be met.
pub(super) fn shim_limits(plan: &Plan) -> farside_shim::Limits {
    let granule = 1usize << GRANULE_SHIFT;
    farside_shim::Limits {
        in_flight_per_queue: if plan.tight { 2 } else { 16 },
        mask_pool_bytes: if plan.tight { 256 } else { 1 << 16 },
        claim_pool_bytes: if plan.tight { 1024 } else { 1 << 16 },
        side_buffer_bytes: if plan.tight { 6 * granule } else { 512 * granule },
        claim_run_bytes: 2 * granule as u64,
        pass_run_bytes: 3 * granule as u64,
        left_run_bytes: if plan.tight { 2 * granule as u64 } else { granule as u64 },
        piece_bytes: (2 * REGION_SECTORS * SECTOR) as u64,
    }
}

/// Replication's bounds, in virtual time.
pub(super) fn core_limits(plan: &Plan) -> Limits {
    Limits {
        epoch_interval: 4 * MS,
        heartbeat_interval: 15 * MS,
        header_refresh: 100 * MS,
        slice_bytes: 700,
        slice_time: 60 * MS,
        layer_parts_max: 6,
        part_bytes: 400,
        part_bytes_min: 100,
        unpublished_layers_max: 6,
        verify_bytes: 3 * (REGION_SECTORS * SECTOR) as u64,
        cut_bytes_max: 1 << 20,
        cut_bytes_min: if plan.tight { 256 } else { 1 << 14 },
        cut_hold: 400 * MS,
        hung_member: 900 * MS,
        unreadable_retry: 20 * MS,
        claim_turns_max: 4,
        end_ranges_max: if plan.tight { 3 } else { 64 },
        end_share_min: 64,
        recheck: 30 * MS,
    }
}

impl Source {
    pub(super) fn spawn_control(self: &Rc<Self>) {
        let spawn = |name: &str, body: std::pin::Pin<Box<dyn Future<Output = ()>>>| self.world.spawn(self.owner, name, body);
        spawn("control", Box::pin(self.clone().events()));
        spawn("watch", Box::pin(self.clone().watch()));
        spawn("switcher", Box::pin(self.clone().switches()));
        spawn("ticks", Box::pin(self.clone().ticks()));
        spawn("connect", Box::pin(self.clone().connects()));
        if self.world.plan.cohort.is_some() {
            spawn("cohort", Box::pin(self.clone().cohort_goes_on()));
        }
        if self.world.plan.hooks {
            self.spawn_quiet();
        }
        for v in 0..self.volumes.len() {
            spawn(&format!("verify{v}"), Box::pin(self.clone().verifies(v)));
            spawn(&format!("cooler{v}"), Box::pin(self.clone().cools(v)));
            spawn(&format!("heater{v}"), Box::pin(self.clone().heats(v)));
        }
    }

    async fn events(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            steps.pause().await;
            steps.until(|| !self.inbox.borrow().is_empty()).await;
            let item = self.inbox.borrow_mut().pop_front().expect("something is there");
            match item {
                // Never with a switch under way: its maps are nobody's until it is reported done.
                Item::Event(Event::Halt) if self.core.borrow().switching() => self.push(Event::Halt),
                Item::Event(event) => self.step(event),
                Item::Cohort(note) => self.hear_of_the_cohort(note),
                Item::Quiet(note) => self.hear_of_quiet(note),
                Item::Part { read, epoch, ended } => self.part_read(read, epoch, ended),
            }
        }
    }

    /// A part was read. The last one of a cut settles whether it is a point: after that it cannot overflow any more.
    fn part_read(&self, mut read: PartRead, epoch: EpochId, ended: bool) {
        let volume = self.vol(read.key.volume).index;
        let last = ended && {
            let mut unread = self.unread.borrow_mut();
            let members = unread.get_mut(&epoch);
            members.is_some_and(|m| {
                m.retain(|v| *v != volume);
                m.is_empty()
            }) && unread.remove(&epoch).is_some()
        };
        let was_cut = self.switcher.borrow().is_cut(epoch);
        read.cut_held = if last { self.switcher.borrow_mut().conclude(epoch) == Kind::Cut } else { was_cut };
        if last && was_cut && !read.cut_held {
            self.step(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
        }
        self.step(Event::PartRead(Box::new(read)));
    }

    pub(super) fn step(&self, event: Event) {
        if self.halted.get() {
            return;
        }
        let now = self.world.mono_ns();
        let halt = matches!(event, Event::Halt);
        if matches!(event, Event::Connected { .. }) {
            self.site.connected_at.set(self.world.step.get());
        }
        let mut actions = Vec::new();
        match &event {
            Event::Tick(tick) => self.say(|| {
                let samples: Vec<_> = tick.volumes.iter().map(|(_, s)| (s.dirty_bytes, s.in_flight)).collect();
                format!("source ← tick of {} us, (dirty bytes, in flight) {samples:?}", tick.time.mono_ns / 1000)
            }),
            _ => self.say(|| format!("source ← {}", short(&event))),
        }
        self.core.borrow_mut().step(now, event, &mut actions);
        for action in actions {
            self.act(action);
        }
        self.carry_out_fed();
        self.halted.set(self.halted.get() || halt);
    }

    /// An event that comes of an action: what it asks for is carried out when the others are.
    pub(super) fn feed(&self, event: Event) {
        self.say(|| format!("source ← {}", short(&event)));
        self.core.borrow_mut().step(self.world.mono_ns(), event, &mut self.fed.borrow_mut());
    }

    pub(super) fn carry_out_fed(&self) {
        loop {
            let fed = self.fed.take();
            if fed.is_empty() {
                return;
            }
            fed.into_iter().for_each(|action| self.act(action));
        }
    }

    fn vol(&self, id: farside_region::VolumeId) -> &Vol {
        &self.volumes[self.world.volume_of(id).expect("replication names only what it was given")]
    }

    fn act(&self, action: Action) {
        let (world, site) = (&self.world, &self.site);
        match coverage::of_source(&action) {
            Some(name) => world.met(name),
            None => return world.fail(format!("the simulator does not know the action {}", short(&action))),
        }
        if !matches!(action, Action::Send { .. } | Action::ReadPart(_)) {
            self.say(|| format!("source → {}", short(&action)));
        }
        match action {
            Action::Send { connection, message } => {
                self.note_sent(&message);
                if let Some(conn) = self.conn.get().filter(|c| c.0 == connection) {
                    self.say(|| format!("source sends {}", short(&message)));
                    let bytes = farside_wire::encode_payload(&*message).expect("messages are paged");
                    world.net.borrow_mut().send(To::Receiver, conn, Load::Control(bytes.to_vec()));
                }
            }
            Action::Disconnect { connection, .. } => {
                if let Some(conn) = self.conn.get().filter(|c| c.0 == connection) {
                    world.net.borrow_mut().send(To::Receiver, conn, Load::Closed);
                    world.net.borrow_mut().hang_up(conn);
                    self.lose(conn);
                }
            }
            Action::WriteHeader { volume, confirmed, position } => {
                self.vol(volume).intent.borrow_mut().wanted = Some(HeaderWant { confirmed, position });
            }
            Action::Switch { kind, members } => {
                let before = self.switch.replace(Some(PendingSwitch { kind, members, begun: None }));
                if before.is_some() {
                    world.fail("replication asked for a switch while one was under way".into());
                }
            }
            Action::Demote { epoch, .. } => self.switcher.borrow_mut().demote(epoch),
            Action::Release { epoch } => {
                self.unread.borrow_mut().remove(&epoch);
                self.switcher.borrow_mut().release(epoch);
            }
            Action::ReadPart(job) => {
                self.say(|| {
                    format!(
                        "source → read part {}.{}.{} from region {} until {:?}, epoch {}",
                        job.key.term, job.key.seq, job.part, job.from, job.until, job.epoch
                    )
                });
                let vol = self.vol(job.key.volume);
                if self.conn.get().map(|c| c.0) != Some(job.connection) {
                    return; // its connection died while the event waited; `Disconnected` is on its way
                }
                if vol.set_job(Some(*job)).is_some() {
                    world.fail("replication asked for a part while one was being read".into());
                }
            }
            Action::FinishPart { key, part } => {
                let vol = self.vol(key.volume);
                if vol.job.borrow().as_ref().is_some_and(|j| j.key == key && j.part == part) {
                    vol.finish.set(true);
                }
            }
            Action::AbortPart { key, part } => {
                let vol = self.vol(key.volume);
                let reading = vol.job.borrow().as_ref().is_some_and(|j| j.key == key && j.part == part);
                if let Some(job) = reading.then(|| vol.set_job(None)).flatten() {
                    self.push(Event::PartAborted { connection: job.connection, key, part });
                }
            }
            Action::Digests { key, start, runs, .. } => {
                self.vol(key.volume).digests.replace(Some((start.0, runs)));
            }
            Action::Cool { volume, regions, zero } => {
                let vol = self.vol(volume);
                vol.cool.borrow_mut().extend(regions.iter().map(|r| (r, zero.contains(r))));
            }
            Action::HeatAll { volume } => self.vol(volume).heats.borrow_mut().push(None),
            Action::Heat { volume, regions } => self.vol(volume).heats.borrow_mut().push(Some(regions)),
            Action::Verify(chunk) => {
                self.vol(chunk.volume).verify.replace(Some(*chunk));
            }
            Action::Report { volume: Some(volume), what: Report::ColdDiffers { regions } } => {
                let v = self.vol(volume).index;
                if site.backings.borrow()[v].meddled {
                    return world.met("verify finds what was changed behind the tap");
                }
                world.fail(format!("L2: verify finds that cold regions {regions:?} of v{v} differ from what is published"));
            }
            Action::KeepHot { volume } => {
                let regions = self.vol(volume).shim.hot_regions();
                self.push(Event::HotRegions { volume, regions });
            }
            Action::WithdrawTrackingLost { volume } => {
                // Only bits that are durable count: while the map cannot be written, the mark is all that the next start has.
                let vol = self.vol(volume);
                if vol.shim.tracking() == Tracking::Sound || farside_region::mutation::on(WITHDRAWN) {
                    vol.loss.set(Loss::Kept);
                    site.write_state(vol.index, |s| s.tracking_lost = false);
                    site.backings.borrow_mut()[vol.index].passed = false;
                }
            }
            Action::LossKept { volume } => self.loss_kept(self.vol(volume)),
            // Keys are the same in every life here.
            Action::AdoptMeta { meta } => {
                site.write_state(self.vol(meta.id).index, |s| s.generation = meta.generation.0);
            }
            Action::CanCut { wish } => self.can_cut(wish),
            Action::Quiesce { wish } => self.quiesce(wish),
            Action::Resume { epoch } => self.resume(epoch),
            Action::Report { what: Report::WishDone { wish, point, label }, .. } if world.plan.hooks => {
                self.wish_done(wish, &point, label.as_deref());
            }
            Action::Report { what: Report::WishDropped { wish, why }, .. } => self.wish_dropped(wish, &why),
            Action::Report { what: Report::HooksFailed { why }, .. } => world.met(crate::quiet::kind_of(&why)),
            Action::Report { what: Report::WishAgain { .. }, .. } if world.plan.hooks => world.met("a wish is tried again"),
            // Removal and other reports have no further consequence.
            _ => {}
        }
    }

    /// What the judges want to know of what is sent.
    fn note_sent(&self, message: &SourceMessage) {
        let (site, step) = (&self.site, self.world.step.get());
        match message {
            SourceMessage::Claim(ClaimRequest { claim, .. }) => {
                let vol = self.vol(claim.volume.id);
                vol.checked.set(step);
                let said = (vol.index, claim.volume.generation.0, claim.looked);
                self.world.claimants.borrow_mut().entry(said).or_default().insert(site.asker());
                site.claiming.borrow_mut()[vol.index] = self.claim_facts(vol.index);
            }
            SourceMessage::Resume(query) => self.vol(query.volume).checked.set(step),
            SourceMessage::EpochEnd(end) | SourceMessage::LabelledEnd(LabelledEnd { end, .. }) => {
                for member in &end.members {
                    let claim = site.claiming.borrow()[self.vol(member.key.volume).index].clone();
                    let author = Author { site: site.no, life: site.life.get(), claim };
                    self.world.authors.borrow_mut().insert(member.key, author);
                }
            }
            _ => {}
        }
    }

    /// What the shim rings the control thread for.
    async fn watch(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            let rung = self.control_bell.rung();
            for vol in &self.volumes {
                let id = self.world.names.ids[vol.index];
                let events = vol.shim.take_events();
                if let Some(epoch) = events.overflowed {
                    self.say(|| format!("v{} overflowed in epoch {epoch}", vol.index));
                    self.world.met("a cut overflows");
                    self.switcher.borrow_mut().demote(epoch);
                    self.push(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
                }
                if events.flush_failed {
                    vol.intent.borrow_mut().orders.push_back(IntentOrder::FlushFailed);
                    self.push(Event::FlushFailed { volume: id });
                }
                if events.tracking_lost {
                    self.tracking_lost(vol);
                }
            }
            steps.until(|| self.control_bell.rung() != rung).await;
            steps.pause().await;
        }
    }

    async fn switches(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            steps.pause().await;
            steps.until(|| self.switch.borrow().is_some() || self.switcher.borrow().is_busy()).await;
            let frozen = self.switcher.borrow_mut().poll();
            if let Some(frozen) = frozen {
                let pending = self.switch.take().expect("a switch was under way");
                let (epoch, info) = pending.begun.expect("it began");
                assert_eq!(epoch, frozen.epoch, "the switch that ended is the one that began");
                let members: Vec<_> = frozen
                    .members
                    .into_iter()
                    .map(|m| (self.volumes.iter().find(|v| Arc::ptr_eq(&v.shim, &m.volume)).expect("one of ours").index, m.set))
                    .collect();
                self.say(|| format!("grace of epoch {epoch} is over"));
                self.unread.borrow_mut().insert(epoch, members.iter().map(|m| m.0).collect());
                let members = members.into_iter().map(|(v, set)| (self.world.names.ids[v], set)).collect();
                self.push(Event::SwitchDone(SwitchDone { epoch, info, members }));
                continue;
            }
            self.begin_switch();
        }
    }

    fn begin_switch(&self) {
        let mut pending = self.switch.borrow_mut();
        let Some(pending) = pending.as_mut().filter(|p| p.begun.is_none()) else { return };
        let (world, site) = (&self.world, &self.site);
        let kind = if pending.kind == LayerKind::Point { Kind::Cut } else { Kind::Pass };
        let members: Vec<Member> =
            pending.members.iter().map(|m| Member { volume: self.vol(m.volume).shim.clone(), also: m.extra.clone() }).collect();
        let (mono_before_ns, wall_ms) = (world.mono_ns(), world.wall_ms() + world.source_wall_off_ms.get());
        let at_ns = world.mono_ns();
        let begun = self.switcher.borrow_mut().begin(kind, members);
        let mono_after_ns = world.mono_ns();
        // In the grace of the one before, or with its claims not given back: again after the next poll.
        let Ok(epoch) = begun else { return };
        let volumes: BTreeSet<usize> = pending.members.iter().filter_map(|m| world.volume_of(m.volume)).collect();
        self.say(|| format!("switch: epoch {epoch} frozen as {kind:?} of {volumes:?}"));
        let members = if kind == Kind::Cut { volumes } else { BTreeSet::new() };
        let mut oracle = site.oracle.borrow_mut();
        let attach = oracle.attach();
        oracle.switched(Cut { attach, epoch: epoch.0, at_ns, members });
        world.applications.borrow_mut().is_cut(epoch, at_ns);
        pending.begun = Some((epoch, EpochInfo { boot: site.boot.get(), mono_before_ns, mono_after_ns, wall_ms }));
    }

    /// Every cut that is not read to its end is given up.
    pub(super) fn demote_cuts(&self) {
        let cuts: Vec<EpochId> = self.unread.borrow().keys().copied().collect();
        for epoch in cuts.into_iter().filter(|epoch| self.switcher.borrow().is_cut(*epoch)) {
            self.switcher.borrow_mut().demote(epoch);
            self.push(Event::Demoted { epoch, why: DemoteCause::Member });
        }
    }

    /// A cut overflows from nowhere, as if the pool had been exhausted by somebody else.
    /// Says whether it is a cut.
    pub(super) fn demote_current(&self) -> bool {
        let epoch = EpochId(self.switcher.borrow().epoch().0.saturating_sub(1));
        let mut switcher = self.switcher.borrow_mut();
        if !switcher.is_cut(epoch) {
            return false;
        }
        self.say(|| format!("epoch {epoch} is demoted from outside"));
        switcher.demote(epoch);
        drop(switcher);
        self.push(Event::Demoted { epoch, why: DemoteCause::SideBuffer });
        true
    }

    async fn ticks(self: Rc<Self>) {
        let steps = self.world.steps();
        let mut next = 0;
        loop {
            steps.until(|| self.world.now_us.get() >= next && self.inbox.borrow().len() < 4).await;
            let time = self.sample_time();
            let mut volumes = Vec::new();
            for vol in &self.volumes {
                steps.pause().await;
                volumes.push(self.sample(vol));
            }
            self.push(Event::Tick(Tick { time, volumes }));
            self.record_losses();
            next = self.world.now_us.get() + 1_500;
            steps.pause().await;
        }
    }

    /// T of a sample is read before the maps.
    fn sample_time(&self) -> CutTime {
        let wall_ms = self.world.wall_ms() + self.world.source_wall_off_ms.get();
        CutTime { boot: self.site.boot.get(), mono_ns: self.world.mono_ns(), wall_ms }
    }

    fn sample(&self, vol: &Vol) -> (farside_region::VolumeId, Sample) {
        let geometry = self.site.geometry(vol.index);
        let in_flight = vol.shim.in_flight() as u64;
        let dirty_bytes = vol.shim.open_set().granule_count(&geometry) * geometry.granule_bytes();
        (self.world.names.ids[vol.index], Sample { dirty_bytes, in_flight, waits_for_disk: vol.waits_for_disk.get() })
    }

    fn sample_all(&self) -> Tick {
        let time = self.sample_time();
        Tick { time, volumes: self.volumes.iter().map(|vol| self.sample(vol)).collect() }
    }

    async fn connects(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            let mut not_before = 0;
            steps
                .until(|| {
                    let wanted = self.conn.get().is_none() && !self.halted.get() && self.world.receiver_up.get();
                    if !wanted {
                        not_before = 0;
                    } else if not_before == 0 {
                        not_before = self.world.now_us.get() + 800;
                    }
                    wanted && self.world.net.borrow().up && self.world.now_us.get() >= not_before
                })
                .await;
            let conn = self.world.net.borrow_mut().connect(self.site.no, &mut self.world.rng.borrow_mut());
            if let Some(conn) = conn {
                self.say(|| format!("connection {}", conn.0));
                self.conn.set(Some(conn));
                self.push(Event::Connected { connection: conn.0 });
            }
            steps.pause().await;
        }
    }

    async fn cools(self: Rc<Self>, v: usize) {
        let steps = self.world.steps();
        let vol = &self.volumes[v];
        let id = self.world.names.ids[v];
        let mut next = 0;
        loop {
            steps.pause().await;
            steps.until(|| !vol.cool.borrow().is_empty() || self.world.now_us.get() >= next).await;
            if self.halted.get() {
                return;
            }
            let batch = vol.cool.take();
            if batch.is_empty() {
                next = self.world.now_us.get() + 6_000;
                let geometry = self.site.geometry(v);
                let hot = |r: &farside_region::RegionIndex| vol.shim.region_state(*r) == farside_shim::RegionState::Hot;
                let regions: RegionSet = geometry.all_regions().iter().filter(hot).collect();
                // (A control loop that is behind is not asked for more.)
                if !regions.is_empty() && self.inbox.borrow().len() < 4 {
                    self.push(Event::CoolWanted { volume: id, regions });
                }
                continue;
            }
            let cooling = vol.cooler.borrow_mut().begin(&mut batch.iter().copied());
            if cooling > 0 {
                self.say(|| format!("v{v} cooling {:?}", batch.iter().map(|b| b.0.0).collect::<Vec<_>>()));
            }
            self.cool_batch(vol).await;
        }
    }

    async fn cool_batch(&self, vol: &Vol) {
        let steps = self.world.steps();
        let id = self.world.names.ids[vol.index];
        loop {
            steps.pause().await;
            let step = vol.cooler.borrow_mut().poll(&mut |region| self.core.borrow().mentions(id, region));
            match step {
                CoolStep::Idle => return,
                CoolStep::Wait => {}
                CoolStep::Flush => {
                    vol.cooler.borrow_mut().flush_begin();
                    vol.flushing.set(true);
                    let done = self.flush_backing(vol.index).await;
                    vol.flushing.set(false);
                    vol.cooler.borrow_mut().flush_end(done == Done::Ok);
                }
                // `Action::Cool` comes only when the header covers what was published.
                CoolStep::Header => vol.cooler.borrow_mut().header_durable(),
            }
        }
    }

    /// Sets bits: all that is asked for. While the map cannot be written "hot" is in memory alone.
    async fn heats(self: Rc<Self>, v: usize) {
        let steps = self.world.steps();
        let vol = &self.volumes[v];
        let volume = self.world.names.ids[v];
        let mut all = RegionSet::new();
        all.insert_range(self.site.geometry(v).all_regions());
        let is_hot = |want: &Option<RegionSet>| {
            let regions = want.as_ref().unwrap_or(&all);
            // Asked each time: a region that was cooling when it was asked for may have become cold since.
            vol.shim.heat(regions);
            vol.shim.is_hot(regions)
        };
        loop {
            steps.pause().await;
            let may = || {
                let sound = vol.shim.tracking() == Tracking::Sound || farside_region::mutation::on(WITHDRAWN);
                sound && self.world.now_us.get() >= vol.passed_until_us.get()
            };
            steps.until(|| !vol.heats.borrow().is_empty() && may() && vol.heats.borrow().iter().any(is_hot)).await;
            let (done, left) = vol.heats.take().into_iter().partition(is_hot);
            vol.heats.replace(left);
            for want in done {
                self.push(match want {
                    None => Event::AllHot { volume },
                    Some(regions) => Event::Heated { volume, regions },
                });
            }
        }
    }

    /// A planned stop begins (T2).
    pub fn stop(self: &Rc<Self>) {
        if !self.served.get() || self.stopping.replace(true) {
            return;
        }
        self.say(|| "a planned stop begins".into());
        self.world.spawn(self.owner, "stop", self.clone().stops());
    }

    async fn stops(self: Rc<Self>) {
        let steps = self.world.steps();
        steps.until(|| self.volumes.iter().all(|v| v.requests.get() == 0)).await;
        // What a verify found to differ becomes owed when its bit is durable.
        let patience = self.world.now_us.get() + 20_000;
        let heating = || self.world.names.ids.iter().any(|id| self.core.borrow().is_heating(*id));
        steps.until(|| self.world.now_us.get() >= patience || !heating()).await;
        // What was acknowledged up to now is in the samples by which "settled" is judged.
        self.push(Event::Tick(self.sample_all()));
        self.push(Event::Drain);
        steps.until(|| self.inbox.borrow().is_empty()).await;
        let patience = self.world.now_us.get() + if self.world.chance(0.5) { 1_000 } else { 60_000 };
        steps.until(|| self.world.now_us.get() >= patience || self.core.borrow().settled()).await;
        // Asked at the same moment: a person may resume a volume a moment later.
        let settled = self.core.borrow().settled();
        let settled: Vec<bool> = (0..self.volumes.len()).map(|v| settled && self.is_well(v)).collect();
        if settled.iter().all(|one| *one) {
            self.says_that_all_is_published();
        }
        steps.until(|| self.switch.borrow().is_none() && !self.core.borrow().switching()).await;
        self.push(Event::Halt);
        steps.until(|| self.halted.get()).await;
        self.record_losses();
        for vol in self.volumes.iter().filter(|v| v.served.get()) {
            self.leave(vol, settled[vol.index]).await;
        }
        self.ended.set(true);
    }

    /// Its last word, and the end of its connection. Of another host than one that stands in nobody here asks for it.
    fn says_that_all_is_published(&self) {
        let mut net = self.world.net.borrow_mut();
        if let Some(conn) = self.conn.get().filter(|conn| self.site.stands_in && net.alive(self.site.no) == Some(*conn)) {
            net.send(To::Receiver, conn, Load::Settled);
            net.hang_up(conn);
        }
    }

    /// All of it is published, as far as it knows.
    pub fn owes_nothing(&self) -> bool {
        self.served.get() && self.core.borrow().settled() && (0..self.volumes.len()).all(|v| self.is_well(v))
    }

    /// Everything of it can be read, and nobody holds it back.
    fn is_well(&self, v: usize) -> bool {
        let status = self.core.borrow().status(self.world.mono_ns());
        let known = status.volumes.iter().find(|s| s.volume == self.world.names.ids[v]);
        known.is_some_and(|s| s.state == farside_replication::source::State::Streaming && s.unreadable_bytes == 0)
    }

    /// The last of a planned stop: flush, masks, `clean` – or none of it.
    async fn leave(&self, vol: &Vol, settled: bool) {
        let v = vol.index;
        let flush = vol.shim.flush_begin();
        let unflushed = farside_region::mutation::on("T2 clean without flush");
        let done = if unflushed { Done::Ok } else { self.flush_backing(v).await };
        vol.shim.flush_end(flush, done == Done::Ok);
        let of_this_boot = vol.intent.borrow().header.flush_failed == Some(self.site.boot.get());
        let failed = done != Done::Ok || vol.shim.flush_failures() > 0 || of_this_boot;
        if failed {
            vol.intent.borrow_mut().orders.push_back(IntentOrder::FlushFailed);
        }
        let mut owed = self.core.borrow().owed(self.world.names.ids[v]);
        owed.union_with(&vol.shim.open_set());
        let lost = vol.loss.get() != Loss::Kept || self.site.state_dir.borrow()[v].tracking_lost;
        let in_doubt = failed || vol.shim.tracking() != Tracking::Sound || vol.flushing.get() || !vol.heats.borrow().is_empty();
        if lost || in_doubt {
            self.say(|| format!("v{v} stops without `clean`"));
            let settle = || vol.intent.borrow().orders.is_empty();
            self.world.steps().until(settle).await;
            self.world.steps().pause().await;
            return;
        }
        if settled && !owed.is_empty() && self.is_well(v) {
            self.world.fail(format!("T2: v{v} is settled, and owes {} granules", owed.granule_count(&self.site.geometry(v))));
        }
        let answer = Rc::new(Cell::new(None));
        vol.intent.borrow_mut().orders.push_back(IntentOrder::Clean { owed, answer: answer.clone() });
        self.world.steps().until(|| answer.get().is_some()).await;
    }
}

/// The first words of something long.
pub(crate) fn short(thing: &impl std::fmt::Debug) -> String {
    let mut text = format!("{thing:?}");
    if text.len() > 220 {
        let mut at = 220;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
        text.push('…');
    }
    text
}
