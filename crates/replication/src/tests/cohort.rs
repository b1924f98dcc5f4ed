//! Groups of several hosts that are cut as one: an application writes at one host after the other, each write when the one before is
//! complete, while connections break, answers are late, holds run out and whoever conducts dies. What every group says to be one cut holds the
//! writes up to some moment, and none after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use farside_ledger::CohortCut;
use farside_region::{EpochId, mutation};
use farside_wire::{CohortAsk, CohortSay};

use super::world::{Rng, name};
use crate::cohort::{
    CohortAction, CohortConfig, CohortEvent, CohortLimits, CohortMember, CohortOutcome, Conductor, CutId, MemberAction,
    MemberEvent,
};
use crate::source::{Nanos, SECOND};

type Group = usize;

/// A host: its gate and epoch counter, as the write path has them, and how its wish gets on, as `Source` has it.
#[derive(Default)]
struct Site {
    member: CohortMember<u64>,
    held: Option<u64>,
    epoch: u64,
    wish: Option<(u64, CohortCut, Wished)>,
    /// Cut, and not known yet what it is.
    pending: BTreeMap<u64, CohortCut>,
    connection: Option<u64>,
    to_conductor: VecDeque<CohortSay>,
    to_member: VecDeque<CohortAsk>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wished {
    Waiting,
    Quiescing,
    /// Cut, and to be published.
    Cut(u64),
}

struct World {
    rng: Rng,
    now: Nanos,
    sites: Vec<Site>,
    conductor: Conductor<Group>,
    connections: u64,
    wishes: u64,
    holds: u64,
    cuts: u64,
    /// Where each write went, and into which epoch; the last may be on its way.
    writes: Vec<(Group, Option<u64>)>,
    /// Up to which epoch of its group a cut goes, as each of them says.
    said: BTreeMap<CutId, BTreeMap<Group, u64>>,
    of_how_many: u16,
    one: BTreeSet<CutId>,
    outcomes: BTreeMap<bool, u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (0..4).for_each(|_| _ = rng.next());
        let count = 2 + rng.below(3) as usize;
        let sites = (0..count).map(|_| Site { epoch: 1, ..Site::default() }).collect();
        Self {
            conductor: Self::conductor(count, 0),
            rng,
            now: 0,
            sites,
            connections: 0,
            wishes: 0,
            holds: 0,
            cuts: 0,
            writes: Vec::new(),
            said: BTreeMap::new(),
            of_how_many: count as u16,
            one: BTreeSet::new(),
            outcomes: BTreeMap::new(),
        }
    }

    fn conductor(count: usize, now: Nanos) -> Conductor<Group> {
        let config = CohortConfig { name: name("erp"), groups: (0..count).collect(), every: SECOND, hold_us: 20_000 };
        Conductor::new(config, CohortLimits::default(), now)
    }

    fn conduct(&mut self, event: CohortEvent<Group>) {
        let mut out = Vec::new();
        self.conductor.step(self.now, event, &mut out);
        for action in out {
            match action {
                CohortAction::Ask { group, connection, ask } => {
                    let site = &mut self.sites[group];
                    if site.connection == Some(connection) {
                        site.to_member.push_back(ask);
                    }
                }
                CohortAction::Done(CohortOutcome { cut, result }) => {
                    *self.outcomes.entry(result.is_ok()).or_default() += 1;
                    if result.is_ok() {
                        self.one.insert(cut.cut);
                    }
                }
            }
        }
    }

    fn member(&mut self, group: Group, event: MemberEvent<u64>) {
        let mut out = Vec::new();
        self.sites[group].member.step(self.now, event, &mut out);
        for action in out {
            self.act(group, action);
        }
    }

