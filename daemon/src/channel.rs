//! How threads of this process give each other things, in the order in which they were given.
//!
//! Invariant: whoever meets another thread in the middle of a change sleeps until it is over. † A channel without a lock waits for that by
//! `sched_yield`, which never lets anybody of lesser rank run: a queue thread that met such a thread would keep the processor from the only
//! one that can end its wait. The lock here is held for a push or a pop, and nobody is woken up under it.
//!
//! Deliberately not here: bounds. What is sent is bounded by who sends it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::locked;

/// What an empty channel keeps of its memory, in messages.
const KEPT_MAX: usize = 1024;

/// A new channel. Both ends can be cloned; a message is received once.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { messages: VecDeque::new(), sleepers: 0, woken: 0, senders: 1, receivers: 1 };
    let shared = Arc::new(Shared { state: Mutex::new(state), sent: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

struct Shared<T> {
    state: Mutex<State<T>>,
    sent: Condvar,
}

struct State<T> {
    messages: VecDeque<T>,
    /// Receivers that sleep, or did and have not looked since.
    sleepers: usize,
    /// How many of them have been woken up, or are about to be. While it is all of them, a message that is the only one costs no
    /// system call, where there is one receiver.
    woken: usize,
    senders: usize,
    receivers: usize,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        locked(&self.state)
    }
}

/// There is nobody any more who could receive it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("nobody receives any more")]
pub(crate) struct Unheard;

/// Why nothing was received.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Nothing {
    #[error("nothing was sent in time")]
    Yet,
    #[error("nobody sends any more")]
    Ever,
}

pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// # Errors
    /// When there is nobody any more who could receive it; it is dropped.
    pub(crate) fn send(&self, message: T) -> Result<(), Unheard> {
        self.send_if(message, |_| true)
    }

    /// Unless one waits to be received already.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub(crate) fn send_if_empty(&self, message: T) -> Result<(), Unheard> {
        self.send_if(message, VecDeque::is_empty)
    }

    /// How many wait to be received.
    pub(crate) fn len(&self) -> usize {
        self.0.state().messages.len()
    }

    fn send_if(&self, message: T, wanted: impl FnOnce(&VecDeque<T>) -> bool) -> Result<(), Unheard> {
        let mut state = self.0.state();
        if state.receivers == 0 {
            drop(state); // before the message, whose end may do anything
            return Err(Unheard);
        }
        if !wanted(&state.messages) {
            return Ok(());
        }
        state.messages.push_back(message);
        // † Whoever is to wake one up may be held up before he does: where a message waits already, or another receiver may have taken that one's,
        // nobody relies on that.
        let is_alone = state.messages.len() == 1 && state.receivers == 1;
        let sleeps = state.sleepers > state.woken || (state.sleepers > 0 && !is_alone);
        state.woken = (state.woken + usize::from(sleeps)).min(state.sleepers);
        drop(state);
        if sleeps {
            self.0.sent.notify_one();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.senders -= 1;
        if state.senders == 0 {
            state.woken = state.sleepers;
            drop(state);
            self.0.sent.notify_all();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

pub(crate) struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// Waits for a message.
    ///
    /// # Errors
    /// [`Nothing::Ever`].
    pub(crate) fn recv(&self) -> Result<T, Nothing> {
        self.wait(|| None)
    }

    /// # Errors
    /// [`Nothing`], at once.
    pub(crate) fn try_recv(&self) -> Result<T, Nothing> {
        self.wait(|| Some(Duration::ZERO))
    }

    /// # Errors
    /// [`Nothing`], after that time.
    pub(crate) fn recv_timeout(&self, patience: Duration) -> Result<T, Nothing> {
        // One that is beyond all clocks has no end.
        self.until(Instant::now().checked_add(patience))
    }

    /// # Errors
    /// [`Nothing`], at that time.
    pub(crate) fn recv_deadline(&self, until: Instant) -> Result<T, Nothing> {
        self.until(Some(until))
    }

    fn until(&self, until: Option<Instant>) -> Result<T, Nothing> {
        self.wait(|| until.map(|until| until.saturating_duration_since(Instant::now())))
    }

    /// `left`: of the time for it; `None`: any.
    fn wait(&self, left: impl Fn() -> Option<Duration>) -> Result<T, Nothing> {
        let mut state = self.0.state();
        loop {
            if let Some(message) = state.messages.pop_front() {
                if state.messages.is_empty() && state.messages.capacity() > KEPT_MAX {
                    state.messages.shrink_to(KEPT_MAX);
                }
                return Ok(message);
            }
            if state.senders == 0 {
                return Err(Nothing::Ever);
            }
            let left = left();
            if left == Some(Duration::ZERO) {
                return Err(Nothing::Yet);
            }
            state.sleepers += 1;
            state = match left {
                None => self.0.sent.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.0.sent.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            state.sleepers -= 1;
            state.woken = state.woken.saturating_sub(1);
        }
    }

    /// All of them, until nobody sends any more.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.state().messages.is_empty()
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.state().receivers += 1;
        Self(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.receivers -= 1;
        // Who waits for an answer to what nobody will look at hears so now; and not under the lock, which that may take.
        let unheard = if state.receivers == 0 { std::mem::take(&mut state.messages) } else { VecDeque::new() };
        drop(state);
        drop(unheard);
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_order_and_each_once() {
        let (sender, receiver) = channel();
        assert_eq!(receiver.try_recv(), Err(Nothing::Yet));
        (0..3000).for_each(|n| sender.send(n).expect("heard"));
        sender.clone().send(3000).expect("heard");
        assert_eq!(sender.len(), 3001);
        let half: Vec<u32> = (0..1500).map(|_| receiver.recv().expect("sent")).collect();
        drop(sender);
        let rest: Vec<u32> = std::iter::from_fn(|| receiver.clone().recv().ok()).collect();
        assert_eq!([half, rest].concat(), (0..=3000).collect::<Vec<_>>());
        assert_eq!(receiver.recv(), Err(Nothing::Ever));
        assert_eq!(receiver.try_recv(), Err(Nothing::Ever));
        assert!(receiver.0.state().messages.capacity() <= 2 * KEPT_MAX, "what was needed once is not kept");
    }

    #[test]
    fn what_waits_already_is_not_said_again() {
        let (sender, receiver) = channel();
        sender.send_if_empty(1).expect("heard");
        sender.send_if_empty(2).expect("heard");
        assert_eq!((receiver.recv(), receiver.try_recv()), (Ok(1), Err(Nothing::Yet)));
        sender.send_if_empty(3).expect("heard");
        assert_eq!(receiver.try_recv(), Ok(3));
    }

    #[test]
    fn nothing_waits_beyond_its_time() {
        let (sender, receiver) = channel::<()>();
        assert_eq!(receiver.recv_timeout(Duration::from_millis(1)), Err(Nothing::Yet));
        assert_eq!(receiver.recv_deadline(Instant::now()), Err(Nothing::Yet));
        let state = receiver.0.state();
        assert_eq!((state.sleepers, state.woken), (0, 0));
        drop(state);
        let ends = std::thread::spawn(move || receiver.recv_timeout(Duration::MAX));
        drop(sender);
        assert_eq!(ends.join().expect("no panic"), Err(Nothing::Ever));
    }

    /// What is dropped unheard may hold a way into the very channel, and somebody may wait for its end.
    #[test]
    fn what_nobody_will_hear_is_gone_with_who_would_have() {
        struct Asks(#[expect(dead_code)] Sender<Self>, #[expect(dead_code)] Sender<()>);
        let (sender, receiver) = channel();
        let (answer, answered) = channel();
        sender.send(Asks(sender.clone(), answer.clone())).expect("heard");
        drop(receiver);
        sender.send(Asks(sender.clone(), answer)).expect_err("nobody is there");
        assert_eq!(answered.recv(), Err(Nothing::Ever));
    }

    /// A message that wakes up nobody although somebody sleeps would leave these waiting for ever.
    #[test]
    fn many_threads_lose_nothing_and_none_sleeps_for_ever() {
        const EACH: u64 = 20_000;
        let (sender, receiver) = channel();
        let receivers: Vec<_> = (0..3)
            .map(|thread| {
                let receiver = receiver.clone();
                std::thread::spawn(move || {
                    let (mut count, mut sum) = (0, 0);
                    loop {
                        let heard = match thread {
                            0 => receiver.recv_timeout(Duration::from_micros(50)),
                            _ => receiver.recv(),
                        };
                        match heard {
                            Ok(n) => (count, sum) = (count + 1, sum + n),
                            Err(Nothing::Yet) => {}
                            Err(Nothing::Ever) => return (count, sum),
                        }
                    }
                })
            })
            .collect();
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for n in 1..=EACH {
                        if n % 200 == 0 {
                            std::thread::sleep(Duration::from_micros(n % 60)); // so that they sleep now and then
                        }
                        sender.send(n).expect("heard");
                    }
                })
            })
            .collect();
        drop(sender);
        senders.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let ends = receivers.into_iter().map(|thread| thread.join().expect("no panic"));
        let (count, sum) = ends.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
        assert_eq!((count, sum), (3 * EACH, 3 * EACH * (EACH + 1) / 2));
        let state = receiver.0.state();
        assert_eq!((state.sleepers, state.woken), (0, 0));
    }
}
