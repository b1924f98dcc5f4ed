//! The switch of a group: what has been decided is carried out on all its members at once.
//!
//! Invariant: a switch that has begun ends here. Parked writers wait for its grace, which is over once every thread that was in the middle
//! of a mark has ended it: so it is waited for right here, and whoever else was to be heard waits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_blockio::process::monotonic_ns;
use farside_ledger::{EpochInfo, LayerKind};
use farside_region::VolumeId;
use farside_replication::source::{DemoteCause, Event, SwitchDone, SwitchMember};
use farside_shim::Kind;
use tracing::warn;

use super::{Control, wall_ms};

/// How often one looks without a pause: a mark that runs on another processor is over by then.
const LOOKS: usize = 100;
/// From then on one looks so often.
const PAUSE: Duration = Duration::from_micros(20);

impl Control {
    /// The switch.
    pub(super) fn switch(&mut self, kind: LayerKind, members: Vec<SwitchMember>) {
        let kind = match kind {
            LayerKind::Point => Kind::Cut,
            LayerKind::Fuzzy => Kind::Pass,
        };
        // A cut that was released is freed by polling; nobody waits for a host here.
        poll_until(|| {
            let early = self.switcher.poll();
            assert!(early.is_none(), "a switch is polled to its end where it begins");
            !self.switcher.is_busy()
        });
        let members = members
            .into_iter()
            .map(|m| farside_shim::Member {
                volume: self.members.get(&m.volume).expect("a switch names members of the group").served.volume.clone(),
                also: m.extra,
            })
            .collect();
        let mono_before_ns = monotonic_ns();
        let epoch = self.switcher.begin(kind, members).expect("the state machine switches when it may");
        let mono_after_ns = monotonic_ns();
        let info = EpochInfo { boot: self.around.boot, mono_before_ns, mono_after_ns, wall_ms: wall_ms() };
        let mut frozen = None;
        poll_until(|| {
            frozen = self.switcher.poll();
            frozen.is_some()
        });
        let frozen = frozen.expect("it was polled until it was there");
        let grace = monotonic_ns() - mono_after_ns;
        self.tally.grace(grace);
        if grace > 10_000_000 {
            warn!(group = %self.name, epoch = %epoch, grace_us = grace / 1000, "a switch took long: a queue thread was held up");
        }
        let now = Instant::now();
        let mut done = Vec::new();
        for frozen in &frozen.members {
            let geometry = frozen.volume.geometry();
            self.tally.frozen(frozen.set.granule_count(geometry) * geometry.granule_bytes());
        }
        for volume in frozen.members {
            let (id, member) = self
                .members
                .iter_mut()
                .find(|(_, m)| Arc::ptr_eq(&m.served.volume, &volume.volume))
                .expect("what was frozen is a member");
            member.recent.push_back((now, volume.set.regions()));
            done.push((*id, volume.set));
        }
        if kind == Kind::Cut {
            // Of the others nothing is read, so nobody would say that it was.
            let left: BTreeSet<VolumeId> = done.iter().filter(|(_, set)| !set.is_empty()).map(|(id, _)| *id).collect();
            // † What nobody reads is a point at once: it must hold already.
            if left.is_empty() && !self.see_taps() {
                self.switcher.demote(epoch);
                let demoted = Event::Demoted { epoch, why: DemoteCause::Member };
                self.source.step(monotonic_ns(), demoted, &mut self.actions);
            } else {
                self.cuts.insert(epoch, left);
            }
        }
        self.source.step(monotonic_ns(), Event::SwitchDone(SwitchDone { epoch, info, members: done }), &mut self.actions);
    }
}

/// † Whoever is waited for may need this very processor, and may be of lesser rank: a thread that only yielded would keep it from ending.
fn poll_until(mut is_over: impl FnMut() -> bool) {
    let mut looks = 0;
    while !is_over() {
        looks += 1;
        if looks > LOOKS {
            std::thread::sleep(PAUSE);
        }
    }
}