    fn act(&mut self, group: Group, action: MemberAction<u64>) {
        let site = &mut self.sites[group];
        match action {
            MemberAction::Say { connection, say } if site.connection == Some(connection) => site.to_conductor.push_back(say),
            MemberAction::Say { .. } => {}
            MemberAction::Wish { wish, cut, .. } => {
                assert!(
                    !matches!(site.wish, Some((_, _, Wished::Quiescing))),
                    "what is quiet is given up before another cut begins"
                );
                site.wish = Some((wish, cut, Wished::Waiting));
            }
            MemberAction::Forget { wish } => {
                if matches!(site.wish, Some((of, _, Wished::Waiting)) if of == wish) {
                    site.wish = None;
                }
            }
            MemberAction::Hold { .. } => {
                self.holds += 1;
                let hold = site.held.is_none().then_some(self.holds);
                site.held = site.held.or(hold);
                self.member(group, MemberEvent::Holds { hold });
            }
            MemberAction::LetGo { hold } => {
                if site.held == Some(hold) {
                    site.held = None;
                }
            }
            MemberAction::Quiesced { wish, result } => self.quiesced(group, wish, result.is_ok()),
            MemberAction::Tell { epoch, result } => {
                let cut = site.pending.remove(&epoch.0).expect("it is told once what a cut is");
                if result.is_ok() {
                    self.said.entry(cut.cut).or_default().insert(group, epoch.0);
                }
            }
        }
    }

    /// As `Source::quiesced`, and the driver's answer to `Action::Resume`.
    fn quiesced(&mut self, group: Group, wish: u64, is_quiet: bool) {
        let can_cut = !self.rng.one_in(12);
        let site = &mut self.sites[group];
        let Some((of, cut, Wished::Quiescing)) = site.wish.filter(|(of, ..)| *of == wish) else {
            return if is_quiet {
                self.resume(group, None)
            };
        };
        if !is_quiet {
            site.wish = None;
        } else if can_cut {
            let epoch = site.epoch;
            site.epoch += 1;
            site.wish = Some((of, cut, Wished::Cut(epoch)));
            site.pending.insert(epoch, cut);
            self.resume(group, Some(epoch));
        } else {
            site.wish = None;
            self.resume(group, None);
            self.member(group, MemberEvent::Dropped { wish, why: "it could not be cut".to_owned() });
        }
    }

    fn resume(&mut self, group: Group, epoch: Option<u64>) {
        let site = &mut self.sites[group];
        let hold = site.member.cutting();
        let lasted = hold.is_some() && site.held == hold;
        if lasted {
            site.held = None;
        }
        self.member(group, MemberEvent::Switched { epoch: epoch.map(EpochId), lasted, held_us: 1 });
    }

    /// The application goes on: its next write begins, unless that is held, and completes.
    fn write(&mut self) {
        if let Some((group, epoch @ None)) = self.writes.last_mut() {
            // It is past the gate: a switch may come before it reads the counter.
            *epoch = Some(self.sites[*group].epoch);
            return;
        }
        let group = self.rng.below(self.sites.len() as u64) as usize;
        if self.sites[group].held.is_none() {
            self.writes.push((group, None));
        }
    }

    fn go_on(&mut self) {
        let is_long = self.rng.one_in(200);
        self.now += self.rng.below(if is_long { 4 * SECOND } else { SECOND / 50 });
        let group = self.rng.below(self.sites.len() as u64) as usize;
        match self.rng.below(100) {
            0..=39 => self.write(),
            40..=59 => {
                if let Some(ask) = self.sites[group].to_member.pop_front() {
                    self.wishes += 1;
                    let connection = self.sites[group].connection.expect("it has not ended");
                    self.member(group, MemberEvent::Asked { connection, ask, wish: self.wishes, hold_us_max: Some(20_000) });
                }
            }
            60..=79 => {
                if let Some(say) = self.sites[group].to_conductor.pop_front() {
                    let connection = self.sites[group].connection.expect("it has not ended");
                    self.conduct(CohortEvent::Said { group, connection, say });
                }
            }
            80..=87 => self.can_cut(group),
            88..=92 => {
                self.cuts += 1;
                let cut = u128::from(self.cuts).to_le_bytes();
                self.conduct(CohortEvent::Tick { cut, wall_ms: 0 });
                self.member(group, MemberEvent::Tick);
            }
            93 => self.sites[group].held = self.sites[group].held.filter(|_| !self.rng.one_in(3)),
            94..=96 if self.sites[group].connection.is_none() => {
                self.connections += 1;
                self.sites[group].connection = Some(self.connections);
                self.conduct(CohortEvent::Joined { group, connection: self.connections });
            }
            97 if self.rng.one_in(4) => self.hang_up(group, true),
            98 if self.rng.one_in(20) => {
                // Who conducts dies, and begins anew.
                (0..self.sites.len()).for_each(|group| self.hang_up(group, false));
                self.conductor = Self::conductor(self.sites.len(), self.now);
            }
            _ => {}
        }
    }

