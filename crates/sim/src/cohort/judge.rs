//! What must hold of cuts of several hosts, whatever happened, by what the ledgers and the disks say.
//!
//! - A point says that it is of a cut only if whoever conducted it called it one, of as many groups as it was begun with.
//! - Of every cut of which each group has a point: the points hold no write of an application without those that were complete before it
//!   was issued, at whichever host.
//! - Writes of a host wait for a hold no longer than it allows, by its own clock, and for a fifth of the time at most.
//! - What the gateway calls whole is whole: each group that the cut was begun with has a sound point of it.
//! - Of the newest whole cuts, in the order in which they were begun, and as of when the gateway looked last, no group plans to give up its
//!   point (`World::must_keep`), whoever has left the cohort, does not answer, or begins anew meanwhile.
//!
//! That replication of each group goes on by itself is for its own judge, and for the demand to converge while nobody conducts.

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::CohortCut;
use farside_region::Slot;

use super::app::Chain;
use crate::oracle::Published;
use crate::run::Run;

type CutId = [u8; 16];

#[derive(Debug)]
struct Begun {
    groups: Vec<usize>,
    /// Its number among all that were begun.
    nth: usize,
    step: u64,
    is_one: bool,
}

/// The hold of a process.
#[derive(Debug, Default)]
struct Held {
    process: u64,
    since_us: Option<u64>,
    /// When the last one began, and how long it might last.
    last_us: Option<(u64, u64)>,
}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Judge {
    cuts: BTreeMap<CutId, Begun>,
    /// Points of cuts, by cut and group: per application, the number that it holds.
    said: BTreeMap<CutId, BTreeMap<usize, Vec<usize>>>,
    seen: Vec<(u64, BTreeSet<Slot>)>,
    whole: u64,
    held: BTreeMap<(usize, usize), Held>,
    /// The newest whole cuts when the gateway looked last, and their points by group.
    kept: Vec<(CutId, BTreeMap<usize, Slot>)>,
}

/// Points of a host that say that they are of a cut, and whether they are degraded; `None`: it does not answer.
pub(super) type Seen = Option<Vec<(Slot, CohortCut, bool)>>;

impl Judge {
    pub(super) fn new(hosts: usize) -> Self {
        Self {
            cuts: BTreeMap::new(),
            said: BTreeMap::new(),
            seen: vec![(0, BTreeSet::new()); hosts],
            whole: 0,
            held: BTreeMap::new(),
            kept: Vec::new(),
        }
    }

