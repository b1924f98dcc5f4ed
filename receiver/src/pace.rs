//! How often something may happen, and when it may go on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a wait may be without a look at whether to go on.
const NAP: Duration = Duration::from_millis(100);

/// Waits until then, on a thread that has time; `false`: `goes_on` said no before.
pub(crate) fn wait_until(until: Instant, goes_on: &dyn Fn() -> bool) -> bool {
    while goes_on() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(NAP));
    }
    false
}

/// When something happened in the last minute.
#[derive(Debug, Default)]
pub(crate) struct Pace(VecDeque<Instant>);

impl Pace {
    /// Whether it may happen once more, if at most so often in a minute.
    pub(crate) fn admit(&mut self, now: Instant, limit: usize) -> bool {
        while self.0.front().is_some_and(|then| now.saturating_duration_since(*then) >= Duration::from_secs(60)) {
            self.0.pop_front();
        }
        let admitted = self.0.len() < limit;
        if admitted {
            self.0.push_back(now);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_loops_is_slowed_down_and_forgiven_after_a_minute() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert!((0..3).all(|s| pace.admit(at(s), 3)));
        assert!(!pace.admit(at(3), 3) && !pace.admit(at(59), 3));
        assert!(pace.admit(at(60), 3) && !pace.admit(at(60), 3));
        assert!((0..3).all(|_| pace.admit(at(200), 3)) && !pace.admit(at(200), 3));
    }
}