    /// What is wished for can be cut, or is published.
    fn can_cut(&mut self, group: Group) {
        match self.sites[group].wish {
            Some((wish, cut, Wished::Waiting)) => {
                self.sites[group].wish = Some((wish, cut, Wished::Quiescing));
                self.member(group, MemberEvent::CanCut { wish });
            }
            Some((_, _, Wished::Cut(epoch))) if !self.sites[group].pending.contains_key(&epoch) => {
                self.sites[group].wish = None;
            }
            _ => {}
        }
    }

    fn hang_up(&mut self, group: Group, is_heard: bool) {
        let Some(connection) = self.sites[group].connection.take() else { return };
        self.sites[group].to_conductor.clear();
        self.sites[group].to_member.clear();
        if is_heard {
            self.conduct(CohortEvent::Left { group, connection });
        }
        self.member(group, MemberEvent::Ended { connection });
    }

    /// What the ledgers would say.
    fn judge(&self) -> usize {
        let whole = self.said.iter().filter(|(_, groups)| groups.len() == usize::from(self.of_how_many));
        whole
            .map(|(cut, groups)| {
                assert!(self.one.contains(cut), "every group says of a cut that it is one, and who conducted it does not");
                let is_in = |(group, epoch): &(Group, Option<u64>)| epoch.is_some_and(|epoch| epoch <= groups[group]);
                let first_out = self.writes.iter().position(|write| !is_in(write)).unwrap_or(self.writes.len());
                let after = self.writes[first_out..].iter().position(is_in);
                assert_eq!(after, None, "a cut holds a write, and not one that was complete before that was issued");
            })
            .count()
    }
}

fn run(seed: u64) -> (usize, BTreeMap<bool, u32>) {
    let mut world = World::new(seed);
    for _ in 0..6_000 {
        world.go_on();
    }
    let whole = world.judge();
    // Whatever happened, nobody is held for ever, and cuts go on when all is well.
    for _ in 0..40_000 {
        if world.one.len() > whole + 3 {
            break;
        }
        world.go_on();
        for group in 0..world.sites.len() {
            if world.sites[group].connection.is_none() {
                world.connections += 1;
                world.sites[group].connection = Some(world.connections);
                world.conduct(CohortEvent::Joined { group, connection: world.connections });
            }
        }
    }
    assert!(world.one.len() > whole, "no cut succeeds any more");
    (world.judge(), world.outcomes)
}

#[test]
fn cuts_of_a_cohort_are_one_moment() {
    let (mut whole, mut good, mut bad) = (0, 0, 0);
    for seed in 0..400 {
        let (held, outcomes) = run(seed);
        whole += held;
        good += outcomes.get(&true).copied().unwrap_or(0);
        bad += outcomes.get(&false).copied().unwrap_or(0);
    }
    assert!(whole > 1_000 && good > 1_000 && bad > 1_000, "{whole} whole, {good} called one, {bad} called none");
}

