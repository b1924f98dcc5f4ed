//! The receiver's process for one group, as small as it can be, around the product's `replication::Target`, ledger replay and
//! `store` index.
//!
//! | here | in the receiver |
//! |---|---|
//! | `Receiver::act` and the `group` task | the group's thread |
//! | a `land` task per part: verify, write, sync, name | landing writes on blocking threads |
//! | the `append` task: link the parts, PUT the record, replay what came first | the store's writer |
//! | `World::landing`, [`crate::store::MemoryStore`] | the directory store |
//!
//! What belongs here is the order of durable steps: a part is reported landed when it is durable under its name; parts are
//! in the store before the slot that names them is written; files are deleted only after the record that gives them up.

mod collector;
mod compactor;
mod fence;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use farside_layer::{PartVerifier, granule_digest};
use farside_ledger::{
    Body, CohortCut, LayerEntry, PartEntry, Pin, Point, Policy, Prune, Record, Stamp, State, Unpin, Verdict, VolumeState,
};
use farside_region::{GranuleIndex, GranuleRun, LayerKey, LedgerPosition, Seq, Slot, Term};
use farside_replication::cohort::{CutsOfGroup, cuts_of};
use farside_replication::target::{Action, AppendOutcome, Config, Dated, Event, LandedLayer, Limits, SessionId, Target, Ticket};
use farside_store::{Attempt, Draft, GroupImage, Part, PartName};
use farside_wire::{DigestRun, PART_HEADER_BYTES, PartHeader, ReceiverMessage};

use crate::coverage;
use crate::exec::Owner;
use crate::failover;
use crate::net::{ConnId, Load, To};
use crate::parts::{self, Content};
use crate::plan::Fault;
use crate::source::short;
use crate::store::PutResult;
use crate::world::{SegmentKey, World};
use fence::Fencing;

/// What is kept back of a disk that has a size; half of it for pruning.
pub const RESERVE_BYTES: u64 = 8_000;

/// Slots that a checkpoint covers.
pub const CHECKPOINT_SLOTS: u64 = 32;

/// One process of the receiver.
pub struct Receiver {
    world: Rc<World>,
    owner: Owner,
    writer: [u8; 16],
    target: RefCell<Target>,
    group: RefCell<GroupImage>,
    inbox: RefCell<VecDeque<Event>>,
    /// Sessions that stand, as far as this process knows.
    sessions: RefCell<BTreeSet<u64>>,
    appends: RefCell<VecDeque<(Ticket, Vec<Dated>)>>,
    appending: Cell<bool>,
    landing_now: Cell<usize>,
    submissions: Cell<u64>,
    /// Merges that are being written, and those that were submitted.
    merging: RefCell<BTreeMap<LayerKey, Option<u64>>>,
    /// A record is being put, a heartbeat too.
    writing: Cell<bool>,
    fencing: Fencing,
    /// The newest connection of each machine, as far as this process heard, and whether its last word was that all is published.
    last_words: RefCell<BTreeMap<usize, (ConnId, bool)>>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Receiver({:?})", self.owner)
    }
}

/// An empty group of this world, with the ledger's own mistakes switched on if they are.
pub fn new_group(world: &World) -> GroupImage {
    GroupImage::new(world.names.group_id)
}

/// What a crash takes with it. Landing that was not synced is gone with its task; a power cut, or a landing disk put back,
/// sometimes takes what was.
///
/// Where the landing disk goes back, no write of the dead process is left that may still land: a segment's name would get two
/// contents. (With the directory store none ever is; object stores will need the rule that a claim anew comes first.)
pub fn crashed(world: &World, power: bool) {
    let lost = power && world.chance(0.4);
    {
        let mut rng = world.rng.borrow_mut();
        let mut store = world.store.borrow_mut();
        store.orphan(|| rng.chance(0.5));
        if lost {
            store.forget_flight();
        }
    }
    if lost {
        let mut landing = world.landing.borrow_mut();
        let mut rng = world.rng.borrow_mut();
        // All of it, some files, or those of one volume.
        let (how, one) = (rng.below(3), rng.below(world.volumes()));
        landing.retain(|name, _| match how {
            0 => false,
            1 => rng.chance(0.6),
            _ => name.0 != one,
        });
        world.ends.borrow_mut().retain(|key, _| match how {
            0 => false,
            1 => rng.chance(0.6),
            _ => world.volume_of(key.volume) != Some(one),
        });
        drop(landing);
        drop(rng);
        world.say(|| "the landing disk lost what was durable on it".into());
    }
}

