//! Whether a source's packets go over UDP or in a TCP connection: what is known of the way, for all of its connections.
//!
//! UDP is the way wherever it works. TCP is taken
//! - when nobody answers over UDP and the receiver is there over TCP (*silent*; UDP is tried again in the background, and taken
//!   when it is answered);
//! - when connections over UDP fall silent soon after they were made, twice in a row (*dies*);
//! - when so many packets are lost that somebody seems to police UDP, and a trial shows that TCP carries more (*lossy*).
//!
//! For the last two UDP is left alone for a time that doubles while it repeats. Nothing is kept across a restart.
//!
//! It deliberately makes no connection and reads no clock: the dialer does.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Closed, Fingerprint, Statistics, WhyTcp};

/// What a source may connect over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carriers {
    /// UDP, and TCP where that does not get through.
    #[default]
    Auto,
    /// UDP only.
    Udp,
    /// TCP only.
    Tcp,
}

/// All times, in one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// So long UDP alone is tried.
    pub(super) head_start: Duration,
    /// The same where it was silent before.
    pub(super) head_start_known: Duration,
    /// A receiver that is there over TCP has so long to answer over UDP. Three first packets are sent in it.
    pub(super) patience: Duration,
    /// First and longest pause between two tries whether UDP works again.
    pub(super) seek: (Duration, Duration),
    /// First and longest time that UDP is left alone.
    pub(super) avoid: (Duration, Duration),
    /// Silence after less than this counts against UDP.
    pub(super) young: Duration,
    /// Connections that die within this die of the same.
    pub(super) outage: Duration,
    /// Rates are measured over so long.
    pub(super) window: Duration,
    /// In so many windows in a row much must be lost. † A change of the way costs what is under way, so a line that comes and goes for some
    /// minutes must not be taken for one that is policed.
    pub(super) windows: u32,
    /// Fewer packets than these in a window say nothing about losses.
    pub(super) packets: u64,
}

impl Default for Timing {
    fn default() -> Self {
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        Self {
            head_start: ms(1500),
            head_start_known: ms(300),
            patience: s(1),
            seek: (s(30), s(600)),
            avoid: (s(600), s(4 * 3600)),
            young: s(60),
            outage: s(15),
            window: s(10),
            windows: 30,
            packets: 500,
        }
    }
}

/// A trial lasts so many windows.
const TRIAL_WINDOWS: u32 = 3;
/// One of so many packets is lost: congestion that a path with a queue makes is less.
const LOST_OF: u64 = 100;
/// TCP is better if it carries so many halves of what UDP did.
const BETTER_HALVES: u64 = 3;

/// What one source knows about its way to the receiver. Cheap to share.
#[derive(Clone, Debug)]
pub struct Route {
    carriers: Carriers,
    pub(super) timing: Timing,
    state: Arc<Mutex<State>>,
    /// Counts what connections that stand should look at.
    news: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct State {
    /// Whom all this is about.
    receiver: Option<Fingerprint>,
    /// Where it was reached last: an address of its pin, and what that stood for.
    reached: Option<(String, SocketAddr)>,
    /// UDP was not answered when it was tried last.
    is_silent: bool,
    /// UDP is left alone so long, and why.
    avoided: Option<(Instant, WhyTcp)>,
    /// How often that was decided in a row.
    times: u32,
    /// How often in a row connections died young, and when that was last.
    died: u32,
    died_at: Option<Instant>,
    /// TCP is being tried: what UDP carried per second, and since when. One connection does that for all.
    trial: Option<(u64, Instant)>,
    /// No trial before.
    no_trial: Option<Instant>,
    /// Trials in a row after which TCP did not stay.
    in_vain: u32,
}

impl Default for Route {
    fn default() -> Self {
        Self::new(Carriers::Auto)
    }
}

impl Route {
    /// Nothing is known yet.
    pub fn new(carriers: Carriers) -> Self {
        Self::with_timing(carriers, Timing::default())
    }

    pub(super) fn with_timing(carriers: Carriers, timing: Timing) -> Self {
        Self { carriers, timing, state: Arc::default(), news: Arc::new(watch::Sender::new(0)) }
    }

    pub(super) fn carriers(&self) -> Carriers {
        self.carriers
    }

    /// Why TCP is to be tried first, if it is.
    pub(super) fn prefers_tcp(&self, now: Instant) -> Option<WhyTcp> {
        match self.carriers {
            Carriers::Udp => None,
            Carriers::Tcp => Some(WhyTcp::Asked),
            Carriers::Auto => self.lock().avoided.filter(|(until, _)| now < *until).map(|(_, why)| why),
        }
    }