/// † A source that asks whether it may cut, and hears nothing, begins no cut any more.
#[test]
fn a_wish_that_was_given_up_is_answered() {
    let mut member = CohortMember::<u64>::default();
    let mut out = Vec::new();
    let cut = CohortCut { cohort: [1; 16], cut: [2; 16], groups: 2, wall_ms: 0 };
    let ask = CohortAsk::Prepare { cut, cohort: name("erp") };
    member.step(0, MemberEvent::Asked { connection: 1, ask, wish: 5, hold_us_max: Some(20_000) }, &mut out);
    member.step(1, MemberEvent::Ended { connection: 1 }, &mut out);
    out.clear();
    member.step(2, MemberEvent::CanCut { wish: 5 }, &mut out);
    assert!(matches!(&out[..], [MemberAction::Quiesced { wish: 5, result: Err(_) }]), "{out:?}");
}

#[test]
fn a_host_holds_no_longer_and_no_more_often_than_it_allows() {
    let mut member = CohortMember::<u64>::default();
    let mut held = |now: Nanos, n: u8, hold_us_max| {
        let mut out = Vec::new();
        let cut = CohortCut { cohort: [1; 16], cut: [n; 16], groups: 2, wall_ms: 0 };
        let prepare = CohortAsk::Prepare { cut, cohort: name("erp") };
        for event in [
            MemberEvent::Asked { connection: 1, ask: prepare, wish: n.into(), hold_us_max },
            MemberEvent::Tick,
            MemberEvent::CanCut { wish: n.into() },
            MemberEvent::Asked {
                connection: 1,
                ask: CohortAsk::Hold { cut: [n; 16], for_us: 50_000 },
                wish: n.into(),
                hold_us_max,
            },
        ] {
            member.step(now, event, &mut out);
        }
        let hold = out.iter().find_map(|action| match action {
            MemberAction::Hold { for_us } => Some(*for_us),
            _ => None,
        });
        member.step(now, MemberEvent::Holds { hold: hold.map(|_| u64::from(n)) }, &mut out);
        hold
    };
    assert_eq!(held(SECOND, 1, Some(20_000)), Some(20_000));
    assert_eq!(held(SECOND + 99_000_000, 2, Some(20_000)), None, "five times what it lasts is not over");
    assert_eq!(held(SECOND + 100_000_000, 3, None), None, "not at all");
    assert_eq!(held(SECOND + 100_000_000, 4, Some(80_000)), Some(50_000));
}

/// Two hosts of which one could be held a little earlier than the other, and a person who asks for a cut again and again: how many are one.
fn cuts_of_an_impatient_one() -> usize {
    let mut world = World::new(1);
    world.sites = (0..2).map(|_| Site { epoch: 1, ..Site::default() }).collect();
    world.conductor = World::conductor(2, 0);
    for group in 0..2 {
        world.sites[group].connection = Some(1);
        world.conduct(CohortEvent::Joined { group, connection: 1 });
        // As after holds that did not begin together.
        let ask =
            CohortAsk::Prepare { cut: CohortCut { cohort: [1; 16], cut: [1; 16], groups: 2, wall_ms: 0 }, cohort: name("erp") };
        world.now = group as Nanos * 10_000_000;
        world.member(group, MemberEvent::Asked { connection: 1, ask, wish: 1, hold_us_max: Some(20_000) });
        world.sites[group].wish = None;
        world.member(group, MemberEvent::CanCut { wish: 1 });
        let ask = CohortAsk::Hold { cut: [1; 16], for_us: 20_000 };
        world.member(group, MemberEvent::Asked { connection: 1, ask, wish: 1, hold_us_max: Some(20_000) });
        world.member(group, MemberEvent::Ended { connection: 1 });
        world.sites[group].to_conductor.clear();
    }
    while world.now < 10 * SECOND {
        world.now += 3_000_000;
        world.conduct(CohortEvent::Wanted);
        world.cuts += 1;
        let cut = u128::from(world.cuts + 1).to_le_bytes();
        world.conduct(CohortEvent::Tick { cut, wall_ms: 0 });
        // Everybody answers at once.
        loop {
            let said: Vec<_> = (0..2).filter_map(|group| Some((group, world.sites[group].to_conductor.pop_front()?))).collect();
            let asked: Vec<_> = (0..2).filter_map(|group| Some((group, world.sites[group].to_member.pop_front()?))).collect();
            if said.is_empty() && asked.is_empty() {
                break;
            }
            said.into_iter().for_each(|(group, say)| world.conduct(CohortEvent::Said { group, connection: 1, say }));
            for (group, ask) in asked {
                world.wishes += 1;
                let wish = world.wishes;
                world.member(group, MemberEvent::Asked { connection: 1, ask, wish: wish + 1, hold_us_max: Some(20_000) });
            }
            (0..2).for_each(|group| world.can_cut(group));
        }
        (0..2).for_each(|group| world.member(group, MemberEvent::Tick));
        (0..2).for_each(|group| world.can_cut(group));
    }
    world.one.len()
}

