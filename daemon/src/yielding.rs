//! How many reads the sender keeps in flight beside the host's own I/O: all it may while the host is quiet, fewer while they
//! make the host wait.
//!
//! Pure: it is told what the host has done and what it waits for, and when. The host's latency is the mean of its requests in
//! flight over their rate (Little's law), so no request is timed. It is held against a *quiet* latency, measured now and then
//! while the sender holds still: more than twice that halves the depth, less than one and a half lets it grow again.
//!
//! Holes are not reads: while reads are held back, too, a hole is passed as soon as it comes up, at the price of one `lseek` for a run of
//! up to 1 MiB, which reads no data, and which only a volume in a file has. Held back, the first sync of a large sparse file would take
//! hours instead of seconds. What that costs a host besides is the sender's processor time, beside which the threads that serve the host
//! run first (nice −20), and a look at the file's map of extents, for which its file system may lock the inode; a host write that waits for
//! the claim of a hole waits that long. While one listens no hole is passed, nor while the only read that is left is on its way.
//!
//! Invariants: at least one read stays allowed but for the short listening, so every read ends; a host that does nothing costs
//! the sender nothing. It deliberately knows nothing of devices and their numbers: what is slow is what was faster before.

use std::time::Duration;

/// What is looked at together.
const WINDOW_NS: u64 = 25_000_000;
/// A window with fewer requests than this is too short to say something …
const REQUESTS_MIN: u64 = 8;
/// … until it is so long.
const WINDOW_NS_MAX: u64 = 200_000_000;
/// For how long one listens, at least.
const LISTEN_NS: u64 = 50_000_000;
/// How long a quiet latency is believed.
const QUIET_NS_MAX: u64 = 10_000_000_000;
/// Differences below this are noise.
const SLACK_NS: u64 = 200_000;
/// How often one looks: while listening, and while reads are held back.
const LOOK_LISTENING: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(5);

/// What a host's requests look like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// Requests that it made so far.
    pub(crate) requests: u64,
    /// Those that are not answered now.
    pub(crate) in_flight: u64,
}

/// The controller. `Reading ⇄ Listening`, see the module.
#[derive(Debug)]
pub(crate) struct Yielding {
    most: usize,
    depth: usize,
    listening: bool,
    /// The host's latency without us, and when it was measured.
    quiet: Option<(u64, u64)>,
    window: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: u64,
    last: u64,
    requests: u64,
    in_flight: u64,
    /// Request-nanoseconds of waiting.
    waited: u64,
}

