//! What a group's control thread counts for status and metrics. No host write passes here.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use farside_control::source::{Carrier as Over, Histogram, Link, Switches};
use farside_replication::source::DemoteCause;
use farside_transport::{Carrier, Statistics};

/// Upper bounds of the grace of switches.
const GRACE_BOUNDS_US: [u64; 10] = [10, 50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];
/// A rate is over so long …
const RATE_OVER: Duration = Duration::from_secs(5);
/// … in steps of at least this.
const RATE_STEP: Duration = Duration::from_millis(500);

/// A connection on which nothing arrives for so long, although both sides keep it alive more often, is said to be silent.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(7);

/// Counts of a group since it was started.
#[derive(Debug)]
pub(crate) struct Tally {
    grace_counts: [u64; GRACE_BOUNDS_US.len() + 1],
    grace_sum_ns: u64,
    grace_ns_max: u64,
    switches: u64,
    demotions: BTreeMap<&'static str, u64>,
    connections: u64,
    read_again: u64,
    refusals: u64,
    /// Of connections that have ended.
    ended: Statistics,
    /// Bytes that the present connection had received when that last grew, and when that was.
    heard: Option<(u64, Instant)>,
    /// Bytes that switches froze.
    frozen_bytes: u64,
    /// Some moments of the last seconds.
    moments: VecDeque<Moment>,
}

/// Totals at some time.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Instant,
    sent_bytes: u64,
    dirtied_bytes: u64,
}

/// What goes out and what comes in, over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) sent_bytes_per_s: u64,
    /// By the host, each granule once until it is frozen: what must be sent for it, not what was written.
    pub(crate) dirtied_bytes_per_s: u64,
}

impl Rates {
    /// When a backlog will be gone, in milliseconds. None: not at these rates.
    pub(crate) fn eta_ms(self, backlog_bytes: u64) -> Option<u64> {
        let shrinks = self.sent_bytes_per_s.checked_sub(self.dirtied_bytes_per_s).filter(|rate| *rate > 0)?;
        Some(backlog_bytes.saturating_mul(1000) / shrinks)
    }
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            grace_counts: [0; GRACE_BOUNDS_US.len() + 1],
            grace_sum_ns: 0,
            grace_ns_max: 0,
            switches: 0,
            demotions: BTreeMap::new(),
            connections: 0,
            read_again: 0,
            refusals: 0,
            ended: Statistics::default(),
            heard: None,
            frozen_bytes: 0,
            moments: VecDeque::new(),
        }
    }

    pub(crate) fn grace(&mut self, ns: u64) {
        self.switches += 1;
        self.grace_sum_ns += ns;
        self.grace_ns_max = self.grace_ns_max.max(ns);
        let at = GRACE_BOUNDS_US.iter().position(|bound| ns <= bound * 1000).unwrap_or(GRACE_BOUNDS_US.len());
        self.grace_counts[at] += 1;
    }

    pub(crate) fn demoted(&mut self, why: DemoteCause) {
        let cause = match why {
            DemoteCause::SideBuffer => "side_buffer",
            DemoteCause::ClaimPool => "claim_pool",
            DemoteCause::Hung => "hung",
            DemoteCause::Member => "member",
            DemoteCause::Reset => "reset",
            DemoteCause::Claim => "claim",
            DemoteCause::Scattered => "scattered",
            _ => "other",
        };
        *self.demotions.entry(cause).or_default() += 1;
    }

    pub(crate) fn connected(&mut self) {
        self.connections += 1;
    }

    /// How long nothing was received, if that is long. `received`: bytes of the connection that stands; `None` without one.
    pub(crate) fn silent(&mut self, now: Instant, received: Option<u64>) -> Option<Duration> {
        let heard = received.map(|bytes| match self.heard {
            Some((before, at)) if before == bytes => (before, at),
            _ => (bytes, now),
        });
        self.heard = heard;
        let (_, at) = heard?;
        Some(now.duration_since(at)).filter(|silent| *silent >= SILENT_AFTER)
    }

    pub(crate) fn disconnected(&mut self, statistics: Statistics) {
        self.heard = None;
        self.ended.sent_bytes += statistics.sent_bytes;
        self.ended.received_bytes += statistics.received_bytes;
        self.ended.lost_packets += statistics.lost_packets;
    }

    pub(crate) fn read_again(&mut self) {
        self.read_again += 1;
    }

    pub(crate) fn refused(&mut self) {
        self.refusals += 1;
    }

    /// A switch froze so much.
    pub(crate) fn frozen(&mut self, bytes: u64) {
        self.frozen_bytes += bytes;
    }

    /// The total of bytes read, and what the open maps hold, now.
    pub(crate) fn moment(&mut self, now: Instant, sent_bytes: u64, open_bytes: u64) {
        if self.moments.back().is_some_and(|last| now.duration_since(last.at) < RATE_STEP) {
            return;
        }
        self.moments.push_back(Moment { at: now, sent_bytes, dirtied_bytes: self.frozen_bytes + open_bytes });
        // One stays that is older, so that the oldest difference spans the whole time.
        while self.moments.get(1).is_some_and(|moment| now.duration_since(moment.at) >= RATE_OVER) {
            self.moments.pop_front();
        }
    }

    /// Over the last seconds; zero once nothing happened for so long.
    pub(crate) fn rates(&self, now: Instant, sent_bytes: u64, open_bytes: u64) -> Rates {
        let Some(oldest) = self.moments.front() else { return Rates::default() };
        let seconds = now.duration_since(oldest.at).as_secs_f64();
        let rate = |now: u64, then: u64| if seconds < 0.1 { 0 } else { (now.saturating_sub(then) as f64 / seconds) as u64 };
        Rates {
            sent_bytes_per_s: rate(sent_bytes, oldest.sent_bytes),
            dirtied_bytes_per_s: rate(self.frozen_bytes + open_bytes, oldest.dirtied_bytes),
        }
    }

    pub(crate) fn switches(&self) -> Switches {
        Switches {
            count: self.switches,
            grace: Histogram {
                bounds_us: GRACE_BOUNDS_US.to_vec(),
                counts: self.grace_counts.to_vec(),
                sum_us: self.grace_sum_ns / 1000,
                max_us: self.grace_ns_max / 1000,
            },
            demotions: self.demotions.iter().map(|(cause, n)| ((*cause).to_owned(), *n)).collect(),
        }
    }

    /// `now`: of the connection that stands.
    pub(crate) fn link(&self, connected: bool, now: Option<Statistics>, over: Option<Carrier>) -> Link {
        let of = now.unwrap_or_default();
        let (carrier, carrier_reason) = match over {
            None => (None, None),
            Some(Carrier::Udp) => (Some(Over::Udp), None),
            Some(Carrier::Tcp(why)) => (Some(Over::Tcp), why.map(|why| why.to_string())),
        };
        Link {
            connected,
            carrier,
            carrier_reason,
            connections: self.connections,
            parallel: of.connections,
            sent_bytes: self.ended.sent_bytes + of.sent_bytes,
            received_bytes: self.ended.received_bytes + of.received_bytes,
            lost_packets: self.ended.lost_packets + of.lost_packets,
            rtt_us: now.map(|of| u64::try_from(of.rtt.as_micros()).unwrap_or(u64::MAX)),
            read_again: self.read_again,
            refusals: self.refusals,
        }
    }
}

