//! Who may be on the way in at once, before anybody knows who they are.
//!
//! Owns the passes of connections under construction. Invariants: no address holds more than its share; what a stranger can
//! hold after TLS is little and for a short time; a quarter of all passes is only for addresses from which a paired source
//! came before, in this life of the receiver or an earlier one, and only for sources whose addresses together hold less than a
//! stranger's share. So neither one host with any certificate, nor many, nor a paired one with many addresses keep paired sources out.
//!
//! It deliberately knows nothing of bandwidth: a flood that fills the link fills it.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::configuration::Limits;
use crate::Fingerprint;
use crate::pairing::SITES_MAX;

/// Addresses of paired sources that are remembered, of each [`SITES_MAX`]; the oldest goes first.
const KNOWN_MAX: usize = 4096;

/// The door's count.
#[derive(Debug)]
pub(super) struct Gate {
    handshakes: usize,
    handshakes_per_address: usize,
    strangers: usize,
    strangers_per_address: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    handshakes: Count,
    tunnels: Count,
    strangers: Count,
    known: VecDeque<(IpAddr, Fingerprint)>,
}

#[derive(Debug, Default)]
struct Count {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection under construction, until it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Handshake,
    Tunnel,
    Stranger,
}

/// What to do with a first packet.
#[derive(Debug)]
pub(super) enum Knock {
    /// Go on.
    Enter(Pass),
    /// Let it show first that its address is its own.
    Prove,
    /// Say nothing: it knocks again by itself.
    Wait,
}

impl Gate {
    /// `known`: where paired sources came from before, those that matter most last.
    pub(super) fn new(limits: &Limits, known: Vec<(IpAddr, Fingerprint)>) -> Arc<Self> {
        let many = known.len().saturating_sub(KNOWN_MAX);
        let known = known.into_iter().skip(many).collect();
        Arc::new(Self {
            handshakes: limits.handshakes,
            handshakes_per_address: limits.handshakes_per_address,
            strangers: limits.strangers,
            strangers_per_address: limits.strangers_per_address,
            inner: Mutex::new(Inner { known, ..Inner::default() }),
        })
    }

    /// A TCP connection came from this address; `None`: too many such of which nobody knows yet who they are. † Counted apart: those that
    /// wait whether UDP is answered must not keep that from being answered.
    pub(super) fn tunnel(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let address = site(address);
        let mut inner = self.lock();
        let (all_max, mine_max) = self.most(&inner, &inner.tunnels, address);
        if inner.tunnels.all >= all_max || inner.tunnels.of(address) >= mine_max {
            return None;
        }
        inner.tunnels.add(address);
        Some(Pass { gate: Arc::clone(self), address, kind: Kind::Tunnel })
    }

    /// Passes of all, and of one address. A paired source connects once for each of its groups, all at the same moment after a restart.
    fn most(&self, inner: &Inner, count: &Count, address: IpAddr) -> (usize, usize) {
        let for_all = self.handshakes - self.handshakes / 4;
        let mut owners = inner.known.iter().filter(|(known, _)| *known == address).peekable();
        if owners.peek().is_none() {
            return (for_all, self.handshakes_per_address);
        }
        let held_by = |owner: Fingerprint| -> usize {
            inner.known.iter().filter(|(_, of)| *of == owner).map(|(known, _)| count.of(*known)).sum()
        };
        let may_have_more = count.all < for_all || owners.any(|(_, owner)| held_by(*owner) < self.handshakes_per_address);
        let for_it = if may_have_more { self.handshakes } else { for_all };
        (for_it, (self.handshakes / 2).max(self.handshakes_per_address))
    }

    /// A first packet came from this address. What an address that nobody has proved may take is half.
    pub(super) fn knock(self: &Arc<Self>, address: IpAddr, proved: bool) -> Knock {
        let address = site(address);
        let mut inner = self.lock();
        let (all_max, mine_max) = self.most(&inner, &inner.handshakes, address);
        let (all, mine) = (inner.handshakes.all, inner.handshakes.of(address));
        if all >= all_max || mine >= mine_max {
            return Knock::Wait;
        }
        if !proved && (all >= all_max / 2 || mine >= mine_max.div_ceil(2)) {
            return Knock::Prove;
        }
        inner.handshakes.add(address);
        Knock::Enter(Pass { gate: Arc::clone(self), address, kind: Kind::Handshake })
    }

    /// Somebody whose certificate is not known has a connection; `None`: too many such.
    pub(super) fn stranger(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let address = site(address);
        let mut inner = self.lock();
        if inner.strangers.all >= self.strangers || inner.strangers.of(address) >= self.strangers_per_address {
            return None;
        }
        inner.strangers.add(address);
        Some(Pass { gate: Arc::clone(self), address, kind: Kind::Stranger })
    }

