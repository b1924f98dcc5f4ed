//! The receiver's part of a failover: what its group's thread does in one go, step by step, with a death possible between any two.
//!
//! As in `receiver/src/group/fence.rs`: refused while a source is connected, unless forced; what is staged is published before, and if it
//! cannot be nobody is fenced, unless that may be lost; then the claims, with nothing of any source heard from before the first of them
//! to the end; then the point is pinned, and everybody is sent away. What is durable of it is [`Failover`]: another life goes on with it.
//!
//! Modelled: who may connect at all (`receiver/src/group/sources.rs`).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use farside_ledger::{Body, Claim, Pin, State, Unpin, VoidReason, room_in_run};
use farside_region::{Generation, Slot, mutation};
use farside_replication::target::{AppendOutcome, Dated, Event};
use farside_wire::{ClaimOutcome, ClaimVerdict, ReceiverMessage, SourceMessage};

use farside_store::GroupImage;

use super::{Receiver, enter};
use crate::failback::held::PIN as BRANCH;
use crate::failover::{Failover, PIN, Stage};
use crate::net::{ConnId, Load, To};

/// How often it is tried again when somebody else wrote at the same moment.
const TRIED_MAX: u32 = 8;
/// A mistake: what comes in between is not looked at.
const STALE: &str = "L6 a fence that was overtaken goes on as it was";
/// When it is tried again after something stood against it.
const AGAIN_US: u64 = 6_000;
/// When a pin of a branch is asked for again of which nothing is heard.
const PIN_AGAIN_US: u64 = 40_000;

/// What stands still meanwhile.
#[derive(Default)]
pub(super) struct Fencing {
    /// Nothing of a source is heard.
    deaf: Cell<bool>,
    /// Nothing else is decided or put.
    holds: Cell<bool>,
    /// When a pin of a branch may be asked for again.
    pins_again_us: Cell<u64>,
    /// What came meanwhile.
    parked: RefCell<VecDeque<(ConnId, Load)>>,
}

impl Fencing {
    pub(super) fn holds(&self) -> bool {
        self.holds.get()
    }
}

impl Receiver {
    /// The retained points.
    pub fn points(&self) -> Vec<Slot> {
        self.group.borrow().state().points().keys().copied().collect()
    }

    /// Retained points of which all of a volume could be read.
    pub fn whole_points(&self, volume: farside_region::VolumeId) -> Vec<Slot> {
        let group = self.group.borrow();
        let is_whole = |point: &&farside_ledger::Point| point.members.iter().any(|m| m.key.volume == volume && !m.degraded);
        group.state().points().values().filter(is_whole).map(|point| point.slot).collect()
    }

    /// Looks at the group as this process knows it.
    pub fn with_group<T>(&self, look: impl FnOnce(&GroupImage) -> T) -> T {
        look(&self.group.borrow())
    }

    /// What the next failover must outrank.
    pub fn highest_generation(&self) -> Generation {
        self.group.borrow().state().highest_generation()
    }

    /// Points of failovers that are over, or that another one followed, are kept for them no more.
    pub fn unpin_former(&self) {
        let kept = match self.world.failover.borrow().as_ref() {
            Some(Failover { stage: Stage::Fencing, .. }) => return,
            Some(failover) => failover.pin_reason(),
            // Until there is something newer it is what is brought up next.
            None if !self.is_followed() => return,
            None => String::new(),
        };
        let group = self.group.borrow();
        let mut pins = group.state().points().values().flat_map(|point| &point.pins);
        let former = pins.find(|(_, why)| why.starts_with(PIN) && **why != kept).map(|(pin, _)| *pin);
        if let Some(pin) = former.filter(|_| !self.inbox.borrow().iter().any(|e| matches!(e, Event::Submit { .. }))) {
            self.submit(Body::Unpin(Unpin { pin }));
        }
    }

    /// Whether something whole was published since what failovers that are over left aside.
    fn is_followed(&self) -> bool {
        let (aside, group) = (self.world.left_aside.borrow(), self.group.borrow());
        let newest = group.state().points().values().rev().find(|point| !point.degraded);
        aside.is_empty() || newest.is_some_and(|newest| aside.is_followed_by(newest.slot))
    }

