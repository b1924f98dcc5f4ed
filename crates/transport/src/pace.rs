//! How fast parts may go: one limit for all that a source sends, and one for each group within it, live.
//!
//! Owns: when the next bytes may leave. Invariants: whoever takes is let go in the order of asking and never later than the
//! bytes before it demand; control frames are counted and never wait, so that answers and heartbeats cannot starve; a change
//! of the limit reaches whoever waits at once. Nothing of the host's write path knows of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// What may leave at once after a pause, in time at the limit.
const BURST: Duration = Duration::from_millis(50);
/// The most and the least that is taken at once: pieces of about 50 ms, no smaller than a packet.
const PIECE_MAX: usize = 256 << 10;
const PIECE_MIN: usize = 1200;

/// When bytes may leave at a rate. Pure: time is told, as a distance from any fixed moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    bytes_per_s: u64,
    /// When all that was taken so far has left.
    free_at: Duration,
}

impl Bucket {
    /// Takes bytes; gives how long to wait before they may leave.
    fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let start = self.free_at.max(now.saturating_sub(BURST));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        self.free_at = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        start.saturating_sub(now)
    }
}

/// A limit that all who share it keep to, and, with it, to the one that it is within: a source's and a group's.
#[derive(Debug)]
pub struct Pacer {
    bucket: Mutex<Option<Bucket>>,
    changed: Notify,
    begun: Instant,
    within: Option<Arc<Pacer>>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { bucket: Mutex::new(None), changed: Notify::new(), begun: Instant::now(), within: None }
    }
}

impl Pacer {
    /// One that lets through what this one lets through, too.
    pub fn within(outer: &Arc<Self>) -> Self {
        Self { within: Some(outer.clone()), ..Self::default() }
    }

    /// Sets or lifts the limit, for whoever waits too.
    ///
    /// # Panics
    /// With a limit of nothing.
    pub fn set(&self, bytes_per_s: Option<u64>) {
        assert_ne!(bytes_per_s, Some(0), "a limit lets something through");
        let free_at = self.begun.elapsed();
        *self.bucket() = bytes_per_s.map(|bytes_per_s| Bucket { bytes_per_s, free_at });
        self.changed.notify_waiters();
    }

    /// Its own limit in bytes per second.
    pub fn limit(&self) -> Option<u64> {
        self.bucket().map(|bucket| bucket.bytes_per_s)
    }

    /// How much to take at once, so that a change of the limit is felt soon and nobody else waits for long.
    pub fn piece_bytes(&self) -> usize {
        let at_limit = |limit: u64| usize::try_from(limit / 20).unwrap_or(PIECE_MAX).clamp(PIECE_MIN, PIECE_MAX);
        let own = self.limit().map_or(PIECE_MAX, at_limit);
        self.within.as_ref().map_or(own, |outer| own.min(outer.piece_bytes()))
    }

    /// Waits until so many bytes may leave. Cancelled, they count as sent.
    pub async fn take(&self, bytes: usize) {
        self.take_own(bytes).await;
        // Only then: who waits for his own limit takes nothing away from others.
        let mut outer = &self.within;
        while let Some(pacer) = outer {
            pacer.take_own(bytes).await;
            outer = &pacer.within;
        }
    }

    async fn take_own(&self, bytes: usize) {
        let changed = self.changed.notified();
        let wait = self.charge_own(bytes);
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// Counts bytes that do not wait; gives how long they would have to.
    pub fn charge(&self, bytes: usize) -> Duration {
        let outer = self.within.as_ref().map_or(Duration::ZERO, |outer| outer.charge(bytes));
        outer.max(self.charge_own(bytes))
    }

    fn charge_own(&self, bytes: usize) -> Duration {
        let now = self.begun.elapsed();
        self.bucket().as_mut().map_or(Duration::ZERO, |bucket| bucket.take(now, bytes as u64))
    }

    fn bucket(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn over_any_time_no_more_leaves_than_the_limit_and_a_burst() {
        let mut bucket = Bucket { bytes_per_s: 1_000_000, free_at: Duration::ZERO };
        let (mut now, mut sent) = (ms(1000), 0u64);
        for round in 0..1000u64 {
            let bytes = [100, 5_000, 60_000][round as usize % 3];
            now += bucket.take(now, bytes); // leaves then
            sent += bytes;
            let most = 1_000_000 * (now - ms(1000) + BURST).as_micros() / 1_000_000;
            assert!(u128::from(sent) <= most + 60_000, "{sent} bytes in {now:?}");
            assert!(u128::from(sent) + 60_000 >= 1_000_000 * (now - ms(1000)).as_micros() / 1_000_000, "no slower either");
        }
    }

    #[test]
    fn a_pause_saves_up_a_burst_and_no_more() {
        let mut bucket = Bucket { bytes_per_s: 1_000_000, free_at: Duration::ZERO };
        assert_eq!(bucket.take(ms(100_000), 50_000), ms(0), "an hour of silence");
        assert_eq!(bucket.take(ms(100_000), 50_000), ms(0), "the burst ends where this one ends");
        assert_eq!(bucket.take(ms(100_000), 1), ms(50));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_wait_is_paid_for_by_what_does_and_a_lifted_limit_frees_whoever_waits() {
        let pacer = std::sync::Arc::new(Pacer::default());
        pacer.take(usize::MAX >> 20).await; // no limit: at once
        pacer.set(Some(8));
        assert_eq!((pacer.limit(), pacer.piece_bytes()), (Some(8), PIECE_MIN));
        assert!(pacer.charge(1 << 20).is_zero(), "a control frame does not wait");
        let waiting = tokio::spawn({
            let pacer = std::sync::Arc::clone(&pacer);
            async move { pacer.take(1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "36 hours of debt");
        pacer.set(None);
        waiting.await.expect("freed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_keeps_to_its_own_limit_and_to_its_hosts() {
        let waits = async |pacer: &Pacer| {
            tokio::select! {
                biased;
                () = pacer.take(1) => false,
                () = tokio::task::yield_now() => true,
            }
        };
        let hours = Duration::from_secs(3600);
        let host = Arc::new(Pacer::default());
        let (slow, free) = (Pacer::within(&host), Pacer::within(&host));
        host.set(Some(1_000_000));
        slow.set(Some(8));
        assert_eq!((slow.limit(), free.limit()), (Some(8), None));
        assert_eq!((slow.piece_bytes(), free.piece_bytes()), (PIECE_MIN, 50_000));
        slow.charge(100_000);
        assert!(slow.charge(0) >= hours, "its own debt");
        assert!(host.charge(0) < hours && free.charge(0) < hours, "is nobody else's");
        for _ in 0..100 {
            assert!(waits(&slow).await);
        }
        assert!(host.charge(0) < hours, "who waits for his own limit takes nothing from others");
        free.charge(10_000_000_000);
        assert!(host.charge(0) >= hours / 2 && free.charge(0) >= hours / 2, "what has no limit of its own pays with its host's");
        assert!(waits(&free).await);
        host.set(None);
        assert!(!waits(&free).await && waits(&slow).await);
        slow.set(None);
        assert!(!waits(&slow).await);
    }
}
