//! The receive window of a connection, as large as its share of the budget, and what its peer was promised beyond it.
//!
//! † Shares change whenever a connection comes or goes. quinn takes nothing back of what it promised: a window that shrinks is made up for by
//! bytes that are read. But of one that grows it promises all of the difference at once, also while that is not made up for yet. So windows that
//! shrink and grow with each connection of a host that flaps would be promised without end, and what was promised may come, and waits in memory.

/// Of one connection.
#[derive(Debug)]
pub(super) struct Window {
    /// What quinn was told last.
    set_bytes: u64,
    /// Promised beyond that, and not read since.
    owed_bytes: u64,
    /// What it is to be when nothing is owed.
    wanted_bytes: u64,
}

impl Window {
    /// As its connection begins.
    pub(super) fn new(bytes: u32) -> Self {
        let bytes = u64::from(bytes);
        Self { set_bytes: bytes, owed_bytes: 0, wanted_bytes: bytes }
    }

    pub(super) fn is_owing(&self) -> bool {
        self.owed_bytes > 0
    }

    /// It is to be so large from here on. Says what quinn is to be told, if anything.
    pub(super) fn want(&mut self, bytes: u32) -> Option<u32> {
        self.wanted_bytes = bytes.into();
        self.follow()
    }

    /// So many bytes were read. Less may be said than were: then it grows later.
    pub(super) fn read(&mut self, bytes: usize) -> Option<u32> {
        self.owed_bytes = self.owed_bytes.saturating_sub(bytes as u64);
        self.follow()
    }

    fn follow(&mut self) -> Option<u32> {
        let before = self.set_bytes;
        self.set_bytes = match self.wanted_bytes < before {
            true => self.wanted_bytes,
            false => before.max(self.wanted_bytes.saturating_sub(self.owed_bytes)),
        };
        self.owed_bytes += before.saturating_sub(self.set_bytes);
        (self.set_bytes != before).then(|| u32::try_from(self.set_bytes).expect("a share is one of 32 bits"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As quinn does it (quinn-proto 0.11, `connection/streams/state.rs`).
    #[derive(Debug)]
    struct Quinn {
        window: u64,
        debt: u64,
        promised: u64,
        read: u64,
    }

    impl Quinn {
        fn set(&mut self, window: u64) {
            self.promised += window.saturating_sub(self.window);
            self.debt += self.window.saturating_sub(window);
            self.window = window;
        }

        fn read(&mut self, bytes: u64) {
            self.read += bytes;
            self.promised += bytes.saturating_sub(self.debt);
            self.debt = self.debt.saturating_sub(bytes);
        }

        fn may_wait(&self) -> u64 {
            self.promised - self.read
        }
    }

    fn both(begin: u32) -> (Window, Quinn) {
        (Window::new(begin), Quinn { window: begin.into(), debt: 0, promised: begin.into(), read: 0 })
    }

    #[test]
    fn connections_that_come_and_go_promise_nothing_more() {
        let (mut window, mut quinn) = both(64 << 10);
        for _ in 0..10 {
            for share in [16 << 20, 10 << 20] {
                if let Some(bytes) = window.want(share) {
                    quinn.set(bytes.into());
                }
                assert!(quinn.may_wait() <= 16 << 20, "{quinn:?}");
            }
        }
        assert_eq!(window.want(16 << 20), None, "what is owed is promised yet");
        quinn.read(6 << 20);
        let bytes = window.read(6 << 20).expect("it grows when that is read");
        quinn.set(bytes.into());
        assert_eq!((bytes, quinn.may_wait(), window.is_owing()), (16 << 20, 16 << 20, false));
    }

    proptest! {
        #[test]
        fn never_more_is_promised_than_the_largest_share_since_all_was_made_up_for(
            begin in 1u32..100,
            steps in prop::collection::vec((any::<bool>(), 1u32..200), 1..60),
        ) {
            let (mut window, mut quinn) = both(begin);
            let mut largest = u64::from(begin);
            for (is_share, n) in steps {
                let said = if is_share {
                    largest = largest.max(n.into());
                    window.want(n)
                } else {
                    let bytes = u64::from(n).min(quinn.may_wait());
                    quinn.read(bytes);
                    window.read(bytes as usize)
                };
                if let Some(bytes) = said {
                    quinn.set(bytes.into());
                }
                if !window.is_owing() {
                    largest = window.wanted_bytes;
                    prop_assert_eq!(quinn.may_wait(), largest);
                }
                prop_assert!(quinn.may_wait() <= largest, "{:?} {:?} {}", window, quinn, largest);
            }
        }
    }
}