    /// Whether a point is pinned for this.
    pub fn is_pinned(&self, point: Slot, reason: &str) -> bool {
        let group = self.group.borrow();
        group.state().points().get(&point).is_some_and(|point| point.pins.values().any(|why| why == reason))
    }

    /// Pins it, unless something else is just being asked for.
    pub fn pin(&self, point: Slot, reason: String) {
        if self.is_asked_for_nothing() {
            self.submit(Body::Pin(Pin { point, reason }));
        }
    }

    /// Whoever asks for a pin again waits for what became of the last one.
    fn is_asked_for_nothing(&self) -> bool {
        let (now, next) = (self.world.now_us.get(), self.fencing.pins_again_us.get());
        if now >= next {
            self.fencing.pins_again_us.set(now + PIN_AGAIN_US);
        }
        now >= next
    }

    /// Points of branches that are gone are kept no more.
    pub fn unpin_branches(&self, kept: &BTreeSet<String>) {
        let group = self.group.borrow();
        let mut pins = group.state().points().values().flat_map(|point| &point.pins);
        let gone = pins.find(|(_, why)| why.starts_with(BRANCH) && !kept.contains(*why)).map(|(pin, _)| *pin);
        if let Some(pin) = gone.filter(|_| self.is_asked_for_nothing()) {
            self.submit(Body::Unpin(Unpin { pin }));
        }
    }

    /// Something arrived: `None` if it is not heard now, or its sender has nothing to say here.
    pub(super) fn admit(&self, conn: ConnId, load: Load) -> Option<Load> {
        if self.fencing.deaf.get() {
            self.fencing.parked.borrow_mut().push_back((conn, load));
            return None;
        }
        if !matches!(load, Load::Closed | Load::Settled) && !self.may_speak(conn) {
            self.world.met("a host that does not stand in any more is turned away");
            self.turn_away(conn);
            return None;
        }
        Some(load)
    }

    /// The original may always; another host as long as the failover stands for which it stands in.
    fn may_speak(&self, conn: ConnId) -> bool {
        let site = self.world.net.borrow().site_of(conn);
        if !self.world.site(site).stands_in {
            return true;
        }
        let failover = self.world.failover.borrow();
        failover.as_ref().is_some_and(|failover| {
            let is_over = self.highest_generation().0 > failover.generation;
            failover.stage != Stage::Fencing && failover.stand_in == Some(site) && !is_over
        })
    }

    /// A machine is connected: whatever it said before.
    pub(super) fn owes_again(&self, conn: ConnId) {
        let site = self.world.net.borrow().site_of(conn);
        let mut words = self.last_words.borrow_mut();
        let newest = words.entry(site).or_insert((conn, false));
        if newest.0 < conn {
            *newest = (conn, false);
        }
    }

    /// A connection ended.
    pub(super) fn hear_last_word(&self, conn: ConnId, is_settled: bool) {
        let site = self.world.net.borrow().site_of(conn);
        let mut words = self.last_words.borrow_mut();
        if let Some(newest) = words.get_mut(&site).filter(|(newest, _)| is_settled && *newest == conn) {
            self.world.met("the last word of who stands in is heard");
            newest.1 = true;
        }
    }

    /// Whether a machine that stands in said, as its last word to this process, that all of it is published, as `receiver/src/group/pull.rs` asks.
    ///
    /// † That its process is gone says nothing: what it sent before is published when it is its turn.
    pub fn owes_nothing(&self, site: usize) -> bool {
        let is_connected = self.sessions.borrow().iter().any(|conn| self.world.net.borrow().site_of(ConnId(*conn)) == site);
        !is_connected && self.last_words.borrow().get(&site).is_some_and(|(_, settled)| *settled)
    }

    fn turn_away(&self, conn: ConnId) {
        let mut net = self.world.net.borrow_mut();
        net.send(To::Source, conn, Load::Closed);
        net.hang_up(conn);
        drop(net);
        if self.sessions.borrow_mut().remove(&conn.0) {
            self.push(Event::Closed { session: farside_replication::target::SessionId(conn.0) });
        }
    }

