//! Failover and what follows: what the gateway keeps of it, and what operators do about it (DESIGN §5; `docs/operate.md`).
//!
//! ```text
//! asked ──► Fencing (durable) ──► claims of the next generation, all volumes ──► a point is chosen and pinned ──► Promoted
//!                                                                                                                   │
//!   over ◄── the original took back all volumes ◄── Rejoin: with its own disks, or with the newest point ◄── a host stands in
//! ```
//!
//! The core of it is the product's: the ledger's verdicts and the claims that fence, the source that says `Fenced`, what it may claim on
//! a person's word. Modelled here and in [`crate::receiver`], in the order that `receiver/src/group/fence.rs` and
//! `receiver/src/failover.rs` have: what is durable before what, who may connect, what is refused without `--force`.

use farside_region::{Slot, mutation};
use farside_replication::failback::taken_back_at;
use farside_replication::lineage::{Aside, Lineage};

use crate::failback::Failback;
use crate::history::Refusal;
use crate::plan::Fault;
use crate::run::Run;
use crate::source;

/// Machines that a run has at most.
const SITES_MAX: usize = 4;
/// Steps in which what was begun must come to its end when nothing goes wrong any more.
const SETTLE_STEPS: u64 = 40_000;

/// A failover, as the gateway keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// From here on whoever has a lower one publishes nothing.
    pub generation: u64,
    /// The point that was asked for; `None`: the newest.
    pub wanted: Option<Slot>,
    /// Also while the source is connected, and also if the newest point is degraded.
    pub forced: bool,
    /// Points that are staged and cannot be published may be lost.
    pub lose_staged: bool,
    /// How far it is.
    pub stage: Stage,
    /// The claims that fence are in the ledger.
    pub claimed: bool,
    /// The machine that may publish in the original's place.
    pub stand_in: Option<usize>,
    /// The newest point when whoever published before was fenced.
    pub parted: Option<Slot>,
    /// What those before it left aside.
    pub aside: Lineage,
    /// The judge has looked at it.
    pub judged: bool,
}

/// How far a failover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The claims are being put.
    Fencing,
    /// This point is kept, and may be used.
    Promoted {
        /// `None`: there was none.
        point: Option<Slot>,
    },
}

impl Failover {
    /// The point that was brought up.
    pub fn point(&self) -> Option<Slot> {
        if let Stage::Promoted { point } = self.stage { point } else { None }
    }

    /// What is the history by it; while nothing is brought up, by those before it.
    pub fn lineage(&self) -> Lineage {
        let aside = self.point().zip(self.newest_before()).map(|(point, parted)| Aside { point, parted });
        self.aside.clone().and(aside)
    }

    fn newest_before(&self) -> Option<Slot> {
        self.point().and(self.parted.max(self.point()))
    }

    /// Why its point is pinned.
    pub fn pin_reason(&self) -> String {
        format!("{PIN}{}", self.generation)
    }
}

/// What reasons of pins of failovers begin with.
pub const PIN: &str = "failover, generation ";