/// † Each host that began to hold when another could not yet was not to be held when that one could.
#[test]
fn hosts_that_may_be_held_a_little_apart_are_cut_as_one_all_the_same() {
    let cuts = cuts_of_an_impatient_one();
    assert!(cuts > 20, "{cuts} in ten seconds, of 100 that the hosts allow");
    let none = || assert!(cuts_of_an_impatient_one() > 0, "no cut in ten seconds");
    mutation::tell(&[("a host says that it is ready before it may hold again", "no cut in ten seconds")], none);
}

#[test]
fn mistakes_of_a_cohort_are_noticed() {
    let one_moment = "a cut holds a write, and not one that was complete before";
    for (mistake, words) in [
        ("a cohort is cut before all of it is held", one_moment),
        ("a cohort forgives a hold that ran out", one_moment),
        ("a hold that ran out is said to have stood", one_moment),
    ] {
        mutation::tell(&[(mistake, words)], || (0..400).for_each(|seed| _ = run(seed)));
    }
}

#[test]
fn a_group_that_misses_is_named_and_tried_ever_less_often() {
    let mut conductor = World::conductor(2, 0);
    let mut out = Vec::new();
    let tick = |n: u8| CohortEvent::Tick { cut: [n; 16], wall_ms: 0 };
    conductor.step(0, CohortEvent::Joined { group: 0, connection: 1 }, &mut out);
    let mut begun = Vec::new();
    for second in 0..100 {
        conductor.step(second * SECOND, tick(second as u8), &mut out);
        for action in out.drain(..) {
            let CohortAction::Done(CohortOutcome { result: Err((who, why)), .. }) = action else { panic!("{action:?}") };
            assert!(who == Some(1) && why.contains("not connected"), "{who:?}: {why}");
            begun.push(second);
        }
    }
    assert_eq!(begun, [0, 1, 3, 7, 15, 31, 47, 63, 79, 95]);
    conductor.step(100 * SECOND, CohortEvent::Joined { group: 1, connection: 2 }, &mut out);
    conductor.step(100 * SECOND, CohortEvent::Wanted, &mut out);
    conductor.step(100 * SECOND, tick(200), &mut out);
    assert_eq!(out.len(), 2, "both are asked at once where somebody wants it: {out:?}");
    // One of them is never ready.
    let ready = CohortSay::Ready { cut: [200; 16] };
    conductor.step(101 * SECOND, CohortEvent::Said { group: 0, connection: 1, say: ready }, &mut out);
    out.clear();
    conductor.step(110 * SECOND, tick(201), &mut out);
    let over =
        |group, connection| CohortAction::Ask { group, connection, ask: CohortAsk::Over { cut: [200; 16], is_one: false } };
    assert_eq!(out[..2], [over(0, 1), over(1, 2)], "nobody waits any longer");
    assert!(matches!(&out[2], CohortAction::Done(CohortOutcome { result: Err((Some(1), _)), .. })), "{out:?}");
}
