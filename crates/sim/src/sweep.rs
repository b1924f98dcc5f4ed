//! Many seeds at once, and what came of them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::run::{Options, Outcome, run};

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Runs made.
    pub runs: u64,
    /// Points compared with the truth.
    pub points: u64,
    /// Records accepted.
    pub records: u64,
    /// Steps made.
    pub steps: u64,
    /// Rare things that happened, and how often.
    pub met: BTreeMap<&'static str, u64>,
    /// Runs that broke a law, by seed.
    pub failures: Vec<Outcome>,
    /// How long it took.
    pub took: Duration,
}

/// Runs all seeds on so many threads; with `first_only` it ends soon after the first failure.
pub fn sweep(seeds: Range<u64>, threads: usize, options: Options<'_>, first_only: bool) -> Summary {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = run(seed, options);
                    let mut s = summary.lock().expect("no thread panics");
                    s.runs += 1;
                    s.points += outcome.points;
                    s.records += outcome.records;
                    s.steps += outcome.steps;
                    outcome.met.iter().for_each(|(what, n)| *s.met.entry(*what).or_default() += n);
                    if outcome.bad.is_some() {
                        stop.fetch_or(first_only, Ordering::Relaxed);
                        s.failures.push(outcome);
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics");
    summary.failures.sort_by_key(|f| f.seed);
    summary.took = began.elapsed();
    summary
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in self.failures.iter().take(12) {
            writeln!(f, "seed {}: {}", failure.seed, failure.bad.as_deref().unwrap_or_default())?;
            writeln!(f, "    replay it: cargo run --release -p xtask -- sim --seed {} --trace", failure.seed)?;
        }
        let seconds = self.took.as_secs_f64();
        write!(
            f,
            "{} seeds, {} bad, {} points compared with the truth, {} records, {} steps, {seconds:.1} s ({:.0} seeds/s)",
            self.runs,
            self.failures.len(),
            self.points,
            self.records,
            self.steps,
            self.runs as f64 / seconds.max(0.001)
        )
    }
}