fn core_limits(world: &World) -> Limits {
    Limits {
        sessions_max: 3,
        credit_window: if world.plan.tight { 1_500 } else { 1 << 20 },
        credit_step: if world.plan.tight { 200 } else { 1 << 16 },
        credit_idle: 80_000_000,
        layers_max: 64,
        parts_max: 64,
        heartbeat_record: 30_000_000,
        append_retry: 5_000_000,
        slice_ranges_max: if world.plan.tight { 2 } else { 1000 },
        file_bytes: 1,
        record_interval: 100_000,
        publish_every: world.plan.publish_every,
        // Few, so that these end a wait, too.
        publish_bytes: 20_000,
        publish_layers: 12,
        ..Limits::default()
    }
}

/// The layer of a segment.
pub fn layer_key(world: &World, name: &SegmentKey) -> LayerKey {
    LayerKey { volume: world.names.ids[name.0], term: Term(name.1), seq: Seq(name.2) }
}

impl Receiver {
    /// Begins a life: replay, sweep, and what landing holds.
    pub fn start(world: &Rc<World>) -> Rc<Self> {
        let owner = world.owner();
        let mut actions = Vec::new();
        let (group, target) = enter(world, &mut actions);
        let writer = world.rng.borrow_mut().bytes16();
        world.entered.set((world.step.get(), writer));
        let me = Rc::new(Self {
            world: world.clone(),
            owner,
            writer,
            target: RefCell::new(target),
            group: RefCell::new(group),
            inbox: RefCell::default(),
            sessions: RefCell::default(),
            appends: RefCell::default(),
            appending: Cell::new(false),
            landing_now: Cell::new(0),
            submissions: Cell::new(0),
            merging: RefCell::default(),
            writing: Cell::new(false),
            fencing: Fencing::default(),
            last_words: RefCell::default(),
        });
        actions.into_iter().for_each(|action| me.act(action));
        me.grant();
        world.receiver_up.set(true);
        let spawn = |name: &str, body: std::pin::Pin<Box<dyn Future<Output = ()>>>| world.spawn(owner, name, body);
        spawn("group", Box::pin(me.clone().events()));
        spawn("writer", Box::pin(me.clone().writes()));
        spawn("rticks", Box::pin(me.clone().ticks()));
        if world.plan.has(Fault::Promote) {
            spawn("fence", Box::pin(me.clone().fences()));
        }
        (0..world.plan.compactors).for_each(|_| spawn("compactor", Box::pin(me.clone().compacts())));
        me
    }

    /// Its process is gone.
    pub fn die(&self) {
        self.world.receiver_up.set(false);
        let bodies = self.world.tasks.borrow_mut().kill(self.owner);
        drop(bodies);
        self.inbox.borrow_mut().clear();
    }

    /// Something arrived.
    pub fn on_message(self: &Rc<Self>, conn: ConnId, load: Load) {
        let Some(load) = self.admit(conn, load) else { return };
        let session = SessionId(conn.0);
        match load {
            Load::Control(bytes) => match farside_wire::decode_payload(&bytes) {
                Ok(message) => {
                    if self.is_new_beside_a_failover(conn, &message) {
                        return;
                    }
                    if !self.sessions.borrow().contains(&conn.0) {
                        // The first message of a connection opens its session; one that was closed stays closed.
                        if !self.world.seen_connections.borrow_mut().insert(conn.0) {
                            return;
                        }
                        self.sessions.borrow_mut().insert(conn.0);
                        self.owes_again(conn);
                    }
                    self.push(Event::Message { session, message: Box::new(message) });
                }
                Err(e) => self.world.fail(format!("the source sent what the receiver cannot read: {e}")),
            },
            Load::Part(bytes) => {
                if self.sessions.borrow().contains(&conn.0) {
                    self.landing_now.set(self.landing_now.get() + 1);
                    let me = self.clone();
                    self.world.spawn(self.owner, "land", async move { me.land(session, bytes).await });
                }
            }
            Load::Closed | Load::Settled => {
                if self.sessions.borrow_mut().remove(&conn.0) {
                    self.hear_last_word(conn, matches!(load, Load::Settled));
                    self.push(Event::Closed { session });
                }
            }
        }
    }

    fn push(&self, event: Event) {
        self.inbox.borrow_mut().push_back(event);
    }