impl Run {
    /// An operator fails the group over, or insists where that does not get on. Says whether there was something to do.
    pub(crate) fn promote(&mut self) -> bool {
        let world = self.world.clone();
        let Some(receiver) = &self.receiver else { return false };
        let known = world.failover.borrow().clone();
        if let Some(fencing) = known.as_ref().filter(|failover| failover.stage == Stage::Fencing) {
            world.say(|| "an operator insists on the failover".into());
            let insists = Failover { forced: true, lose_staged: fencing.lose_staged || world.chance(0.3), ..fencing.clone() };
            world.failover.replace(Some(insists));
            return true;
        }
        let points = receiver.points();
        // Who fails over once more does so for what was published since; now and then for the copy that never came up.
        let is_early = known.is_some() && known.as_ref().and_then(Failover::newest_before) >= points.last().copied();
        if is_early && !world.chance(0.2) {
            return false;
        }
        if points.is_empty() || self.sources.len() >= SITES_MAX {
            return false;
        }
        let wanted = world.chance(0.3).then(|| world.rng.borrow_mut().pick(&points));
        let forced = wanted.is_some() || world.chance(0.7);
        let aside = world.lineage();
        // † A person says which: what was left aside, or what was brought up instead.
        if wanted.is_none() && !forced && points.last().is_some_and(|newest| !aside.has(*newest)) {
            world.met("a failover is refused, since what is the newest was left aside");
            return false;
        }
        let failover = Failover {
            generation: receiver.highest_generation().0 + 1,
            wanted,
            forced,
            lose_staged: world.chance(0.2),
            stage: Stage::Fencing,
            claimed: false,
            stand_in: None,
            parted: None,
            aside,
            judged: false,
        };
        world.say(|| format!("the group is FAILED OVER: {failover:?}"));
        world.met(if known.is_some() { "a failover after another" } else { "a failover" });
        if wanted.is_some_and(|wanted| Some(&wanted) != points.last()) {
            world.met("an older point is promoted");
        }
        world.failover.replace(Some(failover));
        world.main.set(None);
        if self.failback.as_ref().is_some_and(|failback| failback.takes_back().is_some()) {
            self.failback = None; // who was taking the history back is told that it is another's
        } else if self.failback.is_some() {
            world.met("a failover beside a failback");
        }
        true
    }

    /// The original is to have the group again.
    pub(crate) fn rejoin(&mut self) -> bool {
        let world = self.world.clone();
        if !self.is_stood_in_for() || self.failback.is_some() {
            return false;
        }
        let has_points = (0..world.volumes()).all(|volume| self.judge.newest_point(volume).is_some());
        if has_points && world.chance(if world.plan.fails_back { 0.9 } else { 0.5 }) {
            self.failback_begins();
            return true;
        }
        world.met("the original goes on with its own disks");
        world.say(|| "the original is to GO ON WITH ITS OWN DISKS".into());
        world.main.set(Some(0));
        true
    }

    /// Somebody stands in for the original, and nothing else is decided.
    fn is_stood_in_for(&self) -> bool {
        let stand_in = self.world.failover.borrow().as_ref().and_then(|failover| failover.stand_in);
        stand_in.is_some() && self.world.main.get() == stand_in
    }

    /// What follows from a failover goes on.
    pub(crate) fn succession(&mut self) {
        let world = self.world.clone();
        if !world.plan.has(Fault::Promote) {
            return;
        }
        if let Some(receiver) = self.receiver.as_ref().filter(|_| world.chance(0.02)) {
            receiver.unpin_former();
        }
        self.branches_go_on();
        self.failback_goes_on();
        let Some(failover) = world.failover.borrow().clone() else { return self.looks_for_newer() };
        let soon = |p: f64| world.chance(if world.healing.get() { 0.3 } else { p });
        match failover.stage {
            Stage::Fencing => {
                if world.healing.get() && soon(0.0) {
                    self.promote();
                }
            }
            Stage::Promoted { .. } if !failover.judged => {
                self.judge.on_promoted(&world, &failover);
                world.failover.replace(Some(Failover { judged: true, ..failover }));
            }
            Stage::Promoted { point } if failover.stand_in.is_none() => {
                if soon(0.01) {
                    self.stand_in_comes(&failover, point);
                }
            }
            Stage::Promoted { .. } if self.judge.is_taken_back(failover.generation) => {
                world.met("a history is taken back");
                world.say(|| format!("the failover of generation {} is over", failover.generation));
                world.failover.replace(None);
                if !mutation::on("L6 what a failover left aside is forgotten once its history is taken back") {
                    world.left_aside.replace(failover.lineage());
                }
                if self.failback.take().is_some() {
                    world.met("a failback is over");
                }
            }
            Stage::Promoted { .. } => {}
        }
    }