    /// How long UDP alone is tried.
    pub(super) fn head_start(&self) -> Duration {
        if self.lock().is_silent { self.timing.head_start_known } else { self.timing.head_start }
    }

    /// UDP was answered, or was not though the receiver is there.
    pub(super) fn is_answered(&self, is: bool) {
        let was_silent = std::mem::replace(&mut self.lock().is_silent, !is);
        if was_silent && is {
            self.tell();
        }
    }

    /// A connection over UDP ended.
    pub(super) fn ended(&self, closed: &Closed, lived: Duration, now: Instant) {
        let mut state = self.lock();
        if lived >= self.timing.avoid.1 {
            state.times = 0;
        }
        if lived >= self.timing.young {
            state.died = 0;
            return;
        }
        // † All connections of a host die of one outage; that is once, and says nothing about a way that is avoided already.
        let is_same = state.died_at.is_some_and(|then| now.saturating_duration_since(then) < self.timing.outage);
        let is_avoided = state.avoided.is_some_and(|(until, _)| now < until);
        if *closed != Closed::TimedOut || is_same || is_avoided {
            return;
        }
        state.died_at = Some(now);
        state.died += 1;
        if state.died >= 2 {
            self.avoid(&mut state, WhyTcp::Dies, now);
        }
    }

    /// How long a connection over TCP leaves UDP alone before it looks for it.
    pub(super) fn leaves_udp_alone(&self, now: Instant) -> Duration {
        self.lock().avoided.map_or(Duration::ZERO, |(until, _)| until.saturating_duration_since(now))
    }

    /// What a connection over UDP, which carried so much in the last windows, should do about TCP: go there, or try it.
    /// True: it is a trial, and [`Route::tried`] is to hear of its end.
    pub(super) fn leaves_udp(&self, carried: Option<Lossy>, now: Instant) -> Option<(WhyTcp, bool)> {
        if self.carriers != Carriers::Auto {
            return None;
        }
        if let Some(why) = self.prefers_tcp(now) {
            return Some((why, false));
        }
        let mut state = self.lock();
        // One of a connection that came to its end meanwhile is over, too.
        let is_trying = state.trial.is_some_and(|(_, begun)| now.saturating_duration_since(begun) < self.timing.avoid.0);
        let may_try = !is_trying && state.no_trial.is_none_or(|until| now >= until);
        let carried = carried.filter(|_| may_try)?;
        state.trial = Some((carried.bytes_per_s, now));
        Some((WhyTcp::Lossy, true))
    }

    /// TCP carried so much at most while it was tried (`None`: it could not be tried). Whether it stays.
    pub(super) fn tried(&self, bytes_per_s: Option<u64>, now: Instant) -> bool {
        let mut state = self.lock();
        let Some((udp, _)) = state.trial.take() else { return true };
        if bytes_per_s.is_some_and(|tcp| tcp.saturating_mul(2) >= udp.saturating_mul(BETTER_HALVES)) {
            self.avoid(&mut state, WhyTcp::Lossy, now);
            drop(state);
            self.tell();
            return true;
        }
        self.no_trial(&mut state, now);
        false
    }

    /// TCP is not to be had, whatever UDP is like.
    pub(super) fn has_no_tcp(&self, now: Instant) {
        let mut state = self.lock();
        // Of all that find it out at once one counts.
        if state.avoided.take().is_some() {
            self.no_trial(&mut state, now);
        }
    }

    /// Whom it leads to. What is known of the way to another one counts no more.
    pub(super) fn leads_to(&self, receiver: Fingerprint) {
        let mut state = self.lock();
        if state.receiver != Some(receiver) {
            *state = State { receiver: Some(receiver), ..State::default() };
        }
    }

    /// What begins with this one, and knows where the receiver was reached, for an attempt over UDP alone.
    pub(super) fn over_udp(&self) -> Self {
        let route = Self::with_timing(Carriers::Udp, self.timing);
        let (receiver, reached) = {
            let state = self.lock();
            (state.receiver, state.reached.clone())
        };
        *route.lock() = State { receiver, reached, ..State::default() };
        route
    }

    pub(super) fn was_reached(&self, address: &str, at: SocketAddr) {
        self.lock().reached = Some((address.to_owned(), at));
    }

    /// Where it was reached last.
    pub(super) fn reached(&self) -> Option<(String, SocketAddr)> {
        self.lock().reached.clone()
    }