    /// A paired source came from this address.
    pub(super) fn remember(&self, address: IpAddr, source: Fingerprint) {
        let here = (site(address), source);
        let mut inner = self.lock();
        inner.known.retain(|known| *known != here);
        inner.known.push_back(here);
        let its = || inner.known.iter().zip(0..).filter(|((_, of), _)| *of == source).map(|(_, at)| at);
        let goes = if its().count() > SITES_MAX { its().next() } else { (inner.known.len() > KNOWN_MAX).then_some(0) };
        goes.and_then(|at| inner.known.remove(at));
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<IpAddr> {
        self.lock().known.iter().map(|(known, _)| *known).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    fn of(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    fn add(&mut self, address: IpAddr) {
        self.all += 1;
        *self.by_address.entry(address).or_default() += 1;
    }

    fn remove(&mut self, address: IpAddr) {
        self.all -= 1;
        let mine = self.by_address.get_mut(&address).expect("it was added");
        *mine -= 1;
        if *mine == 0 {
            self.by_address.remove(&address);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inner = self.gate.lock();
        match self.kind {
            Kind::Handshake => inner.handshakes.remove(self.address),
            Kind::Tunnel => inner.tunnels.remove(self.address),
            Kind::Stranger => inner.strangers.remove(self.address),
        }
    }
}

/// What one owner has as a rule: an IPv4 address, or an IPv6 network of 64 bits.
pub(crate) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Arc<Gate> {
        gate_that_knows(Vec::new())
    }

    fn source(n: u8) -> Fingerprint {
        Fingerprint([n; 32])
    }

    fn gate_that_knows(known: Vec<(IpAddr, Fingerprint)>) -> Arc<Gate> {
        let limits =
            Limits { handshakes: 16, handshakes_per_address: 4, strangers: 3, strangers_per_address: 2, ..Limits::default() };
        Gate::new(&limits, known)
    }

    fn at(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn enter(gate: &Arc<Gate>, address: IpAddr) -> Option<Pass> {
        match gate.knock(address, true) {
            Knock::Enter(pass) => Some(pass),
            Knock::Prove | Knock::Wait => None,
        }
    }

    #[test]
    fn no_address_takes_more_than_its_share_nor_all_together_what_is_kept_for_the_known() {
        let gate = gate();
        let one: Vec<_> = (0..10).map_while(|_| enter(&gate, at(1))).collect();
        assert_eq!(one.len(), 4);
        let many: Vec<_> = (2..50).filter_map(|n| enter(&gate, at(n))).collect();
        assert_eq!(many.len(), 8, "twelve of sixteen");
        assert!(enter(&gate, at(99)).is_none());
        gate.remember(at(99), source(99));
        let known: Vec<_> = (0..50).map_while(|_| enter(&gate, at(99))).collect();
        assert_eq!(known.len(), 4, "what is kept for the known");
        drop((one, many));
        let more: Vec<_> = (0..50).map_while(|_| enter(&gate, at(99))).collect();
        assert_eq!(known.len() + more.len(), 8, "half of all");
        drop((known, more));
        assert!(gate.lock().handshakes.by_address.is_empty(), "nothing is kept of who left");
    }

    #[test]
    fn a_paired_source_of_many_addresses_leaves_room_for_another_one() {
        let gate = gate();
        (0..100).for_each(|n| gate.remember(at(n), source(1)));
        gate.remember(at(200), source(2));
        assert_eq!(gate.known().len(), SITES_MAX + 1, "its newest, and the other one's");
        let take = |n| (0..50).map_while(|_| enter(&gate, at(n))).collect::<Vec<_>>();
        let held: Vec<_> = (96..100).map(take).collect();
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), 12, "what is for all");
        let other = take(200);
        assert_eq!(other.len(), 4);
        assert!((0..200).all(|n| take(n).is_empty()), "of no address");
    }

    #[test]
    fn who_shares_an_address_with_a_greedy_one_has_room_of_his_own() {
        let gate = gate_that_knows(vec![(at(1), source(1)), (at(2), source(1)), (at(2), source(2))]);
        let take = |n| (0..50).map_while(|_| enter(&gate, at(n))).collect::<Vec<_>>();
        let greedy = take(1);
        assert_eq!(greedy.len(), 8, "half of all");
        let shared = take(2);
        assert!(shared.len() >= 4, "{shared:?}");
    }

    #[test]
    fn of_more_than_are_remembered_the_last_ones_are() {
        let many = (0..KNOWN_MAX as u32 + 1).map(|n| (IpAddr::from((n + 1).to_be_bytes()), source(1)));
        let many: Vec<_> = many.collect();
        let gate = gate_that_knows(many.clone());
        let last: Vec<_> = many[1..].iter().map(|(at, _)| *at).collect();
        assert_eq!(gate.known(), last);
    }

    #[test]
    fn an_address_that_nobody_proved_gets_half() {
        let gate = gate();
        let first: Vec<_> = (0..2)
            .map(|_| match gate.knock(at(1), false) {
                Knock::Enter(pass) => pass,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(matches!(gate.knock(at(1), false), Knock::Prove));
        assert!(matches!(gate.knock(at(1), true), Knock::Enter(_)));
        drop(first);
    }

    #[test]
    fn tcp_connections_are_counted_apart() {
        let gate = gate();
        let tunnels: Vec<_> = (0..10).map_while(|_| gate.tunnel(at(1))).collect();
        assert_eq!(tunnels.len(), 4);
        let _first_packet = enter(&gate, at(1)).expect("UDP is answered all the same");
        gate.remember(at(1), source(1));
        let more: Vec<_> = (0..50).map_while(|_| gate.tunnel(at(1))).collect();
        assert_eq!(more.len(), 4, "half of all");
        drop((tunnels, more));
        assert!(gate.lock().tunnels.by_address.is_empty());
    }

    #[test]
    fn strangers_are_few() {
        let gate = gate();
        let (_a, _b) = (gate.stranger(at(1)).expect("one"), gate.stranger(at(1)).expect("two"));
        assert!(gate.stranger(at(1)).is_none(), "of one address");
        let c = gate.stranger(at(2)).expect("three");
        assert!(gate.stranger(at(3)).is_none(), "of all");
        drop(c);
        assert!(gate.stranger(at(3)).is_some());
    }

    #[test]
    fn a_network_of_64_bits_is_one_site() {
        let v6 = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(site(v6("2001:db8::1")), site(v6("2001:db8::ffff:1")));
        assert_ne!(site(v6("2001:db8::1")), site(v6("2001:db8:0:1::1")));
        assert_eq!(site(v6("::ffff:192.0.2.1")), at(1));
    }
}