    /// Whether the original claims a volume that it did not have when it was failed over: nothing of the ledger would fence it. It is
    /// told that the claim is void.
    pub(super) fn is_new_beside_a_failover(&self, conn: ConnId, message: &SourceMessage) -> bool {
        let SourceMessage::Claim(request) = message else { return false };
        let (id, volume) = (request.id, request.claim.volume.id);
        let is_original = self.world.net.borrow().site_of(conn) == 0;
        let is_new = self.group.borrow().state().volume(volume).is_none();
        if !is_original || !is_new || self.world.failover.borrow().is_none() {
            return false;
        }
        self.world.met("a new volume waits beside a failover");
        let outcome = ClaimOutcome::Void { reason: VoidReason::UnknownVolume(volume) };
        let verdict = ReceiverMessage::ClaimVerdict(ClaimVerdict { id, volume, outcome });
        let bytes = farside_wire::encode_payload(&verdict).expect("a verdict is small");
        self.world.net.borrow_mut().send(To::Source, conn, Load::Control(bytes.to_vec()));
        true
    }

    /// Goes on with a failover that was begun, in this life or before.
    pub(super) async fn fences(self: Rc<Self>) {
        let steps = self.world.steps();
        let mut next = 0;
        loop {
            steps.pause().await;
            let is_asked = || self.world.failover.borrow().as_ref().is_some_and(|failover| failover.stage == Stage::Fencing);
            steps.until(|| self.world.now_us.get() >= next && is_asked()).await;
            let Some(asked) = self.asked() else { continue };
            if !asked.claimed {
                self.fence(asked).await;
            } else {
                steps.until(|| self.is_idle()).await;
                self.fencing.holds.set(true);
                self.bring_up(asked).await;
            }
            next = self.world.now_us.get() + AGAIN_US;
            self.fencing.deaf.set(false);
            self.fencing.holds.set(false);
            // (Connections that were closed stay so.)
            let parked = self.fencing.parked.take();
            parked.into_iter().for_each(|(conn, load)| self.on_message(conn, load));
        }
    }

    fn asked(&self) -> Option<Failover> {
        self.world.failover.borrow().clone()
    }

    /// Ends what those before may publish, if nothing stands against it.
    async fn fence(self: &Rc<Self>, asked: Failover) {
        let wanted = Generation(asked.generation);
        let fencing = || self.group.borrow().state().fencing_generation(wanted);
        let is_fenced = |state: &State| state.claims_below(fencing()).next().is_none();
        if !is_fenced(self.group.borrow().state()) {
            if !asked.forced && !self.sessions.borrow().is_empty() {
                return self.world.met("a failover waits for a source that is alive");
            }
            self.fencing.deaf.set(true);
            self.push(Event::Budget { spent: false });
            if !self.publish_staged(&asked).await {
                return;
            }
            // A claim that waited may have taken the history back.
            let Some(generation) = self.claim_all(fencing()).await else { return };
            // Whoever is connected finds out by asking the ledger anew.
            self.begin_anew();
            self.is_claimed(asked, generation);
        } else {
            self.is_claimed(asked, fencing());
        }
    }

    fn is_claimed(&self, asked: Failover, generation: Generation) {
        if generation.0 != asked.generation {
            self.world.met("a history is taken back before the fence");
        }
        // A person may have insisted meanwhile.
        let (forced, lose_staged) = self.asked().map_or((asked.forced, asked.lose_staged), |now| (now.forced, now.lose_staged));
        let claimed = Failover { generation: generation.0, claimed: true, forced, lose_staged, ..asked };
        self.world.failover.replace(Some(claimed));
    }

    /// What is staged is published before, as long as that brings something. Ends with everything held.
    async fn publish_staged(&self, asked: &Failover) -> bool {
        let steps = self.world.steps();
        let mut staged = usize::MAX;
        loop {
            steps.until(|| self.is_idle()).await;
            let now = self.target.borrow().staged_points();
            if !(1..staged).contains(&now) {
                break;
            }
            self.world.met("a failover publishes what is staged");
            staged = now;
            self.push(Event::Publish);
        }
        self.fencing.holds.set(true);
        let lost = self.target.borrow().staged_points();
        if lost > 0 {
            self.world.say(|| format!("{lost} points are staged, and cannot be published"));
            self.world.met("points that are staged stand against a failover");
        }
        lost == 0 || asked.lose_staged
    }