    async fn events(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            steps.pause().await;
            steps.until(|| !self.inbox.borrow().is_empty() && !self.fencing.holds()).await;
            let event = self.inbox.borrow_mut().pop_front().expect("something is there");
            self.step(event);
        }
    }

    fn step(&self, event: Event) {
        if !matches!(event, Event::Tick) {
            self.world.say(|| format!("receiver ← {}", short(&event)));
        }
        if let Event::Appended { outcome: AppendOutcome::Judged { records }, .. } = &event
            && let Some((position, _)) = records.last()
        {
            self.world.told.set((position.slot.0, self.world.step.get()));
        }
        let mut actions = Vec::new();
        {
            let group = self.group.borrow();
            self.target.borrow_mut().step(self.world.mono_ns(), group.state(), event, &mut actions);
        }
        actions.into_iter().for_each(|action| self.act(action));
    }

    async fn ticks(self: Rc<Self>) {
        let steps = self.world.steps();
        let mut next = 0;
        loop {
            steps.until(|| self.world.now_us.get() >= next && self.inbox.borrow().len() < 4).await;
            self.push(Event::Tick);
            if self.world.chance(0.2) {
                self.grant();
            }
            // What ages without a new point goes, too.
            if self.world.plan.span_ms > 0 && self.world.chance(0.1) {
                self.prune();
            }
            next = self.world.now_us.get() + 3_000;
            steps.pause().await;
        }
    }

    fn grant(&self) {
        if let Some(free) = self.world.store_free() {
            let (free_bytes, spare_bytes) = (free.saturating_sub(RESERVE_BYTES), free.saturating_sub(RESERVE_BYTES / 2));
            return self.push(Event::Grantable { free_bytes, disk_bytes: free_bytes, spare_bytes, reserve_bytes: RESERVE_BYTES });
        }
        let used: usize = self.world.landing.borrow().values().map(Vec::len).sum();
        let cap: u64 = if self.world.store_is_full() {
            0
        } else if self.world.plan.tight {
            40_000
        } else {
            1 << 20
        };
        let spare_bytes = if self.world.store_is_full() { 0 } else { u64::MAX };
        self.push(Event::Grantable {
            free_bytes: cap.saturating_sub(used as u64),
            disk_bytes: cap.saturating_sub(used as u64),
            spare_bytes,
            reserve_bytes: 100,
        });
    }

    /// A part that arrived: checked to the last byte, written, synced, and only then known by its name.
    async fn land(self: Rc<Self>, session: SessionId, stream: Vec<u8>) {
        let world = self.world.clone();
        let steps = world.steps();
        steps.pause().await;
        let alive = || self.sessions.borrow().contains(&session.0);
        let parsed =
            stream.split_first_chunk::<PART_HEADER_BYTES>().and_then(|(head, rest)| Some((PartHeader::decode(head).ok()?, rest)));
        let Some((header, bytes)) = parsed else {
            world.fail("a part's header cannot be read".into());
            return;
        };
        let volume = world.volume_of(header.key.volume).expect("one of ours");
        let id = farside_layer::PartId { key: header.key, part: header.part, geometry: world.shape(volume, header.key.term) };
        let mut verifier = PartVerifier::new(id, &world.names.digest_key(header.key.volume));
        let verified = verifier.feed(bytes).and_then(|()| verifier.finish());
        let summary = match verified {
            Ok(summary) => summary,
            Err(e) => {
                world.fail(format!("L4: a part does not verify on arrival: {e}"));
                return;
            }
        };
        steps.pause().await; // written
        let room = world.store_free().is_none_or(|free| free >= RESERVE_BYTES + bytes.len() as u64);
        if world.store_is_full() || !room {
            world.met("a part has no room");
            self.push(Event::PartFailed { session, key: header.key, part: header.part, why: "no space left on device".into() });
            self.landing_now.set(self.landing_now.get() - 1);
            return;
        }
        steps.pause().await; // synced
        if alive() {
            let name: SegmentKey = (volume, header.key.term.0, header.key.seq.0, header.part);
            world.landing.borrow_mut().insert(name, bytes.to_vec());
            let entry = PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest };
            world.say(|| format!("part v{volume} {}.{}.{} is landed", header.key.term, header.key.seq, header.part));
            self.push(Event::PartLanded { session, key: header.key, part: header.part, entry });
        }
        self.landing_now.set(self.landing_now.get() - 1);
    }

    fn act(&self, action: Action) {
        let world = &self.world;
        match coverage::of_target(&action) {
            Some(name) => world.met(name),
            None => return world.fail(format!("the simulator does not know the action {}", short(&action))),
        }
        match action {
            Action::Send { session, message } => {
                world.say(|| format!("receiver sends {}", short(&message)));
                let bytes = farside_wire::encode_payload(&*message).expect("messages are paged");
                world.net.borrow_mut().send(To::Source, ConnId(session.0), Load::Control(bytes.to_vec()));
            }
            Action::CloseSession { session, why } => {
                world.say(|| format!("receiver closes connection {}: {why}", session.0));
                self.sessions.borrow_mut().remove(&session.0);
                // No event of it may follow.
                self.inbox.borrow_mut().retain(|e| {
                    !matches!(e, Event::Message { session: s, .. } | Event::PartLanded { session: s, .. }
                        | Event::PartFailed { session: s, .. } | Event::Closed { session: s } if *s == session)
                });
                world.net.borrow_mut().send(To::Source, ConnId(session.0), Load::Closed);
                world.net.borrow_mut().hang_up(ConnId(session.0));
            }
            Action::Append { ticket, records } => self.appends.borrow_mut().push_back((ticket, records)),
            Action::Submitted { submission, outcome } => {
                world.say(|| format!("submission {submission}: {outcome:?}"));
                self.merge_submitted(submission);
            }
            Action::DropLayer { key } => self.drop_parts(key, 0),
            Action::DropParts { key, from } => self.drop_parts(key, from),
            Action::KeepEnd { end, .. } => drop(world.ends.borrow_mut().insert(end.key, *end)),
            Action::ReadDigests { session, id, volume, run } => {
                let runs = self.digests(volume, run);
                self.push(Event::Digests { session, id, volume, start: run.start, runs });
            }
            Action::Prune => self.prune(),
            Action::AnswerLedger { session, slice, position } => {
                // All that is known of layers is exact here: ledgers are short.
                let is_ours = |position: &LedgerPosition| {
                    let store = world.store.borrow();
                    let record = store.ledger().get(position.slot.0 as usize).map(|bytes| Record::decode(bytes));
                    record.is_some_and(|record| record.expect("it never rots").1 == position.digest)
                };
                let slice = if position.as_ref().is_none_or(is_ours) { *slice } else { slice.rewound() };
                self.act(Action::Send { session, message: Box::new(ReceiverMessage::LedgerSlice(slice)) });
            }
            _ => {}
        }
    }

    fn drop_parts(&self, key: LayerKey, from: u32) {
        let volume = self.world.volume_of(key.volume).expect("one of ours");
        self.world.say(|| format!("receiver drops v{volume} {}.{} from part {from}", key.term, key.seq));
        let drop_it = |n: &SegmentKey| n.0 == volume && n.1 == key.term.0 && n.2 == key.seq.0 && n.3 >= from;
        self.world.ends.borrow_mut().remove(&key);
        self.world.landing.borrow_mut().retain(|n, _| !drop_it(n));
        if self.group.borrow().state().layer(&key).is_none() {
            let names: Vec<SegmentKey> = self.world.store.borrow().names().filter(|n| drop_it(n)).copied().collect();
            names.iter().for_each(|n| self.world.store.borrow_mut().delete(n));
        }
    }

    /// Digests of the head image.
    fn digests(&self, volume: farside_region::VolumeId, run: GranuleRun) -> Result<Vec<DigestRun>, String> {
        let group = self.group.borrow();
        let v = self.world.volume_of(volume).ok_or("no such volume")?;
        let key = self.world.names.digest_key(volume);
        let mut out = Vec::new();
        for granule in run.start.0..run.end().0 {
            let one = GranuleRun { start: GranuleIndex(granule), count: 1 };
            let extent = group.head(volume).and_then(|head| head.index.extents(one).next());
            let Some(extent) = extent else {
                out.push(DigestRun::Absent { granules: 1 });
                continue;
            };
            let part = group.parts().get(extent.part).ok_or("a part that was given up is in the head image")?;
            let unpacked = parts::segment(&self.world, part.name.layer, part.name.number)?;
            let found =
                unpacked.iter().rev().find(|(r, _)| r.overlaps(&one)).ok_or("the index names a part without the granule")?;
            let shape = self.world.shape(v, part.name.layer.term);
            out.push(match parts::cut(&found.1, &shape, found.0, one) {
                Content::Zero => DigestRun::Zero { granules: 1 },
                Content::Unreadable => DigestRun::Unreadable { granules: 1 },
                Content::Data(data) => DigestRun::Data(vec![granule_digest(&key, one.start, &data)]),
            });
        }
        Ok(out)
    }

    fn policy(&self) -> Policy {
        self.world.policy()
    }

    fn submit(&self, body: Body) {
        self.submissions.set(self.submissions.get() + 1);
        self.push(Event::Submit { submission: self.submissions.get(), body: Box::new(body) });
    }

    fn prune(&self) {
        let Some(prune) = self.prune_plan() else { return };
        if let Some(slot) = prune.points.iter().find(|slot| self.world.must_keep.borrow().contains(slot)) {
            self.world.fail(format!(
                "L5: point {slot} is to be given up, and is of one of the newest cuts of the cohort that are whole"
            ));
        }
        if !self.inbox.borrow().iter().any(|e| matches!(e, Event::Submit { .. })) {
            self.submit(Body::Prune(prune));
        }
    }

    /// Of a cohort of which it is not known what is kept, nothing is given up.
    fn prune_plan(&self) -> Option<Prune> {
        let kept = self.world.kept.borrow();
        self.group.borrow().prune_plan_keeping(&self.policy(), kept.as_ref()?, &BTreeSet::new())
    }

    /// What the group has of cuts of a cohort, as it answers whoever asks.
    pub(crate) fn cuts_of(&self, cohort: &str) -> CutsOfGroup<Slot> {
        cuts_of(self.group.borrow().state(), cohort, Some)
    }

    /// All points that say that they are of one, in the same state of the group.
    pub(crate) fn cohort_points(&self) -> Vec<(Slot, CohortCut, bool)> {
        let group = self.group.borrow();
        let of = |(slot, point): (&Slot, &Point)| Some((*slot, point.consistency().cohort_cut()?, point.degraded));
        group.state().points().iter().filter_map(of).collect()
    }

    /// A person pins a point, or takes a pin away.
    /// Says whether there was something.
    pub fn pin_something(&self) -> bool {
        let group = self.group.borrow();
        let state = group.state();
        let is_ours = |why: &str| why.starts_with(failover::PIN) || why.starts_with(crate::failback::held::PIN);
        let pins = state.points().values().flat_map(|p| p.pins.iter().filter(|(_, why)| !is_ours(why)));
        let pins: Vec<Slot> = pins.map(|(pin, _)| *pin).collect();
        let points: Vec<Slot> = state.points().keys().copied().collect();
        let mut rng = self.world.rng.borrow_mut();
        let body = if !pins.is_empty() && rng.chance(0.4) {
            Body::Unpin(Unpin { pin: rng.pick(&pins) })
        } else if !points.is_empty() {
            Body::Pin(Pin { point: rng.pick(&points), reason: "because".into() })
        } else {
            return false;
        };
        drop(rng);
        self.submit(body);
        true
    }

    async fn writes(self: Rc<Self>) {
        let steps = self.world.steps();
        loop {
            steps.pause().await;
            steps.until(|| !self.appends.borrow().is_empty() && !self.fencing.holds()).await;
            self.writing.set(true);
            let (ticket, records) = self.appends.borrow_mut().pop_front().expect("just seen");
            self.appending.set(!is_heartbeat(&records));
            if records.len() > 1 {
                self.world.met("records that are appended together");
            }
            let outcome = self.append(records).await;
            steps.pause().await;
            self.push(Event::Appended { ticket, outcome });
            self.appending.set(false);
            self.writing.set(false);
        }
    }

    async fn append(&self, said: Vec<Dated>) -> AppendOutcome {
        let world = &self.world;
        let steps = world.steps();
        if world.store_is_full() {
            steps.pause().await;
            world.met("an append fails");
            return AppendOutcome::Failed { text: "no space left on device".into() };
        }
        // What earlier records of the same append lay over the head image.
        let mut over = BTreeMap::new();
        for layers in said.iter().filter_map(|said| if let Body::Layers(layers) = &said.body { Some(layers) } else { None }) {
            for entry in &layers.members {
                self.check_said(entry, over.entry(entry.key.volume).or_default());
                if let Err(why) = self.link(entry) {
                    // (A mutated receiver names again what was pruned since.)
                    if !farside_region::mutation::on("a layer retried at a later slot") {
                        world.fail(why);
                    }
                    return AppendOutcome::Failed { text: "a part is not there".into() };
                }
                steps.pause().await;
            }
        }
        let attempt = {
            let group = self.group.borrow();
            let draft = |Dated { body, ago }: Dated| {
                let ago_us = (ago / 1000).min(world.now_us.get());
                let stamp = Stamp {
                    writer: self.writer,
                    mono_ms: (world.now_us.get() - ago_us) / 1000,
                    wall_ms: world.wall_ms() + world.receiver_wall_off_ms.get() - (ago_us / 1000) as i64,
                };
                Draft { body, nonce: world.rng.borrow_mut().bytes16(), stamp }
            };
            Attempt::of_all(group.state(), said.into_iter().map(draft).collect()).expect("records of the simulator are small")
        };
        if self.fencing.holds() {
            world.fences.borrow_mut().extend(attempt.records.iter().map(|(_, digest)| *digest));
        }
        let slot = attempt.slot().0;
        let bytes = |(record, _): &(Record, _)| record.encode().expect("records of the simulator are small").bytes;
        let put = world.store.borrow_mut().put(slot, attempt.records.iter().map(bytes).collect(), attempt.bytes.clone());
        let result = steps.get(|| world.store.borrow_mut().take(put)).await;
        steps.pause().await; // a crash here: the answer is lost
        if result == PutResult::Exists {
            world.say(|| format!("slot {slot} was taken"));
        }
        self.catch_up(&attempt)
    }

    /// The store would refuse a layer whose end message says less than its parts and what lies below them show: a degraded
    /// point would be called a good one.
    fn check_said(&self, entry: &LayerEntry, (before, over): &mut (u64, Vec<(GranuleRun, farside_store::Content)>)) {
        let group = self.group.borrow();
        let next = |volume: &VolumeState| LayerKey { seq: Seq(volume.next_key().seq.0 + *before), ..volume.next_key() };
        let is_next = group.state().volume(entry.key.volume).is_some_and(|v| next(v) == entry.key);
        if !is_next || group.state().layer(&entry.key).is_some() {
            return;
        }
        *before += 1;
        for part in 0..entry.parts.len() as u32 {
            match parts::runs(&self.world, entry.key, part) {
                Ok(farside_store::PartRuns::Known(runs)) => over.extend(runs),
                _ => return, // not there: linking says so
            }
        }
        let mut unsaid = group.unreadable_after(entry.key.volume, &entry.regions, over);
        unsaid.subtract(&entry.unreadable_regions);
        if let Some(region) = unsaid.first() {
            let key = entry.key;
            self.world.fail(format!("layer {key}: region {region} holds an unreadable run, which the end message does not say"));
        }
    }

    /// Replays what is in the ledger and not in the state; says what became of ours.
    fn catch_up(&self, attempt: &Attempt) -> AppendOutcome {
        let world = &self.world;
        let mut ours = Vec::new();
        let from = self.group.borrow().state().next_slot().0 as usize;
        let records: Vec<Vec<u8>> = world.store.borrow().ledger()[from..].to_vec();
        for bytes in records {
            let (record, digest) = Record::decode(&bytes).expect("the ledger of the simulator never rots");
            let is_ours = attempt.records.iter().any(|(_, its)| *its == digest);
            let applied = self.group.borrow_mut().apply(&record, digest, |part| parts::runs_of(world, part));
            match applied {
                Ok(applied) => {
                    if is_ours {
                        let position = self.group.borrow().state().position().expect("not empty");
                        ours.push((position, applied.verdict));
                    }
                    self.tidy(&applied.given_up);
                    self.checkpoint();
                    if applied.verdict == Verdict::Accepted && matches!(record.body, Body::Claim(_) | Body::Decree(_)) {
                        self.sweep_dead_terms();
                    }
                }
                Err(why) => world.fail(format!("L4: {why}")),
            }
        }
        match ours.len() {
            0 => AppendOutcome::Collided,
            n if n == attempt.records.len() => AppendOutcome::Judged { records: ours },
            n => {
                world.fail(format!("{n} of {} records that were appended together are in the ledger", attempt.records.len()));
                AppendOutcome::Collided
            }
        }
    }

    /// What merges replaced goes only once they are known without their records.
    fn checkpoint(&self) {
        let next = self.group.borrow().state().next_slot();
        if next.0.is_multiple_of(CHECKPOINT_SLOTS) {
            collector::write_checkpoints(&self.world, next.0);
            self.world.store.borrow_mut().cover(next.0);
            let gone = self.group.borrow_mut().covered(next);
            if !gone.is_empty() {
                self.world.met("a checkpoint covers a merge");
            }
            self.tidy(&gone);
        }
    }

    /// Files that nothing needs any more: what an accepted prune gave up, and landing that became segments.
    fn tidy(&self, given_up: &[Part]) {
        let published: Vec<SegmentKey> = {
            let group = self.group.borrow();
            let landing = self.world.landing.borrow();
            landing.keys().filter(|n| group.state().layer(&layer_key(&self.world, n)).is_some()).copied().collect()
        };
        published.iter().for_each(|n| drop(self.world.landing.borrow_mut().remove(n)));
        self.world.ends.borrow_mut().retain(|key, _| self.group.borrow().state().layer(key).is_none());
        for Part { name, .. } in given_up {
            let Some(volume) = self.world.volume_of(name.layer.volume) else { continue };
            if self.world.plan.cascades > 0 {
                continue; // somebody may read it
            }
            self.delete((volume, name.layer.term.0, name.layer.seq.0, name.number));
        }
    }

    /// A claim took the term from what an older one had landed or linked, and not published: it goes at once, not at the next
    /// start.
    fn sweep_dead_terms(&self) {
        let (world, group) = (&self.world, self.group.borrow());
        let debris = |n: &SegmentKey| group.is_debris(&PartName { layer: layer_key(world, n), number: n.3 });
        // In landing also what the target never heard of: its session was gone when the file was.
        world.landing.borrow_mut().retain(|n, _| !debris(n));
        for segment in collector::unread_debris(world, &group) {
            world.met("a sweep in operation");
            self.delete(segment);
        }
    }

    fn delete(&self, segment: SegmentKey) {
        let world = self.world.clone();
        self.world.spawn(self.owner, "delete", async move {
            world.steps().pause().await;
            world.say(|| format!("segment {segment:?} is deleted"));
            world.store.borrow_mut().delete(&segment);
        });
    }

    /// The parts of a layer are in the store, under their final names, before a slot may name them.
    fn link(&self, entry: &LayerEntry) -> Result<(), String> {
        let volume = self.world.volume_of(entry.key.volume).ok_or("no such volume")?;
        let given_up = self.world.given_up.borrow().contains(&(volume, entry.key.term.0, entry.key.seq.0));
        for (part, known) in (0u32..).zip(&entry.parts) {
            let name: SegmentKey = (volume, entry.key.term.0, entry.key.seq.0, part);
            let landed = self.world.landing.borrow().get(&name).cloned();
            let mut store = self.world.store.borrow_mut();
            match (landed, store.segment(&name)) {
                // Of a layer that a record named which was given up since: no record can name that content any more.
                (Some(bytes), Some(there)) if bytes != there && given_up => {
                    self.world.met("a given up layer is sent again");
                    store.delete(&name);
                    store.link(name, bytes);
                    self.world.unpacked.borrow_mut().remove(&name);
                }
                (Some(bytes), Some(there)) if bytes != there => {
                    return Err(format!("segment {name:?} is in the store with other content: its name was used twice"));
                }
                (Some(bytes), None) => store.link(name, bytes),
                (_, Some(_)) => {}
                (None, None) => {
                    return Err(format!("a record is to name part {name:?} of {} bytes, which is nowhere", known.bytes));
                }
            }
        }
        Ok(())
    }

    /// Nothing landing, nothing to append, nothing to prune.
    ///
    /// # Errors
    /// Says what is.
    pub fn converged(&self) -> Result<(), String> {
        let wait = self.appends.borrow().iter().any(|(_, records)| !is_heartbeat(records));
        if self.appending.get() || wait || self.landing_now.get() > 0 {
            return Err("the receiver is at work".into());
        }
        if self.is_merging() {
            return Err("parts are being merged".into());
        }
        let landing = self.world.landing.borrow();
        if !landing.is_empty() {
            return Err(format!("landing still holds {:?}", landing.keys().collect::<Vec<_>>()));
        }
        let group = self.group.borrow();
        if let Some(plan) = self.prune_plan() {
            return Err(format!("something may be pruned: {:?} {:?}", plan.points, plan.parts));
        }
        let known: BTreeSet<PartName> = group.parts().iter().map(|(_, p)| p.name).collect();
        let store = self.world.store.borrow();
        // Debris goes with the sweep of the next start (T4).
        let name = |n: &SegmentKey| PartName { layer: layer_key(&self.world, n), number: n.3 };
        let is_known = |name: &PartName| known.contains(name) || group.is_replaced(name);
        let stray = store.names().find(|n| !is_known(&name(n)) && !group.is_debris(&name(n)));
        stray.map_or(Ok(()), |n| Err(format!("segment {n:?} belongs to nothing")))
    }

    /// L8, as far as it can be seen from outside.
    ///
    /// # Errors
    /// Names the limit.
    pub fn within_limits(&self) -> Result<(), String> {
        let limits = core_limits(&self.world);
        let sessions = self.target.borrow().sessions().len();
        if sessions > limits.sessions_max {
            return Err(format!("L8: {sessions} sessions stand"));
        }
        let inbox = self.inbox.borrow().len();
        if inbox > 1000 {
            return Err(format!("L8: {inbox} events wait at the receiver"));
        }
        Ok(())
    }

    /// After convergence nothing may be left over.
    ///
    /// # Errors
    /// Names what is.
    pub fn nothing_grew(&self, state: &State, policy: &Policy) -> Result<(), String> {
        let Some(kept) = &*self.world.kept.borrow() else { return Ok(()) };
        match state.prunable_beside_kin(policy, &BTreeSet::new()).iter().find(|slot| !kept.contains(slot)) {
            Some(slot) => Err(format!("L8: point {slot} should have been pruned")),
            None => Ok(()),
        }
    }
}