impl Yielding {
    /// At most `most` reads, at least one.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, depth: most, listening: false, quiet: None, window: None }
    }

    /// The reads that may be in flight from now on; `ours` are. To be called whenever the sender has something to read, with a
    /// clock that never goes back.
    pub(crate) fn depth(&mut self, now: u64, host: Host, ours: usize) -> usize {
        let fresh = Window { began: now, last: now, requests: host.requests, in_flight: host.in_flight, waited: 0 };
        let mut window = match self.window {
            // After a pause nothing is known of the time between.
            Some(window) if now.saturating_sub(window.last) <= WINDOW_NS_MAX => window,
            _ => fresh,
        };
        window.waited += window.in_flight * now.saturating_sub(window.last);
        (window.last, window.in_flight) = (now, host.in_flight);
        let age = now.saturating_sub(window.began);
        let requests = host.requests.saturating_sub(window.requests);
        let idle = requests == 0 && window.waited == 0 && host.in_flight == 0;
        let enough = requests >= REQUESTS_MIN || age >= WINDOW_NS_MAX;
        if self.listening && ours > 0 {
            window = fresh; // our own reads are still in the way
        } else if idle && age >= WINDOW_NS {
            (self.depth, self.listening) = (self.most, false);
            window = fresh;
        } else if enough && age >= if self.listening { LISTEN_NS } else { WINDOW_NS } {
            self.judge(now, window.waited / requests.max(1));
            window = fresh;
        }
        self.window = Some(window);
        if self.listening { 0 } else { self.depth }
    }

    /// When to look again although nothing happened; `None`: need not.
    pub(crate) fn look_again(&self) -> Option<Duration> {
        match (self.listening, self.depth < self.most) {
            (true, _) => Some(LOOK_LISTENING),
            (false, true) => Some(LOOK),
            (false, false) => None,
        }
    }

    fn judge(&mut self, now: u64, latency: u64) {
        if self.listening {
            self.listening = false;
            // Half of what was known before: one odd moment does not decide.
            let quiet = self.quiet.map_or(latency, |(before, _)| before.midpoint(latency));
            self.quiet = Some((quiet, now));
            return;
        }
        match self.quiet {
            Some((quiet, at)) if now.saturating_sub(at) < QUIET_NS_MAX => {
                if latency > quiet * 2 + SLACK_NS {
                    self.depth = (self.depth / 2).max(1);
                } else if latency <= quiet + quiet / 2 + SLACK_NS {
                    self.depth = (self.depth + (self.depth / 4).max(1)).min(self.most);
                }
            }
            _ => self.listening = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A host with so many requests in flight always, whose latency depends on our reads; it runs in steps of 1 ms.
    struct World {
        yielding: Yielding,
        now: u64,
        host: Host,
        done: f64,
        ours: usize,
    }

    impl World {
        fn new(most: usize) -> Self {
            let host = Host { requests: 0, in_flight: 0 };
            Self { yielding: Yielding::new(most), now: 5, host, done: 0.0, ours: 0 }
        }

        /// Runs for so long with `in_flight` requests that take `latency(our reads)`; gives the depths seen.
        fn run(&mut self, ms: u64, in_flight: u64, latency: impl Fn(usize) -> u64) -> Vec<usize> {
            let mut depths = Vec::new();
            for _ in 0..ms {
                self.host.in_flight = in_flight;
                self.done += in_flight as f64 * MS as f64 / latency(self.ours) as f64;
                self.host.requests = self.done as u64;
                self.now += MS;
                self.ours = self.yielding.depth(self.now, self.host, self.ours);
                depths.push(self.ours);
            }
            depths
        }
    }

    #[test]
    fn a_quiet_host_costs_nothing() {
        let mut world = World::new(16);
        assert!(world.run(5_000, 0, |_| MS).iter().all(|depth| *depth == 16));
        assert_eq!(world.yielding.look_again(), None, "no timer runs either");
    }

    #[test]
    fn reads_that_make_the_host_wait_become_fewer_and_come_back_when_it_is_gone() {
        let mut world = World::new(16);
        // Each of our reads adds a quarter of a millisecond to its requests of 1 ms.
        let depths = world.run(3_000, 4, |ours| MS + ours as u64 * MS / 4);
        let settled = &depths[2_000..];
        let mean = settled.iter().sum::<usize>() as f64 / settled.len() as f64;
        assert!((1.0..=6.0).contains(&mean), "it settles where the host waits about twice as long: {mean}");
        assert!(settled.iter().all(|depth| *depth < 16));
        assert!(world.yielding.look_again().is_some());
        // The host stops: everything at once.
        let depths = world.run(100, 0, |_| MS);
        assert_eq!(depths[99], 16);
        assert!(depths[60..].iter().all(|depth| *depth == 16), "not step by step");
    }

    #[test]
    fn reads_that_disturb_nobody_stay_all() {
        let mut world = World::new(16);
        let depths = world.run(20_000, 2, |_| MS);
        let held_still = depths.iter().filter(|depth| **depth == 0).count();
        assert!(depths.iter().all(|depth| *depth == 16 || *depth == 0));
        assert!((50..=400).contains(&held_still), "it listens for some ms of every ten seconds: {held_still}");
    }

    #[test]
    fn a_host_that_loads_its_disk_itself_is_not_yielded_to_for_ever() {
        let mut world = World::new(16);
        world.run(2_000, 1, |_| MS);
        // From now on its own load makes it slow, whatever we do.
        let depths = world.run(30_000, 32, |_| 20 * MS);
        assert!(depths[1_000..5_000].iter().all(|depth| *depth <= 2), "it looks as if it was us");
        assert!(depths[29_000..].contains(&16), "but it was not");
    }

    #[test]
    fn a_device_that_answers_nothing_leaves_one_read() {
        let mut world = World::new(16);
        world.run(1_000, 4, |_| MS);
        let depths = world.run(3_000, 4, |_| 1_000_000 * MS);
        assert_eq!(depths.last(), Some(&1));
        assert!(!depths[1_500..].contains(&0), "what is being read comes to its end");
    }

    #[test]
    fn listening_waits_for_our_own_reads_and_a_pause_begins_anew() {
        let mut yielding = Yielding::new(8);
        let busy = |requests| Host { requests, in_flight: 4 };
        assert_eq!(yielding.depth(0, busy(0), 0), 8);
        assert_eq!(yielding.depth(30 * MS, busy(100), 8), 0, "it does not know yet what is quiet");
        // One of ours is on its way still: what is measured now is not quiet.
        assert_eq!(yielding.depth(100 * MS, busy(5_000), 1), 0);
        assert_eq!(yielding.depth(130 * MS, busy(5_100), 0), 0);
        assert_eq!(yielding.depth(151 * MS, busy(5_200), 0), 8, "50 ms without ours");
        // A pause of the sender: the time between says nothing.
        assert_eq!(yielding.depth(9_000 * MS, busy(5_201), 0), 8);
        assert_eq!(yielding.depth(9_010 * MS, busy(5_300), 8), 8);
    }

    #[test]
    fn even_one_read_is_a_depth() {
        assert_eq!(Yielding::new(0).depth(0, Host { requests: 0, in_flight: 0 }, 0), 1);
    }
}
