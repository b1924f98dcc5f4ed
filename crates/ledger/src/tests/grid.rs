//! What a retention grid promises, in years of simulated time: points, silence, restarts of the writer, clocks that jump, and
//! prunes at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use farside_region::mutation::tell;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;

fn policy(keep: u32, span_ms: u64, rules: &[(u64, u64)]) -> Policy {
    let ms = Duration::from_millis;
    Policy { grid: Grid::of(rules.iter().map(|(every, keep)| (ms(*every), ms(*keep)))), ..Policy::without_grid(keep, span_ms) }
}

fn four_rules() -> Policy {
    policy(10, 0, &[(5 * SECOND, 10 * MINUTE), (MINUTE, DAY), (HOUR, 30 * DAY), (DAY, YEAR)])
}

/// A point that was published once, as whoever published it knows it.
struct Past {
    slot: Slot,
    /// Ledger time, and what really had passed.
    time_ms: u64,
    real_ms: u64,
    volumes: &'static [u8],
    degraded: bool,
}

/// A group and its history. The real time is nobody's clock.
struct Site {
    w: World,
    real_ms: u64,
    past: Vec<Past>,
    pinned: BTreeSet<Slot>,
    restarts: u64,
    policy: Policy,
}

impl Site {
    fn new(policy: Policy) -> Self {
        Self { w: claimed(), real_ms: 0, past: Vec::new(), pinned: BTreeSet::new(), restarts: 0, policy }
    }

    fn pass(&mut self, ms: u64) {
        self.real_ms += ms;
        self.w.pass_ms(ms);
    }

    /// Another process writes from now on, and the wall clock is wrong by so much more.
    fn restart(&mut self, jump_ms: i64) {
        self.w.writer = self.w.writer.wrapping_add(1);
        self.w.mono_ms = 7;
        self.w.wall_ms += jump_ms;
        self.restarts += 1;
    }

    fn publish(&mut self, volumes: &'static [u8], degraded: bool) {
        let bad = if degraded { regions(&[1]) } else { RegionSet::new() };
        let slot = self.w.state.next_slot();
        let member = |n: &u8| LayerEntry { unreadable_regions: bad.clone(), ..self.w.next(*n, slot.0 as u8) };
        let members = volumes.iter().map(member).collect();
        assert_eq!(self.w.layers(LayerKind::Point, members), Verdict::Accepted);
        let degraded = self.w.state.points()[&slot].degraded;
        self.past.push(Past { slot, time_ms: self.w.state.time_ms(), real_ms: self.real_ms, volumes, degraded });
    }

    fn beat(&mut self) {
        let body = self.w.beat(&[(1, self.w.term(1)), (2, self.w.term(2))], self.w.position());
        assert_eq!(self.w.put(body), Verdict::Accepted);
    }

    fn pin_newest(&mut self) {
        let Some(point) = self.w.state.points().keys().next_back().copied() else { return };
        assert_eq!(self.w.put(Body::Pin(Pin { point, reason: String::new() })), Verdict::Accepted);
        self.pinned.insert(point);
    }

    /// Gives up what may go, at most so many points at once.
    fn prune(&mut self, at_once: usize) {
        loop {
            let mut points = self.w.state.prunable(&self.policy);
            points.truncate(at_once);
            if points.is_empty() {
                return;
            }
            let looked = self.w.position().slot;
            let policy = PrunePolicy::Aged(self.policy.clone());
            assert_eq!(self.w.put(Body::Prune(Prune { looked, policy, points, parts: vec![] })), Verdict::Accepted);
        }
    }

    /// The points that are left, by their number among all that were published.
    fn left(&self) -> Vec<usize> {
        (0..self.past.len()).filter(|n| self.w.state.points().contains_key(&self.past[*n].slot)).collect()
    }

    /// What the policy promises, by what really passed: whatever the clocks say, nothing is missing.
    fn check_promises(&self) {
        let left = self.w.state.points();
        let age_ms = |p: &Past| self.real_ms - p.real_ms;
        for p in self.past.iter().rev().take_while(|p| age_ms(p) < self.policy.span_ms) {
            assert!(left.contains_key(&p.slot), "L5: a point inside the span is gone");
        }
        assert!(self.pinned.iter().all(|p| left.contains_key(p)), "L5: a pinned point is gone");
        for volume in [1, 2] {
            let past = || self.past.iter().rev().filter(|p| p.volumes.contains(&volume));
            for p in past().filter(|p| !p.degraded).take(self.policy.keep.max(1) as usize) {
                assert!(left.contains_key(&p.slot), "L5: one of the newest {} is gone", self.policy.keep);
            }
            for rule in self.policy.grid.rules() {
                let mut sound = BTreeMap::new();
                for point in left.values().filter(|p| p.members.iter().any(|m| m.key.volume == vol(volume))) {
                    *sound.entry(point.time_ms / rule.every_ms).or_insert(false) |= !point.degraded;
                }
                for p in past().take_while(|p| age_ms(p) < rule.keep_ms) {
                    let found = sound.get(&(p.time_ms / rule.every_ms)).copied();
                    let promised = if p.degraded { found.is_some() } else { found == Some(true) };
                    assert!(
                        promised,
                        "L5: a cell of {rule:?} with a point of volume {volume} has none (or no sound one) any more"
                    );
                }
            }
        }
    }

