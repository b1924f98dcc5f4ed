//! What a group's control thread counts for status and metrics. No host write passes here.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use farside_control::source::{Histogram, Link, Switches};
use farside_replication::source::DemoteCause;
use farside_transport::Statistics;

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
    /// Bytes read so far, at some moments of the last seconds.
    sent: VecDeque<(Instant, u64)>,
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
            sent: VecDeque::new(),
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

    /// The total of bytes read, now.
    pub(crate) fn sent(&mut self, now: Instant, total: u64) {
        if self.sent.back().is_some_and(|(at, _)| now.duration_since(*at) < RATE_STEP) {
            return;
        }
        self.sent.push_back((now, total));
        // One stays that is older, so that the oldest difference spans the whole time.
        while self.sent.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER) {
            self.sent.pop_front();
        }
    }

    /// Bytes per second over the last seconds; zero once nothing was sent for so long.
    pub(crate) fn rate(&self, now: Instant, total: u64) -> u64 {
        let Some((at, before)) = self.sent.front() else { return 0 };
        let seconds = now.duration_since(*at).as_secs_f64();
        if seconds < 0.1 { 0 } else { (total.saturating_sub(*before) as f64 / seconds) as u64 }
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
    pub(crate) fn link(&self, connected: bool, now: Option<Statistics>) -> Link {
        let of = now.unwrap_or_default();
        Link {
            connected,
            connections: self.connections,
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
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds_and_ends_with_them() {
        let (mut tally, start) = (Tally::new(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        for step in 0..=20 {
            tally.sent(at(500 * step), 1000 * step);
        }
        assert_eq!(tally.rate(at(10_000), 20_000), 2000);
        for step in 21..=31 {
            tally.sent(at(500 * step), 20_000);
        }
        assert_eq!(tally.rate(at(15_500), 20_000), 0, "nothing was sent for five seconds");
        assert!(tally.sent.len() < 16, "{}", tally.sent.len());
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
        let link = tally.link(true, Some(of(5)));
        assert_eq!((link.connections, link.sent_bytes, link.lost_packets), (2, 15, 2));
        assert_eq!(tally.link(false, None).rtt_us, None);
    }
}
