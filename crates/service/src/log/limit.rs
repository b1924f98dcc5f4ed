//! Who may say how much: per call site, and per volume or group that it speaks of, a burst per window.
//!
//! Invariant: for every site, lines passed plus lines reported as suppressed equals lines offered once its window is over;
//! memory is bounded by [`SITES_MAX`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::callsite::Identifier;

/// So many lines of one site pass within a window.
pub(super) const BURST: u32 = 20;
/// How long a window lasts.
pub(super) const WINDOW: Duration = Duration::from_secs(30);
/// Sites that are told apart; beyond that, subjects are not.
pub(super) const SITES_MAX: usize = 1024;
/// How much of a suppressed line is remembered for its report.
const SAMPLE_CHARS: usize = 160;

/// A place in the code, and whom it speaks of.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Site {
    pub(super) call: Identifier,
    pub(super) subject: u64,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Written; so many before it were not.
    Pass { suppressed: u64 },
    /// Not written, counted.
    Suppress,
}

struct Said {
    since: Instant,
    passed: u32,
    suppressed: u64,
    level: Level,
    sample: String,
}

#[derive(Default)]
pub(super) struct Limiter {
    sites: HashMap<Site, Said>,
}

impl Limiter {
    pub(super) fn admit(&mut self, now: Instant, site: Site, level: Level, text: impl FnOnce() -> String) -> Verdict {
        let site = self.place(now, site);
        let said =
            self.sites.entry(site).or_insert_with(|| Said { since: now, passed: 0, suppressed: 0, level, sample: String::new() });
        if now.saturating_duration_since(said.since) >= WINDOW {
            said.since = now;
            said.passed = 0;
        }
        if said.passed < BURST {
            said.passed += 1;
            return Verdict::Pass { suppressed: std::mem::take(&mut said.suppressed) };
        }
        if said.suppressed == 0 {
            said.sample = text().chars().take(SAMPLE_CHARS).collect();
            said.level = level;
        }
        said.suppressed += 1;
        Verdict::Suppress
    }

    /// Forgets sites whose window is over; for each that was kept from speaking, a line that says so.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<(Level, String)> {
        let mut reports = Vec::new();
        self.sites.retain(|_, said| {
            let over = now.saturating_duration_since(said.since) >= WINDOW;
            if over && said.suppressed > 0 {
                reports.push((said.level, format!("suppressed {} more like: {}", said.suppressed, said.sample)));
            }
            !over
        });
        reports
    }

    /// Where the site is counted: under itself while there is room, else with all others of its call.
    fn place(&mut self, now: Instant, site: Site) -> Site {
        if self.sites.len() >= SITES_MAX && !self.sites.contains_key(&site) {
            self.sites.retain(|_, said| said.suppressed > 0 || now.saturating_duration_since(said.since) < WINDOW);
        }
        if self.sites.len() < SITES_MAX || self.sites.contains_key(&site) { site } else { Site { subject: 0, ..site } }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sites.len()
    }
}