    /// After a prune no more is left than the policy says.
    fn check_bound(&self) {
        assert!(self.w.state.prunable(&self.policy).is_empty(), "asked after a prune");
        let young = |p: &&Point| self.w.state.age_clock_ms() - p.age_clock_ms < self.policy.span_ms;
        let inside = self.w.state.points().values().filter(young).count() as u64;
        // A cell more for each time at which ledger time went on and the age clock did not, or by two hours only.
        let cells = |r: &Rule| r.keep_ms / r.every_ms + 2 + (r.keep_ms + r.every_ms) / (2 * HOUR) + self.restarts;
        let grid: u64 = self.policy.grid.rules().iter().map(cells).sum();
        let most = 2 * (grid + 2 * u64::from(self.policy.keep.max(1))) + inside + self.pinned.len() as u64;
        let left = self.w.state.points().len() as u64;
        assert!(left <= most, "{left} points are left, the policy bounds them by {most}");
    }
}

/// What happens to a group.
#[derive(Clone, Debug)]
enum Happens {
    /// Points so many milliseconds apart.
    Points {
        every_ms: u64,
        count: u64,
        volumes: &'static [u8],
        degraded: bool,
    },
    /// Nothing changes, and a heartbeat says so every hour.
    Quiet {
        hours: u64,
    },
    /// Nothing is heard for so long, and the next that comes is a point.
    Silence {
        ms: u64,
    },
    /// The gateway is started anew, down for so long, with a clock that jumps.
    Restart {
        down_ms: u64,
        jump_ms: i64,
    },
    Pin,
    Prune {
        at_once: usize,
    },
}

