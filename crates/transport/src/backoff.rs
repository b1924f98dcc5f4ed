//! When to try again. Pure: the caller brings the randomness and does the waiting.

use std::time::Duration;

/// Capped exponential back-off with full jitter above a floor: the n-th delay is uniform in
/// `[min(cap, first × 2^n) / 2, min(cap, first × 2^n)]`, so that many sources that lost one receiver do not return as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `first` up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap: cap.max(first), failures: 0 }
    }

    /// How many delays were asked for since the last [`Backoff::reset`].
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The next delay; `random` picks the place inside the jitter.
    pub fn next(&mut self, random: u64) -> Duration {
        let full = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.cap);
        self.failures = self.failures.saturating_add(1).min(31);
        let nanos = u64::try_from(full.as_nanos()).unwrap_or(u64::MAX);
        let half = nanos / 2;
        Duration::from_nanos(half + random % (nanos - half + 1))
    }

    /// Forgets past failures: it worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_stays_within_its_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));
        let mut full = Duration::from_millis(200);
        for step in 0..100_u64 {
            let random = step.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let delay = backoff.clone().next(random);
            assert!(delay >= full / 2 && delay <= full, "step {step}: {delay:?} outside of {full:?}");
            assert_eq!(backoff.clone().next(0), full / 2);
            backoff.next(random);
            full = (full * 2).min(Duration::from_secs(20));
        }
        backoff.reset();
        assert!(backoff.next(u64::MAX) <= Duration::from_millis(200));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::ZERO);
        assert!(backoff.next(7) > Duration::ZERO);
        assert_eq!(Backoff::new(Duration::ZERO, Duration::ZERO).next(7), Duration::ZERO);
    }
}
