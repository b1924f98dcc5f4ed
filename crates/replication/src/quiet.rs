//! Who keeps a group's applications quiet around its cuts, and what becomes of what he could not end. It stands beside
//! [`Source`](crate::source::Source), which asks for it with [`Action::Quiesce`](crate::source::Action::Quiesce) and
//! [`Action::Resume`](crate::source::Action::Resume).
//!
//! ```text
//! nobody ─begin─► asked ─quiesced(Ok)─► held ─resume─► resuming ─resumed, or too late─► nobody
//!                   └────── quiesced(Err), or too late ──► what it may have left is looked for at once
//! ```
//!
//! Invariants:
//! - † An attempt has a number of its own: what comes late of one is not taken for the next one, of the same wish or of another.
//! - Whoever quiesces has one end of a line, and here is the other (`L`). It is handed out once, with what was cut; when it is dropped,
//!   nothing was, and he lets go.
//! - Nobody is waited for for ever. Of a cut whose post-cuts take too long nobody says that applications were quiet.
//! - What could not be ended is looked for again: at once, then ever less often while it is there, and soon again once it is ended. Never beside
//!   a guard, who ends it himself before he begins.
//!
//! Deliberately not here: guards and what they note, threads, and who wants a point and when.

use farside_region::{EpochId, mutation};

use crate::source::{Event, Nanos, SECOND};

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuietLimits {
    /// A cut waits for its post-cuts no longer: the points after it wait for it.
    pub label_wait: Nanos,
    /// How soon it is tried again to end what could not be ended; each time later.
    pub left_again: Nanos,
    /// But not later than that.
    pub left_again_max: Nanos,
}

impl Default for QuietLimits {
    fn default() -> Self {
        Self { label_wait: 10 * SECOND, left_again: 5 * SECOND, left_again_max: 300 * SECOND }
    }
}

/// See the head of the file. `L`: the end of a line that tells whoever holds applications what was cut, if anything was.
#[derive(Debug)]
pub struct Quieting<L> {
    limits: QuietLimits,
    last_attempt: u64,
    /// Whoever quiesces applications, or holds them.
    holds: Option<Holds<L>>,
    /// A cut of which it is not known yet whether applications were quiet, and since when.
    resuming: Option<(EpochId, Nanos)>,
    left: LeftOver,
}

#[derive(Debug)]
struct Holds<L> {
    /// † A wish that is tried again has another one: what comes late of the one before is not taken for it.
    attempt: u64,
    wish: u64,
    /// It is lost then: nothing that hooks do takes so long.
    until: Nanos,
    line: L,
}

impl<L> Quieting<L> {
    /// Nobody is held, as far as is known: what others left is looked for soon.
    pub fn new(now: Nanos, limits: QuietLimits) -> Self {
        Self { limits, last_attempt: 0, holds: None, resuming: None, left: LeftOver::new(now, limits) }
    }

    /// Somebody is asked to quiesce applications for a wish, and is lost if he does not answer by then. Returns the number of the attempt, which
    /// his answer must have.
    pub fn begin(&mut self, wish: u64, until: Nanos, line: L) -> u64 {
        self.last_attempt += 1;
        self.holds = Some(Holds { attempt: self.last_attempt, wish, until, line });
        self.last_attempt
    }

    /// He answers: what the source is to hear. `None`: what comes too late is of nobody any more. His line is closed, so that he lets go.
    pub fn quiesced(&mut self, now: Nanos, attempt: u64, result: Result<(), String>) -> Option<Event> {
        let is_his =
            |holds: &&Holds<L>| holds.attempt == attempt || mutation::on("a late answer of an earlier attempt is believed");
        let wish = self.holds.as_ref().filter(is_his)?.wish;
        match &result {
            // A guard begins when what was left is ended.
            Ok(()) => self.left.is_ended(now),
            Err(_) => {
                self.holds = None;
                self.left.is_looked_for(now);
            }
        }
        Some(Event::Quiesced { wish, result })
    }

