//! The moment at which all queues of a device begin to be served.
//!
//! Each queue's thread makes ready what it needs, and arrives; the last one opens the device, for it can be opened once. Invariant:
//! nobody waits for a queue that will not come: one that fails, or is dropped before it has arrived, ends the waiting of all.
//! From there on nothing is left that takes time: each gives its commands.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use farside_blockio::SharedFd;

use crate::UblkError;

#[derive(Debug)]
enum State {
    /// So many have not arrived.
    Waiting(u16),
    Open(SharedFd),
    Failed,
}

#[derive(Debug)]
struct Opening {
    state: Mutex<State>,
    changed: Condvar,
}

/// One queue's place in it.
#[derive(Debug)]
pub(crate) struct Place {
    opening: Arc<Opening>,
    arrived: bool,
}

/// A place for each of so many queues.
pub(crate) fn places(queues: u16) -> Vec<Place> {
    let opening = Arc::new(Opening { state: Mutex::new(State::Waiting(queues)), changed: Condvar::new() });
    (0..queues).map(|_| Place { opening: opening.clone(), arrived: false }).collect()
}

impl Place {
    /// Waits until all have arrived and the device is open. `id`: of the device.
    ///
    /// # Errors
    /// Of `open`, for who called it; for all others [`UblkError::OtherQueue`].
    pub(crate) fn arrive(mut self, id: u32, open: impl FnOnce() -> Result<SharedFd, UblkError>) -> Result<SharedFd, UblkError> {
        self.arrived = true;
        let opening = Arc::clone(&self.opening);
        let mut state = opening.state();
        if let State::Waiting(missing) = &mut *state {
            *missing -= 1;
            if *missing == 0 {
                let opened = open();
                *state = opened.as_ref().map_or(State::Failed, |file| State::Open(Arc::clone(file)));
                opening.changed.notify_all();
                return opened;
            }
        }
        loop {
            match &*state {
                State::Waiting(_) => state = opening.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::Open(file) => return Ok(Arc::clone(file)),
                State::Failed => return Err(UblkError::OtherQueue { id }),
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.arrived {
            *self.opening.state() = State::Failed;
            self.opening.changed.notify_all();
        }
    }
}

impl Opening {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn file() -> SharedFd {
        Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()))
    }

    #[test]
    fn the_last_one_opens_and_all_have_the_same() {
        let threads: Vec<_> = places(4)
            .into_iter()
            .map(|place| std::thread::spawn(move || Arc::as_ptr(&place.arrive(3, || Ok(file())).unwrap()) as usize))
            .collect();
        let mut files: Vec<usize> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        files.dedup();
        assert_eq!(files.len(), 1);
    }

    #[test]
    fn one_that_never_comes_ends_the_waiting_of_all() {
        let mut places = places(3);
        let gone = places.pop().unwrap();
        let threads: Vec<_> = places
            .into_iter()
            .map(|place| std::thread::spawn(move || place.arrive(3, || panic!("nobody is the last")).unwrap_err().to_string()))
            .collect();
        drop(gone);
        assert!(threads.into_iter().all(|thread| thread.join().unwrap().contains("/dev/ublkb3")));
    }

    #[test]
    fn what_keeps_the_last_one_from_opening_is_said_once() {
        let mut places = places(2);
        let last = places.pop().unwrap();
        let other = places.pop().map(|place| std::thread::spawn(move || place.arrive(3, || Ok(file())))).unwrap();
        let mut errors = vec![last.arrive(3, || Err(UblkError::Missing))];
        errors.push(other.join().unwrap());
        let missing = errors.iter().filter(|error| matches!(error, Err(UblkError::Missing))).count();
        // Whichever came last opened it.
        let opened = errors.iter().filter(|opened| opened.is_ok()).count();
        assert!((missing, opened) == (1, 0) || (missing, opened) == (0, 2), "{errors:?}");
    }
}
