//! Applications that are spread over all hosts: each writes its next number at one of them when the one before is complete, durably.

use crate::host::HostOp;
use crate::rng::Rng;
use crate::run::Run;
use crate::world::{SECTOR, World};

/// A number that was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) host: usize,
    tag: u64,
    /// The application was told so. What it was not told of may be there or not.
    pub(super) is_complete: bool,
    /// The step at which its host went back to before it: a failover to a point that lacks it.
    pub(super) lost_at: Option<u64>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Chain {
    no: usize,
    /// From 1.
    pub(super) written: Vec<Written>,
    /// The machine that the last one went to, and its process, if it has no answer yet.
    under_way: Option<(usize, u64)>,
    /// The machine that had each host's group when it was looked at last.
    mains: Vec<Option<usize>>,
}

impl Chain {
    pub(super) fn new(no: usize) -> Self {
        Self { no, written: Vec::new(), under_way: None, mains: Vec::new() }
    }

    /// Where it writes, at every host.
    pub(super) fn sector(&self, world: &World) -> usize {
        World::first_bytes(&world.plan, 0) as usize / SECTOR - 1 - self.no
    }

    /// Which number of this application a host's content is; 0: none yet.
    pub(super) fn number_of(&self, host: usize, content: &[u8]) -> Option<usize> {
        if content.iter().all(|byte| *byte == 0) {
            return Some(0);
        }
        let tag = u64::from_le_bytes(content[..8].try_into().ok()?);
        Some(self.written.iter().position(|written| written.host == host && written.tag == tag)? + 1)
    }

    /// Hears of the last one, or begins the next.
    pub(super) fn go_on(&mut self, hosts: &[Run], rng: &mut Rng, step: u64) {
        self.follow_failovers(hosts, step);
        if self.under_way.is_some() {
            return self.hear(hosts);
        }
        let host = rng.below(hosts.len());
        let Some(no) = hosts[host].world.main.get() else { return };
        let Some(source) = hosts[host].sources.get(no).and_then(Option::as_ref) else { return };
        let op = HostOp::Write { first: self.sector(&hosts[host].world), count: 1, fua: true };
        if let Some(tag) = source.host(0, op) {
            self.under_way = Some((no, hosts[host].world.site(no).attached_at.get()));
            self.written.push(Written { host, tag, is_complete: false, lost_at: None });
        }
    }

    fn hear(&mut self, hosts: &[Run]) {
        let (Some((no, process)), Some(last)) = (self.under_way, self.written.last_mut()) else { return };
        let world = &hosts[last.host].world;
        let site = world.site(no);
        let is_same = site.attached_at.get() == process;
        let fact = site.oracle.borrow().fact(last.tag).filter(|_| is_same).cloned();
        if fact.as_ref().is_some_and(|fact| fact.acked_us.is_some()) {
            last.is_complete = fact.is_some_and(|fact| fact.is_done);
        } else if is_same && site.source_alive.get() && world.main.get() == Some(no) {
            return;
        }
        self.under_way = None;
    }

    /// What a group's new machine does not hold is lost, and its application begins from what is there.
    fn follow_failovers(&mut self, hosts: &[Run], step: u64) {
        self.mains.resize(hosts.len(), Some(0));
        for (at, host) in hosts.iter().enumerate() {
            let Some(main) = host.world.main.get() else { continue };
            if self.mains[at].replace(main) == Some(main) {
                continue;
            }
            let sector = self.sector(&host.world);
            let site = host.world.site(main);
            let there = self.number_of(at, site.disks[0].borrow().current(sector)).unwrap_or(0);
            let gone = self.written.iter_mut().skip(there).filter(|written| written.host == at);
            gone.for_each(|written| _ = written.lost_at.get_or_insert(step));
        }
    }
}