    fn is_idle(&self) -> bool {
        self.inbox.borrow().is_empty() && self.appends.borrow().is_empty() && !self.writing.get()
    }

    /// Gives the generation under which they are claimed.
    async fn claim_all(&self, mut generation: Generation) -> Option<Generation> {
        for _ in 0..TRIED_MAX {
            self.world.say(|| format!("claims of generation {generation} FENCE whoever was before"));
            let claims: Vec<Claim> = {
                let group = self.group.borrow();
                let room = room_in_run(group.state().next_slot()) as usize;
                group.state().claims_below(generation).take(room).collect()
            };
            if claims.is_empty() {
                return Some(generation);
            }
            let said = claims.into_iter().map(|claim| Dated { body: Body::Claim(claim), ago: 0 }).collect();
            match self.append(said).await {
                AppendOutcome::Judged { records } => {
                    if let Some((_, void)) = records.iter().find(|(_, verdict)| !verdict.is_done()) {
                        self.world.fail(format!("a claim that promotes the group is void: {void:?}"));
                        return None;
                    }
                }
                AppendOutcome::Collided => {
                    // Nor may what a process before this one had put.
                    if !mutation::on(STALE) {
                        generation = self.group.borrow().state().fencing_generation(generation);
                    }
                }
                AppendOutcome::Failed { .. } | AppendOutcome::Unusable { .. } | AppendOutcome::Withdrawn { .. } => return None,
            }
        }
        None
    }

    /// Nothing of the source can be added any more: the point is chosen, and kept.
    async fn bring_up(&self, asked: Failover) {
        let parted = self.group.borrow().state().points().keys().next_back().copied();
        let point = {
            let group = self.group.borrow();
            let points = group.state().points();
            let may_be = |point: &&farside_ledger::Point| (asked.forced || !point.degraded) && asked.aside.has(point.slot);
            let mut newest_first = points.values().rev().filter(may_be);
            match asked.wanted {
                Some(wanted) => points.get(&wanted).map(|point| point.slot),
                None => newest_first.next().map(|point| point.slot),
            }
        };
        if asked.wanted.is_some() && point.is_none() {
            // It was pruned before the fence stood: a person asks for another one.
            self.world.met("the point of a failover is gone");
            self.world.failover.replace(Some(Failover { wanted: None, ..asked }));
            return;
        }
        if let Some(point) = point {
            let reason = asked.pin_reason();
            let is_pinned = |state: &State| state.points().get(&point).is_some_and(|p| p.pins.values().any(|why| *why == reason));
            if !is_pinned(self.group.borrow().state()) {
                let pin = Body::Pin(Pin { point, reason: reason.clone() });
                self.append(vec![Dated { body: pin, ago: 0 }]).await;
            }
            if !is_pinned(self.group.borrow().state()) {
                return;
            }
        }
        self.world.say(|| format!("point {point:?} is BROUGHT UP under generation {}", asked.generation));
        self.world.failover.replace(Some(Failover { stage: Stage::Promoted { point }, parted, ..asked }));
    }

    /// Everybody is sent away, and the group is entered as at a start.
    fn begin_anew(&self) {
        let sessions = std::mem::take(&mut *self.sessions.borrow_mut());
        for session in sessions {
            let mut net = self.world.net.borrow_mut();
            net.send(To::Source, ConnId(session), Load::Closed);
            net.hang_up(ConnId(session));
        }
        self.inbox.borrow_mut().clear();
        self.appends.borrow_mut().clear();
        self.merging.borrow_mut().clear();
        let mut actions = Vec::new();
        let (group, target) = enter(&self.world, &mut actions);
        self.world.entered.set((self.world.step.get(), self.writer));
        self.group.replace(group);
        self.target.replace(target);
        actions.into_iter().for_each(|action| self.act(action));
        self.grant();
    }
}