    /// Of failovers that are over nothing is kept once all that they left aside is gone.
    fn looks_for_newer(&self) {
        let world = &self.world;
        let Some(receiver) = self.receiver.as_ref().filter(|_| !world.left_aside.borrow().is_empty() && world.chance(0.05))
        else {
            return;
        };
        if receiver.points().iter().all(|point| world.left_aside.borrow().has(*point)) {
            world.met("nothing of what was left aside is there any more");
            world.left_aside.take();
        }
    }

    /// A machine with the disks that were brought up is told to publish in the original's place.
    fn stand_in_comes(&mut self, failover: &Failover, point: Option<Slot>) {
        let world = self.world.clone();
        let disks = |run: &mut Self, volume| {
            let handed_over = point.and_then(|point| run.handed_over(volume, point));
            handed_over.unwrap_or_else(|| run.judge.restored(volume, point))
        };
        let images: Vec<Vec<u8>> = (0..world.volumes()).map(|volume| disks(self, volume)).collect();
        let site = world.add_stand_in(&images);
        source::format(&world, &site);
        site.permitted.borrow_mut().fill(failover.generation);
        world.met("a host stands in");
        world.say(|| format!("site {} STANDS IN, with the disks of point {point:?}", site.no));
        self.sources.push(None);
        self.exists.push(true);
        self.judge_new_life(site.no, vec![None; world.volumes()]);
        world.failover.replace(Some(Failover { stand_in: Some(site.no), ..failover.clone() }));
        world.main.set(Some(site.no));
    }

    /// What a person says to a machine that refuses a volume.
    pub(crate) fn person_answers(&self, no: usize, volume: usize, why: Refusal) {
        let world = &self.world;
        let Some(source) = &self.sources[no] else { return };
        // Where failovers happen, whoever was fenced stays so unless somebody decides that it is to have the group.
        if world.plan.has(Fault::Promote) && world.main.get() != Some(no) || !world.chance(0.02) {
            return;
        }
        if why == Refusal::Fenced {
            let Some(promotion) = source.fenced_by(volume) else { return };
            world.site(no).permitted.borrow_mut()[volume] = promotion;
            world.met("a fenced machine is accepted");
        }
        match self.failback.as_ref().and_then(|failback| failback.takes_back()).filter(|_| no == 0) {
            Some(at) => {
                let passes = self.failback.as_ref().and_then(Failback::passes);
                if let Some(at) = taken_back_at(source.refused_at(volume), at, passes) {
                    source.take_back(volume, at);
                }
            }
            None => source.accept(volume),
        }
    }

    /// Nothing goes wrong any more: the failover comes to its end, and somebody has the group.
    pub(crate) fn succession_settles(&mut self) {
        let world = self.world.clone();
        if !world.plan.has(Fault::Promote) {
            return;
        }
        let is_settled = |run: &Self| match (world.failover.borrow().as_ref(), world.main.get()) {
            (None, Some(0)) => true,
            (Some(_), Some(no)) if no > 0 => run.is_stood_in_for() && run.failback.is_none(),
            _ => false,
        };
        let mut decided = false;
        for _ in 0..SETTLE_STEPS {
            if is_settled(self) {
                if decided || !self.is_stood_in_for() || world.chance(0.5) {
                    break;
                }
                decided = true;
                self.rejoin();
            }
            self.step();
            if world.bad().is_some() {
                return;
            }
        }
        if !is_settled(self) {
            let (failover, main) = (world.failover.borrow().clone(), world.main.get());
            let states = self.sources.iter().flatten().map(|source| source.refused()).collect::<Vec<_>>();
            return world.fail(format!("NO CONVERGENCE of a failover: {failover:?}, main {main:?}, {states:?}"));
        }
        let main = world.main.get();
        (1..self.sources.len()).filter(|no| Some(*no) != main).for_each(|no| self.clone_is_destroyed(no));
    }
}