#[cfg(test)]
mod tests {
    use farside_transport::WhyTcp;

    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds_and_ends_with_them() {
        let (mut tally, start) = (Tally::new(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        for step in 0..=20 {
            tally.moment(at(500 * step), 1000 * step, 0);
        }
        assert_eq!(tally.rates(at(10_000), 20_000, 0), Rates { sent_bytes_per_s: 2000, dirtied_bytes_per_s: 0 });
        for step in 21..=31 {
            tally.moment(at(500 * step), 20_000, 0);
        }
        assert_eq!(tally.rates(at(15_500), 20_000, 0), Rates::default(), "nothing was sent for five seconds");
        assert!(tally.moments.len() < 16, "{}", tally.moments.len());
    }

    #[test]
    fn l10_an_eta_counts_what_becomes_dirty_meanwhile() {
        let (mut tally, start) = (Tally::new(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        // 2000 are sent in each second, and 1000 become dirty; switches move them from the open map to what is frozen.
        let mut frozen = 0;
        for step in 0..=20 {
            let dirtied = 500 * step;
            if step % 7 == 6 {
                tally.frozen(dirtied - frozen);
                frozen = dirtied;
            }
            tally.moment(at(500 * step), 1000 * step, dirtied - frozen);
        }
        let rates = tally.rates(at(10_000), 20_000, 10_000 - frozen);
        assert_eq!(rates, Rates { sent_bytes_per_s: 2000, dirtied_bytes_per_s: 1000 });
        assert_eq!(rates.eta_ms(60_000), Some(60_000), "by what is sent alone it would be 30 s");
        for dirtied_bytes_per_s in [2000, 2001] {
            assert_eq!(Rates { dirtied_bytes_per_s, ..rates }.eta_ms(60_000), None, "it never ends");
        }
        assert_eq!(Rates::default().eta_ms(1), None);
    }

    #[test]
    fn silence_is_said_and_ends_with_the_first_byte() {
        let (mut tally, start) = (Tally::new(), Instant::now());
        assert_eq!(tally.silent(start, None), None);
        assert_eq!(tally.silent(start, Some(5)), None);
        assert_eq!(tally.silent(start + SILENT_AFTER / 2, Some(5)), None);
        assert_eq!(tally.silent(start + SILENT_AFTER, Some(5)), Some(SILENT_AFTER));
        assert_eq!(tally.silent(start + SILENT_AFTER * 2, Some(6)), None);
        assert_eq!(tally.silent(start + SILENT_AFTER * 3, Some(6)), Some(SILENT_AFTER));
        // Another connection begins anew, also if it has received as much.
        tally.disconnected(Statistics::default());
        assert_eq!(tally.silent(start + SILENT_AFTER * 3, Some(6)), None);
    }

    #[test]
    fn graces_are_counted_below_their_bound() {
        let mut tally = Tally::new();
        for ns in [1, 10_000, 10_001, 99_000_000, 5_000_000_000] {
            tally.grace(ns);
        }
        let grace = tally.switches().grace;
        assert_eq!(grace.counts, [2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1]);
        assert_eq!((grace.max_us, grace.counts.len()), (5_000_000, grace.bounds_us.len() + 1));
    }

    #[test]
    fn a_connection_that_ended_still_counts() {
        let mut tally = Tally::new();
        let of = |sent_bytes| Statistics { sent_bytes, lost_packets: 1, ..Statistics::default() };
        tally.connected();
        tally.disconnected(of(10));
        tally.connected();
        let link = tally.link(true, Some(of(5)), Some(Carrier::Tcp(Some(WhyTcp::Silent))));
        assert_eq!((link.carrier, link.carrier_reason.as_deref()), (Some(Over::Tcp), Some("UDP is not answered")));
        assert_eq!((link.connections, link.sent_bytes, link.lost_packets), (2, 15, 2));
        let without = tally.link(false, None, None);
        assert_eq!((without.carrier, without.carrier_reason, without.rtt_us), (None, None, None));
    }
}