    pub(super) fn is_tried(&self) -> bool {
        self.lock().trial.is_some()
    }

    /// Follows what connections that stand should look at.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn tell(&self) {
        self.news.send_modify(|count| *count += 1);
    }

    fn avoid(&self, state: &mut State, why: WhyTcp, now: Instant) {
        (state.died, state.in_vain) = (0, 0);
        state.avoided = Some((now + self.pause(&mut state.times), why));
    }

    fn no_trial(&self, state: &mut State, now: Instant) {
        state.no_trial = Some(now + self.pause(&mut state.in_vain));
    }

    fn pause(&self, times: &mut u32) -> Duration {
        let (first, cap) = self.timing.avoid;
        let pause = first.saturating_mul(1_u32.checked_shl(*times).unwrap_or(u32::MAX)).min(cap);
        *times = (*times + 1).min(31);
        pause
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection over UDP carried in windows in which it lost much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lossy {
    bytes_per_s: u64,
}

/// Looks at a connection window by window.
#[derive(Debug)]
pub(super) struct Meter {
    last: Statistics,
    at: Instant,
    windows: u32,
    bytes_per_s_max: u64,
    packets_min: u64,
    windows_min: u32,
}

impl Meter {
    pub(super) fn new(route: &Route, now: Statistics, at: Instant) -> Self {
        Self {
            last: now,
            at,
            windows: 0,
            bytes_per_s_max: 0,
            packets_min: route.timing.packets,
            windows_min: route.timing.windows,
        }
    }

    /// A window has passed. What was carried, if much was lost in so many windows in a row that it is no accident.
    pub(super) fn look(&mut self, now: Statistics, at: Instant) -> Option<Lossy> {
        let (before, sent, lost) = (self.last, now.sent_packets, now.lost_packets);
        let (sent, lost) = (sent.saturating_sub(before.sent_packets), lost.saturating_sub(before.lost_packets));
        let bytes = now.sent_bytes.saturating_sub(before.sent_bytes);
        let micros = u64::try_from(at.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX).max(1);
        let carried = bytes - bytes.saturating_mul(lost.min(sent)) / sent.max(1);
        let bytes_per_s = carried.saturating_mul(1_000_000) / micros;
        (self.last, self.at) = (now, at);
        let is_lossy = sent >= self.packets_min && lost.saturating_mul(LOST_OF) >= sent;
        (self.windows, self.bytes_per_s_max) = match (self.windows, is_lossy) {
            (_, false) => (0, 0),
            (windows, true) => (windows + 1, self.bytes_per_s_max.max(bytes_per_s)),
        };
        (self.windows >= self.windows_min).then_some(Lossy { bytes_per_s: self.bytes_per_s_max })
    }

    /// The most that was carried in one of the windows of a trial, once that is over; nothing is lost over TCP.
    pub(super) fn try_on(&mut self, now: Statistics, at: Instant) -> Option<u64> {
        let bytes = now.sent_bytes.saturating_sub(self.last.sent_bytes);
        let micros = u64::try_from(at.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX).max(1);
        (self.last, self.at, self.windows) = (now, at, self.windows + 1);
        self.bytes_per_s_max = self.bytes_per_s_max.max(bytes.saturating_mul(1_000_000) / micros);
        (self.windows >= TRIAL_WINDOWS).then_some(self.bytes_per_s_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(now: Instant, s: u64) -> Instant {
        now + Duration::from_secs(s)
    }

    #[test]
    fn silence_soon_after_the_beginning_counts_and_only_twice_in_a_row() {
        let (route, now, s) = (Route::default(), Instant::now(), Duration::from_secs);
        let before = now.checked_sub(s(100)).expect("the machine has run for a while");
        // Ten connections die of one outage.
        (0..10).for_each(|_| route.ended(&Closed::TimedOut, s(20), before));
        assert_eq!(route.prefers_tcp(before), None);
        route.ended(&Closed::TimedOut, s(3600), before);
        route.ended(&Closed::TimedOut, s(20), at(before, 30));
        route.ended(&Closed::PeerRestarted, s(1), at(before, 60));
        assert_eq!(route.prefers_tcp(now), None, "one that lived is none, and the peer's word is no silence");
        (0..10).for_each(|_| route.ended(&Closed::TimedOut, s(20), now));
        assert_eq!(route.prefers_tcp(now), Some(WhyTcp::Dies));
        assert_eq!((route.prefers_tcp(at(now, 599)), route.prefers_tcp(at(now, 600))), (Some(WhyTcp::Dies), None));
        for then in [640, 700] {
            route.ended(&Closed::TimedOut, s(20), at(now, then));
        }
        assert_eq!(route.leaves_udp_alone(at(now, 700)), s(1200), "it repeats");
        let (one, other) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        route.leads_to(one);
        assert_eq!(route.prefers_tcp(at(now, 700)), None, "another way");
        for then in [800, 900] {
            route.ended(&Closed::TimedOut, s(20), at(now, then));
            route.leads_to(one);
        }
        assert_eq!(route.leaves_udp_alone(at(now, 900)), s(600));
        route.has_no_tcp(at(now, 900));
        assert_eq!(route.prefers_tcp(at(now, 900)), None, "there is nothing else");
        route.leads_to(other);
        for carriers in [Carriers::Udp, Carriers::Tcp] {
            let route = Route::new(carriers);
            for then in [0, 60] {
                route.ended(&Closed::TimedOut, s(20), at(now, then));
            }
            assert_eq!(route.prefers_tcp(now), (carriers == Carriers::Tcp).then_some(WhyTcp::Asked));
            assert_eq!(route.leaves_udp(Some(Lossy { bytes_per_s: 1 }), now), None);
        }
    }

    fn sent(packets: u64, lost: u64) -> Statistics {
        Statistics { sent_packets: packets, lost_packets: lost, sent_bytes: packets * 1000, ..Statistics::default() }
    }

    #[test]
    fn loss_counts_when_it_is_much_of_many_packets_and_lasts() {
        let now = Instant::now();
        let route = Route::with_timing(Carriers::Auto, Timing { windows: 3, ..Timing::default() });
        let mut meter = Meter::new(&route, sent(0, 0), now);
        assert_eq!(meter.look(sent(10_000, 200), at(now, 10)), None);
        assert_eq!(meter.look(sent(20_000, 400), at(now, 20)), None);
        assert_eq!(meter.look(sent(30_000, 450), at(now, 30)), None, "half a percent");
        assert_eq!(meter.look(sent(40_000, 650), at(now, 40)), None);
        assert_eq!(meter.look(sent(60_000, 1650), at(now, 50)), None);
        let lossy = meter.look(sent(70_000, 1850), at(now, 60));
        assert_eq!(lossy, Some(Lossy { bytes_per_s: 1_900_000 }), "the best of the windows, less what was lost");
        assert_eq!(meter.look(sent(70_100, 1900), at(now, 70)), None, "few packets say nothing");
    }

    #[test]
    fn a_trial_decides_once_for_all_connections() {
        let (route, now) = (Route::default(), Instant::now());
        let mut news = route.news();
        let lossy = Some(Lossy { bytes_per_s: 1000 });
        assert_eq!(route.leaves_udp(None, now), None);
        assert_eq!(route.leaves_udp(lossy, now), Some((WhyTcp::Lossy, true)));
        assert_eq!(route.leaves_udp(lossy, now), None, "another one tries");
        let mut meter = Meter::new(&route, sent(0, 0), now);
        assert_eq!(meter.try_on(sent(10, 0), at(now, 10)), None);
        assert_eq!(meter.try_on(sent(24, 0), at(now, 20)), None);
        let carried = meter.try_on(sent(30, 0), at(now, 30));
        assert_eq!(carried, Some(1400));
        assert!(!route.tried(carried, now), "not so much better that it is worth its cost");
        assert_eq!(route.leaves_udp(lossy, at(now, 599)), None, "not again at once");
        assert_eq!(route.leaves_udp(lossy, at(now, 600)), Some((WhyTcp::Lossy, true)));
        assert!(!news.has_changed().expect("it lives"));
        assert!(route.tried(Some(1500), at(now, 600)) && news.borrow_and_update().eq(&1));
        assert_eq!(route.leaves_udp(None, at(now, 601)), Some((WhyTcp::Lossy, false)), "the others follow");
        assert_eq!(route.leaves_udp_alone(at(now, 600)), Duration::from_secs(600), "trials in vain are counted apart");
        assert!(!route.is_tried() && route.tried(None, now), "one that is not tried stays");
    }

    #[test]
    fn who_waits_for_udp_hears_that_it_is_answered() {
        let route = Route::default();
        let news = route.news();
        route.is_answered(true);
        assert!(!news.has_changed().expect("it lives"));
        route.is_answered(false);
        assert_eq!(route.head_start(), route.timing.head_start_known);
        route.is_answered(true);
        assert!(news.has_changed().expect("it lives"));
        assert_eq!(route.head_start(), route.timing.head_start);
    }
}
