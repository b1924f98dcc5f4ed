//! How long an upload may take before its service counts as one that does not answer: by what uploads took lately.
//!
//! † By the slowest link that can be of use alone, a service that takes 64 MiB and says nothing is waited for for 18 minutes each time, and so are all
//! that wait for who waits. By a fast one alone, nothing large would ever come through a slow link: so each upload that was late makes the next one's
//! time longer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// For an answer, also of a service that has to be asked again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
/// A link that carries less than this in a second, for each request, is as good as none.
pub(crate) const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// An upload may be so many times slower than the one before: others share the link.
const SLOWER: u64 = 32;
/// After each that was late, the next may be so many times slower again.
const LATE: u64 = 8;
/// Of a smaller one the time says nothing of the link.
const MEASURED_BYTES: u64 = 1 << 20;

/// What is known of the uploads to one bucket.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    /// Bytes in a second of the last large one, or less, since others were late; 0 before one came through.
    rate: AtomicU64,
    /// How many were late.
    late: AtomicU64,
}

impl Uploads {
    /// How long one of so many bytes may take.
    pub(crate) fn patience(&self, bytes: u64) -> Duration {
        let slowest = (self.rate.load(Ordering::Relaxed) / SLOWER).max(BYTES_PER_SECOND_MIN);
        PATIENCE + Duration::from_secs(bytes / slowest)
    }

    /// One of so many bytes came through in that time.
    pub(crate) fn through(&self, bytes: u64, took: Duration) {
        if bytes >= MEASURED_BYTES {
            let rate = bytes as f64 / took.as_secs_f64().max(0.001);
            self.rate.store(rate as u64, Ordering::Relaxed);
        }
    }

    /// One had no answer in its time.
    pub(crate) fn late(&self) {
        let _ = self.rate.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |rate| Some(rate / LATE));
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    /// How many had no answer in their time. † Whoever waits for his turn meanwhile need not find out by himself.
    pub(crate) fn late_ones(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: u64 = 64 << 20;

    #[test]
    fn a_silent_service_is_waited_for_by_what_it_took_before_and_a_slow_link_gets_its_time() {
        let uploads = Uploads::default();
        let longest = Duration::from_secs(40 + 1024);
        assert_eq!(uploads.patience(PACK), longest, "nothing is known");
        uploads.through(PACK, Duration::from_secs(1));
        uploads.through(1000, Duration::from_secs(5));
        assert_eq!(uploads.patience(PACK), Duration::from_secs(40 + 32));
        assert_eq!(uploads.patience(1000), PATIENCE);
        // The link carries 100 KiB a second from now on: within two tries there is time for 11 minutes.
        uploads.late();
        assert_eq!(uploads.patience(PACK), Duration::from_secs(40 + 256));
        uploads.late();
        assert_eq!(uploads.patience(PACK), longest);
        uploads.through(PACK, Duration::from_secs(655));
        assert_eq!(uploads.patience(PACK), longest);
        uploads.through(PACK, Duration::from_secs(2));
        assert_eq!(uploads.patience(PACK), Duration::from_secs(40 + 64));
    }
}
