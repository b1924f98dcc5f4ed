//! One flush for all who ask for one at the same time.
//!
//! Invariant: whoever asks is answered by a round that began after he asked. One that is under way may have begun before what he wrote.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

#[derive(Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    begun: u64,
    /// As many as have begun, or one fewer: then one is under way.
    ended: u64,
    /// The last one that succeeded.
    good: u64,
    /// Of the last one that failed.
    error: Option<Errno>,
    waiting: u64,
}

impl fmt::Debug for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().fmt(f)
    }
}

/// A round under way; it ends, with an error, also if it panics.
struct Round<'r> {
    rounds: &'r Rounds,
    result: Result<(), Errno>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let mut state = self.rounds.state();
        state.ended = state.begun;
        match self.result {
            Ok(()) => state.good = state.ended,
            Err(errno) => state.error = Some(errno),
        }
        if state.waiting > 0 {
            self.rounds.over.notify_all();
        }
    }
}

impl Rounds {
    /// Waits for the end of a round that begins after this call, and carries it out if nobody else does.
    ///
    /// # Errors
    /// The round's.
    pub(crate) fn join(&self, carry_out: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let mut state = self.state();
        let mine = state.begun + 1;
        while state.ended < mine {
            if state.begun == state.ended {
                state.begun += 1;
                drop(state);
                let mut round = Round { rounds: self, result: Err(Errno::EIO) };
                round.result = carry_out();
                return round.result;
            }
            state.waiting += 1;
            state = self.over.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        // A later one that succeeded is as good: what could not be written is written by it.
        if state.good >= mine { Ok(()) } else { Err(state.error.unwrap_or(Errno::EIO)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    /// Ten ask while a round is under way: none of them is answered by that one, and one more serves them all.
    #[test]
    fn who_comes_during_a_round_shares_the_next_one() {
        for result in [Ok(()), Err(Errno::ENOSPC)] {
            let (rounds, began, carried_out) = (Rounds::default(), Barrier::new(2), AtomicU64::new(0));
            thread::scope(|scope| {
                let first = scope.spawn(|| {
                    rounds.join(|| {
                        began.wait();
                        while rounds.state().waiting < 10 {
                            thread::yield_now();
                        }
                        Ok(())
                    })
                });
                began.wait();
                let ask = || {
                    rounds.join(|| {
                        carried_out.fetch_add(1, Ordering::SeqCst);
                        result
                    })
                };
                let others: Vec<_> = (0..10).map(|_| scope.spawn(ask)).collect();
                assert_eq!(first.join().expect("no panic"), Ok(()));
                others.into_iter().for_each(|other| assert_eq!(other.join().expect("no panic"), result));
            });
            assert_eq!(carried_out.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn a_round_that_panics_is_a_failed_one_and_holds_nobody_up() {
        let rounds = Rounds::default();
        thread::scope(|scope| {
            assert!(scope.spawn(|| rounds.join(|| panic!("in a round"))).join().is_err());
        });
        assert_eq!(rounds.join(|| Ok(())), Ok(()));
    }
}