fn history() -> impl Strategy<Value = Vec<Happens>> {
    let every = prop_oneof![1..20 * SECOND, 1..5 * MINUTE, 1..3 * HOUR, 1..2 * DAY];
    let volumes = prop_oneof![6 => Just(&[1u8, 2][..]), 1 => Just(&[1u8][..]), 1 => Just(&[2u8][..])];
    let jump = prop_oneof![Just(0i64), Just(YEAR as i64), Just(-(YEAR as i64)), -(DAY as i64)..DAY as i64];
    prop::collection::vec(
        prop_oneof![
            8 => (every, 1u64..120, volumes, prop::bool::weighted(0.2))
                .prop_map(|(every_ms, count, volumes, degraded)| Happens::Points { every_ms, count, volumes, degraded }),
            2 => (1u64..72).prop_map(|hours| Happens::Quiet { hours }),
            2 => prop_oneof![1..6 * HOUR, 1..40 * DAY].prop_map(|ms| Happens::Silence { ms }),
            2 => (prop_oneof![1..MINUTE, 1..5 * DAY], jump).prop_map(|(down_ms, jump_ms)| Happens::Restart { down_ms, jump_ms }),
            1 => Just(Happens::Pin),
            5 => prop_oneof![Just(usize::MAX), 1usize..40].prop_map(|at_once| Happens::Prune { at_once }),
        ],
        5..40,
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    let some = policy(1, 0, &[(7 * SECOND, 5 * MINUTE), (MINUTE, HOUR), (11 * MINUTE, 2 * DAY)]);
    let spanned = policy(3, 30 * MINUTE, &[(5 * MINUTE, 12 * HOUR), (13 * HOUR, 90 * DAY)]);
    prop_oneof![2 => Just(four_rules()), 1 => Just(some), 1 => Just(spanned)]
}

/// Goes through a history, asking for a prune every `eager` points beside those of the history, if so.
fn live(policy: &Policy, history: &[Happens], eager: Option<usize>) -> Site {
    let mut site = Site::new(policy.clone());
    for happens in history {
        match happens {
            Happens::Points { every_ms, count, volumes, degraded } => {
                for _ in 0..*count {
                    site.pass(*every_ms);
                    site.publish(volumes, *degraded);
                    if eager.is_some_and(|eager| site.past.len().is_multiple_of(eager)) {
                        site.prune(usize::MAX);
                    }
                }
            }
            Happens::Quiet { hours } => {
                for _ in 0..*hours {
                    site.pass(HOUR);
                    site.beat();
                }
            }
            Happens::Silence { ms } => {
                site.pass(*ms);
                site.publish(&[1, 2], false);
            }
            Happens::Restart { down_ms, jump_ms } => {
                site.pass(*down_ms);
                site.restart(*jump_ms);
                site.publish(&[1, 2], false);
            }
            Happens::Pin => site.pin_newest(),
            Happens::Prune { at_once } if eager.is_some() => {
                site.check_promises();
                site.prune(*at_once);
                site.check_promises();
                site.check_bound();
            }
            Happens::Prune { .. } => {}
        }
    }
    site.prune(usize::MAX);
    site.check_promises();
    site.check_bound();
    site
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Pruned at every chance, now and then, or once at the end: the promise holds all along, and the same points are left.
    #[test]
    fn a_grid_keeps_its_promise_whenever_it_is_asked(policy in policies(), history in history(), eager in 1usize..50) {
        let once = live(&policy, &history, None);
        let now_and_then = live(&policy, &history, Some(usize::MAX));
        let often = live(&policy, &history, Some(eager));
        prop_assert_eq!(now_and_then.left(), once.left());
        prop_assert_eq!(often.left(), once.left());
    }

    /// What the gateway insists on is kept with what the host asks for: whatever either needs.
    #[test]
    fn a_union_keeps_what_either_keeps(a in policies(), b in policies(), history in history()) {
        let both = a.union(&b);
        prop_assert_eq!(&both, &b.union(&a));
        let left: BTreeSet<usize> = live(&both, &history, Some(10)).left().into_iter().collect();
        for policy in [a, b] {
            prop_assert!(live(&policy, &history, Some(10)).left().iter().all(|point| left.contains(point)), "{:?}", policy);
        }
    }
}

/// A host that stood in said one grid after the other, and what was kept of all of them was cut off where it was coarsest: ten years of days went.
#[test]
fn what_is_said_again_and_again_drops_no_rule_that_was_there_and_leaves_room_for_the_gateway() {
    let grid = |first: u64, keep_ms| -> Policy {
        let rules = (0..Grid::RULES_SAID_MAX as u64).map(|i| Rule { every_ms: first + i, keep_ms }).collect::<Vec<_>>();
        Policy { keep: 1, span_ms: 0, grid: rules.try_into().expect("a grid") }
    };
    let days: Vec<Rule> = vec![Rule { every_ms: 24 * HOUR, keep_ms: 10 * YEAR }];
    let old = Policy { keep: 3, span_ms: 0, grid: days.clone().try_into().expect("a grid") };
    let policy = (1..6).fold(old, |policy, said| policy.with_what_fits_of(&Policy { span_ms: said, ..grid(said * 100, HOUR) }));
    assert_eq!(
        (policy.keep, policy.span_ms, policy.grid.rules().len()),
        (3, 5, 9),
        "the first of them fits, and number and span always do"
    );
    let longer = policy.with_what_fits_of(&grid(100, 2 * HOUR));
    assert!(longer.grid.rules()[0].keep_ms == 2 * HOUR, "for longer is no more rules");
    let kept = grid(5000, HOUR).union(&grid(6000, HOUR)).union(&policy);
    assert!(kept.grid.rules().ends_with(&days) && kept.grid.rules().len() == 25, "{kept:?}");
}

/// Two years under the four rules that everybody writes: bursts, working days, weekends, weeks of holiday.
#[test]
fn two_years_of_a_grid() {
    let mut site = Site::new(four_rules());
    let mut rng = 88_172_645_463_325_252_u64;
    let mut draw = |below: u64| {
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        rng % below
    };
    let mut most = 0;
    while site.real_ms < 2 * YEAR {
        let (every_ms, count) = match draw(10) {
            0 => (SECOND, 600),
            1..=3 => (5 * SECOND, 100 + draw(200)),
            4 | 5 => (MINUTE, 60 + draw(400)),
            _ => (20 * MINUTE + draw(HOUR), draw(100)),
        };
        for _ in 0..count {
            site.pass(every_ms);
            site.publish(if draw(50) == 0 { &[1] } else { &[1, 2] }, draw(100) == 0);
            if draw(500) == 0 {
                site.check_promises();
                site.prune(usize::MAX);
                site.check_promises();
                site.check_bound();
                most = most.max(site.w.state.points().len());
            }
        }
        match draw(40) {
            0 => {
                site.pass(7 * DAY + draw(14 * DAY));
                site.publish(&[1, 2], false);
            }
            1 => site.restart(if draw(2) == 0 { YEAR as i64 } else { -(YEAR as i64) }),
            2 => site.pin_newest(),
            _ => {
                for _ in 0..draw(40) {
                    site.pass(HOUR);
                    site.beat();
                }
            }
        }
    }
    site.prune(usize::MAX);
    site.check_promises();
    site.check_bound();
    assert!(site.past.len() > 30_000 && most > 500, "{} points, at most {most} at once: not much of a test", site.past.len());
}

/// A host is off for three weeks and comes back encrypted, or the gateway's clock is a year ahead after a restart: what was
/// published before is two hours older at most, and as old as it was.
#[test]
fn l5_neither_silence_nor_a_clock_ages_points() {
    let mistakes =
        [("L5 silence ages points", "L5: silence gave up points"), ("L5 a wall clock ages points", "L5: a clock gave up points")];
    tell(&mistakes, || {
        let policies =
            [policy(1, DAY, &[]), policy(1, 0, &[(MINUTE, DAY), (HOUR, 3 * DAY)]), policy(1, 0, &[(5 * SECOND, 3 * HOUR)])];
        for policy in policies {
            let mut site = Site::new(policy);
            for _ in 0..120 {
                site.pass(30 * SECOND);
                site.publish(&[1, 2], false);
            }
            site.prune(usize::MAX);
            let mut before = site.left();
            before.pop().expect("the newest is there for being that, until there is a newer one");
            assert!(before.len() >= 59);
            let mut jumped =
                Site { w: site.w.clone(), past: Vec::new(), pinned: BTreeSet::new(), policy: site.policy.clone(), ..site };
            site.pass(21 * DAY);
            for _ in 0..20 {
                site.pass(SECOND);
                site.publish(&[1, 2], false);
            }
            site.prune(usize::MAX);
            assert!(before.iter().all(|n| site.left().contains(n)), "L5: silence gave up points");
            // Restarts with a clock that runs away, one after the other; and one while the process lives.
            let points = jumped.w.state.points().len();
            for jump_ms in [YEAR as i64, YEAR as i64, 0, -(YEAR as i64), YEAR as i64] {
                jumped.restart(jump_ms);
                jumped.beat();
                jumped.w.wall_ms += jump_ms;
                jumped.beat();
                jumped.prune(usize::MAX);
                assert_eq!(jumped.w.state.points().len(), points, "L5: a clock gave up points");
            }
        }
    });
}

/// A disk with a bad sector makes degraded points for a while. One of them stands for its cell as long as there is nothing
/// better, and then it must not be the one that stays.
#[test]
fn l5_a_sound_point_stands_for_its_cell() {
    tell(&[("L5 a degraded point stands for a cell with sound ones", "L5: the cell's sound point is gone")], || {
        let mut site = Site::new(policy(1, 0, &[(HOUR, 30 * DAY)]));
        site.pass(SECOND);
        site.publish(&[1], true);
        site.pass(MINUTE);
        site.publish(&[1], true);
        site.prune(usize::MAX);
        assert_eq!(site.left(), [0, 1], "the newest one, and the one of the cell");
        site.pass(MINUTE);
        site.publish(&[1], false);
        site.pass(3 * HOUR);
        site.publish(&[1], true);
        site.publish(&[1], false);
        site.prune(usize::MAX);
        assert!(site.left().contains(&2), "L5: the cell's sound point is gone");
        assert_eq!(site.left(), [2, 4]);
    });
}

#[test]
fn a_shorter_policy_gives_up_the_rest_and_a_longer_one_brings_nothing_back() {
    let mut site = Site::new(policy(2, 0, &[(MINUTE, DAY)]));
    for _ in 0..120 {
        site.pass(30 * SECOND);
        site.publish(&[1, 2], false);
    }
    site.prune(usize::MAX);
    let minutes = site.left();
    assert_eq!(minutes.len(), 61, "60 minutes, and the newest point of the last");
    site.policy = policy(2, 0, &[(10 * MINUTE, DAY)]);
    site.prune(usize::MAX);
    let tens = site.left();
    assert!(tens.len() == 8 && tens.iter().all(|n| minutes.contains(n)), "{tens:?}");
    site.policy = policy(2, 0, &[(MINUTE, DAY)]);
    site.prune(usize::MAX);
    assert_eq!(site.left(), tens);
}