    /// Cuts of which every group had its point.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    pub(super) fn begun(&mut self, cut: CohortCut, groups: &[usize], step: u64) {
        let nth = self.cuts.len();
        self.cuts.entry(cut.cut).or_insert_with(|| Begun { groups: groups.to_vec(), nth, step, is_one: false });
    }

    pub(super) fn is_one(&mut self, cut: CohortCut) {
        if let Some(begun) = self.cuts.get_mut(&cut.cut) {
            begun.is_one = true;
        }
    }

    /// The gateway calls these cuts whole.
    pub(super) fn calls_whole(&self, hosts: &[Run], seen: &[Seen], called: &[CutId]) {
        let is_half = |cut: &&CutId| self.cuts.get(*cut).is_none_or(|begun| points_of(seen, **cut, begun).is_none());
        if let Some(half) = called.iter().find(is_half) {
            let cut = &half[..4];
            hosts[0]
                .world
                .fail(format!("L3: cut {cut:02x?} of a cohort is called whole, and some group has no sound point of it"));
        }
    }

    /// The gateway has looked at what there is. † What one that has just begun (`remembers`: not so) is told by nobody it does not know.
    pub(super) fn looked(&mut self, hosts: &[Run], seen: &[Seen], remembers: bool, most: usize) {
        let of = |(cut, begun): (&CutId, &Begun)| Some((*cut, points_of(seen, *cut, begun)?));
        let mut kept: BTreeMap<CutId, _> = self.cuts.iter().filter_map(of).collect();
        let before = std::mem::take(&mut self.kept);
        // What was whole is so still where a group does not answer.
        for (cut, points) in before.into_iter().filter(|_| remembers) {
            if points.keys().all(|host| seen[*host].is_none() || sound_point(seen, *host, cut).is_some()) {
                kept.entry(cut).or_insert(points);
            }
        }
        let mut kept: Vec<_> = kept.into_iter().collect();
        kept.sort_by_key(|(cut, _)| std::cmp::Reverse(self.cuts[cut].nth));
        kept.truncate(most);
        for (host, run) in hosts.iter().enumerate() {
            let of_host = kept.iter().filter_map(|(_, points)| points.get(&host).copied());
            *run.world.must_keep.borrow_mut() = of_host.collect();
        }
        self.kept = kept;
    }

    /// One of the hosts has taken a step.
    pub(super) fn look(&mut self, host: usize, hosts: &[Run], chains: &[Chain]) {
        self.look_at_holds(host, &hosts[host]);
        let run = &hosts[host];
        if self.seen[host].0 == run.judge.records() {
            return;
        }
        self.seen[host].0 = run.judge.records();
        let new: Vec<_> = run.judge.cohort_points().filter(|(slot, ..)| !self.seen[host].1.contains(slot)).collect();
        for (slot, cut, degraded) in new {
            self.seen[host].1.insert(slot);
            run.world.check(self.on_point(host, hosts, chains, slot, (cut, degraded)));
        }
    }

    fn on_point(
        &mut self,
        host: usize,
        hosts: &[Run],
        chains: &[Chain],
        slot: Slot,
        (cut, degraded): (CohortCut, bool),
    ) -> Result<(), String> {
        let name = || format!("point {slot} of host{host} says that it is of cut {:02x?} of a cohort", &cut.cut[..4]);
        let begun = self.cuts.get(&cut.cut).ok_or_else(|| format!("{}, which nobody began", name()))?;
        if !begun.is_one {
            return Err(format!("{}, which nobody called one", name()));
        }
        if usize::from(cut.groups) != begun.groups.len() || !begun.groups.contains(&host) {
            return Err(format!("{} of {} groups; it was begun with {:?}", name(), cut.groups, begun.groups));
        }
        if degraded {
            hosts[host].world.met("a point of a cohort is degraded");
            return Ok(());
        }
        let world = &hosts[host].world;
        let image = hosts[host].judge.image_of(0, slot).ok_or_else(|| format!("{}, and lacks a volume", name()))?;
        let mut numbers = Vec::new();
        for chain in chains {
            let number = match image[chain.sector(world)] {
                Published::Value(value) => chain.number_of(host, &value),
                Published::Absent | Published::Unreadable => None,
            };
            numbers.push(number.ok_or_else(|| format!("{}, and holds what no application wrote there", name()))?);
        }
        self.said.entry(cut.cut).or_default().insert(host, numbers);
        self.judge_whole(cut.cut, hosts, chains)
    }

    fn judge_whole(&mut self, cut: CutId, hosts: &[Run], chains: &[Chain]) -> Result<(), String> {
        let (begun, said) = (&self.cuts[&cut], &self.said[&cut]);
        if said.len() < begun.groups.len() {
            return Ok(());
        }
        self.whole += 1;
        hosts[0].world.met("a cut of a cohort is whole");
        for (at, chain) in chains.iter().enumerate() {
            let newest = said.values().map(|numbers| numbers[at]).max().unwrap_or(0);
            for (i, cause) in chain.written.iter().enumerate().take(newest.saturating_sub(1)) {
                let is_there = said.get(&cause.host).is_none_or(|numbers| numbers[at] > i);
                let is_lost = cause.lost_at.is_some_and(|step| step <= begun.step);
                if cause.is_complete && !is_lost && !is_there {
                    return Err(format!(
                        "L3: cut {:02x?} of a cohort holds write {newest} of application {at}, and not write {} of host{}, which was \
                         complete before that was issued: {said:?}",
                        &cut[..4],
                        i + 1,
                        cause.host
                    ));
                }
            }
            if newest > 0 {
                hosts[0].world.met("a whole cut holds writes of an application");
            }
        }
        Ok(())
    }

    fn look_at_holds(&mut self, host: usize, run: &Run) {
        let now = run.world.now_us.get();
        let allowed_us = u64::from(run.world.of_cohort.get().hold_us_max);
        for source in run.sources.iter().flatten() {
            let site = source.site();
            let held = self.held.entry((host, site.no)).or_default();
            if held.process != site.attached_at.get() {
                *held = Held { process: site.attached_at.get(), ..Held::default() };
            }
            if !source.is_held() {
                held.since_us = None;
                continue;
            }
            if held.since_us.is_none() {
                if let Some((began, length)) = held.last_us.filter(|(began, length)| now - began < length * 4) {
                    run.world.fail(format!("L1: writes are held again {} us after a hold of {length} us began", now - began));
                }
                held.last_us = Some((now, run.world.hold_us.get().min(allowed_us)));
            }
            let since = *held.since_us.get_or_insert(now);
            if now - since > allowed_us {
                run.world.fail(format!("L1: writes are held for {} us, and the host allows {allowed_us}", now - since));
            }
        }
    }
}

fn sound_point(seen: &[Seen], host: usize, cut: CutId) -> Option<Slot> {
    let mut points = seen[host].iter().flatten();
    points.find(|(_, of, degraded)| of.cut == cut && !degraded).map(|(slot, ..)| *slot)
}

/// The points of a cut, if each group that it was begun with has one.
fn points_of(seen: &[Seen], cut: CutId, begun: &Begun) -> Option<BTreeMap<usize, Slot>> {
    begun.groups.iter().map(|host| Some((*host, sound_point(seen, *host, cut)?))).collect()
}

/// Why a cut is none, for what must be met.
pub(super) fn kind_of(why: &str) -> &'static str {
    match why {
        _ if why.contains("connection ended") => "a cut of a cohort fails: connection",
        _ if why.contains("not connected") => "a cut of a cohort fails: absent",
        _ if why.contains("was over before it was cut") => "a cut of a cohort fails: the hold ran out",
        _ if why.contains("in time") => "a cut of a cohort fails: late",
        _ if why.contains("cannot be held") => "a cut of a cohort fails: cannot be held",
        _ if why.contains("configuration") => "a cut of a cohort fails: configuration",
        _ => "a cut of a cohort fails: otherwise",
    }
}
