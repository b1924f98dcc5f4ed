//! How many write requests a bucket may be asked for, and how many it was.
//!
//! A budget earns requests as time goes by, evenly, and keeps what it earned in an hour at most. What cannot wait is asked for all
//! the same and paid back: claims, what retention gives up, checkpoints, leases, the record of a merge that was paid for. Publication of what
//! is staged waits until nothing is owed, and so do merges and the heartbeats of idle groups. So in any
//! day no more is asked for than the budget says, but for what could not wait. No more is owed than an hour earns, whatever that was: the rest
//! would be paid for in lag. A restart begins with nothing earned and nothing
//! owed. It decides nothing about data.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::PublishBudget;

/// What is earned in this time and not used is kept; and no more is owed.
const KEPT: Duration = Duration::from_secs(3600);

/// One for the whole receiver.
#[derive(Debug, Default)]
pub(crate) struct Budget(Mutex<Option<Account>>);

#[derive(Clone, Copy, Debug)]
struct Account {
    /// Requests that may be made, or, below 0, that are owed.
    earned: f64,
    at: Instant,
    /// Of the bucket as it is open.
    writes: u64,
}

impl Budget {
    /// How long to wait before something is published; `None`: not at all. `writes`: write requests since the store was opened. They are
    /// asked for under the lock: fewer than were seen before are those of a store that was opened anew.
    pub(crate) fn wait(&self, budget: &PublishBudget, writes: impl FnOnce() -> u64, now: Instant) -> Option<Duration> {
        let mut account = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = writes();
        let account = account.get_or_insert(Account { earned: 0.0, at: now, writes });
        // What is kept comes on top of what a day earns.
        let per_second = f64::from(budget.requests) / (budget.per + KEPT).as_secs_f64();
        let made = writes.checked_sub(account.writes).unwrap_or(writes);
        let since = now.saturating_duration_since(account.at).as_secs_f64();
        let hour = (per_second * KEPT.as_secs_f64()).max(1.0);
        account.earned = ((account.earned + since * per_second).min(hour) - made as f64).max(-hour);
        account.at = account.at.max(now);
        account.writes = writes;
        let missing = 1.0 - account.earned;
        // Rounding is nobody's request.
        (missing > 1e-6).then(|| Duration::from_secs_f64((missing / per_second).min(f64::from(u32::MAX))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_day_has_as_many_requests_as_it_may_also_after_a_quiet_one() {
        let (budget, limits) = (Budget::default(), PublishBudget { requests: 1000, per: DAY });
        let start = Instant::now();
        let (mut writes, mut last_day) = (0_u64, Vec::new());
        assert!(budget.wait(&limits, || 0, start).is_some(), "nothing is earned yet");
        // Nobody publishes on the first day; then whoever may does, two requests each.
        for second in 0..4 * 86_400_u64 {
            let now = start + Duration::from_secs(second);
            if budget.wait(&limits, || writes, now).is_none() && second >= 86_400 {
                writes += 2;
                last_day.push(second);
            }
            last_day.retain(|at| at + 86_400 > second);
            assert!(last_day.len() * 2 <= 1001, "{} publications", last_day.len());
        }
        assert!(writes >= 2850, "{writes}: nor are they left unused");
    }

    #[test]
    fn what_could_not_wait_is_paid_back_and_a_store_that_is_opened_anew_owes_nothing_twice() {
        let (budget, limits) = (Budget::default(), PublishBudget { requests: 2500, per: DAY });
        let start = Instant::now();
        budget.wait(&limits, || 7, start);
        let minute = start + Duration::from_secs(60);
        assert_eq!(budget.wait(&limits, || 7, minute), None, "what was asked for before counts for nothing");
        let wait = budget.wait(&limits, || 107, minute).expect("a hundred were made");
        assert!((3500..3620).contains(&wait.as_secs()), "{wait:?}: one every 36 seconds");
        assert_eq!(budget.wait(&limits, || 0, minute), Some(wait), "another process of the bucket's counts from 0");
        assert_eq!(budget.wait(&limits, || 0, minute + wait + Duration::from_millis(1)), None);
    }

    /// A merge of a large store, or claims after a day without the gateway, held publication up for days.
    #[test]
    fn what_is_owed_holds_publication_up_for_an_hour_at_most() {
        for requests in [100, 2500, 100_000] {
            let (budget, limits) = (Budget::default(), PublishBudget { requests, per: DAY });
            let start = Instant::now();
            budget.wait(&limits, || 0, start);
            let wait = budget.wait(&limits, || 1_000_000, start).expect("a million were made");
            let one = (DAY + KEPT).as_secs_f64() / f64::from(requests);
            assert!(wait.as_secs_f64() <= KEPT.as_secs_f64() + one + 1.0, "{wait:?} of {requests} a day");
        }
    }

    /// Two groups looked at once: who had read the counter first and came second took its own number for that of a store opened anew, and
    /// everything that was ever written for a debt.
    #[test]
    fn groups_that_look_at_once_count_every_request_once() {
        let (budget, limits) = (Budget::default(), PublishBudget { requests: 25_000_000, per: DAY });
        let (writes, start) = (std::sync::atomic::AtomicU64::new(500_000), Instant::now());
        budget.wait(&limits, || 500_000, start);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        writes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        budget.wait(&limits, || writes.load(std::sync::atomic::Ordering::SeqCst), start);
                    }
                });
            }
        });
        let account = budget.0.lock().expect("not poisoned").expect("asked");
        assert!((-40_001.0..=-39_999.0).contains(&account.earned), "{account:?}");
    }
}