    /// Whoever is held goes on. Returns the line on which he is to be told what was cut.
    #[must_use = "he waits for that"]
    pub fn resume(&mut self, now: Nanos, epoch: Option<EpochId>) -> Option<L> {
        self.resuming = epoch.map(|epoch| (epoch, now));
        self.holds.take().map(|holds| holds.line)
    }

    /// He says whether applications were quiet until after the switch of that epoch: what the source is to hear. `None`: it was told already.
    pub fn resumed(&mut self, now: Nanos, epoch: EpochId, result: Result<String, String>) -> Option<Event> {
        self.resuming.take_if(|(resuming, _)| *resuming == epoch)?;
        if result.is_err() {
            self.left.is_looked_for(now);
        }
        let result = match result {
            Err(why) if mutation::on("who let go before the cut is believed to have held") => Ok(why),
            result => result,
        };
        Some(Event::Resumed { epoch, result })
    }

    /// What is waited for no longer: what the source is to hear of it.
    pub fn overdue(&mut self, now: Nanos) -> Vec<Event> {
        let mut events = Vec::new();
        let is_lost = |holds: &mut Holds<L>| now >= holds.until && !mutation::on("a guard that does not answer is waited for");
        if let Some(Holds { wish, .. }) = self.holds.take_if(is_lost) {
            self.left.is_looked_for(now);
            events.push(Event::Quiesced { wish, result: Err("its guard does not answer".to_owned()) });
        }
        let label_wait = self.limits.label_wait;
        if let Some((epoch, _)) = self.resuming.take_if(|(_, since)| now.saturating_sub(*since) >= label_wait) {
            self.left.is_looked_for(now);
            let why = format!("a post-cut was not over {} s after the cut", label_wait / SECOND);
            let counts = mutation::on("a post-cut that is not over in time counts as over");
            events.push(Event::Resumed { epoch, result: if counts { Ok(why) } else { Err(why) } });
        }
        events
    }

    /// Whether it is to be tried now to end what somebody left; [`Self::looked`] follows then, or [`Self::cannot_look`]. `is_noted`: something is.
    pub fn looks(&mut self, now: Nanos, is_noted: impl FnOnce() -> bool) -> bool {
        if now < self.left.next || self.is_busy() {
            return false;
        }
        if !is_noted() {
            self.left.is_ended(now);
            return false;
        }
        self.left.looks(now);
        self.left.is_tried = true;
        true
    }

    /// It was tried: why something may still be quiesced. Where nothing is said of it and it is noted, somebody is at work with it.
    pub fn looked(&mut self, now: Nanos, why: Option<String>, is_noted: impl FnOnce() -> bool) {
        self.left.is_tried = false;
        if why.is_some() {
            self.left.why = why;
        } else if !is_noted() {
            self.left.is_ended(now);
        }
    }

    /// It could not even be tried: later, then.
    pub fn cannot_look(&mut self) {
        self.left.is_tried = false;
    }

    /// Why applications may still be quiesced.
    pub fn why_still_quiesced(&self) -> Option<&str> {
        self.left.why.as_deref()
    }

    /// When [`Self::overdue`] or [`Self::looks`] may come to something next.
    pub fn due(&self) -> Nanos {
        let holds = self.holds.as_ref().map(|holds| holds.until);
        let label = self.resuming.map(|(_, since)| since.saturating_add(self.limits.label_wait));
        let look = (!self.is_busy()).then_some(self.left.next);
        [holds, label, look].into_iter().flatten().min().unwrap_or(Nanos::MAX)
    }

    fn is_busy(&self) -> bool {
        self.holds.is_some() || self.resuming.is_some() || self.left.is_tried
    }
}

/// What a guard could not end.
#[derive(Debug)]
struct LeftOver {
    limits: QuietLimits,
    /// When it is looked for.
    next: Nanos,
    pause: Nanos,
    is_tried: bool,
    /// Why it may still be quiesced.
    why: Option<String>,
}

impl LeftOver {
    fn new(now: Nanos, limits: QuietLimits) -> Self {
        let next = now.saturating_add(limits.left_again);
        Self { limits, next, pause: limits.left_again, is_tried: false, why: None }
    }