fn is_heartbeat(records: &[Dated]) -> bool {
    records.iter().all(|said| matches!(said.body, Body::Heartbeat(_)))
}

/// Replay, sweep, and what landing holds: a target that has heard of nobody.
fn enter(world: &World, actions: &mut Vec<Action>) -> (GroupImage, Target) {
    let group = open_group(world);
    sweep(world, &group);
    let landed = landed(world);
    let config = Config {
        group: world.names.group_id,
        source: world.names.source.clone(),
        group_name: world.names.group.clone(),
        store: [9; 16],
        layer_digest: farside_layer::layer_digest,
        began: 0,
        limits: core_limits(world),
    };
    let target = Target::new(config, group.state(), landed, actions);
    (group, target)
}

/// The first half of opening a group is replay, the second the footers of what was not given up.
fn open_group(world: &World) -> GroupImage {
    let mut group = replay(world, u64::MAX);
    group.covered(Slot(world.store.borrow().covered()));
    group
}

/// The group as the ledger's slots before this one make it.
pub fn replay(world: &World, end: u64) -> GroupImage {
    let mut group = new_group(world);
    for bytes in world.store.borrow().ledger().iter().take(end as usize) {
        let (record, digest) = Record::decode(bytes).expect("the ledger of the simulator never rots");
        group.replay(&record, digest);
    }
    for (no, part) in group.unindexed() {
        match parts::runs(world, part.name.layer, part.name.number) {
            Ok(runs) => group.index(no, &runs),
            Err(why) => world.fail(format!("L4: opening the group: {why}")),
        }
    }
    group
}