    /// Something may have been left now.
    fn is_looked_for(&mut self, now: Nanos) {
        (self.next, self.pause) = (now, self.limits.left_again);
    }

    /// It is looked now; says when it is the next time, should something be left.
    fn looks(&mut self, now: Nanos) {
        self.next = now.saturating_add(self.pause);
        self.pause = self.pause.saturating_mul(2).min(self.limits.left_again_max);
        if mutation::on("what is left is looked for once") {
            self.next = Nanos::MAX;
        }
    }

    /// Nothing is left. † Also the next look is soon: by what was left before it might be minutes away, and so long would
    /// applications be held whose post-cut fails next.
    fn is_ended(&mut self, now: Nanos) {
        let next = self.next;
        *self = Self { is_tried: self.is_tried, ..Self::new(now, self.limits) };
        if mutation::on("the next look is as late as the last one was") {
            self.next = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QuietLimits = QuietLimits { label_wait: 10, left_again: 5, left_again_max: 300 };

    #[test]
    fn what_is_left_next_is_looked_for_soon_however_long_the_last_one_took() {
        mutation::tell(&[("the next look is as late as the last one was", "soon again")], || {
            let mut left = LeftOver::new(0, LIMITS);
            let mut now = left.next;
            for _ in 0..10 {
                left.looks(now);
                now = left.next;
            }
            left.looks(now);
            assert_eq!(left.next, now + LIMITS.left_again_max, "it is tried ever less often");
            left.why = Some("a post-cut failed".to_owned());
            left.is_ended(now);
            assert_eq!((left.why.as_deref(), left.next), (None, now + LIMITS.left_again), "and soon again");
        });
    }

    #[test]
    fn nobody_is_waited_for_for_ever_and_what_comes_late_is_of_nobody() {
        let mistakes = [
            ("a late answer of an earlier attempt is believed", "another attempt"),
            ("a post-cut that is not over in time counts as over", "it is over"),
        ];
        mutation::tell(&mistakes, || {
            let mut quiet = Quieting::new(0, LIMITS);
            let first = quiet.begin(7, 20, ());
            assert_eq!(quiet.due(), 20);
            let lost = quiet.overdue(20);
            assert!(matches!(lost[..], [Event::Quiesced { wish: 7, result: Err(_) }]), "{lost:?}");
            let second = quiet.begin(7, 50, ());
            assert!(quiet.quiesced(21, first, Ok(())).is_none(), "it is another attempt of the same wish");
            assert!(matches!(quiet.quiesced(22, second, Ok(())), Some(Event::Quiesced { wish: 7, result: Ok(()) })));
            assert!(quiet.resume(23, Some(EpochId(3))).is_some());
            assert!(quiet.resume(23, Some(EpochId(3))).is_none(), "he is told once");
            assert!(!quiet.looks(30, || true), "not beside a guard");
            let late = quiet.overdue(33);
            assert!(matches!(late[..], [Event::Resumed { epoch: EpochId(3), result: Err(_) }]), "it is over: {late:?}");
            assert!(quiet.resumed(34, EpochId(3), Ok(String::new())).is_none(), "it was said already");
        });
    }

    #[test]
    fn what_is_left_is_looked_for_at_once_and_again() {
        let mut quiet = Quieting::new(0, LIMITS);
        assert!(!quiet.looks(4, || true) && !quiet.looks(5, || false), "nothing is left");
        let attempt = quiet.begin(7, 50, ());
        assert!(quiet.quiesced(6, attempt, Err("it failed".to_owned())).is_some());
        assert!(quiet.looks(6, || true), "at once");
        assert!(!quiet.looks(40, || true), "not twice at a time");
        quiet.looked(40, Some("it fails".to_owned()), || true);
        assert_eq!(quiet.why_still_quiesced(), Some("it fails"));
        assert!(quiet.looks(40, || true));
        quiet.looked(41, None, || false);
        assert_eq!((quiet.why_still_quiesced(), quiet.due()), (None, 46));
    }
}