/// T4: what no record names and none can any more.
fn sweep(world: &World, group: &GroupImage) {
    let debris = |n: &SegmentKey| group.is_debris(&PartName { layer: layer_key(world, n), number: n.3 });
    for name in collector::unread_debris(world, group) {
        world.say(|| format!("sweep: segment {name:?}"));
        world.store.borrow_mut().delete(&name);
    }
    world.landing.borrow_mut().retain(|n, _| !debris(n) && group.state().layer(&layer_key(world, n)).is_none());
}

/// What landing holds, layer by layer.
fn landed(world: &World) -> Vec<LandedLayer> {
    let mut layers: Vec<LandedLayer> = Vec::new();
    for (name, bytes) in world.landing.borrow().iter() {
        let key = layer_key(world, name);
        let id = farside_layer::PartId { key, part: name.3, geometry: world.shape(name.0, key.term) };
        let mut verifier = PartVerifier::new(id, &world.names.digest_key(key.volume));
        let verified = verifier.feed(bytes).and_then(|()| verifier.finish());
        let summary = verified.expect("what was durable verifies");
        let part = (name.3, PartEntry { bytes: summary.bytes, footer_digest: summary.footer_digest });
        match layers.last_mut().filter(|l| l.key == key) {
            Some(layer) => layer.parts.push(part),
            None => layers.push(LandedLayer { key, parts: vec![part], end: None, staged_ago: 0 }),
        }
    }
    // Some files may be torn, and some layers have nothing else.
    for (key, end) in world.ends.borrow().iter().filter(|_| !world.chance(0.1)) {
        world.met("what was said of a staged layer outlives the process");
        match layers.iter_mut().find(|layer| layer.key == *key) {
            Some(layer) => layer.end = Some(end.clone()),
            None => layers.push(LandedLayer { key: *key, parts: Vec::new(), end: Some(end.clone()), staged_ago: 0 }),
        }
    }
    layers
}
